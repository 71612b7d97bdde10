"""What complete scans found, and what is decided about it."""

from contextlib import nullcontext
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
from storage_audit.api.auth import require_permission
from storage_audit.api.cursor_pages import page_oldest_first
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import PUBLIC_ERRORS, Problem
from storage_audit.api.schemas import NOT_GIVEN, Limit, Number, StrictSchema, Text, enum_schema
from storage_audit.cleanup.api import status_url
from storage_audit.cleanup.api_schemas import DeletionLink
from storage_audit.cleanup.make_cleanups import enqueue_on_commit
from storage_audit.concurrency import acquire_slot
from storage_audit.findings import actions
from storage_audit.findings.action_result import ActionRefused, Decision, refuse_too_many
from storage_audit.findings.actions import FindingAction
from storage_audit.findings.models import Finding, FindingQuerySet, Kind

router = Router(tags=["findings"])

VIEW_FINDING = "storage_audit.view_finding"
ENTRIES_SHOWN = 1000

PUBLIC_ERRORS[ActionRefused] = "refused"

FindingKind = Annotated[Kind, enum_schema(Kind)]
FindingState = Annotated[Finding.State, enum_schema(Finding.State)]


class FindingDetails(Schema):
    finding_id: int
    kind: FindingKind
    state: FindingState
    bucket: str
    key: str
    escaped: bool = Field(description="The key has characters that are shown escaped.")
    upload_id: str = Field(description="The ID of an unfinished upload.")
    project_id: str | None
    size: int | None
    etag: str
    last_modified: datetime | None
    evidence: str
    note: str = Field(description="Why it is ignored, or how it was resolved.")
    decided_by: str
    decided_at: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    first_scan: UUID | None = Field(
        description="Null where no scan has seen it yet: a person cancelled the file's deletion."
    )
    last_scan: UUID | None


class FindingPage(Schema):
    items: list[FindingDetails]
    next_cursor: int | None


