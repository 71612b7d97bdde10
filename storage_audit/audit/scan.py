"""A look at the whole bucket that writes down what is there: a row for each object, and a finding
for each whose owner is gone or in doubt.

A backfilled row is a reading written down, never evidence of who owns the object.
"""

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import projects
from storage_audit.audit import installation, limits
from storage_audit.audit.discovery import rows_by_identity
from storage_audit.audit.installation import Mismatch
from storage_audit.audit.layouts import OWN_PREFIX, Reading
from storage_audit.audit.ownership import known_among, layouts
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import (
    Identity,
    escape,
    find,
    pages,
    storable,
    storable_part,
)
from storage_audit.bucket.r2 import Listed
from storage_audit.conf import conf
from storage_audit.models import (
    BucketScan,
    CleanupItem,
    CleanupOperation,
    Finding,
    R2Object,
)
from storage_audit.origin import current_origin

Kind, Source, State = Finding.Kind, R2Object.Source, R2Object.State
# A row that an upload confirmed has its time from a HEAD, which counts in whole seconds.
SAME_TIME = timedelta(seconds=1)
CHANGEABLE = [
    "project_id",
    "scene_id",
    "file_type",
    "layout",
    "size",
    "etag",
    "last_modified",
    "state",
    "updated_at",
]


class Owner(NamedTuple):
    """Whose an object seems to be, and what is wrong with that, if anything is."""

    project_id: str | None
    reading: Reading | None
    difference: str = ""
    evidence: str = ""


class Seen(NamedTuple):
    """An object of the listing, what is known of it, and whether an upload or a deletion has it
    in hand and will say itself what becomes of it."""

    listed: Listed
    row: R2Object | None
    owner: Owner
    in_hand: bool


def begin(prefix: str = "", *, dry_run: bool = False) -> BucketScan:
    scan = BucketScan.objects.create(
        bucket=conf().bucket,
        prefix=prefix,
        dry_run=dry_run,
        requested_by=current_origin().user,
    )
    scan.shards.create(prefix=prefix)
    return scan


def backfill(
    scan: BucketScan, *, accept_fewer: bool = False
) -> Generator[list[Finding], None, None]:
    """Write down what the bucket holds; gives the differences of each page once they are recorded.

    The store's errors end in the scan as a message. Any other exception does too, and is raised
    again. Either way what was written stays, and a scan that failed says nothing of absence. So
    does one that found far fewer objects than there should be, unless a person accepts that.
    """
    try:
        identity = installation.check(scan.bucket).identity
        asked = timezone.now()
        for page in pages(scan.bucket, scan.prefix):
            yield record(scan, page, identity, asked)
            asked = timezone.now()
        installation.check(scan.bucket)
        if not accept_fewer:
            limits.refuse_shrunken(scan)
        finish(scan)
    except (Mismatch, StoreError) as error:
        scan.fail(str(error))
    except (KeyboardInterrupt, GeneratorExit):
        scan.fail(_("Interrupted. What was written stays; it is safe to run again."))
        raise
    except Exception as error:
        scan.fail(f"{type(error).__name__}: {error}")
        raise


def finish(scan: BucketScan) -> None:
    with transaction.atomic():
        if not scan.dry_run:
            Finding.objects.resolve_unseen(scan, _("A complete scan did not see it again."))
        scan.shards.update(complete=True)
        scan.complete()


