"""Rows that say what the bucket holds. A backfilled row is a reading written down, never evidence
of who owns the object."""

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
    Identity,
    ListingOutOfOrder,
    before,
    entry_pages_from,
    find,
    pages_in_any_order,
    spellings,
)
from storage_audit.bucket.s3 import Listed, listed
from storage_audit.cleanup.models import CleanupItem
from storage_audit.cleanup.objects_in_hand import select_marked
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner
from storage_audit.ownership.owner import is_same, is_unconfirmed, same_time, told_by
from storage_audit.tracking.bulk_insert import line, load
from storage_audit.tracking.recognise import Seen

Source, State = R2Object.Source, R2Object.State
CHANGEABLE = [
    "project_id",
    "scene_id",
    "layout",
    "plain_under",
    "file_type",
    "size",
    "etag",
    "last_modified",
    "state",
    "upload_id",
    "updated_at",
]
# In the order of `new_lines`.
NAMES = [
    "key",
    "size",
    "etag",
    "last_modified",
    "project_id",
    "scene_id",
    "layout",
    "plain_under",
    "file_type",
]
# The second look at new objects: so many keys a thread at a time, in so many threads.
CHUNK = 1000
LOOKS = 5


def described(owner: Owner) -> dict[str, Any]:
    reading = owner.reading
    return {
        "project_id": owner.project_id,
        "scene_id": (reading and reading.scene) or "",
        "layout": reading.layout if reading else "",
        "plain_under": owner.plain_under,
        "file_type": reading.file_type[:40] if reading else "",
    }


def bring_up_to_date(seen: Seen) -> bool:
    """Make the row, in memory, what the bucket shows; whether that changed anything."""
    row, listed = seen.row, seen.listed
    assert row is not None
    if told_by(row) and is_unconfirmed(row) and seen.owner.project_id != row.project_id:
        # A row that was confirmed would be evidence of an owner whom nobody can tell.
        return False
    values: dict[str, Any] = {"state": State.STORED, "plain_under": seen.owner.plain_under}
    if row.source == Source.BACKFILL:
        values |= described(seen.owner)
    if not is_same(row, listed):
        values |= facts(listed)
        if row.source == Source.ADOPTED:
            # A person decided on another object: this one counts as uploaded since.
            values["upload_id"] = row.upload_id or uuid4()
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return bool(changed)


def facts(listed: Listed) -> dict[str, Any]:
    return {"size": listed.size, "etag": listed.etag, "last_modified": listed.last_modified}


def update(changed: Collection[R2Object]) -> int:
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
        R2Object.objects.bulk_update(still, CHANGEABLE, batch_size=200)
    return len(still)


def difference(seen: Seen) -> str:
    """In what the object is not the one of its row, or nothing."""
    row, listed = seen.row, seen.listed
    assert row is not None
    if row.state in (State.UPLOADING, State.UPLOAD_FAILED) or row.size is None:
        return _("its upload seemed to fail, and the object is there")
    if row.size != listed.size:
        return _("%(row)s bytes by its row, %(listed)s in the bucket") % {
            "row": row.size,
            "listed": listed.size,
        }
    if row.etag != listed.etag:
        return _("same size, other content: the ETag is not that of its row")
    return "" if same_time(row, listed) else _("written again since, with the same content")


def is_as_tracked(seen: Seen) -> bool:
    """Or what is in hand will see to it."""
    return seen.in_hand or (seen.row is not None and not difference(seen))


def add(
    bucket: str,
    new: Sequence[Seen],
    identity: Identity,
    see_marker: Callable[[], object],
    after_page: Callable[[], None] = lambda: None,
) -> tuple[int, set[str]]:
    """Write rows of new objects: see `add_lines`."""
    keys = [one.listed.key for one in new]
    return add_lines(bucket, keys, new_lines(new, identity), identity, see_marker, after_page)


