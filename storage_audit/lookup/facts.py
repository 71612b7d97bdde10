"""What the tables say about keys, read for all keys in question at once."""

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
from storage_audit.bucket.listing import is_storable, unescape_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.open_decisions import PossibleOwners, find_covering, possible_owners
from storage_audit.conf import conf
from storage_audit.fields import unicode_spellings
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup.parse_query import KeyCandidate
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    DeletedProject,
    Verdict,
    get_key_formats,
    judge_ownership,
    living_owners,
)

T = TypeVar("T")
# Bucket and key, and whether that is shown escaped.
Place = tuple[str, str, bool]
# Of the items, cleanups and findings of all keys in question.
ROWS_PER_QUERY = 50
GONE_OUTCOMES = (CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_GONE)
# A finding of these kinds is about no object in the bucket.
KINDS_WITHOUT_OBJECT = (Kind.MISSING, Kind.UNFINISHED)


class LookupAccess(NamedTuple):
    """What the person who asks may see. The rest is not read, so no answer can reveal it."""

    rows: bool = True
    findings: bool = True
    project_titles: bool = True
    # For a model of the site's own: IDs and titles that the search of its list finds.
    search_projects: Callable[[str], dict[str, str]] | None = None


FULL_ACCESS = LookupAccess()


class ProjectState(TextChoices):
    ALIVE = "alive", gettext_lazy("exists")
    DELETED = "deleted", gettext_lazy("deleted")
    VANISHED = "vanished", gettext_lazy("missing, no deletion reported")
    UNKNOWN = "unknown", gettext_lazy("never known here")


class ProjectStatus(NamedTuple):
    """Whether a project lives, and what is known of its id."""

    project_id: str
    state: ProjectState
    known_project: KnownProject | None

    @property
    def deleted_at(self) -> datetime | None:
        return self.known_project.deleted_at if self.known_project else None


class ProjectVerdict(NamedTuple):
    """What a cleanup of the project would make of the object."""

    project: ProjectStatus
    verdict: Verdict


class LiveResult(NamedTuple):
    """What a live check of the bucket showed of the object, or why the store could not be asked."""

    checked_at: datetime
    listed: ListedObject | None = None
    error: str = ""


@dataclass(frozen=True)
class ObjectFacts:
    """All that is known of one object; the latest come first. `living_ids` are the projects that a
    cleanup would count as living."""

    bucket: str
    candidate: KeyCandidate
    parsed_keys: ParsedKeys
    projects: Mapping[str, ProjectStatus]
    living_ids: set[str]
    rows: Sequence[R2Object] = ()
    items: Sequence[CleanupItem] = ()
    # Gone, and spelled with other code points: on some stores those are other objects.
    other_spellings: Sequence[CleanupItem] = ()
    findings: Sequence[Finding] = ()
    # Of the projects that the key may name, in this bucket.
    cleanups: Sequence[Cleanup] = ()
    live_result: LiveResult | None = None
    access: LookupAccess = FULL_ACCESS
    # The open cleanup that is to delete it, whether or not that has found it yet.
    covered_by: Cleanup | None = None

    @property
    def key(self) -> str:
        return self.candidate.table_key

    @property
    def is_partial(self) -> bool:
        return not (self.access.rows and self.access.findings)

    @property
    def is_known(self) -> bool:
        return bool(self.rows or self.items or self.other_spellings or self.findings)

    def fold_spellings(self) -> "ObjectFacts":
        """The same where the bucket takes all spellings of a key for one object."""
        items = latest_first([*self.items, *self.other_spellings])
        return replace(self, items=items, other_spellings=())

    @property
    def row(self) -> R2Object | None:
        """The row that a cleanup would go by."""
        return next((row for row in self.rows if row.key == self.key), next(iter(self.rows), None))

    @property
    def listed(self) -> ListedObject | None:
        return self.live_result.listed if self.live_result else None

    @property
    def is_tracked_or_listed(self) -> bool:
        return bool(self.row or self.listed)

    @property
    def is_confirmed_gone(self) -> bool:
        return (
            self.live_result is not None
            and not self.live_result.listed
            and not self.live_result.error
        )

    @property
    def finding(self) -> Finding | None:
        """The finding of the latest scan; one about an upload only if there is none about the
        object, as one scan may see both."""
        return max(self.unresolved, key=finding_priority, default=None)

    @property
    def remaining_item(self) -> CleanupItem | None:
        """The latest item, where it says that the object is still there."""
        item = next(iter(self.items), None)
        return None if item and item.outcome in GONE_OUTCOMES else item

    @property
    def unresolved(self) -> list[Finding]:
        return [one for one in self.findings if one.state != Finding.State.RESOLVED]

    @cached_property
    def verdicts(self) -> list[ProjectVerdict]:
        """None without rows, any of which may decide over what the key says."""
        if not self.access.rows:
            return []
        now, last_modified = timezone.now(), self.last_modified
        return [
            ProjectVerdict(
                standing,
                judge_ownership(
                    DeletedProject(name, standing.deleted_at or now),
                    self.parsed_keys,
                    self.rows,
                    last_modified,
                    self.living_ids,
                    self.listed or self.row,
                ),
            )
            for name, standing in self.projects.items()
        ]

    @property
    def last_modified(self) -> datetime | None:
        told = (self.listed, self.row, self.finding, self.remaining_item)
        return next((one.last_modified for one in told if one and one.last_modified), None)


