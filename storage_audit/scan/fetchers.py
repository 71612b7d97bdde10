"""Threads that list, each its own shard, some pages ahead of the one that writes."""

import ctypes
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from queue import Empty, Full, Queue
from threading import Event
from time import monotonic
from typing import NamedTuple, Self

from django.utils import timezone

from storage_audit.bucket.errors import StoreError, Unavailable
from storage_audit.bucket.listing import as_bytes, entry_pages, storable
from storage_audit.bucket.listing_xml import NONE, Entries, Entry
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.scan.diff_lines import Line, Range, key_of, lines_of, size_of
from storage_audit.scan.models import ScanShard

logger = logging.getLogger(__name__)

# Pages that wait to be written, in all: about a fifth of a megabyte each.
AHEAD = 6
# What is written at once: so many pages, or what there is after so many seconds.
BATCH = 15
PATIENCE = 1.0
# Lanes at first, and the seconds of waiting for a page from which on there are twice as many. Each
# costs memory, and where the store answers at once more of them bring nothing.
FEW, STARVED = 4, 0.05
# Between tries, in seconds, after those that botocore makes by itself. The store may ask for longer
# ones, up to LONGEST_PAUSE: the lease of what waits for the marker must outlast three of these.
PAUSES = (1.0, 2.0, 4.0)
LONGEST_PAUSE = 10.0

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8

Pages = Callable[[str, str, str], Iterator[Entries]]
Find = Callable[[str, ScanShard, Callable[[], None]], str | None]


@dataclass(frozen=True, slots=True)
class PageRead:
    """A page of a shard, asked for at that time; the `last` one ends it, and may be empty.

    As lines, which take half the memory that entries do; see diff_lines.py.
    """

    shard: ScanShard
    lines: Sequence[str]
    times: Sequence[str]
    unstorable: Sequence[Entry]
    asked: datetime
    # In bytes, of the objects that have lines.
    size: int
    last: bool

    @classmethod
    def of(cls, shard: ScanShard, page: Entries, asked: datetime, *, last: bool = False) -> Self:
        unstorable: list[Entry] = []
        text = "\n".join(page.keys)
        if OWN_PREFIX in text:
            page = page.only([not key.startswith(OWN_PREFIX) for key in page.keys])
        if not storable(text):
            unstorable = list(page.only([not storable(key) for key in page.keys]))
            page = page.only([storable(key) for key in page.keys])
        size = sum(map(int, page.sizes))
        return cls(shard, lines_of(page), page.times, unstorable, asked, size, last)


class Cut(NamedTuple):
    """Where a shard can be cut, or that it is not worth it."""

    shard: ScanShard
    at: str | None
    requests: int


@dataclass(slots=True)
class Stretch:
    """What was read of a shard since it was last written: its keys later than `after`, up to and
    with the `cursor`."""

    shard: ScanShard
    after: str
    cursor: str
    asked: datetime
    lines: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    unstorable: list[Entry] = field(default_factory=list)
    size: int = 0
    requests: int = 0
    ended: bool = False

    @classmethod
    def of(cls, page: PageRead) -> Self:
        return cls(page.shard, page.shard.done, page.shard.done, page.asked)

    def add(self, page: PageRead) -> None:
        self.lines += page.lines
        self.times += page.times
        self.unstorable += page.unstorable
        self.size += page.size
        # The last key that the database can name: what comes next is later.
        self.cursor = last_key(self.lines, self.cursor)
        self.requests += not page.last or bool(page.lines)
        self.ended = page.last

    @property
    def listed(self) -> int:
        return len(self.lines) + len(self.unstorable)

    @property
    def range(self) -> Range:
        """All of it was listed."""
        until = self.shard.until if self.ended else self.cursor
        return Range(self.shard.prefix, self.after, until)

    def unlike(self, tracked: set[str]) -> list[Line]:
        """What the table does not have."""
        if tracked.issuperset(self.lines):  # as mostly, and told in half the time
            return []
        lines = zip(self.lines, self.times, strict=True)
        return [each for each in lines if each[0] not in tracked]

    def end_at(self, until: str | None) -> None:
        """Leave what is later to whoever took it over."""
        self.shard.until = until
        if until is None or (
            self.cursor <= until and all(is_up_to(until, each) for each in self.unstorable)
        ):
            return
        count = bisect_right(self.lines, until, key=key_of)
        del self.lines[count:], self.times[count:]
        self.unstorable = [entry for entry in self.unstorable if is_up_to(until, entry)]
        self.size = sum(map(size_of, self.lines))
        self.cursor, self.ended = last_key(self.lines, self.after), True


def wait_to_retry(error: Unavailable, pauses: Iterator[float], stop: Event) -> None:
    """Raises the error if it was the last try, or nobody waits for another."""
    pause = next(pauses, None)
    if pause is None:
        raise error
    pause = max(pause, min(error.retry_after, LONGEST_PAUSE))
    logger.warning("Asking again after %s seconds: %s", pause, error)
    if stop.wait(pause):
        raise error


def last_key(lines: Sequence[str], before: str) -> str:
    return key_of(lines[-1]) if lines else before


def named_at_last(page: Entries) -> int:
    """How many there are up to and with the last one that the database can name."""
    count = len(page)
    while count and not storable(page.keys[count - 1]):
        count -= 1
    return count


def is_up_to(until: str, entry: Entry) -> bool:
    return as_bytes(entry.key) <= as_bytes(until)


