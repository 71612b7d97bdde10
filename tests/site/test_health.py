"""What the load balancer and the monitoring are told, from real databases and real servers."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from pytest_django import Settings

from autoshorts import settings as site_settings
from devtools.environment import made_up_environment
from devtools.postgres import temporary_database_url
from storage_audit import queue
from storage_audit.alerts import alert_rules, lateness
from storage_audit.alerts.lateness import LATE_AFTER
from storage_audit.alerts.models import Alert
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.conf import conf
from tests.builders import create_lost_cleanup
from tests.paths import ROOT
from tests.processes import HOST_HEADER, fetch_page, run_site

WEB, WORKER, READY, ALIVE = "/health/", "/health/worker/", "/readyz", "/healthz"
LONG = LATE_AFTER + timedelta(minutes=4, seconds=5)
Status = Cleanup.Status

every = pytest.mark.parametrize("path", [WEB, WORKER, READY])


def ask(path: str) -> list[str]:
    """The problems that it tells of."""
    response = Client().get(path, headers=HOST_HEADER)
    content = response.json()
    assert content == {"healthy": response.status_code == 200, "problems": content["problems"]}
    assert response.status_code == (503 if content["problems"] else 200)
    problems: list[str] = content["problems"]
    return problems


def overdue(**values: Any) -> Cleanup:
    return create_lost_cleanup(**{"next_attempt_at": timezone.now() - LONG, **values})


# Each


@every
@pytest.mark.django_db
def test_all_is_well(path: str) -> None:
    assert ask(path) == []


@every
@pytest.mark.django_db
def test_it_answers_over_plain_http_and_nobody_may_keep_it(path: str, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert Client().get("/admin/", headers=HOST_HEADER).status_code == 301
    response = Client().get(path, headers=HOST_HEADER)
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    assert not response.cookies


@every
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_it_can_only_be_read(path: str, method: str) -> None:
    assert Client().generic(method, path, headers=HOST_HEADER).status_code == 405


@every
@pytest.mark.django_db
def test_it_writes_nothing(path: str) -> None:
    overdue()
    with CaptureQueriesContext(connection) as queries:
        ask(path)
    assert queries.captured_queries
    for query in queries.captured_queries:
        assert query["sql"].split()[0] == "SELECT", query["sql"]


@every
@pytest.mark.django_db
def test_a_migration_that_was_not_applied_is_told(path: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'storage_audit'")
    (told,) = ask(path)
    assert "manage.py migrate" in told


def test_a_process_answers_without_a_database(settings: Settings) -> None:
    """No test may use one that is not marked for it."""
    settings.SECURE_SSL_REDIRECT = True
    response = Client().get(ALIVE, headers=HOST_HEADER)
    assert (response.status_code, response.json()) == (200, {"healthy": True})
    assert "no-store" in response["Cache-Control"]
    assert Client().post(ALIVE, headers=HOST_HEADER).status_code == 405


# The worker


@pytest.mark.django_db
def test_cleanups_that_nobody_takes_are_named_with_their_delay() -> None:
    first = overdue(next_attempt_at=timezone.now() - LONG - LATE_AFTER)
    second = overdue()
    (told,) = ask(WORKER)
    assert (
        f"2 cleanups are waiting for a worker, the first for 24 minutes ({first.pk}, {second.pk})."
        in told
    )
    assert ask(WEB) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "values",
    [
        {"status": Status.BLOCKED, "next_attempt_at": None},
        {"status": Status.CLEAN},
    ],
)
def test_a_cleanup_that_waits_for_a_person_or_ended_is_well(values: dict[str, Any]) -> None:
    overdue(**values)
    assert ask(WORKER) == []


@pytest.mark.django_db
def test_a_cleanup_that_is_worked_on_is_well() -> None:
    overdue(status=Status.RUNNING, lease_until=timezone.now() + conf().lease_time)
    assert ask(WORKER) == []


@pytest.mark.django_db
def test_a_cleanup_that_has_just_become_due_is_well() -> None:
    overdue(next_attempt_at=timezone.now() - LATE_AFTER / 2)
    assert ask(WORKER) == []


@pytest.mark.django_db
def test_a_cleanup_may_wait_for_another_of_its_project() -> None:
    overdue(project_id="proj_1")
    held = {"status": Status.RUNNING, "lease_until": timezone.now() + timedelta(seconds=50)}
    create_lost_cleanup(project_id="proj_1", bucket="elsewhere", **held)
    assert len(ask(WORKER)) == 1
    create_lost_cleanup(project_id="proj_1", **held)
    assert ask(WORKER) == []


@pytest.mark.django_db
def test_a_sweep_that_does_not_come_is_told() -> None:
    Schedule.objects.filter(func=queue.SWEEP).update(next_run=timezone.now() - LATE_AFTER / 2)
    assert ask(WORKER) == []
    Schedule.objects.filter(func=queue.SWEEP).update(next_run=timezone.now() - LONG)
    (told,) = ask(WORKER)
    assert "Its regular check is 14 minutes late" in told
    assert ask(WEB) == []


@pytest.mark.django_db
def test_a_sweep_that_nobody_scheduled_is_told() -> None:
    Schedule.objects.all().delete()
    (told,) = ask(WORKER)
    assert "regular check is not scheduled" in told


@pytest.mark.django_db
def test_a_queue_that_does_not_move_is_told() -> None:
    """As when a killed worker took the cluster's lock with it: the schedule still goes on."""
    OrmQ.objects.create(key="autoshorts", payload="", lock=timezone.now() + LONG)
    assert ask(WORKER) == []
    OrmQ.objects.update(lock=timezone.now() - LONG)
    (told,) = ask(WORKER)
    assert "waited in the queue for 14 minutes" in told


