"""The error policy: what each answer is taken for, and what the cleanup does then."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.bucket import s3
from storage_audit.bucket.errors import (
    LOCKED,
    BucketForbidden,
    Overloaded,
    Refused,
    StoreError,
    Unavailable,
)
from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.clocks import monotonic_seconds
from storage_audit.ownership import bucket_marker
from tests.faults.kinds import HTML_REPLY, error_xml, redirect_reply
from tests.faults.matching import (
    is_anything,
    is_delete_batch,
    is_listing_under,
    rule_for,
    sent_keys,
)
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request, Rule
from tests.network import faulty_network
from tests.promises import (
    Status,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    run_again,
    send_deletions,
)
from tests.real_bucket import Bucket

KEYS = [f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(4)]
HOURS = timedelta(hours=6)


@pytest.fixture
def store(local_r2: LocalR2, bucket: Bucket) -> Iterator[FaultyStore]:
    """The way to a bucket in which a project has four files."""
    create_projects("proj_1")
    bucket.put(*KEYS)
    with faulty_network(local_r2) as running:
        yield running


def from_the_edge(status: int) -> Reply:
    """Cloudflare's network, which knows no S3, answers in place of the store."""
    return replace(HTML_REPLY, status=status)


# botocore would send the request again at once, and each later one to that region.
REDIRECTS = [
    redirect_reply(301, "PermanentRedirect"),
    redirect_reply(307, "TemporaryRedirect"),
    redirect_reply(400, "AuthorizationHeaderMalformed"),
]
ANSWERS: list[tuple[Reply, type[StoreError]]] = [
    (RESET_REPLY, Unavailable),
    (Reply(500, error_xml("InternalError")), Unavailable),
    (Reply(502), Unavailable),
    (Reply(504), Unavailable),
    (Reply(408, error_xml("RequestTimeout")), Unavailable),
    (Reply(400, error_xml("RequestTimeout")), Unavailable),
    (Reply(400, error_xml("ClientDisconnect")), Unavailable),
    (Reply(200, error_xml("InternalError")), Unavailable),
    (Reply(200, b"<DeleteResult><Deleted><Key>pro"), Unavailable),
    (from_the_edge(520), Unavailable),
    (from_the_edge(524), Unavailable),
    (Reply(503, error_xml("SlowDown")), Overloaded),
    (Reply(503, error_xml("ServiceUnavailable")), Overloaded),
    (Reply(503), Overloaded),
    (Reply(429, error_xml("TooManyRequests")), Overloaded),
    (from_the_edge(429), Overloaded),
    (Reply(403, error_xml("AccessDenied")), Refused),
    (Reply(403, error_xml("SignatureDoesNotMatch")), Refused),
    (Reply(403, error_xml("NotEntitled")), Refused),
    (Reply(403, error_xml("ObjectLockedByBucketPolicy")), Refused),
    (Reply(403), Refused),
    (Reply(401, error_xml("Unauthorized")), BucketForbidden),
    (Reply(401), BucketForbidden),
    (Reply(404, error_xml("NoSuchBucket")), BucketForbidden),
    (Reply(400, error_xml("MalformedXML")), StoreError),
    (Reply(404), StoreError),
    (Reply(501, error_xml("NotImplemented")), StoreError),
    *((redirect, StoreError) for redirect in REDIRECTS),
]
NAMES = [f"{a.status} {a.text[:40]} is {kind.__name__}" for a, kind in ANSWERS]


@pytest.mark.parametrize(("answer", "kind"), ANSWERS, ids=NAMES)
def test_each_answer_has_its_class(
    store: FaultyStore, answer: Reply, kind: type[StoreError]
) -> None:
    store.rules.append(rule_for(is_delete_batch, answer))
    with pytest.raises(StoreError) as raised:
        s3.delete_batch("tests", KEYS)
    assert type(raised.value) is kind
    assert len(store.find_requests(is_delete_batch)) == 1


@pytest.mark.parametrize("redirect", REDIRECTS, ids=lambda reply: str(reply.status))
def test_store_cannot_send_us_to_another_region(store: FaultyStore, redirect: Reply) -> None:
    bucket_marker.identify_bucket("tests")
    store.requests.clear()
    store.rules.append(rule_for(is_anything, redirect, times=2))
    with pytest.raises(StoreError):
        s3.list_page("tests", "")
    with pytest.raises(StoreError):
        s3.head_object("tests", KEYS[0])
    assert len(s3.list_page("tests", "projects/").objects) == len(KEYS)
    # Neither was sent again, and nothing else was asked about the bucket.
    assert [request.method for request in store.requests] == ["GET", "HEAD", "GET"]
    assert all("/auto/s3/" in request.headers["Authorization"] for request in store.requests)


