"""Of the threads of a web process only so many wait, ask the store or start a program at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import BoundedSemaphore, Lock

from django.utils.translation import gettext as _

from storage_audit.conf import conf

COME_BACK_AFTER = 5  # seconds


class Busy(Exception):
    """All places are taken; the message says when to come again."""


@cache
def places() -> BoundedSemaphore:
    return BoundedSemaphore(conf().api_waits)


_making = Lock()


@contextmanager
def place() -> Iterator[None]:
    """A thread of this process for one who takes time; the others are for everybody else. Raises
    Busy."""
    with _making:  # Else the first two would make places of their own.
        ours = places()
    if not ours.acquire(blocking=False):
        text = _(
            "Too many requests here are waiting, or asking the store. Try again in %s seconds."
        )
        raise Busy(text % COME_BACK_AFTER)
    try:
        yield
    finally:
        ours.release()
