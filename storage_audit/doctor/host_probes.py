"""The process and its machine: who runs it, where, and what is left of memory and the rest."""

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
from storage_audit.alerts.lateness import delays
from storage_audit.conf import conf
from storage_audit.doctor.probe_result import BLOCKED, Facts, Result, Status, fingerprint
from storage_audit.doctor.versions import CODE, LOADED_AT
from storage_audit.locking import impatient

SCARCE_MEMORY, SCARCE_DISK = 128 << 20, 512 << 20  # bytes
MOST_OPEN = 0.8  # of what is allowed
MEMORY, OPEN_FILES = Path("/proc/meminfo"), Path("/proc/self/fd")
# A container's own: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
CONTAINER = Path("/sys/fs/cgroup")


def process() -> Result:
    """Who runs it, where, and how."""
    facts: Facts = {
        "host": socket.gethostname(),
        "user": user(),
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


def user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return f"uid {os.geteuid()}"


def resources() -> Result:
    """What the machine and the process have left. What cannot be seen here is left out."""
    allowed, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory, disks, files = free_memory(), free_disks(), open_files()
    facts: Facts = {"processors": processors(), "open files allowed": allowed}
    readings: Facts = {name: filesizeformat(free) for name, free in disks.items()}
    readings["open files"] = files
    scarce = [name for name, free in disks.items() if free <= SCARCE_DISK]
    if memory is not None:
        readings["memory free"] = filesizeformat(memory)
        scarce += [] if memory > SCARCE_MEMORY else [_("memory")]
    if files is not None and files > MOST_OPEN * allowed:
        scarce.append(_("open files and connections"))
    if scarce:
        text = _("Nearly used up: %s.") % ", ".join(scarce)
        advice = _("Free some, or give this machine more; processes that run out of it fail.")
        return Result(Status.WARNING, text, advice, facts, readings)
    return Result(Status.OK, _("Enough is left."), facts=facts, readings=readings)


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disks() -> dict[str, int]:
    """In bytes, of the disks that the process writes to, or stands on."""
    places = {
        _("disk space for temporary files"): Path(tempfile.gettempdir()),
        _("disk space for the application"): CODE,
    }
    if connection.vendor == "sqlite":
        file = Path(str(connection.settings_dict["NAME"]))
        places[_("disk space for the database")] = file.parent
    return {name: shutil.disk_usage(at).free for name, at in places.items() if at.exists()}


def free_memory() -> int | None:
    """In bytes, of the machine or of the container, whichever has less."""
    found = [each for each in (of_machine(), of_container()) if each is not None]
    return min(found, default=None)


def of_machine() -> int | None:
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def of_container() -> int | None:
    most, used = CONTAINER / "memory.max", CONTAINER / "memory.current"
    if not most.exists() or not (limit := most.read_text().strip()).isdecimal():
        return None
    return int(limit) - int(used.read_text())


def open_files() -> int | None:
    """Files and connections."""
    return len(list(OPEN_FILES.iterdir())) if OPEN_FILES.exists() else None


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


SETTINGS = ("name", "orm", "workers", "queue_limit", "bulk", "timeout", "retry", "max_attempts")
# A cluster looks at its schedules each half minute, and the sweep is due twice a minute.
NOT_PROMPT = timedelta(minutes=2)


@impatient()
def broker() -> Result:
    """Who puts tasks into the queue and who takes them must agree on all of this."""
    given: dict[str, Any] = getattr(settings, "Q_CLUSTER", {})
    facts: Facts = {name: given.get(name, _("not set")) for name in SETTINGS}
    # Tasks are signed with it: one that another process signed otherwise is dropped.
    facts["SECRET_KEY"] = fingerprint(settings.SECRET_KEY)
    if not given.get("orm"):
        text = _("The queue is not in the database.")
        advice = _("Set orm of Q_CLUSTER: how far behind other brokers are cannot be seen.")
        return Result(Status.WARNING, text, advice, facts)
    waiting = queue.ready_tasks(timezone.now())
    text = _("%d tasks wait in the queue.") % waiting
    return Result(Status.OK, text, facts=facts, readings={"tasks waiting": waiting})


@impatient()
def schedule() -> Result:
    due = queue.sweep_due_at()
    if due is None and not conf().sync:
        text = _("No sweep is scheduled: what the queue loses would be forgotten.")
        return Result(Status.WRONG, text, _("Run: manage.py migrate"))
    if due is None:
        advice = _("See that a timer runs manage.py sweep_cleanups, each minute.")
        return Result(Status.NOT_CHECKED, _("With SYNC the queue sweeps nothing."), advice)
    return Result(Status.OK, _("The sweep is scheduled."), readings={"due": f"{due:%H:%M:%S}"})


@impatient()
def worker() -> Result:
    """Whether one runs, by what is left undone: the sweep, tasks, operations."""
    behind = timezone.now() - (queue.sweep_due_at() or timezone.now())
    readings = {"sweep late by": f"{max(behind.total_seconds(), 0):.0f} s"}
    if late := delays():
        text = " ".join(delay.text for delay in late)
        advice = " ".join(dict.fromkeys(delay.advice for delay in late))
        return Result(Status.WRONG, text, advice, readings=readings)
    if conf().sync:
        text = _("None is needed: with SYNC the work is done in the request.")
        return Result(Status.OK, text, readings=readings)
    if behind > NOT_PROMPT:
        text = _("The sweep is late, by %d seconds.") % behind.total_seconds()
        advice = _("If no worker is being restarted just now, start one: manage.py qcluster")
        return Result(Status.WARNING, text, advice, readings=readings)
    return Result(Status.OK, _("The sweep comes in time."), readings=readings)
