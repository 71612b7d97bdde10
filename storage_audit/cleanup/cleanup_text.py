"""Words for the statuses, outcomes, steps and triggers of a cleanup."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.display_formats import format_utc
from storage_audit.redaction import printable_text

Kind, Status = Cleanup.Kind, Cleanup.Status
Outcome, Step, Trigger = CleanupItem.Outcome, Cleanup.Step, Cleanup.Trigger

PROJECT_EXISTS_TEXT = gettext_lazy(
    "The project exists, so this plan can't be run. To delete its files, delete the project."
)
PRUNED_TEXT = gettext_lazy(
    "The list of files and the timeline were moved to the file %(archive)s. To load them again, run"
    " manage.py loaddata with the path of that file."
)
# Of a verification, which deletes nothing.
VERIFICATION_OUTCOMES = {
    Outcome.TO_DELETE: gettext_lazy("to be compared"),
    Outcome.ALREADY_GONE: gettext_lazy("confirmed gone"),
    Outcome.FAILED: gettext_lazy("different"),
}
# Who or what asked for a cleanup.
TRIGGER_MEANINGS = {
    Trigger.DELETED: gettext_lazy("The project or these files were deleted."),
    Trigger.FORCED: gettext_lazy("Deleted without the safety limits."),
    Trigger.ORPHANED: gettext_lazy("A person deleted leftover files that scans had found."),
    Trigger.DECLARED: gettext_lazy(
        "A person confirmed that the project is deleted, and had its leftover files deleted."
    ),
    Trigger.VANISHED: gettext_lazy(
        "The project was gone from the database, though nobody had asked for its deletion."
    ),
    Trigger.DRY_RUN: gettext_lazy("Somebody asked what a deletion would do."),
    Trigger.VERIFY: gettext_lazy("Somebody asked for a verification."),
    Trigger.FOLLOW_UP: gettext_lazy(
        "Checks again after a deletion, as an upload may have ended after it."
    ),
    Trigger.BENCHMARK: gettext_lazy(
        "compare_strategies tried a way of deleting on a test project."
    ),
}
# What a worker does in a step.
STEP_ACTIVITIES = {
    Step.PLAN: gettext_lazy("Finding the files"),
    Step.HELD: gettext_lazy("Waiting until the hold ends"),
    Step.DELETE: gettext_lazy("Deleting"),
    Step.VERIFY: gettext_lazy("Checking that the files are gone"),
}
VERIFICATION_ACTIVITY = gettext_lazy("Checking the bucket")
# What the lines of a timeline are about.
EVENT_LABELS = {
    "request": gettext_lazy("requested"),
    "plan": gettext_lazy("plan"),
    "delete": gettext_lazy("deletion"),
    "batch_size": gettext_lazy("batch size"),
    "command": gettext_lazy("command"),
    "verify": gettext_lazy("verification"),
    "closed": gettext_lazy("end"),
    "retry": gettext_lazy("retry"),
    "takeover": gettext_lazy("new worker"),
    "vanished": gettext_lazy("vanished projects"),
    "run": gettext_lazy("plan run"),
    "approved": gettext_lazy("approved"),
    "held": gettext_lazy("held"),
    "undo": gettext_lazy("undone"),
    "cancel": gettext_lazy("cancelled"),
    "erase": gettext_lazy("erased now"),
    "paused": gettext_lazy("paused"),
    "resumed": gettext_lazy("resumed"),
}


def describe_outcome(cleanup: Cleanup, outcome: str) -> str:
    """The word for an outcome of this cleanup."""
    special = VERIFICATION_OUTCOMES if cleanup.kind == Kind.VERIFY else {}
    return str(special.get(Outcome(outcome), Outcome(outcome).label))


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


def find_blocking_cleanup(cleanup: Cleanup) -> Cleanup | None:
    """The blocked cleanup of the same deletion for which this one has to wait, if there is one."""
    if cleanup.kind != Kind.PROJECT or not cleanup.is_deletion:
        return None
    same = (cleanup.bucket, cleanup.project_id, cleanup.project_deleted_at)
    return Cleanup.objects.blocked_of_deletion(*same).first()


def is_of_live_project(cleanup: Cleanup) -> bool:
    """Whether this is a plan that cannot be run as its project exists."""
    return cleanup.status == Status.PLANNED and project_model.is_alive(cleanup.project_id)


def another_cleanup_advice() -> str:
    return _("To delete the file, run another cleanup.")


def next_scans_text() -> str:
    return _("If it is a leftover file, the next complete scans report it.")


def appeared_text() -> str:
    return _("The file appeared after the plan was made.")


def cancelled_by_person_text(project_id: str) -> str:
    text = _(
        "A person cancelled the cleanup of project %s, so its files are kept. To delete them,"
        " choose Clean up again."
    )
    return text % project_id


def superseded_text(project_id: str) -> str:
    text = _(
        "Project %s was created and deleted again. The cleanup of the later deletion covers the"
        " files."
    )
    return text % project_id
