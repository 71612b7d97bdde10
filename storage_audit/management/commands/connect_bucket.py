from argparse import ArgumentParser

from storage_audit.conf import conf
from storage_audit.management.console import command_context
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership import bucket_marker


class Command(DocumentedCommand):
    help = (
        "Connects the configured bucket to this database by writing a marker file. Run it"
        " once before anything else, and again after you change the bucket or move the"
        " database. Until then every cleanup is blocked. Safe to repeat."
    )
    epilog = """
    examples:
      python manage.py connect_bucket
      python manage.py connect_bucket --take-over
      python manage.py connect_bucket --disown

    exit codes:
      0  the bucket is connected to this database; with --disown, none is
      1  another database has the bucket, or the store refused or did not respond
      2  wrong usage, also when the store has no such bucket

    Next: backfill_r2 tracks the files in the bucket. Cleanups that were blocked without the marker
    continue when you force-delete them in the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--take-over",
            action="store_true",
            help="connect it even if another database has it, or this database is a copy of the"
            " one that has it. The other one is then blocked. Use it only if that one is gone"
            " for good, never from a test copy",
        )
        how.add_argument(
            "--disown",
            action="store_true",
            help="give this database a new identity, and touch no bucket. Run it first in a copy"
            " that runs beside the original. Until the copy connects a bucket of its own, its"
            " deletions are blocked",
        )

    def handle(self, *, take_over: bool, disown: bool, **options: object) -> None:
        if disown:
            self.stdout.write(
                f"This database is now {bucket_marker.new_identity().pk} and has no bucket, so its"
                " deletions are blocked. Next: set a bucket of its own, then run"
                " manage.py connect_bucket."
            )
            return
        bucket = conf().bucket
        with command_context():
            traits = bucket_marker.connect_bucket(bucket, take_over=take_over)
        self.stdout.write(
            f"Bucket {bucket} belongs to database {DatabaseIdentity.objects.get().pk}."
        )
        spellings = "one object" if traits.folds_unicode else "different objects"
        self.stdout.write(f"The store treats Unicode spellings of a key as {spellings}.")
        self.stdout.write("Next: run manage.py backfill_r2 to track the files in the bucket.")
