"""The hooks of .pre-commit-config.yaml are the checks of `make test`, and no second list."""

import re

import pytest

from devtools.test import CHECKS
from tests.paths import ROOT

# What it asks is no database.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]

CONFIG = ROOT / ".pre-commit-config.yaml"


def what(command: str) -> str:
    """The program and its subcommand, without paths and options."""
    return re.split(r" (?:-|\.$)", command)[0]


def test_each_check_has_its_hook_and_each_hook_its_check() -> None:
    hooks = re.findall(r"\.venv/bin/(.*)", CONFIG.read_text())
    assert [what(hook) for hook in hooks] == [what(check) for check in CHECKS]


def test_hooks_need_no_network() -> None:
    config = CONFIG.read_text()
    assert re.findall(r"repo: (.*)", config) == ["local"]
    assert set(re.findall(r"language: (.*)", config)) == {"system"}
