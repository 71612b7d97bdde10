"""The delete step: batch by batch, each proved just before it is sent, and sent once.

A batch is what one look proves; it goes in one call, or in some at once.
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
from storage_audit.bucket.listing import as_bytes, escape
from storage_audit.bucket.multipart import Upload
from storage_audit.bucket.s3 import Listed
from storage_audit.bucket.wrangler import Command
from storage_audit.cleanup import adaptive_batch, policies, progress, used_files
from storage_audit.cleanup.adaptive_batch import Pace
from storage_audit.cleanup.delete_pipeline import Flight, Planned, Proof, among, record_commands
from storage_audit.cleanup.models import CleanupItem, CleanupItemQuerySet, CleanupOperation
from storage_audit.cleanup.open_decisions import ask_keeper, asked_by
from storage_audit.cleanup.plan import rows_by_identity, to_judge, undecided_among
from storage_audit.cleanup.turn import OwnerChanging, ProjectRecreated, TooManySeeks, TurnOver, Work
from storage_audit.clocks import mark_of, monotonic
from storage_audit.conf import conf
from storage_audit.locking import impatient
from storage_audit.models import KnownProject, R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import Claim, Row, alive_among, judge, layouts, named_in

Outcome = CleanupItem.Outcome
# Compared in the database by whoever goes on with it, in whatever language: not translated.
NOT_LISTED = "not in the listing before the deletion"
PROOF_LASTS = 30.0  # seconds
# The place of the last unfinished upload that was tried, in the operation's position.
ABORTED = "aborted_up_to"


def delete(work: Work) -> None:
    """Send every planned item once. Raises TurnOver, StoreError, CannotConclude and LeaseLost."""
    operation = work.operation
    uploads_left = abort_uploads(work)
    with Flight(work) as flight:
        while batch := next_batch(work):
            if flight.must_land_before(batch):
                flight.land()
                continue
            work.look_again()
            try:
                delete_batch(work, batch, flight)
            except TooManySeeks:
                continue
            work.breathe()
    if uploads_left:
        raise TurnOver
    operation.renew(step=CleanupOperation.Step.VERIFY, cursor={})


def next_batch(work: Work) -> list[Planned]:
    """Items that are planned, then those that were left without an answer, the longest ago first:
    one that never gets an answer must not keep the others from theirs."""
    items, place = work.operation.items, (F("span").asc(nulls_last=True), "key")
    planned = items.planned().order_by(*place)
    unanswered = items.filter(outcome=Outcome.DELETING, answer="")
    return first_of(work, planned) or first_of(work, unanswered.order_by("changed_at", *place))


def first_of(work: Work, todo: CleanupItemQuerySet) -> list[Planned]:
    """Few at a time of those that no listed prefix covers, and never beside others."""
    first = todo.first()
    if first is None:
        return []
    alone, size = first.span is None, Pace.of(work.operation).size
    items = todo.filter(span__isnull=alone).values_list(*Planned._fields)
    return list(map(Planned._make, items[: min(size, work.together) if alone else size]))


def delete_batch(work: Work, batch: list[Planned], flight: Flight) -> None:
    """Prove these items, while the batch before them may still be on its way, and send them behind
    it; what waits there is not sent after trouble with that one, as then it takes a new look."""
    operation = work.operation
    with transaction.atomic():
        # Whatever a pass has seen by now, it was before this.
        cursor = {name: at for name, at in operation.cursor.items() if name == ABORTED}
        operation.renew(cursor=cursor)
        bar_uploads(operation, batch)
        among(batch).mark(Outcome.DELETING, answer="", unanswered_at=last_unanswered())
    until = proof_ends()
    try:
        proof = prove(work, batch)
        if proof.may_go and monotonic() > until:
            raise DeadlinePassed(_("The look at the objects took longer than it may be relied on."))
    except DeadlinePassed as late:
        flight.land()
        return adaptive_batch.adapt(work, len(batch), late)
    if proof.may_go:
        see_same_bucket(work, until=until)
    with transaction.atomic():
        stay = [item for item, _reason in proof.stay]
        operation.renew(headway=progress.moved(operation, deleting=proof.gone, protected=stay))
        record_proof(operation, proof)
    flight.depart(proof, until=until)


def last_unanswered() -> Case:
    """A worker that died, or lost its lease, wrote down no answer to what it had sent. The mark
    goes by its own clock, as the signature of its call did."""
    span = conf().deletion_timeout
    sent, earlier = mark_of("changed_at", span), mark_of("unanswered_at", span)
    mark = Greatest(sent, Coalesce(earlier, sent))
    unwritten = When(calls__gt=0, answer="", then=mark)
    return Case(unwritten, default="unanswered_at")


def proof_ends() -> float:
    """Until when our clock lets a request leave that is proved from now on."""
    return monotonic() + min(PROOF_LASTS, conf().lease.total_seconds())


def see_same_bucket(work: Work, *, until: float) -> None:
    """S3 is told an address, and wrangler an account: does it delete where we look? Asked once in
    a turn. Raises CannotConclude and StoreError."""
    operation, ran = work.operation, list[Command]()
    if work.wrangler_is_here or not operation.runs_wrangler:
        return
    try:
        bucket_marker.see_marker_by_wrangler(operation.bucket, until=until, ran=ran.append)
    finally:
        with transaction.atomic():
            operation.renew()
            record_commands(operation, ran)
    work.wrangler_is_here = True


def own_rows(operation: CleanupOperation) -> R2ObjectQuerySet:
    """The tracking rows that this operation may bar: no other project's upload, and none at all for
    a look, a dry run, and objects whose rows were deleted."""
    rows = R2Object.objects.in_bucket(operation.bucket)
    if operation.kind == CleanupOperation.Kind.OBJECTS or not operation.deletes:
        return rows.none()
    if operation.kind == CleanupOperation.Kind.ORPHANS:
        return rows.told_by_nobody_alive()
    return rows.filter(
        Q(project_id=operation.project_id) | Q(project_id=None) | Q(source=R2Object.Source.BACKFILL)
    )


def barred_by(operation: CleanupOperation) -> R2ObjectQuerySet:
    """Among these are the rows that it has barred, to be opened again or forgotten: also that of a
    project that lives again by now, which would stay barred for ever."""
    if operation.kind == CleanupOperation.Kind.ORPHANS and operation.deletes:
        return R2Object.objects.in_bucket(operation.bucket)
    return own_rows(operation)


def bar_uploads(operation: CleanupOperation, batch: list[Planned]) -> None:
    keys = {name for item in batch for name in (item.key, item.identity)}
    with waiting_for_rows():
        own_rows(operation).lock_for_deletion(keys)


def barred_rows(work: Work, batch: list[Planned]) -> Mapping[str, Sequence[Row]]:
    """The tracking rows as they are by now, by identity. A backfill that did not see our mark may
    have written some since: these are barred as well."""
    with waiting_for_rows():
        found = rows_of(work, batch, locked=True)
        every = chain.from_iterable(found.values())
        if late := [row.key for row in every if row.state != R2Object.State.DELETING]:
            own_rows(work.operation).lock_for_deletion(late)
    return found


def rows_of(
    work: Work, batch: list[Planned], *, locked: bool = False
) -> Mapping[str, Sequence[Row]]:
    rows = R2Object.objects.in_bucket(work.operation.bucket)
    rows = rows.select_for_update() if locked else rows
    return to_judge(rows, [item.key for item in batch], work.identity)


def uploads_of(rows: Mapping[str, Sequence[Row]]) -> set[tuple[UUID | None, str]]:
    """The last upload to each key, and its row's state; an upload in the meantime changes them."""
    return {(row.upload_id, row.state) for row in chain.from_iterable(rows.values())}


