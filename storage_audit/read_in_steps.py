"""Reads what is too much for memory, or may take too long."""

from collections.abc import Iterator
from contextlib import nullcontext
from time import monotonic
from typing import Any, TypeVar

from django.db import connection, connections, models, transaction

T = TypeVar("T")
ROWS_PER_STEP = 2000  # rows


def read_with_timeout(query: models.QuerySet[Any, T], seconds: float) -> list[T]:
    """Its rows. Raises OperationalError when it takes longer to find them; databases other than
    PostgreSQL and SQLite take their time."""
    database = connections[query.db]
    if database.vendor == "postgresql":
        with transaction.atomic(using=query.db), database.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}")
            rows = list(query)
            # This may be a part of a longer transaction.
            cursor.execute("SET LOCAL statement_timeout TO DEFAULT")
        return rows
    if database.vendor != "sqlite":
        return list(query)
    database.ensure_connection()
    until = monotonic() + seconds
    database.connection.set_progress_handler(lambda: monotonic() > until, 1000)
    try:
        return list(query)
    finally:
        database.connection.set_progress_handler(None, 0)


def read_in_steps(rows: models.QuerySet[Any, T], size: int = ROWS_PER_STEP) -> Iterator[T]:
    """Rows that are too many for memory. Nothing that takes long may be done between them.

    PostgreSQL keeps a cursor for them in a transaction. Outside of one it would first copy the
    whole result, and PgBouncer would lose the cursor, as each transaction may have another
    connection. On SQLite a transaction would keep all who write waiting.
    """
    needed = connection.vendor == "postgresql" and not connection.in_atomic_block
    with transaction.atomic() if needed else nullcontext():
        yield from rows.iterator(size)
