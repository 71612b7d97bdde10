"""Whatever keys there are, rows and findings are of these very keys; and what a scan asks of the
database does not grow with them."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import cursor as psycopg2_cursor

from storage_audit.bucket import s3
from storage_audit.bucket.listing import as_bytes, escape, nfc, storable, storable_part
from storage_audit.bucket.listing_xml import Entries
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import Traits
from storage_audit.scan import diff_lines, fetchers, shards, worker
from storage_audit.scan.fetchers import PageRead, Stretch
from storage_audit.scan.models import BucketScan
from storage_audit.tracking import bulk_insert, rows
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    a,
    alive,
    backfill,
    complete,
    entry,
    findings,
    row,
    track,
)
from tests.strange_keys import HARD, KEYS, TRAPS

NAMELESS = ["\0", "a\0b", "\udcff", "\\\udc80"]
UNDER = "projects/proj_1/scenes/s1/media/"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    listing_in_memory.quick(monkeypatch)


def tracked() -> set[str]:
    return set(R2Object.objects.values_list("key", flat=True))


@pytest.mark.django_db
def test_hard_keys_are_written_compared_and_said_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [*HARD, *(UNDER + key for key in HARD)]
    listing = Listing(*keys, *NAMELESS, page=7)
    listing.use(monkeypatch)
    alive("proj_1")
    found = backfill()
    assert (found.status, found.added, found.unstorable) == ("complete", len(keys), len(NAMELESS))
    assert tracked() == set(keys)
    strangers = findings()
    assert {key for kind, key in strangers if kind == "unstorable"} == set(map(escape, NAMELESS))
    again = backfill()
    assert (again.added, again.updated, again.unchanged) == (0, 0, len(keys))
    assert findings() == strangers
    for key in keys:
        one = R2Object.objects.get(key=key)
        assert (one.size, one.etag) == (entry(key).size, entry(key).etag)
    listing.remove(*keys)
    complete(accept_fewer=True)
    assert {key for kind, key in findings() if kind == "missing"} == set(keys)
    R2Object.objects.all().forget()
    listing.add(*keys)
    complete()
    left = {key for kind, key in findings() if kind in ("untracked", "unrecognised")}
    assert left == set(keys)


@pytest.mark.django_db
@pytest.mark.parametrize(("key", "other"), [("a\\b\udcff", "a\\\\"), ("a\udcff", "a\\")])
def test_a_scan_of_another_prefix_keeps_a_finding_whose_key_is_shown_escaped(
    monkeypatch: pytest.MonkeyPatch, key: str, other: str
) -> None:
    """The key as it is shown starts with the prefix; the key in the bucket does not."""
    assert escape(key).startswith(other)
    assert not key.startswith(other)
    listing = Listing(key, UNDER + "a")
    listing.use(monkeypatch)
    alive("proj_1")
    track(UNDER + "a")
    complete()
    assert findings() == {("unstorable", escape(key))}
    complete(other)
    assert findings() == {("unstorable", escape(key))}
    listing.remove(key)
    complete(storable_part(key))
    assert findings(state="resolved") == {("unstorable", escape(key))}


def test_keys_that_r2_admits_go_through_a_scan_unharmed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As local R2 lists them."""
    keys = {*KEYS, *TRAPS, *HARD[:-1]}
    alive("proj_1")
    bucket.put(*keys)
    monkeypatch.setattr(s3, "PAGE", 10)
    there = bucket.keys()
    assert there == keys
    found = backfill()
    assert (found.status, found.error, found.listed) == ("complete", "", len(there))
    identity = bucket_marker.check(bucket.name).identity
    assert tracked() == {identity(key) for key in there}
    again = backfill()
    assert (again.added, again.updated) == (0, 0)
    assert not {kind for kind, _key in findings()} & {"missing", "untracked", "changed"}
    for key in (gone := sorted(there)[::9]):
        bucket.r2.remove(key, bucket.name)
    complete()
    missing = {key for kind, key in findings() if kind == "missing"}
    assert missing == {identity(key) for key in gone}


keys_of_any_kind = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)


