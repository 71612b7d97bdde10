"""What a look-up answers: a sentence, and what it speaks of."""

from datetime import datetime
from typing import NamedTuple

from django.utils import timezone

from storage_audit.cleanup.models.cleanup import CleanupOperation
from storage_audit.findings.models import Finding


class Sentence(NamedTuple):
    """With the next step for the person who reads it. `ended` is the project to declare deleted, if
    that is the step."""

    text: str
    operation: CleanupOperation | None = None
    finding: Finding | None = None
    ended: str = ""


Answer = Sentence | None


def moment(at: datetime) -> str:
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M:%S}"
