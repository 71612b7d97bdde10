from argparse import ArgumentParser
from uuid import UUID

from django.core.management.base import CommandError
from django.db import transaction

from storage_audit.cleanup import requests
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.management.console import FAILED, WRONG_USE, asked_from_shell, deletion_id
from storage_audit.management.documented import DocumentedCommand
from storage_audit.redaction import visible


class Command(DocumentedCommand):
    help = (
        "Shows what stopped a cleanup that is blocked, with its figures. Confirm exactly these"
        " figures, and it is released: it goes on from where it is, without the limits that its"
        " plan exceeds."
    )
    epilog = """
    examples:
      python manage.py release_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py release_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --confirm 5d41402abc4b

    exit codes:
      0  the figures are shown; with --confirm, it is released and enqueued
      1  it tells other figures than those confirmed: they are shown, and it is not released
      2  wrong use, also when no cleanup of this id is blocked

    Next: verify_cleanup with the same deletion id, or the operation's page in the admin.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "operation",
            metavar="DELETION_ID",
            type=deletion_id,
            help="the deletion id of the cleanup that is blocked: cleanup_project prints it, and"
            " the admin shows it",
        )
        parser.add_argument(
            "--confirm",
            metavar="CODE",
            help="release it: the code that stands for the figures, and changes with them;"
            " without it, the figures and their code are shown",
        )

    def handle(self, *, operation: UUID, confirm: str | None, **options: object) -> None:
        blocked = find_blocked(operation)
        if confirm is None:
            self.show(blocked)
            return
        if confirm != blocked.figures:
            self.show(blocked)
            raise CommandError(
                f"Operation {operation} tells other figures than those of {visible(confirm)}, so it"
                " was not released.",
                returncode=FAILED,
            )
        with asked_from_shell():
            released = release(blocked)
        for each in released:
            self.stdout.write(f"Cleanup {each.pk}, {visible(each.subject)}: enqueued.")

    def show(self, operation: CleanupOperation) -> None:
        self.stdout.write(f"Cleanup {operation.pk}, {visible(operation.subject)}: blocked.")
        self.stdout.write(visible(operation.error))
        again = f"manage.py release_cleanup {operation.pk} --confirm {operation.figures}"
        self.stdout.write(f"To release it: {again}")


def find_blocked(operation_id: UUID) -> CleanupOperation:
    found = CleanupOperation.objects.filter(pk=operation_id).first()
    if found is None or found.status != CleanupOperation.Status.BLOCKED:
        state = found.get_status_display() if found else "not known"
        raise CommandError(f"Operation {operation_id} is {state}.", returncode=WRONG_USE)
    try:
        requests.refuse_look(found)
    except IllegalTransition as error:
        raise CommandError(str(error), returncode=WRONG_USE) from error
    return found


def release(operation: CleanupOperation) -> list[CleanupOperation]:
    try:
        with transaction.atomic():
            released = requests.force_delete_operation(operation)
            requests.enqueue_on_commit(released)
    except IllegalTransition as error:
        raise CommandError(str(error), returncode=WRONG_USE) from error
    return released
