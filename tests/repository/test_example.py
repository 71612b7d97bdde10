"""A stranger follows the README of tests/example, word for word, in a venv of its own."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from shutil import copytree, rmtree
from textwrap import dedent
from typing import NamedTuple

import boto3
import pytest

from devtools.environment import made_up_environment
from devtools.processes import Child, stop_on_signals
from storage_audit.conf import Conf
from storage_audit.ownership.bucket_marker import MARKER_KEY
from tests.paths import ROOT

# It has a database of its own.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]

EXAMPLE = ROOT / "tests" / "example"
# What this process was given by its own settings, and a new terminal was not.
OURS = {*made_up_environment(), "DATABASE_URL", "DJANGO_SETTINGS_MODULE", "PYTHONPATH"}
PROCESSED = "Processed 'storage_audit.tasks.run_cleanup'"
OF_CLIP_2 = {
    "clips/2/cut.mp4": b"Interview",
    "uploads/2_raw.mov": b"uploads/2_raw.mov",
    "uploads/2_late.mov": b"late",
}
OF_CLIP_20 = {"uploads/20_raw.mov": b"uploads/20_raw.mov"}
OF_OTHERS = {
    "clips/1/cut.mp4": b"Weather",
    "clips/3/cut.mp4": b"Sports",
    "uploads/1_raw.mov": b"uploads/1_raw.mov",
    "uploads/notes.txt": b"uploads/notes.txt",
}
# What other projects have otherwise: files of a package, and what its settings add.
CASES = {
    "german": {"settings.py": "LANGUAGE_CODE, USE_THOUSAND_SEPARATOR = 'de', True"},
    "atomic": {"settings.py": "DATABASES['default']['ATOMIC_REQUESTS'] = True"},
    "users": {
        "settings.py": "INSTALLED_APPS.append('users'); AUTH_USER_MODEL = 'users.Editor'",
        "models.py": """
            from django.contrib.auth.models import AbstractBaseUser, PermissionsMixin
            from django.db import models

            class Editor(AbstractBaseUser, PermissionsMixin):
                username = models.TextField(unique=True)
                is_staff = models.BooleanField(default=False)
                USERNAME_FIELD = "username"
                people = models.Manager()
            """,
    },
    "default_site": {
        "settings.py": "INSTALLED_APPS[0] = 'default_site.apps.NewsroomAdmin'",
        "apps.py": """
            from django.contrib.admin.apps import AdminConfig

            class NewsroomAdmin(AdminConfig):
                default_site = "default_site.site.NewsroomSite"
            """,
        "site.py": """
            from django.contrib.admin import AdminSite

            class NewsroomSite(AdminSite):
                site_header = "Newsroom"
            """,
    },
    "another_site": {
        "settings.py": "ROOT_URLCONF = 'another_site.urls'",
        "urls.py": """
            from django.contrib import admin
            from django.urls import path

            site = admin.AdminSite(name="newsroom")
            for model, pages in admin.site._registry.items():
                site.register(model, type(pages))
            urlpatterns = [path("newsroom/", site.urls)]
            """,
    },
}

ON_POSTGRESQL = """
import os
import dj_database_url
from newsroom.settings import *

