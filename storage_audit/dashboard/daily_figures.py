"""Figures for the overview, from aggregates alone."""

from datetime import date, datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Min, Q, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from storage_audit import clocks
from storage_audit.alerts.alert_rules import list_recipients
from storage_audit.alerts.models import Delivery
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.needs_attention import (
    find_verifications_without_cleanup,
)
from storage_audit.conf import conf
from storage_audit.dashboard.models import DailyFigures
from storage_audit.findings.leftovers import find_leftovers, group_by_object
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import refused_ids
from storage_audit.scan.models import BucketScan

# The figures need the whole table of objects, so they are not updated more often.
FIGURES_EVERY = timedelta(hours=1)
# Strangers make up extensions, so only the largest types are kept. No type is named "…".
TYPES_KEPT = 20
OTHER_TYPES = "…"
# More than this many are not counted in a request.
MAX_COUNTED_LEFTOVERS = 10_000
UNSENT_PERIOD = timedelta(days=30)
# The period of the comparison of cost and freed bytes.
TREND_DAYS = 30


class Amount(NamedTuple):
    objects: int
    bytes: int


class LeftoverAmount(NamedTuple):
    """The leftover files at that time, or now if there is no time."""

    amount: Amount
    taken_at: datetime | None = None


class OpenDeletions(NamedTuple):
    number: int
    oldest: datetime | None


class FreedBytes(NamedTuple):
    """Of the last `TREND_DAYS`, and of as many before them, if that was recorded."""

    lately: int
    before: int | None


class DayOutcomes(NamedTuple):
    """Deletions that ended on a day with one status. `bytes` were freed, also by follow-ups."""

    day: date
    status: str
    deletions: int
    bytes: int


def count_open_deletions() -> OpenDeletions:
    """Those that are held wait for their time, and are none yet."""
    deletions = Cleanup.objects.requested_deletions().open().not_held().with_asked_at()
    return OpenDeletions(**deletions.aggregate(number=Count("pk"), oldest=Min("asked_at")))


def count_leftovers() -> Amount:
    """Count each leftover file once: objects of open orphaned findings, and what verifications
    found of deleted projects. Reads all of them: in a request only where there are few.

    Without what was kept, and what an open cleanup covers, as that decides on it.
    """
    found = Finding.objects.orphaned()
    orphaned = found.aggregate(objects=Count("*"), size=Sum("size", default=0))
    remain = group_by_object(find_leftovers())
    undeleted = remain.aggregate(objects=Count("*"), size=Sum("bytes", default=0))
    return Amount(orphaned["objects"] + undeleted["objects"], orphaned["size"] + undeleted["size"])


def latest_leftovers() -> LeftoverAmount | None:
    """The leftover files for a page: counted now where there are few, otherwise the latest count of
    a sweep, if there is one."""
    if has_few_leftovers():
        return LeftoverAmount(count_leftovers())
    latest = DailyFigures.objects.latest_first().first()
    if latest is None:
        return None
    return LeftoverAmount(Amount(latest.leftover, latest.leftover_bytes), latest.taken_at)


def has_few_leftovers() -> bool:
    """Whether the leftover files can be counted quickly, judged by totals and an index."""
    failed = find_verifications_without_cleanup().aggregate(n=Sum("failed", default=0))["n"]
    # Includes those that an open cleanup covers, as telling them apart takes time.
    orphaned = Finding.objects.open().filter(kind=Finding.Kind.ORPHANED)
    return (
        int(failed) + orphaned.order_by("key")[: MAX_COUNTED_LEFTOVERS + 1].count()
        <= MAX_COUNTED_LEFTOVERS
    )


def outcomes_by_day(since: date) -> list[DayOutcomes]:
    """The outcomes of each day from `since` on, by status."""
    begin = day_start(since)
    first = Q(parent=None, dry_run=False) & ~Q(kind=Cleanup.Kind.VERIFY)
    ended = Cleanup.objects.filter(finished_at__gte=begin).order_by()
    sums = ended.values("status", day=TruncDate("finished_at")).annotate(
        deletions=Count("pk", filter=first), bytes=Sum("deleted_bytes", default=0)
    )
    return [DayOutcomes(**group) for group in sums]


