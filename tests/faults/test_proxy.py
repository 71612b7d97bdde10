"""The faulty network itself: what it does to a client, and that it is honest otherwise."""

import hashlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection

from devtools.http_reply import Reply
from devtools.seaweedfs import SeaweedFS
from devtools.store import Store
from tests.faults import kinds
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import (
    is_delete_batch,
    is_listing,
    is_plain,
    rule_for,
    sent_keys,
)
from tests.faults.proxy import FaultyStore, Forward, Request, faulty_store
from tests.faults.seeded import SeededFaults
from tests.real_bucket import BUCKETS

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = BUCKETS[1]
KEYS = [f"a/{n}" for n in range(5)]
CHUNKED = {"Transfer-Encoding": "chunked"}
BROKEN = (HTTPClientError, NoConnection)


@pytest.fixture(scope="module", params=["local_r2", "seaweedfs"])
def origin(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(request.param)
    return store


@pytest.fixture(scope="module")
def running(origin: Store) -> Iterator[FaultyStore]:
    with faulty_store(origin.environment["R2_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(origin: Store, running: FaultyStore) -> "S3Client":
    return origin.client(running.url)


@pytest.fixture
def proxy(origin: Store, running: FaultyStore) -> Iterator[FaultyStore]:
    for key in origin.keys(BUCKET):
        origin.remove(key, BUCKET)
    for key in KEYS:
        origin.put(key, b"content", BUCKET)
    running.requests.clear()
    yield running
    running.rules.clear()
    running.observers.clear()


def spoil(proxy: FaultyStore, name: str) -> None:
    proxy.rules.append(rule_for(FAULT_KINDS[name].fits, FAULT_KINDS[name].answer))


def listed(client: "S3Client", **how: Any) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, **how)["Contents"]]


def delete(client: "S3Client", *keys: str) -> Any:
    return client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})


def read(client: "S3Client", key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def presigned(client: "S3Client", call: str, **what: str) -> str:
    """The target of a request that anybody can send."""
    url = client.generate_presigned_url(call, Params={"Bucket": BUCKET, **what})
    return urlunsplit(urlsplit(url)._replace(scheme="", netloc=""))


def raw(proxy: FaultyStore, method: str, target: str, **given: Any) -> tuple[int, bytes]:
    """By a client that knows no S3 and repairs nothing."""
    connection = HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)
    try:
        connection.request(method, target, **given)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_without_rules_everything_passes_unchanged(
    origin: Store, proxy: FaultyStore, client: "S3Client"
) -> None:
    for key in ("a+b %41&=é", "deep/er/é.mp4", "%2F"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"here", Metadata={"note": "kept"})
        answer = client.get_object(Bucket=BUCKET, Key=key)
        assert (answer["Body"].read(), answer["Metadata"]) == (b"here", {"note": "kept"})
        assert client.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == 4
        assert key in listed(client, Prefix=key[:2])
        delete(client, key)
    assert set(origin.keys(BUCKET)) == set(KEYS)


def test_signatures_are_still_demanded(origin: Store, proxy: FaultyStore) -> None:
    unsigned = f"{urlsplit(proxy.url).path}/{BUCKET}/{KEYS[0]}"
    assert raw(proxy, "GET", unsigned)[0] in (400, 401, 403)
    client = origin.client(proxy.url)
    client.meta.events.register("before-send.s3", forge)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.get_object(Bucket=BUCKET, Key=KEYS[0])


def forge(request: Any, **kwargs: Any) -> None:
    signed = request.headers["Authorization"].decode()
    request.headers["Authorization"] = signed[:-1] + ("0" if signed[-1] != "0" else "1")


