"""What a failure leads to: a cleanup needs a person, or is tried again later."""

from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from storage_audit.bucket import s3
from storage_audit.bucket.errors import BucketForbidden, StoreError
from storage_audit.cleanup import delete_batches
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.position import Position
from storage_audit.conf import conf

Step = Cleanup.Step
REFUSAL_INTERVAL = timedelta(seconds=50)


def may_delete_files(cleanup: Cleanup) -> bool:
    """Whether its plan was checked: only `start_deleting` leaves the step PLAN, after the checks of
    the limits and of rows that use its files."""
    return cleanup.is_deletion and cleanup.step not in (Step.PLAN, Step.HELD)


def block_cleanup(cleanup: Cleanup, reason: str, **facts: list[str]) -> None:
    with transaction.atomic():
        begun = {"step": Step.DELETE, "position": Position()} if may_delete_files(cleanup) else {}
        cleanup.block(reason, **begun)
        delete_batches.unlock_idle_items(cleanup)
        # The columns of the totals are written only at the end of an attempt.
        cleanup.change_if(Q(), progress={"totals": cleanup.items.by_outcome()})
        cleanup.record("blocked", reason, **facts)


def retry_after_error(cleanup: Cleanup, error: StoreError) -> None:
    """Try again as the error policy says: see bucket/errors.py."""
    cleanup.renew()
    refused = s3.is_bucket_forbidden(cleanup.bucket, error)
    advice = (
        error.advice
        if isinstance(error, BucketForbidden) or not refused
        else BucketForbidden.advice
    )
    reason = f"{str(error).rstrip('.')}. {advice}"
    asked = min(error.retry_after, conf().retry_longest.total_seconds())
    postpone_cleanup(cleanup, reason, after=timedelta(seconds=asked), refused=refused)


def postpone_cleanup(
    cleanup: Cleanup,
    reason: str,
    *,
    after: timedelta = timedelta(0),
    refused: bool = False,
) -> None:
    """Try again later, or call for a person when the store refuses and waiting does not help."""
    hopeless = refused and has_been_refused(cleanup)
    with transaction.atomic():
        cleanup.postpone(reason, cleanup.items.totals(), after=after, hopeless=hopeless)
        delete_batches.unlock_idle_items(cleanup)
        next_attempt = str(cleanup.next_attempt_at)
        cleanup.record(cleanup.status, reason, next_attempt=next_attempt, refused=refused)


def has_been_refused(cleanup: Cleanup) -> bool:
    """Whether the store refused it earlier in the failure that still goes on, and not just a moment
    ago: a change of the bucket's permissions takes up to a minute."""
    ends = cleanup.events.filter(data__refused=True, at__lte=timezone.now() - REFUSAL_INTERVAL)
    since = cleanup.failing_since
    return since is not None and ends.filter(at__gte=since).exists()
