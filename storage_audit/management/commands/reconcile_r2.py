from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime

from django.utils import timezone
from django.utils.dateparse import parse_datetime, parse_duration

from storage_audit.management.scan_command import ScanCommand, scanned_text
from storage_audit.redaction import printable_text
from storage_audit.scan.models import BucketScan


def parse_since(text: str) -> datetime:
    """A moment, or how long ago it was."""
    moment, now = None, timezone.now()
    try:
        if given := parse_datetime(text):
            moment = given if timezone.is_aware(given) else timezone.make_aware(given)
            # As it is stored: not every time elsewhere is one there.
            moment = moment.astimezone(UTC)
        elif ago := parse_duration(text):
            moment = now - ago
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise ArgumentTypeError(
            f"“{printable_text(text)}” is not a time. Write 2026-11-26T12:00:00Z, or how long ago:"
            " '2 00:00:00' for two days"
        )
    if moment > now:
        raise ArgumentTypeError(f"“{printable_text(text)}” is in the future")
    return moment


class Command(ScanCommand):
    purpose = BucketScan.Purpose.RECONCILE
    help = (
        "Compares the bucket with the tracked objects and reports each difference as a finding for"
        " you to decide on: untracked, changed, missing, leftover or misnamed files, and those with"
        " an unclear owner. Tracks and deletes nothing. Safe to repeat, and to run during uploads"
        " and cleanups."
    )
    epilog = """
    examples:
      python manage.py reconcile_r2 --cost
      python manage.py reconcile_r2
      python manage.py reconcile_r2 --project proj_1 --json
      python manage.py reconcile_r2 --since '1 00:00:00'

    To continue a scan that did not finish, use --resume with its ID within a day of its start.
    After an hour without activity it starts over.

    exit codes:
      0    the scan is complete, whatever it found
      1    the scan is not complete: the store failed, the bucket is not connected, the bucket
           showed far fewer objects than expected, or the request limit was reached
      2    wrong usage, or the scan would need more requests than the limit
      130  interrupted with Ctrl-C; no findings were saved

    Next: manage.py findings lists what was found, and acts on it.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--since",
            type=parse_since,
            metavar="TIME",
            help="check only objects tracked since then: cheap, but partial, so it saves no"
            " findings"
            " (default: list everything)",
        )

    def summary(self, scan: BucketScan) -> str:
        return f"{scanned_text(scan)}: {scan.unchanged} as tracked."
