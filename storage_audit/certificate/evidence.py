"""The content of a certificate: its head, and its items in order."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import NoneType
from typing import Any

from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.cleanup_text import PRUNED_TEXT
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.models import DatabaseIdentity
from storage_audit.read_in_steps import read_in_steps

Kind, Status = Cleanup.Kind, Cleanup.Status
Outcome = CleanupItem.Outcome

Facts = dict[str, Any]

FORMAT_NAME = "storage_audit deletion certificate 1"
# English in every file, so the same deletion has the same certificate for everyone.
STATEMENTS = {
    Status.CLEAN: gettext_lazy(
        "Finished. All these files are gone, confirmed by complete listings of the bucket."
    ),
    Status.CLEAN_WITH_KEPT: gettext_lazy(
        "Finished. All files marked deleted or already gone are gone, confirmed by"
        " complete listings of the bucket. Kept files are still there, each with its"
        " reason."
    ),
    Status.RETRYING: gettext_lazy(
        "Not finished: this is an interim record. Only files marked deleted or already"
        " gone are confirmed gone. We retry the rest."
    ),
    Status.FAILED: gettext_lazy(
        "Not finished: this is an interim record. Only files marked deleted or already"
        " gone are confirmed gone. The rest needs a person."
    ),
}
FINISHED_STATUSES = (Status.CLEAN, Status.CLEAN_WITH_KEPT)
GONE_OUTCOMES = (Outcome.DELETED, Outcome.ALREADY_GONE)
TOTAL_FIELDS = ("found", "deleted", "already_gone", "kept", "failed")
# Fields of the cleanup that have the same name in the head.
CLEANUP_FIELDS = {
    "bucket": str,
    "kind": str,
    "project_id": (str, NoneType),
    "project_deleted_at": (str, NoneType),
    "trigger": str,
    "requested_by": str,
    "origin": str,
    "limits_waived_by": str,
    "created_at": str,
    "started_at": (str, NoneType),
    "planned_at": (str, NoneType),
    "finished_at": (str, NoneType),
    "status": str,
    "message": str,
    "discovery": str,
    "strategy": str,
    "plan_digest": str,
    "listed_prefixes": list,
}
HEAD_FIELDS: Facts = {
    "form": str,
    "deletion_id": str,
    "database": str,
    "finished": bool,
    "statement": str,
    **CLEANUP_FIELDS,
    "totals": dict,
    "listings": list,
    "later_looks": list,
}
ITEM_FIELDS: Facts = {
    "key": str,
    "outcome": str,
    "reason": str,
    "seen_gone_at": (str, NoneType),
    "listing": (int, NoneType),
    "listed_under": (str, NoneType),
    "owner_evidence": str,
    "found_in": str,
    "project_id": (str, NoneType),
    "size": (int, NoneType),
    "etag": str,
    "last_modified": (str, NoneType),
    "store_answer": str,
    "attempts": int,
    "last_seen_at": (str, NoneType),
    "escaped": bool,
    "identity": str,
}
VERIFICATION_FIELDS = (
    "trigger",
    "kind",
    "requested_by",
    "status",
    "next_attempt_at",
    "finished_at",
    "message",
)


def why_no_certificate(cleanup: Cleanup) -> str:
    """Why the cleanup has no certificate, or none any more; empty when it has one."""
    if was_certified(cleanup):
        return PRUNED_TEXT % {"archive": cleanup.archive}
    return why_never_certified(cleanup)


def was_certified(cleanup: Cleanup) -> bool:
    """Whether it had one, until its items were archived. Its head is still known."""
    return cleanup.pruned_at is not None and not why_never_certified(cleanup)


def why_never_certified(cleanup: Cleanup) -> str:
    if cleanup.kind == Kind.VANISHED:
        return _("This cleanup covers many projects. Each project's own cleanup has a certificate.")
    if cleanup.kind == Kind.VERIFY:
        return _("A verification deletes nothing, so it has no certificate.")
    if cleanup.dry_run:
        return _("A dry run deletes nothing. There is a certificate once its plan has run.")
    if cleanup.status == Status.UNDONE:
        return _("The deletion was undone, so none of its files was deleted.")
    if cleanup.status == Status.CANCELLED:
        return _("The cleanup was cancelled. Its page shows what happened to each file.")
    if cleanup.status == Status.SUPERSEDED:
        return _("The cleanup ended before it was done. Its page shows what happened to each file.")
    if cleanup.status not in STATEMENTS:
        return _(
            "Not available yet. There is a certificate once the deletion has ended or is"
            " being retried."
        )
    return ""


def certificate_head(cleanup: Cleanup) -> Facts:
    identity_row = DatabaseIdentity.objects.first()
    with translation.override("en"):
        statement = str(STATEMENTS.get(Status(cleanup.status), ""))
    return {
        "form": FORMAT_NAME,
        "deletion_id": str(cleanup.pk),
        "database": str(identity_row.pk) if identity_row else "",
        "finished": cleanup.status in FINISHED_STATUSES,
        "statement": statement,
        **{name: plain_value(getattr(cleanup, name)) for name in CLEANUP_FIELDS},
        "totals": cleanup_totals(cleanup),
        "listings": [listing for _at, listing in complete_listings(cleanup)],
        "later_looks": later_verifications(cleanup),
    }


def plain_value(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def cleanup_totals(cleanup: Cleanup) -> dict[str, dict[str, int]]:
    return {
        name: {
            "objects": getattr(cleanup, name),
            "bytes": getattr(cleanup, f"{name}_bytes"),
        }
        for name in TOTAL_FIELDS
    }


def complete_listings(cleanup: Cleanup) -> list[tuple[datetime, Facts]]:
    """The complete listings of all ranges, and when each was judged."""
    # Other events of this step, such as a second check that waits, are not of a listing.
    ended = cleanup.events.filter(step="verify", data__has_key="ended").order_by("at", "pk")
    return [
        (
            event.at,
            {
                "began": event.data["began"],
                "ended": event.data["ended"],
                "result": event.message,
            },
        )
        for event in ended
    ]


def later_verifications(cleanup: Cleanup) -> list[Facts]:
    """The follow-up checks and requested verifications, with what Cloudflare's own API showed."""
    seconds = CleanupEvent.objects.filter(
        cleanup__parent=cleanup, step="verify", data__has_key="second_look"
    )
    told = {
        event.cleanup_id: {"said": event.message, **event.data["second_look"]}
        for event in seconds.order_by("at", "pk")
    }
    return [
        {
            "deletion_id": str(look.pk),
            **{name: plain_value(getattr(look, name)) for name in VERIFICATION_FIELDS},
            "totals": cleanup_totals(look),
            "second_look": told.get(look.pk),
        }
        for look in cleanup.children.order_by("created_at", "pk")
    ]


