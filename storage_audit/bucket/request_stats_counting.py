"""Brings what each process counted of its calls to the store together, in one table."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from django.db import Error, close_old_connections, connection

from storage_audit.bucket import request_stats
from storage_audit.bucket.models import StoreCalls

logger = logging.getLogger(__name__)

# So long a process leaves a database alone that would not take its figures, in seconds.
PAUSE = 60.0
_not_before = 0.0


@contextmanager
def counted() -> Iterator[None]:
    """Keeps the calls that are made within, also when they end in an error."""
    try:
        yield
    finally:
        keep()


def keep_after_request(**kwargs: object) -> None:
    """As a receiver of `request_finished`."""
    if keep():
        # Django's own receiver came before this one, and left none open.
        close_old_connections()


def keep() -> bool:
    """Add to the table what this process counted since the last time; True if there was something.

    What cannot be added now, as a transaction is open or the database fails, is the next time.
    """
    global _not_before
    if connection.in_atomic_block or monotonic() < _not_before:
        return False
    try:
        with request_stats.take() as new:
            if new:
                StoreCalls.objects.add(new)
    except Error:
        _not_before = monotonic() + PAUSE
        logger.warning("Calls to the store could not be noted yet.", exc_info=True)
        return True
    return bool(new)
