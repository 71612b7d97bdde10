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
from storage_audit.cleanup.admin.cleanup_page import force_refusal
from storage_audit.cleanup.cleanup_text import PROJECT_EXISTS_TEXT, is_of_live_project
from storage_audit.cleanup.describe_cleanup import field_label
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.display_formats import format_amount, format_price
from storage_audit.redaction import printable_text

Outcome = CleanupItem.Outcome
Status = Cleanup.Status
# At most this many items are summed up for a page, for plans frozen without a summary.
MAX_SUMMARISED_ITEMS = 1000
STALE_AFTER = timedelta(days=1)
# A figure of the plan, and the column of its result.
OUTCOME_COLUMNS = (
    ("go", "deleted"),
    ("absent", "already_gone"),
    ("kept", "kept"),
    ("failed", "failed"),
)
ALREADY_GONE_REASON = gettext_lazy("Not in the bucket any more.")


def plan_context(request: HttpRequest, cleanup: Cleanup) -> dict[str, Any]:
    is_open = cleanup.status == Status.PLANNED
    summary = cleanup.plan_summary
    if is_open and not summary and cleanup.found <= MAX_SUMMARISED_ITEMS:
        summary = plan_summary.summarise_plan(cleanup)
    if not is_open and not summary:
        return {}
    plan = {
        "is_open": is_open,
        "bucket": printable_text(cleanup.bucket),
        "asked_by": printable_text(cleanup.requested_by),
        "run_by": printable_text(cleanup.limits_waived_by),
        **(summary_context(summary) if summary else {}),
    }
    if is_open:
        return {"plan": plan | run_offer(request, cleanup)}
    return {"plan": plan | outcome_context(cleanup, summary)}


def run_offer(request: HttpRequest, cleanup: Cleanup) -> dict[str, Any]:
    alive = is_of_live_project(cleanup)
    planned_at = cleanup.planned_at
    return {
        "refusal": PROJECT_EXISTS_TEXT if alive else force_refusal(request, cleanup),
        "is_old": planned_at is not None and timezone.now() - planned_at > STALE_AFTER,
    }


def summary_context(summary: dict[str, Any]) -> dict[str, Any]:
    staying = summary["kept"], summary["failed"]
    return {
        "summed_up": True,
        "go": group_amount(summary["go"]),
        "already_gone": summary["absent"]["objects"],
        "stay": format_amount(
            sum(each["objects"] for each in staying), sum(each["bytes"] for each in staying)
        ),
        "parts": [
            (_("By folder"), _("Folder"), group_table(summary["folders"], _("(no folder)"))),
            (
                _("By file type"),
                _("Type"),
                group_table(summary["types"], _("(no type, or a rare one)")),
            ),
        ],
        "largest": [(size, printable_text(key)) for size, key in summary["largest"]],
        "reasons": list(reason_rows(summary["reasons"])),
        "other_reasons": summary["reasons"]["others"],
        "time": estimated_time(summary),
        "basis": estimate_basis(summary["speed"]),
        **cost_context(summary["calls"]),
    }


def group_amount(figures: dict[str, int]) -> str:
    return format_amount(figures["objects"], figures["bytes"])


def group_table(found: dict[str, Any], nameless: str) -> dict[str, Any]:
    rows = [
        (printable_text(row["name"]) or nameless, row["objects"], row["bytes"])
        for row in found["rows"]
    ]
    return {"rows": rows, "others": found["others"], "rest": group_amount(found)}


def reason_rows(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in found["rows"]:
        outcome, _space, reason = row["name"].partition(" ")
        yield {
            "outcome": outcome,
            "label": Outcome(outcome).label if outcome else "",
            "reason": printable_text(reason)
            or (ALREADY_GONE_REASON if outcome else _("(rare reasons)")),
            "amount": group_amount(row),
            "keys": [printable_text(key) for key in row["keys"]],
            "more": row["objects"] - len(row["keys"]),
        }


def estimated_time(summary: dict[str, Any]) -> str:
    minutes: float = summary["go"]["objects"] / summary["speed"]["rate"] / 60
    if minutes < 1:
        return _("less than a minute")
    if minutes < 120:
        return ngettext("about %d minute", "about %d minutes", round(minutes)) % round(minutes)
    return _("about %d hours") % round(minutes / 60)


def estimate_basis(speed: dict[str, float]) -> str:
    rate = f"{speed['rate']:,.0f}" if speed["rate"] >= 10 else f"{speed['rate']:.1f}"
    if not speed["cleanups"]:
        text = _(
            "Estimated from %s files a second, as measured elsewhere. No large cleanup has ended"
            " here yet."
        )
        return text % rate
    text = ngettext(
        "Estimated from the latest large cleanup: %(rate)s files a second.",
        "Estimated from the latest %(count)d large cleanups: %(rate)s files a second.",
        int(speed["cleanups"]),
    )
    return text % {"rate": rate, "count": speed["cleanups"]}


def cost_context(calls: dict[str, int]) -> dict[str, Any]:
    of_class = {"A": prices.CLASS_A_PRICE, "B": prices.CLASS_B_PRICE}
    counts = {
        name: sum(n for kind, n in calls.items() if prices.PRICES_PER_MILLION[kind] == price)
        for name, price in of_class.items()
    }
    return {
        "dollars": format_price(prices.cost_in_dollars(calls.items())),
        "class_a": counts["A"],
        "class_b": counts["B"],
        "prices_of": prices.PRICES_DATE,
    }


def outcome_context(cleanup: Cleanup, summary: dict[str, Any]) -> dict[str, Any]:
    dropped = summary.get("dropped")
    if cleanup.status not in Cleanup.FINISHED or dropped is None:
        return {}
    planned = sum(summary[name]["objects"] for name, _column in OUTCOME_COLUMNS)
    return {
        "is_over": True,
        "became": list(outcome_rows(cleanup, summary)),
        "dropped": list(reason_rows(dropped)),
        "other_dropped": dropped["others"],
        "came_after": max(0, cleanup.found - planned),
    }


def outcome_rows(cleanup: Cleanup, summary: dict[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """What the plan said, and the result."""
    for name, column in OUTCOME_COLUMNS:
        now = format_amount(getattr(cleanup, column), getattr(cleanup, f"{column}_bytes"))
        yield field_label(cleanup, column), group_amount(summary[name]), now
