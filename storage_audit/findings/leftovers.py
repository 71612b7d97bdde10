"""What verifications found of deleted projects, object by object."""

from typing import Any

from django.db.models import Exists, Max, OuterRef, QuerySet

from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.needs_attention import find_verifications_without_cleanup
from storage_audit.findings.models import Finding


def find_leftovers() -> CleanupItemQuerySet:
    """What no open cleanup covers and nobody keeps, without the objects that have an open finding
    too: those are counted as findings."""
    here = {"bucket": OuterRef("cleanup__bucket"), "escaped": OuterRef("escaped")}
    found = Finding.objects.orphaned().filter(**here)
    ignored = Finding.objects.keeping_objects().filter(size=OuterRef("size"), etag=OuterRef("etag"))
    kept = ignored.filter(**here)
    return CleanupItem.objects.filter(
        # R2 lists a key as it was last spelled, which may be neither.
        ~Exists(found.filter(key=OuterRef("key"))),
        ~Exists(found.filter(key=OuterRef("identity"))),
        ~Exists(kept.filter(key=OuterRef("key"))),
        ~Exists(kept.filter(key=OuterRef("identity"))),
        cleanup__in=find_verifications_without_cleanup(),
        outcome=CleanupItem.Outcome.FAILED,
    )


def group_by_object(items: CleanupItemQuerySet) -> QuerySet[Any, Any]:
    """Each object once, though several cleanups may have it, with its latest item."""
    objects = items.order_by().values("cleanup__bucket", "identity", "escaped")
    return objects.annotate(latest=Max("pk"), bytes=Max("size", default=0))
