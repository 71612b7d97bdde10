"""Findings: the list, and what staff decide about them. It asks first, and says of what is left as
it is, why."""

from contextlib import nullcontext
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET

from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup.admin.deleting import announce
from storage_audit.cleanup.requests import enqueue_on_commit
from storage_audit.concurrency import Busy, place
from storage_audit.findings.action_result import ActionRefused, Decision, refuse_many
from storage_audit.findings.admin import action_pages, leftover_pages
from storage_audit.findings.admin.action_pages import Act, size_of
from storage_audit.findings.finding_text import of_finding
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.formats import placed_key, shown_key, told, with_lines
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact, visible
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.keyset_list import BucketFilter
from storage_audit.ui.links import why_link
from storage_audit.ui.model_admin import ReadOnlyAdmin, action

Answer = HttpResponse | None
# What is usually not so, and then says nothing.
ONLY_IF = ("escaped", "upload_id")


class MayBeDeleted(admin.SimpleListFilter):
    title = gettext_lazy("what may be done")
    parameter_name = "may"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("go", gettext_lazy("Orphans that may be deleted"))]

    def queryset(self, request: HttpRequest, findings: Any) -> Any:
        return findings.deletable() if self.value() == "go" else findings


@admin.register(Finding)
class FindingAdmin(ReadOnlyAdmin[Finding], ConfirmingAdmin[Finding]):
    list_display = ("found", "kind", "state", "owner", "shown_size", "last_seen_at")
    list_filter = (BucketFilter, MayBeDeleted, "state", "kind")
    linked_lookups = ("last_scan",)
    confirmed_fields = ("pk", "state", "etag", "size", "last_modified", "project_id")
    search_fields = ("key",)
    search_help_text = gettext_lazy(
        "The beginning of a key, such as projects/proj_1/. Case counts."
    )
    prefix_field = "key"
    ordering = ("key", "pk")
    sortable_by = ("found",)
    actions = tuple(act.name for act in action_pages.ACTS)
    fields = (
        "means",
        "bucket",
        "shown",
        "why",
        "escaped",
        "kind",
        "upload_id",
        "state",
        "owner",
        "shown_size",
        "etag",
        "last_modified",
        "shown_evidence",
        "shown_note",
        "decided_by",
        "decided_at",
        "first_seen_at",
        "last_seen_at",
        "first_scan",
        "last_scan",
    )

    def get_urls(self) -> list[URLPattern]:
        view = self.as_page(self.left_behind)
        file = self.as_page(require_GET(self.left_behind_file))
        return [
            path("left-behind/", view, name="storage_audit_left_behind"),
            path("left-behind.<str:form>", file, name="storage_audit_left_behind_file"),
            *super().get_urls(),
        ]

    def get_fields(self, request: HttpRequest, obj: Finding | None = None) -> list[Any]:
        silent = [name for name in ONLY_IF if obj and not getattr(obj, name)]
        return [name for name in super().get_fields(request, obj) if name not in silent]

    def left_behind(self, request: HttpRequest) -> HttpResponse:
        return leftover_pages.view(request, self)

    def left_behind_file(self, request: HttpRequest, form: str) -> StreamingHttpResponse:
        return leftover_pages.download(request, form)

    @admin.display(description=gettext_lazy("key"), ordering="key")
    def found(self, finding: Finding) -> SafeString:
        evidence = visible(finding.evidence)
        key = placed_key(finding.bucket, finding.key)
        return format_html('{}<br><span class="quiet">{}</span>', key, evidence)

    @admin.display(description=gettext_lazy("what it means"))
    def means(self, finding: Finding) -> SafeString:
        return told(of_finding(finding))

    @admin.display(description=gettext_lazy("key"))
    def shown(self, finding: Finding) -> SafeString:
        return shown_key(finding.key)

    @admin.display(description=gettext_lazy("why it is there"))
    def why(self, finding: Finding) -> SafeString:
        return why_link(finding.bucket, finding.key)

    @admin.display(description=gettext_lazy("project"), ordering="project_id")
    def owner(self, finding: Finding) -> str | None:
        return finding.project_id and visible(finding.project_id)

    @admin.display(description=gettext_lazy("size"), ordering="size")
    def shown_size(self, finding: Finding) -> str | None:
        return size_of(finding)

    @admin.display(description=gettext_lazy("evidence"))
    def shown_evidence(self, finding: Finding) -> str:
        return visible(finding.evidence)

    @admin.display(description=gettext_lazy("note"))
    def shown_note(self, finding: Finding) -> str:
        return visible(finding.note)

    def is_fit(self, row: Finding, name: str) -> bool:
        return any(act.name == name and act.fits(row) for act in action_pages.ACTS)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.change_finding")

    def has_track_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.change_r2object")

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.delete_r2object")

    def has_adopt_permission(self, request: HttpRequest) -> bool:
        """An object goes with the project that it is given to."""
        return self.has_track_permission(request) and self.has_remove_permission(request)

    @action("decide", gettext_lazy("Acknowledge"))
    def acknowledge(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.ACKNOWLEDGE)

    @action("decide", gettext_lazy("Reopen"))
    def reopen(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.REOPEN)

    @action("dry_run", gettext_lazy("Dry-run deletion of orphans"))
    def plan_deletion(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.PLAN)

    @action("remove", gettext_lazy("Delete orphans"))
    def delete_orphans(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.DELETE)

    @action("adopt", gettext_lazy("Adopt into a project"))
    def adopt(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.ADOPT)

    @action("track", gettext_lazy("Track"))
    def track(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.TRACK)

    @action("remove", gettext_lazy("Remove the rows of missing objects"))
    def untrack(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.UNTRACK)

    @action("track", gettext_lazy("Rename misnamed objects"))
    def rename(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.RENAME)

    @action("remove", gettext_lazy("Abort unfinished uploads"))
    def abort_uploads(self, request: HttpRequest, queryset: FindingQuerySet) -> Answer:
        return self.decide(request, queryset, action_pages.ABORT)

    def decide(self, request: HttpRequest, findings: FindingQuerySet, act: Act) -> Answer:
        # What is not asked for was not shown either.
        all_now = Selection(findings, "", is_confirmed=True)
        selection = self.select(request, findings) if act.asks else all_now
        if not selection:
            return None
        try:
            with place() if act.asks_store else nullcontext():
                if act.looks:
                    refuse_many(selection.rows)
                if selection.is_confirmed and self.has_other_figures(request, act, selection):
                    self.ask_again(request)
                    selection = selection._replace(is_confirmed=False)
                form = act.form(request.POST if selection.is_confirmed else None)
                if not form.is_valid():
                    return self.ask(request, selection, act, form)
                decision = act.decide(selection.rows, **form.cleaned_data)
        except (ActionRefused, CannotConclude, StoreError, Busy) as trouble:
            self.message_user(request, visible(redact(str(trouble))), messages.ERROR)
            return None
        return self.tell(request, act, decision)

    def has_other_figures(self, request: HttpRequest, act: Act, selection: Selection) -> bool:
        """Whether something else would be done about the same findings than the page said."""
        if act.foresee is action_pages.listed:
            return False
        figures: str = act.foresee(selection.rows)["figures"]
        return request.POST.get("figures") != figures

    def ask(
        self, request: HttpRequest, selection: Selection, act: Act, form: forms.Form
    ) -> HttpResponse:
        page: dict[str, Any] = {name: getattr(act, name) for name in ("sentences", "button")}
        page |= {"action": act.name, "title": act.title, "form": form}
        page |= act.foresee(selection.rows)
        return self.confirm(request, selection, **page)

    def tell(self, request: HttpRequest, act: Act, decision: Decision) -> Answer:
        operations: list[Any] = decision.operations
        with transaction.atomic():
            for operation in operations:
                self.log_addition(request, operation, str(act.title))
            enqueue_on_commit(operations)
        if left := len(decision.left):
            text = ngettext(
                "%d finding is left as it is:", "%d findings are left as they are:", left
            )
            told = with_lines(text % left, decision.left)
            self.message_user(request, told, messages.WARNING)
        text = ngettext(
            "%(count)d finding is %(did)s.", "%(count)d findings are %(did)s.", decision.done
        ) % {"count": decision.done, "did": act.did}
        if decision.done and not operations:
            self.message_user(request, with_lines(text, decision.results), messages.SUCCESS)
        return announce(self, request, text, operations)
