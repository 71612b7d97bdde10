"""Limits how many threads of a web process wait, ask the store or start a program at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import BoundedSemaphore, Lock

from django.utils.translation import gettext as _

from storage_audit.conf import conf


class Busy(Exception):
    """All slots are taken; the message says when to try again."""

    retry_after = 5  # seconds


@cache
def slot_semaphore() -> BoundedSemaphore:
    return BoundedSemaphore(conf().api_concurrency)


_semaphore_lock = Lock()


@contextmanager
def acquire_slot() -> Iterator[None]:
    """Hold one of the slots for slow requests, so that threads are left for all others. Raises
    Busy."""
    with _semaphore_lock:  # Else the first two threads would each make a semaphore.
        ours = slot_semaphore()
    if not ours.acquire(blocking=False):
        text = _("Too many requests at once. Try again in %s seconds.")
        raise Busy(text % Busy.retry_after)
    try:
        yield
    finally:
        ours.release()