def record(
    scan: BucketScan, page: Sequence[Listed], identity: Identity, asked: datetime
) -> list[Finding]:
    """One page of the listing, in a number of queries that does not grow with it."""
    objects = [listed for listed in page if not listed.key.startswith(OWN_PREFIX)]
    seen = recognise(scan.bucket, [o for o in objects if storable(o.key)], identity, asked)
    idle = [one for one in seen if not one.in_hand]
    new = [one for one in idle if one.row is None]
    changed = [one.row for one in idle if one.row and bring_up_to_date(one)]
    gone = set() if scan.dry_run else add(scan.bucket, new, identity)
    added, updated = len(new) - len(gone), len(changed) if scan.dry_run else update(changed)
    findings = [
        *(unstorable(scan, o) for o in objects if not storable(o.key)),
        *(
            finding(scan, one.listed, one.owner)
            for one in idle
            if one.owner.difference and identity(one.listed.key) not in gone
        ),
    ]
    figures = {
        "listed": len(objects),
        "listed_bytes": sum(listed.size for listed in objects),
        "added": added,
        "updated": updated,
        "unchanged": len(seen) - added - updated,
        **Counter(found.kind for found in findings),
    }
    save(scan, page, findings, figures)
    return findings


def save(
    scan: BucketScan, page: Sequence[Listed], findings: list[Finding], figures: dict[str, int]
) -> None:
    with transaction.atomic():
        if not scan.dry_run:
            Finding.objects.see(scan, findings)
        scan.count(**figures)
        if page:
            scan.shards.update(cursor=storable_part(page[-1].key), listed=scan.listed)


def recognise(
    bucket: str, objects: Iterable[Listed], identity: Identity, asked: datetime
) -> list[Seen]:
    """The objects with their rows and owners: four queries in all."""
    readings = {listed: layouts().readings(listed.key) for listed in objects}
    rows = rows_by_identity(bucket, (listed.key for listed in readings), identity)
    untracked = {identity(listed.key) for listed in readings} - rows.keys()
    to_be_deleted = named_by_deletions(bucket, untracked)
    names = {reading.project for reading in chain.from_iterable(readings.values())}
    names |= {row.project_id for row in rows.values() if row.project_id}
    alive = projects.alive(names)
    known = known_among(names) | alive
    seen = []
    for listed, ways in readings.items():
        row = rows.get(identity(listed.key))
        if row:
            # A row that changed after the page was asked for knows more than the page.
            in_hand = row.state in (State.UPLOADING, State.DELETING) or row.updated_at >= asked
        else:
            in_hand = identity(listed.key) in to_be_deleted
        seen.append(Seen(listed, row, attribute(ways, row, known, alive), in_hand))
    return seen


def named_by_deletions(bucket: str, untracked: Collection[str]) -> set[str]:
    """Objects whose rows were deleted so that they go: with a new row they would be kept."""
    deletions = CleanupOperation.objects.open().filter(
        bucket=bucket, kind=CleanupOperation.Kind.OBJECTS
    )
    items = CleanupItem.objects.filter(
        operation__in=deletions, identity__in=untracked, escaped=False
    ).exclude(outcome=CleanupItem.Outcome.PROTECTED)
    return set(items.values_list("identity", flat=True))


def attribute(
    readings: Sequence[Reading], row: R2Object | None, known: set[str], alive: set[str]
) -> Owner:
    """`known` are the projects that ever lived, `alive` those that live now."""
    evidence = "; ".join(f"{reading.layout}: {reading.project}" for reading in readings)
    names = {reading.project for reading in readings}
    if row and row.source == Source.UPLOAD and row.project_id:
        evidence = _("uploaded for %s by this application") % row.project_id
        names = {row.project_id}
    candidates = names & known or names
    if not candidates:
        return Owner(None, None, Kind.UNRECOGNISED, _("no layout matches"))
    if len(candidates) > 1:
        return Owner(None, None, Kind.AMBIGUOUS, evidence)
    project_id = candidates.pop()
    reading = next((r for r in readings if r.project == project_id), None)
    if project_id in alive:
        return Owner(project_id, reading)
    if project_id in known:
        reason = _("project %s was deleted") % project_id
    else:
        reason = _("no project %s was ever known") % project_id
    return Owner(project_id, reading, Kind.ORPHANED, f"{evidence}; {reason}")


def described(owner: Owner) -> dict[str, Any]:
    reading = owner.reading
    return {
        "project_id": owner.project_id,
        "scene_id": (reading and reading.scene) or "",
        "file_type": reading.file_type[:40] if reading else "",
        "layout": reading.layout if reading else "",
    }


