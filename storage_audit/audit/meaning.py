"""What the status of an operation means for a person, and what happens next."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import projects
from storage_audit.findings import Kind as Difference
from storage_audit.models import CleanupOperation

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status

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
        "A worker has it. Look again to see how far it is. Should the worker die, another goes on"
        " from here."
    ),
    Status.CLEAN: gettext_lazy(
        "Done: complete listings of the bucket show none of its objects any more."
    ),
    Status.CLEAN_WITH_PROTECTED: gettext_lazy(
        "All that may go is gone. The protected objects are still in the bucket and wait for a"
        " person; each says why it was kept."
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
        "Nothing is deleted until a person decides. The message says what stopped it, with the"
        " figures; once that is settled, force-delete it to release it."
    ),
    Status.SUPERSEDED: gettext_lazy(
        "A project with this id lives again, and its objects are the new project's. Nothing more"
        " is done."
    ),
}
VERIFIED = {
    Status.CLEAN: gettext_lazy("The look is over, and all is as it should be."),
    Status.CLEAN_WITH_PROTECTED: gettext_lazy(
        "The look is over: nothing is left that may go. The protected objects wait for a person;"
        " each says why it was kept."
    ),
    Status.INCOMPLETE: gettext_lazy(
        "The look is over and found differences; it changed nothing. The items say which they are."
    ),
    Status.BLOCKED: gettext_lazy(
        "The look was stopped; the message says by what. Once that is settled, verify again."
    ),
}
# Of the operation that lists projects.
MANY = {
    Status.BLOCKED: gettext_lazy(
        "Nothing of these projects is deleted, and they count as alive, until their rows are back"
        " or a person releases this operation."
    ),
    Status.SUPERSEDED: gettext_lazy("It is settled; the message says how."),
}
# What each kind of finding means, and what a person does about it.
DIFFERENCES = {
    Difference.ORPHANED: (
        gettext_lazy("Objects whose project was deleted, or was never known."),
        gettext_lazy("A later scan must see them once more before they can be deleted."),
    ),
    Difference.MISSING: (
        gettext_lazy("Rows that tell of objects which are not in the bucket."),
        gettext_lazy("Upload them again, or remove the rows."),
    ),
    Difference.UNTRACKED: (
        gettext_lazy("Objects of projects that exist, of which no row tells."),
        gettext_lazy("Track them, so that they go when their project does."),
    ),
    Difference.CHANGED: (
        gettext_lazy("Objects that are not as their rows say: something else wrote them."),
        gettext_lazy("Find out what did, then track them as they are."),
    ),
    Difference.AMBIGUOUS: (
        gettext_lazy("Objects that may be one project’s or another’s, going by their keys."),
        gettext_lazy("Adopt them into the right project, or acknowledge them."),
    ),
    Difference.UNRECOGNISED: (
        gettext_lazy("Objects whose keys no layout knows."),
        gettext_lazy("Adopt them into a project, or acknowledge them."),
    ),
    Difference.MISNAMED: (
        gettext_lazy("Objects whose keys have the project’s id with its prefix twice."),
        gettext_lazy("Rename them, once nothing links to the old keys."),
    ),
    Difference.UNSTORABLE: (
        gettext_lazy("Objects whose keys no table can hold, and this application cannot delete."),
        gettext_lazy("Delete them in Cloudflare’s dashboard, or acknowledge them."),
    ),
    Difference.UNFINISHED: (
        gettext_lazy("Uploads that nobody completed; their parts cost money."),
        gettext_lazy("Abort them, if nothing uploads there any more."),
    ),
}
NOT_WHILE_ALIVE = gettext_lazy(
    "The project exists, so this plan cannot be run. Deleting the project starts a cleanup of its"
    " own."
)
PRUNED = gettext_lazy(
    "It is long over: its items and its timeline were exported to the file %(archive)s and deleted"
    " here. manage.py loaddata, with the path of that file, brings them back."
)


def meaning(operation: CleanupOperation) -> list[str]:
    """What the status means and what happens next, in plain sentences."""
    status, error = Status(operation.status), operation.error
    is_look = operation.kind == Kind.VERIFY and operation.next_attempt_at is None
    special = VERIFIED if is_look else MANY if operation.kind == Kind.VANISHED else {}
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
    if operation.pruned_at:
        sentences.append(PRUNED % {"archive": operation.archive})
    return sentences


def is_of_live_project(operation: CleanupOperation) -> bool:
    """Whether this is a plan that cannot be run as its project exists."""
    return operation.status == Status.PLANNED and projects.is_alive(operation.project_id)
