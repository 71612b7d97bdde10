"""What is late: operations that nobody works on, the sweep, tasks in the queue."""

from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef
from django.utils import timezone

from storage_audit import queue
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation

# A worker that is being restarted, or has many cleanups to do, is not late yet.
LATE = timedelta(minutes=10)
IDS_SHOWN = 5
RESTART = "Read the worker's log, and start the worker again."


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
    late = minutes(now - (oldest[0].next_attempt_at or now))
    text = f"Operations due and not worked on: {idle.count()}, the first for {late} ({ids})."
    return Delay(text, "Have a timer run: manage.py sweep_cleanups" if conf().sync else RESTART)


def late_sweep() -> Delay | None:
    due = queue.sweep_due_at()
    if due is None:
        return Delay("No sweep is scheduled.", "Run: manage.py migrate")
    late = timezone.now() - due
    text = f"No worker runs: the sweep is {minutes(late)} late."
    return Delay(text, RESTART) if late > LATE else None


def waiting_task() -> Delay | None:
    now = timezone.now()
    waits = now - (queue.oldest_task_at() or now)
    text = f"A task has waited in the queue for {minutes(waits)}."
    return Delay(text, RESTART) if waits > LATE else None


def minutes(duration: timedelta) -> str:
    return f"{duration // timedelta(minutes=1)} minutes"
