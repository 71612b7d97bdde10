"""What is late: cleanups and bulk jobs without progress, the sweep, tasks in the queue."""

from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import queue
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.conf import conf
from storage_audit.scan.models import BucketScan

# A worker that restarts, or has many cleanups to do, is not late yet.
LATE_AFTER = timedelta(minutes=10)
# A bulk job waits in the queue between its turns.
BULK_JOB_LATE_AFTER = timedelta(hours=1)
IDS_SHOWN = 5
RESTART_ADVICE = gettext_lazy("Check the worker's log and restart the worker.")
BUSY_ADVICE = gettext_lazy("The workers are busy. Wait, or start more workers.")


class Delay(NamedTuple):
    """What is late, and what to do."""

    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


def find_delays() -> list[Delay]:
    return [*waiting_delays(), *stalled_bulk_jobs(), *sweep_delays()]


def find_worker_delays() -> list[Delay]:
    """Those that show that a worker is gone or stuck, and not just busy."""
    waiting = waiting_delays()
    return [
        *([] if waiting and is_work_progressing() else waiting),
        *stalled_bulk_jobs(),
        *sweep_delays(),
    ]


def waiting_delays() -> list[Delay]:
    found = [idle_cleanups()]
    if not conf().sync:
        found.append(waiting_task())
    return [delay for delay in found if delay]


def sweep_delays() -> list[Delay]:
    # With SYNC no worker is needed: the work is done in the request or in the timer's sweep.
    late = None if conf().sync else late_sweep()
    return [late] if late else []


def is_work_progressing() -> bool:
    """Whether workers did something recently, which a dead or stuck one does not."""
    since = timezone.now() - LATE_AFTER
    return (
        Cleanup.objects.worked_on_since(since).exists()
        or BucketScan.objects.running().leased(since + conf().lease_time).exists()
        or queue.has_worked_since(since)
    )


def idle_cleanups() -> Delay | None:
    """Cleanups that nobody works on, though no other cleanup of their project is in the way."""
    now = timezone.now()
    rivals = Cleanup.objects.leased().filter(
        bucket=OuterRef("bucket"), project_id=OuterRef("project_id")
    )
    idle = Cleanup.objects.due(LATE_AFTER).filter(~Exists(rivals))
    oldest = list(idle.order_by("next_attempt_at")[:IDS_SHOWN])
    if not oldest:
        return None
    ids = ", ".join(str(cleanup.pk) for cleanup in oldest)
    count = idle.count()
    text = ngettext(
        "%(count)d cleanup is waiting for a worker, for %(late)s (%(ids)s).",
        "%(count)d cleanups are waiting for a worker, the first for %(late)s (%(ids)s).",
        count,
    ) % {
        "count": count,
        "late": minutes_text(now - (oldest[0].next_attempt_at or now)),
        "ids": ids,
    }
    timer = _("Run manage.py sweep_cleanups from a timer.")
    return Delay(text, timer if conf().sync else waiting_advice())


def stalled_bulk_jobs() -> list[Delay]:
    """Bulk jobs that handle no more projects, though workers may do other work."""
    now = timezone.now()
    late = BulkJob.objects.stalled(now - BULK_JOB_LATE_AFTER)
    oldest = list(late.order_by("moved_at").values_list("pk", "moved_at")[:IDS_SHOWN])
    if not oldest:
        return []
    count = late.count()
    text = ngettext(
        "%(count)d bulk job has made no progress for %(late)s (%(ids)s).",
        "%(count)d bulk jobs have made no progress, the first for %(late)s (%(ids)s).",
        count,
    ) % {
        "count": count,
        "late": minutes_text(now - oldest[0][1]),
        "ids": ", ".join(str(pk) for pk, _moved_at in oldest),
    }
    return [Delay(text, _("Search the worker's log for the bulk job's ID."))]


def late_sweep() -> Delay | None:
    now, due = timezone.now(), queue.sweep_due_at()
    if due is None:
        return Delay(_("The worker's regular check is not scheduled."), _("Run manage.py migrate."))
    late = now - due
    if -late > LATE_AFTER and queue.delayed_sweeps(now):
        text = _("The worker's next regular check is %s away, because a clock was wrong.")
        return Delay(text % minutes_text(-late), _("Run manage.py migrate."))
    text = _("No worker is running. Its regular check is %s late.") % minutes_text(late)
    return Delay(text, str(RESTART_ADVICE)) if late > LATE_AFTER else None


def waiting_task() -> Delay | None:
    now = timezone.now()
    waited = now - (queue.oldest_task_at() or now)
    text = _("A task has waited in the queue for %s.") % minutes_text(waited)
    return Delay(text, waiting_advice()) if waited > LATE_AFTER else None


def waiting_advice() -> str:
    return str(BUSY_ADVICE if is_work_progressing() else RESTART_ADVICE)


def minutes_text(duration: timedelta) -> str:
    count = duration // timedelta(minutes=1)
    return ngettext("%d minute", "%d minutes", count) % count
