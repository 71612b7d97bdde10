"""A wrong, empty or cloned bucket, or a copy of the database, deletes and believes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.bucket import answer_schema, s3
from storage_audit.bucket.concurrent_requests import Job
from storage_audit.bucket.deleters import SendResult
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.cleanup import (
    delete_batches,
    delete_pipeline,
    project_uploads,
    requests,
    verify,
)
from storage_audit.cleanup.delete_pipeline import PlannedItem
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.models import DatabaseIdentity, Project, R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.bucket_marker import MARKER_KEY, CannotConclude, StoreTraits
from tests.bucket.store_replies import answer_uploads
from tests.database import copy_database
from tests.faults.kinds import change_reply
from tests.faults.matching import is_abort, is_listing, is_uploads_listing, rule_for
from tests.faults.pages import empty_page
from tests.faults.proxy import FaultyStore, Request
from tests.promises import (
    HIERARCHICAL_KEY,
    Status,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
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
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY, "proj_1_s1_media.mp4")
    track_key(bucket, HIERARCHICAL_KEY, "proj_1")
    return bucket


def blocked(bucket: Bucket, cleanup: Cleanup) -> Cleanup:
    """Stopped with nothing deleted, called gone or forgotten."""
    assert cleanup.status == Status.BLOCKED
    assert cleanup.message
    assert not {"deleted", "already_gone"} & set(read_outcomes(cleanup).values())
    assert R2Object.objects.count() == 1
    check_promises(bucket)
    return cleanup


def healed(bucket: Bucket, cleanup: Cleanup) -> None:
    """Once a person has approved it, it ends as if nothing had been."""
    cleanup.approve("me")
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert read_outcomes(cleanup) == {HIERARCHICAL_KEY: "deleted", "proj_1_s1_media.mp4": "deleted"}
    assert not bucket.keys()
    assert not R2Object.objects.exists()
    check_promises(bucket)


def marker(bucket: Bucket) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bucket.r2.read(MARKER_KEY, bucket.name))
    return content


def write_marker(of: Bucket, /, **changes: object) -> None:
    content = {**marker(of), **changes}
    of.r2.put(MARKER_KEY, json.dumps(content).encode(), of.name)


def test_database_that_connected_no_bucket_deletes_nothing(tracked: Bucket) -> None:
    DatabaseIdentity.objects.all().delete()
    cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert "connect_bucket" in cleanup.message
    assert len(tracked.keys()) == 2
    bucket_connection.connect_bucket(tracked.name, take_over=True)
    healed(tracked, cleanup)


def test_empty_bucket_of_the_same_name_is_not_called_clean(tracked: Bucket) -> None:
    tracked.wipe()
    cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert not cleanup.items.exists()


def test_bucket_that_was_never_connected_is_not_touched(tracked: Bucket, local_r2: LocalR2) -> None:
    other = Bucket(local_r2, BUCKETS[1])
    other.wipe()
    other.put(HIERARCHICAL_KEY)
    track_key(other, HIERARCHICAL_KEY, "proj_1")
    request_cleanup("proj_1")
    cleanup = run_until_idle(Cleanup.objects.get(bucket=other.name))
    assert cleanup.status == Status.BLOCKED
    assert other.keys() == {HIERARCHICAL_KEY}


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
    cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert "--take-over" in cleanup.message
    assert len(tracked.keys()) == 2
    if "installation" in changes:
        with pytest.raises(CannotConclude):
            bucket_connection.connect_bucket(tracked.name)
    tracked.set_marker(**right)
    healed(tracked, cleanup)


def test_copied_bucket_is_refused_until_it_is_connected(tracked: Bucket) -> None:
    """A copy has the same marker, which was written at another time."""
    tracked.put(MARKER_KEY, body=tracked.r2.read(MARKER_KEY, tracked.name))
    cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert "its marker is not the one" in cleanup.message and "connect_bucket" in cleanup.message
    assert len(tracked.keys()) == 2
    bucket_connection.connect_bucket(tracked.name)
    healed(tracked, cleanup)


def test_bucket_connected_before_its_marker_was_recorded_must_be_connected_again(
    tracked: Bucket,
) -> None:
    DatabaseIdentity.objects.update(markers={})
    cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert "by an older version" in cleanup.message and "connect_bucket" in cleanup.message
    bucket_connection.connect_bucket(tracked.name)
    healed(tracked, cleanup)


def test_cleanup_waits_while_the_bucket_is_being_connected(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, waiting = s3.write_object, list[Cleanup]()
    Project.objects.create(pk="proj_2")

    def write_slowly(bucket: str, key: str, body: bytes) -> None:
        write(bucket, key, body)
        if key == MARKER_KEY:
            waiting.append(clean_up_project("proj_1"))

    monkeypatch.setattr(s3, "write_object", write_slowly)
    DatabaseIdentity.objects.update(markers={})
    bucket_connection.connect_bucket(tracked.name)
    [cleanup] = waiting
    assert cleanup.status == Status.RETRYING
    assert "is being connected" in cleanup.message
    assert run_again(cleanup).status == Status.CLEAN


def test_marker_check_names_the_marker_of_its_bucket(bucket: Bucket, local_r2: LocalR2) -> None:
    seen = bucket_marker.require_marker(bucket.name)
    other = Bucket(local_r2, BUCKETS[1])
    other.wipe()
    bucket_connection.connect_bucket(other.name)
    assert (
        bucket_marker.require_marker(bucket.name)
        == seen
        != bucket_marker.require_marker(other.name)
    )
    bucket_connection.connect_bucket(bucket.name)
    assert bucket_marker.require_marker(bucket.name) == seen
    bucket.set_marker(folds_unicode=True)
    assert bucket_marker.require_marker(bucket.name) != seen


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_marker_that_is_garbled_blocks(tracked: Bucket, content: bytes) -> None:
    tracked.r2.put(MARKER_KEY, content, tracked.name)
    blocked(tracked, clean_up_project("proj_1"))
    with pytest.raises(CannotConclude):
        bucket_connection.connect_bucket(tracked.name)


def remove_marker(bucket: Bucket) -> Callable[[], None]:
    return lambda: bucket.r2.remove(MARKER_KEY, bucket.name)


def test_marker_removed_between_plan_and_batch_blocks(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = delete_batches.next_batch

    def next_batch(work: Turn) -> list[PlannedItem]:
        remove_marker(tracked)()
        return original(work)

    with monkeypatch.context() as patch:
        patch.setattr(delete_batches, "next_batch", next_batch)
        cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert len(tracked.keys()) == 2
    bucket_connection.connect_bucket(tracked.name)
    healed(tracked, cleanup)


def test_marker_removed_between_batch_and_verification_blocks(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    relist_bucket = verify.relist_bucket

    def relist_without_marker(work: Turn) -> None:
        tracked.r2.remove(MARKER_KEY, tracked.name)
        relist_bucket(work)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "relist_bucket", relist_without_marker)
        cleanup = blocked(tracked, clean_up_project("proj_1"))
    assert set(read_outcomes(cleanup).values()) == {"to_delete"}
    bucket_connection.connect_bucket(tracked.name)
    healed(tracked, cleanup)


def test_what_was_seen_in_the_wrong_bucket_is_not_believed_in_the_right_one(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong bucket, which is empty, takes the place of the right one during the listing."""
    keys = tracked.keys()

    def send_nothing(*args: object, **kwargs: object) -> SendResult:
        tracked.wipe()
        return SendResult({}, [], [], [])

    with monkeypatch.context() as patch:
        patch.setattr(delete_pipeline, "send_batch", send_nothing)
        patch.setattr(delete_batches, "next_batch", once(delete_batches.next_batch))
        cleanup = blocked(tracked, clean_up_project("proj_1"))
    tracked.put(*keys)
    bucket_connection.connect_bucket(tracked.name)
    cleanup.approve("me")
    run_until_idle(cleanup)
    assert not {"deleted", "already_gone"} & set(read_outcomes(cleanup).values())
    check_promises(tracked)


