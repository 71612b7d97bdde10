"""The crash job sees what it is to see; the bulk job itself is `make test-crash`."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devtools.processes import Child, StartError
from storage_audit.models import Project
from tests.crash.__main__ import list_parts
from tests.crash.chaos import Chaos
from tests.crash.observer import Observer
from tests.crash.people import Person
from tests.crash.services import Cluster, Program, start_with_retries
from tests.crash.verdict import Verdict
from tests.crash.world import World
from tests.paths import ROOT
from tests.promises import clean_up_project, create_projects, run_follow_up
from tests.real_bucket import Bucket

KEY = "projects/proj_1/scenes/s1/media/a.mp4"


@pytest.fixture
def world() -> World:
    return World(1, has_folders=False)


@pytest.fixture
def person(world: World) -> Person:
    return Person(cast(Any, None), world, {}, seed=1)


@pytest.fixture
def chaos(tmp_path: Path, world: World, person: Person) -> Chaos:
    return Chaos(cast(Any, SimpleNamespace(folder=tmp_path)), world, person, Random(1), Random(1))


def problems(chaos: Chaos) -> list[str]:
    return list(Verdict(chaos.world, Observer(chaos.world, "bucket"), chaos, {}).list_problems())


def test_the_histories_are_found() -> None:
    argv = dict(list_parts(seed=1, kills=1))["histories"]
    subprocess.run([sys.executable, *argv, "--collect-only"], cwd=ROOT, check=True)


def test_what_does_not_start_at_first_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the web server, when another program has its port for a moment."""
    outcomes = iter([StartError("Address already in use"), None])

    def start() -> None:
        if error := next(outcomes):
            raise error

    monkeypatch.setattr("tests.crash.services.time.sleep", lambda seconds: None)
    start_with_retries(cast(Any, SimpleNamespace(start=start)))
    assert not list(outcomes)


def test_a_program_started_again_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    """As a cluster whose guard was killed: it ends, and its workers do not."""
    orphaning = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    program = Program("program", [sys.executable, "-c", orphaning], os.environ, tmp_path)
    program.start()
    assert cast(Child, program.child).wait() == 0
    orphan = Path("/proc", program.log_text.strip())
    assert orphan.exists()
    program.start()
    assert not orphan.exists()
    cast(Child, program.child).wait()
    program.stop()


def test_a_cluster_that_slept_is_not_taken_for_stuck_at_once(tmp_path: Path) -> None:
    class Quiet(Cluster):
        log_text = ""

    cluster = Quiet("cluster", os.environ, tmp_path)
    cluster._taken_at -= 200
    assert cluster.is_idle(100)
    cluster.reset_idle_time()
    assert not cluster.is_idle(100)


def test_a_sleeper_is_left_to_sleep(chaos: Chaos) -> None:
    one, other = object(), object()
    chaos.site = cast(Any, SimpleNamespace(clusters=[one, other]))
    chaos.asleep = cast(Any, one)
    assert {chaos.choose_awake() for _try in range(20)} == {other}


@pytest.mark.django_db
@pytest.mark.parametrize("seconds, is_late", [(120, False), (121, True)])
def test_work_that_resumes_late_is_noticed(chaos: Chaos, seconds: float, is_late: bool) -> None:
    chaos.longest_resume_seconds = seconds
    assert (f"work resumed only after {seconds} s" in problems(chaos)) == is_late


def test_of_an_upload_nobody_knows_in_which_life_of_its_project_it_was(
    chaos: Chaos, world: World
) -> None:
    world.start_life("proj_1")
    key = "projects/proj_1/scenes/s9/media/a.mp4"
    upload = cast(Any, SimpleNamespace(log_text=f"try {key}\nsaved {key} etag\n"))
    lives = {"proj_1": world.count_lives("proj_1")}
    world.start_life("proj_1")
    chaos.record_uploads(upload, lives)
    assert world.expected_end({"proj_1"}, set()) == ({}, set())
    chaos.record_uploads(upload, {"proj_1": world.count_lives("proj_1")})
    assert world.expected_end({"proj_1"}, set()) == ({key: "etag"}, set())


@pytest.mark.django_db
def test_a_project_that_was_not_deleted_is_not_recreated(person: Person, world: World) -> None:
    """Whoever asked for its deletion got no answer, and nothing came of it."""
    world.start_life("proj_1")
    Project.objects.create(pk="proj_1")
    person.gone.append("proj_1")
    person.recreate_project()
    assert world.count_lives("proj_1") == 1


@pytest.mark.django_db
def test_a_run_in_which_nothing_was_interrupted_proves_nothing(chaos: Chaos) -> None:
    assert problems(chaos) == ["no deletion was interrupted, so that nothing was put to the proof"]


def test_a_cleanup_that_ended_twice_is_noticed(bucket: Bucket, chaos: Chaos) -> None:
    create_projects("proj_1")
    cleanup = clean_up_project("proj_1")
    twice = f"ended 2 times: {cleanup.pk}"
    assert twice not in problems(chaos)
    cleanup.record("closed", "clean")
    assert twice in problems(chaos)


def test_an_object_that_was_called_gone_and_is_there_is_noticed(
    bucket: Bucket, chaos: Chaos, world: World
) -> None:
    create_projects("proj_1")
    bucket.put(KEY)
    world.planted.add(KEY)
    cleanup = clean_up_project("proj_1")
    called_gone = f"called gone, and was there: {KEY}"
    assert called_gone not in problems(chaos)
    bucket.put(KEY)
    run_follow_up(cleanup)
    assert called_gone in problems(chaos)
