"""Every address of the API, and who may use it."""

import json
from typing import Any

from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.scan.models import BucketScan
from tests.api_client import PROBLEM_TYPE, ApiClient

VIEW_REPORT, ADD_REPORT = "view_healthreport", "add_healthreport"
VERIFY, VIEW_CLEANUP, PAUSE = "verify_cleanup", "view_cleanup", "pause_cleanup"
PERMISSIONS = {
    "DELETE /projects/{project_id}": "delete_project",
    "GET /deletions": VIEW_CLEANUP,
    "GET /deletions/{deletion_id}": VIEW_CLEANUP,
    "GET /deletions/{deletion_id}/items": VIEW_CLEANUP,
    "POST /deletions/{deletion_id}/verify": VERIFY,
    "GET /deletions/pause": PAUSE,
    "POST /deletions/pause": PAUSE,
    "POST /deletions/resume": PAUSE,
    "POST /deletions/{deletion_id}/undo": "undo_cleanup",
    "POST /deletions/{deletion_id}/cancel": "cancel_cleanup",
    "POST /deletions/{deletion_id}/erase": "erase_cleanup",
    "POST /deletions/{deletion_id}/clean-up-again": "force_cleanup",
    # Each starts wrangler, which takes a second of CPU.
    "GET /debug/wrangler-auth": ADD_REPORT,
    "GET /debug/r2-access": ADD_REPORT,
    "GET /debug/env-vars": VIEW_REPORT,
    "GET /debug/list-project-files/{project_id}": VERIFY,
    "GET /debug/verify-cleanup/{project_id}": VERIFY,
    "POST /debug/cleanup/{project_id}": "force_cleanup",
    "GET /findings": "view_finding",
    "GET /findings/{finding_id}": "view_finding",
    "POST /findings/actions/ignore": "view_finding change_finding",
    "POST /findings/actions/reopen": "view_finding change_finding",
    "POST /findings/actions/delete": "view_finding delete_r2object",
    # Both: an object goes with the project that it is given to.
    "POST /findings/actions/assign": "view_finding change_r2object delete_r2object",
    "POST /findings/actions/track": "view_finding change_r2object",
    "POST /findings/actions/untrack": "view_finding delete_r2object",
    "POST /findings/actions/rename": "view_finding change_r2object",
    "POST /findings/actions/abort-uploads": "view_finding delete_r2object",
    "GET /scans": "view_bucketscan",
    "GET /scans/{scan_id}": "view_bucketscan",
    "POST /scans": "add_bucketscan",
    "POST /scans/{scan_id}/stop": "change_bucketscan",
    "POST /scans/{scan_id}/resume": "change_bucketscan",
    "GET /doctor": VIEW_REPORT,
    "POST /doctor": ADD_REPORT,
}
# It depends on what is asked for.
DRY_RUN = {
    "POST /debug/cleanup/{project_id}?dry_run=true": "dry_run_cleanup",
    "DELETE /projects/{project_id}?erase=now&reason=x": "delete_project erase_cleanup",
    "POST /findings/actions/delete#dry_run": "view_finding dry_run_cleanup",
}
MORE_OF_A_BODY: dict[str, dict[str, Any]] = {
    "ignore": {"note": "ours"},
    "assign": {"project_id": "proj_1"},
    "delete#dry_run": {"dry_run": True},
}
ALL_REQUESTS = PERMISSIONS | DRY_RUN


def build_body(path: str, finding_id: object) -> dict[str, Any] | None:
    *_before, start, act = path.split("/")
    if start == "actions":
        return {"findings": [finding_id], **MORE_OF_A_BODY.get(act, {})}
    if act in ("undo", "cancel", "erase", "clean-up-again"):
        return {"reason": "asked for"}
    bodies: dict[str, dict[str, Any]] = {
        "/scans": {"purpose": "reconcile"},
        "/scans/{scan_id}/resume": {},
        "/deletions/pause": {"reason": "look first"},
        "/deletions/resume": {"confirm": "shown"},
    }
    return bodies.get(path)


def send_request(who: ApiClient, line: str) -> int:
    """The status of the answer."""
    method, path = line.split()
    ids = {
        "project_id": "proj_1",
        "deletion_id": Cleanup.objects.earliest("created_at").pk,
        "finding_id": Finding.objects.get().pk,
        "scan_id": BucketScan.objects.earliest("started_at").pk,
    }
    address, body = path.partition("#")[0].format(**ids), build_body(path, ids["finding_id"])
    answer = who.request(method, address, json.dumps(body) if body is not None else "")
    assert answer["Content-Type"] == PROBLEM_TYPE or answer.status_code < 300
    status: int = answer.status_code
    return status
