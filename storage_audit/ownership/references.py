"""Which rows of other tables name files of a bucket. They are read past any manager, from the
database that is written to."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, models
from django.db.models import Expression, F
from django.db.models.deletion import Collector, ProtectedError, RestrictedError
from django.db.models.functions import Collate, Substr

from storage_audit.fields import starts_with, unicode_spellings
from storage_audit.ownership.referring_columns import (
    Column,
    ReferenceFunction,
    columns_for_bucket,
    declared_references,
)
from storage_audit.read_in_steps import read_with_timeout
from storage_audit.redaction import printable_text, redact_secrets

logger = logging.getLogger(__name__)
# Keys, or rows, in one query.
ROWS_PER_QUERY = 1000
# A key with such a character can be spelled in several ways, which the database cannot compare.
NOT_ASCII = "[^\x01-\x7f]"


class FileReferences(NamedTuple):
    """By item or key the row that names its file, and the fields that could not be read."""

    rows: dict[Any, str]
    unreadable: list[str]


class Cascade:
    """The rows that Django deletes with these projects' rows. Nothing is deleted here."""

    def __init__(self, projects: list[models.Model]) -> None:
        self._collector = Collector(DEFAULT_DB_ALIAS)
        # A deletion that Django would refuse deletes nothing; its dry run shows what it can.
        with suppress(ProtectedError, RestrictedError):
            self._collector.collect(projects)

    def rows_of(self, model: type[models.Model]) -> Iterator[models.QuerySet[Any]]:
        """The rows of a table, as they are in the database."""
        for kind, instances in self._collector.data.items():
            if is_same_table(kind, model):
                for some in split_chunks(instances):
                    pks = [row.pk for row in some]
                    yield models.QuerySet(model, using=DEFAULT_DB_ALIAS).filter(pk__in=pks)
        for rows in self._collector.fast_deletes:
            if is_same_table(rows.model, model):
                yield rows

    def deleted_pks(self, model: type[models.Model], pks: Collection[Any]) -> set[Any]:
        collected = self._collector.data.items()
        gone = {row.pk for kind, rows in collected if is_same_table(kind, model) for row in rows}
        gone &= set(pks)
        for rows in self._collector.fast_deletes:
            if is_same_table(rows.model, model):
                gone |= set(rows.filter(pk__in=pks).values_list("pk", flat=True))
        return gone


def is_same_table(kind: type[models.Model], model: type[models.Model]) -> bool:
    return kind._meta.concrete_model is model._meta.concrete_model


def find_row_references(
    bucket: str,
    items: models.QuerySet[Any],
    *,
    removed: Cascade | None = None,
    seconds: float,
    renew: Callable[[], None] = lambda: None,
) -> FileReferences:
    """Which of the items, or of other rows with a `key`, name files that rows use. Rows that are
    `removed` do not count. No query takes longer than `seconds`; `renew` is called before each."""
    used = FileReferences({}, [])
    for column in columns_for_bucket(bucket):
        try:
            for some in split_chunks(rows_naming_items(column, items, seconds, renew)):
                gone = (
                    removed.deleted_pks(column.model, {pk for _item, pk in some}) if removed else ()
                )
                for item, pk in some:
                    if pk not in gone:
                        used.rows.setdefault(item, column.describe_row(pk))
        except DatabaseError:
            logger.exception("%s can't be read.", column.label)
            used.unreadable.append(f"{column.label} ({column.table})")
    for entry, source in declared_references().items():
        if not isinstance(source, Column):
            call_reference_function(entry, source, items, used, renew)
    return used


