"""What a certificate says of an operation: its head, and its items in their order."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import NoneType
from typing import Any

from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.cleanup_text import PRUNED
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, OperationEvent
from storage_audit.models import Installation
from storage_audit.reading import read_in_steps

Kind, Status = CleanupOperation.Kind, CleanupOperation.Status
Outcome = CleanupItem.Outcome

Facts = dict[str, Any]

FORM = "storage_audit deletion certificate 1"
# English in every file, so that the same deletion has the same certificate for all who ask.
STATEMENTS = {
    Status.CLEAN: gettext_lazy(
        "Finished. Complete listings of the bucket show none of these objects any more."
    ),
    Status.CLEAN_WITH_PROTECTED: gettext_lazy(
        "Finished. Complete listings of the bucket show none of the objects any more that are"
        " called deleted or already absent. The protected ones are still there; each says why."
    ),
    Status.INCOMPLETE: gettext_lazy(
        "Not finished: this is an interim record. Only what is called deleted or already absent"
        " was seen gone; the rest is tried again."
    ),
    Status.FAILED: gettext_lazy(
        "Not finished: this is an interim record. Only what is called deleted or already absent"
        " was seen gone; the rest needs a person."
    ),
}
FINISHED = (Status.CLEAN, Status.CLEAN_WITH_PROTECTED)
GONE = (Outcome.DELETED, Outcome.ALREADY_ABSENT)
BOOKS = ("found", "deleted", "already_absent", "protected", "failed")
# Of the operation, as they are called there.
FACTS = {
    "bucket": str,
    "kind": str,
    "project_id": (str, NoneType),
    "project_deleted_at": (str, NoneType),
    "trigger": str,
    "requested_by": str,
    "origin": str,
    "released_by": str,
    "created_at": str,
    "started_at": (str, NoneType),
    "planned_at": (str, NoneType),
    "finished_at": (str, NoneType),
    "status": str,
    "error": str,
    "discovery": str,
    "strategy": str,
    "plan_digest": str,
    "ranges": list,
}
HEAD: Facts = {
    "form": str,
    "deletion_id": str,
    "installation": str,
    "finished": bool,
    "statement": str,
    **FACTS,
    "books": dict,
    "listings": list,
    "later_looks": list,
}
ITEM: Facts = {
    "key": str,
    "outcome": str,
    "reason": str,
    "seen_gone_at": (str, NoneType),
    "listing": (int, NoneType),
    "listed_under": (str, NoneType),
    "evidence": str,
    "found_in": str,
    "project_id": (str, NoneType),
    "size": (int, NoneType),
    "etag": str,
    "last_modified": (str, NoneType),
    "answer": str,
    "tries": int,
    "present_at": (str, NoneType),
    "escaped": bool,
    "identity": str,
}
LOOK = ("trigger", "kind", "requested_by", "status", "next_attempt_at", "finished_at", "error")


def why_none(operation: CleanupOperation) -> str:
    """Why the operation has no certificate, or none any more; empty when it has one."""
    if was_certified(operation):
        return PRUNED % {"archive": operation.archive}
    return why_never(operation)


def was_certified(operation: CleanupOperation) -> bool:
    """Whether it had one, until its items were archived. Its head is still known."""
    return operation.pruned_at is not None and not why_never(operation)


def why_never(operation: CleanupOperation) -> str:
    if operation.kind == Kind.VANISHED:
        return _("It lists projects. The cleanup of each has a certificate of its own.")
    if operation.kind == Kind.VERIFY:
        return _("A verification deletes nothing. Only a deletion has a certificate.")
    if operation.dry_run:
        return _("A dry run deletes nothing. Once its plan has been run, there is a certificate.")
    if operation.status == Status.SUPERSEDED:
        return _("It was ended before it was done. Its page says what became of each object.")
    if operation.status not in STATEMENTS:
        return _("None yet. There is one once the deletion has ended or is being retried.")
    return ""


def head_of(operation: CleanupOperation) -> Facts:
    installation = Installation.objects.first()
    with translation.override("en"):
        statement = str(STATEMENTS.get(Status(operation.status), ""))
    return {
        "form": FORM,
        "deletion_id": str(operation.pk),
        "installation": str(installation.pk) if installation else "",
        "finished": operation.status in FINISHED,
        "statement": statement,
        **{name: plain(getattr(operation, name)) for name in FACTS},
        "books": books_of(operation),
        "listings": [listing for _at, listing in listings(operation)],
        "later_looks": later_looks(operation),
    }


def plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def books_of(operation: CleanupOperation) -> dict[str, dict[str, int]]:
    return {
        name: {
            "objects": getattr(operation, name),
            "bytes": getattr(operation, f"{name}_bytes"),
        }
        for name in BOOKS
    }


def listings(operation: CleanupOperation) -> list[tuple[datetime, Facts]]:
    """The complete looks at all ranges, and when each was judged; before it was noted when a look
    began, that is all that is known of it."""
    looks = operation.events.filter(step="verify").order_by("at", "pk")
    return [
        (
            look.at,
            {
                "began": look.data.get("began"),
                "ended": look.data.get("ended", plain(look.at)),
                "result": look.message,
            },
        )
        for look in looks
    ]


def later_looks(operation: CleanupOperation) -> list[Facts]:
    """The late checks, and what people had verified, with what Cloudflare's own API showed."""
    seconds = OperationEvent.objects.filter(
        operation__parent=operation, step="verify", data__has_key="second_look"
    )
    told = {
        event.operation_id: {"said": event.message, **event.data["second_look"]}
        for event in seconds.order_by("at", "pk")
    }
    return [
        {
            "deletion_id": str(look.pk),
            **{name: plain(getattr(look, name)) for name in LOOK},
            "books": books_of(look),
            "second_look": told.get(look.pk),
        }
        for look in operation.children.order_by("created_at", "pk")
    ]


