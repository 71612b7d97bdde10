"""Several workers at one scan: what one would have said, and nothing twice."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Barrier, Event, Lock, Thread
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, connections
from django.db.transaction import atomic
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from storage_audit.bucket import multipart
from storage_audit.bucket.errors import Unavailable
from storage_audit.bucket.listing import KeyIdentity, exact_key
from storage_audit.bucket.listing_xml import Entries
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup.models.lease_and_status import LeaseLost
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan import compare, conclude_scan, fetchers, worker
from storage_audit.scan.diff_lines import line_key
from storage_audit.scan.fetchers import ShardPage, Stretch
from storage_audit.scan.models import BucketScan, PendingFinding, ScanShard
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    count_kinds,
    current_time,
    make_entry,
    nth_key,
    read_findings,
    track_listed,
)

pytestmark = pytest.mark.django_db(transaction=True)
PROJECTS = [f"proj_{letter}" for letter in "abcdefgh"]
KEYS = sorted(nth_key(n, project) for project in PROJECTS for n in range(60))
GONE = KEYS[50:55] + KEYS[300:302]
FIGURES = ("listed", "listed_bytes", "unchanged", "missing", "untracked", "orphaned")


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    """What a scan finds to say something of, at many places."""
    listing_in_memory.remove_pauses(monkeypatch)
    monkeypatch.setattr("storage_audit.scan.shards.KEYS_PER_SHARD", 80)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 3)
    monkeypatch.setattr(fetchers, "BATCH_WAIT_SECONDS", 0.1)
    add_projects(*PROJECTS[1:])
    for project in PROJECTS:
        track_listed(*(nth_key(n, project) for n in range(60)), project_id=project)
    new = [nth_key(n, project) for project in PROJECTS for n in (70, 71)]
    found = Listing(*(key for key in KEYS if key not in GONE), *new, page=7)
    found.use(monkeypatch)
    return found


def test_who_comes_late_to_the_end_notes_nothing_more(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One looks for unfinished uploads while another ends the scan, and a third comes later."""
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    third = BucketScan.objects.get(pk=found.pk)
    upload = MultipartUpload(KEYS[0], "upload", current_time() - timedelta(days=30))
    others = [BucketScan.objects.get(pk=found.pk)]

    def unfinished(bucket: str, prefix: str) -> Iterator[list[MultipartUpload]]:
        if others:
            listing_in_memory.run_scan(others.pop())
        return iter([[upload]])

    monkeypatch.setattr(multipart, "list_unfinished_uploads", unfinished)
    for one in (found, third):
        listing_in_memory.run_scan(one)
        assert (one.status, one.unfinished) == ("complete", 1)
        assert not PendingFinding.objects.exists()
    assert Finding.objects.filter(kind="unfinished").count() == 1


