"""A cleanup that a limit stopped goes on when a person says so, and takes nobody else's objects."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import admin_url as path
from tests.browser.staff import (
    CLEAN_MESSAGE,
    find_row,
    log_in_as_superuser,
    reload_until,
    run_page_action,
)
from tests.promises import clean_up_project
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket


def test_blocked_cleanup_runs_when_it_is_forced(
    page: Page, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {bucket.upload("proj_10"), bucket.upload("proj_1_x")}
    keys = {bucket.upload("proj_1", f"{n}.mp4") for n in range(3)}
    Project.objects.get(pk="proj_1").delete()
    monkeypatch.setenv("CLEANUP_LIMIT_OBJECTS", "2")
    log_in_as_superuser(page)
    with Cluster(tmp_path):
        page.goto(path("cleanup", "change", Cleanup.objects.get().pk))
        reload_until(page, "No file is deleted until a person decides.")
        message = page.get_by_text(
            "This would delete 3 files (12 bytes). The safety limit is 2 files"
        )
        expect(message).to_be_visible()
        assert bucket.keys() == keys | others
        page.get_by_role("button", name="Approve: delete 3 files, 12 bytes").click()
        expect(page.get_by_text("No safety limit stops this deletion.")).to_be_visible()
        assert bucket.keys() == keys | others
        page.get_by_role("button", name="Delete 3 files, 12 bytes").click()
        reload_until(page, CLEAN_MESSAGE)
    assert bucket.keys() == others


def test_leftover_that_a_verification_finds_is_cleaned_up(
    page: Page, bucket: Bucket, worker: Cluster
) -> None:
    key, other = bucket.upload("proj_1"), bucket.upload("proj_10")
    cleanup = clean_up_project("proj_1")
    bucket.put(key)
    log_in_as_superuser(page)
    page.goto(path("cleanup", "change", cleanup.pk))
    run_page_action(page, "Verify cleanup")
    reload_until(page, "not as expected.")
    expect(find_row(page, key)).to_contain_text("different")
    page.goto(path("cleanup"))
    page.get_by_role("link", name="Clean up a deleted project").click()
    page.get_by_label("Project ID").fill("proj_1")
    page.get_by_role("button", name="Show its files").click()
    page.get_by_label("The same ID again").fill("proj_1")
    page.get_by_role("button", name="Delete the files of proj_1").click()
    reload_until(page, CLEAN_MESSAGE)
    assert bucket.keys() == {other}
