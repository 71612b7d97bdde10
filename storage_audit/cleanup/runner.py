"""Runs a cleanup: plan, limits, delete, verify, close.

Each step records what it did before it goes on, so that any worker can take over at any moment.
"""

import logging
from collections.abc import Callable
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import logs
from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import (
    check_named_files,
    delete_batches,
    end_deletions,
    follow_ups,
    hold_cleanup,
    limits,
    pause_deletions,
    plan_summary,
    progress,
    project_uploads,
    supersede_cleanups,
    used_files,
    verify,
)
from storage_audit.cleanup.handle_failures import (
    block_cleanup,
    may_delete_files,
    postpone_cleanup,
    retry_after_error,
)
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import DeletionsPaused, LeaseLost, MayNotSend
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.position_basis import PositionBasis
from storage_audit.cleanup.worker_turn import OwnerChanging, ProjectRecreated, Turn, TurnOver
from storage_audit.ownership.bucket_marker import CannotConclude, PausedInBucket
from storage_audit.redaction import redact_secrets

logger = logging.getLogger(__name__)
Status, Step = Cleanup.Status, Cleanup.Step
Outcome = CleanupItem.Outcome

# After this many workers in a row that did not report back a person should know.
MAX_TAKEOVERS = 5
# After this many passes in a row that had to start again settings or the queue are wrong.
MAX_RESTARTS = 5


def run_to_end(cleanup_id: UUID) -> Cleanup:
    """Work on the cleanup, turn after turn, until it is not running any more."""
    while (cleanup := run_turn(cleanup_id)) and cleanup.status == Status.RUNNING:
        pass
    return cleanup or Cleanup.objects.get(pk=cleanup_id)


def run_turn(cleanup_id: UUID) -> Cleanup | None:
    """Work on the cleanup for one turn; None if it is not due, or another worker has it by now.

    The store's errors end in the cleanup as a message and a next attempt. Any other exception
    does too, and is raised again.
    """
    with logs.deletion_context(cleanup_id, Cleanup.objects.find_request_id(cleanup_id)):
        try:
            return run_leased_turn(cleanup_id)
        except Exception:
            # Logged here, while the request and the task are known.
            logger.exception("%s failed.", cleanup_id)
            raise


def run_leased_turn(cleanup_id: UUID) -> Cleanup | None:
    with transaction.atomic():
        cleanup = Cleanup.objects.get(pk=cleanup_id)
        cleanup.lock()
        ended = cleanup.finished_at is not None
        if not cleanup.acquire_lease():
            return None
        if ended:
            begin_again(cleanup)
        if cleanup.takeovers:
            text = _("The previous worker stopped without a report. This one continues its work.")
            cleanup.record("takeover", text)
            if cleanup.takeovers >= MAX_TAKEOVERS:
                postpone_cleanup(
                    cleanup, _("Workers keep stopping on this cleanup. Their logs say why.")
                )
                return cleanup
    logger.info("%s leased, attempt %s", cleanup.pk, cleanup.attempts)
    try:
        handle_turn(cleanup)
    except LeaseLost as error:
        logger.warning("%s", error, exc_info=True)
        return None
    return cleanup


def handle_turn(cleanup: Cleanup) -> None:
    """Advance as far as the turn allows, and leave the cleanup in the state that follows."""
    try:
        run_steps(Turn.start(cleanup))
    except TurnOver as over:
        cleanup.return_lease(over.after)
    except (DeletionsPaused, PausedInBucket) as met:
        pause_deletions.rest_cleanup(cleanup, met)
    except ProjectRecreated as reborn:
        supersede_cleanups.supersede_cleanup(cleanup, str(reborn))
    except used_files.Unread as unread:
        block_cleanup(cleanup, str(unread), unread=unread.fields)
    except CannotConclude as mismatch:
        with transaction.atomic():
            discard_listing(cleanup)
            block_cleanup(cleanup, str(mismatch))
    except StoreError as error:
        retry_after_error(cleanup, error)
    except (OwnerChanging, MayNotSend) as error:
        postpone_cleanup(cleanup, str(error))
    except LeaseLost:
        raise
    except Exception as error:
        error.add_note(f"in cleanup {cleanup.pk}")
        postpone_cleanup(cleanup, redact_secrets(f"{type(error).__name__}: {error}"))
        raise


def run_steps(work: Turn) -> None:
    steps: dict[str, Callable[[Turn], None]] = {
        Step.PLAN: make_plan,
        Step.HELD: plan_after_hold,
        Step.DELETE: delete_batches.delete_planned,
        Step.VERIFY: verify.verify_items,
    }
    cleanup = work.cleanup
    check_deletion_is_current(work)
    resume_pass(work)
    while cleanup.status == Status.RUNNING:
        if cleanup.step == Step.VERIFY and cleanup.position.is_settled:
            close_cleanup(work)
        else:
            progress.start_step(cleanup)
            steps[cleanup.step](work)


