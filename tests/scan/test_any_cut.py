"""However a scan is cut, and whenever: each key is compared once, and each place of the table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from random import Random
from time import sleep
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from storage_audit.bucket.errors import StoreError, Unavailable
from storage_audit.bucket.listing import is_storable, key_bytes, unordered_pages
from storage_audit.conf import conf
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan import compare, fetchers
from storage_audit.scan.compare import ComparedBatch
from storage_audit.scan.diff_lines import KeyRange, line_key
from storage_audit.scan.fetchers import FetcherPool, Stretch
from storage_audit.scan.models import BucketScan, ListedKey, ScanShard
from storage_audit.scan.shards import split_shard
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    read_findings,
    track_listed,
)

pytestmark = pytest.mark.django_db

LETTERS = ["a", "b", "/", "-", "~", "\x01", "\u00e9", "\ue000", "\U0001f98a", "\U0010ffff"]
NAMELESS = ["\0", "\udc80", "\udcff"]


def as_listed(parts: list[str]) -> str:
    """Bytes that together are UTF-8 stand for that."""
    return key_bytes("".join(parts)).decode("utf-8", "surrogateescape")


names = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4).map(as_listed)
any_names = st.lists(st.sampled_from(LETTERS + NAMELESS), min_size=1, max_size=4).map(as_listed)
# Threads do not do the same twice, so that a failure cannot be made smaller.
whatever = settings(
    max_examples=40,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


class Compares:
    """Instead of comparing, keeps what was to be compared and then written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.ranges: list[KeyRange] = []
        self.write = compare.write_batch
        patch.setattr(compare, "compare_batch", lambda *args: ComparedBatch())
        patch.setattr(compare, "write_batch", self)

    def __call__(
        self, scan: BucketScan, token: object, stretches: Sequence[Stretch], *rest: object
    ) -> None:
        self.ranges += [stretch.range for stretch in stretches]
        for stretch in stretches:
            self.keys += [line_key(line) for line in stretch.lines]
            self.keys += [entry.key for entry in stretch.unstorable]
        self.write(scan, token, stretches, *rest)  # type: ignore[arg-type]


@pytest.fixture
def compares(monkeypatch: pytest.MonkeyPatch) -> Compares:
    listing_in_memory.remove_pauses(monkeypatch)
    monkeypatch.setattr(fetchers, "BATCH_WAIT_SECONDS", 0.05)
    # Whoever dies would have to wait for lanes that wait for room.
    monkeypatch.setattr(fetchers, "PAGES_AHEAD", 200)
    monkeypatch.setattr(fetchers.logger, "disabled", True)
    return Compares(monkeypatch)


def parts_of(found: BucketScan, cuts: Sequence[str]) -> None:
    found.shards.all().delete()
    for after, until in pairwise(["", *sorted(cuts), None]):
        assert after is not None
        found.shards.create(after=after, until=until)


@pytest.mark.slow
@whatever
@given(data=st.data(), chance=st.randoms(use_true_random=True))
def test_each_key_and_each_place_is_compared_once(
    compares: Compares, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, chance: Random
) -> None:
    """Pages fail, workers die, and shards are cut, by the worker that has them or by another one,
    while its lanes are beyond the cut."""
    keys = data.draw(st.sets(any_names, max_size=30))
    listing = Listing(*keys, page=data.draw(st.integers(1, 5)))
    listing.use(monkeypatch)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", data.draw(st.integers(1, 6)))
    failing = data.draw(st.sets(st.integers(1, 40), max_size=10))
    listing.before_page = fails_at(failing)
    found = BucketScan.objects.create(bucket=conf().bucket)
    parts_of(found, data.draw(st.lists(names, max_size=3, unique=True)))
    compares.keys, compares.ranges = [], []
    width = data.draw(st.integers(1, 3))
    lives = iter(data.draw(st.lists(st.integers(1, 6), max_size=5)))
    while found.shards.unfinished().exists():
        with FetcherPool(found.bucket, width) as running:
            for shard, at in steps(chance, found, running, next(lives, 1000)):
                split_shard(shard, at)
        found.shards.release_leases()
    assert sorted(compares.keys, key=key_bytes) == sorted(keys, key=key_bytes)
    assert_cover_all_once(compares.ranges)
    assert sum(found.shards.values_list("listed", flat=True)) == len(keys)


