"""What staff can decide about findings, and what the confirmation page shows."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from django import forms
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.admin.forms import ProjectIdForm
from storage_audit.display_formats import (
    MAX_LINES_SHOWN,
    format_amount,
    format_bucket_key,
    format_key,
    more_lines,
)
from storage_audit.findings import action_result, actions, track_files
from storage_audit.findings.action_result import Decision, Skipped
from storage_audit.findings.admin.note_form import NoteForm
from storage_audit.findings.models import Finding, FindingQuerySet, Kind
from storage_audit.findings.orphans import delete_objects, deletion_preview
from storage_audit.redaction import printable_text


def selection_page(findings: FindingQuerySet) -> dict[str, Any]:
    first = findings.order_by("bucket", "key", "pk")[:MAX_LINES_SHOWN]
    rows: list[tuple[Any, ...]] = [
        (
            format_bucket_key(one.bucket, one.key),
            one.get_kind_display(),
            one.get_state_display(),
            finding_size(one),
        )
        for one in first
    ]
    heads = (_("Key"), _("Kind"), _("State"), _("Size"))
    return {"heads": heads, "rows": rows + more_lines(findings.count() - len(rows))}


def dry_run_page(decide: Callable[..., Decision]) -> Callable[[FindingQuerySet], dict[str, Any]]:
    """The page that shows a dry run; these actions take few findings, so it shows all."""

    def plan(findings: FindingQuerySet) -> dict[str, Any]:
        decision = decide(findings, dry_run=True)
        return {
            "heads": (_("Key"), _("What becomes of it")),
            "figures": preview_digest(decision.results),
            "rows": [(format_key(key), printable_text(result)) for key, result in decision.results],
            **skipped_rows(decision.skipped, len(decision.skipped)),
            **({} if decision.results else NOTHING_TO_DO),
        }

    return plan


def deletion_page(findings: FindingQuerySet) -> dict[str, Any]:
    would = deletion_preview(findings, MAX_LINES_SHOWN)
    return {
        "figures": preview_digest(would.to_delete),
        "rows": [(format_amount(len(would.to_delete), would.total_bytes),)],
        "heads": (_("To be deleted from R2"),),
        **skipped_rows(would.skipped, would.skipped_count),
        **({} if would.to_delete else NOTHING_TO_DO),
    }


def preview_digest(facts: Sequence[object]) -> str:
    """Identifies what a page showed, so that nothing else is confirmed."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def skipped_rows(left: list[Skipped], count: int) -> dict[str, Any]:
    title = ngettext("%d stays as it is", "%d stay as they are", count) % count
    rows: list[tuple[Any, ...]] = [
        (format_key(key), printable_text(reason)) for key, reason in left
    ]
    return {"left_title": title, "left": rows + more_lines(count - len(left))}


def finding_size(finding: Finding) -> str | None:
    return None if finding.size is None else filesizeformat(finding.size)


# For a page with nothing to confirm.
NOTHING_TO_DO: dict[str, Any] = {
    "rows": (),
    "button": "",
    "sentences": (gettext_lazy("Nothing can be done: each of these stays as it is."),),
}


class FindingAction(NamedTuple):
    """An action on findings. `done_text` says what was done; `preview` gives what the confirmation
    page shows. One that `lists_bucket` takes few findings at once; one that does not `asks_store`
    needs no slot."""

    name: str
    decide: Callable[..., Decision]
    title: Any
    done_text: Any
    sentences: tuple[Any, ...] = ()
    button: Any = ""
    form: type[forms.Form] = forms.Form
    needs_confirmation: bool = True
    lists_bucket: bool = False
    asks_store: bool = True
    preview: Callable[[FindingQuerySet], dict[str, Any]] = selection_page
    kinds: Collection[str] = tuple(Kind)
    state: str = Finding.State.OPEN

    def is_offered(self, finding: Finding) -> bool:
        """Whether to offer it on the finding's page; it may still skip the finding."""
        return finding.kind in self.kinds and finding.state == self.state


def request_preview(findings: FindingQuerySet) -> Decision:
    return delete_objects(findings, dry_run=True)


IGNORE = FindingAction(
    "ignore",
    action_result.ignore_findings,
    gettext_lazy("Ignore findings"),
    gettext_lazy("ignored"),
    (
        gettext_lazy(
            "They may stay as they are: they leave the list of what is open, and nothing in the"
            " bucket changes. “Reopen” takes it back."
        ),
    ),
    gettext_lazy("Ignore"),
    NoteForm,
    asks_store=False,
)
REOPEN = FindingAction(
    "reopen",
    action_result.reopen_findings,
    gettext_lazy("Reopen findings"),
    gettext_lazy("open again"),
    needs_confirmation=False,
    asks_store=False,
    state=Finding.State.IGNORED,
)
PREVIEW = FindingAction(
    "preview_deletion",
    request_preview,
    gettext_lazy("Plan the deletion of orphans"),
    gettext_lazy("taken up: a dry run deletes nothing, and shows what would go"),
    needs_confirmation=False,
    kinds=[Kind.ORPHANED],
)
DELETE_OBJECTS = FindingAction(
    "delete_objects",
    delete_objects,
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
    preview=deletion_page,
    kinds=[Kind.ORPHANED],
)
ASSIGN = FindingAction(
    "assign",
    track_files.assign_objects,
    gettext_lazy("Assign to a project"),
    gettext_lazy("assigned: deleting the project now deletes these files too"),
    (
        gettext_lazy(
            "The objects are given to a project that exists. They stay where they are, and are"
            " deleted with it. Each is checked in the bucket first."
        ),
    ),
    gettext_lazy("Assign"),
    ProjectIdForm,
    lists_bucket=True,
    kinds=track_files.ASSIGNABLE_KINDS,
)
TRACK = FindingAction(
    "track",
    track_files.track_objects,
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
    kinds=track_files.TRACKABLE_KINDS,
)
UNTRACK = FindingAction(
    "untrack",
    track_files.untrack_rows,
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
    actions.rename_objects,
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
    preview=dry_run_page(actions.rename_objects),
    kinds=[Kind.MISNAMED],
)
ABORT = FindingAction(
    "abort_uploads",
    actions.abort_uploads,
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
    preview=dry_run_page(actions.abort_uploads),
    kinds=[Kind.UNFINISHED],
)


ACTIONS = (IGNORE, REOPEN, PREVIEW, DELETE_OBJECTS, ASSIGN, TRACK, UNTRACK, RENAME, ABORT)
