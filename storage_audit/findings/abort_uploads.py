"""Aborts multipart uploads that a scan found old and unfinished; each is checked just before."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.delete_pipeline import recheck_deadline
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.open_decisions import covered_reason, find_covering, possible_owners
from storage_audit.conf import conf
from storage_audit.fields import unicode_spellings
from storage_audit.findings.action_result import state_reason
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object, R2ObjectQuerySet, uploading_rows
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.request_origin import current_origin


class AbortResult(NamedTuple):
    """What became of one finding: how it is resolved, or why it is not."""

    finding: Finding
    resolution: str = ""
    objection: str = ""


def abort_each(findings: Iterable[Finding], *, dry_run: bool = False) -> Iterator[AbortResult]:
    """Abort exactly these uploads; yields each once it is done or refused. Raises CannotConclude
    and StoreError; call it again to go on. A dry run yields the objections, and changes nothing."""
    checked = set[str]()
    for finding in findings:
        if finding.bucket not in checked:
            bucket_marker.check_bucket(finding.bucket)
            checked.add(finding.bucket)
        one = preview_abort(finding) if dry_run else abort_upload(finding)
        if one.resolution and not dry_run:
            mine = Finding.objects.filter(pk=finding.pk)
            mine.resolve(one.resolution, current_origin().user)
        yield one


def preview_abort(finding: Finding) -> AbortResult:
    objection, upload = check_upload(finding)
    return AbortResult(finding, "" if objection or upload else ended_note(), objection)


def abort_upload(finding: Finding) -> AbortResult:
    until = recheck_deadline()
    objection, upload = check_upload(finding)
    if objection:
        return AbortResult(finding, objection=objection)
    if upload is None:
        return AbortResult(finding, ended_note())
    resolution, trouble = _("aborted"), ""
    try:
        with s3.send_deadline(until):
            multipart.abort_multipart(finding.bucket, upload)
    except StoreError as error:
        resolution, trouble = ended_note(), f"{str(error).rstrip('.')}. "
    if find_upload(finding):
        return AbortResult(finding, objection=trouble + _("The upload is still there. Try again."))
    return AbortResult(finding, resolution)


def ended_note() -> str:
    return _("already gone: completed, or aborted by somebody else")


def check_upload(finding: Finding) -> tuple[str, MultipartUpload | None]:
    """Why it must not be aborted, or nothing; and the upload, unless it is gone."""
    if finding.kind != Finding.Kind.UNFINISHED:
        return _("Not an unfinished upload, but: %s.") % finding.get_kind_display(), None
    if finding.escaped:
        return _(
            "No request can use this name. R2 aborts the upload automatically after seven days."
        ), None
    upload = find_upload(finding)
    # A decision made since the findings were read, or while the store answers, counts.
    if reason := upload_keep_reason(finding):
        return reason, upload
    moment = timezone.now() - conf().upload_timeout
    if upload and (upload.initiated != finding.last_modified or upload.initiated >= moment):
        return _("This upload is newer than the one that was found. Scan again."), upload
    return "", upload


def upload_keep_reason(finding: Finding) -> str:
    """Why the upload stays by what the database says now, or nothing."""
    finding.refresh_from_db(fields=["state", "note"])
    if finding.state == Finding.State.RESOLVED:
        return state_reason(finding)
    if finding.state == Finding.State.IGNORED:
        return _("Ignored. To abort the upload, reopen the finding first.")
    if is_under_way(finding):
        return _("The application is uploading this file. Try again later.")
    if pause := pause_deletions.find_pause():
        return f"{pause}."
    cleanup = covering_cleanup(finding)
    return covered_reason(cleanup) if cleanup else ""


def is_under_way(finding: Finding) -> bool:
    """Whether a row says that the key is being uploaded; it could be any of the key's uploads."""
    return rows_of_finding(finding).filter(uploading_rows()).exists()


def covering_cleanup(finding: Finding) -> Cleanup | None:
    """The open cleanup that decides on the files of this key, and on its unfinished uploads."""
    owners = possible_owners(
        get_key_formats().parse_key(finding.key), list(rows_of_finding(finding))
    )
    return find_covering(finding.bucket, {finding.key: owners}).get(finding.key)


def rows_of_finding(finding: Finding) -> R2ObjectQuerySet:
    return R2Object.objects.in_bucket(finding.bucket).filter(key__in=unicode_spellings(finding.key))


def find_upload(finding: Finding) -> MultipartUpload | None:
    """This upload, in a complete listing of its key's uploads, after which the marker is checked.
    Raises CannotConclude and StoreError."""
    pages = multipart.list_unfinished_uploads(finding.bucket, finding.key)
    if pages is None:
        raise StoreError(_("The store can't list unfinished uploads."))
    mine = (finding.key, finding.upload_id)
    there = [upload for page in pages for upload in page if (upload.key, upload.upload_id) == mine]
    bucket_marker.require_marker(finding.bucket)
    return there[0] if there else None