class FindingFilter(StrictSchema):
    """All findings that match every field. Without a state: the open ones."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    kind: FindingKind = NOT_GIVEN
    state: FindingState = NOT_GIVEN
    prefix: Text = NOT_GIVEN
    project: Text = NOT_GIVEN

    @model_validator(mode="after")
    def require_condition(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(_("Choose findings by kind, state, prefix or project."))
        return self


Ids = Annotated[list[Number], Field(min_length=1, max_length=1000)]


class ActionRequest(StrictSchema):
    findings: Ids | FindingFilter = Field(
        description="IDs of findings, or a filter with at least one field."
    )


class DryRunRequest(ActionRequest):
    dry_run: StrictBool = Field(False, description="Show what would happen, and change nothing.")


class IgnoreRequest(ActionRequest):
    note: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")] = Field(
        description="Why they are ignored."
    )


class AssignRequest(ActionRequest):
    project_id: Text


class SkippedFinding(Schema):
    key: str
    reason: str


class FindingOutcome(Schema):
    key: str
    result: str


class ActionResponse(Schema):
    done: int = Field(description="Findings that are settled or covered by the deletions.")
    dry_run: bool = Field(description="A preview: nothing was changed.")
    deletions: list[DeletionLink] = Field(
        description="One deletion for each bucket. Follow their progress."
    )
    results: list[FindingOutcome] = Field(
        description="Details, such as each renamed file's new key."
    )
    left: list[SkippedFinding] = Field(description="Findings that were skipped, and why.")
    counts: dict[str, int]
    is_cut: bool = Field(
        description="The lists hold at most 1,000 entries; the counts are complete."
    )


ACTION_RESPONSES = {200: ActionResponse, **problem_responses(404, 409, 502)}


@router.get("", response={200: FindingPage, **problem_responses()})
def list_findings(
    request: HttpRequest,
    kind: FindingKind = NOT_GIVEN,
    state: FindingState = NOT_GIVEN,
    prefix: Text = NOT_GIVEN,
    project: Text = NOT_GIVEN,
    cursor: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Limit = 50,
) -> FindingPage:
    """Oldest first, in all states. `cursor` is the `next_cursor` of the previous page. Needs the
    permission view_finding."""
    require_permission(request, VIEW_FINDING)
    found = filter_findings(kind, prefix, project)
    found = found.filter(state=state) if state else found
    page, next_cursor = page_oldest_first(found, cursor, limit)
    return FindingPage(items=[finding_details(each) for each in page], next_cursor=next_cursor)


@router.get("/{finding_id}", response={200: FindingDetails, **problem_responses(404)})
def get_finding(
    request: HttpRequest, finding_id: Annotated[int, Path(ge=0, lt=2**63)]
) -> FindingDetails:
    """One finding, with its evidence. Needs the permission view_finding."""
    require_permission(request, VIEW_FINDING)
    return finding_details(get_object_or_404(Finding, pk=finding_id))


@router.post("/actions/ignore", response={200: ActionResponse, **problem_responses(404)})
def ignore_findings(request: HttpRequest, asked: IgnoreRequest) -> ActionResponse:
    """Ignore findings: cleanups keep their files. The note says why. Needs the permissions
    view_finding and change_finding."""
    return run_action(request, asked, actions.IGNORE, note=asked.note)


@router.post("/actions/reopen", response={200: ActionResponse, **problem_responses(404)})
def reopen_findings(request: HttpRequest, asked: ActionRequest) -> ActionResponse:
    """Reopen ignored findings. A filter without a state selects the ignored ones. Needs the
    permissions view_finding and change_finding."""
    return run_action(request, asked, actions.REOPEN)


@router.post("/actions/delete", response={202: ActionResponse, **ACTION_RESPONSES})
def delete_objects(
    request: HttpRequest, asked: DryRunRequest, response: HttpResponse
) -> Status[ActionResponse]:
    """Delete leftover files. A worker runs one deletion per bucket, or plans it in a dry run. When
    no file can be deleted, there is no deletion, and the status is 200. Needs the permissions
    view_finding and delete_r2object; for a dry run dry_run_cleanup instead."""
    decision = decide_on_findings(
        request, asked, actions.PREVIEW if asked.dry_run else actions.DELETE_OBJECTS
    )
    with transaction.atomic():
        for cleanup in decision.cleanups:
            auth.log_action(request, cleanup, ADDITION, _("Deletion of leftover files requested."))
        enqueue_on_commit(decision.cleanups)
    if not decision.cleanups:
        return Status(200, action_response(decision))
    response["Location"] = status_url(decision.cleanups[0])
    return Status(202, action_response(decision))


@router.post("/actions/assign", response=ACTION_RESPONSES)
def assign_objects(request: HttpRequest, asked: AssignRequest) -> ActionResponse:
    """Assign files to an existing project: deleting the project deletes them too. At most 100 at a
    time. Needs the permissions view_finding, change_r2object and delete_r2object."""
    return run_action(request, asked, actions.ASSIGN, project_id=asked.project_id)


@router.post("/actions/track", response=ACTION_RESPONSES)
def track_objects(request: HttpRequest, asked: ActionRequest) -> ActionResponse:
    """Track files as they are in the bucket. At most 100 at a time. Needs the permissions
    view_finding and change_r2object."""
    return run_action(request, asked, actions.TRACK)


@router.post("/actions/untrack", response=ACTION_RESPONSES)
def untrack_rows(request: HttpRequest, asked: ActionRequest) -> ActionResponse:
    """Untrack files that are missing from the bucket. At most 100 at a time. Needs the permissions
    view_finding and delete_r2object."""
    return run_action(request, asked, actions.UNTRACK)


@router.post("/actions/rename", response=ACTION_RESPONSES)
def rename_objects(request: HttpRequest, asked: DryRunRequest) -> ActionResponse:
    """Rename files with old names: copy each to its new key, then delete the old one. At most 100
    at a time; repeat an interrupted request to continue. Needs the permissions view_finding and
    change_r2object."""
    return run_action(request, asked, actions.RENAME, dry_run=asked.dry_run)


@router.post("/actions/abort-uploads", response=ACTION_RESPONSES)
def abort_uploads(request: HttpRequest, asked: DryRunRequest) -> ActionResponse:
    """Abort unfinished multipart uploads. At most 100 at a time. Needs the permissions
    view_finding and delete_r2object."""
    return run_action(request, asked, actions.ABORT, dry_run=asked.dry_run)


def run_action(
    request: HttpRequest, asked: ActionRequest, act: FindingAction, **how: Any
) -> ActionResponse:
    return action_response(decide_on_findings(request, asked, act, **how))


def decide_on_findings(
    request: HttpRequest, asked: ActionRequest, act: FindingAction, **how: Any
) -> Decision:
    """Requires the permissions of the action, and view_finding, as its answer shows keys and
    notes."""
    for permission in ("view_finding", *act.permissions):
        require_permission(request, f"storage_audit.{permission}")
    findings = requested_findings(asked, act.state)
    if act.lists_bucket:
        refuse_too_many(findings)
    with acquire_slot() if act.asks_store else nullcontext():
        return act.decide(findings, **how)


def requested_findings(asked: ActionRequest, default_state: str) -> FindingQuerySet:
    """Raises Problem when an id is of none."""
    which = asked.findings
    if isinstance(which, FindingFilter):
        found = filter_findings(which.kind, which.prefix, which.project)
        return found.filter(state=which.state or default_state)
    found = Finding.objects.filter(pk__in=which)
    if unknown := set(which).difference(found.values_list("pk", flat=True)):
        raise Problem("not-found", _("There is no finding with the ID %s.") % min(unknown))
    return found


def filter_findings(kind: str | None, prefix: str | None, project: str | None) -> FindingQuerySet:
    return Finding.objects.about(
        kinds=[kind] if kind else (), prefix=prefix or "", project_id=project or ""
    )


def finding_details(finding: Finding) -> FindingDetails:
    ids = {"finding_id": "pk", "first_scan": "first_scan_id", "last_scan": "last_scan_id"}
    return FindingDetails(
        **{name: getattr(finding, ids.get(name, name)) for name in FindingDetails.model_fields}
    )


def action_response(decision: Decision) -> ActionResponse:
    counts = {"left": len(decision.skipped), "results": len(decision.results)}
    return ActionResponse(
        done=decision.done,
        dry_run=decision.is_preview,
        deletions=[
            DeletionLink(deletion_id=each.pk, bucket=each.bucket, status_url=status_url(each))
            for each in decision.cleanups
        ],
        results=[FindingOutcome(**each._asdict()) for each in decision.results[:ENTRIES_SHOWN]],
        left=[SkippedFinding(**each._asdict()) for each in decision.skipped[:ENTRIES_SHOWN]],
        counts=counts,
        is_cut=max(counts.values()) > ENTRIES_SHOWN,
    )
