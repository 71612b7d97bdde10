"""What is about to become of an object, or has become of it. That it is gone is said of an item
that a verification has settled, and of nothing else."""

from django.utils.translation import gettext as _

from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.lookup.facts import ALL, GONE, NO_OBJECT, Answer, Facts, Life, Sentence, moment
from storage_audit.models import R2Object
from storage_audit.ownership.key_formats import OWN_PREFIX
from storage_audit.ownership.owner import Claim

Outcome = CleanupItem.Outcome
Status = CleanupOperation.Status


def own_object(facts: Facts) -> Answer:
    if not facts.key.startswith(OWN_PREFIX):
        return None
    return Sentence(
        _(
            "It is an object of this application itself, such as the marker by which it knows its"
            " bucket. Leave it where it is."
        )
    )


def being_uploaded(facts: Facts) -> Answer:
    row = facts.row
    if not row or not row.is_being_uploaded:
        return None
    until = row.updated_at + conf().upload_timeout
    text = _(
        "An upload to it is under way since %(at)s, and until %(until)s no cleanup touches it. Look"
        " again when it is over."
    )
    return Sentence(text % {"at": moment(row.updated_at), "until": moment(until)})


def blocked(facts: Facts) -> Answer:
    operation = to_delete_it(facts)
    if not operation or operation.status != Status.BLOCKED:
        return None
    text = _(
        "Cleanup %(operation)s is to delete it, and is blocked: %(message)s Once that is settled,"
        " release it on its page."
    )
    return Sentence(text % {"operation": operation.pk, "message": operation.error}, operation)


def being_deleted(facts: Facts) -> Answer:
    operation = to_delete_it(facts)
    if not operation or operation.status == Status.BLOCKED:
        return None
    text = _(
        "Cleanup %(operation)s is to delete it, and is %(status)s. Its page says how far it is, and"
        " when it goes on."
    )
    status = operation.get_status_display()
    return Sentence(text % {"operation": operation.pk, "status": status}, operation)


def to_delete_it(facts: Facts) -> CleanupOperation | None:
    """The deletion that is not over for this object; one may not have looked for it yet."""
    unfinished = (*CleanupOperation.WORKABLE, Status.BLOCKED)
    for item in facts.items:
        operation = item.operation
        if (
            item.outcome in CleanupItem.OPEN
            and operation.deletes
            and operation.status in unfinished
        ):
            return operation
    owners, held = owners_of(facts), {item.operation_id for item in facts.items}
    return next(
        (
            operation
            for operation in facts.cleanups
            if operation.status in unfinished
            and operation.step == CleanupOperation.Step.PLAN
            # Its plan is frozen from then on, and would have it.
            and operation.planned_at is None
            and operation.project_id in owners
            and operation.pk not in held
        ),
        None,
    )


def owners_of(facts: Facts) -> set[str]:
    """The projects that are no more and whose cleanups would take it."""
    return {
        judged.standing.project_id
        for judged in facts.judgements
        if judged.verdict.claim is Claim.OWNED and judged.standing.life is not Life.ALIVE
    }


def gone(facts: Facts) -> Answer:
    item = went(facts)
    if not item or facts.rows or facts.listed or seen_since(facts, item):
        return None
    # What a cleanup covers is no finding, so that no scan says that it is back.
    later = to_delete_it(facts)
    if later and not later.parent_id and later.created_at > item.changed_at:
        return None
    return Sentence(how_it_went(item) + (still(facts) or since(facts)), item.operation)


def since(facts: Facts) -> str:
    """The row of a later upload leaves no trace once somebody untracks it."""
    if facts.is_seen_absent:
        return ""
    return " " + _("It may have come back since: look into the bucket.")


def still(facts: Facts) -> str:
    """What is to be said after an operation's last word, as what came later may be hidden; the same
    whether there is any such thing."""
    if facts.sight == ALL or facts.is_seen_absent:
        return ""
    if facts.listed:
        text = _("Whether it is so still, you may not see: ask somebody who may see all.")
    else:
        text = _("Whether it is so still, you may not see: look into the bucket.")
    return f" {text}"


