"""From a click to the proof: a project is deleted, an object is, a row is only forgotten."""

from playwright.sync_api import Page, expect

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from tests.admin_client import admin_url as path
from tests.browser.staff import (
    CLEAN_MESSAGE,
    find_row,
    log_in_as_superuser,
    reload_until,
    run_page_action,
    run_row_action,
)
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

OTHER = "projects/proj_10/scenes/s1/media/other.mp4"


def test_deleted_project_is_followed_to_the_proof_that_its_objects_are_gone(
    page: Page, bucket: Bucket, worker: Cluster
) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4", OTHER)
    log_in_as_superuser(page)
    page.goto(path("project"))
    page.get_by_role("link", name="Delete proj_1", exact=True).click()
    expect(page.get_by_text("R2: 1 file, 4 bytes, and any others")).to_be_visible()
    page.get_by_role("button", name="Delete project and 1 file").click()
    reload_until(page, CLEAN_MESSAGE)
    expect(page.locator('#totals div[data-name="deleted"]')).to_contain_text("2 11 bytes")
    assert bucket.keys() == {OTHER}
    run_page_action(page, "Verify cleanup")
    reload_until(page, "Verified. The bucket is as expected.")


def test_deleted_row_takes_its_object_along(page: Page, bucket: Bucket, worker: Cluster) -> None:
    gone, kept = bucket.upload("proj_1", "gone.mp4"), bucket.upload("proj_1", "kept.mp4")
    log_in_as_superuser(page)
    page.goto(path("r2object"))
    run_row_action(page, "Delete selected files", gone)
    expect(page.get_by_text("This deletes 1 file (")).to_be_visible()
    page.get_by_role("button", name="Delete 1 file").click()
    reload_until(page, CLEAN_MESSAGE)
    assert bucket.keys() == {kept}
    assert R2Object.objects.get().key == kept
    assert Project.objects.exists()


def test_untracked_row_leaves_its_object(page: Page, bucket: Bucket) -> None:
    forgotten, kept = bucket.upload("proj_1", "a.mp4"), bucket.upload("proj_1", "b.mp4")
    log_in_as_superuser(page)
    page.goto(path("r2object"))
    run_row_action(page, "Untrack, keep the files", forgotten)
    page.get_by_role("button", name="Untrack 1 file").click()
    expect(page.get_by_text("Untracked 1 file. It is still in R2")).to_be_visible()
    expect(find_row(page, forgotten)).to_have_count(0)
    assert R2Object.objects.get().key == kept
    assert bucket.keys() == {forgotten, kept}
    assert not Cleanup.objects.exists()
