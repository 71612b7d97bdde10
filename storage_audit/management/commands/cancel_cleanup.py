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
        "Cancels a cleanup that is held, waiting, needs approval, failed or retrying. Files that"
        " are still in the bucket are kept. The project stays deleted."
    )
    epilog = """
    examples:
      python manage.py cancel_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason lawsuit
      python manage.py cancel_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason "wrong bucket"

    exit codes:
      0  the cleanup is cancelled; if files were sent for deletion, a worker verifies them
      1  the cleanup is running or has ended, so it was not cancelled
      2  wrong usage, also when there is no such deletion

    Next: to delete the files later, choose Clean up again on the cleanup's page in the admin. To
    restore the project while its deletion is held, use undo_deletion instead.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_decision_arguments(parser)

    def handle(self, *, cleanup: UUID, reason: str, **options: object) -> None:
        found = find_cleanup(cleanup)
        with command_context():
            try:
                with transaction.atomic():
                    going_on = end_deletions.cancel_deletion(found, reason)
                    make_cleanups.enqueue_on_commit(going_on)
            except IllegalTransition as error:
                raise CommandError(
                    f"Cleanup {cleanup} was not cancelled. {printable_text(str(error))}",
                    returncode=EXIT_FAILED,
                ) from error
        self.stdout.write(f"Cleanup {cleanup} is cancelled. Its files stay in the bucket.")
        for each in going_on:
            self.stdout.write(
                f"Some files were sent for deletion. Cleanup {each.pk} verifies them."
            )
