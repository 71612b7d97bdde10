"""Verifications and dry runs: they look, say what they saw, and delete nothing."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.listing import escape
from storage_audit.cleanup import limits, plan, requests, runner
from storage_audit.cleanup.cloudflare_crosscheck import SecondLook
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.cleanup.requests import ProjectExists
from storage_audit.cleanup.turn import TurnOver, Work
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.tracking.upload import Upload
from tests.faults.kinds import changed
from tests.faults.matching import is_listing_at, on
from tests.faults.pages import with_contents
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import (
    FLAT,
    HIERARCHICAL,
    Status,
    again,
    alive,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    make_due,
    outcomes,
    reason,
    run,
    track,
    verify_project,
)
from tests.real_bucket import Bucket
from tests.times import AHEAD


def dry_run(project_id: str) -> CleanupOperation:
    (operation,) = requests.dry_run(project_id)
    return run(operation)


def test_live_project_whose_bucket_and_table_agree_is_in_step(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_10")
    operation = verify_project("proj_1")
    assert operation.status == Status.CLEAN
    assert operation.error == "1 in step, 0 missing, 0 untracked."
    check(bucket)


def test_live_project_with_missing_and_untracked_objects(bucket: Bucket) -> None:
    kept = bucket.upload("proj_1")
    track(bucket, HIERARCHICAL, "proj_1")
    track(bucket, "odd/key", "proj_1")
    bucket.put(FLAT)
    operation = verify_project("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert operation.next_attempt_at is None
    assert operation.error == "1 in step, 2 missing, 1 untracked."
    assert outcomes(operation) == {HIERARCHICAL: "failed", "odd/key": "failed", FLAT: "failed"}
    assert bucket.keys() == {kept, FLAT}
    assert set(R2Object.objects.values_list("state", flat=True)) == {"stored"}
    check(bucket)


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_object_that_is_changing_is_not_called_missing(bucket: Bucket, state: str) -> None:
    alive("proj_1")
    track(bucket, HIERARCHICAL, "proj_1", state=state)
    assert verify_project("proj_1").error == "0 in step, 0 missing, 0 untracked."
    R2Object.objects.update(state="stored", updated_at=timezone.now() + AHEAD)
    assert verify_project("proj_1").error == "0 in step, 0 missing, 0 untracked."
    # Nobody has it in hand any more: the process was killed.
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=25))
    assert verify_project("proj_1").error == "0 in step, 1 missing, 0 untracked."


def test_upload_that_ends_while_the_bucket_is_listed_is_not_called_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = plan.discover_tracked

    def discover_tracked(work: Work, span: int) -> None:
        if work.operation.ranges[span].startswith("projects/proj_1/"):
            bucket.upload("proj_1")
        original(work, span)

    alive("proj_1")
    monkeypatch.setattr(plan, "discover_tracked", discover_tracked)
    assert verify_project("proj_1").error == "1 in step, 0 missing, 0 untracked."


def test_file_that_the_application_deletes_meanwhile_is_not_called_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, errors = s3.delete_single, list[str]()

    def delete_and_verify(*args: Any) -> Any:
        answer = original(*args)
        errors.append(verify_project("proj_1").error)
        return answer

    alive("proj_1")
    default_storage.save(HIERARCHICAL, ContentFile(b"content"))
    monkeypatch.setattr(s3, "delete_single", delete_and_verify)
    default_storage.delete(HIERARCHICAL)
    assert errors == ["0 in step, 0 missing, 0 untracked."]


def test_tracked_object_whose_key_names_another_project_is_not_called_missing(
    bucket: Bucket,
) -> None:
    alive("proj_1", "proj_2")
    key = "projects/proj_2/scenes/s1/media/a.mp4"
    bucket.put(key)
    track(bucket, key, "proj_1", "backfill")
    operation = verify_project("proj_1")
    assert outcomes(operation) == {key: "protected"}
    check(bucket)


LATE = "projects/proj_1/scenes/s1/media/late.mp4"


def behind_the_listing(patch: pytest.MonkeyPatch, *effects: Callable[[], object]) -> None:
    """Let these happen once, after the prefix of the project was listed."""
    original, todo = plan.discover_tracked, list(effects)

    def discover_tracked(work: Work, span: int) -> None:
        while todo and work.operation.ranges[span].startswith("projects/proj_1/"):
            todo.pop(0)()
        original(work, span)

    patch.setattr(plan, "discover_tracked", discover_tracked)


def test_file_of_an_upload_that_ends_behind_the_listing_is_not_called_absent(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    upload = Upload(bucket.name, LATE).begin()
    delete("proj_1")
    behind_the_listing(monkeypatch, lambda: bucket.put(LATE), upload.confirm)
    found = verify_project("proj_1")
    assert found.error == "1 left behind, 0 seen absent."
    assert outcomes(found) == {LATE: "failed"}


def test_key_with_an_upload_under_way_is_not_called_absent(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    delete("proj_1")
    Upload(bucket.name, LATE).begin()
    assert verify_project("proj_1").error == "0 left behind, 0 seen absent."


@pytest.mark.parametrize("ahead", [timedelta(0), AHEAD])
def test_file_that_an_upload_stores_behind_the_last_look_is_not_called_absent(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    key = bucket.upload("proj_1")
    operation = requests.verify_operation(delete("proj_1"))
    take = SecondLook.take

    def upload_first(look: SecondLook) -> str:
        default_storage.save(key, ContentFile(b"again"))
        R2Object.objects.update(updated_at=timezone.now() + ahead)
        return take(look)

    monkeypatch.setattr(SecondLook, "take", upload_first)
    assert run(operation).error == "0 left behind, 0 seen absent."


def test_file_that_is_put_again_behind_the_listing_is_not_called_absent(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    operation = requests.verify_operation(delete("proj_1"))
    behind_the_listing(monkeypatch, lambda: bucket.put(key))
    found = run(operation)
    assert found.error == "1 left behind, 0 seen absent."
    assert outcomes(found) == {key: "failed"}


def test_file_under_a_prefix_that_is_another_projects_by_now_is_not_called_absent(
    bucket: Bucket, settings: Settings
) -> None:
    formats = {"folder": "{project}/{filename}", "flat": "{project}_{scene}.{ext}"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LAYOUTS": formats}
    alive("proj_1")
    key = "proj_1_x/readme.txt"
    bucket.put(key)
    track(bucket, key, "proj_1", "adopted")
    operation = delete("proj_1")
    assert outcomes(operation) == {key: "deleted"}
    assert run(requests.verify_operation(operation)).error == "0 left behind, 1 seen absent."
    bucket.put(key)
    assert run(requests.verify_operation(operation)).error == "0 left behind, 0 seen absent."


def test_verification_that_takes_several_turns_takes_over_nothing_twice(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is another project's by now was dropped in an earlier turn."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    alive("proj_1", "proj_2")
    bucket.set_marker(folds_unicode=True)
    bucket.put(NFC)
    cleaned = delete("proj_1")
    bucket.put(NFD)
    track(bucket, NFD, "proj_2", "adopted")
    take, turns = SecondLook.take, list[None]()

    def ask_later(look: SecondLook) -> str:
        turns.append(None)
        if len(turns) == 1:
            raise TurnOver
        return take(look)

    monkeypatch.setattr(SecondLook, "take", ask_later)
    found = run(requests.verify_operation(cleaned))
    assert found.error == "0 left behind, 0 seen absent."
    assert len(turns) == 2


def test_deleted_project_with_leftovers(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put(HIERARCHICAL, FLAT)
    track(bucket, "projects/proj_1/scenes/s1/media/gone.mp4", "proj_1")
    operation = verify_project("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert operation.error == "2 left behind, 1 seen absent."
    assert bucket.keys() == {HIERARCHICAL, FLAT}
    assert R2Object.objects.count() == 1
    check(bucket)


def test_deleted_project_with_nothing_left_is_clean(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put("proj_10_s1_media.mp4")
    assert verify_project("proj_1").status == Status.CLEAN


def test_verification_of_a_cleanup(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put(HIERARCHICAL, FLAT)
    cleanup = delete("proj_1")
    assert run(requests.verify_operation(cleanup)).status == Status.CLEAN
    bucket.put(FLAT)
    found = run(requests.verify_operation(cleanup))
    assert found.parent == cleanup
    assert found.error == "1 left behind, 1 seen absent."
    assert outcomes(found) == {FLAT: "failed", HIERARCHICAL: "already_absent"}
    assert bucket.keys() == {FLAT}


def test_verification_of_a_cleanup_that_protected_something_says_what_waits(
    bucket: Bucket,
) -> None:
    alive("proj_1", "proj_1_x")
    bucket.put(HIERARCHICAL, "proj_1_x_s1_media.mp4")
    found = run(requests.verify_operation(delete("proj_1")))
    assert found.status == Status.CLEAN_WITH_PROTECTED
    assert found.error == "0 left behind, 1 seen absent."
    assert outcomes(found) == {
        HIERARCHICAL: "already_absent",
        "proj_1_x_s1_media.mp4": "protected",
    }


def test_verification_sees_a_key_outside_every_prefix_at_its_own_place(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put("odd/key")
    track(bucket, "odd/key", "proj_1")
    cleanup = delete("proj_1")
    assert run(requests.verify_operation(cleanup)).error == "0 left behind, 1 seen absent."
    bucket.put("odd/key")
    found = run(requests.verify_operation(cleanup))
    assert outcomes(found) == {"odd/key": "failed"}


@pytest.mark.parametrize("key", [FLAT, "odd/key"])
def test_key_that_another_project_took_since_is_not_of_the_verified_cleanup(
    bucket: Bucket, key: str
) -> None:
    alive("proj_1", "proj_2")
    bucket.put(HIERARCHICAL, key)
    track(bucket, key, "proj_1")
    cleanup = delete("proj_1")
    bucket.put(key)
    track(bucket, key, "proj_2")
    found = run(requests.verify_operation(cleanup))
    assert outcomes(found) == {HIERARCHICAL: "already_absent"}


@pytest.mark.parametrize("name", ["old.mp3", "a\0b.mp3"])
def test_verification_looks_for_files_whose_key_format_was_retired_since(
    bucket: Bucket, settings: Settings, name: str
) -> None:
    alive("proj_1")
    key = f"audio/proj_1/s1/{name}"
    bucket.put(key)
    operation = delete("proj_1")
    bucket.r2.remove(key, bucket.name)
    if operation.status != Status.CLEAN:
        operation = again(operation)
    assert set(outcomes(operation).values()) <= {"deleted", "already_absent"}
    bucket.put(key)
    kinds = ("captions", "images", "thumbnails", "video")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"KINDS": kinds}
    found = run(requests.verify_operation(operation))
    assert found.status == Status.INCOMPLETE
    assert outcomes(found) == {escape(key): "failed"}


def test_verification_by_a_worker_that_lost_its_lease_takes_nothing_over(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    operation = requests.verify_operation(delete("proj_1"))

    def sleep(operation: CleanupOperation) -> str:
        CleanupOperation.objects.filter(pk=operation.pk).update(lease_until=timezone.now())
        return ""

    monkeypatch.setattr(limits, "missing", sleep)
    assert runner.run_slice(operation.pk) is None
    assert not operation.items.exists()


def test_verification_of_deleted_objects_of_several_projects(bucket: Bucket) -> None:
    keys = [bucket.upload("proj_1"), bucket.upload("proj_2")]
    kept = bucket.upload("proj_2", "kept.mp4")
    R2Object.objects.filter(key__in=keys).delete()
    operation = run(CleanupOperation.objects.get())
    assert operation.project_id is None
    check_again = run(requests.verify_operation(operation))
    assert check_again.status == Status.CLEAN
    assert check_again.error == "0 left behind, 2 seen absent."
    again = run(requests.verify_operation(check_again))
    assert again.error == "0 left behind, 2 seen absent."
    bucket.put(keys[0], body=b"another object")
    other = run(requests.verify_operation(operation))
    assert outcomes(other) == {keys[0]: "protected", keys[1]: "already_absent"}
    bucket.put(keys[0], body=b"take")
    assert run(requests.verify_operation(operation)).error == "1 left behind, 1 seen absent."
    assert bucket.keys() == {keys[0], kept}


def test_verification_of_deleted_objects_looks_twice_for_what_it_would_call_absent(
    bucket: Bucket, store: FaultyStore
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get().delete()
    operation = run(CleanupOperation.objects.get())
    bucket.put(key, body=b"take")

    def without(page: str) -> str:
        return with_contents(page, [])

    store.rules.append(on(is_listing_at(key), changed(without), times=1))
    assert run(requests.verify_operation(operation)).error == "1 left behind, 0 seen absent."


def test_verification_is_never_turned_into_a_deletion(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put(HIERARCHICAL)
    operation = verify_project("proj_1")
    with pytest.raises(IllegalTransition):
        requests.force_delete_operation(operation)
    operation.retry()
    run(make_due(operation))
    assert bucket.keys() == {HIERARCHICAL}
    check(bucket)


# Dry runs

KEYS = [f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(4)]


def test_dry_run_freezes_a_plan_and_deletes_nothing(bucket: Bucket) -> None:
    alive("proj_1", "proj_1_x")
    bucket.put(*KEYS, "proj_1_x_s1_media.mp4")
    track(bucket, KEYS[0], "proj_1")
    preview = dry_run("proj_1")
    assert preview.status == Status.PLANNED
    assert len(preview.plan_digest) == 64
    assert preview.ranges
    assert preview.next_attempt_at is None
    assert preview.items.planned().count() == len(KEYS)
    assert reason(preview, "proj_1_x_s1_media.mp4")
    assert len(bucket.keys()) == 5
    assert R2Object.objects.get().state == "stored"
    assert not preview.children.exists()


def test_plan_that_the_timeline_cannot_tell_of_is_not_frozen(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    [operation] = requests.dry_run("proj_1")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(runner, "record_plan", lambda operation: 1 / 0)
        run(operation)
    operation = again(operation)
    assert operation.events.filter(message__startswith="Found 1 objects").count() == 1
    assert operation.status == Status.PLANNED


def test_digest_tells_plans_apart(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put(*KEYS)
    one, same = dry_run("proj_1"), dry_run("proj_1")
    assert one.plan_digest == same.plan_digest
    bucket.put(KEYS[0])
    assert dry_run("proj_1").plan_digest != one.plan_digest


def test_running_a_plan_deletes_a_subset_and_says_why_the_rest_stays(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    digest, planned = preview.plan_digest, set(outcomes(preview))
    late = "projects/proj_1/scenes/s1/media/late.mp4"
    bucket.put(late, KEYS[0])
    bucket.put(KEYS[1], body=b"other content")
    bucket.r2.remove(KEYS[2])
    requests.force_delete_operation(preview)
    operation = run(preview)
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert outcomes(operation) == {
        KEYS[0]: "protected",
        KEYS[1]: "protected",
        KEYS[2]: "already_absent",
        KEYS[3]: "deleted",
        late: "protected",
    }
    assert "overwritten" in reason(operation, KEYS[0])
    assert "overwritten" in reason(operation, KEYS[1])
    assert "appeared" in reason(operation, late)
    assert bucket.keys() == {late, KEYS[0], KEYS[1]}
    assert operation.plan_digest == digest
    assert {k for k, o in outcomes(operation).items() if o == "deleted"} <= planned
    check(bucket)


def test_plan_of_a_live_project_is_refused(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    with pytest.raises(ProjectExists):
        requests.force_delete_operation(preview)
    preview.execute("me")
    assert run(preview).status == Status.SUPERSEDED
    assert bucket.keys() == set(KEYS)
    check(bucket)


def test_plan_whose_project_is_born_while_it_runs_deletes_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    preview.execute("me")
    between_plan_and_batch(monkeypatch, lambda: alive("proj_1"))
    assert run(preview).status == Status.SUPERSEDED
    assert bucket.keys() == set(KEYS)


def test_dry_run_larger_than_the_limit_says_so(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    alive("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    assert preview.status == Status.PLANNED
    assert "4 objects" in preview.error


# Files left behind before this was installed


def test_declared_project_is_cleaned_up(bucket: Bucket) -> None:
    bucket.put(*KEYS, "proj_10_s1_media.mp4")
    (operation,) = requests.declare_deleted("proj_1")
    assert run(operation).status == Status.CLEAN
    assert bucket.keys() == {"proj_10_s1_media.mp4"}
    assert KnownProject.objects.get(pk="proj_1").evidence == "declared"
    check(bucket)


def test_only_project_ids_that_are_not_alive_can_be_declared_deleted(bucket: Bucket) -> None:
    alive("proj_1")
    with pytest.raises(ProjectExists):
        requests.declare_deleted("proj_1")
    for wrong in ("proj", "proj_", "proj_proj_1", "", "projects", "proj_1/"):
        with pytest.raises(ValidationError):
            requests.declare_deleted(wrong)
    assert not CleanupOperation.objects.exists()
    assert Project.objects.count() == 1
