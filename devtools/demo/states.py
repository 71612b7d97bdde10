"""What the story leaves out: files left behind, operations that ask for a person, a plan."""

from datetime import datetime, timedelta
from io import StringIO
from random import Random
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.admin.utils import quote
from django.core.management import call_command
from django.test.utils import override_settings
from django.urls import reverse
from django.utils import timezone

from devtools.demo.site import USER
from devtools.demo.story import DELETED
from devtools.local_r2 import LocalR2
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Incident
from storage_audit.cleanup import bulk, requests, runner
from storage_audit.cleanup.models import CleanupOperation, Job
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.models import DailyFigures
from storage_audit.doctor import run_checks
from storage_audit.doctor.models import Diagnosis
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.origin import Origin, acting_as
from storage_audit.scan.models import BucketScan
from storage_audit.ui.links import comparison_of, lookup_of

MODELS = (
    "project",
    "r2object",
    "cleanupoperation",
    "finding",
    "bucketscan",
    "knownproject",
    "diagnosis",
    "job",
    "incident",
)
WEEKS = 4
SMALL_TYPES = {"mp3": 40_000, "jpg": 15_000, "srt": 4_000}  # bytes of one
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
IN_DOUBT_KEY = "proj_1_x_s1_media.mp4"
UNTRACKED = "projects/proj_autumn-sale/scenes/s9/media/unknown.mp4"


def make_states(r2: LocalR2) -> dict[str, CleanupOperation]:
    """By their names. No worker may run beside: it would take them before we do."""
    for key in (NEWLINE, *LEFT_BEHIND):
        r2.plant(key, b"content" * 1000)
    r2.remove(LOST)
    call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    r2.plant(UNTRACKED, b"content")
    with acting_as(Origin(USER, "web, 127.0.0.1")):
        for each in bulk.take_up(Job.objects.request("verify", ["proj_10", "proj_autumn-sale"])):
            runner.run(each.pk)
        states = {
            "planned": runner.run(requests.dry_run("proj_10")[0].pk),
            "differences": runner.run(requests.verify_project("proj_autumn-sale")[0].pk),
            "incomplete": runner.run(delete("proj_intro").pk),
            "blocked": block("proj_launch"),
            "pending": delete("proj_1_x"),
        }
    # Last, as the limit of what is blocked grows with what was deleted.
    make_history()
    # As the sweep does.
    alert_rules.notice()
    daily_figures.take_figures()
    return states


def make_history() -> None:
    """Made up, for the charts: weeks in which files were deleted, and fewer were left each day."""
    random, now = Random(1), timezone.now()
    tracked, size = map(sum, zip(*daily_figures.by_file_type().values(), strict=True))
    for days in range(1, 7 * WEEKS + 1):
        then, left = now - timedelta(days=days), days // 2
        DailyFigures.objects.create(
            day=then.date(),
            taken_at=then,
            tracked=tracked,
            tracked_bytes=size,
            left_behind=left,
            left_behind_bytes=left * 4_000_000,
            file_types=past_types(tracked, size),
        )
        ended = {"clean": random.randrange(6), "clean_with_protected": days % 3 // 2}
        operations = CleanupOperation.objects.bulk_create(
            past(then, status, random.randrange(20, 400))
            for status, count in ended.items()
            for _each in range(count)
        )
        # On the day before, it was all still there.
        tracked += sum(each.deleted for each in operations)
        size += sum(each.deleted_bytes for each in operations)


def past_types(objects: int, size: int) -> dict[str, list[int]]:
    """A tenth each of sounds, pictures and captions, which take little, and films, which do not."""
    tenth = objects // 10
    small = {name: [tenth, tenth * of_one] for name, of_one in SMALL_TYPES.items()}
    taken = [sum(sums) for sums in zip(*small.values(), strict=True)]
    return small | {"mp4": [objects - taken[0], size - taken[1]]}


def past(then: datetime, status: str, megabytes: int) -> CleanupOperation:
    protected = int(status == "clean_with_protected")
    return CleanupOperation(
        kind="project",
        project_id=f"proj_past-{then:%m%d}",
        bucket=conf().bucket,
        trigger="deleted",
        status=status,
        requested_by=USER,
        created_at=then,
        started_at=then,
        finished_at=then + timedelta(seconds=40),
        next_attempt_at=None,
        found=12 + protected,
        found_bytes=megabytes * 1_000_000 + protected,
        deleted=12,
        deleted_bytes=megabytes * 1_000_000,
        protected=protected,
        protected_bytes=protected,
    )


def block(project_id: str) -> CleanupOperation:
    low = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    with override_settings(STORAGE_AUDIT=low):
        return runner.run(delete(project_id).pk)


def examine() -> Diagnosis:
    """With a worker that was started in another environment: another bucket, and no wrangler."""
    diagnosis = run_checks.examine(Diagnosis.Context.WEB, uuid4())
    other = settings.STORAGE_AUDIT | {"BUCKET": "autoshorts-old", "WRANGLER": "no-wrangler"}
    with override_settings(STORAGE_AUDIT=other):
        run_checks.examine(Diagnosis.Context.WORKER, diagnosis.run)
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
        "why-kept": lookup_of(IN_DOUBT_KEY),
        "why-gone": lookup_of(f"projects/{DELETED}/scenes/s1/media/take.mp4"),
        "why-project": lookup_of(DELETED),
        "left-behind": reverse("admin:storage_audit_left_behind"),
        "certificate": reverse("admin:storage_audit_certificate", args=[told.pk]),
        "job": url("job", "change", Job.objects.latest("created_at").pk),
        "incident": url("incident", "change", Incident.objects.earliest("pk").pk),
        "incident-test": reverse("admin:storage_audit_test_notices"),
        "bucketscan-add": url("bucketscan", "add"),
        **{
            f"operation-{name}": url("cleanupoperation", "change", operation.pk)
            for name, operation in operations.items()
        },
    }


def url(model: str, page: str, *pk: int | str | UUID) -> str:
    return reverse(f"admin:storage_audit_{model}_{page}", args=[quote(each) for each in pk])
