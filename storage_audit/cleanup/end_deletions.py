"""Undo, Cancel, Erase now and Clean up again: what a person may do about a deletion.

Each acts on the whole deletion, in all its buckets, and locks its cleanups in the order of their
keys, so that of two who decide at once the second sees what the first did.
"""

from collections.abc import Iterable, Iterator
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.dispatch import Signal
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup import delete_batches, make_cleanups, pause_deletions
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet, Snapshot
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.cleanup.restore_snapshot import Restored, restore_snapshot
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin

Kind, Status, Outcome = Cleanup.Kind, Cleanup.Status, CleanupItem.Outcome
KeptFor = KnownProject.KeptFor
# Sent with a cleanup that a person cancelled, its items that stay for that, before they are marked
# so, who cancelled it, and why.
files_kept = Signal()


@transaction.atomic
def undo_deletion(cleanup: Cleanup, reason: str = "") -> list[Restored]:
    """Bring back what the delete() call deleted, with the R2Object rows that were deleted apart
    from it, and end the cleanups of these. A row whose file was replaced since stays deleted.

    Raises IllegalTransition when a request was sent or the time for it is over, and CannotRestore
    when the rows can't come back. Both change nothing.
    """
    root = cleanup.parent or cleanup
    require_deletion(root)
    locked, restored = list(lock_snapshots(root)), list[Restored]()
    root.refresh_from_db()
    for project_id in outdated_deletions(locked):
        text = _("Project %s was created again since, so this deletion can't be undone.")
        raise IllegalTransition(text % printable_text(project_id))
    if obstacle := undo_obstacle(root):
        text = _("Cleanup %(id)s can't be undone. %(reason)s")
        raise IllegalTransition(text % {"id": root.pk, "reason": obstacle})
    for snapshot, cleanups in locked:
        is_its_own = snapshot.pk == root.snapshot_id
        try:
            with transaction.atomic():
                restored.append(restore_call(snapshot, cleanups, reason))
        except CannotRestore as refusal:
            if is_its_own:
                raise
            restored.append(Restored({}, [str(refusal)]))
    return restored


def restore_call(snapshot: Snapshot, cleanups: Iterable[Cleanup], reason: str) -> Restored:
    """Bring back what one delete() call deleted, and end its cleanups."""
    for each in cleanups:
        delete_batches.keep_items(each, unsent_items(each), _("The deletion was undone."))
        decision = {"decided_by": deciding_user(), "decision_reason": reason, "message": ""}
        each.undo(**decision, **each.items.totals())
        each.record("undo", decision_text(_("Undone"), reason))
    restored = restore_snapshot(snapshot)
    snapshot.delete()
    ids = {each.project_id or "" for each in cleanups if each.kind == Kind.PROJECT}
    for project_id in sorted(ids - project_model.existing_ids(ids)):
        # Its cleanup has ended, and its rows would be lost.
        text = _("Project %(project)s can't come back, so nothing was restored. %(why)s")
        words = {"project": printable_text(project_id), "why": " ".join(restored.left_out)}
        raise CannotRestore(text % words)
    return restored


@transaction.atomic
def cancel_deletion(cleanup: Cleanup, reason: str) -> list[Cleanup]:
    """Give the deletion's files up: those that were not sent for deletion stay. Returns the
    cleanups that a worker has yet to verify.

    Raises IllegalTransition when it is over, or a worker has it.
    """
    require_deletion(cleanup)
    decision = {"decided_by": deciding_user(), "decision_reason": reason}
    locked = lock_deletion(cleanup)
    cancelled = [each for each in locked if is_open(each) or each.is_held()]
    if not any(is_undecided(each) for each in locked):
        raise IllegalTransition(_("Cleanup %s is over, so it can't be cancelled.") % cleanup.pk)
    for each in cancelled:
        keep_cancelled_items(each, unsent_items(each), decision["decided_by"], reason)
        totals = {} if each.first_request_at else each.items.totals()
        each.cancel(message=reason, **decision, **totals)
        each.record("cancel", decision_text(_("Cancelled"), reason))
    cleanup.end_hold()
    keep_for_person(cleanup)
    return [each for each in cancelled if each.status == Status.PENDING]


@transaction.atomic
def erase_deletion(cleanup: Cleanup, reason: str) -> list[Cleanup]:
    """End the hold: nobody can undo the deletion any more, and its cleanups run at once. Returns
    these. Raises IllegalTransition when there is no hold, no reason is given, or deletions are
    paused."""
    require_deletion(cleanup)
    if not reason.strip():
        raise IllegalTransition(
            _("Enter a reason to erase the files of cleanup %s now.") % cleanup.pk
        )
    cleanups = [each for each in lock_deletion(cleanup) if each.is_held()]
    if not cleanups:
        raise IllegalTransition(_("Cleanup %s is not held.") % cleanup.pk)
    pause_deletions.refuse_while_paused(cleanups)
    cleanup.end_hold()
    for each in cleanups:
        held_until = str(each.held_until)
        each.erase(decided_by=deciding_user(), decision_reason=reason)
        each.record("erase", decision_text(_("Erased now"), reason), held_until=held_until)
    return [each for each in cleanups if is_open(each)]


