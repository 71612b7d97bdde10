"""Whose is a listed object, going by its key and by its row, and what is wrong with that?"""

from collections.abc import Sequence
from typing import NamedTuple

from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit.ownership.key_format import Reading, Readings
from storage_audit.ownership.owner import (
    Facts,
    Row,
    could_be,
    evidence_of,
    has_too_many_owners,
    is_given,
    is_of_nobody,
    layouts,
    plain_under,
    rivals_of,
    shorten,
    telling,
)


class Doubt(models.TextChoices):
    """Why an object seems to be no live project's. A finding of this kind has the same word."""

    ORPHANED = "orphaned", gettext_lazy("orphaned")
    AMBIGUOUS = "ambiguous", gettext_lazy("ambiguous")
    UNRECOGNISED = "unrecognised", gettext_lazy("unrecognised")


class Owner(NamedTuple):
    """Whose an object seems to be, and what is wrong with that, if anything is.

    `plain_under` as the row has it.
    """

    project_id: str | None
    reading: Reading | None
    difference: str = ""
    evidence: str = ""
    plain_under: int | None = None

    @property
    def is_misnamed(self) -> bool:
        return self.reading is not None and layouts().is_doubled(self.reading.layout)


def attribute(
    readings: Readings,
    rows: Sequence[Row],
    known: set[str],
    alive: set[str],
    stored: Facts | None,
) -> Owner:
    """`known` are the projects that ever lived, `alive` those that live now, `stored` the object:
    a person's decision holds for no other one."""
    told = telling(rows)
    evidence = shorten(told.values(), "; ") if told else evidence_of(readings)
    if has_too_many_owners(readings, rows, stored):
        return Owner(None, None, Doubt.AMBIGUOUS, evidence_of(readings))
    if len(told) > 1:
        return Owner(None, None, Doubt.AMBIGUOUS, evidence)
    if is_of_nobody(readings, rows, stored):
        return Owner(None, None, Doubt.UNRECOGNISED, evidence)
    names = set(told) or readings.projects
    if names and (rivals := rivals_of(readings, rows, alive, stored)):
        return Owner(None, None, Doubt.AMBIGUOUS, f"{evidence}; {could_be(rivals, rows)}")
    candidates = names & known or names
    if len(candidates) == 1:
        [project_id] = candidates
        reading = next((r for r in readings if r.project == project_id), None)
        # What the key may also name can become a rival.
        possible = names if is_given(rows, stored) else names | readings.projects
        owner = Owner(project_id, reading, plain_under=plain_under(possible, reading))
        if project_id in alive:
            return owner
    if not candidates:
        return Owner(None, None, Doubt.UNRECOGNISED, evidence)
    if len(candidates) > 1:
        return Owner(None, None, Doubt.AMBIGUOUS, evidence)
    if project_id in known:
        reason = _("project %s was deleted") % project_id
    else:
        reason = _("no project %s was ever known") % project_id
    return owner._replace(difference=Doubt.ORPHANED, evidence=f"{evidence}; {reason}")
