"""Who owns a listed object, going by its key and its row, and what is wrong with that?"""

from collections.abc import Sequence
from typing import NamedTuple

from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.ownership.key_format import ParsedKey, ParsedKeys
from storage_audit.ownership.owner import (
    ObjectFacts,
    TrackingRow,
    authoritative_projects,
    evidence_of,
    get_key_formats,
    has_no_owner,
    has_too_many_owners,
    is_assigned,
    rival_reason,
    rivals_of,
    shorten_list,
    unambiguous_version,
)


class OwnerProblem(models.TextChoices):
    """Why an object seems to be no live project's. A finding of this kind has the same word."""

    ORPHANED = "orphaned", gettext_lazy("orphaned")
    AMBIGUOUS = "ambiguous", gettext_lazy("ambiguous")
    UNRECOGNISED = "unrecognised", gettext_lazy("unrecognised")


class Owner(NamedTuple):
    """The project that seems to own an object, and what is wrong with that, if anything is.
    `unambiguous_under` is the value for the row."""

    project_id: str | None
    parsed_key: ParsedKey | None
    problem: str = ""
    evidence: str = ""
    unambiguous_under: int | None = None

    @property
    def is_misnamed(self) -> bool:
        return self.parsed_key is not None and get_key_formats().is_doubled(
            self.parsed_key.key_format
        )


def find_owner(
    parsed_keys: ParsedKeys,
    rows: Sequence[TrackingRow],
    known: set[str],
    alive: set[str],
    stored: ObjectFacts | None,
) -> Owner:
    """`known` are the projects that ever existed, `alive` those that exist now, `stored` the
    object: a person's decision holds for no other one."""
    told = authoritative_projects(rows)
    evidence = shorten_list(told.values(), "; ") if told else evidence_of(parsed_keys)
    if has_too_many_owners(parsed_keys, rows, stored):
        return Owner(None, None, OwnerProblem.AMBIGUOUS, evidence_of(parsed_keys))
    if len(told) > 1:
        return Owner(None, None, OwnerProblem.AMBIGUOUS, evidence)
    if has_no_owner(parsed_keys, rows, stored):
        return Owner(None, None, OwnerProblem.UNRECOGNISED, evidence)
    names = set(told) or parsed_keys.projects
    if names and (rivals := rivals_of(parsed_keys, rows, alive, stored)):
        return Owner(
            None, None, OwnerProblem.AMBIGUOUS, f"{evidence}; {rival_reason(rivals, rows)}"
        )
    candidates = names & known or names
    if len(candidates) == 1:
        [project_id] = candidates
        parsed_key = next((r for r in parsed_keys if r.project == project_id), None)
        # What the key may also name can become a rival.
        possible = names if is_assigned(rows, stored) else names | parsed_keys.projects
        owner = Owner(
            project_id, parsed_key, unambiguous_under=unambiguous_version(possible, parsed_key)
        )
        if project_id in alive:
            return owner
    if not candidates:
        return Owner(None, None, OwnerProblem.UNRECOGNISED, evidence)
    if len(candidates) > 1:
        return Owner(None, None, OwnerProblem.AMBIGUOUS, evidence)
    if project_id in known:
        reason = _("project %s was deleted") % project_id
    else:
        reason = _("no project %s was ever known") % project_id
    return owner._replace(problem=OwnerProblem.ORPHANED, evidence=f"{evidence}; {reason}")
