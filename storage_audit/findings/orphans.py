"""Requests the deletion of orphans, and resolves the findings that a cleanup settles."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import KeyIdentity
from storage_audit.cleanup.discovery_and_strategy import Mode, default_mode
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.open_decisions import PossibleOwners, covered_reason, find_covering
from storage_audit.conf import conf
from storage_audit.display_formats import format_utc
from storage_audit.findings.action_result import (
    FINDINGS_PER_BATCH,
    Decision,
    Findings,
    Skipped,
    State,
    select_findings,
    state_reason,
)
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.read_in_steps import read_in_steps

Kind, Trigger = Cleanup.Kind, Cleanup.Trigger
COPIED_FIELDS = ("key", "project_id", "size", "etag", "last_modified")


class DeletionPreview(NamedTuple):
    """Which findings' objects would be deleted, and whose they are; how many would be skipped, and
    the first of these with the reason."""

    to_delete: list[int]
    total_bytes: int
    projects: set[str | None]
    skipped_count: int
    skipped: list[Skipped]


def deletion_preview(findings: Findings, examples: int) -> DeletionPreview:
    """What `delete_objects` would do as far as the tables know; the store is not asked."""
    found, whole = select_findings(findings), DeletionPreview([], 0, set(), 0, [])
    for bucket in buckets_of(found):
        there = found.filter(bucket=bucket)
        judged = annotate_deletable(there)
        covered = Finding.objects.covered() | Q(pk__any_of=find_covered_spellings(there))
        may_go = Q(may_go=True) & ~covered
        values = judged.filter(may_go).values_list("pk", "size", "project_id")
        going = list(read_in_steps(values))
        some = attach_cleanups(judged.exclude(may_go)[: examples - len(whole.skipped)])
        whole = DeletionPreview(
            whole.to_delete + [pk for pk, _size, _project in going],
            whole.total_bytes + sum(size or 0 for _pk, size, _project in going),
            whole.projects | {project for _pk, _size, project in going},
            whole.skipped_count + judged.count() - len(going),
            whole.skipped + [Skipped(one.key, orphan_skip_reason(one)) for one in some],
        )
    return whole


def buckets_of(found: FindingQuerySet) -> list[str]:
    return list(found.order_by("bucket").values_list("bucket", flat=True).distinct())


def delete_objects(
    findings: Findings, *, dry_run: bool = False, mode: Mode | None = None
) -> Decision:
    """Request a cleanup for each bucket, which the caller enqueues, of those that may be deleted.
    Raises CannotConclude and StoreError."""
    found, decision = select_findings(findings), Decision(is_preview=dry_run)
    identities = {
        bucket: bucket_marker.check_bucket(bucket).identity for bucket in buckets_of(found)
    }
    values = {"dry_run": dry_run, **(mode or default_mode())._asdict()}
    with transaction.atomic():
        for bucket, identity in identities.items():
            gather_items(found.filter(bucket=bucket), bucket, identity, decision, values)
    return decision


def gather_items(
    found: FindingQuerySet, bucket: str, identity: KeyIdentity, decision: Decision, values: Any
) -> None:
    """Make the orphans that may go items of a cleanup, if there are any."""
    cleanup: Cleanup | None = None
    owners = set()
    judged = read_in_steps(annotate_deletable(found))
    # Two findings of one object may both belong to this cleanup.
    while some := attach_cleanups(islice(judged, FINDINGS_PER_BATCH), cleanup):
        may_go = [one for one in some if not decision.skip(one, orphan_skip_reason(one))]
        if not may_go:
            continue
        cleanup = cleanup or request_orphan_cleanup(bucket, may_go[0].project_id, values)
        owners |= {finding.project_id for finding in may_go}
        items = [new_item(cleanup, finding, identity) for finding in may_go]
        CleanupItem.objects.bulk_create(items, ignore_conflicts=True)
        decision.done += len(may_go)
    if cleanup:
        decision.cleanups.append(cleanup)
        if len(owners) > 1:
            cleanup.change_if(Q(), project_id=None)


def annotate_deletable(found: FindingQuerySet) -> FindingQuerySet:
    """Each with whether it may go, unless an open cleanup covers it."""
    ripe = Finding.objects.open().filter(Finding.objects.confirmed_orphans())
    may_go = Exists(ripe.filter(pk=OuterRef("pk")))
    return found.annotate(may_go=may_go).order_by("key", "pk")


def attach_cleanups(found: Iterable[Any], asking: Cleanup | None = None) -> list[Any]:
    """Each with the open cleanup that covers it, if one does. All are of one bucket."""
    some = list(found)
    covering = find_covering(some[0].bucket, owners_of(some), asking) if some else {}
    for one in some:
        one.covered_by = covering.get(one.key)
    return some


def owners_of(found: Iterable[Finding]) -> dict[str, PossibleOwners]:
    """The possible owners that the scan decided on, as it knew the row as well."""
    return {one.key: PossibleOwners({one.project_id} if one.project_id else set()) for one in found}


def find_covered_spellings(found: FindingQuerySet) -> list[int]:
    """Those whose key or project an open cleanup spells with other code points, which the database
    does not see."""
    each = read_in_steps(found.only("bucket", "key", "project_id"))
    odd = (one for one in each if not f"{one.key}{one.project_id}".isascii())
    covered = list[int]()
    while some := attach_cleanups(islice(odd, FINDINGS_PER_BATCH)):
        covered += [one.pk for one in some if one.covered_by]
    return covered


def orphan_skip_reason(finding: Any) -> str:
    """Nothing if it may be deleted; otherwise why not, and from when on it may."""
    if finding.covered_by and finding.state == State.OPEN:
        return covered_reason(finding.covered_by)
    if finding.may_go:
        return ""
    if finding.kind != Finding.Kind.ORPHANED:
        return _("Not a leftover file, but: %s.") % Finding.Kind(finding.kind).label
    if finding.escaped:
        return _("No request can use this name. Delete the file in the Cloudflare dashboard.")
    if finding.state != State.OPEN:
        return state_reason(finding)
    return too_early_reason(finding) or _("Changed just now. Try again.")


def too_early_reason(finding: Finding) -> str:
    """It was not seen twice, or is too new, or both."""
    if finding.last_modified is None:
        return _("Can't be deleted: its age is unknown.")
    seen_twice_from = finding.first_seen_at + conf().orphan_gap
    old_from = finding.last_modified + conf().orphan_age
    is_seen_once, is_new = finding.last_seen_at < seen_twice_from, old_from > timezone.now()
    if is_seen_once and is_new:
        text = _("Too new: can be deleted after %s, once another complete scan finds it again.")
        return text % format_utc(max(seen_twice_from, old_from))
    if is_seen_once:
        text = _("Can be deleted once a complete scan that starts after %s finds it again.")
        return text % format_utc(seen_twice_from)
    return _("Too new: can be deleted after %s.") % format_utc(old_from) if is_new else ""


def request_orphan_cleanup(bucket: str, project_id: str | None, values: Any) -> Cleanup:
    return Cleanup.objects.request(
        kind=Kind.ORPHANS,
        bucket=bucket,
        project_id=project_id,
        trigger=Trigger.DRY_RUN if values["dry_run"] else Trigger.ORPHANED,
        **values,
    )


def new_item(cleanup: Cleanup, finding: Finding, identity: KeyIdentity) -> CleanupItem:
    return CleanupItem(
        cleanup=cleanup,
        identity=identity(finding.key),
        # Until the plan has seen it in the bucket.
        found_in=CleanupItem.FoundIn.TRACKED,
        owner_evidence=finding.evidence,
        **{name: getattr(finding, name) for name in COPIED_FIELDS},
    )


def resolve_gone_objects(cleanup: Cleanup, gone: CleanupItemQuerySet, **kwargs: object) -> None:
    """Resolve findings about objects that a cleanup saw gone, unless a scan that began later saw
    them. An unfinished upload is no object."""
    found = Finding.objects.filter(
        bucket=cleanup.bucket, last_seen_at__lte=cleanup.position.began_at
    ).exclude(kind=Finding.Kind.UNFINISHED)
    if cleanup.kind == Kind.OBJECTS:
        # A renaming deletes the old object, and resolves the finding itself when it has ended.
        found = found.exclude(kind=Finding.Kind.MISNAMED)
    tracked = R2Object.objects.filter(bucket=OuterRef("bucket"), key=OuterRef("key"))
    # A row of another project is still missing its object.
    found = found.exclude(Exists(tracked), kind=Finding.Kind.MISSING)
    for items, text in (
        (gone.filter(calls__gt=0), _("deleted by cleanup %s")),
        (gone.filter(calls=0), _("confirmed gone by cleanup %s")),
    ):
        for escaped in (False, True):
            names = items.filter(escaped=escaped).keys_and_identities()
            alike = found.filter(escaped=escaped, key__in=names)
            alike.resolve(text % cleanup.pk, cleanup.requested_by)
