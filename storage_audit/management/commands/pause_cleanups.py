from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError

from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    command_context,
    find_cleanup,
    parse_deletion_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Pauses all deletions, or one cleanup, until you resume them. Previews, verifications and"
        " scans continue. Requests that were already sent can't be stopped."
    )
    epilog = """
    examples:
      python manage.py pause_cleanups --reason "Files are missing, we look into it"
      python manage.py pause_cleanups --cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --reason Ask

    exit codes:
      0  paused
      1  paused, but not recorded in each bucket: a database restored from a backup would resume
      2  wrong usage, also when the cleanup will not delete anything

    Next: resume_cleanups shows how much is waiting, and resumes the deletions.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="pause only this cleanup and its follow-up checks; without it, all deletions",
        )
        parser.add_argument(
            "--reason",
            required=True,
            metavar="TEXT",
            help="the reason; staff see it while deletions are paused",
        )

    def handle(self, *, cleanup: UUID | None, reason: str, **options: object) -> None:
        found = find_cleanup(cleanup) if cleanup else None
        with command_context():
            try:
                result = pause_deletions.pause_deletions(reason, found)
            except IllegalTransition as error:
                raise CommandError(str(error), returncode=EXIT_USAGE) from error
        self.stdout.write(f"{printable_text(str(result.pause))}.")
        sent = pause_deletions.count_requests_under_way()
        self.stdout.write(f"Deletion requests that may still take effect: {sent}.")
        if result.unwritten:
            failed = "; ".join(f"{bucket}: {why}" for bucket, why in result.unwritten.items())
            raise CommandError(
                "Deletions are paused, but the pause is not recorded in each bucket. A database"
                " restored from a backup would resume them. Run the command again."
                f" {printable_text(failed)}",
                returncode=EXIT_FAILED,
            )
