"""Who owns a key, and why we think so. When in doubt nobody does, and the object is protected."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Protocol
from zlib import crc32

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import projects
from storage_audit.audit.layouts import DEFAULT_KINDS, DEFAULT_TEMPLATES, Layouts, Reading
from storage_audit.conf import Conf, conf
from storage_audit.models import KnownProject, R2Object


class Row(Protocol):
    """What a tracking row, whole or not, tells of the owner, and whether anything is under way."""

    @property
    def key(self) -> str: ...
    @property
    def project_id(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def state(self) -> str: ...


@cache
def _layouts(settings: Conf) -> Layouts:
    return Layouts(
        settings.layouts or DEFAULT_TEMPLATES,
        project_id=settings.project_id,
        kinds=settings.kinds or DEFAULT_KINDS,
        current=settings.current_layout,
    )


def layouts() -> Layouts:
    """The configured key grammar. Raises LayoutError when the settings make none."""
    return _layouts(conf())


@cache
def _version(settings: Conf) -> int:
    read_by = (settings.layouts, settings.kinds, settings.project_id, settings.current_layout)
    return crc32(repr(read_by).encode()) - 2**31


def version() -> int:
    """Of the layouts: under another one a key may be read otherwise."""
    return _version(conf())


def plain_under(names: Collection[str], reading: Reading | None) -> int | None:
    """The version of the layouts, if under it the key names one project alone, and names it well:
    then only that project's end can make a finding of the object. See R2Object.plain_under."""
    misnamed = reading is not None and layouts().is_doubled(reading.layout)
    return version() if len(names) == 1 and not misnamed else None


class Claim(Enum):
    OWNED = "owned"
    ELSEWHERE = "elsewhere"
    PROTECTED = "protected"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`claim` is about one project: the key is its own, plainly another's, or in doubt."""

    claim: Claim
    evidence: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The project whose objects are in question, and since when it is no more."""

    project_id: str
    at: datetime


def told_by(row: Row) -> str:
    """Why the row decides over any reading of its key, or nothing."""
    if not row.project_id or row.source not in R2Object.TELLING:
        return ""
    if row.source == R2Object.Source.ADOPTED:
        return _("given to %s by a person") % row.project_id
    return _("uploaded for %s by this application") % row.project_id


def alive_among(readings: Iterable[Iterable[Reading]]) -> set[str]:
    """Which of the projects that these keys could name live, or vanished without a word."""
    return alive_of({reading.project for of_key in readings for reading in of_key})


def alive_of(ids: Collection[str]) -> set[str]:
    """Which of these live, or vanished and nobody said that they are deleted."""
    alive = projects.alive(ids)
    left = set(ids) - alive
    return alive | KnownProject.objects.maybe_alive(left) if left else alive


def known_among(ids: Collection[str]) -> set[str]:
    if not ids:
        return set()
    return set(KnownProject.objects.filter(pk__any_of=set(ids)).values_list("pk", flat=True))


def judge(
    project: Deleted,
    readings: Sequence[Reading],
    row: Row | None,
    last_modified: datetime | None,
    alive: set[str],
) -> Verdict:
    """Does the key belong to the deleted project?

    `row` is the key's tracking row, `last_modified` the object's time or None when there is no
    object, `alive` the projects among the readings that live.
    """
    if row and (evidence := told_by(row)):
        mine = row.project_id == project.project_id
        return Verdict(Claim.OWNED if mine else Claim.ELSEWHERE, evidence)
    names = {reading.project for reading in readings}
    evidence = "; ".join(f"{reading.layout}: {reading.project}" for reading in readings)
    if not names:
        reason = _(
            "No layout knows this key. Add its layout, or delete the object in the Cloudflare"
            " dashboard."
        )
        return Verdict(Claim.PROTECTED, _("no layout matches"), reason)
    if project.project_id not in names:
        if row and row.project_id == project.project_id:
            reason = _(
                "Its tracking row names this project, its key another one. Look whose it is, and"
                " delete its row if it is to go."
            )
            return Verdict(Claim.PROTECTED, evidence, reason)
        return Verdict(Claim.ELSEWHERE, evidence)
    if rivals := sorted(names & alive - {project.project_id}):
        reason = _("It could also belong to the live project %s. It goes with that project.")
        reason %= ", ".join(rivals)
        return Verdict(Claim.PROTECTED, evidence, reason)
    if len(names) > 1 and last_modified and (reason := too_young(project, last_modified)):
        return Verdict(Claim.PROTECTED, evidence, reason)
    return Verdict(Claim.OWNED, evidence)


def too_young(project: Deleted, last_modified: datetime) -> str:
    """Why an object that could be several projects' may be one's that is still to come."""
    if last_modified >= project.at:
        return _(
            "It could name several projects, and is younger than the deletion. A late check or"
            " another cleanup decides on it."
        )
    if last_modified >= timezone.now() - conf().commit_timeout:
        return _(
            "It could name several projects, one of which may be just being created. Once it is"
            " older, a late check or another cleanup decides on it."
        )
    return ""
