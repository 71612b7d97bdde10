"""Why an object is still there, by all that we know."""

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.open_decisions import why_covered
from storage_audit.findings.models import Finding, Kind
from storage_audit.lookup.facts import ALL, Answer, Facts, Life, Sentence, Standing, moment
from storage_audit.lookup.rules_gone import owners_of, still
from storage_audit.models import R2Object
from storage_audit.ownership.owner import Claim, told_by, too_many_owners

Outcome = CleanupItem.Outcome
State = R2Object.State


def not_deleted(facts: Facts) -> Answer:
    item = latest_word(facts)
    if not item or item.outcome != Outcome.FAILED or not item.operation.deletes:
        return None
    text = _("Cleanup %(operation)s could not delete it: %(reason)s %(next)s")
    words = {"operation": item.operation_id, "reason": item.reason or item.answer}
    text %= {**words, "next": next_of(item.operation)}
    return Sentence(text + still(facts), item.operation)


def next_of(operation: CleanupOperation) -> str:
    if operation.status == CleanupOperation.Status.SUPERSEDED:
        return _("That cleanup was ended, and is not tried again: verify the project to see.")
    if due := operation.next_attempt_at:
        return _("It is tried again on %s; its page says what stands in the way.") % moment(due)
    return _("Its page says what stands in the way, and lets you try again.")


def kept(facts: Facts) -> Answer:
    item = latest_word(facts)
    if not item or item.outcome != Outcome.PROTECTED:
        return None
    owner = facts.standings.get(item.operation.project_id or "")
    if item.operation.deletes and owner and owner.life is Life.ALIVE:
        # Nothing is to be cleaned up any more.
        return None
    if item.operation.deletes:
        text = _(
            "Cleanup %(operation)s kept it: %(reason)s Once that is settled, verify that cleanup,"
            " or clean up after its project again."
        )
    elif owner and owner.life is Life.DELETED:
        text = _(
            "A cleanup would keep it, says operation %(operation)s: %(reason)s Once that is"
            " settled, clean up after the project again."
        )
    else:
        text = _(
            "A cleanup would keep it, says operation %(operation)s: %(reason)s Settle that before"
            " the project is deleted."
        )
    words = {"operation": item.operation_id, "reason": item.reason}
    return Sentence(text % words + still(facts), item.operation)


def seen_by_a_look(facts: Facts) -> Answer:
    item = latest_word(facts)
    if not item or item.outcome != Outcome.FAILED or item.operation.deletes:
        return None
    text = _(
        "Verification %(operation)s said on %(at)s: %(reason)s Look into the bucket, to see whether"
        " that is still so."
    )
    words = {
        "operation": item.operation_id,
        "at": moment(item.changed_at),
        "reason": item.reason,
    }
    return Sentence(text % words, item.operation)


def latest_word(facts: Facts) -> CleanupItem | None:
    """The latest item, unless the object was tracked anew since."""
    item = next(iter(facts.items), None)
    row = facts.row
    return None if item and row and row.created_at > item.changed_at else item


def accepted(facts: Facts) -> Answer:
    finding = facts.finding
    if not finding or finding.state != Finding.State.ACKNOWLEDGED:
        return None
    text = _("%(who)s said on %(at)s that it may stay: %(note)s Reopen the finding to decide anew.")
    words = {
        "who": finding.decided_by or _("Somebody"),
        "at": moment(finding.decided_at or finding.last_seen_at),
        "note": finding.note,
    }
    return Sentence(text % words, finding=finding)


