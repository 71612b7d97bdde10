"""The long poll."""

import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from storage_audit.cleanup.models import Cleanup
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.conf import conf

MAX_WAIT_SECONDS = 30  # seconds; proxies give up after 60
POLL_INTERVAL_SECONDS = 0.5

_polls = Counter[Hashable]()
_polls_lock = Lock()


def wait_for_change(cleanup: Cleanup, seconds: float, person: Hashable) -> None:
    """Return once its status changes, when nothing more happens by itself, or when the time is
    over; at once when all slots are taken. Nothing is locked meanwhile."""
    if not seconds:
        return
    with suppress(Busy), poll_slot(person):
        ends = time.monotonic() + seconds
        while is_unchanged(cleanup) and time.monotonic() < ends:
            time.sleep(POLL_INTERVAL_SECONDS)
        cleanup.refresh_from_db()


def is_unchanged(cleanup: Cleanup) -> bool:
    same = Cleanup.objects.filter(pk=cleanup.pk, status=cleanup.status)
    return same.exclude(next_attempt_at=None).exists()


@contextmanager
def poll_slot(person: Hashable) -> Iterator[None]:
    """Hold a slot for a long poll of this person. One person may take half of the slots, with all
    tokens together: the rest are for other people and for requests to the store. Raises Busy."""
    with _polls_lock:
        if 2 * _polls[person] >= conf().api_concurrency:
            raise Busy
        _polls[person] += 1
    try:
        with acquire_slot():
            yield
    finally:
        with _polls_lock:
            _polls[person] -= 1
