"""How far a worker says it is."""

from datetime import UTC, datetime
from typing import Any

import pytest

from storage_audit.cleanup import progress
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.progress import Headway
from storage_audit.models import Project
from tests.promises import between_plan_and_batch, requested, run
from tests.real_bucket import Bucket

START = 1_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def deleting(*marks: tuple[float, int], total: int | None = 1000) -> CleanupOperation:
    kept = {"step": "delete", "total": total, "marks": [[START + t, n] for t, n in marks]}
    return CleanupOperation(step="delete", status="running", headway={**kept, "books": {}})


def seen(operation: CleanupOperation, seconds: float) -> Headway:
    found = Headway.of(operation, at(seconds))
    assert found
    return found


def test_pace_is_that_of_the_last_minute() -> None:
    slow_then_fast = deleting((0, 0), (100, 10), (130, 310), (160, 610))
    assert seen(slow_then_fast, 160) == Headway(610, 1000, 10.0, 39.0)


def test_pace_of_a_step_that_just_began_is_that_since_then() -> None:
    assert seen(deleting((0, 0), (2, 250)), 5).rate == 50


def test_what_stands_still_has_no_pace_and_no_estimate() -> None:
    operation = deleting((0, 0), (10, 500))
    assert seen(operation, 69).rate > 0
    assert seen(operation, 71) == Headway(500, 1000, 0.0, None)


def test_no_estimate_is_given_where_the_total_is_not_known() -> None:
    assert seen(deleting((0, 0), (10, 500), total=None), 10).seconds_left is None


def test_worker_whose_clock_is_ahead_has_a_pace_all_the_same() -> None:
    assert seen(deleting((300, 0), (310, 100)), 0).rate == 10


def test_figures_of_another_step_are_none() -> None:
    operation = deleting((0, 0))
    operation.step = "verify"
    assert Headway.of(operation, at(1)) is None


def test_a_long_step_keeps_few_marks_that_tell_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    operation, now = deleting((0, 0), total=None), START

    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime.fromtimestamp(now, UTC)

    monkeypatch.setattr(progress, "timezone", Clock)
    for _batch in range(1000):
        now += 0.5
        operation.headway = progress.passed(operation, 10)
    assert len(operation.headway["marks"]) < 20
    found = Headway.of(operation, Clock.now())
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
    counted, real = list[tuple[dict[str, Any], dict[str, Any]]](), progress.enter

    def enter(operation: CleanupOperation) -> None:
        if operation.headway and operation.headway["step"] != operation.step:
            counted.append((operation.headway, operation.items.by_outcome()))
        real(operation)

    monkeypatch.setattr(progress, "enter", enter)
    between_plan_and_batch(
        monkeypatch,
        lambda: bucket.put(keys[0], body=b"another"),
        lambda: bucket.r2.remove(keys[1], bucket.name),
    )
    operation = run(requested("proj_1"))
    assert operation.status == "clean_with_protected"
    (planning, found), (deleted, left) = counted
    assert planning["marks"][-1][1] == 8
    for kept, items in ((planning, found), (deleted, left)):
        assert {k: tuple(v) for k, v in kept["books"].items() if v[0]} == items
    assert deleted["marks"][-1][1] == deleted["total"] == 7
    assert operation.headway == {}
