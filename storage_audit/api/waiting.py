"""The long poll."""

import time
from contextlib import suppress

from storage_audit.models import CleanupOperation
from storage_audit.places import Full, place

LONGEST = 30  # seconds; proxies give up after 60
LOOK_EVERY = 0.5


def wait_for_change(operation: CleanupOperation, seconds: float) -> None:
    """Return once its status is another, when nothing more happens by itself, or when the time is
    over; at once when there is no place to wait. Nothing is locked meanwhile."""
    if not seconds:
        return
    with suppress(Full), place():
        ends = time.monotonic() + seconds
        while is_as_seen(operation) and time.monotonic() < ends:
            time.sleep(LOOK_EVERY)
        operation.refresh_from_db()


def is_as_seen(operation: CleanupOperation) -> bool:
    same = CleanupOperation.objects.filter(pk=operation.pk, status=operation.status)
    return same.exclude(next_attempt_at=None).exists()