def test_bodies_larger_than_what_is_kept_pass_both_ways(
    origin: Store, proxy: FaultyStore, client: "S3Client", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.proxy.MAX_BODY_BYTES", 1 << 20)
    body = bytes(range(256)) * (3 << 12)
    client.put_object(Bucket=BUCKET, Key="large", Body=body)
    received = client.get_object(Bucket=BUCKET, Key="large")["Body"].read()
    assert hashlib.sha256(received).digest() == hashlib.sha256(body).digest()
    (put,) = proxy.find_requests(lambda request: is_plain(request, "PUT"))
    assert put.body == b""


def test_chunked_bodies_pass(seaweedfs: SeaweedFS) -> None:
    """Local R2 takes none."""
    pieces = [b"one ", b"two ", b"three" * 40_000]
    with faulty_store(seaweedfs.environment["R2_ENDPOINT_URL"]) as proxy:
        target = presigned(seaweedfs.client(proxy.url), "put_object", Key="chunked")
        said = raw(proxy, "PUT", target, body=iter(pieces), encode_chunked=True, headers=CHUNKED)
    assert said == (200, b"")
    assert seaweedfs.read("chunked", BUCKET) == b"".join(pieces)


def test_a_connection_serves_many_requests(proxy: FaultyStore, client: "S3Client") -> None:
    connection = HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)
    ports = set()
    for _n in range(3):
        connection.request("GET", presigned(client, "list_objects_v2"))
        assert b"<KeyCount>5</KeyCount>" in connection.getresponse().read()
        assert connection.sock is not None
        ports.add(connection.sock.getsockname())
    connection.close()
    assert len(ports) == 1


def test_only_the_latest_requests_are_remembered(origin: Store, proxy: FaultyStore) -> None:
    with faulty_store(origin.environment["R2_ENDPOINT_URL"], kept_requests=2) as forgetful:
        client = origin.client(forgetful.url)
        for key in KEYS[:3]:
            read(client, key)
        assert [request.path.rpartition("/")[2] for request in forgetful.requests] == ["1", "2"]


def test_observer_is_told_of_both_answers(
    origin: Store, proxy: FaultyStore, client: "S3Client"
) -> None:
    told: list[tuple[Request, Reply | None, Reply]] = []
    proxy.observers.append(lambda *answers: told.append(answers))
    proxy.rules += [
        rule_for(is_delete_batch, FAULT_KINDS["reset-after"].answer),
        rule_for(is_listing, Reply(503)),
    ]
    with pytest.raises(BROKEN):
        delete(client, *KEYS[:2])
    with pytest.raises(ClientError):
        listed(client)
    client.get_object(Bucket=BUCKET, Key=KEYS[2])
    (deletion, obeyed, broken), (_listing, unasked, refused), (_read, passed, same) = told
    assert sent_keys(deletion) == KEYS[:2]
    assert obeyed is not None and (obeyed.status, broken.status) == (200, 0)
    assert unasked is None and refused.status == 503
    assert passed is same


def test_a_client_that_goes_away_and_one_that_speaks_no_http_stop_nothing(
    proxy: FaultyStore, client: "S3Client"
) -> None:
    address = urlsplit(proxy.url)
    for said in (b"", b"\0\n\n", b"PUT /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n123"):
        with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
            connection.sendall(said)
    assert listed(client) == KEYS


def test_a_store_that_is_down_is_a_broken_connection_until_it_is_back(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path, [BUCKET]) as store:
        store.put("kept", b"content")
        with faulty_store(store.environment["R2_ENDPOINT_URL"]) as proxy:
            client = store.client(proxy.url)
            statuses: list[int] = []
            proxy.observers.append(lambda request, of_store, reply: statuses.append(reply.status))
            assert listed(client) == ["kept"]
            store.kill()
            with pytest.raises(BROKEN):
                listed(client)
            assert statuses == [200, 0]
            store.restart()
            assert listed(client) == ["kept"]


@pytest.mark.parametrize(
    "name, status, code",
    [
        ("access-denied", 403, "AccessDenied"),
        ("no-such-bucket", 404, "NoSuchBucket"),
        ("request-timeout", 408, "RequestTimeout"),
        ("too-many-requests", 429, "TooManyRequests"),
        ("internal-error", 500, "InternalError"),
        ("slow-down", 503, "SlowDown"),
        ("redirect-301", 301, "PermanentRedirect"),
        ("redirect-307", 307, "TemporaryRedirect"),
        ("wrong-region", 400, "AuthorizationHeaderMalformed"),
        ("edge-520", 520, "520"),
        ("edge-524", 524, "524"),
        ("client-disconnect", 400, "ClientDisconnect"),
    ],
)
def test_refusals_have_the_code_of_the_store_and_do_nothing(
    origin: Store, proxy: FaultyStore, client: "S3Client", name: str, status: int, code: str
) -> None:
    spoil(proxy, name)
    calls: list[Callable[[], object]] = [
        lambda: listed(client),
        lambda: delete(client, *KEYS),
        lambda: read(client, KEYS[0]),
    ]
    for call in calls:
        with pytest.raises(ClientError) as refused:
            call()
        answer = refused.value.response
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
        assert answer["Error"]["Code"] == code
    assert set(origin.keys(BUCKET)) == set(KEYS)