def rows_naming_items(
    column: Column, items: models.QuerySet[Any], seconds: float, renew: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """Items, each with the key of a row. The database joins the tables where it has both, and
    where keys have one spelling."""
    one_by_one = items
    for some in odd_rows_in_chunks(column, seconds, renew):
        yield from match_items(column, items, some)
    if column.alias == DEFAULT_DB_ALIAS:
        one_by_one = items.filter(key__regex=NOT_ASCII)
        for query in join_queries(column, items):
            renew()
            found = read_with_timeout(query, seconds)
            for some in split_chunks(found):
                renew()
                yield from match_items(column, items, some)
    for some in items_in_chunks(one_by_one):
        renew()
        yield from rows_naming_keys(column, some, seconds)


def odd_rows_in_chunks(
    column: Column, seconds: float, renew: Callable[[], None]
) -> Iterator[list[tuple[Any, str]]]:
    """The oddly named rows, which may be many."""
    odd = column.oddly_named_rows().values_list("pk", column.name)
    renew()
    some = read_with_timeout(odd[:ROWS_PER_QUERY], seconds)
    while some:
        yield some
        renew()
        some = read_with_timeout(odd.filter(pk__gt=some[-1][0])[:ROWS_PER_QUERY], seconds)


def join_queries(column: Column, items: models.QuerySet[Any]) -> Iterator[models.QuerySet[Any]]:
    """The rows that call a file by its key; then those that leave the location out."""
    yield join_query(column, items, F("key"))
    if column.prefix:
        under = items.filter(starts_with("key", column.prefix))
        yield join_query(column, under, Substr("key", len(column.prefix) + 1))


def join_query(
    column: Column, items: models.QuerySet[Any], name: Expression | F
) -> models.QuerySet[Any]:
    connection = connections[column.alias]
    if connection.vendor == "postgresql":
        # Of two columns with collations of their own the database must be told by which to compare.
        collation = column.field.db_parameters(connection).get("collation")
        name = Collate(name, collation or "default")
    names = items.order_by().annotate(name_in_row=name).values("name_in_row")
    rows: models.QuerySet[Any] = column.all_rows().filter(**{f"{column.name}__in": names})
    return rows.values_list("pk", column.name)


def match_items(
    column: Column, items: models.QuerySet[Any], rows: list[tuple[Any, str]]
) -> Iterator[tuple[int, Any]]:
    by_key = defaultdict(set)
    for pk, name in rows:
        for key in column.keys_for_name(name):
            by_key[key].add(pk)
    for item, key in items.filter(key__any_of=list(by_key)).values_list("pk", "key"):
        yield from ((item, pk) for pk in by_key[key])


def rows_naming_keys(
    column: Column, keys: Iterable[tuple[Any, str]], seconds: float
) -> Iterator[tuple[Any, Any]]:
    """Which of these a row names in any spelling, each with the row's key."""
    by_name = defaultdict(list)
    for one, key in keys:
        for name in column.names_for_key(key):
            by_name[name].append(one)
    rows = column.all_rows().filter(**{f"{column.name}__in": list(by_name)})
    for pk, name in read_with_timeout(rows.values_list("pk", column.name), seconds):
        yield from ((one, pk) for one in by_name.get(name, ()))


def find_key_references(
    bucket: str, keys: Iterable[tuple[Any, str]], seconds: float
) -> FileReferences:
    """The same for a few keys, in the columns that have an index. Raises TimeoutError when all
    queries together take longer than `seconds`."""
    used, until, keys = FileReferences({}, []), monotonic() + seconds, list(keys)
    for column in columns_for_bucket(bucket):
        try:
            if not column.has_index():
                continue
            for some in split_chunks(keys):
                for one, pk in rows_naming_keys(column, some, until - monotonic()):
                    used.rows.setdefault(one, column.describe_row(pk))
        except DatabaseError as error:
            if monotonic() >= until:
                raise TimeoutError(column.label) from error
            used.unreadable.append(f"{column.label} ({column.table})")
    return used


def call_reference_function(
    entry: str,
    source: ReferenceFunction,
    items: models.QuerySet[Any],
    used: FileReferences,
    renew: Callable[[], None],
) -> None:
    """A function of the site may fail in any way. Then any of the files may be in use."""
    for some in items_in_chunks(items):
        renew()
        by_name = {form: item for item, key in some for form in unicode_spellings(key)}
        try:
            for key, row in source(list(by_name)):
                if key in by_name:
                    used.rows.setdefault(by_name[key], redact_secrets(printable_text(str(row))))
        except Exception:
            logger.exception("%s failed.", entry)
            used.unreadable.append(entry)
            return


def items_in_chunks(items: models.QuerySet[Any]) -> Iterator[list[tuple[int, str]]]:
    """The numbers and keys of items. No transaction is open between chunks, so the lease can be
    renewed."""
    after = 0
    while some := list(
        items.filter(pk__gt=after).order_by("pk").values_list("pk", "key")[:ROWS_PER_QUERY]
    ):
        yield some
        after, _key = some[-1]


def split_chunks(found: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(found)
    while some := list(islice(rest, ROWS_PER_QUERY)):
        yield some
