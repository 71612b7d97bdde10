"""One worker's turn on one operation."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain, groupby, islice, takewhile
from operator import attrgetter
from typing import Any, NamedTuple

from storage_audit import logs
from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import Identity, exact, show_all_spellings, spelled_as
from storage_audit.bucket.s3 import PAGE, Listed
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.position import Alike, Basis
from storage_audit.clocks import monotonic, was_ahead
from storage_audit.conf import conf
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import Traits
from storage_audit.ownership.owner import Deleted

# Keys that are looked up each at its own place, a request for each at worst: so few that the
# lease outlasts them.
LONE_KEYS = 100
# More of them are one look while it takes less than QUICK, as neighbours share a page, and no
# more when it takes more than SLOW. Seconds.
QUICK, SLOW = 2.0, 10.0

# Pages that are asked for before they are wanted, and that one sighting of the marker vouches for.
AHEAD = 5
# At most so many ranges, if they are short.
RANGES_AT_ONCE = 4
# Less if they take longer, as the lease is not renewed meanwhile. Seconds.
GATHERING = 5.0


class TooManySeeks(Exception):
    """So many lone keys are no neighbours: look for fewer at a time."""


class TurnOver(Exception):
    """The turn is over and work is left; what was done so far is recorded. The next turn is not
    due before `after` is over."""

    def __init__(self, after: timedelta = timedelta(0)) -> None:
        super().__init__(after)
        self.after = after


class OwnerChanging(Exception):
    """Somebody is just changing what decides on the objects; the message says what."""


class ProjectRecreated(Exception):
    """The cleanup is of an earlier life of the project; the message says which decides now."""


@dataclass
class Work:
    operation: CleanupOperation
    traits: Traits
    deadline: float
    # When our monotonic clock was at zero, by the database's clock.
    clock_zero: datetime
    # The marker that this turn goes by, and when a listing showed it last, by the database's clock:
    # the next turn may be on a machine with another one.
    marker: str
    seen_at: datetime = field(init=False)
    # In a row, though no less can be asked of the store.
    troubles: int = 0
    # Lone keys at one look.
    together: int = LONE_KEYS
    # wrangler was seen to look into the same bucket as we do.
    wrangler_is_here: bool = False

    def __post_init__(self) -> None:
        self.seen_at = self.read_clock()

    @classmethod
    def begin(cls, operation: CleanupOperation) -> "Work":
        """Raises CannotConclude and StoreError."""
        ends = monotonic() + conf().slice.total_seconds()
        clock_zero = operation.read_database_clock() - timedelta(seconds=monotonic())
        # Before the traits: if the bucket is claimed again, nothing is seen under this name.
        marker = bucket_marker.recorded_marker(operation.bucket) or ""
        traits = bucket_marker.check(operation.bucket)
        bucket_marker.refuse_empty_table()
        return cls(operation, traits, ends, clock_zero, marker)

    @property
    def identity(self) -> Identity:
        return self.traits.identity

    def shows_all_spellings(self, prefix: str) -> bool:
        """Whether a listing of the prefix shows all that the store takes for a key under it."""
        return self.identity is exact or show_all_spellings((prefix,), prefix)

    @cached_property
    def project(self) -> Deleted:
        operation = self.operation
        at: datetime | None = operation.project_deleted_at or operation.created_at
        if at and was_ahead(at, operation.first_start_for_deletion()):
            at = None
        return Deleted(operation.project_id or "", at)

    def look_again(self) -> None:
        """Is it still the right bucket, and the right database? Raises CannotConclude and
        StoreError."""
        self.traits = bucket_marker.identify(self.operation.bucket)
        self.see_marker()
        bucket_marker.refuse_empty_table()

    def see_marker(self) -> None:
        """Call after a listing, before anything of it is written. Raises CannotConclude and
        StoreError."""
        seen = bucket_marker.see_marker(self.operation.bucket)
        if seen != self.marker:
            raise bucket_marker.claimed_again(self.operation.bucket)
        self.seen_at = self.read_clock()

    def read_clock(self) -> datetime:
        """The database's clock, which was asked as the turn began."""
        return self.clock_zero + timedelta(seconds=monotonic())

    @property
    def basis(self) -> Basis:
        return Basis.of(self.marker, self.operation.bucket, self.operation.ranges)

    def move(self, **where: Any) -> dict[str, Any]:
        """The position with these fields changed, to be written with what was seen up to it; a
        field that is None is dropped."""
        cursor = {**self.operation.cursor, **where, **self.basis.write(self.seen_at)}
        return {name: value for name, value in cursor.items() if value is not None}

    def list_ranges(self, span: int, after: str = "") -> Iterator["Piece"]:
        """The operation's ranges from this one on, this one from behind `after`, in pieces that
        may be written as those of `pages`."""
        for pieces in hold(self.read_ranges(span, after)):
            self.see_marker()
            for number, of_one in groupby(pieces, key=attrgetter("span")):
                some = list(of_one)
                yield Piece(number, joined(some), some[-1].is_last)

    def read_ranges(self, span: int, after: str) -> Iterator["Piece"]:
        for number, prefix in islice(enumerate(self.operation.ranges), span, None):
            pages = ahead(listing.pages(self.operation.bucket, prefix, after))
            yield from (Piece(number, page) for page in pages if page)
            yield Piece(number, [], is_last=True)
            after = ""

    def pages(self, prefix: str, after: str = "") -> Iterator[list[Listed]]:
        """A listing, in pieces that may be written: the marker was seen after each. Complete when
        the iteration ends without an exception. Raises CannotConclude and StoreError."""
        for piece in gather(ahead(listing.pages(self.operation.bucket, prefix, after))):
            self.see_marker()
            yield piece

    def find(self, keys: Sequence[str], *, briefly: bool = False) -> dict[str, Listed]:
        """The objects of these keys, by identity; as complete, and as sure, as `pages`.

        What takes long goes on where the last turn stopped. Raises TurnOver, but not `briefly`:
        then other spellings are looked for in no more than SLOW seconds, and nothing may be
        concluded from what is not found.
        """
        return self.find_after(keys, self.operation.renew, briefly=briefly)

    def look_up(self, items: CleanupItemQuerySet) -> list[tuple[CleanupItem, Listed | None]]:
        """The first of these lone items with their objects, as sure as `find`; none at the end."""
        while some := list(items[: self.together]):
            try:
                found = self.find_lone([item.key for item in some])
            except TooManySeeks:
                continue
            return [(item, found.get(self.identity(item.key))) for item in some]
        return []

    def find_lone(self, keys: Sequence[str], *, briefly: bool = False) -> dict[str, Listed]:
        """The same, of keys that may be far apart. Raises TooManySeeks, after which fewer are one
        look."""
        began = monotonic()

        def after_page() -> None:
            self.operation.renew()
            if len(keys) > LONE_KEYS and monotonic() > began + SLOW:
                self.together = LONE_KEYS
                raise TooManySeeks

        found = self.find_after(keys, after_page, briefly=briefly)
        if monotonic() < began + QUICK:
            self.together = min(2 * self.together, PAGE)
        return found

    def find_after(
        self, keys: Sequence[str], after_page: Callable[[], None], *, briefly: bool
    ) -> dict[str, Listed]:
        operation = self.operation
        find_alike = self.find_alike_briefly if briefly else self.find_alike
        found = listing.find(operation.bucket, keys, self.identity, after_page, find_alike)
        self.see_marker()
        if "alike" in operation.cursor:
            operation.renew(cursor=self.move(alike=None))
        return found

    def find_alike(self, keys: Sequence[str]) -> dict[str, Listed]:
        """In whatever spelling they are listed, among all that start alike: these may be all of the
        bucket, so it goes on where the last turn stopped at the same keys."""
        operation, place = self.operation, Alike.of(self.operation.cursor, keys)
        for piece in gather(ahead(listing.pages_alike(operation.bucket, keys, place.after))):
            self.see_marker()
            before, place = place, place.behind(piece, keys)
            operation.renew(cursor=self.move(alike=place.write()))
            if place.after != before.after:
                self.breathe()
        return place.found

    def find_alike_briefly(self, keys: Sequence[str]) -> dict[str, Listed]:
        found, until = dict[str, Listed](), monotonic() + SLOW
        for page in listing.pages_alike(self.operation.bucket, keys):
            self.operation.renew()
            found |= spelled_as(page, keys)
            if monotonic() > until:
                break
        return found

    def is_half_over(self) -> bool:
        return monotonic() >= self.deadline - conf().slice.total_seconds() / 2

    def breathe(self) -> None:
        """Call where the turn may end. Raises TurnOver."""
        if monotonic() >= self.deadline:
            raise TurnOver