def certificate_items(cleanup: Cleanup, at_most: int | None = None) -> Iterator[Facts]:
    """By identity, byte by byte: the order of an index."""
    judged = [at for at, _listing in complete_listings(cleanup)]
    rows = cleanup.items.order_by("identity", "escaped")
    names = ITEM_FIELDS.keys() - {"seen_gone_at", "listing", "listed_under"}
    for row in read_in_steps(rows.values("range_index", "changed_at", *names)[:at_most]):
        span, changed_at = row.pop("range_index"), row.pop("changed_at")
        gone = row["outcome"] in GONE_OUTCOMES
        # The result of a listing is written just before the listing itself.
        number = 1 + bisect_left(judged, changed_at)
        yield {
            **{name: plain_value(value) for name, value in row.items()},
            "seen_gone_at": plain_value(changed_at) if gone else None,
            "listing": number if gone and number <= len(judged) else None,
            "listed_under": None if span is None else cleanup.listed_prefixes[span],
        }


class RunningTotals:
    """The totals of items that pass by, and whether each of them comes after the one before."""

    def __init__(self) -> None:
        self.totals = {name: {"objects": 0, "bytes": 0} for name in TOTAL_FIELDS}
        self.misplaced_key: str | None = None
        self.previous_place: tuple[bytes, bool] | None = None

    def count_items(self, items: Iterable[Facts]) -> Iterator[Facts]:
        for item in items:
            self.add_item("found", item)
            # Open items were not seen gone.
            is_open = item["outcome"] in CleanupItem.OPEN
            self.add_item(CleanupItem.Outcome.FAILED if is_open else item["outcome"], item)
            if (
                self.misplaced_key is None
                and self.previous_place
                and item_place(item) <= self.previous_place
            ):
                self.misplaced_key = item["key"]
            self.previous_place = item_place(item)
            yield item

    def add_item(self, name: str, item: Facts) -> None:
        line = self.totals.setdefault(name, {"objects": 0, "bytes": 0})
        line["objects"] += 1
        line["bytes"] += item["size"] or 0


def item_place(item: Facts) -> tuple[bytes, bool]:
    return item["identity"].encode(), item["escaped"]
