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


@dataclass(frozen=True)
class Origin:
    """`user` is a login name or empty; `place` says from where, such as "admin, 203.0.113.7"."""

    user: str = ""
    place: str = "application code"
    forced: bool = False


_origin: ContextVar[Origin] = ContextVar("storage_audit_origin")
NOBODY = Origin()


def current_origin() -> Origin:
    return _origin.get(NOBODY)


@contextmanager
def acting_as(origin: Origin) -> Iterator[None]:
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def of_request(request: HttpRequest, *, forced: bool = False, at_entry: Any = None) -> Origin:
    """`at_entry` is who came with the request, and may have been signed out since. Where a person
    did not sign in at the web site, the request's `came_by` says how it was let in."""
    people = (getattr(request, "user", None), at_entry)
    names = [who.get_username() for who in people if who is not None and who.is_authenticated]
    way = getattr(request, "came_by", "web")
    return Origin(next(iter(names), ""), f"{way}, {address_of(request)}", forced)


def address_of(request: HttpRequest) -> str:
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
        asked = partial(of_request, request, at_entry=getattr(request, "user", None))
        with acting_as(cast(Origin, SimpleLazyObject(asked))):
            return self.get_response(request)
