"""The site's log as lines of JSON, which programs read."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from storage_audit.logs import MAX_TEXT_LENGTH, REQUEST_ID_HEADER, LogContext, sanitize_value

# The journal breaks longer ones, and half a line is no JSON: LineMax= in journald.conf(5).
MAX_LINE_LENGTH = 48 * 1024
RENAMED_FIELDS = {"asctime": "time", "levelname": "level", "name": "logger", "message": "message"}


class JsonLines(JsonFormatter):
    """One object a line: the time (ISO 8601, UTC), level, logger and message, the context, and
    whatever else a record brings."""

    def __init__(self) -> None:
        super().__init__(
            [*RENAMED_FIELDS, *LogContext._fields, "worker"], rename_fields=RENAMED_FIELDS
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        line = ""
        for longest in (MAX_TEXT_LENGTH, MAX_TEXT_LENGTH // 10, MAX_TEXT_LENGTH // 100):
            line = super().jsonify_log_record(sanitize_value(log_data, longest))
            if len(line) < MAX_LINE_LENGTH:
                break
        return line


class AccessFilter(logging.Filter):
    """Turns gunicorn's access line into fields. The query is left out, as it may hold a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        # https://gunicorn.org/reference/settings/#access_log_format
        if isinstance(atoms := record.args, Mapping):
            given = atoms[f"{{{REQUEST_ID_HEADER.lower()}}}o"]
            record.request_id = None if given == "-" else given
            record.method, record.path, record.status = atoms["m"], atoms["U"], atoms["s"]
            record.bytes, record.milliseconds = atoms["B"], atoms["M"]
        return True
