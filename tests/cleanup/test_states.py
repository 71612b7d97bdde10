"""The states of an operation: who may change them when, and with which lease."""

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.cleanup import delete_pipeline, runner, verify
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition, LeaseLost
from storage_audit.cleanup.turn import Work
from storage_audit.conf import conf
from tests.promises import (
    Status,
    acquire_lease,
    alive,
    between_batch_and_verification,
    between_plan_and_batch,
    check,
    delete,
    dump_cleanup,
    outcomes,
    requested,
    run,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.django_db(transaction=True)
KEYS = [f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(5)] + ["proj_1_s1_media.mp4"]


def make(**values: object) -> CleanupOperation:
    facts = {"kind": "project", "project_id": "proj_1", "bucket": "tests", "trigger": "deleted"}
    return CleanupOperation.objects.create(**facts | values)


def held(**values: object) -> CleanupOperation:
    operation = make(**values)
    assert acquire_lease(operation)
    return operation


def take_over(operation: CleanupOperation) -> CleanupOperation:
    """What another worker does once the lease has run out."""
    a_moment_ago = timezone.now() - timedelta(seconds=1)
    CleanupOperation.objects.filter(pk=operation.pk).update(
        lease_until=a_moment_ago, next_attempt_at=a_moment_ago
    )
    other = CleanupOperation.objects.get(pk=operation.pk)
    assert acquire_lease(other)
    return other


def test_operation_is_held_by_one_worker_at_a_time() -> None:
    operation = held()
    assert not acquire_lease(CleanupOperation.objects.get(pk=operation.pk))
    assert runner.run_slice(operation.pk) is None


def test_two_who_read_it_at_once_do_not_both_get_it() -> None:
    one = make()
    other = CleanupOperation.objects.get(pk=one.pk)
    assert acquire_lease(one)
    assert not acquire_lease(other)
    assert other.lease_token is None


def test_turn_that_ended_after_the_other_looked_is_no_worker_that_died() -> None:
    one = held()
    other = CleanupOperation.objects.get(pk=one.pk)
    one.progress(cursor={"after": "key"})
    one.hand_over()
    assert acquire_lease(other)
    assert other.takeovers == 0
    assert other.cursor == one.cursor


def test_operations_of_one_project_in_one_bucket_run_one_after_the_other() -> None:
    first, second = held(), make()
    assert not acquire_lease(second)
    assert acquire_lease(make(bucket="other"))
    assert acquire_lease(make(project_id="proj_10"))
    first.hand_over()
    assert acquire_lease(second)
    assert not acquire_lease(first)


def test_operations_of_several_projects_wait_for_nobody() -> None:
    held(kind="objects", project_id=None)
    assert acquire_lease(make(kind="objects", project_id=None))


def test_turns_of_one_attempt_count_once() -> None:
    operation = held(attempts=1, troubled_since=timezone.now())
    for _turn in range(3):
        operation.hand_over()
        assert acquire_lease(operation)
    assert operation.attempts == 2
    operation.progress()
    operation.hand_over()
    assert operation.attempts == 0


def test_operation_is_not_claimed_before_its_time() -> None:
    assert not acquire_lease(make(next_attempt_at=timezone.now() + timedelta(minutes=1)))
    assert not acquire_lease(make(next_attempt_at=None))


@pytest.mark.parametrize(
    "status", ["planned", "clean", "clean_with_protected", "blocked", "superseded"]
)
def test_operation_that_waits_for_a_person_or_has_ended_is_not_claimed(status: str) -> None:
    assert not acquire_lease(make(status=status))


def test_worker_that_lost_its_lease_can_write_nothing() -> None:
    stalled = held()
    other = take_over(stalled)
    before = CleanupOperation.objects.values().get(pk=stalled.pk)
    books = stalled.items.books()
    writes: list[Callable[[], None]] = [
        stalled.renew,
        lambda: stalled.progress(step="verify"),
        stalled.hand_over,
        stalled.freeze,
        lambda: stalled.block("no"),
        lambda: stalled.close("clean", books),
        lambda: stalled.postpone("no", books),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert CleanupOperation.objects.values().get(pk=stalled.pk) == before
    other.renew()


@pytest.mark.parametrize(("lengths", "is_free"), [(1.9, False), (2.1, True)])
def test_lease_further_ahead_than_twice_its_length_is_void(lengths: float, is_free: bool) -> None:
    """Of a worker whose clock was ahead."""
    operation = held()
    now = timezone.now()
    CleanupOperation.objects.filter(pk=operation.pk).update(
        lease_until=now + lengths * conf().lease, next_attempt_at=now
    )
    assert CleanupOperation.objects.held().exists() is not is_free
    assert CleanupOperation.objects.due().exists() is is_free
    other = CleanupOperation.objects.get(pk=operation.pk)
    assert acquire_lease(make()) is is_free, "a rival"
    CleanupOperation.objects.exclude(pk=operation.pk).delete()
    if is_free:
        with pytest.raises(LeaseLost):
            operation.renew()
    assert acquire_lease(other) is is_free
    assert other.takeovers == int(is_free)


def test_worker_whose_lease_ran_out_can_write_nothing_even_if_nobody_took_over() -> None:
    operation = held()
    CleanupOperation.objects.filter(pk=operation.pk).update(lease_until=timezone.now())
    with pytest.raises(LeaseLost):
        operation.renew()


def test_object_that_was_never_claimed_cannot_write_as_a_worker() -> None:
    held()
    with pytest.raises(LeaseLost):
        CleanupOperation(pk=CleanupOperation.objects.get().pk, lease_token=None).renew()
    with pytest.raises(LeaseLost):
        CleanupOperation(pk=CleanupOperation.objects.get().pk, lease_token=uuid4()).renew()


@pytest.mark.parametrize("moment", ["before the batch", "after the batch", "while verifying"])
def test_stalled_worker_changes_nothing_and_the_next_one_ends_the_work(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    alive("proj_1")
    bucket.put(*KEYS)
    operation = requested("proj_1")
    seen = dict[str, object]()

    def lose() -> None:
        # The other worker stalls too, and its lease runs out.
        other = take_over(CleanupOperation.objects.get(pk=operation.pk))
        CleanupOperation.objects.filter(pk=other.pk).update(lease_until=timezone.now())
        seen.update(dump_cleanup(operation))

    with monkeypatch.context() as patch:
        if moment == "before the batch":
            between_plan_and_batch(patch, lose)
        elif moment == "while verifying":
            between_batch_and_verification(patch, lose)
        else:
            original = delete_pipeline.send

            def send(*args: object, **kwargs: object) -> object:
                answers = original(*args, **kwargs)  # type: ignore[arg-type]
                lose()
                return answers

            patch.setattr(delete_pipeline, "send", send)
        runner.run_slice(operation.pk)
    assert seen
    assert dump_cleanup(operation) == seen
    if moment == "before the batch":
        assert bucket.keys() == set(KEYS)
    check(bucket)
    CleanupOperation.objects.filter(pk=operation.pk).update(next_attempt_at=timezone.now())
    assert run(operation).status == Status.CLEAN
    assert not bucket.keys()
    check(bucket)


ILLEGAL: dict[str, list[str]] = {
    "release": [status for status in Status.values if status != "blocked"],
    "retry": [status for status in Status.values if status not in ("incomplete", "failed")],
    "execute": [status for status in Status.values if status != "planned"],
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_transition_names_the_operation_and_its_state_and_changes_nothing(
    name: str,
) -> None:
    for status in ILLEGAL[name]:
        operation = make(status=status)
        before = CleanupOperation.objects.values().get(pk=operation.pk)
        with pytest.raises(IllegalTransition) as refusal:
            act(operation, name)
        assert str(operation.pk) in str(refusal.value)
        assert str(Status(status).label) in str(refusal.value)
        assert CleanupOperation.objects.values().get(pk=operation.pk) == before


def act(operation: CleanupOperation, name: str) -> None:
    if name == "retry":
        operation.retry()
    else:
        getattr(operation, name)("me")


def test_of_two_people_who_release_one_succeeds() -> None:
    one = make(status="blocked", plan_digest="a plan")
    other = CleanupOperation.objects.get(pk=one.pk)
    one.release("one")
    with pytest.raises(IllegalTransition):
        other.release("other")
    assert CleanupOperation.objects.get().released_by == "one"


@pytest.mark.parametrize("status", CleanupOperation.CLOSED)
@pytest.mark.parametrize("name", ["found", "deleted", "deleted_bytes", "failed_bytes"])
def test_database_refuses_books_that_do_not_close(status: str, name: str) -> None:
    operation = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        CleanupOperation.objects.filter(pk=operation.pk).update(status=status, **{name: 1})


@pytest.mark.parametrize("name", ["failed", "protected"])
def test_database_refuses_clean_with_something_left(name: str) -> None:
    operation = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        CleanupOperation.objects.filter(pk=operation.pk).update(
            status="clean", found=1, **{name: 1}
        )


def test_database_refuses_unknown_states() -> None:
    operation = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        CleanupOperation.objects.filter(pk=operation.pk).update(status="done")
    item = operation.items.create(key="a", identity="a", found_in="listed")
    with pytest.raises(IntegrityError), transaction.atomic():
        operation.items.filter(pk=item.pk).update(outcome="gone")
    with pytest.raises(IntegrityError), transaction.atomic():
        operation.items.create(key="A", identity="a", found_in="listed")


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [CleanupOperation.pause_after(n) for n in range(9)]
    minutes = [1, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses == [timedelta(minutes=n) for n in minutes]
    assert CleanupOperation.pause_after(10_000) == timedelta(hours=1)


def test_work_that_kills_its_worker_waits_longer_each_time() -> None:
    operation = held()
    waits = []
    for _death in range(3):
        operation.refresh_from_db()
        assert operation.next_attempt_at and operation.lease_until
        waits.append(operation.next_attempt_at - operation.lease_until)
        operation = take_over(operation)
    assert waits[0] < waits[1] < waits[2]


def test_work_of_a_worker_that_dies_waits_for_no_outage_that_is_over() -> None:
    operation = make(status="incomplete", attempts=5, troubled_since=timezone.now())
    assert acquire_lease(operation)
    assert operation.next_attempt_at and operation.lease_until
    assert operation.next_attempt_at <= operation.lease_until


# Turns


def turns(operation: CleanupOperation) -> int:
    count = 0
    while (worked := runner.run_slice(operation.pk)) and worked.status == Status.RUNNING:
        count += 1
        assert worked.lease_token is None
        assert count < 200
    return count


def test_turns_of_no_length_give_what_one_turn_gives(bucket: Bucket, settings: Settings) -> None:
    everything = [*KEYS, "projects/proj_1/scenes/s1/media/\x01", "proj_1_\0", "proj_1_zz\0\0"]
    results = []
    for length in (timedelta(minutes=1), timedelta(0)):
        settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SLICE": length, "BATCH_SIZE": 2}
        bucket.put(*everything)
        alive("proj_1")
        operation = requested("proj_1")
        count = turns(operation)
        operation.refresh_from_db()
        check(bucket)
        results.append(
            (operation.status, operation.found, outcomes(operation), operation.attempts <= 1)
        )
        for key in sorted(bucket.keys()):
            bucket.r2.remove(key)
    assert count > len(KEYS) / 2
    assert results[0] == results[1]
    assert results[0][1] == len(everything)


def test_small_pages_and_turns_of_no_length_end_clean(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = {
        **settings.STORAGE_AUDIT,
        "SLICE": timedelta(0),
        "BATCH_SIZE": 2,
    }
    monkeypatch.setattr("storage_audit.bucket.s3.PAGE", 2)
    alive("proj_1")
    bucket.put(*KEYS)
    operation = requested("proj_1")
    turns(operation)
    operation.refresh_from_db()
    assert operation.status == Status.CLEAN
    assert outcomes(operation) == dict.fromkeys(KEYS, "deleted")
    check(bucket)


def test_turn_that_ends_while_verifying_settles_nothing_yet(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    bucket.put(*KEYS)
    operation = requested("proj_1")
    monkeypatch.setattr(verify, "look_at_keys", end_turn)
    runner.run_slice(operation.pk)
    operation.refresh_from_db()
    assert operation.status == Status.RUNNING
    assert set(outcomes(operation).values()) == {"deleting"}
    monkeypatch.undo()
    assert run(operation).status == Status.CLEAN
    check(bucket)


def end_turn(work: Work) -> None:
    work.deadline = 0
    work.breathe()


def test_delete_of_nothing_is_clean(bucket: Bucket) -> None:
    alive("proj_1")
    operation = delete("proj_1")
    assert (operation.status, operation.found) == (Status.CLEAN, 0)
    check(bucket)
