"""The ways to find objects and to delete them: whichever is chosen, no other object is touched, and
what it leaves is said."""

import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings

from devtools.cloudflare_api import CloudflareApi
from devtools.cloudflare_api import cloudflare_api as running_api
from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.bucket import wrangler
from storage_audit.cleanup import delete_batches, requests
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.modes import MODES, Mode
from storage_audit.clocks import monotonic
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER, CannotConclude
from tests.bucket.store_replies import BROKEN, BUSY
from tests.faults.matching import is_anything, is_delete_batch, is_delete_single, on
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import (
    FLAT,
    HIERARCHICAL,
    Status,
    alive,
    check,
    delete,
    deleted,
    fill_project,
    late_check,
    make_due,
    outcomes,
    reason,
    run,
    send,
    track,
)
from tests.real_bucket import BUCKETS, Bucket
from tests.run_command import run_command
from tests.strange_keys import KEYS, TRAPS, UNDER, select_remaining

NEIGHBOURS = ("proj_10_s1_media.mp4", "projects/proj_10/scenes/s1/media/old.mp4")
OUTSIDE = "elsewhere/proj_1.mp4"


def declared(project_id: str, *mode: str) -> CleanupOperation:
    (operation,) = requests.declare_deleted(project_id, Mode(*mode))
    return run(operation)


def configured(**values: Any) -> override_settings:
    return override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, **values})


# One call for many objects, or one for each


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_each_object_has_a_call_of_its_own(
    store: FaultyStore, bucket: Bucket, strategy: str
) -> None:
    alive("proj_10")
    bucket.put(FLAT, HIERARCHICAL, "proj_proj_1_s1_media.mp4", *NEIGHBOURS)
    deleted("proj_1")
    operation = declared("proj_1", "both", strategy)
    assert operation.status == Status.CLEAN
    assert bucket.keys() == set(NEIGHBOURS)
    assert len(store.asked(is_delete_single)) == operation.deleted == 3
    assert not store.asked(is_delete_batch)
    check(bucket)


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_single_calls_delete_strange_keys_and_no_object_of_another_project(
    bucket: Bucket, strategy: str
) -> None:
    alive("proj_1", "proj_2")
    bucket.put(*KEYS, *TRAPS)
    before = bucket.facts()
    for keys, owner in ((KEYS, "proj_1"), (TRAPS, "proj_2")):
        for key in keys:
            track(bucket, key, owner)
    with configured(STRATEGY=strategy):
        assert outcomes(delete("proj_1")) == KEYS
    assert bucket.facts() == select_remaining(before)
    check(bucket)


@pytest.mark.parametrize("trouble", [BUSY, BROKEN], ids=["503", "500"])
@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_trouble_slows_single_calls_down_and_loses_nothing(
    store: FaultyStore, bucket: Bucket, strategy: str, trouble: Any
) -> None:
    fill_project(bucket, 7)
    store.rules.append(on(is_delete_single, trouble, times=2))
    with configured(STRATEGY=strategy):
        operation = delete("proj_1")
    assert operation.status == Status.CLEAN
    assert not bucket.keys()
    assert operation.events.filter(step="pace").exists()
    check(bucket)


# What is looked for


