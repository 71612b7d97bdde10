"""Inserts many rows in the fastest way we know: COPY into a temporary table and one INSERT from it
on PostgreSQL, executemany on SQLite. Django's bulk_create takes several times as long."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.db import connection, models

# What COPY needs escaped. https://www.postgresql.org/docs/current/sql-copy.html
COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
ESCAPE_PATTERN, ESCAPED_CHARACTERS = re.compile(r"\\(.)"), {"t": "\t", "n": "\n", "r": "\r"}
COPY_NULL = "\\N"


def insert_lines(
    model: type[models.Model],
    names: Sequence[str],
    lines: Sequence[str],
    shared_values: Mapping[str, Any],
    unique_columns: Sequence[str],
) -> int:
    """Insert the rows unless one already has the same values in `unique_columns`, in a transaction
    of the caller; how many they were.

    Each is a line from `format_line`, of values in the order of `names`; `shared_values` are those
    of all rows. Together they must name each column that has no default in the database.
    """
    if not lines:
        return 0
    table, columns = model._meta.db_table, ", ".join([*names, *shared_values])
    into = f"INSERT INTO {table} ({columns})"
    unless = f"ON CONFLICT ({', '.join(unique_columns)}) DO NOTHING"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            own = ", ".join(names)
            copy_lines(cursor, table, own, lines)
            marks = ", %s" * len(shared_values)
            cursor.execute(
                f"{into} SELECT {own}{marks} FROM incoming {unless}", [*shared_values.values()]
            )
        else:
            marks = ", ".join(["%s"] * (len(names) + len(shared_values)))
            values = [(*parse_line(line), *shared_values.values()) for line in lines]
            cursor.executemany(f"{into} VALUES ({marks}) {unless}", values)
        return max(0, int(cursor.rowcount))


def copy_lines(cursor: Any, table: str, own: str, lines: Iterable[str]) -> None:
    cursor.execute(
        # The transaction may load more than once.
        "DROP TABLE IF EXISTS pg_temp.incoming;"
        f" CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT {own} FROM {table} WITH NO DATA"
    )
    cursor.copy_expert(f"COPY incoming ({own}) FROM STDIN", LineReader(lines))


class LineReader:
    """The lines, as psycopg2 reads a file: so it is never in memory as a whole."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = iter(lines)

    def read(self, _size: int) -> bytes:
        return "".join([f"{line}\n" for line in islice(self.lines, 100)]).encode()


def format_line(values: Iterable[object]) -> str:
    """A row as COPY reads it. Values must be what the database takes."""
    return "\t".join(map(escape_value, values))


def escape_value(value: object) -> str:
    if value is None:
        return COPY_NULL
    text = str(value)
    return text if text.isprintable() and "\\" not in text else text.translate(COPY_ESCAPES)


def parse_line(line: str) -> Iterator[str | None]:
    """The values as text, which the columns convert."""
    for each in line.split("\t"):
        yield (
            None
            if each == COPY_NULL
            else ESCAPE_PATTERN.sub(unescape_character, each)
            if "\\" in each
            else each
        )


def unescape_character(escaped: re.Match[str]) -> str:
    return ESCAPED_CHARACTERS.get(escaped[1], escaped[1])