@cache
def keep_memory_flat() -> None:
    """Have glibc give large blocks back at once, and the threads share their heaps: else each keeps
    what its largest page took. https://man7.org/linux/man-pages/man3/mallopt.3.html"""
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        mallopt(M_ARENA_MAX, 2)


class Lanes:
    """Shards are listed at once by `pages`: a few, and more, up to `width`, while who writes has to
    wait for what is listed. As a context manager it ends with no thread left."""

    def __init__(self, bucket: str, width: int, pages: Pages = entry_pages) -> None:
        self.bucket, self.width, self.pages = bucket, width, pages
        self.open = min(FEW, width)
        self.busy: dict[int, ScanShard] = {}
        # Where another lane finds that a shard can be cut: see `cut`.
        self.is_cutting, self.rest_until = False, 0.0
        self._cuts: list[Cut] = []
        self.not_worth = set[int]()
        # Of these the table has too few rows to cut them by.
        self.few_rows = set[int]()
        self._error: Exception | None = None
        self._read: Queue[PageRead | Cut | Exception] = Queue(AHEAD)
        self._stop = Event()
        keep_memory_flat()
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="lane")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._threads.shutdown()

    @property
    def idle(self) -> int:
        return max(0, self.open - len(self.busy) - self.is_cutting)

    def start(self, shard: ScanShard) -> None:
        self.busy[shard.pk] = shard
        self._threads.submit(self._do, lambda: self._read_on(shard))

    def cut(self, shard: ScanShard, find: Find) -> None:
        """Have an idle lane find where to cut what is left of a shard; see `take_cuts`."""
        self.is_cutting = True
        self._threads.submit(self._do, lambda: self._find_cut(shard, find))

    def take_cuts(self) -> list["Cut"]:
        cuts, self._cuts = self._cuts, []
        # What is left of a shard only becomes less.
        self.not_worth |= {cut.shard.pk for cut in cuts if cut.at is None}
        return cuts

    def gather(self) -> list[Stretch]:
        """What was read, up to a batch, by shard. Raises what a lane raised, the next time."""
        stretches: dict[int, Stretch] = {}
        if self._error:
            raise self._error
        for page in self._pages_of_a_batch():
            shard = page.shard
            if page.last:
                del self.busy[shard.pk]
            if shard.complete:
                continue  # Cut behind what was written of it.
            if shard.pk not in stretches:
                stretches[shard.pk] = Stretch.of(page)
            stretches[shard.pk].add(page)
        for stretch in stretches.values():
            stretch.end_at(stretch.shard.until)
        return list(stretches.values())

    def _pages_of_a_batch(self) -> Iterator[PageRead]:
        until = monotonic() + PATIENCE
        for _each in range(BATCH):
            if not (self.busy or self.is_cutting):
                return
            asked = monotonic()
            try:
                page = self._read.get(timeout=max(0, until - asked))
            except Empty:
                return
            if isinstance(page, Exception):
                # What came before it is written first.
                self._error = page
                return
            if isinstance(page, Cut):
                self.is_cutting = False
                self._cuts.append(page)
                # An idle lane waits for it: only with what is there already.
                until = asked
                continue
            if monotonic() - asked > STARVED:
                self.open = min(2 * self.open, self.width)
            yield page

    def _do(self, read: Callable[[], Iterator["PageRead | Cut"]]) -> None:
        try:
            for each in read():
                self._put(each)
                del each  # It would be kept as long as the next one takes; so below.
        except Exception as error:  # noqa: BLE001 - `gather` raises it
            self._put(error)

    def _find_cut(self, shard: ScanShard, find: Find) -> Iterator[Cut]:
        at, pages = None, list[None]()
        try:
            at = find(self.bucket, shard, partial(pages.append, None))
        except StoreError as error:
            # It would only have been faster.
            logger.warning("No cut was found: %s", error)
        yield Cut(shard, at, len(pages))

    def _read_on(self, shard: ScanShard) -> Iterator[PageRead]:
        """The pages of the shard, from its cursor to its end. Trouble of the store is tried again
        from the last page on."""
        after, pauses = shard.done, iter(PAUSES)
        while True:
            try:
                for page in self._pages_after(shard, after):
                    yield page
                    after, pauses = last_key(page.lines, after), iter(PAUSES)
                    del page
                return
            except Unavailable as error:
                wait_to_retry(error, pauses, self._stop)

    def _pages_after(self, shard: ScanShard, after: str) -> Iterator[PageRead]:
        asking = asked = timezone.now()
        held = NONE
        for page in self.pages(self.bucket, shard.prefix, after):
            if self._stop.is_set():
                return
            asked, entries = asking, held + page
            until = shard.until
            if until is not None and entries and as_bytes(entries.keys[-1]) >= as_bytes(until):
                count = bisect_right(entries.keys, as_bytes(until), key=as_bytes)
                yield PageRead.of(shard, entries[:count], asked, last=True)
                return
            # What comes after the last key that the database can name would be listed again when
            # the scan goes on from there.
            count = named_at_last(entries)
            entries, held = entries[:count], entries[count:]
            yield PageRead.of(shard, entries, asked)
            del page, entries
            asking = timezone.now()
        yield PageRead.of(shard, held, asked, last=True)

    def _put(self, page: PageRead | Cut | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._read.put(page, timeout=0.2)
            except Full:
                continue
            return
