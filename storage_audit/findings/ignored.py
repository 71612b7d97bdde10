"""What people keep: objects and unfinished uploads whose findings they ignored."""

from collections.abc import Iterable, Iterator

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import is_storable
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.open_decisions import group_by_form
from storage_audit.findings.models import Finding, FindingQuerySet


def find_ignored(bucket: str, seen: Iterable[ListedObject]) -> dict[str, str]:
    """By key as it is listed, why no cleanup deletes the object."""
    return {key: keep_reason(one) for key, one in find_keeping_findings(bucket, seen).items()}


def find_keeping_findings(bucket: str, seen: Iterable[ListedObject]) -> dict[str, Finding]:
    """By key as it is listed, the ignored finding that keeps the object; it describes the object as
    it still is."""
    objects = {each.key: (each.size, each.etag) for each in seen if is_storable(each.key)}
    return {
        key: finding
        for key, finding in find_by_key(Finding.objects.keeping_objects(), bucket, objects)
        if objects[key] == (finding.size, finding.etag)
    }


def find_ignored_keys(bucket: str, keys: Iterable[str]) -> dict[str, str]:
    """By key, why its row stays: without the row the finding's object could not be identified."""
    ignored = Finding.objects.filter(state=Finding.State.IGNORED, escaped=False)
    ignored = ignored.exclude(kind=Finding.Kind.UNFINISHED)
    return {key: ignored_reason(finding) for key, finding in find_by_key(ignored, bucket, keys)}


def find_by_key(
    findings: FindingQuerySet, bucket: str, keys: Iterable[str]
) -> Iterator[tuple[str, Finding]]:
    """The findings about one of these keys, each with the key as it was given."""
    forms = group_by_form(keys)
    for finding in findings.filter(bucket=bucket, key__any_of=forms) if forms else ():
        for key in forms[finding.key]:
            yield key, finding


def ignored_reason(finding: Finding) -> str:
    """Why a decision about the file leaves it as it is: a person ignored the finding."""
    text = _("%(person)s ignored finding %(id)s about this file. Reopen that finding first.")
    return text % {"person": finding.decided_by or _("Somebody"), "id": finding.pk}


def keep_reason(finding: Finding) -> str:
    """Without the note, as people who may not see findings read this."""
    text = _(
        "Kept: %(person)s ignored finding %(id)s about this file. To delete the file, reopen"
        " that finding and ask for another cleanup."
    )
    return text % {"person": finding.decided_by or _("somebody"), "id": finding.pk}


def find_ignored_uploads(bucket: str, uploads: Iterable[MultipartUpload]) -> dict[str, str]:
    """By upload ID, why a person keeps an unfinished upload: its finding is ignored."""
    text = _(
        "%(person)s ignored finding %(id)s about this upload. To abort the upload, reopen that"
        " finding and ask for another cleanup."
    )
    ids = {upload.upload_id for upload in uploads}
    findings = Finding.objects.keeping_uploads().filter(bucket=bucket, upload_id__any_of=ids)
    return {
        each.upload_id: text % {"person": each.decided_by or _("Somebody"), "id": each.pk}
        for each in findings
    }
