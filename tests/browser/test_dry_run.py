"""A dry run shows what a deletion would do, and does nothing."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from storage_audit.models import Project
from tests.admin_client import page as path
from tests.browser.staff import act, act_on, come_as_superuser, row, watch
from tests.conftest import Bucket
from tests.test_queue import Cluster


def from_its_page(page: Page) -> None:
    page.goto(path("project", "change", "proj_1"))
    act(page, "Dry-run cleanup")


def from_the_list(page: Page) -> None:
    page.goto(path("project"))
    act_on(page, "Dry-run cleanup", "proj_1")


@pytest.mark.parametrize("ask", [from_its_page, from_the_list])
def test_plan_says_what_would_go_what_would_stay_and_why(
    page: Page, bucket: Bucket, worker: Cluster, ask: Callable[[Page], None]
) -> None:
    tracked = bucket.upload("proj_1")
    Project.objects.create(pk="proj_1_x")
    bucket.put("proj_1_s1_media.mp4", "proj_1_x_s1_media.mp4")
    before = bucket.facts()
    come_as_superuser(page)
    ask(page)
    watch(page, "This was a dry run: nothing was deleted.")
    expect(page.get_by_text("No safety limit would block it.")).to_be_visible()
    for key in (tracked, "proj_1_s1_media.mp4"):
        expect(row(page, key)).to_contain_text("to be deleted")
    kept = row(page, "proj_1_x_s1_media.mp4")
    expect(kept).to_contain_text("protected")
    expect(kept).to_contain_text("It could also belong to the live project proj_1_x.")
    assert bucket.facts() == before
    assert Project.objects.filter(pk="proj_1").exists()
