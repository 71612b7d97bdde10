"""A verification's look is settled some items at a time, and any worker goes on with the rest."""

from dataclasses import replace
from datetime import datetime, timedelta
from types import ModuleType

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.alerts.models import Alert
from storage_audit.cleanup import delete_pipeline, runner, settle_items, used_files, verify
from storage_audit.cleanup.models import Cleanup, CleanupItemQuerySet
from storage_audit.cleanup.position_basis import MAX_POSITION_AGE
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.models import R2Object
from storage_audit.tracking.upload import Upload
from tests.faults.kinds import confirm_without_deleting
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import FaultyStore
from tests.promises import (
    Status,
    check_promises,
    list_gone,
    read_outcomes,
    read_reason,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    take_over_lease,
)
from tests.real_bucket import Bucket
from tests.times import AHEAD, STALE_CALL

pytestmark = pytest.mark.database

LATE = "projects/proj_1/scenes/s1/media/late.mp4"


@pytest.fixture(autouse=True)
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_items, "ITEMS_PER_TRANSACTION", 2)


def fill(bucket: Bucket, count: int = 5) -> list[str]:
    return [bucket.upload("proj_1", f"{n}.mp4") for n in range(count)]


def die_while_settling(
    monkeypatch: pytest.MonkeyPatch, cleanup: Cleanup, survived: int = 1
) -> None:
    """Run until the worker dies, with so many transactions behind it."""
    original, left = settle_items.forget_gone_rows, [None] * survived

    def forget_rows(cleanup: Cleanup, items: CleanupItemQuerySet) -> None:
        original(cleanup, items)
        if not left:
            raise KeyboardInterrupt
        left.pop()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(settle_items, "forget_gone_rows", forget_rows)
        run_until_idle(cleanup)


def check_progress(cleanup: Cleanup) -> None:
    """The page shows totals that add up, and that are those of the items."""
    cleanup.refresh_from_db()
    shown = {name: tuple(sums) for name, sums in cleanup.progress["totals"].items() if any(sums)}
    assert shown == cleanup.items.by_outcome()
    totals = cleanup.items.totals()
    assert totals["found"] == sum(totals[name] for name in ("deleted", "already_gone", "failed"))


def test_worker_that_dies_while_it_settles_leaves_what_it_has_settled(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    die_while_settling(monkeypatch, cleanup)
    assert list_gone(cleanup) == set(keys[:2])
    # Each row went with the word on its item.
    assert set(R2Object.objects.values_list("key", flat=True)) == set(keys[2:])
    check_progress(cleanup)
    times = [cleanup.position.began_at, cleanup.position.ended_at]
    cleanup = take_over_lease(cleanup)
    assert cleanup.status == Status.CLEAN and cleanup.deleted == 5
    assert not R2Object.objects.exists()
    # It went on from there, and took no second look.
    [look] = cleanup.events.filter(step="verify")
    assert [datetime.fromisoformat(look.data[name]) for name in ("began", "ended")] == times
    assert look.message == "Listed the bucket to the end: 5 gone, 0 to delete again."
    check_promises(bucket)


def test_error_while_its_findings_are_closed_leaves_all_as_it_was(bucket: Bucket) -> None:
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")

    def fail(**kwargs: object) -> None:
        raise RuntimeError

    settle_items.objects_gone.connect(fail)
    try:
        with pytest.raises(RuntimeError):
            run_until_idle(cleanup)
    finally:
        settle_items.objects_gone.disconnect(fail)
    assert not bucket.keys() & set(keys) and not list_gone(cleanup)
    assert set(R2Object.objects.values_list("key", flat=True)) == set(keys)
    cleanup.refresh_from_db()
    assert run_again(cleanup).status == Status.CLEAN and not R2Object.objects.exists()
    check_promises(bucket)


def test_settling_that_takes_longer_than_a_turn_ends(bucket: Bucket, settings: Settings) -> None:
    fill(bucket)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    cleanup, settled = request_cleanup("proj_1"), list[int]()
    while cleanup.status in (Status.PENDING, Status.RUNNING):
        runner.run_turn(cleanup.pk)
        cleanup.refresh_from_db()
        if cleanup.position.ended_at:
            check_progress(cleanup)
            assert cleanup.attempts == cleanup.takeovers == 0
            settled.append(len(list_gone(cleanup)))
    assert cleanup.status == Status.CLEAN
    assert settled == [2, 4, 5]


@pytest.mark.parametrize("behind", [timedelta(0), AHEAD, -AHEAD], ids=["right", "behind", "ahead"])
def test_file_of_an_upload_that_ends_between_listing_and_settling_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, behind: timedelta
) -> None:
    """The clock of the web server may be behind, or ahead."""
    fill(bucket, 1)
    upload = Upload(bucket.name, LATE).begin()
    lost = used_files.find_lost_files

    def end_first(work: Turn) -> dict[int, str]:
        bucket.put(LATE)
        upload.confirm()
        R2Object.objects.filter(key=LATE).update(updated_at=timezone.now() - behind)
        return lost(work)

    monkeypatch.setattr(used_files, "find_lost_files", end_first)
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert read_outcomes(cleanup)[LATE] == "kept"
    assert "or has just ended" in read_reason(cleanup, LATE)
    check_promises(bucket)
    monkeypatch.undo()
    assert read_outcomes(run_follow_up(cleanup)) == {LATE: "deleted"}


