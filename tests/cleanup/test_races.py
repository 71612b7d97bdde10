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
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.models import Project, R2Object
from storage_audit.storage import KeyBeingDeleted, TrackedStorage, key_for
from tests.database import SECONDS, meanwhile, on_own_connection, wait_until_somebody_waits_for_us
from tests.faults.matching import (
    Matches,
    is_delete_batch,
    is_listing,
    is_plain,
    on,
    then,
)
from tests.faults.proxy import FaultyStore, Request
from tests.owner_models import ON_POSTGRESQL, assert_cleanup_waits
from tests.promises import (
    Status,
    again,
    alive,
    check,
    count_sent,
    delete,
    force_delete,
    late_check,
    make_due,
    outcomes,
    reason,
    requested,
    run,
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
    return lambda request: planning(request) and bool(store.asked(is_delete_batch))


def writing(key: str) -> Matches:
    return lambda request: is_plain(request, "PUT") and request.path.endswith(key)


def at(store: FaultyStore, moment: Matches, *effects: Callable[[], object]) -> None:
    """Let these happen once, just before the first such request reaches the store."""
    store.rules.append(on(moment, then(*effects), times=1))


def is_neighbour(key: str) -> bool:
    return "/proj_10/" in key


def of_project(bucket: Bucket) -> set[str]:
    left = bucket.keys()
    assert any(map(is_neighbour, left))
    return {key for key in left if not is_neighbour(key)}


# Uploads that come late


@pytest.mark.parametrize("finishes", ["before the batch", "after the end"])
def test_upload_in_flight_while_its_project_is_deleted_stays_until_a_late_check(
    bucket: Bucket, store: FaultyStore, files: set[str], finishes: str
) -> None:
    began, may_end, ended = Event(), Event(), Event()

    def hold() -> None:
        began.set()
        assert may_end.wait(SECONDS)

    def upload() -> None:
        key = key_for("proj_1", scene="s1", filename="late.mp4")
        assert default_storage.save(key, ContentFile(b"take")) == LATE
        ended.set()

    def let_end() -> None:
        may_end.set()
        assert ended.wait(SECONDS)

    at(store, writing(LATE), hold)
    with meanwhile(upload):
        assert began.wait(SECONDS)
        if finishes == "before the batch":
            at(store, proving, let_end)
        operation = delete("proj_1")
        assert R2Object.objects.filter(key=LATE).exists()
        may_end.set()
    assert of_project(bucket) == {LATE}
    # It may have stored the file at any moment, and tell it later.
    told = "appeared after the plan" if finishes == "before the batch" else "is under way"
    assert outcomes(operation)[LATE] == "protected" and told in reason(operation, LATE)
    assert R2Object.objects.get(key=LATE).state == R2Object.State.STORED
    found = late_check(operation)
    assert (found.status, outcomes(found)) == (Status.CLEAN, {LATE: "deleted"})
    assert not of_project(bucket)
    assert not R2Object.objects.filter(project_id="proj_1").exists()
    check(bucket)


def presigned(bucket: Bucket) -> Callable[[], object]:
    target = {"Bucket": bucket.name, "Key": LATE}
    url = bucket.r2.client().generate_presigned_url("put_object", target)
    request = WebRequest(url, b"content", method="PUT")
    return lambda: urlopen(request, timeout=SECONDS).close()


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
def test_upload_past_the_application_after_the_end_is_deleted_by_a_late_check(
    bucket: Bucket,
    store: FaultyStore,
    files: set[str],
    begin: Callable[[Bucket], Callable[[], object]],
) -> None:
    complete = begin(bucket)
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert not of_project(bucket)
    complete()
    assert of_project(bucket) == {LATE}
    found = late_check(operation)
    assert (found.status, outcomes(found)) == (Status.CLEAN, {LATE: "deleted"})
    assert not of_project(bucket)
    check(bucket)


# The id lives again


@pytest.mark.parametrize("moment", [planning, proving])
def test_project_created_again_before_the_batch_is_sent_keeps_everything(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    at(store, moment, lambda: Project.objects.create(pk="proj_1"))
    operation = delete("proj_1")
    assert operation.status == Status.SUPERSEDED
    assert not count_sent(store)
    assert of_project(bucket) == files
    check(bucket)


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
    operation = delete("proj_1")
    assert len(new) == 2 and not new & files
    assert of_project(bucket) == new
    assert {outcomes(operation).get(key, "protected") for key in new} == {"protected"}
    assert {outcomes(operation)[key] for key in (*files, untracked)} == {"deleted"}
    assert late_check(operation).status == Status.SUPERSEDED
    assert of_project(bucket) == new
    assert set(R2Object.objects.filter(project_id="proj_1").values_list("key", flat=True)) == new
    check(bucket)


def test_project_created_again_and_not_yet_committed_keeps_what_it_uploads(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """The worker cannot see the row of the project. PostgreSQL shows it the uploads; on SQLite it
    must wait until the one writer is done."""
    operation = requested("proj_1")
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(SECONDS)

    with meanwhile(create):
        assert uploaded.wait(SECONDS)
        try:
            assert_cleanup_waits(operation)
        finally:
            may_commit.set()
    assert not count_sent(store)
    assert again(operation).status == Status.SUPERSEDED
    assert of_project(bucket) == files | new
    check(bucket)


def test_project_that_was_called_gone_is_created_again_while_that_is_released(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """Nobody can see the row of the project yet, nor did its disappearance change what we know."""
    Project.objects.all()._raw_delete("default")
    assert vanished_projects.notice() == 2
    many = CleanupOperation.objects.get()
    uploaded, may_commit, new = Event(), Event(), set[str]()

    def create() -> None:
        with transaction.atomic():
            new.add(bucket.upload("proj_1", "new.mp4"))
            uploaded.set()
            assert may_commit.wait(SECONDS)

    def release() -> None:
        for each in requests.force_delete_operation(many):
            runner.run(each.pk)

    with meanwhile(create):
        assert uploaded.wait(SECONDS)
        with meanwhile(release) as released:
            # Longer than it takes when it does not wait for the commit.
            wait([released], 3)
            may_commit.set()
    assert bucket.keys() >= files | new
    assert not set(count_sent(store)) & (files | new)
    check(bucket)


@contextmanager
def commit_timeout(hours: int) -> Iterator[None]:
    changed = {**settings.STORAGE_AUDIT, "COMMIT_TIMEOUT": timedelta(hours=hours)}
    with override_settings(STORAGE_AUDIT=changed):
        yield


@pytest.mark.parametrize("committed", [True, False])
def test_file_of_a_look_alike_that_is_not_yet_committed_stays_until_an_hour_is_over(
    bucket: Bucket, store: FaultyStore, committed: bool
) -> None:
    alive("proj_a")
    bucket.put(AMBIGUOUS)
    with commit_timeout(hours=1):
        operation = delete("proj_a")
    assert outcomes(operation) == {AMBIGUOUS: "protected"}
    assert "just being created" in reason(operation, AMBIGUOUS)
    if committed:
        alive("proj_a_b")
    with commit_timeout(hours=0):
        found = late_check(operation)
    assert outcomes(found) == {AMBIGUOUS: "protected" if committed else "deleted"}
    assert bucket.keys() == ({AMBIGUOUS} if committed else set())
    check(bucket)


def test_upload_that_ends_after_the_look_and_before_the_proof_keeps_its_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    """The look shows the old object, and nobody can see the project of the new one yet."""
    alive("proj_a")
    bucket.put(AMBIGUOUS, body=b"old")
    began, may_end, ended = Event(), Event(), Event()

    def hold() -> None:
        began.set()
        assert may_end.wait(SECONDS)

    def upload() -> None:
        TrackedStorage(file_overwrite=True).save(AMBIGUOUS, ContentFile(b"new"))
        ended.set()

    def let_end() -> None:
        may_end.set()
        assert ended.wait(SECONDS)

    at(store, writing(AMBIGUOUS), hold)
    # The marker is looked at next, once the objects were.
    at(store, lambda request: planning(request) and bool(store.asked(proving)), let_end)
    with meanwhile(upload), commit_timeout(hours=0):
        assert began.wait(SECONDS)
        try:
            operation = delete("proj_a")
        finally:
            may_end.set()
    assert outcomes(operation) == {AMBIGUOUS: "protected"}
    assert reason(operation, AMBIGUOUS).startswith("An upload to this key")
    assert bucket.r2.read(AMBIGUOUS) == b"new"
    assert not count_sent(store)
    assert R2Object.objects.get().state == R2Object.State.STORED
    check(bucket)


# Overwritten, or somebody else's now


@pytest.mark.parametrize("body", [b"another take", b"take"], ids=["other", "equal"])
def test_key_overwritten_past_the_application_before_the_proof_stays(
    bucket: Bucket, store: FaultyStore, files: set[str], body: bytes
) -> None:
    key = sorted(files)[0]
    etag = bucket.facts()[key]
    at(store, proving, lambda: bucket.put(key, body=body))
    operation = delete("proj_1")
    assert (bucket.facts()[key] == etag) == (body == b"take")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert of_project(bucket) == {key}
    assert bucket.r2.read(key) == body
    assert "overwritten" in reason(operation, key)
    assert key not in count_sent(store)
    check(bucket)


def test_object_handed_to_another_project_before_the_proof_stays(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    alive("proj_2")
    key = sorted(files)[0]
    rows = R2Object.objects.filter(key=key)
    at(store, proving, lambda: rows.update(project_id="proj_2"))
    operation = delete("proj_1")
    assert outcomes(operation)[key] == "protected"
    assert_handed_over(bucket, key)


def test_object_being_handed_to_another_project_waits_for_the_commit_and_stays(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    alive("proj_2")
    key, changed = sorted(files)[0], Event()

    def hand_over() -> None:
        with transaction.atomic():
            R2Object.objects.filter(key=key).update(project_id="proj_2")
            changed.set()
            if ON_POSTGRESQL:
                wait_until_somebody_waits_for_us()

    with ThreadPoolExecutor(1) as thread:
        at(store, proving, lambda: began.append(thread.submit(on_own_connection(hand_over))))
        at(store, proving, lambda: changed.wait(SECONDS))
        began = list[Future[object]]()
        operation = delete("proj_1")
        began[0].result(SECONDS)
    assert outcomes(operation)[key] == "protected"
    assert_handed_over(bucket, key)


@pytest.mark.only_on("postgresql")  # SQLite has one writer, and no locks of rows
def test_row_that_is_being_changed_for_long_holds_up_nobody_else(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    operation = requested("proj_1")
    changed, may_commit = Event(), Event()

    def change() -> None:
        with transaction.atomic():
            R2Object.objects.filter(key__in=files).update(scene_id="s2")
            changed.set()
            assert may_commit.wait(SECONDS)

    with meanwhile(change):
        assert changed.wait(SECONDS)
        try:
            assert run(operation).status == Status.INCOMPLETE
        finally:
            may_commit.set()
    assert not count_sent(store)
    operation = again(operation)
    assert operation.status == Status.CLEAN
    assert operation.events.filter(message__startswith="Somebody is changing").exists()
    check(bucket)


def assert_handed_over(bucket: Bucket, key: str) -> None:
    assert of_project(bucket) == {key}
    row = R2Object.objects.get(key=key)
    assert row.project_id == "proj_2"
    check(bucket)


# Several at once


def test_of_two_operations_of_one_project_the_second_waits_and_finds_nothing(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    """Such as a follow-up check beside a cleanup that a person asked for."""
    first = requested("proj_1")
    second = CleanupOperation.objects.request(
        kind="project",
        project_id="proj_1",
        project_deleted_at=first.project_deleted_at,
        bucket=bucket.name,
        trigger="late_check",
        parent=first,
    )
    refused = list[object]()
    for moment in (planning, proving, sending, verifying(store)):
        at(store, moment, lambda: refused.append(runner.run_slice(second.pk)))
    assert run(first).status == Status.CLEAN
    assert refused == [None] * 4
    assert (run(second).status, run(second).found) == (Status.CLEAN, 0)
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert not of_project(bucket)
    check(bucket)


def test_two_requests_for_one_project_at_once_make_one_cleanup(bucket: Bucket) -> None:
    """Nobody had known the id, so both also want to write that it is deleted."""
    alive("proj_2")
    barrier = Barrier(2)

    def request() -> set[UUID]:
        barrier.wait(SECONDS)
        return {each.pk for each in requests.declare_deleted("proj_1")}

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(on_own_connection(request)) for _n in range(2)]
        first, second = (future.result(SECONDS) for future in futures)
    assert first == second == set(CleanupOperation.objects.values_list("pk", flat=True))
    assert run(CleanupOperation.objects.get()).status == Status.CLEAN


@pytest.mark.only_on("postgresql")
def test_worker_that_takes_a_cleanup_while_the_project_goes_again_leaves_the_files(
    bucket: Bucket, files: set[str]
) -> None:
    first = requested("proj_1")
    Project.objects.create(pk="proj_1")
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Project.objects.get(pk="proj_1").delete()
            taken = pool.submit(on_own_connection(lambda: runner.run_slice(first.pk)))
            done, _waiting = wait([taken], timeout=0.3)
            assert not done
        taken.result(SECONDS)
    first.refresh_from_db()
    assert (first.status, of_project(bucket)) == (Status.SUPERSEDED, files)
    second = CleanupOperation.objects.of_project("proj_1").get()
    assert (run(second).status, of_project(bucket)) == (Status.CLEAN, set())


@pytest.mark.parametrize("moment", [planning, proving, sending])
def test_force_delete_of_an_operation_that_runs_is_refused_and_changes_nothing(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    operation = requested("proj_1")
    refusals = list[str]()

    def force() -> None:
        with pytest.raises(IllegalTransition) as refusal:
            requests.force_delete_operation(CleanupOperation.objects.get(pk=operation.pk))
        refusals.append(str(refusal.value))

    at(store, moment, force)
    assert run(operation).status == Status.CLEAN
    assert refusals == [f"Cannot try again operation {operation.pk}: it is running."]
    assert count_sent(store) == dict.fromkeys(files, 1)
    check(bucket)


@pytest.mark.parametrize("moment", [planning, proving, sending])
def test_project_created_again_and_force_deleted_during_a_run_is_cleaned_up_once(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: Matches
) -> None:
    forced = list[CleanupOperation]()

    def force() -> None:
        Project.objects.create(pk="proj_1")
        forced.extend(force_delete("proj_1", "me"))

    at(store, moment, force)
    first = delete("proj_1")
    second = run(forced[0])
    # Once the batch was on its way, nothing is left that the first life could keep from going.
    assert first.status == (Status.CLEAN if moment is sending else Status.SUPERSEDED)
    assert second.status == Status.CLEAN
    assert second.released_by == "me"
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert not of_project(bucket)
    check(bucket)


@pytest.mark.parametrize("moment", ["planning", "proving", "sending", "verifying"])
def test_backfill_during_a_cleanup_neither_saves_nor_loses_an_object(
    bucket: Bucket, store: FaultyStore, files: set[str], moment: str
) -> None:
    bucket.put("proj_1_s1_media.mp4", "projects/proj_2/scenes/s1/media/stray.mp4")
    alive("proj_2")
    moments = {
        "planning": planning,
        "proving": proving,
        "sending": sending,
        "verifying": verifying(store),
    }
    at(store, moments[moment], lambda: call_command("backfill_r2", verbosity=0))
    assert delete("proj_1").status == Status.CLEAN
    assert of_project(bucket) == {"projects/proj_2/scenes/s1/media/stray.mp4"}
    assert not R2Object.objects.filter(project_id="proj_1").exists()
    assert R2Object.objects.get(project_id="proj_2").state == R2Object.State.STORED
    assert set(count_sent(store).values()) == {1}
    check(bucket)


def test_task_that_two_workers_run_at_once_does_its_work_once(
    bucket: Bucket, store: FaultyStore, files: set[str]
) -> None:
    operation = requested("proj_1")
    for moment in (planning, proving, sending, verifying(store)):
        at(store, moment, lambda: run(make_due(operation)))
    assert run(operation).status == Status.CLEAN
    assert count_sent(store) == dict.fromkeys(files, 1)
    assert operation.events.filter(step="takeover").count() == 0
    check(bucket)
