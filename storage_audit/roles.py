"""What each of the three groups may do, and which of them to ask for."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from django.apps import apps as current
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import ModelAdmin
from django.contrib.admin.sites import AdminSite, all_sites
from django.contrib.admin.utils import get_deleted_objects
from django.contrib.auth.management import create_permissions
from django.db import DEFAULT_DB_ALIAS, router
from django.db.models import Model, QuerySet
from django.db.models.deletion import get_candidate_relations_to_delete
from django.http import HttpRequest
from django.utils.translation import gettext as _

from storage_audit import project_model

F = TypeVar("F", bound=Callable[..., Any])
VIEWABLE_MODELS = (
    "project",
    "r2object",
    "cleanup",
    "bucketscan",
    "finding",
    "knownproject",
    "healthreport",
    "bulkjob",
    "alert",
)
VIEWER_PERMISSIONS = frozenset(f"view_{model}" for model in VIEWABLE_MODELS)
OPERATOR_PERMISSIONS = VIEWER_PERMISSIONS | {
    "add_project",
    "change_project",
    "delete_project",
    "dry_run_cleanup",
    "verify_cleanup",
    "pause_cleanup",
    "undo_cleanup",
    "cancel_cleanup",
    "change_finding",
    "change_r2object",
    "add_bucketscan",
    "change_bucketscan",
    "add_healthreport",
}
ADMIN_PERMISSIONS = OPERATOR_PERMISSIONS | {
    "force_cleanup",
    "erase_cleanup",
    "delete_r2object",
    "test_notifications",
    "view_apitoken",
    "add_apitoken",
    "change_apitoken",
    "delete_apitoken",
}
# From the least to the most: the first that holds a permission is the one to ask for.
ROLES = {
    "Storage viewer": VIEWER_PERMISSIONS,
    "Storage operator": OPERATOR_PERMISSIONS,
    "Storage admin": ADMIN_PERMISSIONS,
}

# The methods by which an admin deletes, and the functions that are not a site's own. Compared by
# identity, as a function that wraps one of them has its name and its module.
DELETION_METHODS = "delete_model", "delete_queryset", "delete_selected"
STOCK_DELETIONS: set[Any] = {ModelAdmin.delete_model, ModelAdmin.delete_queryset, delete_selected}


def make_groups(apps: Any, using: str) -> None:
    """Make the groups that are missing, and give each what it lacks; nobody loses anything.

    `apps` is that of a migration. The permissions of a project model that is not ours are left to
    its own application. None in a database where there is no place for them.
    """
    if not router.allow_migrate_model(using, apps.get_model("auth", "Group")):
        return
    # Django makes permissions after all migrations, and a new database has none yet.
    create_permissions(current.get_app_config("storage_audit"), 0, using=using, apps=apps)
    permissions = apps.get_model("auth", "Permission").objects.using(using)
    ours = permissions.filter(content_type__app_label="storage_audit")
    for name, held in ROLES.items():
        group, _made = apps.get_model("auth", "Group").objects.using(using).get_or_create(name=name)
        group.permissions.add(*ours.filter(codename__in=held))


def refusal_reason(request: HttpRequest, permission: str) -> str:
    """Why this person may not do what the permission is for, such as "verify_cleanup", and whom to
    ask; empty for a person who may."""
    may = request.user.has_perm(f"storage_audit.{permission}")
    return "" if may else permission_advice(permission)


def all_admin_sites() -> list[AdminSite]:
    """The default one first. None where the admin is not installed."""
    if not current.is_installed("django.contrib.admin"):
        return []
    # A site may be made there, which a worker has not read.
    import_module(settings.ROOT_URLCONF)
    return list(dict.fromkeys([admin.site, *all_sites]))


def row_parts(row: Model) -> list[Model]:
    """The row, and those of child and parent models that go with it."""
    parts = [row]
    for each in parts:
        # Of a proxy, Django does not list the children.
        meta = (each._meta.concrete_model or type(each))._meta
        links: Any = get_candidate_relations_to_delete(meta)
        for link in links:
            if link.parent_link:
                # No manager of the model's own, as it may hide rows.
                children: QuerySet[Any] = QuerySet(link.related_model, using=DEFAULT_DB_ALIAS)
                found = children.filter(**{link.field.name: each})
                parts += [child for child in found if child not in parts]
        parents = (getattr(each, link.name) for link in meta.parents.values() if link)
        parts += [parent for parent in parents if parent not in parts]
    return parts


def model_admins_of(row: Model) -> "list[ModelAdmin[Any]]":
    """The admins of its model, and of the project model where that is a proxy of it, on every site.
    Those of other proxies only where there is none: they often show a part of the rows."""
    concrete = row._meta.concrete_model
    registered = [pair for site in all_admin_sites() for pair in site._registry.items()]
    mine = [(model, page) for model, page in registered if model._meta.concrete_model is concrete]
    own = [page for model, page in mine if model in (concrete, project_model.get_model())]
    return own or [page for _model, page in mine]


def is_hidden(request: HttpRequest, project: Model) -> bool:
    """Whether an admin does not show this person the project, or a row that goes with it. A list
    of what the project model derives from may well show others only."""
    return not all(
        page.get_queryset(request).filter(pk=each.pk).exists()
        for each in row_parts(project)
        if each == project or not isinstance(project, type(each))
        for page in model_admins_of(each)
    )


def stock_deletion(function: F) -> F:
    """Marks a way in which our own pages delete."""
    STOCK_DELETIONS.add(function)
    return function


def has_own_deletion(
    request: HttpRequest, rows: Iterable[Model], acting_admin: "ModelAdmin[Any] | None" = None
) -> bool:
    """Whether the site says how one of the rows, or a row that goes with it, is deleted, such as by
    archiving it: in one of the admins, or in the delete() of a model or queryset. We call only that
    of the project model; the others are called only by Django's own pages of deletion."""
    parts = [each for row in rows for each in row_parts(row)]
    pages = {page for each in parts for page in model_admins_of(each)} | (
        {acting_admin} if acting_admin else set()
    )
    models: set[type[Model]] = {project_model.get_model(), *map(type, parts)}
    models |= {page.model for page in pages}
    listed = [page.get_queryset(request) for page in pages]
    listed += [manager.get_queryset() for model in models for manager in model._meta.managers]
    return (
        any(has_own_page_deletion(request, page) for page in pages)
        or any(
            model.delete not in (Model.delete, project_model.get_model().delete) for model in models
        )
        or any(type(each).delete is not QuerySet.delete for each in listed)
    )


