"""Nothing follows from a page unless the bucket's own marker was seen after it: pages of a copy of
the bucket leave no row, no finding and no position, wherever a worker stops."""

import re
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from threading import Event
from time import monotonic
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff
from django.utils import timezone

from devtools.http_reply import Reply
from storage_audit.bucket.errors import Unavailable
from storage_audit.bucket.s3 import ListedObject
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.scan import compare, fetchers, pending_findings, worker
from storage_audit.scan.fetchers import FetcherPool
from storage_audit.scan.marker_check import MarkerWatcher
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from storage_audit.tracking import rows
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import (
    is_listing,
    is_listing_at,
    is_listing_under,
    is_uploads_listing,
    rule_for,
)
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    read_findings,
    resume_scan,
    track_listed,
)

about_the_store = pytest.mark.only_on("postgresql")
KEYS = [nth_key(n) for n in range(10)]
GONE = KEYS[0].replace(".mp4", "-gone.mp4")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has four keys, and each is written before the next."""
    listing_in_memory.remove_pauses(monkeypatch)
    listing_in_memory.set_page_size(monkeypatch, 4)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 1)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)


@pytest.fixture
def filled(bucket: Bucket, store: FaultyStore) -> Bucket:
    """Its marker and its keys are three pages."""
    add_projects("proj_1")
    bucket.put(*KEYS)
    return bucket


def of_a_copy(request: Request, forward: Forward) -> Reply:
    """A bucket of the same name with other objects, and a marker that was copied."""
    reply = forward()
    text = reply.text.replace(".mp4</Key>", ".mp4-copy</Key>")
    text = re.sub("<LastModified>[^<]*", "<LastModified>2026-01-01T00:00:00.000Z", text)
    return Reply(reply.status, text.encode(), reply.headers)


def from_page(number: int) -> Callable[[Request], bool]:
    """From this page of the bucket on, all listings."""
    pages = 0

    def matches(request: Request) -> bool:
        nonlocal pages
        pages += is_listing_under("")(request)
        return is_listing(request) and pages >= number

    return matches


def stop_after(found: BucketScan, batches: int) -> None:
    """Unless it ends earlier by itself."""
    steps = work_on_scan(found)
    for _each, _batch in zip(range(batches), steps, strict=False):
        pass
    steps.close()


def written(found: BucketScan) -> tuple[Any, ...]:
    return (
        sorted(R2Object.objects.values_list("key", "updated_at")),
        sorted(PendingFinding.objects.values_list("kind", "key")),
        [*found.shards.values_list("cursor", "listed", "complete")],
        BucketScan.objects.values("listed", "added", "missing", "untracked").get(pk=found.pk),
    )


@about_the_store
@pytest.mark.parametrize("purpose", ["backfill", "reconcile"])
@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_worker_that_stops_behind_pages_of_a_copy_has_written_nothing_of_them(
    filled: Bucket, store: FaultyStore, purpose: str, page: int
) -> None:
    if purpose == "reconcile":
        R2Object.objects.bulk_create(listing_in_memory.build_row(key) for key in KEYS)
        sure = findings_of_the_bucket(filled)
    found = start_scan(purpose=purpose)
    store.rules.append(rule_for(from_page(page), of_a_copy))
    stop_after(found, batches=page)
    assert found.status in ("failed", "stopped")
    store.rules.clear()
    assert found.listed <= max(0, 4 * (page - 1) - 1)
    assert resume_scan(found).status == "complete", found.message
    assert (found.listed, found.missing) == (len(KEYS), 0)
    assert set(R2Object.objects.values_list("key", flat=True)) == set(KEYS)
    assert read_findings() == (sure if purpose == "reconcile" else set())


@about_the_store
def test_a_first_page_from_before_an_upload_does_not_call_the_file_missing(
    filled: Bucket, store: FaultyStore
) -> None:
    """No place is before all keys, so nothing betrays this page."""
    complete_reconcile()
    new = KEYS[0].replace(".mp4", "-new.mp4")
    filled.put(new)
    track_listed(new, GONE)
    store.rules.append(rule_for(is_listing_at(""), FAULT_KINDS["page-of-the-past"].answer, times=1))
    assert complete_reconcile().missing == 1
    assert read_findings() >= {("missing", GONE)} and ("missing", new) not in read_findings()


def findings_of_the_bucket(bucket: Bucket) -> set[tuple[str, str]]:
    """By a scan that nothing disturbs."""
    complete_reconcile()
    found = read_findings()
    Finding.objects.all().delete()
    BucketScan.objects.all().delete()
    return found


@about_the_store
def test_new_objects_that_a_copy_does_not_show_are_written_once_the_bucket_answers(
    filled: Bucket, store: FaultyStore
) -> None:
    """The copy answers the second look at them."""

    def is_second_look(request: Request) -> bool:
        return is_listing_under("")(request) and bool(request.query.get("start-after"))

    def has_begun(request: Request) -> bool:
        return is_listing(request) and bool(store.find_requests(is_second_look))

    store.rules.append(rule_for(has_begun, of_a_copy))
    found = listing_in_memory.run_backfill()
    store.rules.clear()
    assert (found.status, R2Object.objects.count()) == ("failed", 0)
    assert not found.shards.exclude(cursor="").exists()
    assert resume_scan(found).status == "complete"
    assert (found.added, R2Object.objects.count()) == (len(KEYS), len(KEYS))


UPLOADS = """<ListMultipartUploadsResult><Bucket>tests</Bucket><IsTruncated>false</IsTruncated>
<Upload><Key>proj_1_s1_media.mp4</Key><UploadId>u</UploadId>
<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"""


@about_the_store
def test_unfinished_uploads_of_a_copy_are_no_findings(filled: Bucket, store: FaultyStore) -> None:
    def has_begun(request: Request) -> bool:
        return is_listing(request) and bool(store.find_requests(is_uploads_listing))

    store.rules.append(rule_for(is_uploads_listing, Reply(200, UPLOADS.encode())))
    store.rules.append(rule_for(has_begun, of_a_copy))
    found = listing_in_memory.run_backfill()
    store.rules.clear()
    assert (found.status, PendingFinding.objects.count()) == ("failed", 0)
    assert resume_scan(found).status == "complete"
    assert read_findings() == set()


@about_the_store
def test_a_partial_scan_of_a_copy_proves_nothing(filled: Bucket, store: FaultyStore) -> None:
    track_listed(*KEYS, updated_at=timezone.now())
    found = listing_in_memory.start_reconcile(since=timezone.now() - timedelta(hours=1))
    store.rules.append(rule_for(from_page(1), of_a_copy))
    listing_in_memory.run_scan(found)
    store.rules.clear()
    assert (found.status, PendingFinding.objects.count(), found.missing) == ("failed", 0, 0)
    assert not found.shards.exclude(cursor="").exists()
    assert resume_scan(found).status == "complete"
    assert (found.listed, found.missing) == (len(KEYS), 0)


# Where a worker can die


class Killed(BaseException):
    """Nobody catches it, so nothing is tidied up."""


@pytest.fixture
def listing(db: None, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """One object has no row, and one row no object."""
    found = Listing(*KEYS)
    found.use(monkeypatch)
    add_projects("proj_1")
    track_listed(*KEYS)
    found.remove(KEYS[8])
    found.add(nth_key(20))
    return found


EXPECTED = {("missing", KEYS[8]), ("untracked", nth_key(20))}
STEPS = {
    "before the marker is asked for": (MarkerWatcher, "start"),
    "before its answer": (MarkerWatcher, "wait"),
    "before the parts are locked": (compare, "lock_shards"),
    "while it writes": (pending_findings, "save_findings"),
    "before it notes the marker": (BucketScan, "add_trusted_counts"),
}


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_who_dies_before_its_pages_are_vouched_for_leaves_nothing_of_them(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str], turn: int
) -> None:
    found, turns = listing_in_memory.start_reconcile(), 0
    before: list[tuple[Any, ...]] = []
    real = getattr(*step)

    def die(*args: Any, **values: Any) -> Any:
        nonlocal turns
        turns += 1
        if turns == turn:
            raise Killed
        return real(*args, **values)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*step, die)
        patch.setattr(BucketScan, "stop", lambda self, reason: None)
        for _batch in work_on_scan(found):
            before.append(written(found))
    if before:
        assert written(found) == before[-1]
    else:
        assert not found.shards.exclude(cursor="").exists()
        assert not PendingFinding.objects.exists()
    found.shards.release_leases()
    assert resume_scan(found).status == "complete"
    assert read_findings() == EXPECTED
    assert found.listed == len(KEYS)


@pytest.mark.parametrize("kind", ["plain", "unrecognised", "changed"])
def test_a_backfill_writes_no_row_before_the_marker_was_seen(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """New rows, at once or after a closer look, and rows that are not as the bucket shows."""
    if kind != "plain":
        listing.remove(nth_key(20))
    if kind == "unrecognised":
        listing.add("README.txt")
    if kind == "changed":
        R2Object.objects.filter(key=KEYS[1]).update(size=1)
    steps: list[str] = []
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 15)
    for place, name in ((MarkerWatcher, "wait"), (rows, "insert_lines"), (rows, "update_rows")):
        monkeypatch.setattr(place, name, logged(steps, getattr(place, name)))
    assert listing_in_memory.run_backfill().status == "complete"
    writes = [number for number, name in enumerate(steps) if name != "wait"]
    assert writes and steps[0] == "wait"


def test_the_marker_is_asked_for_when_the_pages_have_arrived(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for place, name in (
        (FetcherPool, "gather"),
        (MarkerWatcher, "start"),
        (compare, "write_batch"),
    ):
        monkeypatch.setattr(place, name, logged(steps, getattr(place, name)))
    complete_reconcile()
    each = [step for step in steps if step != "gather"]
    assert each == ["start", "write_batch"] * (len(each) // 2)
    assert all(before == "gather" for before, name in pairwise(steps) if name == "start")
    assert steps.count("write_batch") > 2


def logged(steps: list[str], act: Callable[..., Any]) -> Callable[..., Any]:
    """Notes when it is over."""

    def noted(*args: Any, **values: Any) -> Any:
        result = act(*args, **values)
        steps.append(act.__name__)
        return result

    return noted


# Which positions are trusted


def half_listed(listing: Listing) -> BucketScan:
    """Its first page was written, and showed an object that is gone since."""
    listing.add(GONE)
    found = listing_in_memory.start_reconcile()
    stop_after(found, batches=1)
    assert (found.status, found.listed, found.untracked) == ("stopped", 4, 1)
    listing.remove(GONE)
    listing.asked_pages.clear()
    return found


def set_marker_back(found: BucketScan, by: timedelta) -> None:
    found.marker_seen_at = timezone.now() - by
    found.save(update_fields=["marker_seen_at"])


def first_page_again(listing: Listing) -> int:
    return listing.asked_pages.count(("", ""))


def test_a_scan_resumed_within_an_hour_goes_on_where_it_was(listing: Listing) -> None:
    found = half_listed(listing)
    set_marker_back(found, timedelta(minutes=59))
    assert not found.resume()
    assert listing_in_memory.run_scan(found).status == "complete"
    assert first_page_again(listing) == 0
    assert read_findings() == EXPECTED | {("untracked", GONE)}


@pytest.mark.parametrize("by", [timedelta(minutes=61), timedelta(hours=-2)])
def test_a_scan_resumed_later_starts_again_and_forgets_what_it_saw(
    listing: Listing, by: timedelta
) -> None:
    found = half_listed(listing)
    set_marker_back(found, by)
    assert found.resume()
    assert (found.listed, found.untracked, found.marker_seen_at) == (0, 0, None)
    assert listing_in_memory.run_scan(found).status == "complete"
    assert first_page_again(listing) == 1
    assert read_findings() == EXPECTED
    assert (found.listed, found.untracked, found.missing) == (len(KEYS), 1, 1)


def test_a_worker_that_finds_a_scan_after_hours_starts_it_again(listing: Listing) -> None:
    """Nobody resumed it: its workers were gone, and a sweep sends another."""
    found = half_listed(listing)
    found.resume()
    set_marker_back(found, timedelta(hours=3))
    assert listing_in_memory.run_scan(found).status == "complete"
    assert read_findings() == EXPECTED
    assert found.listed == len(KEYS)


def test_a_scan_whose_marker_is_another_one_starts_again(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = half_listed(listing)
    other = listing_in_memory.MARKER._replace(etag="other")
    monkeypatch.setattr(bucket_marker, "find_marker", lambda bucket: other)
    monkeypatch.setattr(
        bucket_marker, "require_marker", lambda bucket: bucket_marker.name_marker(other)
    )
    assert resume_scan(found).status == "complete"
    assert read_findings() == EXPECTED
    assert found.marker == bucket_marker.name_marker(other)


@pytest.mark.parametrize("change", ["marker", "time"])
def test_a_scan_of_which_all_is_listed_starts_again_when_that_is_not_trusted(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "conclude_scan", lambda of, identity: None)
        found = listing_in_memory.run_reconcile()
    assert found.status == "running" and not found.shards.unfinished().exists()
    listing.add(KEYS[8])
    if change == "time":
        set_marker_back(found, timedelta(hours=2))
    else:
        BucketScan.objects.filter(pk=found.pk).update(marker="another")
    assert listing_in_memory.run_scan(found).status == "complete"
    assert read_findings() == EXPECTED - {("missing", KEYS[8])}


def test_two_workers_that_do_not_trust_a_scan_start_it_again_once(listing: Listing) -> None:
    found = half_listed(listing)
    set_marker_back(found, timedelta(hours=2))
    other = BucketScan.objects.get(pk=found.pk)
    found.start_again()
    stop_after_resume(found)
    other.start_again()
    assert (other.listed, other.marker) == (found.listed, found.marker)


def stop_after_resume(found: BucketScan) -> None:
    found.resume()
    stop_after(found, batches=1)
    assert found.listed == 4


def test_nobody_ends_a_scan_that_another_worker_has_started_again(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just when the last look at the marker is over."""
    real, found = bucket_marker.require_marker, listing_in_memory.start_reconcile()
    calls = 0

    def start_again(bucket: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            BucketScan.objects.get(pk=found.pk).start_again()
        return real(bucket)

    monkeypatch.setattr(bucket_marker, "require_marker", start_again)
    assert listing_in_memory.run_scan(found).status == "running"
    assert found.shards.unfinished().exists() and read_findings() == set()
    assert listing_in_memory.run_scan(found).status == "complete"
    assert read_findings() == EXPECTED


# What looking at the marker costs


def test_the_marker_is_asked_for_once_for_each_batch(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def find_marker(bucket: str) -> ListedObject:
        nonlocal looks
        looks += 1
        return listing_in_memory.MARKER

    monkeypatch.setattr(bucket_marker, "find_marker", find_marker)
    assert len(list(work_on_scan(listing_in_memory.start_reconcile()))) == looks > 2


def test_passing_trouble_with_a_marker_check_is_none_of_the_scan(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = iter([Unavailable("now and then"), None, Unavailable("and again")])

    def find_marker(bucket: str) -> ListedObject:
        if error := next(trouble, None):
            raise error
        return listing_in_memory.MARKER

    monkeypatch.setattr(bucket_marker, "find_marker", find_marker)
    monkeypatch.setattr(fetchers.logger, "disabled", True)
    complete_reconcile()
    assert read_findings() == EXPECTED


def test_a_store_that_asks_for_a_long_pause_does_not_hold_a_scan_up(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_year = Unavailable("busy", retry_after=31_536_000)
    marker, page = iter([a_year]), iter([a_year])

    def find_marker(bucket: str) -> ListedObject:
        if error := next(marker, None):
            raise error
        return listing_in_memory.MARKER

    def before_page(number: int) -> None:
        if error := next(page, None):
            raise error

    monkeypatch.setattr(bucket_marker, "find_marker", find_marker)
    monkeypatch.setattr(fetchers, "LONGEST_PAUSE_SECONDS", 0.0)
    listing.before_page = before_page
    complete_reconcile()
    assert read_findings() == EXPECTED
    assert next(marker, None) is next(page, None) is None


def test_a_scan_that_ends_does_not_wait_for_the_pause_before_a_marker_check(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Event()

    def find_marker(bucket: str) -> ListedObject:
        waits.set()
        raise Unavailable("busy", retry_after=30)

    monkeypatch.setattr(bucket_marker, "find_marker", find_marker)
    monkeypatch.setattr(fetchers, "LONGEST_PAUSE_SECONDS", 30.0)
    began = monotonic()
    with MarkerWatcher("tests") as witness:
        witness.start()
        assert waits.wait(timeout=10)
    assert monotonic() - began < 20
