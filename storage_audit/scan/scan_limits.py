"""Is what a scan listed too little to be believed?"""

from django.utils.translation import gettext as _

from storage_audit.cleanup.changing_objects import exclude_in_hand
from storage_audit.cleanup.limits import is_plausible_share
from storage_audit.cleanup.models import CleanupItem
from storage_audit.clocks import time_after
from storage_audit.fields import starts_with_any
from storage_audit.models import R2Object
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.scan.models import BucketScan


def refuse_shrunken_listing(scan: BucketScan) -> None:
    """Raises CannotConclude when the scan found far less than there must be."""
    expected = expected_objects(scan)
    if is_plausible_share(expected - scan.listed, expected):
        return
    raise CannotConclude(
        _(
            "The bucket shows %(listed)s files, but about %(expected)s were expected. So many"
            " missing files point to a fault, so there are no findings. If the files are really"
            " gone, run: manage.py %(purpose)s_r2 --resume %(id)s --accept-fewer"
        )
        % {
            "listed": scan.listed,
            "expected": expected,
            "purpose": scan.purpose,
            "id": scan.pk,
        }
    )


def expected_objects(scan: BucketScan) -> int:
    """What the latest complete scan found and what changed since; without one, what is tracked. For
    a partial scan, the rows that it checks."""
    rows = exclude_in_hand(R2Object.objects.in_bucket(scan.bucket))
    rows = rows.filter(starts_with_any("key", scan.prefixes))
    if scan.is_partial:
        rows = rows.filter(updated_at__gte=scan.since)
    before = scan.previous_scan()
    if before is None or scan.is_partial:
        # Not what a backfill writes meanwhile.
        return rows.filter(created_at__lt=scan.started_at).exclude(etag="").count()
    since = {"created_at__gte": before.started_at, "created_at__lt": scan.started_at}
    uploaded = rows.filter(source=R2Object.Source.UPLOAD, **since).exclude(etag="").count()
    # What came and went in between was in no listing.
    deleted = CleanupItem.objects.filter(
        starts_with_any("key", scan.prefixes),
        time_after("cleanup__finished_at", before.started_at),
        cleanup__bucket=scan.bucket,
        outcome=CleanupItem.Outcome.DELETED,
        last_modified__lt=before.started_at,
    )
    return before.listed + uploaded - deleted.count()
