"""Who owns a key, and why we think so. When in doubt nobody does, and the object is protected."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from itertools import chain, islice
from typing import Protocol
from uuid import UUID
from zlib import crc32

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import storable
from storage_audit.clocks import apart, was_ahead
from storage_audit.conf import Conf, conf
from storage_audit.fields import find_in_chunks
from storage_audit.models import KnownProject, R2Object
from storage_audit.ownership.key_format import Reading, Readings
from storage_audit.ownership.key_formats import DEFAULT_KINDS, DEFAULT_TEMPLATES, Layouts
from storage_audit.redaction import visible

# Of the possible owners of a key, in a stored text: so many, each so long.
SHOWN, LONGEST = 10, 200
IDS_SHOWN = 5
# A row that an upload confirmed has its time from a HEAD, which counts in whole seconds.
SAME_TIME = timedelta(seconds=1)


class Facts(Protocol):
    """What tells an object from another one under the same key, as listed or as a row has it."""

    @property
    def size(self) -> int | None: ...
    @property
    def etag(self) -> str: ...
    @property
    def last_modified(self) -> datetime | None: ...


class Row(Facts, Protocol):
    """What a tracking row, whole or not, tells of the owner, and whether anything is under way."""

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


@cache
def _layouts(settings: Conf) -> Layouts:
    return Layouts(
        settings.layouts or DEFAULT_TEMPLATES,
        project_id=settings.project_id,
        kinds=settings.kinds or DEFAULT_KINDS,
        current=settings.current_layout,
    )


def layouts() -> Layouts:
    """The configured key grammar. Raises KeyFormatError when the settings make none."""
    return _layouts(conf())


@cache
def _version(settings: Conf) -> int:
    read_by = (settings.layouts, settings.kinds, settings.project_id, settings.current_layout)
    return crc32(repr(read_by).encode()) - 2**31


def version() -> int:
    """Of the layouts: under another one a key may be read otherwise."""
    return _version(conf())


def refused_ids() -> list[str]:
    """The first ids of projects that PROJECT_ID does not accept, one more than are shown: what
    could be theirs is kept, and what is theirs cannot be cleaned up. Reads the whole table."""
    refused = (each for each in project_model.ids() if not layouts().is_project_id(each))
    return list(islice(refused, IDS_SHOWN + 1))


def about_refused(ids: Sequence[str]) -> str:
    """What to say of these, as `refused_ids` gives them."""
    shown = ", ".join(visible(each[:LONGEST]) for each in ids[:IDS_SHOWN])
    more = _(" and more") if len(ids) > IDS_SHOWN else ""
    text = _("The setting PROJECT_ID does not accept the ids of these projects: %(ids)s%(more)s.")
    return text % {"ids": shown, "more": more}


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
    """The project whose objects are in question, and since when it is no more, if that is known."""

    project_id: str
    at: datetime | None


def told_by(row: Row) -> str:
    """Why the row decides over any reading of its key, or nothing."""
    if not row.project_id or row.source not in R2Object.TELLING:
        return ""
    if row.source == R2Object.Source.ADOPTED:
        return _("given to %s by a person") % row.project_id
    return _("uploaded for %s by this application") % row.project_id


def telling(rows: Iterable[Row]) -> dict[str, str]:
    """The projects that the rows of one object decide for, each with why. Rows of two spellings
    can name two."""
    return {row.project_id: why for row in rows if row.project_id and (why := told_by(row))}


def named_in(rows: Iterable[Row]) -> set[str]:
    """The projects that tracking rows name, whoever wrote them."""
    return {row.project_id for row in rows if row.project_id}


def alive_among(readings: Iterable[Readings], ids: Iterable[str] = ()) -> set[str]:
    """Which of the projects that these keys could name, and of these ids, live or vanished without
    a word; also those whose ids the grammar refuses."""
    return alive_of(chain(ids, *(of_key.owners for of_key in readings)))


def alive_of(ids: Iterable[str]) -> set[str]:
    """Which of these live, or vanished and nobody said that they are deleted."""
    asked = set(filter(storable, ids))
    alive = project_model.alive(asked)
    left = asked - alive
    return alive | KnownProject.objects.maybe_alive(left) if left else alive


def known_among(ids: Iterable[str]) -> set[str]:
    known = KnownProject.objects.values_list("pk", flat=True)
    return find_in_chunks(filter(storable, ids), lambda some: known.filter(pk__in=some))


def judge(
    project: Deleted,
    readings: Readings,
    rows: Sequence[Row],
    last_modified: datetime | None,
    alive: set[str],
    stored: Facts | None = None,
) -> Verdict:
    """Does the key belong to the deleted project?

    `rows` are the tracking rows of all its spellings, `last_modified` the object's time or None
    when there is no object, `alive` the projects among the possible owners, and those that rows
    name, that live. `stored` is the object: a person's decision holds for no other one, and for
    no unfinished upload.
    """
    verdict = judge_by_evidence(project, readings, rows, last_modified, alive, stored)
    rivals = named_in(rows) & alive - {project.project_id}
    if verdict.claim is Claim.OWNED and rivals:
        return Verdict(Claim.PROTECTED, verdict.evidence, tracked_for(rivals))
    return verdict


def judge_by_evidence(
    project: Deleted,
    readings: Readings,
    rows: Sequence[Row],
    last_modified: datetime | None,
    alive: set[str],
    stored: Facts | None,
) -> Verdict:
    """The same where no row has a say that a backfill wrote: it is a reading written down."""
    if told := telling(rows):
        return judge_by_rows(project, readings, rows, told, alive, stored)
    names, evidence = readings.projects, evidence_of(readings)
    if has_too_many_owners(readings, rows, stored):
        return Verdict(Claim.PROTECTED, evidence, too_many_owners())
    if not names:
        reason = _(
            "No layout knows this key. Add its layout, or delete the object in the Cloudflare"
            " dashboard."
        )
        return Verdict(Claim.PROTECTED, evidence, reason)
    if project.project_id not in names:
        if any(row.project_id == project.project_id for row in rows):
            reason = _(
                "Its tracking row names this project, its key another one. Look whose it is, and"
                " delete its row if it is to go."
            )
            return Verdict(Claim.PROTECTED, evidence, reason)
        return Verdict(Claim.ELSEWHERE, evidence)
    if rivals := readings.owners & alive - {project.project_id}:
        return Verdict(Claim.PROTECTED, evidence, could_be(rivals))
    if len(names) > 1 and last_modified and (reason := too_young(project, last_modified)):
        return Verdict(Claim.PROTECTED, evidence, reason)
    return Verdict(Claim.OWNED, evidence)


def judge_by_rows(
    project: Deleted,
    readings: Readings,
    rows: Sequence[Row],
    told: dict[str, str],
    alive: set[str],
    stored: Facts | None,
) -> Verdict:
    """The same of an object whose rows decide."""
    evidence = shorten(told.values(), "; ")
    if project.project_id not in told:
        return Verdict(Claim.ELSEWHERE, evidence)
    if len(told) > 1:
        reason = _("Two tracking rows name this object for different projects: %s. Delete one.")
        return Verdict(Claim.PROTECTED, evidence, reason % shorten(sorted(told)))
    if has_too_many_owners(readings, rows, stored):
        return Verdict(Claim.PROTECTED, evidence, too_many_owners())
    if is_of_nobody(readings, rows, stored):
        reason = _(
            "No key format reads this key, and the file is not the one that a person adopted. Adopt"
            " it, or delete its row if it is to go."
        )
        return Verdict(Claim.PROTECTED, evidence, reason)
    if rivals := rivals_of(readings, rows, alive, stored):
        return Verdict(Claim.PROTECTED, evidence, could_be(rivals, rows))
    return Verdict(Claim.OWNED, evidence)


def is_given(rows: Sequence[Row], stored: Facts | None) -> bool:
    """Whether a person decided whose this very object is, as all rows of its key say, and no upload
    to the key began since. Uploads past the application leave no trace but another object."""
    if not rows or stored is None:
        return False
    return all(
        row.source == R2Object.Source.ADOPTED and row.upload_id is None and is_same(row, stored)
        for row in rows
    )


def has_too_many_owners(readings: Readings, rows: Sequence[Row], stored: Facts | None) -> bool:
    """Whether more projects could own this object than are looked at, so that some may be alive.
    An upload's row rules out none of them, as it may be from other settings."""
    return readings.too_many and not is_given(rows, stored)


