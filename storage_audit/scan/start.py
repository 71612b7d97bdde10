"""What a scan looks at, what that costs, and whether it may."""

from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import queue
from storage_audit.bucket import prices
from storage_audit.bucket.s3 import PAGE
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.conf import conf
from storage_audit.models import Installation
from storage_audit.origin import current_origin
from storage_audit.ownership.owner import layouts
from storage_audit.scan.models import BucketScan, ScanShard, Sighting
from storage_audit.scan.scan_limits import expected_objects
from storage_audit.scan.shards import cut

# A slice of a scan is short, but its ending is one statement over all that was seen, in seconds.
ENDING_TAKES = 1800
# What the person is told who resumed a scan, by whether it starts again.
RESUMED = {
    False: gettext_lazy("The scan goes on where it was: a worker takes it up next."),
    True: gettext_lazy(
        "The scan starts again from the beginning, because nobody worked on it for more than an"
        " hour. The rows that it wrote stay. A worker takes it up next."
    ),
}


class ScanTooExpensive(Exception):
    """The scan would take more requests than it may unasked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a scan takes, as far as the table and the scan before it know: without rows and without
    a scan before it nobody does. Of a partial look at most that: neighbours share a request."""

    objects: int
    requests: int
    seconds: float | None

    @property
    def dollars(self) -> float:
        return prices.dollars([("ListObjectsV2", self.requests)])


def cost_of(scan: BucketScan) -> Cost:
    before, objects = scan.before(), expected_objects(scan)
    if scan.is_partial:
        return Cost(objects, objects or 1, None)
    seconds = None
    if before and before.finished_at and before.listed:
        seconds = (before.finished_at - before.started_at).total_seconds() * objects / before.listed
    # Each part takes one, also where there is nothing.
    return Cost(objects, max(ceil(objects / PAGE), scan.shards.count()), seconds)


def estimate(**scope: Any) -> Cost:
    """What a scan of this scope would cost."""
    with transaction.atomic():
        found = cost_of(create(**scope))
        transaction.set_rollback(True)
    return found


@transaction.atomic
def start_scan(
    prefix: str = "", *, ceiling: int | None = None, accept_fewer: bool = False, **scope: Any
) -> BucketScan:
    """A scan that any number of workers can take part in from now on; the scope as for `create`.
    Without a ceiling that of the settings holds. Raises ScanTooExpensive, and ValueError for what
    is no project id."""
    scan = create(prefix, **scope)
    scan.accept_fewer = accept_fewer
    scan.ceiling = conf().scan_ceiling if ceiling is None else ceiling
    scan.save()
    refuse_costly(scan)
    if scan.dry_run or scan.is_partial:
        # Nobody resumes or reads an older one.
        only_looks = Q(scan__dry_run=True) | Q(scan__since__isnull=False)
        old = Sighting.objects.filter(only_looks, scan__bucket=scan.bucket)
        old.exclude(scan__status=BucketScan.Status.RUNNING).delete()
    return scan


def create(
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
    prefixes = layouts().prefixes(project_id) if project_id else [prefix]
    ScanShard.objects.bulk_create(shard for each in prefixes for shard in cut(scan, each))
    return scan


def refuse_beside_another(scan: BucketScan) -> None:
    """Two of the whole bucket would list it twice, and say the same. Called in the transaction that
    has it run, whose end others wait for here. Raises IllegalTransition."""
    if scan.prefix or scan.project_id or scan.is_partial:
        return
    # Without a claim there is no row to wait at, and no scan that reaches its end.
    list(Installation.objects.select_for_update().values_list("pk"))
    if BucketScan.objects.whole(scan.bucket).running().exclude(pk=scan.pk).exists():
        raise IllegalTransition(
            _(
                "Nothing was begun: another scan of the whole bucket is running. Wait for its end,"
                " or stop it first."
            )
        )


def refuse_costly(scan: BucketScan) -> None:
    if scan.ceiling is not None and (wanted := cost_of(scan)).requests > scan.ceiling:
        raise ScanTooExpensive(
            _(
                "%(objects)s objects take %(requests)s requests, about $%(dollars).2f; a scan may"
                " take %(ceiling)s. If it is worth it, ask for it with a higher ceiling."
            )
            % {
                "objects": f"{wanted.objects:,}",
                "requests": f"{wanted.requests:,}",
                "dollars": wanted.dollars,
                "ceiling": f"{scan.ceiling:,}",
            }
        )


def share(scan: BucketScan, workers: int) -> None:
    """Have so many workers take part in the scan, or others when these are killed at it. With the
    setting SYNC there are none."""
    if not workers or conf().sync:
        return
    BucketScan.objects.filter(pk=scan.pk).update(enqueued_at=timezone.now())
    for _each in range(workers):
        queue.send_task(queue.TAKE_PART, str(scan.pk), timeout=ENDING_TAKES)
