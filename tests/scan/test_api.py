"""Scans over HTTP: begun for the workers, followed, stopped and resumed."""

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import tasks
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan.models import BucketScan, ScanShard
from tests.api_client import (
    API_PATH,
    ApiClient,
    assert_problem,
    client_with_token,
    create_staff,
    read_all_pages,
    read_json,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("no_request_limits")

PURPOSE: dict[str, Any] = {"purpose": "reconcile"}


def post(path: str, who: ApiClient | None = None, **body: Any) -> Any:
    return (who or client_with_token()).request("POST", f"/scans{path}", json.dumps(body))


def scanned(**values: Any) -> BucketScan:
    scan = BucketScan.objects.create(**{"bucket": conf().bucket, "purpose": "reconcile", **values})
    ScanShard.objects.create(scan=scan)
    return scan


# To look


@pytest.mark.django_db
@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_pages_have_each_scan_once_the_latest_first(limit: int) -> None:
    first = scanned()
    same = [scanned(started_at=first.started_at) for _number in range(3)]
    latest = scanned()
    ids = [each["scan_id"] for each in read_all_pages(client_with_token(), "/scans", limit)]
    assert (ids[0], len(ids)) == (str(latest.pk), 5)
    assert set(ids[1:]) == {str(each.pk) for each in [first, *same]}


@pytest.mark.django_db
def test_filters() -> None:
    backfill, done = scanned(purpose="backfill"), scanned(status="complete")

    def found(query: str) -> list[str]:
        return [each["scan_id"] for each in client_with_token().get(f"/scans?{query}")["items"]]

    assert found("purpose=backfill") == found("status=running") == [str(backfill.pk)]
    assert found("status=complete") == [str(done.pk)]
    assert found("purpose=backfill&status=complete") == []


@pytest.mark.django_db
def test_a_scan_tells_its_figures() -> None:
    now = timezone.now()
    one = scanned(status="failed", message="It broke", finished_at=now, orphaned=7, listed=9)
    answer = client_with_token().get(f"/scans/{one.pk}")
    assert answer["status_url"] == f"{API_PATH}/scans/{one.pk}"
    assert (answer["over"], answer["message"], answer["listed"]) == (True, "It broke", 9)
    assert answer["differences"]["orphaned"] == 7
    assert set(answer["differences"]) == set(Finding.Kind.values)
    assert not client_with_token().get(f"/scans/{scanned().pk}")["over"]


@pytest.mark.django_db
def test_what_is_not_there_is_not_found() -> None:
    unknown = uuid4()
    assert_problem(client_with_token().request("GET", f"/scans?cursor={unknown}"), 404, "not-found")
    assert_problem(client_with_token().request("GET", f"/scans/{unknown}"), 404, "not-found")
    for verb in ("stop", "resume"):
        assert_problem(post(f"/{unknown}/{verb}"), 404, "not-found")


# To begin


def test_workers_take_up_a_scan_that_is_asked_for(bucket: Bucket) -> None:
    bucket.put("projects/proj_1/scenes/s1/media/a.mp4", "stray")
    user = create_staff("add_bucketscan", "view_bucketscan")
    answer = post("", client_with_token(user), **PURPOSE, prefix="projects/", max_requests=5)
    body = read_json(answer, 202)
    assert answer["Location"] == body["status_url"]
    scan = BucketScan.objects.get()
    facts = (scan.purpose, scan.prefix, scan.project_id, scan.dry_run, scan.max_requests)
    assert facts == ("reconcile", "projects/", None, False, 5)
    assert scan.requested_by == user.username
    assert LogEntry.objects.get().object_id == body["scan_id"] == str(scan.pk)
    assert OrmQ.objects.count() == 1
    tasks.take_part(body["scan_id"])
    followed = client_with_token(user).get(body["status_url"].removeprefix(API_PATH))
    assert (followed["status"], followed["over"], followed["listed"]) == ("complete", True, 1)
    assert not R2Object.objects.exists()


def test_a_backfill_of_a_project_writes_its_rows(bucket: Bucket) -> None:
    key = "projects/proj_1/scenes/s1/media/a.mp4"
    bucket.put(key, "stray")
    body = read_json(post("", purpose="backfill", project_id="proj_1"), 202)
    tasks.take_part(body["scan_id"])
    assert R2Object.objects.get().key == key


@pytest.mark.django_db
def test_others_that_run_are_told_of() -> None:
    scanned(status="complete")
    assert "others" not in read_json(post("", **PURPOSE), 202)["message"]
    assert (
        "1 other scan of this bucket is running."
        in read_json(post("", **PURPOSE, dry_run=True), 202)["message"]
    )
    assert BucketScan.objects.filter(dry_run=True).count() == 1


@pytest.mark.django_db
def test_what_would_cost_more_than_it_may_is_not_begun() -> None:
    problem = assert_problem(post("", **PURPOSE, max_requests=0), 409, "refused")
    assert "the limit is 0" in problem["detail"]
    assert not BucketScan.objects.exists() and not OrmQ.objects.exists()


BAD: list[dict[str, Any]] = [
    {},
    {"purpose": "delete"},
    {**PURPOSE, "prefix": "a", "project_id": "proj_1"},
    {**PURPOSE, "prefix": ""},
    {**PURPOSE, "prefix": "a\0"},
    {**PURPOSE, "prefix": "\ud800"},
    {**PURPOSE, "prefix": None},
    {**PURPOSE, "dryrun": True},
    {**PURPOSE, "dry_run": "yes"},
    {**PURPOSE, "dry_run": 1},
    *({**PURPOSE, "max_requests": number} for number in (-1, 2**63, True, "many", None)),
]


@pytest.mark.django_db
@pytest.mark.parametrize("body", BAD)
def test_a_bad_body_is_told_what_is_wrong_and_begins_nothing(body: dict[str, Any]) -> None:
    problem = assert_problem(post("", **body), 422, "invalid-values")
    assert problem["errors"][0]["where"][0] == "body"
    assert not BucketScan.objects.exists()


@pytest.mark.django_db
def test_only_ids_of_projects_can_be_scanned() -> None:
    assert_problem(post("", **PURPOSE, project_id="../proj_1"), 404, "not-found")
    assert not BucketScan.objects.exists()


@pytest.mark.django_db
def test_without_workers_nothing_is_begun_or_resumed(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    one = scanned(status="stopped")
    for path, body in (("", PURPOSE), (f"/{one.pk}/resume", {})):
        assert "turns workers off" in assert_problem(post(path, **body), 409, "refused")["detail"]
    assert BucketScan.objects.get().status == "stopped"


# To stop and to resume


def test_a_stopped_scan_goes_on_when_it_is_resumed(bucket: Bucket) -> None:
    bucket.put("stray")
    user = create_staff("change_bucketscan")
    path = f"/{read_json(post('', **PURPOSE), 202)['scan_id']}"
    OrmQ.objects.all().delete()
    stopped = read_json(post(f"{path}/stop", client_with_token(user)), 200)
    assert (stopped["status"], stopped["over"]) == ("stopped", True)
    assert stopped["message"].startswith(f"Stopped by {user.username}.")
    tasks.take_part(stopped["scan_id"])
    assert BucketScan.objects.get().listed == 0
    assert read_json(post(f"{path}/stop"), 200)["message"] == stopped["message"]
    answer = post(f"{path}/resume", client_with_token(user), max_requests=7, accept_fewer=True)
    body = read_json(answer, 202)
    assert answer["Location"] == body["status_url"] and OrmQ.objects.count() == 1
    scan = BucketScan.objects.get()
    assert (scan.status, scan.max_requests, scan.accept_fewer) == ("running", 7, True)
    tasks.take_part(body["scan_id"])
    assert BucketScan.objects.get().status == "complete"


@pytest.mark.django_db
def test_who_resumes_a_scan_is_told_whether_it_starts_again() -> None:
    one = scanned(status="stopped", marker_seen_at=timezone.now() - timedelta(hours=2))
    assert (
        "Scan restarted from the beginning" in read_json(post(f"/{one.pk}/resume"), 202)["message"]
    )
    assert "continues where it stopped" in read_json(post(f"/{one.pk}/resume"), 202)["message"]


@pytest.mark.django_db
def test_resumed_without_a_request_limit_it_keeps_the_earlier_one() -> None:
    one = scanned(status="stopped", max_requests=3)
    read_json(post(f"/{one.pk}/resume"), 202)
    assert BucketScan.objects.get().max_requests == 3


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["complete", "failed"])
def test_what_is_over_cannot_be_stopped(status: str) -> None:
    one = scanned(status=status, message="It broke")
    assert_problem(post(f"/{one.pk}/stop"), 409, "wrong-state")
    one.refresh_from_db()
    assert (one.status, one.message) == (status, "It broke")
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "values",
    [
        {"status": "complete"},
        {"status": "stopped", "started_at": timezone.now() - timedelta(days=2)},
        {"status": "stopped", "bucket": "other"},
    ],
)
def test_what_is_complete_or_old_or_of_another_bucket_is_not_resumed(
    values: dict[str, Any],
) -> None:
    one = scanned(**values)
    assert_problem(post(f"/{one.pk}/resume"), 409, "wrong-state")
    one.refresh_from_db()
    assert one.status == values["status"]
    assert not OrmQ.objects.exists()
