"""Listings in pieces: read ahead, joined, and cut where the marker is checked."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, groupby, islice, takewhile
from math import ceil
from typing import NamedTuple

from storage_audit import logs
from storage_audit.bucket import s3
from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS
from storage_audit.bucket.connections import KeptConnection
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.listing import key_bytes
from storage_audit.bucket.s3 import ListedObject
from storage_audit.clocks import monotonic_seconds

# Pages that are requested in advance, and that one check of the marker covers.
PREFETCHED_PAGES = 5
# Fewer if they take longer than this, as the lease is not renewed meanwhile.
GATHER_SECONDS = 5.0


class RangePiece(NamedTuple):
    """A piece of the listing of one range; the last one ends it."""

    range_index: int
    page: list[ListedObject]
    is_last: bool = False


class ConfirmedPiece(RangePiece):
    """One behind which the marker was seen."""


def take_page(pages: Iterator[list[ListedObject]], kept: KeptConnection) -> list[ListedObject]:
    """The next page: a listing has one, if an empty one."""
    return next(pages)


def split_into_runs(keys: Iterable[str], prefixes: Sequence[str]) -> list[list[str]]:
    """The keys as runs of neighbours, to be looked up at once. One page shows most of a run."""

    def place(key: str) -> str:
        under = (prefix for prefix in prefixes if key.startswith(prefix))
        return next(under, "/".join(key.split("/")[:2]))

    todo = sorted(keys, key=key_bytes)
    size = max(1, ceil(len(todo) / MAX_CONNECTIONS))
    runs = [list(run) for _place, run in groupby(todo, key=place)]
    if len(runs) > MAX_CONNECTIONS:
        runs = [todo]
    else:
        size = max(size, s3.PAGE_SIZE)
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def join_pieces(pieces: Iterable[RangePiece]) -> list[ListedObject]:
    return list(chain.from_iterable(piece.page for piece in pieces))


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
    return sum(len(piece.page) for piece in held) >= PREFETCHED_PAGES * s3.PAGE_SIZE


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
