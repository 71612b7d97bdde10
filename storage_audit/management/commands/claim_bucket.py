from argparse import ArgumentParser

from django.core.management.base import BaseCommand

from storage_audit.audit import installation
from storage_audit.conf import conf
from storage_audit.management.console import asked_from_shell
from storage_audit.models import Installation


class Command(BaseCommand):
    help = (
        "Writes a marker into the configured bucket that says that it belongs to this database."
        " Needed once before anything else works, and again after you changed the bucket or moved"
        " the database: until then every cleanup is blocked. Safe to repeat."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--take-over",
            action="store_true",
            help="also if another installation has the bucket, or this database was copied from"
            " the one that has it. The other one is then blocked. Use it when that one is gone for"
            " good, and never from a copy made for tests.",
        )

    def handle(self, *, take_over: bool, **options: object) -> None:
        bucket = conf().bucket
        with asked_from_shell():
            traits = installation.claim(bucket, take_over=take_over)
        self.stdout.write(
            f"Bucket {bucket} belongs to installation {Installation.objects.get().pk}."
        )
        spellings = "one object" if traits.folds_unicode else "different objects"
        self.stdout.write(f"The store takes Unicode spellings of a key for {spellings}.")
        self.stdout.write("Next: manage.py backfill_r2 writes down what is in the bucket.")
