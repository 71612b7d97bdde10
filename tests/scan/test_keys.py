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
from storage_audit.bucket.listing import escape_key, is_storable, key_bytes, nfc_key, storable_part
from storage_audit.bucket.listing_xml import Entries
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan import diff_lines, fetchers, shards, worker
from storage_audit.scan.fetchers import ShardPage, Stretch
from storage_audit.scan.models import BucketScan
from storage_audit.tracking import bulk_insert, rows
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    build_row,
    complete_reconcile,
    make_entry,
    nth_key,
    read_findings,
    run_backfill,
    track_listed,
)
from tests.strange_keys import HARD_TEXTS, KEYS, TRAPS

NAMELESS = ["\0", "a\0b", "\udcff", "\\\udc80"]
UNDER = "projects/proj_1/scenes/s1/media/"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    listing_in_memory.remove_pauses(monkeypatch)


def tracked() -> set[str]:
    return set(R2Object.objects.values_list("key", flat=True))


@pytest.mark.django_db
def test_hard_keys_are_written_compared_and_said_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [*HARD_TEXTS, *(UNDER + key for key in HARD_TEXTS)]
    listing = Listing(*keys, *NAMELESS, page=7)
    listing.use(monkeypatch)
    add_projects("proj_1")
    found = run_backfill()
    assert (found.status, found.added, found.unstorable) == ("complete", len(keys), len(NAMELESS))
    assert tracked() == set(keys)
    strangers = read_findings()
    assert {key for kind, key in strangers if kind == "unstorable"} == set(
        map(escape_key, NAMELESS)
    )
    again = run_backfill()
    assert (again.added, again.updated, again.unchanged) == (0, 0, len(keys))
    assert read_findings() == strangers
    for key in keys:
        one = R2Object.objects.get(key=key)
        assert (one.size, one.etag) == (make_entry(key).size, make_entry(key).etag)
    listing.remove(*keys)
    complete_reconcile(accept_fewer=True)
    assert {key for kind, key in read_findings() if kind == "missing"} == set(keys)
    R2Object.objects.all().delete_without_signals()
    listing.add(*keys)
    complete_reconcile()
    left = {key for kind, key in read_findings() if kind in ("untracked", "unrecognised")}
    assert left == set(keys)


@pytest.mark.django_db
@pytest.mark.parametrize(("key", "other"), [("a\\b\udcff", "a\\\\"), ("a\udcff", "a\\")])
def test_a_scan_of_another_prefix_keeps_a_finding_whose_key_is_shown_escaped(
    monkeypatch: pytest.MonkeyPatch, key: str, other: str
) -> None:
    """The key as it is shown starts with the prefix; the key in the bucket does not."""
    assert escape_key(key).startswith(other)
    assert not key.startswith(other)
    listing = Listing(key, UNDER + "a")
    listing.use(monkeypatch)
    add_projects("proj_1")
    track_listed(UNDER + "a")
    complete_reconcile()
    assert read_findings() == {("unstorable", escape_key(key))}
    complete_reconcile(other)
    assert read_findings() == {("unstorable", escape_key(key))}
    listing.remove(key)
    complete_reconcile(storable_part(key))
    assert read_findings(state="resolved") == {("unstorable", escape_key(key))}


