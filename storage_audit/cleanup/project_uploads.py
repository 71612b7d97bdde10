"""Unfinished multipart uploads of a deleted project: the delete step aborts them first."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from django.db import transaction
from django.utils.translation import gettext as _

from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import escape_key, key_bytes
from storage_audit.bucket.multipart import MultipartUpload, UploadAnswer
from storage_audit.cleanup.delete_pipeline import RECHECK_VALID_SECONDS, recheck_deadline
from storage_audit.cleanup.judge_objects import rows_by_identity
from storage_audit.cleanup.kind_policies import policy_of, undecided_reasons
from storage_audit.cleanup.open_decisions import get_ignore_list
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.clocks import monotonic_seconds
from storage_audit.ownership.ownership_rule import (
    Ownership,
    get_key_formats,
    judge_ownership,
    living_owners,
)
from storage_audit.ownership.row_evidence import projects_in_rows


def record_unfinished_uploads(work: Turn) -> bool:
    """Note the project's unfinished uploads in the timeline. Whether there are any to abort."""
    cleanup, uploads = work.cleanup, list_unfinished_uploads(work)
    # The first ones are listed by name, and the others counted.
    keys, kept, count = list[str](), dict[str, str](), 0
    for upload, reason in uploads or ():
        count += not reason
        if reason and len(kept) < 100:
            kept[escape_key(upload.key)] = reason
        elif not reason and len(keys) < 100:
            keys.append(escape_key(upload.key))
    with transaction.atomic():
        cleanup.renew()
        if uploads is None:
            text = _("Unfinished multipart uploads: not checked, as the store cannot list them.")
            cleanup.record("plan", text)
        elif keys:
            text = _("Unfinished multipart uploads: %s.") % count
            if not policy_of(cleanup).is_verification:
                text += " " + _("They will be aborted.")
            cleanup.record("plan", text, keys=keys)
        for key, reason in kept.items():
            cleanup.record("plan", not_aborted_text(reason), key=key)
    return count > 0


def list_unfinished_uploads(work: Turn) -> Iterator[tuple[MultipartUpload, str]] | None:
    """The project's multipart uploads, each with the reason why it is kept, if it is; None where
    the store cannot list them. The lease outlasts each page, not all of them."""
    cleanup = work.cleanup
    prefixes = tuple(cleanup.listed_prefixes)
    answer = find_uploads(work) if prefixes else UploadAnswer(0, [])
    if answer.error:
        if answer.error.code == "NotImplemented":
            return None
        raise answer.error
    cleanup.renew()
    if answer.uploads is not None:
        ours = [upload for upload in answer.uploads if upload.key.startswith(prefixes)]
        return owned_uploads_in_pages(work, [ours])
    work.is_marker_due = True
    listings = []
    for prefix in prefixes:
        pages = multipart.list_unfinished_uploads(cleanup.bucket, prefix)
        cleanup.renew()
        if pages is None:
            return None
        listings.append(pages)
    return owned_uploads_in_pages(work, chain(*listings))


def find_uploads(work: Turn) -> UploadAnswer:
    """As the start of the turn showed them, or as they are now if that is long ago."""
    answer = work.uploads
    if not answer or monotonic_seconds() > answer.asked_at + RECHECK_VALID_SECONDS:
        work.is_marker_due = True
        answer = work.uploads = multipart.ask_for_uploads(work.cleanup.bucket)
    return answer


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
    undecided = undecided_reasons(work, parsed_keys, rows, {})
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
    start = last = work.cleanup.position.aborted_up_to
    has_looked = aborted = False
    for upload, _reason in list_unfinished_uploads(work) or ():
        if (place := upload_position(upload)) <= start:
            continue
        if start < last < place and work.is_half_over():
            return aborted
        if not has_looked:
            work.check_marker()
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
    policy_of(cleanup).require_project_gone(cleanup)
    cleanup.renew()
    # A page of uploads may take minutes.
    reasons = dict(find_owned_uploads(work, [upload]))
    if upload not in reasons:
        return False
    kept, trouble = reasons[upload], ""
    if not kept:
        with transaction.atomic():
            cleanup.begin_sending()
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
        cleanup.renew(position=replace(cleanup.position, aborted_up_to=upload_position(upload)))
        cleanup.record("delete", said, key=escape_key(upload.key))
    return not trouble


def not_aborted_text(reason: str) -> str:
    return _("Unfinished upload not aborted: %s") % reason
