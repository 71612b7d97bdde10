"""What the page shows on which staff confirm an action on findings."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

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
from storage_audit.findings import actions
from storage_audit.findings.action_result import Decision, Skipped
from storage_audit.findings.admin.note_form import NoteForm
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.findings.orphans import deletion_preview
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
FORMS: dict[str, type[forms.Form]] = {"ignore": NoteForm, "assign": ProjectIdForm}
# What the page shows of an action beside the findings that are selected.
PREVIEWS = {
    "delete_objects": deletion_page,
    "rename": dry_run_page(actions.rename_objects),
    "abort_uploads": dry_run_page(actions.abort_uploads),
}
