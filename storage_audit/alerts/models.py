"""The tables of what needs a person, from when to when, and of who was told of it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.redaction import redact

# Longer than it takes to send one message: whoever was killed at it is found by then.
LEASE = timedelta(minutes=2)
GIVEN_UP_AFTER = timedelta(days=1)


class IncidentQuerySet(models.QuerySet["Incident"]):
    def open(self) -> Self:
        return self.filter(ended_at=None)

    def unfounded(self) -> Self:
        """Open ones of operations that are not in that trouble any more. Some last longer than
        what they begin with, or each daily attempt would end them for a moment."""
        lasting = (
            Q(kind=Incident.Kind.BLOCKED, operation__status=CleanupOperation.Status.BLOCKED)
            | Q(kind=Incident.Kind.FAILED, operation__status__in=CleanupOperation.WORKABLE)
            | Q(kind=Incident.Kind.OVERDUE, operation__status__in=CleanupOperation.WORKABLE)
            & ~Q(operation__status=CleanupOperation.Status.FAILED)
            # It takes a look at other tables to tell: see alerts/alert_rules.py.
            | Q(kind=Incident.Kind.LOST)
        )
        return self.open().filter(~lasting, operation__isnull=False)

    def begin(self, found: list[Incident]) -> None:
        """Open these, but for those that somebody else has just opened."""
        self.bulk_create(found, ignore_conflicts=True, batch_size=1000)

    def end(self) -> int:
        return self.filter(ended_at=None).update(ended_at=timezone.now())

    def untold(self) -> Self:
        return self.open().filter(begin_notice=None)

    def untold_ends(self) -> Self:
        """Those over of which only the beginning was told."""
        return self.filter(
            ended_at__isnull=False, begin_notice__isnull=False, end_notice__isnull=True
        )

    def lock(self) -> list[int]:
        """Wait for whoever changes one of these rows, then keep others from it (PostgreSQL)."""
        return list(
            self.select_for_update(of=("self",)).order_by("pk").values_list("pk", flat=True)
        )


class Notice(models.Model):
    """One message, about all that began and all that ended since the one before. Its id is that of
    the webhook, so that a receiver can tell a repetition."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    made_at = models.DateTimeField(_("made"), default=timezone.now)

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")

    def __str__(self) -> str:
        return str(self.pk)


class Incident(models.Model):
    """Something that needs a person. That it is in one notice when it begins and in one when it is
    over is all there is to be told of it."""

    class Kind(models.TextChoices):
        BLOCKED = "blocked", _("blocked")
        FAILED = "failed", _("failed")
        OVERDUE = "overdue", _("overdue")
        LOST = "lost", _("file in use deleted")
        WORKER = "worker", _("worker gone")
        FINDINGS = "findings", _("many findings")
        IDS = "ids", _("ids not accepted")

    kind = models.CharField(_("kind"), max_length=10, choices=Kind)
    operation = models.ForeignKey(
        CleanupOperation,
        models.CASCADE,
        verbose_name=_("operation"),
        null=True,
        related_name="incidents",
    )
    summary = models.TextField(_("what was seen"))
    began_at = models.DateTimeField(_("began"), default=timezone.now, db_index=True)
    ended_at = models.DateTimeField(_("over"), null=True)
    begin_notice = models.ForeignKey(Notice, models.PROTECT, null=True, related_name="began")
    end_notice = models.ForeignKey(Notice, models.PROTECT, null=True, related_name="ended")

    objects = IncidentQuerySet.as_manager()

    class Meta:
        verbose_name = _("incident")
        verbose_name_plural = _("incidents")
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    kind__in=["blocked", "failed", "overdue", "lost"], operation__isnull=False
                )
                | Q(kind__in=["worker", "findings", "ids"], operation=None),
                name="incident_kind_is_known",
            ),
            models.UniqueConstraint(
                fields=["kind", "operation"],
                condition=Q(ended_at=None),
                name="one_open_incident_of_an_operation",
            ),
            models.UniqueConstraint(
                fields=["kind"],
                condition=Q(ended_at=None, operation=None),
                name="one_open_incident_of_its_kind",
            ),
        ]
        permissions = [("test_notices", _("Can send a test message"))]

    def __str__(self) -> str:
        return self.get_kind_display()


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def due(self, now: datetime) -> Self:
        return self.filter(state=Delivery.State.WAITING, next_try_at__lte=now)

    def put_off_too_far(self, now: datetime) -> Self:
        """Those whose next try is further ahead than twice the longest pause: the clock that set it
        was ahead."""
        return self.filter(
            state=Delivery.State.WAITING, next_try_at__gt=now + 2 * conf().longest_retry
        )


class Delivery(models.Model):
    """A notice on its way to one recipient.

    waiting -> sent | given_up. Whoever sends it claims it first, and has it until the next try.
    """

    class Channel(models.TextChoices):
        EMAIL = "email", _("e-mail")
        WEBHOOK = "webhook", _("webhook")

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        SENT = "sent", _("sent")
        GIVEN_UP = "given_up", _("given up")

    notice = models.ForeignKey(Notice, models.CASCADE, related_name="deliveries")
    channel = models.CharField(_("channel"), max_length=10, choices=Channel)
    # An e-mail address. The webhook's address may be a secret, and stands in the settings only.
    recipient = models.TextField(_("recipient"), blank=True)
    state = models.CharField(_("state"), max_length=10, choices=State, default=State.WAITING)
    tries = models.PositiveIntegerField(_("tries"), default=0)
    next_try_at = models.DateTimeField(_("next try"), null=True, default=timezone.now)
    sent_at = models.DateTimeField(_("sent"), null=True)
    error = models.TextField(_("error"), blank=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        constraints = [
            models.UniqueConstraint(
                fields=["notice", "channel", "recipient"], name="one_delivery_to_each"
            ),
            models.CheckConstraint(
                condition=Q(state="waiting", next_try_at__isnull=False)
                | Q(state__in=["sent", "given_up"], next_try_at=None),
                name="delivery_state_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["next_try_at"], condition=Q(state="waiting"), name="delivery_due"),
        ]

    def __str__(self) -> str:
        return self.recipient or self.get_channel_display()

    @property
    def is_sent(self) -> bool:
        return self.state == self.State.SENT

    def claim(self) -> bool:
        """Take it for this process, or return False: not due, or somebody has it. Whoever dies at
        it has tried once."""
        now = timezone.now()
        return self._change(
            Q(next_try_at__lte=now, tries=self.tries),
            tries=self.tries + 1,
            next_try_at=now + LEASE,
        )

    def mark_sent(self) -> None:
        self._change(Q(), state=self.State.SENT, sent_at=timezone.now(), next_try_at=None, error="")

    def fail(self, error: str, *, hopeless: bool = False) -> None:
        """Try again after a pause that grows, for a day; and never when it is `hopeless`. Nothing
        when another process has taken it over."""
        now, mine = timezone.now(), Q(tries=self.tries)
        if hopeless or now - self.notice.made_at >= GIVEN_UP_AFTER:
            self._change(mine, state=self.State.GIVEN_UP, next_try_at=None, error=redact(error))
        else:
            again = now + CleanupOperation.pause_after(self.tries)
            self._change(mine, next_try_at=again, error=redact(error))

    def _change(self, allowed: Q, **values: object) -> bool:
        waiting = Delivery.objects.filter(allowed, pk=self.pk, state=self.State.WAITING)
        changed = waiting.update(**values) == 1
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
        return changed
