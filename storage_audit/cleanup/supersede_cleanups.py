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

from storage_audit.cleanup import delete_batches, held_ids, plan_summary
from storage_audit.cleanup.kind_policies import policy_of, superseded_text
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupQuerySet
from storage_audit.models import KnownProject

Status = Cleanup.Status


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
    for earlier in find_earlier_cleanups(cleanup):
        earlier.requeue_to_end(superseded_text(earlier.project_id or ""))


def end_earlier_cleanups(earlier: Iterable[Cleanup]) -> None:
    """End them before the cleanup of the latest deletion begins. A worker that has one ends it when
    it next checks the project."""
    for each in earlier:
        supersede_idle_cleanup(each, superseded_text(each.project_id or ""))


def find_earlier_cleanups(cleanup: Cleanup) -> CleanupQuerySet:
    """The open cleanups of other deletions of the project. They are earlier ones if this cleanup's
    deletion is still on record as the latest afterwards."""
    same = Cleanup.objects.of_project(cleanup.project_id or "")
    if cleanup.parent_id:
        return same.none()
    same = same.filter(bucket=cleanup.bucket)
    return same.exclude(project_deleted_at=cleanup.project_deleted_at)


def supersede_idle_cleanup(cleanup: Cleanup, reason: str) -> None:
    with transaction.atomic():
        if not cleanup.unschedule():
            return
        settle_superseded_items(cleanup, reason)
        cleanup.finish_superseded(reason, cleanup.items.totals())
        cleanup.record("superseded", reason)


def supersede_cleanup(cleanup: Cleanup, reason: str) -> None:
    """Supersede the cleanup as the worker that has it."""
    with transaction.atomic():
        cleanup.renew()
        settle_superseded_items(cleanup, reason)
    # Outside the transaction, as it may read a million items.
    plan_summary.add_dropped_items(cleanup)
    same = {"pk": cleanup.project_id, "deleted_at": cleanup.project_deleted_at}
    with transaction.atomic():
        # Its project exists. If it goes without a signal before the next sweep, it has vanished.
        KnownProject.objects.deletion_reported().filter(**same).clear_deletion()
        cleanup.finish(Status.SUPERSEDED, cleanup.items.totals(), message=reason)
        cleanup.record("superseded", reason)


def settle_superseded_items(cleanup: Cleanup, reason: str) -> None:
    """Keep what was not sent, and note that the result of the rest is unknown."""
    delete_batches.keep_items(cleanup, cleanup.items.open().filter(calls=0), reason)
    # These were sent before the id was alive again, and not checked since. Without an answer they
    # stay marked: the store may still obey the call, and would delete a new upload instead.
    delete_batches.unlock_idle_items(cleanup)
    policy_of(cleanup).lockable_rows(cleanup).unlock(cleanup.items.open().keys_and_identities())
    text = _(
        "Sent for deletion before the project was created again. Verify the project to see"
        " whether the file is gone."
    )
    cleanup.items.open().update(reason=text)
    # When they were sent shows whether a later object of the key may be missing: see limits.py.
    cleanup.items.planned().update(outcome=CleanupItem.Outcome.FAILED)
