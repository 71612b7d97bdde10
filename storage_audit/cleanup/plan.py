"""What a project has in the bucket: tracked and listed keys, each with its owner and the reason.

Written page by page into the cleanup's items, so that another worker can go on where one stops, and
memory does not grow with the project.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import KeyIdentity, escape_key, is_storable, tracked_spellings
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import progress
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.open_decisions import (
    PossibleOwners,
    asking_filter,
    find_uncertain_keys,
    find_undecided,
    find_untracked,
    get_ignore_list,
    possible_owners,
)
from storage_audit.cleanup.position_basis import listing_position
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS, Turn
from storage_audit.fields import insert_new_rows, insert_values
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.bucket_marker import CannotConclude
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

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
Discovery = Cleanup.Discovery
T = TypeVar("T", bound=TrackingRow)
# Tracked keys at a time.
TRACKED_KEYS_PER_QUERY = 5000


def discover_objects(work: Turn) -> None:
    """Make the cleanup's items, going on where the last turn stopped. Raises TurnOver,
    StoreError and LeaseLost."""
    cleanup = work.cleanup
    assert cleanup.project_id is not None
    if cleanup.position.range_index is None:
        cleanup.renew(listed_prefixes=prefixes_to_list(cleanup.project_id))
    elif cleanup.position.tracked_after is not None:
        discover_tracked(work, cleanup.position.range_index)
    discover_listed(work)
    discover_outside(work)


def prefixes_to_list(project_id: str) -> list[str]:
    """What to list. Raises CannotConclude when no key format can have this id: nothing would be
    listed, and so nothing found or called gone."""
    if get_key_formats().is_project_id(project_id):
        return get_key_formats().prefixes_of(project_id)
    raise CannotConclude(
        _(
            "%s is not a valid project ID, so we can't look for its files. If the ID is right,"
            " correct the setting PROJECT_ID_PATTERN and approve this cleanup. If not, delete the"
            " tracking rows of its files, which deletes the files."
        )
        % project_id
    )


def discover_listed(work: Turn) -> None:
    """Save the listed objects and, after each range, the rows whose objects it did not show."""
    cleanup = work.cleanup
    first, after = cleanup.position.range_index or 0, cleanup.position.after
    for span, page, is_last in work.list_ranges(first, after):
        before = cleanup.position.after
        if page:
            save_listed(work, page, span)
        if is_last:
            discover_tracked(work, span)
        if page and (is_last or cleanup.position.after != before):
            work.check_deadline()


def save_listed(work: Turn, page: Sequence[ListedObject], span: int) -> None:
    cleanup, rows = work.cleanup, list(item_values(work, page, span))
    with transaction.atomic():
        so_far = progress.count_found(cleanup, rows)
        cleanup.renew_after_progress(
            position=work.next_position(range_index=span, after=listing_position(page)),
            progress=so_far,
        )
        insert_values(CleanupItem, rows)


def discover_tracked(work: Turn, span: int) -> None:
    """Rows of the project under the prefix whose object the complete listing did not show."""
    cleanup = work.cleanup
    prefix, after = cleanup.listed_prefixes[span], cleanup.position.tracked_after or ""
    rows, is_complete = tracked_rows(cleanup).under(prefix), work.shows_all_spellings(prefix)
    size = TRACKED_KEYS_PER_QUERY if is_complete else MAX_LONE_KEYS
    while chunk := list(rows.between(after, None).values_list("key", flat=True)[:size]):
        after = chunk[-1]
        if is_complete:
            save_missing(
                work, chunk, span, work.next_position(range_index=span, tracked_after=after)
            )
        else:
            save_lone_keys(
                work,
                list(find_unlisted_keys(work, chunk).values()),
                range_index=span,
                tracked_after=after,
            )
        work.check_deadline()
    cleanup.renew_after_progress(
        position=work.next_position(range_index=span + 1, after="", tracked_after=None)
    )


def tracked_rows(cleanup: Cleanup) -> R2ObjectQuerySet:
    rows = R2Object.objects.in_bucket(cleanup.bucket)
    return rows.filter(project_id=cleanup.project_id).order_by("key")


def save_missing(work: Turn, keys: Iterable[str], span: int | None, position: Position) -> None:
    """Items for these tracked keys, except those whose object is an item already."""
    cleanup, left = work.cleanup, find_unlisted_keys(work, keys)
    with transaction.atomic():
        rows = tracked_rows(cleanup).filter(key__any_of=left.values()) if left else ()
        new = [missing_item(cleanup, row, work.identity(row.key), span) for row in rows]
        cleanup.renew_after_progress(
            position=position, progress=progress.count_found(cleanup, map(vars, new))
        )
        save_items(new)


def find_unlisted_keys(work: Turn, keys: Iterable[str]) -> dict[str, str]:
    """Which of these keys, by identity, have an object that is no item."""
    if left := {work.identity(key): key for key in keys}:
        # Most are neighbours, and to name these would take three times as long. What is missed
        # is not saved either, as there is one item for an object.
        items = work.cleanup.items.filter(escaped=False).order_by("identity")
        near = items.filter(identity__gte=min(left), identity__lte=max(left))[: len(left)]
        for identity in near.values_list("identity", flat=True):
            left.pop(identity, None)
    return left


def missing_item(cleanup: Cleanup, row: R2Object, identity: str, span: int | None) -> CleanupItem:
    return CleanupItem(
        cleanup=cleanup,
        key=row.key,
        identity=identity,
        range_index=span,
        project_id=row.project_id,
        size=row.size,
        etag=row.etag,
        last_modified=row.last_modified,
        found_in=FoundIn.TRACKED,
        owner_evidence=_("tracked, and not in the listing"),
    )


def discover_outside(work: Turn) -> None:
    """Rows of the project that no prefix covers: each key's own place is listed."""
    cleanup = work.cleanup
    rows = tracked_rows(cleanup).outside(cleanup.listed_prefixes)
    after = cleanup.position.outside_after
    while chunk := list(rows.between(after, None).values_list("key", flat=True)[:MAX_LONE_KEYS]):
        after = chunk[-1]
        save_lone_keys(work, chunk, range_index=len(cleanup.listed_prefixes), outside_after=after)
        work.check_deadline()