@pytest.mark.django_db
def test_bulk_job_without_progress_is_reported_though_workers_do_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lateness, "is_work_progressing", lambda: True)
    job = BulkJob.objects.request(BulkJob.Action.DELETE, ["proj_1", "proj_2"])
    assert ask(WORKER) == []
    BulkJob.objects.update(moved_at=timezone.now() - lateness.BULK_JOB_LATE_AFTER - LATE_AFTER)
    (told,) = ask(WORKER)
    assert f"1 bulk job has made no progress for 70 minutes ({job.pk})." in told
    alert_rules.update_alerts()
    assert told.startswith(Alert.objects.get().summary[:40])
    job.advance(1)
    assert ask(WORKER) == []


@pytest.mark.django_db
def test_without_a_queue_only_the_cleanups_count(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    Schedule.objects.update(next_run=timezone.now() - LONG)
    OrmQ.objects.create(key="autoshorts", payload="", lock=timezone.now() - LONG)
    assert ask(WORKER) == []
    overdue()
    (told,) = ask(WORKER)
    assert "manage.py sweep_cleanups" in told


# A real server, before a real database that goes away


def migrate(database_url: str) -> None:
    environment = os.environ | made_up_environment() | {"DATABASE_URL": database_url}
    argv = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(argv, cwd=ROOT, env=environment, check=True)


def test_a_database_that_is_new_then_migrated_then_stopped(tmp_path: Path) -> None:
    with ExitStack() as database:
        url = database.enter_context(temporary_database_url())
        with run_site(url, tmp_path / "web.log") as address:
            for path in (WEB, WORKER):
                code, told = fetch_page(address + path)
                assert (code, "manage.py migrate" in told) == (503, True)
            migrate(url)
            assert fetch_page(address + WEB) == (200, '{"healthy": true, "problems": []}')
            assert fetch_page(address + WORKER)[0] == 200
            database.close()
            for path in (WEB, WORKER, READY):
                code, told = fetch_page(address + path)
                assert (code, "The database does not respond" in told) == (503, True)
                assert "postgres" not in told
            assert fetch_page(address + ALIVE)[0] == 200
            program = {"X-Forwarded-Proto": "https", "Authorization": "Bearer sa_some"}
            code, told = fetch_page(address + "/metrics", HOST_HEADER | program)
            problem = "urn:storage-audit:database-unavailable"
            assert (code, json.loads(told)["type"]) == (503, problem)


def seconds_waited_for(silent: socket.socket) -> float:
    """From when a client connects until it gives up."""
    with silent.accept()[0] as client:
        began = time.monotonic()
        while client.recv(1024):
            pass
        return time.monotonic() - began


@pytest.mark.slow
def test_a_database_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:
        silent.settimeout(60)
        url = f"postgres://u:hunter2@127.0.0.1:{silent.getsockname()[1]}/n"
        with run_site(url, tmp_path / "web.log") as address:
            assert fetch_page(address + ALIVE)[0] == 200
            seconds = pool.submit(seconds_waited_for, silent)
            started = time.monotonic()
            code, told = fetch_page(address + WEB)
            answered = time.monotonic() - started
        assert answered < 10
        assert (
            seconds.result()
            < 2 * site_settings.database_settings(url)["OPTIONS"]["connect_timeout"]
        )
        # Nor does it try again.
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert (code, "The database does not respond" in told) == (503, True)
    assert "hunter2" not in told + (tmp_path / "web.log").read_text()
