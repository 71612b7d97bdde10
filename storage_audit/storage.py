"""The STORAGES backend: django-storages' S3 backend that records what it writes."""

import logging
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.core.files.base import File
from django.core.files.storage import Storage
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from storages.backends.s3 import S3File, S3Storage
from storages.utils import clean_name

from storage_audit.audit import installation
from storage_audit.audit.ownership import layouts
from storage_audit.bucket import listing, r2
from storage_audit.conf import conf
from storage_audit.file_deletion import Deletion, folds_spellings, identity_for
from storage_audit.items import CleanupItem
from storage_audit.models import R2Object
from storage_audit.querysets import AT_REST, R2ObjectQuerySet, barred, under_way
from storage_audit.redaction import visible
from storage_audit.tracking_rows import check_key, durably, is_in_transaction_of_sqlite, says

logger = logging.getLogger(__name__)
State = R2Object.State


class KeyBeingDeleted(OSError):
    """A cleanup is deleting the object of this key. Save under another name, or later."""


class NameTaken(Exception):
    """Somebody else was faster with a file of this name."""


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
        try:
            if self._multipart is not None:
                self._multipart.abort()
        except Exception:
            # The writer's own error is the one to be told.
            shown = visible(self.upload.key)
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
            "client_config": r2.client_config(attempts=3),
            "default_acl": None,
            "file_overwrite": False,
            # A layout is a whole key; AWS_LOCATION is meant for another storage.
            "location": "",
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
        if is_barred(self.bucket_name, self.key(name)):
            return Storage.get_available_name(self, name, max_length)
        available: str = super().get_available_name(name, max_length)
        return available

    def exists(self, name: str) -> bool:
        return is_barred(self.bucket_name, self.key(name)) or bool(super().exists(name))

    def _save(self, name: str, content: "File[Any]") -> str:
        name, upload = self.reserve(name)
        with upload.settled():
            saved: str = super()._save(name, content)
            return saved

    def reserve(self, name: str) -> tuple[str, "Upload"]:
        """Begin an upload that overwrites nobody's, under another name when this one is taken."""
        while True:
            upload = Upload(self.bucket_name, self.key(name))
            if self.file_overwrite:
                return name, upload.begin()
            with suppress(NameTaken):
                if self.is_free(name, upload.begin(alone=True)):
                    return name, upload
            folder, file = posixpath.split(name)
            root, extension = posixpath.splitext(file)
            name = posixpath.join(folder, self.get_alternative_name(root, extension))

    def is_free(self, name: str, upload: "Upload") -> bool:
        """Somebody else's file may have come to its end after the name was chosen."""
        try:
            if upload.before is None or not (
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
        that covers it. Where the store gives no answer, where the result cannot be seen, and in a
        transaction on SQLite, a cleanup goes on with the file. The cleanup may keep the file, and
        then says why.

        Raises ValueError for an impossible name, StoreError when the store refuses, or when the
        result cannot be seen, and Mismatch in a bucket that is not ours.
        """
        key = self.key(name)
        check_key(key)
        waits = is_in_transaction_of_sqlite()
        folds = None if waits else folds_spellings(self.bucket_name, key)
        deletion = Deletion(self.bucket_name, key, folds=folds)
        if reason := deletion.why_undecided(may_look=not waits):
            logger.warning("%s is not deleted now. %s", visible(key), reason)
        elif waits:
            # A rollback would take back the cleanup that bars the key while a call is under way.
            deletion.leave_to_cleanup(_("Nothing is sent before the transaction is committed."))
        else:
            deletion.carry_out()


def is_listed(bucket: str, key: str) -> bool:
    """Whether a listing shows the object of a key that has a row. HEAD is no evidence that it is
    gone. Raises StoreError and Mismatch."""
    identity = identity_for(folds_spellings(bucket, key))
    there = listing.find(bucket, [key], identity)
    installation.see_marker(bucket)
    return bool(there)


def is_barred(bucket: str, key: str) -> bool:
    rows = R2Object.objects.in_bucket(bucket).filter(barred(), key=key)
    return CleanupItem.objects.being_deleted(bucket, key) or rows.exists()


class Upload:
    """One upload to one key: the row is there before the first byte, and says how it ended."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key, self.id = bucket, key, uuid4()
        # The key's row, as far as this upload changed it; None where there was none.
        self.before: dict[str, Any] | None = None

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Do the upload within: afterwards the row says whether it succeeded."""
        try:
            yield
            self.confirm()
        except BaseException:
            self.fail()
            raise

    def begin(self, *, alone: bool = False) -> "Upload":
        """Raises KeyBeingDeleted, and with `alone` NameTaken when another upload is under way."""
        check_key(self.key)
        if not layouts().readings(self.key):
            text = "No key format reads %s, so no cleanup deletes it with its project."
            logger.warning(text, visible(self.key))
        self._intend(alone=alone)
        return self

    def confirm(self) -> None:
        seen = r2.head(self.bucket, self.key)
        facts = {"size": seen.size, "etag": seen.etag, "last_modified": seen.last_modified}
        if not self._settle(State.STORED, **facts) and not durably(self.rows.exists):
            # The row went before this upload ended: a cleanup saw no object, or somebody deleted
            # the row, and a cleanup may be deleting what this upload stored.
            self._intend()
            self._settle(State.STORED, **facts)

    def fail(self) -> None:
        self._settle(State.UPLOAD_FAILED)

    def withdraw(self) -> None:
        """Nothing was sent: leave the row as it was, or none if there was none."""
        mine = self.rows.filter(upload_id=self.id)
        if self.before is None:
            durably(mine.forget)
            return
        # Whoever had it in hand may be done by now, and would leave that state to nobody.
        is_restored = self.before["state"] in AT_REST and durably(
            partial(mine.filter(state=State.UPLOADING).update, **self.before)
        )
        if not is_restored:
            self.fail()

    @property
    def rows(self) -> R2ObjectQuerySet:
        return R2Object.objects.in_bucket(self.bucket).filter(key=self.key)

    def _intend(self, *, alone: bool = False) -> None:
        """The row is written first and the cleanup's mark read after, as a cleanup marks first and
        reads the rows after: so at least one of the two sees the other."""
        self.before = durably(partial(intend, self.bucket, self.key, self.id, alone=alone))
        # The caller's transaction may be too old to see the mark.
        if durably(partial(CleanupItem.objects.being_deleted, self.bucket, self.key)):
            self.withdraw()
            raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % self.key)

    def _settle(self, state: str, **facts: Any) -> int:
        return durably(partial(settle, self.bucket, self.key, self.id, state, facts))


def intend(bucket: str, key: str, upload_id: UUID, *, alone: bool = False) -> dict[str, Any] | None:
    """Record an upload that is about to start; returns what this changed in the key's row, as it
    was before. Whose the object is stays as it was until another one is stored.

    Raises KeyBeingDeleted, and with `alone` NameTaken when another upload is under way.
    """
    now = timezone.now()
    begun = {"state": State.UPLOADING, "upload_id": upload_id, "updated_at": now}
    rows = R2Object.objects.in_bucket(bucket).filter(key=key)
    while True:
        before, free = rows.values(*begun).first(), rows.exclude(barred())
        free = free.exclude(under_way()) if alone else free
        if before and free.filter(**before).update(**begun):
            return dict(before)
        if rows.filter(barred()).exists():
            raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % key)
        if alone and rows.filter(under_way()).exists():
            raise NameTaken(key)
        new = R2Object(bucket=bucket, key=key, **begun, **says(key))
        R2Object.objects.bulk_create([new], ignore_conflicts=True)
        if rows.filter(upload_id=upload_id).exists():
            return None


def settle(bucket: str, key: str, upload_id: UUID, state: str, facts: dict[str, Any]) -> int:
    """Record how an upload ended. Only one that stored its object says whose that is, and never
    against a person's decision: `is_given` tells the two apart by the upload's id."""
    rows = R2Object.objects.in_bucket(bucket).filter(key=key)
    mine, values = rows.filter(upload_id=upload_id), {"state": state, "updated_at": timezone.now()}
    if not facts:
        return mine.update(**values)
    # The facts are the object's as it was just seen, whichever upload it is from.
    settled = Q(upload_id=upload_id) | Q(state__in=[State.STORED, State.UPLOAD_FAILED])
    values |= {"upload_id": upload_id, "plain_under": None, **facts}
    with transaction.atomic():
        done = rows.filter(settled).update(**values)
        mine.exclude(source=R2Object.Source.ADOPTED).update(**says(key))
    return done
