from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime

from django.utils import timezone
from django.utils.dateparse import parse_datetime, parse_duration

from storage_audit.management.scan_command import ScanCommand, size_text
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
            f"“{printable_text(text)}” is no time. Write 2026-11-26T12:00:00Z, or how long ago it"
            " was: '2 00:00:00' for two days"
        )
    if moment > now:
        raise ArgumentTypeError(f"“{printable_text(text)}” is still to come")
    return moment


class Command(ScanCommand):
    purpose = BucketScan.Purpose.RECONCILE
    help = (
        "Compares the bucket with the tracking table, both to their end, and writes no row: what is"
        " untracked, changed, missing, orphaned, misnamed or unclear becomes a finding, on which"
        " you decide. Deletes no object. Safe to repeat, and beside uploads and cleanups."
    )
    epilog = """
    examples:
      python manage.py reconcile_r2 --cost
      python manage.py reconcile_r2
      python manage.py reconcile_r2 --project proj_1 --json
      python manage.py reconcile_r2 --since '1 00:00:00'

    A scan that did not reach its end goes on where it was with --resume and its id. After an
    hour it starts again from the beginning, and after a day you begin a new one.

    exit codes:
      0    both reached their end, whatever was found
      1    they did not: the store failed, or the bucket is not connected; or it showed far fewer
           objects than there should be; or it took as many requests as it may
      2    wrong use, or it would take more requests than it may
      130  interrupted with Ctrl-C; nothing is concluded

    Next: manage.py findings lists what was found, and carries out what you decide.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--since",
            type=parse_since,
            metavar="TIME",
            help="look up only the objects of rows that were written since then: cheap, and"
            " partial, so it is shown and nothing follows from it; without it, all is listed",
        )

    def summary(self, scan: BucketScan) -> str:
        return (
            f"{scan.listed} objects ({size_text(scan)}) in bucket {scan.bucket}: {scan.unchanged}"
            " as the table says."
        )
