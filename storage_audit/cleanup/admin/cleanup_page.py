"""What the page of one cleanup operation shows."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.admin import live_progress
from storage_audit.cleanup.admin.items import items
from storage_audit.cleanup.admin.timeline import timeline
from storage_audit.cleanup.attention import find_verifications_with_leftovers
from storage_audit.cleanup.cleanup_text import (
    NOT_WHILE_ALIVE,
    is_of_live_project,
    meaning,
    words_of,
)
from storage_audit.cleanup.describe import Line, are_closed, books, facts
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.redaction import visible
from storage_audit.roles import refusal

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status
Outcome = CleanupItem.Outcome
Trigger = CleanupOperation.Trigger
CHILDREN_SHOWN = 20
REASONS_SHOWN = 20
# Reasons are counted among so many of the objects that stay.
REASONS_OF = 10_000

RELEASE_MANY = (
    gettext_lazy("Release"),
    gettext_lazy("Each of the projects gets a cleanup of its own, which is held to the limits."),
)
FORCE = {
    Status.BLOCKED: (
        gettext_lazy("Release"),
        gettext_lazy("It runs, and the limits are lifted for the plan that it has by now."),
    ),
    Status.PLANNED: (
        gettext_lazy("Run this plan"),
        gettext_lazy("Its plan is run without limits."),
    ),
    Status.INCOMPLETE: (
        gettext_lazy("Try again now"),
        gettext_lazy("It is tried again now."),
    ),
    Status.FAILED: (
        gettext_lazy("Try again now"),
        gettext_lazy("It is tried again now."),
    ),
}


def force_choice(operation: CleanupOperation) -> tuple[Any, Any] | None:
    """The label and the effect of Force-delete, or None where there is nothing to force."""
    if operation.kind == Kind.VERIFY or is_of_live_project(operation):
        return None
    if operation.kind == Kind.VANISHED and operation.status == Status.BLOCKED:
        return RELEASE_MANY
    return FORCE.get(Status(operation.status))


def to_be_deleted(operations: Iterable[CleanupOperation]) -> dict[UUID, tuple[int, int]]:
    """The objects and bytes that Force-delete would delete at most; nothing of an operation that
    has no plan yet."""
    status = {each.pk: each.status for each in operations if each.planned_at}
    going = dict.fromkeys(status, (0, 0))
    for pk, outcome, count, size in CleanupItem.objects.by_operation(going):
        failed = outcome == Outcome.FAILED and status[pk] in (Status.INCOMPLETE, Status.FAILED)
        if failed or outcome in CleanupItem.OPEN:
            going[pk] = (going[pk][0] + count, going[pk][1] + size)
    return going


def effect_of_force(operation: CleanupOperation) -> Any:
    choice = force_choice(operation)
    if choice and operation.status == Status.BLOCKED:
        figures = {"effect": choice[1], "message": visible(operation.error)}
        return _("%(effect)s What stopped it: %(message)s") % figures
    if choice:
        return choice[1]
    if is_of_live_project(operation):
        return NOT_WHILE_ALIVE
    return _("Nothing: there is nothing to release or to try again.")


def context(request: HttpRequest, operation: CleanupOperation) -> dict[str, Any]:
    lines = books(operation)
    children = operation.children.order_by("next_attempt_at", "created_at")
    return {
        "operation": operation,
        "what": what(operation),
        "meaning": [visible(sentence) for sentence in meaning(operation)],
        **buttons(request, operation),
        **live(operation),
        "books": lines,
        "all_lines": operation.deletes and are_closed(operation),
        "is_look": operation.kind == Kind.VERIFY,
        **reasons(operation, lines),
        "facts": list(facts(operation)),
        "ranges": [visible(prefix) for prefix in operation.ranges],
        "children": children[:CHILDREN_SHOWN],
        **items(operation, lines, request.GET),
        **timeline(operation, request.GET),
    }


def what(operation: CleanupOperation) -> str:
    """In a sentence, such as “Project cleanup of proj_1 in bucket media: a dry run.”"""
    told = {
        "kind": operation.get_kind_display().capitalize(),
        "subject": visible(operation.subject),
        "bucket": visible(operation.bucket),
        "trigger": operation.get_trigger_display(),
    }
    return _("%(kind)s of %(subject)s in bucket %(bucket)s. Started by: %(trigger)s.") % told


def buttons(request: HttpRequest, operation: CleanupOperation) -> dict[str, Any]:
    """The labels, and why a button is disabled. Where nothing can be forced, there is none."""
    choice = force_choice(operation)
    no_force = "" if choice else str(effect_of_force(operation))
    return {
        "clean_up_again": find_verifications_with_leftovers().contains(operation),
        "clean_up_refusal": refusal(request, "force_cleanup"),
        "force": choice,
        "force_offered": bool(choice) or is_of_live_project(operation),
        "force_refusal": no_force or refuse_to_force(request, operation),
        "verify_refusal": no_verification(operation) or refusal(request, "verify_cleanup"),
    }


def refuse_to_force(request: HttpRequest, operation: CleanupOperation) -> str:
    """Why this person may not force-delete it, or nothing. To run a plan of orphans is to delete
    them, which takes the permission to delete single objects."""
    may_not = refusal(request, "force_cleanup")
    if (operation.kind, operation.status) == (Kind.ORPHANS, Status.PLANNED):
        may_not = may_not or refusal(request, "delete_r2object")
    return may_not


def no_verification(operation: CleanupOperation) -> str:
    """As requests.verify_operation refuses it."""
    if operation.kind == Kind.VANISHED:
        return _("It lists projects, not objects. Verify the projects instead.")
    looked_after = operation.parent if operation.kind == Kind.VERIFY else None
    if (looked_after or operation).pruned_at:
        return _(
            "Its objects are not known here any more: they were exported. Verify the project"
            " instead."
        )
    return ""


def live(operation: CleanupOperation) -> dict[str, Any]:
    now = timezone.now()
    if not live_progress.is_watched(operation):
        return {}
    until = live_progress.waits_until(operation, now)
    return {
        "progress": live_progress.progress(operation, now),
        "refresh": until is None or until - now < live_progress.SOON,
    }


def reasons(operation: CleanupOperation, lines: Sequence[Line]) -> dict[str, Any]:
    staying = sum(
        line.objects for line in lines if line.name in (Outcome.PROTECTED, Outcome.FAILED)
    )
    if not staying:
        return {}
    found = operation.items.by_reason(REASONS_OF)[:REASONS_SHOWN]
    return {
        "reasons": [
            (words_of(operation, outcome)[0], visible(reason), count, size)
            for outcome, reason, count, size in found
        ],
        "reasons_of": REASONS_OF if staying > REASONS_OF else None,
    }