class Piece(NamedTuple):
    """Of the listing of one range, which ends with its last."""

    span: int
    page: list[Listed]
    is_last: bool = False


def joined(pieces: Iterable[Piece]) -> list[Listed]:
    return list(chain.from_iterable(piece.page for piece in pieces))


def gather(pages: Iterator[list[Listed]]) -> Iterator[list[Listed]]:
    """Join some pages to one, as `hold` gives them."""
    return map(joined, hold(Piece(0, page) for page in pages))


def hold(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Some at a time. None is kept back for long, so that the lease outlasts them. Those before a
    failure are given, so that the next try goes on behind them, unless an answer was malformed."""
    held, until = list[Piece](), monotonic() + GATHERING
    trouble: StoreError | None = None
    try:
        for piece in pieces:
            held.append(piece)
            if is_enough(held) or monotonic() > until:
                yield held
                held, until = [], monotonic() + GATHERING
    except StoreError as error:
        trouble = error
    if held and not isinstance(trouble, InvalidResponse):
        yield held
    if trouble:
        raise trouble


def is_enough(held: Sequence[Piece]) -> bool:
    ended = sum(piece.is_last for piece in held)
    return ended >= RANGES_AT_ONCE or sum(len(piece.page) for piece in held) >= AHEAD * s3.PAGE


def ahead(pages: Iterator[list[Listed]]) -> Iterator[list[Listed]]:
    """The same, some asked for while whoever wants them is at those before; what has come by then
    is one page. Whoever has enough waits for the one under way."""
    pool = ThreadPoolExecutor(1, initializer=logs.carried())
    try:
        coming = deque(pool.submit(next, pages, None) for _page in range(AHEAD))
        while (page := coming[0].result()) is not None:
            rest = takewhile(has_come, islice(coming, 1, None))
            found = [page, *(more.result() or [] for more in rest)]
            for _page in found:
                coming.popleft()
                coming.append(pool.submit(next, pages, None))
            yield list(chain(*found))
    finally:
        pool.shutdown(cancel_futures=True)


def has_come(page: Future[list[Listed] | None]) -> bool:
    return page.done() and page.exception() is None
