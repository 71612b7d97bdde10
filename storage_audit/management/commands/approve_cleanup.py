from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import make_cleanups, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    command_context,
    parse_deletion_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import printable_text


class Command(DocumentedCommand):
    help = (
        "Shows why a cleanup needs approval, how much it would delete, and a code for exactly these"
        " figures. With the code, approves the cleanup: it continues, and skips the limits that its"
        " plan exceeds."
    )
    epilog = """
    examples:
      python manage.py approve_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py approve_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --confirm 5d41402abc4b

    exit codes:
      0  the figures are shown; with --confirm, the cleanup is approved and queued
      1  the figures have changed: they are shown again, and the cleanup is not approved
      2  wrong usage, also when no cleanup with this ID needs approval

    Next: deletion_log with the same deletion ID shows the progress, as does the cleanup's page in
    the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="the deletion ID of the cleanup that needs approval, as cleanup_project and the"
            " admin show it",
        )
        parser.add_argument(
            "--confirm",
            metavar="CODE",
            help="approve the cleanup with this code, which changes when the figures change;"
            " without it, the command shows the figures and their code",
        )

    def handle(self, *, cleanup: UUID, confirm: str | None, **options: object) -> None:
        blocked = find_blocked(cleanup)
        if confirm is None:
            self.show(blocked)
            return
        if confirm != blocked.confirmation_digest:
            self.show(blocked)
            raise CommandError(
                f"Cleanup {cleanup} was not approved. The code {printable_text(confirm)} does not"
                " match its figures. Check the figures above and use their code.",
                returncode=EXIT_FAILED,
            )
        with command_context():
            approved = approve_cleanup(blocked)
        for each in approved:
            name = f"Cleanup {each.pk}, {printable_text(each.subject)}"
            self.stdout.write(f"{name}: approved. Usually continues within a minute.")

    def show(self, cleanup: Cleanup) -> None:
        self.stdout.write(
            f"Cleanup {cleanup.pk}, {printable_text(cleanup.subject)}: needs approval."
        )
        self.stdout.write(printable_text(cleanup.message))
        again = f"manage.py approve_cleanup {cleanup.pk} --confirm {cleanup.confirmation_digest}"
        self.stdout.write(f"To approve: {again}")


def find_blocked(deletion_id: UUID) -> Cleanup:
    found = Cleanup.objects.filter(pk=deletion_id).first()
    if found is None or found.status != Cleanup.Status.BLOCKED:
        shown = found.get_status_display() if found else "unknown"
        raise CommandError(
            f"Cleanup {deletion_id} does not need approval. Its status is {shown}.",
            returncode=EXIT_USAGE,
        )
    try:
        requests.refuse_verification(found)
    except IllegalTransition as error:
        raise CommandError(str(error), returncode=EXIT_USAGE) from error
    return found


def approve_cleanup(cleanup: Cleanup) -> list[Cleanup]:
    try:
        with transaction.atomic():
            approved = requests.approve_or_retry(cleanup)
            make_cleanups.enqueue_on_commit(approved)
    except IllegalTransition as error:
        raise CommandError(str(error), returncode=EXIT_USAGE) from error
    return approved
