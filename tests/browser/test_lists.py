"""Lists of rows on a phone and on a desk."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.admin_client import admin_url
from tests.browser.accessibility import violations
from tests.browser.staff import log_in_as_superuser
from tests.builders import track_keys
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
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
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


LONG_KEY = "projects/proj_1/scenes/s1/media/a-take-with-quite-a-long-name-of-a-file.mp4"


def test_long_key_stays_in_one_line_and_can_be_copied_whole(page: Page, bucket: Bucket) -> None:
    track_keys(LONG_KEY, "short.mp4", project="proj_1")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    log_in_as_superuser(page)
    page.goto(admin_url("r2object"))
    key = page.locator(".audit-long-key")
    expect(key).to_have_count(1)
    assert key.get_attribute("title") == key.text_content() == LONG_KEY
    assert key.evaluate("key => key.getClientRects().length === 1 && key.clientHeight < 30")
    assert key.locator("span").last.evaluate(OVERFLOW) <= 0, "its end is shown"
    page.get_by_role("button", name=f"Copy the key: {LONG_KEY}").click()
    assert page.evaluate("navigator.clipboard.readText()") == LONG_KEY
    assert violations(page) == []


@pytest.mark.parametrize("java_script_enabled", [True, False])
def test_filters_are_folded_on_a_phone_and_open_on_a_desk(
    browser: Browser, page: Page, bucket: Bucket, java_script_enabled: bool
) -> None:
    bucket.upload("proj_1")
    log_in_as_superuser(page)
    with browser.new_context(
        base_url=page.url,
        storage_state=page.context.storage_state(),
        java_script_enabled=java_script_enabled,
    ) as context:
        other = context.new_page()
        other.goto(admin_url("finding"))
        filters, fold = (
            other.locator("#changelist-filter"),
            other.get_by_text("Filters", exact=True),
        )
        expect(filters).to_be_visible()
        expect(fold).to_be_hidden()
        other.set_viewport_size({"width": 390, "height": 844})
        expect(filters).to_be_hidden()
        fold.click()
        expect(filters).to_be_visible()
