"""Runs bulk jobs: makes the cleanups of many projects, or undoes many deletions, some at a
time."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any
from uuid import UUID

from django.contrib.auth import get_permission_codename, get_user_model
from django.db import DatabaseError, OperationalError, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model, queue
from storage_audit.bucket.request_stats import record_requests
from storage_audit.cleanup import end_deletions, make_cleanups, requests
from storage_audit.cleanup.delete_projects import delete_project_by_id, has_own_delete
from storage_audit.cleanup.models import BulkJob, Cleanup, CleanupQuerySet
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.named_files import cascading_models
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.fields import filter_by_pks
from storage_audit.models import KnownProject
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import printable_text, redact_secrets
from storage_audit.request_origin import Origin, use_origin
from storage_audit.roles import deletion_obstacles, has_own_deletion, is_hidden

logger = logging.getLogger(__name__)

# Projects in one transaction. On SQLite all other writers wait for it.
PROJECTS_PER_TRANSACTION = 100
# Attempts at one project, each in a task of its own; the sweep sends the next one.
MAX_PROJECT_ATTEMPTS = 5
REQUESTS_BY_ACTION: dict[str, Callable[[str], list[Cleanup]]] = {
    BulkJob.Action.DRY_RUN: requests.request_preview,
    BulkJob.Action.VERIFY: requests.request_verification,
    BulkJob.Action.DELETE: delete_project_by_id,
    BulkJob.Action.FORCE: delete_project_by_id,
}


def permissions_for(action: str, user: Any) -> list[str]:
    """The permissions of this person that the action needed: to undo deletions, or to delete the
    projects, and the rows that go with them."""
    if action == BulkJob.Action.UNDO:
        return ["storage_audit.undo_cleanup"]
    if action not in BulkJob.DELETING_ACTIONS:
        return []
    models = (model._meta for model in cascading_models(project_model.get_model()))
    names = {f"{each.app_label}.{get_permission_codename('delete', each)}" for each in models}
    if action == BulkJob.Action.FORCE:
        names.add("storage_audit.force_cleanup")
    return sorted(name for name in names if user.has_perm(name))


def find_requester(bulk_job: BulkJob) -> Any:
    """The user who requested it, or None."""
    people = get_user_model()._default_manager
    return people.filter(**{get_user_model().USERNAME_FIELD: bulk_job.requested_by}).first()


def refusal_reason(bulk_job: BulkJob, user: Any) -> str:
    """Why the person who requested a deletion, or to undo some, may not have it any more, or
    nothing."""
    if bulk_job.action not in BulkJob.CHANGING_ACTIONS:
        return ""
    name = printable_text(bulk_job.requested_by)
    if not (user and user.is_active and user.is_staff):
        return _("%s can no longer sign in to the admin.") % name
    if lost := [each for each in bulk_job.permissions if not user.has_perm(each)]:
        text = _("%(name)s no longer has the permission %(permission)s.")
        return text % {"name": name, "permission": lost[0]}
    return ""


def process_next_projects(bulk_job: BulkJob) -> list[Cleanup]:
    """The cleanups of the next projects; none where another worker was quicker. Projects that fail
    together, or that killed a worker, are processed one at a time, so that none stops the others.
    So are those that `commits_each` names."""
    end, made = bulk_job.position + PROJECTS_PER_TRANSACTION, list[Cleanup]()
    at_once = not bulk_job.attempts and not commits_each(bulk_job)
    if at_once and may_continue(bulk_job) and bulk_job.begin_attempt():
        try:
            return process_or_reload(bulk_job, PROJECTS_PER_TRANSACTION)
        except DatabaseError:
            logger.warning("Bulk job %s: one project at a time now", bulk_job.pk, exc_info=True)
    # A snapshot may have so many rows that some of them take as long as a task may.
    until = monotonic_seconds() + conf().turn_time.total_seconds()
    try:
        while (
            bulk_job.position < end
            and monotonic_seconds() < until
            and not bulk_job.finished_at
            and may_continue(bulk_job)
            and bulk_job.begin_attempt()
        ):
            made += process_one_project(bulk_job)
    except DatabaseError:
        if not made:
            raise
        logger.exception("Bulk job %s: an attempt failed", bulk_job.pk)
    return made


def commits_each(bulk_job: BulkJob) -> bool:
    """Whether each project needs a transaction of its own: one that has a delete() of its own, and
    deletions that can be undone, as workers and people wait for the locks of each."""
    if bulk_job.action in BulkJob.DELETING_ACTIONS:
        return bool(conf().grace) or has_own_delete()
    return bulk_job.action == BulkJob.Action.UNDO


def may_continue(bulk_job: BulkJob) -> bool:
    """Stop the bulk job of a person who may not delete the projects any more. Raises what the
    site's permission backends raise; that is no attempt, as the project is not the cause."""
    if reason := refusal_reason(bulk_job, find_requester(bulk_job)):
        logger.error("Bulk job %s stops: %s", bulk_job.pk, reason)
        bulk_job.stop(reason)
    return not reason


