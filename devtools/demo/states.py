"""States that the story leaves out: leftover files, cleanups that need a person, a plan."""

from datetime import datetime, timedelta
from io import StringIO
from random import Random
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.test.utils import override_settings
from django.urls import reverse
from django.utils import timezone

from devtools.demo.site import USER
from devtools.demo.story import DELETED_PROJECT, file_content
from devtools.local_r2 import LocalR2
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Alert
from storage_audit.api.models import ApiToken
from storage_audit.cleanup import bulk, end_deletions, requests, runner
from storage_audit.cleanup.admin import pause_page
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.conf import conf
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.models import DailyFigures
from storage_audit.doctor import run_checks
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.request_origin import Origin, use_origin
from storage_audit.scan.models import BucketScan
from storage_audit.storage import key_for
from storage_audit.ui.links import comparison_url, lookup_url

MODELS = (
    "project",
    "r2object",
    "cleanup",
    "finding",
    "bucketscan",
    "knownproject",
    "healthreport",
    "bulkjob",
    "alert",
    "apitoken",
)
HELD_PROJECT = "proj_summer"
# Two months and some days: the overview compares one month with the one before.
HISTORY_WEEKS = 9
BYTES_OF_TYPE = {"mp3": 40_000, "jpg": 15_000, "srt": 4_000}  # bytes of one
# Nobody can delete it over S3.
NEWLINE_KEY = "projects/proj_intro/scenes/s1/media/first\nsecond.mp4"
# Files of a project that was deleted before the application was installed.
LEFTOVER_KEYS = [
    "projects/proj_winter/scenes/s1/media/take.mp4",
    "projects/proj_winter/scenes/s1/media/captions.srt",
    "proj_proj_winter_s2_media.mp4",
]
# Deleted directly in the bucket.
LOST_KEY = "projects/proj_10/scenes/s2/media/take.mp4"
AMBIGUOUS_KEY = "proj_1_x_s1_media.mp4"
UNTRACKED_KEY = "projects/proj_autumn-sale/scenes/s9/media/unknown.mp4"


def make_states(r2: LocalR2) -> dict[str, Cleanup]:
    """The cleanups by name. No worker may run meanwhile: it would take them first."""
    for key in (NEWLINE_KEY, *LEFTOVER_KEYS):
        r2.put(key, b"content" * 1000)
    r2.remove(LOST_KEY)
    call_command("backfill_r2", stdout=StringIO(), stderr=StringIO())
    r2.put(UNTRACKED_KEY, b"content")
    with use_origin(Origin(USER, "web, 127.0.0.1")):
        for each in bulk.process_next_projects(
            BulkJob.objects.request("verify", ["proj_10", "proj_autumn-sale"])
        ):
            runner.run_to_end(each.pk)
        states = {
            "planned": runner.run_to_end(requests.request_preview("proj_10")[0].pk),
            "differences": runner.run_to_end(
                requests.request_verification("proj_autumn-sale")[0].pk
            ),
            "retrying": runner.run_to_end(delete_project("proj_intro").pk),
            "blocked": block_cleanup("proj_launch"),
            "pending": delete_project("proj_1_x"),
            "held": hold_deletion(HELD_PROJECT, "Summer sale"),
            "undone": hold_deletion("proj_winter-sale", "Winter sale"),
            "cancelled": hold_deletion("proj_trailer", "Trailer"),
        }
        end_deletions.undo_deletion(states["undone"], "The wrong project.")
        end_deletions.cancel_deletion(states["cancelled"], "The lawyers ask us to keep the files.")
    # Last, as earlier deletions raise the limit.
    make_history()
    # As the sweep does.
    alert_rules.update_alerts()
    daily_figures.take_figures()
    return states


