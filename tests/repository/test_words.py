"""What people see uses one word per thing: no second word for what has a name."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

# The second words, as patterns, and what to say instead.
WORDS = {
    "deletion operations?": "cleanup",
    "planned operations?": "preview",
    "second looks?": "verification",
    "late checks?": "follow-up check",
    "seen gone": "already gone",
    "headway": "progress",
    "canary|canaries": "bucket marker",
    "sightings?|remarks?": "finding",
    "left behind|strays?": "leftover file",
    "no layout": "unrecognised file",
    "adopt|adopted|adopts": "assign to a project, or track",
    "acknowledge[sd]?": "ignore",
    "diagnos[ie]s|examinations?": "health check",
    "incidents?": "alert",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{n}>\b(?:{words})\b)" for n, words in enumerate(WORDS)), re.IGNORECASE
)
TEXT_SUFFIXES = {".html", ".js", ".md", ".txt"}


def find_words(text: str) -> Iterator[str]:
    instead = list(WORDS.values())
    for match in PATTERN.finditer(" ".join(text.split())):
        name = match.lastgroup or ""
        yield f'"{match[0]}", say "{instead[int(name[1:])]}"'


def read_strings(source: str) -> Iterator[tuple[int, str]]:
    """With their lines. A docstring is for those who read the code."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in docstrings:
            continue
        if isinstance(node.value, str):
            yield node.lineno, node.value


def read_texts(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text()
    if path.suffix == ".py":
        yield from read_strings(text)
    else:
        yield from enumerate(text.splitlines(), start=1)


def visible_files() -> list[Path]:
    """The tests and the migrations show nothing to anybody."""
    names = subprocess.run(
        ["git", "ls-files", "storage_audit", "autoshorts", "templates", "docs", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [ROOT / name for name in names if not re.search(r"^tests/|/migrations/", name)]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES | {".py"}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A late\n check", ['"late check", say "follow-up check"']),
        ("Planned operation, left behind", ['"Planned operation", say "preview"', "leftover"]),
        ("An adopter's own page", []),
    ],
)
def test_second_word_is_found(text: str, found: list[str]) -> None:
    words = list(find_words(text))
    assert len(words) == len(found)
    assert all(part in word for part, word in zip(found, words, strict=True))


def test_docstrings_are_not_searched() -> None:
    source = 'def f():\n    """Seen gone."""\n    return "late checks"\n'
    assert list(read_strings(source)) == [(3, "late checks")]


def test_what_people_see_says_one_word_for_one_thing() -> None:
    files = visible_files()
    assert len(files) > 100
    assert not [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in files
        for line, text in read_texts(path)
        for word in find_words(text)
    ]