def check_deletion_is_current(work: Turn) -> None:
    cleanup, policy = work.cleanup, policy_of(work.cleanup)
    # Read before the project: what comes later may be of a later deletion.
    earlier = list(policy.superseded_cleanups(cleanup))
    policy.require_project_gone(cleanup)
    if earlier:
        cleanup.renew()
        # Workers may have had them when this cleanup was requested.
        supersede_cleanups.end_earlier_cleanups(earlier)


def begin_again(cleanup: Cleanup) -> None:
    """Put failed items back into the plan. Those that nobody can delete fail again at no cost. A
    verification, and a cancelled cleanup, lists again."""
    if policy_of(cleanup).is_verification:
        discard_listing(cleanup)
    elif cleanup.cancelled_at:
        cleanup.begin_step(Step.VERIFY)
    elif may_delete_files(cleanup):
        cleanup.begin_step(Step.DELETE)
        failed = cleanup.items.filter(outcome=Outcome.FAILED, escaped=False)
        failed.mark(Outcome.TO_DELETE, attempts=0)
    cleanup.record("retry", _("Trying again."))


def resume_pass(work: Turn) -> None:
    """Go on from where the last turn stopped, or start the pass again if what it saw no longer
    counts. Raises OwnerChanging if that happens again and again."""
    cleanup = work.cleanup
    if cleanup.position.seen_at is None or is_position_valid(work):
        return
    restarts = cleanup.position.restarts + 1
    with transaction.atomic():
        discard_listing(cleanup)
        cleanup.renew(position=Position(restarts=restarts))
        text = _("Listing the bucket again from the beginning: the earlier listing is outdated.")
        cleanup.record(cleanup.step, text)
    if restarts % MAX_RESTARTS == 0:
        raise OwnerChanging(
            _(
                "The listing started from the beginning %s times. Its turns were more than an hour"
                " apart, or the workers' settings differ."
            )
            % restarts
        )


def is_position_valid(work: Turn) -> bool:
    """Whether nothing has changed on which the position rests."""
    cleanup, basis = work.cleanup, work.basis
    if cleanup.planned_at is None:
        ranges = policy_of(cleanup).prefixes_to_list(cleanup)
        basis = PositionBasis.of(work.marker, cleanup.bucket, ranges)
    return basis.supports(cleanup.position, work.read_clock())


def discard_listing(cleanup: Cleanup) -> None:
    """Forget what was listed so far, and a plan that was not checked against the limits yet: an
    approval that shows none of its figures must not lift them."""
    policy = policy_of(cleanup)
    cleanup.renew(position=Position(), progress={})
    # What a person approved stays the plan. Nobody approves what a verification found.
    if cleanup.step == Step.PLAN and (policy.is_verification or not cleanup.limits_waived_by):
        cleanup.renew(planned_at=None, plan_digest="")
    if cleanup.planned_at is None and not policy.keeps_items:
        # Items that rows named stay, as the rows are gone.
        check_named_files.reset_named_files(cleanup)
        cleanup.items.exclude(found_in=CleanupItem.FoundIn.NAMED).delete()


def make_plan(work: Turn) -> None:
    """Find the objects, freeze the plan, and check it against the limits."""
    cleanup, policy = work.cleanup, policy_of(work.cleanup)
    is_new, may_have_uploads = cleanup.planned_at is None, True
    if is_new:
        policy.find_objects(work)
        check_named_files.check_named_files(work)
        may_have_uploads = project_uploads.record_unfinished_uploads(work)
    # A plan that waited for a person is old by now.
    unread = used_files.keep_used_files(work)
    if is_new:
        work.recheck_bucket()
        frozen = plan_summary.hash_plan(cleanup)
        # A verification concludes from what was listed; a cleanup rechecks each file.
        position = work.next_position() if policy.is_verification else Position()
        with transaction.atomic():
            cleanup.renew(planned_at=timezone.now(), plan_digest=frozen, position=position)
            plan_summary.record_plan(cleanup)
    if policy.is_verification:
        finish_verification(work)
    elif hold_cleanup.is_empty_and_held(cleanup):
        # There is nothing to wait for. The deletion can be undone all the same.
        cleanup.begin_step(Step.VERIFY)
    elif cleanup.dry_run:
        freeze_preview(cleanup, unread)
    elif reason := blocking_reasons(cleanup, unread):
        facts = {"limit": limits.limit_parts(cleanup), "unread": unread}
        block_cleanup(cleanup, reason, **{name: lines for name, lines in facts.items() if lines})
    elif cleanup.is_held():
        hold_cleanup.rest_until_hold_ends(cleanup)
    else:
        hold_cleanup.require_hold_over(work)
        if cleanup.parent_id and not may_have_uploads and not cleanup.items.exists():
            end_empty_follow_up(cleanup)
        else:
            start_deleting(cleanup)


