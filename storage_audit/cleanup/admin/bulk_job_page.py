"""What was asked for of many projects at once: how far it is, and what came of it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib import admin
from django.db.models import Case, Count, Q, QuerySet, Sum, Value, When
from django.http import HttpRequest, HttpResponse
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.cleanup_text import DIFFERENCES_FOUND
from storage_audit.cleanup.describe import label_of
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.redaction import visible
from storage_audit.ui.links import list_of
from storage_audit.ui.model_admin import ReadOnlyAdmin

Status = CleanupOperation.Status
# Of those that are incomplete the ones that are tried again.
AGAIN = "again"
UNDER_WAY = (Status.PENDING, Status.RUNNING, AGAIN)
# What is drawn on the colour of each status, in a square of 8: nothing is told by colour alone.
# Lines and parts of the bar are in this order.
MARKS: dict[str, str] = {
    Status.PLANNED: "M0 4H8",
    Status.PENDING: "M1 4H3M5 0H7",
    Status.RUNNING: "M4 0V8",
    AGAIN: "M0 2H8M0 6H8",
    Status.CLEAN: "",
    Status.CLEAN_WITH_PROTECTED: "M-2 2 2-2M0 8 8 0M6 10 10 6",
    Status.INCOMPLETE: "M4 0V8M0 4H8",
    Status.FAILED: "M0 0 8 8M0 8 8 0",
    Status.BLOCKED: "M-2 6 2 10M0 0 8 8M6-2 10 2",
    Status.SUPERSEDED: "M3 4H5M4 3V5",
}
LABELS = {**dict(Status.choices), AGAIN: gettext_lazy("to be tried again")}
FACTS = ("id", "requested_by", "origin", "created_at", "finished_at")


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin[Job]):
    list_display = ("created_at", "action", "projects", "position", "requested_by", "finished_at")
    list_filter = ("action",)
    ordering = ("-created_at", "pk")
    fields = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        return super().get_queryset(request).defer("project_ids", "lives")

    def has_view_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return may_see_jobs(request)

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        job = context["original"]
        context |= {"title": capfirst(str(job)), "subtitle": None, **page(job)}
        return super().render_change_form(request, context, *args, **kwargs)


def may_see_jobs(request: HttpRequest) -> bool:
    """Whoever may see the operations may see what they were made for."""
    names = ("view_job", "view_cleanupoperation")
    return any(request.user.has_perm(f"storage_audit.{name}") for name in names)


class StatusSums(NamedTuple):
    """The operations with one status, or `AGAIN`: how many, how many with a message, and their
    books."""

    status: str
    operations: int
    messages: int
    found: int
    found_bytes: int
    deleted: int
    deleted_bytes: int
    already_absent: int
    already_absent_bytes: int
    protected: int
    protected_bytes: int
    failed: int
    failed_bytes: int


class Line(NamedTuple):
    """The operations with one status, or `AGAIN`; `x` and `width` are their part of the bar."""

    status: str
    label: Any
    sums: StatusSums
    x: str
    width: str
    mark: str
    url: str


class Need(NamedTuple):
    """Something that waits for a person."""

    text: str
    url: str


def page(job: Job) -> dict[str, Any]:
    sums = sum_by_status(job)
    made = sum(each.operations for each in sums.values())
    under_way = sum(sums[status].operations for status in UNDER_WAY if status in sums)
    return {
        "job": job,
        "is_live": not job.finished_at or under_way > 0,
        "sentence": " ".join(sentences(job, sums, made, under_way)),
        "made": made,
        # What is not taken up yet has its place in the bar, too.
        "lines": list(lines(job, sums, made + job.projects - job.position)),
        "needs": list(needs(job, sums)),
        "books": books(job, sums),
        "all_operations": operations_of(job),
        "facts": list(facts(job)),
    }


def sum_by_status(job: Job) -> dict[str, StatusSums]:
    """What its operations with each status, or `AGAIN`, have in their books, from one aggregate."""
    again = When(status=Status.INCOMPLETE, next_attempt_at__isnull=False, then=Value(AGAIN))
    sums: dict[str, Any] = {f"sum_{name}": Sum(name) for name in StatusSums._fields[3:]}
    with_message = Count("pk", filter=~Q(error=""))
    groups = job.operations.order_by().values(group=Case(again, default="status"))
    groups = groups.annotate(operations=Count("pk"), messages=with_message, **sums)
    found = groups.values_list("group", "operations", "messages", *sums)
    return {row[0]: StatusSums(*row) for row in found}


def facts(job: Job) -> Iterator[tuple[Any, Any]]:
    for name in FACTS:
        if value := getattr(job, name):
            stopped = name == "finished_at" and job.stop_reason
            label = _("stopped") if stopped else label_of(job, name)
            yield label, visible(value) if isinstance(value, str) else value


def operations_of(job: Job, **filters: object) -> str:
    return list_of("cleanupoperation", job=job.pk, **filters)


def sentences(job: Job, sums: dict[str, StatusSums], made: int, under_way: int) -> Iterator[str]:
    if job.stop_reason:
        text = _(
            "Stopped after %(position)d of %(projects)d projects: %(reason)s The other %(left)d"
            " were not deleted. To delete them, select them again."
        )
        left = job.projects - job.position
        numbers = {"position": job.position, "projects": job.projects, "left": left}
        yield text % {**numbers, "reason": job.stop_reason}
    elif job.action in Job.DELETIONS:
        yield describe_deletion(job, sums, made, under_way)
    elif not job.finished_at:
        text = _(
            "%(position)d of %(projects)d projects are taken up. The others follow. You can leave"
            " this page."
        )
        yield text % {"position": job.position, "projects": job.projects}
    elif under_way:
        text = _(
            "All projects are taken up. Of %(made)d operations, %(open)d are still to be done; you"
            " may leave this page."
        )
        yield text % {"open": under_way, "made": made}
    elif sums.keys() & {Status.BLOCKED, Status.FAILED}:
        yield _("Done, but for what was stopped or has failed.")
    else:
        yield _("Done: each project was looked at.")
    if again := sums.get(AGAIN):
        text = _(
            "To be tried again by themselves, as the bucket could not be asked or something"
            " remains: %d."
        )
        yield text % again.operations
    yield from left_out(job)


def describe_deletion(job: Job, sums: dict[str, StatusSums], made: int, under_way: int) -> str:
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


def left_out(job: Job) -> Iterator[str]:
    """What was taken up and came to nothing."""
    made_of = job.operations.values("project_id").distinct().count()
    if job.position > made_of:
        text = _("Projects left out, as the log tells: %d.")
        if job.action in Job.DELETIONS:
            text = _("Not deleted by this job: %d. The log says why.")
        yield text % (job.position - made_of)


def lines(job: Job, sums: dict[str, StatusSums], whole: int) -> Iterator[Line]:
    before = 0
    for status, mark in MARKS.items():
        if each := sums.get(status):
            x, width = (f"{100 * n / whole:.2f}%" for n in (before, each.operations))
            yield Line(status, label(job, status), each, x, width, mark, list_with(job, status))
            before += each.operations


def label(job: Job, status: str) -> Any:
    found = job.action == Job.Action.VERIFY and status == Status.INCOMPLETE
    return DIFFERENCES_FOUND if found else LABELS[status]


def list_with(job: Job, status: str) -> str:
    if status not in (AGAIN, Status.INCOMPLETE):
        return operations_of(job, status__exact=status)
    over = {"next_attempt_at__isnull": status != AGAIN}
    return operations_of(job, **over, status__exact=Status.INCOMPLETE.value)


def needs(job: Job, sums: dict[str, StatusSums]) -> Iterator[Need]:
    texts = {
        Status.BLOCKED: _("Stopped; each says by what: %d"),
        Status.FAILED: _("Failed after hours of trying: %d"),
    }
    if job.action == Job.Action.VERIFY:
        texts[Status.INCOMPLETE] = _("Bucket and table differ, or something was left behind: %d")
    for status, text in texts.items():
        if each := sums.get(status):
            yield Need(text % each.operations, list_with(job, status))
    plans = sums.get(Status.PLANNED)
    if plans and plans.messages:
        text = _("A safety limit would block the deletion: %d")
        shown = {"status__exact": Status.PLANNED.value, "error__gt": ""}
        yield Need(text % plans.messages, operations_of(job, **shown))


def books(job: Job, sums: dict[str, StatusSums]) -> list[tuple[str, int, int]]:
    """Objects and bytes of all its operations, as far as these are."""
    is_look = job.action == Job.Action.VERIFY
    is_plan = job.action == Job.Action.DRY_RUN
    labels = {
        "found": _("found"),
        "deleted": _("deleted"),
        "already_absent": _("already absent"),
        "protected": _("protected"),
        # What a plan would delete is not gone, and so counts as failed; what differs does too.
        "failed": _("different") if is_look else _("to be deleted") if is_plan else _("failed"),
    }

    if is_look:
        # What was not compared to the end does not differ.
        sums = {
            status: each if status == Status.INCOMPLETE else each._replace(failed=0, failed_bytes=0)
            for status, each in sums.items()
        }

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in sums.values())

    figures = [(label, total(name), total(f"{name}_bytes")) for name, label in labels.items()]
    return [figures[0], *(line for line in figures[1:] if line[1])]
