"""What a project has, found in three ways, and why the ways differ: by the rows that track it, by a
listing as a cleanup judges it, and by the grammar of keys alone. Writes nothing."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from math import inf
from typing import NamedTuple

from django.db.models import TextChoices
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.bucket import listing, s3
from storage_audit.bucket.listing import Identity, escape, storable
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.objects_in_hand import find_in_hand
from storage_audit.cleanup.plan import by_identity
from storage_audit.cleanup.turn import LONE_KEYS
from storage_audit.clocks import CLOCKS_DIFFER, is_maybe_since, monotonic
from storage_audit.conf import conf
from storage_audit.fields import spellings
from storage_audit.models import KnownProject, R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import (
    Claim,
    Deleted,
    Verdict,
    alive_among,
    judge,
    layouts,
    named_in,
)

State, Source = R2Object.State, R2Object.Source
# So much is kept of what may be a million keys.
FIRST_KEYS, EXAMPLES = 1000, 50


class Way(TextChoices):
    """How a key may be found: a row says so, a cleanup would take it, its own text says so."""

    TRACKED = "tracked", gettext_lazy("tracked")
    LISTED = "listed", gettext_lazy("found by the application")
    PARSED = "parsed", gettext_lazy("named by the key itself")


class Why(TextChoices):
    NEVER_TRACKED = "never_tracked", gettext_lazy("No row tracks it: begin a backfill.")
    NOBODYS_ROW = "nobodys_row", gettext_lazy("Its row names no project.")
    OTHERS_ROW = (
        "others_row",
        gettext_lazy("Its row belongs to another project, as a backfill read the key."),
    )
    LIVE_UPLOAD = "live_upload", gettext_lazy("Another live project uploaded it.")
    OTHERS_UPLOAD = (
        "others_upload",
        gettext_lazy("A project that is no more uploaded it; that one's cleanup decides on it."),
    )
    AMBIGUOUS = "ambiguous", gettext_lazy("It may be another project's, so a cleanup keeps it.")
    OTHERS_KEY = "others_key", gettext_lazy("Its key names another project.")
    NO_LAYOUT = "no_layout", gettext_lazy("No layout knows its key.")
    OUTSIDE = (
        "outside",
        gettext_lazy("It lies outside every prefix of the project: only its row leads to it."),
    )
    SPELLING = (
        "spelling",
        gettext_lazy("Row and object differ in their Unicode spelling only."),
    )
    GONE = "gone", gettext_lazy("The object is gone from the bucket.")
    NEVER_STORED = "never_stored", gettext_lazy("Its upload failed: there never was an object.")
    IN_HAND = (
        "in_hand",
        gettext_lazy("An upload or a deletion of it was under way: compare again."),
    )


@dataclass
class Keys:
    """How many there are, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        self.count += 1
        if len(self.first) < FIRST_KEYS:
            self.first.append(key)

    def __add__(self, others: "Keys") -> "Keys":
        return Keys(self.count + others.count, (self.first + others.first)[:FIRST_KEYS])

    @property
    def is_cut(self) -> bool:
        return self.count > len(self.first)


@dataclass(frozen=True, slots=True)
class Example:
    """A key, with what is known of its owner."""

    key: str
    evidence: str


