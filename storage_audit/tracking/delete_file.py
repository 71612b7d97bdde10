"""The application deletes one of its own files."""

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import (
    DeadlinePassed,
    Refused,
    StoreError,
    Unavailable,
    leaves_open,
)
from storage_audit.cleanup.delete_batches import proof_ends
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, Row
from storage_audit.cleanup.models.cleanup import CALL_LASTS
from storage_audit.cleanup.open_decisions import find_undecided
from storage_audit.cleanup.plan import find_owners
from storage_audit.cleanup.requests import enqueue_on_commit
from storage_audit.clocks import DatabaseNow
from storage_audit.models import AT_REST, R2Object, R2ObjectQuerySet, under_way
from storage_audit.ownership import bucket_marker
from storage_audit.redaction import visible
from storage_audit.tracking.upload_rows import durably, says

logger = logging.getLogger(__name__)

# Of an item, once the store says that it deleted the file.
ANSWERED: Any = {"answer": str(s3.DELETED), "tries": 1, "calls": 1, "unanswered_at": None}


def folds_spellings(bucket: str, key: str) -> bool | None:
    """Whether the bucket takes other spellings of the key for the same file; None if nobody knows.
    The store is asked only for keys where stores differ."""
    if key.isascii():
        return False
    folds = (bucket_marker.read_marker(bucket) or {}).get("folds_unicode")
    return folds if isinstance(folds, bool) else None


def identity_for(folds: bool | None) -> listing.Identity:
    """What to look for: where nobody knows, another spelling may be the same file."""
    return listing.exact if folds is False else listing.nfc