def together(found: BucketScan, count: int) -> list[BucketScan]:
    """So many workers, that begin at once, each with connections of its own; the scan as each has
    it at the end."""
    ends: list[BucketScan] = []
    errors: list[BaseException] = []
    ready = Barrier(count)

    def take_part() -> None:
        try:
            mine = BucketScan.objects.get(pk=found.pk)
            ready.wait()
            for _batch in work_on_scan(mine):
                pass
            ends.append(mine)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)
        finally:
            connections.close_all()

    threads = [Thread(target=take_part) for _each in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found.refresh_from_db()
    return ends


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each key was compared and written down."""
    counts, counting, real = Counter[str](), Lock(), compare.write_batch

    def write(of: BucketScan, token: Any, stretches: list[Stretch], *rest: Any) -> None:
        real(of, token, stretches, *rest)
        with counting:
            counts.update(line_key(line) for each in stretches for line in each.lines)

    monkeypatch.setattr(compare, "write_batch", write)
    return counts


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("cuts", [False, True], ids=["as cut", "cutting"])
def test_several_say_what_one_says(
    listing: Listing,
    written: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    cuts: bool,
) -> None:
    alone = complete_reconcile()
    expected, seen = read_findings(), count_kinds(FIGURES, alone)
    assert seen["missing"] == len(GONE) and seen["orphaned"] == 57
    Finding.objects.all().delete()
    written.clear()
    if cuts:
        monkeypatch.setattr("storage_audit.scan.shards.KEYS_PER_SHARD", 10_000)
        monkeypatch.setattr("storage_audit.scan.models.shard.LARGE_SHARD_KEYS", 10)
    listing.before_page = lambda number: pause()
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    ends = together(found, count)
    assert found.status == "complete", found.message
    assert [end.status for end in ends] == ["complete"] * count
    assert read_findings() == expected
    assert count_kinds(FIGURES, found) == seen
    assert written == dict.fromkeys(listing.entries, 1)
    assert sum(found.shards.values_list("listed", flat=True)) == found.listed
    assert found.shards.count() >= 2


def pause() -> None:
    """Long enough for others to come between."""
    sleep(0.003)


def test_several_write_each_row_once(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    R2Object.objects.all().delete_without_signals()
    found = start_scan()
    together(found, 3)
    assert found.status == "complete", found.message
    assert found.added == R2Object.objects.count() == len(listing.entries)
    assert found.updated == 0


def acquire_shard(found: BucketScan) -> tuple[Any, ScanShard]:
    token = uuid4()
    [shard] = found.shards.acquire_leases(token, 1)
    return token, shard


def stretch_of(shard: ScanShard, *keys: str) -> Stretch:
    page = ShardPage.of(
        shard, Entries.from_entries(map(make_entry, keys)), current_time(), is_last=True
    )
    stretch = Stretch.of(page)
    stretch.add(page)
    return stretch


def whole(purpose: str = "reconcile") -> BucketScan:
    found = BucketScan.objects.create(bucket="tests", purpose=purpose)
    found.shards.create()
    return found


@pytest.mark.parametrize("how", ["over", "taken", "stopped", "gone"])
def test_a_worker_that_lost_its_lease_writes_nothing(listing: Listing, how: str) -> None:
    found = whole()
    token, shard = acquire_shard(found)
    shards = found.shards.filter(pk=shard.pk)
    if how == "over":
        shards.update(lease_until=timezone.now())
    elif how == "taken":
        shards.update(lease_until=timezone.now())
        assert found.shards.acquire_leases(uuid4(), 1)
    elif how == "stopped":
        found.stop("by a person")
    else:
        shards.delete()
    with pytest.raises(LeaseLost):
        listing_in_memory.record_stretches(found, token, [stretch_of(shard, "README.txt")])
    found.refresh_from_db()
    assert (found.listed, found.pending_findings.count()) == (0, 0)
    assert not found.shards.exclude(cursor="").exists()
    assert not found.shards.filter(complete=True).exists()


@pytest.mark.parametrize("left, prolongs", [(52, True), (58, False)])
def test_who_writes_prolongs_all_of_its_leases_when_they_are_due(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, left: int, prolongs: bool
) -> None:
    """Also those of which nothing was written; three tries of a page may take 51 seconds."""
    at = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: at)
    found = whole()
    found.shards.create(after="m")
    token = uuid4()
    one, other = found.shards.acquire_leases(token, 2)
    until = at + timedelta(seconds=left)
    found.shards.update(lease_until=until)
    listing_in_memory.record_stretches(found, token, [stretch_of(one, "README.txt")])
    prolonged = set(found.shards.filter(lease_until__gt=until))
    assert prolonged == ({one, other} if prolongs else set())


def test_a_worker_that_slept_through_its_lease_does_not_count_twice(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes in the middle of its batch, when another one has done all of it."""
    found, real = whole(), compare.record_batch
    found.bucket = R2Object.objects.values_list("bucket", flat=True)[0]
    found.save()
    slept: list[Any] = []

    def sleeps(of: BucketScan, token: Any, *rest: Any) -> None:
        if not slept:
            slept.append(token)
            ScanShard.objects.filter(lease_token=token).update(lease_until=timezone.now())
            together(BucketScan.objects.get(pk=found.pk), 1)
        real(of, token, *rest)

    monkeypatch.setattr(worker, "record_batch", sleeps)
    listing_in_memory.run_scan(found)
    assert found.status == "complete", found.message
    assert found.listed == len(listing.entries)
    assert {key for kind, key in read_findings() if kind == "missing"} == set(GONE)


def test_who_ends_first_says_it_and_the_other_says_nothing(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that find everything done at the same moment."""
    published, real = list[str](), conclude_scan.conclude_scan
    monkeypatch.setattr(
        "storage_audit.scan.conclude_scan.publish_findings", counted(published, "published")
    )
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    both = Barrier(2)

    def end(of: BucketScan, identity: KeyIdentity) -> None:
        both.wait()
        real(of, identity)

    monkeypatch.setattr(worker, "conclude_scan", end)
    ends = together(found, 2)
    assert found.status == "complete"
    assert [each.status for each in ends] == ["complete", "complete"]
    assert published == ["published"]


def counted(calls: list[str], name: str) -> Callable[..., None]:
    real = conclude_scan.publish_findings

    def publish(of: BucketScan) -> None:
        calls.append(name)
        real(of)

    return publish


def test_figures_of_others_count_before_too_few_are_refused(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's last batch was written after this one looked at the figures."""
    complete_reconcile()
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    stale = BucketScan.objects.get(pk=found.pk)
    monkeypatch.setattr(worker, "conclude_scan", lambda of, identity: None)
    listing_in_memory.run_scan(found)
    monkeypatch.undo()
    listing.use(monkeypatch)
    assert stale.listed == 0 and not found.shards.unfinished().exists()
    conclude_scan.conclude_scan(stale, exact_key)
    found.refresh_from_db()
    assert (found.status, found.message) == ("complete", "")


def test_trouble_of_one_ends_the_scan_of_all_and_leaves_it_to_be_resumed(
    listing: Listing,
) -> None:
    def fail(number: int) -> None:
        pause()
        if number > 30:
            raise Unavailable("down")

    listing.before_page = fail
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    ends = together(found, 2)
    assert {end.status for end in ends} == {"failed"}
    assert (found.status, found.message) == ("failed", "down")
    assert not Finding.objects.exists()
    assert not found.shards.exclude(lease_token=None).exists()
    listing.before_page = lambda number: None
    found.resume()
    together(found, 2)
    assert (found.status, found.listed) == ("complete", len(listing.entries))
    assert {key for kind, key in read_findings() if kind == "missing"} == set(GONE)


def test_a_stopped_scan_stops_all_of_its_workers(listing: Listing) -> None:
    """More than 30 pages are needed, and none of those beyond comes before the stop."""
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    once, stopped = Lock(), Event()

    def stop(number: int) -> None:
        pause()
        if number < 30:
            return
        if once.acquire(blocking=False):
            BucketScan.objects.get(pk=found.pk).stop("enough")
            connections.close_all()
            stopped.set()
        assert stopped.wait(timeout=10)

    listing.before_page = stop
    ends = together(found, 2)
    assert {end.status for end in ends} == {"stopped"}
    assert found.shards.unfinished().exists()


@pytest.mark.only_on("postgresql")  # SQLite has one writer
def test_worker_skips_shards_that_others_are_acquiring(listing: Listing) -> None:
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    count = found.shards.count()
    got: list[int] = []

    def claim() -> None:
        got.extend(shard.pk for shard in found.shards.acquire_leases(uuid4(), 1000))
        connections.close_all()

    with atomic():
        taken = list(found.shards.order_by("pk").select_for_update()[:2])
        thread = Thread(target=claim)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert len(got) == count - 2
    assert not set(got) & {shard.pk for shard in taken}
    with CaptureQueriesContext(connection) as queries:
        found.shards.acquire_leases(uuid4(), 1)
    assert any("SKIP LOCKED" in query["sql"] for query in queries)
