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
from storage_audit.bucket.listing import entry_pages, is_storable, key_bytes
from storage_audit.bucket.listing_xml import NO_ENTRIES, Entries, Entry
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.scan.diff_lines import KeyRange, Line, line_key, line_size, page_lines
from storage_audit.scan.models import ScanShard

logger = logging.getLogger(__name__)

# Pages that wait to be written, in all: about a fifth of a megabyte each.
PAGES_AHEAD = 6
# What is written at once: so many pages, or what there is after so many seconds.
PAGES_PER_BATCH = 15
BATCH_WAIT_SECONDS = 1.0
# Lanes at first, and the seconds of waiting for a page from which on there are twice as many. Each
# costs memory, and where the store answers at once more of them bring nothing.
FIRST_LANES, STARVED_AFTER_SECONDS = 4, 0.05
# Between tries, after those that botocore makes itself. The store may ask for longer pauses, up to
# LONGEST_PAUSE_SECONDS: the lease of what waits for the marker must outlast three of these.
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0)
LONGEST_PAUSE_SECONDS = 10.0

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8

Pages = Callable[[str, str, str], Iterator[Entries]]
Find = Callable[[str, ScanShard, Callable[[], None]], str | None]


@dataclass(frozen=True, slots=True)
class ShardPage:
    """A page of a shard, and when it was asked for. The last one ends the shard, and may be empty.

    As lines, which take half the memory that entries do; see diff_lines.py.
    """

    shard: ScanShard
    lines: Sequence[str]
    times: Sequence[str]
    unstorable: Sequence[Entry]
    asked: datetime
    # In bytes, of the objects that have lines.
    size: int
    is_last: bool

    @classmethod
    def of(cls, shard: ScanShard, page: Entries, asked: datetime, *, is_last: bool = False) -> Self:
        unstorable: list[Entry] = []
        text = "\n".join(page.keys)
        if OWN_PREFIX in text:
            page = page.select([not key.startswith(OWN_PREFIX) for key in page.keys])
        if not is_storable(text):
            unstorable = list(page.select([not is_storable(key) for key in page.keys]))
            page = page.select([is_storable(key) for key in page.keys])
        size = sum(map(int, page.sizes))
        return cls(shard, page_lines(page), page.times, unstorable, asked, size, is_last)


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
    is_complete: bool = False

    @classmethod
    def of(cls, page: ShardPage) -> Self:
        return cls(page.shard, page.shard.last_done_key, page.shard.last_done_key, page.asked)

    def add(self, page: ShardPage) -> None:
        self.lines += page.lines
        self.times += page.times
        self.unstorable += page.unstorable
        self.size += page.size
        # The last key that the database can name: what comes next is later.
        self.cursor = last_key(self.lines, self.cursor)
        self.requests += not page.is_last or bool(page.lines)
        self.is_complete = page.is_last

    @property
    def listed(self) -> int:
        return len(self.lines) + len(self.unstorable)

    @property
    def range(self) -> KeyRange:
        """All of it was listed."""
        until = self.shard.until if self.is_complete else self.cursor
        return KeyRange(self.shard.prefix, self.after, until)

    def lines_not_in(self, tracked: set[str]) -> list[Line]:
        """What the table does not have."""
        if tracked.issuperset(self.lines):  # as mostly, and told in half the time
            return []
        lines = zip(self.lines, self.times, strict=True)
        return [each for each in lines if each[0] not in tracked]

    def trim_to(self, until: str | None) -> None:
        """Leave what is later to whoever took it over."""
        self.shard.until = until
        if until is None or (
            self.cursor <= until and all(is_up_to(until, each) for each in self.unstorable)
        ):
            return
        count = bisect_right(self.lines, until, key=line_key)
        del self.lines[count:], self.times[count:]
        self.unstorable = [entry for entry in self.unstorable if is_up_to(until, entry)]
        self.size = sum(map(line_size, self.lines))
        self.cursor, self.is_complete = last_key(self.lines, self.after), True


def wait_to_retry(error: Unavailable, pauses: Iterator[float], stop: Event) -> None:
    """Raises the error if it was the last try, or nobody waits for another."""
    pause = next(pauses, None)
    if pause is None:
        raise error
    pause = max(pause, min(error.retry_after, LONGEST_PAUSE_SECONDS))
    logger.warning("Trying again in %s seconds: %s", pause, error)
    if stop.wait(pause):
        raise error


def last_key(lines: Sequence[str], before: str) -> str:
    return line_key(lines[-1]) if lines else before


def storable_length(page: Entries) -> int:
    """How many there are up to and with the last one that the database can name."""
    count = len(page)
    while count and not is_storable(page.keys[count - 1]):
        count -= 1
    return count


def is_up_to(until: str, entry: Entry) -> bool:
    return key_bytes(entry.key) <= key_bytes(until)


