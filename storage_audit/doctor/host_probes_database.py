"""The database: reached, migrated, and with room for one more connection."""

from time import monotonic

from django.conf import settings
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.translation import gettext as _

from storage_audit.doctor.probe_result import BLOCKED, Facts, Result, Status
from storage_audit.locking import impatient

MOST_CONNECTIONS = 0.8  # of those that the server allows


def database() -> Result:
    """On SQLite, whose transactions begin with the only lock there is, whether it can be written
    to as well."""
    facts = whereabouts()
    began = monotonic()
    try:
        with impatient():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            took = f"{(monotonic() - began) * 1000:.0f} ms"
            facts["version"] = database_version()
            lacking, used = lacking_migrations(), share_of_connections()
    except Error as error:
        text = _("The database cannot be asked: %s") % " ".join(str(error).split())
        advice = _("Correct DATABASE_URL, or start the server: systemctl status postgresql.")
        return Result(Status.WRONG, text, f"{advice} {BLOCKED}", facts)
    readings: Facts = {"took": took, "connections used": f"{used:.0%}"}
    if lacking:
        text = _("The database lacks migrations: %s.") % ", ".join(lacking)
        return Result(Status.WRONG, text, _("Run: manage.py migrate"), facts, readings)
    if used > MOST_CONNECTIONS:
        text = _("Of the connections that the server allows, %s are used.") % f"{used:.0%}"
        advice = _("Stop who does not need them, or raise max_connections of PostgreSQL.")
        return Result(Status.WARNING, text, advice, facts, readings)
    text = _("%(kind)s %(version)s answers in %(took)s; all migrations are applied.")
    return Result(Status.OK, text % (facts | {"took": took}), facts=facts, readings=readings)


def whereabouts() -> Facts:
    given = settings.DATABASES["default"]
    shown = {name.lower(): str(given.get(name, "")) for name in ("NAME", "HOST", "PORT", "USER")}
    shown["name"] = str(connection.settings_dict["NAME"])
    return {"kind": connection.vendor, **shown}


def database_version() -> str:
    return ".".join(map(str, connection.get_database_version()))


def lacking_migrations() -> list[str]:
    """Of all applications, such as storage_audit.0001_initial, in the order they would run."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _backwards in plan]


def share_of_connections() -> float:
    if connection.vendor != "postgresql":
        return 0.0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*)::float / current_setting('max_connections')::int FROM pg_stat_activity"
        )
        (share,) = cursor.fetchone()
    return float(share)
