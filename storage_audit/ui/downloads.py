"""A list as a file: CSV or JSON, sent while it is read, whatever its length."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header
from django.utils.timezone import localdate
from django.utils.translation import gettext as _

from storage_audit.exports import csv_lines, json_lines, pieces
from storage_audit.reading import read_in_steps

logger = logging.getLogger(__name__)

# Beside what JSON has, the dates, ids and decimals of a site's own fields.
ENCODE = DjangoJSONEncoder().encode
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


def answer(form: str, rows: QuerySet[Any], columns: Sequence[str]) -> StreamingHttpResponse:
    """These columns of the rows, in the order that they have."""
    return file(form, str(rows.model._meta.model_name), columns, values(rows, columns))


def file(
    form: str, title: str, columns: Sequence[str], found: Iterable[Sequence[Any]]
) -> StreamingHttpResponse:
    """What was found, with a value for each column, in a file of this title and of today."""
    name = f"{title}-{localdate()}.{form}"
    if form == "csv":
        lines, ending = csv_lines(chain([columns], map(as_cells, found))), incomplete()
    else:
        # Without its last bracket it is no JSON.
        lines, ending = json_lines(dict(zip(columns, row, strict=True)) for row in found), b""
    response = StreamingHttpResponse(stream(lines, ending, name), CONTENT_TYPES[form])
    response["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    return response


def values(rows: QuerySet[Any], columns: Sequence[str]) -> Iterator[list[Any]]:
    # What a list looks up beside its rows is in none of the columns, and does not go with this.
    for row in read_in_steps(rows.prefetch_related(None).values_list(*columns)):
        yield [each.isoformat() if isinstance(each, datetime) else each for each in row]


def as_cells(row: Iterable[Any]) -> list[Any]:
    return [ENCODE(each) if isinstance(each, dict | list) else each for each in row]


def incomplete() -> bytes:
    text = _("INCOMPLETE: an error ended this list before its end. Export it again.")
    return "".join(csv_lines([[text]])).encode()


def stream(lines: Iterable[str], ending: bytes, name: str) -> Iterator[bytes]:
    """What was sent cannot be taken back: where it breaks off, it must not look whole."""
    try:
        yield from pieces(lines)
    except Exception:
        logger.exception("The export %s broke off.", name)
        yield ending
        raise
