"""Long polls: a request that stays until a deletion gets on."""

import time
from functools import cache
from threading import BoundedSemaphore

from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

LONGEST = 30  # seconds; proxies give up after 60
LOOK_EVERY = 0.5


@cache
def places() -> BoundedSemaphore:
    """Each who waits has a thread of this process for itself; the others are for everybody else."""
    return BoundedSemaphore(conf().api_waits)


def wait_for_change(operation: CleanupOperation, seconds: float) -> None:
    """Return once its status is another, when nothing more happens by itself, or when the time is
    over; at once when enough others wait already. Nothing is locked meanwhile."""
    if not seconds or not places().acquire(blocking=False):
        return
    try:
        ends = time.monotonic() + seconds
        while is_as_seen(operation) and time.monotonic() < ends:
            time.sleep(LOOK_EVERY)
    finally:
        places().release()
    operation.refresh_from_db()


def is_as_seen(operation: CleanupOperation) -> bool:
    same = CleanupOperation.objects.filter(pk=operation.pk, status=operation.status)
    return same.exclude(next_attempt_at=None).exists()
