"""Rows of a snapshot on their way into the database, all of a table together."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connection, transaction
from django.db.models.signals import post_save, pre_save
from django.utils.translation import gettext as _

from storage_audit.cleanup.snapshot_rows import (
    JSON_NULL,
    Table,
    TextRow,
    all_rows,
    decode_key,
    decode_value,
    split_rows,
    stored_fields,
    stored_links,
    table_of,
)
from storage_audit.ownership.ownership_rule import shorten_list
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)
# How SQLite and PostgreSQL name the columns whose values are taken.
TAKEN_COLUMNS = (r"UNIQUE constraint failed: (.+)", r"Key \((.+?)\)=")


class CannotRestore(Exception):
    """Nothing was restored; the message says why, and what to do."""


class Row(NamedTuple):
    table: Table
    key: str
    texts: TextRow


def describe(model: Table, keys: Iterable[str]) -> str:
    return f"{model._meta.label} {shorten_list(map(printable_text, keys))}"


def group_by_table(rows: Iterable[Row]) -> dict[Table, list[Row]]:
    """The rows, each table after those that its foreign keys name."""
    found = dict[Table, list[Row]]()
    for row in rows:
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


def insert_rows(by_table: dict[Table, list[Row]]) -> None:
    for table, rows in by_table.items():
        fields = stored_fields(table)
        size = connection.ops.bulk_batch_size(fields, rows)
        for some in split_rows(rows, size):
            values = [
                {field.attname: decode_value(field, row.texts[field.attname]) for field in fields}
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


def send_saving(table: Table, values: dict[str, Any]) -> None:
    given = [None if value is JSON_NULL else value for value in values.values()]
    instance = table.from_db(DEFAULT_DB_ALIAS, list(values), given)
    instance._state.adding = True
    pre_save.send(
        sender=table, instance=instance, raw=True, using=DEFAULT_DB_ALIAS, update_fields=None
    )


def send_saved(by_table: dict[Table, list[Row]]) -> None:
    """Only now, as a receiver may create what it does not find, such as a profile."""
    for table, rows in by_table.items():
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
