from argparse import ArgumentParser

from storage_audit.conf import conf
from storage_audit.management.console import command_context
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership import bucket_connection


class Command(DocumentedCommand):
    help = (
        "Connects the configured bucket to this database by writing a marker file. Run it"
        " once before anything else, and again after you change the bucket or move the"
        " database. Until then no cleanup deletes anything. Safe to repeat."
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

    Next: backfill_r2 tracks the files in the bucket. To continue cleanups that stopped because
    the bucket was not connected, approve them in the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--take-over",
            action="store_true",
            help="connect the bucket even if another database has it, or if this one is a copy."
            " The other database can then delete nothing. Use this only if the other database is"
            " gone for good, never from a test copy",
        )
        how.add_argument(
            "--disown",
            action="store_true",
            help="give this database a new identity, and touch no bucket. Run this first in a copy"
            " that runs beside the original. The copy deletes nothing until it connects a bucket of"
            " its own",
        )

    def handle(self, *, take_over: bool, disown: bool, **options: object) -> None:
        if disown:
            self.stdout.write(
                f"This database is now {bucket_connection.new_identity().pk}. It has no bucket, so"
                " it deletes nothing. Next: set a bucket of its own, then run manage.py"
                " connect_bucket."
            )
            return
        bucket = conf().bucket
        with command_context():
            traits = bucket_connection.connect_bucket(bucket, take_over=take_over)
        self.stdout.write(
            f"Bucket {bucket} belongs to database {DatabaseIdentity.objects.get().pk}."
        )
        spellings = "one object" if traits.folds_unicode else "different objects"
        self.stdout.write(f"The store treats Unicode spellings of a key as {spellings}.")
        self.stdout.write("Next: run manage.py backfill_r2 to track the files in the bucket.")
