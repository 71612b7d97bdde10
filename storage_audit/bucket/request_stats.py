"""How often this process called the store, and what came of it."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from django.db import Error, close_old_connections, connection

from storage_audit.bucket.errors import BY_CODE, BY_STATUS
from storage_audit.bucket.models import StoreCalls

Calls = Counter[tuple[str, str]]

OK = "ok"
# Each result becomes a row that stays, and a store may answer with any code: what is not of these
# counts by the class of its status. https://developers.cloudflare.com/r2/api/error-codes/
KNOWN = {
    *BY_CODE,
    *(str(status) for status in BY_STATUS),
    "404",
    "InvalidArgument",
    "NoSuchKey",
    "NoSuchUpload",
    "NotImplemented",
    "RequestTimeTooSkewed",
}

_lock = threading.Lock()
_total: Calls = Counter()
_waiting: Calls = Counter()


def count(kind: str, result: str) -> None:
    """Count one call of a kind, such as ListObjectsV2, with its result: OK, the name of an
    exception, or what `named` makes of an answer. Both must be of a small set of words."""
    with _lock:
        _total[kind, result] += 1
        _waiting[kind, result] += 1


def named(code: str, status: int) -> str:
    """The result of an answer that is an error: its code if it is a known one, else such as 4xx."""
    if code in KNOWN:
        return code
    return f"{status // 100}xx" if 100 <= status < 600 else "unreadable"


def total() -> Calls:
    """All calls of this process, by kind and result."""
    with _lock:
        return _total.copy()


@contextmanager
def take() -> Iterator[Calls]:
    """Take over what nobody took before. When the block fails it is as if it had not been taken."""
    with _lock:
        taken = _waiting.copy()
        _waiting.clear()
    try:
        yield taken
    except BaseException:
        with _lock:
            _waiting.update(taken)
        raise


def forget_the_parents() -> None:
    """In a process just forked: its parent keeps the figures, and a thread of it may have held the
    lock."""
    global _lock
    _lock = threading.Lock()
    _total.clear()
    _waiting.clear()


os.register_at_fork(after_in_child=forget_the_parents)


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
        with take() as new:
            if new:
                StoreCalls.objects.add(new)
    except Error:
        _not_before = monotonic() + PAUSE
        logger.warning("Calls to the store could not be noted yet.", exc_info=True)
        return True
    return bool(new)
