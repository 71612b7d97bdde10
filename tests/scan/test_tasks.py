"""Scans in the queue: workers share one, the sweep finds it when they are lost, and the schedule
begins one at a time."""

import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from pytest_django import Settings

from storage_audit import queue, tasks
from storage_audit.findings.models import Finding
from storage_audit.ownership import bucket_marker
from storage_audit.scan.models import BucketScan, ScanShard
from storage_audit.scan.start import send_workers, start_scan
from tests.faults.matching import is_listing_under, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.queue.clusters import Cluster, list_enqueued_ids, list_results, print_log_on_failure
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import start_four_parts

LONG_AGO = timedelta(hours=25)


def set_(settings: Settings, **entries: Any) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, **entries}


def begun(**values: Any) -> BucketScan:
    """A scan that workers are to do, and whose task was lost two minutes ago."""
    made = start_scan(purpose="reconcile")
    given = {"enqueued_at": timezone.now() - timedelta(minutes=2), **values}
    BucketScan.objects.filter(pk=made.pk).update(**given)
    made.refresh_from_db()
    return made


# A worker's part


def test_a_worker_does_all_of_a_scan_in_one_turn_if_it_can(bucket: Bucket) -> None:
    bucket.put("README.txt")
    made = begun()
    assert tasks.take_part(str(made.pk)) == "complete"
    assert Finding.objects.count() == 1
    assert list_enqueued_ids() == []
    assert tasks.take_part(str(made.pk)) == "over or deleted"


def test_a_worker_whose_turn_is_over_leaves_the_rest_to_another_task(
    bucket: Bucket, settings: Settings
) -> None:
    made = start_four_parts(bucket)
    set_(settings, TURN_TIME=timedelta(0))
    assert tasks.take_part(str(made.pk)) == "running"
    assert list_enqueued_ids() == [str(made.pk)]
    assert not made.shards.exclude(lease_token=None).exists()
    set_(settings, TURN_TIME=timedelta(seconds=60))
    assert tasks.take_part(str(made.pk)) == "complete"


def test_a_worker_ends_a_scan_of_which_all_is_listed_though_its_turn_is_over(
    bucket: Bucket, settings: Settings
) -> None:
    made = begun()
    made.shards.update(complete=True)
    set_(settings, TURN_TIME=timedelta(0))
    assert tasks.take_part(str(made.pk)) == "complete"


def test_a_worker_waits_for_a_part_for_one_turn_and_no_longer(
    bucket: Bucket, settings: Settings
) -> None:
    made = begun()
    made.shards.update(lease_until=timezone.now() + timedelta(minutes=1))
    set_(settings, TURN_TIME=timedelta(seconds=0.5))
    assert tasks.take_part(str(made.pk)) == "running"
    assert list_enqueued_ids() == []
    made.shards.update(lease_until=timezone.now() + timedelta(seconds=1))
    set_(settings, TURN_TIME=timedelta(seconds=60))
    assert tasks.take_part(str(made.pk)) == "complete"


def test_a_task_of_a_scan_that_is_not_there_does_nothing(db: None) -> None:
    assert tasks.take_part("00000000-0000-0000-0000-000000000000") == "over or deleted"


