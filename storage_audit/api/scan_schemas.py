"""What the API answers about scans and findings, and what can be asked for. Keys and texts are as
they are stored; show them as text, never as HTML."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from django.db.models import TextChoices
from django.utils.translation import gettext as _
from ninja import Field, Schema
from pydantic import BeforeValidator, ConfigDict, StrictBool, WithJsonSchema, model_validator

from storage_audit.api.schemas import ABSENT, OneDeletion, Text
from storage_audit.findings import Finding, Kind
from storage_audit.scans import BucketScan


def no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(_("This is no number."))
    return value


Number = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(no_flag)]


def choices(of: type[TextChoices]) -> WithJsonSchema:
    """Written out: of those that are named, the description has one of a name, and deletions have a
    Kind and a Status."""
    return WithJsonSchema({"type": "string", "enum": of.values})


FindingKind = Annotated[Kind, choices(Kind)]
FindingState = Annotated[Finding.State, choices(Finding.State)]
Purpose = Annotated[BucketScan.Purpose, choices(BucketScan.Purpose)]
ScanStatus = Annotated[BucketScan.Status, choices(BucketScan.Status)]


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


class Asked(Schema):
    """A name that there is not may have been meant to ask for a dry run: it is refused."""

    model_config = ConfigDict(extra="forbid")


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
    ceiling: int | None
    requested_by: str
    status: ScanStatus
    over: bool = Field(description="Nothing more happens by itself.")
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


class NewScan(Asked):
    """Of the whole bucket, of the keys with a prefix, or of those where files of a project can
    be."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["prefix", "project_id"]}})

    purpose: Purpose
    prefix: Text = ABSENT
    project_id: Text = ABSENT
    dry_run: StrictBool = False
    ceiling: Number = Field(ABSENT, description="Requests that it may take; else the setting.")
    accept_fewer: StrictBool = Field(
        False, description="Believe a listing that shows far fewer objects than there should be."
    )

    @model_validator(mode="after")
    def has_one_scope(self) -> Self:
        if self.prefix and self.project_id:
            raise ValueError(_("Give a prefix or a project, and not both."))
        return self


class Resume(Asked):
    ceiling: Number = Field(ABSENT, description="Requests that it may take; else as before.")
    accept_fewer: StrictBool = False


class ScanAccepted(Schema):
    message: str
    scan_id: UUID
    status_url: str
