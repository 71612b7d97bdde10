"""Finds a project's objects in three ways, and says why they differ: by tracking rows, by a listing
as a cleanup judges it, and by the keys alone. Writes nothing."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from math import inf
from typing import NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket import listing, s3
from storage_audit.bucket.listing import KeyIdentity, is_storable
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.changing_objects import find_in_hand
from storage_audit.cleanup.judge_objects import group_by_identity
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS
from storage_audit.clocks import MAX_CLOCK_SKEW, may_be_since, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.debug.comparison_result import Comparison, DifferenceReason, DiscoveryMethod
from storage_audit.fields import unicode_spellings
from storage_audit.models import KnownProject, R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    DeletedProject,
    Ownership,
    Verdict,
    get_key_formats,
    judge_ownership,
    living_owners,
)
from storage_audit.ownership.row_evidence import projects_in_rows

State = R2Object.State


def possible_buckets(project_id: str) -> list[str]:
    """The buckets where the project may have objects."""
    return sorted(R2Object.objects.buckets_of(project_id) | {conf().bucket})


def compare_all_buckets(project_id: str, *, seconds: float = inf) -> list[Comparison]:
    """Compare in each bucket that may have objects of it. Raises as `compare_bucket` does."""
    ends = monotonic_seconds() + seconds
    return [
        compare_bucket(project_id, b, seconds=ends - monotonic_seconds())
        for b in possible_buckets(project_id)
    ]


def compare_bucket(
    project_id: str, bucket: str | None = None, *, seconds: float = inf
) -> Comparison:
    """What each method finds of a project, live, deleted or unknown; complete, or an error.

    For a live project it assumes a cleanup that begins now. Raises StoreError (DeadlinePassed when
    it takes longer than `seconds`) and CannotConclude, also for what is no project id.
    """
    if not get_key_formats().is_project_id(project_id):
        text = _("%(id)s is not a project ID, so we can't look for its files. IDs match %(form)s.")
        raise CannotConclude(text % {"id": project_id, "form": conf().project_id_pattern})
    with s3.send_deadline(monotonic_seconds() + seconds):
        look = BucketComparer.start(project_id, bucket or conf().bucket)
        prefixes = get_key_formats().prefixes_of(project_id)
        for prefix in prefixes:
            look.compare_prefix(prefix)
        look.compare_outside(prefixes)
    return look.result


@dataclass
class BucketComparer:
    project: DeletedProject
    bucket: str
    identity: KeyIdentity
    started_at: datetime
    result: Comparison

    @classmethod
    def start(cls, project_id: str, bucket: str) -> "BucketComparer":
        now, identity = timezone.now(), bucket_marker.check_bucket(bucket).identity
        deleted_at = KnownProject.objects.deletion_time(project_id) or now
        project = DeletedProject(project_id, deleted_at)
        return cls(project, bucket, identity, now, Comparison(project_id, bucket))

    @property
    def rows(self) -> R2ObjectQuerySet:
        rows = R2Object.objects.in_bucket(self.bucket)
        return rows.filter(project_id=self.project.project_id)

    def compare_prefix(self, prefix: str) -> None:
        rows, reached = self.rows.under(prefix), ""
        for page in listing.object_pages(self.bucket, prefix):
            self.add_listed(page)
            # No row can name the keys that come after it on the page.
            last = next((o.key for o in reversed(page) if is_storable(o.key)), reached)
            if last > reached:
                listed = {o.key for o in page}
                between = rows.between(reached, last).iterate_by_key()
                self.add_missing(row for row in between if row.key not in listed)
                reached = last
        bucket_marker.require_marker(self.bucket)
        self.add_missing(rows.between(reached, None).iterate_by_key())

    def compare_outside(self, prefixes: Iterable[str]) -> None:
        """Rows that no prefix covers: each key is listed at its own place."""
        rows = self.rows.outside(prefixes).iterate_by_key()
        while some := list(islice(rows, MAX_LONE_KEYS)):
            here = self.find_objects([row.key for row in some])
            self.add_listed(here, is_outside=True)
            listed = {o.key for o in here}
            self.add_missing(iter([row for row in some if row.key not in listed]))

    def find_objects(self, keys: Collection[str]) -> list[ListedObject]:
        found = listing.find_keys(self.bucket, list(keys), self.identity)
        bucket_marker.require_marker(self.bucket)
        return list(found.values())

    def add_listed(self, page: Sequence[ListedObject], *, is_outside: bool = False) -> None:
        """Five queries for a page, however long."""
        parsed_keys = {o.key: get_key_formats().parse_key(o.key) for o in page}
        rows = self.rows_of(page)
        alive = living_owners(parsed_keys.values(), projects_in_rows(rows.values()))
        same = group_by_identity(rows.values(), self.identity)
        owners = project_model.living_ids(
            {row.project_id for row in rows.values() if row.project_id}
        )
        own_keys = {row.key for row in rows.values() if row.project_id == self.project.project_id}
        for o in page:
            its_rows = same.get(self.identity(o.key), ())
            row = rows.get(o.key) or next(iter(its_rows), None)
            time = o.last_modified
            verdict = judge_ownership(self.project, parsed_keys[o.key], its_rows, time, alive, o)
            mine = own_keys & unicode_spellings(o.key)
            ways = self.matching_methods(o.key, parsed_keys[o.key], verdict, mine)
            if ways or verdict.ownership is Ownership.IN_DOUBT:
                seen = ComparedObject(
                    ways, parsed_keys[o.key], verdict, row, owners, mine, is_outside
                )
                reasons = [why(seen) for way, why in REASON_FUNCTIONS.items() if way not in ways]
                self.result.add_key(o.key, ways, reasons, seen.evidence)

    def rows_of(self, page: Sequence[ListedObject]) -> dict[str, R2Object]:
        """The rows of these objects, also with keys in other code points."""
        forms = {form for o in page if is_storable(o.key) for form in unicode_spellings(o.key)}
        rows = R2Object.objects.in_bucket(self.bucket).filter(key__in=forms)
        return {row.key: row for row in rows}

    def matching_methods(
        self, key: str, parsed_keys: ParsedKeys, verdict: Verdict, mine: set[str]
    ) -> list[DiscoveryMethod]:
        found = {
            DiscoveryMethod.TRACKED: key in mine,
            DiscoveryMethod.LISTED: verdict.ownership is Ownership.OWNED,
            DiscoveryMethod.PARSED: self.project.project_id in parsed_keys.projects,
        }
        return [way for way, finds in found.items() if finds]

    def add_missing(self, rows: Iterator[R2Object]) -> None:
        """Rows of the project whose keys the listing did not show."""
        while some := list(islice(rows, MAX_LONE_KEYS)):
            elsewhere = self.spelled_otherwise(some)
            in_hand = find_in_hand(some) | self.stored_meanwhile(some)
            for row in some:
                why = (
                    DifferenceReason.SPELLING
                    if row.key in elsewhere
                    else self.why_missing(row, in_hand)
                )
                self.result.add_key(
                    row.key, [DiscoveryMethod.TRACKED], [why], row.get_source_display()
                )

    def why_missing(self, row: R2Object, in_hand: Collection[int]) -> DifferenceReason:
        if row.pk in in_hand or may_be_since(row.updated_at, self.started_at):
            return DifferenceReason.IN_PROGRESS
        failed = row.state in (State.UPLOADING, State.UPLOAD_FAILED)
        return DifferenceReason.NEVER_STORED if failed and not row.etag else DifferenceReason.GONE

    def stored_meanwhile(self, rows: Sequence[R2Object]) -> set[int]:
        """Those whose object is there after all. The clock of the server that wrote the row may be
        behind ours."""
        since = self.started_at - MAX_CLOCK_SKEW
        keys = {row.key: row.pk for row in rows if may_be_since(row.updated_at, since)}
        there = {self.identity(o.key) for o in self.find_objects(keys)} if keys else set()
        return {pk for key, pk in keys.items() if self.identity(key) in there}

    def spelled_otherwise(self, rows: Sequence[R2Object]) -> set[str]:
        """The keys of those whose object is there under another spelling."""
        forms = {row.key: unicode_spellings(row.key) - {row.key} for row in rows}
        if not (asked := set().union(*forms.values())):
            return set()
        there = {self.identity(o.key) for o in self.find_objects(asked)}
        return {key for key, others in forms.items() if there & set(map(self.identity, others))}


class ComparedObject(NamedTuple):
    """An object of the listing; `row` is the one that a cleanup would go by, `live_owners` those of
    the page's rows, `own_spellings` the spellings under which the project has a row of it."""

    found_by: list[DiscoveryMethod]
    parsed_keys: ParsedKeys
    verdict: Verdict
    row: R2Object | None
    live_owners: set[str]
    own_spellings: set[str]
    is_outside: bool

    @property
    def evidence(self) -> str:
        return " ".join(filter(None, [self.verdict.evidence + ".", self.verdict.reason]))


