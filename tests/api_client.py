"""Programs that ask the API, with the permissions that a test names."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from django.contrib.auth.models import Permission, User
from django.test import Client

from storage_audit.api.models import ApiToken

API = "/api/v1"
PROBLEM = "application/problem+json"


class Program:
    """It sends a token with each request, or none."""

    def __init__(self, token: str = "") -> None:
        self.client = Client(raise_request_exception=False, enforce_csrf_checks=True)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str, body: str = "", **more: Any) -> Any:
        headers = self.headers | more
        return self.client.generic(method, API + path, body, "application/json", headers=headers)

    def get(self, path: str) -> Any:
        """What it is answered."""
        return told(self.ask("GET", path), 200)


def told(answer: Any, *expected: int) -> Any:
    assert answer.status_code in expected, (answer.status_code, answer.content)
    return answer.json()


def refused(answer: Any, status: int, kind: str) -> dict[str, Any]:
    """The problem, of which each part is as it must be."""
    assert answer.status_code == status, (answer.status_code, answer.content)
    assert answer["Content-Type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:storage-audit:{kind}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert unquote(problem["instance"]) == answer.wsgi_request.path
    return problem


def staff(*permissions: str) -> User:
    user = User.objects.create_user(f"ben{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    return user


def program(user: User | None = None, *, may_write: bool = True, **values: Any) -> Program:
    """Of a superuser, unless it is said whose."""
    whose = user or User.objects.create_superuser(f"anna{User.objects.count()}")
    return Program(ApiToken.issue(name="tests", user=whose, may_write=may_write, **values)[1])


def read_all_pages(come: Program, path: str, limit: int) -> Iterator[Any]:
    cursor = ""
    while True:
        page = come.get(f"{path}?limit={limit}{cursor}")
        assert 1 <= len(page["items"]) <= limit
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"
