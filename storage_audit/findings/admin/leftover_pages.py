"""The page of leftover files: each once, with the reason. It joins findings with what verifications
found."""

from collections.abc import Callable, Iterator
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.models import CleanupItem
from storage_audit.findings.actions import (
    ASSIGN,
    DELETE_OBJECTS,
    IGNORE,
    PREVIEW,
    FindingAction,
)
from storage_audit.findings.leftover_projects import read_projects, select_leftovers
from storage_audit.findings.leftovers import find_leftovers, group_by_object
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.findings.orphans import attach_cleanups, orphan_skip_reason
from storage_audit.redaction import printable_text
from storage_audit.roles import permission_advice
from storage_audit.ui import downloads
from storage_audit.ui.model_admin import ModelAdmin

PAGE_SIZE = 50
# On all leftover files of a project.
PROJECT_ACTIONS = (DELETE_OBJECTS, PREVIEW, ASSIGN, IGNORE)
SOURCE_MODELS = ("finding", "cleanup")
EXPORT_COLUMNS = ("bucket", "key", "size", "reason", "evidence", "finding_id", "cleanup_id")
VIEW_PERMISSIONS = ("storage_audit.view_finding", "storage_audit.view_cleanup")


class Leftover(NamedTuple):
    key: str
    bucket: str
    size: int | None
    reason: str
    evidence: str
    source: Any
    model: str

    @property
    def place(self) -> tuple[str, str]:
        return self.key, self.bucket


class PageEdge(NamedTuple):
    """The place, in the order of keys and buckets, where a page begins or ends."""

    key: str
    bucket: str
    is_end: bool

    def beyond(self, key: str, bucket: str) -> Q:
        """A filter for the page's side of the edge, by the fields of these names."""
        way = "lt" if self.is_end else "gt"
        further = Q(**{f"{key}__{way}": self.key})
        further |= Q(**{key: self.key, f"{bucket}__{way}": self.bucket})
        # This condition alone lets an index find the place.
        return further & Q(**{f"{key}__{way}e": self.key})

    def ordering(self, *fields: str) -> list[str]:
        """The nearest come first."""
        return [f"-{field}" if self.is_end else field for field in fields]


FIRST_EDGE = PageEdge("", "", is_end=False)


def show_leftovers(
    request: HttpRequest, admin: ModelAdmin[Finding], *, is_file_list: bool
) -> HttpResponse:
    if not request.user.has_perms(VIEW_PERMISSIONS):
        raise PermissionDenied
    request.current_app = admin.admin_site.name
    template, context = (
        ("files", page_context(requested_edge(request)))
        if is_file_list
        else ("projects", projects_context(request))
    )
    context |= {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "title": _("Leftover files"),
        "is_file_list": is_file_list,
    }
    name = f"admin/storage_audit/finding/leftover_{template}.html"
    return TemplateResponse(request, name, context)


def projects_context(request: HttpRequest) -> dict[str, Any]:
    after = request.GET.get("after", "")
    projects, has_more = read_projects(after if is_storable(after) else "")
    # One page with nothing to delete yet is all that there is to know.
    is_too_early = not (after or has_more or any(one.ripe for one in projects))
    allowed = [act for act in PROJECT_ACTIONS if act.is_allowed(request)]
    refused = [
        (act.label, permission_advice(act.permissions[-1]))
        for act in PROJECT_ACTIONS
        if act not in allowed
    ]
    return {
        "projects": projects,
        "is_first": not after,
        "next_project": projects[-1].project_id if has_more else None,
        "actions": [act for act in allowed if act is not DELETE_OBJECTS or not is_too_early],
        "is_too_early": is_too_early,
        "refused": refused,
        "has_verified": find_leftovers().exists(),
    }


def act_on_projects(
    request: HttpRequest, run_action: Callable[[FindingQuerySet, FindingAction], Any]
) -> HttpResponse:
    """Run an action on all leftover files of the selected projects; it asks first."""
    if not request.user.has_perms(VIEW_PERMISSIONS):
        raise PermissionDenied
    act = next((one for one in PROJECT_ACTIONS if one.name == request.POST.get("action")), None)
    if not act:
        raise Http404
    if not act.is_allowed(request):
        raise PermissionDenied
    # Else it would be taken for a program that names the findings itself, and needs no question.
    asked = request.POST.copy()
    asked["select_across"] = "1"
    request.POST = asked  # type: ignore[assignment]
    # Quoted, as a browser changes line breaks.
    ids = [each for each in map(unquote, request.POST.getlist("project")) if is_storable(each)]
    is_all = "all" in request.POST
    if not ids and not is_all:
        messages.warning(request, _("Nothing was done: select a project first."))
        return redirect("admin:storage_audit_leftovers")
    answer: HttpResponse | None = run_action(select_leftovers(ids, is_all=is_all), act)
    return answer or redirect("admin:storage_audit_leftovers")


