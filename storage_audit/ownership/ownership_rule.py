"""Who owns a key, and why we think so. When in doubt nobody does, and the object is kept."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from enum import Enum
from functools import cache, partial
from itertools import chain, islice
from typing import NamedTuple
from zlib import crc32

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.clocks import clock_skew, is_from_fast_clock
from storage_audit.conf import Conf, conf
from storage_audit.fields import find_in_chunks
from storage_audit.models import KnownProject
from storage_audit.ownership.key_formats import DEFAULT_KINDS, DEFAULT_TEMPLATES, KeyFormats
from storage_audit.ownership.key_template import ParsedKey, ParsedKeys
from storage_audit.ownership.row_evidence import (
    ObjectFacts,
    TrackingRow,
    authoritative_projects,
    deciding_projects,
    has_assigned_row,
    is_assigned,
    is_not_the_assigned,
    projects_in_rows,
)
from storage_audit.redaction import printable_text

# How many possible owners of a key a stored text names, and the length of each.
MAX_OWNERS_SHOWN, MAX_OWNER_LENGTH = 10, 200
MAX_IDS_SHOWN = 5
UNRECOGNISED_TEXT = gettext_lazy(
    "The name does not match any known key format, so we can't tell whose file it is."
)


@cache
def _build_key_formats(settings: Conf) -> KeyFormats:
    return KeyFormats(
        settings.key_formats or DEFAULT_TEMPLATES,
        project_id=settings.project_id_pattern,
        kinds=settings.media_kinds or DEFAULT_KINDS,
        current=settings.current_key_format,
    )


def get_key_formats() -> KeyFormats:
    """The configured key grammar. Raises KeyFormatError when the settings make none."""
    return _build_key_formats(conf())


@cache
def _compute_version(settings: Conf) -> int:
    read_by = (
        settings.key_formats,
        settings.media_kinds,
        settings.project_id_pattern,
        settings.current_key_format,
    )
    return crc32(repr(read_by).encode()) - 2**31


def key_formats_version() -> int:
    """The version of the key formats: under another one a key may be parsed otherwise."""
    return _compute_version(conf())


def refused_ids() -> list[str]:
    """The first ids of projects that PROJECT_ID_PATTERN does not accept, one more than are shown:
    what could be theirs is kept, and what is theirs cannot be cleaned up. Reads the whole table."""
    refused = (
        each for each in project_model.iterate_ids() if not get_key_formats().is_project_id(each)
    )
    return list(islice(refused, MAX_IDS_SHOWN + 1))


def refused_ids_text(ids: Sequence[str]) -> str:
    """What to say of these, as `refused_ids` gives them."""
    shown = ", ".join(printable_text(each[:MAX_OWNER_LENGTH]) for each in ids[:MAX_IDS_SHOWN])
    more = _(" and more") if len(ids) > MAX_IDS_SHOWN else ""
    text = _("The setting PROJECT_ID_PATTERN does not accept these project IDs: %(ids)s%(more)s.")
    return text % {"ids": shown, "more": more}


def unambiguous_version(names: Collection[str], parsed_key: ParsedKey | None) -> int | None:
    """The version of the key formats, if under it the key names one project alone and is not
    misnamed: then only that project's end can make a finding of the object. See
    R2Object.unambiguous_under."""
    misnamed = parsed_key is not None and get_key_formats().is_doubled(parsed_key.key_format)
    return key_formats_version() if len(names) == 1 and not misnamed else None


class Ownership(Enum):
    OWNED = "owned"
    OTHER_PROJECT = "elsewhere"
    IN_DOUBT = "kept"


class Verdict(NamedTuple):
    """`ownership` is about one project: the key is its own, plainly another's, or in doubt. In
    doubt and `is_unrecognised`, nothing says for anybody whose the object is."""

    ownership: Ownership
    evidence: str
    reason: str = ""
    is_unrecognised: bool = False


class DeletedProject(NamedTuple):
    """The project whose objects are in question, and when it was deleted, if that is known."""

    project_id: str
    deleted_at: datetime | None


def living_owners(parsed_keys: Iterable[ParsedKeys], ids: Iterable[str] = ()) -> set[str]:
    """Which of the projects that these keys could name, and of these ids, are alive or vanished
    unreported; also those whose ids the grammar refuses."""
    return living_projects(chain(ids, *(of_key.owners for of_key in parsed_keys)))


def living_projects(ids: Iterable[str]) -> set[str]:
    """Which of these are alive, or vanished and are not reported as deleted, or deleted with files
    that stay for now: the deletion may be undone, or a person keeps them."""
    asked = set(filter(is_storable, ids))
    alive = project_model.living_ids(asked)
    left = asked - alive
    if not left:
        return alive
    return alive | KnownProject.objects.keeping_files().find_spelled(left)


def known_ids(ids: Iterable[str]) -> set[str]:
    known = KnownProject.objects.values_list("pk", flat=True)
    return find_in_chunks(filter(is_storable, ids), lambda some: known.filter(pk__in=some))


def judge_ownership(
    project: DeletedProject,
    parsed_keys: ParsedKeys,
    rows: Sequence[TrackingRow],
    last_modified: datetime | None,
    alive: set[str],
    stored: ObjectFacts | None = None,
) -> Verdict:
    """The one rule: does the key belong to the project, so that it goes when that is deleted?

    `rows` are the tracking rows of all its spellings, `last_modified` the object's time or None
    when there is no object, `alive` the live projects among the possible owners and among those
    that rows name. `stored` is the object: a person's decision holds for no other one, and for no
    unfinished upload.
    """
    told, project_id = authoritative_projects(rows), project.project_id
    names = deciding_projects(parsed_keys, rows)
    evidence = shorten_list(told.values(), "; ") if told else evidence_of(parsed_keys)
    in_doubt = partial(Verdict, Ownership.IN_DOUBT, evidence)
    is_named = project_id in names or (not told and project_id in projects_in_rows(rows))
    if names and not is_named:
        return Verdict(Ownership.OTHER_PROJECT, evidence)
    if len(told) > 1:
        return in_doubt(two_rows_reason(told))
    if has_too_many_owners(parsed_keys, rows, stored):
        return in_doubt(too_many_owners_reason())
    if not names:
        return in_doubt(unrecognised_reason(), is_unrecognised=True)
    if not parsed_keys and is_not_the_assigned(rows, stored):
        return in_doubt(not_the_assigned_reason(), is_unrecognised=True)
    if project_id not in names:
        return in_doubt(row_alone_reason())
    rivals = (possible_projects(parsed_keys, rows, stored) & alive) - {project_id}
    if by_key := rivals & parsed_keys.owners:
        return in_doubt(rival_reason(by_key, rows))
    if len(names) > 1 and last_modified and (reason := too_young_reason(project, last_modified)):
        return in_doubt(reason)
    if rivals:
        return in_doubt(tracked_row_reason(rivals))
    return Verdict(Ownership.OWNED, evidence)


def possible_projects(
    parsed_keys: ParsedKeys, rows: Sequence[TrackingRow], stored: ObjectFacts | None = None
) -> set[str]:
    """Every project that may own the object, also those whose ids the grammar refuses. A person's
    decision about this very object is evidence against all others. An upload's row is evidence
    against none: it names a project only if the key could name no other one, under the settings of
    then. A row that a backfill wrote only repeats what the key says: it grants nothing, and keeps
    the object."""
    names = projects_in_rows(rows)
    return names if is_assigned(rows, stored) else names | parsed_keys.owners


def has_too_many_owners(
    parsed_keys: ParsedKeys, rows: Sequence[TrackingRow], stored: ObjectFacts | None
) -> bool:
    """Whether more projects could own this object than are checked, so that some may be alive. An
    upload's row rules out none of them, as it may be from other settings."""
    return parsed_keys.too_many and not is_assigned(rows, stored)


