from storage_audit.management.scan_command import ScanCommand, size_text
from storage_audit.scan.models import BucketScan


class Command(ScanCommand):
    purpose = BucketScan.Purpose.BACKFILL
    help = (
        "Lists the bucket and writes a tracking row for each object that has none, with the project"
        " that its key names. Reports rows without an object, keys that no key format knows, that"
        " could be several projects', that are misnamed, or whose project is gone. Deletes no"
        " object. Safe to repeat, and beside uploads and cleanups."
    )
    epilog = """
    examples:
      python manage.py backfill_r2 --cost
      python manage.py backfill_r2 --dry-run
      python manage.py backfill_r2
      python manage.py backfill_r2 --workers 4
      python manage.py backfill_r2 --prefix projects/proj_1/ --json

    A scan that did not reach its end goes on where it was with --resume and its id. After an
    hour it starts again from the beginning, and after a day you begin a new one.

    exit codes:
      0    the listing reached its end, whatever it found
      1    it did not: the store failed, or the bucket is not connected; or it showed far fewer
           objects than there should be; or it took as many requests as it may
      2    wrong use, or it would take more requests than it may
      130  interrupted with Ctrl-C; what was written stays

    Next: manage.py findings lists what nobody could attribute, and so does the admin. Objects of a
    project that was deleted before this was installed go with cleanup_project --declare-deleted.
    """

    def summary(self, scan: BucketScan) -> str:
        would = "would be " if scan.dry_run else ""
        return (
            f"{scan.listed} objects ({size_text(scan)}) in bucket {scan.bucket}: {scan.added}"
            f" {would}added, {scan.updated} {would}updated, {scan.unchanged} unchanged."
        )
