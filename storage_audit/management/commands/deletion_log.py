import json
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model

from storage_audit.cleanup import describe_cleanup
from storage_audit.cleanup.cleanup_text import status_label
from storage_audit.cleanup.headline_text import explain_status
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.display_formats import format_amount
from storage_audit.management.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    exit_on_closed_pipe,
    find_cleanup,
    parse_deletion_id,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import printable_text

POLL_SECONDS = 1.0  # seconds
Status = Cleanup.Status
EVENT_FIELDS = ("at", "step", "message", "data")
ITEM_FIELDS = (
    "key",
    "outcome",
    "reason",
    "store_answer",
    "owner_evidence",
    "found_in",
    "project_id",
    "size",
)
CHILD_FIELDS = ("id", "trigger", "status", "next_attempt_at")
TOTAL_FIELDS = ("found", "deleted", "already_gone", "kept", "failed")
CLEANUP_FIELDS = (
    *describe_cleanup.FACT_FIELDS,
    "dry_run",
    "status",
    "message",
    *TOTAL_FIELDS,
    *(f"{name}_bytes" for name in TOTAL_FIELDS),
)


class Command(DocumentedCommand):
    help = (
        "Prints a cleanup's details, timeline, follow-up checks, totals and next step. Changes"
        " nothing, and does not contact the store."
    )
    epilog = """
    examples:
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --follow
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --items --json

    --follow prints new timeline entries while the cleanup is waiting, running or retrying. It
    stops when the cleanup has ended, is held, is a preview, needs approval or failed. A failed
    cleanup is retried once a day. Follow-up checks are separate cleanups.

    exit codes:
      0    printed; with --follow, the cleanup has ended, is held or is a preview
      1    with --follow: the cleanup needs approval or failed, or a verification found differences
      2    wrong usage, also when there is no such deletion
      130  interrupted with Ctrl-C; the cleanup continues
      141  the reader of the output, such as head, closed the pipe; the cleanup continues

    Next: verify_cleanup with the same ID checks the bucket; approve_cleanup shows why a cleanup
    needs approval. The logs of web and worker have the same ID in each line.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "cleanup",
            metavar="DELETION_ID",
            type=parse_deletion_id,
            help="the deletion ID, as cleanup_project and the admin show it",
        )
        parser.add_argument(
            "--follow",
            action="store_true",
            help="print new timeline entries until the cleanup ends or needs you",
        )
        parser.add_argument(
            "--items",
            action="store_true",
            help="also print each file with its outcome and reason; there may be a million",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object per line; its “type” is event, item, child or cleanup",
        )

    def handle(
        self, *, cleanup: UUID, follow: bool, items: bool, as_json: bool, **options: object
    ) -> None:
        found = find_cleanup(cleanup)
        try:
            with exit_on_closed_pipe():
                for line in (json_lines if as_json else text_lines)(found, follow, items):
                    self.stdout.write(line)
                    self.stdout.flush()
        except KeyboardInterrupt as interrupt:
            text = f"Interrupted. Cleanup {cleanup} continues."
            raise CommandError(text, returncode=EXIT_INTERRUPTED) from interrupt
        if follow and found.status in (Status.BLOCKED, Status.FAILED, Status.DIFFERS):
            text = f"Cleanup {cleanup}: {found.get_status_display()}. See above."
            raise CommandError(text, returncode=EXIT_FAILED)


def read_events(cleanup: Cleanup, follow: bool) -> Iterator[CleanupEvent]:
    """Each event once, in the timeline's order; one that was committed late comes after those that
    were there. With `follow` they end when the cleanup is at rest, and it is up to date then."""
    seen = set()
    while True:
        # Refresh first, as the last events are committed with the cleanup's end.
        cleanup.refresh_from_db()
        for event in cleanup.events.all():
            if event.pk not in seen:
                seen.add(event.pk)
                yield event
        under_way = cleanup.status in (Status.PENDING, Status.RUNNING, Status.RETRYING)
        is_held = cleanup.step == Cleanup.Step.HELD and cleanup.shown_hold()
        if not follow or not under_way or is_held:
            return
        time.sleep(POLL_SECONDS)


def read_items(cleanup: Cleanup) -> Iterator[CleanupItem]:
    return read_in_steps(cleanup.items.order_by("key", "pk"))


def child_cleanups(cleanup: Cleanup) -> Iterable[Cleanup]:
    return cleanup.children.order_by("next_attempt_at", "created_at")


def text_lines(cleanup: Cleanup, follow: bool, items: bool) -> Iterator[str]:
    told = fact_texts(cleanup)
    for label, value in told.items():
        yield f"{label}: {value}"
    yield "\ntimeline:"
    for event in read_events(cleanup, follow):
        data = json.dumps(event.data, ensure_ascii=False) if event.data else ""
        line = printable_text(f"{event.step}: {event.message} {data}".rstrip())
        yield f"  {format_time(event.at)}  {line}"
    if items:
        yield "\nfiles:"
        for item in (describe_cleanup.item_texts(cleanup, each) for each in read_items(cleanup)):
            why = item["reason"] or item["store_answer"] or item["owner_evidence"]
            yield f"  {item['outcome']}: {item['key']}: {why}"
    for child in child_cleanups(cleanup):
        due = f", {format_time(child.next_attempt_at)}" if child.next_attempt_at else ""
        yield f"\n{child.get_trigger_display()} {child.pk}: {status_label(child)}{due}"
    now = fact_texts(cleanup)
    if changed := [label for label in told | now if told.get(label) != now.get(label)]:
        yield "\nchanged since:"
        yield from (f"  {label}: {now.get(label, 'none')}" for label in changed)
    yield "\ntotals:"
    for outcome in describe_cleanup.totals_lines(cleanup):
        if outcome.objects:
            yield f"  {outcome.label}: {format_amount(outcome.objects, outcome.size)}"
    yield f"\n{status_label(cleanup)}"
    yield from map(printable_text, explain_status(cleanup))


def fact_texts(cleanup: Cleanup) -> dict[str, str]:
    return {
        str(label): format_time(value) if isinstance(value, datetime) else str(value)
        for label, value, _explained in describe_cleanup.cleanup_facts(cleanup)
    }


def format_time(at: datetime) -> str:
    return at.isoformat(" ", "milliseconds")


def json_lines(cleanup: Cleanup, follow: bool, items: bool) -> Iterator[str]:
    for event in read_events(cleanup, follow):
        yield row_json("event", event, EVENT_FIELDS)
    for item in read_items(cleanup) if items else ():
        yield row_json("item", item, ITEM_FIELDS)
    for child in child_cleanups(cleanup):
        yield row_json("child", child, CHILD_FIELDS)
    closed = cleanup.status in Cleanup.FINISHED
    totals = {} if closed else cleanup.items.totals()
    yield row_json("cleanup", cleanup, CLEANUP_FIELDS, **totals)


def row_json(kind: str, row: Model, names: tuple[str, ...], **more: object) -> str:
    facts = {name: getattr(row, name) for name in names}
    return json.dumps({"type": kind, **facts, **more}, cls=DjangoJSONEncoder)
