"""What the queue's tables say. What is put into them is in tasks.py; both know django-q2, and
nobody else does."""

from datetime import datetime, timedelta

from django.db.models import Min, QuerySet
from django_q.conf import Conf
from django_q.models import OrmQ, Schedule, Task

TASKS = "storage_audit.tasks."
SWEEP = f"{TASKS}sweep"
RECONCILE = f"{TASKS}reconcile"
SEND_NOTICES = f"{TASKS}send_notices"
MINUTE = timedelta(minutes=1)
# Tasks that are read to count ours: in a tenth of a second.
LATEST = 1_000
# What tasks return that did nothing.
HELD = "not due, or held by another worker"
GIVEN_UP = "no worker gets on with it"
OVER = "over, or not there any more"
TAKEN = "another worker is at it"


def is_scheduled() -> bool:
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


def put_off_sweeps(now: datetime) -> list[Schedule]:
    """Those further ahead than twice their pause: the clock of the cluster that ran them was ahead,
    and they would wait for its date."""
    sweeps = Schedule.objects.filter(func__in=[SWEEP, RECONCILE], schedule_type=Schedule.MINUTES)
    return [each for each in sweeps if each.next_run > now + 2 * MINUTE * (each.minutes or 1)]


def bring_sweeps_forward(now: datetime) -> None:
    """To their next turn, at the second that they have in each minute."""
    for sweep in put_off_sweeps(now):
        put_off = Schedule.objects.filter(pk=sweep.pk, next_run=sweep.next_run)
        put_off.update(next_run=now + (sweep.next_run - now) % MINUTE)


def reconciles_every() -> timedelta:
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


def ready_tasks(at: datetime) -> int:
    """How many no cluster has taken."""
    return cluster_tasks().filter(lock__lte=at).count()


def own_ready_tasks(at: datetime) -> int:
    """How many of them are ours, among the latest. The site may send tasks of its own to the same
    cluster, and only the signed payload says whose a task is."""
    latest = cluster_tasks().filter(lock__lte=at).order_by("-pk")[:LATEST]
    return sum(str(each.task.get("func")).startswith(TASKS) for each in latest)


def did_work_since(moment: datetime) -> bool:
    """Whether a worker has ended a task of ours well in which it did something. To sweep is not to
    work, nor is to begin a scan, or to tell of it."""
    ended = Task.objects.filter(func__startswith=TASKS, success=True, stopped__gt=moment)
    did = ended.exclude(func__in=[SWEEP, RECONCILE, SEND_NOTICES])
    found: bool = did.exclude(result__in=[HELD, GIVEN_UP, OVER, TAKEN]).exists()
    return found
