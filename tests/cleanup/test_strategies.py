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
from storage_audit.bucket import wrangler, wrangler_process
from storage_audit.cleanup import delete_pipeline, requests
from storage_audit.cleanup.discovery_and_strategy import MODES, Mode
from storage_audit.cleanup.models import Cleanup
from storage_audit.clocks import monotonic_seconds
from storage_audit.conf import conf
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER_KEY, CannotConclude
from tests.bucket.store_replies import BROKEN, BUSY
from tests.faults.matching import is_anything, is_delete_batch, is_delete_single, rule_for
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    check_promises,
    clean_up_project,
    create_projects,
    fill_project,
    make_due,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    run_follow_up,
    run_until_idle,
    send_deletions,
    track_key,
)
from tests.real_bucket import BUCKETS, Bucket
from tests.run_command import run_command
from tests.strange_keys import KEY_PREFIX, KEYS, TRAPS, select_kept

NEIGHBOURS = ("proj_10_s1_media.mp4", "projects/proj_10/scenes/s1/media/old.mp4")
OUTSIDE = "elsewhere/proj_1.mp4"


def declared(project_id: str, *mode: str) -> Cleanup:
    (cleanup,) = requests.declare_deleted(project_id, Mode(*mode))
    return run_until_idle(cleanup)


def configured(**values: Any) -> override_settings:
    return override_settings(STORAGE_AUDIT={**settings.STORAGE_AUDIT, **values})


# One call for many objects, or one for each


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_each_object_has_a_call_of_its_own(
    store: FaultyStore, bucket: Bucket, strategy: str
) -> None:
    create_projects("proj_10")
    bucket.put(FLAT_KEY, HIERARCHICAL_KEY, "proj_proj_1_s1_media.mp4", *NEIGHBOURS)
    record_deleted_projects("proj_1")
    cleanup = declared("proj_1", "both", strategy)
    assert cleanup.status == Status.CLEAN
    assert bucket.keys() == set(NEIGHBOURS)
    assert len(store.find_requests(is_delete_single)) == cleanup.deleted == 3
    assert not store.find_requests(is_delete_batch)
    check_promises(bucket)


@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_single_calls_delete_strange_keys_and_no_object_of_another_project(
    bucket: Bucket, strategy: str
) -> None:
    create_projects("proj_1", "proj_2")
    bucket.put(*KEYS, *TRAPS)
    before = bucket.facts()
    for keys, owner in ((KEYS, "proj_1"), (TRAPS, "proj_2")):
        for key in keys:
            track_key(bucket, key, owner)
    with configured(STRATEGY=strategy):
        assert read_outcomes(clean_up_project("proj_1")) == KEYS
    assert bucket.facts() == select_kept(before)
    check_promises(bucket)


@pytest.mark.parametrize("trouble", [BUSY, BROKEN], ids=["503", "500"])
@pytest.mark.parametrize("strategy", ["parallel", "sequential"])
def test_trouble_slows_single_calls_down_and_loses_nothing(
    store: FaultyStore, bucket: Bucket, strategy: str, trouble: Any
) -> None:
    fill_project(bucket, 7)
    store.rules.append(rule_for(is_delete_single, trouble, times=2))
    with configured(STRATEGY=strategy):
        cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert not bucket.keys()
    assert cleanup.events.filter(step="batch_size").exists()
    check_promises(bucket)


# What is looked for


def test_tracked_alone_leaves_what_is_not_tracked_and_says_so(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put(FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE)
    track_key(bucket, FLAT_KEY, "proj_1")
    track_key(bucket, OUTSIDE, "proj_1")
    cleanup = declared("proj_1", "tracked", "parallel")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {HIERARCHICAL_KEY}
    assert "the cleanup covers tracked files only" in read_reason(cleanup, HIERARCHICAL_KEY)
    later = run_follow_up(cleanup)
    assert (later.discovery, later.strategy, later.kept) == ("tracked", "parallel", 1)
    assert bucket.keys() == {HIERARCHICAL_KEY}
    assert declared("proj_1", "both", "batch").status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_what_another_project_tracks_is_not_tracked_by_this_one(bucket: Bucket) -> None:
    """A backfill wrote the reading down that names another project."""
    create_projects("proj_1")
    bucket.put(FLAT_KEY)
    track_key(bucket, FLAT_KEY, "proj_1_s1", source="backfill")
    with configured(DISCOVERY="tracked"):
        clean_up_project("proj_1")
    assert bucket.keys() == {FLAT_KEY}


def test_listed_alone_leaves_what_no_prefix_covers_and_says_so(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE)
    track_key(bucket, OUTSIDE, "proj_1")
    with configured(DISCOVERY="listed"):
        cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {OUTSIDE}
    assert "the cleanup covers listed prefixes only" in read_reason(cleanup, OUTSIDE)
    assert R2Object.objects.get().key == OUTSIDE
    check_promises(bucket)


def test_a_verification_lists_everything_whatever_the_settings(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    with configured(DISCOVERY="tracked", STRATEGY="sequential"):
        (verification,) = requests.request_verification("proj_1")
        assert run_until_idle(verification).failed == 1
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
    record_deleted_projects("proj_1")
    bucket.put(FLAT_KEY)
    track_key(bucket, FLAT_KEY, "proj_1")
    _out, _err, code = run_command("cleanup_project", "proj_1", "--dry-run", *options)
    plan = Cleanup.objects.get()
    assert (code, plan.discovery, plan.strategy) == (0, *expected)
    assert bucket.keys() == {FLAT_KEY}
    _out, _err, code = run_command(
        "cleanup_project", "proj_1", "--run-plan", str(plan.pk), "--sync"
    )
    plan.refresh_from_db()
    assert (code, plan.status, plan.discovery, plan.strategy) == (0, Status.CLEAN, *expected)
    assert not bucket.keys()


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "s3", "--strategy", "batch"],
        ["--mode", "s3", "--run-plan", "9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983"],
        ["--mode", "hybrid"],
        ["--strategy", "wrangle"],
    ],
)
def test_the_command_refuses_ways_that_contradict_each_other_or_are_none(
    bucket: Bucket, options: list[str]
) -> None:
    record_deleted_projects("proj_1")
    assert run_command("cleanup_project", "proj_1", *options)[2] == 2
    assert not Cleanup.objects.exists()