def requested_edge(request: HttpRequest) -> PageEdge:
    asked = request.GET
    is_end = "before" in asked
    edge = PageEdge(asked.get("before" if is_end else "after", ""), asked.get("bucket", ""), is_end)
    # No key has such a text, and PostgreSQL would raise an error.
    return edge if is_storable(edge.key) and is_storable(edge.bucket) else FIRST_EDGE


def page_context(edge: PageEdge) -> dict[str, Any]:
    rows, more = read_page(edge)
    is_first = bool(rows) and not more if edge.is_end else not any(edge)
    is_last = not edge.is_end and not more
    return {
        "rows": list(map(visible_leftover, rows)),
        "previous": rows[0] if rows and not is_first else None,
        "next": rows[-1] if rows and not is_last else None,
        "is_first": is_first,
    }


def read_page(edge: PageEdge) -> tuple[list[Leftover], bool]:
    """The files of one page, in the order of keys, and whether there are more."""
    found = sorted(
        [*orphan_leftovers(edge), *verification_leftovers(edge)],
        key=leftover_place,
        reverse=edge.is_end,
    )
    more = found[PAGE_SIZE].place if len(found) > PAGE_SIZE else None
    # Two files share a place when one is shown escaped; they stay on one page.
    rows = takewhile(lambda left: left.place != more, found)
    return sorted(rows, key=leftover_place), more is not None


def leftover_place(left: Leftover) -> tuple[str, str]:
    return left.place


def visible_leftover(left: Leftover) -> Leftover:
    return left._replace(
        key=printable_text(left.key),
        bucket=printable_text(left.bucket),
        reason=printable_text(left.reason),
        evidence=printable_text(left.evidence),
    )


def orphan_leftovers(edge: PageEdge) -> Iterator[Leftover]:
    may_go = Exists(Finding.objects.deletable().filter(pk=OuterRef("pk")))
    orphaned = Finding.objects.orphaned().filter(edge.beyond("key", "bucket"))
    ordered = orphaned.annotate(may_go=may_go).order_by(*edge.ordering("key", "bucket", "pk"))
    some = list(ordered[: PAGE_SIZE + 1])
    for _bucket, alike in groupby(sorted(some, key=finding_bucket), key=finding_bucket):
        attach_cleanups(alike)
    for one in some:
        reason = orphan_reason(one)
        yield Leftover(one.key, one.bucket, one.size, reason, one.evidence, one, "finding")


def finding_bucket(finding: Finding) -> str:
    return finding.bucket


def orphan_reason(finding: Any) -> str:
    text = _("The project was deleted or is unknown.")
    may_go = _("You can delete the file: open its finding.")
    return f"{text} {orphan_skip_reason(finding) or may_go}"


def verification_leftovers(edge: PageEdge) -> Iterator[Leftover]:
    beyond = edge.beyond("identity", "cleanup__bucket")
    objects = group_by_object(find_leftovers().filter(beyond))
    ordered = objects.order_by(*edge.ordering("identity", "cleanup__bucket"))
    latest = [each["latest"] for each in ordered[: PAGE_SIZE + 1]]
    for item in CleanupItem.objects.filter(pk__in=latest).select_related("cleanup"):
        cleanup = item.cleanup
        yield Leftover(
            item.identity,
            cleanup.bucket,
            item.size,
            item.reason or cleanup.message,
            item.owner_evidence,
            cleanup,
            "cleanup",
        )


def download_leftovers(request: HttpRequest, form: str) -> StreamingHttpResponse:
    """All pages of it. Raises PermissionDenied, and Http404."""
    if not request.user.has_perms(VIEW_PERMISSIONS):
        raise PermissionDenied
    if form not in downloads.CONTENT_TYPES:
        raise Http404(form)
    return downloads.file_response(
        form, "leftover-files", EXPORT_COLUMNS, map(export_row, all_leftovers())
    )


def all_leftovers() -> Iterator[Leftover]:
    rows, more = read_page(FIRST_EDGE)
    yield from rows
    while more:
        rows, more = read_page(PageEdge(*rows[-1].place, is_end=False))
        yield from rows


def export_row(left: Leftover) -> list[Any]:
    ids = (left.source.pk if left.model == each else None for each in SOURCE_MODELS)
    return [left.bucket, left.key, left.size, left.reason, left.evidence, *ids]
