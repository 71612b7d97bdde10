"""The list of findings, and what staff decide about them. It asks first, and says why a finding was
skipped."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET

from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup.admin.deleting import announce_cleanups, paused_text
from storage_audit.cleanup.make_cleanups import enqueue_on_commit
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.display_formats import (
    Answer,
    format_key_list,
    format_listed_key,
    format_utc,
)
from storage_audit.findings.action_result import ActionRefused, Decision, refuse_too_many
from storage_audit.findings.actions import ACTIONS, DELETE_OBJECTS, IGNORE, FindingAction
from storage_audit.findings.admin import leftover_pages
from storage_audit.findings.admin.action_pages import FORMS, PREVIEWS, finding_size, selection_page
from storage_audit.findings.finding_text import explain_finding
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import printable_text, redact_secrets
from storage_audit.roles import permission_advice
from storage_audit.ui.confirm import ConfirmingAdmin, Selection
from storage_audit.ui.keyset_list import BucketFilter
from storage_audit.ui.links import why_link
from storage_audit.ui.model_admin import ReadOnlyAdmin, admin_action
from storage_audit.ui.object_page import Button, ObjectPageAdmin

Reply = HttpResponse | None


class DeletableFilter(admin.SimpleListFilter):
    title = gettext_lazy("deletion")
    parameter_name = "may"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("go", gettext_lazy("Can be deleted now"))]

    def queryset(self, request: HttpRequest, findings: Any) -> Any:
        return findings.deletable() if self.value() == "go" else findings


def build_admin_action(act: FindingAction) -> Callable[..., Reply]:
    def run_action(page: Any, request: HttpRequest, findings: FindingQuerySet) -> Reply:
        answer: Reply = page.run_action(request, findings, act)
        return answer

    run_action.__name__ = act.name
    return admin_action(act.name, act.label)(run_action)


@admin.register(Finding)
class FindingAdmin(ObjectPageAdmin[Finding], ReadOnlyAdmin[Finding], ConfirmingAdmin[Finding]):
    list_display = ("key_and_evidence", "kind", "state", "owner", "shown_size", "last_seen_at")
    list_filter = (BucketFilter, DeletableFilter, "state", "kind")
    empty_list_text = gettext_lazy("No findings. A reconcile scan looks for differences.")
    linked_lookups = ("last_scan", "project_id")
    confirmed_fields = ("pk", "state", "etag", "size", "last_modified", "project_id")
    search_fields = ("key",)
    search_help_text = gettext_lazy(
        "Start of a file name, such as projects/proj_1/. Case-sensitive."
    )
    prefix_field = "key"
    ordering = ("key", "pk")
    sortable_by = ("key_and_evidence",)
    actions = tuple(map(build_admin_action, ACTIONS))
    danger_actions = (DELETE_OBJECTS.name,)
    facts = (
        "bucket",
        "reason_link",
        "escaped",
        "kind",
        "upload_id",
        "owner",
        "shown_size",
        "etag",
        "last_modified",
        "evidence",
        "note",
        "decided_by",
        "decided_at",
        "first_seen_at",
        "last_seen_at",
        "first_scan_link",
        "last_scan_link",
    )

    def get_urls(self) -> list[URLPattern]:
        view = self.wrap_view(self.leftovers)
        files = self.wrap_view(require_GET(self.leftover_objects))
        file = self.wrap_view(require_GET(self.leftovers_file))
        return [
            path("leftovers/", view, name="storage_audit_leftovers"),
            path("leftovers/files/", files, name="storage_audit_leftover_objects"),
            path("leftovers.<str:form>", file, name="storage_audit_leftover_file"),
            *super().get_urls(),
        ]

    def page_title(self, finding: Finding) -> str:
        return _("Finding: %s") % printable_text(finding.key)

    def page_answer(self, finding: Finding) -> Answer:
        return explain_finding(finding)

    def action_buttons(self, request: HttpRequest, finding: Finding) -> Iterator[Button]:
        """What settles it comes before what leaves it as it is."""
        buttons = super().action_buttons(request, finding)
        yield from sorted(buttons, key=lambda each: each.action == IGNORE.name)

    def leftovers(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return leftover_pages.show_leftovers(request, self, is_file_list=False)
        return leftover_pages.act_on_projects(request, partial(self.run_action, request))

    def leftover_objects(self, request: HttpRequest) -> HttpResponse:
        return leftover_pages.show_leftovers(request, self, is_file_list=True)

    def leftovers_file(self, request: HttpRequest, form: str) -> StreamingHttpResponse:
        return leftover_pages.download_leftovers(request, form)

    @admin.display(description=gettext_lazy("key"), ordering="key")
    def key_and_evidence(self, finding: Finding) -> SafeString:
        evidence = printable_text(finding.evidence)
        key = format_listed_key(finding.bucket, finding.key)
        return format_html('{}<br><span class="quiet">{}</span>', key, evidence)

    @admin.display(description=gettext_lazy("why it is there"))
    def reason_link(self, finding: Finding) -> SafeString:
        return why_link(finding.bucket, finding.key)

    @admin.display(description=gettext_lazy("project"), ordering="project_id")
    def owner(self, finding: Finding) -> str | None:
        return finding.project_id and printable_text(finding.project_id)

    @admin.display(description=gettext_lazy("size"), ordering="size")
    def shown_size(self, finding: Finding) -> str | None:
        return finding_size(finding)

    @admin.display(description=gettext_lazy("first scan"))
    def first_scan_link(self, finding: Finding) -> SafeString | None:
        return scan_link(finding.first_scan)

    @admin.display(description=gettext_lazy("last scan"))
    def last_scan_link(self, finding: Finding) -> SafeString | None:
        return scan_link(finding.last_scan)

    def is_action_offered(self, row: Finding, name: str) -> bool:
        return any(act.name == name and act.is_offered(row) for act in ACTIONS)

    def denial_reason(self, request: HttpRequest, needed: str) -> str:
        """Each group with the last permission of an action has its others too."""
        last = {act.name: act.permissions[-1] for act in ACTIONS}
        if needed in last:
            return permission_advice(last[needed])
        return super().denial_reason(request, needed)

    def run_action(
        self, request: HttpRequest, findings: FindingQuerySet, act: FindingAction
    ) -> Reply:
        # Without a confirmation page nothing was shown either.
        all_now = Selection(findings, "", is_confirmed=True)
        selection = self.read_selection(request, findings) if act.button else all_now
        if not selection:
            return None
        try:
            with acquire_slot() if act.asks_store else nullcontext():
                if act.lists_bucket:
                    refuse_too_many(selection.rows)
                if selection.is_confirmed and self.is_preview_outdated(request, act, selection):
                    self.require_new_confirmation(request)
                    selection = selection._replace(is_confirmed=False)
                form = FORMS.get(act.name, forms.Form)(
                    request.POST if selection.is_confirmed else None
                )
                if not form.is_valid():
                    return self.show_confirmation(request, selection, act, form)
                decision = act.decide(selection.rows, **form.cleaned_data)
        except (ActionRefused, CannotConclude, StoreError, Busy) as trouble:
            self.message_user(request, printable_text(redact_secrets(str(trouble))), messages.ERROR)
            return None
        return self.report_result(request, act, decision)

    def is_preview_outdated(
        self, request: HttpRequest, act: FindingAction, selection: Selection
    ) -> bool:
        """Whether the action would do something else than the page said."""
        if act.name not in PREVIEWS:
            return False
        figures: str = PREVIEWS[act.name](act, selection.rows)["figures"]
        return request.POST.get("figures") != figures

    def show_confirmation(
        self, request: HttpRequest, selection: Selection, act: FindingAction, form: forms.Form
    ) -> HttpResponse:
        page = PREVIEWS.get(act.name, selection_page)(act, selection.rows)
        # On the page of leftover files projects are selected, not findings.
        chosen = [
            (name, each) for name in ("project", "all") for each in request.POST.getlist(name)
        ]
        page |= {"action": act.name, "form": form, "is_harmless": act.is_harmless}
        page |= {"chosen": chosen}
        return self.render_confirmation(request, selection, **page)

    def report_result(self, request: HttpRequest, act: FindingAction, decision: Decision) -> Reply:
        cleanups: list[Any] = decision.cleanups
        with transaction.atomic():
            for cleanup in cleanups:
                self.log_addition(request, cleanup, str(act.label))
            enqueue_on_commit(cleanups)
        if left := len(decision.skipped):
            text = ngettext("Skipped %d finding:", "Skipped %d findings:", left) % left
            skipped = format_key_list(text, decision.skipped)
            self.message_user(request, skipped, messages.WARNING)
        text = act.done_text % decision.done
        if act is DELETE_OBJECTS:
            text = paused_text() or text
        if decision.done and not cleanups:
            self.message_user(request, format_key_list(text, decision.results), messages.SUCCESS)
        return announce_cleanups(self, request, text, cleanups)


def scan_link(scan: Any) -> SafeString | None:
    if scan is None:
        return None
    url = reverse("admin:storage_audit_bucketscan_change", args=[scan.pk])
    return format_html('<a href="{}">{}</a>', url, format_utc(scan.started_at))


for act in ACTIONS:
    setattr(FindingAdmin, f"has_{act.name}_permission", staticmethod(act.is_allowed))
