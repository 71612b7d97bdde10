"""The listing and the table as lines of text, which sets compare at a tenth of a microsecond each.

A line says all that a scan compares: size, ETag, time to the second, key. What the table is sure of
is such a line as well; of a row that needs a closer look only the key is given.
"""

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from sys import intern
from typing import Any, NamedTuple, Protocol

from django.db import connection

from storage_audit.audit.ownership import version
from storage_audit.bucket.wire import Entry
from storage_audit.fields import after_prefix
from storage_audit.models import R2Object

TABLE = R2Object._meta.db_table
TIME = {
    "postgresql": "left((last_modified AT TIME ZONE 'UTC')::text, 19)",
    "sqlite": "substr(last_modified, 1, 19)",
}
# An upload or a cleanup may be at such a row, its key may be read in more ways than one or its
# project be gone, or nobody knows what it should say.
PLAIN = "state = 'stored' AND plain_under = %s AND project_id IS NOT NULL"
UNSURE = "?"
# COPY writes these with a backslash. https://www.postgresql.org/docs/current/sql-copy.html
ESCAPED = re.compile(r"\\(.)")
MEANT = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v"}


# Each with the rest of the time, below a second.
Lines = dict[str, str]


class Place(Protocol):
    def condition(self) -> tuple[str, list[str]]:
        """SQL for the rows there, and its values."""


class Keys(NamedTuple):
    keys: Sequence[str]

    def condition(self) -> tuple[str, list[str]]:
        return f"key IN ({', '.join(['%s'] * len(self.keys))})", list(self.keys)


class Range(NamedTuple):
    """Keys with the prefix, later than `after`, and up to `until` if that is not None."""

    prefix: str
    after: str
    until: str | None

    def condition(self) -> tuple[str, list[str]]:
        bounds = {
            "key >= %s": self.prefix,
            "key < %s": after_prefix(self.prefix),
            "key > %s": self.after,
        }
        given = {test: value for test, value in bounds.items() if value}
        # As long as no key was seen that the database can name, it ends where it begins.
        if self.until is not None:
            given["key <= %s"] = self.until
        return " AND ".join(given) or "TRUE", list(given.values())


def lines_of(entries: Iterable[Entry]) -> Lines:
    return {
        f"{size} {etag} {modified[:10]} {modified[11:19]} {key}": intern(modified[19:])
        for key, size, etag, modified in entries
    }


def entry_of(line: str, rest: str) -> Entry:
    size, etag, day, time, key = line.split(" ", 4)
    return Entry(key, int(size), etag, f"{day}T{time}{rest}")


def key_of(line: str) -> str:
    """The key that a line is about."""
    return line[1:] if line.startswith(UNSURE) else line.split(" ", 4)[4]


def size_of(line: str) -> int:
    return int(line[: line.index(" ")])


def tracked_in(bucket: str, places: Sequence[Place], gone: Sequence[str]) -> set[str]:
    """A line for each row in these places. Rows of the projects `gone` need a closer look."""
    told = f"size || ' ' || etag || ' ' || {TIME[connection.vendor]} || ' ' || key"
    alive = f" AND project_id NOT IN ({', '.join(['%s'] * len(gone))})" if gone else ""
    rows, values = rows_in(bucket, places)
    shown = f"coalesce(CASE WHEN {PLAIN}{alive} THEN {told} END, '{UNSURE}' || key)"
    return set(read(f"SELECT {shown} FROM ({rows}) AS found", [version(), *gone, *values]))


def projects_in(bucket: str, places: Sequence[Place]) -> set[str]:
    """The projects of the plain rows in these places."""
    rows, values = rows_in(bucket, places)
    sql = f"SELECT DISTINCT project_id FROM ({rows}) AS found WHERE {PLAIN}"
    with connection.cursor() as cursor:
        cursor.execute(sql, [*values, version()])
        return {project_id for [project_id] in cursor}


def rows_in(bucket: str, places: Iterable[Place]) -> tuple[str, list[str]]:
    """One query over all these places, each of which the index on bucket and key finds at once."""
    parts, values = [], list[str]()
    for each in places:
        condition, bounds = each.condition()
        parts.append(f"SELECT * FROM {TABLE} WHERE bucket = %s AND {condition}")
        values += [bucket, *bounds]
    return " UNION ALL ".join(parts), values


def read(sql: str, values: Sequence[Any]) -> list[str]:
    """The one column of the rows, by the fastest way out of the database."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(sql, values)
            return [text for [text] in cursor.fetchall()]
        copied = BytesIO()
        cursor.copy_expert(f"COPY ({cursor.mogrify(sql, values).decode()}) TO STDOUT", copied)
    text = copied.getvalue().decode()
    lines = text.split("\n")[:-1]
    return [ESCAPED.sub(meant, each) for each in lines] if "\\" in text else lines


def meant(escaped: re.Match[str]) -> str:
    return MEANT.get(escaped[1], escaped[1])
