"""How far a cleanup is, for a page that shows it while it runs."""

from datetime import datetime, timedelta
from typing import Any

from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.timesince import timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.cleanup_text import (
    current_activity,
    is_shown_as_held,
    is_shown_as_paused,
)
from storage_audit.cleanup.describe_cleanup import totals_lines
from storage_audit.cleanup.headline_text import headline_text, scheduled_start
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.progress import StepProgress
from storage_audit.display_formats import format_utc

Status = Cleanup.Status
# Seconds from one poll to the next.
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 1, 60
# A page without scripts loads itself anew only if something is to happen so soon.
RELOAD_WITHIN = timedelta(minutes=2)


def is_in_progress(cleanup: Cleanup) -> bool:
    """Whether there is something to watch."""
    return cleanup.status in (Status.PENDING, Status.RUNNING, Status.RETRYING)


def progress_values(cleanup: Cleanup, now: datetime) -> dict[str, Any]:
    step_progress = StepProgress.of(cleanup, now) if cleanup.status == Status.RUNNING else None
    total = step_progress.total if step_progress else None
    until = scheduled_start(cleanup, now)
    return {
        "status": cleanup.status,
        "step": cleanup.step,
        "step_in_words": step_text(cleanup, step_progress, until),
        "done": step_progress.done if step_progress else 0,
        "total": total,
        "share": min(1.0, step_progress.done / total) if step_progress and total else None,
        "rate": round(step_progress.rate, 1) if step_progress else 0,
        "seconds_left": step_progress.seconds_left if step_progress else None,
        "sentence": progress_sentence(cleanup, step_progress, until),
        "waits": until is not None,
        "finished": not is_in_progress(cleanup),
        "next_poll_seconds": seconds_to_next_poll(until, now),
    }


def line_values(cleanup: Cleanup) -> list[dict[str, Any]]:
    return [
        {
            "name": line.name,
            "objects": line.objects,
            "size": filesizeformat(line.size),
            "x": line.bar_x,
            "width": line.bar_width,
        }
        for line in totals_lines(cleanup, recount=False)
    ]


def seconds_to_next_poll(until: datetime | None, now: datetime) -> float:
    return (
        MIN_POLL_SECONDS
        if until is None
        else min(MAX_POLL_SECONDS, max(MIN_POLL_SECONDS, (until - now).total_seconds()))
    )


def step_text(cleanup: Cleanup, step_progress: StepProgress | None, until: datetime | None) -> str:
    """Without figures, as it is read aloud whenever it changes."""
    if not is_in_progress(cleanup):
        return headline_text(cleanup)
    hold = cleanup.shown_hold()
    if hold and is_shown_as_held(cleanup) and cleanup.step == Cleanup.Step.HELD:
        return _("The hold ends in %s.") % timeuntil(hold)
    if is_shown_as_paused(cleanup):
        return _("Paused.")
    if until:
        again = cleanup.status == Status.RETRYING
        return (_("Next try: %s.") if again else _("Starts %s.")) % format_utc(until)
    if step_progress is None:
        running = cleanup.status == Status.RUNNING
        return _("Starting.") if running else _("Waiting to start.")
    return f"{current_activity(cleanup)}."


def progress_sentence(
    cleanup: Cleanup, step_progress: StepProgress | None, until: datetime | None
) -> str:
    """Such as “Deleting: 1,200 of 5,000 files, 350 a second, about 11 seconds left.”"""
    if step_progress is None:
        return step_text(cleanup, step_progress, until)
    return f"{current_activity(cleanup)}: {', '.join(progress_figures(step_progress))}."


def progress_figures(step_progress: StepProgress) -> list[str]:
    numbers = {
        "done": format_number(step_progress.done),
        "total": format_number(step_progress.total or 0),
    }
    if step_progress.total:
        said = [_("%(done)s of %(total)s files") % numbers]
    else:
        said = [ngettext("%(done)s file", "%(done)s files", step_progress.done) % numbers]
    said.append(
        _("%s a second") % format_number(max(0.1, step_progress.rate) if step_progress.rate else 0)
    )
    if step_progress.total:
        left = step_progress.seconds_left
        said.append(_("time left unknown") if left is None else time_left(left))
    return said


def format_number(number: float) -> str:
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
