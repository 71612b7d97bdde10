"""Steps of the site, such as its signal receivers and its hooks, change neither what pages say of a
deletion nor what was confirmed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import models, transaction
from django.db.models.signals import post_delete
from django.http import HttpRequest

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from storage_audit.projects.admin.projects import OwnerAdmin, ProjectAdmin
from tests.admin_client import (
    admin_url,
    confirm_action,
    is_page_of,
    is_page_of_all_cleanups,
    page_text,
    superuser_client,
)
from tests.api_client import client_with_token, read_json
from tests.promises import create_projects

pytestmark = pytest.mark.usefixtures("transactional_db")
Receive = Callable[[Callable[[Project], object]], None]
ACTIONS = ["delete_selected", "force_delete"]
LATER = "The deletion went through, but a later step of this site failed."


@pytest.fixture
def receive() -> Iterator[Receive]:
    """Lets the site do this after each deletion of a project."""
    connected = list[Any]()

    def connect(step: Callable[[Project], object]) -> None:
        def receiver(instance: Project, **kwargs: Any) -> None:
            step(instance)

        connected.append(receiver)
        post_delete.connect(receiver, Project)

    yield connect
    for receiver in connected:
        post_delete.disconnect(receiver, Project)


class BrokerDown(Exception): ...


def fail_after_commit(error: Exception) -> None:
    def fail() -> None:
        raise error

    transaction.on_commit(fail)


def click_delete(project_id: str) -> str:
    address = admin_url("project", "delete", project_id)
    return page_text(superuser_client().post(address, {"post": "yes"}, follow=True))


def list_projects() -> list[str]:
    return list(Project.objects.order_by("pk").values_list("pk", flat=True))


@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("error", [BrokerDown("redis"), models.ProtectedError("In use.", set())])
@pytest.mark.parametrize("action", ACTIONS)
def test_hook_that_fails_after_the_commit_does_not_call_projects_kept(
    receive: Receive,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    error: Exception,
    has_own: bool,
) -> None:
    create_projects("proj_1", "proj_2")
    receive(lambda _project: fail_after_commit(error))
    if has_own:
        stock: Any = models.Model.delete
        monkeypatch.setattr(Project, "delete", lambda project: stock(project))
    shown = confirm_action(superuser_client(), "project", action, "proj_1", "proj_2")
    assert LATER in shown and "was not deleted" not in shown and "In use" not in shown
    assert is_page_of_all_cleanups(shown)
    assert (list_projects(), LogEntry.objects.count()) == ([], 2)


@pytest.mark.parametrize("error", [BrokerDown("redis"), models.ProtectedError("In use.", set())])
def test_hook_that_fails_after_the_delete_button_does_not_call_the_project_kept(
    receive: Receive, error: Exception
) -> None:
    create_projects("proj_1")
    receive(lambda _project: fail_after_commit(error))
    shown = click_delete("proj_1")
    assert LATER in shown and "was not deleted" not in shown
    assert is_page_of(Cleanup.objects.get(), shown)
    assert not list_projects()


def test_hook_that_fails_after_a_sites_own_deletion_does_not_call_its_projects_kept(
    receive: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_queryset(pages: Any, request: HttpRequest, queryset: Any) -> None:
        OwnerAdmin.delete_queryset(pages, request, queryset)

    monkeypatch.setattr(ProjectAdmin, "delete_queryset", delete_queryset)
    create_projects("proj_1")
    receive(lambda _project: fail_after_commit(models.ProtectedError("In use.", set())))
    shown = confirm_action(superuser_client(), "project", "delete_selected", "proj_1")
    assert LATER in shown and "None of the selected projects was deleted" not in shown
    assert not list_projects()


def test_hook_that_fails_after_a_deletion_by_api_does_not_call_the_project_kept(
    receive: Receive,
) -> None:
    create_projects("proj_1")
    receive(lambda _project: fail_after_commit(models.ProtectedError("In use.", set())))
    answer = read_json(client_with_token().request("DELETE", "/projects/proj_1"), 202)
    assert answer["deletion_id"] == str(Cleanup.objects.get().pk)


def test_force_delete_skips_the_limits_only_of_confirmed_projects(receive: Receive) -> None:
    create_projects("proj_1", "proj_2", "proj_3", "proj_4", "proj_5")

    def delete_others(project: Project) -> None:
        if project.pk == "proj_1":
            Project.objects.filter(pk__in=["proj_2", "proj_3", "proj_4"]).delete()
            transaction.on_commit(Project.objects.get(pk="proj_5").delete)

    receive(delete_others)
    confirm_action(superuser_client(), "project", "force_delete", "proj_1")
    made = Cleanup.objects.values_list("project_id", "trigger", "limits_waived_by")
    others = {(f"proj_{number}", "deleted", "") for number in (2, 3, 4, 5)}
    assert set(made) == {("proj_1", "forced", "anna"), *others}


@pytest.mark.parametrize("order", [["proj_2", "proj_3", "proj_1"], ["proj_1", "proj_2", "proj_3"]])
def test_delete_button_calls_no_project_gone_because_another_one_was(
    receive: Receive, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    """As of a series whose parts go first; one part goes with another."""

    def take_along(project: Project) -> None:
        if project.pk == "proj_2":
            Project.objects.filter(pk="proj_3").delete()

    def delete_model(pages: Any, request: HttpRequest, obj: Any) -> None:
        rows = Project.objects.in_bulk()
        for project_id in order:
            OwnerAdmin.delete_model(pages, request, rows[project_id])

    monkeypatch.setattr(ProjectAdmin, "delete_model", delete_model)
    create_projects("proj_1", "proj_2", "proj_3")
    receive(take_along)
    shown = click_delete("proj_1")
    assert "Deleting the files of “proj_1” now." in shown and "already gone" not in shown
    assert not list_projects() and LogEntry.objects.get().object_id == "proj_1"
