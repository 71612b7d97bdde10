"""What a blocked cleanup covers waits for a person's decision: no other way deletes it."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit.alerts.alert_rules import find_overdue
from storage_audit.cleanup import (
    headline_text,
    project_uploads,
    requests,
    vanished_projects,
)
from storage_audit.cleanup.discovery_and_strategy import MODES, Mode
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.open_decisions import find_unnamed_owners
from storage_audit.findings import track_files
from storage_audit.models import Project, R2Object
from storage_audit.ownership.key_template import MAX_WAYS
from storage_audit.ownership.ownership_rule import get_key_formats
from tests.bucket.store_replies import answer_uploads
from tests.builders import create_cleanup, create_findings, list_ids
from tests.faults.matching import is_abort, rule_for
from tests.faults.proxy import FaultyStore
from tests.keys import AMBIGUOUS
from tests.promises import (
    Status,
    assign_object,
    clean_up_project,
    create_projects,
    hide_key,
    read_outcomes,
    read_reason,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket

LATE = {f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(30)}


@pytest.fixture
def first(bucket: Bucket) -> Cleanup:
    """A cleanup that is over, whose follow-up checks are to come; late files are there by then."""
    create_projects("proj_2")
    bucket.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    bucket.put(*LATE)
    return cleanup


def limit(settings: Settings, **limits: float) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | limits


def declare_again(mode: Mode | None = None) -> Cleanup:
    [cleanup] = requests.declare_deleted("proj_1", mode)
    return run_until_idle(cleanup)


def assert_waits(follow_up: Cleanup, blocked: Cleanup, bucket: Bucket) -> None:
    assert blocked.status == Status.BLOCKED
    assert follow_up.attempts == 0
    assert not Cleanup.objects.due().contains(follow_up)
    assert bucket.keys() == LATE
    waits = f"Waits for a person's decision on cleanup {blocked.pk}."
    assert waits in headline_text.explain_status(follow_up)


def test_follow_up_check_waits_for_another_blocked_cleanup_of_its_project(
    bucket: Bucket, settings: Settings, first: Cleanup
) -> None:
    limit(settings, WRANGLER_LIMIT=3)
    blocked = declare_again(MODES["wrangler"])
    assert blocked != first
    assert_waits(run_follow_up(first), blocked, bucket)
    requests.approve_or_retry(blocked)
    assert run_follow_up(first).status == Status.CLEAN
    assert bucket.keys() == set()


def test_follow_up_check_waits_for_a_cleanup_that_misses_files(
    bucket: Bucket, first: Cleanup, store: FaultyStore
) -> None:
    for key in LATE:
        track_key(bucket, key, "proj_1", etag="x", size=7)
    hide_key(store, ".mp4")
    blocked = declare_again()
    store.rules.clear()
    assert_waits(run_follow_up(first), blocked, bucket)


def test_follow_up_check_waits_for_the_one_before_it(
    bucket: Bucket, settings: Settings, first: Cleanup
) -> None:
    usual = settings.STORAGE_AUDIT
    limit(settings, LIMIT_OBJECTS=0)
    blocked = run_follow_up(first)
    settings.STORAGE_AUDIT = usual
    pending = first.children.filter(status=Status.PENDING).earliest("next_attempt_at")
    assert_waits(run_again(pending), blocked, bucket)
    cleanup = declare_again()
    assert_waits(cleanup, blocked, bucket)
    assert not find_overdue(timezone.now()).contains(cleanup)


def test_preview_shows_what_a_blocked_cleanup_of_the_same_project_is_to_delete(
    bucket: Bucket, settings: Settings, first: Cleanup
) -> None:
    limit(settings, LIMIT_OBJECTS=0)
    assert declare_again().status == Status.BLOCKED
    [preview] = requests.request_preview("proj_1")
    assert read_outcomes(run_until_idle(preview)) == dict.fromkeys(LATE, "to_delete")


SHARED = "proj_9_x_s1_media.mp4"  # of proj_9, or of proj_9_x


def test_upload_that_a_blocked_cleanup_covers_is_not_aborted(
    bucket: Bucket, settings: Settings, store: FaultyStore
) -> None:
    usual = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(0)}
    create_projects("proj_9", "proj_9_x", "proj_1")
    bucket.put("projects/proj_9/scenes/s1/media/old.mp4", SHARED)
    settings.STORAGE_AUDIT = usual | {"LIMIT_OBJECTS": 0}
    other, blocked = request_cleanup("proj_9_x"), clean_up_project("proj_9")
    assert blocked.status == Status.BLOCKED
    settings.STORAGE_AUDIT = usual
    own = "projects/proj_9_x/scenes/s1/media/big.mp4"
    store.rules += [answer_uploads(SHARED, own), rule_for(is_abort, Reply(204))]
    other = run_until_idle(other)
    assert read_outcomes(other) == {SHARED: "kept"}
    assert [request.path.partition("/tests/")[2] for request in store.find_requests(is_abort)] == [
        own
    ]
    said = other.events.get(message__startswith="Unfinished multipart uploads")
    assert said.data["keys"] == [own]


def test_upload_is_not_aborted_once_its_cleanup_was_blocked_during_another_one(
    bucket: Bucket, settings: Settings, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, abort = settings.STORAGE_AUDIT, project_uploads.abort_upload
    create_projects("proj_9", "proj_9_x", "proj_1")
    bucket.upload("proj_9")
    other, rival = request_cleanup("proj_9_x"), request_cleanup("proj_9")

    def abort_behind_the_block(*args: Any) -> bool:
        settings.STORAGE_AUDIT = usual | {"LIMIT_OBJECTS": 0}
        assert run_until_idle(rival).status == Status.BLOCKED
        settings.STORAGE_AUDIT = usual
        return abort(*args)

    monkeypatch.setattr(project_uploads, "abort_upload", abort_behind_the_block)
    store.rules += [answer_uploads(SHARED), rule_for(is_abort, Reply(204))]
    other = run_until_idle(other)
    assert not store.find_requests(is_abort)
    said = other.events.get(message__startswith="Unfinished upload not aborted")
    assert f"Cleanup {rival.pk} covers" in said.message


@pytest.fixture
def blocked(bucket: Bucket, settings: Settings) -> Cleanup:
    """The cleanup of proj_9, whose one file is more than the limit."""
    usual = settings.STORAGE_AUDIT
    limit(settings, LIMIT_OBJECTS=0)
    create_projects("proj_1")
    bucket.upload("proj_9")
    cleanup = clean_up_project("proj_9")
    assert cleanup.status == Status.BLOCKED
    settings.STORAGE_AUDIT = usual
    return cleanup


@pytest.mark.parametrize("is_readable", [True, False])
def test_file_of_a_deleted_row_waits_for_the_blocked_cleanup(
    bucket: Bucket, blocked: Cleanup, is_readable: bool
) -> None:
    if not is_readable:
        default_storage.save("stranger", ContentFile(b"x"))
        given = R2Object.objects.filter(key="stranger")
        given.update(project_id="proj_9", source="assigned")
    row = R2Object.objects.latest("pk")
    row.delete()
    cleanup = run_until_idle(Cleanup.objects.get(kind="objects"))
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() >= {row.key}
    assert read_reason(cleanup, row.key).startswith(f"Cleanup {blocked.pk} covers this file")


def test_file_of_a_deleted_row_of_another_project_goes(bucket: Bucket, blocked: Cleanup) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get(key=key).delete()
    assert run_until_idle(Cleanup.objects.get(kind="objects")).status == Status.CLEAN
    assert not bucket.keys() & {key}


def test_storage_leaves_a_file_to_the_blocked_cleanup(
    bucket: Bucket, blocked: Cleanup, caplog: pytest.LogCaptureFixture
) -> None:
    """As a signal receiver of the site does that deletes the files of each deleted row."""
    row = R2Object.objects.get()
    other = bucket.upload("proj_1")
    default_storage.delete(row.key)
    default_storage.delete(other)
    assert bucket.keys() == {row.key}
    assert R2Object.objects.get() == row
    assert f"{row.key} is not deleted now. Cleanup {blocked.pk} covers" in caplog.text
    requests.approve_or_retry(blocked)
    assert run_until_idle(blocked).status == Status.CLEAN
    assert bucket.keys() == set()


@pytest.mark.parametrize("is_overwritten", [True, False])
def test_storage_deletes_a_file_that_a_person_gave_to_another_project(
    bucket: Bucket, is_overwritten: bool
) -> None:
    create_projects("proj_a", "proj_a_b")
    bucket.put(AMBIGUOUS)
    assign_object(bucket, AMBIGUOUS, "proj_a")
    if is_overwritten:
        bucket.put(AMBIGUOUS, body=b"another")
    request_cleanup("proj_a_b")
    Cleanup.objects.update(status="blocked", next_attempt_at=None)
    default_storage.delete(AMBIGUOUS)
    assert bucket.keys() == ({AMBIGUOUS} if is_overwritten else set())


# It can be read in more ways than are looked at.
MANY = "proj_{}_s" + "_a" * MAX_WAYS + "_media.mp4"


@pytest.fixture
def many(bucket: Bucket, blocked: Cleanup) -> str:
    """A file that could be of proj_9, or of one of too many others."""
    key = default_storage.save(MANY.format(9), ContentFile(b"x"))
    assert get_key_formats().parse_key(key).too_many and not get_key_formats().parse_key(key)
    return key


def test_storage_leaves_a_file_of_too_many_owners_to_the_blocked_cleanup_of_one(
    bucket: Bucket, blocked: Cleanup, many: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = default_storage.save(MANY.format(8), ContentFile(b"x"))
    default_storage.delete(many)
    default_storage.delete(other)
    assert bucket.keys() & {many, other} == {many}
    assert f"Cleanup {blocked.pk} covers this file" in caplog.text
    requests.approve_or_retry(blocked)
    assert run_until_idle(blocked).status == Status.CLEAN_WITH_KEPT
    default_storage.delete(many)
    assert not bucket.keys()


def test_file_of_too_many_owners_whose_row_is_deleted_waits_for_the_blocked_cleanup_of_one(
    bucket: Bucket, blocked: Cleanup, many: str
) -> None:
    R2Object.objects.get(key=many).delete()
    cleanup = run_until_idle(Cleanup.objects.get(kind="objects"))
    assert read_outcomes(cleanup) == {many: "kept"}
    assert read_reason(cleanup, many).startswith(f"Cleanup {blocked.pk} covers this file")
    assert bucket.keys() >= {many}


def test_file_of_too_many_owners_is_not_assigned_while_the_cleanup_of_one_is_blocked(
    bucket: Bucket, blocked: Cleanup, many: str
) -> None:
    found = create_findings(bucket, many, kind="ambiguous", project_id=None)
    [left] = track_files.assign_objects(list_ids(found), "proj_1").skipped
    assert left.reason.startswith(f"Cleanup {blocked.pk} covers this file")


def test_file_of_too_many_owners_waits_for_a_person_where_many_projects_disappeared(
    bucket: Bucket, settings: Settings, many: str
) -> None:
    Cleanup.objects.all().delete()
    limit(settings, LIMIT_VANISHED=0)
    create_projects("proj_9")
    Project.objects.filter(pk="proj_9")._raw_delete("default")
    vanished_projects.check_vanished_projects()
    assert Cleanup.objects.get().kind == "vanished"
    default_storage.delete(many)
    assert bucket.keys() >= {many}


SPELLED = ["éé", "e\u0301e\u0301", "ée\u0301", "e\u0301é"]


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["project", "vanished"])
def test_file_of_too_many_owners_is_covered_by_its_project_in_any_spelling(kind: str) -> None:
    same = {f"proj_{text}" for text in SPELLED}
    ids = ["proj_a", "proj_K\u212a", *same]
    if kind == "project":
        for project_id in ids:
            create_cleanup("blocked", project_id=project_id)
    else:
        create_cleanup("blocked", kind=kind, vanished_ids=ids)
    keys = {text: MANY.format(text) for text in ["b", "KK", "\u212aK", *SPELLED]}
    found = find_unnamed_owners(Cleanup.objects.covering(), keys.values())
    kelvin = {"proj_K\u212a"}
    expected = {"b": set(), "KK": kelvin, "\u212aK": kelvin} | dict.fromkeys(SPELLED, same)
    assert {text: found[key] for text, key in keys.items()} == expected
