"""Runs the tests about the database on SQLite, then all tests on PostgreSQL, until one run fails.

`make test` runs the checks of `make check` first."""

import os
import shutil
import signal
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

from devtools import chromium
from devtools.postgres import temporary_database_url
from devtools.processes import Child, find_program, stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")
# Of a whole run; some containers give 64 MB.
NEEDED_BYTES = 4 * 1024**3

EPILOG = """\
Arguments go to pytest, whose own help is `pytest --help`.

examples:
  make test
  make test ARGS="-k lease"
  make test ARGS="--database sqlite"
  make test ARGS="tests/cleanup/test_cleanup.py -x -n 0"
  make test PYTHON=python3.13 VENV=.venv-3.13

exit codes:
  0  every check passed
  1  one failed; what comes after it did not run
  2  the same, as make says it

Next: run what failed alone, as "Test" in CONTRIBUTING.md shows.
"""


def command_line() -> ArgumentParser:
    parser = ArgumentParser(
        prog="make test",
        usage='make test [ARGS="[--database DATABASE] PYTEST_ARGUMENT ..."]',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--database",
        choices=["sqlite", "postgresql"],
        help="run the tests on this one alone (default: on both, one after the other)",
    )
    return parser


def main(database: str | None, arguments: list[str]) -> None:
    require_programs()
    # Databases, stores and the tests' own folders: pytest and all programs go by this variable.
    with stop_on_signals(), TemporaryDirectory(prefix="test-", dir=find_fast_folder()) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        if database != "postgresql":
            beside = [] if database else ["--beside-postgresql"]
            _run_pytest("SQLite", f"sqlite:///{folder}/db.sqlite3", [*arguments, *beside])
        if database != "sqlite":
            with temporary_database_url() as url:
                _run_pytest("PostgreSQL", url, arguments)
    print("\nEvery check passed.")


def require_programs() -> None:
    """Exit, saying what to do, if one is missing: else its tests fail one by one, minutes later."""
    programs = {
        "chromium": chromium.find_browser(),
        "promtool": find_program("promtool"),
        "pgbouncer": find_program("pgbouncer"),
    }
    if missing := [name for name, found in programs.items() if not found]:
        sys.exit(
            f"missing: {', '.join(missing)}. To install on Debian, as root:"
            f" apt-get install --no-install-recommends {' '.join(missing)}"
        )


def find_fast_folder() -> str | None:
    """In memory, if there is room: half of the time of a request to local R2 is spent waiting for
    the disk. None stands for the usual folder."""
    try:
        flags, usage = os.statvfs(SHARED_MEMORY).f_flag, shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return None
    # The tests write programs and run them.
    may_run = not flags & os.ST_NOEXEC and os.access(SHARED_MEMORY, os.W_OK)
    return str(SHARED_MEMORY) if may_run and usage.free >= NEEDED_BYTES else None


def _run_pytest(database: str, url: str, arguments: list[str]) -> None:
    """Exit when it fails."""
    print(f"\n== pytest on {database}", flush=True)
    # pytest tears its fixtures down on SIGINT only.
    with Child(
        "pytest",
        [sys.executable, "-m", "pytest", *arguments],
        env=os.environ | {"DATABASE_URL": url},
        cwd=ROOT,
        grace=30,
        stop_signal=signal.SIGINT,
    ) as child:
        if child.wait() != 0:
            sys.exit(f"\nFAILED: pytest on {database}")


if __name__ == "__main__":
    options, others = command_line().parse_known_args()
    main(options.database, others)
