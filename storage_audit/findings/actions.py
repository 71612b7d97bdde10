"""What a person can do about findings. The admin, the API and the command read the table here."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.findings import rename
from storage_audit.findings.abort_uploads import abort_each
from storage_audit.findings.action_result import (
    Decision,
    FindingResult,
    Findings,
    ignore_findings,
    reopen_findings,
    select_findings,
)
from storage_audit.findings.models import Finding, Kind
from storage_audit.findings.orphans import delete_objects
from storage_audit.findings.track_files import (
    ASSIGNABLE_KINDS,
    TRACKABLE_KINDS,
    assign_objects,
    track_objects,
    untrack_rows,
)

CHANGE_FINDING, CHANGE_ROWS, DELETE_ROWS = "change_finding", "change_r2object", "delete_r2object"


def rename_objects(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Give the objects keys of the current key format; a dry run says which. Raises CannotConclude
    and StoreError; call it again to go on."""
    found, decision = (
        select_findings(findings).order_by("bucket", "key"),
        Decision(is_preview=dry_run),
    )
    for one in rename.plan_renames(found) if dry_run else rename.rename_each(found):
        if not decision.skip(one.finding, one.objection):
            decision.results.append(FindingResult(one.old, one.new))
    decision.done = len(decision.results)
    return decision


