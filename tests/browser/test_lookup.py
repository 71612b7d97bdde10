"""Why is a file gone? A person finds out from any page, without a mouse."""

from playwright.sync_api import Page, expect

from tests.browser.staff import log_in_as_superuser
from tests.promises import clean_up_project
from tests.real_bucket import Bucket


def test_key_of_a_deleted_project_is_explained_by_keyboard_alone(
    page: Page, bucket: Bucket
) -> None:
    key = bucket.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    log_in_as_superuser(page)
    press_until_focused(page, "searchbox", "Why?")
    page.keyboard.insert_text(f"https://media.example.com/{key}?X-Amz-Signature=secret")
    page.keyboard.press("Enter")
    answer = page.get_by_text(f"Deleted by cleanup {cleanup.pk}, and seen gone on")
    expect(answer).to_contain_text("by a complete listing of projects/proj_1/scenes/.")
    assert "secret" not in page.url + page.content()
    press_until_focused(page, "button", "Look into the bucket now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("does not show it, as of")).to_be_visible()
    expect(answer).to_be_visible()
    bucket.put(key)
    press_until_focused(page, "button", "Look into the bucket now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It is in the bucket again")).to_be_visible()


def press_until_focused(page: Page, role: str, name: str) -> None:
    wanted = page.get_by_role(role, name=name)  # type: ignore[arg-type]
    expect(wanted).to_be_visible()
    for _key in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"no key leads to {name}")
