"""One description of a cleanup for its page, the API, commands and the certificate: its facts, its
totals (as lines of a table, and as the parts of a bar), and its items."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.db import models
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.cleanup_text import TRIGGER_MEANINGS, describe_outcome
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.redaction import printable_text

Outcome, Trigger = CleanupItem.Outcome, Cleanup.Trigger
FINAL_OUTCOMES = (Outcome.DELETED, Outcome.ALREADY_GONE, Outcome.KEPT, Outcome.FAILED)
# As the bar has them from left to right: what is over, then what is ahead.
BAR_OUTCOMES = (*FINAL_OUTCOMES, Outcome.DELETING, Outcome.TO_DELETE)
# Percent: what there is can be seen.
MIN_WIDTH_PERCENT = 1.0


class TotalsLine(NamedTuple):
    """A line of the table; `bar_x` and `bar_width` are its part of the bar, the total has none."""

    name: str
    label: Any
    objects: int
    size: int
    bar_x: str = ""
    bar_width: str = ""


def totals_lines(cleanup: Cleanup, *, recount: bool = True) -> list[TotalsLine]:
    """The total first, then the outcomes. Nothing where nothing was found, or where that takes a
    recount of all items that is not wanted."""
    closed = has_final_totals(cleanup)
    sums = column_totals(cleanup) if closed else item_totals(cleanup, recount)
    found = [sum(figures) for figures in zip(*sums.values(), strict=True)]
    if not closed and not any(found):
        return []
    total = TotalsLine("found", field_label(cleanup, "found"), *found)
    return [total, *outcome_lines(cleanup, sums)]


def has_final_totals(cleanup: Cleanup) -> bool:
    """Whether the totals are those of an end, also while a new attempt waits for a worker."""
    return cleanup.finished_at is not None or cleanup.status in Cleanup.FINISHED


def column_totals(cleanup: Cleanup) -> dict[str, tuple[int, int]]:
    return {
        name: (getattr(cleanup, name), getattr(cleanup, f"{name}_bytes")) for name in FINAL_OUTCOMES
    }


def item_totals(cleanup: Cleanup, recount: bool) -> dict[str, tuple[int, int]]:
    """The totals as its worker counts them, once one has begun."""
    sums = cleanup.progress.get("totals")
    if sums is None:
        sums = cleanup.items.by_outcome() if recount else {}
    return {name: tuple(sums.get(name, (0, 0))) for name in BAR_OUTCOMES}


def outcome_lines(cleanup: Cleanup, sums: dict[str, tuple[int, int]]) -> list[TotalsLine]:
    whole = sum(objects for objects, _size in sums.values()) or 1
    wide = {
        name: max(MIN_WIDTH_PERCENT, 100 * objects / whole) if objects else 0.0
        for name, (objects, _size) in sums.items()
    }
    scale, x, lines = 100 / (sum(wide.values()) or 1), 0.0, []
    for name, figures in sums.items():
        width = wide[name] * scale
        place = (f"{x:.2f}%", f"{width:.2f}%")
        lines.append(TotalsLine(name, describe_outcome(cleanup, name), *figures, *place))
        x += width
    return lines


def field_label(row: models.Model, name: str) -> Any:
    field: Any = row._meta.get_field(name)
    return field.verbose_name


FACT_FIELDS = (
    "id",
    "project_id",
    "kind",
    "trigger",
    "bucket",
    "requested_by",
    "origin",
    "limits_waived_by",
    "created_at",
    "project_deleted_at",
    "started_at",
    "planned_at",
    "held_until",
    "first_request_at",
    "decided_by",
    "decided_at",
    "decision_reason",
    "cancelled_at",
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
# What a fact means, where its name does not say it.
FACT_EXPLANATIONS = {
    "limits_waived_by": gettext_lazy("Approved this cleanup without the safety limits."),
    "first_request_at": gettext_lazy("The first request to delete. Undo was possible until then."),
    "discovery": gettext_lazy("Where we looked for its files."),
    "strategy": gettext_lazy("How the files are deleted."),
    "plan_digest": gettext_lazy("SHA-256 of the plan and all of its files."),
    "next_attempt_at": gettext_lazy("The next try, at the earliest."),
    "archive": gettext_lazy("Has the list of files and the timeline."),
    "archive_digest": gettext_lazy("SHA-256 of that file."),
}


class Fact(NamedTuple):
    label: Any
    value: Any
    explanation: Any


def cleanup_facts(cleanup: Cleanup) -> Iterator[Fact]:
    explained = FACT_EXPLANATIONS | {"trigger": TRIGGER_MEANINGS[Trigger(cleanup.trigger)]}
    for name in FACT_FIELDS:
        if name == "project_deleted_at" and not cleanup.is_deletion:
            continue  # A matter of course for a verification or a dry run.
        display = getattr(cleanup, f"get_{name}_display", None)
        value = display() if display else getattr(cleanup, name)
        if value not in (None, ""):
            shown = printable_text(value) if isinstance(value, str) else value
            yield Fact(field_label(cleanup, name), shown, explained.get(name, ""))


def item_texts(cleanup: Cleanup, item: CleanupItem) -> dict[str, Any]:
    return {
        "key": printable_text(item.key),
        "outcome": describe_outcome(cleanup, item.outcome),
        "found": item.get_found_in_display(),
        "reason": printable_text(item.reason),
        "owner_evidence": printable_text(item.owner_evidence),
        "store_answer": printable_text(item.store_answer),
    }