def is_of_nobody(readings: Readings, rows: Sequence[Row], stored: Facts | None) -> bool:
    """Whether neither the key nor a person says whose this object is, but only whose another one
    was."""
    return not readings and was_given(rows) and not is_given(rows, stored)


def is_same(row: Facts, stored: Facts) -> bool:
    """Whether the row describes this object, and not another one with its key."""
    facts = (row.size, row.etag) == (stored.size, stored.etag)
    return facts and same_time(row, stored)


def same_time(row: Facts, stored: Facts) -> bool:
    then, now = row.last_modified, stored.last_modified
    return then is not None and now is not None and abs(now - then) < SAME_TIME


def was_given(rows: Iterable[Row]) -> bool:
    return any(row.source == R2Object.Source.ADOPTED for row in rows)


def rivals_of(
    readings: Readings, rows: Sequence[Row], alive: set[str], stored: Facts | None
) -> set[str]:
    """The live projects that could own an object though its rows name others. A person's decision
    about this very object is evidence against all of them. An upload's row is evidence against
    none: it names a project only if the key could name no other one, under the settings of then."""
    if is_given(rows, stored):
        return set()
    told = telling(rows)
    return alive & (readings.owners if told else readings.others) - told.keys()


def may_be_outdated(rows: Sequence[Row], stored: Facts | None) -> bool:
    """Whether an upload may have stored another object than the one that the rows are about, and
    nobody said whose it is."""
    return any(map(is_unconfirmed, rows)) or (was_given(rows) and not is_given(rows, stored))


