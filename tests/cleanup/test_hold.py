"""Deletions that are held for a while: what may not happen until then, and what happens after."""

from datetime import datetime, timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.bucket import s3
from storage_audit.cleanup import end_deletions, held_ids, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.models import KnownProject, Project
from storage_audit.ownership import bucket_marker
from storage_audit.tracking.upload import KeyBeingDeleted
from tests.held import delete_held, end_hold, run_after_hold
from tests.promises import Status, create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files

pytestmark = pytest.mark.database
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _grace(settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": 72 * HOUR}


def test_held_cleanup_is_planned_and_deletes_nothing_until_its_time(bucket: Bucket) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 3)
    cleanup = delete_held()
    assert (cleanup.status, cleanup.step) == (Status.PENDING, "held")
    assert cleanup.is_held()
    assert cleanup.next_attempt_at == cleanup.held_until
    assert cleanup.items.planned().count() == 3
    assert bucket.keys() == set(keys)
    assert run_after_hold(cleanup).status == Status.CLEAN
    assert not bucket.keys()


def test_cleanup_is_planned_again_when_its_hold_is_over(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    late = "projects/proj_1/scenes/s9/media/late.mp4"
    bucket.put(late)
    done = run_after_hold(cleanup)
    assert (done.status, done.deleted) == (Status.CLEAN, 2)


def test_second_plan_takes_what_the_first_one_kept(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "COMMIT_TIMEOUT": timedelta(0)}
    shared = "proj_1_a_s1_media.mp4"
    create_projects("proj_1", "proj_1_a")
    bucket.put(shared)
    cleanup = delete_held("proj_1")
    assert cleanup.items.get().outcome == "kept"
    run_after_hold(delete_held("proj_1_a"))
    assert bucket.keys() == {shared}
    assert run_after_hold(cleanup).status == Status.CLEAN
    assert not bucket.keys()


@pytest.mark.parametrize("push", ["make_due", "approve", "force", "direct"])
def test_no_way_but_erase_now_ends_the_hold_early(
    bucket: Bucket, settings: Settings, push: str
) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 4)
    if push == "approve":
        settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    cleanup = delete_held()
    if push == "approve":
        assert cleanup.status == Status.BLOCKED
        [cleanup] = requests.approve_or_retry(cleanup)
        assert cleanup.next_attempt_at == cleanup.held_until
    if push == "force":
        Cleanup.objects.update(limits_waived_by="anna")
    if push == "direct":
        # As a faulty caller might: the gate stands before each request, and not in the schedule.
        Cleanup.objects.update(step="delete")
    Cleanup.objects.update(next_attempt_at=timezone.now())
    run_until_idle(cleanup)
    assert bucket.keys() == set(keys)
    assert not Cleanup.objects.filter(first_request_at__isnull=False).exists()


