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
from tests.promises import Status, alive, between_plan_and_batch, delete, outcomes, reason
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import backfill

State, Source = R2Object.State, R2Object.Source
KEY = "a-b/f.mp4"
OLD = {"old": "{project}-{scene}/{filename}"}


@pytest.fixture
def overwritten(bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Project a uploaded the file. Later its key can also be read as one of project a-b, which
    stored another file there; the upload could not be confirmed."""
    usual = settings.STORAGE_AUDIT | {"PROJECT_ID": "[a-z-]+"}
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": OLD}
    alive("a")
    assert default_storage.save(KEY, ContentFile(b"of a")) == KEY
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": {"new": "{project}/{filename}", **OLD}}
    alive("a-b")
    bucket.r2.remove(KEY)

    def fail(*args: object) -> None:
        raise Unavailable("The answer to HEAD is late.")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "head", fail)
        with pytest.raises(Unavailable):
            default_storage.save(KEY, ContentFile(b"of a-b"))
    row = R2Object.objects.get()
    assert (row.project_id, row.source, row.state) == ("a", Source.UPLOAD, State.UPLOAD_FAILED)
    return bucket


def test_file_uploaded_under_other_layouts_stays_with_a_live_project(
    bucket: Bucket, settings: Settings
) -> None:
    """The row names whom the key could name then. It may have been stored by the other one, whose
    layout was forgotten in the settings."""
    usual = settings.STORAGE_AUDIT | {"PROJECT_ID": "[a-z-]+"}
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": OLD}
    alive("a", "a-b")
    default_storage.save(KEY, ContentFile(b"of a-b"))
    settings.STORAGE_AUDIT = usual | {"LAYOUTS": {"new": "{project}/{filename}", **OLD}}
    operation = delete("a")
    assert outcomes(operation) == {KEY: "protected"}
    assert "live project a-b. Adopt it into that project" in reason(operation, KEY)
    assert bucket.keys() == {KEY}


def test_file_of_an_unconfirmed_upload_stays_with_a_live_project(overwritten: Bucket) -> None:
    operation = delete("a")
    assert outcomes(operation) == {KEY: "protected"}
    assert "live project a-b" in reason(operation, KEY)
    assert overwritten.keys() == {KEY}


def test_scan_does_not_confirm_an_upload_whose_owner_is_unclear(overwritten: Bucket) -> None:
    backfill()
    assert Finding.objects.get(key=KEY).kind == Finding.Kind.AMBIGUOUS
    assert outcomes(delete("a")) == {KEY: "protected"}
    assert overwritten.keys() == {KEY}


def test_barring_a_key_does_not_confirm_its_last_upload(
    overwritten: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.get(pk="a-b").delete()
    between_plan_and_batch(monkeypatch, lambda: alive("a-b"))
    assert outcomes(delete("a")) == {KEY: "protected"}
    assert overwritten.keys() == {KEY}
    assert R2Object.objects.get().state == State.UPLOAD_FAILED


def test_person_decides_whose_an_unconfirmed_upload_is(overwritten: Bucket) -> None:
    backfill()
    findings = Finding.objects.filter(key=KEY, state=Finding.State.OPEN)
    assert track_files.adopt(findings, "a-b").done == 1
    assert delete("a").status == Status.CLEAN
    assert overwritten.keys() == {KEY}
    assert delete("a-b").status == Status.CLEAN
    assert not overwritten.keys()
