"""What a person or a program may ask for. Each returns cleanups that the caller enqueues on
commit, see make_cleanups.py."""

import logging
from contextlib import suppress
from datetime import datetime

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup import (
    held_ids,
    limits,
    make_cleanups,
    named_files,
    vanished_projects,
)
from storage_audit.cleanup.cleanup_text import cancelled_by_person_text
from storage_audit.cleanup.discovery_and_strategy import Mode, default_mode
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.models import KnownProject, validate_project_id
from storage_audit.project_model import ProjectExists
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin

logger = logging.getLogger(__name__)

Kind, Status, Trigger = (
    Cleanup.Kind,
    Cleanup.Status,
    Cleanup.Trigger,
)

Evidence, KeptFor = KnownProject.Evidence, KnownProject.KeptFor


@transaction.atomic
def request_preview(project_id: str, mode: Mode | None = None) -> list[Cleanup]:
    """Plan the cleanup of a project as if it were deleted now, and delete nothing."""
    cleanups = Cleanup.objects.request_for_project(
        project_id,
        trigger=Trigger.DRY_RUN,
        dry_run=True,
        **(mode or default_mode())._asdict(),
        deleted_at=KnownProject.objects.deletion_time(project_id),
    )
    for project in project_model.filter_by_id(project_id):
        named_files.add_named_files(cleanups, named_files.find_named_files(project))
    return cleanups


@transaction.atomic
def request_verification(project_id: str) -> list[Cleanup]:
    """Check whether bucket and table agree on a live project, or what is left of a deleted one."""
    return Cleanup.objects.request_for_project(
        project_id,
        kind=Kind.VERIFY,
        trigger=Trigger.VERIFY,
        deleted_at=KnownProject.objects.deletion_time(project_id),
    )


@transaction.atomic
def request_cleanup_verification(cleanup: Cleanup) -> Cleanup:
    """Check again whether what a cleanup deleted is gone. Raises IllegalTransition for one that has
    no objects of its own, or not any more."""
    if cleanup.kind == Kind.VANISHED:
        text = _("Cleanup %s lists projects, not files. Verify the projects instead.")
        raise IllegalTransition(text % cleanup.pk)
    if cleanup.kind == Kind.VERIFY and cleanup.parent:
        cleanup = cleanup.parent
    require_items(cleanup)
    check = Cleanup.objects.request(
        kind=Kind.VERIFY,
        trigger=Trigger.VERIFY,
        project_id=cleanup.project_id,
        project_deleted_at=cleanup.project_deleted_at,
        bucket=cleanup.bucket,
        listed_prefixes=cleanup.listed_prefixes,
        parent=cleanup,
    )
    if cleanup.has_given_objects:
        check.copy_items(cleanup)
    return check


def require_items(cleanup: Cleanup) -> None:
    """Keep the cleanup from being pruned until the commit, or raise IllegalTransition."""
    pruned = Cleanup.objects.filter(pk=cleanup.pk).lock().pruned().first()
    if pruned:
        text = _(
            "The list of files of cleanup %(id)s was exported to %(archive)s. Verify the project"
            " instead, or load that archive first."
        )
        raise IllegalTransition(text % {"id": pruned.pk, "archive": pruned.archive})


def cleanups_of_deletion(project_id: str) -> list[Cleanup]:
    """The cleanups of the project's last deletion, one for each bucket; none where no deletion is
    reported."""
    # PostgreSQL cannot even be asked for a text that cannot be stored, such as one with a NUL.
    known = (
        KnownProject.objects.deletion_reported()
        if is_storable(project_id)
        else KnownProject.objects.none()
    )
    deleted_at = known.deletion_time(project_id)
    if deleted_at is None:
        return []
    made = Cleanup.objects.requested_deletions().filter(
        kind=Kind.PROJECT, project_id=project_id, project_deleted_at=deleted_at
    )
    # Follow-up checks and verifications of the deletion are not among them.
    return list({each.bucket: each for each in made.order_by("-created_at", "-pk")}.values())


@transaction.atomic
def approve_or_retry(cleanup: Cleanup) -> list[Cleanup]:
    """Approve a blocked cleanup, run a dry run's plan, or try a failed one again.

    Lifts the limits, never the ownership rule. Raises IllegalTransition for any other status, or
    when the cleanup has other figures than the instance, and ProjectExists for the plan of a live
    project.
    """
    user = current_origin().user or "command"
    refuse_verification(cleanup)
    if cleanup.kind == Kind.VANISHED:
        return vanished_projects.approve_mass_deletion(cleanup, user)
    # Locked before the cleanup's own row, as in a deletion of the project.
    KnownProject.objects.lock_id(cleanup.project_id)
    step = "run" if cleanup.status == Status.PLANNED else "approved"
    if cleanup.status == Status.BLOCKED:
        planned = limits.planned_size(cleanup)
        cleanup.approve(user, planned["n"], planned["size"])
        if cleanup.trigger == Trigger.VANISHED:
            # With the approval the person confirms that the project was deleted.
            confirm_deletion(cleanup)
    elif cleanup.status == Status.PLANNED:
        if cleanup.has_given_objects:
            require_deleted(cleanup.project_id)
            cleanup.run_plan(user)
        else:
            run_project_plan(cleanup, user)
    else:
        cleanup.retry()
    cleanup.record(step, _("Approved or retried by %s.") % user)
    return [cleanup]


