"""The tables of cleanups, each with its queryset; the states and the lease."""

from storage_audit.cleanup.models.bulk_job import BulkJob, BulkJobNote
from storage_audit.cleanup.models.cleanup import Cleanup, CleanupQuerySet
from storage_audit.cleanup.models.event import CleanupEvent
from storage_audit.cleanup.models.item import CleanupItem, CleanupItemQuerySet, DeletedRow
from storage_audit.cleanup.models.pause import DeletionPause
from storage_audit.cleanup.models.snapshot import (
    Snapshot,
    SnapshotChunk,
    SnapshotFile,
    SnapshotName,
)

__all__ = [
    "CleanupItem",
    "CleanupItemQuerySet",
    "Cleanup",
    "CleanupQuerySet",
    "BulkJob",
    "BulkJobNote",
    "CleanupEvent",
    "DeletedRow",
    "DeletionPause",
    "Snapshot",
    "SnapshotChunk",
    "SnapshotFile",
    "SnapshotName",
]
