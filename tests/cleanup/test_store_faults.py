"""The store on a bad day: nothing is called deleted that a listing still shows."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from time import sleep
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
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import (
    delete_batches,
    delete_pipeline,
    open_decisions,
    plan_summary,
    project_uploads,
    requests,
    runner,
)
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.worker_turn import Turn, TurnOver
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from storage_audit.ownership import bucket_connection
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan.models import BucketScan
from tests.bucket.store_replies import UPLOADS, answer_uploads
from tests.faults.kinds import (
    HTML_REPLY,
    change_reply,
    confirm_without_deleting,
    error_xml,
    fail_each_key,
    forward_and_reset,
)
from tests.faults.matching import (
    Matches,
    is_abort,
    is_anything,
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_listing_at,
    is_listing_under,
    is_marker,
    is_uploads_listing,
    rule_for,
    run_before,
    sent_keys,
)
from tests.faults.pages import (
    find_entries,
    other_bucket_page,
    other_prefix_page,
    reverse_entries,
    with_entries,
    with_token,
    without_token,
)
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request, Rule
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
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


def survives(cleanup: Cleanup, bucket: Bucket, store: FaultyStore) -> Cleanup:
    """The fault left an honest cleanup, which ends clean once the fault is gone."""
    assert cleanup.status == Status.RETRYING
    assert cleanup.message
    check_promises(bucket)
    store.rules.clear()
    healed = run_again(cleanup)
    assert healed.status == Status.CLEAN
    assert not bucket.keys()
    assert set(read_outcomes(healed).values()) == {"deleted"}
    check_promises(bucket)
    return healed


DELETE_FAULTS: dict[str, Reply | Rule] = {
    "an error for each key": fail_each_key,
    "an empty body": Reply(200),
    "HTML": HTML_REPLY,
    "truncated XML": Reply(200, b"<DeleteResult><Deleted><Key>projects/pr"),
    "an empty result": Reply(200, b"<DeleteResult></DeleteResult>"),
    "`Deleted` for what it keeps": confirm_without_deleting,
    "an error inside a 200": Reply(200, error_xml("InternalError")),
    "503": Reply(503, error_xml("ServiceUnavailable")),
    "500": Reply(500, error_xml("InternalError")),
    "524 with HTML": Reply(524, b"<html>"),
    "403": Reply(403, error_xml("AccessDenied")),
    "401": Reply(401, error_xml("Unauthorized")),
    "404 NoSuchBucket": Reply(404, error_xml("NoSuchBucket")),
    "404 with nothing": Reply(404),
    "400 MalformedXML": Reply(400, error_xml("MalformedXML")),
    "204": Reply(204),
    "a broken connection": RESET_REPLY,
}


@pytest.mark.parametrize("fault", DELETE_FAULTS.values(), ids=DELETE_FAULTS.keys())
def test_delete_call_that_deletes_nothing_is_never_called_a_deletion(
    bucket: Bucket, store: FaultyStore, fault: Reply | Rule
) -> None:
    create_projects("proj_1")
    keys = fill(bucket)
    store.rules.append(rule_for(is_delete_batch, fault))
    cleanup = clean_up_project("proj_1")
    assert bucket.keys() == set(keys)
    assert cleanup.failed == len(keys)
    assert cleanup.deleted == cleanup.already_gone == 0
    survives(cleanup, bucket, store)


def test_connection_that_breaks_after_the_store_obeyed_counts_as_deleted(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_delete_batch, forward_and_reset))
    cleanup = clean_up_project("proj_1")
    assert not bucket.keys()
    assert cleanup.status == Status.CLEAN
    assert set(read_outcomes(cleanup).values()) == {"deleted"}
    assert len(store.find_requests(is_delete_batch)) == 1
    check_promises(bucket)


def test_batch_is_sent_once_for_each_proof(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_delete_batch, Reply(503, error_xml("SlowDown"))))
    clean_up_project("proj_1")
    calls = [r for r in store.requests if is_delete_batch(r) or is_listing_under("")(r)]
    assert len(store.find_requests(is_delete_batch)) > 1
    assert not any(is_delete_batch(one) and is_delete_batch(next) for one, next in pairwise(calls))


def test_answer_for_another_key_is_no_answer(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    keys = fill(bucket)

    def names_others(request: Request, forward: Forward) -> Reply:
        return Reply(
            200, b"<DeleteResult><Deleted><Key>projects/proj_1/other</Key></Deleted></DeleteResult>"
        )

    store.rules.append(rule_for(is_delete_batch, names_others))
    cleanup = clean_up_project("proj_1")
    assert all("for different keys" in read_reason(cleanup, key) for key in keys)
    survives(cleanup, bucket, store)


def test_one_refused_key_stops_no_other(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    locked, *others = fill(bucket, 5)

    def refuse_one(request: Request, forward: Forward) -> Reply:
        for key in set(sent_keys(request)) - {locked}:
            bucket.r2.remove(key)
        failure = (
            f"<Error><Key>{locked}</Key><Code>ObjectLockedByBucketPolicy</Code>"
            "<Message>The object is locked.</Message></Error>"
        )
        return Reply(200, f"<DeleteResult>{failure}</DeleteResult>".encode())

    store.rules.append(rule_for(is_delete_batch, refuse_one))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {locked: "failed"} | dict.fromkeys(others, "deleted")
    assert "The object is locked." in read_reason(cleanup, locked)
    survives(cleanup, bucket, store)


def test_object_that_is_back_is_not_called_gone_any_more(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    back, refused = fill(bucket, 2)

    def refuse_one(request: Request, forward: Forward) -> Reply:
        bucket.r2.remove(back)
        failure = f"<Error><Key>{refused}</Key><Code>InternalError</Code></Error>"
        return Reply(200, f"<DeleteResult>{failure}</DeleteResult>".encode())

    store.rules.append(rule_for(is_delete_batch, refuse_one))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {back: "deleted", refused: "failed"}
    store.rules.clear()
    bucket.put(back, body=b"another")
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert read_outcomes(cleanup) == {back: "kept", refused: "deleted"}
    assert "overwritten after the plan" in read_reason(cleanup, back)
    check_promises(bucket)


def test_object_that_a_listing_hid_is_deleted_once_it_is_shown(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    hidden, refused = fill(bucket, 2)

    def hide(xml: str) -> str:
        return with_entries(xml, [e for e in find_entries(xml) if hidden not in unquote(e)])

    def fault() -> None:
        store.rules.append(rule_for(is_listing_under(""), change_reply(hide)))
        store.rules.append(rule_for(is_listing_under(PREFIX), change_reply(hide)))
        store.rules.append(rule_for(is_delete_batch, fail_each_key))

    act_before_batch(monkeypatch, fault)
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {hidden: "already_gone", refused: "failed"}
    store.rules.clear()
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == {hidden: "deleted", refused: "deleted"}
    check_promises(bucket)


def test_lying_store_is_named_in_the_reason(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    (key,) = fill(bucket, 1)
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    cleanup = clean_up_project("proj_1")
    assert "still" in read_reason(cleanup, key).lower()
    assert "Deleted" in read_reason(cleanup, key)


def test_file_that_no_prefix_covers_is_not_called_deleted_while_it_is_there(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    bucket.put("odd/key")
    track_key(bucket, "odd/key", "proj_1")
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {"odd/key": "failed"}
    survives(cleanup, bucket, store)


def first_page_again(xml: str) -> str:
    return with_entries(xml, find_entries(xml) * 2)


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
    "500": Reply(500, error_xml("InternalError")),
    "403": Reply(403, error_xml("AccessDenied")),
    "404 NoSuchBucket": Reply(404, error_xml("NoSuchBucket")),
    "HTML": HTML_REPLY,
    "well-formed HTML": Reply(200, b"<html><body>Sign in</body></html>"),
    "an empty body": Reply(200),
    "an empty result": Reply(200, b"<ListBucketResult></ListBucketResult>"),
    "truncated XML": change_reply(lambda xml: xml[: len(xml) // 2]),
    "a broken connection": RESET_REPLY,
    "keys out of order": change_reply(reverse_entries),
    "keys repeated": change_reply(first_page_again),
    "truncated without a token": change_reply(without_token),
    "truncated for ever": change_reply(lambda xml: with_token(xml, "more")),
    "no word on the end": change_reply(says_nothing_of_the_end),
    "fewer keys than announced": change_reply(one_too_few),
    "keys of another prefix": change_reply(with_keys_elsewhere),
    "keys without sizes": change_reply(without_sizes),
    "times that are none": change_reply(with_odd_times),
}


def under_each_listing_fault(
    store: FaultyStore, matches: Matches, cleanup: Cleanup, but: Iterable[str] = ()
) -> Iterator[Cleanup]:
    """The cleanup after an attempt under each fault in turn."""
    for name in [name for name in LISTING_FAULTS if name not in but]:
        store.rules.append(rule_for(matches, LISTING_FAULTS[name]))
        yield run_again(cleanup)
        store.rules.pop()
        cleanup.refresh_from_db()
        assert cleanup.status == Status.RETRYING, name
        assert cleanup.message, name


def test_broken_listing_while_planning_authorises_nothing(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    for attempt in under_each_listing_fault(store, is_listing_under(PREFIX), cleanup):
        assert attempt.planned_at is None
        check_promises(bucket)
    assert bucket.keys() == set(keys)
    assert not store.find_requests(is_delete_batch)
    survives(cleanup, bucket, store)


def test_broken_listing_before_a_batch_sends_nothing(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    # These two are no fault here: what follows the keys is not read, and there is no prefix.
    harmless = ["truncated for ever", "keys of another prefix"]
    for _attempt in under_each_listing_fault(store, is_listing_under(""), cleanup, harmless):
        assert set(read_outcomes(cleanup).values()) == {"to_delete"}
        check_promises(bucket)
    assert bucket.keys() == set(keys)
    assert not store.find_requests(is_delete_batch)
    survives(cleanup, bucket, store)


@pytest.mark.parametrize("change", [other_bucket_page, other_prefix_page])
def test_verification_does_not_believe_a_page_of_another_request(
    bucket: Bucket, store: FaultyStore, change: Callable[[str], str]
) -> None:
    """The store said `Deleted` and kept all five, and its page is complete, empty and not ours."""
    create_projects("proj_1")
    keys = fill(bucket, 5)

    def is_verification(request: Request) -> bool:
        return is_listing_under(PREFIX)(request) and bool(store.find_requests(is_delete_batch))

    store.rules += [
        rule_for(is_delete_batch, confirm_without_deleting),
        rule_for(is_verification, change_reply(change)),
    ]
    cleanup = clean_up_project("proj_1")
    assert bucket.keys() == set(keys)
    assert not {"deleted", "already_gone"} & set(read_outcomes(cleanup).values())
    assert "different request" in cleanup.message
    survives(cleanup, bucket, store)


def test_broken_listing_while_verifying_says_nothing_of_any_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    keys = fill(bucket)
    cleanup = request_cleanup("proj_1")
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))

    def is_verification(request: Request) -> bool:
        return is_listing_under(PREFIX)(request) and bool(store.find_requests(is_delete_batch))

    for _attempt in under_each_listing_fault(store, is_verification, cleanup):
        assert set(read_outcomes(cleanup).values()) == {"to_delete"}
        check_promises(bucket)
    assert bucket.keys() == set(keys)
    # What was sent is proved anew before it is sent again, as its keys were free in between.
    assert len(store.find_requests(is_delete_batch)) == len(LISTING_FAULTS)
    survives(cleanup, bucket, store)


def test_listing_that_fails_at_a_later_page_says_nothing(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    keys = fill(bucket, 5)
    monkeypatch.setattr(s3, "PAGE_SIZE", 2)
    failing = rule_for(
        lambda r: is_listing(r) and "continuation-token" in r.query, Reply(500, error_xml("no"))
    )
    store.rules.append(failing)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert bucket.keys() == set(keys)
    assert cleanup.items.count() == 2
    store.rules.clear()
    assert run_again(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_store_without_its_marker_answer_is_not_taken_for_another_bucket(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_marker, Reply(503, error_xml("ServiceUnavailable"))))
    assert "ServiceUnavailable" in clean_up_project("proj_1").message
    survives(Cleanup.objects.get(trigger="deleted"), bucket, store)


def test_retries_come_at_growing_pauses_then_daily_and_recover(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_anything, RESET_REPLY))
    assert_growing_pauses(bucket, store, clean_up_project("proj_1"))


def test_object_that_never_goes_is_retried_at_growing_pauses_then_daily(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_delete_batch, fail_each_key))
    assert_growing_pauses(bucket, store, clean_up_project("proj_1"))


def assert_growing_pauses(bucket: Bucket, store: FaultyStore, cleanup: Cleanup) -> None:
    pauses = [pause(cleanup)]
    for _attempt in range(3):
        pauses.append(pause(run_again(cleanup)))
    assert pauses[1:] == [1, 2, 4] or pauses[:3] == [1, 2, 4]
    cleanup.refresh_from_db()
    assert cleanup.failing_since is not None
    began = cleanup.failing_since - timedelta(hours=6)
    Cleanup.objects.filter(pk=cleanup.pk).update(failing_since=began)
    failed = run_again(cleanup)
    assert failed.status == Status.FAILED
    assert pause(failed) == timedelta(days=1) / MINUTE
    check_promises(bucket)
    store.rules.clear()
    assert run_again(failed).status == Status.CLEAN
    check_promises(bucket)


def pause(cleanup: Cleanup) -> object:
    """How many minutes after the attempt the next one is; chance adds up to a quarter of them."""
    assert cleanup.next_attempt_at and cleanup.finished_at
    minutes = (cleanup.next_attempt_at - cleanup.finished_at) / MINUTE
    return pytest.approx(minutes / 1.125, rel=0.125)


def test_person_can_have_a_failed_cleanup_tried_again(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    fill(bucket)
    store.rules.append(rule_for(is_delete_batch, fail_each_key))
    cleanup = clean_up_project("proj_1")
    store.rules.clear()
    cleanup.retry()
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_deleting_some_starts_the_pauses_and_the_hours_anew(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    stays, *others = fill(bucket, 3)
    store.rules.append(rule_for(is_delete_batch, fail_each_key))
    cleanup = run_again(run_again(clean_up_project("proj_1")))
    assert cleanup.failing_since is not None
    store.rules[:] = [rule_for(is_delete_batch, keeps(stays, bucket))]
    half = run_again(cleanup)
    assert half.deleted == len(others)
    assert pause(half) == 1


def keeps(stays: str, bucket: Bucket) -> Rule:
    """Deletes the others of a batch."""

    def rule(request: Request, forward: Forward) -> Reply:
        for key in set(sent_keys(request)) - {stays}:
            bucket.r2.remove(key)
        return fail_each_key(request, forward)

    return rule


def test_unforeseen_error_is_recorded_raised_and_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    fill(bucket)
    cleanup = request_cleanup("proj_1")
    secret = conf().secret_access_key

    def breaks(*args: object) -> None:
        raise RuntimeError(f"disk \0 full, {secret}")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(delete_batches, "recheck_batch", breaks)
        run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RETRYING
    assert "RuntimeError: disk" in cleanup.message
    assert secret not in cleanup.message
    assert pause(cleanup) == 1
    check_promises(bucket)
    assert run_again(cleanup).status == Status.CLEAN


@pytest.mark.parametrize("trigger", ["dry run", "verification"])
def test_verification_interrupted_at_its_end_deletes_nothing_later(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, trigger: str
) -> None:
    record_deleted_projects("proj_1")
    keys = fill(bucket)
    make = requests.request_preview if trigger == "dry run" else requests.request_verification
    (cleanup,) = make("proj_1")

    def breaks(*args: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(plan_summary, "record_plan", breaks)
        run_until_idle(cleanup)
    ended = run_again(cleanup)
    assert ended.status in (Status.PLANNED, Status.DIFFERS)
    assert not store.find_requests(is_delete_batch)
    assert bucket.keys() == set(keys)


def test_proof_that_takes_too_long_is_not_acted_on(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    keys = fill(bucket)
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", -1.0)
    cleanup = clean_up_project("proj_1")
    assert bucket.keys() == set(keys)
    assert not store.find_requests(is_delete_batch)
    monkeypatch.undo()
    survives(cleanup, bucket, store)


def test_proof_that_takes_long_shows_all_the_same_what_is_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    track_key(bucket, "odd/1", "proj_1")
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", -1.0)
    assert read_outcomes(clean_up_project("proj_1")) == {"odd/1": "already_gone"}
    check_promises(bucket)


def test_recheck_is_as_old_as_the_first_of_its_look_ups_that_are_made_at_once(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answers at once, and the other so late that neither counts any more."""
    create_projects("proj_1")
    bucket.put(FLAT_KEY, HIERARCHICAL_KEY)
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", 2.0)
    store.rules.append(rule_for(is_listing_at(FLAT_KEY), answer_after(3.0), times=1))
    assert clean_up_project("proj_1").status == Status.CLEAN
    sent = next(n for n, request in enumerate(store.requests) if is_delete_batch(request))
    looks = [request for request in list(store.requests)[:sent] if is_listing_under("")(request)]
    assert sum(map(is_listing_at(FLAT_KEY), looks)) > 1
    check_promises(bucket)


