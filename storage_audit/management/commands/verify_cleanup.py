import json
from argparse import ArgumentParser
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db.models import UUIDField

from storage_audit import project_model
from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
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
        "Compares the bucket with the tracked files. For an existing project, shows missing and"
        " untracked files. For a deleted project or a deletion ID, shows leftover files. Deletes"
        " nothing. The result is saved as a verification in the admin."
    )
    epilog = """
    examples:
      python manage.py verify_cleanup proj_1
      python manage.py verify_cleanup 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --json

    exit codes:
      0  no differences
      1  files are missing, untracked or left over, or the bucket could not be checked
      2  wrong usage, also when neither a project nor a deletion has this ID

    Next: backfill_r2 tracks untracked files. cleanup_project deletes the leftover files of a
    deleted project. Missing files were deleted outside this app.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "subject",
            metavar="ID",
            type=storable_text,
            help="the ID of a live or deleted project; or a deletion ID, as cleanup_project and the"
            " admin show it",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help=f"print one JSON object: each verification, with its first {KEYS_SHOWN} keys",
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
            text = f"Found differences, or could not finish: see above. Verification: {ids}."
            raise CommandError(text, returncode=EXIT_FAILED)

    def request(self, subject: str) -> list[Cleanup]:
        cleanup = find_cleanup(subject)
        if cleanup:
            try:
                return [requests.request_cleanup_verification(cleanup)]
            except IllegalTransition as error:
                raise CommandError(str(error), returncode=EXIT_USAGE) from error
        if not is_known_project(subject):
            raise CommandError(
                f"Neither a project nor a deletion has the ID {printable_text(subject)}. Find the"
                " ID in the admin.",
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
