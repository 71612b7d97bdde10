"""Projects by name, such as their title: those that exist, and deleted ones while their deletion
can be undone."""

from typing import Any
from uuid import UUID

from django.contrib.admin import AdminSite
from django.contrib.auth import get_permission_codename
from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.models import Cleanup

MAX_FOUND = 100


def may_view_projects(request: HttpRequest) -> bool:
    return may_view_titles(getattr(request, "user", None))


def may_view_titles(user: Any) -> bool:
    """Titles of projects are shown to nobody else."""
    meta = project_model.get_model()._meta
    return bool(user and user.has_perm(f"{meta.app_label}.{get_permission_codename('view', meta)}"))


def find_by_name(text: str) -> list[UUID]:
    """The keys of the deletions, by which a search finds them with an index."""
    name = text.strip()
    if not name or not is_storable(name):
        return []
    # The latest ones.
    found = Cleanup.objects.called(name).order_by("-created_at")
    return list(found.values_list("pk", flat=True)[:MAX_FOUND])


def find_existing_by_name(request: HttpRequest, site: AdminSite, text: str) -> dict[str, str]:
    """The ids and names of projects that the search of the site's own list of projects finds. It
    knows what their model calls a title, which index finds one, and which projects this person may
    see."""
    projects = site._registry.get(project_model.get_model())
    name = text.strip()
    if not projects or not projects.get_search_fields(request) or not name:
        return {}
    rows = projects.get_queryset(request).using(DEFAULT_DB_ALIAS).order_by()
    found, has_duplicates = projects.get_search_results(request, rows, name)
    if has_duplicates:
        found = rows.filter(pk__in=found.values("pk"))
    return {project_model.id_of(row): str(row) for row in found[:MAX_FOUND]}
