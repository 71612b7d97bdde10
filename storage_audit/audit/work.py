"""One worker's turn on one operation."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from time import monotonic

from storage_audit import logs
from storage_audit.audit import installation, limits
from storage_audit.audit.installation import Traits
from storage_audit.audit.ownership import Deleted
from storage_audit.bucket import listing
from storage_audit.bucket.listing import Identity
from storage_audit.bucket.r2 import PAGE, Listed
from storage_audit.cleanup_querysets import CleanupItemQuerySet
from storage_audit.conf import conf
from storage_audit.models import CleanupItem, CleanupOperation

# Keys that are looked up each at its own place, a request for each at worst: so few that the
# lease outlasts them.
LONE_KEYS = 100
# More of them are one look while it takes less than QUICK, as neighbours share a page, and no
# more when it takes more than SLOW. Seconds.
QUICK, SLOW = 2.0, 10.0

# Pages that are asked for before they are wanted.
AHEAD = 5


class Scattered(Exception):
    """So many lone keys are no neighbours: look for fewer at a time."""


class OutOfTime(Exception):
    """The turn is over and work is left; what was done so far is recorded."""


class Undecided(Exception):
    """Somebody is just changing what decides on the objects; the message says what."""


class Reborn(Exception):
    """The cleanup is of an earlier life of the project; the message says which decides now."""


@dataclass
class Work:
    operation: CleanupOperation
    traits: Traits
    deadline: float
    # In a row, though no less can be asked of the store.
    troubles: int = 0
    # Lone keys at one look.
    together: int = LONE_KEYS
    # wrangler was seen to look into the same bucket as we do.
    wrangler_is_here: bool = False

    @classmethod
    def begin(cls, operation: CleanupOperation) -> "Work":
        """Raises Mismatch and StoreError."""
        ends = monotonic() + conf().slice.total_seconds()
        traits = installation.check(operation.bucket)
        limits.refuse_empty_table()
        return cls(operation, traits, ends)

    @property
    def identity(self) -> Identity:
        return self.traits.identity

    @property
    def project(self) -> Deleted:
        operation = self.operation
        return Deleted(
            operation.project_id or "", operation.project_deleted_at or operation.created_at
        )

    def look_again(self) -> None:
        """Is it still the right bucket, and the right database? Raises Mismatch and StoreError."""
        self.traits = installation.check(self.operation.bucket)
        limits.refuse_empty_table()

    def pages(self, prefix: str, after: str = "") -> Iterator[list[Listed]]:
        """A listing that is complete when the iteration ends without an exception, and that comes
        from a store whose listings show what is there. Raises Mismatch and StoreError."""
        yield from ahead(listing.pages(self.operation.bucket, prefix, after))
        installation.see_marker(self.operation.bucket)

    def find(self, keys: Sequence[str]) -> dict[str, Listed]:
        """The objects of these keys, by identity; as complete, and as sure, as `pages`."""
        operation = self.operation
        found = listing.find(operation.bucket, keys, self.identity, operation.renew)
        installation.see_marker(operation.bucket)
        return found

    def look_up(self, items: CleanupItemQuerySet) -> list[tuple[CleanupItem, Listed | None]]:
        """The first of these lone items with their objects, as sure as `find`; none at the end."""
        while some := list(items[: self.together]):
            try:
                found = self.find_lone([item.key for item in some])
            except Scattered:
                continue
            installation.see_marker(self.operation.bucket)
            return [(item, found.get(self.identity(item.key))) for item in some]
        return []

    def find_lone(self, keys: Sequence[str]) -> dict[str, Listed]:
        """The objects of these keys, by identity. Raises Scattered, after which fewer are one
        look."""
        began = monotonic()

        def after_page() -> None:
            self.operation.renew()
            if len(keys) > LONE_KEYS and monotonic() > began + SLOW:
                self.together = LONE_KEYS
                raise Scattered

        found = listing.find(self.operation.bucket, keys, self.identity, after_page)
        if monotonic() < began + QUICK:
            self.together = min(2 * self.together, PAGE)
        return found

    def breathe(self) -> None:
        """Call where the turn may end. Raises OutOfTime."""
        if monotonic() >= self.deadline:
            raise OutOfTime


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
