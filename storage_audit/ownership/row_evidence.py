"""What the tracking rows of a key say: whose the object is, and whether they describe it."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from django.utils.translation import gettext as _

from storage_audit.models import R2Object
from storage_audit.ownership.key_template import ParsedKeys

# A row that an upload confirmed has its time from a HEAD, which counts in whole seconds.
TIME_TOLERANCE = timedelta(seconds=1)


class ObjectFacts(Protocol):
    """What distinguishes two objects of one key, as a listing or a row has it."""

    @property
    def size(self) -> int | None: ...
    @property
    def etag(self) -> str: ...
    @property
    def last_modified(self) -> datetime | None: ...


class TrackingRow(ObjectFacts, Protocol):
    """What a tracking row says about the owner, and whether anything is under way."""

    @property
    def key(self) -> str: ...
    @property
    def project_id(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def upload_id(self) -> UUID | None: ...


def row_provenance(row: TrackingRow) -> str:
    """Why the row decides, whatever its key says, or nothing."""
    if not row.project_id or row.source not in R2Object.AUTHORITATIVE:
        return ""
    if row.source == R2Object.Source.ASSIGNED:
        return _("assigned to %s by a person") % row.project_id
    return _("uploaded for %s by this application") % row.project_id


def authoritative_projects(rows: Iterable[TrackingRow]) -> dict[str, str]:
    """The projects that the rows of one object decide for, each with why. Rows of two spellings
    can name two."""
    return {row.project_id: why for row in rows if row.project_id and (why := row_provenance(row))}


def deciding_projects(parsed_keys: ParsedKeys, rows: Iterable[TrackingRow]) -> frozenset[str]:
    """The projects that the object seems to belong to: those that its rows decide for, whatever its
    key says, or else those that the key names."""
    decided = [r.project_id for r in rows if r.project_id and r.source in R2Object.AUTHORITATIVE]
    return frozenset(decided) if decided else parsed_keys.projects


def projects_in_rows(rows: Iterable[TrackingRow]) -> set[str]:
    """The projects that tracking rows name, whoever wrote them."""
    return {row.project_id for row in rows if row.project_id}


def is_assigned(rows: Sequence[TrackingRow], stored: ObjectFacts | None) -> bool:
    """Whether a person decided who owns this very object, as all rows of its key say, and no upload
    to the key began since. An upload past the application leaves no trace but another object."""
    if not rows or stored is None:
        return False
    return all(
        row.source == R2Object.Source.ASSIGNED
        and row.project_id
        and row.upload_id is None
        and is_same_object(row, stored)
        for row in rows
    )


def is_same_object(row: ObjectFacts, stored: ObjectFacts) -> bool:
    """Whether the row describes this object, and not another one with its key."""
    facts = (row.size, row.etag) == (stored.size, stored.etag)
    return facts and has_same_time(row, stored)


def has_same_time(row: ObjectFacts, stored: ObjectFacts) -> bool:
    then, now = row.last_modified, stored.last_modified
    return then is not None and now is not None and abs(now - then) < TIME_TOLERANCE


def has_assigned_row(rows: Iterable[TrackingRow]) -> bool:
    return any(row.source == R2Object.Source.ASSIGNED for row in rows)


def is_not_the_assigned(rows: Sequence[TrackingRow], stored: ObjectFacts | None) -> bool:
    """Whether a person decided on another object with this key, or on this one and on another."""
    return has_assigned_row(rows) and not is_assigned(rows, stored)


def may_be_outdated(rows: Sequence[TrackingRow], stored: ObjectFacts | None) -> bool:
    """Whether an upload may have stored another object than the one that the rows describe, and
    nobody said who owns it."""
    return any(map(is_unconfirmed, rows)) or is_not_the_assigned(rows, stored)


def is_unconfirmed(row: TrackingRow) -> bool:
    """Whether the last upload to the key since a person's decision did not say what it stored, if
    anything. A row that is or was locked has no ETag then: see R2ObjectQuerySet.mark_deleting."""
    unsettled = row.state in (R2Object.State.UPLOADING, R2Object.State.UPLOAD_FAILED)
    return row.upload_id is not None and (unsettled or not row.etag)
