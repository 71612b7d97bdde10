"""Objects that come with the request: those of deleted rows, and orphans.

An orphan is deleted only while no existing project could own it. The tables say who could, so they
are read for the plan and again just before the deletion.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain

from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import exact_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import progress
from storage_audit.cleanup.cleanup_text import next_scans_text
from storage_audit.cleanup.delete_pipeline import PlannedItem
from storage_audit.cleanup.judge_objects import owners_by_key, rows_by_identity
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.item import track_and_delete_advice
from storage_audit.cleanup.open_decisions import (
    asking_filter,
    covered_reason,
    find_covering,
    find_uncertain_keys,
    find_undecided,
    find_untracked,
    get_ignore_list,
    possible_owners,
)
from storage_audit.cleanup.worker_turn import OwnerChanging, Turn
from storage_audit.clocks import MAX_CLOCK_SKEW, is_from_fast_clock
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.attribution import OwnerProblem, find_owner
from storage_audit.ownership.key_template import ParsedKeys
from storage_audit.ownership.ownership_rule import (
    get_key_formats,
    known_ids,
    living_owners,
    rival_reason,
)
from storage_audit.ownership.row_evidence import TrackingRow, projects_in_rows
from storage_audit.read_in_steps import read_in_steps

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# Items in one transaction.
ITEMS_PER_TRANSACTION = 1000
ParsedByKey = Mapping[str, ParsedKeys]
RowsByIdentity = Mapping[str, Sequence[TrackingRow]]
FoundItems = list[tuple[CleanupItem, ListedObject | None]]
COMPARED_FIELDS = [
    "key",
    "size",
    "etag",
    "last_modified",
    "found_in",
    "outcome",
    "reason",
    "last_seen_at",
]


def compare_given_items(work: Turn, compare: Callable[[Turn, FoundItems], None]) -> None:
    """Compare the objects with what the request said. Raises TurnOver, StoreError, LeaseLost."""
    cleanup = work.cleanup
    after = cleanup.position.after
    while looked := work.find_items(cleanup.items.filter(key__gt=after).order_by("key")):
        after = looked[-1][0].key
        with transaction.atomic():
            so_far = progress.count_done(cleanup, len(looked))
            cleanup.renew_after_progress(position=work.next_position(after=after), progress=so_far)
            compare(work, looked)
        work.check_deadline()


def copy_followed_items(cleanup: Cleanup) -> None:
    """Copy the items for a follow-up check when it begins."""
    if cleanup.parent and not cleanup.items.exists():
        with transaction.atomic():
            cleanup.renew()
            cleanup.copy_items(cleanup.parent)


def compare_with_rows(work: Turn, looked: FoundItems) -> None:
    for item, listed in looked:
        if listed:
            compare_item(work.cleanup, item, listed)
    CleanupItem.objects.bulk_update(
        [item for item, _seen in looked], COMPARED_FIELDS, batch_size=200
    )


def compare_item(cleanup: Cleanup, item: CleanupItem, listed: ListedObject) -> None:
    if reason := overwritten_row_reason(cleanup, item, listed):
        item.outcome, item.reason = Outcome.KEPT, reason
    item.key, item.size, item.etag = listed.key, listed.size, listed.etag
    item.last_modified, item.last_seen_at = listed.last_modified, timezone.now()
    item.found_in = FoundIn.BOTH


def merge_new_spellings(work: Turn) -> None:
    """Set the identities that the bucket's traits give: given items have their keys instead, or the
    identities of an earlier pass. Two items of one object become one, and a reason to keep one of
    them keeps the object."""
    cleanup = work.cleanup
    # A pass may start again because the bucket was connected again, with other traits.
    if not cleanup.position.is_beginning():
        return
    given = cleanup.items.filter(escaped=False)
    if work.identity is exact_key:
        given = given.exclude(identity=F("key"))
    stale = [item for item in read_in_steps(given) if work.identity(item.key) != item.identity]
    for start in range(0, len(stale), ITEMS_PER_TRANSACTION):
        with transaction.atomic():
            cleanup.renew()
            merge_items(work, stale[start : start + ITEMS_PER_TRANSACTION])


def merge_items(work: Turn, stale: Sequence[CleanupItem]) -> None:
    items = work.cleanup.items
    names = [work.identity(item.key) for item in stale]
    taken = list(items.filter(escaped=False, identity__any_of=names))
    keep_with_others(work, [*taken, *stale])
    known = {item.identity: item for item in taken}
    named, same = list[CleanupItem](), list[int]()
    for item, name in zip(stale, names, strict=True):
        if name not in known:
            item.identity, known[name] = name, item
            named.append(item)
        elif is_same_request(known[name], item):
            same.append(item.pk)
    items.bulk_update(named, ["identity"])
    items.filter(pk__any_of=same).delete()


def keep_with_others(work: Turn, given: Sequence[CleanupItem]) -> None:
    """Keep items that may be the same object as a kept one. Where an earlier pass saw both objects,
    it has compared each with its own row."""
    protected = [item for item in given if item.outcome == Outcome.KEPT]
    protected.sort(key=lambda item: item.last_seen_at is None)
    kept = {work.identity(item.key): item for item in protected}
    alike = defaultdict[str, list[int]](list)
    for item in given:
        other = kept.get(work.identity(item.key))
        judged_both = item.last_seen_at and other and other.last_seen_at
        if item.outcome == Outcome.TO_DELETE and other and not judged_both:
            item.outcome = Outcome.KEPT
            alike[other.reason].append(item.pk)
    for reason, pks in alike.items():
        work.cleanup.items.filter(pk__any_of=pks).mark(Outcome.KEPT, reason)


def is_same_request(one: CleanupItem, other: CleanupItem) -> bool:
    """Whether two items ask for the same. An item that an earlier pass kept has the facts of the
    object that it saw, not those of the row."""
    return (one.outcome, item_facts(one)) == (other.outcome, item_facts(other))


def item_facts(item: CleanupItem) -> tuple[int | None, str, datetime | None]:
    """The facts that two items of one object share. Only listed ones have fractions of a second."""
    at = item.last_modified
    return item.size, item.etag, at and at.replace(microsecond=0)


def overwritten_row_reason(cleanup: Cleanup, item: CleanupItem, listed: ListedObject) -> str:
    """Why the object may be another one than the deleted row described, or nothing."""
    then, now = item.last_modified, listed.last_modified
    # An upload took the row's time from a HEAD, which counts in whole seconds, as do some listings.
    second, asked_at = now.replace(microsecond=0), cleanup.created_at
    may_be_younger = (
        is_from_fast_clock(asked_at, cleanup.started_at) or now >= asked_at - MAX_CLOCK_SKEW
    )
    if then is None and cleanup.is_deletion and may_be_younger:
        reason = _(
            "We don't know when this file was written. It may be newer than the deletion, because"
            " clocks can differ by an hour."
        )
    elif item.etag and (item.etag, item.size) != (listed.etag, listed.size):
        reason = _("The file was overwritten: it is not the one that its deleted record described.")
    elif then not in (None, now, second):
        reason = _("The same content was uploaded again after the deleted record was made.")
    else:
        return ""
    return reason + " " + track_and_delete_advice()


def judge_orphans(work: Turn, looked: FoundItems) -> None:
    """Keep those that are no longer the object of the finding, or no orphans."""
    parsed_keys = {
        item.key: get_key_formats().parse_key(item.key) for item, listed in looked if listed
    }
    rows = rows_by_identity(work.cleanup.bucket, parsed_keys, work.identity)
    there = [listed for _item, listed in looked if listed]
    found = {work.identity(listed.key): listed for listed in there}
    doubts, alike = find_orphan_doubts(work, parsed_keys, rows, found), defaultdict(list)
    ignored = get_ignore_list().find_ignored(work.cleanup.bucket, there)
    for item, listed in looked:
        if listed:
            reason = (
                overwritten_orphan_reason(item, listed)
                or ignored.get(listed.key, "")
                or doubts[item.key]
            )
            place = FoundIn.BOTH if work.identity(item.key) in rows else FoundIn.LISTED
            alike[place, reason].append(item.pk)
    for (found_in, reason), pks in alike.items():
        outcome = Outcome.KEPT if reason else Outcome.TO_DELETE
        items = work.cleanup.items.filter(pk__in=pks)
        items.mark(outcome, reason, found_in=found_in, last_seen_at=timezone.now())


def overwritten_orphan_reason(item: CleanupItem, listed: ListedObject) -> str:
    same = (item.key, item.size, item.etag) == (listed.key, listed.size, listed.etag)
    # The items that a follow-up check has copied do not say when theirs was written.
    if same and item.last_modified in (None, listed.last_modified):
        return ""
    return _("The file was overwritten after the scan found it.") + " " + next_scans_text()


def recheck_undecided(
    cleanup: Cleanup, items: CleanupItemQuerySet, parsed_keys: ParsedByKey
) -> dict[str, str]:
    """By key, why objects of deleted rows are kept: a person has to decide on them elsewhere. A row
    may have named a project that the key does not."""
    owners = {key: possible_owners(ways, ()) for key, ways in parsed_keys.items()}
    for key, project_id in items.exclude(project_id=None).values_list("key", "project_id"):
        owners[key].project_ids.add(project_id or "")
    return find_undecided(cleanup.bucket, owners, asking_filter(cleanup))


def recheck_orphans(
    work: Turn, parsed_keys: ParsedByKey, rows: RowsByIdentity, found: Mapping[str, ListedObject]
) -> dict[str, str]:
    """Reasons to keep the orphans. Raises OwnerChanging if somebody is creating a project."""
    if KnownProject.objects.is_any_changing(named_projects(parsed_keys, rows)):
        raise OwnerChanging(_("A project that may own these files is being created right now."))
    doubts = find_orphan_doubts(work, parsed_keys, rows, found)
    return {key: doubt for key, doubt in doubts.items() if doubt}


def find_lost_copies(
    work: Turn, batch: Sequence[PlannedItem], found: Mapping[str, ListedObject]
) -> dict[str, str]:
    """Why renamed objects stay: each may go only while its copy is there, as it is tracked."""
    copies = {item.key: item.copied_to for item in batch if item.copied_to}
    if not copies:
        return {}
    rows = rows_by_identity(work.cleanup.bucket, copies.values(), work.identity)
    text = _(
        "Kept: the copy under the new name is not in the bucket as recorded. Run a scan: its"
        " findings show what you can do."
    )
    return {
        key: text
        for key, name in copies.items()
        if not is_tracked(found.get(work.identity(name)), rows.get(work.identity(name), ()))
    }


def is_tracked(listed: ListedObject | None, rows: Sequence[R2Object]) -> bool:
    return listed is not None and any(
        (row.state, row.size, row.etag) == (R2Object.State.STORED, listed.size, listed.etag)
        for row in rows
    )


def find_orphan_doubts(
    work: Turn, parsed_keys: ParsedByKey, rows: RowsByIdentity, found: Mapping[str, ListedObject]
) -> dict[str, str]:
    """By key, why its object may be no orphan, going by the tables as they are now; empty where it
    is one. Rows and objects are given by identity, and were read before."""
    cleanup, identity = work.cleanup, work.identity
    names = named_projects(parsed_keys, rows)
    owners = owners_by_key(parsed_keys, rows, found, identity)
    kept = find_untracked(cleanup.bucket, find_uncertain_keys(parsed_keys, rows, found, identity))
    covering = find_covering(cleanup.bucket, owners, cleanup)
    alive = living_owners(parsed_keys.values(), names)
    known = known_ids(names) | alive
    return {
        key: covered_reason(covering[key])
        if key in covering
        else kept.get(key)
        or orphan_doubt(ways, rows.get(identity(key), ()), known, alive, found.get(identity(key)))
        for key, ways in parsed_keys.items()
    }


def named_projects(parsed_keys: ParsedByKey, rows: RowsByIdentity) -> set[str]:
    by_rows = projects_in_rows(chain.from_iterable(rows.values()))
    return by_rows.union(*(ways.projects for ways in parsed_keys.values()))


def orphan_doubt(
    parsed_keys: ParsedKeys,
    rows: Sequence[TrackingRow],
    known: set[str],
    alive: set[str],
    stored: ListedObject | None,
) -> str:
    if living := possible_owners(parsed_keys, rows).project_ids & alive:
        return rival_reason(living)
    owner = find_owner(parsed_keys, rows, known, alive, stored)
    if owner.problem != OwnerProblem.ORPHANED:
        return _("No longer a leftover file: %s.") % OwnerProblem(owner.problem).label
    return ""
