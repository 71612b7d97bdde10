import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import (
    DEFAULT_DB_ALIAS,
    OperationalError,
    ProgrammingError,
    connection,
    router,
)
from django.utils.module_loading import import_string

from storage_audit import project_model, queue
from storage_audit.conf import conf
from storage_audit.model_checks import (
    check_file_deleting_apps,
    check_indexes,
    check_project_ids,
    check_references,
    check_relations,
    check_upload_keys,
    if_configured,
)
from storage_audit.ownership.key_template import KeyFormatError
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.request_origin import OriginMiddleware


def register_checks() -> None:
    for check in (
        check_settings,
        check_use_tz,
        check_routers,
        check_middleware,
        check_queue,
        check_notifications,
        check_references,
        check_relations,
        check_upload_keys,
        check_file_deleting_apps,
    ):
        register(check, Tags.compatibility)
    for check in (check_schedule, check_sqlite, check_pooler, check_indexes, check_project_ids):
        register(check, Tags.database)


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    try:
        get_key_formats()
    except (ImproperlyConfigured, KeyFormatError) as error:
        hint = "Correct this entry of STORAGE_AUDIT in the settings."
        return [Error(str(error), hint=hint, id="storage_audit.E001")]
    return check_project_field()


def check_project_field() -> list[CheckMessage]:
    name, owner = conf().project_id_field, project_model.get_model()._meta.label
    if is_unique_field(name) and isinstance(project_model.id_field(), project_model.ID_FIELD_TYPES):
        return []
    hint = (
        "Name a unique, non-null field of integers, text or UUIDs that never changes. Or"
        " leave the entry out to use the primary key."
    )
    text = f"STORAGE_AUDIT['PROJECT_ID_FIELD'] is {name!r}, which is no such field of {owner}."
    return [Error(text, hint=hint, id="storage_audit.E004")]


def is_unique_field(name: str) -> bool:
    if name == "pk":
        return True
    try:
        field: Any = project_model.get_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return field.concrete and not field.is_relation and field.unique and not field.null


def check_use_tz(**kwargs: Any) -> list[CheckMessage]:
    if settings.USE_TZ:
        return []
    hint = "Set it to True. The store's times have a time zone."
    return [Error("USE_TZ is not True.", hint=hint, id="storage_audit.E005")]


# A router may choose among replicas by chance.
CALLS_PER_ROUTER = 20


def check_routers(**kwargs: Any) -> list[CheckMessage]:
    """Cleanups decide by what they have just written, which a replica may not have yet. They do not
    see a project written through another alias, and its deletion would wait for itself."""
    ours = list(apps.get_app_config("storage_audit").get_models())
    asked = [(router.db_for_read, ours), (router.db_for_write, [*ours, project_model.get_model()])]
    elsewhere = [
        model._meta.label
        for ask, models_asked in asked
        for model in models_asked
        if any(ask(model) != DEFAULT_DB_ALIAS for _time in range(CALLS_PER_ROUTER))
    ]
    if not elsewhere:
        return []
    hint = (
        'Make DATABASE_ROUTERS return "default" for reads and writes of the app label'
        ' "storage_audit", and for writes of the project model. A replica that lags hides'
        " files and limits from cleanups."
    )
    names = ", ".join(dict.fromkeys(elsewhere))
    text = f"DATABASE_ROUTERS send {names} to another database than the default one."
    return [Error(text, hint=hint, id="storage_audit.E007")]


def check_middleware(**kwargs: Any) -> list[CheckMessage]:
    """A subclass will do. Middleware that cannot be imported stops the start in any case."""
    if not any(map(apps.is_installed, ("django.contrib.admin", "ninja"))):
        return []
    for name in settings.MIDDLEWARE:
        with suppress(ImportError, TypeError):
            if issubclass(import_string(name), OriginMiddleware):
                return []
    middleware = "storage_audit.request_origin.OriginMiddleware"
    hint = f'Add "{middleware}" to MIDDLEWARE, after AuthenticationMiddleware.'
    text = (
        "Requests do not record who asked for a deletion. Deletions of many projects"
        " stop, because nobody's permissions can be checked."
    )
    return [Warning(text, hint=hint, id="storage_audit.W010")]


def check_queue(**kwargs: Any) -> list[CheckMessage]:
    """https://django-q2.readthedocs.io/en/stable/configure.html#retry"""
    cluster: dict[str, Any] = getattr(settings, "Q_CLUSTER", {})
    workers = cluster.get("workers") or os.cpu_count() or 1
    waiting = cluster.get("queue_limit", workers**2) / workers
    found: list[CheckMessage] = []
    if not cluster.get("timeout") or cluster.get("retry", 60) <= cluster["timeout"] * (waiting + 1):
        hint = "Set retry above timeout * (queue_limit / workers + 1). Otherwise tasks run twice."
        found.append(Error("Q_CLUSTER's retry is too short.", hint=hint, id="storage_audit.E002"))
    if cluster.get("bulk", 1) != 1:
        hint = "Set bulk to 1. Otherwise one unreadable task stops those fetched with it."
        found.append(Error("Q_CLUSTER's bulk is not 1.", hint=hint, id="storage_audit.E003"))
    return found


