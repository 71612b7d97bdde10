"""Backfill: what the bucket holds, written down, while others upload and delete."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.storage import default_storage
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.errors import InvalidResponse, Unavailable
from storage_audit.bucket.listing import entry_pages
from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.ownership_rule import key_formats_version
from storage_audit.scan import worker
from storage_audit.scan.fetchers import FetcherPool, ShardPage, Stretch
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from storage_audit.tracking import rows
from tests import promises
from tests.real_bucket import Bucket
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import list_open_findings
from tests.times import STALE_CALL

pytestmark = pytest.mark.database

KEY = "projects/proj_1/scenes/s1/media/old.MP4"
FLAT = "proj_1_x_s1_media.mp4"  # proj_1 with scene x_s1, or proj_1_x with scene s1
State, Source = R2Object.State, R2Object.Source


def backfill(prefix: str = "", *, dry_run: bool = False) -> BucketScan:
    found = start_scan(prefix, dry_run=dry_run)
    for _batch in work_on_scan(found):
        pass
    found.refresh_from_db()
    return found


def figures(found: BucketScan) -> tuple[int, int, int, int]:
    return found.listed, found.added, found.updated, found.unchanged


def stored_rows() -> list[dict[str, Any]]:
    return [dict(row) for row in R2Object.objects.order_by("key").values()]


def kinds() -> dict[str, str]:
    """The open findings, by key."""
    return dict(Finding.objects.filter(state="open").values_list("key", "kind"))


def after_listing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen after pages are listed and before anything is done with them."""
    gather = FetcherPool.gather

    def gathered(self: FetcherPool) -> list[Stretch]:
        stretches = gather(self)
        act()
        return stretches

    monkeypatch.setattr(FetcherPool, "gather", gathered)
    monkeypatch.setattr("storage_audit.scan.fetchers.BATCH_WAIT_SECONDS", 60.0)


Pages = Callable[[str, str, str], Iterator[Entries]]


def listing_as(monkeypatch: pytest.MonkeyPatch, pages: Pages) -> None:
    monkeypatch.setattr(worker, "entry_pages", pages)


