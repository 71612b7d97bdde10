"""The hold of a cleanup: it is planned for its figures and limits, and then waits for its time. The
sweep lets go of ids whose hold is over."""

import logging
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Least
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup.models import Cleanup, Snapshot
from storage_audit.cleanup.worker_turn import Turn, TurnOver
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.models import KnownProject
from storage_audit.ownership import bucket_marker
from storage_audit.redaction import redact_secrets

logger = logging.getLogger(__name__)


def is_empty_and_held(cleanup: Cleanup) -> bool:
    return cleanup.is_held() and not cleanup.items.exists()


def rest_until_hold_ends(cleanup: Cleanup) -> None:
    """End the turn, as its plan is not to be carried out yet."""
    assert cleanup.held_until
    with transaction.atomic():
        cleanup.rest_until_hold_ends()
        cleanup.change_if(Q(), progress={"totals": cleanup.items.by_outcome()})
        cleanup.record("held", _("Held until %s.") % format_utc(cleanup.held_until))


def require_hold_over(work: Turn) -> None:
    """Does the store's clock agree that the hold is over? The database's may be ahead. Raises
    TurnOver and StoreError."""
    cleanup = work.cleanup
    if cleanup.held_until is None:
        return
    left = cleanup.held_until - bucket_marker.read_store_time(cleanup.bucket)
    if left > timedelta(0):
        text = _("By the store's clock the hold is not over. Check the database's clock.")
        cleanup.record("held", text)
        raise TurnOver(min(left, conf().retry_longest))


def end_past_holds() -> None:
    """Let go of held ids whose time is over, such as those of projects without files, once the
    store's clock agrees. An open cleanup does so itself with its first request."""
    if not any(past.exists() for past in find_past_holds(DatabaseNow())):
        return
    try:
        now = Least(DatabaseNow(), Value(bucket_marker.read_store_time(conf().bucket)))
    except StoreError as error:
        logger.warning("Expired holds could not be ended: %s", redact_secrets(str(error)))
        return
    ids, snapshots = find_past_holds(now)
    ids.update(kept_for="")
    snapshots.delete()


def find_past_holds(now: Any) -> tuple[QuerySet[KnownProject], QuerySet[Snapshot]]:
    """The held ids whose time is over, and the copies of rows that nobody can restore any more:
    also of deleted rows, and of projects that were created again past us."""
    same = {"project_id": OuterRef("pk"), "project_deleted_at": OuterRef("deleted_at")}
    cleanups = Cleanup.objects.filter(**same, parent=None).deleting().of_projects()
    waiting = Exists(cleanups.open()) | Exists(cleanups.filter(held_until__gt=now))
    held = KnownProject.objects.filter(kept_for=KnownProject.KeptFor.HOLD)
    kept = Cleanup.objects.filter(snapshot=OuterRef("pk"), first_request_at=None)
    alive = Exists(kept.open()) | Exists(kept.filter(held_until__gt=now))
    return held.filter(~waiting), Snapshot.objects.filter(~alive)
