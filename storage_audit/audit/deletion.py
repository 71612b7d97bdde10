"""The delete step: batch by batch, each proved just before it is sent, and sent once.

A batch is what one look proves; it goes in one call, or in some at once.
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from time import monotonic
from typing import NamedTuple

from django.db import OperationalError, transaction
from django.db.models import F, Q
from django.utils.translation import gettext as _

from storage_audit import logs, projects
from storage_audit.audit import installation, pace
from storage_audit.audit.discovery import LONE_KEYS, rows_by_identity
from storage_audit.audit.ownership import Claim, alive_among, judge, layouts
from storage_audit.audit.pace import Pace
from storage_audit.audit.work import Reborn, Undecided, Work
from storage_audit.bucket import deleters, uploads
from storage_audit.bucket.deleters import Answers, Sent
from storage_audit.bucket.errors import StoreError, TooLate
from storage_audit.bucket.listing import escape, find
from storage_audit.bucket.r2 import DELETED, Listed
from storage_audit.bucket.uploads import Upload
from storage_audit.bucket.wrangler import Command
from storage_audit.models import CleanupItem, CleanupOperation, KnownProject, R2Object
from storage_audit.querysets import CleanupItemQuerySet, R2ObjectQuerySet, impatient
from storage_audit.redaction import visible

Outcome = CleanupItem.Outcome
NOT_LISTED = "not in the listing before the deletion"
PROOF_LASTS = 30.0  # seconds


class Proof(NamedTuple):
    """What may be sent, what is absent already, and what must stay, with the reason."""

    may_go: list[CleanupItem]
    gone: list[CleanupItem]
    stay: list[tuple[CleanupItem, str]]


def delete(work: Work) -> None:
    """Send every planned item once. Raises OutOfTime, StoreError, Mismatch and LeaseLost."""
    operation = work.operation
    work.look_again()
    abort_uploads(work)
    while batch := next_batch(operation):
        work.look_again()
        pace.adapt(work, len(batch), delete_batch(work, batch))
        work.breathe()
    operation.renew(step=CleanupOperation.Step.VERIFY, cursor={})


def next_batch(operation: CleanupOperation) -> list[CleanupItem]:
    """Items that are planned, then those that were left without an answer, the longest ago first:
    one that never gets an answer must not keep the others from theirs."""
    place, size = (F("span").asc(nulls_last=True), "key"), Pace.of(operation).size
    planned = operation.items.planned().order_by(*place)
    unanswered = operation.items.filter(outcome=Outcome.DELETING, answer="")
    return first_of(planned, size) or first_of(unanswered.order_by("changed_at", *place), size)


def first_of(todo: CleanupItemQuerySet, size: int) -> list[CleanupItem]:
    """Few at a time of those that no listed prefix covers, and never beside others."""
    first = todo.first()
    if first is None:
        return []
    alone = first.span is None
    return list(todo.filter(span__isnull=alone)[: min(size, LONE_KEYS) if alone else size])


def delete_batch(work: Work, batch: list[CleanupItem]) -> StoreError | None:
    """Prove and send these items; the trouble that the store had with them, if any."""
    operation = work.operation
    with transaction.atomic():
        operation.renew()
        among(operation, batch).mark(Outcome.DELETING)
        bar_uploads(operation, batch)
    started = monotonic()
    proof = prove(work, batch)
    if proof.may_go and monotonic() > started + PROOF_LASTS:
        return TooLate(_("The look at the objects took longer than it may be relied on."))
    if proof.may_go:
        see_same_bucket(work, until=started + PROOF_LASTS)
    with transaction.atomic():
        operation.renew()
        record_proof(operation, proof)
    sent = send(operation, proof.may_go, until=started + PROOF_LASTS)
    log_keys(proof.may_go, sent.answers)
    with transaction.atomic():
        operation.renew()
        record_answers(operation, proof.may_go, sent)
        record_commands(operation, sent.commands)
        asked = len(proof.may_go) - len(sent.unasked)
        operation.record(
            "delete",
            _("Batch of %s objects sent.") % asked,
            absent=len(proof.gone),
            protected=len(proof.stay),
            refused=sum(answer != DELETED for answer in sent.answers.values()),
            unanswered=asked - len(sent.answers),
        )
    return pace.trouble_in(sent)


def see_same_bucket(work: Work, *, until: float) -> None:
    """S3 is told an address, and wrangler an account: does it delete where we look? Asked once in
    a turn. Raises Mismatch and StoreError."""
    operation, ran = work.operation, list[Command]()
    if work.wrangler_is_here or not operation.runs_wrangler:
        return
    try:
        installation.see_marker_by_wrangler(operation.bucket, until=until, ran=ran.append)
    finally:
        with transaction.atomic():
            operation.renew()
            record_commands(operation, ran)
    work.wrangler_is_here = True


def among(operation: CleanupOperation, items: Iterable[CleanupItem]) -> CleanupItemQuerySet:
    return operation.items.filter(pk__in=[item.pk for item in items])


def own_rows(operation: CleanupOperation) -> R2ObjectQuerySet:
    """The tracking rows that this operation may bar, open and forget: no other project's upload,
    and none at all for a look, a dry run, and objects whose rows were deleted."""
    rows = R2Object.objects.in_bucket(operation.bucket)
    if operation.kind == CleanupOperation.Kind.OBJECTS or not operation.deletes:
        return rows.none()
    return rows.filter(
        Q(project_id=operation.project_id) | Q(project_id=None) | Q(source=R2Object.Source.BACKFILL)
    )


def bar_uploads(operation: CleanupOperation, batch: list[CleanupItem]) -> None:
    """Waits for whoever is just changing a row, such as to hand its object to another project.
    Raises Undecided when that takes long, as others wait for this operation meanwhile."""
    keys = {name for item in batch for name in (item.key, item.identity)}
    try:
        with impatient():
            own_rows(operation).lock_for_deletion(keys)
    except OperationalError as error:
        text = _("Somebody is changing the tracking rows of objects to be deleted. %s")
        raise Undecided(text % StoreError.advice) from error


def prove(work: Work, batch: list[CleanupItem]) -> Proof:
    """Look at the objects and at their owners once more: only what is as planned may go."""
    operation = work.operation
    found = find(operation.bucket, [item.key for item in batch], work.identity, operation.renew)
    readings = {item.key: layouts().readings(item.key) for item in batch}
    if operation.kind == CleanupOperation.Kind.PROJECT:
        refuse_reborn(operation)
    alive = alive_among(readings.values())
    with transaction.atomic():
        operation.renew()
        # A backfill that did not see our mark may have written rows since.
        bar_uploads(operation, batch)
    rows = rows_by_identity(operation.bucket, [item.key for item in batch], work.identity)
    proof = Proof([], [], [])
    for item in batch:
        identity = work.identity(item.key)
        listed, row = found.get(identity), rows.get(identity)
        if listed is None:
            proof.gone.append(item)
        elif reason := objection(operation, item, listed, row):
            proof.stay.append((item, reason))
        elif operation.kind == CleanupOperation.Kind.OBJECTS:
            proof.may_go.append(item)
        else:
            verdict = judge(work.project, readings[item.key], row, listed.last_modified, alive)
            if verdict.claim is Claim.OWNED:
                proof.may_go.append(item)
            else:
                proof.stay.append((item, verdict.reason or verdict.evidence))
    return proof


def objection(
    operation: CleanupOperation, item: CleanupItem, listed: Listed, row: R2Object | None
) -> str:
    """Why the object is not the one of the plan any more, or nothing."""
    if row and row.state == R2Object.State.UPLOADING:
        return _("An upload to this key is under way.")
    if row and operation.kind == CleanupOperation.Kind.OBJECTS:
        return _("A tracking row names this key again.")
    seen = (listed.size, listed.etag, listed.last_modified)
    if item.found_in == CleanupItem.FoundIn.TRACKED:
        return _("The object appeared after the plan.") + " " + what_decides(operation)
    if seen != (item.size, item.etag, item.last_modified):
        return _("The object was overwritten after the plan.") + " " + what_decides(operation)
    return ""


def what_decides(operation: CleanupOperation) -> str:
    if operation.kind == CleanupOperation.Kind.PROJECT and operation.parent_id is None:
        return _("A late check decides on it.")
    return _("Ask for another cleanup to decide on it.")


def refuse_reborn(operation: CleanupOperation) -> None:
    """Whoever is just creating the project comes first. Raises Reborn and Undecided."""
    project_id = operation.project_id or ""
    changing = KnownProject.objects.is_changing(project_id)
    # One that was created again and went without a word: nobody said that this one is deleted.
    if projects.is_alive(project_id) or KnownProject.objects.maybe_alive([project_id]):
        raise Reborn
    if changing:
        raise Undecided(_("Project %s is just being created, or deleted again.") % project_id)


def record_proof(operation: CleanupOperation, proof: Proof) -> None:
    among(operation, proof.gone).update(answer=NOT_LISTED)
    for reason, group in groupby(sorted(proof.stay, key=by_reason), key=by_reason):
        let_go(operation, among(operation, [item for item, _reason in group]), reason)
    among(operation, proof.may_go).update(tries=F("tries") + 1)


def by_reason(stay: tuple[CleanupItem, str]) -> str:
    return stay[1]


def let_go(operation: CleanupOperation, items: CleanupItemQuerySet, reason: str) -> None:
    """Protect the items, and open their keys to uploads again."""
    own_rows(operation).unlock(items)
    items.mark(Outcome.PROTECTED, reason)


def rest(operation: CleanupOperation) -> None:
    """Nothing is being sent for now: open the keys to uploads; a new proof precedes a new try.

    What was sent and not answered stays marked: the store may still be at it, and would take the
    upload for the object that it was to delete.
    """
    marked = operation.items.filter(outcome=Outcome.DELETING)
    marked.exclude(tries__gt=0, answer="").mark(Outcome.PLANNED, answer="")
    own_rows(operation).unlock(operation.items.planned())


def send(operation: CleanupOperation, items: list[CleanupItem], *, until: float) -> Sent:
    now = Pace.of(operation)
    keys = [item.key for item in items]
    return deleters.delete(
        operation.strategy,
        operation.bucket,
        keys,
        until=until,
        size=now.keys,
        calls=now.calls,
    )


def log_keys(items: list[CleanupItem], answers: Answers) -> None:
    if logs.keys.isEnabledFor(logging.DEBUG):
        for item in items:
            answer = str(answers.get(item.key, "no answer"))
            logs.keys.debug("%s: %s", visible(item.key), visible(answer))


def record_answers(operation: CleanupOperation, items: list[CleanupItem], sent: Sent) -> None:
    def answer_of(item: CleanupItem) -> str:
        return str(sent.answers[item.key])

    answered = [item for item in items if item.key in sent.answers]
    for answer, group in groupby(sorted(answered, key=answer_of), key=answer_of):
        among(operation, group).update(answer=answer)
    # What was in no call does not count as sent when it is gone.
    unasked = set(sent.unasked)
    among(operation, [item for item in items if item.key in unasked]).update(tries=F("tries") - 1)


def record_commands(operation: CleanupOperation, commands: Iterable[Command]) -> None:
    for command in commands:
        operation.record("command", command.summary, **asdict(command))


def unfinished_uploads(work: Work) -> list[Upload] | None:
    """The project's multipart uploads; None where the store cannot tell."""
    operation, found = work.operation, list[Upload]()
    for prefix in operation.ranges:
        unfinished = uploads.unfinished(operation.bucket, prefix)
        if unfinished is None:
            return None
        found += unfinished
    readings = {upload.key: layouts().readings(upload.key) for upload in found}
    alive = alive_among(readings.values())
    rows = rows_by_identity(operation.bucket, readings, work.identity)

    def is_owned(upload: Upload) -> bool:
        row = rows.get(work.identity(upload.key))
        verdict = judge(work.project, readings[upload.key], row, upload.initiated, alive)
        return verdict.claim is Claim.OWNED

    return [upload for upload in found if is_owned(upload)]


def abort_uploads(work: Work) -> None:
    for upload in unfinished_uploads(work) or []:
        if work.operation.kind == CleanupOperation.Kind.PROJECT:
            refuse_reborn(work.operation)
        work.operation.renew()
        try:
            uploads.abort(work.operation.bucket, upload)
            said = _("Unfinished upload aborted.")
        except StoreError as error:
            # It must not stop the deletions; R2 ends such uploads by itself after seven days.
            said = _("Unfinished upload not aborted: %s") % error
        with transaction.atomic():
            work.operation.renew()
            work.operation.record("delete", said, key=escape(upload.key))
