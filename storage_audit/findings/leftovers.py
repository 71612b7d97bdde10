"""What verifications found of deleted projects, object by object."""

from typing import Any

from django.db.models import Exists, Max, OuterRef, QuerySet

from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.needs_attention import find_verifications_without_cleanup
from storage_audit.findings.models import Finding


def find_leftovers() -> CleanupItemQuerySet:
    """What no open cleanup covers, without the objects that have an open finding too: those are
    counted as findings."""
    orphaned = Finding.objects.orphaned()
    found = orphaned.filter(bucket=OuterRef("cleanup__bucket"), escaped=OuterRef("escaped"))
    return CleanupItem.objects.filter(
        # R2 lists a key as it was last spelled, which may be neither.
        ~Exists(found.filter(key=OuterRef("key"))),
        ~Exists(found.filter(key=OuterRef("identity"))),
        cleanup__in=find_verifications_without_cleanup(),
        outcome=CleanupItem.Outcome.FAILED,
    )


def group_by_object(items: CleanupItemQuerySet) -> QuerySet[Any, Any]:
    """Each object once, though several cleanups may have it, with its latest item."""
    objects = items.order_by().values("cleanup__bucket", "identity", "escaped")
    return objects.annotate(latest=Max("pk"), bytes=Max("size", default=0))
