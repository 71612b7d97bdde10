"""The listing and the table as lines of text, which sets compare at a tenth of a microsecond each.

A line has all that a scan compares: size, ETag, time to the second, key. What the table is sure of
is such a line as well; of a row that needs a closer check only the key is known.
"""

import json
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

from django.db import connection

from storage_audit.bucket.listing_xml import Entries, Entry
from storage_audit.fields import prefix_end
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import key_formats_version

TABLE = R2Object._meta.db_table
TIME_SQL = {
    "postgresql": "left((last_modified AT TIME ZONE 'UTC')::text, 19)",
    "sqlite": "substr(last_modified, 1, 19)",
}
NEWLINE_SQL = {"postgresql": "chr(10)", "sqlite": "char(10)"}
# Texts on as many lines, and as a list in JSON.
JOIN_SQL = {"postgresql": "string_agg({}, chr(10))", "sqlite": "group_concat({}, char(10))"}
LIST_SQL = {"postgresql": "json_agg({})", "sqlite": "json_group_array({})"}
# An upload or a cleanup may be at such a row, its key may be read in more ways than one or its
# project be gone, or nobody knows what it should say.
PLAIN_SQL = (
    f"state = '{R2Object.State.STORED}' AND unambiguous_under = %s"
    " AND project_id IS NOT NULL AND size IS NOT NULL"
    " AND last_modified IS NOT NULL AND replace(key, {newline}, '') = key"
    " AND replace(replace(etag, ' ', ''), {newline}, '') = etag"
)
WHOLE_SECONDS = itemgetter(slice(19))


# With all of the time, of which the line has only the seconds.
Line = tuple[str, str]


class KeyScope(Protocol):
    def condition(self) -> tuple[str, list[str]]:
        """SQL for the rows there, and its values."""


class KeyList(NamedTuple):
    keys: Sequence[str]

    def condition(self) -> tuple[str, list[str]]:
        return f"key IN ({', '.join(['%s'] * len(self.keys))})", list(self.keys)


class KeyRange(NamedTuple):
    """Keys with the prefix, later than `after`, and up to `until` if that is not None."""

    prefix: str
    after: str
    until: str | None

    def condition(self) -> tuple[str, list[str]]:
        bounds = {
            "key >= %s": self.prefix,
            "key < %s": prefix_end(self.prefix),
            "key > %s": self.after,
        }
        given = {test: value for test, value in bounds.items() if value}
        # As long as no key was seen that the database can name, it ends where it begins.
        if self.until is not None:
            given["key <= %s"] = self.until
        return " AND ".join(given) or "TRUE", list(given.values())


def page_lines(page: Entries) -> list[str]:
    fields = zip(page.sizes, page.etags, map(WHOLE_SECONDS, page.times), page.keys, strict=True)
    return list(map(" ".join, fields))


def line_entry(line: str, time: str) -> Entry:
    size, etag, _seconds, key = line.split(" ", 3)
    return Entry(key, int(size), etag, time)


def line_key(line: str) -> str:
    """The key that a line is about."""
    return line.split(" ", 3)[3]


def line_size(line: str) -> int:
    return int(line[: line.index(" ")])


def select_tracked(
    bucket: str, places: Sequence[KeyScope]
) -> tuple[dict[str, list[str]], set[str]]:
    """What the table says of these places: the lines of plain rows, by project, and the keys of
    all other rows. In one query, whose rows are few."""
    vendor = connection.vendor
    rows, values = rows_sql(bucket, places)
    plain = PLAIN_SQL.format(newline=NEWLINE_SQL[vendor])
    time = f"replace({TIME_SQL[vendor]}, ' ', 'T')"
    line = f"size || ' ' || etag || ' ' || {time} || ' ' || key"
    sql = f"""
        SELECT owner, {JOIN_SQL[vendor].format(line)} FILTER (WHERE owner IS NOT NULL),
            CAST({LIST_SQL[vendor].format("key")} FILTER (WHERE owner IS NULL) AS text)
        FROM (SELECT *, CASE WHEN {plain} THEN project_id END AS owner FROM ({rows}) AS found) AS it
        GROUP BY owner
    """
    lines, others = dict[str, list[str]](), set[str]()
    with connection.cursor() as cursor:
        cursor.execute(sql, [key_formats_version(), *values])
        for owner, told, keys in cursor:
            if owner is None:
                others.update(json.loads(keys))
            else:
                lines[owner] = told.split("\n")
    return lines, others


def rows_sql(bucket: str, places: Iterable[KeyScope]) -> tuple[str, list[str]]:
    """One query over all these places, each of which the index on bucket and key finds at once."""
    parts, values = [], list[str]()
    for each in places:
        condition, bounds = each.condition()
        parts.append(f"SELECT * FROM {TABLE} WHERE bucket = %s AND {condition}")
        values += [bucket, *bounds]
    return " UNION ALL ".join(parts), values
