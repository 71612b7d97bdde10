"""Cloudflare's own API beside S3: complete or an error, able to raise doubt, and nothing else."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any

import pytest
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.bucket import listing, s3
from storage_audit.bucket.cloudflare_api import api_pages
from storage_audit.bucket.errors import (
    BucketForbidden,
    DeadlinePassed,
    InvalidResponse,
    Overloaded,
    Refused,
    StoreError,
    Unavailable,
)
from storage_audit.cleanup import cloudflare_crosscheck, requests
from storage_audit.cleanup.models import Cleanup
from storage_audit.clocks import monotonic_seconds
from storage_audit.models import R2Object
from storage_audit.ownership.bucket_marker import MARKER_KEY, CannotConclude
from tests.faults.matching import is_anything, is_listing_under, rule_for, run_before
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request, Rule, faulty_store
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    run_until_idle,
    track_key,
    verify_project,
)
from tests.real_bucket import BUCKETS, Bucket

SAME = "Cloudflare's own API agrees. Files: %d."
# So few that a verification is over soon.
KEY_FORMATS = {
    "hierarchical": "projects/{project}/scenes/{scene}/media/{filename}",
    "flat": "{project}_{scene}_media.{ext}",
}
STRANGE = [
    "a b+c%20&=?#",
    "a/../b",
    "..",
    "//",
    "back\\slash",
    "nul\0",
    "tab\tnew\nline\r",
    "\x7f\x01",
    "e\N{COMBINING ACUTE ACCENT}",
    "é",
    "\N{CLAPPER BOARD}",
    "\uffff",
    "k" * 1024,
]


@pytest.fixture(scope="module")
def network(local_cloudflare: CloudflareApi) -> Iterator[FaultyStore]:
    with faulty_store(local_cloudflare.url) as running:
        yield running


@pytest.fixture
def rest(
    network: FaultyStore, cloudflare_api: CloudflareApi, settings: Settings
) -> Iterator[FaultyStore]:
    """The only way to Cloudflare's API, without rules yet."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "API_URL": network.url,
        "KEY_FORMATS": KEY_FORMATS,
    }
    network.requests.clear()
    yield network
    network.rules.clear()
    assert {request.method for request in network.requests} <= {"GET"}


@pytest.fixture(scope="module")
def two_objects(local_r2: LocalR2) -> Iterator[Bucket]:
    """In a bucket that no database has connected."""
    bucket = Bucket(local_r2, BUCKETS[1])
    bucket.wipe()
    bucket.put("p/1", "p/2")
    yield bucket
    bucket.wipe()


def is_asked(prefix: str) -> Callable[[Request], bool]:
    return lambda request: request.query.get("prefix") == prefix


def under(prefix: str) -> Callable[[Request], bool]:
    return lambda request: request.query.get("prefix", "").startswith(prefix)


def altered(change: Callable[[dict[str, Any]], object]) -> Rule:
    """The API's own answer, with something changed."""

    def rule(request: Request, forward: Forward) -> Reply:
        reply = forward()
        content = json.loads(reply.body)
        change(content)
        return replace(reply, body=json.dumps(content).encode())

    return rule


def shows(key: str) -> Rule:
    entry = {"key": key, "size": 7, "etag": "e", "last_modified": "2026-01-01T00:00:00.000Z"}
    by_key = itemgetter("key")
    return altered(
        lambda content: content.update(result=sorted([*content["result"], entry], key=by_key))
    )


HIDES = altered(lambda content: content["result"].clear())


def listed(bucket: Bucket, prefix: str = "") -> set[str]:
    return {o.key for page in api_pages(bucket.name, prefix) for o in page}


def crosscheck_message(cleanup: Cleanup) -> str:
    """What the timeline says of the crosscheck."""
    return cleanup.events.filter(message__contains="Cloudflare's own API").get().message


# The listing