def why_not_tracked(seen: ComparedObject) -> DifferenceReason:
    if seen.own_spellings:
        return DifferenceReason.SPELLING
    if seen.row is None:
        return DifferenceReason.NEVER_TRACKED
    if seen.row.project_id is None:
        return DifferenceReason.NOBODYS_ROW
    return foreign_upload_reason(seen) or DifferenceReason.OTHERS_ROW


def foreign_upload_reason(seen: ComparedObject) -> DifferenceReason | None:
    """The reason if another project uploaded it, which decides over what the key says."""
    if seen.verdict.ownership is not Ownership.OTHER_PROJECT or seen.row is None:
        return None
    return (
        DifferenceReason.LIVE_UPLOAD
        if seen.row.project_id in seen.live_owners
        else DifferenceReason.OTHERS_UPLOAD
    )


def why_not_listed(seen: ComparedObject) -> DifferenceReason:
    if seen.parsed_keys.too_many:
        return DifferenceReason.AMBIGUOUS
    if not seen.parsed_keys:
        return DifferenceReason.NO_KEY_FORMAT
    if seen.verdict.ownership is Ownership.IN_DOUBT and DiscoveryMethod.PARSED not in seen.found_by:
        return DifferenceReason.OTHERS_KEY
    return foreign_upload_reason(seen) or DifferenceReason.AMBIGUOUS


def why_not_parsed(seen: ComparedObject) -> DifferenceReason:
    if seen.is_outside:
        return DifferenceReason.OUTSIDE
    if seen.parsed_keys.too_many:
        return DifferenceReason.AMBIGUOUS
    return DifferenceReason.OTHERS_KEY if seen.parsed_keys else DifferenceReason.NO_KEY_FORMAT


REASON_FUNCTIONS = {
    DiscoveryMethod.TRACKED: why_not_tracked,
    DiscoveryMethod.LISTED: why_not_listed,
    DiscoveryMethod.PARSED: why_not_parsed,
}