def test_keys_that_r2_admits_go_through_a_scan_unharmed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As local R2 lists them."""
    keys = {*KEYS, *TRAPS, *HARD_TEXTS[:-1]}
    add_projects("proj_1")
    bucket.put(*keys)
    monkeypatch.setattr(s3, "PAGE_SIZE", 10)
    there = bucket.keys()
    assert there == keys
    found = run_backfill()
    assert (found.status, found.message, found.listed) == ("complete", "", len(there))
    identity = bucket_marker.check_bucket(bucket.name).identity
    assert tracked() == {identity(key) for key in there}
    again = run_backfill()
    assert (again.added, again.updated) == (0, 0)
    assert not {kind for kind, _key in read_findings()} & {"missing", "untracked", "changed"}
    for key in (gone := sorted(there)[::9]):
        bucket.r2.remove(key, bucket.name)
    complete_reconcile()
    missing = {key for kind, key in read_findings() if kind == "missing"}
    assert missing == {identity(key) for key in gone}


keys_of_any_kind = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)


@pytest.mark.django_db
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(st.sets(keys_of_any_kind, min_size=1, max_size=20))
def test_any_text_comes_out_of_the_database_as_it_went_in(keys: set[str]) -> None:
    R2Object.objects.all().delete_without_signals()
    names = ["bucket", "key", "size", "etag", "last_modified", "project_id", "source", "state"]
    at = connection.ops.adapt_datetimefield_value(listing_in_memory.MODIFIED_AT)
    late = connection.ops.adapt_datetimefield_value(listing_in_memory.LONG_AGO)
    values = [("b", key, 7, key[:5], at, None, "backfill", "stored") for key in keys]
    texts = {
        "scene_id": "",
        "file_type": "",
        "key_format": "",
        "created_at": late,
        "updated_at": late,
    }
    lines = [*map(bulk_insert.format_line, values)]
    assert bulk_insert.insert_lines(R2Object, names, lines, texts, ["bucket", "key"]) == len(keys)
    assert bulk_insert.insert_lines(R2Object, names, lines, texts, ["bucket", "key"]) == 0
    assert dict(R2Object.objects.values_list("key", "etag")) == {key: key[:5] for key in keys}
    assert diff_lines.select_tracked("b", [diff_lines.KeyRange("", "", None)]) == ({}, keys)
    some = sorted(keys)[: len(keys) // 2 + 1]
    assert diff_lines.select_tracked("b", [diff_lines.KeyList(some)]) == ({}, set(some))


@pytest.mark.django_db
def test_a_line_of_the_table_is_that_of_the_same_object_in_a_listing() -> None:
    keys = [UNDER + key for key in HARD_TEXTS]
    R2Object.objects.bulk_create(build_row(key) for key in keys)
    lines, others = diff_lines.select_tracked(conf().bucket, [diff_lines.KeyRange("", "", None)])
    plain = {
        key for key in keys if build_row(key).unambiguous_under is not None and "\n" not in key
    }
    assert lines.keys() == {"proj_1"} and plain
    told = diff_lines.page_lines(Entries.from_entries(map(make_entry, keys)))
    assert set(lines["proj_1"]) == {line for line in told if diff_lines.line_key(line) in plain}
    assert others == set(keys) - plain
    assert all(map(is_storable, keys)) and sorted(keys, key=key_bytes) == sorted(keys)


@pytest.mark.django_db
@pytest.mark.parametrize("etag", ["a b", "a\nb", " a", "a\n"])
def test_a_row_without_an_etag_needs_a_closer_check(etag: str) -> None:
    """Others may write rows, too."""
    R2Object.objects.bulk_create([build_row(nth_key(1), etag=etag), build_row(nth_key(2))])
    lines, others = diff_lines.select_tracked(conf().bucket, [diff_lines.KeyRange("", "", None)])
    assert others == {nth_key(1)}
    assert list(map(diff_lines.line_key, lines["proj_1"])) == [nth_key(2)]


def test_an_object_that_is_listed_otherwise_than_it_is_being_deleted_gets_no_row(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where spellings are one object, a cleanup names it in one, and the listing shows another."""
    add_projects("proj_1")
    listed = f"{UNDER}e\u0301.mp4"
    Listing(listed).use(monkeypatch, StoreTraits(folds_unicode=True, lists_in_key_order=True))
    cleanup = Cleanup.objects.create(kind="project", bucket=conf().bucket)
    cleanup.items.create(
        key=nfc_key(listed),
        identity=nfc_key(listed),
        found_in="listed",
        outcome=CleanupItem.Outcome.DELETING,
    )
    assert run_backfill().added == 0
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
    patch.setattr(shards, "KEYS_PER_SHARD", 10 * len(keys))
    token = uuid4()
    [shard] = found.shards.acquire_leases(token, 2)
    pages = [
        ShardPage.of(
            shard,
            Entries.from_entries(map(make_entry, keys[start : start + 1000])),
            listing_in_memory.current_time(),
        )
        for start in range(0, len(keys), 1000)
    ]
    stretch = Stretch.of(pages[0])
    for page in pages:
        stretch.add(page)

    def one_batch() -> None:
        assert worker.is_running(found)
        listing_in_memory.record_stretches(found, token, [stretch])

    return asked(patch, one_batch)


@pytest.mark.django_db
def test_a_repeat_asks_the_database_at_most_once_for_a_thousand_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a batch that is full."""
    add_projects("proj_1")
    keys = [nth_key(n) for n in range(1000 * fetchers.PAGES_PER_BATCH)]
    track_listed(*keys)
    found = listing_in_memory.start_reconcile()
    assert asked_by_a_batch(monkeypatch, found, keys) <= len(keys) / 1000
    assert (found.unchanged, found.requests) == (len(keys), fetchers.PAGES_PER_BATCH)


@pytest.mark.django_db
def test_a_first_backfill_asks_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose projects live, what is being deleted, and three times to write the rows."""
    add_projects("proj_1", "proj_2")
    keys = [nth_key(n, f"proj_{1 + n % 2}") for n in range(1000 * fetchers.PAGES_PER_BATCH)]
    Listing(*keys, page=1000).use(monkeypatch)
    found = listing_in_memory.start_reconcile(purpose=BucketScan.Purpose.BACKFILL)
    assert asked_by_a_batch(monkeypatch, found, sorted(keys)) <= 12
    assert (found.added, found.requests) == (len(keys), 2 * fetchers.PAGES_PER_BATCH)


@pytest.mark.django_db
def test_a_cheap_check_and_a_second_one_do_not_grow_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Listing(*(nth_key(n) for n in range(30))).use(monkeypatch)
    add_projects("proj_1")
    token, found = uuid4(), listing_in_memory.start_reconcile()
    assert found.shards.acquire_leases(token, 1)
    few = asked(
        monkeypatch, lambda: rows.find_being_deleted("tests", {nth_key(n) for n in range(3)})
    )
    many = asked(
        monkeypatch, lambda: rows.find_being_deleted("tests", {nth_key(n) for n in range(3000)})
    )
    assert few == many == 1
