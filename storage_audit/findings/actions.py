"""What a person can do about findings. The admin, the API and the command read the table here."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

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
    """An action on findings, which needs all of its `permissions`. `label` names it in lists, and
    `done_text` says what was done to how many. One with a `button` is confirmed on a page with this
    `title` and these `sentences`: title and button say for how many. One that `lists_bucket` takes
    few findings at once; one that does not `asks_store` needs no slot. `argument` is what `decide`
    wants to know beside the findings."""

    name: str
    decide: Callable[..., Decision]
    permissions: tuple[str, ...]
    label: Any
    done_text: Any
    title: Any = ""
    sentences: tuple[Any, ...] = ()
    button: Any = ""
    is_harmless: bool = False
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
    ngettext_lazy("Ignored %d finding.", "Ignored %d findings."),
    ngettext_lazy("Ignore %d finding?", "Ignore %d findings?"),
    (
        gettext_lazy("Nothing in the bucket changes, and later cleanups keep these files."),
        gettext_lazy("To take this back, choose “Reopen”."),
    ),
    ngettext_lazy("Ignore %d finding", "Ignore %d findings"),
    is_harmless=True,
    asks_store=False,
    argument="note",
)
REOPEN = FindingAction(
    "reopen",
    reopen_findings,
    (CHANGE_FINDING,),
    gettext_lazy("Reopen"),
    ngettext_lazy("Reopened %d finding.", "Reopened %d findings."),
    asks_store=False,
    state=Finding.State.IGNORED,
)
PREVIEW = FindingAction(
    "preview_deletion",
    preview_deletion,
    ("dry_run_cleanup",),
    gettext_lazy("Preview the deletion of leftover files"),
    ngettext_lazy(
        "Previewing the deletion of %d leftover file. Nothing is deleted.",
        "Previewing the deletion of %d leftover files. Nothing is deleted.",
    ),
    kinds=[Kind.ORPHANED],
)
DELETE_OBJECTS = FindingAction(
    "delete_objects",
    delete_objects,
    (DELETE_ROWS,),
    gettext_lazy("Delete leftover files"),
    ngettext_lazy(
        "A cleanup is deleting %d leftover file. Its page shows when the file is gone.",
        "A cleanup is deleting %d leftover files. Its page shows when they are gone.",
    ),
    ngettext_lazy("Delete %d leftover file?", "Delete %d leftover files?"),
    (
        gettext_lazy("A cleanup checks each file once more, then deletes it from R2."),
        gettext_lazy("You can't undo this. Safety limits still apply."),
    ),
    ngettext_lazy("Delete %d file", "Delete %d files"),
    kinds=[Kind.ORPHANED],
    has_dry_run=True,
)
ASSIGN = FindingAction(
    "assign",
    assign_objects,
    # An assigned object is deleted with its project.
    (CHANGE_ROWS, DELETE_ROWS),
    gettext_lazy("Assign to a project"),
    ngettext_lazy(
        "Assigned %d file. Deleting the project now deletes it too.",
        "Assigned %d files. Deleting the project now deletes them too.",
    ),
    ngettext_lazy("Assign %d file to a project?", "Assign %d files to a project?"),
    (
        gettext_lazy("The files stay where they are. Deleting the project will delete them too."),
        gettext_lazy("Each file is checked in the bucket first."),
    ),
    ngettext_lazy("Assign %d file", "Assign %d files"),
    is_harmless=True,
    lists_bucket=True,
    kinds=ASSIGNABLE_KINDS,
    argument="project_id",
)
TRACK = FindingAction(
    "track",
    track_objects,
    (CHANGE_ROWS,),
    gettext_lazy("Track"),
    ngettext_lazy("Tracked %d file.", "Tracked %d files."),
    ngettext_lazy("Track %d file?", "Track %d files?"),
    (gettext_lazy("We track the files as they are in the bucket. The bucket does not change."),),
    ngettext_lazy("Track %d file", "Track %d files"),
    is_harmless=True,
    lists_bucket=True,
    kinds=TRACKABLE_KINDS,
)
UNTRACK = FindingAction(
    "untrack",
    untrack_rows,
    (DELETE_ROWS,),
    gettext_lazy("Untrack missing files"),
    ngettext_lazy("Untracked %d missing file.", "Untracked %d missing files."),
    ngettext_lazy("Untrack %d missing file?", "Untrack %d missing files?"),
    (
        gettext_lazy("What the uploads recorded about these files is lost. You can't undo this."),
        gettext_lazy("A file that is in the bucket after all stays tracked."),
    ),
    ngettext_lazy("Untrack %d file", "Untrack %d files"),
    lists_bucket=True,
    kinds=[Kind.MISSING],
)
RENAME = FindingAction(
    "rename",
    rename_objects,
    (CHANGE_ROWS,),
    gettext_lazy("Rename files with old names"),
    ngettext_lazy("Renamed %d file:", "Renamed %d files:"),
    ngettext_lazy("Rename %d file?", "Rename %d files?"),
    (
        gettext_lazy(
            "Each file is copied to its new name. The old file is deleted once the copy is"
            " confirmed."
        ),
        gettext_lazy("Links to the old names stop working. Files in use keep their old names."),
        gettext_lazy("This takes some seconds. If it is interrupted, rename again to continue."),
    ),
    ngettext_lazy("Rename %d file", "Rename %d files"),
    lists_bucket=True,
    kinds=[Kind.MISNAMED],
    has_dry_run=True,
)
ABORT = FindingAction(
    "abort_uploads",
    abort_uploads,
    (DELETE_ROWS,),
    gettext_lazy("Abort unfinished uploads"),
    ngettext_lazy("%d unfinished upload is gone:", "%d unfinished uploads are gone:"),
    ngettext_lazy("Abort %d unfinished upload?", "Abort %d unfinished uploads?"),
    (
        gettext_lazy("The parts uploaded so far are discarded. You can't undo this."),
        gettext_lazy("Complete files stay."),
    ),
    ngettext_lazy("Abort %d upload", "Abort %d uploads"),
    lists_bucket=True,
    kinds=[Kind.UNFINISHED],
    has_dry_run=True,
)


ACTIONS = (IGNORE, REOPEN, PREVIEW, DELETE_OBJECTS, ASSIGN, TRACK, UNTRACK, RENAME, ABORT)
