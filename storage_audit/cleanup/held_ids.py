"""Ids of projects whose deletion is held: nothing else may use them until then."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from django.db.models import Max, Value
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.models import Cleanup
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.models import KnownProject
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin

logger = logging.getLogger(__name__)
_recreation_allowed: ContextVar[bool] = ContextVar("storage_audit_recreation", default=False)


class ProjectHeld(Exception):
    """The id is that of a deleted project that can be restored; the message says how."""


def hold_values() -> dict[str, Any]:
    """The values of a cleanup whose deletion can be undone for a while; none without a grace
    period, or when the person who deletes erases at once."""
    origin = current_origin()
    if not conf().grace:
        return {}
    if origin.erase_reason:
        decided = {"decided_by": origin.user or "command", "decided_at": timezone.now()}
        return {**decided, "decision_reason": origin.erase_reason}
    return {"held_until": DatabaseNow(conf().grace)}


def hold_values_of_row(project_id: str | None) -> dict[str, Any]:
    """The same for a deleted R2Object row, which waits for its project's deletion if that is held
    for longer."""
    values = hold_values()
    held = Cleanup.objects.held().of_projects().filter(project_id=project_id)
    if "held_until" in values and (last := held.aggregate(at=Max("held_until"))["at"]):
        values["held_until"] = Greatest(values["held_until"], Value(last))
    return values


def hold_of_deletion(project_id: str, deleted_at: datetime) -> dict[str, Any]:
    """The same for one more cleanup of a deletion that can still be undone: it waits as long, and
    Undo ends it too."""
    known = KnownProject.objects.of_deletion(project_id, deleted_at)
    if not known.filter(kept_for=KnownProject.KeptFor.HOLD).exists():
        return {}
    same = Cleanup.objects.of_deletion(project_id, deleted_at).exclude(held_until=None)
    first = same.filter(parent=None).exclude(status__in=Cleanup.GIVEN_UP).first()
    return {"held_until": first.held_until, "snapshot": first.snapshot} if first else {}


@contextmanager
def allow_recreation() -> Iterator[None]:
    """Let the code in this block create projects with held ids. That supersedes their deletions,
    which can no longer be undone."""
    token = _recreation_allowed.set(True)
    try:
        yield
    finally:
        _recreation_allowed.reset(token)


def refuse_held_id(project_id: str) -> None:
    """Raises ProjectHeld for an id whose deletion can be undone, unless its row came past us."""
    if _recreation_allowed.get() or not is_storable(project_id):
        return
    held = KnownProject.objects.filter(pk=project_id, kept_for=KnownProject.KeptFor.HOLD)
    if held.exists() and not project_model.existing_ids([project_id]):
        text = _(
            "Project %s was deleted and can still be restored, so its id can't be used for a new"
            " project. Undo the deletion, or erase it now."
        )
        raise ProjectHeld(text % printable_text(project_id))


def find_held_owner(key: str) -> str | None:
    """The held project that alone can own this key; None where a live one can, too."""
    owners = get_key_formats().parse_key(key).owners
    held = KnownProject.objects.filter(kept_for=KnownProject.KeptFor.HOLD)
    if not owners or not (found := held.find_spelled(owners)):
        return None
    return None if project_model.living_ids(owners) else min(found)
