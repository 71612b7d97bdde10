"""Chromium, or Chrome, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

BROWSER_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It calls home whatever its other flags say. With these it reaches only the loopback interface.
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server"]


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSER_PROGRAMS)), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=OFFLINE)
        try:
            yield browser
        finally:
            browser.close()
