import json
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model

from storage_audit.cleanup import describe
from storage_audit.cleanup.cleanup_text import meaning
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, OperationEvent
from storage_audit.formats import amount
from storage_audit.management.console import (
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    deletion_id,
    for_a_reader,
)
from storage_audit.management.documented import DocumentedCommand
from storage_audit.reading import read_in_steps
from storage_audit.redaction import visible

POLL = 1.0  # seconds
Status = CleanupOperation.Status
EVENT = ("at", "step", "message", "data")
ITEM = ("key", "outcome", "reason", "answer", "evidence", "found_in", "project_id", "size")
CHILD = ("id", "trigger", "status", "next_attempt_at")
BOOKS = ("found", "deleted", "already_absent", "protected", "failed")
OPERATION = (
    *describe.FACTS,
    "dry_run",
    "status",
    "error",
    *BOOKS,
    *(f"{name}_bytes" for name in BOOKS),
)


class Command(DocumentedCommand):
    help = (
        "Prints a deletion whole: its facts, its timeline, the late checks that follow it, its"
        " books, and what happens next. Changes nothing, and asks the store nothing."
    )
    epilog = """
    examples:
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --follow
      python manage.py deletion_log 9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983 --items --json

    --follow stays while the operation is pending, running or incomplete, and prints each event when
    it is committed. It ends when the operation is over (clean, superseded, a verification that is
    done), waits for a person (planned, blocked), or is tried only once a day (failed). Late checks
    are operations of their own.

    exit codes:
      0    it was printed; with --follow, it is over, or planned
      1    with --follow: it is blocked or failed, or a verification found differences
      2    wrong use, also when there is no such deletion
      130  interrupted; the operation goes on
      141  whoever read it, such as head, had enough; the operation goes on

    Next: verify_cleanup with the same id looks again; release_cleanup shows what blocks it. The log
    of web and worker has the same id in each line, and tells of the errors of programs.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "operation",
            metavar="DELETION_ID",
            type=deletion_id,
            help="the deletion id: cleanup_project prints it, and the admin shows it",
        )
        parser.add_argument(
            "--follow",
            action="store_true",
            help="stay, and print what happens, until it is over or waits for a person",
        )
        parser.add_argument(
            "--items",
            action="store_true",
            help="print each key too, with what became of it and why; there may be a million",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object a line; its “type” is event, item, child or operation",
        )

    def handle(
        self, *, operation: UUID, follow: bool, items: bool, as_json: bool, **options: object
    ) -> None:
        found = CleanupOperation.objects.filter(pk=operation).first()
        if found is None:
            raise CommandError(
                f"There is no deletion {operation}. The admin lists all of them, under Cleanup"
                " operations.",
                returncode=WRONG_USE,
            )
        try:
            with for_a_reader():
                for line in (json_lines if as_json else text_lines)(found, follow, items):
                    self.stdout.write(line)
                    self.stdout.flush()
        except KeyboardInterrupt as interrupt:
            text = f"Interrupted. Operation {operation} goes on; this only looked at it."
            raise CommandError(text, returncode=INTERRUPTED) from interrupt
        if follow and found.status in (Status.BLOCKED, Status.FAILED, Status.INCOMPLETE):
            text = f"Operation {operation} is {found.get_status_display()}, as said above."
            raise CommandError(text, returncode=FAILED)


def events(operation: CleanupOperation, follow: bool) -> Iterator[OperationEvent]:
    """Each event once, in the timeline's order; one that was committed late follows those that
    were there. With `follow` they end, and the operation is up to date, when it is at rest."""
    seen = set()
    while True:
        # First, as its last events are committed with its end.
        operation.refresh_from_db()
        for event in operation.events.all():
            if event.pk not in seen:
                seen.add(event.pk)
                yield event
        if not follow or is_at_rest(operation):
            return
        time.sleep(POLL)


def is_at_rest(operation: CleanupOperation) -> bool:
    if operation.status == Status.INCOMPLETE:
        return operation.next_attempt_at is None
    return operation.status not in (Status.PENDING, Status.RUNNING)


def items_of(operation: CleanupOperation) -> Iterator[CleanupItem]:
    return read_in_steps(operation.items.order_by("key", "pk"))


def children_of(operation: CleanupOperation) -> Iterable[CleanupOperation]:
    return operation.children.order_by("next_attempt_at", "created_at")


def text_lines(operation: CleanupOperation, follow: bool, items: bool) -> Iterator[str]:
    told = facts(operation)
    for label, value in told.items():
        yield f"{label}: {value}"
    yield "\ntimeline:"
    for event in events(operation, follow):
        data = json.dumps(event.data, ensure_ascii=False) if event.data else ""
        line = visible(f"{event.step}: {event.message} {data}".rstrip())
        yield f"  {moment(event.at)}  {line}"
    if items:
        yield "\nitems:"
        for item in (describe.shown_item(operation, each) for each in items_of(operation)):
            why = item["reason"] or item["answer"] or item["evidence"]
            yield f"  {item['outcome']}: {item['key']}: {why}"
    for child in children_of(operation):
        due = f", {moment(child.next_attempt_at)}" if child.next_attempt_at else ""
        yield f"\n{child.get_trigger_display()} {child.pk}: {child.get_status_display()}{due}"
    now = facts(operation)
    if changed := [label for label in told | now if told.get(label) != now.get(label)]:
        yield "\nchanged since:"
        yield from (f"  {label}: {now.get(label, 'none')}" for label in changed)
    yield "\nbooks:"
    for outcome in describe.books(operation):
        if outcome.objects:
            yield f"  {outcome.label}: {amount(outcome.objects, outcome.size)}"
    yield f"\n{operation.get_status_display()}"
    yield from map(visible, meaning(operation))


def facts(operation: CleanupOperation) -> dict[str, str]:
    return {
        str(label): moment(value) if isinstance(value, datetime) else str(value)
        for label, value, _explained in describe.facts(operation)
    }


def moment(at: datetime) -> str:
    return at.isoformat(" ", "milliseconds")


def json_lines(operation: CleanupOperation, follow: bool, items: bool) -> Iterator[str]:
    for event in events(operation, follow):
        yield object_of("event", event, EVENT)
    for item in items_of(operation) if items else ():
        yield object_of("item", item, ITEM)
    for child in children_of(operation):
        yield object_of("child", child, CHILD)
    closed = operation.status in CleanupOperation.CLOSED
    books = {} if closed else operation.items.books()
    yield object_of("operation", operation, OPERATION, **books)


def object_of(kind: str, row: Model, names: tuple[str, ...], **more: object) -> str:
    facts = {name: getattr(row, name) for name in names}
    return json.dumps({"type": kind, **facts, **more}, cls=DjangoJSONEncoder)
