"""The address and the search of projects lead to the cleanup of one that is gone."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from pytest_django.fixtures import Settings

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import (
    admin_url,
    is_page_of,
    page_text,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.held import delete_held, grant_grace
from tests.promises import create_projects

pytestmark = pytest.mark.usefixtures("transactional_db")
FOUND = "Deleted project found: "


def delete_project(project_id: str = "proj_1") -> Cleanup:
    create_projects(project_id)
    Project.objects.get(pk=project_id).delete()
    return Cleanup.objects.get(project_id=project_id)


def search(client: Client, text: str) -> str:
    return page_text(client.get(admin_url("project"), {"q": text}))


def client_without(permission: str) -> Client:
    client = staff_client("delete_project")
    view = Permission.objects.get(codename=permission)
    User.objects.get(username="ben").user_permissions.remove(view)
    return client


@pytest.mark.parametrize("page", ["change", "delete", "history"])
def test_address_of_a_deleted_project_leads_to_its_last_cleanup(page: str) -> None:
    delete_project()
    create_projects("proj_1")
    Project.objects.get().delete()
    last = Cleanup.objects.latest("created_at")
    shown = page_text(superuser_client().get(admin_url("project", page, "proj_1"), follow=True))
    assert is_page_of(last, shown)
    assert "The project proj_1 was deleted. This is its cleanup." in shown


def test_address_of_an_unknown_project_is_answered_as_by_django() -> None:
    for project_id in ("proj_9", "<b>", "a\0b"):
        url = admin_url("project", "change", project_id)
        shown = page_text(superuser_client().get(url, follow=True))
        assert "doesn’t exist" in shown and "<b>" not in shown


def test_address_of_a_deleted_project_is_kept_from_people_who_may_not_view_cleanups() -> None:
    delete_project()
    client = client_without("view_cleanup")
    shown = page_text(client.get(admin_url("project", "change", "proj_1"), follow=True))
    assert "doesn’t exist" in shown
    assert FOUND not in search(client, "proj_1")


def test_address_by_another_key_than_the_id_leads_to_no_other_projects_cleanup(
    settings: Settings,
) -> None:
    delete_project()
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": "title"}
    shown = page_text(superuser_client().get(admin_url("project", "change", "proj_1"), follow=True))
    assert "doesn’t exist" in shown


def test_search_for_the_id_of_a_deleted_project_links_to_its_cleanup() -> None:
    cleanup, other = delete_project(), delete_project("proj_12")
    shown = search(superuser_client(), " proj_1 ")
    assert f'{FOUND}<a href="{url_of_cleanup(cleanup)}">proj_1</a>' in shown
    assert url_of_cleanup(other) not in shown


def test_search_for_the_title_of_a_deleted_project_links_to_its_cleanup(
    settings: Settings,
) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    Project.objects.update(title="<Autumn> sale")
    cleanup = delete_held()
    link = f'<a href="{url_of_cleanup(cleanup)}">&lt;Autumn&gt; sale (proj_1)</a>'
    assert FOUND + link in search(superuser_client(), "autumn")


def test_search_finds_no_cleanup_of_a_project_that_exists() -> None:
    delete_project()
    create_projects("proj_1")
    assert FOUND not in search(superuser_client(), "proj_1")


def test_many_deleted_projects_of_a_name_are_five_links_and_one_to_all(settings: Settings) -> None:
    grant_grace(settings)
    create_projects(*(f"proj_{n}" for n in range(7)))
    Project.objects.update(title="Sale")
    for project in Project.objects.all():
        project.delete()
    shown = search(superuser_client(), "sale")
    assert "Deleted projects found: " in shown
    assert sum(url_of_cleanup(each) in shown for each in Cleanup.objects.all()) == 5
    assert f'<a href="{admin_url("cleanup")}?q=sale">2 more</a>' in shown


@pytest.mark.parametrize("text", ["a\0b", "\udc80", "x" * 2_000])
def test_search_for_any_text_shows_the_list(text: str) -> None:
    answer: Any = superuser_client().get(
        admin_url("project") + "?q=" + text.replace("\0", "%00").replace("\udc80", "%ED%B2%80")
    )
    assert answer.status_code in (200, 302)
