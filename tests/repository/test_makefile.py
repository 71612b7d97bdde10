"""`make install` installs what the lock files name, once, and says what to do when it cannot."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.paths import ROOT

# What it asks is no database.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]

LOCK_FILES = ["requirements-dev.txt", "devtools/package-lock.json"]
# Python, pip and npm in one: it writes down what it installs, and makes a venv of copies of itself.
PROGRAM = """#!/bin/sh
case "$*" in
    -V) echo $VERSION; exit ;;
    -c*) exit ${IS_TOO_OLD-0} ;;
    "-m venv"*) step=venv; mkdir -p .venv/bin; touch .venv/pyvenv.cfg; cp $0 .venv/bin/python
        cp $0 .venv/bin/npm ;;
    "-m pip"*) step=pip ;;
    ci*) step=npm; mkdir -p devtools/node_modules ;;
esac
echo $step >>steps
sleep ${SECONDS_EACH-0}
[ $step != "$FAILING" ]
"""

Install = Callable[..., tuple[list[str], str]]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Runs `make install` with these variables. Returns what it did, and its errors."""
    (tmp_path / "devtools").mkdir()
    for name in ["Makefile", *LOCK_FILES]:
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PROGRAM)
    python.chmod(0o700)
    steps = tmp_path / "steps"
    steps.touch()

    def run(**variables: str) -> tuple[list[str], str]:
        before = len(steps.read_text())
        # Not those of a make that runs these tests.
        environment = {"PATH": os.environ["PATH"], "VERSION": "Python 3.11.1", **variables}
        command = ["make", "install", f"PYTHON={variables.get('PYTHON', python)}"]
        made = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (made.returncode == 0) == (made.stderr == "")
        return steps.read_text()[before:].split(), made.stderr

    return run


def touch(path: Path) -> None:
    """Not within the milliseconds that a file system may take for one."""
    time.sleep(0.02)
    path.touch()


def test_installs_what_a_lock_file_changed_and_nothing_twice(
    install: Install, tmp_path: Path
) -> None:
    assert install() == (["venv", "pip", "npm"], "")
    assert install() == ([], "")
    touch(tmp_path / LOCK_FILES[0])
    assert install() == (["pip"], "")
    touch(tmp_path / LOCK_FILES[1])
    assert install() == (["npm"], "")
    assert install() == ([], "")


@pytest.mark.skipif(not shutil.which("flock"), reason="there is no flock")
def test_of_two_at_once_one_installs(install: Install, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        for made in [pool.submit(install, SECONDS_EACH="0.2") for _number in range(2)]:
            made.result()
    assert (tmp_path / "steps").read_text().split() == ["venv", "pip", "npm"]


def test_another_python_or_folder_makes_another_venv(install: Install, tmp_path: Path) -> None:
    install()
    assert install(VERSION="Python 3.13.0") == (["venv", "pip"], "")
    assert install(VERSION="Python 3.13.0") == ([], "")
    stamp = tmp_path / ".venv" / "installed"
    stamp.write_text(stamp.read_text().replace(str(tmp_path), "/elsewhere"))
    assert install(VERSION="Python 3.13.0") == (["venv", "pip"], "")


@pytest.mark.parametrize(
    ("failing", "sentence", "done", "next_time"),
    [
        ("venv", "apt-get install python3-venv", ["venv"], ["venv", "pip", "npm"]),
        ("pip", "pip failed", ["venv", "pip"], ["venv", "pip", "npm"]),
        ("npm", "npm failed", ["venv", "pip", "npm"], ["npm"]),
    ],
)
def test_a_failed_install_says_what_to_do_and_is_done_again(
    install: Install, failing: str, sentence: str, done: list[str], next_time: list[str]
) -> None:
    steps, errors = install(FAILING=failing)
    assert steps == done
    assert sentence in errors
    assert install() == (next_time, "")


def test_a_failed_update_is_done_again(install: Install, tmp_path: Path) -> None:
    install()
    for name in LOCK_FILES:
        touch(tmp_path / name)
    install(FAILING="pip")
    assert install() == (["pip", "npm"], "")


@pytest.mark.parametrize("variables", [{"IS_TOO_OLD": "1"}, {"PYTHON": "no-such-python"}])
def test_an_old_or_missing_python_is_named(install: Install, variables: dict[str, str]) -> None:
    steps, errors = install(**variables)
    assert steps == []
    assert "Python 3.11 or newer is needed" in errors
    assert variables.get("PYTHON", "/python") in errors


def test_a_folder_that_is_no_venv_is_left_alone(install: Install, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "thesis.txt").touch()
    steps, errors = install()
    assert steps == []
    assert ".venv holds files and is no venv" in errors
