"""A large range in parts that are listed at once.

It is cut at tracked keys, as scans cut theirs. A part ends only where the next one begins, as both
listings show it: a store that omits what is between them, or lists in another order, is not
believed.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Event
from typing import NamedTuple

from django.utils.translation import gettext as _

from storage_audit import logs
from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS, POLL_SECONDS, NotSent
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import key_bytes, object_pages
from storage_audit.bucket.s3 import PAGE_SIZE, ListedObject
from storage_audit.cleanup.position_basis import listing_position

# Tracked keys in a part: so few that one page mostly shows the beginning of the next part too.
KEYS_PER_PART = PAGE_SIZE * 19 // 20
# Pages of a part at most, as all parts that are listed at once are kept in memory, and those before
# them while they are written. The rest of such a range is listed page by page.
MAX_PAGES_PER_PART = 2


# The marker as a listing shows it, if it does.
Sighting = ListedObject | None


class Part(NamedTuple):
    """The keys of a range later than `after`, up to and with `until`; None is the range's end."""

    after: str
    until: str | None


class ListedPart(NamedTuple):
    """The objects of a part. `first` is the first key later than its `after`, and `beyond` the
    first one later than its `until`, as the listing shows them; None if it shows none."""

    objects: list[ListedObject]
    first: str | None
    beyond: str | None
    is_complete: bool


class AskedParts(NamedTuple):
    """The parts up to one that failed, why that one failed, and the sightings of the marker that
    vouch for them."""

    parts: list[ListedPart]
    trouble: StoreError | None
    sightings: list[Sighting]


# Lists a part, and calls what it is given after each page.
PartJob = Callable[[Callable[[], None]], ListedPart]
# Lists these parts at once. Does not use the database.
AskParts = Callable[[Sequence[PartJob], Callable[[], None]], AskedParts]
# A tracked key under a prefix, so many behind a key; None if there are fewer.
FindCut = Callable[[str, str], str | None]


def list_part(bucket: str, prefix: str, part: Part, after_page: Callable[[], None]) -> ListedPart:
    objects, first = list[ListedObject](), None
    for count, page in enumerate(object_pages(bucket, prefix, part.after), 1):
        after_page()
        if first is None and page:
            first = page[0].key
        size = len(page)
        if part.until is not None:
            size = bisect_right(page, key_bytes(part.until), key=lambda each: key_bytes(each.key))
        objects += page[:size]
        if size < len(page):
            return ListedPart(objects, first, page[size].key, is_complete=True)
        if count == MAX_PAGES_PER_PART:
            return ListedPart(objects, first, None, is_complete=False)
    return ListedPart(objects, first, None, is_complete=True)


class PartedRange:
    """Lists what is left of a range in parts, the next ones while these are written. What it gives
    is complete up to `after`, and up to the range's end once `is_complete`; the caller lists what
    it leaves out."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        after: str,
        *,
        find_cut: FindCut,
        ask: AskParts,
        accept_marker: Callable[[Sighting], None],
        while_waiting: Callable[[], None],
    ) -> None:
        self.after, self.is_complete = after, False
        self._bucket, self._prefix, self._find_cut, self._ask = bucket, prefix, find_cut, ask
        self._accept_marker, self._while_waiting = accept_marker, while_waiting
        self._stop = Event()

    def take_pages(self) -> Iterator[list[ListedObject]]:
        """Raises CannotConclude and StoreError."""
        parts = self._cut(self.after)
        if len(parts) == 1:
            return
        pool = ThreadPoolExecutor(1, initializer=logs.context_initializer())
        try:
            before: ListedPart | None = None
            coming: Future[AskedParts] | None = self._start(pool, parts)
            while coming:
                asked = self._wait_for(coming)
                coming, last = None, parts[-1].until
                if last is not None and is_whole(asked):
                    parts = self._cut(last)
                    coming = self._start(pool, parts)
                while asked.parts:
                    part = asked.parts.pop(0)
                    if before and before.beyond != part.first:
                        return
                    if part.objects:
                        self.after = listing_position(part.objects)
                        yield part.objects
                    if not part.is_complete:
                        return
                    before = part
                if asked.trouble:
                    raise asked.trouble
            self.is_complete = True
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _cut(self, after: str) -> list[Part]:
        """The next parts; the last one of them goes up to the end of the range if it is small."""
        parts = list[Part]()
        while len(parts) < MAX_CONNECTIONS:
            until = self._find_cut(self._prefix, after)
            parts.append(Part(after, until))
            if until is None:
                break
            after = until
        return parts

    def _start(self, pool: ThreadPoolExecutor, parts: Sequence[Part]) -> Future[AskedParts]:
        jobs = [partial(list_part, self._bucket, self._prefix, part) for part in parts]
        return pool.submit(self._ask, jobs, self._check_stop)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise NotSent(_("Not sent: its answer is not needed any more."))

    def _wait_for(self, coming: Future[AskedParts]) -> AskedParts:
        """What was asked for, once the marker vouches for it. A malformed answer discredits those
        before it."""
        while wait([coming], POLL_SECONDS).not_done:
            self._while_waiting()
        asked = coming.result()
        for sighting in asked.sightings:
            self._accept_marker(sighting)
        if isinstance(asked.trouble, InvalidResponse):
            raise asked.trouble
        return asked


def is_whole(asked: AskedParts) -> bool:
    """Whether these parts join up to a key that is not their own, so that more may follow."""
    last = asked.parts[-1] if asked.parts and not asked.trouble else None
    return bool(last and last.is_complete and last.beyond is not None)