def test_answers_of_the_edge_are_html(proxy: FaultyStore, client: "S3Client") -> None:
    spoil(proxy, "edge-520")
    status, body = raw(proxy, "GET", presigned(client, "list_objects_v2"))
    assert status == 520 and body.startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("name, body", [("empty-body", b""), ("html", kinds.HTML_BODY)])
def test_bodies_of_others_come_with_200(
    proxy: FaultyStore, client: "S3Client", name: str, body: bytes
) -> None:
    spoil(proxy, name)
    for call in ("list_objects_v2", "list_multipart_uploads"):
        assert raw(proxy, "GET", presigned(client, call)) == (200, body)


def test_truncated_xml_is_the_first_half_and_complete_by_its_length(
    proxy: FaultyStore, client: "S3Client"
) -> None:
    url = presigned(client, "list_objects_v2")
    _status, whole = raw(proxy, "GET", url)
    spoil(proxy, "truncated-xml")
    status, half = raw(proxy, "GET", url)
    assert status == 200 and 0 < len(half) < len(whole)
    assert re.sub(b"</?RequestId.*", b"", whole).startswith(half[:200])


def test_cut_short_breaks_in_the_middle(proxy: FaultyStore, client: "S3Client") -> None:
    spoil(proxy, "cut-short")
    for call, what in [("list_objects_v2", {}), ("get_object", {"Key": KEYS[0]})]:
        with pytest.raises(IncompleteRead) as broken:
            raw(proxy, "GET", presigned(client, call, **what))
        assert broken.value.partial and broken.value.expected


@pytest.mark.parametrize(
    "name, said, remains",
    [
        ("key-errors", "Errors", set(KEYS)),
        ("kept", "Deleted", set(KEYS)),
        ("denied", "Errors", set(KEYS[2:])),
    ],
)
def test_answers_for_keys_are_not_what_became_of_them(
    origin: Store,
    proxy: FaultyStore,
    client: "S3Client",
    name: str,
    said: str,
    remains: set[str],
) -> None:
    spoil(proxy, name)
    answer = delete(client, *KEYS[:2])
    assert [entry["Key"] for entry in answer[said]] == KEYS[:2]
    assert len(answer.keys() & {"Deleted", "Errors"}) == 1
    assert set(origin.keys(BUCKET)) == remains


@pytest.mark.parametrize("name, remains", [("reset-before", KEYS), ("reset-after", KEYS[2:])])
def test_resets_come_before_the_store_obeys_or_after(
    origin: Store, proxy: FaultyStore, client: "S3Client", name: str, remains: list[str]
) -> None:
    spoil(proxy, name)
    with pytest.raises(BROKEN):
        delete(client, *KEYS[:2])
    with pytest.raises(ConnectionResetError) as broken:
        raw(proxy, "GET", presigned(client, "list_objects_v2"))
    assert not isinstance(broken.value, RemoteDisconnected)  # which is a polite end
    assert list(origin.keys(BUCKET)) == remains


@pytest.mark.parametrize(
    "name, seconds", [("late-answer", "DELAY_SECONDS"), ("late-request", "HANG_SECONDS")]
)
def test_lateness_comes_before_the_store_obeys_or_after(
    origin: Store,
    proxy: FaultyStore,
    client: "S3Client",
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    seconds: str,
) -> None:
    slept: list[tuple[float, list[str]]] = []
    monkeypatch.setattr(kinds, "sleep", lambda s: slept.append((s, list(origin.keys(BUCKET)))))
    spoil(proxy, name)
    delete(client, *KEYS[:2])
    there = KEYS if name == "late-request" else KEYS[2:]
    assert slept == [(getattr(kinds, seconds), there)]
    assert list(origin.keys(BUCKET)) == KEYS[2:]


def test_pages_come_again_or_with_a_token_that_repeats(
    proxy: FaultyStore, client: "S3Client"
) -> None:
    first = client.list_objects_v2(Bucket=BUCKET, MaxKeys=2)
    token = first["NextContinuationToken"]
    spoil(proxy, "page-again")
    assert listed(client, MaxKeys=2) == KEYS[:2]
    assert listed(client, MaxKeys=2, ContinuationToken=token) == KEYS[:2]
    proxy.rules.clear()
    spoil(proxy, "page-same-token")
    for _n in range(2):
        second = client.list_objects_v2(Bucket=BUCKET, MaxKeys=2, ContinuationToken=token)
        assert (second["IsTruncated"], second["NextContinuationToken"]) == (True, token)
        assert [each["Key"] for each in second["Contents"]] == KEYS[2:4]


