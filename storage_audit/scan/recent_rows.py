"""A cheap look: what the table says was written lately, looked up in the bucket. It says nothing of
all else, so nothing follows from it."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import Identity, find
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models.states import LeaseLost
from storage_audit.fields import starts_with
from storage_audit.models import R2Object
from storage_audit.scan import sightings
from storage_audit.scan.marker_sighting import Witness
from storage_audit.scan.models import BucketScan, ScanShard, Sighting
from storage_audit.tracking.recognise import recognise
from storage_audit.tracking.rows import is_as_tracked

CHUNK = 1000


def look_up(
    scan: BucketScan, shard: ScanShard, token: UUID, identity: Identity, witness: Witness
) -> None:
    """The next rows of the shard. Raises LeaseLost, PassBroken, CannotConclude and StoreError."""
    left = CHUNK if scan.ceiling is None else scan.ceiling - scan.requests
    keys, asked = next_keys(scan, shard, min(CHUNK, left)), timezone.now()
    figures = Counter[str]()

    def count_page() -> None:
        # A key that has no neighbour takes a request of its own.
        figures["requests"] += 1
        if not scan.shards.renew(token):
            raise LeaseLost(_("Another worker may have taken over a part of the scan."))

    found = find(scan.bucket, keys, identity, count_page)
    marker = witness.see()
    absent = [key for key in keys if identity(key) not in found]
    seen = differences(scan, list(found.values()), set(keys), identity, asked, figures)
    seen += sightings.missing(scan, absent, asked)
    figures.update(one.kind for one in seen)
    with transaction.atomic():
        if not list(scan.shards.held_by(token).select_for_update()):
            raise LeaseLost(_("Another worker may have taken over a part of the scan."))
        sightings.save(seen)
        scan.vouch(marker, **figures)
        shard.advance(keys[-1] if keys else shard.cursor, len(found), complete=not keys)
        scan.shards.keep([shard])


def next_keys(scan: BucketScan, shard: ScanShard, count: int) -> list[str]:
    rows = R2Object.objects.in_bucket(scan.bucket).between(shard.done, shard.until)
    written = rows.filter(starts_with("key", shard.prefix), updated_at__gte=scan.since)
    return list(written.order_by("key").values_list("key", flat=True)[:count])


def differences(
    scan: BucketScan,
    objects: Sequence[Listed],
    keys: set[str],
    identity: Identity,
    asked: datetime,
    figures: Counter[str],
) -> list[Sighting]:
    seen = recognise(scan.bucket, objects, keys, identity, asked)
    figures["listed"] += len(seen)
    figures["listed_bytes"] += sum(one.listed.size for one in seen)
    figures["unchanged"] += sum(map(is_as_tracked, seen))
    idle = (one for one in seen if not one.in_hand)
    return [each for one in idle for each in sightings.of_object(scan, one)]