@cache
def keep_memory_flat() -> None:
    """Have glibc give large blocks back at once, and the threads share their heaps: else each keeps
    what its largest page took. https://man7.org/linux/man-pages/man3/mallopt.3.html"""
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 128 * 1024)
        mallopt(M_ARENA_MAX, 2)


class FetcherPool:
    """Shards are listed at once by `pages`: a few, and more, up to `width`, while who writes has to
    wait for what is listed. As a context manager it ends with no thread left."""

    def __init__(self, bucket: str, width: int, pages: Pages = entry_pages) -> None:
        self.bucket, self.width, self.pages = bucket, width, pages
        self.open_count = min(FIRST_LANES, width)
        self.busy_shards: dict[int, ScanShard] = {}
        # Where another lane finds that a shard can be cut: see `cut`.
        self.is_cutting, self.pause_until = False, 0.0
        self._cuts: list[Cut] = []
        self.uncuttable = set[int]()
        # Of these the table has too few rows to cut them by.
        self.few_rows = set[int]()
        self._error: Exception | None = None
        self._queue: Queue[ShardPage | Cut | Exception] = Queue(PAGES_AHEAD)
        self._stop = Event()
        keep_memory_flat()
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="lane")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._threads.shutdown()

    @property
    def idle_count(self) -> int:
        return max(0, self.open_count - len(self.busy_shards) - self.is_cutting)

    def start(self, shard: ScanShard) -> None:
        self.busy_shards[shard.pk] = shard
        self._threads.submit(self._run, lambda: self._read_shard(shard))

    def cut(self, shard: ScanShard, find: Find) -> None:
        """Have an idle lane find where to cut what is left of a shard; see `take_cuts`."""
        self.is_cutting = True
        self._threads.submit(self._run, lambda: self._find_cut(shard, find))

    def take_cuts(self) -> list["Cut"]:
        cuts, self._cuts = self._cuts, []
        # What is left of a shard only becomes less.
        self.uncuttable |= {cut.shard.pk for cut in cuts if cut.at is None}
        return cuts

    def gather(self) -> list[Stretch]:
        """What was read, up to a batch, by shard. Raises what a lane raised, the next time."""
        stretches: dict[int, Stretch] = {}
        if self._error:
            raise self._error
        for page in self._pages_of_a_batch():
            shard = page.shard
            if page.is_last:
                del self.busy_shards[shard.pk]
            if shard.complete:
                continue  # Cut behind what was written of it.
            if shard.pk not in stretches:
                stretches[shard.pk] = Stretch.of(page)
            stretches[shard.pk].add(page)
        for stretch in stretches.values():
            stretch.trim_to(stretch.shard.until)
        return list(stretches.values())

    def _pages_of_a_batch(self) -> Iterator[ShardPage]:
        until = monotonic() + BATCH_WAIT_SECONDS
        for _each in range(PAGES_PER_BATCH):
            if not (self.busy_shards or self.is_cutting):
                return
            asked = monotonic()
            try:
                page = self._queue.get(timeout=max(0, until - asked))
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
            if monotonic() - asked > STARVED_AFTER_SECONDS:
                self.open_count = min(2 * self.open_count, self.width)
            yield page

    def _run(self, read: Callable[[], Iterator["ShardPage | Cut"]]) -> None:
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

    def _read_shard(self, shard: ScanShard) -> Iterator[ShardPage]:
        """The pages of the shard, from its cursor to its end. Trouble of the store is tried again
        from the last page on."""
        after, pauses = shard.last_done_key, iter(RETRY_PAUSES_SECONDS)
        while True:
            try:
                for page in self._pages_after(shard, after):
                    yield page
                    after, pauses = last_key(page.lines, after), iter(RETRY_PAUSES_SECONDS)
                    del page
                return
            except Unavailable as error:
                wait_to_retry(error, pauses, self._stop)

    def _pages_after(self, shard: ScanShard, after: str) -> Iterator[ShardPage]:
        asking = asked = timezone.now()
        held = NO_ENTRIES
        for page in self.pages(self.bucket, shard.prefix, after):
            if self._stop.is_set():
                return
            asked, entries = asking, held + page
            until = shard.until
            if until is not None and entries and key_bytes(entries.keys[-1]) >= key_bytes(until):
                count = bisect_right(entries.keys, key_bytes(until), key=key_bytes)
                yield ShardPage.of(shard, entries[:count], asked, is_last=True)
                return
            # What comes after the last key that the database can name would be listed again when
            # the scan goes on from there.
            count = storable_length(entries)
            entries, held = entries[:count], entries[count:]
            yield ShardPage.of(shard, entries, asked)
            del page, entries
            asking = timezone.now()
        yield ShardPage.of(shard, held, asked, is_last=True)

    def _put(self, page: ShardPage | Cut | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(page, timeout=0.2)
            except Full:
                continue
            return