@pytest.mark.parametrize("growth", ["more files", "more bytes"])
def test_approval_within_the_hold_covers_no_larger_plan(
    bucket: Bucket, settings: Settings, growth: str
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    create_projects("proj_1")
    keys = put_files(bucket, 4)
    cleanup = delete_held()
    requests.approve_or_retry(cleanup)
    if growth == "more files":
        bucket.put("projects/proj_1/scenes/s9/media/late.mp4", body=b"")
    else:
        bucket.put(keys[0], body=b"longer than before")
    there = bucket.keys()
    assert run_after_hold(cleanup).status == Status.BLOCKED
    assert bucket.keys() == there
    # After the hold, the person approves the plan that is shown.
    cleanup.refresh_from_db()
    requests.approve_or_retry(cleanup)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_approval_within_the_hold_covers_the_same_plan_later(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    create_projects("proj_1")
    put_files(bucket, 4)
    cleanup = delete_held()
    requests.approve_or_retry(cleanup)
    assert run_after_hold(cleanup).status == Status.CLEAN


def test_hold_does_not_end_while_the_stores_clock_is_behind(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 1)
    cleanup = delete_held()

    def store_is_behind(bucket: str) -> datetime:
        return timezone.now() - 24 * HOUR

    with monkeypatch.context() as patch:
        patch.setattr(bucket_marker, "read_store_time", store_is_behind)
        waiting = run_after_hold(cleanup)
    assert waiting.next_attempt_at and waiting.next_attempt_at > timezone.now()
    assert bucket.keys() == set(keys)


def test_project_without_files_closes_at_once_and_its_follow_ups_wait(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    assert cleanup.status == Status.CLEAN
    first = cleanup.children.order_by("next_attempt_at").first()
    assert first and cleanup.held_until and first.next_attempt_at
    assert first.next_attempt_at >= cleanup.held_until + HOUR
    tasks.sweep()
    assert KnownProject.objects.get(pk="proj_1").kept_for == "hold"
    end_hold(cleanup)
    tasks.sweep()
    assert KnownProject.objects.get(pk="proj_1").kept_for == ""


def test_neighbour_keeps_a_file_that_a_held_project_may_own(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "COMMIT_TIMEOUT": timedelta(0)}
    shared = "proj_1_a_s1_media.mp4"
    create_projects("proj_1", "proj_1_a")
    bucket.put(shared)
    delete_held("proj_1_a")
    neighbour = run_after_hold(delete_held("proj_1"))
    assert bucket.keys() == {shared}
    assert neighbour.kept == 1
    last = Cleanup.objects.get(project_id="proj_1_a", parent=None)
    run_after_hold(last)
    assert not bucket.keys()


def test_id_of_a_held_project_is_refused_to_a_new_one(bucket: Bucket) -> None:
    create_projects("proj_1")
    delete_held()
    with pytest.raises(held_ids.ProjectHeld, match="can still be restored"):
        Project.objects.create(pk="proj_1")
    assert not Project.objects.exists()
    with held_ids.allow_recreation():
        Project.objects.create(pk="proj_1")
    assert KnownProject.objects.get(pk="proj_1").kept_for == ""


def test_upload_to_a_held_project_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_10")
    delete_held()
    with pytest.raises(KeyBeingDeleted, match="until it is restored"):
        default_storage.save("projects/proj_1/scenes/s1/media/new.mp4", ContentFile(b"new"))
    key = bucket.upload("proj_10")
    assert bucket.keys() == {key}


def test_sweep_leaves_the_time_of_a_held_cleanup_alone(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    delete_held()
    assert not Cleanup.objects.scheduled_too_far().exists()


# Erase now


def test_erase_now_skips_the_hold_and_keeps_the_reason(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 2)
    cleanup = delete_held()
    end_deletions.erase_deletion(cleanup, "The customer asked for it.")
    done = run_until_idle(cleanup)
    assert (done.status, done.deleted) == (Status.CLEAN, 2)
    assert done.decision_reason == "The customer asked for it."
    assert KnownProject.objects.get(pk="proj_1").kept_for == ""


def test_erase_now_needs_a_hold_and_a_reason(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    with pytest.raises(IllegalTransition, match="Enter a reason"):
        end_deletions.erase_deletion(cleanup, " ")
    done = run_after_hold(cleanup)
    with pytest.raises(IllegalTransition, match="is not held"):
        end_deletions.erase_deletion(done, "too late")


# Cancel


def test_cancelled_deletion_keeps_its_files_from_everyone(bucket: Bucket) -> None:
    shared = "proj_1_a_s1_media.mp4"
    create_projects("proj_1", "proj_1_a")
    keys = {*put_files(bucket, 2), shared}
    bucket.put(shared)
    cleanup = delete_held("proj_1_a")
    end_deletions.cancel_deletion(cleanup, "needed for a lawsuit")
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.decision_reason) == (Status.CANCELLED, "needed for a lawsuit")
    assert not Cleanup.objects.of_deletion("proj_1_a", cleanup.project_deleted_at).open().exists()
    with pytest.raises(IllegalTransition, match="Clean up again"):
        requests.declare_deleted("proj_1_a")
    run_after_hold(delete_held("proj_1"))
    assert bucket.keys() == {shared}
    assert keys > {shared}


def test_clean_up_again_lifts_a_cancellation(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 2)
    cleanup = delete_held()
    end_deletions.cancel_deletion(cleanup, "wait")
    [again] = end_deletions.clean_up_again("proj_1", "the lawsuit is over")
    assert run_until_idle(again).status == Status.CLEAN
    assert not bucket.keys()


def test_cancel_of_a_running_cleanup_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    Cleanup.objects.filter(pk=cleanup.pk).update(
        status="running", lease_until=timezone.now() + timedelta(seconds=30)
    )
    with pytest.raises(IllegalTransition, match="running"):
        end_deletions.cancel_deletion(cleanup, "")
    assert KnownProject.objects.get(pk="proj_1").kept_for == "hold"


def test_cancel_after_the_first_request_verifies_what_was_sent(bucket: Bucket) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 3)
    cleanup = delete_held()
    sent = cleanup.items.get(key=keys[0])
    cleanup.items.filter(pk=sent.pk).update(outcome="deleting", calls=1, store_answer="deleted")
    s3.delete_single(bucket.name, keys[0])
    Cleanup.objects.filter(pk=cleanup.pk).update(
        step="delete", first_request_at=timezone.now(), status="retrying"
    )
    end_hold(cleanup)
    cleanup.refresh_from_db()
    end_deletions.cancel_deletion(cleanup, "stop")
    done = run_until_idle(cleanup)
    assert (done.status, done.deleted, done.kept) == (Status.CANCELLED, 1, 2)
    assert bucket.keys() == set(keys[1:])


def test_cancel_sends_nothing_again_that_is_still_there(bucket: Bucket) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 3)
    cleanup = delete_held()
    cleanup.items.filter(key=keys[0]).update(outcome="deleting", calls=1, store_answer="slow down")
    Cleanup.objects.filter(pk=cleanup.pk).update(
        step="delete", first_request_at=timezone.now(), status="retrying"
    )
    end_hold(cleanup)
    cleanup.refresh_from_db()
    end_deletions.cancel_deletion(cleanup, "stop")
    done = run_until_idle(cleanup)
    assert (done.status, done.deleted, done.kept) == (Status.CANCELLED, 0, 3)
    assert bucket.keys() == set(keys)
