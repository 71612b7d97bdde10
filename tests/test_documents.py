"""What the documents name is there, and what the settings read is in the README."""

import re
from pathlib import Path

import pytest
from django.core.management import find_commands, get_commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_commands_are_known(page: Path) -> None:
    known = {*get_commands(), *find_commands(str(ROOT / "devtools" / "management"))}
    named = set(re.findall(r"manage\.py ([a-z]\w+)", page.read_text()))
    assert named <= known


def test_files_that_contributing_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.(?:md|py|toml|txt))`", page)
    assert "devtools/check_settings.py" in named
    rooms = [ROOT, ROOT / "storage_audit"]
    assert [name for name in named if not any((room / name).exists() for room in rooms)] == []


def test_the_readme_explains_each_variable_of_the_settings() -> None:
    settings = (ROOT / "autoshorts" / "settings.py").read_text()
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z0-9_]+)"', settings))
    assert len(read) > 10
    assert read <= set(re.findall(r"`([A-Z0-9_]+)`", (ROOT / "README.md").read_text()))
