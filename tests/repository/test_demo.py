import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from devtools.demo.__main__ import lock_folder, run_demo
from devtools.demo.browser import Browser, Refused
from devtools.demo.report import find_problems, print_proof
from devtools.processes import Child, StartError
from tests.paths import ROOT

# It has a database of its own.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]

BEFORE = {"proj_1/a": (1, "a"), "proj_1/b": (2, "b"), "proj_10/a": (3, "c")}
KEPT = {"proj_10/a": (3, "c")}
OWNERS = {"proj_1/a": "proj_1", "proj_1/b": "proj_1", "proj_10/a": "proj_10"}


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "devtools.demo", "--folder", str(folder), *arguments]


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(folder, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@contextmanager
def served(folder: Path) -> Iterator[tuple[Child, str]]:
    """Run the demo; give it with all that it had printed when it began to serve."""
    log = folder.with_suffix(".log")
    with Child("demo", command(folder), env=os.environ, log=log, cwd=ROOT, grace=30) as child:
        child.wait_until(lambda: "To stop:" in log.read_text(), timeout=300)
        yield child, log.read_text()


def processes_of(folder: Path) -> dict[int, str]:
    """The programs whose home is in this folder, as it is for all that the demo starts."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={folder}".encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def workers_of(folder: Path) -> list[int]:
    """The queue worker that the demo began, without the processes that this one began."""
    # A program that is about to become the worker names it too, and while it does so no words
    # can be read.
    lines = processes_of(folder).items()
    workers = [pid for pid, line in lines if "qcluster" in line and "prctl" not in line]
    return [pid for pid in workers if os.getpgid(pid) == pid]


def printed(pattern: str, output: str) -> str:
    found = re.search(pattern, output, re.MULTILINE)
    assert found, output
    return found[1]


def test_once_tells_the_story_and_leaves_no_process(tmp_path: Path) -> None:
    done = run(tmp_path / "demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    notes = dict(re.findall(r"^  (\S.*?) +[\d,]+  (.*)$", done.stdout.split("After:")[1], re.M))
    assert notes["proj_proj_1_s1_media.mp4"] == "deleted"
    assert notes["proj_proj_10_s1_media.mp4"] == "kept (proj_10)"
    assert notes[r"thumbnails/proj_1/s2/first\tframe.jpg"] == "deleted"
    assert notes["proj_1_x_s1_media.mp4"] == "kept, owner unclear"
    assert notes["proj_1_notes.txt"] == "kept, owner unclear"
    assert "The name also fits an existing project: proj_1_x." in done.stdout
    assert "12 found = 10 deleted + 0 already gone + 2 kept + 0 failed" in done.stdout
    assert "All 10 objects of proj_1 are gone." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert processes_of(tmp_path) == {}


def test_it_serves_until_sigterm_on_another_port_when_8000_is_taken(tmp_path: Path) -> None:
    with hold_port(8000), served(tmp_path / "demo") as (child, output):
        address = printed(r"(http://127\.0\.0\.1:\d+)/admin/$", output)
        assert not address.endswith(":8000")
        browser = Browser(address)
        with pytest.raises(Refused):
            browser.log_in("admin", "wrong")
        browser.log_in("admin", printed(r"^Password +(\S+)$", output))
        assert "storage_audit" in browser.get("/admin/")
        cleanup = printed(r"^Project cleanup (\S+)", output)
        page = f"/admin/storage_audit/cleanup/{cleanup}/change/"
        assert cleanup in browser.get(page)
        assert browser.get("/static/admin/css/base.css")

        refused = run(tmp_path / "demo", "--once")
        assert refused.returncode == 1
        assert "Another demo is running in" in refused.stderr
        assert browser.get("/admin/")

        files = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
        assert [path for path in files if path.stat().st_mode & 0o077] == []
        child.stop()
        assert child.wait() == 128 + signal.SIGTERM
    assert processes_of(tmp_path) == {}


@contextmanager
def hold_port(port: int) -> Iterator[None]:
    try:
        server = socket.create_server(("127.0.0.1", port))
    except OSError:
        yield
    else:
        with server:
            yield


def test_when_the_worker_dies_the_rest_is_stopped(tmp_path: Path) -> None:
    with served(tmp_path / "demo") as (child, _output):
        # It begins just before the demo says how to stop it.
        child.wait_until(lambda: bool(workers_of(tmp_path)))
        [first] = workers_of(tmp_path)
        os.kill(first, signal.SIGKILL)
        assert child.wait() == 1
        assert child.log and "The queue worker stopped unexpectedly" in child.log.read_text()
    assert processes_of(tmp_path) == {}


def test_a_folder_that_is_no_demo_s_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StartError, match="no demo made"), lock_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_s_files_are_removed(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        (tmp_path / "db.sqlite3").touch()
        (tmp_path / "r2").mkdir()
    with lock_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["demo.lock"]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (BEFORE, KEPT, []),
        (BEFORE, KEPT | {"proj_1/b": (2, "b")}, ["still there: proj_1/b"]),
        (BEFORE, {}, ["gone: proj_10/a"]),
        (BEFORE, {"proj_10/a": (3, "other")}, ["changed: proj_10/a"]),
        (BEFORE, KEPT | {"new\n": (1, "a")}, [r"new: new\n"]),
        (KEPT, KEPT, ["new: proj_1/a", "new: proj_1/b"]),
        (BEFORE | {"x": (1, "a")}, KEPT, ["gone: x"]),
    ],
)
def test_every_problem_is_found(
    before: dict[str, tuple[int, str]],
    after: dict[str, tuple[int, str]],
    found: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert find_problems("proj_1", OWNERS, before, after) == found
    assert print_proof("proj_1", OWNERS, before, after) == (not found)
    output = capsys.readouterr().out
    assert all(problem in output for problem in found)


def test_a_story_that_ends_badly_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devtools.demo.__main__.running_site", nullcontext)
    monkeypatch.setattr("devtools.demo.story.run_story", lambda site: False)
    with pytest.raises(SystemExit) as ended:
        run_demo(tmp_path, once=True)
    assert ended.value.code == 1
