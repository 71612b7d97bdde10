"""Differences that a scan has seen, noted until it is complete."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import escape_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.changing_objects import select_stored
from storage_audit.clocks import time_maybe_since
from storage_audit.fields import insert_new_rows
from storage_audit.findings.models import Kind
from storage_audit.models import R2Object
from storage_audit.ownership.attribution import Owner
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.models.shard import IN_HAND
from storage_audit.tracking.recognise import RecognisedObject
from storage_audit.tracking.rows import row_mismatch

# A database takes only so many values in a query.
KEYS_PER_QUERY = 5000


def findings_of_object(scan: BucketScan, seen: RecognisedObject) -> Iterator[PendingFinding]:
    """What is wrong with an object that no upload and no deletion has in hand."""
    owner = seen.owner
    if seen.is_covered:
        return
    if owner.problem:
        yield pending_finding(scan, owner.problem, seen.listed, owner)
        return
    if owner.is_misnamed:
        evidence = _("old name of project %s: it repeats the project prefix") % owner.project_id
        yield pending_finding(scan, Kind.MISNAMED, seen.listed, owner, evidence)
    if scan.purpose == BucketScan.Purpose.BACKFILL:
        return
    if seen.row is None:
        yield pending_finding(
            scan, Kind.UNTRACKED, seen.listed, owner, _("in the bucket, but not tracked")
        )
    elif text := row_mismatch(seen):
        yield pending_finding(scan, Kind.CHANGED, seen.listed, owner, text)


def in_hand_finding(scan: BucketScan, seen: RecognisedObject) -> PendingFinding:
    return pending_finding(scan, IN_HAND, seen.listed, seen.owner)


def unstorable_finding(scan: BucketScan, listed: ListedObject) -> PendingFinding:
    text = _("the name has a NUL or bytes that are not UTF-8, so no request can use it")
    return pending_finding(scan, Kind.UNSTORABLE, listed, Owner(None, None), text)


def pending_finding(
    scan: BucketScan, kind: str, listed: ListedObject, owner: Owner, evidence: str = ""
) -> PendingFinding:
    key = escape_key(listed.key)
    return PendingFinding(
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


def find_missing(
    scan: BucketScan, keys: Collection[str], asked: datetime
) -> Iterator[PendingFinding]:
    """The rows with these keys whose objects should have been listed, and were not.

    An upload or a cleanup decides about its row itself, and a row that changed after the listing
    was asked for knows more than the listing.
    """
    rows = select_stored(R2Object.objects.in_bucket(scan.bucket))
    rows = rows.exclude(time_maybe_since("updated_at", asked))
    todo = sorted(keys)
    for start in range(0, len(todo), KEYS_PER_QUERY):
        for row in rows.filter(key__in=todo[start : start + KEYS_PER_QUERY]):
            yield missing_finding(scan, row)


def missing_finding(scan: BucketScan, row: R2Object) -> PendingFinding:
    return PendingFinding(
        scan=scan,
        bucket=scan.bucket,
        key=row.key,
        kind=Kind.MISSING,
        project_id=row.project_id,
        size=row.size,
        etag=row.etag,
        last_modified=row.last_modified,
        evidence=_("tracked, but not in the bucket"),
    )


def save_findings(pending_findings: Iterable[PendingFinding]) -> int:
    """How many are new; what is noted already stays as it is."""
    return insert_new_rows(list(pending_findings))