def test_a_listing_is_complete_and_the_same_as_over_s3(
    bucket: Bucket, rest: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(*STRANGE)
    monkeypatch.setattr("storage_audit.bucket.cloudflare_api.PAGE_SIZE", 3)
    ours = [o for page in api_pages(bucket.name, "") for o in page]
    assert ours == [o for page in listing.object_pages(bucket.name, "") for o in page]
    assert {o.key for o in ours} == {*STRANGE, MARKER_KEY}
    assert len(rest.requests) == 5


def test_a_prefix_is_sent_as_it_is(bucket: Bucket, rest: FaultyStore) -> None:
    bucket.put(*STRANGE)
    # Local R2 itself finds nothing under a NUL.
    for key in set(STRANGE) - {"nul\0"}:
        assert key in listed(bucket, key)
    assert listed(bucket, "a b+c%20&") == {STRANGE[0]}


LIES: dict[str, Reply | Rule] = {
    "cut short": altered(lambda c: c["result_info"].update(is_truncated=True, cursor="")),
    "no cursor and a full page": altered(lambda c: c.update(result_info={})),
    "gets nowhere": altered(lambda c: c["result_info"].update(is_truncated=True, cursor="c")),
    "nothing and more": altered(
        lambda c: c.update(result=[], result_info={"is_truncated": True, "cursor": "c"})
    ),
    "out of order": altered(lambda c: c["result"].reverse()),
    "outside": shows("elsewhere"),
    "half a letter": altered(lambda c: c["result"][-1].update(key="p/\ud800")),
    "no key": altered(lambda c: c["result"][0].pop("key")),
    "no number": altered(lambda c: c["result"][0].update(size="7")),
    "a long ETag": altered(lambda c: c["result"][0].update(etag="e" * 201)),
    "NUL in an ETag": altered(lambda c: c["result"][0].update(etag="a\0b")),
    "a number below zero": altered(lambda c: c["result"][0].update(size=-1)),
    "a number of more than 18 digits": altered(lambda c: c["result"][0].update(size=10**18)),
    "a long key": altered(lambda c: c["result"][1].update(key="p/2" + "x" * 2500)),
    "no time": altered(lambda c: c["result"][0].update(last_modified="today")),
    "no list": altered(lambda c: c.update(result=None)),
    "an object for a list": altered(lambda c: c.update(result={})),
    "a word for a list": altered(lambda c: c.update(result="")),
    "more than was asked for": shows("p/3"),
    "folders": altered(lambda c: c["result_info"].update(delimited=["p/"])),
    "no page": altered(lambda c: c.pop("result_info")),
    "a list for a page": altered(lambda c: c.update(result_info=[])),
    "an end in words": altered(lambda c: c["result_info"].update(is_truncated="false")),
    "an end in digits": altered(lambda c: c["result_info"].update(is_truncated=0)),
    "an end and a way on": altered(
        lambda c: c["result_info"].update(is_truncated=False, cursor="c")
    ),
    "no end": altered(lambda c: c["result_info"].update(is_truncated=None)),
    "a number for a cursor": altered(lambda c: c["result_info"].update(cursor=7)),
    "a truth for a number": altered(lambda c: c["result"][0].update(size=True)),
    "success in words": altered(lambda c: c.update(success="true")),
    "success and errors": altered(lambda c: c.update(errors=[{"code": 10001, "message": "no"}])),
    "no success": altered(lambda c: c.update(success=False)),
    "no object": Reply(200, b"[]"),
    "HTML": Reply(200, b"<html>", (("Content-Type", "text/html"),)),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_believed_is_an_error(
    two_objects: Bucket, rest: FaultyStore, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    assert listed(two_objects) == {"p/1", "p/2"}
    monkeypatch.setattr("storage_audit.bucket.cloudflare_api.PAGE_SIZE", 2)
    rest.rules.append(rule_for(is_asked("p/"), LIES[lie]))
    with pytest.raises(InvalidResponse):
        listed(two_objects, "p/")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (
            Reply(401, b'{"errors": [{"code": 10000, "message": "Authentication error"}]}'),
            BucketForbidden,
        ),
        (Reply(403, b'{"errors": [{"code": 10000, "message": "Authentication error"}]}'), Refused),
        (
            Reply(400, b'{"errors": [{"code": 6003, "message": "Invalid headers"}]}'),
            BucketForbidden,
        ),
        (Reply(404, b'{"errors": [{"code": 10006, "message": "No bucket"}]}'), BucketForbidden),
        (Reply(429, b"{}", (("Retry-After", "300"),)), Overloaded),
        (Reply(503, b'{"errors": "none"}'), Overloaded),
        (Reply(500, b"<html>"), Unavailable),
        (RESET_REPLY, Unavailable),
    ],
)
def test_an_error_is_told_by_its_kind_and_asked_once(
    two_objects: Bucket, rest: FaultyStore, reply: Reply, kind: type[StoreError]
) -> None:
    rest.rules.append(lambda request, forward: reply)
    with pytest.raises(StoreError) as caught:
        listed(two_objects)
    assert type(caught.value) is kind
    assert caught.value.retry_after == (300 if reply.status == 429 else 0)
    assert ("CLOUDFLARE_API_TOKEN" in str(caught.value)) == issubclass(kind, Refused)
    assert len(rest.requests) == 1


def test_the_token_and_the_jurisdiction_are_sent_and_no_other_credentials(
    two_objects: Bucket, rest: FaultyStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_KEY", "k")
    monkeypatch.setenv("CLOUDFLARE_EMAIL", "e@example.com")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"JURISDICTION": "eu"}
    with pytest.raises(BucketForbidden, match="R2_JURISDICTION"):
        listed(two_objects)
    headers = {name.lower(): value for name, value in rest.requests[0].headers.items()}
    assert headers["authorization"] == f"Bearer {settings.STORAGE_AUDIT['API_TOKEN']}"
    assert headers["cf-r2-jurisdiction"] == "eu"
    assert not {"x-auth-key", "x-auth-email"} & set(headers)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("API_TOKEN", "set CLOUDFLARE_API_TOKEN"),
        ("ACCOUNT_ID", "Set CLOUDFLARE_ACCOUNT_ID"),
        ("SDK", "pip install cloudflare"),
    ],
)
def test_what_is_missing_is_said(
    bucket: Bucket,
    rest: FaultyStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    advice: str,
) -> None:
    if missing == "SDK":
        monkeypatch.setitem(sys.modules, "cloudflare", None)
    else:
        settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {missing: ""}
    with pytest.raises(Refused, match=advice):
        listed(bucket)
    record_deleted_projects("proj_1")
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert crosscheck_message(cleanup).startswith("Cloudflare's own API was not checked.")
    assert advice in crosscheck_message(cleanup)
    assert not rest.requests


