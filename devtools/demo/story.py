"""Six projects and the keys of years; one is deleted as staff delete, and the rest must stay."""

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
from storage_audit.cleanup import requests
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.models import Project
from storage_audit.origin import Origin, acting_as
from storage_audit.ownership.bucket_marker import MARKER
from storage_audit.storage import key_for

DELETED = "proj_1"
PROJECTS = {
    "proj_1": "Spring teaser",
    "proj_10": "Ten facts about bees",
    "proj_1_x": "Spring teaser, long cut",
    "proj_launch": "Launch day",
    "proj_autumn-sale": "Autumn sale",
    "proj_intro": "Who we are",
}
UPLOADS = [("s1", "take.mp4"), ("s1", "captions.srt"), ("s2", "take.mp4")]

# What earlier versions of AutoShorts wrote, and no table knows.
HISTORICAL = [
    "projects/{}/scenes/s1/media/old cut.mp4",
    "projects/proj_{}/scenes/s1/media/take.mp4",
    "audio/{}/s1/voice.mp3",
    "audio/proj_{}/s1/voice.mp3",
    "thumbnails/{}/s2/first\tframe.jpg",
    "{}_s1_media.mp4",
    "proj_{}_s1_media.mp4",
]
LOOK_ALIKE = "proj_10"
IN_DOUBT = {
    "proj_1_x_s1_media.mp4": "proj_1 or proj_1_x?",
    "proj_1_notes.txt": "no layout knows it",
    "backups/2024-11-02.tar.gz": "no layout knows it",
}


def tell(site: Site) -> bool:
    """Print the story; say whether it ended as it should, by what the bucket itself lists."""
    owners = {MARKER: "this installation", **upload(), **plant(site.r2)}
    before = site.r2.keys()
    report.listing(f"Before: {len(before)} objects in the bucket", before, owners)

    print(f"\nStaff delete {DELETED} in the admin; the queue worker cleans up.", flush=True)
    operation = delete_in_admin(site)
    wait_for(operation, site.worker)
    after = site.r2.keys()
    kept_back = operation.items.filter(outcome="protected").values_list("key", flat=True)
    report.listing(
        f"After: {len(after)} objects in the bucket",
        {**before, **after},
        {key: report.outcome(key, owner, after, kept_back) for key, owner in owners.items()},
    )
    report.protected(operation)
    report.timeline(operation)
    report.timeline(verify(operation, site.worker))
    return report.proof(DELETED, owners, before, after)


def upload() -> dict[str, str]:
    """Save files as the application does; return each key with its project."""
    keys = {}
    for project_id, title in PROJECTS.items():
        Project.objects.create(pk=project_id, title=title)
        for scene, filename in UPLOADS:
            name = key_for(project_id, scene=scene, filename=filename)
            keys[default_storage.save(name, ContentFile(content(name)))] = project_id
    return keys


def plant(r2: LocalR2) -> dict[str, str]:
    """Put historical keys straight into the bucket; return each with whose it is."""
    owners = {key.format(id_): id_ for id_ in (DELETED, LOOK_ALIKE) for key in HISTORICAL}
    owners |= IN_DOUBT
    for key in owners:
        r2.plant(key, content(key))
    return owners


def content(key: str) -> bytes:
    """Made up, the same in each run, and small."""
    if key.endswith((".srt", ".txt")):
        return f"1\n00:00:00,000 --> 00:00:02,500\nThis is {key}\n".encode()
    random = Random(key)
    return random.randbytes(random.randrange(4_000, 60_000))


def delete_in_admin(site: Site) -> CleanupOperation:
    browser = Browser(site.address)
    browser.log_in(USER, site.password)
    browser.submit(reverse("admin:storage_audit_project_delete", args=[quote(DELETED)]), post="yes")
    return CleanupOperation.objects.get(project_id=DELETED)


def verify(operation: CleanupOperation, worker: Child) -> CleanupOperation:
    """Look again, as the admin's button does."""
    with acting_as(Origin(USER, "the demo")), transaction.atomic():
        check = requests.verify_operation(operation)
        requests.enqueue_on_commit([check])
    wait_for(check, worker)
    return check


def wait_for(operation: CleanupOperation, worker: Child) -> None:
    """Return once the operation has ended, however it did; StartError after a minute."""

    def ended() -> bool:
        operation.refresh_from_db()
        return operation.status not in ("pending", "running")

    worker.wait_until(ended)
