"""Deleted projects by name, such as their title, while their deletion can be undone."""

from typing import Any
from uuid import UUID

from django.contrib.auth import get_permission_codename
from django.http import HttpRequest

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.models import Cleanup

# The latest ones.
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
    found = Cleanup.objects.called(name).order_by("-created_at")
    return list(found.values_list("pk", flat=True)[:MAX_FOUND])
