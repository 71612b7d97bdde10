"""Misnamed objects get keys of the current layout.

A row of the new key bars it first; then the store copies; then a listing shows the copy. Only then
the rows change over, in one transaction that also asks for the deletion of the old objects: by an
operation like any other, with its proof, its books and its deletion id. Whatever stops in between,
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
from storage_audit.bucket.listing import spellings
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, Row
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.findings.rename_plan import (
    Look,
    RenameObjection,
    Renaming,
    chunks,
    gone,
    objection,
    take_look,
)
from storage_audit.models import R2Object
from storage_audit.origin import current_origin
from storage_audit.ownership.owner import is_unconfirmed, layouts, plain_under, told_by
from storage_audit.redaction import visible
from storage_audit.tracking.rows import being_deleted, facts

Kind, Source, State = CleanupOperation.Kind, R2Object.Source, R2Object.State
GONE = (CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_ABSENT)


class RenameInterrupted(Exception):
    """Something is not as it was; `objection` says what, and what happens next."""

    def __init__(self, objection: str) -> None:
        super().__init__(objection)
        self.objection = objection


def plan(findings: Iterable[Finding]) -> list[Renaming]:
    """What would be renamed to what, and why the others would not be; nothing is changed. Raises
    CannotConclude and StoreError."""
    return [one for chunk, _look in chunks(findings) for one in chunk]


def rename(findings: Iterable[Finding]) -> Iterator[Renaming]:
    """Rename what can be. Gives each once it is done, or could not be; then it has an objection.
    Raises CannotConclude and StoreError; whatever it raises, the next call goes on."""
    for chunk, look in chunks(findings):
        todo = [one for one in chunk if not one.objection]
        delete_later([one for one in todo if look.is_changed_over(one)], look)
        copy_and_change_over([one for one in todo if not look.is_changed_over(one)], look)
        for one in chunk:
            let_go(one)
        finish([one for one in todo if not one.objection], look)
        yield from chunk


def copy_and_change_over(todo: list[Renaming], look: Look) -> None:
    held = [one for one in todo if hold(one, look)]
    if not held:
        return
    copy([one for one in held if look.objects(one)[1] is None], look)
    again = take_look(held[0].bucket, held)
    for one in held:
        one.objection = objection(one, again) or uncopied(one, again)
    change_over([one for one in held if not one.objection], again)


def hold(one: Renaming, look: Look) -> bool:
    """Bar uploads to the new key, as an upload does, while the project is sure to live: then its
    cleanup finds this row. Whether that succeeded.

    The row is written first and the mark of cleanups read after, as a cleanup marks first.
    """
    values = {"state": State.UPLOADING, **described(one, look)}
    row = R2Object(bucket=one.bucket, key=one.new, upload_id=one.upload_id, **values)
    with transaction.atomic(durable=True):
        if project_model.lock(one.project_id) is None:
            one.objection = gone(one)
            return False
        R2Object.objects.bulk_create([row], ignore_conflicts=True)
        mine = one.target.filter(state=State.UPLOADING).update(updated_at=timezone.now())
    if not mine:
        one.objection = _("Somebody else just took the new key. Try again later.")
    elif being_deleted(one.bucket, [look.identity(one.new)]):
        one.objection = RenameObjection(_("A cleanup has the new key in hand. Try again later."))
    return not one.objection


def described(one: Renaming, look: Look) -> dict[str, Any]:
    """What the new row says of the object. It is evidence of the owner only if the old one was."""
    readings = layouts().readings(one.new)
    names, row = {reading.project for reading in readings}, look.row(one.old)
    tells = row and told_by(row) and not is_unconfirmed(row)
    return {
        "project_id": one.project_id,
        "scene_id": readings[0].scene or "",
        "file_type": readings[0].file_type[:40],
        "layout": readings[0].layout,
        "plain_under": plain_under(names, readings[0]),
        "source": row.source if row and tells else Source.BACKFILL,
    }


def copy(todo: list[Renaming], look: Look) -> None:
    """Have the store copy them, some at once. What it says is not relied on."""

    def ask(one: Renaming) -> None:
        old = look.objects(one)[0]
        assert old is not None
        try:
            one.copied = copies.copy(one.bucket, old.key, one.new, old.etag)
        except StoreError as error:
            one.trouble = error

    with ThreadPoolExecutor(conf().scan_lanes, initializer=logs.carried()) as pool:
        list(pool.map(ask, todo))


def uncopied(one: Renaming, look: Look) -> str:
    if look.objects(one)[1]:
        return ""
    if one.trouble is None:
        return RenameObjection(
            _("The store said that it made the copy, and does not list it. Try again.")
        )
    said = f"{str(one.trouble).rstrip('.')}. " + _("Nothing is renamed. Try again.")
    # What was not answered may still come to pass.
    return RenameObjection(said) if one.trouble.answered else said


def let_go(one: Renaming) -> None:
    """Leave no upload under way at the new key that nobody goes on with. An object that is there
    stays, and is tracked as a backfill would do it."""
    if not isinstance(one.objection, RenameObjection) or not one.new:
        return
    row = one.target.filter(state=State.UPLOADING)
    if row.exists():
        new = take_look(one.bucket, [one]).objects(one)[1]
        if new is None:
            row.forget()
        else:
            values = {**facts(new), "source": Source.BACKFILL, "upload_id": None}
            row.update(state=State.STORED, updated_at=timezone.now(), **values)


def change_over(ready: list[Renaming], look: Look) -> None:
    """The objects belong to their new keys from here on, and the old ones are to be deleted."""
    old_rows: list[Row] = []
    with transaction.atomic(durable=True):
        for one in ready:
            try:
                with transaction.atomic():
                    change_rows(one, look)
            except RenameInterrupted as doubt:
                one.objection = doubt.objection
            else:
                old_rows.append(old_row(one, look))
        ask_for_deletion(old_rows)


def change_rows(one: Renaming, look: Look) -> None:
    """Raises RenameInterrupted when anything was changed since the look."""
    new, seen = look.objects(one)[1], look.row(one.old)
    assert new is not None
    if project_model.lock(one.project_id) is None:
        raise RenameInterrupted(gone(one))
    names = spellings(one.old, look.identity)
    old = R2Object.objects.in_bucket(one.bucket).filter(key__in=names)
    as_they_are = set(old.select_for_update().values_list("pk", "updated_at"))
    values = {"updated_at": timezone.now(), **described(one, look), **facts(new)}
    mine = one.target.filter(state=State.UPLOADING).update(state=State.STORED, **values)
    if as_they_are != ({(seen.pk, seen.updated_at)} if seen else set()) or not mine:
        raise RenameInterrupted(_("Its tracking row was changed just now. Try again later."))
    # The application notes its deletion under the row's lock, and changes no row.
    if being_deleted(one.bucket, names):
        text = _("The object is being deleted. If it goes, delete its copy too: %s")
        raise RenameInterrupted(RenameObjection(text % visible(one.new)))
    old.forget()


def old_row(one: Renaming, look: Look) -> Row:
    found = one.finding
    key = look.identity(one.old)
    facts = (found.size, found.etag, found.last_modified)
    return Row(one.bucket, key, one.project_id, *facts, copied_to=one.new)


def ask_for_deletion(rows: list[Row]) -> None:
    if rows:
        why = _("renamed: the object has another key now")
        CleanupOperation.objects.request_for_rows(rows, why)


def delete_later(renamed: list[Renaming], look: Look) -> None:
    """What an earlier call left behind, unless an operation has it in hand."""
    left = [one for one in renamed if look.objects(one)[0] and not look.is_busy(one.old)]
    with transaction.atomic(durable=True):
        ask_for_deletion([old_row(one, look) for one in left])


def finish(renamed: list[Renaming], look: Look) -> None:
    """Have the old objects deleted, and believe only what the operations saw."""
    names = [look.identity(one.old) for one in renamed]
    items = CleanupItem.objects.filter(operation__kind=Kind.OBJECTS, identity__in=names)
    items = items.filter(operation__bucket=renamed[0].bucket) if renamed else items.none()
    open_ones = CleanupOperation.objects.open().filter(items__in=items)
    for pk in set(open_ones.values_list("pk", flat=True)):
        runner.run(pk)
    latest = {item.identity: item for item in items.select_related("operation").order_by("pk")}
    for one in renamed:
        item = latest.get(look.identity(one.old))
        if item and item.outcome in GONE and item.last_modified != one.finding.last_modified:
            item = None  # It was an earlier object of this key that went.
        if look.objects(one)[0] is None or (item and item.outcome in GONE):
            note = _("renamed to %s") % visible(one.new)
            Finding.objects.filter(pk=one.finding.pk).resolve(note, current_origin().user)
        else:
            one.objection = staying(item)


def staying(item: CleanupItem | None) -> str:
    if item is None:
        return _("Renamed, and a cleanup has the old object in hand. Try again later.")
    operation = item.operation
    why = item.reason or operation.error or operation.get_status_display()
    text = _("Renamed, and the old object is still there: %(why)s See operation %(id)s.")
    return text % {"why": f"{why.rstrip('.')}.", "id": operation.pk}
