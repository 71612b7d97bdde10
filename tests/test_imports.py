"""What test files share is in modules beside them, such as tests/builders.py."""

import ast
from collections.abc import Iterator

import pytest

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
