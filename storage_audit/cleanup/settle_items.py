"""What a complete listing means for each item: gone, to be sent once more, or failed.

Some items at a time, as a million take longer than a lease lasts.
"""

from collections.abc import Callable
from functools import partial

from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Q, TextField, Value, When
from django.db.models.functions import Concat
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.cleanup import progress, used_files
from storage_audit.cleanup.cleanup_text import another_cleanup_advice
from storage_audit.cleanup.delete_batches import NOT_LISTED
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.clocks import MAX_CLOCK_SKEW, time_maybe_since
from storage_audit.conf import conf
from storage_audit.models import STABLE_STATES, R2Object, uploading_rows

Outcome = CleanupItem.Outcome
GONE_OUTCOMES = (Outcome.DELETED, Outcome.ALREADY_GONE)
# Items in one transaction: a fraction of a second.
ITEMS_PER_TRANSACTION = 5000
# Sent with a cleanup and its items that are gone, before they are marked so and in the same
# transaction: an error of a receiver rolls all of that back.
objects_gone = Signal()


def settle_items(work: Turn, lost: dict[int, str]) -> None:
    """Record for each item what the listing showed, and delete the rows of what is gone; `lost` are
    files that other rows still name."""
    cleanup, items = work.cleanup, work.cleanup.items
    called_gone = items.filter(outcome__in=GONE_OUTCOMES)
    sent = items.filter(outcome=Outcome.DELETING)
    settle_in_batches(work, called_gone.filter(last_seen_at__isnull=False), reopen_reappeared)
    # Lost files first and together, as one alert counts them.
    for some in (sent.filter(pk__any_of=list(lost)), sent):
        settle_in_batches(work, some, partial(settle_sent, cleanup, lost))
    # What nobody can name in a request can still be deleted by other means.
    nameless = items.nameless().filter(last_seen_at=None)
    settle_in_batches(work, nameless, partial(mark_already_gone, cleanup))
    gone, again = items.filter(outcome=Outcome.DELETED).count(), items.planned().count()
    text = _("Listed the bucket to the end: %(gone)s gone, %(again)s to delete again.")
    position = cleanup.position
    assert position.began_at and position.ended_at
    times = {"began": position.began_at.isoformat(), "ended": position.ended_at.isoformat()}
    with transaction.atomic():
        if again and not cleanup.cancelled_at:
            cleanup.begin_step(Cleanup.Step.DELETE)
        else:
            cleanup.renew(position=Position(is_settled=True))
        cleanup.record("verify", text % {"gone": gone, "again": again}, **times)


def settle_in_batches(
    work: Turn, items: CleanupItemQuerySet, settle_some: Callable[[CleanupItemQuerySet], None]
) -> None:
    """Settle some at a time, each time in less than the lease lasts. Settled items are no longer in
    `items`, so any worker can go on with the rest. Raises TurnOver and LeaseLost."""
    cleanup, todo = work.cleanup, items.order_by("range_index", "key").values_list("pk", flat=True)
    while pks := list(todo[:ITEMS_PER_TRANSACTION]):
        some = cleanup.items.filter(pk__any_of=pks)
        with transaction.atomic():
            cleanup.renew()
            before = some.by_outcome()
            settle_some(items.filter(pk__any_of=pks))
            after = some.by_outcome()
            is_progress = not after.keys().isdisjoint(GONE_OUTCOMES)
            save = cleanup.renew_after_progress if is_progress else cleanup.renew
            save(progress=progress.recount_outcomes(cleanup, before, after))
        work.check_deadline()


def settle_sent(cleanup: Cleanup, lost: dict[int, str], items: CleanupItemQuerySet) -> None:
    unsent = items.filter(calls=0, last_seen_at=None)
    forget_interrupted_rows(cleanup, unsent)
    keep_uploaded_items(cleanup, unsent)
    gone, there = items.filter(last_seen_at=None), items.filter(last_seen_at__isnull=False)
    named = {pk: lost[pk] for pk in gone.values_list("pk", flat=True) if pk in lost}
    forget_gone_rows(cleanup, gone)
    objects_gone.send(Cleanup, cleanup=cleanup, gone=gone)
    gone.filter(calls=0).mark(Outcome.ALREADY_GONE)
    gone.filter(calls__gt=0).mark(Outcome.DELETED)
    used_files.report_lost_files(cleanup, named)
    retry_items(cleanup, there)


