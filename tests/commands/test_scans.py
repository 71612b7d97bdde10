"""The commands that scan: what they look at, what they say, and how they stop and go on."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit.bucket import s3
from storage_audit.cleanup import limits
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.scan.models import BucketScan, PendingFinding, ScanShard
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.faults.matching import is_listing, is_listing_at, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.processes import Command
from tests.real_bucket import Bucket
from tests.run_command import run_command, run_json
from tests.scan.listing_in_memory import list_open_findings, start_four_parts

OLD = "projects/proj_1/scenes/s1/media/old.mp4"


def read_pending_findings() -> set[tuple[str, str]]:
    return set(PendingFinding.objects.values_list("key", "kind"))


def let_pass(**ago: float) -> None:
    """As if all rows had been written so long ago."""
    R2Object.objects.update(updated_at=timezone.now() - timedelta(**ago))


def make_findings(bucket: Bucket) -> dict[str, str]:
    """A difference of each kind that is quickly made; the keys by their kinds."""
    missing, changed, same = (bucket.upload("proj_1", f"{n}.mp4") for n in "abc")
    let_pass(hours=1)
    bucket.r2.remove(missing, bucket.name)
    bucket.put(changed, body=b"longer than before")
    bucket.put("proj_2_s1_media.mp4", OLD, "README.txt")
    return {
        "missing": missing,
        "changed": changed,
        "untracked": OLD,
        "orphaned": "proj_2_s1_media.mp4",
        "unrecognised": "README.txt",
        "": same,
    }


# Reconcile


def test_reconcile_shows_each_finding_and_writes_no_row(bucket: Bucket) -> None:
    keys = make_findings(bucket)
    before = list(R2Object.objects.order_by("pk").values())
    out, err, code = run_command("reconcile_r2")
    assert (err, code) == ("", 0)
    head, *lines = out.splitlines()
    assert head == "5 objects (43 bytes) in bucket tests: 1 as tracked."
    assert lines == [
        "1 leftover file:",
        f"  {keys['orphaned']} (name fits proj_2 by key format flat; project proj_2 is unknown)",
        "1 missing file:",
        f"  {keys['missing']} (tracked, but not in the bucket)",
        "1 untracked file:",
        f"  {OLD} (in the bucket, but not tracked)",
        "1 changed file:",
        f"  {keys['changed']} (tracked with 4 bytes, has 18 in the bucket)",
        "1 unrecognised file:",
        "  README.txt (no key format matches)",
        "To act on these findings, use the admin or manage.py findings.",
    ]
    assert list_open_findings() == {(key, kind) for kind, key in keys.items() if kind}
    assert list(R2Object.objects.order_by("pk").values()) == before


def test_reconcile_of_a_bucket_in_step_says_so_and_names_no_findings(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    assert run_command("reconcile_r2") == (
        "1 object (4 bytes) in bucket tests: 1 as tracked.\n",
        "",
        0,
    )


def test_a_dry_run_shows_the_same_and_writes_no_finding(bucket: Bucket) -> None:
    make_findings(bucket)
    dry, _err, code = run_command("reconcile_r2", "--dry-run")
    assert code == 0
    assert not Finding.objects.exists()
    really = run_command("reconcile_r2")[0]
    assert really == dry + really.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["--project", "proj_1"], {OLD, "proj_1_s1_media.mp4"}),
        (["--prefix", "projects/"], {OLD, "projects/proj_2/scenes/s1/media/a.mp4"}),
    ],
)
def test_only_a_project_or_a_prefix_is_scanned(
    bucket: Bucket, arguments: list[str], listed: set[str]
) -> None:
    for project_id in ("proj_1", "proj_2"):
        Project.objects.create(pk=project_id)
    bucket.put(OLD, "proj_1_s1_media.mp4", "projects/proj_2/scenes/s1/media/a.mp4", "README.txt")
    facts, code = run_json("reconcile_r2", *arguments)
    assert (code, facts["listed"]) == (0, 2)
    assert {sample["key"] for sample in facts["samples"]} == listed
    assert list_open_findings() == {(key, "untracked") for key in listed}


# A partial scan


def test_since_selects_what_was_written_lately_and_nothing_follows(bucket: Bucket) -> None:
    keys = make_findings(bucket)
    R2Object.objects.filter(key=keys[""]).update(updated_at=timezone.now() - timedelta(days=9))
    out, err, code = run_command("reconcile_r2", "--since", "1 00:00:00")
    assert (err, code) == ("", 0)
    head, caveat, *lines = out.splitlines()
    assert head == "1 object (18 bytes) in bucket tests: 0 as tracked."
    assert caveat.startswith("This partial scan checked only objects tracked since 2")
    assert lines == [
        "1 missing file:",
        f"  {keys['missing']} (tracked, but not in the bucket)",
        "1 changed file:",
        f"  {keys['changed']} (tracked with 4 bytes, has 18 in the bucket)",
    ]
    assert not Finding.objects.exists()
    done = BucketScan.objects.get()
    assert (done.status, done.is_partial) == ("complete", True)
    assert (done.listed, done.unchanged, done.missing, done.changed) == (1, 0, 1, 1)
    assert done.previous_scan() is None and start_scan().previous_scan() is None


def test_since_sees_what_belongs_to_a_deleted_project(bucket: Bucket) -> None:
    today = timezone.now().date().isoformat()
    key = bucket.upload("proj_1")
    bucket.upload("proj_2")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    KnownProject.objects.record_deleted("proj_1", timezone.now(), "deleted")
    facts, code = run_json("reconcile_r2", "--since", today)
    assert (code, facts["is_partial"], facts["orphaned"]) == (0, True, 1)
    assert [sample["key"] for sample in facts["samples"]] == [key]


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_since_leaves_alone_what_an_upload_or_a_deletion_has_in_hand(
    bucket: Bucket, state: str
) -> None:
    here, gone = (bucket.upload("proj_1", name) for name in ("a.mp4", "b.mp4"))
    R2Object.objects.update(state=state, size=1)
    bucket.r2.remove(gone, bucket.name)
    facts, _code = run_json("reconcile_r2", "--since", "1:00:00")
    assert (facts["listed"], facts["unchanged"], facts["samples"]) == (1, 1, [])
    assert bucket.keys() == {here}


def test_since_stays_in_its_prefix_and_counts_its_requests(
    bucket: Bucket, store: FaultyStore
) -> None:
    for project_id in ("proj_1", "proj_2"):
        bucket.upload(project_id)
    store.requests.clear()
    facts, _code = run_json("reconcile_r2", "--since", "1:00:00", "--prefix", "projects/proj_2/")
    assert (facts["listed"], facts["requests"]) == (1, 1)
    looks = [each for each in store.find_requests(is_listing) if not each.query.get("prefix")]
    assert len(looks) == 1


def test_since_of_rows_far_apart_asks_for_no_more_than_it_may(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 1)
    keys = [bucket.upload(f"proj_{letter}") for letter in "abcd"]
    begun = start_scan(
        purpose="reconcile", since=timezone.now() - timedelta(hours=1), max_requests=4
    )
    BucketScan.objects.update(max_requests=2)
    begun.refresh_from_db()
    for _batch in work_on_scan(begun):
        pass
    assert (begun.status, begun.requests, begun.listed) == ("stopped", 2, 2)
    out, _err, code = run_command("reconcile_r2", "--resume", str(begun.pk), "--max-requests", "9")
    assert code == 0
    assert out.startswith(f"{len(keys)} objects")


def test_an_earlier_partial_scan_is_forgotten(bucket: Bucket) -> None:
    make_findings(bucket)
    for _each in range(2):
        run_command("reconcile_r2", "--since", "2:00:00")
        assert {kind for _key, kind in read_pending_findings()} == {"missing", "changed"}
    assert PendingFinding.objects.values("scan").distinct().count() == 1


def test_a_partial_scan_that_finds_nothing_is_not_believed(bucket: Bucket) -> None:
    for n in range(25):
        row = {"bucket": bucket.name, "key": f"gone/{n}", "size": 1, "etag": "e"}
        R2Object.objects.create(**row, source="upload", state="stored")
    _out, err, code = run_command("reconcile_r2", "--since", "1:00:00")
    assert code == 1
    assert "The bucket shows 0 files, but about 25 were expected" in err


def test_a_partial_scan_is_not_held_against_the_whole_bucket(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOLERATED_MISSING_OBJECTS", 0)
    for letter in "abcd":
        bucket.upload(f"proj_{letter}")
    let_pass(days=2)
    assert run_command("reconcile_r2")[2] == 0
    bucket.upload("proj_e")
    facts, code = run_json("reconcile_r2", "--since", "1 00:00:00")
    assert (code, facts["listed"]) == (0, 1)
    assert run_json("reconcile_r2", "--since", "1 00:00:00", "--cost")[0]["objects"] == 1


# Cost and limit


def test_cost_is_told_before_anything_is_listed(bucket: Bucket, store: FaultyStore) -> None:
    bucket.upload("proj_1")
    store.requests.clear()
    assert run_command("reconcile_r2", "--cost") == (
        "About 1 object, 1 request (R2 Class A), less than $0.01.\n",
        "",
        0,
    )
    assert not store.requests
    assert not BucketScan.objects.exists() and not ScanShard.objects.exists()
    run_command("backfill_r2")
    facts, code = run_json("backfill_r2", "--cost")
    assert code == 0
    assert facts["seconds"] > 0
    assert (facts["objects"], facts["requests"], facts["dollars"]) == (1, 1, 4.5e-6)
    assert "at the speed of the last scan" in run_command("backfill_r2", "--cost")[0]


def test_a_scan_that_would_take_more_than_it_may_is_not_begun(
    bucket: Bucket, settings: Settings
) -> None:
    bucket.upload("proj_1")
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SCAN_MAX_REQUESTS": 0}
    for more in ([], ["--max-requests", "0"]):
        out, err, code = run_command("reconcile_r2", *more)
        assert (out, code) == ("", 2)
        assert err.startswith(
            "CommandError: No scan was started: it needs about 1 request (less than $0.01), and"
        )
        assert err.endswith("Use --max-requests.\n")
    assert not BucketScan.objects.exists()
    assert run_command("reconcile_r2", "--max-requests", "1")[2] == 0


def test_a_scan_stops_at_its_request_limit_and_goes_on_with_a_higher_one(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SCAN_CONCURRENCY": 1}
    begun = start_four_parts(bucket, max_requests=1)
    _out, err, code = run_command("reconcile_r2", "--resume", str(begun.pk))
    assert code == 1
    assert "Resume with a higher limit. To continue" in err
    begun.refresh_from_db()
    assert (begun.status, begun.requests) == ("stopped", 1)
    assert not Finding.objects.exists()
    assert run_command("reconcile_r2", "--resume", str(begun.pk), "--max-requests", "100")[2] == 0
    assert len(list_open_findings()) == 4


# Stopping and going on


def test_ctrl_c_stops_at_a_page_and_resume_ends_with_all_findings(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, listing = start_four_parts(bucket), Event()
    worker_proxy.rules.append(
        rule_for(is_listing_at("f"), run_before(listing.set, lambda: time.sleep(3)), times=1)
    )
    arguments = ["reconcile_r2", "--resume", str(begun.pk)]
    with Command(tmp_path, *arguments, R2_ENDPOINT_URL=worker_proxy.url) as command:
        command.wait_until(lambda: listing.is_set() and begun.shards.filter(complete=True).exists())
        os.kill(command.pid, signal.SIGINT)
        assert command.wait() == 130
        said = command.tail().splitlines()
    begun.refresh_from_db()
    assert (begun.status, begun.listed) == ("stopped", 2)
    assert said == [
        "CommandError: Interrupted after 2 objects. Objects tracked so far stay tracked. To"
        f" continue within an hour: manage.py reconcile_r2 --resume {begun.pk}"
    ]
    assert not begun.shards.exclude(lease_token=None).exists()
    assert not Finding.objects.exists()
    assert run_command(*arguments)[2] == 0
    begun.refresh_from_db()
    assert (begun.status, begun.listed, begun.unrecognised) == ("complete", 4, 4)
    assert len(list_open_findings()) == 4
    assert len(worker_proxy.find_requests(is_listing_at("c"))) == 1


def test_a_killed_command_is_followed_by_one_that_resumes(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, listing = start_four_parts(bucket), Event()
    worker_proxy.rules.append(
        rule_for(is_listing_at("c"), run_before(listing.set, lambda: time.sleep(9)), times=1)
    )
    with Command(
        tmp_path, "reconcile_r2", "--resume", str(begun.pk), R2_ENDPOINT_URL=worker_proxy.url
    ) as command:
        command.wait_until(lambda: listing.is_set() and begun.shards.filter(complete=True).exists())
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
    begun.refresh_from_db()
    assert begun.status == "running"
    begun.shards.update(lease_until=timezone.now())  # as after a minute
    assert run_command("reconcile_r2", "--resume", str(begun.pk))[2] == 0
    begun.refresh_from_db()
    assert (begun.status, begun.listed) == ("complete", 4)
    assert len(list_open_findings()) == 4


def test_a_scan_that_failed_goes_on_where_it_was(bucket: Bucket, store: FaultyStore) -> None:
    bucket.put("README.txt")
    bucket.r2.remove(bucket_marker.MARKER_KEY, bucket.name)
    _out, err, code = run_command("backfill_r2")
    assert code == 1
    assert "holds no marker of this database" in err
    bucket_connection.connect_bucket(bucket.name)
    assert run_command("backfill_r2", "--resume", str(BucketScan.objects.get().pk)) == (
        "1 object (7 bytes) in bucket tests: 1 tracked, 0 updated, 0 unchanged.\n"
        "1 unrecognised file:\n"
        "  README.txt (no key format matches)\n"
        "To act on these findings, use the admin or manage.py findings.\n",
        "",
        0,
    )


def test_a_scan_that_found_too_little_is_believed_when_told_to(bucket: Bucket) -> None:
    for n in range(25):
        row = {"bucket": bucket.name, "key": f"gone/{n:02}", "size": 1, "etag": "e"}
        R2Object.objects.create(**row, source="upload", state="stored")
    let_pass(hours=1)
    out, err, code = run_command("reconcile_r2")
    assert code == 1
    assert "The bucket shows 0 files, but about 25 were expected" in err
    assert "25 missing files:\n" in out
    assert "  gone/19 (tracked, but not in the bucket)\n  and 5 more\n" in out
    assert "findings" not in out and not Finding.objects.exists()
    again = ["--resume", str(BucketScan.objects.get().pk)]
    assert run_command("reconcile_r2", *again)[2] == 1
    assert run_command("reconcile_r2", *again, "--accept-fewer")[2] == 0
    assert Finding.objects.filter(kind="missing").count() == 25


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"purpose": "backfill"}, "is not a reconcile. Use: manage.py backfill_r2 --resume ID\n"),
        (
            {"bucket": "o\x1b"},
            "belongs to bucket o\\x1b, but the settings name bucket tests. Nothing was resumed.\n",
        ),
        (
            {"status": "complete"},
            "can't be resumed: it is complete, older than a day, or replaced by a newer scan."
            " Start a new one.\n",
        ),
        (
            {"started_at": timezone.now() - timedelta(days=2)},
            "can't be resumed: it is complete, older than a day, or replaced by a newer scan."
            " Start a new one.\n",
        ),
    ],
)
def test_what_cannot_be_resumed_says_why(bucket: Bucket, values: Any, says: str) -> None:
    begun = start_scan(purpose="reconcile")
    begun.stop("later")
    BucketScan.objects.update(**values)
    out, err, code = run_command("reconcile_r2", "--resume", str(begun.pk))
    assert (out, code) == ("", 2)
    assert err == f"CommandError: Scan ID {says}"


def test_a_scan_that_nobody_worked_on_for_an_hour_says_that_it_starts_again(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SCAN_CONCURRENCY": 1}
    begun = start_four_parts(bucket, max_requests=1)
    assert run_command("reconcile_r2", "--resume", str(begun.pk))[2] == 1
    BucketScan.objects.update(marker_seen_at=timezone.now() - timedelta(hours=2))
    out, err, code = run_command("reconcile_r2", "--resume", str(begun.pk), "--max-requests", "100")
    assert code == 0, err
    assert err == (
        "Scan restarted from the beginning, because it was inactive for more than an hour. Files"
        " that it tracked stay tracked.\n"
    )
    assert out.startswith("4 objects ")


@pytest.mark.parametrize(
    "arguments",
    [["--dry-run"], ["--since", "1:00:00"], ["--cost"], ["--prefix", "a"], ["--project", "proj_1"]],
)
def test_a_scan_is_resumed_as_it_was_begun(
    bucket: Bucket, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = start_scan(purpose="reconcile")
    begun.stop("later")
    out, err, code = run_command("reconcile_r2", "--resume", str(begun.pk), *arguments)
    assert (out, code) == ("", 2)
    assert "--resume" in err + capsys.readouterr().err
    assert BucketScan.objects.get().status == "stopped"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resume", str(uuid4())],
        ["--resume", "nonsense"],
        ["--prefix", "a", "--project", "proj_1"],
        ["--prefix", "\udcff"],
        ["--project", "1"],
        ["--since", "yesterday"],
        ["--since", "2026-13-01"],
        ["--since", "2999-01-01"],
        ["--since", "0001-01-01T00:00:00+14:00"],
        ["--since", "-1 00:00:00"],
        ["--since", "9999999999 00:00:00"],
        ["--max-requests", "-1"],
        ["--max-requests", "1.5"],
        ["--max-requests", "9" * 30],
        ["--workers", "101"],
        ["--workers", "two"],
    ],
)
def test_wrong_use_exits_with_2_and_begins_nothing(
    bucket: Bucket, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, err, code = run_command("reconcile_r2", *arguments)
    assert (out, code) == ("", 2)
    assert "Error" in err or "error: " in capsys.readouterr().err
    assert not BucketScan.objects.exists()
    assert not OrmQ.objects.exists()


def test_since_is_for_reconcile_alone(bucket: Bucket) -> None:
    assert run_command("backfill_r2", "--since", "1:00:00")[2] == 2


# Workers, and stores with an order of their own


def test_workers_are_asked_to_take_part(bucket: Bucket) -> None:
    assert run_command("backfill_r2", "--workers", "3")[2] == 0
    assert OrmQ.objects.count() == 3
    begun = BucketScan.objects.get()
    assert {task.task["args"] for task in OrmQ.objects.all()} == {(str(begun.pk),)}


def test_workers_are_refused_where_there_are_none(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "SYNC": True}
    assert run_command("backfill_r2", "--workers", "1") == (
        "",
        "CommandError: The setting CLEANUP_SYNC turns workers off: leave --workers out.\n",
        2,
    )
    assert run_command("backfill_r2")[2] == 0


def test_a_store_with_an_order_of_its_own_is_told_of(bucket: Bucket) -> None:
    keys = make_findings(bucket)
    bucket.set_marker(lists_in_key_order=False)
    out, _err, code = run_command("reconcile_r2")
    assert code == 0
    assert out.splitlines()[1] == (
        "The store does not list keys in order, so the scan could not be shared out and was slower."
    )
    assert list_open_findings() == {(key, kind) for kind, key in keys.items() if kind}
    facts, _code = run_json("reconcile_r2", "--since", "2:00:00")
    assert facts["in_key_order"] is False
    seen = {sample["kind"]: sample["key"] for sample in facts["samples"]}
    assert seen == {kind: keys[kind] for kind in ("missing", "changed")}
    assert (facts["missing"], facts["changed"]) == (1, 1)
