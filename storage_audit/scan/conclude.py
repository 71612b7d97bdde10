"""What a scan says once all was listed: its sightings become findings, or nothing does."""

from functools import partial
from itertools import islice
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import clocks, project_model
from storage_audit.bucket.listing import (
    Identity,
    escape_backslashes,
    exact,
    find,
    nfc,
    show_all_spellings,
)
from storage_audit.cleanup.models import CleanupItem
from storage_audit.cleanup.objects_in_hand import select_changing, select_stored
from storage_audit.clocks import CLOCKS_DIFFER, after, before, maybe_since
from storage_audit.conf import conf
from storage_audit.fields import starts_with_any
from storage_audit.findings.models import OF_NO_OBJECT, Difference, Finding, FindingQuerySet, Kind
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.scan import sightings, unfinished_uploads
from storage_audit.scan.compare import note_keys
from storage_audit.scan.models import BucketScan, ListedKey, ScanShard, Sighting
from storage_audit.scan.models.parts import IN_HAND
from storage_audit.scan.scan_limits import refuse_shrunken
from storage_audit.tracking.rows import find_each, find_in_any_order, still_there

State = Finding.State
CHUNK = 5000
# Missing keys that are looked for at once: those that start alike are found in one listing.
TOGETHER = 20_000
NAMES = ", ".join(field.attname for field in Difference._meta.local_concrete_fields)
# It is still the difference, and the object, that the finding was about.
SAME = f"""finding.state <> '{State.RESOLVED}' AND finding.etag = excluded.etag
    AND (finding.size = excluded.size) IS NOT FALSE
    AND (finding.last_modified = excluded.last_modified) IS NOT FALSE"""
# What was found, or decided, since this scan began is newer than what it saw. An acknowledgement is
# about one object, and never passes to another.
PUBLISH = f"""
INSERT INTO {Finding._meta.db_table} AS finding
    ({NAMES}, state, note, decided_by, first_seen_at, last_seen_at, first_scan_id, last_scan_id)
SELECT {NAMES}, '{State.OPEN}', '', '', %s, %s, scan_id, scan_id
FROM {Sighting._meta.db_table}
WHERE scan_id = %s AND kind <> '{IN_HAND}'
ORDER BY bucket, kind, key
ON CONFLICT (bucket, kind, key, escaped, upload_id) DO UPDATE SET
    project_id = excluded.project_id,
    size = excluded.size,
    etag = excluded.etag,
    last_modified = excluded.last_modified,
    evidence = excluded.evidence,
    last_seen_at = excluded.last_seen_at,
    last_scan_id = excluded.last_scan_id,
    first_seen_at = CASE WHEN {SAME} THEN finding.first_seen_at ELSE excluded.first_seen_at END,
    first_scan_id = CASE WHEN {SAME} THEN finding.first_scan_id ELSE excluded.first_scan_id END,
    note = CASE WHEN finding.state = '{State.RESOLVED}' THEN '' ELSE finding.note END,
    state = CASE WHEN finding.state = '{State.RESOLVED}' THEN '{State.OPEN}'
        ELSE finding.state END
WHERE (finding.last_seen_at < excluded.last_seen_at OR finding.last_seen_at > %s)
    AND (finding.state = '{State.RESOLVED}'
        AND finding.decided_at BETWEEN excluded.last_seen_at AND %s) IS NOT TRUE
    AND (finding.state <> '{State.ACKNOWLEDGED}' OR finding.escaped
        OR finding.kind IN {OF_NO_OBJECT}
        OR finding.etag = excluded.etag AND finding.size = excluded.size)
"""


def end(scan: BucketScan, identity: Identity) -> None:
    """Believe the scan, and say what it saw. Raises CannotConclude and StoreError when it is not to
    be believed, as when it found too little, and PassBroken when it has to start again."""
    # Others may have counted more since, or ended it.
    scan.refresh_from_db()
    if scan.status != BucketScan.Status.RUNNING:
        return
    if not scan.is_partial:
        note_unfinished(scan)
    if not (scan.in_key_order or scan.is_partial):
        note_unlisted(scan)
    marker = bucket_marker.see_marker(scan.bucket)
    bucket_marker.refuse_empty_table(_("Then start the scan again."))
    if not scan.accept_fewer:
        refuse_shrunken(scan)
    look_for_missing(scan, identity)
    settles = not (scan.dry_run or scan.is_partial)
    gone = look_for_kept(scan, identity) if settles else set[int]()
    with transaction.atomic():
        if BucketScan.objects.finish(scan):
            scan.vouch(marker)
            refuse_undated(scan)
            refuse_overtaken(scan)
            take_back(scan)
            if settles:
                open_overwritten(scan, gone)
                publish(scan)
                resolve_unseen(scan, gone)
                forget_earlier(scan)
            scan.complete()
    scan.refresh_from_db()


def refuse_undated(scan: BucketScan) -> None:
    """Raises CannotConclude when nothing can be older or newer than the scan."""
    if scan.started_at > clocks.latest():
        text = _("The clock was ahead when this scan began, so its result is not used. Scan again.")
        raise CannotConclude(text)


