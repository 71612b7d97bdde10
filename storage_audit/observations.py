"""What was seen of the environment: reports of the doctor's probes, calls to the store, and how
much each day held."""

import uuid
from collections.abc import Mapping
from datetime import date
from typing import Any, Self

from django.db import models
from django.db.models import F, Max, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import latest
from storage_audit.locking import impatient


class DiagnosisQuerySet(models.QuerySet["Diagnosis"]):
    def latest_first(self) -> Self:
        """But for times to come, which a clock that was ahead has written."""
        return self.filter(at__lte=latest()).order_by("-at", "-pk")

    def prune(self, kept: int) -> None:
        """Delete all runs but the latest."""
        runs = self.values("run").annotate(latest=Max("at", filter=Q(at__lte=latest())))
        runs = runs.order_by(F("latest").desc(nulls_last=True))
        self.exclude(run__in=list(runs.values_list("run", flat=True)[:kept])).delete()


class Diagnosis(models.Model):
    """The answers of all probes in one process. Those of one `run` are compared side by side."""

    class Context(models.TextChoices):
        WEB = "web", _("web server")
        WORKER = "worker", _("queue worker")
        SHELL = "shell", _("shell")

    run = models.UUIDField(_("run"), default=uuid.uuid4, db_index=True)
    context = models.CharField(_("process"), max_length=10, choices=Context)
    host = models.TextField(_("host"))
    pid = models.PositiveIntegerField(_("process id"))
    at = models.DateTimeField(_("time"), default=timezone.now, db_index=True)
    # A list of results: name, status, summary, advice, facts, readings; redacted.
    probes = models.JSONField(_("probes"), default=list)

    objects = DiagnosisQuerySet.as_manager()

    class Meta:
        verbose_name = _("diagnosis")
        verbose_name_plural = _("diagnoses")
        constraints = [
            models.CheckConstraint(
                condition=Q(context__in=["web", "worker", "shell"]), name="diagnosis_context_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_context_display()}, {self.host}"


class StoreCallsQuerySet(models.QuerySet["StoreCalls"]):
    def add(self, calls: Mapping[tuple[str, str], int]) -> None:
        """Add these numbers of calls, by kind and result: all of them or, with an error, none.

        Always in one order, so that no two processes wait for each other's rows.
        """
        numbers = sorted(calls.items())
        rows = [self.model(kind=kind, result=result) for (kind, result), _number in numbers]
        with impatient():
            self.bulk_create(rows, ignore_conflicts=True)
            for (kind, result), number in numbers:
                self.filter(kind=kind, result=result).update(calls=F("calls") + number)


class StoreCalls(models.Model):
    """How many calls of one kind, such as ListObjectsV2, had one result, such as ok or SlowDown,
    in all processes together."""

    kind = models.CharField(_("kind"), max_length=50)
    result = models.CharField(_("result"), max_length=50)
    calls = models.PositiveBigIntegerField(_("calls"), default=0)

    objects = StoreCallsQuerySet.as_manager()

    class Meta:
        verbose_name = _("calls to the store")
        verbose_name_plural = _("calls to the store")
        constraints = [
            models.UniqueConstraint(fields=["kind", "result"], name="calls_counted_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.result}"


class DailyFiguresQuerySet(models.QuerySet["DailyFigures"]):
    def latest_first(self) -> Self:
        """But for days to come, which a clock that was ahead has written."""
        return self.filter(day__lte=timezone.localdate()).order_by("-day")

    def between(self, first: date, last: date) -> Self:
        return self.filter(day__range=(first, last))

    def take(self, **figures: Any) -> None:
        """Those of today, in place of what was taken earlier in the day."""
        row = self.model(day=timezone.localdate(), taken_at=timezone.now(), **figures)
        written = ["taken_at", *figures]
        # One statement: of two sweeps at once neither makes a second row, and neither fails.
        self.bulk_create([row], update_conflicts=True, unique_fields=["day"], update_fields=written)


class DailyFigures(models.Model):
    """What was tracked and left behind on a day, as the last sweep of it that counted saw it."""

    day = models.DateField(_("day"), unique=True)
    taken_at = models.DateTimeField(_("taken"))
    tracked = models.PositiveBigIntegerField(_("tracked objects"))
    tracked_bytes = models.PositiveBigIntegerField(_("tracked bytes"))
    left_behind = models.PositiveBigIntegerField(_("left behind"))
    left_behind_bytes = models.PositiveBigIntegerField(_("bytes left behind"))
    # The first ids of projects that the setting PROJECT_ID does not accept.
    refused_ids = models.JSONField(default=list, editable=False)
    # {file type: [objects, bytes]}, the largest ones; the rest of them together.
    file_types = models.JSONField(_("file types"), default=dict)

    objects = DailyFiguresQuerySet.as_manager()

    class Meta:
        verbose_name = _("daily figures")
        verbose_name_plural = _("daily figures")

    def __str__(self) -> str:
        return str(self.day)
