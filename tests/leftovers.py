"""What a test file may not leave behind: a thread, a process, or a connection to the database."""

import asyncio
import gc
import os
import threading
from collections.abc import Generator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
from django.db import connection
from django.db.backends.base.creation import TEST_DATABASE_PREFIX

PROC_FOLDER = Path("/proc")
OPEN_FILES_FOLDER = Path("/proc/self/fd")
# Python's own, which ends with the process that started it; and a server's, which ends with the
# connection, that clients may keep.
IGNORED = ("multiprocessing.resource_tracker", "(process_request_thread)")
# What fixtures of the whole session started.
session_owned = set[int]()
# Seconds that they may take to end.
END_TIMEOUT_SECONDS = 5.0


def list_running() -> dict[int, str]:
    """By their numbers. A child may run another program later."""
    threads = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {
        **{number: f"thread {name}" for number, name in threads.items() if number},
        **{pid: f"process {command}" for pid in list_children() if (command := read_command(pid))},
    }


def list_children() -> Iterator[int]:
    """Linux's own list of them may lack some while others end."""
    for process in PROC_FOLDER.glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                yield int(process.name)


@pytest.fixture(autouse=True)
def drop_log_records(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """pytest keeps them longer than a module's fixtures. A record that has an error as its argument
    keeps the cursor, and so the connection, that the error came from."""
    yield
    for phase in ("setup", "call"):
        caplog.get_records(phase).clear()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    # A look at all processes takes milliseconds, and a test has twenty fixtures.
    if fixturedef.scope != "session":
        return (yield)
    before = list_running().keys()
    result = yield
    session_owned.update(list_running().keys() - before)
    return result


def list_leftovers(before: AbstractSet[int]) -> list[str]:
    """What has begun since and does not end, but for what serves the whole session."""
    for thread in threading.enumerate():
        if thread.native_id not in before and IGNORED[1] not in thread.name:
            thread.join(END_TIMEOUT_SECONDS)
    now = list_running()
    new = [now[number] for number in now.keys() - before - session_owned]
    return [what for what in new if not any(name in what for name in IGNORED)]


def read_command(pid: int) -> str:
    """Nothing of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return (PROC_FOLDER / str(pid) / "cmdline").read_text().replace("\0", " ").strip()
    return ""


def count_connections() -> int:
    """To the database, beside that of this thread, once those of processes that ended are over."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return 0  # A browser's driver has the tests run in a context with a connection of its own.
    until = monotonic() + END_TIMEOUT_SECONDS
    while (left := count_other_connections()) and monotonic() < until:
        # SQLite keeps a closed connection while a cursor of it waits for the garbage collector.
        gc.collect()
        sleep(0.05)
    return left


def count_other_connections() -> int:
    if connection.vendor != "postgresql":
        # SQLite keeps the files of connections that were closed until no other holds a lock.
        connection.close()
        path = os.path.realpath(str(connection.settings_dict["NAME"]))
        return [os.path.realpath(file) for file in OPEN_FILES_FOLDER.iterdir()].count(path)
    if not str(connection.settings_dict["NAME"]).startswith(TEST_DATABASE_PREFIX):
        return 0  # No test has used the database.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        [(others,)] = cursor.fetchall()
    return int(others)
