"""Deletions to follow, from the request to the proof."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.contrib.admin.models import CHANGE
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.translation import gettext as _
from ninja import Field, Query, Router, Schema, Status

from storage_audit.api import auth
from storage_audit.api.auth import require
from storage_audit.api.openapi import refusals
from storage_audit.api.problems import SPOKEN
from storage_audit.api.schemas import ABSENT, Limit, Text, first
from storage_audit.cleanup import requests
from storage_audit.cleanup.cleanup_text import meaning
from storage_audit.cleanup.long_poll import LONGEST, wait_for_change
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.ownership.bucket_marker import CannotConclude

router = Router(tags=["deletions"])

VIEW = "storage_audit.view_cleanupoperation"
EVENTS_SHOWN, VALUES_SHOWN = 200, 100
OUTCOMES = ("found", "deleted", "already_absent", "protected", "failed")

SPOKEN[requests.ProjectExists] = "project-exists"
SPOKEN[IllegalTransition] = "wrong-state"
SPOKEN[CannotConclude] = "bucket-not-ours"


class Deletion(Schema):
    deletion_id: UUID
    status_url: str
    kind: CleanupOperation.Kind
    trigger: CleanupOperation.Trigger
    project_id: str | None
    bucket: str
    discovery: CleanupOperation.Discovery
    strategy: CleanupOperation.Strategy
    dry_run: bool
    status: CleanupOperation.Status
    over: bool = Field(description="Nothing more happens by itself.")
    requested_by: str
    requested_from: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None


class DeletionPage(Schema):
    items: list[Deletion]
    next_cursor: UUID | None


class Amount(Schema):
    objects: int = 0
    bytes: int = 0


class Books(Schema):
    """Until they are closed they say what the items say now; then found is the sum of deleted,
    already_absent, protected and failed."""

    closed: bool
    found: Amount
    planned: Amount = Amount()
    deleting: Amount = Amount()
    deleted: Amount = Amount()
    already_absent: Amount = Amount()
    protected: Amount = Amount()
    failed: Amount = Amount()


class Event(Schema):
    at: datetime
    step: str
    message: str
    data: dict[str, Any]


class DeletionDetails(Deletion):
    meaning: list[str] = Field(description="What the status means and what happens next.")
    message: str
    follows: UUID | None = Field(description="The deletion that this one looks after.")
    plan_digest: str
    books: Books
    timeline: list[Event]
    earlier_events: bool = Field(description="The timeline is longer: these are its latest lines.")


class Item(Schema):
    id: int
    key: str
    escaped: bool = Field(description="The key cannot be written as it is, and is shown escaped.")
    size: int | None
    etag: str
    last_modified: datetime | None
    found_in: CleanupItem.FoundIn
    outcome: CleanupItem.Outcome
    evidence: str
    reason: str
    answer: str
    tries: int
    changed_at: datetime


class ItemPage(Schema):
    items: list[Item]
    next_cursor: int | None


class OneDeletion(Schema):
    deletion_id: UUID
    bucket: str
    status_url: str


class Accepted(Schema):
    message: str
    deletion_id: UUID
    status_url: str


@router.get("", response={200: DeletionPage, **refusals(404)})
def list_deletions(
    request: HttpRequest,
    status: CleanupOperation.Status = ABSENT,
    project: Text = ABSENT,
    cursor: UUID = ABSENT,
    limit: Limit = 50,
) -> DeletionPage:
    """The latest first, verifications and dry runs among them. `cursor` is the `next_cursor` of the
    page before. Needs the permission view_cleanupoperation."""
    require(request, VIEW)
    chosen = CleanupOperation.objects.order_by("-created_at", "-pk")
    if status:
        chosen = chosen.filter(status=status)
    if project:
        chosen = chosen.filter(project_id=project)
    if cursor:
        last = get_object_or_404(CleanupOperation, pk=cursor)
        same = Q(created_at=last.created_at, pk__lt=last.pk)
        chosen = chosen.filter(Q(created_at__lt=last.created_at) | same)
    page, more = first(chosen, limit)
    return DeletionPage(
        items=[Deletion(**facts(each)) for each in page], next_cursor=page[-1].pk if more else None
    )


@router.get("/{deletion_id}", response={200: DeletionDetails, **refusals(404)})
def get_deletion(
    request: HttpRequest,
    deletion_id: UUID,
    wait: Annotated[float, Query(ge=0, le=LONGEST)] = 0,
) -> DeletionDetails:
    """With `wait` the answer comes when the status changes or the deletion is over, after so many
    seconds at the latest, and at once when many wait already. Needs the permission
    view_cleanupoperation."""
    require(request, VIEW)
    operation = get_object_or_404(CleanupOperation, pk=deletion_id)
    wait_for_change(operation, wait, request.user.pk)
    return details(operation)


@router.get("/{deletion_id}/items", response={200: ItemPage, **refusals(404)})
def list_items(
    request: HttpRequest,
    deletion_id: UUID,
    cursor: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Limit = 50,
) -> ItemPage:
    """Each object of a deletion, and what became of it. None, once they are archived. Needs the
    permission view_cleanupoperation."""
    require(request, VIEW)
    operation = get_object_or_404(CleanupOperation, pk=deletion_id)
    page, more = first(operation.items.filter(pk__gt=cursor).order_by("pk"), limit)
    return ItemPage(
        items=[Item(**{name: getattr(row, name) for name in Item.model_fields}) for row in page],
        next_cursor=page[-1].pk if more else None,
    )


@router.post("/{deletion_id}/verify", response={202: Accepted, **refusals(404, 409)})
def verify_deletion(
    request: HttpRequest, deletion_id: UUID, response: HttpResponse
) -> Status[Accepted]:
    """Look again whether what it deleted is gone; changes nothing in the bucket. The look is a
    deletion to follow, too. Needs the permission verify_cleanup."""
    require(request, "storage_audit.verify_cleanup")
    operation = get_object_or_404(CleanupOperation, pk=deletion_id)
    with transaction.atomic():
        check = requests.verify_operation(operation)
        note = _("Verification requested: operation %s.") % check.pk
        auth.log(request, operation, CHANGE, note)
        requests.enqueue_on_commit([check])
    response["Location"] = status_url(check)
    text = _("A verification is queued. It looks into the bucket and changes nothing.")
    accepted = Accepted(message=text, deletion_id=check.pk, status_url=status_url(check))
    return Status(202, accepted)


def status_url(operation: CleanupOperation) -> str:
    return reverse("storage_audit_api:get_deletion", args=[operation.pk])


def facts(operation: CleanupOperation) -> dict[str, Any]:
    same = set(Deletion.model_fields) - {"deletion_id", "status_url", "over", "requested_from"}
    return {
        "deletion_id": operation.pk,
        "status_url": status_url(operation),
        "over": operation.next_attempt_at is None,
        "requested_from": operation.origin,
        **{name: getattr(operation, name) for name in same},
    }


def details(operation: CleanupOperation) -> DeletionDetails:
    latest = list(operation.events.order_by("-at", "-pk")[: EVENTS_SHOWN + 1])
    return DeletionDetails(
        **facts(operation),
        meaning=meaning(operation),
        message=operation.error,
        follows=operation.parent_id,
        plan_digest=operation.plan_digest,
        books=books(operation),
        timeline=[
            Event(at=event.at, step=event.step, message=event.message, data=short(event.data))
            for event in reversed(latest[:EVENTS_SHOWN])
        ],
        earlier_events=len(latest) > EVENTS_SHOWN,
    )


def short(data: dict[str, Any]) -> dict[str, Any]:
    """With the first of what may be as many as there are projects; deletion_log prints all."""
    return {
        name: [*value[:VALUES_SHOWN], _("and %s more") % (len(value) - VALUES_SHOWN)]
        if isinstance(value, list) and len(value) > VALUES_SHOWN
        else value
        for name, value in data.items()
    }


def books(operation: CleanupOperation) -> Books:
    if operation.status in CleanupOperation.CLOSED:
        columns = {name: column(operation, name) for name in OUTCOMES}
        return Books(closed=True, **columns)
    by_outcome = {
        outcome: Amount(objects=count, bytes=size)
        for outcome, (count, size) in operation.items.by_outcome().items()
    }
    return Books(closed=False, found=total(by_outcome.values()), **by_outcome)


def column(operation: CleanupOperation, name: str) -> Amount:
    return Amount(objects=getattr(operation, name), bytes=getattr(operation, f"{name}_bytes"))


def total(amounts: Iterable[Amount]) -> Amount:
    listed = list(amounts)
    return Amount(objects=sum(a.objects for a in listed), bytes=sum(a.bytes for a in listed))
