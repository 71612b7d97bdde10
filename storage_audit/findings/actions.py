"""Actions on findings that run at once: rename misnamed objects, abort unfinished uploads."""

from django.utils.translation import gettext as _

from storage_audit.findings import rename
from storage_audit.findings.abort_uploads import abort_each
from storage_audit.findings.action_result import Decision, FindingResult, Findings, select_findings


def rename_objects(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Give the objects keys of the current key format; a dry run says which. Raises CannotConclude
    and StoreError; call it again to go on."""
    found, decision = (
        select_findings(findings).order_by("bucket", "key"),
        Decision(is_preview=dry_run),
    )
    for one in rename.plan_renames(found) if dry_run else rename.rename_each(found):
        if not decision.skip(one.finding, one.objection):
            decision.results.append(FindingResult(one.old, one.new))
    decision.done = len(decision.results)
    return decision


def abort_uploads(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Abort exactly these uploads. Raises CannotConclude and StoreError; call it again to go on."""
    found, decision = (
        select_findings(findings).order_by("bucket", "key", "pk"),
        Decision(is_preview=dry_run),
    )
    for one in abort_each(found, dry_run=dry_run):
        if not decision.skip(one.finding, one.objection):
            result = one.resolution or _("would be aborted")
            decision.results.append(FindingResult(one.finding.key, result))
    decision.done = len(decision.results)
    return decision