# They accept a message and send it to nobody.
NON_SENDING_BACKENDS = {"console", "dummy", "filebased", "locmem"}


@if_configured
def check_notifications(**kwargs: Any) -> list[CheckMessage]:
    found, values = list[CheckMessage](), conf()
    if (values.notify_emails or values.notify_webhook_url) and not values.notify_site_url:
        hint = (
            "Set STORAGE_AUDIT['NOTIFY_SITE_URL'] to this site's address, such as"
            " https://a.example."
        )
        text = "Links in alerts are incomplete."
        found.append(Warning(text, hint=hint, id="storage_audit.W004"))
    if values.notify_emails and NON_SENDING_BACKENDS & {*mail_backend().split(".")}:
        hint = (
            "Set Django's EMAIL_BACKEND (MAILERS from Django 6.1) to a backend that sends e-mail."
        )
        text = "STORAGE_AUDIT['NOTIFY_EMAILS'] is set, but the e-mail backend sends nothing."
        found.append(Warning(text, hint=hint, id="storage_audit.W005"))
    return found


def mail_backend() -> str:
    """https://docs.djangoproject.com/en/stable/topics/email/"""
    mailers: dict[str, Any] | None = getattr(settings, "MAILERS", None)
    if mailers is None:
        return str(settings.EMAIL_BACKEND)
    return str(mailers.get("default", {}).get("BACKEND", "smtp"))


@if_configured
def check_schedule(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    if not databases:
        return []
    found: list[CheckMessage] = []
    try:
        scheduled, pause = queue.is_sweep_scheduled(), queue.reconcile_interval()
    except (OperationalError, ProgrammingError):
        return []  # Not migrated yet; migrate makes the schedules.
    if not scheduled:
        hint = "Run manage.py migrate, or run manage.py sweep_cleanups from cron every minute."
        found.append(
            Warning(
                "The worker's regular check is not scheduled.", hint=hint, id="storage_audit.W001"
            )
        )
    if pause != conf().reconcile_every:
        hint = "Run manage.py migrate."
        text = "The schedule of scans does not match STORAGE_AUDIT['RECONCILE_EVERY']."
        found.append(Warning(text, hint=hint, id="storage_audit.W003"))
    return found


def check_sqlite(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """https://docs.djangoproject.com/en/stable/ref/databases/#sqlite-notes"""
    if not databases or connection.vendor != "sqlite":
        return []
    wrong = [what for what, right in sqlite_settings().items() if not right]
    if not wrong:
        return []
    hint = "Change the database's OPTIONS and the workers of Q_CLUSTER, or use PostgreSQL."
    text = f"SQLite is not safe for several processes. It needs {'; '.join(wrong)}."
    return [Warning(text, hint=hint, id="storage_audit.W002")]


def sqlite_settings() -> dict[str, bool]:
    """The settings that SQLite needs, and whether each is in place."""
    found = {}
    with connection.cursor() as cursor:
        for name in ("journal_mode", "busy_timeout", "synchronous"):
            cursor.execute(f"PRAGMA {name}")
            (found[name],) = cursor.fetchone()
    return {
        "transaction_mode IMMEDIATE": getattr(connection, "transaction_mode", "") == "IMMEDIATE",
        # A database in memory has one process only.
        "PRAGMA journal_mode=WAL": found["journal_mode"] in ("wal", "memory"),
        "PRAGMA synchronous=FULL": found["synchronous"] >= 2,
        "a timeout of 20 seconds": found["busy_timeout"] >= 20_000,
        "1 worker": getattr(settings, "Q_CLUSTER", {}).get("workers") == 1,
    }


def check_pooler(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """https://docs.djangoproject.com/en/stable/ref/databases/#transaction-pooling-server-side-cursors"""
    if not databases or connection.vendor != "postgresql":
        return []
    if connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] or not has_pooler():
        return []
    hint = (
        "If it pools transactions, admin forms fail at random. Set the database's"
        " DISABLE_SERVER_SIDE_CURSORS to True, or add ?disable_server_side_cursors=true"
        " to DATABASE_URL."
    )
    text = "The database is behind a connection pooler, and server-side cursors are enabled."
    return [Warning(text, hint=hint, id="storage_audit.W008")]


def has_pooler() -> bool:
    """A pooler such as PgBouncer gives the driver another process id than the server's own."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    driver: Any = connection.connection
    return bool(pid != driver.info.backend_pid)
