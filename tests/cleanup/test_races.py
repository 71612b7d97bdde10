"""Something else happens in the middle of a cleanup, at the moment when it would do most harm."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier, Event
from urllib.request import Request as WebRequest
from urllib.request import urlopen
from uuid import UUID

import pytest
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.db import transaction
from django.test import override_settings

from storage_audit.cleanup import requests, runner, vanished_projects
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.models import Project, R2Object
from storage_audit.storage import KeyBeingDeleted, TrackedStorage, key_for
from tests.database import (
    THREAD_TIMEOUT_SECONDS,
    run_in_thread,
    wait_for_blocked_query,
    with_own_connection,
)
from tests.faults.matching import (
    Matches,
    is_delete_batch,
    is_listing,
    is_plain,
    rule_for,
    run_before,
)
from tests.faults.proxy import FaultyStore, Request
from tests.owner_models import ON_POSTGRESQL, assert_cleanup_waits
from tests.promises import (
    Status,
    check_promises,
    clean_up_project,
    count_sent,
    create_projects,
    force_delete,
    make_due,
    read_outcomes,
    read_reason,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database

LATE = "projects/proj_1/scenes/s1/media/late.mp4"
AMBIGUOUS = "proj_a_b_s1_media.mp4"


@pytest.fixture
def files(bucket: Bucket) -> set[str]:
    """Three of proj_1 and, in the same bucket, one of a neighbour."""
    bucket.upload("proj_10")
    return {bucket.upload("proj_1", f"{n}.mp4") for n in range(3)}


# The moments


def planning(request: Request) -> bool:
    return is_listing(request) and bool(request.query.get("prefix"))


def proving(request: Request) -> bool:
    """The look just before a batch, at its keys alone."""
    return is_listing(request) and not request.query.get("prefix")


def sending(request: Request) -> bool:
    """The batch is on its way: nothing can be proved any more."""
    return is_delete_batch(request)


def verifying(store: FaultyStore) -> Matches:
    return lambda request: planning(request) and bool(store.find_requests(is_delete_batch))


def writing(key: str) -> Matches:
    return lambda request: is_plain(request, "PUT") and request.path.endswith(key)


def at(store: FaultyStore, moment: Matches, *effects: Callable[[], object]) -> None:
    """Let these happen once, just before the first such request reaches the store."""
    store.rules.append(rule_for(moment, run_before(*effects), times=1))


def is_neighbour(key: str) -> bool:
    return "/proj_10/" in key


def of_project(bucket: Bucket) -> set[str]:
    left = bucket.keys()
    assert any(map(is_neighbour, left))
    return {key for key in left if not is_neighbour(key)}


# Uploads that come late


@pytest.mark.parametrize("finishes", ["before the batch", "after the end"])
def test_upload_in_flight_while_its_project_is_deleted_stays_until_a_follow_up(
    bucket: Bucket, store: FaultyStore, files: set[str], finishes: str
) -> None:
    began, may_end, ended = Event(), Event(), Event()

    def hold() -> None:
        began.set()
        assert may_end.wait(THREAD_TIMEOUT_SECONDS)

    def upload() -> None:
        key = key_for("proj_1", scene="s1", filename="late.mp4")
        assert default_storage.save(key, ContentFile(b"take")) == LATE
        ended.set()

    def let_end() -> None:
        may_end.set()
        assert ended.wait(THREAD_TIMEOUT_SECONDS)

    at(store, writing(LATE), hold)
    with run_in_thread(upload):
        assert began.wait(THREAD_TIMEOUT_SECONDS)
        if finishes == "before the batch":
            at(store, proving, let_end)
        cleanup = clean_up_project("proj_1")
        assert R2Object.objects.filter(key=LATE).exists()
        may_end.set()
    assert of_project(bucket) == {LATE}
    # It may have stored the file at any moment, and tell it later.
    told = "appeared after the plan" if finishes == "before the batch" else "is in progress"
    assert read_outcomes(cleanup)[LATE] == "kept" and told in read_reason(cleanup, LATE)
    assert R2Object.objects.get(key=LATE).state == R2Object.State.STORED
    found = run_follow_up(cleanup)
    assert (found.status, read_outcomes(found)) == (Status.CLEAN, {LATE: "deleted"})
    assert not of_project(bucket)
    assert not R2Object.objects.filter(project_id="proj_1").exists()
    check_promises(bucket)


def presigned(bucket: Bucket) -> Callable[[], object]:
    target = {"Bucket": bucket.name, "Key": LATE}
    url = bucket.r2.client().generate_presigned_url("put_object", target)
    request = WebRequest(url, b"content", method="PUT")
    return lambda: urlopen(request, timeout=THREAD_TIMEOUT_SECONDS).close()


def multipart(bucket: Bucket) -> Callable[[], object]:
    client, name = bucket.r2.client(), bucket.name
    upload_id = client.create_multipart_upload(Bucket=name, Key=LATE)["UploadId"]
    part = client.upload_part(
        Bucket=name, Key=LATE, UploadId=upload_id, PartNumber=1, Body=b"content"
    )
    return lambda: client.complete_multipart_upload(
        Bucket=name,
        Key=LATE,
        UploadId=upload_id,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )


def out_of_band(bucket: Bucket) -> Callable[[], object]:
    return lambda: bucket.put(LATE)


@pytest.mark.parametrize("begin", [presigned, multipart, out_of_band])
def test_upload_past_the_application_after_the_end_is_deleted_by_a_follow_up(
    bucket: Bucket,
    store: FaultyStore,
    files: set[str],
    begin: Callable[[Bucket], Callable[[], object]],
) -> None:
    complete = begin(bucket)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not of_project(bucket)
    complete()
    assert of_project(bucket) == {LATE}
    found = run_follow_up(cleanup)
    assert (found.status, read_outcomes(found)) == (Status.CLEAN, {LATE: "deleted"})
    assert not of_project(bucket)
    check_promises(bucket)


# The id lives again


@pytest.mark.parametrize("moment", [planning, proving])
def test_project_created_again_before_the_batch_is_sent_keeps_everything(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    at(store, moment, lambda: Project.objects.create(pk="proj_1"))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.SUPERSEDED
    assert not count_sent(store)
    assert of_project(bucket) == files
    check_promises(bucket)


@pytest.mark.parametrize("moment", ["sending", "verifying"])
def test_project_created_again_once_the_batch_is_sent_keeps_all_that_is_its_own(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: str
) -> None:
    new, untracked = set[str](), "proj_1_s1_media.mp4"
    bucket.put(untracked)

    def live_again() -> None:
        Project.objects.create(pk="proj_1")
        for name in ("0.mp4", "new.mp4"):
            new.add(bucket.upload("proj_1", name))
        for key in (*files, untracked):
            with pytest.raises(KeyBeingDeleted):
                default_storage.open(key, "w")

    at(store, sending if moment == "sending" else verifying(store), live_again)
    cleanup = clean_up_project("proj_1")
    assert len(new) == 2 and not new & files
    assert of_project(bucket) == new
    assert {read_outcomes(cleanup).get(key, "kept") for key in new} == {"kept"}
    assert {read_outcomes(cleanup)[key] for key in (*files, untracked)} == {"deleted"}
    assert run_follow_up(cleanup).status == Status.SUPERSEDED
    assert of_project(bucket) == new
    assert set(R2Object.objects.filter(project_id="proj_1").values_list("key", flat=True)) == new
    check_promises(bucket)


def test_project_created_again_and_not_yet_committed_keeps_what_it_uploads(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """The worker cannot see the row of the project. PostgreSQL shows it the uploads; on SQLite it
    must wait until the one writer is done."""
    cleanup = request_cleanup("proj_1")
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(THREAD_TIMEOUT_SECONDS)

    with run_in_thread(create):
        assert uploaded.wait(THREAD_TIMEOUT_SECONDS)
        try:
            assert_cleanup_waits(cleanup)
        finally:
            may_commit.set()
    assert not count_sent(store)
    assert run_again(cleanup).status == Status.SUPERSEDED
    assert of_project(bucket) == files | new
    check_promises(bucket)


def test_vanished_project_is_created_again_while_its_cleanup_is_approved(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """Nobody can see the row of the project yet, nor did its disappearance change what we know."""
    Project.objects.all()._raw_delete("default")
    assert vanished_projects.check_vanished_projects() == 2
    many = Cleanup.objects.get()
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(THREAD_TIMEOUT_SECONDS)

    def release() -> None:
        for each in requests.approve_or_retry(many):
            runner.run_to_end(each.pk)

    with run_in_thread(create):
        assert uploaded.wait(THREAD_TIMEOUT_SECONDS)
        with run_in_thread(release) as released:
            # Longer than it takes when it does not wait for the commit.
            wait([released], 3)
            may_commit.set()
    assert bucket.keys() >= files | new
    assert not set(count_sent(store)) & (files | new)
    check_promises(bucket)


@contextmanager
def commit_timeout(hours: int) -> Iterator[None]:
    changed = {**settings.STORAGE_AUDIT, "COMMIT_TIMEOUT": timedelta(hours=hours)}
    with override_settings(STORAGE_AUDIT=changed):
        yield


@pytest.mark.parametrize("committed", [True, False])
def test_file_of_a_look_alike_that_is_not_yet_committed_stays_until_an_hour_is_over(
    bucket: Bucket, store: FaultyStore, committed: bool
) -> None:
    create_projects("proj_a")
    bucket.put(AMBIGUOUS)
    with commit_timeout(hours=1):
        cleanup = clean_up_project("proj_a")
    assert read_outcomes(cleanup) == {AMBIGUOUS: "kept"}
    assert "the file is new" in read_reason(cleanup, AMBIGUOUS)
    if committed:
        create_projects("proj_a_b")
    with commit_timeout(hours=0):
        found = run_follow_up(cleanup)
    assert read_outcomes(found) == {AMBIGUOUS: "kept" if committed else "deleted"}
    assert bucket.keys() == ({AMBIGUOUS} if committed else set())
    check_promises(bucket)


def test_upload_that_ends_between_plan_and_recheck_keeps_its_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    """The look shows the old object, and nobody can see the project of the new one yet."""
    create_projects("proj_a")
    bucket.put(AMBIGUOUS, body=b"old")
    began, may_end, ended = Event(), Event(), Event()

    def hold() -> None:
        began.set()
        assert may_end.wait(THREAD_TIMEOUT_SECONDS)

    def upload() -> None:
        TrackedStorage(file_overwrite=True).save(AMBIGUOUS, ContentFile(b"new"))
        ended.set()

    def let_end() -> None:
        may_end.set()
        assert ended.wait(THREAD_TIMEOUT_SECONDS)

    at(store, writing(AMBIGUOUS), hold)
    # The marker is looked at next, once the objects were.
    at(store, lambda request: planning(request) and bool(store.find_requests(proving)), let_end)
    with run_in_thread(upload), commit_timeout(hours=0):
        assert began.wait(THREAD_TIMEOUT_SECONDS)
        try:
            cleanup = clean_up_project("proj_a")
        finally:
            may_end.set()
    assert read_outcomes(cleanup) == {AMBIGUOUS: "kept"}
    assert read_reason(cleanup, AMBIGUOUS).startswith("An upload to this name")
    assert bucket.r2.read(AMBIGUOUS) == b"new"
    assert not count_sent(store)
    assert R2Object.objects.get().state == R2Object.State.STORED
    check_promises(bucket)


# Overwritten, or somebody else's now


@pytest.mark.parametrize("body", [b"another take", b"take"], ids=["other", "equal"])
def test_key_overwritten_past_the_application_before_the_proof_stays(
    bucket: Bucket, store: FaultyStore, files: set[str], body: bytes
) -> None:
    key = sorted(files)[0]
    etag = bucket.facts()[key]
    at(store, proving, lambda: bucket.put(key, body=body))
    cleanup = clean_up_project("proj_1")
    assert (bucket.facts()[key] == etag) == (body == b"take")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert of_project(bucket) == {key}
    assert bucket.r2.read(key) == body
    assert "overwritten" in read_reason(cleanup, key)
    assert key not in count_sent(store)
    check_promises(bucket)


def test_object_handed_to_another_project_before_the_proof_stays(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    create_projects("proj_2")
    key = sorted(files)[0]
    rows = R2Object.objects.filter(key=key)
    at(store, proving, lambda: rows.update(project_id="proj_2"))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup)[key] == "kept"
    assert_handed_over(bucket, key)


def test_object_being_handed_to_another_project_waits_for_the_commit_and_stays(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    create_projects("proj_2")
    key, changed = sorted(files)[0], Event()

    def hand_over() -> None:
        with transaction.atomic():
            R2Object.objects.filter(key=key).update(project_id="proj_2")
            changed.set()
            if ON_POSTGRESQL:
                wait_for_blocked_query()

    with ThreadPoolExecutor(1) as thread:
        at(store, proving, lambda: began.append(thread.submit(with_own_connection(hand_over))))
        at(store, proving, lambda: changed.wait(THREAD_TIMEOUT_SECONDS))
        began = list[Future[object]]()
        cleanup = clean_up_project("proj_1")
        began[0].result(THREAD_TIMEOUT_SECONDS)
    assert read_outcomes(cleanup)[key] == "kept"
    assert_handed_over(bucket, key)


@pytest.mark.only_on("postgresql")  # SQLite has one writer, and no locks of rows
def test_row_that_is_being_changed_for_long_holds_up_nobody_else(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    cleanup = request_cleanup("proj_1")
    changed, may_commit = Event(), Event()

    def change() -> None:
        with transaction.atomic():
            R2Object.objects.filter(key__in=files).update(scene_id="s2")
            changed.set()
            assert may_commit.wait(THREAD_TIMEOUT_SECONDS)

    with run_in_thread(change):
        assert changed.wait(THREAD_TIMEOUT_SECONDS)
        try:
            assert run_until_idle(cleanup).status == Status.RETRYING
        finally:
            may_commit.set()
    assert not count_sent(store)
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert cleanup.events.filter(message__startswith="Somebody is changing").exists()
    check_promises(bucket)


def assert_handed_over(bucket: Bucket, key: str) -> None:
    assert of_project(bucket) == {key}
    row = R2Object.objects.get(key=key)
    assert row.project_id == "proj_2"
    check_promises(bucket)


# Several at once


def test_of_two_cleanups_of_one_project_the_second_waits_and_finds_nothing(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """Such as a follow-up check beside a cleanup that a person asked for."""
    first = request_cleanup("proj_1")
    second = Cleanup.objects.request(
        kind="project",
        project_id="proj_1",
        project_deleted_at=first.project_deleted_at,
        bucket=bucket.name,
        trigger="follow_up",
        parent=first,
    )
    refused = list[object]()
    for moment in (planning, proving, sending, verifying(store)):
        at(store, moment, lambda: refused.append(runner.run_turn(second.pk)))
    assert run_until_idle(first).status == Status.CLEAN
    assert refused == [None] * 4
    assert (run_until_idle(second).status, run_until_idle(second).found) == (Status.CLEAN, 0)
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert not of_project(bucket)
    check_promises(bucket)


def test_two_requests_for_one_project_at_once_make_one_cleanup(bucket: Bucket) -> None:
    """Nobody had known the id, so both also want to write that it is deleted."""
    create_projects("proj_2")
    barrier = Barrier(2)

    def request() -> set[UUID]:
        barrier.wait(THREAD_TIMEOUT_SECONDS)
        return {each.pk for each in requests.declare_deleted("proj_1")}

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(with_own_connection(request)) for _n in range(2)]
        first, second = (future.result(THREAD_TIMEOUT_SECONDS) for future in futures)
    assert first == second == set(Cleanup.objects.values_list("pk", flat=True))
    assert run_until_idle(Cleanup.objects.get()).status == Status.CLEAN


@pytest.mark.only_on("postgresql")
def test_worker_that_takes_a_cleanup_while_the_project_goes_again_leaves_the_files(
    bucket: Bucket, files: set[str]
) -> None:
    first = request_cleanup("proj_1")
    Project.objects.create(pk="proj_1")
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Project.objects.get(pk="proj_1").delete()
            taken = pool.submit(with_own_connection(lambda: runner.run_turn(first.pk)))
            done, _waiting = wait([taken], timeout=0.3)
            assert not done
        taken.result(THREAD_TIMEOUT_SECONDS)
    first.refresh_from_db()
    assert (first.status, of_project(bucket)) == (Status.SUPERSEDED, files)
    second = Cleanup.objects.of_project("proj_1").get()
    assert (run_until_idle(second).status, of_project(bucket)) == (Status.CLEAN, set())


@pytest.mark.parametrize("moment", [planning, proving, sending])
def test_approval_of_a_running_cleanup_is_refused_and_changes_nothing(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    cleanup = request_cleanup("proj_1")
    refusals = list[str]()

    def force() -> None:
        with pytest.raises(IllegalTransition) as refusal:
            requests.approve_or_retry(Cleanup.objects.get(pk=cleanup.pk))
        refusals.append(str(refusal.value))

    at(store, moment, force)
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert refusals == [f"Cannot try again cleanup {cleanup.pk}: its status is running."]
    assert count_sent(store) == dict.fromkeys(files, 1)
    check_promises(bucket)


@pytest.mark.parametrize("moment", [planning, proving, sending])
def test_project_created_again_and_force_deleted_during_a_run_is_cleaned_up_once(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    forced = list[Cleanup]()

    def force() -> None:
        Project.objects.create(pk="proj_1")
        forced.extend(force_delete("proj_1", "me"))

    at(store, moment, force)
    first = clean_up_project("proj_1")
    second = run_until_idle(forced[0])
    # Once the batch was on its way, nothing is left that the first life could keep from going.
    assert first.status == (Status.CLEAN if moment is sending else Status.SUPERSEDED)
    assert second.status == Status.CLEAN
    assert second.limits_waived_by == "me"
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert not of_project(bucket)
    check_promises(bucket)


@pytest.mark.parametrize("moment", ["planning", "proving", "sending", "verifying"])
def test_backfill_during_a_cleanup_neither_saves_nor_loses_an_object(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: str
) -> None:
    bucket.put("proj_1_s1_media.mp4", "projects/proj_2/scenes/s1/media/stray.mp4")
    create_projects("proj_2")
    moments = {
        "planning": planning,
        "proving": proving,
        "sending": sending,
        "verifying": verifying(store),
    }
    at(store, moments[moment], lambda: call_command("backfill_r2", verbosity=0))
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert of_project(bucket) == {"projects/proj_2/scenes/s1/media/stray.mp4"}
    assert not R2Object.objects.filter(project_id="proj_1").exists()
    assert R2Object.objects.get(project_id="proj_2").state == R2Object.State.STORED
    assert set(count_sent(store).values()) == {1}
    check_promises(bucket)


def test_task_that_two_workers_run_at_once_does_its_work_once(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    cleanup = request_cleanup("proj_1")
    for moment in (planning, proving, sending, verifying(store)):
        at(store, moment, lambda: run_until_idle(make_due(cleanup)))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert cleanup.events.filter(step="takeover").count() == 0
    check_promises(bucket)
