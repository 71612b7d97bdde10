"""Many rows at once, by the fastest way into the database that we know: COPY into a temporary table
and one INSERT from it on PostgreSQL, executemany on SQLite. Django's bulk_create takes some times
as long."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from django.db import connection, models

# What COPY reads otherwise. https://www.postgresql.org/docs/current/sql-copy.html
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def load(
    model: type[models.Model],
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    same: Mapping[str, Any],
) -> int:
    """Insert the rows that violate no unique constraint, in one transaction of the caller; how many
    they were.

    Values must be what the database takes: those of a row in the order of `names`, and `same` for
    all rows. Together they must name each column that has no default in the database.
    """
    rows, table = list(rows), model._meta.db_table
    if not rows:
        return 0
    columns = ", ".join([*names, *same])
    if connection.vendor == "postgresql":
        return copy_in(table, ", ".join(names), columns, rows, list(same.values()))
    marks = ", ".join(["%s"] * (len(names) + len(same)))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING",
            [(*row, *same.values()) for row in rows],
        )
        return max(0, int(cursor.rowcount))


def copy_in(
    table: str, own: str, columns: str, rows: Iterable[Sequence[Any]], same: Sequence[Any]
) -> int:
    text = StringIO("".join(["\t".join(map(told, row)) + "\n" for row in rows]))
    marks = ", %s" * len(same)
    with connection.cursor() as cursor:
        # The transaction may load more than once.
        cursor.execute("DROP TABLE IF EXISTS pg_temp.incoming")
        cursor.execute(
            f"CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT {own} FROM {table}"
            " WITH NO DATA"
        )
        cursor.copy_expert(f"COPY incoming ({own}) FROM STDIN", text)
        cursor.execute(
            f"INSERT INTO {table} ({columns}) SELECT {own}{marks} FROM incoming"
            " ON CONFLICT DO NOTHING",
            same,
        )
        return int(cursor.rowcount)


def told(value: object) -> str:
    if value is None:
        return "\\N"
    text = str(value)
    return text if text.isprintable() and "\\" not in text else text.translate(ESCAPES)
