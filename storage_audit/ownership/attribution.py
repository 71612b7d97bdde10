"""Who owns a listed object, going by its key and its row, and what is wrong with that?"""

from collections.abc import Sequence
from typing import NamedTuple

from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.ownership.key_template import ParsedKey, ParsedKeys
from storage_audit.ownership.ownership_rule import (
    DeletedProject,
    Ownership,
    get_key_formats,
    judge_ownership,
    unambiguous_version,
)
from storage_audit.ownership.row_evidence import (
    ObjectFacts,
    TrackingRow,
    deciding_projects,
    is_assigned,
)


class OwnerProblem(models.TextChoices):
    """Why an object seems to be no live project's. A finding of this kind has the same word."""

    ORPHANED = "orphaned", gettext_lazy("leftover")
    AMBIGUOUS = "ambiguous", gettext_lazy("unclear owner")
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
    """The only project to which `judge_ownership` would give the object, if there is one.

    `known` are the projects that ever existed, `alive` those that exist now, `stored` the
    object: a person's decision holds for no other one.
    """
    names = deciding_projects(parsed_keys, rows)
    candidates = names & known or names
    project_id = min(candidates, default="")
    # What a backfill wrote keeps an object from being deleted, and decides nothing for the living.
    rivals = alive & parsed_keys.owners if project_id in alive else alive
    if len(candidates) > 1:
        # The evidence names the others.
        rivals = alive & parsed_keys.refused_ids
    project = DeletedProject(project_id, None)
    verdict = judge_ownership(project, parsed_keys, rows, None, rivals, stored)
    evidence = verdict.evidence
    if verdict.ownership is not Ownership.OWNED or len(candidates) > 1:
        problem = OwnerProblem.UNRECOGNISED if verdict.is_unrecognised else OwnerProblem.AMBIGUOUS
        reason = f"; {verdict.reason}" if candidates and verdict.reason else ""
        return Owner(None, None, problem, f"{evidence}{reason}")
    parsed_key = next((r for r in parsed_keys if r.project == project_id), None)
    # What the key may also name can become a rival.
    possible = names if is_assigned(rows, stored) else names | parsed_keys.projects
    owner = Owner(
        project_id, parsed_key, unambiguous_under=unambiguous_version(possible, parsed_key)
    )
    if project_id in alive:
        return owner
    if project_id in known:
        reason = _("project %s was deleted") % project_id
    else:
        reason = _("project %s is unknown") % project_id
    return owner._replace(problem=OwnerProblem.ORPHANED, evidence=f"{evidence}; {reason}")