def also_listed(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Show keys that the local R2 cannot hold, as other stores can."""

    def listed(bucket: str, prefix: str, after: str) -> Iterator[Entries]:
        for page in entry_pages(bucket, prefix, after):
            yield page + Entries.from_entries(
                Entry(key, 1, "etag", "2026-01-01T00:00:00.000Z") for key in keys
            )

    listing_as(monkeypatch, listed)


def fill(bucket: Bucket, keys: list[str]) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(bucket.put, keys))


def test_each_object_gets_a_row_that_says_what_the_bucket_and_the_key_say(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(KEY, body=b"12345")
    found = backfill()
    row = R2Object.objects.get()
    assert (found.status, figures(found), found.listed_bytes) == ("complete", (1, 1, 0, 0), 5)
    assert (row.bucket, row.key, row.project_id) == (bucket.name, KEY, "proj_1")
    assert (row.scene_id, row.file_type, row.key_format) == ("s1", "mp4", "hierarchical")
    assert (row.size, row.etag) == bucket.facts()[KEY]
    assert (row.source, row.state) == (Source.BACKFILL, State.STORED)
    assert not Finding.objects.exists()
    shard = found.shards.get()
    assert (shard.cursor, shard.listed, shard.complete) == (KEY, 1, True)


@pytest.mark.parametrize(
    ("alive", "deleted", "key", "owner", "kind"),
    [
        (["proj_1"], [], FLAT, "proj_1", None),
        (["proj_1_x"], [], FLAT, "proj_1_x", None),
        ([], ["proj_1"], FLAT, "proj_1", "orphaned"),
        (["proj_1", "proj_1_x"], [], FLAT, None, "ambiguous"),
        (["proj_1"], ["proj_1_x"], FLAT, None, "ambiguous"),
        ([], [], FLAT, None, "ambiguous"),
        ([], [], KEY, "proj_1", "orphaned"),
        (["proj_10"], [], KEY, "proj_1", "orphaned"),
        ([], ["proj_1"], KEY, "proj_1", "orphaned"),
        (["proj_1"], [], "projects/proj_proj_1/scenes/s1/media/a.mp4", "proj_1", "misnamed"),
        (["proj_1"], [], "README.txt", None, "unrecognised"),
    ],
)
def test_owner_of_a_key(
    bucket: Bucket, alive: list[str], deleted: list[str], key: str, owner: str, kind: str
) -> None:
    for project_id in alive:
        Project.objects.create(pk=project_id)
    promises.record_deleted_projects(*deleted)
    bucket.put(key)
    found = backfill()
    assert R2Object.objects.get().project_id == owner
    assert kinds() == ({key: kind} if kind else {})
    assert kind is None or getattr(found, kind) == 1


def test_a_live_project_counts_though_no_sweep_has_seen_it_yet(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    KnownProject.objects.all().delete()
    bucket.put(FLAT)
    backfill()
    assert R2Object.objects.get().project_id == "proj_1"
    assert not KnownProject.objects.exists()


def test_findings_name_the_parsed_keys_as_evidence(bucket: Bucket) -> None:
    bucket.put(FLAT, KEY)
    backfill()
    evidence = dict(Finding.objects.values_list("kind", "evidence"))
    assert evidence == {
        "ambiguous": "name fits proj_1 by key format flat or proj_1_x by key format flat",
        "orphaned": "name fits proj_1 by key format hierarchical; project proj_1 is unknown",
    }
    assert not KnownProject.objects.exists()


def test_a_repeat_writes_no_row(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put(KEY, FLAT, "README.txt")
    assert figures(backfill()) == (4, 3, 0, 1)
    before, seen = stored_rows(), Finding.objects.count()
    assert figures(backfill()) == (4, 0, 0, 4)
    assert stored_rows() == before
    assert Finding.objects.count() == seen


def test_an_overwritten_object_updates_its_row(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(KEY)
    backfill()
    bucket.put(KEY, body=b"longer than before")
    assert figures(backfill()) == (1, 0, 1, 0)
    row = R2Object.objects.get()
    assert (row.size, row.etag) == bucket.facts()[KEY]


def test_an_upload_row_keeps_its_source_and_its_project(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    key = bucket.upload("proj_2")
    R2Object.objects.update(project_id="proj_1")
    bucket.put(key, body=b"overwritten past the application")
    assert figures(backfill()) == (1, 0, 1, 0)
    row = R2Object.objects.get()
    assert (row.source, row.project_id, row.etag) == ("upload", "proj_1", bucket.facts()[key][1])


def test_an_upload_row_decides_over_any_owner_that_its_key_names(bucket: Bucket) -> None:
    for project_id in ("proj_1", "proj_1_x", "proj_2"):
        Project.objects.create(pk=project_id)
    bucket.put(FLAT, KEY)
    backfill()
    assert kinds() == {FLAT: "ambiguous"}
    R2Object.objects.filter(key=FLAT).update(
        project_id="proj_2", source=Source.UPLOAD, unambiguous_under=key_formats_version()
    )
    R2Object.objects.filter(key=KEY).update(project_id=None, source=Source.UPLOAD)
    before = stored_rows()
    assert figures(backfill()) == (2, 0, 0, 2)
    assert stored_rows() == before
    assert kinds() == {}


def test_an_upload_that_seemed_to_fail_is_stored_when_its_object_is_there(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.update(state=State.UPLOAD_FAILED, size=None, etag="", last_modified=None)
    backfill()
    row = R2Object.objects.get()
    assert (row.state, row.size, row.source) == (State.STORED, 4, Source.UPLOAD)


@pytest.mark.parametrize("state", [State.UPLOADING, State.DELETING])
def test_rows_that_an_upload_or_a_cleanup_has_in_hand_are_left_alone(
    bucket: Bucket, state: str
) -> None:
    bucket.upload("proj_1")
    R2Object.objects.update(state=state, size=1)
    Project.objects.all().delete()
    before = stored_rows()
    assert figures(backfill()) == (1, 0, 0, 1)
    assert stored_rows() == before
    assert kinds() == {}


def test_a_row_that_changed_after_it_was_read_is_not_written(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    stale = R2Object.objects.get()
    R2Object.objects.update(state=State.DELETING, updated_at=timezone.now())
    before = stored_rows()
    stale.size = 1
    assert rows.update_rows([stale]) == 0
    assert stored_rows() == before


def test_an_object_deleted_between_the_listing_and_the_writing_gets_no_row_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    kept = bucket.upload("proj_2")
    R2Object.objects.filter(key=kept).delete_without_signals()

    def delete() -> None:
        Project.objects.get(pk="proj_1").delete()
        done = runner.run_to_end(Cleanup.objects.latest("created_at").pk)
        assert done.status == "clean"

    after_listing(monkeypatch, delete)
    assert figures(backfill()) == (2, 1, 0, 1)
    assert [row["key"] for row in stored_rows()] == [kept]
    assert kinds() == {}


def test_an_object_that_a_cleanup_is_deleting_gets_no_row(bucket: Bucket) -> None:
    bucket.put(KEY)
    cleanup = Cleanup.objects.create(kind="project", bucket=bucket.name)
    cleanup.items.create(
        key=KEY, identity=KEY, found_in="listed", outcome=CleanupItem.Outcome.DELETING
    )
    long_ago = timezone.now() - STALE_CALL
    CleanupItem.objects.update(changed_at=long_ago)
    assert figures(backfill()) == (1, 0, 0, 1)
    assert stored_rows() == []
    # A cleanup that is over sends nothing more.
    Cleanup.objects.update(status="superseded", next_attempt_at=None)
    CleanupItem.objects.update(changed_at=timezone.now())
    assert figures(backfill()) == (1, 0, 0, 1)
    CleanupItem.objects.update(changed_at=long_ago)
    assert figures(backfill()) == (1, 1, 0, 0)


def test_a_deletion_of_rows_that_waits_for_its_worker_still_deletes(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.all().delete()
    assert figures(backfill()) == (1, 0, 0, 1)
    cleanup = runner.run_to_end(Cleanup.objects.get().pk)
    assert (cleanup.status, cleanup.deleted) == ("clean", 1)
    assert bucket.keys() == set()


def test_an_upload_between_the_listing_and_the_writing_keeps_its_row(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(KEY)

    def upload() -> None:
        with default_storage.open(KEY, "wb") as file:
            file.write(b"newer")

    after_listing(monkeypatch, upload)
    backfill()
    row = R2Object.objects.get()
    assert (row.source, row.size) == (Source.UPLOAD, 5)


def test_rows_whose_second_check_failed_are_taken_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(KEY)

    def unreachable(*args: object, **kwargs: object) -> dict[str, ListedObject]:
        raise Unavailable("The store cannot be reached.")

    monkeypatch.setattr(rows, "relist_keys", unreachable)
    found = backfill()
    assert (found.status, found.message) == ("failed", "The store cannot be reached.")
    assert stored_rows() == []


def test_a_listing_that_breaks_off_fails_the_scan_and_resolves_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("README.txt")
    backfill()
    bucket.r2.remove("README.txt", bucket.name)
    bucket.put(KEY)

    def broken(bucket: str, prefix: str, after: str) -> Iterator[Entries]:
        yield from entry_pages(bucket, prefix, after)
        raise InvalidResponse("The listing makes no progress.")

    listing_as(monkeypatch, broken)
    found = backfill()
    assert (found.status, found.message) == ("failed", "The listing makes no progress.")
    assert not found.shards.get().complete
    assert R2Object.objects.filter(key=KEY).exists()
    assert kinds() == {"README.txt": "unrecognised"}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_bucket_of_another_database_fails_the_scan(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    bucket.put(KEY)
    lose_marker = partial(bucket.r2.remove, bucket_marker.MARKER_KEY, bucket.name)
    if when == "before":
        lose_marker()
    else:
        after_listing(monkeypatch, lose_marker)
    found = backfill()
    assert found.status == "failed"
    assert "connect_bucket" in found.message
    assert stored_rows() == []


def test_keys_that_no_row_can_name_become_findings_and_stop_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = ["line\nbreak", "bell\x07", "é", "e\u0301", "a/../b", "\u202egnp.exe", "🦊"]
    bucket.put(*hostile)
    also_listed(monkeypatch, "nul\0", "bytes\udcff", "\udcff\0", "\\xff\0")
    found = backfill()
    assert found.status == "complete"
    assert (found.listed, found.added, found.unrecognised, found.unstorable) == (11, 7, 7, 4)
    assert {row["key"] for row in stored_rows()} == set(hostile)
    escaped = Finding.objects.filter(kind="unstorable").values_list("key", "escaped")
    names = ["nul\\x00", "bytes\\xff", "\\xff\\x00", "\\\\xff\\x00"]
    assert set(escaped) == {(name, True) for name in names}
    assert found.shards.get().cursor == max(hostile, key=str.encode)


def test_where_spellings_are_one_object_the_row_has_the_spelling_of_uploads(
    bucket: Bucket,
) -> None:
    bucket.set_marker(folds_unicode=True)
    bucket.put("e\u0301")
    assert figures(backfill()) == (1, 1, 0, 0)
    assert [row["key"] for row in stored_rows()] == ["é"]
    assert figures(backfill()) == (1, 0, 0, 1)


def test_a_finding_follows_the_truth(bucket: Bucket, settings: Settings) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put("old/proj_1/a.mp4", "README.txt")
    backfill()
    assert kinds() == {"old/proj_1/a.mp4": "unrecognised", "README.txt": "unrecognised"}

    plain = settings.STORAGE_AUDIT
    settings.STORAGE_AUDIT = {**plain, "KEY_FORMATS": {"old": "old/{project}/{filename}"}}
    bucket.r2.remove("README.txt", bucket.name)
    assert figures(backfill()) == (1, 0, 1, 0)
    assert R2Object.objects.get(key="old/proj_1/a.mp4").project_id == "proj_1"
    assert kinds() == {"README.txt": "missing"}
    R2Object.objects.filter(key="README.txt").delete_without_signals()

    settings.STORAGE_AUDIT = plain
    backfill()
    assert kinds() == {"old/proj_1/a.mp4": "unrecognised"}
    assert Finding.objects.count() == 3


def test_a_finding_that_a_person_ignored_stays_so(bucket: Bucket) -> None:
    bucket.put("README.txt")
    backfill()
    Finding.objects.update(state="ignored", note="ours")
    backfill()
    finding = Finding.objects.get()
    assert (finding.state, finding.note) == ("ignored", "ours")


def test_a_prefix_leaves_all_else_as_it_is(bucket: Bucket) -> None:
    bucket.put("a1", "a2", "b1")
    backfill()
    for key in ("a2", "b1"):
        bucket.r2.remove(key, bucket.name)
    found = backfill("a")
    assert figures(found) == (1, 0, 0, 1)
    assert list_open_findings() == {
        ("a1", "unrecognised"),
        ("a2", "missing"),
        ("b1", "unrecognised"),
    }


def test_a_dry_run_counts_the_same_and_writes_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.update(size=1)
    bucket.put(KEY, "README.txt")
    before = stored_rows()
    dry = backfill(dry_run=True)
    assert stored_rows() == before
    assert not Finding.objects.exists()
    real = backfill()
    assert figures(dry) == figures(real) == (3, 2, 1, 0)
    assert dry.unrecognised == real.unrecognised == 1


def test_a_scan_that_is_interrupted_says_so_and_can_be_repeated(bucket: Bucket) -> None:
    bucket.put(KEY)
    found = start_scan()
    steps = work_on_scan(found)
    next(steps)
    steps.close()
    found.refresh_from_db()
    assert (found.status, found.added) == ("stopped", 1)
    assert "Resume the scan" in found.message
    assert figures(backfill()) == (1, 0, 0, 1)


def test_an_error_of_ours_is_recorded_without_secrets_and_raised(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def fails() -> None:
        raise RuntimeError(settings.STORAGE_AUDIT["SECRET_ACCESS_KEY"])

    after_listing(monkeypatch, fails)
    with pytest.raises(RuntimeError):
        backfill()
    assert BucketScan.objects.get().message == "RuntimeError: [redacted]"


def test_several_pages(bucket: Bucket) -> None:
    keys = [f"projects/proj_{i % 7}/scenes/s1/media/{i:05}.mp4" for i in range(2500)]
    Project.objects.create(pk="proj_3")
    fill(bucket, keys)
    try:
        assert figures(backfill()) == (2500, 2500, 0, 0)
        assert set(R2Object.objects.values_list("key", flat=True)) == set(keys)
        assert Finding.objects.exclude(project_id="proj_3").count() == Finding.objects.count()
        assert figures(backfill()) == (2500, 0, 0, 2500)
    finally:
        for start in range(0, len(keys), 1000):
            s3.delete_batch(bucket.name, keys[start : start + 1000])


def page_of(size: int, prefix: str) -> list[Entry]:
    at = "2026-01-01T00:00:00.000Z"
    return [Entry(f"{prefix}/proj_{i:04}/s1/a.mp3", 1, f"etag{i}", at) for i in range(size)]


def statements(act: Callable[[], object]) -> list[str]:
    """The queries; those of one statement that Django splits for SQLite count once."""
    with CaptureQueriesContext(
        connection,
    ) as context:
        act()
    return [start for start, _all in groupby(query["sql"][:60] for query in context)]


def test_queries_do_not_grow_with_a_page(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"MEDIA_KINDS": ["audio", "images"]}
    monkeypatch.setattr(rows, "relist_keys", lambda bucket, keys, **how: keys)
    found, token = start_scan(), uuid4()
    found.shards.acquire_leases(token, 1)
    found.shards.update(
        lease_until=timezone.now() + timedelta(seconds=110)
    )  # Not prolonged meanwhile.

    def record(size: int, prefix: str) -> list[str]:
        stretch = Stretch(found.shards.get(), prefix, prefix, timezone.now())
        stretch.add(
            ShardPage.of(stretch.shard, Entries.from_entries(page_of(size, prefix)), stretch.asked)
        )
        return statements(lambda: listing_in_memory.record_stretches(found, token, [stretch]))

    first = record(100, "audio"), record(900, "images")
    assert len(first[0]) == len(first[1])
    again = record(100, "audio"), record(900, "images")
    assert len(again[0]) == len(again[1]) < 16
    assert figures(found) == (2000, 1000, 0, 1000)


def test_row_backfilled_while_the_application_deletes_the_object_goes_with_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(KEY)
    real = s3.delete_single

    def backfill_first(*args: str) -> s3.Answer:
        backfill()
        return real(*args)

    monkeypatch.setattr(s3, "delete_single", backfill_first)
    default_storage.delete(KEY)
    assert bucket.keys() == set()
    assert not R2Object.objects.exists()
