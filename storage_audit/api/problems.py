"""Errors as application/problem+json: https://www.rfc-editor.org/rfc/rfc9457"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any
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
from storage_audit.concurrency import Busy
from storage_audit.redaction import redact_secrets

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:storage-audit:"
AUTH_CHALLENGE = 'Bearer realm="storage_audit"'


# The status and the title of each.
PROBLEM_KINDS: dict[str, tuple[int, Any]] = {
    "bad-request": (400, gettext_lazy("Bad request")),
    "unauthenticated": (401, gettext_lazy("Authentication required")),
    "csrf": (403, gettext_lazy("CSRF token missing or invalid")),
    "forbidden": (403, gettext_lazy("Permission denied")),
    "read-only-token": (403, gettext_lazy("Read-only token")),
    "not-found": (404, gettext_lazy("Not found")),
    "method-not-allowed": (405, gettext_lazy("Method not allowed")),
    "in-use": (409, gettext_lazy("In use")),
    "project-exists": (409, gettext_lazy("Project exists")),
    "wrong-state": (409, gettext_lazy("Not possible in this state")),
    "cannot-restore": (409, gettext_lazy("Project can't be restored")),
    "refused": (409, gettext_lazy("Refused")),
    "invalid-values": (422, gettext_lazy("Invalid values")),
    "too-many-requests": (429, gettext_lazy("Too many requests")),
    "internal-error": (500, gettext_lazy("Internal server error")),
    "store-refused": (502, gettext_lazy("Store refused the request")),
    "bucket-not-ours": (503, gettext_lazy("Bucket belongs to another database")),
    "database-unavailable": (503, gettext_lazy("The database does not answer")),
    "store-unavailable": (503, gettext_lazy("Store unavailable")),
    "too-slow": (504, gettext_lazy("Request took too long")),
}


class Problem(Exception):
    """Ends a request with this answer. `members` are further members of the JSON object."""

    def __init__(
        self, kind: str, detail: object, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers = kind, detail, dict(headers or {})
        self.members = members


# Errors whose messages are meant for people. Each feature's API adds its own.
PUBLIC_ERRORS: dict[type[Exception], str] = {
    Busy: "too-many-requests",
    InvalidValue: "invalid-values",
    ProtectedError: "in-use",
    RestrictedError: "in-use",
    StoreError: "store-refused",
    Unavailable: "store-unavailable",
}
# Errors whose messages may say what only the log should hold.
PRIVATE_ERRORS: dict[type[Exception], tuple[str, Any]] = {
    Throttled: (
        "too-many-requests",
        gettext_lazy("Wait for the number of seconds in the Retry-After header."),
    ),
    DeadlinePassed: (
        "too-slow",
        gettext_lazy("This takes too long for a request. Use a command instead."),
    ),
    Http404: ("not-found", gettext_lazy("There is nothing with this ID.")),
    HttpError: ("bad-request", gettext_lazy("The request body is invalid.")),
    **dict.fromkeys(
        (SuspiciousOperation, BadRequest, MultiPartParserError),
        ("bad-request", gettext_lazy("The request is too large or malformed.")),
    ),
    OperationalError: ("database-unavailable", gettext_lazy("Try again later.")),
}


def to_problem(error: Exception) -> Problem:
    """The problem that a client gets; for an unexpected error it says nothing but that."""
    match error:
        case Problem():
            return error
        case AuthenticationError():
            text = _("Sign in to the admin, or send the header Authorization: Bearer TOKEN.")
            return Problem("unauthenticated", text, {"WWW-Authenticate": AUTH_CHALLENGE})
        case ValidationError():
            wrong = [{"where": each["loc"], "message": each["msg"]} for each in error.errors]
            return Problem("invalid-values", _("“errors” lists each invalid value."), errors=wrong)
        case HttpError(status_code=403):
            return Problem(
                "csrf", _("Send the value of the CSRF cookie in the header X-CSRFToken.")
            )
    for cause in type(error).__mro__:
        if cause in PRIVATE_ERRORS:
            return Problem(*PRIVATE_ERRORS[cause])
        if cause in PUBLIC_ERRORS:
            wait = error.retry_after if isinstance(error, Busy | Unavailable) else 0
            headers = {"Retry-After": str(math.ceil(wait))} if wait else {}
            text = getattr(error, "messages", error.args)[0]
            return Problem(PUBLIC_ERRORS[cause], redact_secrets(str(text)), headers)
    return Problem("internal-error", _("The web server's log has the details."))


def problem_response(request: HttpRequest, error: Any) -> HttpResponse:
    problem = to_problem(error)
    status, title = PROBLEM_KINDS[problem.kind]
    if status >= 500:
        logger.error("%s %s failed.", request.method, request.path, exc_info=error)
    content = {
        "type": TYPE_PREFIX + problem.kind,
        "title": str(title),
        "status": status,
        "detail": str(problem.detail),
        "instance": escape_uri_path(request.path),
        **requested_deletion(request),
        **problem.members,
    }
    return JsonResponse(content, status=status, content_type=MEDIA_TYPE, headers=problem.headers)


def requested_deletion(request: HttpRequest) -> dict[str, str]:
    """The deletion in the address, if there is one."""
    match = request.resolver_match
    with suppress(KeyError, ValueError):
        return {"deletion_id": str(UUID(match.kwargs["deletion_id"] if match else ""))}
    return {}


def refuse_unknown_input(request: HttpRequest, *known: str) -> None:
    """Unknown input is refused, as it may have been meant to ask for a dry run."""
    # Django does not see a chunked body.
    is_chunked = "Transfer-Encoding" in request.headers
    has_body = is_chunked or request.headers.get("Content-Length", "0") not in ("", "0")
    if has_body or set(request.GET) - set(known):
        text = _("Only these query parameters are allowed: %s.") % ", ".join(known)
        nothing = _("Send no query and no body. A dry run is not available here.")
        raise Problem("bad-request", f"{text if known else nothing} " + _("Nothing was done."))


def refuse_unknown_address(request: HttpRequest) -> HttpResponse:
    raise Problem("not-found", _("There is no such endpoint. See /api/docs for all endpoints."))


def report_problems(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The view with every refusal as a problem, and nothing for a cache to keep."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response = view(request, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is logged, and answered as what it is.
            response = problem_response(request, error)
        if response.status_code == 405:
            allowed = response["Allow"]
            refusal = Problem("method-not-allowed", _("Use %s.") % allowed, {"Allow": allowed})
            response = problem_response(request, refusal)
        response["Cache-Control"] = "no-store"
        if request.method == "HEAD":
            # gunicorn drops the body, and warns that there is one.
            response["Content-Length"] = len(response.content)
            response.content = b""
        return response

    return transaction.non_atomic_requests(wrapped)
