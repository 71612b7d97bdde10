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

from storage_audit.redaction import HIDDEN, redact, visible

# The events of operations, and each key that is sent: at DEBUG, for those who ask.
timeline = logging.getLogger("storage_audit.timeline")
keys = logging.getLogger("storage_audit.keys")

HEADER = "X-Request-ID"
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")
UUID_FORM = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
SECRET_NAME = re.compile(r"(?i)signature|credential|token|password|secret|authorization|cookie")
# Characters, and entries of a list or dict; a text inside another value may have a part of that.
LONGEST, INSIDE, MOST, DEEPEST = 8000, 16, 50, 3


class Context(NamedTuple):
    deletion_id: str | None = None
    request_id: str | None = None
    task: str | None = None


_context: ContextVar[Context] = ContextVar("storage_audit_log")
NOTHING = Context()


def current() -> Context:
    return _context.get(NOTHING)


def become(**values: str | None) -> None:
    """For those that have no block to put around the work: a middleware, a signal."""
    _context.set(current()._replace(**values))


@contextmanager
def about(operation_id: UUID, request_id: str | None = None) -> Iterator[None]:
    """The lines of this block are about an operation, that this request has asked for; those that
    are written during another request keep its id."""
    now = current()
    asked_by = now.request_id or request_id
    token = _context.set(now._replace(deletion_id=str(operation_id), request_id=asked_by))
    try:
        yield
    finally:
        _context.reset(token)


def carried() -> Callable[[], None]:
    """The initializer of a pool whose threads work on what this thread works on."""
    now = current()

    def carry() -> None:
        _context.set(now)

    return carry


class RequestIdMiddleware:
    """Gives each request an id, which a trusted proxy may have given it before, and says it in the
    answer. The first of all: what the others refuse has one too."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = given_by_proxy(request) or uuid4().hex
        # Until the signal below: Django logs a refusal when the middlewares are done with it.
        become(request_id=request_id)
        response = self.get_response(request)
        response[HEADER] = request_id
        return response


def given_by_proxy(request: HttpRequest) -> str | None:
    given = request.headers.get(HEADER, "")
    trusted = settings.SECURE_PROXY_SSL_HEADER and WELL_FORMED.fullmatch(given)
    return given if trusted else None


def forget_request(**kwargs: object) -> None:
    become(request_id=None)


request_finished.connect(forget_request, dispatch_uid="storage_audit.request_id")


class ContextFilter(logging.Filter):
    """Adds to each record what is known where it is written, unless it brings its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        worker = f"{gethostname()}:{record.process}"
        for name, value in {**current()._asdict(), "worker": worker}.items():
            vars(record).setdefault(name, value)
        return True


class QueueFilter(logging.Filter):
    """Adds the deletion to what the queue says of its task from outside of it, such as the
    traceback of one that failed. The task's name is the deletion id."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "storage_audit.tasks.run_operation" in message and (named := UUID_FORM.search(message)):
            record.deletion_id = named[0]
        return True


class Formatter(logging.Formatter):
    """Lines to be read, each followed by its context; what belongs to a line is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        first, *rest = cut(super().formatMessage(record), LONGEST).split("\n")
        return "\n".join([" ".join([first, *self.details(record)]), *rest])

    def details(self, record: logging.LogRecord) -> Iterator[str]:
        names = [*Context._fields, *(["worker"] if getattr(record, "deletion_id", None) else [])]
        for name in (*names, "step", "data"):
            if value := plain(getattr(record, name, None)):
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                yield f"{name}={visible(shown)}"

    def format(self, record: logging.LogRecord) -> str:
        line, *trace = super().format(record).split("\n", 1)
        return "\n  ".join([line, *(shown for text in trace for shown in lines_of(text))])


def plain(value: Any, longest: int = LONGEST, depth: int = 0) -> Any:
    """The value as JSON can have it: without secrets, with nothing that a terminal would obey but
    the ends of lines, texts no longer than `longest`, and much shorter ones further inside."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, HttpRequest):
        # Its own text has the query, which may be anybody's secret.
        value = f"{value.method} {value.path}"
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, Mapping) and depth < DEEPEST:
        names = list(value)[:MOST]
        found = {cut(str(n), longest): named(str(n), value[n], longest, depth) for n in names}
        return found | ({"more": len(value) - MOST} if len(value) > MOST else {})
    if isinstance(value, list | tuple | set | frozenset) and depth < DEEPEST:
        shown = [plain(item, longest, depth + 1) for item in list(value)[:MOST]]
        return shown + ([f"and {len(value) - MOST} more"] if len(value) > MOST else [])
    return cut(str(value), longest if depth < 2 else longest // INSIDE)


def named(name: str, value: Any, longest: int, depth: int) -> Any:
    is_secret = SECRET_NAME.search(name) and value and not isinstance(value, bool | int)
    return HIDDEN if is_secret else plain(value, longest, depth + 1)


def cut(text: str, longest: int) -> str:
    """Of what is too long the beginning and the end, where a traceback has its error. Cut last, as
    nobody would know half a secret."""
    shown = "\n".join(lines_of(text))
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]} [...] {shown[-half:]}"


def lines_of(text: str) -> list[str]:
    return [visible(line) for line in str(redact(text)).split("\n")]
