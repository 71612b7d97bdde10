"""What the seed document's addresses answer: by the real wrangler, Cloudflare's own API and S3."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Semaphore, Thread
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from devtools.http_reply import Reply
from storage_audit import concurrency
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import Conf, conf
from storage_audit.debug import api as debug
from storage_audit.debug import comparison_result
from storage_audit.doctor.models import HealthReport
from storage_audit.models import Project
from storage_audit.ownership import bucket_connection
from storage_audit.ownership.bucket_marker import MARKER_KEY
from tests.admin_client import admin_url, page_text, superuser_client
from tests.api_client import API_PATH, assert_problem, client_with_token, create_staff, read_json
from tests.bucket.fake_wrangler import FakeWrangler
from tests.database import lock_table
from tests.faults.kinds import error_xml
from tests.faults.matching import is_listing, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.promises import FLAT_KEY, record_deleted_projects, run_until_idle, track_key
from tests.real_bucket import BUCKETS, Bucket

ADD_REPORT = "add_healthreport"
AMBIGUOUS, STRANGE = "proj_1_x_s1_media.mp4", "projects/proj_1/scenes/s1/media/a\nb.mp4"
OF_A_PROJECT = (
    "GET /debug/list-project-files/",
    "GET /debug/verify-cleanup/",
    "POST /debug/cleanup/",
)


# Where the web server runs


@pytest.mark.django_db
def test_wrangler_is_logged_in_and_sees_the_buckets(cloudflare_api: CloudflareApi) -> None:
    come = client_with_token(create_staff(ADD_REPORT), may_write=False)
    auth = come.get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["exit_code"], auth["reason"]) == (True, 0, "")
    assert '"loggedIn": true' in auth["stdout"] and auth["accounts"]
    access = come.get("/debug/r2-access")
    assert set(access["buckets"]) == set(BUCKETS)
    assert "Listing buckets" in access["stdout"] and access["exit_code"] == 0
    assert conf().api_token not in repr((auth, access))


@pytest.mark.django_db
def test_wrangler_that_is_not_logged_in_is_told_of(
    cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"API_TOKEN": ""}
    auth = client_with_token().get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["exit_code"]) == (False, 1)
    assert '"loggedIn":false' in auth["stdout"]


@pytest.mark.django_db
def test_without_wrangler_nothing_is_known_and_it_says_why(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"WRANGLER_PATH": "/no/such/wrangler"}
    auth = client_with_token().get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["exit_code"]) == (None, None)
    access = client_with_token().get("/debug/r2-access")
    assert (access["buckets"], access["exit_code"]) == (None, None)
    for answer in (auth, access):
        assert "wrangler is not installed" in answer["reason"]


@pytest.mark.django_db
def test_variables_are_told_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "planted-token")
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.setenv("R2_BUCKET_NAME", "media")
    monkeypatch.delenv("WRANGLER_PATH", raising=False)
    monkeypatch.setenv("PATH", "/here:/there")
    told_of = client_with_token().get("/debug/env-vars")
    assert told_of["CLOUDFLARE_API_TOKEN"] == "✓ Set"
    assert told_of["CLOUDFLARE_ACCOUNT_ID"] == "❌ Not Set"
    assert (told_of["R2_BUCKET_NAME"], told_of["WRANGLER_PATH"]) == ("media", "/here:/there")
    assert told_of["variables"]["R2_BUCKET_NAME"]["is_set"]
    assert "planted-token" not in repr(told_of)
    monkeypatch.setenv("WRANGLER_PATH", "/opt/wrangler")
    monkeypatch.delenv("R2_BUCKET_NAME")
    told_of = client_with_token().get("/debug/env-vars")
    assert (told_of["R2_BUCKET_NAME"], told_of["WRANGLER_PATH"]) == ("Not Set", "/opt/wrangler")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "name", ["R2_ENDPOINT_URL", "HTTPS_PROXY", "CLOUDFLARE_API_BASE_URL", "R2_BUCKET_NAME"]
)
def test_an_address_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://bob:hunter2@store.example:99")
    told_of = client_with_token().get("/debug/env-vars")
    assert "store.example:99" in told_of["variables"][name]["shown"]
    assert "hunter2" not in repr(told_of)


@pytest.mark.django_db
def test_an_account_without_a_name_has_none(tmp_path: Path, settings: Settings) -> None:
    account = '{"loggedIn": true, "accounts": [{"id": "a", "name": null}]}'
    FakeWrangler(tmp_path, settings).write_script(f"echo '{account}'")
    auth = client_with_token().get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["accounts"]) == (True, [""])


# The files of a project


def test_both_discoveries_and_what_only_one_finds(bucket: Bucket) -> None:
    tracked = bucket.upload("proj_1")
    Project.objects.create(pk="proj_1_x")
    bucket.put(FLAT_KEY, AMBIGUOUS, STRANGE)
    found = client_with_token().get("/debug/list-project-files/proj_1")
    assert found["project_id"] == "proj_1" and found["bucket"] == bucket.name
    assert set(found["files_found_by_app"]) == {tracked, FLAT_KEY, STRANGE}
    assert set(found["files_found_by_script"]) == {tracked, FLAT_KEY, STRANGE, AMBIGUOUS}
    assert found["differences"] == {"only_in_app": [], "only_in_script": [AMBIGUOUS]}
    assert found["counts"]["found_by_script"] == 4
    assert not found["is_cut"]
    assert not Cleanup.objects.exists()


def test_each_bucket_that_may_have_some_is_checked(bucket: Bucket) -> None:
    elsewhere = Bucket(bucket.r2, "other")
    elsewhere.wipe()
    bucket_connection.connect_bucket("other")
    here, there = bucket.upload("proj_1"), "projects/proj_1/scenes/s1/media/other.mp4"
    elsewhere.put(there)
    track_key(elsewhere, there, "proj_1")
    found = client_with_token().get("/debug/list-project-files/proj_1")
    assert (found["bucket"], found["buckets"]) == ("tests", ["other", "tests"])
    assert found["files_found_by_app"] == [there, here]
    assert found["counts"]["found_by_app"] == 2
    elsewhere.wipe()


def test_long_lists_are_cut_and_say_so(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_result, "MAX_KEYS_KEPT", 2)
    bucket.put(*(f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(3)))
    found = client_with_token().get("/debug/list-project-files/proj_1")
    assert len(found["files_found_by_app"]) == 2
    assert found["counts"]["found_by_app"] == 3 and found["is_cut"]


@pytest.mark.django_db
@pytest.mark.parametrize("project_id", ["nothing", "%00", "proj_%FF", "..%2F"])
@pytest.mark.parametrize("path", OF_A_PROJECT)
def test_what_no_project_can_be_called_is_not_found(path: str, project_id: str) -> None:
    method, address = path.split()
    assert_problem(client_with_token().request(method, address + project_id), 404, "not-found")
    assert not Cleanup.objects.exists()


def test_a_store_that_does_not_answer_is_told_of(store: FaultyStore) -> None:
    store.rules.append(
        rule_for(is_listing, Reply(503, error_xml("SlowDown"), (("Retry-After", "7"),)))
    )
    answer = client_with_token().request("GET", "/debug/list-project-files/proj_1")
    assert_problem(answer, 503, "store-unavailable")
    assert int(answer["Retry-After"]) == 7


def test_a_store_that_refuses_is_told_of(store: FaultyStore) -> None:
    store.rules.append(rule_for(is_listing, Reply(403, error_xml("AccessDenied"))))
    problem = assert_problem(
        client_with_token().request("GET", "/debug/list-project-files/proj_1"), 502, "store-refused"
    )
    assert "AccessDenied" in problem["detail"]


def test_a_bucket_that_is_not_ours_is_told_of(bucket: Bucket) -> None:
    bucket.r2.remove(MARKER_KEY, bucket.name)
    problem = assert_problem(
        client_with_token().request("GET", "/debug/list-project-files/proj_1"),
        503,
        "bucket-not-ours",
    )
    assert "connect_bucket" in problem["detail"]


def test_what_takes_too_long_is_told_of(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "API_TIMEOUT_SECONDS", 0)
    assert_problem(
        client_with_token().request("GET", "/debug/list-project-files/proj_1"), 504, "too-slow"
    )


# What is left


def test_both_eyes_see_what_is_left(bucket: Bucket, cloudflare_api: CloudflareApi) -> None:
    record_deleted_projects("proj_1")
    come = client_with_token()
    clean = come.get("/debug/verify-cleanup/proj_1")
    assert clean == {
        "project_id": "proj_1",
        "files_remaining_wrangler": [],
        "files_remaining_s3": [],
        "is_clean_wrangler": True,
        "is_clean_s3": True,
        "reason_wrangler": "",
        "reason_s3": "",
        "buckets": ["tests"],
        "counts": {"wrangler": 0, "s3": 0},
        "is_cut": False,
    }
    bucket.put(FLAT_KEY)
    left = come.get("/debug/verify-cleanup/proj_1")
    assert left["files_remaining_wrangler"] == left["files_remaining_s3"] == [FLAT_KEY]
    assert left["is_clean_wrangler"] is left["is_clean_s3"] is False
    assert not Cleanup.objects.exists()


def test_without_a_token_cloudflare_is_not_asked(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    found = client_with_token().get("/debug/verify-cleanup/proj_1")
    assert found["files_remaining_wrangler"] is found["is_clean_wrangler"] is None
    assert "CLOUDFLARE_API_TOKEN" in found["reason_wrangler"]
    assert (found["files_remaining_s3"], found["is_clean_s3"]) == ([], True)


def test_what_could_not_be_seen_is_not_called_clean(store: FaultyStore) -> None:
    record_deleted_projects("proj_1")
    store.rules.append(rule_for(is_listing, Reply(500, error_xml("InternalError"))))
    found = client_with_token().get("/debug/verify-cleanup/proj_1")
    assert found["files_remaining_s3"] is found["is_clean_s3"] is None
    assert "InternalError" in found["reason_s3"]


@pytest.fixture
def other(bucket: Bucket) -> Iterator[Bucket]:
    """Another bucket, in which a row says that there is an object of the project."""
    found = Bucket(bucket.r2, "other")
    track_key(found, FLAT_KEY, "proj_1")
    found.put(FLAT_KEY)
    yield found
    found.wipe()


def test_all_buckets_of_the_project_are_checked(
    other: Bucket, cloudflare_api: CloudflareApi
) -> None:
    record_deleted_projects("proj_1")
    bucket_connection.connect_bucket(other.name)
    left = client_with_token().get("/debug/verify-cleanup/proj_1")
    assert left["buckets"] == ["other", "tests"]
    assert left["files_remaining_wrangler"] == left["files_remaining_s3"] == [FLAT_KEY]
    assert left["is_clean_wrangler"] is left["is_clean_s3"] is False


def test_a_bucket_that_cannot_be_listed_is_not_called_clean(
    other: Bucket, cloudflare_api: CloudflareApi
) -> None:
    record_deleted_projects("proj_1")
    left = client_with_token().get("/debug/verify-cleanup/proj_1")
    for eye in ("wrangler", "s3"):
        assert left[f"files_remaining_{eye}"] is left[f"is_clean_{eye}"] is None
        assert left[f"reason_{eye}"].startswith("Bucket other: ")
        assert left["counts"][eye] is None


def test_long_lists_of_what_is_left_are_cut_and_say_so(
    bucket: Bucket, cloudflare_api: CloudflareApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_deleted_projects("proj_1")
    monkeypatch.setattr(comparison_result, "MAX_KEYS_KEPT", 2)
    bucket.put(*(f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(3)))
    left = client_with_token().get("/debug/verify-cleanup/proj_1")
    assert len(left["files_remaining_wrangler"]) == len(left["files_remaining_s3"]) == 2
    assert left["counts"] == {"wrangler": 3, "s3": 3} and left["is_cut"]


def test_both_listings_share_the_time(
    store: FaultyStore, cloudflare_api: CloudflareApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_deleted_projects("proj_1")
    monkeypatch.setattr(debug, "API_TIMEOUT_SECONDS", 1)
    store.rules.append(rule_for(is_listing, run_before(lambda: time.sleep(1.2)), times=1))
    left = client_with_token().get("/debug/verify-cleanup/proj_1")
    assert left["reason_s3"] == left["reason_wrangler"] == "It took longer than 1 seconds."
    assert left["is_clean_s3"] is left["is_clean_wrangler"] is None


# How many at once


@pytest.fixture
def one_place(settings: Settings) -> Iterator[None]:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"API_CONCURRENCY": 1}
    concurrency.slot_semaphore.cache_clear()
    yield
    concurrency.slot_semaphore.cache_clear()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "line",
    [
        "GET /debug/wrangler-auth",
        "GET /debug/r2-access",
        "GET /debug/list-project-files/proj_1",
        "GET /debug/verify-cleanup/proj_1",
        "POST /doctor",
    ],
)
def test_what_takes_its_time_needs_a_place(one_place: None, line: str) -> None:
    with concurrency.acquire_slot():
        answer = client_with_token().request(*line.split())
        assert client_with_token().get("/debug/env-vars")
    assert_problem(answer, 429, "too-many-requests")
    assert answer["Retry-After"] == "5"
    assert not HealthReport.objects.exists()


def test_comparisons_and_health_checks_of_the_admin_need_a_slot_too(
    one_place: None, bucket: Bucket
) -> None:
    client = superuser_client()
    with concurrency.acquire_slot():
        compared = client.get(reverse("admin:storage_audit_compare"), {"project_id": "proj_1"})
        examined = client.post(admin_url("healthreport", "add"), follow=True)
    for answer in (compared, examined):
        assert "Too many requests at once." in page_text(answer)
    assert not HealthReport.objects.exists()
    assert "All three find the same files" in page_text(
        client.get(compared.wsgi_request.get_full_path())
    )


def test_the_place_is_given_back(one_place: None, store: FaultyStore) -> None:
    store.rules.append(rule_for(is_listing, Reply(403, error_xml("AccessDenied")), times=1))
    come = client_with_token()
    assert_problem(come.request("GET", "/debug/list-project-files/proj_1"), 502, "store-refused")
    for _time in range(2):
        assert come.get("/debug/list-project-files/proj_1")


def test_those_who_come_at_once_have_the_same_places(
    one_place: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly() -> Conf:
        time.sleep(0.1)
        return conf()

    monkeypatch.setattr(concurrency, "conf", slowly)
    came, got_one, refused_ones = Barrier(4), list[bool](), Semaphore(0)

    def come() -> None:
        came.wait()
        try:
            with concurrency.acquire_slot():
                got_one.append(True)
                for _other in range(3):
                    refused_ones.acquire(timeout=5)
        except concurrency.Busy:
            refused_ones.release()

    threads = [Thread(target=come) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got_one == [True]


# Cleanups in a mode


def cleaned(mode: str, query: str = "") -> Any:
    return client_with_token().request("POST", f"/debug/cleanup/proj_1?mode={mode}{query}")


MODES = {
    "wrangler": ("listed", "wrangler"),
    "s3": ("listed", "batch"),
    "database": ("tracked", "batch"),
    "sequential": ("listed", "wrangler_sequential"),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("mode", "chosen"), MODES.items())
def test_each_mode_is_asked_for(mode: str, chosen: tuple[str, str]) -> None:
    record_deleted_projects("proj_1")
    answer = cleaned(mode)
    made = read_json(answer, 202)
    cleanup = Cleanup.objects.get(pk=made["deletion_id"])
    assert answer["Location"] == made["status_url"] == f"{API_PATH}/deletions/{cleanup.pk}"
    assert made["deletion_ids"] == [made["deletion_id"]]
    assert (made["project_id"], made["mode"], made["dry_run"]) == ("proj_1", mode, False)
    assert made["result"]["status"] == "pending"
    assert (cleanup.discovery, cleanup.strategy) == chosen
    assert LogEntry.objects.get().object_id == str(cleanup.pk)
    assert OrmQ.objects.count() == 1


def test_a_mode_decides_what_is_found(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    kept = bucket.upload("proj_10")
    Project.objects.filter(pk="proj_1").delete()
    Cleanup.objects.update(status="clean", next_attempt_at=None)
    bucket.put(FLAT_KEY)
    run_until_idle(Cleanup.objects.get(pk=read_json(cleaned("database"), 202)["deletion_id"]))
    assert bucket.keys() == {kept, FLAT_KEY}
    run_until_idle(Cleanup.objects.get(pk=read_json(cleaned("s3"), 202)["deletion_id"]))
    assert bucket.keys() == {kept}


def test_a_live_project_is_to_be_deleted_first(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    problem = assert_problem(cleaned("s3"), 409, "project-exists")
    assert "Delete the project" in problem["detail"]
    assert not Cleanup.objects.exists() and not LogEntry.objects.exists()


def test_a_dry_run_may_be_of_a_live_project(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    made = read_json(cleaned("s3", "&dry_run=true"), 202)
    assert made["dry_run"] and made["result"]["dry_run"]
    assert run_until_idle(Cleanup.objects.get()).status == "planned"
    assert bucket.keys() and OrmQ.objects.count() == 1


def test_without_a_queue_the_result_is_there_at_once(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    record_deleted_projects("proj_1")
    bucket.put(FLAT_KEY)
    result = read_json(cleaned("s3"), 202)["result"]
    assert result["status"] == "clean" and result["totals"]["deleted"]["objects"] == 1


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["mode=magic", "mode=s3&dry_run=perhaps"])
def test_a_mode_that_there_is_not_is_refused(query: str) -> None:
    assert_problem(
        client_with_token().request("POST", f"/debug/cleanup/proj_1?{query}"), 422, "invalid-values"
    )


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["dryrun=true", "mode=s3&Dry_Run=true", "dry_run[]=true"])
def test_a_dry_run_that_is_misspelt_deletes_nothing(query: str) -> None:
    record_deleted_projects("proj_1")
    problem = assert_problem(
        client_with_token().request("POST", f"/debug/cleanup/proj_1?{query}"), 400, "bad-request"
    )
    assert "mode, dry_run" in problem["detail"]
    assert not Cleanup.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("header", [{}, {"Transfer-Encoding": "chunked"}])
def test_a_dry_run_in_a_body_deletes_nothing(header: dict[str, str]) -> None:
    record_deleted_projects("proj_1")
    body = "" if header else '{"dry_run": true}'
    answer = client_with_token().request(
        "POST", "/debug/cleanup/proj_1?mode=s3", body=body, **header
    )
    assert_problem(answer, 400, "bad-request")
    assert not Cleanup.objects.exists()


# The doctor


@pytest.mark.django_db
def test_the_latest_health_report_is_shown() -> None:
    earlier = timezone.now() - timedelta(minutes=1)
    HealthReport.objects.create(context="web", host="h", pid=1, at=earlier)
    latest = HealthReport.objects.create(context="web", host="h", pid=1)
    assert client_with_token().get("/doctor")["run"] == str(latest.run)


def test_the_doctor_is_asked_and_tells(bucket: Bucket) -> None:
    come = client_with_token()
    assert_problem(come.request("GET", "/doctor"), 404, "not-found")
    answer = come.request("POST", "/doctor")
    assert answer["Location"] == f"{API_PATH}/doctor"
    told_of = read_json(answer, 202)
    (report,) = told_of["reports"]
    assert (report["context"], report["of_this_run"]) == ("web", True)
    assert {"versions", "access", "round trip"} <= {probe["name"] for probe in report["probes"]}
    assert told_of["awaits_worker"] and OrmQ.objects.count() == 1
    assert LogEntry.objects.get().object_id == str(HealthReport.objects.get().pk)
    HealthReport.objects.create(context="worker", run=told_of["run"], host="other", pid=1)
    later = come.get("/doctor")
    assert (later["run"], later["awaits_worker"]) == (told_of["run"], False)
    assert [each["context"] for each in later["reports"]] == ["web", "worker"]


def test_the_doctor_tells_what_it_saw_also_when_the_database_takes_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    come = client_with_token()
    with lock_table(monkeypatch, "storage_audit_healthreport"):
        told_of = read_json(come.request("POST", "/doctor"), 202)
    assert told_of["wrong"] and not told_of["awaits_worker"]
    assert len(told_of["reports"]) == 1
