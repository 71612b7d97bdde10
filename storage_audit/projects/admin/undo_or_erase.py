"""What confirmation pages say about Undo, and the choice to erase the files at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Model
from django.http import HttpRequest
from django.utils.timesince import timeuntil
from django.utils.translation import gettext as _

from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.models import Snapshot
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.take_snapshot import snapshot_obstacle
from storage_audit.conf import conf
from storage_audit.redaction import printable_text
from storage_audit.request_origin import request_origin, use_origin
from storage_audit.roles import refusal_reason

ERASE_PERMISSION = "erase_cleanup"


def undo_text(model: type[Model]) -> str:
    """For how long a deletion of such a row can be undone, or that it can't."""
    if not conf().grace:
        return _("You can't undo this.")
    code = snapshot_obstacle(model)
    obstacle = Snapshot.Obstacle(code).label if code else ""
    words = {"period": format_period(conf().grace), "why": obstacle}
    if obstacle:
        text = _(
            "You can't undo this: %(why)s. For %(period)s you can cancel the cleanup, which keeps"
            " only the files."
        )
    else:
        text = _("You can undo this for %(period)s. The files stay in the bucket until then.")
    return text % words


def format_period(period: timedelta) -> str:
    """Such as “3 days”."""
    start = datetime(2000, 1, 1)
    return timeuntil(start + period, start)


def erase_context(request: HttpRequest, model: type[Model]) -> dict[str, Any]:
    """Of the page that confirms a deletion."""
    return {
        "undo_text": undo_text(model),
        "erase_offered": bool(conf().grace) and not refusal_reason(request, ERASE_PERMISSION),
        "erase_chosen": is_erase_chosen(request),
        "erase_reason": request.POST.get("erase_reason", ""),
    }


def is_erase_chosen(request: HttpRequest) -> bool:
    return request.POST.get("erase") == "now"


def find_erase_error(request: HttpRequest) -> str:
    """Why the choice can't be carried out, so that nothing is deleted; empty if it can."""
    if not is_erase_chosen(request):
        return ""
    if refusal := refusal_reason(request, ERASE_PERMISSION):
        return _("Nothing was deleted. %s") % refusal
    if not request.POST.get("erase_reason", "").strip():
        return _("Nothing was deleted. Enter a reason for erasing the files now.")
    try:
        pause_deletions.refuse_while_paused()
    except IllegalTransition as paused:
        return _("Nothing was deleted. %s") % printable_text(str(paused))
    return ""


@contextmanager
def erasing_as_chosen(request: HttpRequest) -> Iterator[None]:
    """Deletions in this block skip the hold if the person chose that."""
    if not is_erase_chosen(request):
        yield
        return
    reason = request.POST["erase_reason"].strip()
    with use_origin(replace(request_origin(request), erase_reason=reason)):
        yield
