"""A person gave a file to a project. Uploads to its key do not take it away again."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from storages.backends.s3 import S3Storage

from storage_audit.bucket import s3
from storage_audit.bucket.errors import Unavailable
from storage_audit.cleanup import requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from storage_audit.storage import KeyBeingDeleted, TrackedStorage
from storage_audit.tracking.upload import Upload
from tests.database import Rollback
from tests.promises import (
    Status,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.uploads import assert_row_matches_object, mark_as_being_deleted

State, Source = R2Object.State, R2Object.Source
KEY = "projects/proj_q/scenes/s1/media/a.mp4"
AMBIGUOUS = "proj_1_x_s1_media.mp4"  # of proj_1 (scene x_s1), or of proj_1_x (scene s1)


@pytest.fixture
def assigned(bucket: Bucket) -> Bucket:
    """The file of a deleted project, given to a live one."""
    create_projects("proj_p")
    record_deleted_projects("proj_q")
    bucket.put(KEY)
    assign_finding(KEY, "proj_p")
    return bucket


def assign_finding(key: str, project_id: str) -> None:
    for _ in work_on_scan(start_scan(purpose="reconcile")):
        pass
    findings = Finding.objects.filter(key=key, state=Finding.State.OPEN)
    assert track_files.assign_objects(findings, project_id).done == 1


def row() -> dict[str, Any]:
    return dict(R2Object.objects.values().get())


def clean_up_after(project_id: str) -> Cleanup:
    [cleanup] = requests.declare_deleted(project_id)
    return run_until_idle(cleanup)


def raise_in_block(patch: pytest.MonkeyPatch) -> None:
    with suppress(Rollback), default_storage.open(KEY, "w") as file:
        file.write("text")
        raise Rollback


def fail_to_overwrite(patch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise Rollback

    patch.setattr(S3Storage, "_save", refuse)
    with suppress(Rollback):
        TrackedStorage(file_overwrite=True).save(KEY, ContentFile(b"new"))


def die_before_the_first_byte(patch: pytest.MonkeyPatch) -> None:
    Upload("tests", KEY).begin()
    R2Object.objects.update(updated_at=timezone.now() - timedelta(days=1, minutes=1))


def fail_to_confirm(patch: pytest.MonkeyPatch) -> None:
    def no_head(bucket: str, key: str) -> None:
        raise Unavailable("no")

    patch.setattr(s3, "head_object", no_head)
    with suppress(Unavailable):
        overwrite(patch)


def overwrite(patch: pytest.MonkeyPatch) -> None:
    TrackedStorage(file_overwrite=True).save(KEY, ContentFile(b"new"))


UPLOADS = [
    raise_in_block,
    fail_to_overwrite,
    die_before_the_first_byte,
    fail_to_confirm,
    overwrite,
]


@pytest.mark.parametrize("upload", UPLOADS)
def test_upload_leaves_an_assigned_file_to_its_project(
    assigned: Bucket, monkeypatch: pytest.MonkeyPatch, upload: Callable[..., None]
) -> None:
    with monkeypatch.context() as patch:
        upload(patch)
    assert (row()["project_id"], row()["source"]) == ("proj_p", Source.ASSIGNED)
    assert clean_up_after("proj_q").status == Status.CLEAN
    assert assigned.keys() == {KEY}
    assert clean_up_project("proj_p").status == Status.CLEAN
    assert not assigned.keys()


@pytest.mark.parametrize("upload", [fail_to_confirm, overwrite])
def test_upload_to_an_assigned_key_that_may_be_of_another_live_project_waits_for_a_person(
    assigned: Bucket, monkeypatch: pytest.MonkeyPatch, upload: Callable[..., None]
) -> None:
    """The project of the key was created again, and nobody knows whose file it is now."""
    create_projects("proj_q")
    with monkeypatch.context() as patch:
        upload(patch)
    R2Object.objects.update(unambiguous_under=None)
    cleanup = clean_up_project("proj_p")
    assert read_outcomes(cleanup) == {KEY: "kept"}
    assert "existing project: proj_q" in read_reason(cleanup, KEY)
    R2Object.objects.update(state=State.STORED)
    assign_finding(KEY, "proj_q")
    assert clean_up_project("proj_q").status == Status.CLEAN
    assert not assigned.keys()


def test_key_given_to_one_of_two_live_projects_does_not_go_with_the_other(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_1_x")
    bucket.put(AMBIGUOUS)
    assign_finding(AMBIGUOUS, "proj_1_x")
    with suppress(Rollback), default_storage.open(AMBIGUOUS, "w"):
        raise Rollback
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert bucket.keys() == {AMBIGUOUS}
    assert clean_up_project("proj_1_x").status == Status.CLEAN
    assert not bucket.keys()


def test_name_that_turns_out_to_be_taken_leaves_its_row_as_it_was(
    assigned: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = row()
    with monkeypatch.context() as patch:
        # As where HEAD answers 404: only the listing shows the file.
        patch.setattr(S3Storage, "exists", lambda self, name: False)
        name = default_storage.save(KEY, ContentFile(b"new"))
    assert name != KEY
    assert R2Object.objects.values().get(key=KEY) == before
    assert_row_matches_object(assigned, name)


def test_refused_upload_leaves_the_row_as_it_was(assigned: Bucket) -> None:
    before = row()
    with mark_as_being_deleted(KEY), pytest.raises(KeyBeingDeleted):
        default_storage.open(KEY, "w")
    assert row() == before


def test_name_that_cannot_be_resolved_leaves_the_row_as_it_was(
    assigned: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = row()
    monkeypatch.setattr(TrackedStorage, "get_available_name", lambda self, name, max_length: name)
    monkeypatch.setattr(S3Storage, "exists", lambda self, name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        default_storage.save(KEY, ContentFile(b"new"))
    assert row() == before


def test_row_that_a_dead_upload_left_says_that_it_failed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(KEY)
    long_ago = timezone.now() - timedelta(days=2)
    track_key(bucket, KEY, "proj_q", state=State.UPLOADING, updated_at=long_ago)
    assert default_storage.save(KEY, ContentFile(b"new")) != KEY
    assert R2Object.objects.get(key=KEY).state == State.UPLOADING
    monkeypatch.setattr(TrackedStorage, "get_available_name", lambda self, name, max_length: name)
    assert default_storage.save(KEY, ContentFile(b"new")) != KEY
    assert R2Object.objects.get(key=KEY).state == State.UPLOAD_FAILED


def test_upload_is_evidence_of_the_owner_only_once_it_is_stored(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(AMBIGUOUS, KEY)
    track_key(bucket, AMBIGUOUS, "proj_1", "backfill")
    track_key(bucket, KEY, None, "backfill")
    expected = {AMBIGUOUS: None, KEY: "proj_q"}
    for key, project_id in expected.items():
        found = R2Object.objects.filter(key=key).values_list("project_id", "source")
        before = found.get()
        with default_storage.open(key, "w") as file:
            file.write("text")
            assert found.get() == before
        assert found.get() == (project_id, Source.UPLOAD)


def test_assigning_once_more_decides_again_after_an_upload(assigned: Bucket) -> None:
    overwrite(pytest.MonkeyPatch())
    assert row()["upload_id"]
    R2Object.objects.update(project_id="proj_q")
    assign_finding(KEY, "proj_p")
    assert row()["upload_id"] is None


@pytest.mark.parametrize("dies", [True, False])
def test_file_assigned_after_an_upload_that_failed_goes_with_its_project(
    bucket: Bucket, dies: bool
) -> None:
    """The name could be another live project's, so that only the decision tells whose it is."""
    create_projects("proj_1", "proj_1_x")
    bucket.put(AMBIGUOUS)
    assign_finding(AMBIGUOUS, "proj_1")
    upload = Upload(bucket.name, AMBIGUOUS).begin()
    if not dies:
        upload.fail()
    R2Object.objects.update(updated_at=timezone.now() - timedelta(days=1, minutes=1))
    assign_finding(AMBIGUOUS, "proj_1")
    assert row()["state"] == State.STORED
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert not bucket.keys()