def once(
    original: Callable[[Turn], list[PlannedItem]],
) -> Callable[[Turn], list[PlannedItem]]:
    """One batch, and no more."""
    count = 0

    def next_batch(work: Turn) -> list[PlannedItem]:
        nonlocal count
        count += 1
        return original(work) if count == 1 else []

    return next_batch


def test_plan_made_in_the_wrong_bucket_is_made_again(
    tracked: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tracked.keys()
    checked = bucket_marker.check_bucket
    with monkeypatch.context() as patch:

        def wrong_after_this(bucket: str, *beside: Job[Any]) -> StoreTraits:
            traits = checked(bucket, *beside)
            tracked.wipe()
            return traits

        patch.setattr(bucket_marker, "check_bucket", wrong_after_this)
        cleanup = blocked(tracked, clean_up_project("proj_1"))
    tracked.put(*keys)
    bucket_connection.connect_bucket(tracked.name)
    healed(tracked, cleanup)


def test_copy_of_the_database_is_blocked_and_after_a_take_over_the_original_is(
    tracked: Bucket, tmp_path: Path
) -> None:
    original = bucket_marker.database_fingerprint()
    with copy_database(tmp_path):
        assert bucket_marker.database_fingerprint() != original
        cleanup = blocked(tracked, clean_up_project("proj_1"))
        assert "copy" in cleanup.message
        assert len(tracked.keys()) == 2
        with pytest.raises(CannotConclude):
            bucket_connection.connect_bucket(tracked.name)
        before = DatabaseIdentity.objects.get().pk
        bucket_connection.connect_bucket(tracked.name, take_over=True)
        assert DatabaseIdentity.objects.get().pk != before
        healed(tracked, cleanup)
    blocked(tracked, clean_up_project("proj_1"))


def test_follow_up_in_a_lost_bucket_is_blocked(tracked: Bucket) -> None:
    cleanup = clean_up_project("proj_1")
    tracked.wipe()
    assert run_follow_up(cleanup).status == Status.BLOCKED


def test_verification_that_could_not_see_the_bucket_says_nothing(tracked: Bucket) -> None:
    (cleanup,) = requests.request_verification("proj_1")
    tracked.r2.remove(MARKER_KEY, tracked.name)
    blocked(tracked, run_until_idle(cleanup))


def test_connecting_learns_the_stores_traits_and_leaves_no_objects(bucket: Bucket) -> None:
    traits = StoreTraits(folds_unicode=False, lists_in_key_order=True, echoes=ECHOES)
    assert bucket_connection.connect_bucket(bucket.name) == traits
    assert bucket_marker.check_bucket(bucket.name) == traits
    assert bucket.keys() == set()
    bucket.set_marker(folds_unicode=True, lists_in_key_order=False, echoes=ECHOES[:2])
    traits = StoreTraits(folds_unicode=True, lists_in_key_order=False, echoes=ECHOES[:2])
    assert bucket_marker.check_bucket(bucket.name) == traits
    assert answer_schema.expected_fields(bucket.name) == set(ECHOES[:2])
    bucket.set_marker(echoes="ListBucketResult.Name")
    assert bucket_marker.check_bucket(bucket.name).echoes == ()
    assert answer_schema.expected_fields(bucket.name) == set()


def test_bucket_of_unknown_traits_is_taken_to_fold(bucket: Bucket) -> None:
    bucket.set_marker(folds_unicode=None, lists_in_key_order=None, echoes=None)
    assert bucket_marker.check_bucket(bucket.name) == StoreTraits(folds_unicode=True)


def test_connecting_again_changes_nothing(bucket: Bucket) -> None:
    before = marker(bucket)
    bucket_connection.connect_bucket(bucket.name)
    assert marker(bucket) == before
    assert DatabaseIdentity.objects.count() == 1


def test_each_batch_is_preceded_by_a_check_of_the_bucket(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*(f"projects/proj_1/scenes/s1/media/{n}" for n in range(3)))
    looks: list[str] = []
    original = Turn.recheck_bucket

    def look_again(work: Turn) -> None:
        looks.append(work.cleanup.step)
        original(work)

    monkeypatch.setattr(Turn, "recheck_bucket", look_again)
    clean_up_project("proj_1")
    assert [looks.count(step) for step in ("plan", "delete", "verify")] == [1, 1, 1]


def test_no_upload_is_aborted_in_a_bucket_whose_marker_is_gone_since_the_plan(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    own = "projects/proj_1/scenes/s1/media/a"
    store.rules += [answer_uploads(own), rule_for(is_abort, Reply(204))]
    abort_uploads = project_uploads.abort_uploads

    def abort_later(work: Turn) -> bool:
        bucket.r2.remove(MARKER_KEY, bucket.name)
        return abort_uploads(work)

    monkeypatch.setattr(delete_batches, "abort_uploads", abort_later)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Cleanup.Status.BLOCKED
    assert store.find_requests(is_uploads_listing) and not store.find_requests(is_abort)


def test_store_whose_listings_lack_new_objects_is_not_connected(
    bucket: Bucket, store: FaultyStore
) -> None:
    """Such as one that lists nothing when a listing begins before the prefix."""

    def has_probes(request: Request) -> bool:
        return is_listing(request) and "/probe-" in request.query["prefix"]

    store.rules.append(rule_for(has_probes, change_reply(empty_page)))
    with pytest.raises(InvalidResponse, match="does not list what was just written"):
        bucket_connection.connect_bucket(bucket.name)


def test_traits_of_the_marker_before_are_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bucket_marker.require_same_database

    def claim_first() -> DatabaseIdentity:
        bucket.set_marker(folds_unicode=True)
        return original()

    monkeypatch.setattr(bucket_marker, "require_same_database", claim_first)
    with pytest.raises(InvalidResponse, match="connected again"):
        bucket_marker.check_bucket(bucket.name)
