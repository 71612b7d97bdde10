"""The brake: what may not happen while deletions are paused, and what goes on."""

from collections.abc import Iterator
from datetime import timedelta
from threading import Event
from time import sleep
from types import ModuleType
from typing import Any

import pytest
from django.db import DatabaseError
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.alerts import alert_rules
from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import (
    delete_batches,
    end_deletions,
    pause_deletions,
    project_uploads,
    requests,
    runner,
)
from storage_audit.cleanup.models import Cleanup, DeletionPause
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.models.pause import DeletionPauseQuerySet
from storage_audit.models import DatabaseIdentity, R2Object
from storage_audit.ownership.bucket_marker import PAUSE_KEY, pause_key
from tests.database import THREAD_TIMEOUT_SECONDS, run_in_thread
from tests.faults.matching import (
    is_delete_batch,
    is_delete_single,
    is_listing_under,
    rule_for,
    run_before,
)
from tests.faults.proxy import FaultyStore
from tests.promises import (
    Status,
    acquire_lease,
    act_before_batch,
    clean_up_project,
    create_projects,
    make_due,
    request_cleanup,
    run_until_idle,
    take_over_lease,
    verify_project,
)
from tests.real_bucket import Bucket, put_files

pytestmark = pytest.mark.database


def pause(cleanup: Cleanup | None = None) -> DeletionPause:
    result = pause_deletions.pause_deletions("something is wrong", cleanup)
    assert not result.unwritten
    return result.pause


def pause_in_database() -> DeletionPause:
    return DeletionPause.objects.create(paused_by="anna", reason="look first")


def resume(cleanup: Cleanup | None = None) -> list[Cleanup]:
    figures = pause_deletions.find_resume_figures(cleanup)
    return pause_deletions.resume_deletions(figures.digest, cleanup)


def prepare_cleanup(bucket: Bucket, count: int = 3) -> tuple[Cleanup, set[str]]:
    create_projects("proj_1")
    keys = set(put_files(bucket, count))
    return request_cleanup("proj_1"), keys


def assert_rests(cleanup: Cleanup) -> None:
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.step, cleanup.lease_token) == (Status.PENDING, "delete", None)
    assert (cleanup.attempts, cleanup.takeovers) == (0, 0)
    assert not Cleanup.objects.due().exists()
    assert Cleanup.objects.paused().exists()


# What stops


