"""What bucket scans found."""

from django.contrib import admin
from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from storage_audit.models import BucketScan, Finding
from storage_audit.pages.base import ReadOnlyAdmin, shown_key
from storage_audit.redaction import visible


@admin.register(BucketScan)
class BucketScanAdmin(ReadOnlyAdmin[BucketScan]):
    list_display = (
        "id",
        "bucket",
        "shown_prefix",
        "status",
        "listed",
        "shown_size",
        "orphaned",
        "ambiguous",
        "unrecognised",
        "started_at",
        "finished_at",
    )
    list_filter = ("status", "dry_run")
    ordering = ("-started_at", "pk")

    @admin.display(description=gettext_lazy("prefix"))
    def shown_prefix(self, scan: BucketScan) -> str:
        return visible(scan.prefix)

    @admin.display(description=gettext_lazy("bytes listed"), ordering="listed_bytes")
    def shown_size(self, scan: BucketScan) -> str:
        return filesizeformat(scan.listed_bytes)


@admin.register(Finding)
class FindingAdmin(ReadOnlyAdmin[Finding]):
    list_display = (
        "shown",
        "kind",
        "state",
        "project_id",
        "shown_size",
        "evidence",
        "last_modified",
        "last_seen_at",
    )
    list_filter = ("state", "kind")
    search_fields = ("key",)
    search_help_text = gettext_lazy(
        "The beginning of a key, such as projects/proj_1/. Case counts."
    )
    prefix_field = "key"
    ordering = ("key", "pk")
    fields = (
        "bucket",
        "shown",
        "kind",
        "state",
        "project_id",
        "shown_size",
        "evidence",
        "note",
        "last_modified",
        "first_seen_at",
        "last_seen_at",
        "last_scan",
    )

    @admin.display(description=gettext_lazy("key"), ordering="key")
    def shown(self, finding: Finding) -> SafeString:
        return shown_key(finding.key)

    @admin.display(description=gettext_lazy("size"), ordering="size")
    def shown_size(self, finding: Finding) -> str | None:
        return None if finding.size is None else filesizeformat(finding.size)
