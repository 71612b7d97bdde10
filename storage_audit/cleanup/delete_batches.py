"""The delete step: batch by batch, each rechecked just before it is sent, and sent once.

A batch is what is rechecked together; it goes in one call, or in several at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import Case, F, When
from django.db.models.functions import Coalesce, Greatest
from django.utils.translation import gettext as _

from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.s3 import DELETED, ListedObject
from storage_audit.bucket.wrangler_process import Command
from storage_audit.cleanup import adaptive_batch, progress, used_files
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.cleanup_text import appeared_text
from storage_audit.cleanup.delete_pipeline import (
    DeletePipeline,
    PlannedItem,
    RecheckedBatch,
    items_of,
    recheck_deadline,
    record_commands,
)
from storage_audit.cleanup.judge_objects import find_rows_to_judge
from storage_audit.cleanup.kind_policies import BatchFacts, policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.models.position import Position
from storage_audit.cleanup.open_decisions import get_ignore_list
from storage_audit.cleanup.project_uploads import abort_uploads
from storage_audit.cleanup.worker_turn import OwnerChanging, TooManySeeks, Turn, TurnOver
from storage_audit.clocks import mark_or_now, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.locking import atomic_with_timeout
from storage_audit.models import R2Object, uploading_rows
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.ownership.row_evidence import TrackingRow

Outcome = CleanupItem.Outcome
# Compared in the database by whoever goes on with it, in whatever language: not translated.
NOT_LISTED = "not in the listing before the deletion"


def delete_planned(work: Turn) -> None:
    """Send every planned item once. Raises TurnOver, StoreError, CannotConclude, LeaseLost,
    DeletionsPaused and PausedInBucket."""
    cleanup = work.cleanup
    uploads_left = abort_uploads(work)
    with DeletePipeline(work) as flight:
        while batch := next_batch(work):
            if flight.must_collect_before(batch):
                flight.collect()
                continue
            work.recheck_bucket()
            try:
                delete_batch(work, batch, flight)
            except TooManySeeks:
                continue
            work.check_deadline()
    if uploads_left:
        raise TurnOver
    cleanup.begin_step(Cleanup.Step.VERIFY)


def next_batch(work: Turn) -> list[PlannedItem]:
    """Items that are planned, then those without an answer, the oldest first: one that never gets
    an answer must not hold up the others."""
    items, place = work.cleanup.items, (F("range_index").asc(nulls_last=True), "key")
    planned = items.planned().order_by(*place)
    unanswered = items.filter(outcome=Outcome.DELETING, store_answer="")
    return next_items(work, planned) or next_items(work, unanswered.order_by("changed_at", *place))


def next_items(work: Turn, todo: CleanupItemQuerySet) -> list[PlannedItem]:
    """The first of these items. Those that no listed prefix covers go few at a time, and apart."""
    first = todo.first()
    if first is None:
        return []
    alone, size = first.range_index is None, BatchSize.of(work.cleanup).size
    items = todo.filter(range_index__isnull=alone).values_list(*PlannedItem._fields)
    return list(map(PlannedItem._make, items[: min(size, work.keys_per_lookup) if alone else size]))


def delete_batch(work: Turn, batch: list[PlannedItem], pipeline: DeletePipeline) -> None:
    """Recheck these items while the batch before them may still be on its way, and send them after
    it. If that batch fails they are not sent, but rechecked again."""
    cleanup = work.cleanup
    with transaction.atomic():
        # The rest of the position is of a pass that listed before this.
        cleanup.begin_batch(position=Position(aborted_up_to=cleanup.position.aborted_up_to))
        lock_uploads(cleanup, batch)
        items_of(batch).mark(Outcome.DELETING, store_answer="", unanswered_at=last_unanswered_at())
    until = recheck_deadline()
    try:
        proof = recheck_batch(work, batch)
        if proof.deletable and monotonic_seconds() > until:
            text = _("The check of the files took too long, so its result is outdated.")
            raise DeadlinePassed(text)
    except DeadlinePassed as late:
        pipeline.collect()
        return adaptive_batch.adapt_batch_size(work, len(batch), late)
    if proof.deletable:
        check_wrangler_bucket(work, until=until)
    with transaction.atomic():
        stay = [item for item, _reason in proof.kept]
        moved = progress.count_moved(cleanup, deleting=proof.already_gone, kept=stay)
        # Nothing of this batch has left yet.
        (cleanup.begin_sending if proof.deletable else cleanup.renew)(progress=moved)
        record_recheck(cleanup, proof)
    pipeline.submit(proof, until=until)


def last_unanswered_at() -> Case:
    """When the last call without an answer was made. A worker that died or lost its lease recorded
    no answer; its own clock dates the mark, as it dated the signature of the call."""
    span = conf().deletion_timeout
    sent, earlier = mark_or_now("changed_at", span), mark_or_now("unanswered_at", span)
    mark = Greatest(sent, Coalesce(earlier, sent))
    unwritten = When(calls__gt=0, store_answer="", then=mark)
    return Case(unwritten, default="unanswered_at")


def check_wrangler_bucket(work: Turn, *, until: float) -> None:
    """Check, once in a turn, that wrangler deletes in the bucket that we list: S3 is given an
    address, wrangler an account. Raises CannotConclude and StoreError."""
    cleanup, ran = work.cleanup, list[Command]()
    if work.is_wrangler_checked or not cleanup.runs_wrangler:
        return
    try:
        bucket_marker.require_wrangler_marker(cleanup.bucket, until=until, on_command=ran.append)
    finally:
        with transaction.atomic():
            cleanup.renew()
            record_commands(cleanup, ran)
    work.is_wrangler_checked = True


def lock_uploads(cleanup: Cleanup, batch: list[PlannedItem]) -> None:
    keys = {name for item in batch for name in (item.key, item.identity)}
    with wait_for_rows():
        policy_of(cleanup).lockable_rows(cleanup).lock_for_deletion(keys)


def reread_locked_rows(work: Turn, batch: list[PlannedItem]) -> Mapping[str, Sequence[TrackingRow]]:
    """The tracking rows as they are now, by identity. Rows that a backfill wrote since, without
    seeing our mark, are locked as well."""
    with wait_for_rows():
        found = find_batch_rows(work, batch, locked=True)
        every = chain.from_iterable(found.values())
        if late := [row.key for row in every if row.state != R2Object.State.DELETING]:
            policy_of(work.cleanup).lockable_rows(work.cleanup).lock_for_deletion(late)
    return found


def find_batch_rows(
    work: Turn, batch: list[PlannedItem], *, locked: bool = False
) -> Mapping[str, Sequence[TrackingRow]]:
    rows = R2Object.objects.in_bucket(work.cleanup.bucket)
    rows = rows.select_for_update() if locked else rows
    return find_rows_to_judge(rows, [item.key for item in batch], work.identity)


def upload_states(rows: Mapping[str, Sequence[TrackingRow]]) -> set[tuple[UUID | None, str]]:
    """The last upload to each key, and its row's state. An upload in the meantime changes these."""
    return {(row.upload_id, row.state) for row in chain.from_iterable(rows.values())}


