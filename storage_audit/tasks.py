"""The queue's entry points. A task carries an id. Only this module and queue.py know django-q2."""

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db import Error, connection, transaction
from django.dispatch import receiver
from django.utils import timezone
from django.utils.translation import gettext as _
from django_q.conf import Conf
from django_q.models import Schedule
from django_q.signals import post_execute_in_worker, pre_execute
from django_q.tasks import async_task

from storage_audit import logs, queue
from storage_audit.audit import cleanup, incidents, jobs, notices, overview, vanished
from storage_audit.audit.counting import counted
from storage_audit.audit.diagnostics.comparison import WORKER_ANSWERS_WITHIN
from storage_audit.audit.diagnostics.examination import examine
from storage_audit.audit.scan.requests import TooCostly, refuse_beside_another, start_scan
from storage_audit.audit.scan.worker import work_on_scan
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.incidents import Delivery
from storage_audit.jobs import Job
from storage_audit.locking import impatient
from storage_audit.observations import Diagnosis
from storage_audit.operations import CleanupOperation
from storage_audit.scans import BucketScan
from storage_audit.transitions import IllegalTransition

logger = logging.getLogger(__name__)

# Each runs every minute. A cluster looks at its schedules each half minute, so with two of them
# work that lost its worker is found half a minute after its lease is over, and not two.
SCHEDULES = {
    "storage_audit sweep": timedelta(0),
    "storage_audit sweep, half a minute later": timedelta(seconds=30),
}
# The sweep enqueues an operation again when nothing came of the last time, as queues lose tasks:
# the second sweep after it does. A queue with this many of our tasks ready is stuck, and more of
# them would not help.
ENQUEUE_AGAIN_AFTER = timedelta(seconds=45)
QUEUE_IS_LONG = 100
# A slice of a scan is short, but its ending is one statement over all that was seen, in seconds.
ENDING_TAKES = 1800


def enqueue(operation_id: UUID) -> None:
    """Have a worker run the operation; with the setting SYNC, run it here and now."""
    operation = CleanupOperation.objects.filter(pk=operation_id)
    try:
        if not operation.update(enqueued_at=timezone.now()):
            return  # Rolled back with a savepoint made by hand, for which Django keeps the hooks.
        if not conf().sync:
            send_to_queue(operation_id)
    except Exception:
        with logs.about(operation_id):
            logger.exception("It could not be enqueued; the sweep does it.")
        raise
    if conf().sync:
        cleanup.run(operation_id)


def send_to_queue(operation_id: UUID) -> None:
    # The queue's own lines name the task.
    name, function = str(operation_id), "storage_audit.tasks.run_operation"
    with logs.about(operation_id, CleanupOperation.objects.request_id(operation_id)):
        async_task(function, str(operation_id), task_name=name, group="storage_audit")


def enqueue_on_commit(operations: Iterable[CleanupOperation]) -> None:
    """Enqueue once the transaction is committed; if that fails, the sweep finds the operations."""
    for operation in operations:
        transaction.on_commit(enqueueing(operation.pk), robust=True)


def enqueueing(operation_id: UUID) -> Callable[[], None]:
    # A function, as Django asks a hook that failed for its __qualname__, which a partial lacks.
    def enqueue_operation() -> None:
        enqueue(operation_id)

    return enqueue_operation


@counted()
def run_operation(operation_id: str) -> str:
    """Work on an operation for one slice; returns its status for the queue's own records."""
    operation = cleanup.run_slice(UUID(operation_id))
    if operation is None:
        return queue.HELD
    running = CleanupOperation.Status.RUNNING
    if CleanupOperation.objects.filter(pk=operation.pk, status=running).due().exists():
        enqueue(operation.pk)
    else:
        enqueue_next(operation)
    return queue.GIVEN_UP if operation.takeovers >= cleanup.TAKEOVERS else operation.status


def enqueue_next(operation: CleanupOperation) -> None:
    """Only one operation of a project is worked on at a time: let the next one have its turn."""
    waiting = CleanupOperation.objects.rivals(operation).due()
    if next_one := waiting.order_by("next_attempt_at").first():
        enqueue(next_one.pk)


