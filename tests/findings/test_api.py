"""Findings over HTTP: found, and decided about as the command does."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django_q.models import OrmQ

from storage_audit.bucket import multipart
from storage_audit.cleanup.models import Cleanup
from storage_audit.concurrency import acquire_slot
from storage_audit.conf import conf
from storage_audit.findings import action_result
from storage_audit.findings import api as findings
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from tests.api_client import (
    API_PATH,
    ApiClient,
    assert_problem,
    client_with_token,
    create_staff,
    read_all_pages,
    read_json,
)
from tests.builders import create_findings, create_orphans, create_unlisted_findings, read_states
from tests.keys import FOLDER, KEY, OTHER_KEY
from tests.promises import run_until_idle
from tests.real_bucket import Bucket
from tests.strange_keys import STRANGE_ORPHANS

pytestmark = pytest.mark.usefixtures("young_orphans_may_go", "no_request_limits")


def post(who: ApiClient, act: str, **body: Any) -> Any:
    return who.request("POST", f"/findings/actions/{act}", json.dumps(body))


def decided(act: str, *expected: int, **body: Any) -> Any:
    return read_json(post(client_with_token(), act, **body), *(expected or (200,)))


def keys_of(query: str = "") -> list[str]:
    return [each["key"] for each in client_with_token().get(f"/findings?{query}")["items"]]


# To look


@pytest.mark.django_db
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
def test_pages_have_each_finding_once(limit: int) -> None:
    create_unlisted_findings(*"gcaebfd")
    found = [each["key"] for each in read_all_pages(client_with_token(), "/findings", limit)]
    assert found == [*"gcaebfd"]


@pytest.mark.django_db
def test_filters() -> None:
    create_unlisted_findings("a/1", "a/2", "A/3", project_id="proj_1")
    create_unlisted_findings("b/1", kind="missing", state="resolved")
    assert keys_of() == ["a/1", "a/2", "A/3", "b/1"]
    assert keys_of("kind=missing") == keys_of("state=resolved") == keys_of("prefix=b/") == ["b/1"]
    assert keys_of("prefix=a/&project=proj_1") == ["a/1", "a/2"]
    assert keys_of("project=proj") == keys_of("kind=orphaned&state=resolved") == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "query", ["kind=gone", "state=", "prefix=%00", "project=", "cursor=-1", "limit=0", "limit=201"]
)
def test_a_bad_query_is_told_what_is_wrong(query: str) -> None:
    problem = assert_problem(
        client_with_token().request("GET", f"/findings?{query}"), 422, "invalid-values"
    )
    assert problem["errors"][0]["where"][:2] == ["query", query.partition("=")[0]]


@pytest.mark.django_db
def test_keys_are_as_they_are() -> None:
    create_unlisted_findings(*STRANGE_ORPHANS, evidence="<b>\x1b")
    assert set(keys_of()) == set(STRANGE_ORPHANS)
    one = Finding.objects.get(key=STRANGE_ORPHANS[0])
    answer = client_with_token().get(f"/findings/{one.pk}")
    assert (answer["key"], answer["evidence"]) == (one.key, "<b>\x1b")
    assert answer["first_scan"] == str(one.first_scan_id) and answer["finding_id"] == one.pk


@pytest.mark.django_db
def test_what_is_not_there_is_not_found() -> None:
    assert_problem(client_with_token().request("GET", "/findings/7"), 404, "not-found")
    assert_problem(client_with_token().request("GET", f"/findings/{2**63}"), 422, "invalid-values")
    create_unlisted_findings("a")
    mine = Finding.objects.get().pk
    for act in ("reopen", "track", "delete"):
        problem = assert_problem(
            post(client_with_token(), act, findings=[mine, mine + 5]), 404, "not-found"
        )
        assert str(mine + 5) in problem["detail"]


# To decide


@pytest.mark.django_db
def test_findings_are_ignored_with_a_note_and_reopened() -> None:
    create_unlisted_findings("a", "b")
    create_unlisted_findings("c", kind="missing")
    who = client_with_token(create_staff("view_finding", "change_finding"))
    body = {"findings": {"kind": "orphaned"}, "note": " made by the web site "}
    assert read_json(post(who, "ignore", **body), 200)["done"] == 2
    one = Finding.objects.get(key="a")
    assert (one.state, one.note) == ("ignored", "made by the web site")
    assert one.decided_by.startswith("ben")
    # Those that are open, unless the filter says otherwise: they are not.
    assert read_json(post(who, "ignore", **body), 200)["done"] == 0
    assert read_json(post(who, "reopen", findings={"prefix": "a"}), 200)["done"] == 1
    assert read_states() == {"a": "open", "b": "ignored", "c": "open"}


@pytest.mark.django_db
def test_what_is_left_has_its_reason() -> None:
    create_unlisted_findings("a", state="ignored", note="mine")
    answer = decided("ignore", findings={"state": "ignored"}, note="x")
    assert answer["done"] == 0 and answer["counts"] == {"left": 1, "results": 0}
    assert answer["left"] == [{"key": "a", "reason": "Already ignored: mine"}]


@pytest.mark.django_db
def test_of_a_long_list_the_first_are_told_and_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "ENTRIES_SHOWN", 2)
    create_unlisted_findings(*"abc")
    answer = decided("reopen", findings={"state": "open"})
    assert (len(answer["left"]), answer["counts"]["left"], answer["is_cut"]) == (2, 3, True)


GOOD = {"findings": {"kind": "orphaned"}}
BAD_CHOICES: list[Any] = [
    *({}, [], None, "all", [True], [-1], [2**63], [1.5], list(range(1001))),
    *({"kind": "gone"}, {"kind": None}, {"prefix": ""}, {"prefix": "\0"}),
    *({"prefix": "\ud800"}, {"key": "a"}, {"kind": "orphaned", "key": "a"}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("ignore", GOOD),
    *(("ignore", {**GOOD, "note": note}) for note in ("", "  ", "a\0", 7, None, "x" * 2001)),
    ("ignore", {**GOOD, "note": "x", "dry_run": True}),
    ("delete", {**GOOD, "dryrun": True}),
    *(("delete", {**GOOD, "dry_run": flag}) for flag in (1, "yes", None)),
    ("assign", GOOD),
    ("assign", {**GOOD, "project_id": "a\0"}),
    ("track", {**GOOD, "dry_run": True}),
    *(("reopen", {"findings": chosen}) for chosen in BAD_CHOICES),
    ("reopen", {}),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("act", "body"), BAD)
def test_a_bad_body_is_told_what_is_wrong_and_does_nothing(act: str, body: dict[str, Any]) -> None:
    create_unlisted_findings("a")
    create_unlisted_findings("b", state="ignored")
    problem = assert_problem(post(client_with_token(), act, **body), 422, "invalid-values")
    assert problem["errors"][0]["where"][0] == "body"
    assert read_states() == {"a": "open", "b": "ignored"}
    assert not Cleanup.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("body", ["", "{", "[]", "null"])
def test_a_body_that_cannot_be_read(body: str) -> None:
    answer = client_with_token().request("POST", "/findings/actions/reopen", body)
    assert answer.status_code in (400, 422)


def test_orphans_are_deleted_by_a_deletion_to_follow(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    [young] = create_orphans(
        bucket, "young", first_seen_at=Finding.objects.earliest("pk").last_seen_at
    )
    OrmQ.objects.all().delete()
    who = client_with_token(create_staff("view_finding", "delete_r2object", "view_cleanup"))
    answer = post(who, "delete", findings={"kind": "orphaned"})
    body = read_json(answer, 202)
    assert body["done"] == 2 and not body["dry_run"]
    [left] = body["left"]
    assert left["key"] == "young" and "Can be deleted once a complete scan" in left["reason"]
    [deletion] = body["deletions"]
    assert answer["Location"] == deletion["status_url"]
    assert OrmQ.objects.count() == 1
    assert LogEntry.objects.get().object_id == deletion["deletion_id"]
    cleanup = run_until_idle(Cleanup.objects.get())
    followed = who.get(deletion["status_url"].removeprefix(API_PATH))
    assert (followed["status"], followed["kind"]) == ("clean", "orphans")
    assert followed["requested_by"] == cleanup.requested_by != ""
    assert bucket.keys() == {"young"}
    assert read_states()["young"] == young.state == "open"


def test_a_dry_run_plans_and_deletes_nothing(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    who = client_with_token(create_staff("view_finding", "dry_run_cleanup"))
    body = read_json(post(who, "delete", findings={"kind": "orphaned"}, dry_run=True), 202)
    assert body["dry_run"]
    assert run_until_idle(Cleanup.objects.get()).status == "planned"
    assert bucket.keys() == {KEY}
    assert_problem(post(who, "delete", findings={"kind": "orphaned"}), 403, "forbidden")


def test_where_none_may_go_there_is_no_deletion(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, kind="unrecognised")
    body = decided("delete", 200, findings={"kind": "unrecognised"})
    assert (body["done"], body["deletions"], body["counts"]["left"]) == (0, [], 1)
    assert not Cleanup.objects.exists()


def test_objects_are_assigned_and_tracked(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    create_orphans(bucket, KEY)
    create_orphans(bucket, FOLDER + "new.mp4", kind="untracked")
    assert decided("assign", findings={"kind": "orphaned"}, project_id="proj_1")["done"] == 1
    assert R2Object.objects.get(key=KEY).project_id == "proj_1"
    assert decided("track", findings={"prefix": FOLDER})["done"] == 1
    assert R2Object.objects.count() == 2
    assert set(read_states().values()) == {"resolved"}


def test_ignored_file_is_not_tracked_and_the_answer_says_what_to_do(bucket: Bucket) -> None:
    [one] = create_orphans(bucket, KEY, kind="untracked", state="ignored", note="ours")
    answer = decided("track", findings={"state": "ignored"})
    told = f"Somebody ignored finding {one.pk} about this file. Reopen that finding first."
    assert (answer["done"], answer["left"]) == (0, [{"key": KEY, "reason": told}])
    assert read_states() == {KEY: "ignored"}


def test_only_a_live_project_is_given_an_object(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    for name in ("proj_gone", "<b>", "\u202e", "é"):
        answer = post(client_with_token(), "assign", findings={"kind": "orphaned"}, project_id=name)
        assert name in assert_problem(answer, 409, "refused")["detail"]
    assert not R2Object.objects.exists()


def test_rows_of_what_is_missing_are_removed(bucket: Bucket) -> None:
    there = bucket.upload("proj_1")
    R2Object.objects.create(bucket=bucket.name, key="gone", source="upload", state="stored")
    create_findings(bucket, there, "gone", kind="missing")
    body = decided("untrack", findings={"kind": "missing"})
    assert body["done"] == 1
    [left] = body["left"]
    assert left["key"] == there and "in the bucket" in left["reason"]
    assert R2Object.objects.get().key == there


def test_misnamed_objects_are_renamed_after_a_preview(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    old = "projects/proj_proj_1/scenes/s1/media/a.mp4"
    create_orphans(bucket, old, kind="misnamed", project_id="proj_1")
    which = {"findings": {"kind": "misnamed"}}
    plan = decided("rename", **which, dry_run=True)
    assert plan["dry_run"] and bucket.keys() == {old}
    [planned] = plan["results"]
    assert planned["key"] == old
    done = decided("rename", **which)
    assert (done["done"], done["dry_run"], done["results"]) == (1, False, plan["results"])
    assert bucket.keys() == {planned["result"]}


def test_unfinished_uploads_are_aborted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local R2 cannot list them; tests/findings/test_abort_uploads.py has a store that can."""
    monkeypatch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([[]]))
    create_findings(bucket, KEY, kind="unfinished", upload_id="x", last_modified=None)
    which = {"findings": {"kind": "unfinished"}}
    for dry_run in (True, False):
        body = decided("abort-uploads", **which, dry_run=dry_run)
        assert body["dry_run"] == dry_run and body["done"] == 1
    assert read_states() == {KEY: "resolved"}


