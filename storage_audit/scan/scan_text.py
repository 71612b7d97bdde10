"""What each status of a scan means for a person, and what to do then."""

from django.utils.translation import gettext_lazy

from storage_audit.scan.models import BucketScan

ScanStatus = BucketScan.Status
# What a scan's status means, and what a person does then.
STATUS_TEXTS = {
    ScanStatus.RUNNING: (
        gettext_lazy(
            "The bucket is being listed and compared with the table. Nothing is concluded before"
            " all was listed and is believed."
        ),
        gettext_lazy("Wait for its end, or stop it."),
    ),
    ScanStatus.STOPPED: (
        gettext_lazy(
            "It was stopped before its end, so nothing is concluded from it, and no finding is"
            " written. The message says why."
        ),
        gettext_lazy(
            "Resume it within a day of its beginning, or begin another. If nobody worked on it for"
            " more than an hour, it starts again."
        ),
    ),
    ScanStatus.COMPLETE: (
        gettext_lazy(
            "All was listed, and is believed. What differs is among the findings; what was found"
            " before and is not there any more is resolved."
        ),
        gettext_lazy("Look through what it found, and do about each kind what is said with it."),
    ),
    ScanStatus.FAILED: (
        gettext_lazy(
            "It broke off, or is not believed, so nothing is concluded from it, and no finding is"
            " written. The message says why."
        ),
        gettext_lazy(
            "Put right what the message says. Then resume it within a day of its beginning, or"
            " begin another. If nobody worked on it for more than an hour, it starts again."
        ),
    ),
}
# Of those that are complete and wrote no findings.
DRY_RUN_TEXTS = (
    gettext_lazy("All was listed. It was a dry run: no row and no finding was written."),
    gettext_lazy("To have them written, begin it again without “Dry run”."),
)
PARTIAL_TEXTS = (
    gettext_lazy(
        "It looked only at what the table says was written lately. That says nothing of the rest,"
        " so no finding was written."
    ),
    gettext_lazy("To have findings, begin a scan of the whole bucket."),
)


def explain_scan(scan: BucketScan) -> tuple[str, str]:
    """What its status means, and what a person does then."""
    special = DRY_RUN_TEXTS if scan.dry_run else PARTIAL_TEXTS if scan.is_partial else None
    known = STATUS_TEXTS[ScanStatus(scan.status)]
    means, step = special if special and scan.status == ScanStatus.COMPLETE else known
    return str(means), str(step)
