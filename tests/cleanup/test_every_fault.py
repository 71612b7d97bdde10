"""Every fault, at every step of a cleanup, on both stores: nothing wrong goes, nothing is called
gone that is there, and afterwards the cleanup ends clean."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Event
from time import monotonic, sleep
from typing import TYPE_CHECKING

import pytest
from botocore.retries.standard import ExponentialBackoff

from devtools.http_reply import Reply
from devtools.store import Store
from storage_audit.bucket import s3
from storage_audit.cleanup import adaptive_batch
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.ownership import bucket_connection, bucket_marker
from tests.faults import kinds
from tests.faults.kinds import FAULT_KINDS, confirm_without_deleting
from tests.faults.matching import (
    Matches,
    is_abort,
    is_delete_batch,
    is_listing,
    is_listing_under,
    is_marker,
    is_uploads_listing,
    rule_for,
    sent_keys,
)
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.network import faulty_network
from tests.promises import (
    Status,
    check_promises,
    create_projects,
    read_outcomes,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
)
from tests.real_bucket import Bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.only_on("postgresql")  # about the store; the crash job tries SQLite too

PREFIX = "projects/proj_1/scenes/"
KEYS = {f"{PREFIX}s1/media/{n}.mp4" for n in range(5)}
OTHERS = {"projects/proj_10/scenes/s1/media/0.mp4", "README.txt"}
UPLOAD = f"{PREFIX}s1/media/large.mp4"
READ_TIMEOUT = 0.5  # seconds


Seen = Sequence[Request]
is_marker_listing = is_listing_under(bucket_marker.MARKER_PREFIX)


@dataclass(frozen=True)
class Step:
    """`sample` is a request of the step that the most faults fit; `when` tells from all requests
    of the attempt, the one in question included, whether it is time."""

    sample: str
    matches: Matches
    when: Callable[[Seen], bool] = bool

    def fits(self, name: str) -> bool:
        method, target = self.sample.split()
        body = b"<Key>a</Key>" if method == "POST" else b""
        return FAULT_KINDS[name].fits(Request(method, target, {}, body))


def after_a_deletion(seen: Seen) -> bool:
    return any(map(is_delete_batch, seen))


def after_verification(seen: Seen) -> bool:
    """After a proof, and at the end of a look at all that the cleanup covers."""
    before = next((request for request in reversed(seen) if not is_marker_listing(request)), None)
    looked = before is not None and is_listing(before) and before.query.get("prefix")
    return bool(looked) and any(map(is_listing_under(""), seen))


LATER_PAGE = "GET /b?list-type=2&continuation-token=t"
LISTING_STEPS = {
    "marker": Step("GET /b/installation.json", is_marker),
    "plan": Step(LATER_PAGE, is_listing_under(PREFIX)),
    "proof": Step("GET /b?list-type=2", is_listing_under("")),
    "verify": Step(LATER_PAGE, is_listing_under(PREFIX), after_a_deletion),
}
LAST_MARKER = Step("GET /b?list-type=2", is_marker_listing, after_verification)
UPLOADS = Step("GET /b?uploads", is_uploads_listing)
DELETE = Step("POST /b?delete", is_delete_batch)
ABORT = Step("DELETE /b/a?uploadId=u", is_abort)
NO_END = "<NextKeyMarker>a</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
PAST = "page-of-the-past"
STORES = ["local_r2", "seaweedfs"]
on_both_stores = pytest.mark.parametrize("network", STORES, indirect=True)
# Local R2 does not list multipart uploads.
on_seaweedfs = pytest.mark.parametrize("network", STORES[1:], indirect=True)


def faults(step: Step) -> list[str]:
    """Those of two keys, or of an earlier answer, change nothing about the marker's listing."""
    same = {PAST, "page-backwards"} if step is LAST_MARKER else set[str]()
    return [name for name in FAULT_KINDS if name not in same and step.fits(name)]


@dataclass
class Network:
    """`finished` are the requests that were answered, with what the store said."""

    origin: Store
    proxy: FaultyStore
    finished: list[tuple[Request, Reply | None]]
    impatient: "S3Client"

    def reached(self, matches: Matches) -> list[Request]:
        return [request for request, of_store in self.finished if of_store and matches(request)]


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    origin: Store = request.getfixturevalue(request.param)
    with faulty_network(origin) as proxy:
        finished: list[tuple[Request, Reply | None]] = []
        proxy.observers.append(lambda request, of_store, _: finished.append((request, of_store)))
        yield Network(origin, proxy, finished, impatient_client())


