"""Deleting a project, with its files."""

from django.contrib.admin.models import DELETION
from django.contrib.auth import get_permission_codename
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from ninja import Field, Router, Status

from storage_audit import project_model
from storage_audit.api import auth
from storage_audit.api.auth import require
from storage_audit.api.openapi import refusals
from storage_audit.api.problems import Problem, refuse_unread
from storage_audit.cleanup import delete_projects, requests
from storage_audit.cleanup.api import Accepted, OneDeletion, status_url
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.redaction import redact, visible
from storage_audit.roles import deletion_obstacles, has_own_deletion, is_hidden

router = Router(tags=["projects"])


class ProjectDeleted(Accepted):
    project_id: str
    deletions: list[OneDeletion] = Field(description="One for each bucket that has files of it.")


@router.delete("/{project_id}", response={202: ProjectDeleted, **refusals(404, 409)})
def delete_project(
    request: HttpRequest, project_id: str, response: HttpResponse
) -> Status[ProjectDeleted]:
    """Delete a project as the admin does. A cleanup then deletes its files from R2. Its page shows
    when they are gone. Again for the same project it does nothing and gives the same deletion id.
    Needs the permission delete_project."""
    refuse_unread(request)
    meta = project_model.model()._meta
    require(request, f"{meta.app_label}.{get_permission_codename('delete', meta)}")
    # A later step of the site that fails is in the log. The project is deleted all the same.
    with delete_projects.committing([]):
        project = project_model.lock(project_id)
        if project is None:
            made = requests.deletion_of(project_id)
        else:
            made = [] if is_hidden(request, project) else delete(request, project)
    if not made:
        raise Problem("not-found", _("There is no project %s.") % visible(project_id))
    response["Location"] = status_url(made[0])
    text = _(
        "Project %s deleted. A cleanup is deleting the files from R2. Its page shows when they are"
        " gone."
    )
    answer = ProjectDeleted(
        message=text % visible(project_id),
        project_id=project_id,
        deletion_id=made[0].pk,
        status_url=status_url(made[0]),
        deletions=[
            OneDeletion(deletion_id=each.pk, bucket=each.bucket, status_url=status_url(each))
            for each in made
        ],
    )
    return Status(202, answer)


def delete(request: HttpRequest, project: Model) -> list[CleanupOperation]:
    refuse_own_deletion(request, project)
    refuse_to_take_along(request, project)
    auth.log(request, project, DELETION, "")
    return delete_projects.delete_project(project) or []


def refuse_own_deletion(request: HttpRequest, project: Model) -> None:
    if has_own_deletion(request, [project]):
        text = _(
            "Nothing was deleted. This site has its own way to delete this project. Delete it in"
            " the admin."
        )
        raise Problem("refused", text)


def refuse_to_take_along(request: HttpRequest, project: Model) -> None:
    """As the admin does: the row itself, or rows of other models that would go with it."""
    lacking, protected = deletion_obstacles(request, project)
    if lacking:
        text = _("You may not delete what would go: %s.") % ", ".join(sorted(lacking))
        raise Problem("forbidden", text)
    if protected:
        needing = ", ".join(redact(visible(str(row))) for row in protected)
        raise Problem("in-use", _("Delete first what needs it: %s.") % needing)