@pytest.mark.parametrize("act", ["assign", "track", "untrack", "rename", "abort-uploads"])
def test_one_request_checks_a_limited_number(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr(action_result, "MAX_FINDINGS_PER_REQUEST", 2)
    create_orphans(bucket, *"abc")
    more = {"project_id": "proj_1"} if act == "assign" else {}
    problem = assert_problem(
        post(client_with_token(), act, findings={"kind": "orphaned"}, **more), 409, "refused"
    )
    assert "manage.py findings" in problem["detail"]
    Project.objects.create(pk="proj_1")
    two = list(Finding.objects.values_list("pk", flat=True)[:2])
    assert decided(act, findings=two, **more)["done"] in (0, 2)


@pytest.mark.parametrize("act", ["track", "delete"])
def test_who_finds_no_place_is_told_to_come_again(bucket: Bucket, act: str) -> None:
    with ExitStack() as all_places:
        for _place in range(conf().api_concurrency):
            all_places.enter_context(acquire_slot())
        answer = post(client_with_token(), act, findings={"kind": "orphaned"})
        assert_problem(answer, 429, "too-many-requests")
    assert answer["Retry-After"]


@pytest.fixture
def unconnected(bucket: Bucket) -> Iterator[Bucket]:
    create_orphans(bucket, KEY)
    bucket.wipe()
    yield bucket


@pytest.mark.parametrize("act", ["track", "delete"])
def test_a_bucket_without_its_marker_is_not_ours(unconnected: Bucket, act: str) -> None:
    assert_problem(
        post(client_with_token(), act, findings={"kind": "orphaned"}), 503, "bucket-not-ours"
    )
    assert not Cleanup.objects.exists()