def save_lone_keys(work: Turn, keys: Sequence[str], **where: object) -> None:
    """Items for these tracked keys, each looked up in all its spellings."""
    cleanup = work.cleanup
    found = work.find_objects(keys) if keys else {}
    here = [found[work.identity(key)] for key in keys if work.identity(key) in found]
    items = judge_page(work, here, None)
    with transaction.atomic():
        cleanup.renew(progress=progress.count_found(cleanup, map(vars, items)))
        save_items(items)
    left = [key for key in keys if work.identity(key) not in found]
    save_missing(work, left, None, work.next_position(**where))


def judge_page(work: Turn, page: Sequence[ListedObject], span: int | None) -> list[CleanupItem]:
    """The listed objects that are the project's, or may be, as items; with a few queries in all."""
    return [CleanupItem(**values) for values in item_values(work, page, span)]


def item_values(
    work: Turn, page: Sequence[ListedObject], span: int | None
) -> Iterator[dict[str, Any]]:
    """The same as values of the items' columns, which takes a fraction of the time."""
    cleanup = work.cleanup
    same = {field.attname: field.get_default() for field in CleanupItem._meta.concrete_fields}
    same |= {"cleanup_id": cleanup.pk, "range_index": span}
    same["last_seen_at"] = same["changed_at"] = timezone.now()
    asked = cleanup.bucket, page, work.project, work.identity, asking_filter(cleanup)
    for listed, rows, verdict in judge_listed(*asked):
        if verdict.ownership is not Ownership.OTHER_PROJECT:
            yield same | listed_values(work, listed, rows, verdict, span)


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


def listed_values(
    work: Turn,
    listed: ListedObject,
    rows: Sequence[TrackingRow],
    verdict: Verdict,
    span: int | None,
) -> dict[str, Any]:
    key, outcome, reason = escape_key(listed.key), Outcome.TO_DELETE, verdict.reason
    escaped = not is_storable(listed.key)
    if verdict.ownership is Ownership.IN_DOUBT:
        outcome = Outcome.KEPT
    elif left_out := left_out_by_discovery(work.cleanup, rows, span):
        outcome, reason = Outcome.KEPT, left_out
    elif escaped:
        outcome = Outcome.FAILED
        reason = _("No request can name this key. Delete it in the Cloudflare dashboard.")
    return {
        "key": key,
        "escaped": escaped,
        "identity": work.identity(key),
        "project_id": rows[0].project_id if rows else work.cleanup.project_id,
        "size": listed.size,
        "etag": listed.etag,
        "last_modified": listed.last_modified,
        "found_in": FoundIn.BOTH if rows else FoundIn.LISTED,
        "owner_evidence": verdict.evidence,
        "reason": reason,
        "outcome": outcome,
    }


def left_out_by_discovery(cleanup: Cleanup, rows: Sequence[TrackingRow], span: int | None) -> str:
    """Why the chosen discovery leaves this object out, or nothing. It becomes an item all the same,
    or no count would include the leftover file."""
    tracked = any(row.project_id == cleanup.project_id for row in rows)
    if cleanup.discovery == Discovery.TRACKED and not tracked:
        left_out = _("Kept: the cleanup covers tracked files only, and this file is not tracked.")
    elif cleanup.discovery == Discovery.LISTED and span is None:
        left_out = _("Kept: the cleanup covers listed prefixes only, and none contains this file.")
    else:
        return ""
    return left_out + " " + _("To delete it, run a cleanup of tracked and listed files.")


def save_items(items: list[CleanupItem]) -> None:
    insert_new_rows(items)
