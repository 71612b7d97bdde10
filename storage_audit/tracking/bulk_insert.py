"""Many rows at once, by the fastest way into the database that we know: COPY into a temporary table
and one INSERT from it on PostgreSQL, executemany on SQLite. Django's bulk_create takes some times
as long."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.db import connection, models

# What COPY reads otherwise. https://www.postgresql.org/docs/current/sql-copy.html
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
ESCAPED, MEANT = re.compile(r"\\(.)"), {"t": "\t", "n": "\n", "r": "\r"}
NOTHING = "\\N"


def load(
    model: type[models.Model],
    names: Sequence[str],
    lines: Sequence[str],
    same: Mapping[str, Any],
    unique: Sequence[str],
) -> int:
    """Insert the rows unless there is one already that has the same in the columns `unique`, in one
    transaction of the caller; how many they were.

    Each is a `line`, of values in the order of `names`; `same` are those of all rows. Together they
    must name each column that has no default in the database.
    """
    if not lines:
        return 0
    table, columns = model._meta.db_table, ", ".join([*names, *same])
    into = f"INSERT INTO {table} ({columns})"
    unless = f"ON CONFLICT ({', '.join(unique)}) DO NOTHING"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            own = ", ".join(names)
            copy_in(cursor, table, own, lines)
            marks = ", %s" * len(same)
            cursor.execute(f"{into} SELECT {own}{marks} FROM incoming {unless}", [*same.values()])
        else:
            marks = ", ".join(["%s"] * (len(names) + len(same)))
            values = [(*values_of(line), *same.values()) for line in lines]
            cursor.executemany(f"{into} VALUES ({marks}) {unless}", values)
        return max(0, int(cursor.rowcount))


def copy_in(cursor: Any, table: str, own: str, lines: Iterable[str]) -> None:
    cursor.execute(
        # The transaction may load more than once.
        "DROP TABLE IF EXISTS pg_temp.incoming;"
        f" CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT {own} FROM {table} WITH NO DATA"
    )
    cursor.copy_expert(f"COPY incoming ({own}) FROM STDIN", File(lines))


class File:
    """The lines, as psycopg2 reads a file: so it is never in memory as a whole."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = iter(lines)

    def read(self, _size: int) -> bytes:
        return "".join([f"{line}\n" for line in islice(self.lines, 100)]).encode()


def line(values: Iterable[object]) -> str:
    """A row as COPY reads it. Values must be what the database takes."""
    return "\t".join(map(told, values))


def told(value: object) -> str:
    if value is None:
        return NOTHING
    text = str(value)
    return text if text.isprintable() and "\\" not in text else text.translate(ESCAPES)


def values_of(line: str) -> Iterator[str | None]:
    """As text, of which the columns make what they hold."""
    for each in line.split("\t"):
        yield None if each == NOTHING else ESCAPED.sub(meant, each) if "\\" in each else each


def meant(escaped: re.Match[str]) -> str:
    return MEANT.get(escaped[1], escaped[1])
