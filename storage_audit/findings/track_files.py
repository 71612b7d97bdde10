"""Tracks and untracks objects, and assigns them to projects, as a person decides."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import chain
from typing import NamedTuple

from django.db import OperationalError
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import KeyIdentity, find_keys
from storage_audit.cleanup.changing_objects import exclude_in_hand
from storage_audit.cleanup.judge_objects import find_owners, rows_by_identity
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.open_decisions import covered_reason, find_covering
from storage_audit.findings.action_result import (
    ActionRefused,
    Decision,
    Findings,
    State,
    busy_reason,
    changed_reason,
    finding_batches,
    gone_reason,
    state_reason,
)
from storage_audit.findings.ignored import find_keeping_findings, ignored_reason
from storage_audit.findings.models import Finding
from storage_audit.locking import atomic_with_timeout
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.attribution import find_owner
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.tracking import rows
from storage_audit.tracking.recognise import RecognisedObject, recognise_objects
from storage_audit.tracking.untrack import rows_to_keep

Kind = Finding.Kind
TRACKABLE_KINDS = (Kind.UNTRACKED, Kind.CHANGED)
ASSIGNABLE_KINDS = (Kind.ORPHANED, Kind.AMBIGUOUS, Kind.UNRECOGNISED, *TRACKABLE_KINDS)
ASSIGNED_FIELDS = [*rows.CHANGEABLE_FIELDS, "source"]


class ObjectSnapshot(NamedTuple):
    """The objects of some findings of one bucket, as they are now."""

    bucket: str
    identity: KeyIdentity
    seen: list[tuple[Finding, RecognisedObject]]


def track_objects(findings: Findings) -> Decision:
    """Have rows say what the bucket holds. Raises CannotConclude and StoreError."""
    decision = Decision()
    for look in snapshot_objects(findings, TRACKABLE_KINDS, decision):
        decision.resolve(write_rows(look, decision), _("tracked"))
    return decision


def assign_objects(findings: Findings, project_id: str) -> Decision:
    """Assign the objects to a live project: they are deleted with it. Raises ActionRefused when
    there is no such project, CannotConclude and StoreError."""
    require_project(project_model.filter_by_id(project_id).exists(), project_id)
    decision = Decision()
    for look in snapshot_objects(findings, ASSIGNABLE_KINDS, decision):
        keys = [finding.key for finding, _seen in look.seen]
        found = {look.identity(seen.listed.key): seen.listed for _finding, seen in look.seen}
        owners = find_owners(look.bucket, keys, look.identity, found)
        covering = find_covering(look.bucket, owners)
        fit = [
            (finding, seen)
            for finding, seen in look.seen
            if not decision.skip(
                finding, assign_skip_reason(finding, seen, project_id, covering.get(finding.key))
            )
        ]
        held = write_rows(look._replace(seen=fit), decision)
        mine = assign_rows(look, held, project_id, decision)
        decision.resolve(mine, _("assigned to %s") % project_id)
    return decision


def untrack_rows(findings: Findings) -> Decision:
    """Delete rows whose objects are confirmed gone. Raises CannotConclude and StoreError."""
    decision = Decision()
    for bucket, chunk in finding_batches(findings):
        identity = bucket_marker.check_bucket(bucket).identity
        fit = [
            one for one in chunk if not decision.skip(one, finding_skip_reason(one, [Kind.MISSING]))
        ]
        keys = [finding.key for finding in fit]
        held = rows_by_identity(bucket, keys, identity)
        there = find_keys(bucket, keys, identity)
        bucket_marker.require_marker(bucket)
        gone_items = {name: its_rows for name, its_rows in held.items() if name not in there}
        kept = row_keep_reasons(gone_items, identity)
        forgotten = forget_rows(
            row for name, its_rows in gone_items.items() if name not in kept for row in its_rows
        )
        gone = [
            finding
            for finding in fit
            if not decision.skip(
                finding,
                kept.get(identity(finding.key), "")
                or untrack_skip_reason(identity(finding.key), there, held, forgotten),
            )
        ]
        decision.resolve(gone, _("untracked: the file is not in the bucket"))
    return decision


def row_keep_reasons(
    held: Mapping[str, Sequence[R2Object]], identity: KeyIdentity
) -> dict[str, str]:
    """By identity, why the rows of some of these objects are kept."""
    pks = [row.pk for row in chain.from_iterable(held.values())]
    kept = rows_to_keep(R2Object.objects.filter(pk__in=pks))
    return {identity(left.key): left.reason for left in kept.values()}


def untrack_skip_reason(
    name: str,
    there: Collection[str],
    held: Mapping[str, Sequence[R2Object]],
    forgotten: Collection[int],
) -> str:
    if name in there:
        return _("The file is in the bucket. The next complete scan resolves this finding.")
    if name not in held:
        return _("The file is not tracked any more. The next complete scan resolves this finding.")
    return "" if all(row.pk in forgotten for row in held[name]) else busy_reason()


def require_project(alive: object, project_id: str) -> None:
    if not alive:
        text = _("There is no project %s. Files can be assigned only to an existing project.")
        raise ActionRefused(text % project_id)


def snapshot_objects(
    findings: Findings, kinds: Collection[str], decision: Decision
) -> Iterator[ObjectSnapshot]:
    """A snapshot of the findings of these kinds whose objects are there and not in hand."""
    for bucket, chunk in finding_batches(findings):
        asked, identity = timezone.now(), bucket_marker.check_bucket(bucket).identity
        fit = [one for one in chunk if not decision.skip(one, finding_skip_reason(one, kinds))]
        objects = list(find_keys(bucket, [finding.key for finding in fit], identity).values())
        bucket_marker.require_marker(bucket)
        keeping = find_keeping_findings(bucket, objects)
        keys = {listed.key for listed in objects} | {finding.key for finding in fit}
        known = recognise_objects(bucket, objects, keys, identity, asked)
        by_name = {identity(seen.listed.key): seen for seen in known}
        pairs = [(finding, by_name.get(identity(finding.key))) for finding in fit]
        there = [
            (f, s) for f, s in pairs if not decision.skip(f, object_skip_reason(s, keeping)) and s
        ]
        yield ObjectSnapshot(bucket, identity, there)


def finding_skip_reason(finding: Finding, kinds: Collection[str]) -> str:
    if finding.kind not in kinds:
        return _("This action is not for findings of kind “%s”.") % finding.get_kind_display()
    if finding.escaped:
        return _("A file with this name can't be tracked.")
    if finding.state == State.IGNORED:
        return ignored_reason(finding)
    return state_reason(finding) if finding.state == State.RESOLVED else ""


def object_skip_reason(seen: RecognisedObject | None, keeping: Mapping[str, Finding]) -> str:
    """Why nothing can be done about the object of a finding; `keeping` are the ignored findings
    that keep it, in any of its spellings."""
    if seen is None:
        return gone_reason()
    if seen.in_hand:
        return busy_reason()
    return ignored_reason(keeping[seen.listed.key]) if seen.listed.key in keeping else ""


def write_rows(look: ObjectSnapshot, decision: Decision) -> list[Finding]:
    """Write rows that say what the bucket shows; gives the findings that have them now."""
    new = [seen for _finding, seen in look.seen if seen.row is None]
    see_marker = partial(bucket_marker.require_marker, look.bucket)
    _added, lost = rows.add_rows(look.bucket, new, look.identity, see_marker)
    held = [seen.row for _finding, seen in look.seen if seen.row and rows.refresh_row(seen)]
    before = {row.pk: row.updated_at for row in held}
    rows.update_rows(held)
    lost |= {look.identity(row.key) for row in held if row.updated_at == before[row.pk]}
    return [
        finding
        for finding, _seen in look.seen
        if not decision.skip(finding, busy_reason() if look.identity(finding.key) in lost else "")
    ]


def assign_skip_reason(
    finding: Finding, seen: RecognisedObject, project_id: str, covering: Cleanup | None
) -> str:
    """Why an object cannot be assigned to the project, or nothing."""
    if (finding.size, finding.etag) != (seen.listed.size, seen.listed.etag):
        return changed_reason()
    owner = seen.owner
    if not owner.problem and owner.project_id != project_id:
        return _("The file belongs to project %s, which exists.") % owner.project_id
    return covered_reason(covering) if covering else ""


def assign_rows(
    look: ObjectSnapshot, held: list[Finding], project_id: str, decision: Decision
) -> list[Finding]:
    """Let rows name the project; gives the findings whose rows do. As with an upload the rows are
    committed before the marks of cleanups are read: of two at once, at least one sees the other."""
    keys = [finding.key for finding in held]
    found = rows_by_identity(look.bucket, keys, look.identity)
    every = list(chain.from_iterable(found.values()))
    before = {row.pk: copy(row) for row in every}
    for finding, seen in look.seen:
        for row in found.get(look.identity(finding.key), ()):
            # A person decides on this object, whatever the rows of its other spellings said.
            vars(row).update(rows.object_values(seen.listed))
    changed = write_project(every, project_id)
    mine = {name for name, some in found.items() if all(row.pk in changed for row in some)}
    for name in mine & rows.find_being_deleted(look.bucket, mine):
        for row in found[name]:
            restore_row(row, before[row.pk])
        mine.remove(name)
    return [
        finding
        for finding in held
        if not decision.skip(finding, "" if look.identity(finding.key) in mine else busy_reason())
    ]


def write_project(held: Iterable[R2Object], project_id: str) -> set[int]:
    """Write the project into the rows that have not changed, while the project surely exists; gives
    their ids. Raises ActionRefused."""
    try:
        with atomic_with_timeout():
            still, now = lock_unchanged(held), timezone.now()
            for row in still:
                row.project_id, row.source = project_id, R2Object.Source.ASSIGNED
                # The decision is about this object, however the last upload to the key ended.
                row.state, row.updated_at, row.upload_id = R2Object.State.STORED, now, None
                set_owner_values(row, project_id)
            R2Object.objects.bulk_update(still, ASSIGNED_FIELDS, batch_size=200)
            # A deletion of the project waits for us and finds these rows, or was faster.
            require_project(project_model.lock_project(project_id), project_id)
    except OperationalError:
        return set()
    return {row.pk for row in still}


def set_owner_values(row: R2Object, project_id: str) -> None:
    owner = find_owner(get_key_formats().parse_key(row.key), [row], {project_id}, {project_id}, row)
    for name, value in rows.owner_values(owner).items():
        setattr(row, name, value)


def lock_unchanged(held: Iterable[R2Object]) -> list[R2Object]:
    """Lock the rows that neither an upload nor a cleanup has changed, until the commit."""
    held = list(held)
    rested = exclude_in_hand(R2Object.objects.all()).filter(pk__in=[row.pk for row in held])
    now = dict(rested.select_for_update().values_list("pk", "updated_at"))
    return [row for row in held if now.get(row.pk) == row.updated_at]


def restore_row(row: R2Object, before: R2Object) -> None:
    values = {name: getattr(before, name) for name in ASSIGNED_FIELDS}
    R2Object.objects.filter(pk=row.pk, updated_at=row.updated_at).update(**values)


def forget_rows(held: Iterable[R2Object]) -> set[int]:
    """Delete the rows that have not changed since they were read; gives their ids."""
    try:
        with atomic_with_timeout():
            pks = {row.pk for row in lock_unchanged(held)}
            R2Object.objects.filter(pk__in=pks).delete_without_signals()
    except OperationalError:
        return set()
    return pks
