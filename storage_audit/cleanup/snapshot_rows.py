"""Rows of any table as text in snapshots, and back.

Values are written as the fields write them for fixtures, which keeps microseconds, decimals and
bytes as they are.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connection, models
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import JSONField, Max, QuerySet, Value

from storage_audit.cleanup.models import Snapshot, SnapshotChunk, SnapshotFile
from storage_audit.ownership.referring_columns import columns_for_any_bucket

Obstacle = Snapshot.Obstacle
ROWS_PER_CHUNK = 200
# Django 6.1 has a value of its own for JSON's null.
JSON_NULL: Any = getattr(models, "JSONNull", lambda: Value(None, JSONField()))()

Table = type[models.Model]
# A row's values by their fields' names, each as text, or None for NULL.
TextRow = dict[str, str | None]


class CannotSnapshot(Exception):
    """Carries a code of `Snapshot.Obstacle`."""


class Link(NamedTuple):
    """A row that stays, and whose link the deletion changes."""

    key: str
    old: str | None
    new: str | None


def table_of(model: Table) -> Table:
    """The model of the table that this one's own columns are in, which a proxy shares."""
    found: Table = model._meta.concrete_model or model
    return found


def all_rows(model: Table) -> QuerySet[Any]:
    """Past its managers, which may hide some."""
    return QuerySet(model, using=DEFAULT_DB_ALIAS).order_by()


def stored_fields(model: Table) -> list[Any]:
    """The fields of the table's own columns, but for those that the database computes."""
    return [each for each in model._meta.local_concrete_fields if not each.generated]


def stored_links(table: Table) -> list[Any]:
    """Its foreign keys."""
    return [each for each in stored_fields(table) if each.remote_field]


def encode_key(model: Table, pk: Any) -> str:
    values = pk if isinstance(pk, tuple) else (pk,)
    fields = model._meta.pk_fields
    return join_key(encode_value(*each) for each in zip(fields, values, strict=True))


def key_of(model: Table, row: TextRow) -> str:
    return join_key(row[field.attname] for field in model._meta.pk_fields)


def join_key(texts: Iterable[str | None]) -> str:
    first, *others = texts
    return json.dumps([first, *others]) if others else str(first)


def decode_key(model: Table, key: str) -> Any:
    fields = model._meta.pk_fields
    if len(fields) == 1:
        return decode_value(fields[0], key)
    return tuple(decode_value(*each) for each in zip(fields, json.loads(key), strict=True))


def value_field(field: Any) -> Any:
    """The field that a foreign key takes its values from."""
    while field.remote_field:
        field = field.target_field
    return field


def encode_value(field: Any, value: Any) -> str | None:
    """Raises CannotSnapshot for values of a site's own field that do not come back as they were."""
    if value is None:
        return None
    source = value_field(field)
    if isinstance(source, JSONField):
        return json.dumps(value, cls=source.encoder)
    try:
        text = str(source.value_to_string(SimpleNamespace(**{source.attname: value})))
        if type(source).__module__.startswith("django.") or source.to_python(text) == value:
            return text
    except Exception as error:
        raise CannotSnapshot(Obstacle.UNREADABLE_VALUES) from error
    raise CannotSnapshot(Obstacle.UNREADABLE_VALUES)


def decode_value(field: Any, text: str | None) -> Any:
    if text is None:
        return None
    source = value_field(field)
    if isinstance(source, JSONField):
        value = json.loads(text, cls=source.decoder)
        return JSON_NULL if value is None else value
    return source.to_python(text)


def read_rows(model: Table, pks: Sequence[Any]) -> dict[str, TextRow]:
    """The rows with these primary keys as the database has them, by their keys as text."""
    fields, rows = stored_fields(model), all_rows(model).filter(pk__in=pks)
    found = dict[str, TextRow]()
    for values in read_values(rows, [field.attname for field in fields]):
        pairs = zip(fields, values, strict=True)
        row = {field.attname: encode_value(field, value) for field, value in pairs}
        found[key_of(model, row)] = row
    for name in (field.attname for field in fields if isinstance(field, JSONField)):
        # Python takes NULL and JSON's null for the same.
        if any(row[name] is None for row in found.values()):
            for pk in rows.filter(**{f"{name}__isnull": False}).values_list("pk", flat=True):
                row = found[encode_key(model, pk)]
                row[name] = row[name] or "null"
    return found


def read_values(rows: QuerySet[Any], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Raises CannotSnapshot where a field of the site refuses what the database has."""
    try:
        return list(rows.values_list(*names))
    except DatabaseError:
        raise
    except Exception as error:
        raise CannotSnapshot(Obstacle.UNREADABLE_VALUES) from error


def write_rows(snapshot: Snapshot, model: Table, rows: Sequence[TextRow]) -> None:
    keys = [key_of(model, row) for row in rows]
    columns = [each for each in columns_for_any_bucket() if table_of(each.field.model) is model]
    names = [field.attname for field in stored_fields(model)]
    values = [[row[name] for name in names] for row in rows]
    write_chunk(snapshot, model, keys, {"fields": names, "values": values})
    SnapshotFile.objects.bulk_create(
        SnapshotFile(snapshot=snapshot, key=file, row=column.describe_row(key))
        for column in columns
        for key, row in zip(keys, rows, strict=True)
        for file in sorted(column.keys_for_name(row[column.field.attname] or ""))
        if row[column.field.attname]
    )


def write_links(snapshot: Snapshot, field: Any, links: Sequence[Link]) -> None:
    keys, values = [each.key for each in links], [[each.old, each.new] for each in links]
    write_chunk(snapshot, table_of(field.model), keys, {"values": values}, field.name)


def write_chunk(
    snapshot: Snapshot, model: Table, keys: list[str], content: dict[str, Any], field: str = ""
) -> None:
    text = json.dumps(content)
    snapshot.size += len(text.encode())
    if not field:
        snapshot.rows += len(keys)
    last = snapshot.chunks.aggregate(last=Max("number"))["last"]
    SnapshotChunk.objects.create(
        snapshot=snapshot,
        number=0 if last is None else last + 1,
        model=model._meta.label,
        field=field,
        keys=keys,
        rows=text,
    )


def latest_migrations(labels: Iterable[str]) -> dict[str, str]:
    """Of each of these apps the migration that was applied last; empty for one without any."""
    recorder, found = MigrationRecorder(connection), dict.fromkeys(sorted(labels), "")
    if recorder.has_table():
        applied = recorder.migration_qs.filter(app__in=found).order_by("pk")
        found |= dict(applied.values_list("app", "name"))
    return found


def split_rows(rows: Iterable[Any], at_most: int = ROWS_PER_CHUNK) -> Iterator[list[Any]]:
    rest = iter(rows)
    while some := list(islice(rest, min(at_most, ROWS_PER_CHUNK))):
        yield some
