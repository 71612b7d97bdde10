"""A wrong, empty or cloned bucket, or a copy of the database, deletes and believes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.bucket import frame, s3
from storage_audit.bucket.deleters import Sent
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.cleanup import delete_batches, delete_pipeline, requests
from storage_audit.cleanup.delete_pipeline import Planned
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.models import Installation, Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER, CannotConclude, Traits
from tests.bucket.store_replies import list_uploads
from tests.database import copy_database
from tests.faults.kinds import changed
from tests.faults.matching import is_abort, is_listing, is_uploads_listing, on
from tests.faults.pages import empty
from tests.faults.proxy import FaultyStore, Request
from tests.promises import (
    HIERARCHICAL,
    Status,
    again,
    alive,
    between_batch_and_verification,
    check,
    delete,
    late_check,
    outcomes,
    requested,
    run,
    track,
)
from tests.real_bucket import BUCKETS, Bucket

ECHOES = tuple(
    f"ListBucketResult.{name}"
    for name in (
        "ContinuationToken",
        "EncodingType",
        "KeyCount",
        "MaxKeys",
        "Name",
        "Prefix",
        "StartAfter",
    )
)


@pytest.fixture
def tracked(bucket: Bucket) -> Bucket:
    """One project with a tracked object and one without a row."""
    alive("proj_1")
    bucket.put(HIERARCHICAL, "proj_1_s1_media.mp4")
    track(bucket, HIERARCHICAL, "proj_1")
    return bucket


def blocked(bucket: Bucket, operation: CleanupOperation) -> CleanupOperation:
    """Stopped with nothing deleted, called gone or forgotten."""
    assert operation.status == Status.BLOCKED
    assert operation.error
    assert not {"deleted", "already_absent"} & set(outcomes(operation).values())
    assert R2Object.objects.count() == 1
    check(bucket)
    return operation


def healed(bucket: Bucket, operation: CleanupOperation) -> None:
    """Once a person has released it, it ends as if nothing had been."""
    operation.release("me")
    assert run(operation).status == Status.CLEAN
    assert outcomes(operation) == {HIERARCHICAL: "deleted", "proj_1_s1_media.mp4": "deleted"}
    assert not bucket.keys()
    assert not R2Object.objects.exists()
    check(bucket)


def marker(bucket: Bucket) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bucket.r2.read(MARKER, bucket.name))
    return content


def write_marker(of: Bucket, /, **changes: object) -> None:
    content = {**marker(of), **changes}
    of.r2.plant(MARKER, json.dumps(content).encode(), of.name)


def test_database_that_claimed_no_bucket_deletes_nothing(tracked: Bucket) -> None:
    Installation.objects.all().delete()
    operation = blocked(tracked, delete("proj_1"))
    assert "claim_bucket" in operation.error
    assert len(tracked.keys()) == 2
    bucket_marker.claim(tracked.name, take_over=True)
    healed(tracked, operation)


def test_empty_bucket_of_the_same_name_is_not_called_clean(tracked: Bucket) -> None:
    tracked.wipe()
    operation = blocked(tracked, delete("proj_1"))
    assert not operation.items.exists()


def test_bucket_that_was_never_claimed_is_not_touched(tracked: Bucket, local_r2: LocalR2) -> None:
    other = Bucket(local_r2, BUCKETS[1])
    other.wipe()
    other.put(HIERARCHICAL)
    track(other, HIERARCHICAL, "proj_1")
    requested("proj_1")
    operation = run(CleanupOperation.objects.get(bucket=other.name))
    assert operation.status == Status.BLOCKED
    assert other.keys() == {HIERARCHICAL}


@pytest.mark.parametrize(
    "changes",
    [
        {"installation": "0f0e0d0c-0000-4000-8000-000000000000"},
        {"fingerprint": "another"},
        {"bucket": "copied-from-here"},
        {"store": "another.example"},
    ],
    ids=lambda changes: "another " + next(iter(changes)),
)
def test_marker_that_differs_blocks(tracked: Bucket, changes: dict[str, str]) -> None:
    right = marker(tracked)
    write_marker(tracked, **changes)
    operation = blocked(tracked, delete("proj_1"))
    assert "--take-over" in operation.error
    assert len(tracked.keys()) == 2
    if "installation" in changes:
        with pytest.raises(CannotConclude):
            bucket_marker.claim(tracked.name)
    tracked.set_marker(**right)
    healed(tracked, operation)


def test_copied_bucket_is_refused_until_it_is_claimed(tracked: Bucket) -> None:
    """A copy has the same marker, which was written at another time."""
    tracked.put(MARKER, body=tracked.r2.read(MARKER, tracked.name))
    operation = blocked(tracked, delete("proj_1"))
    assert "another marker" in operation.error and "claim_bucket" in operation.error
    assert len(tracked.keys()) == 2
    bucket_marker.claim(tracked.name)
    healed(tracked, operation)


def test_bucket_claimed_before_its_marker_was_recorded_has_to_be_claimed_again(
    tracked: Bucket,
) -> None:
    Installation.objects.update(markers={})
    operation = blocked(tracked, delete("proj_1"))
    assert "before we recorded" in operation.error and "claim_bucket" in operation.error
    bucket_marker.claim(tracked.name)
    healed(tracked, operation)


def test_cleanup_waits_while_the_bucket_is_being_claimed(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, waiting = s3.write, list[CleanupOperation]()
    Project.objects.create(pk="proj_2")

    def write_slowly(bucket: str, key: str, body: bytes) -> None:
        write(bucket, key, body)
        if key == MARKER:
            waiting.append(delete("proj_1"))

    monkeypatch.setattr(s3, "write", write_slowly)
    Installation.objects.update(markers={})
    bucket_marker.claim(tracked.name)
    [operation] = waiting
    assert operation.status == Status.INCOMPLETE
    assert "is being claimed" in operation.error
    assert again(operation).status == Status.CLEAN


def test_sighting_names_the_marker_of_its_bucket(bucket: Bucket, local_r2: LocalR2) -> None:
    seen = bucket_marker.see_marker(bucket.name)
    other = Bucket(local_r2, BUCKETS[1])
    other.wipe()
    bucket_marker.claim(other.name)
    assert bucket_marker.see_marker(bucket.name) == seen != bucket_marker.see_marker(other.name)
    bucket_marker.claim(bucket.name)
    assert bucket_marker.see_marker(bucket.name) == seen
    bucket.set_marker(folds_unicode=True)
    assert bucket_marker.see_marker(bucket.name) != seen


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_marker_that_is_garbled_blocks(tracked: Bucket, content: bytes) -> None:
    tracked.r2.plant(MARKER, content, tracked.name)
    blocked(tracked, delete("proj_1"))
    with pytest.raises(CannotConclude):
        bucket_marker.claim(tracked.name)


def remove_marker(bucket: Bucket) -> Callable[[], None]:
    return lambda: bucket.r2.remove(MARKER, bucket.name)


def test_marker_removed_between_plan_and_batch_blocks(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = delete_batches.next_batch

    def next_batch(work: Work) -> list[Planned]:
        remove_marker(tracked)()
        return original(work)

    with monkeypatch.context() as patch:
        patch.setattr(delete_batches, "next_batch", next_batch)
        operation = blocked(tracked, delete("proj_1"))
    assert len(tracked.keys()) == 2
    bucket_marker.claim(tracked.name)
    healed(tracked, operation)


def test_marker_removed_between_batch_and_verification_blocks(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    between_batch_and_verification(monkeypatch, remove_marker(tracked))
    operation = blocked(tracked, delete("proj_1"))
    assert set(outcomes(operation).values()) == {"planned"}
    bucket_marker.claim(tracked.name)
    healed(tracked, operation)


def test_what_was_seen_in_the_wrong_bucket_is_not_believed_in_the_right_one(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong bucket, which is empty, takes the place of the right one during the listing."""
    keys = tracked.keys()

    def send_nothing(*args: object, **kwargs: object) -> Sent:
        tracked.wipe()
        return Sent({}, [], [], [])

    with monkeypatch.context() as patch:
        patch.setattr(delete_pipeline, "send", send_nothing)
        patch.setattr(delete_batches, "next_batch", once(delete_batches.next_batch))
        operation = blocked(tracked, delete("proj_1"))
    tracked.put(*keys)
    bucket_marker.claim(tracked.name)
    operation.release("me")
    run(operation)
    assert not {"deleted", "already_absent"} & set(outcomes(operation).values())
    check(tracked)


