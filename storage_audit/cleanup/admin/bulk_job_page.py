"""The page of a bulk job: its progress and its results."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.bulk_job_text import explain_bulk_job
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.cleanup.models.bulk_job import StatusTotals
from storage_audit.display_formats import Answer
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import ReadOnlyAdmin
from storage_audit.ui.object_page import Button, ObjectPageAdmin

Action, Status = BulkJob.Action, Cleanup.Status
# What is drawn on the colour of each status, in a square of 8: colour alone never shows it.
# Lines and parts of the bar are in this order.
STATUS_MARKS: dict[str, str] = {
    Status.PLANNED: "M0 4H8",
    Status.PENDING: "M1 4H3M5 0H7",
    Status.RUNNING: "M4 0V8",
    Status.RETRYING: "M0 2H8M0 6H8",
    Status.CLEAN: "",
    Status.CLEAN_WITH_KEPT: "M-2 2 2-2M0 8 8 0M6 10 10 6",
    Status.DIFFERS: "M4 0V8M0 4H8",
    Status.FAILED: "M0 0 8 8M0 8 8 0",
    Status.BLOCKED: "M-2 6 2 10M0 0 8 8M6-2 10 2",
    Status.SUPERSEDED: "M3 4H5M4 3V5",
    Status.UNDONE: "M2 2H6M2 6H6",
    Status.CANCELLED: "M2 2 6 6M2 6 6 2",
}
MAX_NOTES_SHOWN = 200


@admin.register(BulkJob)
class BulkJobAdmin(ObjectPageAdmin[BulkJob], ReadOnlyAdmin[BulkJob]):
    list_display = ("created_at", "action", "projects", "position", "requested_by", "finished_at")
    list_filter = ("action",)
    empty_list_text = gettext_lazy("No bulk job yet. Acting on many projects at once starts one.")
    ordering = ("-created_at", "pk")
    facts = ("requested_by", "origin", "reason", "created_at", "finished_at", "id")
    has_history = False
    change_form_template = "admin/storage_audit/bulkjob/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[BulkJob]:
        return super().get_queryset(request).defer("project_ids", "lives")

    def has_view_permission(self, request: HttpRequest, obj: BulkJob | None = None) -> bool:
        return may_view_bulk_jobs(request)

    def page_title(self, job: BulkJob) -> str:
        return str(job)

    def page_links(self, request: HttpRequest, job: BulkJob) -> Iterator[Button]:
        if job.cleanups.exists():
            yield Button(_("Show the cleanups"), url=cleanup_list_url(job))

    def page_answer(self, job: BulkJob) -> Answer:
        return explain_bulk_job(job)

    def page_context(self, request: HttpRequest, job: BulkJob) -> dict[str, Any]:
        totals = job.totals
        makes_cleanups = job.action != Action.UNDO
        return super().page_context(request, job) | {
            "is_live": not job.finished_at or totals.under_way > 0,
            "requested_by": printable_text(job.requested_by),
            "has_none_yet": makes_cleanups and not totals and not job.finished_at,
            # What is not started yet has its place in the bar, too.
            "lines": list(status_lines(job, totals.made + job.projects - job.position)),
            "attention_lines": [*attention_lines(job), *note_lines(job)],
            "totals": bulk_job_totals(job) if totals else [],
            **undo_all_context(request, job),
        }


def may_view_bulk_jobs(request: HttpRequest) -> bool:
    """Whoever may see the cleanups may see what they were made for."""
    names = ("view_bulkjob", "view_cleanup")
    return any(request.user.has_perm(f"storage_audit.{name}") for name in names)


class StatusLine(NamedTuple):
    """The cleanups with one status, or `RETRYING`, and their part of the bar."""

    status: str
    label: Any
    totals: StatusTotals
    bar_x: str
    bar_width: str
    mark: str
    url: str


class AttentionLine(NamedTuple):
    """Something that waits for a person."""

    text: str
    url: str


def undo_all_context(request: HttpRequest, job: BulkJob) -> dict[str, Any]:
    """Of a bulk deletion: where all that can still be undone is undone, or why this person may
    not."""
    if job.action not in BulkJob.DELETING_ACTIONS or not job.cleanups.undoable().exists():
        return {}
    return {
        "undo_all_url": cleanup_list_url(job, decision="undoable"),
        "undo_all_refusal": refusal_reason(request, "undo_cleanup"),
    }


def cleanup_list_url(job: BulkJob, **filters: object) -> str:
    return changelist_url("cleanup", bulk_job=job.pk, **filters)


def status_lines(job: BulkJob, whole: int) -> Iterator[StatusLine]:
    before = 0
    for status, mark in STATUS_MARKS.items():
        if each := job.totals.get(status):
            x, width = (f"{100 * n / whole:.2f}%" for n in (before, each.cleanups))
            yield StatusLine(
                status, Status(status).label, each, x, width, mark, status_list_url(job, status)
            )
            before += each.cleanups


def status_list_url(job: BulkJob, status: str) -> str:
    return cleanup_list_url(job, status__exact=status)


def attention_lines(job: BulkJob) -> Iterator[AttentionLine]:
    texts = {
        Status.BLOCKED: _("Stopped; each says by what: %d"),
        Status.FAILED: _("Failed after hours of trying: %d"),
        Status.DIFFERS: _("Not as expected; each says how: %d"),
    }
    for status, text in texts.items():
        if each := job.totals.get(status):
            yield AttentionLine(text % each.cleanups, status_list_url(job, status))
    plans = job.totals.get(Status.PLANNED)
    if plans and plans.messages:
        text = _("A safety limit would block the deletion: %d")
        shown = {"status__exact": Status.PLANNED.value, "message__gt": ""}
        yield AttentionLine(text % plans.messages, cleanup_list_url(job, **shown))


def note_lines(job: BulkJob) -> Iterator[AttentionLine]:
    """Deletions that were not undone, and what did not come back with others."""
    notes = job.notes.order_by("-is_refused", "pk").select_related("cleanup")
    shown = notes.only("bulk_job", "text", "cleanup__kind", "cleanup__project_id")
    for note in shown[:MAX_NOTES_SHOWN]:
        text = f"{printable_text(note.cleanup.subject)}: {note.text}"
        yield AttentionLine(text, cleanup_url(note.cleanup_id))
    if (more := notes.count() - MAX_NOTES_SHOWN) > 0:
        text = _("%d more. This list shows the deletions that can still be undone.") % more
        yield AttentionLine(text, changelist_url("cleanup", decision="undoable"))


def bulk_job_totals(job: BulkJob) -> list[tuple[str, int, int]]:
    """Files and bytes of all its cleanups so far."""
    is_look, is_plan = job.action == Action.VERIFY, job.action == Action.DRY_RUN
    labels = {
        "found": _("found"),
        "deleted": _("deleted"),
        "already_gone": _("already gone"),
        "kept": _("kept"),
        # What a plan would delete is not gone, and so counts as failed; what differs does too.
        "failed": _("different") if is_look else _("to be deleted") if is_plan else _("failed"),
    }

    def total(name: str) -> int:
        # What was not compared to the end does not differ.
        differs_only = is_look and name.startswith("failed")
        counted = [each for each in job.totals.values() if each.status == Status.DIFFERS]
        return sum(
            getattr(each, name) for each in (counted if differs_only else job.totals.values())
        )

    figures = [(label, total(name), total(f"{name}_bytes")) for name, label in labels.items()]
    return [figures[0], *(line for line in figures[1:] if line[1])]
