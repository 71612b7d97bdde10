"""How much is asked of the store at a time: less on trouble, more again while all goes well.

The pace is kept in the operation, so that its next turn begins with what the store could bear.
"""

from random import uniform
from time import sleep
from typing import NamedTuple

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import BucketForbidden, DeadlinePassed, Overloaded, StoreError
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.clocks import monotonic
from storage_audit.conf import conf

Strategy = CleanupOperation.Strategy

SMALLER = (1, 25)  # keys a lane, below the most
PAUSE = 2.0  # seconds
# Troubles in a row at the slowest pace: fewer may be about a few keys, and stop no others.
LAST_TROUBLES = 10


class Pace(NamedTuple):
    """The number of keys in a lane, whose calls follow each other, and of lanes at once."""

    keys: int
    calls: int

    @property
    def size(self) -> int:
        return self.keys * self.calls

    @classmethod
    def of(cls, operation: CleanupOperation) -> "Pace":
        most, kept = most_of(operation), operation.pace
        first = FIRST_CALLS.get(operation.strategy, 1)
        keys, calls = kept.get("keys", most.keys), kept.get("calls", first)
        return cls(min(keys, most.keys), min(calls, most.calls))

    @classmethod
    def for_size(cls, size: int, most: "Pace") -> "Pace":
        return cls(max(1, min(size, most.keys)), max(1, min(size // most.keys, most.calls)))

    def faster(self, most: "Pace") -> "Pace":
        """Twice the lanes, or more keys in one lane."""
        if self.calls < most.calls:
            return Pace(self.keys, min(2 * self.calls, most.calls))
        larger = min((size for size in SMALLER if size > self.keys), default=most.keys)
        return Pace(min(larger, most.keys), 1) if self.keys < most.keys else self

    def slower(self) -> "Pace":
        smaller = max((size for size in SMALLER if size < self.keys), default=1)
        return Pace(smaller, max(1, self.calls // 4))


# A lane's calls must be over before the look that allows them is too old.
MOST: dict[str, Pace] = {
    Strategy.BATCH: Pace(1000, 16),  # one call a lane
    Strategy.PARALLEL: Pace(100, 8),
    Strategy.SEQUENTIAL: Pace(100, 1),
    # A second each, or more, and at most two starts a second.
    Strategy.WRANGLER: Pace(5, 4),
    Strategy.WRANGLER_SEQUENTIAL: Pace(10, 1),
}
# Where a project of usual size would be over before more than one lane is tried.
FIRST_CALLS: dict[str, int] = {Strategy.PARALLEL: 4, Strategy.WRANGLER: 4}


def most_of(operation: CleanupOperation) -> Pace:
    most = MOST[operation.strategy]
    return most._replace(keys=min(most.keys, conf().batch_size))


def keeps_up(operation: CleanupOperation) -> bool:
    """Whether the next batch may be proved while one is on its way: the store bears the most that
    is asked of it, and a batch leaves at once but for keys that go alone, so that hardly a proof
    grows old behind it."""
    one_call_a_lane = operation.strategy == Strategy.BATCH
    return one_call_a_lane and Pace.of(operation) == most_of(operation)


def adapt(work: Work, size: int, trouble: StoreError | None) -> None:
    """Ask for more or for less from now on; `size` keys were asked for. After trouble, wait.

    Raises the trouble when this turn is too short for it, and LeaseLost.
    """
    if trouble is None:
        work.troubles = 0
        speed_up(work.operation)
    elif isinstance(trouble, BucketForbidden) or (
        isinstance(trouble, DeadlinePassed) and size == 1
    ):
        raise trouble
    elif isinstance(trouble, DeadlinePassed):
        give_way(work.operation, size, trouble)
    else:
        endure(work, size, trouble)


def give_way(operation: CleanupOperation, size: int, trouble: StoreError) -> None:
    """Ask for less; for as much where that would change nothing. `size` keys were asked for."""
    if isinstance(trouble, BucketForbidden):
        return
    late = isinstance(trouble, DeadlinePassed)
    smaller = Pace.for_size(size // 4, most_of(operation))
    slow_down(operation, smaller if late else Pace.of(operation).slower(), trouble)


def severity(error: StoreError) -> tuple[bool, float, bool]:
    return isinstance(error, BucketForbidden), error.retry_after, isinstance(error, Overloaded)


def speed_up(operation: CleanupOperation) -> None:
    before = Pace.of(operation)
    pace = before.faster(most_of(operation))
    if pace == before:
        return
    with transaction.atomic():
        operation.renew(pace=pace._asdict())
        if pace.keys > before.keys:
            tell(operation, pace, _("The store keeps up."))


def slow_down(operation: CleanupOperation, pace: Pace, why: StoreError) -> None:
    with transaction.atomic():
        operation.renew(pace=pace._asdict())
        tell(operation, pace, f"{str(why).rstrip('.')}.")


def tell(operation: CleanupOperation, pace: Pace, why: str) -> None:
    text = _("From now on at most %(size)s objects after one look, %(calls)s calls at once.")
    figures = {"size": pace.size, "calls": pace.calls}
    operation.record("pace", f"{why} {text % figures}", **pace._asdict())


def endure(work: Work, size: int, trouble: StoreError) -> None:
    """Slow down and wait; what was not answered is proved anew before it is sent again."""
    before = Pace.of(work.operation)
    give_way(work.operation, size, trouble)
    work.troubles += Pace.of(work.operation) == before
    pause = max(trouble.retry_after, uniform(PAUSE / 2, PAUSE))
    left = min(work.deadline - monotonic(), conf().lease.total_seconds() / 2)
    if pause > left or work.troubles == LAST_TROUBLES:
        raise trouble
    sleep(pause)
