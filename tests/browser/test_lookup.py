"""Why is a file gone? A person finds out from any page, without a mouse."""

from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from storage_audit.ui.links import lookup_url
from tests.admin_client import admin_url, url_of_cleanup
from tests.browser.accessibility import violations
from tests.browser.staff import log_in_as_superuser
from tests.promises import clean_up_project
from tests.real_bucket import Bucket

CARD_LOOK = """() => {
  const card = document.querySelector(".audit-card");
  const mark = card.querySelector(".audit-card-mark");
  return [getComputedStyle(card).borderTopStyle, getComputedStyle(mark, "::before").content];
}"""


def test_key_of_a_deleted_project_is_explained_by_keyboard_alone(
    page: Page, bucket: Bucket
) -> None:
    key = bucket.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    log_in_as_superuser(page)
    press_until_focused(page, "searchbox", "Why?")
    page.keyboard.insert_text(f"https://media.example.com/{key}?X-Amz-Signature=secret")
    page.keyboard.press("Enter")
    answer = page.get_by_text("Deleted, and confirmed gone on")
    expect(answer).to_contain_text("by a full listing of projects/proj_1/scenes/.")
    expect(page.get_by_role("link", name="Open the cleanup")).to_have_attribute(
        "href", url_of_cleanup(cleanup)
    )
    assert "secret" not in page.url + page.content()
    press_until_focused(page, "button", "Check the bucket now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("does not show the file.")).to_be_visible()
    expect(answer).to_be_visible()
    bucket.put(key)
    press_until_focused(page, "button", "Check the bucket now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Back in the bucket")).to_be_visible()


def test_reply_is_copied_and_can_be_read_without_scripts(
    page: Page, browser: Browser, address: str, bucket: Bucket
) -> None:
    key = bucket.upload("proj_1")
    clean_up_project("proj_1")
    log_in_as_superuser(page)
    page.goto(lookup_url(key))
    field = page.get_by_label("Reply for the customer")
    reply = field.input_value()
    assert "is no longer in our storage" in reply
    expect(field).not_to_be_editable()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press_until_focused(page, "button", "Copy reply")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == reply
    cookies = page.context.cookies()
    with browser.new_context(base_url=address, java_script_enabled=False) as context:
        context.add_cookies(cookies)  # type: ignore[arg-type]
        plain = context.new_page()
        plain.goto(lookup_url(key))
        expect(plain.get_by_label("Reply for the customer")).to_have_value(reply)
        expect(plain.get_by_role("button", name="Copy reply")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_three_cards_differ_by_more_than_colour(
    page: Page, bucket: Bucket, width: int, scheme: Literal["light", "dark"]
) -> None:
    key = bucket.upload("proj_1")
    clean_up_project("proj_1")
    live = bucket.upload("proj_2")
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    log_in_as_superuser(page)
    looks = set()
    for text, label in ((key, "Gone"), (live, "Still there"), ("nothing.bin", "We can't tell")):
        page.goto(lookup_url(text))
        expect(page.get_by_text(label, exact=True)).to_be_visible()
        looks.add(tuple(page.evaluate(CARD_LOOK)))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []
    borders, marks = zip(*looks, strict=True)
    assert len(set(borders)) == len(set(marks)) == 3


def test_slash_focuses_the_search_box_but_not_while_typing(page: Page) -> None:
    log_in_as_superuser(page)
    box = page.get_by_role("searchbox", name="Why?")
    expect(box).to_have_attribute("aria-keyshortcuts", "/")
    page.keyboard.press("/")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    page.goto(admin_url("cleanup"))
    search = page.locator("#searchbar")
    search.press("/")
    expect(search).to_be_focused()
    expect(search).to_have_value("/")


def test_slash_can_be_turned_off_on_all_pages(page: Page) -> None:
    log_in_as_superuser(page)
    page.goto(lookup_url(""))
    choice = page.get_by_label("The / key moves to this box on every page")
    choice.uncheck()
    assert violations(page) == []
    page.goto(admin_url("cleanup"))
    page.locator("body").press("/")
    box = page.get_by_role("searchbox", name="Why?")
    expect(box).not_to_be_focused()
    expect(box).not_to_have_attribute("aria-keyshortcuts", "/")
    page.goto(lookup_url(""))
    choice.check()
    page.goto(admin_url("cleanup"))
    page.locator("body").press("/")
    expect(box).to_be_focused()


def press_until_focused(page: Page, role: str, name: str) -> None:
    wanted = page.get_by_role(role, name=name)  # type: ignore[arg-type]
    expect(wanted).to_be_visible()
    for _key in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"no key leads to {name}")
