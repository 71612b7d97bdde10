"""What the page of one cleanup shows."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest, QueryDict
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup import end_deletions, requests
from storage_audit.cleanup.admin import live_progress
from storage_audit.cleanup.admin.items import items_context
from storage_audit.cleanup.admin.timeline import timeline_context
from storage_audit.cleanup.cleanup_text import (
    PROJECT_EXISTS_TEXT,
    describe_outcome,
    is_of_live_project,
    status_style,
)
from storage_audit.cleanup.describe_cleanup import (
    TotalsLine,
    cleanup_facts,
    has_final_totals,
    totals_lines,
)
from storage_audit.cleanup.headline_text import explain_status, scheduled_start
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_utc
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason

Kind, Status = Cleanup.Kind, Cleanup.Status
Outcome = CleanupItem.Outcome
CHILDREN_SHOWN = 20
REASONS_SHOWN = 20
# Reasons are counted among this many of the kept and failed objects.
REASON_SAMPLE_SIZE = 10_000
FILES_PARAMETERS = {"outcome", "q", "after", "before"}
# Of the colours of a badge: what kind of answer it is.
HERO_STYLES = {
    Status.CLEAN: "good",
    Status.UNDONE: "good",
    Status.RUNNING: "busy",
    Status.PENDING: "busy",
    Status.CLEAN_WITH_KEPT: "attention",
    Status.PLANNED: "attention",
    Status.RETRYING: "attention",
    Status.DIFFERS: "attention",
    "held": "attention",
    "paused": "attention",
    Status.BLOCKED: "bad",
    Status.FAILED: "bad",
}

VANISHED_CHOICE = (
    gettext_lazy("Approve"),
    gettext_lazy("Each project gets its own cleanup. The safety limits apply to it."),
)
APPROVE_LABEL = gettext_lazy("Approve")
RUN_LABEL = gettext_lazy("Run this plan")
FORCE_CHOICES = {
    Status.RETRYING: (gettext_lazy("Retry now"), gettext_lazy("Tries again now.")),
    Status.FAILED: (gettext_lazy("Retry now"), gettext_lazy("Tries again now.")),
}


def force_choice(cleanup: Cleanup) -> tuple[Any, Any] | None:
    """The label and the effect of Force-delete, or None where there is nothing to force."""
    if cleanup.kind == Kind.VERIFY or is_of_live_project(cleanup):
        return None
    if cleanup.kind == Kind.VANISHED and cleanup.status == Status.BLOCKED:
        return VANISHED_CHOICE
    if cleanup.status == Status.BLOCKED:
        return APPROVE_LABEL, approval_effect(cleanup)
    if cleanup.status == Status.PLANNED:
        return RUN_LABEL, approval_effect(requests.with_coming_hold(cleanup))
    return FORCE_CHOICES.get(Status(cleanup.status))


def approval_effect(cleanup: Cleanup) -> str:
    """When an approval deletes the files, and whether there is a way back until then."""
    until = cleanup.shown_hold()
    if until is None:
        return _("Deletes exactly these files at once. You can't undo it.")
    at = format_utc(until)
    if end_deletions.undo_obstacle(cleanup):
        return _("Deletes exactly these files when the hold ends, on %s. You can't undo it.") % at
    text = _("Deletes exactly these files when the hold ends, on %s.")
    return f"{text % at} {_('You can undo the deletion until then.')}"


def amounts_to_delete(cleanups: Iterable[Cleanup]) -> dict[UUID, tuple[int, int]]:
    """The objects and bytes that Force-delete would delete at most; nothing of a cleanup that
    has no plan yet."""
    status = {each.pk: each.status for each in cleanups if each.planned_at}
    going = dict.fromkeys(status, (0, 0))
    for pk, outcome, count, size in CleanupItem.objects.by_cleanup(going):
        failed = outcome == Outcome.FAILED and status[pk] in (Status.RETRYING, Status.FAILED)
        if failed or outcome in CleanupItem.OPEN:
            going[pk] = (going[pk][0] + count, going[pk][1] + size)
    return going


def force_effect(cleanup: Cleanup) -> Any:
    choice = force_choice(cleanup)
    if choice and cleanup.status == Status.BLOCKED:
        figures = {"effect": choice[1], "message": printable_text(cleanup.message)}
        return _("%(effect)s Stopped because: %(message)s") % figures
    if choice:
        return choice[1]
    if is_of_live_project(cleanup):
        return PROJECT_EXISTS_TEXT
    return _("Nothing to approve or to retry.")


def cleanup_context(request: HttpRequest, cleanup: Cleanup) -> dict[str, Any]:
    lines = totals_lines(cleanup)
    answer, *more = map(printable_text, explain_status(cleanup))
    tab = shown_tab(cleanup, request.GET)
    return {
        "cleanup": cleanup,
        "answer": answer,
        "hero": HERO_STYLES.get(status_style(cleanup), "quiet"),
        "meaning": more,
        "requested_by": printable_text(cleanup.requested_by),
        **progress_context(cleanup),
        "totals": lines,
        "all_lines": cleanup.is_deletion and has_final_totals(cleanup),
        **reason_context(cleanup, lines),
        "children": cleanup.children.order_by("next_attempt_at", "created_at")[:CHILDREN_SHOWN],
        "tab": tab,
        "tabs": [(name, label, name == tab) for name, label in offered_tabs(cleanup)],
        **tab_context(tab, cleanup, lines, request.GET),
    }


def offered_tabs(cleanup: Cleanup) -> list[tuple[str, Any]]:
    has_plan = cleanup.status == Status.PLANNED or bool(cleanup.plan_summary)
    plan = [("plan", gettext_lazy("Plan"))] if has_plan else []
    return [
        *plan,
        ("files", gettext_lazy("Files")),
        ("timeline", gettext_lazy("Timeline")),
        ("details", gettext_lazy("Details")),
    ]


def shown_tab(cleanup: Cleanup, query: QueryDict) -> str:
    """The one that the address names, or that its other parts belong to."""
    offered = dict(offered_tabs(cleanup))
    if (asked := query.get("tab", "")) in offered:
        return asked
    if "earlier" in query:
        return "timeline"
    if not FILES_PARAMETERS.isdisjoint(query):
        return "files"
    return "plan" if cleanup.status == Status.PLANNED else "files"


def tab_context(
    tab: str, cleanup: Cleanup, lines: Sequence[TotalsLine], query: QueryDict
) -> dict[str, Any]:
    """Of the files, the timeline or the details, so that the others cost nothing."""
    match tab:
        case "files":
            return items_context(cleanup, lines, query)
        case "timeline":
            return timeline_context(cleanup, query)
        case "details":
            return details_context(cleanup)
    return {}


def details_context(cleanup: Cleanup) -> dict[str, Any]:
    facts = [
        fact._replace(value=format_utc(fact.value)) if isinstance(fact.value, datetime) else fact
        for fact in cleanup_facts(cleanup)
        if fact.value != 0
    ]
    prefixes = [printable_text(prefix) for prefix in cleanup.listed_prefixes]
    return {"facts": facts, "listed_prefixes": prefixes}


def force_refusal(request: HttpRequest, cleanup: Cleanup) -> str:
    """Why this person may not force-delete it, or nothing. To run a plan of orphans is to delete
    them, which takes the permission to delete single objects."""
    may_not = refusal_reason(request, "force_cleanup")
    if (cleanup.kind, cleanup.status) == (Kind.ORPHANS, Status.PLANNED):
        may_not = may_not or refusal_reason(request, "delete_r2object")
    return may_not


def can_be_verified(cleanup: Cleanup) -> bool:
    """Whether `request_cleanup_verification` knows the files."""
    looked_after = cleanup.parent if cleanup.kind == Kind.VERIFY else None
    return cleanup.kind != Kind.VANISHED and not (looked_after or cleanup).pruned_at


def progress_context(cleanup: Cleanup) -> dict[str, Any]:
    now = timezone.now()
    if not live_progress.is_in_progress(cleanup):
        return {}
    until = scheduled_start(cleanup, now)
    return {
        "progress": live_progress.progress_values(cleanup, now),
        "refresh": until is None or until - now < live_progress.RELOAD_WITHIN,
    }


def reason_context(cleanup: Cleanup, lines: Sequence[TotalsLine]) -> dict[str, Any]:
    staying = sum(line.objects for line in lines if line.name in (Outcome.KEPT, Outcome.FAILED))
    if not staying:
        return {}
    found = cleanup.items.by_reason(REASON_SAMPLE_SIZE)[:REASONS_SHOWN]
    return {
        "reasons": [
            (describe_outcome(cleanup, outcome), printable_text(reason), count, size)
            for outcome, reason, count, size in found
        ],
        "reasons_of": REASON_SAMPLE_SIZE if staying > REASON_SAMPLE_SIZE else None,
    }
