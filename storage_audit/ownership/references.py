"""Which rows of other tables name files of a bucket, by their key or by a storage's name for it.

Checks every local FileField whose storage is not known to write elsewhere, and what the setting
REFERENCES adds. Rows are read from the database that is written to, past any manager.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import reduce
from itertools import islice
from operator import or_
from time import monotonic
from typing import Any, NamedTuple

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InMemoryStorage
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, models, router
from django.db.models import Expression, F, Q
from django.db.models.deletion import Collector, ProtectedError, RestrictedError
from django.db.models.functions import Collate, Substr
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _
from storages.utils import clean_name, safe_join

from storage_audit.conf import conf
from storage_audit.fields import starts_with, unicode_spellings
from storage_audit.read_in_steps import read_with_timeout
from storage_audit.redaction import printable_text, redact_secrets

logger = logging.getLogger(__name__)
# Keys, or rows, in one query.
ROWS_PER_QUERY = 1000
# A key with such a character can be spelled in several ways, which the database cannot compare.
NOT_ASCII = "[^\x01-\x7f]"
# What `get_constraints` calls the indexes that find a value: nothing on SQLite.
INDEX_TYPES = (None, "idx", "btree", "hash")
# Storages that keep files on this machine, unless they name a bucket.
LOCAL_STORAGES = (FileSystemStorage, InMemoryStorage)
# The names of a table's indexes that leave out rows: partial ones, and those whose build failed.
INCOMPLETE_INDEXES_SQL = {
    "postgresql": """
        SELECT index.relname FROM pg_index
        JOIN pg_class AS index ON index.oid = indexrelid
        JOIN pg_class AS its_table ON its_table.oid = indrelid
        WHERE its_table.relname = %s AND pg_table_is_visible(its_table.oid)
        AND (indpred IS NOT NULL OR NOT indisvalid)
    """,
    "sqlite": "SELECT name FROM pragma_index_list(%s) WHERE partial",
}

# A function that REFERENCES names: it gets keys, and gives those in use, each with its row.
ReferenceFunction = Callable[[list[str]], Iterable[tuple[str, str]]]


class Column(NamedTuple):
    """A field whose values name files of the bucket."""

    model: type[models.Model]
    name: str
    # Empty where REFERENCES names the field, or its storage names no bucket.
    bucket: str = ""

    @property
    def label(self) -> str:
        return f"{self.model._meta.label}.{self.name}"

    @property
    def field(self) -> "models.Field[Any, Any]":
        found: models.Field[Any, Any] = self.model._meta.get_field(self.name)  # type: ignore[assignment]
        return found

    @property
    def prefix(self) -> str:
        """The location of the field's storage, which comes before each name."""
        storage = getattr(self.field, "storage", None)
        location = str(getattr(storage, "location", "") or "").strip("/")
        return f"{location}/" if location else ""

    @property
    def table(self) -> str:
        return self.field.model._meta.db_table

    @property
    def alias(self) -> str:
        return router.db_for_write(self.model)

    def all_rows(self) -> models.QuerySet[Any]:
        return models.QuerySet(self.model, using=self.alias)

    def describe_row(self, pk: object) -> str:
        words = {"model": self.model._meta.label, "pk": printable_text(str(pk)), "field": self.name}
        return _("%(model)s %(pk)s, field %(field)s") % words

    def names_for_key(self, key: str) -> set[str]:
        """What a row may call the file of this key."""
        forms = unicode_spellings(key)
        names = forms | {form.removeprefix(self.prefix) for form in forms}
        return names | {before + name for before in ("/", "./") for name in names}

    def keys_for_name(self, name: str) -> set[str]:
        """The keys that a row's name may stand for, also as the storage reads it."""
        keys = {name, self.prefix + name}
        for location in ("", self.prefix):
            # A storage opens no file outside its location.
            with suppress(ValueError):
                keys.update(unicode_spellings(safe_join(location, clean_name(name))))
        return keys

    def oddly_named_rows(self) -> models.QuerySet[Any]:
        """The rows whose name the storage changes when it reads it, such as `/a`, `./a`, `a//b`,
        `a/../b` and `a\\b`."""
        name: Expression | F = F(self.name)
        if connections[self.alias].vendor == "postgresql":
            # It searches no text whose collation takes different texts for the same.
            name = Collate(name, "C")
        starts = [Q(odd_name__startswith=text) for text in ("/", ".")]
        parts = [Q(odd_name__contains=text) for text in ("//", "/.", "\\")]
        rows: models.QuerySet[Any] = self.all_rows().alias(odd_name=name)
        return rows.filter(reduce(or_, starts + parts)).order_by("pk")

    def has_index(self) -> bool | None:
        """Whether an index finds each row. None where there is no such table."""
        database = connections[self.alias]
        with database.cursor() as cursor:
            found = database.introspection.get_constraints(cursor, self.table)
            incomplete = set[str]()
            if query := INCOMPLETE_INDEXES_SQL.get(database.vendor):
                cursor.execute(query, [self.table])
                incomplete = {name for (name,) in cursor.fetchall()}
        indexes = {name: each for name, each in found.items() if is_index(each)}
        complete = [
            (each["columns"] or [])[:1] for name, each in indexes.items() if name not in incomplete
        ]
        return [self.field.column] in complete if indexes else None

    def create_index_sql(self) -> str:
        database = connections[self.alias]
        table, column = map(database.ops.quote_name, (self.table, str(self.field.column)))
        name = database.ops.quote_name(f"{self.table}_{self.field.column}_names"[-60:])
        beside = "CONCURRENTLY " if database.vendor == "postgresql" else ""
        return f"CREATE INDEX {beside}{name} ON {table} ({column})"


