"""A cheap scan: looks up in the bucket what the table says was written lately. It says nothing of
the rest, so it writes no findings."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import KeyIdentity, find_keys
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models.lease_and_status import LeaseLost
from storage_audit.fields import starts_with
from storage_audit.models import R2Object
from storage_audit.scan import pending_findings
from storage_audit.scan.marker_check import MarkerWatcher
from storage_audit.scan.models import BucketScan, PendingFinding, ScanShard
from storage_audit.tracking.recognise import recognise_objects
from storage_audit.tracking.rows import is_up_to_date

KEYS_PER_BATCH = 1000


def check_next_rows(
    scan: BucketScan, shard: ScanShard, token: UUID, identity: KeyIdentity, watcher: MarkerWatcher
) -> None:
    """The next rows of the shard. Raises LeaseLost, PassBroken, CannotConclude and StoreError."""
    left = KEYS_PER_BATCH if scan.max_requests is None else scan.max_requests - scan.requests
    keys, asked = next_keys(scan, shard, min(KEYS_PER_BATCH, left)), timezone.now()
    figures = Counter[str]()

    def count_page() -> None:
        # A key that has no neighbour takes a request of its own.
        figures["requests"] += 1
        if not scan.shards.renew(token):
            raise LeaseLost(_("Another worker may have taken over a part of the scan."))

    found = find_keys(scan.bucket, keys, identity, count_page)
    marker = watcher.check()
    gone_items = [key for key in keys if identity(key) not in found]
    seen = compare_objects(scan, list(found.values()), set(keys), identity, asked, figures)
    seen += pending_findings.find_missing(scan, gone_items, asked)
    figures.update(one.kind for one in seen)
    with transaction.atomic():
        if not list(scan.shards.leased_by(token).select_for_update()):
            raise LeaseLost(_("Another worker may have taken over a part of the scan."))
        pending_findings.save_findings(seen)
        scan.add_trusted_counts(marker, **figures)
        shard.advance(keys[-1] if keys else shard.cursor, len(found), complete=not keys)
        scan.shards.save_progress([shard])


def next_keys(scan: BucketScan, shard: ScanShard, count: int) -> list[str]:
    rows = R2Object.objects.in_bucket(scan.bucket).between(shard.last_done_key, shard.until)
    written = rows.filter(starts_with("key", shard.prefix), updated_at__gte=scan.since)
    return list(written.order_by("key").values_list("key", flat=True)[:count])


def compare_objects(
    scan: BucketScan,
    objects: Sequence[ListedObject],
    keys: set[str],
    identity: KeyIdentity,
    asked: datetime,
    figures: Counter[str],
) -> list[PendingFinding]:
    seen = recognise_objects(scan.bucket, objects, keys, identity, asked)
    figures["listed"] += len(seen)
    figures["listed_bytes"] += sum(one.listed.size for one in seen)
    figures["unchanged"] += sum(map(is_up_to_date, seen))
    idle = (one for one in seen if not one.in_hand)
    return [each for one in idle for each in pending_findings.findings_of_object(scan, one)]
