"""What was seen of the environment: reports of the doctor's probes, and calls to the store."""

import uuid

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


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
    # A list of probes: name, status, summary, advice, facts; redacted.
    probes = models.JSONField(_("probes"), default=list)

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


class StoreCalls(models.Model):
    """How many calls of one kind, such as ListObjectsV2, had one result, such as ok or SlowDown,
    in all processes together."""

    kind = models.CharField(_("kind"), max_length=50)
    result = models.CharField(_("result"), max_length=50)
    calls = models.PositiveBigIntegerField(_("calls"), default=0)

    class Meta:
        verbose_name = _("calls to the store")
        verbose_name_plural = _("calls to the store")
        constraints = [
            models.UniqueConstraint(fields=["kind", "result"], name="calls_counted_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.result}"