def fails_at(pages: set[int]) -> Callable[[int], None]:
    def fail(number: int) -> None:
        if number in pages:
            raise Unavailable("now and then")

    return fail


def steps(
    chance: Random, found: BucketScan, running: FetcherPool, life: int
) -> Iterator[tuple[ScanShard, str]]:
    """One worker's, until it has nothing to do, or dies; gives what to cut, and where."""
    token = uuid4()
    for _step in range(life):
        for shard in found.shards.acquire_leases(token, running.idle_count):
            running.start(shard)
        if not running.busy_shards:
            return
        yield from cut_of(chance, running.busy_shards)
        yield from cut_of(chance, found.shards.unfinished().in_bulk())
        try:
            stretches = running.gather()
        except StoreError:
            return
        yield from cut_of(chance, found.shards.unfinished().in_bulk())
        if stretches:
            listing_in_memory.record_stretches(found, token, stretches)


def cut_of(chance: Random, known: Mapping[int, ScanShard]) -> Iterator[tuple[ScanShard, str]]:
    """As a worker knows its own, or as another one reads them. Not drawn: what there is to cut
    depends on threads, and Hypothesis takes a test that draws otherwise for a broken one."""
    if known and chance.randrange(4) == 0:
        at = as_listed(chance.choices(LETTERS, k=chance.randint(1, 4)))
        yield known[chance.choice(sorted(known))], at


def assert_cover_all_once(ranges: list[KeyRange]) -> None:
    """Beside each other, without a gap, from the first key that there can be to the last."""
    real = [each for each in ranges if each.until is None or each.after < each.until]
    real.sort(key=lambda each: each.after)
    assert real[0].after == ""
    assert real[-1].until is None
    for before, then in pairwise(real):
        assert before.until == then.after


