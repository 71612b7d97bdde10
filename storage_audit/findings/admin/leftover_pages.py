"""Each object that is left behind, once, with the reason: a page that neither of the two tables
that know of them could be alone."""

from collections.abc import Iterator
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import storable
from storage_audit.cleanup.models import CleanupItem
from storage_audit.findings.leftovers import find_leftovers, group_by_object
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import why_it_stays, with_cleanups
from storage_audit.redaction import visible
from storage_audit.ui import downloads
from storage_audit.ui.model_admin import ModelAdmin

A_PAGE = 50
TOLD_BY = ("finding", "cleanupoperation")
EXPORTED = ("bucket", "key", "size", "reason", "evidence", "finding_id", "operation_id")
SEEN_BY = ("storage_audit.view_finding", "storage_audit.view_cleanupoperation")


class Left(NamedTuple):
    key: str
    bucket: str
    size: int | None
    reason: str
    evidence: str
    told_by: Any
    model: str

    @property
    def place(self) -> tuple[str, str]:
        return self.key, self.bucket


class Edge(NamedTuple):
    """The place, in the order of keys and buckets, after which a page begins, or before which it
    ends."""

    key: str
    bucket: str
    is_end: bool

    def beyond(self, key: str, bucket: str) -> Q:
        """What lies on the page's side of it, by the fields of these names."""
        way = "lt" if self.is_end else "gt"
        further = Q(**{f"{key}__{way}": self.key})
        further |= Q(**{key: self.key, f"{bucket}__{way}": self.bucket})
        # By this alone an index leads there.
        return further & Q(**{f"{key}__{way}e": self.key})

    def order(self, *fields: str) -> list[str]:
        """What is nearest to it comes first."""
        return [f"-{field}" if self.is_end else field for field in fields]


FIRST = Edge("", "", is_end=False)


def view(request: HttpRequest, admin: ModelAdmin[Finding]) -> HttpResponse:
    if not request.user.has_perms(SEEN_BY):
        raise PermissionDenied
    request.current_app = admin.admin_site.name
    context = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "title": _("Left behind"),
        **page(edge_of(request)),
    }
    return TemplateResponse(request, "admin/storage_audit/finding/leftovers.html", context)


def edge_of(request: HttpRequest) -> Edge:
    asked = request.GET
    is_end = "before" in asked
    edge = Edge(asked.get("before" if is_end else "after", ""), asked.get("bucket", ""), is_end)
    # No object is found at another place, and PostgreSQL takes it for an error of the program.
    return edge if storable(edge.key) and storable(edge.bucket) else FIRST


def page(edge: Edge) -> dict[str, Any]:
    rows, more = nearest(edge)
    is_first = bool(rows) and not more if edge.is_end else not any(edge)
    is_last = not edge.is_end and not more
    return {
        "rows": list(map(shown, rows)),
        "previous": rows[0] if rows and not is_first else None,
        "next": rows[-1] if rows and not is_last else None,
        "is_first": is_first,
    }


def nearest(edge: Edge) -> tuple[list[Left], bool]:
    """Those of one page, in the order of keys, and whether there are more beyond them."""
    found = sorted([*orphans(edge), *undeleted(edge)], key=place, reverse=edge.is_end)
    more = found[A_PAGE].place if len(found) > A_PAGE else None
    # There are two in a place where one is shown escaped: they stay on one page.
    rows = takewhile(lambda left: left.place != more, found)
    return sorted(rows, key=place), more is not None


def place(left: Left) -> tuple[str, str]:
    return left.place


def shown(left: Left) -> Left:
    return left._replace(
        key=visible(left.key),
        bucket=visible(left.bucket),
        reason=visible(left.reason),
        evidence=visible(left.evidence),
    )


def orphans(edge: Edge) -> Iterator[Left]:
    may_go = Exists(Finding.objects.deletable().filter(pk=OuterRef("pk")))
    orphaned = Finding.objects.orphaned().filter(edge.beyond("key", "bucket"))
    ordered = orphaned.annotate(may_go=may_go).order_by(*edge.order("key", "bucket", "pk"))
    some = list(ordered[: A_PAGE + 1])
    for _bucket, alike in groupby(sorted(some, key=bucket_of), key=bucket_of):
        with_cleanups(alike)
    for one in some:
        reason = why_orphaned(one)
        yield Left(one.key, one.bucket, one.size, reason, one.evidence, one, "finding")


def bucket_of(finding: Finding) -> str:
    return finding.bucket


def why_orphaned(finding: Any) -> str:
    text = _("Its project is no more, or was never known, and no cleanup took it.")
    may_go = _("It may be deleted: “Delete orphans” on its finding’s page or in the list.")
    return f"{text} {why_it_stays(finding) or may_go}"


def undeleted(edge: Edge) -> Iterator[Left]:
    beyond = edge.beyond("identity", "operation__bucket")
    objects = group_by_object(find_leftovers().filter(beyond))
    ordered = objects.order_by(*edge.order("identity", "operation__bucket"))
    latest = [each["latest"] for each in ordered[: A_PAGE + 1]]
    for item in CleanupItem.objects.filter(pk__in=latest).select_related("operation"):
        operation = item.operation
        yield Left(
            item.identity,
            operation.bucket,
            item.size,
            item.reason or operation.error,
            item.evidence,
            operation,
            "cleanupoperation",
        )


def download(request: HttpRequest, form: str) -> StreamingHttpResponse:
    """All pages of it. Raises PermissionDenied, and Http404."""
    if not request.user.has_perms(SEEN_BY):
        raise PermissionDenied
    if form not in downloads.CONTENT_TYPES:
        raise Http404(form)
    return downloads.file(form, "left-behind", EXPORTED, map(exported, everything()))


def everything() -> Iterator[Left]:
    rows, more = nearest(FIRST)
    yield from rows
    while more:
        rows, more = nearest(Edge(*rows[-1].place, is_end=False))
        yield from rows


def exported(left: Left) -> list[Any]:
    ids = (left.told_by.pk if left.model == each else None for each in TOLD_BY)
    return [left.bucket, left.key, left.size, left.reason, left.evidence, *ids]
