"""A batch on its way while the next one is proved."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier, Event, Lock, Semaphore
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection
from django.test import override_settings

from devtools.http_reply import Reply
from storage_audit.bucket import deleters
from storage_audit.bucket.errors import Unavailable
from storage_audit.cleanup import adaptive_batch, delete_batches, delete_pipeline, runner
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.delete_pipeline import PlannedItem, RecheckedBatch
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.worker_turn import OwnerChanging, ProjectRecreated, Turn, TurnOver
from storage_audit.clocks import monotonic_seconds
from storage_audit.ownership.bucket_marker import CannotConclude
from tests.bucket.store_replies import BUSY
from tests.faults.matching import is_delete_batch, is_delete_single, rule_for, run_before, sent_keys
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import (
    Status,
    check_promises,
    fill_project,
    read_outcomes,
    request_cleanup,
    run_until_idle,
)
from tests.real_bucket import Bucket

Effect = Callable[[], None]


@pytest.fixture
def four_calls_at_once(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four calls at once, of one key each: no more are allowed."""
    monkeypatch.setitem(adaptive_batch.LARGEST_BATCH, "batch", BatchSize(1000, 4))
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, "BATCH_SIZE": 1}):
        yield


@pytest.fixture
def call_by_call(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lanes of many calls, whose next batch would not be proved beside them otherwise."""
    monkeypatch.setattr(adaptive_batch, "is_at_full_speed", lambda cleanup: True)
    changed = {"BATCH_SIZE": 2, "STRATEGY": "parallel"}
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, **changed}):
        yield


def two_batches(bucket: Bucket) -> Cleanup:
    fill_project(bucket, 8)
    cleanup = request_cleanup("proj_1")
    Cleanup.objects.update(batch_state={"keys": 1, "calls": 4})
    return cleanup


def two_long_batches(bucket: Bucket) -> Cleanup:
    fill_project(bucket, 20)
    cleanup = request_cleanup("proj_1")
    Cleanup.objects.update(batch_state={"keys": 2, "calls": 5})
    return cleanup


def before_second_proof(patch: pytest.MonkeyPatch, effect: Effect) -> list[list[str]]:
    """The keys of each proof that is made from now on."""
    proofs, real = list[list[str]](), delete_batches.recheck_batch

    def prove(work: Turn, batch: list[PlannedItem]) -> RecheckedBatch:
        proofs.append([item.key for item in batch])
        if len(proofs) == 2:
            effect()
        return real(work, batch)

    patch.setattr(delete_batches, "recheck_batch", prove)
    return proofs


def wait_for(number: int, calls: Semaphore) -> None:
    for _call in range(number):
        assert calls.acquire(timeout=10)


class Gate:
    """Holds the calls until no further one may leave."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.in_time, self._here = list[bool](), Semaphore(0)
        self._stops, real = list[Event](), delete_pipeline.send_batch

        def send(*args: Any) -> deleters.SendResult:
            self._stops.append(args[-1])
            return real(*args)

        patch.setattr(delete_pipeline, "send_batch", send)

    def __call__(self, request: Request, forward: Forward) -> Reply:
        self._here.release()
        # For less than the client waits for an answer: its failure would be a stop as well.
        self.in_time.append(self._stops[0].wait(timeout=8))
        return forward()

    def wait(self) -> None:
        wait_for(5, self._here)


def test_while_a_batch_is_on_its_way_the_next_one_is_proved(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, looks_again, in_time = two_batches(bucket), Event(), list[bool]()
    proofs = before_second_proof(monkeypatch, looks_again.set)

    def wait_for_the_look(request: Request, forward: Forward) -> Reply:
        in_time.append(looks_again.wait(timeout=10))
        return forward()

    store.rules.append(rule_for(is_delete_batch, wait_for_the_look, times=4))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert in_time == [True] * 4
    # The last look for items finds those under way, and waits for their answers.
    assert len(proofs) == 2
    assert len(store.find_requests(is_delete_batch)) == 8
    assert set(cleanup.items.values_list("attempts", "store_answer")) == {(1, "Deleted")}
    check_promises(bucket)


def test_next_batch_takes_up_the_calls_that_the_one_before_has_ended(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, other_has_left, in_time = two_batches(bucket), Event(), list[bool]()
    proofs = before_second_proof(monkeypatch, lambda: None)

    def wait_for_the_other(request: Request, forward: Forward) -> Reply:
        [key] = sent_keys(request)
        if key not in proofs[0]:
            other_has_left.set()
        elif key != proofs[0][0]:
            in_time.append(other_has_left.wait(timeout=10))
        return forward()

    store.rules.append(rule_for(is_delete_batch, wait_for_the_other))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert in_time == [True] * 3
    assert set(cleanup.items.values_list("attempts", "store_answer")) == {(1, "Deleted")}
    check_promises(bucket)


def test_two_batches_have_no_more_calls_at_once_than_one(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_project(bucket, 12)
    cleanup, lock, four = request_cleanup("proj_1"), Lock(), Barrier(4)
    real, sent, other_is_sent = delete_pipeline.send_batch, list[list[str]](), Event()

    def send(*args: Any) -> deleters.SendResult:
        sent.append(args[1])
        if len(sent) == 2:
            other_is_sent.set()
        return real(*args)

    Cleanup.objects.update(batch_state={"keys": 1, "calls": 4})
    came = under_way = most = 0

    def count(request: Request, forward: Forward) -> Reply:
        nonlocal came, under_way, most
        with lock:
            came, under_way = came + 1, under_way + 1
            most, is_early = max(most, under_way), came <= 4
        if is_early:
            four.wait(timeout=10)
            assert other_is_sent.wait(timeout=10)
        sleep(0.1)  # A fifth would be seen.
        reply = forward()
        with lock:
            under_way -= 1
        return reply

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    store.rules.append(rule_for(is_delete_batch, count))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert most == 4


@pytest.mark.parametrize("strategy", ["parallel", "sequential", "wrangler", "wrangler_sequential"])
def test_proof_never_grows_old_behind_a_batch_of_many_calls(strategy: str) -> None:
    cleanup = Cleanup(strategy=strategy)
    cleanup.batch_state = adaptive_batch.largest_batch(cleanup)._asdict()
    assert not adaptive_batch.is_at_full_speed(cleanup)
    cleanup.strategy = "batch"
    cleanup.batch_state = adaptive_batch.largest_batch(cleanup)._asdict()
    assert adaptive_batch.is_at_full_speed(cleanup)
    cleanup.batch_state = adaptive_batch.largest_batch(cleanup).smaller()._asdict()
    assert not adaptive_batch.is_at_full_speed(cleanup)


KEY_BY_KEY = Reply(
    200, b"<DeleteResult><Error><Key>%s</Key><Code>SlowDown</Code></Error></DeleteResult>"
)


@pytest.mark.parametrize("trouble", [BUSY, KEY_BY_KEY], ids=["call", "key"])
def test_nothing_is_sent_on_a_recheck_from_before_trouble(
    four_calls_at_once: None,
    store: FaultyStore,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Reply,
) -> None:
    cleanup, refused, is_proving = two_batches(bucket), set[str](), Event()
    proofs = before_second_proof(monkeypatch, is_proving.set)

    def refuse_once(request: Request, forward: Forward) -> Reply:
        [key] = sent_keys(request)
        if key in refused or key not in proofs[0]:
            return forward()
        assert is_proving.wait(timeout=10)
        refused.add(key)
        return Reply(trouble.status, trouble.body.replace(b"%s", key.encode()), trouble.headers)

    store.rules.append(rule_for(is_delete_batch, refuse_once))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert refused
    for key in proofs[1]:
        assert sum(key in proof for proof in proofs) == 2
        assert sum(key in sent_keys(call) for call in store.find_requests(is_delete_batch)) == 1
    assert set(cleanup.items.values_list("attempts", flat=True)) <= {1, 2}
    assert not cleanup.events.filter(message__startswith="Sent a batch of 0").exists()
    check_promises(bucket)


def test_nothing_is_sent_on_a_recheck_that_grew_old_behind_the_batch_before(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, now, is_late = two_batches(bucket), [0.0], Event()
    proofs = before_second_proof(monkeypatch, lambda: None)
    real = delete_pipeline.DeletePipeline.collect

    def land_late(flight: delete_pipeline.DeletePipeline, all_but: int = 0) -> None:
        if len(proofs) == 2:
            now[0] = delete_pipeline.RECHECK_VALID_SECONDS + 1
            is_late.set()
        real(flight, all_but)

    def wait(request: Request, forward: Forward) -> Reply:
        assert is_late.wait(timeout=10)
        return forward()

    store.rules.append(rule_for(is_delete_batch, wait, times=4))
    monkeypatch.setattr(delete_pipeline.DeletePipeline, "collect", land_late)
    monkeypatch.setattr(delete_batches, "monotonic_seconds", lambda: now[0])
    monkeypatch.setattr(delete_pipeline, "monotonic_seconds", lambda: now[0])
    monkeypatch.setattr("storage_audit.bucket.s3.monotonic_seconds", lambda: now[0])
    assert run_until_idle(cleanup).status == Status.CLEAN
    for key in proofs[1]:
        assert sum(key in proof for proof in proofs) == 2
        assert sum(key in sent_keys(call) for call in store.find_requests(is_delete_batch)) == 1
    check_promises(bucket)


@pytest.mark.parametrize(
    "error",
    [
        OwnerChanging("wait"),
        ProjectRecreated(),
        CannotConclude("no"),
        Unavailable("busy"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_answers_count_also_when_the_next_recheck_fails(
    four_calls_at_once: None,
    store: FaultyStore,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    cleanup, left = two_batches(bucket), Semaphore(0)
    store.rules.append(rule_for(is_delete_batch, run_before(left.release)))

    def fail() -> None:
        wait_for(4, left)
        raise error

    with monkeypatch.context() as patch:
        proofs = before_second_proof(patch, fail)
        with suppress(ZeroDivisionError):
            run_until_idle(cleanup)
    sent = cleanup.items.filter(attempts=1).order_by("key")
    assert list(sent.values_list("key", flat=True)) == proofs[0]
    # Without their answers, those that were sent would stay marked.
    assert not set(read_outcomes(cleanup).values()) & {"deleting"}
    assert cleanup.items.exclude(attempts=1).count() == 4
    assert len(store.find_requests(is_delete_batch)) == 4
    check_promises(bucket)


def run_while_recheck_fails(
    bucket: Bucket, store: FaultyStore, patch: pytest.MonkeyPatch, answer: Reply
) -> Cleanup:
    """Four calls are answered so, once the look for the batch behind them has failed."""
    cleanup, left, has_failed = two_batches(bucket), Semaphore(0), Event()

    def fail() -> None:
        wait_for(4, left)
        has_failed.set()
        raise OwnerChanging("wait")

    def late(request: Request, forward: Forward) -> Reply:
        left.release()
        assert has_failed.wait(timeout=10)
        return answer

    before_second_proof(patch, fail)
    store.rules.append(rule_for(is_delete_batch, late, times=4))
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.RETRYING
    return cleanup


def test_pause_that_the_store_asks_for_is_kept_when_the_next_recheck_fails(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Reply(503, BUSY.body, (*BUSY.headers, ("Retry-After", "1800")))
    cleanup = run_while_recheck_fails(bucket, store, monkeypatch, asks)
    assert cleanup.next_attempt_at and cleanup.finished_at
    assert (cleanup.next_attempt_at - cleanup.finished_at).total_seconds() >= 1799


def test_trouble_on_the_way_slows_down_when_the_next_recheck_fails(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = run_while_recheck_fails(bucket, store, monkeypatch, BUSY)
    assert cleanup.batch_state == {"keys": 1, "calls": 1}
    assert "SlowDown" in cleanup.events.get(step="batch_size").message


ASKS_FOR_A_PAUSE = Reply(503, BUSY.body, (*BUSY.headers, ("Retry-After", "1800")))


@pytest.mark.parametrize("first_in_trouble", ["behind", "in front", "none"])
def test_trouble_of_the_batch_behind_counts_as_that_of_the_one_in_front(
    four_calls_at_once: None,
    store: FaultyStore,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    first_in_trouble: str,
) -> None:
    """It comes while the other is on its way, is added to trouble of that, or comes after it."""
    fill_project(bucket, 12)
    cleanup = request_cleanup("proj_1")
    Cleanup.objects.update(batch_state={"keys": 1, "calls": 4})
    proofs, real = before_second_proof(monkeypatch, lambda: None), delete_pipeline.record_answers
    has_left, has_failed, has_landed = Event(), Event(), Event()
    real_send = delete_pipeline.send_batch

    def send(*args: Any) -> deleters.SendResult:
        sent = real_send(*args)
        if args[1] != proofs[0]:
            has_failed.set()
        return sent

    def record(*args: Any) -> None:
        real(*args)
        has_landed.set()

    def answer(request: Request, forward: Forward) -> Reply:
        [key] = sent_keys(request)
        if key not in proofs[0]:
            has_left.set()
            assert first_in_trouble == "behind" or has_landed.wait(timeout=10)
            return ASKS_FOR_A_PAUSE
        if key != proofs[0][0] and first_in_trouble == "behind":
            assert has_failed.wait(timeout=10)
        if key != proofs[0][0] and first_in_trouble == "in front":
            assert has_left.wait(timeout=10)
            return BUSY
        return forward()

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    monkeypatch.setattr(delete_pipeline, "record_answers", record)
    store.rules.append(rule_for(is_delete_batch, answer))
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.RETRYING
    assert cleanup.batch_state == {"keys": 1, "calls": 1}
    assert cleanup.next_attempt_at and cleanup.finished_at
    assert (cleanup.next_attempt_at - cleanup.finished_at).total_seconds() >= 1799
    assert bucket.keys() >= set(proofs[1])
    if first_in_trouble != "none":
        assert len(proofs) == 2, "no third look while the store is in trouble"
    check_promises(bucket)


def test_batch_size_after_trouble_is_that_of_the_batch_that_had_it(bucket: Bucket) -> None:
    cleanup = Cleanup(strategy="batch")
    for size, expected in (
        (4000, BatchSize(250, 4)),
        (1000, BatchSize(250, 1)),
        (7, BatchSize(1, 1)),
    ):
        assert BatchSize.for_size(size // 4, adaptive_batch.largest_batch(cleanup)) == expected


@pytest.mark.parametrize("has_left", [True, False])
def test_answers_to_the_batch_behind_count_when_those_to_the_one_in_front_are_lost(
    four_calls_at_once: None,
    store: FaultyStore,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    has_left: bool,
) -> None:
    """What has not left by then is not asked for, and does not count as sent."""
    cleanup, real_send, real = (
        two_batches(bucket),
        delete_pipeline.send_batch,
        delete_pipeline.record_answers,
    )
    proofs = before_second_proof(monkeypatch, lambda: None)
    recorded, answered = list[RecheckedBatch](), Event()

    def send(*args: Any) -> deleters.SendResult:
        is_behind, stop = args[1] != proofs[0], args[-1]
        if is_behind and not has_left:
            assert stop.wait(timeout=10)
        sent = real_send(*args)
        if is_behind:
            answered.set()
        return sent

    def fail_once(cleanup: Cleanup, proof: RecheckedBatch, sent: deleters.SendResult) -> None:
        recorded.append(proof)
        if len(recorded) == 1:
            assert not has_left or answered.wait(timeout=10)
            raise ZeroDivisionError
        real(cleanup, proof, sent)

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    monkeypatch.setattr(delete_pipeline, "record_answers", fail_once)
    with pytest.raises(ZeroDivisionError):
        runner.run_turn(cleanup.pk)
    assert [[item.key for item in proof.deletable] for proof in recorded] == proofs
    of_key = {item.key: (item.outcome, item.attempts) for item in cleanup.items.all()}
    assert {of_key[key] for key in proofs[0]} == {("deleting", 1)}
    assert {of_key[key] for key in proofs[1]} == {("to_delete", int(has_left))}
    assert len(store.find_requests(is_delete_batch)) == (8 if has_left else 4)
    check_promises(bucket)


def test_a_recheck_that_takes_too_long_is_not_relied_on_and_the_next_one_is_smaller(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, now, is_late = two_batches(bucket), [0.0], Event()
    left = Semaphore(0)

    def let_time_pass() -> None:
        wait_for(4, left)  # The clock is read as a call leaves.
        now[0] = delete_pipeline.RECHECK_VALID_SECONDS + 1
        is_late.set()

    def wait(request: Request, forward: Forward) -> Reply:
        left.release()
        assert is_late.wait(timeout=10)
        return forward()

    proofs = before_second_proof(monkeypatch, let_time_pass)
    monkeypatch.setattr(delete_batches, "monotonic_seconds", lambda: now[0])
    monkeypatch.setattr(delete_pipeline, "monotonic_seconds", lambda: now[0])
    monkeypatch.setattr("storage_audit.bucket.s3.monotonic_seconds", lambda: now[0])
    store.rules.append(rule_for(is_delete_batch, wait, times=4))
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert [len(proof) for proof in proofs[:3]] == [4, 4, 1]
    [told, *_others] = cleanup.events.filter(step="batch_size").values_list("message", flat=True)
    assert "took too long" in told
    assert "batch size is now 1 files, with 1 calls at once" in told
    assert set(cleanup.items.values_list("attempts", "store_answer")) == {(1, "Deleted")}
    check_promises(bucket)


def test_nothing_leaves_after_the_lease_that_it_was_proved_under(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for anew when a batch leaves behind another."""
    cleanup, real, left = two_batches(bucket), delete_pipeline.send_batch, list[float]()

    def send(*args: Any) -> object:
        left.append(args[3] - monotonic_seconds())
        return real(*args)

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    lease = {"LEASE_TIME": timedelta(seconds=20)}
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, **lease}):
        assert run_until_idle(cleanup).status == Status.CLEAN
    assert len(left) == 2
    assert max(left) <= 20


def test_pause_that_the_store_asks_for_is_kept_at_the_end_of_a_turn(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = two_batches(bucket)
    store.rules.append(rule_for(is_delete_batch, BUSY, times=4))
    monkeypatch.setattr(Turn, "check_deadline", end_while_deleting)
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.RETRYING
    assert "SlowDown" in cleanup.message
    assert cleanup.next_attempt_at is not None
    check_promises(bucket)


def end_while_deleting(work: Turn) -> None:
    if work.cleanup.step == Cleanup.Step.DELETE:
        work.deadline = 0
        raise TurnOver


def test_turn_ends_with_the_answers_of_what_was_sent(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup = two_batches(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(Turn, "check_deadline", end_while_deleting)
        runner.run_turn(cleanup.pk)
    sent = [key for call in store.find_requests(is_delete_batch) for key in sent_keys(call)]
    answered = cleanup.items.filter(store_answer="Deleted", attempts=1)
    assert sorted(answered.values_list("key", flat=True)) == sorted(sent)
    assert len(sent) == 4
    assert run_until_idle(cleanup).status == Status.CLEAN


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        ProjectRecreated(),
        CannotConclude("no"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_broken_off_makes_no_further_call(
    call_by_call: None,
    store: FaultyStore,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """As by the queue, when a task takes too long."""
    cleanup, gate = two_long_batches(bucket), Gate(monkeypatch)

    def interrupt() -> None:
        gate.wait()
        raise error

    before_second_proof(monkeypatch, interrupt)
    store.rules.append(rule_for(is_delete_single, gate))
    with suppress(type(error)):
        runner.run_turn(cleanup.pk)
    assert gate.in_time == [True] * 5
    assert len(bucket.keys()) == 15
    # Who was in no call does not count as sent, unless nobody was left to write that down.
    uncertain = not isinstance(error, Exception)
    assert cleanup.items.filter(attempts=1).count() == (10 if uncertain else 5)
    check_promises(bucket)


def test_what_is_broken_off_while_it_is_waited_for_makes_no_further_call(
    call_by_call: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch, after which no other is proved."""
    fill_project(bucket, 10)
    cleanup, gate = request_cleanup("proj_1"), Gate(monkeypatch)
    Cleanup.objects.update(batch_state={"keys": 2, "calls": 5})

    def interrupt(flight: delete_pipeline.DeletePipeline, all_but: int = 0) -> None:
        if flight._in_flight:
            gate.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(delete_pipeline.DeletePipeline, "collect", interrupt)
    store.rules.append(rule_for(is_delete_single, gate))
    with pytest.raises(KeyboardInterrupt):
        runner.run_turn(cleanup.pk)
    assert gate.in_time == [True] * 5
    assert len(bucket.keys()) == 5


def test_lease_that_is_lost_stops_what_has_not_left(
    call_by_call: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleanup, gate = two_long_batches(bucket), Gate(monkeypatch)
    mine, theirs = Cleanup.objects.filter(pk=cleanup.pk), uuid4()

    def lose() -> None:
        mine.update(lease_token=theirs)
        gate.wait()

    proofs = before_second_proof(monkeypatch, lose)
    store.rules.append(rule_for(is_delete_single, gate))
    assert runner.run_turn(cleanup.pk) is None
    assert gate.in_time == [True] * 5
    assert len(bucket.keys()) == 15
    assert len(proofs) == 2
    # Nothing is written any more, neither answers nor a pace.
    assert set(cleanup.items.filter(attempts=1).values_list("store_answer", flat=True)) == {""}
    assert mine.get().lease_token == theirs


def test_only_the_thread_that_proves_asks_the_database(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread asks goes through a connection of its own, outside of the lease."""
    cleanup, real, seen = two_batches(bucket), delete_pipeline.send_batch, list[bool]()

    def send(*args: object, **kwargs: object) -> object:
        before = connection.connection
        try:
            return real(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            seen.append(connection.connection is before is None)

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert seen == [True, True]


def test_no_item_is_in_two_batches(
    four_calls_at_once: None, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way has no answer yet, as has what an earlier worker left without one."""
    cleanup, batches = two_batches(bucket), list[set[str]]()
    under_way, real = set[str](), delete_pipeline.send_batch

    def send(cleanup: Cleanup, keys: list[str], *how: object) -> object:
        assert not under_way & set(keys)
        under_way.update(keys)
        batches.append(set(keys))
        sleep(0.3)
        try:
            return real(cleanup, keys, *how)  # type: ignore[arg-type]
        finally:
            under_way.difference_update(keys)

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert [len(batch) for batch in batches] == [4, 4]
    assert not batches[0] & batches[1]
    assert CleanupItem.objects.filter(attempts=1).count() == 8


def test_another_thread_can_break_off_before_the_first_call(
    store: FaultyStore, bucket: Bucket
) -> None:
    stop = Event()
    stop.set()
    with ThreadPoolExecutor(1) as pool:
        sent = deleters.send_deletions(
            "batch", bucket.name, ["a"], until=monotonic_seconds() + 9, size=1, pool=pool, stop=stop
        )
    assert sent.unsent == ["a"]
    assert not sent.errors
    assert not store.find_requests(is_delete_batch)
