"""Deletions, from the request to the verification."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any
from uuid import UUID

from django.contrib.admin.models import CHANGE
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.translation import gettext as _
from ninja import Query, Router, Status

from storage_audit.api import auth
from storage_audit.api.auth import require_permission
from storage_audit.api.cursor_pages import page_newest_first, page_oldest_first
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import PUBLIC_ERRORS
from storage_audit.api.schemas import NOT_GIVEN, Limit, Text
from storage_audit.cleanup import end_deletions, make_cleanups, pause_deletions, requests
from storage_audit.cleanup.api_schemas import (
    Accepted,
    Amount,
    Decided,
    Deletion,
    DeletionDetails,
    DeletionLink,
    DeletionPage,
    Event,
    GivenReason,
    Item,
    ItemPage,
    OptionalReason,
    Pause,
    Paused,
    PauseDeletions,
    PauseState,
    Resumed,
    ResumeDeletions,
    Totals,
    Undone,
)
from storage_audit.cleanup.headline_text import explain_status
from storage_audit.cleanup.long_poll import MAX_WAIT_SECONDS, wait_for_change
from storage_audit.cleanup.models import Cleanup, DeletionPause
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.project_model import ProjectExists
from storage_audit.redaction import printable_text

router = Router(tags=["deletions"])

VIEW_PERMISSION = "storage_audit.view_cleanup"
PAUSE_PERMISSION = "storage_audit.pause_cleanup"
EVENTS_SHOWN, VALUES_SHOWN = 200, 100
TOTAL_NAMES = ("found", "deleted", "already_gone", "kept", "failed")

PUBLIC_ERRORS[ProjectExists] = "project-exists"
PUBLIC_ERRORS[IllegalTransition] = "wrong-state"
PUBLIC_ERRORS[CannotRestore] = "cannot-restore"
PUBLIC_ERRORS[CannotConclude] = "bucket-not-ours"


@router.get("", response={200: DeletionPage, **problem_responses(404)})
def list_deletions(
    request: HttpRequest,
    status: Cleanup.Status = NOT_GIVEN,
    project: Text = NOT_GIVEN,
    cursor: UUID = NOT_GIVEN,
    limit: Limit = 50,
) -> DeletionPage:
    """Newest first, with verifications and dry runs. `cursor` is the `next_cursor` of the previous
    page. Needs the permission view_cleanup."""
    require_permission(request, VIEW_PERMISSION)
    chosen = Cleanup.objects.all()
    if status:
        chosen = chosen.filter(status=status)
    if project:
        chosen = chosen.filter(project_id=project)
    page, next_cursor = page_newest_first(chosen, "created_at", cursor, limit)
    return DeletionPage(
        items=[Deletion(**deletion_fields(each)) for each in page],
        next_cursor=next_cursor,
        paused=describe_pause(pause) if (pause := pause_deletions.find_pause()) else None,
    )


@router.post("/pause", response={200: Paused, **problem_responses(404, 409)})
def pause_deletion(request: HttpRequest, body: PauseDeletions) -> Paused:
    """Pause deletions until a person resumes them. Needs the permission pause_cleanup."""
    require_permission(request, PAUSE_PERMISSION)
    result = pause_deletions.pause_deletions(body.reason, get_chosen(body.deletion_id))
    return Paused(
        paused=describe_pause(result.pause),
        requests_under_way=pause_deletions.count_requests_under_way(),
        not_written=list(result.unwritten),
    )


@router.get("/pause", response={200: PauseState, **problem_responses(404)})
def get_pause(request: HttpRequest, deletion_id: UUID = NOT_GIVEN) -> PauseState:
    """The pause of all deletions or of this one, and the files that are deleted when you resume.
    Needs the permission pause_cleanup."""
    require_permission(request, PAUSE_PERMISSION)
    chosen = get_chosen(deletion_id)
    if pause_deletions.find_pause(chosen) is None:
        return PauseState(paused=None)
    figures = pause_deletions.find_resume_figures(chosen)
    return PauseState(
        paused=describe_pause(figures.pause),
        deletions=figures.cleanups,
        objects=figures.objects,
        bytes=figures.size,
        over_limits=figures.over_limits,
        confirm=figures.digest,
    )


@router.post("/resume", response={200: Resumed, **problem_responses(404, 409)})
def resume_deletion(request: HttpRequest, body: ResumeDeletions) -> Resumed:
    """Resume deletions, if the numbers are still those that you saw. Needs the permission
    pause_cleanup."""
    require_permission(request, PAUSE_PERMISSION)
    if body.over_limits:
        require_permission(request, "storage_audit.force_cleanup")
    resumed = pause_deletions.resume_deletions(
        body.confirm, get_chosen(body.deletion_id), over_limits=body.over_limits
    )
    make_cleanups.enqueue_on_commit(resumed)
    return Resumed(message=_("Deletions are resumed."))


def get_chosen(deletion_id: UUID | None) -> Cleanup | None:
    return get_object_or_404(Cleanup, pk=deletion_id) if deletion_id else None


def describe_pause(pause: DeletionPause) -> Pause:
    same = {name: getattr(pause, name) for name in ("paused_by", "reason", "paused_at")}
    return Pause(deletion_id=pause.cleanup_id, **same)


@router.get("/{deletion_id}", response={200: DeletionDetails, **problem_responses(404)})
def get_deletion(
    request: HttpRequest,
    deletion_id: UUID,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0,
) -> DeletionDetails:
    """One deletion. With `wait`, the answer comes when the status changes or the deletion is over,
    after this many seconds at most. It comes at once if too many requests wait. Needs the
    permission view_cleanup."""
    require_permission(request, VIEW_PERMISSION)
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    wait_for_change(cleanup, wait, request.user.pk)
    return deletion_details(cleanup)


@router.get("/{deletion_id}/items", response={200: ItemPage, **problem_responses(404)})
def list_items(
    request: HttpRequest,
    deletion_id: UUID,
    cursor: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Limit = 50,
) -> ItemPage:
    """The files of a deletion, with their outcomes. Empty once the list is archived. Needs the
    permission view_cleanup."""
    require_permission(request, VIEW_PERMISSION)
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    page, next_cursor = page_oldest_first(cleanup.items.all(), cursor, limit)
    return ItemPage(
        items=[Item(**{name: getattr(row, name) for name in Item.model_fields}) for row in page],
        next_cursor=next_cursor,
    )


@router.post("/{deletion_id}/verify", response={202: Accepted, **problem_responses(404, 409)})
def verify_deletion(
    request: HttpRequest, deletion_id: UUID, response: HttpResponse
) -> Status[Accepted]:
    """Check again that the deleted files are gone. The bucket does not change. The verification has
    its own deletion ID. Needs the permission verify_cleanup."""
    require_permission(request, "storage_audit.verify_cleanup")
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    with transaction.atomic():
        check = requests.request_cleanup_verification(cleanup)
        note = _("Verification requested: cleanup %s.") % check.pk
        auth.log_action(request, cleanup, CHANGE, note)
        make_cleanups.enqueue_on_commit([check])
    response["Location"] = status_url(check)
    text = _("Verification queued. It checks the bucket and changes nothing.")
    accepted = Accepted(message=text, deletion_id=check.pk, status_url=status_url(check))
    return Status(202, accepted)


@router.post("/{deletion_id}/undo", response={200: Undone, **problem_responses(404, 409)})
def undo_deletion(request: HttpRequest, deletion_id: UUID, body: OptionalReason) -> Undone:
    """Restore the project, with the rows that were deleted with it, while the deletion is held. Its
    files are kept. Needs the permission undo_cleanup."""
    require_permission(request, "storage_audit.undo_cleanup")
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    with transaction.atomic():
        restored = end_deletions.undo_deletion(cleanup, body.reason)
        auth.log_action(request, cleanup, CHANGE, f"{_('Undo deletion')}. {body.reason}".strip())
    return Undone(
        message=_("Deletion undone. Project %s is back.") % printable_text(cleanup.subject),
        deletion_id=cleanup.pk,
        status_url=status_url(cleanup),
        project_id=cleanup.project_id,
        restored=dict(sum((Counter(each.rows) for each in restored), Counter())),
        left_out=[line for each in restored for line in each.left_out],
    )


@router.post("/{deletion_id}/cancel", response={200: Decided, **problem_responses(404, 409)})
def cancel_deletion(request: HttpRequest, deletion_id: UUID, body: OptionalReason) -> Decided:
    """Keep the files that are still in the bucket. A worker first verifies those whose deletion was
    already sent. Needs the permission cancel_cleanup."""
    require_permission(request, "storage_audit.cancel_cleanup")
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    with transaction.atomic():
        to_verify = end_deletions.cancel_deletion(cleanup, body.reason)
        return log_decision(
            request, cleanup, to_verify, _("Cancelled. The files are kept."), body.reason
        )


@router.post("/{deletion_id}/erase", response={200: Decided, **problem_responses(404, 409)})
def erase_deletion(request: HttpRequest, deletion_id: UUID, body: GivenReason) -> Decided:
    """End the hold and delete the files now. You can't undo this. Needs the permission
    erase_cleanup."""
    require_permission(request, "storage_audit.erase_cleanup")
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    with transaction.atomic():
        due = end_deletions.erase_deletion(cleanup, body.reason)
        text = _("The hold is over. A cleanup is deleting the files from R2.")
        return log_decision(request, cleanup, due, text, body.reason)


@router.post(
    "/{deletion_id}/clean-up-again", response={200: Decided, **problem_responses(404, 409)}
)
def clean_up_again(request: HttpRequest, deletion_id: UUID, body: GivenReason) -> Decided:
    """Delete the files of a cancelled cleanup, with a new deletion. Needs the permission
    force_cleanup."""
    require_permission(request, "storage_audit.force_cleanup")
    cleanup = get_object_or_404(Cleanup, pk=deletion_id)
    if cleanup.status != Cleanup.Status.CANCELLED or cleanup.kind != Cleanup.Kind.PROJECT:
        raise IllegalTransition(
            _("Cleanup %s is not a cancelled cleanup of a project.") % cleanup.pk
        )
    with transaction.atomic():
        made = end_deletions.clean_up_again(cleanup.project_id or "", body.reason)
        text = _("A new cleanup is queued. It deletes the files that were kept.")
        return log_decision(request, cleanup, made, text, body.reason)


def log_decision(
    request: HttpRequest, cleanup: Cleanup, going_on: list[Cleanup], text: str, reason: str
) -> Decided:
    """In the decision's transaction."""
    auth.log_action(request, cleanup, CHANGE, f"{text} {reason}".strip())
    make_cleanups.enqueue_on_commit(going_on)
    return Decided(message=text, deletions=[deletion_link(each) for each in going_on])


