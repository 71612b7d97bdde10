"""Ends a scan that has listed everything: its pending findings become findings, or none does."""

from functools import partial
from itertools import islice
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import clocks, project_model
from storage_audit.bucket.listing import (
    KeyIdentity,
    can_show_all_spellings,
    escape_backslashes,
    exact_key,
    find_keys,
    nfc_key,
)
from storage_audit.cleanup.changing_objects import select_changing, select_stored
from storage_audit.cleanup.models import CleanupItem
from storage_audit.clocks import MAX_CLOCK_SKEW, time_after, time_before, time_maybe_since
from storage_audit.conf import conf
from storage_audit.fields import starts_with_any
from storage_audit.findings.models import (
    KINDS_WITHOUT_OBJECT,
    Finding,
    FindingBase,
    FindingQuerySet,
    Kind,
)
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.scan import pending_findings, unfinished_uploads
from storage_audit.scan.compare import save_listed_keys
from storage_audit.scan.models import BucketScan, ListedKey, PendingFinding, ScanShard
from storage_audit.scan.models.shard import IN_HAND
from storage_audit.scan.scan_limits import refuse_shrunken_listing
from storage_audit.tracking.rows import find_in_any_order, find_in_threads, find_listed_keys

State = Finding.State
ROWS_PER_BATCH = 5000
# Missing keys that are rechecked at once: one listing finds those that start alike.
KEYS_PER_LOOKUP = 20_000
COLUMNS_SQL = ", ".join(field.attname for field in FindingBase._meta.local_concrete_fields)
# The finding is still about the same object.
SAME_OBJECT_SQL = f"""finding.state <> '{State.RESOLVED}' AND finding.etag = excluded.etag
    AND (finding.size = excluded.size) IS NOT FALSE
    AND (finding.last_modified = excluded.last_modified) IS NOT FALSE"""
# What was found or decided since this scan began is newer than what the scan saw. Ignoring is about
# one object, and never passes to another.
PUBLISH_SQL = f"""
INSERT INTO {Finding._meta.db_table} AS finding
    ({COLUMNS_SQL}, state, note, decided_by, first_seen_at, last_seen_at, first_scan_id,
    last_scan_id)
SELECT {COLUMNS_SQL}, '{State.OPEN}', '', '', %s, %s, scan_id, scan_id
FROM {PendingFinding._meta.db_table}
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
    first_seen_at = CASE WHEN {SAME_OBJECT_SQL} THEN finding.first_seen_at
        ELSE excluded.first_seen_at END,
    first_scan_id = CASE WHEN {SAME_OBJECT_SQL} THEN finding.first_scan_id
        ELSE excluded.first_scan_id END,
    note = CASE WHEN finding.state = '{State.RESOLVED}' THEN '' ELSE finding.note END,
    state = CASE WHEN finding.state = '{State.RESOLVED}' THEN '{State.OPEN}'
        ELSE finding.state END
WHERE (finding.last_seen_at < excluded.last_seen_at OR finding.last_seen_at > %s)
    AND (finding.state = '{State.RESOLVED}'
        AND finding.decided_at BETWEEN excluded.last_seen_at AND %s) IS NOT TRUE
    AND (finding.state <> '{State.IGNORED}' OR finding.escaped
        OR finding.kind IN {KINDS_WITHOUT_OBJECT}
        OR finding.etag = excluded.etag AND finding.size = excluded.size)
"""


