"""The states of a cleanup: who may change them when, and with which lease."""

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.cleanup import delete_pipeline, runner, verify
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition, LeaseLost
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.conf import conf
from tests.promises import (
    Status,
    acquire_lease,
    act_before_batch,
    act_before_verification,
    check_promises,
    clean_up_project,
    create_projects,
    dump_cleanup,
    read_outcomes,
    request_cleanup,
    run_until_idle,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.django_db(transaction=True)
KEYS = [f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(5)] + ["proj_1_s1_media.mp4"]


def make(**values: object) -> Cleanup:
    facts = {"kind": "project", "project_id": "proj_1", "bucket": "tests", "trigger": "deleted"}
    return Cleanup.objects.create(**facts | values)


def create_leased(**values: object) -> Cleanup:
    cleanup = make(**values)
    assert acquire_lease(cleanup)
    return cleanup


def take_over(cleanup: Cleanup) -> Cleanup:
    """What another worker does once the lease has run out."""
    a_moment_ago = timezone.now() - timedelta(seconds=1)
    Cleanup.objects.filter(pk=cleanup.pk).update(
        lease_until=a_moment_ago, next_attempt_at=a_moment_ago
    )
    other = Cleanup.objects.get(pk=cleanup.pk)
    assert acquire_lease(other)
    return other


def test_cleanup_is_leased_by_one_worker_at_a_time() -> None:
    cleanup = create_leased()
    assert not acquire_lease(Cleanup.objects.get(pk=cleanup.pk))
    assert runner.run_turn(cleanup.pk) is None


def test_two_who_read_it_at_once_do_not_both_get_it() -> None:
    one = make()
    other = Cleanup.objects.get(pk=one.pk)
    assert acquire_lease(one)
    assert not acquire_lease(other)
    assert other.lease_token is None


def test_turn_that_ended_after_the_other_checked_is_no_worker_that_died() -> None:
    one = create_leased()
    other = Cleanup.objects.get(pk=one.pk)
    one.renew_after_progress(position=Position(after="key"))
    one.return_lease()
    assert acquire_lease(other)
    assert other.takeovers == 0
    assert other.position == one.position


def test_cleanups_of_one_project_in_one_bucket_run_one_after_the_other() -> None:
    first, second = create_leased(), make()
    assert not acquire_lease(second)
    assert acquire_lease(make(bucket="other"))
    assert acquire_lease(make(project_id="proj_10"))
    first.return_lease()
    assert acquire_lease(second)
    assert not acquire_lease(first)


def test_cleanups_of_several_projects_wait_for_nobody() -> None:
    create_leased(kind="objects", project_id=None)
    assert acquire_lease(make(kind="objects", project_id=None))


def test_turns_of_one_attempt_count_once() -> None:
    cleanup = create_leased(attempts=1, failing_since=timezone.now())
    for _turn in range(3):
        cleanup.return_lease()
        assert acquire_lease(cleanup)
    assert cleanup.attempts == 2
    cleanup.renew_after_progress()
    cleanup.return_lease()
    assert cleanup.attempts == 0


def test_cleanup_is_not_leased_before_its_time() -> None:
    assert not acquire_lease(make(next_attempt_at=timezone.now() + timedelta(minutes=1)))
    assert not acquire_lease(make(next_attempt_at=None))


@pytest.mark.parametrize("status", ["planned", "clean", "clean_with_kept", "blocked", "superseded"])
def test_cleanup_that_waits_for_a_person_or_has_ended_is_not_leased(status: str) -> None:
    assert not acquire_lease(make(status=status))


def test_worker_that_lost_its_lease_can_write_nothing() -> None:
    stalled = create_leased()
    other = take_over(stalled)
    before = Cleanup.objects.values().get(pk=stalled.pk)
    totals = stalled.items.totals()
    writes: list[Callable[[], None]] = [
        stalled.renew,
        lambda: stalled.renew_after_progress(step="verify"),
        stalled.return_lease,
        stalled.freeze_plan,
        lambda: stalled.block("no"),
        lambda: stalled.finish("clean", totals),
        lambda: stalled.postpone("no", totals),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert Cleanup.objects.values().get(pk=stalled.pk) == before
    other.renew()


@pytest.mark.parametrize(("lengths", "is_free"), [(1.9, False), (2.1, True)])
def test_lease_further_ahead_than_twice_its_length_is_void(lengths: float, is_free: bool) -> None:
    """Of a worker whose clock was ahead."""
    cleanup = create_leased()
    now = timezone.now()
    Cleanup.objects.filter(pk=cleanup.pk).update(
        lease_until=now + lengths * conf().lease_time, next_attempt_at=now
    )
    assert Cleanup.objects.leased().exists() is not is_free
    assert Cleanup.objects.due().exists() is is_free
    other = Cleanup.objects.get(pk=cleanup.pk)
    assert acquire_lease(make()) is is_free, "a rival"
    Cleanup.objects.exclude(pk=cleanup.pk).delete()
    if is_free:
        with pytest.raises(LeaseLost):
            cleanup.renew()
    assert acquire_lease(other) is is_free
    assert other.takeovers == int(is_free)


def test_worker_whose_lease_ran_out_can_write_nothing_even_if_nobody_took_over() -> None:
    cleanup = create_leased()
    Cleanup.objects.filter(pk=cleanup.pk).update(lease_until=timezone.now())
    with pytest.raises(LeaseLost):
        cleanup.renew()


def test_cleanup_without_a_lease_cannot_be_written_as_by_a_worker() -> None:
    create_leased()
    with pytest.raises(LeaseLost):
        Cleanup(pk=Cleanup.objects.get().pk, lease_token=None).renew()
    with pytest.raises(LeaseLost):
        Cleanup(pk=Cleanup.objects.get().pk, lease_token=uuid4()).renew()


@pytest.mark.parametrize("moment", ["before the batch", "after the batch", "while verifying"])
def test_stalled_worker_changes_nothing_and_the_next_one_ends_the_work(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    cleanup = request_cleanup("proj_1")
    seen = dict[str, object]()

    def lose() -> None:
        # The other worker stalls too, and its lease runs out.
        other = take_over(Cleanup.objects.get(pk=cleanup.pk))
        Cleanup.objects.filter(pk=other.pk).update(lease_until=timezone.now())
        seen.update(dump_cleanup(cleanup))

    with monkeypatch.context() as patch:
        if moment == "before the batch":
            act_before_batch(patch, lose)
        elif moment == "while verifying":
            act_before_verification(patch, lose)
        else:
            original = delete_pipeline.send_batch

            def send(*args: object, **kwargs: object) -> object:
                answers = original(*args, **kwargs)  # type: ignore[arg-type]
                lose()
                return answers

            patch.setattr(delete_pipeline, "send_batch", send)
        runner.run_turn(cleanup.pk)
    assert seen
    assert dump_cleanup(cleanup) == seen
    if moment == "before the batch":
        assert bucket.keys() == set(KEYS)
    check_promises(bucket)
    Cleanup.objects.filter(pk=cleanup.pk).update(next_attempt_at=timezone.now())
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


ILLEGAL: dict[str, list[str]] = {
    "approve": [status for status in Status.values if status != "blocked"],
    "retry": [status for status in Status.values if status not in ("retrying", "failed")],
    "run_plan": [status for status in Status.values if status != "planned"],
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_transition_names_the_cleanup_and_its_state_and_changes_nothing(
    name: str,
) -> None:
    for status in ILLEGAL[name]:
        cleanup = make(status=status)
        before = Cleanup.objects.values().get(pk=cleanup.pk)
        with pytest.raises(IllegalTransition) as refusal:
            act(cleanup, name)
        assert str(cleanup.pk) in str(refusal.value)
        assert str(Status(status).label) in str(refusal.value)
        assert Cleanup.objects.values().get(pk=cleanup.pk) == before


def act(cleanup: Cleanup, name: str) -> None:
    if name == "retry":
        cleanup.retry()
    else:
        getattr(cleanup, name)("me")


def test_of_two_people_who_approve_one_succeeds() -> None:
    one = make(status="blocked", plan_digest="a plan")
    other = Cleanup.objects.get(pk=one.pk)
    one.approve("one")
    with pytest.raises(IllegalTransition):
        other.approve("other")
    assert Cleanup.objects.get().limits_waived_by == "one"


@pytest.mark.parametrize("status", Cleanup.FINISHED)
@pytest.mark.parametrize("name", ["found", "deleted", "deleted_bytes", "failed_bytes"])
def test_database_refuses_totals_that_do_not_add_up(status: str, name: str) -> None:
    cleanup = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        Cleanup.objects.filter(pk=cleanup.pk).update(status=status, **{name: 1})


@pytest.mark.parametrize("name", ["failed", "kept"])
def test_database_refuses_clean_with_something_left(name: str) -> None:
    cleanup = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        Cleanup.objects.filter(pk=cleanup.pk).update(status="clean", found=1, **{name: 1})


def test_database_refuses_unknown_states() -> None:
    cleanup = make()
    with pytest.raises(IntegrityError), transaction.atomic():
        Cleanup.objects.filter(pk=cleanup.pk).update(status="done")
    item = cleanup.items.create(key="a", identity="a", found_in="listed")
    with pytest.raises(IntegrityError), transaction.atomic():
        cleanup.items.filter(pk=item.pk).update(outcome="gone")
    with pytest.raises(IntegrityError), transaction.atomic():
        cleanup.items.create(key="A", identity="a", found_in="listed")


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [Cleanup.retry_delay(n) for n in range(9)]
    minutes = [1, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses == [timedelta(minutes=n) for n in minutes]
    assert Cleanup.retry_delay(10_000) == timedelta(hours=1)


def test_work_that_kills_its_worker_waits_longer_each_time() -> None:
    cleanup = create_leased()
    waits = []
    for _death in range(3):
        cleanup.refresh_from_db()
        assert cleanup.next_attempt_at and cleanup.lease_until
        waits.append(cleanup.next_attempt_at - cleanup.lease_until)
        cleanup = take_over(cleanup)
    assert waits[0] < waits[1] < waits[2]


def test_work_of_a_worker_that_dies_waits_for_no_outage_that_is_over() -> None:
    cleanup = make(status="retrying", attempts=5, failing_since=timezone.now())
    assert acquire_lease(cleanup)
    assert cleanup.next_attempt_at and cleanup.lease_until
    assert cleanup.next_attempt_at <= cleanup.lease_until


# Turns


def turns(cleanup: Cleanup) -> int:
    count = 0
    while (worked := runner.run_turn(cleanup.pk)) and worked.status == Status.RUNNING:
        count += 1
        assert worked.lease_token is None
        assert count < 200
    return count


def test_turns_of_no_length_give_what_one_turn_gives(bucket: Bucket, settings: Settings) -> None:
    everything = [*KEYS, "projects/proj_1/scenes/s1/media/\x01", "proj_1_\0", "proj_1_zz\0\0"]
    results = []
    for length in (timedelta(minutes=1), timedelta(0)):
        settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "TURN_TIME": length, "BATCH_SIZE": 2}
        bucket.put(*everything)
        create_projects("proj_1")
        cleanup = request_cleanup("proj_1")
        count = turns(cleanup)
        cleanup.refresh_from_db()
        check_promises(bucket)
        results.append(
            (cleanup.status, cleanup.found, read_outcomes(cleanup), cleanup.attempts <= 1)
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
        "TURN_TIME": timedelta(0),
        "BATCH_SIZE": 2,
    }
    monkeypatch.setattr("storage_audit.bucket.s3.PAGE_SIZE", 2)
    create_projects("proj_1")
    bucket.put(*KEYS)
    cleanup = request_cleanup("proj_1")
    turns(cleanup)
    cleanup.refresh_from_db()
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys(KEYS, "deleted")
    check_promises(bucket)


def test_turn_that_ends_while_verifying_settles_nothing_yet(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    cleanup = request_cleanup("proj_1")
    monkeypatch.setattr(verify, "relist_lone_keys", end_turn)
    runner.run_turn(cleanup.pk)
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RUNNING
    assert set(read_outcomes(cleanup).values()) == {"deleting"}
    monkeypatch.undo()
    assert run_until_idle(cleanup).status == Status.CLEAN
    check_promises(bucket)


def end_turn(work: Turn) -> None:
    work.deadline = 0
    work.check_deadline()


def test_delete_of_nothing_is_clean(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.found) == (Status.CLEAN, 0)
    check_promises(bucket)
