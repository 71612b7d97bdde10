"""Lists of rows on a phone and on a desk."""

from playwright.sync_api import Page, expect

from tests.admin_client import admin_url
from tests.browser.accessibility import violations
from tests.browser.staff import log_in_as_superuser
from tests.real_bucket import Bucket

LABEL = "cell => getComputedStyle(cell, '::before').content"
OVERFLOW = "list => list.scrollWidth - list.clientWidth"
ALIGNMENT = "cell => getComputedStyle(cell).textAlign"


def test_rows_are_cards_with_labels_on_a_phone(page: Page, bucket: Bucket) -> None:
    bucket.upload("proj_1")
    page.set_viewport_size({"width": 390, "height": 844})
    log_in_as_superuser(page)
    page.goto(admin_url("r2object"))
    size = page.locator("#result_list .field-shown_size")
    assert size.evaluate(LABEL) == '"Size"'
    assert size.evaluate(ALIGNMENT) == "left"
    assert page.locator("#changelist-form .results").evaluate(OVERFLOW) <= 0
    page.locator("#action-toggle").check()
    expect(page.locator("#result_list tbody").get_by_role("checkbox")).to_be_checked()
    assert violations(page) == []
    page.goto(admin_url("bucketscan"))
    expect(page.get_by_text("No scan yet.")).to_be_visible()
    assert violations(page) == []


def test_numbers_are_right_under_right_aligned_heads_on_a_desk(page: Page, bucket: Bucket) -> None:
    bucket.upload("proj_1")
    page.set_viewport_size({"width": 1280, "height": 800})
    log_in_as_superuser(page)
    page.goto(admin_url("r2object"))
    size = page.locator("#result_list .field-shown_size")
    assert size.evaluate(LABEL) == "none"
    assert size.evaluate(ALIGNMENT) == "right"
    assert page.locator("#result_list .column-shown_size .text").evaluate(ALIGNMENT) == "right"