@contextmanager
def wait_for_rows() -> Iterator[None]:
    """Wait for a transaction that is changing a row, such as to assign its object to another
    project. Raises OwnerChanging when that takes long, as others wait for this cleanup."""
    try:
        with atomic_with_timeout():
            yield
    except OperationalError as error:
        text = _("Somebody is changing the records of files to delete. %s")
        raise OwnerChanging(text % StoreError.advice) from error


def recheck_batch(work: Turn, batch: list[PlannedItem]) -> RecheckedBatch:
    """Check the objects and their owners once more: only those that are as planned may go. Raises
    DeadlinePassed when the batch must be smaller."""
    cleanup = work.cleanup
    before = upload_states(find_batch_rows(work, batch))
    found = list_batch(work, batch)
    parsed_keys = get_key_formats().parse_keys(item.key for item in batch)
    policy = policy_of(cleanup)
    policy.require_project_gone(cleanup)
    uses = used_files.recheck_uses(work, parsed_keys)
    with transaction.atomic():
        cleanup.renew()
        rows = reread_locked_rows(work, batch)
    reasons = uses | policy.keep_reasons(work, BatchFacts(batch, parsed_keys, rows, found))
    objects = (found.get(work.identity(item.key)) for item in batch)
    ignored = get_ignore_list().find_ignored(cleanup.bucket, filter(None, objects))
    proof = RecheckedBatch([], [], [])
    for item in batch:
        identity = work.identity(item.key)
        listed, its_rows = found.get(identity), rows.get(identity, ())
        if listed is None:
            proof.already_gone.append(item)
        elif reason := (
            change_since_plan(cleanup, item, listed, its_rows, before)
            or ignored.get(listed.key, "")
        ):
            proof.kept.append((item, reason))
        elif item.key in reasons:
            proof.kept.append((item, reasons[item.key]))
        else:
            proof.deletable.append(item)
    return proof


