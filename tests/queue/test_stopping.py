"""A stop as the service manager does it, read from the unit files, ends soon and loses nothing."""

import os
import runpy
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ, Task

from devtools.environment import made_up_environment
from devtools.local_r2 import LocalR2
from devtools.processes import Child, free_port
from storage_audit import tasks
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupEvent, CleanupItem
from storage_audit.conf import conf
from storage_audit.models import Project
from tests.faults.matching import (
    Matches,
    is_delete_batch,
    is_listing,
    is_marker,
    rule_for,
    run_before,
)
from tests.faults.proxy import FaultyStore, Request, faulty_store
from tests.keys import KEY_OF_PROJ_10
from tests.paths import ROOT
from tests.processes import fetch_page, read_service
from tests.promises import acquire_lease, dump_cleanup, skip_pauses
from tests.queue.clusters import Cluster, print_log_on_failure
from tests.real_bucket import Bucket

pytestmark = pytest.mark.slow

GUNICORN = ROOT / "deploy" / "gunicorn.conf.py"
BIN = "/opt/autoshorts/.venv/bin/"
# Whatever a stop takes here, where turns are short, is far less than a unit allows.
SOON = 15
Status = Cleanup.Status
SETTINGS = """
from autoshorts.settings import *
ROOT_URLCONF = "slow_urls"
"""
URLS = """
import time
from django.http import HttpResponse
from django.urls import path

def slow(request):
    print("began", flush=True)
    time.sleep(5)
    return HttpResponse("done")

urlpatterns = [path("slow/", slow)]
"""


def seconds_to_stop(name: str) -> int:
    return int(read_service(name)["TimeoutStopSec"])


def stop(child: Child, name: str, *, patience: float = SOON) -> float:
    """Stop it as systemd stops the unit, but kill it sooner. Gives the seconds until it ended."""
    unit = read_service(name)
    send = {"mixed": os.kill, "control-group": os.killpg}[unit["KillMode"]]
    started = time.monotonic()
    send(child.pid, signal.Signals[unit["KillSignal"]])
    while child.is_running and time.monotonic() - started < patience:
        time.sleep(0.05)
    took = time.monotonic() - started
    if child.is_running:
        os.killpg(child.pid, signal.SIGKILL)
    return took


@pytest.fixture
def deleted(bucket: Bucket) -> None:
    """Projects that take a worker some turns each."""
    bucket.put(KEY_OF_PROJ_10)
    for project_id in ("proj_1", "proj_2", "proj_3"):
        bucket.upload(project_id)
        bucket.put(*(f"projects/{project_id}/scenes/s2/media/{n:03}.mp4" for n in range(20)))
    Project.objects.all().delete()


def sent() -> int:
    """How many objects the store was asked to delete so far."""
    return CleanupItem.objects.filter(attempts__gt=0).count()


def cleanups() -> list[Cleanup]:
    return list(Cleanup.objects.filter(parent=None))


def let_lease_run_out() -> int:
    """As when that time has passed, and that of the queue's own lock has not; the number of
    cleanups that are to be done."""
    past = timezone.now() - 2 * conf().lease_time
    unfinished = Cleanup.objects.open().filter(parent=None)
    unfinished.exclude(lease_until=None).update(lease_until=past)
    return unfinished.update(next_attempt_at=past, enqueued_at=past)


def assert_finishes(cluster: Cluster, bucket: Bucket) -> None:
    def are_clean() -> bool:
        skip_pauses()
        return {each.status for each in cleanups()} == {Status.CLEAN}

    with print_log_on_failure(cluster):
        cluster.wait_until(are_clean)
    assert bucket.keys() == {KEY_OF_PROJ_10}
    for each in cleanups():
        assert each.found == 21 == each.deleted + each.already_gone


def test_a_worker_stopped_in_the_middle_of_its_work_ends_soon_and_loses_nothing(
    deleted: None, bucket: Bucket, store: FaultyStore, tmp_path: Path
) -> None:
    # Each call takes longer than a turn, so that no cleanup is over by the time of the stop.
    store.rules.append(rule_for(is_delete_batch, run_before(lambda: time.sleep(0.3))))
    with Cluster(tmp_path, turn_seconds=0.2, R2_ENDPOINT_URL=store.url) as cluster:
        cluster.wait_until(lambda: sent() >= 3)
        took = stop(cluster, "worker")
        assert cluster.wait() == 0, cluster.tail()
    assert took < SOON < seconds_to_stop("worker") / 2
    assert {each.status for each in cleanups()} & {Status.RUNNING, Status.PENDING}
    assert not Cleanup.objects.leased().exists()
    # The batch that was under way has been sent, answered and written down.
    assert not CleanupItem.objects.filter(outcome="deleting", store_answer="").exists()
    with Cluster(tmp_path) as another:
        assert_finishes(another, bucket)
    assert not CleanupEvent.objects.filter(step="takeover").exists()


