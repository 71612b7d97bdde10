"""Objects that were given with the request: those behind deleted rows, and orphans.

Nothing but the tables tells whose an orphan is, so they are asked when it is planned, and again
just before it is sent: it goes only while no project that lives could want it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain

from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import exact
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup import progress
from storage_audit.cleanup.delete_pipeline import Planned
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.open_decisions import (
    ask_keeper,
    asked_by,
    find_covering,
    find_undecided,
    find_untracked,
    possible_owners,
    unsure_among,
    why_covered,
)
from storage_audit.cleanup.plan import owners_of, rows_by_identity
from storage_audit.cleanup.turn import OwnerChanging, Work
from storage_audit.clocks import CLOCKS_DIFFER, was_ahead
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.attribution import Doubt, attribute
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import Row, alive_among, could_be, known_among, layouts, named_in
from storage_audit.reading import read_in_steps

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# Items in one transaction.
TOGETHER = 1000
ByKey = Mapping[str, Readings]
ByIdentity = Mapping[str, Sequence[Row]]
Looked = list[tuple[CleanupItem, Listed | None]]
COMPARED = [
    "key",
    "size",
    "etag",
    "last_modified",
    "found_in",
    "outcome",
    "reason",
    "present_at",
]


def look_up(work: Work) -> None:
    """Hold the objects against what was said of them. Raises TurnOver, StoreError, LeaseLost."""
    operation = work.operation
    judge = judge_orphans if operation.about == CleanupOperation.Kind.ORPHANS else compare_rows
    after = operation.cursor.get("after", "")
    while looked := work.look_up(operation.items.filter(key__gt=after).order_by("key")):
        after = looked[-1][0].key
        with transaction.atomic():
            so_far = progress.passed(operation, len(looked))
            operation.progress(cursor=work.move(after=after), headway=so_far)
            judge(work, looked)
        work.breathe()


def take_given(work: Work) -> None:
    """Have the items that no listing finds, with the identities that this pass goes by."""
    if work.operation.names_its_objects:
        recall(work.operation)
    # A pass that starts again may do so as the bucket was claimed again, with other traits.
    if not work.operation.cursor.keys() - {"restarts"}:
        merge_spellings(work)


def recall(operation: CleanupOperation) -> None:
    """A late check looks after what there is by then."""
    if operation.parent and not operation.items.exists():
        with transaction.atomic():
            operation.renew()
            operation.copy_items(operation.parent)


def compare_rows(work: Work, looked: Looked) -> None:
    for item, listed in looked:
        if listed:
            compare(work.operation, item, listed)
    CleanupItem.objects.bulk_update([item for item, _seen in looked], COMPARED, batch_size=200)


def compare(operation: CleanupOperation, item: CleanupItem, listed: Listed) -> None:
    if reason := why_another(operation, item, listed):
        item.outcome, item.reason = Outcome.PROTECTED, reason
    item.key, item.size, item.etag = listed.key, listed.size, listed.etag
    item.last_modified, item.present_at = listed.last_modified, timezone.now()
    item.found_in = FoundIn.BOTH


def merge_spellings(work: Work) -> None:
    """Items that came with the request have their keys as identities, or what an earlier pass took
    for the same: nobody knew yet which spellings are one object. Two that describe the same one
    become one, and what keeps one of them keeps the object."""
    operation = work.operation
    given = operation.items.filter(escaped=False)
    if work.identity is exact:
        given = given.exclude(identity=F("key"))
    stale = [item for item in read_in_steps(given) if work.identity(item.key) != item.identity]
    for start in range(0, len(stale), TOGETHER):
        with transaction.atomic():
            operation.renew()
            merge(work, stale[start : start + TOGETHER])


def merge(work: Work, stale: Sequence[CleanupItem]) -> None:
    items = work.operation.items
    names = [work.identity(item.key) for item in stale]
    taken = list(items.filter(escaped=False, identity__any_of=names))
    protect_with_others(work, [*taken, *stale])
    known = {item.identity: item for item in taken}
    named, same = list[CleanupItem](), list[int]()
    for item, name in zip(stale, names, strict=True):
        if name not in known:
            item.identity, known[name] = name, item
            named.append(item)
        elif is_same(known[name], item):
            same.append(item.pk)
    items.bulk_update(named, ["identity"])
    items.filter(pk__any_of=same).delete()


def protect_with_others(work: Work, given: Sequence[CleanupItem]) -> None:
    """Protect those that may be the same object as one that is protected. Where an earlier pass
    saw the object of both, it held each against its own row."""
    protected = [item for item in given if item.outcome == Outcome.PROTECTED]
    protected.sort(key=lambda item: item.present_at is None)
    kept = {work.identity(item.key): item for item in protected}
    alike = defaultdict[str, list[int]](list)
    for item in given:
        other = kept.get(work.identity(item.key))
        judged_both = item.present_at and other and other.present_at
        if item.outcome == Outcome.PLANNED and other and not judged_both:
            item.outcome = Outcome.PROTECTED
            alike[other.reason].append(item.pk)
    for reason, pks in alike.items():
        work.operation.items.filter(pk__any_of=pks).mark(Outcome.PROTECTED, reason)


def is_same(one: CleanupItem, other: CleanupItem) -> bool:
    """Whether two items ask for the same. Of an item that an earlier pass protected the facts are
    those of the object that it saw, and not what the row said."""
    return (one.outcome, facts_of(one)) == (other.outcome, facts_of(other))


def facts_of(item: CleanupItem) -> tuple[int | None, str, datetime | None]:
    """What two items of one object agree on. Only one that was listed has fractions of a second."""
    at = item.last_modified
    return item.size, item.etag, at and at.replace(microsecond=0)


def why_another(operation: CleanupOperation, item: CleanupItem, listed: Listed) -> str:
    """Why the object may be another one than the deleted row described, or nothing."""
    then, now = item.last_modified, listed.last_modified
    # An upload took the row's time from a HEAD, which counts in whole seconds, as do some listings.
    second, asked_at = now.replace(microsecond=0), operation.created_at
    may_be_younger = was_ahead(asked_at, operation.started_at) or now >= asked_at - CLOCKS_DIFFER
    if then is None and operation.deletes and may_be_younger:
        reason = _(
            "No row says when this file was written. The file may have been written after its"
            " deletion was asked for, as clocks may differ by an hour."
        )
    elif item.etag and (item.etag, item.size) != (listed.etag, listed.size):
        reason = _("The object is not the one that the row described: it was overwritten.")
    elif then not in (None, now, second):
        reason = _("The object was written again, with the same content, since its row was.")
    else:
        return ""
    return reason + " " + _("Track it, and delete that row if it is to go.")


def judge_orphans(work: Work, looked: Looked) -> None:
    """Those that are not what the finding says any more, or no orphans, stay."""
    readings = {item.key: layouts().readings(item.key) for item, listed in looked if listed}
    rows = rows_by_identity(work.operation.bucket, readings, work.identity)
    there = [listed for _item, listed in looked if listed]
    found = {work.identity(listed.key): listed for listed in there}
    doubts, alike = doubts_of(work, readings, rows, found), defaultdict(list)
    acknowledged = ask_keeper().find_acknowledged(work.operation.bucket, there)
    for item, listed in looked:
        if listed:
            reason = (
                overwritten(item, listed) or acknowledged.get(listed.key, "") or doubts[item.key]
            )
            place = FoundIn.BOTH if work.identity(item.key) in rows else FoundIn.LISTED
            alike[place, reason].append(item.pk)
    for (found_in, reason), pks in alike.items():
        outcome = Outcome.PROTECTED if reason else Outcome.PLANNED
        items = work.operation.items.filter(pk__in=pks)
        items.mark(outcome, reason, found_in=found_in, present_at=timezone.now())


def overwritten(item: CleanupItem, listed: Listed) -> str:
    same = (item.key, item.size, item.etag) == (listed.key, listed.size, listed.etag)
    # The items that a late check has copied do not say when theirs was written.
    if same and item.last_modified in (None, listed.last_modified):
        return ""
    return _(
        "The object is not the one of the finding: it was overwritten. If it is an orphan, the next"
        " complete scans say so."
    )


def undecided_at_proof(
    operation: CleanupOperation, items: CleanupItemQuerySet, readings: ByKey
) -> dict[str, str]:
    """Which of the objects behind deleted rows a person has to decide on elsewhere, and why that
    keeps them. A row may have named a project that the key does not."""
    owners = {key: possible_owners(ways, ()) for key, ways in readings.items()}
    for key, project_id in items.exclude(project_id=None).values_list("key", "project_id"):
        owners[key].names.add(project_id or "")
    return find_undecided(operation.bucket, owners, asked_by(operation))


def doubts_at_proof(
    work: Work, readings: ByKey, rows: ByIdentity, found: Mapping[str, Listed]
) -> dict[str, str]:
    """The same once nobody is just creating one of the projects. Raises OwnerChanging."""
    if KnownProject.objects.are_changing(named_by(readings, rows)):
        raise OwnerChanging(_("A project that could want these objects is just being created."))
    return doubts_of(work, readings, rows, found)


def lost_copies(
    work: Work, batch: Sequence[Planned], found: Mapping[str, Listed]
) -> dict[str, str]:
    """Why renamed objects stay: each may go only while its copy is there, as it is tracked."""
    copies = {item.key: item.copied_to for item in batch if item.copied_to}
    if not copies:
        return {}
    rows = rows_by_identity(work.operation.bucket, copies.values(), work.identity)
    text = _(
        "Its copy under the new name was not found as it is tracked, so this file stays. Run a"
        " scan: its findings say what you can do."
    )
    return {
        key: text
        for key, name in copies.items()
        if not is_tracked(found.get(work.identity(name)), rows.get(work.identity(name), ()))
    }


def is_tracked(listed: Listed | None, rows: Sequence[R2Object]) -> bool:
    return listed is not None and any(
        (row.state, row.size, row.etag) == (R2Object.State.STORED, listed.size, listed.etag)
        for row in rows
    )


def doubts_of(
    work: Work, readings: ByKey, rows: ByIdentity, found: Mapping[str, Listed]
) -> dict[str, str]:
    """Why each of these keys may be no orphan's, going by the tables as they are now; empty where
    it is one. Rows and objects are given by identity, and were read before."""
    operation, identity = work.operation, work.identity
    names = named_by(readings, rows)
    owners = owners_of(readings, rows, found, identity)
    kept = find_untracked(operation.bucket, unsure_among(readings, rows, found, identity))
    covering = find_covering(operation.bucket, owners, operation)
    alive = alive_among(readings.values(), names)
    known = known_among(names) | alive
    return {
        key: why_covered(covering[key])
        if key in covering
        else kept.get(key)
        or doubt(ways, rows.get(identity(key), ()), known, alive, found.get(identity(key)))
        for key, ways in readings.items()
    }


def named_by(readings: ByKey, rows: ByIdentity) -> set[str]:
    by_rows = named_in(chain.from_iterable(rows.values()))
    return by_rows.union(*(ways.projects for ways in readings.values()))


def doubt(
    readings: Readings,
    rows: Sequence[Row],
    known: set[str],
    alive: set[str],
    stored: Listed | None,
) -> str:
    names = readings.owners | named_in(rows)
    if living := names & alive:
        return could_be(living)
    owner = attribute(readings, rows, known, alive, stored)
    if owner.difference != Doubt.ORPHANED:
        return _("It is no orphan any more, but %s.") % Doubt(owner.difference).label
    return ""
