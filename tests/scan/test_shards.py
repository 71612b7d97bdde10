"""Where a scan is cut: by the tracked keys at first, and then by what the bucket shows."""

import sys
from time import sleep

import pytest

from storage_audit.bucket.listing import is_storable, key_bytes
from storage_audit.conf import conf
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.scan import shards
from storage_audit.scan.models import BucketScan, ScanShard
from storage_audit.scan.shards import find_cut, largest_shard, middle_key, split_shard
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    LONG_AGO,
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    track_listed,
)

pytestmark = pytest.mark.django_db


def sample_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers go on from where tests before have left them, and a sample is taken by them."""
    monkeypatch.setattr(shards, "KEYS_SAMPLED", sys.maxsize)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 39, 40, 100])
def test_parts_have_about_as_many_of_the_tracked_keys(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    Listing().use(monkeypatch)
    monkeypatch.setattr(shards, "KEYS_PER_SHARD", 10)
    sample_all(monkeypatch)
    keys = [nth_key(n) for n in range(count)]
    track_listed(*keys, project_id=None)
    found = listing_in_memory.start_reconcile()
    parts = list(found.shards.order_by("after"))
    assert parts[0].after == "" and parts[-1].until is None
    assert [part.until for part in parts[:-1]] == [part.after for part in parts[1:]]
    assert len(parts) == max(1, count // 10)
    sizes = [R2Object.objects.between(part.after, part.until).count() for part in parts]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 2


def test_only_keys_of_the_prefix_and_of_the_bucket_say_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing().use(monkeypatch)
    monkeypatch.setattr(shards, "KEYS_PER_SHARD", 10)
    sample_all(monkeypatch)
    mine = [nth_key(n, "proj_2") for n in range(40)]
    track_listed(*(nth_key(n) for n in range(100)), *mine)
    track_listed(*(nth_key(n, "proj_3") for n in range(30)), bucket="other")
    found = listing_in_memory.start_reconcile("projects/proj_2/")
    cuts = list(found.shards.exclude(until=None).order_by("until").values_list("until", flat=True))
    assert cuts == [mine[10], mine[20], mine[30]]


# Where what is left is cut


def flat(count: int) -> list[str]:
    return [f"{n:06}" for n in range(count)]


SHAPES = {
    "numbered": flat(2000),
    "one huge folder": ["a", "b/1", *(f"c/huge/{n:05}.mp4" for n in range(2000)), "d/1", "z"],
    "the rest is huge": ["a", "b", "c", *(f"zz/{n:05}" for n in range(2000))],
    "long": [f"x/{'y' * 500}/{n:05}/{'z' * 400}" for n in range(800)],
    "letters": [f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{n}" for n in range(2000)],
    "japanese": [f"\u4e00{chr(0x4E00 + n)}.mp4" for n in range(2000)],
    "emoji": [f"{chr(0x1F300 + n % 500)}{n}" for n in range(2000)],
    "uuids": [f"{n * 7919 % 65536:04x}-x" for n in range(2000)],
    "many folders": [f"projects/proj_{n}/scenes/s1/media/a.mp4" for n in range(2000)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_is_cut_with_something_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    keys = sorted(SHAPES[shape], key=key_bytes)
    listing = Listing(*keys, page=10)
    listing.use(monkeypatch)
    found = BucketScan.objects.create(bucket="tests")
    for done in ("", keys[3], keys[len(keys) // 2]):
        shard = found.shards.create(cursor=done)
        listing.asked_pages.clear()
        at = find_cut("tests", shard)
        assert len(listing.asked_pages) <= 40
        assert at is not None and is_storable(at)
        left = [key for key in keys if key > done]
        assert sum(key <= at for key in left) >= 10
        assert sum(key > at for key in left) >= 10
        assert split_shard(shard, at)


@pytest.mark.parametrize("shape", ["numbered", "uuids", "letters", "japanese", "many folders"])
def test_workers_that_cut_again_and_again_come_to_parts_of_about_a_size(
    monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    keys = sorted(SHAPES[shape], key=key_bytes)
    Listing(*keys, page=10).use(monkeypatch)
    found = BucketScan.objects.create(bucket="tests")
    found.shards.create()
    for _cut in range(15):
        shard = max(found.shards.all(), key=lambda one: size(one, keys))
        if (at := find_cut("tests", shard)) is not None:
            assert split_shard(shard, at)
    sizes = [size(one, keys) for one in found.shards.all()]
    assert sum(sizes) == len(keys)
    assert max(sizes) <= len(keys) / 3


def size(shard: ScanShard, keys: list[str]) -> int:
    return sum(shard.after < key and (shard.until is None or key <= shard.until) for key in keys)


def test_the_middle_is_that_of_the_tracked_keys_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing(page=10).use(monkeypatch)
    keys = [nth_key(n, "proj_2") for n in range(60)]
    track_listed(
        *(nth_key(n) for n in range(60)), *keys, *(nth_key(n, "proj_3") for n in range(60))
    )
    track_listed(*(nth_key(n, "proj_2", "thumbs") for n in range(60)), bucket="other")
    found = BucketScan.objects.create(bucket=conf().bucket)
    shards_of = found.shards
    prefix = "projects/proj_2/"
    assert middle_key(found, shards_of.create(prefix=prefix)) == keys[30]
    assert middle_key(found, shards_of.create(prefix=prefix, cursor=keys[9])) == keys[35]
    assert middle_key(found, shards_of.create(prefix=prefix, until=keys[50])) == keys[25]
    # Four pages may be under way already.
    assert middle_key(found, shards_of.create(prefix=prefix, until=keys[39])) is None
    found.started_at = LONG_AGO
    assert middle_key(found, shards_of.create(prefix=prefix)) is None


def test_rows_that_go_while_they_are_counted_give_no_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = BucketScan.objects.create(bucket=conf().bucket)
    monkeypatch.setattr(R2ObjectQuerySet, "count", lambda rows: 10_000)
    assert middle_key(found, found.shards.create()) is None


def list_slowly(patch: pytest.MonkeyPatch, keys: list[str], *, page: int, pause: float) -> None:
    """So that lanes are idle while others list, and little is written at once."""
    listing_in_memory.remove_pauses(patch)
    add_projects("proj_1")
    listing = Listing(*keys, page=page)
    listing.use(patch)
    listing.before_page = lambda number: sleep(pause)
    patch.setattr("storage_audit.scan.fetchers.PAGES_PER_BATCH", 2)


def test_what_the_table_does_not_know_is_cut_by_the_bucket_beside_what_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [nth_key(n) for n in range(1600)]
    list_slowly(monkeypatch, keys, page=5, pause=0.003)
    monkeypatch.setattr("storage_audit.scan.models.shard.LARGE_SHARD_KEYS", 10)
    track_listed(*keys[:1000])
    found = complete_reconcile()
    assert (found.listed, found.unchanged, found.untracked) == (1600, 1000, 600)
    assert found.shards.filter(after__gt=keys[1005]).exists()


@pytest.mark.parametrize("tracked", [True, False])
def test_idle_lanes_take_halves_by_the_table(
    monkeypatch: pytest.MonkeyPatch, tracked: bool
) -> None:
    keys = [nth_key(n) for n in range(400)]
    list_slowly(monkeypatch, keys, page=10, pause=0.01)
    if tracked:
        track_listed(*keys)
    found = complete_reconcile()
    assert (found.listed, found.unchanged) == (400, 400 * tracked)
    assert (found.untracked, found.missing) == (400 * (not tracked), 0)
    parts = found.shards.count()
    assert parts >= 4 if tracked else parts == 1
    assert sum(found.shards.values_list("listed", flat=True)) == 400


def test_what_only_gets_longer_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    Listing(*("k" * n for n in range(1, 1000)), page=10).use(monkeypatch)
    found = BucketScan.objects.create(bucket="tests")
    assert find_cut("tests", found.shards.create()) is None


def test_a_little_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(*flat(19), page=10)
    listing.use(monkeypatch)
    found = BucketScan.objects.create(bucket="tests")
    assert find_cut("tests", found.shards.create()) is None
    listing.add(*flat(1000))
    assert find_cut("tests", found.shards.create(until=flat(1000)[15])) is None
    assert find_cut("tests", found.shards.create(cursor=flat(1000)[990])) is None


def test_a_cut_is_refused_where_nothing_would_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found = BucketScan.objects.create(bucket="tests")
    shard = found.shards.create(after="b", until="y", cursor="d")
    for at in ("a", "b", "d", "y", "z"):
        assert not split_shard(shard, at)
    assert split_shard(shard, "m")
    assert (shard.until, found.shards.get(pk=shard.pk).until) == ("m", "m")
    rest = found.shards.exclude(pk=shard.pk).get()
    assert (rest.after, rest.until, rest.cursor, rest.complete) == ("m", "y", "", False)
    found.shards.filter(pk=shard.pk).update(complete=True)
    assert not split_shard(shard, "f")


def test_of_what_is_under_way_that_is_cut_whose_ends_differ_earliest() -> None:
    def shard(done: str, until: str | None) -> ScanShard:
        return ScanShard(prefix="p/", cursor=done, until=until)

    wide, narrow, last = shard("p/a", "p/x"), shard("p/ab", "p/ac"), shard("p/x", None)
    assert largest_shard([narrow, wide]) is wide
    assert largest_shard([narrow, wide, last]) in (wide, last)
    assert largest_shard([]) is None
