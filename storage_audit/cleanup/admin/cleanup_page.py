"""What the page of one cleanup shows."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.admin import live_progress
from storage_audit.cleanup.admin.decisions import offered_decisions
from storage_audit.cleanup.admin.items import items_context
from storage_audit.cleanup.admin.timeline import timeline_context
from storage_audit.cleanup.cleanup_text import (
    PROJECT_EXISTS_TEXT,
    describe_outcome,
    explain_status,
    is_of_live_project,
)
from storage_audit.cleanup.describe_cleanup import (
    TotalsLine,
    cleanup_facts,
    has_final_totals,
    totals_lines,
)
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.needs_attention import find_verifications_with_leftovers
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason

Kind, Status = Cleanup.Kind, Cleanup.Status
Outcome = CleanupItem.Outcome
Trigger = Cleanup.Trigger
CHILDREN_SHOWN = 20
REASONS_SHOWN = 20
# Reasons are counted among this many of the kept and failed objects.
REASON_SAMPLE_SIZE = 10_000

VANISHED_CHOICE = (
    gettext_lazy("Approve"),
    gettext_lazy("Each of the projects gets a cleanup of its own, which is held to the limits."),
)
FORCE_CHOICES = {
    Status.BLOCKED: (
        gettext_lazy("Approve"),
        gettext_lazy("It runs, and the limits are lifted for the plan that it has by now."),
    ),
    Status.PLANNED: (
        gettext_lazy("Run this plan"),
        gettext_lazy("Its plan is run without limits."),
    ),
    Status.RETRYING: (
        gettext_lazy("Try again now"),
        gettext_lazy("It is tried again now."),
    ),
    Status.FAILED: (
        gettext_lazy("Try again now"),
        gettext_lazy("It is tried again now."),
    ),
}


def force_choice(cleanup: Cleanup) -> tuple[Any, Any] | None:
    """The label and the effect of Force-delete, or None where there is nothing to force."""
    if cleanup.kind == Kind.VERIFY or is_of_live_project(cleanup):
        return None
    if cleanup.kind == Kind.VANISHED and cleanup.status == Status.BLOCKED:
        return VANISHED_CHOICE
    return FORCE_CHOICES.get(Status(cleanup.status))


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
        return _("%(effect)s What stopped it: %(message)s") % figures
    if choice:
        return choice[1]
    if is_of_live_project(cleanup):
        return PROJECT_EXISTS_TEXT
    return _("Nothing: there is nothing to approve or to try again.")


def cleanup_context(request: HttpRequest, cleanup: Cleanup) -> dict[str, Any]:
    lines = totals_lines(cleanup)
    children = cleanup.children.order_by("next_attempt_at", "created_at")
    return {
        "cleanup": cleanup,
        "what": intro_sentence(cleanup),
        "meaning": [printable_text(sentence) for sentence in explain_status(cleanup)],
        **button_context(request, cleanup),
        "decisions": list(offered_decisions(request, cleanup)),
        **progress_context(cleanup),
        "totals": lines,
        "all_lines": cleanup.is_deletion and has_final_totals(cleanup),
        "is_verification": cleanup.kind == Kind.VERIFY,
        **reason_context(cleanup, lines),
        "facts": list(cleanup_facts(cleanup)),
        "listed_prefixes": [printable_text(prefix) for prefix in cleanup.listed_prefixes],
        "children": children[:CHILDREN_SHOWN],
        **items_context(cleanup, lines, request.GET),
        **timeline_context(cleanup, request.GET),
    }


def intro_sentence(cleanup: Cleanup) -> str:
    """In a sentence, such as “Project cleanup of proj_1 in bucket media: a dry run.”"""
    told = {
        "kind": cleanup.get_kind_display().capitalize(),
        "subject": printable_text(cleanup.subject),
        "bucket": printable_text(cleanup.bucket),
        "trigger": cleanup.get_trigger_display(),
    }
    return _("%(kind)s of %(subject)s in bucket %(bucket)s. Started by: %(trigger)s.") % told


def button_context(request: HttpRequest, cleanup: Cleanup) -> dict[str, Any]:
    """The labels, and why a button is disabled. Where nothing can be forced, there is none."""
    choice = force_choice(cleanup)
    no_force = "" if choice else str(force_effect(cleanup))
    return {
        "clean_up_again": find_verifications_with_leftovers().contains(cleanup),
        "clean_up_refusal": refusal_reason(request, "force_cleanup"),
        "force": choice,
        "force_offered": bool(choice) or is_of_live_project(cleanup),
        "force_refusal": no_force or force_refusal(request, cleanup),
        "verify_refusal": verification_refusal(cleanup)
        or refusal_reason(request, "verify_cleanup"),
    }


def force_refusal(request: HttpRequest, cleanup: Cleanup) -> str:
    """Why this person may not force-delete it, or nothing. To run a plan of orphans is to delete
    them, which takes the permission to delete single objects."""
    may_not = refusal_reason(request, "force_cleanup")
    if (cleanup.kind, cleanup.status) == (Kind.ORPHANS, Status.PLANNED):
        may_not = may_not or refusal_reason(request, "delete_r2object")
    return may_not


def verification_refusal(cleanup: Cleanup) -> str:
    """Why `request_cleanup_verification` would refuse it, or nothing."""
    if cleanup.kind == Kind.VANISHED:
        return _("It lists projects, not objects. Verify the projects instead.")
    looked_after = cleanup.parent if cleanup.kind == Kind.VERIFY else None
    if (looked_after or cleanup).pruned_at:
        return _(
            "Its objects are not known here any more: they were exported. Verify the project"
            " instead."
        )
    return ""


def progress_context(cleanup: Cleanup) -> dict[str, Any]:
    now = timezone.now()
    if not live_progress.is_in_progress(cleanup):
        return {}
    until = live_progress.scheduled_start(cleanup, now)
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
            (describe_outcome(cleanup, outcome)[0], printable_text(reason), count, size)
            for outcome, reason, count, size in found
        ],
        "reasons_of": REASON_SAMPLE_SIZE if staying > REASON_SAMPLE_SIZE else None,
    }
