"""What a project has in the bucket: tracked and listed keys, each with its owner and the reason.

Written page by page into the operation's items, so that a worker that stops is followed by one
that goes on, and memory does not grow with the project.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import Identity, escape, spellings, storable
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup import progress
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.open_decisions import (
    Owners,
    ask_keeper,
    asked_by,
    find_undecided,
    find_untracked,
    possible_owners,
    unsure_among,
)
from storage_audit.cleanup.position import end_of
from storage_audit.cleanup.turn import LONE_KEYS, Work
from storage_audit.fields import insert_new, insert_values
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import (
    Claim,
    Deleted,
    Row,
    Verdict,
    alive_among,
    judge,
    layouts,
    named_in,
)

FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
Discovery = CleanupOperation.Discovery
T = TypeVar("T", bound=Row)
# Tracked keys at a time.
CHUNK = 5000


def discover(work: Work) -> None:
    """Make the operation's items, going on where the last turn stopped. Raises TurnOver,
    StoreError and LeaseLost."""
    operation = work.operation
    assert operation.project_id is not None
    if "span" not in operation.cursor:
        operation.renew(ranges=ranges_of(operation.project_id))
    if "tracked" in operation.cursor:
        discover_tracked(work, operation.cursor["span"])
    discover_listed(work)
    discover_outside(work)


def ranges_of(project_id: str) -> list[str]:
    """What to list. Raises CannotConclude when no layout can have this id: nothing would be listed,
    and so nothing be seen gone."""
    if layouts().is_project_id(project_id):
        return layouts().prefixes(project_id)
    raise CannotConclude(
        _(
            "%s is no project id, so its files cannot be looked for. If it should be one, mend the"
            " setting PROJECT_ID and force-delete this operation. Else delete the rows of its"
            " objects, which deletes the objects."
        )
        % project_id
    )


def discover_listed(work: Work) -> None:
    """And, once a range was listed to its end, the rows whose objects it did not show."""
    operation = work.operation
    first, after = operation.cursor.get("span", 0), operation.cursor.get("after", "")
    for span, page, is_last in work.list_ranges(first, after):
        before = operation.cursor.get("after")
        if page:
            save_listed(work, page, span)
        if is_last:
            discover_tracked(work, span)
        if page and (is_last or operation.cursor["after"] != before):
            work.breathe()


def save_listed(work: Work, page: Sequence[Listed], span: int) -> None:
    operation, rows = work.operation, list(described(work, page, span))
    with transaction.atomic():
        so_far = progress.found(operation, rows)
        operation.progress(cursor=work.move(span=span, after=end_of(page)), headway=so_far)
        insert_values(CleanupItem, rows)


def discover_tracked(work: Work, span: int) -> None:
    """Rows of the project under the prefix whose object the complete listing did not show."""
    operation = work.operation
    prefix, after = operation.ranges[span], operation.cursor.get("tracked", "")
    rows, is_complete = tracked_rows(operation).under(prefix), work.shows_all_spellings(prefix)
    size = CHUNK if is_complete else LONE_KEYS
    while chunk := list(rows.between(after, None).values_list("key", flat=True)[:size]):
        after = chunk[-1]
        if is_complete:
            save_absent(work, chunk, span, work.move(span=span, tracked=after))
        else:
            save_alone(work, list(unlisted(work, chunk).values()), span=span, tracked=after)
        work.breathe()
    operation.progress(cursor=work.move(span=span + 1, after=None, tracked=None))


def tracked_rows(operation: CleanupOperation) -> R2ObjectQuerySet:
    rows = R2Object.objects.in_bucket(operation.bucket)
    return rows.filter(project_id=operation.project_id).order_by("key")


def save_absent(
    work: Work, keys: Iterable[str], span: int | None, cursor: dict[str, object]
) -> None:
    """Items of these tracked keys, but of those whose object is one already."""
    operation, left = work.operation, unlisted(work, keys)
    with transaction.atomic():
        rows = tracked_rows(operation).filter(key__any_of=left.values()) if left else ()
        new = [absent(operation, row, work.identity(row.key), span) for row in rows]
        operation.progress(cursor=cursor, headway=progress.found(operation, map(vars, new)))
        save(new)


def unlisted(work: Work, keys: Iterable[str]) -> dict[str, str]:
    """Those of these keys, by identity, whose object is no item."""
    if left := {work.identity(key): key for key in keys}:
        # Most are neighbours, and to name these would take three times as long. What is missed
        # is not saved either, as there is one item for an object.
        items = work.operation.items.filter(escaped=False).order_by("identity")
        near = items.filter(identity__gte=min(left), identity__lte=max(left))[: len(left)]
        for identity in near.values_list("identity", flat=True):
            left.pop(identity, None)
    return left


def absent(
    operation: CleanupOperation, row: R2Object, identity: str, span: int | None
) -> CleanupItem:
    return CleanupItem(
        operation=operation,
        key=row.key,
        identity=identity,
        span=span,
        project_id=row.project_id,
        size=row.size,
        etag=row.etag,
        last_modified=row.last_modified,
        found_in=FoundIn.TRACKED,
        evidence=_("tracked, and not in the listing"),
    )


def discover_outside(work: Work) -> None:
    """Rows of the project that no prefix covers: each key's own place is listed."""
    operation = work.operation
    rows = tracked_rows(operation).outside(operation.ranges)
    after = operation.cursor.get("outside", "")
    while chunk := list(rows.between(after, None).values_list("key", flat=True)[:LONE_KEYS]):
        after = chunk[-1]
        save_alone(work, chunk, span=len(operation.ranges), outside=after)
        work.breathe()


