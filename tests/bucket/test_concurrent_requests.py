"""Requests that are made at once: how many, over which connections, and what ends them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from time import monotonic, sleep

import pytest

from devtools.http_reply import Reply
from storage_audit.bucket import concurrent_requests, s3
from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS, run_at_once
from storage_audit.bucket.connections import KeptConnection, keep_connection
from storage_audit.bucket.errors import (
    DeadlinePassed,
    InvalidResponse,
    Overloaded,
    StoreError,
    Unavailable,
)
from storage_audit.clocks import monotonic_seconds
from tests.faults.matching import is_listing_under, rule_for
from tests.faults.proxy import RESET_REPLY, FaultyStore
from tests.real_bucket import Bucket


def listing_of(bucket: Bucket, prefix: str) -> Callable[[KeptConnection], int]:
    return lambda kept: len(s3.list_page(bucket.name, prefix).objects)


def gate_of_this_job() -> concurrent_requests.Gate:
    passing = concurrent_requests._gate.get()
    assert passing
    return passing[0]


class CountingJob:
    """Counts how many of it run at the same time."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.lock = Lock()

    def __call__(self, kept: KeptConnection) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        sleep(0.03)
        with self.lock:
            self.running -= 1


def test_no_more_than_so_many_run_at_once() -> None:
    job = CountingJob()
    results, trouble = run_at_once([job] * (3 * MAX_CONNECTIONS))
    assert len(results) == 3 * MAX_CONNECTIONS and trouble is None
    assert 1 < job.most <= MAX_CONNECTIONS


def test_all_callers_share_the_slots() -> None:
    job = CountingJob()
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(run_at_once, [[job] * MAX_CONNECTIONS] * 2))
    assert job.most <= MAX_CONNECTIONS


def test_each_keeps_a_connection_of_its_own(bucket: Bucket, store: FaultyStore) -> None:
    together = Barrier(3)

    def job(kept: KeptConnection) -> tuple[int, int]:
        for _turn in range(3):
            together.wait(timeout=10)
            s3.list_page(bucket.name, "a/")
        return len(kept.served), len(set(kept.served))

    store.requests.clear()
    results, _trouble = run_at_once([job] * 3)
    assert results == [(3, 1)] * 3
    assert len({request.connection for request in store.requests}) == 3


def test_connection_that_is_opened_again_has_another_number(
    bucket: Bucket, store: FaultyStore
) -> None:
    with keep_connection() as kept:
        s3.list_page(bucket.name, "a/")
        store.rules.append(rule_for(is_listing_under("b/"), RESET_REPLY, times=1))
        s3.list_page(bucket.name, "b/")
        s3.list_page(bucket.name, "c/")
    first, *_lost, again, last = kept.served
    assert first != again == last


def test_results_before_a_failure_are_given_and_what_follows_it_is_not_sent(
    bucket: Bucket, store: FaultyStore
) -> None:
    store.rules.append(rule_for(is_listing_under("p3/"), Reply(403)))

    def job(number: int) -> Callable[[KeptConnection], int]:
        def run(kept: KeptConnection) -> int:
            while number > 3 and gate_of_this_job().first_failure > 3:
                sleep(0.01)
            return listing_of(bucket, f"p{number}/")(kept)

        return run

    store.requests.clear()
    results, trouble = run_at_once([job(number) for number in range(6)])
    assert results == [0, 0, 0] and isinstance(trouble, StoreError)
    assert {request.query["prefix"] for request in store.requests} == {
        f"p{number}/" for number in range(4)
    }


def test_pause_that_the_store_asks_one_for_holds_back_all(
    bucket: Bucket, store: FaultyStore
) -> None:
    throttled = Reply(503, b"", (("Retry-After", "1"),))
    store.rules.append(rule_for(is_listing_under("p0/"), throttled, times=1))
    sent = dict[str, float]()

    def note(request: object, *others: object) -> None:
        sent[request.query["prefix"]] = monotonic()  # type: ignore[attr-defined]

    store.observers.append(note)

    def late(kept: KeptConnection) -> int:
        while not gate_of_this_job().open_at:
            sleep(0.01)
        return listing_of(bucket, "p1/")(kept)

    began = monotonic()
    results, trouble = run_at_once([listing_of(bucket, "p0/"), late])
    assert (results, trouble) == ([0, 0], None)
    assert min(sent.values()) >= began + 1


def test_long_pause_ends_all_and_is_told(bucket: Bucket, store: FaultyStore) -> None:
    throttled = Reply(503, b"", (("Retry-After", "60"),))
    store.rules.append(rule_for(is_listing_under("p0/"), throttled))

    def late(kept: KeptConnection) -> int:
        while not gate_of_this_job().open_at:
            sleep(0.01)
        return listing_of(bucket, "p1/")(kept)

    store.requests.clear()
    results, trouble = run_at_once([listing_of(bucket, "p0/"), late])
    assert not results and isinstance(trouble, Overloaded) and 55 < trouble.retry_after <= 60
    assert [request.query["prefix"] for request in store.requests] == ["p0/"]


def test_what_is_raised_while_waiting_ends_what_is_not_sent_yet(
    bucket: Bucket, store: FaultyStore
) -> None:
    def stop() -> None:
        raise KeyError

    def slow(kept: KeptConnection) -> int:
        assert gate_of_this_job().closed.wait(30)
        return listing_of(bucket, "late/")(kept)

    with pytest.raises(KeyError):
        run_at_once([listing_of(bucket, "p0/"), slow], stop)
    assert not store.find_requests(is_listing_under("late/"))


def test_jobs_keep_the_deadline_of_who_starts_them(bucket: Bucket, store: FaultyStore) -> None:
    store.requests.clear()
    with s3.send_deadline(monotonic_seconds() - 1):
        results, trouble = run_at_once([listing_of(bucket, "p0/"), listing_of(bucket, "p1/")])
    assert not results and isinstance(trouble, DeadlinePassed)
    assert not store.requests


def test_worst_error_is_told_with_the_longest_pause() -> None:
    def fail(error: StoreError) -> Callable[[KeptConnection], int]:
        def job(kept: KeptConnection) -> int:
            together.wait(timeout=10)
            raise error

        return job

    together = Barrier(3)
    errors = [Unavailable("a"), InvalidResponse("b"), Overloaded("c", retry_after=7)]
    _results, trouble = run_at_once([fail(error) for error in errors])
    assert isinstance(trouble, InvalidResponse) and trouble.retry_after == 7


def test_process_that_was_forked_has_all_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = concurrent_requests._slots
    monkeypatch.setattr(concurrent_requests, "_slots", taken)
    concurrent_requests.reset_after_fork()
    assert concurrent_requests._slots is not taken
