"""What a scan lists, what that costs, and whether it may start."""

from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import queue
from storage_audit.bucket import prices
from storage_audit.bucket.s3 import PAGE_SIZE
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.conf import conf
from storage_audit.display_formats import format_price
from storage_audit.models import DatabaseIdentity
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin
from storage_audit.scan.models import BucketScan, PendingFinding, ScanShard
from storage_audit.scan.scan_limits import expected_objects
from storage_audit.scan.shards import split_prefix

# A worker's turn is short, but the end of a scan is one statement over all that was seen. Seconds.
ENDING_TIMEOUT_SECONDS = 1800
# What the person is told who resumed a scan, by whether it starts again.
RESUMED_TEXTS = {
    False: gettext_lazy("Scan resumed. It continues where it stopped."),
    True: gettext_lazy(
        "Scan restarted from the beginning, because it was inactive for more than an hour. Files"
        " that it tracked stay tracked."
    ),
}
QUEUED_TEXT = gettext_lazy("Scan queued. It usually starts within a minute.")
NO_WORKERS_TEXT = gettext_lazy(
    "Scans need a worker, and the setting CLEANUP_SYNC turns workers off. Use manage.py"
    " reconcile_r2 instead."
)
STOPPED_TEXT = gettext_lazy("Stopped by %s. Resume the scan to continue.")
ONE_SCOPE_TEXT = gettext_lazy("Choose a prefix or a project, not both.")
NOT_A_PROJECT_TEXT = gettext_lazy("“%s” is not a project ID.")


class ScanTooExpensive(Exception):
    """The scan would take more requests than it may unasked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ScanCost:
    """An estimate from the table and the scan before; without both it is too low. For a partial
    scan it is an upper limit, as neighbours share a request."""

    objects: int
    requests: int
    seconds: float | None

    @property
    def dollars(self) -> float:
        return prices.cost_in_dollars([("ListObjectsV2", self.requests)])


def scan_cost(scan: BucketScan) -> ScanCost:
    before, objects = scan.previous_scan(), expected_objects(scan)
    if scan.is_partial:
        return ScanCost(objects, objects or 1, None)
    seconds = None
    if before and before.finished_at and before.listed:
        seconds = (before.finished_at - before.started_at).total_seconds() * objects / before.listed
    # Each part takes one, also where there is nothing.
    return ScanCost(objects, max(ceil(objects / PAGE_SIZE), scan.shards.count()), seconds)


def estimate_scan(**scope: Any) -> ScanCost:
    """What a scan of this scope would cost."""
    with transaction.atomic():
        found = scan_cost(create_scan(**scope))
        transaction.set_rollback(True)
    return found


@transaction.atomic
def start_scan(
    prefix: str = "", *, max_requests: int | None = None, accept_fewer: bool = False, **scope: Any
) -> BucketScan:
    """Start a scan that any number of workers can take part in; the scope as for `create_scan`.
    `max_requests` is by default that of the settings. Raises ScanTooExpensive, and ValueError for
    what is no project id."""
    scan = create_scan(prefix, **scope)
    scan.accept_fewer = accept_fewer
    scan.max_requests = conf().scan_max_requests if max_requests is None else max_requests
    scan.save()
    refuse_expensive_scan(scan)
    if scan.dry_run or scan.is_partial:
        # Nobody resumes or reads an older one.
        only_looks = Q(scan__dry_run=True) | Q(scan__since__isnull=False)
        old = PendingFinding.objects.filter(only_looks, scan__bucket=scan.bucket)
        old.exclude(scan__status=BucketScan.Status.RUNNING).delete()
    return scan


def create_scan(
    prefix: str = "",
    *,
    purpose: str = BucketScan.Purpose.BACKFILL,
    project_id: str | None = None,
    since: datetime | None = None,
    dry_run: bool = False,
) -> BucketScan:
    """Of the whole bucket, the keys with a prefix, those where files of a project can be, or those
    of rows that were written since."""
    scan = BucketScan.objects.create(
        bucket=conf().bucket,
        purpose=purpose,
        prefix=prefix,
        project_id=project_id,
        since=since,
        dry_run=dry_run,
        requested_by=current_origin().user,
    )
    prefixes = get_key_formats().prefixes_of(project_id) if project_id else [prefix]
    ScanShard.objects.bulk_create(shard for each in prefixes for shard in split_prefix(scan, each))
    return scan


def refuse_second_scan(scan: BucketScan) -> None:
    """Two scans of the whole bucket would list it twice for the same result. Called in the
    transaction that starts the scan, so others wait for it here. Raises IllegalTransition."""
    if scan.prefix or scan.project_id or scan.is_partial:
        return
    # Before the bucket is connected there is no row to lock, and no scan reaches its end.
    list(DatabaseIdentity.objects.select_for_update().values_list("pk"))
    if BucketScan.objects.of_whole_bucket(scan.bucket).running().exclude(pk=scan.pk).exists():
        raise IllegalTransition(
            _(
                "No scan was started: another scan of the whole bucket is running. Wait until it"
                " ends, or stop it."
            )
        )


def refuse_expensive_scan(scan: BucketScan) -> None:
    if scan.max_requests is not None and (wanted := scan_cost(scan)).requests > scan.max_requests:
        text = ngettext(
            "No scan was started: it needs about %(requests)s request (%(price)s), and the"
            " limit is %(limit)s. To scan anyway, raise the limit.",
            "No scan was started: it needs about %(requests)s requests (%(price)s), and the"
            " limit is %(limit)s. To scan anyway, raise the limit.",
            wanted.requests,
        )
        words = {"requests": f"{wanted.requests:,}", "limit": f"{scan.max_requests:,}"}
        raise ScanTooExpensive(text % {**words, "price": format_price(wanted.dollars)})


def other_bucket_reason(scan: BucketScan) -> str:
    """Why the scan cannot be resumed, if it is of another bucket than the settings name."""
    if scan.bucket == conf().bucket:
        return ""
    text = _(
        "Scan %(id)s belongs to bucket %(bucket)s, but the settings name bucket %(current)s."
        " Nothing was resumed."
    )
    current = printable_text(conf().bucket)
    return text % {"id": scan.pk, "bucket": printable_text(scan.bucket), "current": current}


def send_workers(scan: BucketScan, workers: int) -> None:
    """Have so many workers take part in the scan, or others when these are killed at it. With the
    setting SYNC there are none."""
    if not workers or conf().sync:
        return
    BucketScan.objects.filter(pk=scan.pk).update(enqueued_at=timezone.now())
    for _each in range(workers):
        queue.send_task(queue.TAKE_PART, str(scan.pk), timeout=ENDING_TIMEOUT_SECONDS)
