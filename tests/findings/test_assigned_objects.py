"""A person gives an object to a project, not its key: another object there is not the project's."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unicodedata import normalize
from uuid import uuid4

import pytest
from django.core.files.storage import default_storage
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket import multipart
from storage_audit.bucket.multipart import Upload
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import delete_orphans
from storage_audit.models import R2Object
from storage_audit.ownership.owner import is_given
from tests.builders import create_orphans, list_ids
from tests.keys import AMBIGUOUS
from tests.promises import (
    Status,
    again,
    alive,
    between_plan_and_batch,
    delete,
    deleted,
    late_check,
    outcomes,
    reason,
    requested,
    run,
    track,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.scan.listing_in_memory import backfill, complete, findings

# Of proj_a, or of proj_a_b.
NFC = normalize("NFC", "proj_a_b_é_media.mp4")
NFD = normalize("NFD", NFC)
THEN = timezone.now()
UNREAD = "shared/logo.png"
PLAIN = "projects/proj_a_b/scenes/s1/media/a.mp4"
OF_PROJ_2 = "projects/proj_2/scenes/s1/media/a.mp4"


def adopt(key: str, project_id: str = "proj_a") -> None:
    look()
    found = Finding.objects.open().filter(key=key)
    assert track_files.adopt(found, project_id).done == 1


def look(scan: Callable[[], object] = complete) -> None:
    # What was written just now, a scan leaves to the writer.
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    scan()


def track_again() -> None:
    look()
    assert track_files.track(Finding.objects.filter(kind="changed")).done == 1


SCANS: dict[str, Callable[[], object]] = {
    "no scan": lambda: None,
    "backfill": lambda: look(backfill),
    "tracked by a person": track_again,
}


@pytest.mark.parametrize("key", [AMBIGUOUS, PLAIN])
@pytest.mark.parametrize("between", SCANS)
def test_object_uploaded_past_the_application_over_an_adopted_one_is_kept(
    bucket: Bucket, key: str, between: str
) -> None:
    alive("proj_a")
    bucket.put(key)
    adopt(key)
    bucket.put(key, body=b"of the next project")
    SCANS[between]()
    alive("proj_a_b")
    look()
    assert findings() == {("ambiguous", key)}
    operation = delete("proj_a")
    assert outcomes(operation) == {key: "protected"}
    assert "live project proj_a_b" in reason(operation, key)
    adopt(key, "proj_a_b")
    assert delete("proj_a_b").status == Status.CLEAN
    assert not bucket.keys()


@pytest.mark.parametrize("between", ["no scan", "backfill"])
def test_another_object_than_the_adopted_one_is_kept_where_no_key_format_reads_the_key(
    bucket: Bucket, between: str
) -> None:
    alive("proj_a", "proj_b")
    bucket.put(UNREAD)
    adopt(UNREAD)
    bucket.put(UNREAD, body=b"put there by proj_b")
    SCANS[between]()
    operation = delete("proj_a")
    assert outcomes(operation) == {UNREAD: "protected"}
    assert "not the one that a person adopted" in reason(operation, UNREAD)
    look()
    assert findings() == {("unrecognised", UNREAD)}
    adopt(UNREAD, "proj_b")
    assert delete("proj_b").status == Status.CLEAN
    assert not bucket.keys()


def test_upload_to_the_key_of_an_adopted_file_that_no_key_format_reads_is_kept(
    bucket: Bucket,
) -> None:
    alive("proj_a")
    bucket.put(UNREAD)
    adopt(UNREAD)
    with default_storage.open(UNREAD, "wb") as file:
        file.write(b"of nobody knows whom")
    assert outcomes(delete("proj_a")) == {UNREAD: "protected"}


def test_object_over_an_adopted_one_waits_for_the_blocked_cleanup_of_another_project(
    bucket: Bucket, settings: Settings
) -> None:
    alive("proj_a", "proj_a_b")
    bucket.put(AMBIGUOUS)
    adopt(AMBIGUOUS)
    bucket.put(AMBIGUOUS, body=b"of proj_a_b")
    alone = PLAIN.replace("a.mp4", "b.mp4")
    bucket.put(alone)
    before = settings.STORAGE_AUDIT
    settings.STORAGE_AUDIT = before | {"LIMIT_OBJECTS": 0}
    blocked = delete("proj_a_b")
    assert blocked.status == Status.BLOCKED
    settings.STORAGE_AUDIT = before
    operation = delete("proj_a")
    assert outcomes(operation) == {AMBIGUOUS: "protected"}
    assert str(blocked.pk) in reason(operation, AMBIGUOUS)


def test_unfinished_upload_to_an_adopted_key_is_not_aborted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_a", "proj_a_b")
    bucket.put(AMBIGUOUS)
    adopt(AMBIGUOUS)
    begun, aborted = Upload(AMBIGUOUS, "of proj_a_b", timezone.now()), list[Upload]()

    def unfinished(bucket: str, prefix: str) -> Any:
        return iter([[begun] if AMBIGUOUS.startswith(prefix) else []])

    monkeypatch.setattr(multipart, "unfinished", unfinished)
    monkeypatch.setattr(multipart, "abort", lambda bucket, upload: aborted.append(upload))
    assert delete("proj_a").status == Status.CLEAN
    assert not aborted


def test_upload_in_another_spelling_of_an_adopted_key_is_not_given(bucket: Bucket) -> None:
    fold_unicode(bucket)
    alive("proj_a", "proj_a_b")
    bucket.put(NFC)
    adopt(NFC)
    bucket.r2.remove(NFC, bucket.name)
    with default_storage.open(NFD, "wb") as file:
        file.write(b"of proj_a_b")
    assert outcomes(delete("proj_a")) == {NFD: "protected"}


def test_adopting_an_object_covers_the_rows_of_all_its_spellings(bucket: Bucket) -> None:
    fold_unicode(bucket)
    alive("proj_a", "proj_a_b")
    bucket.put(NFC)
    for key in (NFC, NFD):
        track(bucket, key, None, "backfill", size=1, etag="of an earlier object")
    adopt(NFC)
    assert outcomes(delete("proj_a")) == {NFC: "deleted"}


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (True, {}),
        (False, {"size": 2}),
        (False, {"etag": "y"}),
        (False, {"last_modified": THEN + timedelta(seconds=1)}),
    ],
)
def test_object_is_given_only_as_it_was_when_a_person_decided(
    given: bool, other: dict[str, Any]
) -> None:
    facts: dict[str, Any] = {"size": 1, "etag": "x", "last_modified": THEN}
    row = R2Object(key="k", source="adopted", **facts)
    listed = Listed(key="k", **facts | other)
    assert is_given([row], listed) is given
    assert not is_given([row], None)
    uploaded = R2Object(key="another spelling", source="upload", upload_id=uuid4(), **facts)
    assert not is_given([row, uploaded], listed)


@pytest.mark.parametrize("has_run", [False, True], ids=["waiting", "over"])
def test_newer_file_of_a_deleted_row_is_kept_from_the_project_that_its_key_names(
    bucket: Bucket, has_run: bool
) -> None:
    """The row alone said whose the file is, and its own cleanup keeps the newer file."""
    alive("proj_1")
    bucket.upload("proj_2")
    operation = delete("proj_2")
    bucket.put(OF_PROJ_2)
    adopt(OF_PROJ_2, "proj_1")
    bucket.put(OF_PROJ_2, body=b"newer")
    R2Object.objects.get().delete()
    if has_run:
        assert outcomes(run(of_deleted_row())) == {OF_PROJ_2: "protected"}
    found = late_check(operation)
    assert outcomes(found) == {OF_PROJ_2: "protected"}
    assert "live project proj_1" in reason(found, OF_PROJ_2)
    # Once that project is gone, too, the key decides.
    delete("proj_1")
    last = again(operation.children.filter(status="pending").order_by("next_attempt_at")[0])
    assert outcomes(last) == {OF_PROJ_2: "deleted"}


def of_deleted_row() -> CleanupOperation:
    return CleanupOperation.objects.get(kind="objects", parent=None)


def test_file_whose_row_is_deleted_after_the_plan_is_kept_from_another_project(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1", "proj_2")
    bucket.put(OF_PROJ_2)
    operation = requested("proj_2")
    between_plan_and_batch(
        monkeypatch, lambda: track(bucket, OF_PROJ_2, "proj_1", "adopted").delete()
    )
    assert outcomes(run(operation)) == {OF_PROJ_2: "protected"}
    assert bucket.keys() == {OF_PROJ_2}


def test_row_of_a_later_upload_decides_over_a_deleted_one(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    bucket.put(OF_PROJ_2)
    track(bucket, OF_PROJ_2, "proj_1", "adopted", etag="older").delete()
    assert outcomes(run(of_deleted_row())) == {OF_PROJ_2: "protected"}
    track(bucket, OF_PROJ_2, "proj_2")
    assert outcomes(delete("proj_2")) == {OF_PROJ_2: "deleted"}


@pytest.mark.usefixtures("young_orphans_may_go")
def test_deleting_orphans_keeps_the_newer_file_of_a_deleted_row(bucket: Bucket) -> None:
    alive("proj_1")
    deleted("proj_2")
    bucket.put(OF_PROJ_2)
    track(bucket, OF_PROJ_2, "proj_1", "adopted", etag="older").delete()
    run(of_deleted_row())
    found = create_orphans(bucket, OF_PROJ_2, project_id="proj_2")
    [operation] = delete_orphans(list_ids(found)).operations
    assert outcomes(run(operation)) == {OF_PROJ_2: "protected"}
    assert "live project proj_1" in reason(operation, OF_PROJ_2)
