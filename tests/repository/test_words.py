"""What people see uses one word per thing: no second word for what has a name.

The words are those of the column "not" of our writing rules, as far as a pattern can tell them from
other uses.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_audit.urls import api
from tests.paths import ROOT

# The second words, as patterns, and what to say instead.
WORDS = {
    "operations?": "cleanup",
    "planned operations?": "preview",
    "(?:the|an?|one|second|first|last|later|each|another) looks?(?! like)": "verification",
    "late checks?": "follow-up check",
    "seen gone": "already gone",
    "headway": "progress",
    "books": "totals",
    "pace": "batch size",
    "layouts?": "key format",
    "canary|canaries": "bucket marker",
    "sightings?|remarks?": "finding",
    "left behind|strays?": "leftover file",
    "no layout": "unrecognised file",
    "adopt|adopted|adopts": "assign to a project, or track",
    "acknowledge[sd]?": "ignore",
    "diagnos[ie]s|examinations?": "health check",
    "incidents?": "alert",
    "jobs?": "bulk job",
    "alive|(?:live|living) projects?": "existing project",
    "lives? (?:again|on|there)|anew|reborn": "created again",
    "by (?:itself|themselves)|in vain|is no more|(?:tell|tells|told) of": "plain words",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{n}>\b(?:{words})\b)" for n, words in enumerate(WORDS)), re.IGNORECASE
)
# Uses of these words that mean something else, and what they mean.
ALLOWED = {
    r"\bClass [AB] operations?\b": "R2's own word for a request that it bills",
    r"\[?operations\]?(?:\.md\)?|\(operations\.md\)|(?=\]\(docs/operations\.md))": "a page's name",
    r"^# Operations$": "that page's title",
    r"\b(?:bulk|cron|crash) jobs?\b": "a bulk job; cron's word; a test's name",
    r"/_layouts/": "a path",
}
ALLOWED_PATTERN = re.compile("|".join(ALLOWED), re.IGNORECASE)
# Where a word is a name for programs, and nobody reads it as text.
NOT_PROSE = {
    ".html": r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|\b(?:id|class|for|href|fill|data-[\w-]+)=\"[^\"]*\"",
    ".js": r"^\s*//.*$",
    ".md": r"`[^`]*`|\]\([^)]*\)",
}
TEXT_SUFFIXES = {".html", ".js", ".md", ".txt"}


def find_words(text: str) -> Iterator[str]:
    instead = list(WORDS.values())
    for match in PATTERN.finditer(ALLOWED_PATTERN.sub(" ", " ".join(text.split()))):
        name = match.lastgroup or ""
        yield f'"{match[0]}", say "{instead[int(name[1:])]}"'


def read_strings(source: str) -> Iterator[tuple[int, str]]:
    """The texts with their lines. A docstring is for those who read the code, and a string without
    a space is mostly a name."""
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
        if isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def read_texts(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text()
    if path.suffix == ".py":
        yield from read_strings(text)
        return
    names = re.compile(NOT_PROSE.get(path.suffix, "(?!)"), re.MULTILINE)
    for line, part in enumerate(text.splitlines(), start=1):
        yield line, names.sub(" ", ALLOWED_PATTERN.sub(" ", part))


def visible_files() -> list[Path]:
    """The tests, the migrations and the changes of earlier versions are left out."""
    names = subprocess.run(
        ["git", "ls-files", "storage_audit", "autoshorts", "templates", "docs", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    hidden = r"^(tests|benchmarks)/|/migrations/|^CHANGELOG\.md$"
    paths = [ROOT / name for name in names if not re.search(hidden, name)]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES | {".py"}]


def read_descriptions(part: Any) -> Iterator[str]:
    """What the API's documentation says: docstrings of endpoints and schemas among it."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name in ("description", "summary") and isinstance(value, str):
                yield value
            else:
                yield from read_descriptions(value)
    elif isinstance(part, list):
        for value in part:
            yield from read_descriptions(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A late\n check", ['"late check", say "follow-up check"']),
        ("Planned operation, left behind", ['"Planned operation", say "preview"', "leftover"]),
        ("Each look ends in a job.", ["verification", "bulk job"]),
        ("The live project tells of it by itself.", ["existing project", "plain", "plain"]),
        ("An adopter's own page looks like a bulk job, at a Class A operation each.", []),
    ],
)
def test_second_word_is_found(text: str, found: list[str]) -> None:
    words = list(find_words(text))
    assert len(words) == len(found)
    assert all(part in word for part, word in zip(found, words, strict=True))


def test_docstrings_are_not_searched() -> None:
    source = 'def f():\n    """Seen gone."""\n    return "late checks"\n'
    assert list(read_strings(source)) == [(3, "late checks")]


def test_names_for_programs_are_not_searched(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<p id="job">{% if job %}a late check{% endif %}</p>\n')
    assert [list(find_words(text)) for _line, text in read_texts(page)] == [
        ['"late check", say "follow-up check"']
    ]


def test_what_people_see_says_one_word_for_one_thing() -> None:
    files = visible_files()
    assert len(files) > 100
    assert not [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in files
        for line, text in read_texts(path)
        for word in find_words(text)
    ]


def test_documentation_of_the_api_says_one_word_for_one_thing() -> None:
    texts = list(read_descriptions(api.get_openapi_schema(path_prefix="api/v1/")))
    assert any("Restore the project" in text for text in texts)
    assert not [(text, word) for text in texts for word in find_words(text)]
