"""The bucket scans over time."""

from datetime import timedelta

from django.contrib import admin
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.formats import localize
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.findings import Kind
from storage_audit.models import BucketScan
from storage_audit.pages.base import ReadOnlyAdmin
from storage_audit.redaction import visible

SECOND = timedelta(seconds=1)


@admin.register(BucketScan)
class BucketScanAdmin(ReadOnlyAdmin[BucketScan]):
    list_display = (
        "started_at",
        "purpose",
        "place",
        "status",
        "listed",
        "shown_size",
        "took",
        "rate",
        "differences",
    )
    list_filter = ("purpose", "status", "dry_run")
    ordering = ("-started_at", "pk")
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
        "accept_fewer",
        "in_key_order",
        "listed",
        "shown_size",
        "added",
        "updated",
        "unchanged",
        *Kind.values,
    )

    @admin.display(description=gettext_lazy("what it looks at"), ordering="bucket")
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

    @admin.display(description=gettext_lazy("bytes"), ordering="listed_bytes")
    def shown_size(self, scan: BucketScan) -> str:
        return filesizeformat(scan.listed_bytes)

    @admin.display(description=gettext_lazy("duration"))
    def took(self, scan: BucketScan) -> str:
        return str(timedelta(seconds=round(duration(scan) / SECOND)))

    @admin.display(description=gettext_lazy("objects a second"))
    def rate(self, scan: BucketScan) -> int:
        return round(scan.listed / max(duration(scan) / SECOND, 0.001))

    @admin.display(description=gettext_lazy("differences"))
    def differences(self, scan: BucketScan) -> str:
        counts = [(getattr(scan, kind), kind.label) for kind in Kind]
        return ", ".join(f"{count} {label}" for count, label in counts if count) or _("none")


def duration(scan: BucketScan) -> timedelta:
    """From its beginning, with the time for which it was stopped."""
    return (scan.finished_at or timezone.now()) - scan.started_at