@contextmanager
def waiting_for_rows() -> Iterator[None]:
    """Waits for whoever is just changing a row, such as to hand its object to another project.
    Raises OwnerChanging when that takes long, as others wait for this operation meanwhile."""
    try:
        with impatient():
            yield
    except OperationalError as error:
        text = _("Somebody is changing the tracking rows of objects to be deleted. %s")
        raise OwnerChanging(text % StoreError.advice) from error


def prove(work: Work, batch: list[Planned]) -> Proof:
    """Look at the objects and at their owners once more: only those that are as planned may go.
    Raises DeadlinePassed when fewer have to be asked for."""
    operation = work.operation
    before = uploads_of(rows_of(work, batch))
    found = look_at(work, batch)
    readings = layouts().readings_of(item.key for item in batch)
    if operation.kind == CleanupOperation.Kind.PROJECT:
        refuse_reborn(operation)
    uses = used_files.doubts_at_proof(work, readings)
    with transaction.atomic():
        operation.renew()
        rows = barred_rows(work, batch)
    alive = alive_among(readings.values(), named_in(chain.from_iterable(rows.values())))
    if operation.kind == CleanupOperation.Kind.ORPHANS:
        doubts = policies.doubts_at_proof(work, readings, rows, found)
    elif operation.kind == CleanupOperation.Kind.OBJECTS:
        doubts = policies.lost_copies(work, batch, found)
        doubts |= policies.undecided_at_proof(operation, among(batch), readings)
    else:
        doubts = undecided_of(work, readings, rows, found)
    objects = (found.get(work.identity(item.key)) for item in batch)
    acknowledged = ask_keeper().find_acknowledged(operation.bucket, filter(None, objects))
    proof = Proof([], [], [])
    for item in batch:
        identity = work.identity(item.key)
        listed, its_rows = found.get(identity), rows.get(identity, ())
        if listed is None:
            proof.gone.append(item)
        elif reason := (
            objection(operation, item, listed, its_rows, before)
            or acknowledged.get(listed.key, "")
            or doubts.get(item.key, "")
            or uses.get(item.key, "")
        ):
            proof.stay.append((item, reason))
        elif operation.names_its_objects:
            proof.may_go.append(item)
        else:
            ways, time = readings[item.key], listed.last_modified
            verdict = judge(work.project, ways, its_rows, time, alive, listed)
            if verdict.claim is Claim.OWNED:
                proof.may_go.append(item)
            else:
                proof.stay.append((item, verdict.reason or verdict.evidence))
    return proof