@pytest.mark.django_db
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(st.sets(keys_of_any_kind, min_size=1, max_size=20))
def test_any_text_comes_out_of_the_database_as_it_went_in(keys: set[str]) -> None:
    R2Object.objects.all().forget()
    names = ["bucket", "key", "size", "etag", "last_modified", "project_id", "source", "state"]
    at = connection.ops.adapt_datetimefield_value(listing_in_memory.MODIFIED)
    late = connection.ops.adapt_datetimefield_value(listing_in_memory.LONG_AGO)
    values = [("b", key, 7, key[:5], at, None, "backfill", "stored") for key in keys]
    texts = {"scene_id": "", "file_type": "", "layout": "", "created_at": late, "updated_at": late}
    lines = [*map(bulk_insert.line, values)]
    assert bulk_insert.load(R2Object, names, lines, texts, ["bucket", "key"]) == len(keys)
    assert bulk_insert.load(R2Object, names, lines, texts, ["bucket", "key"]) == 0
    assert dict(R2Object.objects.values_list("key", "etag")) == {key: key[:5] for key in keys}
    assert diff_lines.tracked_in("b", [diff_lines.Range("", "", None)]) == ({}, keys)
    some = sorted(keys)[: len(keys) // 2 + 1]
    assert diff_lines.tracked_in("b", [diff_lines.Keys(some)]) == ({}, set(some))


@pytest.mark.django_db
def test_a_line_of_the_table_is_that_of_the_same_object_in_a_listing() -> None:
    keys = [UNDER + key for key in HARD]
    R2Object.objects.bulk_create(row(key) for key in keys)
    lines, others = diff_lines.tracked_in(conf().bucket, [diff_lines.Range("", "", None)])
    plain = {key for key in keys if row(key).plain_under is not None and "\n" not in key}
    assert lines.keys() == {"proj_1"} and plain
    told = diff_lines.lines_of(Entries.of(map(entry, keys)))
    assert set(lines["proj_1"]) == {line for line in told if diff_lines.key_of(line) in plain}
    assert others == set(keys) - plain
    assert all(map(storable, keys)) and sorted(keys, key=as_bytes) == sorted(keys)


@pytest.mark.django_db
@pytest.mark.parametrize("etag", ["a b", "a\nb", " a", "a\n"])
def test_a_row_whose_etag_is_none_needs_a_closer_look(etag: str) -> None:
    """Others may write rows, too."""
    R2Object.objects.bulk_create([row(a(1), etag=etag), row(a(2))])
    lines, others = diff_lines.tracked_in(conf().bucket, [diff_lines.Range("", "", None)])
    assert others == {a(1)}
    assert list(map(diff_lines.key_of, lines["proj_1"])) == [a(2)]


def test_an_object_that_is_listed_otherwise_than_it_is_being_deleted_gets_no_row(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where spellings are one object, a cleanup names it in one, and the listing shows another."""
    alive("proj_1")
    listed = f"{UNDER}e\u0301.mp4"
    Listing(listed).use(monkeypatch, Traits(folds_unicode=True, lists_in_key_order=True))
    operation = CleanupOperation.objects.create(kind="project", bucket=conf().bucket)
    operation.items.create(
        key=nfc(listed),
        identity=nfc(listed),
        found_in="listed",
        outcome=CleanupItem.Outcome.DELETING,
    )
    assert backfill().added == 0
    assert tracked() == set()


# What it asks of the database


class Copies:
    """Counts what goes past Django's own count."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        if connection.vendor == "postgresql":
            wrapper: Any = type(connection.cursor())
            patch.setattr(wrapper, "copy_expert", self.counted, raising=False)

    def counted(self, sql: str, *rest: Any) -> Any:
        self.count += 1
        with connection.cursor() as cursor:
            return psycopg2_cursor.copy_expert(cursor.cursor, sql, *rest)


def asked(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> int:
    """Beginnings and ends of transactions are no questions."""
    copies = Copies(patch)
    with CaptureQueriesContext(connection) as context:
        act()
    return sum("SAVEPOINT" not in query["sql"] for query in context) + copies.count


def asked_by_a_batch(patch: pytest.MonkeyPatch, found: BucketScan, keys: Sequence[str]) -> int:
    """With all that comes between it and the next."""
    patch.setattr(shards, "WORTH", 10 * len(keys))
    token = uuid4()
    [shard] = found.shards.claim(token, 2)
    pages = [
        PageRead.of(
            shard, Entries.of(map(entry, keys[start : start + 1000])), listing_in_memory.now()
        )
        for start in range(0, len(keys), 1000)
    ]
    stretch = Stretch.of(pages[0])
    for page in pages:
        stretch.add(page)

    def one_batch() -> None:
        assert worker.is_running(found)
        listing_in_memory.record(found, token, [stretch])

    return asked(patch, one_batch)


@pytest.mark.django_db
def test_a_repeat_asks_the_database_at_most_once_for_a_thousand_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a batch that is full."""
    alive("proj_1")
    keys = [a(n) for n in range(1000 * fetchers.BATCH)]
    track(*keys)
    found = listing_in_memory.begin()
    assert asked_by_a_batch(monkeypatch, found, keys) <= len(keys) / 1000
    assert (found.unchanged, found.requests) == (len(keys), fetchers.BATCH)


@pytest.mark.django_db
def test_a_first_backfill_asks_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose projects live, what is being deleted, and three times to write the rows."""
    alive("proj_1", "proj_2")
    keys = [a(n, f"proj_{1 + n % 2}") for n in range(1000 * fetchers.BATCH)]
    Listing(*keys, page=1000).use(monkeypatch)
    found = listing_in_memory.begin(purpose=BucketScan.Purpose.BACKFILL)
    assert asked_by_a_batch(monkeypatch, found, sorted(keys)) <= 12
    assert (found.added, found.requests) == (len(keys), 2 * fetchers.BATCH)


@pytest.mark.django_db
def test_a_cheap_look_and_a_second_one_do_not_grow_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing(*(a(n) for n in range(30))).use(monkeypatch)
    alive("proj_1")
    token, found = uuid4(), listing_in_memory.begin()
    assert found.shards.claim(token, 1)
    few = asked(monkeypatch, lambda: rows.being_deleted("tests", {a(n) for n in range(3)}))
    many = asked(monkeypatch, lambda: rows.being_deleted("tests", {a(n) for n in range(3000)}))
    assert few == many == 1