def abort_uploads(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Abort exactly these uploads. Raises CannotConclude and StoreError; call it again to go on."""
    found, decision = (
        select_findings(findings).order_by("bucket", "key", "pk"),
        Decision(is_preview=dry_run),
    )
    for one in abort_each(found, dry_run=dry_run):
        if not decision.skip(one.finding, one.objection):
            result = one.resolution or _("would be aborted")
            decision.results.append(FindingResult(one.finding.key, result))
    decision.done = len(decision.results)
    return decision


def preview_deletion(findings: Findings) -> Decision:
    return delete_objects(findings, dry_run=True)


@dataclass(frozen=True)
class FindingAction:
    """An action on findings, which needs all of its `permissions`. `label` names it in lists.
    One with a `button` is confirmed on a page with this `title` and these `sentences`, and
    `done_text` says what was done. One that `lists_bucket` takes few findings at once; one that
    does not `asks_store` needs no slot. `argument` is what `decide` wants to know beside the
    findings."""

    name: str
    decide: Callable[..., Decision]
    permissions: tuple[str, ...]
    label: Any
    title: Any
    done_text: Any
    sentences: tuple[Any, ...] = ()
    button: Any = ""
    argument: str = ""
    has_dry_run: bool = False
    lists_bucket: bool = False
    asks_store: bool = True
    kinds: Collection[str] = tuple(Kind)
    state: str = Finding.State.OPEN

    def is_allowed(self, request: HttpRequest) -> bool:
        return all(request.user.has_perm(f"storage_audit.{name}") for name in self.permissions)

    def is_offered(self, finding: Finding) -> bool:
        """Whether to offer it on the finding's page; it may still skip the finding."""
        return finding.kind in self.kinds and finding.state == self.state


IGNORE = FindingAction(
    "ignore",
    ignore_findings,
    (CHANGE_FINDING,),
    gettext_lazy("Ignore"),
    gettext_lazy("Ignore findings"),
    gettext_lazy("ignored"),
    (
        gettext_lazy(
            "They may stay as they are: they leave the list of what is open, and nothing in the"
            " bucket changes. “Reopen” takes it back."
        ),
    ),
    gettext_lazy("Ignore"),
    asks_store=False,
    argument="note",
)
REOPEN = FindingAction(
    "reopen",
    reopen_findings,
    (CHANGE_FINDING,),
    gettext_lazy("Reopen"),
    gettext_lazy("Reopen findings"),
    gettext_lazy("open again"),
    asks_store=False,
    state=Finding.State.IGNORED,
)
PREVIEW = FindingAction(
    "preview_deletion",
    preview_deletion,
    ("dry_run_cleanup",),
    gettext_lazy("Dry-run deletion of orphans"),
    gettext_lazy("Plan the deletion of orphans"),
    gettext_lazy("taken up: a dry run deletes nothing, and shows what would go"),
    kinds=[Kind.ORPHANED],
)
DELETE_OBJECTS = FindingAction(
    "delete_objects",
    delete_objects,
    (DELETE_ROWS,),
    gettext_lazy("Delete orphans"),
    gettext_lazy("Delete orphans?"),
    gettext_lazy(
        "taken up. A cleanup is deleting the files from R2. Its page shows when they are gone"
    ),
    (
        gettext_lazy(
            "A cleanup deletes these files from R2. It checks each again first and keeps to the"
            " limits. Its page shows when they are gone. This cannot be undone."
        ),
    ),
    gettext_lazy("Yes, delete"),
    kinds=[Kind.ORPHANED],
    has_dry_run=True,
)
ASSIGN = FindingAction(
    "assign",
    assign_objects,
    # An assigned object is deleted with its project.
    (CHANGE_ROWS, DELETE_ROWS),
    gettext_lazy("Assign to a project"),
    gettext_lazy("Assign to a project"),
    gettext_lazy("assigned: deleting the project now deletes these files too"),
    (
        gettext_lazy(
            "The objects are given to a project that exists. They stay where they are, and are"
            " deleted with it. Each is checked in the bucket first."
        ),
    ),
    gettext_lazy("Assign"),
    lists_bucket=True,
    kinds=ASSIGNABLE_KINDS,
    argument="project_id",
)
TRACK = FindingAction(
    "track",
    track_objects,
    (CHANGE_ROWS,),
    gettext_lazy("Track"),
    gettext_lazy("Track objects"),
    gettext_lazy("tracked: the table says what the bucket shows"),
    (
        gettext_lazy(
            "The table gets what the bucket shows of these objects by now. Nothing in the bucket"
            " changes."
        ),
    ),
    gettext_lazy("Track"),
    lists_bucket=True,
    kinds=TRACKABLE_KINDS,
)
UNTRACK = FindingAction(
    "untrack",
    untrack_rows,
    (DELETE_ROWS,),
    gettext_lazy("Remove the rows of missing objects"),
    gettext_lazy("Remove the rows of missing objects"),
    gettext_lazy("resolved: no row tells of what is missing any more"),
    (
        gettext_lazy(
            "The rows of objects that are seen to be missing are removed; what the upload recorded"
            " cannot be brought back. Where the object is there after all, the row stays."
        ),
    ),
    gettext_lazy("Yes, remove the rows"),
    lists_bucket=True,
    kinds=[Kind.MISSING],
)
RENAME = FindingAction(
    "rename",
    rename_objects,
    (CHANGE_ROWS,),
    gettext_lazy("Rename misnamed objects"),
    gettext_lazy("Rename misnamed objects?"),
    gettext_lazy("renamed"),
    (
        gettext_lazy(
            "Each object is copied to its new key, and the old one is deleted once the copy is"
            " seen. Links to the old keys break; an object that a row of another table names stays"
            " under its old name. It takes some seconds; if it is stopped, ask again, and it goes"
            " on."
        ),
    ),
    gettext_lazy("Yes, rename"),
    lists_bucket=True,
    kinds=[Kind.MISNAMED],
    has_dry_run=True,
)
ABORT = FindingAction(
    "abort_uploads",
    abort_uploads,
    (DELETE_ROWS,),
    gettext_lazy("Abort unfinished uploads"),
    gettext_lazy("Abort unfinished uploads?"),
    gettext_lazy("resolved"),
    (
        gettext_lazy(
            "What was uploaded of them so far is discarded, which cannot be undone. Objects that"
            " are there already stay."
        ),
    ),
    gettext_lazy("Yes, abort"),
    lists_bucket=True,
    kinds=[Kind.UNFINISHED],
    has_dry_run=True,
)


ACTIONS = (IGNORE, REOPEN, PREVIEW, DELETE_OBJECTS, ASSIGN, TRACK, UNTRACK, RENAME, ABORT)
