"""What decisions about findings have in common, and those that need no more.

A decision returns what it did, and for each finding that it left as it was the reason. Decisions
that look into the bucket commit what they write between two looks: call them outside a transaction.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.open_decisions import Owners, find_covering, possible_owners
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.origin import current_origin
from storage_audit.ownership.owner import layouts
from storage_audit.reading import read_in_steps
from storage_audit.redaction import redact

State = Finding.State
Findings = FindingQuerySet | Iterable[int]
CHUNK = 1000
# So many a web request decides on, where it looks into the bucket meanwhile.
AT_ONCE = 100


class ActionRefused(Exception):
    """Nothing more was decided; the message says why, and what to do."""


class Skipped(NamedTuple):
    """A finding that stays as it is, and why."""

    key: str
    reason: str


class Result(NamedTuple):
    """What was done about a finding, where that is not the same for all; or would be."""

    key: str
    result: str


@dataclass
class Decision:
    """Of how many findings something was done, and by which operations; and what was left. A plan
    tells what would be."""

    done: int = 0
    operations: list[CleanupOperation] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    is_plan: bool = False

    def leave(self, finding: Finding, reason: str) -> bool:
        """Whether there is a reason, which is noted, to leave it."""
        if reason:
            self.left.append(Skipped(finding.key, reason))
        return bool(reason)

    def resolve(self, findings: Iterable[Finding], how: str) -> None:
        """Those that a person has acknowledged meanwhile keep their objects, and are left."""
        settled = Finding.objects.filter(pk__in=[finding.pk for finding in findings])
        self.done += settled.open().resolve(how, current_origin().user)
        for finding in settled.filter(state=State.ACKNOWLEDGED):
            self.leave(finding, _("It was acknowledged meanwhile. The finding stays as it is."))


def acknowledge(findings: Findings, note: str) -> Decision:
    """Say that these may stay as they are, and why. Raises ActionRefused without a note."""
    if not note.strip():
        raise ActionRefused(_("Say in a note why these may stay as they are."))
    found = chosen(findings)
    decision = leave_all(found.exclude(state=State.OPEN))
    pks = list(found.open().values_list("pk", flat=True))
    decision.done = found.acknowledge(redact(note.strip()), current_origin().user)
    # A cleanup is looked for after that, as each reads acknowledgements just before it deletes.
    for start in range(0, len(pks), CHUNK):
        some = Finding.objects.filter(pk__in=pks[start : start + CHUNK])
        decision.results += warn_of_cleanups(some.keeping())
    return decision


def warn_of_cleanups(acknowledged: FindingQuerySet) -> Iterator[Result]:
    """Of those whose object an open cleanup covers, that it may be too late."""
    for bucket, some in groupby(acknowledged.order_by("bucket", "key"), attrgetter("bucket")):
        owners = dict[str, Owners]()
        for one in some:
            owners[one.key] = possible_owners(layouts().readings(one.key), ())
            owners[one.key].names.add(one.project_id or "")
        text = _(
            "Cleanup %s covers this file. The file stays, unless its deletion was sent already."
            " That cleanup's page says what became of it."
        )
        for key, cleanup in find_covering(bucket, owners).items():
            yield Result(key, text % cleanup.pk)


def reopen(findings: Findings) -> Decision:
    """Take the acknowledgements back."""
    found = chosen(findings)
    decision = leave_all(found.exclude(state=State.ACKNOWLEDGED))
    decision.done = found.reopen(current_origin().user)
    return decision


def refuse_many(findings: FindingQuerySet) -> None:
    """Raises ActionRefused when they are more than a web request may look into the bucket for."""
    if findings.order_by("pk")[AT_ONCE : AT_ONCE + 1].exists():
        text = _(
            "These are more than %s findings, and each has to be looked at in the bucket. Choose"
            " fewer, or use manage.py findings."
        )
        raise ActionRefused(text % AT_ONCE)


def leave_all(findings: FindingQuerySet) -> Decision:
    decision = Decision()
    for finding in read_in_steps(findings.order_by("bucket", "key")):
        decision.leave(finding, as_it_is(finding))
    return decision


def as_it_is(finding: Finding) -> str:
    if finding.state == State.ACKNOWLEDGED:
        return _("It is acknowledged: %s") % finding.note
    if finding.state == State.RESOLVED:
        return _("It is resolved: %s") % finding.note
    return _("It is open.")


def chosen(findings: Findings) -> FindingQuerySet:
    # Of a queryset that is cut or joined nothing could be updated.
    pks: Any = findings.values("pk") if isinstance(findings, QuerySet) else list(findings)
    return Finding.objects.filter(pk__in=pks)


def chunks(findings: Findings) -> Iterator[tuple[str, list[Finding]]]:
    """By bucket and in the order of keys, as neighbours share a look."""
    places = chosen(findings).order_by("bucket", "key", "pk").values_list("bucket", "pk")
    for bucket, group in groupby(list(places), key=itemgetter(0)):
        pks = [pk for _bucket, pk in group]
        for start in range(0, len(pks), CHUNK):
            some = Finding.objects.filter(pk__in=pks[start : start + CHUNK])
            yield bucket, list(some.order_by("key", "pk"))
