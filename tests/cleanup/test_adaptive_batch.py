"""How much is asked of the store at a time: less when it has trouble, more while all goes well."""

from collections.abc import Iterator
from threading import Barrier, Lock
from time import CLOCK_BOOTTIME, clock_gettime
from uuid import uuid4

import pytest
from django.conf import settings
from django.test import override_settings

from devtools.http_reply import Reply
from storage_audit.bucket import s3
from storage_audit.bucket.errors import DeadlinePassed
from storage_audit.cleanup import adaptive_batch, delete_batches, runner
from storage_audit.cleanup.adaptive_batch import Pace
from storage_audit.cleanup.delete_pipeline import Proof
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.clocks import monotonic
from tests.bucket.store_replies import BROKEN, BUSY
from tests.faults.kinds import error, per_key
from tests.faults.matching import is_delete_batch, is_listing_under, keys_sent, on, then
from tests.faults.proxy import RESET, FaultyStore, Forward, Request, Rule
from tests.promises import (
    Status,
    again,
    check,
    delete,
    fill_project,
    outcomes,
    reason,
    requested,
    track,
)
from tests.real_bucket import Bucket


def sizes(store: FaultyStore) -> list[int]:
    """The number of keys in each call."""
    return [len(keys_sent(call)) for call in store.asked(is_delete_batch)]


def told(operation: CleanupOperation) -> list[str]:
    return list(operation.events.filter(step="pace").values_list("message", flat=True))


@pytest.fixture
def one_key_a_call(store: FaultyStore) -> Iterator[None]:
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, "BATCH_SIZE": 1}):
        yield


def test_pace_falls_in_leaps_and_rises_by_doubling() -> None:
    fastest = adaptive_batch.most_of(CleanupOperation())
    assert fastest == Pace(250, 16)
    falling = [fastest, Pace(25, 4), Pace(1, 1)]
    assert [one.slower() for one in falling] == [*falling[1:], Pace(1, 1)]
    rising = [Pace(keys, calls) for keys in (1, 25, 250) for calls in (1, 2, 4, 8, 16)]
    assert [one.faster(fastest) for one in rising] == [*rising[1:], fastest]


@pytest.mark.parametrize("most", [1, 100, 250, 999])
def test_no_call_is_ever_larger_than_the_setting(most: int) -> None:
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, "BATCH_SIZE": most}):
        one = Pace.of(CleanupOperation(pace={"keys": 1000, "calls": 1}))
        for _step in range(20):
            assert one.keys <= most
            one = one.faster(adaptive_batch.most_of(CleanupOperation()))
        assert one == Pace(most, 16)


@pytest.mark.parametrize("trouble", [BUSY, BROKEN, RESET], ids=["503", "500", "reset"])
def test_trouble_makes_calls_smaller_and_success_larger_again(
    store: FaultyStore, bucket: Bucket, trouble: Reply
) -> None:
    fill_project(bucket, 306)
    store.rules.append(on(is_delete_batch, trouble, times=2))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert not bucket.keys()
    assert sizes(store)[:34] == [250, 25, *[1] * 31, 25]
    assert operation.pace["keys"] == 25
    check(bucket)


def test_timeline_tells_of_each_change(store: FaultyStore, bucket: Bucket) -> None:
    fill_project(bucket, 31)
    store.rules.append(on(is_delete_batch, BUSY, times=2))
    assert told(delete("proj_1")) == [
        "DeleteObjects failed: SlowDown a fault, made on purpose."
        f" From now on at most {keys} objects after one look, 1 calls at once."
        for keys in (25, 1)
    ] + ["The store keeps up. From now on at most 25 objects after one look, 1 calls at once."]


def test_errors_of_single_keys_slow_down_too(store: FaultyStore, bucket: Bucket) -> None:
    fill_project(bucket, 5)
    store.rules.append(on(is_delete_batch, each_key_is_too_much, times=1))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert len(told(operation)) == 1
    assert "SlowDown" in told(operation)[0]


def each_key_is_too_much(request: Request, forward: Forward) -> Reply:
    failures = "".join(
        f"<Error><Key>{key}</Key><Code>SlowDown</Code></Error>" for key in keys_sent(request)
    )
    return Reply(200, f"<DeleteResult>{failures}</DeleteResult>".encode())


def test_what_one_key_was_refused_for_slows_nothing_down(
    store: FaultyStore, bucket: Bucket
) -> None:
    bucket.put("projects/proj_1/scenes/s1/media/a\x01/../b")
    fill_project(bucket, 1)
    assert not told(delete("proj_1"))


