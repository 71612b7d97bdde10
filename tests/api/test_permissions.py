"""Which permission opens which address of the API; each is found in the code, so that a new one
fails here until somebody decides on it."""

import pytest

from storage_audit.urls import api
from tests.api.permissions import ALL_REQUESTS, PERMISSIONS, send_request
from tests.api_client import API_PATH, PROBLEM_TYPE, ApiClient, client_with_token, create_staff
from tests.database import dump_everything
from tests.real_bucket import Bucket
from tests.site.pages import API_NAME, list_patterns

ANYBODY = ""
OTHERS = {"openapi-json", "api-root"}


def test_somebody_decided_on_each_address() -> None:
    paths = api.get_openapi_schema(path_prefix="")["paths"]
    assert {f"{m.upper()} {path}" for path, ms in paths.items() for m in ms} == set(PERMISSIONS)
    names = {name for name, _pattern in list_patterns() if name.startswith(API_NAME)}
    assert len(names) == len(PERMISSIONS) + len(OTHERS) + 1
    assert {f"{API_NAME}:{name}" for name in OTHERS} <= names


def test_nobody_comes_in_without_a_key(world: Bucket) -> None:
    before = dump_everything(world)
    assert {line: send_request(ApiClient(), line) for line in ALL_REQUESTS} == dict.fromkeys(
        ALL_REQUESTS, 401
    )
    assert dump_everything(world) == before


@pytest.mark.parametrize(
    "held",
    sorted(
        {*ALL_REQUESTS.values(), *(one for each in ALL_REQUESTS.values() for one in each.split())}
    ),
)
def test_each_permission_opens_its_addresses_and_no_other(world: Bucket, held: str) -> None:
    who, permissions = client_with_token(create_staff(*held.split())), set(held.split())
    send_request(who, "GET /deletions")
    before = dump_everything(world)
    opened = [line for line, needed in ALL_REQUESTS.items() if permissions >= set(needed.split())]
    for line in ALL_REQUESTS.keys() - opened:
        assert send_request(who, line) == 403, line
    assert dump_everything(world) == before
    for line in opened:
        # 409, as the project lives, and the scan is complete.
        assert send_request(who, line) in (200, 202, 409), line


def test_a_read_only_token_of_a_superuser_changes_nothing(world: Bucket) -> None:
    who = client_with_token(may_write=False)
    send_request(who, "GET /deletions")
    before = dump_everything(world)
    for line in ALL_REQUESTS:
        assert send_request(who, line) == (200 if line.startswith("GET") else 403), line
    assert dump_everything(world) == before


def test_no_other_address_answers(world: Bucket) -> None:
    for path in ("", "/", "/nothing", "/deletions/", "/../v2"):
        answer = client_with_token().request("GET", path)
        assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM_TYPE), API_PATH + path
