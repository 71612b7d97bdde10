"""Requests that take their time: of each web process's threads they get only so many."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import BoundedSemaphore, Lock

from django.utils.translation import gettext as _

from storage_audit.api.problems import Problem
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

LONGEST = 30  # seconds; proxies give up after 60
LOOK_EVERY = 0.5
COME_BACK_AFTER = 5  # seconds


@cache
def places() -> BoundedSemaphore:
    return BoundedSemaphore(conf().api_waits)


_making = Lock()


@contextmanager
def place() -> Iterator[None]:
    """Whoever waits, asks the store or starts a program has a thread of this process for itself;
    the others are for everybody else. Raises Problem when too many do."""
    with _making:  # Else the first two would make places of their own.
        ours = places()
    if not ours.acquire(blocking=False):
        text = _(
            "Too many requests here are waiting, or asking the store. Try again in %s seconds."
        )
        header = {"Retry-After": str(COME_BACK_AFTER)}
        raise Problem("too-many-requests", text % COME_BACK_AFTER, header)
    try:
        yield
    finally:
        ours.release()


def wait_for_change(operation: CleanupOperation, seconds: float) -> None:
    """Return once its status is another, when nothing more happens by itself, or when the time is
    over; at once when there is no place to wait. Nothing is locked meanwhile."""
    if not seconds:
        return
    with suppress(Problem), place():
        ends = time.monotonic() + seconds
        while is_as_seen(operation) and time.monotonic() < ends:
            time.sleep(LOOK_EVERY)
        operation.refresh_from_db()


def is_as_seen(operation: CleanupOperation) -> bool:
    same = CleanupOperation.objects.filter(pk=operation.pk, status=operation.status)
    return same.exclude(next_attempt_at=None).exists()
