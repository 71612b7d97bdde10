"""Benchmarks all strategies on made-up projects of the same shape, and cleans up after them.

Each project is recorded as deleted, with its cleanup, before its first object is written. So if the
process stops at any time, a worker deletes its objects.
"""

import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import cycle, islice
from string import ascii_lowercase
from time import monotonic, sleep

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import prices, request_stats, s3, wrangler
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import object_pages
from storage_audit.bucket.request_stats import CallCounts
from storage_audit.cleanup import make_cleanups, requests, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.models import KnownProject
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_formats import DEFAULT_KINDS, DEFAULT_TEMPLATES
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.request_origin import current_origin

Discovery, Status, Strategy, Trigger = (
    Cleanup.Discovery,
    Cleanup.Status,
    Cleanup.Strategy,
    Cleanup.Trigger,
)
WRANGLER_STRATEGIES = {Strategy.WRANGLER, Strategy.WRANGLER_SEQUENTIAL}
OBJECT_BODY = b"Written by compare_strategies, to be deleted.\n"
WRITER_THREADS = 8
# How long writing the objects may take. If the process dies meanwhile, a worker takes up the
# cleanup after this time.
MAX_WRITE_TIME = timedelta(minutes=15)


class BenchmarkImpossible(Exception):
    """No made-up project would be distinguishable from all others; the message says why."""


@dataclass
class BenchmarkRun:
    """One strategy and its result; `obstacle` is why it cannot run here."""

    strategy: str
    project_id: str
    objects: int
    obstacle: str = ""
    cleanup: Cleanup | None = None
    seconds: float = 0.0
    request_counts: CallCounts = field(default_factory=Counter)
    objects_left: int = 0
    cleared_by: Cleanup | None = None
    is_over: bool = False

    @property
    def objects_per_second(self) -> float:
        """Objects deleted in a second, with the listing before and the verification after."""
        return (self.objects - self.objects_left) / self.seconds if self.seconds else 0.0

    @property
    def error_count(self) -> int:
        """Calls that failed. What the store does not implement is no failure."""
        fine = (request_stats.OK, "NotImplemented")
        return sum(n for (_kind, result), n in self.request_counts.items() if result not in fine)

    @property
    def cost_usd(self) -> float:
        """In US dollars, an estimate."""
        return prices.cost_in_dollars(
            (kind, n) for (kind, _result), n in self.request_counts.items()
        )

    @property
    def is_successful(self) -> bool:
        clean = self.cleanup is not None and self.cleanup.status == Status.CLEAN
        return bool(self.obstacle) or clean and not self.objects_left


def prepare_runs(strategies: list[str], objects: int) -> list[BenchmarkRun]:
    """The runs to do, each on a project of its own. Writes nothing.

    Raises BenchmarkImpossible; CannotConclude and StoreError when the bucket is not ours.
    """
    bucket_marker.check_bucket(conf().bucket)
    obstacle = obstacle_to_wrangler(objects) if WRANGLER_STRATEGIES & set(strategies) else ""
    runs = [
        BenchmarkRun(
            name, random_project_id(), objects, obstacle if name in WRANGLER_STRATEGIES else ""
        )
        for name in strategies
    ]
    for run in runs:
        require_unshared_keys(run)
    return runs


def random_project_id() -> str:
    """Without a second underscore, or flat keys could be other projects' too."""
    return "proj_compare-" + "".join(secrets.choice(ascii_lowercase) for _letter in range(12))


def obstacle_to_wrangler(objects: int) -> str:
    """Why wrangler cannot run here, or nothing if it is new enough and may list buckets."""
    if objects > conf().wrangler_limit:
        return _("wrangler is limited to %s objects.") % conf().wrangler_limit
    try:
        wrangler.list_buckets(on_command=lambda command: None)
    except StoreError as error:
        return str(error)
    return ""


def benchmark_keys(project_id: str, objects: int) -> list[str]:
    """Keys in every key format in turn, also in old ones."""
    templates = cycle((conf().key_formats or DEFAULT_TEMPLATES).values())
    kind = (conf().media_kinds or DEFAULT_KINDS)[0]
    return [
        template.format(
            project=project_id, kind=kind, scene=f"s{n}", filename=f"take{n}.mp4", ext="mp4"
        )
        for n, template in enumerate(islice(templates, objects))
    ]


def require_unshared_keys(run: BenchmarkRun) -> None:
    for key in benchmark_keys(run.project_id, run.objects):
        owners = {parsed_key.project for parsed_key in get_key_formats().parse_key(key)}
        if owners != {run.project_id}:
            text = _("Nothing was written: %(key)s would not belong to %(id)s alone.")
            raise BenchmarkImpossible(text % {"key": key, "id": run.project_id})


def run_all(runs: list[BenchmarkRun]) -> Iterator[BenchmarkRun]:
    """Run one after the other; yields each when it is over. Raises StoreError and CannotConclude
    when the objects cannot be written, or what is left cannot be listed."""
    for run in runs:
        if not run.obstacle:
            run_one(run)
        yield run


def run_one(run: BenchmarkRun) -> None:
    cleanup = run.cleanup = record_cleanup(run.project_id, run.strategy)
    try:
        write_objects(cleanup.bucket, benchmark_keys(run.project_id, run.objects))
    finally:
        cleanup.make_due()
    before, started = request_stats.total_counts(), monotonic()
    run.cleanup = run_until_over(cleanup)
    run.seconds = monotonic() - started
    run.request_counts = request_stats.total_counts() - before
    run.objects_left = count_remaining(cleanup.bucket, run.project_id)
    if run.objects_left:
        run.cleared_by = run_until_over(
            record_cleanup(run.project_id, Strategy.BATCH, timedelta(0))
        )
    run.is_over = True


@transaction.atomic
def record_cleanup(project_id: str, strategy: str, hold: timedelta = MAX_WRITE_TIME) -> Cleanup:
    """The cleanup of the made-up project, without limits, as its size is intended. Raises
    ProjectExists and ValidationError."""
    requests.record_deletion(project_id)
    # A deletion of its own, as the one before may not be over.
    deleted_at = timezone.now()
    KnownProject.objects.record_deleted(project_id, deleted_at, KnownProject.Evidence.DECLARED)
    [cleanup] = make_cleanups.request_cleanups(
        project_id,
        trigger=Trigger.BENCHMARK,
        deleted_at=deleted_at,
        discovery=Discovery.LISTED,
        strategy=strategy,
        limits_waived_by=current_origin().user or "command",
        next_attempt_at=DatabaseNow(hold),
    )
    return cleanup


def write_objects(bucket: str, keys: list[str]) -> None:
    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        list(pool.map(partial(s3.write_object, bucket, body=OBJECT_BODY), keys))


def run_until_over(cleanup: Cleanup) -> Cleanup:
    while (ran := runner.run_to_end(cleanup.pk)).status in (Status.PENDING, Status.RUNNING):
        sleep(1)  # A queue worker was quicker; its calls are not counted.
    return ran


def count_remaining(bucket: str, project_id: str) -> int:
    found = (object_pages(bucket, prefix) for prefix in get_key_formats().prefixes_of(project_id))
    left = sum(len(page) for listing in found for page in listing)
    bucket_marker.require_marker(bucket)
    return left
