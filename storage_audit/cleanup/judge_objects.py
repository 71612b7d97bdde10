"""Whose the listed objects are: each with its tracking rows, its possible owners and the reason."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple, TypeVar
from uuid import UUID

from django.db.models import Q

from storage_audit.bucket.listing import KeyIdentity, is_storable, tracked_spellings
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.open_decisions import (
    PossibleOwners,
    find_uncertain_keys,
    find_undecided,
    find_untracked,
    get_ignore_list,
    possible_owners,
)
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    DeletedProject,
    Ownership,
    Verdict,
    get_key_formats,
    judge_ownership,
    living_owners,
)
from storage_audit.ownership.row_evidence import TrackingRow, projects_in_rows

T = TypeVar("T", bound=TrackingRow)


def judge_listed(
    bucket: str,
    page: Sequence[ListedObject],
    project: DeletedProject,
    identity: KeyIdentity,
    asking: Q,
) -> Iterator[tuple[ListedObject, Sequence[TrackingRow], Verdict]]:
    """Each listed object with its tracking rows, as `find_rows_to_judge` gives them, and whether it
    is the project's. Cleanups that match `asking` keep nothing from it, see open_decisions.py."""
    parsed_keys = get_key_formats().parse_keys(listed.key for listed in page)
    rows = find_rows_to_judge(R2Object.objects.in_bucket(bucket), parsed_keys, identity)
    alive = living_owners(
        parsed_keys.values(), projects_in_rows(chain.from_iterable(rows.values()))
    )
    found = {identity(listed.key): listed for listed in page}
    keeping = find_keep_reasons(
        bucket, project.project_id, parsed_keys, rows, found, identity, asking
    )
    keeping |= get_ignore_list().find_ignored(bucket, page)
    for listed in page:
        its_rows = rows.get(identity(listed.key), ())
        time = listed.last_modified
        verdict = judge_ownership(project, parsed_keys[listed.key], its_rows, time, alive, listed)
        if verdict.ownership is Ownership.OWNED and listed.key in keeping:
            verdict = Verdict(Ownership.IN_DOUBT, verdict.evidence, keeping[listed.key])
        yield listed, its_rows, verdict


def find_keep_reasons(
    bucket: str,
    project_id: str,
    parsed_keys: Mapping[str, ParsedKeys],
    rows: Mapping[str, Sequence[TrackingRow]],
    found: Mapping[str, ListedObject],
    identity: KeyIdentity,
    asking: Q,
) -> dict[str, str]:
    """By key, why it is kept: a blocked cleanup covers it too, or a deleted row named another
    project. Rows and objects are given by identity."""
    kept = find_untracked(
        bucket, find_uncertain_keys(parsed_keys, rows, found, identity), project_id
    )
    return kept | find_undecided(bucket, owners_by_key(parsed_keys, rows, found, identity), asking)


def owners_by_key(
    parsed_keys: Mapping[str, ParsedKeys],
    rows: Mapping[str, Sequence[TrackingRow]],
    found: Mapping[str, ListedObject],
    identity: KeyIdentity,
) -> dict[str, PossibleOwners]:
    """By key, the projects whose cleanups may take the object."""
    return {
        key: possible_owners(ways, rows.get(identity(key), ()), found.get(identity(key)))
        for key, ways in parsed_keys.items()
    }


def find_owners(
    bucket: str,
    keys: Iterable[str],
    identity: KeyIdentity,
    found: Mapping[str, ListedObject],
    without: Collection[int] = (),
) -> dict[str, PossibleOwners]:
    """The same by the current rows of all spellings, or without some of these rows."""
    parsed_keys = get_key_formats().parse_keys(keys)
    rows = {
        name: [row for row in its_rows if row.pk not in without]
        for name, its_rows in rows_by_identity(bucket, parsed_keys, identity).items()
    }
    return owners_by_key(parsed_keys, rows, found, identity)


class TrackedRow(NamedTuple):
    """The fields of an `R2Object` that a `TrackingRow` needs."""

    key: str
    project_id: str | None
    source: str
    state: str
    upload_id: UUID | None
    size: int | None
    etag: str
    last_modified: datetime | None


def find_rows_to_judge(
    rows: R2ObjectQuerySet, keys: Iterable[str], identity: KeyIdentity
) -> Mapping[str, Sequence[TrackingRow]]:
    """The rows of these keys by identity, with only the fields of `TrackedRow`, as whole ones take
    ten times as long."""
    found = filter_spellings(rows, keys, identity).values_list(*TrackedRow._fields)
    return group_by_identity(map(TrackedRow._make, found), identity)


def rows_by_identity(
    bucket: str, keys: Iterable[str], identity: KeyIdentity
) -> Mapping[str, Sequence[R2Object]]:
    """The tracking rows of these keys, by what the store takes for the same key."""
    return group_by_identity(
        filter_spellings(R2Object.objects.in_bucket(bucket), keys, identity), identity
    )


def group_by_identity(rows: Iterable[T], identity: KeyIdentity) -> Mapping[str, Sequence[T]]:
    """Each spelling of a key can have a row. All of them are judged: they can name two owners."""
    found = defaultdict[str, list[T]](list)
    for row in rows:
        found[identity(row.key)].append(row)
    return dict(found)


def filter_spellings(
    rows: R2ObjectQuerySet, keys: Iterable[str], identity: KeyIdentity
) -> R2ObjectQuerySet:
    names = {s for key in keys if is_storable(key) for s in tracked_spellings(key, identity)}
    return rows.filter(key__any_of=names)
