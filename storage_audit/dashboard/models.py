"""The table of what each day held."""

from datetime import date
from typing import Any, Self

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


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
