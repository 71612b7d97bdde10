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
from storage_audit.cleanup import adaptive_batch, delete_batches, delete_pipeline, runner
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.delete_pipeline import RecheckedBatch
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.clocks import monotonic_seconds
from tests.bucket.store_replies import BROKEN, BUSY
from tests.faults.kinds import error_xml, reply_per_key
from tests.faults.matching import is_delete_batch, is_listing_under, rule_for, run_before, sent_keys
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request, Rule
from tests.promises import (
    Status,
    check_promises,
    clean_up_project,
    fill_project,
    read_outcomes,
    read_reason,
    request_cleanup,
    run_again,
    track_key,
)
from tests.real_bucket import Bucket


def sizes(store: FaultyStore) -> list[int]:
    """The number of keys in each call."""
    return [len(sent_keys(call)) for call in store.find_requests(is_delete_batch)]


def batch_messages(cleanup: Cleanup) -> list[str]:
    return list(cleanup.events.filter(step="batch_size").values_list("message", flat=True))


@pytest.fixture
def one_key_a_call(store: FaultyStore) -> Iterator[None]:
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, "BATCH_SIZE": 1}):
        yield


def test_batch_size_falls_in_leaps_and_rises_by_doubling() -> None:
    fastest = adaptive_batch.largest_batch(Cleanup())
    assert fastest == BatchSize(250, 16)
    falling = [fastest, BatchSize(25, 4), BatchSize(1, 1)]
    assert [one.smaller() for one in falling] == [*falling[1:], BatchSize(1, 1)]
    rising = [BatchSize(keys, calls) for keys in (1, 25, 250) for calls in (1, 2, 4, 8, 16)]
    assert [one.larger(fastest) for one in rising] == [*rising[1:], fastest]


@pytest.mark.parametrize("most", [1, 100, 250, 999])
def test_no_call_is_ever_larger_than_the_setting(most: int) -> None:
    with override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, "BATCH_SIZE": most}):
        one = BatchSize.of(Cleanup(batch_state={"keys": 1000, "calls": 1}))
        for _step in range(20):
            assert one.keys <= most
            one = one.larger(adaptive_batch.largest_batch(Cleanup()))
        assert one == BatchSize(most, 16)


@pytest.mark.parametrize("trouble", [BUSY, BROKEN, RESET_REPLY], ids=["503", "500", "reset"])
def test_trouble_makes_calls_smaller_and_success_larger_again(
    store: FaultyStore, bucket: Bucket, trouble: Reply
) -> None:
    fill_project(bucket, 306)
    store.rules.append(rule_for(is_delete_batch, trouble, times=2))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not bucket.keys()
    assert sizes(store)[:34] == [250, 25, *[1] * 31, 25]
    assert cleanup.batch_state["keys"] == 25
    check_promises(bucket)


def test_timeline_tells_of_each_change(store: FaultyStore, bucket: Bucket) -> None:
    fill_project(bucket, 31)
    store.rules.append(rule_for(is_delete_batch, BUSY, times=2))
    assert batch_messages(clean_up_project("proj_1")) == [
        "DeleteObjects failed: SlowDown a fault, made on purpose."
        f" The batch size is now {keys} files, with 1 calls at once."
        for keys in (25, 1)
    ] + ["The store keeps up. The batch size is now 25 files, with 1 calls at once."]


def test_errors_of_single_keys_slow_down_too(store: FaultyStore, bucket: Bucket) -> None:
    fill_project(bucket, 5)
    store.rules.append(rule_for(is_delete_batch, each_key_is_too_much, times=1))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert len(batch_messages(cleanup)) == 1
    assert "SlowDown" in batch_messages(cleanup)[0]


def each_key_is_too_much(request: Request, forward: Forward) -> Reply:
    failures = "".join(
        f"<Error><Key>{key}</Key><Code>SlowDown</Code></Error>" for key in sent_keys(request)
    )
    return Reply(200, f"<DeleteResult>{failures}</DeleteResult>".encode())