DATABASES = {"default": dj_database_url.config()}
DATABASES["default"]["TEST"] = {"NAME": f"newsroom_{os.getpid()}"}
# A package has them within.
TEMPLATES[0]["DIRS"] = [os.environ["PYTHONPATH"] + "/templates"]
"""
STORE = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "BUCKET_NAME")

MYPY = """
[mypy]
strict = true
plugins = mypy_django_plugin.main
[mypy-django_q.*,storages.*]
ignore_missing_imports = true
[mypy.plugins.django-stubs]
django_settings_module = newsroom.settings
"""


class Block(NamedTuple):
    language: str
    code: str


def blocks() -> list[Block]:
    text = (EXAMPLE / "README.md").read_text()
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, dedent(code)) for _indent, language, code in found]


class Terminal:
    """A shell in the root of the repository: what one block sets holds for the next."""

    def __init__(self, folder: Path) -> None:
        self._kept = folder / "environment"
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        # So that `python3` is the one that runs the tests.
        path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
        ours = {"PATH": path, "TMPDIR": str(folder), "PWD": str(ROOT)}
        self.environment = {**inherited, **ours, "PIP_RETRIES": "10", "PIP_DEFAULT_TIMEOUT": "60"}

    @property
    def folder(self) -> Path:
        return Path(self.environment["PWD"])

    def run(self, code: str, pasted: str = "") -> str:
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{code}\nenv -0 > {self._kept}"],
            env=self.environment,
            cwd=self.folder,
            input=pasted,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        variables = filter(None, self._kept.read_text().split("\0"))
        self.environment = dict(variable.split("=", 1) for variable in variables)
        return done.stdout

    def start(self, code: str, log: Path) -> Child:
        """Run the last line, which does not end by itself, in place of the shell."""
        *lines, last = code.strip().splitlines()
        argv = ["bash", "-c", "\n".join(["set -e", *lines, f"exec {last}"])]
        return Child(last, argv, env=self.environment, log=log, cwd=self.folder, grace=30)


class Story(NamedTuple):
    """What happened: the first terminal as it is now, the bucket before the worker ran, after
    it and in the end, and what the blocks that promise an output printed beside the promise."""

    terminal: Terminal
    before: dict[str, bytes]
    after: dict[str, bytes]
    end: dict[str, bytes]
    printed: list[tuple[str, str]]


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with stop_on_signals(), ExitStack() as stack:
        told = tell(tmp_path_factory.mktemp("stranger"), stack)
        yield told
        # A hundred megabytes, and pytest keeps the folders of three runs.
        rmtree(told.terminal.folder / "venv")


def tell(folder: Path, stack: ExitStack) -> Story:
    terminal, exports, said, printed = Terminal(folder), "", "", []
    for language, code in blocks():
        if "local_r2" in code:
            exports = start_bucket(folder, code, stack)
        elif "qcluster" in code:
            before = objects(terminal)
            work(terminal.folder, code)
            after = objects(terminal)
        elif language == "sh":
            said = terminal.run(code, exports)
        elif language == "python":
            said = terminal.run("python manage.py shell", code)
        else:
            printed.append((said, code))
    return Story(terminal, before, after, objects(terminal), printed)


def start_bucket(folder: Path, code: str, stack: ExitStack) -> str:
    """The lines to paste."""
    # The tests may run in another venv than the README's.
    code, log = code.replace(".venv/bin/python", sys.executable), folder / "r2.log"
    r2 = stack.enter_context(Terminal(folder).start(code, log))
    r2.wait_until(lambda: "R2_BUCKET_NAME" in log.read_text())
    return "".join(re.findall(r"^export .*\n", log.read_text(), re.MULTILINE))


def work(folder: Path, code: str) -> None:
    terminal, log = Terminal(folder), folder / "worker.log"
    terminal.environment["PWD"] = str(folder)
    with terminal.start(code, log) as worker:
        worker.wait_until(lambda: PROCESSED in log.read_text())
        # As Ctrl-C, which all processes in a terminal get.
        os.killpg(worker.pid, signal.SIGINT)
        assert worker.wait() == 0, worker.tail()


def objects(terminal: Terminal) -> dict[str, bytes]:
    """What the bucket holds, seen past the application."""
    r2 = boto3.client(
        "s3",
        endpoint_url=terminal.environment["R2_ENDPOINT_URL"],
        aws_access_key_id=terminal.environment["R2_ACCESS_KEY_ID"],
        aws_secret_access_key=terminal.environment["R2_SECRET_ACCESS_KEY"],
        region_name="auto",
    )
    bucket = terminal.environment["R2_BUCKET_NAME"]
    listed = r2.list_objects_v2(Bucket=bucket)["Contents"]
    keys = {each["Key"] for each in listed} - {MARKER_KEY}
    return {key: r2.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_the_files_of_the_deleted_clip_are_gone_and_all_others_are_there(story: Story) -> None:
    assert story.before == OF_CLIP_2 | OF_CLIP_20 | OF_OTHERS
    assert story.after == OF_CLIP_20 | OF_OTHERS
    assert story.end == OF_OTHERS


def test_the_readme_shows_what_its_commands_print(story: Story) -> None:
    assert len(story.printed) == 2
    for said, shown in story.printed:
        assert shown in said


def test_what_ran_is_what_pip_installed(story: Story) -> None:
    found = story.terminal.run("python -c 'import storage_audit; print(storage_audit.__file__)'")
    assert Path(found).is_relative_to(story.terminal.folder / "venv")


def test_clips_stand_in_the_place_of_projects(story: Story) -> None:
    with closing(sqlite3.connect(story.terminal.folder / "db.sqlite3")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert {"clips_clip", "storage_audit_knownproject"} <= tables
    assert "storage_audit_project" not in tables


@pytest.mark.parametrize("case", CASES)
def test_the_admin_works_in_projects_of_other_kinds(case: str, story: Story) -> None:
    package = story.terminal.folder / case
    package.mkdir()
    for name, text in CASES[case].items():
        start = "from newsroom.settings import *\n" if name == "settings.py" else ""
        (package / name).write_text(start + dedent(text))
    story.terminal.run(f"python manage.py test --settings {case}.settings")


@pytest.mark.only_on("postgresql")
def test_the_tables_come_and_the_admin_works_on_postgresql(tmp_path: Path) -> None:
    """In a database that Django's runner makes and drops, beside the one of these tests."""
    copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "on_postgresql.py").write_text(dedent(ON_POSTGRESQL))
    store = {f"R2_{name}": "http://made-up.example" for name in STORE}
    done = subprocess.run(
        [sys.executable, "manage.py", "test", "--noinput", "--settings=on_postgresql"],
        env={**os.environ, **store, "SECRET_KEY": "0" * 60, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_the_example_hold(story: Story, tmp_path: Path) -> None:
    """Elsewhere, as here its modules would have two names."""
    copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "."],
        env={**story.terminal.environment, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_for_adopters_has_every_setting() -> None:
    page = (ROOT / "docs" / "adopting.md").read_text()
    section = page.split("### Every entry of `STORAGE_AUDIT`")[1].split("\n## ")[0]
    defaults = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    assert defaults.keys() == {each.name.upper() for each in fields(Conf)}
    for each in fields(Conf):
        if isinstance(each.default, int | float):
            assert defaults[each.name.upper()] == f"`{each.default}`"
