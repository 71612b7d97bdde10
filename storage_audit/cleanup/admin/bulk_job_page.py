"""The page of a bulk job: its progress and its results."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib import admin
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.describe_cleanup import field_label
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.redaction import printable_text
from storage_audit.roles import refusal_reason
from storage_audit.ui.links import changelist_url, cleanup_url
from storage_audit.ui.model_admin import ReadOnlyAdmin

Action, Status = BulkJob.Action, Cleanup.Status
UNFINISHED_STATUSES = (Status.PENDING, Status.RUNNING, Status.RETRYING)
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
BULK_JOB_FACTS = ("id", "requested_by", "origin", "reason", "created_at", "finished_at")
MAX_NOTES_SHOWN = 200


@admin.register(BulkJob)
class BulkJobAdmin(ReadOnlyAdmin[BulkJob]):
    list_display = ("created_at", "action", "projects", "position", "requested_by", "finished_at")
    list_filter = ("action",)
    empty_list_text = gettext_lazy("No bulk job yet. Acting on many projects at once starts one.")
    ordering = ("-created_at", "pk")
    fields = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[BulkJob]:
        return super().get_queryset(request).defer("project_ids", "lives")

    def has_view_permission(self, request: HttpRequest, obj: BulkJob | None = None) -> bool:
        return may_view_bulk_jobs(request)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        job = context["original"]
        context |= {"title": capfirst(str(job)), "subtitle": None, **bulk_job_context(job)}
        context |= undo_all_context(request, job)
        return super().render_change_form(request, context, *args, **kwargs)


def may_view_bulk_jobs(request: HttpRequest) -> bool:
    """Whoever may see the cleanups may see what they were made for."""
    names = ("view_bulkjob", "view_cleanup")
    return any(request.user.has_perm(f"storage_audit.{name}") for name in names)


class StatusTotals(NamedTuple):
    """The cleanups with one status, or `RETRYING`: how many, how many with a message, and their
    totals."""

    status: str
    cleanups: int
    messages: int
    found: int
    found_bytes: int
    deleted: int
    deleted_bytes: int
    already_gone: int
    already_gone_bytes: int
    kept: int
    kept_bytes: int
    failed: int
    failed_bytes: int


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


def bulk_job_context(job: BulkJob) -> dict[str, Any]:
    sums = total_by_status(job)
    made = sum(each.cleanups for each in sums.values())
    under_way = sum(sums[status].cleanups for status in UNFINISHED_STATUSES if status in sums)
    return {
        "bulk_job": job,
        "is_live": not job.finished_at or under_way > 0,
        "sentence": " ".join(status_sentences(job, sums, made, under_way)),
        "made": made,
        "makes_cleanups": job.action != Action.UNDO,
        # What is not taken up yet has its place in the bar, too.
        "lines": list(status_lines(job, sums, made + job.projects - job.position)),
        "attention_lines": [*attention_lines(job, sums), *note_lines(job)],
        "totals": bulk_job_totals(job, sums),
        "all_cleanups_url": cleanup_list_url(job),
        "facts": list(bulk_job_facts(job)),
    }


def undo_all_context(request: HttpRequest, job: BulkJob) -> dict[str, Any]:
    """Of a bulk deletion: where all that can still be undone is undone, or why this person may
    not."""
    if job.action not in BulkJob.DELETING_ACTIONS or not job.cleanups.undoable().exists():
        return {}
    return {
        "undo_all_url": cleanup_list_url(job, decision="undoable"),
        "undo_all_refusal": refusal_reason(request, "undo_cleanup"),
    }


def total_by_status(job: BulkJob) -> dict[str, StatusTotals]:
    """The totals of its cleanups by status, from one aggregate."""
    sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in StatusTotals._fields[3:]}
    with_message = Count("pk", filter=~Q(message=""))
    groups = job.cleanups.order_by().values("status")
    groups = groups.annotate(cleanups=Count("pk"), messages=with_message, **sums)
    found = groups.values_list("status", "cleanups", "messages", *sums)
    return {row[0]: StatusTotals(*row) for row in found}


def bulk_job_facts(job: BulkJob) -> Iterator[tuple[Any, Any]]:
    for name in BULK_JOB_FACTS:
        if value := getattr(job, name):
            stopped = name == "finished_at" and job.stop_reason
            label = _("stopped") if stopped else field_label(job, name)
            yield label, printable_text(value) if isinstance(value, str) else value


def cleanup_list_url(job: BulkJob, **filters: object) -> str:
    return changelist_url("cleanup", bulk_job=job.pk, **filters)


def status_sentences(
    job: BulkJob, sums: dict[str, StatusTotals], made: int, under_way: int
) -> Iterator[str]:
    if job.action == Action.UNDO:
        yield describe_undo(job)
    elif job.stop_reason:
        text = _(
            "Stopped after %(position)d of %(projects)d projects: %(reason)s The other %(left)d"
            " were not deleted. To delete them, select them again."
        )
        left = job.projects - job.position
        numbers = {"position": job.position, "projects": job.projects, "left": left}
        yield text % {**numbers, "reason": job.stop_reason}
    elif job.action in BulkJob.DELETING_ACTIONS:
        yield describe_deletion(job, sums, made, under_way)
    elif not job.finished_at:
        text = _(
            "%(position)d of %(projects)d projects are taken up. The others follow. You can leave"
            " this page."
        )
        yield text % {"position": job.position, "projects": job.projects}
    elif under_way:
        text = _(
            "All projects are taken up. Of %(made)d cleanups, %(open)d are still to be done; you"
            " may leave this page."
        )
        yield text % {"open": under_way, "made": made}
    elif sums.keys() & {Status.BLOCKED, Status.FAILED}:
        yield _("Done, but for what was stopped or has failed.")
    else:
        yield _("Done: each project was looked at.")
    if again := sums.get(Status.RETRYING):
        text = _("Retried automatically, as the bucket did not answer or files are left: %d.")
        yield text % again.cleanups
    yield from describe_skipped(job)


def describe_undo(job: BulkJob) -> str:
    refused = job.notes.filter(is_refused=True).count()
    numbers = {"position": job.position, "projects": job.projects, "reason": job.stop_reason}
    numbers |= {"left": job.projects - job.position, "refused": refused}
    numbers |= {"undone": job.position - refused}
    if job.stop_reason:
        text = _(
            "Stopped after %(position)d of %(projects)d deletions: %(reason)s The other %(left)d"
            " were not undone. To undo them, select them again."
        )
    elif not job.finished_at:
        text = _(
            "%(position)d of %(projects)d deletions are taken up. The others follow. You can leave"
            " this page."
        )
    elif refused:
        text = _("Done. Deletions undone: %(undone)d. Not undone, see below: %(refused)d.")
    else:
        text = _("Done. Deletions undone: %(undone)d.")
    return text % numbers


def describe_deletion(
    job: BulkJob, sums: dict[str, StatusTotals], made: int, under_way: int
) -> str:
    if not job.finished_at:
        text = _(
            "%(position)d of %(projects)d projects are done. The others follow. You can leave this"
            " page."
        )
        return text % {"position": job.position, "projects": job.projects}
    if not made:
        return _("Done. No project was deleted.")
    if under_way:
        text = _(
            "The deletions are requested. %(open)d of %(made)d cleanups are not finished yet. You"
            " can leave this page."
        )
        return text % {"open": under_way, "made": made}
    if sums.keys() & {Status.BLOCKED, Status.FAILED}:
        return _("The deletions are done. Some cleanups need you: see below.")
    return _("Done. All cleanups are finished.")


def describe_skipped(job: BulkJob) -> Iterator[str]:
    """The projects that were left out."""
    if job.action == Action.UNDO:
        return  # Each of them has a note.
    made_of = job.cleanups.values("project_id").distinct().count()
    if job.position > made_of:
        text = _("Projects left out, as the log tells: %d.")
        if job.action in BulkJob.DELETING_ACTIONS:
            text = _("Not deleted by this bulk job: %d. The log says why.")
        yield text % (job.position - made_of)


def status_lines(job: BulkJob, sums: dict[str, StatusTotals], whole: int) -> Iterator[StatusLine]:
    before = 0
    for status, mark in STATUS_MARKS.items():
        if each := sums.get(status):
            x, width = (f"{100 * n / whole:.2f}%" for n in (before, each.cleanups))
            yield StatusLine(
                status, Status(status).label, each, x, width, mark, status_list_url(job, status)
            )
            before += each.cleanups


def status_list_url(job: BulkJob, status: str) -> str:
    return cleanup_list_url(job, status__exact=status)


def attention_lines(job: BulkJob, sums: dict[str, StatusTotals]) -> Iterator[AttentionLine]:
    texts = {
        Status.BLOCKED: _("Stopped; each says by what: %d"),
        Status.FAILED: _("Failed after hours of trying: %d"),
        Status.DIFFERS: _("Bucket and table differ, or there are leftover files: %d"),
    }
    for status, text in texts.items():
        if each := sums.get(status):
            yield AttentionLine(text % each.cleanups, status_list_url(job, status))
    plans = sums.get(Status.PLANNED)
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


def bulk_job_totals(job: BulkJob, sums: dict[str, StatusTotals]) -> list[tuple[str, int, int]]:
    """Objects and bytes of all its cleanups so far."""
    is_look = job.action == BulkJob.Action.VERIFY
    is_plan = job.action == BulkJob.Action.DRY_RUN
    labels = {
        "found": _("found"),
        "deleted": _("deleted"),
        "already_gone": _("already gone"),
        "kept": _("kept"),
        # What a plan would delete is not gone, and so counts as failed; what differs does too.
        "failed": _("different") if is_look else _("to be deleted") if is_plan else _("failed"),
    }

    if is_look:
        # What was not compared to the end does not differ.
        sums = {
            status: each if status == Status.DIFFERS else each._replace(failed=0, failed_bytes=0)
            for status, each in sums.items()
        }

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in sums.values())

    figures = [(label, total(name), total(f"{name}_bytes")) for name, label in labels.items()]
    return [figures[0], *(line for line in figures[1:] if line[1])]
