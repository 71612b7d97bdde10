"""What was asked for of many projects at once becomes operations, some at a time."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from uuid import UUID

from django.contrib.auth import get_permission_codename, get_user_model
from django.db import DatabaseError, OperationalError, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model, queue
from storage_audit.bucket.request_stats import counted
from storage_audit.cleanup import requests
from storage_audit.cleanup.delete_projects import delete_project_by_id, has_own_delete
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.cleanup.named_files import cascading_models
from storage_audit.conf import conf
from storage_audit.models import KnownProject
from storage_audit.origin import Origin, acting_as
from storage_audit.redaction import redact, visible
from storage_audit.roles import deletion_obstacles, has_own_deletion, is_hidden

logger = logging.getLogger(__name__)

# Projects in one transaction, which on SQLite all others who write wait for.
SLICE = 100
# At one project, each in a task of its own; the sweep sends the next one.
ATTEMPTS = 5
MAKE: dict[str, Callable[[str], list[CleanupOperation]]] = {
    Job.Action.DRY_RUN: requests.dry_run,
    Job.Action.VERIFY: requests.verify_project,
    Job.Action.DELETE: delete_project_by_id,
    Job.Action.FORCE: delete_project_by_id,
}


def permissions_for(action: str, user: Any) -> list[str]:
    """Those of this person without which the action could not have been confirmed: to delete the
    projects, and the rows that go with them."""
    if action not in Job.DELETIONS:
        return []
    models = (model._meta for model in cascading_models())
    names = {f"{each.app_label}.{get_permission_codename('delete', each)}" for each in models}
    if action == Job.Action.FORCE:
        names.add("storage_audit.force_cleanup")
    return sorted(name for name in names if user.has_perm(name))


def requester(job: Job) -> Any:
    """The user who requested it, or None."""
    people = get_user_model()._default_manager
    return people.filter(**{get_user_model().USERNAME_FIELD: job.requested_by}).first()


def refusal(job: Job, user: Any) -> str:
    """Why the person who requested a deletion may not have it any more, or nothing."""
    if job.action not in Job.DELETIONS:
        return ""
    name = visible(job.requested_by)
    if not (user and user.is_active and user.is_staff):
        return _("%s cannot sign in to the admin any more.") % name
    if lost := [each for each in job.permissions if not user.has_perm(each)]:
        text = _("%(name)s does not have the permission %(permission)s any more.")
        return text % {"name": name, "permission": lost[0]}
    return ""


def take_up(job: Job) -> list[CleanupOperation]:
    """The operations of the next projects. The position stays as it was where another worker was
    quicker. A slice that fails as a whole, or that cost a worker its life, is taken up one project
    at a time, so that a project that cannot be taken up stops no other. So are projects that have
    a delete() of their own."""
    end, made = job.position + SLICE, list[CleanupOperation]()
    at_once = not job.attempts and not (job.action in Job.DELETIONS and has_own_delete())
    if at_once and may_go_on(job) and job.begin_attempt():
        try:
            return take_or_read_progress(job, SLICE)
        except DatabaseError:
            logger.warning("Job %s goes on one project at a time", job.pk, exc_info=True)
    try:
        while job.position < end and not job.finished_at and may_go_on(job) and job.begin_attempt():
            made += take_alone(job)
    except DatabaseError:
        if not made:
            raise
        logger.exception("Job %s: an attempt failed", job.pk)
    return made


def may_go_on(job: Job) -> bool:
    """Stops the job of a person who may not delete the projects any more. Raises what the site's
    permission backends raise; that is no attempt, as the trouble is not the project's."""
    if reason := refusal(job, requester(job)):
        logger.error("Job %s stops: %s", job.pk, reason)
        job.stop(reason)
    return not reason


def take_alone(job: Job) -> list[CleanupOperation]:
    """The operations of the next project. It is left out once the database refuses its commit, or
    when no attempt of several came to an end."""
    position = job.position
    try:
        if job.attempts <= ATTEMPTS:
            return take_or_read_progress(job, 1)
        logger.error("Job %s: %d attempts failed", job.pk, ATTEMPTS)
    except OperationalError:
        raise  # It may pass.
    except DatabaseError:
        logger.exception("Job %s: the database refuses the commit", job.pk)
    shown = redact(visible(job.project_ids[position]))
    logger.error("Job %s leaves out project %s: see above", job.pk, shown)
    job.advance(1)
    return []