@dataclass
class Difference:
    """Keys that the same ways find, and the others do not for the same reasons."""

    found: tuple[Way, ...]
    reasons: tuple[Why, ...]
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Such as “only tracked”."""
        if not self.found:
            return _("under the project's prefixes, and found by none of the three")
        first, *others = (way.label for way in self.found)
        if not others:
            return _("only %s") % first
        [missing] = (way.label for way in Way if way not in self.found)
        text = _("%(first)s and %(second)s, but not %(missing)s")
        return text % {"first": first, "second": others[0], "missing": missing}

    @property
    def words(self) -> str:
        return " ".join(str(why.label) for why in self.reasons)


@dataclass
class Comparison:
    """The counts are exact; keys are escaped as `listing.escape` does, and only the first kept."""

    project_id: str
    bucket: str
    found: dict[Way, Keys] = field(default_factory=lambda: {way: Keys() for way in Way})
    # The two discoveries of the bucket, each without what the other finds too.
    only_listed: Keys = field(default_factory=Keys)
    only_parsed: Keys = field(default_factory=Keys)
    by_cause: dict[tuple[object, ...], Difference] = field(default_factory=dict)

    @property
    def differences(self) -> list[Difference]:
        # What none of the three finds comes last.
        return sorted(self.by_cause.values(), key=lambda difference: not difference.found)

    @property
    def agrees(self) -> bool:
        """Whether all three find the same. What none of them finds is no disagreement."""
        return not any(difference.found for difference in self.differences)

    def add(self, key: str, found: Sequence[Way], reasons: Iterable[Why], evidence: str) -> None:
        key = escape(key)
        for way in found:
            self.found[way].add(key)
        if Way.LISTED in found and Way.PARSED not in found:
            self.only_listed.add(key)
        if Way.PARSED in found and Way.LISTED not in found:
            self.only_parsed.add(key)
        if causes := tuple(dict.fromkeys(reasons)):
            cause = (*found, *causes)
            difference = self.by_cause.setdefault(cause, Difference(tuple(found), causes))
            difference.count += 1
            if len(difference.examples) < EXAMPLES:
                difference.examples.append(Example(key, evidence))


def buckets_of(project_id: str) -> list[str]:
    """Where the project may have objects: what there is to compare."""
    return sorted(R2Object.objects.buckets_of(project_id) | {conf().bucket})


def compare_everywhere(project_id: str, *, seconds: float = inf) -> list[Comparison]:
    """In each bucket that may have some of it. Raises as `compare` does."""
    ends = monotonic() + seconds
    return [compare(project_id, b, seconds=ends - monotonic()) for b in buckets_of(project_id)]


def compare(project_id: str, bucket: str | None = None, *, seconds: float = inf) -> Comparison:
    """What each way finds of a project, live, deleted or unknown; complete, or an error.

    Of a live project a cleanup is meant that would begin now. Raises StoreError, DeadlinePassed
    among them when it takes longer than `seconds`, and CannotConclude, also for what is no project
    id.
    """
    if not layouts().is_project_id(project_id):
        text = _("%(id)s is no project id, so its files cannot be looked for. Ids match %(form)s.")
        raise CannotConclude(text % {"id": project_id, "form": conf().project_id})
    with s3.sent_until(monotonic() + seconds):
        look = Look.begin(project_id, bucket or conf().bucket)
        prefixes = layouts().prefixes(project_id)
        for prefix in prefixes:
            look.under(prefix)
        look.outside(prefixes)
    return look.result


@dataclass
class Look:
    project: Deleted
    bucket: str
    identity: Identity
    began: datetime
    result: Comparison

    @classmethod
    def begin(cls, project_id: str, bucket: str) -> "Look":
        now, identity = timezone.now(), bucket_marker.check(bucket).identity
        deleted_at = KnownProject.objects.time_of_deletion(project_id) or now
        project = Deleted(project_id, deleted_at)
        return cls(project, bucket, identity, now, Comparison(project_id, bucket))

    @property
    def rows(self) -> R2ObjectQuerySet:
        rows = R2Object.objects.in_bucket(self.bucket)
        return rows.filter(project_id=self.project.project_id)

    def under(self, prefix: str) -> None:
        rows, reached = self.rows.under(prefix), ""
        for page in listing.pages(self.bucket, prefix):
            self.add_listed(page)
            # What comes after it on the page no row can name.
            last = next((o.key for o in reversed(page) if storable(o.key)), reached)
            if last > reached:
                listed = {o.key for o in page}
                between = rows.between(reached, last).by_key()
                self.add_missing(row for row in between if row.key not in listed)
                reached = last
        bucket_marker.see_marker(self.bucket)
        self.add_missing(rows.between(reached, None).by_key())

    def outside(self, prefixes: Iterable[str]) -> None:
        """Rows that no prefix covers: each key's own place is looked at."""
        rows = self.rows.outside(prefixes).by_key()
        while some := list(islice(rows, LONE_KEYS)):
            here = self.find([row.key for row in some])
            self.add_listed(here, outside=True)
            listed = {o.key for o in here}
            self.add_missing(iter([row for row in some if row.key not in listed]))

    def find(self, keys: Collection[str]) -> list[Listed]:
        found = listing.find(self.bucket, list(keys), self.identity)
        bucket_marker.see_marker(self.bucket)
        return list(found.values())

    def add_listed(self, page: Sequence[Listed], *, outside: bool = False) -> None:
        """Five queries for a page, however long."""
        readings = {o.key: layouts().readings(o.key) for o in page}
        rows = self.rows_of(page)
        alive = alive_among(readings.values(), named_in(rows.values()))
        same = by_identity(rows.values(), self.identity)
        owners = project_model.alive({row.project_id for row in rows.values() if row.project_id})
        for o in page:
            its_rows = same.get(self.identity(o.key), ())
            row = rows.get(o.key) or next(iter(its_rows), None)
            time = o.last_modified
            verdict = judge(self.project, readings[o.key], its_rows, time, alive, o)
            mine = {form for form in spellings(o.key) if self.owns(rows.get(form))}
            ways = self.ways(o.key, readings[o.key], verdict, mine)
            if ways or verdict.claim is Claim.PROTECTED:
                seen = Seen(ways, readings[o.key], verdict, row, owners, mine, outside)
                reasons = [why(seen) for way, why in WHY_NOT.items() if way not in ways]
                self.result.add(o.key, ways, reasons, seen.evidence)

    def rows_of(self, page: Sequence[Listed]) -> dict[str, R2Object]:
        """The rows of these objects, and those that spell their keys with other code points."""
        forms = {form for o in page if storable(o.key) for form in spellings(o.key)}
        rows = R2Object.objects.in_bucket(self.bucket).filter(key__in=forms)
        return {row.key: row for row in rows}

    def owns(self, row: R2Object | None) -> bool:
        return row is not None and row.project_id == self.project.project_id

    def ways(self, key: str, readings: Readings, verdict: Verdict, mine: set[str]) -> list[Way]:
        found = {
            Way.TRACKED: key in mine,
            Way.LISTED: verdict.claim is Claim.OWNED,
            Way.PARSED: self.project.project_id in readings.projects,
        }
        return [way for way, finds in found.items() if finds]

    def add_missing(self, rows: Iterator[R2Object]) -> None:
        """Rows of the project whose keys the listing did not show."""
        while some := list(islice(rows, LONE_KEYS)):
            elsewhere = self.spelled_otherwise(some)
            in_hand = find_in_hand(some) | self.stored_meanwhile(some)
            for row in some:
                why = Why.SPELLING if row.key in elsewhere else self.why_missing(row, in_hand)
                self.result.add(row.key, [Way.TRACKED], [why], row.get_source_display())

    def why_missing(self, row: R2Object, in_hand: Collection[int]) -> Why:
        if row.pk in in_hand or is_maybe_since(row.updated_at, self.began):
            return Why.IN_HAND
        failed = row.state in (State.UPLOADING, State.UPLOAD_FAILED)
        return Why.NEVER_STORED if failed and not row.etag else Why.GONE

    def stored_meanwhile(self, rows: Sequence[R2Object]) -> set[int]:
        """Those whose object is there after all. The clock of the server that wrote the row may be
        behind ours."""
        since = self.began - CLOCKS_DIFFER
        keys = {row.key: row.pk for row in rows if is_maybe_since(row.updated_at, since)}
        there = {self.identity(o.key) for o in self.find(keys)} if keys else set()
        return {pk for key, pk in keys.items() if self.identity(key) in there}

    def spelled_otherwise(self, rows: Sequence[R2Object]) -> set[str]:
        """The keys of those whose object is there under another spelling."""
        forms = {row.key: spellings(row.key) - {row.key} for row in rows}
        if not (asked := set().union(*forms.values())):
            return set()
        there = {self.identity(o.key) for o in self.find(asked)}
        return {key for key, others in forms.items() if there & set(map(self.identity, others))}


