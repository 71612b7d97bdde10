"""Make a venv and devtools/node_modules, or do nothing when they are as the lock files want them.

Needs only Python and its standard library.
"""

import hashlib
import importlib.util
import os
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - whoever reads this message has an older Python
    sys.exit("Python 3.11 or newer is needed, and this is Python " + sys.version.split()[0])

import fcntl

from devtools.processes import Child, stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
NODE_MODULES = ROOT / "devtools" / "node_modules"
LOCK_FILES = [ROOT / "requirements-dev.txt", ROOT / "devtools" / "package-lock.json"]
STAMP_NAME = "installed"
WORK_FOLDER = ROOT / ".local"

# What pip and npm write when they fail, and what that means.
FAILURE_REASONS = {
    r"No matching distribution found for (\S+)": "missing: the Python package {}",
    r"(?:404|notarget).*?((?:@[\w.-]+/)?[\w.-]+@[\w.-]*\w)": "missing: the npm package {}",
    r"(?:ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|NewConnectionError|NameResolutionError"
    r"|ConnectTimeout)": "the package registry cannot be reached: check the network and the proxy",
    r"(?:EACCES|EPERM|EROFS|Permission denied|Read-only file system): .*": "no permission: {}",
    r"(?:ENOSPC|No space left on device)": "the disk is full",
}

EPILOG = """\
examples:
  python3 -m devtools.install
  python3.13 -m devtools.install .venv-3.13

exit codes:
  0  everything is installed
  1  something is missing, and the last line says what
  2  wrong use

Next: `make demo` or `make test`. Both install first, by this very command.
"""


class InstallError(Exception):
    """Says what is missing."""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python3 -m devtools.install",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "venv",
        nargs="?",
        default=".venv",
        metavar="VENV",
        help="folder of the venv, made by the Python that runs this (default: %(default)s)",
    )
    return parser


def install_tools(venv: Path) -> None:
    """Raise InstallError or OSError when something is missing; cheap when nothing is."""
    stamp = _wanted_stamp()
    if _installed_stamp(venv) == stamp:
        return
    WORK_FOLDER.mkdir(exist_ok=True)
    with (WORK_FOLDER / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _installed_stamp(venv) == stamp:
            return
        _refuse_other_folder(venv)
        (venv / STAMP_NAME).unlink(missing_ok=True)
        if not _is_usable(venv):
            _make_venv(venv)
        _install_python_packages(venv)
        _install_npm_packages(venv)
        (venv / STAMP_NAME).write_text(stamp)


def _wanted_stamp() -> str:
    digest = hashlib.sha256()
    for path in LOCK_FILES:
        digest.update(path.read_bytes())
    return f"{sys.version}\n{ROOT}\n{digest.hexdigest()}\n"


def _installed_stamp(venv: Path) -> str | None:
    stamp, python = venv / STAMP_NAME, venv / "bin" / "python"
    there = stamp.exists() and os.access(python, os.X_OK) and NODE_MODULES.exists()
    return stamp.read_text() if there else None


def _refuse_other_folder(venv: Path) -> None:
    """A mistyped name must not cost anybody a folder: making a venv empties its own."""
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise InstallError(f"{venv} holds files and is no venv: choose another VENV")


def _is_usable(venv: Path) -> bool:
    """A venv that was copied from elsewhere or made by another Python is not usable."""
    try:
        answer = _run_command("pip", venv / "bin" / "pip", "--version")
    except InstallError:
        return False
    version = f"(python {sys.version_info.major}.{sys.version_info.minor})"
    return f" {venv}/" in answer and version in answer


def _make_venv(venv: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise InstallError(
            "missing: Python's venv and ensurepip modules."
            " On Debian and Ubuntu: apt-get install python3-venv"
        )
    print(f"Making {venv.name} ...", flush=True)
    _run_command("python3 -m venv", sys.executable, "-m", "venv", "--clear", venv)


def _install_python_packages(venv: Path) -> None:
    print("Installing requirements-dev.txt ...", flush=True)
    python = venv / "bin" / "python"
    _run_command("pip install", python, "-m", "pip", "install", "--no-input", "-r", LOCK_FILES[0])


def _install_npm_packages(venv: Path) -> None:
    print("Installing devtools/package-lock.json ...", flush=True)
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
    npm = venv / "bin" / "npm"
    _run_command("npm ci", npm, "ci", "--ignore-scripts", *quiet, "--prefix", NODE_MODULES.parent)


def _run_command(name: str, *argv: str | Path) -> str:
    """Return the output, or raise InstallError with the reason and the last lines."""
    with Child(name, argv, env=os.environ, log=WORK_FOLDER / "install.log", cwd=ROOT) as child:
        code = child.wait()
    output = (WORK_FOLDER / "install.log").read_text(errors="replace")
    if code != 0:
        raise InstallError(f"{child.tail()}\n{name} failed\n{_failure_reason(output)}")
    return output


def _failure_reason(output: str) -> str:
    reasons = []
    for pattern, sentence in FAILURE_REASONS.items():
        found = re.search(pattern, output)
        if found:
            reasons.append(sentence.format(*found.groups() or [found.group()]))
    return "\n".join(reasons) or f"its whole output is in {WORK_FOLDER / 'install.log'}"


if __name__ == "__main__":
    options = command_line().parse_args()
    try:
        with stop_on_signals():
            install_tools(ROOT / options.venv)
    except (InstallError, OSError) as error:
        sys.exit(f"Nothing was started, because the database failed.\n{error}")
