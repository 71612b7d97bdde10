"""What people keep: objects and unfinished uploads whose findings they acknowledged."""

from collections.abc import Iterable, Iterator

from django.utils.translation import gettext as _

from storage_audit.bucket.listing import storable
from storage_audit.bucket.multipart import Upload
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.open_decisions import group_by_form
from storage_audit.findings.models import Finding, FindingQuerySet


def find_acknowledged(bucket: str, seen: Iterable[Listed]) -> dict[str, str]:
    """By key as it is listed, why no cleanup deletes the object."""
    return {key: why_acknowledged(one) for key, one in find_keeping(bucket, seen).items()}


def find_keeping(bucket: str, seen: Iterable[Listed]) -> dict[str, Finding]:
    """By key as it is listed, by which finding a person keeps the object: it is acknowledged, and
    describes the object as it still is."""
    objects = {each.key: (each.size, each.etag) for each in seen if storable(each.key)}
    return {
        key: finding
        for key, finding in find_about(Finding.objects.keeping(), bucket, objects)
        if objects[key] == (finding.size, finding.etag)
    }


def find_acknowledged_keys(bucket: str, keys: Iterable[str]) -> dict[str, str]:
    """By key, why its row stays: without the row nobody could tell the finding's object."""
    acknowledged = Finding.objects.filter(state=Finding.State.ACKNOWLEDGED, escaped=False)
    acknowledged = acknowledged.exclude(kind=Finding.Kind.UNFINISHED)
    return {key: why_left(finding) for key, finding in find_about(acknowledged, bucket, keys)}


def find_about(
    findings: FindingQuerySet, bucket: str, keys: Iterable[str]
) -> Iterator[tuple[str, Finding]]:
    """Those of the findings that are about one of these keys, with the key as it is given."""
    forms = group_by_form(keys)
    for finding in findings.filter(bucket=bucket, key__any_of=forms) if forms else ():
        for key in forms[finding.key]:
            yield key, finding


def why_left(finding: Finding) -> str:
    """Why a decision about the file leaves it as it is: a person acknowledged the finding."""
    text = _("%(person)s acknowledged finding %(id)s about this file. Reopen that finding first.")
    return text % {"person": finding.decided_by or _("Somebody"), "id": finding.pk}


def why_acknowledged(finding: Finding) -> str:
    """Without the note, as people who may not see findings read this."""
    text = _(
        "Kept: %(person)s acknowledged finding %(id)s about this file. To delete the file, reopen"
        " that finding and ask for another cleanup."
    )
    return text % {"person": finding.decided_by or _("somebody"), "id": finding.pk}


def find_acknowledged_uploads(bucket: str, uploads: Iterable[Upload]) -> dict[str, str]:
    """By upload ID, why a person keeps an unfinished upload: its finding is acknowledged."""
    text = _(
        "%(person)s acknowledged finding %(id)s about this upload. To abort the upload, reopen that"
        " finding and ask for another cleanup."
    )
    ids = {upload.upload_id for upload in uploads}
    findings = Finding.objects.keeping_uploads().filter(bucket=bucket, upload_id__any_of=ids)
    return {
        each.upload_id: text % {"person": each.decided_by or _("Somebody"), "id": each.pk}
        for each in findings
    }
