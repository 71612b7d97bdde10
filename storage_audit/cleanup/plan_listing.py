"""Listings of a plan: ranges at once, and a large one in parts.

What a plan omits ends as kept, so one check of the marker may cover several connections.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat

from storage_audit.bucket import s3
from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS, run_at_once
from storage_audit.bucket.connections import KeptConnection
from storage_audit.bucket.listing import object_pages
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.listing_pieces import (
    ConfirmedPiece,
    RangePiece,
    prefetch_pages,
    take_page,
)
from storage_audit.cleanup.position_basis import listing_position
from storage_audit.cleanup.range_parts import (
    AskedParts,
    FindCut,
    ListedPart,
    PartedRange,
    PartJob,
    Sighting,
)


class PlanLister:
    def __init__(
        self,
        see_marker: Callable[[], Sighting],
        accept_marker: Callable[[Sighting], None],
        while_waiting: Callable[[], None],
        find_cut: FindCut,
    ) -> None:
        self._see_marker, self._accept_marker = see_marker, accept_marker
        self._while_waiting, self._find_cut = while_waiting, find_cut

    def list_ranges(
        self, bucket: str, prefixes: Sequence[str], span: int, after: str
    ) -> Iterator[RangePiece]:
        """The ranges from this one on, which starts behind `after`. The first pages of some are
        requested at once. Raises CannotConclude and StoreError."""
        for start in range(span, len(prefixes), MAX_CONNECTIONS):
            some = range(start, len(prefixes))[:MAX_CONNECTIONS]
            listings = [
                object_pages(bucket, prefixes[number], behind)
                for number, behind in zip(some, chain([after], repeat("")), strict=False)
            ]
            jobs = [partial(take_page, pages) for pages in listings]
            firsts, trouble = run_at_once(jobs, self._while_waiting)
            for number, first, pages in zip(some, firsts, listings, strict=False):
                yield RangePiece(number, first)
                yield from self._finish_range(bucket, prefixes[number], number, first, pages)
            if trouble:
                raise trouble
            after = ""

    def _finish_range(
        self,
        bucket: str,
        prefix: str,
        number: int,
        first: Sequence[ListedObject],
        pages: Iterator[list[ListedObject]],
    ) -> Iterator[RangePiece]:
        # A page that begins behind a key may leave that one out.
        if first and len(first) >= s3.PAGE_SIZE - 1:
            begins = listing_position(first)
            parted = PartedRange(
                bucket,
                prefix,
                begins,
                find_cut=self._find_cut,
                ask=self._ask_parts,
                accept_marker=self._accept_marker,
                while_waiting=self._while_waiting,
            )
            for page in parted.take_pages():
                yield ConfirmedPiece(number, page)
            if parted.is_complete:
                yield ConfirmedPiece(number, [], is_last=True)
                return
            if parted.after != begins:
                pages = object_pages(bucket, prefix, parted.after)
        yield from (RangePiece(number, page) for page in prefetch_pages(pages) if page)
        yield RangePiece(number, [], is_last=True)

    def _ask_parts(self, jobs: Sequence[PartJob], while_waiting: Callable[[], None]) -> AskedParts:
        parts, trouble = run_at_once([partial(list_plainly, job) for job in jobs], while_waiting)
        return AskedParts(parts, trouble, [self._see_marker()] if parts else [])


def list_plainly(job: PartJob, kept: KeptConnection) -> ListedPart:
    return job(lambda: None)
