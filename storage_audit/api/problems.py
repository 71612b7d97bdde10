"""What goes wrong, as application/problem+json: https://www.rfc-editor.org/rfc/rfc9457"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import BadRequest, SuspiciousOperation
from django.core.exceptions import ValidationError as InvalidValue
from django.db import OperationalError, transaction
from django.db.models import ProtectedError, RestrictedError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.utils.encoding import escape_uri_path
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from ninja.errors import AuthenticationError, HttpError, Throttled, ValidationError

from storage_audit.bucket.errors import DeadlinePassed, StoreError, Unavailable
from storage_audit.concurrency import COME_BACK_AFTER, Busy
from storage_audit.redaction import redact

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:storage-audit:"
CHALLENGE = 'Bearer realm="storage_audit"'


class Kind(NamedTuple):
    status: int
    title: Any


KINDS = {
    "bad-request": Kind(400, gettext_lazy("The request cannot be read")),
    "unauthenticated": Kind(401, gettext_lazy("Who are you?")),
    "csrf": Kind(403, gettext_lazy("The CSRF token is missing or wrong")),
    "forbidden": Kind(403, gettext_lazy("You may not do this")),
    "read-only-token": Kind(403, gettext_lazy("This token can only read")),
    "not-found": Kind(404, gettext_lazy("There is no such thing")),
    "method-not-allowed": Kind(405, gettext_lazy("Nothing answers to this method here")),
    "in-use": Kind(409, gettext_lazy("Something else needs it")),
    "project-exists": Kind(409, gettext_lazy("The project exists")),
    "wrong-state": Kind(409, gettext_lazy("It is in no state for this")),
    "refused": Kind(409, gettext_lazy("It was not done")),
    "invalid-values": Kind(422, gettext_lazy("Some values are not valid")),
    "too-many-requests": Kind(429, gettext_lazy("Too many requests")),
    "internal-error": Kind(500, gettext_lazy("Something is broken here")),
    "store-refused": Kind(502, gettext_lazy("The store did not do what it was asked")),
    "bucket-not-ours": Kind(503, gettext_lazy("Bucket and database do not belong together")),
    "database-unavailable": Kind(503, gettext_lazy("The database does not answer")),
    "store-unavailable": Kind(503, gettext_lazy("The store does not answer")),
    "too-slow": Kind(504, gettext_lazy("The store did not get ready in time")),
}


class Problem(Exception):
    """Ends a request with this answer. `members` are further members of the JSON object."""

    def __init__(
        self, kind: str, detail: object, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers = kind, detail, dict(headers or {})
        self.members = members

    @property
    def status(self) -> int:
        return KINDS[self.kind].status


def of(error: Exception) -> Problem:
    """What a client is told of an error; of one that nobody foresaw, nothing but that it was."""
    match error:
        case Problem():
            return error
        case AuthenticationError():
            text = _("Sign in at the admin, or send a token: Authorization: Bearer TOKEN.")
            return Problem("unauthenticated", text, {"WWW-Authenticate": CHALLENGE})
        case Throttled():
            return Problem("too-many-requests", _("Wait as long as Retry-After says, in seconds."))
        case Busy():
            wait = {"Retry-After": str(COME_BACK_AFTER)}
            return Problem("too-many-requests", str(error), wait)
        case ValidationError():
            wrong = [{"where": each["loc"], "message": each["msg"]} for each in error.errors]
            return Problem("invalid-values", _("See “errors”."), errors=wrong)
        case HttpError(status_code=403):
            return Problem("csrf", _("Send the value of the CSRF cookie as X-CSRFToken."))
        case DeadlinePassed():
            return Problem("too-slow", _("It would take too long here: use a command instead."))
        case StoreError():
            return of_store(error)
    for cause, kind in SPOKEN.items():
        if isinstance(error, cause):
            text = error.messages[0] if isinstance(error, InvalidValue) else error.args[0]
            return Problem(kind, redact(str(text)))
    for cause, (kind, told) in SILENT.items():
        if isinstance(error, cause):
            return Problem(kind, told)
    return Problem("internal-error", _("The web server's log says what."))


# Their message is meant for people. The API of each feature adds its own.
SPOKEN: dict[type[Exception], str] = {
    InvalidValue: "invalid-values",
    ProtectedError: "in-use",
    RestrictedError: "in-use",
}
# Their message may say what only the log should hold.
SILENT: dict[type[Exception], tuple[str, Any]] = {
    Http404: ("not-found", gettext_lazy("Nothing has this id.")),
    HttpError: ("bad-request", gettext_lazy("Mend the request's body.")),
    **dict.fromkeys(
        (SuspiciousOperation, BadRequest, MultiPartParserError),
        ("bad-request", gettext_lazy("The request is too large or malformed.")),
    ),
    OperationalError: ("database-unavailable", gettext_lazy("Try again later.")),
}


def of_store(error: StoreError) -> Problem:
    if not isinstance(error, Unavailable):
        return Problem("store-refused", str(error))
    wait = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}
    return Problem("store-unavailable", str(error), wait)


def answer(request: HttpRequest, error: Any) -> HttpResponse:
    problem = of(error)
    if problem.status >= 500:
        logger.error("%s %s failed.", request.method, request.path, exc_info=error)
    kind = KINDS[problem.kind]
    content = {
        "type": TYPE_PREFIX + problem.kind,
        "title": str(kind.title),
        "status": kind.status,
        "detail": str(problem.detail),
        "instance": escape_uri_path(request.path),
        **asked_for(request),
        **problem.members,
    }
    return JsonResponse(
        content, status=kind.status, content_type=MEDIA_TYPE, headers=problem.headers
    )


def asked_for(request: HttpRequest) -> dict[str, str]:
    """The deletion, where the address names one."""
    match = request.resolver_match
    with suppress(KeyError, ValueError):
        return {"deletion_id": str(UUID(match.kwargs["deletion_id"] if match else ""))}
    return {}


def refuse_unread(request: HttpRequest, *known: str) -> None:
    """What nobody reads here may have been meant to ask for a dry run."""
    # Django sees nothing of a body that comes in chunks.
    is_chunked = "Transfer-Encoding" in request.headers
    has_body = is_chunked or request.headers.get("Content-Length", "0") not in ("", "0")
    if has_body or set(request.GET) - set(known):
        text = _("Send %s in the query, and nothing else.") % ", ".join(known)
        nothing = _("Send no query and no body: there is no dry run of it.")
        raise Problem("bad-request", f"{text if known else nothing} " + _("Nothing was done."))


def unknown_address(request: HttpRequest) -> HttpResponse:
    raise Problem("not-found", _("There is no such address. /api/docs shows those that there are."))


def speaking(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The view with every refusal as a problem, and nothing for a cache to keep."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response = view(request, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is logged, and answered as what it is.
            response = answer(request, error)
        if response.status_code == 405 and response["Content-Type"] != MEDIA_TYPE:
            allowed = response["Allow"]
            refusal = Problem("method-not-allowed", _("Use %s.") % allowed, {"Allow": allowed})
            response = answer(request, refusal)
        response["Cache-Control"] = "no-store"
        if request.method == "HEAD":
            # gunicorn drops the body, and warns that there is one.
            response["Content-Length"] = len(response.content)
            response.content = b""
        return response

    return transaction.non_atomic_requests(wrapped)