def answer_after(seconds: float) -> Rule:
    def rule(request: Request, forward: Forward) -> Reply:
        sleep(seconds)
        return forward()

    return rule


def test_slow_proofs_make_smaller_batches(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    lonely = [f"odd/{n}" for n in range(8)]
    for key in lonely:
        bucket.put(key)
        track_key(bucket, key, "proj_1")
    monkeypatch.setattr(delete_batches, "monotonic_seconds", lambda: store_clock(store))
    monkeypatch.setattr(delete_pipeline, "monotonic_seconds", lambda: store_clock(store))
    monkeypatch.setattr(s3, "monotonic_seconds", lambda: store_clock(store))
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", 3.0)
    monkeypatch.setattr(s3, "PAGE_SIZE", 1)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert set(read_outcomes(cleanup)) == set(lonely)
    assert max(len(sent_keys(sent)) for sent in store.find_requests(is_delete_batch)) < len(lonely)
    check_promises(bucket)


def store_clock(store: FaultyStore) -> float:
    """A clock on which each listing takes a second."""
    return float(len(store.find_requests(is_listing)))


def test_keys_that_go_one_by_one_wait_for_a_new_proof_when_theirs_is_old(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*(f"projects/proj_1/scenes/s1/media/\x01{n}" for n in range(3)))
    monkeypatch.setattr(s3, "monotonic_seconds", lambda: clock(store))
    monkeypatch.setattr(delete_batches, "monotonic_seconds", lambda: clock(store))
    monkeypatch.setattr(delete_pipeline, "monotonic_seconds", lambda: clock(store))
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", 0.5)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    order = [
        "delete" if is_delete_single(r) else "look"
        for r in store.requests
        if is_delete_single(r) or is_listing_under("")(r)
    ]
    assert order == ["look", "delete"] * 3
    check_promises(bucket)


