"""The queue's entry points. A task carries an id. Only this module and queue.py know django-q2.

Features never import this module, as it imports all of them: they send tasks by their names.
"""

import logging
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.dispatch import receiver
from django.utils import timezone
from django.utils.translation import gettext as _
from django_q.conf import Conf
from django_q.signals import post_execute_in_worker, pre_execute

from storage_audit import logs, queue
from storage_audit.alerts import alert_rules, deliver
from storage_audit.alerts.models import Delivery
from storage_audit.bucket.request_stats import counted
from storage_audit.cleanup import bulk, requests, runner, vanished_projects
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.doctor.compare_processes import WORKER_ANSWERS_WITHIN
from storage_audit.doctor.models import Diagnosis
from storage_audit.doctor.run_checks import examine
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import ScanTooExpensive, refuse_beside_another, share, start_scan
from storage_audit.scan.worker import work_on_scan

logger = logging.getLogger(__name__)

# The sweep enqueues an operation again when nothing came of the last time, as queues lose tasks:
# the second sweep after it does. A queue with this many of our tasks ready is stuck, and more of
# them would not help.
ENQUEUE_AGAIN_AFTER = timedelta(seconds=45)
QUEUE_IS_LONG = 100


@counted()
def run_operation(operation_id: str) -> str:
    """Work on an operation for one slice; returns its status for the queue's own records."""
    operation = runner.run_slice(UUID(operation_id))
    if operation is None:
        return queue.HELD
    running = CleanupOperation.Status.RUNNING
    if CleanupOperation.objects.filter(pk=operation.pk, status=running).due().exists():
        requests.enqueue(operation.pk)
    else:
        enqueue_next(operation)
    return queue.GIVEN_UP if operation.takeovers >= runner.TAKEOVERS else operation.status


def enqueue_next(operation: CleanupOperation) -> None:
    """Only one operation of a project is worked on at a time: let the next one have its turn."""
    waiting = CleanupOperation.objects.rivals(operation).due()
    if next_one := waiting.order_by("next_attempt_at").first():
        requests.enqueue(next_one.pk)


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
                every.callback(requests.enqueue, operation_id)
    finally:
        noticed = vanished_projects.notice()
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
        daily_figures.take_figures()
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
            bulk.enqueue_job(job_id)


def run_job(job_id: str) -> str:
    return bulk.run_turn(UUID(job_id))


def tell_people() -> None:
    """Keep account of what needs a person, and have a worker send what is to be told of it. What
    else a sweep does depends on neither."""
    try:
        alert_rules.notice(daily_figures.latest_refused_ids())
        have_notices_sent(timezone.now())
    except Exception:
        logger.exception("Nobody could be told of what needs a person; the next sweep tries again.")


def have_notices_sent(now: datetime) -> None:
    if conf().sync:
        deliver.send_due()
    elif Delivery.objects.due(now).exists() and queue.own_ready_tasks(now) < QUEUE_IS_LONG:
        queue.send_task(queue.SEND_NOTICES)


def send_notices() -> str:
    """Returns what the queue's own records are to say."""
    tried = deliver.send_due()
    return f"{sum(each.is_sent for each in tried)} of {len(tried)} messages sent"


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
    except ScanTooExpensive as error:
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
