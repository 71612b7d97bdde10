"""The delete step: batch by batch, each rechecked just before it is sent, and sent once.

A batch is what is rechecked together; it goes in one call, or in several at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import Case, F, Q, When
from django.db.models.functions import Coalesce, Greatest
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.listing import escape_key, key_bytes
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.bucket.s3 import ListedObject
from storage_audit.bucket.wrangler import Command
from storage_audit.cleanup import adaptive_batch, given_objects, progress, used_files
from storage_audit.cleanup.adaptive_batch import BatchSize
from storage_audit.cleanup.delete_pipeline import (
    DeletePipeline,
    PlannedItem,
    RecheckedBatch,
    items_of,
    record_commands,
)
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.open_decisions import asking_filter, get_ignore_list
from storage_audit.cleanup.plan import find_keep_reasons, find_rows_to_judge, rows_by_identity
from storage_audit.cleanup.turn import OwnerChanging, ProjectRecreated, TooManySeeks, Turn, TurnOver
from storage_audit.clocks import mark_or_now, monotonic_seconds
from storage_audit.conf import conf
from storage_audit.locking import atomic_with_timeout
from storage_audit.models import KnownProject, R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_format import ParsedKeys
from storage_audit.ownership.owner import (
    Ownership,
    TrackingRow,
    get_key_formats,
    judge_ownership,
    living_owners,
    projects_in_rows,
)

Outcome = CleanupItem.Outcome
# Compared in the database by whoever goes on with it, in whatever language: not translated.
NOT_LISTED = "not in the listing before the deletion"
RECHECK_VALID_SECONDS = 30.0  # seconds
# In the cleanup's position, the last unfinished upload that was tried.
ABORTED_UP_TO = "aborted_up_to"


def delete_planned(work: Turn) -> None:
    """Send every planned item once. Raises TurnOver, StoreError, CannotConclude and LeaseLost."""
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
    cleanup.renew(step=Cleanup.Step.VERIFY, position={})


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
        cursor = {name: at for name, at in cleanup.position.items() if name == ABORTED_UP_TO}
        cleanup.renew(position=cursor)
        lock_uploads(cleanup, batch)
        items_of(batch).mark(Outcome.DELETING, store_answer="", unanswered_at=last_unanswered_at())
    until = recheck_deadline()
    try:
        proof = recheck_batch(work, batch)
        if proof.deletable and monotonic_seconds() > until:
            text = _("The check of the objects took longer than it may be relied on.")
            raise DeadlinePassed(text)
    except DeadlinePassed as late:
        pipeline.collect()
        return adaptive_batch.adapt_batch_size(work, len(batch), late)
    if proof.deletable:
        check_wrangler_bucket(work, until=until)
    with transaction.atomic():
        stay = [item for item, _reason in proof.kept]
        cleanup.renew(
            progress=progress.count_moved(cleanup, deleting=proof.already_gone, kept=stay)
        )
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


def recheck_deadline() -> float:
    """Until when, by our clock, a request may leave whose recheck begins now."""
    return monotonic_seconds() + min(RECHECK_VALID_SECONDS, conf().lease_time.total_seconds())


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


def lockable_rows(cleanup: Cleanup) -> R2ObjectQuerySet:
    """The tracking rows that this cleanup may lock: no other project's upload, and none at all for
    a verification, a dry run, and objects whose rows were deleted."""
    rows = R2Object.objects.in_bucket(cleanup.bucket)
    if cleanup.kind == Cleanup.Kind.OBJECTS or not cleanup.is_deletion:
        return rows.none()
    if cleanup.kind == Cleanup.Kind.ORPHANS:
        return rows.without_confirmed_owner()
    return rows.filter(
        Q(project_id=cleanup.project_id) | Q(project_id=None) | Q(source=R2Object.Source.BACKFILL)
    )


def locked_rows(cleanup: Cleanup) -> R2ObjectQuerySet:
    """Rows that contain all those that it has locked, to be unlocked or deleted: also the row of a
    project that is alive again by now, which would stay locked for ever."""
    if cleanup.kind == Cleanup.Kind.ORPHANS and cleanup.is_deletion:
        return R2Object.objects.in_bucket(cleanup.bucket)
    return lockable_rows(cleanup)


def lock_uploads(cleanup: Cleanup, batch: list[PlannedItem]) -> None:
    keys = {name for item in batch for name in (item.key, item.identity)}
    with wait_for_rows():
        lockable_rows(cleanup).lock_for_deletion(keys)


def reread_locked_rows(work: Turn, batch: list[PlannedItem]) -> Mapping[str, Sequence[TrackingRow]]:
    """The tracking rows as they are now, by identity. Rows that a backfill wrote since, without
    seeing our mark, are locked as well."""
    with wait_for_rows():
        found = find_batch_rows(work, batch, locked=True)
        every = chain.from_iterable(found.values())
        if late := [row.key for row in every if row.state != R2Object.State.DELETING]:
            lockable_rows(work.cleanup).lock_for_deletion(late)
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
        text = _("Somebody is changing the tracking rows of objects to be deleted. %s")
        raise OwnerChanging(text % StoreError.advice) from error


def recheck_batch(work: Turn, batch: list[PlannedItem]) -> RecheckedBatch:
    """Check the objects and their owners once more: only those that are as planned may go. Raises
    DeadlinePassed when the batch must be smaller."""
    cleanup = work.cleanup
    before = upload_states(find_batch_rows(work, batch))
    found = list_batch(work, batch)
    parsed_keys = get_key_formats().parse_keys(item.key for item in batch)
    if cleanup.kind == Cleanup.Kind.PROJECT:
        require_project_gone(cleanup)
    uses = used_files.recheck_uses(work, parsed_keys)
    with transaction.atomic():
        cleanup.renew()
        rows = reread_locked_rows(work, batch)
    alive = living_owners(
        parsed_keys.values(), projects_in_rows(chain.from_iterable(rows.values()))
    )
    if cleanup.kind == Cleanup.Kind.ORPHANS:
        doubts = given_objects.recheck_orphans(work, parsed_keys, rows, found)
    elif cleanup.kind == Cleanup.Kind.OBJECTS:
        doubts = given_objects.find_lost_copies(work, batch, found)
        doubts |= given_objects.recheck_undecided(cleanup, items_of(batch), parsed_keys)
    else:
        doubts = find_batch_keep_reasons(work, parsed_keys, rows, found)
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
            or doubts.get(item.key, "")
            or uses.get(item.key, "")
        ):
            proof.kept.append((item, reason))
        elif cleanup.has_given_objects:
            proof.deletable.append(item)
        else:
            ways, time = parsed_keys[item.key], listed.last_modified
            verdict = judge_ownership(work.project, ways, its_rows, time, alive, listed)
            if verdict.ownership is Ownership.OWNED:
                proof.deletable.append(item)
            else:
                proof.kept.append((item, verdict.reason or verdict.evidence))
    return proof


def find_batch_keep_reasons(
    work: Turn,
    parsed_keys: Mapping[str, ParsedKeys],
    rows: Mapping[str, Sequence[TrackingRow]],
    found: Mapping[str, ListedObject],
) -> dict[str, str]:
    """Which of these keys a person has to decide on elsewhere, with the reason to keep them."""
    cleanup, project_id = work.cleanup, work.project.project_id
    facts = parsed_keys, rows, found, work.identity
    return find_keep_reasons(cleanup.bucket, project_id, *facts, asking_filter(cleanup))


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
    if any(row.state == R2Object.State.UPLOADING for row in rows):
        return _("An upload to this key is under way.") + " " + what_happens_next(cleanup)
    if rows and cleanup.kind == Cleanup.Kind.OBJECTS:
        return _("A tracking row names this key again. The object goes when that is deleted.")
    seen = (listed.size, listed.etag, listed.last_modified)
    if item.found_in == CleanupItem.FoundIn.TRACKED:
        return _("The object appeared after the plan.") + " " + what_happens_next(cleanup)
    if seen != (item.size, item.etag, item.last_modified):
        return _("The object was overwritten after the plan.") + " " + what_happens_next(cleanup)
    if any(row.upload_id and (row.upload_id, row.state) not in before for row in rows):
        return _("An upload to this key has just ended.") + " " + what_happens_next(cleanup)
    return ""


def what_happens_next(cleanup: Cleanup) -> str:
    if cleanup.kind == Cleanup.Kind.PROJECT and cleanup.parent_id is None:
        return _("A follow-up check decides on it.")
    if cleanup.kind == Cleanup.Kind.ORPHANS:
        return _("If it is an orphan, the next complete scans say so.")
    return _("Ask for another cleanup to decide on it.")


def require_project_gone(cleanup: Cleanup) -> None:
    """Make sure that the cleanup still acts for the deletion that asked for it, and that nobody is
    just creating the project. Raises ProjectRecreated, CannotConclude and OwnerChanging."""
    project_id = cleanup.project_id or ""
    changing = KnownProject.objects.is_changing(project_id)
    alike = project_model.id_spellings(project_id)
    # A project that was created again and vanished: this deletion is not reported.
    living = project_model.ids_with_rows(alike) | KnownProject.objects.unreported_ids(alike)
    if project_id in living:
        text = _(
            "Project %s lives again, or did and is gone without a signal: its objects are the new"
            " project's."
        )
        raise ProjectRecreated(text % project_id)
    if living:
        raise bucket_marker.CannotConclude(namesake_text(project_id, min(living)))
    if changing:
        raise OwnerChanging(_("Project %s is just being created, or deleted again.") % project_id)
    deleted_at = KnownProject.objects.deletion_time(project_id)
    if deleted_at is None:
        text = _(
            "The deletion of project %s is not on record any more, so its files are kept. To delete"
            " them, declare the project deleted."
        )
        raise ProjectRecreated(text % project_id)
    if deleted_at != cleanup.project_deleted_at:
        raise ProjectRecreated(superseded_text(project_id))


def namesake_text(project_id: str, other: str) -> str:
    text = _(
        "Project %(other)s exists. Its id differs from %(id)s only in the code points of letters"
        " that look the same, so both may use the same files. Nothing is deleted. If the files of"
        " %(id)s are to go, give the other project another id, then force-delete this cleanup."
    )
    return text % {"other": other, "id": project_id}


def superseded_text(project_id: str) -> str:
    text = _(
        "Project %s was created and deleted again. The cleanup of that deletion has its files."
    )
    return text % project_id


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
    locked_rows(cleanup).unlock(items.keys_and_identities())
    items.mark(Outcome.KEPT, reason)


def unlock_idle_items(cleanup: Cleanup) -> None:
    """Open the keys to uploads, as nothing is being sent for now. A recheck precedes a new attempt.

    What was sent and not answered stays marked: the store may still obey the call, and would delete
    a new upload instead.
    """
    marked = cleanup.items.filter(outcome=Outcome.DELETING)
    marked.exclude(calls__gt=0, store_answer="").mark(Outcome.TO_DELETE)
    locked_rows(cleanup).unlock(cleanup.items.planned().keys_and_identities())


def list_unfinished_uploads(work: Turn) -> Iterator[tuple[MultipartUpload, str]] | None:
    """The project's multipart uploads, each with the reason why it is kept, if it is; None where
    the store cannot list them. The lease outlasts each page, not all of them."""
    cleanup = work.cleanup
    listings = []
    for prefix in cleanup.listed_prefixes:
        pages = multipart.list_unfinished_uploads(cleanup.bucket, prefix)
        cleanup.renew()
        if pages is None:
            return None
        listings.append(pages)
    return owned_uploads_in_pages(work, chain(*listings))


def owned_uploads_in_pages(
    work: Turn, pages: Iterable[list[MultipartUpload]]
) -> Iterator[tuple[MultipartUpload, str]]:
    for page in pages:
        work.cleanup.renew()
        yield from find_owned_uploads(work, page)


def find_owned_uploads(
    work: Turn, page: list[MultipartUpload]
) -> Iterator[tuple[MultipartUpload, str]]:
    parsed_keys = get_key_formats().parse_keys(upload.key for upload in page)
    rows = rows_by_identity(work.cleanup.bucket, parsed_keys, work.identity)
    alive = living_owners(
        parsed_keys.values(), projects_in_rows(chain.from_iterable(rows.values()))
    )
    # No row is about an object that is still to come.
    undecided = find_batch_keep_reasons(work, parsed_keys, rows, {})
    ignored = get_ignore_list().find_ignored_uploads(work.cleanup.bucket, page)
    for upload in sorted(page, key=upload_position):
        its_rows = rows.get(work.identity(upload.key), ())
        verdict = judge_ownership(
            work.project, parsed_keys[upload.key], its_rows, upload.initiated, alive
        )
        if verdict.ownership is Ownership.OWNED:
            yield upload, ignored.get(upload.upload_id, "") or undecided.get(upload.key, "")


def abort_uploads(work: Turn) -> bool:
    """Abort them for half of the turn, as the deletions must go on as well. Each is tried once,
    unless the deletions begin again. Returns whether the next turn is for the others. Where the
    store refuses all that a turn tried, the others are left to the follow-up checks, or expire."""
    start = last = work.cleanup.position.get(ABORTED_UP_TO, "")
    has_looked = aborted = False
    for upload, _reason in list_unfinished_uploads(work) or ():
        if (place := upload_position(upload)) <= start:
            continue
        if start < last < place and work.is_half_over():
            return aborted
        if not has_looked:
            work.recheck_bucket()
            has_looked = True
        aborted |= abort_upload(work, upload)
        last = place
    return False


def upload_position(upload: MultipartUpload) -> str:
    """Its key as text that the database can hold, whatever its bytes, and in the order of the
    listing."""
    return key_bytes(upload.key).hex()


def abort_upload(work: Turn, upload: MultipartUpload) -> bool:
    """Whether it was aborted or kept; False if it is not ours or the store could not abort it."""
    cleanup, until = work.cleanup, recheck_deadline()
    if cleanup.kind == Cleanup.Kind.PROJECT:
        require_project_gone(cleanup)
    cleanup.renew()
    # A page of uploads may take minutes.
    reasons = dict(find_owned_uploads(work, [upload]))
    if upload not in reasons:
        return False
    kept, trouble = reasons[upload], ""
    try:
        if not kept:
            with s3.send_deadline(until):
                multipart.abort_multipart(cleanup.bucket, upload)
    except StoreError as error:
        # It must not stop the deletions. R2 ends such uploads after seven days.
        trouble = str(error) or error.code
    failed = kept or trouble
    said = not_aborted_text(failed) if failed else _("Unfinished upload aborted.")
    with transaction.atomic():
        cleanup.renew(position={**cleanup.position, ABORTED_UP_TO: upload_position(upload)})
        cleanup.record("delete", said, key=escape_key(upload.key))
    return not trouble


def not_aborted_text(reason: str) -> str:
    return _("Unfinished upload not aborted: %s") % reason