def test_tracked_alone_leaves_what_is_not_tracked_and_says_so(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put(FLAT, HIERARCHICAL, OUTSIDE)
    track(bucket, FLAT, "proj_1")
    track(bucket, OUTSIDE, "proj_1")
    operation = declared("proj_1", "tracked", "parallel")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == {HIERARCHICAL}
    assert "Only tracked objects were asked for" in reason(operation, HIERARCHICAL)
    later = late_check(operation)
    assert (later.discovery, later.strategy, later.protected) == ("tracked", "parallel", 1)
    assert bucket.keys() == {HIERARCHICAL}
    assert declared("proj_1", "both", "batch").status == Status.CLEAN
    assert not bucket.keys()
    check(bucket)


def test_what_another_project_tracks_is_not_tracked_by_this_one(bucket: Bucket) -> None:
    """A backfill wrote the reading down that names another project."""
    alive("proj_1")
    bucket.put(FLAT)
    track(bucket, FLAT, "proj_1_s1", source="backfill")
    with configured(DISCOVERY="tracked"):
        delete("proj_1")
    assert bucket.keys() == {FLAT}


def test_listed_alone_leaves_what_no_prefix_covers_and_says_so(bucket: Bucket) -> None:
    alive("proj_1")
    bucket.put(FLAT, HIERARCHICAL, OUTSIDE)
    track(bucket, OUTSIDE, "proj_1")
    with configured(DISCOVERY="listed"):
        operation = delete("proj_1")
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert bucket.keys() == {OUTSIDE}
    assert "Only listed objects were asked for" in reason(operation, OUTSIDE)
    assert R2Object.objects.get().key == OUTSIDE
    check(bucket)


def test_a_verification_looks_for_everything_whatever_the_settings(bucket: Bucket) -> None:
    deleted("proj_1")
    bucket.put(HIERARCHICAL)
    with configured(DISCOVERY="tracked", STRATEGY="sequential"):
        (verification,) = requests.verify_project("proj_1")
        assert run(verification).failed == 1
    assert (verification.discovery, verification.strategy) == ("both", "batch")


# The modes of the seed, and what the command makes of them


def test_modes_stand_for_a_discovery_and_a_strategy() -> None:
    assert {name: tuple(mode) for name, mode in MODES.items()} == {
        "database": ("tracked", "batch"),
        "s3": ("listed", "batch"),
        "wrangler": ("listed", "wrangler"),
        "sequential": ("listed", "wrangler_sequential"),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mode", "database"], ("tracked", "batch")),
        (["--mode", "s3"], ("listed", "batch")),
        (["--strategy", "parallel"], ("both", "parallel")),
        (["--discovery", "listed", "--strategy", "sequential"], ("listed", "sequential")),
        ([], ("both", "batch")),
    ],
)
def test_the_command_makes_a_plan_in_the_chosen_way_and_runs_it_in_the_same(
    bucket: Bucket, options: list[str], expected: tuple[str, str]
) -> None:
    deleted("proj_1")
    bucket.put(FLAT)
    track(bucket, FLAT, "proj_1")
    _out, _err, code = run_command("cleanup_project", "proj_1", "--dry-run", *options)
    plan = CleanupOperation.objects.get()
    assert (code, plan.discovery, plan.strategy) == (0, *expected)
    assert bucket.keys() == {FLAT}
    _out, _err, code = run_command("cleanup_project", "proj_1", "--plan", str(plan.pk), "--sync")
    plan.refresh_from_db()
    assert (code, plan.status, plan.discovery, plan.strategy) == (0, Status.CLEAN, *expected)
    assert not bucket.keys()


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "s3", "--strategy", "batch"],
        ["--mode", "s3", "--plan", "9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983"],
        ["--mode", "hybrid"],
        ["--strategy", "wrangle"],
    ],
)
def test_the_command_refuses_ways_that_contradict_each_other_or_are_none(
    bucket: Bucket, options: list[str]
) -> None:
    deleted("proj_1")
    assert run_command("cleanup_project", "proj_1", *options)[2] == 2
    assert not CleanupOperation.objects.exists()


# Wrangler for more objects than it is made for


@pytest.fixture
def few_for_wrangler(store: FaultyStore, bucket: Bucket) -> Iterator[list[str]]:
    """The files of a project, one more than wrangler is started for."""
    with configured(STRATEGY="wrangler", WRANGLER_LIMIT=2):
        yield fill_project(bucket, 3)


