"""How long a transaction waits for the locks of another."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

LOCK_TIMEOUT_MS = 5000  # milliseconds
# Less than what it takes PostgreSQL to look for a deadlock: whoever waits for us never meets one.
SHORT_LOCK_TIMEOUT_MS = 100


@contextmanager
def atomic_with_timeout(timeout_ms: int = LOCK_TIMEOUT_MS) -> Iterator[None]:
    """A transaction that raises OperationalError when another one keeps it waiting for more than
    five seconds, or less on PostgreSQL."""
    with sqlite_busy_timeout(), transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {timeout_ms}")
        yield


@contextmanager
def sqlite_busy_timeout() -> Iterator[None]:
    """SQLite's timeout is the connection's, and counts from the beginning of a transaction."""
    if connection.vendor != "sqlite":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        [usual] = cursor.fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {min(usual, LOCK_TIMEOUT_MS)}")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {usual}")
