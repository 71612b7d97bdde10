"""The page that answers why a file is still there, or when it was deleted."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.debug import sensitive_post_parameters

from storage_audit import project_model, roles
from storage_audit.cleanup.admin.cleanups import CleanupAdmin
from storage_audit.cleanup.admin.deleting import undo_url
from storage_audit.cleanup.admin.project_names import find_existing_by_name, may_view_projects
from storage_audit.cleanup.field_labels import describe_field
from storage_audit.cleanup.headline_text import explain_status
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.concurrency import Busy, acquire_slot
from storage_audit.conf import conf
from storage_audit.display_formats import format_amount, format_utc
from storage_audit.findings.models import Finding
from storage_audit.lookup import live_check, project_rules
from storage_audit.lookup.cards import Card, card_of_cleanup, reply_of_cleanup
from storage_audit.lookup.facts import (
    LiveResult,
    LookupAccess,
    ObjectFacts,
    ProjectState,
    ProjectStatus,
)
from storage_audit.lookup.find_matches import Matches
from storage_audit.lookup.object_rules import explain_object
from storage_audit.lookup.parse_query import TooMuch, remove_secrets
from storage_audit.lookup.project_rules import ProjectFacts
from storage_audit.lookup.rules import Explanation
from storage_audit.lookup.search import look_up, most_likely_objects
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import Ownership
from storage_audit.redaction import printable_text
from storage_audit.ui.links import changelist_url, cleanup_url, comparison_url, lookup_url

# How long a person may wait while the bucket is listed.
LIVE_CHECK_TIMEOUT_SECONDS = 10.0
ROWS_SHOWN = 20
VERDICT_TEXTS = {
    Ownership.OWNED: gettext_lazy("Deletes it"),
    Ownership.OTHER_PROJECT: gettext_lazy("Leaves it to another project"),
    Ownership.IN_DOUBT: gettext_lazy("Keeps it"),
}
CACHE_TEXT = gettext_lazy(
    "Does the link still open? A CDN or a browser can serve its cached copy of a file that is gone."
    " Purge the address in your CDN, then reload the page."
)


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
        **lookup_context(admin, request, text),
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


def lookup_context(admin: CleanupAdmin, request: HttpRequest, text: str) -> dict[str, Any]:
    """All that is known about the text, with a live check of the bucket if that was requested."""
    found: dict[str, Any] = {"title": _("Why?"), "q": printable_text(text)}
    if not text.strip():
        return found
    told = look_up(text, access_of(admin, request))
    objects, found["trouble"] = (
        check_live(request, told.objects) if request.POST else (told.objects, "")
    )
    told = told._replace(objects=objects)
    return found | {
        "query": urlencode({"q": text}),
        "is_redacted": told.is_redacted,
        "searched_name": "" if told.is_known else printable_text(told.searched_name),
        "hidden": hidden_parts(request),
        "cleanup": told.cleanup and cleanup_context(told.cleanup),
        "project": told.project and project_context(request, told.project),
        "matches": told.matches and matches_context(told.matches),
        "objects": [object_context(request, facts) for facts in most_likely_objects(told)],
        "refusal": roles.refusal_reason(request, "verify_cleanup"),
    }


def access_of(admin: CleanupAdmin, request: HttpRequest) -> LookupAccess:
    may = request.user.has_perm
    return LookupAccess(
        may("storage_audit.view_r2object"),
        may("storage_audit.view_finding"),
        may_view_projects(request),
        partial(find_existing_by_name, request, admin.admin_site),
    )


def hidden_parts(request: HttpRequest) -> list[str]:
    """What this person may not see, and whom to ask."""
    parts = {
        "view_r2object": _("This answer leaves out the records of files."),
        "view_finding": _("This answer leaves out the findings of scans."),
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


def card_context(request: HttpRequest, answer: Explanation) -> dict[str, Any]:
    """The answer, as one of the three cards, with the pages on which to go on."""
    cleanup, finding, project_id = answer.cleanup, answer.finding, answer.project_to_declare
    links = [
        cleanup and (_("Open the cleanup"), cleanup_url(cleanup.pk)),
        finding and (_("Open the finding"), finding_url(finding)),
    ]
    declares = _("Clean up %s…") % printable_text(project_id) if project_id else ""
    return {
        **card_texts(answer.card or Card.UNKNOWN, answer.text, answer.reply),
        "links": list(filter(None, links)),
        "clean_up": declares,
        "clean_up_url": project_id and declare_deleted_url(project_id),
        "clean_up_refusal": roles.refusal_reason(request, "force_cleanup"),
    }


def card_texts(card: Card, text: str, reply: str = "") -> dict[str, Any]:
    return {
        "card": card.value,
        "card_label": card.label,
        "text": printable_text(text),
        "cache_text": CACHE_TEXT if card is Card.GONE else "",
        "reply": reply,
    }


def cleanup_context(cleanup: Cleanup) -> dict[str, Any]:
    text = " ".join(explain_status(cleanup))
    links = [(_("Open the cleanup"), cleanup_url(cleanup.pk))]
    if project_id := cleanup.project_id:
        links.append((_("Look up its project"), lookup_url(project_id)))
    why = {**card_texts(card_of_cleanup(cleanup), text, reply_of_cleanup(cleanup)), "links": links}
    return {"id": cleanup.pk, "subject": printable_text(cleanup.subject), "why": why}


def matches_context(matches: Matches) -> dict[str, Any]:
    return {
        **card_texts(Card.UNKNOWN, matches_text(matches)),
        "projects": [
            {
                **project_link(one.status.project_id),
                "title": printable_text(one.title),
                "state": one.status.state.label,
            }
            for one in matches.projects
        ],
        "files": [
            {"key": printable_text(one.key), "url": lookup_url(f"r2://{one.bucket}/{one.key}")}
            for one in matches.files
        ],
    }


def declare_deleted_url(project_id: str) -> str:
    """The form that cleans up after a project, which asks first."""
    form = reverse("admin:storage_audit_declare_deleted")
    return f"{form}?{urlencode({'project_id': project_id})}"


def project_url(facts: ProjectFacts) -> str:
    """The page of a project that exists; empty where this site has none, or not for this person."""
    has_page = facts.project.state is ProjectState.ALIVE and conf().project_id_field == "pk"
    if not has_page or not facts.access.project_titles:
        return ""
    meta = project_model.get_model()._meta
    with suppress(NoReverseMatch):
        name = f"admin:{meta.app_label}_{meta.model_name}_change"
        return reverse(name, args=[quote(facts.project.project_id)])
    return ""


def project_context(request: HttpRequest, facts: ProjectFacts) -> dict[str, Any]:
    project_id, why = (
        facts.project.project_id,
        card_context(request, project_rules.explain_project(facts)),
    )
    if page := project_url(facts):
        why["links"].append((_("Open the project"), page))
    if facts.cleanup and (undo := undo_url(request, facts.cleanup)):
        why["links"].append((_("Undo the deletion…"), undo))
    return {
        "id": printable_text(project_id),
        "title": printable_text(facts.title),
        "why": why,
        "state": facts.project.state.label,
        "tracked": format_amount(facts.objects, facts.bytes) if facts.objects else "",
        "cleanups": facts.recent_cleanups,
        "all": changelist_url("cleanup", q=project_id),
        "findings": finding_rows(facts.findings),
        "compare": comparison_url(project_id),
    }


def object_context(request: HttpRequest, facts: ObjectFacts) -> dict[str, Any]:
    why = card_context(request, explain_object(facts))
    if len(facts.projects) == 1:
        [project_id] = facts.projects
        label = _("Look up project %s") % printable_text(project_id)
        why["links"].append((label, lookup_url(project_id)))
    items = [*map(item_context, facts.items), *map(other_item_context, facts.other_spellings)]
    return {
        "key": printable_text(facts.key),
        "bucket": printable_text(facts.bucket),
        "why": why,
        "live": facts.live_result and live_context(facts.live_result),
        "parsed_keys": list(parsed_key_rows(facts))[:ROWS_SHOWN],
        "more_parsed_keys": len(facts.parsed_keys[ROWS_SHOWN:]),
        "verdicts": list(verdict_rows(facts))[:ROWS_SHOWN],
        "more_verdicts": len(facts.verdicts[ROWS_SHOWN:]),
        "rows": list(map(row_context, facts.rows)),
        "items": items[:ROWS_SHOWN],
        "more_items": len(items[ROWS_SHOWN:]),
        "findings": finding_rows(facts.findings),
    }


def live_context(result: LiveResult) -> dict[str, str]:
    """What the bucket showed just now; or why it could not be checked."""
    at = format_utc(result.checked_at)
    if result.error:
        text = _("We could not check the bucket, so this answer uses our records only.")
        return {"trouble": f"{text} {printable_text(result.error)}"}
    if not (seen := result.listed):
        return {"text": _("A full listing of its folder on %s does not show the file.") % at}
    changed = format_utc(seen.last_modified)
    text = _("Found in the bucket on %(at)s: %(size)s, last modified %(changed)s, ETag %(etag)s.")
    size, etag = filesizeformat(seen.size), printable_text(seen.etag)
    return {"text": text % {"at": at, "size": size, "changed": changed, "etag": etag}}


def matches_text(matches: Matches) -> str:
    projects, files = len(matches.projects), len(matches.files)
    if projects and matches.is_cut:
        return _("More than %d projects match. Choose one, or enter more of the title.") % projects
    if projects:
        text = ngettext(
            "%d project matches. Choose it to see the answer.",
            "%d projects match. Choose the one that you mean.",
            projects,
        )
        return text % projects
    if matches.is_cut:
        return (
            _("More than %d files have this name. Choose one, or look up a link to the file.")
            % files
        )
    text = ngettext(
        "%d file among the newest has this name. Choose it if it is the one that you mean.",
        "%d files among the newest have this name. Choose the one that you mean.",
        files,
    )
    return text % files


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
    since = standing.deleted_at
    return {"label": standing.state.label, "since": since and format_utc(since)}


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
        "changed": format_utc(tracked.updated_at),
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
        "at": format_utc(found.changed_at),
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
            "seen": format_utc(finding.last_seen_at),
        }
        for finding in found[:ROWS_SHOWN]
    ]


def finding_url(finding: Finding) -> str:
    return reverse("admin:storage_audit_finding_change", args=[finding.pk])
