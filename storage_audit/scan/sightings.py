"""Differences that a scan has seen, noted until it is complete."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import escape
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.objects_in_hand import select_stored
from storage_audit.clocks import maybe_since
from storage_audit.fields import insert_new
from storage_audit.findings.models import Kind
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner
from storage_audit.scan.models import BucketScan, Sighting
from storage_audit.scan.models.parts import IN_HAND
from storage_audit.tracking.recognise import Seen
from storage_audit.tracking.rows import difference

# A database takes only so many values in a query.
CHUNK = 5000


def of_object(scan: BucketScan, seen: Seen) -> Iterator[Sighting]:
    """What is wrong with an object that no upload and no deletion has in hand."""
    owner = seen.owner
    if seen.is_covered:
        return
    if owner.difference:
        yield sighting(scan, owner.difference, seen.listed, owner)
        return
    if owner.is_misnamed:
        evidence = _("of %s, whose prefix the key has twice") % owner.project_id
        yield sighting(scan, Kind.MISNAMED, seen.listed, owner, evidence)
    if scan.purpose == BucketScan.Purpose.BACKFILL:
        return
    if seen.row is None:
        yield sighting(scan, Kind.UNTRACKED, seen.listed, owner, _("no row tracks it"))
    elif text := difference(seen):
        yield sighting(scan, Kind.CHANGED, seen.listed, owner, text)


def in_hand(scan: BucketScan, seen: Seen) -> Sighting:
    return sighting(scan, IN_HAND, seen.listed, seen.owner)


def of_unstorable(scan: BucketScan, listed: Listed) -> Sighting:
    text = _("a NUL, or bytes that are not UTF-8: no row and no request can name it")
    return sighting(scan, Kind.UNSTORABLE, listed, Owner(None, None), text)


def sighting(
    scan: BucketScan, kind: str, listed: Listed, owner: Owner, evidence: str = ""
) -> Sighting:
    key = escape(listed.key)
    return Sighting(
        scan=scan,
        bucket=scan.bucket,
        key=key,
        escaped=key != listed.key,
        kind=kind,
        project_id=owner.project_id,
        size=listed.size,
        etag=listed.etag,
        last_modified=listed.last_modified,
        evidence=evidence or owner.evidence,
    )


def missing(scan: BucketScan, keys: Collection[str], asked: datetime) -> Iterator[Sighting]:
    """Of the rows with these keys those whose object was to be in what was listed, and was not.

    An upload or a cleanup says itself what becomes of its row, and a row that changed after the
    listing was asked for knows more than the listing.
    """
    rows = select_stored(R2Object.objects.in_bucket(scan.bucket))
    rows = rows.exclude(maybe_since("updated_at", asked))
    todo = sorted(keys)
    for start in range(0, len(todo), CHUNK):
        for row in rows.filter(key__in=todo[start : start + CHUNK]):
            yield of_row(scan, row)


def of_row(scan: BucketScan, row: R2Object) -> Sighting:
    return Sighting(
        scan=scan,
        bucket=scan.bucket,
        key=row.key,
        kind=Kind.MISSING,
        project_id=row.project_id,
        size=row.size,
        etag=row.etag,
        last_modified=row.last_modified,
        evidence=_("a row tracks it, and no listing shows it"),
    )


def save(sightings: Iterable[Sighting]) -> int:
    """How many are new; what is noted already stays as it is."""
    return insert_new(list(sightings))
