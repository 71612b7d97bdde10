"""What else a person at the admin does."""

import time
from functools import cache

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Permission, User
from playwright.sync_api import Locator, Page

from devtools.staff import actions, log_in, run
from tests.admin_client import LOOK

PASSWORD = "correct horse battery staple"


def come_as_superuser(page: Page) -> None:
    come(page, User(username="anna", is_staff=True, is_superuser=True))


def come_to_look(page: Page) -> User:
    """As one who may look at everything, and do nothing."""
    user = User(username="ben", is_staff=True)
    come(page, user)
    return user


def come(page: Page, user: User) -> None:
    user.password = hashed_password()
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=LOOK))
    log_in(page, user.username, PASSWORD)


# Half a second each time.
@cache
def hashed_password() -> str:
    return make_password(PASSWORD)


def act(page: Page, action: str) -> None:
    """On the page of a row. Django has actions there since 6.1; before, we bring buttons."""
    if actions(page).count():
        run(page, action)
    else:
        page.get_by_role("button", name=action).click()


def act_on(page: Page, action: str, name: str) -> None:
    """On a row of a list."""
    row(page, name).get_by_role("checkbox").check()
    run(page, action)


def row(page: Page, name: str) -> Locator:
    """The row of a table that has a cell with just this text."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def watch(page: Page, sentence: str) -> None:
    """Reload until the page says so, as it asks a person to do."""
    deadline = time.monotonic() + 60
    while page.get_by_text(sentence).count() == 0:
        assert time.monotonic() < deadline, page.get_by_role("main").inner_text()
        time.sleep(0.2)
        page.reload()


GONE = "Done: complete listings of the bucket show none of its objects any more."