def test_a_worker_that_had_to_be_killed_loses_nothing(
    deleted: None, bucket: Bucket, store: FaultyStore, tmp_path: Path
) -> None:
    is_dead = Event()
    store.rules.append(
        rule_for(
            is_delete_batch,
            run_before(),
            run_before(),
            run_before(lambda: is_dead.wait(timeout=60)),
        )
    )
    with Cluster(tmp_path, turn_seconds=60, R2_ENDPOINT_URL=store.url) as cluster:
        cluster.wait_until(lambda: sent() >= 3)
        stop(cluster, "worker", patience=0)
        assert cluster.wait() == -signal.SIGKILL
    is_dead.set()
    assert Cleanup.objects.leased().exists()
    unfinished = let_lease_run_out()
    assert tasks.sweep()["enqueued"] == unfinished
    with Cluster(tmp_path) as another:
        assert_finishes(another, bucket)


def is_proof(request: Request) -> bool:
    """The look just before a batch, at its keys alone."""
    return is_listing(request) and not request.query.get("prefix")


@pytest.fixture
def store(local_r2: LocalR2) -> Iterator[FaultyStore]:
    """Only the clusters reach the bucket through it."""
    with faulty_store(local_r2.environment["R2_ENDPOINT_URL"]) as running:
        yield running


@pytest.mark.parametrize("moment", [is_marker, is_proof, is_delete_batch])
def test_a_worker_that_sleeps_past_its_lease_writes_and_sends_nothing_when_it_wakes_up(
    bucket: Bucket, store: FaultyStore, tmp_path: Path, moment: Matches
) -> None:
    """Except for the request that was on its way when it fell asleep, which is not sent again."""
    keys = {bucket.upload("proj_1", f"{n}.mp4") for n in range(3)}
    with Cluster(tmp_path, turn_seconds=60, R2_ENDPOINT_URL=store.url) as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.log_text)
        asleep = Event()

        def fall_asleep() -> None:
            os.kill(cluster.worker_pid(), signal.SIGSTOP)
            asleep.set()

        store.rules.append(rule_for(moment, run_before(fall_asleep), times=1))
        Project.objects.get().delete()
        with print_log_on_failure(cluster):
            cluster.wait_until(asleep.is_set)
        let_lease_run_out()
        (another,) = cleanups()
        assert acquire_lease(another)
        before, sent_before = dump_cleanup(another), len(store.find_requests(is_delete_batch))
        os.kill(cluster.worker_pid(), signal.SIGCONT)
        with print_log_on_failure(cluster):
            cluster.wait_until(Task.objects.filter(group="storage_audit").exists)
        assert "is no longer leased to this worker" in cluster.log_text
    assert dump_cleanup(another) == before
    assert len(store.find_requests(is_delete_batch)) == sent_before == (moment is is_delete_batch)
    assert not OrmQ.objects.exists()
    another.return_lease()
    done = runner.run_to_end(another.pk)
    assert (done.status, done.deleted + done.already_gone) == (Status.CLEAN, len(keys))
    assert not bucket.keys()


def test_a_worker_is_given_the_time_that_it_may_take() -> None:
    queue: dict[str, Any] = settings.Q_CLUSTER
    # The one in its hands, those that wait inside the cluster, and one that waits to get there.
    turns = 1 + queue["queue_limit"] / queue["workers"] + 1
    assert seconds_to_stop("worker") > turns * conf().turn_time.total_seconds() + 30


# The web server


class Web(Child):
    """The unit's own command, with a page that takes five seconds."""

    def __init__(self, folder: Path) -> None:
        (folder / "slow_settings.py").write_text(SETTINGS)
        (folder / "slow_urls.py").write_text(URLS)
        self.port = free_port(0)
        program, *words = shlex.split(read_service("web")["ExecStart"].removeprefix(BIN))
        argv = [str(Path(sys.executable).parent / program), *words]
        environment = os.environ | made_up_environment() | {"HTTPS": "false"}
        environment |= {"DJANGO_SETTINGS_MODULE": "slow_settings", "PYTHONPATH": str(folder)}
        environment |= {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}"}
        super().__init__("gunicorn", argv, env=environment, log=folder / "web.log", cwd=ROOT)


def test_a_web_server_stopped_during_a_request_answers_it_and_ends(tmp_path: Path) -> None:
    answers: list[tuple[int, str]] = []
    with Web(tmp_path) as web:
        web.wait_until(lambda: "Booting worker" in web.tail())
        address = f"http://127.0.0.1:{web.port}/slow/"
        browser = Thread(target=lambda: answers.append(fetch_page(address)))
        browser.start()
        web.wait_until(lambda: "began" in web.tail())
        assert not answers
        took = stop(web, "web")
        assert web.wait() == 0, web.tail()
        browser.join()
    assert answers == [(200, "done")]
    assert 1 < took < SOON < seconds_to_stop("web")


def test_the_web_server_is_given_the_time_that_it_gives_to_requests() -> None:
    assert seconds_to_stop("web") > runpy.run_path(str(GUNICORN))["graceful_timeout"]


# Whoever starts us


def test_units_and_procfile_start_the_same_programs() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    procfile = dict(line.split(": ", 1) for line in lines)
    for name in ("web", "worker"):
        # Without exec the signal reaches a shell, which ends and leaves the program running.
        assert procfile[name] == f"exec {read_service(name)['ExecStart'].removeprefix(BIN)}"
    assert procfile["worker"] == "exec python manage.py qcluster"
