"""Six projects with old and new keys; staff delete one, and everything else must stay."""

from random import Random

from django.contrib.admin.utils import quote
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.urls import reverse

from devtools.demo import report
from devtools.demo.browser import Browser
from devtools.demo.site import USER, Site
from devtools.local_r2 import LocalR2
from devtools.processes import Child
from storage_audit.cleanup import make_cleanups, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from storage_audit.ownership.bucket_marker import MARKER_KEY
from storage_audit.request_origin import Origin, use_origin
from storage_audit.storage import key_for

DELETED_PROJECT = "proj_1"
PROJECTS = {
    "proj_1": "Spring teaser",
    "proj_10": "Ten facts about bees",
    "proj_1_x": "Spring teaser, long cut",
    "proj_launch": "Launch day",
    "proj_autumn-sale": "Autumn sale",
    "proj_intro": "Who we are",
}
UPLOADED_FILES = [("s1", "take.mp4"), ("s1", "captions.srt"), ("s2", "take.mp4")]

# Earlier versions of AutoShorts wrote these without a row in the database.
OLD_KEYS = [
    "projects/{}/scenes/s1/media/old cut.mp4",
    "projects/proj_{}/scenes/s1/media/take.mp4",
    "audio/{}/s1/voice.mp3",
    "audio/proj_{}/s1/voice.mp3",
    "thumbnails/{}/s2/first\tframe.jpg",
    "{}_s1_media.mp4",
    "proj_{}_s1_media.mp4",
]
LOOK_ALIKE = "proj_10"
AMBIGUOUS_KEYS = {
    "proj_1_x_s1_media.mp4": "proj_1 or proj_1_x?",
    "proj_1_notes.txt": "matches no key format",
    "backups/2024-11-02.tar.gz": "matches no key format",
}


def run_story(site: Site) -> bool:
    """Print the story; return whether the bucket's own listings are as expected."""
    owners = {MARKER_KEY: "this database", **upload_files(), **put_old_files(site.r2)}
    before = site.r2.keys()
    report.print_listing(f"Before: {len(before)} objects in the bucket", before, owners)

    print(
        f"\nDeleting {DELETED_PROJECT} in the admin. A queue worker deletes its files.", flush=True
    )
    cleanup = delete_in_admin(site)
    wait_for_cleanup(cleanup, site.worker)
    after = site.r2.keys()
    kept_back = cleanup.items.filter(outcome="kept").values_list("key", flat=True)
    report.print_listing(
        f"After: {len(after)} objects in the bucket",
        {**before, **after},
        {
            key: report.describe_outcome(key, owner, after, kept_back)
            for key, owner in owners.items()
        },
    )
    report.print_kept(cleanup)
    report.print_timeline(cleanup)
    report.print_timeline(verify_cleanup(cleanup, site.worker))
    return report.print_proof(DELETED_PROJECT, owners, before, after)


def upload_files() -> dict[str, str]:
    """Save files as the application does; return each key with its project."""
    keys = {}
    for project_id, title in PROJECTS.items():
        Project.objects.create(pk=project_id, title=title)
        for scene, filename in UPLOADED_FILES:
            name = key_for(project_id, scene=scene, filename=filename)
            keys[default_storage.save(name, ContentFile(file_content(name)))] = project_id
    return keys


def put_old_files(r2: LocalR2) -> dict[str, str]:
    """Put old keys straight into the bucket; return each with its owner."""
    owners = {key.format(id_): id_ for id_ in (DELETED_PROJECT, LOOK_ALIKE) for key in OLD_KEYS}
    owners |= AMBIGUOUS_KEYS
    for key in owners:
        r2.put(key, file_content(key))
    return owners


def file_content(key: str) -> bytes:
    """Made up, the same in each run, and small."""
    if key.endswith((".srt", ".txt")):
        return f"1\n00:00:00,000 --> 00:00:02,500\nThis is {key}\n".encode()
    random = Random(key)
    return random.randbytes(random.randrange(4_000, 60_000))


def delete_in_admin(site: Site) -> Cleanup:
    browser = Browser(site.address)
    browser.log_in(USER, site.password)
    browser.submit(
        reverse("admin:storage_audit_project_delete", args=[quote(DELETED_PROJECT)]), post="yes"
    )
    return Cleanup.objects.get(project_id=DELETED_PROJECT)


def verify_cleanup(cleanup: Cleanup, worker: Child) -> Cleanup:
    """Verify the cleanup, as the admin's button does."""
    with use_origin(Origin(USER, "the demo")), transaction.atomic():
        check = requests.request_cleanup_verification(cleanup)
        make_cleanups.enqueue_on_commit([check])
    wait_for_cleanup(check, worker)
    return check


def wait_for_cleanup(cleanup: Cleanup, worker: Child) -> None:
    """Return once the cleanup has ended, however it did; StartError after a minute."""

    def ended() -> bool:
        cleanup.refresh_from_db()
        return cleanup.status not in ("pending", "running")

    worker.wait_until(ended)