def test_pages_behind_a_cut_that_were_read_already_are_left_to_the_rest(
    compares: Compares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker cuts what this one has read to its end, and written in part."""
    keys = [nth_key(n) for n in range(8)]
    Listing(*keys, page=1).use(monkeypatch)
    monkeypatch.setattr(fetchers, "BATCH_WAIT_SECONDS", 10.0)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 2)
    found, token = BucketScan.objects.create(bucket=conf().bucket), uuid4()
    found.shards.create()
    with FetcherPool(found.bucket, 1) as running:
        [shard] = found.shards.acquire_leases(token, 1)
        running.start(shard)
        listing_in_memory.record_stretches(found, token, running.gather())
        assert split_shard(found.shards.get(), f"{keys[2]}5")
        listing_in_memory.record_stretches(found, token, running.gather())
        assert (shard.complete, shard.until) == (True, f"{keys[2]}5")
        while running.busy_shards:
            assert running.gather() == []
    assert compares.keys == keys[:3]
    [first, rest] = found.shards.order_by("after")
    assert (first.complete, first.listed, rest.after, rest.complete) == (
        True,
        3,
        f"{keys[2]}5",
        False,
    )


@whatever
@given(data=st.data())
def test_each_key_is_seen_once_in_any_order(
    compares: Compares, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    keys = data.draw(st.sets(any_names, max_size=20))
    listing = Listing(*keys, page=data.draw(st.integers(1, 5)))
    listing.order = lambda key: key_bytes(key)[::-1]
    listing.use(monkeypatch, StoreTraits(folds_unicode=False, lists_in_key_order=False))
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", data.draw(st.integers(1, 6)))
    listing.before_page = fails_at(data.draw(st.sets(st.integers(1, 40), max_size=10)))
    found = BucketScan.objects.create(bucket=conf().bucket, in_key_order=False)
    found.shards.create()
    compares.keys = []
    lives = iter(data.draw(st.lists(st.integers(1, 6), max_size=5)))
    while found.shards.unfinished().exists():
        with FetcherPool(found.bucket, 1, unordered_pages) as running:
            list_on(found, running, next(lives, 1000))
        found.shards.release_leases()
    assert sorted(compares.keys, key=key_bytes) == sorted(keys, key=key_bytes)
    noted = ListedKey.objects.filter(scan=found).values_list("key", flat=True)
    assert set(noted) == {key for key in keys if is_storable(key)}


def list_on(found: BucketScan, running: FetcherPool, life: int) -> None:
    token = uuid4()
    for shard in found.shards.acquire_leases(token, 1):
        running.start(shard)
    for _step in range(life):
        if not running.busy_shards:
            return
        try:
            stretches = running.gather()
        except StoreError:
            return
        if stretches:
            listing_in_memory.record_stretches(found, token, stretches)


def test_trouble_with_finding_a_cut_is_none_of_the_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = Listing(*(nth_key(n) for n in range(40)))
    listing.use(monkeypatch)
    listing_in_memory.remove_pauses(monkeypatch)
    monkeypatch.setattr("storage_audit.scan.models.shard.LARGE_SHARD_KEYS", 1)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 1)
    add_projects("proj_1")
    looks = []

    def fails(bucket: str, shard: ScanShard, after_page: object) -> str | None:
        looks.append(shard)
        raise Unavailable("just now")

    monkeypatch.setattr("storage_audit.scan.worker.find_cut", fails)
    monkeypatch.setattr("storage_audit.scan.worker.LONGEST_WAIT_SECONDS", 0)
    assert complete_reconcile().listed == 40
    # What is left of a shard only becomes less.
    assert len(looks) == 1


def test_where_a_shard_can_be_cut_comes_with_the_pages_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing(*(nth_key(n) for n in range(8)), page=2).use(monkeypatch)
    found, token = BucketScan.objects.create(bucket=conf().bucket), uuid4()
    found.shards.create()
    with FetcherPool(found.bucket, 2) as running:
        [shard] = found.shards.acquire_leases(token, 1)
        running.cut(shard, lambda *args: "cut")
        while running._queue.empty():
            sleep(0.01)
        running.start(shard)
        while running._queue.qsize() < 5:
            sleep(0.01)
        [stretch] = running.gather()
        assert stretch.listed == 8
        assert [cut.at for cut in running.take_cuts()] == ["cut"]


@pytest.mark.parametrize("every", [1, 3, 400])
def test_a_scan_that_cuts_itself_says_what_one_says_that_does_not(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """By the table, by the bucket where the table does not know it, or both."""
    keys = [nth_key(n) for n in range(400)]
    listing = Listing(*keys, "README.txt", page=5)
    listing.use(monkeypatch)
    listing_in_memory.remove_pauses(monkeypatch)
    add_projects("proj_1")
    track_listed(*keys[::every], nth_key(500), nth_key(1, name="b"))
    with monkeypatch.context() as patch:
        patch.setattr("storage_audit.scan.worker.halve_shards", lambda *args: 0)
        found = complete_reconcile()
    assert found.shards.count() == 1
    undisturbed = read_findings()
    assert {kind for kind, _key in undisturbed} >= {"missing", "unrecognised"}
    monkeypatch.setattr("storage_audit.scan.models.shard.LARGE_SHARD_KEYS", 1)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 2)
    # Slower than those that look for a cut.
    listing.before_page = lambda number: sleep(0.005)
    again = complete_reconcile()
    assert again.shards.count() > 1
    assert (again.listed, again.unchanged) == (found.listed, found.unchanged)
    assert read_findings() == undisturbed
    assert sum(again.shards.values_list("listed", flat=True)) == again.listed
