"""Deletions that a cleanup follows, and where to follow it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import TO_FIELD_VAR
from django.contrib.admin.utils import unquote
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.cleanup_text import status_label, status_style
from storage_audit.cleanup.delete_projects import (
    CleanupCollector,
    collect_cleanups,
    tolerate_hook_errors,
)
from storage_audit.cleanup.models import Cleanup
from storage_audit.display_formats import format_utc
from storage_audit.roles import site_deletion, stock_deletion
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import AuditAdmin, M

deletion_action = admin.action(
    permissions=["delete"],
    description=gettext_lazy("Delete selected %(verbose_name_plural)s"),
)


class DeletingAdmin(ConfirmingAdmin[M]):
    """The stock deletion, which here is followed by a cleanup."""

    def get_action(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        """None for the deletion where the site disabled it or replaced it. Django then offers the
        site's own: ours has the name of Django's."""
        if action == "delete_selected":
            of_site = site_deletion(self.admin_site)
            is_ours = type(self).delete_selected is DeletingAdmin.delete_selected
            if of_site is None or (is_ours and of_site is not delete_selected):
                return None
        return super().get_action(action, *args, **kwargs)

    def refused_actions(self, request: HttpRequest, row: M | None = None) -> list[tuple[str, str]]:
        found = super().refused_actions(request, row)
        if row and not self.has_delete_permission(request, row):
            found.append((_("Delete"), self.denial_reason(request, "delete")))
        return found

    @stock_deletion
    @deletion_action
    def delete_selected(
        self, request: HttpRequest, queryset: models.QuerySet[M]
    ) -> HttpResponse | None:
        selection = self.read_selection(request, queryset)
        return self.delete_selection(request, selection) if selection else None

    @contextmanager
    def _deletion_transaction(self, request: HttpRequest) -> Iterator[CleanupCollector]:
        """A transaction; says if a hook of the site failed after its commit."""
        failures = list[Exception]()
        with collect_cleanups() as collected, tolerate_hook_errors(failures):
            yield collected
        self._report_failures(request, failures)

    def _report_failures(self, request: HttpRequest, failures: list[Exception]) -> None:
        if failures:
            text = _(
                "The deletion went through, but a later step of this site failed. The server's log"
                " says why."
            )
            self.message_user(request, text, messages.WARNING)

    def delete_selection(self, request: HttpRequest, selection: Selection) -> HttpResponse | None:
        with self._deletion_transaction(request) as collected:
            response = delete_selected(self, request, selection.rows)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= self.hidden_fields(request, selection)
        else:
            self.announce_deletion(request, collected)
        return response

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if row := self.row_to_delete(request, object_id):
            _pks, digest = self.keys_and_digest(self.get_queryset(request).filter(pk=row.pk))
            # Read before the page: what changes between them is asked for again.
            extra_context = {"digest": digest, **(extra_context or {})}
            if request.POST and not self.is_confirmed(request, digest):
                # Django takes any other answer for a yes.
                request.POST = QueryDict()
        if request.method != "POST":
            return super().delete_view(request, object_id, extra_context)
        with self._deletion_transaction(request) as collected:
            response = super().delete_view(request, object_id, extra_context)
        if response.status_code == 302:
            self.announce_deletion(request, collected)
        return response

    def row_to_delete(self, request: HttpRequest, object_id: str) -> M | None:
        """As Django finds it: in a popup, the address may name another field than the key."""
        to_field = request.POST.get(TO_FIELD_VAR, request.GET.get(TO_FIELD_VAR))
        if to_field and not self.to_field_allowed(request, to_field):
            return None
        return self.get_object(request, unquote(object_id), to_field)

    def announce_deletion(self, request: HttpRequest, collected: CleanupCollector) -> None:
        text = _("A cleanup is deleting the files from R2. Its page shows when they are gone.")
        announce_deletions(self, request, text, collected.remaining())


def status_badge(status: str, word: str = "") -> SafeString:
    shown = word or Cleanup.Status(status).label
    return format_html('<span class="audit-status audit-{}">{}</span>', status, shown)


def cleanup_badge(cleanup: Cleanup) -> SafeString:
    return status_badge(status_style(cleanup), status_label(cleanup))


def undo_url(request: HttpRequest, cleanup: Cleanup) -> str:
    """The page that asks whether to undo the deletion; empty where this person can't."""
    may = request.user.has_perm("storage_audit.undo_cleanup")
    if not may or end_deletions.undo_obstacle(cleanup):
        return ""
    return reverse("admin:storage_audit_undo_deletion", args=[cleanup.pk])


def announce_deletions(
    model_admin: AuditAdmin[Any], request: HttpRequest, text: str, cleanups: Sequence[Cleanup]
) -> HttpResponse | None:
    """The same after a deletion; one that is held can be undone from the message."""
    held = [each for each in cleanups if each.shown_hold()]
    if not held:
        return announce_cleanups(model_admin, request, text, cleanups)
    until = min(filter(None, (each.shown_hold() for each in held)))
    text = _("Deleted. The files stay in the bucket until %s.") % format_utc(until)
    projects = {each.project_id for each in held}
    if len(projects) == 1 and (url := undo_url(request, held[0])):
        text = format_html('{} <a href="{}">{}</a>', text, url, _("Undo"))
    return announce_cleanups(model_admin, request, text, cleanups)


def announce_cleanups(
    model_admin: AuditAdmin[Any], request: HttpRequest, text: str, cleanups: Sequence[Cleanup]
) -> HttpResponse | None:
    """Say what happens next, with a link to it. A single cleanup's page is shown next, to those
    who may look at it."""
    if not cleanups:
        return None
    if not request.user.has_perm("storage_audit.view_cleanup"):
        model_admin.message_user(request, text, messages.SUCCESS)
        return None
    if len(cleanups) == 1:
        url, label = cleanup_url(cleanups[0].pk), _("Follow it here")
    else:
        first = min(cleanup.created_at for cleanup in cleanups)
        url = changelist_url("cleanup", created_at__gte=first.isoformat())
        label = _("Follow the %d cleanups here") % len(cleanups)
    message = format_html('{} <a href="{}">{}</a>.', text, url, label)
    model_admin.message_user(request, message, messages.SUCCESS)
    return HttpResponseRedirect(url) if len(cleanups) == 1 else None
