"""What the processes of one run say, side by side."""

from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any, NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.conf import conf
from storage_audit.doctor.models import Diagnosis
from storage_audit.doctor.probe_result import WAITS, Status

Context = Diagnosis.Context
Stored = dict[str, Any]

WORKER_ANSWERS_WITHIN = timedelta(seconds=30)
# What is wrong by a report of another run may be mended: it decides nothing. It is told for so
# long, with its age.
FRESH = timedelta(hours=1)
ABSENT = "–"
SEVERITY = {status.value: place for place, status in enumerate(Status)}


class Problem(NamedTuple):
    """What some processes agree on that is not ok."""

    status: Status
    probe: str
    processes: list[str]
    summary: str
    advice: str
    readings: Stored


class Fact(NamedTuple):
    """`values` are those of the comparison's processes, in their order."""

    name: str
    values: list[str]
    differs: bool


class Difference(NamedTuple):
    probe: str
    fact: str
    values: list[str]


class Row(NamedTuple):
    """The results of one probe; None where a process did not run it. That readings differ says
    nothing."""

    probe: str
    results: list[Stored | None]
    facts: list[Fact]
    readings: list[Fact]

    @property
    def differs(self) -> bool:
        statuses = {result["status"] for result in self.results if result}
        return len(statuses) > 1 or any(fact.differs for fact in self.facts)


@dataclass(frozen=True)
class Comparison:
    """`diagnoses` are those of the run, and of each process that has not answered, the latest."""

    asked: Diagnosis
    diagnoses: list[Diagnosis]

    @classmethod
    def of(cls, asked: Diagnosis) -> "Comparison":
        """The run of this diagnosis, with what has been answered so far."""
        if not asked.pk:
            return cls(asked, [asked])
        # Not in the order of their answers: the worker comes last.
        run = list(Diagnosis.objects.filter(run=asked.run).order_by("context", "pk"))
        missing = set(Context) - {each.context for each in run}
        earlier = Diagnosis.objects.filter(at__lt=asked.at).order_by("-at")
        others = (earlier.filter(context=context).first() for context in sorted(missing))
        return cls(asked, run + [each for each in others if each])

    def is_of_run(self, diagnosis: Diagnosis) -> bool:
        return diagnosis.run == self.asked.run

    def is_told(self, diagnosis: Diagnosis) -> bool:
        return self.is_of_run(diagnosis) or self.asked.at - diagnosis.at <= FRESH

    def process(self, diagnosis: Diagnosis) -> str:
        name = diagnosis.get_context_display()
        if self.is_of_run(diagnosis):
            return name
        minutes = (self.asked.at - diagnosis.at) // timedelta(minutes=1)
        return _("%(process)s, %(minutes)d minutes ago") % {"process": name, "minutes": minutes}

    @property
    def awaits_worker(self) -> bool:
        """Whether a worker may still answer."""
        return self.is_silent and timezone.now() - self.asked.at < WORKER_ANSWERS_WITHIN

    @property
    def is_silent(self) -> bool:
        """Whether a worker has been asked that did not answer so far."""
        if conf().sync or not self.asked.pk:
            return False
        of_run = filter(self.is_of_run, self.diagnoses)
        return not any(each.context == Context.WORKER for each in of_run)

    @property
    def is_wrong(self) -> bool:
        """By the reports of this run alone."""
        of_run = filter(self.is_of_run, self.diagnoses)
        results = (result for each in of_run for result in each.probes)
        return self.is_in_vain or any(result["status"] == Status.WRONG for result in results)

    @property
    def is_in_vain(self) -> bool:
        """Whether no worker answered in time."""
        return self.is_silent and not self.awaits_worker

    @property
    def rows(self) -> list[Row]:
        """The worst first."""
        names = dict.fromkeys(result["name"] for each in self.diagnoses for result in each.probes)
        rows = [self._row(name) for name in names]
        return sorted(rows, key=lambda row: worst(row.results))

    def _row(self, name: str) -> Row:
        results = [
            next((result for result in each.probes if result["name"] == name), None)
            for each in self.diagnoses
        ]
        return Row(name, results, facts_in(results, "facts"), facts_in(results, "readings"))

    @property
    def differences(self) -> list[Difference]:
        return [
            Difference(row.probe, fact.name, fact.values)
            for row in self.rows
            for fact in row.facts
            if fact.differs
        ]

    @property
    def problems(self) -> list[Problem]:
        """The worst first; what several processes say alike is said once."""
        found: dict[tuple[str, str, str], Problem] = {}
        for row in self.rows:
            for diagnosis, result in zip(self.diagnoses, row.results, strict=True):
                if result and is_problem(result) and self.is_told(diagnosis):
                    key = (row.probe, result["status"], result["summary"])
                    problem = found.setdefault(key, problem_of(result))
                    problem.processes.append(self.process(diagnosis))
        silence = [silent_worker()] if self.is_in_vain else []
        return silence + sorted(found.values(), key=lambda each: SEVERITY[each.status])


def is_problem(result: Stored) -> bool:
    """Of what waits for another probe, that one tells."""
    return result["status"] != Status.OK and WAITS not in result["readings"]


def problem_of(result: Stored) -> Problem:
    told = {name: result[name] for name in ("summary", "advice", "readings")}
    return Problem(Status(result["status"]), result["name"], [], **told)


def silent_worker() -> Problem:
    text = _(
        "No queue worker ran the probes within %d seconds: none is alive, all are busy, or its"
        " clock is not ours."
    )
    seconds = WORKER_ANSWERS_WITHIN.total_seconds()
    advice = _(
        "Look whether one runs (systemctl status autoshorts-worker), or start it with manage.py"
        " qcluster; then look at its log, and whether its DATABASE_URL and SECRET_KEY are the same."
    )
    return Problem(Status.WRONG, _("worker"), [], text % seconds, advice, {})


def worst(results: list[Stored | None]) -> int:
    return min(SEVERITY[result["status"]] for result in results if result)


def facts_in(results: list[Stored | None], kind: str) -> list[Fact]:
    """Those that are not the same in all processes that have any of this probe differ."""
    facts = [result[kind] if result else {} for result in results]
    found = []
    for name in dict.fromkeys(name for each in facts for name in each):
        values = [str(each.get(name, ABSENT)) for each in facts]
        told = {value for value, each in zip(values, facts, strict=True) if each}
        found.append(Fact(name, values, len(told) > 1))
    return found


def await_worker(asked: Diagnosis) -> Comparison:
    """Wait until a worker has answered too, or will not any more."""
    while (comparison := Comparison.of(asked)).awaits_worker:
        sleep(0.2)
    return comparison
