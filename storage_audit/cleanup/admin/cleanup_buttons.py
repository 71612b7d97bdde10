"""The buttons of a cleanup's page: those that do something now, the most likely first."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _

from storage_audit.cleanup.admin import pause_page
from storage_audit.cleanup.admin.cleanup_page import (
    can_be_verified,
    force_choice,
    force_refusal,
)
from storage_audit.cleanup.admin.decision_kinds import offered_decisions
from storage_audit.cleanup.describe_cleanup import TotalsLine
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.needs_attention import find_verifications_with_leftovers
from storage_audit.display_formats import format_amount
from storage_audit.roles import refusal_reason
from storage_audit.ui.object_page import MAIN_BUTTONS, Button

Kind, Status = Cleanup.Kind, Cleanup.Status


def button_context(
    request: HttpRequest, cleanup: Cleanup, lines: Sequence[TotalsLine]
) -> dict[str, Any]:
    # What this person may do comes first.
    buttons = sorted(list_buttons(request, cleanup, lines), key=lambda each: bool(each.refusal))
    return {"buttons": buttons[:MAIN_BUTTONS], "more_buttons": buttons[MAIN_BUTTONS:]}


def list_buttons(
    request: HttpRequest, cleanup: Cleanup, lines: Sequence[TotalsLine]
) -> Iterator[Button]:
    if find_verifications_with_leftovers().contains(cleanup):
        yield clean_up_button(request, cleanup)
    if choice := force_choice(cleanup):
        deletes = cleanup.status in (Status.BLOCKED, Status.PLANNED)
        yield Button(
            force_label(cleanup, choice[0], lines),
            force_refusal(request, cleanup),
            action="force_delete",
            is_danger=deletes and cleanup.kind != Kind.VANISHED,
            help=str(choice[1]),
            name=str(choice[0]),
        )
    for offer in offered_decisions(request, cleanup):
        yield Button(
            offer.label,
            offer.refusal,
            action=offer.name,
            is_danger=offer.is_danger,
            help=offer.effect,
            name=offer.label,
        )
    last = [*pause_buttons(request, cleanup), *verify_buttons(request, cleanup)]
    yield from reversed(last) if cleanup.status in Cleanup.ENDED else last


def pause_buttons(request: HttpRequest, cleanup: Cleanup) -> Iterator[Button]:
    """Not of one that is over, though its follow-up checks delete too: those have the button."""
    if cleanup.status in Cleanup.ENDED:
        return
    if pause := pause_page.pause_button(request, cleanup):
        yield Button(_("Pause…"), pause["refusal"], url=pause["url"])


def verify_buttons(request: HttpRequest, cleanup: Cleanup) -> Iterator[Button]:
    if can_be_verified(cleanup):
        may_not = refusal_reason(request, "verify_cleanup")
        yield Button(_("Verify cleanup"), may_not, action="verify_cleanup")


def clean_up_button(request: HttpRequest, cleanup: Cleanup) -> Button:
    query = urlencode({"project_id": cleanup.project_id or ""})
    url = f"{reverse('admin:storage_audit_declare_deleted')}?{query}"
    text = _("Deletes the files that are still there. You confirm with the project ID first.")
    refusal = refusal_reason(request, "force_cleanup")
    label = _("Clean up after it again…")
    return Button(label, refusal, url=url, help=text, name=label)


def force_label(cleanup: Cleanup, label: Any, lines: Sequence[TotalsLine]) -> str:
    """With what would be deleted, where that is known."""
    going = [line for line in lines if line.name in CleanupItem.OPEN]
    count = sum(line.objects for line in going)
    if not count or cleanup.status not in (Status.BLOCKED, Status.PLANNED):
        return str(label)
    files = format_amount(count, sum(line.size for line in going))
    return _("%(label)s: delete %(files)s") % {"label": label, "files": files}
