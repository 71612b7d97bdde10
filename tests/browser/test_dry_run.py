"""A dry run shows what a deletion would do, and does nothing."""

from collections.abc import Callable

import pytest
from django.db import transaction
from playwright.sync_api import Page, expect

from storage_audit.cleanup import make_cleanups, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import admin_url as path
from tests.browser.staff import (
    find_row,
    log_in_as_superuser,
    reload_until,
    run_page_action,
    run_row_action,
)
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

RUN = "Run this plan"


def from_its_page(page: Page) -> None:
    page.goto(path("project", "change", "proj_1"))
    run_page_action(page, "Dry-run cleanup")


def from_the_list(page: Page) -> None:
    page.goto(path("project"))
    run_row_action(page, "Dry-run cleanup", "proj_1")


@pytest.mark.parametrize("ask", [from_its_page, from_the_list])
def test_plan_says_what_would_go_what_would_stay_and_why(
    page: Page, bucket: Bucket, worker: Cluster, ask: Callable[[Page], None]
) -> None:
    tracked = bucket.upload("proj_1")
    Project.objects.create(pk="proj_1_x")
    bucket.put("proj_1_s1_media.mp4", "proj_1_x_s1_media.mp4")
    before = bucket.facts()
    log_in_as_superuser(page)
    ask(page)
    reload_until(page, "Preview. Nothing was deleted.")
    expect(page.get_by_text("No safety limit would stop this plan.")).to_be_visible()
    page.locator(".audit-tabs").get_by_role("link", name="Files").click()
    for key in (tracked, "proj_1_s1_media.mp4"):
        expect(find_row(page, key)).to_contain_text("to be deleted")
    kept = find_row(page, "proj_1_x_s1_media.mp4")
    expect(kept).to_contain_text("kept")
    expect(kept).to_contain_text("The name also fits an existing project: proj_1_x.")
    expect(page.get_by_role("button", name=RUN)).to_have_count(0)
    expect(page.get_by_text("The project exists, so this plan can't be run.")).to_be_visible()
    expect(page.get_by_text("Running this plan")).to_have_count(0)
    assert bucket.facts() == before
    assert Project.objects.filter(pk="proj_1").exists()


def test_plan_is_reviewed_run_and_says_what_became_of_it(
    page: Page, bucket: Bucket, worker: Cluster
) -> None:
    """Of a project that is gone: that of a live one cannot be run."""
    changed, kept = "audio/proj_1/s1/a.mp4", "proj_1_x_s1_media.mp4"
    bucket.put(changed, "audio/proj_1/s2/b.mp4", "proj_1_s1_media.mp4", kept)
    Project.objects.create(pk="proj_1_x")
    with transaction.atomic():
        make_cleanups.enqueue_on_commit(requests.request_preview("proj_1"))
    log_in_as_superuser(page)
    page.goto(path("cleanup", "change", Cleanup.objects.get().pk))
    reload_until(page, "Preview. Nothing was deleted.")
    plan = page.locator("#plan")
    expect(find_row(page, "audio/proj_1/s1/")).to_contain_text("7 bytes")
    expect(plan).to_contain_text("The name also fits an existing project: proj_1_x.")
    bucket.put(changed, body=b"changed")
    page.get_by_role("button", name=RUN).click()
    expect(page.get_by_text("Deletes exactly these files at once.")).to_be_visible()
    assert len(bucket.keys()) == 4
    page.get_by_role("button", name="Delete 3 files, 21 bytes").click()
    reload_until(page, "Clean, some kept.")
    page.get_by_role("link", name="Plan", exact=True).click()
    expect(find_row(page, "3 files, 21 bytes")).to_contain_text("2 files, 14 bytes")
    dropped = plan.get_by_role("listitem").filter(has_text="overwritten after the plan was made.")
    expect(dropped).to_contain_text(changed)
    assert bucket.keys() == {changed, kept}
