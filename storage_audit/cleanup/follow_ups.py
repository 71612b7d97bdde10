"""Checks that follow a cleanup at its end and later, as uploads in flight, presigned URLs and
multipart uploads may still end."""

from datetime import timedelta
from typing import Any

from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf

Status = Cleanup.Status


def schedule_follow_ups(cleanup: Cleanup) -> None:
    scheduled = cleanup.children.filter(trigger=Cleanup.Trigger.FOLLOW_UP)
    if cleanup.status not in (Status.RETRYING, Status.FAILED):
        # Those that followed a failure ran before this end, and say nothing about it.
        scheduled = scheduled.filter(finished_at=None)
    kind = policy_of(cleanup).follow_up
    if kind and cleanup.parent is None and not scheduled.exists():
        for delay in conf().follow_up_checks:
            request_follow_up(cleanup, kind, delay)


def request_follow_up(cleanup: Cleanup, kind: str, delay: timedelta) -> None:
    Cleanup.objects.request(
        kind=kind,
        project_id=cleanup.project_id,
        project_deleted_at=cleanup.project_deleted_at,
        bucket=cleanup.bucket,
        parent=cleanup,
        discovery=cleanup.discovery,
        strategy=cleanup.strategy,
        trigger=Cleanup.Trigger.FOLLOW_UP,
        held_until=cleanup.held_until,
        next_attempt_at=time_of_follow_up(cleanup, delay),
    )


def time_of_follow_up(cleanup: Cleanup, delay: timedelta) -> Any:
    """So long after the cleanup's end, and after its hold."""
    if cleanup.held_until and cleanup.is_held():
        return cleanup.held_until + delay
    return DatabaseNow(delay)