FOUND = {
    Kind.ORPHANED: gettext_lazy(
        "Its project is no more, and no cleanup took it; a scan found it on %s. Delete the orphan"
        " from its finding, or adopt it into a project."
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
        "It could be several projects’, so no cleanup may touch it; a scan found it on %s. Adopt it"
        " into the one that it belongs to."
    ),
    Kind.UNRECOGNISED: gettext_lazy(
        "No layout reads this key, so no cleanup may touch it; a scan found it on %s. Acknowledge"
        " it, adopt it into a project, or add its layout."
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


def found_by_scan(facts: Facts) -> Answer:
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
    at = moment(finding.last_seen_at)
    if finding.kind == Kind.AMBIGUOUS and facts.standings and not living(facts):
        return between_the_dead(facts, finding, at)
    return Sentence(FOUND[Kind(finding.kind)] % at, finding=finding)


def between_the_dead(facts: Facts, finding: Finding, at: str) -> Sentence:
    """It can be adopted into none of the projects, as adoption takes a live one."""
    if not facts.sight.rows:
        # A row may say whose it is.
        text = _(
            "It could be several projects’; a scan found it on %s. Its finding says what can be"
            " done."
        )
        return Sentence(text % at, finding=finding)
    if gone := standing(facts, Life.VANISHED):
        ended = gone.project_id
        text = _(
            "It could be several projects’, and nobody said that %(project)s was deleted, so no"
            " cleanup may touch it; a scan found it on %(at)s. If that project was meant to go,"
            " clean up after it as a deleted project."
        )
    elif ended := taken_by_a_cleanup_of(facts):
        text = _(
            "It could be several projects’, none of which lives; a scan found it on %(at)s. A"
            " cleanup of one of them takes it: clean up after %(project)s as a deleted project."
        )
    else:
        text = _(
            "It could be several projects’, none of which lives; a scan found it on %(at)s."
            " %(reason)s"
        )
    words = {"project": ended, "at": at, "reason": why_kept(facts)}
    return Sentence(text % words, finding=finding, ended=ended)


def why_kept(facts: Facts) -> str:
    """By a cleanup of the project that was deleted last, which may take what those before kept."""
    now = timezone.now()
    last = max(facts.judgements, key=lambda each: each.standing.deleted_at or now)
    return last.verdict.reason


def taken_by_a_cleanup_of(facts: Facts) -> str:
    """One of its projects, if there is one; rather one that there was."""
    owners = [one.standing for one in facts.judgements if one.verdict.claim is Claim.OWNED]
    owners.sort(key=lambda standing: standing.known is None)
    return owners[0].project_id if owners else ""


def upload_failed(facts: Facts) -> Answer:
    row = facts.row
    if not row or row.state not in (State.UPLOAD_FAILED, State.UPLOADING) or facts.listed:
        return None
    text = _(
        "Its last upload did not end well, on %s, so there may be no object. Look into the bucket;"
        " upload it again, or delete its row."
    )
    return Sentence(text % moment(row.updated_at))


def belongs_to_the_living(facts: Facts) -> Answer:
    row, alive = facts.row, living(facts)
    if row and (owner := facts.standings.get(row.project_id or "")) and owner in alive:
        evidence = told_by(row) or _("a backfill read it so")
        text = _(
            "It belongs to the live project %(project)s (%(evidence)s), and stays as long as that"
            " lives. To delete it alone, delete its row."
        )
        return Sentence(text % {"project": owner.project_id, "evidence": evidence})
    if not alive or (row and told_by(row)):
        return None
    text = _(
        "It may belong to the live project %s, so no cleanup of another touches it. No row says"
        " whose it is: begin a backfill, or adopt it."
    )
    return Sentence(text % ", ".join(one.project_id for one in alive))


def living(facts: Facts) -> list[Standing]:
    return [one for one in facts.standings.values() if one.life is Life.ALIVE]


def project_vanished(facts: Facts) -> Answer:
    gone = standing(facts, Life.VANISHED)
    if not gone:
        return None
    text = _(
        "Project %s is gone, but nobody said that it was deleted, so its objects are kept. If it"
        " was meant to go, clean up after it as a deleted project."
    )
    return Sentence(text % gone.project_id, ended=gone.project_id)


def not_in_the_plan(facts: Facts) -> Answer:
    """Of a cleanup that is not over, and whose plan was frozen without it."""
    operation = planned_without(facts)
    if not operation:
        return None
    if facts.row or facts.listed:
        text = _(
            "Cleanup %(operation)s of project %(project)s is %(status)s, and its plan does not have"
            " this, so it does not delete it. Once that cleanup is over, clean up after the project"
            " again."
        )
    else:
        text = _(
            "Cleanup %(operation)s of project %(project)s is %(status)s, and its plan does not have"
            " this. Look into the bucket: if it is there now, clean up after the project again once"
            " that cleanup is over."
        )
    words = {
        "operation": operation.pk,
        "project": operation.project_id,
        "status": operation.get_status_display(),
    }
    return Sentence(text % words, operation)


def planned_without(facts: Facts) -> CleanupOperation | None:
    # What went in another spelling may be this one, unless something tells that this is there.
    others = [] if facts.row or facts.listed else facts.otherwise_spelled
    owners, held = owners_of(facts), {item.operation_id for item in (*facts.items, *others)}
    return next(
        (
            operation
            for operation in facts.cleanups
            if operation.planned_at
            and operation.status not in CleanupOperation.CLOSED
            and operation.project_id in owners
            and operation.pk not in held
        ),
        None,
    )


def covered(facts: Facts) -> Answer:
    cleanup = facts.covered_by
    if not cleanup or not (facts.row or facts.listed or facts.finding):
        return None
    return Sentence(why_covered(cleanup), cleanup)


def left_behind(facts: Facts) -> Answer:
    """Tracked, or seen just now, though its project was deleted."""
    gone = standing(facts, Life.DELETED)
    if not gone or not gone.deleted_at or not (facts.row or facts.listed):
        return None
    item = latest_word(facts)
    if item and item.outcome == Outcome.ALREADY_ABSENT and not facts.listed:
        text = _(
            "Its project %(project)s was deleted on %(at)s. The object was not there any more when"
            " it was looked for, and the row alone is left: clean up after the project again, and"
            " the row goes."
        )
    else:
        text = _(
            "Its project %(project)s was deleted on %(at)s, and this was left behind: no cleanup is"
            " under way that would take it. Verify the project’s last cleanup, or clean up after it"
            " again."
        )
    words = {"project": gone.project_id, "at": moment(gone.deleted_at)}
    return Sentence(text % words, last_cleanup(facts, gone), ended=gone.project_id)


def never_found(facts: Facts) -> Answer:
    """Of a deleted project, and no item of what cleaned up after it; or not any more. One that
    could not list the bucket has not looked."""
    gone = standing(facts, Life.DELETED)
    operation = last_cleanup(facts, gone) if gone else None
    if not gone or not operation or not (operation.planned_at or operation.pruned_at):
        return None
    if operation.status not in CleanupOperation.CLOSED:
        return None
    if any(item.operation_id == operation.pk for item in facts.items):
        return None
    words = {
        "operation": operation.pk,
        "project": gone.project_id,
        "archive": operation.archive,
    }
    if operation.pruned_at:
        text = _(
            "Cleanup %(operation)s of project %(project)s is long over, and its items are in the"
            " file %(archive)s: that says whether this was one. Or look into the bucket."
        )
    else:
        text = _(
            "Cleanup %(operation)s of the deleted project %(project)s found no such object. Look"
            " into the bucket: if it is there now, clean up after the project again."
        )
    ended = "" if operation.pruned_at else gone.project_id
    return Sentence(text % words, operation, ended=ended)


def standing(facts: Facts, life: Life) -> Standing | None:
    return next((one for one in facts.standings.values() if one.life is life), None)


def last_cleanup(facts: Facts, gone: Standing) -> CleanupOperation | None:
    mine = (one for one in facts.cleanups if one.project_id == gone.project_id)
    return next(mine, None)


def planned_to_go(facts: Facts) -> Answer:
    item = latest_word(facts)
    if not item or item.outcome != Outcome.PLANNED or not item.operation.dry_run:
        return None
    text = _(
        "Dry run %s found it and deleted nothing. Running that plan deletes it, once its project is"
        " deleted."
    )
    return Sentence(text % item.operation_id, item.operation)


def read_by_nobody(facts: Facts) -> Answer:
    if facts.readings or facts.standings:
        return None
    if facts.readings.too_many:
        return Sentence(too_many_owners())
    text = _(
        "No layout reads this key, so no cleanup may touch it. Acknowledge it, adopt it into a"
        " project, or add its layout."
    )
    if not facts.is_known and not facts.listed:
        text += " " + (
            _("Nothing here tells whether it is there: look into the bucket.")
            if facts.sight == ALL
            else _("Nothing that you may see tells whether it is there: look into the bucket.")
        )
    return Sentence(text)


def nobodys(facts: Facts) -> Answer:
    """There, and of a project that was never known."""
    if not facts.row and not facts.listed:
        return None
    text = _(
        "It is there by all that we know, and no project that it may belong to was ever known:"
        " %s. A scan makes it a finding; adopt it into a project there, or delete it."
    )
    return Sentence(text % ", ".join(facts.standings))


def unknown(facts: Facts) -> Answer:
    if facts.listed:
        # Only rows say more of it than that.
        text = _(
            "It is in the bucket, and nothing that you may see tells why. Ask somebody who may see"
            " all."
        )
        return Sentence(text)
    if facts.sight != ALL:
        return Sentence(_("Nothing that you may see tells of it. Look into the bucket."))
    return Sentence(_("We know nothing of this key. Look into the bucket."))
