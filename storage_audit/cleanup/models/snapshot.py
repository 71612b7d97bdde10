"""The tables of snapshots: the rows that a delete() call deleted, for as long as it can be undone.

They hold what the site's tables held. No page, API, log or export shows them, but for the names by
which people look for a deleted project.
"""

import uuid

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.fields import BytewiseTextField


class Snapshot(models.Model):
    class Obstacle(models.TextChoices):
        """Why there is nothing to restore."""

        TOO_LARGE = "too_large", _("too many rows or bytes")
        DATABASE_CASCADE = (
            "database_cascade",
            _("the database deletes rows that Django does not see"),
        )
        UNREADABLE_VALUES = "unreadable_values", _("a field's values cannot be written as text")
        RESTORED = "restored", _("already restored")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now)
    unavailable = models.CharField(max_length=20, choices=Obstacle, blank=True)
    rows = models.PositiveIntegerField(default=0)
    size = models.PositiveBigIntegerField(default=0)
    # The latest migration of each app with rows here; empty for one without migrations.
    migrations = models.JSONField(default=dict)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.pk)

    def empty(self, obstacle: str) -> None:
        """Delete all rows and files that it holds, and record why."""
        SnapshotChunk.objects.filter(snapshot=self).delete()
        SnapshotFile.objects.filter(snapshot=self).delete()
        self.unavailable = obstacle
        self.save(update_fields=["unavailable", "rows", "size", "migrations"])


class SnapshotChunk(models.Model):
    """Some rows of one table. With a `field`, rows that stay: those whose link the deletion
    changed, each with the old and the new value."""

    snapshot = models.ForeignKey(Snapshot, models.CASCADE, related_name="chunks")
    number = models.PositiveIntegerField()
    model = models.TextField()
    field = models.TextField(blank=True)
    keys = models.JSONField()
    rows = models.TextField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["snapshot", "number"], name="one_chunk_of_a_number"),
        ]
        indexes = [models.Index(fields=["model", "field"], name="chunks_of_a_table")]

    def __str__(self) -> str:
        return f"{self.model} {self.number}"


class SnapshotFile(models.Model):
    """A key that a row in a snapshot names, so that another deletion's cleanup keeps the file."""

    snapshot = models.ForeignKey(Snapshot, models.CASCADE, related_name="files")
    key = BytewiseTextField()
    row = models.TextField()

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["key"], name="snapshot_file_key")]

    def __str__(self) -> str:
        return self.key


class SnapshotName(models.Model):
    """What a deleted project was called, such as its title, so that people find it."""

    snapshot = models.ForeignKey(Snapshot, models.CASCADE, related_name="names")
    project_id = BytewiseTextField()
    name = models.TextField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
