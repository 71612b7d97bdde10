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
from storage_audit.cleanup.admin.cleanups import CleanupOperationAdmin
from storage_audit.cleanup.cleanup_text import meaning
from storage_audit.cleanup.field_words import words_for
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.concurrency import Busy, place
from storage_audit.findings.models import Finding
from storage_audit.formats import amount
from storage_audit.lookup import live_check, project_rules
from storage_audit.lookup.facts import Facts, Sentence, Sight, Standing
from storage_audit.lookup.parse_query import TooMuch, without_secrets
from storage_audit.lookup.project_rules import ProjectFacts
from storage_audit.lookup.search import explain, look_up
from storage_audit.models import R2Object
from storage_audit.ownership.owner import Claim
from storage_audit.redaction import visible
from storage_audit.ui.links import comparison_of, list_of, lookup_of, page_of

# So long a person may wait, with the bucket listed meanwhile.
SECONDS = 10.0
SHOWN = 20
JUDGED = {
    Claim.OWNED: gettext_lazy("would delete it"),
    Claim.ELSEWHERE: gettext_lazy("would leave it to another"),
    Claim.PROTECTED: gettext_lazy("would keep it"),
}


def urls(admin: CleanupOperationAdmin) -> list[URLPattern]:
    page = sensitive_post_parameters("q")(partial(show_answers, admin))
    return [path("lookup/", admin.as_page(page), name="storage_audit_lookup")]


def show_answers(admin: CleanupOperationAdmin, request: HttpRequest) -> HttpResponse:
    if not admin.has_view_permission(request):
        raise PermissionDenied
    text, refusal = asked(request)
    if not refusal and text != request.GET.get("q", ""):
        return redirect(lookup_of(text))
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "media": admin.media,
        "refused": refusal,
        **context(request, text),
    }
    return TemplateResponse(request, "admin/storage_audit/lookup/lookup.html", shown)


def asked(request: HttpRequest) -> tuple[str, str]:
    """The text that was pasted, without secrets, and what is wrong with it. The box posts it, so
    that a secret in it reaches no log and no history on its way here."""
    given = request.POST.get("q", request.GET.get("q", ""))
    try:
        return without_secrets(given), ""
    except TooMuch as refusal:
        return "", str(refusal)


def context(request: HttpRequest, text: str) -> dict[str, Any]:
    """All that there is to say of the text; with a look into the bucket if that was asked for."""
    found: dict[str, Any] = {"title": _("Why?"), "q": visible(text)}
    if not text.strip():
        return found
    told = look_up(text, sight_of(request))
    objects, found["trouble"] = look(request, told.objects) if request.POST else (told.objects, "")
    return found | {
        "query": urlencode({"q": text}),
        "is_known": told.is_known,
        "is_redacted": told.is_redacted,
        "hidden": hidden_from(request),
        "operation": told.operation,
        "meaning": [visible(each) for each in meaning(told.operation)] if told.operation else [],
        "project": told.project and shown_project(request, told.project),
        "objects": [shown_object(request, facts) for facts in objects],
        "refusal": roles.refusal(request, "verify_cleanup"),
    }


def sight_of(request: HttpRequest) -> Sight:
    may = request.user.has_perm
    return Sight(may("storage_audit.view_r2object"), may("storage_audit.view_finding"))


def hidden_from(request: HttpRequest) -> list[str]:
    """What the answers leave out for this person, and whom to ask for it."""
    parts = {
        "view_r2object": _("The rows of objects are not shown to you, nor what they tell."),
        "view_finding": _("What scans found is not shown to you, nor what it tells."),
    }
    refusals = ((said, roles.refusal(request, name)) for name, said in parts.items())
    return [f"{said} {refusal}" for said, refusal in refusals if refusal]


def look(request: HttpRequest, objects: Sequence[Facts]) -> tuple[Sequence[Facts], str]:
    if roles.refusal(request, "verify_cleanup"):
        raise PermissionDenied
    try:
        with place():
            return live_check.seen(objects, seconds=SECONDS), ""
    except Busy as full:
        return objects, str(full)


