"""All strategies on projects of the same shape, made for that and cleaned up after, side by side.

Each project is on record as a deleted one, with its cleanup, before its first object is written.
So whatever stops the process, and when, a worker deletes what it left.
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
from storage_audit.bucket.listing import pages
from storage_audit.bucket.request_stats import Calls
from storage_audit.cleanup import requests, runner, succession
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.clocks import DatabaseNow
from storage_audit.conf import conf
from storage_audit.models import KnownProject
from storage_audit.origin import current_origin
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_formats import DEFAULT_KINDS, DEFAULT_TEMPLATES
from storage_audit.ownership.owner import layouts

Discovery, Status, Strategy, Trigger = (
    CleanupOperation.Discovery,
    CleanupOperation.Status,
    CleanupOperation.Strategy,
    CleanupOperation.Trigger,
)
WITH_WRANGLER = {Strategy.WRANGLER, Strategy.WRANGLER_SEQUENTIAL}
BODY = b"Written by compare_strategies, to be deleted.\n"
WRITERS = 8
# So long the objects may take to be written. A process that dies meanwhile leaves the operation,
# which a worker takes up then.
HOLD = timedelta(minutes=15)


class BenchmarkImpossible(Exception):
    """No project can be made up that is told from all others; the message says why."""


@dataclass
class Run:
    """One strategy, and what came of it; `obstacle` is why it was not tried."""

    strategy: str
    project_id: str
    objects: int
    obstacle: str = ""
    operation: CleanupOperation | None = None
    seconds: float = 0.0
    calls: Calls = field(default_factory=Counter)
    left: int = 0
    cleared_by: CleanupOperation | None = None
    over: bool = False

    @property
    def speed(self) -> float:
        """Objects that went in a second, with the look before and the verification after."""
        return (self.objects - self.left) / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> int:
        """Calls that failed. What the store says that it cannot do at all is no failure."""
        fine = (request_stats.OK, "NotImplemented")
        return sum(n for (_kind, result), n in self.calls.items() if result not in fine)

    @property
    def cost(self) -> float:
        """In US dollars, an estimate."""
        return prices.dollars((kind, n) for (kind, _result), n in self.calls.items())

    @property
    def succeeded(self) -> bool:
        clean = self.operation is not None and self.operation.status == Status.CLEAN
        return bool(self.obstacle) or clean and not self.left


def prepare(strategies: list[str], objects: int) -> list[Run]:
    """What is going to be tried, each on a project of its own. Writes nothing.

    Raises BenchmarkImpossible, and CannotConclude and StoreError when this is no bucket of ours.
    """
    bucket_marker.check(conf().bucket)
    obstacle = obstacle_to_wrangler(objects) if WITH_WRANGLER & set(strategies) else ""
    runs = [
        Run(name, made_up_id(), objects, obstacle if name in WITH_WRANGLER else "")
        for name in strategies
    ]
    for run in runs:
        refuse_shared(run)
    return runs


def made_up_id() -> str:
    """Without a second underscore, which would let flat keys be read as other projects' too."""
    return "proj_compare-" + "".join(secrets.choice(ascii_lowercase) for _letter in range(12))


def obstacle_to_wrangler(objects: int) -> str:
    """Why it cannot be tried here, or nothing: it is there, new enough, and may list buckets."""
    if objects > conf().wrangler_limit:
        return _("Wrangler is not started for more than %s objects.") % conf().wrangler_limit
    try:
        wrangler.buckets(ran=lambda command: None)
    except StoreError as error:
        return str(error)
    return ""


def keys_of(project_id: str, objects: int) -> list[str]:
    """Keys in every layout in turn, those of long ago too."""
    templates = cycle((conf().layouts or DEFAULT_TEMPLATES).values())
    kind = (conf().kinds or DEFAULT_KINDS)[0]
    return [
        template.format(
            project=project_id, kind=kind, scene=f"s{n}", filename=f"take{n}.mp4", ext="mp4"
        )
        for n, template in enumerate(islice(templates, objects))
    ]


def refuse_shared(run: Run) -> None:
    for key in keys_of(run.project_id, run.objects):
        owners = {reading.project for reading in layouts().readings(key)}
        if owners != {run.project_id}:
            text = _("%(key)s would not be read as a key of %(id)s alone, so nothing is written.")
            raise BenchmarkImpossible(text % {"key": key, "id": run.project_id})


def try_all(runs: list[Run]) -> Iterator[Run]:
    """Try one after the other; gives each when it is over. Raises StoreError and CannotConclude
    when the objects cannot be written, or what is left not be seen."""
    for run in runs:
        if not run.obstacle:
            try_one(run)
        yield run


def try_one(run: Run) -> None:
    operation = run.operation = record(run.project_id, run.strategy)
    try:
        write(operation.bucket, keys_of(run.project_id, run.objects))
    finally:
        operation.make_due()
    before, started = request_stats.total(), monotonic()
    run.operation = run_to_its_end(operation)
    run.seconds = monotonic() - started
    run.calls = request_stats.total() - before
    run.left = count_left(operation.bucket, run.project_id)
    if run.left:
        run.cleared_by = run_to_its_end(record(run.project_id, Strategy.BATCH, timedelta(0)))
    run.over = True


@transaction.atomic
def record(project_id: str, strategy: str, hold: timedelta = HOLD) -> CleanupOperation:
    """The cleanup of a project that never lived, without limits: its size is what was asked for.
    Raises ProjectExists and ValidationError."""
    requests.declare(project_id)
    # Of a deletion of its own: the one before may not be over.
    deleted_at = timezone.now()
    KnownProject.objects.saw_deleted(project_id, deleted_at, KnownProject.Evidence.DECLARED)
    [operation] = succession.request_cleanups(
        project_id,
        trigger=Trigger.TRIAL,
        deleted_at=deleted_at,
        discovery=Discovery.LISTED,
        strategy=strategy,
        released_by=current_origin().user or "command",
        next_attempt_at=DatabaseNow(hold),
    )
    return operation


def write(bucket: str, keys: list[str]) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(partial(s3.write, bucket, body=BODY), keys))


def run_to_its_end(operation: CleanupOperation) -> CleanupOperation:
    while (ran := runner.run(operation.pk)).status in (Status.PENDING, Status.RUNNING):
        sleep(1)  # A worker of the queue was quicker; its calls are not among ours.
    return ran


def count_left(bucket: str, project_id: str) -> int:
    found = (pages(bucket, prefix) for prefix in layouts().prefixes(project_id))
    left = sum(len(page) for listing in found for page in listing)
    bucket_marker.see_marker(bucket)
    return left