def conclude_scan(scan: BucketScan, identity: KeyIdentity) -> None:
    """Publish the findings of the scan if it can be believed. Raises CannotConclude and StoreError
    when it cannot, as when it found too little, and PassBroken when it has to start again."""
    # Others may have counted more since, or ended it.
    scan.refresh_from_db()
    if scan.status != BucketScan.Status.RUNNING:
        return
    if not scan.is_partial:
        save_unfinished_uploads(scan)
    if not (scan.in_key_order or scan.is_partial):
        save_unlisted_rows(scan)
    marker = bucket_marker.require_marker(scan.bucket)
    bucket_marker.require_project_table(_("Then scan again."))
    if not scan.accept_fewer:
        refuse_shrunken_listing(scan)
    recheck_missing(scan, identity)
    settles = not (scan.dry_run or scan.is_partial)
    gone = find_gone_ignored(scan, identity) if settles else set[int]()
    with transaction.atomic():
        if BucketScan.objects.lock_for_ending(scan):
            scan.add_trusted_counts(marker)
            refuse_undated(scan)
            refuse_overtaken(scan)
            drop_outdated(scan)
            if settles:
                reopen_overwritten(scan, gone)
                publish_findings(scan)
                resolve_unseen(scan, gone)
                forget_earlier_scans(scan)
            scan.complete()
    scan.refresh_from_db()


def refuse_undated(scan: BucketScan) -> None:
    """Raises CannotConclude when nothing can be older or newer than the scan."""
    if scan.started_at > clocks.latest_valid_time():
        text = _("This scan is not used: the clock was ahead when it started. Scan again.")
        raise CannotConclude(text)


def refuse_overtaken(scan: BucketScan) -> None:
    """Raises CannotConclude when a later scan of the same keys was complete."""
    same = Q(prefix=scan.prefix, project_id=scan.project_id) | Q(prefix="", project_id=None)
    later = BucketScan.objects.complete().filter(
        same, time_after("started_at", scan.started_at), bucket=scan.bucket, since=None
    )
    if later.exists():
        raise CannotConclude(_("A newer scan is complete, so this one is not used."))


def save_unfinished_uploads(scan: BucketScan) -> None:
    """Multipart uploads that were begun long ago, which no listing of objects shows."""
    found = unfinished_uploads.find_unfinished(scan, scan.prefixes, conf().upload_timeout)
    scan.uploads_listed = found is not None
    scan.save(update_fields=["uploads_listed"])
    while chunk := list(islice(found or (), ROWS_PER_BATCH)):
        bucket_marker.require_marker(scan.bucket)
        save_and_count(scan, "unfinished", chunk)


def save_unlisted_rows(scan: BucketScan) -> None:
    """Where the store lists in its own order, only all keys together show what is missing."""
    rows = select_stored(R2Object.objects.in_bucket(scan.bucket)).filter(
        starts_with_any("key", scan.prefixes),
        ~time_maybe_since("updated_at", scan.started_at),
    )
    is_listed = Exists(scan.listed_keys.filter(key=OuterRef("key")))
    after = ""
    while chunk := list(
        rows.between(after, None).filter(~is_listed).order_by("key")[:ROWS_PER_BATCH]
    ):
        after = chunk[-1].key
        save_and_count(
            scan, "missing", [pending_findings.missing_finding(scan, row) for row in chunk]
        )


def recheck_missing(scan: BucketScan, identity: KeyIdentity) -> None:
    """Look up missing keys that the listing may not have shown, each at its own place. The first
    page of a whole bucket could be an earlier answer, and a slow clock dates a new file before the
    scan. Where spellings are one object, others may lie outside of the prefixes."""
    prefixes, after = tuple(scan.prefixes), ""
    first = scan.shards.filter(prefix="", after="").first()
    rows = R2Object.objects.in_bucket(scan.bucket).filter(key=OuterRef("key"))
    is_new = Exists(select_changing(rows, scan.started_at - MAX_CLOCK_SKEW))
    missing = scan.pending_findings.filter(kind=Kind.MISSING).order_by("key")
    keys = missing.values_list("key", is_new)
    while chunk := dict(keys.filter(key__gt=after)[:KEYS_PER_LOOKUP]):
        after = next(reversed(chunk))
        pages = list[None]()
        count = partial(pages.append, None)
        here = [
            key
            for key, new in chunk.items()
            if new or first and (first.until is None or key <= first.until)
        ]
        elsewhere = [
            key
            for key in chunk
            if identity is nfc_key and not can_show_all_spellings(prefixes, key)
        ]
        if not (here or elsewhere):
            continue
        there = find_listed_keys(scan.bucket, here, exact_key, count)
        found = find_keys(scan.bucket, elsewhere, nfc_key, count)
        marker = bucket_marker.require_marker(scan.bucket)
        with transaction.atomic():
            if BucketScan.objects.lock_for_ending(scan):
                there.update(key for key in elsewhere if nfc_key(key) in found)
                save_listed_keys(scan, there)
                scan.add_trusted_counts(marker, requests=len(pages))


