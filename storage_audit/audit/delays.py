"""What is late: operations that nobody works on, the sweep, tasks in the queue."""

from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import queue
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

# A worker that is being restarted, or has many cleanups to do, is not late yet.
LATE = timedelta(minutes=10)
IDS_SHOWN = 5
RESTART = gettext_lazy("Read the worker's log, and start the worker again.")


class Delay(NamedTuple):
    """What is late, and what to do."""

    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


def delays() -> list[Delay]:
    found = [idle_operations()]
    # With SYNC no worker is needed: the work is done in the request or in the timer's sweep.
    if not conf().sync:
        found += [late_sweep(), waiting_task()]
    return [delay for delay in found if delay]


def idle_operations() -> Delay | None:
    """Operations that nobody works on though nothing of their project is in their way."""
    now = timezone.now()
    rivals = CleanupOperation.objects.held(now).filter(
        bucket=OuterRef("bucket"), project_id=OuterRef("project_id")
    )
    idle = CleanupOperation.objects.due(now - LATE).filter(~Exists(rivals))
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
    return Delay(text, timer if conf().sync else str(RESTART))


def late_sweep() -> Delay | None:
    due = queue.sweep_due_at()
    if due is None:
        return Delay(_("No sweep is scheduled."), _("Run: manage.py migrate"))
    late = timezone.now() - due
    text = _("No worker runs: the sweep is %s late.") % minutes(late)
    return Delay(text, str(RESTART)) if late > LATE else None


def waiting_task() -> Delay | None:
    now = timezone.now()
    waits = now - (queue.oldest_task_at() or now)
    text = _("A task has waited in the queue for %s.") % minutes(waits)
    return Delay(text, str(RESTART)) if waits > LATE else None


def minutes(duration: timedelta) -> str:
    count = duration // timedelta(minutes=1)
    return ngettext("%d minute", "%d minutes", count) % count
