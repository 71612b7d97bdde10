"""What a person at the admin does, in a browser."""

import re

from playwright.sync_api import Locator, Page, expect


def log_in(page: Page, user: str, password: str) -> None:
    page.goto("/")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


def act_on_all(page: Page, action: str) -> None:
    """Run an action on all rows that a list shows."""
    page.get_by_role("checkbox", name="Select all").check()
    run_action(page, action)


def run_action(page: Page, action: str) -> None:
    action_select(page).select_option(label=action)
    # Django 5 calls it "Go".
    page.get_by_role("button", name=re.compile("^(Go|Run)$")).click()
    page.wait_for_load_state()


def action_select(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Action:")
