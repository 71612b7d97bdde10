from storage_audit.management.scan_command import ScanCommand, scanned_text
from storage_audit.scan.models import BucketScan


class Command(ScanCommand):
    purpose = BucketScan.Purpose.BACKFILL
    help = (
        "Lists the bucket and tracks each file that is not tracked yet, with the project that its"
        " key names. Reports missing, leftover and misnamed files, and those with an unclear owner."
        " Deletes nothing. Safe to repeat, and to run during uploads and cleanups."
    )
    epilog = """
    examples:
      python manage.py backfill_r2 --cost
      python manage.py backfill_r2 --dry-run
      python manage.py backfill_r2
      python manage.py backfill_r2 --workers 4
      python manage.py backfill_r2 --prefix projects/proj_1/ --json

    To continue a scan that did not finish, use --resume with its ID within a day of its start.
    After an hour without activity it starts over.

    exit codes:
      0    the scan is complete, whatever it found
      1    the scan is not complete: the store failed, the bucket is not connected, the bucket
           showed far fewer objects than expected, or the request limit was reached
      2    wrong usage, or the scan would need more requests than the limit
      130  interrupted with Ctrl-C; objects tracked so far stay tracked

    Next: manage.py findings lists what needs a decision, and so does the admin. For a project that
    was deleted before this app was installed, use cleanup_project --declare-deleted.
    """

    def summary(self, scan: BucketScan) -> str:
        would = "would be " if scan.dry_run else ""
        return (
            f"{scanned_text(scan)}: {scan.added} {would}tracked, {scan.updated} {would}updated,"
            f" {scan.unchanged} unchanged."
        )
