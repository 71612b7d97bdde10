"""Which tracked objects an upload or a deletion is changing, and which are stable."""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.clocks import time_maybe_since, time_within
from storage_audit.conf import conf
from storage_audit.models import (
    STABLE_STATES,
    ObjectState,
    R2Object,
    R2ObjectQuerySet,
    deleting_rows,
    uploading_rows,
)


def is_in_hand() -> Q:
    """Rows of an upload or a deletion under way. An open cleanup has its rows in hand for as long
    as it takes. The application's own deletions mark an item instead of a row."""
    items = CleanupItem.objects
    mine = items.filter(cleanup__bucket=OuterRef("bucket"), identity=OuterRef("key"))
    marked, sent = Exists(select_marked(mine)), Exists(mine.maybe_under_way())
    return uploading_rows() | deleting_rows() | Q(state=ObjectState.DELETING) & Q(marked) | Q(sent)


def exclude_in_hand(rows: R2ObjectQuerySet) -> R2ObjectQuerySet:
    return rows.exclude(is_in_hand())


def select_stored(rows: R2ObjectQuerySet) -> R2ObjectQuerySet:
    """Stable rows whose object an upload has stored, though a later one may have failed."""
    return exclude_in_hand(rows).filter(Q(state=ObjectState.STORED) | ~Q(etag=""))


def select_changing(rows: R2ObjectQuerySet, since: datetime | None) -> R2ObjectQuerySet:
    """Rows that are in hand, or that were written since."""
    return rows.filter(is_in_hand() | time_maybe_since("updated_at", since))


def select_marked(items: CleanupItemQuerySet) -> CleanupItemQuerySet:
    """Items that a cleanup is deleting. If the cleanup is over, its worker died, and the mark holds
    as long as a request may take."""
    cleanups = Cleanup.objects.covering()
    recent = time_within("changed_at", conf().deletion_timeout)
    return items.filter(recent | Q(cleanup__in=cleanups), outcome=CleanupItem.Outcome.DELETING)


def find_in_hand(rows: Iterable[R2Object]) -> set[int]:
    """The ids of the rows that are not stable, or were not when they were read."""
    rows, items = list(rows), CleanupItem.objects.all()
    found = {row.pk for row in rows if row.state not in STABLE_STATES}
    stale = R2Object.objects.filter(pk__any_of=found).exclude(uploading_rows() | deleting_rows())
    stale = stale.exclude(state__in=STABLE_STATES)
    left = list(stale.only("bucket", "key")) if found else []
    idle = {row.pk for row in left} - select_marked(items).row_ids_named(left)
    return found - idle | items.maybe_under_way().row_ids_named(rows)
