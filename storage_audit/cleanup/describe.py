"""One description of a cleanup for its page, the API, commands and the certificate: its facts, its
books (as lines of a table, and as the parts of a bar), and its items."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.db import models
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.cleanup_text import TRIGGERS, words_of
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.redaction import visible

Outcome, Trigger = CleanupItem.Outcome, CleanupOperation.Trigger
CLOSED = (Outcome.DELETED, Outcome.ALREADY_ABSENT, Outcome.PROTECTED, Outcome.FAILED)
# As the bar has them from left to right: what is over, then what is ahead.
OUTCOMES = (*CLOSED, Outcome.DELETING, Outcome.PLANNED)
# Percent: what there is can be seen.
LEAST = 1.0


class Line(NamedTuple):
    """A line of the table; `x` and `width` are its part of the bar, the total has none."""

    name: str
    label: Any
    meaning: Any
    objects: int
    size: int
    x: str = ""
    width: str = ""


def books(operation: CleanupOperation, *, recount: bool = True) -> list[Line]:
    """The total first; of open books a line for each outcome. Nothing where nothing was found, or
    where only a recount of all items would tell."""
    closed = are_closed(operation)
    sums = of_columns(operation) if closed else of_items(operation, recount)
    found = [sum(figures) for figures in zip(*sums.values(), strict=True)]
    if not closed and not any(found):
        return []
    total = Line("found", label_of(operation, "found"), "", *found)
    return [total, *parts(operation, sums)]


def are_closed(operation: CleanupOperation) -> bool:
    """Also of what is to be tried again and no worker has taken up yet."""
    return operation.finished_at is not None or operation.status in CleanupOperation.CLOSED


def of_columns(operation: CleanupOperation) -> dict[str, tuple[int, int]]:
    return {
        name: (getattr(operation, name), getattr(operation, f"{name}_bytes")) for name in CLOSED
    }


def of_items(operation: CleanupOperation, recount: bool) -> dict[str, tuple[int, int]]:
    """As its worker counts them, once one has begun."""
    sums = operation.headway.get("books")
    if sums is None:
        sums = operation.items.by_outcome() if recount else {}
    return {name: tuple(sums.get(name, (0, 0))) for name in OUTCOMES}


def parts(operation: CleanupOperation, sums: dict[str, tuple[int, int]]) -> list[Line]:
    whole = sum(objects for objects, _size in sums.values()) or 1
    wide = {
        name: max(LEAST, 100 * objects / whole) if objects else 0.0
        for name, (objects, _size) in sums.items()
    }
    scale, x, lines = 100 / (sum(wide.values()) or 1), 0.0, []
    for name, figures in sums.items():
        width = wide[name] * scale
        place = (f"{x:.2f}%", f"{width:.2f}%")
        lines.append(Line(name, *words_of(operation, name), *figures, *place))
        x += width
    return lines


def label_of(row: models.Model, name: str) -> Any:
    field: Any = row._meta.get_field(name)
    return field.verbose_name


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
# What a fact means, where its name does not say it.
EXPLAINED = {
    "id": gettext_lazy("The name of this operation everywhere: in logs, commands and the API."),
    "origin": gettext_lazy("The way in which it was asked for, and the address it came from."),
    "released_by": gettext_lazy("Who decided that the safety limits do not stop it."),
    "attempts": gettext_lazy("Workers that took it up since it last got on: 0 while all is well."),
    "discovery": gettext_lazy(
        "Where its objects were looked for: in the table of tracked objects, in a listing of the"
        " bucket, or in both."
    ),
    "strategy": gettext_lazy(
        "How the store is asked to delete. Whatever the way, only a complete listing says that"
        " something is gone."
    ),
    "plan_digest": gettext_lazy(
        "A fingerprint (SHA-256) of the plan, with each of its objects. While it is the same, so"
        " is the plan."
    ),
    "next_attempt_at": gettext_lazy("From then on a worker may take it; it need not be at once."),
    "archive": gettext_lazy("The file that its items and its timeline were exported to."),
    "archive_digest": gettext_lazy("A fingerprint (SHA-256) of what is in that file."),
}


class Fact(NamedTuple):
    label: Any
    value: Any
    explained: Any


def facts(operation: CleanupOperation) -> Iterator[Fact]:
    explained = EXPLAINED | {"trigger": TRIGGERS[Trigger(operation.trigger)]}
    for name in FACTS:
        if name == "project_deleted_at" and not operation.deletes:
            continue  # What a look or a dry run takes for granted, and not a fact.
        display = getattr(operation, f"get_{name}_display", None)
        value = display() if display else getattr(operation, name)
        if value not in (None, ""):
            shown = visible(value) if isinstance(value, str) else value
            yield Fact(label_of(operation, name), shown, explained.get(name, ""))


def shown_item(operation: CleanupOperation, item: CleanupItem) -> dict[str, Any]:
    return {
        "key": visible(item.key),
        "outcome": words_of(operation, item.outcome)[0],
        "found": item.get_found_in_display(),
        "reason": visible(item.reason),
        "evidence": visible(item.evidence),
        "answer": visible(item.answer),
    }