def run_project_plan(cleanup: Cleanup, user: str) -> None:
    """Run a plan for the deletion that it was made for, or for one that followed. Raises
    ProjectExists, ValidationError and IllegalTransition."""
    project_id = cleanup.project_id or ""
    require_declaration(project_id)
    deleted_at = record_deletion(project_id)
    words = {"id": cleanup.pk, "project": printable_text(project_id)}
    if cleanup.project_deleted_at not in (None, deleted_at):
        text = _(
            "Project %(project)s was created and deleted again since plan %(id)s was made. Nothing"
            " was deleted. Make another dry run."
        )
        raise IllegalTransition(text % words)
    if other := find_open_cleanup(cleanup):
        text = _(
            "Cleanup %(other)s of project %(project)s is not over, so plan %(id)s cannot run"
            " beside it. Nothing was deleted. Wait until that cleanup is over, or approve or retry"
            " it."
        )
        raise IllegalTransition(text % {**words, "other": other.pk})
    hold = held_ids.hold_of_deletion(project_id, deleted_at)
    if hold:
        # As with an approval within the hold.
        planned = limits.planned_size(cleanup)
        hold |= {"approved_objects": planned["n"], "approved_bytes": planned["size"]}
        hold |= {"step": Cleanup.Step.HELD, "next_attempt_at": hold["held_until"]}
    cleanup.run_plan(user, project_deleted_at=deleted_at, **hold)
    make_cleanups.requeue_earlier_cleanups(cleanup)


def with_coming_hold(cleanup: Cleanup) -> Cleanup:
    """The cleanup, or for a plan one that is not saved, with the hold that it gets when it runs."""
    if cleanup.status != Status.PLANNED:
        return cleanup
    return Cleanup() if cleanup.has_given_objects else coming_hold(cleanup.project_id or "")


def coming_hold(project_id: str) -> Cleanup:
    """A cleanup that is not saved, with the hold that one of this deleted project gets."""
    deleted_at = KnownProject.objects.deletion_time(project_id)
    if deleted_at is None:
        return Cleanup()
    return Cleanup(**held_ids.hold_of_deletion(project_id, deleted_at))


def find_open_cleanup(plan: Cleanup) -> Cleanup | None:
    """The open cleanup of the same deletion, beside which the plan cannot run."""
    project_id = plan.project_id or ""
    deleted_at = KnownProject.objects.deletion_time(project_id)
    mine = Cleanup.objects.of_project(project_id)
    return mine.filter(bucket=plan.bucket, project_deleted_at=deleted_at, parent=None).first()


def refuse_verification(cleanup: Cleanup) -> None:
    if cleanup.kind == Kind.VERIFY:
        text = _("Cleanup %s is a verification, which deletes nothing. Verify again instead.")
        raise IllegalTransition(text % cleanup.pk)


@transaction.atomic
def declare_deleted(project_id: str, mode: Mode | None = None) -> list[Cleanup]:
    """Clean up after an id that is not alive, such as one deleted before this was installed. If a
    cleanup of it is open, return that, and let it go on at once unless a limit blocks it.

    Raises ValidationError for what is no project id, and ProjectExists.
    """
    mode = mode or default_mode()
    cleanups = make_cleanups.request_cleanups(
        project_id,
        trigger=Trigger.DECLARED,
        deleted_at=record_deletion(project_id),
        **mode._asdict(),
    )
    for cleanup in cleanups:
        with suppress(IllegalTransition):  # A worker, or another person, was quicker.
            continue_cleanup(cleanup, mode.strategy)
    return cleanups


def continue_cleanup(cleanup: Cleanup, strategy: str) -> None:
    """Have an open cleanup continue now, within the limits. One whose attempts failed uses this
    strategy from now on, as its own may be the cause."""
    if cleanup.status in (Status.RETRYING, Status.FAILED):
        if cleanup.strategy != strategy:
            cleanup.record("plan", _("The strategy is %s from now on.") % strategy)
        cleanup.retry(strategy=strategy, batch_state={})
    elif cleanup.status == Status.BLOCKED and is_undecided(cleanup):
        cleanup.approve(current_origin().user or "command")


def is_undecided(cleanup: Cleanup) -> bool:
    """Whether it waits only for a person to confirm that the project was deleted."""
    return cleanup.trigger == Trigger.VANISHED and not cleanup.plan_digest


def record_deletion(project_id: str) -> datetime:
    """Record that the id is deleted; since when. Raises ValidationError, ProjectExists, and
    IllegalTransition where a person cancelled its cleanup."""
    validate_project_id(project_id)
    require_deleted(project_id)
    if KnownProject.objects.filter(pk=project_id, kept_for=KeptFor.CANCELLED).exists():
        raise IllegalTransition(cancelled_by_person_text(printable_text(project_id)))
    return KnownProject.objects.declare_deleted(project_id)


def require_declaration(project_id: str) -> None:
    """Raises IllegalTransition when the project's row is gone without a signal and no person has
    declared it deleted: until then its files count as an existing project's."""
    if project_model.is_alive(project_id) or not KnownProject.objects.maybe_alive_ids([project_id]):
        return
    text = _(
        "Project %(project)s is missing from the database, and no deletion was reported. Nothing"
        " was deleted. To delete its files, %(how)s."
    )
    blocked = Cleanup.objects.disappearances_of(project_id).first()
    how = _("run cleanup_project %s --declare-deleted") % printable_text(project_id)
    if blocked:
        how = _("approve cleanup %(id)s, or %(how)s") % {"id": blocked.pk, "how": how}
    raise IllegalTransition(text % {"project": printable_text(project_id), "how": how})


def confirm_deletion(cleanup: Cleanup) -> None:
    vanished = KnownProject.objects.filter(
        pk=cleanup.project_id,
        evidence=Evidence.VANISHED,
        deleted_at=cleanup.project_deleted_at,
    )
    vanished.update(evidence=Evidence.DECLARED)


def require_deleted(project_id: str | None) -> None:
    if project_model.is_alive(project_id):
        raise ProjectExists(
            _("Project %s exists. Delete the project to delete its files.") % project_id
        )
