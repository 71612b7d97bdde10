"""An operation's books: as lines of a table, and as the parts of a bar."""

from typing import Any, NamedTuple

from storage_audit.audit.meaning import words_of
from storage_audit.items import CleanupItem
from storage_audit.operations import CleanupOperation
from storage_audit.pages.base import label_of

Outcome = CleanupItem.Outcome
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
