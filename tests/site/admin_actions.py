"""Every action of the admin, who may run it, and rows that it suits."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.urls import reverse

from storage_audit.bucket.s3 import list_page
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan.models import BucketScan
from storage_audit.ui.model_admin import DJANGO_6_1
from tests.held import hold_deletion
from tests.real_bucket import Bucket
from tests.site.pages import first_pk

# Both: an object goes with the project that it is given to.
ASSIGN_PERMISSIONS = "storage_audit.change_r2object storage_audit.delete_r2object"
# Both: the project is deleted, and its files without limits.
FORCE_PERMISSIONS = "storage_audit.force_cleanup storage_audit.delete_project"
ACTIONS = {
    ("storage_audit.project", "delete_selected"): "storage_audit.delete_project",
    ("storage_audit.project", "dry_run_cleanup"): "storage_audit.dry_run_cleanup",
    ("storage_audit.project", "verify_cleanup"): "storage_audit.verify_cleanup",
    ("storage_audit.project", "force_delete"): FORCE_PERMISSIONS,
    ("storage_audit.r2object", "delete_selected"): "storage_audit.delete_r2object",
    ("storage_audit.r2object", "untrack"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "ignore"): "storage_audit.change_finding",
    ("storage_audit.finding", "reopen"): "storage_audit.change_finding",
    ("storage_audit.finding", "preview_deletion"): "storage_audit.dry_run_cleanup",
    ("storage_audit.finding", "delete_objects"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "assign"): ASSIGN_PERMISSIONS,
    ("storage_audit.finding", "track"): "storage_audit.change_r2object",
    ("storage_audit.finding", "untrack"): "storage_audit.delete_r2object",
    ("storage_audit.finding", "rename"): "storage_audit.change_r2object",
    ("storage_audit.finding", "abort_uploads"): "storage_audit.delete_r2object",
    ("storage_audit.apitoken", "revoke"): "storage_audit.change_apitoken",
    ("storage_audit.bucketscan", "stop"): "storage_audit.change_bucketscan",
    ("storage_audit.bucketscan", "resume"): "storage_audit.change_bucketscan",
    ("storage_audit.cleanup", "verify_cleanup"): "storage_audit.verify_cleanup",
    ("storage_audit.cleanup", "force_delete"): "storage_audit.force_cleanup",
    ("storage_audit.cleanup", "undo_deletion"): "storage_audit.undo_cleanup",
    ("storage_audit.cleanup", "cancel_deletion"): "storage_audit.cancel_cleanup",
    ("storage_audit.cleanup", "erase_deletion"): "storage_audit.erase_cleanup",
    ("storage_audit.cleanup", "clean_up_again"): "storage_audit.force_cleanup",
    ("django_q.schedule", "delete_selected"): "django_q.delete_schedule",
    ("django_q.success", "delete_selected"): "django_q.delete_success",
    ("django_q.success", "resubmit_task"): "django_q.change_success",
    ("django_q.failure", "delete_selected"): "django_q.delete_failure",
    ("django_q.failure", "resubmit_task"): "django_q.change_failure",
    ("django_q.ormq", "delete_selected"): "django_q.delete_ormq",
    ("auth.user", "delete_selected"): "auth.delete_user",
    ("auth.group", "delete_selected"): "auth.delete_group",
}
# What the finding must be about which each of these can do something.
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
ORPHAN = {"kind": "orphaned", "first_seen_at": LONG_AGO, "last_modified": LONG_AGO}
MISNAMED = "projects/proj_proj_1/scenes/s1/media/a.mp4"
SUITABLE_FINDINGS: dict[str, dict[str, Any]] = {
    "reopen": {"state": "ignored"},
    "preview_deletion": ORPHAN,
    "delete_objects": ORPHAN,
    "track": {"kind": "untracked"},
    "untrack": {"kind": "missing", "key": "gone"},
    "rename": {"kind": "misnamed", "key": MISNAMED, "project_id": "proj_1"},
    "abort_uploads": {"kind": "unfinished", "upload_id": "x"},
}
TYPED_FIELDS = {"note": "ours", "project_id": "proj_1", "reason": "asked for"}
# Each is about a deletion that is held, or was cancelled.
DECISIONS = ("undo_deletion", "cancel_deletion", "erase_deletion", "clean_up_again")
OUR_ACTIONS = [(model, action) for model, action in ACTIONS if model.startswith("storage_audit")]


def list_places(model: str) -> Iterator[str]:
    """Where an action can be posted."""
    name = f"admin:{model.replace('.', '_')}"
    yield reverse(f"{name}_changelist")
    if DJANGO_6_1:
        yield reverse(f"{name}_change", args=[first_pk(model)])


def choose_first(model: str, action: str) -> dict[str, str]:
    pk = first_pk(model)
    if action in DECISIONS:
        pk = str(Cleanup.objects.latest("created_at").pk)
    return {"action": action, "_selected_action": pk, "post": "yes"}


def prepare_world(world: Bucket, action: str) -> None:
    world.put(MISNAMED)
    R2Object.objects.create(bucket=world.name, key="gone", source="upload", state="stored")
    if action in DECISIONS:
        hold_deletion("proj_1", cancelled=action == "clean_up_again")
    if action in ("stop", "resume"):
        status = {"stop": "running", "resume": "stopped"}[action]
        BucketScan.objects.update(status=status, finished_at=None)
    found = Finding.objects.filter(pk=Finding.objects.get().pk)
    found.update(**SUITABLE_FINDINGS.get(action, {}))
    for shown in list_page(world.name, found.get().key).objects:
        names = ("size", "etag", "last_modified")
        found.update(**{n: getattr(shown, n) for n in names if action == "rename"})
