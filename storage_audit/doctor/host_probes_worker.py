"""The queue and its worker: scheduled, taken, and in time."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import queue
from storage_audit.alerts.lateness import delays
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import Facts, Result, Status, fingerprint
from storage_audit.locking import impatient

SETTINGS = ("name", "orm", "workers", "queue_limit", "bulk", "timeout", "retry", "max_attempts")
# A cluster looks at its schedules each half minute, and the sweep is due twice a minute.
NOT_PROMPT = timedelta(minutes=2)


@impatient()
def broker() -> Result:
    """Who puts tasks into the queue and who takes them must agree on all of this."""
    given: dict[str, Any] = getattr(settings, "Q_CLUSTER", {})
    facts: Facts = {name: given.get(name, _("not set")) for name in SETTINGS}
    # Tasks are signed with it: one that another process signed otherwise is dropped.
    facts["SECRET_KEY"] = fingerprint(settings.SECRET_KEY)
    if not given.get("orm"):
        text = _("The queue is not in the database.")
        advice = _("Set orm of Q_CLUSTER: how far behind other brokers are cannot be seen.")
        return Result(Status.WARNING, text, advice, facts)
    waiting = queue.ready_tasks(timezone.now())
    text = _("%d tasks wait in the queue.") % waiting
    return Result(Status.OK, text, facts=facts, readings={"tasks waiting": waiting})


@impatient()
def schedule() -> Result:
    due = queue.sweep_due_at()
    if due is None and not conf().sync:
        text = _("No sweep is scheduled: what the queue loses would be forgotten.")
        return Result(Status.WRONG, text, _("Run: manage.py migrate"))
    if due is None:
        advice = _("See that a timer runs manage.py sweep_cleanups, each minute.")
        return Result(Status.NOT_CHECKED, _("With SYNC the queue sweeps nothing."), advice)
    return Result(Status.OK, _("The sweep is scheduled."), readings={"due": f"{due:%H:%M:%S}"})


@impatient()
def worker() -> Result:
    """Whether one runs, by what is left undone: the sweep, tasks, operations."""
    behind = timezone.now() - (queue.sweep_due_at() or timezone.now())
    readings = {"sweep late by": f"{max(behind.total_seconds(), 0):.0f} s"}
    if late := delays():
        text = " ".join(delay.text for delay in late)
        advice = " ".join(dict.fromkeys(delay.advice for delay in late))
        return Result(Status.WRONG, text, advice, readings=readings)
    if conf().sync:
        text = _("None is needed: with SYNC the work is done in the request.")
        return Result(Status.OK, text, readings=readings)
    if behind > NOT_PROMPT:
        text = _("The sweep is late, by %d seconds.") % behind.total_seconds()
        advice = _("If no worker is being restarted just now, start one: manage.py qcluster")
        return Result(Status.WARNING, text, advice, readings=readings)
    return Result(Status.OK, _("The sweep comes in time."), readings=readings)
