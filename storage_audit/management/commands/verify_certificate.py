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
        "Says whether a deletion certificate is as this application issued it, and whether the"
        " database says the same. Changes nothing."
    )
    epilog = f"""
    examples:
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json --bucket
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json --json

    Of what differs, and of what is back in the bucket, the first {KEYS_SHOWN} are named. What came
    back may be a new upload: it is said which objects are newer than the moment they were seen
    gone.

    exit codes:
      0  it is as it was issued, and nothing that was asked contradicts it
      1  it was altered, the database says something else, an object is back, or the bucket could
         not be asked
      2  wrong use, also when there is no such file, or it is no certificate

    Next: deletion_log with the deletion id tells what the database knows of it. For what is back,
    verify_cleanup with that id says whether it belongs to somebody.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file",
            metavar="FILE",
            type=Path,
            help="as it was downloaded: an editor that formats it makes another file of it",
        )
        parser.add_argument(
            "--bucket",
            action="store_true",
            help="also list its ranges in the bucket now: is a key there that was seen gone?",
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON object instead"
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
            text = f"Altered or cut off: the certificate of {whose} in {file}. {error}"
            raise CommandError(printable_text(text), returncode=EXIT_FAILED) from error
        if as_json:
            self.stdout.write(json.dumps(told))
        else:
            for line in verdict_lines(told):
                self.stdout.write(printable_text(line))
        if not told["fine"]:
            text = f"Not to be relied on as it is: the certificate of {told['deletion_id']}."
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
        "not_compared": "An altered certificate is not compared with the database.",
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
        return {"unknown": "An altered certificate does not say what to look for."}
    if check_file.is_foreign(certificate):
        return {"unknown": "another database issued it, whose bucket this one cannot ask."}
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
        yield f"It is as it was issued. It says: {told['statement']}"
    for flaw in told["flaws"]:
        yield f"Altered: {flaw}"
    yield from database_lines(told)
    yield from bucket_lines(told)


def database_lines(told: dict[str, Any]) -> Iterator[str]:
    if told["not_compared"]:
        yield told["not_compared"]
    elif not told["differences"]:
        yield "The database says the same."
    for difference in told["differences"]:
        yield f"Differs: {difference}"
    if told["more_differences"]:
        yield f"and {told['more_differences']} more differences"


def bucket_lines(told: dict[str, Any]) -> Iterator[str]:
    if told.get("unknown"):
        yield f"Unknown whether it is still so: {told['unknown']}"
    elif "back" in told and not told["back"]:
        yield "The bucket shows none of the objects that were seen gone."
    for each in told.get("back", ()):
        age = "newer than that" if each["newer"] else "older than that"
        yield (
            f"Back: {each['key']}: seen gone at {each['seen_gone_at']}, and there now, written at"
            f" {each['last_modified']}, which is {age}"
        )
    if told.get("more_back"):
        yield f"and {told['more_back']} more are back"
