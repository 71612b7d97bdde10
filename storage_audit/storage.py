"""The STORAGES backend: django-storages' S3 backend that records what it writes."""

import logging
import posixpath
from contextlib import suppress
from typing import Any

from django.core.files.base import File
from django.core.files.storage import Storage
from django.utils.translation import gettext as _
from storages.backends.s3 import S3File, S3Storage
from storages.utils import clean_name

from storage_audit.bucket import listing, s3
from storage_audit.conf import conf
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.tracking.delete_file import FileDeletion, folds_spellings, identity_for
from storage_audit.tracking.upload import KeyBeingDeleted, NameTaken, Upload, is_key_locked
from storage_audit.tracking.upload_rows import check_key, is_in_sqlite_transaction

__all__ = ["KeyBeingDeleted", "TrackedFile", "TrackedStorage", "key_for"]

logger = logging.getLogger(__name__)


def key_for(project_id: str, **fields: str) -> str:
    """The key for a new upload, from the one current key format, such as
    `key_for("proj_1", scene="s1", filename="take.mp4")`. Raises ValueError for a bad field."""
    return get_key_formats().build_key(project_id, **fields)


class TrackedFile(S3File):
    """A file being written, whose row is confirmed when it is closed and not before."""

    def __init__(self, name: str, mode: str, storage: "TrackedStorage", upload: Upload) -> None:
        super().__init__(name, mode, storage)
        self.upload = upload

    def close(self) -> None:
        if not self.closed:
            with self.upload.record_result():
                super().close()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Upload nothing: S3File.close() would complete a file that its writer gave up."""
        self.upload.fail()
        try:
            if self._multipart is not None:
                self._multipart.abort()
        except Exception:
            # The writer's own error is the one to report.
            shown = printable_text(self.upload.key)
            logger.exception("The unfinished upload of %s could not be aborted.", shown)
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
            "client_config": s3.client_config(attempts=3),
            "default_acl": None,
            "file_overwrite": False,
            # A key format is a whole key; AWS_LOCATION is meant for another storage.
            "location": "",
        }

    @property
    def connection(self) -> Any:
        resource = super().connection
        if not getattr(resource.meta.client, "prepared", False):
            s3.prepare_client(resource.meta.client)
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
        name = listing.nfc_key(name)
        if is_key_locked(self.bucket_name, self.key(name)):
            return Storage.get_available_name(self, name, max_length)
        available: str = super().get_available_name(name, max_length)
        return available

    def exists(self, name: str) -> bool:
        return is_key_locked(self.bucket_name, self.key(name)) or bool(super().exists(name))

    def _save(self, name: str, content: "File[Any]") -> str:
        name, upload = self.reserve_name(name)
        with upload.record_result():
            saved: str = super()._save(name, content)
            return saved

    def reserve_name(self, name: str) -> tuple[str, Upload]:
        """Begin an upload that overwrites nobody's, under another name when this one is taken."""
        while True:
            upload = Upload(self.bucket_name, self.key(name))
            if self.file_overwrite:
                return name, upload.begin()
            with suppress(NameTaken):
                if self.is_free(name, upload.begin(exclusive=True)):
                    return name, upload
            folder, file = posixpath.split(name)
            root, extension = posixpath.splitext(file)
            name = posixpath.join(folder, self.get_alternative_name(root, extension))

    def is_free(self, name: str, upload: Upload) -> bool:
        """Somebody else's file may have come to its end after the name was chosen."""
        try:
            if upload.row_before is None or not (
                super().exists(name) or is_listed(self.bucket_name, upload.key)
            ):
                return True
        except BaseException:
            upload.withdraw()
            raise
        upload.withdraw()
        return False

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
        """Delete one of the application's own files now; its row goes once a listing shows that
        the file is gone. A file on which a person has to decide is left to the blocked cleanup
        that covers it. A cleanup takes over where the store gives no answer, where the result
        cannot be seen, and in a transaction on SQLite. It may keep the file, and then says why.

        Raises ValueError for an impossible name, StoreError when the store refuses, or when the
        result cannot be seen, and CannotConclude in a bucket that is not ours.
        """
        key = self.key(name)
        check_key(key)
        waits = is_in_sqlite_transaction()
        folds = None if waits else folds_spellings(self.bucket_name, key)
        deletion = FileDeletion(self.bucket_name, key, folds=folds)
        if reason := deletion.undecided_reason(may_list=not waits):
            logger.warning("%s is not deleted now. %s", printable_text(key), reason)
        elif waits:
            # A rollback would undo the cleanup that locks the key while a call is under way.
            deletion.leave_to_cleanup(_("Nothing is sent before the transaction is committed."))
        else:
            deletion.carry_out()


def is_listed(bucket: str, key: str) -> bool:
    """Whether a listing shows the object of a key that has a row. HEAD is no evidence that it is
    gone. Raises StoreError and CannotConclude."""
    identity = identity_for(folds_spellings(bucket, key))
    there = listing.find_keys(bucket, [key], identity)
    bucket_marker.require_marker(bucket)
    return bool(there)
