from argparse import ArgumentParser
from contextlib import suppress
from uuid import UUID

from django.core.management.base import CommandError

from storage_audit.cleanup import end_deletions, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.cleanup.restore_snapshot import Restored
from storage_audit.management.console import EXIT_FAILED, EXIT_USAGE, command_context, storable_text
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Restores a deleted project while its deletion is held, with the rows that were deleted"
        " together with it. Its files are kept."
    )
    epilog = """
    examples:
      python manage.py undo_deletion proj_1
      python manage.py undo_deletion 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason "wrong project"

    exit codes:
      0  the project is restored
      1  the project can't be restored: the message says why, and nothing was changed
      2  wrong usage, also when there is no such deletion

    Next: open the project in the admin. If the project can't be restored, cancel_cleanup keeps its
    files.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "deletion",
            metavar="ID",
            type=storable_text,
            help="a deletion ID; or a project ID, for the last deletion of this project",
        )
        parser.add_argument(
            "--reason",
            default="",
            help="the reason, for the cleanup's page; without it, the page shows only who did it",
        )

    def handle(self, *, deletion: str, reason: str, **options: object) -> None:
        cleanup = find_deletion(deletion)
        with command_context():
            try:
                restored = end_deletions.undo_deletion(cleanup, reason)
            except (IllegalTransition, CannotRestore) as error:
                raise CommandError(
                    f"Deletion {cleanup.pk} was not undone. {printable_text(str(error))}",
                    returncode=EXIT_FAILED,
                ) from error
        self.report(cleanup, restored)

    def report(self, cleanup: Cleanup, restored: list[Restored]) -> None:
        project = printable_text(cleanup.subject)
        self.stdout.write(f"Deletion {cleanup.pk} is undone: project {project} is restored.")
        for each in restored:
            for table, count in each.rows.items():
                self.stdout.write(f"  {printable_text(table)}: {count}")
            for sentence in each.left_out:
                self.stdout.write(printable_text(sentence))


def find_deletion(text: str) -> Cleanup:
    with suppress(ValueError):
        if found := Cleanup.objects.filter(pk=UUID(text)).first():
            return found
    if made := requests.cleanups_of_deletion(text):
        return made[0]
    raise CommandError(
        f"Neither a deletion nor a deleted project has the ID {printable_text(text)}.",
        returncode=EXIT_USAGE,
    )
