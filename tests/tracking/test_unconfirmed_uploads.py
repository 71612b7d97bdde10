"""An upload that was not confirmed may have stored another project's object."""

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from pytest_django import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.errors import Unavailable
from storage_audit.findings import track_files
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from tests.promises import (
    Status,
    act_before_batch,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import run_backfill

State, Source = R2Object.State, R2Object.Source
KEY = "a-b/f.mp4"
OLD = {"old": "{project}-{scene}/{filename}"}


@pytest.fixture
def overwritten(bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Project a uploaded the file. Later its key can also be read as one of project a-b, which
    stored another file there; the upload could not be confirmed."""
    usual = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": "[a-z-]+"}
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": OLD}
    create_projects("a")
    assert default_storage.save(KEY, ContentFile(b"of a")) == KEY
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": {"new": "{project}/{filename}", **OLD}}
    create_projects("a-b")
    bucket.r2.remove(KEY)

    def fail(*args: object) -> None:
        raise Unavailable("The answer to HEAD is late.")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "head_object", fail)
        with pytest.raises(Unavailable):
            default_storage.save(KEY, ContentFile(b"of a-b"))
    row = R2Object.objects.get()
    assert (row.project_id, row.source, row.state) == ("a", Source.UPLOAD, State.UPLOAD_FAILED)
    return bucket


def test_file_uploaded_under_other_key_formats_stays_with_a_live_project(
    bucket: Bucket, settings: Settings
) -> None:
    """The row names whom the key could name then. It may have been stored by the other one, whose
    key format was forgotten in the settings."""
    usual = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": "[a-z-]+"}
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": OLD}
    create_projects("a", "a-b")
    default_storage.save(KEY, ContentFile(b"of a-b"))
    settings.STORAGE_AUDIT = usual | {"KEY_FORMATS": {"new": "{project}/{filename}", **OLD}}
    cleanup = clean_up_project("a")
    assert read_outcomes(cleanup) == {KEY: "kept"}
    assert "existing project: a-b. Assign the file to that project" in read_reason(cleanup, KEY)
    assert bucket.keys() == {KEY}


def test_file_of_an_unconfirmed_upload_stays_with_a_live_project(overwritten: Bucket) -> None:
    cleanup = clean_up_project("a")
    assert read_outcomes(cleanup) == {KEY: "kept"}
    assert "existing project: a-b" in read_reason(cleanup, KEY)
    assert overwritten.keys() == {KEY}


def test_scan_does_not_confirm_an_upload_whose_owner_is_unclear(overwritten: Bucket) -> None:
    run_backfill()
    assert Finding.objects.get(key=KEY).kind == Finding.Kind.AMBIGUOUS
    assert read_outcomes(clean_up_project("a")) == {KEY: "kept"}
    assert overwritten.keys() == {KEY}


def test_barring_a_key_does_not_confirm_its_last_upload(
    overwritten: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.get(pk="a-b").delete()
    act_before_batch(monkeypatch, lambda: create_projects("a-b"))
    assert read_outcomes(clean_up_project("a")) == {KEY: "kept"}
    assert overwritten.keys() == {KEY}
    assert R2Object.objects.get().state == State.UPLOAD_FAILED


def test_person_decides_whose_an_unconfirmed_upload_is(overwritten: Bucket) -> None:
    run_backfill()
    findings = Finding.objects.filter(key=KEY, state=Finding.State.OPEN)
    assert track_files.assign_objects(findings, "a-b").done == 1
    assert clean_up_project("a").status == Status.CLEAN
    assert overwritten.keys() == {KEY}
    assert clean_up_project("a-b").status == Status.CLEAN
    assert not overwritten.keys()