def items_of(operation: CleanupOperation, at_most: int | None = None) -> Iterator[Facts]:
    """By identity, byte by byte: the order of an index."""
    judged = [at for at, _listing in listings(operation)]
    rows = operation.items.order_by("identity", "escaped")
    names = ITEM.keys() - {"seen_gone_at", "listing", "listed_under"}
    for row in read_in_steps(rows.values("span", "changed_at", *names)[:at_most]):
        span, changed_at = row.pop("span"), row.pop("changed_at")
        gone = row["outcome"] in GONE
        # What a look showed is written just before the look itself.
        number = 1 + bisect_left(judged, changed_at)
        yield {
            **{name: plain(value) for name, value in row.items()},
            # CSV knows no difference between these two.
            "project_id": row["project_id"] or None,
            "seen_gone_at": plain(changed_at) if gone else None,
            "listing": number if gone and number <= len(judged) else None,
            "listed_under": None if span is None else operation.ranges[span],
        }


class Reckoning:
    """The books of items that pass by, and whether each of them comes after the one before."""

    def __init__(self) -> None:
        self.books = {name: {"objects": 0, "bytes": 0} for name in BOOKS}
        self.misplaced: str | None = None
        self.before: tuple[bytes, bool] | None = None

    def of(self, items: Iterable[Facts]) -> Iterator[Facts]:
        for item in items:
            self.count("found", item)
            # What is open was not seen gone.
            is_open = item["outcome"] in CleanupItem.OPEN
            self.count(CleanupItem.Outcome.FAILED if is_open else item["outcome"], item)
            if self.misplaced is None and self.before and place_of(item) <= self.before:
                self.misplaced = item["key"]
            self.before = place_of(item)
            yield item

    def count(self, name: str, item: Facts) -> None:
        line = self.books.setdefault(name, {"objects": 0, "bytes": 0})
        line["objects"] += 1
        line["bytes"] += item["size"] or 0


def place_of(item: Facts) -> tuple[bytes, bool]:
    return item["identity"].encode(), item["escaped"]
