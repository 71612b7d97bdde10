import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db.models import UUIDField

from storage_audit import project_model
from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_USAGE,
    KEYS_SHOWN,
    cleanup_json,
    command_context,
    item_lines,
    remaining_items,
    storable_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import KnownProject, R2Object
from storage_audit.redaction import printable_text

Status = Cleanup.Status
SUCCESS_STATUSES = (Status.CLEAN, Status.CLEAN_WITH_KEPT)


class Command(DocumentedCommand):
    help = (
        "Lists the bucket and compares. For a live project: do its files and its tracking rows"
        " agree? For a deleted one, or a deletion id: is anything left? Deletes nothing; the answer"
        " is kept as a cleanup of its own."
    )
    epilog = """
    examples:
      python manage.py verify_cleanup proj_1
      python manage.py verify_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --json

    exit codes:
      0  bucket and table agree, or nothing is left that may go
      1  something is missing, untracked, left, or could not be seen
      2  wrong use, also when neither a project nor a deletion has this id

    Next: for what is untracked, backfill_r2. For what is left, force-delete the cleanup in the
    admin, which tries it again. What is missing was deleted past this application.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "subject",
            metavar="ID",
            type=storable_text,
            help="the id of a project, live or deleted; or a deletion id: cleanup_project prints"
            " it, and the admin shows it with each cleanup",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help=f"print one JSON object: the checks, and the first {KEYS_SHOWN} keys of each",
        )

    def handle(self, *, subject: str, as_json: bool, **options: object) -> None:
        with command_context():
            checks = [runner.run_to_end(check.pk) for check in self.request(subject)]
        if as_json:
            self.stdout.write(json.dumps({"checks": [cleanup_json(check) for check in checks]}))
        else:
            for check in checks:
                self.report(check)
        drifted = [check for check in checks if check.status not in SUCCESS_STATUSES]
        if drifted:
            ids = ", ".join(str(check.pk) for check in drifted)
            raise CommandError(f"Not in step; details in cleanup {ids}.", returncode=EXIT_FAILED)

    def request(self, subject: str) -> list[Cleanup]:
        cleanup = find_cleanup(subject)
        if cleanup:
            try:
                return [requests.request_cleanup_verification(cleanup)]
            except IllegalTransition as error:
                raise CommandError(str(error), returncode=EXIT_USAGE) from error
        if not is_known_project(subject):
            raise CommandError(
                f"Neither a project nor a deletion has the id {printable_text(subject)}. The admin"
                " shows both with their ids.",
                returncode=EXIT_USAGE,
            )
        return requests.request_verification(subject)

    def report(self, check: Cleanup) -> None:
        result = printable_text(check.message)
        if check.status == Status.PENDING:
            result = (
                "not verified yet: another cleanup of this project is running. This verification"
                " starts when that one ends."
            )
        self.stdout.write(f"{printable_text(check.subject)} in bucket {check.bucket}: {result}")
        for line in item_lines(remaining_items(check)):
            self.stdout.write(line)


def find_cleanup(subject: str) -> Cleanup | None:
    try:
        cleanup_id: UUID = UUIDField().to_python(subject)
    except ValidationError:
        return None
    return Cleanup.objects.filter(pk=cleanup_id).first()


def is_known_project(project_id: str) -> bool:
    return (
        project_model.is_alive(project_id)
        or KnownProject.objects.filter(pk=project_id).exists()
        or R2Object.objects.filter(project_id=project_id).exists()
    )
