import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db.models import UUIDField

from storage_audit.audit import cleanup, requests
from storage_audit.management.console import (
    FAILED,
    WRONG_USE,
    asked_from_shell,
    facts_of,
    lines_of,
    staying,
)
from storage_audit.models import CleanupOperation, KnownProject, Project, R2Object
from storage_audit.redaction import visible

Status = CleanupOperation.Status
FINE = (Status.CLEAN, Status.CLEAN_WITH_PROTECTED)


class Command(BaseCommand):
    help = (
        "Lists the bucket and compares. For a live project: do its files and its tracking rows"
        " agree? For a deleted one, or a deletion id: is anything left? Changes nothing."
        " Exits with 1 when something is missing, untracked, left or could not be seen."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("subject", metavar="ID", help="a project id or a deletion id")
        parser.add_argument("--json", action="store_true", dest="as_json")

    def handle(self, *, subject: str, as_json: bool, **options: object) -> None:
        with asked_from_shell():
            checks = [cleanup.run(check.pk) for check in self.request(subject)]
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
            return [requests.verify_operation(operation)]
        if not is_known(subject):
            raise CommandError(
                f"Neither a project nor a deletion has the id {visible(subject)}.",
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
        Project.objects.filter(pk=project_id).exists()
        or KnownProject.objects.filter(pk=project_id).exists()
        or R2Object.objects.filter(project_id=project_id).exists()
    )
