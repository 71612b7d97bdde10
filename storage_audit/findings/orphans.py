"""The deletion of orphans, asked for, and the findings that a cleanup settles."""

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import Identity
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.modes import Mode, usual
from storage_audit.cleanup.open_decisions import Owners, find_covering, why_covered
from storage_audit.conf import conf
from storage_audit.findings.action_result import (
    CHUNK,
    Decision,
    Findings,
    Skipped,
    State,
    as_it_is,
    chosen,
)
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.reading import read_in_steps

Kind, Trigger = CleanupOperation.Kind, CleanupOperation.Trigger
FACTS = ("key", "project_id", "size", "etag", "last_modified", "evidence")


class Deletion(NamedTuple):
    """Which findings' objects would be asked to be deleted, and how many findings left: the first
    of these, and why."""

    going: list[int]
    bytes: int
    stay: int
    left: list[Skipped]


def would_delete(findings: Findings, examples: int) -> Deletion:
    """What `delete_orphans` would do, as far as the tables know: nothing is asked of the store."""
    found, whole = chosen(findings), Deletion([], 0, 0, [])
    for bucket in buckets_of(found):
        there = found.filter(bucket=bucket)
        judged = with_judgement(there)
        covered = Finding.objects.covered() | Q(pk__any_of=covered_otherwise_spelled(there))
        may_go = Q(may_go=True) & ~covered
        going = list(read_in_steps(judged.filter(may_go).values_list("pk", "size")))
        some = with_cleanups(judged.exclude(may_go)[: examples - len(whole.left)])
        whole = Deletion(
            whole.going + [pk for pk, _size in going],
            whole.bytes + sum(size or 0 for _pk, size in going),
            whole.stay + judged.count() - len(going),
            whole.left + [Skipped(one.key, why_it_stays(one)) for one in some],
        )
    return whole


def buckets_of(found: FindingQuerySet) -> list[str]:
    return list(found.order_by("bucket").values_list("bucket", flat=True).distinct())


def delete_orphans(
    findings: Findings, *, dry_run: bool = False, mode: Mode | None = None
) -> Decision:
    """Ask for the deletion of those that may go: an operation for each bucket, which the caller
    enqueues. Raises CannotConclude and StoreError."""
    found, decision = chosen(findings), Decision(is_plan=dry_run)
    identities = {bucket: bucket_marker.check(bucket).identity for bucket in buckets_of(found)}
    values = {"dry_run": dry_run, **(mode or usual())._asdict()}
    with transaction.atomic():
        for bucket, identity in identities.items():
            gather(found.filter(bucket=bucket), bucket, identity, decision, values)
    return decision


def gather(
    found: FindingQuerySet, bucket: str, identity: Identity, decision: Decision, values: Any
) -> None:
    """Make the orphans that may go items of an operation, if there are any."""
    operation: CleanupOperation | None = None
    owners = set()
    judged = read_in_steps(with_judgement(found))
    # Two findings of one object may both belong to this operation.
    while some := with_cleanups(islice(judged, CHUNK), operation):
        may_go = [one for one in some if not decision.leave(one, why_it_stays(one))]
        if not may_go:
            continue
        operation = operation or request(bucket, may_go[0].project_id, values)
        owners |= {finding.project_id for finding in may_go}
        items = [item_of(operation, finding, identity) for finding in may_go]
        CleanupItem.objects.bulk_create(items, ignore_conflicts=True)
        decision.done += len(may_go)
    if operation:
        decision.operations.append(operation)
        if len(owners) > 1:
            operation.change(Q(), project_id=None)


def with_judgement(found: FindingQuerySet) -> FindingQuerySet:
    """Each with whether it may go, unless an open cleanup covers it."""
    ripe = Finding.objects.open().filter(Finding.objects.ripe())
    may_go = Exists(ripe.filter(pk=OuterRef("pk")))
    return found.annotate(may_go=may_go).order_by("key", "pk")


def with_cleanups(found: Iterable[Any], asking: CleanupOperation | None = None) -> list[Any]:
    """Each with the open cleanup that covers it, if one does. All are of one bucket."""
    some = list(found)
    covering = find_covering(some[0].bucket, owners_of(some), asking) if some else {}
    for one in some:
        one.covered_by = covering.get(one.key)
    return some


