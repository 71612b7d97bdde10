"""What people keep: objects and unfinished uploads whose findings they ignored."""

from collections.abc import Iterable, Iterator
from itertools import islice

from django.db.models import Exists, OuterRef
from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.bucket.multipart import MultipartUpload
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.models import Cleanup, CleanupItem, CleanupItemQuerySet
from storage_audit.cleanup.open_decisions import group_by_form
from storage_audit.findings.models import KINDS_WITHOUT_OBJECT, Finding, FindingQuerySet, Kind
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import redact_secrets

ITEMS_PER_BATCH = 1000
UNIQUE_FIELDS = ("bucket", "kind", "key", "escaped", "upload_id")
OBJECT_FIELDS = ("size", "etag", "last_modified", "project_id")


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


def ignore_kept_files(
    cleanup: Cleanup, kept: CleanupItemQuerySet, by: str, reason: str, **kwargs: object
) -> None:
    """A person cancelled the deletion of files: keep each of them, as if its finding was ignored.
    The files of a whole project need no findings, as its id says that they stay."""
    if not cleanup.has_given_objects:
        return
    note = _("Cleanup %s was cancelled.") % cleanup.pk
    note = redact_secrets(f"{note} {reason}".strip())
    items = kept.filter(escaped=False)
    facts = {name: OuterRef(name) for name in ("key", "size", "etag")}
    here = Finding.objects.filter(bucket=cleanup.bucket)
    about_objects = here.exclude(kind__in=KINDS_WITHOUT_OBJECT).filter(escaped=False)
    about_objects.filter(Exists(items.filter(**facts))).ignore(note, by)
    # A file whose row was deleted has no finding yet. Of a held one, a scan may have resolved it.
    kept_already = here.keeping_objects().filter(**facts)
    others = read_in_steps(items.filter(~Exists(kept_already)).order_by("pk"))
    while some := list(islice(others, ITEMS_PER_BATCH)):
        save_ignored(cleanup.bucket, some, note, by)


def save_ignored(bucket: str, items: list[CleanupItem], note: str, by: str) -> None:
    alive = project_model.living_ids({item.project_id for item in items if item.project_id})
    now = timezone.now()
    decided = {"state": Finding.State.IGNORED, "note": note, "decided_by": by, "decided_at": now}
    seen = {"first_seen_at": now, "last_seen_at": now}
    findings = [
        Finding(
            bucket=bucket,
            key=item.key,
            kind=Kind.UNTRACKED if item.project_id in alive else Kind.ORPHANED,
            evidence=item.owner_evidence,
            **{name: getattr(item, name) for name in OBJECT_FIELDS},
            **decided,
            **seen,
        )
        for item in items
    ]
    Finding.objects.bulk_create(
        findings,
        update_conflicts=True,
        unique_fields=UNIQUE_FIELDS,
        update_fields=[*OBJECT_FIELDS, "evidence", *decided, *seen],
    )
