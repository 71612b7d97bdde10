"""The command about findings, as a shell runs it."""

import csv
import json
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import exports
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.redaction import printable_text
from tests.builders import create_findings, create_orphans, read_states
from tests.keys import FOLDER, KEY, OTHER_KEY
from tests.promises import check_promises, create_projects, track_key
from tests.real_bucket import Bucket
from tests.run_command import Terminal, run_command, run_json
from tests.strange_keys import STRANGE_ORPHANS

pytestmark = pytest.mark.usefixtures("young_orphans_may_go")

DELETE = ["findings", "--kind", "orphaned", "--delete"]


def keys_listed(*options: str) -> list[str]:
    out, err, code = run_command("findings", "--json", *options)
    assert (err, code) == ("", 0)
    return [json.loads(line)["key"] for line in out.splitlines()]


# The list


def test_open_findings_are_listed_in_the_order_of_keys(bucket: Bucket) -> None:
    create_orphans(bucket, OTHER_KEY, KEY)
    create_orphans(bucket, "kept", state="ignored", note="mine", project_id=None)
    line = "leftover: {} (7 bytes, proj_9, tests): hierarchical\n"
    assert run_command("findings") == (line.format(KEY) + line.format(OTHER_KEY), "", 0)
    out, _err, _code = run_command("findings", "--state", "ignored")
    assert out == "leftover (ignored): kept (7 bytes, tests): hierarchical mine\n"


