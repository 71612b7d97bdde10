"""The page that answers why a file is still there, or when it went."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_post_parameters

from storage_audit import roles
from storage_audit.cleanup.admin.cleanups import CleanupAdmin
from storage_audit.cleanup.admin.deleting import undo_url
from storage_audit.cleanup.admin.project_names import find_by_name, may_view_projects
from storage_audit.cleanup.cleanup_text import describe_request, explain_status
from storage_audit.cleanup.field_labels import describe_field
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.display_formats import format_amount
from storage_audit.findings.models import Finding
from storage_audit.lookup import live_check, project_rules
from storage_audit.lookup.facts import LookupAccess, ObjectFacts, ProjectStatus
from storage_audit.lookup.object_rules import explain_object
from storage_audit.lookup.parse_query import TooMuch, remove_secrets
from storage_audit.lookup.project_rules import ProjectFacts
from storage_audit.lookup.rules import Explanation
from storage_audit.lookup.search import look_up
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import Ownership
from storage_audit.redaction import printable_text
from storage_audit.ui.links import changelist_url, cleanup_url, comparison_url, lookup_url

# How long a person may wait while the bucket is listed.
LIVE_CHECK_TIMEOUT_SECONDS = 10.0
ROWS_SHOWN = 20
VERDICT_TEXTS = {
    Ownership.OWNED: gettext_lazy("would delete it"),
    Ownership.OTHER_PROJECT: gettext_lazy("would leave it to another"),
    Ownership.IN_DOUBT: gettext_lazy("would keep it"),
}


def urls(admin: CleanupAdmin) -> list[URLPattern]:
    page = sensitive_post_parameters("q")(partial(show_answers, admin))
    return [path("lookup/", admin.wrap_view(page), name="storage_audit_lookup")]


def show_answers(admin: CleanupAdmin, request: HttpRequest) -> HttpResponse:
    if not admin.has_view_permission(request):
        raise PermissionDenied
    text, refusal = read_query(request)
    if not refusal and text != request.GET.get("q", ""):
        return redirect(lookup_url(text))
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "refused": refusal,
        **lookup_context(request, text),
    }
    return TemplateResponse(request, "admin/storage_audit/lookup/lookup.html", shown)


def read_query(request: HttpRequest) -> tuple[str, str]:
    """The pasted text without secrets, and what is wrong with it. The form posts it, so that a
    secret in it reaches no log and no browser history."""
    given = request.POST.get("q", request.GET.get("q", ""))
    try:
        return remove_secrets(given), ""
    except TooMuch as refusal:
        return "", str(refusal)


def lookup_context(request: HttpRequest, text: str) -> dict[str, Any]:
    """All that is known about the text, with a live check of the bucket if that was requested."""
    found: dict[str, Any] = {"title": _("Why?"), "q": printable_text(text)}
    if not text.strip():
        return found
    told = look_up(text, access_of(request))
    deleted = [] if told.is_known or told.is_redacted else find_deletions(request, text)
    if deleted:
        return found | {"is_known": True, "deleted": deleted}
    objects, found["trouble"] = (
        check_live(request, told.objects) if request.POST else (told.objects, "")
    )
    return found | {
        "query": urlencode({"q": text}),
        "is_known": told.is_known,
        "is_redacted": told.is_redacted,
        "hidden": hidden_parts(request),
        "cleanup": told.cleanup,
        "meaning": [printable_text(each) for each in explain_status(told.cleanup)]
        if told.cleanup
        else [],
        "project": told.project and project_context(request, told.project),
        "objects": [object_context(request, facts) for facts in objects],
        "refusal": roles.refusal_reason(request, "verify_cleanup"),
    }


def find_deletions(request: HttpRequest, name: str) -> list[dict[str, Any]]:
    """Of projects with this in their title, which can still be restored."""
    if not may_view_projects(request):
        return []
    named = Cleanup.objects.filter(pk__in=find_by_name(name)).with_names()
    return [
        {
            "cleanup": cleanup,
            "name": printable_text(cleanup.named_subject),
            "text": describe_request(cleanup),
            "undo": undo_url(request, cleanup),
        }
        for cleanup in named.select_related("snapshot").order_by("-created_at")[:ROWS_SHOWN]
    ]


def access_of(request: HttpRequest) -> LookupAccess:
    may = request.user.has_perm
    return LookupAccess(may("storage_audit.view_r2object"), may("storage_audit.view_finding"))


def hidden_parts(request: HttpRequest) -> list[str]:
    """What this person may not see, and whom to ask."""
    parts = {
        "view_r2object": _("The rows of objects are not shown to you, nor what they tell."),
        "view_finding": _("What scans found is not shown to you, nor what it tells."),
    }
    refusals = ((said, roles.refusal_reason(request, name)) for name, said in parts.items())
    return [f"{said} {refusal}" for said, refusal in refusals if refusal]


def check_live(
    request: HttpRequest, objects: Sequence[ObjectFacts]
) -> tuple[Sequence[ObjectFacts], str]:
    if roles.refusal_reason(request, "verify_cleanup"):
        raise PermissionDenied
    try:
        with acquire_slot():
            return live_check.check_objects(objects, seconds=LIVE_CHECK_TIMEOUT_SECONDS), ""
    except Busy as full:
        return objects, str(full)


def explanation_context(request: HttpRequest, sentence: Explanation) -> dict[str, Any]:
    cleanup, finding = sentence.cleanup, sentence.finding
    return {
        "text": printable_text(sentence.text),
        "cleanup": cleanup and cleanup_url(cleanup.pk),
        "finding": finding and finding_url(finding),
        "clean_up": sentence.project_to_declare
        and declare_deleted_url(sentence.project_to_declare),
        "clean_up_refusal": roles.refusal_reason(request, "force_cleanup"),
    }


def declare_deleted_url(project_id: str) -> str:
    """The form that cleans up after a project, which asks first."""
    form = reverse("admin:storage_audit_declare_deleted")
    return f"{form}?{urlencode({'project_id': project_id})}"


def project_context(request: HttpRequest, facts: ProjectFacts) -> dict[str, Any]:
    project_id = facts.project.project_id
    return {
        "id": printable_text(project_id),
        "why": explanation_context(request, project_rules.explain_project(facts)),
        "undo": undo_url(request, facts.cleanup) if facts.cleanup else "",
        "state": facts.project.state.label,
        "tracked": format_amount(facts.objects, facts.bytes) if facts.access.rows else "",
        "cleanups": facts.recent_cleanups,
        "all": changelist_url("cleanup", q=project_id),
        "findings": finding_rows(facts.findings),
        "compare": comparison_url(project_id),
    }


def object_context(request: HttpRequest, facts: ObjectFacts) -> dict[str, Any]:
    items = [*map(item_context, facts.items), *map(other_item_context, facts.other_spellings)]
    return {
        "key": printable_text(facts.key),
        "bucket": printable_text(facts.bucket),
        "why": explanation_context(request, explain_object(facts)),
        "live_result": facts.live_result,
        "trouble": facts.live_result and printable_text(facts.live_result.error),
        "parsed_keys": list(parsed_key_rows(facts))[:ROWS_SHOWN],
        "more_parsed_keys": len(facts.parsed_keys[ROWS_SHOWN:]),
        "verdicts": list(verdict_rows(facts))[:ROWS_SHOWN],
        "more_verdicts": len(facts.verdicts[ROWS_SHOWN:]),
        "rows": list(map(row_context, facts.rows)),
        "items": items[:ROWS_SHOWN],
        "more_items": len(items[ROWS_SHOWN:]),
        "findings": finding_rows(facts.findings),
    }


def parsed_key_rows(facts: ObjectFacts) -> Iterator[tuple[Any, ...]]:
    for parsed_key in facts.parsed_keys:
        fields = [
            f"{describe_field(name)}: {printable_text(value)}"
            for name, value in parsed_key.fields.items()
            if value is not None
        ]
        yield parsed_key.key_format, project_link(parsed_key.project), ", ".join(fields)


def verdict_rows(facts: ObjectFacts) -> Iterator[dict[str, Any]]:
    for judged in facts.verdicts:
        yield {
            "project": project_link(judged.project.project_id),
            "state": state_context(judged.project),
            "would": VERDICT_TEXTS[judged.verdict.ownership],
            "evidence": printable_text(judged.verdict.evidence),
            "reason": printable_text(judged.verdict.reason),
        }


def state_context(standing: ProjectStatus) -> dict[str, Any]:
    return {"label": standing.state.label, "since": standing.deleted_at}


def project_link(project_id: str) -> dict[str, str]:
    return {"id": printable_text(project_id), "url": lookup_url(project_id)}


def row_context(tracked: R2Object) -> dict[str, Any]:
    return {
        "url": reverse("admin:storage_audit_r2object_change", args=[tracked.pk]),
        "key": printable_text(tracked.key),
        "project": project_link(tracked.project_id) if tracked.project_id else None,
        "size": None if tracked.size is None else filesizeformat(tracked.size),
        "state": tracked.get_state_display(),
        "source": tracked.get_source_display(),
        "changed": tracked.updated_at,
    }


def item_context(found: CleanupItem) -> dict[str, Any]:
    cleanup: Cleanup = found.cleanup
    return {
        "cleanup": cleanup,
        "url": cleanup_url(cleanup.pk),
        "project": printable_text(cleanup.subject),
        "outcome": found.get_outcome_display(),
        "reason": printable_text(found.reason),
        "evidence": printable_text(found.owner_evidence),
        "store_answer": printable_text(found.store_answer),
        "at": found.changed_at,
    }


def other_item_context(found: CleanupItem) -> dict[str, Any]:
    return {**item_context(found), "is_of_another": True}


def finding_rows(found: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "url": finding_url(finding),
            "key": printable_text(finding.key),
            "kind": finding.get_kind_display(),
            "state": finding.get_state_display(),
            "evidence": printable_text(finding.evidence),
            "note": printable_text(finding.note),
            "seen": finding.last_seen_at,
        }
        for finding in found[:ROWS_SHOWN]
    ]


def finding_url(finding: Finding) -> str:
    return reverse("admin:storage_audit_finding_change", args=[finding.pk])
