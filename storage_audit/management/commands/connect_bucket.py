from argparse import ArgumentParser

from storage_audit.conf import conf
from storage_audit.management.console import command_context
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership import bucket_marker


class Command(DocumentedCommand):
    help = (
        "Writes a marker into the configured bucket that says that it belongs to this database."
        " Needed once before anything else works, and again after you changed the bucket or moved"
        " the database: until then every cleanup is blocked. Safe to repeat."
    )
    epilog = """
    examples:
      python manage.py connect_bucket
      python manage.py connect_bucket --take-over
      python manage.py connect_bucket --disown

    exit codes:
      0  the bucket belongs to this database now; with --disown, no bucket does
      1  another database has it, or the store refused or did not answer
      2  wrong use, also when the store has no such bucket

    Next: backfill_r2 writes down what is in the bucket. Cleanups that were blocked for want of the
    marker go on when you force-delete them in the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--take-over",
            action="store_true",
            help="connect it also if another database has it, or this database was copied from"
            " the one that has it. The other one is then blocked. Use it when that one is gone for"
            " good, and never from a copy made for tests. Without it such a bucket is left alone.",
        )
        how.add_argument(
            "--disown",
            action="store_true",
            help="give this database a new identity, and touch no bucket. Use it first of all in a"
            " copy that runs beside the original: until it connects a bucket of its own, everything"
            " that it would delete is blocked.",
        )

    def handle(self, *, take_over: bool, disown: bool, **options: object) -> None:
        if disown:
            self.stdout.write(
                f"This database is database {bucket_marker.new_identity().pk} now and has no"
                " bucket: everything it would delete is blocked. Next: set a bucket of its own,"
                " then manage.py connect_bucket."
            )
            return
        bucket = conf().bucket
        with command_context():
            traits = bucket_marker.connect_bucket(bucket, take_over=take_over)
        self.stdout.write(
            f"Bucket {bucket} belongs to database {DatabaseIdentity.objects.get().pk}."
        )
        spellings = "one object" if traits.folds_unicode else "different objects"
        self.stdout.write(f"The store takes Unicode spellings of a key for {spellings}.")
        self.stdout.write("Next: manage.py backfill_r2 writes down what is in the bucket.")
