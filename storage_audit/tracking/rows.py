"""Rows that say what the bucket holds. A backfilled row only repeats what the key says: it is never
evidence of who owns the object."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

from django.db import connection, transaction
from django.db.models import Q, Subquery
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import (
    KeyIdentity,
    ListingOutOfOrder,
    entry_pages_from,
    find_keys,
    start_before,
    tracked_spellings,
    unordered_pages,
)
from storage_audit.bucket.s3 import ListedObject, listed_object
from storage_audit.cleanup.changing_objects import select_marked
from storage_audit.cleanup.models import CleanupItem
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner
from storage_audit.ownership.row_evidence import (
    has_same_time,
    is_same_object,
    is_unconfirmed,
    row_provenance,
)
from storage_audit.tracking.bulk_insert import format_line, insert_lines
from storage_audit.tracking.recognise import RecognisedObject

Source, State = R2Object.Source, R2Object.State
CHANGEABLE_FIELDS = [
    "project_id",
    "scene_id",
    "key_format",
    "unambiguous_under",
    "file_type",
    "size",
    "etag",
    "last_modified",
    "state",
    "upload_id",
    "updated_at",
]
# In the order of `new_lines`.
LINE_FIELDS = [
    "key",
    "size",
    "etag",
    "last_modified",
    "project_id",
    "scene_id",
    "key_format",
    "unambiguous_under",
    "file_type",
]
# New objects are listed again: so many keys in a thread at a time, in so many threads.
KEYS_PER_THREAD = 1000
LISTING_THREADS = 5


def owner_values(owner: Owner) -> dict[str, Any]:
    parsed_key = owner.parsed_key
    return {
        "project_id": owner.project_id,
        "scene_id": (parsed_key and parsed_key.scene) or "",
        "key_format": parsed_key.key_format if parsed_key else "",
        "unambiguous_under": owner.unambiguous_under,
        "file_type": parsed_key.file_type[:40] if parsed_key else "",
    }


def refresh_row(seen: RecognisedObject) -> bool:
    """Update the row, in memory, to what the bucket shows; whether that changed anything."""
    row, listed = seen.row, seen.listed
    assert row is not None
    if row_provenance(row) and is_unconfirmed(row) and seen.owner.project_id != row.project_id:
        # A confirmed row would be evidence of an owner that nobody knows.
        return False
    values: dict[str, Any] = {
        "state": State.STORED,
        "unambiguous_under": seen.owner.unambiguous_under,
    }
    if row.source == Source.BACKFILL:
        values |= owner_values(seen.owner)
    if not is_same_object(row, listed):
        values |= object_values(listed)
        if row.source == Source.ASSIGNED:
            # A person decided on another object: this one counts as uploaded since.
            values["upload_id"] = row.upload_id or uuid4()
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return bool(changed)


def object_values(listed: ListedObject) -> dict[str, Any]:
    return {"size": listed.size, "etag": listed.etag, "last_modified": listed.last_modified}


def update_rows(changed: Collection[R2Object]) -> int:
    """Write those rows that are still as they were read: an upload or a cleanup knows better."""
    if not changed:
        return 0
    with transaction.atomic():
        rows = R2Object.objects.filter(pk__in=[row.pk for row in changed]).select_for_update()
        as_they_are = dict(rows.values_list("pk", "updated_at"))
        still = [row for row in changed if as_they_are.get(row.pk) == row.updated_at]
        now = timezone.now()
        for row in still:
            row.updated_at = now
        R2Object.objects.bulk_update(still, CHANGEABLE_FIELDS, batch_size=200)
    return len(still)


def row_mismatch(seen: RecognisedObject) -> str:
    """In what the object differs from its row, or nothing."""
    row, listed = seen.row, seen.listed
    assert row is not None
    if row.state in (State.UPLOADING, State.UPLOAD_FAILED) or row.size is None:
        return _("tracked as not uploaded, but in the bucket")
    if row.size != listed.size:
        return _("tracked with %(row)s bytes, has %(listed)s in the bucket") % {
            "row": row.size,
            "listed": listed.size,
        }
    if row.etag != listed.etag:
        return _("same size, other content (the ETag differs)")
    return "" if has_same_time(row, listed) else _("same content, but written again since")


def is_up_to_date(seen: RecognisedObject) -> bool:
    """Whether the row fits its object, or the upload or deletion under way will update it."""
    return seen.in_hand or (seen.row is not None and not row_mismatch(seen))


def add_rows(
    bucket: str,
    new: Sequence[RecognisedObject],
    identity: KeyIdentity,
    require_marker: Callable[[], object],
    after_page: Callable[[], None] = lambda: None,
) -> tuple[int, set[str]]:
    """Write rows of new objects: see `add_lines`."""
    keys = [one.listed.key for one in new]
    return add_lines(bucket, keys, new_lines(new, identity), identity, require_marker, after_page)


def add_lines(
    bucket: str,
    keys: Sequence[str],
    lines: Sequence[str],
    identity: KeyIdentity,
    require_marker: Callable[[], object],
    after_page: Callable[[], None] = lambda: None,
) -> tuple[int, set[str]]:
    """Write new rows, and delete those again whose object went in the meantime. Returns how many
    are left, and the keys of the deleted ones. `after_page` is called after each page, in any
    thread, and `require_marker` after the last one: unless it returns, no page is believed.

    The order matters: the rows are committed first, then the marks of cleanups are read, then the
    bucket is listed again. So whatever deletes such an object later sees its row, and whatever
    deleted it before, or is about to, is seen here.
    """
    if not keys:
        return 0, set()
    now = timezone.now()
    with transaction.atomic(durable=True):
        at = connection.ops.adapt_datetimefield_value(now)
        same = {
            "bucket": bucket,
            "source": Source.BACKFILL.value,
            "state": State.STORED.value,
            "created_at": at,
            "updated_at": at,
        }
        added = insert_lines(R2Object, LINE_FIELDS, lines, same, ["bucket", "key"])
    as_added = R2Object.objects.in_bucket(bucket).filter(
        source=Source.BACKFILL, state=State.STORED, updated_at=now
    )
    doubtful = {identity(key) for key in keys}
    try:
        marked = find_being_deleted(bucket, doubtful)
        there = find_listed_keys(bucket, keys, identity, after_page)
        require_marker()
        doubtful = marked | (doubtful - there)
    finally:
        # All of them when the second listing failed: then nothing is known of any.
        for some in key_batches(sorted(doubtful)):
            added -= as_added.filter(key__in=some).delete_without_signals()
    return added, doubtful


def new_lines(new: Iterable[RecognisedObject], identity: KeyIdentity) -> list[str]:
    adapt, lines = connection.ops.adapt_datetimefield_value, []
    for each, _row, owner, *_rest in new:
        # What the store folds to one object is one row, in the spelling of new uploads.
        what = (identity(each.key), each.size, each.etag, adapt(each.last_modified))
        lines.append(format_line([*what, *owner_values(owner).values()]))
    return lines


def find_listed_keys(
    bucket: str, keys: Sequence[str], identity: KeyIdentity, after_page: Callable[[], None]
) -> set[str]:
    """Which of these the bucket still lists, by identity."""
    # Not more at once: each holds a page, of about a megabyte.
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        look = partial(relist_keys, bucket, identity=identity, after_page=after_page)
        return set().union(*threads.map(look, key_batches(sorted(keys))))


def relist_keys(
    bucket: str, keys: Sequence[str], identity: KeyIdentity, after_page: Callable[[], None]
) -> Collection[str]:
    try:
        there = set(map(identity, find_on_page(bucket, keys, after_page)))
        left = [key for key in keys if identity(key) not in there]
        return there.union(find_keys(bucket, left, identity, after_page)) if left else there
    except ListingOutOfOrder:
        # The store has an order of its own.
        return find_in_any_order(bucket, keys, identity, after_page).keys()


def find_on_page(bucket: str, keys: Sequence[str], after_page: Callable[[], None]) -> set[str]:
    """Which of the keys, which are in order, one page shows: mostly all. Empty where `find_keys`
    must list their folders as well."""
    if "//" in "/".join(["", *keys]):
        return set()
    page = next(entry_pages_from(bucket, "", start_before(keys[0])))
    after_page()
    # The strings of `keys`, so that those of the page can be freed.
    return set(page.keys).intersection(keys)


def find_in_threads(
    bucket: str, keys: Sequence[str], identity: KeyIdentity, after_page: Callable[[], None]
) -> dict[str, ListedObject]:
    """The objects of these keys that the bucket still lists, by identity."""
    found = dict[str, ListedObject]()
    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        look = partial(find_keys, bucket, identity=identity, after_page=after_page)
        for some in threads.map(look, key_batches(sorted(keys))):
            found |= some
    return found


def find_in_any_order(
    bucket: str, keys: Sequence[str], identity: KeyIdentity, after_page: Callable[[], None]
) -> dict[str, ListedObject]:
    """The same where the only way to find a key is to list it as a prefix."""
    found = dict[str, ListedObject]()
    for key in keys:
        for name in tracked_spellings(key, identity):
            for page in unordered_pages(bucket, name):
                after_page()
                found |= {
                    identity(key): listed_object(entry) for entry in page if entry.key == name
                }
    return found


def find_being_deleted(bucket: str, identities: Collection[str]) -> set[str]:
    """Which of these a cleanup is deleting, or the store may still be deleting."""
    items = CleanupItem.objects.filter(cleanup__bucket=bucket).order_by()
    marked, under_way = select_marked(items), items.maybe_under_way()
    # Mostly there are none, and one query says so.
    first = Q(pk=Subquery(marked.values("pk")[:1])) | Q(pk=Subquery(under_way.values("pk")[:1]))
    if not CleanupItem.objects.filter(first).exists():
        return set()
    found = (each.filter(identity__any_of=identities) for each in (marked, under_way))
    return {identity for same in found for identity in same.values_list("identity", flat=True)}


def key_batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + KEYS_PER_THREAD] for start in range(0, len(keys), KEYS_PER_THREAD))
