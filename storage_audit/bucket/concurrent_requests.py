"""Asks the store several things at once, each over a connection of its own."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from math import inf
from threading import BoundedSemaphore, Event, Lock
from time import monotonic
from typing import Any, TypeVar

from django.utils.translation import gettext as _

from storage_audit.bucket.connections import KeptConnection, keep_connection
from storage_audit.bucket.errors import BucketForbidden, InvalidResponse, Overloaded, StoreError

# Of this process, whatever it works on.
MAX_CONNECTIONS = 16
# A store that asks for a longer pause gets it from the error policy: see bucket/errors.py.
LONGEST_PAUSE_SECONDS = 5.0
POLL_SECONDS = 1.0

T = TypeVar("T")
Job = Callable[[KeptConnection], T]


class NotSent(StoreError):
    """The request was not sent, as its answer is not wanted any more."""


class Gate:
    """Stands before each request of jobs that run at once."""

    def __init__(self) -> None:
        self.closed = Event()
        self.first_failure = inf
        self.open_at = 0.0
        # Held to change one of the two above.
        self.lock = Lock()

    def pass_through(self, index: int) -> None:
        """Wait while the store wants a pause. Raises NotSent if the job of this index, or all, are
        to stop, and Overloaded if the pause is long."""
        while True:
            if self.closed.is_set() or index > self.first_failure:
                raise NotSent("Not sent: another request failed.")
            left = self.open_at - monotonic()
            if left <= 0:
                return
            if left > LONGEST_PAUSE_SECONDS:
                text = _("The store asks for a pause of %d seconds.") % round(left)
                raise Overloaded(text, "SlowDown", retry_after=left, answered=True)
            self.closed.wait(min(left, POLL_SECONDS))


_gate: ContextVar[tuple[Gate, int] | None] = ContextVar("gate", default=None)
_slots = BoundedSemaphore(MAX_CONNECTIONS)


def reset_after_fork() -> None:
    """In a process just forked: threads of its parent may have held some."""
    global _slots
    _slots = BoundedSemaphore(MAX_CONNECTIONS)


os.register_at_fork(after_in_child=reset_after_fork)


def hold_back(**kwargs: Any) -> None:
    """Before each attempt of a request, also those that botocore makes itself."""
    if passing := _gate.get():
        gate, index = passing
        gate.pass_through(index)


def note_pause(seconds: float) -> None:
    """The store asked for a pause: all jobs that run beside this one wait for it too."""
    if passing := _gate.get():
        gate, _index = passing
        with gate.lock:
            gate.open_at = max(gate.open_at, monotonic() + seconds)


@contextmanager
def _take_turn(gate: Gate, index: int) -> Iterator[KeptConnection]:
    with _slots, keep_connection() as kept:
        before = _gate.set((gate, index))
        try:
            yield kept
        finally:
            _gate.reset(before)


def run_at_once(
    jobs: Sequence[Job[T]], while_waiting: Callable[[], object] = lambda: None
) -> tuple[list[T], StoreError | None]:
    """Run the jobs, up to MAX_CONNECTIONS at once, each over a connection that it keeps. Returns
    the results up to the first job that failed, and the worst of the errors.

    Jobs behind one that failed send nothing more. Jobs may not use the database; `while_waiting`
    may, as it is called here, each second and after each job. What it raises ends the jobs.
    """
    gate = Gate()

    def run(index: int) -> T:
        try:
            with _take_turn(gate, index) as kept:
                return jobs[index](kept)
        except BaseException:
            with gate.lock:
                gate.first_failure = min(gate.first_failure, index)
            raise

    width = max(1, min(len(jobs), MAX_CONNECTIONS))
    pool = ThreadPoolExecutor(width)
    try:
        # In a copy of our context each, for the deadline of requests and what logs name.
        running = [pool.submit(copy_context().run, run, index) for index in range(len(jobs))]
        left = set[Future[T]](running)
        while left:
            _done, left = wait(left, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while_waiting()
    finally:
        gate.closed.set()
        pool.shutdown(cancel_futures=True)
    return _collect(running)


def _collect(ended: Sequence[Future[T]]) -> tuple[list[T], StoreError | None]:
    results, errors = list[T](), list[StoreError]()
    for job in ended:
        error = job.exception()
        if isinstance(error, StoreError):
            errors.append(error)
        elif error is not None:
            raise error
        elif not errors:
            results.append(job.result())
    return results, _worst(errors)


def _worst(errors: Sequence[StoreError]) -> StoreError | None:
    """With the longest pause that the store asked for."""
    failures = [error for error in errors if not isinstance(error, NotSent)] or list(errors)
    if not failures:
        return None
    worst = max(failures, key=_severity)
    worst.retry_after = max(error.retry_after for error in failures)
    return worst


def _severity(error: StoreError) -> tuple[bool, bool, float, bool]:
    return (
        isinstance(error, BucketForbidden),
        isinstance(error, InvalidResponse),
        error.retry_after,
        isinstance(error, Overloaded),
    )
