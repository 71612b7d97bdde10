"""The objects of a listing, with their rows and owners."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from storage_audit.bucket.listing import KeyIdentity, exact_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.changing_objects import find_in_hand
from storage_audit.cleanup.judge_objects import rows_by_identity
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.open_decisions import find_covering, possible_owners
from storage_audit.clocks import may_be_since
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner, OwnerProblem, find_owner
from storage_audit.ownership.ownership_rule import get_key_formats, known_ids, living_owners
from storage_audit.ownership.row_evidence import projects_in_rows

Source, State = R2Object.Source, R2Object.State


class RecognisedObject(NamedTuple):
    """An object of the listing and what is known of it. `in_hand`: an upload or a deletion is under
    way and will record the result. `other_spellings`: keys of its rows that spell it otherwise.
    `is_covered`: an open cleanup covers it, so it is no orphan."""

    listed: ListedObject
    row: R2Object | None
    owner: Owner
    in_hand: bool
    other_spellings: Sequence[str] = ()
    is_covered: bool = False


def recognise_objects(
    bucket: str,
    objects: Sequence[ListedObject],
    tracked: Collection[str],
    identity: KeyIdentity,
    asked: datetime,
) -> list[RecognisedObject]:
    """The objects, of which only the keys in `tracked` have a row, with their rows and owners: in
    a number of queries that does not grow with them. Other spellings of a key are looked for."""
    parsed_keys = [get_key_formats().parse_key(listed.key) for listed in objects]
    keys = keys_with_rows(objects, tracked, identity)
    rows = rows_by_identity(bucket, keys, identity) if keys else {}
    to_be_deleted = keys_of_deleted_rows(bucket, {identity(o.key) for o in objects} - rows.keys())
    names = projects_in_rows(chain.from_iterable(rows.values()))
    names = names.union(*(ways.projects for ways in parsed_keys))
    alive = living_owners(parsed_keys, names)
    known = known_ids(names - alive) | alive
    found, seen = [], []
    for listed, ways in zip(objects, parsed_keys, strict=True):
        its_rows = rows.get(identity(listed.key), ())
        found.append((listed, ways, its_rows, find_owner(ways, its_rows, known, alive, listed)))
    covering = find_covering(
        bucket,
        {
            identity(listed.key): possible_owners(ways, its_rows, listed)
            for listed, ways, its_rows, owner in found
            if owner.problem == OwnerProblem.ORPHANED
        },
    )
    busy = find_in_hand(chain.from_iterable(rows.values()))
    for listed, _ways, its_rows, owner in found:
        name = identity(listed.key)
        # A row that changed after the page was asked for knows more than the page.
        in_hand = name in to_be_deleted or any(
            row.pk in busy or may_be_since(row.updated_at, asked) for row in its_rows
        )
        elsewhere = [row.key for row in its_rows if row.key != listed.key]
        row, is_covered = matching_row(listed, its_rows), name in covering
        seen.append(RecognisedObject(listed, row, owner, in_hand, elsewhere, is_covered))
    return seen


def matching_row(listed: ListedObject, rows: Sequence[R2Object]) -> R2Object | None:
    """The row that spells the key as it is listed, else one of another spelling."""
    return next((row for row in rows if row.key == listed.key), next(iter(rows), None))


def keys_with_rows(
    objects: Iterable[ListedObject], tracked: Collection[str], identity: KeyIdentity
) -> list[str]:
    keys = (listed.key for listed in objects)
    return [k for k in keys if k in tracked or (identity is not exact_key and not k.isascii())]


def keys_of_deleted_rows(bucket: str, untracked: Collection[str]) -> set[str]:
    """Keys whose rows were deleted to delete the files: a new row would keep them."""
    deletions = Cleanup.objects.open().filter(bucket=bucket, kind=Cleanup.Kind.OBJECTS)
    if not deletions.exists():
        return set()
    items = CleanupItem.objects.filter(
        cleanup__in=deletions, identity__any_of=untracked, escaped=False
    ).exclude(outcome=CleanupItem.Outcome.KEPT)
    return set(items.values_list("identity", flat=True))
