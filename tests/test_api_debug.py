"""What the seed document's addresses answer: by the real wrangler, Cloudflare's own API and S3."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django_q.models import OrmQ
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from devtools.faults.kinds import error
from devtools.faults.matching import is_listing, on
from devtools.faults.proxy import FaultyStore, Reply
from storage_audit.audit import comparison
from storage_audit.audit.installation import MARKER
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation, Diagnosis, Project
from tests.api_client import API, program, refused, staff, told
from tests.conftest import BUCKETS, Bucket
from tests.promises import FLAT, deleted, run

DIAGNOSE = "view_diagnosis"
AMBIGUOUS, STRANGE = "proj_1_x_s1_media.mp4", "projects/proj_1/scenes/s1/media/a\nb.mp4"
OF_A_PROJECT = (
    "GET /debug/list-project-files/",
    "GET /debug/verify-cleanup/",
    "POST /debug/cleanup/",
)


# Where the web server runs


@pytest.mark.django_db
def test_wrangler_is_logged_in_and_sees_the_buckets(cloudflare_api: CloudflareApi) -> None:
    come = program(staff(DIAGNOSE), may_write=False)
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
    auth = program().get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["exit_code"]) == (False, 1)
    assert '"loggedIn":false' in auth["stdout"]


@pytest.mark.django_db
def test_without_wrangler_nothing_is_known_and_it_says_why(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"WRANGLER": "/no/such/wrangler"}
    auth = program().get("/debug/wrangler-auth")
    assert (auth["is_authenticated"], auth["exit_code"]) == (None, None)
    access = program().get("/debug/r2-access")
    assert (access["buckets"], access["exit_code"]) == (None, None)
    for answer in (auth, access):
        assert "wrangler is missing" in answer["reason"]


@pytest.mark.django_db
def test_variables_are_told_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "planted-token")
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.setenv("R2_BUCKET_NAME", "media")
    monkeypatch.delenv("WRANGLER_PATH", raising=False)
    monkeypatch.setenv("PATH", "/here:/there")
    told_of = program().get("/debug/env-vars")
    assert told_of["CLOUDFLARE_API_TOKEN"] == "✓ Set"
    assert told_of["CLOUDFLARE_ACCOUNT_ID"] == "❌ Not Set"
    assert (told_of["R2_BUCKET_NAME"], told_of["WRANGLER_PATH"]) == ("media", "/here:/there")
    assert told_of["variables"]["R2_BUCKET_NAME"]["is_set"]
    assert "planted-token" not in repr(told_of)
    monkeypatch.setenv("WRANGLER_PATH", "/opt/wrangler")
    monkeypatch.delenv("R2_BUCKET_NAME")
    told_of = program().get("/debug/env-vars")
    assert (told_of["R2_BUCKET_NAME"], told_of["WRANGLER_PATH"]) == ("Not Set", "/opt/wrangler")


# The files of a project


def test_both_discoveries_and_what_only_one_finds(bucket: Bucket) -> None:
    tracked = bucket.upload("proj_1")
    Project.objects.create(pk="proj_1_x")
    bucket.put(FLAT, AMBIGUOUS, STRANGE)
    found = program().get("/debug/list-project-files/proj_1")
    assert found["project_id"] == "proj_1" and found["bucket"] == bucket.name
    assert set(found["files_found_by_app"]) == {tracked, FLAT, STRANGE}
    assert set(found["files_found_by_script"]) == {tracked, FLAT, STRANGE, AMBIGUOUS}
    assert found["differences"] == {"only_in_app": [], "only_in_script": [AMBIGUOUS]}
    assert found["counts"]["found_by_script"] == 4
    assert not found["is_cut"]
    assert not CleanupOperation.objects.exists()


def test_long_lists_are_cut_and_say_so(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "FIRST_KEYS", 2)
    bucket.put(*(f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(3)))
    found = program().get("/debug/list-project-files/proj_1")
    assert len(found["files_found_by_app"]) == 2
    assert found["counts"]["found_by_app"] == 3 and found["is_cut"]


@pytest.mark.django_db
@pytest.mark.parametrize("project_id", ["nothing", "%00", "proj_%FF", "..%2F"])
@pytest.mark.parametrize("path", OF_A_PROJECT)
def test_what_no_project_can_be_called_is_not_found(path: str, project_id: str) -> None:
    method, address = path.split()
    refused(program().ask(method, address + project_id), 404, "not-found")
    assert not CleanupOperation.objects.exists()


def test_a_store_that_does_not_answer_is_told_of(store: FaultyStore) -> None:
    store.rules.append(on(is_listing, Reply(503, error("SlowDown"), (("Retry-After", "7"),))))
    answer = program().ask("GET", "/debug/list-project-files/proj_1")
    refused(answer, 503, "store-unavailable")
    assert int(answer["Retry-After"]) == 7


def test_a_store_that_refuses_is_told_of(store: FaultyStore) -> None:
    store.rules.append(on(is_listing, Reply(403, error("AccessDenied"))))
    problem = refused(
        program().ask("GET", "/debug/list-project-files/proj_1"), 502, "store-refused"
    )
    assert "AccessDenied" in problem["detail"]


def test_a_bucket_that_is_not_ours_is_told_of(bucket: Bucket) -> None:
    bucket.r2.remove(MARKER, bucket.name)
    problem = refused(
        program().ask("GET", "/debug/list-project-files/proj_1"), 503, "bucket-not-ours"
    )
    assert "claim_bucket" in problem["detail"]


def test_what_takes_too_long_is_told_of(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage_audit.api import debug

    monkeypatch.setattr(debug, "PATIENCE", 0)
    refused(program().ask("GET", "/debug/list-project-files/proj_1"), 504, "too-slow")


# What is left


def test_both_eyes_see_what_is_left(bucket: Bucket, cloudflare_api: CloudflareApi) -> None:
    deleted("proj_1")
    come = program()
    clean = come.get("/debug/verify-cleanup/proj_1")
    assert clean == {
        "project_id": "proj_1",
        "files_remaining_wrangler": [],
        "files_remaining_s3": [],
        "is_clean_wrangler": True,
        "is_clean_s3": True,
        "reason_wrangler": "",
        "reason_s3": "",
    }
    bucket.put(FLAT)
    left = come.get("/debug/verify-cleanup/proj_1")
    assert left["files_remaining_wrangler"] == left["files_remaining_s3"] == [FLAT]
    assert left["is_clean_wrangler"] is left["is_clean_s3"] is False
    assert not CleanupOperation.objects.exists()


def test_without_a_token_cloudflare_is_not_asked(bucket: Bucket) -> None:
    deleted("proj_1")
    found = program().get("/debug/verify-cleanup/proj_1")
    assert found["files_remaining_wrangler"] is found["is_clean_wrangler"] is None
    assert "CLOUDFLARE_API_TOKEN" in found["reason_wrangler"]
    assert (found["files_remaining_s3"], found["is_clean_s3"]) == ([], True)


def test_what_could_not_be_seen_is_not_called_clean(store: FaultyStore) -> None:
    deleted("proj_1")
    store.rules.append(on(is_listing, Reply(500, error("InternalError"))))
    found = program().get("/debug/verify-cleanup/proj_1")
    assert found["files_remaining_s3"] is found["is_clean_s3"] is None
    assert "InternalError" in found["reason_s3"]


# Cleanups in a mode


def cleaned(mode: str, query: str = "") -> Any:
    return program().ask("POST", f"/debug/cleanup/proj_1?mode={mode}{query}")


MODES = {
    "wrangler": ("listed", "wrangler"),
    "s3": ("listed", "batch"),
    "database": ("tracked", "batch"),
    "sequential": ("listed", "wrangler_sequential"),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("mode", "chosen"), MODES.items())
def test_each_mode_is_asked_for(mode: str, chosen: tuple[str, str]) -> None:
    deleted("proj_1")
    answer = cleaned(mode)
    made = told(answer, 202)
    operation = CleanupOperation.objects.get(pk=made["deletion_id"])
    assert answer["Location"] == made["status_url"] == f"{API}/deletions/{operation.pk}"
    assert made["deletion_ids"] == [made["deletion_id"]]
    assert (made["project_id"], made["mode"], made["dry_run"]) == ("proj_1", mode, False)
    assert made["result"]["status"] == "pending"
    assert (operation.discovery, operation.strategy) == chosen
    assert LogEntry.objects.get().object_id == str(operation.pk)
    assert OrmQ.objects.count() == 1


def test_a_mode_decides_what_is_looked_for(bucket: Bucket) -> None:
    gone, kept = bucket.upload("proj_1"), bucket.upload("proj_10")
    Project.objects.filter(pk="proj_1").delete()
    bucket.put(FLAT)
    run(CleanupOperation.objects.get(pk=told(cleaned("database"), 202)["deletion_id"]))
    assert bucket.keys() == {kept, FLAT}
    run(CleanupOperation.objects.get(pk=told(cleaned("s3"), 202)["deletion_id"]))
    assert bucket.keys() == {kept} and gone


def test_a_live_project_is_to_be_deleted_first(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    problem = refused(cleaned("s3"), 409, "project-exists")
    assert "Delete it" in problem["detail"]
    assert not CleanupOperation.objects.exists() and not LogEntry.objects.exists()


def test_a_dry_run_may_be_of_a_live_project(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    made = told(cleaned("s3", "&dry_run=true"), 202)
    assert made["dry_run"] and made["result"]["dry_run"]
    assert run(CleanupOperation.objects.get()).status == "planned"
    assert bucket.keys() and OrmQ.objects.count() == 1


def test_without_a_queue_the_result_is_there_at_once(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    deleted("proj_1")
    bucket.put(FLAT)
    result = told(cleaned("s3"), 202)["result"]
    assert result["status"] == "clean" and result["books"]["deleted"]["objects"] == 1


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["mode=magic", "mode=s3&dry_run=perhaps"])
def test_a_mode_that_there_is_not_is_refused(query: str) -> None:
    refused(program().ask("POST", f"/debug/cleanup/proj_1?{query}"), 422, "invalid-values")


# The doctor


def test_the_doctor_is_asked_and_tells(bucket: Bucket) -> None:
    come = program()
    refused(come.ask("GET", "/diagnostics"), 404, "not-found")
    told_of = told(come.ask("POST", "/diagnostics"), 202)
    (report,) = told_of["reports"]
    assert (report["context"], report["of_this_run"]) == ("web", True)
    assert {"versions", "access", "canary"} <= {probe["name"] for probe in report["probes"]}
    assert told_of["awaits_worker"] and OrmQ.objects.count() == 1
    assert LogEntry.objects.get().object_id == str(Diagnosis.objects.get().pk)
    Diagnosis.objects.create(context="worker", run=told_of["run"], host="other", pid=1)
    later = come.get("/diagnostics")
    assert (later["run"], later["awaits_worker"]) == (told_of["run"], False)
    assert [each["context"] for each in later["reports"]] == ["web", "worker"]
