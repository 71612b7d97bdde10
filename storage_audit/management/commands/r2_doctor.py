import json
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

from storage_audit.doctor.compare_processes import Comparison, Problem, await_worker
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.probe_result import Status
from storage_audit.doctor.run_checks import run_probes_everywhere
from storage_audit.management.console import EXIT_FAILED
from storage_audit.management.documented import DocumentedCommand


class Command(DocumentedCommand):
    help = (
        "Checks settings, network, clock, credentials, bucket, database, queue and wrangler. Runs"
        " here and in a queue worker, and compares both with a web server's latest report. It"
        " writes, reads and deletes small test files of its own, and touches nothing else."
    )
    epilog = """
    examples:
      python manage.py r2_doctor
      python manage.py r2_doctor --json

    exit codes:
      0  nothing is wrong; there may be warnings
      1  something is wrong here or in the worker, or no worker answered; a web server's older
         report is shown with its age and does not count
      2  wrong usage

    Next: follow each line that begins with "Do:", then run it again. To get a web server's report,
    choose "Check now" in the admin, under Health reports.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object: every report, the problems and the differences",
        )

    def handle(self, *, as_json: bool, **options: object) -> None:
        comparison = await_worker(run_probes_everywhere(HealthReport.Context.SHELL))
        if as_json:
            self.stdout.write(json.dumps(health_json(comparison)))
        else:
            for line in health_lines(comparison):
                self.stdout.write(line)
        if comparison.is_wrong:
            raise CommandError("Something is wrong: see above.", returncode=EXIT_FAILED)


def health_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "run": str(comparison.own_report.run),
        "wrong": comparison.is_wrong,
        "problems": [problem._asdict() for problem in comparison.problems],
        "differences": [difference._asdict() for difference in comparison.differences],
        "reports": [
            {
                "context": each.context,
                "host": each.host,
                "pid": each.pid,
                "at": each.at.isoformat(),
                "of_this_run": comparison.is_of_run(each),
                "probes": each.probes,
            }
            for each in comparison.reports
        ],
    }


def health_lines(comparison: Comparison) -> Iterator[str]:
    heads = [each.get_context_display() for each in comparison.reports]
    for head, health_report in zip(heads, comparison.reports, strict=True):
        age = report_age(comparison, health_report)
        yield f"{head}: process {health_report.pid} on {health_report.host}{age}"
    yield ""
    yield from result_table(comparison, heads)
    for problem in comparison.problems:
        yield from problem_lines(problem)
    yield ""
    yield "Differences:" if comparison.differences else "No differences between the processes."
    for probe, fact, values in comparison.differences:
        yield f"  {probe}, {fact}"
        yield from (f"    {head}: {value}" for head, value in zip(heads, values, strict=True))


def problem_lines(problem: Problem) -> Iterator[str]:
    where = f" ({', '.join(problem.processes)})" if problem.processes else ""
    yield ""
    yield f"{problem.status.label.upper()}: {problem.probe}{where}: {problem.summary}"
    if answer := problem.readings.get("answer"):
        yield f"  Answer: {answer}"
    yield f"  Do: {problem.advice}"


def report_age(comparison: Comparison, health_report: HealthReport) -> str:
    if comparison.is_of_run(health_report):
        return ""
    minutes = (timezone.now() - health_report.at) // timedelta(minutes=1)
    return f", latest report, {minutes} minutes old"


def result_table(comparison: Comparison, heads: list[str]) -> Iterator[str]:
    """A line for each probe, with an asterisk where the processes differ."""
    widths = [max(len(head), len("not checked")) for head in heads]
    yield table_row("", "probe", heads, widths)
    for each in comparison.rows:
        statuses = [
            str(Status(result["status"]).label) if result else "" for result in each.results
        ]
        yield table_row("*" if each.differs else "", each.probe, statuses, widths)


def table_row(mark: str, name: str, cells: list[str], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{mark:2}{name:18}{'  '.join(padded)}".rstrip()
