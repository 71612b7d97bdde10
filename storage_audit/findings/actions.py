"""Misnamed objects and stale uploads: what a person may have done about them at once."""

from django.utils.translation import gettext as _

from storage_audit.findings import rename
from storage_audit.findings.abort_uploads import abort
from storage_audit.findings.action_result import Decision, Findings, Result, chosen


def rename_objects(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Give the objects keys of the current layout; a dry run tells which. Raises CannotConclude and
    StoreError; then it can be called again, and goes on."""
    found, decision = chosen(findings).order_by("bucket", "key"), Decision(is_plan=dry_run)
    for one in rename.plan(found) if dry_run else rename.rename(found):
        if not decision.leave(one.finding, one.objection):
            decision.results.append(Result(one.old, one.new))
    decision.done = len(decision.results)
    return decision


def abort_uploads(findings: Findings, *, dry_run: bool = False) -> Decision:
    """Abort these very uploads. Raises CannotConclude and StoreError; then it can be called
    again."""
    found, decision = chosen(findings).order_by("bucket", "key", "pk"), Decision(is_plan=dry_run)
    for one in abort(found, dry_run=dry_run):
        if not decision.leave(one.finding, one.objection):
            result = one.resolution or _("would be aborted")
            decision.results.append(Result(one.finding.key, result))
    decision.done = len(decision.results)
    return decision