def evidence_of(parsed_keys: ParsedKeys) -> str:
    """What the key says about its owner, short enough to be stored with each object."""
    if parsed_keys.too_many:
        return _("too many possible owners")
    if not parsed_keys:
        return _("no key format matches")
    text = _("%(project)s by key format %(format)s")
    ways = [text % {"project": each.project, "format": each.key_format} for each in parsed_keys]
    return _("name fits %s") % shorten_list(ways, _(" or "))


def two_rows_reason(told: Iterable[str]) -> str:
    text = _("Two records name different projects for this file: %s. Delete one under “Files”.")
    return text % shorten_list(sorted(told))


def too_many_owners_reason() -> str:
    return _(
        "Kept: too many possible owners. If you know whose file it is, delete it in the Cloudflare"
        " dashboard."
    )


def unrecognised_reason() -> str:
    advice = _("Add its key format, or delete the file in the Cloudflare dashboard.")
    return f"{UNRECOGNISED_TEXT} {advice}"


def not_the_assigned_reason() -> str:
    return _(
        "The name does not match any known key format, and the file may not be the one that a"
        " person assigned. Assign the file. To delete it, delete it under “Files”."
    )


def row_alone_reason() -> str:
    return _(
        "The record names this project, but the file name fits another one. Check whose file it is."
        " To delete it, delete it under “Files”."
    )


