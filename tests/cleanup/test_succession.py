"""A project that is created and deleted again, or that exists again for a moment only, while a
worker has the cleanup of its first deletion."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from storage_audit import tasks
from storage_audit.cleanup import kind_policies, plan_summary, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.promises import Status, check_promises, create_projects, request_cleanup, run_until_idle
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database


@pytest.fixture
def first(bucket: Bucket) -> Cleanup:
    """The cleanup of the first deletion."""
    create_projects("proj_2")
    bucket.upload("proj_1")
    return request_cleanup("proj_1")


def delete_again(bucket: Bucket) -> Cleanup:
    bucket.upload("proj_1")
    return request_cleanup("proj_1")


def before_once(
    patch: pytest.MonkeyPatch, module: object, name: str, effect: Callable[[], object]
) -> None:
    """Let this happen just before the function is called for the first time."""
    original, todo = getattr(module, name), [effect]

    def function(*args: Any) -> Any:
        while todo:
            todo.pop()()
        return original(*args)

    patch.setattr(module, name, function)


def test_worker_that_stands_still_leaves_the_cleanup_of_the_next_deletion_open(
    bucket: Bucket, first: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by the deletion that it knew."""
    # Just after it has checked which deletion is the latest.
    before_once(monkeypatch, runner, "resume_pass", lambda: delete_again(bucket))
    assert run_until_idle(first).status == Status.SUPERSEDED
    second = Cleanup.objects.of_project("proj_1").get()
    assert run_until_idle(second).status == Status.CLEAN
    assert bucket.keys() == set()
    check_promises(bucket)


def test_worker_without_its_lease_ends_no_other_cleanup(
    bucket: Bucket, first: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic():
        assert first.acquire_lease()
    second = delete_again(bucket)
    with transaction.atomic():
        first.refresh_from_db()
        first.block("too much")
    leased = Cleanup.objects.filter(pk=second.pk)
    before_once(
        monkeypatch,
        kind_policies.WholeProject,
        "require_project_gone",
        lambda: leased.update(lease_until=timezone.now()),
    )
    assert runner.run_turn(second.pk) is None
    first.refresh_from_db()
    assert first.status == Status.BLOCKED


def test_project_that_exists_for_a_moment_without_a_signal_is_not_forgotten(
    bucket: Bucket, first: Cleanup
) -> None:
    Project.objects.bulk_create([Project(pk="proj_1")])
    assert run_until_idle(first).status == Status.SUPERSEDED
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    assert not Cleanup.objects.of_project("proj_1").exists()
    tasks.sweep()
    assert Cleanup.objects.of_project("proj_1").get().status == Status.BLOCKED
    assert len(bucket.keys()) == 1


def test_superseded_cleanup_does_not_undo_the_deletion_that_comes_next(
    bucket: Bucket, first: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.bulk_create([Project(pk="proj_1")])
    before_once(
        monkeypatch, plan_summary, "add_dropped_items", Project.objects.get(pk="proj_1").delete
    )
    assert run_until_idle(first).status == Status.SUPERSEDED
    second = Cleanup.objects.of_project("proj_1").get()
    assert run_until_idle(second).status == Status.CLEAN
    assert bucket.keys() == set()
