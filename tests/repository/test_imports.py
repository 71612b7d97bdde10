"""What may be imported from where, and in which order."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps

from tests.paths import ROOT


def list_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "tests." * bool(node.level) + (node.module or "")
            yield from (f"{start}.{each.name}" for each in node.names)


def is_from_a_test_file(name: str) -> bool:
    package, *parts = name.split(".")
    return package == "tests" and any(part.startswith("test_") for part in parts)


@pytest.mark.parametrize(
    "source",
    [
        "from tests.test_x import y",
        "from tests import test_x",
        "import tests.browser.test_x",
        "from .test_x import y",
        "def f(): from . import test_x",
    ],
)
def test_import_from_a_test_file_is_found(source: str) -> None:
    assert any(map(is_from_a_test_file, list_imports(source)))


def test_no_file_imports_from_a_test_file() -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in list_imports(path.read_text())
        if is_from_a_test_file(name)
    }
    assert wrong == set()


HOST_APP = """
from django.apps import AppConfig, apps

class Adopter(AppConfig):
    name = "adopter"

    def ready(self):
        \"""Before storage_audit, which imports the rest of its modules when it is ready.\"""
        print(*(model.__name__ for model in apps.get_app_config("storage_audit").get_models()))
"""
START = """
import django
from django.conf import settings
others = "django.contrib.auth", "django.contrib.contenttypes", "storage_audit"
settings.configure(INSTALLED_APPS=["adopter", *others])
django.setup()
"""


def test_each_command_knows_what_people_keep_and_hears_of_tasks() -> None:
    """No cleanup deletes without the first: those of a cluster's workers are in tests/queue."""
    asked = (
        "from storage_audit.cleanup.open_decisions import get_ignore_list as a; print(a().__name__)"
    )
    asked += "; from django_q.signals import pre_execute; print(pre_execute.has_listeners())"
    settings = ["--settings", "devtools.check_settings"]
    command = [sys.executable, "manage.py", "shell", *settings, "--command", asked]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-2:] == ["storage_audit.findings.ignored", "True"]


def test_all_tables_are_loaded_when_another_app_imports_one_of_them_first(tmp_path: Path) -> None:
    adopter = tmp_path / "adopter"
    adopter.mkdir()
    (adopter / "__init__.py").touch()
    (adopter / "apps.py").write_text(HOST_APP)
    (adopter / "models.py").write_text("from storage_audit.cleanup.models import Cleanup\n")
    started = subprocess.run(
        [sys.executable, "-c", START],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=True,
        capture_output=True,
        text=True,
    )
    tables = {model.__name__ for model in apps.get_app_config("storage_audit").get_models()}
    assert set(started.stdout.split()) == tables
    assert len(tables) > 15
