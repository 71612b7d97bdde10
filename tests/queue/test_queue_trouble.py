"""The queue lies, loses, repeats or stands still: the sweep and the lease make it harmless."""

import os
import secrets
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone
from django_q.models import OrmQ, Task
from django_q.signing import SignedPackage

from storage_audit import tasks
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.keys import KEY_OF_PROJ_10
from tests.paths import ROOT
from tests.processes import database_url
from tests.promises import Status, acquire_lease, check_promises
from tests.queue.clusters import (
    Cluster,
    assert_finishes,
    latest_cleanup,
    list_enqueued_ids,
    lose_all_tasks,
    print_log_on_failure,
)
from tests.real_bucket import Bucket

RUN = "storage_audit.tasks.run_cleanup"
NOBODY = "00000000-0000-4000-8000-000000000000"
WRONG_CALLS: list[dict[str, Any]] = [
    {"func": RUN, "args": (NOBODY,)},
    {"func": RUN, "args": ("../../etc/passwd",)},
    {"func": RUN, "args": (None,)},
    {"func": RUN, "args": (b"\xff",)},
    {"func": RUN, "args": ()},
    {"func": RUN, "args": (NOBODY, NOBODY)},
    {"func": RUN, "args": (), "kwargs": {"cleanup": NOBODY}},
    {"func": "storage_audit.tasks.no_such_function", "args": (NOBODY,)},
    {"func": "storage_audit", "args": ()},
]
# Signed with our key, and nothing that a worker of django-q2 survives.
NO_CALLS: list[object] = [{"id": "1"}, ["a", "list"], "text", None, 17]


def put_in_queue(*packages: object) -> None:
    for package in packages:
        payload = SignedPackage.dumps(package)
        OrmQ.objects.create(key="autoshorts", payload=payload, lock=timezone.now())


def call(number: int, facts: dict[str, Any]) -> dict[str, Any]:
    started = timezone.now()
    named = {"id": f"{number:032}", "name": f"wrong {number}", "started": started}
    return {**named, "ack_failures": True, "kwargs": {}, **facts}


def test_tasks_with_wrong_contents_fail_alone_and_stop_no_other(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    put_in_queue(*NO_CALLS, *(call(n, facts) for n, facts in enumerate(WRONG_CALLS)))
    project.delete()
    with Cluster(tmp_path) as cluster:
        assert_finishes(cluster, bucket)
        failed = Task.objects.filter(name__startswith="wrong", success=False)
        cluster.wait_until(lambda: failed.count() == len(WRONG_CALLS))
    # What stopped its worker or pusher is not handed out again before `retry` is over.
    assert not OrmQ.objects.filter(lock__lte=timezone.now()).exists()
    check_promises(bucket)


def test_tasks_signed_with_a_former_secret_key_are_dropped_and_the_sweep_replaces_them(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    project.delete()
    old = OrmQ.objects.get().pk
    new_key = secrets.token_hex(30)
    with Cluster(tmp_path, SECRET_KEY=new_key) as cluster:
        with print_log_on_failure(cluster):
            cluster.wait_until(lambda: not OrmQ.objects.filter(pk=old).exists())
        assert (latest_cleanup().status, latest_cleanup().attempts) == (Status.PENDING, 0)
        lose_all_tasks()
        sweep_from_cron(SECRET_KEY=new_key)
        assert_finishes(cluster, bucket)


def sweep_from_cron(**variables: str) -> None:
    environment = os.environ | {"DATABASE_URL": database_url()} | variables
    environment["DJANGO_SETTINGS_MODULE"] = "autoshorts.settings"
    command = [sys.executable, "manage.py", "sweep_cleanups"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def test_a_cluster_whose_workers_wait_for_a_dead_one_swallows_two_tasks_and_no_deletion(
    project: Project, bucket: Bucket, tmp_path: Path
) -> None:
    """An idle worker holds the lock of the cluster's own queue; killed then, it holds it for ever.
    https://github.com/django-q2/django-q2/issues/23"""
    with Cluster(tmp_path) as stuck:
        with print_log_on_failure(stuck):
            stuck.wait_until(
                lambda: "ready for work" in stuck.log_text and is_idle(stuck.worker_pid())
            )
            os.kill(stuck.worker_pid(), signal.SIGKILL)
            stuck.wait_until(lambda: "after death" in stuck.log_text)
        project.delete()
        for _sweep in range(2):
            Cleanup.objects.update(enqueued_at=timezone.now() - timedelta(minutes=2))
            assert tasks.sweep()["enqueued"] == 1
        swallowed = OrmQ.objects.filter(lock__gt=timezone.now())
        with print_log_on_failure(stuck):
            stuck.wait_until(lambda: swallowed.count() == 2)
        assert OrmQ.objects.count() == 3
        assert latest_cleanup().status == Status.PENDING
        with Cluster(tmp_path) as another:
            assert_finishes(another, bucket)
        assert swallowed.count() == 2
        os.killpg(stuck.pid, signal.SIGKILL)


def is_idle(pid: int) -> bool:
    """Whether the process waits, as it does for a task; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_task_delayed_until_another_has_done_its_work_does_nothing(
    project: Project, bucket: Bucket
) -> None:
    project.delete()
    (delayed,) = list_enqueued_ids()
    lose_all_tasks()
    assert tasks.sweep()["enqueued"] == 1
    assert [tasks.run_cleanup(pk) for pk in list_enqueued_ids()] == ["clean"]
    before = Cleanup.objects.values().get(pk=delayed)
    assert tasks.run_cleanup(delayed) == "not due, or held by another worker"
    assert Cleanup.objects.values().get(pk=delayed) == before


def test_a_task_that_comes_again_while_another_worker_holds_its_cleanup_does_nothing(
    project: Project, bucket: Bucket
) -> None:
    """The queue hands a task out again after `retry`, also when its worker is still at it."""
    project.delete()
    (pk,) = list_enqueued_ids()
    holder = latest_cleanup()
    assert acquire_lease(holder)
    assert tasks.run_cleanup(pk) == "not due, or held by another worker"
    holder.renew()
    assert len(bucket.keys()) == 3


def test_a_task_delayed_past_the_lease_of_a_worker_that_died_takes_over(
    project: Project, bucket: Bucket
) -> None:
    project.delete()
    (pk,) = list_enqueued_ids()
    assert acquire_lease(latest_cleanup())
    a_moment_ago = timezone.now() - timedelta(seconds=1)
    Cleanup.objects.update(lease_until=a_moment_ago, next_attempt_at=a_moment_ago)
    assert tasks.run_cleanup(pk) == "clean"
    assert latest_cleanup().events.filter(step="takeover").count() == 1
    assert bucket.keys() == {KEY_OF_PROJ_10}