def deletion_link(cleanup: Cleanup) -> DeletionLink:
    return DeletionLink(
        deletion_id=cleanup.pk, bucket=cleanup.bucket, status_url=status_url(cleanup)
    )


def status_url(cleanup: Cleanup) -> str:
    return reverse("storage_audit_api:get_deletion", args=[cleanup.pk])


def deletion_fields(cleanup: Cleanup) -> dict[str, Any]:
    same = set(Deletion.model_fields) - {"deletion_id", "status_url", "over", "requested_from"}
    return {
        "deletion_id": cleanup.pk,
        "status_url": status_url(cleanup),
        "over": cleanup.next_attempt_at is None,
        "requested_from": cleanup.origin,
        **{name: getattr(cleanup, name) for name in same},
    }


def deletion_details(cleanup: Cleanup) -> DeletionDetails:
    latest = list(cleanup.events.order_by("-at", "-pk")[: EVENTS_SHOWN + 1])
    return DeletionDetails(
        **deletion_fields(cleanup),
        meaning=explain_status(cleanup),
        message=cleanup.message,
        follows=cleanup.parent_id,
        paused=describe_pause(pause) if (pause := cleanup.find_pause()) else None,
        plan_digest=cleanup.plan_digest,
        totals=deletion_totals(cleanup),
        timeline=[
            Event(
                at=event.at, step=event.step, message=event.message, data=shorten_data(event.data)
            )
            for event in reversed(latest[:EVENTS_SHOWN])
        ],
        earlier_events=len(latest) > EVENTS_SHOWN,
    )


def shorten_data(data: dict[str, Any]) -> dict[str, Any]:
    """With the first of what may be as many as there are projects; deletion_log prints all."""
    return {
        name: [*value[:VALUES_SHOWN], _("and %s more") % (len(value) - VALUES_SHOWN)]
        if isinstance(value, list) and len(value) > VALUES_SHOWN
        else value
        for name, value in data.items()
    }


def deletion_totals(cleanup: Cleanup) -> Totals:
    if cleanup.status in Cleanup.FINISHED:
        columns = {name: column_amount(cleanup, name) for name in TOTAL_NAMES}
        return Totals(final=True, **columns)
    by_outcome = {
        outcome: Amount(objects=count, bytes=size)
        for outcome, (count, size) in cleanup.items.by_outcome().items()
    }
    return Totals(final=False, found=sum_amounts(by_outcome.values()), **by_outcome)


def column_amount(cleanup: Cleanup, name: str) -> Amount:
    return Amount(objects=getattr(cleanup, name), bytes=getattr(cleanup, f"{name}_bytes"))


def sum_amounts(amounts: Iterable[Amount]) -> Amount:
    listed = list(amounts)
    return Amount(objects=sum(a.objects for a in listed), bytes=sum(a.bytes for a in listed))
