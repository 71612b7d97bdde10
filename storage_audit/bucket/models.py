"""The table of counted calls to the store."""

from collections.abc import Mapping

from django.db import models
from django.db.models import F
from django.utils.translation import gettext_lazy as _

from storage_audit.locking import atomic_with_timeout


class RequestCountQuerySet(models.QuerySet["RequestCount"]):
    def add(self, calls: Mapping[tuple[str, str], int]) -> None:
        """Add these numbers of calls, by kind and result: all of them or, with an error, none.

        Always in one order, so that no two processes wait for each other's rows.
        """
        numbers = sorted(calls.items())
        rows = [self.model(request=kind, result=result) for (kind, result), _number in numbers]
        with atomic_with_timeout():
            self.bulk_create(rows, ignore_conflicts=True)
            for (kind, result), number in numbers:
                self.filter(request=kind, result=result).update(count=F("count") + number)


class RequestCount(models.Model):
    """How many calls of one kind, such as ListObjectsV2, had one result, such as ok or SlowDown,
    in all processes together."""

    request = models.CharField(_("request"), max_length=50)
    result = models.CharField(_("result"), max_length=50)
    count = models.PositiveBigIntegerField(_("calls"), default=0)

    objects = RequestCountQuerySet.as_manager()

    class Meta:
        verbose_name = _("calls to the store")
        verbose_name_plural = _("calls to the store")
        constraints = [
            models.UniqueConstraint(fields=["request", "result"], name="calls_counted_once"),
        ]

    def __str__(self) -> str:
        return f"{self.request} {self.result}"
