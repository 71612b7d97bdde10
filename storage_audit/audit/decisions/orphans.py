"""The deletion of orphans, asked for."""

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, Sum
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from storage_audit.audit import installation
from storage_audit.audit.decisions.base import (
    CHUNK,
    Decision,
    Findings,
    Left,
    State,
    as_it_is,
    chosen,
)
from storage_audit.audit.modes import Mode, usual
from storage_audit.bucket.listing import Identity, nfc
from storage_audit.conf import conf
from storage_audit.fields import spellings
from storage_audit.findings import FindingQuerySet
from storage_audit.models import CleanupItem, CleanupOperation, Finding
from storage_audit.querysets import read_in_steps

Kind, Trigger = CleanupOperation.Kind, CleanupOperation.Trigger
NOBODY = UUID(int=0)
FACTS = ("key", "project_id", "size", "etag", "last_modified", "evidence")


class Deletion(NamedTuple):
    """How many objects would be asked to be deleted, and how many findings left: the first of
    these, and why."""

    objects: int
    bytes: int
    stay: int
    left: list[Left]


def would_delete(findings: Findings, examples: int) -> Deletion:
    """What `delete_orphans` would do, as far as the tables know: nothing is asked of the store."""
    found, whole = chosen(findings), Deletion(0, 0, 0, [])
    for bucket in buckets_of(found):
        there, deletions = found.filter(bucket=bucket), deletions_open(bucket=bucket)
        judged = with_judgement(there)
        going = Q(may_go=True) & ~under_way(there, deletions)
        sums = judged.filter(going).aggregate(objects=Count("pk"), bytes=Sum("size", default=0))
        some = with_deletions(judged.exclude(going)[: examples - len(whole.left)], deletions)
        whole = Deletion(
            whole.objects + sums["objects"],
            whole.bytes + sums["bytes"],
            whole.stay + judged.count() - sums["objects"],
            whole.left + [Left(one.key, why_it_stays(one)) for one in some],
        )
    return whole


def buckets_of(found: FindingQuerySet) -> list[str]:
    return list(found.order_by("bucket").values_list("bucket", flat=True).distinct())


def delete_orphans(
    findings: Findings, *, dry_run: bool = False, mode: Mode | None = None
) -> Decision:
    """Ask for the deletion of those that may go: an operation for each bucket, which the caller
    enqueues. Raises Mismatch and StoreError."""
    found, decision = chosen(findings), Decision(is_plan=dry_run)
    identities = {bucket: installation.check(bucket).identity for bucket in buckets_of(found)}
    values = {"dry_run": dry_run, **(mode or usual())._asdict()}
    with transaction.atomic():
        for bucket, identity in identities.items():
            gather(found.filter(bucket=bucket), bucket, identity, decision, values)
    return decision


def gather(
    found: FindingQuerySet, bucket: str, identity: Identity, decision: Decision, values: Any
) -> None:
    """Make the orphans that may go items of an operation, if there are any."""
    operation, owners = None, set()
    # Not this one, to which two findings of one object belong.
    deletions = deletions_open(bucket=bucket)
    judged = read_in_steps(with_judgement(found))
    while some := with_deletions(islice(judged, CHUNK), deletions):
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
    """Each with whether it may go, but for deletions that have it already."""
    may_go = Exists(Finding.objects.deletable().filter(pk=OuterRef("pk")))
    return found.annotate(may_go=may_go).order_by("key", "pk")


def deletions_open(**where: str) -> list[UUID]:
    deletions = CleanupOperation.objects.open().filter(kind=Kind.ORPHANS, dry_run=False)
    return list(deletions.filter(**where).values_list("pk", flat=True))


def with_deletions(found: Iterable[Any], deletions: list[UUID]) -> list[Any]:
    """Each with the operation among these that is to delete it."""
    some, by = list(found), dict[tuple[str, str], UUID]()
    # By its identity an index leads to an item, which may be another spelling of the finding's key.
    identities = set[str]().union(*(spellings(one.key) for one in some))
    items = CleanupItem.objects.open().filter(operation__in=deletions, identity__any_of=identities)
    names = items.values_list("operation__bucket", "operation", "identity", "key")
    for bucket, operation, identity, key in names:
        by[bucket, identity] = by[bucket, key] = operation
    for one in some:
        one.deleted_by = by.get((one.bucket, one.key))
    return some


def under_way(found: FindingQuerySet, deletions: list[UUID]) -> Q:
    """Those of one bucket that one of these operations is to delete."""
    # Where it sees that there is none, Django 6.1 gives 0 for the subquery, and no NULL.
    items = CleanupItem.objects.open().filter(operation__in=deletions or [NOBODY])
    is_known = Exists(items.filter(identity=OuterRef("key")))
    return Q(is_known) | Q(key__any_of=respelled(found, deletions))


def respelled(found: FindingQuerySet, deletions: list[UUID]) -> list[str]:
    """Keys under way by another spelling: no index leads from a key to an item."""
    keys, each = list[str](), read_in_steps(found.only("bucket", "key"))
    odd = (one for one in each if one.key != nfc(one.key))
    while deletions and (some := with_deletions(islice(odd, CHUNK), deletions)):
        keys += [one.key for one in some if one.deleted_by]
    return keys


def why_it_stays(finding: Any) -> str:
    """Nothing if it may go; of one that may not go yet, also when it may."""
    if finding.may_go:
        by = finding.deleted_by
        return _("Operation %s is to delete it already.") % by if by else ""
    if finding.kind != Finding.Kind.ORPHANED:
        return _("It is %s, and no orphan.") % Finding.Kind(finding.kind).label
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
