"""Secrets are planted in all that the store says, and looked for in everything that is written."""

import gzip
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from html import unescape
from io import StringIO
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from botocore.exceptions import ClientError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from django_q.tasks import async_task
from pytest_django import Settings

from autoshorts import urls
from devtools.environment import made_up_environment
from devtools.http_reply import Reply
from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import requests, retention
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.conf import conf
from storage_audit.ownership.bucket_marker import MARKER_KEY
from storage_audit.redaction import REDACTED
from tests.admin_client import superuser_client
from tests.database import list_stored_values
from tests.faults import matching
from tests.faults.kinds import error_xml, reply_per_key
from tests.faults.matching import Matches, is_anything, rule_for
from tests.faults.proxy import FaultyStore, Forward, Request, Rule
from tests.network import faulty_network
from tests.paths import ROOT
from tests.promises import request_cleanup, run_again
from tests.real_bucket import Bucket
from tests.run_command import run_command
from tests.site.pages import list_pages

SIGNING, FORMER = "planted-secret-key", "planted-former-secret-key"
# What nobody can know but by its form.
FORMS = ("planted-signature", "planted-token", "planted-password", "planted-bearer")


@pytest.fixture
def store(world: Bucket, settings: Settings) -> Iterator[FaultyStore]:
    """What answers the application in the world."""
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = SIGNING, [FORMER]
    settings.ROOT_URLCONF = __name__
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 1000}
    with faulty_network(world.r2) as running:
        yield running


@pytest.fixture
def log(world: Bucket, caplog: pytest.LogCaptureFixture) -> Iterator[StringIO]:
    """What the project's log holds when everybody is told to say all."""
    (console,) = (handler for handler in logging.root.handlers if handler.name == "console")
    handler = logging.StreamHandler(StringIO())
    handler.setFormatter(console.formatter)
    caplog.set_level(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, "django.request"):
        logging.root.addHandler(handler)
        yield handler.stream
        logging.root.removeHandler(handler)


def secrets() -> tuple[str, ...]:
    store = (conf().access_key_id, conf().secret_access_key)
    return (*store, SIGNING, FORMER, *FORMS)


def tells(request: Request) -> str:
    """The worst that a store could say of a request: all that it was sent, and more."""
    credentials = f"{conf().access_key_id} {conf().secret_access_key} {SIGNING} {FORMER}"
    return (
        f"{credentials} {quote(credentials)} Authorization: {request.headers['Authorization']}\n"
        "https://h/b/k?X-Amz-Credential=planted-token%2F2026&X-Amz-Signature=planted-signature"
        "&X-Amz-Security-Token=planted-token postgres://user:planted-password@h/name"
        " {'Authorization': 'Bearer planted-bearer'} PASSWORD=planted-password"
    )


def refuses(request: Request, forward: Forward) -> Reply:
    text = f"<Code>AccessDenied</Code><Message>{escape(tells(request))}</Message>"
    return Reply(403, f"<Error>{text}</Error>".encode())


def refuses_each_key(request: Request, forward: Forward) -> Reply:
    why = f"<Code>InternalError</Code><Message>{escape(tells(request))}</Message>"
    return reply_per_key(request, lambda key: f"<Error><Key>{key}</Key>{why}</Error>")


def upload(request: HttpRequest) -> HttpResponse:
    """A view of an adopter, which knows nothing of the store."""
    return HttpResponse(default_storage.save("notes/a.txt", ContentFile(b"content")))


urlpatterns = [path("upload/", upload), *urls.urlpatterns]


# Which requests are refused, and what is said.
STAGES: list[tuple[Matches, Rule]] = [
    (matching.is_marker, refuses),
    (matching.is_listing, refuses),
    (matching.is_uploads_listing, refuses),
    (matching.is_delete_batch, refuses),
    (matching.is_delete_batch, refuses_each_key),
    (matching.is_delete_single, refuses),
    (lambda request: matching.is_plain(request, "PUT"), refuses),
    (lambda request: matching.is_plain(request, "HEAD"), refuses),
]


def a_bad_day(store: FaultyStore, bucket: Bucket) -> list[Cleanup]:
    """An upload, a deletion and a cleanup while one kind of request is refused, and the next."""
    made = []
    for number, (matches, rule) in enumerate(STAGES):
        project_id = f"proj_day{number}"
        for filename in ("take.mp4", "\x01take.mp4"):
            bucket.upload(project_id, filename)
        store.rules[:] = [rule_for(matches, rule)]
        with suppress(ClientError, StoreError):
            default_storage.save("notes/a.txt", ContentFile(b"a"))
        with suppress(ClientError, StoreError):
            default_storage.delete("notes/b.txt")
        made.append(request_cleanup(project_id))
        async_task("storage_audit.tasks.run_cleanup", str(made[-1].pk), sync=True)
        store.rules.clear()
    return made


def assert_no_secret(where: str, text: str) -> None:
    for secret in secrets():
        for form in (secret, quote(secret)):
            assert form not in text, where


def everything_shown() -> Iterator[tuple[str, str]]:
    client = superuser_client()
    for each in list_pages():
        yield each.url, unescape(b"".join(client.get(each.url)).decode())
    for cleanup in Cleanup.objects.all():
        url = f"/admin/storage_audit/cleanup/{cleanup.pk}/change/"
        yield url, unescape(client.get(url).content.decode())


