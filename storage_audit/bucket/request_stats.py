"""How often this process called the store, and what came of it."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from django.db import Error, close_old_connections, connection

from storage_audit.bucket.errors import ERRORS_BY_CODE, ERRORS_BY_STATUS
from storage_audit.bucket.models import RequestCount

CallCounts = Counter[tuple[str, str]]

OK = "ok"
# Each result becomes a row that stays, and a store may answer with any code: what is not of these
# counts by the class of its status. https://developers.cloudflare.com/r2/api/error-codes/
KNOWN_RESULTS = {
    *ERRORS_BY_CODE,
    *(str(status) for status in ERRORS_BY_STATUS),
    "404",
    "InvalidArgument",
    "NoSuchKey",
    "NoSuchUpload",
    "NotImplemented",
    "RequestTimeTooSkewed",
}

_lock = threading.Lock()
_total: CallCounts = Counter()
_unsaved: CallCounts = Counter()


def count_request(kind: str, result: str) -> None:
    """Count one call of a kind, such as ListObjectsV2, with its result: OK, the name of an
    exception, or the `result_name` of an answer. Both must be of a small set of words."""
    with _lock:
        _total[kind, result] += 1
        _unsaved[kind, result] += 1


def result_name(code: str, status: int) -> str:
    """The result of an answer that is an error: its code if it is a known one, else such as 4xx."""
    if code in KNOWN_RESULTS:
        return code
    return f"{status // 100}xx" if 100 <= status < 600 else "unreadable"


def total_counts() -> CallCounts:
    """All calls of this process, by kind and result."""
    with _lock:
        return _total.copy()


@contextmanager
def take_counts() -> Iterator[CallCounts]:
    """Take the counts that are not saved yet. They are put back when the block fails."""
    with _lock:
        taken = _unsaved.copy()
        _unsaved.clear()
    try:
        yield taken
    except BaseException:
        with _lock:
            _unsaved.update(taken)
        raise


def reset_after_fork() -> None:
    """In a process just forked: its parent keeps the counts, and one of the parent's threads may
    have held the lock."""
    global _lock
    _lock = threading.Lock()
    _total.clear()
    _unsaved.clear()


os.register_at_fork(after_in_child=reset_after_fork)


logger = logging.getLogger(__name__)

# How long a process waits after the database could not save its counts.
RETRY_PAUSE_SECONDS = 60.0
_not_before = 0.0


@contextmanager
def record_requests() -> Iterator[None]:
    """Keeps the calls that are made within, also when they end in an error."""
    try:
        yield
    finally:
        save_counts()


def save_after_request(**kwargs: object) -> None:
    """As a receiver of `request_finished`."""
    if save_counts():
        # Django's own receiver came before this one, and left none open.
        close_old_connections()


def save_counts() -> bool:
    """Add to the table what this process counted since the last time; True if there was something.

    If that cannot be done now, as a transaction is open or the database fails, the next call does.
    """
    global _not_before
    if connection.in_atomic_block or monotonic() < _not_before:
        return False
    try:
        with take_counts() as new:
            if new:
                RequestCount.objects.add(new)
    except Error:
        _not_before = monotonic() + RETRY_PAUSE_SECONDS
        logger.warning("Could not record requests to the store. We try again later.", exc_info=True)
        return True
    return bool(new)