def undecided_of(
    work: Work,
    readings: Mapping[str, Readings],
    rows: Mapping[str, Sequence[Row]],
    found: Mapping[str, Listed],
) -> dict[str, str]:
    """Which of these keys a person has to decide on elsewhere, and why that keeps them."""
    operation, project_id = work.operation, work.project.project_id
    facts = readings, rows, found, work.identity
    return undecided_among(operation.bucket, project_id, *facts, asked_by(operation))


def look_at(work: Work, batch: list[Planned]) -> dict[str, Listed]:
    """The objects and their copies, by identity. Keys that are not found in time are not sent.
    Raises TooManySeeks when there are too many for one look."""
    find = work.find_lone if batch[0].span is None else work.find
    keys = [key for item in batch for key in (item.key, item.copied_to) if key]
    return find(keys, briefly=True)


def objection(
    operation: CleanupOperation,
    item: Planned,
    listed: Listed,
    rows: Sequence[Row],
    before: set[tuple[UUID | None, str]],
) -> str:
    """Why the object is not the one of the plan any more, or nothing. `before` are the uploads as
    they were just before the look, which may not show what one stored since."""
    if any(row.state == R2Object.State.UPLOADING for row in rows):
        return _("An upload to this key is under way.") + " " + what_decides(operation)
    if rows and operation.kind == CleanupOperation.Kind.OBJECTS:
        return _("A tracking row names this key again. The object goes when that is deleted.")
    seen = (listed.size, listed.etag, listed.last_modified)
    if item.found_in == CleanupItem.FoundIn.TRACKED:
        return _("The object appeared after the plan.") + " " + what_decides(operation)
    if seen != (item.size, item.etag, item.last_modified):
        return _("The object was overwritten after the plan.") + " " + what_decides(operation)
    if any(row.upload_id and (row.upload_id, row.state) not in before for row in rows):
        return _("An upload to this key has just ended.") + " " + what_decides(operation)
    return ""


def what_decides(operation: CleanupOperation) -> str:
    if operation.kind == CleanupOperation.Kind.PROJECT and operation.parent_id is None:
        return _("A late check decides on it.")
    if operation.kind == CleanupOperation.Kind.ORPHANS:
        return _("If it is an orphan, the next complete scans say so.")
    return _("Ask for another cleanup to decide on it.")


def refuse_reborn(operation: CleanupOperation) -> None:
    """A cleanup acts only for the deletion that asked for it, and a project that is just being
    created comes first. Raises ProjectRecreated, CannotConclude and OwnerChanging."""
    project_id = operation.project_id or ""
    changing = KnownProject.objects.is_changing(project_id)
    alike = project_model.spelled_alike(project_id)
    # One that was created again and went without a word: nobody said that this one is deleted.
    living = project_model.have_rows(alike) | KnownProject.objects.unsaid(alike)
    if project_id in living:
        text = _(
            "Project %s lives again, or did and is gone without a signal: its objects are the new"
            " project's."
        )
        raise ProjectRecreated(text % project_id)
    if living:
        raise bucket_marker.CannotConclude(namesake_of(project_id, min(living)))
    if changing:
        raise OwnerChanging(_("Project %s is just being created, or deleted again.") % project_id)
    deleted_at = KnownProject.objects.time_of_deletion(project_id)
    if deleted_at is None:
        text = _(
            "The deletion of project %s is not on record any more, so its files are kept. To delete"
            " them, declare the project deleted."
        )
        raise ProjectRecreated(text % project_id)
    if deleted_at != operation.project_deleted_at:
        raise ProjectRecreated(taken_over(project_id))


def namesake_of(project_id: str, other: str) -> str:
    text = _(
        "Project %(other)s exists. Its id differs from %(id)s only in the code points of letters"
        " that look the same, so both may use the same files. Nothing is deleted. If the files of"
        " %(id)s are to go, give the other project another id, then force-delete this operation."
    )
    return text % {"other": other, "id": project_id}


def taken_over(project_id: str) -> str:
    text = _(
        "Project %s was created and deleted again. The cleanup of that deletion has its files."
    )
    return text % project_id


