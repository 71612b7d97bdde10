"""Compares a batch of pages with the table, and writes down the result together with the scan's
position."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.bucket.listing import KeyIdentity
from storage_audit.bucket.s3 import listed_object
from storage_audit.cleanup.models.lease_and_status import LeaseLost
from storage_audit.fields import insert_new_rows
from storage_audit.scan import fast_path, pending_findings
from storage_audit.scan.diff_lines import (
    KeyList,
    KeyScope,
    Line,
    line_entry,
    line_key,
    select_tracked,
)
from storage_audit.scan.fetchers import Stretch
from storage_audit.scan.marker_check import MarkerWatcher
from storage_audit.scan.models import BucketScan, ListedKey, PendingFinding, ScanShard
from storage_audit.tracking import rows
from storage_audit.tracking.recognise import RecognisedObject, recognise_objects

# Objects that are checked closely at a time. Each may have fifty possible owners.
KEYS_PER_BATCH = 1000


@dataclass(slots=True)
class ComparedBatch:
    """The result of a batch: what to add to the scan's figures, and the pending findings."""

    counts: Counter[str] = field(default_factory=Counter)
    pending_findings: list[PendingFinding] = field(default_factory=list)
    in_hand: list[PendingFinding] = field(default_factory=list)
    # Rows whose object is listed in another spelling, and so in another place.
    other_spellings: list[str] = field(default_factory=list)


def record_batch(
    scan: BucketScan,
    token: UUID,
    stretches: Sequence[Stretch],
    identity: KeyIdentity,
    watcher: MarkerWatcher,
) -> None:
    """Compare with the table, and write down once the marker was seen. Raises LeaseLost, PassBroken
    and CannotConclude, and StoreError from checking the marker and rechecking new objects."""
    watcher.start()
    while True:
        compared = compare_batch(scan, token, stretches, identity, watcher)
        marker = watcher.wait()
        with transaction.atomic():
            held = lock_shards(token, stretches)
            if not trim_stretches(stretches, held):
                write_batch(scan, held, stretches, compared, marker)
                return


def compare_batch(
    scan: BucketScan,
    token: UUID,
    stretches: Sequence[Stretch],
    identity: KeyIdentity,
    watcher: MarkerWatcher,
) -> ComparedBatch:
    """Only reads, but for the rows of a backfill, which are written once the marker was seen."""
    tracked, unmatched = tracked_lines(scan, stretches)
    different = [line for stretch in stretches for line in stretch.lines_not_in(tracked)]
    tracked.difference_update(*(stretch.lines for stretch in stretches))
    unmatched.update(map(line_key, tracked))
    asked = min(stretch.asked for stretch in stretches)
    compared = ComparedBatch()
    compared.counts.update(batch_counts(stretches))
    compared.counts["unchanged"] -= len(different)
    if different and scan.writes_rows:
        watcher.wait()
    others = add_plain_rows(scan, compared, different, unmatched, identity, watcher)
    for start in range(0, len(others), KEYS_PER_BATCH):
        if start and not scan.shards.renew(token):
            raise lease_lost_error()
        objects = [
            listed_object(line_entry(*line)) for line in others[start : start + KEYS_PER_BATCH]
        ]
        seen = recognise_objects(scan.bucket, objects, unmatched, identity, asked)
        compare_unsure_objects(scan, compared, seen, identity, watcher)
    if scan.in_key_order:
        gone_items = unmatched.difference(line_key(line) for line, _time in different)
        compared.pending_findings += pending_findings.find_missing(scan, gone_items, asked)
    for stretch in stretches:
        compared.pending_findings += (
            pending_findings.unstorable_finding(scan, listed_object(entry))
            for entry in stretch.unstorable
        )
    compared.counts.update(pending_finding.kind for pending_finding in compared.pending_findings)
    return compared


def batch_counts(stretches: Sequence[Stretch]) -> dict[str, int]:
    """Of all objects; what is not plainly as the table says is to be subtracted."""
    unstorable = [entry for stretch in stretches for entry in stretch.unstorable]
    return {
        "requests": sum(stretch.requests for stretch in stretches),
        "listed": sum(stretch.listed for stretch in stretches),
        "listed_bytes": sum(stretch.size for stretch in stretches)
        + sum(entry.size for entry in unstorable),
        "unchanged": sum(len(stretch.lines) for stretch in stretches),
    }


def tracked_lines(scan: BucketScan, stretches: Sequence[Stretch]) -> tuple[set[str], set[str]]:
    """What the table is sure of, and the keys of rows that need a closer check: of these stretches,
    or where the store has an order of its own, of these keys."""
    places: list[KeyScope] = [stretch.range for stretch in stretches]
    if not scan.in_key_order:
        keys = [line_key(line) for stretch in stretches for line in stretch.lines]
        places = [
            KeyList(keys[start : start + KEYS_PER_BATCH])
            for start in range(0, len(keys), KEYS_PER_BATCH)
        ]
    if not places:
        return set(), set()
    owned, unsure = select_tracked(scan.bucket, places)
    alive = project_model.living_ids(owned)
    for project_id in owned.keys() - alive:
        unsure.update(map(line_key, owned.pop(project_id)))
    return set().union(*owned.values()), unsure


