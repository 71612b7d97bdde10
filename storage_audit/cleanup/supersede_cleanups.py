"""Which cleanup of a deleted project acts: at most one is open in a bucket, that of the latest
deletion.

A project can be created and deleted again while its cleanup still waits. The next one then takes
over, with a plan and limits of its own, and the earlier one ends superseded.
"""

from collections.abc import Iterable

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.cleanup import delete_batches, plan_summary
from storage_audit.cleanup.cleanup_text import superseded_text
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.models import KnownProject

Status = Cleanup.Status


def end_earlier_cleanups(earlier: Iterable[Cleanup]) -> None:
    """End them before the cleanup of the latest deletion begins. A worker that has one ends it when
    it next checks the project."""
    for each in earlier:
        supersede_idle_cleanup(each, superseded_text(each.project_id or ""))


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
