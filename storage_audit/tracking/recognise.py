"""The objects of a listing, with their rows and owners."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from storage_audit.bucket.listing import Identity, exact
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.objects_in_hand import find_in_hand
from storage_audit.cleanup.open_decisions import find_covering, possible_owners
from storage_audit.cleanup.plan import rows_by_identity
from storage_audit.clocks import is_maybe_since
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Doubt, Owner, attribute
from storage_audit.ownership.owner import alive_among, known_among, layouts, named_in

Source, State = R2Object.Source, R2Object.State


class Seen(NamedTuple):
    """An object of the listing, what is known of it, whether an upload or a deletion has it in
    hand and will say itself what becomes of it, and its rows' keys that spell it otherwise. One
    that an open cleanup covers is no orphan."""

    listed: Listed
    row: R2Object | None
    owner: Owner
    in_hand: bool
    elsewhere: Sequence[str] = ()
    is_covered: bool = False


def recognise(
    bucket: str,
    objects: Sequence[Listed],
    tracked: Collection[str],
    identity: Identity,
    asked: datetime,
) -> list[Seen]:
    """The objects, of which only the keys in `tracked` have a row, with their rows and owners: in
    a number of queries that does not grow with them. Other spellings of a key are looked for."""
    readings = [layouts().readings(listed.key) for listed in objects]
    keys = may_have_rows(objects, tracked, identity)
    rows = rows_by_identity(bucket, keys, identity) if keys else {}
    to_be_deleted = named_by_deletions(bucket, {identity(o.key) for o in objects} - rows.keys())
    names = named_in(chain.from_iterable(rows.values()))
    names = names.union(*(ways.projects for ways in readings))
    alive = alive_among(readings, names)
    known = known_among(names - alive) | alive
    found, seen = [], []
    for listed, ways in zip(objects, readings, strict=True):
        its_rows = rows.get(identity(listed.key), ())
        found.append((listed, ways, its_rows, attribute(ways, its_rows, known, alive, listed)))
    covering = find_covering(
        bucket,
        {
            identity(listed.key): possible_owners(ways, its_rows, listed)
            for listed, ways, its_rows, owner in found
            if owner.difference == Doubt.ORPHANED
        },
    )
    busy = find_in_hand(chain.from_iterable(rows.values()))
    for listed, _ways, its_rows, owner in found:
        name = identity(listed.key)
        # A row that changed after the page was asked for knows more than the page.
        in_hand = name in to_be_deleted or any(
            row.pk in busy or is_maybe_since(row.updated_at, asked) for row in its_rows
        )
        elsewhere = [row.key for row in its_rows if row.key != listed.key]
        row, is_covered = row_of(listed, its_rows), name in covering
        seen.append(Seen(listed, row, owner, in_hand, elsewhere, is_covered))
    return seen


def row_of(listed: Listed, rows: Sequence[R2Object]) -> R2Object | None:
    """The one that spells the key as it is listed, else any of another spelling."""
    return next((row for row in rows if row.key == listed.key), next(iter(rows), None))


def may_have_rows(
    objects: Iterable[Listed], tracked: Collection[str], identity: Identity
) -> list[str]:
    keys = (listed.key for listed in objects)
    return [k for k in keys if k in tracked or (identity is not exact and not k.isascii())]


def named_by_deletions(bucket: str, untracked: Collection[str]) -> set[str]:
    """Objects whose rows were deleted so that they go: with a new row they would be kept."""
    deletions = CleanupOperation.objects.open().filter(
        bucket=bucket, kind=CleanupOperation.Kind.OBJECTS
    )
    if not deletions.exists():
        return set()
    items = CleanupItem.objects.filter(
        operation__in=deletions, identity__any_of=untracked, escaped=False
    ).exclude(outcome=CleanupItem.Outcome.PROTECTED)
    return set(items.values_list("identity", flat=True))
