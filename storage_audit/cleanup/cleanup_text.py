"""What each status and outcome of a cleanup means for a person, and what happens next."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, OperationEvent

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status
Outcome, Step, Trigger = CleanupItem.Outcome, CleanupOperation.Step, CleanupOperation.Trigger

MEANING = {
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
    Status.CLEAN_WITH_PROTECTED: gettext_lazy(
        "Done: everything that may be deleted is gone. The protected objects are still in the"
        " bucket; each says why it was kept."
    ),
    Status.INCOMPLETE: gettext_lazy(
        "Something remains, or the bucket could not be asked. It is tried again by itself, with"
        " growing pauses."
    ),
    Status.FAILED: gettext_lazy(
        "Something remains after hours of trying. It is tried again once a day, but a person must"
        " look: the message and the items say what stands in the way."
    ),
    Status.BLOCKED: gettext_lazy(
        "Nothing is deleted until a person decides. The message says what stopped it. If its"
        " figures are right, force-delete it to release it."
    ),
    Status.SUPERSEDED: gettext_lazy(
        "A new project with this id, or a later deletion of it, decides on the files. Nothing more"
        " is done here."
    ),
}
VERIFIED = {
    Status.CLEAN: gettext_lazy("The look is over, and all is as it should be."),
    Status.CLEAN_WITH_PROTECTED: gettext_lazy(
        "The look is over: nothing is left that may go. Each protected object says why it was kept."
    ),
    Status.INCOMPLETE: gettext_lazy(
        "The look is over and found differences; it changed nothing. The items say which they are."
    ),
    Status.BLOCKED: gettext_lazy(
        "The verification was stopped; the message says why. Once that is settled, verify again."
    ),
}
# The badge of a look that is over and incomplete: nothing of it is still to be done.
DIFFERENCES_FOUND = gettext_lazy("differences found")
# Of the operation that lists projects.
MANY = {
    Status.BLOCKED: gettext_lazy(
        "Nothing of these projects is deleted, and they count as alive, until their rows are back"
        " or a person releases this operation."
    ),
    Status.SUPERSEDED: gettext_lazy("It is settled; the message says how."),
}
NOT_WHILE_ALIVE = gettext_lazy(
    "The project exists, so this plan cannot be run. Deleting the project starts a cleanup of its"
    " own."
)
PRUNED = gettext_lazy(
    "It is long over: its items and its timeline were exported to the file %(archive)s and deleted"
    " here. manage.py loaddata, with the path of that file, brings them back."
)
# What became of an object: a word for it, and what that means.
OUTCOMES = {
    Outcome.PLANNED: (
        Outcome.PLANNED.label,
        gettext_lazy("Each is looked at once more before it goes, and stays if it has changed."),
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
    Outcome.ALREADY_ABSENT: (
        Outcome.ALREADY_ABSENT.label,
        gettext_lazy("It was gone before this operation asked the store for it."),
    ),
    Outcome.PROTECTED: (
        Outcome.PROTECTED.label,
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
SEEN = {
    Outcome.PLANNED: (
        gettext_lazy("to be compared"),
        gettext_lazy("It is tracked, or in the bucket, or both. The two have not been compared."),
    ),
    Outcome.ALREADY_ABSENT: (
        gettext_lazy("seen absent"),
        gettext_lazy("It was deleted, and the bucket does not show it: as it should be."),
    ),
    Outcome.FAILED: (
        gettext_lazy("different"),
        gettext_lazy("It is not as it should be; the reason says in what. Nothing was changed."),
    ),
}
# Who or what asked for an operation.
TRIGGERS = {
    Trigger.DELETED: gettext_lazy(
        "A person or a program deleted the project, or these objects, or gave them other keys."
    ),
    Trigger.FORCED: gettext_lazy(
        "Who deleted the project, or these objects, lifted the safety limits with that."
    ),
    Trigger.ORPHANED: gettext_lazy("A person asked for the deletion of orphans that scans found."),
    Trigger.DECLARED: gettext_lazy(
        "A person said that this id is no project any more, and had what it left behind cleaned up."
    ),
    Trigger.VANISHED: gettext_lazy(
        "The sweep saw that the project’s row is gone, though nobody had asked for its deletion."
    ),
    Trigger.DRY_RUN: gettext_lazy("A person or a program asked what a deletion would do."),
    Trigger.VERIFY: gettext_lazy(
        "A person or a program asked whether the bucket is as it should be."
    ),
    Trigger.LATE_CHECK: gettext_lazy(
        "The deletion that it follows asked for a later look, as an upload may still have ended"
        " after it."
    ),
    Trigger.TRIAL: gettext_lazy(
        "A person tried a strategy of deletion on a made-up project, with compare_strategies."
    ),
}
# What a worker does in a step.
DOING = {
    Step.PLAN: gettext_lazy("Looking for objects"),
    Step.DELETE: gettext_lazy("Deleting"),
    Step.VERIFY: gettext_lazy("Looking whether they are gone"),
}
COMPARING = gettext_lazy("Comparing the bucket with what should be there")
# What the lines of a timeline are about.
EVENTS = {
    "request": gettext_lazy("asked for"),
    "plan": gettext_lazy("plan"),
    "delete": gettext_lazy("deletion"),
    "pace": gettext_lazy("pace"),
    "command": gettext_lazy("program"),
    "verify": gettext_lazy("verification"),
    "closed": gettext_lazy("end"),
    "retry": gettext_lazy("new attempt"),
    "takeover": gettext_lazy("new worker"),
    "vanished": gettext_lazy("many projects gone"),
    "force": gettext_lazy("released"),
    "run": gettext_lazy("plan run"),
    "released": gettext_lazy("released"),
}


def words_of(operation: CleanupOperation, outcome: str) -> tuple[str, str]:
    """The word for an outcome of this operation's, and what it means."""
    seen = SEEN if operation.kind == Kind.VERIFY else {}
    word, means = {**OUTCOMES, **seen}[Outcome(outcome)]
    return str(word), str(means)


