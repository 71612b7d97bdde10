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
    may_still_delete,
)
from storage_audit.cleanup.delete_pipeline import recheck_deadline
from storage_audit.cleanup.judge_objects import find_owners
from storage_audit.cleanup.make_cleanups import enqueue_on_commit
from storage_audit.cleanup.models import Cleanup, CleanupItem, DeletedRow
from storage_audit.cleanup.models.cleanup_queries import STORAGE_DELETE_TIME
from storage_audit.cleanup.open_decisions import find_undecided
from storage_audit.clocks import DatabaseNow
from storage_audit.models import STABLE_STATES, R2Object, R2ObjectQuerySet, uploading_rows
from storage_audit.ownership import bucket_marker
from storage_audit.redaction import printable_text
from storage_audit.tracking.upload_rows import run_durably, upload_values

logger = logging.getLogger(__name__)

# An item's values once the store says that it deleted the file.
ANSWERED_VALUES: Any = {
    "store_answer": str(s3.DELETED),
    "attempts": 1,
    "calls": 1,
    "unanswered_at": None,
}


def folds_spellings(bucket: str, key: str) -> bool | None:
    """Whether the bucket takes other spellings of the key for the same file; None if nobody knows.
    The store is asked only for keys where stores differ."""
    if key.isascii():
        return False
    folds = (bucket_marker.read_marker(bucket) or {}).get("folds_unicode")
    return folds if isinstance(folds, bool) else None


def identity_for(folds: bool | None) -> listing.KeyIdentity:
    """The identity to search by: where nobody knows, another spelling may be the same file."""
    return listing.exact_key if folds is False else listing.nfc_key


