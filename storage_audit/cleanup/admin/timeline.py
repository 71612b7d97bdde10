"""An operation's timeline: what happened when, the latest first to be found."""

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

from storage_audit.cleanup.cleanup_text import about
from storage_audit.cleanup.field_words import words_for
from storage_audit.cleanup.models import CleanupOperation, OperationEvent
from storage_audit.redaction import visible

EVENTS_SHOWN = 200
VALUES_SHOWN = 100
# So many of a kind in a row are one line, which opens.
MANY = 5
OF_A_KIND = ("delete", "command", "pace")


class Command(NamedTuple):
    """A program that was run. Without an exit code it was killed, as its time was over."""

    program: str
    arguments: list[str]
    exit_code: int | None
    seconds: float
    stdout: str
    stderr: str


class Entry(NamedTuple):
    at: datetime
    about: str
    message: str
    data: list[tuple[str, str]]
    command: Command | None


class Run(NamedTuple):
    """Entries of a kind, in a row."""

    entries: list[Entry]
    summary: str


def timeline(operation: CleanupOperation, query: QueryDict) -> dict[str, Any]:
    events = operation.events.order_by("-at", "-pk")
    if anchor := anchor_of(operation, query.get("earlier", "")):
        same = Q(at=anchor.at, pk__lt=anchor.pk)
        events = events.filter(Q(at__lt=anchor.at) | same)
    latest = list(events[: EVENTS_SHOWN + 1])
    shown = latest[EVENTS_SHOWN - 1 :: -1] if len(latest) > EVENTS_SHOWN else latest[::-1]
    return {
        "runs": list(runs(shown)),
        "earlier": f"?earlier={shown[0].pk}#timeline" if len(latest) > EVENTS_SHOWN else "",
        "latest": "?#timeline" if anchor else "",
    }


def anchor_of(operation: CleanupOperation, pk: str) -> OperationEvent | None:
    is_number = pk.isascii() and pk.isdigit() and len(pk) <= 18
    return operation.events.filter(pk=pk).first() if is_number else None


def runs(events: Iterable[OperationEvent]) -> Iterator[Run]:
    for step, group in groupby(events, key=lambda event: event.step):
        alike = list(group)
        if step in OF_A_KIND and len(alike) >= MANY:
            yield Run([entry(event) for event in alike], summary(alike))
        else:
            yield from (Run([entry(event)], "") for event in alike)


def summary(events: list[OperationEvent]) -> str:
    """How many they are, and what their figures add up to."""
    count = len(events)
    text = ngettext("%d entry of this kind", "%d entries of this kind", count) % count
    if events[0].step == "command":
        failed = sum(event.data.get("exit_code") != 0 for event in events)
        return _("%(text)s, %(failed)d of them without success") % {"text": text, "failed": failed}
    if events[0].step == "pace":
        return text
    sums = Counter[str]()
    for event in events:
        sums.update({k: v for k, v in event.data.items() if isinstance(v, int)})
    return ", ".join([text, *(f"{words_for(name)} {total}" for name, total in sums.items())])


def entry(event: OperationEvent) -> Entry:
    command = command_of(event)
    data = [] if command else [(words_for(k), in_words(v)) for k, v in event.data.items()]
    told = [(name, words) for name, words in data if words]
    return Entry(event.at, about(event), visible(event.message), told, command)


def command_of(event: OperationEvent) -> Command | None:
    if event.step != "command" or not event.data.get("argv"):
        return None
    program, *arguments = event.data["argv"]
    return Command(
        visible(program),
        [visible(shlex.quote(each)) for each in arguments],
        event.data["exit_code"],
        event.data["seconds"],
        lines_of(event.data["stdout"]),
        lines_of(event.data["stderr"]),
    )


def lines_of(output: str) -> str:
    return "\n".join(map(visible, output.splitlines()))


def in_words(value: Any) -> str:
    """A line for each value of a list, or for each of a group that says something; what is nested
    deeper, as it was written down."""
    if isinstance(value, dict):
        value = [f"{words_for(name)}: {written(each)}" for name, each in value.items() if each]
    if not isinstance(value, list):
        return visible(value if isinstance(value, str) else written(value))
    lines = [visible(each if isinstance(each, str) else written(each)) for each in value]
    more = len(lines) - VALUES_SHOWN
    return "\n".join([*lines[:VALUES_SHOWN], *([_("and %d more") % more] if more > 0 else [])])


def written(value: Any) -> str:
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return json.dumps(value, ensure_ascii=False)
