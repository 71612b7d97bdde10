"""A verification's look is settled some items at a time, and any worker goes on with the rest."""

from datetime import timedelta
from types import ModuleType

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.alerts.models import Incident
from storage_audit.cleanup import delete_pipeline, runner, settle, used_files, verify
from storage_audit.cleanup.models import CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.position import OLD_AFTER
from storage_audit.cleanup.turn import Work
from storage_audit.models import R2Object
from storage_audit.tracking.upload import Upload
from tests.faults.kinds import lies
from tests.faults.matching import is_delete_batch, on
from tests.faults.proxy import FaultyStore
from tests.promises import (
    Status,
    again,
    check,
    late_check,
    list_gone,
    outcomes,
    reason,
    requested,
    run,
    take_over_lease,
)
from tests.real_bucket import Bucket
from tests.times import AHEAD, STALE_CALL

pytestmark = pytest.mark.database

LATE = "projects/proj_1/scenes/s1/media/late.mp4"


@pytest.fixture(autouse=True)
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "TOGETHER", 2)


def fill(bucket: Bucket, count: int = 5) -> list[str]:
    return [bucket.upload("proj_1", f"{n}.mp4") for n in range(count)]


def die_while_settling(
    monkeypatch: pytest.MonkeyPatch, operation: CleanupOperation, survived: int = 1
) -> None:
    """Run until the worker dies, with so many transactions behind it."""
    original, left = settle.forget_rows, [None] * survived

    def forget_rows(operation: CleanupOperation, items: CleanupItemQuerySet) -> None:
        original(operation, items)
        if not left:
            raise KeyboardInterrupt
        left.pop()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(settle, "forget_rows", forget_rows)
        run(operation)


def check_progress(operation: CleanupOperation) -> None:
    """The page shows books that add up, and that are those of the items."""
    operation.refresh_from_db()
    shown = {name: tuple(sums) for name, sums in operation.headway["books"].items() if any(sums)}
    assert shown == operation.items.by_outcome()
    books = operation.items.books()
    assert books["found"] == sum(books[name] for name in ("deleted", "already_absent", "failed"))