class FileDeletion:
    """Commits a cleanup of this one file before the call leaves, whose item locks the key. The
    cleanup ends once the file is gone, is removed where nothing was deleted, and goes on with the
    file where the call got no answer."""

    def __init__(self, bucket: str, key: str, *, folds: bool | None) -> None:
        self.bucket, self.key, self.identity = bucket, key, identity_for(folds)
        same = {key, self.identity(key)}
        self.rows = R2Object.objects.in_bucket(bucket).filter(key__in=same)
        # Where nobody knows, the rows of other spellings describe another file.
        self.own_rows = self.rows.filter(key__in=same if folds else [key])
        # When these rows were changed last, as the call began.
        self.row_versions = dict[Any, datetime]()
        self.asked_at: datetime | None = None
        self.found_upload = False

    def undecided_reason(self, *, may_list: bool) -> str:
        """What a blocked cleanup that covers the file asks of a person, or nothing. Also sees what
        was committed since the caller's transaction began. Raises StoreError."""
        reason = self._find_reason({})
        if reason and may_list:
            # A person may have said who owns this very object.
            return self._find_reason(listing.find_keys(self.bucket, [self.key], self.identity))
        return reason

    def _find_reason(self, found: Mapping[str, s3.ListedObject]) -> str:
        def find() -> str:
            owners = find_owners(self.bucket, [self.key], self.identity, found)
            return find_undecided(self.bucket, owners).get(self.key, "")

        return find() or run_durably(find)

    def carry_out(self) -> None:
        """Raises StoreError and CannotConclude. The row stays where the call was refused."""
        until, cleanup = recheck_deadline(), run_durably(self._request_cleanup)
        # An upload writes its row first and reads our item then.
        if run_durably(self.rows.filter(uploading_rows()).exists):
            reason = _("An upload to this name is in progress.")
            run_durably(partial(self._hand_to_worker, cleanup, reason, was_sent=False))
            return
        if self.found_upload:
            run_durably(partial(self._plan_item, cleanup))
        try:
            with s3.send_deadline(until):
                s3.delete_single(self.bucket, self.key)
        except (Refused, DeadlinePassed):
            run_durably(partial(self._withdraw_cleanup, cleanup))
            raise
        except StoreError as error:
            was_sent = may_still_delete(type(error))
            run_durably(partial(self._hand_to_worker, cleanup, error, was_sent=was_sent))
        else:
            self._confirm_deleted(cleanup)

    @transaction.atomic
    def leave_to_cleanup(self, reason: object) -> None:
        """Have a cleanup delete the file, in the caller's transaction. Nothing is sent now."""
        self._hand_to_worker(self._request_cleanup(), reason, was_sent=False)

    def _confirm_deleted(self, cleanup: Cleanup) -> None:
        """Believe only a listing, not the answer."""
        began = timezone.now()
        try:
            there = listing.find_keys(self.bucket, [self.key], self.identity)
            bucket_marker.require_marker(self.bucket)
        except BaseException as error:
            run_durably(partial(self._leave_unverified, cleanup, error))
            raise
        if there:
            run_durably(partial(self._withdraw_cleanup, cleanup))
            raise Unavailable(_("%s is still in the bucket.") % self.key)
        run_durably(partial(self._close_cleanup, cleanup, began))

    @transaction.atomic
    def _request_cleanup(self) -> Cleanup:
        """The cleanup; no worker takes it before the call has ended, unless our process dies."""
        self.asked_at = timezone.now()
        # The call must not leave while somebody else's lock keeps us from deleting a row.
        self.row_versions = {row.pk: row.updated_at for row in self.rows.select_for_update()}
        unknown = DeletedRow(
            self.bucket, self.key, upload_values(self.key)["project_id"], None, "", None
        )
        rows = [
            row._replace(unanswered_at=self.asked_at)
            for row in [*map(DeletedRow.of, self.own_rows)] or [unknown]
        ]
        self.found_upload = any(row.kept_reason for row in rows)
        why = _("the application deleted the file")
        cleanup = Cleanup.objects.request_for_rows(rows, why)
        cleanup.change_if(Q(), next_attempt_at=DatabaseNow(STORAGE_DELETE_TIME))
        return cleanup

    @transaction.atomic
    def _plan_item(self, cleanup: Cleanup) -> None:
        """Plan the file, as the upload that kept it is over and the call leaves."""
        if untouched := Cleanup.objects.get_untouched(cleanup.pk):
            untouched.items.mark(CleanupItem.Outcome.TO_DELETE)

    @transaction.atomic
    def _close_cleanup(self, cleanup: Cleanup, began: datetime) -> None:
        """The file is gone: end the cleanup. Its item explains to scans why the file is missing."""
        # Before the rows, as a worker takes its cleanup first.
        untouched = Cleanup.objects.get_untouched(cleanup.pk)
        self._forget_rows(self.rows)
        if untouched is None:
            self._note_answer(cleanup)
            return
        untouched.items.update(**ANSWERED_VALUES)
        untouched.items.mark(CleanupItem.Outcome.DELETED)
        times = {"began": began.isoformat(), "ended": timezone.now().isoformat()}
        untouched.record("verify", _("Confirmed: the file is no longer in the bucket."), **times)
        untouched.finish_at_once(untouched.items.totals())

    def _forget_rows(self, rows: R2ObjectQuerySet) -> None:
        """Delete the rows, except those that somebody changed during the call. Rows of other tables
        stay: nobody decided on their `on_delete` here."""
        for pk, updated_at in self.row_versions.items():
            rows.filter(pk=pk, updated_at=updated_at).delete_without_signals()
        # An upload that our mark refused has restored its row's time.
        refused = rows.filter(pk__in=self.row_versions, state__in=STABLE_STATES)
        refused.filter(updated_at__lte=self.asked_at).delete_without_signals()

    @transaction.atomic
    def _withdraw_cleanup(self, cleanup: Cleanup) -> None:
        """Remove the cleanup: the call was refused, did not leave, or did not delete the file."""
        if untouched := Cleanup.objects.get_untouched(cleanup.pk):
            untouched.delete()
        else:
            self._note_answer(cleanup)

    def _note_answer(self, cleanup: Cleanup) -> None:
        """Remove our marks. A worker that had the cleanup while our process slept has its own."""
        ours = cleanup.items.filter(unanswered_at=self.asked_at, calls=0)
        ours.update(unanswered_at=None)

    @transaction.atomic
    def _leave_unverified(self, cleanup: Cleanup, reason: object) -> None:
        """The call was answered, and the listing after it failed. The cleanup lists again."""
        self._hand_to_worker(cleanup, reason, was_sent=False).items.update(**ANSWERED_VALUES)

    @transaction.atomic
    def _hand_to_worker(
        self, cleanup: Cleanup, reason: object, *, was_sent: bool = True
    ) -> Cleanup:
        if not Cleanup.objects.get_untouched(cleanup.pk):
            # A worker that had it while our process slept has kept the file, which has a row.
            seen, cleanup = self.row_versions, self._request_cleanup()
            self.row_versions = seen
        if not was_sent:
            cleanup.items.update(unanswered_at=None)
        self._forget_rows(self.own_rows.exclude(uploading_rows()))
        cleanup.make_due()
        text = "%s: cleanup %s continues the deletion. %s"
        facts = printable_text(self.key), cleanup.pk, reason
        transaction.on_commit(partial(logger.warning, text, *facts))
        enqueue_on_commit([cleanup])
        return cleanup