def shown_sentence(request: HttpRequest, sentence: Sentence) -> dict[str, Any]:
    operation, finding = sentence.operation, sentence.finding
    return {
        "text": visible(sentence.text),
        "operation": operation and page_of(operation.pk),
        "finding": finding and page_of_finding(finding),
        "clean_up": sentence.ended and declaration_of(sentence.ended),
        "clean_up_refusal": roles.refusal(request, "force_cleanup"),
    }


def declaration_of(project_id: str) -> str:
    """The form that cleans up after a project, which asks first."""
    form = reverse("admin:storage_audit_declare_deleted")
    return f"{form}?{urlencode({'project_id': project_id})}"


def shown_project(request: HttpRequest, facts: ProjectFacts) -> dict[str, Any]:
    project_id = facts.standing.project_id
    return {
        "id": visible(project_id),
        "why": shown_sentence(request, project_rules.why(facts)),
        "life": facts.standing.life.label,
        "tracked": amount(facts.objects, facts.bytes) if facts.sight.rows else "",
        "operations": facts.operations,
        "all": list_of("cleanupoperation", q=project_id),
        "findings": findings(facts.findings),
        "compare": comparison_of(project_id),
    }


def shown_object(request: HttpRequest, facts: Facts) -> dict[str, Any]:
    items = [*map(item, facts.items), *map(item_of_another, facts.otherwise_spelled)]
    return {
        "key": visible(facts.key),
        "bucket": visible(facts.bucket),
        "why": shown_sentence(request, explain(facts)),
        "seen": facts.seen,
        "trouble": facts.seen and visible(facts.seen.trouble),
        "readings": list(readings(facts))[:SHOWN],
        "more_readings": len(facts.readings[SHOWN:]),
        "judgements": list(judgements(facts))[:SHOWN],
        "more_judgements": len(facts.judgements[SHOWN:]),
        "rows": list(map(row, facts.rows)),
        "items": items[:SHOWN],
        "more_items": len(items[SHOWN:]),
        "findings": findings(facts.findings),
    }


def readings(facts: Facts) -> Iterator[tuple[Any, ...]]:
    for reading in facts.readings:
        fields = [
            f"{words_for(name)}: {visible(value)}"
            for name, value in reading.fields.items()
            if value is not None
        ]
        yield reading.layout, project_link(reading.project), ", ".join(fields)


def judgements(facts: Facts) -> Iterator[dict[str, Any]]:
    for judged in facts.judgements:
        yield {
            "project": project_link(judged.standing.project_id),
            "life": life(judged.standing),
            "would": JUDGED[judged.verdict.claim],
            "evidence": visible(judged.verdict.evidence),
            "reason": visible(judged.verdict.reason),
        }


def life(standing: Standing) -> dict[str, Any]:
    return {"label": standing.life.label, "since": standing.deleted_at}


def project_link(project_id: str) -> dict[str, str]:
    return {"id": visible(project_id), "url": lookup_of(project_id)}


def row(tracked: R2Object) -> dict[str, Any]:
    return {
        "url": reverse("admin:storage_audit_r2object_change", args=[tracked.pk]),
        "key": visible(tracked.key),
        "project": project_link(tracked.project_id) if tracked.project_id else None,
        "size": None if tracked.size is None else filesizeformat(tracked.size),
        "state": tracked.get_state_display(),
        "source": tracked.get_source_display(),
        "changed": tracked.updated_at,
    }


def item(found: CleanupItem) -> dict[str, Any]:
    operation: CleanupOperation = found.operation
    return {
        "operation": operation,
        "url": page_of(operation.pk),
        "project": visible(operation.subject),
        "outcome": found.get_outcome_display(),
        "reason": visible(found.reason),
        "evidence": visible(found.evidence),
        "answer": visible(found.answer),
        "at": found.changed_at,
    }


def item_of_another(found: CleanupItem) -> dict[str, Any]:
    return {**item(found), "is_of_another": True}


def findings(found: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "url": page_of_finding(finding),
            "key": visible(finding.key),
            "kind": finding.get_kind_display(),
            "state": finding.get_state_display(),
            "evidence": visible(finding.evidence),
            "note": visible(finding.note),
            "seen": finding.last_seen_at,
        }
        for finding in found[:SHOWN]
    ]


def page_of_finding(finding: Finding) -> str:
    return reverse("admin:storage_audit_finding_change", args=[finding.pk])
