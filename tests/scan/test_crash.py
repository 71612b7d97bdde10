"""A scan whose processes are killed again and again ends as if none had been."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from random import Random
from threading import Event
from typing import Any

import pytest
from django.utils import timezone

from storage_audit.bucket import s3
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.scan.models import BucketScan, ScanShard
from storage_audit.scan.start import start_scan
from tests.faults.matching import is_listing_under, rule_for, run_before
from tests.faults.proxy import FaultyStore
from tests.paths import ROOT
from tests.processes import database_url
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import add_projects, complete_reconcile, nth_key

KILLS, SEED = 50, 20261126
# Imports everything once; then each process is a copy of it, made in no time.
SCRIPT = """
import os, sys
import django
django.setup()
from storage_audit.bucket import s3
from storage_audit.scan import fetchers, shards, worker
from storage_audit.scan.models import BucketScan

s3.PAGE_SIZE = shards.PAGE_SIZE = 10
fetchers.PAGES_PER_BATCH, fetchers.RETRY_PAUSES_SECONDS = 4, (0.01,) * 3
worker.LONGEST_WAIT_SECONDS = 0.01
s3._shared_session()
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        found = BucketScan.objects.get(pk=line.strip())
        found.resume()
        for _batch in worker.work_on_scan(found):
            pass
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
PROJECTS = [f"proj_{n}" for n in range(6)]
KEYS = [nth_key(n, project) for project in PROJECTS for n in range(60)]
STRANGERS = ["README.txt", "~", "\u00e9", "proj_1_x_s1_media.mp4", nth_key(1, "proj_proj_1")]


@pytest.fixture
def full(bucket: Bucket) -> Iterator[Bucket]:
    add_projects(*PROJECTS[1:], "proj_1_x")
    keys = [*KEYS, *STRANGERS]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(bucket.put, keys))
    yield bucket
    s3.delete_batch(bucket.name, keys)


class Maker:
    """Makes processes, and kills them after a while."""

    def __init__(self, process: "subprocess.Popen[str]", random: Random) -> None:
        self.process, self.random = process, random
        self.kills = 0
        # So long an undisturbed one takes.
        self.longest = 0.0

    def say(self, text: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def live(self, found: BucketScan) -> None:
        began = time.monotonic()
        self.say(str(found.pk))
        assert self.process.stdout
        assert int(self.process.stdout.readline()) == 0
        self.longest = time.monotonic() - began
        found.refresh_from_db()

    def live_and_die(self, found: BucketScan) -> None:
        """One process's part in the scan; it may end before it is killed."""
        child = int(self.say(str(found.pk)))
        time.sleep(self.random.uniform(0, self.longest))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        assert self.process.stdout
        status = int(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL)
        self.kills += status == signal.SIGKILL
        # Time passes, and nobody has heard of it.
        ScanShard.objects.filter(scan=found).exclude(lease_until=None).update(
            lease_until=timezone.now()
        )
        found.refresh_from_db()


@contextmanager
def maker(seed: int) -> Iterator[Maker]:
    environment = {"DJANGO_SETTINGS_MODULE": "autoshorts.settings", "DATABASE_URL": database_url()}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            while process.stdout.readline() not in ("ready\n", ""):
                pass
            yield Maker(process, Random(seed))
        finally:
            process.kill()


def rows() -> list[dict[str, Any]]:
    times = ("id", "created_at", "updated_at")
    values = R2Object.objects.order_by("key").values()
    return [{name: v for name, v in row.items() if name not in times} for row in values]


def said() -> list[tuple[Any, ...]]:
    names = ("kind", "key", "state", "project_id", "size", "etag", "last_modified", "evidence")
    return list(Finding.objects.order_by("kind", "key").values_list(*names))


def forget() -> None:
    Finding.objects.all().delete()
    BucketScan.objects.all().delete()


def killed(hand: Maker, begin: Callable[[], BucketScan], kills: int) -> int:
    """Scans from the beginning to the end, until so many processes were killed; how many."""
    ended = 0
    undisturbed: Any = None
    while undisturbed is None or hand.kills < kills:
        forget()
        found = begin()
        if undisturbed is None:
            hand.live(found)
        while found.status == "running":
            hand.live_and_die(found)
        assert (found.status, found.message) == ("complete", "")
        ends = found.listed, found.listed_bytes, said(), rows()
        undisturbed = undisturbed or ends
        assert ends == undisturbed
        assert sum(found.shards.values_list("listed", flat=True)) == found.listed
        assert not found.pending_findings.exists()
        ended += 1
    return ended


def test_a_scan_killed_again_and_again_ends_as_if_it_had_not_been(full: Bucket) -> None:
    def backfill() -> BucketScan:
        R2Object.objects.all().delete_without_signals()
        return start_scan()

    def reconcile() -> BucketScan:
        return start_scan(purpose=BucketScan.Purpose.RECONCILE)

    with maker(SEED) as hand:
        assert killed(hand, backfill, KILLS // 2) > 1
        assert len(rows()) == len(KEYS) + len(STRANGERS)
        R2Object.objects.filter(key__in=KEYS[::7]).delete_without_signals()
        R2Object.objects.filter(key__in=KEYS[3::11]).update(size=1)
        gone = [nth_key(n, "proj_2") for n in range(500, 520)]
        R2Object.objects.bulk_create(
            R2Object(bucket=full.name, key=key, state="stored", source="upload") for key in gone
        )
        R2Object.objects.update(updated_at=timezone.now())
        assert killed(hand, reconcile, hand.kills + KILLS // 2) > 1
        kinds = set(Finding.objects.values_list("kind", flat=True))
        assert {"missing", "untracked", "changed", "orphaned", "misnamed"} <= kinds
        assert hand.kills >= KILLS


def test_the_command_goes_on_where_one_that_was_killed_stopped(
    full: Bucket, worker_proxy: FaultyStore
) -> None:
    def command(*more: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"DJANGO_SETTINGS_MODULE": "autoshorts.settings", **variables}
        return subprocess.Popen(
            [sys.executable, "manage.py", "reconcile_r2", *more],
            cwd=ROOT,
            env=os.environ | environment | {"DATABASE_URL": database_url()},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    is_listing, is_dead = Event(), Event()
    held = run_before(is_listing.set, lambda: is_dead.wait(timeout=60))
    worker_proxy.rules.append(rule_for(is_listing_under(""), held))
    with command(R2_ENDPOINT_URL=worker_proxy.url) as first:
        assert is_listing.wait(timeout=60)
        first.kill()
    is_dead.set()
    assert ScanShard.objects.exclude(lease_token=None).exists()
    found = BucketScan.objects.get()
    assert (found.status, Finding.objects.count()) == ("running", 0)
    ScanShard.objects.update(lease_until=timezone.now())
    with command("--resume", str(found.pk)) as second:
        out = second.communicate()[0]
    assert second.returncode == 0, out
    found.refresh_from_db()
    assert (found.status, found.listed) == ("complete", len(KEYS) + len(STRANGERS))
    assert re.search(rf"\b{len(KEYS) + len(STRANGERS)}\b", out)
    before = said()
    forget()
    complete_reconcile()
    assert said() == before
