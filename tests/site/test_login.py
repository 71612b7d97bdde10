"""Whoever guesses passwords is slowed down, and what was typed is kept nowhere."""

from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db.models import F
from django.test import Client
from pytest_django import Settings

from tests.admin_client import normalized_text, page_text, superuser_client

LOGIN, RIGHT = "/admin/login/?next=/admin/", "a-right-password"
FAILURES, WAIT = 10, timedelta(minutes=15)
ATTEMPTS: Any = apps.get_model("axes", "AccessAttempt")


@pytest.fixture(autouse=True)
def people(db: None, settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    for name in ("carla", "dan"):
        User.objects.create_superuser(name, password=RIGHT)


def log_in(name: str, password: str, address: str = "203.0.113.7", **headers: str) -> Any:
    data = {"username": name, "password": password, "next": "/admin/?planted-next"}
    return Client(REMOTE_ADDR=address, headers=headers).post(LOGIN, data)


def guess(name: str, times: int, address: str = "203.0.113.7", **headers: str) -> int:
    """The status of the last answer."""
    answers = [log_in(name, f"guess-{n}", address, **headers) for n in range(times)]
    return int(answers[-1].status_code)


def test_ten_failures_lock_the_name_at_this_address_for_a_quarter_of_an_hour() -> None:
    assert guess("carla", FAILURES - 1) == 200
    assert guess("carla", 1) == 429
    refused = log_in("carla", RIGHT)
    assert refused.status_code == 429
    assert "Try again in 15 minutes" in normalized_text(refused)
    assert "AutoShorts administration" in normalized_text(
        refused
    ) and "Django" not in normalized_text(refused)
    assert log_in("dan", RIGHT).status_code == 302
    assert log_in("carla", RIGHT, "203.0.113.8").status_code == 302
    ATTEMPTS.objects.update(attempt_time=F("attempt_time") - WAIT)
    assert log_in("carla", RIGHT).status_code == 302


def test_waiting_does_not_begin_again_with_each_attempt() -> None:
    guess("carla", FAILURES)
    ATTEMPTS.objects.update(attempt_time=F("attempt_time") - WAIT + timedelta(minutes=1))
    before = list(ATTEMPTS.objects.values())
    assert guess("carla", 3) == 429
    assert list(ATTEMPTS.objects.values()) == before


def test_another_browser_does_not_begin_to_count_again() -> None:
    for n in range(FAILURES):
        answer = log_in("carla", "guess", **{"User-Agent": f"browser {n}"})
    assert answer.status_code == 429


def test_failures_of_a_clock_that_was_ahead_lock_nobody_out() -> None:
    guess("carla", FAILURES)
    ATTEMPTS.objects.update(attempt_time=F("attempt_time") + timedelta(days=365))
    log_in("carla", RIGHT)
    assert log_in("carla", RIGHT).status_code == 302
    assert guess("carla", FAILURES) == 429


def test_success_forgets_the_failures_before_it() -> None:
    guess("carla", FAILURES - 1)
    assert log_in("carla", RIGHT).status_code == 302
    assert guess("carla", FAILURES - 1) == 200


def test_administrator_lifts_the_lock() -> None:
    guess("carla", FAILURES)
    call_command("axes_reset", verbosity=0)
    assert log_in("carla", RIGHT).status_code == 302


@pytest.mark.parametrize("trusted", [True, False])
def test_address_is_the_one_that_a_trusted_proxy_saw(settings: Settings, trusted: bool) -> None:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if trusted else None
    for n in range(FAILURES):
        forged = "198.51.100.1" if trusted else f"198.51.100.{n}"
        headers = {"X-Forwarded-For": f"{forged}, 192.0.2.{n}"}
        status = guess("carla", 1, "127.0.0.1", **headers)
    assert status == (200 if trusted else 429)
    assert ATTEMPTS.objects.count() == (FAILURES if trusted else 1)


@pytest.mark.parametrize("address", ["", "unknown", "fe80::1%eth0", "2001:db8::1"])
def test_any_address_of_a_web_server_counts(address: str) -> None:
    assert guess("carla", FAILURES, address) == 429
    assert log_in("dan", RIGHT, address).status_code == 302


def test_addresses_of_one_ipv6_network_count_together() -> None:
    """A provider gives each customer at least a /64, so one person has all of its addresses."""
    for n in range(FAILURES):
        status = guess("carla", 1, f"2001:db8:0:1:{n:x}::7")
    assert status == 429
    assert log_in("carla", RIGHT, "2001:db8:0:2::7").status_code == 302


def test_ipv4_addresses_that_a_web_server_writes_as_ipv6_count_apart() -> None:
    guess("carla", FAILURES, "::ffff:203.0.113.7")
    assert log_in("carla", RIGHT).status_code == 429
    assert log_in("carla", RIGHT, "::ffff:203.0.113.8").status_code == 302


def test_nothing_that_was_typed_is_kept_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Many a password was typed into the field of the name."""
    caplog.set_level("DEBUG")
    for _n in range(2):
        log_in("planted-in-the-wrong-field", "planted-password")
    log_in("carla", RIGHT)
    rows = [row for model in apps.get_app_config("axes").get_models() for row in values(model)]
    kept = str(rows)
    assert "203.0.113.7" in kept and "203.0.113.7" in caplog.text
    for text in (kept, caplog.text):
        assert not [word for word in ("planted", RIGHT) if word in text]


def values(model: Any) -> list[dict[str, Any]]:
    return list(model.objects.values())


def test_rows_are_pruned_by_the_next_login_and_none_is_kept_of_a_success() -> None:
    guess("carla", 2)
    guess("dan", 2)
    ATTEMPTS.objects.update(attempt_time=F("attempt_time") - WAIT)
    log_in("carla", RIGHT)
    assert not [row for model in apps.get_app_config("axes").get_models() for row in values(model)]


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short-one", "too short"),
        ("password1234", "too common"),
        ("480161590263", "entirely numeric"),
        ("bartholomew-1", "too similar to the username"),
    ],
)
def test_weak_password_is_refused(password: str, why: str) -> None:
    data = {"username": "bartholomew", "password1": password, "password2": password}
    shown = page_text(
        superuser_client().post("/admin/auth/user/add/", data | {"usable_password": "true"})
    )
    assert why in shown
    assert not User.objects.filter(username="bartholomew").exists()
