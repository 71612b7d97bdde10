"""What else a person at the admin does."""

import time
from functools import cache

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Permission, User
from playwright.sync_api import Locator, Page

from devtools.staff import action_select, log_in, run_action
from tests.admin_client import VIEW_PERMISSIONS

PASSWORD = "correct horse battery staple"


def log_in_as_superuser(page: Page) -> None:
    log_in_as(page, User(username="anna", is_staff=True, is_superuser=True))


def log_in_as_viewer(page: Page) -> User:
    """As one who may look at everything, and do nothing."""
    user = User(username="ben", is_staff=True)
    log_in_as(page, user)
    return user


def log_in_as(page: Page, user: User) -> None:
    user.password = hashed_password()
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=VIEW_PERMISSIONS))
    log_in(page, user.username, PASSWORD)


# Half a second each time.
@cache
def hashed_password() -> str:
    return make_password(PASSWORD)


def run_page_action(page: Page, action: str) -> None:
    """On the page of a row. Django has actions there since 6.1; before, we bring buttons."""
    if action_select(page).count():
        run_action(page, action)
    else:
        page.get_by_role("button", name=action).click()


def run_row_action(page: Page, action: str, name: str) -> None:
    """On a row of a list."""
    find_row(page, name).get_by_role("checkbox").check()
    run_action(page, action)


def find_row(page: Page, name: str) -> Locator:
    """The row of a table that has a cell with just this text."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def reload_until(page: Page, sentence: str) -> None:
    """Reload until the page says so, as it asks a person to do."""
    deadline = time.monotonic() + 60
    while page.get_by_text(sentence).count() == 0:
        assert time.monotonic() < deadline, page.get_by_role("main").inner_text()
        time.sleep(0.2)
        page.reload()


CLEAN_MESSAGE = "gone, confirmed"
CLICKS = "Number(localStorage.clicks || 0)"
COUNT_CLICKS = f"addEventListener('click', () => {{ localStorage.clicks = {CLICKS} + 1 }}, true)"
# Without text for screen readers only, and without the options of closed lists.
READ_VISIBLE_TEXT = """() => {
  const unseen = [...document.querySelectorAll("#content :is(.visually-hidden, select)")];
  unseen.forEach((each) => { each.style.display = "none"; });
  const text = document.querySelector("#content").innerText;
  unseen.forEach((each) => { each.style.display = ""; });
  return text;
}"""


def count_words(page: Page) -> int:
    text: str = page.evaluate(READ_VISIBLE_TEXT)
    return len(text.split())


# Of the page as it opens: what a person reads before scrolling.
COUNT_WORDS_IN_VIEW = """() => {
  const walker = document.createTreeWalker(
    document.querySelector("#content"), NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  let words = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement;
    if (parent.closest(".visually-hidden, select") || !parent.checkVisibility()) continue;
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect();
    if (!box.width || box.top >= innerHeight || box.bottom <= 0) continue;
    words += text.data.split(/\\s+/).filter(Boolean).length;
    // It goes on with the word before the place where a key may wrap.
    if (text.previousSibling?.nodeName === "WBR" && /^\\S/.test(text.data)) words -= 1;
  }
  return words;
}"""


def count_words_in_view(page: Page) -> int:
    words: int = page.evaluate(COUNT_WORDS_IN_VIEW)
    return words
