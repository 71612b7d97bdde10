"""Real clusters, in processes of their own: a deletion is finished whatever becomes of them."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ, Task
from django_q.signing import SignedPackage

from storage_audit import queue, tasks
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.models import Project, R2Object
from tests.keys import KEY_OF_PROJ_10
from tests.promises import Status
from tests.queue.clusters import (
    Cluster,
    assert_finishes,
    latest_cleanup,
    list_enqueued_ids,
    list_results,
    lose_all_tasks,
)
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database


class Sweeping(Cluster):
    next_sweep = timedelta(0)


@pytest.fixture
def many(project: Project, bucket: Bucket) -> list[str]:
    keys = [f"projects/proj_1/scenes/s2/media/{n:03}.mp4" for n in range(60)]
    bucket.put(*keys)
    return keys


def sent() -> int:
    """How many objects of the cleanup the store was asked to delete so far."""
    return latest_cleanup().items.filter(attempts__gt=0).count()


def test_a_committed_deletion_is_finished_by_a_worker(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.log_text)
        project.delete()
        assert_finishes(cluster, bucket)
        cluster.wait_until(lambda: not OrmQ.objects.exists())
    assert list_results() == ["clean"]


def test_a_worker_that_starts_after_the_deletion_finishes_it(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)


def test_deleted_rows_are_finished_by_a_worker(bucket: Bucket, tmp_path: Path) -> None:
    for project_id in ("proj_1", "proj_2"):
        bucket.upload(project_id)
    bucket.put(KEY_OF_PROJ_10)
    R2Object.objects.all().delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)
    assert Project.objects.count() == 2


def test_the_scheduled_sweep_finds_a_deletion_whose_task_was_lost(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    project.delete()
    lose_all_tasks()
    with Sweeping(tmp_path) as cluster:
        assert_finishes(cluster, bucket)
        assert Task.objects.filter(func=queue.SWEEP).exists()


def test_a_task_that_cannot_be_read_does_not_stop_the_others(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    gone = ModuleType("gone")
    exec("class Argument: pass", gone.__dict__)  # As after a deploy without the module.
    sys.modules["gone"] = gone
    unreadable = SignedPackage.dumps({"id": "1", "args": (gone.Argument(),)})
    del sys.modules["gone"]
    forged = SignedPackage.dumps({"id": "2"})[:-1] + "!"
    for payload in (unreadable, forged, ""):
        OrmQ.objects.create(key="autoshorts", payload=payload, lock=timezone.now())
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket, within=60)


def test_a_task_for_a_cleanup_that_is_gone_does_not_stop_the_others(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.create(pk="proj_2").delete()
    Cleanup.objects.all().delete()
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)


def test_a_killed_worker_is_followed_by_one_that_finishes(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path, turn_seconds=60) as cluster:
        Project.objects.get().delete()
        cluster.wait_until(lambda: sent() >= 5)
        os.kill(cluster.worker_pid(), signal.SIGKILL)
        before = sent()
        assert before < len(many)
        cleanup = latest_cleanup()
        assert cleanup.status == Status.RUNNING
        assert cleanup.lease_until is not None
        # Nobody may have it before the lease is over.
        assert tasks.sweep()["enqueued"] == 0
        assert len(bucket.keys()) > 1
        a_minute_ago = timezone.now() - timedelta(seconds=61)
        Cleanup.objects.filter(pk=cleanup.pk).update(
            lease_until=a_minute_ago, next_attempt_at=a_minute_ago, enqueued_at=a_minute_ago
        )
        assert tasks.sweep()["enqueued"] == 1
        assert_finishes(cluster, bucket)
    assert latest_cleanup().found == len(many) + 2


def test_a_cluster_that_lost_its_power_is_followed_by_one_that_finishes(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path, turn_seconds=60) as cluster:
        Project.objects.get().delete()
        cluster.wait_until(lambda: sent() >= 5)
        os.killpg(cluster.pid, signal.SIGKILL)
        cluster.wait()
    assert sent() < len(many)
    a_minute_ago = timezone.now() - timedelta(seconds=61)
    Cleanup.objects.update(
        lease_until=a_minute_ago, next_attempt_at=a_minute_ago, enqueued_at=a_minute_ago
    )
    with Cluster(tmp_path) as another:
        tasks.sweep()
        assert_finishes(another, bucket)
    assert latest_cleanup().found == len(many) + 2


def test_a_long_cleanup_goes_on_in_another_task(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.get().delete()
    with Cluster(tmp_path, turn_seconds=0) as cluster:
        assert_finishes(cluster, bucket)
        cluster.wait_until(lambda: "clean" in list_results())
    assert list_results().count("running") >= 1


def test_a_cluster_that_is_asked_to_stop_ends_its_task_and_itself(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.get().delete()
    with Cluster(tmp_path, turn_seconds=60) as cluster:
        cluster.wait_until(lambda: sent() >= 40)  # The rest takes little, also on slow machines.
        started = time.monotonic()
        os.kill(cluster.pid, signal.SIGTERM)
        assert cluster.wait() == 0
        assert time.monotonic() - started < 30
        assert "has stopped" in cluster.log_text
    assert latest_cleanup().status == Status.CLEAN
    assert bucket.keys() == {KEY_OF_PROJ_10}


def test_an_idle_cluster_stops_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.log_text)
        started = time.monotonic()
        os.kill(cluster.pid, signal.SIGTERM)
        assert cluster.wait() == 0
        assert time.monotonic() - started < 10


def test_a_task_carries_an_id_and_nothing_else(project: Project) -> None:
    project.delete()
    package: dict[str, Any] = SignedPackage.loads(OrmQ.objects.get().payload)
    assert package["func"] == "storage_audit.tasks.run_cleanup"
    assert package["args"] == (str(latest_cleanup().pk),)
    assert package["kwargs"] == {}
    for secret in (conf().secret_access_key, conf().access_key_id, settings.SECRET_KEY):
        assert secret not in repr(package)


def test_a_task_that_is_run_twice_does_its_work_once(project: Project, bucket: Bucket) -> None:
    project.delete()
    (pk,) = list_enqueued_ids()
    assert tasks.run_cleanup(pk) == "clean"
    bucket.put("proj_1_s1_media.mp4")
    assert tasks.run_cleanup(pk) == "not due, or held by another worker"
    assert bucket.keys() == {"proj_1_s1_media.mp4", KEY_OF_PROJ_10}
