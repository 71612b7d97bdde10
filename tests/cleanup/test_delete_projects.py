"""Each way to delete projects deletes the same ones, and says the truth about each."""

from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import models, transaction
from django.db.models.signals import post_delete, pre_delete
from django.http import HttpRequest
from pytest_django import Settings

from storage_audit.cleanup.delete_projects import delete_project, delete_projects
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project
from storage_audit.project_model import ProjectExists
from storage_audit.projects.admin.projects import OwnerAdmin, ProjectAdmin
from storage_audit.request_origin import Origin, use_origin
from storage_audit.tasks import run_job
from tests.admin_client import (
    admin_url,
    confirm_action,
    is_page_of,
    is_page_of_all_cleanups,
    page_text,
    superuser_client,
)
from tests.api_client import assert_problem, client_with_token
from tests.database import THREAD_TIMEOUT_SECONDS, run_in_thread, wait_for_blocked_query
from tests.owner_models import create_table
from tests.promises import create_projects

pytestmark = pytest.mark.usefixtures("transactional_db")
Delete = Callable[[Any], Any]
ACTIONS = ["delete_selected", "force_delete"]


class Died(BaseException):
    """As SIGKILL: nothing catches it."""


def keep(project: Any) -> tuple[int, dict[str, int]]:
    return 0, {}


def refuse_deletion(project: Any) -> None:
    raise models.ProtectedError("An invoice needs it.", set())


def fail(project: Any) -> None:
    raise ValueError("What only the log should hold.")


