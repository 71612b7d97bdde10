"""How much is asked of the store at a time: less after errors, more again while all goes well.

The batch size is kept in the cleanup, so that its next turn begins with what the store could bear.
"""

from random import uniform
from time import sleep
from typing import NamedTuple

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import BucketForbidden, DeadlinePassed, Overloaded, StoreError
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf

Strategy = Cleanup.Strategy

SMALLER_LANE_SIZES = (1, 25)  # keys a lane, below the largest
PAUSE_SECONDS = 2.0  # seconds
# Errors in a row at the smallest batch size: fewer may be about a few keys, and stop no others.
MAX_ERRORS_AT_SLOWEST = 10


class BatchSize(NamedTuple):
    """The number of keys in a lane, whose calls follow each other, and of lanes at once."""

    keys: int
    calls: int

    @property
    def size(self) -> int:
        return self.keys * self.calls

    @classmethod
    def of(cls, cleanup: Cleanup) -> "BatchSize":
        most, kept = largest_batch(cleanup), cleanup.batch_state
        first = INITIAL_CALLS.get(cleanup.strategy, 1)
        keys, calls = kept.get("keys", most.keys), kept.get("calls", first)
        return cls(min(keys, most.keys), min(calls, most.calls))

    @classmethod
    def for_size(cls, size: int, largest: "BatchSize") -> "BatchSize":
        return cls(
            max(1, min(size, largest.keys)), max(1, min(size // largest.keys, largest.calls))
        )

    def larger(self, largest: "BatchSize") -> "BatchSize":
        """Twice the lanes, or more keys in one lane."""
        if self.calls < largest.calls:
            return BatchSize(self.keys, min(2 * self.calls, largest.calls))
        larger = min(
            (size for size in SMALLER_LANE_SIZES if size > self.keys), default=largest.keys
        )
        return BatchSize(min(larger, largest.keys), 1) if self.keys < largest.keys else self

    def smaller(self) -> "BatchSize":
        smaller = max((size for size in SMALLER_LANE_SIZES if size < self.keys), default=1)
        return BatchSize(smaller, max(1, self.calls // 4))


# A lane's calls must be over before the recheck that allows them is too old.
LARGEST_BATCH: dict[str, BatchSize] = {
    Strategy.BATCH: BatchSize(1000, 16),  # one call a lane
    Strategy.PARALLEL: BatchSize(100, 8),
    Strategy.SEQUENTIAL: BatchSize(100, 1),
    # A second each, or more, and at most two starts a second.
    Strategy.WRANGLER: BatchSize(5, 4),
    Strategy.WRANGLER_SEQUENTIAL: BatchSize(10, 1),
}
# The calls at first, where a project of usual size would be done before the size grows.
INITIAL_CALLS: dict[str, int] = {Strategy.PARALLEL: 4, Strategy.WRANGLER: 4}


def largest_batch(cleanup: Cleanup) -> BatchSize:
    most = LARGEST_BATCH[cleanup.strategy]
    return most._replace(keys=min(most.keys, conf().batch_size))


def is_at_full_speed(cleanup: Cleanup) -> bool:
    """Whether the next batch may be rechecked while one is on its way. The store must keep up with
    the largest batches, and each must leave in one call: then hardly a recheck grows old while it
    waits."""
    one_call_a_lane = cleanup.strategy == Strategy.BATCH
    return one_call_a_lane and BatchSize.of(cleanup) == largest_batch(cleanup)


def adapt_batch_size(work: Turn, size: int, trouble: StoreError | None) -> None:
    """Ask for more or for less from now on; `size` keys were asked for. After an error, wait.

    Raises the error when this turn is too short to wait, and LeaseLost.
    """
    if trouble is None:
        work.errors_at_slowest = 0
        increase_batch_size(work.cleanup)
    elif isinstance(trouble, BucketForbidden) or (
        isinstance(trouble, DeadlinePassed) and size == 1
    ):
        raise trouble
    elif isinstance(trouble, DeadlinePassed):
        reduce_batch_size(work.cleanup, size, trouble)
    else:
        slow_down_and_wait(work, size, trouble)


def reduce_batch_size(cleanup: Cleanup, size: int, trouble: StoreError) -> None:
    """Ask for less; for as much where that would change nothing. `size` keys were asked for."""
    if isinstance(trouble, BucketForbidden):
        return
    late = isinstance(trouble, DeadlinePassed)
    smaller = BatchSize.for_size(size // 4, largest_batch(cleanup))
    save_smaller_batch(cleanup, smaller if late else BatchSize.of(cleanup).smaller(), trouble)


def error_severity(error: StoreError) -> tuple[bool, float, bool]:
    return isinstance(error, BucketForbidden), error.retry_after, isinstance(error, Overloaded)


def increase_batch_size(cleanup: Cleanup) -> None:
    before = BatchSize.of(cleanup)
    batch_size = before.larger(largest_batch(cleanup))
    if batch_size == before:
        return
    with transaction.atomic():
        cleanup.renew(batch_state=batch_size._asdict())
        if batch_size.keys > before.keys:
            record_batch_size(cleanup, batch_size, _("The store keeps up."))


def save_smaller_batch(cleanup: Cleanup, batch_size: BatchSize, why: StoreError) -> None:
    with transaction.atomic():
        cleanup.renew(batch_state=batch_size._asdict())
        record_batch_size(cleanup, batch_size, f"{str(why).rstrip('.')}.")


def record_batch_size(cleanup: Cleanup, batch_size: BatchSize, why: str) -> None:
    text = _("The batch size is now %(size)s files, with %(calls)s calls at once.")
    figures = {"size": batch_size.size, "calls": batch_size.calls}
    cleanup.record("batch_size", f"{why} {text % figures}", **batch_size._asdict())


def slow_down_and_wait(work: Turn, size: int, trouble: StoreError) -> None:
    """Slow down and wait; what was not answered is rechecked before it is sent again."""
    before = BatchSize.of(work.cleanup)
    reduce_batch_size(work.cleanup, size, trouble)
    work.errors_at_slowest += BatchSize.of(work.cleanup) == before
    pause = max(trouble.retry_after, uniform(PAUSE_SECONDS / 2, PAUSE_SECONDS))
    left = min(work.deadline - monotonic_seconds(), conf().lease_time.total_seconds() / 2)
    if pause > left or work.errors_at_slowest == MAX_ERRORS_AT_SLOWEST:
        raise trouble
    sleep(pause)
