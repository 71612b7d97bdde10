"""What must not happen while a deletion can still be undone, whichever way is tried."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.cleanup import end_deletions, held_ids, limits, requests, runner
from storage_audit.cleanup.models import Cleanup, Snapshot
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership import bucket_marker
from tests.held import delete_held, end_hold, grant_grace
from tests.promises import Status, create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files

pytestmark = pytest.mark.database
LATE = "projects/proj_1/scenes/s9/media/late.mp4"


@pytest.fixture(autouse=True)
def _grace(settings: Settings) -> None:
    grant_grace(settings)


def run_all() -> None:
    """As workers would, once all that waits is due."""
    for cleanup in Cleanup.objects.order_by("created_at"):
        run_until_idle(cleanup)


@pytest.mark.parametrize("way", ["declare", "plan"])
def test_no_other_cleanup_takes_the_late_files_of_a_held_project(bucket: Bucket, way: str) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    assert cleanup.status == Status.CLEAN  # It has no files, and can be undone all the same.
    bucket.put(LATE)
    if way == "declare":
        requests.declare_deleted("proj_1")
    else:
        [plan] = requests.request_preview("proj_1")
        run_until_idle(plan)
        plan.refresh_from_db()
        requests.approve_or_retry(plan)
    run_all()
    assert bucket.keys() == {LATE}
    end_deletions.undo_deletion(cleanup)
    run_all()
    assert bucket.keys() == {LATE}
    assert Project.objects.exists()
    assert not Cleanup.objects.deleting().open().exists()


@pytest.mark.parametrize("way", ["declare", "plan"])
def test_such_a_cleanup_runs_once_the_hold_is_over(bucket: Bucket, way: str) -> None:
    create_projects("proj_1")
    delete_held()
    bucket.put(LATE)
    if way == "declare":
        [late] = requests.declare_deleted("proj_1")
    else:
        [late] = requests.request_preview("proj_1")
        run_until_idle(late)
        late.refresh_from_db()
        requests.approve_or_retry(late)
    run_until_idle(late)
    for each in Cleanup.objects.filter(trigger="deleted"):
        end_hold(each)
    end_hold(late)
    assert run_until_idle(late).status == Status.CLEAN
    assert not bucket.keys()
    assert KnownProject.objects.get().kept_for == ""


def test_stale_instance_is_no_way_to_create_a_held_id(bucket: Bucket) -> None:
    create_projects("proj_1")
    stale = Project.objects.get()
    put_files(bucket, 1)
    cleanup = delete_held()
    stale.title = "saved by a job that began before"
    with pytest.raises(held_ids.ProjectHeld):
        stale.save()
    assert not Project.objects.exists()
    end_deletions.undo_deletion(cleanup)
    stale.save()
    assert Project.objects.get().title == stale.title


def test_row_that_came_past_us_can_be_saved(bucket: Bucket) -> None:
    create_projects("proj_1")
    delete_held()
    Project.objects.bulk_create([Project(pk="proj_1")])
    project = Project.objects.get()
    project.title = "new"
    project.save()
    assert KnownProject.objects.get().kept_for == ""


def test_undo_of_a_project_does_not_fail_on_a_file_that_was_replaced_before(
    bucket: Bucket,
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get().delete()
    row = runner.run_to_end(Cleanup.objects.get().pk)
    bucket.put(key, body=b"a better take")
    newer = R2Object.objects.create(
        bucket=bucket.name, key=key, project_id="proj_1", source="upload", state="stored", etag="b"
    )
    project = delete_held()
    end_deletions.undo_deletion(project)
    assert Project.objects.exists()
    assert R2Object.objects.get().etag == newer.etag
    row.refresh_from_db()
    assert row.status != Status.UNDONE


def test_erase_now_keeps_the_distance_of_follow_ups(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    hold = cleanup.held_until
    assert hold
    [*_others, before] = cleanup.children.order_by("next_attempt_at").values_list(
        "next_attempt_at", flat=True
    )
    end_deletions.erase_deletion(cleanup, "asked for")
    now = timezone.now()
    [*_others, after] = cleanup.children.order_by("next_attempt_at").values_list(
        "next_attempt_at", flat=True
    )
    assert before and after
    assert after - now > before - hold - timedelta(minutes=1)


def test_approval_within_the_hold_lifts_no_doubt_of_a_later_listing(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    create_projects("proj_1")
    put_files(bucket, 4)
    cleanup = delete_held()
    requests.approve_or_retry(cleanup)
    end_hold(cleanup)
    monkeypatch.setattr(limits, "unsent_share_reason", lambda cleanup: "The listing is doubtful.")
    done = run_until_idle(cleanup)
    assert (done.status, done.message) == (Status.BLOCKED, "The listing is doubtful.")


def test_database_clock_ahead_forgets_no_copy_of_a_project_without_files(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    end_hold(cleanup)

    def store_is_behind(bucket: str) -> datetime:
        return timezone.now() - timedelta(hours=24)

    with monkeypatch.context() as patch:
        patch.setattr(bucket_marker, "read_store_time", store_is_behind)
        tasks.sweep()
    assert Snapshot.objects.exists()
    assert KnownProject.objects.get().kept_for == "hold"
    tasks.sweep()
    assert not Snapshot.objects.exists()


def test_cancel_of_what_is_done_is_refused(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": timedelta(0)}
    create_projects("proj_1")
    put_files(bucket, 1)
    done = delete_held()
    assert done.status == Status.CLEAN
    with pytest.raises(IllegalTransition, match="over"):
        end_deletions.cancel_deletion(done, "")
    assert done.children.open().exists()
    assert KnownProject.objects.get().kept_for == ""


def test_erase_now_takes_files_of_rows_that_were_deleted_before(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.get().delete()
    runner.run_to_end(Cleanup.objects.get().pk)
    project = delete_held()
    end_deletions.erase_deletion(project, "asked for")
    run_all()
    assert not bucket.keys()


def test_earlier_life_is_not_undone_over_a_held_later_one(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    first = delete_held()
    with held_ids.allow_recreation():
        Project.objects.create(pk="proj_1", title="second life")
    Project.objects.get().delete()
    with pytest.raises(IllegalTransition):
        end_deletions.undo_deletion(first)
    second = Cleanup.objects.filter(parent=None).latest("created_at")
    end_deletions.undo_deletion(second)
    assert Project.objects.get().title == "second life"


def test_cancelled_project_without_files_is_held_no_more(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    end_deletions.cancel_deletion(cleanup, "wait")
    cleanup.refresh_from_db()
    assert cleanup.status == Status.CANCELLED
    for decide in (end_deletions.erase_deletion, end_deletions.cancel_deletion):
        with pytest.raises(IllegalTransition):
            decide(cleanup, "again")
    bucket.put(LATE)
    [again] = end_deletions.clean_up_again("proj_1", "it may go")
    assert run_until_idle(again).status == Status.CLEAN
    assert not bucket.keys()