def test_the_options_choose(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    create_orphans(bucket, "logo.png", kind="unrecognised", project_id=None)
    create_orphans(bucket, "audio/proj_1/s1/a.mp3", kind="untracked", project_id="proj_1")
    assert keys_listed("--kind", "orphaned") == [KEY, OTHER_KEY]
    both = ["audio/proj_1/s1/a.mp3", "logo.png"]
    assert keys_listed("--kind", "untracked", "--kind", "unrecognised") == both
    assert keys_listed("--prefix", FOLDER) == [KEY, OTHER_KEY]
    assert keys_listed("--project", "proj_1") == both[:1]
    assert keys_listed("--key", KEY, "--key", "logo.png") == ["logo.png", KEY]
    assert keys_listed("--prefix", "Projects/") == []


def test_what_a_terminal_would_obey_is_written_out(bucket: Bucket) -> None:
    create_orphans(bucket, *STRANGE_ORPHANS)
    out, _err, _code = run_command("findings")
    assert all(char.isprintable() or char == "\n" for char in out)
    for key in STRANGE_ORPHANS:
        assert printable_text(key) in out
    assert set(keys_listed()) == set(STRANGE_ORPHANS)


def test_nothing_in_the_csv_is_a_formula(bucket: Bucket) -> None:
    hostile = ["=cmd()", "+1", "-1", "@sum", "\tx", "\rx", 'a"b,c', "<b>", "\x1b[2J"]
    create_orphans(bucket, *(key for key in hostile if key != "\rx"))
    create_findings(bucket, "\rx", evidence="=1", note="+2")
    out, _err, code = run_command("findings", "--csv")
    rows = list(csv.DictReader(StringIO(out)))
    assert code == 0 and len(rows) == len(hostile)
    for row in rows:
        assert not any(value.startswith(exports.FORMULA_STARTS) for value in row.values())
        assert "".join(row.values()).isprintable()
    cells = {row["key"] for row in rows}
    assert {"'=cmd()", "'+1", "'-1", "'@sum", "'\\tx", "'\\rx", 'a"b,c', "<b>", "\\x1b[2J"} == cells
    assert {row["evidence"] for row in rows} == {"hierarchical", "'=1"}


def test_the_list_is_one_query_however_long(bucket: Bucket) -> None:
    create_orphans(bucket, *(f"{FOLDER}{n}" for n in range(10)))
    with CaptureQueriesContext(connection) as captured:
        run_command("findings", "--csv")
    # Beside what begins and ends a transaction.
    asked = [each for each in captured.captured_queries if "storage_audit_" in each["sql"]]
    assert len(asked) == 1


# Acts


def test_findings_are_ignored_and_reopened(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    asked = ["findings", "--key", KEY]
    assert run_command(*asked, "--ignore", "ours") == ("Settled 1 finding.\n", "", 0)
    found = Finding.objects.get(key=KEY)
    assert (found.state, found.note) == ("ignored", "ours") and found.decided_by
    assert run_command(*asked, "--reopen") == ("Settled 1 finding.\n", "", 0)
    assert read_states() == {KEY: "open", OTHER_KEY: "open"}


def test_orphans_are_deleted_by_a_cleanup_of_the_queue(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    OrmQ.objects.all().delete()
    assert run_command(*DELETE) == (
        "Settled 2 findings.\n"
        "Cleanup ID, proj_9, bucket tests: queued. Usually starts within a minute.\n"
        "To follow: manage.py deletion_log ID --follow\n",
        "",
        0,
    )
    assert OrmQ.objects.count() == 1
    assert bucket.keys() == {KEY, OTHER_KEY}
    again, _err, code = run_command(*DELETE)
    assert (
        code == 1
        and f"  skipped: {KEY}: Cleanup ID covers this file, and its status is waiting." in again
    )


def test_orphans_are_deleted_here_and_now_and_what_stays_is_said(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, OTHER_KEY, last_modified=None)
    assert run_command(*DELETE, "--sync") == (
        "Settled 1 finding.\n"
        "Cleanup ID, proj_9, bucket tests: clean.\n"
        "Found 1: 1 deleted, 0 already gone, 0 kept, 0 failed.\n"
        f"  skipped: {OTHER_KEY}: Can't be deleted: its age is unknown.\n",
        "CommandError: Skipped 1 finding.\n",
        1,
    )
    assert read_states() == {KEY: "resolved", OTHER_KEY: "open"}
    assert bucket.keys() == {OTHER_KEY}
    cleanup = Cleanup.objects.get(parent=None)
    assert cleanup.requested_by and cleanup.origin.startswith("command on ")
    check_promises(bucket)


def test_a_dry_run_deletes_nothing_and_its_plan_can_be_run(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    assert run_command(*DELETE, "--dry-run") == (
        "Would act on 1 finding. Nothing was changed.\n"
        "Cleanup ID, proj_9, bucket tests: preview.\n"
        "Would delete 1 file.\n"
        f"  to be deleted: {KEY}: hierarchical\n"
        "Would keep 0 files.\n"
        "To delete exactly these files: manage.py findings --run-plan ID\n",
        "",
        0,
    )
    assert bucket.keys() == {KEY}
    plan = str(Cleanup.objects.get().pk)
    for choice in (["--key", OTHER_KEY], ["--state", "open"], ["--csv"]):
        _out, err, code = run_command("findings", "--run-plan", plan, "--sync", *choice)
        assert code == 2 and err
    assert bucket.keys() == {KEY}
    out, _err, code = run_command("findings", "--run-plan", plan, "--sync")
    assert code == 0 and "1 deleted" in out
    assert not bucket.keys()
    assert run_command("findings", "--run-plan", plan)[2] == 2


def test_a_plan_of_a_project_that_lives_again_is_refused(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    run_command(*DELETE, "--dry-run")
    create_projects("proj_9")
    plan = str(Cleanup.objects.get().pk)
    _out, err, code = run_command("findings", "--run-plan", plan, "--sync")
    assert code == 2 and "Project proj_9 exists" in err
    assert bucket.keys() == {KEY}


def test_blocked_cleanup_exits_with_1_and_says_how_to_approve_it(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    create_orphans(bucket, KEY)
    out, err, code = run_command(*DELETE, "--sync")
    assert code == 1 and "approve_cleanup ID" in out and "Not finished" in err


def test_objects_are_assigned_tracked_and_untracked(bucket: Bucket) -> None:
    create_projects("proj_1")
    create_orphans(bucket, KEY)
    create_orphans(bucket, OTHER_KEY, kind="untracked")
    track_key(bucket, "gone", "proj_9")
    create_findings(bucket, "gone", kind="missing")
    done = ("Settled 1 finding.\n", "", 0)
    assert run_command("findings", "--key", KEY, "--assign", "proj_1") == done
    assert run_command("findings", "--kind", "untracked", "--track") == done
    assert run_command("findings", "--kind", "missing", "--untrack") == done
    rows = R2Object.objects.values_list("key", "project_id", "source")
    assert set(rows) == {(KEY, "proj_1", "assigned"), (OTHER_KEY, "proj_9", "backfill")}


def test_ignored_file_is_not_tracked_and_the_command_says_what_to_do(bucket: Bucket) -> None:
    [one] = create_orphans(bucket, KEY, kind="untracked", state="ignored", note="ours")
    out, err, code = run_command("findings", "--key", KEY, "--state", "ignored", "--track")
    told = f"Somebody ignored finding {one.pk} about this file. Reopen that finding first."
    assert told in out + err and code == 1
    assert read_states() == {KEY: "ignored"}


def test_json_tells_all_of_an_act(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, OTHER_KEY, last_modified=None)
    facts, code = run_json(*DELETE, "--sync")
    assert code == 1
    assert facts["done"] == 1
    assert facts["left"] == [{"key": OTHER_KEY, "reason": "Can't be deleted: its age is unknown."}]
    assert facts["cleanups"][0]["objects"]["deleted"] == 1


def test_only_the_first_that_are_left_are_shown(bucket: Bucket, monkeypatch: Any) -> None:
    monkeypatch.setattr("storage_audit.management.commands.findings.KEYS_SHOWN", 1)
    create_orphans(bucket, KEY, OTHER_KEY, last_modified=None)
    out, _err, _code = run_command(*DELETE)
    assert out.count("  skipped: ") == 1 and "  and 1 more; --json shows all\n" in out


@pytest.mark.parametrize(
    "options",
    [
        ["--delete"],
        ["--kind", "orphaned", "--ignore", " "],
        ["--kind", "orphaned", "--ignore", ""],
        ["--kind", "orphaned", "--assign", "proj_9"],
        ["--kind", "orphaned", "--assign", ""],
        ["--kind", "orphaned", "--assign", "proj_1", "--dry-run"],
        ["--kind", "orphaned", "--track", "--untrack"],
        ["--kind", "orphaned", "--track", "--csv"],
        ["--kind", "orphaned", "--track", "--sync"],
        ["--dry-run"],
        ["--csv", "--json"],
        ["--kind", "strange"],
        ["--key", "\udcff"],
        ["--run-plan", "1"],
        ["--run-plan", str(uuid4())],
    ],
)
def test_wrong_use_exits_with_2_and_changes_nothing(
    bucket: Bucket, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    create_projects("proj_1")
    create_orphans(bucket, KEY)
    out, err, code = run_command("findings", *options)
    assert (out, code) == ("", 2)
    assert err or "error: " in capsys.readouterr().err
    assert read_states() == {KEY: "open"} and bucket.keys() == {KEY}
    assert not R2Object.objects.exists() and not Cleanup.objects.exists()


def test_a_store_that_cannot_be_reached_exits_with_1(bucket: Bucket, settings: Settings) -> None:
    create_orphans(bucket, KEY)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": "http://127.0.0.1:9"}
    out, err, code = run_command(*DELETE)
    assert (out, code) == ("", 1) and "Could not connect" in err
    assert not Cleanup.objects.exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("yes ", 0), ("", 1), ("no", 1)])
def test_a_person_at_a_terminal_is_asked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    create_orphans(bucket, KEY)
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Terminal())

    def ask(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("builtins.input", ask)
    assert run_command(*DELETE, "--sync")[2] == code
    assert asked == ["Delete leftover files: continue with 1 finding? [y/N] "]
    assert bool(bucket.keys()) == bool(code)
    assert run_command(*DELETE, "--dry-run")[2] == 0
    assert len(asked) == 1


def test_findings_that_come_after_the_question_are_left(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_orphans(bucket, KEY)
    monkeypatch.setattr("sys.stdin", Terminal())

    def ask(question: str) -> str:
        create_orphans(bucket, OTHER_KEY)
        return "y"

    monkeypatch.setattr("builtins.input", ask)
    assert run_command(*DELETE, "--sync")[2] == 0
    assert bucket.keys() == {OTHER_KEY}


def test_nobody_is_asked_who_says_so(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    create_orphans(bucket, KEY)
    monkeypatch.setattr("sys.stdin", Terminal())
    assert run_command(*DELETE, "--sync", "--no-input")[2] == 0
    assert not bucket.keys()
