"""What is late: operations that nobody works on, the sweep, tasks in the queue."""

from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import queue
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.conf import conf
from storage_audit.scan.models import BucketScan

# A worker that is being restarted, or has many cleanups to do, is not late yet.
LATE = timedelta(minutes=10)
# A job waits in the queue between its slices.
JOB_LATE = timedelta(hours=1)
IDS_SHOWN = 5
RESTART = gettext_lazy("Read the worker's log, and start the worker again.")
BUSY = gettext_lazy("Workers get on with other work; wait, or have more of them.")


class Delay(NamedTuple):
    """What is late, and what to do."""

    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


def delays() -> list[Delay]:
    return [*waits(), *motionless_jobs(), *sweeps()]


def of_worker() -> list[Delay]:
    """Those that tell of a worker that is gone or stuck: where much is to be done, much waits."""
    waiting = waits()
    return [*([] if waiting and gets_on() else waiting), *motionless_jobs(), *sweeps()]


def waits() -> list[Delay]:
    found = [idle_operations()]
    if not conf().sync:
        found.append(waiting_task())
    return [delay for delay in found if delay]


def sweeps() -> list[Delay]:
    # With SYNC no worker is needed: the work is done in the request or in the timer's sweep.
    late = None if conf().sync else late_sweep()
    return [late] if late else []


def gets_on() -> bool:
    """Whether workers did something of late, which a dead or a stuck one does not."""
    since = timezone.now() - LATE
    return (
        CleanupOperation.objects.worked_on_since(since).exists()
        or BucketScan.objects.running().held(since + conf().lease).exists()
        or queue.did_work_since(since)
    )


def idle_operations() -> Delay | None:
    """Operations that nobody works on though nothing of their project is in their way."""
    now = timezone.now()
    rivals = CleanupOperation.objects.held().filter(
        bucket=OuterRef("bucket"), project_id=OuterRef("project_id")
    )
    idle = CleanupOperation.objects.due(LATE).filter(~Exists(rivals))
    oldest = list(idle.order_by("next_attempt_at")[:IDS_SHOWN])
    if not oldest:
        return None
    ids = ", ".join(str(operation.pk) for operation in oldest)
    text = _("Operations due and not worked on: %(count)d, the first for %(late)s (%(ids)s).") % {
        "count": idle.count(),
        "late": minutes(now - (oldest[0].next_attempt_at or now)),
        "ids": ids,
    }
    timer = _("Have a timer run: manage.py sweep_cleanups")
    return Delay(text, timer if conf().sync else for_waiting())


def motionless_jobs() -> list[Delay]:
    """Jobs that take up no project, whatever else workers get on with."""
    now = timezone.now()
    late = Job.objects.motionless(now - JOB_LATE)
    oldest = list(late.order_by("moved_at").values_list("pk", "moved_at")[:IDS_SHOWN])
    if not oldest:
        return []
    text = _("Bulk jobs without progress: %(count)d, the first for %(late)s (%(ids)s).") % {
        "count": late.count(),
        "late": minutes(now - oldest[0][1]),
        "ids": ", ".join(str(pk) for pk, _moved_at in oldest),
    }
    return [Delay(text, _("Search the worker's log for the job's id."))]


def late_sweep() -> Delay | None:
    now, due = timezone.now(), queue.sweep_due_at()
    if due is None:
        return Delay(_("No sweep is scheduled."), _("Run: manage.py migrate"))
    late = now - due
    if -late > LATE and queue.put_off_sweeps(now):
        text = _("The next sweep is %s away: a clock was ahead when it was scheduled.")
        return Delay(text % minutes(-late), _("Run: manage.py migrate"))
    text = _("No worker runs: the sweep is %s late.") % minutes(late)
    return Delay(text, str(RESTART)) if late > LATE else None


def waiting_task() -> Delay | None:
    now = timezone.now()
    waited = now - (queue.oldest_task_at() or now)
    text = _("A task has waited in the queue for %s.") % minutes(waited)
    return Delay(text, for_waiting()) if waited > LATE else None


def for_waiting() -> str:
    return str(BUSY if gets_on() else RESTART)


def minutes(duration: timedelta) -> str:
    count = duration // timedelta(minutes=1)
    return ngettext("%d minute", "%d minutes", count) % count