@counted()
def sweep() -> dict[str, int]:
    """Enqueue whatever is due and was forgotten, and notice what no signal told of.

    Returns how many operations were made for vanished projects and how many were enqueued.
    """
    now = timezone.now()
    bring_forward(now)
    forgotten = (
        CleanupOperation.objects.due()
        .not_enqueued_since(now - ENQUEUE_AGAIN_AFTER)
        .order_by("next_attempt_at")
        .values_list("pk", flat=True)[: max(0, QUEUE_IS_LONG - queue.own_ready_tasks(now))]
    )
    # With SYNC the work is done here: a failure must stop neither the others nor the notice.
    try:
        with ExitStack() as every:
            every.callback(tell_people)
            every.callback(take_up_scans, now)
            every.callback(take_up_jobs, now)
            for operation_id in reversed(ids := list(forgotten)):
                every.callback(enqueue, operation_id)
    finally:
        noticed = vanished.notice()
    take_figures()
    return {"vanished": noticed, "enqueued": len(ids)}


def bring_forward(now: datetime) -> None:
    """Let what a clock that was ahead has put off to that clock's date be done now."""
    CleanupOperation.objects.put_off_too_far().update(next_attempt_at=DatabaseNow())
    Delivery.objects.put_off_too_far(now).update(next_try_at=now)
    queue.bring_sweeps_forward(now)


def take_figures() -> None:
    """Last of all, as nothing depends on them, and to count everything takes a while."""
    try:
        overview.take_figures()
    except Exception:
        logger.exception("The day's figures were not taken; the next sweep tries again.")


def take_up_scans(now: datetime) -> None:
    """Send workers for scans that lost theirs, and give up those that are too old for it."""
    for scan in BucketScan.objects.abandoned():
        scan.fail(_("Nobody went on with it for a day."))
        logger.warning("Scan %s: %s", scan.pk, scan.error)
    if queue.own_ready_tasks(now) < QUEUE_IS_LONG:
        for scan in BucketScan.objects.forgotten(now - ENQUEUE_AGAIN_AFTER):
            share(scan, 1)


def take_up_jobs(now: datetime) -> None:
    """Send a worker for each job that lost its own."""
    if queue.own_ready_tasks(now) < QUEUE_IS_LONG:
        forgotten = Job.objects.forgotten(now - ENQUEUE_AGAIN_AFTER)
        for job_id in list(forgotten.values_list("pk", flat=True)):
            enqueue_job(job_id)


def enqueue_job_on_commit(job: Job) -> None:
    """As with operations."""

    def enqueue_it() -> None:
        enqueue_job(job.pk)

    transaction.on_commit(enqueue_it, robust=True)


def enqueue_job(job_id: UUID) -> None:
    """Have a worker go on with the job; with the setting SYNC, do it here and now."""
    if not Job.objects.filter(pk=job_id).update(enqueued_at=timezone.now()):
        return  # Rolled back with a savepoint made by hand.
    if conf().sync:
        while Job.objects.unfinished().filter(pk=job_id).exists():
            run_job(str(job_id))
    else:
        async_task("storage_audit.tasks.run_job", str(job_id), group="storage_audit")


@counted()
def run_job(job_id: str) -> str:
    """Make the operations of some of its projects and enqueue them, and then the job again: what
    others ask for meanwhile does not wait for all of it. Returns what the queue's own records are
    to say."""
    job = Job.objects.unfinished().filter(pk=UUID(job_id)).first()
    if job is None:
        return queue.OVER
    position = job.position
    made = jobs.take_up(job)
    if job.stop_reason:
        return f"stopped at {job.position} of {job.projects} projects"
    if job.position == position:
        return queue.TAKEN
    # Deletions enqueue theirs on commit, as any deletion does.
    if job.action not in Job.DELETIONS:
        # One commit for all; with SYNC the work itself is done here, in none of ours.
        with nullcontext() if conf().sync else transaction.atomic():
            for operation in made:
                enqueue(operation.pk)
    if not (job.finished_at or conf().sync):
        enqueue_job(job.pk)
    return f"{job.position} of {job.projects} projects"


def tell_people() -> None:
    """Keep account of what needs a person, and have a worker send what is to be told of it. What
    else a sweep does depends on neither."""
    try:
        incidents.notice()
        have_notices_sent(timezone.now())
    except Exception:
        logger.exception("Nobody could be told of what needs a person; the next sweep tries again.")


def have_notices_sent(now: datetime) -> None:
    if conf().sync:
        notices.send_due()
    elif Delivery.objects.due(now).exists() and queue.own_ready_tasks(now) < QUEUE_IS_LONG:
        async_task(queue.SEND_NOTICES, group="storage_audit")


