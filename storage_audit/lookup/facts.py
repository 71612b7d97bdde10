"""What the tables tell of a key, read for all keys in question at once."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import NamedTuple, TypeVar

from django.db.models import TextChoices
from django.utils import timezone
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.bucket.listing import storable, unescape
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.open_decisions import Owners, find_covering, possible_owners
from storage_audit.conf import conf
from storage_audit.fields import spellings
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup.parse_query import Named
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import Deleted, Verdict, alive_among, judge, layouts

T = TypeVar("T")
# Bucket and key, and whether that is shown escaped.
Place = tuple[str, str, bool]
# Of the items, operations and findings of all keys in question.
LATEST = 50
GONE = (CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_ABSENT)
# What such a finding tells of was not in the bucket as an object.
NO_OBJECT = (Kind.MISSING, Kind.UNFINISHED)


class Sight(NamedTuple):
    """What the person who asks may see. The rest is not read, so that no answer tells of it."""

    rows: bool = True
    findings: bool = True


ALL = Sight()


class Life(TextChoices):
    ALIVE = "alive", gettext_lazy("it lives")
    DELETED = "deleted", gettext_lazy("it was deleted")
    VANISHED = "vanished", gettext_lazy("it is gone, and nobody said that it was deleted")
    UNKNOWN = "unknown", gettext_lazy("no project of this id was ever known")


class Standing(NamedTuple):
    """Whether a project lives, and what is known of its id."""

    project_id: str
    life: Life
    known: KnownProject | None

    @property
    def deleted_at(self) -> datetime | None:
        return self.known.deleted_at if self.known else None


class Judgement(NamedTuple):
    """What a cleanup of the project would make of the object."""

    standing: Standing
    verdict: Verdict


class Seen(NamedTuple):
    """What a look into the bucket has shown of the object; or why it could not be asked."""

    at: datetime
    listed: Listed | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Facts:
    """All that is known of one object; the latest come first. `alive` are the projects that a
    cleanup would count as living."""

    bucket: str
    named: Named
    readings: Readings
    standings: Mapping[str, Standing]
    alive: set[str]
    rows: Sequence[R2Object] = ()
    items: Sequence[CleanupItem] = ()
    # Gone, of keys with other code points: on some stores those are other objects.
    otherwise_spelled: Sequence[CleanupItem] = ()
    findings: Sequence[Finding] = ()
    # Of the projects that the key may name, in this bucket.
    cleanups: Sequence[CleanupOperation] = ()
    seen: Seen | None = None
    sight: Sight = ALL
    # The open cleanup that is to delete it, whether or not that has found it yet.
    covered_by: CleanupOperation | None = None

    @property
    def key(self) -> str:
        return self.named.shown

    @property
    def is_known(self) -> bool:
        return bool(self.rows or self.items or self.otherwise_spelled or self.findings)

    def folded(self) -> "Facts":
        """The same where the bucket takes all spellings of a key for one object."""
        items = latest_first([*self.items, *self.otherwise_spelled])
        return replace(self, items=items, otherwise_spelled=())

    @property
    def row(self) -> R2Object | None:
        """The one that a cleanup would go by; where spellings are not the same, of this one."""
        return next((row for row in self.rows if row.key == self.key), next(iter(self.rows), None))

    @property
    def listed(self) -> Listed | None:
        return self.seen.listed if self.seen else None

    @property
    def is_seen_absent(self) -> bool:
        return self.seen is not None and not self.seen.listed and not self.seen.trouble

    @property
    def finding(self) -> Finding | None:
        """The difference that the latest scan saw; of an upload to the key only if there is none
        of the object, as one scan may see both."""
        return max(self.unresolved, key=weight, default=None)

    @property
    def remaining_item(self) -> CleanupItem | None:
        """The latest item, where it says that the object is still there."""
        item = next(iter(self.items), None)
        return None if item and item.outcome in GONE else item

    @property
    def unresolved(self) -> list[Finding]:
        return [one for one in self.findings if one.state != Finding.State.RESOLVED]

    @cached_property
    def judgements(self) -> list[Judgement]:
        """None without rows, any of which may decide over what the key says."""
        if not self.sight.rows:
            return []
        now, last_modified = timezone.now(), self.last_modified
        return [
            Judgement(
                standing,
                judge(
                    Deleted(name, standing.deleted_at or now),
                    self.readings,
                    self.rows,
                    last_modified,
                    self.alive,
                    self.listed or self.row,
                ),
            )
            for name, standing in self.standings.items()
        ]

    @property
    def last_modified(self) -> datetime | None:
        told = (self.listed, self.row, self.finding, self.remaining_item)
        return next((one.last_modified for one in told if one and one.last_modified), None)


def weight(finding: Finding) -> tuple[bool, datetime, bool]:
    kind = finding.kind
    return kind != Kind.UNFINISHED, finding.last_seen_at, kind not in NO_OBJECT


def facts_of(keys: Sequence[Named], buckets: Collection[str], sight: Sight) -> list[Facts]:
    """Of each key in each bucket where something is known of it; else in the one that it names, or
    in ours. The queries do not grow with what there is."""
    forms = {form for named in keys for form in spellings(named.shown)}
    every = {*buckets, conf().bucket}
    rows = R2Object.objects.filter(bucket__in=every, key__in=forms).order_by("-created_at")
    items = CleanupItem.objects.filter(identity__in=forms).select_related("operation")
    findings = Finding.objects.filter(bucket__in=every, key__in=forms).order_by("-last_seen_at")
    found = Found(
        by_place(rows[:LATEST] if sight.rows else (), lambda row: (row.bucket, row.key, False)),
        by_place(
            items.order_by("-changed_at", "-pk")[:LATEST],
            lambda item: (item.operation.bucket, item.identity, item.escaped),
        ),
        by_place(
            findings[:LATEST] if sight.findings else (),
            lambda finding: (finding.bucket, finding.key, finding.escaped),
        ),
    )
    known = [
        found.about(bucket, named)
        for named in keys
        for bucket in found.buckets_of(named) or [named.bucket or conf().bucket]
    ]
    known += [
        found.about(bucket, named) for named in shown_so(keys) for bucket in found.buckets_of(named)
    ]
    return with_projects([replace(facts, sight=sight) for facts in known])


def shown_so(keys: Sequence[Named]) -> Iterator[Named]:
    """What pages show by these texts because nothing can name it: other objects than those that
    are called so."""
    for named in keys:
        if (key := unescape(named.shown)) and not named.escaped:
            yield named._replace(key=key)


class Found(NamedTuple):
    """What was found, by place."""

    rows: Mapping[Place, list[R2Object]]
    items: Mapping[Place, list[CleanupItem]]
    findings: Mapping[Place, list[Finding]]

    def buckets_of(self, named: Named) -> list[str]:
        """The one that the text names comes first."""
        forms = spellings(named.shown)
        found = {
            bucket
            for table in self
            for bucket, key, escaped in table
            if key in forms and escaped == named.escaped
        }
        return sorted(found, key=lambda bucket: (bucket != named.bucket, bucket))

    def about(self, bucket: str, named: Named) -> Facts:
        places = [(bucket, form, named.escaped) for form in sorted(spellings(named.shown))]
        items = [item for place in places for item in self.items.get(place, ())]
        others = gone_otherwise(items, named)
        return Facts(
            bucket,
            named,
            layouts().readings(named.key),
            {},
            set(),
            rows=[row for place in places for row in self.rows.get(place, ())],
            items=latest_first(item for item in items if item not in others),
            otherwise_spelled=latest_first(others),
            findings=[one for place in places for one in self.findings.get(place, ())],
        )


def latest_first(items: Iterable[CleanupItem]) -> list[CleanupItem]:
    return sorted(items, key=lambda item: (item.changed_at, item.pk), reverse=True)


def gone_otherwise(items: Sequence[CleanupItem], named: Named) -> list[CleanupItem]:
    """All items of other spellings whose latest is that the object went, unless an item shows that
    the bucket takes spellings for one object."""
    if any(item.identity != item.key for item in items):
        return []
    spelled = defaultdict(list)
    for item in latest_first(items):
        spelled[item.identity].append(item)
    return [
        item
        for identity, some in spelled.items()
        if identity != named.shown and some[0].outcome in GONE
        for item in some
    ]


def by_place(found: Iterable[T], place: Callable[[T], Place]) -> dict[Place, list[T]]:
    places: dict[Place, list[T]] = defaultdict(list)
    for one in found:
        places[place(one)].append(one)
    return dict(places)


def with_projects(facts: Sequence[Facts]) -> list[Facts]:
    """The same with what is known of the projects that keys and rows name."""
    names = {id(one): projects_of(one) for one in facts}
    every = {name for some in names.values() for name in some}
    alive = alive_among((one.readings for one in facts), every)
    standings = standings_of(every)
    cleanups, covering = cleanups_of(every), covering_of(facts)
    return [
        replace(
            one,
            covered_by=covering.get((one.bucket, one.key)),
            standings={name: standings[name] for name in names[id(one)]},
            alive=alive,
            cleanups=[
                operation
                for operation in cleanups
                if operation.bucket == one.bucket and operation.project_id in names[id(one)]
            ],
        )
        for one in facts
    ]


def covering_of(facts: Sequence[Facts]) -> dict[tuple[str, str], CleanupOperation]:
    owners: dict[str, dict[str, Owners]] = defaultdict(dict)
    for one in facts:
        if not one.named.escaped:
            every = possible_owners(one.readings, one.rows, one.listed or one.row)
            names = set(filter(storable, every.names))
            owners[one.bucket][one.key] = every._replace(names=names)
    return {
        (bucket, key): cleanup
        for bucket, of_keys in owners.items()
        for key, cleanup in find_covering(bucket, of_keys).items()
    }


def projects_of(facts: Facts) -> list[str]:
    by_rows = [row.project_id for row in facts.rows if row.project_id]
    by_key = [reading.project for reading in facts.readings if storable(reading.project)]
    return list(dict.fromkeys([*by_rows, *by_key]))


def cleanups_of(names: Collection[str]) -> list[CleanupOperation]:
    cleanups = CleanupOperation.objects.cleanups().filter(project_id__in=names)
    return list(cleanups.order_by("-created_at")[:LATEST]) if names else []


def standings_of(names: Collection[str]) -> dict[str, Standing]:
    """Whether each of these projects lives; also one that spells its id with other code points."""
    forms = {form for name in names for form in spellings(name)}
    known = KnownProject.objects.in_bulk(forms) if names else {}
    alive = project_model.alive(names) if names else set()
    return {name: standing(name, alive, known) for name in names}


def standing(name: str, alive: set[str], known: Mapping[str, KnownProject]) -> Standing:
    row = next((known[form] for form in sorted(spellings(name)) if form in known), None)
    if name in alive:
        return Standing(name, Life.ALIVE, row)
    if row is None:
        return Standing(name, Life.UNKNOWN, None)
    said = row.deleted_at and row.evidence != KnownProject.Evidence.VANISHED
    return Standing(name, Life.DELETED if said else Life.VANISHED, row)


class Sentence(NamedTuple):
    """With the next step for the person who reads it. `ended` is the project to declare deleted, if
    that is the step."""

    text: str
    operation: CleanupOperation | None = None
    finding: Finding | None = None
    ended: str = ""


Answer = Sentence | None


def moment(at: datetime) -> str:
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M:%S}"
