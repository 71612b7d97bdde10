"""The table of health reports."""

import uuid
from typing import Self

from django.db import models
from django.db.models import F, Max, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import latest_valid_time


class HealthReportQuerySet(models.QuerySet["HealthReport"]):
    def latest_first(self) -> Self:
        """Without future times, which a fast clock has written."""
        return self.filter(at__lte=latest_valid_time()).order_by("-at", "-pk")

    def prune(self, kept: int) -> None:
        """Delete all runs but the latest."""
        runs = self.values("run").annotate(latest=Max("at", filter=Q(at__lte=latest_valid_time())))
        runs = runs.order_by(F("latest").desc(nulls_last=True))
        self.exclude(run__in=list(runs.values_list("run", flat=True)[:kept])).delete()


class HealthReport(models.Model):
    """The results of all probes in one process. Reports of one `run` are compared."""

    class Context(models.TextChoices):
        WEB = "web", _("web server")
        WORKER = "worker", _("queue worker")
        SHELL = "shell", _("shell")

    run = models.UUIDField(_("run"), default=uuid.uuid4, db_index=True)
    context = models.CharField(_("process"), max_length=10, choices=Context)
    host = models.TextField(_("host"))
    pid = models.PositiveIntegerField(_("process ID"))
    at = models.DateTimeField(_("time"), default=timezone.now, db_index=True)
    # A list of results: name, status, summary, advice, facts, readings; redacted.
    probes = models.JSONField(_("probes"), default=list)

    objects = HealthReportQuerySet.as_manager()

    class Meta:
        verbose_name = _("health report")
        verbose_name_plural = _("health reports")
        constraints = [
            models.CheckConstraint(
                condition=Q(context__in=["web", "worker", "shell"]),
                name="health_report_context_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_context_display()}, {self.host}"
