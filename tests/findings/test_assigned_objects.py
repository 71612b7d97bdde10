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
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import delete_objects
from storage_audit.models import R2Object
from storage_audit.ownership.row_evidence import is_assigned
from tests.builders import create_orphans, list_ids
from tests.keys import AMBIGUOUS
from tests.promises import (
    Status,
    act_before_batch,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.scan.listing_in_memory import complete_reconcile, read_findings, run_backfill

# Of proj_a, or of proj_a_b.
NFC = normalize("NFC", "proj_a_b_é_media.mp4")
NFD = normalize("NFD", NFC)
THEN = timezone.now()
UNREAD = "shared/logo.png"
PLAIN = "projects/proj_a_b/scenes/s1/media/a.mp4"
OF_PROJ_2 = "projects/proj_2/scenes/s1/media/a.mp4"


def assign_finding(key: str, project_id: str = "proj_a") -> None:
    scan_later()
    found = Finding.objects.open().filter(key=key)
    assert track_files.assign_objects(found, project_id).done == 1


def scan_later(scan: Callable[[], object] = complete_reconcile) -> None:
    # What was written just now, a scan leaves to the writer.
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    scan()


def track_again() -> None:
    scan_later()
    assert track_files.track_objects(Finding.objects.filter(kind="changed")).done == 1


SCANS: dict[str, Callable[[], object]] = {
    "no scan": lambda: None,
    "backfill": lambda: scan_later(run_backfill),
    "tracked by a person": track_again,
}


@pytest.mark.parametrize("key", [AMBIGUOUS, PLAIN])
@pytest.mark.parametrize("between", SCANS)
def test_object_uploaded_past_the_application_over_an_assigned_one_is_kept(
    bucket: Bucket, key: str, between: str
) -> None:
    create_projects("proj_a")
    bucket.put(key)
    assign_finding(key)
    bucket.put(key, body=b"of the next project")
    SCANS[between]()
    create_projects("proj_a_b")
    scan_later()
    assert read_findings() == {("ambiguous", key)}
    cleanup = clean_up_project("proj_a")
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "existing project: proj_a_b" in read_reason(cleanup, key)
    assign_finding(key, "proj_a_b")
    assert clean_up_project("proj_a_b").status == Status.CLEAN
    assert not bucket.keys()


@pytest.mark.parametrize("between", ["no scan", "backfill"])
def test_another_object_than_the_assigned_one_is_kept_where_no_key_format_reads_the_key(
    bucket: Bucket, between: str
) -> None:
    create_projects("proj_a", "proj_b")
    bucket.put(UNREAD)
    assign_finding(UNREAD)
    bucket.put(UNREAD, body=b"put there by proj_b")
    SCANS[between]()
    cleanup = clean_up_project("proj_a")
    assert read_outcomes(cleanup) == {UNREAD: "kept"}
    assert "may not be the one that a person assigned" in read_reason(cleanup, UNREAD)
    scan_later()
    assert read_findings() == {("unrecognised", UNREAD)}
    assign_finding(UNREAD, "proj_b")
    assert clean_up_project("proj_b").status == Status.CLEAN
    assert not bucket.keys()


def test_upload_to_the_key_of_an_assigned_file_that_no_key_format_reads_is_kept(
    bucket: Bucket,
) -> None:
    create_projects("proj_a")
    bucket.put(UNREAD)
    assign_finding(UNREAD)
    with default_storage.open(UNREAD, "wb") as file:
        file.write(b"of nobody knows whom")
    assert read_outcomes(clean_up_project("proj_a")) == {UNREAD: "kept"}


def test_object_over_an_assigned_one_waits_for_the_blocked_cleanup_of_another_project(
    bucket: Bucket, settings: Settings
) -> None:
    create_projects("proj_a", "proj_a_b")
    bucket.put(AMBIGUOUS)
    assign_finding(AMBIGUOUS)
    bucket.put(AMBIGUOUS, body=b"of proj_a_b")
    alone = PLAIN.replace("a.mp4", "b.mp4")
    bucket.put(alone)
    before = settings.STORAGE_AUDIT
    settings.STORAGE_AUDIT = before | {"LIMIT_OBJECTS": 0}
    blocked = clean_up_project("proj_a_b")
    assert blocked.status == Status.BLOCKED
    settings.STORAGE_AUDIT = before
    cleanup = clean_up_project("proj_a")
    assert read_outcomes(cleanup) == {AMBIGUOUS: "kept"}
    assert str(blocked.pk) in read_reason(cleanup, AMBIGUOUS)


def test_unfinished_upload_to_an_assigned_key_is_not_aborted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_a", "proj_a_b")
    bucket.put(AMBIGUOUS)
    assign_finding(AMBIGUOUS)
    begun, aborted = (
        MultipartUpload(AMBIGUOUS, "of proj_a_b", timezone.now()),
        list[MultipartUpload](),
    )

    def unfinished(bucket: str, prefix: str) -> Any:
        return iter([[begun] if AMBIGUOUS.startswith(prefix) else []])

    monkeypatch.setattr(multipart, "list_unfinished_uploads", unfinished)
    monkeypatch.setattr(multipart, "abort_multipart", lambda bucket, upload: aborted.append(upload))
    assert clean_up_project("proj_a").status == Status.CLEAN
    assert not aborted


def test_upload_in_another_spelling_of_an_assigned_key_is_not_given(bucket: Bucket) -> None:
    fold_unicode(bucket)
    create_projects("proj_a", "proj_a_b")
    bucket.put(NFC)
    assign_finding(NFC)
    bucket.r2.remove(NFC, bucket.name)
    with default_storage.open(NFD, "wb") as file:
        file.write(b"of proj_a_b")
    assert read_outcomes(clean_up_project("proj_a")) == {NFD: "kept"}


def test_assigning_an_object_covers_the_rows_of_all_its_spellings(bucket: Bucket) -> None:
    fold_unicode(bucket)
    create_projects("proj_a", "proj_a_b")
    bucket.put(NFC)
    for key in (NFC, NFD):
        track_key(bucket, key, None, "backfill", size=1, etag="of an earlier object")
    assign_finding(NFC)
    assert read_outcomes(clean_up_project("proj_a")) == {NFC: "deleted"}


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
    row = R2Object(key="k", project_id="proj_1", source="assigned", **facts)
    listed = ListedObject(key="k", **facts | other)
    assert is_assigned([row], listed) is given
    assert not is_assigned([row], None)
    uploaded = R2Object(key="another spelling", source="upload", upload_id=uuid4(), **facts)
    assert not is_assigned([row, uploaded], listed)


@pytest.mark.parametrize("has_run", [False, True], ids=["waiting", "over"])
def test_newer_file_of_a_deleted_row_is_kept_from_the_project_that_its_key_names(
    bucket: Bucket, has_run: bool
) -> None:
    """The row alone said whose the file is, and its own cleanup keeps the newer file."""
    create_projects("proj_1")
    bucket.upload("proj_2")
    cleanup = clean_up_project("proj_2")
    bucket.put(OF_PROJ_2)
    assign_finding(OF_PROJ_2, "proj_1")
    bucket.put(OF_PROJ_2, body=b"newer")
    R2Object.objects.get().delete()
    if has_run:
        assert read_outcomes(run_until_idle(of_deleted_row())) == {OF_PROJ_2: "kept"}
    found = run_follow_up(cleanup)
    assert read_outcomes(found) == {OF_PROJ_2: "kept"}
    assert "existing project: proj_1" in read_reason(found, OF_PROJ_2)
    # Once that project is gone, too, the key decides.
    clean_up_project("proj_1")
    last = run_again(cleanup.children.filter(status="pending").order_by("next_attempt_at")[0])
    assert read_outcomes(last) == {OF_PROJ_2: "deleted"}


def of_deleted_row() -> Cleanup:
    return Cleanup.objects.get(kind="objects", parent=None)


def test_file_whose_row_is_deleted_after_the_plan_is_kept_from_another_project(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    bucket.put(OF_PROJ_2)
    cleanup = request_cleanup("proj_2")
    act_before_batch(
        monkeypatch, lambda: track_key(bucket, OF_PROJ_2, "proj_1", "assigned").delete()
    )
    assert read_outcomes(run_until_idle(cleanup)) == {OF_PROJ_2: "kept"}
    assert bucket.keys() == {OF_PROJ_2}


def test_row_of_a_later_upload_decides_over_a_deleted_one(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    bucket.put(OF_PROJ_2)
    track_key(bucket, OF_PROJ_2, "proj_1", "assigned", etag="older").delete()
    assert read_outcomes(run_until_idle(of_deleted_row())) == {OF_PROJ_2: "kept"}
    track_key(bucket, OF_PROJ_2, "proj_2")
    assert read_outcomes(clean_up_project("proj_2")) == {OF_PROJ_2: "deleted"}


@pytest.mark.usefixtures("young_orphans_may_go")
def test_deleting_orphans_keeps_the_newer_file_of_a_deleted_row(bucket: Bucket) -> None:
    create_projects("proj_1")
    record_deleted_projects("proj_2")
    bucket.put(OF_PROJ_2)
    track_key(bucket, OF_PROJ_2, "proj_1", "assigned", etag="older").delete()
    run_until_idle(of_deleted_row())
    found = create_orphans(bucket, OF_PROJ_2, project_id="proj_2")
    [cleanup] = delete_objects(list_ids(found)).cleanups
    assert read_outcomes(run_until_idle(cleanup)) == {OF_PROJ_2: "kept"}
    assert "existing project: proj_1" in read_reason(cleanup, OF_PROJ_2)
