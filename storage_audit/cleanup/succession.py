"""Which cleanup of a deleted project acts: at most one is open in a bucket, that of the latest
deletion.

A project can be created and deleted again while its cleanup still waits. The next one then takes
over, with a plan and limits of its own, and the earlier one ends superseded.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.cleanup import delete_batches, plan_summary
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, CleanupOperationQuerySet
from storage_audit.models import KnownProject

Status = CleanupOperation.Status


def request_cleanups(
    project_id: str, *, deleted_at: datetime, trigger: str, **values: Any
) -> list[CleanupOperation]:
    """The cleanups of this deletion, one for each bucket: those that are open, or else new ones.

    Call it in the transaction that wrote the deletion: others who write it wait for its end. So it
    is short, and changes no item of an earlier cleanup.
    """
    cleanups = CleanupOperation.objects
    whole = {"project_id": project_id, "project_deleted_at": deleted_at}
    known = {
        each.bucket: each for each in cleanups.of_project(project_id).filter(**whole, parent=None)
    }
    found = []
    for bucket in cleanups.buckets_for(project_id):
        if operation := known.get(bucket):
            operation.record("request", _("Requested again, and not over yet."))
        else:
            kind = CleanupOperation.Kind.PROJECT
            operation = cleanups.request(
                kind=kind, bucket=bucket, trigger=trigger, **whole, **values
            )
            recall_earlier(operation)
        found.append(operation)
    return found


def recall_earlier(operation: CleanupOperation) -> None:
    """Have workers end the open cleanups of the project's earlier deletions, and their follow-up
    checks. They may have a million items, which is too much for the transaction of a deletion."""
    for earlier in earlier_ones(operation):
        earlier.recall(delete_batches.taken_over(earlier.project_id or ""))


def end(earlier: Iterable[CleanupOperation]) -> None:
    """End them before the cleanup of the latest deletion begins. What a worker has, it ends itself
    when it next looks at the project."""
    for each in earlier:
        retire(each, delete_batches.taken_over(each.project_id or ""))


def earlier_ones(operation: CleanupOperation) -> CleanupOperationQuerySet:
    """The open cleanups of other deletions of the project: earlier ones, if this operation's is on
    record as the latest afterwards."""
    same = CleanupOperation.objects.of_project(operation.project_id or "")
    if operation.parent_id:
        return same.none()
    same = same.filter(bucket=operation.bucket)
    return same.exclude(project_deleted_at=operation.project_deleted_at)


def retire(operation: CleanupOperation, reason: str) -> None:
    with transaction.atomic():
        if not operation.withdraw():
            return
        settle(operation, reason)
        operation.retire(reason, operation.items.books())
        operation.record("superseded", reason)


def supersede(operation: CleanupOperation, reason: str) -> None:
    """The same by the worker that has it."""
    with transaction.atomic():
        operation.renew()
        settle(operation, reason)
    # It may go through a million items: while nobody waits for a commit.
    plan_summary.add_dropped(operation)
    same = {"pk": operation.project_id, "deleted_at": operation.project_deleted_at}
    with transaction.atomic():
        # Its project exists. Should it go without a signal before a sweep sees it, it has vanished.
        KnownProject.objects.said().filter(**same).drop_deletion()
        operation.close(Status.SUPERSEDED, operation.items.books(), error=reason)
        operation.record("superseded", reason)


def settle(operation: CleanupOperation, reason: str) -> None:
    """Keep what was not sent, and say of the rest that nobody knows."""
    delete_batches.let_go(operation, operation.items.open().filter(calls=0), reason)
    # These were asked to go before the id lived again, and nobody looked since. Where no answer
    # came they stay marked: the store may still be at it, and would take a new upload for them.
    delete_batches.rest(operation)
    delete_batches.own_rows(operation).unlock(operation.items.open().names())
    text = _("Sent for deletion before the id lived again; verify the project to see.")
    operation.items.open().update(reason=text)
    # When they were sent tells whether a later object of the key may be missing: see limits.py.
    operation.items.planned().update(outcome=CleanupItem.Outcome.FAILED)
