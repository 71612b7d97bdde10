"""The tables of cleanups, each with its queryset; the states and the lease."""

from storage_audit.cleanup.models.bulk_job import Job
from storage_audit.cleanup.models.cleanup import CleanupOperation, CleanupOperationQuerySet
from storage_audit.cleanup.models.event import OperationEvent
from storage_audit.cleanup.models.item import CleanupItem, CleanupItemQuerySet, Row

__all__ = [
    "CleanupItem",
    "CleanupItemQuerySet",
    "CleanupOperation",
    "CleanupOperationQuerySet",
    "Job",
    "OperationEvent",
    "Row",
]
