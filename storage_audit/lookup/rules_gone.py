"""What will happen to an object, or has happened to it. Only an item that a verification has
settled counts as gone."""

from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.lookup.facts import (
    FULL_ACCESS,
    GONE_OUTCOMES,
    KINDS_WITHOUT_OBJECT,
    Answer,
    Explanation,
    ObjectFacts,
    ProjectState,
    format_time,
)
from storage_audit.models import R2Object
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.owner import Ownership

Outcome = CleanupItem.Outcome
Status = Cleanup.Status


def explain_own_object(facts: ObjectFacts) -> Answer:
    if not facts.key.startswith(OWN_PREFIX):
        return None
    return Explanation(
        _(
            "It is an object of this application itself, such as the marker by which it knows its"
            " bucket. Leave it where it is."
        )
    )


def explain_upload(facts: ObjectFacts) -> Answer:
    row = facts.row
    if not row or not row.is_being_uploaded:
        return None
    until = row.updated_at + conf().upload_timeout
    text = _(
        "An upload to it is under way since %(at)s, and until %(until)s no cleanup touches it. Look"
        " again when it is over."
    )
    return Explanation(text % {"at": format_time(row.updated_at), "until": format_time(until)})


def explain_blocked(facts: ObjectFacts) -> Answer:
    cleanup = find_deleting_cleanup(facts)
    if not cleanup or cleanup.status != Status.BLOCKED:
        return None
    text = _(
        "Cleanup %(cleanup)s is to delete it, and is blocked: %(message)s Once that is settled,"
        " approve it on its page."
    )
    return Explanation(text % {"cleanup": cleanup.pk, "message": cleanup.message}, cleanup)


def explain_deletion(facts: ObjectFacts) -> Answer:
    cleanup = find_deleting_cleanup(facts)
    if not cleanup or cleanup.status == Status.BLOCKED:
        return None
    text = _(
        "Cleanup %(cleanup)s is to delete it, and is %(status)s. Its page says how far it is, and"
        " when it goes on."
    )
    status = cleanup.get_status_display()
    return Explanation(text % {"cleanup": cleanup.pk, "status": status}, cleanup)


def find_deleting_cleanup(facts: ObjectFacts) -> Cleanup | None:
    """The open deletion of this object; it may not have found the object yet."""
    unfinished = (*Cleanup.WORKABLE, Status.BLOCKED)
    for item in facts.items:
        cleanup = item.cleanup
        if (
            item.outcome in CleanupItem.OPEN
            and cleanup.is_deletion
            and cleanup.status in unfinished
        ):
            return cleanup
    owners, held = deleted_owners(facts), {item.cleanup_id for item in facts.items}
    return next(
        (
            cleanup
            for cleanup in facts.cleanups
            if cleanup.status in unfinished
            and cleanup.step == Cleanup.Step.PLAN
            # Its plan is frozen from then on, and would have it.
            and cleanup.planned_at is None
            and cleanup.project_id in owners
            and cleanup.pk not in held
        ),
        None,
    )


def deleted_owners(facts: ObjectFacts) -> set[str]:
    """The deleted projects whose cleanups would delete it."""
    return {
        judged.project.project_id
        for judged in facts.verdicts
        if judged.verdict.ownership is Ownership.OWNED
        and judged.project.state is not ProjectState.ALIVE
    }


def explain_gone(facts: ObjectFacts) -> Answer:
    item = find_gone_item(facts)
    if not item or facts.rows or facts.listed or is_seen_since(facts, item):
        return None
    # What a cleanup covers is no finding, so no scan would report that it is back.
    later = find_deleting_cleanup(facts)
    if later and not later.parent_id and later.created_at > item.changed_at:
        return None
    return Explanation(
        gone_text(item) + (uncertainty_text(facts) or maybe_back_text(facts)), item.cleanup
    )


def maybe_back_text(facts: ObjectFacts) -> str:
    """The row of a later upload leaves no trace once somebody untracks it."""
    if facts.is_confirmed_gone:
        return ""
    return " " + _("It may have come back since: look into the bucket.")


def uncertainty_text(facts: ObjectFacts) -> str:
    """A caveat, as later facts may be hidden from this person; the same whether there are any."""
    if facts.access == FULL_ACCESS or facts.is_confirmed_gone:
        return ""
    if facts.listed:
        text = _("Whether it is so still, you may not see: ask somebody who may see all.")
    else:
        text = _("Whether it is so still, you may not see: look into the bucket.")
    return f" {text}"


