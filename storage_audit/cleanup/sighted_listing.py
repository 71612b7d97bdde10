"""Listings whose silence means that a file is gone: each connection shows the marker for what it
has listed.

With one check of the marker for all connections, a balancer that leads one of them to an empty
copy of the bucket would have files called gone that are there.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from time import monotonic
from typing import TypeVar

from django.utils.translation import gettext as _

from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS, run_at_once
from storage_audit.bucket.connections import KeptConnection
from storage_audit.bucket.errors import InvalidResponse, StoreError, Unavailable
from storage_audit.bucket.listing import KeyIdentity, find_keys, object_pages
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.listing_pieces import RangePiece, group_pieces, join_pieces
from storage_audit.cleanup.position_basis import listing_position
from storage_audit.cleanup.range_parts import (
    AskedParts,
    FindCut,
    ListedPart,
    PartedRange,
    PartJob,
    Sighting,
)

# What a connection lists at most before it shows the marker.
MAX_LISTINGS, MAX_PAGES, MAX_SECONDS = 4, 20, 30.0
# Ranges that share a connection: fewer take less time, and more of them fewer checks.
RANGES_PER_CONNECTION = 2
# Whose first pieces are requested at once.
RANGES_AT_ONCE = MAX_CONNECTIONS * RANGES_PER_CONNECTION
# A piece is kept in memory until the marker was seen: few pages of each of many ranges, more where
# a range goes on alone, and no more once it has taken so long, as turns are short.
PAGES_AT_FIRST, PAGES_PER_PIECE, PIECE_SECONDS = 2, 5, 5.0
# How often something is listed again because its connection broke.
MAX_TRIES = 3

T = TypeVar("T")


class Reconnected(Unavailable):
    """The connection broke before it showed the marker, so what it listed counts for nothing."""


class Witness:
    """Sees the marker over the connection that lists. It does not use the database: whoever has
    the result compares the sightings with the marker on record."""

    def __init__(
        self, kept: KeptConnection, see_marker: Callable[[], Sighting], *, is_lenient: bool = False
    ) -> None:
        self.sightings, self._created = list[Sighting](), monotonic()
        self._kept, self._see_marker, self._is_lenient = kept, see_marker, is_lenient
        self._start_over()

    def _start_over(self) -> None:
        self._first = len(self._kept.served)
        self._pages = self._listings = 0
        self._began = monotonic()

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return monotonic() - self._created

    def note_page(self) -> None:
        """Call after each page. Raises Reconnected and StoreError."""
        self._pages += 1
        is_old = monotonic() > self._began + MAX_SECONDS
        if self._is_lenient or is_old or self._pages >= MAX_PAGES:
            self.check()

    def note_listing(self) -> None:
        """Call at the end of each listing. Raises the same."""
        self._listings += 1
        if self._listings >= MAX_LISTINGS:
            self.check()

    def check(self) -> None:
        """See the marker, unless nothing was listed since the last time. Raises the same."""
        if not self._pages:
            return
        sighting = self._see_marker()
        if not self._is_lenient and len(set(self._kept.served[self._first :])) != 1:
            raise Reconnected(_("The connection to the store broke while we listed the bucket."))
        self.sightings.append(sighting)
        self._start_over()


def list_with_witness(
    job: Callable[[Witness], T], see_marker: Callable[[], Sighting], kept: KeptConnection
) -> tuple[T, list[Sighting]]:
    """The job's result, and the sightings that vouch for it. If the connection breaks, the job runs
    again. Raises StoreError.

    Where the store closes the connection after each answer, the marker is checked after each page
    instead.
    """
    start = len(kept.served)
    for _try in range(MAX_TRIES):
        witness = Witness(kept, see_marker)
        try:
            return run_with_witness(job, witness)
        except Reconnected as error:
            broken = error
    served = kept.served[start:]
    if not served or len(set(served)) < len(served):
        raise broken
    return run_with_witness(job, Witness(kept, see_marker, is_lenient=True))


def list_part_with_witness(
    job: PartJob, see_marker: Callable[[], Sighting], kept: KeptConnection
) -> tuple[ListedPart, list[Sighting]]:
    return list_with_witness(lambda witness: job(witness.note_page), see_marker, kept)


def run_with_witness(job: Callable[[Witness], T], witness: Witness) -> tuple[T, list[Sighting]]:
    result = job(witness)
    witness.check()
    return result, witness.sightings


class PiecewiseListing:
    """A listing that goes on where the last piece ended, once that was confirmed."""

    def __init__(
        self,
        pages_after: Callable[[str], Iterator[list[ListedObject]]],
        after: str = "",
        range_index: int = 0,
    ) -> None:
        self._pages_after, self.after, self.range_index = pages_after, after, range_index
        self._limit = PAGES_AT_FIRST
        self._pages: Iterator[list[ListedObject]] | None = None
        self._taken: Iterator[list[ListedObject]] | None = None

    def take_piece(self, witness: Witness) -> RangePiece:
        """The next piece. Taken again if it is not confirmed, such as over another connection."""
        # Only `confirm` puts them back.
        self._taken, self._pages = self._pages or self._pages_after(self.after), None
        taken = list[ListedObject]()
        for count, page in enumerate(self._taken, 1):
            witness.note_page()
            taken += page
            if count == self._limit or witness.seconds > PIECE_SECONDS:
                return RangePiece(self.range_index, taken)
        witness.note_listing()
        return RangePiece(self.range_index, taken, is_last=True)

    def confirm(self, piece: RangePiece) -> None:
        """The marker was seen behind this piece: the next one begins at its end."""
        if piece.page:
            self.after = listing_position(piece.page)
        self._pages, self._limit = self._taken, PAGES_PER_PIECE


def take_pieces(listings: Sequence[PiecewiseListing], witness: Witness) -> list[RangePiece]:
    """A piece of each, up to one that goes on."""
    pieces = list[RangePiece]()
    for listing in listings:
        pieces.append(listing.take_piece(witness))
        if not pieces[-1].is_last:
            break
    return pieces


class SightedLister:
    """Lists over some connections at once, each of which shows the marker for what it has listed.
    `accept_marker` compares a sighting with the marker on record."""

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
        """The ranges from this one on, which starts behind `after`, in pieces that may be written.
        Raises CannotConclude and StoreError."""
        ready: dict[int, tuple[PiecewiseListing, RangePiece]] = {}
        trouble: StoreError | None = None
        for number in range(span, len(prefixes)):
            if number not in ready:
                if trouble is None:
                    missing = [n for n in range(number, len(prefixes)) if n not in ready]
                    listings = [
                        PiecewiseListing(
                            partial(object_pages, bucket, prefixes[n]),
                            after if n == span else "",
                            n,
                        )
                        for n in missing[:RANGES_AT_ONCE]
                    ]
                    found, trouble = self.list_shares(listings)
                    ready |= found
                if number not in ready and trouble:
                    raise trouble
            listing, piece = ready.pop(number)
            if piece.page or piece.is_last:
                yield piece
            if not piece.is_last:
                yield from self.finish_range(bucket, prefixes[number], listing)

    def finish_range(
        self, bucket: str, prefix: str, begun: PiecewiseListing
    ) -> Iterator[RangePiece]:
        """The other pieces of a range, in parts that are listed at once as far as it can be cut.
        Raises CannotConclude and StoreError."""
        parted = PartedRange(
            bucket,
            prefix,
            begun.after,
            find_cut=self._find_cut,
            ask=self._ask_parts,
            accept_marker=self._accept_marker,
            while_waiting=self._while_waiting,
        )
        number = begun.range_index
        for pieces in group_pieces(RangePiece(number, page) for page in parted.take_pages()):
            yield RangePiece(number, join_pieces(pieces))
        if parted.is_complete:
            yield RangePiece(number, [], is_last=True)
        elif parted.after == begun.after:
            yield from self.finish_listing(begun)
        else:
            pages_after = partial(object_pages, bucket, prefix)
            yield from self.finish_listing(PiecewiseListing(pages_after, parted.after, number))

    def _ask_parts(self, jobs: Sequence[PartJob], while_waiting: Callable[[], None]) -> AskedParts:
        watched = [partial(list_part_with_witness, job, self._see_marker) for job in jobs]
        ended, trouble = run_at_once(watched, while_waiting)
        sightings = [each for _part, seen in ended for each in seen]
        return AskedParts([part for part, _seen in ended], trouble, sightings)

    def list_shares(
        self, listings: Sequence[PiecewiseListing]
    ) -> tuple[dict[int, tuple[PiecewiseListing, RangePiece]], StoreError | None]:
        """The first pieces of the listings, by their ranges, and what failed. Raises
        InvalidResponse for a malformed answer, whatever came before it.

        The first of them is there, or something failed; others may be missing, if it takes long.
        """
        size = RANGES_PER_CONNECTION
        shares = [listings[start : start + size] for start in range(0, len(listings), size)]
        taken, trouble = self.run([partial(take_pieces, each) for each in shares])
        if isinstance(trouble, InvalidResponse):
            raise trouble
        found = dict[int, tuple[PiecewiseListing, RangePiece]]()
        for share, pieces in zip(shares, taken, strict=False):
            for listing, piece in zip(share, pieces, strict=False):
                listing.confirm(piece)
                found[piece.range_index] = listing, piece
        return found, trouble

    def finish_listing(self, begun: PiecewiseListing) -> Iterator[RangePiece]:
        """The other pieces of a listing, up to its end. Raises CannotConclude and StoreError."""
        is_last = False
        while not is_last:
            pieces, trouble = self.run([begun.take_piece])
            if trouble:
                raise trouble
            begun.confirm(pieces[0])
            if pieces[0].page or pieces[0].is_last:
                yield pieces[0]
            is_last = pieces[0].is_last

    def run(
        self,
        jobs: Sequence[Callable[[Witness], T]],
        while_waiting: Callable[[], None] | None = None,
    ) -> tuple[list[T], StoreError | None]:
        """Run the jobs as `run_at_once` does, each over a connection that shows the marker too.
        Raises CannotConclude and StoreError if one does not."""
        watched = [partial(list_with_witness, job, self._see_marker) for job in jobs]
        ended, trouble = run_at_once(watched, while_waiting or self._while_waiting)
        for sighting in chain.from_iterable(sightings for _result, sightings in ended):
            self._accept_marker(sighting)
        return [result for result, _sightings in ended], trouble


def find_run(
    bucket: str, keys: Sequence[str], identity: KeyIdentity, witness: Witness | None
) -> tuple[dict[str, ListedObject], list[str]]:
    """The objects of these keys as `find_keys` finds them, and the keys that only a search for all
    their spellings may find. Does not use the database."""
    alike = list[str]()

    def note_alike(rest: Sequence[str]) -> dict[str, ListedObject]:
        alike.extend(rest)
        return {}

    after_page = witness.note_page if witness else lambda: None
    return find_keys(bucket, keys, identity, after_page, note_alike), alike


def without_witness(job: Callable[[None], T]) -> Callable[[KeptConnection], T]:
    """The same job for `run_at_once`."""
    return lambda kept: job(None)