@pytest.mark.parametrize(
    ("answer", "answered"),
    [
        (Reply(500, error_xml("InternalError")), True),
        (Reply(403), True),
        (Reply(404), True),
        (from_the_edge(524), False),
        (Reply(504), False),
        (RESET_REPLY, False),
    ],
    ids=str,
)
def test_key_has_an_answer_only_when_the_store_is_done_with_it(
    store: FaultyStore, bucket: Bucket, answer: Reply, answered: bool
) -> None:
    """Otherwise uploads to it stay barred, as it may still be deleted."""
    store.rules.append(rule_for(is_delete_batch, answer))
    sent = send_deletions("batch", bucket.name, KEYS[:1], until=monotonic_seconds() + 30)
    assert set(sent.answers) == (set(KEYS[:1]) if answered else set())
    assert bool(sent.errors) == (answer.status in (0, 500, 504, 524))


def test_trouble_with_one_call_holds_back_those_that_wait_for_it(
    store: FaultyStore, bucket: Bucket
) -> None:
    store.rules.append(rule_for(is_delete_batch, RESET_REPLY))
    sent = send_deletions("batch", bucket.name, KEYS, until=monotonic_seconds() + 30)
    assert not sent.answers
    assert len(store.find_requests(is_delete_batch)) == 1


def test_number_in_retry_after_is_read_and_anything_else_is_not(store: FaultyStore) -> None:
    for text, seconds in (("7", 7.0), ("Fri, 31 Dec 2027 23:59:59 GMT", 0.0), ("-5", 0.0)):
        answer = Reply(503, error_xml("SlowDown"), (("Retry-After", text),))
        store.rules[:] = [rule_for(is_delete_batch, answer)]
        with pytest.raises(Overloaded) as raised:
            s3.delete_batch("tests", KEYS)
        assert raised.value.retry_after == seconds


# What the cleanup does


def run_later(cleanup: Cleanup, by: timedelta = timedelta(minutes=1)) -> Cleanup:
    """Its next attempt, so much later."""
    CleanupEvent.objects.update(at=F("at") - by)
    cleanup.refresh_from_db()
    assert cleanup.failing_since
    mine = Cleanup.objects.filter(pk=cleanup.pk)
    mine.update(failing_since=cleanup.failing_since - by)
    return run_again(cleanup)


def wait_of(cleanup: Cleanup) -> timedelta:
    assert cleanup.next_attempt_at and cleanup.finished_at
    return cleanup.next_attempt_at - cleanup.finished_at


TERMINAL = {
    "401": Reply(401, error_xml("Unauthorized")),
    "NoSuchBucket": Reply(404, error_xml("NoSuchBucket")),
    "403": Reply(403, error_xml("AccessDenied")),
    "403 without a word": Reply(403),
}


@pytest.mark.parametrize("answer", TERMINAL.values(), ids=TERMINAL.keys())
def test_bucket_that_refuses_as_a_whole_calls_for_a_person_at_the_second_attempt(
    store: FaultyStore, bucket: Bucket, answer: Reply
) -> None:
    store.rules.append(rule_for(is_anything, answer))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert "The bucket refuses all requests" in cleanup.message
    assert run_again(cleanup).status == Status.RETRYING, "a moment later"
    failed = run_later(cleanup)
    assert failed.status == Status.FAILED
    assert wait_of(failed) >= timedelta(days=1)
    store.rules.clear()
    assert run_later(failed, timedelta(days=1)).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_two_refusals_with_an_answer_between_them_call_for_nobody(
    store: FaultyStore, bucket: Bucket
) -> None:
    """Each is the first of its own trouble."""
    store.rules.append(rule_for(is_anything, TERMINAL["401"]))
    cleanup = clean_up_project("proj_1")
    store.rules[:] = [refusing(bucket, {KEYS[0]: "InternalError"})]
    assert run_later(cleanup).deleted == 3
    store.rules[:] = [rule_for(is_anything, TERMINAL["401"])]
    assert run_later(cleanup).status == Status.RETRYING


@pytest.mark.parametrize(
    "answer",
    [
        Reply(503, error_xml("SlowDown")),
        Reply(500, error_xml("InternalError")),
        RESET_REPLY,
        Reply(200),
    ],
    ids=["throttled", "transient", "no connection", "unknown"],
)
def test_other_trouble_is_borne_for_hours(
    store: FaultyStore, bucket: Bucket, answer: Reply
) -> None:
    store.rules.append(rule_for(is_delete_batch, answer))
    cleanup = run_later(clean_up_project("proj_1"))
    assert cleanup.status == Status.RETRYING
    assert (
        "We retry automatically" in cleanup.message
        or "Their reasons are under Files" in cleanup.message
    )
    assert run_later(cleanup, HOURS).status == Status.FAILED
    store.rules.clear()
    assert run_later(cleanup).status == Status.CLEAN
    check_promises(bucket)