def is_index(constraint: Any) -> bool:
    is_one = constraint["index"] or constraint["unique"] or constraint["primary_key"]
    return bool(is_one and constraint.get("type") in INDEX_TYPES)


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


def columns_for_bucket(bucket: str) -> list[Column]:
    """The fields that may name files of the bucket. Raises ImproperlyConfigured."""
    texts = [each for each in declared_references().values() if isinstance(each, Column)]
    return [*(each for each in file_columns() if each.bucket in ("", bucket)), *texts]


def file_columns() -> Iterator[Column]:
    """Those whose storage may write to a bucket."""
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, models.FileField):
                bucket = bucket_of(field.storage)
                if bucket or not isinstance(field.storage, LOCAL_STORAGES):
                    yield Column(model, field.name, bucket)


def bucket_of(storage: Any) -> str:
    """The bucket that it names. The endpoint says nothing: one store has several addresses."""
    return str(getattr(storage, "bucket_name", None) or "")


def has_references() -> bool:
    """Whether any table or function may know of files; where none does, nothing is asked."""
    return bool(conf().references) or any(file_columns())


def declared_references() -> dict[str, Column | ReferenceFunction]:
    """What REFERENCES names. Raises ImproperlyConfigured."""
    return {entry: resolve_reference(entry) for entry in conf().references}


def resolve_reference(entry: str) -> Column | ReferenceFunction:
    parts = entry.split(".")
    if len(parts) == 3:
        with suppress(LookupError):
            return text_column(entry, apps.get_model(parts[0], parts[1]), parts[2])
    try:
        found: ReferenceFunction = import_string(entry)
    except ImportError as error:
        raise reference_error(entry, _("there is no such field and no such function")) from error
    if not callable(found):
        raise reference_error(entry, _("it is not a function"))
    return found


def text_column(entry: str, model: type[models.Model], name: str) -> Column:
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist as error:
        raise reference_error(entry, _("the model has no such field")) from error
    if not isinstance(field, (models.CharField, models.TextField, models.FileField)):
        raise reference_error(
            entry, _("the field is not a text field; name a function that reads it")
        )
    return Column(model, name)


def reference_error(entry: str, why: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"STORAGE_AUDIT['REFERENCES'] names {entry!r}: {why}.")


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