def test_no_secret_is_in_a_table_on_a_page_or_in_the_log(
    store: FaultyStore, world: Bucket, log: StringIO
) -> None:
    a_bad_day(store, world)
    assert Cleanup.objects.filter(message__contains="AccessDenied").exists()
    for model in (CleanupEvent, CleanupItem):
        text = "message" if model is CleanupEvent else "store_answer"
        assert model._base_manager.filter(**{f"{text}__contains": REDACTED}).exists()
    assert REDACTED in log.getvalue()
    for where, text in (*list_stored_values(), *everything_shown(), ("log", log.getvalue())):
        assert_no_secret(where, text)
    assert_no_secret("marker", repr(world.r2.read(MARKER_KEY)))


def test_no_secret_is_in_an_archive(store: FaultyStore, world: Bucket, tmp_path: Path) -> None:
    made = [cleanup.pk for cleanup in a_bad_day(store, world)]
    for cleanup in Cleanup.objects.filter(pk__in=made).exclude(next_attempt_at=None):
        assert run_again(cleanup).status == Cleanup.Status.CLEAN
    Cleanup.objects.filter(parent__in=made).delete()
    # The application's own deletions end too, where their requests are not refused.
    closed = set(Cleanup.objects.exclude(finished_at=None).values_list("pk", flat=True))
    pruned = retention.prune_cleanups(tmp_path, timezone.now() + timedelta(days=1))
    assert {cleanup.pk for cleanup in pruned} == closed > set(made)
    for file in tmp_path.glob("*.gz"):
        with gzip.open(file, "rt") as archive:
            assert_no_secret(file.name, archive.read())


COMMANDS = (
    "backfill_r2",
    "backfill_r2 --json",
    "connect_bucket",
    "connect_bucket --take-over",
    "cleanup_project proj_9 --declare-deleted --sync",
    "cleanup_project proj_1 --dry-run --json",
    "sweep_cleanups --sync",
    "verify_cleanup proj_1",
    "verify_cleanup proj_1 --json",
)


def test_no_command_prints_a_secret(
    store: FaultyStore, log: StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    requests.request_preview("proj_1")
    store.rules[:] = [rule_for(is_anything, refuses)]
    for command in COMMANDS:
        out, err, code = run_command(*command.split())
        assert_no_secret(command, "".join((out, err, *capfd.readouterr())))
        assert code == (0 if command == "sweep_cleanups --sync" else 1)
        assert REDACTED in out + err, command
    assert_no_secret("log", log.getvalue())


def test_a_failing_page_tells_nothing_and_its_traceback_no_secret(
    store: FaultyStore, log: StringIO
) -> None:
    store.rules[:] = [rule_for(is_anything, refuses)]
    client = Client(raise_request_exception=False)
    answer = client.get("/upload/")
    assert answer.status_code == 500
    assert len(answer.content) < 200
    assert "Traceback" in log.getvalue()
    assert_no_secret("log", log.getvalue())
    for address in ("/health/", "/health/worker/"):
        assert_no_secret(address, client.get(address).content.decode())


def test_the_page_for_developers_shows_no_secret_of_ours(
    store: FaultyStore, settings: Settings
) -> None:
    settings.DEBUG = True
    store.rules[:] = [rule_for(is_anything, Reply(403, error_xml("AccessDenied")))]
    answer = Client(raise_request_exception=False).get("/upload/")
    assert answer.status_code == 500
    shown = unescape(answer.content.decode())
    assert "ClientError" in shown and "SECRET_ACCESS_KEY" in shown
    for text in (shown, repr(conf())):
        assert_no_secret("page", text)


def test_the_page_for_developers_hides_the_password_of_an_address(
    store: FaultyStore, settings: Settings
) -> None:
    """Django goes by names, and refuses such an address only once the page is asked for."""
    url = "https://user:planted-password@store.example"
    given = {"ENDPOINT_URL": url, "NOTIFY_SITE_URL": url}
    settings.DEBUG, settings.STORAGE_AUDIT = True, settings.STORAGE_AUDIT | given
    # As with `runserver`, which passes its environment on.
    client = Client(raise_request_exception=False, DATABASE_URL=url, HTTPS_PROXY=url)
    answer = client.get("/upload/")
    assert answer.status_code == 500
    shown = unescape(answer.content.decode())
    assert "ImproperlyConfigured" in shown and "NOTIFY_SITE_URL" in shown
    assert "planted-password" not in shown
    for secret in (settings.STORAGE_AUDIT["SECRET_ACCESS_KEY"], SIGNING):
        assert secret not in shown


@pytest.mark.parametrize("command", ["sweep_cleanups", "migrate"])
def test_a_process_that_finds_no_database_keeps_its_password(command: str) -> None:
    url = "postgres://user:planted-password@127.0.0.1:1/name"
    environment = os.environ | made_up_environment() | {"DATABASE_URL": url}
    argv = [sys.executable, str(ROOT / "manage.py"), *command.split()]
    ended = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode
    assert "127.0.0.1" in ended.stderr
    for secret in ("planted-password", environment["SECRET_KEY"]):
        assert secret not in ended.stdout + ended.stderr
