"""Make .venv and devtools/node_modules, or do nothing when they are as the lock files want them.

    python3 -m devtools.install

Needs only Python and its standard library.
"""

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - whoever reads this message has an older Python
    sys.exit("Python 3.11 or newer is needed, and this is Python " + sys.version.split()[0])

import fcntl

from devtools.processes import Child, stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
NODE_MODULES = ROOT / "devtools" / "node_modules"
LOCKS = [ROOT / "requirements-dev.txt", ROOT / "devtools" / "package-lock.json"]
STAMP = VENV / "installed"
WORK = ROOT / ".local"

# What pip and npm write when they fail, and what that means.
REASONS = {
    r"No matching distribution found for (\S+)": "missing: the Python package {}",
    r"(?:404|notarget).*?((?:@[\w.-]+/)?[\w.-]+@[\w.-]*\w)": "missing: the npm package {}",
    r"(?:ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|NewConnectionError|NameResolutionError"
    r"|ConnectTimeout)": "the package registry cannot be reached: check the network and the proxy",
    r"(?:EACCES|EPERM|EROFS|Permission denied|Read-only file system): .*": "no permission: {}",
    r"(?:ENOSPC|No space left on device)": "the disk is full",
}


class InstallError(Exception):
    """Says what is missing."""


def install() -> None:
    """Raise InstallError or OSError when something is missing; cheap when nothing is."""
    stamp = _wanted_stamp()
    if _installed() == stamp:
        return
    WORK.mkdir(exist_ok=True)
    with (WORK / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _installed() == stamp:
            return
        STAMP.unlink(missing_ok=True)
        if not _usable_venv():
            _make_venv()
        _install_python_packages()
        _install_npm_packages()
        STAMP.write_text(stamp)


def _wanted_stamp() -> str:
    digest = hashlib.sha256()
    for path in LOCKS:
        digest.update(path.read_bytes())
    return f"{sys.version}\n{ROOT}\n{digest.hexdigest()}\n"


def _installed() -> str | None:
    there = STAMP.exists() and os.access(PYTHON, os.X_OK) and NODE_MODULES.exists()
    return STAMP.read_text() if there else None


def _usable_venv() -> bool:
    """A venv that was copied from elsewhere or made by another Python is not usable."""
    try:
        answer = _run("pip", VENV / "bin" / "pip", "--version")
    except InstallError:
        return False
    version = f"(python {sys.version_info.major}.{sys.version_info.minor})"
    return f" {VENV}/" in answer and version in answer


def _make_venv() -> None:
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise InstallError(
            "missing: Python's venv and ensurepip modules."
            " On Debian and Ubuntu: apt-get install python3-venv"
        )
    print("Making .venv ...", flush=True)
    _run("python3 -m venv", sys.executable, "-m", "venv", "--clear", VENV)


def _install_python_packages() -> None:
    print("Installing requirements-dev.txt ...", flush=True)
    _run("pip install", PYTHON, "-m", "pip", "install", "--no-input", "-r", LOCKS[0])


def _install_npm_packages() -> None:
    print("Installing devtools/package-lock.json ...", flush=True)
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
    npm = VENV / "bin" / "npm"
    _run("npm ci", npm, "ci", "--ignore-scripts", *quiet, "--prefix", NODE_MODULES.parent)


def _run(name: str, *argv: str | Path) -> str:
    """Return the output, or raise InstallError with the reason and the last lines."""
    with Child(name, argv, env=os.environ, log=WORK / "install.log", cwd=ROOT) as child:
        code = child.wait()
    output = (WORK / "install.log").read_text(errors="replace")
    if code != 0:
        raise InstallError(f"{child.tail()}\n{name} failed\n{_reason(output)}")
    return output


def _reason(output: str) -> str:
    reasons = []
    for pattern, sentence in REASONS.items():
        found = re.search(pattern, output)
        if found:
            reasons.append(sentence.format(*found.groups() or [found.group()]))
    return "\n".join(reasons) or f"its whole output is in {WORK / 'install.log'}"


if __name__ == "__main__":
    try:
        with stop_on_signals():
            install()
    except (InstallError, OSError) as error:
        sys.exit(f"Nothing was started, because the installation failed.\n{error}")
