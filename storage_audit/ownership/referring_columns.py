"""The fields of other tables that name files of a bucket, by key or by a storage's name for it.

They are every local FileField whose storage is not known to write elsewhere, and what the setting
REFERENCES adds.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InMemoryStorage
from django.db import connections, models, router
from django.db.models import Expression, F, Q
from django.db.models.functions import Collate
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _
from storages.utils import clean_name, safe_join

from storage_audit.conf import conf
from storage_audit.fields import unicode_spellings
from storage_audit.redaction import printable_text

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


def columns_for_bucket(bucket: str) -> list[Column]:
    """The fields that may name files of the bucket. Raises ImproperlyConfigured."""
    return [each for each in columns_for_any_bucket() if each.bucket in ("", bucket)]


def columns_for_any_bucket() -> list[Column]:
    """The fields that may name files of any bucket. Raises ImproperlyConfigured."""
    declared = [each for each in declared_references().values() if isinstance(each, Column)]
    return [*file_columns(), *declared]


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