def test_what_one_key_was_refused_for_slows_nothing_down(
    store: FaultyStore, bucket: Bucket
) -> None:
    bucket.put("projects/proj_1/scenes/s1/media/a\x01/../b")
    fill_project(bucket, 1)
    assert not batch_messages(clean_up_project("proj_1"))


@pytest.mark.parametrize("code", ["<Code/>", "<Code></Code><Message></Message>"])
def test_refusal_of_a_key_without_a_code_is_an_answer(
    store: FaultyStore, bucket: Bucket, code: str
) -> None:
    [key] = fill_project(bucket, 1)

    def refuse(request: Request, forward: Forward) -> Reply:
        return reply_per_key(request, lambda key: f"<Error><Key>{key}</Key>{code}</Error>")

    store.rules.append(rule_for(is_delete_batch, refuse, times=10))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert read_reason(cleanup, key) == "Still in the bucket. The store's answer: Error"


def test_store_that_is_down_is_asked_ten_times_for_one_key_and_then_left_alone(
    store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 280)
    store.rules.append(rule_for(is_delete_batch, BROKEN))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert "InternalError" in cleanup.message
    assert sizes(store) == [250, 25, *[1] * 10]
    store.requests.clear()
    assert run_again(cleanup).status == Status.RETRYING
    assert sizes(store) == [1] * 10, "the pace is kept"
    assert bucket.keys() == set(keys)
    check_promises(bucket)


def test_one_key_that_the_store_cannot_bear_stops_no_other(
    store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 8)

    def has_the_first(request: Request) -> bool:
        return is_delete_batch(request) and keys[0] in sent_keys(request)

    store.rules.append(rule_for(has_the_first, BROKEN))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == dict.fromkeys(keys, "deleted") | {keys[0]: "failed"}
    assert "InternalError" in read_reason(cleanup, keys[0])
    check_promises(bucket)


def test_one_key_that_is_never_answered_stops_no_other(store: FaultyStore, bucket: Bucket) -> None:
    keys = fill_project(bucket, 8)
    outside = "odd/1"
    bucket.put(outside)
    track_key(bucket, outside, "proj_1")

    def has_the_first(request: Request) -> bool:
        return is_delete_batch(request) and keys[0] in sent_keys(request)

    def has_the_other(request: Request) -> bool:
        return is_delete_batch(request) and sent_keys(request) == [outside]

    store.rules += [
        rule_for(has_the_first, RESET_REPLY),
        rule_for(has_the_other, RESET_REPLY, times=1),
    ]
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert bucket.keys() == {keys[0]}
    assert run_again(cleanup).status == Status.RETRYING
    check_promises(bucket)


