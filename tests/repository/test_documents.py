"""What the documents name and quote is there."""

import ast
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from django.core.management import find_commands, get_commands, load_command_class
from django.core.management.base import CommandError, DjangoHelpFormatter
from django.db.models import TextChoices

from devtools.animation import ANIMATION, MAX_BYTES
from devtools.screenshots import DOCS_PICTURES
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.findings.models import Kind
from storage_audit.urls import api
from tests.paths import ROOT

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ROOT / "docs" / "commands.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# Of the others one is about projects of other people's, the other about development.
each_page_for_operators = pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "docs" / "operations.md", COMMANDS, TROUBLESHOOTING],
    ids=lambda page: page.name,
)
CALLED = r"(?:deploy/manage|(?:\.venv/bin/)?python manage\.py|manage\.py) "
AN_ID, CLEANUP_ID = "proj_1", str(UUID(int=0))


@each_page
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_links_lead_to_headings_that_are_there(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / path if path else page), (path, anchor)


def anchors(page: Path) -> list[str]:
    """As GitHub makes them."""
    titles = re.findall("^#+ (.*)$", page.read_text(), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@each_page_for_operators
def test_commands_can_be_typed_as_they_are(page: Path) -> None:
    lines = command_lines(page.read_text())
    assert len(lines) > 5
    assert [line for line in lines if not can_be_typed(line)] == []


def command_lines(text: str) -> list[str]:
    """What follows the program, and bare commands with their arguments."""
    code = re.findall(r"^ {4,}(\S.*)$", text, re.M) + re.findall(r"`([^`]+)`", text)
    names = "|".join(find_commands(str(ROOT / "storage_audit" / "management")))
    ours = (re.match(rf"(?:{CALLED})(.*)|((?:{names}) .*)", line) for line in code)
    return [match[1] or match[2] for match in ours if match]


def can_be_typed(line: str) -> bool:
    name, *arguments = shlex.split(line, comments=True)
    command = load_command_class(get_commands()[name], name)
    for each in (AN_ID, CLEANUP_ID):
        meant = {"ID": each, "DELETION_ID": CLEANUP_ID}
        try:
            command.create_parser("manage.py", name).parse_args(
                [meant.get(argument, argument) for argument in arguments]
            )
        except CommandError:
            continue
        return True
    return False


def test_the_troubleshooting_guide_quotes_what_we_say() -> None:
    quotes = re.findall("“(.*?)”", " ".join(TROUBLESHOOTING.read_text().split()))
    assert len(quotes) > 50
    said = "\n".join(texts())
    assert [quote for quote in quotes if not re.search(pattern(quote), said)] == []


def pattern(quote: str) -> str:
    """What … stands for is within one line, and so in one literal."""
    return ".*".join(re.escape(part.strip()) for part in quote.split("…") if part.strip())


def texts() -> Iterator[str]:
    """Every literal of ours that is no docstring, in one line."""
    for room in ("autoshorts", "storage_audit"):
        for file in (ROOT / room).rglob("*.py"):
            tree = ast.parse(file.read_text())
            documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) not in documentation:
                    yield " ".join(literal(node).split())


def literal(node: ast.AST) -> str:
    """With … for what an f-string fills in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(literal(part) or "…" for part in parts)
    return ""


def test_the_troubleshooting_guide_names_addresses_that_there_are() -> None:
    paths = api.get_openapi_schema(path_prefix="api/v1/")["paths"]
    named = re.findall(r"`(GET|POST|DELETE) (/api/v1/\S+?)`", TROUBLESHOOTING.read_text())
    assert len(named) > 5
    assert [(m, path) for m, path in named if m.lower() not in paths.get(path, {})] == []


def test_paths_for_adopters_can_be_imported() -> None:
    page = (ROOT / "docs" / "adopting.md").read_text()
    paths = re.findall(r"^\| `(storage_audit[\w.]*)` \| [^|]*\|$", page, re.M)
    paths = [path for path in paths if not re.search(r"\.[EW]\d+$", path)]
    assert "storage_audit.storage.TrackedStorage" in paths
    for path in paths:
        pkgutil.resolve_name(path)


@each_page
def test_commands_are_known(page: Path) -> None:
    known = {*get_commands(), *find_commands(str(ROOT / "devtools" / "management"))}
    named = set(re.findall(r"manage\.py ([a-z]\w+)", page.read_text()))
    assert named <= known


def test_document_lists_every_command_with_its_options() -> None:
    rows = re.findall(
        r"^\| `(\w+)[^`]*` \| [^|]+ \| ([^|]+) \|$", COMMANDS.read_text(), re.MULTILINE
    )
    assert {name: set(re.findall("--[a-z-]+", cell)) for name, cell in rows} == {
        name: own_options(app, name)
        for app in ("storage_audit", "devtools")
        for name in find_commands(str(ROOT / app / "management"))
    }


def own_options(app: str, name: str) -> set[str]:
    """Without those that Django gives to every command."""
    parser = load_command_class(app, name).create_parser("manage.py", name)
    options = {action.option_strings[-1] for action in parser._actions if action.option_strings}
    return options - DjangoHelpFormatter.show_last - {"--help"}


def test_files_that_contributing_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.(?:md|py|toml|txt))`", page)
    assert "devtools/check_settings.py" in named
    rooms = [ROOT, ROOT / "storage_audit"]
    assert [name for name in named if not any((room / name).exists() for room in rooms)] == []


@pytest.mark.parametrize("words", [Cleanup.Status, CleanupItem.Outcome, Kind])
def test_the_guide_for_staff_explains_each_word(words: type[TextChoices]) -> None:
    guide = (ROOT / "docs" / "admin.md").read_text().partition("## Words")[2]
    explained = re.findall(r"^\| ([^|]+) \|", guide, re.M)
    assert [label for label in words.labels if str(label) not in explained] == []


def test_the_pictures_of_the_documents_are_those_that_are_shot() -> None:
    shown = {name for page in PAGES for name in re.findall(r"images/([\w.-]+)", page.read_text())}
    assert shown == {*(f"{name}.png" for name in DOCS_PICTURES), ANIMATION.name}
    assert {file.name for file in (ROOT / "docs" / "images").iterdir()} == shown


def test_the_animation_is_smaller_than_it_may_be() -> None:
    assert (ROOT / ANIMATION).stat().st_size < MAX_BYTES


@pytest.mark.slow
def test_the_site_of_the_documents_fetches_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    pages = [page.read_text() for page in tmp_path.rglob("*.html")]
    assert len(pages) > 10
    fetched = r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*"""
    assert [match for page in pages for match in re.findall(fetched, page)] == []
    # The script of the theme would fetch another one for such a diagram.
    assert [page for page in pages if 'class="mermaid"' in page] == []