def refuse_overtaken(scan: BucketScan) -> None:
    """Raises CannotConclude when a later scan of the same keys was complete."""
    same = Q(prefix=scan.prefix, project_id=scan.project_id) | Q(prefix="", project_id=None)
    later = BucketScan.objects.complete().filter(
        same, after("started_at", scan.started_at), bucket=scan.bucket, since=None
    )
    if later.exists():
        raise CannotConclude(_("A later scan is complete, and knows more than this one."))


def note_unfinished(scan: BucketScan) -> None:
    """Multipart uploads that were begun long ago, which no listing of objects shows."""
    found = unfinished_uploads.sightings(scan, scan.prefixes, conf().upload_timeout)
    scan.uploads_looked_for = found is not None
    scan.save(update_fields=["uploads_looked_for"])
    while chunk := list(islice(found or (), CHUNK)):
        bucket_marker.see_marker(scan.bucket)
        note(scan, "unfinished", chunk)


def note_unlisted(scan: BucketScan) -> None:
    """Where the store lists in an order of its own only all keys together tell what is missing."""
    rows = select_stored(R2Object.objects.in_bucket(scan.bucket)).filter(
        starts_with_any("key", scan.prefixes),
        ~maybe_since("updated_at", scan.started_at),
    )
    is_listed = Exists(scan.listed_keys.filter(key=OuterRef("key")))
    after = ""
    while chunk := list(rows.between(after, None).filter(~is_listed).order_by("key")[:CHUNK]):
        after = chunk[-1].key
        note(scan, "missing", [sightings.of_row(scan, row) for row in chunk])


def look_for_missing(scan: BucketScan, identity: Identity) -> None:
    """Once more, where the listing may not have shown it. The first page of a whole bucket has no
    place that tells it from an earlier answer, and a clock that is behind dates a new file before
    the scan: such keys are looked for, each at its own place. Where spellings are one object,
    others may be outside of the prefixes."""
    prefixes, after = tuple(scan.prefixes), ""
    first = scan.shards.filter(prefix="", after="").first()
    rows = R2Object.objects.in_bucket(scan.bucket).filter(key=OuterRef("key"))
    is_new = Exists(select_changing(rows, scan.started_at - CLOCKS_DIFFER))
    missing = scan.sightings.filter(kind=Kind.MISSING).order_by("key")
    keys = missing.values_list("key", is_new)
    while chunk := dict(keys.filter(key__gt=after)[:TOGETHER]):
        after = next(reversed(chunk))
        pages = list[None]()
        count = partial(pages.append, None)
        here = [
            key
            for key, new in chunk.items()
            if new or first and (first.until is None or key <= first.until)
        ]
        elsewhere = [
            key for key in chunk if identity is nfc and not show_all_spellings(prefixes, key)
        ]
        if not (here or elsewhere):
            continue
        there = still_there(scan.bucket, here, exact, count)
        found = find(scan.bucket, elsewhere, nfc, count)
        marker = bucket_marker.see_marker(scan.bucket)
        with transaction.atomic():
            if BucketScan.objects.finish(scan):
                there.update(key for key in elsewhere if nfc(key) in found)
                note_keys(scan, there)
                scan.vouch(marker, requests=len(pages))


def look_for_kept(scan: BucketScan, identity: Identity) -> set[int]:
    """Acknowledged findings whose object is gone, or another one by now. That this scan does not
    see them again says neither: the file may be tracked or covered by a cleanup by now, be listed
    in another spelling, or be on a page of the past. So each is looked for at its own place."""
    look = find_each if scan.in_key_order else find_in_any_order
    gone, last = set[int](), 0
    kept = unseen_by(scan).keeping().only("key", "size", "etag").order_by("pk")
    while some := list(kept.filter(pk__gt=last)[:TOGETHER]):
        last = some[-1].pk
        pages = list[None]()
        keys = sorted({one.key for one in some})
        there = look(scan.bucket, keys, identity, partial(pages.append, None))
        marker = bucket_marker.see_marker(scan.bucket)
        with transaction.atomic():
            if BucketScan.objects.finish(scan):
                scan.vouch(marker, requests=len(pages))
        for one in some:
            listed = there.get(identity(one.key))
            if listed is None or (listed.size, listed.etag) != (one.size, one.etag):
                gone.add(one.pk)
    return gone


def note(scan: BucketScan, figure: str, seen: list[Sighting]) -> None:
    """Unless another worker has ended the scan meanwhile, and all of this has been said."""
    with transaction.atomic():
        if BucketScan.objects.finish(scan):
            scan.count(**{figure: sightings.save(seen)})


