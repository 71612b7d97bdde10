"""The settings and the system checks of the site."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any
from unittest.mock import patch

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.exceptions import ImproperlyConfigured

from autoshorts import settings
from devtools.environment import WITHOUT_ENV_FILE, made_up_environment
from tests.paths import ROOT

SHOW_SCRIPT = """
import json, sys
from autoshorts import settings
print(json.dumps([getattr(settings, name) for name in sys.argv[1:]], default=str))
"""
RECORD_SCRIPT = """
import json
from autoshorts.environment import Environment
read, found = Environment.text, {}
def record(self, name, default=None, **more):
    found[name] = default
    return read(self, name, default, **more)
Environment.text = record
from autoshorts import settings
print(json.dumps(found))
"""
GOOD_ENVIRONMENT = made_up_environment()


def run_system_checks(databases: list[str] | None = None) -> dict[str, CheckMessage]:
    told = {str(each.id): each for each in run_checks(databases=databases)}
    return {name: each for name, each in told.items() if name.startswith("storage_audit.")}


def start_site(environment: dict[str, str], *names: str) -> "subprocess.CompletedProcess[str]":
    return run_python(["-c", SHOW_SCRIPT, *names], environment)


def run_python(
    arguments: list[str], environment: dict[str, str], folder: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **WITHOUT_ENV_FILE, **environment},
        capture_output=True,
        text=True,
    )


def read_settings(environment: dict[str, str], *names: str) -> list[Any]:
    done = start_site(environment, *names)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


def list_problems(environment: dict[str, str]) -> list[str]:
    """The lines of the error, one a variable. Without a process, which takes a quarter of a second;
    test_no_secret_is_told starts one."""
    here = {"PATH": os.environ["PATH"], **WITHOUT_ENV_FILE, **environment}
    with (
        patch.dict(os.environ, here, clear=True),
        pytest.raises(ImproperlyConfigured) as raised,
    ):
        run_path(settings.__file__)
    told = str(raised.value).partition("need your attention:\n")[2].splitlines()
    assert told, raised.value
    return [line.strip() for line in told]


def read_variables() -> dict[str, str | None]:
    """Each variable that the site reads, with its default as text; None where it has none."""
    done = run_python(
        ["-c", RECORD_SCRIPT], GOOD_ENVIRONMENT | {"DATABASE_URL": "postgres://u@h/n"}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    gunicorn = (ROOT / "deploy" / "gunicorn.conf.py").read_text()
    return found | dict(re.findall(r'os\.environ\.get\("(\w+)", (\w+)\)', gunicorn))
