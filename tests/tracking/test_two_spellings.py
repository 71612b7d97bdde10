"""Two rows for two spellings of one object, on a store that folds them: rows that name two projects
keep the object."""

from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any
from unicodedata import normalize

import pytest
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import (
    given_objects,
    named_files,
    project_uploads,
    requests,
    verify,
)
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.named_files import NamedFile
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.tracking.untrack import rows_to_keep
from tests.builders import create_findings, list_ids
from tests.faults.kinds import confirm_without_deleting
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import FaultyStore
from tests.findings.orphans import request_deletion
from tests.keys import NFC, NFD
from tests.promises import (
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_again,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import read_findings, run_backfill

OWN = "projects/proj_1/scenes/s/media/own.mp4"
# Which of the two rows is written, and found, last must make no difference.
each_order = pytest.mark.parametrize("mine, other", [(NFC, NFD), (NFD, NFC)])
# A backfill's row grants nothing, and keeps the object all the same.
each_source = pytest.mark.parametrize(
    "source, others",
    [("upload", "backfill"), ("backfill", "upload"), ("backfill", "backfill")],
)


@pytest.fixture
def folding(bucket: Bucket) -> Bucket:
    bucket.set_marker(folds_unicode=True)
    return bucket


@each_order
def test_object_that_a_live_projects_row_names_is_kept(
    folding: Bucket, mine: str, other: str
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, mine, "proj_1")
    track_key(folding, other, "proj_2")
    folding.put(NFD, OWN)
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {NFD: "kept", OWN: "deleted"}
    assert "proj_1, proj_2" in read_reason(cleanup, NFD)
    assert set(folding.facts()) >= {NFD}
    assert set(R2Object.objects.values_list("key", flat=True)) == {NFC, NFD}
    check_promises(folding)


@each_order
@each_source
def test_object_that_a_live_projects_row_of_any_source_names_is_kept(
    folding: Bucket, mine: str, other: str, source: str, others: str
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, mine, "proj_1", source)
    track_key(folding, other, "proj_2", others)
    folding.put(NFD, OWN)
    cleanup = clean_up_project("proj_1")
    left = {key: outcome for key, outcome in read_outcomes(cleanup).items() if key != OWN}
    assert read_outcomes(cleanup)[OWN] == "deleted" and set(left.values()) == {"kept"}
    assert NFD in folding.facts()
    check_promises(folding)


def test_backfilled_row_of_a_live_project_keeps_an_object_whose_key_names_a_deleted_one(
    bucket: Bucket,
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(bucket, OWN, "proj_2", "backfill")
    bucket.put(OWN)
    [plan] = requests.request_preview("proj_1")
    assert read_outcomes(run_until_idle(plan)) == {OWN: "kept"}
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {OWN: "kept"}
    assert "proj_2" in read_reason(cleanup, OWN)


def test_backfilled_row_of_a_deleted_project_keeps_nothing(bucket: Bucket) -> None:
    record_deleted_projects("proj_2")
    create_projects("proj_1")
    track_key(bucket, OWN, "proj_2", "backfill")
    bucket.put(OWN)
    assert read_outcomes(clean_up_project("proj_1")) == {OWN: "deleted"}


@each_order
def test_backfilled_row_that_comes_after_the_plan_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, mine, "proj_1")
    folding.put(NFD)
    act_before_batch(monkeypatch, lambda: track_key(folding, other, "proj_2", "backfill"))
    assert read_outcomes(clean_up_project("proj_1")) == {NFD: "kept"}
    assert NFD in folding.facts()


@each_order
def test_row_that_comes_after_the_plan_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, mine, "proj_1")
    folding.put(NFD)
    act_before_batch(monkeypatch, lambda: track_key(folding, other, "proj_2"))
    assert read_outcomes(clean_up_project("proj_1")) == {NFD: "kept"}
    assert NFD in folding.facts()


@each_order
def test_upload_under_way_at_any_spelling_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    track_key(folding, mine, "proj_1")
    folding.put(NFD)
    act_before_batch(monkeypatch, lambda: track_key(folding, other, "proj_1", state="uploading"))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {NFD: "kept"}
    assert "in progress" in read_reason(cleanup, NFD)