class Seen(NamedTuple):
    """An object of the listing; `row` is the one that a cleanup would go by, `owners` the live
    ones of the page's rows, `mine` the spellings under which the project has a row of it."""

    ways: list[Way]
    readings: Readings
    verdict: Verdict
    row: R2Object | None
    owners: set[str]
    mine: set[str]
    outside: bool

    @property
    def evidence(self) -> str:
        return " ".join(filter(None, [self.verdict.evidence + ".", self.verdict.reason]))


def why_not_tracked(seen: Seen) -> Why:
    if seen.mine:
        return Why.SPELLING
    if seen.row is None:
        return Why.NEVER_TRACKED
    if seen.row.project_id is None:
        return Why.NOBODYS_ROW
    return whose_upload(seen) or Why.OTHERS_ROW


def whose_upload(seen: Seen) -> Why | None:
    """When it is another project's by an upload, which decides over what the key says."""
    if seen.verdict.claim is not Claim.ELSEWHERE or seen.row is None:
        return None
    return Why.LIVE_UPLOAD if seen.row.project_id in seen.owners else Why.OTHERS_UPLOAD


def why_not_listed(seen: Seen) -> Why:
    if seen.readings.too_many:
        return Why.AMBIGUOUS
    if not seen.readings:
        return Why.NO_LAYOUT
    if seen.verdict.claim is Claim.PROTECTED and Way.PARSED not in seen.ways:
        return Why.OTHERS_KEY
    return whose_upload(seen) or Why.AMBIGUOUS


def why_not_parsed(seen: Seen) -> Why:
    if seen.outside:
        return Why.OUTSIDE
    if seen.readings.too_many:
        return Why.AMBIGUOUS
    return Why.OTHERS_KEY if seen.readings else Why.NO_LAYOUT


WHY_NOT = {
    Way.TRACKED: why_not_tracked,
    Way.LISTED: why_not_listed,
    Way.PARSED: why_not_parsed,
}
