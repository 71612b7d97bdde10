"""Look up what a person pasted: a key, an address, a project, a deletion. One sentence says why it
is still there, or when it went. Each function of WHY says its sentence if it fits, and the first
that does is the answer."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from storage_audit.audit.lookup import project, stays, went
from storage_audit.audit.lookup.facts import ALL, Facts, Sight, facts_of
from storage_audit.audit.lookup.pasted import Understood, understand
from storage_audit.audit.lookup.project import ProjectFacts
from storage_audit.audit.lookup.sentence import Answer, Sentence
from storage_audit.conf import conf
from storage_audit.fields import buckets_in
from storage_audit.findings import Finding
from storage_audit.models import R2Object
from storage_audit.operations import CleanupOperation
from storage_audit.redaction import HIDDEN

WHY: tuple[Callable[[Facts], Answer], ...] = (
    went.own_object,
    went.being_uploaded,
    went.gone,
    went.absent_now,
    went.blocked,
    went.being_deleted,
    went.back_again,
    stays.not_deleted,
    stays.kept,
    stays.seen_by_a_look,
    stays.accepted,
    stays.found_by_scan,
    stays.upload_failed,
    stays.planned_to_go,
    stays.belongs_to_the_living,
    stays.project_vanished,
    stays.not_in_the_plan,
    stays.covered,
    stays.left_behind,
    went.gone_in_another_spelling,
    stays.never_found,
    stays.read_by_nobody,
    stays.nobodys,
    stays.unknown,
)
# What they say would be wrong if a row said otherwise.
BY_ROWS = frozenset(
    {
        stays.belongs_to_the_living,
        stays.project_vanished,
        stays.covered,
        stays.left_behind,
        stays.read_by_nobody,
        stays.nobodys,
    }
)


class LookedUp(NamedTuple):
    """All that the text may mean of which something is known; if there is nothing, all that was
    tried, which is nothing where a part of the text is hidden."""

    understood: Understood
    is_known: bool
    operation: CleanupOperation | None
    project: ProjectFacts | None
    objects: Sequence[Facts]
    is_redacted: bool = False


def explain(facts: Facts) -> Sentence:
    may_say = (say for say in WHY if facts.sight.rows or say not in BY_ROWS)
    return next(sentence for say in may_say if (sentence := say(facts)))


def look_up(text: str, sight: Sight = ALL) -> LookedUp:
    """`text` is without secrets."""
    buckets = buckets_for(sight)
    understood = understand(text, buckets)
    operation = operation_of(understood)
    of_project = understood.project_id and project.facts_of(understood.project_id, buckets, sight)
    objects = facts_of(understood.keys, buckets, sight) if understood.keys else []
    told = LookedUp(understood, False, operation, of_project or None, objects)
    known = only_known(told)
    if HIDDEN in text and not (known and known.is_known):
        # Nobody asked about a key with this word in it.
        return told._replace(project=None, objects=[], is_redacted=True)
    return known or told


def buckets_for(sight: Sight) -> set[str]:
    """Ours, and those that this person may know of."""
    tables = ((R2Object.objects.all(), sight.rows), (Finding.objects.all(), sight.findings))
    seen = (buckets_in(table) for table, may_see in tables if may_see)
    return {conf().bucket, *chain.from_iterable(seen)}


def operation_of(understood: Understood) -> CleanupOperation | None:
    if not (pk := understood.operation_id):
        return None
    return CleanupOperation.objects.select_related("parent").filter(pk=pk).first()


def only_known(told: LookedUp) -> LookedUp | None:
    of_project = told.project if told.project and told.project.is_known else None
    objects = [one for one in told.objects if one.is_known]
    if told.operation or of_project or objects:
        return told._replace(is_known=True, project=of_project, objects=objects)
    readable = [one for one in told.objects if one.readings]
    return told._replace(objects=readable) if readable else None
