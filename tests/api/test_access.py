"""Who is let in over HTTP, by what, how often, and as whom."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from storage_audit.api import openapi, rate_limit
from storage_audit.api.models import ApiToken, token_digest
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.api_client import (
    API_PATH,
    ApiClient,
    assert_problem,
    client_with_token,
    create_staff,
    read_json,
)
from tests.forms import TOKEN

pytestmark = pytest.mark.django_db
LIST = "/deletions"
VIEW_CLEANUP = "view_cleanup"


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    cache.clear()


def signed_in(user: User) -> ApiClient:
    """In a browser."""
    come = ApiClient()
    come.client.force_login(user)
    come.client.cookies["csrftoken"] = TOKEN
    return come


# By a token


def test_a_token_lets_in() -> None:
    assert client_with_token().get(LIST) == {
        "items": [],
        "next_cursor": None,
        "paused": None,
    }


def test_nobody_is_told_how_to_come_in() -> None:
    answer = ApiClient().request("GET", LIST)
    assert_problem(answer, 401, "unauthenticated")
    assert answer["WWW-Authenticate"] == 'Bearer realm="storage_audit"'


def spoilt(how: str) -> str:
    user = create_staff(VIEW_CLEANUP)
    token, text = ApiToken.issue(name="t", user=user)
    match how:
        case "unknown":
            return text + "x"
        case "empty":
            return " "
        case "digest":
            return token_digest(text)
        case "revoked":
            assert token.revoke()
        case "expired":
            ApiToken.objects.update(expires_at=timezone.now())
        case "of nobody on the staff":
            User.objects.update(is_staff=False)
        case "of somebody who left":
            User.objects.update(is_active=False)
    return text


@pytest.mark.parametrize(
    "how",
    [
        "unknown",
        "empty",
        "digest",
        "revoked",
        "expired",
        "of nobody on the staff",
        "of somebody who left",
    ],
)
def test_a_token_that_is_not_valid_does_not(how: str) -> None:
    answer = ApiClient(spoilt(how)).request("GET", LIST)
    assert_problem(answer, 401, "unauthenticated")
    assert 'error="invalid_token"' in answer["WWW-Authenticate"]


def test_a_session_beside_a_bad_token_does_not_help() -> None:
    come = signed_in(User.objects.create_superuser("anna"))
    assert come.get(LIST)
    assert_problem(come.request("GET", LIST, Authorization="Bearer wrong"), 401, "unauthenticated")


def test_another_scheme_is_no_token() -> None:
    assert_problem(
        ApiClient().request("GET", LIST, Authorization="Basic YTpi"), 401, "unauthenticated"
    )


def test_until_it_is_out_of_date_it_is_valid() -> None:
    assert client_with_token(expires_at=timezone.now() + timedelta(minutes=1)).get(LIST)


def test_a_token_that_may_only_read_only_reads() -> None:
    come, _project = client_with_token(may_write=False), Project.objects.create(pk="proj_1")
    assert come.get(LIST)
    assert_problem(come.request("DELETE", "/projects/proj_1"), 403, "read-only-token")
    assert Project.objects.exists() and not Cleanup.objects.exists()


def test_only_the_digest_is_in_the_table() -> None:
    token, text = ApiToken.issue(name="t", user=create_staff())
    row = ApiToken.objects.values().get()
    assert row["digest"] == token_digest(text) and text not in repr(row)


def test_its_use_is_noted_at_most_once_a_minute() -> None:
    come = client_with_token()
    assert come.get(LIST)
    first = ApiToken.objects.get().last_used_at
    assert first and timezone.now() - first < timedelta(minutes=1)
    with CaptureQueriesContext(connection) as queries:
        assert come.get(LIST)
    assert not [q for q in queries.captured_queries if not q["sql"].startswith("SELECT")]
    earlier = first - timedelta(minutes=1)
    ApiToken.objects.update(last_used_at=earlier)
    assert come.get(LIST)
    assert (ApiToken.objects.get().last_used_at or earlier) >= first


# By a session


def test_staff_come_in_with_their_session() -> None:
    assert signed_in(create_staff(VIEW_CLEANUP)).get(LIST)


def test_others_do_not() -> None:
    former = create_staff(VIEW_CLEANUP)
    User.objects.update(is_staff=False)
    assert_problem(signed_in(former).request("GET", LIST), 403, "forbidden")


@pytest.mark.parametrize("sent", [{}, {"X-CSRFToken": "x" * 32}])
def test_with_a_session_a_write_needs_its_csrf_token(sent: dict[str, str]) -> None:
    come = signed_in(User.objects.create_superuser("anna"))
    Project.objects.create(pk="proj_1")
    assert_problem(come.request("DELETE", "/projects/proj_1", **sent), 403, "csrf")
    assert Project.objects.exists()
    read_json(come.request("DELETE", "/projects/proj_1", **{"X-CSRFToken": TOKEN}), 202)
    assert not Project.objects.exists()


def test_a_stranger_who_writes_is_told_to_sign_in() -> None:
    assert_problem(ApiClient().request("DELETE", "/projects/proj_1"), 401, "unauthenticated")


# As whom


def test_a_token_acts_as_its_person_from_its_address() -> None:
    Project.objects.create(pk="proj_1")
    come = client_with_token(create_staff("delete_project"))
    ApiToken.objects.update(name="nightly\x1b")
    read_json(come.request("DELETE", "/projects/proj_1"), 202)
    cleanup = Cleanup.objects.get()
    assert cleanup.requested_by == ApiToken.objects.get().user.get_username()
    assert cleanup.origin == "api token nightly\\x1b, 127.0.0.1"


def test_a_session_acts_as_itself() -> None:
    Project.objects.create(pk="proj_1")
    come = signed_in(User.objects.create_superuser("anna"))
    read_json(come.request("DELETE", "/projects/proj_1", **{"X-CSRFToken": TOKEN}), 202)
    cleanup = Cleanup.objects.get()
    assert (cleanup.requested_by, cleanup.origin) == ("anna", "web, 127.0.0.1")


# How often


def limit(settings: Settings, **limits: int) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | limits


@pytest.fixture
def one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same one all along, as counts begin anew with each."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


def too_often(answer: Any) -> None:
    assert_problem(answer, 429, "too-many-requests")
    assert 1 <= int(answer["Retry-After"]) <= 60


def test_each_person_may_ask_so_often_a_minute(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(settings, API_RATE_READ=3)
    now = 120_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    come, other = client_with_token(), client_with_token()
    for _time in range(3):
        assert come.get(LIST)
    too_often(come.request("GET", LIST))
    assert other.get(LIST)
    now += 59.9
    too_often(come.request("GET", LIST))
    now += 0.1
    assert come.get(LIST)


def test_all_tokens_of_a_person_and_the_session_count_together(
    settings: Settings, one_minute: None
) -> None:
    limit(settings, API_RATE_READ=2)
    anna = User.objects.create_superuser("anna")
    assert client_with_token(anna).get(LIST) and signed_in(anna).get(LIST)
    too_often(client_with_token(anna).request("GET", LIST))
    too_often(signed_in(anna).request("GET", LIST))


def test_to_ask_what_the_doctor_found_counts_as_a_write(
    settings: Settings, one_minute: None
) -> None:
    limit(settings, API_RATE_WRITE=1)
    come = client_with_token()
    assert_problem(come.request("GET", "/doctor"), 404, "not-found")
    too_often(come.request("GET", "/doctor"))


def test_writes_and_what_asks_the_store_count_apart_from_reads(
    settings: Settings, one_minute: None
) -> None:
    limit(settings, API_RATE_WRITE=2)
    come = client_with_token()
    assert_problem(come.request("DELETE", "/projects/proj_1"), 404, "not-found")
    assert come.get("/debug/env-vars")
    too_often(come.request("DELETE", "/projects/proj_1"))
    too_often(come.request("GET", "/debug/env-vars"))
    assert come.get(LIST)


def test_a_cache_that_forgets_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "add", lambda *args, **kwargs: False)
    assert rate_limit.increment_count("never-set") == 1


# What needs no key


def test_the_description_is_for_everybody() -> None:
    answer = Client().get(f"{API_PATH}/openapi.json")
    assert answer.json()["openapi"] == "3.1.0"
    assert not answer.cookies


def test_the_description_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second, and nobody is asked for a key."""
    first = Client().get(f"{API_PATH}/openapi.json").json()
    monkeypatch.delattr(openapi, "get_schema")
    assert Client().get(f"{API_PATH}/openapi.json").json() == first
