"""How far a worker says it is."""

from datetime import UTC, datetime
from typing import Any

import pytest

from storage_audit.cleanup import progress
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.progress import StepProgress
from storage_audit.models import Project
from tests.promises import act_before_batch, request_cleanup, run_until_idle
from tests.real_bucket import Bucket

START = 1_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def deleting(*marks: tuple[float, int], total: int | None = 1000) -> Cleanup:
    kept = {"step": "delete", "total": total, "marks": [[START + t, n] for t, n in marks]}
    return Cleanup(step="delete", status="running", progress={**kept, "totals": {}})


def seen(cleanup: Cleanup, seconds: float) -> StepProgress:
    found = StepProgress.of(cleanup, at(seconds))
    assert found
    return found


def test_rate_is_that_of_the_last_minute() -> None:
    slow_then_fast = deleting((0, 0), (100, 10), (130, 310), (160, 610))
    assert seen(slow_then_fast, 160) == StepProgress(610, 1000, 10.0, 39.0)


def test_rate_of_a_step_that_just_began_is_that_since_then() -> None:
    assert seen(deleting((0, 0), (2, 250)), 5).rate == 50


def test_what_stands_still_has_no_rate_and_no_estimate() -> None:
    cleanup = deleting((0, 0), (10, 500))
    assert seen(cleanup, 69).rate > 0
    assert seen(cleanup, 71) == StepProgress(500, 1000, 0.0, None)


def test_no_estimate_is_given_where_the_total_is_not_known() -> None:
    assert seen(deleting((0, 0), (10, 500), total=None), 10).seconds_left is None


def test_worker_whose_clock_is_ahead_has_a_rate_all_the_same() -> None:
    assert seen(deleting((300, 0), (310, 100)), 0).rate == 10


def test_figures_of_another_step_are_none() -> None:
    cleanup = deleting((0, 0))
    cleanup.step = "verify"
    assert StepProgress.of(cleanup, at(1)) is None


def test_a_long_step_keeps_few_marks_that_tell_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    cleanup, now = deleting((0, 0), total=None), START

    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime.fromtimestamp(now, UTC)

    monkeypatch.setattr(progress, "timezone", Clock)
    for _batch in range(1000):
        now += 0.5
        cleanup.progress = progress.count_done(cleanup, 10)
    assert len(cleanup.progress["marks"]) < 20
    found = StepProgress.of(cleanup, Clock.now())
    assert found and found.done == 10_000
    assert found.rate == pytest.approx(20, rel=0.1)


def test_the_worker_counts_what_its_items_say(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what is gone, overwritten or protected when its turn comes."""
    Project.objects.create(pk="proj_1_x")
    keys = [f"proj_1_s{n}_media.mp4" for n in range(5)]
    bucket.upload("proj_1")
    bucket.put(*keys, "proj_1_x_s1_media.mp4")
    bucket.r2.remove(bucket.upload("proj_1", "lost.mp4"), bucket.name)
    counted, real = list[tuple[dict[str, Any], dict[str, Any]]](), progress.start_step

    def enter(cleanup: Cleanup) -> None:
        if cleanup.progress and cleanup.progress["step"] != cleanup.step:
            counted.append((cleanup.progress, cleanup.items.by_outcome()))
        real(cleanup)

    monkeypatch.setattr(progress, "start_step", enter)
    act_before_batch(
        monkeypatch,
        lambda: bucket.put(keys[0], body=b"another"),
        lambda: bucket.r2.remove(keys[1], bucket.name),
    )
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert cleanup.status == "clean_with_kept"
    (planning, found), (deleted, left) = counted
    assert planning["marks"][-1][1] == 8
    for kept, items in ((planning, found), (deleted, left)):
        assert {k: tuple(v) for k, v in kept["totals"].items() if v[0]} == items
    assert deleted["marks"][-1][1] == deleted["total"] == 7
    assert cleanup.progress == {}