def die(project: Any) -> None:
    raise Died


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the project model a delete() of its own, which is another one for some projects."""

    def give(**others: Delete) -> None:
        stock: Any = models.Model.delete

        def delete(project: Any) -> Any:
            return others.get(project.pk, stock)(project)

        monkeypatch.setattr(Project, "delete", delete)

    return give


def list_projects() -> list[str]:
    return list(Project.objects.order_by("pk").values_list("pk", flat=True))


def list_logged() -> list[str | None]:
    return list(LogEntry.objects.order_by("object_id").values_list("object_id", flat=True))


@pytest.mark.parametrize(
    ("delete", "text"),
    [
        (keep, "Project proj_1 was not deleted: its model keeps such rows."),
        (refuse_deletion, "The project was not deleted. An invoice needs it."),
    ],
)
def test_delete_button_of_a_project_that_stays_says_why(
    own: Any, delete: Delete, text: str
) -> None:
    create_projects("proj_1")
    own(proj_1=delete)
    answer = superuser_client().post(
        admin_url("project", "delete", "proj_1"), {"post": "yes"}, follow=True
    )
    assert text in page_text(answer) and "deleted successfully" not in page_text(answer)
    assert (list_projects(), list_logged()) == (["proj_1"], [])


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("delete", "reason"),
    [
        (keep, "its model keeps such rows."),
        (refuse_deletion, "An invoice needs it."),
        (fail, "its deletion failed. See the server's log."),
    ],
)
def test_project_that_stays_keeps_no_other_one(
    own: Any, action: str, delete: Delete, reason: str
) -> None:
    create_projects("proj_1", "proj_2", "proj_3")
    own(proj_2=delete)
    shown = confirm_action(superuser_client(), "project", action, "proj_1", "proj_2", "proj_3")
    assert f"Project proj_2 was not deleted: {reason}" in shown.replace("&#x27;", "'")
    assert "only the log" not in shown and "othing was" not in shown
    assert "Deleting the files of 2 projects now." in shown
    assert Cleanup.objects.count() == 2
    assert is_page_of_all_cleanups(shown)
    assert (list_projects(), list_logged()) == (["proj_2"], ["proj_1", "proj_3"])


@pytest.mark.parametrize("action", ACTIONS)
def test_projects_that_all_stay_are_each_named(own: Any, action: str) -> None:
    create_projects("proj_1", "proj_2")
    own(proj_1=keep, proj_2=refuse_deletion)
    shown = confirm_action(superuser_client(), "project", action, "proj_1", "proj_2")
    assert "Project proj_1 was not deleted: its model keeps such rows." in shown
    assert "Project proj_2 was not deleted: An invoice needs it." in shown
    assert "Deleting" not in shown and "Deleted" not in shown
    assert (list_logged(), Cleanup.objects.count()) == ([], 0)


def test_each_own_deletion_is_committed_before_the_next_one_begins(own: Any) -> None:
    """What it did outside the database, such as to files, cannot be rolled back."""
    create_projects("proj_1", "proj_2")
    own(proj_2=die)
    with pytest.raises(Died):
        delete_projects(Project.objects.order_by("pk"), list)
    assert list_projects() == ["proj_2"]


def test_bulk_job_commits_each_own_deletion_before_the_next_one_begins(own: Any) -> None:
    create_projects("proj_1", "proj_2")
    own(proj_2=die)
    superuser_client()
    with use_origin(Origin("anna", "web")):
        job: Any = BulkJob.objects.request(BulkJob.Action.DELETE, ["proj_1", "proj_2"])
    with pytest.raises(Died):
        run_job(str(job.pk))
    assert list_projects() == ["proj_2"]


def test_stock_deletion_that_fails_deletes_none_and_hides_no_error() -> None:
    create_projects("proj_1", "proj_2")

    def fail_at_the_second(instance: Project, **kwargs: Any) -> None:
        if instance.pk == "proj_2":
            fail(instance)

    pre_delete.connect(fail_at_the_second, Project)
    try:
        with pytest.raises(ValueError, match="only the log"):
            delete_projects(Project.objects.order_by("pk"), list)
    finally:
        pre_delete.disconnect(fail_at_the_second, Project)
    assert list_projects() == ["proj_1", "proj_2"]


def test_projects_that_no_longer_exist_are_neither_deleted_nor_kept(own: Any) -> None:
    create_projects("proj_1", "proj_2")
    owners = list(Project.objects.order_by("pk"))
    Project.objects.filter(pk="proj_1").delete()
    logged = list[Any]()
    assert delete_projects(owners, logged.extend)[::2] == (["proj_2"], [])
    assert len(logged) == 1


@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
def test_row_that_restricts_one_project_goes_with_another_selected_one(
    own: Any, has_own: bool, action: str
) -> None:
    class Link(models.Model):  # noqa: DJ008
        part = models.ForeignKey(Project, models.CASCADE, related_name="+")
        whole = models.ForeignKey(Project, models.RESTRICT, related_name="+")

        class Meta:
            app_label = "storage_audit"

    with create_table(Link) as link:
        create_projects("proj_1", "proj_2", "proj_3")
        link.objects.create(part_id="proj_2", whole_id="proj_1")
        link.objects.create(part_id="proj_3", whole_id="proj_2")
        if has_own:
            own()
        shown = confirm_action(superuser_client(), "project", action, "proj_1", "proj_2", "proj_3")
        assert "was not deleted" not in shown and not list_projects()
        assert list_logged() == ["proj_1", "proj_2", "proj_3"]


# PostgreSQL stores no NUL.
@pytest.mark.only_on("sqlite")
def test_row_that_no_id_finds_is_not_called_deleted() -> None:
    Project.objects.bulk_create([Project(pk="proj\0")])
    with pytest.raises(ProjectExists, match="cannot be found by this ID"):
        delete_project(Project.objects.get())
    deletion = delete_projects(Project.objects.all(), list)
    assert (len(deletion.kept), deletion.deleted) == (1, [])


def test_later_row_with_the_id_is_not_deleted_in_place_of_the_earlier_one(
    settings: Settings,
) -> None:
    class Film(models.Model):  # noqa: DJ008
        code = models.TextField(unique=True)

        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Film"
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_FIELD": "code"}
    with create_table(Film) as film:
        film.objects.create(code="b")
        earlier = film.objects.create(code="a")
        film.objects.filter(pk=earlier.pk).delete()
        film.objects.update(code="a")
        delete_project(earlier)
        assert film.objects.get().code == "a"


def test_signal_receivers_learn_where_each_deletion_began() -> None:
    seen = dict[str, Any]()

    def refuse(instance: Project, origin: Any, **kwargs: Any) -> None:
        """As a site does whose projects go only with the rows that they belong to."""
        seen[instance.pk] = origin
        raise models.ProtectedError("Delete its series instead.", {instance})

    create_projects("proj_1", "proj_2", "proj_3", "proj_4", "proj_5")
    client = superuser_client()
    with use_origin(Origin("anna", "web")):
        job: Any = BulkJob.objects.request(BulkJob.Action.DELETE, ["proj_5"])
    pre_delete.connect(refuse, Project)
    try:
        client.post(admin_url("project", "delete", "proj_1"), {"post": "yes"}, follow=True)
        confirm_action(client, "project", "delete_selected", "proj_2", "proj_3")
        confirm_action(client, "project", "force_delete", "proj_3")
        assert_problem(client_with_token().request("DELETE", "/projects/proj_4"), 409, "in-use")
        run_job(str(job.pk))
    finally:
        pre_delete.disconnect(refuse, Project)
    assert len(list_projects()) == 5
    several = seen.pop("proj_2")
    assert isinstance(several, models.QuerySet) and several.model is Project
    assert len(several) == 2
    assert {pk: origin.pk for pk, origin in seen.items()} == {pk: pk for pk in seen}
    assert set(seen) == {"proj_1", "proj_3", "proj_4", "proj_5"}


@pytest.mark.only_on("postgresql")  # SQLite has one writer
@pytest.mark.parametrize("way", [*ACTIONS, "button"])
def test_deletion_of_somebody_who_was_quicker_is_not_ours(way: str) -> None:
    create_projects("proj_1")
    client, deleted = superuser_client(), Event()

    def be_quicker() -> None:
        with use_origin(Origin("bob", "web")), transaction.atomic():
            Project.objects.get().delete()
            deleted.set()
            wait_for_blocked_query()

    with run_in_thread(be_quicker):
        assert deleted.wait(THREAD_TIMEOUT_SECONDS)
        if way == "button":
            address = admin_url("project", "delete", "proj_1")
            shown = page_text(client.post(address, {"post": "yes"}, follow=True))
        else:
            shown = confirm_action(client, "project", way, "proj_1")
    assert "Nothing was done: " in shown
    assert "uccessfully" not in shown and "Deleting" not in shown
    assert not list_logged()
    assert Cleanup.objects.get().requested_by == "bob"


def test_delete_button_of_a_project_that_is_already_gone_logs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_projects("proj_1")
    monkeypatch.setattr(
        "storage_audit.cleanup.delete_projects.lock_project_row", lambda owner: None
    )
    answer = superuser_client().post(
        admin_url("project", "delete", "proj_1"), {"post": "yes"}, follow=True
    )
    assert "Nothing was done: the project is already gone." in page_text(answer)
    assert "deleted successfully" not in page_text(answer) and not list_logged()


@pytest.mark.parametrize("action", ACTIONS)
def test_project_that_is_created_again_at_once_counts_as_deleted(action: str) -> None:
    create_projects("proj_1")

    def create_again(**kwargs: Any) -> None:
        transaction.on_commit(lambda: create_projects("proj_1"))

    post_delete.connect(create_again, Project)
    try:
        shown = confirm_action(superuser_client(), "project", action, "proj_1")
    finally:
        post_delete.disconnect(create_again, Project)
    assert is_page_of(Cleanup.objects.get(), shown) and "Nothing was done" not in shown
    assert (list_projects(), list_logged()) == (["proj_1"], ["proj_1"])


def test_attributes_that_an_admin_sets_reach_the_models_own_delete(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()

    def delete_model(pages: Any, request: HttpRequest, obj: Any) -> None:
        obj._actor = request.user.get_username()
        OwnerAdmin.delete_model(pages, request, obj)

    monkeypatch.setattr(ProjectAdmin, "delete_model", delete_model)
    create_projects("proj_1")

    def delete(row: Any) -> Any:
        seen.append(row._actor)
        return models.Model.delete(row)

    own(proj_1=delete)
    superuser_client().post(admin_url("project", "delete", "proj_1"), {"post": "yes"})
    assert len(seen) == 1 and not list_projects()


def test_reasons_of_projects_that_stay_hide_secrets(own: Any) -> None:
    def protect_with_secret(project: Any) -> None:
        raise models.ProtectedError("See https://zoe:hunter2@invoices.example.", set())

    create_projects("proj_1")
    own(proj_1=protect_with_secret)
    client = superuser_client()
    answer = client.post(admin_url("project", "delete", "proj_1"), {"post": "yes"}, follow=True)
    shown = [confirm_action(client, "project", action, "proj_1") for action in ACTIONS]
    for text in (page_text(answer), *shown):
        assert "See https://[redacted]@invoices.example." in text and "hunter2" not in text


def test_admins_own_delete_queryset_that_is_refused_hides_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pages: Any, request: HttpRequest, queryset: Any) -> None:
        raise models.ProtectedError("See https://zoe:hunter2@invoices.example.", set())

    monkeypatch.setattr(ProjectAdmin, "delete_queryset", refuse)
    create_projects("proj_1")
    shown = confirm_action(superuser_client(), "project", "delete_selected", "proj_1")
    assert "See https://[redacted]@invoices.example." in shown


def test_action_of_the_site_with_the_name_of_one_of_our_steps_is_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def delete_projects(pages: Any, request: HttpRequest, queryset: Any) -> None:
        queryset.update(title="archived")

    monkeypatch.setattr(ProjectAdmin, "delete_projects", delete_projects, raising=False)
    create_projects("proj_1")
    shown = confirm_action(superuser_client(), "project", "force_delete", "proj_1")
    assert "Deleting the files of “proj_1” now." in shown
    assert not list_projects()


def test_own_step_that_deletes_selected_rows_deletes_all_or_none(own: Any) -> None:
    create_projects("proj_1", "proj_2")
    own(proj_2=keep)
    with pytest.raises(ProjectExists, match="proj_2 was not deleted"):
        ProjectAdmin(Project, admin.site).delete_queryset(HttpRequest(), Project.objects.all())
    assert list_projects() == ["proj_1", "proj_2"] and not Cleanup.objects.exists()


def test_own_deletion_works_on_the_row_as_it_is_now(own: Any) -> None:
    project = Project.objects.create(pk="proj_1")
    Project.objects.update(title="published")
    own(proj_1=lambda row: refuse_deletion(row) if row.title else models.Model.delete(row))
    with pytest.raises(models.ProtectedError):
        delete_project(project)
