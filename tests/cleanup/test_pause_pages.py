"""Pausing and resuming from the admin, a shell and the API, and what everybody is shown."""

import json
import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Alert
from storage_audit.bucket.errors import StoreError
from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.models import Cleanup, DeletionPause
from storage_audit.dashboard.models import DailyFigures
from storage_audit.models import DatabaseIdentity, Project
from storage_audit.ownership import bucket_marker
from tests.admin_client import (
    DASHBOARD,
    admin_url,
    page_text,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.api_client import client_with_token
from tests.held import grant_grace
from tests.promises import Status, create_projects, request_cleanup, run_until_idle
from tests.real_bucket import Bucket, put_files
from tests.run_command import run_command

pytestmark = pytest.mark.database
PAUSE, RESUME = reverse("admin:storage_audit_pause"), reverse("admin:storage_audit_resume")
BAR = "audit-pause-bar"


@pytest.fixture
def paused(bucket: Bucket) -> Cleanup:
    """A cleanup that rests, with three files, while all deletions are paused."""
    create_projects("proj_1")
    put_files(bucket, 3)
    pause_deletions.pause_deletions("files are missing")
    return run_until_idle(request_cleanup("proj_1"))


def read_figures(page: str) -> str:
    found = re.search(r'name="figures" value="([^"]+)"', page)
    assert found
    return found[1]


# The admin


def test_overview_pauses_everything_after_a_question(bucket: Bucket) -> None:
    client = superuser_client()
    assert PAUSE in page_text(client.get(DASHBOARD))
    asked = page_text(client.get(PAUSE))
    assert "Nothing is being deleted right now." in asked
    assert not DeletionPause.objects.exists()
    again = page_text(client.post(PAUSE, {"reason": ""}))
    assert "This field is required." in again and not DeletionPause.objects.exists()
    shown = page_text(client.post(PAUSE, {"reason": "files are missing"}, follow=True))
    assert "Paused." in shown
    assert "All deletions are paused. Paused by anna on" in shown and "files are missing" in shown
    assert PAUSE not in shown and RESUME in shown


@pytest.mark.parametrize("name", ["project", "cleanup", "finding", "alert", "bucketscan"])
def test_each_page_has_the_bar_while_paused(paused: Cleanup, name: str) -> None:
    page = page_text(superuser_client().get(admin_url(name)))
    assert BAR in page and "files are missing" in page


def test_bar_offers_to_resume_to_those_who_may(paused: Cleanup) -> None:
    page = page_text(staff_client().get(url_of_cleanup(paused)))
    assert BAR in page and RESUME not in page
    assert BAR not in page_text(Client().get(reverse("admin:login")))


def test_cleanups_page_pauses_it_alone(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = request_cleanup("proj_1")
    client, url = superuser_client(), f"{PAUSE}?cleanup={cleanup.pk}"
    assert url in page_text(client.get(url_of_cleanup(cleanup)))
    assert "the cleanup of proj_1" in page_text(client.get(url))
    shown = page_text(client.post(url, {"reason": "ask first"}, follow=True))
    assert "The cleanup of proj_1 is paused. Paused by anna on" in shown
    assert DeletionPause.objects.get().cleanup == cleanup
    run_until_idle(cleanup)
    resume = f"{RESUME}?cleanup={cleanup.pk}"
    asked = page_text(client.get(resume))
    assert "1 cleanup waits." in asked and "Resume, delete at most 1 file" in asked
    client.post(resume, {"figures": read_figures(asked)})
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_question_before_a_pause_counts_cleanups_and_files(
    bucket: Bucket, settings: Settings
) -> None:
    client = superuser_client()
    assert "No cleanup is open now." in page_text(client.get(PAUSE))
    grant_grace(settings)
    create_projects("proj_1", "proj_2")
    put_files(bucket, 3)
    first = run_until_idle(request_cleanup("proj_1"))
    other = request_cleanup("proj_2")
    asked = page_text(client.get(PAUSE))
    assert "This pauses 2 open cleanups. They have found 3 files, 21" in asked
    asked = page_text(client.get(f"{PAUSE}?cleanup={first.pk}"))
    assert "This pauses 1 open cleanup. It has found 3 files, 21" in asked
    asked = page_text(client.get(f"{PAUSE}?cleanup={other.pk}"))
    assert "This pauses 1 open cleanup. It has found no files to delete so far." in asked


def test_pause_that_only_the_bucket_knows_is_shown_and_resumed(bucket: Bucket) -> None:
    """The database was restored from a backup, and nothing is to be deleted meanwhile."""
    pause_deletions.pause_deletions("files are missing")
    DeletionPause.objects.all().delete()
    client = superuser_client()
    assert BAR not in page_text(client.get(DASHBOARD))
    tasks.sweep()
    shown = page_text(client.get(DASHBOARD))
    assert "All deletions are paused." in shown and "files are missing" in shown
    asked = page_text(client.get(RESUME))
    client.post(RESUME, {"figures": read_figures(asked)})
    assert not DeletionPause.objects.exists() and not bucket_marker.find_pauses(bucket.name)
    DailyFigures.objects.all().delete()
    tasks.sweep()
    assert not DeletionPause.objects.exists()


def test_pause_of_a_cleanup_that_the_database_does_not_know_pauses_nothing_else(
    bucket: Bucket,
) -> None:
    bucket.put(bucket_marker.pause_key(uuid4()))
    tasks.sweep()
    assert not DeletionPause.objects.exists()


def test_bucket_that_does_not_answer_hides_no_pause_of_another(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = bucket_marker.find_pauses

    def refuse_one(name: str) -> list[str]:
        if name == "another":
            raise StoreError("refused")
        return find(name)

    markers = DatabaseIdentity.objects.get().markers
    DatabaseIdentity.objects.update(markers={**markers, "another": "etag"})
    bucket.put(bucket_marker.PAUSE_KEY)
    monkeypatch.setattr(bucket_marker, "find_pauses", refuse_one)
    tasks.sweep()
    assert DeletionPause.objects.exists()


def test_pause_is_offered_on_a_follow_up_check_and_not_on_its_cleanup_that_is_over(
    bucket: Bucket,
) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert cleanup.status == Status.CLEAN
    client, follow_up = superuser_client(), cleanup.children.all()[0]
    assert PAUSE not in page_text(client.get(url_of_cleanup(cleanup)))
    assert PAUSE in page_text(client.get(url_of_cleanup(follow_up)))


def test_page_of_a_paused_cleanup_says_so(paused: Cleanup) -> None:
    client = superuser_client()
    page = page_text(client.get(url_of_cleanup(paused)))
    assert "No file is deleted until a person resumes it." in page
    assert "Paused. " in page
    listed = page_text(client.get(admin_url("cleanup")))
    assert '<span class="audit-status audit-paused">paused</span>' in listed


def test_resume_asks_with_the_figures_and_again_when_they_change(
    paused: Cleanup, bucket: Bucket
) -> None:
    client = superuser_client()
    asked = page_text(client.get(RESUME))
    assert "1 cleanup waits." in asked and "3 files" in asked
    bucket.upload("proj_2")
    run_until_idle(request_cleanup("proj_2"))
    again = page_text(client.post(RESUME, {"figures": read_figures(asked)}))
    assert "The figures have changed" in again and "2 cleanups wait." in again
    assert DeletionPause.objects.exists()
    done = page_text(client.post(RESUME, {"figures": read_figures(again)}, follow=True))
    assert "Deletions are resumed." in done and BAR not in done
    assert run_until_idle(paused).status == Status.CLEAN
    assert "There is nothing to resume." in page_text(client.get(RESUME))


def test_resume_over_the_limits_needs_an_approval(paused: Cleanup, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 2}
    client = staff_client("pause_cleanup")
    page = page_text(client.get(RESUME))
    assert "the safety limit of 2" in page and 'name="figures"' not in page
    digest = pause_deletions.find_resume_figures().digest
    client.post(RESUME, {"figures": digest, "over_limits": "on"})
    assert DeletionPause.objects.exists()
    boss = superuser_client()
    shown = page_text(boss.post(RESUME, {"figures": read_figures(page_text(boss.get(RESUME)))}))
    assert "Approve them, or cancel" in shown
    boss.post(RESUME, {"figures": read_figures(shown), "over_limits": "on"})
    assert not DeletionPause.objects.exists()


@pytest.mark.parametrize("url", [PAUSE, RESUME])
def test_pages_need_the_permission_and_a_known_cleanup(paused: Cleanup, url: str) -> None:
    assert staff_client("force_cleanup").post(url, {"reason": "x"}).status_code == 403
    assert DeletionPause.objects.count() == 1
    for cleanup in ("nonsense", "11111111-1111-1111-1111-111111111111"):
        assert superuser_client().get(f"{url}?cleanup={cleanup}").status_code == 404


# Commands


def test_commands_pause_and_resume(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 2)
    out, err, code = run_command("pause_cleanups", "--reason", "files are missing")
    assert (err, code) == ("", 0)
    assert "files are missing" in out and "Deletion requests that may still take effect: 0." in out
    cleanup = run_until_idle(request_cleanup("proj_1"))
    out, _err, code = run_command("resume_cleanups")
    assert code == 0 and "Would delete 2 files" in out and "Cleanups waiting: 1." in out
    assert DeletionPause.objects.exists()
    found = re.search(r"--confirm (\S+)", out)
    assert found
    _out, err, code = run_command("resume_cleanups", "--confirm", "1-nonsense")
    assert code == 1 and "have changed" in err
    out, _err, code = run_command("resume_cleanups", "--confirm", found[1])
    assert (out.strip(), code) == ("Deletions are resumed.", 0)
    assert run_until_idle(cleanup).status == Status.CLEAN
    _out, err, code = run_command("resume_cleanups")
    assert code == 2 and "not paused" in err


def test_command_pauses_one_cleanup(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 1)
    cleanup = request_cleanup("proj_1")
    _out, _err, code = run_command(
        "pause_cleanups", "--cleanup", str(cleanup.pk), "--reason", "ask first"
    )
    assert (code, DeletionPause.objects.get().cleanup) == (0, cleanup)
    out, _err, code = run_command("resume_cleanups", "--cleanup", str(cleanup.pk))
    assert code == 0 and "--cleanup ID" in out
    run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert cleanup.status == Status.PENDING


# The API


def test_api_pauses_shows_and_resumes(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, 2)
    client = client_with_token()
    assert client.request("GET", "/deletions/pause").json()["paused"] is None
    body = json.dumps({"reason": "files are missing"})
    answer = client.request("POST", "/deletions/pause", body).json()
    assert answer["paused"]["reason"] == "files are missing"
    assert (answer["requests_under_way"], answer["not_written"]) == (0, [])
    cleanup = run_until_idle(request_cleanup("proj_1"))
    listed = client.request("GET", "/deletions").json()
    assert listed["paused"]["deletion_id"] is None
    details = client.request("GET", f"/deletions/{cleanup.pk}").json()
    assert details["paused"]["reason"] == "files are missing"
    state = client.request("GET", "/deletions/pause").json()
    assert (state["deletions"], state["objects"]) == (1, 2)
    refused = client.request("POST", "/deletions/resume", json.dumps({"confirm": "1-x"}))
    assert refused.status_code == 409
    body = json.dumps({"confirm": state["confirm"]})
    assert client.request("POST", "/deletions/resume", body).status_code == 200
    assert run_until_idle(cleanup).status == Status.CLEAN


# Alerts


def test_pause_of_a_day_is_an_alert_until_it_ends(paused: Cleanup) -> None:
    alert_rules.update_alerts()
    assert not Alert.objects.filter(kind="paused").exists()
    DeletionPause.objects.update(paused_at=timezone.now() - timedelta(hours=25))
    alert_rules.update_alerts()
    alert_rules.update_alerts()
    alert = Alert.objects.open().get(kind="paused")
    assert "files are missing" in alert.summary
    pause_deletions.resume_deletions(pause_deletions.find_resume_figures().digest)
    alert_rules.update_alerts()
    assert not Alert.objects.open().filter(kind="paused").exists()


def test_pause_of_a_cleanup_that_is_over_is_not_shown(bucket: Bucket) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    pause_deletions.pause_deletions("ask first", cleanup)
    assert DeletionPause.objects.in_force().exists()
    Cleanup.objects.update(status="superseded", next_attempt_at=None)
    assert not DeletionPause.objects.in_force().exists()
    assert BAR not in page_text(superuser_client().get(admin_url("cleanup")))


# What else a person may do


def test_nothing_is_erased_now_while_paused(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    put_files(bucket, 1)
    pause_deletions.pause_deletions("files are missing")
    client, url = superuser_client(), admin_url("project", "delete", "proj_1")
    asked = page_text(client.get(url))
    digest = re.search(r'name="digest" value="([^"]*)"', asked)
    assert digest
    given = {"post": "yes", "digest": digest[1], "erase": "now", "erase_reason": "asked for"}
    shown = page_text(client.post(url, given, follow=True))
    assert "Nothing was deleted." in shown and "Nothing can be erased" in shown
    query = "?erase=now&reason=asked"
    answer = client_with_token().request("DELETE", f"/projects/proj_1{query}")
    assert answer.status_code == 409
    assert Project.objects.exists()