def find_gone_ignored(scan: BucketScan, identity: KeyIdentity) -> set[int]:
    """Ignored findings whose object is gone or was replaced. That this scan did not see them again
    proves neither: the file may be tracked or covered by a cleanup by now, be listed in another
    spelling, or be on an outdated page. So each is looked up at its own place."""
    look = find_in_threads if scan.in_key_order else find_in_any_order
    gone, last = set[int](), 0
    kept = unseen_findings(scan).keeping_objects().only("key", "size", "etag").order_by("pk")
    while some := list(kept.filter(pk__gt=last)[:KEYS_PER_LOOKUP]):
        last = some[-1].pk
        pages = list[None]()
        keys = sorted({one.key for one in some})
        there = look(scan.bucket, keys, identity, partial(pages.append, None))
        marker = bucket_marker.require_marker(scan.bucket)
        with transaction.atomic():
            if BucketScan.objects.lock_for_ending(scan):
                scan.add_trusted_counts(marker, requests=len(pages))
        for one in some:
            listed = there.get(identity(one.key))
            if listed is None or (listed.size, listed.etag) != (one.size, one.etag):
                gone.add(one.pk)
    return gone


def save_and_count(scan: BucketScan, figure: str, seen: list[PendingFinding]) -> None:
    """Do nothing if another worker has ended the scan meanwhile, and so saved all of this."""
    with transaction.atomic():
        if BucketScan.objects.lock_for_ending(scan):
            scan.add_counts(**{figure: pending_findings.save_findings(seen)})


def drop_outdated(scan: BucketScan) -> None:
    """Drop what has changed: missing rows, and orphans of projects that were being created."""
    # A row that was written, or went, while the scan was under way is not missing any more, nor is
    # one whose object is listed in another spelling.
    same = R2Object.objects.filter(bucket=OuterRef("bucket"), key=OuterRef("key"))
    tracked = Exists(select_stored(same).exclude(time_maybe_since("updated_at", scan.started_at)))
    listed = Exists(scan.listed_keys.filter(key=OuterRef("key")))
    found, _each = scan.pending_findings.filter(~tracked | listed, kind=Kind.MISSING).delete()
    scan.add_counts(missing=-found)
    orphans = scan.pending_findings.filter(kind=Kind.ORPHANED)
    # Cleanups that were asked for since cover some, and others have deleted some.
    covered, _each = orphans.filter(Finding.objects.covered()).delete()
    gone, _each = orphans.filter(Exists(deleted_since(scan))).delete()
    scan.add_counts(orphaned=-covered - gone)
    named = [
        str(each) for each in orphans.order_by().values_list("project_id", flat=True).distinct()
    ]
    for start in range(0, len(named), ROWS_PER_BATCH):
        alive = project_model.living_ids(named[start : start + ROWS_PER_BATCH])
        taken, _each = orphans.filter(project_id__in=alive).delete()
        scan.add_counts(orphaned=-taken)


def deleted_since(scan: BucketScan) -> QuerySet[CleanupItem]:
    return CleanupItem.objects.filter(
        time_maybe_since("changed_at", scan.started_at),
        cleanup__bucket=OuterRef("bucket"),
        identity=OuterRef("key"),
        escaped=OuterRef("escaped"),
        outcome__in=[CleanupItem.Outcome.DELETED, CleanupItem.Outcome.ALREADY_GONE],
    )


