"""Which key of the current layout a misnamed object would get, and what stands against it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple
from uuid import UUID, uuid5

from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket import copies
from storage_audit.bucket.deleters import DELETERS, has_dots
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.listing import Identity, find, nfc
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.plan import rows_by_identity
from storage_audit.cleanup.turn import LONE_KEYS
from storage_audit.conf import conf
from storage_audit.findings.ignored import find_keeping, why_left
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.attribution import attribute
from storage_audit.ownership.key_format import Reading
from storage_audit.ownership.owner import known_among, layouts, too_many_owners
from storage_audit.ownership.references import Used, uses_of_rows
from storage_audit.redaction import visible
from storage_audit.tracking.recognise import named_by_deletions
from storage_audit.tracking.rows import being_deleted

State = R2Object.State
NAMESPACE = UUID("2f0f7c52-0f3a-4a51-9d6d-6d0c5a2c9d0e")


class RenameObjection(str):
    """An objection that ends the renaming: nothing that it began is to stay begun."""


@dataclass
class Renaming:
    """One object, its two keys, and why it does not get the new one, or not yet."""

    finding: Finding
    new: str = ""
    objection: str = ""
    # What came of the copy: its ETag, or the trouble that the store had with it.
    copied: str = ""
    trouble: StoreError | None = None

    @property
    def bucket(self) -> str:
        return self.finding.bucket

    @property
    def old(self) -> str:
        return self.finding.key

    @property
    def project_id(self) -> str:
        return self.finding.project_id or ""

    def is_of(self, old: Listed) -> bool:
        """Whether the old key's object is still the one that was found."""
        finding = self.finding
        seen = (finding.size, finding.etag, finding.last_modified)
        return (old.size, old.etag, old.last_modified) == seen

    @property
    def upload_id(self) -> UUID:
        """The mark of the new key's row: of this very object under this very name, so that a later
        call knows what it finds."""
        found = self.finding
        moment = found.last_modified and found.last_modified.timestamp()
        facts = (self.bucket, self.old, self.new, found.size, found.etag, moment)
        return uuid5(NAMESPACE, repr(facts))

    @property
    def target(self) -> R2ObjectQuerySet:
        """The new key's row, if it is of this renaming."""
        rows = R2Object.objects.in_bucket(self.bucket)
        return rows.filter(key=self.new, upload_id=self.upload_id)


class Look(NamedTuple):
    """What is there, and what is known of it, by what the store takes for the same key; `busy` are
    the keys that a cleanup has in hand, `kept` the acknowledged findings of listed keys, `used` the
    findings whose files rows of other tables use."""

    identity: Identity
    found: dict[str, Listed]
    rows: Mapping[str, Sequence[R2Object]]
    busy: set[str]
    kept: Mapping[str, Finding]
    alive: set[str]
    known: set[str]
    used: Used

    def objects(self, one: Renaming) -> tuple[Listed | None, Listed | None]:
        """Those of the old and of the new key."""
        return self.found.get(self.identity(one.old)), self.found.get(self.identity(one.new))

    def rows_of(self, key: str) -> Sequence[R2Object]:
        """Those of all its spellings."""
        return self.rows.get(self.identity(key), ())

    def row(self, key: str) -> R2Object | None:
        some = self.rows_of(key)
        return next((row for row in some if row.key == key), next(iter(some), None))

    def is_busy(self, key: str) -> bool:
        return self.identity(key) in self.busy

    def is_changed_over(self, one: Renaming) -> bool:
        """Whether the new key's row has the object already, and only the old object is to go."""
        row = self.row(one.new)
        return row is not None and row.upload_id == one.upload_id and row.state == State.STORED


def chunks(findings: Iterable[Finding]) -> Iterator[tuple[list[Renaming], Look]]:
    """Few at a time, and neighbours, which share a page of the listing; each with its objection.
    Raises CannotConclude and StoreError."""
    drafts = [draft(finding) for finding in findings]
    refuse_twins(drafts)
    drafts.sort(key=lambda one: (one.bucket, one.old))
    for bucket, group in groupby(drafts, key=lambda one: one.bucket):
        those = list(group)
        for start in range(0, len(those), LONE_KEYS):
            chunk = those[start : start + LONE_KEYS]
            look = take_look(bucket, [one for one in chunk if not one.objection])
            for one in chunk:
                one.objection = one.objection or objection(one, look)
            yield chunk, look


def draft(finding: Finding) -> Renaming:
    """What its key alone says."""
    one = Renaming(finding)
    if finding.state == Finding.State.RESOLVED:
        one.objection = _("It is resolved already: %s") % finding.note
    elif (reading := misnamed(finding)) is None:
        one.objection = _("The layouts do not read this key as a misnamed one. Scan again.")
    else:
        try:
            one.new = layouts().build_like(reading)
        except ValueError as error:
            one.objection = str(error)
        else:
            one.objection = against_keys(one)
    return one


def misnamed(finding: Finding) -> Reading | None:
    """The reading that has the prefix twice, and that the finding is about."""
    if finding.kind != Finding.Kind.MISNAMED or finding.escaped:
        return None
    for reading in layouts().readings(finding.key):
        if reading.project == finding.project_id and layouts().is_doubled(reading.layout):
            return reading
    return None