@pytest.mark.parametrize(
    ("module", "step"), [(verify, "relist_bucket"), (used_files, "find_lost_files")]
)
def test_file_of_an_upload_that_stored_it_and_is_still_open_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    fill(bucket, 1)
    Upload(bucket.name, LATE).begin()
    take = getattr(module, step)

    def then_store(work: Turn) -> object:
        taken = take(work)
        bucket.put(LATE)
        return taken

    monkeypatch.setattr(module, step, then_store)
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert read_outcomes(cleanup)[LATE] == "kept"
    check_promises(bucket)


def test_row_of_a_file_uploaded_after_it_was_sent_for_deletion_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    [key] = fill(bucket, 1)
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(delete_pipeline, "record_answers", raise_interrupt)
        run_until_idle(cleanup)
    ago = timezone.now() - STALE_CALL
    cleanup.items.update(changed_at=ago)
    R2Object.objects.update(updated_at=ago)
    Cleanup.objects.update(lease_until=ago, next_attempt_at=ago)
    upload = Upload(bucket.name, key).begin()
    lost = used_files.find_lost_files

    def end_first(work: Turn) -> dict[int, str]:
        bucket.put(key, body=b"new")
        upload.confirm()
        return lost(work)

    monkeypatch.setattr(used_files, "find_lost_files", end_first)
    run_until_idle(cleanup)
    assert R2Object.objects.get().state == R2Object.State.STORED
    assert bucket.keys() == {key}


def raise_interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_settling_goes_on_only_from_a_recent_listing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    die_while_settling(monkeypatch, cleanup)
    cleanup.refresh_from_db()
    old = replace(cleanup.position, seen_at=timezone.now() - MAX_POSITION_AGE)
    bucket.put(keys[0], keys[4], body=b"somebody else's")
    cleanup = take_over_lease(cleanup, position=old)
    assert read_outcomes(cleanup) == dict.fromkeys(keys[1:4], "deleted") | {
        keys[0]: "kept",
        keys[4]: "kept",
    }
    assert bucket.keys() == {keys[0], keys[4]}
    check_promises(bucket)


def test_files_that_are_still_there_are_tried_again_some_at_a_time(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    cleanup = request_cleanup("proj_1")
    die_while_settling(monkeypatch, cleanup)
    assert list(read_outcomes(cleanup).values()).count("to_delete") == 2
    check_progress(cleanup)
    store.rules.clear()
    cleanup = take_over_lease(cleanup)
    assert read_outcomes(cleanup) == dict.fromkeys(keys, "deleted")
    looks = cleanup.events.filter(step="verify").order_by("pk")
    assert "5 to delete again" in looks[0].message and len(looks) == 2
    check_promises(bucket)


def test_one_alert_counts_all_files_that_rows_still_name(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    pks = {key: cleanup.items.filter(key=key) for key in (keys[0], keys[4])}
    monkeypatch.setattr(
        used_files,
        "find_lost_files",
        lambda work: {items.get().pk: "library.Clip 1, field file" for items in pks.values()},
    )
    assert run_until_idle(cleanup).deleted == 5
    assert Alert.objects.get().summary.startswith("2 files were deleted")
