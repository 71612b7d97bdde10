"""A deletion from the row to the proof, on a real bucket."""

import pytest
from django.db import transaction
from django_q.models import OrmQ

from storage_audit.audit import cleanup
from storage_audit.models import CleanupOperation, Project, R2Object
from tests.conftest import Bucket

HISTORICAL = [
    "projects/proj_1/scenes/s1/media/old.mp4",
    "projects/proj_proj_1/scenes/s1/media/old.mp4",
    "audio/proj_1/s1/voice.mp3",
    "audio/proj_proj_1/s1/voice.mp3",
    "proj_1_s1_media.mp4",
    "proj_proj_1_s1_media.mp4",
]
OTHERS = [
    "projects/proj_10/scenes/s1/media/old.mp4",
    "proj_10_s1_media.mp4",
    "proj_proj_10_s1_media.mp4",
    "audio/proj_10/s1/voice.mp3",
    "projects/proj_1_x/scenes/s1/media/old.mp4",
    "audio/proj_1_x/s1/voice.mp3",
]


def delete(project_id: str) -> CleanupOperation:
    """Delete the project, and do at once what a worker would do."""
    Project.objects.get(pk=project_id).delete()
    return cleanup.run(CleanupOperation.objects.latest("created_at").pk)


def test_every_historical_format_of_a_deleted_project_leaves_the_bucket(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(*HISTORICAL)
    operation = delete("proj_1")
    assert bucket.keys() == set()
    assert operation.status == CleanupOperation.Status.CLEAN
    assert (operation.found, operation.deleted) == (6, 6)


def test_files_of_look_alike_projects_stay_byte_for_byte(bucket: Bucket) -> None:
    for project_id in ("proj_1", "proj_10", "proj_1_x"):
        bucket.upload(project_id)
    bucket.put(*HISTORICAL, *OTHERS)
    before = {k: v for k, v in bucket.facts().items() if "proj_10" in k or "proj_1_x" in k}
    delete("proj_1")
    after = bucket.facts()
    assert {k: after.get(k) for k in before} == before
    assert not set(HISTORICAL) & set(after)


def test_rolled_back_deletion_leaves_no_operation_no_task_and_every_object(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    with pytest.raises(RuntimeError), transaction.atomic():
        Project.objects.get(pk="proj_1").delete()
        assert CleanupOperation.objects.count() == 1
        raise RuntimeError
    assert not CleanupOperation.objects.exists()
    assert not OrmQ.objects.exists()
    assert bucket.keys() == {key}


def test_tracking_rows_go_with_their_objects_and_not_before(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    Project.objects.get(pk="proj_1").delete()
    assert R2Object.objects.count() == 1
    cleanup.run(CleanupOperation.objects.latest("created_at").pk)
    assert not R2Object.objects.exists()
