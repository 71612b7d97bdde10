"""A cleanup's timeline: what happened when, the latest first to be found."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from django.db.models import Q
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.cleanup_text import event_label
from storage_audit.cleanup.field_labels import describe_field
from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.redaction import printable_text

EVENTS_SHOWN = 200
VALUES_SHOWN = 100
# This many of a kind in a row become one line, which opens.
MIN_GROUP_SIZE = 5
GROUPED_STEPS = ("delete", "command", "batch_size")


class CommandRun(NamedTuple):
    """A program that was run. Without an exit code it was killed, as its time was over."""

    program: str
    arguments: list[str]
    exit_code: int | None
    seconds: float
    stdout: str
    stderr: str


class TimelineEntry(NamedTuple):
    at: datetime
    label: str
    message: str
    data: list[tuple[str, str]]
    command: CommandRun | None


class EntryGroup(NamedTuple):
    """Entries of a kind, in a row."""

    entries: list[TimelineEntry]
    summary: str


def timeline_context(cleanup: Cleanup, query: QueryDict) -> dict[str, Any]:
    events = cleanup.events.order_by("-at", "-pk")
    if anchor := find_anchor_event(cleanup, query.get("earlier", "")):
        same = Q(at=anchor.at, pk__lt=anchor.pk)
        events = events.filter(Q(at__lt=anchor.at) | same)
    latest = list(events[: EVENTS_SHOWN + 1])
    shown = latest[EVENTS_SHOWN - 1 :: -1] if len(latest) > EVENTS_SHOWN else latest[::-1]
    earlier = f"?tab=timeline&earlier={shown[0].pk}#timeline" if shown else ""
    return {
        "runs": list(group_events(shown)),
        "earlier": earlier if len(latest) > EVENTS_SHOWN else "",
        "latest": "?tab=timeline#timeline" if anchor else "",
    }


def find_anchor_event(cleanup: Cleanup, pk: str) -> CleanupEvent | None:
    is_number = pk.isascii() and pk.isdigit() and len(pk) <= 18
    return cleanup.events.filter(pk=pk).first() if is_number else None


def group_events(events: Iterable[CleanupEvent]) -> Iterator[EntryGroup]:
    for step, group in groupby(events, key=lambda event: event.step):
        alike = list(group)
        if step in GROUPED_STEPS and len(alike) >= MIN_GROUP_SIZE:
            yield EntryGroup([build_entry(event) for event in alike], group_summary(alike))
        else:
            yield from (EntryGroup([build_entry(event)], "") for event in alike)


def group_summary(events: list[CleanupEvent]) -> str:
    """How many they are, and what their figures add up to."""
    count = len(events)
    text = ngettext("%d entry of this kind", "%d entries of this kind", count) % count
    if events[0].step == "command":
        failed = sum(event.data.get("exit_code") != 0 for event in events)
        return _("%(text)s, %(failed)d of them without success") % {"text": text, "failed": failed}
    if events[0].step == "batch_size":
        return text
    sums = Counter[str]()
    for event in events:
        sums.update({k: v for k, v in event.data.items() if isinstance(v, int)})
    return ", ".join([text, *(f"{describe_field(name)} {total}" for name, total in sums.items())])


def build_entry(event: CleanupEvent) -> TimelineEntry:
    command = build_command(event)
    data = [] if command else [(describe_field(k), value_text(v)) for k, v in event.data.items()]
    told = [(name, words) for name, words in data if words]
    return TimelineEntry(event.at, event_label(event), printable_text(event.message), told, command)


def build_command(event: CleanupEvent) -> CommandRun | None:
    if event.step != "command" or not event.data.get("argv"):
        return None
    program, *arguments = event.data["argv"]
    return CommandRun(
        printable_text(program),
        [printable_text(shlex.quote(each)) for each in arguments],
        event.data["exit_code"],
        event.data["seconds"],
        visible_lines(event.data["stdout"]),
        visible_lines(event.data["stderr"]),
    )


def visible_lines(output: str) -> str:
    return "\n".join(map(printable_text, output.splitlines()))


def value_text(value: Any) -> str:
    """A line for each value of a list, or for each of a group that says something; what is nested
    deeper, as it was written down."""
    if isinstance(value, dict):
        value = [
            f"{describe_field(name)}: {format_value(each)}" for name, each in value.items() if each
        ]
    if not isinstance(value, list):
        return printable_text(value if isinstance(value, str) else format_value(value))
    lines = [
        printable_text(each if isinstance(each, str) else format_value(each)) for each in value
    ]
    more = len(lines) - VALUES_SHOWN
    return "\n".join([*lines[:VALUES_SHOWN], *([_("and %d more") % more] if more > 0 else [])])


def format_value(value: Any) -> str:
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return json.dumps(value, ensure_ascii=False)
