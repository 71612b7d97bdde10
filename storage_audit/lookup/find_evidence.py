"""What of the facts about an object a rule goes by. Only an item that a verification has settled
counts as gone."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import TypeVar

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.open_decisions import covered_reason
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup.facts import (
    GONE_OUTCOMES,
    KINDS_WITHOUT_OBJECT,
    ObjectFacts,
    ProjectState,
    ProjectStatus,
)
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.ownership_rule import Ownership
from storage_audit.ownership.row_evidence import row_provenance

Outcome = CleanupItem.Outcome
Status = Cleanup.Status
UNFINISHED = (*Cleanup.WORKABLE, Status.BLOCKED)
UPLOAD_NOT_ENDED = (R2Object.State.UPLOAD_FAILED, R2Object.State.UPLOADING)
Found = TypeVar("Found")


def restrict_finder(
    find: Callable[[ObjectFacts], Found | None], condition: Callable[[Found], object]
) -> Callable[[ObjectFacts], Found | None]:
    """Finds the same, but only if it meets the condition."""

    def find_restricted(facts: ObjectFacts) -> Found | None:
        found = find(facts)
        return found if found and condition(found) else None

    return find_restricted


# Items


def find_latest_item(facts: ObjectFacts, outcome: str) -> CleanupItem | None:
    """The latest item, if it has this outcome and the object was not tracked again since."""
    item, row = next(iter(facts.items), None), facts.row
    if not item or item.outcome != outcome or (row and row.created_at > item.changed_at):
        return None
    return item


def find_failed_item(facts: ObjectFacts) -> CleanupItem | None:
    """Of a deletion, not of a verification."""
    item = find_latest_item(facts, Outcome.FAILED)
    return item if item and item.cleanup.is_deletion else None


def find_kept_item(facts: ObjectFacts) -> CleanupItem | None:
    """Unless its project lives, so that nothing is to be cleaned up any more."""
    item = find_latest_item(facts, Outcome.KEPT)
    is_over = item and item.cleanup.is_deletion and cleaned_state(facts, item) is ProjectState.ALIVE
    return None if is_over else item


def find_kept_item_of_deletion(facts: ObjectFacts) -> CleanupItem | None:
    """Not of a verification or a dry run."""
    item = find_kept_item(facts)
    return item if item and item.cleanup.is_deletion else None


def find_kept_item_of_deleted(facts: ObjectFacts) -> CleanupItem | None:
    item = find_kept_item(facts)
    return item if item and cleaned_state(facts, item) is ProjectState.DELETED else None


def add_current_doubt(
    find: Callable[[ObjectFacts], CleanupItem | None],
) -> Callable[[ObjectFacts], object]:
    """Finds the item with the doubt that keeps the object now, if one does: the item has the doubt
    of back then, and a project that lived then may be deleted by now."""

    def find_with_doubt(facts: ObjectFacts) -> object:
        item = find(facts)
        of_project = item and [
            judged.verdict.reason
            for judged in facts.verdicts
            if judged.project.project_id == item.cleanup.project_id
        ]
        return item and [item, *filter(None, of_project or ())]

    return find_with_doubt


def cleaned_state(facts: ObjectFacts, item: CleanupItem) -> ProjectState | None:
    """Of the project that was cleaned up, if the object may be its."""
    owner = facts.projects.get(item.cleanup.project_id or "")
    return owner.state if owner else None


def find_gone_item(facts: ObjectFacts) -> CleanupItem | None:
    """The item that says best how it was deleted: later checks only saw it gone again."""
    latest = next(iter(facts.items), None)
    if not latest or latest.outcome not in GONE_OUTCOMES:
        return None
    for item in facts.items:
        if item.outcome not in GONE_OUTCOMES:
            break
        if item.outcome == Outcome.DELETED:
            return item
    return latest


def is_seen_since(facts: ObjectFacts, item: CleanupItem) -> bool:
    """Whether a scan saw the object in the bucket after its deletion, and no later scan missed it.
    A finding that a scan resolved has no `decided_by`."""
    return any(
        finding.kind not in KINDS_WITHOUT_OBJECT and finding.last_seen_at > item.changed_at
        for finding in facts.findings
        if finding.state != Finding.State.RESOLVED or finding.decided_by
    )


def find_settled_item(facts: ObjectFacts) -> CleanupItem | None:
    """The item of an object that is gone, and has not come back by anything we know."""
    item = find_gone_item(facts)
    if not item or facts.rows or facts.listed or is_seen_since(facts, item):
        return None
    # What a cleanup covers is no finding, so no scan would report that it is back.
    later = find_deleting_cleanup(facts)
    is_back = later and not later.parent_id and later.created_at > item.changed_at
    return None if is_back else item


def find_returned_item(facts: ObjectFacts) -> CleanupItem | None:
    """The item of an object that was gone, and by the latest evidence is back."""
    item, row = find_gone_item(facts), facts.row
    if not item:
        return None
    is_new = row and row.created_at > item.changed_at
    return item if is_new or facts.listed or is_seen_since(facts, item) else None


def find_new_upload(facts: ObjectFacts) -> object:
    item, row = find_returned_item(facts), facts.row
    is_new = item and row and row.created_at > item.changed_at
    return is_new and row and row.source == R2Object.Source.UPLOAD and [item, row]


def find_failed_upload(facts: ObjectFacts) -> R2Object | None:
    """The row of an upload that ended without success, or not at all."""
    row = facts.row
    return row if row and row.state in UPLOAD_NOT_ENDED and not facts.listed else None


# Cleanups


def find_deleting_cleanup(facts: ObjectFacts) -> Cleanup | None:
    """The open deletion of this object; it may not have found the object yet."""
    deleting = (
        item.cleanup
        for item in facts.items
        if item.outcome in CleanupItem.OPEN
        and item.cleanup.is_deletion
        and item.cleanup.status in UNFINISHED
    )
    # A plan is frozen once it is made, and would have it.
    planning = (
        cleanup
        for cleanup in cleanups_without(facts, facts.items)
        if cleanup.status in UNFINISHED
        and cleanup.step == Cleanup.Step.PLAN
        and cleanup.planned_at is None
    )
    return next(chain(deleting, planning), None)


def find_plan_without(facts: ObjectFacts) -> Cleanup | None:
    """An open cleanup whose plan was frozen without this object."""
    # A deleted object in another spelling may be this one, unless something shows that this exists.
    others = () if facts.is_tracked_or_listed else facts.other_spellings
    for cleanup in cleanups_without(facts, [*facts.items, *others]):
        if cleanup.planned_at and cleanup.status not in Cleanup.FINISHED:
            return cleanup
    return None


def cleanups_without(facts: ObjectFacts, items: Sequence[CleanupItem]) -> Iterator[Cleanup]:
    """The cleanups of deleted projects that would delete the object, but have none of these."""
    owners, held = deleted_owners(facts), {item.cleanup_id for item in items}
    for cleanup in facts.cleanups:
        if cleanup.project_id in owners and cleanup.pk not in held:
            yield cleanup


def find_covering_cleanup(facts: ObjectFacts) -> object:
    cleanup = facts.covered_by
    return (
        cleanup
        and (facts.is_tracked_or_listed or facts.finding)
        and [cleanup, covered_reason(cleanup)]
    )


def find_fruitless_cleanup(facts: ObjectFacts) -> Cleanup | None:
    """The last cleanup of a deleted project, where it has no item of the object, or not any more.
    Cleanups that could not list the bucket do not count."""
    gone = find_owner(facts, ProjectState.DELETED)
    cleanup = gone and find_last_cleanup(facts, gone)
    if not cleanup or not (cleanup.planned_at or cleanup.pruned_at):
        return None
    has_item = any(item.cleanup_id == cleanup.pk for item in facts.items)
    return None if has_item or cleanup.status not in Cleanup.FINISHED else cleanup


def find_last_cleanup(facts: ObjectFacts, gone: ProjectStatus) -> Cleanup | None:
    return next((one for one in facts.cleanups if one.project_id == gone.project_id), None)


# Findings


def finding_of(kind: Kind) -> Callable[[ObjectFacts], Finding | None]:
    """Finds the finding, if it is of this kind, unless something later settles it."""

    def find_finding(facts: ObjectFacts) -> Finding | None:
        settled = {
            Kind.MISSING: facts.listed,
            Kind.UNTRACKED: facts.row,
            # A scan saw it before the cleanup was asked for.
            Kind.ORPHANED: facts.covered_by,
        }
        is_open = facts.finding and facts.finding.kind == kind and not settled.get(kind)
        return facts.finding if is_open else None

    return find_finding


def find_ownerless(facts: ObjectFacts) -> Finding | None:
    """The finding of an object that could be several projects', none of which lives: it can be
    assigned only to a live one."""
    finding = finding_of(Kind.AMBIGUOUS)(facts)
    return finding if facts.projects and not find_living_owners(facts) else None


def find_ownerless_of(facts: ObjectFacts, owner: ProjectStatus | None) -> object:
    finding = find_ownerless(facts)
    return finding and owner and [finding, owner]


def find_last_doubt(facts: ObjectFacts) -> object:
    """With the doubt of a cleanup of the project that was deleted last, which may delete what
    others kept."""
    finding, now = find_ownerless(facts), timezone.now()
    doubtful = [each for each in facts.verdicts if each.verdict.reason]
    if not finding or not doubtful:
        return None
    last = max(doubtful, key=lambda each: each.project.deleted_at or now)
    return [finding, last.verdict.reason]


# Projects


def deleted_owners(facts: ObjectFacts) -> set[str]:
    """The deleted projects whose cleanups would delete it."""
    return {
        judged.project.project_id
        for judged in facts.verdicts
        if judged.verdict.ownership is Ownership.OWNED
        and judged.project.state is not ProjectState.ALIVE
    }


def find_owner(facts: ObjectFacts, state: ProjectState) -> ProjectStatus | None:
    return next((one for one in facts.projects.values() if one.state is state), None)


def find_cancelled_owner(facts: ObjectFacts) -> object:
    """A deleted project whose cleanup a person cancelled, with that cleanup, unless the object may
    be a living one's."""
    if find_living_owners(facts):
        return None
    for owner in facts.projects.values():
        known = owner.known_project
        if known and known.kept_for == KnownProject.KeptFor.CANCELLED:
            for cleanup in facts.cleanups:
                if (cleanup.project_id, cleanup.status) == (owner.project_id, Status.CANCELLED):
                    return [cleanup, owner]
    return None


