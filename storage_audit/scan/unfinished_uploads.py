"""Multipart uploads that nobody completed: no listing of objects shows them, and all cost money."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import chain

from django.utils import timezone

from storage_audit.bucket import multipart
from storage_audit.bucket.listing import escape, storable
from storage_audit.bucket.multipart import Upload
from storage_audit.findings.models import Kind
from storage_audit.ownership.attribution import attribute
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.owner import alive_among, evidence_of, known_among, layouts
from storage_audit.scan.models import BucketScan, Sighting


def sightings(
    scan: BucketScan, prefixes: Iterable[str], older_than: timedelta
) -> Iterator[Sighting] | None:
    """Of the uploads under these prefixes that were begun so long ago; None where the store cannot
    list them. Only when the iteration ends without an exception these were all. Raises StoreError.
    """
    listings = [multipart.unfinished(scan.bucket, prefix) for prefix in prefixes]
    told = [pages for pages in listings if pages is not None]
    if len(told) < len(listings):
        return None
    moment = timezone.now() - older_than
    stale = ([one for one in page if is_stale(one, moment)] for page in chain(*told))
    return chain.from_iterable(sighted(scan, page) for page in stale)


def is_stale(upload: Upload, moment: datetime) -> bool:
    return upload.initiated < moment and not upload.key.startswith(OWN_PREFIX)


def sighted(scan: BucketScan, page: list[Upload]) -> Iterator[Sighting]:
    readings = {upload.key: layouts().readings(upload.key) for upload in page}
    names = {reading.project for reading in chain.from_iterable(readings.values())}
    alive = alive_among(readings.values())
    known = known_among(names) | alive
    for upload in page:
        owner = attribute(readings[upload.key], (), known, alive, None)
        yield Sighting(
            scan=scan,
            bucket=scan.bucket,
            key=escape(upload.key),
            escaped=not storable(upload.key),
            kind=Kind.UNFINISHED,
            upload_id=upload.upload_id,
            project_id=owner.project_id,
            last_modified=upload.initiated,
            evidence=owner.evidence or evidence_of(readings[upload.key]),
        )