# Wrangler for more objects than it is made for


@pytest.fixture
def few_for_wrangler(store: FaultyStore, bucket: Bucket) -> Iterator[list[str]]:
    """The files of a project, one more than wrangler is started for."""
    with configured(STRATEGY="wrangler", WRANGLER_LIMIT=2):
        yield fill_project(bucket, 3)


def test_wrangler_is_not_started_for_many_objects(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    assert (
        "3 times, once for each file, and take about 1 minute. The limit is 2." in cleanup.message
    )
    assert "If you approve, the files are deleted in batches instead." in cleanup.message
    assert bucket.keys() == set(few_for_wrangler)
    assert not cleanup.events.filter(step="command").exists()


@pytest.mark.parametrize("troubles", [0, 1])
def test_approved_cleanup_of_many_objects_runs_in_batches(
    few_for_wrangler: list[str], store: FaultyStore, bucket: Bucket, troubles: int
) -> None:
    cleanup = clean_up_project("proj_1")
    Cleanup.objects.update(batch_state={"keys": 1, "calls": 1})
    requests.approve_or_retry(cleanup)
    if troubles:
        store.rules.append(rule_for(is_anything, BUSY))
        assert run_until_idle(cleanup).status == Status.RETRYING
        store.rules.clear()
        make_due(cleanup)
    run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.strategy) == (Status.CLEAN, "batch")
    assert len(store.find_requests(is_delete_batch)) == 1
    assert cleanup.events.filter(message__startswith="The strategy is batch").exists()
    assert not bucket.keys()


