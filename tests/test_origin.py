"""From where a request came, also behind a proxy, whose word counts only when it is trusted."""

import pytest
from django.contrib.auth.models import AnonymousUser
from django.test import RequestFactory
from pytest_django import Settings

from storage_audit.origin import of_request


def place(settings: Settings, trusted: bool, forwarded: str | None) -> str:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if trusted else None
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    request = RequestFactory().get("/", headers=headers)
    request.user = AnonymousUser()
    return of_request(request).place


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
