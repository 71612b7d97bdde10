"""What pages say that confirm an action on one or several cleanups."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.utils.translation import ngettext

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_bucket_key
from storage_audit.ui.links import cleanup_url

FILES_SHOWN, REASONS_SHOWN = 10, 3


def left_out_lines(total: int, reasons: Sequence[Any]) -> list[str]:
    """How many of the selected cleanups stay as they are, and why, in one line."""
    if not reasons:
        return []
    different = list(dict.fromkeys(map(str, reasons)))
    why = " ".join(different[:REASONS_SHOWN])
    if total == 1:
        return [why]
    text = ngettext(
        "%(left)d of %(total)d is left out: %(why)s",
        "%(left)d of %(total)d are left out: %(why)s",
        len(reasons),
    )
    return [text % {"left": len(reasons), "total": total, "why": why}]


def file_sample(cleanups: Iterable[Cleanup], count: int) -> dict[str, Any]:
    """Some of the files that the cleanups have yet to delete, and where all of them are listed.
    Without an order, as that would sort all of them."""
    pks = [each.pk for each in cleanups]
    outcomes = (*CleanupItem.OPEN, CleanupItem.Outcome.FAILED)
    items = CleanupItem.objects.filter(cleanup__in=pks, outcome__in=outcomes).order_by()
    found = items.values_list("cleanup__bucket", "key")[:FILES_SHOWN]
    return {
        "sample": [format_bucket_key(*each) for each in found],
        "all_files": count,
        "files_url": f"{cleanup_url(pks[0])}?tab=files" if len(pks) == 1 else "",
    }
