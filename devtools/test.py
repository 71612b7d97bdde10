"""Runs every check in order until one fails: linters, types, imports, deployment, migrations, then
the tests about the database on SQLite, and all tests on PostgreSQL."""

import os
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from devtools.debian import require_packages
from devtools.environment import made_up_environment
from devtools.postgres import temporary_database_url
from devtools.processes import Child, stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
CHECKS = [
    "ruff check .",
    "ruff format --check .",
    "mypy .",
    "lint-imports",
    "python manage.py check --deploy --fail-level WARNING",
    "python manage.py makemigrations --check --dry-run",
]

# Each process has its own local R2 and database, and takes whole files, so what a file sets up
# once is set up once. They wait for others, or for the clock, a third of the time.
PROCESS_COUNT = str((os.cpu_count() or 1) * 3 // 2)
IN_PARALLEL = ["-n", PROCESS_COUNT, "--dist", "loadfile", "--no-loadscope-reorder"]

EPILOG = """\
Arguments go to pytest, whose own help is `pytest --help`.

examples:
  make test
  make test ARGS="--only fast -k lease"
  make test ARGS="--database sqlite"
  make test ARGS="tests/cleanup/test_cleanup.py -x -n 0"
  make test PYTHON=python3.13 VENV=.venv-3.13

exit codes:
  0  every check passed
  1  one failed; the last line names it, and those after it did not run
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
    parser.add_argument(
        "--only",
        choices=["check", "fast"],
        help="the checks alone, or the fast tests on SQLite alone, as make check and make test-fast"
        " do (default: all)",
    )
    return parser


def main(database: str | None, only: str | None, pytest_arguments: list[str]) -> None:
    with stop_on_signals(), TemporaryDirectory() as folder:
        sqlite = {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3"}
        pytest = ["pytest", *IN_PARALLEL, *pytest_arguments]
        if only == "fast":
            _run_check("fast tests", [*pytest, "--fast"], sqlite)
            return
        for check in CHECKS:
            _run_check(check, check.split(), made_up_environment() | sqlite)
        if only == "check":
            return
        require_packages()
        if database != "postgresql":
            beside = [] if database else ["--beside-postgresql"]
            _run_check("pytest on SQLite", [*pytest, *beside], sqlite)
        if database != "sqlite":
            with temporary_database_url() as url:
                _run_check("pytest on PostgreSQL", pytest, {"DATABASE_URL": url})
    print("\nEvery check passed.")


def _run_check(name: str, argv: list[str], environment: Mapping[str, str]) -> None:
    """Exit when it fails."""
    print(f"\n== {name}", flush=True)
    program = Path(sys.executable).parent / argv[0]
    # pytest tears its fixtures down on SIGINT only.
    with Child(
        name,
        [program, *argv[1:]],
        env=os.environ | environment,
        cwd=ROOT,
        grace=30,
        stop_signal=signal.SIGINT,
    ) as child:
        if child.wait() != 0:
            sys.exit(f"\nFAILED: {name}")


if __name__ == "__main__":
    options, others = command_line().parse_known_args()
    main(options.database, options.only, others)
