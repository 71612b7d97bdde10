"""The site's log as lines of JSON, which programs read."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from storage_audit.logs import HEADER, LONGEST, Context, plain

# The journal breaks longer ones, and half a line is no JSON: LineMax= in journald.conf(5).
LONGEST_LINE = 48 * 1024
FIELDS = {"asctime": "time", "levelname": "level", "name": "logger", "message": "message"}


class JsonLines(JsonFormatter):
    """One object a line: the time (ISO 8601, UTC), level, logger and message, the context, and
    whatever else a record brings."""

    def __init__(self) -> None:
        super().__init__([*FIELDS, *Context._fields, "worker"], rename_fields=FIELDS)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        line = ""
        for longest in (LONGEST, LONGEST // 10, LONGEST // 100):
            line = super().jsonify_log_record(plain(log_data, longest))
            if len(line) < LONGEST_LINE:
                break
        return line


class AccessFilter(logging.Filter):
    """Takes from gunicorn's line of a request what is worth a field of its own. The query is not
    in it, as that may be anybody's secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        # https://gunicorn.org/reference/settings/#access_log_format
        if isinstance(atoms := record.args, Mapping):
            given = atoms[f"{{{HEADER.lower()}}}o"]
            record.request_id = None if given == "-" else given
            record.method, record.path, record.status = atoms["m"], atoms["U"], atoms["s"]
            record.bytes, record.milliseconds = atoms["B"], atoms["M"]
        return True
