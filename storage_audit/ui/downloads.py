"""Exports a list as CSV or JSON, streamed while it is read, whatever its length."""

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

from storage_audit.exports import byte_chunks, csv_lines, json_lines
from storage_audit.read_in_steps import read_in_steps

logger = logging.getLogger(__name__)

# Beside what JSON has, the dates, ids and decimals of a site's own fields.
ENCODE_JSON = DjangoJSONEncoder().encode
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}


def rows_response(
    file_format: str, rows: QuerySet[Any], columns: Sequence[str]
) -> StreamingHttpResponse:
    """These columns of the rows, in the rows' order."""
    return file_response(
        file_format, str(rows.model._meta.model_name), columns, export_values(rows, columns)
    )


def file_response(
    file_format: str, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> StreamingHttpResponse:
    """Rows with a value for each column, in a file named by title and date."""
    name = f"{title}-{localdate()}.{file_format}"
    if file_format == "csv":
        lines = csv_lines(chain([columns], map(encode_nested, rows)))
        text = _("INCOMPLETE: an error ended this export. Export it again.")
        ending = "".join(csv_lines([[text]])).encode()
    else:
        # Without its last bracket it is not JSON, so it cannot look whole.
        lines, ending = json_lines(dict(zip(columns, row, strict=True)) for row in rows), b""
    response = StreamingHttpResponse(stream_lines(lines, ending, name), CONTENT_TYPES[file_format])
    response["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
    return response


def export_values(rows: QuerySet[Any], columns: Sequence[str]) -> Iterator[list[Any]]:
    # A list's prefetched relations are in none of the columns, and do not work with this.
    for row in read_in_steps(rows.prefetch_related(None).values_list(*columns)):
        yield [each.isoformat() if isinstance(each, datetime) else each for each in row]


def encode_nested(row: Iterable[Any]) -> list[Any]:
    return [ENCODE_JSON(each) if isinstance(each, dict | list) else each for each in row]


def stream_lines(lines: Iterable[str], ending: bytes, name: str) -> Iterator[bytes]:
    """What was sent cannot be taken back: a broken export must not look whole."""
    try:
        yield from byte_chunks(lines)
    except Exception:
        logger.exception("The export %s ended with an error.", name)
        yield ending
        raise
