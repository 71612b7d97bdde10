"""What each status and outcome of a cleanup means for a person, and what happens next."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.display_formats import format_utc
from storage_audit.redaction import printable_text

Kind, Status = Cleanup.Kind, Cleanup.Status
Outcome, Step, Trigger = CleanupItem.Outcome, Cleanup.Step, Cleanup.Trigger

STATUS_MEANINGS = {
    Status.PLANNED: gettext_lazy(
        "This was a dry run: nothing was deleted. The plan stays as it is until a person runs it,"
        " and running it never deletes more than it says."
    ),
    Status.PENDING: gettext_lazy(
        "It waits for a worker, which takes it when its time has come. Should the queue lose it,"
        " the sweep finds it."
    ),
    Status.RUNNING: gettext_lazy(
        "A worker has it. Should the worker die, another goes on from here."
    ),
    Status.CLEAN: gettext_lazy(
        "Done: complete listings of the bucket show none of its objects any more."
    ),
    Status.CLEAN_WITH_KEPT: gettext_lazy(
        "Done: everything that may be deleted is gone. The kept objects are still in the"
        " bucket; each says why it was kept."
    ),
    Status.RETRYING: gettext_lazy(
        "Something remains, or the bucket could not be asked. It is tried again by itself, with"
        " growing pauses."
    ),
    Status.DIFFERS: gettext_lazy(
        "The verification is over and found differences; it changed nothing. The items say which"
        " they are."
    ),
    Status.FAILED: gettext_lazy(
        "Something remains after hours of trying. It is tried again once a day, but a person must"
        " look: the message and the items say what stands in the way."
    ),
    Status.BLOCKED: gettext_lazy(
        "Nothing is deleted until a person decides. The message says what stopped it. If its"
        " figures are right, choose Force-delete to approve it."
    ),
    Status.UNDONE: gettext_lazy(
        "The deletion was undone. The project is back, and none of its files was deleted."
    ),
    Status.CANCELLED: gettext_lazy(
        "A person cancelled this cleanup. The files that were not deleted by then stay in the"
        " bucket."
    ),
    Status.SUPERSEDED: gettext_lazy(
        "A new project with this id, or a later deletion of it, decides on the files. Nothing more"
        " is done here."
    ),
}
VERIFICATION_MEANINGS = {
    Status.CLEAN: gettext_lazy("The verification is over, and all is as it should be."),
    Status.CLEAN_WITH_KEPT: gettext_lazy(
        "The verification is over: nothing is left that may go. Each kept object says why it was"
        " kept."
    ),
    Status.BLOCKED: gettext_lazy(
        "The verification was stopped; the message says why. Once that is settled, verify again."
    ),
}
# Of the cleanup that lists projects.
VANISHED_MEANINGS = {
    Status.BLOCKED: gettext_lazy(
        "Nothing of these projects is deleted, and they count as alive, until their rows are back"
        " or a person approves this cleanup."
    ),
    Status.SUPERSEDED: gettext_lazy("It is settled; the message says how."),
}
PROJECT_EXISTS_TEXT = gettext_lazy(
    "The project exists, so this plan cannot be run. Deleting the project starts a cleanup of its"
    " own."
)
PRUNED_TEXT = gettext_lazy(
    "It is long over: its items and its timeline were exported to the file %(archive)s and deleted"
    " here. manage.py loaddata, with the path of that file, brings them back."
)
# What became of an object: a word for it, and what that means.
OUTCOME_TEXTS = {
    Outcome.TO_DELETE: (
        Outcome.TO_DELETE.label,
        gettext_lazy("Each is checked once more before it goes, and stays if it has changed."),
    ),
    Outcome.DELETING: (
        Outcome.DELETING.label,
        gettext_lazy(
            "The store was asked for it. It counts as deleted only when a complete listing does not"
            " show it any more."
        ),
    ),
    Outcome.DELETED: (
        Outcome.DELETED.label,
        gettext_lazy("It was sent for deletion, and a complete listing does not show it any more."),
    ),
    Outcome.ALREADY_GONE: (
        Outcome.ALREADY_GONE.label,
        gettext_lazy("It was gone before this cleanup asked the store for it."),
    ),
    Outcome.KEPT: (
        Outcome.KEPT.label,
        gettext_lazy(
            "It stays, and nothing deletes it until a person has decided; see the reason."
        ),
    ),
    Outcome.FAILED: (
        Outcome.FAILED.label,
        gettext_lazy("It is not gone; the reason says what stands in the way."),
    ),
}
# Of a verification, which deletes nothing.
VERIFICATION_OUTCOME_TEXTS = {
    Outcome.TO_DELETE: (
        gettext_lazy("to be compared"),
        gettext_lazy("It is tracked, or in the bucket, or both. The two have not been compared."),
    ),
    Outcome.ALREADY_GONE: (
        gettext_lazy("confirmed gone"),
        gettext_lazy("It was deleted, and the bucket does not show it: as it should be."),
    ),
    Outcome.FAILED: (
        gettext_lazy("different"),
        gettext_lazy("It is not as it should be; the reason says in what. Nothing was changed."),
    ),
}
# Who or what asked for a cleanup.
TRIGGER_MEANINGS = {
    Trigger.DELETED: gettext_lazy(
        "A person or a program deleted the project, or these objects, or gave them other keys."
    ),
    Trigger.FORCED: gettext_lazy(
        "Who deleted the project, or these objects, lifted the safety limits with that."
    ),
    Trigger.ORPHANED: gettext_lazy("A person asked for the deletion of orphans that scans found."),
    Trigger.DECLARED: gettext_lazy(
        "A person said that this id is no project any more, and had its leftover files cleaned up."
    ),
    Trigger.VANISHED: gettext_lazy(
        "The sweep saw that the project’s row is gone, though nobody had asked for its deletion."
    ),
    Trigger.DRY_RUN: gettext_lazy("A person or a program asked what a deletion would do."),
    Trigger.VERIFY: gettext_lazy(
        "A person or a program asked whether the bucket is as it should be."
    ),
    Trigger.FOLLOW_UP: gettext_lazy(
        "The deletion that it follows asked for a later check, as an upload may still have ended"
        " after it."
    ),
    Trigger.BENCHMARK: gettext_lazy(
        "A person tried a strategy of deletion on a made-up project, with compare_strategies."
    ),
}
# What a worker does in a step.
STEP_ACTIVITIES = {
    Step.PLAN: gettext_lazy("Looking for objects"),
    Step.HELD: gettext_lazy("Waiting until the hold is over"),
    Step.DELETE: gettext_lazy("Deleting"),
    Step.VERIFY: gettext_lazy("Looking whether they are gone"),
}
VERIFICATION_ACTIVITY = gettext_lazy("Comparing the bucket with what should be there")
# What the lines of a timeline are about.
EVENT_LABELS = {
    "request": gettext_lazy("asked for"),
    "plan": gettext_lazy("plan"),
    "delete": gettext_lazy("deletion"),
    "batch_size": gettext_lazy("batch size"),
    "command": gettext_lazy("program"),
    "verify": gettext_lazy("verification"),
    "closed": gettext_lazy("end"),
    "retry": gettext_lazy("new attempt"),
    "takeover": gettext_lazy("new worker"),
    "vanished": gettext_lazy("many projects gone"),
    "run": gettext_lazy("plan run"),
    "approved": gettext_lazy("approved"),
    "held": gettext_lazy("held"),
    "undo": gettext_lazy("undone"),
    "cancel": gettext_lazy("cancelled"),
    "erase": gettext_lazy("erased now"),
    "paused": gettext_lazy("paused"),
    "resumed": gettext_lazy("resumed"),
}


def describe_outcome(cleanup: Cleanup, outcome: str) -> tuple[str, str]:
    """The word for an outcome of this cleanup, and what it means."""
    seen = VERIFICATION_OUTCOME_TEXTS if cleanup.kind == Kind.VERIFY else {}
    word, means = {**OUTCOME_TEXTS, **seen}[Outcome(outcome)]
    return str(word), str(means)


def status_label(cleanup: Cleanup) -> str:
    """The status in a word or two, as a badge shows it."""
    if is_shown_as_held(cleanup):
        return hold_text(cleanup)
    if is_shown_as_paused(cleanup):
        return _("paused")
    return cleanup.get_status_display()


def status_style(cleanup: Cleanup) -> str:
    """The name of the colours of its badge."""
    if is_shown_as_paused(cleanup):
        return "paused"
    return "held" if is_shown_as_held(cleanup) else cleanup.status


def is_shown_as_paused(cleanup: Cleanup) -> bool:
    """Whether it rests as a worker met a pause: as it was then, and without a query."""
    return cleanup.status == Status.PENDING and bool(cleanup.progress.get("paused"))


def is_shown_as_held(cleanup: Cleanup) -> bool:
    return cleanup.status == Status.PENDING and cleanup.shown_hold() is not None


def hold_text(cleanup: Cleanup) -> str:
    """Such as “Held until 3 Dec 2026, 20:49 UTC”; empty where it is not held."""
    until = cleanup.shown_hold()
    return _("Held until %s") % format_utc(until) if until else ""


def describe_request(cleanup: Cleanup) -> str:
    """Who asked for it and when, such as “2 Dec 2026, 20:49 UTC by anna”."""
    at, user = format_utc(cleanup.created_at), printable_text(cleanup.requested_by)
    return _("%(at)s by %(user)s") % {"at": at, "user": user} if user else at


def decision_text(cleanup: Cleanup) -> str:
    """Such as “Cancelled by anna on 3 Dec 2026, 20:49 UTC: a lawsuit”, if a person decided."""
    if not cleanup.decided_at:
        return ""
    if cleanup.status == Status.UNDONE:
        text = _("Undone by %(user)s on %(at)s")
    elif cleanup.cancelled_at:
        text = _("Cancelled by %(user)s on %(at)s")
    else:
        text = _("Erased now by %(user)s on %(at)s")
    user, at = printable_text(cleanup.decided_by), format_utc(cleanup.decided_at)
    text %= {"user": user, "at": at}
    reason = printable_text(cleanup.decision_reason)
    return f"{text}: {reason}" if reason else f"{text}."


def current_activity(cleanup: Cleanup) -> str:
    """What its worker does, such as “Deleting”."""
    return str(
        VERIFICATION_ACTIVITY
        if cleanup.kind == Kind.VERIFY
        else STEP_ACTIVITIES[Step(cleanup.step)]
    )


def event_label(event: CleanupEvent) -> str:
    """What a line of the timeline is about, in a word or two."""
    known: dict[str, Any] = {**dict(Status.choices), **EVENT_LABELS}
    return str(known.get(event.step, event.step))


def explain_status(cleanup: Cleanup) -> list[str]:
    """What the status means and what happens next, in plain sentences."""
    status, error = Status(cleanup.status), cleanup.message
    many = VANISHED_MEANINGS if cleanup.kind == Kind.VANISHED else {}
    special = VERIFICATION_MEANINGS if cleanup.kind == Kind.VERIFY else many
    sentences = hold_sentences(cleanup)
    if is_shown_as_paused(cleanup):
        sentences.append(_("No file is deleted until a person resumes it."))
    elif not is_shown_as_held(cleanup):
        sentences.append(str({**STATUS_MEANINGS, **special}[status]))
    if decided := decision_text(cleanup):
        sentences.append(decided)
    if cleanup.dry_run and status != Status.PLANNED:
        sentences.append(_("It is a dry run and deletes nothing."))
    if status == Status.PLANNED:
        limit = _("A safety limit would block it: %s") % error
        sentences.append(limit if error else _("No safety limit would block it."))
        if is_of_live_project(cleanup):
            sentences.append(str(PROJECT_EXISTS_TEXT))
    # A decision has its reason as the message.
    elif error and error != cleanup.decision_reason:
        sentences.append(_("Message: %s") % error)
    if status in Cleanup.WORKABLE and (blocked := find_blocking_cleanup(cleanup)):
        sentences.append(_("It waits until a person has decided on cleanup %s.") % blocked.pk)
    if cleanup.pruned_at:
        sentences.append(PRUNED_TEXT % {"archive": cleanup.archive})
    return sentences


def hold_sentences(cleanup: Cleanup) -> list[str]:
    """Until when nothing is sent, and what a person may do until then."""
    if not (text := hold_text(cleanup)):
        return []
    if cleanup.parent_id:
        return [_("%s. It does nothing before that.") % text]
    if cleanup.status == Status.CLEAN:
        return [_("%s. The project has no files, and you can still undo its deletion.") % text]
    return [
        _("%s. No file is deleted before that.") % text,
        _("Undo the deletion to bring the project back, or cancel it to keep only the files."),
    ]


def find_blocking_cleanup(cleanup: Cleanup) -> Cleanup | None:
    """The blocked cleanup of the same deletion for which this one has to wait, if there is one."""
    if cleanup.kind != Kind.PROJECT or not cleanup.is_deletion:
        return None
    same = (cleanup.bucket, cleanup.project_id, cleanup.project_deleted_at)
    return Cleanup.objects.blocked_of_deletion(*same).first()


def is_of_live_project(cleanup: Cleanup) -> bool:
    """Whether this is a plan that cannot be run as its project exists."""
    return cleanup.status == Status.PLANNED and project_model.is_alive(cleanup.project_id)