def day_start(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, datetime.min.time()))


def stored_now_and_before() -> tuple[DailyFigures | None, DailyFigures | None]:
    """The latest count, and the last one that is at least `TREND_DAYS` older."""
    figures = DailyFigures.objects.latest_first()
    if not (now := figures.first()):
        return None, None
    return now, figures.filter(day__lte=now.day - timedelta(days=TREND_DAYS)).first()


def freed_bytes() -> FreedBytes:
    """Also by follow-up checks, of the days that the chart of 30 days has too. Without records from
    before both periods, the earlier one may be incomplete, and is not compared."""
    today, period = timezone.localdate(), timedelta(days=TREND_DAYS)
    first_day = day_start(today - period + timedelta(days=1))
    ended = Cleanup.objects.filter(finished_at__gte=first_day - period)
    lately = Q(finished_at__gte=first_day)
    sums = ended.aggregate(
        lately=Sum("deleted_bytes", filter=lately, default=0),
        before=Sum("deleted_bytes", filter=~lately, default=0),
    )
    if not DailyFigures.objects.filter(day__lte=today - 2 * period).exists():
        return FreedBytes(sums["lately"], None)
    return FreedBytes(**sums)


def last_complete_scan() -> BucketScan | None:
    return BucketScan.objects.of_whole_bucket(conf().bucket).last_complete()


def is_overdue(scan: BucketScan) -> bool:
    pause, ended = conf().reconcile_every, scan.finished_at
    return bool(pause and ended and timezone.now() - ended > 2 * pause)


def failed_scan() -> BucketScan | None:
    """The latest scan of the whole bucket, if it failed."""
    whole = BucketScan.objects.of_whole_bucket(conf().bucket).filter(
        started_at__lte=clocks.latest_valid_time()
    )
    latest = whole.order_by("-started_at").first()
    return latest if latest and latest.status == BucketScan.Status.FAILED else None


def count_unsent_messages() -> int:
    """Messages of the last weeks that were given up, to recipients still in the settings."""
    lost = Delivery.objects.filter(
        state=Delivery.State.GIVEN_UP, notification__made_at__gte=timezone.now() - UNSENT_PERIOD
    )
    groups = lost.order_by().values_list("channel", "recipient").annotate(n=Count("pk"))
    told = list_recipients()
    return sum(n for *recipient, n in groups if tuple(recipient) in told)


def take_figures() -> bool:
    """Save the tracked and leftover files of now; whether it was time to."""
    latest = DailyFigures.objects.latest_first().first()
    now = timezone.now()
    if latest and latest.day == timezone.localdate(now) and now - latest.taken_at < FIGURES_EVERY:
        return False
    types, left = amounts_by_type(), count_leftovers()
    DailyFigures.objects.record_today(
        tracked=sum(amount.objects for amount in types.values()),
        tracked_bytes=sum(amount.bytes for amount in types.values()),
        leftover=left.objects,
        leftover_bytes=left.bytes,
        file_types=types,
        refused_ids=refused_ids(),
    )
    return True


def latest_refused_ids() -> list[str] | None:
    """The refused ids at the last count, if there was one."""
    latest = DailyFigures.objects.latest_first().first()
    return latest.refused_ids if latest else None


def amounts_by_type() -> dict[str, Amount]:
    """Tracked objects of the largest types, and of all others together. Reads the whole table:
    never call it in a request."""
    groups = R2Object.objects.order_by().values_list("file_type")
    sums = groups.annotate(n=Count("*"), total=Sum("size", default=0))
    types = {name: Amount(*sums) for name, *sums in sums.order_by("-total", "file_type")}
    rest = [types.pop(name) for name in list(types)[TYPES_KEPT:]]
    if rest:
        types[OTHER_TYPES] = Amount(*map(sum, zip(*rest, strict=True)))
    return types
