"""What pages say that confirm an action on one or several cleanups."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import Sum
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup import requests
from storage_audit.cleanup.cleanup_text import describe_request
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupQuerySet
from storage_audit.display_formats import format_amount, format_bucket_key, format_utc
from storage_audit.models import R2Object
from storage_audit.redaction import printable_text
from storage_audit.ui.links import changelist_url, cleanup_url

Kind, Status = Cleanup.Kind, Cleanup.Status
FILES_SHOWN, DELETIONS_SHOWN, REASONS_SHOWN = 10, 10, 3


def force_title(forced: Sequence[Cleanup]) -> str:
    """What happens to how many of them, such as “Approve 2 cleanups, retry 1 cleanup”."""
    counts = Counter(each.status for each in forced)
    approved, run = counts.pop(Status.BLOCKED, 0), counts.pop(Status.PLANNED, 0)
    retried = counts.total()
    parts = (
        (approved, ngettext("approve %d cleanup", "approve %d cleanups", approved)),
        (run, ngettext("run %d plan", "run %d plans", run)),
        (retried, ngettext("retry %d cleanup", "retry %d cleanups", retried)),
    )
    return capfirst(", ".join(text % count for count, text in parts if count))


def force_sentences(forced: Sequence[Cleanup]) -> list[str]:
    """What they have in common. Of a held one its own line says how long it can be undone."""
    deleting = [each for each in forced if each.kind != Kind.VANISHED]
    if not deleting:
        return []
    lifted = [each for each in deleting if each.status in (Status.BLOCKED, Status.PLANNED)]
    limits = _("Safety limits still apply.")
    if lifted:
        limits = _("No safety limit stops this deletion.")
    if 0 < len(lifted) < len(deleting):
        limits = _("Safety limits apply to the retries only.")
    kept = _("Files that may belong to another project, or whose owner is unknown, are kept.")
    is_held = any(requests.with_coming_hold(each).shown_hold() for each in deleting)
    return [f"{limits} {kept}" + ("" if is_held else " " + _("You can't undo this."))]


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


def deletion_sample(cleanups: CleanupQuerySet) -> list[tuple[str, str, str]]:
    """Some of many deletions: the project, its files as far as they are known, and who asked."""
    shown = list(cleanups.order_by("pk")[:DELETIONS_SHOWN])
    counts = {each.pk: [0, 0] for each in shown}
    for pk, _outcome, count, size in CleanupItem.objects.by_cleanup(counts):
        counts[pk][0] += count
        counts[pk][1] += size
    return [
        (
            printable_text(each.named_subject),
            format_amount(*counts[each.pk]) if each.planned_at else _("not counted yet"),
            describe_request(each),
        )
        for each in shown
    ]


def deadline_line(cleanups: Iterable[Cleanup]) -> str:
    """When the files are deleted that nobody rescues."""
    holds = [until for each in cleanups if (until := each.shown_hold())]
    text = _("Without an undo, files are deleted after %s.")
    return text % format_utc(min(holds)) if holds else ""


def found_files_line(cleanups: CleanupQuerySet) -> str:
    """How many files the deletions are about. Nobody knows those of one without a plan."""
    sums = cleanups.aggregate(count=Sum("found"), size=Sum("found_bytes"))
    files = format_amount(sums["count"] or 0, sums["size"] or 0)
    return _("Files found so far: %s.") % files


def all_deletions_line(count: int) -> SafeString | str:
    """Where all deletions that can be undone are listed, if not all of these are shown."""
    if count <= DELETIONS_SHOWN:
        return ""
    text = _("%(shown)d of %(count)d deletions are shown.")
    shown = text % {"shown": DELETIONS_SHOWN, "count": count}
    url = changelist_url("cleanup", decision="undoable")
    return format_html('{} <a href="{}">{}</a>', shown, url, _("Show all that can be undone"))


def recorded_files(request: HttpRequest, project_id: str) -> dict[str, Any]:
    """What a cleanup of the project deletes as far as it is recorded, for people who may see it."""
    if not project_id or not request.user.has_perm("storage_audit.view_r2object"):
        return {}
    rows = R2Object.objects.filter(project_id=project_id)
    count, size = rows.totals()
    found = rows.order_by().values_list("bucket", "key")[:FILES_SHOWN]
    return {
        "recorded": format_amount(count, size) if count else "",
        "project_id": printable_text(project_id),
        "sample": [format_bucket_key(*each) for each in found],
        "all_files": count,
        "files_url": changelist_url("r2object", project_id=project_id),
    }
