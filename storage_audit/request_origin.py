"""Who asked for what is being done, and from where, without passing it through every call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

MAX_USER_CHARS = 600


@dataclass(frozen=True)
class Origin:
    """`user` is a login name or empty; `place` is where the request came from, such as
    "admin, 203.0.113.7"."""

    user: str = ""
    place: str = "application code"
    forced: bool = False
    # Why the files of a deletion go at once, without a hold.
    erase_reason: str = ""


_origin: ContextVar[Origin] = ContextVar("storage_audit_origin")
DEFAULT_ORIGIN = Origin()


def current_origin() -> Origin:
    return _origin.get(DEFAULT_ORIGIN)


@contextmanager
def use_origin(origin: Origin) -> Iterator[None]:
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def request_origin(
    request: HttpRequest, *, forced: bool = False, initial_user: Any = None
) -> Origin:
    """`initial_user` is who sent the request, and may have been signed out since. Where a person
    did not sign in at the web site, the request's `came_by` says how it was authenticated."""
    people = (getattr(request, "user", None), initial_user)
    names = [who.get_username() for who in people if who is not None and who.is_authenticated]
    way = getattr(request, "came_by", "web")
    # A database indexes no longer ones.
    return Origin(
        next(iter(names), "")[:MAX_USER_CHARS], f"{way}, {request_address(request)}", forced
    )


def request_address(request: HttpRequest) -> str:
    if settings.SECURE_PROXY_SSL_HEADER:
        # A proxy is trusted, and the last address is the one that it has seen itself.
        last = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
        with suppress(ValueError):
            return str(ip_address(last))
    return str(request.META.get("REMOTE_ADDR", "unknown address"))


class OriginMiddleware:
    """Makes the signed-in person and address known to the signal receivers."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        # Not before somebody asks: to look at the user is to read the session, and every answer
        # would vary by its cookie.
        asked = partial(request_origin, request, initial_user=getattr(request, "user", None))
        with use_origin(cast(Origin, SimpleLazyObject(asked))):
            return self.get_response(request)
