"""Where the list and the addresses of projects lead to those that are deleted."""

from collections.abc import Collection
from typing import Any, cast
from uuid import UUID

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import SEARCH_VAR
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.admin.project_names import find_by_name, may_view_projects
from storage_audit.cleanup.models import Cleanup
from storage_audit.projects.admin.database_copies import is_database_copy
from storage_audit.redaction import printable_text
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import AuditAdmin, M

MAX_LINKS = 5


class DeletedProjectsAdmin(AuditAdmin[M]):
    """Leads people who may view cleanups to the cleanup of a project that is gone."""

    def _get_obj_does_not_exist_redirect(
        self, request: HttpRequest, opts: Any, object_id: str
    ) -> HttpResponse:
        """Django calls this for the address of a row that is not there."""
        project_id = unquote(object_id)
        is_id = has_ids_as_keys(self) and not is_database_copy(self.get_queryset(request))
        if is_id and (found := find_deletions(request, project_id)):
            text = _("The project %s was deleted. This is its cleanup.")
            self.message_user(request, text % printable_text(project_id), messages.WARNING)
            return HttpResponseRedirect(cleanup_url(found[0].pk))
        stock: Any = super()
        return cast(HttpResponse, stock._get_obj_does_not_exist_redirect(request, opts, object_id))

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        searched = request.GET.get(SEARCH_VAR, "").strip()
        if searched and request.method == "GET" and (found := search_deletions(request, searched)):
            self.message_user(request, deletions_text(found, searched), messages.INFO)
        return super().changelist_view(request, extra_context)


def has_ids_as_keys(pages: AuditAdmin[Any]) -> bool:
    """Whether the key in an address is a project id: a child may have another parent's key."""
    key: Any = pages.opts.pk
    while key.is_relation:
        key = key.target_field
    return bool(key == project_model.id_field())


def search_deletions(request: HttpRequest, text: str) -> list[Cleanup]:
    """Of the projects with this id, or called so."""
    named = find_by_name(text) if may_view_projects(request) else []
    return find_deletions(request, text, named)


def find_deletions(
    request: HttpRequest, project_id: str, named: Collection[UUID] = ()
) -> list[Cleanup]:
    """The last deletion of each project that does not exist any more, the newest first: of this
    one, and of those whose deletions are named."""
    if not request.user.has_perm("storage_audit.view_cleanup") or not is_storable(project_id):
        return []
    asked = Q(project_id=project_id) | Q(pk__in=named)
    cleanups = Cleanup.objects.requested_deletions().of_projects().filter(asked)
    if may_view_projects(request):
        cleanups = cleanups.with_names()
    found = dict[str | None, Cleanup]()
    for cleanup in cleanups.defer("plan_summary").order_by("-created_at", "pk"):
        found.setdefault(cleanup.project_id, cleanup)
    living = project_model.living_ids(str(each) for each in found)
    return [cleanup for project_id, cleanup in found.items() if project_id not in living]


def deletions_text(found: list[Cleanup], searched: str) -> SafeString:
    """A link to each cleanup, and one to the list of all."""
    links = [
        (cleanup_url(each.pk), printable_text(each.named_subject)) for each in found[:MAX_LINKS]
    ]
    if (more := len(found) - MAX_LINKS) > 0:
        links.append((changelist_url("cleanup", q=searched), _("%d more") % more))
    shown = format_html_join(", ", '<a href="{}">{}</a>', links)
    text = ngettext("Deleted project found: {}", "Deleted projects found: {}", len(found))
    return format_html(text, shown)
