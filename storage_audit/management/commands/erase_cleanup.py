from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import end_deletions, requests
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.management.console import (
    EXIT_FAILED,
    command_context,
    find_cleanup,
    parse_deletion_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Ends the hold of a deletion: its files are deleted now, and nobody can undo it any more."
        " Safety limits still apply."
    )
    epilog = """
    examples:
      python manage.py erase_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason legal
      python manage.py erase_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason "request 4711"

    exit codes:
      0  the hold is over, and the cleanup is enqueued
      1  the deletion is not held, so there is nothing to skip
      2  wrong use, also when there is no such deletion

    Next: deletion_log with the same deletion id and --follow shows when the files are gone.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="the deletion id: the cleanup's page in the admin shows it",
        )
        parser.add_argument(
            "--reason",
            required=True,
            help="why; it is kept with the cleanup",
        )

    def handle(self, *, cleanup: UUID, reason: str, **options: object) -> None:
        found = find_cleanup(cleanup)
        with command_context():
            try:
                with transaction.atomic():
                    going_on = end_deletions.erase_deletion(found, reason)
                    requests.enqueue_on_commit(going_on)
            except IllegalTransition as error:
                raise CommandError(
                    f"Cleanup {cleanup} was not erased. {printable_text(str(error))}",
                    returncode=EXIT_FAILED,
                ) from error
        self.stdout.write(f"The hold of deletion {cleanup} is over. It can't be undone any more.")
        for each in going_on:
            self.stdout.write(f"Cleanup {each.pk}, {printable_text(each.subject)}: enqueued.")