def freeze_preview(cleanup: Cleanup, unread: list[str]) -> None:
    """End a preview with its figures, and with what would block it."""
    summary = plan_summary.summarise_plan(cleanup, cleanup.renew)
    outcomes = cleanup.items.by_outcome()
    totals, error = cleanup.items.totals_of(outcomes), blocking_reasons(cleanup, unread)
    cleanup.freeze_plan(
        **totals, progress={"totals": outcomes}, message=error, plan_summary=summary
    )


def end_empty_follow_up(cleanup: Cleanup) -> None:
    """There is nothing to delete. A follow-up check lists as a verification does, so listing again
    would show no more."""
    assert cleanup.started_at
    times = {"began": cleanup.started_at.isoformat(), "ended": timezone.now().isoformat()}
    text = _("Listed the bucket to the end: nothing is left.")
    with transaction.atomic():
        cleanup.begin_step(Step.VERIFY, position=Position(is_settled=True))
        cleanup.record("verify", text, **times)


def plan_after_hold(work: Turn) -> None:
    """Plan from the beginning: the plan from within the hold was for figures and limits."""
    cleanup = work.cleanup
    if cleanup.is_held():
        return hold_cleanup.rest_until_hold_ends(cleanup)
    hold_cleanup.require_hold_over(work)
    with transaction.atomic():
        cleanup.begin_step(Step.PLAN, planned_at=None, plan_digest="")
        discard_listing(cleanup)
    return None


def blocking_reasons(cleanup: Cleanup, unread: list[str]) -> str:
    """Why the plan needs approval, or nothing. An approval lifts limits, but not doubts that the
    person was not shown."""
    return " ".join(filter(None, [limits.limit_reasons(cleanup), used_files.unread_text(unread)]))


def start_deleting(cleanup: Cleanup) -> None:
    """Go on to the deletions, with another strategy if this one would take too long."""
    with transaction.atomic():
        cleanup.begin_step(Step.DELETE)
        if reason := limits.wrangler_reason(cleanup):
            cleanup.renew(strategy=Cleanup.Strategy.BATCH, batch_state={})
            cleanup.record("plan", _("The strategy is batch from now on. %s") % reason)


def finish_verification(work: Turn) -> None:
    cleanup = work.cleanup
    # Not once the items of the verified cleanup are among its own.
    if not cleanup.position.is_parent_copied and (reason := limits.missing_share_reason(cleanup)):
        # Its items stay: they show which files are missing.
        block_cleanup(cleanup, reason)
    else:
        verify.compare_with_bucket(work)


def close_cleanup(work: Turn) -> None:
    """Close the totals. If objects failed, try again later or call for a person."""
    cleanup = work.cleanup
    if cleanup.cancelled_at:
        return close_cancelled(cleanup)
    plan_summary.add_dropped_items(cleanup)
    totals = cleanup.items.totals()
    if failed := totals["failed"]:
        text = ngettext(
            "%d file is left. Its reason is under Files.",
            "%d files are left. Their reasons are under Files.",
            failed,
        )
        refused = failed == cleanup.items.filter(outcome=Outcome.FAILED).kept_by_lock_rule().count()
        with transaction.atomic():
            postpone_cleanup(cleanup, text % failed, refused=refused)
            follow_ups.schedule_follow_ups(cleanup)
        return None
    status = Status.CLEAN_WITH_KEPT if totals["kept"] else Status.CLEAN
    with transaction.atomic():
        cleanup.finish(status, totals, message="")
        if not cleanup.is_held():
            cleanup.end_hold()
        follow_ups.schedule_follow_ups(cleanup)
        text = (
            f"{cleanup.get_status_display()} {check_named_files.kept_files_text(cleanup)}".rstrip()
        )
        cleanup.record("closed", text, **totals)
    return None


def close_cancelled(cleanup: Cleanup) -> None:
    """Close one that was cancelled after its first request: what is still there stays."""
    left = cleanup.items.filter(outcome__in=[*CleanupItem.OPEN, Outcome.FAILED])
    with transaction.atomic():
        by, reason = cleanup.decided_by, cleanup.decision_reason
        end_deletions.keep_cancelled_items(cleanup, left, by, reason)
        totals = cleanup.items.totals()
        cleanup.finish(Status.CANCELLED, totals)
        cleanup.record("cancelled", cleanup.get_status_display(), **totals)
