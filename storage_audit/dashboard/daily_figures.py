"""The figures that tell staff how things are, from aggregates alone."""

from datetime import date, datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Min, Q, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from storage_audit import clocks
from storage_audit.alerts.alert_rules import recipients
from storage_audit.alerts.models import Delivery
from storage_audit.cleanup.attention import (
    find_verifications_with_uncovered_leftovers,
    select_keeping_files,
)
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.dashboard.models import DailyFigures
from storage_audit.findings.leftovers import find_leftovers, group_by_object
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership.owner import refused_ids
from storage_audit.scan.models import BucketScan

# The table of objects is read as a whole for them: not more often.
FIGURES_EVERY = timedelta(hours=1)
# Extensions are made up by strangers. No type is called like the rest of them.
TYPES_KEPT = 20
OTHER_TYPES = "…"
GB = 10**9
# More than so many are not counted while somebody waits.
MUCH = 10_000
MESSAGES_LATELY = timedelta(days=30)


class Amount(NamedTuple):
    objects: int
    bytes: int

    @property
    def price(self) -> float:
        """What the store takes for it in a month."""
        return self.bytes / GB * conf().price_per_gb


class Left(NamedTuple):
    """What is left behind, as of then; as of now without a time."""

    amount: Amount
    taken_at: datetime | None = None


class OpenDeletions(NamedTuple):
    number: int
    oldest: datetime | None


class Kept(NamedTuple):
    """What operations kept as it may be somebody else's, and since when."""

    operations: int
    objects: int
    since: datetime | None


class Outcomes(NamedTuple):
    """What ended on a day with one status. `bytes` are those that went, also by late checks."""

    day: date
    status: str
    deletions: int
    bytes: int


def open_deletions() -> OpenDeletions:
    deletions = CleanupOperation.objects.cleanups().open().with_asked_at()
    return OpenDeletions(**deletions.aggregate(number=Count("pk"), oldest=Min("asked_at")))


def kept() -> Kept:
    return Kept(
        **select_keeping_files(CleanupOperation.objects.all()).aggregate(
            operations=Count("pk"), objects=Sum("protected", default=0), since=Min("finished_at")
        )
    )


def left_behind() -> Amount:
    """Each object once that nothing keeps and that is still there: those of the open findings that
    are orphaned, and what verifications found of deleted projects. This reads all of them: in a
    request only where there are few.

    Neither what is protected, nor what an open cleanup covers: it decides on that, or waits for a
    person.
    """
    found = Finding.objects.orphaned()
    orphaned = found.aggregate(objects=Count("*"), size=Sum("size", default=0))
    remain = group_by_object(find_leftovers())
    undeleted = remain.aggregate(objects=Count("*"), size=Sum("bytes", default=0))
    return Amount(orphaned["objects"] + undeleted["objects"], orphaned["size"] + undeleted["size"])


def left_behind_in_time() -> Left | None:
    """The same for whoever waits for a page: that of now where there is little, otherwise the last
    that a sweep counted, if any did."""
    if is_little():
        return Left(left_behind())
    latest = DailyFigures.objects.latest_first().first()
    if latest is None:
        return None
    return Left(Amount(latest.left_behind, latest.left_behind_bytes), latest.taken_at)


def is_little() -> bool:
    """Whether all that is left behind is counted in no time, going by books and an index."""
    failed = find_verifications_with_uncovered_leftovers().aggregate(n=Sum("failed", default=0))[
        "n"
    ]
    # With those that an open cleanup covers: to tell them apart takes time.
    orphaned = Finding.objects.open().filter(kind=Finding.Kind.ORPHANED)
    return int(failed) + orphaned.order_by("key")[: MUCH + 1].count() <= MUCH


def outcomes(since: date) -> list[Outcomes]:
    """Of each day from `since` on, by the statuses there are."""
    begin = timezone.make_aware(datetime.combine(since, datetime.min.time()))
    first = Q(parent=None, dry_run=False) & ~Q(kind=CleanupOperation.Kind.VERIFY)
    ended = CleanupOperation.objects.filter(finished_at__gte=begin).order_by()
    sums = ended.values("status", day=TruncDate("finished_at")).annotate(
        deletions=Count("pk", filter=first), bytes=Sum("deleted_bytes", default=0)
    )
    return [Outcomes(**group) for group in sums]


def last_complete_scan() -> BucketScan | None:
    return BucketScan.objects.whole(conf().bucket).last_complete()


def is_overdue(scan: BucketScan) -> bool:
    pause, ended = conf().reconcile_every, scan.finished_at
    return bool(pause and ended and timezone.now() - ended > 2 * pause)


def failed_scan() -> BucketScan | None:
    """The latest scan of the whole bucket, if it failed."""
    whole = BucketScan.objects.whole(conf().bucket).filter(started_at__lte=clocks.latest())
    latest = whole.order_by("-started_at").first()
    return latest if latest and latest.status == BucketScan.Status.FAILED else None


def unsent_messages() -> int:
    """Those given up of the last weeks, for whom the settings still name."""
    lost = Delivery.objects.filter(
        state=Delivery.State.GIVEN_UP, notice__made_at__gte=timezone.now() - MESSAGES_LATELY
    )
    groups = lost.order_by().values_list("channel", "recipient").annotate(n=Count("pk"))
    told = recipients()
    return sum(n for *recipient, n in groups if tuple(recipient) in told)


def take_figures() -> bool:
    """Write down what is tracked and left behind by now; whether it was time to."""
    latest = DailyFigures.objects.latest_first().first()
    now = timezone.now()
    if latest and latest.day == timezone.localdate(now) and now - latest.taken_at < FIGURES_EVERY:
        return False
    types, left = by_file_type(), left_behind()
    DailyFigures.objects.take(
        tracked=sum(amount.objects for amount in types.values()),
        tracked_bytes=sum(amount.bytes for amount in types.values()),
        left_behind=left.objects,
        left_behind_bytes=left.bytes,
        file_types=types,
        refused_ids=refused_ids(),
    )
    return True


def latest_refused_ids() -> list[str] | None:
    """As they were last counted, if they were."""
    latest = DailyFigures.objects.latest_first().first()
    return latest.refused_ids if latest else None


def by_file_type() -> dict[str, Amount]:
    """The tracked objects, the largest types first and the others together. This reads the whole
    table: never in a request."""
    groups = R2Object.objects.order_by().values_list("file_type")
    sums = groups.annotate(n=Count("*"), total=Sum("size", default=0))
    types = {name: Amount(*sums) for name, *sums in sums.order_by("-total", "file_type")}
    rest = [types.pop(name) for name in list(types)[TYPES_KEPT:]]
    if rest:
        types[OTHER_TYPES] = Amount(*map(sum, zip(*rest, strict=True)))
    return types
