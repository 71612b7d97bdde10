"""The certificate of a deletion: a page to read and to print, and the file."""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from storage_audit.certificate.certificate_file import compute_ending, issue_certificate
from storage_audit.certificate.evidence import (
    STATEMENTS,
    Facts,
    certificate_head,
    certificate_items,
    was_certified,
    why_no_certificate,
)
from storage_audit.cleanup.admin.cleanups import CleanupAdmin
from storage_audit.cleanup.describe_cleanup import field_label
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_exact_utc
from storage_audit.exports import byte_chunks
from storage_audit.redaction import printable_text

Outcome, Status, Trigger = CleanupItem.Outcome, Cleanup.Status, Cleanup.Trigger
ITEMS_SHOWN = 300
VERIFICATIONS_SHOWN = 50
# A page shows the digest of cleanups with at most so many items.
MAX_ITEMS_HASHED = 1000
FACT_FIELDS = (
    "id",
    "project_id",
    "kind",
    "bucket",
    "trigger",
    "requested_by",
    "origin",
    "created_at",
    "limits_waived_by",
    "held_until",
    "decided_by",
    "decided_at",
    "decision_reason",
    "project_deleted_at",
    "planned_at",
    "finished_at",
    "strategy",
    "plan_digest",
)


def urls(admin: CleanupAdmin) -> list[URLPattern]:
    return [
        path(
            "<uuid:deletion_id>/certificate/",
            admin.wrap_view(partial(show_certificate, admin)),
            name="storage_audit_certificate",
        ),
        path(
            "<uuid:deletion_id>/certificate.json",
            admin.wrap_view(partial(download_certificate, admin)),
            name="storage_audit_certificate_file",
        ),
    ]


def show_certificate(admin: CleanupAdmin, request: HttpRequest, deletion_id: UUID) -> HttpResponse:
    cleanup = admin.get_cleanup(request, deletion_id)
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "title": _("Deletion certificate: %s") % printable_text(cleanup.subject),
        "opts": admin.opts,
        "media": admin.media,
        **certificate_context(cleanup),
    }
    return TemplateResponse(request, "admin/storage_audit/certificate/certificate.html", shown)


def download_certificate(
    admin: CleanupAdmin, request: HttpRequest, deletion_id: UUID
) -> StreamingHttpResponse:
    """Raises Http404."""
    cleanup = admin.get_cleanup(request, deletion_id)
    if reason := why_no_certificate(cleanup):
        raise Http404(reason)
    response = StreamingHttpResponse(
        byte_chunks(issue_certificate(cleanup)), content_type="application/json"
    )
    response["Content-Disposition"] = f'attachment; filename="certificate-{cleanup.pk}.json"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def certificate_links(cleanup: Cleanup) -> dict[str, Any]:
    """For the cleanup's own page."""
    return {"no_certificate": printable_text(why_no_certificate(cleanup))}


def certificate_context(cleanup: Cleanup) -> dict[str, Any]:
    reason = why_no_certificate(cleanup)
    shown = {"cleanup": cleanup, "no_certificate": printable_text(reason)}
    if reason and not was_certified(cleanup):
        return shown
    head = certificate_head(cleanup)
    items = list(certificate_items(cleanup, MAX_ITEMS_HASHED + 1))
    looks = head["later_looks"]
    return {
        **shown,
        "finished": head["finished"],
        "statement": STATEMENTS[Status(cleanup.status)],
        "facts": list(fact_rows(cleanup)),
        "listed_prefixes": [printable_text(prefix) for prefix in cleanup.listed_prefixes],
        "totals": [
            (field_label(cleanup, name), line["objects"], line["bytes"])
            for name, line in head["totals"].items()
        ],
        "listings": [listing_row(listing) for listing in head["listings"]],
        "verifications": [verification_context(look) for look in looks[:VERIFICATIONS_SHOWN]],
        "more_verifications": len(looks[VERIFICATIONS_SHOWN:]),
        "items": [item_context(item) for item in items[:ITEMS_SHOWN]],
        "more_items": max(0, cleanup.found - ITEMS_SHOWN),
        "ending": None if reason or len(items) > MAX_ITEMS_HASHED else compute_ending(head, items),
    }


def fact_rows(cleanup: Cleanup) -> Iterator[tuple[Any, str]]:
    for name in FACT_FIELDS:
        display = getattr(cleanup, f"get_{name}_display", None)
        value = display() if display else getattr(cleanup, name)
        if isinstance(value, datetime):
            yield field_label(cleanup, name), format_exact_utc(value)
        elif value:
            yield field_label(cleanup, name), printable_text(str(value))


def format_iso(iso: str | None) -> str:
    return format_exact_utc(datetime.fromisoformat(iso)) if iso else ""


def listing_row(listing: Facts) -> tuple[str, str, str]:
    return (
        format_iso(listing["began"]),
        format_iso(listing["ended"]),
        printable_text(listing["result"]),
    )


def verification_context(look: Facts) -> dict[str, Any]:
    second = look["second_look"]
    return {
        "id": look["deletion_id"],
        "label": Trigger(look["trigger"]).label,
        "status": Status(look["status"]).label,
        "due": format_iso(look["next_attempt_at"]),
        "ended": format_iso(look["finished_at"]),
        "message": printable_text(look["message"]),
        "crosscheck": printable_text(second["said"]) if second else "",
        "found": look["totals"]["found"]["objects"],
    }


def item_context(item: Facts) -> dict[str, Any]:
    return {
        "key": printable_text(item["key"]),
        "size": item["size"],
        "outcome": Outcome(item["outcome"]).label,
        "gone_at": format_iso(item["seen_gone_at"]),
        "listing": item["listing"],
        "reason": printable_text(item["reason"] or item["store_answer"]),
        "owner_evidence": printable_text(item["owner_evidence"]),
    }
