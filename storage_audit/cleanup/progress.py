"""The progress of a worker with a step. It is saved with the lease, so that a page reads one row,
and not a million items."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import dropwhile
from typing import Any, NamedTuple, Protocol

from django.utils import timezone

from storage_audit.cleanup.models import Cleanup, CleanupItem

Outcome = CleanupItem.Outcome
Step = Cleanup.Step
# The rate is that of the last minute, with one mark every five seconds.
RATE_WINDOW_SECONDS, MARK_INTERVAL_SECONDS = 60.0, 5.0


class HasSize(Protocol):
    @property
    def size(self) -> int | None: ...


class StepProgress(NamedTuple):
    """Objects done; the total, if known; objects a second; seconds left."""

    done: int
    total: int | None
    rate: float
    seconds_left: float | None

    @classmethod
    def of(cls, cleanup: Cleanup, now: datetime) -> "StepProgress | None":
        """None where no worker has begun to count."""
        kept = cleanup.progress
        if kept.get("step") != cleanup.step:
            return None
        done, total = kept["marks"][-1][1], kept["total"]
        rate = current_rate(kept["marks"], now.timestamp())
        left = (total - done) / rate if total and rate else None
        return cls(done, total, rate, left if left is None else max(0.0, left))


def current_rate(marks: list[list[float]], now: float) -> float:
    """The rate over the last minute, or since the step began; 0 if nothing was done since."""
    # The worker's clock may be ahead of ours.
    now = max(now, marks[-1][0])
    old = [mark for mark in marks if mark[0] <= now - RATE_WINDOW_SECONDS]
    at, done = old[-1] if old else marks[0]
    return (marks[-1][1] - done) / (now - at) if now > at else 0.0


def start_step(cleanup: Cleanup) -> None:
    """Begin to count what its step does, unless an earlier worker has begun."""
    if cleanup.progress.get("step") == cleanup.step:
        return
    totals = {outcome: [*sums] for outcome, sums in cleanup.items.by_outcome().items()}
    # What was left without an answer is sent again.
    ahead = [totals.pop(outcome, [0, 0]) for outcome in CleanupItem.OPEN]
    left = [sum(figures) for figures in zip(*ahead, strict=True)]
    totals[Outcome.DELETING if cleanup.step == Step.VERIFY else Outcome.TO_DELETE] = left
    is_known = cleanup.step == Step.DELETE or cleanup.has_given_objects
    cleanup.renew(
        progress={
            "step": cleanup.step,
            "total": left[0] or None if is_known else None,
            "marks": [[timezone.now().timestamp(), 0]],
            "totals": totals,
        }
    )


def count_done(cleanup: Cleanup, count: int) -> dict[str, Any]:
    """Its progress once `count` more objects are done; to be written with the lease."""
    marks, now = cleanup.progress["marks"], timezone.now().timestamp()
    # The last one is of the present, whatever its distance.
    kept = (
        marks[:-1]
        if len(marks) > 1 and marks[-1][0] - marks[-2][0] < MARK_INTERVAL_SECONDS
        else marks
    )
    recent = list(dropwhile(lambda mark: mark[0] <= now - RATE_WINDOW_SECONDS, kept))
    older = kept[: len(kept) - len(recent)][-1:]
    return {**cleanup.progress, "marks": [*older, *recent, [now, marks[-1][1] + count]]}


def count_found(cleanup: Cleanup, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same once these are items of it; `rows` are the values of their columns."""
    totals, count = copy_totals(cleanup), 0
    for row in rows:
        add_to_totals(totals, row["outcome"], 1, row["size"] or 0)
        count += 1
    return {**count_done(cleanup, count), "totals": totals}


def count_moved(cleanup: Cleanup, **to: Iterable[HasSize]) -> dict[str, Any]:
    """The same once these planned items have another outcome."""
    totals, count = copy_totals(cleanup), 0
    for outcome, items in to.items():
        sizes = [item.size or 0 for item in items]
        add_to_totals(totals, Outcome.TO_DELETE, -len(sizes), -sum(sizes))
        add_to_totals(totals, outcome, len(sizes), sum(sizes))
        count += len(sizes)
    return {**count_done(cleanup, count), "totals": totals}


def recount_outcomes(
    cleanup: Cleanup,
    before: Mapping[str, tuple[int, int]],
    after: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """The same once items with the sums `before` have the sums `after`."""
    totals = copy_totals(cleanup)
    for sign, sums in ((-1, before), (1, after)):
        for outcome, (count, size) in sums.items():
            add_to_totals(totals, outcome, sign * count, sign * size)
    return {**cleanup.progress, "totals": totals}


def copy_totals(cleanup: Cleanup) -> dict[str, list[int]]:
    return {outcome: [*sums] for outcome, sums in cleanup.progress["totals"].items()}


def add_to_totals(totals: dict[str, list[int]], outcome: str, count: int, size: int) -> None:
    before = totals.get(outcome, [0, 0])
    totals[outcome] = [before[0] + count, before[1] + size]