def make_history() -> None:
    """Made up for the charts: weeks of deletions, with fewer leftover files each day."""
    random, now = Random(1), timezone.now()
    tracked, size = map(sum, zip(*daily_figures.amounts_by_type().values(), strict=True))
    for days in range(1, 7 * HISTORY_WEEKS + 1):
        then, left = now - timedelta(days=days), days // 2
        DailyFigures.objects.create(
            day=then.date(),
            taken_at=then,
            tracked=tracked,
            tracked_bytes=size,
            leftover=left,
            leftover_bytes=left * 4_000_000,
            file_types=past_types(tracked, size),
        )
        ended = {"clean": random.randrange(6), "clean_with_kept": days % 3 // 2}
        cleanups = Cleanup.objects.bulk_create(
            past_cleanup(then, status, random.randrange(20, 400))
            for status, count in ended.items()
            for _each in range(count)
        )
        # The day before, it was all still there.
        tracked += sum(each.deleted for each in cleanups)
        size += sum(each.deleted_bytes for each in cleanups)


def past_types(objects: int, size: int) -> dict[str, list[int]]:
    """A tenth each of sounds, pictures and captions, which are small; the rest are large films."""
    tenth = objects // 10
    small = {name: [tenth, tenth * of_one] for name, of_one in BYTES_OF_TYPE.items()}
    taken = [sum(sums) for sums in zip(*small.values(), strict=True)]
    return small | {"mp4": [objects - taken[0], size - taken[1]]}


def past_cleanup(then: datetime, status: str, megabytes: int) -> Cleanup:
    kept = int(status == "clean_with_kept")
    return Cleanup(
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
        found=12 + kept,
        found_bytes=megabytes * 1_000_000 + kept,
        deleted=12,
        deleted_bytes=megabytes * 1_000_000,
        kept=kept,
        kept_bytes=kept,
    )


def hold_deletion(project_id: str, title: str) -> Cleanup:
    """As with GRACE_HOURS, which the rest of the demo does not have: it shows files going."""
    Project.objects.create(pk=project_id, title=title)
    for filename in ("take.mp4", "captions.srt"):
        key = key_for(project_id, scene="s1", filename=filename)
        default_storage.save(key, ContentFile(file_content(key)))
    with override_settings(STORAGE_AUDIT=settings.STORAGE_AUDIT | {"GRACE": timedelta(days=3)}):
        return runner.run_to_end(delete_project(project_id).pk)


def block_cleanup(project_id: str) -> Cleanup:
    low = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    with override_settings(STORAGE_AUDIT=low):
        return runner.run_to_end(delete_project(project_id).pk)


def create_health_report() -> HealthReport:
    """Reports whose worker has another environment: another bucket, and no wrangler."""
    health_report = run_checks.run_probes(HealthReport.Context.WEB, uuid4())
    other = settings.STORAGE_AUDIT | {"BUCKET": "autoshorts-old", "WRANGLER_PATH": "no-wrangler"}
    with override_settings(STORAGE_AUDIT=other):
        run_checks.run_probes(HealthReport.Context.WORKER, health_report.run)
    return health_report


def create_token() -> ApiToken:
    user = get_user_model()._default_manager.get(username=USER)
    token, _text = ApiToken.issue(name="Nightly report", user=user)
    return token


def delete_project(project_id: str) -> Cleanup:
    Project.objects.get(pk=project_id).delete()
    return Cleanup.objects.get(project_id=project_id, trigger="deleted")


def page_addresses(states: dict[str, Cleanup]) -> dict[str, str]:
    """The addresses of all pages of the admin, each by a name."""
    told = Cleanup.objects.get(project_id=DELETED_PROJECT, trigger="deleted")
    cleanups = {"clean": told, "verified": told.children.get(trigger="verify"), **states}
    tracked = R2Object.objects.filter(project_id="proj_10").earliest("pk").pk
    return {
        "app": reverse("admin:app_list", args=["storage_audit"]),
        **{f"{model}-list": admin_url(model, "changelist") for model in MODELS},
        "list-empty": admin_url("r2object", "changelist") + "?q=nothing",
        "project-add": admin_url("project", "add"),
        "project": admin_url("project", "change", "proj_10"),
        "project-history": admin_url("project", "history", "proj_10"),
        "project-delete": admin_url("project", "delete", "proj_10"),
        "r2object": admin_url("r2object", "change", tracked),
        "r2object-delete": admin_url("r2object", "delete", tracked),
        "finding": admin_url("finding", "change", Finding.objects.earliest("pk").pk),
        "bucketscan": admin_url("bucketscan", "change", BucketScan.objects.get().pk),
        "knownproject": admin_url("knownproject", "change", DELETED_PROJECT),
        "knownproject-held": admin_url("knownproject", "change", HELD_PROJECT),
        "healthreport": admin_url("healthreport", "change", create_health_report().pk),
        "healthreport-add": admin_url("healthreport", "add"),
        "declare-deleted": reverse("admin:storage_audit_declare_deleted"),
        "undo": reverse("admin:storage_audit_undo_deletion", args=[states["held"].pk]),
        "pause": reverse("admin:storage_audit_pause"),
        "pause-one": pause_page.page_url("pause", states["held"]),
        "apitoken": admin_url("apitoken", "change", create_token().pk),
        "apitoken-add": admin_url("apitoken", "add"),
        "api-docs": reverse("storage_audit_docs"),
        "compare": comparison_url("proj_autumn-sale"),
        "why": reverse("admin:storage_audit_lookup"),
        "why-kept": lookup_url(AMBIGUOUS_KEY),
        "why-gone": lookup_url(f"projects/{DELETED_PROJECT}/scenes/s1/media/take.mp4"),
        "why-project": lookup_url(DELETED_PROJECT),
        "why-matches": lookup_url("take.mp4"),
        "why-unknown": lookup_url("https://media.example.com/nothing.bin"),
        "why-held": lookup_url(HELD_PROJECT),
        "leftovers": reverse("admin:storage_audit_leftovers"),
        "leftover-files": reverse("admin:storage_audit_leftover_objects"),
        "certificate": reverse("admin:storage_audit_certificate", args=[told.pk]),
        "bulkjob": admin_url("bulkjob", "change", BulkJob.objects.latest("created_at").pk),
        "alert": admin_url("alert", "change", Alert.objects.earliest("pk").pk),
        "alert-test": reverse("admin:storage_audit_test_notification"),
        "bucketscan-add": admin_url("bucketscan", "add"),
        **{
            f"cleanup-{name}": admin_url("cleanup", "change", cleanup.pk)
            for name, cleanup in cleanups.items()
        },
    }


def admin_url(model: str, page: str, *pk: int | str | UUID) -> str:
    return reverse(f"admin:storage_audit_{model}_{page}", args=[quote(each) for each in pk])
