"""The scans over time, and how a person begins, stops and resumes one."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.conf import conf
from storage_audit.display_formats import Answer, format_duration, format_utc
from storage_audit.findings.finding_text import KIND_TEXTS, kind_count
from storage_audit.findings.models import Kind
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.scan.admin.scan_form import ScanForm
from storage_audit.scan.models import BucketScan
from storage_audit.scan.models.scan import BucketScanQuerySet
from storage_audit.scan.scan_text import (
    RESUME_TEXT,
    count_findings,
    explain_scan,
    scan_size_text,
)
from storage_audit.scan.start import (
    NO_WORKERS_TEXT,
    QUEUED_TEXT,
    RESUMED_TEXTS,
    STOPPED_TEXT,
    ScanCost,
    ScanTooExpensive,
    estimate_scan,
    other_bucket_reason,
    refuse_second_scan,
    send_workers,
    start_scan,
)
from storage_audit.ui.links import changelist_url
from storage_audit.ui.model_admin import ReadOnlyAdmin, admin_action
from storage_audit.ui.object_page import Button, ObjectPageAdmin

SECOND = timedelta(seconds=1)
Purpose, Status = BucketScan.Purpose, BucketScan.Status
START_BUTTONS = (
    (Purpose.RECONCILE, gettext_lazy("Start a scan")),
    (Purpose.BACKFILL, gettext_lazy("Start a backfill")),
)


class KindSummary(NamedTuple):
    """What a scan saw of a kind; where findings were written, with their list and what to do."""

    kind: Any
    number: int
    means: Any
    url: str = ""
    step: Any = ""


@admin.register(BucketScan)
class BucketScanAdmin(ObjectPageAdmin[BucketScan], ReadOnlyAdmin[BucketScan]):
    list_display = (
        "started_at",
        "purpose",
        "location",
        "status",
        "listed",
        "shown_duration",
        "finding_counts",
    )
    list_filter = ("purpose", "status", "dry_run")
    ordering = ("-started_at", "pk")
    sortable_by = ("started_at",)
    facts = (
        "started_at",
        "finished_at",
        "rate",
        "requests",
        "max_requests",
        "dry_run",
        "fewer_objects",
        "listing_order",
        "updated",
        "unchanged",
        "id",
    )
    actions = ("stop", "resume")
    change_list_template = "admin/storage_audit/bucketscan/change_list.html"
    empty_list_text = gettext_lazy("No scan yet. Press “Start a scan”.")
    change_form_template = "admin/storage_audit/bucketscan/change_form.html"

    # ReadOnlyAdmin forbids adding, but adding a scan starts it.
    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.add_bucketscan")

    def has_conduct_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.change_bucketscan")

    def is_action_offered(self, row: BucketScan, name: str) -> bool:
        return (name == "stop") == (row.status == Status.RUNNING) and row.status != Status.COMPLETE

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {"starts": START_BUTTONS, "refusal": start_refusal(request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Adding a scan starts it; a worker runs it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        given = {"purpose": request.GET.get("purpose", Purpose.RECONCILE)}
        form, cost = ScanForm(request.POST or None, initial=given), None
        if form.is_valid():
            if "begin" not in request.POST:
                cost = estimate_scan(**form.scope)
            elif answer := self.begin_scan(request, form):
                return answer
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Start a scan"),
            "opts": self.opts,
            "media": self.media,
            "form": form,
            "cost": cost and estimate_text(cost),
            "last_scan": last_scan_text(),
            "refusal": start_refusal(request),
        }
        return TemplateResponse(request, "admin/storage_audit/bucketscan/start.html", context)

    def begin_scan(self, request: HttpRequest, form: ScanForm) -> HttpResponse | None:
        if reason := start_refusal(request):
            form.add_error(None, reason)
            return None
        try:
            with transaction.atomic():
                scan = start_scan(max_requests=form.cleaned_data["max_requests"], **form.scope)
                refuse_second_scan(scan)
                self.log_addition(request, scan, _("Scan requested."))
        except ScanTooExpensive as error:
            form.add_error("max_requests", str(error))
            return None
        except IllegalTransition as error:
            form.add_error(None, str(error))
            return None
        send_workers(scan, 1)
        self.message_user(request, QUEUED_TEXT, messages.SUCCESS)
        if not self.has_view_permission(request):
            return redirect("admin:index")
        return redirect("admin:storage_audit_bucketscan_change", scan.pk)

    @admin_action("conduct", gettext_lazy("Stop"))
    def stop(self, request: HttpRequest, queryset: BucketScanQuerySet) -> None:
        stopped = 0
        for scan in queryset.running():
            scan.stop(STOPPED_TEXT % request.user.get_username())
            if scan.status == Status.STOPPED:
                self.log_change(request, scan, _("Stopped."))
                stopped += 1
        if not stopped:
            text = _("No scan was stopped: only running scans can be stopped.")
            self.message_user(request, text, messages.WARNING)
            return
        text = ngettext("Stopped %d scan.", "Stopped %d scans.", stopped) % stopped
        self.message_user(request, f"{text} {RESUME_TEXT}", messages.SUCCESS)

    @admin_action("conduct", gettext_lazy("Resume"))
    def resume(self, request: HttpRequest, queryset: BucketScanQuerySet) -> None:
        for scan in queryset:
            try:
                self.resume_scan(request, scan)
            except IllegalTransition as error:
                self.message_user(request, printable_text(str(error)), messages.ERROR)

    def resume_scan(self, request: HttpRequest, scan: BucketScan) -> None:
        require_resumable(scan)
        with transaction.atomic():
            refuse_running(scan)
            starts_again = scan.resume()
            refuse_second_scan(scan)
            self.log_change(request, scan, _("Resumed."))
        send_workers(scan, 1)
        self.message_user(request, RESUMED_TEXTS[starts_again], messages.SUCCESS)

    def page_title(self, scan: BucketScan) -> str:
        return _("Scan of %s") % self.location(scan)

    def page_answer(self, scan: BucketScan) -> Answer:
        return explain_scan(scan)

    def page_links(self, request: HttpRequest, scan: BucketScan) -> Iterator[Button]:
        if count_findings(scan) and may_list_findings(request, scan):
            yield Button(_("Show the findings"), url=findings_url(scan))

    def page_context(self, request: HttpRequest, scan: BucketScan) -> dict[str, Any]:
        linked = may_list_findings(request, scan)
        return super().page_context(request, scan) | {
            "is_live": scan.status == Status.RUNNING,
            "requested_by": printable_text(scan.requested_by),
            "found": count_findings(scan),
            "size": self.shown_size(scan),
            "duration": self.shown_duration(scan),
            "kinds": list(kind_summaries(scan, linked=linked)),
        }

    @admin.display(description=gettext_lazy("where"), ordering="bucket")
    def location(self, scan: BucketScan) -> str:
        where = printable_text(f"{scan.bucket}/{scan.prefix}" if scan.prefix else scan.bucket)
        if scan.project_id:
            project = printable_text(scan.project_id)
            where = _("%(where)s, project %(project)s") % {"where": where, "project": project}
        if scan.since:
            words = {"where": where, "since": format_utc(scan.since)}
            where = _("%(where)s, only files tracked since %(since)s") % words
        return where

    @admin.display(description=gettext_lazy("if many files are missing"))
    def fewer_objects(self, scan: BucketScan) -> str:
        return _("accept the result") if scan.accept_fewer else ""

    @admin.display(description=gettext_lazy("listing order"))
    def listing_order(self, scan: BucketScan) -> str:
        if scan.in_key_order:
            return ""
        return _("The store's own. Missing files are found at the end.")

    @admin.display(description=gettext_lazy("total size"), ordering="listed_bytes")
    def shown_size(self, scan: BucketScan) -> str:
        return filesizeformat(scan.listed_bytes)

    @admin.display(description=gettext_lazy("duration"))
    def shown_duration(self, scan: BucketScan) -> str:
        return format_duration(scan_duration(scan))

    @admin.display(description=gettext_lazy("files per second"))
    def rate(self, scan: BucketScan) -> int:
        return round(scan.listed / max(scan_duration(scan) / SECOND, 0.001))

    @admin.display(description=gettext_lazy("found"))
    def finding_counts(self, scan: BucketScan) -> str:
        counts = [(kind, getattr(scan, kind)) for kind in Kind]
        shown = [(kind_count(kind, count),) for kind, count in counts if count]
        return format_html_join(mark_safe("<br>"), "{}", shown) or _("nothing")


def has_written_findings(scan: BucketScan) -> bool:
    return scan.status == Status.COMPLETE and not scan.dry_run and not scan.is_partial


def may_list_findings(request: HttpRequest, scan: BucketScan) -> bool:
    return has_written_findings(scan) and request.user.has_perm("storage_audit.view_finding")


def findings_url(scan: BucketScan, **filters: str) -> str:
    return changelist_url("finding", bucket=scan.bucket, last_scan=scan.pk, **filters)


def kind_summaries(scan: BucketScan, *, linked: bool) -> Iterator[KindSummary]:
    for kind in Kind:
        if count := getattr(scan, kind):
            means, step = KIND_TEXTS[kind]
            url = findings_url(scan, kind__exact=kind.value) if linked else ""
            yield KindSummary(kind.label, count, means, url, step if linked else "")


def scan_duration(scan: BucketScan) -> timedelta:
    """From its beginning, with the time for which it was stopped."""
    return (scan.finished_at or timezone.now()) - scan.started_at


def estimate_text(cost: ScanCost) -> str:
    length = None if cost.seconds is None else timedelta(seconds=cost.seconds)
    return scan_size_text(cost.objects, cost.requests, length)


def last_scan_text() -> str:
    """What the latest scan of the whole bucket took, without counting anything now."""
    last = BucketScan.objects.of_whole_bucket(conf().bucket).last_complete()
    return scan_size_text(last.listed, last.requests, scan_duration(last)) if last else ""


def start_refusal(request: HttpRequest) -> str:
    return refusal_reason(request, "add_bucketscan") or refusal_without_workers()


def refusal_without_workers() -> str:
    if not conf().sync:
        return ""
    return str(NO_WORKERS_TEXT)


def refuse_running(scan: BucketScan) -> None:
    """The second of two people who resume a scan waits for the first, and finds it running."""
    if BucketScan.objects.select_for_update().get(pk=scan.pk).status == Status.RUNNING:
        raise IllegalTransition(_("Scan %s is already running.") % scan.pk)


def require_resumable(scan: BucketScan) -> None:
    """Raise IllegalTransition where no worker could go on with it."""
    if reason := refusal_without_workers():
        raise IllegalTransition(reason)
    if reason := other_bucket_reason(scan):
        raise IllegalTransition(reason)
