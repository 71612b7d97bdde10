"""Which key of the current key format a misnamed object would get, and any objection."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple
from uuid import UUID, uuid5

from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket import copies
from storage_audit.bucket.deleters import DELETERS, has_dot_segments
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import KeyIdentity, find_keys, nfc_key
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup.judge_objects import rows_by_identity
from storage_audit.cleanup.worker_turn import MAX_LONE_KEYS
from storage_audit.conf import conf
from storage_audit.findings.action_result import (
    busy_reason,
    changed_reason,
    gone_reason,
    state_reason,
)
from storage_audit.findings.ignored import find_keeping_findings, ignored_reason
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.attribution import find_owner
from storage_audit.ownership.key_template import ParsedKey
from storage_audit.ownership.ownership_rule import (
    get_key_formats,
    known_ids,
    too_many_owners_reason,
)
from storage_audit.ownership.references import FileReferences, find_row_references
from storage_audit.redaction import printable_text
from storage_audit.tracking.recognise import keys_of_deleted_rows
from storage_audit.tracking.rows import find_being_deleted

State = R2Object.State
UPLOAD_ID_NAMESPACE = UUID("2f0f7c52-0f3a-4a51-9d6d-6d0c5a2c9d0e")


class RenameObjection(str):
    """An objection that ends the renaming: what it began is undone."""


@dataclass
class Renaming:
    """One object, its two keys, and why it does not get the new one, or not yet."""

    finding: Finding
    new: str = ""
    objection: str = ""
    # The result of the copy: its ETag, or the store's error.
    copy_etag: str = ""
    copy_error: StoreError | None = None

    @property
    def bucket(self) -> str:
        return self.finding.bucket

    @property
    def old(self) -> str:
        return self.finding.key

    @property
    def project_id(self) -> str:
        return self.finding.project_id or ""

    def is_same_object(self, old: ListedObject) -> bool:
        """Whether the old key's object is still the one that was found."""
        finding = self.finding
        seen = (finding.size, finding.etag, finding.last_modified)
        return (old.size, old.etag, old.last_modified) == seen

    @property
    def upload_id(self) -> UUID:
        """The mark of the new key's row, for this object under this name, so that a later call
        recognises it."""
        found = self.finding
        moment = found.last_modified and found.last_modified.timestamp()
        facts = (self.bucket, self.old, self.new, found.size, found.etag, moment)
        return uuid5(UPLOAD_ID_NAMESPACE, repr(facts))

    @property
    def target_rows(self) -> R2ObjectQuerySet:
        """The new key's row, if this renaming made it."""
        rows = R2Object.objects.in_bucket(self.bucket)
        return rows.filter(key=self.new, upload_id=self.upload_id)


class RenameSnapshot(NamedTuple):
    """Objects and rows, by key identity; `busy` are the keys that a cleanup has in hand, `kept` the
    ignored findings of listed keys, `used` the findings whose files rows of other tables use."""

    identity: KeyIdentity
    found: dict[str, ListedObject]
    rows: Mapping[str, Sequence[R2Object]]
    busy_keys: set[str]
    ignored: Mapping[str, Finding]
    alive: set[str]
    known: set[str]
    used: FileReferences

    def objects(self, one: Renaming) -> tuple[ListedObject | None, ListedObject | None]:
        """The objects of the old and of the new key."""
        return self.found.get(self.identity(one.old)), self.found.get(self.identity(one.new))

    def rows_of(self, key: str) -> Sequence[R2Object]:
        """The rows of all its spellings."""
        return self.rows.get(self.identity(key), ())

    def row(self, key: str) -> R2Object | None:
        some = self.rows_of(key)
        return next((row for row in some if row.key == key), next(iter(some), None))

    def is_busy(self, key: str) -> bool:
        return self.identity(key) in self.busy_keys

    def is_switched(self, one: Renaming) -> bool:
        """Whether the new key's row has the object already, and only the old object is to go."""
        row = self.row(one.new)
        return row is not None and row.upload_id == one.upload_id and row.state == State.STORED


