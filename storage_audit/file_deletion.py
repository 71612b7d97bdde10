"""One of the application's own files is deleted: a row bars its key while the call is under way."""

import logging
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import tasks
from storage_audit.audit import installation
from storage_audit.audit.covering import find_undecided
from storage_audit.audit.deletion import proof_ends
from storage_audit.audit.discovery import find_owners
from storage_audit.bucket import listing, r2
from storage_audit.bucket.errors import Refused, StoreError, TooLate, Unavailable
from storage_audit.models import CleanupOperation, R2Object, Row
from storage_audit.querysets import R2ObjectQuerySet, barred
from storage_audit.redaction import visible
from storage_audit.tracking_rows import durably, says

logger = logging.getLogger(__name__)
State = R2Object.State


def folds_spellings(bucket: str, key: str) -> bool | None:
    """Whether the bucket takes other spellings of the key for the same file; None if nobody knows.
    The store is asked only for keys where stores differ."""
    if key.isascii():
        return False
    folds = (installation.read_marker(bucket) or {}).get("folds_unicode")
    return folds if isinstance(folds, bool) else None


def identity_for(folds: bool | None) -> listing.Identity:
    """What to look for: where nobody knows, another spelling may be the same file."""
    return listing.exact if folds is False else listing.nfc


class Deletion:
    """The row is marked before the call leaves, and says or goes afterwards, as the call ended."""

    def __init__(self, bucket: str, key: str, *, folds: bool | None) -> None:
        self.bucket, self.key, self.identity = bucket, key, identity_for(folds)
        same = {key, self.identity(key)}
        # Where nobody knows, the rows of other spellings bar their keys too, and describe
        # another file.
        self.rows = R2Object.objects.in_bucket(bucket).filter(key__in=same)
        self.own = self.rows.filter(key__in=same if folds else [key])
        # The rows by key, as far as they were marked, as they were before.
        self.before = dict[str, dict[str, Any]]()
        self.is_in_doubt = False

    @property
    def is_under_way(self) -> bool:
        return bool(self.before)

    def why_undecided(self) -> str:
        """What a blocked cleanup that covers the file asks of a person, or nothing."""
        owners = find_owners(self.bucket, [self.key], self.identity, {})
        return find_undecided(self.bucket, owners).get(self.key, "")

    def carry_out(self) -> None:
        """Raises StoreError and Mismatch; the row then stays."""
        until = proof_ends()
        durably(self._bar)
        try:
            with r2.sent_until(until):
                r2.delete_single(self.bucket, self.key)
        except (Refused, TooLate):
            durably(self._unbar)
            raise
        except StoreError as error:
            self.leave_to_cleanup(error)
        else:
            self._confirm()

    def _confirm(self) -> None:
        """Believe no answer, but a listing."""
        try:
            there = listing.find(self.bucket, [self.key], self.identity)
            installation.see_marker(self.bucket)
            if there:
                raise Unavailable(_("%s is still in the bucket.") % self.key)
        except BaseException:
            durably(self._unbar)
            raise
        if self.is_in_doubt:
            self.leave_to_cleanup(_("An earlier call may still be under way."))
        else:
            durably(marked(self.rows).forget)

    def leave_to_cleanup(self, reason: object) -> None:
        """Have a cleanup delete the file. Its item bars the key as long as the store may obey a
        call that it did not answer."""
        durably(partial(self._hand_over, reason))

    def _bar(self) -> None:
        facts = self.rows.values_list("key", "state", "etag")
        self.before = {key: {"state": state, "etag": etag} for key, state, etag in facts}
        self.is_in_doubt = self.rows.filter(barred()).exists()
        if not self.own.exists():
            row = R2Object(bucket=self.bucket, key=self.key, state=State.DELETING, **says(self.key))
            R2Object.objects.bulk_create([row], ignore_conflicts=True)
            self.before[self.key] = {}
        self.rows.bar()

    def _unbar(self) -> None:
        for key, values in self.before.items():
            row = marked(self.rows).filter(key=key)
            if values:
                row.update(**values, updated_at=timezone.now())
            else:
                row.forget()

    def _hand_over(self, reason: object) -> None:
        """Give the rows to a cleanup, as Django would with their deletion. No row of another table
        goes along: here `on_delete` is nobody's decision."""
        own = marked(self.own) if self.is_under_way else self.own
        # Others may have taken the row, but only who sent the call knows that no answer came.
        unknown = Row(self.bucket, self.key, says(self.key)["project_id"], None, "", None)
        with transaction.atomic():
            rows = [Row.of(row) for row in own.select_for_update()] or [unknown]
            if self.is_under_way:
                rows = [row._replace(unanswered_at=timezone.now()) for row in rows]
            why = _("the application deleted the file")
            operation = CleanupOperation.objects.request_for_rows(rows, why)
            own.forget()
            self._unbar()
            transaction.on_commit(partial(self._log, operation, reason))
            tasks.enqueue_on_commit([operation])

    def _log(self, operation: CleanupOperation, reason: object) -> None:
        text = "%s: cleanup %s goes on with the deletion. %s"
        logger.warning(text, visible(self.key), operation.pk, reason)


def marked(rows: R2ObjectQuerySet) -> R2ObjectQuerySet:
    return rows.filter(state=State.DELETING)
