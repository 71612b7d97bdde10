"""The certificate of a deletion: a page to read and to print, and the files."""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from storage_audit.certificate.certificate_file import FORMS, ending_of, issued
from storage_audit.certificate.evidence import (
    STATEMENTS,
    Facts,
    head_of,
    items_of,
    was_certified,
    why_none,
)
from storage_audit.cleanup.admin.cleanups import CleanupOperationAdmin
from storage_audit.cleanup.describe import label_of
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.exports import pieces
from storage_audit.redaction import visible

Outcome, Status, Trigger = CleanupItem.Outcome, CleanupOperation.Status, CleanupOperation.Trigger
ITEMS_SHOWN = 300
LOOKS_SHOWN = 50
# Of so many the digest is worked out for a page.
SEALED = 1000
FACTS = (
    "id",
    "project_id",
    "kind",
    "bucket",
    "trigger",
    "requested_by",
    "origin",
    "created_at",
    "released_by",
    "project_deleted_at",
    "planned_at",
    "finished_at",
    "strategy",
    "plan_digest",
)


def urls(admin: CleanupOperationAdmin) -> list[URLPattern]:
    return [
        path(
            "<uuid:operation_id>/certificate/",
            admin.as_page(partial(certificate, admin)),
            name="storage_audit_certificate",
        ),
        path(
            "<uuid:operation_id>/certificate.<str:form>",
            admin.as_page(partial(certificate_file, admin)),
            name="storage_audit_certificate_file",
        ),
    ]


def certificate(
    admin: CleanupOperationAdmin, request: HttpRequest, operation_id: UUID
) -> HttpResponse:
    operation = admin.seen(request, operation_id)
    request.current_app = admin.admin_site.name
    shown = {
        **admin.admin_site.each_context(request),
        "title": _("Deletion certificate: %s") % visible(operation.subject),
        "opts": admin.opts,
        "media": admin.media,
        **context(operation),
    }
    return TemplateResponse(request, "admin/storage_audit/certificate/certificate.html", shown)


def certificate_file(
    admin: CleanupOperationAdmin, request: HttpRequest, operation_id: UUID, form: str
) -> StreamingHttpResponse:
    return download(admin.seen(request, operation_id), form)


def links(operation: CleanupOperation) -> dict[str, Any]:
    """For the operation's own page."""
    return {"no_certificate": visible(why_none(operation))}


def download(operation: CleanupOperation, form: str) -> StreamingHttpResponse:
    """Raises Http404."""
    if form not in FORMS or (reason := why_none(operation)):
        raise Http404(reason if form in FORMS else form)
    response = StreamingHttpResponse(
        pieces(issued(operation, form)), content_type=FORMS[form].content_type
    )
    response["Content-Disposition"] = f'attachment; filename="certificate-{operation.pk}.{form}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def context(operation: CleanupOperation) -> dict[str, Any]:
    reason = why_none(operation)
    shown = {"operation": operation, "no_certificate": visible(reason)}
    if reason and not was_certified(operation):
        return shown
    head = head_of(operation)
    items = list(items_of(operation, SEALED + 1))
    looks = head["later_looks"]
    return {
        **shown,
        "finished": head["finished"],
        "statement": STATEMENTS[Status(operation.status)],
        "facts": list(facts(operation)),
        "ranges": [visible(prefix) for prefix in operation.ranges],
        "books": [
            (label_of(operation, name), line["objects"], line["bytes"])
            for name, line in head["books"].items()
        ],
        "listings": [shown_listing(listing) for listing in head["listings"]],
        "looks": [shown_look(look) for look in looks[:LOOKS_SHOWN]],
        "more_looks": len(looks[LOOKS_SHOWN:]),
        "items": [shown_item(item) for item in items[:ITEMS_SHOWN]],
        "more_items": max(0, operation.found - ITEMS_SHOWN),
        "ending": None if reason or len(items) > SEALED else ending_of(head, items),
    }


def facts(operation: CleanupOperation) -> Iterator[tuple[Any, str]]:
    for name in FACTS:
        display = getattr(operation, f"get_{name}_display", None)
        value = display() if display else getattr(operation, name)
        if value:
            yield label_of(operation, name), moment(value) or visible(str(value))


def moment(value: Any) -> str:
    """In the time of all of the certificate, whatever that of the reader is."""
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else ""


def short(iso: str | None) -> str:
    return moment(datetime.fromisoformat(iso)) if iso else ""


def shown_listing(listing: Facts) -> tuple[str, str, str]:
    return short(listing["began"]), short(listing["ended"]), visible(listing["result"])


def shown_look(look: Facts) -> dict[str, Any]:
    second = look["second_look"]
    return {
        "id": look["deletion_id"],
        "label": Trigger(look["trigger"]).label,
        "status": Status(look["status"]).label,
        "due": short(look["next_attempt_at"]),
        "ended": short(look["finished_at"]),
        "message": visible(look["error"]),
        "second_look": visible(second["said"]) if second else "",
        "found": look["books"]["found"]["objects"],
    }


def shown_item(item: Facts) -> dict[str, Any]:
    return {
        "key": visible(item["key"]),
        "size": item["size"],
        "outcome": Outcome(item["outcome"]).label,
        "seen_gone": short(item["seen_gone_at"]),
        "listing": item["listing"],
        "reason": visible(item["reason"] or item["answer"]),
        "evidence": visible(item["evidence"]),
    }