def find_gone_item(facts: ObjectFacts) -> CleanupItem | None:
    """The item that says best how it was deleted: later checks only saw it gone again."""
    latest = next(iter(facts.items), None)
    if not latest or latest.outcome not in GONE_OUTCOMES:
        return None
    for item in facts.items:
        if item.outcome not in GONE_OUTCOMES:
            break
        if item.outcome == Outcome.DELETED:
            return item
    return latest


def gone_text(item: CleanupItem) -> str:
    if item.outcome == Outcome.DELETED:
        text = _(
            "Deleted by cleanup %(cleanup)s, and seen gone on %(at)s by a complete listing of"
            " %(place)s."
        )
    else:
        text = _(
            "It was not there any more when cleanup %(cleanup)s looked: confirmed gone on %(at)s"
            " by a complete listing of %(place)s."
        )
    words = {
        "cleanup": item.cleanup_id,
        "at": format_time(item.changed_at),
        "place": listed_place(item),
    }
    # Such as a row that still names it.
    return f"{text % words} {item.reason}".rstrip()


def listed_place(item: CleanupItem) -> str:
    if item.range_index is not None and item.range_index < len(item.cleanup.listed_prefixes):
        return str(item.cleanup.listed_prefixes[item.range_index])
    return _("its place")


def is_seen_since(facts: ObjectFacts, item: CleanupItem) -> bool:
    """Whether a scan saw the object in the bucket after its deletion, and no later scan missed it.
    A finding that a scan resolved has no `decided_by`."""
    return any(
        finding.kind not in KINDS_WITHOUT_OBJECT and finding.last_seen_at > item.changed_at
        for finding in facts.findings
        if finding.state != Finding.State.RESOLVED or finding.decided_by
    )


def explain_gone_now(facts: ObjectFacts) -> Answer:
    """Comes before all rules that say why it is still there."""
    if not facts.is_confirmed_gone:
        return None
    if cleanup := find_deleting_cleanup(facts):
        text = _(
            "It is not in the bucket now. Cleanup %(cleanup)s was to delete it, and is"
            " %(status)s: once that cleanup goes on, it records that the file is gone."
        )
        words = {"cleanup": cleanup.pk, "status": cleanup.get_status_display()}
        return Explanation(text % words, cleanup)
    if facts.row:
        text = _(
            "It is not in the bucket now, and its row is all there is. The next scan calls it"
            " missing, and the row can be removed there; or upload it again."
        )
    elif facts.access != FULL_ACCESS:
        text = _(
            "It is not in the bucket now, and nothing that you may see tells what became of it. Ask"
            " somebody who may see all."
        )
    else:
        text = _(
            "It is not in the bucket now, and nothing here tells what became of it. If it ever was"
            " there, something else took it."
        )
    return Explanation(text, finding=facts.finding)


def explain_reappeared(facts: ObjectFacts) -> Answer:
    """It was gone, and by the latest evidence it is back."""
    item, row = find_gone_item(facts), facts.row
    is_new = item and row and row.created_at > item.changed_at
    if not item or not (is_new or facts.listed or is_seen_since(facts, item)):
        return None
    if is_new and row and row.source == R2Object.Source.UPLOAD:
        text = _("It was uploaded again on %(at)s for %(project)s. Before: %(went)s")
        return Explanation(
            text
            % {
                "at": format_time(row.created_at),
                "project": row.project_id or _("no project"),
                "went": gone_text(item),
            },
            item.cleanup,
        )
    if not facts.access.rows:
        text = _("It is in the bucket again, by the latest that you may see. Before: %s")
        return Explanation(text % gone_text(item), item.cleanup)
    text = _(
        "It is in the bucket again, by the latest that we know, and not by an upload through this"
        " application. Verify the cleanup that deleted it. Before: %s"
    )
    return Explanation(text % gone_text(item), item.cleanup)


def explain_other_spelling(facts: ObjectFacts) -> Answer:
    item = next(iter(facts.other_spellings), None)
    if not item or facts.listed:
        return None
    text = _(
        "Cleanup %s tells of a key that looks the same and is spelled with other code points."
        " Some stores, R2 among them, take the two for one object: look into the bucket."
    )
    return Explanation(text % item.cleanup_id, item.cleanup)
