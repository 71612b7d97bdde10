"""`deletion_log`: a cleanup whole, from its tables, and what becomes of it while one looks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.management.commands import deletion_log
from tests.builders import create_cleanup
from tests.paths import ROOT
from tests.processes import database_url
from tests.promises import request_cleanup
from tests.real_bucket import Bucket
from tests.run_command import run_command

Status = Cleanup.Status
OVER = (*Cleanup.ENDED, Status.PLANNED)
pytestmark = [pytest.mark.usefixtures("transactional_db"), pytest.mark.slow]


def printed(cleanup: Cleanup, *options: str) -> tuple[list[dict[str, Any]], int]:
    out, _err, code = run_command("deletion_log", str(cleanup.pk), "--json", *options)
    return [json.loads(line) for line in out.splitlines()], code


def of_type(kind: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] == kind]


def end(cleanup: Cleanup, status: str, **values: Any) -> None:
    Cleanup.objects.filter(pk=cleanup.pk).update(
        status=status, **{"next_attempt_at": None, **values}
    )


@pytest.fixture
def done(bucket: Bucket) -> Cleanup:
    bucket.upload("proj_1")
    bucket.put("projects/proj_1/scenes/s1/media/\x1b[2K.mp4")
    return runner.run_to_end(request_cleanup("proj_1").pk)


def test_it_prints_a_cleanup_whole(done: Cleanup) -> None:
    out, err, code = run_command("deletion_log", str(done.pk))
    assert (err, code) == ("", 0)
    for fact in ("project: proj_1", "bucket: tests", "strategy: many objects in a call"):
        assert fact in out.splitlines()
    _facts, _, rest = out.partition("\ntimeline:\n")
    timeline, _, rest = rest.partition("\n\n")
    assert [line.split("  ", 2)[2].split(": ")[0] for line in timeline.splitlines()] == [
        event.step for event in done.events.all()
    ]
    for event, line in zip(done.events.all(), timeline.splitlines(), strict=True):
        assert line.startswith(f"  {event.at.isoformat(' ', 'milliseconds')}  {event.step}: ")
        assert event.message in line
    assert rest.count("follow-up check ID: waiting, ") == 3
    for line in ("  found: 2 files, 11 bytes", "  deleted: 2 files, 11 bytes"):
        assert line in rest.replace("\xa0", " ").splitlines()
    status, answer = rest.splitlines()[-2:]
    assert status == "clean"
    assert answer.startswith("Clean. All 2 files are gone, confirmed ")


def test_it_prints_items_to_those_who_ask(done: Cleanup) -> None:
    assert ".mp4" not in run_command("deletion_log", str(done.pk))[0]
    out = run_command("deletion_log", str(done.pk), "--items")[0]
    assert "  deleted: projects/proj_1/scenes/s1/media/\\x1b[2K.mp4: Deleted" in out.splitlines()
    assert out.count(".mp4") == 2


def test_each_line_of_json_is_an_object(done: Cleanup) -> None:
    lines, code = printed(done, "--items")
    assert code == 0
    events = of_type("event", lines)
    assert [line["message"] for line in events] == [event.message for event in done.events.all()]
    assert events[-1]["data"] == done.events.latest("at", "pk").data
    assert {line["key"] for line in of_type("item", lines)} == {i.key for i in done.items.all()}
    assert {line["id"] for line in of_type("child", lines)} == {"ID"}
    assert len(of_type("child", lines)) == 3
    assert lines[-1]["type"] == "cleanup"
    facts = lines[-1]
    assert (facts["status"], facts["deleted"], facts["deleted_bytes"]) == ("clean", 2, 11)
    assert facts["project_id"] == "proj_1"


def test_totals_of_an_open_cleanup_are_what_its_items_say(bucket: Bucket) -> None:
    bucket.put("projects/proj_1/scenes/s1/media/a.mp4")
    made = create_cleanup(project_id="proj_1", dry_run=True)
    runner.run_to_end(made.pk)
    lines, _code = printed(made)
    assert (lines[-1]["status"], lines[-1]["found"]) == ("planned", 1)


def test_nothing_is_changed(done: Cleanup) -> None:
    before = [list(Cleanup.objects.values()), list(done.events.values())]
    run_command("deletion_log", str(done.pk), "--items", "--follow")
    assert [list(Cleanup.objects.values()), list(done.events.values())] == before


def test_what_is_pruned_says_where_it_is() -> None:
    made = create_cleanup(project_id="proj_1")
    end(made, "clean", pruned_at=timezone.now(), archive="a.gz", archive_digest="0" * 64)
    assert "moved to the file a.gz" in run_command("deletion_log", str(made.pk))[0]


@pytest.mark.parametrize("given", ["9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983", "proj_1", "", "\x1b[2K"])
def test_an_id_that_is_none_is_wrong_use(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err, code = run_command("deletion_log", given)
    assert (out, code) == ("", 2)
    err += capsys.readouterr().err  # of argparse
    assert "There is no deletion ID." in err or "is not a deletion ID" in err
    assert "\x1b" not in err


# To follow


@pytest.mark.parametrize(
    "status", [s for s in Status if s not in ("pending", "running", "retrying")]
)
def test_it_ends_when_the_cleanup_is_at_rest(status: str) -> None:
    made = (
        create_cleanup(project_id="proj_1", kind="verify")
        if status == "differs"
        else create_cleanup(project_id="proj_1")
    )
    end(made, status)
    _lines, code = printed(made, "--follow")
    assert code == (0 if status in OVER else 1)
    assert printed(made)[1] == 0


def test_one_that_fails_is_followed_no_further_and_one_that_is_tried_soon_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = timezone.now() + timedelta(minutes=1)
    made = create_cleanup(project_id="proj_1")
    end(made, "failed", next_attempt_at=soon)
    assert printed(made, "--follow")[1] == 1
    end(made, "retrying", next_attempt_at=soon)
    monkeypatch.setattr(time, "sleep", lambda seconds: end(made, "clean"))
    assert printed(made, "--follow")[1] == 0


def test_each_event_is_printed_once_and_in_order_also_one_that_is_committed_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = create_cleanup(project_id="proj_1")
    steps = [["plan", "delete"], [], ["late"], ["closed"]]

    def sleep(seconds: float) -> None:
        for step in steps.pop(0):
            made.record(step, step)
            if step == "late":  # Its transaction began long before the others'.
                made.events.filter(step=step).update(at=made.created_at - timedelta(minutes=1))
        if not steps:
            end(made, "clean")

    monkeypatch.setattr(time, "sleep", sleep)
    lines, code = printed(made, "--follow")
    assert code == 0
    said = [line["step"] for line in of_type("event", lines)]
    assert said == ["request", "plan", "delete", "late", "closed"]
    assert lines[-1]["status"] == "clean"
    assert [line["step"] for line in of_type("event", printed(made)[0])][0] == "late"


def test_changes_while_the_log_is_printed_are_said_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = create_cleanup(project_id="proj_1")
    monkeypatch.setattr(time, "sleep", lambda seconds: end(made, "clean", attempts=2))
    head, _, rest = run_command("deletion_log", str(made.pk), "--follow")[0].partition(
        "\ntimeline:\n"
    )
    assert "attempts: 0" in head.splitlines() and "next attempt: " in head
    _, _, changed = rest.partition("\nchanged since:\n")
    assert changed.splitlines()[:2] == ["  next attempt: none", "  attempts: 2"]
    assert "changed since" not in run_command("deletion_log", str(made.pk))[0]


@contextmanager
def following(cleanup: Cleanup) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"DATABASE_URL": database_url()}
    argv = [sys.executable, "manage.py", "deletion_log", str(cleanup.pk), "--follow", "--json"]
    environment["DJANGO_SETTINGS_MODULE"] = "autoshorts.settings"
    with subprocess.Popen(
        argv, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_another_process_follows_what_happens_here_until_it_is_told_to_stop() -> None:
    made = create_cleanup(project_id="proj_1")
    with following(made) as child:
        assert child.stdout and child.stderr
        assert json.loads(child.stdout.readline())["step"] == "request"
        with transaction.atomic():
            made.record("plan", "begun")
        assert json.loads(child.stdout.readline())["message"] == "begun"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert "continues" in child.stderr.read()
    assert deletion_log.POLL_SECONDS <= 1


def test_it_ends_quietly_when_its_reader_has_read_enough() -> None:
    made = create_cleanup(project_id="proj_1")
    with following(made) as child:
        assert child.stdout and child.stderr
        child.stdout.readline()
        child.stdout.close()
        made.record("plan", "begun")
        assert child.wait(20) == 141
        assert child.stderr.read() == ""