@pytest.mark.parametrize("code", ["<Code/>", "<Code></Code><Message></Message>"])
def test_refusal_of_a_key_without_a_code_is_an_answer(
    store: FaultyStore, bucket: Bucket, code: str
) -> None:
    [key] = fill_project(bucket, 1)

    def refuse(request: Request, forward: Forward) -> Reply:
        return per_key(request, lambda key: f"<Error><Key>{key}</Key>{code}</Error>")

    store.rules.append(on(is_delete_batch, refuse, times=10))
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert reason(operation, key) == "Still in the bucket; the store's answer: Error"


def test_store_that_is_down_is_asked_ten_times_for_one_key_and_then_left_alone(
    store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 280)
    store.rules.append(on(is_delete_batch, BROKEN))
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert "InternalError" in operation.error
    assert sizes(store) == [250, 25, *[1] * 10]
    store.seen.clear()
    assert again(operation).status == Status.INCOMPLETE
    assert sizes(store) == [1] * 10, "the pace is kept"
    assert bucket.keys() == set(keys)
    check(bucket)


def test_one_key_that_the_store_cannot_bear_stops_no_other(
    store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 8)

    def has_the_first(request: Request) -> bool:
        return is_delete_batch(request) and keys[0] in keys_sent(request)

    store.rules.append(on(has_the_first, BROKEN))
    operation = delete("proj_1")
    assert outcomes(operation) == dict.fromkeys(keys, "deleted") | {keys[0]: "failed"}
    assert "InternalError" in reason(operation, keys[0])
    check(bucket)


def test_one_key_that_is_never_answered_stops_no_other(store: FaultyStore, bucket: Bucket) -> None:
    keys = fill_project(bucket, 8)
    outside = "odd/1"
    bucket.put(outside)
    track(bucket, outside, "proj_1")

    def has_the_first(request: Request) -> bool:
        return is_delete_batch(request) and keys[0] in keys_sent(request)

    def has_the_other(request: Request) -> bool:
        return is_delete_batch(request) and keys_sent(request) == [outside]

    store.rules += [on(has_the_first, RESET), on(has_the_other, RESET, times=1)]
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert bucket.keys() == {keys[0]}
    assert again(operation).status == Status.INCOMPLETE
    check(bucket)


