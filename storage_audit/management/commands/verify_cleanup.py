import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db.models import UUIDField

from storage_audit import project_model
from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.management.console import (
    FAILED,
    SHOWN,
    WRONG_USE,
    asked_from_shell,
    facts_of,
    lines_of,
    staying,
    stored_text,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.models import KnownProject, R2Object
from storage_audit.redaction import visible

Status = CleanupOperation.Status
FINE = (Status.CLEAN, Status.CLEAN_WITH_PROTECTED)


class Command(DocumentedCommand):
    help = (
        "Lists the bucket and compares. For a live project: do its files and its tracking rows"
        " agree? For a deleted one, or a deletion id: is anything left? Deletes nothing; the answer"
        " is kept as an operation of its own."
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
            type=stored_text,
            help="the id of a project, live or deleted; or a deletion id: cleanup_project prints"
            " it, and the admin shows it with each cleanup operation",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help=f"print one JSON object: the checks, and the first {SHOWN} keys of each",
        )

    def handle(self, *, subject: str, as_json: bool, **options: object) -> None:
        with asked_from_shell():
            checks = [runner.run(check.pk) for check in self.request(subject)]
        if as_json:
            self.stdout.write(json.dumps({"checks": [facts_of(check) for check in checks]}))
        else:
            for check in checks:
                self.report(check)
        drifted = [check for check in checks if check.status not in FINE]
        if drifted:
            ids = ", ".join(str(check.pk) for check in drifted)
            raise CommandError(f"Not in step; details in operation {ids}.", returncode=FAILED)

    def request(self, subject: str) -> list[CleanupOperation]:
        operation = find_operation(subject)
        if operation:
            try:
                return [requests.verify_operation(operation)]
            except IllegalTransition as error:
                raise CommandError(str(error), returncode=WRONG_USE) from error
        if not is_known(subject):
            raise CommandError(
                f"Neither a project nor a deletion has the id {visible(subject)}. The admin shows"
                " both with their ids.",
                returncode=WRONG_USE,
            )
        return requests.verify_project(subject)

    def report(self, check: CleanupOperation) -> None:
        result = visible(check.error)
        if check.status == Status.PENDING:
            result = (
                "not verified yet: another operation of this project is being worked on. This one"
                " follows by itself."
            )
        self.stdout.write(f"{visible(check.subject)} in bucket {check.bucket}: {result}")
        for line in lines_of(staying(check)):
            self.stdout.write(line)


def find_operation(subject: str) -> CleanupOperation | None:
    try:
        operation_id: UUID = UUIDField().to_python(subject)
    except ValidationError:
        return None
    return CleanupOperation.objects.filter(pk=operation_id).first()


def is_known(project_id: str) -> bool:
    return (
        project_model.is_alive(project_id)
        or KnownProject.objects.filter(pk=project_id).exists()
        or R2Object.objects.filter(project_id=project_id).exists()
    )
