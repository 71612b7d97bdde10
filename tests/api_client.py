"""Programs that ask the API, with the permissions that a test names."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from django.contrib.auth.models import Permission, User
from django.test import Client

from storage_audit.api.models import ApiToken

API_PATH = "/api/v1"
PROBLEM_TYPE = "application/problem+json"


class ApiClient:
    """It sends a token with each request, or none."""

    def __init__(self, token: str = "") -> None:
        self.client = Client(raise_request_exception=False, enforce_csrf_checks=True)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def request(self, method: str, path: str, body: str = "", **more: Any) -> Any:
        headers = self.headers | more
        return self.client.generic(
            method, API_PATH + path, body, "application/json", headers=headers
        )

    def get(self, path: str) -> Any:
        """What it is answered."""
        return read_json(self.request("GET", path), 200)


def read_json(answer: Any, *expected: int) -> Any:
    assert answer.status_code in expected, (answer.status_code, answer.content)
    return answer.json()


def assert_problem(answer: Any, status: int, kind: str) -> dict[str, Any]:
    """The problem, of which each part is as it must be."""
    assert answer.status_code == status, (answer.status_code, answer.content)
    assert answer["Content-Type"] == PROBLEM_TYPE
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:storage-audit:{kind}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert unquote(problem["instance"]) == answer.wsgi_request.path
    return problem


def create_staff(*permissions: str) -> User:
    user = User.objects.create_user(f"ben{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    return user


def client_with_token(
    user: User | None = None, *, may_write: bool = True, **values: Any
) -> ApiClient:
    """Of a superuser, unless it is said whose."""
    whose = user or User.objects.create_superuser(f"anna{User.objects.count()}")
    return ApiClient(ApiToken.issue(name="tests", user=whose, may_write=may_write, **values)[1])


def read_all_pages(client: ApiClient, path: str, limit: int) -> Iterator[Any]:
    cursor = ""
    while True:
        page = client.get(f"{path}?limit={limit}{cursor}")
        assert 1 <= len(page["items"]) <= limit
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"