def add_plain_rows(
    scan: BucketScan,
    compared: ComparedBatch,
    different: Sequence[Line],
    tracked: set[str],
    identity: KeyIdentity,
    watcher: MarkerWatcher,
) -> Sequence[Line]:
    """Add rows for plain new objects, if the scan writes rows; give the objects that need a closer
    check."""
    if scan.purpose != BucketScan.Purpose.BACKFILL or not different:
        return different
    keys, lines, others = fast_path.sort_objects(scan.bucket, different, tracked)
    added, pages = len(keys), list[None]()
    if scan.writes_rows:
        after_page = partial(pages.append, None)
        added, _gone = rows.add_lines(scan.bucket, keys, lines, identity, watcher.check, after_page)
    compared.counts.update(added=added, requests=len(pages), unchanged=len(keys) - added)
    return others


def compare_unsure_objects(
    scan: BucketScan,
    compared: ComparedBatch,
    seen: Sequence[RecognisedObject],
    identity: KeyIdentity,
    watcher: MarkerWatcher,
) -> None:
    """Compare the objects of which the table is not sure: write rows if the scan does, and note
    what is wrong."""
    idle = [one for one in seen if not one.in_hand]
    gone: set[str] = set()
    if scan.purpose == BucketScan.Purpose.BACKFILL:
        new = [one for one in idle if one.row is None]
        changed = [one.row for one in idle if one.row and rows.refresh_row(one)]
        added, updated = len(new), len(changed)
        if scan.writes_rows:
            pages = list[None]()
            after_page = partial(pages.append, None)
            added, gone = rows.add_rows(scan.bucket, new, identity, watcher.check, after_page)
            compared.counts["requests"] += len(pages)
            updated = rows.update_rows(changed)
        compared.counts.update(added=added, updated=updated)
        compared.counts["unchanged"] += len(seen) - added - updated
    else:
        compared.counts["unchanged"] += sum(map(rows.is_up_to_date, seen))
    compared.in_hand += (pending_findings.in_hand_finding(scan, one) for one in seen if one.in_hand)
    compared.other_spellings += chain.from_iterable(one.other_spellings for one in seen)
    for one in idle:
        if identity(one.listed.key) not in gone:
            compared.pending_findings += pending_findings.findings_of_object(scan, one)


def lock_shards(token: UUID, stretches: Sequence[Stretch]) -> dict[int, ScanShard]:
    """Lock all shards that this worker has until the commit; give them by primary key. Raises
    LeaseLost when those that were listed are not among them."""
    locked = ScanShard.objects.leased_by(token).select_for_update().order_by("pk")
    held = {shard.pk: shard for shard in locked.annotate_renewal_due().only("until")}
    if not held.keys() >= {each.shard.pk for each in stretches}:
        raise lease_lost_error()
    return held


def lease_lost_error() -> LeaseLost:
    return LeaseLost(_("Another worker may have taken over a part of the scan."))


def trim_stretches(stretches: Sequence[Stretch], held: Mapping[int, ScanShard]) -> bool:
    """Drop the parts that other workers took over; whether there were any."""
    cut = [each for each in stretches if held[each.shard.pk].until != each.shard.until]
    for stretch in cut:
        stretch.trim_to(held[stretch.shard.pk].until)
    return bool(cut)


def write_batch(
    scan: BucketScan,
    held: Mapping[int, ScanShard],
    stretches: Sequence[Stretch],
    compared: ComparedBatch,
    marker: str,
) -> None:
    pending_findings.save_findings(compared.pending_findings + compared.in_hand)
    save_listed_keys(scan, compared.other_spellings)
    if not scan.in_key_order:
        save_unique_keys(scan, stretches)
    scan.add_trusted_counts(marker, **compared.counts)
    for stretch in stretches:
        stretch.shard.advance(stretch.cursor, stretch.listed, complete=stretch.is_complete)
    scan.shards.save_progress([stretch.shard for stretch in stretches])
    if any(shard.is_renewal_due for shard in held.values()):
        scan.shards.filter(pk__in=held).extend_leases()


def save_listed_keys(scan: BucketScan, keys: Iterable[str]) -> int:
    return insert_new_rows([ListedKey(scan=scan, key=key) for key in keys])


def save_unique_keys(scan: BucketScan, stretches: Sequence[Stretch]) -> None:
    """Raises InvalidResponse when a store that lists in its own order lists a key twice."""
    keys = [line_key(line) for stretch in stretches for line in stretch.lines]
    if (noted := save_listed_keys(scan, keys)) < len(keys):
        raise InvalidResponse(
            _("The store listed %s keys twice, so the scan can't be trusted.") % (len(keys) - noted)
        )
