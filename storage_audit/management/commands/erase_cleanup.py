from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import end_deletions, make_cleanups
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.management.console import (
    EXIT_FAILED,
    add_decision_arguments,
    command_context,
    find_cleanup,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Ends the hold of a deletion. Its files are deleted now, and you can't undo the deletion."
        " Safety limits still apply."
    )
    epilog = """
    examples:
      python manage.py erase_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason legal
      python manage.py erase_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason "request 4711"

    exit codes:
      0  the hold has ended, and the cleanup is queued
      1  the deletion is not held, so nothing was changed
      2  wrong usage, also when there is no such deletion

    Next: deletion_log with the same deletion ID and --follow shows when the files are gone.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_decision_arguments(parser)

    def handle(self, *, cleanup: UUID, reason: str, **options: object) -> None:
        found = find_cleanup(cleanup)
        with command_context():
            try:
                with transaction.atomic():
                    going_on = end_deletions.erase_deletion(found, reason)
                    make_cleanups.enqueue_on_commit(going_on)
            except IllegalTransition as error:
                raise CommandError(
                    f"The hold of cleanup {cleanup} was not ended. {printable_text(str(error))}",
                    returncode=EXIT_FAILED,
                ) from error
        self.stdout.write(f"The hold of cleanup {cleanup} has ended. You can't undo the deletion.")
        for each in going_on:
            name = f"Cleanup {each.pk}, {printable_text(each.subject)}"
            self.stdout.write(f"{name}: queued. Usually starts within a minute.")