def test_refused_deletion_while_the_bucket_answers_is_each_keys_own_failure(
    store: FaultyStore, bucket: Bucket
) -> None:
    """Such as one whose spelling breaks its signature: in a call with others it fails them all."""
    refused = KEYS[1]

    def if_named(request: Request) -> bool:
        return is_delete_batch(request) and refused in sent_keys(request)

    store.rules.append(rule_for(if_named, TERMINAL["403"]))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == dict.fromkeys(KEYS, "deleted") | {refused: "failed"}
    assert "AccessDenied" in read_reason(cleanup, refused)
    assert run_later(cleanup).status == Status.RETRYING
    store.rules.clear()
    assert run_later(cleanup).status == Status.CLEAN


def test_refused_listing_is_retried_for_hours_while_the_bucket_answers(store: FaultyStore) -> None:
    prefix = "projects/proj_1/scenes/"
    store.rules.append(rule_for(is_listing_under(prefix), TERMINAL["403"]))
    cleanup = run_later(clean_up_project("proj_1"))
    assert cleanup.status == Status.RETRYING
    assert "AccessDenied" in cleanup.message
    assert run_later(cleanup, HOURS).status == Status.FAILED


def refusing(bucket: Bucket, errors: dict[str, str]) -> Rule:
    """Deletes the others of a call, in which these keys have errors of their own."""

    def rule(request: Request, forward: Forward) -> Reply:
        xml = ""
        for key in sent_keys(request):
            if code := errors.get(key):
                xml += f"<Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error>"
            else:
                bucket.r2.remove(key)
        return Reply(200, f"<DeleteResult>{xml}</DeleteResult>".encode())

    return rule_for(is_delete_batch, rule)


def test_locked_object_is_sent_once_and_calls_for_a_person_at_the_second_attempt(
    store: FaultyStore, bucket: Bucket
) -> None:
    locked = KEYS[2]
    store.rules.append(refusing(bucket, {locked: LOCKED}))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == dict.fromkeys(KEYS, "deleted") | {locked: "failed"}
    assert len(store.find_requests(is_delete_batch)) == 1
    assert "a lock rule of the bucket protects this file" in read_reason(cleanup, locked)
    assert cleanup.status == Status.RETRYING
    failed = run_later(cleanup)
    assert failed.status == Status.FAILED
    assert len(store.find_requests(is_delete_batch)) == 2
    store.rules.clear()
    assert run_later(failed).status == Status.CLEAN
    check_promises(bucket)


def test_locked_object_does_not_end_the_hours_of_another(
    store: FaultyStore, bucket: Bucket
) -> None:
    store.rules.append(refusing(bucket, {KEYS[0]: LOCKED, KEYS[1]: "InternalError"}))
    cleanup = run_later(clean_up_project("proj_1"))
    assert cleanup.failed == 2
    assert cleanup.status == Status.RETRYING


def test_time_that_the_store_asks_for_is_given(store: FaultyStore) -> None:
    busy = Reply(503, error_xml("SlowDown"), (("Retry-After", "1800"),))
    store.rules.append(rule_for(is_delete_batch, busy))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert timedelta(minutes=30) <= wait_of(cleanup) < timedelta(minutes=31)
    assert len(store.find_requests(is_delete_batch)) == 1


@pytest.mark.parametrize("seconds", ["999999", "9" * 20, "9" * 400])
def test_store_cannot_ask_for_more_time_than_the_longest_pause(
    store: FaultyStore, seconds: str
) -> None:
    busy = Reply(503, error_xml("SlowDown"), (("Retry-After", seconds),))
    store.rules.append(rule_for(is_delete_batch, busy))
    before, cleanup = timezone.now(), clean_up_project("proj_1")
    assert cleanup.next_attempt_at is not None
    wait, taken = cleanup.next_attempt_at - before, timezone.now() - before
    assert timedelta(hours=1) <= wait <= timedelta(hours=1) + taken


@pytest.mark.django_db(transaction=True)
def test_what_an_outage_stopped_does_not_come_back_all_at_once() -> None:
    waits = set()
    for _each in range(20):
        facts = {"kind": "project", "project_id": None, "bucket": "tests", "trigger": "deleted"}
        cleanup = Cleanup.objects.create(**facts)
        with transaction.atomic():
            assert cleanup.acquire_lease()
        cleanup.postpone("no", cleanup.items.totals())
        waits.add(wait_of(cleanup))
    assert len(waits) == 20
    assert timedelta(seconds=60) <= min(waits) <= max(waits) <= timedelta(seconds=75)
