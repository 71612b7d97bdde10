"""The three groups, and what is said to those who may not."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin import site
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.test import Client, RequestFactory
from pytest_django import Settings

from storage_audit import roles
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.projects.admin.projects import OwnerAdmin
from storage_audit.roles import (
    ADMIN_PERMISSIONS,
    OPERATOR_PERMISSIONS,
    ROLES,
    VIEWER_PERMISSIONS,
    all_admin_sites,
    deletion_obstacles,
    is_hidden,
    make_groups,
)
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import lookup_url
from storage_audit.ui.model_admin import DJANGO_6_1, ModelAdmin
from tests.admin_client import (
    admin_url,
    client_for,
    confirm_action,
    page_text,
    run_action,
    superuser_client,
)
from tests.api_client import client_with_token
from tests.owner_models import create_table, forget_model
from tests.real_bucket import Bucket


@pytest.fixture(autouse=True)
def groups(db: None) -> None:
    """As a migration makes them; tests that empty the tables have taken them away."""
    make_groups(apps, connection.alias)


def test_site_without_the_admin_asks_no_admin_about_a_row(settings: Settings) -> None:
    project, request = Project.objects.create(pk="proj_1"), RequestFactory().get("/")
    request.user = User.objects.create_user("a")
    settings.INSTALLED_APPS = [
        each for each in settings.INSTALLED_APPS if "admin" not in each.lower()
    ]
    assert not is_hidden(request, project)
    assert deletion_obstacles(request, project) == (set(), [])


def member(role: str) -> Client:
    user = User.objects.create_user(role, is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    return client_for(user)


def role_permissions(role: str) -> set[str]:
    found = Group.objects.get(name=role).permissions.all()
    assert {each.content_type.app_label for each in found} == {"storage_audit"}
    return {each.codename for each in found}


@pytest.mark.parametrize("role", ROLES)
def test_a_group_has_all_permissions_of_its_role_and_no_other(role: str) -> None:
    assert role_permissions(role) == ROLES[role]


def test_each_role_may_what_the_lesser_one_may_and_a_viewer_changes_nothing() -> None:
    assert VIEWER_PERMISSIONS < OPERATOR_PERMISSIONS < ADMIN_PERMISSIONS
    assert all(each.startswith("view_") for each in VIEWER_PERMISSIONS)


def test_every_permission_that_the_application_asks_for_is_in_a_role() -> None:
    ours = Permission.objects.filter(content_type__app_label="storage_audit")
    custom = {p.codename for p in ours if p.codename.split("_")[0] not in ("add", "change", "view")}
    asked = {each for each in custom if not each.startswith("delete_")}
    assert asked and asked <= ADMIN_PERMISSIONS


def test_a_group_that_was_given_more_keeps_it() -> None:
    more = Permission.objects.get(codename="view_logentry")
    Group.objects.get(name="Storage viewer").permissions.add(more)
    make_groups(apps, connection.alias)
    assert more in Group.objects.get(name="Storage viewer").permissions.all()


def test_no_group_of_ours_is_said_to_help_with_the_model_of_another_application(
    monkeypatch: pytest.MonkeyPatch, rf: RequestFactory
) -> None:
    request = rf.get("/")
    request.user = User.objects.create_user("ben", is_staff=True)
    monkeypatch.setattr(Project._meta, "app_label", "newsroom")
    told = dict(site.get_model_admin(Project).refused_actions(request, Project(pk="proj_1")))  # type: ignore[attr-defined]
    assert told["Delete"] == "You need permission. Ask an administrator for it."
    assert told["Verify cleanup"].endswith("the group “Storage operator”.")


@pytest.mark.parametrize("client", [superuser_client, lambda: member("Storage viewer")])
def test_deletion_that_the_site_disabled_is_not_offered(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    Project.objects.create(pk="proj_1")
    shown = page_text((browser := client()).get(admin_url("project")))
    assert "Delete selected projects" in shown
    monkeypatch.delitem(site._actions, "delete_selected")
    assert "Delete selected projects" not in page_text(browser.get(admin_url("project")))
    run_action(browser, "project", "delete_selected", "proj_1", post="yes")
    assert Project.objects.exists()


def archive(modeladmin: object, request: object, queryset: object) -> None: ...


@admin.action(permissions=["archive"], description="Archive these %(verbose_name_plural)s")
def archive_as_editor(modeladmin: object, request: object, queryset: object) -> None: ...


@admin.action(permissions=["archive", "view"], description="Archive too")
def archive_or_view(modeladmin: object, request: object, queryset: object) -> None: ...


@pytest.mark.parametrize("act", [archive, archive_as_editor, archive_or_view])
@pytest.mark.parametrize("is_named", [False, True])
def test_an_adopters_own_action_is_offered_and_refused_as_django_does(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, act: Any, is_named: bool
) -> None:
    """From Django 6.1 on, an action that says no location is one of the list only."""
    Project.objects.create(pk="proj_1")
    pages: Any = site.get_model_admin(Project)
    own = act.__name__ if is_named else act
    monkeypatch.setattr(type(pages), "actions", [*OwnerAdmin.actions, own])
    monkeypatch.setattr(type(pages), act.__name__, act, raising=False)
    monkeypatch.setattr(type(pages), "has_archive_permission", lambda *_: False, raising=False)
    client, refused = member("Storage operator"), 'value="Archive these projects" disabled> <small>'
    for name, args in (("changelist", ()), ("change", ("proj_1",))):
        shown = page_text(client.get(admin_url("project", name, *args)))
        has_it = name == "changelist" or not DJANGO_6_1
        assert (refused in shown) == (has_it and act is archive_as_editor)
        assert (f'value="{act.__name__}"' in shown) == (has_it and act is not archive_as_editor)
        assert 'value="Archive too" disabled' not in shown


def test_a_superuser_whom_an_adopters_own_rule_refuses_is_told_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.create(pk="proj_1")
    pages: Any = site.get_model_admin(Project)
    monkeypatch.setattr(type(pages), "actions", [archive_as_editor])
    monkeypatch.setattr(type(pages), "has_archive_permission", lambda *_: False, raising=False)
    shown = page_text(superuser_client().get(admin_url("project")))
    text = "You need permission. Ask an administrator for it."
    assert f'value="Archive these projects" disabled> <small>{text}' in shown


class Elsewhere:
    """Keeps users, groups and permissions out of the database."""

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
        return app_label != "auth"


def test_no_group_is_made_where_the_database_is_not_for_them(settings: Settings) -> None:
    Group.objects.all().delete()
    settings.DATABASE_ROUTERS = [Elsewhere()]
    make_groups(apps, connection.alias)
    assert not Group.objects.exists()


@pytest.mark.parametrize(
    ("role", "asks_for"),
    [
        ("Storage viewer", {"Dry-run cleanup": "operator", "Force-delete": "admin"}),
        ("Storage operator", {"Force-delete": "admin"}),
        ("Storage admin", {}),
    ],
)
def test_what_a_person_may_not_do_is_shown_with_whom_to_ask(
    bucket: Bucket, role: str, asks_for: dict[str, str]
) -> None:
    Project.objects.create(pk="proj_1")
    client = member(role)
    for url in (admin_url("project"), admin_url("project", "change", "proj_1")):
        shown = page_text(client.get(url))
        for action in ("Dry-run cleanup", "Verify cleanup", "Force-delete"):
            disabled = f'value="{action}" disabled> <small>You need permission. Ask'
            assert (disabled in shown) == (action in asks_for or role == "Storage viewer"), action
        for action, more in asks_for.items():
            assert f'value="{action}" disabled' in shown
            assert f"the group “Storage {more}”" in shown


def make(model: str) -> object:
    """One of it that has something to decide; returns its id."""
    if model == "project":
        return Project.objects.create(pk="proj_1").pk
    if model == "healthreport":
        return HealthReport.objects.create(context="web", host="h", pid=1, probes=[]).pk
    scan = BucketScan.objects.create(bucket=conf().bucket, status="stopped")
    if model == "bucketscan":
        return scan.pk
    seen = {"first_scan": scan, "last_scan": scan, "bucket": conf().bucket}
    return Finding.objects.create(key="k", kind="unrecognised", **seen).pk


DECIDING = {"Ignore": "operator", "Assign to a project": "admin"}
REPORT_BUTTONS = {"Check now": "operator"}
COMPARING = {"Compare with the bucket": "operator"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("model", "on_list", "on_page"),
    [
        ("project", {"Add project": "operator"}, COMPARING | {"Delete": "operator"}),
        ("finding", DECIDING | {"Delete leftover files": "admin"}, DECIDING),
        ("bucketscan", {"Start a scan": "operator", "Stop": "operator"}, {"Resume": "operator"}),
        ("healthreport", REPORT_BUTTONS, REPORT_BUTTONS),
    ],
)
def test_lists_and_pages_show_what_a_person_may_not_do_with_whom_to_ask(
    bucket: Bucket, role: str, model: str, on_list: dict[str, str], on_page: dict[str, str]
) -> None:
    client, pk = member(role), make(model)
    for url, buttons in ((admin_url(model), on_list), (admin_url(model, "change", pk), on_page)):
        assert_told_whom_to_ask(page_text(client.get(url)), role, buttons)


def assert_told_whom_to_ask(shown: str, role: str, buttons: dict[str, str]) -> None:
    order = list(ROLES)
    for button, group in buttons.items():
        lacks = order.index(role) < order.index(f"Storage {group}")
        assert (f'value="{button}" disabled' in shown) == lacks, button
        assert button in shown and (f"the group “Storage {group}”" in shown or not lacks)


@pytest.mark.parametrize("role", ROLES)
def test_alerts_and_answers_show_what_a_person_may_not_do_with_whom_to_ask(
    bucket: Bucket, settings: Settings, role: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"NOTIFY_EMAILS": ("ann@example.com",)}
    client, key = member(role), "projects/proj_1/scenes/s1/media/a.mp4"
    make("project")
    for url, buttons in (
        (admin_url("alert"), {"Send a test message": "admin"}),
        (lookup_url("proj_1"), COMPARING),
        (lookup_url(key), {"Check the bucket now": "operator"}),
    ):
        assert_told_whom_to_ask(page_text(client.get(url)), role, buttons)


@pytest.mark.parametrize(
    ("model", "tool", "role"),
    [
        ("healthreport", "Check now", "operator"),
        ("cleanup", "Compare with the bucket", "operator"),
        ("cleanup", "Clean up a deleted project", "admin"),
    ],
)
def test_a_tool_of_a_list_is_shown_with_whom_to_ask(model: str, tool: str, role: str) -> None:
    shown = page_text(member("Storage viewer").get(admin_url(model)))
    asked = f"Ask an administrator to add you to the group “Storage {role}”."
    assert f'value="{tool}" disabled> <small>You need permission. {asked}' in shown
    assert f'value="{tool}" disabled' not in page_text(
        member("Storage admin").get(admin_url(model))
    )


def test_a_viewer_who_asks_by_hand_is_refused(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    asked = {"action": "dry_run_cleanup", "_selected_action": "proj_1"}
    member("Storage viewer").post(admin_url("project"), asked)
    assert not Cleanup.objects.exists()


@pytest.mark.parametrize("role", ROLES)
def test_only_who_may_delete_an_object_gives_it_to_a_project(bucket: Bucket, role: str) -> None:
    """Whoever may delete projects could delete anybody's file so."""
    assert "delete_project" in OPERATOR_PERMISSIONS
    Project.objects.create(pk="proj_1")
    bucket.put("k")
    pk, (size, etag) = make("finding"), bucket.facts()["k"]
    Finding.objects.update(size=size, etag=etag)
    asked = {"action": "assign", "_selected_action": pk, "post": "yes", "project_id": "proj_1"}
    member(role).post(admin_url("finding"), asked)
    assert Finding.objects.get().state == ("resolved" if role == "Storage admin" else "open")
    assert R2Object.objects.exists() == (role == "Storage admin")