def record_proof(operation: CleanupOperation, proof: Proof) -> None:
    if proof.gone:
        among(proof.gone).update(answer=NOT_LISTED)
    for reason, group in groupby(sorted(proof.stay, key=by_reason), key=by_reason):
        let_go(operation, among([item for item, _reason in group]), reason)
    among(proof.may_go).update(tries=F("tries") + 1, calls=F("calls") + 1)


def by_reason(stay: tuple[Planned, str]) -> str:
    return stay[1]


def let_go(operation: CleanupOperation, items: CleanupItemQuerySet, reason: str) -> None:
    """Protect the items, and open their keys to uploads again."""
    barred_by(operation).unlock(items.names())
    items.mark(Outcome.PROTECTED, reason)


def rest(operation: CleanupOperation) -> None:
    """Nothing is being sent for now: open the keys to uploads; a new proof precedes a new try.

    What was sent and not answered stays marked: the store may still be at it, and would take the
    upload for the object that it was to delete.
    """
    marked = operation.items.filter(outcome=Outcome.DELETING)
    marked.exclude(calls__gt=0, answer="").mark(Outcome.PLANNED)
    barred_by(operation).unlock(operation.items.planned().names())


def unfinished_uploads(work: Work) -> Iterator[tuple[Upload, str]] | None:
    """The project's multipart uploads, each with why it is kept, or nothing; None where the store
    cannot tell. The lease outlasts each page, not all of them."""
    operation = work.operation
    listings = []
    for prefix in operation.ranges:
        pages = multipart.unfinished(operation.bucket, prefix)
        operation.renew()
        if pages is None:
            return None
        listings.append(pages)
    return owned_in_pages(work, chain(*listings))


def owned_in_pages(work: Work, pages: Iterable[list[Upload]]) -> Iterator[tuple[Upload, str]]:
    for page in pages:
        work.operation.renew()
        yield from owned_uploads(work, page)


def owned_uploads(work: Work, page: list[Upload]) -> Iterator[tuple[Upload, str]]:
    readings = layouts().readings_of(upload.key for upload in page)
    rows = rows_by_identity(work.operation.bucket, readings, work.identity)
    alive = alive_among(readings.values(), named_in(chain.from_iterable(rows.values())))
    # No row is about an object that is still to come.
    undecided = undecided_of(work, readings, rows, {})
    acknowledged = ask_keeper().find_acknowledged_uploads(work.operation.bucket, page)
    for upload in sorted(page, key=place_of):
        its_rows = rows.get(work.identity(upload.key), ())
        verdict = judge(work.project, readings[upload.key], its_rows, upload.initiated, alive)
        if verdict.claim is Claim.OWNED:
            yield upload, acknowledged.get(upload.upload_id, "") or undecided.get(upload.key, "")


def abort_uploads(work: Work) -> bool:
    """Abort them for half of the turn, as the deletions must go on as well. Each is tried once,
    unless the deletions begin again. Returns whether the next turn is for the others: where the
    store refuses all that a turn tried, they are left to the late checks, or expire."""
    start = last = work.operation.cursor.get(ABORTED, "")
    has_looked = aborted = False
    for upload, _reason in unfinished_uploads(work) or ():
        if (place := place_of(upload)) <= start:
            continue
        if start < last < place and work.is_half_over():
            return aborted
        if not has_looked:
            work.look_again()
            has_looked = True
        aborted |= abort_upload(work, upload)
        last = place
    return False


def place_of(upload: Upload) -> str:
    """Its key as text that the database can hold, whatever its bytes, and in the order of the
    listing."""
    return as_bytes(upload.key).hex()


def abort_upload(work: Work, upload: Upload) -> bool:
    """Whether it is aborted, or kept for a reason: the store had no trouble with it."""
    operation, until = work.operation, proof_ends()
    if operation.kind == CleanupOperation.Kind.PROJECT:
        refuse_reborn(operation)
    operation.renew()
    # A page of uploads may take minutes.
    reasons = dict(owned_uploads(work, [upload]))
    if upload not in reasons:
        return False
    kept, trouble = reasons[upload], ""
    try:
        if not kept:
            with s3.sent_until(until):
                multipart.abort(operation.bucket, upload)
    except StoreError as error:
        # It must not stop the deletions. R2 ends such uploads after seven days.
        trouble = str(error) or error.code
    failed = kept or trouble
    said = not_aborted(failed) if failed else _("Unfinished upload aborted.")
    with transaction.atomic():
        operation.renew(cursor={**operation.cursor, ABORTED: place_of(upload)})
        operation.record("delete", said, key=escape(upload.key))
    return not trouble


def not_aborted(reason: str) -> str:
    return _("Unfinished upload not aborted: %s") % reason
