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
from storage_audit.bucket.multipart import Upload
from storage_audit.cleanup import delete_batches, named_files, policies, requests, runner, verify
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.named_files import Named
from storage_audit.cleanup.turn import Work
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.tracking.untrack import kept_by_rows
from tests.builders import create_findings, list_ids
from tests.faults.kinds import lies
from tests.faults.matching import is_delete_batch, on
from tests.faults.proxy import FaultyStore
from tests.findings.orphans import request_deletion
from tests.keys import NFC, NFD
from tests.promises import (
    again,
    alive,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    outcomes,
    reason,
    requested,
    run,
    track,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import backfill, findings

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
    alive("proj_1", "proj_2")
    track(folding, mine, "proj_1")
    track(folding, other, "proj_2")
    folding.put(NFD, OWN)
    operation = delete("proj_1")
    assert outcomes(operation) == {NFD: "protected", OWN: "deleted"}
    assert "proj_1, proj_2" in reason(operation, NFD)
    assert set(folding.facts()) >= {NFD}
    assert set(R2Object.objects.values_list("key", flat=True)) == {NFC, NFD}
    check(folding)


@each_order
@each_source
def test_object_that_a_live_projects_row_of_any_source_names_is_kept(
    folding: Bucket, mine: str, other: str, source: str, others: str
) -> None:
    alive("proj_1", "proj_2")
    track(folding, mine, "proj_1", source)
    track(folding, other, "proj_2", others)
    folding.put(NFD, OWN)
    operation = delete("proj_1")
    left = {key: outcome for key, outcome in outcomes(operation).items() if key != OWN}
    assert outcomes(operation)[OWN] == "deleted" and set(left.values()) == {"protected"}
    assert NFD in folding.facts()
    check(folding)


def test_backfilled_row_of_a_live_project_keeps_an_object_whose_key_names_a_deleted_one(
    bucket: Bucket,
) -> None:
    alive("proj_1", "proj_2")
    track(bucket, OWN, "proj_2", "backfill")
    bucket.put(OWN)
    [plan] = requests.dry_run("proj_1")
    assert outcomes(run(plan)) == {OWN: "protected"}
    operation = delete("proj_1")
    assert outcomes(operation) == {OWN: "protected"}
    assert "proj_2" in reason(operation, OWN)


def test_backfilled_row_of_a_deleted_project_keeps_nothing(bucket: Bucket) -> None:
    deleted("proj_2")
    alive("proj_1")
    track(bucket, OWN, "proj_2", "backfill")
    bucket.put(OWN)
    assert outcomes(delete("proj_1")) == {OWN: "deleted"}


@each_order
def test_backfilled_row_that_comes_after_the_plan_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1", "proj_2")
    track(folding, mine, "proj_1")
    folding.put(NFD)
    between_plan_and_batch(monkeypatch, lambda: track(folding, other, "proj_2", "backfill"))
    assert outcomes(delete("proj_1")) == {NFD: "protected"}
    assert NFD in folding.facts()


@each_order
def test_row_that_comes_after_the_plan_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1", "proj_2")
    track(folding, mine, "proj_1")
    folding.put(NFD)
    between_plan_and_batch(monkeypatch, lambda: track(folding, other, "proj_2"))
    assert outcomes(delete("proj_1")) == {NFD: "protected"}
    assert NFD in folding.facts()


@each_order
def test_upload_under_way_at_any_spelling_keeps_the_object(
    folding: Bucket, mine: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    track(folding, mine, "proj_1")
    folding.put(NFD)
    between_plan_and_batch(monkeypatch, lambda: track(folding, other, "proj_1", state="uploading"))
    operation = delete("proj_1")
    assert outcomes(operation) == {NFD: "protected"}
    assert "under way" in reason(operation, NFD)


@each_order
def test_orphan_that_two_rows_name_is_kept(
    folding: Bucket, mine: str, other: str, settings: Settings
) -> None:
    deleted("proj_1")
    alive("proj_3")
    track(folding, mine, "proj_1")
    track(folding, other, "proj_2")
    folding.put(NFD)
    backfill()
    assert findings() == {("ambiguous", NFD)}
    Finding.objects.all().delete()
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(microseconds=1)}
    operation = run(request_deletion(create_findings(folding, NFD)))
    assert outcomes(operation) == {NFD: "protected"}
    assert NFD in folding.facts()


@each_order
@pytest.mark.parametrize("source", ["upload", "backfill"])
def test_unfinished_upload_that_two_rows_name_is_not_aborted(
    folding: Bucket, mine: str, other: str, source: str
) -> None:
    alive("proj_1", "proj_2")
    track(folding, mine, "proj_1", source)
    track(folding, other, "proj_2", source)
    operation = requested("proj_1")
    with transaction.atomic():
        assert operation.claim()
    work = Work.begin(operation)
    upload = Upload(NFC, "id", timezone.now() - timedelta(days=9))
    assert not list(delete_batches.owned_uploads(work, [upload]))


@each_order
def test_verification_calls_the_object_of_two_projects_kept(
    folding: Bucket, mine: str, other: str
) -> None:
    deleted("proj_1")
    alive("proj_2")
    track(folding, mine, "proj_1")
    track(folding, other, "proj_2")
    folding.put(NFD)
    [verification] = requests.verify_project("proj_1")
    assert outcomes(run(verification))[NFD] == "protected"
    check(folding)


@each_order
def test_verification_does_not_call_an_object_absent_that_is_another_projects(
    folding: Bucket, mine: str, other: str
) -> None:
    deleted("proj_1")
    alive("proj_2")
    track(folding, mine, "proj_1", "backfill")
    track(folding, other, "proj_2", "adopted")
    folding.put(NFD)
    [verification] = requests.verify_project("proj_1")
    assert run(verification).error == "0 left behind, 0 seen absent."


def test_verification_of_a_live_project_does_not_call_an_object_with_two_rows_missing(
    folding: Bucket,
) -> None:
    alive("proj_1", "proj_2")
    track(folding, NFD, "proj_1", "backfill")
    track(folding, NFC, "proj_2", "adopted")
    folding.put(NFD)
    [verification] = requests.verify_project("proj_1")
    assert run(verification).error == "1 in step, 0 missing, 0 untracked."


def test_verification_of_a_cleanup_sees_an_object_that_is_another_projects_by_now(
    folding: Bucket,
) -> None:
    alive("proj_1", "proj_2")
    folding.put(NFC)
    operation = delete("proj_1")
    folding.put(NFD)
    track(folding, NFD, "proj_2", "adopted")
    found = run(requests.verify_operation(operation))
    assert found.error == "0 left behind, 0 seen absent."


def test_file_is_not_called_deleted_when_the_store_was_found_to_tell_spellings_apart(
    folding: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    folding.put(NFD)
    store.rules.append(on(is_delete_batch, lies))
    look, todo = verify.look, [partial(folding.set_marker, folds_unicode=False)]

    def learn_first(work: Work) -> None:
        while todo:
            todo.pop()()
        look(work)

    monkeypatch.setattr(verify, "look", learn_first)
    operation = again(delete("proj_1"))
    check(folding)
    assert list(operation.items.values_list("key", "outcome")) == [(NFD, "failed")]


@each_order
def test_adopting_the_object_settles_both_rows(folding: Bucket, mine: str, other: str) -> None:
    deleted("proj_1")
    alive("proj_2", "proj_3")
    track(folding, mine, "proj_1")
    track(folding, other, "proj_2")
    folding.put(NFD)
    call_command("backfill_r2")
    decision = track_files.adopt(list(Finding.objects.values_list("pk", flat=True)), "proj_3")
    assert decision.left == []
    assert set(R2Object.objects.values_list("project_id", flat=True)) == {"proj_3"}
    assert outcomes(delete("proj_3"))[NFD] == "deleted"


def test_file_named_by_rows_counts_once_whatever_its_spelling(bucket: Bucket) -> None:
    bucket.set_marker(folds_unicode=True)
    alive("proj_1")
    key = "projects/proj_1/scenes/e\u0301.txt"
    bucket.put(key)
    operation = requested("proj_1")
    for spelling in (key, normalize("NFC", key)):
        named_files.note([operation], [Named(bucket.name, spelling, "shop.Cover 1, field file")])
    operation = run(operation)
    assert (operation.found, operation.protected) == (1, 1)
    check(bucket)


@pytest.mark.parametrize("etag", ["", "of an earlier object"])
def test_object_whose_two_rows_are_deleted_counts_once(bucket: Bucket, etag: str) -> None:
    """Unless the rows describe two objects, of which one is there."""
    bucket.set_marker(folds_unicode=True)
    alive("proj_1")
    bucket.put(NFD)
    seen = s3.head(bucket.name, NFD)
    facts: dict[str, Any] = {
        "size": seen.size,
        "etag": seen.etag,
        "last_modified": seen.last_modified,
    }
    track(bucket, NFC, "proj_1", **facts | ({"etag": etag} if etag else {}))
    track(bucket, NFD, "proj_1", **facts)
    R2Object.objects.all().delete()
    operation = run(CleanupOperation.objects.get())
    assert (operation.found, operation.protected) == ((2, 1) if etag else (1, 0))
    assert not bucket.keys()
    check(bucket)


@each_order
@pytest.mark.parametrize("facts", [{}, {"size": 7, "etag": "of an earlier object"}])
def test_deleting_two_rows_keeps_the_file_that_an_upload_to_one_of_them_stores(
    folding: Bucket, mine: str, other: str, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the rows say the same of it."""
    alive("proj_1")
    folding.put(NFD)
    track(folding, mine, "proj_1", state="upload_failed")
    track(folding, other, "proj_1", state="uploading", **facts)
    R2Object.objects.all().delete()
    later = timezone.now() + timedelta(hours=2)
    CleanupOperation.objects.update(created_at=later)
    monkeypatch.setattr(timezone, "now", lambda: later)
    operation = run(CleanupOperation.objects.get())
    assert folding.keys() == {NFD}
    assert operation.found == operation.protected == (2 if facts else 1)


def claim_again(
    bucket: Bucket, patch: pytest.MonkeyPatch, module: Any, name: str, *, folds_unicode: bool = True
) -> None:
    """Let claim_bucket learn once, just before this is called, whether the store folds keys."""
    original = getattr(module, name)
    todo = [partial(bucket.set_marker, folds_unicode=folds_unicode)]

    def claim_first(*args: Any) -> Any:
        while todo:
            todo.pop()()
        return original(*args)

    patch.setattr(module, name, claim_first)


# The first is within the plan, the others within the look at the marker with which a turn begins.
each_moment = pytest.mark.parametrize(
    ("module", "name"), [(runner, "look_for_uploads"), (bucket_marker, "see_marker")]
)


@each_moment
def test_named_file_counts_once_when_the_bucket_is_claimed_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    alive("proj_1")
    operation = requested("proj_1")
    key = "files/e\u0301.txt"
    bucket.put(key)
    track(bucket, normalize("NFC", key), "proj_1")
    named_files.note([operation], [Named(bucket.name, key, "shop.Cover 1, field file")])
    claim_again(bucket, monkeypatch, module, name)
    assert "claimed again" in run(operation).error
    assert again(operation).found == 1
    check(bucket)


@each_moment
def test_object_of_two_rows_counts_once_when_the_bucket_is_claimed_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    alive("proj_1")
    bucket.put(NFD)
    seen = s3.head(bucket.name, NFD)._asdict()
    for key in (NFC, seen.pop("key")):
        track(bucket, key, "proj_1", **seen)
    R2Object.objects.all().delete()
    claim_again(bucket, monkeypatch, module, name)
    operation = run(CleanupOperation.objects.get())
    assert "claimed again" in operation.error
    assert again(operation).found == 1
    check(bucket)


@each_order
def test_upload_that_keeps_one_row_keeps_both_when_the_bucket_is_claimed_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, mine: str, other: str
) -> None:
    """The first pass saw the object of the one row, and none of the other."""
    alive("proj_1")
    bucket.put(mine)
    seen = s3.head(bucket.name, mine)._asdict()
    track(bucket, seen.pop("key"), "proj_1", state="uploading")
    track(bucket, other, "proj_1", **seen)
    R2Object.objects.all().delete()
    claim_again(bucket, monkeypatch, runner, "look_for_uploads")
    operation = run(CleanupOperation.objects.get())
    assert "claimed again" in operation.error
    assert again(operation).deleted == 0
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
    alive("proj_1")
    folding.put(NFD)
    seen = s3.head(folding.name, NFD)._asdict()
    seen.pop("key")
    track(folding, mine, "proj_1", **seen)
    track(folding, other, "proj_1", **seen | {"etag": "of an earlier file"})
    R2Object.objects.all().delete()
    claim_again(folding, monkeypatch, module, name)
    operation = run(CleanupOperation.objects.get())
    assert "claimed again" in operation.error
    operation = again(operation)
    assert (operation.found, operation.deleted, operation.protected) == (2, 1, 1)
    assert not folding.keys()
    check(folding)


def test_two_files_are_two_items_once_the_bucket_tells_their_spellings_apart(
    folding: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    named, tracked = "files/e\u0301.txt", "files/\u00e9.txt"
    folding.put(named, tracked)
    track(folding, tracked, "proj_1")
    operation = requested("proj_1")
    named_files.note([operation], [Named(folding.name, named, "shop.Cover 1, field file")])
    claim_again(folding, monkeypatch, runner, "look_for_uploads", folds_unicode=False)
    assert "claimed again" in run(operation).error
    assert again(operation).found == 2
    check(folding)


def test_items_are_merged_some_at_a_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spelling that is an item may come in an earlier piece, or in a later one, or in none."""
    monkeypatch.setattr(policies, "TOGETHER", 1)
    bucket.set_marker(folds_unicode=True)
    alive("proj_1")
    operation = requested("proj_1")
    letters = [("e\u0301", "\u00e9"), ("\u212a",), ("o\u0308", "\u00f6")]
    for spelling in chain(*letters):
        named_files.note([operation], [Named(bucket.name, f"files/{spelling}", "shop.Cover 1")])
    operation = run(operation)
    found = set(operation.items.values_list("identity", flat=True))
    assert found == {"files/\u00e9", "files/K", "files/\u00f6"}
    assert (operation.found, operation.items.count()) == (3, 3)


@each_order
def test_row_of_either_spelling_says_which_blocked_cleanup_covers_the_object(
    folding: Bucket, settings: Settings, mine: str, other: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    alive("proj_2", "proj_3")
    deleted("proj_1")
    folding.put(NFC)
    track(folding, mine, None, "backfill")
    track(folding, other, "proj_2", "adopted")
    blocked = delete("proj_2")
    assert blocked.status == blocked.Status.BLOCKED
    [left] = track_files.adopt(list_ids(create_findings(folding, NFC)), "proj_3").left
    assert str(blocked.pk) in left.reason
    for name in (NFC, NFD):
        default_storage.delete(name)
    assert folding.keys() == {NFC}


def test_row_that_keeps_an_object_from_the_cleanup_of_its_other_row_is_not_untracked(
    folding: Bucket,
) -> None:
    alive("proj_2", "proj_3")
    folding.put(NFC)
    row = track(folding, NFC, "proj_2", "adopted")
    track(folding, NFD, "proj_3", "adopted")
    operation = requested("proj_3")
    kept = kept_by_rows(R2Object.objects.filter(pk=row.pk))
    assert str(operation.pk) in kept[row.pk].reason
    # Without both rows, it is the file of the project that its name says.
    assert not kept_by_rows(R2Object.objects.all())


def test_row_of_another_object_does_not_say_that_a_cleanup_leaves_the_file(bucket: Bucket) -> None:
    """The store tells the two spellings apart."""
    alive("proj_1", "proj_2", "proj_3")
    operation = requested("proj_1")
    row = track(bucket, NFC, "proj_2", "adopted")
    track(bucket, NFD, "proj_3", "upload")
    kept = kept_by_rows(R2Object.objects.filter(pk=row.pk))
    assert str(operation.pk) in kept[row.pk].reason
