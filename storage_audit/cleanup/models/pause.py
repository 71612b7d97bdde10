"""The table of pauses: while one is in it, nothing of what it covers is deleted."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID

from django.db import models
from django.db.models import Exists, F, OuterRef, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class DeletionPauseQuerySet(models.QuerySet["DeletionPause"]):
    def in_force(self) -> Self:
        """Without those of cleanups that are over, with all that follows them."""
        cleanups: Any = self.model._meta.get_field("cleanup").related_model
        blocked = Q(cleanup__status=cleanups.Status.BLOCKED)
        is_open = Q(cleanup__next_attempt_at__isnull=False) | blocked
        follows = Q(cleanup__children__next_attempt_at__isnull=False)
        return self.filter(Q(cleanup=None) | is_open | follows).distinct()

    def covering(self, *ids: UUID | None) -> Self:
        """Those that keep a cleanup with this id, or that follows one, from deleting."""
        return self.filter(Q(cleanup=None) | Q(cleanup__in=[each for each in ids if each]))

    def covering_outer(self) -> Q:
        """Whether one of them keeps the cleanup of the outer query from deleting."""
        same = Q(cleanup=OuterRef("pk")) | Q(cleanup=OuterRef("parent"))
        return Q(Exists(self.filter(Q(cleanup=None) | same)))


class DeletionPause(models.Model):
    """A person has paused all deletions, or one. An object beside each bucket marker says the
    same, so that a database restored from a backup does not resume them."""

    # None: all of the installation.
    cleanup = models.ForeignKey(
        "Cleanup", models.CASCADE, verbose_name=_("cleanup"), null=True, related_name="pauses"
    )
    paused_by = models.TextField(_("paused by"))
    reason = models.TextField(_("reason"))
    paused_at = models.DateTimeField(_("paused"), default=timezone.now)

    objects = DeletionPauseQuerySet.as_manager()

    class Meta:
        verbose_name = _("pause of deletions")
        verbose_name_plural = _("pauses of deletions")
        constraints = [
            # Two rows without a cleanup would be different to the database.
            models.UniqueConstraint(
                Coalesce(F("cleanup"), Value(UUID(int=0), models.UUIDField())),
                name="one_deletion_pause_each",
            ),
        ]

    def __str__(self) -> str:
        text = _("Deletions are paused by %(user)s: %(reason)s")
        return str(text) % {"user": self.paused_by, "reason": self.reason}
