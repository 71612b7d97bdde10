"""The settings and the system checks of the site."""

import json
import os
import subprocess
import sys
from typing import Any

from django.core.checks import CheckMessage, run_checks

from devtools.environment import made_up_environment
from tests.paths import ROOT

SHOW = """
import json, sys
from autoshorts import settings
print(json.dumps([getattr(settings, name) for name in sys.argv[1:]], default=str))
"""
GOOD_ENVIRONMENT = made_up_environment()


def run_system_checks(databases: list[str] | None = None) -> dict[str, CheckMessage]:
    told = {str(each.id): each for each in run_checks(databases=databases)}
    return {name: each for name, each in told.items() if name.startswith("storage_audit.")}


def start_site(environment: dict[str, str], *names: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SHOW, *names],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def read_settings(environment: dict[str, str], *names: str) -> list[Any]:
    done = start_site(environment, *names)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


def list_problems(environment: dict[str, str]) -> list[str]:
    """The lines of the error, one a variable."""
    done = start_site(environment)
    assert done.returncode != 0, "it started"
    assert "ImproperlyConfigured" in done.stderr
    told = done.stderr.partition("need your attention:\n")[2].splitlines()
    assert told, done.stderr
    return [line.strip() for line in told]
