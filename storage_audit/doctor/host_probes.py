"""Probes of the process and its machine, the database and the queue."""

import os
import pwd
import resource
import shutil
import socket
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from django.conf import settings
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import queue
from storage_audit.alerts.lateness import find_delays
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import (
    DATABASE_LOCK_ADVICE,
    Facts,
    Result,
    Status,
    secret_fingerprint,
)
from storage_audit.doctor.versions import CODE_FOLDER, LOADED_AT
from storage_audit.locking import atomic_with_timeout

SCARCE_MEMORY_BYTES, SCARCE_DISK_BYTES = 128 << 20, 512 << 20  # bytes
MAX_OPEN_FILES_SHARE = 0.8  # of what is allowed
MEMINFO_FILE, OPEN_FILES_FOLDER = Path("/proc/meminfo"), Path("/proc/self/fd")
# A container's own: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
CGROUP_FOLDER = Path("/sys/fs/cgroup")


def probe_process() -> Result:
    """Who runs it, where, and how."""
    facts: Facts = {
        "host": socket.gethostname(),
        "user": user_name(),
        "folder": os.getcwd(),
        "program": sys.executable,
        "environment of Python": sys.prefix,
        "encoding": sys.getfilesystemencoding(),
        "temporary files": tempfile.gettempdir(),
    }
    readings = {
        "process": os.getpid(),
        "command": " ".join(sys.argv),
        "threads": threading.active_count(),
        "loaded": f"{LOADED_AT:%Y-%m-%d %H:%M:%S}",
    }
    text = _("%(user)s on %(host)s, in %(folder)s.") % facts
    return Result(Status.OK, text, facts=facts, readings=readings)


def user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return f"uid {os.geteuid()}"


def probe_resources() -> Result:
    """What the machine and the process have left. What cannot be seen here is left out."""
    allowed, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory, disks, files = free_memory(), free_disks(), count_open_files()
    facts: Facts = {"processors": count_processors(), "open files allowed": allowed}
    readings: Facts = {name: filesizeformat(free) for name, free in disks.items()}
    readings["open files"] = files
    scarce = [name for name, free in disks.items() if free <= SCARCE_DISK_BYTES]
    if memory is not None:
        readings["memory free"] = filesizeformat(memory)
        scarce += [] if memory > SCARCE_MEMORY_BYTES else [_("memory")]
    if files is not None and files > MAX_OPEN_FILES_SHARE * allowed:
        scarce.append(_("open files and connections"))
    if scarce:
        text = _("Running low: %s.") % ", ".join(scarce)
        advice = _("Free some, or give this machine more. A process that runs out fails.")
        return Result(Status.WARNING, text, advice, facts, readings)
    return Result(
        Status.OK,
        _("Memory, disk space and open files are sufficient."),
        facts=facts,
        readings=readings,
    )


def count_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disks() -> dict[str, int]:
    """In bytes, of the disks that the process writes to, or stands on."""
    places = {
        _("disk space for temporary files"): Path(tempfile.gettempdir()),
        _("disk space for the application"): CODE_FOLDER,
    }
    if connection.vendor == "sqlite":
        file = Path(str(connection.settings_dict["NAME"]))
        places[_("disk space for the database")] = file.parent
    return {name: shutil.disk_usage(at).free for name, at in places.items() if at.exists()}


def free_memory() -> int | None:
    """In bytes, of the machine or of the container, whichever has less."""
    found = [each for each in (machine_memory(), container_memory()) if each is not None]
    return min(found, default=None)


def machine_memory() -> int | None:
    if not MEMINFO_FILE.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO_FILE.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def container_memory() -> int | None:
    most, used = CGROUP_FOLDER / "memory.max", CGROUP_FOLDER / "memory.current"
    if not most.exists() or not (limit := most.read_text().strip()).isdecimal():
        return None
    return int(limit) - int(used.read_text())


def count_open_files() -> int | None:
    """Files and connections."""
    return len(list(OPEN_FILES_FOLDER.iterdir())) if OPEN_FILES_FOLDER.exists() else None


MAX_CONNECTIONS_SHARE = 0.8  # of those that the server allows