# The verification


def test_both_show_the_same(bucket: Bucket, rest: FaultyStore) -> None:
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY, FLAT_KEY, "odd/key")
    track_key(bucket, "odd/key", "proj_1")
    assert crosscheck_message(verify_project("proj_1")) == SAME % 3
    cleanup = run_until_idle(requests.request_cleanup_verification(clean_up_project("proj_1")))
    assert cleanup.status == Status.CLEAN
    assert cleanup.message == "0 leftover, 3 confirmed gone."
    assert crosscheck_message(cleanup) == SAME % 0
    bucket.put("odd/key")
    again = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert again.message == "1 leftover, 2 confirmed gone."
    assert crosscheck_message(again) == SAME % 1


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("proj_1_", FLAT_KEY),
        ("proj_1_", "proj_1_x_s1_media.mp4"),
        ("proj_1_", "proj_1_\0_media.mp4"),
        ("odd/key", "odd/key"),
    ],
)
def test_what_only_the_api_shows_is_not_clean(
    bucket: Bucket, rest: FaultyStore, where: str, key: str
) -> None:
    create_projects("proj_1", "proj_1_x")
    bucket.put(FLAT_KEY, "odd/key")
    track_key(bucket, "odd/key", "proj_1")
    cleanup = clean_up_project("proj_1")
    rest.rules.append(rule_for(is_asked(where), shows(key)))
    cleanup = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert cleanup.status == Status.DIFFERS
    assert cleanup.failed == 1
    name = listing.escape_key(key)
    assert read_outcomes(cleanup)[name] == "failed"
    assert "own API shows" in read_reason(cleanup, name)
    assert "shows 1 file that S3 does not show" in crosscheck_message(cleanup)
    assert crosscheck_message(cleanup) in cleanup.message


def test_of_a_live_project_too(bucket: Bucket, rest: FaultyStore) -> None:
    kept = bucket.upload("proj_1")
    track_key(bucket, FLAT_KEY, "proj_1")
    rest.rules.append(rule_for(under("proj_1_"), shows(FLAT_KEY)))
    cleanup = verify_project("proj_1")
    assert read_outcomes(cleanup) == {FLAT_KEY: "failed"}
    assert "own API shows" in read_reason(cleanup, FLAT_KEY)
    assert cleanup.message.startswith("1 as expected, 0 missing, 0 untracked. Cloudflare's own API")
    assert bucket.keys() == {kept}


