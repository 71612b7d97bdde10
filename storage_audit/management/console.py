"""What commands share: the origin of requests, exit codes, and how a cleanup is shown."""

import getpass
import os
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import (
    CommandError,
    OutputWrapper,
)
from django.utils.translation import ngettext

from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import is_storable
from storage_audit.bucket.request_stats import record_requests
from storage_audit.cleanup.cleanup_text import hold_text
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.conf import conf
from storage_audit.models import validate_project_id
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import printable_text, redact_secrets
from storage_audit.request_origin import Origin, use_origin

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_PIPE_CLOSED = 128 + 13  # as a shell says of one that SIGPIPE ended
KEYS_SHOWN = 50
Outcome = CleanupItem.Outcome
Status = Cleanup.Status


@contextmanager
def command_context() -> Iterator[None]:
    """Records who asks and the requests to the store; turns errors of the store or the marker into
    one line and exit 1."""
    with record_requests(), use_origin(Origin(login_name(), f"command on {socket.gethostname()}")):
        try:
            yield
        except (CannotConclude, StoreError) as error:
            if getattr(error, "code", "") == "NoSuchBucket":
                raise CommandError(
                    f"The store has no bucket {printable_text(conf().bucket)}. Create it, or"
                    " correct the bucket or the address in the settings.",
                    returncode=EXIT_USAGE,
                ) from error
            raise CommandError(
                printable_text(redact_secrets(str(error))), returncode=EXIT_FAILED
            ) from error


@contextmanager
def exit_on_closed_pipe() -> Iterator[None]:
    """Exits when the reader of the output, such as head, has closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE_CLOSED)


def confirm_or_exit(question: str) -> None:
    """Ask a person; nobody is asked where there is no terminal."""
    if sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("Nothing was done.", returncode=EXIT_FAILED)


def storable_text(text: str) -> str:
    if not is_storable(text):
        raise ArgumentTypeError("it must be UTF-8 without NUL")
    return text


def parse_deletion_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise ArgumentTypeError(f"“{printable_text(text)}” is not a deletion ID.") from error


def add_decision_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "cleanup",
        metavar="DELETION_ID",
        type=parse_deletion_id,
        help="the deletion ID, as the cleanup's page in the admin shows it",
    )
    parser.add_argument("--reason", required=True, help="the reason; it is saved with the cleanup")


def find_cleanup(deletion_id: UUID) -> Cleanup:
    found = Cleanup.objects.filter(pk=deletion_id).first()
    if found is None:
        raise CommandError(
            f"There is no deletion {deletion_id}. Find its ID in the admin, under Cleanups.",
            returncode=EXIT_USAGE,
        )
    return found


def parse_project_id(text: str) -> str:
    try:
        validate_project_id(text)
    except ValidationError as error:
        raise ArgumentTypeError(printable_text(error.messages[0])) from error
    return text


def login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def remaining_items(cleanup: Cleanup) -> CleanupItemQuerySet:
    """What is still there, or would be if the dry run were run."""
    gone = [Outcome.DELETED, Outcome.ALREADY_GONE]
    if cleanup.dry_run:
        gone.append(Outcome.TO_DELETE)
    return cleanup.items.exclude(outcome__in=gone).order_by("outcome", "key")


def item_lines(items: CleanupItemQuerySet) -> Iterator[str]:
    """The first items, one a line, and how many more there are."""
    for item in items[:KEYS_SHOWN]:
        reason = item.reason or item.store_answer or item.owner_evidence
        shown = printable_text(item.key), printable_text(reason)
        yield f"  {item.get_outcome_display()}: {': '.join(shown)}"
    more = items.count() - KEYS_SHOWN
    if more > 0:
        yield f"  and {more} more; the cleanup's page in the admin shows all."


def plan_lines(cleanup: Cleanup) -> Iterator[str]:
    parts = (
        ("delete", cleanup.items.planned().order_by("key")),
        ("keep", remaining_items(cleanup)),
    )
    for verb, items in parts:
        count = items.count()
        yield f"Would {verb} {ngettext('%d file', '%d files', count) % count}."
        yield from item_lines(items)
    yield from error_lines(cleanup)


def result_lines(cleanup: Cleanup) -> Iterator[str]:
    totals = cleanup.items.totals()
    yield (
        f"Found {totals['found']}: {totals['deleted']} deleted, {totals['already_gone']} already"
        f" gone, {totals['kept']} kept, {totals['failed']} failed."
    )
    yield from error_lines(cleanup)
    if hold := hold_text(cleanup):
        yield f"{hold}. To undo the deletion: manage.py undo_deletion {cleanup.pk}"
    elif cleanup.status == Status.PENDING:
        yield "Waiting for another cleanup of this project."
    if cleanup.status == Status.RUNNING and not cleanup.lease_until:
        yield (
            "Files are gone, but their deletion is not confirmed yet. A worker checks again in a"
            " minute. Without a worker, run manage.py sweep_cleanups --sync"
        )
    yield from item_lines(remaining_items(cleanup))


def error_lines(cleanup: Cleanup) -> Iterator[str]:
    if cleanup.message:
        yield printable_text(cleanup.message)
    if cleanup.status == Status.BLOCKED:
        yield f"To approve: manage.py approve_cleanup {cleanup.pk}"


def require_finished(cleanups: list[Cleanup], stderr: OutputWrapper) -> None:
    """Exit 1 when one is not over. Kept files are only mentioned, as they are no failure."""
    fine = (Status.CLEAN, Status.CLEAN_WITH_KEPT, Status.PLANNED)
    if unfinished := [str(o.pk) for o in cleanups if o.status not in fine]:
        text = f"Not finished: cleanup {', '.join(unfinished)}."
        raise CommandError(text, returncode=EXIT_FAILED)
    for cleanup in cleanups:
        if cleanup.status == Status.CLEAN_WITH_KEPT:
            kept = ngettext("%d file", "%d files", cleanup.kept) % cleanup.kept
            stderr.write(f"Cleanup {cleanup.pk} kept {kept} for you to decide on in the admin.")


def cleanup_json(cleanup: Cleanup) -> dict[str, Any]:
    """A cleanup for `--json`, with only the first keys."""
    counts = {outcome: n for outcome, (n, _size) in cleanup.items.by_outcome().items()}
    would_delete = cleanup.items.planned().filter(cleanup__dry_run=True).order_by("key")
    shown = ("kind", "project_id", "bucket", "status", "plan_digest")
    return {
        "deletion_id": str(cleanup.pk),
        **{name: getattr(cleanup, name) for name in shown},
        "message": cleanup.message,
        "objects": {outcome: counts.get(outcome, 0) for outcome in Outcome.values},
        "would_delete": [item.key for item in would_delete[:KEYS_SHOWN]],
        "staying": list(remaining_items(cleanup).values("key", "outcome", "reason")[:KEYS_SHOWN]),
    }
