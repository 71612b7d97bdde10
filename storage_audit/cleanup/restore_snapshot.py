"""Restoring what a snapshot holds: all of it, or nothing with a reason.

Rows are inserted and never saved over others. Where a row that a restored one refers to has gone
meanwhile, the restored row gets what the field's `on_delete` would have done, and the result says
so. If that would delete it, and the row it needs can still be restored, it waits for that.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, IntegrityError, connection, models, transaction
from django.db.models import DO_NOTHING
from django.db.models.signals import post_save, pre_save
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit.cleanup.models import Snapshot, SnapshotChunk
from storage_audit.cleanup.snapshot_rows import (
    JSON_NULL,
    Link,
    Table,
    TextRow,
    all_rows,
    decode_key,
    decode_value,
    encode_key,
    encode_value,
    latest_migrations,
    read_rows,
    split_rows,
    stored_fields,
    table_of,
    write_links,
    write_rows,
)
from storage_audit.ownership.ownership_rule import shorten_list
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)
# How SQLite and PostgreSQL name the columns whose values are taken.
TAKEN_COLUMNS = (r"UNIQUE constraint failed: (.+)", r"Key \((.+?)\)=")


def find_actions(*names: str) -> list[Any]:
    """Django 6.1 added those of the database."""
    return [getattr(models, name) for name in names if hasattr(models, name)]


CASCADING = find_actions("CASCADE", "DB_CASCADE")
EMPTYING = find_actions("SET_NULL", "DB_SET_NULL")
RESETTING = find_actions("SET_DEFAULT", "DB_SET_DEFAULT")


class CannotRestore(Exception):
    """Nothing was restored; the message says why, and what to do."""


class Restored(NamedTuple):
    """The number of rows by table, and what of the snapshot did not come back, in sentences."""

    rows: dict[str, int]
    left_out: list[str]


class Row(NamedTuple):
    table: Table
    key: str
    texts: TextRow


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


def stored_links(table: Table) -> list[Any]:
    """Its foreign keys."""
    return [each for each in stored_fields(table) if each.remote_field]


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
        # By the field that foreign keys name: the values of rows to be restored, those of rows in
        # the database, and those of rows that stay away, with the snapshot where they wait.
        self.values = defaultdict[Any, set[str]](set)
        self.existing = defaultdict[Any, set[str]](set)
        self.away = defaultdict[Any, dict[str, UUID | None]](dict)
        self.waiting = dict[Any, dict[str, UUID]]()
        self.moves = defaultdict[UUID, Move](lambda: Move([], []))
        self.notes = defaultdict[tuple[str, str, str], list[str]](list)

    def run(self) -> Restored:
        for chunk in read_in_steps(self.snapshot.chunks.order_by("number"), 1):
            self.load_chunk(chunk)
        self.find_references()
        while broken := [(row, links) for row in self.rows.values() if (links := self.broken(row))]:
            for row, links in broken:
                places = [
                    self.place_of(link.target_field, row.texts[link.attname]) for link in links
                ]
                self.leave_out(row, None if None in places else places[0], links[0])
        for row in self.rows.values():
            self.settle_links(row)
        self.drop_identical_rows()
        self.insert_rows()
        self.refill_links()
        self.move_rows()
        self.check_constraints()
        self.send_saved()
        counts = defaultdict[str, int](int)
        for row in self.rows.values():
            counts[row.table._meta.label] += 1
        return Restored(dict(counts), [*self.describe_notes()])

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

    def find_references(self) -> None:
        """Which of the values that foreign keys name there are."""
        wanted = defaultdict[Any, set[str]](set)
        tables = {row.table for row in self.rows.values()}
        links = {table: stored_links(table) for table in tables}
        for row in self.rows.values():
            for link in links[row.table]:
                if (text := row.texts[link.attname]) is not None:
                    wanted[link.target_field].add(text)
        for field, changed in self.links:
            if changed.old is not None:
                wanted[field.target_field].add(changed.old)
        for target in wanted:
            table = table_of(target.model)
            self.values[target] = {
                str(row.texts[target.attname]) for row in self.rows.values() if row.table is table
            }
            for some in split_rows(wanted[target] - self.values[target]):
                values = [decode_value(target, text) for text in some]
                found = all_rows(table).filter(**{f"{target.attname}__in": values})
                self.existing[target].update(
                    str(encode_value(target, value))
                    for value in found.values_list(target.attname, flat=True)
                )

    def is_there(self, target: Any, text: str | None) -> bool:
        return text is None or text in self.values[target] or text in self.existing[target]

    def broken(self, row: Row) -> list[Any]:
        """Its foreign keys to rows that are gone, and that would have deleted it with them."""
        return [
            link
            for link in stored_links(row.table)
            if link.remote_field.on_delete in CASCADING
            and not self.is_there(link.target_field, row.texts[link.attname])
        ]

    def place_of(self, target: Any, text: str | None) -> UUID | None:
        """The snapshot from which the missing row can still be restored."""
        if text in self.away[target]:
            return self.away[target][text]
        if target not in self.waiting:
            self.waiting[target] = dict(self.find_waiting(target))
        return self.waiting[target].get(str(text))

    def find_waiting(self, target: Any) -> Iterator[tuple[str, UUID]]:
        """The rows of the table in other snapshots."""
        chunks = SnapshotChunk.objects.filter(
            model=table_of(target.model)._meta.label, field="", snapshot__unavailable=""
        ).exclude(snapshot=self.snapshot)
        if target.primary_key:
            for keys, place in read_in_steps(chunks.values_list("keys", "snapshot_id"), 100):
                yield from ((key, place) for key in keys)
            return
        for text, place in read_in_steps(chunks.values_list("rows", "snapshot_id"), 1):
            content = json.loads(text)
            column = content["fields"].index(target.attname)
            yield from ((values[column], place) for values in content["values"])

    def leave_out(self, row: Row, place: UUID | None, link: Any) -> None:
        """Keep the row away, with the parts of it in other tables that cannot be without it."""
        if self.rows.pop((row.table, row.key), None) is None:
            return
        for target in {*self.values, row.table._meta.pk}:
            if table_of(target.model) is row.table and target.attname in row.texts:
                text = str(row.texts[target.attname])
                self.values[target].discard(text)
                self.away[target][text] = place
        if place:
            self.moves[place].rows.append(row)
        self.note("later" if place else "gone", row.table, link, row.key)
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
            if self.is_there(link.target_field, old):
                continue
            if on_delete is DO_NOTHING and not link.db_constraint:
                continue
            place = self.place_of(link.target_field, old)
            new = self.value_without(row, link, place)
            row.texts[link.attname] = new
            if place:
                self.moves[place].links.append((link, Link(row.key, old, new)))
            self.note("link_later" if place else "link_gone", row.table, link, row.key)

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

    def by_table(self) -> dict[Table, list[Row]]:
        """The rows, each table after those that its foreign keys name."""
        found = dict[Table, list[Row]]()
        for row in self.rows.values():
            found.setdefault(row.table, []).append(row)
        ordered = dict[Table, list[Row]]()
        visited = set[Table]()

        def visit(table: Table) -> None:
            if table in found and table not in visited:
                visited.add(table)
                for link in stored_links(table):
                    visit(table_of(link.target_field.model))
                ordered[table] = found[table]

        for table in found:
            visit(table)
        return ordered

    def drop_identical_rows(self) -> None:
        """Rows that were never deleted, such as a parent's that the deletion kept, stay as they
        are. Raises CannotRestore for other rows with the same keys."""
        for table, rows in self.by_table().items():
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

    def insert_rows(self) -> None:
        for table, rows in self.by_table().items():
            fields = stored_fields(table)
            size = connection.ops.bulk_batch_size(fields, rows)
            for some in split_rows(rows, size):
                values = [
                    {
                        field.attname: decode_value(field, row.texts[field.attname])
                        for field in fields
                    }
                    for row in some
                ]
                if pre_save.has_listeners(table) and not table._meta.auto_created:
                    for each in values:
                        send_saving(table, each)
                with refuse_taken(table):
                    # What Model.save_base(raw=True, force_insert=True) does for one row.
                    objects = [SimpleNamespace(**each) for each in values]
                    query: Any = all_rows(table)
                    query._insert(objects, fields, raw=True, using=DEFAULT_DB_ALIAS)

    def refill_links(self) -> None:
        """Where they still are as the deletion left them."""
        groups = defaultdict[tuple[Any, str | None], list[Link]](list)
        for field, link in self.links:
            if self.is_there(field.target_field, link.old):
                groups[field, link.new].append(link)
            elif place := self.place_of(field.target_field, link.old):
                self.moves[place].links.append((field, link))
                self.note("link_later", field.model, field, link.key)
            else:
                self.note("link_gone", field.model, field, link.key)
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
                if place := self.place_of(field.model._meta.pk, link.key):
                    self.moves[place].links.append((field, link))
                self.note("link_later" if place else "link_changed", field.model, field, link.key)
            elif there[link.key] == new:
                by_old[link.old].append(pk)
            elif there[link.key] != link.old:
                self.note("link_changed", field.model, field, link.key)
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

    def send_saved(self) -> None:
        """Only now, as a receiver may create what it does not find, such as a profile."""
        for table, rows in self.by_table().items():
            if table._meta.auto_created or not post_save.has_listeners(table):
                continue
            for some in split_rows(rows):
                pks = [decode_key(table, row.key) for row in some]
                for instance in all_rows(table).filter(pk__in=pks):
                    post_save.send(
                        sender=table,
                        instance=instance,
                        created=True,
                        update_fields=None,
                        raw=True,
                        using=DEFAULT_DB_ALIAS,
                    )

    def note(self, what: str, table: Table, link: Any, key: str) -> None:
        label = f"{link.model._meta.label}.{link.name}"
        self.notes[what, table._meta.label, label].append(printable_text(key))

    def describe_notes(self) -> Iterator[str]:
        for (what, label, field), keys in self.notes.items():
            words = {"rows": f"{label} {shorten_list(keys)}", "field": field}
            yield note_text(what, len(keys)) % words


def note_text(what: str, count: int) -> str:
    texts = {
        "gone": ngettext(
            "Not restored: %(rows)s, as the row in %(field)s is gone.",
            "Not restored: %(rows)s, as the rows in %(field)s are gone.",
            count,
        ),
        "later": ngettext(
            "Not restored yet: %(rows)s. It comes back once you also undo the deletion of the row"
            " in %(field)s.",
            "Not restored yet: %(rows)s. They come back once you also undo the deletion of the"
            " rows in %(field)s.",
            count,
        ),
        "link_gone": ngettext(
            "Restored without the link %(field)s: %(rows)s, as the linked row is gone.",
            "Restored without the link %(field)s: %(rows)s, as the linked rows are gone.",
            count,
        ),
        "link_later": ngettext(
            "Restored without the link %(field)s: %(rows)s. The link comes back once you also undo"
            " the deletion of the other row.",
            "Restored without the link %(field)s: %(rows)s. The links come back once you also undo"
            " the deletion of the other rows.",
            count,
        ),
        "link_changed": _(
            "Not linked again in %(field)s: %(rows)s, changed or deleted since the deletion."
        ),
    }
    return texts[what]


def describe(model: Table, keys: Iterable[str]) -> str:
    return f"{model._meta.label} {shorten_list(map(printable_text, keys))}"


@contextmanager
def refuse_taken(table: Table) -> Iterator[None]:
    """Turn what the database refuses into CannotRestore, and leave the transaction usable."""
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        matches = (re.search(pattern, str(error)) for pattern in TAKEN_COLUMNS)
        found = next((match[1] for match in matches if match), "")
        columns = {each.column: each.name for each in table._meta.local_concrete_fields}
        named = [part.rpartition(".")[2].strip('"') for part in found.split(", ")]
        words = {
            "table": table._meta.label,
            "fields": ", ".join(columns.get(each, each) for each in named),
        }
        if found:
            text = _(
                "Nothing was restored: another row of %(table)s has the same %(fields)s by now."
                " Change or delete that row, then undo again."
            )
        else:
            text = _(
                "Nothing was restored: the database refuses rows of %(table)s. The server's log"
                " says why."
            )
            # The other lines may quote the row.
            reason = str(error).partition("\n")[0]
            logger.error("Rows of %s cannot be restored: %s", table._meta.label, reason)
        raise CannotRestore(text % words) from error


def send_saving(table: Table, values: dict[str, Any]) -> None:
    given = [None if value is JSON_NULL else value for value in values.values()]
    instance = table.from_db(DEFAULT_DB_ALIAS, list(values), given)
    instance._state.adding = True
    pre_save.send(
        sender=table, instance=instance, raw=True, using=DEFAULT_DB_ALIAS, update_fields=None
    )
