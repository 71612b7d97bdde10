"""What Prometheus is told, who may ask, and that alerts and dashboard speak of nothing else."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import resolve
from django.utils import timezone
from django.utils.text import slugify
from django_q.models import OrmQ, Schedule
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from pytest_django import Settings

from storage_audit import locking
from storage_audit.api.models import ApiToken
from storage_audit.bucket.models import RequestCount
from storage_audit.cleanup import requests
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.dashboard import daily_figures
from storage_audit.findings.models import Finding
from storage_audit.metrics import metrics
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.builders import create_finding
from tests.paths import ROOT
from tests.promises import clean_up_project, prune_cleanups, run_again
from tests.real_bucket import Bucket

PROMETHEUS = ROOT / "deploy/prometheus"
ALERTS = PROMETHEUS / "alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/storage-audit.json"
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Figures = dict[tuple[str, ...], float]


def reader(*, may: bool = True) -> User:
    user = User.objects.create_user(f"u{User.objects.count()}", is_staff=True)
    if may:
        user.user_permissions.add(Permission.objects.get(codename="view_cleanup"))
    return user


def bearer(user: User, **values: Any) -> dict[str, str]:
    _row, token = ApiToken.issue(name="prometheus", user=user, **values)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def admin(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("anna"))
    return client


def page(client: Client) -> str:
    response = client.get("/metrics")
    assert response.status_code == 200
    return response.content.decode()


def figures(client: Client) -> Figures:
    """Each by its name without `storage_audit_`, and the values of its labels."""
    return {
        (sample.name.removeprefix("storage_audit_"), *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(page(client))
        for sample in family.samples
    }


def promtool(*arguments: object, given: str | None = None) -> str:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def create_cleanup(**values: Any) -> Cleanup:
    defaults = {"kind": "project", "project_id": "proj_1", "bucket": "tests", "trigger": "deleted"}
    return Cleanup.objects.create(**defaults | values)


def test_a_deletion_is_told_in_objects_and_bytes_and_pruning_takes_nothing_back(
    bucket: Bucket, admin: Client, tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        bucket.upload("proj_1", name, b"12345")
    bucket.upload("proj_1", "gone.mp4", b"1234567")
    bucket.r2.remove("projects/proj_1/scenes/s1/media/gone.mp4", bucket.name)
    # It could be proj_1_s's as well, which lives.
    bucket.upload("proj_1_s")
    bucket.put("proj_1_s_1_media.mp4", body=b"123")
    cleaned = clean_up_project("proj_1")
    assert cleaned.status == "clean_with_kept"

    told = figures(admin)
    assert told["cleaned_objects_total", "deleted"] == 2
    assert told["cleaned_bytes_total", "deleted"] == 10
    assert told["cleaned_objects_total", "already_gone"] == 1
    assert told["cleaned_bytes_total", "already_gone"] == 7
    assert told["cleaned_objects_total", "kept"] == 1
    assert told["cleaned_bytes_total", "kept"] == 3
    assert told["cleanups", "project", "clean_with_kept"] == 1
    assert told["cleanups", "project", "pending"] == 3, "the follow-up checks"
    assert told["oldest_open_deletion_age_seconds",] == 0, "follow-up checks are no open deletion"

    for check in cleaned.children.all():
        run_again(check)
    assert settled(figures(admin)) == settled(told)
    assert prune_cleanups(tmp_path, timedelta(days=-1)) and not CleanupItem.objects.exists()
    assert settled(figures(admin)) == settled(told)


def settled(told: Figures) -> Figures:
    return {name: value for name, value in told.items() if name[0].startswith("cleaned")}


def test_leftover_is_the_figure_of_the_dashboard(admin: Client) -> None:
    """An open cleanup still decides on its files; a file that none covers is left behind."""
    totals = {"found": 6, "found_bytes": 50, "deleted": 2, "deleted_bytes": 20, "kept": 1}
    open_one = create_cleanup(status="retrying", failed=3, failed_bytes=30, **totals)
    create_cleanup(dry_run=True, status="planned", found=9, failed=9)
    create_finding("a.mp4", project_id="proj_1", size=7)
    create_finding("b.mp4", project_id="proj_2", size=10)
    told = figures(admin)
    assert (told["leftover_objects",], told["leftover_bytes",]) == (1, 10)
    assert daily_figures.count_leftovers() == (1, 10)
    assert told["cleaned_objects_total", "deleted"] == 0
    assert told["cleaned_objects_total", "kept"] == 0
    Cleanup.objects.filter(pk=open_one.pk).update(
        status="clean_with_kept", deleted=5, deleted_bytes=50, failed=0, failed_bytes=0
    )
    told = figures(admin)
    assert (told["leftover_objects",], told["leftover_bytes",]) == (2, 17)
    assert told["cleaned_objects_total", "deleted"] == 5
    assert told["cleaned_objects_total", "kept"] == 1


def test_leftover_is_not_told_before_it_was_counted(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the dashboard: of very many only a sweep's last count is known."""
    create_finding("a.mp4", project_id="proj_1", size=7)
    monkeypatch.setattr(daily_figures, "MAX_COUNTED_LEFTOVERS", 0)
    assert ("leftover_objects",) not in figures(admin)
    daily_figures.take_figures()
    assert figures(admin)["leftover_bytes",] == 7