def test_store_that_gets_on_now_and_then_is_not_left_alone(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    fill_project(bucket, 16)

    def passes(request: Request, forward: Forward) -> Reply:
        return forward()

    answers: list[Reply | Rule] = [*[BROKEN] * 8, passes, *[BROKEN] * 8, passes]
    store.rules.append(rule_for(is_delete_batch, *answers))
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert not bucket.keys()


def test_what_was_not_answered_waits_for_the_others(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 3)
    store.rules.append(rule_for(is_delete_batch, RESET_REPLY, times=1))
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert [sent_keys(call) for call in store.find_requests(is_delete_batch)] == [
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
    busy = Reply(503, error_xml("SlowDown"), (("Retry-After", "7"),))
    store.rules.append(rule_for(is_delete_batch, busy, times=1))
    cleanup = clean_up_project("proj_1")
    assert pauses == [7.0]
    assert (cleanup.status, cleanup.attempts) == (Status.CLEAN, 0)
    calls = [r for r in store.requests if is_delete_batch(r) or is_listing_under("")(r)]
    kinds = ["delete" if is_delete_batch(call) else "look" for call in calls]
    assert "".join(kind[0] for kind in kinds).count("ld") == 2, "a new proof for each"


def test_pauses_differ(
    store: FaultyStore, bucket: Bucket, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_batch, "PAUSE_SECONDS", 2.0)
    fill_project(bucket, 3)
    store.rules.append(rule_for(is_delete_batch, RESET_REPLY))
    clean_up_project("proj_1")
    assert len(set(pauses)) == len(pauses) > 5
    assert all(1 <= pause <= 2 for pause in pauses)


def test_pause_that_the_turn_is_too_short_for_is_made_between_attempts(
    store: FaultyStore, bucket: Bucket, pauses: list[float]
) -> None:
    fill_project(bucket, 3)
    store.rules.append(
        rule_for(is_delete_batch, Reply(503, error_xml("SlowDown"), (("Retry-After", "40"),)))
    )
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
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

    store.rules.append(rule_for(is_delete_batch, wait_for_the_others))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not batch_messages(cleanup)
    assert most == 16
    check_promises(bucket)


def test_lease_that_is_lost_stops_all_but_what_is_under_way(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    fill_project(bucket, 12)
    cleanup = request_cleanup("proj_1")
    Cleanup.objects.update(batch_state={"keys": 1, "calls": 4})
    mine = Cleanup.objects.filter(pk=cleanup.pk)

    def lose() -> None:
        mine.update(lease_token=uuid4())

    store.rules.append(rule_for(is_delete_batch, run_before(lose), times=1))
    runner.run_turn(cleanup.pk)
    assert sizes(store) == [1] * 4
    assert cleanup.items.filter(outcome="deleting", store_answer="", attempts=1).count() == 4
    # Some of these may have been marked by then, as their look was under way.
    assert cleanup.items.filter(outcome__in=["to_delete", "deleting"], attempts=0).count() == 8


def test_trouble_with_one_call_keeps_the_answers_of_the_others(
    one_key_a_call: None, store: FaultyStore, bucket: Bucket
) -> None:
    keys = fill_project(bucket, 4)
    cleanup = request_cleanup("proj_1")
    Cleanup.objects.update(batch_state={"keys": 1, "calls": 4})
    together = Barrier(4)

    def all_but_the_first(request: Request, forward: Forward) -> Reply:
        together.wait(timeout=30)
        return RESET_REPLY if sent_keys(request) == keys[:1] else forward()

    store.rules.append(rule_for(is_delete_batch, all_but_the_first, times=4))
    assert runner.run_to_end(cleanup.pk).status == Status.CLEAN
    sent = [key for call in store.find_requests(is_delete_batch) for key in sent_keys(call)]
    assert sorted(sent) == sorted([*keys, keys[0]])
    assert set(cleanup.items.values_list("store_answer", flat=True)) == {"Deleted"}
    check_promises(bucket)


# The age of a proof


def test_nothing_leaves_when_its_time_is_over(store: FaultyStore, bucket: Bucket) -> None:
    keys = fill_project(bucket, 2)
    for call in (
        lambda: s3.delete_batch("tests", keys),
        lambda: s3.delete_single("tests", keys[0]),
    ):
        with pytest.raises(DeadlinePassed), s3.send_deadline(monotonic_seconds() - 1):
            call()
    assert not store.requests
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

    with s3.send_deadline(monotonic_seconds() + 30):
        monkeypatch.setattr("storage_audit.clocks.clock_gettime", after_a_minute)
        with pytest.raises(DeadlinePassed):
            s3.delete_batch("tests", keys)
    assert not store.requests


def test_batch_whose_proof_grew_old_before_it_left_is_proved_anew(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process was stopped in between."""
    fill_project(bucket, 8)
    now, real = [0.0], delete_batches.record_recheck

    def stall_once(cleanup: Cleanup, proof: RecheckedBatch) -> None:
        real(cleanup, proof)
        if not now[0]:
            assert not store.find_requests(is_delete_batch)
            now[0] += delete_pipeline.RECHECK_VALID_SECONDS + 1

    monkeypatch.setattr(delete_batches, "record_recheck", stall_once)
    for module in (delete_batches, delete_pipeline, s3):
        monkeypatch.setattr(module, "monotonic_seconds", lambda: now[0])
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert sizes(store) == [2, 2, 2, 2]
    assert set(read_outcomes(cleanup).values()) == {"deleted"}
    assert "is too old" in batch_messages(cleanup)[0]
    assert CleanupItem.objects.filter(outcome="failed").count() == 0
    check_promises(bucket)
