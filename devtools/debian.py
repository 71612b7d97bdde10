"""The Debian packages of apt.txt: installed if we are root, else named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from devtools import chromium
from devtools.processes import Child

PACKAGES_FILE = Path(__file__).resolve().parent.parent / "apt.txt"
SBIN = "/usr/sbin"
INSTALL_COMMAND = ["apt-get", "install", "--yes", "--no-install-recommends"]


def require_packages() -> None:
    """Exit, saying what to do, if something is missing and cannot be installed from here."""
    if not shutil.which("dpkg-query"):
        require_programs()
    elif packages := missing_packages():
        install_packages(packages)


def require_programs() -> None:
    if not chromium.find_browser():
        names = ", ".join(chromium.BROWSER_PROGRAMS)
        sys.exit(f"missing: a browser. Install Chromium or Chrome, as one of {names} on the PATH.")
    if not shutil.which("promtool"):
        sys.exit("missing: promtool. It comes with Prometheus; put it on the PATH.")
    if not find_pgbouncer():
        sys.exit("missing: pgbouncer. Install PgBouncer, and put it on the PATH.")


def find_pgbouncer() -> str | None:
    """The program, which Debian puts into a folder that only root has on the PATH."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:{SBIN}")


def missing_packages() -> list[str]:
    packages = PACKAGES_FILE.read_text().split()
    show = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages]
    # It complains about unknown packages.
    shown = subprocess.run(show, capture_output=True, text=True).stdout.splitlines()
    there = {line.removesuffix(" installed") for line in shown}
    # Older releases and Ubuntu have no such packages; their users have the programs from elsewhere.
    if chromium.find_browser():
        there.add("chromium")
    if shutil.which("promtool"):
        there.add("promtool")
    if find_pgbouncer():
        there.add("pgbouncer")
    return [package for package in packages if package not in there]


def install_packages(packages: list[str]) -> None:
    command = [*INSTALL_COMMAND, *packages]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"missing: {', '.join(packages)}. Run: sudo {' '.join(command)}")
    run_command(["apt-get", "update"])
    run_command(command)


def run_command(command: list[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with Child(command[0], command, env=environment) as child:
        if child.wait() != 0:
            sys.exit(f"FAILED: {' '.join(command)}")