def bring_up_to_date(seen: Seen) -> bool:
    """Make the row, in memory, what the bucket shows; whether that changed anything."""
    row, listed = seen.row, seen.listed
    assert row is not None
    values: dict[str, Any] = {"state": State.STORED}
    if row.source == Source.BACKFILL:
        values |= described(seen.owner)
    if (row.size, row.etag) != (listed.size, listed.etag) or not same_time(row, listed):
        values |= facts(listed)
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return bool(changed)


def same_time(row: R2Object, listed: Listed) -> bool:
    then = row.last_modified
    return then is not None and abs(listed.last_modified - then) < SAME_TIME


def facts(listed: Listed) -> dict[str, Any]:
    return {"size": listed.size, "etag": listed.etag, "last_modified": listed.last_modified}


def update(changed: Collection[R2Object]) -> int:
    """Write those rows that are still as they were read: an upload or a cleanup knows better."""
    if not changed:
        return 0
    with transaction.atomic():
        rows = R2Object.objects.filter(pk__in=[row.pk for row in changed]).select_for_update()
        as_they_are = dict(rows.values_list("pk", "updated_at"))
        still = [row for row in changed if as_they_are.get(row.pk) == row.updated_at]
        now = timezone.now()
        for row in still:
            row.updated_at = now
        R2Object.objects.bulk_update(still, CHANGEABLE, batch_size=200)
    return len(still)


def add(bucket: str, new: Sequence[Seen], identity: Identity) -> set[str]:
    """Write new rows, and take back those whose object went in the meantime; gives their keys.

    The order matters: the rows are committed first, then the marks of cleanups are read, then the
    bucket is listed again. So whatever deletes such an object later sees its row, and whatever
    deleted it before, or is about to, is seen here.
    """
    if not new:
        return set()
    now = timezone.now()
    rows = [new_row(bucket, one, identity, now) for one in new]
    with transaction.atomic(durable=True):
        R2Object.objects.bulk_create(rows, ignore_conflicts=True)
    as_added = R2Object.objects.in_bucket(bucket).filter(
        source=Source.BACKFILL, state=State.STORED, updated_at=now
    )
    doubtful = {row.key for row in rows}
    try:
        keys = [listed.key for listed, *_rest in new]
        marked = being_deleted(bucket, keys)
        doubtful = marked | (doubtful - find(bucket, keys, identity).keys())
    finally:
        # All of them when the second look failed: then nothing is known of any.
        as_added.filter(key__in=doubtful).forget()
    return doubtful


def new_row(bucket: str, seen: Seen, identity: Identity, now: datetime) -> R2Object:
    return R2Object(
        bucket=bucket,
        # What the store folds to one object is one row, in the spelling of new uploads.
        key=identity(seen.listed.key),
        source=Source.BACKFILL,
        state=State.STORED,
        created_at=now,
        updated_at=now,
        **described(seen.owner),
        **facts(seen.listed),
    )


def being_deleted(bucket: str, keys: Collection[str]) -> set[str]:
    items = CleanupItem.objects.filter(operation__bucket=bucket, key__in=keys)
    marked = items.filter(outcome=CleanupItem.Outcome.DELETING)
    return set(marked.values_list("identity", flat=True))


def unstorable(scan: BucketScan, listed: Listed) -> Finding:
    text = _("a NUL, or bytes that are not UTF-8: no row and no request can name it")
    return finding(scan, listed, Owner(None, None, Kind.UNSTORABLE, text))


def finding(scan: BucketScan, listed: Listed, owner: Owner) -> Finding:
    return Finding(
        bucket=scan.bucket,
        key=escape(listed.key),
        escaped=not storable(listed.key),
        kind=owner.difference,
        project_id=owner.project_id,
        size=listed.size,
        last_modified=listed.last_modified,
        evidence=owner.evidence,
        last_scan=scan,
    )
