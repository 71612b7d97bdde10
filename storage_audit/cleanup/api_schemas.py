"""What the API says of deletions, and what it takes."""

from datetime import datetime
from typing import Any
from uuid import UUID

from ninja import Field, Schema

from storage_audit.api.schemas import StrictSchema, Text
from storage_audit.cleanup.models import Cleanup, CleanupItem

# No table holds it.
WITHOUT_NUL = r"^[^\x00]*$"


class Deletion(Schema):
    deletion_id: UUID
    status_url: str
    kind: Cleanup.Kind
    trigger: Cleanup.Trigger
    project_id: str | None
    bucket: str
    discovery: Cleanup.Discovery
    strategy: Cleanup.Strategy
    dry_run: bool
    status: Cleanup.Status
    over: bool = Field(description="Nothing more happens until a person requests it.")
    requested_by: str
    requested_from: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None
    held_until: datetime | None = Field(
        description="No file is deleted before this time. Until then you can undo the deletion."
    )
    first_request_at: datetime | None = Field(
        description="When we sent the first delete request. You can't undo the deletion after that."
    )
    decided_by: str = Field(description="Who undid, cancelled or erased the deletion.")
    decided_at: datetime | None
    decision_reason: str
    cancelled_at: datetime | None


class Pause(Schema):
    """While paused, no file is deleted. Plans, verifications and scans continue."""

    deletion_id: UUID | None = Field(
        description="The paused deletion; null if all deletions are paused."
    )
    paused_by: str
    reason: str
    paused_at: datetime


class DeletionPage(Schema):
    items: list[Deletion]
    next_cursor: UUID | None
    paused: Pause | None = Field(description="The pause of all deletions; null if there is none.")


class Amount(Schema):
    objects: int = 0
    bytes: int = 0


class Totals(Schema):
    """The files by outcome. When `final` is true, `found` is the sum of `deleted`, `already_gone`,
    `kept` and `failed`."""

    final: bool
    found: Amount
    to_delete: Amount = Amount()
    deleting: Amount = Amount()
    deleted: Amount = Amount()
    already_gone: Amount = Amount()
    kept: Amount = Amount()
    failed: Amount = Amount()


class Event(Schema):
    at: datetime
    step: str
    message: str
    data: dict[str, Any]


class DeletionDetails(Deletion):
    meaning: list[str] = Field(description="What the status means and what happens next.")
    message: str
    follows: UUID | None = Field(
        description="The deletion that this verification or follow-up check belongs to."
    )
    paused: Pause | None = Field(
        description="The pause that stops this deletion; null if there is none."
    )
    plan_digest: str
    totals: Totals
    timeline: list[Event]
    earlier_events: bool = Field(
        description="True if the timeline has more than the latest events, shown here."
    )


class Item(Schema):
    id: int
    key: str
    escaped: bool = Field(description="The key has characters that are shown escaped.")
    size: int | None
    etag: str
    last_modified: datetime | None
    found_in: CleanupItem.FoundIn
    outcome: CleanupItem.Outcome
    owner_evidence: str
    reason: str
    store_answer: str
    attempts: int
    changed_at: datetime


class ItemPage(Schema):
    items: list[Item]
    next_cursor: int | None


class DeletionLink(Schema):
    deletion_id: UUID
    bucket: str
    status_url: str


class PauseDeletions(StrictSchema):
    reason: Text
    deletion_id: UUID | None = Field(
        None, description="The deletion to pause. By default, all are paused."
    )


class Paused(Schema):
    paused: Pause
    requests_under_way: int = Field(
        description="Requests that were already sent and may still delete files."
    )
    not_written: list[str] = Field(description="Buckets where we could not write the pause object.")


class PauseState(Schema):
    """What will be deleted when you resume. Send `confirm` within ten minutes to resume exactly
    this."""

    paused: Pause | None = Field(description="Null if deletions are not paused.")
    deletions: int = 0
    objects: int = 0
    bytes: int = 0
    over_limits: str = Field(
        default="", description="Why resuming needs approval; empty if it does not."
    )
    confirm: str = ""


class ResumeDeletions(StrictSchema):
    confirm: Text
    deletion_id: UUID | None = Field(
        None, description="The deletion to resume. By default, all are resumed."
    )
    over_limits: bool = Field(
        False, description="Approve going over the safety limit. Also needs force_cleanup."
    )


class Resumed(Schema):
    message: str


class Accepted(Schema):
    message: str
    deletion_id: UUID
    status_url: str


class OptionalReason(StrictSchema):
    reason: str = Field(
        "",
        max_length=1000,
        pattern=WITHOUT_NUL,
        description="The reason, which is recorded with the deletion.",
    )


class GivenReason(StrictSchema):
    reason: str = Field(
        min_length=1,
        max_length=1000,
        pattern=WITHOUT_NUL,
        description="The reason, which is recorded with the deletion.",
    )


class Undone(Schema):
    message: str
    deletion_id: UUID
    status_url: str
    project_id: str | None
    restored: dict[str, int] = Field(description="The number of restored rows of each model.")
    left_out: list[str] = Field(description="A sentence about each row that was not restored.")


class Decided(Schema):
    message: str
    deletions: list[DeletionLink] = Field(
        description="The deletions that continue; empty if none does."
    )