def status_of(operation: CleanupOperation) -> str:
    """The status in a word or two, as a badge shows it."""
    if is_look_over(operation) and operation.status == Status.INCOMPLETE:
        return str(DIFFERENCES_FOUND)
    return operation.get_status_display()


def is_look_over(operation: CleanupOperation) -> bool:
    return operation.kind == Kind.VERIFY and operation.next_attempt_at is None


def doing(operation: CleanupOperation) -> str:
    """What its worker does, such as “Deleting”."""
    return str(COMPARING if operation.kind == Kind.VERIFY else DOING[Step(operation.step)])


def about(event: OperationEvent) -> str:
    """What a line of the timeline is about, in a word or two."""
    known: dict[str, Any] = {**dict(Status.choices), **EVENTS}
    return str(known.get(event.step, event.step))


def meaning(operation: CleanupOperation) -> list[str]:
    """What the status means and what happens next, in plain sentences."""
    status, error = Status(operation.status), operation.error
    many = MANY if operation.kind == Kind.VANISHED else {}
    special = VERIFIED if is_look_over(operation) else many
    sentences = [str({**MEANING, **special}[status])]
    if operation.dry_run and status != Status.PLANNED:
        sentences.append(_("It is a dry run and deletes nothing."))
    if status == Status.PLANNED:
        limit = _("A safety limit would block it: %s") % error
        sentences.append(limit if error else _("No safety limit would block it."))
        if is_of_live_project(operation):
            sentences.append(str(NOT_WHILE_ALIVE))
    elif error:
        sentences.append(_("Message: %s") % error)
    if status in CleanupOperation.WORKABLE and (blocked := blocked_beside(operation)):
        sentences.append(_("It waits until a person has decided on cleanup %s.") % blocked.pk)
    if operation.pruned_at:
        sentences.append(PRUNED % {"archive": operation.archive})
    return sentences


def blocked_beside(operation: CleanupOperation) -> CleanupOperation | None:
    """The blocked cleanup of the same deletion for which this one has to wait, if there is one."""
    if operation.kind != Kind.PROJECT or not operation.deletes:
        return None
    same = (operation.bucket, operation.project_id, operation.project_deleted_at)
    return CleanupOperation.objects.blocked_of_deletion(*same).first()


def is_of_live_project(operation: CleanupOperation) -> bool:
    """Whether this is a plan that cannot be run as its project exists."""
    return operation.status == Status.PLANNED and project_model.is_alive(operation.project_id)