def process_one_project(bulk_job: BulkJob) -> list[Cleanup]:
    """The cleanups of the next project. It is left out once the database refuses its commit, or
    when no attempt of several came to an end."""
    position = bulk_job.position
    try:
        if bulk_job.attempts <= MAX_PROJECT_ATTEMPTS:
            return process_or_reload(bulk_job, 1)
        logger.error("Bulk job %s: %d attempts failed", bulk_job.pk, MAX_PROJECT_ATTEMPTS)
    except OperationalError:
        raise  # It may pass.
    except DatabaseError:
        logger.exception("Bulk job %s: the database refuses the commit", bulk_job.pk)
    shown = redact_secrets(printable_text(bulk_job.project_ids[position]))
    logger.error("Bulk job %s skips project %s: see above", bulk_job.pk, shown)
    with transaction.atomic():
        if bulk_job.advance(1) and bulk_job.action == BulkJob.Action.UNDO:
            note_failed_undo(bulk_job, bulk_job.project_ids[position])
    return []


def process_or_reload(bulk_job: BulkJob, count: int) -> list[Cleanup]:
    """As `process_projects`. A step of the site after the commit may fail: the projects are done
    then, and the sweep enqueues their cleanups."""
    position = bulk_job.position
    try:
        return process_projects(bulk_job, count)
    except Exception:
        bulk_job.reload_progress()
        if bulk_job.position == position:
            raise
        logger.exception("Bulk job %s: a step of the site failed after the commit", bulk_job.pk)
        return []


@transaction.atomic
def process_projects(bulk_job: BulkJob, count: int) -> list[Cleanup]:
    """The cleanups of so many projects, made in the transaction that advances the bulk job: so each
    is made once, even if a worker dies or two work on it."""
    user = find_requester(bulk_job)
    project_ids = bulk_job.project_ids[bulk_job.position : bulk_job.position + count]
    if not bulk_job.advance(len(project_ids)):
        return []
    forced = bulk_job.action == BulkJob.Action.FORCE
    with use_origin(Origin(bulk_job.requested_by, bulk_job.origin, forced)):
        if bulk_job.action == BulkJob.Action.UNDO:
            for deletion_id in project_ids:
                undo_or_note(bulk_job, deletion_id)
            return []
        made = [
            each
            for project_id in project_ids
            for each in request_project_action(bulk_job, project_id, user)
        ]
    Cleanup.objects.filter(pk__in=[each.pk for each in made]).update(bulk_job=bulk_job)
    return made


def request_project_action(bulk_job: BulkJob, project_id: str, user: Any) -> list[Cleanup]:
    """The project's cleanups; none where they cannot be made, as that would stop all others."""
    shown, made = redact_secrets(printable_text(project_id)), list[Cleanup]()
    try:
        with transaction.atomic():
            if bulk_job.action in BulkJob.DELETING_ACTIONS and (
                why := skip_reason(bulk_job, project_id, user)
            ):
                logger.warning("Bulk job %s skips project %s: %s", bulk_job.pk, shown, why)
                return []
            made = REQUESTS_BY_ACTION[bulk_job.action](project_id)
        if not made:
            text = "Bulk job %s skips project %s: it is already gone"
            logger.warning(text, bulk_job.pk, shown)
    except OperationalError:
        raise  # An error of the database is not the project's, and passes.
    except Exception:
        logger.exception("Bulk job %s skips project %s", bulk_job.pk, shown)
    return made


def skip_reason(bulk_job: BulkJob, project_id: str, user: Any) -> str:
    """Why the project is not the one that the bulk job was requested for, or may not be deleted any
    more; or nothing. Checked under the row's lock, so that nothing takes its place afterwards. The
    admin's own rules get no request of the person; a rule that fails without one keeps the
    project."""
    project, meant = project_model.lock_project(project_id), bulk_job.lives.get(project_id)
    if meant != KnownProject.objects.lifetimes([project_id])[project_id]:
        return "it was deleted or created again after the request"
    if project is None:
        return ""
    request = HttpRequest()
    request.user = user
    if is_hidden(request, project):
        return "the admin does not show it to this person"
    if has_own_deletion(request, [project]):
        return "the site has its own way to delete it"
    lacking, needing = deletion_obstacles(request, project)
    names = ", ".join(
        [*sorted(lacking), *(redact_secrets(printable_text(str(each))) for each in needing)]
    )
    return f"the admin does not let this person delete {names}" if names else ""


