"""One worker's turn on one cleanup."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain, groupby, islice, takewhile
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from storage_audit import logs
from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import (
    KeyIdentity,
    can_show_all_spellings,
    exact_key,
    match_spellings,
)
from storage_audit.bucket.s3 import PAGE_SIZE, ListedObject
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.position_basis import PositionBasis, SpellingSearch
from storage_audit.clocks import is_from_fast_clock, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.ownership.ownership_rule import DeletedProject

# Keys that are looked up one by one, a request for each at worst: so few that the lease outlasts
# them.
MAX_LONE_KEYS = 100
# More are looked up together while that takes less than QUICK_LOOKUP_SECONDS, as neighbours share a
# page; no more than that number again when it takes more than SLOW_LOOKUP_SECONDS.
QUICK_LOOKUP_SECONDS, SLOW_LOOKUP_SECONDS = 2.0, 10.0

# Pages that are requested in advance, and that one check of the marker covers.
PREFETCHED_PAGES = 5
# At most so many ranges, if they are short.
RANGES_PER_GROUP = 4
# Fewer if they take longer than this, as the lease is not renewed meanwhile.
GATHER_SECONDS = 5.0


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
    # Errors in a row at the smallest batch size.
    errors_at_slowest: int = 0
    # Lone keys that are looked up together.
    keys_per_lookup: int = MAX_LONE_KEYS
    # wrangler was seen to use the same bucket as we do.
    is_wrangler_checked: bool = False

    def __post_init__(self) -> None:
        self.marker_seen_at = self.read_clock()

    @classmethod
    def start(cls, cleanup: Cleanup) -> "Turn":
        """Raises CannotConclude and StoreError."""
        ends = monotonic_seconds() + conf().turn_time.total_seconds()
        clock_zero = cleanup.read_database_clock() - timedelta(seconds=monotonic_seconds())
        # Read before the traits: if the bucket is connected again, this marker is refused.
        marker = bucket_marker.recorded_marker(cleanup.bucket) or ""
        traits = bucket_marker.check_bucket(cleanup.bucket)
        bucket_marker.require_project_table()
        return cls(cleanup, traits, ends, clock_zero, marker)

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
        """Is it still the right bucket, and the right database? Raises CannotConclude and
        StoreError."""
        self.traits = bucket_marker.identify_bucket(self.cleanup.bucket)
        self.check_marker()
        bucket_marker.require_project_table()

    def check_marker(self) -> None:
        """Call after a listing, before anything of it is written. Raises CannotConclude and
        StoreError, and PausedInBucket in the delete step."""
        seen = bucket_marker.require_marker(self.cleanup.bucket, *self.deleting_ids)
        if seen != self.marker:
            raise bucket_marker.reconnected_error(self.cleanup.bucket)
        self.marker_seen_at = self.read_clock()

    @property
    def deleting_ids(self) -> list[UUID]:
        """Those whose pause keeps it from deleting, in the delete step."""
        ids = [self.cleanup.pk, self.cleanup.parent_id]
        return [each for each in ids if each] if self.cleanup.step == Cleanup.Step.DELETE else []

    def read_clock(self) -> datetime:
        """The time by the database's clock, which was read as the turn began."""
        return self.clock_zero + timedelta(seconds=monotonic_seconds())

    @property
    def basis(self) -> PositionBasis:
        return PositionBasis.of(self.marker, self.cleanup.bucket, self.cleanup.listed_prefixes)

    def next_position(self, **where: Any) -> Position:
        """The position with these fields changed, to be written with what was seen up to it."""
        return self.basis.attach(replace(self.cleanup.position, **where), self.marker_seen_at)

    def list_ranges(self, span: int, after: str = "") -> Iterator["RangePiece"]:
        """The cleanup's ranges from this one on, which starts behind `after`, in pieces that may be
        written like those of `list_pages`."""
        for pieces in group_pieces(self.prefetch_ranges(span, after)):
            self.check_marker()
            for number, of_one in groupby(pieces, key=attrgetter("range_index")):
                some = list(of_one)
                yield RangePiece(number, join_pieces(some), some[-1].is_last)

    def prefetch_ranges(self, span: int, after: str) -> Iterator["RangePiece"]:
        for number, prefix in islice(enumerate(self.cleanup.listed_prefixes), span, None):
            pages = prefetch_pages(listing.object_pages(self.cleanup.bucket, prefix, after))
            yield from (RangePiece(number, page) for page in pages if page)
            yield RangePiece(number, [], is_last=True)
            after = ""

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[ListedObject]]:
        """A listing, in pieces that may be written: the marker was seen after each. Complete when
        the iteration ends without an exception. Raises CannotConclude and StoreError."""
        for piece in gather_pages(
            prefetch_pages(listing.object_pages(self.cleanup.bucket, prefix, after))
        ):
            self.check_marker()
            yield piece

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
        find_alike = self.find_spellings_briefly if briefly else self.find_spellings
        found = listing.find_keys(cleanup.bucket, keys, self.identity, after_page, find_alike)
        self.check_marker()
        if cleanup.position.spelling_search:
            cleanup.renew(position=self.next_position(spelling_search=None))
        return found

    def find_spellings(self, keys: Sequence[str]) -> dict[str, ListedObject]:
        """The objects of these keys in any spelling, among all keys that start alike. That may be
        the whole bucket, so it goes on where the last turn stopped with the same keys."""
        cleanup, place = self.cleanup, SpellingSearch.of(self.cleanup.position, keys)
        for piece in gather_pages(
            prefetch_pages(listing.spelling_pages(cleanup.bucket, keys, place.after))
        ):
            self.check_marker()
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

    def is_half_over(self) -> bool:
        return monotonic_seconds() >= self.deadline - conf().turn_time.total_seconds() / 2

    def check_deadline(self) -> None:
        """Call where the turn may end. Raises TurnOver."""
        if monotonic_seconds() >= self.deadline:
            raise TurnOver


