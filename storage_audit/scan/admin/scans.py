"""The bucket scans over time, and how a person begins, stops and resumes one."""

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
from django.utils.formats import localize
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.conf import conf
from storage_audit.findings.finding_text import DIFFERENCES
from storage_audit.findings.models import Kind
from storage_audit.redaction import visible
from storage_audit.roles import refusal
from storage_audit.scan.admin.scan_form import ScanForm
from storage_audit.scan.models import BucketScan
from storage_audit.scan.models.scan import BucketScanQuerySet
from storage_audit.scan.scan_text import of_scan
from storage_audit.scan.start import (
    RESUMED,
    ScanTooExpensive,
    estimate,
    refuse_beside_another,
    share,
    start_scan,
)
from storage_audit.ui.links import list_of
from storage_audit.ui.model_admin import ReadOnlyAdmin, action

SECOND = timedelta(seconds=1)
Purpose, Status = BucketScan.Purpose, BucketScan.Status
STARTS = (
    (Purpose.RECONCILE, gettext_lazy("Compare now")),
    (Purpose.BACKFILL, gettext_lazy("Backfill")),
)


class Seen(NamedTuple):
    """What a scan saw of a kind; where findings were written, with their list and what to do."""

    kind: Any
    number: int
    means: Any
    url: str = ""
    step: Any = ""