def owners_of(found: Iterable[Finding]) -> dict[str, Owners]:
    """What the key may be read as was decided by the scan, which knew the row as well."""
    return {one.key: Owners({one.project_id} if one.project_id else set()) for one in found}


def covered_otherwise_spelled(found: FindingQuerySet) -> list[int]:
    """Those whose key or project an open cleanup spells with other code points, which the database
    does not see."""
    each = read_in_steps(found.only("bucket", "key", "project_id"))
    odd = (one for one in each if not f"{one.key}{one.project_id}".isascii())
    covered = list[int]()
    while some := with_cleanups(islice(odd, CHUNK)):
        covered += [one.pk for one in some if one.covered_by]
    return covered


def why_it_stays(finding: Any) -> str:
    """Nothing if it may go; of one that may not go yet, also when it may."""
    if finding.covered_by and finding.state == State.OPEN:
        return why_covered(finding.covered_by)
    if finding.may_go:
        return ""
    if finding.kind != Finding.Kind.ORPHANED:
        return _("It is %s, not orphaned.") % Finding.Kind(finding.kind).label
    if finding.escaped:
        return _("No request can name this key. Delete it in the Cloudflare dashboard.")
    if finding.state != State.OPEN:
        return as_it_is(finding)
    reasons = filter(None, [seen_once(finding), too_young(finding)])
    return " ".join(reasons) or _("It changed just now. Look again.")


def seen_once(finding: Finding) -> str:
    then = finding.first_seen_at + conf().orphan_gap
    if finding.last_seen_at >= then:
        return ""
    text = _(
        "It is seen only since %(first)s: it may go when a complete scan that begins after %(then)s"
        " sees it again."
    )
    return text % {"first": shown(finding.first_seen_at), "then": shown(then)}


def too_young(finding: Finding) -> str:
    if finding.last_modified is None:
        return _("Nobody knows how old it is.")
    then = finding.last_modified + conf().orphan_age
    if then <= timezone.now():
        return ""
    text = _("It is younger than allowed: it may go after %s.")
    # English times end with a full stop, too.
    return text % shown(then).rstrip(".")


def shown(moment: datetime) -> str:
    return date_format(localtime(moment), "DATETIME_FORMAT")


def request(bucket: str, project_id: str | None, values: Any) -> CleanupOperation:
    return CleanupOperation.objects.request(
        kind=Kind.ORPHANS,
        bucket=bucket,
        project_id=project_id,
        trigger=Trigger.DRY_RUN if values["dry_run"] else Trigger.ORPHANED,
        **values,
    )


def item_of(operation: CleanupOperation, finding: Finding, identity: Identity) -> CleanupItem:
    return CleanupItem(
        operation=operation,
        identity=identity(finding.key),
        # Until the plan has seen it in the bucket.
        found_in=CleanupItem.FoundIn.TRACKED,
        **{name: getattr(finding, name) for name in FACTS},
    )


def resolve_gone(operation: CleanupOperation, gone: CleanupItemQuerySet, **kwargs: object) -> None:
    """Close what scans found wrong with these objects, unless a scan that began after this look
    saw them; an unfinished upload is no object."""
    found = Finding.objects.filter(
        bucket=operation.bucket, last_seen_at__lte=operation.cursor["began"]
    ).exclude(kind=Finding.Kind.UNFINISHED)
    if operation.kind == Kind.OBJECTS:
        # A renaming deletes the old object, and says what became of it when it has ended.
        found = found.exclude(kind=Finding.Kind.MISNAMED)
    tracked = R2Object.objects.filter(bucket=OuterRef("bucket"), key=OuterRef("key"))
    # Of a row that is another project's the object is still missing.
    found = found.exclude(Exists(tracked), kind=Finding.Kind.MISSING)
    for items, text in (
        (gone.filter(calls__gt=0), _("deleted by operation %s")),
        (gone.filter(calls=0), _("seen gone by operation %s")),
    ):
        for escaped in (False, True):
            names = items.filter(escaped=escaped).names()
            alike = found.filter(escaped=escaped, key__in=names)
            alike.resolve(text % operation.pk, operation.requested_by)
