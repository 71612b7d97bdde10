"""Worker processes, and what the queue holds."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task
from django_q.signing import SignedPackage

from devtools.processes import Child
from storage_audit import queue
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import R2Object
from tests.keys import KEY_OF_PROJ_10
from tests.paths import ROOT
from tests.processes import database_url
from tests.promises import Status, skip_pauses
from tests.real_bucket import Bucket

# A worker takes some seconds for the objects of `many`, in slices of a fraction of a second.
SLOW_SETTINGS = """
from datetime import timedelta
from autoshorts.settings import *
STORAGE_AUDIT |= {"BATCH_SIZE": 1, "TURN_TIME": timedelta(seconds=%s)}
"""


class Cluster(Child):
    """`manage.py qcluster` on the test database and the test bucket; it has no task but those that
    a test gives it."""

    # Later than any test lasts. Of one still later it is said that a clock was ahead.
    next_sweep = timedelta(minutes=9)

    def __init__(self, folder: Path, turn_seconds: float | None = None, **variables: str) -> None:
        Schedule.objects.update(next_run=timezone.now() + timedelta(days=1))
        sweeps = Schedule.objects.filter(func=queue.SWEEP)
        sweeps.update(next_run=timezone.now() + self.next_sweep)
        environment = os.environ | {"DATABASE_URL": database_url(), "QUEUE_WORKERS": "1"}
        environment |= variables
        environment["DJANGO_SETTINGS_MODULE"] = "autoshorts.settings"
        if turn_seconds is not None:
            (folder / "slow_settings.py").write_text(SLOW_SETTINGS % turn_seconds)
            environment["DJANGO_SETTINGS_MODULE"] = "slow_settings"
            environment["PYTHONPATH"] = f"{folder}:{ROOT}"
        command = [sys.executable, str(ROOT / "manage.py"), "qcluster"]
        log = folder / f"qcluster-{time.monotonic_ns()}.log"
        super().__init__("qcluster", command, env=environment, log=log, cwd=ROOT, grace=30)

    @property
    def log_text(self) -> str:
        assert self.log
        return self.log.read_text(errors="replace")

    def worker_pid(self) -> int:
        """The process id of the worker that was started last."""
        return int(re.findall(r"ready for work at (\d+)", self.log_text)[-1])


def latest_cleanup() -> Cleanup:
    return Cleanup.objects.filter(parent=None).latest("created_at")


@contextmanager
def print_log_on_failure(child: Child) -> Iterator[None]:
    """Tell the child's last words when something goes wrong."""
    try:
        yield
    except BaseException:
        print(child.tail())  # noqa: T201
        raise


def list_results() -> list[str]:
    return [task.result for task in Task.objects.filter(group="storage_audit")]


def assert_finishes(cluster: Cluster, bucket: Bucket, *, within: float = 180) -> None:
    def is_clean() -> bool:
        skip_pauses()
        return latest_cleanup().status == Status.CLEAN

    with print_log_on_failure(cluster):
        cluster.wait_until(is_clean, timeout=within)
    cleanup = latest_cleanup()
    assert bucket.keys() == {KEY_OF_PROJ_10}
    assert cleanup.found == cleanup.deleted + cleanup.already_gone
    assert not R2Object.objects.filter(project_id="proj_1").exists()


def lose_all_tasks() -> None:
    """As if the queue had been emptied two minutes after the deletion."""
    OrmQ.objects.all().delete()
    Cleanup.objects.update(enqueued_at=timezone.now() - timedelta(minutes=2))


def list_enqueued_ids() -> list[str]:
    """Of the cleanups or scans that the queue's tasks are for, in order."""
    return [SignedPackage.loads(task.payload)["args"][0] for task in OrmQ.objects.order_by("pk")]
