"""What `manage.py check` says of the queue and its schedule."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.db import connection, connections
from django.db.models import Model
from django_q.models import Schedule
from pytest_django import Settings

from devtools.environment import made_up_environment
from storage_audit import queue
from storage_audit.findings.models import Finding
from storage_audit.request_origin import OriginMiddleware
from tests.paths import ROOT
from tests.site_settings import run_system_checks


@pytest.mark.django_db
def test_a_migrated_database_passes() -> None:
    assert run_system_checks(databases=["default"]) == {}


@pytest.mark.django_db
@pytest.mark.parametrize("way", ["deleted", "paused"])
def test_a_missing_schedule_is_a_warning_that_says_what_to_do(way: str) -> None:
    if way == "deleted":
        Schedule.objects.all().delete()
    else:
        Schedule.objects.update(repeats=0)
    warning = run_system_checks(databases=["default"])["storage_audit.W001"]
    assert warning.hint is not None
    assert "migrate" in warning.hint and "sweep_cleanups" in warning.hint
    queue.create_schedules()
    assert Schedule.objects.filter(func=queue.SWEEP).count() == len(queue.SWEEP_SCHEDULES)


@pytest.mark.django_db
def test_a_schedule_of_something_else_is_no_sweep() -> None:
    Schedule.objects.update(func="somebody.elses.sweep")
    assert "storage_audit.W001" in run_system_checks(databases=["default"])


@pytest.mark.django_db
def test_bad_entry_is_reported_once_where_the_database_is_checked_too(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"RECONCILE_EVERY": 24}
    assert list(run_system_checks(databases=["default"])) == ["storage_audit.E001"]


def test_times_without_a_zone_are_an_error(settings: Settings) -> None:
    settings.USE_TZ = False
    assert "storage_audit.E005" in run_system_checks()


class OurReadsByChance:
    """Reads of ours go to a replica now and then, as reads of others always do."""

    def __init__(self) -> None:
        self.databases = cycle(["default", "default", "replica"])

    def db_for_read(self, model: type[Model], **hints: object) -> str:
        return next(self.databases) if model._meta.app_label == "storage_audit" else "replica"


class OurWrites:
    def db_for_write(self, model: type[Model], **hints: object) -> str | None:
        return "shard" if model is Finding else None


class WritesOfProjects:
    """The model that a test names; its reads may go to a replica."""

    def db_for_read(self, model: type[Model], **hints: object) -> str | None:
        return "replica" if model is Group else None

    def db_for_write(self, model: type[Model], **hints: object) -> str | None:
        return "primary" if model is Group else None


def test_router_that_sends_writes_of_projects_to_another_alias_is_an_error(
    settings: Settings,
) -> None:
    settings.DATABASE_ROUTERS = [WritesOfProjects()]
    assert "storage_audit.E007" not in run_system_checks()
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    assert "send auth.Group to another" in run_system_checks()["storage_audit.E007"].msg


class ReadsOfOthers:
    def db_for_read(self, model: type[Model], **hints: object) -> str | None:
        return None if model._meta.app_label == "storage_audit" else "replica"


@pytest.mark.parametrize(
    ("routers", "expected"),
    [([OurReadsByChance()], True), ([OurWrites()], True), ([ReadsOfOthers()], False)],
)
def test_router_that_sends_our_tables_to_another_database_is_an_error(
    routers: list[object], expected: bool, settings: Settings
) -> None:
    settings.DATABASE_ROUTERS = routers
    error = run_system_checks().get("storage_audit.E007")
    assert bool(error) == expected
    if error:
        assert "storage_audit.Finding" in error.msg and '"default"' in str(error.hint)


class OurOrigin(OriginMiddleware):
    """As an adopter may extend it."""


@pytest.mark.parametrize(
    ("middleware", "apps", "expected"),
    [
        ([], ["django.contrib.admin"], True),
        (["no.such.Middleware", "storage_audit.logs.RequestIdMiddleware"], ["ninja"], True),
        ([f"{__name__}.OurOrigin"], ["django.contrib.admin"], False),
        ([], [], False),
    ],
)
def test_missing_origin_middleware_is_a_warning_where_people_can_delete(
    middleware: list[str],
    apps: list[str],
    expected: bool,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.MIDDLEWARE = middleware
    monkeypatch.setattr("django.apps.apps.is_installed", apps.__contains__)
    warning = run_system_checks().get("storage_audit.W010")
    assert bool(warning) == expected
    if warning:
        assert "storage_audit.request_origin.OriginMiddleware" in str(warning.hint)


def test_without_a_database_nothing_is_asked_of_it() -> None:
    # pytest-django forbids every query here.
    assert run_system_checks() == {}


@pytest.mark.usefixtures("transactional_db")
def test_a_database_that_was_not_migrated_is_not_complained_of() -> None:
    with connection.schema_editor() as editor:
        editor.alter_db_table(Schedule, "django_q_schedule", "elsewhere")
    try:
        assert run_system_checks(databases=["default"]) == {}
    finally:
        with connection.schema_editor() as editor:
            editor.alter_db_table(Schedule, "elsewhere", "django_q_schedule")


@pytest.mark.parametrize(("hours", "installed"), [(72, True), (72, False), (0, True)])
def test_app_that_deletes_files_is_a_warning_where_deletions_can_be_undone(
    hours: int, installed: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"GRACE": timedelta(hours=hours)}
    if installed:
        names = [*(each.name for each in apps.get_app_configs()), "django_cleanup"]
        monkeypatch.setattr("django.apps.apps.is_installed", names.__contains__)
    warning = run_system_checks().get("storage_audit.W011")
    assert bool(warning) == (hours > 0 and installed)
    if warning:
        assert "django_cleanup" in warning.msg and "GRACE" in str(warning.hint)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        ({"retry": 360}, ["storage_audit.E002"]),
        ({"retry": 361}, []),
        ({"timeout": None}, ["storage_audit.E002"]),
        ({"retry": None}, ["storage_audit.E002"]),
        ({"queue_limit": 4}, ["storage_audit.E002"]),
        ({"queue_limit": 4, "retry": 901}, []),
        ({"bulk": 8}, ["storage_audit.E003"]),
        ({"workers": None}, []),
        ({"workers": 0}, []),
        ({"workers": 2, "queue_limit": None}, []),
        ({"workers": 3, "queue_limit": None}, ["storage_audit.E002"]),
        ({"bulk": None}, []),
    ],
)
def test_a_queue_that_would_run_tasks_twice_or_lose_them_is_an_error(
    changes: dict[str, object], expected: list[str], settings: Settings
) -> None:
    """None means that the entry is not there."""
    base = {"workers": 1, "queue_limit": 1, "timeout": 180, "retry": 600, "bulk": 1}
    settings.Q_CLUSTER = {k: v for k, v in (base | changes).items() if v is not None}
    assert sorted(run_system_checks()) == expected


def test_no_queue_settings_at_all_are_an_error_and_no_crash(settings: Settings) -> None:
    del settings.Q_CLUSTER
    assert "storage_audit.E002" in run_system_checks()


def test_the_command_passes_on_the_projects_own_settings(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3",
        **made_up_environment(),
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    for more in ([], ["--database", "default"]):
        done = subprocess.run(
            command + more, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_the_command_names_a_bad_entry_and_fails(tmp_path: Path) -> None:
    (tmp_path / "bad_settings.py").write_text(
        "from autoshorts.settings import *\nSTORAGE_AUDIT['KEY_FORMATS'] = {'mine': '{project}'}\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "bad_settings",
        "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3",
        **made_up_environment(),
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "storage_audit.E001" in done.stderr and "mine" in done.stderr


@pytest.fixture
def own_file(tmp_path: Path) -> Iterator[None]:
    """A database of this test alone: SQLite leaves WAL only when nobody else has the file open, and
    a thread of an earlier test may."""
    shared = connections["default"]
    own = shared.copy()
    own.settings_dict["NAME"] = str(tmp_path / "own.sqlite3")
    connections["default"] = own
    yield
    own.close()
    connections["default"] = shared


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("own_file")
@pytest.mark.only_on("sqlite")  # PostgreSQL has none of these settings
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("PRAGMA journal_mode=DELETE", "journal_mode=WAL"),
        ("PRAGMA synchronous=NORMAL", "synchronous=FULL"),
        ("PRAGMA busy_timeout=5000", "a timeout"),
    ],
)
def test_sqlite_that_is_not_set_up_for_several_processes_is_a_warning(
    wrong: str, named: str
) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute(wrong)
        text = run_system_checks(databases=["default"])["storage_audit.W002"].msg
    finally:
        connection.close()  # The next one is set up as it should be.
    assert named in text
    assert ";" not in text, "something else is wrong too"
    assert "storage_audit.W002" not in run_system_checks(databases=["default"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("sqlite")  # PostgreSQL has none of these settings
@pytest.mark.parametrize("mode", [None, "DEFERRED"])
def test_sqlite_transactions_that_take_no_lock_at_their_start_are_a_warning(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.ensure_connection()  # It takes the mode from the settings.
    monkeypatch.setattr(connections["default"], "transaction_mode", mode)
    assert "IMMEDIATE" in run_system_checks(databases=["default"])["storage_audit.W002"].msg


@pytest.mark.django_db
@pytest.mark.parametrize("queue", [{"workers": 2}, {}])
def test_more_workers_than_one_are_a_warning_on_sqlite_only(
    settings: Settings, queue: dict[str, int]
) -> None:
    kept = {name: value for name, value in settings.Q_CLUSTER.items() if name != "workers"}
    settings.Q_CLUSTER = kept | queue
    told = run_system_checks(databases=["default"])
    if connection.vendor == "sqlite":
        assert told["storage_audit.W002"].msg.endswith("It needs 1 worker.")
    else:
        assert "storage_audit.W002" not in told