def clock(store: FaultyStore) -> float:
    """A clock on which each deletion takes a second."""
    return float(len(store.find_requests(is_delete_single)))


def test_listings_that_contradict_each_other_end_as_a_failure(
    bucket: Bucket, store: FaultyStore
) -> None:
    """Such as a store that honours StartAfter in an order of its own."""
    create_projects("proj_1")
    (key,) = fill(bucket, 1)
    store.rules.append(
        rule_for(is_listing_under(""), change_reply(lambda xml: with_entries(xml, [])))
    )
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "failed"}
    assert cleanup.items.get().reason == (
        "Still in the bucket. No deletion was sent, as an earlier listing did not show the file."
        " To delete the file, run another cleanup."
    )
    survives(cleanup, bucket, store)


def test_upload_row_that_turns_up_while_verifying_hides_no_object(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1", "proj_2")
    (key,) = fill(bucket, 1)

    def adopts(request: Request, forward: Forward) -> Reply:
        R2Object.objects.update_or_create(
            bucket=bucket.name,
            key=key,
            defaults={"project_id": "proj_2", "source": "upload", "state": "stored"},
        )
        return confirm_without_deleting(request, forward)

    store.rules.append(rule_for(is_delete_batch, adopts))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept"}
    check_promises(bucket)


def test_unfinished_uploads_of_the_project_are_aborted_and_no_others(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1", "proj_1_x")
    own, ambiguous = "projects/proj_1/scenes/s1/media/big.mp4", "proj_1_x_s1_media.mp4"
    store.rules.append(answer_uploads(own, ambiguous, "projects/proj_1_x/scenes/s1/media/big.mp4"))
    store.rules.append(rule_for(is_abort, Reply(204)))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert {r.path.partition("/tests/")[2] for r in store.find_requests(is_abort)} == {own}


def create_ignored_upload(bucket: Bucket, key: str) -> Finding:
    scan = BucketScan.objects.create(bucket=bucket.name)
    finding = Finding.objects.create(
        bucket=bucket.name,
        key=key,
        kind="unfinished",
        upload_id="u1",
        first_scan=scan,
        last_scan=scan,
    )
    Finding.objects.ignore("Evidence in a law suit", "zoe")
    return finding


@pytest.mark.parametrize("since", ["before", "after the plan", "just before"])
def test_ignored_upload_is_not_aborted(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    create_projects("proj_1")
    key = "projects/proj_1/scenes/s1/media/big.mp4"
    step = {
        "after the plan": (delete_batches, "delete_planned"),
        "just before": (project_uploads, "abort_upload"),
    }
    if since in step:
        module, name = step[since]
        usual = getattr(module, name)

        def acknowledge_first(*args: Any) -> Any:
            create_ignored_upload(bucket, key)
            return usual(*args)

        monkeypatch.setattr(module, name, acknowledge_first)
    else:
        create_ignored_upload(bucket, key)
    store.rules += [answer_uploads(key), rule_for(is_abort, Reply(204))]
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not store.find_requests(is_abort)
    pk = Finding.objects.get().pk
    told = cleanup.events.filter(message__startswith="Unfinished upload not aborted: zoe ign")
    steps = ["plan", "delete"] if since == "before" else ["delete"]
    assert list(told.order_by("pk").values_list("step", flat=True)) == steps
    assert f"ignored finding {pk} " in told[0].message and "law" not in told[0].message


def test_no_upload_is_aborted_while_nobody_tells_what_people_keep(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    store.rules += [answer_uploads("projects/proj_1/scenes/s1/media/big.mp4")]
    store.rules += [rule_for(is_abort, Reply(204))]
    usual = delete_batches.delete_planned

    def forget_keeper_first(work: Turn) -> None:
        monkeypatch.setattr(open_decisions, "_ignore_lists", [])
        usual(work)

    monkeypatch.setattr(delete_batches, "delete_planned", forget_keeper_first)
    with pytest.raises(ImproperlyConfigured):
        clean_up_project("proj_1")
    assert not store.find_requests(is_abort)


def test_upload_is_aborted_though_another_one_to_its_key_is_ignored(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    key = "projects/proj_1/scenes/s1/media/big.mp4"
    create_ignored_upload(bucket, key)
    Finding.objects.update(upload_id="u2")
    store.rules += [answer_uploads(key), rule_for(is_abort, Reply(204))]
    clean_up_project("proj_1")
    assert len(store.find_requests(is_abort)) == 1


def test_a_store_that_cannot_list_uploads_is_asked_once_in_a_turn(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    fill(bucket)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN and len(cleanup.listed_prefixes) > 1
    assert cleanup.events.filter(message__contains="the store cannot list them").exists()
    assert len(store.find_requests(is_uploads_listing)) == 1


@pytest.mark.parametrize(("status", "tried"), [(204, 3), (403, 2)])
def test_aborting_many_uploads_leaves_time_for_the_deletions(
    bucket: Bucket, store: FaultyStore, settings: Settings, status: int, tried: int
) -> None:
    """The store goes on to list them, whatever it answers. A turn is over after each."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    create_projects("proj_1")
    keys = fill(bucket, 3)
    store.rules.append(answer_uploads(*reversed(keys)))
    store.rules.append(rule_for(is_abort, Reply(status, error_xml("AccessDenied")), times=9))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert [r.path.partition("/tests/")[2] for r in store.find_requests(is_abort)] == keys[:tried]
    calls = [r for r in store.requests if is_abort(r) or is_delete_batch(r)]
    assert [is_abort(call) for call in calls] == [True, False, *[True] * (tried - 1)]


def test_uploads_that_turns_leave_are_aborted_in_the_order_of_their_bytes(
    bucket: Bucket, store: FaultyStore, settings: Settings
) -> None:
    """A turn is over after each. Text can only hold the last key as it is; escaped, the others are
    behind it."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    create_projects("proj_1")
    keys = [f"projects/proj_1/scenes/s1/media/{name}" for name in ("a%00b", "a%00c", "aB")]
    store.rules += [answer_uploads(*keys), rule_for(is_abort, Reply(204), times=9)]
    assert clean_up_project("proj_1").status == Status.CLEAN
    tried = [r.path.partition("/tests/")[2] for r in store.find_requests(is_abort)]
    assert tried == list(map(unquote, keys))


def test_upload_is_not_aborted_by_a_worker_that_was_stopped_after_its_listing(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    [key] = fill(bucket, 1)
    now, abort = [0.0], multipart.abort_multipart

    def stop_and_abort(bucket: str, upload: MultipartUpload) -> None:
        now[0] += delete_pipeline.RECHECK_VALID_SECONDS + 1
        abort(bucket, upload)

    monkeypatch.setattr(multipart, "abort_multipart", stop_and_abort)
    for module in (delete_pipeline, s3):
        monkeypatch.setattr(module, "monotonic_seconds", lambda: now[0])
    store.rules += [answer_uploads(key), rule_for(is_abort, Reply(204))]
    cleanup = clean_up_project("proj_1")
    assert not store.find_requests(is_abort)
    assert cleanup.events.filter(message__contains="not aborted: Not sent").exists()


def test_slow_listing_of_uploads_does_not_lose_the_lease(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")

    def answer_slowly(request: Request, forward: Forward) -> Reply:
        """As if each page took two thirds of the lease; there are three of one prefix."""
        Cleanup.objects.update(lease_until=F("lease_until") - conf().lease_time * 2 / 3)
        place = int(request.query.get("upload-id-marker", "0"))
        if request.query["prefix"] != PREFIX or place == 2:
            return Reply(200, UPLOADS.format("").encode())
        more = f"<NextKeyMarker>{PREFIX}a</NextKeyMarker>"
        more += f"<NextUploadIdMarker>{place + 1}</NextUploadIdMarker>"
        page = UPLOADS.replace("false", "true").format(more)
        return Reply(200, page.encode())

    store.rules.append(rule_for(is_uploads_listing, answer_slowly))
    cleanup = clean_up_project("proj_1")
    assert PREFIX in cleanup.listed_prefixes
    assert (cleanup.status, cleanup.takeovers) == (Status.CLEAN, 0)


def test_lease_that_is_lost_stops_all_but_the_abortion_under_way(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    lost = run_before(lambda: Cleanup.objects.update(lease_until=timezone.now()))
    store.rules.append(answer_uploads(*(f"projects/proj_1/scenes/s1/media/{n}" for n in range(3))))
    store.rules += [rule_for(is_abort, lost, times=1), rule_for(is_abort, Reply(204))]
    assert runner.run_turn(cleanup.pk) is None
    assert len(store.find_requests(is_abort)) == 1
    assert not cleanup.events.filter(step="delete").exists()


def test_verification_does_not_say_that_it_aborts_uploads(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    store.rules += [
        answer_uploads("projects/proj_1/scenes/s1/media/big"),
        rule_for(is_abort, Reply(204)),
    ]
    [cleanup] = requests.request_verification("proj_1")
    run_until_idle(cleanup)
    [said] = cleanup.events.filter(message__startswith="Unfinished")
    assert said.message == "Unfinished multipart uploads: 1."
    assert not store.find_requests(is_abort)


def test_a_verification_that_is_tried_again_starts_over(bucket: Bucket, store: FaultyStore) -> None:
    """What came since its first look, which showed all prefixes, is not called absent."""
    create_projects("proj_1")
    [key] = fill(bucket, 1)
    look = requests.request_cleanup_verification(clean_up_project("proj_1"))
    store.rules.append(rule_for(is_uploads_listing, Reply(503)))
    assert run_until_idle(look).status == Status.RETRYING
    store.rules.clear()
    late = key.replace("0", "late")
    bucket.put(key, late)
    ended = run_again(look)
    assert ended.finished_at and read_outcomes(ended) == {key: "failed", late: "failed"}


def age_position(cleanup: Cleanup, age: timedelta = LONG) -> None:
    """Let what was listed so far be that old."""
    cleanup.refresh_from_db()
    cleanup.position = replace(cleanup.position, seen_at=timezone.now() - age)
    cleanup.save(update_fields=["position"])


def test_what_is_verified_again_is_counted_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(work: Turn) -> None:
        raise TurnOver

    create_projects("proj_1")
    fill(bucket)
    [look] = requests.request_verification("proj_1")
    monkeypatch.setattr(project_uploads, "record_unfinished_uploads", ends)
    for _turn in range(2):
        runner.run_turn(look.pk)
        age_position(look)
    look.refresh_from_db()
    assert look.progress["totals"]["to_delete"] == [3, 21]


@pytest.mark.parametrize(
    ("how", "age"),
    [(SystemExit, LONG), (SystemExit, -timedelta(days=365)), (TurnOver, LONG)],
    ids=["dead", "dead, with a clock that was ahead", "out of time"],
)
def test_a_verification_that_no_worker_had_for_long_starts_over(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    how: type[BaseException],
    age: timedelta,
) -> None:
    def ends(work: Turn) -> None:
        raise how

    create_projects("proj_1")
    [key] = fill(bucket, 1)
    look = requests.request_cleanup_verification(clean_up_project("proj_1"))
    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(project_uploads, "record_unfinished_uploads", ends)
        runner.run_turn(look.pk)
    bucket.put(key)
    age_position(look, age)
    Cleanup.objects.filter(lease_until__isnull=False).update(lease_until=timezone.now())
    ended = run_again(look)
    assert ended.finished_at and read_outcomes(ended) == {key: "failed"}


def test_a_verification_that_never_ends_is_tried_at_growing_pauses(
    bucket: Bucket, store: FaultyStore
) -> None:
    """What it lists each time before the trouble is no progress."""
    create_projects("proj_1")
    fill(bucket)
    look = requests.request_verification("proj_1")[0]
    store.rules.append(rule_for(is_uploads_listing, Reply(503)))
    assert [run_again(look).attempts for _time in range(3)] == [1, 2, 3]


def test_uploads_of_a_project_that_lives_again_are_not_aborted(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    own = "projects/proj_1/scenes/s1/media/big.mp4"
    born_again = rule_for(
        is_uploads_listing, run_before(lambda: Project.objects.get_or_create(pk="proj_1"))
    )
    store.rules += [born_again, answer_uploads(own), rule_for(is_abort, Reply(204))]
    assert clean_up_project("proj_1").status == Status.SUPERSEDED
    assert not store.find_requests(is_abort)


def test_secrets_of_an_answer_are_not_kept(bucket: Bucket, store: FaultyStore) -> None:
    create_projects("proj_1")
    fill(bucket)
    secret = conf().secret_access_key
    store.rules.append(rule_for(is_delete_batch, Reply(403, error_xml("AccessDenied", secret))))
    cleanup = clean_up_project("proj_1")
    told = [cleanup.message, *cleanup.events.values_list("message", "data")]
    assert secret not in str(told)


@pytest.mark.parametrize("tracked, listed", [("NFC", "NFD"), ("NFD", "NFC")])
def test_key_listed_in_another_spelling_than_tracked_is_not_called_gone(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tracked: Form, listed: Form
) -> None:
    """R2 folds spellings; its local version does not, so the proxy makes it do so."""
    folding(monkeypatch)
    create_projects("proj_1")
    keys = [
        f"{place}caf\u00e9.mp4" for place in ("projects/proj_1/scenes/s1/media/", "odd/", "odd/a")
    ]
    for key in keys:
        bucket.put(normalize(listed, key))
        track_key(bucket, normalize(tracked, key), "proj_1")
    refused = rule_for(is_delete_batch, fail_each_key)
    store.rules.append(refused)
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {normalize(listed, key): "failed" for key in keys}
    assert cleanup.found == len(keys)
    store.rules.clear()
    assert run_again(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)
    run_follow_up(cleanup)
    assert not R2Object.objects.exists()


def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bucket_connection, "probe_traits", lambda bucket: StoreTraits(folds_unicode=True)
    )
    bucket_connection.connect_bucket(conf().bucket)


def test_row_in_another_spelling_still_says_whose_the_object_is(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folding(monkeypatch)
    create_projects("proj_1", "proj_2")
    key = "projects/proj_1/scenes/s1/media/caf\u00e9.mp4"
    bucket.put(key)
    track_key(bucket, normalize("NFD", key), "proj_2")
    assert clean_up_project("proj_1").found == 0
    assert bucket.keys() == {key}


def test_database_connection_that_breaks_after_the_send_loses_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    fill(bucket)
    cleanup = request_cleanup("proj_1")
    real = delete_pipeline.record_answers

    def record(*args: Any) -> None:
        assert connection.connection is not None
        connection.connection.close()
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(delete_pipeline, "record_answers", record)
        with pytest.raises(Error):
            run_until_idle(cleanup)
    connection.close()
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RUNNING
    long_ago = timezone.now() - timedelta(minutes=5)
    Cleanup.objects.update(lease_until=long_ago, next_attempt_at=long_ago)
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.CLEAN
    assert cleanup.events.filter(step="takeover").exists()
    check_promises(bucket)