def test_what_it_shows_once_and_not_again_raises_no_doubt(
    bucket: Bucket, rest: FaultyStore
) -> None:
    record_deleted_projects("proj_1")
    rest.rules.append(rule_for(under("proj_1_"), shows(FLAT_KEY), times=1))
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not cleanup.items.exists()


def test_what_came_between_the_two_listings_counts_as_listed(
    bucket: Bucket, rest: FaultyStore
) -> None:
    record_deleted_projects("proj_1")
    rest.rules.append(rule_for(under("proj_1_"), run_before(lambda: bucket.put(FLAT_KEY)), times=1))
    cleanup = verify_project("proj_1")
    assert cleanup.message == "1 leftover, 0 confirmed gone."
    assert read_reason(cleanup, FLAT_KEY) == "Still in the bucket. Clean up the project again."


def test_what_came_to_a_live_project_is_untracked(bucket: Bucket, rest: FaultyStore) -> None:
    create_projects("proj_1")
    rest.rules.append(rule_for(under("proj_1_"), run_before(lambda: bucket.put(FLAT_KEY)), times=1))
    assert "0 as expected, 0 missing, 1 untracked" in verify_project("proj_1").message


NUL = "proj_1_\0_media.mp4"
LOOK_ALIKE = listing.escape_key(NUL)


@pytest.mark.parametrize(("there", "only"), [(NUL, LOOK_ALIKE), (LOOK_ALIKE, NUL)])
def test_key_with_a_nul_and_its_look_alike_are_two_files(
    bucket: Bucket, rest: FaultyStore, there: str, only: str
) -> None:
    record_deleted_projects("proj_1")
    bucket.put(there)
    rest.rules.append(rule_for(is_asked("proj_1_"), shows(only)))
    cleanup = verify_project("proj_1")
    reasons = dict(cleanup.items.values_list("escaped", "reason"))
    assert "own API shows" in reasons.pop(only == NUL)
    assert "own API shows" not in reasons.pop(there == NUL)
    assert "shows 1 file that S3 does not show" in crosscheck_message(cleanup)


def test_look_alike_that_came_between_the_two_listings_hides_no_doubt(
    bucket: Bucket, rest: FaultyStore
) -> None:
    record_deleted_projects("proj_1")
    came = rule_for(is_asked("proj_1_"), run_before(lambda: bucket.put(LOOK_ALIKE)), times=1)
    rest.rules += [came, rule_for(is_asked("proj_1_"), shows(NUL))]
    cleanup = verify_project("proj_1")
    reasons = dict(cleanup.items.values_list("escaped", "reason"))
    assert "own API shows" in reasons.pop(True)
    assert reasons.pop(False).startswith("Still in the bucket.")


def test_key_with_a_nul_is_not_listed_at_the_place_of_its_look_alike(
    bucket: Bucket, rest: FaultyStore
) -> None:
    create_projects("proj_1")
    cleanup, name = clean_up_project("proj_1"), listing.escape_key("odd/a\0b")
    facts = {"key": name, "identity": name, "escaped": True, "found_in": "both"}
    cleanup.items.create(outcome="already_gone", **facts)
    bucket.put(name)
    cleanup = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert cleanup.message == "0 leftover, 1 confirmed gone."
    assert crosscheck_message(cleanup).endswith("Files not checked there: 1.")


