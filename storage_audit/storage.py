"""The STORAGES backend: django-storages' S3 backend that records what it writes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from django.core.files.base import File
from django.core.files.storage import Storage
from django.db import connection
from django.utils import timezone
from django.utils.translation import gettext as _
from storages.backends.s3 import S3File, S3Storage
from storages.utils import clean_name

from storage_audit.audit.ownership import layouts
from storage_audit.bucket import listing, r2
from storage_audit.conf import conf
from storage_audit.models import CleanupItem, R2Object
from storage_audit.querysets import R2ObjectQuerySet

State = R2Object.State
T = TypeVar("T")


class KeyBeingDeleted(OSError):
    """A cleanup is deleting the object of this key. Save under another name, or later."""


def key_for(project_id: str, **fields: str) -> str:
    """The key for a new upload, from the one current layout, such as
    `key_for("proj_1", scene="s1", filename="take.mp4")`. Raises ValueError for a bad field."""
    return layouts().build(project_id, **fields)


class TrackedFile(S3File):
    """A file being written, whose row is confirmed when it is closed and not before."""

    def __init__(self, name: str, mode: str, storage: "TrackedStorage", upload: "Upload") -> None:
        super().__init__(name, mode, storage)
        self.upload = upload

    def close(self) -> None:
        if not self.closed:
            with self.upload.settled():
                super().close()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Upload nothing: S3File.close() would complete a file that its writer gave up."""
        self.upload.fail()
        if self._multipart is not None:
            self._multipart.abort()
        if self._file is not None:
            self._file.close()
        self._closed = True


class TrackedStorage(S3Storage):
    """Stores in the configured bucket, and keeps an R2Object row for each object."""

    def get_default_settings(self) -> dict[str, Any]:
        settings = conf()
        return {
            **super().get_default_settings(),
            "access_key": settings.access_key_id,
            "secret_key": settings.secret_access_key,
            "bucket_name": settings.bucket,
            "endpoint_url": settings.endpoint_url,
            "region_name": settings.region,
            "client_config": r2.client_config(attempts=4),
            "default_acl": None,
            "file_overwrite": False,
        }

    @property
    def connection(self) -> Any:
        resource = super().connection
        if not getattr(resource.meta.client, "prepared", False):
            r2.prepare(resource.meta.client)
            resource.meta.client.prepared = True
        return resource

    @property
    def bucket(self) -> Any:
        # Not kept on the instance, as django-storages does: threads share it, and boto3's
        # resources are not safe between threads.
        return self.connection.Bucket(self.bucket_name)

    def key(self, name: str) -> str:
        """The object's key for a name, as django-storages normalises it."""
        key: str = self._normalize_name(clean_name(name))
        return key

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        """New names are NFC, which is what R2 makes of them; a key being deleted is not free."""
        name = listing.nfc(name)
        if CleanupItem.objects.being_deleted(self.bucket_name, self.key(name)):
            return Storage.get_available_name(self, name, max_length)
        available: str = super().get_available_name(name, max_length)
        return available

    def exists(self, name: str) -> bool:
        being_deleted = CleanupItem.objects.being_deleted(self.bucket_name, self.key(name))
        return being_deleted or bool(super().exists(name))

    def _save(self, name: str, content: "File[Any]") -> str:
        with Upload(self.bucket_name, self.key(name)).begin().settled():
            saved: str = super()._save(name, content)
            return saved

    def _open(self, name: str, mode: str = "rb") -> S3File:
        if "w" not in mode:
            return super()._open(name, mode)
        upload = Upload(self.bucket_name, self.key(name)).begin()
        try:
            return TrackedFile(self.key(name), mode, self, upload)
        except BaseException:
            upload.fail()
            raise

    def delete(self, name: str) -> None:
        """Delete one of the application's own files now; its row goes once it is seen gone.

        Raises StoreError when that cannot be seen; the row then stays.
        """
        bucket, key = self.bucket_name, self.key(name)
        rows = R2Object.objects.in_bucket(bucket).filter(key=key)
        rows.update(state=State.DELETING, updated_at=timezone.now())
        try:
            super().delete(name)
            if listing.find(bucket, [key], listing.nfc):
                raise r2.Unavailable(_("%s is still in the bucket.") % key)
        except BaseException:
            rows.filter(state=State.DELETING).update(state=State.STORED)
            raise
        rows.filter(state=State.DELETING).forget()


class Upload:
    """One upload to one key: the row is there before the first byte, and says how it ended."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key, self.id = bucket, key, uuid4()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Do the upload within: afterwards the row says whether it succeeded."""
        try:
            yield
            self.confirm()
        except BaseException:
            self.fail()
            raise

    def begin(self) -> "Upload":
        """Raises KeyBeingDeleted. The row is written first and the cleanup's mark read after, as a
        cleanup marks first and reads the rows after: so at least one of the two sees the other."""
        durably(partial(intend, self.bucket, self.key, self.id))
        if CleanupItem.objects.being_deleted(self.bucket, self.key):
            self.fail()
            raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % self.key)
        return self

    def confirm(self) -> None:
        seen = r2.head(self.bucket, self.key)
        facts = {"size": seen.size, "etag": seen.etag, "last_modified": seen.last_modified}
        if not self._settle(State.STORED, **facts) and not self.rows.exists():
            # A cleanup saw no object, and took the row away, before this upload ended.
            durably(partial(intend, self.bucket, self.key, self.id))
            self._settle(State.STORED, **facts)

    def fail(self) -> None:
        self._settle(State.UPLOAD_FAILED)

    @property
    def rows(self) -> R2ObjectQuerySet:
        return R2Object.objects.in_bucket(self.bucket).filter(key=self.key)

    def _settle(self, state: str, **facts: Any) -> int:
        return durably(partial(settle, self.bucket, self.key, self.id, state, facts))


def intend(bucket: str, key: str, upload_id: UUID) -> None:
    """Record an upload that is about to start. Raises KeyBeingDeleted."""
    now = timezone.now()
    values = {
        "state": State.UPLOADING,
        "source": R2Object.Source.UPLOAD,
        "upload_id": upload_id,
        "updated_at": now,
        **says(key),
    }
    rows = R2Object.objects.in_bucket(bucket).filter(key=key)
    if rows.exclude(state=State.DELETING).update(**values):
        return
    if rows.exists():
        raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % key)
    R2Object.objects.bulk_create(
        [R2Object(bucket=bucket, key=key, **values)], ignore_conflicts=True
    )


def says(key: str) -> dict[str, Any]:
    """What a key says of its object, as row values; nothing when it may mean several projects."""
    readings = layouts().readings(key)
    if len({reading.project for reading in readings}) != 1:
        return {}
    reading = readings[0]
    return {
        "project_id": reading.project,
        "scene_id": reading.scene or "",
        "file_type": reading.file_type[:40],
        "layout": reading.layout,
    }


def settle(bucket: str, key: str, upload_id: UUID, state: str, facts: dict[str, Any]) -> int:
    mine = R2Object.objects.in_bucket(bucket).filter(key=key, upload_id=upload_id)
    return mine.update(state=state, updated_at=timezone.now(), **facts)


def durably(write: Callable[[], T]) -> T:
    """Write so that a rollback of the caller's transaction leaves the row: an object without a row
    is a stray. SQLite allows no second writer beside an open transaction; there the scan finds it.
    """
    if connection.vendor == "sqlite" or not connection.in_atomic_block:
        return write()

    def on_own_connection() -> T:
        try:
            return write()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(on_own_connection).result()