class FilmsOfOthers(ModelAdmin[Any]):
    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).none()


class FrozenFilms(ModelAdmin[Any]):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def test_admins_of_child_models_are_asked_about_a_project(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, rf: RequestFactory
) -> None:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    request = rf.get("/")
    request.user = User.objects.create_superuser("a")
    monkeypatch.setattr(admin, "site", admin.AdminSite())
    another = admin.AdminSite(name="another")
    monkeypatch.setattr(roles, "all_sites", {another})
    with create_table(Film):
        Film.objects.create(pk="proj_1", id="proj_1")
        film, other = Project.objects.get(pk="proj_1"), Project.objects.create(pk="proj_2")
        another.register(Film, FilmsOfOthers)
        assert (is_hidden(request, film), is_hidden(request, other)) == (True, False)
        another.unregister(Film)
        another.register(Film, FrozenFilms)
        assert (is_hidden(request, film), deletion_obstacles(request, film)) == (
            False,
            ({"film"}, []),
        )


@pytest.fixture
def proxy() -> Iterator[Any]:
    class Archived(Project):
        class Meta:
            app_label = "storage_audit"
            proxy = True

    yield Archived
    forget_model(Archived)


@pytest.mark.parametrize("on_default_site", [True, False])
@pytest.mark.parametrize(
    ("of_proxy", "hidden", "lacking"),
    [(FilmsOfOthers, True, set()), (FrozenFilms, False, {"archived"})],
)
def test_admins_of_proxies_are_asked_about_a_project_that_has_no_admin_of_its_own(
    db: None,
    monkeypatch: pytest.MonkeyPatch,
    rf: RequestFactory,
    proxy: Any,
    of_proxy: type[ModelAdmin[Any]],
    hidden: bool,
    lacking: set[str],
    on_default_site: bool,
) -> None:
    request, project = rf.get("/"), Project.objects.create(pk="proj_1")
    request.user = User.objects.create_superuser("a")
    assert not is_hidden(request, project)
    site = admin.site if on_default_site else admin.AdminSite(name="another")
    registry: dict[Any, Any] = site._registry
    monkeypatch.setitem(registry, proxy, of_proxy(proxy, site))
    assert not is_hidden(request, project)
    assert deletion_obstacles(request, project) == (set(), [])
    # Modules of other tests may have sites of their own.
    for each in all_admin_sites():
        of_site: dict[Any, Any] = each._registry
        monkeypatch.delitem(of_site, Project, raising=False)
    assert is_hidden(request, project) == hidden
    assert deletion_obstacles(request, project) == (lacking, [])


class ArchivedFilms(ModelAdmin[Any]):
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None: ...


def test_child_with_its_own_deletion_stops_force_delete_and_the_api(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    registry: dict[Any, Any] = admin.site._registry
    with create_table(Film), monkeypatch.context() as registered:
        Film.objects.create(pk="proj_1", id="proj_1", title="a film")
        registered.setitem(registry, Film, ArchivedFilms(Film, admin.site))
        shown = confirm_action(superuser_client(), "project", "force_delete", "proj_1")
        assert "Nothing was deleted: Force-delete would skip this site" in shown
        assert client_with_token().request("DELETE", "/projects/proj_1").status_code == 409
        assert Project.objects.exists()
