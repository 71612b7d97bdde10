"""Locks, threads, copies and dumps of the test database."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.models import Session
from django.db import connection, connections
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from django.db.models import Model
from django_q.models import OrmQ
from django_q.signing import SignedPackage

from storage_audit import locking, migrations
from storage_audit.bucket.models import RequestCount
from tests.real_bucket import Bucket

T = TypeVar("T")
THREAD_TIMEOUT_SECONDS = 20  # for what takes a fraction of one
MIGRATIONS_FOLDER = Path(migrations.__file__ or "").parent
LATEST_MIGRATION = max(path.stem for path in MIGRATIONS_FOLDER.glob("0*.py"))


@contextmanager
def lock_table(monkeypatch: pytest.MonkeyPatch, table: str) -> Iterator[None]:
    """Somebody else has the table for himself; on SQLite there is one lock for all."""
    monkeypatch.setattr(locking, "LOCK_TIMEOUT_MS", 200)
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            of_table = f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"
            cursor.execute(of_table if other.vendor == "postgresql" else "BEGIN IMMEDIATE")
            yield
            cursor.execute("ROLLBACK")
    finally:
        other.close()


@contextmanager
def copy_database(tmp_path: Path) -> Iterator[None]:
    """Work on a copy of the database, as a process does whose DATABASE_URL points at one."""
    name = str(connection.settings_dict["NAME"])
    copy = str(tmp_path / "copy.sqlite3")
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM INTO %s", [copy])
    else:
        copy = f"{name}_copy"
        connection.close()
        with connection._nodb_cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{name}"')
    connection.close()
    connection.settings_dict["NAME"] = copy
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name
        if connection.vendor == "postgresql":
            with connection._nodb_cursor() as cursor:
                cursor.execute(f'DROP DATABASE "{copy}"')


@contextmanager
def another_database(tmp_path: Path, *tables: type[Model]) -> Iterator[str]:
    """One in SQLite with these tables; gives its alias."""
    facts = {"NAME": str(tmp_path / "copy.sqlite3"), "OPTIONS": {}}
    copy = SQLite({**connection.settings_dict, **facts}, "copy")
    connections["copy"] = copy
    try:
        with copy.schema_editor() as editor:
            for model in tables:
                editor.create_model(model)
        yield "copy"
    finally:
        copy.close()
        del connections["copy"]


def dump_everything(bucket: Bucket) -> dict[str, Any]:
    """Every row of every table, and every object; but for the sessions, the log of who saved
    a form, also one of a row that has nothing to change, and how often the store was called."""
    left_out = (LogEntry, Session, RequestCount)
    tables = [m for m in apps.get_models() if m not in left_out and not m._meta.proxy]
    rows: dict[str, Any] = {
        m._meta.label: sorted(map(repr, m._base_manager.values())) for m in tables
    }
    return {**rows, "bucket": bucket.facts()}


def with_own_connection(effect: Callable[[], T]) -> Callable[[], T]:
    def closing() -> T:
        try:
            return effect()
        finally:
            connection.close()

    return closing


@contextmanager
def run_in_thread(work: Callable[[], object]) -> Iterator[Future[object]]:
    """Do this in another thread; it must have ended, and well, when the block ends."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(with_own_connection(work))
        yield future
        future.result(THREAD_TIMEOUT_SECONDS)


def wait_for_blocked_query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '20s'")
        cursor.execute(
            "DO $$ BEGIN LOOP EXIT WHEN EXISTS (SELECT FROM pg_stat_activity"
            " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)));"
            " PERFORM pg_sleep(0.02); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$"
        )


def list_stored_values() -> Iterator[tuple[str, str]]:
    for model in apps.get_models():
        for row in model._base_manager.values():
            yield model._meta.label, repr(row)
    for task in OrmQ.objects.all():
        yield "payload", repr(SignedPackage.loads(task.payload))


class Rollback(Exception):
    pass