def test_verifications_and_follow_ups_count_nothing_twice(admin: Client) -> None:
    first = create_cleanup(status="clean", found=4, already_gone=4)
    create_cleanup(status="clean", found=4, already_gone=4, parent=first)
    create_cleanup(status="clean_with_kept", found=1, kept=1, parent=first)
    create_cleanup(kind="verify", status="clean", found=4, already_gone=4)
    told = figures(admin)
    assert told["cleaned_objects_total", "already_gone"] == 4
    assert told["cleaned_objects_total", "kept"] == 0


def test_cleanups_by_kind_and_status_and_the_oldest_that_is_open(admin: Client) -> None:
    now = timezone.now()
    for status, hours in {"clean": 99, "planned": 88, "blocked": 30, "failed": 20}.items():
        create_cleanup(status=status, created_at=now - timedelta(hours=hours))
    create_cleanup(kind="verify", status="running", created_at=now - timedelta(hours=77))
    told = figures(admin)
    for status in Cleanup.Status.values:
        there = status in ("clean", "planned", "blocked", "failed")
        assert told["cleanups", "project", status] == there
    assert told["cleanups", "verify", "running"] == 1
    assert told["cleanups", "vanished", "blocked"] == 0
    assert told["oldest_open_deletion_age_seconds",] == pytest.approx(30 * 3600, abs=60)


def test_a_plan_is_a_deletion_from_when_it_is_run(admin: Client) -> None:
    days_ago = timezone.now() - timedelta(days=3)
    values = {"trigger": "dry_run", "found": 5, "failed": 5, "found_bytes": 9, "failed_bytes": 9}
    plan = create_cleanup(status="planned", dry_run=True, created_at=days_ago, **values)
    plan.events.create(step="approved", message="Approved.", at=days_ago)
    requests.approve_or_retry(plan)
    told = figures(admin)
    assert told["cleanups", "project", "pending"] == 1
    assert told["oldest_open_deletion_age_seconds",] == pytest.approx(0, abs=60)
    assert (told["leftover_objects",], told["leftover_bytes",]) == (0, 0)


def test_the_queue_and_the_workers_heartbeat(admin: Client) -> None:
    now = timezone.now()
    told = figures(admin)
    assert told["queue_tasks",] == told["queue_oldest_task_age_seconds",] == 0
    OrmQ.objects.create(key="autoshorts", payload="x", lock=now - timedelta(minutes=5))
    OrmQ.objects.create(key="autoshorts", payload="x", lock=now + timedelta(minutes=5))
    Schedule.objects.update(next_run=now - timedelta(minutes=7))
    told = figures(admin)
    assert told["queue_tasks",] == 1
    assert told["queue_oldest_task_age_seconds",] == pytest.approx(300, abs=30)
    assert told["sweep_lateness_seconds",] == pytest.approx(420, abs=30)
    Schedule.objects.update(next_run=now + timedelta(minutes=7))
    assert figures(admin)["sweep_lateness_seconds",] == 0
    Schedule.objects.all().delete()
    assert figures(admin)["sweep_lateness_seconds",] == inf