def save_alone(work: Work, keys: Sequence[str], **where: object) -> None:
    """Items of these tracked keys, each looked for at the places of all its spellings."""
    operation = work.operation
    found = work.find(keys) if keys else {}
    here = [found[work.identity(key)] for key in keys if work.identity(key) in found]
    items = judged(work, here, None)
    with transaction.atomic():
        operation.renew(headway=progress.found(operation, map(vars, items)))
        save(items)
    left = [key for key in keys if work.identity(key) not in found]
    save_absent(work, left, None, work.move(**where))


def judged(work: Work, page: Sequence[Listed], span: int | None) -> list[CleanupItem]:
    """The listed objects that are the project's, or may be, as items; some queries in all."""
    return [CleanupItem(**values) for values in described(work, page, span)]


def described(work: Work, page: Sequence[Listed], span: int | None) -> Iterator[dict[str, Any]]:
    """The same as the values of the items' columns, which takes a fraction of the time."""
    operation = work.operation
    same = {field.attname: field.get_default() for field in CleanupItem._meta.concrete_fields}
    same |= {"operation_id": operation.pk, "span": span}
    same["present_at"] = same["changed_at"] = timezone.now()
    asked = operation.bucket, page, work.project, work.identity, asked_by(operation)
    for listed, rows, verdict in verdicts(*asked):
        if verdict.claim is not Claim.ELSEWHERE:
            yield same | present(work, listed, rows, verdict, span)


def verdicts(
    bucket: str, page: Sequence[Listed], project: Deleted, identity: Identity, asking: Q
) -> Iterator[tuple[Listed, Sequence[Row], Verdict]]:
    """Of each listed object its tracking rows, as `to_judge` gives them, and whether it is the
    project's; `asking` are cleanups that keep nothing from this look, see open_decisions.py."""
    readings = layouts().readings_of(listed.key for listed in page)
    rows = to_judge(R2Object.objects.in_bucket(bucket), readings, identity)
    alive = alive_among(readings.values(), named_in(chain.from_iterable(rows.values())))
    found = {identity(listed.key): listed for listed in page}
    keeping = undecided_among(bucket, project.project_id, readings, rows, found, identity, asking)
    keeping |= ask_keeper().find_acknowledged(bucket, page)
    for listed in page:
        its_rows = rows.get(identity(listed.key), ())
        time = listed.last_modified
        verdict = judge(project, readings[listed.key], its_rows, time, alive, listed)
        if verdict.claim is Claim.OWNED and listed.key in keeping:
            verdict = Verdict(Claim.PROTECTED, verdict.evidence, keeping[listed.key])
        yield listed, its_rows, verdict


def undecided_among(
    bucket: str,
    project_id: str,
    readings: Mapping[str, Readings],
    rows: Mapping[str, Sequence[Row]],
    found: Mapping[str, Listed],
    identity: Identity,
    asking: Q,
) -> dict[str, str]:
    """Which of these keys a blocked cleanup covers too, or a deleted row gave to another project,
    and why that keeps them. Rows and objects are given by identity."""
    kept = find_untracked(bucket, unsure_among(readings, rows, found, identity), project_id)
    return kept | find_undecided(bucket, owners_of(readings, rows, found, identity), asking)


