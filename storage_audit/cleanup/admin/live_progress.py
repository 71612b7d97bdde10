"""How far an operation is, for a page that shows it while it runs."""

from datetime import datetime, timedelta
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.formats import date_format, number_format
from django.utils.timesince import timeuntil
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.cleanup_text import doing, status_of
from storage_audit.cleanup.describe import books
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.progress import Headway

Status = CleanupOperation.Status
# Seconds from one look to the next.
OFTEN, SELDOM = 1, 60
# A page without scripts loads itself anew only if something is to happen so soon.
SOON = timedelta(minutes=2)


def is_watched(operation: CleanupOperation) -> bool:
    """Whether it goes on by itself, so that there is something to watch."""
    if operation.status == Status.INCOMPLETE:
        return operation.next_attempt_at is not None
    return operation.status in (Status.PENDING, Status.RUNNING)


def waits_until(operation: CleanupOperation, now: datetime) -> datetime | None:
    """For what it waits, if no worker may take it now."""
    due = operation.next_attempt_at
    return due if operation.status != Status.RUNNING and due and due > now else None


def progress(operation: CleanupOperation, now: datetime) -> dict[str, Any]:
    headway = Headway.of(operation, now) if operation.status == Status.RUNNING else None
    until = waits_until(operation, now)
    return {
        "status": operation.status,
        "step": operation.step,
        "step_in_words": in_words(operation, headway, until),
        "done": headway.done if headway else 0,
        "total": headway.total if headway else None,
        "share": share(headway),
        "rate": round(headway.rate, 1) if headway else 0,
        "seconds_left": headway.seconds_left if headway else None,
        "sentence": sentence(operation, headway, until),
        "waits": until is not None,
        "finished": not is_watched(operation),
        "look_again": seconds_until_next_look(until, now),
    }


def lines(operation: CleanupOperation) -> list[dict[str, Any]]:
    return [
        {
            "name": line.name,
            "objects": line.objects,
            "size": filesizeformat(line.size),
            "x": line.x,
            "width": line.width,
        }
        for line in books(operation, recount=False)
    ]


def share(headway: Headway | None) -> float | None:
    if headway is None or not headway.total:
        return None
    return min(1.0, headway.done / headway.total)


def seconds_until_next_look(until: datetime | None, now: datetime) -> float:
    return OFTEN if until is None else min(SELDOM, max(OFTEN, (until - now).total_seconds()))


def in_words(operation: CleanupOperation, headway: Headway | None, until: datetime | None) -> str:
    """Without figures, as it is read aloud whenever it changes."""
    if not is_watched(operation):
        return _("It has ended: %s.") % status_of(operation)
    if until:
        due = date_format(localtime(until), "Y-m-d H:i:s")
        again = operation.status == Status.INCOMPLETE
        return (_("It is tried again on %s.") if again else _("It starts on %s.")) % due
    if headway is None:
        running = operation.status == Status.RUNNING
        return _("A worker begins with it.") if running else _("It waits for a worker.")
    return f"{doing(operation)}."


def sentence(operation: CleanupOperation, headway: Headway | None, until: datetime | None) -> str:
    """Such as “Deleting: 1,200 of 5,000 objects, 350 a second, about 11 seconds left.”"""
    if headway is None:
        return in_words(operation, headway, until)
    return f"{doing(operation)}: {', '.join(figures(headway))}."


def figures(headway: Headway) -> list[str]:
    numbers = {"done": grouped(headway.done), "total": grouped(headway.total or 0)}
    if headway.total:
        said = [_("%(done)s of %(total)s objects") % numbers]
    else:
        said = [ngettext("%(done)s object", "%(done)s objects", headway.done) % numbers]
    said.append(_("%s a second") % grouped(max(0.1, headway.rate) if headway.rate else 0))
    if headway.total:
        left = headway.seconds_left
        said.append(_("no estimate of the time left") if left is None else time_left(left))
    return said


def grouped(number: float) -> str:
    """With one digit after the point where there is hardly more."""
    digits = 1 if 0 < number < 10 and number % 1 else 0
    return number_format(number, digits, use_l10n=True, force_grouping=True)


def time_left(seconds: float) -> str:
    if seconds < 60:
        count = max(1, round(seconds))
        return ngettext("about %d second left", "about %d seconds left", count) % count
    start = datetime(2000, 1, 1)
    text = timeuntil(start + timedelta(seconds=min(seconds, 1e9)), start, depth=1)
    return _("about %s left") % text
