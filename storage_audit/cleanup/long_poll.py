"""The long poll."""

import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.concurrency import Busy, place
from storage_audit.conf import conf

LONGEST = 30  # seconds; proxies give up after 60
LOOK_EVERY = 0.5

_polls = Counter[Hashable]()
_counting = Lock()


def wait_for_change(operation: CleanupOperation, seconds: float, person: Hashable) -> None:
    """Return once its status is another, when nothing more happens by itself, or when the time is
    over; at once when there is no place to wait. Nothing is locked meanwhile."""
    if not seconds:
        return
    with suppress(Busy), place_of(person):
        ends = time.monotonic() + seconds
        while is_as_seen(operation) and time.monotonic() < ends:
            time.sleep(LOOK_EVERY)
        operation.refresh_from_db()


def is_as_seen(operation: CleanupOperation) -> bool:
    same = CleanupOperation.objects.filter(pk=operation.pk, status=operation.status)
    return same.exclude(next_attempt_at=None).exists()


@contextmanager
def place_of(person: Hashable) -> Iterator[None]:
    """A place for a long poll of this person, who may take half of them with all tokens: the
    others are for other people and for requests that ask the store. Raises Busy."""
    with _counting:
        if 2 * _polls[person] >= conf().api_waits:
            raise Busy
        _polls[person] += 1
    try:
        with place():
            yield
    finally:
        with _counting:
            _polls[person] -= 1