@each_order
def test_orphan_that_two_rows_name_is_kept(
    folding: Bucket, mine: str, other: str, settings: Settings
) -> None:
    record_deleted_projects("proj_1")
    create_projects("proj_3")
    track_key(folding, mine, "proj_1")
    track_key(folding, other, "proj_2")
    folding.put(NFD)
    run_backfill()
    assert read_findings() == {("ambiguous", NFD)}
    Finding.objects.all().delete()
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(microseconds=1)}
    cleanup = run_until_idle(request_deletion(create_findings(folding, NFD)))
    assert read_outcomes(cleanup) == {NFD: "kept"}
    assert NFD in folding.facts()


@each_order
@pytest.mark.parametrize("source", ["upload", "backfill"])
def test_unfinished_upload_that_two_rows_name_is_not_aborted(
    folding: Bucket, mine: str, other: str, source: str
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, mine, "proj_1", source)
    track_key(folding, other, "proj_2", source)
    cleanup = request_cleanup("proj_1")
    with transaction.atomic():
        assert cleanup.acquire_lease()
    work = Turn.start(cleanup)
    upload = MultipartUpload(NFC, "id", timezone.now() - timedelta(days=9))
    assert not list(project_uploads.find_owned_uploads(work, [upload]))


@each_order
def test_verification_calls_the_object_of_two_projects_kept(
    folding: Bucket, mine: str, other: str
) -> None:
    record_deleted_projects("proj_1")
    create_projects("proj_2")
    track_key(folding, mine, "proj_1")
    track_key(folding, other, "proj_2")
    folding.put(NFD)
    [verification] = requests.request_verification("proj_1")
    assert read_outcomes(run_until_idle(verification))[NFD] == "kept"
    check_promises(folding)


@each_order
def test_verification_does_not_call_an_object_gone_that_is_another_projects(
    folding: Bucket, mine: str, other: str
) -> None:
    record_deleted_projects("proj_1")
    create_projects("proj_2")
    track_key(folding, mine, "proj_1", "backfill")
    track_key(folding, other, "proj_2", "assigned")
    folding.put(NFD)
    [verification] = requests.request_verification("proj_1")
    assert run_until_idle(verification).message == "0 leftover, 0 confirmed gone."


def test_verification_of_a_live_project_does_not_call_an_object_with_two_rows_missing(
    folding: Bucket,
) -> None:
    create_projects("proj_1", "proj_2")
    track_key(folding, NFD, "proj_1", "backfill")
    track_key(folding, NFC, "proj_2", "assigned")
    folding.put(NFD)
    [verification] = requests.request_verification("proj_1")
    assert run_until_idle(verification).message == "1 as expected, 0 missing, 0 untracked."


def test_verification_of_a_cleanup_sees_an_object_that_is_another_projects_by_now(
    folding: Bucket,
) -> None:
    create_projects("proj_1", "proj_2")
    folding.put(NFC)
    cleanup = clean_up_project("proj_1")
    folding.put(NFD)
    track_key(folding, NFD, "proj_2", "assigned")
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert found.message == "0 leftover, 0 confirmed gone."


