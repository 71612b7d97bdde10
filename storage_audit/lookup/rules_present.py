"""Why an object is still there, by all that we know."""

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.open_decisions import covered_reason
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup.facts import (
    FULL_ACCESS,
    Answer,
    Explanation,
    ObjectFacts,
    ProjectState,
    ProjectStatus,
    format_time,
)
from storage_audit.lookup.rules_gone import deleted_owners, uncertainty_text
from storage_audit.models import R2Object
from storage_audit.ownership.owner import Ownership, row_provenance, too_many_owners_reason

Outcome = CleanupItem.Outcome
State = R2Object.State


def explain_failed(facts: ObjectFacts) -> Answer:
    item = latest_item(facts)
    if not item or item.outcome != Outcome.FAILED or not item.cleanup.is_deletion:
        return None
    text = _("Cleanup %(cleanup)s could not delete it: %(reason)s %(next)s")
    words = {"cleanup": item.cleanup_id, "reason": item.reason or item.store_answer}
    text %= {**words, "next": next_attempt_text(item.cleanup)}
    return Explanation(text + uncertainty_text(facts), item.cleanup)


def next_attempt_text(cleanup: Cleanup) -> str:
    if cleanup.status == Cleanup.Status.SUPERSEDED:
        return _("That cleanup was ended, and is not tried again: verify the project to see.")
    if due := cleanup.next_attempt_at:
        return _("It is tried again on %s; its page says what stands in the way.") % format_time(
            due
        )
    return _("Its page says what stands in the way, and lets you try again.")


def explain_kept(facts: ObjectFacts) -> Answer:
    item = latest_item(facts)
    if not item or item.outcome != Outcome.KEPT:
        return None
    owner = facts.projects.get(item.cleanup.project_id or "")
    if item.cleanup.is_deletion and owner and owner.state is ProjectState.ALIVE:
        # Nothing is to be cleaned up any more.
        return None
    if item.cleanup.is_deletion:
        text = _(
            "Cleanup %(cleanup)s kept it: %(reason)s Once that is settled, verify that cleanup,"
            " or clean up after its project again."
        )
    elif owner and owner.state is ProjectState.DELETED:
        text = _(
            "A cleanup would keep it, says cleanup %(cleanup)s: %(reason)s Once that is"
            " settled, clean up after the project again."
        )
    else:
        text = _(
            "A cleanup would keep it, says cleanup %(cleanup)s: %(reason)s Settle that before"
            " the project is deleted."
        )
    words = {"cleanup": item.cleanup_id, "reason": item.reason}
    return Explanation(text % words + uncertainty_text(facts), item.cleanup)


def explain_verification(facts: ObjectFacts) -> Answer:
    item = latest_item(facts)
    if not item or item.outcome != Outcome.FAILED or item.cleanup.is_deletion:
        return None
    text = _(
        "Verification %(cleanup)s said on %(at)s: %(reason)s Look into the bucket, to see whether"
        " that is still so."
    )
    words = {
        "cleanup": item.cleanup_id,
        "at": format_time(item.changed_at),
        "reason": item.reason,
    }
    return Explanation(text % words, item.cleanup)


def latest_item(facts: ObjectFacts) -> CleanupItem | None:
    """The latest item, unless the object was tracked again since."""
    item = next(iter(facts.items), None)
    row = facts.row
    return None if item and row and row.created_at > item.changed_at else item


def explain_ignored(facts: ObjectFacts) -> Answer:
    finding = facts.finding
    if not finding or finding.state != Finding.State.IGNORED:
        return None
    text = _("%(who)s said on %(at)s that it may stay: %(note)s Reopen the finding to decide anew.")
    words = {
        "who": finding.decided_by or _("Somebody"),
        "at": format_time(finding.decided_at or finding.last_seen_at),
        "note": finding.note,
    }
    return Explanation(text % words, finding=finding)


