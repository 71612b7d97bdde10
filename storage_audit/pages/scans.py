"""What bucket scans found."""

from django.contrib import admin
from django.template.defaultfilters import filesizeformat
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.models import BucketScan, Finding
from storage_audit.pages.base import ReadOnlyAdmin, label_of, shown_key
from storage_audit.redaction import visible

FINDINGS = ("orphaned", "ambiguous", "unrecognised")


@admin.register(BucketScan)
class BucketScanAdmin(ReadOnlyAdmin[BucketScan]):
    list_display = (
        "started_at",
        "place",
        "status",
        "listed",
        "shown_size",
        "findings",
    )
    list_filter = ("status", "dry_run")
    ordering = ("-started_at", "pk")

    @admin.display(description=gettext_lazy("bucket"), ordering="bucket")
    def place(self, scan: BucketScan) -> str:
        return visible(f"{scan.bucket}/{scan.prefix}" if scan.prefix else scan.bucket)

    @admin.display(description=gettext_lazy("findings"))
    def findings(self, scan: BucketScan) -> str:
        counts = [(getattr(scan, name), label_of(scan, name)) for name in FINDINGS]
        return ", ".join(f"{count} {label}" for count, label in counts if count) or _("none")

    @admin.display(description=gettext_lazy("bytes"), ordering="listed_bytes")
    def shown_size(self, scan: BucketScan) -> str:
        return filesizeformat(scan.listed_bytes)


@admin.register(Finding)
class FindingAdmin(ReadOnlyAdmin[Finding]):
    list_display = ("shown", "kind", "state", "shown_size", "evidence")
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
