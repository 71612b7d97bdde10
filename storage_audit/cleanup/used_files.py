"""Files of a cleanup that rows of other tables still use: they are kept, with the row named.

Looked up for the whole plan, for each batch just before it is sent, and once more when the files
are gone: a row that was saved in between lost its file, which a person must know.
"""

from collections.abc import Collection

from django.db import transaction
from django.db.models import QuerySet
from django.dispatch import Signal
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from storage_audit import project_model
from storage_audit.bucket.errors import DeadlinePassed
from storage_audit.cleanup.models import Cleanup, CleanupItem, SnapshotFile
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership.references import (
    Cascade,
    FileReferences,
    find_key_references,
    find_row_references,
    split_chunks,
)

Kind = Cleanup.Kind
Outcome = CleanupItem.Outcome
# For all queries of one recheck.
RECHECK_SECONDS = 2.0
KEPT_TEXT = gettext_lazy(
    "Kept, because %s uses it. Once nothing uses it, clean up the project again. To delete it"
    " anyway, delete it under “Files”. If it is not listed there, assign it to a project first."
)
LOST_TEXT = gettext_lazy(
    "Deleted, but %s still uses it. Upload the file again, or delete that row."
)
# Sent with a cleanup and a text that names such a row, in the transaction that marks the files as
# deleted: a person must know.
files_lost = Signal()


class Unread(Exception):
    """Fields that may name the files cannot be read: a person must approve."""

    def __init__(self, fields: list[str]) -> None:
        super().__init__(unread_text(fields))
        self.fields = fields


def has_use_check(cleanup: Cleanup) -> bool:
    """False for verifications, and where a person deleted the tracking row of that very file."""
    return cleanup.kind in (Kind.PROJECT, Kind.ORPHANS)


def keep_used_files(work: Turn) -> list[str]:
    """Keep the files that rows use. Returns the fields that could not be read, unless a person
    approved that."""
    cleanup = work.cleanup
    items = cleanup.items.planned().filter(escaped=False)
    items = items.exclude(found_in=CleanupItem.FoundIn.TRACKED)
    if not has_use_check(cleanup) or not items.exists():
        return []
    used = find_row_references(
        cleanup.bucket,
        items,
        removed=rows_removed_with(cleanup),
        # The lease must outlast the query.
        seconds=conf().lease_time.total_seconds() / 2,
        renew=cleanup.renew,
    )
    named = items.filter(key__in=files_in_snapshots(cleanup).values("key"))
    for some in split_chunks(named.values_list("pk", "key")):
        rows = rows_in_snapshots(cleanup, [key for _pk, key in some])
        used.rows.update((pk, rows[key]) for pk, key in some if pk not in used.rows)
    if used.rows:
        with transaction.atomic():
            cleanup.renew()
            write_reasons(used.rows, KEPT_TEXT, outcome=Outcome.KEPT)
    return find_unapproved_fields(cleanup, used)


def rows_removed_with(cleanup: Cleanup) -> Cascade | None:
    """The rows that would go with the project of a dry run. After a deletion they are gone."""
    project = (
        project_model.filter_by_id(cleanup.project_id or "").first() if cleanup.dry_run else None
    )
    return Cascade([project]) if project else None


def write_reasons(rows: dict[int, str], text: str | Promise, **values: str) -> None:
    """Record for each item the row that names it."""
    same = {"changed_at": timezone.now(), **values}
    items = [CleanupItem(pk=pk, reason=text % row, **same) for pk, row in rows.items()]
    CleanupItem.objects.bulk_update(items, ["reason", *same], batch_size=200)


def find_unapproved_fields(cleanup: Cleanup, used: FileReferences) -> list[str]:
    """Fields that cannot be read, except those that a person approved with the message."""
    if not used.unreadable:
        return []
    blocked = cleanup.events.filter(step="blocked", data__has_key="unread")
    approved = {one for shown in blocked.values_list("data__unread", flat=True) for one in shown}
    return [one for one in used.unreadable if one not in approved]


def unread_text(fields: list[str]) -> str:
    if not fields:
        return ""
    text = ngettext(
        "Needs approval: the field %s cannot be read, so its rows may still use these files."
        " Nothing has been deleted. Make the field readable, then approve this cleanup. If you"
        " approve it before, it deletes files that these rows use.",
        "Needs approval: the fields %s cannot be read, so their rows may still use these files."
        " Nothing has been deleted. Make the fields readable, then approve this cleanup. If you"
        " approve it before, it deletes files that these rows use.",
        len(fields),
    )
    return text % ", ".join(fields)


def recheck_uses(work: Turn, keys: Collection[str]) -> dict[str, str]:
    """Why these keys stay, as far as columns with an index show in two seconds. Raises
    DeadlinePassed and Unread."""
    cleanup = work.cleanup
    if not has_use_check(cleanup):
        return {}
    try:
        used = find_key_references(cleanup.bucket, [(key, key) for key in keys], RECHECK_SECONDS)
    except TimeoutError as error:
        text = _("The database takes too long to check whether rows of %s still use these files.")
        raise DeadlinePassed(text % error) from error
    if unread := find_unapproved_fields(cleanup, used):
        raise Unread(unread)
    rows = rows_in_snapshots(cleanup, keys) | used.rows
    return {key: KEPT_TEXT % row for key, row in rows.items()}


def rows_in_snapshots(cleanup: Cleanup, keys: Collection[str]) -> dict[str, str]:
    """Which of these keys are named by a row that was deleted and can be restored."""
    found = files_in_snapshots(cleanup).filter(key__any_of=keys).values_list("key", "row")
    return {key: _("%s (deleted, but that can still be undone)") % row for key, row in found}


def files_in_snapshots(cleanup: Cleanup) -> QuerySet[SnapshotFile]:
    """The rows that went in the cleanup's own deletion do not count."""
    return SnapshotFile.objects.exclude(snapshot=cleanup.snapshot_id)


def find_lost_files(work: Turn) -> dict[int, str]:
    """The files that were sent and are gone, and that a row still names."""
    cleanup = work.cleanup
    sent = cleanup.items.filter(outcome=Outcome.DELETING, calls__gt=0, last_seen_at=None)
    if not has_use_check(cleanup) or not cleanup.is_deletion or not sent.exists():
        return {}
    seconds = conf().lease_time.total_seconds() / 2
    return find_row_references(cleanup.bucket, sent, seconds=seconds, renew=cleanup.renew).rows


def report_lost_files(cleanup: Cleanup, rows: dict[int, str]) -> None:
    """Record it in the items and the timeline, and raise an alert, in the transaction that marks
    them as deleted."""
    if not rows:
        return
    write_reasons(rows, LOST_TEXT)
    text = ngettext(
        "%(count)d file was deleted, but a row saved meanwhile uses it: %(row)s.",
        "%(count)d files were deleted, but rows saved meanwhile use them, such as %(row)s.",
        len(rows),
    ) % {"count": len(rows), "row": next(iter(rows.values()))}
    cleanup.record("verify", text, still_named=list(rows.values())[:100])
    files_lost.send(Cleanup, cleanup=cleanup, summary=text)


def has_lost_files(cleanup: Cleanup) -> bool:
    """Whether a row still names such a file, and nobody uploaded it again."""
    named = cleanup.items.filter(outcome=Outcome.DELETED).exclude(reason="")
    here = R2Object.objects.in_bucket(cleanup.bucket).values("key")
    used = find_row_references(cleanup.bucket, named.exclude(key__in=here), seconds=RECHECK_SECONDS)
    return bool(used.rows or used.unreadable)
