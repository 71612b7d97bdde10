"""Look up what a person pasted: a key, an address, a project, a deletion. One sentence says why it
is still there, or when it went. Each function of WHY says its sentence if it fits, and the first
that does is the answer."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.conf import conf
from storage_audit.fields import buckets_in
from storage_audit.findings.models import Finding
from storage_audit.lookup import project_rules, rules_gone, rules_present
from storage_audit.lookup.facts import ALL, Answer, Facts, Sentence, Sight, facts_of
from storage_audit.lookup.parse_query import Understood, understand
from storage_audit.lookup.project_rules import ProjectFacts
from storage_audit.models import R2Object
from storage_audit.redaction import HIDDEN

WHY: tuple[Callable[[Facts], Answer], ...] = (
    rules_gone.own_object,
    rules_gone.being_uploaded,
    rules_gone.gone,
    rules_gone.absent_now,
    rules_gone.blocked,
    rules_gone.being_deleted,
    rules_gone.back_again,
    rules_present.not_deleted,
    rules_present.kept,
    rules_present.seen_by_a_look,
    rules_present.accepted,
    rules_present.found_by_scan,
    rules_present.upload_failed,
    rules_present.planned_to_go,
    rules_present.belongs_to_the_living,
    rules_present.project_vanished,
    rules_present.not_in_the_plan,
    rules_present.covered,
    rules_present.left_behind,
    rules_gone.gone_in_another_spelling,
    rules_present.never_found,
    rules_present.read_by_nobody,
    rules_present.nobodys,
    rules_present.unknown,
)
# What they say would be wrong if a row said otherwise.
BY_ROWS = frozenset(
    {
        rules_present.belongs_to_the_living,
        rules_present.project_vanished,
        rules_present.covered,
        rules_present.left_behind,
        rules_present.read_by_nobody,
        rules_present.nobodys,
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
    of_project = understood.project_id and project_rules.facts_of(
        understood.project_id, buckets, sight
    )
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
