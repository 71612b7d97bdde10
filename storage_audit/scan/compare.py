"""A batch of pages: compared with the table, and what follows written down together with how far
the scan is."""

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
from storage_audit.bucket.listing import Identity
from storage_audit.bucket.s3 import listed
from storage_audit.cleanup.models.states import LeaseLost
from storage_audit.fields import insert_new
from storage_audit.scan import fast_path, sightings
from storage_audit.scan.diff_lines import Keys, Line, Place, entry_of, key_of, tracked_in
from storage_audit.scan.fetchers import Stretch
from storage_audit.scan.marker_sighting import Witness
from storage_audit.scan.models import BucketScan, ListedKey, ScanShard, Sighting
from storage_audit.tracking import rows
from storage_audit.tracking.recognise import Seen, recognise

# So many objects are given a closer look at a time. Each may have fifty possible owners.
CHUNK = 1000


@dataclass(slots=True)
class Compared:
    """What a batch comes to: the figures of the scan that grow, and the differences."""

    figures: Counter[str] = field(default_factory=Counter)
    sightings: list[Sighting] = field(default_factory=list)
    in_hand: list[Sighting] = field(default_factory=list)
    # Rows whose object is listed in another spelling, and so in another place.
    elsewhere: list[str] = field(default_factory=list)


def record(
    scan: BucketScan,
    token: UUID,
    stretches: Sequence[Stretch],
    identity: Identity,
    witness: Witness,
) -> None:
    """Compare with the table, and write down once the marker was seen. Raises LeaseLost, PassBroken
    and CannotConclude, and StoreError from looking at the marker and at new objects again."""
    witness.look()
    while True:
        compared = compare(scan, token, stretches, identity, witness)
        marker = witness.vouch()
        with transaction.atomic():
            held = lock(token, stretches)
            if not are_cut(stretches, held):
                write(scan, held, stretches, compared, marker)
                return


def compare(
    scan: BucketScan,
    token: UUID,
    stretches: Sequence[Stretch],
    identity: Identity,
    witness: Witness,
) -> Compared:
    """Only reads, but for the rows of a backfill, which are written once the marker was seen."""
    tracked, unmatched = tracked_lines(scan, stretches)
    different = [line for stretch in stretches for line in stretch.unlike(tracked)]
    tracked.difference_update(*(stretch.lines for stretch in stretches))
    unmatched.update(map(key_of, tracked))
    asked = min(stretch.asked for stretch in stretches)
    compared = Compared()
    compared.figures.update(figures_of(stretches))
    compared.figures["unchanged"] -= len(different)
    if different and scan.writes_rows:
        witness.vouch()
    others = add_plain(scan, compared, different, unmatched, identity, witness)
    for start in range(0, len(others), CHUNK):
        if start and not scan.shards.renew(token):
            raise lease_lost()
        objects = [listed(entry_of(*line)) for line in others[start : start + CHUNK]]
        seen = recognise(scan.bucket, objects, unmatched, identity, asked)
        look_closer(scan, compared, seen, identity, witness)
    if scan.in_key_order:
        absent = unmatched.difference(key_of(line) for line, _time in different)
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


def tracked_lines(scan: BucketScan, stretches: Sequence[Stretch]) -> tuple[set[str], set[str]]:
    """What the table is sure of, and the keys of rows that need a closer look: of these stretches,
    or where the store has an order of its own, of these keys."""
    places: list[Place] = [stretch.range for stretch in stretches]
    if not scan.in_key_order:
        keys = [key_of(line) for stretch in stretches for line in stretch.lines]
        places = [Keys(keys[start : start + CHUNK]) for start in range(0, len(keys), CHUNK)]
    if not places:
        return set(), set()
    owned, unsure = tracked_in(scan.bucket, places)
    alive = project_model.alive(owned)
    for project_id in owned.keys() - alive:
        unsure.update(map(key_of, owned.pop(project_id)))
    return set().union(*owned.values()), unsure


