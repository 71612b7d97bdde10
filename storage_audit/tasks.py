"""The queue's entry points, and the only module that knows django-q2. A task carries an id."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Min
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from django_q.tasks import async_task

from storage_audit.audit import cleanup, vanished
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

SWEEP = "storage_audit.tasks.sweep"
# Each runs every minute. A cluster looks at its schedules each half minute, so with two of them
# work that lost its worker is found half a minute after its lease is over, and not two.
SCHEDULES = {
    "storage_audit sweep": timedelta(0),
    "storage_audit sweep, half a minute later": timedelta(seconds=30),
}
# The sweep enqueues an operation again when nothing came of the last time, as queues lose tasks:
# the second sweep after it does. A queue with this many tasks ready is stuck, and more of them
# would not help.
ENQUEUE_AGAIN_AFTER = timedelta(seconds=45)
QUEUE_IS_LONG = 100


def enqueue(operation_id: UUID) -> None:
    """Have a worker run the operation; with the setting SYNC, run it here and now."""
    operation = CleanupOperation.objects.filter(pk=operation_id)
    if not operation.update(enqueued_at=timezone.now()):
        return  # Rolled back with a savepoint made by hand, for which Django keeps the hooks.
    if conf().sync:
        cleanup.run(operation_id)
        return
    async_task("storage_audit.tasks.run_operation", str(operation_id), group="storage_audit")


def enqueue_on_commit(operations: Iterable[CleanupOperation]) -> None:
    """Enqueue once the transaction is committed; if that fails, the sweep finds the operations."""
    for operation in operations:
        transaction.on_commit(enqueueing(operation.pk), robust=True)


def enqueueing(operation_id: UUID) -> Callable[[], None]:
    # A function, as Django asks a hook that failed for its __qualname__, which a partial lacks.
    def enqueue_operation() -> None:
        enqueue(operation_id)

    return enqueue_operation


def run_operation(operation_id: str) -> str:
    """Work on an operation for one slice; returns its status for the queue's own records."""
    operation = cleanup.run_slice(UUID(operation_id))
    if operation is None:
        return "not due, or held by another worker"
    if operation.status == CleanupOperation.Status.RUNNING:
        enqueue(operation.pk)
    else:
        enqueue_next(operation)
    return operation.status


def enqueue_next(operation: CleanupOperation) -> None:
    """Only one operation of a project is worked on at a time: let the next one have its turn."""
    waiting = CleanupOperation.objects.rivals(operation).due(timezone.now())
    if next_one := waiting.order_by("next_attempt_at").first():
        enqueue(next_one.pk)


def sweep() -> dict[str, int]:
    """Enqueue whatever is due and was forgotten, and notice what no signal told of.

    Returns how many operations were made for vanished projects and how many were enqueued.
    """
    now = timezone.now()
    ready = OrmQ.objects.filter(lock__lte=now).count()
    forgotten = (
        CleanupOperation.objects.due(now)
        .not_enqueued_since(now - ENQUEUE_AGAIN_AFTER)
        .order_by("next_attempt_at")
        .values_list("pk", flat=True)[: max(0, QUEUE_IS_LONG - ready)]
    )
    # With SYNC the work is done here: a failure must stop neither the others nor the notice.
    try:
        with ExitStack() as every:
            for operation_id in reversed(ids := list(forgotten)):
                every.callback(enqueue, operation_id)
    finally:
        noticed = vanished.notice()
    return {"vanished": noticed, "enqueued": len(ids)}


def create_schedule(**kwargs: Any) -> None:
    """Have the cluster sweep twice a minute. Called after each migrate."""
    if Schedule._meta.db_table not in connection.introspection.table_names():
        return  # The queue's own migrations were not run yet, or were undone.
    now = timezone.now()
    for name, later in SCHEDULES.items():
        if not Schedule.objects.filter(func=SWEEP, name=name).exists():
            Schedule.objects.create(
                func=SWEEP,
                name=name,
                schedule_type=Schedule.MINUTES,
                minutes=1,
                repeats=-1,
                next_run=now + later,
            )


def is_scheduled() -> bool:
    return sweep_due_at() is not None


def sweep_due_at() -> datetime | None:
    """When the next sweep is due, or was: no cluster runs then. None when none is scheduled."""
    sweeps = Schedule.objects.filter(func=SWEEP).exclude(repeats=0)
    due: datetime | None = sweeps.aggregate(at=Min("next_run"))["at"]
    return due


def oldest_task_at() -> datetime | None:
    """Since when a task waits for a cluster; None when none does."""
    ready: datetime | None = OrmQ.objects.aggregate(at=Min("lock"))["at"]
    return ready