def test_a_scan_that_fails_in_a_worker_is_in_its_log_with_what_to_do(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    made = begun()
    bucket.r2.remove(bucket_marker.MARKER_KEY, bucket.name)
    assert tasks.take_part(str(made.pk)) == "failed"
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert f"Scan {made.pk} failed: " in record.getMessage()
    assert "run: manage.py connect_bucket" in record.getMessage()
    assert list_enqueued_ids() == []


# The sweep


def test_the_sweep_sends_one_worker_for_a_scan_that_lost_its_own(bucket: Bucket) -> None:
    made = begun()
    tasks.sweep()
    assert list_enqueued_ids() == [str(made.pk)]
    tasks.sweep()
    assert list_enqueued_ids() == [str(made.pk)]


@pytest.mark.parametrize(
    "values",
    [
        {"enqueued_at": "now"},
        {"enqueued_at": None},
        {"status": "stopped"},
        {"status": "complete"},
        {"status": "failed"},
    ],
)
def test_the_sweep_sends_nobody_where_nobody_is_missed(bucket: Bucket, values: Any) -> None:
    begun(**{name: timezone.now() if each == "now" else each for name, each in values.items()})
    tasks.sweep()
    assert list_enqueued_ids() == []


def test_the_sweep_sends_nobody_for_a_scan_that_somebody_is_at(bucket: Bucket) -> None:
    made = begun()
    made.shards.update(lease_until=timezone.now() + timedelta(seconds=30))
    tasks.sweep()
    assert list_enqueued_ids() == []


def test_the_sweep_does_not_fill_a_queue_that_is_stuck(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    monkeypatch.setattr(tasks, "MAX_READY_TASKS", 0)
    tasks.sweep()
    assert list_enqueued_ids() == []


def test_where_there_are_no_workers_none_is_sent(bucket: Bucket, settings: Settings) -> None:
    begun()
    set_(settings, SYNC=True)
    tasks.sweep()
    assert tasks.reconcile() == "there are no workers"
    assert list_enqueued_ids() == []
    assert BucketScan.objects.count() == 1


@pytest.mark.parametrize("enqueued_at", [None, timezone.now() - LONG_AGO])
def test_the_sweep_gives_up_a_scan_that_nobody_went_on_with_for_a_day(
    bucket: Bucket, enqueued_at: Any
) -> None:
    old = begun(enqueued_at=enqueued_at, started_at=timezone.now() - LONG_AGO)
    tasks.sweep()
    old.refresh_from_db()
    assert (old.status, old.message) == ("failed", "The scan made no progress for a day.")
    assert list_enqueued_ids() == []


def test_the_sweep_does_not_give_up_a_long_scan_that_somebody_is_at(bucket: Bucket) -> None:
    in_hand = begun(enqueued_at=None, started_at=timezone.now() - LONG_AGO)
    in_hand.shards.update(lease_until=timezone.now() + timedelta(seconds=30))
    waiting = begun(started_at=timezone.now() - LONG_AGO)
    tasks.sweep()
    for each in (in_hand, waiting):
        each.refresh_from_db()
        assert each.status == "running"
    assert list_enqueued_ids() == []


# The schedule


def test_a_scheduled_scan_compares_the_whole_bucket(bucket: Bucket) -> None:
    bucket.put("README.txt")
    made = tasks.reconcile()
    assert list_enqueued_ids() == [made]
    assert tasks.take_part(made) == "complete"
    done = BucketScan.objects.of_whole_bucket(bucket.name).get()
    assert (done.purpose, done.dry_run, done.unrecognised) == ("reconcile", False, 1)


@pytest.mark.parametrize("purpose", ["backfill", "reconcile"])
def test_no_scan_is_begun_beside_another_of_the_whole_bucket(bucket: Bucket, purpose: str) -> None:
    start_scan(purpose=purpose)
    assert tasks.reconcile() == "another scan is running"
    assert BucketScan.objects.count() == 1


def test_scans_of_parts_and_those_given_up_are_in_nobodys_way(bucket: Bucket) -> None:
    start_scan("a")
    start_scan(project_id="proj_1")
    start_scan(purpose="reconcile", since=timezone.now())
    begun(enqueued_at=None, started_at=timezone.now() - LONG_AGO)
    assert tasks.reconcile() == "another scan is running"
    tasks.sweep()
    assert tasks.reconcile() in list_enqueued_ids()


def test_a_scheduled_scan_that_costs_too_much_is_not_begun_and_the_log_says_what_to_do(
    bucket: Bucket, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    set_(settings, SCAN_MAX_REQUESTS=0)
    assert tasks.reconcile() == "too costly"
    assert not BucketScan.objects.exists()
    assert "reconcile_r2 --max-requests, or raise SCAN_MAX_REQUESTS" in caplog.text


def schedules() -> list[tuple[int, int]]:
    found = Schedule.objects.filter(func=queue.RECONCILE, schedule_type=Schedule.MINUTES)
    return list(found.values_list("minutes", "repeats"))


def reconcile_warnings() -> list[str]:
    found = run_checks(databases=["default"])
    return [str(each.hint) for each in found if each.id == "storage_audit.W003"]


def test_migrate_makes_changes_and_removes_the_schedule(db: None, settings: Settings) -> None:
    for every, found in ((24, [(1440, -1)]), (500, [(30000, -1)]), (0, []), (1, [(60, -1)])):
        set_(settings, RECONCILE_EVERY=timedelta(hours=every))
        assert bool(reconcile_warnings()) is (every != 24)
        call_command("migrate", verbosity=0)
        assert schedules() == found
        assert reconcile_warnings() == []


def test_the_first_scan_is_due_after_one_period_however_often_migrate_runs(db: None) -> None:
    due = timezone.now() + timedelta(minutes=3)
    Schedule.objects.filter(func=queue.RECONCILE).update(next_run=due)
    queue.create_schedules()
    assert Schedule.objects.get(func=queue.RECONCILE).next_run == due
    Schedule.objects.filter(func=queue.RECONCILE).delete()
    queue.create_schedules()
    next_run = Schedule.objects.get(func=queue.RECONCILE).next_run
    assert abs(next_run - timezone.now() - timedelta(days=1)) < timedelta(minutes=1)


# Real clusters


def workers_at(made: BucketScan) -> int:
    held = ScanShard.objects.filter(scan=made, complete=False, lease_until__gt=timezone.now())
    return held.values("lease_token").distinct().count()


def slow(way: FaultyStore) -> None:
    way.rules.append(rule_for(is_listing_under(""), run_before(lambda: time.sleep(2))))


def test_two_clusters_share_a_scan(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    """Each lists one shard at a time, and slowly."""
    made = start_four_parts(bucket)
    slow(worker_proxy)
    variables = {"R2_ENDPOINT_URL": worker_proxy.url, "SCAN_CONCURRENCY": "1"}
    done = BucketScan.objects.filter(pk=made.pk, status="complete")
    with (
        Cluster(tmp_path, None, **variables) as one,
        Cluster(tmp_path, None, **variables) as other,
        print_log_on_failure(one),
        print_log_on_failure(other),
    ):
        for cluster in (one, other):
            cluster.wait_until(lambda: "ready for work" in cluster.log_text)  # noqa: B023
        # A cluster takes one task more than it has workers.
        send_workers(made, 4)
        one.wait_until(lambda: workers_at(made) == 2)
        worker_proxy.rules.clear()
        one.wait_until(done.exists)
    made.refresh_from_db()
    assert (made.listed, made.requests) == (4, 4)
    assert set(Finding.objects.values_list("key", flat=True)) == bucket.keys()
    starts = [each.start_key for each in worker_proxy.find_requests(is_listing_under(""))]
    assert sorted(starts) == ["", "c", "f", "x"]


def test_a_scan_whose_worker_was_killed_is_finished_by_another(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    made = start_four_parts(bucket)
    slow(worker_proxy)
    send_workers(made, 1)
    done = BucketScan.objects.filter(pk=made.pk, status="complete")
    variables = {"R2_ENDPOINT_URL": worker_proxy.url, "SCAN_CONCURRENCY": "1"}
    with Cluster(tmp_path, None, **variables) as cluster, print_log_on_failure(cluster):
        cluster.wait_until(lambda: made.shards.filter(complete=True).exists())
        os.kill(cluster.worker_pid(), signal.SIGKILL)
        worker_proxy.rules.clear()
        tasks.sweep()
        assert not OrmQ.objects.filter(lock__lte=timezone.now()).exists()
        past = timezone.now() - timedelta(minutes=2)
        made.shards.exclude(lease_until=None).update(lease_until=past)
        BucketScan.objects.update(enqueued_at=past)
        tasks.sweep()
        cluster.wait_until(done.exists)
    assert set(Finding.objects.values_list("key", flat=True)) == bucket.keys()


def test_a_scan_goes_on_in_another_task_when_a_turn_is_over(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    made = start_four_parts(bucket)
    slow(worker_proxy)
    send_workers(made, 1)
    variables = {"R2_ENDPOINT_URL": worker_proxy.url, "SCAN_CONCURRENCY": "1"}
    with Cluster(tmp_path, turn_seconds=3, **variables) as cluster, print_log_on_failure(cluster):
        cluster.wait_until(lambda: "complete" in list_results())
    assert list_results().count("running") >= 1
    assert Finding.objects.count() == 4
