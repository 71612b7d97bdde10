"""What a verification's complete look means for each item: gone, sent once more, or given up.

Some items at a time, as a million take longer than a lease lasts.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from django.db import transaction
from django.db.models import Case, Exists, F, OuterRef, Q, TextField, Value, When
from django.db.models.functions import Concat
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.cleanup import progress, used_files
from storage_audit.cleanup.delete_batches import NOT_LISTED, barred_by, what_decides
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.clocks import CLOCKS_DIFFER, maybe_since
from storage_audit.conf import conf
from storage_audit.models import AT_REST, R2Object, under_way

Outcome = CleanupItem.Outcome
CALLED_GONE = (Outcome.DELETED, Outcome.ALREADY_ABSENT)
# Items in one transaction: a fraction of a second.
TOGETHER = 5000
# Sent with an operation and those of its items that the look saw gone, before they are called so
# and in the same transaction: an error of a receiver rolls all of that back.
objects_gone = Signal()


def settle(work: Work, lost: dict[int, str]) -> None:
    """Say of each item what the listing showed, and forget the rows of what is gone; `lost` are
    files that rows name all the same."""
    operation, items = work.operation, work.operation.items
    called_gone = items.filter(outcome__in=CALLED_GONE)
    sent = items.filter(outcome=Outcome.DELETING)
    settle_each(work, called_gone.filter(present_at__isnull=False), doubt_what_is_back)
    # Together, as one alert is to count them.
    for some in (sent.filter(pk__any_of=list(lost)), sent):
        settle_each(work, some, partial(settle_sent, operation, lost))
    # What nobody can name in a request can still be deleted by other means.
    nameless = items.nameless().filter(present_at=None)
    settle_each(work, nameless, partial(call_absent, operation))
    gone, again = items.filter(outcome=Outcome.DELETED).count(), items.planned().count()
    text = _("Every range was listed to its end: %(gone)s gone, %(again)s to be tried again.")
    times = {name: operation.cursor[name] for name in ("began", "ended")}
    with transaction.atomic():
        if again:
            operation.renew(step=CleanupOperation.Step.DELETE, cursor={})
        else:
            operation.renew(cursor={"settled": True})
        operation.record("verify", text % {"gone": gone, "again": again}, **times)


def settle_each(
    work: Work, items: CleanupItemQuerySet, settle_some: Callable[[CleanupItemQuerySet], None]
) -> None:
    """Settle some at a time, each time in less than the lease lasts. What is settled is none of
    `items` any more, so any worker can go on with the rest. Raises TurnOver and LeaseLost."""
    operation, todo = work.operation, items.order_by("span", "key").values_list("pk", flat=True)
    while pks := list(todo[:TOGETHER]):
        some = operation.items.filter(pk__any_of=pks)
        with transaction.atomic():
            operation.renew()
            before = some.by_outcome()
            settle_some(items.filter(pk__any_of=pks))
            after = some.by_outcome()
            is_progress = not after.keys().isdisjoint(CALLED_GONE)
            save = operation.progress if is_progress else operation.renew
            save(headway=progress.recounted(operation, before, after))
        work.breathe()


def settle_sent(
    operation: CleanupOperation, lost: dict[int, str], items: CleanupItemQuerySet
) -> None:
    unsent = items.filter(calls=0, present_at=None)
    forget_left_rows(operation, unsent)
    doubt_what_was_uploaded(operation, unsent)
    gone, there = items.filter(present_at=None), items.filter(present_at__isnull=False)
    named = {pk: lost[pk] for pk in gone.values_list("pk", flat=True) if pk in lost}
    forget_rows(operation, gone)
    objects_gone.send(CleanupOperation, operation=operation, gone=gone)
    gone.filter(calls=0).mark(Outcome.ALREADY_ABSENT)
    gone.filter(calls__gt=0).mark(Outcome.DELETED)
    used_files.tell_lost(operation, named)
    try_again(operation, there)


def forget_left_rows(operation: CleanupOperation, unsent: CleanupItemQuerySet) -> None:
    """A process that died in `storage.delete` left its mark, and the row as it was. An upload since
    would have stored another file."""
    left = unsent.filter(unanswered_at__isnull=False)
    facts = {name: OuterRef(name) for name in ("size", "etag", "last_modified")}
    facts["unanswered_at__gte"] = OuterRef("updated_at")
    same = left.filter(Q(key=OuterRef("key")) | Q(identity=OuterRef("key")), **facts)
    rows = R2Object.objects.in_bucket(operation.bucket).filter(key__in=left.names())
    # An upload that failed leaves these facts as they were, and may have stored its file.
    rows.filter(Exists(same), state=R2Object.State.STORED).forget()


def doubt_what_was_uploaded(operation: CleanupOperation, unsent: CleanupItemQuerySet) -> None:
    """The look does not show what an upload stored behind it."""
    # Uploads are dated by other machines. Rows that were barred are none of theirs.
    earliest = datetime.fromisoformat(operation.cursor["began"]) - CLOCKS_DIFFER
    rows = R2Object.objects.in_bucket(operation.bucket)
    written = Q(state__in=AT_REST) & maybe_since("updated_at", earliest)
    rows = rows.filter(under_way() | written)
    ended = rows.filter(key__in=[OuterRef("key"), OuterRef("identity")])
    reason = _("An upload to this key is under way, or has just ended.")
    reason += " " + what_decides(operation)
    unsent.filter(Exists(ended)).mark(Outcome.PROTECTED, reason)


def call_absent(operation: CleanupOperation, items: CleanupItemQuerySet) -> None:
    objects_gone.send(CleanupOperation, operation=operation, gone=items)
    items.mark(Outcome.ALREADY_ABSENT)


def try_again(operation: CleanupOperation, there: CleanupItemQuerySet) -> None:
    """Send the items that are still there once more, or give them up."""
    # Looks that contradict each other count as tries, or they might do so for ever.
    there.filter(answer=NOT_LISTED).update(tries=F("tries") + 1)
    give_up(operation, there.locked())
    there.filter(tries__lt=conf().tries).mark(Outcome.PLANNED)
    give_up(operation, there)


def doubt_what_is_back(back: CleanupItemQuerySet) -> None:
    """An object that an earlier attempt saw gone, and that is there, counts as sent and still
    there: the next proof compares it with the plan."""
    back.named().update(outcome=Outcome.PROTECTED, changed_at=timezone.now())
    back.filter(escaped=True).mark(Outcome.FAILED, _("It was gone, and is in the bucket again."))
    back.mark(Outcome.DELETING)


def forget_rows(operation: CleanupOperation, gone: CleanupItemQuerySet) -> None:
    barred_by(operation).filter(state=R2Object.State.DELETING, key__in=gone.names()).forget()


def give_up(operation: CleanupOperation, stayed: CleanupItemQuerySet) -> None:
    barred_by(operation).unlock(stayed.names())
    not_sent = Value(
        _("Still in the bucket, and never sent: the listing before the deletion did not have it.")
        + " "
        + _("Ask for another cleanup to decide on it.")
    )
    answered = Concat(Value(_("Still in the bucket; the store's answer: ")), F("answer"))
    untried = When(answer=NOT_LISTED, then=not_sent)
    said = Case(untried, default=answered, output_field=TextField())
    stayed.update(outcome=Outcome.FAILED, reason=said, changed_at=timezone.now())
