"""A dry run as a document: what its plan would do, and what became of it once it was run."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit.bucket import prices
from storage_audit.cleanup import plan_summary
from storage_audit.cleanup.admin.cleanup_page import refuse_to_force
from storage_audit.cleanup.cleanup_text import NOT_WHILE_ALIVE, is_of_live_project
from storage_audit.cleanup.describe import label_of
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.formats import amount
from storage_audit.redaction import visible

Outcome = CleanupItem.Outcome
Status = CleanupOperation.Status
# So few are summed up for a page, where the plan was frozen before that was done with it.
FEW = 1000
OLD = timedelta(days=1)
# What a plan says, and the column of what becomes of that.
BECAME = (
    ("go", "deleted"),
    ("absent", "already_absent"),
    ("protected", "protected"),
    ("failed", "failed"),
)
GONE_BEFORE = gettext_lazy("It was not in the bucket any more.")


def context(request: HttpRequest, operation: CleanupOperation) -> dict[str, Any]:
    is_open = operation.status == Status.PLANNED
    summary = operation.summary
    if is_open and not summary and operation.found <= FEW:
        summary = plan_summary.summarise(operation)
    if not is_open and not summary:
        return {}
    plan = {"is_open": is_open, **who(operation), **(shown(summary) if summary else {})}
    if is_open:
        return {"plan": plan | offer(request, operation)}
    return {"plan": plan | outcome(operation, summary)}


def who(operation: CleanupOperation) -> dict[str, str]:
    return {
        "bucket": visible(operation.bucket),
        "asked_by": visible(operation.requested_by),
        "run_by": visible(operation.released_by),
    }


def offer(request: HttpRequest, operation: CleanupOperation) -> dict[str, Any]:
    alive = is_of_live_project(operation)
    planned_at = operation.planned_at
    return {
        "refusal": NOT_WHILE_ALIVE if alive else refuse_to_force(request, operation),
        "is_old": planned_at is not None and timezone.now() - planned_at > OLD,
    }


def shown(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "summed_up": True,
        "go": amount_of(summary["go"]),
        "absent": summary["absent"]["objects"],
        "stay": amount(*stay(summary)),
        "parts": [
            (_("By folder"), _("Folder"), groups(summary["folders"], _("(no folder)"))),
            (_("By file type"), _("Type"), groups(summary["types"], _("(no type, or a rare one)"))),
        ],
        "largest": [(size, visible(key)) for size, key in summary["largest"]],
        "reasons": list(reasons(summary["reasons"])),
        "other_reasons": summary["reasons"]["others"],
        "time": takes(summary),
        "basis": basis(summary["speed"]),
        **costs(summary["calls"]),
    }


def stay(summary: dict[str, Any]) -> tuple[int, int]:
    both = summary["protected"], summary["failed"]
    return sum(each["objects"] for each in both), sum(each["bytes"] for each in both)


def amount_of(figures: dict[str, int]) -> str:
    return amount(figures["objects"], figures["bytes"])


def groups(found: dict[str, Any], nameless: str) -> dict[str, Any]:
    rows = [
        (visible(row["name"]) or nameless, row["objects"], row["bytes"]) for row in found["rows"]
    ]
    return {"rows": rows, "others": found["others"], "rest": amount_of(found)}


def reasons(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in found["rows"]:
        outcome, _space, reason = row["name"].partition(" ")
        yield {
            "outcome": outcome,
            "label": Outcome(outcome).label if outcome else "",
            "reason": visible(reason) or (GONE_BEFORE if outcome else _("(rare reasons)")),
            "amount": amount_of(row),
            "keys": [visible(key) for key in row["keys"]],
            "more": row["objects"] - len(row["keys"]),
        }


def takes(summary: dict[str, Any]) -> str:
    minutes: float = summary["go"]["objects"] / summary["speed"]["rate"] / 60
    if minutes < 1:
        return _("less than a minute")
    if minutes < 120:
        return ngettext("about %d minute", "about %d minutes", round(minutes)) % round(minutes)
    return _("about %d hours") % round(minutes / 60)


def basis(speed: dict[str, float]) -> str:
    rate = f"{speed['rate']:,.0f}" if speed["rate"] >= 10 else f"{speed['rate']:.1f}"
    if not speed["cleanups"]:
        text = _(
            "No large cleanup has ended here with this strategy. It goes by %s objects a second, as"
            " measured on another machine and another store."
        )
        return text % rate
    text = ngettext(
        "The latest large cleanup with this strategy deleted %(rate)s objects a second.",
        "The latest %(count)d large cleanups with this strategy deleted %(rate)s objects a second.",
        int(speed["cleanups"]),
    )
    return text % {"rate": rate, "count": speed["cleanups"]}


def costs(calls: dict[str, int]) -> dict[str, Any]:
    dollars = prices.dollars(calls.items())
    of_class = {"A": prices.CLASS_A, "B": prices.CLASS_B}
    counts = {
        name: sum(n for kind, n in calls.items() if prices.PRICES[kind] == price)
        for name, price in of_class.items()
    }
    return {
        "dollars": f"${dollars:,.2f}" if dollars >= 0.01 else _("less than $0.01"),
        "class_a": counts["A"],
        "class_b": counts["B"],
        "prices_of": prices.PRICES_OF,
    }


def outcome(operation: CleanupOperation, summary: dict[str, Any]) -> dict[str, Any]:
    dropped = summary.get("dropped")
    if operation.status not in CleanupOperation.CLOSED or dropped is None:
        return {}
    planned = sum(summary[name]["objects"] for name, _column in BECAME)
    return {
        "is_over": True,
        "became": list(became(operation, summary)),
        "dropped": list(reasons(dropped)),
        "other_dropped": dropped["others"],
        "came_after": max(0, operation.found - planned),
    }


def became(operation: CleanupOperation, summary: dict[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """What the plan said, and what became of that."""
    for name, column in BECAME:
        now = amount(getattr(operation, column), getattr(operation, f"{column}_bytes"))
        yield label_of(operation, column), amount_of(summary[name]), now
