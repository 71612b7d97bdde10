"""Cleanups: the list, one page for each, and what a person may do to them."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from storage_audit.cleanup import make_cleanups, requests
from storage_audit.cleanup.admin import (
    cleanup_buttons,
    cleanup_page,
    items,
    live_progress,
    pause_page,
    plan_page,
)
from storage_audit.cleanup.admin.cleanup_columns import CleanupColumns
from storage_audit.cleanup.admin.cleanup_filters import (
    DecisionFilter,
    FollowUpFilter,
    NeedsFilter,
    RequesterFilter,
)
from storage_audit.cleanup.admin.confirm_text import (
    file_sample,
    force_sentences,
    force_title,
    left_out_lines,
    recorded_files,
)
from storage_audit.cleanup.admin.decision_kinds import UNDO
from storage_audit.cleanup.admin.decisions import DecidingAdmin, combined_digest
from storage_audit.cleanup.admin.deleting import announce_cleanups, cleanup_badge
from storage_audit.cleanup.admin.forms import DeclareDeletedForm, ProjectIdForm
from storage_audit.cleanup.admin.project_names import (
    find_by_name,
    find_existing_by_name,
    may_view_projects,
)
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.display_formats import format_amount
from storage_audit.fields import starts_with, uuid_starts_with
from storage_audit.project_model import ProjectExists
from storage_audit.redaction import printable_text
from storage_audit.ui.confirm import Selection
from storage_audit.ui.model_admin import DJANGO_6_1, ReadOnlyAdmin

# Verified in one request; of whole projects, a bulk job verifies any number.
MAX_VERIFICATIONS = 100
Outcome = CleanupItem.Outcome
APPROVAL_REFUSALS = (IllegalTransition, ProjectExists, ValidationError)


@admin.register(Cleanup)
class CleanupAdmin(CleanupColumns, ReadOnlyAdmin[Cleanup], DecidingAdmin):
    list_display = (
        "visible_subject",
        "state",
        "result",
        "size",
        "requested",
    )
    # Status, trigger and person have indexes. The trigger says nearly all that the kind would.
    list_filter = (
        NeedsFilter,
        "status",
        "trigger",
        RequesterFilter,
        "created_at",
        DecisionFilter,
        FollowUpFilter,
    )
    linked_lookups = (
        "project_id",
        "bulk_job",
        "created_at__gte",
        "id__in",
        "message__gt",
    )
    search_fields = ("project_id", "id")
    search_help_text = gettext_lazy(
        "The beginning of a project ID, such as proj_1, or of a deletion ID (8 digits or more), or"
        " of a project's title. Of a deleted project that can be restored, any word of the title."
    )
    ordering = ("-created_at", "pk")
    sortable_by = ("requested",)
    fields = ()
    actions = (
        "verify_cleanup",
        "undo_deletion",
        "cancel_deletion",
        "erase_deletion",
        "clean_up_again",
        "force_delete",
    )
    tools = {
        "verify_cleanup": gettext_lazy("Compare with the bucket"),
        "force_cleanup": gettext_lazy("Clean up a deleted project"),
    }
    change_list_template = "admin/storage_audit/cleanup/change_list.html"
    empty_list_text = gettext_lazy("No cleanup yet. Deleting a project starts one.")
    # Of features above this one, which storage_audit/admin.py adds: their pages below this list,
    # and what a cleanup's own page shows of them.
    more_urls: Iterable[Callable[["CleanupAdmin"], list[URLPattern]]] = ()
    more_context: Iterable[Callable[[Cleanup], dict[str, Any]]] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cleanup]:
        # A hundred kilobytes, at worst, which only the page of a plan shows.
        cleanups: Any = super().get_queryset(request).defer("plan_summary")
        found: QuerySet[Cleanup] = cleanups.with_names() if may_view_projects(request) else cleanups
        return found

    def get_urls(self) -> list[URLPattern]:
        declare = self.wrap_view(self.declare_deleted)
        return [
            path("declare-deleted/", declare, name="storage_audit_declare_deleted"),
            path(
                "<uuid:deletion_id>/items.<str:form>",
                self.wrap_view(require_GET(self.items_view)),
                name="storage_audit_cleanup_items",
            ),
            path(
                "<uuid:deletion_id>/undo/",
                self.wrap_view(self.undo_view),
                name="storage_audit_undo_deletion",
            ),
            path(
                "<uuid:deletion_id>/progress/",
                self.wrap_view(self.progress_view),
                name="storage_audit_cleanup_progress",
            ),
            *pause_page.urls(self),
            *chain.from_iterable(urls(self) for urls in self.more_urls),
            *super().get_urls(),
        ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Cleanup], search_term: str
    ) -> tuple[QuerySet[Cleanup], bool]:
        if not search_term:
            return queryset, False
        found = starts_with("project_id", search_term)
        found |= uuid_starts_with("pk", search_term) or Q()
        if may_view_projects(request):
            existing = find_existing_by_name(request, self.admin_site, search_term)
            found |= Q(pk__in=find_by_name(search_term)) | Q(project_id__in=existing)
        return queryset.filter(found), False

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        cleanup = context["original"]
        page = cleanup_page.cleanup_context(request, cleanup)
        context |= {
            "title": _("Cleanup: %s") % printable_text(cleanup.named_subject),
            # Its ID, which is below.
            "subtitle": None,
            "has_own_object_tools": not DJANGO_6_1,
            **page,
            **cleanup_buttons.button_context(request, cleanup, page["totals"]),
        }
        if page["tab"] == "plan":
            context |= plan_page.plan_context(request, cleanup)
        for more in self.more_context:
            context |= more(cleanup)
        return super().render_change_form(request, context, *args, **kwargs)

    def progress_view(self, request: HttpRequest, deletion_id: UUID) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        # Some have a list of many projects there, or a large plan's figures.
        light = Cleanup.objects.defer("position", "plan_summary")
        cleanup = get_object_or_404(light, pk=deletion_id)
        told = live_progress.progress_values(cleanup, timezone.now())
        return JsonResponse({**told, "totals": live_progress.line_values(cleanup)})

    @admin.action(permissions=["verify"], description=gettext_lazy("Verify cleanup"))
    def verify_cleanup(
        self, request: HttpRequest, queryset: QuerySet[Cleanup]
    ) -> HttpResponse | None:
        if queryset[: MAX_VERIFICATIONS + 1].count() > MAX_VERIFICATIONS:
            text = _(
                "Nothing was done: at most %d cleanups can be verified at once. Select fewer, or"
                " verify their projects, of which you may select any number."
            )
            self.message_user(request, text % MAX_VERIFICATIONS, messages.ERROR)
            return None
        with transaction.atomic():
            checks = []
            # In the order in which all who lock several lock them.
            for cleanup in queryset.order_by("pk"):
                try:
                    checks.append(check := requests.request_cleanup_verification(cleanup))
                except IllegalTransition as refusal:
                    self.message_user(request, str(refusal), messages.ERROR)
                    continue
                log = _("Verification requested: cleanup %s.") % check.pk
                self.log_change(request, cleanup, log)
            make_cleanups.enqueue_on_commit(checks)
        text = _("A verification is queued. It looks into the bucket again and changes nothing.")
        return announce_cleanups(self, request, text, checks)

    def undo_view(self, request: HttpRequest, deletion_id: UUID) -> HttpResponse:
        """Where a message after a deletion leads. It asks, and the form does it."""
        if not self.has_undo_permission(request):
            raise PermissionDenied
        cleanup = self.get_queryset(request).filter(pk=deletion_id)
        if not cleanup.exists():
            raise Http404
        answer = self.confirm_decision(request, cleanup, UNDO)
        return answer or redirect(self.own_list_url())

    @admin.action(permissions=["force"], description=gettext_lazy("Force-delete"))
    def force_delete(
        self, request: HttpRequest, queryset: QuerySet[Cleanup]
    ) -> HttpResponse | None:
        selection = self.read_selection(request, queryset)
        if not selection:
            return None
        confirmed, cleanups = selection.is_confirmed, list(selection.rows)
        if confirmed and request.POST.get("figures") != combined_digest(cleanups):
            self.require_new_confirmation(request)
            confirmed = False
        if not confirmed:
            return self.confirm_force(request, selection, cleanups)
        approved, refused = list[Cleanup](), list[str]()
        for cleanup in cleanups:
            try:
                approved += self.approve_or_retry(request, cleanup)
            except APPROVAL_REFUSALS as refusal:
                refused.append(refusal_text(refusal))
        self.report_left_out(request, len(cleanups), refused)
        text = _("Queued: a worker takes it next. Its page says what became of it.")
        return announce_cleanups(self, request, text, approved)

    def approve_or_retry(self, request: HttpRequest, cleanup: Cleanup) -> list[Cleanup]:
        """Raises one of `APPROVAL_REFUSALS`."""
        if may_not := cleanup_page.force_refusal(request, cleanup):
            raise IllegalTransition(may_not)
        with transaction.atomic():
            approved = requests.approve_or_retry(cleanup)
            self.log_change(request, cleanup, _("Force-deleted."))
            make_cleanups.enqueue_on_commit(approved)
        return approved

    def confirm_force(
        self, request: HttpRequest, selection: Selection, cleanups: list[Cleanup]
    ) -> HttpResponse:
        forced = [each for each in cleanups if cleanup_page.force_choice(each)]
        going = cleanup_page.amounts_to_delete(forced)
        # Without a plan nobody knows yet what it deletes.
        is_known = 0 < len(forced) == len(going)
        count, size = map(sum, zip(*going.values(), strict=True)) if is_known else (0, 0)
        refused = [cleanup_page.force_effect(each) for each in cleanups if each not in forced]
        what = force_title(forced)
        label = _("Delete %s") % format_amount(count, size) if is_known else what
        return self.render_confirmation(
            request,
            selection,
            action="force_delete",
            figures=combined_digest(cleanups),
            title=f"{what}?" if forced else _("Nothing to approve or retry"),
            sentences=[*force_sentences(forced), *left_out_lines(len(cleanups), refused)],
            heads=(
                _("Project"),
                _("Deletes at most"),
                _("What happens"),
                _("Status"),
                _("Deletion ID"),
            ),
            rows=[
                (
                    printable_text(cleanup.named_subject),
                    format_amount(*going[cleanup.pk]) if cleanup.pk in going else "–",
                    cleanup_page.force_effect(cleanup),
                    cleanup_badge(cleanup),
                    cleanup.pk,
                )
                for cleanup in forced
            ],
            button=label if forced else "",
            **file_sample(forced, count),
        )

    def declare_deleted(self, request: HttpRequest) -> HttpResponse:
        if not self.has_force_permission(request):
            raise PermissionDenied
        typed = request.POST or request.GET
        form: Any = ProjectIdForm(typed if "project_id" in typed else None)
        if asked := form.cleaned_data["project_id"] if form.is_valid() else "":
            # The numbers are shown, and the next answer deletes.
            form = DeclareDeletedForm(request.POST or None, initial={"project_id": asked})
            if form.is_valid() and (answer := self.submit_declaration(request, form)):
                return answer
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Clean up a deleted project"),
            "opts": self.opts,
            "media": self.media,
            "form": form,
            "asked": printable_text(asked),
            "hold": requests.coming_hold(asked).shown_hold() if asked else None,
            **recorded_files(request, asked),
        }
        return TemplateResponse(
            request, "admin/storage_audit/cleanup/declare_deleted.html", context
        )

    def submit_declaration(
        self, request: HttpRequest, form: DeclareDeletedForm
    ) -> HttpResponse | None:
        try:
            with transaction.atomic():
                cleanups = requests.declare_deleted(form.cleaned_data["project_id"])
                for cleanup in cleanups:
                    self.log_addition(request, cleanup, _("Project declared deleted."))
                make_cleanups.enqueue_on_commit(cleanups)
        except ProjectExists as refusal:
            form.add_error("project_id", str(refusal))
            return None
        text = _("A cleanup is queued. It finds the project's leftover files and deletes them.")
        answer = announce_cleanups(self, request, text, cleanups)
        return answer or redirect("admin:storage_audit_cleanup_changelist")

    def items_view(
        self, request: HttpRequest, deletion_id: UUID, form: str
    ) -> StreamingHttpResponse:
        return items.download_items(self.get_cleanup(request, deletion_id), form, request.GET)

    def get_cleanup(self, request: HttpRequest, deletion_id: UUID) -> Cleanup:
        """The cleanup, if there is one and this person may see it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return get_object_or_404(Cleanup, pk=deletion_id)


def refusal_text(refusal: Exception) -> str:
    return refusal.messages[0] if isinstance(refusal, ValidationError) else str(refusal)
