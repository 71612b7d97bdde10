"""Reports of the doctor: kept, compared, and shown side by side."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import tasks
from storage_audit.doctor import compare_processes, run_checks, store_probes
from storage_audit.doctor.compare_processes import WORKER_ANSWERS_WITHIN, Comparison
from storage_audit.doctor.environment import Variable, probe_environment, read_environment
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import Result, Status
from storage_audit.doctor.run_checks import run_probes, run_probes_everywhere
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.database import LATEST_MIGRATION, lock_table
from tests.real_bucket import Bucket
from tests.run_command import run_command

Context = HealthReport.Context
OK, WRONG = Status.OK, Status.WRONG
RED = Result(OK, "It is red.", facts={"colour": "red"})
DIFFERS = '<tr class="audit-differs">'


def report(context: str, run: UUID, *results: tuple[str, Result], **values: Any) -> HealthReport:
    probes = [result.to_json(name) for name, result in results]
    facts = {"host": "a", "pid": 1, **values}
    return HealthReport.objects.create(run=run, context=context, probes=probes, **facts)


def colour(value: str, status: Status = OK, **readings: Any) -> tuple[str, Result]:
    advice = "" if status == OK else f"Mend {value}."
    return "colour", Result(status, f"It is {value}.", advice, {"colour": value}, readings)


def answered(*contexts: str, at: timedelta = timedelta(0)) -> Comparison:
    run, when = uuid4(), timezone.now() - at
    return Comparison.of([report(each, run, colour("red"), at=when) for each in contexts][0])


# Kept


@pytest.mark.django_db
def test_the_latest_runs_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "KEPT_RUNS", 3)
    monkeypatch.setattr(run_checks, "PROBES", (run_checks.Probe("database", lambda: RED),))
    runs = [uuid4() for _ in range(5)]
    for run_id in runs:
        for context in Context.values:
            run_probes(context, run_id)
    kept = HealthReport.objects.values_list("run", flat=True)
    assert sorted(map(str, kept)) == sorted(map(str, runs[-3:] * 3))


# Compared


@pytest.mark.django_db
def test_only_settings_that_differ_are_highlighted() -> None:
    run_id = uuid4()
    asked = report("shell", run_id, colour("red", took=1), ("same", RED))
    report("worker", run_id, colour("blue", took=2), ("same", RED))
    compared = Comparison.of(asked)
    assert [tuple(each) for each in compared.differences] == [("colour", "colour", ["red", "blue"])]
    assert {row.probe: row.differs for row in compared.rows} == {"colour": True, "same": False}
    assert not compared.is_wrong


@pytest.mark.django_db
def test_a_fact_that_only_one_has_differs_unless_the_other_has_none_at_all() -> None:
    run_id, more = uuid4(), Result(OK, "Fine.", facts={"colour": "red", "proxy": "p"})
    asked = report("shell", run_id, ("way", more), ("other", RED))
    report("worker", run_id, ("way", RED), ("other", Result(Status.NOT_CHECKED, "No.", "Wait.")))
    compared = Comparison.of(asked)
    assert [tuple(each) for each in compared.differences] == [("way", "proxy", ["p", "–"])]
    assert {row.probe: row.differs for row in compared.rows} == {"way": True, "other": True}


@pytest.mark.django_db
def test_what_is_wrong_comes_first_and_what_all_say_is_said_once() -> None:
    run_id = uuid4()
    tired = ("mood", Result(Status.WARNING, "Tired.", "Sleep."))
    asked = report("shell", run_id, tired, ("well", RED), colour("red", WRONG))
    report("worker", run_id, tired, ("well", RED), colour("red", WRONG))
    compared = Comparison.of(asked)
    assert [row.probe for row in compared.rows] == ["colour", "mood", "well"]
    told = [(each.status, each.probe, each.processes) for each in compared.problems]
    both = ["shell", "queue worker"]
    assert told == [(WRONG, "colour", both), (Status.WARNING, "mood", both)]
    assert compared.is_wrong


@pytest.mark.django_db
@pytest.mark.parametrize(("age", "told"), [(50, ["web server, 50 minutes ago"]), (70, [])])
def test_the_latest_report_of_a_web_server_is_shown_and_decides_nothing(
    age: int, told: list[str]
) -> None:
    now = timezone.now()
    report("web", uuid4(), colour("green"), at=now - timedelta(days=1))
    report("web", uuid4(), colour("red", WRONG), at=now - timedelta(minutes=age))
    run_id = uuid4()
    asked = report("shell", run_id, colour("red"))
    report("worker", run_id, colour("red"))
    compared = Comparison.of(asked)
    assert [each.context for each in compared.reports] == ["shell", "worker", "web"]
    assert [each for problem in compared.problems for each in problem.processes] == told
    assert not compared.is_wrong
    assert compared.rows[0].differs


@pytest.mark.django_db
def test_the_earlier_report_of_a_silent_worker_shows_why_it_may_be_silent() -> None:
    before, now = timezone.now() - timedelta(hours=2), timezone.now() - timedelta(minutes=1)
    report("worker", uuid4(), colour("red", WRONG), at=before)
    compared = Comparison.of(report("shell", uuid4(), colour("blue"), at=now))
    assert [each.values for each in compared.differences] == [["blue", "red"]]
    assert [each.processes for each in compared.problems] == [[]]
    assert compared.is_worker_silent and compared.is_wrong


@pytest.mark.django_db
def test_a_worker_may_answer_for_a_while() -> None:
    assert answered("shell").awaits_worker
    assert not answered("shell").is_wrong
    late = answered("shell", at=timedelta(seconds=31))
    assert not late.awaits_worker
    assert [each.summary for each in late.problems] == [
        "No queue worker answered within 30 seconds. It is stopped, busy, or its clock is wrong."
    ]
    assert not answered("shell", "worker", at=timedelta(seconds=31)).problems


# The environment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_variable_says_where_it_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.delenv("R2_JURISDICTION", raising=False)
    monkeypatch.setenv("R2_BUCKET_NAME", "media")
    monkeypatch.setenv("CLEANUP_LIMIT_SHARE", "0.1")
    (folder / ".env").write_text(
        "# mine\nexport R2_BUCKET_NAME='media'\nCLOUDFLARE_ACCOUNT_ID = \"abc\"\nOTHER=1\nbroken\n"
    )
    found = read_environment()
    assert str(found["R2_BUCKET_NAME"]) == "media (env file)"
    assert str(found["CLEANUP_LIMIT_SHARE"]) == "0.1 (set by the program)"
    assert str(found["R2_JURISDICTION"]) == "not set (default)"
    assert found["PATH"] == Variable(True, os.environ["PATH"], "environment")
    assert not found["CLOUDFLARE_ACCOUNT_ID"].is_set
    assert "OTHER" not in found
    result = probe_environment()
    assert result.status == Status.WARNING
    assert f"not read these variables from {folder}/.env: CLOUDFLARE_AC" in result.summary
    assert "Restart it" in result.advice and "move the file there" in result.advice


def test_what_a_file_leaves_empty_is_as_if_it_were_not_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN", raising=False)
    monkeypatch.setenv("R2_ACCOUNT_ID", "")
    (folder / ".env").write_text('CLOUDFLARE_API_TOKEN=\nR2_ACCOUNT_ID=""\n')
    found = read_environment()
    for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCOUNT_ID"):
        assert str(found[name]) == "not set (default)"
    assert probe_environment().status == Status.OK


@pytest.mark.parametrize(
    "name",
    [
        "CLOUDFLARE_API_TOKEN",
        "R2_SECRET_ACCESS_KEY",
        "DATABASE_URL",
        "R2_PASS",
        "CF_AUTH",
        "AWS_CREDENTIALS",
        "AWS_PROXY_PWD",
    ],
)
def test_of_a_secret_only_so_much_is_shown_that_two_can_be_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shown = []
    for secret in ("first-secret", "second-secret", "first-secret"):
        monkeypatch.setenv(name, secret)
        variable = read_environment()[name]
        assert variable.is_set
        assert secret not in str(variable)
        shown.append(variable.visible_value)
    assert shown[0] == shown[2] != shown[1]


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("user", ["ben:hidden", "ben:hid/den", "hidden"])
def test_a_proxy_keeps_its_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, scheme: str, user: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": "https://r2.example.com"}
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}{user}@proxy:3128")
    for result in (probe_environment(), store_probes.probe_network()):
        kept = str(result.to_json("environment"))
        assert "@proxy:3128" in kept
        assert "hid" not in kept


# Shown


@pytest.fixture
def client(bucket: Bucket) -> Client:
    return superuser_client()


def test_the_button_runs_the_health_check_here_and_asks_a_worker(client: Client) -> None:
    listed = page_text(client.get(admin_url("healthreport")))
    assert f'action="{admin_url("healthreport", "add")}"' in listed
    answer = client.post(admin_url("healthreport", "add"))
    made = HealthReport.objects.get()
    assert (made.context, made.pid) == ("web", os.getpid())
    assert answer.headers["Location"] == admin_url("healthreport", "change", made.pk)
    assert "storage_audit.tasks.diagnose" in OrmQ.objects.get().func()
    assert LogEntry.objects.get().object_id == str(made.pk)
    shown = page_text(client.get(answer.headers["Location"]))
    assert "Waiting for the queue worker&#x27;s report." in shown
    assert '<meta http-equiv="refresh" content="3">' in shown
    assert tasks.diagnose(*OrmQ.objects.get().task["args"])
    shown = page_text(client.get(answer.headers["Location"]))
    assert "http-equiv" not in shown
    assert "No check failed" in shown or "All checks passed." in shown
    assert "Differences between processes" not in shown
    assert DIFFERS not in shown


def test_a_worker_that_comes_too_late_goes_on_to_its_deletions(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    run_probes_everywhere(HealthReport.Context.SHELL)
    run, asked_at = OrmQ.objects.get().task["args"]
    late = asked_at - WORKER_ANSWERS_WITHIN
    assert tasks.diagnose(run, late) == "too late"
    assert "Skipped the health check: it was requested 0:00:3" in caplog.text
    assert HealthReport.objects.get().context == HealthReport.Context.SHELL


def test_who_may_only_run_health_checks_is_told_that_it_is_done(bucket: Bucket) -> None:
    answer = staff_client("add_healthreport").post(admin_url("healthreport", "add"), follow=True)
    assert "The health report is saved." in page_text(answer)
    assert HealthReport.objects.get().context == "web"


def test_viewers_have_a_button_that_says_whom_to_ask(bucket: Bucket) -> None:
    made = report("web", uuid4(), colour("red"))
    client = staff_client("view_healthreport")
    for url in (admin_url("healthreport"), admin_url("healthreport", "change", made.pk)):
        shown = page_text(client.get(url))
        assert 'value="Check now" disabled> <small>You need permission.' in shown
        assert shown.count("Check now") == 1
    assert client.post(admin_url("healthreport", "add")).status_code == 403
    assert HealthReport.objects.count() == 1


def test_opening_the_page_runs_no_health_check(client: Client) -> None:
    assert "Check now" in page_text(client.get(admin_url("healthreport", "add")))
    assert not HealthReport.objects.exists()


def test_the_page_marks_what_differs_and_escapes_it(client: Client) -> None:
    run_id = uuid4()
    strange = "<b>\x1b[2J"
    asked = report("web", run_id, colour("red"))
    report("worker", run_id, colour(strange, WRONG, answer="<i>no</i>"), host="far")
    shown = page_text(client.get(admin_url("healthreport", "change", asked.pk)))
    assert '<h2 id="audit-answer">1 check failed.</h2>' in shown
    assert "Fix the first problem below, then check again." in shown
    assert "Mend &lt;b&gt;\\x1b[2J." in shown
    assert "&lt;i&gt;no&lt;/i&gt;" in shown
    assert "process 1 on far" in shown
    assert shown.count(DIFFERS) == 2
    assert re.search(r"Queue worker</span> <code.*?>&lt;b&gt;", shown, re.I)
    listed = page_text(client.get(admin_url("healthreport")))
    assert '<span class="audit-status audit-wrong">1 wrong</span>' in listed


def test_a_database_that_lacks_migrations_is_told_at_once(client: Client) -> None:
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("storage_audit", LATEST_MIGRATION)
    try:
        answer = client.post(admin_url("healthreport", "add"), follow=True)
    finally:
        recorder.record_applied("storage_audit", LATEST_MIGRATION)
    assert "Migrations are missing" in page_text(answer)


def test_a_report_that_the_database_does_not_take_is_told_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_table(monkeypatch, "storage_audit_healthreport"):
        answer = client.post(admin_url("healthreport", "add"))
    shown = page_text(client.get(answer.headers["Location"]))
    assert "end the other process&#x27;s open transaction" in shown
    assert ("this report is not saved" in shown) == (connection.vendor == "postgresql")


def test_the_shell_shows_a_table_the_worst_and_the_differences(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_processes, "WORKER_ANSWERS_WITHIN", timedelta(0))
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True, "BUCKET": "empty"}
    facts = Result(OK, "All right.", facts={"BUCKET": "tests (settings)"})
    report("web", uuid4(), ("settings", facts), at=timezone.now() - timedelta(minutes=5))
    out, err, code = run_command("r2_doctor")
    assert code == 1
    assert err == "CommandError: Something is wrong: see above.\n"
    heads, table, *problems, differences = out.split("\n\n")
    assert re.fullmatch(
        r"shell: process \d+ on \S+\nweb server: process 1 on a, latest report, 5 minutes old",
        heads,
    )
    lines = table.splitlines()
    assert lines[0].split() == ["probe", "shell", "web", "server"]
    assert lines[1].split() == ["marker", "wrong"]
    assert "* settings          ok           ok" in lines
    assert problems[0].startswith("WRONG: marker (shell): Bucket empty holds no marker")
    assert "\n  Do: If the bucket or the database is the wrong one" in problems[0]
    assert (
        "  settings, BUCKET\n    shell: empty (settings)\n    web server: tests (settings)\n"
        in differences
    )
