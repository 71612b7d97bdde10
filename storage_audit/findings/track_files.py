"""Rows that a person wants written, given to another project, or forgotten."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import chain
from typing import NamedTuple

from django.db import OperationalError
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import Identity, find
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.objects_in_hand import exclude_in_hand
from storage_audit.cleanup.open_decisions import find_covering, why_covered
from storage_audit.cleanup.plan import find_owners, rows_by_identity
from storage_audit.findings.action_result import (
    ActionRefused,
    Decision,
    Findings,
    State,
    as_it_is,
    chunks,
)
from storage_audit.findings.ignored import find_keeping, why_left
from storage_audit.findings.models import Finding
from storage_audit.locking import impatient
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.attribution import attribute
from storage_audit.ownership.owner import layouts
from storage_audit.tracking import rows
from storage_audit.tracking.recognise import Seen, recognise
from storage_audit.tracking.untrack import kept_by_rows

Kind = Finding.Kind
TRACKABLE = (Kind.UNTRACKED, Kind.CHANGED)
ADOPTABLE = (Kind.ORPHANED, Kind.AMBIGUOUS, Kind.UNRECOGNISED, *TRACKABLE)
GIVEN = [*rows.CHANGEABLE, "source"]


class Look(NamedTuple):
    """What there is, just now, of the objects of some findings of one bucket."""

    bucket: str
    identity: Identity
    seen: list[tuple[Finding, Seen]]


def track(findings: Findings) -> Decision:
    """Have rows say what the bucket holds. Raises CannotConclude and StoreError."""
    decision = Decision()
    for look in looks(findings, TRACKABLE, decision):
        decision.resolve(written(look, decision), _("tracked"))
    return decision


def adopt(findings: Findings, project_id: str) -> Decision:
    """Give the objects to a live project, whose end will be theirs. Raises ActionRefused when there
    is no such project, CannotConclude and StoreError."""
    refuse_dead(project_model.with_id(project_id).exists(), project_id)
    decision = Decision()
    for look in looks(findings, ADOPTABLE, decision):
        keys = [finding.key for finding, _seen in look.seen]
        found = {look.identity(seen.listed.key): seen.listed for _finding, seen in look.seen}
        owners = find_owners(look.bucket, keys, look.identity, found)
        covering = find_covering(look.bucket, owners)
        fit = [
            (finding, seen)
            for finding, seen in look.seen
            if not decision.leave(
                finding, kept(finding, seen, project_id, covering.get(finding.key))
            )
        ]
        held = written(look._replace(seen=fit), decision)
        mine = given(look, held, project_id, decision)
        decision.resolve(mine, _("adopted into %s") % project_id)
    return decision


def untrack(findings: Findings) -> Decision:
    """Forget rows whose objects are seen to be gone. Raises CannotConclude and StoreError."""
    decision = Decision()
    for bucket, chunk in chunks(findings):
        identity = bucket_marker.check(bucket).identity
        fit = [one for one in chunk if not decision.leave(one, unfit(one, [Kind.MISSING]))]
        keys = [finding.key for finding in fit]
        held = rows_by_identity(bucket, keys, identity)
        there = find(bucket, keys, identity)
        bucket_marker.see_marker(bucket)
        absent = {name: its_rows for name, its_rows in held.items() if name not in there}
        kept = kept_by_name(absent, identity)
        forgotten = forget(
            row for name, its_rows in absent.items() if name not in kept for row in its_rows
        )
        gone = [
            finding
            for finding in fit
            if not decision.leave(
                finding,
                kept.get(identity(finding.key), "")
                or still_tracked(identity(finding.key), there, held, forgotten),
            )
        ]
        decision.resolve(gone, _("row removed: its object is not there"))
    return decision


def kept_by_name(held: Mapping[str, Sequence[R2Object]], identity: Identity) -> dict[str, str]:
    """By identity, why the rows of some of these objects are kept."""
    pks = [row.pk for row in chain.from_iterable(held.values())]
    kept = kept_by_rows(R2Object.objects.filter(pk__in=pks))
    return {identity(left.key): left.reason for left in kept.values()}


def still_tracked(
    name: str,
    there: Collection[str],
    held: Mapping[str, Sequence[R2Object]],
    forgotten: Collection[int],
) -> str:
    if name in there:
        return _("Its object is in the bucket. The next complete scan resolves this.")
    if name not in held:
        return _("It has no row any more. The next complete scan resolves this.")
    return "" if all(row.pk in forgotten for row in held[name]) else in_hand()


def refuse_dead(alive: object, project_id: str) -> None:
    if not alive:
        text = _("There is no project %s. Only an existing project can adopt files.")
        raise ActionRefused(text % project_id)


def looks(findings: Findings, kinds: Collection[str], decision: Decision) -> Iterator[Look]:
    """At those of these kinds whose objects are there and in nobody's hand."""
    for bucket, chunk in chunks(findings):
        asked, identity = timezone.now(), bucket_marker.check(bucket).identity
        fit = [one for one in chunk if not decision.leave(one, unfit(one, kinds))]
        objects = list(find(bucket, [finding.key for finding in fit], identity).values())
        bucket_marker.see_marker(bucket)
        keeping = find_keeping(bucket, objects)
        keys = {listed.key for listed in objects} | {finding.key for finding in fit}
        known = recognise(bucket, objects, keys, identity, asked)
        by_name = {identity(seen.listed.key): seen for seen in known}
        pairs = [(finding, by_name.get(identity(finding.key))) for finding in fit]
        there = [(f, s) for f, s in pairs if not decision.leave(f, why_stays(s, keeping)) and s]
        yield Look(bucket, identity, there)


