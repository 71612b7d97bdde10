import json
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from storage_audit.bucket.errors import StoreError
from storage_audit.certificate import check_file
from storage_audit.certificate.certificate_file import (
    Certificate,
    MalformedCertificate,
    NotACertificate,
)
from storage_audit.management.console import EXIT_FAILED, EXIT_USAGE, KEYS_SHOWN, command_context
from storage_audit.management.documented import DocumentedCommand
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import printable_text, redact_secrets


class Command(DocumentedCommand):
    help = (
        "Checks that a deletion certificate was not changed after it was issued, and that"
        " the database agrees. Changes nothing."
    )
    epilog = f"""
    examples:
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json --bucket
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json --json

    Shows the first {KEYS_SHOWN} differences, and the first {KEYS_SHOWN} files that are back in the
    bucket. A file that is newer than its deletion may be a new upload.

    exit codes:
      0  the certificate is unchanged and nothing contradicts it
      1  it was changed, the database differs, a file is back, or the bucket can't be checked
      2  wrong usage, also when there is no such file or it is not a certificate

    Next: deletion_log with the deletion ID shows the deletion's history. If files are back,
    verify_cleanup with that ID shows whose they are.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file",
            metavar="FILE",
            type=Path,
            help="the file exactly as downloaded; saving it in an editor may change it",
        )
        parser.add_argument(
            "--bucket",
            action="store_true",
            help="also list the bucket now, and report files that are back",
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON object"
        )

    def handle(self, *, file: Path, bucket: bool, as_json: bool, **options: object) -> None:
        certificate = open_certificate(file)
        try:
            certificate.read()
            told = check_certificate(certificate, bucket)
        except MalformedCertificate as error:
            if as_json:
                self.stdout.write(json.dumps(unreadable_verdict(certificate, error)))
            whose = certificate.head.get("deletion_id", "an unknown deletion")
            text = f"Changed or incomplete: the certificate of {whose} in {file}. {error}"
            raise CommandError(printable_text(text), returncode=EXIT_FAILED) from error
        if as_json:
            self.stdout.write(json.dumps(told))
        else:
            for line in verdict_lines(told):
                self.stdout.write(printable_text(line))
        if not told["fine"]:
            text = f"Don't rely on this certificate of {told['deletion_id']}: see above."
            raise CommandError(text, returncode=EXIT_FAILED)


def open_certificate(file: Path) -> Certificate:
    try:
        return Certificate(file)
    except (OSError, NotACertificate) as error:
        raise CommandError(printable_text(f"{file}: {error}"), returncode=EXIT_USAGE) from error


def unreadable_verdict(certificate: Certificate, error: MalformedCertificate) -> dict[str, Any]:
    """The verdict about a file that could not be read to its end."""
    return {
        "deletion_id": certificate.head.get("deletion_id"),
        "status": None,
        "statement": None,
        "items": None,
        "flaws": [str(error)],
        "not_compared": "Not compared with the database, as the file was changed.",
        "differences": [],
        "more_differences": 0,
        "fine": False,
    }


def check_certificate(certificate: Certificate, bucket: bool) -> dict[str, Any]:
    flaws = list(check_file.find_flaws(certificate))
    comparison = check_file.compare_with_database(certificate)
    differences, more = split_first(comparison.differences)
    told: dict[str, Any] = {
        "deletion_id": certificate.head["deletion_id"],
        "status": certificate.head["status"],
        "statement": certificate.head["statement"],
        "items": certificate.head["totals"]["found"]["objects"],
        "flaws": flaws,
        "not_compared": comparison.not_compared,
        "differences": differences,
        "more_differences": more,
    }
    told |= bucket_verdict(certificate, is_trusted=not flaws) if bucket else {}
    told["fine"] = not (flaws or differences or told.get("unknown") or told.get("back"))
    return told


def bucket_verdict(certificate: Certificate, is_trusted: bool) -> dict[str, Any]:
    """What the bucket shows now; it is not asked about an altered file."""
    if not is_trusted:
        return {"unknown": "the file was changed, so the bucket was not checked."}
    if check_file.is_foreign(certificate):
        return {"unknown": "another database issued it, and its bucket can't be checked here."}
    with command_context():
        try:
            found, more = split_first(check_file.find_reappeared(certificate))
        except (CannotConclude, StoreError) as error:
            return {"unknown": redact_secrets(str(error))}
    back = [
        {
            "key": each.key,
            "seen_gone_at": each.seen_gone_at,
            "last_modified": each.last_modified.isoformat(),
            "newer": each.is_newer,
        }
        for each in found
    ]
    return {"unknown": "", "back": back, "more_back": more}


def split_first(found: Iterable[Any]) -> tuple[list[Any], int]:
    """The first ones, and how many more there are."""
    rest = iter(found)
    return list(islice(rest, KEYS_SHOWN)), sum(1 for _each in rest)


def verdict_lines(told: dict[str, Any]) -> Iterator[str]:
    yield f"Deletion {told['deletion_id']}: {told['status']}, {told['items']} objects."
    if not told["flaws"]:
        yield f"Unchanged since it was issued. {told['statement']}"
    for flaw in told["flaws"]:
        yield f"Changed: {flaw}"
    yield from database_lines(told)
    yield from bucket_lines(told)


def database_lines(told: dict[str, Any]) -> Iterator[str]:
    if told["not_compared"]:
        yield told["not_compared"]
    elif not told["differences"]:
        yield "The database agrees."
    for difference in told["differences"]:
        yield f"Differs: {difference}"
    if told["more_differences"]:
        yield f"and {told['more_differences']} more"


def bucket_lines(told: dict[str, Any]) -> Iterator[str]:
    if told.get("unknown"):
        yield f"The bucket was not checked: {told['unknown']}"
    elif "back" in told and not told["back"]:
        yield "None of the deleted files is back in the bucket."
    for each in told.get("back", ()):
        age = "a newer file" if each["newer"] else "not a newer file"
        yield (
            f"Back: {each['key']}: confirmed gone at {each['seen_gone_at']}; in the bucket again,"
            f" last modified {each['last_modified']} ({age})"
        )
    if told.get("more_back"):
        yield f"and {told['more_back']} more"
