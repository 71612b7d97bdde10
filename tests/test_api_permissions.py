"""Which permission opens which address of the API; each is found in the code, so that a new one
fails here until somebody decides on it."""

import json
from typing import Any

import pytest

from storage_audit.api.urls import api
from storage_audit.models import BucketScan, CleanupOperation, Finding
from tests.api_client import API, PROBLEM, Program, program, staff
from tests.conftest import Bucket
from tests.test_permissions import DECIDED_ELSEWHERE, patterns, state

ANYBODY = ""
DIAGNOSE, EXAMINE = "view_diagnosis", "add_diagnosis"
LOOK, VIEW = "verify_cleanup", "view_cleanupoperation"
DECIDED = {
    "DELETE /projects/{project_id}": "delete_project",
    "GET /deletions": VIEW,
    "GET /deletions/{deletion_id}": VIEW,
    "GET /deletions/{deletion_id}/items": VIEW,
    "POST /deletions/{deletion_id}/verify": LOOK,
    # Each starts wrangler, which takes a second of CPU.
    "GET /debug/wrangler-auth": EXAMINE,
    "GET /debug/r2-access": EXAMINE,
    "GET /debug/env-vars": DIAGNOSE,
    "GET /debug/list-project-files/{project_id}": LOOK,
    "GET /debug/verify-cleanup/{project_id}": LOOK,
    "POST /debug/cleanup/{project_id}": "force_cleanup",
    "GET /findings": "view_finding",
    "GET /findings/{finding_id}": "view_finding",
    "POST /findings/actions/acknowledge": "view_finding change_finding",
    "POST /findings/actions/reopen": "view_finding change_finding",
    "POST /findings/actions/delete-orphans": "view_finding delete_r2object",
    # Both: an object goes with the project that it is given to.
    "POST /findings/actions/adopt": "view_finding change_r2object delete_r2object",
    "POST /findings/actions/track": "view_finding change_r2object",
    "POST /findings/actions/untrack": "view_finding delete_r2object",
    "POST /findings/actions/rename": "view_finding change_r2object",
    "POST /findings/actions/abort-uploads": "view_finding delete_r2object",
    "GET /scans": "view_bucketscan",
    "GET /scans/{scan_id}": "view_bucketscan",
    "POST /scans": "add_bucketscan",
    "POST /scans/{scan_id}/stop": "change_bucketscan",
    "POST /scans/{scan_id}/resume": "change_bucketscan",
    "GET /diagnostics": DIAGNOSE,
    "POST /diagnostics": EXAMINE,
}
# It depends on what is asked for.
DRY_RUN = {
    "POST /debug/cleanup/{project_id}?dry_run=true": "dry_run_cleanup",
    "POST /findings/actions/delete-orphans#dry_run": "view_finding dry_run_cleanup",
}
MORE_OF_A_BODY: dict[str, dict[str, Any]] = {
    "acknowledge": {"note": "ours"},
    "adopt": {"project_id": "proj_1"},
    "delete-orphans#dry_run": {"dry_run": True},
}
ASKED = DECIDED | DRY_RUN
OTHERS = {"openapi-json", "api-root"}


def body_of(path: str, finding_id: object) -> dict[str, Any] | None:
    *_before, start, act = path.split("/")
    if start == "actions":
        return {"findings": [finding_id], **MORE_OF_A_BODY.get(act, {})}
    return {"/scans": {"purpose": "reconcile"}, "/scans/{scan_id}/resume": {}}.get(path)


def ask(who: Program, line: str) -> int:
    """The status of the answer."""
    method, path = line.split()
    ids = {
        "project_id": "proj_1",
        "deletion_id": CleanupOperation.objects.earliest("created_at").pk,
        "finding_id": Finding.objects.get().pk,
        "scan_id": BucketScan.objects.earliest("started_at").pk,
    }
    address, body = path.partition("#")[0].format(**ids), body_of(path, ids["finding_id"])
    answer = who.ask(method, address, json.dumps(body) if body is not None else "")
    assert answer["Content-Type"] == PROBLEM or answer.status_code < 300
    status: int = answer.status_code
    return status


def test_somebody_decided_on_each_address() -> None:
    paths = api.get_openapi_schema(path_prefix="")["paths"]
    assert {f"{m.upper()} {path}" for path, ms in paths.items() for m in ms} == set(DECIDED)
    names = {name for name, _pattern in patterns() if name.startswith(DECIDED_ELSEWHERE)}
    assert len(names) == len(DECIDED) + len(OTHERS) + 1
    assert {f"{DECIDED_ELSEWHERE}:{name}" for name in OTHERS} <= names


def test_nobody_comes_in_without_a_key(world: Bucket) -> None:
    before = state(world)
    assert {line: ask(Program(), line) for line in ASKED} == dict.fromkeys(ASKED, 401)
    assert state(world) == before


@pytest.mark.parametrize(
    "held", sorted({*ASKED.values(), *(one for each in ASKED.values() for one in each.split())})
)
def test_each_permission_opens_its_addresses_and_no_other(world: Bucket, held: str) -> None:
    who, permissions = program(staff(*held.split())), set(held.split())
    ask(who, "GET /deletions")
    before = state(world)
    opened = [line for line, needed in ASKED.items() if permissions >= set(needed.split())]
    for line in ASKED.keys() - opened:
        assert ask(who, line) == 403, line
    assert state(world) == before
    for line in opened:
        # 409, as the project lives, and the scan is complete.
        assert ask(who, line) in (200, 202, 409), line


def test_a_read_only_token_of_a_superuser_changes_nothing(world: Bucket) -> None:
    who = program(may_write=False)
    ask(who, "GET /deletions")
    before = state(world)
    for line in ASKED:
        assert ask(who, line) == (200 if line.startswith("GET") else 403), line
    assert state(world) == before


def test_no_other_address_answers(world: Bucket) -> None:
    for path in ("", "/", "/nothing", "/deletions/", "/../v2"):
        answer = program().ask("GET", path)
        assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM), API + path
