"""What people read off the overview: what a cleanup that waits is about, and what storage costs."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.test import override_settings
from django.utils import timezone
from playwright.sync_api import Locator, Page, expect

from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.dashboard.models import DailyFigures
from storage_audit.models import Project
from tests.admin_client import DASHBOARD
from tests.browser.staff import log_in_as_superuser
from tests.builders import create_cleanup, create_scan
from tests.promises import Status
from tests.real_bucket import Bucket

GB = 10**9


@pytest.fixture
def wide_page(page: Page) -> Page:
    page.set_viewport_size({"width": 1280, "height": 800})
    return page


def expect_without_scrolling(shown: Locator) -> None:
    expect(shown).to_be_in_viewport(ratio=1)


def test_cleanup_that_waits_is_understood_on_the_overview_and_cancelled_in_two_clicks(
    wide_page: Page, bucket: Bucket
) -> None:
    for n in range(3):
        bucket.upload("proj_launch", f"{n}.mp4")
    Project.objects.get(pk="proj_launch").delete()
    low = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    with override_settings(STORAGE_AUDIT=low):
        runner.run_to_end(Cleanup.objects.get().pk)
    Cleanup.objects.update(requested_by="vera")
    log_in_as_superuser(wide_page)
    wide_page.goto(DASHBOARD)
    entry = wide_page.locator(".audit-next-steps li", has_text="proj_launch")
    expect_without_scrolling(entry)
    expect(entry).to_contain_text("Requested by vera")
    expect(entry).to_contain_text("3 files")
    # One click opens it; who, how much and both answers are on its first screen.
    entry.get_by_role("link").first.click()
    for name in ("Approve", "Cancel, keep the files"):
        expect_without_scrolling(wide_page.locator(".audit-hero").get_by_text(name).first)
    expect_without_scrolling(wide_page.get_by_text("vera").first)
    # From here, as from the alert's link, two clicks decide.
    assert Cleanup.objects.get().status == Status.BLOCKED
    wide_page.get_by_role("button", name="Cancel, keep the files").click()
    wide_page.get_by_role("button", name="Cancel 1 cleanup, keep").click()
    expect(wide_page.get_by_text("Cancelled by anna on").first).to_be_visible()
    assert Cleanup.objects.get().status == Status.CANCELLED


def test_cost_and_trend_are_seen_without_scrolling(wide_page: Page, db: None) -> None:
    create_scan()
    today = timezone.localdate()
    for days_ago, size in ((0, 40), (31, 100), (62, 120)):
        DailyFigures.objects.create(
            day=today - timedelta(days=days_ago),
            taken_at=timezone.now() - timedelta(days=days_ago),
            tracked=size,
            tracked_bytes=size * GB,
            leftover=0,
            leftover_bytes=0,
        )
    for days_ago in (1, 31):
        ended = timezone.now() - timedelta(days=days_ago)
        freed = {"deleted": 1, "found": 1, "deleted_bytes": GB, "found_bytes": GB}
        create_cleanup("clean", finished_at=ended, **freed)
    log_in_as_superuser(wide_page)
    wide_page.goto(DASHBOARD)
    for text in ("a month", "less than on", "The 30 days before:", "Leftover files"):
        expect_without_scrolling(wide_page.locator(".audit-columns").get_by_text(text).first)
