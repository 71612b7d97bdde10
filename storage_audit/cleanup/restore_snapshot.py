"""Restoring what a snapshot holds: all of it, or nothing with a reason.

Rows are inserted and never saved over others. Where a row that a restored one refers to has gone
meanwhile, the restored row gets what the field's `on_delete` would have done, and the result says
so. If that would delete it, and the row it needs can still be restored, it waits for that.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import IntegrityError, connection, models, transaction
from django.db.models import DO_NOTHING
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Snapshot, SnapshotChunk
from storage_audit.cleanup.restore_notes import RestoreNotes
from storage_audit.cleanup.restore_references import References
from storage_audit.cleanup.restore_rows import (
    CannotRestore,
    Row,
    describe,
    group_by_table,
    insert_rows,
    refuse_taken,
    send_saved,
)
from storage_audit.cleanup.snapshot_rows import (
    Link,
    Table,
    all_rows,
    decode_key,
    decode_value,
    encode_key,
    encode_value,
    latest_migrations,
    read_rows,
    split_rows,
    stored_fields,
    stored_links,
    table_of,
    write_links,
    write_rows,
)
from storage_audit.ownership.ownership_rule import shorten_list
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import printable_text


def find_actions(*names: str) -> list[Any]:
    """Django 6.1 added those of the database."""
    return [getattr(models, name) for name in names if hasattr(models, name)]


CASCADING = find_actions("CASCADE", "DB_CASCADE")
EMPTYING = find_actions("SET_NULL", "DB_SET_NULL")
RESETTING = find_actions("SET_DEFAULT", "DB_SET_DEFAULT")


class Restored(NamedTuple):
    """The number of rows by table, and what of the snapshot did not come back, in sentences."""

    rows: dict[str, int]
    left_out: list[str]


class Move(NamedTuple):
    """What waits for another deletion to be undone."""

    rows: list[Row]
    links: list[tuple[Any, Link]]


def restore_snapshot(snapshot: Snapshot) -> Restored:
    """Restore all rows and links, in the transaction of the caller, and empty the snapshot. Raises
    CannotRestore, with the transaction as it was."""
    assert connection.in_atomic_block, "Undo needs a transaction of its caller."
    with transaction.atomic():
        # Another undo may be about to move rows into this snapshot.
        found = Snapshot.objects.select_for_update().filter(pk=snapshot.pk).first()
        refuse_unfit(found)
        assert found is not None
        restored = Restoration(found).run()
        found.empty(Snapshot.Obstacle.RESTORED)
    return restored


def refuse_unfit(snapshot: Snapshot | None) -> None:
    if snapshot is None or snapshot.unavailable:
        reason = snapshot.get_unavailable_display() if snapshot else _("its rows are gone")
        raise CannotRestore(
            _("This deletion can't be undone: %s. To keep its files, cancel the cleanup.") % reason
        )
    now = latest_migrations(snapshot.migrations)
    if changed := [app for app, name in snapshot.migrations.items() if now[app] != name]:
        raise CannotRestore(unfit_text(shorten_list(changed)))


def unfit_text(what: str) -> str:
    return _(
        "Nothing was restored: %s was migrated after the deletion, so the kept rows no longer fit."
        " Migrate back and undo again, or restore the rows from a backup. To keep the files, cancel"
        " the cleanup."
    ) % printable_text(what)


def parent_keys(row: Row) -> Iterator[tuple[Table, str]]:
    """The rows of the models that its own inherits from."""
    links: list[Any] = [*row.table._meta.parents.values()]
    for link in links:
        if link and link.attname in row.texts:
            yield table_of(link.target_field.model), str(row.texts[link.attname])


class Restoration:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.rows = dict[tuple[Table, str], Row]()
        self.links = list[tuple[Any, Link]]()
        self.moves = defaultdict[UUID, Move](lambda: Move([], []))
        self.notes = RestoreNotes()
        self.references = References(snapshot)

    def run(self) -> Restored:
        for chunk in read_in_steps(self.snapshot.chunks.order_by("number"), 1):
            self.load_chunk(chunk)
        self.references.look_up(self.rows.values(), self.links)
        while broken := [(row, links) for row in self.rows.values() if (links := self.broken(row))]:
            for row, links in broken:
                places = [
                    self.references.place_of(link.target_field, row.texts[link.attname])
                    for link in links
                ]
                self.leave_out(row, None if None in places else places[0], links[0])
        for row in self.rows.values():
            self.settle_links(row)
        self.drop_identical_rows()
        insert_rows(group_by_table(self.rows.values()))
        self.refill_links()
        self.move_rows()
        self.check_constraints()
        send_saved(group_by_table(self.rows.values()))
        counts = defaultdict[str, int](int)
        for row in self.rows.values():
            counts[row.table._meta.label] += 1
        return Restored(dict(counts), [*self.notes.sentences()])

    def load_chunk(self, chunk: SnapshotChunk) -> None:
        content: dict[str, Any] = json.loads(chunk.rows)
        try:
            table = apps.get_model(chunk.model)
        except LookupError as error:
            raise CannotRestore(unfit_text(chunk.model)) from error
        if chunk.field:
            field = table._meta.get_field(chunk.field)
            pairs = zip(chunk.keys, content["values"], strict=True)
            self.links += [(field, Link(key, *values)) for key, values in pairs]
            return
        names = content["fields"]
        if names != [field.attname for field in stored_fields(table)]:
            raise CannotRestore(unfit_text(chunk.model))
        for key, values in zip(chunk.keys, content["values"], strict=True):
            self.rows[table, key] = Row(table, key, dict(zip(names, values, strict=True)))

    def broken(self, row: Row) -> list[Any]:
        """Its foreign keys to rows that are gone, and that would have deleted it with them."""
        return [
            link
            for link in stored_links(row.table)
            if link.remote_field.on_delete in CASCADING
            and not self.references.is_there(link.target_field, row.texts[link.attname])
        ]

    def leave_out(self, row: Row, place: UUID | None, link: Any) -> None:
        """Keep the row away, with the parts of it in other tables that cannot be without it."""
        if self.rows.pop((row.table, row.key), None) is None:
            return
        self.references.leave_out(row, place)
        if place:
            self.moves[place].rows.append(row)
        self.notes.add("later" if place else "gone", row.table, link, row.key)
        parts = [*map(self.rows.get, parent_keys(row)), *self.generic_children(row)]
        for part in filter(None, parts):
            self.leave_out(part, place, link)

    def generic_children(self, row: Row) -> list[Row]:
        found = list[Row]()
        for relation in row.table._meta.private_fields:
            if hasattr(relation, "bulk_related_objects"):
                meta = relation.related_model._meta
                names = (relation.content_type_field_name, relation.object_id_field_name)
                kind, key = (meta.get_field(name).attname for name in names)
                wanted, table = str(relation.get_content_type().pk), table_of(meta.model)
                found += [
                    each
                    for each in self.rows.values()
                    if each.table is table
                    and (each.texts[kind], each.texts[key]) == (wanted, row.key)
                ]
        return found

    def settle_links(self, row: Row) -> None:
        """Do to the row's links what the deletions of the rows they name would have done."""
        for link in stored_links(row.table):
            old, on_delete = row.texts[link.attname], link.remote_field.on_delete
            if self.references.is_there(link.target_field, old):
                continue
            if on_delete is DO_NOTHING and not link.db_constraint:
                continue
            place = self.references.place_of(link.target_field, old)
            new = self.value_without(row, link, place)
            row.texts[link.attname] = new
            if place:
                self.moves[place].links.append((link, Link(row.key, old, new)))
            self.notes.add("link_later" if place else "link_gone", row.table, link, row.key)

    def value_without(self, row: Row, link: Any, place: UUID | None) -> str | None:
        """The value of a link whose row is gone. Raises CannotRestore for protected ones."""
        on_delete = link.remote_field.on_delete
        if on_delete in EMPTYING:
            return None
        if on_delete in RESETTING:
            return encode_value(link, link.get_default())
        if hasattr(on_delete, "deconstruct"):  # That of models.SET.
            [value] = on_delete.deconstruct()[1]
            value = value() if callable(value) else value
            if isinstance(value, models.Model):
                value = getattr(value, link.target_field.attname)
            return encode_value(link, value)
        words = {
            "row": describe(row.table, [row.key]),
            "field": link.name,
            "other": describe(link.target_field.model, [str(row.texts[link.attname])]),
        }
        if place:
            text = _(
                "Nothing was restored: %(row)s needs %(other)s in its field %(field)s, which was"
                " deleted too. Undo that deletion first."
            )
        else:
            text = _(
                "Nothing was restored: %(row)s needs %(other)s in its field %(field)s, which is"
                " gone. Create that row again, then undo again."
            )
        raise CannotRestore(text % words)

    def drop_identical_rows(self) -> None:
        """Rows that were never deleted, such as a parent's that the deletion kept, stay as they
        are. Raises CannotRestore for other rows with the same keys."""
        for table, rows in group_by_table(self.rows.values()).items():
            for some in split_rows(rows):
                found = read_rows(table, [decode_key(table, row.key) for row in some])
                for row in some:
                    if row.key not in found:
                        continue
                    if found[row.key] != row.texts:
                        text = _(
                            "Nothing was restored: %s exists again, with other values. Delete that"
                            " row, or give it another key, then undo again."
                        )
                        raise CannotRestore(text % describe(table, [row.key]))
                    del self.rows[table, row.key]

    def refill_links(self) -> None:
        """Where they still are as the deletion left them."""
        groups = defaultdict[tuple[Any, str | None], list[Link]](list)
        for field, link in self.links:
            if self.references.is_there(field.target_field, link.old):
                groups[field, link.new].append(link)
            elif place := self.references.place_of(field.target_field, link.old):
                self.moves[place].links.append((field, link))
                self.notes.add("link_later", field.model, field, link.key)
            else:
                self.notes.add("link_gone", field.model, field, link.key)
        for (field, new), links in groups.items():
            for some in split_rows(links):
                self.refill_some(field, new, some)

    def refill_some(self, field: Any, new: str | None, links: list[Link]) -> None:
        pks = [decode_key(field.model, link.key) for link in links]
        rows = all_rows(field.model).filter(pk__in=pks).values_list("pk", field.attname)
        there = {encode_key(field.model, pk): encode_value(field, value) for pk, value in rows}
        by_old = defaultdict[str | None, list[Any]](list)
        for link, pk in zip(links, pks, strict=True):
            if link.key not in there:
                if place := self.references.place_of(field.model._meta.pk, link.key):
                    self.moves[place].links.append((field, link))
                self.notes.add(
                    "link_later" if place else "link_changed", field.model, field, link.key
                )
            elif there[link.key] == new:
                by_old[link.old].append(pk)
            elif there[link.key] != link.old:
                self.notes.add("link_changed", field.model, field, link.key)
        unchanged = {f"{field.name}__isnull": True}
        if new is not None:
            unchanged = {field.attname: decode_value(field, new)}
        for old, some in by_old.items():
            with refuse_taken(field.model):
                same = all_rows(field.model).filter(pk__in=some, **unchanged)
                same.update(**{field.attname: decode_value(field, old)})

    def move_rows(self) -> None:
        """What waits for other deletions to be undone is restored with those."""
        for place, (rows, links) in sorted(self.moves.items()):
            other = Snapshot.objects.select_for_update().filter(pk=place, unavailable="").first()
            if other is None:
                raise CannotRestore(
                    _("Nothing was restored: another deletion was undone just now. Undo again.")
                )
            for table in {row.table for row in rows}:
                for some in split_rows(row.texts for row in rows if row.table is table):
                    write_rows(other, table, some)
            for field in {field for field, _link in links}:
                write_links(other, field, [link for each, link in links if each is field])
            other.migrations = self.snapshot.migrations | other.migrations
            other.save(update_fields=["rows", "size", "migrations"])

    def check_constraints(self) -> None:
        tables = {row.table for row in self.rows.values()} | {
            field.model for field, _l in self.links
        }
        try:
            with transaction.atomic():
                connection.check_constraints([table._meta.db_table for table in tables])
        except IntegrityError as error:
            raise CannotRestore(
                _(
                    "Nothing was restored: a row that these rows refer to was deleted just now."
                    " Undo again."
                )
            ) from error
