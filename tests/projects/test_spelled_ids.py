"""Projects whose ids can be spelled in several ways, in a bucket that takes these for one."""

from unicodedata import normalize

import pytest
from pytest_django import Settings

from storage_audit.cleanup import requests
from storage_audit.cleanup.delete_projects import delete_project_by_id
from storage_audit.models import Project
from tests.promises import (
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    record_deleted_projects,
    run_until_idle,
    track_key,
    verify_project,
)
from tests.real_bucket import Bucket

# Each with a spelling that its prefixes do not cover.
IDS = [("caf\u00e9", "cafe\u0301"), ("K1", "\u212a1"), ("\u00e91", "e\u03011")]
each_id = pytest.mark.parametrize(("project_id", "other"), IDS)


@pytest.fixture(autouse=True)
def folding(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": r"\w+"}
    bucket.set_marker(folds_unicode=True)


def key_of(project_id: str, name: str = "a.mp4") -> str:
    return f"projects/{project_id}/scenes/s1/media/{name}"


def tracked(bucket: Bucket, project_id: str, other: str) -> str:
    """An object that is listed in another spelling than its row has; and a row without one."""
    bucket.put(key_of(other), key_of(other + "2"))
    for name in ("a.mp4", "gone.mp4"):
        track_key(bucket, key_of(project_id, name), project_id)
    return key_of(other)


@each_id
def test_verification_finds_a_file_that_is_listed_outside_of_the_prefixes(
    bucket: Bucket, project_id: str, other: str
) -> None:
    record_deleted_projects(project_id)
    key = tracked(bucket, project_id, other)
    cleanup = verify_project(project_id)
    assert cleanup.message == "1 leftover, 1 confirmed gone."
    gone = key_of(project_id, "gone.mp4")
    assert read_outcomes(cleanup) == {key: "failed", gone: "already_gone"}


@each_id
def test_verification_of_a_live_project_does_not_call_it_missing(
    bucket: Bucket, project_id: str, other: str
) -> None:
    create_projects(project_id)
    key = tracked(bucket, project_id, other)
    cleanup = verify_project(project_id)
    assert cleanup.message.endswith("1 missing, 0 untracked.")
    assert read_outcomes(cleanup).get(key) in (None, "kept")


@each_id
def test_cleanup_deletes_it(bucket: Bucket, project_id: str, other: str) -> None:
    create_projects(project_id)
    key = tracked(bucket, project_id, other)
    cleanup = clean_up_project(project_id)
    gone = key_of(project_id, "gone.mp4")
    assert read_outcomes(cleanup) == {key: "deleted", gone: "already_gone"}
    assert cleanup.status == "clean"
    assert bucket.keys() == {key_of(other + "2")}
    check_promises(bucket)


@each_id
def test_verification_of_a_cleanup_finds_what_is_there_again(
    bucket: Bucket, project_id: str, other: str
) -> None:
    create_projects(project_id)
    bucket.put(key_of(project_id))
    cleanup = clean_up_project(project_id)
    assert read_outcomes(cleanup) == {key_of(project_id): "deleted"}
    bucket.put(key_of(other))
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert found.message == "1 leftover, 0 confirmed gone."


def test_file_under_a_prefix_in_one_spelling_is_not_listed_alone(
    bucket: Bucket,
) -> None:
    record_deleted_projects("proj_1")
    track_key(bucket, normalize("NFC", key_of("proj_1", "e\u0301.mp4")), "proj_1")
    cleanup = verify_project("proj_1")
    assert [item.range_index is None for item in cleanup.items.all()] == [False]


@each_id
def test_project_is_deleted_beside_one_whose_id_only_looks_the_same(
    settings: Settings, project_id: str, other: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"PROJECT_ID_PATTERN": r"[\w\u0301]+"}
    create_projects(project_id, other)
    [cleanup] = delete_project_by_id(project_id)
    assert cleanup.project_id == project_id
    assert [project.pk for project in Project.objects.all()] == [other]
