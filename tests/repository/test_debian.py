"""What `make test` needs from the system: installed, or named with the command that installs it."""

import os
import shutil
from pathlib import Path

import pytest

from devtools import debian

# What it asks is no database.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]


@pytest.fixture
def dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's own program. Elsewhere, one that answers as it does."""
    if not shutil.which("dpkg-query"):
        put(tmp_path, "dpkg-query", "echo dpkg installed")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, and empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "SBIN", str(tmp_path))
    return tmp_path


@pytest.fixture
def wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt.txt with one package that is there and one that is not."""
    path = tmp_path / "apt.txt"
    path.write_text("dpkg\nno-such-package\n")
    monkeypatch.setattr(debian, "PACKAGES_FILE", path)
    return path


def be(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)


def put(folder: Path, program: str, script: str = "") -> None:
    path = folder / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


def test_nothing_is_said_or_done_when_all_are_there(
    wants: Path, dpkg: None, capfd: pytest.CaptureFixture[str]
) -> None:
    wants.write_text("dpkg\n")
    debian.require_packages()
    assert capfd.readouterr() == ("", "")


def test_a_person_is_told_what_to_run(
    wants: Path, dpkg: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, 1000)
    with pytest.raises(SystemExit) as stopped:
        debian.require_packages()
    assert stopped.value.code == (
        "missing: no-such-package. Run: sudo apt-get install --yes --no-install-recommends"
        " no-such-package"
    )


def test_root_installs_what_is_missing(
    wants: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, 0)
    put(programs, "dpkg-query", "echo dpkg installed; echo no-such-package not-installed")
    put(programs, "apt-get", f"echo $DEBIAN_FRONTEND $* >> {programs}/done")
    debian.require_packages()
    assert (programs / "done").read_text() == (
        "noninteractive update\n"
        "noninteractive install --yes --no-install-recommends no-such-package\n"
    )


def test_a_failed_installation_is_named(
    wants: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, 0)
    put(programs, "dpkg-query")
    put(programs, "apt-get", "exit 100")
    with pytest.raises(SystemExit, match="FAILED: apt-get update"):
        debian.require_packages()


def test_elsewhere_three_programs_are_all_that_is_asked_for(programs: Path) -> None:
    with pytest.raises(SystemExit, match="missing: a browser.*chromium.*google-chrome"):
        debian.require_packages()
    put(programs, "google-chrome")
    with pytest.raises(SystemExit, match="missing: promtool"):
        debian.require_packages()
    put(programs, "promtool")
    with pytest.raises(SystemExit, match="missing: pgbouncer"):
        debian.require_packages()
    put(programs, "pgbouncer")
    debian.require_packages()


def test_programs_from_elsewhere_will_do_on_debian(programs: Path) -> None:
    put(programs, "dpkg-query")
    assert debian.missing_packages() == ["chromium", "promtool", "pgbouncer"]
    put(programs, "google-chrome")
    assert debian.missing_packages() == ["promtool", "pgbouncer"]
    put(programs, "promtool")
    put(programs, "pgbouncer")
    assert debian.missing_packages() == []
