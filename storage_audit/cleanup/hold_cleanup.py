"""The hold of a cleanup: it is planned for its figures and limits, and then waits for its time."""

from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.worker_turn import Turn, TurnOver
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.ownership import bucket_marker


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
