"""A browser, and everything that production has: gunicorn, a queue worker, a database, R2."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    WebError,
    expect,
)

from devtools.chromium import running_browser
from devtools.demo.site import ROOT, web_server
from tests.processes import database_url
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket


def pytest_itemcollected(item: pytest.Item) -> None:
    """These are about the pages, which Django's versions make different; and SQLite is tried with
    each of them."""
    item.add_marker(pytest.mark.only_on("sqlite"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as patch, running_browser() as running:
        # Playwright's event loop runs in this thread, so Django takes the tests for async code.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        # Other tests may run beside these.
        expect.set_options(timeout=30_000)
        yield running


@pytest.fixture(scope="package")
def static_files(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("static"))
    command = [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity=0"]
    subprocess.run(command, cwd=ROOT, env=os.environ | site_environment(folder), check=True)
    return folder


def site_environment(static_files: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "tests.browser.settings",
        "DATABASE_URL": database_url(),
        "ALLOWED_HOSTS": "127.0.0.1",
        "HTTPS": "false",
        "STATIC_ROOT": static_files,
    }


@pytest.fixture
def address(
    bucket: Bucket, static_files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where gunicorn serves the site. One for each test, as it remembers what it has read of
    the database."""
    for name, value in site_environment(static_files).items():
        monkeypatch.setenv(name, value)
    with web_server(tmp_path) as (address, web):
        yield address
        print(web.tail())  # noqa: T201


@pytest.fixture
def worker(bucket: Bucket, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture
def complaints() -> list[str]:
    """What the browser finds wrong. Whatever is left here at the end fails the test."""
    return []


@pytest.fixture
def page(browser: Browser, address: str, complaints: list[str]) -> Iterator[Page]:
    """Nobody is signed in yet."""
    with browser.new_context(base_url=address) as context:
        collect_complaints(context, complaints)
        yield context.new_page()
    assert not complaints, "\n".join(complaints)


def collect_complaints(context: BrowserContext, complaints: list[str]) -> None:
    def console(message: ConsoleMessage) -> None:
        """Also what was refused or not answered well."""
        if message.type in ("error", "warning"):
            complaints.append(f"{message.text} {message.location['url']}")

    def error(error: WebError) -> None:
        complaints.append(str(error.error))

    context.on("console", console)
    context.on("weberror", error)
