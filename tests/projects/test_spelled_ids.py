"""Projects whose ids can be spelled in several ways, in a bucket that takes these for one."""

from unicodedata import normalize

import pytest
from pytest_django import Settings

from storage_audit.cleanup import requests
from storage_audit.cleanup.delete_projects import delete_project_by_id
from storage_audit.models import Project
from tests.promises import alive, check, delete, deleted, outcomes, run, track, verify_project
from tests.real_bucket import Bucket

# Each with a spelling that its prefixes do not cover.
IDS = [("caf\u00e9", "cafe\u0301"), ("K1", "\u212a1"), ("\u00e91", "e\u03011")]
each_id = pytest.mark.parametrize(("project_id", "other"), IDS)


@pytest.fixture(autouse=True)
def folding(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID": r"\w+"}
    bucket.set_marker(folds_unicode=True)


def key_of(project_id: str, name: str = "a.mp4") -> str:
    return f"projects/{project_id}/scenes/s1/media/{name}"


def tracked(bucket: Bucket, project_id: str, other: str) -> str:
    """An object that is listed in another spelling than its row has; and a row without one."""
    bucket.put(key_of(other), key_of(other + "2"))
    for name in ("a.mp4", "gone.mp4"):
        track(bucket, key_of(project_id, name), project_id)
    return key_of(other)


@each_id
def test_verification_finds_a_file_that_is_listed_outside_of_the_prefixes(
    bucket: Bucket, project_id: str, other: str
) -> None:
    deleted(project_id)
    key = tracked(bucket, project_id, other)
    operation = verify_project(project_id)
    assert operation.error == "1 left behind, 1 seen absent."
    gone = key_of(project_id, "gone.mp4")
    assert outcomes(operation) == {key: "failed", gone: "already_absent"}


@each_id
def test_verification_of_a_live_project_does_not_call_it_missing(
    bucket: Bucket, project_id: str, other: str
) -> None:
    alive(project_id)
    key = tracked(bucket, project_id, other)
    operation = verify_project(project_id)
    assert operation.error.endswith("1 missing, 0 untracked.")
    assert outcomes(operation).get(key) in (None, "protected")


@each_id
def test_cleanup_deletes_it(bucket: Bucket, project_id: str, other: str) -> None:
    alive(project_id)
    key = tracked(bucket, project_id, other)
    operation = delete(project_id)
    gone = key_of(project_id, "gone.mp4")
    assert outcomes(operation) == {key: "deleted", gone: "already_absent"}
    assert operation.status == "clean"
    assert bucket.keys() == {key_of(other + "2")}
    check(bucket)


@each_id
def test_verification_of_a_cleanup_finds_what_is_there_again(
    bucket: Bucket, project_id: str, other: str
) -> None:
    alive(project_id)
    bucket.put(key_of(project_id))
    operation = delete(project_id)
    assert outcomes(operation) == {key_of(project_id): "deleted"}
    bucket.put(key_of(other))
    found = run(requests.verify_operation(operation))
    assert found.error == "1 left behind, 0 seen absent."


def test_file_under_a_prefix_in_one_spelling_is_not_looked_for_alone(
    bucket: Bucket,
) -> None:
    deleted("proj_1")
    track(bucket, normalize("NFC", key_of("proj_1", "e\u0301.mp4")), "proj_1")
    operation = verify_project("proj_1")
    assert [item.span is None for item in operation.items.all()] == [False]


@each_id
def test_project_is_deleted_beside_one_whose_id_only_looks_the_same(
    settings: Settings, project_id: str, other: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID": r"[\w\u0301]+"}
    alive(project_id, other)
    [cleanup] = delete_project_by_id(project_id)
    assert cleanup.project_id == project_id
    assert [project.pk for project in Project.objects.all()] == [other]
