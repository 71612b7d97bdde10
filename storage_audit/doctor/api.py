"""The health check, with all processes side by side."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.admin.models import ADDITION
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from ninja import Field, Router, Schema, Status

from storage_audit.api import auth
from storage_audit.api.auth import require_permission
from storage_audit.api.openapi import problem_responses
from storage_audit.api.problems import Problem
from storage_audit.api.rate_limit import RateLimit
from storage_audit.concurrency import acquire_slot
from storage_audit.doctor.compare_processes import Comparison
from storage_audit.doctor.models import HealthReport
from storage_audit.doctor.run_checks import run_probes_everywhere

router = Router(tags=["doctor"], throttle=RateLimit(heavy=True))


class ProblemFound(Schema):
    status: str
    probe: str
    processes: list[str]
    summary: str
    advice: str
    readings: dict[str, Any]


class DifferenceFound(Schema):
    probe: str
    fact: str
    values: list[str] = Field(description="In the same order as the reports.")


class ProcessReport(Schema):
    context: HealthReport.Context
    host: str
    pid: int
    at: datetime
    of_this_run: bool
    probes: list[dict[str, Any]]


class HealthCheck(Schema):
    run: UUID
    wrong: bool
    awaits_worker: bool = Field(description="A queue worker may still answer.")
    problems: list[ProblemFound]
    differences: list[DifferenceFound]
    reports: list[ProcessReport]


@router.get("", response={200: HealthCheck, **problem_responses(404)})
def get_health_check(request: HttpRequest) -> HealthCheck:
    """The latest health check, with the answers of other processes so far. Needs the permission
    view_healthreport."""
    require_permission(request, "storage_audit.view_healthreport")
    latest = HealthReport.objects.latest_first().first()
    if latest is None:
        raise Problem(
            "not-found", _("There is no health report yet. Send a POST request to create one.")
        )
    return build_health_check(Comparison.of(latest))


@router.post("", response={202: HealthCheck, **problem_responses()})
def run_health_check(request: HttpRequest, response: HttpResponse) -> Status[HealthCheck]:
    """Run the health check in this web server now, which takes some seconds, and ask a queue worker
    to run it too. GET returns the worker's answer. Needs the permission add_healthreport."""
    require_permission(request, "storage_audit.add_healthreport")
    with acquire_slot():
        health_report = run_probes_everywhere(HealthReport.Context.WEB)
    # No report is kept if the database has trouble.
    if health_report.pk:
        auth.log_action(request, health_report, ADDITION, _("Checked."))
    response["Location"] = reverse("storage_audit_api:get_health_check")
    return Status(202, build_health_check(Comparison.of(health_report)))


def build_health_check(comparison: Comparison) -> HealthCheck:
    return HealthCheck(
        run=comparison.own_report.run,
        wrong=comparison.is_wrong,
        awaits_worker=comparison.awaits_worker,
        problems=[ProblemFound(**problem._asdict()) for problem in comparison.problems],
        differences=[DifferenceFound(**each._asdict()) for each in comparison.differences],
        reports=[
            ProcessReport(
                context=HealthReport.Context(each.context),
                host=each.host,
                pid=each.pid,
                at=each.at,
                of_this_run=comparison.is_of_run(each),
                probes=each.probes,
            )
            for each in comparison.reports
        ],
    )