def is_unconfirmed(row: Row) -> bool:
    """Whether the last upload to the key, since a person decided, did not say what it stored, if
    anything. A row that is barred, or was, has lost its ETag then: see R2ObjectQuerySet.bar."""
    unsettled = row.state in (R2Object.State.UPLOADING, R2Object.State.UPLOAD_FAILED)
    return row.upload_id is not None and (unsettled or not row.etag)


def evidence_of(readings: Readings) -> str:
    """What the key says of its owner, short enough to be stored with each object."""
    if readings.too_many:
        return _("too many possible owners")
    ways = [f"{reading.layout}: {reading.project}" for reading in readings]
    return shorten(ways, "; ") or _("no layout matches")


def too_many_owners() -> str:
    return _(
        "Kept: too many possible owners. The name can be read in more ways than are checked. If"
        " you know whose file it is, delete it in the Cloudflare dashboard."
    )


def could_be(rivals: Collection[str], rows: Sequence[Row] = ()) -> str:
    """Why an object stays that could belong to these live projects, whatever its rows say."""
    if was_given(rows):
        return uploaded_since(rivals)
    text = _("It could also belong to the live project %s. It goes with that project.")
    if telling(rows):
        text = _(
            "Its key could also name the live project %s. Adopt it into that project, or delete its"
            " row if it is to go."
        )
    if not all(map(layouts().is_project_id, rivals)):
        text = _(
            "It could also belong to project %s. The setting PROJECT_ID does not accept that id:"
            " change the id, or the setting."
        )
    return text % shorten(sorted(rivals))


def uploaded_since(rivals: Collection[str]) -> str:
    """Why an object stays that may not be the one any more that a person decided on."""
    text = _(
        "An upload to this key began after a person had adopted the file, so it could belong to the"
        " live project %s. Adopt it into that project, or delete its row if it is to go."
    )
    return text % shorten(sorted(rivals))


def tracked_for(rivals: Collection[str]) -> str:
    """Why an object stays that tracking rows of these live projects name."""
    text = _("A tracking row names the live project %s. If the object is to go, delete that row.")
    return text % shorten(sorted(rivals))


def shorten(texts: Iterable[str], separator: str = ", ") -> str:
    """The first of these, each cut off where it is long: strangers write keys."""
    first, *others = [*texts] or [""]
    shown = [first, *others[: SHOWN - 1]]
    more = len(others) + 1 - len(shown)
    cut = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in shown]
    return separator.join([*cut, _("%d more") % more] if more else cut)


def too_young(project: Deleted, last_modified: datetime) -> str:
    """Why an object that could be several projects' may be one's that is still to come."""
    if project.at is None or was_ahead(project.at):
        return maybe_younger()
    if last_modified >= project.at:
        return _(
            "It could name several projects, and is younger than the deletion, so later checks keep"
            " it too. Run a scan. If it calls the file orphaned, delete it there. If not, adopt it,"
            " or delete it in the Cloudflare dashboard."
        )
    if last_modified >= timezone.now() - conf().commit_timeout:
        return _(
            "It could name several projects, one of which may be just being created. Once it is"
            " older, a late check or another cleanup decides on it."
        )
    # One of the times is by the store's clock.
    if last_modified >= project.at - min(apart(), conf().commit_timeout):
        return maybe_younger()
    return ""


def maybe_younger() -> str:
    return _(
        "It could name several projects, and may be younger than the deletion: the clocks differ."
        " Later checks keep it too. Run a scan. If it calls the file orphaned, delete it there. If"
        " not, adopt it, or delete it in the Cloudflare dashboard."
    )