def against_keys(one: Renaming) -> str:
    readings = layouts().readings(one.new)
    if readings.too_many:
        return too_many_owners()
    if rivals := sorted(readings.projects - {one.project_id}):
        return _("The new key could also be one of project %s.") % ", ".join(rivals)
    if has_dots(one.new):
        return _("No S3 call can write the new key: it has a '.' or '..' segment.")
    return DELETERS[conf().strategy].objection(one.old)


def refuse_twins(drafts: Iterable[Renaming]) -> None:
    """Two objects cannot have one key, and nothing says which of them should."""
    by_key: dict[tuple[str, str], list[Renaming]] = {}
    for one in drafts:
        if one.new:
            by_key.setdefault((one.bucket, nfc(one.new)), []).append(one)
    for twins in by_key.values():
        for one, other in zip(twins, twins[1:] + twins[:1], strict=True):
            if one is not other:
                text = _("%s would get the same key. Rename or delete one of them by hand.")
                one.objection = one.objection or text % visible(other.old)


def take_look(bucket: str, chunk: list[Renaming]) -> Look:
    """Complete listings of both keys' places, then the rows. Raises CannotConclude and
    StoreError."""
    identity = bucket_marker.check(bucket).identity
    keys = [key for one in chunk for key in (one.old, one.new)]
    found = find(bucket, keys, identity)
    bucket_marker.see_marker(bucket)
    names = {*keys, *map(identity, keys)}
    busy = named_by_deletions(bucket, names) | set(map(identity, being_deleted(bucket, names)))
    rows = rows_by_identity(bucket, keys, identity)
    ids = set[str]().union(*(layouts().readings(one.old).owners for one in chunk))
    alive = project_model.alive(ids)
    # Asked last, as a row that is saved later keeps no file.
    findings = Finding.objects.filter(pk__in=[one.finding.pk for one in chunk])
    used = uses_of_rows(bucket, findings, seconds=conf().lease.total_seconds() / 2)
    kept = find_keeping(bucket, found.values())
    return Look(identity, found, rows, busy, kept, alive, known_among(ids) | alive, used)


def objection(one: Renaming, look: Look) -> str:
    if one.project_id not in look.alive:
        return gone(one)
    if look.is_changed_over(one):
        return against_deletion(one, look)
    return against_old(one, look) or against_new(one, look) or against_uses(one, look)


def gone(one: Renaming) -> RenameObjection:
    return RenameObjection(
        _("Project %s is deleted: its cleanup decides on this object.") % one.project_id
    )


def against_old(one: Renaming, look: Look) -> str:
    old, row = look.objects(one)[0], look.row(one.old)
    if old is None:
        return RenameObjection(
            _("The object is not there any more. The next scan resolves this finding.")
        )
    if not one.is_of(old):
        return RenameObjection(
            _("The object was changed since the scan. The next scan tells what it is now.")
        )
    if keeping := look.kept.get(old.key):
        return RenameObjection(why_left(keeping))
    if old.size > copies.LARGEST:
        return _("The store copies no object of more than 5 GiB. Upload it again by hand.")
    if row and row.state not in (State.STORED, State.UPLOAD_FAILED):
        return _("An upload or a deletion has the object in hand. Try again later.")
    if look.is_busy(one.old):
        return _("A cleanup has the object in hand. Try again later.")
    rows = look.rows_of(one.old)
    owner = attribute(layouts().readings(one.old), rows, look.known, look.alive, old)
    if owner.project_id != one.project_id:
        return _("It is not sure any more whose the object is. The next scan tells.")
    return ""


def against_new(one: Renaming, look: Look) -> str:
    (old, new), row = look.objects(one), look.row(one.new)
    if look.is_busy(one.new):
        return _("A cleanup has the new key in hand. Try again later.")
    if row and row.upload_id != one.upload_id:
        return _("The new key is tracked already. Compare the two, and delete one of them.")
    if new and not (row and old and is_copy(one, old, new)):
        return RenameObjection(
            _("Another object has the new key. Compare the two, and delete one of them.")
        )
    return ""


def is_copy(one: Renaming, old: Listed, new: Listed) -> bool:
    """Whether the new object has the old one's content. The ETag of what was uploaded in parts is
    not kept by all stores: then that of its copy is the MD5 of the content. Raises StoreError."""
    if old.size != new.size:
        return False
    if new.etag in (old.etag, one.copied):
        return True
    return new.etag == copies.md5(one.bucket, old.key, old.etag)


def against_deletion(one: Renaming, look: Look) -> str:
    """Why the old object must not be deleted, though the rows have changed over."""
    (old, new), row = look.objects(one), look.row(one.new)
    if old is None or look.is_busy(one.old):
        return ""
    if look.row(one.old) or not one.is_of(old):
        return _("Renamed, but the old key was written to since. The next scan tells of it.")
    if not (new and row and (new.size, new.etag) == (row.size, row.etag)):
        return _("Renamed, but the object of the new key is another by now: both stay.")
    return against_uses(one, look)


def against_uses(one: Renaming, look: Look) -> str:
    if row := look.used.rows.get(one.finding.pk):
        text = _("Used by %s, so it stays under its old name. Once no row names it, rename it.")
        return RenameObjection(text % row)
    if look.used.unread:
        text = _("These fields cannot be read, so their rows may use it: %s. Try again later.")
        return text % ", ".join(look.used.unread)
    return ""
