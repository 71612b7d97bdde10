"""Clocks that are not to be trusted: those that were ahead, and those that stand still.

No time that a clock which was ahead has written may keep work waiting, or hide anything, until its
date: a time that is still to come says nothing of when it was.
"""

import time
from datetime import datetime, timedelta
from time import clock_gettime
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, DateTimeField, F, Func, OuterRef, Q, Value, When
from django.db.models.lookups import GreaterThan
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone

from storage_audit.conf import conf

# Linux has one that goes on while the machine is suspended.
CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# More than enough: no store accepts a request whose clock is wrong by more than 15 minutes.
MAX_CLOCK_SKEW = timedelta(hours=1)


def monotonic_seconds() -> float:
    """As Python's, for what must not outlast a suspended machine: Python's clock stands still
    then, so that a proof from before would look fresh."""
    return clock_gettime(CLOCK_ID)


class DatabaseNow(Func):
    """The time by the database's clock, or so much later. Workers on several machines agree on it,
    so that none takes over early what another one holds. SQLite has the clock of its one machine.
    """

    output_field = DateTimeField()

    def __init__(self, later: timedelta = timedelta(0)) -> None:
        super().__init__()
        self.later = later

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> Any:
        return compiler.compile(Value(timezone.now() + self.later, self.output_field))

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> Any:
        # Not now(), which is when the transaction began.
        return "(STATEMENT_TIMESTAMP() + %s)", (self.later,)


def latest_valid_time() -> datetime:
    """The latest time that clocks of several machines can have written by now. A later one is void:
    the clock was ahead, and nobody knows since when it is over."""
    return timezone.now() + clock_skew()


def clock_skew() -> timedelta:
    """Clocks of several machines may differ by so much."""
    return 2 * conf().lease_time


def has_lease(at: Any = None, relation_prefix: str = "") -> Q:
    """Rows whose lease runs at this moment (now), or ran later, and is not void."""
    until = f"{relation_prefix}lease_until"
    return Q(**{f"{until}__gt": at or DatabaseNow(), f"{until}__lte": DatabaseNow(clock_skew())})


def time_after(field: str, moment: Any) -> Q:
    """Rows whose time is after `moment`, which may be another column, and not void."""
    return Q(**{f"{field}__gt": moment, f"{field}__lte": latest_valid_time()})


def time_before(field: str, moment: Any) -> Q:
    """Rows whose time is before `moment`, or void."""
    return Q(**{f"{field}__lt": moment}) | Q(**{f"{field}__gt": latest_valid_time()})


def time_maybe_since(field: str, moment: Any) -> Q:
    """Rows whose time may be `moment` or later. Use it where a file or a person's decision is at
    stake: `time_before` takes all that a clock some minutes ahead has just written for old."""
    return Q(**{f"{field}__gte": moment, f"{field}__lte": latest_accepted_time()})


def latest_accepted_time() -> datetime:
    """The latest time that a clock can have written by now whose requests the store accepts."""
    return timezone.now() + MAX_CLOCK_SKEW


def is_from_fast_clock(at: datetime, followed_at: datetime | None = None) -> bool:
    """Whether the clock that wrote `at` was ahead: `at` is still to come, or what followed it has
    an earlier time."""
    return at > min(latest_valid_time(), (followed_at or timezone.now()) + clock_skew())


def may_be_since(at: datetime, moment: datetime) -> bool:
    return moment <= at <= latest_accepted_time()


def time_after_outer(field: str, outer: str) -> Q:
    """Rows whose time is after that of the outer query's row, which may be void."""
    is_void = GreaterThan(OuterRef(outer), Value(latest_valid_time()))
    return Q(**{f"{field}__lte": latest_valid_time()}) & (
        Q(**{f"{field}__gt": OuterRef(outer)}) | Q(is_void)
    )


def time_within(field: str, span: timedelta) -> Q:
    """Rows whose time is at most `span` ago, or `span` ahead: the mark still counts while the
    clocks of two machines differ by less than it holds anyway."""
    return Q(**{f"{field}__range": (timezone.now() - span, latest_valid_mark(span))})


def is_recent(at: datetime, span: timedelta) -> bool:
    return timezone.now() - span <= at <= latest_valid_mark(span)


def latest_valid_mark(span: timedelta) -> datetime:
    """The latest time of a mark that holds for `span`. A mark with a later time is void."""
    return max(timezone.now() + span, latest_valid_time())


def mark_or_now(field: str, span: timedelta) -> Case:
    """A mark that holds for `span`, to be passed on: a void one counts from now on."""
    is_void = Q(**{f"{field}__gt": latest_valid_mark(span)})
    return Case(When(is_void, then=Value(timezone.now())), default=F(field))
