"""Uploads: the row of a key is written before the first byte, and says how the upload ended."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import s3
from storage_audit.cleanup.held_ids import find_held_owner
from storage_audit.cleanup.models import CleanupItem
from storage_audit.models import (
    STABLE_STATES,
    R2Object,
    R2ObjectQuerySet,
    deleting_rows,
    uploading_rows,
)
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.tracking.upload_rows import check_key, run_durably, upload_values

logger = logging.getLogger(__name__)
State = R2Object.State


class KeyBeingDeleted(OSError):
    """A cleanup is deleting the object of this key. Save under another name, or later."""


class NameTaken(Exception):
    """Somebody else is uploading a file of this name."""


def is_key_locked(bucket: str, key: str) -> bool:
    rows = R2Object.objects.in_bucket(bucket).filter(deleting_rows(), key=key)
    return CleanupItem.objects.is_being_deleted(bucket, key) or rows.exists()


class Upload:
    """One upload to one key: the row is there before the first byte, and says how it ended."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key, self.id = bucket, key, uuid4()
        # The key's row, as far as this upload changed it; None where there was none.
        self.row_before: dict[str, Any] | None = None

    @contextmanager
    def record_result(self) -> Iterator[None]:
        """Do the upload within: afterwards the row says whether it succeeded."""
        try:
            yield
            self.confirm()
        except BaseException:
            self.fail()
            raise

    def begin(self, *, exclusive: bool = False) -> "Upload":
        """Raises KeyBeingDeleted, and with `exclusive` NameTaken when another upload is under
        way."""
        check_key(self.key)
        if owner := find_held_owner(self.key):
            text = _("Project %s was deleted, and its files can't change until it is restored.")
            raise KeyBeingDeleted(text % printable_text(owner))
        if not get_key_formats().parse_key(self.key):
            text = "No key format matches %s, so deleting its project does not delete the file."
            logger.warning(text, printable_text(self.key))
        self._record_start(exclusive=exclusive)
        return self

    def confirm(self) -> None:
        seen = s3.head_object(self.bucket, self.key)
        facts = {"size": seen.size, "etag": seen.etag, "last_modified": seen.last_modified}
        if not self._record_end(State.STORED, **facts) and not run_durably(self.rows.exists):
            # The row went before this upload ended: a cleanup saw no object, or somebody deleted
            # the row, and a cleanup may be deleting what this upload stored.
            self._record_start()
            self._record_end(State.STORED, **facts)

    def fail(self) -> None:
        self._record_end(State.UPLOAD_FAILED)

    def withdraw(self) -> None:
        """Nothing was sent: leave the row as it was, or none if there was none."""
        mine = self.rows.filter(upload_id=self.id)
        if self.row_before is None:
            run_durably(mine.delete_without_signals)
            return
        # A process that was busy with the row may be done by now, and nobody would change the
        # state that we restored.
        is_restored = self.row_before["state"] in STABLE_STATES and run_durably(
            partial(mine.filter(state=State.UPLOADING).update, **self.row_before)
        )
        if not is_restored:
            self.fail()

    @property
    def rows(self) -> R2ObjectQuerySet:
        return R2Object.objects.in_bucket(self.bucket).filter(key=self.key)

    def _record_start(self, *, exclusive: bool = False) -> None:
        """Write the row, then read the cleanup's mark. A cleanup marks first and then reads the
        rows, so at least one of the two sees the other."""
        self.row_before = run_durably(
            partial(record_upload_start, self.bucket, self.key, self.id, exclusive=exclusive)
        )
        # The caller's transaction may be too old to see the mark.
        if run_durably(partial(CleanupItem.objects.is_being_deleted, self.bucket, self.key)):
            self.withdraw()
            raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % self.key)

    def _record_end(self, state: str, **facts: Any) -> int:
        return run_durably(partial(record_upload_end, self.bucket, self.key, self.id, state, facts))


def record_upload_start(
    bucket: str, key: str, upload_id: UUID, *, exclusive: bool = False
) -> dict[str, Any] | None:
    """Record an upload that is about to start, and return the values that this changed in the key's
    row. The object keeps its owner until another one is stored.

    Raises KeyBeingDeleted, and with `exclusive` NameTaken when another upload is under way.
    """
    now = timezone.now()
    begun = {"state": State.UPLOADING, "upload_id": upload_id, "updated_at": now}
    rows = R2Object.objects.in_bucket(bucket).filter(key=key)
    while True:
        before, free = rows.values(*begun).first(), rows.exclude(deleting_rows())
        free = free.exclude(uploading_rows()) if exclusive else free
        if before and free.filter(**before).update(**begun):
            return dict(before)
        if rows.filter(deleting_rows()).exists():
            raise KeyBeingDeleted(_("%s is being deleted. Use another name.") % key)
        if exclusive and rows.filter(uploading_rows()).exists():
            raise NameTaken(key)
        new = R2Object(bucket=bucket, key=key, **begun, **upload_values(key))
        R2Object.objects.bulk_create([new], ignore_conflicts=True)
        if rows.filter(upload_id=upload_id).exists():
            return None


def record_upload_end(
    bucket: str, key: str, upload_id: UUID, state: str, facts: dict[str, Any]
) -> int:
    """Record how an upload ended. Only one that stored its object says who owns it, and never
    against a person's decision: `is_assigned` tells the two apart by the upload's id."""
    rows = R2Object.objects.in_bucket(bucket).filter(key=key)
    mine, values = rows.filter(upload_id=upload_id), {"state": state, "updated_at": timezone.now()}
    if not facts:
        return mine.update(**values)
    # The facts are the object's as it was just seen, whichever upload it is from.
    settled = Q(upload_id=upload_id) | Q(state__in=[State.STORED, State.UPLOAD_FAILED])
    values |= {"upload_id": upload_id, "unambiguous_under": None, **facts}
    with transaction.atomic():
        done = rows.filter(settled).update(**values)
        mine.exclude(source=R2Object.Source.ASSIGNED).update(**upload_values(key))
    return done
