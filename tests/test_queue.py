"""Real clusters, in processes of their own: a deletion is finished whatever becomes of them."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task
from django_q.signing import SignedPackage

from devtools.processes import Child
from storage_audit import queue, tasks
from storage_audit.conf import conf
from storage_audit.models import CleanupOperation, Project, R2Object
from tests.conftest import Bucket
from tests.promises import skip_pauses
from tests.test_signals import enqueued_ids

pytestmark = pytest.mark.database

ROOT = Path(__file__).resolve().parent.parent
Status = CleanupOperation.Status
OTHER = "projects/proj_10/scenes/s1/media/other.mp4"
# A worker takes some seconds for the objects of `many`, in slices of a fraction of a second.
SLOW = """
from datetime import timedelta
from autoshorts.settings import *
STORAGE_AUDIT |= {"BATCH_SIZE": 1, "SLICE": timedelta(seconds=%s)}
"""


def database_url() -> str:
    """The test database, as another process reaches it."""
    given = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{given['NAME']}"
    host = quote(str(given["HOST"]), safe="")
    password = f":{quote(given['PASSWORD'])}" if given["PASSWORD"] else ""
    port = f":{given['PORT']}" if given["PORT"] else ""
    return f"postgres://{given['USER']}{password}@{host}{port}/{given['NAME']}"


class Cluster(Child):
    """`manage.py qcluster` on the test database and the test bucket; it has no task but those that
    a test gives it."""

    # Later than any test lasts. Of one still later it is said that a clock was ahead.
    next_sweep = timedelta(minutes=9)

    def __init__(self, folder: Path, slice_seconds: float | None = None, **variables: str) -> None:
        Schedule.objects.update(next_run=timezone.now() + timedelta(days=1))
        sweeps = Schedule.objects.filter(func=queue.SWEEP)
        sweeps.update(next_run=timezone.now() + self.next_sweep)
        environment = os.environ | {"DATABASE_URL": database_url(), "QUEUE_WORKERS": "1"}
        environment |= variables
        environment["DJANGO_SETTINGS_MODULE"] = "autoshorts.settings"
        if slice_seconds is not None:
            (folder / "slow_settings.py").write_text(SLOW % slice_seconds)
            environment["DJANGO_SETTINGS_MODULE"] = "slow_settings"
            environment["PYTHONPATH"] = f"{folder}:{ROOT}"
        command = [sys.executable, str(ROOT / "manage.py"), "qcluster"]
        log = folder / f"qcluster-{time.monotonic_ns()}.log"
        super().__init__("qcluster", command, env=environment, log=log, cwd=ROOT, grace=30)

    @property
    def said(self) -> str:
        assert self.log
        return self.log.read_text(errors="replace")

    def worker(self) -> int:
        """The process id of the worker that was started last."""
        return int(re.findall(r"ready for work at (\d+)", self.said)[-1])


class Sweeping(Cluster):
    next_sweep = timedelta(0)


@pytest.fixture
def project(bucket: Bucket) -> Project:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4", OTHER)
    return Project.objects.get()


@pytest.fixture
def many(project: Project, bucket: Bucket) -> list[str]:
    keys = [f"projects/proj_1/scenes/s2/media/{n:03}.mp4" for n in range(60)]
    bucket.put(*keys)
    return keys


def latest() -> CleanupOperation:
    return CleanupOperation.objects.filter(parent=None).latest("created_at")


def sent() -> int:
    """How many objects of the operation the store was asked to delete so far."""
    return latest().items.filter(tries__gt=0).count()


@contextmanager
def stopping(child: Child) -> Iterator[None]:
    """Tell the child's last words when something goes wrong."""
    try:
        yield
    except BaseException:
        print(child.tail())  # noqa: T201
        raise


def results() -> list[str]:
    return [task.result for task in Task.objects.filter(group="storage_audit")]


def assert_finishes(cluster: Cluster, bucket: Bucket, *, within: float = 180) -> None:
    def is_clean() -> bool:
        skip_pauses()
        return latest().status == Status.CLEAN

    with stopping(cluster):
        cluster.wait_until(is_clean, timeout=within)
    operation = latest()
    assert bucket.keys() == {OTHER}
    assert operation.found == operation.deleted + operation.already_absent
    assert not R2Object.objects.filter(project_id="proj_1").exists()


def lose_all_tasks() -> None:
    """As if the queue had been emptied two minutes after the deletion."""
    OrmQ.objects.all().delete()
    CleanupOperation.objects.update(enqueued_at=timezone.now() - timedelta(minutes=2))


