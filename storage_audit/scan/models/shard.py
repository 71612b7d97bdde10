"""The tables of the parts of a scan, which any worker may take, and of what it notes."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Self

from django.db import models, transaction
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from storage_audit.clocks import DatabaseNow, has_lease
from storage_audit.conf import conf
from storage_audit.fields import BytewiseTextField
from storage_audit.findings.models import FindingBase
from storage_audit.redaction import printable_text
from storage_audit.scan.models.scan import BucketScan

# The kind of a pending finding that never becomes a finding: an upload or a cleanup has the object
# in hand, so the scan cannot tell whether it is still there.
IN_HAND = "in_hand"
# Keys listed of a shard from which on finding a cut in the bucket may be worth its pages.
LARGE_SHARD_KEYS = 4000


class ScanShardQuerySet(models.QuerySet["ScanShard"]):
    def unfinished(self) -> Self:
        return self.filter(complete=False)

    def free(self) -> Self:
        """Those that nobody has, or whose worker is not heard of any more."""
        return self.unfinished().filter(~has_lease())

    def acquire_leases(self, token: uuid.UUID, count: int) -> list[ScanShard]:
        """Take up to so many free ones for the lease, past those that others are taking."""
        with transaction.atomic():
            free = self.free().order_by("prefix", "after").select_for_update(skip_locked=True)
            mine = list(free[:count])
            taken = self.filter(pk__in=[shard.pk for shard in mine])
            taken.update(lease_token=token, lease_until=DatabaseNow(conf().lease_time))
        for shard in mine:
            shard.lease_token = token
        return mine

    def leased_by(self, token: uuid.UUID) -> Self:
        return self.filter(has_lease(), lease_token=token)

    def under_way(self) -> Self:
        return self.unfinished().filter(has_lease())

    def large(self) -> Self:
        """Those under way of which several pages were listed already, and more may be to come."""
        return self.under_way().filter(listed__gte=LARGE_SHARD_KEYS)

    def renew(self, token: uuid.UUID) -> int:
        """How many this worker still has; it must write nothing for any other."""
        with transaction.atomic():
            return self.leased_by(token).locked().extend_leases()

    def annotate_renewal_due(self) -> Self:
        """Due not each time, and long enough before the lease's end for three tries of a page."""
        due = Q(lease_until__lt=DatabaseNow(conf().lease_time * 0.9))
        return self.annotate(is_renewal_due=due)

    def extend_leases(self) -> int:
        return self.update(lease_until=DatabaseNow(conf().lease_time))

    def locked(self) -> Self:
        """Lock them until the commit, in the same order for all workers, so that none deadlocks."""
        list(self.select_for_update().order_by("pk").values_list("pk"))
        return self.all()

    def save_progress(self, advanced: Collection[ScanShard]) -> None:
        """Write how far these are, in the transaction that locked them."""
        self.bulk_update(advanced, ["cursor", "listed", "complete"])

    def restart(self) -> int:
        """From their beginnings, and nobody's: who has one of them writes nothing any more."""
        nobody = {"lease_token": None, "lease_until": None}
        return self.update(cursor="", listed=0, complete=False, **nobody)

    def release_leases(self) -> int:
        with transaction.atomic():
            return self.locked().update(lease_token=None, lease_until=None)


class ScanShard(models.Model):
    """A part of a scan: the keys with `prefix` later than `after`, up to and with `until` (None:
    all), done up to and with `cursor` (empty: none)."""

    scan = models.ForeignKey(BucketScan, models.CASCADE, related_name="shards")
    prefix = BytewiseTextField(_("prefix"), blank=True)
    after = BytewiseTextField(_("keys later than"), blank=True)
    until = BytewiseTextField(_("last key"), null=True, blank=True)
    cursor = BytewiseTextField(_("last key done"), blank=True)
    listed = models.PositiveBigIntegerField(_("listed"), default=0)
    complete = models.BooleanField(_("complete"), default=False)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)

    is_renewal_due: bool  # Set by `annotate_renewal_due`.

    objects = ScanShardQuerySet.as_manager()

    class Meta:
        verbose_name = _("scan shard")
        verbose_name_plural = _("scan shards")

    def __str__(self) -> str:
        return f"{self.scan_id}: {self.prefix}"

    def advance(self, cursor: str, more: int, *, complete: bool) -> None:
        """In memory; `ScanShardQuerySet.save_progress` writes it."""
        self.cursor, self.complete = cursor, complete
        self.listed += more

    @property
    def last_done_key(self) -> str:
        """The last key that is dealt with: what comes next is later."""
        return self.cursor or self.after


class ListedKey(models.Model):
    """A key that a scan saw whose store lists in an order of its own: to tell what it did not."""

    scan = models.ForeignKey(BucketScan, models.CASCADE, related_name="listed_keys")
    key = BytewiseTextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["scan", "key"], name="listed_once_a_scan")]

    def __str__(self) -> str:
        return printable_text(self.key)


class PendingFinding(FindingBase):
    """A difference that a scan under way has seen. It becomes a finding when the scan is complete
    and believed; before, nothing follows from it."""

    scan = models.ForeignKey(BucketScan, models.CASCADE, related_name="pending_findings")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["scan", "kind", "key", "escaped", "upload_id"], name="seen_once_a_scan"
            )
        ]
