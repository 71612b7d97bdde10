"""What a line of the log says: of which deletion, for which request, by which worker, and nothing
that is secret, endless or made to look like another line."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from socket import gethostname
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.conf import settings
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse

from storage_audit.redaction import OUR_SECRET, REDACTED, printable_text, redact_secrets

# The events of cleanups, and each key that is sent: at DEBUG, for those who ask.
timeline_logger = logging.getLogger("storage_audit.timeline")
key_logger = logging.getLogger("storage_audit.keys")

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,128}")
UUID_PATTERN = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
# Characters, and entries of a list or dict; a text inside another value may have a part of that.
MAX_TEXT_LENGTH, NESTED_TEXT_DIVISOR, MAX_ENTRIES, MAX_DEPTH = 8000, 16, 50, 3


class LogContext(NamedTuple):
    deletion_id: str | None = None
    request_id: str | None = None
    task: str | None = None


_context: ContextVar[LogContext] = ContextVar("storage_audit_log")
EMPTY_CONTEXT = LogContext()


def current_context() -> LogContext:
    return _context.get(EMPTY_CONTEXT)


def set_context(**values: str | None) -> None:
    """For those that have no block to put around the work: a middleware, a signal."""
    _context.set(current_context()._replace(**values))


@contextmanager
def deletion_context(deletion_id: UUID, request_id: str | None = None) -> Iterator[None]:
    """The lines of this block are about a cleanup, that this request has asked for; those that
    are written during another request keep its id."""
    now = current_context()
    asked_by = now.request_id or request_id
    token = _context.set(now._replace(deletion_id=str(deletion_id), request_id=asked_by))
    try:
        yield
    finally:
        _context.reset(token)


def context_initializer() -> Callable[[], None]:
    """The initializer of a pool whose threads work on what this thread works on."""
    now = current_context()

    def carry() -> None:
        _context.set(now)

    return carry


class RequestIdMiddleware:
    """Gives each request an id, which a trusted proxy may have given it before, and says it in the
    answer. The first of all: what the others refuse has one too."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = proxy_request_id(request) or uuid4().hex
        # Until the signal below: Django logs a refusal when the middlewares are done with it.
        set_context(request_id=request_id)
        response = self.get_response(request)
        response[REQUEST_ID_HEADER] = request_id
        return response


def proxy_request_id(request: HttpRequest) -> str | None:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    trusted = settings.SECURE_PROXY_SSL_HEADER and REQUEST_ID_PATTERN.fullmatch(given)
    return given if trusted else None


def clear_request_id(**kwargs: object) -> None:
    set_context(request_id=None)


request_finished.connect(clear_request_id, dispatch_uid="storage_audit.request_id")


class ContextFilter(logging.Filter):
    """Adds to each record what is known where it is written, unless it brings its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        worker = f"{gethostname()}:{record.process}"
        for name, value in {**current_context()._asdict(), "worker": worker}.items():
            vars(record).setdefault(name, value)
        return True


class QueueFilter(logging.Filter):
    """Adds the deletion to what the queue says of its task from outside of it, such as the
    traceback of one that failed. The task's name is the deletion id."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "storage_audit.tasks.run_cleanup" in message and (named := UUID_PATTERN.search(message)):
            record.deletion_id = named[0]
        return True


class Formatter(logging.Formatter):
    """Lines to be read, each followed by its context; what belongs to a line is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        first, *rest = truncate_text(super().formatMessage(record), MAX_TEXT_LENGTH).split("\n")
        return "\n".join([" ".join([first, *self.details(record)]), *rest])

    def details(self, record: logging.LogRecord) -> Iterator[str]:
        names = [*LogContext._fields, *(["worker"] if getattr(record, "deletion_id", None) else [])]
        for name in (*names, "step", "data"):
            if value := sanitize_value(getattr(record, name, None)):
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                yield f"{name}={printable_text(shown)}"

    def format(self, record: logging.LogRecord) -> str:
        line, *trace = super().format(record).split("\n", 1)
        return "\n  ".join([line, *(shown for text in trace for shown in safe_lines(text))])


def sanitize_value(value: Any, max_length: int = MAX_TEXT_LENGTH, depth: int = 0) -> Any:
    """The value as JSON can have it: without secrets, with nothing that a terminal would obey but
    the ends of lines, texts no longer than `max_length`, and much shorter ones further inside."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, HttpRequest):
        # Its own text has the query, which may be anybody's secret.
        value = f"{value.method} {value.path}"
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        names = list(value)[:MAX_ENTRIES]
        found = {
            truncate_text(str(n), max_length): sanitize_entry(str(n), value[n], max_length, depth)
            for n in names
        }
        return found | ({"more": len(value) - MAX_ENTRIES} if len(value) > MAX_ENTRIES else {})
    if isinstance(value, list | tuple | set | frozenset) and depth < MAX_DEPTH:
        shown = [sanitize_value(item, max_length, depth + 1) for item in list(value)[:MAX_ENTRIES]]
        return shown + (
            [f"and {len(value) - MAX_ENTRIES} more"] if len(value) > MAX_ENTRIES else []
        )
    return truncate_text(str(value), max_length if depth < 2 else max_length // NESTED_TEXT_DIVISOR)


def sanitize_entry(name: str, value: Any, max_length: int, depth: int) -> Any:
    is_secret = OUR_SECRET.search(name) and value and not isinstance(value, bool | int)
    return REDACTED if is_secret else sanitize_value(value, max_length, depth + 1)


def truncate_text(text: str, max_length: int) -> str:
    """Of what is too long the beginning and the end, where a traceback has its error. Cut last, as
    nobody would know half a secret."""
    shown = "\n".join(safe_lines(text))
    half = max_length // 2
    return shown if len(shown) <= max_length else f"{shown[:half]} [...] {shown[-half:]}"


def safe_lines(text: str) -> list[str]:
    return [printable_text(line) for line in str(redact_secrets(text)).split("\n")]
