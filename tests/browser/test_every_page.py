"""Whatever is in the tables: no page runs a script of it, and each can be read on a phone."""

from collections.abc import Iterator
from io import StringIO
from uuid import UUID

import pytest
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.urls import resolve, reverse
from playwright.sync_api import Page

from devtools.staff import act_on_all
from storage_audit.alerts.models import Alert
from storage_audit.cleanup import bulk, end_deletions, pause_deletions, requests, runner
from storage_audit.cleanup.admin import pause_page
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project
from storage_audit.ui.links import cleanup_url, lookup_url
from tests.admin_client import DASHBOARD
from tests.admin_client import admin_url as path
from tests.browser.accessibility import violations
from tests.browser.staff import log_in_as_superuser
from tests.held import hold_deletion
from tests.real_bucket import Bucket

# Held, undone and cancelled.
DECIDED = ("proj_held", "proj_undone", "proj_cancelled")
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
    ("r2object", "Delete selected files"),
    ("r2object", "Untrack, keep the files"),
    ("cleanup", "Force-delete"),
    ("cleanup", "Undo deletion"),
    ("cleanup", "Cancel, keep the files"),
    ("cleanup", "Erase now"),
    ("cleanup", "Clean up again"),
    ("finding", "Ignore"),
    ("finding", "Delete leftover files"),
    ("finding", "Assign to a project"),
    ("finding", "Track"),
    ("finding", "Untrack missing files"),
    ("finding", "Rename files with old names"),
]
# Those that are downloaded show no page.
LINKS = "[...document.querySelectorAll('a[href]:not([download])')].map(link => link.pathname)"


@pytest.fixture(autouse=True)
def hostile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pages that confirm a deletion say more with it.
    monkeypatch.setenv("GRACE_HOURS", "72")
    for project_id in ("proj_1", "proj_1_x", *DECIDED):
        Project.objects.create(pk=project_id, title=TITLE)
    bucket.put(*KEYS)
    call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    runner.run_to_end(requests.request_preview("proj_1")[0].pk)
    long_id = "proj_" + "x" * 200
    bucket.upload(long_id)
    Project.objects.get(pk=long_id).delete()
    cleanup = runner.run_to_end(Cleanup.objects.get(project_id=long_id).pk)
    assert cleanup.status == Cleanup.Status.CLEAN
    Alert.objects.create(kind="blocked", cleanup=cleanup, summary=TITLE.ljust(1024, "x"))
    job = BulkJob.objects.request(BulkJob.Action.VERIFY, ["proj_1", "proj_1_x"])
    for cleanup in bulk.process_next_projects(job):
        runner.run_to_end(cleanup.pk)
    held, undone, cancelled = (runner.run_to_end(hold_deletion(each).pk) for each in DECIDED)
    end_deletions.undo_deletion(undone, TITLE)
    end_deletions.cancel_deletion(cancelled, TITLE)
    assert held.is_held()


def tour(page: Page) -> Iterator[str]:
    """One page of each kind that links lead to, and those that ask before something is done."""
    kinds, ahead = set(), ["/admin/"]
    while ahead:
        page.goto(ahead.pop(0))
        yield page.url
        for link in page.evaluate(LINKS):
            kind = resolve(link).view_name
            if kind not in kinds:
                kinds.add(kind)
                ahead.append(link)
    deletions = Cleanup.objects.filter(trigger=Cleanup.Trigger.DELETED, parent=None)
    certificate = reverse(
        "admin:storage_audit_certificate", args=[deletions.get(held_until=None).pk]
    )
    decided = [
        page_of(each.pk)
        for each in deletions.filter(project_id__in=DECIDED)
        for page_of in (cleanup_url, undo_url)
    ]
    known = path("knownproject", "change", quote(DECIDED[0]))
    lookups = [lookup_url(text) for text in ("proj_1", KEYS[2], DECIDED[0], "xxxxx")]
    for address in (certificate, known, *decided, *lookups):
        page.goto(address)
        yield page.url
    for model, action in ASKING:
        page.goto(path(model))
        act_on_all(page, action)
        yield f"{page.url} {action}"
    held = deletions.get(project_id=DECIDED[0])
    page.goto(pause_page.page_url("pause", held))
    yield page.url
    pause_deletions.pause_deletions(TITLE)
    pause_deletions.pause_deletions(TITLE, held)
    for address in (DASHBOARD, cleanup_url(held.pk), pause_page.page_url("resume", None)):
        page.goto(address)
        yield f"{page.url} while paused"


def undo_url(deletion_id: UUID) -> str:
    return reverse("admin:storage_audit_undo_deletion", args=[deletion_id])


def test_on_a_phone_in_the_dark_everybody_can_read_every_page_and_no_name_runs(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    log_in_as_superuser(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 18)"
    faults = []
    for url in tour(page):
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            faults.append(f"{url}: wider than the screen")
        if page.evaluate("window.ran"):
            faults.append(f"{url}: a name ran as a script")
        faults += violations(page)
    assert not faults, "\n".join(faults)


def test_on_a_desk_in_the_light_everybody_can_read_every_page(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light")
    log_in_as_superuser(page)
    faults = [fault for _url in tour(page) for fault in violations(page)]
    assert not faults, "\n".join(faults)
