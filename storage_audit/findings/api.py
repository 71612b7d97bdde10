"""What complete scans found, and what is decided about it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from django.contrib.admin.models import ADDITION
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _
from ninja import Field, Path, Query, Router, Schema, Status
from pydantic import ConfigDict, StrictBool, model_validator

from storage_audit.api import auth
from storage_audit.api.auth import require
from storage_audit.api.openapi import refusals
from storage_audit.api.problems import SPOKEN, Problem
from storage_audit.api.schemas import ABSENT, Asked, Limit, Number, Text, choices, first
from storage_audit.cleanup.api import OneDeletion, status_url
from storage_audit.cleanup.requests import enqueue_on_commit
from storage_audit.concurrency import place
from storage_audit.findings import action_result, actions, orphans, track_files
from storage_audit.findings.action_result import ActionRefused, Decision, refuse_many
from storage_audit.findings.models import Finding, FindingQuerySet, Kind

router = Router(tags=["findings"])

VIEW, JUDGE = "storage_audit.view_finding", "storage_audit.change_finding"
TRACK, REMOVE = "storage_audit.change_r2object", "storage_audit.delete_r2object"
SHOWN = 1000
State = Finding.State

SPOKEN[ActionRefused] = "refused"

FindingKind = Annotated[Kind, choices(Kind)]
FindingState = Annotated[Finding.State, choices(Finding.State)]


class FindingShown(Schema):
    finding_id: int
    kind: FindingKind
    state: FindingState
    bucket: str
    key: str
    escaped: bool = Field(description="The key cannot be written as it is, and is shown escaped.")
    upload_id: str = Field(description="Of an unfinished upload.")
    project_id: str | None
    size: int | None
    etag: str
    last_modified: datetime | None
    evidence: str
    note: str = Field(description="Why it may stay, or how it is resolved.")
    decided_by: str
    decided_at: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    first_scan: UUID
    last_scan: UUID


class FindingPage(Schema):
    items: list[FindingShown]
    next_cursor: int | None


class Filter(Asked):
    """All findings that fit each of these; without a state, the open ones."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    kind: FindingKind = ABSENT
    state: FindingState = ABSENT
    prefix: Text = ABSENT
    project: Text = ABSENT

    @model_validator(mode="after")
    def names_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(_("Say which findings: name a kind, state, prefix or project."))
        return self


Ids = Annotated[list[Number], Field(min_length=1, max_length=1000)]


class Decide(Asked):
    findings: Ids | Filter = Field(
        description="The ids of some, or a filter with one name or more."
    )


class DryRunnable(Decide):
    dry_run: StrictBool = Field(False, description="Say what would be done, and do nothing.")


class Acknowledge(Decide):
    note: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")] = Field(
        description="Why they may stay."
    )


class Adopt(Decide):
    project_id: Text


class LeftAsItIs(Schema):
    key: str
    reason: str


class WhatBecame(Schema):
    key: str
    result: str


class Decided(Schema):
    done: int = Field(description="Findings dealt with, or taken up by the deletions.")
    dry_run: bool = Field(description="It tells what would be done.")
    deletions: list[OneDeletion] = Field(description="One for each bucket: follow these.")
    results: list[WhatBecame] = Field(description="Such as the new key of each that was renamed.")
    left: list[LeftAsItIs] = Field(description="What stays as it is, and why.")
    counts: dict[str, int]
    is_cut: bool = Field(description="The lists end after 1,000; the counts count all.")


LOOKS = {200: Decided, **refusals(404, 409, 502)}


@router.get("", response={200: FindingPage, **refusals()})
def list_findings(
    request: HttpRequest,
    kind: FindingKind = ABSENT,
    state: FindingState = ABSENT,
    prefix: Text = ABSENT,
    project: Text = ABSENT,
    cursor: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Limit = 50,
) -> FindingPage:
    """In the order in which they were found, in all states. `cursor` is the `next_cursor` of the
    page before. Needs the permission view_finding."""
    require(request, VIEW)
    found = matching(kind, prefix, project).filter(pk__gt=cursor).order_by("pk")
    page, more = first(found.filter(state=state) if state else found, limit)
    return FindingPage(
        items=[shown(each) for each in page], next_cursor=page[-1].pk if more else None
    )


@router.get("/{finding_id}", response={200: FindingShown, **refusals(404)})
def get_finding(
    request: HttpRequest, finding_id: Annotated[int, Path(ge=0, lt=2**63)]
) -> FindingShown:
    """One finding, with its evidence. Needs the permission view_finding."""
    require(request, VIEW)
    return shown(get_object_or_404(Finding, pk=finding_id))


@router.post("/actions/acknowledge", response={200: Decided, **refusals(404)})
def acknowledge(request: HttpRequest, asked: Acknowledge) -> Decided:
    """They may stay as they are, and the note says why. Needs the permissions view_finding and
    change_finding."""
    require_all(request, JUDGE)
    return told(action_result.acknowledge(chosen(asked), asked.note))


