"""What the page of one cleanup operation shows."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.core.paginator import Paginator
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.audit.meaning import NOT_WHILE_ALIVE, is_of_live_project, meaning
from storage_audit.models import CleanupItem, CleanupOperation, OperationEvent
from storage_audit.pages.base import label_of
from storage_audit.redaction import visible

Kind, Outcome, Status = CleanupOperation.Kind, CleanupItem.Outcome, CleanupOperation.Status
ITEMS_A_PAGE = 50
EVENTS_SHOWN = 200
CHILDREN_SHOWN = 20
REASONS_SHOWN = 20
FACTS = (
    "id",
    "project_id",
    "kind",
    "trigger",
    "bucket",
    "requested_by",
    "origin",
    "released_by",
    "created_at",
    "project_deleted_at",
    "started_at",
    "planned_at",
    "finished_at",
    "next_attempt_at",
    "attempts",
    "discovery",
    "strategy",
    "plan_digest",
    "pruned_at",
    "archive",
    "archive_digest",
)

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


class Line(NamedTuple):
    """A line of a table of objects and bytes."""

    label: Any
    objects: int
    size: int


def force_choice(operation: CleanupOperation) -> tuple[Any, Any] | None:
    """The label and the effect of Force-delete, or None where there is nothing to force."""
    if operation.kind == Kind.VERIFY or is_of_live_project(operation):
        return None
    if operation.kind == Kind.VANISHED and operation.status == Status.BLOCKED:
        return RELEASE_MANY
    return FORCE.get(Status(operation.status))


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


def context(operation: CleanupOperation, query: QueryDict) -> dict[str, Any]:
    outcomes = operation.items.by_outcome()
    children = operation.children.order_by("next_attempt_at", "created_at")
    return {
        "operation": operation,
        "meaning": [visible(sentence) for sentence in meaning(operation)],
        "force": force_choice(operation),
        "facts": list(facts(operation)),
        "ranges": [visible(prefix) for prefix in operation.ranges],
        "children": children[:CHILDREN_SHOWN],
        "books": books(operation, outcomes),
        "reasons": [
            (Outcome(outcome).label, visible(reason), count, size)
            for outcome, reason, count, size in operation.items.by_reason()[:REASONS_SHOWN]
        ],
        **items(operation, outcomes, query),
        **timeline(operation),
    }


def facts(operation: CleanupOperation) -> Iterator[tuple[Any, Any]]:
    for name in FACTS:
        if name == "project_deleted_at" and not operation.deletes:
            continue  # What a look or a dry run takes for granted, and not a fact.
        display = getattr(operation, f"get_{name}_display", None)
        value = display() if display else getattr(operation, name)
        if value not in (None, ""):
            yield label_of(operation, name), visible(value) if isinstance(value, str) else value


def books(operation: CleanupOperation, outcomes: dict[str, tuple[int, int]]) -> list[Line]:
    """The closed books; until they are closed, what the items say now."""
    if operation.status in CleanupOperation.CLOSED:
        names = ("found", "deleted", "already_absent", "protected", "failed")
        return [column(operation, name) for name in names]
    if not outcomes:
        return []
    found = [sum(figures) for figures in zip(*outcomes.values(), strict=True)]
    lines = [Line(Outcome(o).label, *outcomes[o]) for o in Outcome.values if o in outcomes]
    return [Line(_("found"), *found), *lines]


def column(operation: CleanupOperation, name: str) -> Line:
    return Line(
        label_of(operation, name), getattr(operation, name), getattr(operation, f"{name}_bytes")
    )


def items(
    operation: CleanupOperation, outcomes: dict[str, tuple[int, int]], query: QueryDict
) -> dict[str, Any]:
    chosen = query.get("outcome", "")
    # The order of an index, so that a page of a million items is found quickly.
    rows = operation.items.order_by("outcome", "span", "key", "pk")
    if chosen in Outcome.values:
        rows = rows.filter(outcome=chosen)
    page = Paginator(rows, ITEMS_A_PAGE).get_page(query.get("p"))
    return {
        "outcome": chosen,
        "filters": [(o, Outcome(o).label, outcomes[o][0]) for o in Outcome.values if o in outcomes],
        "page": page,
        "pages": page.paginator.get_elided_page_range(page.number),
        "items": [shown_item(item) for item in page],
    }


def shown_item(item: CleanupItem) -> dict[str, Any]:
    return {
        "key": visible(item.key),
        "size": item.size,
        "outcome": item.get_outcome_display(),
        "found": item.get_found_in_display(),
        "reason": visible(item.reason),
        "evidence": visible(item.evidence),
        "answer": visible(item.answer),
    }


def timeline(operation: CleanupOperation) -> dict[str, Any]:
    latest = list(operation.events.order_by("-at", "-pk")[: EVENTS_SHOWN + 1])
    return {
        "events": [shown_event(event) for event in reversed(latest[:EVENTS_SHOWN])],
        "earlier_events": len(latest) > EVENTS_SHOWN,
    }


def shown_event(event: OperationEvent) -> dict[str, Any]:
    data = json.dumps(event.data, ensure_ascii=False) if event.data else ""
    return {
        "at": event.at,
        "step": event.step,
        "message": visible(event.message),
        "data": visible(data),
    }