def rival_reason(rivals: Collection[str], rows: Sequence[TrackingRow] = ()) -> str:
    """Why an object is kept that could belong to these existing projects, whatever its rows say."""
    if has_assigned_row(rows):
        return uploaded_since_reason(rivals)
    text = _("The name also fits an existing project: %s. It will be deleted with that project.")
    if authoritative_projects(rows):
        text = _(
            "The name also fits an existing project: %s. Assign the file to that project. To delete"
            " it, delete it under “Files”."
        )
    if not all(map(get_key_formats().is_project_id, rivals)):
        text = _(
            "The name also fits an existing project: %s. But the setting PROJECT_ID_PATTERN does"
            " not accept that ID. Change the ID or the setting."
        )
    return text % shorten_list(sorted(rivals))


def uploaded_since_reason(rivals: Collection[str]) -> str:
    """Why an object is kept that may not be the one that the person assigned."""
    text = _(
        "An upload to this name began after a person assigned the file, so the file may belong to"
        " an existing project: %s. Assign the file to that project. To delete it, delete it under"
        " “Files”."
    )
    return text % shorten_list(sorted(rivals))


def tracked_row_reason(rivals: Collection[str]) -> str:
    """Why an object is kept whose tracking rows name these existing projects."""
    text = _("A record names an existing project: %s. To delete the file, delete it under “Files”.")
    return text % shorten_list(sorted(rivals))


def shorten_list(texts: Iterable[str], separator: str = ", ") -> str:
    """The first of these, each cut off where it is long: strangers write keys."""
    first, *others = [*texts] or [""]
    shown = [first, *others[: MAX_OWNERS_SHOWN - 1]]
    more = len(others) + 1 - len(shown)
    cut = [
        text if len(text) <= MAX_OWNER_LENGTH else f"{text[: MAX_OWNER_LENGTH - 1]}…"
        for text in shown
    ]
    return separator.join([*cut, _("%d more") % more] if more else cut)


def too_young_reason(project: DeletedProject, last_modified: datetime) -> str:
    """Why an object that fits several projects may belong to a new one."""
    if project.deleted_at is None or is_from_fast_clock(project.deleted_at):
        return maybe_younger_reason()
    if last_modified >= project.deleted_at:
        text = _("The name fits several projects, and the file is newer than the deletion.")
        return f"{text} {scan_first_advice()}"
    if last_modified >= timezone.now() - conf().commit_timeout:
        return _(
            "The name fits several projects, and the file is new. A follow-up check or another"
            " cleanup decides about it later."
        )
    # One of the times is by the store's clock.
    if last_modified >= project.deleted_at - min(clock_skew(), conf().commit_timeout):
        return maybe_younger_reason()
    return ""


def maybe_younger_reason() -> str:
    text = _(
        "The name fits several projects, and the file may be newer than the deletion: the clocks"
        " differ."
    )
    return f"{text} {scan_first_advice()}"


def scan_first_advice() -> str:
    return _(
        "Run a scan. If the file is a leftover file, delete it there. If not, assign it, or delete"
        " it in the Cloudflare dashboard."
    )
