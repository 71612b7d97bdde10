"""Deleting a project, with its files."""

from dataclasses import replace
from typing import Literal

from django.contrib.admin.models import DELETION
from django.contrib.auth import get_permission_codename
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from ninja import Field, Router, Status

from storage_audit import project_model
from storage_audit.api import auth
from storage_audit.api.auth import require_permission
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import Problem, refuse_unknown_input
from storage_audit.api.schemas import NOT_GIVEN, Text
from storage_audit.cleanup import (
    delete_projects,
    end_deletions,
    make_cleanups,
    pause_deletions,
    requests,
)
from storage_audit.cleanup.api import deletion_link, status_url
from storage_audit.cleanup.api_schemas import Accepted, DeletionLink
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.models import KnownProject
from storage_audit.redaction import printable_text, redact_secrets
from storage_audit.request_origin import request_origin, use_origin
from storage_audit.roles import deletion_obstacles, has_own_deletion, is_hidden

KeptFor = KnownProject.KeptFor

router = Router(tags=["projects"])


class ProjectDeleted(Accepted):
    project_id: str
    deletions: list[DeletionLink] = Field(
        description="One deletion for each bucket that has the project's files."
    )


@router.delete("/{project_id}", response={202: ProjectDeleted, **problem_responses(404, 409)})
def delete_project(
    request: HttpRequest,
    project_id: str,
    response: HttpResponse,
    erase: Literal["now"] = NOT_GIVEN,
    reason: Text = NOT_GIVEN,
) -> Status[ProjectDeleted]:
    """Delete a project as the admin does. A cleanup then deletes its files from R2. A repeated
    request does nothing and returns the same deletion ID. `erase=now` skips or ends the hold, so
    nobody can undo the deletion; it needs a `reason` and the permission erase_cleanup. Needs the
    permission delete_project."""
    refuse_unknown_input(request, "erase", "reason")
    meta = project_model.get_model()._meta
    require_permission(request, f"{meta.app_label}.{get_permission_codename('delete', meta)}")
    erase_reason = check_erasure(request, erase, reason)
    origin = replace(request_origin(request), erase_reason=erase_reason)
    # A later step of the site that fails is in the log. The project is deleted all the same.
    with use_origin(origin), delete_projects.tolerate_hook_errors([]):
        project = project_model.lock_project(project_id)
        if project is None:
            made = requests.cleanups_of_deletion(project_id)
            erase_held(project_id, made, erase_reason)
        else:
            made = [] if is_hidden(request, project) else delete_with_checks(request, project)
    if not made:
        raise Problem("not-found", _("There is no project %s.") % printable_text(project_id))
    # The deletion id is that of the settings' bucket.
    made.sort(key=lambda each: (each.bucket != conf().bucket, each.bucket))
    response["Location"] = status_url(made[0])
    answer = ProjectDeleted(
        message=deletion_message(project_id, made[0]),
        project_id=project_id,
        deletion_id=made[0].pk,
        status_url=status_url(made[0]),
        deletions=[deletion_link(each) for each in made],
    )
    return Status(202, answer)


def check_erasure(request: HttpRequest, erase: str | None, reason: str | None) -> str:
    """The reason for which the files go at once; empty if they don't. Raises IllegalTransition
    while deletions are paused."""
    if not erase:
        return ""
    require_permission(request, "storage_audit.erase_cleanup")
    if not (reason or "").strip():
        raise Problem("refused", _("Nothing was deleted. Enter a reason: erase=now needs one."))
    pause_deletions.refuse_while_paused()
    return (reason or "").strip()


def erase_held(project_id: str, made: list[Cleanup], reason: str) -> None:
    """A project that was deleted before may still be held. Raises Problem where a person keeps its
    files."""
    if reason and is_cancelled(project_id):
        raise Problem("wrong-state", _("Nothing was deleted. %s") % cancelled_text(project_id))
    for each in made:
        if reason and each.is_held():
            with transaction.atomic():
                make_cleanups.enqueue_on_commit(end_deletions.erase_deletion(each, reason))
            return


def deletion_message(project_id: str, cleanup: Cleanup) -> str:
    cleanup.refresh_from_db()
    words = {"project": printable_text(project_id)}
    if until := cleanup.shown_hold():
        text = _(
            "Project %(project)s deleted. Its files are kept until %(until)s; until then you can"
            " undo the deletion."
        )
        return text % {**words, "until": format_utc(until)}
    if is_cancelled(project_id):
        return cancelled_text(project_id)
    text = _(
        "Project %(project)s deleted. A cleanup is deleting the files from R2. Its page shows when"
        " they are gone."
    )
    return text % words


def is_cancelled(project_id: str) -> bool:
    return KnownProject.objects.filter(pk=project_id, kept_for=KeptFor.CANCELLED).exists()


def cancelled_text(project_id: str) -> str:
    text = _(
        "Project %s was deleted before. A person cancelled its cleanup, so its files are kept. To"
        " delete them, choose Clean up again."
    )
    return text % printable_text(project_id)


def delete_with_checks(request: HttpRequest, project: Model) -> list[Cleanup]:
    refuse_own_deletion(request, project)
    refuse_cascade(request, project)
    auth.log_action(request, project, DELETION, "")
    return delete_projects.delete_project(project) or []


def refuse_own_deletion(request: HttpRequest, project: Model) -> None:
    if has_own_deletion(request, [project]):
        text = _(
            "Nothing was deleted. This site has its own way to delete this project. Delete it in"
            " the admin."
        )
        raise Problem("refused", text)


def refuse_cascade(request: HttpRequest, project: Model) -> None:
    """Refuse as the admin does, if the row or rows deleted with it may not be deleted."""
    lacking, protected = deletion_obstacles(request, project)
    if lacking:
        text = _("This also deletes what you may not delete: %s.") % ", ".join(sorted(lacking))
        raise Problem("forbidden", text)
    if protected:
        needing = ", ".join(redact_secrets(printable_text(str(row))) for row in protected)
        raise Problem("in-use", _("Other rows need the project. Delete them first: %s.") % needing)
