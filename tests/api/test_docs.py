"""What docs/api.md shows works as it stands there."""

import json
import re
import shlex
from argparse import ArgumentParser
from string import Template

import pytest
from django.test import Client
from ninja import Schema

from storage_audit.api.models import ApiToken
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.api import ActionResponse
from storage_audit.findings.models import Finding
from storage_audit.models import Project
from storage_audit.projects.api import ProjectDeleted
from storage_audit.scan.models import BucketScan
from storage_audit.urls import api
from tests.api_client import client_with_token
from tests.builders import create_orphans
from tests.held import hold_deletion
from tests.keys import KEY
from tests.paths import ROOT
from tests.real_bucket import Bucket

PAGE = (ROOT / "docs" / "api.md").read_text()
ACTIONS = "$SITE/api/v1/findings/actions"
CURLS = re.findall(r"^    (curl .*)$", PAGE.replace("$ACTIONS", ACTIONS), re.MULTILINE)

HEADERS = {202: "Location", 401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}

curl = ArgumentParser()
curl.add_argument("program")
curl.add_argument("-X", dest="method")
curl.add_argument("-H", dest="header")
curl.add_argument("--json", dest="body")
curl.add_argument("address")


def test_each_example_is_answered(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_2")
    create_orphans(bucket, KEY)
    come = client_with_token()
    monkeypatch.setattr("storage_audit.cleanup.api.wait_for_change", lambda *args: None)
    values = {"TOKEN": come.headers["Authorization"].removeprefix("Bearer "), "SITE": ""}
    code = ""
    for line in CURLS:
        if decision := re.search(r"\$ID/(undo|cancel|erase|clean-up-again) ", line):
            hold_deletion("proj_1", cancelled=decision[1] == "clean-up-again")
        last = Cleanup.objects.order_by("created_at").last()
        scan, finding = BucketScan.objects.latest("started_at"), Finding.objects.get()
        ids = {"CODE": code, "ID": last and last.pk, "SCAN_ID": scan.pk, "FINDING_ID": finding.pk}
        said = curl.parse_args(shlex.split(Template(line).substitute(values, **ids)))
        name, _colon, value = said.header.partition(": ")
        method = said.method or ("POST" if said.body else "GET")
        answer = Client().generic(
            method, said.address, said.body or "", "application/json", headers={name: value}
        )
        assert answer.status_code in (200, 202), (line, answer.content)
        shown = json.loads(answer.content) if b"confirm" in answer.content else {}
        code = shown.get("confirm", "")
    assert [each.pk for each in Project.objects.all()] == ["proj_2"]
    assert ApiToken.objects.get().last_used_at


def test_there_is_an_example_of_each_address() -> None:
    ids = {"proj_1": "{project_id}", "$ID": "{deletion_id}"}
    ids |= {f"${name.upper()}": f"{{{name}}}" for name in ("scan_id", "finding_id")}
    shown = "\n".join(CURLS)
    for example, name in ids.items():
        shown = shown.replace(example, name)
    for path in api.get_openapi_schema(path_prefix="api/v1/")["paths"]:
        assert re.search(rf"\$SITE{re.escape(path)}(\"|\?|$| )", shown, re.MULTILINE), path


def test_headers_are_described() -> None:
    described = api.get_openapi_schema(path_prefix="api/v1/")
    for methods in described["paths"].values():
        for answers in (cleanup["responses"] for cleanup in methods.values()):
            assert 400 in answers
            for status in answers.keys() & HEADERS:
                assert HEADERS[status] in answers[status]["headers"]
    session = described["components"]["securitySchemes"]["StaffSession"]
    assert "X-CSRFToken" in session["description"]


def test_the_answer_that_is_shown_has_the_fields_that_there_are() -> None:
    answers = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    schemas: list[type[Schema]] = [ProjectDeleted, ActionResponse]
    for shown, schema in zip(answers, schemas, strict=True):
        assert set(json.loads(shown)) == set(schema.model_fields)
        assert schema.model_validate_json(shown)
