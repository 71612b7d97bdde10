"""What Prometheus is told: read from the database when it asks, and so true of all processes and
machines together."""

import platform
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from math import inf
from typing import Any

import django
from django.db import connection
from django.db.models import Count, Min, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from ninja.errors import AuthenticationError
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from storage_audit import __version__, queue
from storage_audit.api.auth import BearerToken, StaffSession, require
from storage_audit.api.problems import speaking
from storage_audit.bucket.models import StoreCalls
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.dashboard.daily_figures import Amount, last_complete_scan, left_behind_in_time
from storage_audit.findings.models import Finding
from storage_audit.redaction import visible
from storage_audit.scan.models.scan import FIGURES

PREFIX = "storage_audit_"
PERMISSION = "storage_audit.view_cleanupoperation"


@speaking
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """All figures, to a token or a session of somebody who may see cleanup operations."""
    if not (BearerToken()(request) or StaffSession()(request)):
        raise AuthenticationError
    require(request, PERMISSION)
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(REGISTRY), content_type=content_type)


class Figures(Collector):
    def collect(self) -> Iterator[Metric]:
        now = timezone.now()
        yield build()
        yield from cleanups()
        yield from left_behind()
        yield oldest_open_deletion(now)
        # With SYNC the work is done in the request: there is no worker to be late.
        if not conf().sync:
            yield from worker(now)
        yield store_calls()
        yield from last_scan(now)
        yield findings()


REGISTRY = CollectorRegistry()
REGISTRY.register(Figures())


def build() -> Metric:
    facts = {
        "version": __version__,
        "django": django.get_version(),
        "python": platform.python_version(),
        "database": connection.vendor,
    }
    return InfoMetricFamily(PREFIX + "build", "What runs here.", facts)


def cleanups() -> Iterator[Metric]:
    """In one pass over the table, and from its own counts, which outlive the items."""
    # A late check sees the same objects absent, or protected, once more.
    first = Q(parent=None)
    which = {"deleted": None, "already_absent": first, "protected": first}
    sums = {
        f"sum_{name}": Sum(name, filter=condition, default=0)
        for outcome, condition in which.items()
        for name in (outcome, f"{outcome}_bytes")
    }
    groups = CleanupOperation.objects.order_by().values("kind", "status", "dry_run")
    rows: list[dict[str, Any]] = [{**row} for row in groups.annotate(n=Count("*"), **sums)]
    yield by_status(rows)
    deletions = [
        row for row in rows if row["kind"] != CleanupOperation.Kind.VERIFY and not row["dry_run"]
    ]
    yield from books([row for row in deletions if row["status"] in CleanupOperation.ENDED])


def by_status(rows: list[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "operations", "Cleanup operations by their state.", labels=["kind", "status"]
    )
    numbers = Counter[tuple[str, str]]()
    for row in rows:
        numbers[row["kind"], row["status"]] += row["n"]
    for kind in CleanupOperation.Kind.values:
        for status in CleanupOperation.Status.values:
            family.add_metric([kind, status], numbers[kind, status])
    return family


def books(ended: list[dict[str, Any]]) -> Iterator[Metric]:
    # Only at the end for good: before it, a plan is made anew, and what was gone may be back.
    for unit, suffix in (("objects", ""), ("bytes", "_bytes")):
        family = CounterMetricFamily(
            f"{PREFIX}settled_{unit}",
            f"What cleanups are done with, in {unit}: deleted, found absent already, or protected.",
            labels=["outcome"],
            unit=unit,
        )
        for outcome in ("deleted", "already_absent", "protected"):
            family.add_metric([outcome], sum(row[f"sum_{outcome}{suffix}"] for row in ended))
        yield family


def left_behind() -> Iterator[Metric]:
    """As the dashboard has it. Absent while there is much of it and no sweep has counted it."""
    left = left_behind_in_time()
    for unit in Amount._fields:
        yield GaugeMetricFamily(
            f"{PREFIX}left_behind_{unit}",
            f"Files of deleted projects that no open cleanup covers, in {unit}.",
            getattr(left.amount, unit) if left else None,
            unit=unit,
        )


def oldest_open_deletion(now: datetime) -> Metric:
    deletions = CleanupOperation.objects.cleanups().open().with_asked_at()
    oldest = deletions.aggregate(at=Min("asked_at"))["at"]
    return GaugeMetricFamily(
        PREFIX + "oldest_open_deletion_age",
        "Time since the oldest deletion was asked for that has not ended; 0 when all have.",
        age(oldest or now, now),
        unit="seconds",
    )


def worker(now: datetime) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        PREFIX + "queue_tasks", "Tasks that no worker has taken yet.", queue.ready_tasks(now)
    )
    yield GaugeMetricFamily(
        PREFIX + "queue_oldest_task_age",
        "Time that the oldest task waits for a worker; 0 when none does.",
        age(queue.oldest_task_at() or now, now),
        unit="seconds",
    )
    due = queue.sweep_due_at()
    yield GaugeMetricFamily(
        PREFIX + "sweep_lateness",
        "The worker's heartbeat: how long its next sweep is overdue; infinite without a schedule.",
        age(due, now) if due else inf,
        unit="seconds",
    )


def store_calls() -> Metric:
    family = CounterMetricFamily(
        PREFIX + "store_calls",
        "Calls to the store, each attempt, by operation and by ok or the error.",
        labels=["kind", "result"],
    )
    for kind, result, number in StoreCalls.objects.values_list("kind", "result", "calls"):
        family.add_metric([kind, result], number)
    return family


def last_scan(now: datetime) -> Iterator[Metric]:
    """Of the whole bucket. What Prometheus keeps of its figures is their history."""
    bucket = visible(conf().bucket)
    latest = last_complete_scan()
    family = GaugeMetricFamily(
        PREFIX + "last_scan_age",
        "Time since a scan of the whole bucket was complete; infinite when none ever was.",
        labels=["bucket"],
        unit="seconds",
    )
    ended = latest and latest.finished_at
    family.add_metric([bucket], age(ended, now) if ended else inf)
    yield family
    family = GaugeMetricFamily(
        PREFIX + "last_scan_duration",
        "Time that it took; 0 when none ever was complete.",
        labels=["bucket"],
        unit="seconds",
    )
    family.add_metric([bucket], age(latest.started_at, ended) if latest and ended else 0)
    yield family
    family = GaugeMetricFamily(
        PREFIX + "last_scan_figures", "What it found.", labels=["bucket", "figure"]
    )
    for name in ("requests", *FIGURES):
        family.add_metric([bucket, name], getattr(latest, name) if latest else 0)
    yield family


def findings() -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "findings_open", "Differences that nobody decided on.", labels=["kind"]
    )
    groups = Finding.objects.open().order_by().values("kind").annotate(n=Count("*"))
    numbers = dict(groups.values_list("kind", "n"))
    for kind in Finding.Kind.values:
        family.add_metric([kind], numbers.get(kind, 0))
    return family


def age(moment: datetime, now: datetime) -> float:
    """In seconds, and 0 for what is yet to come."""
    return max(0.0, (now - moment).total_seconds())
