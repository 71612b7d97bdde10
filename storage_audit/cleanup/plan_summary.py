"""The figures of a plan that fit on a page, and the items that dropped out when it was run.

A plan may have a million items. So the worker that freezes it, or ends its run, goes through them
once and keeps the figures with the cleanup; its memory does not grow with the items.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from heapq import heappush, heappushpop
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from django.db.models import F
from django.utils.translation import gettext as _

from storage_audit.bucket.s3 import PAGE_SIZE
from storage_audit.bucket.wrangler import expected_duration
from storage_audit.cleanup import limits
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.read_in_steps import read_in_steps

FoundIn, Outcome, Strategy = CleanupItem.FoundIn, CleanupItem.Outcome, Cleanup.Strategy

ITEMS_PER_QUERY = 10_000
SECOND = timedelta(seconds=1)
# Names come from strangers, who may have one for each object: so many groups are counted apart,
# the largest are shown, each with some keys.
MAX_GROUPS, GROUPS_SHOWN, KEYS_PER_GROUP = 1000, 30, 3
LARGEST_FILES_SHOWN = 10
# Such as projects/proj_1/scenes/s1/.
FOLDER_DEPTH = 4
# The speed is that of the latest cleanups. Small ones only show how long the checks take.
RECENT_CLEANUPS, MIN_DELETED_FILES = 20, 100
# Objects a second where no cleanup shows it: see benchmarks/results.md. "parallel" is not measured,
# and no slower than "sequential".
USUAL_FILES_PER_SECOND: dict[str, float] = {
    Strategy.BATCH: 4000.0,
    Strategy.PARALLEL: 560.0,
    Strategy.SEQUENTIAL: 560.0,
}


class SummarisedItem(NamedTuple):
    """The fields of an item that count."""

    key: str
    identity: str
    range_index: int | None
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
        self.keys += other.keys[: KEYS_PER_GROUP - len(self.keys)]

    def add_item(self, item: SummarisedItem) -> None:
        self.add(Group(1, item.size or 0, [item.key]))


class Groups(dict[str, Group]):
    """Groups by name. Once there are very many, further names count in the group without one."""

    def add_item(self, name: str, item: SummarisedItem) -> None:
        if name not in self and len(self) >= MAX_GROUPS:
            name = ""
        self.setdefault(name, Group()).add_item(item)

    def to_dict(self) -> dict[str, Any]:
        """The largest groups, how many others there are, and their sum."""
        largest = sorted(self.items(), key=lambda each: (-each[1].objects, each[0]))
        rows = [{"name": name, **asdict(group)} for name, group in largest[:GROUPS_SHOWN]]
        others = [group for _name, group in largest[GROUPS_SHOWN:]]
        return {"rows": rows, "others": len(others), **group_figures(sum_groups(others))}


class Folders(Groups):
    """Groups by folder, cut to a depth at which they are not too many."""

    depth = FOLDER_DEPTH

    def add_item(self, name: str, item: SummarisedItem) -> None:
        super().add_item(self.cut_to_depth(name), item)
        while len(self) >= MAX_GROUPS:
            self.depth -= 1
            deep = list(self.items())
            self.clear()
            for folder, group in deep:
                self.setdefault(self.cut_to_depth(folder), Group()).add(group)

    def cut_to_depth(self, name: str) -> str:
        return "".join(f"{part}/" for part in name.split("/", self.depth)[:-1])


class PlanFigures:
    """The figures of the items of a plan."""

    def __init__(self) -> None:
        self.to_delete, self.already_gone, self.kept, self.failed = (
            Group(),
            Group(),
            Group(),
            Group(),
        )
        self.folders, self.types, self.kept_reasons = Folders(), Groups(), Groups()
        self.largest: list[tuple[int, str]] = []
        self.lone_keys = 0

    def add_item(self, item: SummarisedItem) -> None:
        if item.outcome != Outcome.TO_DELETE:
            (self.failed if item.outcome == Outcome.FAILED else self.kept).add_item(item)
            return self.kept_reasons.add_item(group_name(item), item)
        self.lone_keys += item.range_index is None
        if item.found_in == FoundIn.TRACKED:
            return self.already_gone.add_item(item)
        self.to_delete.add_item(item)
        self.folders.add_item(item.key, item)
        self.types.add_item(file_type_of(item.key), item)
        push = heappush if len(self.largest) < LARGEST_FILES_SHOWN else heappushpop
        push(self.largest, (item.size or 0, item.key))


def summarise_plan(
    cleanup: Cleanup, after_some: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """What the plan would delete, what would stay and why, what it costs and how fast it is."""
    found = PlanFigures()
    for item in read_items(cleanup.items.all(), after_some):
        found.add_item(item)
    return {
        "go": group_figures(found.to_delete),
        "absent": group_figures(found.already_gone),
        "kept": group_figures(found.kept),
        "failed": group_figures(found.failed),
        "folders": found.folders.to_dict(),
        "types": found.types.to_dict(),
        "largest": sorted(found.largest, reverse=True),
        "reasons": found.kept_reasons.to_dict(),
        "calls": estimate_requests(cleanup, found),
        "speed": measure_speed(cleanup),
    }


def add_dropped_items(cleanup: Cleanup) -> None:
    """If it ran a plan, add the items that were to go and did not, and those that came after the
    plan, with their reasons. Raises LeaseLost."""
    if not cleanup.plan_summary or cleanup.planned_at is None:
        return
    found = Groups()
    for item in read_items(cleanup.items.dropped_since(cleanup.planned_at), cleanup.renew):
        found.add_item(group_name(item), item)
    cleanup.renew(plan_summary=cleanup.plan_summary | {"dropped": found.to_dict()})


def read_items(
    items: CleanupItemQuerySet, after_some: Callable[[], None]
) -> Iterator[SummarisedItem]:
    """All of them, some at a time: one long read would hold up writers."""
    for escaped in (False, True):
        # The order of an index.
        rows, last = items.filter(escaped=escaped).order_by("identity"), ""
        while some := rows.filter(identity__gt=last).values_list(*SummarisedItem._fields)[
            :ITEMS_PER_QUERY
        ]:
            for item in map(SummarisedItem._make, some):
                yield item
            last = item.identity
            after_some()


def group_name(item: SummarisedItem) -> str:
    return f"{item.outcome} {item.reason}"


def file_type_of(key: str) -> str:
    # A tenth of what it takes to read the key.
    if plain := get_key_formats().plain_name.fullmatch(key.rpartition("/")[2]):
        return plain[1].lower()
    return next((parsed_key.file_type for parsed_key in get_key_formats().parse_key(key)), "")


def group_figures(group: Group) -> dict[str, int]:
    return {"objects": group.objects, "bytes": group.bytes}


def sum_groups(groups: Iterable[Group]) -> Group:
    whole = Group()
    for group in groups:
        whole.add(group)
    return whole


def estimate_requests(cleanup: Cleanup, found: PlanFigures) -> dict[str, int]:
    """Requests to the store, at most, when all goes well; without those of follow-up checks."""
    alone, planned = found.lone_keys, found.to_delete.objects + found.already_gone.objects
    stay = found.kept.objects + found.failed.objects
    size, ranges = BatchSize.of(cleanup).size, len(cleanup.listed_prefixes)
    together = ceil(alone / min(size, MAX_LONE_KEYS))
    looks = ceil((planned - alone) / size) + together
    proof = planned // PAGE_SIZE + looks + ranges + alone
    verification = ranges + stay // PAGE_SIZE + alone
    # The marker: before each batch, and as turn, deletion and verification begin or end.
    markers = looks + 3
    return {
        "ListObjectsV2": proof + verification + markers + ranges + together,
        "ListMultipartUploads": ranges,
        "GetObject": markers,
        "DeleteObjects": looks if cleanup.strategy == Strategy.BATCH else 0,
    }


def measure_speed(cleanup: Cleanup) -> dict[str, float]:
    """Objects a second, and from how many cleanups: the latest with the same strategy. The median,
    as the time of those that were retried includes the pauses."""
    ended = Cleanup.objects.requested_deletions().filter(
        status__in=Cleanup.ENDED, strategy=cleanup.strategy, deleted__gte=MIN_DELETED_FILES
    )
    timed = ended.annotate(took=F("finished_at") - F("started_at")).order_by("-finished_at")
    latest = timed.values_list("deleted", "took")[:RECENT_CLEANUPS]
    rates = [deleted / (took / SECOND) for deleted, took in latest if took]
    if not rates:
        return {"rate": usual_speed(cleanup), "cleanups": 0}
    return {"rate": median(rates), "cleanups": len(rates)}


def usual_speed(cleanup: Cleanup) -> float:
    if cleanup.runs_wrangler:
        return SECOND / expected_duration(1)
    return USUAL_FILES_PER_SECOND[cleanup.strategy]


def hash_plan(cleanup: Cleanup) -> str:
    """SHA-256 of the plan: its prefixes, and each key with its facts and outcome."""
    sums = hashlib.sha256(json.dumps(cleanup.listed_prefixes).encode())
    facts = ("key", "escaped", "size", "etag", "last_modified", "outcome")
    write = json.JSONEncoder(default=str).encode
    for row in read_in_steps(cleanup.items.order_by("key", "pk").values_list(*facts)):
        sums.update(write(row).encode() + b"\n")
    return sums.hexdigest()


def record_plan(cleanup: Cleanup) -> None:
    totals = cleanup.items.totals()
    to_delete = cleanup.items.planned().count()
    text = _("Found %(found)s files, %(to_delete)s of them to delete.")
    if policy_of(cleanup).is_verification:
        text = _("Found %(found)s files to compare.")
    text %= {"found": totals["found"], "to_delete": to_delete}
    if cleanup.runs_wrangler:
        duration = limits.wrangler_duration_text(to_delete)
        text += " " + _("wrangler takes about %s.") % duration
    cleanup.record(
        "plan",
        text,
        digest=cleanup.plan_digest,
        listed_prefixes=cleanup.listed_prefixes,
        kept=totals["kept"],
    )
