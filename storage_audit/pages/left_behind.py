"""Each object that is left behind, once, with the reason: a page that neither of the two tables
that know of them could be alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from storage_audit.models import CleanupItem, Finding
from storage_audit.pages.base import ModelAdmin
from storage_audit.redaction import visible

A_PAGE = 50
SEEN_BY = ("storage_audit.view_finding", "storage_audit.view_cleanupoperation")


class Left(NamedTuple):
    key: str
    bucket: str
    size: int | None
    reason: str
    told_by: Any
    model: str

    @property
    def place(self) -> tuple[str, str]:
        return self.key, self.bucket


def view(request: HttpRequest, admin: ModelAdmin[Finding]) -> HttpResponse:
    if not request.user.has_perms(SEEN_BY):
        raise PermissionDenied
    request.current_app = admin.admin_site.name
    after = request.GET.get("after", ""), request.GET.get("bucket", "")
    context = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "title": _("Left behind"),
        "after": any(after),
        **page(after),
    }
    return TemplateResponse(request, "admin/storage_audit/left_behind.html", context)


def page(after: tuple[str, str]) -> dict[str, Any]:
    """Those that come after this key and bucket, in the order of keys."""
    rows = sorted([*orphans(*after), *undeleted(*after)], key=lambda left: left.place)
    if len(rows) <= A_PAGE:
        return {"rows": list(map(shown, rows))}
    # There are two in a place where one is shown escaped: they stay on one page.
    rows = [left for left in rows if left.place < rows[A_PAGE].place]
    return {"rows": list(map(shown, rows)), "next": rows[-1]}


def shown(left: Left) -> Left:
    return left._replace(
        key=visible(left.key), bucket=visible(left.bucket), reason=visible(left.reason)
    )


def orphans(key: str, bucket: str) -> Iterator[Left]:
    later = Q(key__gt=key) | Q(key=key, bucket__gt=bucket)
    found = Finding.objects.orphaned().filter(later, key__gte=key).order_by("key", "bucket", "pk")
    for one in found[: A_PAGE + 1]:
        yield Left(one.key, one.bucket, one.size, one.evidence, one, "finding")


def undeleted(key: str, bucket: str) -> Iterator[Left]:
    later = Q(identity__gt=key) | Q(identity=key, operation__bucket__gt=bucket)
    items = CleanupItem.objects.left_behind().filter(later, identity__gte=key)
    objects = items.as_objects().order_by("identity", "operation__bucket")
    latest = [each["latest"] for each in objects[: A_PAGE + 1]]
    for item in CleanupItem.objects.filter(pk__in=latest).select_related("operation"):
        operation = item.operation
        reason = item.reason or operation.error
        yield Left(
            item.identity, operation.bucket, item.size, reason, operation, "cleanupoperation"
        )