def forget_interrupted_rows(cleanup: Cleanup, unsent: CleanupItemQuerySet) -> None:
    """Delete the rows of files that a process which died in `storage.delete` has deleted. An upload
    since would have stored another file."""
    left = unsent.filter(unanswered_at__isnull=False)
    facts = {name: OuterRef(name) for name in ("size", "etag", "last_modified")}
    facts["unanswered_at__gte"] = OuterRef("updated_at")
    same = left.filter(Q(key=OuterRef("key")) | Q(identity=OuterRef("key")), **facts)
    rows = R2Object.objects.in_bucket(cleanup.bucket).filter(key__in=left.keys_and_identities())
    # An upload that failed leaves these facts as they were, and may have stored its file.
    rows.filter(Exists(same), state=R2Object.State.STORED).delete_without_signals()


def keep_uploaded_items(cleanup: Cleanup, unsent: CleanupItemQuerySet) -> None:
    """Keep items that an upload may have stored after the listing."""
    # Uploads are dated by other machines' clocks. Locked rows are of no upload.
    began_at = cleanup.position.began_at
    assert began_at
    earliest = began_at - MAX_CLOCK_SKEW
    rows = R2Object.objects.in_bucket(cleanup.bucket)
    written = Q(state__in=STABLE_STATES) & time_maybe_since("updated_at", earliest)
    rows = rows.filter(uploading_rows() | written)
    ended = rows.filter(key__in=[OuterRef("key"), OuterRef("identity")])
    reason = _("An upload to this name is in progress or has just ended.")
    reason += " " + policy_of(cleanup).what_happens_next(cleanup)
    unsent.filter(Exists(ended)).mark(Outcome.KEPT, reason)


def mark_already_gone(cleanup: Cleanup, items: CleanupItemQuerySet) -> None:
    objects_gone.send(Cleanup, cleanup=cleanup, gone=items)
    items.mark(Outcome.ALREADY_GONE)


def retry_items(cleanup: Cleanup, there: CleanupItemQuerySet) -> None:
    """Send the items that still exist once more, or fail them."""
    # Listings that contradict each other count as attempts, or this might go on for ever.
    there.filter(store_answer=NOT_LISTED).update(attempts=F("attempts") + 1)
    fail_items(cleanup, there.kept_by_lock_rule())
    there.filter(attempts__lt=conf().delete_attempts).mark(Outcome.TO_DELETE)
    fail_items(cleanup, there)


def reopen_reappeared(back: CleanupItemQuerySet) -> None:
    """An object that was gone in an earlier attempt and exists again counts as sent and not
    deleted: the next recheck compares it with the plan."""
    back.named().update(outcome=Outcome.KEPT, changed_at=timezone.now())
    back.filter(escaped=True).mark(Outcome.FAILED, _("The file was gone, and is back."))
    back.mark(Outcome.DELETING)


def forget_gone_rows(cleanup: Cleanup, gone: CleanupItemQuerySet) -> None:
    policy_of(cleanup).locked_rows(cleanup).filter(
        state=R2Object.State.DELETING, key__in=gone.keys_and_identities()
    ).delete_without_signals()


def fail_items(cleanup: Cleanup, stayed: CleanupItemQuerySet) -> None:
    policy_of(cleanup).locked_rows(cleanup).unlock(stayed.keys_and_identities())
    not_sent = Value(
        _("Still in the bucket. No deletion was sent, as an earlier listing did not show the file.")
        + " "
        + another_cleanup_advice()
    )
    answered = Concat(Value(_("Still in the bucket. The store's answer: ")), F("store_answer"))
    untried = When(store_answer=NOT_LISTED, then=not_sent)
    said = Case(untried, default=answered, output_field=TextField())
    stayed.update(outcome=Outcome.FAILED, reason=said, changed_at=timezone.now())