def undo_or_note(bulk_job: BulkJob, deletion_id: str) -> None:
    """Undo the deletion, or note why not, as that must not stop the others. All that one delete()
    call deleted comes back with the first of its deletions."""
    cleanup = Cleanup.objects.get(pk=deletion_id)
    try:
        with transaction.atomic():
            restored = end_deletions.undo_deletion(cleanup, bulk_job.reason)
    except OperationalError:
        raise  # An error of the database is not the deletion's, and passes.
    except (IllegalTransition, CannotRestore) as refusal:
        if not Cleanup.objects.filter(pk=deletion_id, status=Cleanup.Status.UNDONE).exists():
            text = redact_secrets(printable_text(str(refusal)))
            bulk_job.notes.create(cleanup=cleanup, is_refused=True, text=text)
    except Exception:
        logger.exception("Bulk job %s: deletion %s was not undone", bulk_job.pk, deletion_id)
        note_failed_undo(bulk_job, deletion_id)
    else:
        for line in chain.from_iterable(each.left_out for each in restored):
            text = redact_secrets(printable_text(line))
            bulk_job.notes.create(cleanup=cleanup, is_refused=False, text=text)


def note_failed_undo(bulk_job: BulkJob, deletion_id: str) -> None:
    text = _("Cleanup %s was not undone because of an error. See the server's log.") % deletion_id
    bulk_job.notes.create(cleanup_id=deletion_id, is_refused=True, text=text)


@transaction.atomic
def group_deletions(cleanups: Sequence[Cleanup]) -> BulkJob:
    """A bulk job that is done, for deletions of several projects that a request made itself. Its
    page shows their progress, and undoes them together."""
    forced = any(each.trigger == Cleanup.Trigger.FORCED for each in cleanups)
    action = BulkJob.Action.FORCE if forced else BulkJob.Action.DELETE
    ids = list_projects(cleanups)
    job: BulkJob = BulkJob.objects.request(action, ids)
    job.advance(len(ids))
    mine = filter_by_pks(Cleanup.objects.all(), [each.pk for each in cleanups])
    mine.update(bulk_job=job)
    return job


def list_projects(cleanups: Iterable[Cleanup]) -> list[str]:
    return sorted({each.project_id for each in cleanups if each.project_id})


def request_undo(cleanups: CleanupQuerySet, permissions: list[str], reason: str) -> BulkJob:
    """A bulk job, which the caller enqueues, that undoes the deletions of these cleanups."""
    ids = [str(pk) for pk in list_deletions(cleanups)]
    return BulkJob.objects.request(BulkJob.Action.UNDO, ids, permissions, reason)


def list_deletions(cleanups: CleanupQuerySet) -> list[UUID]:
    """One cleanup of each deletion, which may have some in several buckets."""
    facts = cleanups.order_by("pk").values_list("pk", "kind", "project_id", "project_deleted_at")
    found = dict[object, UUID]()
    for pk, kind, *deletion in read_in_steps(facts):
        found.setdefault(tuple(deletion) if kind == Cleanup.Kind.PROJECT else pk, pk)
    return list(found.values())


def enqueue_bulk_on_commit(bulk_job: BulkJob) -> None:
    """As `enqueue_on_commit` does for cleanups."""

    def enqueue_it() -> None:
        enqueue_bulk_job(bulk_job.pk)

    transaction.on_commit(enqueue_it, robust=True)


def enqueue_bulk_job(bulk_job_id: UUID) -> None:
    """Have a worker go on with the bulk job; with the setting SYNC, do it here and now."""
    if not BulkJob.objects.filter(pk=bulk_job_id).update(enqueued_at=timezone.now()):
        return  # Rolled back with a savepoint made by hand.
    if conf().sync:
        while BulkJob.objects.unfinished().filter(pk=bulk_job_id).exists():
            run_bulk_turn(bulk_job_id)
    else:
        queue.send_task(queue.RUN_JOB, str(bulk_job_id))


@record_requests()
def run_bulk_turn(bulk_job_id: UUID) -> str:
    """Make the cleanups of some of its projects and enqueue them, and then the bulk job again, so
    that other requests do not wait for all of it. Returns what the queue's own records are to
    say."""
    job = BulkJob.objects.unfinished().filter(pk=bulk_job_id).first()
    if job is None:
        return queue.RESULT_OVER
    position = job.position
    made = process_next_projects(job)
    if job.stop_reason:
        return f"stopped at {job.position} of {job.projects} projects"
    if job.position == position:
        return queue.RESULT_TAKEN
    # Deletions enqueue theirs on commit, as any deletion does.
    if job.action not in BulkJob.DELETING_ACTIONS:
        # One commit for all; with SYNC the work itself is done here, in none of ours.
        with nullcontext() if conf().sync else transaction.atomic():
            for cleanup in made:
                make_cleanups.enqueue_cleanup(cleanup.pk)
    if not (job.finished_at or conf().sync):
        enqueue_bulk_job(job.pk)
    return f"{job.position} of {job.projects} projects"
