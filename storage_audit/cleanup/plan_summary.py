"""What a plan comes to, in figures that fit on a page; and what dropped out when it was run.

A plan may have a million items. So the worker that freezes it, or ends its run, goes through them
once and keeps the figures with the operation; its memory does not grow with the items.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from heapq import heappush, heappushpop
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from django.db.models import F

from storage_audit.bucket.s3 import PAGE
from storage_audit.bucket.wrangler import expected_duration
from storage_audit.cleanup.adaptive_batch import Pace
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.turn import LONE_KEYS
from storage_audit.ownership.owner import layouts

FoundIn, Outcome, Strategy = CleanupItem.FoundIn, CleanupItem.Outcome, CleanupOperation.Strategy

CHUNK = 10_000
SECOND = timedelta(seconds=1)
# Names come from strangers, who may have one for each object: so many groups are counted apart,
# the largest are shown, each with some keys.
MOST, SHOWN, EXAMPLES = 1000, 30, 3
LARGEST = 10
# Such as projects/proj_1/scenes/s1/.
DEPTH = 4
# A speed is told by the latest cleanups; small ones tell how long it takes to look.
RECENT, ENOUGH = 20, 100
# Objects a second where no cleanup tells it: see benchmarks/results.md. Nothing was measured of one
# object in a call, some at once: it is not slower than one after the other.
USUAL_SPEED: dict[str, float] = {
    Strategy.BATCH: 4000.0,
    Strategy.PARALLEL: 560.0,
    Strategy.SEQUENTIAL: 560.0,
}


class Seen(NamedTuple):
    """What counts of an item."""

    key: str
    identity: str
    span: int | None
    size: int | None
    found_in: str
    outcome: str
    reason: str


@dataclass
class Group:
    objects: int = 0
    bytes: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, other: "Group") -> None:
        self.objects += other.objects
        self.bytes += other.bytes
        self.keys += other.keys[: EXAMPLES - len(self.keys)]

    def count(self, item: Seen) -> None:
        self.add(Group(1, item.size or 0, [item.key]))


class Groups(dict[str, Group]):
    """By name; the group without one has also what came when there were very many names."""

    def count(self, name: str, item: Seen) -> None:
        if name not in self and len(self) >= MOST:
            name = ""
        self.setdefault(name, Group()).count(item)

    def described(self) -> dict[str, Any]:
        """The largest, how many others there are, and what these come to."""
        largest = sorted(self.items(), key=lambda each: (-each[1].objects, each[0]))
        rows = [{"name": name, **asdict(group)} for name, group in largest[:SHOWN]]
        others = [group for _name, group in largest[SHOWN:]]
        return {"rows": rows, "others": len(others), **figures(total(others))}


class Folders(Groups):
    """Of keys; so deep that they are no more than are counted apart."""

    depth = DEPTH

    def count(self, name: str, item: Seen) -> None:
        super().count(self.cut(name), item)
        while len(self) >= MOST:
            self.depth -= 1
            deep = list(self.items())
            self.clear()
            for folder, group in deep:
                self.setdefault(self.cut(folder), Group()).add(group)

    def cut(self, name: str) -> str:
        return "".join(f"{part}/" for part in name.split("/", self.depth)[:-1])


class Figures:
    """Of the items of a plan."""

    def __init__(self) -> None:
        self.go, self.absent, self.protected, self.failed = Group(), Group(), Group(), Group()
        self.folders, self.types, self.stay = Folders(), Groups(), Groups()
        self.largest: list[tuple[int, str]] = []
        self.alone = 0

    def count(self, item: Seen) -> None:
        if item.outcome != Outcome.PLANNED:
            (self.failed if item.outcome == Outcome.FAILED else self.protected).count(item)
            return self.stay.count(named(item), item)
        self.alone += item.span is None
        if item.found_in == FoundIn.TRACKED:
            return self.absent.count(item)
        self.go.count(item)
        self.folders.count(item.key, item)
        self.types.count(type_of(item.key), item)
        push = heappush if len(self.largest) < LARGEST else heappushpop
        push(self.largest, (item.size or 0, item.key))


def nothing() -> None:
    pass


def summarise(
    operation: CleanupOperation, after_some: Callable[[], None] = nothing
) -> dict[str, Any]:
    """What the plan would delete, what would stay and why, what it costs and how fast it is."""
    found = Figures()
    for item in walk(operation.items.all(), after_some):
        found.count(item)
    return {
        "go": figures(found.go),
        "absent": figures(found.absent),
        "protected": figures(found.protected),
        "failed": figures(found.failed),
        "folders": found.folders.described(),
        "types": found.types.described(),
        "largest": sorted(found.largest, reverse=True),
        "reasons": found.stay.described(),
        "calls": calls(operation, found),
        "speed": speed(operation),
    }


def add_dropped(operation: CleanupOperation) -> None:
    """If it ran a plan: what was to go and did not, with the reasons; and what is the project's and
    came after the plan, whose reason says so. Raises LeaseLost."""
    if not operation.summary or operation.planned_at is None:
        return
    found = Groups()
    for item in walk(operation.items.dropped_since(operation.planned_at), operation.renew):
        found.count(named(item), item)
    operation.renew(summary=operation.summary | {"dropped": found.described()})


def walk(items: CleanupItemQuerySet, after_some: Callable[[], None]) -> Iterator[Seen]:
    """All of them, some at a time: what is read in one go stands in the way of who writes."""
    for escaped in (False, True):
        # The order of an index.
        rows, last = items.filter(escaped=escaped).order_by("identity"), ""
        while some := rows.filter(identity__gt=last).values_list(*Seen._fields)[:CHUNK]:
            for item in map(Seen._make, some):
                yield item
            last = item.identity
            after_some()


def named(item: Seen) -> str:
    return f"{item.outcome} {item.reason}"


def type_of(key: str) -> str:
    # A tenth of what it takes to read the key.
    if plain := layouts().plain_name.fullmatch(key.rpartition("/")[2]):
        return plain[1].lower()
    return next((reading.file_type for reading in layouts().readings(key)), "")


def figures(group: Group) -> dict[str, int]:
    return {"objects": group.objects, "bytes": group.bytes}


def total(groups: Iterable[Group]) -> Group:
    whole = Group()
    for group in groups:
        whole.add(group)
    return whole


def calls(operation: CleanupOperation, found: Figures) -> dict[str, int]:
    """To the store, at most, when all goes well; without those of the late checks."""
    alone, planned = found.alone, found.go.objects + found.absent.objects
    stay = found.protected.objects + found.failed.objects
    size, ranges = Pace.of(operation).size, len(operation.ranges)
    together = ceil(alone / min(size, LONE_KEYS))
    looks = ceil((planned - alone) / size) + together
    proof = planned // PAGE + looks + ranges + alone
    verification = ranges + stay // PAGE + alone
    # Before each look, and as the turn, the deletion and the verification begin or end.
    markers = looks + 3
    return {
        "ListObjectsV2": proof + verification + markers + ranges + together,
        "ListMultipartUploads": ranges,
        "GetObject": markers,
        "DeleteObjects": looks if operation.strategy == Strategy.BATCH else 0,
    }


def speed(operation: CleanupOperation) -> dict[str, float]:
    """Objects a second, and how many cleanups tell it: the latest with the same strategy. The
    median, as those that were tried again have the pauses in their time."""
    ended = CleanupOperation.objects.cleanups().filter(
        status__in=CleanupOperation.ENDED, strategy=operation.strategy, deleted__gte=ENOUGH
    )
    timed = ended.annotate(took=F("finished_at") - F("started_at")).order_by("-finished_at")
    latest = timed.values_list("deleted", "took")[:RECENT]
    rates = [deleted / (took / SECOND) for deleted, took in latest if took]
    if not rates:
        return {"rate": usual_speed(operation), "cleanups": 0}
    return {"rate": median(rates), "cleanups": len(rates)}


def usual_speed(operation: CleanupOperation) -> float:
    if operation.runs_wrangler:
        return SECOND / expected_duration(1)
    return USUAL_SPEED[operation.strategy]
