"""Multipart uploads that a scan found old and unfinished are aborted, each proved just before."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.bucket import multipart, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.multipart import Upload
from storage_audit.cleanup.delete_batches import proof_ends
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.open_decisions import find_covering, possible_owners, why_covered
from storage_audit.conf import conf
from storage_audit.fields import spellings
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object, R2ObjectQuerySet, under_way
from storage_audit.origin import current_origin
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.owner import layouts


class Aborted(NamedTuple):
    """What became of one finding: how it is resolved, or why it is not."""

    finding: Finding
    resolution: str = ""
    objection: str = ""


def abort(findings: Iterable[Finding], *, dry_run: bool = False) -> Iterator[Aborted]:
    """Abort these very uploads; gives each as soon as it is done, or cannot be. Raises
    CannotConclude and StoreError; calling it again goes on. A dry run gives the objections, and
    changes nothing."""
    checked = set[str]()
    for finding in findings:
        if finding.bucket not in checked:
            bucket_marker.check(finding.bucket)
            checked.add(finding.bucket)
        one = would_abort(finding) if dry_run else abort_one(finding)
        if one.resolution and not dry_run:
            mine = Finding.objects.filter(pk=finding.pk)
            mine.resolve(one.resolution, current_origin().user)
        yield one


def would_abort(finding: Finding) -> Aborted:
    objection, upload = look_at(finding)
    return Aborted(finding, "" if objection or upload else ended(), objection)


def abort_one(finding: Finding) -> Aborted:
    until = proof_ends()
    objection, upload = look_at(finding)
    if objection:
        return Aborted(finding, objection=objection)
    if upload is None:
        return Aborted(finding, ended())
    resolution, trouble = _("aborted"), ""
    try:
        with s3.sent_until(until):
            multipart.abort(finding.bucket, upload)
    except StoreError as error:
        resolution, trouble = ended(), f"{str(error).rstrip('.')}. "
    if seen(finding):
        return Aborted(finding, objection=trouble + _("The upload is still listed. Try again."))
    return Aborted(finding, resolution)


def ended() -> str:
    return _("not listed any more: completed, or aborted by somebody else")


def look_at(finding: Finding) -> tuple[str, Upload | None]:
    """Why it must not be aborted, or nothing; and the upload, unless there is none any more."""
    if finding.kind != Finding.Kind.UNFINISHED:
        return _("It is %s, and no unfinished upload.") % finding.get_kind_display(), None
    if finding.escaped:
        return _("No request can name this upload. R2 ends it by itself after seven days."), None
    upload = seen(finding)
    # A decision counts that was made since the findings were read, or while the store answers.
    if reason := why_kept(finding):
        return reason, upload
    moment = timezone.now() - conf().upload_timeout
    if upload and (upload.initiated != finding.last_modified or upload.initiated >= moment):
        return _("The upload is not as old as it was found. Scan again."), upload
    return "", upload


def why_kept(finding: Finding) -> str:
    """Why the upload stays by what the database says now, or nothing."""
    finding.refresh_from_db(fields=["state", "note"])
    if finding.state == Finding.State.RESOLVED:
        return _("It is resolved already: %s") % finding.note
    if finding.state == Finding.State.ACKNOWLEDGED:
        return _("It is acknowledged. To abort the upload, reopen the finding first.")
    if is_under_way(finding):
        return _("The application is uploading to this key. Try again later.")
    cleanup = covering(finding)
    return why_covered(cleanup) if cleanup else ""


def is_under_way(finding: Finding) -> bool:
    """Of which multipart upload such a row tells is not known: of any of the key's."""
    return rows_of(finding).filter(under_way()).exists()


def covering(finding: Finding) -> CleanupOperation | None:
    """The open cleanup that decides on the files of this key, and on its unfinished uploads."""
    owners = possible_owners(layouts().readings(finding.key), list(rows_of(finding)))
    return find_covering(finding.bucket, {finding.key: owners}).get(finding.key)


def rows_of(finding: Finding) -> R2ObjectQuerySet:
    return R2Object.objects.in_bucket(finding.bucket).filter(key__in=spellings(finding.key))


def seen(finding: Finding) -> Upload | None:
    """This very upload, in a complete listing of those of its key, which a sighting of the marker
    follows. Raises CannotConclude and StoreError."""
    pages = multipart.unfinished(finding.bucket, finding.key)
    if pages is None:
        raise StoreError(_("The store cannot list unfinished uploads."))
    mine = (finding.key, finding.upload_id)
    there = [upload for page in pages for upload in page if (upload.key, upload.upload_id) == mine]
    bucket_marker.see_marker(finding.bucket)
    return there[0] if there else None
