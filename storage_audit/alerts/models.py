"""The tables of alerts, and of the notifications about them."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.redaction import redact_secrets

# Longer than it takes to send one message: after that, its worker must have died.
SEND_LEASE = timedelta(minutes=2)
GIVEN_UP_AFTER = timedelta(days=1)


class AlertQuerySet(models.QuerySet["Alert"]):
    def open(self) -> Self:
        return self.filter(ended_at=None)

    def outdated(self) -> Self:
        """Open ones of cleanups that are not in that trouble any more. Some outlast the status that
        they begin with, or each daily attempt would end them for a moment."""
        lasting = (
            Q(kind=Alert.Kind.BLOCKED, cleanup__status=Cleanup.Status.BLOCKED)
            | Q(kind=Alert.Kind.FAILED, cleanup__status__in=Cleanup.WORKABLE)
            | Q(kind=Alert.Kind.OVERDUE, cleanup__status__in=Cleanup.WORKABLE)
            & ~Q(cleanup__status=Cleanup.Status.FAILED)
            # Other tables decide on this kind: see alerts/alert_rules.py.
            | Q(kind=Alert.Kind.LOST)
        )
        return self.open().filter(~lasting, cleanup__isnull=False)

    def begin(self, found: list[Alert]) -> None:
        """Open these, except those that somebody else has just opened."""
        self.bulk_create(found, ignore_conflicts=True, batch_size=1000)

    def end(self) -> int:
        return self.filter(ended_at=None).update(ended_at=timezone.now())

    def unannounced(self) -> Self:
        return self.open().filter(begin_notification=None)

    def unannounced_ends(self) -> Self:
        """Ended ones, of which only the beginning was announced."""
        return self.filter(
            ended_at__isnull=False, begin_notification__isnull=False, end_notification__isnull=True
        )

    def lock(self) -> list[int]:
        """Lock these rows until the commit (PostgreSQL)."""
        return list(
            self.select_for_update(of=("self",)).order_by("pk").values_list("pk", flat=True)
        )


class Notification(models.Model):
    """One message about all alerts that began or ended since the one before. A webhook sends its
    id, so that a receiver can recognise a repetition."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    made_at = models.DateTimeField(_("made"), default=timezone.now)

    class Meta:
        verbose_name = _("notification")
        verbose_name_plural = _("notifications")

    def __str__(self) -> str:
        return str(self.pk)


class Alert(models.Model):
    """Something that needs a person. One notification says that it begins, and one that it is
    over."""

    class Kind(models.TextChoices):
        BLOCKED = "blocked", _("needs approval")
        FAILED = "failed", _("failed")
        OVERDUE = "overdue", _("overdue")
        LOST = "lost", _("file in use deleted")
        WORKER = "worker", _("worker stopped")
        FINDINGS = "findings", _("many open findings")
        IDS = "ids", _("project IDs rejected")
        PAUSED = "paused", _("deletions paused")

    kind = models.CharField(_("kind"), max_length=10, choices=Kind)
    cleanup = models.ForeignKey(
        Cleanup,
        models.CASCADE,
        verbose_name=_("cleanup"),
        null=True,
        related_name="alerts",
    )
    summary = models.TextField(_("reason"))
    began_at = models.DateTimeField(_("opened"), default=timezone.now, db_index=True)
    ended_at = models.DateTimeField(_("resolved"), null=True)
    begin_notification = models.ForeignKey(
        Notification, models.PROTECT, null=True, related_name="begun_alerts"
    )
    end_notification = models.ForeignKey(
        Notification, models.PROTECT, null=True, related_name="ended_alerts"
    )

    objects = AlertQuerySet.as_manager()

    class Meta:
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    kind__in=["blocked", "failed", "overdue", "lost"], cleanup__isnull=False
                )
                | Q(kind__in=["worker", "findings", "ids", "paused"], cleanup=None),
                name="alert_kind_is_known",
            ),
            models.UniqueConstraint(
                fields=["kind", "cleanup"],
                condition=Q(ended_at=None),
                name="one_open_alert_of_a_cleanup",
            ),
            models.UniqueConstraint(
                fields=["kind"],
                condition=Q(ended_at=None, cleanup=None),
                name="one_open_alert_of_its_kind",
            ),
        ]
        permissions = [("test_notifications", _("Can send a test message"))]

    def __str__(self) -> str:
        return capfirst(self.get_kind_display())


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def due(self, now: datetime) -> Self:
        return self.filter(state=Delivery.State.WAITING, next_attempt_at__lte=now)

    def put_off_too_far(self, now: datetime) -> Self:
        """Those whose next attempt is further ahead than twice the longest pause, as a clock was
        ahead."""
        return self.filter(
            state=Delivery.State.WAITING, next_attempt_at__gt=now + 2 * conf().retry_longest
        )


class Delivery(models.Model):
    """A notification on its way to one recipient.

    waiting -> sent | given_up. Who sends it acquires a lease first, which lasts until the next
    attempt.
    """

    class Channel(models.TextChoices):
        EMAIL = "email", _("e-mail")
        WEBHOOK = "webhook", _("webhook")

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        SENT = "sent", _("sent")
        GIVEN_UP = "given_up", _("given up")

    notification = models.ForeignKey(Notification, models.CASCADE, related_name="deliveries")
    channel = models.CharField(_("channel"), max_length=10, choices=Channel)
    # An e-mail address. The webhook's address may be secret, so only the settings have it.
    recipient = models.TextField(_("recipient"), blank=True)
    state = models.CharField(_("state"), max_length=10, choices=State, default=State.WAITING)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(_("next attempt"), null=True, default=timezone.now)
    sent_at = models.DateTimeField(_("sent"), null=True)
    error = models.TextField(_("error"), blank=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        constraints = [
            models.UniqueConstraint(
                fields=["notification", "channel", "recipient"], name="one_delivery_to_each"
            ),
            models.CheckConstraint(
                condition=Q(state="waiting", next_attempt_at__isnull=False)
                | Q(state__in=["sent", "given_up"], next_attempt_at=None),
                name="delivery_state_is_known",
            ),
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"], condition=Q(state="waiting"), name="delivery_due"
            ),
        ]

    def __str__(self) -> str:
        return self.recipient or self.get_channel_display()

    @property
    def is_sent(self) -> bool:
        return self.state == self.State.SENT

    def acquire_lease(self) -> bool:
        """Take it for this process, or return False if it is not due or somebody has it. This
        counts as an attempt, even if the process dies."""
        now = timezone.now()
        return self._change(
            Q(next_attempt_at__lte=now, attempts=self.attempts),
            attempts=self.attempts + 1,
            next_attempt_at=now + SEND_LEASE,
        )

    def mark_sent(self) -> None:
        self._change(
            Q(), state=self.State.SENT, sent_at=timezone.now(), next_attempt_at=None, error=""
        )

    def fail(self, error: str, *, permanent: bool = False) -> None:
        """Try again after a growing pause, for a day; never if it is `permanent`. Does nothing when
        another process has taken it over."""
        now, mine = timezone.now(), Q(attempts=self.attempts)
        if permanent or now - self.notification.made_at >= GIVEN_UP_AFTER:
            self._change(
                mine, state=self.State.GIVEN_UP, next_attempt_at=None, error=redact_secrets(error)
            )
        else:
            again = now + Cleanup.retry_delay(self.attempts)
            self._change(mine, next_attempt_at=again, error=redact_secrets(error))

    def _change(self, allowed: Q, **values: object) -> bool:
        waiting = Delivery.objects.filter(allowed, pk=self.pk, state=self.State.WAITING)
        changed = waiting.update(**values) == 1
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
        return changed
