"""The store on a bad day: nothing is called deleted that a listing still shows."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal
from unicodedata import normalize
from urllib.parse import unquote

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connection
from django.db.models import F
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit.bucket import multipart, s3
from storage_audit.bucket.multipart import Upload
from storage_audit.cleanup import delete_batches, delete_pipeline, open_decisions, requests, runner
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.turn import TurnOver, Work
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import Traits
from storage_audit.scan.models import BucketScan
from tests.bucket.store_replies import UPLOADS, list_uploads
from tests.faults.kinds import HTML, changed, does_it_and_breaks, each_key_fails, error, lies
from tests.faults.matching import (
    Matches,
    is_abort,
    is_anything,
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_listing_under,
    is_marker,
    is_uploads_listing,
    keys_sent,
    on,
    then,
)
from tests.faults.pages import (
    backwards,
    contents,
    of_another_bucket,
    of_another_prefix,
    with_contents,
    with_token,
    without_token,
)
from tests.faults.proxy import RESET, FaultyStore, Forward, Request, Rule
from tests.promises import (
    Status,
    again,
    alive,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    late_check,
    outcomes,
    reason,
    requested,
    run,
    track,
)
from tests.real_bucket import Bucket

Form = Literal["NFC", "NFD"]
PREFIX = "projects/proj_1/scenes/"
MINUTE = timedelta(minutes=1)


LONG = timedelta(hours=2)


def fill(bucket: Bucket, count: int = 3, project_id: str = "proj_1") -> list[str]:
    keys = [f"projects/{project_id}/scenes/s1/media/{n}.mp4" for n in range(count)]
    bucket.put(*keys)
    return keys


def survives(operation: CleanupOperation, bucket: Bucket, store: FaultyStore) -> CleanupOperation:
    """The fault left an honest operation, which ends clean once the fault is gone."""
    assert operation.status == Status.INCOMPLETE
    assert operation.error
    check(bucket)
    store.rules.clear()
    healed = again(operation)
    assert healed.status == Status.CLEAN
    assert not bucket.keys()
    assert set(outcomes(healed).values()) == {"deleted"}
    check(bucket)
    return healed


DELETE_FAULTS: dict[str, Reply | Rule] = {
    "an error for each key": each_key_fails,
    "an empty body": Reply(200),
    "HTML": HTML,
    "truncated XML": Reply(200, b"<DeleteResult><Deleted><Key>projects/pr"),
    "an empty result": Reply(200, b"<DeleteResult></DeleteResult>"),
    "`Deleted` for what it keeps": lies,
    "an error inside a 200": Reply(200, error("InternalError")),
    "503": Reply(503, error("ServiceUnavailable")),
    "500": Reply(500, error("InternalError")),
    "524 with HTML": Reply(524, b"<html>"),
    "403": Reply(403, error("AccessDenied")),
    "401": Reply(401, error("Unauthorized")),
    "404 NoSuchBucket": Reply(404, error("NoSuchBucket")),
    "404 with nothing": Reply(404),
    "400 MalformedXML": Reply(400, error("MalformedXML")),
    "204": Reply(204),
    "a broken connection": RESET,
}


@pytest.mark.parametrize("fault", DELETE_FAULTS.values(), ids=DELETE_FAULTS.keys())
def test_delete_call_that_deletes_nothing_is_never_called_a_deletion(
    bucket: Bucket, store: FaultyStore, fault: Reply | Rule
) -> None:
    alive("proj_1")
    keys = fill(bucket)
    store.rules.append(on(is_delete_batch, fault))
    operation = delete("proj_1")
    assert bucket.keys() == set(keys)
    assert operation.failed == len(keys)
    assert operation.deleted == operation.already_absent == 0
    survives(operation, bucket, store)


def test_connection_that_breaks_after_the_store_obeyed_counts_as_deleted(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_delete_batch, does_it_and_breaks))
    operation = delete("proj_1")
    assert not bucket.keys()
    assert operation.status == Status.CLEAN
    assert set(outcomes(operation).values()) == {"deleted"}
    assert len(store.asked(is_delete_batch)) == 1
    check(bucket)


def test_batch_is_sent_once_for_each_proof(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_delete_batch, Reply(503, error("SlowDown"))))
    delete("proj_1")
    calls = [r for r in store.seen if is_delete_batch(r) or is_listing_under("")(r)]
    assert len(store.asked(is_delete_batch)) > 1
    assert not any(is_delete_batch(one) and is_delete_batch(next) for one, next in pairwise(calls))


def test_answer_for_another_key_is_no_answer(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    keys = fill(bucket)

    def names_others(request: Request, forward: Forward) -> Reply:
        return Reply(
            200, b"<DeleteResult><Deleted><Key>projects/proj_1/other</Key></Deleted></DeleteResult>"
        )

    store.rules.append(on(is_delete_batch, names_others))
    operation = delete("proj_1")
    assert all("for other keys" in reason(operation, key) for key in keys)
    survives(operation, bucket, store)


def test_one_refused_key_stops_no_other(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    locked, *others = fill(bucket, 5)

    def refuse_one(request: Request, forward: Forward) -> Reply:
        for key in set(keys_sent(request)) - {locked}:
            bucket.r2.remove(key)
        failure = (
            f"<Error><Key>{locked}</Key><Code>ObjectLockedByBucketPolicy</Code>"
            "<Message>The object is locked.</Message></Error>"
        )
        return Reply(200, f"<DeleteResult>{failure}</DeleteResult>".encode())

    store.rules.append(on(is_delete_batch, refuse_one))
    operation = delete("proj_1")
    assert outcomes(operation) == {locked: "failed"} | dict.fromkeys(others, "deleted")
    assert "The object is locked." in reason(operation, locked)
    survives(operation, bucket, store)


def test_object_that_is_back_is_not_called_gone_any_more(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    back, refused = fill(bucket, 2)

    def refuse_one(request: Request, forward: Forward) -> Reply:
        bucket.r2.remove(back)
        failure = f"<Error><Key>{refused}</Key><Code>InternalError</Code></Error>"
        return Reply(200, f"<DeleteResult>{failure}</DeleteResult>".encode())

    store.rules.append(on(is_delete_batch, refuse_one))
    operation = delete("proj_1")
    assert outcomes(operation) == {back: "deleted", refused: "failed"}
    store.rules.clear()
    bucket.put(back, body=b"another")
    operation = again(operation)
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert outcomes(operation) == {back: "protected", refused: "deleted"}
    assert "overwritten after the plan" in reason(operation, back)
    check(bucket)


def test_object_that_a_listing_hid_is_deleted_once_it_is_shown(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    hidden, refused = fill(bucket, 2)

    def hide(xml: str) -> str:
        return with_contents(xml, [e for e in contents(xml) if hidden not in unquote(e)])

    def fault() -> None:
        store.rules.append(on(is_listing_under(""), changed(hide)))
        store.rules.append(on(is_listing_under(PREFIX), changed(hide)))
        store.rules.append(on(is_delete_batch, each_key_fails))

    between_plan_and_batch(monkeypatch, fault)
    operation = delete("proj_1")
    assert outcomes(operation) == {hidden: "already_absent", refused: "failed"}
    store.rules.clear()
    operation = again(operation)
    assert operation.status == Status.CLEAN
    assert outcomes(operation) == {hidden: "deleted", refused: "deleted"}
    check(bucket)


def test_lying_store_is_named_in_the_reason(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    (key,) = fill(bucket, 1)
    store.rules.append(on(is_delete_batch, lies))
    operation = delete("proj_1")
    assert "still" in reason(operation, key).lower()
    assert "Deleted" in reason(operation, key)


def test_file_that_no_prefix_covers_is_not_called_deleted_while_it_is_there(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    bucket.put("odd/key")
    track(bucket, "odd/key", "proj_1")
    store.rules.append(on(is_delete_batch, lies))
    operation = delete("proj_1")
    assert outcomes(operation) == {"odd/key": "failed"}
    survives(operation, bucket, store)


def first_page_again(xml: str) -> str:
    return with_contents(xml, contents(xml) * 2)


def says_nothing_of_the_end(xml: str) -> str:
    return re.sub("<IsTruncated>.*?</IsTruncated>", "", xml)


def one_too_few(xml: str) -> str:
    return re.sub("<KeyCount>(.*?)</KeyCount>", "<KeyCount>7</KeyCount>", xml)


def with_keys_elsewhere(xml: str) -> str:
    return xml.replace("projects%2Fproj_1%2F", "projects%2Fproj_2%2F")


def without_sizes(xml: str) -> str:
    return re.sub("<Size>.*?</Size>", "", xml)


def with_odd_times(xml: str) -> str:
    return re.sub("<LastModified>.*?</LastModified>", "<LastModified>soon</LastModified>", xml)


LISTING_FAULTS: dict[str, Reply | Rule] = {
    "500": Reply(500, error("InternalError")),
    "403": Reply(403, error("AccessDenied")),
    "404 NoSuchBucket": Reply(404, error("NoSuchBucket")),
    "HTML": HTML,
    "well-formed HTML": Reply(200, b"<html><body>Sign in</body></html>"),
    "an empty body": Reply(200),
    "an empty result": Reply(200, b"<ListBucketResult></ListBucketResult>"),
    "truncated XML": changed(lambda xml: xml[: len(xml) // 2]),
    "a broken connection": RESET,
    "keys out of order": changed(backwards),
    "keys repeated": changed(first_page_again),
    "truncated without a token": changed(without_token),
    "truncated for ever": changed(lambda xml: with_token(xml, "more")),
    "no word on the end": changed(says_nothing_of_the_end),
    "fewer keys than announced": changed(one_too_few),
    "keys of another prefix": changed(with_keys_elsewhere),
    "keys without sizes": changed(without_sizes),
    "times that are none": changed(with_odd_times),
}


def under_each_listing_fault(
    store: FaultyStore, matches: Matches, operation: CleanupOperation, but: Iterable[str] = ()
) -> Iterator[CleanupOperation]:
    """The operation after an attempt under each fault in turn."""
    for name in [name for name in LISTING_FAULTS if name not in but]:
        store.rules.append(on(matches, LISTING_FAULTS[name]))
        yield again(operation)
        store.rules.pop()
        operation.refresh_from_db()
        assert operation.status == Status.INCOMPLETE, name
        assert operation.error, name


def test_broken_listing_while_planning_authorises_nothing(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    keys = fill(bucket)
    operation = requested("proj_1")
    for attempt in under_each_listing_fault(store, is_listing_under(PREFIX), operation):
        assert attempt.planned_at is None
        check(bucket)
    assert bucket.keys() == set(keys)
    assert not store.asked(is_delete_batch)
    survives(operation, bucket, store)


def test_broken_listing_before_a_batch_sends_nothing(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    keys = fill(bucket)
    operation = requested("proj_1")
    # These two are no fault here: what follows the keys is not read, and there is no prefix.
    harmless = ["truncated for ever", "keys of another prefix"]
    for _attempt in under_each_listing_fault(store, is_listing_under(""), operation, harmless):
        assert set(outcomes(operation).values()) == {"planned"}
        check(bucket)
    assert bucket.keys() == set(keys)
    assert not store.asked(is_delete_batch)
    survives(operation, bucket, store)


@pytest.mark.parametrize("change", [of_another_bucket, of_another_prefix])
def test_verification_does_not_believe_a_page_of_another_request(
    bucket: Bucket, store: FaultyStore, change: Callable[[str], str]
) -> None:
    """The store said `Deleted` and kept all five, and its page is complete, empty and not ours."""
    alive("proj_1")
    keys = fill(bucket, 5)

    def is_verification(request: Request) -> bool:
        return is_listing_under(PREFIX)(request) and bool(store.asked(is_delete_batch))

    store.rules += [on(is_delete_batch, lies), on(is_verification, changed(change))]
    operation = delete("proj_1")
    assert bucket.keys() == set(keys)
    assert not {"deleted", "already_absent"} & set(outcomes(operation).values())
    assert "different request" in operation.error
    survives(operation, bucket, store)


def test_broken_listing_while_verifying_says_nothing_of_any_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    keys = fill(bucket)
    operation = requested("proj_1")
    store.rules.append(on(is_delete_batch, lies))

    def is_verification(request: Request) -> bool:
        return is_listing_under(PREFIX)(request) and bool(store.asked(is_delete_batch))

    for _attempt in under_each_listing_fault(store, is_verification, operation):
        assert set(outcomes(operation).values()) == {"planned"}
        check(bucket)
    assert bucket.keys() == set(keys)
    # What was sent is proved anew before it is sent again, as its keys were free in between.
    assert len(store.asked(is_delete_batch)) == len(LISTING_FAULTS)
    survives(operation, bucket, store)


def test_listing_that_fails_at_a_later_page_says_nothing(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    keys = fill(bucket, 5)
    monkeypatch.setattr(s3, "PAGE", 2)
    failing = on(
        lambda r: is_listing(r) and "continuation-token" in r.query, Reply(500, error("no"))
    )
    store.rules.append(failing)
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE
    assert bucket.keys() == set(keys)
    assert operation.items.count() == 2
    store.rules.clear()
    assert again(operation).status == Status.CLEAN
    assert not bucket.keys()
    check(bucket)


def test_store_without_its_marker_answer_is_not_taken_for_another_bucket(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_marker, Reply(503, error("ServiceUnavailable"))))
    assert "ServiceUnavailable" in delete("proj_1").error
    survives(CleanupOperation.objects.get(trigger="deleted"), bucket, store)


def test_retries_come_at_growing_pauses_then_daily_and_recover(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_anything, RESET))
    assert_growing_pauses(bucket, store, delete("proj_1"))


def test_object_that_never_goes_is_retried_at_growing_pauses_then_daily(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_delete_batch, each_key_fails))
    assert_growing_pauses(bucket, store, delete("proj_1"))


def assert_growing_pauses(bucket: Bucket, store: FaultyStore, operation: CleanupOperation) -> None:
    pauses = [pause(operation)]
    for _attempt in range(3):
        pauses.append(pause(again(operation)))
    assert pauses[1:] == [1, 2, 4] or pauses[:3] == [1, 2, 4]
    operation.refresh_from_db()
    assert operation.troubled_since is not None
    began = operation.troubled_since - timedelta(hours=6)
    CleanupOperation.objects.filter(pk=operation.pk).update(troubled_since=began)
    failed = again(operation)
    assert failed.status == Status.FAILED
    assert pause(failed) == timedelta(days=1) / MINUTE
    check(bucket)
    store.rules.clear()
    assert again(failed).status == Status.CLEAN
    check(bucket)


def pause(operation: CleanupOperation) -> object:
    """How many minutes after the attempt the next one is; chance adds up to a quarter of them."""
    assert operation.next_attempt_at and operation.finished_at
    minutes = (operation.next_attempt_at - operation.finished_at) / MINUTE
    return pytest.approx(minutes / 1.125, rel=0.125)


def test_person_can_have_a_failed_operation_tried_again(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    fill(bucket)
    store.rules.append(on(is_delete_batch, each_key_fails))
    operation = delete("proj_1")
    store.rules.clear()
    operation.retry()
    assert run(operation).status == Status.CLEAN
    assert not bucket.keys()
    check(bucket)


def test_deleting_some_starts_the_pauses_and_the_hours_anew(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    stays, *others = fill(bucket, 3)
    store.rules.append(on(is_delete_batch, each_key_fails))
    operation = again(again(delete("proj_1")))
    assert operation.troubled_since is not None
    store.rules[:] = [on(is_delete_batch, keeps(stays, bucket))]
    half = again(operation)
    assert half.deleted == len(others)
    assert pause(half) == 1


def keeps(stays: str, bucket: Bucket) -> Rule:
    """Deletes the others of a batch."""

    def rule(request: Request, forward: Forward) -> Reply:
        for key in set(keys_sent(request)) - {stays}:
            bucket.r2.remove(key)
        return each_key_fails(request, forward)

    return rule


def test_unforeseen_error_is_recorded_raised_and_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    fill(bucket)
    operation = requested("proj_1")
    secret = conf().secret_access_key

    def breaks(*args: object) -> None:
        raise RuntimeError(f"disk \0 full, {secret}")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(delete_batches, "prove", breaks)
        run(operation)
    operation.refresh_from_db()
    assert operation.status == Status.INCOMPLETE
    assert "RuntimeError: disk" in operation.error
    assert secret not in operation.error
    assert pause(operation) == 1
    check(bucket)
    assert again(operation).status == Status.CLEAN


@pytest.mark.parametrize("trigger", ["dry run", "verification"])
def test_look_that_was_interrupted_when_it_was_complete_deletes_nothing_later(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, trigger: str
) -> None:
    deleted("proj_1")
    keys = fill(bucket)
    make = requests.dry_run if trigger == "dry run" else requests.verify_project
    (operation,) = make("proj_1")

    def breaks(*args: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(runner, "record_plan", breaks)
        run(operation)
    ended = again(operation)
    assert ended.status in (Status.PLANNED, Status.INCOMPLETE)
    assert not store.asked(is_delete_batch)
    assert bucket.keys() == set(keys)


def test_proof_that_takes_too_long_is_not_acted_on(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    keys = fill(bucket)
    monkeypatch.setattr(delete_batches, "PROOF_LASTS", -1.0)
    operation = delete("proj_1")
    assert bucket.keys() == set(keys)
    assert not store.asked(is_delete_batch)
    monkeypatch.undo()
    survives(operation, bucket, store)


def test_proof_that_takes_long_shows_all_the_same_what_is_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    track(bucket, "odd/1", "proj_1")
    monkeypatch.setattr(delete_batches, "PROOF_LASTS", -1.0)
    assert outcomes(delete("proj_1")) == {"odd/1": "already_absent"}
    check(bucket)


def test_slow_proofs_make_smaller_batches(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    lonely = [f"odd/{n}" for n in range(8)]
    for key in lonely:
        bucket.put(key)
        track(bucket, key, "proj_1")
    monkeypatch.setattr(delete_batches, "monotonic", lambda: store_clock(store))
    monkeypatch.setattr(s3, "monotonic", lambda: store_clock(store))
    monkeypatch.setattr(delete_batches, "PROOF_LASTS", 3.0)
    monkeypatch.setattr(s3, "PAGE", 1)
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert set(outcomes(operation)) == set(lonely)
    assert max(len(keys_sent(sent)) for sent in store.asked(is_delete_batch)) < len(lonely)
    check(bucket)


def store_clock(store: FaultyStore) -> float:
    """A clock on which each listing takes a second."""
    return float(len(store.asked(is_listing)))


def test_keys_that_go_one_by_one_wait_for_a_new_proof_when_theirs_is_old(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    bucket.put(*(f"projects/proj_1/scenes/s1/media/\x01{n}" for n in range(3)))
    monkeypatch.setattr(s3, "monotonic", lambda: clock(store))
    monkeypatch.setattr(delete_batches, "monotonic", lambda: clock(store))
    monkeypatch.setattr(delete_batches, "PROOF_LASTS", 0.5)
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    order = [
        "delete" if is_delete_single(r) else "look"
        for r in store.seen
        if is_delete_single(r) or is_listing_under("")(r)
    ]
    assert order == ["look", "delete"] * 3
    check(bucket)


def clock(store: FaultyStore) -> float:
    """A clock on which each deletion takes a second."""
    return float(len(store.asked(is_delete_single)))


def test_looks_that_contradict_each_other_end_as_a_failure(
    bucket: Bucket, store: FaultyStore
) -> None:
    """Such as a store that honours StartAfter in an order of its own."""
    alive("proj_1")
    (key,) = fill(bucket, 1)
    store.rules.append(on(is_listing_under(""), changed(lambda xml: with_contents(xml, []))))
    operation = delete("proj_1")
    assert outcomes(operation) == {key: "failed"}
    assert operation.items.get().reason == (
        "Still in the bucket, and never sent: the listing before the deletion did not have it."
        " Ask for another cleanup to decide on it."
    )
    survives(operation, bucket, store)


def test_upload_row_that_turns_up_while_verifying_hides_no_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1", "proj_2")
    (key,) = fill(bucket, 1)

    def adopts(request: Request, forward: Forward) -> Reply:
        R2Object.objects.update_or_create(
            bucket=bucket.name,
            key=key,
            defaults={"project_id": "proj_2", "source": "upload", "state": "stored"},
        )
        return lies(request, forward)

    store.rules.append(on(is_delete_batch, adopts))
    operation = delete("proj_1")
    assert outcomes(operation) == {key: "protected"}
    check(bucket)


def test_unfinished_uploads_of_the_project_are_aborted_and_no_others(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1", "proj_1_x")
    own, ambiguous = "projects/proj_1/scenes/s1/media/big.mp4", "proj_1_x_s1_media.mp4"
    store.rules.append(list_uploads(own, ambiguous, "projects/proj_1_x/scenes/s1/media/big.mp4"))
    store.rules.append(on(is_abort, Reply(204)))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert {r.path.partition("/tests/")[2] for r in store.asked(is_abort)} == {own}


def acknowledged_upload(bucket: Bucket, key: str) -> Finding:
    scan = BucketScan.objects.create(bucket=bucket.name)
    finding = Finding.objects.create(
        bucket=bucket.name,
        key=key,
        kind="unfinished",
        upload_id="u1",
        first_scan=scan,
        last_scan=scan,
    )
    Finding.objects.acknowledge("Evidence in a law suit", "zoe")
    return finding


@pytest.mark.parametrize("since", ["before", "after the plan", "just before"])
def test_acknowledged_upload_is_not_aborted(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    alive("proj_1")
    key = "projects/proj_1/scenes/s1/media/big.mp4"
    step = {
        "after the plan": (delete_batches, "delete"),
        "just before": (delete_batches, "abort_upload"),
    }
    if since in step:
        module, name = step[since]
        usual = getattr(module, name)

        def acknowledge_first(*args: Any) -> Any:
            acknowledged_upload(bucket, key)
            return usual(*args)

        monkeypatch.setattr(module, name, acknowledge_first)
    else:
        acknowledged_upload(bucket, key)
    store.rules += [list_uploads(key), on(is_abort, Reply(204))]
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert not store.asked(is_abort)
    pk = Finding.objects.get().pk
    told = operation.events.filter(message__startswith="Unfinished upload not aborted: zoe ack")
    steps = ["plan", "delete"] if since == "before" else ["delete"]
    assert list(told.order_by("pk").values_list("step", flat=True)) == steps
    assert f"acknowledged finding {pk} " in told[0].message and "law" not in told[0].message


def test_no_upload_is_aborted_while_nobody_tells_what_people_keep(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    store.rules += [list_uploads("projects/proj_1/scenes/s1/media/big.mp4")]
    store.rules += [on(is_abort, Reply(204))]
    usual = delete_batches.delete

    def forget_keeper_first(work: Work) -> None:
        monkeypatch.setattr(open_decisions, "_keepers", [])
        usual(work)

    monkeypatch.setattr(delete_batches, "delete", forget_keeper_first)
    with pytest.raises(ImproperlyConfigured):
        delete("proj_1")
    assert not store.asked(is_abort)


def test_upload_is_aborted_though_another_one_to_its_key_is_acknowledged(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    key = "projects/proj_1/scenes/s1/media/big.mp4"
    acknowledged_upload(bucket, key)
    Finding.objects.update(upload_id="u2")
    store.rules += [list_uploads(key), on(is_abort, Reply(204))]
    delete("proj_1")
    assert len(store.asked(is_abort)) == 1


def test_a_store_that_cannot_list_uploads_is_asked_once_before_each_step(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    fill(bucket)
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN and len(operation.ranges) > 1
    assert operation.events.filter(message__contains="the store cannot list them").exists()
    assert len(store.asked(is_uploads_listing)) == len(["plan", "delete"])


@pytest.mark.parametrize(("status", "tried"), [(204, 3), (403, 2)])
def test_aborting_many_uploads_leaves_time_for_the_deletions(
    bucket: Bucket, store: FaultyStore, settings: Settings, status: int, tried: int
) -> None:
    """The store goes on to list them, whatever it answers. A turn is over after each."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    alive("proj_1")
    keys = fill(bucket, 3)
    store.rules.append(list_uploads(*reversed(keys)))
    store.rules.append(on(is_abort, Reply(status, error("AccessDenied")), times=9))
    operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert [r.path.partition("/tests/")[2] for r in store.asked(is_abort)] == keys[:tried]
    calls = [r for r in store.seen if is_abort(r) or is_delete_batch(r)]
    assert [is_abort(call) for call in calls] == [True, False, *[True] * (tried - 1)]


