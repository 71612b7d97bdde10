"""What the story leaves out: files left behind, operations that ask for a person, a plan."""

from io import StringIO
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.test.utils import override_settings
from django.urls import reverse

from devtools.demo.site import USER
from devtools.demo.story import DELETED
from devtools.local_r2 import LocalR2
from storage_audit.audit import cleanup, diagnostics, requests
from storage_audit.models import (
    BucketScan,
    CleanupOperation,
    Diagnosis,
    Finding,
    Project,
    R2Object,
)
from storage_audit.origin import Origin, acting_as
from storage_audit.pages.base import comparison_of

MODELS = (
    "project",
    "r2object",
    "cleanupoperation",
    "finding",
    "bucketscan",
    "knownproject",
    "diagnosis",
)
# Nobody can delete it over S3.
NEWLINE = "projects/proj_intro/scenes/s1/media/first\nsecond.mp4"
# What a project left behind that was deleted before anybody watched.
LEFT_BEHIND = [
    "projects/proj_winter/scenes/s1/media/take.mp4",
    "projects/proj_winter/scenes/s1/media/captions.srt",
    "proj_proj_winter_s2_media.mp4",
]
# Somebody deleted it past us.
LOST = "projects/proj_10/scenes/s2/media/take.mp4"
UNTRACKED = "projects/proj_autumn-sale/scenes/s9/media/unknown.mp4"


def make_states(r2: LocalR2) -> dict[str, CleanupOperation]:
    """By their names. No worker may run beside: it would take them before we do."""
    for key in (NEWLINE, *LEFT_BEHIND):
        r2.plant(key, b"content" * 1000)
    r2.remove(LOST)
    call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    r2.plant(UNTRACKED, b"content")
    with acting_as(Origin(USER, "web, 127.0.0.1")):
        return {
            "planned": cleanup.run(requests.dry_run("proj_10")[0].pk),
            "differences": cleanup.run(requests.verify_project("proj_autumn-sale")[0].pk),
            "incomplete": cleanup.run(delete("proj_intro").pk),
            "blocked": block("proj_launch"),
            "pending": delete("proj_1_x"),
        }


def block(project_id: str) -> CleanupOperation:
    low = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    with override_settings(STORAGE_AUDIT=low):
        return cleanup.run(delete(project_id).pk)


def examine() -> Diagnosis:
    """With a worker that was started in another environment: another bucket, and no wrangler."""
    diagnosis = diagnostics.examine(Diagnosis.Context.WEB, uuid4())
    other = settings.STORAGE_AUDIT | {"BUCKET": "autoshorts-old", "WRANGLER": "no-wrangler"}
    with override_settings(STORAGE_AUDIT=other):
        diagnostics.examine(Diagnosis.Context.WORKER, diagnosis.run)
    return diagnosis


def delete(project_id: str) -> CleanupOperation:
    Project.objects.get(pk=project_id).delete()
    return CleanupOperation.objects.get(project_id=project_id, trigger="deleted")


def addresses(states: dict[str, CleanupOperation]) -> dict[str, str]:
    """Of each page of the admin that a link leads to, by a name for it."""
    told = CleanupOperation.objects.get(project_id=DELETED, trigger="deleted")
    operations = {"clean": told, "verified": told.children.get(trigger="verify"), **states}
    tracked = R2Object.objects.filter(project_id="proj_10").earliest("pk").pk
    return {
        "app": reverse("admin:app_list", args=["storage_audit"]),
        **{f"{model}-list": url(model, "changelist") for model in MODELS},
        "project-add": url("project", "add"),
        "project": url("project", "change", "proj_10"),
        "project-history": url("project", "history", "proj_10"),
        "project-delete": url("project", "delete", "proj_10"),
        "r2object": url("r2object", "change", tracked),
        "r2object-delete": url("r2object", "delete", tracked),
        "finding": url("finding", "change", Finding.objects.earliest("pk").pk),
        "bucketscan": url("bucketscan", "change", BucketScan.objects.get().pk),
        "knownproject": url("knownproject", "change", DELETED),
        "diagnosis": url("diagnosis", "change", examine().pk),
        "diagnosis-add": url("diagnosis", "add"),
        "declare-deleted": reverse("admin:storage_audit_declare_deleted"),
        "apitoken-add": url("apitoken", "add"),
        "api-docs": reverse("storage_audit_docs"),
        "compare": comparison_of("proj_autumn-sale"),
        **{
            f"operation-{name}": url("cleanupoperation", "change", operation.pk)
            for name, operation in operations.items()
        },
    }


def url(model: str, page: str, *pk: int | str | UUID) -> str:
    return reverse(f"admin:storage_audit_{model}_{page}", args=[quote(each) for each in pk])
