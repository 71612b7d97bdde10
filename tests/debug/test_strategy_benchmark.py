"""All strategies side by side, and nothing of what was made for that is forgotten, whatever stops
the process."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django import Settings

from devtools.cloudflare_api import CloudflareApi
from storage_audit.bucket import prices, s3
from storage_audit.cleanup import delete_pipeline
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import STRATEGIES
from storage_audit.debug import strategy_benchmark
from storage_audit.debug.strategy_benchmark import BenchmarkRun
from storage_audit.management.commands import compare_strategies
from storage_audit.models import KnownProject
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_formats import DEFAULT_TEMPLATES
from storage_audit.ownership.ownership_rule import get_key_formats
from tests.faults.kinds import FAULT_KINDS
from tests.faults.matching import is_delete_single, rule_for
from tests.faults.proxy import FaultyStore
from tests.promises import Status, check_promises, make_due, run_again
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json

OTHERS = ("proj_compare_s1_media.mp4", "projects/proj_1/scenes/s1/media/a.mp4", "README.txt")


@pytest.fixture
def neighbours(bucket: Bucket) -> Iterator[Bucket]:
    """Objects that are no part of the trial, and that it leaves as they are."""
    bucket.put(*OTHERS)
    before = bucket.facts()
    yield bucket
    assert bucket.facts() == before


def test_every_strategy_empties_a_project_of_the_same_shape(
    neighbours: Bucket, cloudflare_api: CloudflareApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine has the time that wrangler needs there; the lease is longer still.
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", 50.0)
    facts, code = run_json("compare_strategies", "--objects", "3")
    assert (code, facts["objects"], facts["prices_of"]) == (0, 3, prices.PRICES_DATE)
    by_strategy = {each["strategy"]: each for each in facts["runs"]}
    assert tuple(by_strategy) == STRATEGIES
    for strategy, each in by_strategy.items():
        cleanup = Cleanup.objects.get(project_id=each["project_id"], parent=None)
        assert (cleanup.strategy, cleanup.deleted, cleanup.discovery) == (
            strategy,
            3,
            "listed",
        )
        assert (each["status"], each["left"], each["errors"]) == ("clean", 0, 0), each
        assert each["seconds"] > 0 and each["objects_per_second"] > 0
        assert cleanup.children.count() == 3
    made = {strategy: made_calls(each) for strategy, each in by_strategy.items()}
    assert {s: made[s].get("DeleteObjects", 0) for s in made} == dict.fromkeys(STRATEGIES, 0) | {
        "batch": 1
    }
    assert [made[s].get("DeleteObject", 0) for s in STRATEGIES] == [0, 3, 3, 0, 0]
    # It is asked for the marker of the bucket first.
    assert [made[s].get("wrangler", 0) for s in STRATEGIES] == [0, 0, 0, 4, 4]
    batch, single = by_strategy["batch"], by_strategy["sequential"]
    assert batch["cost_usd"] - single["cost_usd"] == pytest.approx(4.5e-6)
    check_promises(neighbours)


def made_calls(each: dict[str, Any]) -> dict[str, int]:
    return {call["kind"]: call["calls"] for call in each["calls"]}


def test_keys_are_of_every_key_format_and_of_no_other_project(db: None) -> None:
    project_id = strategy_benchmark.random_project_id()
    keys = strategy_benchmark.benchmark_keys(project_id, 2 * len(DEFAULT_TEMPLATES))
    parsed_keys = [parsed_key for key in keys for parsed_key in get_key_formats().parse_key(key)]
    assert {parsed_key.key_format for parsed_key in parsed_keys} == set(DEFAULT_TEMPLATES)
    assert {parsed_key.project for parsed_key in parsed_keys} == {project_id}
    assert len(set(keys)) == len(keys)
    assert project_id != strategy_benchmark.random_project_id()


def test_it_shows_them_side_by_side_and_says_before_what_it_does(neighbours: Bucket) -> None:
    out, err, code = run_command(
        "compare_strategies", "--objects", "2", "--strategies", "batch,parallel"
    )
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == " ".join(compare_strategies.TABLE_HEAD).split()
    assert [line.split()[0] for line in lines[:2]] == ["batch", "parallel"]
    assert all(re.search(r" 0 +0\.000\d{3} +0  ID$", line) for line in lines[:2]), out
    assert "1 DeleteObjects ok" in lines[2] and "2 DeleteObject ok" in lines[3]
    assert prices.PRICES_DATE in out and "follow-up checks after 1 hour" in out
    first, *ids = err.splitlines()[:3]
    assert first.startswith("Writes 2 objects for each of 2 projects into bucket tests at http://")
    made = Cleanup.objects.filter(parent=None).order_by("created_at")
    assert ids == [f"  {each.project_id} for {each.strategy}" for each in made]


def test_what_cannot_run_here_is_no_error_of_the_others(
    neighbours: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"WRANGLER_PATH": "/no/such/wrangler"}
    facts, code = run_json("compare_strategies", "--objects", "1", "--strategies", "wrangler,batch")
    missing, batch = facts["runs"]
    assert (code, batch["status"]) == (0, "clean")
    assert missing.keys() == {"strategy", "obstacle"}
    assert "wrangler is not installed" in missing["obstacle"]
    out, _err, code = run_command(
        "compare_strategies", "--objects", "1", "--strategies", "wrangler"
    )
    assert (code, "wrangler: cannot run here: wrangler is not installed" in out) == (0, True)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"WRANGLER_LIMIT": 2}
    assert strategy_benchmark.obstacle_to_wrangler(3) == "wrangler is limited to 2 objects."
    assert Cleanup.objects.filter(parent=None).count() == 1


def test_what_a_strategy_leaves_is_counted_and_then_cleaned_up(
    store: FaultyStore, neighbours: Bucket
) -> None:
    store.rules.append(rule_for(is_delete_single, FAULT_KINDS["access-denied"].answer))
    arguments = ("compare_strategies", "--objects", "2", "--strategies", "sequential")
    out, err, code = run_command(*arguments)
    assert (code, err.splitlines()[-1][:12]) == (1, "CommandError")
    assert re.search(r"^sequential .* [1-9]\d* +0\.000\d{3} +2  ID$", out, re.MULTILINE), out
    assert "sequential: retrying. 2 files are left" in out
    assert "sequential: the files it left were then deleted by cleanup ID: clean" in out


def test_objects_that_were_not_listed_are_not_called_gone(
    store: FaultyStore, neighbours: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> int:
        raise KeyboardInterrupt

    store.rules.append(rule_for(is_delete_single, FAULT_KINDS["access-denied"].answer))
    monkeypatch.setattr(strategy_benchmark, "count_remaining", interrupted)
    arguments = ("compare_strategies", "--objects", "1", "--strategies", "sequential")
    _out, err, code = run_command(*arguments)
    assert (code, "No test files are left" in err) == (130, False)
    monkeypatch.undo()
    store.rules.clear()
    (cleanup,) = Cleanup.objects.filter(parent=None)
    assert run_again(cleanup).status == Status.CLEAN


def test_speed_errors_and_cost_follow_from_what_was_seen() -> None:
    tried = BenchmarkRun("batch", "proj_1", 3, seconds=2.0, objects_left=1)
    tried.request_counts.update({("DeleteObject", "ok"): 3, ("ListObjectsV2", "ok"): 2})
    tried.request_counts.update(
        {("GetObject", "SlowDown"): 1, ("ListMultipartUploads", "NotImplemented"): 1}
    )
    assert (tried.objects_per_second, tried.error_count) == (1.0, 1)
    assert tried.cost_usd == pytest.approx((3 * 4.50 + 0.36) / 1e6)


def test_what_is_seen_to_be_left_counts_more_than_what_the_cleanup_says() -> None:
    tried = BenchmarkRun("batch", "proj_1", 3, cleanup=Cleanup(status=Status.CLEAN))
    assert tried.is_successful
    tried.objects_left = 1
    assert not tried.is_successful


@pytest.mark.parametrize("killed", [False, True])
def test_whatever_stops_it_leaves_its_objects_to_a_cleanup(
    neighbours: Bucket, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    real, written = s3.write_object, list[str]()

    def write(bucket: str, key: str, body: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        assert not connection.in_atomic_block
        assert Cleanup.objects.get().status == Status.PENDING
        assert not due()
        real(bucket, key, body)
        written.append(key)

    monkeypatch.setattr(s3, "write_object", write)
    monkeypatch.setattr(strategy_benchmark, "WRITER_THREADS", 1)
    if killed:  # Nothing runs any more then.
        monkeypatch.setattr(Cleanup, "make_due", lambda cleanup: None)
    _out, err, code = run_command("compare_strategies", "--strategies", "batch")
    assert code == 130
    assert "Interrupted. A worker deletes the test files (cleanup ID)" in err
    assert neighbours.facts(written[0])
    monkeypatch.undo()
    if killed:
        assert not due()
        assert Cleanup.objects.due(-strategy_benchmark.MAX_WRITE_TIME).exists()
        make_due(Cleanup.objects.get())
    assert run_command("sweep_cleanups", "--sync")[2] == 0
    cleanup = Cleanup.objects.get(parent=None)
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, 1)


def due() -> bool:
    return Cleanup.objects.due().exists()


def test_a_worker_that_is_quicker_is_waited_for(
    neighbours: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[Cleanup]()

    def take(cleanup: Cleanup) -> None:
        make_due(cleanup)
        with transaction.atomic():
            assert cleanup.acquire_lease()
        taken.append(cleanup)

    monkeypatch.setattr(Cleanup, "make_due", take)
    monkeypatch.setattr(strategy_benchmark, "sleep", lambda seconds: taken.pop().return_lease())
    facts, code = run_json("compare_strategies", "--objects", "1", "--strategies", "batch")
    assert (code, facts["runs"][0]["status"]) == (0, "clean")


def test_limits_do_not_stop_what_was_asked_for_by_number(
    neighbours: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0, "DISCOVERY": "tracked"}
    assert run_command("compare_strategies", "--objects", "2", "--strategies", "batch")[2] == 0


@pytest.mark.parametrize(
    ("endpoint", "consent", "code"),
    [
        ("https://0123.r2.cloudflarestorage.com", "", 2),
        ("https://0123.r2.cloudflarestorage.com", "other", 2),
        ("", "other", 2),
        ("", "tests", 0),
    ],
)
def test_a_bucket_elsewhere_is_written_to_only_by_its_name(
    neighbours: Bucket, settings: Settings, endpoint: str, consent: str, code: int
) -> None:
    if endpoint:
        settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": endpoint}
    arguments = ("--objects", "1", "--strategies", "batch", f"--yes-write-to={consent}")
    _out, err, exit_code = run_command("compare_strategies", *arguments)
    assert exit_code == code
    assert ("name the bucket: --yes-write-to tests" in err) == bool(code)
    assert Cleanup.objects.exists() == (code == 0)


def test_an_address_with_a_password_is_refused_and_not_shown(
    neighbours: Bucket, settings: Settings
) -> None:
    address = "https://anna:pass@0123.r2.cloudflarestorage.com"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": address}
    out, err, code = run_command("compare_strategies", "--objects", "1", "--yes-write-to=tests")
    assert code and "without a user name or password" in err, err
    assert not [text for text in ("anna", "pass@") if text in out + err]
    assert not Cleanup.objects.exists()


def test_nothing_is_written_where_it_could_be_somebody_elses(
    neighbours: Bucket, settings: Settings
) -> None:
    usual = settings.STORAGE_AUDIT
    settings.STORAGE_AUDIT = usual | {"PROJECT_ID_PATTERN": "[0-9]+"}
    _out, err, code = run_command("compare_strategies")
    assert (code, "Nothing was written" in err) == (2, True)
    settings.STORAGE_AUDIT = usual
    marker = neighbours.r2.read(bucket_marker.MARKER_KEY, neighbours.name)
    neighbours.r2.remove(bucket_marker.MARKER_KEY, neighbours.name)
    _out, err, code = run_command("compare_strategies")
    neighbours.put(bucket_marker.MARKER_KEY, body=marker)
    assert (code, "no marker" in err) == (1, True)
    for wrong in ("--objects=0", "--objects=10001", "--strategies=batch,nope"):
        assert run_command("compare_strategies", wrong)[2] == 2
    assert not Cleanup.objects.exists() and not KnownProject.objects.exists()
