"""What can be asked for, by a person or by a deleted row, and how it gets to the workers.

What a person may ask for returns operations that the caller enqueues on commit.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import logs, project_model, queue
from storage_audit.bucket.listing import storable
from storage_audit.cleanup import named_files, runner, succession, vanished_projects
from storage_audit.cleanup.models import CleanupOperation, Row
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.cleanup.modes import Mode, usual
from storage_audit.conf import conf
from storage_audit.models import KnownProject, validate_project_id
from storage_audit.origin import current_origin
from storage_audit.redaction import visible

logger = logging.getLogger(__name__)

Kind, Status, Trigger = (
    CleanupOperation.Kind,
    CleanupOperation.Status,
    CleanupOperation.Trigger,
)

Evidence = KnownProject.Evidence


class ProjectExists(Exception):
    """The project exists, so its files are not left-behind ones; the message says what to do."""


@transaction.atomic
def dry_run(project_id: str, mode: Mode | None = None) -> list[CleanupOperation]:
    """Plan the cleanup of a project as if it were deleted now, and delete nothing."""
    operations = CleanupOperation.objects.request_for_project(
        project_id,
        trigger=Trigger.DRY_RUN,
        dry_run=True,
        **(mode or usual())._asdict(),
        deleted_at=KnownProject.objects.time_of_deletion(project_id),
    )
    for project in project_model.with_id(project_id):
        named_files.note(operations, named_files.named_by(project))
    return operations


@transaction.atomic
def verify_project(project_id: str) -> list[CleanupOperation]:
    """See whether bucket and table agree on a live project, or what is left of a deleted one."""
    return CleanupOperation.objects.request_for_project(
        project_id,
        kind=Kind.VERIFY,
        trigger=Trigger.VERIFY,
        deleted_at=KnownProject.objects.time_of_deletion(project_id),
    )


@transaction.atomic
def verify_operation(operation: CleanupOperation) -> CleanupOperation:
    """Look again whether what an operation deleted is gone. Raises IllegalTransition for one that
    has no objects of its own, or not any more."""
    if operation.kind == Kind.VANISHED:
        text = _("Operation %s lists projects, not objects. Verify the projects instead.")
        raise IllegalTransition(text % operation.pk)
    if operation.kind == Kind.VERIFY and operation.parent:
        operation = operation.parent
    refuse_pruned(operation)
    check = CleanupOperation.objects.request(
        kind=Kind.VERIFY,
        trigger=Trigger.VERIFY,
        project_id=operation.project_id,
        project_deleted_at=operation.project_deleted_at,
        bucket=operation.bucket,
        ranges=operation.ranges,
        parent=operation,
    )
    if operation.names_its_objects:
        check.copy_items(operation)
    return check


def refuse_pruned(operation: CleanupOperation) -> None:
    """Keep the operation from being pruned until the commit, or raise IllegalTransition."""
    pruned = CleanupOperation.objects.filter(pk=operation.pk).lock().pruned().first()
    if pruned:
        text = _(
            "Operation %(id)s does not know its objects any more: they were exported to"
            " %(archive)s. Verify the project instead, or load that archive first."
        )
        raise IllegalTransition(text % {"id": pruned.pk, "archive": pruned.archive})


def deletion_of(project_id: str) -> list[CleanupOperation]:
    """The cleanups that the project's deletion led to, one for each bucket, that of the settings
    first; none where nobody said that it is deleted."""
    # What cannot be stored, such as a NUL, cannot be asked for on PostgreSQL either.
    known = KnownProject.objects.said() if storable(project_id) else KnownProject.objects.none()
    deleted_at = known.time_of_deletion(project_id)
    if deleted_at is None:
        return []
    made = CleanupOperation.objects.cleanups().filter(
        kind=Kind.PROJECT, project_id=project_id, project_deleted_at=deleted_at
    )
    # Later ones of the same deletion were asked for apart.
    by_bucket = {each.bucket: each for each in made.order_by("-created_at", "-pk")}
    return sorted(by_bucket.values(), key=lambda each: (each.bucket != conf().bucket, each.bucket))


@transaction.atomic
def force_delete_operation(operation: CleanupOperation) -> list[CleanupOperation]:
    """Release a blocked operation, run a dry run's plan, or try a failed one again.

    Lifts the limits, never the ownership rule. Raises IllegalTransition for any other status, or
    when the operation tells other figures than the instance, and ProjectExists for the plan of a
    live project.
    """
    user = current_origin().user or "command"
    refuse_look(operation)
    if operation.kind == Kind.VANISHED:
        return vanished_projects.release(operation, user)
    # Before the operation's own row, as who deletes the project does.
    KnownProject.objects.hold(operation.project_id)
    step = "run" if operation.status == Status.PLANNED else "force"
    if operation.status == Status.BLOCKED:
        operation.release(user)
        if operation.trigger == Trigger.VANISHED:
            # The person who releases it says that the project is to be gone.
            say_deleted(operation)
    elif operation.status == Status.PLANNED:
        if operation.names_its_objects:
            refuse_alive(operation.project_id)
            operation.execute(user)
        else:
            run_plan(operation, user)
    else:
        operation.retry()
    operation.record(step, _("Limits lifted, or tried again, by %s.") % user)
    return [operation]


def run_plan(operation: CleanupOperation, user: str) -> None:
    """Run a plan for the deletion that it was made for, or that followed it. Raises ProjectExists,
    ValidationError and IllegalTransition."""
    project_id = operation.project_id or ""
    refuse_undeclared(project_id)
    deleted_at = declare(project_id)
    words = {"id": operation.pk, "project": visible(project_id)}
    if operation.project_deleted_at not in (None, deleted_at):
        text = _(
            "Project %(project)s was created and deleted again since plan %(id)s was made. Nothing"
            " was deleted. Make another dry run."
        )
        raise IllegalTransition(text % words)
    if other := cleanup_beside(operation):
        text = _(
            "Cleanup %(other)s of project %(project)s is not over, so plan %(id)s cannot run beside"
            " it. Nothing was deleted. Wait until that cleanup is over, or force-delete it."
        )
        raise IllegalTransition(text % {**words, "other": other.pk})
    operation.execute(user, project_deleted_at=deleted_at)
    succession.recall_earlier(operation)


def cleanup_beside(plan: CleanupOperation) -> CleanupOperation | None:
    """The open cleanup of the same deletion, beside which the plan cannot run."""
    project_id = plan.project_id or ""
    deleted_at = KnownProject.objects.time_of_deletion(project_id)
    mine = CleanupOperation.objects.of_project(project_id)
    return mine.filter(bucket=plan.bucket, project_deleted_at=deleted_at, parent=None).first()


def refuse_look(operation: CleanupOperation) -> None:
    if operation.kind == Kind.VERIFY:
        text = _("Operation %s is a verification, which deletes nothing. Verify again instead.")
        raise IllegalTransition(text % operation.pk)


@transaction.atomic
def declare_deleted(project_id: str, mode: Mode | None = None) -> list[CleanupOperation]:
    """Clean up after an id that is not alive, such as one deleted before this was installed. An
    open cleanup of it is returned, and goes on at once unless it is blocked by a limit.

    Raises ValidationError for what is no project id, and ProjectExists.
    """
    mode = mode or usual()
    operations = succession.request_cleanups(
        project_id,
        trigger=Trigger.DECLARED,
        deleted_at=declare(project_id),
        **mode._asdict(),
    )
    for operation in operations:
        with suppress(IllegalTransition):  # A worker, or another person, was quicker.
            go_on(operation, mode.strategy)
    return operations


def go_on(operation: CleanupOperation, strategy: str) -> None:
    """Have an open cleanup continue now, within the limits. One that did not get on deletes with
    this strategy from now on: its own may be what stands in the way."""
    if operation.status in (Status.INCOMPLETE, Status.FAILED):
        if operation.strategy != strategy:
            operation.record("plan", _("The strategy is %s from now on.") % strategy)
        operation.retry(strategy=strategy, pace={})
    elif operation.status == Status.BLOCKED and is_undecided(operation):
        operation.release(current_origin().user or "command")


def is_undecided(operation: CleanupOperation) -> bool:
    """Whether it waits only for somebody to say that the project was deleted."""
    return operation.trigger == Trigger.VANISHED and not operation.plan_digest


def declare(project_id: str) -> datetime:
    """Know the id for a deleted one, and since when. Raises ValidationError and ProjectExists."""
    validate_project_id(project_id)
    refuse_alive(project_id)
    return KnownProject.objects.declare_deleted(project_id)


def refuse_undeclared(project_id: str) -> None:
    """Raises IllegalTransition when the project's row is gone without a signal and no person has
    declared it deleted: until then its files count as a live project's."""
    if project_model.is_alive(project_id) or not KnownProject.objects.maybe_alive([project_id]):
        return
    text = _(
        "Project %(project)s is gone, but no deletion of it is on record. Nothing was deleted."
        " If its files are to go, %(how)s."
    )
    blocked = CleanupOperation.objects.disappearances_of(project_id).first()
    how = _("run cleanup_project %s --declare-deleted") % visible(project_id)
    if blocked:
        how = _("force-delete operation %(id)s, or %(how)s") % {"id": blocked.pk, "how": how}
    raise IllegalTransition(text % {"project": visible(project_id), "how": how})


