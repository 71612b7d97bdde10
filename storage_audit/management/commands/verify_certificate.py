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
from storage_audit.management.console import FAILED, SHOWN, WRONG_USE, asked_from_shell
from storage_audit.management.documented import DocumentedCommand
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact, visible


class Command(DocumentedCommand):
    help = (
        "Says whether a deletion certificate, in JSON or CSV, is as this application issued it, and"
        " whether the database says the same. Changes nothing."
    )
    epilog = f"""
    examples:
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.csv --bucket
      python manage.py verify_certificate 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983.json --json

    Of what differs, and of what is back in the bucket, the first {SHOWN} are named. What came back
    may be a new upload: it is said which objects are newer than the moment they were seen gone.

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
            help="as it was downloaded: a spreadsheet that saves it makes another file of it",
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
        certificate = opened(file)
        try:
            certificate.read()
            told = verdict(certificate, bucket)
        except MalformedCertificate as error:
            if as_json:
                self.stdout.write(json.dumps(unread(certificate, error)))
            whose = certificate.head.get("deletion_id", "an unknown deletion")
            text = f"Altered or cut off: the certificate of {whose} in {file}. {error}"
            raise CommandError(visible(text), returncode=FAILED) from error
        if as_json:
            self.stdout.write(json.dumps(told))
        else:
            for line in lines(told):
                self.stdout.write(visible(line))
        if not told["fine"]:
            text = f"Not to be relied on as it is: the certificate of {told['deletion_id']}."
            raise CommandError(text, returncode=FAILED)


def opened(file: Path) -> Certificate:
    try:
        return Certificate(file)
    except (OSError, NotACertificate) as error:
        raise CommandError(visible(f"{file}: {error}"), returncode=WRONG_USE) from error


def unread(certificate: Certificate, error: MalformedCertificate) -> dict[str, Any]:
    """The verdict of a file that could not be read to its end."""
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


def verdict(certificate: Certificate, bucket: bool) -> dict[str, Any]:
    flaws = list(check_file.flaws(certificate))
    comparison = check_file.compare(certificate)
    differences, more = first(comparison.differences)
    told: dict[str, Any] = {
        "deletion_id": certificate.head["deletion_id"],
        "status": certificate.head["status"],
        "statement": certificate.head["statement"],
        "items": certificate.head["books"]["found"]["objects"],
        "flaws": flaws,
        "not_compared": comparison.left_out,
        "differences": differences,
        "more_differences": more,
    }
    told |= looked(certificate, believed=not flaws) if bucket else {}
    told["fine"] = not (flaws or differences or told.get("unknown") or told.get("back"))
    return told


def looked(certificate: Certificate, believed: bool) -> dict[str, Any]:
    """What the bucket shows now; of a file that was altered the bucket is not asked."""
    if not believed:
        return {"unknown": "An altered certificate does not say what to look for."}
    if check_file.is_foreign(certificate):
        return {"unknown": "another installation issued it, whose bucket this one cannot ask."}
    with asked_from_shell():
        try:
            found, more = first(check_file.back(certificate))
        except (CannotConclude, StoreError) as error:
            return {"unknown": redact(str(error))}
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


def first(found: Iterable[Any]) -> tuple[list[Any], int]:
    """The first ones, and how many there are beside."""
    rest = iter(found)
    return list(islice(rest, SHOWN)), sum(1 for _each in rest)


def lines(told: dict[str, Any]) -> Iterator[str]:
    yield f"Deletion {told['deletion_id']}: {told['status']}, {told['items']} objects."
    if not told["flaws"]:
        yield f"It is as it was issued. It says: {told['statement']}"
    for flaw in told["flaws"]:
        yield f"Altered: {flaw}"
    yield from told_by_database(told)
    yield from told_by_bucket(told)


def told_by_database(told: dict[str, Any]) -> Iterator[str]:
    if told["not_compared"]:
        yield told["not_compared"]
    elif not told["differences"]:
        yield "The database says the same."
    for difference in told["differences"]:
        yield f"Differs: {difference}"
    if told["more_differences"]:
        yield f"and {told['more_differences']} more differences"


def told_by_bucket(told: dict[str, Any]) -> Iterator[str]:
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
