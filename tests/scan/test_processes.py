"""`--processes`: a command whose scan several processes of the machine do."""

import os
import signal
import time
from pathlib import Path
from threading import Barrier, Event

import pytest
from django.db.models import Sum
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket.models import RequestCount
from storage_audit.management.scan_processes import extra_processes
from storage_audit.scan.models import BucketScan
from tests.faults.matching import is_listing, is_listing_at, is_listing_under, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.processes import Command
from tests.real_bucket import Bucket
from tests.run_command import run_command
from tests.scan.listing_in_memory import list_open_findings, start_four_parts

LISTED = {(letter * 3, "unrecognised") for letter in "adpz"}


def two(folder: Path, begun: BucketScan, way: FaultyStore) -> Command:
    arguments = ["reconcile_r2", "--resume", str(begun.pk), "--processes", "2"]
    return Command(folder, *arguments, R2_ENDPOINT_URL=way.url)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_up(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def calls(kind: str) -> int:
    return RequestCount.objects.filter(request=kind).aggregate(all=Sum("count"))["all"] or 0


def test_two_processes_share_a_scan_and_count_together(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, before = start_four_parts(bucket), calls("ListObjectsV2")
    # Each lists one part at a time, and the first two parts wait for each other.
    both = Barrier(2, timeout=20)
    worker_proxy.rules.append(rule_for(is_listing_at("", "c"), run_before(both.wait), times=2))
    with two(tmp_path, begun, worker_proxy) as command:
        assert command.wait() == 0, command.tail()
        said = command.tail()
    assert "4 unrecognised files:" in said and "Traceback" not in said
    begun.refresh_from_db()
    assert (begun.status, begun.listed, begun.unrecognised) == ("complete", 4, 4)
    assert list_open_findings() == LISTED
    assert begun.requests == len(worker_proxy.find_requests(is_listing_under(""))) == 4
    assert calls("ListObjectsV2") - before == len(worker_proxy.find_requests(is_listing))


def test_ctrl_c_stops_both_at_a_page(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, both, told = start_four_parts(bucket), Barrier(3, timeout=20), Event()
    wait = run_before(both.wait, lambda: told.wait(20), lambda: time.sleep(1))
    worker_proxy.rules.append(rule_for(is_listing_at("", "c"), wait, times=2))
    with two(tmp_path, begun, worker_proxy) as command:
        both.wait()
        os.killpg(command.pid, signal.SIGINT)
        told.set()
        assert command.wait() == 130
        (said,) = command.tail().splitlines()
    begun.refresh_from_db()
    assert begun.status == "stopped"
    assert said.startswith("CommandError: Interrupted after 0 objects.")
    assert not begun.shards.exclude(lease_token=None).exists()
    assert run_command("reconcile_r2", "--resume", str(begun.pk), "--processes", "1")[2] == 0
    assert list_open_findings() == LISTED


def test_one_goes_on_when_the_other_is_killed(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, both, killed = start_four_parts(bucket), Barrier(3, timeout=20), Event()
    worker_proxy.rules.append(
        rule_for(is_listing_at("", "c"), run_before(both.wait, lambda: killed.wait(20)), times=2)
    )
    with two(tmp_path, begun, worker_proxy) as command:
        both.wait()
        (other,) = children(command.pid)
        os.kill(other, signal.SIGKILL)
        begun.shards.exclude(lease_until=None).update(lease_until=timezone.now())  # time passes
        killed.set()
        assert command.wait() == 0, command.tail()
    begun.refresh_from_db()
    assert (begun.status, begun.listed) == ("complete", 4)
    assert list_open_findings() == LISTED


def test_none_goes_on_when_the_command_is_killed(
    bucket: Bucket, worker_proxy: FaultyStore, tmp_path: Path
) -> None:
    begun, both, killed = start_four_parts(bucket), Barrier(3, timeout=20), Event()
    worker_proxy.rules.append(
        rule_for(is_listing_at("", "c"), run_before(both.wait, lambda: killed.wait(20)), times=2)
    )
    with two(tmp_path, begun, worker_proxy) as command:
        both.wait()
        (other,) = children(command.pid)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        killed.set()
        deadline = time.monotonic() + 20
        while is_up(other) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_up(other)
    begun.refresh_from_db()
    # Somebody may have resumed it by now, so the other does not stop it.
    assert begun.status == "running"
    assert begun.shards.unfinished().exists() and list_open_findings() == set()
    begun.shards.update(lease_until=timezone.now())  # as after a minute
    assert run_command("reconcile_r2", "--resume", str(begun.pk))[2] == 0
    assert list_open_findings() == LISTED


def test_none_is_waited_for_when_the_command_fails(
    bucket: Bucket, worker_proxy: FaultyStore, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "ENDPOINT_URL": worker_proxy.url}
    begun, listing, over = start_four_parts(bucket), Event(), Event()
    worker_proxy.rules.append(
        rule_for(is_listing_under(""), run_before(listing.set, lambda: over.wait(60)))
    )
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="as it is"), extra_processes(begun, 1):
        assert listing.wait(20)
        raise RuntimeError("as it is")
    assert time.monotonic() - began < 30
    over.set()


@pytest.mark.parametrize("number", ["0", "65"])
def test_how_many_there_can_be(bucket: Bucket, number: str) -> None:
    _out, err, code = run_command("reconcile_r2", "--processes", number)
    assert code == 2
    assert "--processes: use 1 to 64." in err
    assert not BucketScan.objects.exists()