def say_deleted(operation: CleanupOperation) -> None:
    vanished = KnownProject.objects.filter(
        pk=operation.project_id,
        evidence=Evidence.VANISHED,
        deleted_at=operation.project_deleted_at,
    )
    vanished.update(evidence=Evidence.DECLARED)


def refuse_alive(project_id: str | None) -> None:
    if project_model.is_alive(project_id):
        raise ProjectExists(
            _("Project %s exists. Delete it in the admin; that cleans up after it.") % project_id
        )


@dataclass(frozen=True)
class Request:
    """An operation that the transaction under way has made, to be enqueued on commit."""

    operation: CleanupOperation

    def enqueue(self) -> None:
        enqueue(self.operation.pk)


def request_deletion(bucket: str, rows: list[Row]) -> None:
    """Put the rows into this transaction's operation for the bucket, made when there is none."""
    operation = operation_under_way(bucket)
    if operation is None:
        operation = CleanupOperation.objects.request(
            kind=CleanupOperation.Kind.OBJECTS,
            bucket=bucket,
            project_id=rows[0].project_id,
            trigger=Trigger.DELETED,
        )
        transaction.on_commit(Request(operation).enqueue, robust=True)
    operation.add_rows(rows)


def operation_under_way(bucket: str) -> CleanupOperation | None:
    """This transaction's operation for the bucket.

    Its hook is the mark: Django drops it with the transaction, and with the savepoint that the
    operation was made in. It does not for a savepoint made by hand, so the database is asked too.
    """
    for registered in connection.run_on_commit:
        request = getattr(registered[1], "__self__", None)
        if isinstance(request, Request) and request.operation.bucket == bucket:
            known = CleanupOperation.objects.still_untouched(request.operation.pk)
            if known is not None:
                return known
    return None