def reopen_overwritten(scan: BucketScan, gone: set[int]) -> None:
    same = {"kind": OuterRef("kind"), "key": OuterRef("key"), "escaped": OuterRef("escaped")}
    kept = Finding.objects.keeping_objects().filter(pk__any_of=gone)
    kept.filter(Exists(scan.pending_findings.filter(**same))).reopen_with_note(
        _("The file was overwritten.")
    )


def publish_findings(scan: BucketScan) -> None:
    """Date them carefully, as a resumed scan can have seen an object at any time: first seen at the
    end of the scan, last seen at its beginning."""
    adapt = connection.ops.adapt_datetimefield_value
    first, last, latest = map(
        adapt, (timezone.now(), scan.started_at, clocks.latest_accepted_time())
    )
    with connection.cursor() as cursor:
        cursor.execute(PUBLISH_SQL, [first, last, database_id(scan), latest, latest])


def database_id(scan: BucketScan) -> Any:
    return BucketScan._meta.pk.get_db_prep_value(scan.pk, connection)


def unseen_findings(scan: BucketScan) -> FindingQuerySet:
    """Findings that no scan has seen since this one began. A row in hand may still differ."""
    same = {"key": OuterRef("key"), "escaped": OuterRef("escaped")}
    as_it_was = Q(kind=OuterRef("kind"), size=OuterRef("size"), etag=OuterRef("etag"))
    seen = scan.pending_findings.filter(as_it_was | Q(kind=IN_HAND), **same)
    return Finding.objects.filter(
        is_in_scope(scan),
        ~time_maybe_since("last_seen_at", scan.started_at),
        ~Exists(seen),
        bucket=scan.bucket,
    )


def resolve_unseen(scan: BucketScan, gone: set[int]) -> None:
    """Resolve findings whose object is gone or does not differ any more, but for rows that an
    upload or a cleanup had in hand. An ignored one ends only if its object is in `gone`."""
    unseen = unseen_findings(scan)
    rows = R2Object.objects.in_bucket(scan.bucket).filter(key=OuterRef("key"))
    changing = select_changing(rows, scan.started_at)
    unseen = unseen.exclude(Exists(changing), kind=Kind.MISSING)
    if not scan.uploads_listed:
        unseen = unseen.exclude(kind=Kind.UNFINISHED)
    kept = Finding.objects.keeping_objects().exclude(pk__any_of=gone)
    unseen = unseen.exclude(pk__in=kept.values("pk"))
    covered = unseen.filter(Finding.objects.covered(), kind=Kind.ORPHANED)
    covered.resolve(_("An open cleanup covers this file."))
    unseen.resolve(_("A later complete scan did not find it again."))


def is_in_scope(scan: BucketScan) -> Q:
    """Findings whose keys, and not what is shown of them, start with a prefix of the scan."""
    shown = map(escape_backslashes, scan.prefixes)
    return Q(starts_with_any("key", scan.prefixes), escaped=False) | Q(
        starts_with_any("key", shown), escaped=True
    )


def forget_earlier_scans(scan: BucketScan) -> None:
    """Delete the pending findings of this scan and of earlier ones, which nobody can resume now."""
    began = time_before("started_at", scan.started_at)
    earlier = BucketScan.objects.filter(began, bucket=scan.bucket)
    if scan.prefix or scan.project_id:
        earlier = earlier.filter(prefix=scan.prefix, project_id=scan.project_id)
    ended = [BucketScan.Status.STOPPED, BucketScan.Status.FAILED]
    over = earlier.filter(status__in=ended).values("pk")
    ScanShard.objects.filter(scan__in=over).delete()
    for noted in (PendingFinding.objects, ListedKey.objects):
        noted.filter(scan__in=over)._raw_delete(noted.db)
        noted.filter(scan=scan)._raw_delete(noted.db)
