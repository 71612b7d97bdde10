"""Several processes on one database, a file of SQLite or a PostgreSQL server: what one commits is
there for all, what it does not commit never was, and of those who want the same one gets it."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from django.db import connection, transaction

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project
from tests.paths import ROOT
from tests.processes import database_url

pytestmark = [pytest.mark.usefixtures("transactional_db"), pytest.mark.slow]
PROCESSES, PROJECTS, ADDITIONS = 4, 20, 25
SCRIPT = """
import os, signal, sys
import django
django.setup()
from django.db import connection, transaction
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project

def say(*words):
    print(*words, flush=True)

connection.ensure_connection()
say("ready")
sys.stdin.readline()
"""
LEASE_SCRIPT = """
for cleanup in Cleanup.objects.order_by("?"):
    with transaction.atomic():
        leased = cleanup.acquire_lease()
    if leased:
        say(cleanup.project_id)
"""
ADD = """
for n in range(%s):
    with transaction.atomic():
        one = Cleanup.objects.select_for_update().get(project_id="proj_0")
        Cleanup.objects.filter(pk=one.pk).update(found=one.found + 1)
"""
DELETE = """
with transaction.atomic():
    Project.objects.get(pk="proj_1").delete()
    %s
%s
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@contextmanager
def process(work: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that is connected to the database, and begins when it is sent a line."""
    environment = {"DJANGO_SETTINGS_MODULE": "autoshorts.settings", "DATABASE_URL": database_url()}
    argv = [sys.executable, "-c", SCRIPT + work]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout
        while child.stdout.readline() not in ("ready\n", ""):
            pass
        try:
            yield child
        finally:
            child.kill()


def at_once(work: str) -> list[list[str]]:
    """What each of several processes says that begin at the same moment."""
    with ExitStack() as stack:
        children = [stack.enter_context(process(work)) for _n in range(PROCESSES)]
        for child in children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [child.communicate() for child in children]
        assert [child.returncode for child in children] == [0] * PROCESSES, said
    return [out.split() for out, _err in said]


def make(count: int) -> list[str]:
    """Cleanups, each of a project of its own, whose ids are returned."""
    ids = [f"proj_{n}" for n in range(count)]
    for project_id in ids:
        facts = {"kind": "project", "bucket": "tests", "trigger": "deleted"}
        Cleanup.objects.request(project_id=project_id, **facts)
    return ids


def test_of_two_cleanups_of_each_project_one_is_leased_by_one_process() -> None:
    assert make(PROJECTS) == (ids := make(PROJECTS))
    assert sorted(sum(at_once(LEASE_SCRIPT), [])) == sorted(ids)


def test_nobody_finds_the_database_locked_and_no_change_is_lost() -> None:
    make(1)
    at_once(ADD % ADDITIONS)
    assert Cleanup.objects.get().found == PROCESSES * ADDITIONS


@pytest.mark.parametrize("committed", [False, True])
def test_a_process_that_is_killed_leaves_all_of_a_deletion_or_nothing(committed: bool) -> None:
    Project.objects.create(pk="proj_1")
    with process(DELETE % (("pass", DIE) if committed else (DIE, "pass"))) as child:
        child.communicate("go\n")
        assert child.returncode == -signal.SIGKILL
    assert Project.objects.exists() is not committed
    assert Cleanup.objects.exists() is committed
    assert (KnownProject.objects.get().deleted_at is not None) is committed
    # Nor does the dead hold a lock: this is no place to wait for one.
    with transaction.atomic():
        Project.objects.create(pk="proj_2").delete()
    assert Cleanup.objects.filter(project_id="proj_2").exists()


@pytest.mark.only_on("sqlite")  # how SQLite keeps its file
def test_on_sqlite_nobody_who_reads_holds_up_one_who_writes() -> None:
    make(1)
    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as reader:
        reader.execute("BEGIN")
        count = "SELECT count(*) FROM storage_audit_cleanup"
        assert reader.execute(count).fetchone() == (1,)
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout=0")
        try:
            make(1)
        finally:
            connection.close()
        assert reader.execute(count).fetchone() == (1,)
        reader.rollback()
        assert reader.execute(count).fetchone() == (2,)


@pytest.mark.only_on("sqlite")  # how SQLite keeps its file
def test_on_sqlite_a_commit_is_on_the_disk_and_its_wait_is_long() -> None:
    found = {}
    with connection.cursor() as cursor:
        for name in ("journal_mode", "synchronous", "busy_timeout"):
            cursor.execute(f"PRAGMA {name}")
            found[name] = cursor.fetchone()[0]
    # 2 is FULL: https://sqlite.org/pragma.html#pragma_synchronous
    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000}