def once(
    original: Callable[[Work], list[Planned]],
) -> Callable[[Work], list[Planned]]:
    """One batch, and no more."""
    count = 0

    def next_batch(work: Work) -> list[Planned]:
        nonlocal count
        count += 1
        return original(work) if count == 1 else []

    return next_batch


def test_plan_made_in_the_wrong_bucket_is_made_again(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tracked.keys()
    checked = bucket_marker.identify
    with monkeypatch.context() as patch:

        def wrong_after_this(bucket: str) -> Traits:
            traits = checked(bucket)
            tracked.wipe()
            return traits

        patch.setattr(bucket_marker, "identify", wrong_after_this)
        operation = blocked(tracked, delete("proj_1"))
    tracked.put(*keys)
    bucket_marker.claim(tracked.name)
    healed(tracked, operation)


def test_copy_of_the_database_is_blocked_and_after_a_take_over_the_original_is(
    tracked: Bucket, tmp_path: Path
) -> None:
    original = bucket_marker.fingerprint()
    with copy_database(tmp_path):
        assert bucket_marker.fingerprint() != original
        operation = blocked(tracked, delete("proj_1"))
        assert "copy" in operation.error
        assert len(tracked.keys()) == 2
        with pytest.raises(CannotConclude):
            bucket_marker.claim(tracked.name)
        before = Installation.objects.get().pk
        bucket_marker.claim(tracked.name, take_over=True)
        assert Installation.objects.get().pk != before
        healed(tracked, operation)
    blocked(tracked, delete("proj_1"))


def test_late_check_in_a_lost_bucket_is_blocked(tracked: Bucket) -> None:
    operation = delete("proj_1")
    tracked.wipe()
    assert late_check(operation).status == Status.BLOCKED


def test_verification_that_could_not_see_the_bucket_says_nothing(tracked: Bucket) -> None:
    (operation,) = requests.verify_project("proj_1")
    tracked.r2.remove(MARKER, tracked.name)
    blocked(tracked, run(operation))


def test_claim_learns_the_stores_traits_and_leaves_nothing_behind(bucket: Bucket) -> None:
    traits = Traits(folds_unicode=False, lists_in_key_order=True, echoes=ECHOES)
    assert bucket_marker.claim(bucket.name) == traits
    assert bucket_marker.check(bucket.name) == traits
    assert bucket.keys() == set()
    bucket.set_marker(folds_unicode=True, lists_in_key_order=False, echoes=ECHOES[:2])
    traits = Traits(folds_unicode=True, lists_in_key_order=False, echoes=ECHOES[:2])
    assert bucket_marker.check(bucket.name) == traits
    assert frame.expected(bucket.name) == set(ECHOES[:2])
    bucket.set_marker(echoes="ListBucketResult.Name")
    assert bucket_marker.check(bucket.name).echoes == ()
    assert frame.expected(bucket.name) == set()


def test_bucket_of_unknown_traits_is_taken_to_fold(bucket: Bucket) -> None:
    bucket.set_marker(folds_unicode=None, lists_in_key_order=None, echoes=None)
    assert bucket_marker.check(bucket.name) == Traits(folds_unicode=True)


def test_claiming_again_changes_nothing(bucket: Bucket) -> None:
    before = marker(bucket)
    bucket_marker.claim(bucket.name)
    assert marker(bucket) == before
    assert Installation.objects.count() == 1


def test_each_batch_is_preceded_by_a_look_at_the_marker(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    bucket.put(*(f"projects/proj_1/scenes/s1/media/{n}" for n in range(3)))
    looks: list[str] = []
    original = Work.look_again

    def look_again(work: Work) -> None:
        looks.append(work.operation.step)
        original(work)

    monkeypatch.setattr(Work, "look_again", look_again)
    delete("proj_1")
    assert [looks.count(step) for step in ("plan", "delete", "verify")] == [1, 1, 1]


def test_no_upload_is_aborted_in_a_bucket_whose_marker_is_gone_since_the_plan(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    own = "projects/proj_1/scenes/s1/media/a"
    store.rules += [list_uploads(own), on(is_abort, Reply(204))]
    abort_uploads = delete_batches.abort_uploads

    def abort_later(work: Work) -> bool:
        bucket.r2.remove(MARKER, bucket.name)
        return abort_uploads(work)

    monkeypatch.setattr(delete_batches, "abort_uploads", abort_later)
    operation = delete("proj_1")
    assert operation.status == CleanupOperation.Status.BLOCKED
    assert store.asked(is_uploads_listing) and not store.asked(is_abort)


def test_store_whose_listings_lack_what_was_just_written_is_not_claimed(
    bucket: Bucket, store: FaultyStore
) -> None:
    """Such as one that lists nothing when a listing begins before the prefix."""

    def has_probes(request: Request) -> bool:
        return is_listing(request) and "/probe-" in request.query["prefix"]

    store.rules.append(on(has_probes, changed(empty)))
    with pytest.raises(InvalidResponse, match="do not show what was just written"):
        bucket_marker.claim(bucket.name)


def test_traits_of_the_marker_before_are_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bucket_marker.see_marker

    def claim_first(name: str) -> str:
        bucket.set_marker(folds_unicode=True)
        return original(name)

    monkeypatch.setattr(bucket_marker, "see_marker", claim_first)
    with pytest.raises(InvalidResponse, match="claimed again"):
        bucket_marker.check(bucket.name)
