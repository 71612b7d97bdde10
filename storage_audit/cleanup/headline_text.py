"""What a person reads first about a cleanup: one answer, what it means, and what happens next."""

from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from storage_audit.cleanup.cleanup_text import (
    PROJECT_EXISTS_TEXT,
    PRUNED_TEXT,
    decision_text,
    find_blocking_cleanup,
    hold_text,
    is_of_live_project,
    is_shown_as_held,
    is_shown_as_paused,
)
from storage_audit.cleanup.models import Cleanup
from storage_audit.display_formats import format_utc

Kind, Status = Cleanup.Kind, Cleanup.Status

# The answer by status. Those of an end have numbers: see `headline_text`.
ANSWERS = {
    Status.PLANNED: gettext_lazy("Preview. Nothing was deleted."),
    Status.PENDING: gettext_lazy("Waiting to start."),
    Status.RUNNING: gettext_lazy("Running now."),
    Status.RETRYING: gettext_lazy("Retrying. The last try did not succeed."),
    Status.FAILED: gettext_lazy("Failed. Some files may still be in the bucket."),
    Status.BLOCKED: gettext_lazy("Needs approval. No file is deleted until a person decides."),
    Status.UNDONE: gettext_lazy("Undone. The project is back, and none of its files was deleted."),
    Status.CANCELLED: gettext_lazy(
        "Cancelled. Files that were not deleted by then stay in the bucket."
    ),
    Status.SUPERSEDED: gettext_lazy(
        "Superseded. A new project with this ID, or a later deletion of it, decides on the files."
    ),
}
NEXT_STEPS = {
    Status.PLANNED: gettext_lazy("Running this plan deletes only the files that it lists."),
    Status.PENDING: gettext_lazy("Usually starts within a minute."),
    Status.CLEAN_WITH_KEPT: gettext_lazy(
        "Nothing has to be done: kept files may belong to somebody else."
    ),
    Status.RETRYING: gettext_lazy("We try again automatically, at longer and longer intervals."),
    Status.FAILED: gettext_lazy("We still try once a day. Fix the cause, then choose “Retry now”."),
    Status.DIFFERS: gettext_lazy("The verification changed nothing. Each file says what differs."),
}
# Where a kind says something else.
ANSWERS_BY_KIND = {
    Kind.VERIFY: {
        Status.CLEAN: gettext_lazy("Verified. The bucket is as expected."),
        Status.FAILED: gettext_lazy("Failed. The bucket could not be checked."),
        Status.BLOCKED: gettext_lazy("Verify again: this verification was stopped."),
    },
    Kind.VANISHED: {
        Status.BLOCKED: gettext_lazy(
            "Needs a decision. These projects are gone from the database, and nobody asked to"
            " delete them."
        ),
        Status.SUPERSEDED: gettext_lazy("Settled."),
    },
}
NEXT_STEPS_BY_KIND = {
    Kind.VERIFY: {Status.FAILED: gettext_lazy("We still try once a day.")},
    Kind.VANISHED: {
        Status.BLOCKED: gettext_lazy(
            "Their files are kept until the projects are back or a person approves their deletion."
        ),
    },
}
PAUSED_TEXT = gettext_lazy("Paused. No file is deleted until a person resumes it.")
# Their message is about what happened until now.
UNDER_WAY = (Status.PENDING, Status.RUNNING, Status.RETRYING, Status.FAILED)


def explain_status(cleanup: Cleanup) -> list[str]:
    """The answer first, then what it means and what happens next."""
    status, error = Status(cleanup.status), cleanup.message
    sentences = [headline_text(cleanup)]
    # A decision has its reason as the message.
    if error and error != cleanup.decision_reason and status != Status.PLANNED:
        sentences.append(_("Reason: %s") % error if status in UNDER_WAY else error)
    is_not_runnable = status == Status.PLANNED and is_of_live_project(cleanup)
    sentences += hold_sentences(cleanup)
    sentences += [str(PROJECT_EXISTS_TEXT)] if is_not_runnable else next_step_texts(cleanup)
    if decided := decision_text(cleanup):
        sentences.append(decided)
    if status == Status.PLANNED:
        limit = _("A safety limit would stop this plan: %s") % error
        sentences.append(limit if error else _("No safety limit would stop this plan."))
    elif cleanup.dry_run:
        sentences.append(_("This is a preview and deletes nothing."))
    if status in Cleanup.WORKABLE and (blocked := find_blocking_cleanup(cleanup)):
        sentences.append(_("Waits for a person's decision on cleanup %s.") % blocked.pk)
    if cleanup.pruned_at:
        sentences.append(PRUNED_TEXT % {"archive": cleanup.archive})
    return sentences