@transaction.atomic
def clean_up_again(project_id: str, reason: str) -> list[Cleanup]:
    """Make new cleanups of a deletion that a person cancelled. Raises IllegalTransition when none
    was, or no reason is given."""
    KnownProject.objects.lock_id(project_id)
    known = KnownProject.objects.filter(pk=project_id, kept_for=KeptFor.CANCELLED).first()
    shown = printable_text(project_id)
    if known is None or known.deleted_at is None:
        raise IllegalTransition(_("No cleanup of project %s was cancelled.") % shown)
    if not reason.strip():
        raise IllegalTransition(_("Enter a reason to delete the files of project %s.") % shown)
    KnownProject.objects.filter(pk=project_id).update(kept_for="")
    cleanups = make_cleanups.request_cleanups(
        project_id, trigger=Cleanup.Trigger.DECLARED, deleted_at=known.deleted_at
    )
    for each in cleanups:
        each.record("request", decision_text(_("Cleaned up again"), reason))
    return cleanups


def deciding_user() -> str:
    return current_origin().user or "command"


def lock_deletion(cleanup: Cleanup) -> list[Cleanup]:
    """All cleanups of the deletion, locked against workers and other people."""
    cleanup.lock_hold()
    return list(Cleanup.objects.with_deletion(cleanup).lock().order_by("pk"))


def undo_obstacle(cleanup: Cleanup) -> str:
    """Why the deletion can't be undone any more, or nothing."""
    if not cleanup.held_until or cleanup.status in Cleanup.GIVEN_UP:
        return _("There is nothing to undo.")
    if cleanup.first_request_at:
        return _("Deleting the files has begun.")
    if cleanup.snapshot is None:
        return _("The copy of the deleted rows is missing or has expired.")
    if cleanup.snapshot.unavailable:
        text = _("No copy of the deleted rows could be kept: %s. You can cancel instead.")
        return text % cleanup.snapshot.get_unavailable_display()
    return ""


def lock_snapshots(cleanup: Cleanup) -> Iterator[tuple[Snapshot, list[Cleanup]]]:
    """The copies of rows that undo brings back, each with the cleanups that it ends."""
    calls = Cleanup.objects.filter(snapshot=cleanup.snapshot_id, snapshot__isnull=False)
    ids = sorted(filter(None, calls.values_list("project_id", flat=True)))
    for project_id in ids:
        # Before the cleanups' own rows, as in a deletion of the project.
        KnownProject.objects.lock_id(project_id)
    rows_too = Cleanup.objects.held().filter(kind=Kind.OBJECTS, project_id__in=ids)
    also = rows_too.values_list("snapshot_id", flat=True)
    snapshots = {pk for pk in (cleanup.snapshot_id, *also) if pk}
    together = Q(snapshot__in=snapshots) | Q(parent__snapshot__in=snapshots)
    # PostgreSQL locks no row of an outer join.
    pks = list(Cleanup.objects.filter(together).values_list("pk", flat=True))
    found = list(Snapshot.objects.filter(pk__in=snapshots).select_for_update().order_by("pk"))
    locked = list(Cleanup.objects.filter(pk__in=pks).lock().order_by("pk"))
    for snapshot in found:
        mine = [each for each in locked if snapshot.pk in snapshots_of(each)]
        yield snapshot, mine


def outdated_deletions(locked: Iterable[tuple[Snapshot, list[Cleanup]]]) -> Iterator[str]:
    """The projects that were created again, and maybe deleted again, since these deletions."""
    for each in (cleanup for _snapshot, cleanups in locked for cleanup in cleanups):
        same = KnownProject.objects.of_deletion(each.project_id, each.project_deleted_at)
        if each.kind == Kind.PROJECT and not same.exists():
            yield each.project_id or ""


def snapshots_of(cleanup: Cleanup) -> set[UUID | None]:
    return {cleanup.snapshot_id, cleanup.parent.snapshot_id if cleanup.parent else None}


def require_deletion(cleanup: Cleanup) -> None:
    if not cleanup.is_deletion or cleanup.kind == Kind.VANISHED:
        raise IllegalTransition(_("Cleanup %s does not belong to a deletion.") % cleanup.pk)


def unsent_items(cleanup: Cleanup) -> CleanupItemQuerySet:
    """What was not sent. Of the rest, a verification says what became of it."""
    delete_batches.lock_answered_items(cleanup)
    sent = Q(outcome=Outcome.DELETING, calls__gt=0)
    return cleanup.items.filter(outcome__in=[*CleanupItem.OPEN, Outcome.FAILED]).exclude(sent)


def keep_cancelled_items(
    cleanup: Cleanup, items: CleanupItemQuerySet, by: str, reason: str
) -> None:
    files_kept.send(Cleanup, cleanup=cleanup, kept=items, by=by, reason=reason)
    delete_batches.keep_items(cleanup, items, _("Its cleanup was cancelled."))


def keep_for_person(cleanup: Cleanup) -> None:
    """Note that the project's files are kept, unless the project was created again."""
    if cleanup.kind == Kind.PROJECT:
        known = KnownProject.objects.of_deletion(cleanup.project_id, cleanup.project_deleted_at)
        known.filter(deleted_at__isnull=False).update(kept_for=KeptFor.CANCELLED)


def decision_text(done: str, reason: str) -> str:
    text = _("%(done)s by %(user)s: %(reason)s") if reason else _("%(done)s by %(user)s.")
    return text % {"done": done, "user": deciding_user(), "reason": reason}


def is_undecided(cleanup: Cleanup) -> bool:
    """Whether there is something to give up, and not only checks of a deletion that is over."""
    is_scheduled_check = cleanup.parent_id is not None and cleanup.status == Status.PENDING
    return cleanup.is_held() or is_open(cleanup) and not is_scheduled_check


def is_open(cleanup: Cleanup) -> bool:
    return cleanup.status in (*Cleanup.WORKABLE, Status.BLOCKED)
