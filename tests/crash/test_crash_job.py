"""The crash job sees what it is to see; the bulk job itself is `make test-crash`."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devtools.processes import Child, StartError
from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.models import Cleanup, DeletionPause
from storage_audit.models import Project
from tests.crash.__main__ import list_parts
from tests.crash.chaos import Chaos
from tests.crash.observer import Call, Observer
from tests.crash.people import NothingToDo, Pause, Person
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
def person(world: World, monkeypatch: pytest.MonkeyPatch) -> Person:
    # The test's own would go.
    monkeypatch.setattr("tests.crash.people.close_old_connections", lambda: None)
    return Person(cast(Any, None), world, {}, seed=1)


@pytest.fixture
def chaos(tmp_path: Path, world: World, person: Person) -> Chaos:
    return Chaos(cast(Any, SimpleNamespace(folder=tmp_path)), world, person, Random(1), Random(1))


@pytest.fixture
def observer(world: World) -> Observer:
    return Observer(world, "bucket")


@pytest.fixture
def held(world: World, settings: Any) -> Cleanup:
    """Of a project with one file, and with a day left to undo its deletion."""
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": timedelta(days=1)}
    world.record_saved(KEY, "etag", world.start_life("proj_1"))
    create_projects("proj_1")
    Project.objects.get(pk="proj_1").delete()
    return Cleanup.objects.get()


def problems(chaos: Chaos, observer: Observer | None = None, *there: str) -> list[str]:
    objects = dict.fromkeys(there, (1, "etag"))
    seen = observer or Observer(chaos.world, "bucket")
    return list(Verdict(chaos.world, seen, chaos, objects).list_problems())


def sent_at(moment: float) -> Call:
    return Call("proj_1", [KEY], moment)


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
    running = Cleanup.objects.request_for_project("proj_1", trigger="deleted", deleted_at=None)
    Cleanup.objects.update(first_request_at=running[0].created_at)
    with pytest.raises(NothingToDo):
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


@pytest.mark.parametrize("kills", [4, 100])
def test_more_kills_judge_more_keys(kills: int) -> None:
    argv = dict(list_parts(seed=1, kills=kills))["ownership"]
    assert argv[argv.index("--keys") + 1] == str(kills * 10_000)


def test_what_is_sent_within_a_hold_is_noticed(
    bucket: Bucket, chaos: Chaos, observer: Observer, held: Cleanup
) -> None:
    wrong = f"sent while held: {held.pk}, {KEY}"
    assert held.held_until
    observer.calls = [sent_at(held.held_until.timestamp())]
    assert wrong not in problems(chaos, observer)
    observer.calls = [sent_at(held.held_until.timestamp() - 60)]
    assert wrong in problems(chaos, observer)


def test_a_project_that_was_restored_keeps_its_row_and_its_files(
    bucket: Bucket, chaos: Chaos, observer: Observer, held: Cleanup
) -> None:
    end_deletions.undo_deletion(held)
    assert len(problems(chaos, None, KEY)) == 1
    assert f"deleted or changed, and should not be: {KEY}" in problems(chaos)
    observer.calls = [sent_at(time.time() + 60)]
    assert f"sent while undone: {held.pk}, {KEY}" in problems(chaos, observer, KEY)
    Cleanup.objects.update(first_request_at=held.created_at)
    held.record("erase", "")
    Project.objects.all()._raw_delete("default")
    found = problems(chaos, None, KEY)
    for wrong in ("and its project is gone", "and sent for deletion"):
        assert f"undone, {wrong}: {held.pk}" in found
    assert f"undone and erased: {held.pk}" in found


def test_a_cancelled_deletion_keeps_what_was_not_sent(
    bucket: Bucket, chaos: Chaos, observer: Observer, held: Cleanup
) -> None:
    end_deletions.cancel_deletion(held, "a test")
    assert len(problems(chaos, None, KEY)) == 1
    assert f"deleted or changed, and should not be: {KEY}" in problems(chaos)
    observer.calls = [sent_at(time.time() - 60)]
    assert f"deleted or changed, and should not be: {KEY}" not in problems(chaos, observer)
    observer.calls = [sent_at(time.time() + 60)]
    assert f"sent while cancelled: {held.pk}, {KEY}" in problems(chaos, observer)


@pytest.mark.django_db
def test_what_is_sent_while_deletions_are_paused_is_noticed(
    chaos: Chaos, observer: Observer
) -> None:
    chaos.person.pauses.append(Pause(1000.0, 1030.0))
    observer.calls = [sent_at(1005)] * 32 + [sent_at(1030), sent_at(999)]
    assert len(problems(chaos, observer)) == 1
    observer.calls = [sent_at(1005)] * 33
    assert "proj_1: 33 calls after a pause began" in problems(chaos, observer)
    observer.calls = [sent_at(1011)]
    assert f"sent 11 s after a pause began: proj_1, {KEY}" in problems(chaos, observer)


@pytest.mark.django_db
def test_a_pause_lasts_until_somebody_resumes(chaos: Chaos, person: Person) -> None:
    released = "1 pauses were over, and nobody had resumed deletions"
    for begins_to_resume in (True, False):
        DeletionPause.objects.create(paused_by="anna", reason="a test")
        assert person.look_for_pause()
        if begins_to_resume:
            person.begin_to_resume()
            assert person.look_for_pause()
        DeletionPause.objects.all().delete()
        assert not person.look_for_pause()
        assert (released in problems(chaos)) != begins_to_resume
    assert len(person.pauses) == 2


@pytest.mark.django_db
def test_a_long_run_in_which_nobody_changed_their_mind_proves_too_little(chaos: Chaos) -> None:
    chaos.kills["a cluster"] = 49
    assert not [each for each in problems(chaos) if each.startswith("nothing was")]
    chaos.kills["a cluster"] = 50
    missed = ("undone", "cancelled", "erased now", "paused", "resumed")
    assert {f"nothing was {name}" for name in missed} < set(problems(chaos))
