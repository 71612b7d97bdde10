"""The tables of bucket scans: a scan, its parts that any worker may take, and what it saw."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any, Self

from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.clocks import has_lease, latest_valid_time, time_after, time_before
from storage_audit.fields import BytewiseTextField
from storage_audit.redaction import redact_secrets


class PassBroken(Exception):
    """What a scan has listed so far cannot be trusted: it has to start again."""


class BucketScanQuerySet(models.QuerySet["BucketScan"]):
    def complete(self) -> Self:
        return self.filter(status=BucketScan.Status.COMPLETE, dry_run=False)

    def last_complete(self) -> BucketScan | None:
        """The one that ended last, as far as clocks that were not ahead say."""
        ended = self.complete().filter(finished_at__lte=latest_valid_time())
        return ended.order_by("-finished_at").first()

    def running(self) -> Self:
        return self.filter(status=BucketScan.Status.RUNNING)

    def of_whole_bucket(self, bucket: str) -> Self:
        """Those that list everything in the bucket, and not a part of it."""
        return self.filter(bucket=bucket, prefix="", project_id=None, since=None)

    def forgotten(self, moment: datetime) -> Self:
        """Running ones that workers are to do, for which none was sent since `moment`, and of
        which none has a part."""
        unsent = time_before("enqueued_at", moment)
        return self.idle().filter(unsent, time_after("started_at", timezone.now() - RESUMABLE_FOR))

    def abandoned(self) -> Self:
        """Running ones that nobody has gone on with, or may any more."""
        moment = timezone.now() - RESUMABLE_FOR
        unsent = Q(enqueued_at=None) | time_before("enqueued_at", moment)
        return self.idle().filter(unsent, time_before("started_at", moment))

    def idle(self) -> Self:
        return self.running().exclude(pk__in=self.leased().values("pk"))

    def leased(self, at: Any = None) -> Self:
        """Those of which a worker has a part."""
        return self.filter(has_lease(at, "shards__")).distinct()

    def lock_for_ending(self, scan: BucketScan) -> bool:
        """Lock the scan for a step of its ending, which one worker does in one transaction. Whether
        it still has to be ended: nobody else has ended or restarted it."""
        mine = self.running().filter(pk=scan.pk).select_for_update()
        return bool(list(mine.values_list("pk"))) and not scan.shards.unfinished().exists()

    def trusted_with(self, marker: str, now: datetime) -> Self:
        """Those of which what was written can be trusted when this marker is seen now: it was seen
        before, and not long ago. Of others nothing was written yet."""
        recently = (now - TRUSTED_FOR, now + TRUSTED_FOR)
        same = Q(marker=marker, marker_seen_at__range=recently)
        return self.filter(Q(marker_seen_at=None) | same)


class BucketScan(models.Model):
    """A comparison of the table with a whole bucket, with the keys of a prefix or a project, or
    with what the table says was written lately."""

    class Purpose(models.TextChoices):
        BACKFILL = "backfill", _("backfill: track new files")
        RECONCILE = "reconcile", _("reconcile: report only")

    class Status(models.TextChoices):
        RUNNING = "running", _("running")
        STOPPED = "stopped", _("stopped")
        COMPLETE = "complete", _("complete")
        FAILED = "failed", _("failed")

    id = models.UUIDField(_("scan ID"), primary_key=True, default=uuid.uuid4, editable=False)
    bucket = BytewiseTextField(_("bucket"))
    purpose = models.CharField(
        _("purpose"), max_length=10, choices=Purpose, default=Purpose.BACKFILL
    )
    prefix = BytewiseTextField(_("prefix"), blank=True)
    project_id = BytewiseTextField(_("project"), null=True, blank=True)
    since = models.DateTimeField(_("only files tracked since"), null=True, blank=True)
    dry_run = models.BooleanField(_("dry run"), default=False)
    accept_fewer = models.BooleanField(_("fewer files accepted"), default=False)
    max_requests = models.PositiveBigIntegerField(_("request limit"), null=True, blank=True)
    requested_by = models.TextField(_("requested by"), blank=True)
    status = models.CharField(_("status"), max_length=10, choices=Status, default=Status.RUNNING)
    message = models.TextField(_("message"), blank=True)
    in_key_order = models.BooleanField(_("listed in key order"), default=True)
    # False where the store cannot list them, None before the end.
    uploads_listed = models.BooleanField(_("unfinished uploads checked"), null=True)
    requests = models.PositiveBigIntegerField(_("requests"), default=0)
    listed = models.PositiveBigIntegerField(_("files"), default=0)
    listed_bytes = models.PositiveBigIntegerField(_("bytes"), default=0)
    added = models.PositiveBigIntegerField(_("files tracked"), default=0)
    updated = models.PositiveBigIntegerField(_("records updated"), default=0)
    unchanged = models.PositiveBigIntegerField(_("files unchanged"), default=0)
    orphaned = models.PositiveBigIntegerField(_("leftover"), default=0)
    missing = models.PositiveBigIntegerField(_("missing"), default=0)
    untracked = models.PositiveBigIntegerField(_("untracked"), default=0)
    changed = models.PositiveBigIntegerField(_("changed"), default=0)
    ambiguous = models.PositiveBigIntegerField(_("unclear owner"), default=0)
    unrecognised = models.PositiveBigIntegerField(_("unrecognised"), default=0)
    misnamed = models.PositiveBigIntegerField(_("old name"), default=0)
    unstorable = models.PositiveBigIntegerField(_("unsupported name"), default=0)
    unfinished = models.PositiveBigIntegerField(_("unfinished uploads"), default=0)
    # The marker that vouches for all that was written, and when it was seen last.
    marker = models.TextField(blank=True, editable=False)
    marker_seen_at = models.DateTimeField(null=True, editable=False)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    started_at = models.DateTimeField(_("started"), default=timezone.now)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects = BucketScanQuerySet.as_manager()

    class Meta:
        verbose_name = _("scan")
        verbose_name_plural = _("scans")
        indexes = [models.Index(fields=["started_at"], name="scan_started")]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=["running", "stopped", "complete", "failed"]),
                name="scan_status_is_known",
            ),
            models.CheckConstraint(
                condition=Q(purpose__in=["backfill", "reconcile"]), name="scan_purpose_is_known"
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def is_partial(self) -> bool:
        """Whether it lists less than all keys of its scope, and so says nothing of the rest."""
        return self.since is not None

    @property
    def writes_rows(self) -> bool:
        return self.purpose == self.Purpose.BACKFILL and not self.dry_run

    def has_free_shards(self) -> bool:
        """Whether a worker more would find something to do."""
        return self.status == self.Status.RUNNING and self.shards.free().exists()

    def previous_scan(self) -> BucketScan | None:
        """The latest complete scan of the same keys that began earlier."""
        earlier = BucketScan.objects.filter(
            bucket=self.bucket,
            prefix=self.prefix,
            project_id=self.project_id,
            since=None,
            status=self.Status.COMPLETE,
            started_at__lt=self.started_at,
        )
        return earlier.order_by("-started_at").first()

    def add_counts(self, **figures: int) -> None:
        """Add to the figures, beside what other workers add."""
        self._update_counts(BucketScan.objects.all(), figures)

    def add_trusted_counts(self, marker: str, **figures: int) -> None:
        """Count these figures, which come from pages after which this marker was seen. Called in
        the transaction that writes what the pages show. Raises PassBroken when the marker does not
        vouch for what was written before."""
        now = timezone.now()
        trusted = BucketScan.objects.trusted_with(marker, now)
        if not self._update_counts(trusted, figures, marker=marker, marker_seen_at=now):
            raise PassBroken(
                _now("The bucket marker changed, or was last seen more than an hour ago.")
            )
        self.marker, self.marker_seen_at = marker, now

    def _update_counts(
        self, scans: BucketScanQuerySet, figures: dict[str, int], **values: Any
    ) -> int:
        more = {name: F(name) + figure for name, figure in figures.items() if figure}
        updated = scans.filter(pk=self.pk).update(**more, **values) if more or values else 0
        for name, figure in figures.items():
            setattr(self, name, getattr(self, name) + figure)
        return updated

    def complete(self) -> None:
        self._end(self.Status.COMPLETE)

    def fail(self, reason: str) -> None:
        self._end(self.Status.FAILED, redact_secrets(reason))

    def stop(self, reason: str) -> None:
        """Leave it as it is, until somebody resumes it."""
        self._end(self.Status.STOPPED, redact_secrets(reason))

    def _end(self, status: str, error: str = "") -> None:
        values: dict[str, Any] = {"status": status, "message": error, "finished_at": timezone.now()}
        if BucketScan.objects.running().filter(pk=self.pk).update(**values):
            self.shards.release_leases()
        self.refresh_from_db()

    @property
    def is_outdated(self) -> bool:
        """Whether nobody has seen the marker for so long that all has to be listed again."""
        seen_at = self.marker_seen_at
        return seen_at is not None and abs(timezone.now() - seen_at) > TRUSTED_FOR

    @transaction.atomic
    def resume(self, *, max_requests: int | None = None, accept_fewer: bool = False) -> bool:
        """Go on where it stopped or failed; whether that is at the beginning, as it is outdated.
        Raises IllegalTransition when it is complete, or when a later one was, or when it is so old
        that what it saw may not be so any more."""
        if starts_again := self.is_outdated:
            self.start_again()
        again = BucketScan.objects.filter(pk=self.pk).exclude(status=self.Status.COMPLETE)
        young = again.filter(time_after("started_at", timezone.now() - RESUMABLE_FOR))
        values: dict[str, Any] = {"status": self.Status.RUNNING, "message": "", "finished_at": None}
        if max_requests is not None:
            values["max_requests"] = max_requests
        if accept_fewer:
            values["accept_fewer"] = True
        if not self.shards.exists() or not young.update(**values):
            text = _now(
                "Scan %s can't be resumed: it is complete, older than a day, or replaced by a newer"
                " scan. Start a new one."
            )
            raise IllegalTransition(text % self.pk)
        self.refresh_from_db()
        return starts_again

    @property
    def prefixes(self) -> list[str]:
        """The scan lists the keys that start with one of these."""
        prefixes = self.shards.order_by("prefix").values_list("prefix", flat=True)
        return list(prefixes.distinct())

    def start_again(self) -> None:
        """Forget what was seen, and list everything again, as the positions cannot be trusted;
        unless another worker just did. The rows that were written stay."""
        self._reset(Q(marker_seen_at=self.marker_seen_at))

    @transaction.atomic
    def start_in_any_order(self) -> None:
        """The same, to list the keys in whatever order the store has."""
        prefixes = self.prefixes
        if self._reset(Q(in_key_order=True), in_key_order=False):
            self.shards.all().delete()
            for prefix in prefixes:
                self.shards.create(prefix=prefix)

    @transaction.atomic
    def _reset(self, still: Q, **values: Any) -> bool:
        # Before the scan, as who writes does.
        self.shards.all().locked()
        fresh = dict.fromkeys(COUNT_FIELDS, 0) | {"marker": "", "marker_seen_at": None}
        scans = BucketScan.objects.filter(still, pk=self.pk).exclude(status=self.Status.COMPLETE)
        if forgotten := bool(scans.update(**fresh, **values)):
            self.pending_findings.all().delete()
            self.listed_keys.all().delete()
            self.shards.restart()
        self.refresh_from_db()
        return forgotten


# So long what a scan saw can wait for the rest.
RESUMABLE_FOR = timedelta(days=1)
# So long after the marker was seen what was listed before can be trusted.
TRUSTED_FOR = timedelta(hours=1)
COUNT_FIELDS = (
    "listed",
    "listed_bytes",
    "added",
    "updated",
    "unchanged",
    "orphaned",
    "missing",
    "untracked",
    "changed",
    "ambiguous",
    "unrecognised",
    "misnamed",
    "unstorable",
    "unfinished",
)