def list_batch(work: Turn, batch: list[PlannedItem]) -> dict[str, ListedObject]:
    """The objects and their copies, by identity. Keys that are not found in time are not sent.
    Raises TooManySeeks when there are too many for one batch."""
    find = work.find_lone_objects if batch[0].range_index is None else work.find_objects
    keys = [key for item in batch for key in (item.key, item.copied_to) if key]
    return find(keys, briefly=True)


def change_since_plan(
    cleanup: Cleanup,
    item: PlannedItem,
    listed: ListedObject,
    rows: Sequence[TrackingRow],
    before: set[tuple[UUID | None, str]],
) -> str:
    """Why the object is not the one of the plan any more, or nothing. `before` are the uploads as
    they were just before the listing, which may not show what one stored since."""
    policy, change = policy_of(cleanup), ""
    if any(row.state == R2Object.State.UPLOADING for row in rows):
        change = _("An upload to this name is in progress.")
    elif reason := policy.tracked_again_reason(rows):
        return reason
    elif item.found_in == CleanupItem.FoundIn.TRACKED:
        change = appeared_text()
    elif (listed.size, listed.etag, listed.last_modified) != (
        item.size,
        item.etag,
        item.last_modified,
    ):
        change = _("The file was overwritten after the plan was made.")
    elif any(row.upload_id and (row.upload_id, row.state) not in before for row in rows):
        change = _("An upload to this name has just ended.")
    return f"{change} {policy.what_happens_next(cleanup)}" if change else ""


def record_recheck(cleanup: Cleanup, proof: RecheckedBatch) -> None:
    if proof.already_gone:
        items_of(proof.already_gone).update(store_answer=NOT_LISTED)
    for reason, group in groupby(sorted(proof.kept, key=reason_of_kept), key=reason_of_kept):
        keep_items(cleanup, items_of([item for item, _reason in group]), reason)
    items_of(proof.deletable).update(attempts=F("attempts") + 1, calls=F("calls") + 1)


def reason_of_kept(stay: tuple[PlannedItem, str]) -> str:
    return stay[1]


def keep_items(cleanup: Cleanup, items: CleanupItemQuerySet, reason: str) -> None:
    """Mark the items as kept, and open their keys to uploads again."""
    policy_of(cleanup).locked_rows(cleanup).unlock(items.keys_and_identities())
    items.mark(Outcome.KEPT, reason)


def unlock_idle_items(cleanup: Cleanup) -> None:
    """Open the keys to uploads, as nothing is being sent for now. A recheck precedes a new attempt.

    What was sent and not answered stays marked: the store may still obey the call, and would delete
    a new upload instead.
    """
    marked = cleanup.items.filter(outcome=Outcome.DELETING)
    marked.exclude(calls__gt=0, store_answer="").mark(Outcome.TO_DELETE)
    policy_of(cleanup).locked_rows(cleanup).unlock(cleanup.items.planned().keys_and_identities())


def lock_answered_items(cleanup: Cleanup) -> None:
    """Mark what `unlock_idle_items` opened again although the store said that it is deleted: no
    other call follows, and a verification is to say what became of it."""
    answered = cleanup.items.planned().filter(calls__gt=0, store_answer=str(DELETED))
    rows = policy_of(cleanup).lockable_rows(cleanup)
    rows = rows.filter(key__in=answered.keys_and_identities())
    rows.exclude(uploading_rows()).mark_deleting()
    answered.mark(Outcome.DELETING)
