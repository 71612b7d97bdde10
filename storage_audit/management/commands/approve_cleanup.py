from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.states import IllegalTransition
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
        "Shows what stopped a cleanup that is blocked, with its figures. Confirm exactly these"
        " figures, and it is approved: it goes on from where it is, without the limits that its"
        " plan exceeds."
    )
    epilog = """
    examples:
      python manage.py approve_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py approve_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --confirm 5d41402abc4b

    exit codes:
      0  the figures are shown; with --confirm, it is approved and enqueued
      1  it tells other figures than those confirmed: they are shown, and it is not approved
      2  wrong use, also when no cleanup of this id is blocked

    Next: verify_cleanup with the same deletion id, or the cleanup's page in the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="the deletion id of the cleanup that is blocked: cleanup_project prints it, and"
            " the admin shows it",
        )
        parser.add_argument(
            "--confirm",
            metavar="CODE",
            help="approve it: the code that stands for the figures, and changes with them;"
            " without it, the figures and their code are shown",
        )

    def handle(self, *, cleanup: UUID, confirm: str | None, **options: object) -> None:
        blocked = find_blocked(cleanup)
        if confirm is None:
            self.show(blocked)
            return
        if confirm != blocked.confirmation_digest:
            self.show(blocked)
            raise CommandError(
                f"Cleanup {cleanup} tells other figures than those of {printable_text(confirm)}, so"
                " it was not approved.",
                returncode=EXIT_FAILED,
            )
        with command_context():
            approved = approve_cleanup(blocked)
        for each in approved:
            self.stdout.write(f"Cleanup {each.pk}, {printable_text(each.subject)}: enqueued.")

    def show(self, cleanup: Cleanup) -> None:
        self.stdout.write(f"Cleanup {cleanup.pk}, {printable_text(cleanup.subject)}: blocked.")
        self.stdout.write(printable_text(cleanup.message))
        again = f"manage.py approve_cleanup {cleanup.pk} --confirm {cleanup.confirmation_digest}"
        self.stdout.write(f"To approve it: {again}")


def find_blocked(deletion_id: UUID) -> Cleanup:
    found = Cleanup.objects.filter(pk=deletion_id).first()
    if found is None or found.status != Cleanup.Status.BLOCKED:
        state = found.get_status_display() if found else "unknown"
        raise CommandError(
            f"Cleanup {deletion_id} does not need approval. Its status is {state}.",
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
            requests.enqueue_on_commit(approved)
    except IllegalTransition as error:
        raise CommandError(str(error), returncode=EXIT_USAGE) from error
    return approved