def owners_of(
    readings: Mapping[str, Readings],
    rows: Mapping[str, Sequence[Row]],
    found: Mapping[str, Listed],
    identity: Identity,
) -> dict[str, Owners]:
    """By key, the projects whose cleanups may take the object."""
    return {
        key: possible_owners(ways, rows.get(identity(key), ()), found.get(identity(key)))
        for key, ways in readings.items()
    }


def find_owners(
    bucket: str,
    keys: Iterable[str],
    identity: Identity,
    found: Mapping[str, Listed],
    without: Collection[int] = (),
) -> dict[str, Owners]:
    """The same as the rows of all spellings say now, or would say without some of them."""
    readings = layouts().readings_of(keys)
    rows = {
        name: [row for row in its_rows if row.pk not in without]
        for name, its_rows in rows_by_identity(bucket, readings, identity).items()
    }
    return owners_of(readings, rows, found, identity)


class Tracked(NamedTuple):
    """A `Row` that is no more than that."""

    key: str
    project_id: str | None
    source: str
    state: str
    upload_id: UUID | None
    size: int | None
    etag: str
    last_modified: datetime | None


def to_judge(
    rows: R2ObjectQuerySet, keys: Iterable[str], identity: Identity
) -> Mapping[str, Sequence[Row]]:
    """The rows of these keys by identity, with nothing but what `Tracked` has, as whole ones take
    ten times as long."""
    found = spelled(rows, keys, identity).values_list(*Tracked._fields)
    return by_identity(map(Tracked._make, found), identity)


def rows_by_identity(
    bucket: str, keys: Iterable[str], identity: Identity
) -> Mapping[str, Sequence[R2Object]]:
    """The tracking rows of these keys, by what the store takes for the same key."""
    return by_identity(spelled(R2Object.objects.in_bucket(bucket), keys, identity), identity)


def by_identity(rows: Iterable[T], identity: Identity) -> Mapping[str, Sequence[T]]:
    """Each spelling of a key can have a row. All of them are judged: they can name two owners."""
    found = defaultdict[str, list[T]](list)
    for row in rows:
        found[identity(row.key)].append(row)
    return dict(found)


def spelled(rows: R2ObjectQuerySet, keys: Iterable[str], identity: Identity) -> R2ObjectQuerySet:
    names = {s for key in keys if storable(key) for s in spellings(key, identity)}
    return rows.filter(key__any_of=names)


def present(
    work: Work, listed: Listed, rows: Sequence[Row], verdict: Verdict, span: int | None
) -> dict[str, Any]:
    key, outcome, reason = escape(listed.key), Outcome.PLANNED, verdict.reason
    escaped = not storable(listed.key)
    if verdict.claim is Claim.PROTECTED:
        outcome = Outcome.PROTECTED
    elif left_out := unasked(work.operation, rows, span):
        outcome, reason = Outcome.PROTECTED, left_out
    elif escaped:
        outcome = Outcome.FAILED
        reason = _("No request can name this key. Delete it in the Cloudflare dashboard.")
    return {
        "key": key,
        "escaped": escaped,
        "identity": work.identity(key),
        "project_id": rows[0].project_id if rows else work.operation.project_id,
        "size": listed.size,
        "etag": listed.etag,
        "last_modified": listed.last_modified,
        "found_in": FoundIn.BOTH if rows else FoundIn.LISTED,
        "evidence": verdict.evidence,
        "reason": reason,
        "outcome": outcome,
    }


def unasked(operation: CleanupOperation, rows: Sequence[Row], span: int | None) -> str:
    """Why the discovery that was chosen leaves this object out, or nothing: it is shown all the
    same, or what is left behind would be in no count."""
    tracked = any(row.project_id == operation.project_id for row in rows)
    if operation.discovery == Discovery.TRACKED and not tracked:
        left_out = _("Only tracked objects were asked for, and the project tracks no such object.")
    elif operation.discovery == Discovery.LISTED and span is None:
        left_out = _("Only listed objects were asked for, and no listed prefix covers this one.")
    else:
        return ""
    return left_out + " " + _("Ask for a cleanup of both to have it deleted.")


def save(items: list[CleanupItem]) -> None:
    insert_new(items)