def test_uploads_that_turns_leave_are_aborted_in_the_order_of_their_bytes(
    bucket: Bucket, store: FaultyStore, settings: Settings
) -> None:
    """A turn is over after each. Text can only hold the last key as it is; escaped, the others are
    behind it."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    alive("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{name}" for name in ("a%00b", "a%00c", "aB")]
    store.rules += [list_uploads(*keys), on(is_abort, Reply(204), times=9)]
    assert delete("proj_1").status == Status.CLEAN
    tried = [r.path.partition("/tests/")[2] for r in store.asked(is_abort)]
    assert tried == list(map(unquote, keys))


def test_upload_is_not_aborted_by_a_worker_that_was_stopped_after_its_look(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    [key] = fill(bucket, 1)
    now, abort = [0.0], multipart.abort

    def stop_and_abort(bucket: str, upload: Upload) -> None:
        now[0] += delete_batches.PROOF_LASTS + 1
        abort(bucket, upload)

    monkeypatch.setattr(multipart, "abort", stop_and_abort)
    for module in (delete_batches, s3):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    store.rules += [list_uploads(key), on(is_abort, Reply(204))]
    operation = delete("proj_1")
    assert not store.asked(is_abort)
    assert operation.events.filter(message__contains="not aborted: Not sent").exists()


def test_slow_listing_of_uploads_does_not_lose_the_lease(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")

    def answer_slowly(request: Request, forward: Forward) -> Reply:
        """As if each page took two thirds of the lease; there are three of one prefix."""
        CleanupOperation.objects.update(lease_until=F("lease_until") - conf().lease * 2 / 3)
        place = int(request.query.get("upload-id-marker", "0"))
        if request.query["prefix"] != PREFIX or place == 2:
            return Reply(200, UPLOADS.format("").encode())
        more = f"<NextKeyMarker>{PREFIX}a</NextKeyMarker>"
        more += f"<NextUploadIdMarker>{place + 1}</NextUploadIdMarker>"
        page = UPLOADS.replace("false", "true").format(more)
        return Reply(200, page.encode())

    store.rules.append(on(is_uploads_listing, answer_slowly))
    operation = delete("proj_1")
    assert PREFIX in operation.ranges
    assert (operation.status, operation.takeovers) == (Status.CLEAN, 0)


def test_lease_that_is_lost_stops_all_but_the_abortion_under_way(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    operation = requested("proj_1")
    lost = then(lambda: CleanupOperation.objects.update(lease_until=timezone.now()))
    store.rules.append(list_uploads(*(f"projects/proj_1/scenes/s1/media/{n}" for n in range(3))))
    store.rules += [on(is_abort, lost, times=1), on(is_abort, Reply(204))]
    assert runner.run_slice(operation.pk) is None
    assert len(store.asked(is_abort)) == 1
    assert not operation.events.filter(step="delete").exists()


def test_verification_does_not_say_that_it_aborts_uploads(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    store.rules += [list_uploads("projects/proj_1/scenes/s1/media/big"), on(is_abort, Reply(204))]
    [operation] = requests.verify_project("proj_1")
    run(operation)
    [said] = operation.events.filter(message__startswith="Unfinished")
    assert said.message == "Unfinished multipart uploads: 1."
    assert not store.asked(is_abort)


def test_a_verification_that_is_tried_again_looks_anew(bucket: Bucket, store: FaultyStore) -> None:
    """What came since its first look, which showed all prefixes, is not called absent."""
    alive("proj_1")
    [key] = fill(bucket, 1)
    look = requests.verify_operation(delete("proj_1"))
    store.rules.append(on(is_uploads_listing, Reply(503)))
    assert run(look).status == Status.INCOMPLETE
    store.rules.clear()
    late = key.replace("0", "late")
    bucket.put(key, late)
    ended = again(look)
    assert ended.finished_at and outcomes(ended) == {key: "failed", late: "failed"}


def age_position(operation: CleanupOperation, age: timedelta = LONG) -> None:
    """Let what was listed so far be that old."""
    operation.refresh_from_db()
    seen_at = timezone.now() - age
    operation.cursor["seen_at"] = seen_at.isoformat()
    operation.save(update_fields=["cursor"])


def test_what_is_looked_at_anew_is_counted_anew(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(work: Work) -> None:
        raise TurnOver

    alive("proj_1")
    fill(bucket)
    [look] = requests.verify_project("proj_1")
    monkeypatch.setattr(runner, "look_for_uploads", ends)
    for _turn in range(2):
        runner.run_slice(look.pk)
        age_position(look)
    look.refresh_from_db()
    assert look.headway["books"]["planned"] == [3, 21]


@pytest.mark.parametrize(
    ("how", "age"),
    [(SystemExit, LONG), (SystemExit, -timedelta(days=365)), (TurnOver, LONG)],
    ids=["dead", "dead, with a clock that was ahead", "out of time"],
)
def test_a_verification_that_no_worker_had_for_long_looks_anew(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    how: type[BaseException],
    age: timedelta,
) -> None:
    def ends(work: Work) -> None:
        raise how

    alive("proj_1")
    [key] = fill(bucket, 1)
    look = requests.verify_operation(delete("proj_1"))
    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(runner, "look_for_uploads", ends)
        runner.run_slice(look.pk)
    bucket.put(key)
    age_position(look, age)
    CleanupOperation.objects.filter(lease_until__isnull=False).update(lease_until=timezone.now())
    ended = again(look)
    assert ended.finished_at and outcomes(ended) == {key: "failed"}


def test_a_verification_that_never_ends_is_tried_at_growing_pauses(
    bucket: Bucket, store: FaultyStore
) -> None:
    """What it lists each time before the trouble is no progress."""
    alive("proj_1")
    fill(bucket)
    look = requests.verify_project("proj_1")[0]
    store.rules.append(on(is_uploads_listing, Reply(503)))
    assert [again(look).attempts for _time in range(3)] == [1, 2, 3]


def test_uploads_of_a_project_that_lives_again_are_not_aborted(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    own = "projects/proj_1/scenes/s1/media/big.mp4"
    born_again = on(is_uploads_listing, then(lambda: Project.objects.get_or_create(pk="proj_1")))
    store.rules += [born_again, list_uploads(own), on(is_abort, Reply(204))]
    assert delete("proj_1").status == Status.SUPERSEDED
    assert not store.asked(is_abort)


def test_secrets_of_an_answer_are_not_kept(bucket: Bucket, store: FaultyStore) -> None:
    alive("proj_1")
    fill(bucket)
    secret = conf().secret_access_key
    store.rules.append(on(is_delete_batch, Reply(403, error("AccessDenied", secret))))
    operation = delete("proj_1")
    told = [operation.error, *operation.events.values_list("message", "data")]
    assert secret not in str(told)


@pytest.mark.parametrize("tracked, listed", [("NFC", "NFD"), ("NFD", "NFC")])
def test_key_listed_in_another_spelling_than_tracked_is_not_called_absent(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tracked: Form, listed: Form
) -> None:
    """R2 folds spellings; its local version does not, so the proxy makes it do so."""
    folding(monkeypatch)
    alive("proj_1")
    keys = [
        f"{place}caf\u00e9.mp4" for place in ("projects/proj_1/scenes/s1/media/", "odd/", "odd/a")
    ]
    for key in keys:
        bucket.put(normalize(listed, key))
        track(bucket, normalize(tracked, key), "proj_1")
    refused = on(is_delete_batch, each_key_fails)
    store.rules.append(refused)
    operation = delete("proj_1")
    assert outcomes(operation) == {normalize(listed, key): "failed" for key in keys}
    assert operation.found == len(keys)
    store.rules.clear()
    assert again(operation).status == Status.CLEAN
    assert not bucket.keys()
    check(bucket)
    late_check(operation)
    assert not R2Object.objects.exists()


def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_marker, "probe", lambda bucket: Traits(folds_unicode=True))
    bucket_marker.claim(conf().bucket)


def test_row_in_another_spelling_still_says_whose_the_object_is(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folding(monkeypatch)
    alive("proj_1", "proj_2")
    key = "projects/proj_1/scenes/s1/media/caf\u00e9.mp4"
    bucket.put(key)
    track(bucket, normalize("NFD", key), "proj_2")
    assert delete("proj_1").found == 0
    assert bucket.keys() == {key}


def test_database_connection_that_breaks_after_the_send_loses_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    fill(bucket)
    operation = requested("proj_1")
    real = delete_pipeline.record_answers

    def record(*args: Any) -> None:
        assert connection.connection is not None
        connection.connection.close()
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(delete_pipeline, "record_answers", record)
        with pytest.raises(Error):
            run(operation)
    connection.close()
    operation.refresh_from_db()
    assert operation.status == Status.RUNNING
    long_ago = timezone.now() - timedelta(minutes=5)
    CleanupOperation.objects.update(lease_until=long_ago, next_attempt_at=long_ago)
    operation = run(operation)
    assert operation.status == Status.CLEAN
    assert operation.events.filter(step="takeover").exists()
    check(bucket)
