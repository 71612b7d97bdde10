"""Scans of the bucket: what they saw, and how they go on."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from django.contrib.admin.models import ADDITION, CHANGE
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from ninja import Field, Router, Schema, Status
from pydantic import ConfigDict, StrictBool, model_validator

from storage_audit.api import auth
from storage_audit.api.auth import require_permission
from storage_audit.api.cursor_pages import page_newest_first
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import PUBLIC_ERRORS, Problem
from storage_audit.api.schemas import NOT_GIVEN, Limit, Number, StrictSchema, Text, enum_schema
from storage_audit.conf import conf
from storage_audit.findings.models import Kind
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.scan import start
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import (
    NO_WORKERS_TEXT,
    NOT_A_PROJECT_TEXT,
    ONE_SCOPE_TEXT,
    QUEUED_TEXT,
    RESUMED_TEXTS,
    STOPPED_TEXT,
    send_workers,
)

router = Router(tags=["scans"])

VIEW_SCAN = "storage_audit.view_bucketscan"
ADD_SCAN, CHANGE_SCAN = "storage_audit.add_bucketscan", "storage_audit.change_bucketscan"
FIELD_SOURCES = {"scan_id": "pk", "message": "message"}
COMPUTED_FIELDS = ("status_url", "over", "differences")


PUBLIC_ERRORS[start.ScanTooExpensive] = "refused"

Purpose = Annotated[BucketScan.Purpose, enum_schema(BucketScan.Purpose)]
ScanStatus = Annotated[BucketScan.Status, enum_schema(BucketScan.Status)]


class Scan(Schema):
    scan_id: UUID
    status_url: str
    bucket: str
    purpose: Purpose
    prefix: str
    project_id: str | None
    since: datetime | None
    dry_run: bool
    accept_fewer: bool
    max_requests: int | None
    requested_by: str
    status: ScanStatus
    over: bool = Field(description="The scan has ended.")
    message: str
    in_key_order: bool
    requests: int
    listed: int
    listed_bytes: int
    added: int
    updated: int
    unchanged: int
    differences: dict[str, int]
    started_at: datetime
    finished_at: datetime | None


class ScanPage(Schema):
    items: list[Scan]
    next_cursor: UUID | None


class ScanRequest(StrictSchema):
    """Scans the whole bucket, the keys with a prefix, or the places of one project's files."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["prefix", "project_id"]}})

    purpose: Purpose
    prefix: Text = NOT_GIVEN
    project_id: Text = NOT_GIVEN
    dry_run: StrictBool = False
    max_requests: Number = Field(
        NOT_GIVEN, description="The limit of requests to the store; by default the setting."
    )
    accept_fewer: StrictBool = Field(
        False, description="Accept a listing with far fewer objects than expected."
    )

    @model_validator(mode="after")
    def require_one_scope(self) -> Self:
        if self.prefix and self.project_id:
            raise ValueError(str(ONE_SCOPE_TEXT))
        return self


class ResumeRequest(StrictSchema):
    max_requests: Number = Field(
        NOT_GIVEN, description="The limit of requests to the store; by default as before."
    )
    accept_fewer: StrictBool = False


class ScanAccepted(Schema):
    message: str
    scan_id: UUID
    status_url: str


@router.get("", response={200: ScanPage, **problem_responses(404)})
def list_scans(
    request: HttpRequest,
    purpose: Purpose = NOT_GIVEN,
    status: ScanStatus = NOT_GIVEN,
    cursor: UUID = NOT_GIVEN,
    limit: Limit = 50,
) -> ScanPage:
    """Newest first. `cursor` is the `next_cursor` of the previous page. Needs the permission
    view_bucketscan."""
    require_permission(request, VIEW_SCAN)
    wanted = {"purpose": purpose, "status": status}
    found = BucketScan.objects.filter(**{name: each for name, each in wanted.items() if each})
    page, next_cursor = page_newest_first(found, "started_at", cursor, limit)
    return ScanPage(items=[scan_details(each) for each in page], next_cursor=next_cursor)


