"""Makes the cleanups that follow a deletion, in its transaction, and sends them to workers after
the commit.

The rows of these cleanups are the outbox: the queue carries only their ids, and may lose them.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import logs, queue
from storage_audit.cleanup import held_ids
from storage_audit.cleanup.cleanup_text import superseded_text
from storage_audit.cleanup.models import Cleanup, DeletedRow
from storage_audit.conf import conf

logger = logging.getLogger(__name__)


def request_cleanups(
    project_id: str, *, deleted_at: datetime, trigger: str, **values: Any
) -> list[Cleanup]:
    """The cleanups of this deletion, one for each bucket: those that are open, or else new ones.

    Call it in the transaction that recorded the deletion. Others wait for that, so this is short,
    and changes no item of an earlier cleanup.
    """
    cleanups = Cleanup.objects
    whole = {"project_id": project_id, "project_deleted_at": deleted_at}
    known = {
        each.bucket: each for each in cleanups.of_project(project_id).filter(**whole, parent=None)
    }
    found = []
    values = held_ids.hold_of_deletion(project_id, deleted_at) | values
    for bucket in cleanups.buckets_for(project_id):
        if cleanup := known.get(bucket):
            cleanup.record("request", _("Requested again while still open."))
        else:
            kind = Cleanup.Kind.PROJECT
            cleanup = cleanups.request(kind=kind, bucket=bucket, trigger=trigger, **whole, **values)
            requeue_earlier_cleanups(cleanup)
        found.append(cleanup)
    return found


def requeue_earlier_cleanups(cleanup: Cleanup) -> None:
    """Have workers end the open cleanups of the project's earlier deletions, and their follow-up
    checks. They may have a million items, which is too much for the transaction of a deletion."""
    for earlier in Cleanup.objects.of_other_deletions(cleanup):
        earlier.requeue_to_end(superseded_text(earlier.project_id or ""))


def request_deletion(bucket: str, rows: list[DeletedRow], **hold: Any) -> Cleanup:
    """Put the rows into this transaction's cleanup for the bucket, made when there is none. What is
    held gets one of its own, as each delete() call is undone separately."""
    cleanup = None if hold else cleanup_of_transaction(bucket)
    if cleanup is None:
        cleanup = Cleanup.objects.request(
            kind=Cleanup.Kind.OBJECTS,
            bucket=bucket,
            project_id=rows[0].project_id,
            trigger=Cleanup.Trigger.DELETED,
            **hold,
        )
        transaction.on_commit(TransactionCleanup(cleanup).enqueue, robust=True)
    cleanup.add_rows(rows)
    return cleanup


@dataclass(frozen=True)
class TransactionCleanup:
    """A cleanup that the transaction under way has made, to be enqueued on commit."""

    cleanup: Cleanup

    def enqueue(self) -> None:
        enqueue_cleanup(self.cleanup.pk)


def cleanup_of_transaction(bucket: str) -> Cleanup | None:
    """This transaction's cleanup for the bucket.

    Its hook is the mark: Django drops it with the transaction, and with the savepoint that the
    cleanup was made in. It does not for a savepoint made by hand, so the database is asked too.
    """
    for registered in connection.run_on_commit:
        request = getattr(registered[1], "__self__", None)
        if isinstance(request, TransactionCleanup) and request.cleanup.bucket == bucket:
            known = Cleanup.objects.get_untouched(request.cleanup.pk)
            if known is not None:
                return known
    return None


def enqueue_on_commit(cleanups: Iterable[Cleanup]) -> None:
    """Enqueue once the transaction is committed; if that fails, the sweep finds the cleanups."""
    for cleanup in cleanups:
        transaction.on_commit(enqueue_hook(cleanup.pk), robust=True)


def enqueue_hook(cleanup_id: UUID) -> Callable[[], None]:
    # A function, as Django asks a hook that failed for its __qualname__, which a partial lacks.
    def enqueue() -> None:
        enqueue_cleanup(cleanup_id)

    return enqueue


def enqueue_cleanup(cleanup_id: UUID) -> None:
    """Have a worker run the cleanup; with the setting SYNC, run it here and now."""
    cleanup = Cleanup.objects.filter(pk=cleanup_id)
    try:
        if not cleanup.update(enqueued_at=timezone.now()):
            return  # Rolled back with a savepoint made by hand, for which Django keeps the hooks.
        if not conf().sync:
            send_to_queue(cleanup_id)
    except Exception:
        with logs.deletion_context(cleanup_id):
            logger.exception("The cleanup could not be queued. A worker starts it within a minute.")
        raise
    if conf().sync:
        queue.call_here(queue.RUN_TO_END, cleanup_id)


def send_to_queue(cleanup_id: UUID) -> None:
    # The queue's own lines name the task.
    pk = str(cleanup_id)
    with logs.deletion_context(cleanup_id, Cleanup.objects.find_request_id(cleanup_id)):
        queue.send_task(queue.RUN_CLEANUP, pk, task_name=pk)
