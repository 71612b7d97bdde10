"""What a site says of how, or whether, a project is deleted holds for bulk jobs, the API and
Force-delete too."""

from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import get_deleted_objects
from django.contrib.auth.models import User
from django.contrib.messages.storage.cookie import CookieStorage
from django.db import models
from django.http import HttpRequest, QueryDict
from django.test import RequestFactory
from django.urls import resolve
from pytest_django import Settings

from storage_audit import roles, signals
from storage_audit.cleanup import bulk
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project, R2Object
from storage_audit.project_model import ProjectExists
from storage_audit.projects.admin.columns import annotate_storage
from storage_audit.projects.admin.projects import OwnerAdmin, ProjectAdmin
from storage_audit.request_origin import Origin, use_origin
from storage_audit.roles import deletion_obstacles, has_own_deletion, is_hidden
from storage_audit.ui.confirm import Selection
from storage_audit.ui.model_admin import ModelAdmin
from tests.admin_client import admin_url, confirm_action, run_action, superuser_client
from tests.api_client import assert_problem, client_with_token
from tests.owner_models import create_table, forget_model

pytestmark = pytest.mark.usefixtures("transactional_db")
Register = Callable[[type[models.Model], Any], Any]


class SoftQuerySet(models.QuerySet[Any]):
    def delete(self) -> tuple[int, dict[str, int]]:
        return self.update(title="archived"), {}


