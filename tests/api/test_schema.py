"""The API does what it says of itself, whatever it is asked: schemathesis asks."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import pytest
import schemathesis
from django.contrib.auth.models import User
from django.core.wsgi import get_wsgi_application
from hypothesis import HealthCheck, settings
from pytest_django import Settings
from schemathesis.core.parameters import ParameterLocation as Place

from storage_audit.api.models import ApiToken
from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import Project
from storage_audit.scan.models import BucketScan
from storage_audit.urls import api
from tests.held import hold_deletion
from tests.real_bucket import Bucket

KNOWN: dict[str, Any] = {
    "deletion_id": str(UUID(int=1)),
    "project_id": "proj_1",
    "scan_id": str(UUID(int=2)),
    "finding_id": 3,
    "findings": [3],
}
DOCTOR_PATH = "/api/v1/doctor"
DECISIONS = [
    f"/api/v1/deletions/{{deletion_id}}/{each}" for each in ("undo", "erase", "clean-up-again")
]
RESUME = "/api/v1/deletions/resume"
PLAN = "/api/v1/debug/cleanup/{project_id}"


@cache
def application() -> Any:
    return get_wsgi_application()


def site(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Made when it is first asked, as the tests change the settings before."""
    answer: Iterable[bytes] = application()(environ, start_response)
    return answer


# It changes what it is given, which the API keeps.
described = schemathesis.openapi.from_dict(deepcopy(api.get_openapi_schema(path_prefix="api/v1/")))
described.app = site


@dataclass
class Visitor:
    token: str
    statuses: set[int] = field(default_factory=set)

    def ask(self, case: "schemathesis.Case[Any]") -> None:
        """Every other time for something that is there, as nobody would guess an id."""
        assert case.meta
        odd = sum(map(ord, repr((case.path_parameters, case.body)))) % 2
        if odd and not case.meta.is_negative_at(Place.PATH):
            case.path_parameters = {name: KNOWN[name] for name in case.path_parameters}
        if odd and isinstance(case.body, dict) and not case.meta.is_negative_at(Place.BODY):
            case.body |= {name: KNOWN[name] for name in KNOWN.keys() & case.body.keys()}
        # Of a live project nothing but a plan can be asked for: by chance that is rare.
        if odd and case.path == PLAN and not case.meta.is_negative_at(Place.QUERY):
            case.query |= {"dry_run": True}
        if odd and case.path in DECISIONS and not case.meta.is_negative_at(Place.PATH):
            held = hold_deletion("proj_7", cancelled=case.path.endswith("clean-up-again"))
            case.path_parameters = {"deletion_id": str(held.pk)}
        if odd and case.path == RESUME and not case.meta.is_negative_at(Place.BODY):
            pause_deletions.pause_deletions("a test")
            case.body = {"confirm": pause_deletions.find_resume_figures().digest}
        if case.method == "DELETE":
            Project.objects.get_or_create(pk=KNOWN["project_id"])
        # What is to be refused for its key keeps it.
        spoilt = any(map(case.meta.is_negative_at, (Place.HEADER, Place.COOKIE)))
        key = {} if spoilt else {"Authorization": f"Bearer {self.token}"}
        self.statuses.add(case.call_and_validate(headers=key).status_code)


@pytest.fixture
def visitor(bucket: Bucket, settings: Settings) -> Iterator[Visitor]:
    """One who may do all, at a site with something to ask for."""
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {
        "API_RATE_READ": 100_000,
        "API_RATE_WRITE": 100_000,
        "WRANGLER_PATH": "no-such-program",
    }
    bucket.upload(KNOWN["project_id"])
    blocked = {"status": "blocked", "next_attempt_at": None}
    cleanup = Cleanup.objects.request(
        pk=KNOWN["deletion_id"],
        kind="project",
        project_id="proj_0",
        bucket=bucket.name,
        trigger="deleted",
        **blocked,
    )
    cleanup.items.create(key="proj_0_s1_media.mp4", identity="x", found_in="both")
    HealthReport.objects.create(context="web", host="h", pid=1)
    scan = BucketScan.objects.create(pk=KNOWN["scan_id"], bucket=bucket.name, status="stopped")
    scan.shards.create()
    both = {"first_scan": scan, "last_scan": scan, "bucket": bucket.name}
    Finding.objects.create(pk=KNOWN["finding_id"], key="stranger", kind="unrecognised", **both)
    anna = User.objects.create_superuser("anna")
    come = Visitor(ApiToken.issue(name="schemathesis", user=anna, may_write=True)[1])
    yield come
    assert come.statuses & {200, 202}, "it was only ever refused, which shows nothing"


anything = settings(max_examples=30, suppress_health_check=list(HealthCheck))
# It takes a second.
little = settings(anything, max_examples=1)


def as_described(path: str, method: str) -> Any:
    @described.include(path=path, method=method).parametrize()
    @(little if (path, method) == (DOCTOR_PATH, "POST") else anything)
    def test(visitor: Visitor, case: "schemathesis.Case[Any]") -> None:
        visitor.ask(case)

    return test


# A name for each, as schemathesis names all alike and pytest-xdist runs one of each name.
for path, methods in described.raw_schema["paths"].items():
    for method in methods:
        globals()[f"test_{method}_{path}"] = as_described(path, method.upper())
