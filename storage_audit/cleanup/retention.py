"""Items and timelines of operations that are long over: exported, read again, only then deleted.

An archive is JSON lines, packed with gzip, that `manage.py loaddata` brings back.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from django.core.files import locks
from django.core.serializers import serialize
from django.db import models, transaction
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.ownership.owner import shorten
from storage_audit.reading import read_in_steps

UNREADABLE = (OSError, EOFError, zlib.error)
ROWS_AT_A_TIME = 1000


class ArchiveError(Exception):
    """An archive could not be written or is not as it was; the message names the operation."""


class Archive(NamedTuple):
    """A file in the folder: its name, the SHA-256 of what is packed in it, the rows it holds."""

    name: str
    digest: str
    rows: int


def prune(folder: Path, moment: datetime) -> Iterator[CleanupOperation]:
    """Export and delete the details of what was over before `moment`; gives each operation done.

    An operation that cannot be exported holds up no other: ArchiveError is raised at the end. At
    any end, also a sudden one, every row is in the database or in an archive that was read again;
    a repeat goes on from there.
    """
    failed = list[str]()
    with alone_in(folder):
        due = CleanupOperation.objects.prunable(moment).order_by("finished_at")
        for pk in list(due.values_list("pk", flat=True)):
            operation = CleanupOperation.objects.get(pk=pk)
            try:
                is_pruned = forget(operation, export(operation, folder), moment)
            except ArchiveError as error:
                failed.append(str(error))
                continue
            if is_pruned:
                yield operation
    if failed:
        raise ArchiveError(shorten(failed, " "))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        if not locks.lock(lock, locks.LOCK_EX | locks.LOCK_NB):
            raise ArchiveError(_("Another process prunes into %s; wait for its end.") % folder)
        yield


def export(operation: CleanupOperation, folder: Path) -> Archive:
    """Write the archive, and read it again. Raises ArchiveError."""
    try:
        archive = write(operation, folder)
        found = digest_of(folder / archive.name)
    except UNREADABLE as error:
        text = _("Operation %(id)s was not exported, and keeps its details: %(error)s")
        raise ArchiveError(text % {"id": operation.pk, "error": error}) from error
    if found != archive.digest:
        text = _("Operation %(id)s keeps its details: %(name)s does not hold what was written.")
        raise ArchiveError(text % {"id": operation.pk, "name": archive.name})
    return archive


def write(operation: CleanupOperation, folder: Path) -> Archive:
    # Of the same name each time, so that what a process left that was killed is written over.
    part = folder / f"{operation.pk}.part"
    sums, count = hashlib.sha256(), 0
    with open(part, "wb", opener=partial(os.open, mode=0o600)) as file:
        with gzip.open(file, "wb") as packed:
            for lines in batches(operation):
                sums.update(lines)
                count += lines.count(b"\n")
                packed.write(lines)
        file.flush()
        os.fsync(file.fileno())
    # The digest in the name: no archive is ever written over by one that holds something else.
    name = f"{operation.pk}-{sums.hexdigest()[:16]}.jsonl.gz"
    part.replace(folder / name)
    sync(folder)
    return Archive(name, sums.hexdigest(), count)


def batches(operation: CleanupOperation) -> Iterator[bytes]:
    """The operation, its items and its timeline, a line each."""
    rows = chain([operation], details(operation.items), details(operation.events))
    while batch := list(islice(rows, ROWS_AT_A_TIME)):
        # Times as `str` has them: Django's own way drops the microseconds.
        yield serialize("jsonl", batch, ensure_ascii=True, default=str).encode()


def details(rows: models.Manager[Any]) -> Iterator[models.Model]:
    for row in read_in_steps(rows.order_by("pk")):
        # To be loaded as a new row: another may have this number in a restored database.
        row.pk = None
        yield row


def sync(folder: Path) -> None:
    """Make the names in the folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    with gzip.open(path) as packed:
        return hashlib.file_digest(packed, "sha256").hexdigest()


@transaction.atomic
def forget(operation: CleanupOperation, archive: Archive, moment: datetime) -> bool:
    """Delete what the archive holds; False if another process did, or something follows now."""
    mine = CleanupOperation.objects.filter(pk=operation.pk)
    if not mine.lock().prunable(moment).exists():
        return False
    if not operation.mark_pruned(archive.name, archive.digest):
        return False
    items, _by_model = operation.items.all().delete()
    events, _by_model = operation.events.all().delete()
    if 1 + items + events != archive.rows:
        text = _("Operation %s keeps its details: they changed while they were exported.")
        raise ArchiveError(text % operation.pk)
    return True


def damaged(folder: Path) -> Iterator[str]:
    """What is wrong with the archives of operations that were pruned."""
    for operation in read_in_steps(CleanupOperation.objects.pruned().order_by("pruned_at")):
        try:
            found = digest_of(folder / operation.archive)
        except UNREADABLE as error:
            yield f"{operation.pk}: {error}"
            continue
        if found != operation.archive_digest:
            yield _("%(id)s: %(name)s does not hold what was written.") % {
                "id": operation.pk,
                "name": operation.archive,
            }