def find_living_owners(facts: ObjectFacts) -> list[ProjectStatus]:
    return [one for one in facts.projects.values() if one.state is ProjectState.ALIVE]


def find_judged_owner(facts: ObjectFacts) -> ProjectStatus | None:
    """A project whose cleanup would delete it; preferably one that existed."""
    owners = [one.project for one in facts.verdicts if one.verdict.ownership is Ownership.OWNED]
    return min(owners, key=lambda project: project.known_project is None, default=None)


def find_living_owner_of_row(facts: ObjectFacts) -> object:
    row = facts.row
    owner = row and facts.projects.get(row.project_id or "")
    return owner and owner.state is ProjectState.ALIVE and [row, owner]


def find_possible_living_owners(facts: ObjectFacts) -> list[ProjectStatus]:
    row = facts.row
    return [] if row and row_provenance(row) else find_living_owners(facts)


def find_deleted_owner(facts: ObjectFacts) -> object:
    """Of a file that is tracked, or seen now, with the project's last cleanup."""
    gone = find_owner(facts, ProjectState.DELETED)
    return gone and facts.is_tracked_or_listed and [gone, find_last_cleanup(facts, gone)]


def find_deleted_owner_of_row(facts: ObjectFacts) -> object:
    """Of a row whose object was gone before a cleanup could delete it."""
    item = find_latest_item(facts, Outcome.ALREADY_GONE)
    return item and not facts.listed and find_deleted_owner(facts)


