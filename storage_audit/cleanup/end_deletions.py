"""Undo, Cancel, Erase now and Clean up again: what a person may do about a deletion.

Each acts on the whole deletion, in all its buckets, and locks its cleanups in the order of their
keys, so that of two who decide at once the second sees what the first did.
"""

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup import delete_batches, held_ids, supersede_cleanups
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.cleanup.restore_snapshot import Restored
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin

Kind, Status, Outcome = Cleanup.Kind, Cleanup.Status, CleanupItem.Outcome
KeptFor = KnownProject.KeptFor


@transaction.atomic
def undo_deletion(cleanup: Cleanup, reason: str = "") -> Restored:
    """Bring the project back. A stub: it restores the row's id only."""
    require_deletion(cleanup)
    undone = lock_deletion(cleanup)
    if refusal := can_be_undone(cleanup):
        raise IllegalTransition(refusal)
    for each in undone:
        each.undo(decided_by=deciding_user(), decision_reason=reason)
        each.record("undo", _("Undone by %s.") % deciding_user())
    cleanup.end_hold()
    model = project_model.get_model()
    with held_ids.allow_recreation():
        model._default_manager.create(pk=cleanup.project_id)
    return Restored({str(model._meta.verbose_name): 1}, [])


def can_be_undone(cleanup: Cleanup) -> str:
    """Why the deletion cannot be undone any more; empty if it can."""
    if cleanup.kind == Kind.PROJECT and cleanup.parent_id is None:
        deletion = Cleanup.objects.with_deletion(cleanup)
        ended = deletion.filter(status__in=[Status.UNDONE, Status.CANCELLED, Status.SUPERSEDED])
        begun = deletion.filter(first_request_at__isnull=False)
        if cleanup.is_held() and not ended.exists() and not begun.exists():
            return ""
    return _("Cleanup %s can't be undone.") % cleanup.pk


@transaction.atomic
def cancel_deletion(cleanup: Cleanup, reason: str) -> list[Cleanup]:
    """Give the deletion's files up: those that were not sent for deletion stay. Returns the
    cleanups that a worker has yet to verify.

    Raises IllegalTransition when it is over, or a worker has it.
    """
    require_deletion(cleanup)
    decision = {"decided_by": deciding_user(), "decision_reason": reason}
    cancelled = [each for each in lock_deletion(cleanup) if is_open(each)]
    if not cancelled:
        raise IllegalTransition(_("Cleanup %s is over, so it can't be cancelled.") % cleanup.pk)
    for each in cancelled:
        keep_unsent_items(each, _("Its cleanup was cancelled."))
        totals = {} if each.first_request_at else each.items.totals()
        each.cancel(message=reason, **decision, **totals)
        each.record("cancel", cancel_text(decision["decided_by"], reason))
    keep_for_person(cleanup)
    return [each for each in cancelled if each.status == Status.PENDING]


@transaction.atomic
def erase_deletion(cleanup: Cleanup, reason: str) -> list[Cleanup]:
    """End the hold: nobody can undo the deletion any more, and its cleanups run at once. Returns
    these. Raises IllegalTransition when there is no hold, or no reason is given."""
    require_deletion(cleanup)
    if not reason.strip():
        raise IllegalTransition(_("Say why the files of cleanup %s go now.") % cleanup.pk)
    over = (Status.UNDONE, Status.CANCELLED, Status.SUPERSEDED)
    locked = [each for each in lock_deletion(cleanup) if each.status not in over]
    cleanups = [each for each in locked if each.is_held() and not each.cancelled_at]
    if not cleanups:
        raise IllegalTransition(_("Cleanup %s is not held.") % cleanup.pk)
    cleanup.end_hold()
    for each in cleanups:
        text, held_until = _("Erased now by %(user)s: %(reason)s"), str(each.held_until)
        each.erase(decided_by=deciding_user(), decision_reason=reason)
        words = {"user": deciding_user(), "reason": reason}
        each.record("erase", text % words, held_until=held_until)
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
        raise IllegalTransition(_("Say why the files of project %s go after all.") % shown)
    KnownProject.objects.filter(pk=project_id).update(kept_for="")
    cleanups = supersede_cleanups.request_cleanups(
        project_id, trigger=Cleanup.Trigger.DECLARED, deleted_at=known.deleted_at
    )
    for each in cleanups:
        text = _("Cleaned up again by %(user)s: %(reason)s")
        each.record("request", text % {"user": deciding_user(), "reason": reason})
    return cleanups


def deciding_user() -> str:
    return current_origin().user or "command"


def lock_deletion(cleanup: Cleanup) -> list[Cleanup]:
    """All cleanups of the deletion, locked against workers and other people."""
    # Before the cleanups' own rows, as in a deletion of the project.
    KnownProject.objects.lock_id(cleanup.project_id)
    return list(Cleanup.objects.with_deletion(cleanup).lock().order_by("pk"))


def require_deletion(cleanup: Cleanup) -> None:
    if not cleanup.is_deletion or cleanup.kind == Kind.VANISHED:
        raise IllegalTransition(_("Cleanup %s is of no deletion.") % cleanup.pk)


def keep_unsent_items(cleanup: Cleanup, reason: str) -> None:
    """Keep what was not sent. Of the rest, a verification says what became of it."""
    sent = Q(outcome=Outcome.DELETING, calls__gt=0)
    unsent = cleanup.items.filter(outcome__in=[*CleanupItem.OPEN, Outcome.FAILED]).exclude(sent)
    delete_batches.keep_items(cleanup, unsent, reason)


def keep_for_person(cleanup: Cleanup) -> None:
    """Note that the project's files stay, unless it lives again by now."""
    if cleanup.kind == Kind.PROJECT:
        known = KnownProject.objects.of_deletion(cleanup.project_id, cleanup.project_deleted_at)
        known.filter(deleted_at__isnull=False).update(kept_for=KeptFor.CANCELLED)


def cancel_text(user: str, reason: str) -> str:
    text = _("Cancelled by %(user)s: %(reason)s") if reason else _("Cancelled by %(user)s.")
    return text % {"user": user, "reason": reason}


def is_open(cleanup: Cleanup) -> bool:
    return cleanup.status in (*Cleanup.WORKABLE, Status.BLOCKED)
