"""Items and timelines of cleanups that are long over: exported, read again, only then deleted.

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

from storage_audit.cleanup.models import Cleanup
from storage_audit.ownership.ownership_rule import shorten_list
from storage_audit.read_in_steps import read_in_steps

READ_ERRORS = (OSError, EOFError, zlib.error)
ROWS_PER_BATCH = 1000


class ArchiveError(Exception):
    """An archive could not be written or is not as it was; the message names the cleanup."""


class Archive(NamedTuple):
    """A file in the folder: its name, the SHA-256 of what is packed in it, the rows it holds."""

    name: str
    digest: str
    rows: int


def prune_cleanups(folder: Path, moment: datetime) -> Iterator[Cleanup]:
    """Export and delete the details of cleanups that were over before `moment`; yields each.

    A cleanup that cannot be exported holds up no other: ArchiveError is raised at the end. However
    this ends, every row is in the database or in an archive that was read again; another run goes
    on from there.
    """
    failed = list[str]()
    with lock_folder(folder):
        due = Cleanup.objects.prunable(moment).order_by("finished_at")
        for pk in list(due.values_list("pk", flat=True)):
            cleanup = Cleanup.objects.get(pk=pk)
            try:
                is_pruned = delete_details(cleanup, export_cleanup(cleanup, folder), moment)
            except ArchiveError as error:
                failed.append(str(error))
                continue
            if is_pruned:
                yield cleanup
    if failed:
        raise ArchiveError(shorten_list(failed, " "))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        if not locks.lock(lock, locks.LOCK_EX | locks.LOCK_NB):
            raise ArchiveError(_("Another process is pruning into %s. Try again later.") % folder)
        yield


def export_cleanup(cleanup: Cleanup, folder: Path) -> Archive:
    """Write the archive, and read it again. Raises ArchiveError."""
    try:
        archive = write_archive(cleanup, folder)
        found = hash_archive(folder / archive.name)
    except READ_ERRORS as error:
        text = _("Cleanup %(id)s was not exported, so its details were kept: %(error)s")
        raise ArchiveError(text % {"id": cleanup.pk, "error": error}) from error
    if found != archive.digest:
        text = _("The details of cleanup %(id)s were kept: the file %(name)s is damaged.")
        raise ArchiveError(text % {"id": cleanup.pk, "name": archive.name})
    return archive


def write_archive(cleanup: Cleanup, folder: Path) -> Archive:
    # The same name each time, so that the file of a process that was killed is overwritten.
    part = folder / f"{cleanup.pk}.part"
    sums, count = hashlib.sha256(), 0
    with open(part, "wb", opener=partial(os.open, mode=0o600)) as file:
        with gzip.open(file, "wb") as packed:
            for lines in serialize_rows(cleanup):
                sums.update(lines)
                count += lines.count(b"\n")
                packed.write(lines)
        file.flush()
        os.fsync(file.fileno())
    # With the digest in the name no archive is ever overwritten by one with other content.
    name = f"{cleanup.pk}-{sums.hexdigest()[:16]}.jsonl.gz"
    part.replace(folder / name)
    sync_folder(folder)
    return Archive(name, sums.hexdigest(), count)


def serialize_rows(cleanup: Cleanup) -> Iterator[bytes]:
    """The cleanup, its items and its timeline, a line each."""
    rows = chain([cleanup], read_detached_rows(cleanup.items), read_detached_rows(cleanup.events))
    while batch := list(islice(rows, ROWS_PER_BATCH)):
        # Times as `str` has them: Django's own way drops the microseconds.
        yield serialize("jsonl", batch, ensure_ascii=True, default=str).encode()


def read_detached_rows(rows: models.Manager[Any]) -> Iterator[models.Model]:
    for row in read_in_steps(rows.order_by("pk")):
        # To be loaded as a new row: another may have this number in a restored database.
        row.pk = None
        yield row


def sync_folder(folder: Path) -> None:
    """Make the names in the folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_archive(path: Path) -> str:
    with gzip.open(path) as packed:
        return hashlib.file_digest(packed, "sha256").hexdigest()


@transaction.atomic
def delete_details(cleanup: Cleanup, archive: Archive, moment: datetime) -> bool:
    """Delete what the archive holds; False if another process did, or something follows now."""
    mine = Cleanup.objects.filter(pk=cleanup.pk)
    if not mine.lock().prunable(moment).exists():
        return False
    if not cleanup.mark_pruned(archive.name, archive.digest):
        return False
    items, _by_model = cleanup.items.all().delete()
    events, _by_model = cleanup.events.all().delete()
    if 1 + items + events != archive.rows:
        text = _("The details of cleanup %s were kept: they changed during the export.")
        raise ArchiveError(text % cleanup.pk)
    return True


def find_damaged_archives(folder: Path) -> Iterator[str]:
    """What is wrong with the archives of cleanups that were pruned."""
    for cleanup in read_in_steps(Cleanup.objects.pruned().order_by("pruned_at")):
        try:
            found = hash_archive(folder / cleanup.archive)
        except READ_ERRORS as error:
            yield f"{cleanup.pk}: {error}"
            continue
        if found != cleanup.archive_digest:
            yield _("%(id)s: the file %(name)s is damaged.") % {
                "id": cleanup.pk,
                "name": cleanup.archive,
            }
