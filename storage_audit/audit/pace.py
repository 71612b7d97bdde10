"""How much is asked of the store at a time: less on trouble, more again while all goes well.

The pace is kept in the operation, so that its next turn begins with what the store could bear.
"""

from random import uniform
from time import monotonic, sleep
from typing import NamedTuple

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.audit.work import Work
from storage_audit.bucket.deleters import Sent
from storage_audit.bucket.errors import (
    Barred,
    Broken,
    Overloaded,
    StoreError,
    TooLate,
    Unavailable,
    classify,
)
from storage_audit.bucket.r2 import DELETED
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

SMALLER = (1, 250)  # keys a call, below the setting BATCH_SIZE
MOST_CALLS = 4
PAUSE = 2.0  # seconds
# Troubles in a row at the slowest pace: fewer may be about a few keys, and stop no others.
LAST_TROUBLES = 10


class Pace(NamedTuple):
    """The number of keys in a call, and of calls at once."""

    keys: int
    calls: int

    @property
    def size(self) -> int:
        return self.keys * self.calls

    @classmethod
    def of(cls, operation: CleanupOperation) -> "Pace":
        most, kept = conf().batch_size, operation.pace
        return cls(min(kept.get("keys", most), most), kept.get("calls", 1))

    def faster(self) -> "Pace":
        """One call more, or as many keys in fewer calls."""
        if self.calls < MOST_CALLS:
            return Pace(self.keys, self.calls + 1)
        most = conf().batch_size
        larger = min((size for size in SMALLER if size > self.keys), default=most)
        return Pace(min(larger, most), 1) if self.keys < most else self

    def slower(self) -> "Pace":
        smaller = max((size for size in SMALLER if size < self.keys), default=1)
        return Pace(smaller, max(1, self.calls // 2))


def adapt(work: Work, size: int, trouble: StoreError | None) -> None:
    """Ask for more or for less from now on; `size` keys were asked for. After trouble, wait.

    Raises the trouble when this turn is too short for it, and LeaseLost.
    """
    if trouble is None:
        work.troubles = 0
        speed_up(work.operation)
    elif isinstance(trouble, Barred) or (isinstance(trouble, TooLate) and size == 1):
        raise trouble
    elif isinstance(trouble, TooLate):
        slow_down(work.operation, Pace(max(1, size // 4), 1), trouble)
    else:
        endure(work, trouble)


def trouble_in(sent: Sent) -> StoreError | None:
    """The worst that the store had, with calls or with single keys of theirs."""
    kept = [answer for answer in sent.answers.values() if answer != DELETED]
    of_keys = [classify(answer.code)(str(answer), answer.code) for answer in kept]
    troubles = sent.troubles + [e for e in of_keys if isinstance(e, Unavailable | Broken)]
    return max(troubles, key=severity, default=None)


def severity(error: StoreError) -> tuple[bool, float, bool]:
    return isinstance(error, Barred), error.retry_after, isinstance(error, Overloaded)


def speed_up(operation: CleanupOperation) -> None:
    before = Pace.of(operation)
    pace = before.faster()
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
    text = _("%(why)s From now on at most %(keys)s objects in a call, and %(calls)s calls at once.")
    operation.record("pace", text % {"why": why, **pace._asdict()}, **pace._asdict())


def endure(work: Work, trouble: StoreError) -> None:
    """Slow down and wait; what was not answered is proved anew before it is sent again."""
    before = Pace.of(work.operation)
    pace = before.slower()
    slow_down(work.operation, pace, trouble)
    work.troubles += pace == before
    pause = max(trouble.retry_after, uniform(PAUSE / 2, PAUSE))
    left = min(work.deadline - monotonic(), conf().lease.total_seconds() / 2)
    if pause > left or work.troubles == LAST_TROUBLES:
        raise trouble
    sleep(pause)
