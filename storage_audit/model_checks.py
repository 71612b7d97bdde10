"""System checks of the site's models: which rows use files, and what would delete files past us."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DatabaseError,
    OperationalError,
    ProgrammingError,
    models,
)
from django.db.models.deletion import get_candidate_relations_to_delete

from storage_audit.cleanup.named_files import project_file_columns, sample_key
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import referring_columns
from storage_audit.ownership.key_template import KeyFormatError
from storage_audit.ownership.ownership_rule import get_key_formats, refused_ids, refused_ids_text


def if_configured(check: Callable[..., list[CheckMessage]]) -> Callable[..., list[CheckMessage]]:
    """Skip the check where a setting is invalid: `check_settings` reports that."""

    @wraps(check)
    def checked(**kwargs: Any) -> list[CheckMessage]:
        try:
            get_key_formats()
        except (ImproperlyConfigured, KeyFormatError):
            return []
        return check(**kwargs)

    return checked


@if_configured
def check_references(**kwargs: Any) -> list[CheckMessage]:
    try:
        referring_columns.declared_references()
    except ImproperlyConfigured as error:
        hint = "Name text fields as app.Model.field, and functions by their path."
        return [Error(str(error), hint=hint, id="storage_audit.E006")]
    return []


# With these, which Django 6.1 added, the database deletes an object's row and no row of the site.
DB_SET_ACTIONS = [getattr(models, name, None) for name in ("DB_SET_NULL", "DB_SET_DEFAULT")]


def check_relations(**kwargs: Any) -> list[CheckMessage]:
    """The row of a deleted file goes in the database itself, past `on_delete`."""
    meta: Any = R2Object._meta
    relations: Any = get_candidate_relations_to_delete(meta)
    hint = (
        "Store the key in a text field and name that field in"
        " STORAGE_AUDIT['REFERENCES'], which also keeps the file. Or set"
        " db_constraint=False."
    )
    text = (
        "{} has a foreign key constraint on R2Object. It would stop the file's cleanup,"
        " or delete your rows with the file."
    )
    return [
        Error(text.format(field), hint=hint, id="storage_audit.E008")
        for field in (relation.field for relation in relations)
        if getattr(field, "db_constraint", False)
        and field.remote_field.on_delete not in DB_SET_ACTIONS
    ]


@if_configured
def check_indexes(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    try:
        columns = referring_columns.columns_for_bucket(conf().bucket)
        asked = [column for column in columns if column.alias in (databases or ())]
        without = [column for column in asked if column.has_index() is False]
    except ImproperlyConfigured:
        return []  # `check_references` says it.
    except DatabaseError:
        return []  # Whatever needs the database says it.
    text = "{} may name files in the bucket, but has no index."
    hint = (
        "Cleanups check this column just before a deletion only if it has an index. Add"
        " db_index=True, or run: {};"
    )
    return [
        Warning(
            text.format(column.label),
            hint=hint.format(column.create_index_sql()),
            id="storage_audit.W006",
        )
        for column in without
    ]


@if_configured
def check_project_ids(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    if not databases:
        return []
    try:
        refused = refused_ids()
    except (OperationalError, ProgrammingError):
        return []  # Not migrated yet.
    if not refused:
        return []
    hint = (
        "Change these projects' IDs or PROJECT_ID_PATTERN. Until then files that may"
        " belong to them are kept, and these projects can't be cleaned up."
    )
    return [Warning(refused_ids_text(refused), hint=hint, id="storage_audit.W007")]


@if_configured
def check_upload_keys(**kwargs: Any) -> list[CheckMessage]:
    columns = [each for each in project_file_columns() if each.bucket == conf().bucket]
    keys = {each: sample_key(each) for each in columns}
    unread = {
        each: key for each, key in keys.items() if key and not get_key_formats().parse_key(key)
    }
    hint = "Build keys with storage_audit.storage.key_for, or add the format to KEY_FORMATS."
    text = (
        "No key format matches the keys of {}, such as {}. Its files are kept when a"
        " project is deleted."
    )
    return [
        Warning(text.format(column.label, key), hint=hint, id="storage_audit.W009")
        for column, key in unread.items()
    ]


# They delete a row's files as soon as its deletion is committed.
FILE_DELETING_APPS = ("django_cleanup",)


@if_configured
def check_file_deleting_apps(**kwargs: Any) -> list[CheckMessage]:
    if not conf().grace:
        return []
    hint = (
        "Remove that app, exclude the models that are deleted with a project, or set"
        " GRACE to 0. Cleanups delete projects' files already."
    )
    text = "{} deletes files together with their rows, so Undo would restore rows without files."
    return [
        Warning(text.format(name), hint=hint, id="storage_audit.W011")
        for name in FILE_DELETING_APPS
        if apps.is_installed(name)
    ]
