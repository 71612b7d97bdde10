"""Rows as streams of text: CSV in which nothing is a formula, and JSON of one object a line."""

import csv
import re
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import islice

from django.core.serializers.json import DjangoJSONEncoder

from storage_audit.redaction import printable_text

# What a spreadsheet takes for the beginning of a formula, also as East Asian keyboards write it.
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r")
# Where a comma separates decimals, a spreadsheet takes this for the end of a cell.
CELL_SEPARATOR = re.compile(f";(?=[\\s\"']*[{re.escape(''.join(FORMULA_STARTS))}])")
LINES_PER_CHUNK = 500


def csv_cell(value: object) -> str:
    """For a table that a spreadsheet may open: never a formula, and nothing hidden.
    docs/admin.md says how to get the same text again."""
    text = "" if value is None else str(value)
    shown = CELL_SEPARATOR.sub(r"\\x3b", printable_text(text.replace("\\", "\\\\")))
    guarded = text.startswith((*FORMULA_STARTS, "'")) or text.lstrip().startswith(FORMULA_STARTS)
    return f"'{shown}" if guarded else shown


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A line each, whatever is in the cells."""
    line = StringIO()
    write = csv.writer(line, lineterminator="\n").writerow
    for row in rows:
        write(map(csv_cell, row))
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


def byte_chunks(lines: Iterable[str]) -> Iterator[bytes]:
    """Many lines at a time, as each piece of a response costs a call of the server."""
    rest = iter(lines)
    while some := "".join(islice(rest, LINES_PER_CHUNK)):
        yield some.encode()