def test_a_token_that_is_none_makes_no_verification_fail(
    bucket: Bucket, rest: FaultyStore, settings: Settings
) -> None:
    record_deleted_projects("proj_1")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "API_TOKEN": "t\N{LATIN SMALL LETTER O WITH DIAERESIS}k of eight"
    }
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert "CLOUDFLARE_API_TOKEN contains invalid characters" in crosscheck_message(cleanup)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NO_PROXY", "127.0.0.1,[::1]"),
        ("HTTPS_PROXY", "http://svc:pw/ord@127.0.0.1:3128"),
        ("HTTPS_PROXY", "ftp://127.0.0.1:1"),
    ],
)
def test_proxy_setting_that_httpx_does_not_understand_makes_no_verification_fail(
    bucket: Bucket, rest: FaultyStore, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Its error quotes the setting, so only its name is shown."""
    record_deleted_projects("proj_1")
    monkeypatch.setenv(name, value)
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert crosscheck_message(cleanup).startswith("Cloudflare's own API gave no usable answer")
    assert "Check HTTPS_PROXY" in crosscheck_message(cleanup) and "pw" not in crosscheck_message(
        cleanup
    )
    assert not rest.requests


def test_what_only_s3_shows_is_told_and_changes_nothing(bucket: Bucket, rest: FaultyStore) -> None:
    kept = bucket.upload("proj_1")
    bucket.put("odd/key")
    track_key(bucket, "odd/key", "proj_1")
    rest.rules.append(rule_for(lambda request: not is_asked(MARKER_KEY)(request), HIDES))
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert cleanup.message == "2 as expected, 0 missing, 0 untracked."
    assert (
        crosscheck_message(cleanup) == "Cloudflare's own API does not show 2 files that S3 shows."
    )
    assert bucket.keys() == {kept, "odd/key"}


@pytest.mark.parametrize(
    ("where", "lie", "why"),
    [
        ("proj_", LIES["cut short"], "incomplete"),
        ("proj_", Reply(401, b"{}"), "401"),
        ("proj_", Reply(429, b"{}"), "429"),
        ("proj_", RESET_REPLY, "Can't reach"),
        (MARKER_KEY, HIDES, "marker"),
    ],
)
def test_an_api_that_fails_makes_a_verification_neither_fail_nor_clean(
    bucket: Bucket, rest: FaultyStore, where: str, lie: Reply | Rule, why: str
) -> None:
    record_deleted_projects("proj_1", "proj_2")
    bucket.put("proj_2_s1_media.mp4")
    rest.rules.append(rule_for(under(where), lie))
    clean, leftover = verify_project("proj_1"), verify_project("proj_2")
    assert (clean.status, clean.message) == (Status.CLEAN, "0 leftover, 0 confirmed gone.")
    assert leftover.message == "1 leftover, 0 confirmed gone."
    for cleanup in (clean, leftover):
        assert crosscheck_message(cleanup).startswith("Cloudflare's own API gave no usable answer")
        assert why in crosscheck_message(cleanup)


def test_another_bucket_raises_no_doubt(bucket: Bucket, rest: FaultyStore) -> None:
    record_deleted_projects("proj_1")
    other = altered(lambda content: content["result"][0].update(etag="other"))
    rest.rules += [
        rule_for(is_asked(MARKER_KEY), other),
        rule_for(under("proj_1_"), shows(FLAT_KEY)),
    ]
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert "marker" in crosscheck_message(cleanup)


def test_a_listing_that_is_empty_from_now_on_is_not_called_the_same(
    bucket: Bucket, rest: FaultyStore
) -> None:
    record_deleted_projects("proj_1")
    rest.rules.append(rule_for(is_asked(MARKER_KEY), lambda request, forward: forward(), HIDES))
    assert "marker" in crosscheck_message(verify_project("proj_1"))


def test_doubt_stays_though_the_api_fails_later(bucket: Bucket, rest: FaultyStore) -> None:
    record_deleted_projects("proj_1")
    rest.rules.append(rule_for(under("proj_1_"), shows(FLAT_KEY)))
    rest.rules.append(rule_for(under("projects/"), RESET_REPLY))
    cleanup = verify_project("proj_1")
    assert read_outcomes(cleanup) == {FLAT_KEY: "failed"}
    assert "no usable answer" in crosscheck_message(cleanup)


def test_trouble_with_s3_is_no_trouble_of_the_crosscheck(
    store: FaultyStore, bucket: Bucket, rest: FaultyStore
) -> None:
    record_deleted_projects("proj_1")
    rest.rules.append(rule_for(under("proj_1_"), shows(FLAT_KEY)))
    rest.rules.insert(
        0, run_before(lambda: store.rules.append(rule_for(is_listing_under(""), Reply(503))))
    )
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert cleanup.next_attempt_at is not None
    assert not cleanup.events.filter(message__contains="own API").exists()


def test_it_takes_no_longer_than_it_may(
    bucket: Bucket, rest: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put("odd/1", "odd/2")
    track_key(bucket, "odd/1", "proj_1")
    track_key(bucket, "odd/2", "proj_1")
    monkeypatch.setattr(cloudflare_crosscheck, "MAX_LONE_KEYS", 1)
    assert crosscheck_message(verify_project("proj_1")).endswith("Files not checked there: 1.")
    with pytest.raises(StoreError, match="outside"):
        list_leftovers(bucket)
    monkeypatch.setattr(cloudflare_crosscheck, "CROSSCHECK_LIMIT_SECONDS", -1.0)
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert "took longer" in crosscheck_message(cleanup)


class Clock:
    """Stands still, unless a test says otherwise."""

    def __init__(self) -> None:
        self.now = monotonic_seconds()

    def goes_on(self, seconds: float) -> Callable[[], None]:
        def go_on() -> None:
            self.now += seconds

        return go_on


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (cloudflare_crosscheck, s3):
        monkeypatch.setattr(module, "monotonic_seconds", lambda: clock.now)
    return clock


def test_it_takes_no_longer_for_keys_that_stand_alone(
    bucket: Bucket, rest: FaultyStore, clock: Clock
) -> None:
    keys = ["odd/1", "odd/2", "odd/3"]
    bucket.put(*keys)
    for key in keys:
        there = s3.head_object(bucket.name, key)._asdict()
        track_key(bucket, there.pop("key"), None, **there)
    R2Object.objects.all().delete()
    cleanup = Cleanup.objects.get()
    assert run_until_idle(cleanup).status == Status.CLEAN
    rest.rules.append(
        rule_for(
            under("odd/"),
            run_before(clock.goes_on(cloudflare_crosscheck.CROSSCHECK_LIMIT_SECONDS + 1)),
        )
    )
    assert "took longer" in crosscheck_message(
        run_until_idle(requests.request_cleanup_verification(cleanup))
    )
    assert len([request for request in rest.requests if under("odd/")(request)]) == 1


# What remains


def list_leftovers(bucket: Bucket, project_id: str = "proj_1", seconds: float = 60) -> list[str]:
    return cloudflare_crosscheck.list_project_keys(project_id, bucket.name, seconds=seconds)


def test_crosscheck_counts_what_a_cleanup_would_delete(bucket: Bucket, rest: FaultyStore) -> None:
    create_projects("proj_1_x")
    record_deleted_projects("proj_1")
    bucket.put(
        HIERARCHICAL_KEY, FLAT_KEY, "proj_1_x_s1_media.mp4", "proj_10_s1_media.mp4", "odd/key"
    )
    track_key(bucket, "odd/key", "proj_1")
    track_key(bucket, "odd/gone", "proj_1")
    assert set(list_leftovers(bucket)) == {HIERARCHICAL_KEY, FLAT_KEY, "odd/key"}
    assert list_leftovers(bucket, "proj_2") == []
    with pytest.raises(CannotConclude):
        list_leftovers(bucket, "no project id")
    rest.rules.append(rule_for(is_asked(MARKER_KEY), HIDES))
    with pytest.raises(InvalidResponse, match="the bucket is another"):
        list_leftovers(bucket)


def test_an_empty_later_listing_does_not_prove_that_nothing_is_left(
    bucket: Bucket, rest: FaultyStore
) -> None:
    bucket.put(HIERARCHICAL_KEY)
    rest.rules.append(rule_for(is_asked(MARKER_KEY), lambda request, forward: forward(), HIDES))
    with pytest.raises(InvalidResponse, match="differs from the one that S3 shows"):
        list_leftovers(bucket)


def test_when_the_time_is_over_nothing_more_is_asked(
    store: FaultyStore, bucket: Bucket, rest: FaultyStore, clock: Clock
) -> None:
    def asks_in_vain(seconds: float) -> tuple[int, int]:
        """How often S3 and the API were asked."""
        store.requests.clear()
        rest.requests.clear()
        with pytest.raises(DeadlinePassed):
            list_leftovers(bucket, seconds=seconds)
        return len(store.requests), len(rest.requests)

    late = run_before(clock.goes_on(1))
    assert asks_in_vain(-1) == (0, 0)
    store.rules.append(rule_for(is_listing_under(MARKER_KEY), late))
    assert asks_in_vain(0.5)[1] == 0
    store.rules.clear()
    for asked in (1, 2):
        rest.rules[:] = [rule_for(is_anything, *[in_time] * (asked - 1), late)]
        assert asks_in_vain(0.5)[1] == asked


def in_time(request: Request, forward: Forward) -> Reply:
    return forward()
