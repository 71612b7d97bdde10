"""Undo: the rows come back, the files stay, and nothing is both restored and erased."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.bucket import s3
from storage_audit.cleanup import end_deletions, held_ids, runner
from storage_audit.cleanup.models import Cleanup, Snapshot
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.models import KnownProject, Project, R2Object
from tests.database import THREAD_TIMEOUT_SECONDS, with_own_connection
from tests.held import delete_held, end_hold, run_after_hold
from tests.promises import Status, create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files

pytestmark = pytest.mark.database
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _grace(settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": 72 * HOUR}


def test_undo_brings_the_project_back_and_keeps_its_files(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1", title="Holiday film")
    keys = put_files(bucket, 2)
    cleanup = delete_held()
    end_deletions.undo_deletion(cleanup, "wrong project")
    cleanup.refresh_from_db()
    assert Project.objects.get().title == "Holiday film"
    assert (cleanup.status, cleanup.decision_reason) == (Status.UNDONE, "wrong project")
    assert (cleanup.found, cleanup.kept) == (2, 2)
    known = KnownProject.objects.get(pk="proj_1")
    assert (known.deleted_at, known.kept_for) == (None, "")
    assert not Snapshot.objects.exists()
    assert runner.run_turn(cleanup.pk) is None
    with pytest.raises(IllegalTransition, match="is not held"):
        end_deletions.erase_deletion(cleanup, "too late")
    assert bucket.keys() == set(keys)


def test_undone_project_can_be_used_and_deleted_again(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    end_deletions.undo_deletion(delete_held())
    bucket.upload("proj_1")
    Project.objects.get().delete()
    again = Cleanup.objects.exclude(status=Status.UNDONE).get()
    assert run_after_hold(runner.run_to_end(again.pk)).status == Status.CLEAN
    assert not bucket.keys()


def test_undo_of_a_project_without_files_ends_its_follow_ups(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    assert cleanup.status == Status.CLEAN
    end_deletions.undo_deletion(cleanup)
    assert set(Cleanup.objects.values_list("status", flat=True)) == {Status.UNDONE}
    assert Project.objects.exists()


def test_undo_after_the_first_request_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    done = run_after_hold(delete_held())
    with pytest.raises(IllegalTransition, match="Deleting the files has begun"):
        end_deletions.undo_deletion(done)
    assert not Project.objects.exists()
    assert not Snapshot.objects.exists()


def test_undo_after_erase_now_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    end_deletions.erase_deletion(cleanup, "The customer asked for it.")
    with pytest.raises(IllegalTransition, match="can't be undone"):
        end_deletions.undo_deletion(cleanup)
    assert not Snapshot.objects.exists()


def test_undo_after_cancel_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    end_deletions.cancel_deletion(cleanup, "")
    with pytest.raises(IllegalTransition, match="nothing to undo"):
        end_deletions.undo_deletion(cleanup)


def test_undo_covers_all_buckets_of_the_deletion(bucket: Bucket) -> None:
    create_projects("proj_1")
    key = put_files(bucket, 1)[0]
    R2Object.objects.create(
        bucket="media", key=key, project_id="proj_1", source="upload", state="stored"
    )
    delete_held_in_both()
    first, second = Cleanup.objects.filter(parent=None).order_by("bucket")
    Cleanup.objects.filter(pk=second.pk).update(first_request_at=timezone.now())
    with pytest.raises(IllegalTransition):
        end_deletions.undo_deletion(first)
    Cleanup.objects.filter(pk=second.pk).update(first_request_at=None)
    end_deletions.undo_deletion(first)
    assert set(Cleanup.objects.values_list("status", flat=True)) == {Status.UNDONE}


def delete_held_in_both() -> None:
    Project.objects.get().delete()
    for cleanup in Cleanup.objects.filter(parent=None):
        runner.run_to_end(cleanup.pk)


def test_undo_never_replaces_a_project_with_the_same_id(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    with held_ids.allow_recreation():
        Project.objects.create(pk="proj_1", title="another one")
    with pytest.raises((IllegalTransition, CannotRestore)):
        end_deletions.undo_deletion(cleanup)
    assert Project.objects.get().title == "another one"


def test_deleted_row_waits_and_comes_back(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get().delete()
    cleanup = runner.run_to_end(Cleanup.objects.get().pk)
    assert cleanup.is_held()
    end_deletions.undo_deletion(cleanup)
    assert R2Object.objects.get().key == key
    assert bucket.keys() == {key}


def test_row_of_a_held_project_waits_as_long_and_is_undone_with_it(
    bucket: Bucket, settings: Settings
) -> None:
    key = bucket.upload("proj_1")
    project = delete_held()
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": HOUR}
    R2Object.objects.get().delete()
    row = Cleanup.objects.get(kind="objects")
    assert row.held_until == project.held_until
    end_deletions.undo_deletion(project)
    row.refresh_from_db()
    assert row.status == Status.UNDONE
    assert R2Object.objects.get().key == key


def test_sweep_forgets_rows_that_nobody_can_bring_back_any_more(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = delete_held()
    tasks.sweep()
    assert Snapshot.objects.exists()
    end_hold(cleanup)
    tasks.sweep()
    assert not Snapshot.objects.exists()


def test_worker_within_its_turn_loses_an_undone_cleanup(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 2)
    cleanup = delete_held()
    read_page = s3.list_entries
    undone = list[bool]()

    def undo_first(*args: object, **values: object) -> object:
        if not undone:
            undone.append(True)
            end_deletions.undo_deletion(Cleanup.objects.get(pk=cleanup.pk))
        return read_page(*args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr("storage_audit.bucket.listing.list_entries", undo_first)
    end_hold(cleanup)
    runner.run_turn(cleanup.pk)
    assert undone
    run_until_idle(cleanup)
    assert bucket.keys() == set(keys)
    assert Cleanup.objects.get().status == Status.UNDONE


@pytest.mark.only_on("postgresql")
def test_undo_waits_for_the_first_batch_and_is_refused_then(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()
    end_hold(cleanup)
    with transaction.atomic():
        worker = Cleanup.objects.get(pk=cleanup.pk)
        assert worker.acquire_lease()

    def undo() -> str:
        try:
            end_deletions.undo_deletion(Cleanup.objects.get(pk=cleanup.pk))
        except IllegalTransition as refusal:
            return str(refusal)
        return "undone"

    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic():
            worker.begin_sending()
            undoing = thread.submit(with_own_connection(undo))
            assert not wait([undoing], timeout=0.5).done
        answer = undoing.result(THREAD_TIMEOUT_SECONDS)
    assert "Deleting the files has begun" in answer or "can't be undone" in answer
    assert not Project.objects.exists()


@pytest.mark.only_on("postgresql")
def test_erase_waits_for_undo_and_is_refused_then(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = delete_held()

    def erase() -> str:
        try:
            end_deletions.erase_deletion(Cleanup.objects.get(pk=cleanup.pk), "asked for")
        except IllegalTransition as refusal:
            return str(refusal)
        return "erased"

    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic():
            end_deletions.undo_deletion(cleanup)
            erasing = thread.submit(with_own_connection(erase))
            assert not wait([erasing], timeout=0.5).done
        assert "is not held" in erasing.result(THREAD_TIMEOUT_SECONDS)
    assert Project.objects.exists()


def test_follow_up_of_an_earlier_life_deletes_nothing_of_an_undone_one(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": timedelta(0)}
    create_projects("proj_1")
    put_files(bucket, 1)
    run_until_idle(delete_held())
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": HOUR}
    create_projects("proj_1")
    keys = put_files(bucket, 1)
    second = delete_held_again()
    end_deletions.undo_deletion(second)
    Cleanup.objects.filter(trigger="follow_up").update(next_attempt_at=timezone.now())
    for check in Cleanup.objects.filter(trigger="follow_up"):
        runner.run_to_end(check.pk)
    assert bucket.keys() == set(keys)


def delete_held_again() -> Cleanup:
    Project.objects.get().delete()
    return runner.run_to_end(Cleanup.objects.filter(parent=None).latest("created_at").pk)
