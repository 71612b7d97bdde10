"""How far a worker is with a step: it says so with its lease, so that whoever watches reads one
row, and not a million items."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import dropwhile
from typing import Any, NamedTuple, Protocol

from django.utils import timezone

from storage_audit.cleanup.models import CleanupItem, CleanupOperation

Outcome = CleanupItem.Outcome
Step = CleanupOperation.Step
# Seconds: the pace is that of the last minute, of which each fifth second is remembered.
WINDOW, APART = 60.0, 5.0


class HasSize(Protocol):
    @property
    def size(self) -> int | None: ...


class Headway(NamedTuple):
    """Objects that the step has done, and is to do if that is known; a second; what is left."""

    done: int
    total: int | None
    rate: float
    seconds_left: float | None

    @classmethod
    def of(cls, operation: CleanupOperation, now: datetime) -> "Headway | None":
        """None where no worker has begun to count."""
        kept = operation.headway
        if kept.get("step") != operation.step:
            return None
        done, total = kept["marks"][-1][1], kept["total"]
        rate = rate_of(kept["marks"], now.timestamp())
        left = (total - done) / rate if total and rate else None
        return cls(done, total, rate, left if left is None else max(0.0, left))


def rate_of(marks: list[list[float]], now: float) -> float:
    """Over the last minute, or since the step began: none, if nothing was done since."""
    # The worker's clock may be ahead of ours.
    now = max(now, marks[-1][0])
    old = [mark for mark in marks if mark[0] <= now - WINDOW]
    at, done = old[-1] if old else marks[0]
    return (marks[-1][1] - done) / (now - at) if now > at else 0.0


def enter(operation: CleanupOperation) -> None:
    """Begin to count what its step does, unless a worker before has begun to."""
    if operation.headway.get("step") == operation.step:
        return
    books = {outcome: [*sums] for outcome, sums in operation.items.by_outcome().items()}
    # What was left without an answer is sent again.
    ahead = [books.pop(outcome, [0, 0]) for outcome in CleanupItem.OPEN]
    left = [sum(figures) for figures in zip(*ahead, strict=True)]
    books[Outcome.DELETING if operation.step == Step.VERIFY else Outcome.PLANNED] = left
    is_known = operation.step == Step.DELETE or operation.names_its_objects
    operation.renew(
        headway={
            "step": operation.step,
            "total": left[0] or None if is_known else None,
            "marks": [[timezone.now().timestamp(), 0]],
            "books": books,
        }
    )


def passed(operation: CleanupOperation, count: int) -> dict[str, Any]:
    """Its headway once so many objects more are done; to be written with the lease."""
    marks, now = operation.headway["marks"], timezone.now().timestamp()
    # The last one is of the present, whatever its distance.
    kept = marks[:-1] if len(marks) > 1 and marks[-1][0] - marks[-2][0] < APART else marks
    recent = list(dropwhile(lambda mark: mark[0] <= now - WINDOW, kept))
    older = kept[: len(kept) - len(recent)][-1:]
    return {**operation.headway, "marks": [*older, *recent, [now, marks[-1][1] + count]]}


def found(operation: CleanupOperation, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same once these are items of it: the values of their columns."""
    books, count = copy_of_books(operation), 0
    for row in rows:
        add(books, row["outcome"], 1, row["size"] or 0)
        count += 1
    return {**passed(operation, count), "books": books}


def moved(operation: CleanupOperation, **to: Iterable[HasSize]) -> dict[str, Any]:
    """The same once these of the planned items have another outcome."""
    books, count = copy_of_books(operation), 0
    for outcome, items in to.items():
        sizes = [item.size or 0 for item in items]
        add(books, Outcome.PLANNED, -len(sizes), -sum(sizes))
        add(books, outcome, len(sizes), sum(sizes))
        count += len(sizes)
    return {**passed(operation, count), "books": books}


def recounted(
    operation: CleanupOperation,
    before: Mapping[str, tuple[int, int]],
    after: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """The same once items that had the one sums by outcome have the other."""
    books = copy_of_books(operation)
    for sign, sums in ((-1, before), (1, after)):
        for outcome, (count, size) in sums.items():
            add(books, outcome, sign * count, sign * size)
    return {**operation.headway, "books": books}


def copy_of_books(operation: CleanupOperation) -> dict[str, list[int]]:
    return {outcome: [*sums] for outcome, sums in operation.headway["books"].items()}


def add(books: dict[str, list[int]], outcome: str, count: int, size: int) -> None:
    before = books.get(outcome, [0, 0])
    books[outcome] = [before[0] + count, before[1] + size]