def has_own_page_deletion(request: HttpRequest, page: "ModelAdmin[Any]") -> bool:
    """Whether the admin, or an action that it or its site offers in the place of the deletion,
    deletes otherwise than Django's and our pages do."""
    ways = [getattr(type(page), name, None) for name in DELETION_METHODS]
    ways.append(site_deletion(page.admin_site))
    # What the admin lists is its own way also for a person to whom it is not offered.
    listed: list[Any] = [page.get_action(each) for each in page.actions or ()]
    for action in filter(None, [*listed, *page.get_actions(request).values()]):
        # Django 6.1 has a class for them, and before that a tuple.
        function, name = action[:2] if isinstance(action, tuple) else (action.func, action.name)
        if name == "delete_selected":
            ways.append(function)
    return not STOCK_DELETIONS.issuperset(filter(None, ways))


def site_deletion(site: AdminSite) -> Any:
    """What the site runs as "Delete selected"; None where it is disabled."""
    actions: Any = site.actions
    return dict(actions).get("delete_selected")


def deletion_obstacles(request: HttpRequest, row: Model) -> tuple[set[str], list[Any]]:
    """What of the row, and of those that would go with it, the admin does not let this person
    delete, and the rows that need it."""
    lacking, needing = set[str](), list[Any]()
    pages = [
        (convert_row(page.model, each), page)
        for each in row_parts(row)
        for page in model_admins_of(each)
    ]
    found = [page.get_deleted_objects([each], request) for each, page in pages]
    sites = {page.admin_site for _each, page in pages}
    found += [
        get_deleted_objects([row], request, site)
        for site in all_admin_sites()[:1]
        if site not in sites
    ]
    for _shown, _counts, refused, protected in found:
        lacking |= set(map(str, refused))
        needing += [each for each in protected if each not in needing]
    # Django asks no admin of a proxy.
    for each, page in pages:
        if not page.has_delete_permission(request, each):
            lacking.add(str(page.opts.verbose_name))
    return lacking, needing


def convert_row(model: type[Model], row: Model) -> Model:
    """The row as its model's proxy, or the other way round."""
    rows: QuerySet[Any] = QuerySet(model, using=DEFAULT_DB_ALIAS)
    return row if type(row) is model else rows.get(pk=row.pk)


def role_for(permission: str) -> str | None:
    return next((name for name, held in ROLES.items() if permission in held), None)


def permission_advice(permission: str, app: str = "storage_audit") -> str:
    role = role_for(permission) if app == "storage_audit" else None
    if role is None:
        return _("You need permission. Ask an administrator for it.")
    return _("You need permission. Ask an administrator to add you to the group “%s”.") % role
