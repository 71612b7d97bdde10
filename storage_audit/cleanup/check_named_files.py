"""Files that a project's rows named, in its cleanup: which of them are in the bucket."""

from django.db import transaction
from django.utils import timezone
from django.utils.translation import ngettext

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.worker_turn import Turn

Outcome = CleanupItem.Outcome
FOUND_FIELDS = ["size", "etag", "last_modified", "last_seen_at", "outcome", "changed_at"]


def check_named_files(work: Turn) -> None:
    """Which of them are in the bucket. Raises TurnOver, StoreError, CannotConclude and
    LeaseLost."""
    cleanup = work.cleanup
    todo = cleanup.items.named().filter(last_seen_at=None, outcome=Outcome.KEPT)
    while looked := work.find_items(todo.order_by("key")):
        for item, listed in looked:
            item.changed_at = timezone.now()
            if listed is None:
                item.outcome = Outcome.ALREADY_GONE
            else:
                item.size, item.etag = listed.size, listed.etag
                item.last_modified, item.last_seen_at = listed.last_modified, timezone.now()
        with transaction.atomic():
            cleanup.renew(position=work.next_position())
            CleanupItem.objects.bulk_update(
                [item for item, _seen in looked], FOUND_FIELDS, batch_size=200
            )
        work.check_deadline()


def reset_named_files(cleanup: Cleanup) -> None:
    """Undo the check, which may have used another bucket."""
    named = cleanup.items.named()
    named.update(last_seen_at=None, outcome=Outcome.KEPT)


def kept_files_text(cleanup: Cleanup) -> str:
    kept = cleanup.items.named().filter(outcome=Outcome.KEPT).count()
    text = ngettext(
        "Kept: %d file that this project used.",
        "Kept: %d files that this project used.",
        kept,
    )
    return text % kept if kept else ""
