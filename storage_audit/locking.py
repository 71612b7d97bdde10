"""How long a transaction waits for the locks of another."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

PATIENCE = 5000  # milliseconds
# Less than what it takes PostgreSQL to look for a deadlock: whoever waits for us never meets one.
MOMENT = 100


@contextmanager
def impatient(milliseconds: int = PATIENCE) -> Iterator[None]:
    """A transaction that raises OperationalError when another one keeps it waiting for more than
    five seconds, or less on PostgreSQL."""
    with of_sqlite_in_a_hurry(), transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {milliseconds}")
        yield


@contextmanager
def of_sqlite_in_a_hurry() -> Iterator[None]:
    """SQLite's timeout is the connection's, and counts from the beginning of a transaction."""
    if connection.vendor != "sqlite":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        [usual] = cursor.fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {min(usual, PATIENCE)}")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {usual}")
