"""One worker's part in a scan, beside any number of others."""

import logging
from collections.abc import Generator
from math import inf
from time import monotonic, sleep
from uuid import UUID, uuid4

from django.utils.translation import gettext as _

from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import ListingOutOfOrder, entry_pages, pages_in_any_order
from storage_audit.cleanup.models.states import LeaseLost
from storage_audit.conf import conf
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude, Traits
from storage_audit.scan.compare import record
from storage_audit.scan.conclude import end
from storage_audit.scan.fetchers import Lanes
from storage_audit.scan.marker_sighting import Witness
from storage_audit.scan.models import BucketScan
from storage_audit.scan.models.scan import PassBroken
from storage_audit.scan.recent_rows import look_up
from storage_audit.scan.shards import find_cut, is_known, largest, middle, split

logger = logging.getLogger(__name__)

# Between looks for something to do, in seconds, when others have all of it: first, and at most.
SHORT, PAUSE = 0.05, 1.0

Steps = Generator[None, None, None]


def work_on_scan(scan: BucketScan, *, seconds: float = inf) -> Steps:
    """List, compare and write until the scan is over; gives way after each batch, when its figures
    are those of all workers. With `seconds` it ends after them, unless there is nothing more to
    list.

    The store's errors end in the scan as a message. Any other exception does too, and is raised
    again. Either way what was written stays, the scan can be resumed, and it says nothing of
    absence.
    """
    try:
        traits = bucket_marker.identify(scan.bucket)
        with Witness(scan.bucket) as witness:
            yield from take_part(scan, traits, witness, monotonic() + seconds)
    except (CannotConclude, StoreError) as error:
        scan.fail(str(error))
    except (KeyboardInterrupt, GeneratorExit):
        scan.stop(_("Interrupted. What was written stays; resume it to go on."))
        raise
    except Exception as error:
        scan.fail(f"{type(error).__name__}: {error}")
        raise


def take_part(scan: BucketScan, traits: Traits, witness: Witness, deadline: float) -> Steps:
    if scan.in_key_order and traits.lists_in_key_order is False:
        scan.start_in_any_order()
    look = look_up_rows if scan.is_partial else list_shards
    pause = SHORT
    while True:
        try:
            if not scan.shards.unfinished().exists():
                end(scan, traits.identity)
                return
            yield from look(scan, traits, witness, deadline)
        except LeaseLost as error:
            logger.warning("Scan %s: %s", scan.pk, error)
        except PassBroken as error:
            logger.warning("Scan %s starts again: %s", scan.pk, error)
            scan.start_again()
        except ListingOutOfOrder:
            if traits.lists_in_key_order or not scan.in_key_order:
                raise
            logger.warning("Scan %s starts again: the store has an order of its own.", scan.pk)
            scan.start_in_any_order()
        scan.refresh_from_db()
        if scan.status != BucketScan.Status.RUNNING:
            return
        if scan.shards.unfinished().exists():
            if monotonic() >= deadline:
                return
            sleep(pause)
            pause = min(2 * pause, PAUSE)
            yield


def list_shards(scan: BucketScan, traits: Traits, witness: Witness, deadline: float) -> Steps:
    """As long as there is something for this worker, and none has begun again in another order.
    Raises LeaseLost, PassBroken, CannotConclude and StoreError."""
    token, in_key_order = uuid4(), scan.in_key_order
    pages = entry_pages if in_key_order else pages_in_any_order
    try:
        with Lanes(scan.bucket, conf().scan_lanes, pages) as lanes:
            while is_running(scan) and monotonic() < deadline:
                if scan.in_key_order != in_key_order or not fill(scan, lanes, token):
                    break
                stretches = lanes.gather()
                if stretches:
                    record(scan, token, stretches, traits.identity, witness)
                    yield
                elif not scan.shards.renew(token):
                    raise LeaseLost(_("Another worker may have taken over all of its parts."))
    finally:
        scan.shards.filter(lease_token=token).release()


def look_up_rows(scan: BucketScan, traits: Traits, witness: Witness, deadline: float) -> Steps:
    """The same, of a scan that looks only for what was written lately."""
    while is_running(scan) and monotonic() < deadline:
        token = uuid4()
        try:
            taken = scan.shards.claim(token, 1)
            if not taken:
                return
            look_up(scan, taken[0], token, traits.identity, witness)
            yield
        finally:
            scan.shards.filter(lease_token=token).release()


def is_running(scan: BucketScan) -> bool:
    """Nobody stopped it, and it may cost what it still takes."""
    scan.refresh_from_db()
    is_up = scan.ceiling is not None and scan.requests >= scan.ceiling
    if is_up and scan.shards.unfinished().exists():
        text = _("It took %s requests, as many as it may. Resume it with a higher ceiling.")
        scan.stop(text % scan.requests)
    return scan.status == BucketScan.Status.RUNNING


def fill(scan: BucketScan, lanes: Lanes, token: UUID) -> bool:
    """Give idle lanes something to list, and what may still come of it; whether any lane lists."""
    for shard, at, requests in lanes.take_cuts():
        scan.count(requests=requests)
        if at is not None:
            split(shard, at)
    if lanes.idle and not lanes.is_cutting and monotonic() >= lanes.rest_until:
        start(scan, lanes, token)
        if lanes.idle and scan.in_key_order:
            share(scan, lanes, token)
    return bool(lanes.busy or lanes.is_cutting)


def start(scan: BucketScan, lanes: Lanes, token: UUID) -> None:
    for shard in scan.shards.claim(token, lanes.idle):
        lanes.start(shard)


def share(scan: BucketScan, lanes: Lanes, token: UUID) -> None:
    """Take parts of what others list: by the table, at once; or by the bucket, which costs pages,
    where the table does not know it."""
    if halve(scan, lanes):
        start(scan, lanes, token)
        return
    lanes.rest_until = monotonic() + PAUSE
    large = scan.shards.large().filter(pk__in=lanes.few_rows).exclude(pk__in=lanes.not_worth)
    if found := largest(shard for shard in large if not is_known(scan, shard)):
        lanes.cut(lanes.busy.get(found.pk, found), find_cut)


def halve(scan: BucketScan, lanes: Lanes) -> int:
    """Cut as many shards as there are idle lanes in two, those of which the least was listed so
    far; gives how many."""
    found = scan.shards.under_way().exclude(pk__in=lanes.few_rows).order_by("listed", "pk")
    count = 0
    for shard in found[: lanes.idle]:
        if (at := middle(scan, shard)) is None:
            lanes.few_rows.add(shard.pk)
        else:
            count += split(lanes.busy.get(shard.pk, shard), at)
    return count