def send_notices() -> str:
    """Returns what the queue's own records are to say."""
    tried = notices.send_due()
    return f"{sum(each.is_sent for each in tried)} of {len(tried)} messages sent"


def share(scan: BucketScan, workers: int) -> None:
    """Have so many workers take part in the scan, or others when these are killed at it. With the
    setting SYNC there are none."""
    if not workers or conf().sync:
        return
    BucketScan.objects.filter(pk=scan.pk).update(enqueued_at=timezone.now())
    task = "storage_audit.tasks.take_part"
    for _each in range(workers):
        async_task(task, str(scan.pk), group="storage_audit", timeout=ENDING_TAKES)


@counted()
def take_part(scan_id: str) -> str:
    """In a scan, for one slice; returns its status for the queue's own records."""
    scan = BucketScan.objects.running().filter(pk=UUID(scan_id)).first()
    if scan is None:
        return queue.OVER
    for _batch in work_on_scan(scan, seconds=conf().slice.total_seconds()):
        pass
    if scan.has_room():
        share(scan, 1)
    elif scan.error:
        logger.error("Scan %s %s: %s", scan.pk, scan.status, scan.error)
    return scan.status


def reconcile() -> str:
    """Have a worker compare the whole bucket with the table, unless another scan of it is running.
    Returns what the queue's own records are to say."""
    if conf().sync:
        return "there are no workers"
    try:
        with transaction.atomic():
            scan = start_scan(purpose=BucketScan.Purpose.RECONCILE)
            refuse_beside_another(scan)
    except IllegalTransition:
        return "another scan is running"
    except TooCostly as error:
        text = "No scan was begun: %s Run reconcile_r2 --ceiling, or raise SCAN_CEILING."
        logger.error(text, error)
        return "too costly"
    share(scan, 1)
    return str(scan.pk)


@receiver(pre_execute, dispatch_uid="storage_audit.task")
def task_begins(task: dict[str, Any], **kwargs: object) -> None:
    logs.become(task=f"{task.get('cluster') or Conf.CLUSTER_NAME}/{task['id']}")


@receiver(post_execute_in_worker, dispatch_uid="storage_audit.task")
def task_ends(**kwargs: object) -> None:
    logs.become(task=None)


def examine_everywhere(context: str) -> Diagnosis:
    """Run the doctor's probes here and now, and have a worker run them meanwhile, if one is needed
    at all. Both reports are of one run."""
    run, unasked = uuid4(), ""
    if not conf().sync:
        try:
            asked = (str(run), timezone.now())
            with impatient():
                async_task("storage_audit.tasks.diagnose", *asked, group="storage_audit")
        except Error as error:
            logger.warning("No worker could be asked for its diagnosis: %s", error)
            unasked = str(error)
    return examine(context, run, unasked)


@counted()
def diagnose(run: str, asked_at: datetime) -> str:
    """Run the doctor's probes in the worker; returns what the queue's own records are to say.

    Does nothing when nobody waits for them any more, as the deletions behind it do.
    """
    late = timezone.now() - asked_at
    if late > WORKER_ANSWERS_WITHIN:
        logger.warning(
            "Too late to diagnose: asked %s ago, or this machine's clock is wrong.", late
        )
        return "too late"
    return str(examine(Diagnosis.Context.WORKER, UUID(run)))


def create_schedule(**kwargs: Any) -> None:
    """Have the cluster sweep twice a minute, and reconcile as the settings say. Called after each
    migrate."""
    if Schedule._meta.db_table not in connection.introspection.table_names():
        return  # The queue's own migrations were not run yet, or were undone.
    now = timezone.now()
    queue.bring_sweeps_forward(now)
    for name, later in SCHEDULES.items():
        if not Schedule.objects.filter(func=queue.SWEEP, name=name).exists():
            schedule(queue.SWEEP, name, timedelta(minutes=1), now + later)
    if (pause := conf().reconcile_every) != queue.reconciles_every():
        Schedule.objects.filter(func=queue.RECONCILE).delete()
        if pause:
            schedule(queue.RECONCILE, "storage_audit reconcile", pause, now + pause)


def schedule(func: str, name: str, pause: timedelta, first: datetime) -> None:
    Schedule.objects.create(
        func=func,
        name=name,
        schedule_type=Schedule.MINUTES,
        minutes=pause // timedelta(minutes=1),
        repeats=-1,
        next_run=first,
    )
