"""Which permission opens which address of the API; each is found in the code, so that a new one
fails here until somebody decides on it."""

import pytest

from storage_audit.urls import api
from tests.api.permissions import ASKED, DECIDED, send_request
from tests.api_client import API, PROBLEM, Program, program, staff
from tests.database import dump_everything
from tests.real_bucket import Bucket
from tests.site.pages import DECIDED_ELSEWHERE, list_patterns

ANYBODY = ""
OTHERS = {"openapi-json", "api-root"}


def test_somebody_decided_on_each_address() -> None:
    paths = api.get_openapi_schema(path_prefix="")["paths"]
    assert {f"{m.upper()} {path}" for path, ms in paths.items() for m in ms} == set(DECIDED)
    names = {name for name, _pattern in list_patterns() if name.startswith(DECIDED_ELSEWHERE)}
    assert len(names) == len(DECIDED) + len(OTHERS) + 1
    assert {f"{DECIDED_ELSEWHERE}:{name}" for name in OTHERS} <= names


def test_nobody_comes_in_without_a_key(world: Bucket) -> None:
    before = dump_everything(world)
    assert {line: send_request(Program(), line) for line in ASKED} == dict.fromkeys(ASKED, 401)
    assert dump_everything(world) == before


@pytest.mark.parametrize(
    "held", sorted({*ASKED.values(), *(one for each in ASKED.values() for one in each.split())})
)
def test_each_permission_opens_its_addresses_and_no_other(world: Bucket, held: str) -> None:
    who, permissions = program(staff(*held.split())), set(held.split())
    send_request(who, "GET /deletions")
    before = dump_everything(world)
    opened = [line for line, needed in ASKED.items() if permissions >= set(needed.split())]
    for line in ASKED.keys() - opened:
        assert send_request(who, line) == 403, line
    assert dump_everything(world) == before
    for line in opened:
        # 409, as the project lives, and the scan is complete.
        assert send_request(who, line) in (200, 202, 409), line


def test_a_read_only_token_of_a_superuser_changes_nothing(world: Bucket) -> None:
    who = program(may_write=False)
    send_request(who, "GET /deletions")
    before = dump_everything(world)
    for line in ASKED:
        assert send_request(who, line) == (200 if line.startswith("GET") else 403), line
    assert dump_everything(world) == before


def test_no_other_address_answers(world: Bucket) -> None:
    for path in ("", "/", "/nothing", "/deletions/", "/../v2"):
        answer = program().ask("GET", path)
        assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM), API + path