def finding_priority(finding: Finding) -> tuple[bool, datetime, bool]:
    kind = finding.kind
    return kind != Kind.UNFINISHED, finding.last_seen_at, kind not in KINDS_WITHOUT_OBJECT


def collect_object_facts(
    keys: Sequence[KeyCandidate], buckets: Collection[str], access: LookupAccess
) -> list[ObjectFacts]:
    """For each key, in each bucket where something is known of it; else in the bucket that the text
    names, or in ours. The number of queries is constant."""
    forms = {form for named in keys for form in unicode_spellings(named.table_key)}
    every = {*buckets, conf().bucket}
    rows = R2Object.objects.filter(bucket__in=every, key__in=forms).order_by("-created_at")
    items = CleanupItem.objects.filter(identity__in=forms).select_related("cleanup")
    findings = Finding.objects.filter(bucket__in=every, key__in=forms).order_by("-last_seen_at")
    found = FoundRows(
        group_by_place(
            rows[:ROWS_PER_QUERY] if access.rows else (), lambda row: (row.bucket, row.key, False)
        ),
        group_by_place(
            items.order_by("-changed_at", "-pk")[:ROWS_PER_QUERY],
            lambda item: (item.cleanup.bucket, item.identity, item.escaped),
        ),
        group_by_place(
            findings[:ROWS_PER_QUERY] if access.findings else (),
            lambda finding: (finding.bucket, finding.key, finding.escaped),
        ),
    )
    known = [
        found.build_facts(bucket, named)
        for named in keys
        for bucket in found.buckets_of(named) or [named.bucket or conf().bucket]
    ]
    known += [
        found.build_facts(bucket, named)
        for named in unescaped_candidates(keys)
        for bucket in found.buckets_of(named)
    ]
    return add_projects([replace(facts, access=access) for facts in known])


def unescaped_candidates(keys: Sequence[KeyCandidate]) -> Iterator[KeyCandidate]:
    """Objects that pages show escaped by these texts; they differ from objects with these keys."""
    for named in keys:
        if (key := unescape_key(named.table_key)) and not named.escaped:
            yield named._replace(key=key)


class FoundRows(NamedTuple):
    """What was found, by place."""

    rows: Mapping[Place, list[R2Object]]
    items: Mapping[Place, list[CleanupItem]]
    findings: Mapping[Place, list[Finding]]

    def buckets_of(self, named: KeyCandidate) -> list[str]:
        """The one that the text names comes first."""
        forms = unicode_spellings(named.table_key)
        found = {
            bucket
            for table in self
            for bucket, key, escaped in table
            if key in forms and escaped == named.escaped
        }
        return sorted(found, key=lambda bucket: (bucket != named.bucket, bucket))

    def build_facts(self, bucket: str, named: KeyCandidate) -> ObjectFacts:
        places = [
            (bucket, form, named.escaped) for form in sorted(unicode_spellings(named.table_key))
        ]
        items = [item for place in places for item in self.items.get(place, ())]
        others = gone_other_spellings(items, named)
        return ObjectFacts(
            bucket,
            named,
            get_key_formats().parse_key(named.key),
            {},
            set(),
            rows=[row for place in places for row in self.rows.get(place, ())],
            items=latest_first(item for item in items if item not in others),
            other_spellings=latest_first(others),
            findings=[one for place in places for one in self.findings.get(place, ())],
        )