def unfit(finding: Finding, kinds: Collection[str]) -> str:
    if finding.kind not in kinds:
        return _("This action is not for findings of the kind “%s”.") % finding.get_kind_display()
    if finding.escaped:
        return _("No row can name this key.")
    if finding.state == State.ACKNOWLEDGED:
        return why_left(finding)
    return as_it_is(finding) if finding.state == State.RESOLVED else ""


def why_stays(seen: Seen | None, keeping: Mapping[str, Finding]) -> str:
    """Why nothing can be done about the object of a finding; `keeping` are the findings, about any
    of its spellings, by which a person keeps it."""
    if seen is None:
        return _("It is not in the bucket any more. The next complete scan resolves this.")
    if seen.in_hand:
        return in_hand()
    return why_left(keeping[seen.listed.key]) if seen.listed.key in keeping else ""


def in_hand() -> str:
    return _("An upload, a deletion or somebody else has it in hand. Look again later.")


def written(look: Look, decision: Decision) -> list[Finding]:
    """Those that have rows now that say what the bucket shows."""
    new = [seen for _finding, seen in look.seen if seen.row is None]
    see_marker = partial(bucket_marker.see_marker, look.bucket)
    _added, lost = rows.add(look.bucket, new, look.identity, see_marker)
    held = [seen.row for _finding, seen in look.seen if seen.row and rows.bring_up_to_date(seen)]
    before = {row.pk: row.updated_at for row in held}
    rows.update(held)
    lost |= {look.identity(row.key) for row in held if row.updated_at == before[row.pk]}
    return [
        finding
        for finding, _seen in look.seen
        if not decision.leave(finding, in_hand() if look.identity(finding.key) in lost else "")
    ]


def kept(finding: Finding, seen: Seen, project_id: str, covering: CleanupOperation | None) -> str:
    """Why an object cannot be given to the project, or nothing."""
    if (finding.size, finding.etag) != (seen.listed.size, seen.listed.etag):
        return _("It is not the object of the finding any more: it was overwritten. Scan again.")
    owner = seen.owner
    if not owner.difference and owner.project_id != project_id:
        return _("It belongs to the live project %s.") % owner.project_id
    return why_covered(covering) if covering else ""


def given(look: Look, held: list[Finding], project_id: str, decision: Decision) -> list[Finding]:
    """Those whose rows name the project now. As with an upload the rows are committed first, and
    the marks of cleanups read after: of two that run at once, at least one sees the other."""
    keys = [finding.key for finding in held]
    found = rows_by_identity(look.bucket, keys, look.identity)
    every = list(chain.from_iterable(found.values()))
    before = {row.pk: copy(row) for row in every}
    for finding, seen in look.seen:
        for row in found.get(look.identity(finding.key), ()):
            # A person decides on this object, whatever the rows of its other spellings said.
            vars(row).update(rows.facts(seen.listed))
    changed = give(every, project_id)
    mine = {name for name, some in found.items() if all(row.pk in changed for row in some)}
    for name in mine & rows.being_deleted(look.bucket, mine):
        for row in found[name]:
            take_back(row, before[row.pk])
        mine.remove(name)
    return [
        finding
        for finding in held
        if not decision.leave(finding, "" if look.identity(finding.key) in mine else in_hand())
    ]


def give(held: Iterable[R2Object], project_id: str) -> set[int]:
    """Write the project into those rows that are still as they were read, while it is sure to
    live; gives their ids. Raises ActionRefused."""
    try:
        with impatient():
            still, now = unchanged(held), timezone.now()
            for row in still:
                row.project_id, row.source = project_id, R2Object.Source.ADOPTED
                # The decision is about what is there, however the last upload to the key ended.
                row.state, row.updated_at, row.upload_id = R2Object.State.STORED, now, None
                describe(row, project_id)
            R2Object.objects.bulk_update(still, GIVEN, batch_size=200)
            # Whoever deletes it waits for us and finds these rows, or was faster.
            refuse_dead(project_model.lock(project_id), project_id)
    except OperationalError:
        return set()
    return {row.pk for row in still}


def describe(row: R2Object, project_id: str) -> None:
    owner = attribute(layouts().readings(row.key), [row], {project_id}, {project_id}, row)
    for name, value in rows.described(owner).items():
        setattr(row, name, value)


def unchanged(held: Iterable[R2Object]) -> list[R2Object]:
    """Those that neither an upload nor a cleanup has changed, locked until the commit."""
    held = list(held)
    rested = exclude_in_hand(R2Object.objects.all()).filter(pk__in=[row.pk for row in held])
    now = dict(rested.select_for_update().values_list("pk", "updated_at"))
    return [row for row in held if now.get(row.pk) == row.updated_at]


def take_back(row: R2Object, before: R2Object) -> None:
    values = {name: getattr(before, name) for name in GIVEN}
    R2Object.objects.filter(pk=row.pk, updated_at=row.updated_at).update(**values)


def forget(held: Iterable[R2Object]) -> set[int]:
    """Those that are still as they were read; gives their ids."""
    try:
        with impatient():
            pks = {row.pk for row in unchanged(held)}
            R2Object.objects.filter(pk__in=pks).forget()
    except OperationalError:
        return set()
    return pks
