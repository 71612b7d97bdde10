"""Whatever goes wrong is told in one form, with what to do, and without what only the log holds."""

import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db import OperationalError
from django.http import Http404
from django.test import Client
from ninja.errors import HttpError
from pytest_django import Settings

from storage_audit.api import problems
from storage_audit.bucket.errors import (
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    Overloaded,
    Unavailable,
)
from storage_audit.cleanup import api as deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.conf import conf
from storage_audit.findings.action_result import ActionRefused
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.project_model import ProjectExists
from storage_audit.redaction import REDACTED
from storage_audit.scan.start import ScanTooExpensive
from tests.api_client import API_PATH, PROBLEM_TYPE, ApiClient, assert_problem, client_with_token
from tests.forms import TOKEN
from tests.paths import ROOT

pytestmark = pytest.mark.django_db
DOCS = ROOT / "docs" / "api.md"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[StringIO]:
    """What the site's log holds."""
    (console,) = (handler for handler in logging.root.handlers if handler.name == "console")
    handler = logging.StreamHandler(StringIO())
    handler.setFormatter(console.formatter)
    logging.root.addHandler(handler)
    yield handler.stream
    logging.root.removeHandler(handler)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    """The answer where this happens in the midst of a request."""

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(deletions, "deletion_details", fail)
    cleanup = Cleanup.objects.request(kind="project", bucket="b", trigger="deleted")
    return client_with_token().request("GET", f"/deletions/{cleanup.pk}")


ERRORS: list[tuple[Exception, int, str]] = [
    (ValueError("planted"), 500, "internal-error"),
    (OperationalError("planted"), 503, "database-unavailable"),
    (SuspiciousOperation("planted"), 400, "bad-request"),
    (HttpError(400, "planted"), 400, "bad-request"),
    (Http404("planted"), 404, "not-found"),
    (CannotConclude("told"), 503, "bucket-not-ours"),
    (ProjectExists("told"), 409, "project-exists"),
    (IllegalTransition("told"), 409, "wrong-state"),
    (ActionRefused("told"), 409, "refused"),
    (ScanTooExpensive("told"), 409, "refused"),
    (ValidationError("told"), 422, "invalid-values"),
    (Unavailable("told"), 503, "store-unavailable"),
    (Overloaded("told"), 503, "store-unavailable"),
    (BucketForbidden("told"), 502, "store-refused"),
    (InvalidResponse("told"), 502, "store-refused"),
    (DeadlinePassed("planted"), 504, "too-slow"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
def test_each_error_is_told_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, kind: str
) -> None:
    answer = failing(monkeypatch, error)
    problem = assert_problem(answer, status, kind)
    assert problem["deletion_id"] == str(Cleanup.objects.get().pk)
    assert ("told" in problem["detail"]) == ("told" in str(error))
    assert "planted" not in answer.content.decode()
    assert answer["Cache-Control"] == "no-store"


def test_what_nobody_foresaw_is_in_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, log: StringIO
) -> None:
    secret = conf().secret_access_key
    answer = failing(monkeypatch, ValueError(f"planted {secret}"))
    assert "Traceback" not in answer.content.decode() and secret not in answer.content.decode()
    assert "ValueError: planted" in log.getvalue() and "Traceback" in log.getvalue()
    assert secret not in log.getvalue() and REDACTED in log.getvalue()


def test_with_debug_on_it_is_told_no_more(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.DEBUG = True
    assert_problem(failing(monkeypatch, ValueError("planted")), 500, "internal-error")


def test_a_secret_in_a_message_for_people_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = failing(monkeypatch, CannotConclude(f"told {conf().secret_access_key}"))
    assert assert_problem(answer, 503, "bucket-not-ours")["detail"] == f"told {REDACTED}"


@pytest.mark.parametrize("seconds", [0, 6.5])
def test_how_long_to_wait_is_passed_on(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    answer = failing(monkeypatch, Overloaded("told", retry_after=seconds))
    assert answer.get("Retry-After") == ("7" if seconds else None)


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/deletions", "/v1/deletions/", "/v1/%00"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_address_that_there_is_not(method: str, path: str) -> None:
    answer = Client(enforce_csrf_checks=True).generic(method, f"/api{path}")
    assert_problem(answer, 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/deletions", "GET"),
        ("GET", "/projects/proj_1", "DELETE"),
        ("HEAD", "/deletions", "GET"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_nothing_answers_to(method: str, path: str, allowed: str) -> None:
    answer = ApiClient().request(method, path)
    assert (answer.status_code, answer["Allow"]) == (405, allowed)
    assert answer["Content-Type"] == PROBLEM_TYPE
    if method != "HEAD":
        assert_problem(answer, 405, "method-not-allowed")


def test_a_form_that_is_too_large(settings: Settings) -> None:
    """Django looks into it for the CSRF token."""
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 1
    come = ApiClient()
    come.client.force_login(User.objects.create_superuser("anna"))
    come.client.cookies["csrftoken"] = TOKEN
    form = "application/x-www-form-urlencoded"
    answer = come.client.post(f"{API_PATH}/doctor", "a=1&b=2", content_type=form)
    assert_problem(answer, 400, "bad-request")


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "application/x-www-form-urlencoded; charset=latin5"]
)
def test_a_form_that_cannot_be_read(kind: str) -> None:
    come = ApiClient()
    come.client.force_login(User.objects.create_superuser("anna"))
    come.client.cookies["csrftoken"] = TOKEN
    answer = come.client.generic("POST", f"{API_PATH}/doctor", "a=1", content_type=kind)
    assert_problem(answer, 400, "bad-request")


def test_the_page_about_the_api_names_each_kind() -> None:
    text = DOCS.read_text()
    for kind, (status, _title) in problems.PROBLEM_KINDS.items():
        assert f"| `{kind}` | {status} |" in text, kind