FINDING_TEXTS = {
    Kind.ORPHANED: gettext_lazy(
        "Its project is no more, and no cleanup took it; a scan found it on %s. Delete the orphan"
        " from its finding, or assign it to a project."
    ),
    Kind.MISSING: gettext_lazy(
        "A row tells of it, but the scan of %s did not show it. Look into the bucket; if it is not"
        " there, remove the row from its finding."
    ),
    Kind.UNTRACKED: gettext_lazy(
        "It is in the bucket by the scan of %s, which saw no row that tracks it, though its project"
        " lives. Track it from its finding, or begin a backfill."
    ),
    Kind.CHANGED: gettext_lazy(
        "It is another object than its row says, by the scan of %s. Track it from its finding."
    ),
    Kind.AMBIGUOUS: gettext_lazy(
        "It could be several projects’, so no cleanup may touch it; a scan found it on %s. Assign"
        " it to the one that it belongs to."
    ),
    Kind.UNRECOGNISED: gettext_lazy(
        "No key format reads this key, so no cleanup may touch it; a scan found it on %s. Ignore"
        " it, assign it to a project, or add its key format."
    ),
    Kind.MISNAMED: gettext_lazy(
        "Its key has the prefix of ids twice, by an old mistake; a scan found it on %s. Rename it"
        " from its finding. It goes with its project all the same."
    ),
    Kind.UNSTORABLE: gettext_lazy(
        "No request can name this key, so nothing here can delete it; a scan found it on %s. Delete"
        " it in the Cloudflare dashboard."
    ),
    Kind.UNFINISHED: gettext_lazy(
        "It is no object but an upload that nobody completed, found on %s. Abort it from its"
        " finding."
    ),
}


def explain_finding(facts: ObjectFacts) -> Answer:
    finding = facts.finding
    if not finding:
        return None
    settled = {
        Kind.MISSING: facts.listed,
        Kind.UNTRACKED: facts.row,
        # A scan saw it before the cleanup was asked for.
        Kind.ORPHANED: facts.covered_by,
    }
    if settled.get(Kind(finding.kind)):
        return None
    at = format_time(finding.last_seen_at)
    if finding.kind == Kind.AMBIGUOUS and facts.projects and not living_owners(facts):
        return explain_ambiguous(facts, finding, at)
    return Explanation(FINDING_TEXTS[Kind(finding.kind)] % at, finding=finding)


def explain_ambiguous(facts: ObjectFacts, finding: Finding, at: str) -> Explanation:
    """It can be assigned only to a live project, and none of these may live."""
    if not facts.access.rows:
        # A row may say whose it is.
        text = _(
            "It could be several projects’; a scan found it on %s. Its finding says what can be"
            " done."
        )
        return Explanation(text % at, finding=finding)
    if gone := owner_in_state(facts, ProjectState.VANISHED):
        ended = gone.project_id
        text = _(
            "It could be several projects’, and nobody said that %(project)s was deleted, so no"
            " cleanup may touch it; a scan found it on %(at)s. If that project was meant to go,"
            " clean up after it as a deleted project."
        )
    elif ended := owning_project_id(facts):
        text = _(
            "It could be several projects’, none of which lives; a scan found it on %(at)s. A"
            " cleanup of one of them takes it: clean up after %(project)s as a deleted project."
        )
    else:
        text = _(
            "It could be several projects’, none of which lives; a scan found it on %(at)s."
            " %(reason)s"
        )
    words = {"project": ended, "at": at, "reason": last_verdict_reason(facts)}
    return Explanation(text % words, finding=finding, project_to_declare=ended)


def last_verdict_reason(facts: ObjectFacts) -> str:
    """By a cleanup of the project that was deleted last, which may delete what others kept."""
    now = timezone.now()
    last = max(facts.verdicts, key=lambda each: each.project.deleted_at or now)
    return last.verdict.reason


def owning_project_id(facts: ObjectFacts) -> str:
    """One of its projects, if there is one; preferably one that existed."""
    owners = [one.project for one in facts.verdicts if one.verdict.ownership is Ownership.OWNED]
    owners.sort(key=lambda standing: standing.known_project is None)
    return owners[0].project_id if owners else ""


