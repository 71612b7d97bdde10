"""What each status of a scan means for a person, and what to do then."""

from django.utils.translation import gettext_lazy

from storage_audit.scan.models import BucketScan

ScanStatus = BucketScan.Status
RESUME_TEXT = gettext_lazy(
    "You can resume a scan within a day of its start. After an hour without activity it starts"
    " over."
)
# What a scan's status means, and what a person does then.
STATUS_TEXTS = {
    ScanStatus.RUNNING: (
        gettext_lazy(
            "Comparing the bucket with the tracked files. Findings appear when the scan is"
            " complete."
        ),
        gettext_lazy("Wait, or stop the scan."),
    ),
    ScanStatus.STOPPED: (
        gettext_lazy("Stopped before the end, so there are no findings. The message says why."),
        RESUME_TEXT,
    ),
    ScanStatus.COMPLETE: (
        gettext_lazy(
            "Complete. What the scan found is below. Earlier findings that it did not see again are"
            " resolved."
        ),
        gettext_lazy("Review the findings. Each kind below says what to do."),
    ),
    ScanStatus.FAILED: (
        gettext_lazy("Failed, so there are no findings. The message says why."),
        gettext_lazy("Fix the problem that the message names. Then resume, or start a new scan."),
        RESUME_TEXT,
    ),
}
# Of those that are complete and wrote no findings.
DRY_RUN_TEXTS = (
    gettext_lazy("Dry run complete. It saved no findings and tracked no files."),
    gettext_lazy("To save them, start a scan without “Dry run”."),
)
PARTIAL_TEXTS = (
    gettext_lazy(
        "Partial scan complete. It checked only files tracked recently, so it saved no findings."
    ),
    gettext_lazy("For findings, scan the whole bucket."),
)


def explain_scan(scan: BucketScan) -> list[str]:
    """What its status means, and what a person does then."""
    special = DRY_RUN_TEXTS if scan.dry_run else PARTIAL_TEXTS if scan.is_partial else None
    known = STATUS_TEXTS[ScanStatus(scan.status)]
    return list(map(str, special if special and scan.status == ScanStatus.COMPLETE else known))
