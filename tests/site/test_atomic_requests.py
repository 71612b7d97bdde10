"""A site with ATOMIC_REQUESTS: our pages ask the store all the same, and never in a transaction."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import URLPattern, get_resolver, path
from pytest_django import Settings

from autoshorts import urls
from storage_audit.bucket import multipart
from storage_audit.bucket.s3 import s3_client
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings.models import Finding
from storage_audit.models import Project
from storage_audit.projects.admin.projects import ProjectAdmin
from tests.api.permissions import ALL_REQUESTS, send_request
from tests.api_client import client_with_token
from tests.forms import TOKEN, get_and_post, make_client
from tests.real_bucket import Bucket
from tests.site.admin_actions import (
    OUR_ACTIONS,
    TYPED_FIELDS,
    choose_first,
    list_places,
    prepare_world,
)
from tests.site.pages import list_pages, list_patterns

FINDING = "storage_audit.finding"
LEFT_OUT = "_non_atomic_requests"
SIGNING_OUT = {"admin:logout", "admin:password_change"}


@pytest.fixture(autouse=True)
def atomic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([[]]))


@pytest.fixture
def calls(world: Bucket, settings: Settings) -> Iterator[list[bool]]:
    """Of each call to the store, whether it was made in a transaction."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 10}
    seen, events = list[bool](), s3_client().meta.events

    def note(**kwargs: object) -> None:
        seen.append(connection.in_atomic_block)

    events.register("before-send.s3", note)
    yield seen
    events.unregister("before-send.s3", note)


def act(staff: Client, url: str, data: dict[str, str]) -> HttpResponse | Any:
    """Ask for it, and confirm it where its page asks."""
    asked = {name: value for name, value in data.items() if name != "post"}
    answer = staff.post(url, asked, headers={"X-CSRFToken": TOKEN}, follow=True)
    fields = dict(re.findall('type="hidden" name="(.*?)" value="(.*?)"', answer.content.decode()))
    return staff.post(url, TYPED_FIELDS | fields, follow=True) if "post" in fields else answer


def test_no_address_action_or_page_asks_the_store_in_a_transaction(
    world: Bucket, calls: list[bool]
) -> None:
    staff, machine = make_client(User.objects.create_superuser("anna")), client_with_token()
    # Read before anything is deleted: what deletes projects comes last.
    asked = [
        (next(list_places(model)), choose_first(model, action))
        for model, action in reversed(OUR_ACTIONS)
    ]
    to_post = [each for each in list_pages() if each.name not in SIGNING_OUT]
    for line in sorted(ALL_REQUESTS, key=lambda line: line.startswith("DELETE")):
        assert send_request(machine, line) < 500, line
    for url, data in asked:
        assert act(staff, url, data).status_code < 500, data
    for each in to_post:
        for method, answer in get_and_post(staff, each.url).items():
            assert answer.status_code < 500, (method, each)
    assert len(calls) > 20 and not any(calls)


@pytest.mark.parametrize("action", ["track", "assign", "rename"])
def test_decision_that_asks_the_store_is_carried_out(
    world: Bucket, calls: list[bool], action: str
) -> None:
    prepare_world(world, action)
    url, data = next(list_places(FINDING)), choose_first(FINDING, action)
    act(make_client(User.objects.create_superuser("anna")), url, data)
    assert Finding.objects.order_by("pk")[0].state == "resolved"
    assert calls and not any(calls)


def test_every_page_of_ours_is_left_out_of_the_request_transaction() -> None:
    """Found by their addresses, so that a new page is too."""
    names = {name for name, _pattern in list_patterns() if name.startswith("admin:storage_audit_")}
    of_admin = get_resolver().url_patterns[1]
    views = {each.name: each.callback for each in every_pattern(of_admin) if each.name}
    of_ours = {name: views[name.removeprefix("admin:")] for name in names}
    assert len(of_ours) > 40
    for name, view in of_ours.items():
        assert "default" in getattr(view, LEFT_OUT, ()), name


def test_page_that_a_site_adds_keeps_the_request_transaction() -> None:
    def own(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    class OfTheSite(ProjectAdmin):
        def get_urls(self) -> list[URLPattern]:
            return [path("own/", own, name="own"), *super().get_urls()]

    pages_of_site = OfTheSite(Project, admin.site).urls
    outside = {each.name for each in pages_of_site if hasattr(each.callback, LEFT_OUT)}
    assert {each.name for each in pages_of_site} - outside == {"own"}


def every_pattern(found: Any) -> Iterator[Any]:
    for each in found.url_patterns:
        yield from every_pattern(each) if hasattr(each, "url_patterns") else (each,)


def delete_and(fail: bool, request: HttpRequest) -> HttpResponse:
    assert connection.in_atomic_block
    Project.objects.get(pk="proj_1").delete()
    if fail:
        raise ValueError("after the deletion")
    return HttpResponse()


urlpatterns = [
    path("delete/", lambda request: delete_and(False, request)),
    path("delete-and-fail/", lambda request: delete_and(True, request)),
    *urls.urlpatterns,
]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_deletion_in_a_view_of_the_site_starts_a_cleanup_with_its_commit(
    bucket: Bucket, settings: Settings, fails: bool, sync: bool
) -> None:
    settings.ROOT_URLCONF = __name__
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": sync}
    bucket.upload("proj_1")
    anybody = Client(raise_request_exception=False)
    anybody.get("/delete-and-fail/" if fails else "/delete/")
    assert Project.objects.exists() == fails
    status = Cleanup.objects.requested_deletions().values_list("status", flat=True)
    assert set(status) == (set() if fails else {"clean" if sync else "pending"})
    assert bool(bucket.keys()) == (fails or not sync)