# Cards


def shows_object(facts: ObjectFacts) -> bool:
    """Whether the latest that we know shows the object in the bucket."""
    finding, item, row = facts.finding, facts.remaining_item, facts.row
    if facts.listed or not finding or finding.kind == Kind.UNFINISHED:
        is_compared = item and item.cleanup.kind == Cleanup.Kind.VERIFY
        # A verification also has what is tracked and not in the bucket.
        is_item = item and not (is_compared and item.found_in == CleanupItem.FoundIn.TRACKED)
        is_row = row and row.state in (R2Object.State.STORED, R2Object.State.DELETING)
        return bool(facts.listed or is_item or is_row)
    return finding.kind != Kind.MISSING


def confirmed_gone_at(facts: ObjectFacts) -> datetime | None:
    """When a complete listing last showed that it is gone."""
    if facts.live_result and facts.is_confirmed_gone:
        return facts.live_result.checked_at
    item = find_settled_item(facts)
    return item.changed_at if item else None


# Caveats


def maybe_changed_text(facts: ObjectFacts) -> str:
    """Later facts may be hidden from this person; the same whether there are any."""
    if not facts.is_partial or facts.is_confirmed_gone:
        return ""
    if facts.listed:
        return _("You can't see all records, so this may have changed. Ask somebody who can.")
    return _("You can't see all records, so this may have changed. Check the bucket.")


def maybe_back_text(facts: ObjectFacts) -> str:
    """The row of a later upload leaves no trace once somebody untracks it."""
    if facts.is_confirmed_gone:
        return ""
    return maybe_changed_text(facts) or _("To rule out a later upload, check the bucket.")
