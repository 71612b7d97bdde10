import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache, reduce
from itertools import islice
from operator import itemgetter, or_
from typing import TYPE_CHECKING, Any, TypeVar
from unicodedata import normalize
from uuid import UUID

from django.db import connection, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q
from django.db.models.sql.compiler import SQLCompiler
from django.utils.deconstruct import deconstructible

# With three spellings of each, some SQLites take no more variables in a statement (999).
TEXTS_PER_QUERY = 300

# R2 sends ETags of some 40 characters.
MAX_ETAG_LENGTH = 200
LAST_CHARACTER = "\U0010ffff"
UUID_START = "[0-9a-f]{8,32}"
BYTEWISE_COLLATIONS = {"postgresql": "C", "sqlite": "BINARY"}


_ST = TypeVar("_ST", contravariant=True)
_GT = TypeVar("_GT", covariant=True)

if TYPE_CHECKING:

    class Text(models.TextField[_ST, _GT]): ...
else:
    # Django's fields cannot be subscripted when the code runs.
    Text = {(_ST, _GT): models.TextField}


class BytewiseTextField(Text[_ST, _GT]):
    """Text that the database compares and sorts byte by byte, as the bucket sorts its keys.

    `db_collation` cannot say this: each database has its own name for it.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        return {
            **super().db_parameters(connection),
            "collation": BYTEWISE_COLLATIONS[connection.vendor],
        }


@deconstructible(path="storage_audit.fields.Bytewise")
class Bytewise(models.Func):
    """An expression of text that the database compares and sorts byte by byte."""

    template = "(%(expressions)s) COLLATE %(collation)s"

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> Any:
        collation = connection.ops.quote_name(BYTEWISE_COLLATIONS[connection.vendor])
        return super().as_sql(compiler, connection, collation=collation, **context)


@models.Field.register_lookup
class AnyOf(models.Lookup):
    """`in`, for thousands of texts or numbers: they go to the database as one parameter, which
    spares Python most of the time that the whole statement takes."""

    lookup_name = "any_of"

    def get_prep_lookup(self) -> list[Any]:
        # NULL is equal to nothing.
        return [value for value in self.rhs if value is not None]

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, Any]:
        column, params = self.process_lhs(compiler, connection)
        if connection.vendor == "postgresql":
            # Of the column's type, as the text has none.
            return f"{column} = ANY(%s)", (*params, array_literal(self.rhs))
        return f"{column} IN (SELECT value FROM json_each(%s))", (*params, json.dumps(self.rhs))


def array_literal(values: Iterable[str | int]) -> str:
    """As PostgreSQL reads an array from text, in a third of the time that it takes for one from
    an expression. https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO"""
    texts = map(str, values)
    quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts]
    return "{" + ",".join(quoted) + "}"


def insert_new_rows(rows: Sequence[models.Model]) -> int:
    """Insert the rows that break no unique constraint, and return how many they were. Nothing else
    that a save does happens. Faster than `bulk_create`: the rows are one parameter."""
    return insert_values(type(rows[0]), list(map(vars, rows))) if rows else 0


def insert_values(model: type[models.Model], rows: Sequence[dict[str, Any]]) -> int:
    """The same of the values of such rows, by their columns. What all rows have is sent, and read
    by the database, once."""
    if not rows:
        return 0
    fields = [field for field in model._meta.concrete_fields if not field.primary_key]
    attributes = itemgetter(*(field.attname for field in fields))
    each, one, source = VALUE_SQL[connection.vendor]
    wanted, same, different = list[str](), list[Any](), list[Sequence[Any]]()
    for field, values in zip(fields, zip(*map(attributes, rows), strict=True), strict=True):
        # Without its length: a cast cuts off what is too long, where an insert refuses it.
        type_ = str(field.db_type(connection)).partition("(")[0]
        if values.count(values[0]) == len(values):
            wanted.append(one.format(type=type_))
            same.append(json_value(values[0]))
        else:
            wanted.append(each.format(i=len(different), type=type_))
            different.append(values)
    given = list(zip(*different, strict=True)) or [()] * len(rows)
    columns = ", ".join(connection.ops.quote_name(str(field.column)) for field in fields)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {model._meta.db_table} ({columns}) SELECT {', '.join(wanted)}"
            f" FROM {source} WHERE true ON CONFLICT DO NOTHING",
            [*same, json.dumps(given, default=json_value)],
        )
        return int(cursor.rowcount)


# A row's value of a column, that of all rows, and the rows.
VALUE_SQL = {
    "postgresql": ("(value->>{i})::{type}", "%s::{type}", "jsonb_array_elements(%s::jsonb)"),
    "sqlite": ("json_extract(value, '$[{i}]')", "%s", "json_each(%s)"),
}


def json_value(value: Any) -> Any:
    """A value of a column as JSON has one. Raises TypeError for what is none, or many."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, dict | list | float):
        raise TypeError(f"{value!r} cannot be inserted so")
    return database_text(value) if isinstance(value, UUID | datetime) else str(value)


