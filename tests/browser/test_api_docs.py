"""The interactive page about the API works under the site's own policy, with the session."""

from playwright.sync_api import Page, expect

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.browser.staff import log_in_as_superuser
from tests.real_bucket import Bucket

DOCS, DARK = "/api/docs", "rgb(28, 32, 34)"


def try_out(page: Page, name: str, **values: str) -> None:
    block = page.locator(".opblock", has_text=name).first
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    for field, value in values.items():
        block.get_by_placeholder(field).fill(value)
    block.get_by_role("button", name="Execute").click()


def test_staff_read_the_docs_and_try_them_out(page: Page, bucket: Bucket) -> None:
    bucket.upload("proj_1")
    log_in_as_superuser(page)
    page.goto(DOCS)
    expect(page.get_by_role("heading", name="Storage audit")).to_be_visible()
    try_out(page, "/api/v1/projects/{project_id}", project_id="proj_1")
    status = page.locator(".live-responses-table tbody .response-col_status")
    expect(status).to_contain_text("202")
    assert not Project.objects.exists()
    cleanup = Cleanup.objects.get()
    assert cleanup.requested_by == "anna"
    assert cleanup.origin.startswith("web, ")


def test_the_docs_can_be_read_on_a_phone_in_the_dark(page: Page) -> None:
    log_in_as_superuser(page)
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.goto(DOCS)
    page.locator(".opblock-summary-control").first.click()
    expect(page.locator(".responses-wrapper").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor") == DARK
