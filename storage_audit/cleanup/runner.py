"""A cleanup from its plan to its proof: plan, limit, delete, verify, close.

Each step records what it did before it goes on, so that any worker can take over at any moment.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import logs
from storage_audit.bucket import s3
from storage_audit.bucket.errors import BucketForbidden, StoreError
from storage_audit.bucket.listing import escape
from storage_audit.cleanup import (
    delete_batches,
    limits,
    named_files,
    plan_summary,
    policies,
    progress,
    succession,
    used_files,
    verify,
)
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.models.states import LeaseLost
from storage_audit.cleanup.plan import discover, ranges_of
from storage_audit.cleanup.position import Basis
from storage_audit.cleanup.turn import OwnerChanging, ProjectRecreated, TurnOver, Work
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.reading import read_in_steps
from storage_audit.redaction import redact

logger = logging.getLogger(__name__)
Kind, Status, Step = CleanupOperation.Kind, CleanupOperation.Status, CleanupOperation.Step
Outcome = CleanupItem.Outcome

# So many workers in a row that took it and did not report back: a person should know.
TAKEOVERS = 5
# So many passes in a row that had to start again: settings, or the queue, keep it from its end.
RESTARTS = 5
# Of the position, what rests on no page of a listing. A position from before there was a `seen_at`
# has more than this, and nothing vouches for it.
WITHOUT_PAGES = {"restarts", "settled", delete_batches.ABORTED}
REFUSALS_APART = timedelta(seconds=50)
# By late checks.
FOLLOWED = (Kind.PROJECT, Kind.ORPHANS)


def run(operation_id: UUID) -> CleanupOperation:
    """Work on the operation, turn after turn, until it is not running any more."""
    while (operation := run_slice(operation_id)) and operation.status == Status.RUNNING:
        pass
    return operation or CleanupOperation.objects.get(pk=operation_id)


def run_slice(operation_id: UUID) -> CleanupOperation | None:
    """Work on the operation for one turn; None if it is not due, or another worker has it by now.

    The store's errors end in the operation as a message and a next attempt. Any other exception
    does too, and is raised again.
    """
    with logs.about(operation_id, CleanupOperation.objects.request_id(operation_id)):
        try:
            return take_up(operation_id)
        except Exception:
            # Here, as whoever catches it knows neither the request nor the task any more.
            logger.exception("%s failed.", operation_id)
            raise


def take_up(operation_id: UUID) -> CleanupOperation | None:
    with transaction.atomic():
        operation = CleanupOperation.objects.get(pk=operation_id)
        operation.lock()
        ended = operation.finished_at is not None
        if not operation.claim():
            return None
        if ended and operation.kind == Kind.VERIFY:
            forget_pass(operation)
        if ended:
            start_again(operation)
        if operation.takeovers:
            text = _("The worker before did not report back; this one goes on from there.")
            operation.record("takeover", text)
            if operation.takeovers >= TAKEOVERS:
                postpone(operation, _("No worker gets on with it; their logs say why."))
                return operation
    logger.info("%s claimed, attempt %s", operation.pk, operation.attempts)
    try:
        take_turn(operation)
    except LeaseLost as error:
        logger.warning("%s", error, exc_info=True)
        return None
    return operation


def take_turn(operation: CleanupOperation) -> None:
    """Advance as far as the turn allows, and leave the operation in the state that follows."""
    try:
        advance(Work.begin(operation))
    except TurnOver as over:
        operation.hand_over(over.after)
    except ProjectRecreated as reborn:
        succession.supersede(operation, str(reborn))
    except used_files.Unread as unread:
        block(operation, str(unread), unread=unread.fields)
    except CannotConclude as mismatch:
        with transaction.atomic():
            forget_pass(operation)
            block(operation, str(mismatch))
    except StoreError as error:
        put_off(operation, error)
    except OwnerChanging as error:
        postpone(operation, str(error))
    except LeaseLost:
        raise
    except Exception as error:
        error.add_note(f"in operation {operation.pk}")
        postpone(operation, redact(f"{type(error).__name__}: {error}"))
        raise


def advance(work: Work) -> None:
    steps: dict[str, Callable[[Work], None]] = {
        Step.PLAN: plan,
        Step.DELETE: delete_batches.delete,
        Step.VERIFY: verify.verify,
    }
    operation = work.operation
    refuse_reborn(work)
    resume(work)
    while operation.status == Status.RUNNING:
        if operation.step == Step.VERIFY and operation.cursor.get("settled"):
            close(work)
        else:
            progress.enter(operation)
            steps[operation.step](work)


def refuse_reborn(work: Work) -> None:
    operation = work.operation
    if operation.kind == Kind.PROJECT and not operation.dry_run:
        # Before the look at the project: what comes later may be of a later deletion.
        earlier = list(succession.earlier_ones(operation))
        delete_batches.refuse_reborn(operation)
        operation.renew()
        # A worker may have had them when this one was asked for.
        succession.end(earlier)


def start_again(operation: CleanupOperation) -> None:
    """Put what failed back into the plan. What nobody can delete fails again, and costs nothing."""
    if may_delete(operation):
        operation.renew(step=Step.DELETE, cursor={})
        failed = operation.items.filter(outcome=Outcome.FAILED, escaped=False)
        failed.mark(Outcome.PLANNED, tries=0)
    operation.record("retry", _("Trying again."))


def may_delete(operation: CleanupOperation) -> bool:
    """Whether its plan was checked. Only `set_out` leaves the step PLAN, after the limits and the
    rows that use its files were asked."""
    return operation.deletes and operation.step != Step.PLAN


def resume(work: Work) -> None:
    """Go on from where the last turn stopped, or start the pass again if what it saw no longer
    counts. Raises OwnerChanging if that happens again and again."""
    operation, cursor = work.operation, work.operation.cursor
    if not cursor.keys() - WITHOUT_PAGES or ("seen_at" in cursor and is_trusted(work)):
        return
    restarts = cursor.get("restarts", 0) + 1
    with transaction.atomic():
        forget_pass(operation)
        operation.renew(cursor={"restarts": restarts})
        text = _("Listing the bucket from the beginning: what was listed before no longer counts.")
        operation.record(operation.step, text)
    if restarts % RESTARTS == 0:
        raise OwnerChanging(
            _(
                "The listing started from the beginning %s times. Its turns were more than an hour"
                " apart, or the workers' settings differ."
            )
            % restarts
        )


def is_trusted(work: Work) -> bool:
    """Whether nothing has changed on which the position rests."""
    operation, basis = work.operation, work.basis
    if operation.planned_at is None and not operation.names_its_objects:
        assert operation.project_id is not None
        ranges = ranges_of(operation.project_id)
        basis = Basis.of(work.marker, operation.bucket, ranges)
    return basis.supports(operation.cursor, work.read_clock())


def forget_pass(operation: CleanupOperation) -> None:
    """Forget what was listed so far, and a plan that was not held against the limits yet: a release
    that shows none of its figures must not lift them."""
    operation.renew(cursor={}, headway={})
    is_verification = operation.kind == Kind.VERIFY
    # What a person approved stays the plan. Nobody approves what a verification found.
    if operation.step == Step.PLAN and (is_verification or not operation.released_by):
        operation.renew(planned_at=None, plan_digest="")
    given = operation.names_its_objects and not is_verification
    if operation.planned_at is None and not given:
        # Of the rows that named files nothing else tells any more.
        named_files.forget_look(operation)
        operation.items.exclude(found_in=CleanupItem.FoundIn.NAMED).delete()


def plan(work: Work) -> None:
    """Find what there is, freeze it, and hold it against the limits."""
    operation = work.operation
    is_new = operation.planned_at is None
    if is_new:
        policies.take_given(work)
        look = policies.look_up if operation.names_its_objects else discover
        look(work)
        named_files.look_up(work)
        look_for_uploads(work)
    # A plan that waited for a person is old by now.
    unread = used_files.keep(work)
    if is_new:
        work.look_again()
        frozen = digest(operation)
        # A verification concludes from what was listed; a cleanup proves each file again.
        cursor = work.move() if operation.kind == Kind.VERIFY else {}
        with transaction.atomic():
            operation.renew(planned_at=timezone.now(), plan_digest=frozen, cursor=cursor)
            record_plan(operation)
    if operation.kind == Kind.VERIFY:
        compare(work)
    elif operation.dry_run:
        summary = plan_summary.summarise(operation, operation.renew)
        outcomes = operation.items.by_outcome()
        books, error = operation.items.books_of(outcomes), objections(operation, unread)
        operation.freeze(**books, headway={"books": outcomes}, error=error, summary=summary)
    elif reason := objections(operation, unread):
        block(operation, reason, **({"unread": unread} if unread else {}))
    else:
        set_out(operation)


def objections(operation: CleanupOperation, unread: list[str]) -> str:
    """Why the plan must not be run unasked, or nothing. A release lifts limits, and not doubts of
    which the person was not told."""
    excess = "" if operation.released_by else limits.objections(operation)
    return " ".join(filter(None, [excess, used_files.unread_text(unread)]))


def set_out(operation: CleanupOperation) -> None:
    """Go on to the deletions, in a way that ends in time."""
    with transaction.atomic():
        operation.renew(step=Step.DELETE)
        if reason := limits.slowness(operation):
            operation.renew(strategy=CleanupOperation.Strategy.BATCH, pace={})
            operation.record("plan", _("The strategy is batch from now on. %s") % reason)


def compare(work: Work) -> None:
    operation = work.operation
    # Not once the items of the verified operation are among its own.
    if "recalled" not in operation.cursor and (reason := limits.missing(operation)):
        # Its items stay: they show which files are missing.
        block(operation, reason)
    else:
        verify.compare(work)


def look_for_uploads(work: Work) -> None:
    operation, uploads = work.operation, delete_batches.unfinished_uploads(work)
    # The first ones are told by name, and the others counted.
    keys, kept, count = list[str](), dict[str, str](), 0
    for upload, reason in uploads or ():
        count += not reason
        if reason and len(kept) < 100:
            kept[escape(upload.key)] = reason
        elif not reason and len(keys) < 100:
            keys.append(escape(upload.key))
    with transaction.atomic():
        operation.renew()
        if uploads is None:
            text = _("Unfinished multipart uploads: not checked, as the store cannot list them.")
            operation.record("plan", text)
        elif keys:
            text = _("Unfinished multipart uploads: %s.") % count
            if operation.kind != Kind.VERIFY:
                text += " " + _("They will be aborted.")
            operation.record("plan", text, keys=keys)
        for key, reason in kept.items():
            operation.record("plan", delete_batches.not_aborted(reason), key=key)


def digest(operation: CleanupOperation) -> str:
    """SHA-256 of the plan: its ranges, and each key with what was seen of it and what is to be."""
    sums = hashlib.sha256(json.dumps(operation.ranges).encode())
    facts = ("key", "escaped", "size", "etag", "last_modified", "outcome")
    write = json.JSONEncoder(default=str).encode
    for row in read_in_steps(operation.items.order_by("key", "pk").values_list(*facts)):
        sums.update(write(row).encode() + b"\n")
    return sums.hexdigest()


def record_plan(operation: CleanupOperation) -> None:
    books = operation.items.books()
    to_delete = operation.items.planned().count()
    text = _("Found %(found)s objects, %(to_delete)s of them to be deleted.")
    if operation.kind == Kind.VERIFY:
        text = _("Found %(found)s objects to be compared.")
    text %= {"found": books["found"], "to_delete": to_delete}
    if operation.runs_wrangler:
        text += " " + _("wrangler takes about %s for them.") % limits.wrangler_takes(to_delete)
    operation.record(
        "plan",
        text,
        digest=operation.plan_digest,
        ranges=operation.ranges,
        protected=books["protected"],
    )


def close(work: Work) -> None:
    """Close the books. Whatever remains is said, and tried again or shown to a person."""
    operation = work.operation
    plan_summary.add_dropped(operation)
    books = operation.items.books()
    if failed := books["failed"]:
        text = ngettext(
            "%d object remains; its item says why.",
            "%d objects remain; each item says why.",
            failed,
        )
        refused = failed == operation.items.filter(outcome=Outcome.FAILED).locked().count()
        with transaction.atomic():
            postpone(operation, text % failed, refused=refused)
            schedule_late_checks(operation)
        return
    status = Status.CLEAN_WITH_PROTECTED if books["protected"] else Status.CLEAN
    with transaction.atomic():
        operation.close(status, books, error="")
        schedule_late_checks(operation)
        text = f"{operation.get_status_display()} {named_files.kept_text(operation)}".rstrip()
        operation.record("closed", text, **books)


def schedule_late_checks(operation: CleanupOperation) -> None:
    """Look again later: uploads in flight, presigned URLs and multipart uploads may still land."""
    scheduled = operation.children.filter(trigger=CleanupOperation.Trigger.LATE_CHECK)
    if operation.status not in (Status.INCOMPLETE, Status.FAILED):
        # Those that followed a failure have looked before this end, and say nothing of it.
        scheduled = scheduled.filter(finished_at=None)
    if operation.kind in FOLLOWED and operation.parent is None and not scheduled.exists():
        for delay in conf().late_checks:
            late_check(operation, delay)


def late_check(operation: CleanupOperation, delay: timedelta) -> None:
    """What is there again by then is a new object: only a project's own goes without a word."""
    CleanupOperation.objects.request(
        kind=Kind.PROJECT if operation.kind == Kind.PROJECT else Kind.VERIFY,
        project_id=operation.project_id,
        project_deleted_at=operation.project_deleted_at,
        bucket=operation.bucket,
        parent=operation,
        discovery=operation.discovery,
        strategy=operation.strategy,
        trigger=CleanupOperation.Trigger.LATE_CHECK,
        next_attempt_at=DatabaseNow(delay),
    )


