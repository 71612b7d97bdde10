"""What the page shows that compares the three ways to find a project's objects."""

from functools import partial
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.cleanup.admin.cleanups import CleanupOperationAdmin
from storage_audit.cleanup.admin.forms import ProjectIdForm
from storage_audit.concurrency import Busy, place
from storage_audit.debug.discovery_comparison import Comparison, Difference, compare_everywhere
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact, visible

# So long a person may wait, with the bucket listed meanwhile.
SECONDS = 10.0


def urls(admin: CleanupOperationAdmin) -> list[URLPattern]:
    page = admin.as_page(partial(compare_discovery, admin))
    return [path("compare/", page, name="storage_audit_compare")]


def compare_discovery(admin: CleanupOperationAdmin, request: HttpRequest) -> HttpResponse:
    if not admin.has_verify_permission(request):
        raise PermissionDenied
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        **context(request.GET),
    }
    return TemplateResponse(request, "admin/storage_audit/debug/compare_discovery.html", shown)


def context(query: QueryDict) -> dict[str, Any]:
    """The form, and what it was asked for, if anything was: the comparisons, or why there are
    none."""
    form = ProjectIdForm(query if "project_id" in query else None)
    found: dict[str, Any] = {"title": _("Compare with the bucket"), "form": form}
    if form.is_valid():
        project_id = form.cleaned_data["project_id"]
        found["title"] = _("Compare with the bucket: %s") % visible(project_id)
        try:
            with place():
                comparisons = compare_everywhere(project_id, seconds=SECONDS)
            found["comparisons"] = [shown(each) for each in comparisons]
        except DeadlinePassed:
            found["command"] = f"manage.py compare_discovery {project_id}"
        except (StoreError, CannotConclude, Busy) as error:
            found["trouble"] = visible(redact(str(error)))
    return found


def shown(comparison: Comparison) -> dict[str, Any]:
    return {
        "bucket": visible(comparison.bucket),
        "agrees": comparison.agrees,
        "figures": [(way.label, keys.count) for way, keys in comparison.found.items()],
        "differences": [shown_difference(each) for each in comparison.differences],
    }


def shown_difference(difference: Difference) -> dict[str, Any]:
    return {
        "count": difference.count,
        "place": difference.place,
        "words": difference.words,
        "more": difference.count - len(difference.examples),
        "examples": [
            (visible(example.key), visible(example.evidence)) for example in difference.examples
        ],
    }
