"""The tables of bucket scans, and of the differences they find."""

import uuid

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from storage_audit.fields import BytewiseTextField
from storage_audit.querysets import FindingQuerySet
from storage_audit.redaction import redact, visible


class BucketScan(models.Model):
    """One look at a whole bucket or at a prefix of it."""

    class Status(models.TextChoices):
        RUNNING = "running", _("running")
        COMPLETE = "complete", _("complete")
        FAILED = "failed", _("failed")

    id = models.UUIDField(_("scan id"), primary_key=True, default=uuid.uuid4, editable=False)
    bucket = BytewiseTextField(_("bucket"))
    prefix = BytewiseTextField(_("prefix"), blank=True)
    dry_run = models.BooleanField(_("dry run"), default=False)
    requested_by = models.TextField(_("requested by"), blank=True)
    status = models.CharField(_("status"), max_length=10, choices=Status, default=Status.RUNNING)
    error = models.TextField(_("message"), blank=True)
    listed = models.PositiveBigIntegerField(_("listed"), default=0)
    listed_bytes = models.PositiveBigIntegerField(_("bytes listed"), default=0)
    added = models.PositiveBigIntegerField(_("rows added"), default=0)
    updated = models.PositiveBigIntegerField(_("rows updated"), default=0)
    unchanged = models.PositiveBigIntegerField(_("rows unchanged"), default=0)
    orphaned = models.PositiveBigIntegerField(_("orphaned"), default=0)
    ambiguous = models.PositiveBigIntegerField(_("ambiguous"), default=0)
    unrecognised = models.PositiveBigIntegerField(_("unrecognised"), default=0)
    unstorable = models.PositiveBigIntegerField(_("cannot be stored"), default=0)
    started_at = models.DateTimeField(_("started"), default=timezone.now)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    class Meta:
        verbose_name = _("bucket scan")
        verbose_name_plural = _("bucket scans")
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=["running", "complete", "failed"]),
                name="scan_status_is_known",
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    def before(self) -> "BucketScan | None":
        """The latest complete scan of the same keys that began earlier."""
        same = {"bucket": self.bucket, "prefix": self.prefix, "status": self.Status.COMPLETE}
        earlier = BucketScan.objects.filter(started_at__lt=self.started_at, **same)
        return earlier.order_by("-started_at").first()

    def count(self, **figures: int) -> None:
        for name, more in figures.items():
            setattr(self, name, getattr(self, name) + more)
        self.save(update_fields=list(figures))

    def complete(self) -> None:
        self._end(self.Status.COMPLETE)

    def fail(self, reason: str) -> None:
        self._end(self.Status.FAILED, error=redact(reason))

    def _end(self, status: str, error: str = "") -> None:
        self.status, self.error, self.finished_at = status, error, timezone.now()
        self.save(update_fields=["status", "error", "finished_at"])


class ScanShard(models.Model):
    """A part of a scan: the keys that start with `prefix`, done up to and with `cursor`."""

    scan = models.ForeignKey(BucketScan, models.CASCADE, related_name="shards")
    prefix = BytewiseTextField(_("prefix"), blank=True)
    cursor = BytewiseTextField(_("last key done"), blank=True)
    listed = models.PositiveBigIntegerField(_("listed"), default=0)
    complete = models.BooleanField(_("complete"), default=False)

    class Meta:
        verbose_name = _("scan shard")
        verbose_name_plural = _("scan shards")

    def __str__(self) -> str:
        return f"{self.scan_id}: {self.prefix}"


class Finding(models.Model):
    """A difference between the bucket and what we know, with its evidence."""

    class Kind(models.TextChoices):
        ORPHANED = "orphaned", _("orphaned")
        AMBIGUOUS = "ambiguous", _("ambiguous")
        UNRECOGNISED = "unrecognised", _("unrecognised")
        UNSTORABLE = "unstorable", _("cannot be stored")

    class State(models.TextChoices):
        OPEN = "open", _("open")
        ACKNOWLEDGED = "acknowledged", _("acknowledged")
        RESOLVED = "resolved", _("resolved")

    bucket = BytewiseTextField(_("bucket"))
    key = BytewiseTextField(_("key"))
    escaped = models.BooleanField(_("shown escaped"), default=False)
    kind = models.CharField(_("kind"), max_length=15, choices=Kind)
    project_id = BytewiseTextField(_("project"), null=True)
    size = models.PositiveBigIntegerField(_("size in bytes"), null=True)
    last_modified = models.DateTimeField(_("last modified"), null=True)
    evidence = models.TextField(_("evidence"), blank=True)
    state = models.CharField(_("state"), max_length=15, choices=State, default=State.OPEN)
    note = models.TextField(_("note"), blank=True)
    first_seen_at = models.DateTimeField(_("first seen"), default=timezone.now)
    last_seen_at = models.DateTimeField(_("last seen"), default=timezone.now)
    last_scan = models.ForeignKey(BucketScan, models.PROTECT, verbose_name=_("last scan"))

    objects = FindingQuerySet.as_manager()

    class Meta:
        verbose_name = _("finding")
        verbose_name_plural = _("findings")
        constraints = [
            models.UniqueConstraint(
                fields=["bucket", "key", "escaped", "kind"], name="one_finding_per_difference"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["open", "acknowledged", "resolved"]),
                name="finding_state_is_known",
            ),
        ]
        indexes = [models.Index(fields=["kind"], condition=Q(state="open"), name="finding_open")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {visible(self.key)}"
