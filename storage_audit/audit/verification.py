"""The verify step: list the plan's ranges again, complete or nothing, and believe only that."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from storage_audit.audit.deletion import own_rows
from storage_audit.audit.discovery import judged, position, save
from storage_audit.audit.work import Work
from storage_audit.bucket.listing import find, pages
from storage_audit.bucket.r2 import Listed
from storage_audit.conf import conf
from storage_audit.models import CleanupItem, CleanupOperation, Project, R2Object
from storage_audit.querysets import CleanupItemQuerySet

Outcome, FoundIn = CleanupItem.Outcome, CleanupItem.FoundIn
CHUNK = 1000


def verify(work: Work) -> None:
    """See which items are still in the bucket, then settle all of them at once.

    Only a look that reached the end of every range says that anything is gone. Raises OutOfTime,
    StoreError, Mismatch and LeaseLost.
    """
    operation = work.operation
    if "since" not in operation.cursor:
        operation.renew(cursor={"since": timezone.now().isoformat()})
    for span in range(operation.cursor.get("span", 0), len(operation.ranges)):
        look_under_prefix(work, span)
    look_at_keys(work)
    work.look_again()
    settle(work)


def look_under_prefix(work: Work, span: int) -> None:
    operation = work.operation
    after = operation.cursor.get("after", "")
    for page in pages(operation.bucket, operation.ranges[span], after):
        with transaction.atomic():
            operation.progress(cursor={**operation.cursor, **position(span, page, after)})
            mark_present(work, page, span)
        work.breathe()
    operation.progress(cursor={**operation.cursor, "span": span + 1, "after": ""})


def mark_present(work: Work, page: Sequence[Listed], span: int) -> None:
    """Items seen are marked; objects that are the project's and no item become items that stay."""
    items = work.operation.items
    late = {(item.identity, item.escaped): item for item in judged(work, page, span)}
    known = items.filter(identity__in=[identity for identity, _escaped in late])
    known.update(present_at=timezone.now())
    for facts in known.values_list("identity", "escaped"):
        late.pop(facts, None)
    for item in late.values():
        item.outcome = Outcome.PROTECTED
        item.reason = item.reason or _("It appeared after the plan; a late check decides on it.")
    save(list(late.values()))


def look_at_keys(work: Work) -> None:
    """Each key that no listed range contains, at its own place."""
    operation = work.operation
    after = operation.cursor.get("alone", "")
    alone = operation.items.filter(span=None, outcome=Outcome.DELETING).order_by("key")
    while items := list(alone.filter(key__gt=after)[:CHUNK]):
        found = find(operation.bucket, [item.key for item in items], work.identity)
        here = [item.pk for item in items if work.identity(item.key) in found]
        after = items[-1].key
        with transaction.atomic():
            operation.progress(cursor={**operation.cursor, "alone": after})
            operation.items.filter(pk__in=here).update(present_at=timezone.now())
        work.breathe()


def settle(work: Work) -> None:
    """Say of each item what the listing showed, and forget the rows of what is gone."""
    operation = work.operation
    since = parse_datetime(operation.cursor["since"])
    sent = operation.items.filter(outcome=Outcome.DELETING)
    still_there = Q(present_at__gte=since)
    gone = sent.exclude(still_there & Q(present_at__isnull=False))
    with transaction.atomic():
        operation.renew()
        forget_rows(operation, gone)
        gone.filter(tries=0).mark(Outcome.ALREADY_ABSENT)
        gone.filter(tries__gt=0).mark(Outcome.DELETED)
        again = sent.filter(still_there, tries__lt=conf().tries).mark(Outcome.PLANNED, answer="")
        give_up(operation, sent.filter(still_there))
        operation.record(
            "verify",
            _("Every range was listed to its end: %(gone)s gone, %(again)s to be tried again.")
            % {"gone": operation.items.filter(outcome=Outcome.DELETED).count(), "again": again},
        )
        if again:
            operation.progress(step=CleanupOperation.Step.DELETE, cursor={})
        else:
            operation.progress(cursor={"settled": True})


def forget_rows(operation: CleanupOperation, gone: CleanupItemQuerySet) -> None:
    keys = gone.values("key").union(gone.values("identity"))
    own_rows(operation).filter(state=R2Object.State.DELETING, key__in=keys).forget()


def give_up(operation: CleanupOperation, stayed: CleanupItemQuerySet) -> None:
    keys = list(stayed.values_list("key", flat=True))
    stayed.update(outcome=Outcome.FAILED, reason=F("answer"), changed_at=timezone.now())
    R2Object.objects.in_bucket(operation.bucket).unlock(keys)


def compare(work: Work) -> None:
    """End a verification: of a live project whether bucket and table agree, of a deleted one
    whether anything is left. Nothing is changed but the operation's own items."""
    operation, items = work.operation, work.operation.items
    alive = Project.objects.filter(pk=operation.project_id).exists()
    if alive and not operation.names_its_objects:
        in_step = items.planned().filter(found_in=FoundIn.BOTH)
        missing = items.planned().filter(found_in=FoundIn.TRACKED)
        untracked = items.planned().filter(found_in=FoundIn.LISTED)
        with transaction.atomic():
            operation.renew()
            agreed, _by_model = in_step.delete()
            gone = missing.mark(Outcome.FAILED, _("Tracked, but not in the bucket."))
            extra = untracked.mark(
                Outcome.PROTECTED, _("In the bucket, but not tracked: run backfill_r2.")
            )
            text = _("%(agreed)s in step, %(gone)s missing, %(extra)s untracked.")
            conclude(operation, text % {"agreed": agreed, "gone": gone, "extra": extra})
        return
    with transaction.atomic():
        operation.renew()
        items.planned().filter(found_in=FoundIn.TRACKED).mark(Outcome.ALREADY_ABSENT)
        left = items.planned().mark(Outcome.FAILED, _("Still in the bucket."))
        text = _("%(left)s left behind, %(gone)s seen absent.")
        gone = items.filter(outcome=Outcome.ALREADY_ABSENT).count()
        conclude(operation, text % {"left": left, "gone": gone})


def conclude(operation: CleanupOperation, result: str) -> None:
    books = operation.items.books()
    agrees = not books["failed"] and not books["protected"]
    status = operation.Status.CLEAN if agrees else operation.Status.INCOMPLETE
    operation.close(status, books, error=result)
    operation.record("verify", result)