def test_worker_that_dies_while_it_settles_leaves_what_it_has_settled(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    operation = requested("proj_1")
    die_while_settling(monkeypatch, operation)
    assert list_gone(operation) == set(keys[:2])
    # Each row went with the word on its item.
    assert set(R2Object.objects.values_list("key", flat=True)) == set(keys[2:])
    check_progress(operation)
    times = [operation.cursor[name] for name in ("began", "ended")]
    operation = take_over_lease(operation)
    assert operation.status == Status.CLEAN and operation.deleted == 5
    assert not R2Object.objects.exists()
    # It went on from there, and took no second look.
    [look] = operation.events.filter(step="verify")
    assert [look.data["began"], look.data["ended"]] == times
    assert look.message == "Every range was listed to its end: 5 gone, 0 to be tried again."
    check(bucket)


def test_error_while_its_findings_are_closed_leaves_all_as_it_was(bucket: Bucket) -> None:
    keys = fill(bucket)
    operation = requested("proj_1")

    def fail(**kwargs: object) -> None:
        raise RuntimeError

    settle.objects_gone.connect(fail)
    try:
        with pytest.raises(RuntimeError):
            run(operation)
    finally:
        settle.objects_gone.disconnect(fail)
    assert not bucket.keys() & set(keys) and not list_gone(operation)
    assert set(R2Object.objects.values_list("key", flat=True)) == set(keys)
    operation.refresh_from_db()
    assert again(operation).status == Status.CLEAN and not R2Object.objects.exists()
    check(bucket)


def test_settling_that_takes_longer_than_a_turn_ends(bucket: Bucket, settings: Settings) -> None:
    fill(bucket)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    operation, settled = requested("proj_1"), list[int]()
    while operation.status in (Status.PENDING, Status.RUNNING):
        runner.run_slice(operation.pk)
        operation.refresh_from_db()
        if "ended" in operation.cursor:
            check_progress(operation)
            assert operation.attempts == operation.takeovers == 0
            settled.append(len(list_gone(operation)))
    assert operation.status == Status.CLEAN
    assert settled == [2, 4, 5]


@pytest.mark.parametrize("behind", [timedelta(0), AHEAD, -AHEAD], ids=["right", "behind", "ahead"])
def test_file_of_an_upload_that_ends_between_look_and_settling_is_not_called_absent(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, behind: timedelta
) -> None:
    """The clock of the web server may be behind, or ahead."""
    fill(bucket, 1)
    upload = Upload(bucket.name, LATE).begin()
    lost = used_files.lost

    def end_first(work: Work) -> dict[int, str]:
        bucket.put(LATE)
        upload.confirm()
        R2Object.objects.filter(key=LATE).update(updated_at=timezone.now() - behind)
        return lost(work)

    monkeypatch.setattr(used_files, "lost", end_first)
    operation = run(requested("proj_1"))
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert outcomes(operation)[LATE] == "protected"
    assert "or has just ended" in reason(operation, LATE)
    check(bucket)
    monkeypatch.undo()
    assert outcomes(late_check(operation)) == {LATE: "deleted"}


@pytest.mark.parametrize(("module", "step"), [(verify, "look"), (used_files, "lost")])
def test_file_of_an_upload_that_stored_it_and_is_still_open_is_not_called_absent(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    fill(bucket, 1)
    Upload(bucket.name, LATE).begin()
    take = getattr(module, step)

    def then_store(work: Work) -> object:
        taken = take(work)
        bucket.put(LATE)
        return taken

    monkeypatch.setattr(module, step, then_store)
    operation = run(requested("proj_1"))
    assert outcomes(operation)[LATE] == "protected"
    check(bucket)


def test_row_of_a_file_uploaded_after_it_was_sent_for_deletion_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    [key] = fill(bucket, 1)
    operation = requested("proj_1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(delete_pipeline, "record_answers", raise_interrupt)
        run(operation)
    ago = timezone.now() - STALE_CALL
    operation.items.update(changed_at=ago)
    R2Object.objects.update(updated_at=ago)
    CleanupOperation.objects.update(lease_until=ago, next_attempt_at=ago)
    upload = Upload(bucket.name, key).begin()
    lost = used_files.lost

    def end_first(work: Work) -> dict[int, str]:
        bucket.put(key, body=b"new")
        upload.confirm()
        return lost(work)

    monkeypatch.setattr(used_files, "lost", end_first)
    run(operation)
    assert R2Object.objects.get().state == R2Object.State.STORED
    assert bucket.keys() == {key}


def raise_interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_settling_goes_on_only_from_a_recent_look(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    operation = requested("proj_1")
    die_while_settling(monkeypatch, operation)
    operation.refresh_from_db()
    old = {"seen_at": (timezone.now() - OLD_AFTER).isoformat()}
    bucket.put(keys[0], keys[4], body=b"somebody else's")
    operation = take_over_lease(operation, cursor=operation.cursor | old)
    assert outcomes(operation) == dict.fromkeys(keys[1:4], "deleted") | {
        keys[0]: "protected",
        keys[4]: "protected",
    }
    assert bucket.keys() == {keys[0], keys[4]}
    check(bucket)


def test_files_that_are_still_there_are_tried_again_some_at_a_time(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    store.rules.append(on(is_delete_batch, lies))
    operation = requested("proj_1")
    die_while_settling(monkeypatch, operation)
    assert list(outcomes(operation).values()).count("planned") == 2
    check_progress(operation)
    store.rules.clear()
    operation = take_over_lease(operation)
    assert outcomes(operation) == dict.fromkeys(keys, "deleted")
    looks = operation.events.filter(step="verify").order_by("pk")
    assert "5 to be tried again" in looks[0].message and len(looks) == 2
    check(bucket)


def test_one_alert_counts_all_files_that_rows_still_name(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    operation = requested("proj_1")
    pks = {key: operation.items.filter(key=key) for key in (keys[0], keys[4])}
    monkeypatch.setattr(
        used_files,
        "lost",
        lambda work: {items.get().pk: "library.Clip 1, field file" for items in pks.values()},
    )
    assert run(operation).deleted == 5
    assert Incident.objects.get().summary.startswith("2 files were deleted")
