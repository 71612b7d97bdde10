"""Stores with an order of their own: a scan notices by itself, and is right all the same."""

from collections.abc import Iterator
from typing import Any

import pytest

from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import s3
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing import ListingOutOfOrder, entry_pages, key_bytes
from storage_audit.bucket.listing_xml import Entries
from storage_audit.bucket.s3 import Page
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan import worker
from storage_audit.scan.models import BucketScan, ListedKey, PendingFinding
from storage_audit.scan.start import start_scan
from tests.faults.proxy import FaultyStore
from tests.network import faulty_network
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    read_findings,
    run_backfill,
    run_reconcile,
    track_listed,
    tree_order,
)

# A tree of folders lists a folder before what comes after it by its bytes.
TREE = [
    "a-b",
    "a/b",
    "a/b-c/d",
    "a/b.c",
    "a/b/c",
    "a0",
    "b",
    "projects/proj_1/scenes/s1-b/media/a.mp4",
    "projects/proj_1/scenes/s1/media/a.mp4",
    "projects/proj_1/scenes/s1/media/b.mp4",
]
MINE = TREE[-3:]
UNKNOWN = StoreTraits(folds_unicode=False)
OWN_ORDER = StoreTraits(folds_unicode=False, lists_in_key_order=False)
BYTEWISE = StoreTraits(folds_unicode=False, lists_in_key_order=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    listing_in_memory.remove_pauses(monkeypatch)


@pytest.fixture
def listing(db: None) -> Listing:
    add_projects("proj_1")
    track_listed(*MINE)
    found = Listing(*TREE, page=3)
    found.order = tree_order
    assert sorted(TREE, key=tree_order) != sorted(TREE, key=key_bytes)
    return found


EXPECTED = {("unrecognised", key) for key in TREE if key not in MINE}


@pytest.mark.parametrize("traits", [UNKNOWN, OWN_ORDER], ids=["unknown", "known"])
def test_the_order_is_noticed_and_nothing_is_missing(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, traits: StoreTraits
) -> None:
    listing.use(monkeypatch, traits)
    found = complete_reconcile()
    assert not found.in_key_order
    assert (found.listed, found.unchanged, found.missing) == (len(TREE), 3, 0)
    assert read_findings() == EXPECTED
    assert not (ListedKey.objects.exists() or PendingFinding.objects.exists())


@pytest.mark.parametrize("traits", [UNKNOWN, OWN_ORDER], ids=["unknown", "known"])
def test_what_is_missing_and_what_is_new_is_seen_in_any_order(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, traits: StoreTraits
) -> None:
    listing.use(monkeypatch, traits)
    listing.remove(MINE[1])
    listing.add(new := nth_key(7))
    assert complete_reconcile().missing == 1
    assert read_findings() == EXPECTED | {("missing", MINE[1]), ("untracked", new)}


def test_a_prefix_in_any_order_says_nothing_of_the_rest(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing.use(monkeypatch, OWN_ORDER)
    track_listed("zzz")
    listing.remove(*MINE[:2])
    found = complete_reconcile("projects/proj_1/scenes/s1/")
    assert found.listed == 1
    assert read_findings() == {("missing", MINE[1])}
    listing.remove(*listing.entries)
    complete_reconcile("a", accept_fewer=True)
    assert read_findings() == {("missing", MINE[1])}


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_scan_in_any_order_that_fails_says_nothing_and_goes_on(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    listing.use(monkeypatch, OWN_ORDER)
    listing.remove(MINE[0])

    def fail(number: int) -> None:
        if number >= page:
            raise InvalidResponse("unreadable")

    listing.before_page = fail
    found = run_reconcile()
    assert found.status == "failed"
    assert read_findings() == set()
    listing.before_page = lambda number: None
    assert listing_in_memory.resume_scan(found).status == "complete"
    assert found.listed == len(TREE) - 1
    assert read_findings() == EXPECTED | {("missing", MINE[0])}


def test_a_store_that_promised_the_order_of_bytes_and_breaks_it_is_not_believed(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing.use(monkeypatch, BYTEWISE)
    found = run_reconcile()
    assert (found.status, found.in_key_order) == ("failed", True)
    assert "out of order" in found.message
    assert not Finding.objects.exists()


class Twice(Listing):
    """Shows a page again as the next one, in the place of that, as some networks do."""

    def list_page(self, *args: Any, **options: Any) -> Page[Entries]:
        found = super().list_page(*args, **options)
        if len(self.asked_pages) % 3 != 2 or args[1]:
            return found
        return Page(Entries.from_entries(self.before), found.next_token)

    def use(self, patch: pytest.MonkeyPatch, traits: StoreTraits | None = None) -> None:
        self.before = sorted(self.entries.values(), key=lambda one: tree_order(one.key))[
            : self.size
        ]
        super().use(patch, traits)


@pytest.mark.parametrize("batch", [1, 10])
def test_a_store_that_lists_a_key_twice_in_any_order_is_not_believed(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Also when both are the same, and in the same batch: something else was not listed."""
    twice = Twice(*TREE, page=3)
    twice.order = tree_order
    twice.use(monkeypatch, OWN_ORDER)
    monkeypatch.setattr("storage_audit.scan.fetchers.PAGES_PER_BATCH", batch)
    found = run_reconcile()
    assert found.status == "failed"
    assert "twice" in found.message
    assert not Finding.objects.exists()


def test_a_key_twice_on_a_page_in_any_order_is_not_believed(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing.use(monkeypatch, OWN_ORDER)

    def page(*args: Any, **options: Any) -> Page[Entries]:
        found = Listing.list_page(listing, *args, **options)
        return Page(found.objects + found.objects[-1:], found.next_token)

    for place in ("bucket.s3", "bucket.listing"):
        monkeypatch.setattr(f"storage_audit.{place}.list_entries", page)
    found = run_reconcile()
    assert (found.status, "twice" in found.message) == ("failed", True)


def test_one_page_out_of_order_makes_a_scan_start_again_and_be_right(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody knows the order: what was concluded from the order is taken back."""
    listing.order = key_bytes
    listing.use(monkeypatch, UNKNOWN)
    many = [nth_key(n) for n in range(30)]
    listing.add(*many)
    track_listed(*many)
    listing.remove(many[4])
    assert complete_reconcile().in_key_order
    before = read_findings()
    real = entry_pages

    def backwards(*args: str) -> Iterator[Entries]:
        for number, page in enumerate(real(*args)):
            if number == 5:
                raise ListingOutOfOrder("backwards")
            yield page

    monkeypatch.setattr(worker, "entry_pages", backwards)
    found = complete_reconcile()
    assert not found.in_key_order
    assert read_findings() == before
    assert (found.listed, found.missing) == (len(listing.entries), 1)


def test_two_workers_that_notice_at_once_start_again_once(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one of them take the other's new shard, and list it in the order that was wrong."""
    listing.use(monkeypatch, UNKNOWN)
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    other = BucketScan.objects.get(pk=found.pk)
    found.start_in_any_order()
    shard = found.shards.get()
    found.shards.filter(pk=shard.pk).update(listed=5)
    other.start_in_any_order()
    assert (other.in_key_order, found.shards.get().listed) == (False, 5)
    late = BucketScan.objects.get(pk=found.pk)
    late.in_key_order = True
    assert listing_in_memory.run_scan(late).status == "complete"
    assert read_findings() == EXPECTED


def test_a_worker_whose_lanes_are_in_the_order_that_was_wrong_begins_anew(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing.use(monkeypatch, UNKNOWN)
    found = start_scan(purpose=BucketScan.Purpose.RECONCILE)
    real, other = worker.is_running, BucketScan.objects.get(pk=found.pk)

    def another_starts_again(one: BucketScan) -> bool:
        other.start_in_any_order()
        return real(one)

    monkeypatch.setattr(worker, "is_running", another_starts_again)
    assert listing_in_memory.run_scan(found).status == "complete"
    assert read_findings() == EXPECTED


# A real one


@pytest.fixture(scope="module")
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultyStore]:
    with faulty_network(seaweedfs) as running:
        yield running


@pytest.fixture
def seaweed(
    seaweedfs: SeaweedFS,
    proxy: FaultyStore,
    transactional_db: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Bucket:
    found = Bucket(seaweedfs)
    found.wipe()
    bucket_connection.connect_bucket(found.name)
    monkeypatch.setattr(s3, "PAGE_SIZE", 3)
    add_projects("proj_1")
    return found


KEYS = [key for key in TREE if key != "b"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_seaweedfs_is_scanned_in_its_order(
    seaweed: Bucket, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:
        content = bucket_marker.read_marker(seaweed.name) or {}
        del content["lists_in_key_order"]
        monkeypatch.setattr(bucket_marker, "read_marker", lambda bucket: content)
    seaweed.put(*KEYS)
    found = run_backfill()
    assert (found.status, found.message, found.in_key_order) == ("complete", "", False)
    assert found.listed == len(KEYS)
    assert set(R2Object.objects.values_list("key", flat=True)) == set(KEYS)
    strangers = {("unrecognised", key) for key in KEYS if key not in MINE}
    assert read_findings() == strangers
    seaweed.r2.remove(MINE[0], seaweed.name)
    seaweed.put(new := nth_key(3))
    again = complete_reconcile()
    assert (again.listed, again.missing, again.untracked) == (len(KEYS), 1, 1)
    assert read_findings() == strangers | {("missing", MINE[0]), ("untracked", new)}
