"""What a person reads first about a cleanup: one answer, what it means, and what happens next."""

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

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

# The answer, and what follows from it. Those of an end come with numbers: see `answer_text`.
ANSWERS = {
    Status.PLANNED: gettext_lazy("Preview. Nothing was deleted."),
    Status.PENDING: gettext_lazy("Waiting to start."),
    Status.RUNNING: gettext_lazy("Running now."),
    Status.RETRYING: gettext_lazy("Retrying. Not all files could be deleted yet."),
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
VERIFICATION_ANSWERS = {
    Status.RETRYING: gettext_lazy("Retrying. The bucket could not be checked yet."),
    Status.FAILED: gettext_lazy("Failed. The bucket could not be checked."),
    Status.BLOCKED: gettext_lazy("Verify again: this verification was stopped."),
}
# Of the cleanup that lists projects.
VANISHED_ANSWERS = {
    Status.BLOCKED: gettext_lazy(
        "Needs a decision. These projects are gone from the database, and nobody asked to delete"
        " them."
    ),
    Status.SUPERSEDED: gettext_lazy("Settled."),
}
NEXT_STEPS = {
    Status.PLANNED: gettext_lazy("Running this plan deletes the files that it lists, and no more."),
    Status.PENDING: gettext_lazy("It usually starts within a minute."),
    Status.CLEAN_WITH_KEPT: gettext_lazy(
        "The kept files are still in the bucket. Each says why it was kept."
    ),
    Status.RETRYING: gettext_lazy("We try again automatically, at longer and longer intervals."),
    Status.FAILED: gettext_lazy("We still try once a day. Fix the cause, then choose “Retry now”."),
    Status.DIFFERS: gettext_lazy("The verification changed nothing. Each file says what differs."),
}
VERIFICATION_NEXT_STEPS = {
    Status.CLEAN_WITH_KEPT: NEXT_STEPS[Status.CLEAN_WITH_KEPT],
    Status.FAILED: gettext_lazy("We still try once a day."),
}
VANISHED_NEXT_STEPS = {
    Status.BLOCKED: gettext_lazy(
        "No file of them is deleted until their database rows are back or a person approves this."
    ),
}
# Their message is about what happened until now.
RUNNING_ON = (Status.PENDING, Status.RUNNING, Status.RETRYING, Status.FAILED)


def explain_status(cleanup: Cleanup) -> list[str]:
    """The answer first, then what it means and what happens next."""
    status, error = Status(cleanup.status), cleanup.message
    sentences = [answer_text(cleanup)]
    # A decision has its reason as the message.
    is_reason = bool(error) and error != cleanup.decision_reason
    if is_reason and status != Status.PLANNED:
        sentences.append(_("Reason: %s") % error if status in RUNNING_ON else error)
    sentences += next_step_texts(cleanup)
    if decided := decision_text(cleanup):
        sentences.append(decided)
    if status == Status.PLANNED:
        limit = _("A safety limit would stop this plan: %s") % error
        sentences.append(limit if error else _("No safety limit would stop it."))
        if is_of_live_project(cleanup):
            sentences.append(str(PROJECT_EXISTS_TEXT))
    elif cleanup.dry_run:
        sentences.append(_("This is a preview and deletes nothing."))
    if status in Cleanup.WORKABLE and (blocked := find_blocking_cleanup(cleanup)):
        sentences.append(_("Waits for a person's decision on cleanup %s.") % blocked.pk)
    if cleanup.pruned_at:
        sentences.append(PRUNED_TEXT % {"archive": cleanup.archive})
    return sentences


def answer_text(cleanup: Cleanup) -> str:
    """What there is to know first, such as “Clean. All 10 files are gone, confirmed …”."""
    if is_shown_as_held(cleanup):
        return _("%s. No file is deleted before that.") % hold_text(cleanup)
    if is_shown_as_paused(cleanup):
        return _("Paused. No file is deleted until a person resumes it.")
    match Status(cleanup.status):
        case Status.CLEAN | Status.CLEAN_WITH_KEPT | Status.DIFFERS if cleanup.kind == Kind.VERIFY:
            return verification_answer(cleanup)
        case Status.CLEAN:
            return clean_answer(cleanup)
        case Status.CLEAN_WITH_KEPT:
            return kept_answer(cleanup)
        case Status.DIFFERS:
            return verification_answer(cleanup)
        case Status.PENDING if cleanup.next_attempt_at and cleanup.next_attempt_at > timezone.now():
            return _("Scheduled for %s.") % format_utc(cleanup.next_attempt_at)
    return str(
        {**ANSWERS, **special_texts(cleanup, VERIFICATION_ANSWERS, VANISHED_ANSWERS)}[
            Status(cleanup.status)
        ]
    )


def special_texts(cleanup: Cleanup, verification: Any, vanished: Any) -> dict[Any, Any]:
    by_kind: dict[Any, dict[Any, Any]] = {Kind.VERIFY: verification, Kind.VANISHED: vanished}
    return by_kind.get(Kind(cleanup.kind), {})


def clean_answer(cleanup: Cleanup) -> str:
    gone = cleanup.deleted + cleanup.already_gone
    # `storage.delete` did it at once, without a worker.
    at = format_utc(cleanup.finished_at or cleanup.created_at)
    if not gone:
        return _("Clean. The bucket has no files of it, confirmed %s.") % at
    text = ngettext(
        "Clean. The file is gone, confirmed %(at)s.",
        "Clean. All %(count)d files are gone, confirmed %(at)s.",
        gone,
    )
    return text % {"count": gone, "at": at}


def kept_answer(cleanup: Cleanup) -> str:
    gone = cleanup.deleted + cleanup.already_gone
    text = ngettext(
        "Clean, some kept. %(gone)d file is gone, and %(kept)d kept.",
        "Clean, some kept. %(gone)d files are gone, and %(kept)d kept.",
        gone,
    )
    return text % {"gone": gone, "kept": cleanup.kept}


def verification_answer(cleanup: Cleanup) -> str:
    if cleanup.status == Status.CLEAN:
        return _("Verified. The bucket is as expected.")
    if cleanup.status == Status.CLEAN_WITH_KEPT:
        text = ngettext(
            "Verified. Nothing is left to delete, and %d file is kept.",
            "Verified. Nothing is left to delete, and %d files are kept.",
            cleanup.kept,
        )
        return text % cleanup.kept
    text = ngettext("%d file is not as expected.", "%d files are not as expected.", cleanup.failed)
    return text % cleanup.failed


def next_step_texts(cleanup: Cleanup) -> list[str]:
    if hold_text(cleanup) and not is_shown_as_paused(cleanup):
        return hold_sentences(cleanup)
    if is_shown_as_paused(cleanup):
        return []
    due = cleanup.next_attempt_at
    if cleanup.status == Status.PENDING and due and due > timezone.now():
        return []
    texts = VERIFICATION_NEXT_STEPS if cleanup.kind == Kind.VERIFY else {}
    steps = {**NEXT_STEPS, **texts}
    if cleanup.kind == Kind.VANISHED:
        steps = VANISHED_NEXT_STEPS
    found = [str(steps[status])] if (status := Status(cleanup.status)) in steps else []
    if status in (Status.RETRYING, Status.FAILED) and due and due > timezone.now():
        found.append(_("Next try: %s.") % format_utc(due))
    return found


def hold_sentences(cleanup: Cleanup) -> list[str]:
    """What a person may do until the hold ends."""
    until = cleanup.shown_hold()
    if cleanup.parent_id or until is None:
        return []
    if cleanup.status == Status.CLEAN:
        return [_("You can undo the deletion until %s.") % format_utc(until)]
    if cleanup.status != Status.PENDING:
        return []
    return [_("Undo the deletion to bring the project back. Cancel it to keep only the files.")]
