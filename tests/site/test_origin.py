"""From where a request came, also behind a proxy, whose word counts only when it is trusted."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils.functional import SimpleLazyObject
from pytest_django import Settings

from storage_audit.request_origin import Origin, OriginMiddleware, current_origin, request_origin


def place(settings: Settings, trusted: bool, forwarded: str | None) -> str:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if trusted else None
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    request = RequestFactory().get("/", headers=headers)
    request.user = AnonymousUser()
    return request_origin(request).place


@pytest.mark.parametrize(
    ("forwarded", "told"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("10.9.8.7, 203.0.113.7", "203.0.113.7"),
        (" 2001:db8::1 ", "2001:db8::1"),
        ("203.0.113.7, <script>", "127.0.0.1"),
        ("", "127.0.0.1"),
        (None, "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_says_from_where(
    forwarded: str | None, told: str, settings: Settings
) -> None:
    assert place(settings, True, forwarded) == f"web, {told}"


def test_nobody_else_does(settings: Settings) -> None:
    assert place(settings, False, "203.0.113.7") == "web, 127.0.0.1"


def through(view: Callable[[HttpRequest], HttpResponse]) -> list[str]:
    """Who was asked for while the view ran."""
    asked: list[str] = []

    def look_up() -> User:
        asked.append("ann")
        return User(username="ann")

    request = RequestFactory().get("/")
    request.user = SimpleLazyObject(look_up)  # type: ignore[assignment]
    OriginMiddleware(view)(request)
    return asked


def test_a_page_that_deletes_nothing_asks_for_nobody() -> None:
    """Else each answer would vary by the session's cookie, and no cache could share it."""
    assert through(lambda request: HttpResponse()) == []


def test_a_page_that_asks_is_told() -> None:
    told: list[Origin] = []

    def view(request: HttpRequest) -> HttpResponse:
        told.append(current_origin())
        assert current_origin().user == "ann"
        return HttpResponse()

    assert through(view) == ["ann"]
    assert told[0].place == "web, 127.0.0.1"


def test_who_signs_out_on_the_way_is_still_known(db: None) -> None:
    told: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        request.user.is_authenticated  # noqa: B018 - as logout() asks
        request.user = AnonymousUser()
        told.append(current_origin().user)
        return HttpResponse()

    through(view)
    assert told == ["ann"]


def test_a_project_without_users_deletes_too() -> None:
    told: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        told.append(current_origin().user)
        return HttpResponse()

    OriginMiddleware(view)(RequestFactory().get("/"))
    assert told == [""]
