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
from storage_audit.cleanup.models import CleanupItem
from storage_audit.models import AT_REST, R2Object, R2ObjectQuerySet, barred, under_way
from storage_audit.ownership.owner import layouts
from storage_audit.redaction import visible
from storage_audit.tracking.upload_rows import check_key, durably, says

logger = logging.getLogger(__name__)
State = R2Object.State


class KeyBeingDeleted(OSError):
    """A cleanup is deleting the object of this key. Save under another name, or later."""


class NameTaken(Exception):
    """Somebody else was faster with a file of this name."""


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
        seen = s3.head(self.bucket, self.key)
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