class Deletion:
    """A cleanup of this one file is committed before the call leaves: its item bars the key, and
    nothing else lifts that. It is closed once the file is gone, and removed where nothing was
    deleted; without an answer it goes on with the file."""

    def __init__(self, bucket: str, key: str, *, folds: bool | None) -> None:
        self.bucket, self.key, self.identity = bucket, key, identity_for(folds)
        same = {key, self.identity(key)}
        self.rows = R2Object.objects.in_bucket(bucket).filter(key__in=same)
        # Where nobody knows, the rows of other spellings describe another file.
        self.own = self.rows.filter(key__in=same if folds else [key])
        # When these rows were changed last, as the call began.
        self.seen = dict[Any, datetime]()
        self.asked_at: datetime | None = None
        self.met_upload = False

    def why_undecided(self, *, may_look: bool) -> str:
        """What a blocked cleanup that covers the file asks of a person, or nothing; also by what
        was committed since the caller's transaction began. Raises StoreError."""
        reason = self._find_reason({})
        if reason and may_look:
            # A person may have said whose this very object is.
            return self._find_reason(listing.find(self.bucket, [self.key], self.identity))
        return reason

    def _find_reason(self, found: Mapping[str, s3.Listed]) -> str:
        def find() -> str:
            owners = find_owners(self.bucket, [self.key], self.identity, found)
            return find_undecided(self.bucket, owners).get(self.key, "")

        return find() or durably(find)

    def carry_out(self) -> None:
        """Raises StoreError and CannotConclude. The row stays where the call was refused."""
        until, operation = proof_ends(), durably(self._request)
        # An upload writes its row first and reads our item then.
        if durably(self.rows.filter(under_way()).exists):
            reason = _("An upload to this key is under way.")
            durably(partial(self._hand_over, operation, reason, was_sent=False))
            return
        if self.met_upload:
            durably(partial(self._plan, operation))
        try:
            with s3.sent_until(until):
                s3.delete_single(self.bucket, self.key)
        except (Refused, DeadlinePassed):
            durably(partial(self._withdraw, operation))
            raise
        except StoreError as error:
            was_sent = leaves_open(type(error))
            durably(partial(self._hand_over, operation, error, was_sent=was_sent))
        else:
            self._confirm(operation)

    @transaction.atomic
    def leave_to_cleanup(self, reason: object) -> None:
        """Have a cleanup delete the file, in the caller's transaction. Nothing is sent now."""
        self._hand_over(self._request(), reason, was_sent=False)

    def _confirm(self, operation: CleanupOperation) -> None:
        """Believe no answer, but a listing."""
        began = timezone.now()
        try:
            there = listing.find(self.bucket, [self.key], self.identity)
            bucket_marker.see_marker(self.bucket)
        except BaseException as error:
            durably(partial(self._leave_unverified, operation, error))
            raise
        if there:
            durably(partial(self._withdraw, operation))
            raise Unavailable(_("%s is still in the bucket.") % self.key)
        durably(partial(self._close, operation, began))

    @transaction.atomic
    def _request(self) -> CleanupOperation:
        """No worker takes it before the call has ended, unless our process dies."""
        self.asked_at = timezone.now()
        # The call is not to leave while whoever holds a row keeps us from forgetting it.
        self.seen = {row.pk: row.updated_at for row in self.rows.select_for_update()}
        unknown = Row(self.bucket, self.key, says(self.key)["project_id"], None, "", None)
        rows = [
            row._replace(unanswered_at=self.asked_at)
            for row in [*map(Row.of, self.own)] or [unknown]
        ]
        self.met_upload = any(row.kept for row in rows)
        why = _("the application deleted the file")
        operation = CleanupOperation.objects.request_for_rows(rows, why)
        operation.change(Q(), next_attempt_at=DatabaseNow(CALL_LASTS))
        return operation

    @transaction.atomic
    def _plan(self, operation: CleanupOperation) -> None:
        """The upload that kept the file is over, and the call leaves."""
        if untouched := CleanupOperation.objects.still_untouched(operation.pk):
            untouched.items.mark(CleanupItem.Outcome.PLANNED)

    @transaction.atomic
    def _close(self, operation: CleanupOperation, began: datetime) -> None:
        """The file is gone. Scans and cleanups, which miss it, ask the items who deleted it."""
        # Before the rows, as a worker takes its cleanup first.
        untouched = CleanupOperation.objects.still_untouched(operation.pk)
        self._forget_rows(self.rows)
        if untouched is None:
            self._note_answer(operation)
            return
        untouched.items.update(**ANSWERED)
        untouched.items.mark(CleanupItem.Outcome.DELETED)
        times = {"began": began.isoformat(), "ended": timezone.now().isoformat()}
        untouched.record("verify", _("A complete listing no longer shows the file."), **times)
        untouched.conclude(untouched.items.books())

    def _forget_rows(self, rows: R2ObjectQuerySet) -> None:
        """But those that somebody changed during the call. No row of another table goes along:
        here `on_delete` is nobody's decision."""
        for pk, updated_at in self.seen.items():
            rows.filter(pk=pk, updated_at=updated_at).forget()
        # An upload that our mark refused has given its row back the time from before.
        refused = rows.filter(pk__in=self.seen, state__in=AT_REST)
        refused.filter(updated_at__lte=self.asked_at).forget()

    @transaction.atomic
    def _withdraw(self, operation: CleanupOperation) -> None:
        """The call was refused, did not leave, or left the file where it is."""
        if untouched := CleanupOperation.objects.still_untouched(operation.pk):
            untouched.delete()
        else:
            self._note_answer(operation)

    def _note_answer(self, operation: CleanupOperation) -> None:
        """A worker that had the cleanup meanwhile, as our process slept, has marks of its own."""
        ours = operation.items.filter(unanswered_at=self.asked_at, calls=0)
        ours.update(unanswered_at=None)

    @transaction.atomic
    def _leave_unverified(self, operation: CleanupOperation, reason: object) -> None:
        """The call was answered, and the look afterwards failed. The cleanup looks again."""
        self._hand_over(operation, reason, was_sent=False).items.update(**ANSWERED)

    @transaction.atomic
    def _hand_over(
        self, operation: CleanupOperation, reason: object, *, was_sent: bool = True
    ) -> CleanupOperation:
        if not CleanupOperation.objects.still_untouched(operation.pk):
            # A worker that had it as our process slept has kept the file, which has a row.
            seen, operation = self.seen, self._request()
            self.seen = seen
        if not was_sent:
            operation.items.update(unanswered_at=None)
        self._forget_rows(self.own.exclude(under_way()))
        operation.make_due()
        transaction.on_commit(partial(self._log, operation, reason))
        enqueue_on_commit([operation])
        return operation

    def _log(self, operation: CleanupOperation, reason: object) -> None:
        text = "%s: cleanup %s goes on with the deletion. %s"
        logger.warning(text, visible(self.key), operation.pk, reason)