def explain_failed_upload(facts: ObjectFacts) -> Answer:
    row = facts.row
    if not row or row.state not in (State.UPLOAD_FAILED, State.UPLOADING) or facts.listed:
        return None
    text = _(
        "Its last upload did not end well, on %s, so there may be no object. Look into the bucket;"
        " upload it again, or delete its row."
    )
    return Explanation(text % format_time(row.updated_at))


def explain_living_owner(facts: ObjectFacts) -> Answer:
    row, alive = facts.row, living_owners(facts)
    if row and (owner := facts.projects.get(row.project_id or "")) and owner in alive:
        evidence = row_provenance(row) or _("a backfill read it so")
        text = _(
            "It belongs to the live project %(project)s (%(evidence)s), and stays as long as that"
            " lives. To delete it alone, delete its row."
        )
        return Explanation(text % {"project": owner.project_id, "evidence": evidence})
    if not alive or (row and row_provenance(row)):
        return None
    text = _(
        "It may belong to the live project %s, so no cleanup of another touches it. No row says"
        " whose it is: begin a backfill, or assign it."
    )
    return Explanation(text % ", ".join(one.project_id for one in alive))


def living_owners(facts: ObjectFacts) -> list[ProjectStatus]:
    return [one for one in facts.projects.values() if one.state is ProjectState.ALIVE]


def explain_vanished_owner(facts: ObjectFacts) -> Answer:
    gone = owner_in_state(facts, ProjectState.VANISHED)
    if not gone:
        return None
    text = _(
        "Project %s is gone, but nobody said that it was deleted, so its objects are kept. If it"
        " was meant to go, clean up after it as a deleted project."
    )
    return Explanation(text % gone.project_id, project_to_declare=gone.project_id)


def explain_outside_plan(facts: ObjectFacts) -> Answer:
    """An open cleanup whose plan was frozen without this object."""
    cleanup = find_plan_without(facts)
    if not cleanup:
        return None
    if facts.row or facts.listed:
        text = _(
            "Cleanup %(cleanup)s of project %(project)s is %(status)s, and its plan does not have"
            " this, so it does not delete it. Once that cleanup is over, clean up after the project"
            " again."
        )
    else:
        text = _(
            "Cleanup %(cleanup)s of project %(project)s is %(status)s, and its plan does not have"
            " this. Look into the bucket: if it is there now, clean up after the project again once"
            " that cleanup is over."
        )
    words = {
        "cleanup": cleanup.pk,
        "project": cleanup.project_id,
        "status": cleanup.get_status_display(),
    }
    return Explanation(text % words, cleanup)


def find_plan_without(facts: ObjectFacts) -> Cleanup | None:
    # A deleted object in another spelling may be this one, unless something shows that this exists.
    others = [] if facts.row or facts.listed else facts.other_spellings
    owners, held = deleted_owners(facts), {item.cleanup_id for item in (*facts.items, *others)}
    return next(
        (
            cleanup
            for cleanup in facts.cleanups
            if cleanup.planned_at
            and cleanup.status not in Cleanup.FINISHED
            and cleanup.project_id in owners
            and cleanup.pk not in held
        ),
        None,
    )


def explain_covered(facts: ObjectFacts) -> Answer:
    cleanup = facts.covered_by
    if not cleanup or not (facts.row or facts.listed or facts.finding):
        return None
    return Explanation(covered_reason(cleanup), cleanup)