def block(operation: CleanupOperation, reason: str, **facts: list[str]) -> None:
    with transaction.atomic():
        begun = {"step": Step.DELETE, "cursor": {}} if may_delete(operation) else {}
        operation.block(reason, **begun)
        delete_batches.rest(operation)
        # Its other columns say what became of items when they are closed.
        operation.change(Q(), headway={"books": operation.items.by_outcome()})
        operation.record("blocked", reason, **facts)


def put_off(operation: CleanupOperation, error: StoreError) -> None:
    """Try again as the error policy says: see bucket/errors.py."""
    operation.renew()
    refused = s3.bars(operation.bucket, error)
    advice = (
        error.advice
        if isinstance(error, BucketForbidden) or not refused
        else BucketForbidden.advice
    )
    reason = f"{str(error).rstrip('.')}. {advice}"
    asked = min(error.retry_after, conf().longest_retry.total_seconds())
    postpone(operation, reason, after=timedelta(seconds=asked), refused=refused)


def postpone(
    operation: CleanupOperation,
    reason: str,
    *,
    after: timedelta = timedelta(0),
    refused: bool = False,
) -> None:
    """Try again later, or call for a person when the store refuses and waiting does not help."""
    hopeless = refused and was_refused(operation)
    with transaction.atomic():
        operation.postpone(reason, operation.items.books(), after=after, hopeless=hopeless)
        delete_batches.rest(operation)
        next_attempt = str(operation.next_attempt_at)
        operation.record(operation.status, reason, next_attempt=next_attempt, refused=refused)


def was_refused(operation: CleanupOperation) -> bool:
    """Whether it was before, in the trouble that still goes on, and not just a moment ago: a
    change of the bucket's permissions takes up to a minute."""
    ends = operation.events.filter(data__refused=True, at__lte=timezone.now() - REFUSALS_APART)
    since = operation.troubled_since
    return since is not None and ends.filter(at__gte=since).exists()
