"""Compares the health reports of the processes of one run."""

from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any, NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from storage_audit.conf import conf
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import WAITS_FOR, Status

Context = HealthReport.Context
JsonObject = dict[str, Any]

WORKER_ANSWERS_WITHIN = timedelta(seconds=30)
# Reports of another run may be outdated: they decide nothing. They are shown with their age, for so
# long.
MAX_REPORT_AGE = timedelta(hours=1)
MISSING_VALUE = "–"
SEVERITY = {status.value: place for place, status in enumerate(Status)}


class Problem(NamedTuple):
    """Something that is not ok, and the processes that report it."""

    status: Status
    probe: str
    processes: list[str]
    summary: str
    advice: str
    readings: JsonObject


class Fact(NamedTuple):
    """One fact, with its values in the order of the comparison's processes."""

    name: str
    values: list[str]
    differs: bool


class Difference(NamedTuple):
    probe: str
    fact: str
    values: list[str]


class ProbeRow(NamedTuple):
    """The results of one probe; None where a process did not run it. Readings may differ."""

    probe: str
    results: list[JsonObject | None]
    facts: list[Fact]
    readings: list[Fact]

    @property
    def differs(self) -> bool:
        statuses = {result["status"] for result in self.results if result}
        return len(statuses) > 1 or any(fact.differs for fact in self.facts)


@dataclass(frozen=True)
class Comparison:
    """`reports` are those of the run, and the latest of each process that has not answered."""

    own_report: HealthReport
    reports: list[HealthReport]

    @classmethod
    def of(cls, own_report: HealthReport) -> "Comparison":
        """The run of this health report, with the answers so far."""
        if not own_report.pk:
            return cls(own_report, [own_report])
        # Not in the order of their answers: the worker comes last.
        run = list(HealthReport.objects.filter(run=own_report.run).order_by("context", "pk"))
        missing = set(Context) - {each.context for each in run}
        earlier = HealthReport.objects.filter(at__lt=own_report.at).order_by("-at")
        others = (earlier.filter(context=context).first() for context in sorted(missing))
        return cls(own_report, run + [each for each in others if each])

    def is_of_run(self, health_report: HealthReport) -> bool:
        return health_report.run == self.own_report.run

    def is_recent(self, health_report: HealthReport) -> bool:
        return (
            self.is_of_run(health_report) or self.own_report.at - health_report.at <= MAX_REPORT_AGE
        )

    def process_label(self, health_report: HealthReport) -> str:
        name = health_report.get_context_display()
        if self.is_of_run(health_report):
            return name
        minutes = (self.own_report.at - health_report.at) // timedelta(minutes=1)
        return _("%(process)s, %(minutes)d minutes ago") % {"process": name, "minutes": minutes}

    @property
    def awaits_worker(self) -> bool:
        """Whether a worker may still answer."""
        return self.is_worker_silent and timezone.now() - self.own_report.at < WORKER_ANSWERS_WITHIN

    @property
    def is_worker_silent(self) -> bool:
        """Whether a worker was asked and has not answered yet."""
        if conf().sync or not self.own_report.pk:
            return False
        of_run = filter(self.is_of_run, self.reports)
        return not any(each.context == Context.WORKER for each in of_run)

    @property
    def is_wrong(self) -> bool:
        """By the reports of this run alone."""
        of_run = filter(self.is_of_run, self.reports)
        results = (result for each in of_run for result in each.probes)
        return self.has_worker_timed_out or any(
            result["status"] == Status.WRONG for result in results
        )

    @property
    def has_worker_timed_out(self) -> bool:
        """Whether no worker answered in time."""
        return self.is_worker_silent and not self.awaits_worker

    @property
    def rows(self) -> list[ProbeRow]:
        """The worst first."""
        names = dict.fromkeys(result["name"] for each in self.reports for result in each.probes)
        rows = [self._row(name) for name in names]
        return sorted(rows, key=lambda row: min(SEVERITY[r["status"]] for r in row.results if r))

    def _row(self, name: str) -> ProbeRow:
        results = [
            next((result for result in each.probes if result["name"] == name), None)
            for each in self.reports
        ]
        return ProbeRow(
            name, results, compare_facts(results, "facts"), compare_facts(results, "readings")
        )

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
        """The worst first; what several processes report alike is listed once."""
        found: dict[tuple[str, str, str], Problem] = {}
        for row in self.rows:
            for health_report, result in zip(self.reports, row.results, strict=True):
                if result and is_problem(result) and self.is_recent(health_report):
                    key = (row.probe, result["status"], result["summary"])
                    problem = found.setdefault(key, problem_of(result))
                    problem.processes.append(self.process_label(health_report))
        silence = [silent_worker_problem()] if self.has_worker_timed_out else []
        return silence + sorted(found.values(), key=lambda each: SEVERITY[each.status])


def is_problem(result: JsonObject) -> bool:
    """Whether it is a problem of its own, and does not wait for another probe."""
    return result["status"] != Status.OK and WAITS_FOR not in result["readings"]


def problem_of(result: JsonObject) -> Problem:
    told = {name: result[name] for name in ("summary", "advice", "readings")}
    return Problem(Status(result["status"]), result["name"], [], **told)


def silent_worker_problem() -> Problem:
    text = _(
        "No queue worker answered within %d seconds. It is stopped, busy, or its clock is wrong."
    )
    seconds = WORKER_ANSWERS_WITHIN.total_seconds()
    advice = _(
        "Check the worker (systemctl status autoshorts-worker) or start one (manage.py"
        " qcluster). Then check its log, and that it has the same DATABASE_URL and"
        " SECRET_KEY."
    )
    return Problem(Status.WRONG, _("worker"), [], text % seconds, advice, {})


def compare_facts(results: list[JsonObject | None], kind: str) -> list[Fact]:
    """A fact differs if the processes that ran this probe do not all have the same value."""
    facts = [result[kind] if result else {} for result in results]
    found = []
    for name in dict.fromkeys(name for each in facts for name in each):
        values = [str(each.get(name, MISSING_VALUE)) for each in facts]
        told = {value for value, each in zip(values, facts, strict=True) if each}
        found.append(Fact(name, values, len(told) > 1))
    return found


def await_worker(own_report: HealthReport) -> Comparison:
    """Wait until a worker has answered, or it is too late."""
    while (comparison := Comparison.of(own_report)).awaits_worker:
        sleep(0.2)
    return comparison
