"""The page that compares three ways to find a project's objects."""

from functools import partial
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.cleanup.admin.cleanups import CleanupAdmin
from storage_audit.cleanup.admin.forms import ProjectIdForm
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.debug.comparison_result import Comparison, Difference, DifferenceReason
from storage_audit.debug.discovery_comparison import compare_all_buckets
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import printable_text, redact_secrets

# How long a person may wait while the bucket is listed.
COMPARE_TIMEOUT_SECONDS = 10.0


def urls(admin: CleanupAdmin) -> list[URLPattern]:
    page = admin.wrap_view(partial(compare_discovery, admin))
    return [path("compare/", page, name="storage_audit_compare")]


def compare_discovery(admin: CleanupAdmin, request: HttpRequest) -> HttpResponse:
    if not admin.has_verify_permission(request):
        raise PermissionDenied
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "may_scan": request.user.has_perm("storage_audit.add_bucketscan"),
        **page_context(request.GET),
    }
    return TemplateResponse(request, "admin/storage_audit/debug/compare_discovery.html", shown)


def page_context(query: QueryDict) -> dict[str, Any]:
    """The form, and what was requested with it: the comparisons, or why there are none."""
    form = ProjectIdForm(query if "project_id" in query else None)
    found: dict[str, Any] = {"title": _("Compare with the bucket"), "form": form}
    if form.is_valid():
        project_id = form.cleaned_data["project_id"]
        found["title"] = _("Compare with the bucket: %s") % printable_text(project_id)
        try:
            with acquire_slot():
                comparisons = compare_all_buckets(project_id, seconds=COMPARE_TIMEOUT_SECONDS)
            found["comparisons"] = [comparison_context(each) for each in comparisons]
        except DeadlinePassed:
            found["command"] = f"manage.py compare_discovery {project_id}"
        except (StoreError, CannotConclude, Busy) as error:
            found["trouble"] = printable_text(redact_secrets(str(error)))
    return found


def comparison_context(comparison: Comparison) -> dict[str, Any]:
    return {
        "bucket": printable_text(comparison.bucket),
        "agrees": comparison.agrees,
        "figures": [(way.label, keys.count) for way, keys in comparison.keys_by_method.items()],
        "differences": [difference_context(each) for each in comparison.differences],
    }


def difference_context(difference: Difference) -> dict[str, Any]:
    return {
        "count": difference.count,
        "place": difference.place,
        "words": difference.words,
        "is_untracked": DifferenceReason.NEVER_TRACKED in difference.reasons,
        "more": difference.count - len(difference.examples),
        "examples": [
            (printable_text(example.key), printable_text(example.evidence))
            for example in difference.examples
        ],
    }
