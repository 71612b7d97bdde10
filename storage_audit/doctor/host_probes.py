"""The process and its machine: who runs it, where, and what is left of memory and the rest."""

import os
import pwd
import resource
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

from django.db import connection
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from storage_audit.doctor.probe_result import Facts, Result, Status
from storage_audit.doctor.versions import CODE, LOADED_AT

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
