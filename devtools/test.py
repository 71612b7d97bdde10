"""Every check, in order, until one fails. Arguments go to pytest.

python -m devtools.test -k name
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from devtools.environment import made_up_environment
from devtools.postgres import postgres
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


def main(pytest_arguments: list[str]) -> None:
    with stop_on_signals(), TemporaryDirectory() as folder:
        sqlite = {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3"}
        for check in CHECKS:
            _run(check, check.split(), made_up_environment() | sqlite)
        pytest = ["pytest", *pytest_arguments]
        _run("pytest on SQLite", pytest, sqlite)
        with postgres() as url:
            _run("pytest on PostgreSQL", pytest, {"DATABASE_URL": url})
    print("\nEvery check passed.")


def _run(name: str, argv: list[str], environment: Mapping[str, str]) -> None:
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
    main(sys.argv[1:])
