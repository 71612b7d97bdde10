"""Misnamed objects get keys of the current key format.

A row reserves the new key first; then the store copies; then a listing shows the copy. Only then
do the rows switch, in one transaction that also requests the deletion of the old objects: by a
cleanup like any other, with its rechecks, its totals and its deletion id. If it stops in between,
the next call goes on from there. In doubt both objects stay.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import logs, project_model
from storage_audit.bucket import copies
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import tracked_spellings
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupItem, DeletedRow
from storage_audit.conf import conf
from storage_audit.findings.action_result import busy_reason
from storage_audit.findings.models import Finding
from storage_audit.findings.rename_plan import (
    RenameObjection,
    RenameSnapshot,
    Renaming,
    busy_new_key_reason,
    project_objection,
    rename_batches,
    rename_objection,
    take_snapshot,
)
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import get_key_formats, unambiguous_version
from storage_audit.ownership.row_evidence import is_unconfirmed, row_provenance
from storage_audit.redaction import printable_text
from storage_audit.request_origin import current_origin
from storage_audit.tracking.rows import find_being_deleted, object_values

Kind, Source, State = Cleanup.Kind, R2Object.Source, R2Object.State
GONE_OUTCOMES = (CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_GONE)


class RenameInterrupted(Exception):
    """Something has changed; `objection` says what, and what happens next."""

    def __init__(self, objection: str) -> None:
        super().__init__(objection)
        self.objection = objection


def plan_renames(findings: Iterable[Finding]) -> list[Renaming]:
    """What would be renamed to what, and why the others would not; changes nothing. Raises
    CannotConclude and StoreError."""
    return [one for chunk, _look in rename_batches(findings) for one in chunk]


def rename_each(findings: Iterable[Finding]) -> Iterator[Renaming]:
    """Rename what can be renamed. Yields each once it is done, or has an objection. Raises
    CannotConclude and StoreError; whatever it raises, the next call goes on."""
    for chunk, look in rename_batches(findings):
        todo = [one for one in chunk if not one.objection]
        delete_old_objects([one for one in todo if look.is_switched(one)], look)
        copy_and_switch([one for one in todo if not look.is_switched(one)], look)
        for one in chunk:
            free_new_key(one)
        finish_renames([one for one in todo if not one.objection], look)
        yield from chunk


def copy_and_switch(todo: list[Renaming], look: RenameSnapshot) -> None:
    held = [one for one in todo if reserve_new_key(one, look)]
    if not held:
        return
    copy_objects([one for one in held if look.objects(one)[1] is None], look)
    again = take_snapshot(held[0].bucket, held)
    for one in held:
        one.objection = rename_objection(one, again) or copy_objection(one, again)
    switch_keys([one for one in held if not one.objection], again)


def reserve_new_key(one: Renaming, look: RenameSnapshot) -> bool:
    """Lock the new key against uploads, as an upload does, while the project surely exists: then
    its cleanup finds this row. Whether that succeeded.

    The row is written before the marks of cleanups are read, as a cleanup writes its mark first.
    """
    values = {"state": State.UPLOADING, **new_row_values(one, look)}
    row = R2Object(bucket=one.bucket, key=one.new, upload_id=one.upload_id, **values)
    with transaction.atomic(durable=True):
        if project_model.lock_project(one.project_id) is None:
            one.objection = project_objection(one)
            return False
        R2Object.objects.bulk_create([row], ignore_conflicts=True)
        mine = one.target_rows.filter(state=State.UPLOADING).update(updated_at=timezone.now())
    if not mine:
        one.objection = _("The new name was just taken. Try again later.")
    elif find_being_deleted(one.bucket, [look.identity(one.new)]):
        one.objection = RenameObjection(busy_new_key_reason())
    return not one.objection


def new_row_values(one: Renaming, look: RenameSnapshot) -> dict[str, Any]:
    """The values of the new row. It is evidence of the owner only if the old one was."""
    parsed_keys = get_key_formats().parse_key(one.new)
    names, row = {parsed_key.project for parsed_key in parsed_keys}, look.row(one.old)
    tells = row and row_provenance(row) and not is_unconfirmed(row)
    return {
        "project_id": one.project_id,
        "scene_id": parsed_keys[0].scene or "",
        "file_type": parsed_keys[0].file_type[:40],
        "key_format": parsed_keys[0].key_format,
        "unambiguous_under": unambiguous_version(names, parsed_keys[0]),
        "source": row.source if row and tells else Source.BACKFILL,
    }


def copy_objects(todo: list[Renaming], look: RenameSnapshot) -> None:
    """Have the store copy them, some at once. Its answers are not relied on."""

    def ask(one: Renaming) -> None:
        old = look.objects(one)[0]
        assert old is not None
        try:
            one.copy_etag = copies.copy_object(one.bucket, old.key, one.new, old.etag)
        except StoreError as error:
            one.copy_error = error

    with ThreadPoolExecutor(
        conf().scan_concurrency, initializer=logs.context_initializer()
    ) as pool:
        list(pool.map(ask, todo))


def copy_objection(one: Renaming, look: RenameSnapshot) -> str:
    if look.objects(one)[1]:
        return ""
    if one.copy_error is None:
        return RenameObjection(
            _("The bucket does not show the copy that the store reported. Try again.")
        )
    said = f"{str(one.copy_error).rstrip('.')}. " + _("The file was not renamed. Try again.")
    # A request without an answer may still be carried out.
    return RenameObjection(said) if one.copy_error.answered else said


def free_new_key(one: Renaming) -> None:
    """Remove our reservation of the new key. An object that is there stays, and is tracked as a
    backfill would do it."""
    if not isinstance(one.objection, RenameObjection) or not one.new:
        return
    row = one.target_rows.filter(state=State.UPLOADING)
    if row.exists():
        new = take_snapshot(one.bucket, [one]).objects(one)[1]
        if new is None:
            row.delete_without_signals()
        else:
            values = {**object_values(new), "source": Source.BACKFILL, "upload_id": None}
            row.update(state=State.STORED, updated_at=timezone.now(), **values)


def switch_keys(ready: list[Renaming], look: RenameSnapshot) -> None:
    """Let the rows name the new keys, and request the deletion of the old objects."""
    old_rows: list[DeletedRow] = []
    with transaction.atomic(durable=True):
        for one in ready:
            try:
                with transaction.atomic():
                    switch_row(one, look)
            except RenameInterrupted as doubt:
                one.objection = doubt.objection
            else:
                old_rows.append(deleted_row(one, look))
        request_deletion(old_rows)


def switch_row(one: Renaming, look: RenameSnapshot) -> None:
    """Raises RenameInterrupted when anything has changed since the snapshot."""
    new, seen = look.objects(one)[1], look.row(one.old)
    assert new is not None
    if project_model.lock_project(one.project_id) is None:
        raise RenameInterrupted(project_objection(one))
    names = tracked_spellings(one.old, look.identity)
    old = R2Object.objects.in_bucket(one.bucket).filter(key__in=names)
    as_they_are = set(old.select_for_update().values_list("pk", "updated_at"))
    values = {"updated_at": timezone.now(), **new_row_values(one, look), **object_values(new)}
    mine = one.target_rows.filter(state=State.UPLOADING).update(state=State.STORED, **values)
    if as_they_are != ({(seen.pk, seen.updated_at)} if seen else set()) or not mine:
        raise RenameInterrupted(busy_reason())
    # The application notes a deletion under the row's lock, without changing the row.
    if find_being_deleted(one.bucket, names):
        text = _("The file is being deleted. Once it is gone, delete its copy too: %s")
        raise RenameInterrupted(RenameObjection(text % printable_text(one.new)))
    old.delete_without_signals()


def deleted_row(one: Renaming, look: RenameSnapshot) -> DeletedRow:
    found = one.finding
    key = look.identity(one.old)
    facts = (found.size, found.etag, found.last_modified)
    return DeletedRow(one.bucket, key, one.project_id, *facts, copied_to=one.new)


def request_deletion(rows: list[DeletedRow]) -> None:
    if rows:
        why = _("renamed: the file has a new name")
        Cleanup.objects.request_for_rows(rows, why)


def delete_old_objects(renamed: list[Renaming], look: RenameSnapshot) -> None:
    """Request the deletion of old objects of an earlier call, unless a cleanup has them in hand."""
    left = [one for one in renamed if look.objects(one)[0] and not look.is_busy(one.old)]
    with transaction.atomic(durable=True):
        request_deletion([deleted_row(one, look) for one in left])


def finish_renames(renamed: list[Renaming], look: RenameSnapshot) -> None:
    """Have the old objects deleted; they count as gone only when the cleanups say so."""
    names = [look.identity(one.old) for one in renamed]
    items = CleanupItem.objects.filter(cleanup__kind=Kind.OBJECTS, identity__in=names)
    items = items.filter(cleanup__bucket=renamed[0].bucket) if renamed else items.none()
    open_ones = Cleanup.objects.open().filter(items__in=items)
    for pk in set(open_ones.values_list("pk", flat=True)):
        runner.run_to_end(pk)
    latest = {item.identity: item for item in items.select_related("cleanup").order_by("pk")}
    for one in renamed:
        item = latest.get(look.identity(one.old))
        if (
            item
            and item.outcome in GONE_OUTCOMES
            and item.last_modified != one.finding.last_modified
        ):
            item = None  # An earlier object of this key was deleted.
        if look.objects(one)[0] is None or (item and item.outcome in GONE_OUTCOMES):
            note = _("renamed to %s") % printable_text(one.new)
            Finding.objects.filter(pk=one.finding.pk).resolve(note, current_origin().user)
        else:
            one.objection = old_object_objection(item)


def old_object_objection(item: CleanupItem | None) -> str:
    if item is None:
        return _("Renamed, but a cleanup is still working on the old file. Try again later.")
    cleanup = item.cleanup
    why = item.reason or cleanup.message or cleanup.get_status_display()
    text = _("Renamed, but the old file is still there: %(why)s See cleanup %(id)s.")
    return text % {"why": f"{why.rstrip('.')}.", "id": cleanup.pk}
