"""Cleanup operations: the list, one page for each, and what a person may do to them."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from storage_audit.cleanup import requests
from storage_audit.cleanup.admin import cleanup_page, items, live_progress, plan_page
from storage_audit.cleanup.admin.cleanup_filters import FollowUpChecks, Needs
from storage_audit.cleanup.admin.deleting import announce, badge_of
from storage_audit.cleanup.admin.forms import DeclareDeletedForm
from storage_audit.cleanup.cleanup_text import words_of
from storage_audit.cleanup.describe import CLOSED
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.fields import starts_with
from storage_audit.formats import amount
from storage_audit.redaction import visible
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.model_admin import DJANGO_6_1, ReadOnlyAdmin

# Verified in one request; of whole projects, a job verifies any number.
MOST_AT_ONCE = 100


@admin.register(CleanupOperation)
class CleanupOperationAdmin(ReadOnlyAdmin[CleanupOperation], ConfirmingAdmin[CleanupOperation]):
    list_display = (
        "subject_shown",
        "state",
        "found_shown",
        "trigger",
        "created_at",
    )
    # Each of them, and both, has an index. The trigger tells nearly all that the kind would.
    list_filter = (Needs, "status", "trigger", FollowUpChecks)
    linked_lookups = (
        "project_id",
        "job",
        "created_at__gte",
        "next_attempt_at__isnull",
        "error__gt",
    )
    search_fields = ("project_id", "id")
    search_help_text = gettext_lazy(
        "The beginning of a project id, such as proj_1, or a whole deletion id."
    )
    ordering = ("-created_at", "pk")
    sortable_by = ("created_at",)
    fields = ()
    actions = ("verify_cleanup", "force_delete")
    tools = {
        "verify_cleanup": gettext_lazy("Compare with the bucket"),
        "force_cleanup": gettext_lazy("Clean up a deleted project"),
    }
    change_list_template = "admin/storage_audit/cleanupoperation/change_list.html"
    # Of features above this one, which storage_audit/admin.py adds: their pages below this list,
    # and what a cleanup's own page shows of them.
    more_urls: Iterable[Callable[["CleanupOperationAdmin"], list[URLPattern]]] = ()
    more_context: Iterable[Callable[[CleanupOperation], dict[str, Any]]] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[CleanupOperation]:
        # A hundred kilobytes, at worst, which only the page of a plan shows.
        return super().get_queryset(request).defer("summary")

    def get_urls(self) -> list[URLPattern]:
        declare = self.as_page(self.declare_deleted)
        return [
            path("declare-deleted/", declare, name="storage_audit_declare_deleted"),
            path(
                "<uuid:operation_id>/items.<str:form>",
                self.as_page(require_GET(self.items_file)),
                name="storage_audit_operation_items",
            ),
            path(
                "<uuid:operation_id>/progress/",
                self.as_page(self.progress),
                name="storage_audit_operation_progress",
            ),
            *chain.from_iterable(urls(self) for urls in self.more_urls),
            *super().get_urls(),
        ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[CleanupOperation], search_term: str
    ) -> tuple[QuerySet[CleanupOperation], bool]:
        found = starts_with("project_id", search_term)
        with suppress(ValueError):
            found |= Q(pk=UUID(search_term))
        return queryset.filter(found), False

    @admin.display(description=gettext_lazy("project"), ordering="project_id")
    def subject_shown(self, operation: CleanupOperation) -> str:
        return visible(operation.subject)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, operation: CleanupOperation) -> SafeString:
        return badge_of(operation)

    # Empty while the books are open: their figures are written when they are closed.
    @admin.display(description=gettext_lazy("found"), ordering="found")
    def found_shown(self, operation: CleanupOperation) -> SafeString | None:
        if operation.status == CleanupOperation.Status.PENDING and operation.next_attempt_at:
            due = date_format(localtime(operation.next_attempt_at), "DATETIME_FORMAT")
            return format_html("{}", _("due %s") % due)
        if operation.status not in (*CleanupOperation.CLOSED, CleanupOperation.Status.PLANNED):
            return None
        closed = operation.status in CleanupOperation.CLOSED
        counts = [(getattr(operation, name), name) for name in CLOSED if closed]
        became = ", ".join(f"{n} {words_of(operation, name)[0]}" for n, name in counts if n)
        return format_html("{}<br>{}", amount(operation.found, operation.found_bytes), became)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        operation = context["original"]
        context |= {
            "title": _("Cleanup operation: %s") % visible(operation.subject),
            "has_own_object_tools": not DJANGO_6_1,
            **cleanup_page.context(request, operation),
            **plan_page.context(request, operation),
        }
        for more in self.more_context:
            context |= more(operation)
        return super().render_change_form(request, context, *args, **kwargs)

    def progress(self, request: HttpRequest, operation_id: UUID) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        # Some have a list of many projects there, or a large plan's figures.
        light = CleanupOperation.objects.defer("cursor", "summary")
        operation = get_object_or_404(light, pk=operation_id)
        told = live_progress.progress(operation, timezone.now())
        return JsonResponse({**told, "books": live_progress.lines(operation)})

    @admin.action(permissions=["verify"], description=gettext_lazy("Verify cleanup"))
    def verify_cleanup(
        self, request: HttpRequest, queryset: QuerySet[CleanupOperation]
    ) -> HttpResponse | None:
        if queryset[: MOST_AT_ONCE + 1].count() > MOST_AT_ONCE:
            text = _(
                "Nothing was done: at most %d operations can be verified at once. Select fewer, or"
                " verify their projects, of which you may select any number."
            )
            self.message_user(request, text % MOST_AT_ONCE, messages.ERROR)
            return None
        with transaction.atomic():
            checks = []
            # In the order in which all who lock several lock them.
            for operation in queryset.order_by("pk"):
                try:
                    checks.append(check := requests.verify_operation(operation))
                except IllegalTransition as refusal:
                    self.message_user(request, str(refusal), messages.ERROR)
                    continue
                log = _("Verification requested: operation %s.") % check.pk
                self.log_change(request, operation, log)
            requests.enqueue_on_commit(checks)
        text = _("A verification is queued. It looks into the bucket again and changes nothing.")
        return announce(self, request, text, checks)

    @admin.action(permissions=["force"], description=gettext_lazy("Force-delete"))
    def force_delete(
        self, request: HttpRequest, queryset: QuerySet[CleanupOperation]
    ) -> HttpResponse | None:
        selection = self.select(request, queryset)
        if not selection:
            return None
        confirmed, operations = selection.is_confirmed, list(selection.rows)
        if confirmed and request.POST.get("figures") != figures_of(operations):
            self.ask_again(request)
            confirmed = False
        if not confirmed:
            return self.confirm_force(request, selection, operations)
        released = [each for operation in operations for each in self.force(request, operation)]
        text = _("Queued: a worker takes it next. Its page says what became of it.")
        return announce(self, request, text, released)

    def force(self, request: HttpRequest, operation: CleanupOperation) -> list[CleanupOperation]:
        if may_not := cleanup_page.refuse_to_force(request, operation):
            self.message_user(request, f"{operation.pk}: {may_not}", messages.ERROR)
            return []
        try:
            with transaction.atomic():
                released = requests.force_delete_operation(operation)
                self.log_change(request, operation, _("Force-deleted."))
                requests.enqueue_on_commit(released)
        except (IllegalTransition, requests.ProjectExists, ValidationError) as refusal:
            text = refusal.messages[0] if isinstance(refusal, ValidationError) else str(refusal)
            self.message_user(request, visible(text), messages.ERROR)
            return []
        return released

    def confirm_force(
        self, request: HttpRequest, selection: Selection, operations: list[CleanupOperation]
    ) -> HttpResponse:
        forced = [each for each in operations if cleanup_page.force_choice(each)]
        going = cleanup_page.to_be_deleted(forced)
        # Nobody knows what one deletes that has no plan yet.
        is_known = 0 < len(forced) == len(going)
        total = amount(*map(sum, zip(*going.values(), strict=True))) if is_known else ""
        are_plans = all(each.status == CleanupOperation.Status.PLANNED for each in operations)
        return self.confirm(
            request,
            selection,
            action="force_delete",
            figures=figures_of(operations),
            title=_("Run this plan?") if are_plans else _("Force-delete?"),
            sentences=(
                _(
                    "It lifts limits, never the ownership rule: files that may belong to another"
                    " project, or whose owner is unknown, are kept. Deleted files cannot be"
                    " restored."
                ),
            ),
            heads=(
                _("Project"),
                _("Deletes at most"),
                _("What happens"),
                _("Status"),
                _("Operation"),
            ),
            rows=[
                (
                    visible(operation.subject),
                    amount(*going[operation.pk]) if operation.pk in going else "–",
                    cleanup_page.effect_of_force(operation),
                    badge_of(operation),
                    operation.pk,
                )
                for operation in operations
            ],
            button=_("Delete %s") % total if total else _("Yes, go on without limits"),
        )

    def declare_deleted(self, request: HttpRequest) -> HttpResponse:
        if not self.has_force_permission(request):
            raise PermissionDenied
        given = {"project_id": request.GET.get("project_id")}
        form = DeclareDeletedForm(request.POST or None, initial=given)
        if form.is_valid() and (answer := self.declare(request, form)):
            return answer
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Clean up a deleted project"),
            "opts": self.opts,
            "media": self.media,
            "form": form,
        }
        return TemplateResponse(
            request, "admin/storage_audit/cleanupoperation/declare_deleted.html", context
        )

    def declare(self, request: HttpRequest, form: DeclareDeletedForm) -> HttpResponse | None:
        try:
            with transaction.atomic():
                operations = requests.declare_deleted(form.cleaned_data["project_id"])
                for operation in operations:
                    self.log_addition(request, operation, _("Project declared deleted."))
                requests.enqueue_on_commit(operations)
        except requests.ProjectExists as refusal:
            form.add_error("project_id", str(refusal))
            return None
        text = _("A cleanup is queued. It looks for what the project left behind and deletes it.")
        answer = announce(self, request, text, operations)
        return answer or redirect("admin:storage_audit_cleanupoperation_changelist")

    def items_file(
        self, request: HttpRequest, operation_id: UUID, form: str
    ) -> StreamingHttpResponse:
        return items.download(self.seen(request, operation_id), form, request.GET)

    def seen(self, request: HttpRequest, operation_id: UUID) -> CleanupOperation:
        """The operation, if there is one and this person may see it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return get_object_or_404(CleanupOperation, pk=operation_id)


def figures_of(operations: list[CleanupOperation]) -> str:
    """What the confirmation page repeats: in another status the same button does another thing."""
    return hashlib.sha256("".join(sorted(each.figures for each in operations)).encode()).hexdigest()