def test_without_a_queue_nobody_is_late(admin: Client, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    names = {name for name, *_labels in figures(admin)}
    assert "cleanups" in names
    assert not names & {"queue_tasks", "queue_oldest_task_age_seconds", "sweep_lateness_seconds"}


def test_scans_and_findings(bucket: Bucket, admin: Client) -> None:
    never = figures(admin)
    assert never["last_scan_age_seconds", bucket.name] == inf
    bucket.put("stranger", "proj_9_s_media.mp4")
    for how in ({"dry_run": True}, {"prefix": "projects/"}):
        list(work_on_scan(start_scan(**how)))
        assert figures(admin)["last_scan_age_seconds", bucket.name] == inf
    assert never["last_scan_figures", bucket.name, "listed"] == 0
    done = start_scan()
    list(work_on_scan(done))
    assert 0 <= figures(admin)["last_scan_age_seconds", bucket.name] < 60
    done.finished_at = timezone.now() - timedelta(days=3)
    done.save()
    done.started_at = done.finished_at - timedelta(minutes=5)
    done.save()
    told = figures(admin)
    assert told["last_scan_duration_seconds", bucket.name] == 300
    listed = {name: told["last_scan_figures", bucket.name, name] for name in ("listed", "requests")}
    assert listed == {"listed": 2, "requests": 2}
    assert told["last_scan_figures", bucket.name, "unrecognised"] == 1
    assert told["last_scan_age_seconds", bucket.name] == pytest.approx(3 * 86400, abs=60)
    assert told["findings_open", "unrecognised"] == 1
    Finding.objects.update(state="ignored")
    assert figures(admin)["findings_open", "unrecognised"] == 0


def test_calls_to_the_store_by_kind_and_result(admin: Client) -> None:
    RequestCount.objects.add({("ListObjectsV2", "ok"): 7, ("DeleteObjects", "SlowDown"): 2})
    told = figures(admin)
    assert told["store_requests_total", "ListObjectsV2", "ok"] == 7
    assert told["store_requests_total", "DeleteObjects", "SlowDown"] == 2


def test_each_figure_is_one_question_however_much_there_is(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    page(admin)
    with CaptureQueriesContext(connection) as few:
        page(admin)
    for number in range(20):
        create_cleanup(project_id=f"proj_{number}", status="failed")
        RequestCount.objects.add({(f"k{number}", "ok"): 1})
    with CaptureQueriesContext(connection) as many:
        page(admin)
    assert len(many) == len(few) < 16
    monkeypatch.setattr(daily_figures, "MAX_COUNTED_LEFTOVERS", -1)
    with CaptureQueriesContext(connection) as with_much_left_behind:
        page(admin)
    asked = " ".join(query["sql"] for query in with_much_left_behind.captured_queries)
    assert "storage_audit_cleanupitem" not in asked


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer sa_" + "x" * 43},
        {"Authorization": "Basic YTpi"},
    ],
)
def test_a_stranger_is_asked_who_he_is(db: None, headers: dict[str, str]) -> None:
    answer = Client().get("/metrics", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert b"storage_audit_cleanups" not in answer.content


def test_a_token_opens_it_while_it_is_valid_and_its_person_may_view(db: None) -> None:
    now = timezone.now()
    answer = Client().get("/metrics", headers=bearer(reader()))
    assert answer.status_code == 200
    assert "storage_audit_cleanups" in answer.content.decode()
    assert "no-store" in answer.headers["Cache-Control"]
    for values in ({"revoked_at": now}, {"expires_at": now}):
        refused = Client().get("/metrics", headers=bearer(reader(), **values))
        assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (401, True)
    assert Client().get("/metrics", headers=bearer(reader(may=False))).status_code == 403
    gone = reader()
    headers = bearer(gone)
    User.objects.filter(pk=gone.pk).update(is_active=False)
    assert Client().get("/metrics", headers=headers).status_code == 401


def test_a_session_opens_it_to_viewers_and_nothing_can_be_sent(db: None) -> None:
    for user, status in (
        (reader(), 200),
        (reader(may=False), 403),
        (User.objects.create_user("zoe"), 403),
    ):
        client = Client()
        client.force_login(user)
        assert client.get("/metrics").status_code == status
        assert client.head("/metrics").status_code == status
        assert client.post("/metrics").status_code == 405


def test_a_head_has_no_body_but_its_length(db: None) -> None:
    """Of what passes the view: the client of the tests drops bodies, as gunicorn does."""
    for headers, status in ((bearer(reader()), 200), ({}, 401)):
        request = RequestFactory().head("/metrics", headers=headers)
        request.user, request.resolver_match = AnonymousUser(), resolve("/metrics")
        answer = metrics(request)
        assert (answer.status_code, answer.content) == (status, b"")
        assert int(answer.headers["Content-Length"]) > 50


@pytest.mark.django_db(transaction=True)
def test_who_only_reads_is_served_while_nobody_can_write(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    headers = bearer(reader())
    monkeypatch.setattr(locking, "LOCK_TIMEOUT_MS", 200)
    began = monotonic()
    with nobody_can_write():
        assert Client().get("/metrics", headers=headers).status_code == 200
    assert monotonic() - began < 10
    assert "Could not record that API token" in caplog.text
    assert ApiToken.objects.get().last_used_at is None
    assert Client().get("/metrics", headers=headers).status_code == 200
    assert ApiToken.objects.get().last_used_at


@contextmanager
def nobody_can_write() -> Iterator[None]:
    """Another connection holds a lock."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE" if connection.vendor == "sqlite" else "BEGIN")
            if connection.vendor == "postgresql":
                cursor.execute("LOCK TABLE storage_audit_apitoken IN EXCLUSIVE MODE")
            yield
    finally:
        other.close()


def test_both_formats_can_be_read_and_have_no_fault_of_style(admin: Client) -> None:
    plain = admin.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert promtool("check", "metrics", given=plain.content.decode()) == ""
    modern = admin.get("/metrics", headers={"Accept": OPEN_METRICS})
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
    read: Any = openmetrics.text_string_to_metric_families
    units = {family.name: family.unit for family in read(modern.content.decode())}
    assert units["storage_audit_cleaned_bytes"] == "bytes"
    assert units["storage_audit_last_scan_age_seconds"] == "seconds"


def test_what_runs_here(admin: Client) -> None:
    [facts] = re.findall("storage_audit_build_info{(.*)} 1.0", page(admin))
    assert 'version="0.1.0"' in facts
    assert f'database="{connection.vendor}"' in facts


# What stands beside the application for Prometheus and Grafana.


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"storage_audit_\w+", text))


def all_there_are(client: Client) -> set[str]:
    RequestCount.objects.add({("ListObjectsV2", "ok"): 1})
    return {f"storage_audit_{name}" for name, *_labels in figures(client)}


def alerts() -> dict[str, str]:
    """The text of each by its name."""
    _head, *parts = re.split(r"- alert: ", ALERTS.read_text())
    return {part.split()[0]: part for part in parts}


def expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_prometheus_accepts_the_rules_and_their_tests_and_the_example(tmp_path: Path) -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "--lint-fatal", ALERTS)
    assert "SUCCESS" in promtool("test", "rules", PROMETHEUS / "alerts_test.yml")
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_each_alert_is_seen_to_fire_and_to_keep_silent() -> None:
    tests = (PROMETHEUS / "alerts_test.yml").read_text()
    for name in alerts():
        cases = re.findall(rf"alertname: {name}(\n +exp_alerts|, exp_alerts)?", tests)
        assert {bool(case) for case in cases} == {True, False}, name


def test_each_alert_says_what_it_is_and_leads_to_what_helps() -> None:
    for name, text in alerts().items():
        assert "summary: " in text and "description: " in text, name
        [(document, anchor)] = re.findall(r"runbook: (\S+)#(\S+)", text)
        titles = re.findall("^#+ (.*)$", (ROOT / document).read_text(), re.M)
        assert anchor in map(slugify, titles), name


def test_alerts_and_dashboard_speak_of_metrics_that_there_are(admin: Client) -> None:
    there = all_there_are(admin)
    assert metrics_in(ALERTS.read_text()) - {"storage_audit"} <= there
    dashboard = json.loads(DASHBOARD.read_text())
    shown = metrics_in(" ".join(expressions(dashboard)))
    assert shown == there


def test_grafana_can_import_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert dashboard["uid"] and dashboard["title"] and dashboard["schemaVersion"] >= 36
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in cells_of(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "panels lie over each other"
    assert max(column for column, _row in cells) < 24
    for panel in panels:
        for asks in (panel, *panel["targets"]):
            assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    rules = [
        {"record": f"r{n}", "expr": expr.replace("$__rate_interval", "5m")}
        for n, expr in enumerate(expressions(dashboard))
    ]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yml")


def cells_of(position: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(position["x"], position["x"] + position["w"]):
        for y in range(position["y"], position["y"] + position["h"]):
            yield x, y
