"""The table of what happened in each cleanup, and when."""

import logging

from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit import logs


class CleanupEvent(models.Model):
    """One line of a cleanup's timeline; `data` holds calls, answers and figures, redacted."""

    cleanup = models.ForeignKey("Cleanup", models.CASCADE, related_name="events")
    at = models.DateTimeField(_("time"), default=timezone.now)
    step = models.CharField(_("step"), max_length=20)
    message = models.TextField(_("message"))
    data = models.JSONField(_("data"), default=dict)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ["at", "pk"]

    # A person may have to do something.
    WARNING_STEPS = ("blocked", "failed", "retrying", "takeover", "vanished")

    # The request during which it was made, as its log line is written later.
    request_id: str | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def logger(self) -> logging.Logger:
        return logs.key_logger if self.step == "command" else logs.timeline_logger

    @property
    def level(self) -> int:
        if self.step == "command":
            return logging.DEBUG
        return logging.WARNING if self.step in self.WARNING_STEPS else logging.INFO

    def log_on_commit(self) -> None:
        if self.logger.isEnabledFor(self.level):
            self.request_id = logs.current_context().request_id
            transaction.on_commit(self.log, robust=True)

    def log(self) -> None:
        # Django keeps hooks whose savepoint was made, and rolled back, by hand; SQLite gives the
        # id to the next row then.
        if type(self).objects.filter(pk=self.pk, at=self.at).exists():
            facts = {"step": self.step, "event": self.pk, "data": self.data}
            ids = {"deletion_id": str(self.cleanup_id), "request_id": self.request_id}
            self.logger.log(self.level, "%s", self.message, extra=facts | ids)