@router.post("/actions/reopen", response={200: Decided, **refusals(404)})
def reopen(request: HttpRequest, asked: Decide) -> Decided:
    """Take acknowledgements back: a filter without a state is about those that are acknowledged.
    Needs the permissions view_finding and change_finding."""
    require_all(request, JUDGE)
    return told(action_result.reopen(chosen(asked, State.ACKNOWLEDGED)))


@router.post("/actions/delete-orphans", response={202: Decided, **LOOKS})
def delete_orphans(
    request: HttpRequest, asked: DryRunnable, response: HttpResponse
) -> Status[Decided]:
    """Delete the objects of those that may go: a worker does it, in one deletion for each bucket,
    or plans to. When none may go, there is no deletion, and the status is 200. Needs the
    permissions view_finding and delete_r2object, or dry_run_cleanup instead for a dry run."""
    require_all(request, "storage_audit.dry_run_cleanup" if asked.dry_run else REMOVE)
    with place():
        decision = orphans.delete_orphans(chosen(asked), dry_run=asked.dry_run)
    with transaction.atomic():
        for operation in decision.operations:
            auth.log(request, operation, ADDITION, _("Deletion of orphans requested."))
        enqueue_on_commit(decision.operations)
    if not decision.operations:
        return Status(200, told(decision))
    response["Location"] = status_url(decision.operations[0])
    return Status(202, told(decision))


@router.post("/actions/adopt", response=LOOKS)
def adopt(request: HttpRequest, asked: Adopt) -> Decided:
    """Give the objects to a live project: they are deleted with it. At most 100 at once. Needs the
    permissions view_finding, change_r2object and delete_r2object."""
    require_all(request, TRACK, REMOVE)
    return look(asked, track_files.adopt, project_id=asked.project_id)


@router.post("/actions/track", response=LOOKS)
def track(request: HttpRequest, asked: Decide) -> Decided:
    """Have rows say what the bucket shows by now. At most 100 at once. Needs the permissions
    view_finding and change_r2object."""
    require_all(request, TRACK)
    return look(asked, track_files.track)


@router.post("/actions/untrack", response=LOOKS)
def untrack(request: HttpRequest, asked: Decide) -> Decided:
    """Remove the rows of objects that are seen to be missing. At most 100 at once. Needs the
    permissions view_finding and delete_r2object."""
    require_all(request, REMOVE)
    return look(asked, track_files.untrack)


@router.post("/actions/rename", response=LOOKS)
def rename(request: HttpRequest, asked: DryRunnable) -> Decided:
    """Copy misnamed objects to keys of the current layout, and then delete the old ones. At most
    100 at once; asked again, it goes on. Needs the permissions view_finding and
    change_r2object."""
    require_all(request, TRACK)
    return look(asked, actions.rename_objects, dry_run=asked.dry_run)


@router.post("/actions/abort-uploads", response=LOOKS)
def abort_uploads(request: HttpRequest, asked: DryRunnable) -> Decided:
    """Abort unfinished multipart uploads. At most 100 at once. Needs the permissions
    view_finding and delete_r2object."""
    require_all(request, REMOVE)
    return look(asked, actions.abort_uploads, dry_run=asked.dry_run)


def require_all(request: HttpRequest, *permissions: str) -> None:
    """Those of an action, and to see findings, as its answer shows keys and notes."""
    for permission in (VIEW, *permissions):
        require(request, permission)


def look(asked: Decide, decide: Callable[..., Decision], **how: Any) -> Decided:
    """Decide about some, while a place of those who ask the store is taken."""
    findings = chosen(asked)
    refuse_many(findings)
    with place():
        return told(decide(findings, **how))


def chosen(asked: Decide, usual: str = State.OPEN) -> FindingQuerySet:
    """Raises Problem when an id is of none."""
    which = asked.findings
    if isinstance(which, Filter):
        found = matching(which.kind, which.prefix, which.project)
        return found.filter(state=which.state or usual)
    found = Finding.objects.filter(pk__in=which)
    if unknown := set(which).difference(found.values_list("pk", flat=True)):
        raise Problem("not-found", _("There is no finding %s.") % min(unknown))
    return found


def matching(kind: str | None, prefix: str | None, project: str | None) -> FindingQuerySet:
    return Finding.objects.about(
        kinds=[kind] if kind else (), prefix=prefix or "", project_id=project or ""
    )


def shown(finding: Finding) -> FindingShown:
    ids = {"finding_id": "pk", "first_scan": "first_scan_id", "last_scan": "last_scan_id"}
    return FindingShown(
        **{name: getattr(finding, ids.get(name, name)) for name in FindingShown.model_fields}
    )


def told(decision: Decision) -> Decided:
    counts = {"left": len(decision.left), "results": len(decision.results)}
    return Decided(
        done=decision.done,
        dry_run=decision.is_plan,
        deletions=[
            OneDeletion(deletion_id=each.pk, bucket=each.bucket, status_url=status_url(each))
            for each in decision.operations
        ],
        results=[WhatBecame(**each._asdict()) for each in decision.results[:SHOWN]],
        left=[LeftAsItIs(**each._asdict()) for each in decision.left[:SHOWN]],
        counts=counts,
        is_cut=max(counts.values()) > SHOWN,
    )