def test_file_is_not_called_deleted_when_the_store_was_found_to_tell_spellings_apart(
    folding: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    folding.put(NFD)
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    look, todo = verify.relist_bucket, [partial(folding.set_marker, folds_unicode=False)]

    def learn_first(work: Turn) -> None:
        while todo:
            todo.pop()()
        look(work)

    monkeypatch.setattr(verify, "relist_bucket", learn_first)
    cleanup = run_again(clean_up_project("proj_1"))
    check_promises(folding)
    assert list(cleanup.items.values_list("key", "outcome")) == [(NFD, "failed")]


@each_order
def test_assigning_the_object_settles_both_rows(folding: Bucket, mine: str, other: str) -> None:
    record_deleted_projects("proj_1")
    create_projects("proj_2", "proj_3")
    track_key(folding, mine, "proj_1")
    track_key(folding, other, "proj_2")
    folding.put(NFD)
    call_command("backfill_r2")
    decision = track_files.assign_objects(
        list(Finding.objects.values_list("pk", flat=True)), "proj_3"
    )
    assert decision.skipped == []
    assert set(R2Object.objects.values_list("project_id", flat=True)) == {"proj_3"}
    assert read_outcomes(clean_up_project("proj_3"))[NFD] == "deleted"


def test_file_named_by_rows_counts_once_whatever_its_spelling(bucket: Bucket) -> None:
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1")
    key = "projects/proj_1/scenes/e\u0301.txt"
    bucket.put(key)
    cleanup = request_cleanup("proj_1")
    for spelling in (key, normalize("NFC", key)):
        named_files.add_named_files(
            [cleanup], [NamedFile(bucket.name, spelling, "shop.Cover 1, field file")]
        )
    cleanup = run_until_idle(cleanup)
    assert (cleanup.found, cleanup.kept) == (1, 1)
    check_promises(bucket)


@pytest.mark.parametrize("etag", ["", "of an earlier object"])
def test_object_whose_two_rows_are_deleted_counts_once(bucket: Bucket, etag: str) -> None:
    """Unless the rows describe two objects, of which one is there."""
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1")
    bucket.put(NFD)
    seen = s3.head_object(bucket.name, NFD)
    facts: dict[str, Any] = {
        "size": seen.size,
        "etag": seen.etag,
        "last_modified": seen.last_modified,
    }
    track_key(bucket, NFC, "proj_1", **facts | ({"etag": etag} if etag else {}))
    track_key(bucket, NFD, "proj_1", **facts)
    R2Object.objects.all().delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert (cleanup.found, cleanup.kept) == ((2, 1) if etag else (1, 0))
    assert not bucket.keys()
    check_promises(bucket)


@each_order
@pytest.mark.parametrize("facts", [{}, {"size": 7, "etag": "of an earlier object"}])
def test_deleting_two_rows_keeps_the_file_that_an_upload_to_one_of_them_stores(
    folding: Bucket, mine: str, other: str, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the rows say the same of it."""
    create_projects("proj_1")
    folding.put(NFD)
    track_key(folding, mine, "proj_1", state="upload_failed")
    track_key(folding, other, "proj_1", state="uploading", **facts)
    R2Object.objects.all().delete()
    later = timezone.now() + timedelta(hours=2)
    Cleanup.objects.update(created_at=later)
    monkeypatch.setattr(timezone, "now", lambda: later)
    cleanup = run_until_idle(Cleanup.objects.get())
    assert folding.keys() == {NFD}
    assert cleanup.found == cleanup.kept == (2 if facts else 1)


def connect_again(
    bucket: Bucket, patch: pytest.MonkeyPatch, module: Any, name: str, *, folds_unicode: bool = True
) -> None:
    """Let connect_bucket learn once, just before this is called, whether the store folds keys."""
    original = getattr(module, name)
    todo = [partial(bucket.set_marker, folds_unicode=folds_unicode)]

    def claim_first(*args: Any) -> Any:
        while todo:
            todo.pop()()
        return original(*args)

    patch.setattr(module, name, claim_first)


# The first is within the plan, the others within the look at the marker with which a turn begins.
each_moment = pytest.mark.parametrize(
    ("module", "name"),
    [(project_uploads, "record_unfinished_uploads"), (bucket_marker, "require_same_database")],
)


@each_moment
def test_named_file_counts_once_when_the_bucket_is_connected_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    key = "files/e\u0301.txt"
    bucket.put(key)
    track_key(bucket, normalize("NFC", key), "proj_1")
    named_files.add_named_files(
        [cleanup], [NamedFile(bucket.name, key, "shop.Cover 1, field file")]
    )
    connect_again(bucket, monkeypatch, module, name)
    assert "connected again" in run_until_idle(cleanup).message
    assert run_again(cleanup).found == 1
    check_promises(bucket)


@each_moment
def test_object_of_two_rows_counts_once_when_the_bucket_is_connected_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    create_projects("proj_1")
    bucket.put(NFD)
    seen = s3.head_object(bucket.name, NFD)._asdict()
    for key in (NFC, seen.pop("key")):
        track_key(bucket, key, "proj_1", **seen)
    R2Object.objects.all().delete()
    connect_again(bucket, monkeypatch, module, name)
    cleanup = run_until_idle(Cleanup.objects.get())
    assert "connected again" in cleanup.message
    assert run_again(cleanup).found == 1
    check_promises(bucket)


@each_order
def test_upload_that_keeps_one_row_keeps_both_when_the_bucket_is_connected_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, mine: str, other: str
) -> None:
    """The first pass saw the object of the one row, and none of the other."""
    create_projects("proj_1")
    bucket.put(mine)
    seen = s3.head_object(bucket.name, mine)._asdict()
    track_key(bucket, seen.pop("key"), "proj_1", state="uploading")
    track_key(bucket, other, "proj_1", **seen)
    R2Object.objects.all().delete()
    connect_again(bucket, monkeypatch, project_uploads, "record_unfinished_uploads")
    cleanup = run_until_idle(Cleanup.objects.get())
    assert "connected again" in cleanup.message
    assert run_again(cleanup).deleted == 0
    assert bucket.keys() == {mine}


@each_order
@each_moment
def test_plan_that_starts_again_deletes_the_file_of_the_row_that_describes_it(
    folding: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    mine: str,
    other: str,
    module: Any,
    name: str,
) -> None:
    """As it does without a pause. The other row describes an earlier file of the key."""
    create_projects("proj_1")
    folding.put(NFD)
    seen = s3.head_object(folding.name, NFD)._asdict()
    seen.pop("key")
    track_key(folding, mine, "proj_1", **seen)
    track_key(folding, other, "proj_1", **seen | {"etag": "of an earlier file"})
    R2Object.objects.all().delete()
    connect_again(folding, monkeypatch, module, name)
    cleanup = run_until_idle(Cleanup.objects.get())
    assert "connected again" in cleanup.message
    cleanup = run_again(cleanup)
    assert (cleanup.found, cleanup.deleted, cleanup.kept) == (2, 1, 1)
    assert not folding.keys()
    check_promises(folding)


def test_two_files_are_two_items_once_the_bucket_tells_their_spellings_apart(
    folding: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    named, tracked = "files/e\u0301.txt", "files/\u00e9.txt"
    folding.put(named, tracked)
    track_key(folding, tracked, "proj_1")
    cleanup = request_cleanup("proj_1")
    named_files.add_named_files(
        [cleanup], [NamedFile(folding.name, named, "shop.Cover 1, field file")]
    )
    connect_again(
        folding, monkeypatch, project_uploads, "record_unfinished_uploads", folds_unicode=False
    )
    assert "connected again" in run_until_idle(cleanup).message
    assert run_again(cleanup).found == 2
    check_promises(folding)


def test_items_are_merged_some_at_a_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spelling that is an item may come in an earlier piece, or in a later one, or in none."""
    monkeypatch.setattr(given_objects, "ITEMS_PER_TRANSACTION", 1)
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    letters = [("e\u0301", "\u00e9"), ("\u212a",), ("o\u0308", "\u00f6")]
    for spelling in chain(*letters):
        named_files.add_named_files(
            [cleanup], [NamedFile(bucket.name, f"files/{spelling}", "shop.Cover 1")]
        )
    cleanup = run_until_idle(cleanup)
    found = set(cleanup.items.values_list("identity", flat=True))
    assert found == {"files/\u00e9", "files/K", "files/\u00f6"}
    assert (cleanup.found, cleanup.items.count()) == (3, 3)


@each_order
def test_row_of_either_spelling_says_which_blocked_cleanup_covers_the_object(
    folding: Bucket, settings: Settings, mine: str, other: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    create_projects("proj_2", "proj_3")
    record_deleted_projects("proj_1")
    folding.put(NFC)
    track_key(folding, mine, None, "backfill")
    track_key(folding, other, "proj_2", "assigned")
    blocked = clean_up_project("proj_2")
    assert blocked.status == blocked.Status.BLOCKED
    [left] = track_files.assign_objects(list_ids(create_findings(folding, NFC)), "proj_3").skipped
    assert str(blocked.pk) in left.reason
    for name in (NFC, NFD):
        default_storage.delete(name)
    assert folding.keys() == {NFC}


def test_row_that_keeps_an_object_from_the_cleanup_of_its_other_row_is_not_untracked(
    folding: Bucket,
) -> None:
    create_projects("proj_2", "proj_3")
    folding.put(NFC)
    row = track_key(folding, NFC, "proj_2", "assigned")
    track_key(folding, NFD, "proj_3", "assigned")
    cleanup = request_cleanup("proj_3")
    kept = rows_to_keep(R2Object.objects.filter(pk=row.pk))
    assert str(cleanup.pk) in kept[row.pk].reason
    # Without both rows, it is the file of the project that its name says.
    assert not rows_to_keep(R2Object.objects.all())


def test_row_of_another_object_does_not_say_that_a_cleanup_leaves_the_file(bucket: Bucket) -> None:
    """The store tells the two spellings apart."""
    create_projects("proj_1", "proj_2", "proj_3")
    cleanup = request_cleanup("proj_1")
    row = track_key(bucket, NFC, "proj_2", "assigned")
    track_key(bucket, NFD, "proj_3", "upload")
    kept = rows_to_keep(R2Object.objects.filter(pk=row.pk))
    assert str(cleanup.pk) in kept[row.pk].reason
