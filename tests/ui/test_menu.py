"""The menu of our admin, and of a site of an adopter."""

import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client, RequestFactory
from django.urls import clear_url_caches, path, reverse
from pytest_django import Settings

from storage_audit.projects.admin import OwnerAdmin
from storage_audit.roles import ROLES, make_groups
from storage_audit.ui.menu import MenuAdminSite
from tests.admin_client import DASHBOARD, admin_url, client_for, page_text, superuser_client
from tests.admin_client import staff_client as client_of_staff

ENTRIES = [
    "Overview",
    "Projects",
    "Cleanups",
    "Leftover files",
    "Files",
    "Scans",
    "Health & alerts",
]
pytestmark = pytest.mark.django_db


def show_menu(client: Client, url: str = DASHBOARD) -> list[tuple[str, list[str]]]:
    shown: Any = client.get(url).context["available_apps"]
    return [(app["name"], [each["name"] for each in app["models"]]) for app in shown]


def marked_entries(client: Client, url: str) -> list[str]:
    menu = page_text(client.get(url)).partition('id="nav-sidebar"')[2].partition("</nav>")[0]
    return re.findall(r'aria-current="page">([^<]*)<', menu)


def member_of(group: str) -> Client:
    # Tests that empty the tables have taken the groups away.
    make_groups(apps, connection.alias)
    user = User.objects.create_user("vera", is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    return client_for(user)


def test_menu_has_seven_entries_and_then_the_settings() -> None:
    menu = show_menu(superuser_client())
    assert menu[0] == ("Storage audit", ENTRIES)
    assert menu[1] == ("Settings", ["API tokens", "Groups", "Users"])
    assert menu[2][0] == "Django Q"


@pytest.mark.parametrize("group", ROLES)
def test_staff_have_the_seven_entries_and_not_the_queue(group: str) -> None:
    settings = [("Settings", ["API tokens"])] if group == "Storage admin" else []
    assert show_menu(member_of(group)) == [("Storage audit", ENTRIES), *settings]


def test_queue_is_hidden_even_from_staff_who_may_view_it() -> None:
    client = client_of_staff("view_ormq", "view_success")
    assert [name for name, _entries in show_menu(client)] == ["Storage audit"]
    assert client.get(reverse("admin:django_q_ormq_changelist")).status_code == 200


def test_entries_that_a_person_may_not_view_are_absent() -> None:
    found = dict(show_menu(client_of_staff()))["Storage audit"]
    assert found == ["Overview", "Projects", "Cleanups", "Files"]


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        (DASHBOARD, "Overview"),
        (admin_url("cleanup"), "Cleanups"),
        (reverse("admin:storage_audit_leftovers"), "Leftover files"),
        (admin_url("alert"), "Health &amp; alerts"),
        (admin_url("healthreport"), "Health &amp; alerts"),
        (admin_url("bucketscan", "add"), "Scans"),
    ],
)
def test_entry_of_the_page_is_marked_and_no_other(url: str, entry: str) -> None:
    assert marked_entries(superuser_client(), url) == [entry]


@pytest.mark.parametrize("model", ["finding", "bulkjob", "knownproject", "alert", "apitoken"])
def test_lists_without_an_entry_are_linked_on_the_overview(model: str) -> None:
    main = page_text(superuser_client().get(DASHBOARD)).partition('id="content"')[2]
    assert f'href="{admin_url(model)}"' in main


def test_adopters_model_has_the_entry_of_projects(settings: Settings) -> None:
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    site = MenuAdminSite()
    for model, model_admin in admin.site._registry.items():
        site.register(model, OwnerAdmin if model is Group else type(model_admin))
    request = RequestFactory().get("/")
    request.user = superuser_client().get("/admin/").context["user"]
    apps = {app["name"]: app["models"] for app in site.get_app_list(request)}
    assert [each["name"] for each in apps["Storage audit"]][:3] == [
        "Overview",
        "Groups",
        "Cleanups",
    ]


def test_site_without_the_menu_has_the_list_of_django() -> None:
    site = admin.AdminSite()
    for model, model_admin in admin.site._registry.items():
        site.register(model, type(model_admin))
    request = RequestFactory().get("/")
    request.user = superuser_client().get("/admin/").context["user"]
    names = [app["name"] for app in site.get_app_list(request)]
    assert "Settings" not in names and "Django Q" in names


@pytest.fixture
def site_urls(settings: Settings) -> Iterator[Callable[[admin.AdminSite], None]]:
    """Serves an admin site instead of the default one."""
    module: Any = ModuleType("other_urls")

    def serve(site: admin.AdminSite) -> None:
        module.urlpatterns = [path("admin/", site.urls)]
        settings.ROOT_URLCONF = module.__name__
        clear_url_caches()

    sys.modules[module.__name__] = module
    yield serve
    del sys.modules[module.__name__]
    clear_url_caches()


@pytest.mark.parametrize("kind", [MenuAdminSite, admin.AdminSite])
@pytest.mark.parametrize("without", ["Alert", "HealthReport", "Finding", "BucketScan"])
def test_site_without_one_of_our_models_shows_the_others(
    site_urls: Callable[[admin.AdminSite], None], kind: type[admin.AdminSite], without: str
) -> None:
    # The name of the default site, as Django gives it.
    site = kind()
    for model, model_admin in admin.site._registry.items():
        if model._meta.object_name != without:
            site.register(model, type(model_admin))
    site_urls(site)
    client = superuser_client()
    lists = {"Alert": "alert", "HealthReport": "healthreport", "Finding": "finding"}
    shown = [DASHBOARD, "/admin/"]
    shown += [admin_url(model) for name, model in lists.items() if name != without]
    for url in shown:
        assert client.get(url).status_code == 200, url
