"""What a project has in the bucket: tracked and listed keys, each with its owner and the reason.

Written page by page into the cleanup's items, so that another worker can go on where one stops, and
memory does not grow with the project.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import escape_key, is_storable
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import progress
from storage_audit.cleanup.judge_objects import judge_listed
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.open_decisions import (
    asking_filter,
)
from storage_audit.cleanup.position_basis import listing_position
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS, Turn
from storage_audit.fields import insert_new_rows, insert_values
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.ownership_rule import (
    Ownership,
    Verdict,
    get_key_formats,
)
from storage_audit.ownership.row_evidence import TrackingRow

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
Discovery = Cleanup.Discovery
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
