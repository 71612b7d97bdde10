"""Rows as streams of text: CSV in which nothing is a formula, and JSON of one object a line."""

import csv
import re
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import islice

from django.core.serializers.json import DjangoJSONEncoder

from storage_audit.redaction import visible

# What a spreadsheet takes for the beginning of a formula, also as East Asian keyboards write it.
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r")
# Where a comma separates decimals, a spreadsheet takes this for the end of a cell.
NEXT_CELL = re.compile(f";(?=[\\s\"']*[{re.escape(''.join(FORMULA))}])")
ESCAPED = re.compile(r"\\(?:\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
LINES_AT_A_TIME = 500


def cell(value: object) -> str:
    """For a table that a spreadsheet may open: never a formula, and nothing hidden. `text_of`
    gives the same text again."""
    text = "" if value is None else str(value)
    shown = NEXT_CELL.sub(r"\\x3b", visible(text.replace("\\", "\\\\")))
    guarded = text.startswith((*FORMULA, "'")) or text.lstrip().startswith(FORMULA)
    return f"'{shown}" if guarded else shown


def text_of(cell: str) -> str:
    """The text that became this cell."""
    return ESCAPED.sub(
        lambda escaped: escaped[0].encode().decode("unicode_escape"), cell.removeprefix("'")
    )


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A line each, whatever is in the cells."""
    line = StringIO()
    write = csv.writer(line, lineterminator="\n").writerow
    for row in rows:
        write(map(cell, row))
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def json_lines(rows: Iterable[object]) -> Iterator[str]:
    """One JSON array, an element a line."""
    write = DjangoJSONEncoder(ensure_ascii=False).encode
    before = "[\n"
    for row in rows:
        yield before + write(row)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def pieces(lines: Iterable[str]) -> Iterator[bytes]:
    """Many lines at a time, as each piece of a response costs a call of the server."""
    rest = iter(lines)
    while some := "".join(islice(rest, LINES_AT_A_TIME)):
        yield some.encode()
