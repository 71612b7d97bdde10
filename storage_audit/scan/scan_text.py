"""What a person reads first about a scan: one answer, and what to do then."""

from datetime import timedelta

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.bucket import prices
from storage_audit.display_formats import Answer, format_duration, format_price
from storage_audit.findings.models import Kind
from storage_audit.scan.models import BucketScan

ScanStatus = BucketScan.Status
RESUME_TEXT = gettext_lazy(
    "You can resume a scan within a day of its start. After an hour without activity it starts"
    " over."
)
WAITING_TEXT = gettext_lazy(
    "It usually starts within a minute. If it does not, check the worker under “Health & alerts”."
)
# What its status means for the findings, and what a person does then. Its message comes between.
NEXT_STEPS = {
    ScanStatus.RUNNING: (
        gettext_lazy("Findings appear when the scan is complete. You can leave this page."),
    ),
    ScanStatus.STOPPED: (RESUME_TEXT,),
    ScanStatus.COMPLETE: (gettext_lazy("Review the findings. Each kind below says what to do."),),
    ScanStatus.FAILED: (
        gettext_lazy("Fix the problem. Then resume, or start a new scan."),
        RESUME_TEXT,
    ),
}
# Of those that are complete and wrote no findings.
DRY_RUN_TEXTS = (
    gettext_lazy("This dry run saved no findings and tracked no files."),
    gettext_lazy("To save them, start a scan without “Dry run”."),
)
PARTIAL_TEXTS = (
    gettext_lazy("This partial scan checked only files tracked recently, and saved no findings."),
    gettext_lazy("For findings, scan the whole bucket."),
)


def explain_scan(scan: BucketScan) -> Answer:
    status, found = ScanStatus(scan.status), count_findings(scan)
    files = ngettext("%d file checked", "%d files checked", scan.listed) % scan.listed
    findings = ngettext("%d finding", "%d findings", found) % found if found else _("no findings")
    words = {"files": files, "findings": findings}
    message, steps = [scan.message] if scan.message else [], list(map(str, NEXT_STEPS[status]))
    match status:
        case ScanStatus.RUNNING if is_waiting(scan):
            return Answer("busy", _("Waiting for a worker."), [str(WAITING_TEXT), *steps])
        case ScanStatus.RUNNING:
            return Answer("busy", _("Scanning. %s so far.") % files, steps)
        case ScanStatus.STOPPED:
            text = _("Stopped before the end, so there are no findings. %s.") % files
            return Answer("attention", text, message + steps)
        case ScanStatus.FAILED:
            text = _("Scan failed, so there are no findings. %s.") % files
            return Answer("bad", text, message + steps)
    text = _("Scan complete. %(files)s, %(findings)s.") % words
    if special := DRY_RUN_TEXTS if scan.dry_run else PARTIAL_TEXTS if scan.is_partial else ():
        return Answer("quiet", text, list(map(str, special)))
    return Answer("attention", text, steps) if found else Answer("good", text)


def is_waiting(scan: BucketScan) -> bool:
    """Whether no worker has taken it up yet."""
    return not scan.requests and not BucketScan.objects.leased().filter(pk=scan.pk).exists()


def scan_size_text(objects: int, requests: int, length: timedelta | None) -> str:
    """Such as “28 files, 5 requests to the bucket, less than $0.01, 3 seconds”."""
    dollars = prices.cost_in_dollars([("ListObjectsV2", requests)])
    parts = [
        ngettext("%s file", "%s files", objects) % f"{objects:,}",
        ngettext("%s request to the bucket", "%s requests to the bucket", requests)
        % f"{requests:,}",
        format_price(dollars),
    ]
    return ", ".join([*parts, format_duration(length)] if length is not None else parts)


def count_findings(scan: BucketScan) -> int:
    counts: list[int] = [getattr(scan, kind) for kind in Kind]
    return sum(counts)