def headline_text(cleanup: Cleanup) -> str:
    """What there is to know first, such as “Clean. All 10 files are gone, confirmed …”."""
    status, kind = Status(cleanup.status), Kind(cleanup.kind)
    if is_shown_as_held(cleanup):
        return held_text(cleanup)
    if is_shown_as_paused(cleanup):
        return str(PAUSED_TEXT)
    if status == Status.PENDING and (until := scheduled_start(cleanup, timezone.now())):
        return _("Scheduled for %s.") % format_utc(until)
    if special := ANSWERS_BY_KIND.get(kind, {}).get(status):
        return str(special)
    match status:
        case Status.CLEAN:
            return clean_answer(cleanup)
        case Status.CLEAN_WITH_KEPT:
            return kept_answer(cleanup)
        case Status.DIFFERS:
            return count_text(
                ngettext_lazy("%d file is not as expected.", "%d files are not as expected."),
                cleanup.failed,
            )
    return str(ANSWERS[status])


def clean_answer(cleanup: Cleanup) -> str:
    gone, at = cleanup.deleted + cleanup.already_gone, cleanup.finished_at
    text = ngettext("Clean. The file is gone", "Clean. All %(count)d files are gone", gone)
    text = text % {"count": gone} if gone else _("Clean. There were no files to delete")
    if at is None:
        return f"{text}."
    return _("%(text)s, confirmed %(at)s.") % {"text": text, "at": format_utc(at)}


def kept_answer(cleanup: Cleanup) -> str:
    gone = cleanup.deleted + cleanup.already_gone
    kept = count_text(ngettext_lazy("%d file is kept.", "%d files are kept."), cleanup.kept)
    if cleanup.kind == Kind.VERIFY:
        return _("Verified. Nothing is left to delete. %s") % kept
    if not gone:
        return _("Clean, some kept. %s") % kept
    text = count_text(ngettext_lazy("%d file is gone.", "%d files are gone."), gone)
    return _("Clean, some kept. %(gone)s %(kept)s") % {"gone": text, "kept": kept}


def count_text(text: Any, count: int) -> str:
    return str(text % count)


def held_text(cleanup: Cleanup) -> str:
    return _("%s. No file is deleted before that.") % hold_text(cleanup)


def scheduled_start(cleanup: Cleanup, now: datetime) -> datetime | None:
    """When a worker may take it, if none may now."""
    due = cleanup.next_attempt_at
    return due if cleanup.status != Status.RUNNING and due and due > now else None


def next_step_texts(cleanup: Cleanup) -> list[str]:
    status, until = Status(cleanup.status), scheduled_start(cleanup, timezone.now())
    if status == Status.PENDING and (until or is_shown_as_paused(cleanup)):
        return []
    special = NEXT_STEPS_BY_KIND.get(Kind(cleanup.kind), {})
    found = [str(text)] if (text := special.get(status, NEXT_STEPS.get(status))) else []
    if status in (Status.RETRYING, Status.FAILED) and until:
        found.append(_("Next try: %s.") % format_utc(until))
    return found


def hold_sentences(cleanup: Cleanup) -> list[str]:
    """Until when nothing is sent, unless that is the answer. It may be planned, blocked or paused
    meanwhile."""
    until = cleanup.shown_hold()
    if until is None:
        return []
    if cleanup.status == Status.CLEAN:
        return [_("You can undo the deletion until %s.") % format_utc(until)]
    sentences = [] if is_shown_as_held(cleanup) else [held_text(cleanup)]
    if is_shown_as_paused(cleanup):
        sentences.append(str(PAUSED_TEXT))
    return sentences