class RangePiece(NamedTuple):
    """A piece of the listing of one range; the last one ends it."""

    range_index: int
    page: list[ListedObject]
    is_last: bool = False


def join_pieces(pieces: Iterable[RangePiece]) -> list[ListedObject]:
    return list(chain.from_iterable(piece.page for piece in pieces))


def gather_pages(pages: Iterator[list[ListedObject]]) -> Iterator[list[ListedObject]]:
    """Join some pages to one, as `group_pieces` gives them."""
    return map(join_pieces, group_pieces(RangePiece(0, page) for page in pages))


def group_pieces(pieces: Iterator[RangePiece]) -> Iterator[list[RangePiece]]:
    """Some at a time. None is held back for long, so that the lease outlasts them. Pieces before a
    failure are given, so that the next attempt goes on behind them, unless an answer was
    malformed."""
    held, until = list[RangePiece](), monotonic_seconds() + GATHER_SECONDS
    trouble: StoreError | None = None
    try:
        for piece in pieces:
            held.append(piece)
            if is_group_full(held) or monotonic_seconds() > until:
                yield held
                held, until = [], monotonic_seconds() + GATHER_SECONDS
    except StoreError as error:
        trouble = error
    if held and not isinstance(trouble, InvalidResponse):
        yield held
    if trouble:
        raise trouble


def is_group_full(held: Sequence[RangePiece]) -> bool:
    ended = sum(piece.is_last for piece in held)
    return (
        ended >= RANGES_PER_GROUP
        or sum(len(piece.page) for piece in held) >= PREFETCHED_PAGES * s3.PAGE_SIZE
    )


def prefetch_pages(pages: Iterator[list[ListedObject]]) -> Iterator[list[ListedObject]]:
    """The same pages, some requested in advance; those that have arrived are joined to one. A
    caller that stops early waits for the request under way."""
    pool = ThreadPoolExecutor(1, initializer=logs.context_initializer())
    try:
        coming = deque(pool.submit(next, pages, None) for _page in range(PREFETCHED_PAGES))
        while (page := coming[0].result()) is not None:
            rest = takewhile(has_arrived, islice(coming, 1, None))
            found = [page, *(more.result() or [] for more in rest)]
            for _page in found:
                coming.popleft()
                coming.append(pool.submit(next, pages, None))
            yield list(chain(*found))
    finally:
        pool.shutdown(cancel_futures=True)


def has_arrived(page: Future[list[ListedObject] | None]) -> bool:
    return page.done() and page.exception() is None
