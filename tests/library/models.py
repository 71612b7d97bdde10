"""An app whose rows name files in the bucket. Only `test_references.py` installs it."""

from typing import Any

from django.db import models
from storages.backends.s3 import S3Storage

from storage_audit.conf import conf
from storage_audit.models import Project
from storage_audit.storage import TrackedStorage, key_for


def clip_key(clip: Any, filename: str) -> str:
    return key_for(clip.project_id or "proj_none", scene="s1", filename=filename)


def projects_storage() -> TrackedStorage:
    return TrackedStorage(location="projects")


def other_storage() -> S3Storage:
    return S3Storage(bucket_name="other", endpoint_url=conf().endpoint_url, location="projects")


class HidingManager(models.Manager[Any]):
    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().none()


class LibraryRow(models.Model):
    class Meta:
        abstract = True
        app_label = "library"

    def __str__(self) -> str:
        return str(self.pk)


class Clip(LibraryRow):
    project = models.ForeignKey(Project, models.CASCADE, null=True, related_name="+")
    file = models.FileField(upload_to=clip_key, max_length=1024, db_index=True)


class Still(LibraryRow):
    """No key format matches its keys."""

    project = models.ForeignKey(Project, models.CASCADE, null=True, related_name="+")
    file = models.FileField(upload_to="stills/", max_length=1024, db_index=True)


class Poster(LibraryRow):
    """It outlives its project, and no index finds its keys."""

    project = models.ForeignKey(Project, models.SET_NULL, null=True, related_name="+")
    file = models.FileField(upload_to="posters/", max_length=1024)


class Copy(LibraryRow):
    file = models.FileField(storage=projects_storage, max_length=1024, db_index=True)
    backup = models.FileField(storage=other_storage, max_length=1024)
    note = models.TextField()
    data = models.JSONField(default=dict)

    objects = HidingManager()

    class Meta(LibraryRow.Meta):
        abstract = False
        base_manager_name = "objects"


class Legacy(LibraryRow):
    """Django neither creates nor drops its table."""

    file = models.FileField(upload_to="legacy/", max_length=1024, unique=True)

    class Meta(LibraryRow.Meta):
        abstract = False
        managed = False


def keys_in_data(keys: list[str]) -> list[tuple[str, str]]:
    """For the setting REFERENCES."""
    copies: models.QuerySet[Copy] = models.QuerySet(Copy)
    named = ((row.data.get("key"), f"data of copy {row.pk}") for row in copies)
    return [(key, row) for key, row in named if key in keys]


class Invoice(LibraryRow):
    """The database checks its reference when it commits."""

    project = models.ForeignKey(Project, models.DO_NOTHING, related_name="+")