def rename_batches(findings: Iterable[Finding]) -> Iterator[tuple[list[Renaming], RenameSnapshot]]:
    """A few neighbours at a time, as they share a page of the listing; each with its objection.
    Raises CannotConclude and StoreError."""
    drafts = [draft_renaming(finding) for finding in findings]
    refuse_duplicates(drafts)
    drafts.sort(key=lambda one: (one.bucket, one.old))
    for bucket, group in groupby(drafts, key=lambda one: one.bucket):
        those = list(group)
        for start in range(0, len(those), MAX_LONE_KEYS):
            chunk = those[start : start + MAX_LONE_KEYS]
            look = take_snapshot(bucket, [one for one in chunk if not one.objection])
            for one in chunk:
                one.objection = one.objection or rename_objection(one, look)
            yield chunk, look


def draft_renaming(finding: Finding) -> Renaming:
    """The renaming as far as the key alone tells."""
    one = Renaming(finding)
    if finding.state == Finding.State.RESOLVED:
        one.objection = state_reason(finding)
    elif (parsed_key := parse_misnamed(finding)) is None:
        one.objection = _("This is no longer an old name. Scan again.")
        if finding.kind != Finding.Kind.MISNAMED:
            one.objection = _("Not an old name, but: %s.") % Finding.Kind(finding.kind).label
    else:
        try:
            one.new = get_key_formats().build_like(parsed_key)
        except ValueError as error:
            one.objection = str(error)
        else:
            one.objection = key_objection(one)
    return one


def parse_misnamed(finding: Finding) -> ParsedKey | None:
    """The parsed key with the doubled prefix, which the finding is about."""
    if finding.kind != Finding.Kind.MISNAMED or finding.escaped:
        return None
    for parsed_key in get_key_formats().parse_key(finding.key):
        if parsed_key.project == finding.project_id and get_key_formats().is_doubled(
            parsed_key.key_format
        ):
            return parsed_key
    return None


def key_objection(one: Renaming) -> str:
    parsed_keys = get_key_formats().parse_key(one.new)
    if parsed_keys.too_many:
        return too_many_owners_reason()
    if rivals := sorted(parsed_keys.projects - {one.project_id}):
        return _("The new name would also fit project %s.") % ", ".join(rivals)
    if has_dot_segments(one.new):
        return _("S3 can't write the new name: it has a '.' or '..' segment.")
    return DELETERS[conf().strategy].undeletable_reason(one.old)


def refuse_duplicates(drafts: Iterable[Renaming]) -> None:
    """Two objects cannot have one key, and nothing says which of them should."""
    by_key: dict[tuple[str, str], list[Renaming]] = {}
    for one in drafts:
        if one.new:
            by_key.setdefault((one.bucket, nfc_key(one.new)), []).append(one)
    for twins in by_key.values():
        for one, other in zip(twins, twins[1:] + twins[:1], strict=True):
            if one is not other:
                text = _("%s would get the same new name. Rename or delete one of them yourself.")
                one.objection = one.objection or text % printable_text(other.old)


def take_snapshot(bucket: str, chunk: list[Renaming]) -> RenameSnapshot:
    """Complete listings of both keys' places, then the rows. Raises CannotConclude and
    StoreError."""
    identity = bucket_marker.check_bucket(bucket).identity
    keys = [key for one in chunk for key in (one.old, one.new)]
    found = find_keys(bucket, keys, identity)
    bucket_marker.require_marker(bucket)
    names = {*keys, *map(identity, keys)}
    busy = keys_of_deleted_rows(bucket, names) | set(
        map(identity, find_being_deleted(bucket, names))
    )
    rows = rows_by_identity(bucket, keys, identity)
    ids = set[str]().union(*(get_key_formats().parse_key(one.old).owners for one in chunk))
    alive = project_model.living_ids(ids)
    # Asked last, as a row that is saved later keeps no file.
    findings = Finding.objects.filter(pk__in=[one.finding.pk for one in chunk])
    used = find_row_references(bucket, findings, seconds=conf().lease_time.total_seconds() / 2)
    kept = find_keeping_findings(bucket, found.values())
    return RenameSnapshot(identity, found, rows, busy, kept, alive, known_ids(ids) | alive, used)


