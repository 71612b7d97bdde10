"""The table of daily figures."""

from datetime import date
from typing import Any, Self

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class DailyFiguresQuerySet(models.QuerySet["DailyFigures"]):
    def latest_first(self) -> Self:
        """Without future days, which a fast clock has written."""
        return self.filter(day__lte=timezone.localdate()).order_by("-day")

    def between(self, first: date, last: date) -> Self:
        return self.filter(day__range=(first, last))

    def record_today(self, **figures: Any) -> None:
        """Save the figures of today, in place of earlier ones of the day."""
        row = self.model(day=timezone.localdate(), taken_at=timezone.now(), **figures)
        written = ["taken_at", *figures]
        # One statement, so that two sweeps at once neither make two rows nor fail.
        self.bulk_create([row], update_conflicts=True, unique_fields=["day"], update_fields=written)


class DailyFigures(models.Model):
    """The tracked and leftover files of a day, as last counted by a sweep."""

    day = models.DateField(_("day"), unique=True)
    taken_at = models.DateTimeField(_("taken"))
    tracked = models.PositiveBigIntegerField(_("tracked objects"))
    tracked_bytes = models.PositiveBigIntegerField(_("tracked bytes"))
    leftover = models.PositiveBigIntegerField(_("leftover files"))
    leftover_bytes = models.PositiveBigIntegerField(_("bytes of leftover files"))
    # The first ids of projects that the setting PROJECT_ID_PATTERN does not accept.
    refused_ids = models.JSONField(default=list, editable=False)
    # {file type: [objects, bytes]}, for the largest types, and for all others together.
    file_types = models.JSONField(_("file types"), default=dict)

    objects = DailyFiguresQuerySet.as_manager()

    class Meta:
        verbose_name = _("daily figures")
        verbose_name_plural = _("daily figures")

    def __str__(self) -> str:
        return str(self.day)