def went(facts: Facts) -> CleanupItem | None:
    """The item that tells best how it went: later looks only saw it absent again."""
    latest = next(iter(facts.items), None)
    if not latest or latest.outcome not in GONE:
        return None
    for item in facts.items:
        if item.outcome not in GONE:
            break
        if item.outcome == Outcome.DELETED:
            return item
    return latest


def how_it_went(item: CleanupItem) -> str:
    if item.outcome == Outcome.DELETED:
        text = _(
            "Deleted by cleanup %(operation)s, and seen gone on %(at)s by a complete listing of"
            " %(place)s."
        )
    else:
        text = _(
            "It was not there any more when operation %(operation)s looked: seen absent on %(at)s"
            " by a complete listing of %(place)s."
        )
    words = {
        "operation": item.operation_id,
        "at": moment(item.changed_at),
        "place": place_of(item),
    }
    # Such as a row that still names it.
    return f"{text % words} {item.reason}".rstrip()


def place_of(item: CleanupItem) -> str:
    if item.span is not None and item.span < len(item.operation.ranges):
        return str(item.operation.ranges[item.span])
    return _("its place")


def seen_since(facts: Facts, item: CleanupItem) -> bool:
    """Whether a scan saw the object in the bucket after it went, and no later scan missed it: a
    finding that a scan resolved names nobody."""
    return any(
        finding.kind not in NO_OBJECT and finding.last_seen_at > item.changed_at
        for finding in facts.findings
        if finding.state != Finding.State.RESOLVED or finding.decided_by
    )


def absent_now(facts: Facts) -> Answer:
    """Before all that would say why it is still there."""
    if not facts.is_seen_absent:
        return None
    if operation := to_delete_it(facts):
        text = _(
            "It is not in the bucket now. Cleanup %(operation)s was to delete it, and is"
            " %(status)s: once that cleanup goes on, it records that the file is gone."
        )
        words = {"operation": operation.pk, "status": operation.get_status_display()}
        return Sentence(text % words, operation)
    if facts.row:
        text = _(
            "It is not in the bucket now, and its row is all there is. The next scan calls it"
            " missing, and the row can be removed there; or upload it again."
        )
    elif facts.sight != ALL:
        text = _(
            "It is not in the bucket now, and nothing that you may see tells what became of it. Ask"
            " somebody who may see all."
        )
    else:
        text = _(
            "It is not in the bucket now, and nothing here tells what became of it. If it ever was"
            " there, something else took it."
        )
    return Sentence(text, finding=facts.finding)


def back_again(facts: Facts) -> Answer:
    """It went, and the latest word is that it is there."""
    item, row = went(facts), facts.row
    is_new = item and row and row.created_at > item.changed_at
    if not item or not (is_new or facts.listed or seen_since(facts, item)):
        return None
    if is_new and row and row.source == R2Object.Source.UPLOAD:
        text = _("It was uploaded again on %(at)s for %(project)s. Before: %(went)s")
        return Sentence(
            text
            % {
                "at": moment(row.created_at),
                "project": row.project_id or _("no project"),
                "went": how_it_went(item),
            },
            item.operation,
        )
    if not facts.sight.rows:
        text = _("It is in the bucket again, by the latest that you may see. Before: %s")
        return Sentence(text % how_it_went(item), item.operation)
    text = _(
        "It is in the bucket again, by the latest that we know, and not by an upload through this"
        " application. Verify the cleanup that deleted it. Before: %s"
    )
    return Sentence(text % how_it_went(item), item.operation)


def gone_in_another_spelling(facts: Facts) -> Answer:
    item = next(iter(facts.otherwise_spelled), None)
    if not item or facts.listed:
        return None
    text = _(
        "Operation %s tells of a key that looks the same and is spelled with other code points."
        " Some stores, R2 among them, take the two for one object: look into the bucket."
    )
    return Sentence(text % item.operation_id, item.operation)