@admin.register(BucketScan)
class BucketScanAdmin(ReadOnlyAdmin[BucketScan]):
    list_display = ("started_at", "purpose", "place", "status", "listed", "took", "differences")
    list_filter = ("purpose", "status", "dry_run")
    ordering = ("-started_at", "pk")
    sortable_by = ("started_at",)
    fields = (
        "id",
        "purpose",
        "place",
        "status",
        "message",
        "requested_by",
        "started_at",
        "finished_at",
        "took",
        "rate",
        "requests",
        "ceiling",
        "dry_run",
        "shrunken",
        "order",
        "listed",
        "shown_size",
        "added",
        "updated",
        "unchanged",
    )
    actions = ("stop", "resume")
    change_list_template = "admin/storage_audit/bucketscan/change_list.html"
    change_form_template = "admin/storage_audit/bucketscan/change_form.html"

    # Not by way of ReadOnlyAdmin: to add one is to begin it.
    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.add_bucketscan")

    def has_conduct_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("storage_audit.change_bucketscan")

    def is_fit(self, row: BucketScan, name: str) -> bool:
        return (name == "stop") == (row.status == Status.RUNNING) and row.status != Status.COMPLETE

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {"starts": STARTS, "refusal": refusal_to_begin(request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """To add a scan is to begin it; a worker does it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        given = {"purpose": request.GET.get("purpose", Purpose.RECONCILE)}
        form, cost = ScanForm(request.POST or None, initial=given), None
        if form.is_valid():
            if "begin" not in request.POST:
                cost = estimate(**form.scope)
            elif answer := self.begin(request, form):
                return answer
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Begin a scan"),
            "opts": self.opts,
            "media": self.media,
            "form": form,
            "cost": cost,
            "duration": cost and cost.seconds and shown_time(cost.seconds),
            "refusal": refusal_to_begin(request),
        }
        return TemplateResponse(request, "admin/storage_audit/bucketscan/start.html", context)

    def begin(self, request: HttpRequest, form: ScanForm) -> HttpResponse | None:
        if reason := refusal_to_begin(request):
            form.add_error(None, reason)
            return None
        try:
            with transaction.atomic():
                scan = start_scan(ceiling=form.cleaned_data["ceiling"], **form.scope)
                refuse_beside_another(scan)
                self.log_addition(request, scan, _("Scan requested."))
        except ScanTooExpensive as error:
            form.add_error("ceiling", str(error))
            return None
        except IllegalTransition as error:
            form.add_error(None, str(error))
            return None
        share(scan, 1)
        text = _("The scan is begun: a worker takes it up next.")
        self.message_user(request, text, messages.SUCCESS)
        if not self.has_view_permission(request):
            return redirect("admin:index")
        return redirect("admin:storage_audit_bucketscan_change", scan.pk)

    @action("conduct", gettext_lazy("Stop"))
    def stop(self, request: HttpRequest, queryset: BucketScanQuerySet) -> None:
        stopped = 0
        for scan in queryset.running():
            scan.stop(_("Stopped by %s. Resume it to go on.") % request.user.get_username())
            if scan.status == Status.STOPPED:
                self.log_change(request, scan, _("Stopped."))
                stopped += 1
        if not stopped:
            text = _("Nothing was stopped: only a scan that is running can be.")
            self.message_user(request, text, messages.WARNING)
            return
        text = ngettext(
            "%d scan is stopped, and nothing is concluded from it. You can resume it for a day:"
            " within an hour it goes on where it was, later it starts again.",
            "%d scans are stopped, and nothing is concluded from them. You can resume them for a"
            " day: within an hour they go on where they were, later they start again.",
            stopped,
        )
        self.message_user(request, text % stopped, messages.SUCCESS)

    @action("conduct", gettext_lazy("Resume"))
    def resume(self, request: HttpRequest, queryset: BucketScanQuerySet) -> None:
        for scan in queryset:
            try:
                self.go_on(request, scan)
            except IllegalTransition as error:
                self.message_user(request, visible(str(error)), messages.ERROR)

    def go_on(self, request: HttpRequest, scan: BucketScan) -> None:
        refuse_to_go_on(scan)
        with transaction.atomic():
            refuse_running(scan)
            starts_again = scan.resume()
            refuse_beside_another(scan)
            self.log_change(request, scan, _("Resumed."))
        share(scan, 1)
        self.message_user(request, RESUMED[starts_again], messages.SUCCESS)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if scan := context["original"]:
            linked = writes_findings(scan) and request.user.has_perm("storage_audit.view_finding")
            context |= {
                "is_live": scan.status == Status.RUNNING,
                "meaning": of_scan(scan),
                "findings": findings_of(scan) if linked else "",
                "seen": list(seen(scan, linked=linked)),
            }
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description=gettext_lazy("where"), ordering="bucket")
    def place(self, scan: BucketScan) -> str:
        where = visible(f"{scan.bucket}/{scan.prefix}" if scan.prefix else scan.bucket)
        if scan.project_id:
            project = visible(scan.project_id)
            where = _("%(where)s, project %(project)s") % {"where": where, "project": project}
        if scan.since:
            since = localize(timezone.localtime(scan.since))
            where = _("%(where)s, only rows since %(since)s") % {"where": where, "since": since}
        return where

    @admin.display(description=gettext_lazy("message"))
    def message(self, scan: BucketScan) -> str:
        return visible(scan.error)

    @admin.display(description=gettext_lazy("far fewer objects than expected"))
    def shrunken(self, scan: BucketScan) -> str:
        if scan.accept_fewer:
            return _("It is believed all the same, as a person said.")
        return _("Then it is not believed, and fails.")

    @admin.display(description=gettext_lazy("order of the listing"))
    def order(self, scan: BucketScan) -> str:
        if scan.in_key_order:
            return _("By key, as R2 lists: several workers can share it.")
        return _("The store’s own. What is missing is known once all keys are listed.")

    @admin.display(description=gettext_lazy("bytes"), ordering="listed_bytes")
    def shown_size(self, scan: BucketScan) -> str:
        return filesizeformat(scan.listed_bytes)

    @admin.display(description=gettext_lazy("duration"))
    def took(self, scan: BucketScan) -> str:
        return shown_time(duration(scan) / SECOND)

    @admin.display(description=gettext_lazy("objects a second"))
    def rate(self, scan: BucketScan) -> int:
        return round(scan.listed / max(duration(scan) / SECOND, 0.001))

    @admin.display(description=gettext_lazy("differences"))
    def differences(self, scan: BucketScan) -> str:
        counts = [(getattr(scan, kind), kind.label) for kind in Kind]
        told = [(count, label) for count, label in counts if count]
        return format_html_join(mark_safe("<br>"), "{} {}", told) or _("none")


def writes_findings(scan: BucketScan) -> bool:
    return scan.status == Status.COMPLETE and not scan.dry_run and not scan.is_partial


def findings_of(scan: BucketScan, **filters: str) -> str:
    return list_of("finding", bucket=scan.bucket, last_scan=scan.pk, **filters)


def seen(scan: BucketScan, *, linked: bool) -> Iterator[Seen]:
    for kind in Kind:
        count, (means, step) = getattr(scan, kind), DIFFERENCES[kind]
        if count and linked:
            yield Seen(kind.label, count, means, findings_of(scan, kind__exact=kind.value), step)
        else:
            yield Seen(kind.label, count, means)


def shown_time(seconds: float) -> str:
    """Such as “0:01:30”, or “2 days, 0:01:30”."""
    whole = timedelta(seconds=round(seconds))
    clock = str(whole - timedelta(days=whole.days))
    if not whole.days:
        return clock
    # Django's own words, as `timesince` has them.
    days = ngettext("%(num)d day", "%(num)d days", whole.days) % {"num": whole.days}
    return f"{days}, {clock}"


def duration(scan: BucketScan) -> timedelta:
    """From its beginning, with the time for which it was stopped."""
    return (scan.finished_at or timezone.now()) - scan.started_at


def refusal_to_begin(request: HttpRequest) -> str:
    return refusal(request, "add_bucketscan") or refusal_without_workers()


def refusal_without_workers() -> str:
    if not conf().sync:
        return ""
    return _("With the setting CLEANUP_SYNC there are no workers: use manage.py reconcile_r2.")


def refuse_running(scan: BucketScan) -> None:
    """Of two who resume it, the second waits for the first, and finds it running."""
    if BucketScan.objects.select_for_update().get(pk=scan.pk).status == Status.RUNNING:
        raise IllegalTransition(_("Scan %s is running already.") % scan.pk)


def refuse_to_go_on(scan: BucketScan) -> None:
    """Raise IllegalTransition where no worker could go on with it."""
    if reason := refusal_without_workers():
        raise IllegalTransition(reason)
    if scan.bucket != conf().bucket:
        text = _("Scan %(id)s is of bucket %(bucket)s, and the settings name another.")
        raise IllegalTransition(text % {"id": scan.pk, "bucket": scan.bucket})
