"""A batch of pages: compared with the table, and what follows written down together with how far
the scan is."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit import projects
from storage_audit.audit.scan import rows, sightings
from storage_audit.audit.scan.lanes import Stretch
from storage_audit.audit.scan.owners import Seen, recognise
from storage_audit.audit.scan.sides import (
    Keys,
    Place,
    entry_of,
    key_of,
    projects_in,
    tracked_in,
)
from storage_audit.bucket.errors import Broken
from storage_audit.bucket.listing import Identity
from storage_audit.bucket.r2 import listed
from storage_audit.fields import insert_new
from storage_audit.models import BucketScan, LeaseLost, ListedKey, ScanShard, Sighting

# So many objects are given a closer look at a time.
CHUNK = 2500


@dataclass(slots=True)
class Compared:
    """What a batch comes to: the figures of the scan that grow, and the differences."""

    figures: Counter[str] = field(default_factory=Counter)
    sightings: list[Sighting] = field(default_factory=list)
    # Rows whose object is listed in another spelling, and so in another place.
    elsewhere: list[str] = field(default_factory=list)


def record(scan: BucketScan, token: UUID, stretches: Sequence[Stretch], identity: Identity) -> None:
    """Compare with the table, and write down. Raises LeaseLost, and StoreError from the second
    look at new objects."""
    while True:
        compared = compare(scan, stretches, identity)
        with transaction.atomic():
            if is_still_ours(token, stretches):
                write(scan, token, stretches, compared)
                return


def compare(scan: BucketScan, stretches: Sequence[Stretch], identity: Identity) -> Compared:
    tracked = tracked_lines(scan, stretches)
    different = [
        entry_of(line, stretch.lines[line])
        for stretch in stretches
        for line in stretch.lines.keys() - tracked
    ]
    tracked.difference_update(*(stretch.lines for stretch in stretches))
    unmatched = {key_of(line) for line in tracked}
    asked = min(stretch.asked for stretch in stretches)
    compared = Compared()
    compared.figures.update(figures_of(stretches))
    compared.figures["unchanged"] -= len(different)
    for start in range(0, len(different), CHUNK):
        objects = [listed(entry) for entry in different[start : start + CHUNK]]
        seen = recognise(scan.bucket, objects, unmatched, identity, asked)
        look_closer(scan, compared, seen, identity)
    if scan.in_key_order:
        absent = unmatched.difference(entry.key for entry in different)
        compared.sightings += sightings.missing(scan, absent, asked)
    for stretch in stretches:
        compared.sightings += (
            sightings.of_unstorable(scan, listed(entry)) for entry in stretch.unstorable
        )
    compared.figures.update(sighting.kind for sighting in compared.sightings)
    return compared


def figures_of(stretches: Sequence[Stretch]) -> dict[str, int]:
    """Of all objects; what is not plainly as the table says is to be subtracted."""
    unstorable = [entry for stretch in stretches for entry in stretch.unstorable]
    return {
        "requests": sum(stretch.requests for stretch in stretches),
        "listed": sum(stretch.listed for stretch in stretches),
        "listed_bytes": sum(stretch.size for stretch in stretches)
        + sum(entry.size for entry in unstorable),
        "unchanged": sum(len(stretch.lines) for stretch in stretches),
    }


def tracked_lines(scan: BucketScan, stretches: Sequence[Stretch]) -> set[str]:
    """What the table says of what was listed: of these stretches, or where the store has an order
    of its own, of these keys."""
    places: list[Place] = [stretch.range for stretch in stretches]
    if not scan.in_key_order:
        keys = [key_of(line) for stretch in stretches for line in stretch.lines]
        places = [Keys(keys[start : start + CHUNK]) for start in range(0, len(keys), CHUNK)]
    if not places:
        return set()
    named = projects_in(scan.bucket, places)
    return tracked_in(scan.bucket, places, sorted(named - projects.alive(named)))


def look_closer(
    scan: BucketScan, compared: Compared, seen: Sequence[Seen], identity: Identity
) -> None:
    """Objects of which the table is not sure: write rows if the scan does, and note what is
    wrong."""
    idle = [one for one in seen if not one.in_hand]
    gone: set[str] = set()
    if scan.purpose == BucketScan.Purpose.BACKFILL:
        new = [one for one in idle if one.row is None]
        changed = [one.row for one in idle if one.row and rows.bring_up_to_date(one)]
        added, updated = len(new), len(changed)
        if scan.writes_rows:
            pages = list[None]()
            added, gone = rows.add(scan.bucket, new, identity, partial(pages.append, None))
            compared.figures["requests"] += len(pages)
            updated = rows.update(changed)
        compared.figures.update(added=added, updated=updated)
        compared.figures["unchanged"] += len(seen) - added - updated
    else:
        compared.figures["unchanged"] += sum(map(rows.is_as_tracked, seen))
    compared.elsewhere += (one.row.key for one in seen if one.row and one.row.key != one.listed.key)
    for one in idle:
        if identity(one.listed.key) not in gone:
            compared.sightings += sightings.of_object(scan, one)


def is_still_ours(token: UUID, stretches: Sequence[Stretch]) -> bool:
    """Lock the shards until the commit, and whether they still go as far as was listed of them.
    Raises LeaseLost."""
    # All that this worker has, as `write` renews the leases of all.
    held = ScanShard.objects.held_by(token).select_for_update().order_by("pk")
    untils = dict(held.values_list("pk", "until"))
    if not untils.keys() >= {each.shard.pk for each in stretches}:
        raise LeaseLost(_("Another worker may have taken over a part of the scan."))
    ceded = [each for each in stretches if untils[each.shard.pk] != each.shard.until]
    for stretch in ceded:
        stretch.end_at(untils[stretch.shard.pk])
    return not ceded


def write(scan: BucketScan, token: UUID, stretches: Sequence[Stretch], compared: Compared) -> None:
    sightings.save(compared.sightings)
    note_keys(scan, compared.elsewhere)
    if not scan.in_key_order:
        note_each_once(scan, stretches)
    scan.count(**compared.figures)
    for stretch in stretches:
        stretch.shard.advance(stretch.cursor, stretch.listed, complete=stretch.ended)
    scan.shards.keep([stretch.shard for stretch in stretches])
    scan.shards.held_by(token).prolong()


def note_keys(scan: BucketScan, keys: Iterable[str]) -> int:
    return insert_new([ListedKey(scan=scan, key=key) for key in keys])


def note_each_once(scan: BucketScan, stretches: Sequence[Stretch]) -> None:
    """Raises Broken when the store lists a key again, in whatever order it does."""
    keys = [key_of(line) for stretch in stretches for line in stretch.lines]
    named = sum(stretch.named for stretch in stretches)
    if (noted := note_keys(scan, keys)) < named:
        raise Broken(_("The store lists %s keys twice.") % (named - noted))