def test_store_that_gets_on_now_and_then_is_not_left_alone(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    fill_project(bucket, 16)

    def passes(request: Request, forward: Forward) -> Reply:
        return forward()

    answers: list[Reply | Rule] = [*[BROKEN] * 8, passes, *[BROKEN] * 8, passes]
    store.rules.append(on(is_delete_batch, *answers))
    assert delete("proj_1").status == Status.CLEAN
    assert not bucket.keys()


def test_what_was_not_answered_waits_for_the_others(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 3)
    store.rules.append(on(is_delete_batch, RESET, times=1))
    assert delete("proj_1").status == Status.CLEAN
    assert [keys_sent(call) for call in store.asked(is_delete_batch)] == [
        [key] for key in (*keys, keys[0])
    ]


# Pauses


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that were made; time does not pass."""
    made: list[float] = []
    monkeypatch.setattr(adaptive_batch, "sleep", made.append)
    return made


def test_time_that_the_store_asks_for_is_given_within_the_turn(
    store: FaultyStore, bucket: Bucket, pauses: list[float]
) -> None:
    fill_project(bucket, 3)
    busy = Reply(503, error("SlowDown"), (("Retry-After", "7"),))
    store.rules.append(on(is_delete_batch, busy, times=1))
    operation = delete("proj_1")
    assert pauses == [7.0]
    assert (operation.status, operation.attempts) == (Status.CLEAN, 0)
    calls = [r for r in store.seen if is_delete_batch(r) or is_listing_under("")(r)]
    kinds = ["delete" if is_delete_batch(call) else "look" for call in calls]
    assert "".join(kind[0] for kind in kinds).count("ld") == 2, "a new proof for each"


def test_pauses_differ(
    store: FaultyStore, bucket: Bucket, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_batch, "PAUSE", 2.0)
    fill_project(bucket, 3)
    store.rules.append(on(is_delete_batch, RESET))
    delete("proj_1")
    assert len(set(pauses)) == len(pauses) > 5
    assert all(1 <= pause <= 2 for pause in pauses)


def test_pause_that_the_turn_is_too_short_for_is_made_between_attempts(
    store: FaultyStore, bucket: Bucket, pauses: list[float]
) -> None:
    fill_project(bucket, 3)
    store.rules.append(on(is_delete_batch, Reply(503, error("SlowDown"), (("Retry-After", "40"),))))
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert not pauses
    assert sizes(store) == [3]


# Calls at once


def test_up_to_sixteen_calls_are_under_way_at_once(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    """The rounds are of one, two, four, eight and then always sixteen."""
    fill_project(bucket, 47)
    rounds = [each for count in (1, 2, 4, 8, 16, 16) for each in [Barrier(count)] * count]
    lock, under_way, most = Lock(), 0, 0

    def wait_for_the_others(request: Request, forward: Forward) -> Reply:
        nonlocal under_way, most
        with lock:
            barrier, under_way = rounds.pop(0), under_way + 1
            most = max(most, under_way)
        barrier.wait(timeout=30)
        reply = forward()
        with lock:
            under_way -= 1
        return reply

    store.rules.append(on(is_delete_batch, wait_for_the_others))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert not told(operation)
    assert most == 16
    check(bucket)


def test_lease_that_is_lost_stops_all_but_what_is_under_way(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    fill_project(bucket, 12)
    operation = requested("proj_1")
    CleanupOperation.objects.update(pace={"keys": 1, "calls": 4})
    mine = CleanupOperation.objects.filter(pk=operation.pk)

    def lose() -> None:
        mine.update(lease_token=uuid4())

    store.rules.append(on(is_delete_batch, then(lose), times=1))
    runner.run_slice(operation.pk)
    assert sizes(store) == [1] * 4
    assert operation.items.filter(outcome="deleting", answer="", tries=1).count() == 4
    # Some of these may have been marked by then, as their look was under way.
    assert operation.items.filter(outcome__in=["planned", "deleting"], tries=0).count() == 8


def test_trouble_with_one_call_keeps_the_answers_of_the_others(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 4)
    operation = requested("proj_1")
    CleanupOperation.objects.update(pace={"keys": 1, "calls": 4})
    together = Barrier(4)

    def all_but_the_first(request: Request, forward: Forward) -> Reply:
        together.wait(timeout=30)
        return RESET if keys_sent(request) == keys[:1] else forward()

    store.rules.append(on(is_delete_batch, all_but_the_first, times=4))
    assert runner.run(operation.pk).status == Status.CLEAN
    sent = [key for call in store.asked(is_delete_batch) for key in keys_sent(call)]
    assert sorted(sent) == sorted([*keys, keys[0]])
    assert set(operation.items.values_list("answer", flat=True)) == {"Deleted"}
    check(bucket)


# The age of a proof


def test_nothing_leaves_when_its_time_is_over(store: FaultyStore, bucket: Bucket) -> None:
    keys = fill_project(bucket, 2)
    for call in (
        lambda: s3.delete_batch("tests", keys),
        lambda: s3.delete_single("tests", keys[0]),
    ):
        with pytest.raises(DeadlinePassed), s3.sent_until(monotonic() - 1):
            call()
    assert not store.seen
    assert bucket.keys() == set(keys)
    s3.delete_batch("tests", keys)
    assert not bucket.keys()


def test_nothing_leaves_after_the_machine_was_suspended(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's clock has stood still meanwhile."""
    keys = fill_project(bucket, 1)

    def after_a_minute(clock: int) -> float:
        return clock_gettime(clock) + 60 * (clock == CLOCK_BOOTTIME)

    with s3.sent_until(monotonic() + 30):
        monkeypatch.setattr("storage_audit.clocks.clock_gettime", after_a_minute)
        with pytest.raises(DeadlinePassed):
            s3.delete_batch("tests", keys)
    assert not store.seen


def test_batch_whose_proof_grew_old_before_it_left_is_proved_anew(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process was stopped in between."""
    fill_project(bucket, 8)
    now, real = [0.0], delete_batches.record_proof

    def stall_once(operation: CleanupOperation, proof: Proof) -> None:
        real(operation, proof)
        if not now[0]:
            assert not store.asked(is_delete_batch)
            now[0] += delete_batches.PROOF_LASTS + 1

    monkeypatch.setattr(delete_batches, "record_proof", stall_once)
    for module in (delete_batches, s3):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert sizes(store) == [2, 2, 2, 2]
    assert set(outcomes(operation).values()) == {"deleted"}
    assert "too old by now" in told(operation)[0]
    assert CleanupItem.objects.filter(outcome="failed").count() == 0
    check(bucket)
