"""Nothing is called gone, or deleted, because listings leave it out for a moment."""

from contextlib import suppress

import pytest

from devtools.http_reply import Reply
from storage_audit.bucket.deleters import Sent
from storage_audit.cleanup import delete_batches, delete_pipeline, verify
from storage_audit.cleanup.delete_pipeline import Flight, Planned, Proof
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.models import R2Object
from tests.faults.matching import is_delete_batch, on
from tests.faults.proxy import FaultyStore
from tests.promises import (
    alive,
    check,
    delete,
    hide,
    let_the_pause_end,
    list_gone,
    outcomes,
    requested,
    run,
    take_over_lease,
)
from tests.real_bucket import Bucket


def end_after_the_pause(operation: CleanupOperation, store: FaultyStore) -> CleanupOperation:
    """Nothing is concluded before it, and then the store shows everything again."""
    assert not list_gone(operation)
    store.rules.clear()
    return let_the_pause_end(operation)


@pytest.mark.parametrize("by_row", [False, True], ids=["project", "row"])
def test_tracked_file_that_no_listing_shows_is_looked_for_again(
    bucket: Bucket, store: FaultyStore, unhurried: None, by_row: bool
) -> None:
    """Plan, proof and verification leave it out."""
    key = bucket.upload("proj_1")
    if by_row:
        R2Object.objects.get().delete()
        operation = CleanupOperation.objects.get()
    else:
        operation = requested("proj_1")
    hide(store, key)
    operation = end_after_the_pause(run(operation), store)
    assert outcomes(operation) == {key: "protected"}
    assert R2Object.objects.exists() != by_row
    check(bucket)


def test_file_that_the_store_refused_to_delete_is_looked_for_again(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    key = bucket.upload("proj_1")
    refusal = f"<Error><Key>{key}</Key><Code>ObjectLockedByBucketPolicy</Code></Error>"
    answer = f"<DeleteResult>{refusal}</DeleteResult>".encode()
    store.rules.append(on(is_delete_batch, Reply(200, answer)))
    record_answers = delete_pipeline.record_answers

    def record_and_hide(operation: CleanupOperation, proof: Proof, sent: Sent) -> None:
        record_answers(operation, proof, sent)
        hide(store, key)

    monkeypatch.setattr(delete_pipeline, "record_answers", record_and_hide)
    operation = end_after_the_pause(delete("proj_1"), store)
    assert outcomes(operation) == {key: "failed"}
    check(bucket)


def test_file_whose_worker_died_before_its_call_is_looked_for_again(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    key = bucket.upload("proj_1")
    operation = requested("proj_1")

    def die(flight: Flight, proof: Proof, *, until: float) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(Flight, "depart", die)
        run(operation)
    hide(store, key)
    assert not store.asked(is_delete_batch)
    operation = end_after_the_pause(take_over_lease(operation), store)
    assert outcomes(operation) == {key: "deleted"} and store.asked(is_delete_batch)
    check(bucket)


def test_file_that_was_in_no_call_is_not_called_deleted(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    """The looks contradict each other until somebody else deletes it."""
    key = bucket.upload("proj_1")
    prove, looks = delete_batches.prove, list[int]()

    def contradict(work: Work, batch: list[Planned]) -> Proof:
        looks.append(len(looks))
        hide(store, key)
        proof = prove(work, batch)
        store.rules.clear()
        if len(looks) == 2:
            bucket.r2.remove(key, bucket.name)
        return proof

    monkeypatch.setattr(delete_batches, "prove", contradict)
    operation = let_the_pause_end(delete("proj_1"))
    assert len(looks) == 2 and not store.asked(is_delete_batch)
    assert outcomes(operation) == {key: "already_absent"}


def test_key_that_no_call_can_name_is_not_called_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else deletes it once the batch is over."""
    alive("proj_1")
    key = "projects/proj_1/scenes/s1/media/../a\x01.mp4"
    bucket.put(key)
    original = verify.verify

    def remove_first(work: Work) -> None:
        bucket.r2.remove(key, bucket.name)
        original(work)

    monkeypatch.setattr(verify, "verify", remove_first)
    operation = delete("proj_1")
    item = operation.items.get()
    assert (item.outcome, item.tries, item.calls) == ("already_absent", 1, 0)
    batch = operation.events.filter(step="delete").latest("at").data
    assert (batch["sent"], batch["refused"], batch["unanswered"]) == (0, 1, 0)