def add_lines(
    bucket: str,
    keys: Sequence[str],
    lines: Sequence[str],
    identity: Identity,
    see_marker: Callable[[], object],
    after_page: Callable[[], None] = lambda: None,
) -> tuple[int, set[str]]:
    """Write new rows, and take back those whose object went in the meantime; gives how many there
    are, and the keys of the latter. `after_page` is called after each page that is listed, in any
    thread, and `see_marker` after the last one: unless it returns, no page is believed.

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
        added = load(R2Object, NAMES, lines, same, ["bucket", "key"])
    as_added = R2Object.objects.in_bucket(bucket).filter(
        source=Source.BACKFILL, state=State.STORED, updated_at=now
    )
    doubtful = {identity(key) for key in keys}
    try:
        marked = being_deleted(bucket, doubtful)
        there = still_there(bucket, keys, identity, after_page)
        see_marker()
        doubtful = marked | (doubtful - there)
    finally:
        # All of them when the second look failed: then nothing is known of any.
        for some in in_chunks(sorted(doubtful)):
            added -= as_added.filter(key__in=some).forget()
    return added, doubtful


def new_lines(new: Iterable[Seen], identity: Identity) -> list[str]:
    adapt, lines = connection.ops.adapt_datetimefield_value, []
    for each, _row, owner, *_rest in new:
        # What the store folds to one object is one row, in the spelling of new uploads.
        what = (identity(each.key), each.size, each.etag, adapt(each.last_modified))
        lines.append(line([*what, *described(owner).values()]))
    return lines


def still_there(
    bucket: str, keys: Sequence[str], identity: Identity, after_page: Callable[[], None]
) -> set[str]:
    """Which of these the bucket still lists, by identity."""
    # Not more at once: each holds a page, of about a megabyte.
    with ThreadPoolExecutor(LOOKS) as threads:
        look = partial(look_again, bucket, identity=identity, after_page=after_page)
        return set().union(*threads.map(look, in_chunks(sorted(keys))))


def look_again(
    bucket: str, keys: Sequence[str], identity: Identity, after_page: Callable[[], None]
) -> Collection[str]:
    try:
        there = set(map(identity, at_a_glance(bucket, keys, after_page)))
        left = [key for key in keys if identity(key) not in there]
        return there.union(find(bucket, left, identity, after_page)) if left else there
    except ListingOutOfOrder:
        # The store has an order of its own.
        return find_in_any_order(bucket, keys, identity, after_page).keys()


def at_a_glance(bucket: str, keys: Sequence[str], after_page: Callable[[], None]) -> set[str]:
    """Those of the keys, which are in order, that one page shows: mostly all. Empty where
    `find` must look at their folders as well."""
    if "//" in "/".join(["", *keys]):
        return set()
    page = next(entry_pages_from(bucket, "", before(keys[0])))
    after_page()
    # The texts of `keys`, so that those of the page can go.
    return set(page.keys).intersection(keys)


def find_each(
    bucket: str, keys: Sequence[str], identity: Identity, after_page: Callable[[], None]
) -> dict[str, Listed]:
    """The objects of these keys that the bucket still lists, by identity."""
    found = dict[str, Listed]()
    with ThreadPoolExecutor(LOOKS) as threads:
        look = partial(find, bucket, identity=identity, after_page=after_page)
        for some in threads.map(look, in_chunks(sorted(keys))):
            found |= some
    return found


def find_in_any_order(
    bucket: str, keys: Sequence[str], identity: Identity, after_page: Callable[[], None]
) -> dict[str, Listed]:
    """The same where a key has no place to look at but itself."""
    found = dict[str, Listed]()
    for key in keys:
        for name in spellings(key, identity):
            for page in pages_in_any_order(bucket, name):
                after_page()
                found |= {identity(key): listed(entry) for entry in page if entry.key == name}
    return found


def being_deleted(bucket: str, identities: Collection[str]) -> set[str]:
    """Those that a cleanup is deleting, or that the store may still be deleting."""
    items = CleanupItem.objects.filter(operation__bucket=bucket).order_by()
    marked, under_way = select_marked(items), items.maybe_under_way()
    # Mostly there are none, and one query says so.
    first = Q(pk=Subquery(marked.values("pk")[:1])) | Q(pk=Subquery(under_way.values("pk")[:1]))
    if not CleanupItem.objects.filter(first).exists():
        return set()
    found = (each.filter(identity__any_of=identities) for each in (marked, under_way))
    return {identity for same in found for identity in same.values_list("identity", flat=True)}


def in_chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK))
