"""One worker's part in a scan, beside any number of others."""

import logging
from collections.abc import Generator
from math import inf
from time import monotonic, sleep
from uuid import UUID, uuid4

from django.utils.translation import gettext as _

from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import ListingOutOfOrder, entry_pages, unordered_pages
from storage_audit.cleanup.models.lease_and_status import LeaseLost
from storage_audit.conf import conf
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude, StoreTraits
from storage_audit.scan.compare import record_batch
from storage_audit.scan.conclude_scan import conclude_scan
from storage_audit.scan.fetchers import FetcherPool
from storage_audit.scan.marker_check import MarkerWatcher
from storage_audit.scan.models import BucketScan
from storage_audit.scan.models.scan import PassBroken
from storage_audit.scan.recent_rows import check_next_rows
from storage_audit.scan.shards import (
    find_cut,
    is_mostly_tracked,
    largest_shard,
    middle_key,
    split_shard,
)

logger = logging.getLogger(__name__)

# Seconds between checks for something to do when others have all of it: first, and at most.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 1.0

Steps = Generator[None, None, None]


def work_on_scan(scan: BucketScan, *, seconds: float = inf) -> Steps:
    """List, compare and write until the scan is over; yields after each batch, when its figures are
    those of all workers. With `seconds` it ends after them, unless there is nothing more to list.

    The store's errors end in the scan as a message. Any other exception does too, and is raised
    again. Either way what was written stays, the scan can be resumed, and nothing counts as gone.
    """
    try:
        traits = bucket_marker.identify_bucket(scan.bucket)
        with MarkerWatcher(scan.bucket) as witness:
            yield from run_scan(scan, traits, witness, monotonic() + seconds)
    except (CannotConclude, StoreError) as error:
        scan.fail(str(error))
    except (KeyboardInterrupt, GeneratorExit):
        scan.stop(_("Interrupted. Files tracked so far stay tracked. Resume the scan to continue."))
        raise
    except Exception as error:
        scan.fail(f"{type(error).__name__}: {error}")
        raise


def run_scan(
    scan: BucketScan, traits: StoreTraits, watcher: MarkerWatcher, deadline: float
) -> Steps:
    if scan.in_key_order and traits.lists_in_key_order is False:
        scan.start_in_any_order()
    look = check_recent_rows if scan.is_partial else list_shards
    pause = FIRST_WAIT_SECONDS
    while True:
        try:
            if not scan.shards.unfinished().exists():
                conclude_scan(scan, traits.identity)
                return
            yield from look(scan, traits, watcher, deadline)
        except LeaseLost as error:
            logger.warning("Scan %s: %s", scan.pk, error)
        except PassBroken as error:
            logger.warning("Scan %s starts again: %s", scan.pk, error)
            scan.start_again()
        except ListingOutOfOrder:
            if traits.lists_in_key_order or not scan.in_key_order:
                raise
            logger.warning("Scan %s starts again: the store does not list keys in order.", scan.pk)
            scan.start_in_any_order()
        scan.refresh_from_db()
        if scan.status != BucketScan.Status.RUNNING:
            return
        if scan.shards.unfinished().exists():
            if monotonic() >= deadline:
                return
            sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT_SECONDS)
            yield


def list_shards(
    scan: BucketScan, traits: StoreTraits, watcher: MarkerWatcher, deadline: float
) -> Steps:
    """List shards while there are any for this worker, and the scan was not restarted in another
    order. Raises LeaseLost, PassBroken, CannotConclude and StoreError."""
    token, in_key_order = uuid4(), scan.in_key_order
    pages = entry_pages if in_key_order else unordered_pages
    try:
        with FetcherPool(scan.bucket, conf().scan_concurrency, pages) as lanes:
            while is_running(scan) and monotonic() < deadline:
                if scan.in_key_order != in_key_order or not fill_lanes(scan, lanes, token):
                    break
                stretches = lanes.gather()
                if stretches:
                    record_batch(scan, token, stretches, traits.identity, watcher)
                    yield
                elif not scan.shards.renew(token):
                    raise LeaseLost(_("Another worker may have taken over all of its parts."))
    finally:
        scan.shards.filter(lease_token=token).release_leases()


def check_recent_rows(
    scan: BucketScan, traits: StoreTraits, watcher: MarkerWatcher, deadline: float
) -> Steps:
    """The same for a scan that only checks what was written lately."""
    while is_running(scan) and monotonic() < deadline:
        token = uuid4()
        try:
            taken = scan.shards.acquire_leases(token, 1)
            if not taken:
                return
            check_next_rows(scan, taken[0], token, traits.identity, watcher)
            yield
        finally:
            scan.shards.filter(lease_token=token).release_leases()


def is_running(scan: BucketScan) -> bool:
    """Whether the scan may go on: nobody stopped it, and it has requests left."""
    scan.refresh_from_db()
    is_up = scan.max_requests is not None and scan.requests >= scan.max_requests
    if is_up and scan.shards.unfinished().exists():
        text = _("Stopped at the request limit, after %s requests. Resume with a higher limit.")
        scan.stop(text % scan.requests)
    return scan.status == BucketScan.Status.RUNNING


def fill_lanes(scan: BucketScan, lanes: FetcherPool, token: UUID) -> bool:
    """Give idle lanes something to list, and what may still come of it; whether any lane lists."""
    for shard, at, requests in lanes.take_cuts():
        scan.add_counts(requests=requests)
        if at is not None:
            split_shard(shard, at)
    if lanes.idle_count and not lanes.is_cutting and monotonic() >= lanes.pause_until:
        start_lanes(scan, lanes, token)
        if lanes.idle_count and scan.in_key_order:
            share_shards(scan, lanes, token)
    return bool(lanes.busy_shards or lanes.is_cutting)


def start_lanes(scan: BucketScan, lanes: FetcherPool, token: UUID) -> None:
    for shard in scan.shards.acquire_leases(token, lanes.idle_count):
        lanes.start(shard)


def share_shards(scan: BucketScan, lanes: FetcherPool, token: UUID) -> None:
    """Take parts of what others list: by the table, at once; or by the bucket, which costs pages,
    where the table does not know it."""
    if halve_shards(scan, lanes):
        start_lanes(scan, lanes, token)
        return
    lanes.pause_until = monotonic() + LONGEST_WAIT_SECONDS
    large = scan.shards.large().filter(pk__in=lanes.few_rows).exclude(pk__in=lanes.uncuttable)
    if found := largest_shard(shard for shard in large if not is_mostly_tracked(scan, shard)):
        lanes.cut(lanes.busy_shards.get(found.pk, found), find_cut)


def halve_shards(scan: BucketScan, lanes: FetcherPool) -> int:
    """Cut as many shards as there are idle lanes in two, those of which the least was listed so
    far; gives how many."""
    found = scan.shards.under_way().exclude(pk__in=lanes.few_rows).order_by("listed", "pk")
    count = 0
    for shard in found[: lanes.idle_count]:
        if (at := middle_key(scan, shard)) is None:
            lanes.few_rows.add(shard.pk)
        else:
            count += split_shard(lanes.busy_shards.get(shard.pk, shard), at)
    return count