def test_wrangler_is_not_started_for_many_objects(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    operation = delete("proj_1")
    assert operation.status == Status.BLOCKED
    assert "each of 3 objects, which takes about 1 minute; the limit is 2" in operation.error
    assert "goes on with the strategy batch" in operation.error
    assert bucket.keys() == set(few_for_wrangler)
    assert not operation.events.filter(step="command").exists()


@pytest.mark.parametrize("troubles", [0, 1])
def test_when_released_many_objects_go_in_batches(
    few_for_wrangler: list[str], store: FaultyStore, bucket: Bucket, troubles: int
) -> None:
    operation = delete("proj_1")
    CleanupOperation.objects.update(pace={"keys": 1, "calls": 1})
    requests.force_delete_operation(operation)
    if troubles:
        store.rules.append(on(is_anything, BUSY))
        assert run(operation).status == Status.INCOMPLETE
        store.rules.clear()
        make_due(operation)
    run(operation)
    operation.refresh_from_db()
    assert (operation.status, operation.strategy) == (Status.CLEAN, "batch")
    assert len(store.asked(is_delete_batch)) == 1
    assert operation.events.filter(message__startswith="The strategy is batch").exists()
    assert not bucket.keys()


def test_what_is_not_in_the_bucket_needs_no_wrangler(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    for key in few_for_wrangler:
        track(bucket, key, "proj_1")
        bucket.r2.remove(key)
    assert delete("proj_1").status == Status.CLEAN


def test_a_dry_run_tells_what_wrangler_is_not_started_for(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    (plan,) = requests.dry_run("proj_1")
    run(plan)
    plan.refresh_from_db()
    assert plan.status == Status.PLANNED
    assert "the limit is 2" in plan.error
    assert plan.events.filter(message__contains="wrangler takes about 1 minute").exists()


# Wrangler itself, before Cloudflare's API

NAMES = ("h#f", "q?prefix=", "a b.mp4", "p%20c", "e%2Fb", "Ä\N{MOVIE CAMERA}", " x ", "t\tb")
BESIDE = {f"{UNDER}{name}" for name in ("h", "q", "p c", "e/b", "x", "tb", "up")}
BEYOND = f"{UNDER}../../../../../../other/objects/victim"


@pytest.mark.parametrize(("mode", "names"), [("wrangler", NAMES), ("sequential", NAMES[:2])])
def test_wrangler_deletes_what_is_asked_for_and_nothing_else(
    cloudflare_api: CloudflareApi,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    names: tuple[str, ...],
) -> None:
    # On a slow machine too it is all one proof, whose lease is longer still.
    monkeypatch.setattr(delete_batches, "PROOF_LASTS", 300.0)
    plain = {UNDER + name for name in names}
    next_door = Bucket(bucket.r2, "other")
    next_door.wipe()
    next_door.put("victim", BEYOND)
    bucket.put(*plain, *BESIDE, BEYOND, "other/objects/victim")
    alive("proj_2")
    for key in BESIDE:
        track(bucket, key, "proj_2")
    deleted("proj_1")
    with configured(LEASE=timedelta(hours=1), SLICE=timedelta(minutes=30)):
        operation = declared("proj_1", *MODES[mode])
    assert outcomes(operation) == dict.fromkeys(plain, "deleted") | {BEYOND: "failed"}
    assert "The strategy batch can delete it" in reason(operation, BEYOND)
    assert bucket.keys() == {*BESIDE, BEYOND, "other/objects/victim"}
    assert next_door.keys() == {"victim", BEYOND}
    look, *asked = cloudflare_api.requests
    assert look[0] == "GET" and look[1].endswith(MARKER)
    assert {method for method, _path, _status in asked} == {"DELETE"}
    assert len(asked) == len(plain)
    commands = list(operation.events.filter(step="command").values_list("data", flat=True))[1:]
    assert len(commands) == len(plain)
    for ran in commands:
        assert ran["exit_code"] == 0
        assert "--remote" in ran["argv"]
        assert "Resource location: remote" in ran["stdout"]
        assert ran["seconds"] > 0
    check(bucket)


def test_without_wrangler_nothing_is_lost_and_the_message_says_what_to_do(bucket: Bucket) -> None:
    bucket.put(FLAT)
    deleted("proj_1")
    with configured(WRANGLER="/nowhere/wrangler", ACCOUNT_ID="a" * 32):
        operation = declared("proj_1", *MODES["wrangler"])
    assert operation.status == Status.INCOMPLETE
    assert "wrangler is missing" in operation.error
    assert "ask for another cleanup with the strategy batch" in operation.error
    assert "R2_BUCKET_NAME" not in operation.error
    assert bucket.keys() == {FLAT}
    goes_on = declared("proj_1", "both", "batch")
    assert (goes_on.pk, goes_on.status) == (operation.pk, Status.CLEAN)
    assert "The strategy is batch from now on." in goes_on.events.values_list("message", flat=True)
    check(bucket)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[LocalR2]:
    """Another account, with a bucket of the same name."""
    with LocalR2(tmp_path, BUCKETS) as r2:
        yield r2


def test_wrangler_deletes_nothing_in_an_account_that_s3_does_not_look_into(
    cloudflare_api: CloudflareApi, bucket: Bucket, elsewhere: LocalR2
) -> None:
    there = Bucket(elsewhere)
    for each in (bucket, there):
        each.put(FLAT, HIERARCHICAL)
    deleted("proj_1")
    with running_api(elsewhere) as theirs:
        account = {"ACCOUNT_ID": theirs.account_id, "API_TOKEN": theirs.token}
        for marker in (None, b"{}"):
            if marker:
                there.put(MARKER, body=marker)
            with configured(**account, API_URL=theirs.url):
                operation = declared("proj_1", *MODES["wrangler"])
            assert operation.status == Status.BLOCKED
            assert "wrangler does not show the marker" in operation.error
            assert bucket.keys() == there.keys() == {FLAT, HIERARCHICAL}
    check(bucket)


def test_no_marker_is_not_the_same_marker(cloudflare_api: CloudflareApi, bucket: Bucket) -> None:
    bucket.r2.remove(MARKER)
    with pytest.raises(CannotConclude, match="does not show the marker"):
        bucket_marker.see_marker_by_wrangler(
            bucket.name, until=monotonic() + 30, ran=lambda command: None
        )


def test_what_wrangler_says_of_a_proxy_is_no_part_of_the_marker(
    cloudflare_api: CloudflareApi, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put(FLAT)
    deleted("proj_1")
    program = tmp_path / "wrangler"
    says = "echo Proxy environment variables detected."
    program.write_text(f'#!/bin/sh\n{says}\nexec {conf().wrangler} "$@"\n')
    program.chmod(0o700)
    with configured(WRANGLER=str(program)):
        assert declared("proj_1", *MODES["wrangler"]).status == Status.CLEAN
    check(bucket)


def test_a_wrangler_that_hangs_is_not_asked_for_its_version_by_each_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would outlast the lease."""
    starts, program = tmp_path / "starts", tmp_path / "wrangler"
    program.write_text(f"#!/bin/sh\necho >> {starts}; exec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(wrangler, "LONGEST", 1.0)
    keys = [f"k{n}" for n in range(8)]
    with configured(WRANGLER=str(program), ACCOUNT_ID="a" * 32):
        sent = send("wrangler", "tests", keys, until=monotonic() + 0.5, size=2, calls=4)
    assert len(starts.read_text().splitlines()) == 1
    assert sent.troubles and not sent.answers


# What was sent, and what was not


def test_what_was_in_no_call_does_not_count_as_deleted_when_it_is_gone(
    store: FaultyStore, bucket: Bucket
) -> None:
    keys, calls = fill_project(bucket, 60), list[Request]()

    def first_call_meets_an_accident(request: Request, forward: Forward) -> Reply | None:
        if not is_delete_single(request) or calls:
            return None
        calls.append(request)
        for key in keys:
            bucket.r2.remove(key)
        return BROKEN

    store.rules.append(first_call_meets_an_accident)
    with configured(STRATEGY="sequential"):
        operation = delete("proj_1")
    assert len(store.asked(is_delete_single)) == 1
    assert operation.status == Status.BLOCKED
    assert "59 of the 60" in operation.error
    check(bucket)


@pytest.mark.slow
def test_nothing_is_started_when_the_work_is_broken_off(tmp_path: Path) -> None:
    """As the queue does with what takes too long."""
    starts, program = tmp_path / "starts", tmp_path / "wrangler"
    program.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo 4.164.0 && exit\necho >> {starts}; sleep 5;"
        " echo Resource location: remote\n"
    )
    program.chmod(0o700)
    before = signal.signal(signal.SIGALRM, lambda *_args: sys.exit("too long"))
    keys = [f"k{n}" for n in range(40)]
    with configured(WRANGLER=str(program), ACCOUNT_ID="a" * 32):
        wrangler.version()
        signal.setitimer(signal.ITIMER_REAL, 0.8)
        try:
            with pytest.raises(SystemExit):
                send("wrangler", "tests", keys, until=monotonic() + 30, size=10, calls=4)
        finally:
            signal.signal(signal.SIGALRM, before)
    assert len(starts.read_text().splitlines()) <= 4
