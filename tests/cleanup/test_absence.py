"""Nothing is called gone, or deleted, because listings leave it out for a moment."""

from contextlib import suppress

import pytest

from devtools.http_reply import Reply
from storage_audit.bucket.deleters import SendResult
from storage_audit.cleanup import delete_batches, delete_pipeline, verify
from storage_audit.cleanup.delete_pipeline import DeletePipeline, PlannedItem, RecheckedBatch
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.models import R2Object
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import FaultyStore
from tests.promises import (
    check_promises,
    clean_up_project,
    create_projects,
    end_pause,
    hide_key,
    list_gone,
    read_outcomes,
    request_cleanup,
    run_until_idle,
    take_over_lease,
)
from tests.real_bucket import Bucket


def end_after_the_pause(cleanup: Cleanup, store: FaultyStore) -> Cleanup:
    """Nothing is concluded before it, and then the store shows everything again."""
    assert not list_gone(cleanup)
    store.rules.clear()
    return end_pause(cleanup)


@pytest.mark.parametrize("by_row", [False, True], ids=["project", "row"])
def test_tracked_file_that_no_listing_shows_is_checked_again(
    bucket: Bucket, store: FaultyStore, with_pauses: None, by_row: bool
) -> None:
    """Plan, proof and verification leave it out."""
    key = bucket.upload("proj_1")
    if by_row:
        R2Object.objects.get().delete()
        cleanup = Cleanup.objects.get()
    else:
        cleanup = request_cleanup("proj_1")
    hide_key(store, key)
    cleanup = end_after_the_pause(run_until_idle(cleanup), store)
    assert read_outcomes(cleanup) == {key: "kept"}
    assert R2Object.objects.exists() != by_row
    check_promises(bucket)


def test_file_that_the_store_refused_to_delete_is_checked_again(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, with_pauses: None
) -> None:
    key = bucket.upload("proj_1")
    refusal = f"<Error><Key>{key}</Key><Code>ObjectLockedByBucketPolicy</Code></Error>"
    answer = f"<DeleteResult>{refusal}</DeleteResult>".encode()
    store.rules.append(rule_for(is_delete_batch, Reply(200, answer)))
    record_answers = delete_pipeline.record_answers

    def record_and_hide(cleanup: Cleanup, proof: RecheckedBatch, sent: SendResult) -> None:
        record_answers(cleanup, proof, sent)
        hide_key(store, key)

    monkeypatch.setattr(delete_pipeline, "record_answers", record_and_hide)
    cleanup = end_after_the_pause(clean_up_project("proj_1"), store)
    assert read_outcomes(cleanup) == {key: "failed"}
    check_promises(bucket)


def test_file_whose_worker_died_before_its_call_is_checked_again(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, with_pauses: None
) -> None:
    key = bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")

    def die(flight: DeletePipeline, proof: RecheckedBatch, *, until: float) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(DeletePipeline, "submit", die)
        run_until_idle(cleanup)
    hide_key(store, key)
    assert not store.find_requests(is_delete_batch)
    cleanup = end_after_the_pause(take_over_lease(cleanup), store)
    assert read_outcomes(cleanup) == {key: "deleted"} and store.find_requests(is_delete_batch)
    check_promises(bucket)


def test_file_that_was_in_no_call_is_not_called_deleted(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, with_pauses: None
) -> None:
    """The looks contradict each other until somebody else deletes it."""
    key = bucket.upload("proj_1")
    prove, looks = delete_batches.recheck_batch, list[int]()

    def contradict(work: Turn, batch: list[PlannedItem]) -> RecheckedBatch:
        looks.append(len(looks))
        hide_key(store, key)
        proof = prove(work, batch)
        store.rules.clear()
        if len(looks) == 2:
            bucket.r2.remove(key, bucket.name)
        return proof

    monkeypatch.setattr(delete_batches, "recheck_batch", contradict)
    cleanup = end_pause(clean_up_project("proj_1"))
    assert len(looks) == 2 and not store.find_requests(is_delete_batch)
    assert read_outcomes(cleanup) == {key: "already_gone"}


def test_key_that_no_call_can_name_is_not_called_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else deletes it once the batch is over."""
    create_projects("proj_1")
    key = "projects/proj_1/scenes/s1/media/../a\x01.mp4"
    bucket.put(key)
    original = verify.verify_items

    def remove_first(work: Turn) -> None:
        bucket.r2.remove(key, bucket.name)
        original(work)

    monkeypatch.setattr(verify, "verify_items", remove_first)
    cleanup = clean_up_project("proj_1")
    item = cleanup.items.get()
    assert (item.outcome, item.attempts, item.calls) == ("already_gone", 1, 0)
    batch = cleanup.events.filter(step="delete").latest("at").data
    assert (batch["sent"], batch["refused"], batch["unanswered"]) == (0, 1, 0)