def test_paused_cleanup_is_planned_and_deletes_nothing(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()
    run_until_idle(cleanup)
    assert cleanup.items.planned().count() == 3
    assert_rests(cleanup)
    assert bucket.keys() == keys
    assert run_until_idle(cleanup).message.startswith("Deletions are paused by command")
    resume()
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert not bucket.keys()


def test_pause_of_one_cleanup_stops_no_other(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    bucket.upload("proj_2")
    pause(cleanup)
    assert clean_up_project("proj_2").status == Status.CLEAN
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert bucket.keys() == keys
    resume(cleanup)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_pause_of_a_cleanup_covers_its_follow_up_checks(bucket: Bucket) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    assert run_until_idle(cleanup).status == Status.CLEAN
    late = "projects/proj_1/scenes/s1/media/late.mp4"
    bucket.put(late)
    check = cleanup.children.order_by("next_attempt_at")[0]
    assert pause(check).cleanup == cleanup
    run_until_idle(make_due(check))
    assert_rests(check)
    assert bucket.keys() == {late}
    resume(cleanup)
    assert run_until_idle(check).status == Status.CLEAN
    assert not bucket.keys()


def test_worker_takes_no_paused_deletion(bucket: Bucket) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    Cleanup.objects.update(step="delete")
    pause_in_database()
    cleanup.refresh_from_db()
    assert not Cleanup.objects.due().exists()
    assert not acquire_lease(cleanup)


@pytest.mark.parametrize("moment", ["before the mark", "before the request"])
def test_pause_holds_back_the_next_batch(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    rechecked = list[object]()
    if moment == "before the mark":
        act_before_batch(monkeypatch, lambda: rechecked.append(moment))
        pause_before(monkeypatch, delete_batches, "delete_batch")
    else:
        act_before_batch(monkeypatch, pause_in_database)
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert bucket.keys() == keys
    assert not rechecked
    assert not store.find_requests(is_delete_batch)
    assert not cleanup.items.filter(outcome="deleting").exists()
    assert cleanup.first_request_at is None


def pause_before(patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Commit a pause just before this function of a module is called for the first time."""
    original, todo = getattr(module, name), [pause_in_database]

    def call(*args: Any) -> Any:
        while todo:
            todo.pop()()
        return original(*args)

    patch.setattr(module, name, call)


def test_pause_stops_the_calls_that_have_not_left(
    bucket: Bucket, store: FaultyStore, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "STRATEGY": "sequential"}
    cleanup, keys = prepare_cleanup(bucket, 12)
    began = Event()
    store.rules.append(rule_for(is_delete_single, run_before(began.set, lambda: sleep(0.5))))
    with run_in_thread(lambda: runner.run_to_end(cleanup.pk)):
        assert began.wait(THREAD_TIMEOUT_SECONDS)
        paused_at = timezone.now()
        pause_in_database()
    assert timezone.now() - paused_at < timedelta(seconds=4)
    assert_rests(cleanup)
    sent = len(store.find_requests(is_delete_single))
    assert 1 <= sent <= 5
    assert len(bucket.keys()) == 12 - sent
    assert keys > bucket.keys()
    resume()
    store.rules.clear()
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_pause_that_cannot_be_read_stops_the_calls_under_way(
    bucket: Bucket,
    store: FaultyStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "STRATEGY": "sequential"}
    cleanup, _keys = prepare_cleanup(bucket, 8)

    read, todo = Cleanup.find_pause, [DatabaseError("the database restarts")]

    def fail_once(self: Cleanup) -> DeletionPause | None:
        while todo:
            raise todo.pop()
        return read(self)

    monkeypatch.setattr(Cleanup, "find_pause", fail_once)
    store.rules.append(rule_for(is_delete_single, run_before(lambda: sleep(0.5))))
    run_until_idle(cleanup)
    assert 1 <= len(store.find_requests(is_delete_single)) <= 4
    assert cleanup.items.filter(calls=0).exists()
    # It goes on at once when the database answers.
    assert Cleanup.objects.due().get() == cleanup


def test_gate_that_cannot_be_read_lets_nothing_leave(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, keys = prepare_cleanup(bucket)

    def fail() -> None:
        def covering_outer(self: DeletionPauseQuerySet) -> None:
            raise DatabaseError("no such table")

        monkeypatch.setattr(DeletionPauseQuerySet, "covering_outer", covering_outer)

    act_before_batch(monkeypatch, fail)
    with pytest.raises(DatabaseError):
        runner.run_to_end(cleanup.pk)
    assert bucket.keys() == keys


def test_unfinished_upload_is_not_aborted_while_paused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    upload = MultipartUpload("projects/proj_1/part.mp4", "upload-1", timezone.now())
    aborted = list[object]()

    def find_uploads(*args: object) -> Iterator[tuple[MultipartUpload, str]]:
        yield upload, ""

    monkeypatch.setattr(project_uploads, "list_unfinished_uploads", find_uploads)
    monkeypatch.setattr(project_uploads, "find_owned_uploads", find_uploads)
    monkeypatch.setattr(multipart, "abort_multipart", lambda *args: aborted.append(args))
    pause_before(monkeypatch, project_uploads, "abort_upload")
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert not aborted
    assert bucket.keys() == keys
    assert not cleanup.events.filter(step="delete").exists()


def test_erase_now_is_refused_while_paused(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": timedelta(hours=72)}
    cleanup, _keys = prepare_cleanup(bucket)
    pause()
    with pytest.raises(IllegalTransition, match=r"paused by .* Nothing can be erased"):
        end_deletions.erase_deletion(cleanup, "at once")
    cleanup.refresh_from_db()
    assert cleanup.is_held()


@pytest.mark.only_on("postgresql")
def test_pause_is_committed_against_the_second_batch(
    bucket: Bucket, store: FaultyStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "BATCH_SIZE": 2}
    cleanup, keys = prepare_cleanup(bucket, 4)
    original, calls = Cleanup.begin_sending, list[int]()

    def pause_second(self: Cleanup, **values: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            # From another session, after the batch was marked and rechecked.
            with run_in_thread(pause_in_database):
                pass
        original(self, **values)

    monkeypatch.setattr(Cleanup, "begin_sending", pause_second)
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert len(store.find_requests(is_delete_batch)) == 1
    assert len(bucket.keys()) == 2


# What goes on


def test_verifications_and_previews_go_on(bucket: Bucket) -> None:
    pause()
    bucket.upload("proj_1")
    assert verify_project("proj_1").status == Status.CLEAN
    [preview] = requests.request_preview("proj_1")
    assert run_until_idle(preview).status == Status.PLANNED


def test_deletions_that_were_sent_are_verified_while_paused(
    bucket: Bucket, store: FaultyStore
) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    store.rules.append(rule_for(is_delete_batch, run_before(pause_in_database), times=1))
    done = run_until_idle(cleanup)
    assert (done.status, done.deleted) == (Status.CLEAN, 3)


# Row and object


def test_object_pauses_without_its_row(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause_deletions.pause_deletions("look first")
    # As a database does that is restored from a dump of the day before.
    DeletionPause.objects.all().delete()
    run_until_idle(cleanup)
    assert bucket.keys() == keys
    assert_rests(cleanup)
    # The row is back, so the pages show it, and it can be resumed.
    adopted = DeletionPause.objects.get()
    assert (adopted.cleanup, adopted.paused_by) == (None, "command")
    assert adopted.reason == "look first"
    # A turn that meets it at once, and gets nothing done, is no attempt either.
    DeletionPause.objects.all().delete()
    run_until_idle(cleanup)
    assert_rests(cleanup)
    resume()
    assert PAUSE_KEY not in bucket.r2.keys(bucket.name)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_object_of_one_cleanup_pauses_it_alone(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    bucket.upload("proj_2")
    pause(cleanup)
    DeletionPause.objects.all().delete()
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert clean_up_project("proj_2").status == Status.CLEAN
    assert bucket.keys() == keys


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"reason": 1}'])
@pytest.mark.parametrize("name", [PAUSE_KEY, f"{PAUSE_KEY}.unreadable"])
def test_object_that_cannot_be_read_pauses_everything(
    bucket: Bucket, body: bytes, name: str
) -> None:
    cleanup, keys = prepare_cleanup(bucket, 1)
    bucket.put(name, body=body)
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert bucket.keys() == keys
    resume()
    assert name not in bucket.r2.keys(bucket.name)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_object_whose_content_is_refused_pauses_for_now(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    bucket.put(PAUSE_KEY)
    read = s3.read_object

    def refuse(bucket: str, key: str) -> bytes | None:
        if key == PAUSE_KEY:
            raise StoreError("refused")
        return read(bucket, key)

    monkeypatch.setattr(s3, "read_object", refuse)
    run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.attempts) == (Status.PENDING, 0)
    assert cleanup.next_attempt_at and cleanup.next_attempt_at > timezone.now()
    assert bucket.keys() == keys


def test_object_that_appears_after_the_mark_holds_the_batch_back(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    act_before_batch(monkeypatch, lambda: bucket.put(PAUSE_KEY))
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert not store.find_requests(is_delete_batch)
    assert bucket.keys() == keys


def test_row_pauses_without_its_object(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    cleanup, keys = prepare_cleanup(bucket)

    def refuse(bucket: str, key: str, body: bytes) -> None:
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "write_object", refuse)
        result = pause_deletions.pause_deletions("look first")
    assert result.unwritten == {bucket.name: "no space"}
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert bucket.keys() == keys
    # To pause again writes what is missing, and keeps who paused first.
    assert not pause_deletions.pause_deletions("again").unwritten
    assert DeletionPause.objects.get().reason == "look first"
    assert PAUSE_KEY in bucket.r2.keys(bucket.name)


def test_pause_needs_no_further_request(bucket: Bucket, store: FaultyStore) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    run_until_idle(cleanup)
    assert not store.find_requests(is_listing_under(PAUSE_KEY))


# What is paused


def test_pause_needs_a_reason_and_something_to_delete(bucket: Bucket) -> None:
    with pytest.raises(IllegalTransition, match="Enter a reason"):
        pause_deletions.pause_deletions(" ")
    create_projects("proj_1")
    [check] = requests.request_verification("proj_1")
    with pytest.raises(IllegalTransition, match="nothing left to delete"):
        pause_deletions.pause_deletions("wait", check)
    assert not DeletionPause.objects.exists()


def test_worker_that_died_while_paused_is_not_counted(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()
    Cleanup.objects.filter(pk=cleanup.pk).update(
        status="running", step="delete", lease_until=timezone.now() - timedelta(seconds=1)
    )
    for _turn in range(3):
        Cleanup.objects.update(next_attempt_at=timezone.now())
        run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert (cleanup.attempts, cleanup.takeovers) == (0, 0)
    assert bucket.keys() == keys
    resume()
    done = take_over_lease(cleanup)
    assert done.status == Status.CLEAN


def test_paused_cleanup_is_never_overdue_and_the_sweep_leaves_it_alone(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()
    run_until_idle(cleanup)
    long_ago = timezone.now() - timedelta(days=9)
    Cleanup.objects.update(created_at=long_ago, next_attempt_at=long_ago)
    tasks.sweep()
    assert not Cleanup.objects.scheduled_too_far().exists()
    assert not alert_rules.find_overdue(timezone.now() - timedelta(days=1)).exists()
    assert bucket.keys() == keys
    resume()
    # It was not late, but paused.
    assert not Cleanup.objects.due(timedelta(minutes=10)).exists()
    assert Cleanup.objects.due().get() == cleanup
    assert not alert_rules.find_overdue(timezone.now() - timedelta(days=1)).exists()


def test_cancelled_while_paused(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()
    run_until_idle(cleanup)
    end_deletions.cancel_deletion(cleanup, "a mistake")
    assert not resume()
    cleanup.refresh_from_db()
    assert cleanup.status == Status.CANCELLED
    assert bucket.keys() == keys


def test_cancelled_between_two_batches(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "BATCH_SIZE": 2}
    create_projects("proj_1")
    for n in range(4):
        bucket.upload("proj_1", f"{n}.mp4")
    cleanup = request_cleanup("proj_1")
    original, calls = delete_batches.delete_batch, list[int]()

    def pause_second(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            pause_in_database()
        original(*args)

    monkeypatch.setattr(delete_batches, "delete_batch", pause_second)
    run_until_idle(cleanup)
    assert len(bucket.keys()) == 2
    end_deletions.cancel_deletion(cleanup, "a mistake")
    cancelled = run_until_idle(cleanup)
    assert (cancelled.status, cancelled.deleted, cancelled.kept) == (Status.CANCELLED, 2, 2)
    # What was sent before the pause is not called kept, and its rows are gone.
    assert set(R2Object.objects.values_list("key", flat=True)) == bucket.keys()


def test_requests_under_way_are_counted_by_running_cleanups(bucket: Bucket) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    assert pause_deletions.count_requests_under_way() == 0
    soon = timezone.now() + timedelta(seconds=20)
    running = {"status": "running", "step": "delete", "lease_until": soon}
    Cleanup.objects.filter(pk=cleanup.pk).update(**running, batch_state={"keys": 100, "calls": 8})
    assert pause_deletions.count_requests_under_way() == 8


# Resume


def test_resume_shows_what_becomes_due(bucket: Bucket) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    pause()
    run_until_idle(cleanup)
    figures = pause_deletions.find_resume_figures()
    assert (figures.cleanups, figures.objects, figures.size) == (1, 3, 3 * len(b"content"))
    assert pause_deletions.resume_deletions(figures.digest) == [cleanup]
    assert not DeletionPause.objects.exists()
    assert PAUSE_KEY not in bucket.r2.keys(bucket.name)
    with pytest.raises(IllegalTransition, match="not paused"):
        resume()


@pytest.mark.parametrize("change", ["figures", "pause", "moment", "nonsense"])
def test_resume_is_bound_to_what_was_shown(bucket: Bucket, change: str) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    pause()
    figures = pause_deletions.find_resume_figures()
    digest = figures.digest
    if change == "figures":
        run_until_idle(cleanup)
    elif change == "pause":
        DeletionPause.objects.update(reason="another")
    elif change == "moment":
        late = figures.shown_at - timedelta(minutes=11)
        digest = pause_deletions.ResumeFigures(figures.pause, 0, 0, 0, "", late).digest
    else:
        digest = "zz-1"
    with pytest.raises(IllegalTransition, match="have changed"):
        pause_deletions.resume_deletions(digest)
    assert DeletionPause.objects.exists()
    assert PAUSE_KEY in bucket.r2.keys(bucket.name)


def test_figures_that_change_while_the_objects_go_resume_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, _keys = prepare_cleanup(bucket)
    pause()
    remove = pause_deletions.remove_objects

    def plan_meanwhile(each: DeletionPause) -> None:
        remove(each)
        run_until_idle(cleanup)

    monkeypatch.setattr(pause_deletions, "remove_objects", plan_meanwhile)
    with pytest.raises(IllegalTransition, match="have changed"):
        resume()
    assert DeletionPause.objects.exists()
    assert PAUSE_KEY in bucket.r2.keys(bucket.name)


@pytest.mark.parametrize("failure", ["refused", "in vain"])
def test_object_that_cannot_be_removed_resumes_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()

    def delete_single(bucket: str, key: str) -> None:
        if failure == "refused":
            raise StoreError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "delete_single", delete_single)
        with pytest.raises(StoreError):
            resume()
    assert DeletionPause.objects.exists()
    run_until_idle(cleanup)
    assert bucket.keys() == keys


def test_deletions_that_are_too_large_together_need_an_approval(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    pause()
    create_projects("proj_1", "proj_2")
    put_files(bucket, 2)
    bucket.put("projects/proj_2/scenes/s1/media/1.mp4", "projects/proj_2/scenes/s1/media/2.mp4")
    for project_id in ("proj_1", "proj_2"):
        clean_up_project(project_id)
    figures = pause_deletions.find_resume_figures()
    assert figures.over_limits.startswith("Together they would delete 4 files")
    with pytest.raises(IllegalTransition, match="Approve"):
        pause_deletions.resume_deletions(figures.digest)
    assert DeletionPause.objects.exists()
    due = pause_deletions.resume_deletions(figures.digest, over_limits=True)
    assert {run_until_idle(each).status for each in due} == {Status.CLEAN}
    assert not bucket.keys()


def test_cleanup_with_a_pause_of_its_own_stays_paused(bucket: Bucket) -> None:
    cleanup, keys = prepare_cleanup(bucket)
    pause()
    pause(cleanup)
    run_until_idle(cleanup)
    assert pause_deletions.find_resume_figures().cleanups == 0
    assert not resume()
    assert pause_key(cleanup.pk) in bucket.r2.keys(bucket.name)
    run_until_idle(cleanup)
    assert_rests(cleanup)
    assert bucket.keys() == keys
    assert resume(cleanup) == [cleanup]


def test_pause_reaches_every_connected_bucket(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[tuple[str, str]]()
    monkeypatch.setattr(s3, "write_object", lambda name, key, body: written.append((name, key)))
    identity = DatabaseIdentity.objects.get()
    DatabaseIdentity.objects.update(markers={**identity.markers, "another": "etag"})
    pause_deletions.pause_deletions("look first")
    assert written == [("another", PAUSE_KEY), (bucket.name, PAUSE_KEY)]
