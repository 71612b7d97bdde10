"""Multipart uploads that nobody completed: no listing of objects shows them, and all cost money."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain

from django.utils import timezone

from storage_audit.bucket import multipart
from storage_audit.bucket.listing import escape_key, is_storable
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.findings.models import Kind
from storage_audit.ownership.attribution import find_owner
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.ownership_rule import (
    evidence_of,
    get_key_formats,
    known_ids,
    living_owners,
)
from storage_audit.scan.models import BucketScan, PendingFinding


def find_unfinished(
    scan: BucketScan, prefixes: Iterable[str], older_than: timedelta
) -> Iterator[PendingFinding] | None:
    """Uploads under these prefixes that were begun so long ago; None where the store cannot list
    them. They are complete only if the iteration ends without an exception. Raises StoreError."""
    listings = [multipart.list_unfinished_uploads(scan.bucket, prefix) for prefix in prefixes]
    told = [pages for pages in listings if pages is not None]
    if len(told) < len(listings):
        return None
    moment = timezone.now() - older_than
    stale = (
        [one for one in page if one.initiated < moment and not one.key.startswith(OWN_PREFIX)]
        for page in chain(*told)
    )
    return chain.from_iterable(upload_findings(scan, page) for page in stale)


def upload_findings(scan: BucketScan, page: list[MultipartUpload]) -> Iterator[PendingFinding]:
    parsed_keys = {upload.key: get_key_formats().parse_key(upload.key) for upload in page}
    names = {parsed_key.project for parsed_key in chain.from_iterable(parsed_keys.values())}
    alive = living_owners(parsed_keys.values())
    known = known_ids(names) | alive
    for upload in page:
        owner = find_owner(parsed_keys[upload.key], (), known, alive, None)
        yield PendingFinding(
            scan=scan,
            bucket=scan.bucket,
            key=escape_key(upload.key),
            escaped=not is_storable(upload.key),
            kind=Kind.UNFINISHED,
            upload_id=upload.upload_id,
            project_id=owner.project_id,
            last_modified=upload.initiated,
            evidence=owner.evidence or evidence_of(parsed_keys[upload.key]),
        )
