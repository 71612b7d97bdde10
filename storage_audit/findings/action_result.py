"""What decisions about findings have in common, and the decisions that need no store.

A decision returns what it did, and why it skipped a finding. Decisions that list the bucket commit
between two listings: call them outside a transaction.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.open_decisions import PossibleOwners, find_covering, possible_owners
from storage_audit.findings.models import Finding, FindingQuerySet
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.read_in_steps import read_in_steps
from storage_audit.redaction import redact_secrets
from storage_audit.request_origin import current_origin

State = Finding.State
Findings = FindingQuerySet | Iterable[int]
FINDINGS_PER_BATCH = 1000
# Findings that a web request decides on when it has to list the bucket.
MAX_FINDINGS_PER_REQUEST = 100


class ActionRefused(Exception):
    """Nothing more was decided; the message says why, and what to do."""


class Skipped(NamedTuple):
    """A finding that stays as it is, and why."""

    key: str
    reason: str


class FindingResult(NamedTuple):
    """What was done about a finding, or would be, where that is not the same for all."""

    key: str
    result: str


@dataclass
class Decision:
    """How many findings were dealt with, by which cleanups, and which were skipped. A preview says
    what would be done."""

    done: int = 0
    cleanups: list[Cleanup] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    results: list[FindingResult] = field(default_factory=list)
    is_preview: bool = False

    def skip(self, finding: Finding, reason: str) -> bool:
        """Whether there is a reason to skip it, which is noted."""
        if reason:
            self.skipped.append(Skipped(finding.key, reason))
        return bool(reason)

    def resolve(self, findings: Iterable[Finding], how: str) -> None:
        """Skips those that a person has ignored meanwhile: they keep their objects."""
        settled = Finding.objects.filter(pk__in=[finding.pk for finding in findings])
        self.done += settled.open().resolve(how, current_origin().user)
        for finding in settled.filter(state=State.IGNORED):
            self.skip(
                finding, _("Somebody ignored this finding in the meantime, so it stays ignored.")
            )


def ignore_findings(findings: Findings, note: str) -> Decision:
    """Say that these may stay as they are, and why. Raises ActionRefused without a note."""
    if not note.strip():
        raise ActionRefused(_("Nothing was ignored. Add a note that says why."))
    found = select_findings(findings)
    decision = skip_findings(found.exclude(state=State.OPEN))
    pks = list(found.open().values_list("pk", flat=True))
    decision.done = found.ignore(redact_secrets(note.strip()), current_origin().user)
    # Find cleanups only now, as each of them reads the ignored findings just before it deletes.
    for start in range(0, len(pks), FINDINGS_PER_BATCH):
        some = Finding.objects.filter(pk__in=pks[start : start + FINDINGS_PER_BATCH])
        decision.results += warn_of_cleanups(some.keeping_objects())
    return decision


def warn_of_cleanups(ignored: FindingQuerySet) -> Iterator[FindingResult]:
    """Say of those whose object an open cleanup covers that it may be too late."""
    for bucket, some in groupby(ignored.order_by("bucket", "key"), attrgetter("bucket")):
        owners = dict[str, PossibleOwners]()
        for one in some:
            owners[one.key] = possible_owners(get_key_formats().parse_key(one.key), ())
            owners[one.key].project_ids.add(one.project_id or "")
        text = _(
            "Cleanup %s covers this file. It keeps the file, unless the deletion was already sent:"
            " see that cleanup's page."
        )
        for key, cleanup in find_covering(bucket, owners).items():
            yield FindingResult(key, text % cleanup.pk)


def reopen_findings(findings: Findings) -> Decision:
    """Open ignored findings again."""
    found = select_findings(findings)
    decision = skip_findings(found.exclude(state=State.IGNORED))
    decision.done = found.reopen(current_origin().user)
    return decision


def refuse_too_many(findings: FindingQuerySet) -> None:
    """Raises ActionRefused when they are more than a web request may list the bucket for."""
    if findings.order_by("pk")[MAX_FINDINGS_PER_REQUEST : MAX_FINDINGS_PER_REQUEST + 1].exists():
        text = _(
            "Nothing was done: this action takes at most %s findings at a time. Select fewer, or"
            " use manage.py findings."
        )
        raise ActionRefused(text % MAX_FINDINGS_PER_REQUEST)


def skip_findings(findings: FindingQuerySet) -> Decision:
    decision = Decision()
    for finding in read_in_steps(findings.order_by("bucket", "key")):
        decision.skip(finding, state_reason(finding))
    return decision


def state_reason(finding: Finding) -> str:
    if finding.state == State.IGNORED:
        return _("Already ignored: %s") % finding.note
    if finding.state == State.RESOLVED:
        return _("Already resolved: %s") % finding.note
    return _("Already open.")


def busy_reason() -> str:
    return _("This file is being uploaded, deleted or changed right now. Try again later.")


def gone_reason() -> str:
    return _(
        "The file is not in the bucket any more. The next complete scan resolves this finding."
    )


def changed_reason() -> str:
    return _("The file changed since the scan found it. Scan again.")


def select_findings(findings: Findings) -> FindingQuerySet:
    # A sliced or joined queryset could not be updated.
    pks: Any = findings.values("pk") if isinstance(findings, QuerySet) else list(findings)
    return Finding.objects.filter(pk__in=pks)


def finding_batches(findings: Findings) -> Iterator[tuple[str, list[Finding]]]:
    """By bucket and in the order of keys, as neighbours share a listing."""
    places = select_findings(findings).order_by("bucket", "key", "pk").values_list("bucket", "pk")
    for bucket, group in groupby(list(places), key=itemgetter(0)):
        pks = [pk for _bucket, pk in group]
        for start in range(0, len(pks), FINDINGS_PER_BATCH):
            some = Finding.objects.filter(pk__in=pks[start : start + FINDINGS_PER_BATCH])
            yield bucket, list(some.order_by("key", "pk"))
