"""Sends tasks by their names, reads the queue's tables, makes its schedules.

What the tasks do is in tasks.py. Both modules know django-q2, and no other does."""

from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Min, QuerySet
from django.utils import timezone
from django.utils.module_loading import import_string
from django_q.conf import Conf
from django_q.models import OrmQ, Schedule, Task
from django_q.tasks import async_task

from storage_audit.conf import conf

TASK_PREFIX = "storage_audit.tasks."
SWEEP = f"{TASK_PREFIX}sweep"
RUN_CLEANUP = f"{TASK_PREFIX}run_cleanup"
RUN_JOB = f"{TASK_PREFIX}run_job"
TAKE_PART = f"{TASK_PREFIX}take_part"
DIAGNOSE = f"{TASK_PREFIX}diagnose"
RECONCILE = f"{TASK_PREFIX}reconcile"
SEND_NOTICES = f"{TASK_PREFIX}send_notices"
# With the setting SYNC, no worker takes a cleanup turn by turn.
RUN_TO_END = "storage_audit.cleanup.runner.run_to_end"
MINUTE = timedelta(minutes=1)
# Each runs every minute. A cluster looks at its schedules each half minute, so with two of them
# work that lost its worker is found half a minute after its lease is over, and not two.
SWEEP_SCHEDULES = {
    "storage_audit sweep": timedelta(0),
    "storage_audit sweep, half a minute later": timedelta(seconds=30),
}
# Tasks that are read to count ours: in a tenth of a second.
MAX_TASKS_READ = 1_000
# The results of tasks that did nothing.
RESULT_NOT_DUE = "not due, or held by another worker"
RESULT_GIVEN_UP = "no worker can finish it"
RESULT_OVER = "over or deleted"
RESULT_TAKEN = "another worker runs it"


def send_task(function: str, *args: object, **options: Any) -> None:
    """Have a worker call the function, given by its dotted name."""
    async_task(function, *args, group="storage_audit", **options)


def call_here(function: str, *args: object) -> None:
    """Call the function here and now, as the setting SYNC asks for."""
    import_string(function)(*args)


def is_sweep_scheduled() -> bool:
    return sweep_due_at() is not None


def sweep_due_at() -> datetime | None:
    """When the next sweep is due, or was: no cluster runs then. None when none is scheduled."""
    sweeps = Schedule.objects.filter(func=SWEEP).exclude(repeats=0)
    due: datetime | None = sweeps.aggregate(at=Min("next_run"))["at"]
    return due


def has_swept() -> bool:
    """Whether any cluster ever took up the sweep: django-q2 notes the task that it made of it."""
    found: bool = Schedule.objects.filter(func=SWEEP, task__isnull=False).exists()
    return found


def delayed_sweeps(now: datetime) -> list[Schedule]:
    """Those further ahead than twice their pause: the clock of the cluster that ran them was ahead,
    and they would wait for its date."""
    sweeps = Schedule.objects.filter(func__in=[SWEEP, RECONCILE], schedule_type=Schedule.MINUTES)
    return [each for each in sweeps if each.next_run > now + 2 * MINUTE * (each.minutes or 1)]


def bring_sweeps_forward(now: datetime) -> None:
    """To their next turn, at the second that they have in each minute."""
    for sweep in delayed_sweeps(now):
        put_off = Schedule.objects.filter(pk=sweep.pk, next_run=sweep.next_run)
        put_off.update(next_run=now + (sweep.next_run - now) % MINUTE)


def reconcile_interval() -> timedelta:
    """What the schedule says; nothing when there is none."""
    minutes = Schedule.objects.filter(func=RECONCILE).values_list("minutes", flat=True).first()
    return timedelta(minutes=minutes or 0)


def cluster_tasks() -> QuerySet[OrmQ]:
    """The tasks of the cluster that ours are sent to. Other clusters of the site share the table,
    and their workers take none of ours."""
    tasks: QuerySet[OrmQ] = OrmQ.objects.filter(key=Conf.CLUSTER_NAME)
    return tasks


def oldest_task_at() -> datetime | None:
    """Since when a task waits for a cluster; None when none does."""
    ready: datetime | None = cluster_tasks().aggregate(at=Min("lock"))["at"]
    return ready


def count_ready_tasks(at: datetime) -> int:
    """How many no cluster has taken."""
    return cluster_tasks().filter(lock__lte=at).count()


def count_own_ready_tasks(at: datetime) -> int:
    """How many of them are ours, among the latest. The site may send tasks of its own to the same
    cluster, and only the signed payload says whose a task is."""
    latest = cluster_tasks().filter(lock__lte=at).order_by("-pk")[:MAX_TASKS_READ]
    return sum(str(each.task.get("func")).startswith(TASK_PREFIX) for each in latest)


def has_worked_since(moment: datetime) -> bool:
    """Whether a worker has finished a task of ours in which it did something. A sweep does not
    count, nor does starting a scan or sending notifications."""
    ended = Task.objects.filter(func__startswith=TASK_PREFIX, success=True, stopped__gt=moment)
    did = ended.exclude(func__in=[SWEEP, RECONCILE, SEND_NOTICES])
    found: bool = did.exclude(
        result__in=[RESULT_NOT_DUE, RESULT_GIVEN_UP, RESULT_OVER, RESULT_TAKEN]
    ).exists()
    return found


def create_schedules(**kwargs: Any) -> None:
    """Have the cluster sweep twice a minute, and reconcile as the settings say. Called after each
    migrate."""
    if Schedule._meta.db_table not in connection.introspection.table_names():
        return  # The queue's own migrations were not run yet, or were undone.
    now = timezone.now()
    bring_sweeps_forward(now)
    for name, later in SWEEP_SCHEDULES.items():
        if not Schedule.objects.filter(func=SWEEP, name=name).exists():
            add_schedule(SWEEP, name, timedelta(minutes=1), now + later)
    if (pause := conf().reconcile_every) != reconcile_interval():
        Schedule.objects.filter(func=RECONCILE).delete()
        if pause:
            add_schedule(RECONCILE, "storage_audit reconcile", pause, now + pause)


def add_schedule(func: str, name: str, pause: timedelta, first: datetime) -> None:
    Schedule.objects.create(
        func=func,
        name=name,
        schedule_type=Schedule.MINUTES,
        minutes=pause // timedelta(minutes=1),
        repeats=-1,
        next_run=first,
    )