def add_plain(
    scan: BucketScan,
    compared: Compared,
    different: Sequence[Line],
    tracked: set[str],
    identity: Identity,
    witness: Witness,
) -> Sequence[Line]:
    """If the scan is to write rows, those of plain new objects; gives the objects that need a
    closer look."""
    if scan.purpose != BucketScan.Purpose.BACKFILL or not different:
        return different
    keys, lines, others = fast_path.sort_out(scan.bucket, different, tracked)
    added, pages = len(keys), list[None]()
    if scan.writes_rows:
        after_page = partial(pages.append, None)
        added, _gone = rows.add_lines(scan.bucket, keys, lines, identity, witness.see, after_page)
    compared.figures.update(added=added, requests=len(pages), unchanged=len(keys) - added)
    return others


def look_closer(
    scan: BucketScan,
    compared: Compared,
    seen: Sequence[Seen],
    identity: Identity,
    witness: Witness,
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
            after_page = partial(pages.append, None)
            added, gone = rows.add(scan.bucket, new, identity, witness.see, after_page)
            compared.figures["requests"] += len(pages)
            updated = rows.update(changed)
        compared.figures.update(added=added, updated=updated)
        compared.figures["unchanged"] += len(seen) - added - updated
    else:
        compared.figures["unchanged"] += sum(map(rows.is_as_tracked, seen))
    compared.in_hand += (sightings.in_hand(scan, one) for one in seen if one.in_hand)
    compared.elsewhere += chain.from_iterable(one.elsewhere for one in seen)
    for one in idle:
        if identity(one.listed.key) not in gone:
            compared.sightings += sightings.of_object(scan, one)


def lock(token: UUID, stretches: Sequence[Stretch]) -> dict[int, ScanShard]:
    """All shards that this worker has, by primary key, for which others wait until the commit.
    Raises LeaseLost when those that were listed are not among them."""
    locked = ScanShard.objects.held_by(token).select_for_update().order_by("pk")
    held = {shard.pk: shard for shard in locked.noting_to_prolong().only("until")}
    if not held.keys() >= {each.shard.pk for each in stretches}:
        raise lease_lost()
    return held


def lease_lost() -> LeaseLost:
    return LeaseLost(_("Another worker may have taken over a part of the scan."))


def are_cut(stretches: Sequence[Stretch], held: Mapping[int, ScanShard]) -> bool:
    """Whether others took parts of what was listed, which is left to them then."""
    cut = [each for each in stretches if held[each.shard.pk].until != each.shard.until]
    for stretch in cut:
        stretch.end_at(held[stretch.shard.pk].until)
    return bool(cut)


def write(
    scan: BucketScan,
    held: Mapping[int, ScanShard],
    stretches: Sequence[Stretch],
    compared: Compared,
    marker: str,
) -> None:
    sightings.save(compared.sightings + compared.in_hand)
    note_keys(scan, compared.elsewhere)
    if not scan.in_key_order:
        note_each_once(scan, stretches)
    scan.vouch(marker, **compared.figures)
    for stretch in stretches:
        stretch.shard.advance(stretch.cursor, stretch.listed, complete=stretch.ended)
    scan.shards.keep([stretch.shard for stretch in stretches])
    if any(shard.is_to_prolong for shard in held.values()):
        scan.shards.filter(pk__in=held).prolong()


def note_keys(scan: BucketScan, keys: Iterable[str]) -> int:
    return insert_new([ListedKey(scan=scan, key=key) for key in keys])


def note_each_once(scan: BucketScan, stretches: Sequence[Stretch]) -> None:
    """Raises InvalidResponse when the store lists a key again, in whatever order it does."""
    keys = [key_of(line) for stretch in stretches for line in stretch.lines]
    if (noted := note_keys(scan, keys)) < len(keys):
        raise InvalidResponse(_("The store lists %s keys twice.") % (len(keys) - noted))