def explain_leftover(facts: ObjectFacts) -> Answer:
    """Tracked, or seen now, though its project was deleted."""
    gone = owner_in_state(facts, ProjectState.DELETED)
    if not gone or not gone.deleted_at or not (facts.row or facts.listed):
        return None
    item = latest_item(facts)
    if item and item.outcome == Outcome.ALREADY_GONE and not facts.listed:
        text = _(
            "Its project %(project)s was deleted on %(at)s. The object was not there any more when"
            " it was looked for, and the row alone is left: clean up after the project again, and"
            " the row goes."
        )
    else:
        text = _(
            "Its project %(project)s was deleted on %(at)s, and this is a leftover file: no cleanup"
            " is under way that would take it. Verify the project’s last cleanup, or clean up after"
            " it again."
        )
    words = {"project": gone.project_id, "at": format_time(gone.deleted_at)}
    return Explanation(text % words, last_cleanup(facts, gone), project_to_declare=gone.project_id)


def explain_never_found(facts: ObjectFacts) -> Answer:
    """Its project was deleted, and the cleanups have no item of it, or not any more. Cleanups that
    could not list the bucket do not count."""
    gone = owner_in_state(facts, ProjectState.DELETED)
    cleanup = last_cleanup(facts, gone) if gone else None
    if not gone or not cleanup or not (cleanup.planned_at or cleanup.pruned_at):
        return None
    if cleanup.status not in Cleanup.FINISHED:
        return None
    if any(item.cleanup_id == cleanup.pk for item in facts.items):
        return None
    words = {
        "cleanup": cleanup.pk,
        "project": gone.project_id,
        "archive": cleanup.archive,
    }
    if cleanup.pruned_at:
        text = _(
            "Cleanup %(cleanup)s of project %(project)s is long over, and its items are in the"
            " file %(archive)s: that says whether this was one. Or look into the bucket."
        )
    else:
        text = _(
            "Cleanup %(cleanup)s of the deleted project %(project)s found no such object. Look"
            " into the bucket: if it is there now, clean up after the project again."
        )
    ended = "" if cleanup.pruned_at else gone.project_id
    return Explanation(text % words, cleanup, project_to_declare=ended)


def owner_in_state(facts: ObjectFacts, state: ProjectState) -> ProjectStatus | None:
    return next((one for one in facts.projects.values() if one.state is state), None)


def last_cleanup(facts: ObjectFacts, gone: ProjectStatus) -> Cleanup | None:
    mine = (one for one in facts.cleanups if one.project_id == gone.project_id)
    return next(mine, None)


def explain_preview(facts: ObjectFacts) -> Answer:
    item = latest_item(facts)
    if not item or item.outcome != Outcome.TO_DELETE or not item.cleanup.dry_run:
        return None
    text = _(
        "Dry run %s found it and deleted nothing. Running that plan deletes it, once its project is"
        " deleted."
    )
    return Explanation(text % item.cleanup_id, item.cleanup)


def explain_unrecognised(facts: ObjectFacts) -> Answer:
    if facts.parsed_keys or facts.projects:
        return None
    if facts.parsed_keys.too_many:
        return Explanation(too_many_owners_reason())
    text = _(
        "No key format reads this key, so no cleanup may touch it. Ignore it, assign it to a"
        " project, or add its key format."
    )
    if not facts.is_known and not facts.listed:
        text += " " + (
            _("Nothing here tells whether it is there: look into the bucket.")
            if facts.access == FULL_ACCESS
            else _("Nothing that you may see tells whether it is there: look into the bucket.")
        )
    return Explanation(text)


def explain_unknown_owner(facts: ObjectFacts) -> Answer:
    """It exists, and its project was never known."""
    if not facts.row and not facts.listed:
        return None
    text = _(
        "It is there by all that we know, and no project that it may belong to was ever known:"
        " %s. A scan makes it a finding; assign it to a project there, or delete it."
    )
    return Explanation(text % ", ".join(facts.projects))


def explain_unknown_key(facts: ObjectFacts) -> Answer:
    if facts.listed:
        # Only rows would say more.
        text = _(
            "It is in the bucket, and nothing that you may see tells why. Ask somebody who may see"
            " all."
        )
        return Explanation(text)
    if facts.access != FULL_ACCESS:
        return Explanation(_("Nothing that you may see tells of it. Look into the bucket."))
    return Explanation(_("We know nothing of this key. Look into the bucket."))
