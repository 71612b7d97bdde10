"""What the commands have in common: who asks, how they end, and how an operation is shown."""

import getpass
import os
import socket
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import (
    CommandError,
    OutputWrapper,
)

from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import storable
from storage_audit.bucket.request_stats import counted
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.conf import conf
from storage_audit.models import validate_project_id
from storage_audit.origin import Origin, acting_as
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.redaction import redact, visible

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
CUT_SHORT = 128 + 13  # as a shell says of one that SIGPIPE ended
SHOWN = 50
Outcome = CleanupItem.Outcome
Status = CleanupOperation.Status


@contextmanager
def asked_from_shell() -> Iterator[None]:
    """Says who asks, keeps count of the calls to the store, and makes what the store or its marker
    objects to one line and exit 1."""
    with counted(), acting_as(Origin(login_name(), f"command on {socket.gethostname()}")):
        try:
            yield
        except (CannotConclude, StoreError) as error:
            if getattr(error, "code", "") == "NoSuchBucket":
                raise CommandError(
                    f"The store has no bucket {visible(conf().bucket)}. Create it, or correct the"
                    " bucket or the address in the settings.",
                    returncode=WRONG_USE,
                ) from error
            raise CommandError(visible(redact(str(error))), returncode=FAILED) from error


@contextmanager
def for_a_reader() -> Iterator[None]:
    """Ends when whoever reads what is printed, such as head, has had enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CUT_SHORT)


def confirm(question: str) -> None:
    """Ask a person; nobody is asked where there is no terminal."""
    if sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("Nothing was done.", returncode=FAILED)


def stored_text(text: str) -> str:
    if not storable(text):
        raise ArgumentTypeError("it must be UTF-8 without NUL")
    return text


def deletion_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise ArgumentTypeError(f"“{visible(text)}” is not a deletion id.") from error


def project_id(text: str) -> str:
    try:
        validate_project_id(text)
    except ValidationError as error:
        raise ArgumentTypeError(visible(error.messages[0])) from error
    return text


def login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def staying(operation: CleanupOperation) -> CleanupItemQuerySet:
    """What is still there, or would be if the dry run were run."""
    gone = [Outcome.DELETED, Outcome.ALREADY_ABSENT]
    if operation.dry_run:
        gone.append(Outcome.PLANNED)
    return operation.items.exclude(outcome__in=gone).order_by("outcome", "key")


def lines_of(items: CleanupItemQuerySet) -> Iterator[str]:
    """The first items, one a line, and how many more there are."""
    for item in items[:SHOWN]:
        reason = item.reason or item.answer or item.evidence
        yield f"  {item.get_outcome_display()}: {visible(item.key)}: {visible(reason)}"
    more = items.count() - SHOWN
    if more > 0:
        yield f"  and {more} more; all are on the operation's page in the admin."


def lines_of_plan(operation: CleanupOperation) -> Iterator[str]:
    parts = (("delete", operation.items.planned().order_by("key")), ("keep", staying(operation)))
    for verb, items in parts:
        yield f"Would {verb} {items.count()} objects."
        yield from lines_of(items)
    yield from lines_of_error(operation)


def lines_of_result(operation: CleanupOperation) -> Iterator[str]:
    books = operation.items.books()
    yield (
        f"Found {books['found']}: {books['deleted']} deleted, {books['already_absent']} already"
        f" absent, {books['protected']} protected, {books['failed']} failed."
    )
    yield from lines_of_error(operation)
    if operation.status == Status.PENDING:
        yield "Another operation of this project is being worked on; this follows."
    if operation.status == Status.RUNNING and not operation.lease_until:
        yield (
            "Files are missing, and no answer confirms their deletion. The cleanup looks for them"
            " again in a minute: a worker goes on then, or run manage.py sweep_cleanups --sync"
        )
    yield from lines_of(staying(operation))


def lines_of_error(operation: CleanupOperation) -> Iterator[str]:
    if operation.error:
        yield visible(operation.error)
    if operation.status == Status.BLOCKED:
        yield f"To release it: manage.py release_cleanup {operation.pk}"


def judge(operations: list[CleanupOperation], stderr: OutputWrapper) -> None:
    """Exit 1 when one is not over; what stays in doubt is said and is no failure."""
    fine = (Status.CLEAN, Status.CLEAN_WITH_PROTECTED, Status.PLANNED)
    if unfinished := [str(o.pk) for o in operations if o.status not in fine]:
        text = f"Not finished: operation {', '.join(unfinished)}."
        raise CommandError(text, returncode=FAILED)
    for operation in operations:
        if operation.status == Status.CLEAN_WITH_PROTECTED:
            stderr.write(
                f"Operation {operation.pk} kept {operation.protected} protected objects:"
                " a person must decide on them."
            )


def facts_of(operation: CleanupOperation) -> dict[str, Any]:
    """What `--json` tells of an operation; of the keys only the first."""
    counts = {outcome: n for outcome, (n, _size) in operation.items.by_outcome().items()}
    would_delete = operation.items.planned().filter(operation__dry_run=True).order_by("key")
    shown = ("kind", "project_id", "bucket", "status", "plan_digest")
    return {
        "deletion_id": str(operation.pk),
        **{name: getattr(operation, name) for name in shown},
        "message": operation.error,
        "objects": {outcome: counts.get(outcome, 0) for outcome in Outcome.values},
        "would_delete": [item.key for item in would_delete[:SHOWN]],
        "staying": list(staying(operation).values("key", "outcome", "reason")[:SHOWN]),
    }
