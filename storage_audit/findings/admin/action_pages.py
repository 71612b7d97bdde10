"""What the page shows on which staff confirm an action on findings."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from django import forms
from django.db.models import Count, Sum
from django.db.models.functions import Coalesce
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.cleanup.admin.forms import ProjectIdForm
from storage_audit.display_formats import (
    MAX_LINES_SHOWN,
    format_amount,
    format_bucket_key,
    format_key,
    format_projects,
    more_lines,
)
from storage_audit.findings.action_result import Skipped
from storage_audit.findings.actions import FindingAction
from storage_audit.findings.admin.note_form import NoteForm
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.findings.orphans import deletion_preview
from storage_audit.redaction import printable_text

NOTHING_TO_DO = gettext_lazy("This action can't change any of the selected findings.")


def selection_page(act: FindingAction, findings: FindingQuerySet) -> dict[str, Any]:
    fitting = findings.filter(kind__in=act.kinds, state=act.state)
    figures = fitting.aggregate(n=Count("pk"), size=Coalesce(Sum("size"), 0))
    projects = set(fitting.order_by().values_list("project_id", flat=True).distinct())
    facts = scope_lines(figures["n"], figures["size"], projects)
    if others := findings.count() - figures["n"]:
        text = ngettext(
            "%d finding will be skipped: this action does not fit its kind or state.",
            "%d findings will be skipped: this action does not fit their kind or state.",
            others,
        )
        facts.append(text % others)
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
    return {
        "heads": (_("File"), _("Kind"), _("State"), _("Size")),
        "rows": rows + more_lines(figures["n"] + others - len(rows)),
        **count_texts(act, figures["n"], facts),
    }


def dry_run_page(act: FindingAction, findings: FindingQuerySet) -> dict[str, Any]:
    """The page that shows a dry run; these actions take few findings, so it shows all."""
    decision = act.decide(findings, dry_run=True)
    return {
        "heads": (_("File"), _("What happens")),
        "figures": preview_digest(decision.results),
        "rows": [(format_key(key), printable_text(result)) for key, result in decision.results],
        **skipped_rows(decision.skipped, len(decision.skipped)),
        **count_texts(act, len(decision.results)),
    }


def deletion_page(act: FindingAction, findings: FindingQuerySet) -> dict[str, Any]:
    would = deletion_preview(findings, MAX_LINES_SHOWN)
    count = len(would.to_delete)
    first = Finding.objects.filter(pk__in=would.to_delete[:MAX_LINES_SHOWN])
    rows: list[tuple[Any, ...]] = [
        (
            format_bucket_key(one.bucket, one.key),
            one.project_id and printable_text(one.project_id),
            finding_size(one),
        )
        for one in first.order_by("bucket", "key", "pk")
    ]
    return {
        "figures": preview_digest(would.to_delete),
        "heads": (_("File"), _("Project"), _("Size")),
        "rows": rows + more_lines(count - len(rows)),
        **skipped_rows(would.skipped, would.skipped_count),
        **count_texts(act, count, scope_lines(count, would.total_bytes, would.projects)),
    }


def count_texts(act: FindingAction, count: int, facts: Collection[str] = ()) -> dict[str, Any]:
    """What the page says about so many findings; with none there is nothing to confirm."""
    if not count:
        return {"title": _("Nothing to do"), "button": "", "sentences": (NOTHING_TO_DO,)}
    return {
        "title": act.title % count,
        "button": act.button % count,
        "sentences": (*facts, *act.sentences),
    }


def scope_lines(count: int, size: int, projects: Collection[str | None]) -> list[str]:
    return [f"{format_amount(count, size)}. {format_projects(projects)}"] if count else []


def preview_digest(facts: Sequence[object]) -> str:
    """Identifies what a page showed, so that nothing else is confirmed."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def skipped_rows(left: list[Skipped], count: int) -> dict[str, Any]:
    title = ngettext("%d finding is skipped", "%d findings are skipped", count) % count
    rows: list[tuple[Any, ...]] = [
        (format_key(key), printable_text(reason)) for key, reason in left
    ]
    return {"left_title": title, "left": rows + more_lines(count - len(left))}


def finding_size(finding: Finding) -> str | None:
    return None if finding.size is None else filesizeformat(finding.size)


FORMS: dict[str, type[forms.Form]] = {"ignore": NoteForm, "assign": ProjectIdForm}
# What the page shows of an action beside the findings that are selected.
PREVIEWS: dict[str, Callable[[FindingAction, FindingQuerySet], dict[str, Any]]] = {
    "delete_objects": deletion_page,
    "rename": dry_run_page,
    "abort_uploads": dry_run_page,
}