def enqueue(operation_id: UUID) -> None:
    """Have a worker run the operation; with the setting SYNC, run it here and now."""
    operation = CleanupOperation.objects.filter(pk=operation_id)
    try:
        if not operation.update(enqueued_at=timezone.now()):
            return  # Rolled back with a savepoint made by hand, for which Django keeps the hooks.
        if not conf().sync:
            send_to_queue(operation_id)
    except Exception:
        with logs.about(operation_id):
            logger.exception("It could not be enqueued; the sweep does it.")
        raise
    if conf().sync:
        runner.run(operation_id)


def send_to_queue(operation_id: UUID) -> None:
    # The queue's own lines name the task.
    pk = str(operation_id)
    with logs.about(operation_id, CleanupOperation.objects.request_id(operation_id)):
        queue.send_task(queue.RUN_OPERATION, pk, task_name=pk)


def enqueue_on_commit(operations: Iterable[CleanupOperation]) -> None:
    """Enqueue once the transaction is committed; if that fails, the sweep finds the operations."""
    for operation in operations:
        transaction.on_commit(enqueueing(operation.pk), robust=True)


def enqueueing(operation_id: UUID) -> Callable[[], None]:
    # A function, as Django asks a hook that failed for its __qualname__, which a partial lacks.
    def enqueue_operation() -> None:
        enqueue(operation_id)

    return enqueue_operation