def test_a_committed_deletion_is_finished_by_a_worker(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.said)
        project.delete()
        assert_finishes(cluster, bucket)
        cluster.wait_until(lambda: not OrmQ.objects.exists())
    assert results() == ["clean"]


def test_a_worker_that_starts_after_the_deletion_finishes_it(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)


def test_deleted_rows_are_finished_by_a_worker(bucket: Bucket, tmp_path: Path) -> None:
    for project_id in ("proj_1", "proj_2"):
        bucket.upload(project_id)
    bucket.put(OTHER)
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


def test_a_task_for_an_operation_that_is_gone_does_not_stop_the_others(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.create(pk="proj_2").delete()
    CleanupOperation.objects.all().delete()
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)


def test_a_killed_worker_is_followed_by_one_that_finishes(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path, slice_seconds=60) as cluster:
        Project.objects.get().delete()
        cluster.wait_until(lambda: sent() >= 5)
        os.kill(cluster.worker(), signal.SIGKILL)
        before = sent()
        assert before < len(many)
        operation = latest()
        assert operation.status == Status.RUNNING
        assert operation.lease_until is not None
        # Nobody may have it before the lease is over.
        assert tasks.sweep()["enqueued"] == 0
        assert len(bucket.keys()) > 1
        a_minute_ago = timezone.now() - timedelta(seconds=61)
        CleanupOperation.objects.filter(pk=operation.pk).update(
            lease_until=a_minute_ago, next_attempt_at=a_minute_ago, enqueued_at=a_minute_ago
        )
        assert tasks.sweep()["enqueued"] == 1
        assert_finishes(cluster, bucket)
    assert latest().found == len(many) + 2


def test_a_cluster_that_lost_its_power_is_followed_by_one_that_finishes(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    with Cluster(tmp_path, slice_seconds=60) as cluster:
        Project.objects.get().delete()
        cluster.wait_until(lambda: sent() >= 5)
        os.killpg(cluster.pid, signal.SIGKILL)
        cluster.wait()
    assert sent() < len(many)
    a_minute_ago = timezone.now() - timedelta(seconds=61)
    CleanupOperation.objects.update(
        lease_until=a_minute_ago, next_attempt_at=a_minute_ago, enqueued_at=a_minute_ago
    )
    with Cluster(tmp_path) as another:
        tasks.sweep()
        assert_finishes(another, bucket)
    assert latest().found == len(many) + 2


def test_a_long_cleanup_goes_on_in_another_task(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.get().delete()
    with Cluster(tmp_path, slice_seconds=0) as cluster:
        assert_finishes(cluster, bucket)
        cluster.wait_until(lambda: "clean" in results())
    assert results().count("running") >= 1


def test_a_cluster_that_is_asked_to_stop_ends_its_task_and_itself(
    many: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    Project.objects.get().delete()
    with Cluster(tmp_path, slice_seconds=60) as cluster:
        cluster.wait_until(lambda: sent() >= 40)  # The rest takes little, also on slow machines.
        started = time.monotonic()
        os.kill(cluster.pid, signal.SIGTERM)
        assert cluster.wait() == 0
        assert time.monotonic() - started < 30
        assert "has stopped" in cluster.said
    assert latest().status == Status.CLEAN
    assert bucket.keys() == {OTHER}


def test_an_idle_cluster_stops_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.said)
        started = time.monotonic()
        os.kill(cluster.pid, signal.SIGTERM)
        assert cluster.wait() == 0
        assert time.monotonic() - started < 10


def test_a_task_carries_an_id_and_nothing_else(project: Project) -> None:
    project.delete()
    package: dict[str, Any] = SignedPackage.loads(OrmQ.objects.get().payload)
    assert package["func"] == "storage_audit.tasks.run_operation"
    assert package["args"] == (str(latest().pk),)
    assert package["kwargs"] == {}
    for secret in (conf().secret_access_key, conf().access_key_id, settings.SECRET_KEY):
        assert secret not in repr(package)


def test_a_task_that_is_run_twice_does_its_work_once(project: Project, bucket: Bucket) -> None:
    project.delete()
    (pk,) = enqueued_ids()
    assert tasks.run_operation(pk) == "clean"
    bucket.put("proj_1_s1_media.mp4")
    assert tasks.run_operation(pk) == "not due, or held by another worker"
    assert bucket.keys() == {"proj_1_s1_media.mp4", OTHER}