def test_what_is_not_in_the_bucket_needs_no_wrangler(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    for key in few_for_wrangler:
        track_key(bucket, key, "proj_1")
        bucket.r2.remove(key)
    assert clean_up_project("proj_1").status == Status.CLEAN


def test_a_dry_run_tells_what_wrangler_is_not_started_for(
    few_for_wrangler: list[str], bucket: Bucket
) -> None:
    (plan,) = requests.request_preview("proj_1")
    run_until_idle(plan)
    plan.refresh_from_db()
    assert plan.status == Status.PLANNED
    assert "The limit is 2." in plan.message
    assert plan.events.filter(message__contains="wrangler takes about 1 minute").exists()


# Wrangler itself, before Cloudflare's API

NAMES = ("h#f", "q?prefix=", "a b.mp4", "p%20c", "e%2Fb", "Ä\N{MOVIE CAMERA}", " x ", "t\tb")
BESIDE = {f"{KEY_PREFIX}{name}" for name in ("h", "q", "p c", "e/b", "x", "tb", "up")}
BEYOND = f"{KEY_PREFIX}../../../../../../other/objects/victim"


@pytest.mark.parametrize(("mode", "names"), [("wrangler", NAMES), ("sequential", NAMES[:2])])
def test_wrangler_deletes_what_is_asked_for_and_nothing_else(
    cloudflare_api: CloudflareApi,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    names: tuple[str, ...],
) -> None:
    # On a slow machine too it is all one proof, whose lease is longer still.
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", 300.0)
    plain = {KEY_PREFIX + name for name in names}
    next_door = Bucket(bucket.r2, "other")
    next_door.wipe()
    next_door.put("victim", BEYOND)
    bucket.put(*plain, *BESIDE, BEYOND, "other/objects/victim")
    create_projects("proj_2")
    for key in BESIDE:
        track_key(bucket, key, "proj_2")
    record_deleted_projects("proj_1")
    with configured(LEASE_TIME=timedelta(hours=1), TURN_TIME=timedelta(minutes=30)):
        cleanup = declared("proj_1", *MODES[mode])
    assert read_outcomes(cleanup) == dict.fromkeys(plain, "deleted") | {BEYOND: "failed"}
    assert "Use the strategy batch." in read_reason(cleanup, BEYOND)
    assert bucket.keys() == {*BESIDE, BEYOND, "other/objects/victim"}
    assert next_door.keys() == {"victim", BEYOND}
    look, *asked = cloudflare_api.requests
    assert look[0] == "GET" and look[1].endswith(MARKER_KEY)
    assert {method for method, _path, _status in asked} == {"DELETE"}
    assert len(asked) == len(plain)
    commands = list(cleanup.events.filter(step="command").values_list("data", flat=True))[1:]
    assert len(commands) == len(plain)
    for ran in commands:
        assert ran["exit_code"] == 0
        assert "--remote" in ran["argv"]
        assert "Resource location: remote" in ran["stdout"]
        assert ran["seconds"] > 0
    check_promises(bucket)


def test_without_wrangler_nothing_is_lost_and_the_message_says_what_to_do(bucket: Bucket) -> None:
    bucket.put(FLAT_KEY)
    record_deleted_projects("proj_1")
    with configured(WRANGLER_PATH="/nowhere/wrangler", ACCOUNT_ID="a" * 32):
        cleanup = declared("proj_1", *MODES["wrangler"])
    assert cleanup.status == Status.RETRYING
    assert "wrangler is not installed" in cleanup.message
    assert "start another cleanup with the strategy batch" in cleanup.message
    assert "R2_BUCKET_NAME" not in cleanup.message
    assert bucket.keys() == {FLAT_KEY}
    goes_on = declared("proj_1", "both", "batch")
    assert (goes_on.pk, goes_on.status) == (cleanup.pk, Status.CLEAN)
    assert "The strategy is batch from now on." in goes_on.events.values_list("message", flat=True)
    check_promises(bucket)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[LocalR2]:
    """Another account, with a bucket of the same name."""
    with LocalR2(tmp_path, BUCKETS) as r2:
        yield r2


def test_wrangler_deletes_nothing_in_an_account_that_s3_does_not_list(
    cloudflare_api: CloudflareApi, bucket: Bucket, elsewhere: LocalR2
) -> None:
    there = Bucket(elsewhere)
    for each in (bucket, there):
        each.put(FLAT_KEY, HIERARCHICAL_KEY)
    record_deleted_projects("proj_1")
    with running_api(elsewhere) as theirs:
        account = {"ACCOUNT_ID": theirs.account_id, "API_TOKEN": theirs.token}
        for marker in (None, b"{}"):
            if marker:
                there.put(MARKER_KEY, body=marker)
            with configured(**account, API_URL=theirs.url):
                cleanup = declared("proj_1", *MODES["wrangler"])
            assert cleanup.status == Status.BLOCKED
            assert "wrangler would delete in the wrong one" in cleanup.message
            assert bucket.keys() == there.keys() == {FLAT_KEY, HIERARCHICAL_KEY}
    check_promises(bucket)


def test_no_marker_is_not_the_same_marker(cloudflare_api: CloudflareApi, bucket: Bucket) -> None:
    bucket.r2.remove(MARKER_KEY)
    with pytest.raises(CannotConclude, match="different buckets"):
        bucket_marker.require_wrangler_marker(
            bucket.name, until=monotonic_seconds() + 30, on_command=lambda command: None
        )


def test_what_wrangler_says_of_a_proxy_is_no_part_of_the_marker(
    cloudflare_api: CloudflareApi, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put(FLAT_KEY)
    record_deleted_projects("proj_1")
    program = tmp_path / "wrangler"
    says = "echo Proxy environment variables detected."
    program.write_text(f'#!/bin/sh\n{says}\nexec {conf().wrangler_path} "$@"\n')
    program.chmod(0o700)
    with configured(WRANGLER_PATH=str(program)):
        assert declared("proj_1", *MODES["wrangler"]).status == Status.CLEAN
    check_promises(bucket)


def test_a_wrangler_that_hangs_is_not_asked_for_its_version_by_each_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would outlast the lease."""
    starts, program = tmp_path / "starts", tmp_path / "wrangler"
    program.write_text(f"#!/bin/sh\necho >> {starts}; exec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(wrangler_process, "MAX_CALL_SECONDS", 1.0)
    keys = [f"k{n}" for n in range(8)]
    with configured(WRANGLER_PATH=str(program), ACCOUNT_ID="a" * 32):
        sent = send_deletions(
            "wrangler", "tests", keys, until=monotonic_seconds() + 0.5, size=2, calls=4
        )
    assert len(starts.read_text().splitlines()) == 1
    assert sent.errors and not sent.answers


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
        cleanup = clean_up_project("proj_1")
    assert len(store.find_requests(is_delete_single)) == 1
    assert cleanup.status == Status.BLOCKED
    assert "59 of 60 planned files" in cleanup.message
    check_promises(bucket)


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
    with configured(WRANGLER_PATH=str(program), ACCOUNT_ID="a" * 32):
        wrangler.wrangler_version()
        signal.setitimer(signal.ITIMER_REAL, 0.8)
        try:
            with pytest.raises(SystemExit):
                send_deletions(
                    "wrangler", "tests", keys, until=monotonic_seconds() + 30, size=10, calls=4
                )
        finally:
            signal.signal(signal.SIGALRM, before)
    assert len(starts.read_text().splitlines()) <= 4
