"""One worker's turn on one cleanup."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID

from storage_audit.bucket import listing
from storage_audit.bucket.concurrent_requests import Job, run_at_once
from storage_audit.bucket.listing import (
    KeyIdentity,
    can_show_all_spellings,
    exact_key,
    match_spellings,
)
from storage_audit.bucket.multipart import UploadAnswer, ask_for_uploads
from storage_audit.bucket.s3 import PAGE_SIZE, ListedObject
from storage_audit.cleanup.listing_pieces import (
    ConfirmedPiece,
    RangePiece,
    group_pieces,
    join_pieces,
    split_into_runs,
)
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.plan_listing import PlanLister
from storage_audit.cleanup.position_basis import PositionBasis, SpellingSearch
from storage_audit.cleanup.range_parts import KEYS_PER_PART
from storage_audit.cleanup.sighted_listing import (
    PiecewiseListing,
    SightedLister,
    find_run,
    without_witness,
)
from storage_audit.clocks import is_from_fast_clock, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.ownership.ownership_rule import DeletedProject

Step = Cleanup.Step
# How old a sighting may be that precedes a plan, a batch or the end of a verification.
MAX_SIGHTING_AGE = timedelta(seconds=30)
# Keys that are looked up one by one, a request for each at worst: so few that the lease outlasts
# them.
MAX_LONE_KEYS = 100
# More are looked up together while that takes less than QUICK_LOOKUP_SECONDS, as neighbours share a
# page; no more than that number again when it takes more than SLOW_LOOKUP_SECONDS.
QUICK_LOOKUP_SECONDS, SLOW_LOOKUP_SECONDS = 2.0, 10.0


class TooManySeeks(Exception):
    """Too many lone keys are no neighbours: look up fewer at a time."""


class TurnOver(Exception):
    """The turn is over and work is left; what was done so far is recorded. The next turn is due
    once `after` is over."""

    def __init__(self, after: timedelta = timedelta(0)) -> None:
        super().__init__(after)
        self.after = after


class OwnerChanging(Exception):
    """Somebody is changing the data that decides on the objects; the message says which."""


class ProjectRecreated(Exception):
    """The project was created again since the deletion; the message says what decides now."""


@dataclass
class Turn:
    cleanup: Cleanup
    traits: StoreTraits
    deadline: float
    # When our monotonic clock was at zero, by the database's clock.
    clock_zero: datetime
    # The marker that this turn relies on, and when a listing showed it last, by the database's
    # clock: the next turn may be on a machine with another one.
    marker: str
    marker_seen_at: datetime = field(init=False)
    # Something was listed since.
    is_marker_due: bool = False
    # The unfinished uploads in the bucket, as far as they were asked for in this turn.
    uploads: UploadAnswer | None = None
    # Errors in a row at the smallest batch size.
    errors_at_slowest: int = 0
    # Lone keys that are looked up together.
    keys_per_lookup: int = MAX_LONE_KEYS
    # wrangler was seen to use the same bucket as we do.
    is_wrangler_checked: bool = False
    # When the lease was renewed last for the sake of a request under way.
    lease_kept_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.marker_seen_at, self.lease_kept_at = self.read_clock(), monotonic_seconds()

    @classmethod
    def start(cls, cleanup: Cleanup) -> "Turn":
        """Raises CannotConclude and StoreError."""
        ends = monotonic_seconds() + conf().turn_time.total_seconds()
        clock_zero = cleanup.read_database_clock() - timedelta(seconds=monotonic_seconds())
        # Read before the traits: if the bucket is connected again, this marker is refused.
        marker = bucket_marker.recorded_marker(cleanup.bucket) or ""
        answers = list[UploadAnswer]()
        jobs: list[Job[None]] = []
        if cleanup.step != Step.VERIFY and not cleanup.has_given_objects:
            jobs = [lambda _kept: answers.append(ask_for_uploads(cleanup.bucket))]
        traits = bucket_marker.check_bucket(cleanup.bucket, *jobs)
        bucket_marker.require_project_table()
        return cls(cleanup, traits, ends, clock_zero, marker, uploads=next(iter(answers), None))

    @property
    def identity(self) -> KeyIdentity:
        return self.traits.identity

    def shows_all_spellings(self, prefix: str) -> bool:
        """Whether a listing of the prefix shows the keys under it in all their spellings."""
        return self.identity is exact_key or can_show_all_spellings((prefix,), prefix)

    @cached_property
    def project(self) -> DeletedProject:
        cleanup = self.cleanup
        at: datetime | None = cleanup.project_deleted_at or cleanup.created_at
        if at and is_from_fast_clock(at, cleanup.first_start_for_deletion()):
            at = None
        return DeletedProject(cleanup.project_id or "", at)

    def recheck_bucket(self) -> None:
        """Is it still the right bucket, and the right database? A sighting of the marker counts
        for MAX_SIGHTING_AGE, if nothing was listed since. Raises CannotConclude and StoreError."""
        recorded = bucket_marker.require_same_database().markers.get(self.cleanup.bucket)
        if recorded != self.marker:
            raise bucket_marker.reconnected_error(self.cleanup.bucket)
        if self.is_marker_due or self.read_clock() > self.marker_seen_at + MAX_SIGHTING_AGE:
            self.check_marker()
        bucket_marker.require_project_table()

    def check_marker(self) -> None:
        """Call after a listing, before anything of it is written. Raises CannotConclude and
        StoreError, and PausedInBucket in the delete step."""
        self.accept_marker(self.see_marker())

    def see_marker(self) -> ListedObject | None:
        """The marker as a listing shows it now. Does not use the database."""
        return bucket_marker.find_marker(self.cleanup.bucket, *self.deleting_ids)

    def accept_marker(self, sighting: ListedObject | None) -> None:
        """Compare a sighting with the marker on record. Raises CannotConclude and StoreError."""
        if bucket_marker.accept_marker(self.cleanup.bucket, sighting) != self.marker:
            raise bucket_marker.reconnected_error(self.cleanup.bucket)
        self.marker_seen_at, self.is_marker_due = self.read_clock(), False

    @property
    def deleting_ids(self) -> list[UUID]:
        """Those whose pause keeps it from deleting, in the delete step."""
        ids = [self.cleanup.pk, self.cleanup.parent_id]
        return [each for each in ids if each] if self.cleanup.step == Step.DELETE else []

    def read_clock(self) -> datetime:
        """The time by the database's clock, which was read as the turn began."""
        return self.clock_zero + timedelta(seconds=monotonic_seconds())

    @property
    def basis(self) -> PositionBasis:
        return PositionBasis.of(self.marker, self.cleanup.bucket, self.cleanup.listed_prefixes)

    def next_position(self, **where: Any) -> Position:
        """The position with these fields changed, to be written with what was seen up to it."""
        return self.basis.attach(replace(self.cleanup.position, **where), self.marker_seen_at)

    def list_ranges(self, span: int, after: str = "") -> Iterator[RangePiece]:
        """The cleanup's ranges from this one on, which starts behind `after`, in pieces that may be
        written like those of `list_pages`."""
        prefixes, bucket = self.cleanup.listed_prefixes, self.cleanup.bucket
        if self.may_call_gone:
            yield from self.sighted.list_ranges(bucket, prefixes, span, after)
            return
        for pieces in group_pieces(self.planning.list_ranges(bucket, prefixes, span, after)):
            if not all(isinstance(piece, ConfirmedPiece) for piece in pieces):
                self.check_marker()
            for number, of_one in groupby(pieces, key=attrgetter("range_index")):
                some = list(of_one)
                yield RangePiece(number, join_pieces(some), some[-1].is_last)

    @property
    def sighted(self) -> SightedLister:
        """Lists so that each connection shows the marker, for what is called gone."""
        return SightedLister(self.see_marker, self.accept_marker, self.keep_lease, self.find_cut)

    @property
    def planning(self) -> PlanLister:
        return PlanLister(self.see_marker, self.accept_marker, self.keep_lease, self.find_cut)

    def find_cut(self, prefix: str, after: str) -> str | None:
        """Where a part of a range that begins behind `after` may end; None if not much is left."""
        rows = R2Object.objects.in_bucket(self.cleanup.bucket).under(prefix).between(after, None)
        keys = rows.order_by("key").values_list("key", flat=True)
        return next(iter(keys[KEYS_PER_PART - 1 : KEYS_PER_PART]), None)

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
        """A listing, in pieces that may be written: its connection showed the marker after each.
        Complete when the iteration ends without an exception. Raises CannotConclude and
        StoreError."""
        pages_after = partial(listing.object_pages, self.cleanup.bucket, prefix)
        for piece in self.sighted.finish_listing(PiecewiseListing(pages_after, after)):
            yield piece.page

    def find_objects(
        self, keys: Sequence[str], *, briefly: bool = False
    ) -> dict[str, ListedObject]:
        """The objects of these keys, by identity; as complete, and as sure, as `list_pages`.

        A long search goes on where the last turn stopped. Raises TurnOver, but not `briefly`: then
        other spellings are looked for in SLOW_LOOKUP_SECONDS at most, and nothing may be concluded
        from what is not found.
        """
        return self.find_with_callback(keys, self.cleanup.renew, briefly=briefly)

    def find_items(
        self, items: CleanupItemQuerySet
    ) -> list[tuple[CleanupItem, ListedObject | None]]:
        """The first of these lone items with their objects, as sure as `find_objects`;
        none at the end."""
        while some := list(items[: self.keys_per_lookup]):
            try:
                found = self.find_lone_objects([item.key for item in some])
            except TooManySeeks:
                continue
            return [(item, found.get(self.identity(item.key))) for item in some]
        return []

    def find_lone_objects(
        self, keys: Sequence[str], *, briefly: bool = False
    ) -> dict[str, ListedObject]:
        """The same for keys that may be far apart. Raises TooManySeeks, and then allows fewer."""
        began = monotonic_seconds()

        def after_page() -> None:
            self.cleanup.renew()
            if len(keys) > MAX_LONE_KEYS and monotonic_seconds() > began + SLOW_LOOKUP_SECONDS:
                self.keys_per_lookup = MAX_LONE_KEYS
                raise TooManySeeks

        found = self.find_with_callback(keys, after_page, briefly=briefly)
        if monotonic_seconds() < began + QUICK_LOOKUP_SECONDS:
            self.keys_per_lookup = min(2 * self.keys_per_lookup, PAGE_SIZE)
        return found

    def find_with_callback(
        self, keys: Sequence[str], after_page: Callable[[], None], *, briefly: bool
    ) -> dict[str, ListedObject]:
        cleanup = self.cleanup
        found, alike = self.find_at_once(keys, after_page)
        if alike:
            find_alike = self.find_spellings_briefly if briefly else self.find_spellings
            more = find_alike(alike)
            listing.check_nameless_folders(cleanup.bucket, more, after_page)
            found |= more
        if not self.may_call_gone:
            self.check_marker()
        if cleanup.position.spelling_search:
            cleanup.renew(position=self.next_position(spelling_search=None))
        return found

    def find_at_once(
        self, keys: Sequence[str], after_run: Callable[[], None]
    ) -> tuple[dict[str, ListedObject], list[str]]:
        """Look the keys up, those of several places at once. Also returns keys that only a search
        for all their spellings may find. `after_run` is called each second and after each place.

        Each connection shows the marker where what is not found is called gone.
        """
        bucket, identity = self.cleanup.bucket, self.identity
        runs = split_into_runs(keys, self.cleanup.listed_prefixes)
        jobs = [partial(find_run, bucket, run, identity) for run in runs]
        if self.may_call_gone:
            results, trouble = self.sighted.run(jobs, after_run)
        else:
            results, trouble = run_at_once([without_witness(job) for job in jobs], after_run)
        if trouble:
            raise trouble
        found = {name: each for some, _alike in results for name, each in some.items()}
        return found, sorted(key for _some, alike in results for key in alike)

    def find_spellings(self, keys: Sequence[str]) -> dict[str, ListedObject]:
        """The objects of these keys in any spelling, among all keys that start alike. That may be
        the whole bucket, so it goes on where the last turn stopped with the same keys."""
        cleanup, place = self.cleanup, SpellingSearch.of(self.cleanup.position, keys)
        pages_after = partial(listing.spelling_pages, cleanup.bucket, keys)
        for some in self.sighted.finish_listing(PiecewiseListing(pages_after, place.after)):
            piece = some.page
            before, place = place, place.advance(piece, keys)
            cleanup.renew(position=self.next_position(spelling_search=place.to_dict()))
            if place.after != before.after:
                self.check_deadline()
        return place.found

    def find_spellings_briefly(self, keys: Sequence[str]) -> dict[str, ListedObject]:
        found, until = dict[str, ListedObject](), monotonic_seconds() + SLOW_LOOKUP_SECONDS
        for page in listing.spelling_pages(self.cleanup.bucket, keys):
            self.cleanup.renew()
            found |= match_spellings(page, keys)
            if monotonic_seconds() > until:
                break
        return found

    @property
    def may_call_gone(self) -> bool:
        """Whether a file that its listings omit is called gone: not by a plan, which then keeps it,
        and not by a recheck, whose verification follows."""
        cleanup = self.cleanup
        is_check = cleanup.kind == Cleanup.Kind.VERIFY or cleanup.parent_id is not None
        return cleanup.step == Step.VERIFY or (is_check and cleanup.step == Step.PLAN)

    def keep_lease(self) -> None:
        """Renew the lease in time, while others wait for the store. Raises LeaseLost."""
        now = monotonic_seconds()
        if now > self.lease_kept_at + conf().lease_time.total_seconds() / 4:
            self.cleanup.renew()
            self.lease_kept_at = now

    def is_half_over(self) -> bool:
        return monotonic_seconds() >= self.deadline - conf().turn_time.total_seconds() / 2

    def check_deadline(self) -> None:
        """Call where the turn may end. Raises TurnOver."""
        if monotonic_seconds() >= self.deadline:
            raise TurnOver