def take_or_read_progress(job: Job, count: int) -> list[CleanupOperation]:
    """As `take`. What the site does after the commit may fail: the projects are taken up then, and
    the sweep enqueues their operations."""
    position = job.position
    try:
        return take(job, count)
    except Exception:
        job.read_progress()
        if job.position == position:
            raise
        logger.exception("Job %s: a step of the site failed after the commit", job.pk)
        return []


@transaction.atomic
def take(job: Job, count: int) -> list[CleanupOperation]:
    """The operations of so many projects, made in the transaction that says how far the job is:
    whoever dies at it or does the same, each is made once."""
    user = requester(job)
    project_ids = job.project_ids[job.position : job.position + count]
    if not job.advance(len(project_ids)):
        return []
    forced = job.action == Job.Action.FORCE
    with acting_as(Origin(job.requested_by, job.origin, forced)):
        made = [each for project_id in project_ids for each in make(job, project_id, user)]
    CleanupOperation.objects.filter(pk__in=[each.pk for each in made]).update(job=job)
    return made


def make(job: Job, project_id: str, user: Any) -> list[CleanupOperation]:
    """None of a project of which they cannot be made: it would stop all others for good."""
    shown, made = redact(visible(project_id)), list[CleanupOperation]()
    try:
        with transaction.atomic():
            if job.action in Job.DELETIONS and (why := obstacle(job, project_id, user)):
                logger.warning("Job %s leaves out project %s: %s", job.pk, shown, why)
                return []
            made = MAKE[job.action](project_id)
        if not made:
            logger.warning("Job %s leaves out project %s: it is already gone", job.pk, shown)
    except OperationalError:
        raise  # The database's trouble is not the project's, and passes.
    except Exception:
        logger.exception("Job %s leaves out project %s", job.pk, shown)
    return made


def obstacle(job: Job, project_id: str, user: Any) -> str:
    """Why the project is not the one that the job was requested for, or may not be deleted any
    more; or nothing. Asked under the row's lock, so that nothing else takes its place afterwards.
    The admin's own rules are asked without the person's request; one that fails so keeps it."""
    project, meant = project_model.lock(project_id), job.lives.get(project_id)
    if meant != KnownProject.objects.lives([project_id])[project_id]:
        return "it was deleted or created since the request"
    if project is None:
        return ""
    request = HttpRequest()
    request.user = user
    if is_hidden(request, project):
        return "the admin does not show it to this person"
    if has_own_deletion(request, [project]):
        return "the site deletes it in its own way"
    lacking, needing = deletion_obstacles(request, project)
    names = ", ".join([*sorted(lacking), *(redact(visible(str(each))) for each in needing)])
    return f"the admin does not let this person delete {names}" if names else ""


def enqueue_job_on_commit(job: Job) -> None:
    """As with operations."""

    def enqueue_it() -> None:
        enqueue_job(job.pk)

    transaction.on_commit(enqueue_it, robust=True)


def enqueue_job(job_id: UUID) -> None:
    """Have a worker go on with the job; with the setting SYNC, do it here and now."""
    if not Job.objects.filter(pk=job_id).update(enqueued_at=timezone.now()):
        return  # Rolled back with a savepoint made by hand.
    if conf().sync:
        while Job.objects.unfinished().filter(pk=job_id).exists():
            run_turn(job_id)
    else:
        queue.send_task(queue.RUN_JOB, str(job_id))


@counted()
def run_turn(job_id: UUID) -> str:
    """Make the operations of some of its projects and enqueue them, and then the job again: what
    others ask for meanwhile does not wait for all of it. Returns what the queue's own records are
    to say."""
    job = Job.objects.unfinished().filter(pk=job_id).first()
    if job is None:
        return queue.OVER
    position = job.position
    made = take_up(job)
    if job.stop_reason:
        return f"stopped at {job.position} of {job.projects} projects"
    if job.position == position:
        return queue.TAKEN
    # Deletions enqueue theirs on commit, as any deletion does.
    if job.action not in Job.DELETIONS:
        # One commit for all; with SYNC the work itself is done here, in none of ours.
        with nullcontext() if conf().sync else transaction.atomic():
            for operation in made:
                requests.enqueue(operation.pk)
    if not (job.finished_at or conf().sync):
        enqueue_job(job.pk)
    return f"{job.position} of {job.projects} projects"
