"""Which tracked objects an upload or a deletion has in hand, and which are at rest."""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.clocks import lately, maybe_since
from storage_audit.conf import conf
from storage_audit.models import AT_REST, ObjectState, R2Object, R2ObjectQuerySet, barred, under_way


def is_in_hand() -> Q:
    """Rows of an upload or a deletion under way: a cleanup that is not over has its own in hand
    for as long as it takes. The application's own deletions mark no row, but an item."""
    items = CleanupItem.objects
    mine = items.filter(operation__bucket=OuterRef("bucket"), identity=OuterRef("key"))
    marked, sent = Exists(select_marked(mine)), Exists(mine.maybe_under_way())
    return under_way() | barred() | Q(state=ObjectState.DELETING) & Q(marked) | Q(sent)


def exclude_in_hand(rows: R2ObjectQuerySet) -> R2ObjectQuerySet:
    return rows.exclude(is_in_hand())


def select_stored(rows: R2ObjectQuerySet) -> R2ObjectQuerySet:
    """Rows at rest of which an upload has stored an object, though a later one may have failed."""
    return exclude_in_hand(rows).filter(Q(state=ObjectState.STORED) | ~Q(etag=""))


def select_changing(rows: R2ObjectQuerySet, since: datetime | None) -> R2ObjectQuerySet:
    """Rows that are in hand, or that were written since."""
    return rows.filter(is_in_hand() | maybe_since("updated_at", since))


def select_marked(items: CleanupItemQuerySet) -> CleanupItemQuerySet:
    """Items that a cleanup is deleting. The mark of a cleanup that is over was left behind by a
    worker that died, and holds as long as a request may take."""
    cleanups = CleanupOperation.objects.covering()
    recent = lately("changed_at", conf().deletion_timeout)
    return items.filter(recent | Q(operation__in=cleanups), outcome=CleanupItem.Outcome.DELETING)


def find_in_hand(rows: Iterable[R2Object]) -> set[int]:
    """The ids of those that have not been at rest since they were read."""
    rows, items = list(rows), CleanupItem.objects.all()
    found = {row.pk for row in rows if row.state not in AT_REST}
    stale = R2Object.objects.filter(pk__any_of=found).exclude(under_way() | barred())
    stale = stale.exclude(state__in=AT_REST)
    left = list(stale.only("bucket", "key")) if found else []
    idle = {row.pk for row in left} - select_marked(items).naming(left)
    return found - idle | items.maybe_under_way().naming(rows)
