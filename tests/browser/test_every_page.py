"""Whatever is in the tables: no page runs a script of it, and each can be read on a phone."""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.urls import resolve
from playwright.sync_api import Page

from devtools.staff import act_on_all
from storage_audit.audit import cleanup, requests
from storage_audit.models import Project
from tests.admin_client import page as path
from tests.browser.staff import come_as_superuser
from tests.conftest import Bucket

RUN = "window.ran = true"
IMAGE = f"<img src=x onerror='{RUN}'>"
HOSTILE = f"<script>{RUN}</script>{IMAGE}\x01\x1b\u202e\t"
TITLE = HOSTILE.ljust(200, "x")
KEYS = [
    start + "x" * (1024 - len(start.encode()))
    for start in (
        HOSTILE,
        f"proj_1_x_{HOSTILE}",
        f"projects/proj_1/scenes/s1/media/{HOSTILE}",
        f"projects/proj_1/scenes/s1/media/{IMAGE}",
    )
]
ASKING = [
    ("project", "Delete selected projects"),
    ("project", "Force-delete"),
    ("r2object", "Delete selected R2 objects"),
    ("r2object", "Untrack, and keep the objects"),
    ("cleanupoperation", "Force-delete"),
    ("finding", "Acknowledge"),
    ("finding", "Delete orphans"),
    ("finding", "Adopt into a project"),
    ("finding", "Track"),
    ("finding", "Remove the rows of missing objects"),
    ("finding", "Rename misnamed objects"),
]
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


@pytest.fixture(autouse=True)
def hostile(bucket: Bucket) -> None:
    for project_id in ("proj_1", "proj_1_x"):
        Project.objects.create(pk=project_id, title=TITLE)
    bucket.put(*KEYS)
    call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    cleanup.run(requests.dry_run("proj_1")[0].pk)


def tour(page: Page) -> Iterator[str]:
    """One page of each kind that links lead to, and those that ask before something is done."""
    kinds, ahead = set(), ["/admin/"]
    while ahead:
        page.goto(ahead.pop(0))
        yield page.url
        for link in page.evaluate("[...document.links].map(link => link.pathname)"):
            kind = resolve(link).view_name
            if kind not in kinds:
                kinds.add(kind)
                ahead.append(link)
    for model, action in ASKING:
        page.goto(path(model))
        act_on_all(page, action)
        yield f"{page.url} {action}"


def test_no_name_runs_as_a_script(page: Page) -> None:
    come_as_superuser(page)
    ran = [url for url in tour(page) if page.evaluate("window.ran")]
    assert not ran, "\n".join(ran)


def test_every_page_can_be_read_on_a_phone_in_the_dark(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    come_as_superuser(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 18)"
    faults = []
    for url in tour(page):
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            faults.append(f"{url}: wider than the screen")
        faults += [f"{url}: pale: {text}" for text in page.evaluate(CONTRAST)]
    assert not faults, "\n".join(faults)