@lru_cache(maxsize=64)  # Most are those of all rows, or of the row before.
def database_text(value: UUID | datetime) -> str:
    if isinstance(value, UUID):
        return value.hex
    return str(connection.ops.adapt_datetimefield_value(value))


def unicode_spellings(text: str) -> set[str]:
    """What a store that folds Unicode takes for the same text."""
    if text.isascii():
        return {text}
    return {text, normalize("NFC", text), normalize("NFD", text)}


def find_in_any_spelling(
    texts: Iterable[str], find: Callable[[set[str]], Iterable[str]]
) -> set[str]:
    """The texts of which `find`, asked for all their spellings, knows one."""

    def find_some(some: set[str]) -> set[str]:
        asked = {text: unicode_spellings(text) for text in some}
        found = set(find(set().union(*asked.values())))
        return {text for text, forms in asked.items() if forms & found}

    return find_in_chunks(texts, find_some)


def find_in_chunks(texts: Iterable[str], find: Callable[[set[str]], Iterable[str]]) -> set[str]:
    """What `find` finds of these texts, asked for a few hundred at a time."""
    found, left = set[str](), iter(set(texts))
    while some := set(islice(left, TEXTS_PER_QUERY)):
        found.update(find(some))
    return found


def prefix_end(prefix: str) -> str:
    """The least text that sorts after every text that starts with `prefix`.

    Ranges are used for prefix searches since LIKE ignores case on SQLite and cannot use an
    ordinary index there. Empty when there is no such text.
    """
    while prefix:
        last = ord(prefix[-1]) + 1
        if last <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)
        prefix = prefix[:-1]
    return ""


def filter_by_pks(queryset: models.QuerySet[Any], pks: Iterable[Any]) -> models.QuerySet[Any]:
    """Of the rows those with these keys, however many."""
    convert, database = queryset.model._meta.pk.get_db_prep_value, connections[queryset.db]
    # The key of a child model is a relation, which has no lookup of ours.
    return queryset.filter(AnyOf(F("pk"), [convert(pk, database) for pk in pks]))


def starts_with(field: str, prefix: str) -> Q:
    """The values of a bytewise field that start with `prefix`."""
    end = prefix_end(prefix)
    first = Q(**{f"{field}__gte": prefix}) if prefix else Q()
    return first & Q(**{f"{field}__lt": end}) if end else first


def uuid_starts_with(field: str, text: str) -> Q | None:
    """The ids that start with these digits, of which there are at least 8; None for other texts."""
    digits = text.strip("{} ").replace("-", "").lower()
    if not re.fullmatch(UUID_START, digits):
        return None
    ends = (UUID(digits.ljust(32, digit)) for digit in "0f")
    return Q(**{f"{field}__range": tuple(ends)})


def starts_with_any(field: str, prefixes: Iterable[str]) -> Q:
    """The same of several prefixes, at least one."""
    return reduce(or_, (starts_with(field, prefix) for prefix in prefixes))


# In the address of a list; no bucket can be named so.
ALL_BUCKETS = "*"


def distinct_buckets(rows: models.Manager[Any] | models.QuerySet[Any]) -> list[str]:
    """The buckets of these rows, each found by one read of an index that begins with the bucket."""
    found = list[str]()
    names = rows.order_by("bucket").values_list("bucket", flat=True)
    while name := names.filter(bucket__gt=found[-1] if found else "").first():
        found.append(name)
    return found