@router.get("/{scan_id}", response={200: Scan, **problem_responses(404)})
def get_scan(request: HttpRequest, scan_id: UUID) -> Scan:
    """The scan's progress and what it found. The findings appear when the scan is complete. Needs
    the permission view_bucketscan."""
    require_permission(request, VIEW_SCAN)
    return scan_details(get_object_or_404(BucketScan, pk=scan_id))


@router.post("", response={202: ScanAccepted, **problem_responses(404, 409)})
def start_scan(
    request: HttpRequest, asked: ScanRequest, response: HttpResponse
) -> Status[ScanAccepted]:
    """Compare the bucket with the tracked files; a backfill also tracks new files. Several scans
    may run at once. Needs the permission add_bucketscan."""
    require_permission(request, ADD_SCAN)
    refuse_without_workers()
    if asked.project_id and not get_key_formats().is_project_id(asked.project_id):
        raise Problem("not-found", NOT_A_PROJECT_TEXT % printable_text(asked.project_id))
    others = BucketScan.objects.running().filter(bucket=conf().bucket).count()
    with transaction.atomic():
        scan = start.start_scan(**{**asked.dict(), "prefix": asked.prefix or ""})
        auth.log_action(request, scan, ADDITION, _("Scan requested."))
    text = str(QUEUED_TEXT)
    if others:
        also = ngettext(
            "%d other scan of this bucket is running.",
            "%d other scans of this bucket are running.",
            others,
        )
        text += " " + also % others
    return accept_scan(scan, text, response)


@router.post("/{scan_id}/stop", response={200: Scan, **problem_responses(404, 409)})
def stop_scan(request: HttpRequest, scan_id: UUID) -> Scan:
    """Stop a running scan. It writes no findings, and can be resumed within a day of its start.
    Needs the permission change_bucketscan."""
    require_permission(request, CHANGE_SCAN)
    scan = get_object_or_404(BucketScan, pk=scan_id)
    scan.stop(STOPPED_TEXT % request.user.get_username())
    if scan.status != BucketScan.Status.STOPPED:
        text = _("Scan %(id)s is not running (%(status)s), so nothing was stopped.")
        values = {"id": scan.pk, "status": scan.get_status_display()}
        raise Problem("wrong-state", text % values)
    auth.log_action(request, scan, CHANGE, _("Stopped."))
    return scan_details(scan)


@router.post("/{scan_id}/resume", response={202: ScanAccepted, **problem_responses(404, 409)})
def resume_scan(
    request: HttpRequest, scan_id: UUID, asked: ResumeRequest, response: HttpResponse
) -> Status[ScanAccepted]:
    """Continue a stopped or failed scan, or add a worker to a running one. After an hour without
    activity the scan starts over. Needs the permission change_bucketscan."""
    require_permission(request, CHANGE_SCAN)
    refuse_without_workers()
    scan = get_object_or_404(BucketScan, pk=scan_id)
    if reason := start.other_bucket_reason(scan):
        raise Problem("wrong-state", reason)
    with transaction.atomic():
        starts_again = scan.resume(max_requests=asked.max_requests, accept_fewer=asked.accept_fewer)
        auth.log_action(request, scan, CHANGE, _("Resumed."))
    return accept_scan(scan, str(RESUMED_TEXTS[starts_again]), response)


def refuse_without_workers() -> None:
    if conf().sync:
        raise Problem("refused", str(NO_WORKERS_TEXT))


def accept_scan(scan: BucketScan, text: str, response: HttpResponse) -> Status[ScanAccepted]:
    send_workers(scan, 1)
    response["Location"] = status_url(scan)
    return Status(202, ScanAccepted(message=text, scan_id=scan.pk, status_url=status_url(scan)))


def status_url(scan: BucketScan) -> str:
    return reverse("storage_audit_api:get_scan", args=[scan.pk])


def scan_details(scan: BucketScan) -> Scan:
    same = set(Scan.model_fields).difference(COMPUTED_FIELDS)
    facts: dict[str, Any] = {name: getattr(scan, FIELD_SOURCES.get(name, name)) for name in same}
    return Scan(
        **facts,
        status_url=status_url(scan),
        over=scan.status != BucketScan.Status.RUNNING,
        differences={kind: getattr(scan, kind) for kind in Kind},
    )
