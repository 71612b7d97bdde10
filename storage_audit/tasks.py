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
from storage_audit.bucket.request_stats import record_requests
from storage_audit.cleanup import (
    bulk,
    hold_cleanup,
    make_cleanups,
    pause_deletions,
    runner,
    vanished_projects,
)
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.doctor.compare_processes import WORKER_ANSWERS_WITHIN
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.run_checks import run_probes
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import ScanTooExpensive, refuse_second_scan, send_workers, start_scan
from storage_audit.scan.worker import work_on_scan

logger = logging.getLogger(__name__)

# The sweep enqueues a cleanup again when nothing came of the last time, as queues lose tasks:
# the second sweep after it does. A queue with this many of our tasks ready is stuck, and more of
# them would not help.
REQUEUE_AFTER = timedelta(seconds=45)
MAX_READY_TASKS = 100


@record_requests()
def run_cleanup(deletion_id: str) -> str:
    """Work on a cleanup for one turn; returns its status for the queue's own records."""
    cleanup = runner.run_turn(UUID(deletion_id))
    if cleanup is None:
        return queue.RESULT_NOT_DUE
    running = Cleanup.Status.RUNNING
    if Cleanup.objects.filter(pk=cleanup.pk, status=running).due().exists():
        make_cleanups.enqueue_cleanup(cleanup.pk)
    elif next_one := Cleanup.objects.rivals(cleanup).due().order_by("next_attempt_at").first():
        # Only one cleanup of a project is worked on at a time: let the next one have its turn.
        make_cleanups.enqueue_cleanup(next_one.pk)
    return queue.RESULT_GIVEN_UP if cleanup.takeovers >= runner.MAX_TAKEOVERS else cleanup.status


@record_requests()
def sweep() -> dict[str, int]:
    """Enqueue whatever is due and was forgotten, and find what no signal reported.

    Returns how many cleanups were made for vanished projects and how many were enqueued.
    """
    now = timezone.now()
    bring_work_forward(now)
    hold_cleanup.end_past_holds()
    forgotten = (
        Cleanup.objects.due()
        .not_enqueued_since(now - REQUEUE_AFTER)
        .order_by("next_attempt_at")
        .values_list("pk", flat=True)[: max(0, MAX_READY_TASKS - queue.count_own_ready_tasks(now))]
    )
    # With SYNC the work is done here: a failure must stop neither the others nor the search for
    # vanished projects.
    try:
        with ExitStack() as every:
            every.callback(update_alerts)
            every.callback(resume_scans, now)
            every.callback(resume_bulk_jobs, now)
            for cleanup_id in reversed(ids := list(forgotten)):
                every.callback(make_cleanups.enqueue_cleanup, cleanup_id)
    finally:
        noticed = vanished_projects.check_vanished_projects()
    update_hourly()
    return {"vanished": noticed, "enqueued": len(ids)}


def bring_work_forward(now: datetime) -> None:
    """Make due now what a clock that was ahead has put off to that clock's date."""
    Cleanup.objects.scheduled_too_far().update(next_attempt_at=DatabaseNow())
    Delivery.objects.put_off_too_far(now).update(next_attempt_at=now)
    queue.bring_sweeps_forward(now)


def update_hourly() -> None:
    """Last of all, as no deletion depends on the figures, and to count everything takes a while."""
    try:
        is_hour_over = daily_figures.take_figures()
        if is_hour_over:
            # Of a restored database, the last figures are old, so this is done at once.
            pause_deletions.adopt_pauses()
    except Exception:
        logger.exception("Could not record the day's figures. The next sweep tries again.")


def resume_scans(now: datetime) -> None:
    """Send workers for scans that lost theirs, and give up those that are too old for it."""
    for scan in BucketScan.objects.abandoned():
        scan.fail(_("The scan made no progress for a day."))
        logger.warning("Scan %s: %s", scan.pk, scan.message)
    if queue.count_own_ready_tasks(now) < MAX_READY_TASKS:
        for scan in BucketScan.objects.forgotten(now - REQUEUE_AFTER):
            send_workers(scan, 1)


def resume_bulk_jobs(now: datetime) -> None:
    """Send a worker for each bulk job that lost its own."""
    if queue.count_own_ready_tasks(now) < MAX_READY_TASKS:
        forgotten = BulkJob.objects.not_enqueued_since(now - REQUEUE_AFTER)
        for job_id in list(forgotten.values_list("pk", flat=True)):
            bulk.enqueue_bulk_job(job_id)


def run_job(job_id: str) -> str:
    return bulk.run_bulk_turn(UUID(job_id))


def update_alerts() -> None:
    """Open and close alerts, and have a worker send the notifications. Nothing else that a sweep
    does depends on either."""
    try:
        alert_rules.update_alerts(daily_figures.latest_refused_ids())
        request_notifications(timezone.now())
    except Exception:
        logger.exception("Could not send alerts. The next sweep tries again.")


def request_notifications(now: datetime) -> None:
    if conf().sync:
        deliver.send_due_deliveries()
    elif Delivery.objects.due(now).exists() and queue.count_own_ready_tasks(now) < MAX_READY_TASKS:
        queue.send_task(queue.SEND_NOTICES)


def send_notices() -> str:
    """Returns what the queue's own records are to say."""
    tried = deliver.send_due_deliveries()
    return f"{sum(each.is_sent for each in tried)} of {len(tried)} messages sent"


@record_requests()
def take_part(scan_id: str) -> str:
    """Work on a scan for one turn; returns its status for the queue's own records."""
    scan = BucketScan.objects.running().filter(pk=UUID(scan_id)).first()
    if scan is None:
        return queue.RESULT_OVER
    for _batch in work_on_scan(scan, seconds=conf().turn_time.total_seconds()):
        pass
    if scan.has_free_shards():
        send_workers(scan, 1)
    elif scan.message:
        logger.error("Scan %s %s: %s", scan.pk, scan.status, scan.message)
    return scan.status


def reconcile() -> str:
    """Have a worker compare the whole bucket with the table, unless another scan is running.
    Returns what the queue's own records are to say."""
    if conf().sync:
        return "there are no workers"
    try:
        with transaction.atomic():
            scan = start_scan(purpose=BucketScan.Purpose.RECONCILE)
            refuse_second_scan(scan)
    except IllegalTransition:
        return "another scan is running"
    except ScanTooExpensive as error:
        text = (
            "No scan was started: %s Run reconcile_r2 --max-requests, or raise SCAN_MAX_REQUESTS."
        )
        logger.error(text, error)
        return "too costly"
    send_workers(scan, 1)
    return str(scan.pk)


@receiver(pre_execute, dispatch_uid="storage_audit.task")
def set_task_context(task: dict[str, Any], **kwargs: object) -> None:
    logs.set_context(task=f"{task.get('cluster') or Conf.CLUSTER_NAME}/{task['id']}")


@receiver(post_execute_in_worker, dispatch_uid="storage_audit.task")
def clear_task_context(**kwargs: object) -> None:
    logs.set_context(task=None)


@record_requests()
def diagnose(run: str, asked_at: datetime) -> str:
    """Run the doctor's probes in the worker; returns what the queue's own records are to say.

    Does nothing when nobody waits for them any more: deletions wait behind this task.
    """
    late = timezone.now() - asked_at
    if late > WORKER_ANSWERS_WITHIN:
        logger.warning(
            "Skipped the health check: it was requested %s ago, or this machine's clock is wrong.",
            late,
        )
        return "too late"
    return str(run_probes(HealthReport.Context.WORKER, UUID(run)))
