"""What the API answers. Keys and texts are as they are stored; show them as text, never as HTML."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from ninja import Field, Query, Schema

from storage_audit.items import CleanupItem
from storage_audit.observations import Diagnosis
from storage_audit.operations import CleanupOperation

# Of no declared type, as null is nothing that can be asked for.
ABSENT: Any = None
# No table holds text with a NUL in it.
Text = Annotated[str, Query(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]


class ProblemDetails(Schema):
    """https://www.rfc-editor.org/rfc/rfc9457"""

    type: str = Field(description="Which problem: urn:storage-audit: and its name.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do.")
    instance: str = Field(description="The address that was asked.")
    deletion_id: UUID | None = None
    errors: list[dict[str, Any]] = Field([], description="Each value that is not valid: why.")


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


class ProjectDeleted(Accepted):
    project_id: str
    deletions: list[OneDeletion] = Field(description="One for each bucket that has files of it.")


class Ran(Schema):
    """A command of wrangler; without an exit code it was killed, or could not be started."""

    stdout: str
    stderr: str
    exit_code: int | None
    reason: str = Field(description="Why there is no answer; empty when there is one.")


class WranglerLogin(Ran):
    is_authenticated: bool | None
    accounts: list[str]


class Buckets(Ran):
    buckets: list[str] | None


class VariableShown(Schema):
    is_set: bool
    shown: str
    source: str


class Environment(Schema):
    CLOUDFLARE_ACCOUNT_ID: str
    CLOUDFLARE_API_TOKEN: str
    R2_BUCKET_NAME: str
    WRANGLER_PATH: str
    variables: dict[str, VariableShown]


class Differences(Schema):
    only_in_app: list[str]
    only_in_script: list[str]


class FilesFound(Schema):
    project_id: str
    bucket: str = Field(description="That of the settings.")
    buckets: list[str] = Field(description="Where it looked.")
    files_found_by_app: list[str]
    files_found_by_script: list[str]
    differences: Differences
    counts: dict[str, int]
    is_cut: bool


class FilesRemaining(Schema):
    project_id: str
    buckets: list[str] = Field(description="Where both looked, or could not.")
    files_remaining_wrangler: list[str] | None
    files_remaining_s3: list[str] | None
    is_clean_wrangler: bool | None
    is_clean_s3: bool | None
    reason_wrangler: str = Field(description="Why it is null; empty when it is not.")
    reason_s3: str
    counts: dict[str, int | None]
    is_cut: bool


class Cleanup(Schema):
    deletion_id: UUID
    status_url: str
    project_id: str
    mode: str
    dry_run: bool
    result: DeletionDetails
    deletion_ids: list[UUID] = Field(description="One for each bucket that has files of it.")


class ProblemFound(Schema):
    status: str
    probe: str
    processes: list[str]
    summary: str
    advice: str
    readings: dict[str, Any]


class DifferenceFound(Schema):
    probe: str
    fact: str
    values: list[str] = Field(description="In the order of the reports.")


class Report(Schema):
    context: Diagnosis.Context
    host: str
    pid: int
    at: datetime
    of_this_run: bool
    probes: list[dict[str, Any]]


class Examination(Schema):
    run: UUID
    wrong: bool
    awaits_worker: bool = Field(description="A queue worker may still answer.")
    problems: list[ProblemFound]
    differences: list[DifferenceFound]
    reports: list[Report]