class Archiving(ModelAdmin[Any]):
    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.delete_queryset(request, self.model._default_manager.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> None:
        queryset.update(title="archived")


class ArchivingOwner(Archiving, OwnerAdmin[Any]): ...


class Hiding(ModelAdmin[Any]):
    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        return super().get_queryset(request).none()


class SoftlyDeleting(ModelAdmin[Any]):
    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        return SoftQuerySet(self.model)


@pytest.fixture(autouse=True)
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Gives a model an admin on the default site, the only one."""
    # It is made of the site of now, before a test has another one.
    import_module(django_settings.ROOT_URLCONF)
    monkeypatch.setattr(roles, "all_sites", set())
    monkeypatch.setattr(bulk, "PROJECTS_PER_TRANSACTION", 3)
    registry: dict[Any, Any] = admin.site._registry

    def register(model: type[models.Model], page_class: Any) -> Any:
        monkeypatch.setitem(registry, model, page_class(model, admin.site))
        return registry[model]

    return register


@pytest.fixture
def asking(rf: RequestFactory) -> Any:
    """The request of a superuser who says yes."""
    request: Any = rf.post("/", {"post": "yes"})
    request.user = User.objects.create_superuser("zoe")
    request._messages = CookieStorage(request)
    return request


@pytest.fixture
def proxy() -> Iterator[Any]:
    class Legal(Project):
        class Meta:
            app_label = "storage_audit"
            proxy = True

    signals.connect_signals()
    yield Legal
    forget_model(Legal)


def make(count: int) -> None:
    for number in range(count):
        Project.objects.create(pk=f"proj_{number}")


def confirmed(model: Any) -> Selection:
    pages = admin.site._registry[model]
    return Selection(pages.get_queryset(HttpRequest()), "", is_confirmed=True)


def archived() -> int:
    return Project.objects.filter(title="archived").count()


# How a site deletes in its own way


def softly(pages: ProjectAdmin, request: HttpRequest) -> models.QuerySet[Any]:
    return annotate_storage(SoftQuerySet(Project))


def test_queryset_with_its_own_deletion_archives_many_projects_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(4)
    pks, client = [f"proj_{number}" for number in range(4)], superuser_client()
    with use_origin(Origin("anna", "web")):
        earlier: Any = BulkJob.objects.request(BulkJob.Action.DELETE, pks)
    monkeypatch.setattr(ProjectAdmin, "get_queryset", softly)
    confirm_action(client, "project", "delete_selected", *pks)
    assert (archived(), BulkJob.objects.count()) == (4, 1)
    shown = confirm_action(client, "project", "force_delete", *pks)
    assert "Nothing was deleted: Force-delete would skip this site" in shown
    answer = client_with_token().request("DELETE", "/projects/proj_0")
    assert "its own way to delete this project" in assert_problem(answer, 409, "refused")["detail"]
    while not earlier.finished_at:
        bulk.process_next_projects(earlier)
    assert (archived(), BulkJob.objects.count()) == (4, 1)


def soft_row(self: Any) -> tuple[int, dict[str, int]]:
    return 0, {}


@pytest.mark.parametrize(
    "ways",
    [
        {"delete": soft_row},
        {"objects": SoftQuerySet.as_manager()},
        {"objects": models.Manager(), "soft": SoftQuerySet.as_manager()},
    ],
)
def test_child_model_with_its_own_deletion_is_left_to_the_admin(
    register: Register, asking: Any, ways: dict[str, Any]
) -> None:
    meta = {"Meta": type("Meta", (), {"app_label": "storage_audit"}), "__module__": __name__}
    film: Any = type("Film", (Project,), {**meta, **ways})
    with create_table(film):
        register(film, OwnerAdmin)
        film(pk="proj_1", id="proj_1").save()
        Project.objects.create(pk="proj_2")
        for number, own in ((1, True), (2, False)):
            project = Project.objects.get(pk=f"proj_{number}")
            assert has_own_deletion(asking, [project]) == own
        assert has_own_deletion(asking, film.objects.all())


def test_delete_of_the_project_model_is_called_and_stands_in_no_way(
    register: Register, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Project, "delete", soft_row)
    make(1)
    assert not has_own_deletion(asking, Project.objects.all())


def keep(project: Any) -> None:
    raise models.ProtectedError("An invoice needs it.", set())


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("delete", [soft_row, keep])
def test_selected_projects_that_their_model_keeps_stay(
    monkeypatch: pytest.MonkeyPatch, count: int, delete: Any
) -> None:
    """A bulk job takes up more than three."""
    monkeypatch.setattr(Project, "delete", delete)
    make(count)
    pks = [f"proj_{number}" for number in range(count)]
    shown = confirm_action(superuser_client(), "project", "delete_selected", *pks)
    for job in BulkJob.objects.all():
        bulk.process_next_projects(job)
    assert Project.objects.count() == count and not Cleanup.objects.exists()
    if count == 2:
        reason = {soft_row: "its model keeps such rows.", keep: "An invoice needs it."}[delete]
        assert all(f"Project {pk} was not deleted: {reason}" in shown for pk in pks)
        assert not LogEntry.objects.exists()


def take_all(project: Any) -> tuple[int, dict[str, int]]:
    return models.QuerySet(Project).delete()


def test_selected_projects_are_each_deleted_by_their_models_own_delete_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(3)
    monkeypatch.setattr(Project, "delete", take_all)
    shown = confirm_action(superuser_client(), "project", "delete_selected", "proj_0", "proj_1")
    assert "Deleting the files of 2 projects now." in shown and not Project.objects.exists()
    assert Cleanup.objects.count() == 3


def test_own_delete_of_a_proxy_is_called_from_the_admin_of_the_model_below(
    register: Register, asking: Any, settings: Settings
) -> None:
    class Film(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    class Legal(Film):  # noqa: DJ008
        delete = soft_row  # type: ignore[assignment]

        class Meta:
            app_label = "storage_audit"
            proxy = True

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Legal"
    with create_table(Film) as film:
        film.objects.create()
        pages = register(Film, OwnerAdmin)
        asking.POST = QueryDict("post=yes")
        pages.delete_selection(asking, confirmed(film))
        [said] = asking._messages
        assert "Project 1 was not deleted" in str(said)
        with pytest.raises(ProjectExists):
            pages.delete_model(asking, film.objects.get())
        assert film.objects.exists()
    forget_model(Legal)


def archive_all(pages: Any, request: HttpRequest, queryset: Any) -> None:
    queryset.update(title="archived")


def archive_none(pages: Any, request: HttpRequest, queryset: Any) -> None: ...


@pytest.mark.parametrize("is_of_site", [False, True])
@pytest.mark.parametrize("is_of_admin", [False, True])
def test_action_of_the_site_or_the_admin_runs_instead_of_the_deletion_that_it_replaces(
    monkeypatch: pytest.MonkeyPatch, asking: Any, is_of_site: bool, is_of_admin: bool
) -> None:
    site: Any = admin.site
    if is_of_admin:
        monkeypatch.setattr(ProjectAdmin, "delete_selected", archive_all)
    if is_of_site:
        action = archive_none if is_of_admin else archive_all
        monkeypatch.setitem(site._actions, "delete_selected", action)
    make(1)
    is_own = is_of_site or is_of_admin
    assert has_own_deletion(asking, Project.objects.all()) == is_own
    confirm_action(superuser_client(), "project", "delete_selected", "proj_0")
    assert (archived(), Project.objects.count()) == ((1, 1) if is_own else (0, 0))


def wrap(function: Any) -> Any:
    """As a decorator does: with the name and the module of what it stands for."""

    @wraps(function)
    def archive(pages: Any, request: HttpRequest, queryset: Any) -> None:
        queryset.update(title="archived")

    return archive


def wrap_method_of_admin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProjectAdmin, "delete_queryset", wrap(OwnerAdmin.delete_queryset))


def wrap_action_of_admin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProjectAdmin, "delete_selected", wrap(OwnerAdmin.delete_selected))


def for_nobody(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(admin.ModelAdmin, "has_archive_permission", lambda *args: False, raising=False)
    return admin.action(permissions=["archive"])(wrap(delete_selected))


def wrap_action_of_site(patch: pytest.MonkeyPatch) -> None:
    site: Any = admin.site
    patch.setitem(site._actions, "delete_selected", wrap(delete_selected))


def wrap_action_of_site_for_nobody(patch: pytest.MonkeyPatch) -> None:
    site: Any = admin.site
    patch.setitem(site._actions, "delete_selected", for_nobody(patch))


def list_function(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProjectAdmin, "actions", [wrap(delete_selected), "force_delete"])


def list_function_for_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProjectAdmin, "actions", [for_nobody(patch), "force_delete"])


def offer_function(patch: pytest.MonkeyPatch) -> None:
    def get_actions(pages: Any, request: HttpRequest) -> Any:
        offered = super(ProjectAdmin, pages).get_actions(request)
        return offered | {"delete_selected": (wrap(delete_selected), "delete_selected", "Archive")}

    patch.setattr(ProjectAdmin, "get_actions", get_actions)


@pytest.mark.parametrize(
    "change",
    [
        wrap_method_of_admin,
        wrap_action_of_admin,
        wrap_action_of_site,
        wrap_action_of_site_for_nobody,
        list_function,
        list_function_for_nobody,
        offer_function,
    ],
)
def test_function_that_only_looks_like_the_stock_deletion_is_the_sites_own(
    monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    make(4)
    change(monkeypatch)
    client = superuser_client()
    shown = confirm_action(client, "project", "force_delete", "proj_0")
    assert "Nothing was deleted: Force-delete would skip this site" in shown
    assert_problem(client_with_token().request("DELETE", "/projects/proj_0"), 409, "refused")
    if change not in (list_function_for_nobody, wrap_action_of_site_for_nobody):
        confirm_action(
            client, "project", "delete_selected", *(f"proj_{number}" for number in range(4))
        )
        assert archived() == 4
    assert (Project.objects.count(), BulkJob.objects.count()) == (4, 0)


@pytest.mark.parametrize("page_class", [Archiving, SoftlyDeleting, Hiding])
def test_admin_of_a_childs_other_parent_is_asked(
    register: Register, asking: Any, page_class: Any
) -> None:
    class Asset(models.Model):  # noqa: DJ008
        number = models.AutoField(primary_key=True)

        class Meta:
            app_label = "storage_audit"

    class Film(Project, Asset):  # noqa: DJ008
        class Meta:
            app_label = "storage_audit"

    with create_table(Asset), create_table(Film):
        Film.objects.create(project_ptr_id="proj_1", id="proj_1")
        project = Project.objects.get()
        assert not (has_own_deletion(asking, [project]) or is_hidden(asking, project))
        register(Asset, page_class)
        assert has_own_deletion(asking, [project]) == (page_class is not Hiding)
        assert is_hidden(asking, project) == (page_class is Hiding)


def test_list_of_what_the_project_model_derives_from_hides_no_project(
    register: Register, asking: Any, settings: Settings
) -> None:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Film"
    with create_table(Film):
        film = Film.objects.create(pk="proj_1", id="proj_1")
        register(Project, Hiding)
        assert not is_hidden(asking, film)
        register(Film, Hiding)
        assert is_hidden(asking, film)


# Admins of proxies


@pytest.mark.parametrize(
    ("page_class", "status", "kind"),
    [(Hiding, 404, "not-found"), (Archiving, 409, "refused")],
)
def test_admin_of_the_project_model_is_asked_where_that_is_a_proxy(
    register: Register, proxy: Any, settings: Settings, page_class: Any, status: int, kind: str
) -> None:
    make(1)
    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Legal"
    register(proxy, page_class)
    assert Project in admin.site._registry
    assert_problem(client_with_token().request("DELETE", "/projects/proj_0"), status, kind)
    assert proxy.objects.exists()


def test_admin_of_a_proxy_with_its_own_deletion_is_asked_when_it_acts(
    register: Register, proxy: Any, asking: Any
) -> None:
    make(4)
    pages = register(proxy, ArchivingOwner)
    assert pages.is_force_refused(asking, confirmed(proxy).rows)
    [said] = asking._messages
    assert "Force-delete would skip this site" in str(said)
    pages.delete_selection(asking, confirmed(proxy))
    assert (archived(), BulkJob.objects.count()) == (4, 0)


class Keeping(OwnerAdmin[Any]):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is None or obj.pk != "proj_0"


def test_no_bulk_job_takes_over_from_an_admin_that_it_does_not_ask(
    register: Register, proxy: Any, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bulk job asks the admins of the model, and that of a proxy only where there is none."""
    make(4)
    pages = register(proxy, Keeping)
    rows = confirmed(proxy).rows
    assert not pages.is_for_bulk_job(rows)
    assert admin.site._registry[Project].is_for_bulk_job(confirmed(Project).rows)  # type: ignore[attr-defined]
    registry: dict[Any, Any] = admin.site._registry
    monkeypatch.delitem(registry, Project)
    assert pages.is_for_bulk_job(rows)
    assert deletion_obstacles(asking, Project(pk="proj_0"))[0] == {"legal"}


# What an admin protects


def require_invoices(pages: ProjectAdmin, objs: Any, request: HttpRequest) -> Any:
    *found, _protected = get_deleted_objects(objs, request, pages.admin_site)
    return *found, [f"an invoice for {one}" for one in objs if one.title]


def test_project_that_its_admin_protects_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(5)
    Project.objects.filter(pk="proj_0").update(title="published")
    client = superuser_client()
    with use_origin(Origin("anna", "web")):
        job: Any = BulkJob.objects.request(BulkJob.Action.DELETE, ["proj_0", "proj_1"])
    monkeypatch.setattr(ProjectAdmin, "get_deleted_objects", require_invoices)
    for action in ("delete_selected", "force_delete"):
        shown = run_action(client, "project", action, "proj_0", "proj_2", post="yes")
        assert ("an invoice for published" in shown) == (action == "delete_selected")
    assert "Nothing was deleted: other rows need the projects." in shown
    problem = assert_problem(
        client_with_token().request("DELETE", "/projects/proj_0"), 409, "in-use"
    )
    assert (
        problem["detail"]
        == "Other rows need the project. Delete them first: an invoice for published (proj_0)."
    )
    while not job.finished_at:
        bulk.process_next_projects(job)
    assert "does not let this person delete an invoice for published" in caplog.text
    assert set(Project.objects.values_list("pk", flat=True)) == {f"proj_{n}" for n in (0, 2, 3, 4)}


# What a page says


def test_deletion_pages_count_projects_that_depend_on_the_selected_ones(
    register: Register, settings: Settings, asking: Any
) -> None:
    class Series(models.Model):
        id = models.TextField(primary_key=True)
        parent = models.ForeignKey("self", models.CASCADE, null=True)

        class Meta:
            app_label = "storage_audit"

        def __str__(self) -> str:
            return self.id

    settings.STORAGE_AUDIT_PROJECT_MODEL = "storage_audit.Series"
    with create_table(Series) as series:
        one = series.objects.create(id="proj_1")
        series.objects.create(id="proj_2", parent=series.objects.create(id="proj_3", parent=one))
        R2Object.objects.create(
            bucket="tests", key="k", project_id="proj_2", size=7, state="stored"
        )
        pages, asking.resolver_match = register(Series, OwnerAdmin), resolve(admin_url("project"))
        selected = pages.get_queryset(asking).filter(pk="proj_1")
        shown = pages.confirm_force(asking, Selection(selected, "", is_confirmed=False))
        listed = [cells[0][1] for cells in shown.context_data["rows"]]
        assert (listed[0], sorted(listed)) == ("proj_1", ["proj_1", "proj_2", "proj_3"])
        assert any("2 more projects" in each for each in shown.context_data["sentences"])
        asking.POST = QueryDict()
        stock = pages.delete_selection(asking, Selection(selected, "", is_confirmed=False))
        scope = stock.context_data["scope"]
        assert [row[0] for row in scope["projects"]][0] == "proj_1" and len(scope["projects"]) == 3
        assert "2 more projects depend on these" in scope["lines"][0]
        assert "1 file, 7\xa0bytes" in scope["lead"] and len(scope["sample"]) == 1
        assert scope["button"] == "Delete 3 seriess and 1 file"