def latest_first(items: Iterable[CleanupItem]) -> list[CleanupItem]:
    return sorted(items, key=lambda item: (item.changed_at, item.pk), reverse=True)


def gone_other_spellings(items: Sequence[CleanupItem], named: KeyCandidate) -> list[CleanupItem]:
    """The items of other spellings whose latest item says that the object is gone, unless an item
    shows that the bucket takes spellings for one object."""
    if any(item.identity != item.key for item in items):
        return []
    spelled = defaultdict(list)
    for item in latest_first(items):
        spelled[item.identity].append(item)
    return [
        item
        for identity, some in spelled.items()
        if identity != named.table_key and some[0].outcome in GONE_OUTCOMES
        for item in some
    ]


def group_by_place(found: Iterable[T], place: Callable[[T], Place]) -> dict[Place, list[T]]:
    places: dict[Place, list[T]] = defaultdict(list)
    for one in found:
        places[place(one)].append(one)
    return dict(places)


def add_projects(facts: Sequence[ObjectFacts]) -> list[ObjectFacts]:
    """Add what is known of the projects that keys and rows name."""
    names = {id(one): named_project_ids(one) for one in facts}
    every = {name for some in names.values() for name in some}
    alive = living_owners((one.parsed_keys for one in facts), every)
    standings = project_statuses(every)
    cleanups, covering = load_cleanups(every), covering_cleanups(facts)
    return [
        replace(
            one,
            covered_by=covering.get((one.bucket, one.key)),
            projects={name: standings[name] for name in names[id(one)]},
            living_ids=alive,
            cleanups=[
                cleanup
                for cleanup in cleanups
                if cleanup.bucket == one.bucket and cleanup.project_id in names[id(one)]
            ],
        )
        for one in facts
    ]


def covering_cleanups(facts: Sequence[ObjectFacts]) -> dict[tuple[str, str], Cleanup]:
    owners: dict[str, dict[str, PossibleOwners]] = defaultdict(dict)
    for one in facts:
        if not one.candidate.escaped:
            every = possible_owners(one.parsed_keys, one.rows, one.listed or one.row)
            names = set(filter(is_storable, every.project_ids))
            owners[one.bucket][one.key] = every._replace(project_ids=names)
    return {
        (bucket, key): cleanup
        for bucket, of_keys in owners.items()
        for key, cleanup in find_covering(bucket, of_keys).items()
    }


def named_project_ids(facts: ObjectFacts) -> list[str]:
    by_rows = [row.project_id for row in facts.rows if row.project_id]
    by_key = [
        parsed_key.project for parsed_key in facts.parsed_keys if is_storable(parsed_key.project)
    ]
    return list(dict.fromkeys([*by_rows, *by_key]))


def load_cleanups(names: Collection[str]) -> list[Cleanup]:
    cleanups = Cleanup.objects.requested_deletions().filter(project_id__in=names)
    return list(cleanups.order_by("-created_at")[:ROWS_PER_QUERY]) if names else []


def project_statuses(names: Collection[str]) -> dict[str, ProjectStatus]:
    """Whether each of these projects lives; also one that spells its id with other code points."""
    forms = {form for name in names for form in unicode_spellings(name)}
    known = KnownProject.objects.in_bulk(forms) if names else {}
    alive = project_model.living_ids(names) if names else set()
    return {name: project_status(name, alive, known) for name in names}


def project_status(name: str, alive: set[str], known: Mapping[str, KnownProject]) -> ProjectStatus:
    row = next((known[form] for form in sorted(unicode_spellings(name)) if form in known), None)
    if name in alive:
        return ProjectStatus(name, ProjectState.ALIVE, row)
    if row is None:
        return ProjectStatus(name, ProjectState.UNKNOWN, None)
    said = row.deleted_at and row.evidence != KnownProject.Evidence.VANISHED
    return ProjectStatus(name, ProjectState.DELETED if said else ProjectState.VANISHED, row)
