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
from storage_audit.api.auth import BearerToken, StaffSession, require_permission
from storage_audit.api.problems import report_problems
from storage_audit.bucket.models import RequestCount
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.dashboard.daily_figures import Amount, last_complete_scan, latest_leftovers
from storage_audit.findings.models import Finding
from storage_audit.redaction import printable_text
from storage_audit.scan.models.scan import COUNT_FIELDS

METRIC_PREFIX = "storage_audit_"
METRICS_PERMISSION = "storage_audit.view_cleanup"


@report_problems
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """All figures, to a token or a session of somebody who may see cleanups."""
    if not (BearerToken()(request) or StaffSession()(request)):
        raise AuthenticationError
    require_permission(request, METRICS_PERMISSION)
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(REGISTRY), content_type=content_type)


class MetricsCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        now = timezone.now()
        yield build_info_metric()
        yield from cleanup_metrics()
        yield from leftover_metrics()
        yield oldest_deletion_metric(now)
        # With SYNC the work is done in the request: there is no worker to be late.
        if not conf().sync:
            yield from worker_metrics(now)
        yield store_request_metric()
        yield from last_scan_metrics(now)
        yield finding_metric()


REGISTRY = CollectorRegistry()
REGISTRY.register(MetricsCollector())


def build_info_metric() -> Metric:
    facts = {
        "version": __version__,
        "django": django.get_version(),
        "python": platform.python_version(),
        "database": connection.vendor,
    }
    return InfoMetricFamily(METRIC_PREFIX + "build", "The version that is running.", facts)


def cleanup_metrics() -> Iterator[Metric]:
    """In one pass over the table, and from its own counts, which outlive the items."""
    # A follow-up check counts the same objects as already gone, or kept, once more.
    first = Q(parent=None)
    which = {"deleted": None, "already_gone": first, "kept": first}
    sums = {
        f"sum_{name}": Sum(name, filter=condition, default=0)
        for outcome, condition in which.items()
        for name in (outcome, f"{outcome}_bytes")
    }
    groups = Cleanup.objects.order_by().values("kind", "status", "dry_run")
    rows: list[dict[str, Any]] = [{**row} for row in groups.annotate(n=Count("*"), **sums)]
    yield status_metric(rows)
    deletions = [row for row in rows if row["kind"] != Cleanup.Kind.VERIFY and not row["dry_run"]]
    yield from outcome_metrics([row for row in deletions if row["status"] in Cleanup.ENDED])


def status_metric(rows: list[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily(
        METRIC_PREFIX + "cleanups", "Cleanups by state.", labels=["kind", "status"]
    )
    numbers = Counter[tuple[str, str]]()
    for row in rows:
        numbers[row["kind"], row["status"]] += row["n"]
    for kind in Cleanup.Kind.values:
        for status in Cleanup.Status.values:
            family.add_metric([kind, status], numbers[kind, status])
    return family


def outcome_metrics(ended: list[dict[str, Any]]) -> Iterator[Metric]:
    # Only of cleanups that ended for good: until then a plan may be made again, and what was gone
    # may be back.
    for unit, suffix in (("objects", ""), ("bytes", "_bytes")):
        family = CounterMetricFamily(
            f"{METRIC_PREFIX}cleaned_{unit}",
            f"Results of ended cleanups, in {unit}: deleted, already gone, or kept.",
            labels=["outcome"],
            unit=unit,
        )
        for outcome in ("deleted", "already_gone", "kept"):
            family.add_metric([outcome], sum(row[f"sum_{outcome}{suffix}"] for row in ended))
        yield family


def leftover_metrics() -> Iterator[Metric]:
    """As the dashboard shows it. Has no value while there is much and no sweep has counted it."""
    left = latest_leftovers()
    for unit in Amount._fields:
        yield GaugeMetricFamily(
            f"{METRIC_PREFIX}leftover_{unit}",
            f"Files of deleted projects that no open cleanup covers, in {unit}.",
            getattr(left.amount, unit) if left else None,
            unit=unit,
        )


def oldest_deletion_metric(now: datetime) -> Metric:
    deletions = Cleanup.objects.requested_deletions().open().not_held().with_asked_at()
    oldest = deletions.aggregate(at=Min("asked_at"))["at"]
    return GaugeMetricFamily(
        METRIC_PREFIX + "oldest_open_deletion_age",
        "Time since the request of the oldest deletion that has not ended; 0 if all have ended.",
        seconds_since(oldest or now, now),
        unit="seconds",
    )


def worker_metrics(now: datetime) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        METRIC_PREFIX + "queue_tasks",
        "Tasks waiting for a worker.",
        queue.count_ready_tasks(now),
    )
    yield GaugeMetricFamily(
        METRIC_PREFIX + "queue_oldest_task_age",
        "Waiting time of the oldest task in the queue; 0 if none waits.",
        seconds_since(queue.oldest_task_at() or now, now),
        unit="seconds",
    )
    due = queue.sweep_due_at()
    yield GaugeMetricFamily(
        METRIC_PREFIX + "sweep_lateness",
        "The worker's heartbeat: how long its next regular check is overdue; infinite"
        " without a schedule.",
        seconds_since(due, now) if due else inf,
        unit="seconds",
    )


def store_request_metric() -> Metric:
    family = CounterMetricFamily(
        METRIC_PREFIX + "store_requests",
        "Requests to the store, counting each attempt, by kind and result (ok or the error).",
        labels=["kind", "result"],
    )
    for kind, result, number in RequestCount.objects.values_list("request", "result", "count"):
        family.add_metric([kind, result], number)
    return family


def last_scan_metrics(now: datetime) -> Iterator[Metric]:
    """Of the whole bucket. What Prometheus keeps of its figures is their history."""
    bucket = printable_text(conf().bucket)
    latest = last_complete_scan()
    family = GaugeMetricFamily(
        METRIC_PREFIX + "last_scan_age",
        "Time since the last complete scan of the whole bucket; infinite if there was none.",
        labels=["bucket"],
        unit="seconds",
    )
    ended = latest and latest.finished_at
    family.add_metric([bucket], seconds_since(ended, now) if ended else inf)
    yield family
    family = GaugeMetricFamily(
        METRIC_PREFIX + "last_scan_duration",
        "Duration of that scan; 0 if there was none.",
        labels=["bucket"],
        unit="seconds",
    )
    family.add_metric([bucket], seconds_since(latest.started_at, ended) if latest and ended else 0)
    yield family
    family = GaugeMetricFamily(
        METRIC_PREFIX + "last_scan_figures", "Findings of that scan.", labels=["bucket", "figure"]
    )
    for name in ("requests", *COUNT_FIELDS):
        family.add_metric([bucket, name], getattr(latest, name) if latest else 0)
    yield family


def finding_metric() -> Metric:
    family = GaugeMetricFamily(METRIC_PREFIX + "findings_open", "Open findings.", labels=["kind"])
    groups = Finding.objects.open().order_by().values("kind").annotate(n=Count("*"))
    numbers = dict(groups.values_list("kind", "n"))
    for kind in Finding.Kind.values:
        family.add_metric([kind], numbers.get(kind, 0))
    return family


def seconds_since(moment: datetime, now: datetime) -> float:
    """In seconds, and 0 for what is yet to come."""
    return max(0.0, (now - moment).total_seconds())