def probe_database() -> Result:
    """Whether it answers; on SQLite, where a transaction takes the write lock, also whether it can
    be written to."""
    facts = database_facts()
    began = monotonic()
    try:
        with atomic_with_timeout():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            took = f"{(monotonic() - began) * 1000:.0f} ms"
            facts["version"] = ".".join(map(str, connection.get_database_version()))
            lacking, used = missing_migrations(), share_of_connections()
    except Error as error:
        text = _("Can't query the database: %s") % " ".join(str(error).split())
        advice = _("Correct DATABASE_URL, or start the database (systemctl status postgresql).")
        return Result(Status.WRONG, text, f"{advice} {DATABASE_LOCK_ADVICE}", facts)
    readings: Facts = {"took": took, "connections used": f"{used:.0%}"}
    if lacking:
        text = _("Migrations are missing: %s.") % ", ".join(lacking)
        return Result(Status.WRONG, text, _("Run manage.py migrate."), facts, readings)
    if used > MAX_CONNECTIONS_SHARE:
        text = _("%s of the database's connections are in use.") % f"{used:.0%}"
        advice = _("Close connections that aren't needed, or raise PostgreSQL's max_connections.")
        return Result(Status.WARNING, text, advice, facts, readings)
    text = _("%(kind)s %(version)s answers in %(took)s; all migrations are applied.")
    return Result(Status.OK, text % (facts | {"took": took}), facts=facts, readings=readings)


def database_facts() -> Facts:
    given = settings.DATABASES["default"]
    shown = {name.lower(): str(given.get(name, "")) for name in ("NAME", "HOST", "PORT", "USER")}
    shown["name"] = str(connection.settings_dict["NAME"])
    return {"kind": connection.vendor, **shown}


def missing_migrations() -> list[str]:
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


QUEUE_SETTINGS = (
    "name",
    "orm",
    "workers",
    "queue_limit",
    "bulk",
    "timeout",
    "retry",
    "max_attempts",
)
# A cluster looks at its schedules each half minute, and the sweep is due twice a minute.
SWEEP_LATE_AFTER = timedelta(minutes=2)


@atomic_with_timeout()
def probe_queue() -> Result:
    """All processes that use the queue must agree on these facts."""
    given: dict[str, Any] = getattr(settings, "Q_CLUSTER", {})
    facts: Facts = {name: given.get(name, _("not set")) for name in QUEUE_SETTINGS}
    # Tasks are signed with it: a task signed with another key is dropped.
    facts["SECRET_KEY"] = secret_fingerprint(settings.SECRET_KEY)
    if not given.get("orm"):
        text = _("The queue is not stored in the database.")
        advice = _("Set orm in Q_CLUSTER. With other brokers we can't see what is late.")
        return Result(Status.WARNING, text, advice, facts)
    waiting = queue.count_ready_tasks(timezone.now())
    text = _("%d tasks wait in the queue.") % waiting
    return Result(Status.OK, text, facts=facts, readings={"tasks waiting": waiting})


@atomic_with_timeout()
def probe_schedule() -> Result:
    due = queue.sweep_due_at()
    if due is None and not conf().sync:
        text = _(
            "The worker's regular check is not scheduled, so lost tasks would not be repeated."
        )
        return Result(Status.WRONG, text, _("Run manage.py migrate."))
    if due is None:
        advice = _("Make sure that a timer runs manage.py sweep_cleanups each minute.")
        return Result(Status.NOT_CHECKED, _("With SYNC the queue has no regular check."), advice)
    return Result(
        Status.OK,
        _("The worker's regular check is scheduled."),
        readings={"due": f"{due:%H:%M:%S}"},
    )


@atomic_with_timeout()
def probe_worker() -> Result:
    """Whether a worker runs, judged by what is late: the sweep, tasks, cleanups."""
    behind = timezone.now() - (queue.sweep_due_at() or timezone.now())
    readings = {"sweep late by": f"{max(behind.total_seconds(), 0):.0f} s"}
    if late := find_delays():
        text = " ".join(delay.text for delay in late)
        advice = " ".join(dict.fromkeys(delay.advice for delay in late))
        return Result(Status.WRONG, text, advice, readings=readings)
    if conf().sync:
        text = _("No worker is needed: with SYNC the request does the work.")
        return Result(Status.OK, text, readings=readings)
    if behind > SWEEP_LATE_AFTER:
        text = _("The worker's regular check is %d seconds late.") % behind.total_seconds()
        advice = _("Start a worker (manage.py qcluster), unless one is restarting right now.")
        return Result(Status.WARNING, text, advice, readings=readings)
    return Result(Status.OK, _("The worker is on time."), readings=readings)