def take_back(scan: BucketScan) -> None:
    """What is otherwise by now: missing rows, and orphans of projects that were being created."""
    # A row that was written, or went, while the scan was under way is not missing any more, nor is
    # one whose object is listed in another spelling.
    same = R2Object.objects.filter(bucket=OuterRef("bucket"), key=OuterRef("key"))
    tracked = Exists(select_stored(same).exclude(maybe_since("updated_at", scan.started_at)))
    listed = Exists(scan.listed_keys.filter(key=OuterRef("key")))
    found, _each = scan.sightings.filter(~tracked | listed, kind=Kind.MISSING).delete()
    scan.count(missing=-found)
    orphans = scan.sightings.filter(kind=Kind.ORPHANED)
    # Cleanups that were asked for since cover some, and others have deleted some.
    covered, _each = orphans.filter(Finding.objects.covered()).delete()
    gone, _each = orphans.filter(Exists(deleted_since(scan))).delete()
    scan.count(orphaned=-covered - gone)
    named = [
        str(each) for each in orphans.order_by().values_list("project_id", flat=True).distinct()
    ]
    for start in range(0, len(named), CHUNK):
        alive = project_model.alive(named[start : start + CHUNK])
        taken, _each = orphans.filter(project_id__in=alive).delete()
        scan.count(orphaned=-taken)


def deleted_since(scan: BucketScan) -> QuerySet[CleanupItem]:
    return CleanupItem.objects.filter(
        maybe_since("changed_at", scan.started_at),
        operation__bucket=OuterRef("bucket"),
        identity=OuterRef("key"),
        escaped=OuterRef("escaped"),
        outcome__in=[CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_ABSENT],
    )


def open_overwritten(scan: BucketScan, gone: set[int]) -> None:
    same = {"kind": OuterRef("kind"), "key": OuterRef("key"), "escaped": OuterRef("escaped")}
    kept = Finding.objects.keeping().filter(pk__any_of=gone)
    kept.filter(Exists(scan.sightings.filter(**same))).open_again(_("The file was overwritten."))


def publish(scan: BucketScan) -> None:
    """Seen first at the end of the scan, and last at its beginning: a resumed one can have seen it
    at any time between."""
    adapt = connection.ops.adapt_datetimefield_value
    first, last, latest = map(adapt, (timezone.now(), scan.started_at, clocks.latest_accepted()))
    with connection.cursor() as cursor:
        cursor.execute(PUBLISH, [first, last, database_id(scan), latest, latest])


def database_id(scan: BucketScan) -> Any:
    return BucketScan._meta.pk.get_db_prep_value(scan.pk, connection)


def unseen_by(scan: BucketScan) -> FindingQuerySet:
    """Findings that no scan has seen since this one began. A row in hand may still differ."""
    same = {"key": OuterRef("key"), "escaped": OuterRef("escaped")}
    as_it_was = Q(kind=OuterRef("kind"), size=OuterRef("size"), etag=OuterRef("etag"))
    seen = scan.sightings.filter(as_it_was | Q(kind=IN_HAND), **same)
    return Finding.objects.filter(
        is_in(scan),
        ~maybe_since("last_seen_at", scan.started_at),
        ~Exists(seen),
        bucket=scan.bucket,
    )


def resolve_unseen(scan: BucketScan, gone: set[int]) -> None:
    """The object is gone, or is no difference any more. A row that was in hand is not looked for.
    An acknowledgement ends only with its object: `gone` are those of which that was seen."""
    unseen = unseen_by(scan)
    rows = R2Object.objects.in_bucket(scan.bucket).filter(key=OuterRef("key"))
    changing = select_changing(rows, scan.started_at)
    unseen = unseen.exclude(Exists(changing), kind=Kind.MISSING)
    if not scan.uploads_looked_for:
        unseen = unseen.exclude(kind=Kind.UNFINISHED)
    kept = Finding.objects.keeping().exclude(pk__any_of=gone)
    unseen = unseen.exclude(pk__in=kept.values("pk"))
    covered = unseen.filter(Finding.objects.covered(), kind=Kind.ORPHANED)
    covered.resolve(_("A cleanup that is not over covers it."))
    unseen.resolve(_("A complete scan did not see it again."))


def is_in(scan: BucketScan) -> Q:
    """Findings whose keys, and not what is shown of them, start with a prefix of the scan."""
    shown = map(escape_backslashes, scan.prefixes)
    return Q(starts_with_any("key", scan.prefixes), escaped=False) | Q(
        starts_with_any("key", shown), escaped=True
    )


def forget_earlier(scan: BucketScan) -> None:
    """What earlier scans noted and never said, so that nobody resumes them, and what is said."""
    began = before("started_at", scan.started_at)
    earlier = BucketScan.objects.filter(began, bucket=scan.bucket)
    if scan.prefix or scan.project_id:
        earlier = earlier.filter(prefix=scan.prefix, project_id=scan.project_id)
    ended = [BucketScan.Status.STOPPED, BucketScan.Status.FAILED]
    over = earlier.filter(status__in=ended).values("pk")
    ScanShard.objects.filter(scan__in=over).delete()
    for noted in (Sighting.objects, ListedKey.objects):
        noted.filter(scan__in=over)._raw_delete(noted.db)
        noted.filter(scan=scan)._raw_delete(noted.db)
