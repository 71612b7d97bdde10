"""What docs/api.md shows works as it stands there."""

import json
import re
import shlex
from argparse import ArgumentParser
from pathlib import Path
from string import Template

import pytest
from django.test import Client

from storage_audit.api.schemas import ProjectDeleted
from storage_audit.api.urls import api
from storage_audit.models import ApiToken, CleanupOperation, Project
from tests.api_client import program
from tests.conftest import Bucket

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "api.md").read_text()
CURLS = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)

HEADERS = {202: "Location", 401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}

curl = ArgumentParser()
curl.add_argument("program")
curl.add_argument("-X", dest="method", default="GET")
curl.add_argument("-H", dest="header")
curl.add_argument("address")


def test_each_example_is_answered(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.upload("proj_1")
    come = program()
    monkeypatch.setattr("storage_audit.api.deletions.wait_for_change", lambda *args: None)
    values = {"TOKEN": come.headers["Authorization"].removeprefix("Bearer "), "SITE": ""}
    for line in CURLS:
        last = CleanupOperation.objects.order_by("created_at").last()
        given = Template(line).substitute(values, ID=last and last.pk)
        said = curl.parse_args(shlex.split(given))
        name, _colon, value = said.header.partition(": ")
        answer = Client().generic(said.method, said.address, headers={name: value})
        assert answer.status_code in (200, 202), (line, answer.content)
    assert not Project.objects.exists()
    assert ApiToken.objects.get().last_used_at


def test_there_is_an_example_of_each_address() -> None:
    shown = "\n".join(CURLS).replace("proj_1", "{project_id}").replace("$ID", "{deletion_id}")
    for path in api.get_openapi_schema(path_prefix="api/v1/")["paths"]:
        assert re.search(rf"\$SITE{re.escape(path)}(\"|\?|$| )", shown, re.MULTILINE), path


def test_headers_are_described() -> None:
    described = api.get_openapi_schema(path_prefix="api/v1/")
    for methods in described["paths"].values():
        for answers in (operation["responses"] for operation in methods.values()):
            assert 400 in answers
            for status in answers.keys() & HEADERS:
                assert HEADERS[status] in answers[status]["headers"]
    session = described["components"]["securitySchemes"]["StaffSession"]
    assert "X-CSRFToken" in session["description"]


def test_the_answer_that_is_shown_has_the_fields_that_there_are() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert set(json.loads(shown)) == set(ProjectDeleted.model_fields)
    assert ProjectDeleted.model_validate_json(shown)