def test_pages_come_out_of_order_or_without_a_token(proxy: FaultyStore, client: "S3Client") -> None:
    spoil(proxy, "page-backwards")
    assert listed(client, MaxKeys=2) == KEYS[1::-1]
    proxy.rules.clear()
    spoil(proxy, "page-without-token")
    for pages in (2, 1000):
        page = client.list_objects_v2(Bucket=BUCKET, MaxKeys=pages)
        assert page["IsTruncated"] and "NextContinuationToken" not in page
        assert [each["Key"] for each in page["Contents"]] == KEYS[:pages]


def test_faults_strike_only_the_requests_that_they_fit(
    proxy: FaultyStore, client: "S3Client"
) -> None:
    for name in ("key-errors", "kept", "empty-body", "page-backwards"):
        spoil(proxy, name)
    assert read(client, KEYS[0]) == b"content"


RATES = {"slow-down": 0.2, "reset-before": 0.1, "page-backwards": 0.3}


def struck(seed: int, rates: dict[str, float], requests: list[Request]) -> list[int]:
    """The status that each gets; 200 where nothing strikes it."""
    seeded = SeededFaults(seed, rates)
    forward = Forward(lambda: Reply(200))
    return [(seeded(request, forward) or Reply(200)).status for request in requests]


def test_a_seed_repeats_itself_and_no_other(proxy: FaultyStore, client: "S3Client") -> None:
    read(client, KEYS[0])
    requests = list(proxy.requests) * 1000
    once = struck(7, RATES, requests)
    assert struck(7, RATES, requests) == once
    assert struck(8, RATES, requests) != once
    assert 150 < once.count(503) < 250
    assert 60 < once.count(0) < 140


def test_a_seeded_rule_counts_what_struck_and_can_be_switched_off(
    proxy: FaultyStore, client: "S3Client"
) -> None:
    seeded = SeededFaults(1, {"access-denied": 0.5, "page-again": 0.5})
    proxy.rules.append(seeded)
    for _n in range(20):
        try:
            listed(client)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
            seeded.counts["seen"] += 1
    assert seeded.counts["access-denied"] == seeded.counts["seen"] > 0
    assert seeded.counts["page-again"] == 0
    seeded.enabled = False
    before = seeded.counts.copy()
    for _n in range(20):
        listed(client)
    assert seeded.counts == before


@pytest.mark.parametrize("rates", [{"rain": 0.1}, {"html": -0.1}, {"html": 0.6, "kept": 0.6}])
def test_impossible_rates_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        SeededFaults(1, rates)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "tests.faults", *argv]


def test_by_hand_it_lists_the_faults() -> None:
    listing = subprocess.run(command("--list"), capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listing.stdout.splitlines()] == list(FAULT_KINDS)


def test_by_hand_it_strikes_and_counts(origin: Store, proxy: FaultyStore) -> None:
    upstream = origin.environment["R2_ENDPOINT_URL"]
    argv = command("--upstream", upstream, "--fault", "slow-down 0.5", "--fault", "html 0.5")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        client = origin.client(running.stdout.readline().strip())
        refused = 0
        for _n in range(20):
            try:
                read(client, KEYS[0])
            except ClientError:
                refused += 1
        running.send_signal(signal.SIGINT)
        printed = running.stdout.read().splitlines()
    assert running.returncode == 128 + signal.SIGINT
    assert [line.split() for line in printed[1:]] == [[str(refused), "slow-down"], ["0", "html"]]
    assert refused


@pytest.mark.parametrize(
    "argv", [[], ["--upstream", "http://127.0.0.1:1", "--fault", "rain 1"], ["--list", "--fault"]]
)
def test_by_hand_wrong_use_is_said(argv: list[str]) -> None:
    wrong = subprocess.run(command(*argv), capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "usage:" in wrong.stderr


def test_by_hand_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = command("--upstream", "http://127.0.0.1:1", "--port", port)
        refused = subprocess.run(argv, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Nothing was started" in refused.stderr
