"""The doctor tells broken set-ups apart, and says what to do about each."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.compat import get_current_datetime
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from devtools.http_reply import Reply
from devtools.seaweedfs import SeaweedFS
from storage_audit.bucket import wrangler
from storage_audit.bucket.cloudflare_api import list_api_page
from storage_audit.bucket.errors import BucketForbidden
from storage_audit.conf import conf
from storage_audit.doctor import (
    cloudflare_probes,
    compare_processes,
    environment,
    host_probes,
    roundtrip_probe,
    run_checks,
    versions,
)
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import Result, Status
from storage_audit.doctor.run_checks import run_probes
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.key_formats import OWN_PREFIX
from tests.database import LATEST_MIGRATION, lock_table
from tests.faults.kinds import HTML_REPLY, change_reply, error_xml
from tests.faults.matching import (
    Matches,
    is_delete_single,
    is_listing,
    is_listing_under,
    is_plain,
    is_read,
    rule_for,
)
from tests.faults.pages import with_entries
from tests.faults.proxy import FaultyStore, Forward, Request, Rule
from tests.network import faulty_network
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json

ProbeResults = dict[str, dict[str, Any]]
WRANGLER = {"STRATEGY": "wrangler"}
OPENS_NOTHING = "The API token is valid, but has no access to this account."
REFUSED = Reply(403, error_xml("AccessDenied"))
TWENTY_MINUTES = timedelta(minutes=20)
# Those of production, before `at_its_pace`.
WRANGLER_TIMEOUT_SECONDS, PROBE_TIMEOUT_SECONDS = (
    wrangler.QUERY_TIMEOUT_SECONDS,
    run_checks.PROBE_TIMEOUT_SECONDS,
)


@pytest.fixture(autouse=True)
def patient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker is to answer, it has been there before we ask. A slow machine has the time
    that it needs, where a test does not say otherwise."""
    monkeypatch.setattr(compare_processes, "WORKER_ANSWERS_WITHIN", timedelta(0))
    monkeypatch.setattr(wrangler, "QUERY_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(run_checks, "PROBE_TIMEOUT_SECONDS", 130.0)
    monkeypatch.setattr(run_checks, "RUN_TIMEOUT_SECONDS", 400.0)


def probe_results() -> ProbeResults:
    """The results of the probes, by their names."""
    return {each["name"]: each for each in run_probes("shell", uuid4()).probes}


def with_status(told: ProbeResults, status: Status = Status.WRONG) -> dict[str, str]:
    return {name: each["summary"] for name, each in told.items() if each["status"] == status}


def is_write(request: Request) -> bool:
    return is_plain(request, "PUT")


def is_change(request: Request) -> bool:
    return request.method in ("PUT", "POST", "DELETE")


def is_head(request: Request) -> bool:
    return request.method == "HEAD"


def is_of_probe(matches: Matches) -> Matches:
    return lambda request: matches(request) and "doctor-" in f"{request.path}{request.query}"


def own_objects(bucket: Bucket) -> set[str]:
    return {key for key in bucket.r2.keys(bucket.name) if key.startswith(OWN_PREFIX)}


def store_with_a_clock(request: Request, forward: Forward) -> Reply:
    """As R2 has one."""
    reply = forward()
    date = ("Date", format_datetime(real_now(), usegmt=True))
    return Reply(reply.status, reply.body, (*reply.headers, date))


real_now = timezone.now


def program(folder: Path, script: str) -> str:
    """One that stands for wrangler."""
    path = folder / "wrangler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def our_clock_back(by: timedelta) -> Iterator[None]:
    """Of this process, and of what it signs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timezone, "now", lambda: real_now() - by)
        signing = "botocore.auth.get_current_datetime"
        patch.setattr(signing, lambda **kwargs: get_current_datetime(**kwargs) - by)
        yield


# All is well


def test_nothing_is_wrong_and_nothing_is_left(
    store: FaultyStore, bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER
    store.rules.append(store_with_a_clock)
    bucket.put("stranger")
    before = bucket.facts()
    told = probe_results()
    assert with_status(told) == {}
    # Local R2 is no R2 in this; and somebody may be editing the code at this moment.
    warnings = with_status(told, Status.WARNING)
    assert "unfinished uploads" in warnings.pop("traits")
    assert warnings.keys() <= {"versions"}
    assert with_status(told, Status.NOT_CHECKED) == {}
    assert bucket.facts() == before
    touched = {request.path for request in store.find_requests(is_change)}
    assert touched
    (deleted,) = (target for method, target, _ in cloudflare_api.requests if method == "DELETE")
    assert f"/{OWN_PREFIX}doctor-" in deleted
    assert all(f"/{OWN_PREFIX}" in path and "installation" not in path for path in touched)
    kept = json.dumps(HealthReport.objects.get().probes)
    ours = (conf().secret_access_key, conf().access_key_id, conf().api_token)
    for secret in (*ours, settings.SECRET_KEY):
        assert secret not in kept


# Broken set-ups


def test_no_token(bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"API_TOKEN": ""}
    told = probe_results()
    assert with_status(told) == {"login": "wrangler is not logged in: no API token is set."}
    assert "CLOUDFLARE_API_TOKEN" in told["login"]["advice"]


def test_wrong_token(bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"API_TOKEN": "x" * 40}
    text = "Cloudflare rejects the API token."
    assert with_status(probe_results()) == {"login": text, "API": text}


def test_wrong_account(bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"ACCOUNT_ID": "0" * 32}
    wrong = with_status(probe_results())
    ours, theirs = "0" * 32, f"Local R2 ({cloudflare_api.account_id})"
    assert wrong == {
        "login": f"wrangler's login has no access to account {ours}, only to {theirs}.",
        "API": OPENS_NOTHING,
    }


def test_a_token_without_the_permission_is_no_unknown_one(
    bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    token = {"API_TOKEN": cloudflare_api.token_without_r2}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | token
    told = probe_results()
    assert with_status(told) == {"login": OPENS_NOTHING, "API": OPENS_NOTHING}
    assert "Workers R2 Storage" in told["login"]["advice"]
    assert told["login"]["facts"]["accounts"] == cloudflare_api.account_id


def test_a_wrong_account_of_a_token_that_may_not_see_its_own(
    bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    cloudflare_api.lists_accounts = False
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"ACCOUNT_ID": "0" * 32}
    assert with_status(probe_results()) == {"login": OPENS_NOTHING, "API": OPENS_NOTHING}


def test_an_account_that_cannot_be(
    bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    cloudflare_api.lists_accounts = False
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"ACCOUNT_ID": "mine"}
    text = "Cloudflare has no account with this ID."
    told = probe_results()
    assert with_status(told) == {"login": text, "API": text}
    assert "R2_ACCOUNT_ID" in told["API"]["advice"]
    with pytest.raises(BucketForbidden):
        list_api_page(conf().bucket, "")


def test_a_token_that_may_only_read(
    bucket: Bucket, cloudflare_api: CloudflareApi, settings: Settings
) -> None:
    token = {"API_TOKEN": cloudflare_api.read_only_token}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | token
    assert probe_results()["login"]["status"] == Status.OK
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER
    told = probe_results()
    assert with_status(told) == {"login": "wrangler may read the bucket, but not delete from it."}
    assert "Workers R2 Storage: Edit" in told["login"]["advice"]


def test_a_bucket_that_wrangler_does_not_list(
    bucket: Bucket,
    cloudflare_api: CloudflareApi,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It shows the first 20 only."""
    others = [f"bucket-{number:02}" for number in range(20)]
    monkeypatch.setattr(cloudflare_api.r2, "buckets", [*others, bucket.name])
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER
    assert with_status(probe_results()) == {}
    monkeypatch.setattr(cloudflare_api.r2, "buckets", others)
    told = probe_results()
    text = f"wrangler can't see bucket {bucket.name} or its marker. It sees: bucket-00, "
    assert with_status(told)["login"].startswith(text)
    assert "R2_BUCKET_NAME" in told["login"]["advice"]


def test_wrong_bucket(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "no-such-bucket"}
    told = probe_results()
    assert with_status(told) == {"access": "This account and jurisdiction have no such bucket."}
    assert "R2_BUCKET_NAME" in told["access"]["advice"]
    assert {"round trip", "traits", "marker"} <= with_status(told, Status.NOT_CHECKED).keys()


def test_another_bucket_of_ours(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "empty"}
    wrong = with_status(probe_results())
    assert wrong.keys() == {"marker"}
    assert "holds no marker of this database" in wrong["marker"]


def test_read_only_key(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(rule_for(is_change, REFUSED))
    told = probe_results()
    text = "The access key may read the bucket, but not write to it."
    assert with_status(told) == {"round trip": text}
    assert "Object Read & Write" in told["round trip"]["advice"]


@pytest.mark.parametrize("needed", [True, False])
def test_no_wrangler(bucket: Bucket, settings: Settings, needed: bool) -> None:
    gone = {"WRANGLER_PATH": "no-such-program", "STRATEGY": "wrangler" if needed else "batch"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | gone
    told = with_status(probe_results(), Status.WRONG if needed else Status.NOT_CHECKED)
    assert told["wrangler"].startswith("wrangler is not installed: can't find 'no-such-program'")


def test_old_wrangler(bucket: Bucket, settings: Settings, tmp_path: Path) -> None:
    path = program(tmp_path, "echo ' ⛅️ wrangler 3.114.0'")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"WRANGLER_PATH": path}
    wrong = with_status(probe_results())
    assert wrong.keys() == {"wrangler"}
    assert f"wrangler is too old: {path} is 3.114.0" in wrong["wrangler"]


@pytest.mark.parametrize(("answers", "probe"), [("nothing", "wrangler"), ("--version", "login")])
def test_a_wrangler_that_hangs_is_ended(
    bucket: Bucket,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    probe: str,
) -> None:
    assert 2 * WRANGLER_TIMEOUT_SECONDS < PROBE_TIMEOUT_SECONDS
    monkeypatch.setattr(wrangler, "QUERY_TIMEOUT_SECONDS", 3.0)
    script = (
        f'[ "$1" = {answers} ] && echo 4.164.0 && exit; echo $$ > {tmp_path}/pid; exec sleep 333'
    )
    path = program(tmp_path, script)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | {"WRANGLER_PATH": path}
    told = probe_results()
    hangs = {probe: "wrangler took too long and was stopped."}
    assert with_status(told) == hangs
    assert "wrangler whoami" in told[probe]["advice"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"STRATEGY": "batch"}
    told = probe_results()
    assert with_status(told) == {}
    assert with_status(told, Status.NOT_CHECKED).items() >= hangs.items()


def test_dead_worker(bucket: Bucket) -> None:
    Schedule.objects.update(next_run=timezone.now() - TWENTY_MINUTES)
    out, err, code = run_command("r2_doctor")
    assert code == 1
    assert "WRONG: worker: No queue worker answered within 0 seconds" in out
    assert (
        "WRONG: worker (shell): No worker is running. Its regular check is 20 minutes late." in out
    )
    assert "systemctl status autoshorts-worker" in out
    assert out.count("WRONG: ") == 2
    assert OrmQ.objects.count() == 1


def test_skewed_clock(store: FaultyStore, bucket: Bucket) -> None:
    """The store's refusal is local R2's own."""
    store.rules.append(store_with_a_clock)
    with our_clock_back(TWENTY_MINUTES):
        told = probe_results()
    wrong = with_status(told)
    assert wrong.pop("clock").startswith("This machine's clock is off by -1")
    # By our clock the next sweep is 20 minutes away.
    assert "a clock was wrong" in wrong.pop("worker")
    assert wrong == {"access": "The store refuses requests because this machine's clock is wrong."}
    assert told["access"]["facts"] == {"error": "RequestTimeTooSkewed"}
    assert "timedatectl" in told["clock"]["advice"]


def test_a_clock_that_is_a_little_off_is_a_warning(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(store_with_a_clock)
    with our_clock_back(timedelta(minutes=2)):
        told = probe_results()
    assert with_status(told) == {}
    assert "off by -1" in with_status(told, Status.WARNING)["clock"]


# The store's refusals


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"ACCESS_KEY_ID": "0" * 32}, "rejects the access key"),
        ({"SECRET_ACCESS_KEY": "0" * 64}, "does not match the access key ID"),
    ],
)
def test_wrong_keys_are_told_apart(
    bucket: Bucket, settings: Settings, values: dict[str, str], text: str
) -> None:
    """As local R2 answers them."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | values
    wrong = with_status(probe_results())
    assert wrong.keys() == {"access"}
    assert text in wrong["access"]


REFUSALS: dict[str, tuple[Matches, Reply | Rule, str, str]] = {
    "a key for another bucket": (is_listing, REFUSED, "access", "may not do this in this bucket"),
    "no R2": (is_listing, Reply(403, error_xml("NotEntitled")), "access", "R2 is not enabled"),
    "a sign-in page": (
        is_listing,
        HTML_REPLY,
        "access",
        "The store is unreachable or its answer is invalid",
    ),
    "no S3": (is_listing, Reply(200), "access", "The answer is not from an S3 store"),
    "a website": (is_listing, Reply(404), "access", "The answer is not from an S3 store"),
    "no HeadBucket": (is_head, Reply(403), "access", "but HeadBucket is refused"),
    "an outage": (
        is_listing,
        Reply(503, error_xml("ServiceUnavailable")),
        "access",
        "its answer is invalid",
    ),
    "a lock": (
        is_delete_single,
        Reply(403, error_xml("ObjectLockedByBucketPolicy")),
        "round trip",
        "A lock rule of the bucket protects files from deletion",
    ),
    "no deletion": (is_delete_single, REFUSED, "round trip", "but not delete from it"),
    "a lie": (
        is_delete_single,
        Reply(204),
        "round trip",
        "The store's answers contradict each other",
    ),
    "another content": (is_of_probe(is_read), Reply(200, b"cached"), "round trip", "contradict"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_are_told_apart(store: FaultyStore, bucket: Bucket, kind: str) -> None:
    matches, answer, probe, text = REFUSALS[kind]
    store.rules.append(rule_for(matches, answer))
    told = probe_results()
    assert text in with_status(told)[probe], told[probe]
    assert told[probe]["advice"]
    assert all(name == probe for name in with_status(told))


def test_a_probe_object_that_cannot_be_deleted_is_named(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(rule_for(is_delete_single, REFUSED))
    summary = with_status(probe_results())["round trip"]
    (left,) = own_objects(bucket) - {bucket_marker.MARKER_KEY}
    assert f"Test files are still in the bucket; delete them by hand: {left}." in summary


def test_no_probe_object_is_left_when_something_fails(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(rule_for(is_of_probe(is_read), Reply(500, error_xml("InternalError"))))
    assert "round trip" in with_status(probe_results())
    assert own_objects(bucket) == {bucket_marker.MARKER_KEY}


def test_what_two_objects_leave_is_named_and_one_does_not_keep_the_other(
    store: FaultyStore, bucket: Bucket
) -> None:
    store.rules.append(rule_for(lambda request: is_deletion_of(request, "-b"), REFUSED))
    warning = with_status(probe_results(), Status.WARNING)["traits"]
    (left,) = own_objects(bucket) - {bucket_marker.MARKER_KEY}
    assert left.endswith("-b")
    assert f"Test files are still in the bucket; delete them by hand: {left}." in warning


def test_of_two_spellings_one_does_not_keep_the_other(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(rule_for(lambda request: is_deletion_of(request, "\u00e9"), REFUSED))
    assert "traits" in with_status(probe_results())
    (left,) = own_objects(bucket) - {bucket_marker.MARKER_KEY}
    assert left.endswith("\u00e9")


def is_deletion_of(request: Request, end: str) -> bool:
    return is_plain(request, "DELETE") and request.path.endswith(end)


def test_objects_of_ended_health_checks_are_deleted_an_hour_later(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("doctor-{}", "doctor-{}-b", "doctor-{}/b", "probe-{}-\u00e9", "probe-{}-e\u0301")
    left = {OWN_PREFIX + name.format(uuid4()) for name in names}
    foreign = {f"{OWN_PREFIX}doctor-who", f"{OWN_PREFIX}doctor-{uuid4()}-notes", "doctor-"}
    bucket.put(*left, *foreign)
    assert roundtrip_probe.probe_roundtrip().status == Status.OK
    assert bucket.keys() == left | foreign
    monkeypatch.setattr(roundtrip_probe, "MAX_PROBE_AGE", -timedelta(minutes=1))
    assert roundtrip_probe.probe_roundtrip().status == Status.OK
    assert bucket.keys() == foreign


def test_a_broken_answer_is_no_wrong_order(store: FaultyStore, bucket: Bucket) -> None:
    store.rules.append(rule_for(is_of_probe(is_listing), HTML_REPLY))
    summary = roundtrip_probe.probe_store_traits().summary
    expected = (
        "The store is unreachable or its answer is invalid. Test files may still be in the bucket:"
        " .storage_audit/doc"
    )
    assert summary.startswith(expected)


def test_a_name_that_no_bucket_has(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "tests/media"}
    told = probe_results()
    assert with_status(told) == {"network": "R2_BUCKET_NAME is not a valid bucket name."}
    assert "without s3://" in told["network"]["advice"]


@pytest.mark.parametrize("code", ["NoSuchBucket", "AccessDenied"])
def test_another_jurisdiction(
    store: FaultyStore,
    bucket: Bucket,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    """The store of all hosts of R2 is a proxy here, where the bucket is in the EU."""

    def everywhere(request: Request, forward: Forward) -> Reply:
        here = ".eu." in request.headers["Host"]
        return (
            Reply(200) if here else Reply(404 if code == "NoSuchBucket" else 403, error_xml(code))
        )

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", store.url.partition("/cdn")[0])
    r2 = f"http://{'a' * 32}.r2.cloudflarestorage.com"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": r2}
    store.rules.append(everywhere)
    told = probe_results()
    assert with_status(told) == {"access": "The bucket is in jurisdiction eu, not none."}
    assert "Set R2_JURISDICTION to eu" in told["access"]["advice"]


def test_ways_that_lead_to_no_store(bucket: Bucket, settings: Settings) -> None:
    for address, text in (
        (conf().endpoint_url.replace("http:", "https:"), "Can't connect to the store securely"),
        ("http://no-such-store.invalid", "Can't resolve the host name no-such-store.invalid"),
        ("http://127.0.0.1:9", "The store is unreachable or its answer is invalid."),
    ):
        settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": address}
        told = probe_results()
        assert with_status(told).keys() == {"network"}
        assert text in told["network"]["summary"]
        assert "R2_ENDPOINT_URL" in told["network"]["advice"]
        assert "access" in with_status(told, Status.NOT_CHECKED)


def test_a_store_in_another_order(
    transactional_db: None, seaweedfs: SeaweedFS, settings: Settings
) -> None:
    before = seaweedfs.keys()
    with faulty_network(seaweedfs):
        told = probe_results()
    assert told["round trip"]["status"] == Status.OK
    assert "does not list keys in byte order" in with_status(told)["traits"]
    assert seaweedfs.keys() == before


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"ACCESS_KEY_ID": '"quoted"'}, "R2_ACCESS_KEY_ID contains quotes"),
        ({"BUCKET": "'tests'"}, "R2_BUCKET_NAME contains quotes"),
        ({"ACCESS_KEY_ID": "s" * 64, "SECRET_ACCESS_KEY": "k" * 32}, "are swapped"),
        ({"ENDPOINT_URL": f"http://{'a' * 32}.r2.cloudflarestorage.com/media"}, "contains a path"),
        ({"ACCOUNT_ID": "b" * 32}, "to a different account than CLOUDFLARE_ACCOUNT_ID"),
        ({"JURISDICTION": "eu"}, "to a different jurisdiction than R2_JURISDICTION"),
    ],
)
def test_mistakes_that_can_be_seen_in_the_settings(
    settings: Settings, values: dict[str, str], text: str
) -> None:
    r2 = {"ENDPOINT_URL": f"http://{'a' * 32}.r2.cloudflarestorage.com"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | r2 | values
    result = environment.probe_settings()
    assert result.status == Status.WRONG
    assert text in result.summary


# Whatever happens, it answers


def test_a_store_that_hangs_does_not_hang_the_doctor(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(request: Request, forward: Forward) -> Reply:
        time.sleep(5)
        return forward()

    monkeypatch.setattr(run_checks, "PROBE_TIMEOUT_SECONDS", 3.0)
    store.rules.append(hangs)
    began = time.monotonic()
    told = probe_results()
    assert time.monotonic() - began < 15
    assert with_status(told) == {"network": "No answer within 3 seconds."}
    assert told["database"]["status"] == Status.OK
    time.sleep(5)  # The proxy still has our request.


def test_no_probe_begins_when_there_is_no_time_left(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checks, "RUN_TIMEOUT_SECONDS", 0.0)
    told = probe_results()
    assert {each["status"] for each in told.values()} == {Status.NOT_CHECKED}


def test_a_probe_that_has_not_its_whole_time_does_not_begin(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would say of a wait that others cut short would be wrong."""

    def hangs() -> Result:
        time.sleep(1)
        raise AssertionError

    names = ("database", "second")
    probes = tuple(run_checks.Probe(name, hangs, leftover_hint=f"See {name}.") for name in names)
    monkeypatch.setattr(run_checks, "PROBES", probes)
    monkeypatch.setattr(run_checks, "PROBE_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(run_checks, "RUN_TIMEOUT_SECONDS", 0.3)
    told = probe_results()
    assert with_status(told) == {"database": "No answer within 0 seconds. See database."}
    assert with_status(told, Status.NOT_CHECKED).keys() == {"second"}


def test_a_probe_that_fails_stops_no_other(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError(f"unexpected {conf().secret_access_key}")

    monkeypatch.setattr(bucket_connection, "probe_traits", fails)
    told = probe_results()
    assert with_status(told) == {"traits": "RuntimeError: unexpected [redacted]"}
    assert told["marker"]["status"] == Status.OK


def test_all_but_what_is_ok_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="needs advice"):
        Result(Status.WARNING, "Something is strange.")


# What else it sees


def test_a_login_that_only_this_user_has(
    bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    """Of a program that stands for a wrangler after `wrangler login`."""
    path = after_login(tmp_path)
    ours = {"WRANGLER_PATH": path, "ACCOUNT_ID": "a" * 32}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | ours
    told = probe_results()
    assert with_status(told) == {}
    warning = with_status(told, Status.WARNING)["login"]
    assert warning == "wrangler is logged in with a user's login, not a token."
    assert told["login"]["facts"]["by"] == "OAuth Token"


def test_no_cleanup_goes_by_a_wrangler_that_would_have_to_guess_the_account(
    bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    ours = {"WRANGLER_PATH": after_login(tmp_path)}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | ours
    wrong = with_status(probe_results())
    text = "wrangler needs the bucket's account. Set R2_ACCOUNT_ID."
    assert wrong == {"login": text}


@pytest.mark.parametrize("needed", [True, False])
def test_a_login_to_another_account_is_wrong_only_where_it_is_needed(
    bucket: Bucket, settings: Settings, tmp_path: Path, needed: bool
) -> None:
    path = after_login(tmp_path, '{"id": "b", "name": "Personal"}')
    ours = {"WRANGLER_PATH": path, "STRATEGY": "wrangler" if needed else "batch"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | ours
    told = probe_results()
    text = "wrangler's login has no access to account (not set), only to Personal (b)."
    assert with_status(told) == ({"login": text} if needed else {})
    assert told["login"]["summary"] == text
    assert ("R2_ACCOUNT_ID" in told["login"]["advice"]) == needed


def test_a_refusal_without_a_code_is_one_too(
    bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    path = after_login(
        tmp_path, deletes="echo '[ERROR] Failed to fetch /x - 403: Forbidden;' >&2; exit 1"
    )
    ours = {"WRANGLER_PATH": path, "ACCOUNT_ID": "a" * 32}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | ours
    text = "wrangler may read the bucket, but not delete from it."
    assert with_status(probe_results()) == {"login": text}


def test_calls_of_wrangler_that_took_all_the_time(
    bucket: Bucket, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrangler, "MIN_CALL_SECONDS", 2 * wrangler.QUERY_TIMEOUT_SECONDS)
    ours = {"WRANGLER_PATH": after_login(tmp_path), "ACCOUNT_ID": "a" * 32}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | WRANGLER | ours
    told = probe_results()
    assert with_status(told) == {}
    late = with_status(told, Status.NOT_CHECKED)["login"]
    assert late == "wrangler ran out of time."


def after_login(
    folder: Path, accounts: str = "", deletes: str = 'echo "Resource location: remote"'
) -> str:
    return program(
        folder,
        'case "$1 $2" in\n"--version "*) echo 4.164.0 ;;\n"whoami "*) echo \'{"loggedIn": true, '
        f'"authType": "OAuth Token", "accounts": [{accounts}]}}\' ;;\n'
        '"r2 bucket") echo "Listing buckets..."; echo "name:   tests" ;;\n'
        f'"r2 object") {deletes} ;;\nesac',
    )


def test_s3_and_the_api_use_different_buckets(
    store: FaultyStore, bucket: Bucket, cloudflare_api: CloudflareApi
) -> None:
    without = change_reply(lambda xml: with_entries(xml, []))
    store.rules.append(rule_for(is_listing_under(bucket_marker.MARKER_PREFIX), without))
    wrong = with_status(probe_results())
    assert wrong.keys() == {"marker", "same bucket"}
    assert "show different buckets" in wrong["same bucket"]


def test_the_api_is_not_blamed_for_s3(
    store: FaultyStore, bucket: Bucket, cloudflare_api: CloudflareApi
) -> None:
    assert cloudflare_probes.probe_api().status == Status.OK
    assert not store.requests


def test_code_that_is_newer_than_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was unpacked with times of another day."""
    module = tmp_path / "models.py"
    module.write_text("old")
    monkeypatch.setattr(versions, "CODE_FOLDER", tmp_path)
    monkeypatch.setattr(versions, "LOADED_DIGEST", loaded := versions.read_code_state()[0])
    assert versions.probe_versions().status == Status.OK
    before = module.stat()
    module.write_text("new")
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = versions.probe_versions()
    assert result.status == Status.WARNING
    assert result.advice.startswith("Restart this process.")
    assert result.facts["code"] == loaded


@pytest.mark.parametrize(
    ("limit", "value", "text"),
    [
        ("SCARCE_MEMORY_BYTES", 2**60, "memory"),
        ("MAX_OPEN_FILES_SHARE", 0.0, "open files and connections"),
    ],
)
def test_what_is_nearly_used_up(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: float, text: str
) -> None:
    assert host_probes.probe_resources().status == Status.OK
    monkeypatch.setattr(host_probes, limit, value)
    result = host_probes.probe_resources()
    assert (result.status, result.summary) == (Status.WARNING, f"Running low: {text}.")


@pytest.mark.only_on("sqlite")
def test_disks_that_are_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_probes, "SCARCE_DISK_BYTES", 2**60)
    summary = host_probes.probe_resources().summary
    for what in ("temporary files", "the application", "the database"):
        assert f"disk space for {what}" in summary


@pytest.mark.only_on("postgresql")
def test_connections_of_the_server_that_are_nearly_used_up(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host_probes.probe_database().status == Status.OK
    monkeypatch.setattr(host_probes, "MAX_CONNECTIONS_SHARE", 0.0)
    result = host_probes.probe_database()
    assert result.status == Status.WARNING
    assert "max_connections" in result.advice


# The database and the queue


def test_migrations_that_were_not_applied(bucket: Bucket) -> None:
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("storage_audit", LATEST_MIGRATION)
    try:
        facts, code = run_json("r2_doctor")
    finally:
        recorder.record_applied("storage_audit", LATEST_MIGRATION)
    assert code == 1
    (problem,) = (each for each in facts["problems"] if each["status"] == "wrong")
    assert problem["probe"] == "database"
    assert problem["summary"] == f"Migrations are missing: storage_audit.{LATEST_MIGRATION}."
    assert problem["advice"] == "Run manage.py migrate."
    assert not HealthReport.objects.exists()


@pytest.mark.parametrize("table", ["django_q_ormq", "storage_audit_healthreport"])
def test_a_database_that_keeps_us_waiting_keeps_the_doctor_from_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """On SQLite the probe of the database meets the lock, elsewhere who needs the table does."""
    monkeypatch.setattr(compare_processes, "WORKER_ANSWERS_WITHIN", timedelta(seconds=60))
    began = time.monotonic()
    with lock_table(monkeypatch, table):
        facts, code = run_json("r2_doctor")
    assert time.monotonic() - began < 20
    assert (code, facts["wrong"]) == (1, True)
    wrong = {each["probe"]: each for each in facts["problems"] if each["status"] == "wrong"}
    where = "database" if connection.vendor == "sqlite" else "report"
    assert "pg_stat_activity" in wrong[where]["advice"]
    also = {"queue", "worker"} if where == "report" and table == "django_q_ormq" else set()
    assert wrong.keys() == {where, *also}
    for name in also:
        assert wrong[name]["summary"].startswith("The database does not respond: ")
    (report,) = facts["reports"]
    assert {each["name"]: each["status"] for each in report["probes"]}["round trip"] == "ok"
    assert not HealthReport.objects.exists()


def test_a_sweep_that_nobody_scheduled(bucket: Bucket) -> None:
    Schedule.objects.all().delete()
    assert with_status(probe_results()).keys() == {"schedule", "worker"}


def test_without_a_queue_no_worker_is_asked(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    Schedule.objects.all().delete()
    facts, code = run_json("r2_doctor")
    assert (code, facts["wrong"]) == (0, False)
    assert not OrmQ.objects.exists()


# Processes side by side


def test_why_it_works_in_the_shell_and_not_in_the_worker(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was started with the environment of another day."""
    monkeypatch.setattr(compare_processes, "WORKER_ANSWERS_WITHIN", timedelta(seconds=60))
    with Cluster(tmp_path, R2_BUCKET_NAME="empty", DEBUG="true") as cluster:
        cluster.wait_until(lambda: "ready for work" in cluster.log_text)
        facts, code = run_json("r2_doctor")
    assert code == 1
    assert [each["context"] for each in facts["reports"]] == ["shell", "worker"]
    assert len({each["pid"] for each in facts["reports"]}) == 2
    wrong = [each for each in facts["problems"] if each["status"] == "wrong"]
    assert [(each["probe"], each["processes"]) for each in wrong] == [
        ("marker", ["queue worker"]),
    ]
    differences = {
        f"{each['probe']} {each['fact']}": each["values"] for each in facts["differences"]
    }
    assert differences["settings BUCKET"] == ["tests (settings)", "empty (settings)"]
    assert differences["environment R2_BUCKET_NAME"] == [
        "tests (set by the program)",
        "empty (environment)",
    ]
    assert not {"process process", "database took", "resources memory free"} & differences.keys()
    assert "database name" not in differences
    assert "queue SECRET_KEY" not in differences
