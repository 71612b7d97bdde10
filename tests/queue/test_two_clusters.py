"""Two clusters with two workers each share the work, and do none of it twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.local_r2 import LocalR2
from storage_audit.cleanup.make_cleanups import enqueue_cleanup
from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.models import Project
from tests.faults.proxy import FaultyStore, faulty_store
from tests.keys import KEY_OF_PROJ_10
from tests.promises import Status, check_promises, count_sent
from tests.queue.clusters import Cluster, print_log_on_failure
from tests.real_bucket import Bucket

PROJECTS = [f"proj_{letter}" for letter in "abcdef"]
FILES = 8


@pytest.fixture
def store(local_r2: LocalR2) -> Iterator[FaultyStore]:
    """Only the clusters reach the bucket through it."""
    with faulty_store(local_r2.environment["R2_ENDPOINT_URL"]) as running:
        yield running


def fill(bucket: Bucket) -> set[str]:
    bucket.put(KEY_OF_PROJ_10)
    keys = {
        f"projects/{project_id}/scenes/s1/media/{n:02}.mp4"
        for project_id in PROJECTS
        for n in range(FILES)
    }
    bucket.put(*keys)
    return keys


def test_two_clusters_share_the_work_and_send_each_key_once(
    bucket: Bucket, store: FaultyStore, tmp_path: Path
) -> None:
    """Each turn ends after a fraction of a second, and the cleanup goes on in any worker. Each
    task is in the queue three times."""
    keys = fill(bucket)
    Project.objects.bulk_create(Project(pk=project_id) for project_id in PROJECTS)
    variables = {"R2_ENDPOINT_URL": store.url, "QUEUE_WORKERS": "2"}
    with (
        Cluster(tmp_path, turn_seconds=0.3, **variables) as one,
        Cluster(tmp_path, turn_seconds=0.3, **variables) as other,
    ):
        for cluster in (one, other):
            with print_log_on_failure(cluster):
                cluster.wait_until(lambda: "ready for work" in cluster.log_text)  # noqa: B023
        Project.objects.all().delete()
        cleanups = Cleanup.objects.filter(parent=None)
        for cleanup in (*cleanups, *cleanups):
            enqueue_cleanup(cleanup.pk)
        clean = cleanups.filter(status=Status.CLEAN)
        with print_log_on_failure(one), print_log_on_failure(other):
            one.wait_until(lambda: clean.count() == len(PROJECTS), timeout=120)
    assert count_sent(store) == dict.fromkeys(keys, 1)
    assert bucket.keys() == {KEY_OF_PROJ_10}
    assert list(cleanups.values_list("deleted", flat=True)) == [FILES] * len(PROJECTS)
    assert not CleanupEvent.objects.filter(step="takeover").exists()
    assert min(turns(one), turns(other)) > 0
    check_promises(bucket)


def turns(cluster: Cluster) -> int:
    return cluster.log_text.count(" leased, attempt ")
