"""What the doctor finds, in all processes side by side."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.admin.models import ADDITION
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from ninja import Field, Router, Schema, Status

from storage_audit.api import auth
from storage_audit.api.auth import require
from storage_audit.api.openapi import refusals
from storage_audit.api.problems import Problem
from storage_audit.api.rate_limit import Rate
from storage_audit.concurrency import place
from storage_audit.doctor.compare_processes import Comparison
from storage_audit.doctor.models import Diagnosis
from storage_audit.doctor.run_checks import examine_everywhere

router = Router(tags=["diagnostics"], throttle=Rate(heavy=True))


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
    values: list[str] = Field(description="In the order of the reports.")


class Report(Schema):
    context: Diagnosis.Context
    host: str
    pid: int
    at: datetime
    of_this_run: bool
    probes: list[dict[str, Any]]


class Examination(Schema):
    run: UUID
    wrong: bool
    awaits_worker: bool = Field(description="A queue worker may still answer.")
    problems: list[ProblemFound]
    differences: list[DifferenceFound]
    reports: list[Report]


@router.get("", response={200: Examination, **refusals(404)})
def get_diagnostics(request: HttpRequest) -> Examination:
    """The latest examination, with what other processes have answered so far. Needs the permission
    view_diagnosis."""
    require(request, "storage_audit.view_diagnosis")
    latest = Diagnosis.objects.latest_first().first()
    if latest is None:
        raise Problem("not-found", _("Nobody has asked the doctor yet: POST here."))
    return told(Comparison.of(latest))


@router.post("", response={202: Examination, **refusals()})
def examine(request: HttpRequest, response: HttpResponse) -> Status[Examination]:
    """Run all probes in this web server now, which takes some seconds, and ask a queue worker to do
    the same: GET here tells its answer. Needs the permission add_diagnosis."""
    require(request, "storage_audit.add_diagnosis")
    with place():
        diagnosis = examine_everywhere(Diagnosis.Context.WEB)
    # None is kept while the database is what is wrong.
    if diagnosis.pk:
        auth.log(request, diagnosis, ADDITION, _("Examined."))
    response["Location"] = reverse("storage_audit_api:get_diagnostics")
    return Status(202, told(Comparison.of(diagnosis)))


def told(comparison: Comparison) -> Examination:
    return Examination(
        run=comparison.asked.run,
        wrong=comparison.is_wrong,
        awaits_worker=comparison.awaits_worker,
        problems=[ProblemFound(**problem._asdict()) for problem in comparison.problems],
        differences=[DifferenceFound(**each._asdict()) for each in comparison.differences],
        reports=[
            Report(
                context=Diagnosis.Context(each.context),
                host=each.host,
                pid=each.pid,
                at=each.at,
                of_this_run=comparison.is_of_run(each),
                probes=each.probes,
            )
            for each in comparison.diagnoses
        ],
    )