@pytest.fixture
def bucket(network: Network, transactional_db: None) -> Iterator[Bucket]:
    found = Bucket(network.origin)
    found.wipe()
    bucket_connection.connect_bucket(found.name)
    found.put(*KEYS, *OTHERS)
    network.proxy.requests.clear()
    network.finished.clear()
    yield found
    network.proxy.rules.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two keys, and no pauses between tries."""
    monkeypatch.setattr(s3, "PAGE_SIZE", 2)
    monkeypatch.setattr(adaptive_batch, "MAX_ERRORS_AT_SLOWEST", 2)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)


@pytest.fixture
def lateness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """What is late comes when this event is set."""
    comes = Event()
    monkeypatch.setattr(kinds, "sleep", lambda seconds: comes.wait(60))
    yield comes
    comes.set()


class Struck:
    """A rule for this fault at this step, which counts."""

    def __init__(self, network: Network, step: Step, name: str) -> None:
        self.count = 0
        self._network, self._step, self._fault = network, step, FAULT_KINDS[name]
        self._before = len(network.proxy.requests)

    def __call__(self, request: Request, forward: Forward) -> Reply | None:
        if not (self._step.matches(request) and self._fault.fits(request)):
            return None
        if not self._step.when(list(self._network.proxy.requests)[self._before :]):
            return None
        self.count += 1  # Before the answer, which may be late.
        reply = self._fault.answer(request, forward)
        self.count -= reply is None
        return reply


@on_both_stores
@pytest.mark.parametrize("step", LISTING_STEPS.values(), ids=LISTING_STEPS)
def test_listing_under_each_fault_authorises_nothing(
    network: Network, bucket: Bucket, lateness: Event, step: Step
) -> None:
    create_projects("proj_1", "proj_10")
    cleanup = request_cleanup("proj_1")
    network.proxy.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    fails_under_each(cleanup, step, network, bucket, lateness)
    assert not network.reached(is_delete_batch)
    assert bucket.keys() == KEYS | OTHERS
    heal(cleanup, network, bucket)


@on_both_stores
def test_listing_that_ends_at_an_unreadable_marker_proves_nothing(
    network: Network, bucket: Bucket, lateness: Event
) -> None:
    create_projects("proj_1", "proj_10")
    cleanup = request_cleanup("proj_1")
    fails_under_each(cleanup, LAST_MARKER, network, bucket, lateness)
    assert bucket.keys() == OTHERS
    heal(cleanup, network, bucket)


@on_seaweedfs
def test_listing_of_uploads_under_each_fault_authorises_nothing(
    network: Network, bucket: Bucket, lateness: Event
) -> None:
    create_projects("proj_1", "proj_10")
    begin_upload(network)
    cleanup = request_cleanup("proj_1")
    fails_under_each(cleanup, UPLOADS, network, bucket, lateness)
    assert not network.reached(is_abort)
    assert bucket.keys() == KEYS | OTHERS
    heal(cleanup, network, bucket)
    assert uploads(network) == []


@on_both_stores
@pytest.mark.parametrize("name", faults(DELETE))
def test_deletion_under_a_fault_is_believed_only_when_seen(
    network: Network, bucket: Bucket, lateness: Event, name: str
) -> None:
    create_projects("proj_1", "proj_10")
    cleanup = request_cleanup("proj_1")
    with struck_by(name, DELETE, network, lateness) as struck:
        cleanup = attempt(cleanup, struck)
        nothing_wrong(network, bucket)
        assert cleanup.status == Status.RETRYING or not bucket.keys() & KEYS
    nothing_wrong(network, bucket)
    heal(cleanup, network, bucket)


@on_seaweedfs
@pytest.mark.parametrize("name", faults(ABORT))
def test_upload_whose_abortion_met_a_fault_is_aborted_by_the_follow_up(
    network: Network, bucket: Bucket, lateness: Event, name: str
) -> None:
    create_projects("proj_1", "proj_10")
    begin_upload(network)
    cleanup = request_cleanup("proj_1")
    with struck_by(name, ABORT, network, lateness) as struck:
        cleanup = attempt(cleanup, struck)
        nothing_wrong(network, bucket)
    assert cleanup.events.filter(message__startswith="Unfinished upload not aborted").exists()
    heal(cleanup, network, bucket)
    run_follow_up(cleanup)
    assert uploads(network) == []


@on_both_stores
@pytest.mark.parametrize("markers", ["", NO_END], ids=["none", "the same"])
def test_listing_of_uploads_that_does_not_get_on_is_no_listing(
    network: Network, bucket: Bucket, markers: str
) -> None:
    create_projects("proj_1", "proj_10")

    def page(request: Request, forward: Forward) -> Reply:
        echo = f"<Bucket>tests</Bucket><Prefix>{request.query['prefix']}</Prefix>"
        more = "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        result = "ListMultipartUploadsResult"
        return Reply(200, f"<{result}>{echo}{more}{markers}</{result}>".encode())

    network.proxy.rules.append(rule_for(is_uploads_listing, page))
    cleanup = run_until_idle(request_cleanup("proj_1"))
    assert cleanup.status == Status.RETRYING and "listing of unfinished uploads" in cleanup.message
    assert bucket.keys() == KEYS | OTHERS
    heal(cleanup, network, bucket)


@on_both_stores
def test_page_from_before_an_upload_does_not_hide_the_file(
    network: Network, bucket: Bucket
) -> None:
    create_projects("proj_2")
    cleanup = run_until_idle(request_cleanup("proj_2"))
    key = "projects/proj_2/scenes/s1/media/0.mp4"
    bucket.put(key)
    network.proxy.rules.append(rule_for(is_listing, FAULT_KINDS[PAST].answer))
    check = run_follow_up(cleanup)
    assert (check.status, check.items.count()) == (Status.RETRYING, 0)
    network.proxy.rules.clear()
    check = run_again(check)
    assert (check.status, read_outcomes(check)) == (Status.CLEAN, {key: "deleted"})


def fails_under_each(
    cleanup: Cleanup, step: Step, network: Network, bucket: Bucket, lateness: Event
) -> None:
    """One attempt under each fault: all fail, and say and do nothing."""
    for name in faults(step):
        with struck_by(name, step, network, lateness) as struck:
            cleanup = attempt(cleanup, struck)
            assert cleanup.status in (Status.RETRYING, Status.FAILED), name
            assert cleanup.message, name
            assert set(read_outcomes(cleanup).values()) <= {"to_delete"}, name
            check_promises(bucket)


@contextmanager
def struck_by(name: str, step: Step, network: Network, lateness: Event) -> Iterator[Struck]:
    """Within, the fault strikes the step; after it, what was late has come."""
    struck = Struck(network, step, name)
    network.proxy.rules.insert(0, struck)
    lateness.clear()
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("late-"):
            patch.setattr(s3, "_build_s3_client", lru_cache(lambda *options: network.impatient))
        yield struck
    network.proxy.rules.remove(struck)
    lateness.set()
    eventually(lambda: len(network.finished) == len(network.proxy.requests))
    assert struck.count, f"{name} struck nothing"


def attempt(cleanup: Cleanup, struck: Struck) -> Cleanup:
    """Under the fault; again while an impatient client gives up before it."""
    for _attempt in range(50):
        cleanup = run_again(cleanup)
        if struck.count or cleanup.status == Status.CLEAN:
            break
    return cleanup


def impatient_client() -> "S3Client":
    """The application's, which waits for an answer for half a second, and tries once."""
    return s3._build_s3_client.__wrapped__(conf(), 1, READ_TIMEOUT, os.getpid())


def nothing_wrong(network: Network, bucket: Bucket) -> None:
    assert bucket.keys() >= OTHERS
    assert all(set(sent_keys(call)) <= KEYS for call in network.reached(is_delete_batch))
    check_promises(bucket)


def heal(cleanup: Cleanup, network: Network, bucket: Bucket) -> None:
    network.proxy.rules.clear()
    for _attempt in range(3):
        if cleanup.status != Status.CLEAN:
            cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys(KEYS, "deleted")
    assert bucket.keys() == OTHERS
    nothing_wrong(network, bucket)


def begin_upload(network: Network) -> None:
    network.origin.own_client.create_multipart_upload(Bucket="tests", Key=UPLOAD)
    assert uploads(network) == [UPLOAD]


def uploads(network: Network) -> list[str]:
    answer = network.origin.own_client.list_multipart_uploads(Bucket="tests")
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)
