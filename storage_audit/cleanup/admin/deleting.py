"""Deletions that a cleanup follows, and where to follow it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import IS_POPUP_VAR, TO_FIELD_VAR
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import model_ngettext, unquote
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup import end_deletions, pause_deletions
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

# An address names no more cleanups: servers accept some 4,000 characters.
MAX_LISTED = 50

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
        rows = selection.rows
        if selection.is_confirmed:
            *_shown, lacking, protected = self.get_deleted_objects(rows, request)
            # Django's own page says what stands in the way, and refuses.
            if not (lacking or protected):
                return self._delete_confirmed(request, rows)
        response = delete_selected(self, request, rows)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            response.context_data |= self.hidden_fields(request, selection)
            response.context_data["button"] = self.delete_label(rows.count())
        return response

    def delete_label(self, count: int) -> str:
        words = {"count": count, "items": model_ngettext(self.opts, count)}
        return _("Delete %(count)d %(items)s") % words

    def _delete_confirmed(
        self, request: HttpRequest, rows: models.QuerySet[M]
    ) -> HttpResponse | None:
        """As Django does it, whose message says “deleted” before the files are."""
        count, name = rows.count(), name_of_only(rows)
        with self._deletion_transaction(request) as collected:
            self.log_deletions(request, rows)
            self.delete_queryset(request, rows)
        if cleanups := collected.remaining():
            return self.follow_deletion(request, name, count, cleanups)
        words = {"count": count, "items": model_ngettext(self.opts, count)}
        text = _("Deleted %(count)d %(items)s.") % words
        self.message_user(request, text, messages.SUCCESS)
        return None

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if row := self.row_to_delete(request, object_id):
            _pks, digest = self.keys_and_digest(self.get_queryset(request).filter(pk=row.pk))
            # Read before the page: what changes between them is asked for again.
            extra_context = {
                "digest": digest,
                "button": self.delete_label(1),
                **(extra_context or {}),
            }
            if request.POST and not self.is_confirmed(request, digest):
                # Django takes any other answer for a yes.
                request.POST = QueryDict()
        if request.method != "POST":
            return super().delete_view(request, object_id, extra_context)
        with self._deletion_transaction(request) as collected:
            response = super().delete_view(request, object_id, extra_context)
        if isinstance(response, DeletionRedirect):
            return self.answer_deletion(request, response, collected.remaining())
        if response.status_code == 302:
            # A site has its own page after a deletion.
            self.link_deletion(request, collected.remaining())
        return response

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        """Nothing is said before the commit, which may lead to more cleanups."""
        if IS_POPUP_VAR in request.POST:
            return super().response_delete(request, obj_display, obj_id)
        return DeletionRedirect(self.url_after_deletion(request), obj_display, obj_id)

    def url_after_deletion(self, request: HttpRequest) -> str:
        if not self.has_view_permission(request):
            return reverse("admin:index", current_app=self.admin_site.name)
        filters: Any = {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}
        return add_preserved_filters(filters, self.own_list_url())

    def answer_deletion(
        self, request: HttpRequest, response: "DeletionRedirect", cleanups: Sequence[Cleanup]
    ) -> HttpResponse:
        """The cleanup's page. Django's own answer where no cleanup follows, such as for a row of
        another database."""
        name, key = response.obj_display, response.obj_id
        if not cleanups:
            return super().response_delete(request, name, key)
        return self.follow_deletion(request, name, 1, cleanups) or response

    def row_to_delete(self, request: HttpRequest, object_id: str) -> M | None:
        """As Django finds it: in a popup, the address may name another field than the key."""
        to_field = request.POST.get(TO_FIELD_VAR, request.GET.get(TO_FIELD_VAR))
        if to_field and not self.to_field_allowed(request, to_field):
            return None
        return self.get_object(request, unquote(object_id), to_field)

    def follow_deletion(
        self, request: HttpRequest, name: str, count: int, cleanups: Sequence[Cleanup]
    ) -> HttpResponse | None:
        text = deletion_text(request, self.started_text(name, count), cleanups)
        return announce_cleanups(self, request, text, cleanups)

    def link_deletion(self, request: HttpRequest, cleanups: Sequence[Cleanup]) -> None:
        """Say where to follow the deletion, on the next page."""
        if not cleanups:
            return
        text = paused_text() or _("A cleanup is deleting the files.")
        text = deletion_text(request, text, cleanups)
        if url := cleanups_url(request, cleanups):
            text = format_html('{} <a href="{}">{}</a>', text, url, _("Follow it here"))
        self.message_user(request, text, messages.SUCCESS)

    def started_text(self, name: str, count: int) -> str:
        """What happens now to the files of these rows. A single one has a name."""
        return paused_text() or self.deleting_text(name, count)

    def deleting_text(self, name: str, count: int) -> str:
        return ngettext("Deleting %d file now.", "Deleting %d files now.", count) % count


def paused_text() -> str:
    """What a deletion waits for while all are paused; else empty."""
    if not pause_deletions.find_pause():
        return ""
    return _("Deletions are paused. The files are deleted once somebody resumes them.")


class DeletionRedirect(HttpResponseRedirect):
    """Where Django goes after a deletion. A site may return its own instead."""

    def __init__(self, url: str, obj_display: str, obj_id: Any) -> None:
        super().__init__(url)
        self.obj_display, self.obj_id = obj_display, obj_id


def name_of_only(rows: models.QuerySet[Any]) -> str:
    """The name of a single row; empty for more."""
    first, *more = rows[:2] or [None]
    return "" if more or first is None else str(first)


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


def deletion_text(request: HttpRequest, text: str, cleanups: Sequence[Cleanup]) -> str:
    """The text, or for how long the deletion is held, with a link to undo it."""
    held = [each for each in cleanups if each.shown_hold()]
    if not held:
        return text
    until = min(filter(None, (each.shown_hold() for each in held)))
    text = _("Deleted. The files stay in the bucket until %s.") % format_utc(until)
    projects = {each.project_id for each in held}
    if len(projects) == 1 and (url := undo_url(request, held[0])):
        return format_html('{} <a href="{}">{}</a>', text, url, _("Undo"))
    return text


def announce_cleanups(
    model_admin: AuditAdmin[Any], request: HttpRequest, text: str, cleanups: Sequence[Cleanup]
) -> HttpResponse | None:
    """Say what happens next, and show it to those who may look at it: a cleanup's page, or the list
    of exactly these."""
    if not cleanups:
        return None
    model_admin.message_user(request, text, messages.SUCCESS)
    url = cleanups_url(request, cleanups)
    return HttpResponseRedirect(url) if url else None


def cleanups_url(request: HttpRequest, cleanups: Sequence[Cleanup]) -> str:
    """Empty for people who may not view them."""
    if not cleanups or not request.user.has_perm("storage_audit.view_cleanup"):
        return ""
    if len(cleanups) == 1:
        return cleanup_url(cleanups[0].pk)
    if len(cleanups) > MAX_LISTED:
        first = min(cleanup.created_at for cleanup in cleanups)
        return changelist_url("cleanup", created_at__gte=first.isoformat())
    return changelist_url("cleanup", id__in=",".join(str(each.pk) for each in cleanups))