def rename_objection(one: Renaming, look: RenameSnapshot) -> str:
    if one.project_id not in look.alive:
        return project_objection(one)
    if look.is_switched(one):
        return deletion_objection(one, look)
    return (
        old_key_objection(one, look) or new_key_objection(one, look) or usage_objection(one, look)
    )


def project_objection(one: Renaming) -> RenameObjection:
    return RenameObjection(
        _("Project %s was deleted, so its cleanup decides about this file.") % one.project_id
    )


def old_key_objection(one: Renaming, look: RenameSnapshot) -> str:
    old, row = look.objects(one)[0], look.row(one.old)
    if old is None:
        return RenameObjection(gone_reason())
    if not one.is_same_object(old):
        return RenameObjection(changed_reason())
    if keeping := look.ignored.get(old.key):
        return RenameObjection(ignored_reason(keeping))
    if old.size > copies.MAX_COPY_BYTES:
        return _("The store can't copy files over 5 GiB. Upload the file again under its new name.")
    if row and row.state not in (State.STORED, State.UPLOAD_FAILED):
        return busy_reason()
    if look.is_busy(one.old):
        return _("A cleanup is working on this file. Try again later.")
    rows = look.rows_of(one.old)
    owner = find_owner(get_key_formats().parse_key(one.old), rows, look.known, look.alive, old)
    if owner.project_id != one.project_id:
        return _("We can no longer tell whose file this is. Scan again.")
    return ""


def new_key_objection(one: Renaming, look: RenameSnapshot) -> str:
    (old, new), row = look.objects(one), look.row(one.new)
    if look.is_busy(one.new):
        return busy_new_key_reason()
    if row and row.upload_id != one.upload_id:
        return taken_reason()
    if new and not (row and old and is_copy(one, old, new)):
        return RenameObjection(taken_reason())
    return ""


def busy_new_key_reason() -> str:
    return _("A cleanup is working on the new name. Try again later.")


def taken_reason() -> str:
    return _("The new name is taken. Compare the two files and delete one.")


def is_copy(one: Renaming, old: ListedObject, new: ListedObject) -> bool:
    """Whether the new object has the old one's content. Not all stores keep the ETag of a multipart
    upload: then the copy's ETag is the MD5 of the content. Raises StoreError."""
    if old.size != new.size:
        return False
    if new.etag in (old.etag, one.copy_etag):
        return True
    return new.etag == copies.content_md5(one.bucket, old.key, old.etag)


def deletion_objection(one: Renaming, look: RenameSnapshot) -> str:
    """Why the old object must not be deleted, though the rows have switched."""
    (old, new), row = look.objects(one), look.row(one.new)
    if old is None or look.is_busy(one.old):
        return ""
    if look.row(one.old) or not one.is_same_object(old):
        return _("Renamed, but the old name was written to again. The next scan reports it.")
    if not (new and row and (new.size, new.etag) == (row.size, row.etag)):
        return _("Renamed, but the file under the new name has changed. Both files are kept.")
    return usage_objection(one, look)


def usage_objection(one: Renaming, look: RenameSnapshot) -> str:
    if row := look.used.rows.get(one.finding.pk):
        text = _("Used by %s, so it keeps its old name. Rename it when nothing uses it.")
        return RenameObjection(text % row)
    if look.used.unreadable:
        text = _("Fields that may use this file can't be read: %s. Try again later.")
        return text % ", ".join(look.used.unreadable)
    return ""
