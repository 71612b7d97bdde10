"""Rows of projects whose ids the setting PROJECT_ID refuses: what could be theirs is kept."""

from datetime import timedelta
from functools import partial
from unicodedata import normalize

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from storage_audit.audit import deletion, lookup
from storage_audit.audit.ownership import alive_among, layouts
from storage_audit.audit.work import Work
from storage_audit.bucket.uploads import Upload
from storage_audit.models import Finding, Project
from tests.conftest import Bucket
from tests.promises import (
    alive,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    outcomes,
    reason,
    requested,
)
from tests.scanning import backfill, findings

OWN = "projects/proj_1/scenes/s1/media/own.mp4"
DOUBLED = "projects/proj_proj_1/scenes/s1/media/a.mp4"
# A refused id, and a key that could be its, and that without it would be of proj_1 alone.
COULD_BE = {
    "proj_proj_1": DOUBLED,
    "proj_proj_1 in a content key": "audio/proj_proj_1/s1/a.mp3",
    "proj_proj_1 in a flat key": "proj_proj_1_s1_media.mp4",
    "1": OWN,
    "proj": "proj_1_s1_media.mp4",
    "proj_1/x": "audio/proj_1/x/s1/a.mp3",
    "proj_proj_1_é": "proj_proj_1_e\u0301_s1_media.mp4",
}


def past_all_checks(*ids: str) -> None:
    Project.objects.bulk_create(Project(pk=project_id) for project_id in ids)


@pytest.mark.parametrize("case", COULD_BE)
def test_a_key_that_a_refused_id_could_name_is_kept(bucket: Bucket, case: str) -> None:
    refused, key = case.partition(" in ")[0], COULD_BE[case]
    alive("proj_1")
    past_all_checks(refused)
    other = "captions/proj_1/s1/other.txt" if refused != "1" else "README"
    bucket.put(key, other)
    operation = delete("proj_1")
    assert outcomes(operation)[key] == "protected"
    assert refused in normalize("NFC", reason(operation, key))
    assert "PROJECT_ID does not accept" in reason(operation, key)
    assert key in bucket.facts()
    assert outcomes(operation).get(other) in ("deleted", None)
    check(bucket)


def test_a_refused_id_that_comes_after_the_plan_keeps_its_key(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    bucket.put(DOUBLED, OWN)
    between_plan_and_batch(monkeypatch, partial(past_all_checks, "proj_proj_1"))
    operation = delete("proj_1")
    assert outcomes(operation) == {DOUBLED: "protected", OWN: "deleted"}
    assert bucket.keys() == {DOUBLED}


def test_an_upload_of_a_refused_id_is_no_evidence_for_another_project(bucket: Bucket) -> None:
    alive("proj_1")
    past_all_checks("proj_proj_1")
    default_storage.save(DOUBLED, ContentFile(b"the other's own"))
    operation = delete("proj_1")
    assert outcomes(operation) == {DOUBLED: "protected"}
    assert "proj_proj_1" in reason(operation, DOUBLED)
    assert bucket.keys() == {DOUBLED}


def test_once_the_refused_id_is_gone_its_key_is_cleaned_up(bucket: Bucket) -> None:
    alive("proj_1")
    past_all_checks("proj_proj_1")
    bucket.put(DOUBLED)
    Project.objects.get(pk="proj_proj_1").delete()
    assert outcomes(delete("proj_1")) == {DOUBLED: "deleted"}


def test_an_unfinished_upload_of_a_refused_id_is_not_aborted(bucket: Bucket) -> None:
    alive("proj_1")
    past_all_checks("proj_proj_1")
    project = Work.begin(requested("proj_1"))
    long_ago = timezone.now() - timedelta(days=30)
    uploads = [Upload(key, "id", long_ago) for key in (DOUBLED, OWN)]
    owned = deletion.owned_uploads(project, uploads)
    assert [upload.key for upload in owned] == [OWN]


@pytest.mark.parametrize("tracked", [False, True])
def test_a_scan_takes_what_a_refused_id_could_name_for_ambiguous(
    bucket: Bucket, tracked: bool
) -> None:
    deleted("proj_1")
    past_all_checks("proj_proj_1", "2")
    alive("proj_2")
    in_plain_folder = OWN.replace("proj_1", "proj_2")
    bucket.put(in_plain_folder)
    if tracked:
        default_storage.save(DOUBLED, ContentFile(b"the other's own"))
    else:
        bucket.put(DOUBLED)
    backfill()
    assert findings() == {("ambiguous", DOUBLED), ("ambiguous", in_plain_folder)}
    assert "proj_proj_1" in Finding.objects.get(key=DOUBLED).evidence


def test_why_names_the_refused_id(bucket: Bucket) -> None:
    deleted("proj_1")
    past_all_checks("proj_proj_1")
    bucket.put(DOUBLED)
    [facts] = lookup.look_up(DOUBLED).objects
    [judgement] = facts.judgements
    assert judgement.verdict.claim.value == "protected"
    assert "proj_proj_1" in judgement.verdict.reason


@pytest.mark.django_db
@pytest.mark.parametrize("odd", ["a\0b", "a\udc80b", "a'b", "a\\b", "{a}", "a" * 900])
def test_any_text_can_be_asked_for(odd: str) -> None:
    past_all_checks("proj_proj_1")
    keys = [f"audio/proj_1/{odd}/s/f.mp3", DOUBLED]
    assert alive_among(map(layouts().readings, keys)) == {"proj_proj_1"}


def test_keys_of_a_folder_share_what_else_they_could_name() -> None:
    keys = [f"audio/proj_1/x/s{n % 2}/{n}.mp3" for n in range(100)]
    found = layouts().readings_of(keys)
    assert len(set(map(id, found.values()))) == 2
    assert all(of_key.others >= {"proj_1/x", "1"} for of_key in found.values())
