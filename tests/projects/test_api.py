"""A project is deleted over HTTP, once, and followed to the proof."""

import threading
from importlib import import_module
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models import PROTECT, ProtectedError, QuerySet
from django.http import HttpRequest
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import project_model, roles
from storage_audit.cleanup import requests, vanished_projects
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project
from storage_audit.ui.model_admin import ModelAdmin
from tests.api_client import (
    API_PATH,
    ApiClient,
    assert_problem,
    client_with_token,
    create_staff,
    read_json,
)
from tests.promises import request_cleanup, run_until_idle, track_key
from tests.real_bucket import Bucket

DELETE = "/projects/proj_1"
UNKNOWN = ["proj_9", "007", "%00", "a%FFb", "%F0%9F%90%99", "x" * 3000]


def follow(client: ApiClient, answer: dict[str, Any]) -> Any:
    return client.get(answer["status_url"].removeprefix(API_PATH))


def test_a_deleted_project_is_followed_to_clean(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    kept = bucket.upload("proj_10")
    bucket.put("proj_1_s1_media.mp4")
    come = client_with_token()
    answer = come.request("DELETE", DELETE)
    deleted = read_json(answer, 202)
    assert answer["Location"] == deleted["status_url"]
    assert not Project.objects.filter(pk="proj_1").exists()
    assert deleted["project_id"] == "proj_1" and "proj_1 deleted" in deleted["message"]
    pending = follow(come, deleted)
    assert (pending["status"], pending["over"]) == ("pending", False)
    assert OrmQ.objects.count() == 1
    run_until_idle(Cleanup.objects.get(pk=deleted["deletion_id"]))
    clean = follow(come, deleted)
    assert (clean["status"], clean["over"]) == ("clean", True)
    assert clean["totals"]["final"] and clean["totals"]["deleted"] == {"objects": 2, "bytes": 11}
    assert clean["meaning"][0].startswith("Clean. ")
    assert bucket.keys() == {kept}
    assert LogEntry.objects.get().object_id == "proj_1"


def test_a_repeat_gives_the_same_deletion(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    come = client_with_token()
    first = read_json(come.request("DELETE", DELETE), 202)
    assert read_json(come.request("DELETE", DELETE), 202) == first
    run_until_idle(Cleanup.objects.get())
    requests.request_verification("proj_1")
    requests.declare_deleted("proj_1")
    requests.request_preview("proj_1")
    assert read_json(come.request("DELETE", DELETE), 202) == first


def test_a_project_that_lives_again_is_another_deletion(bucket: Bucket) -> None:
    come = client_with_token()
    ids = set()
    for _time in range(2):
        bucket.upload("proj_1")
        ids.add(read_json(come.request("DELETE", DELETE), 202)["deletion_id"])
        run_until_idle(Cleanup.objects.latest("created_at"))
    assert len(ids) == 2


def test_of_those_who_delete_at_once_one_does(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    come, answers = [client_with_token() for _number in range(4)], []

    def ask(who: ApiClient) -> None:
        answers.append(who.request("DELETE", DELETE))
        connection.close()

    threads = [threading.Thread(target=ask, args=[who]) for who in come]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({read_json(answer, 202)["deletion_id"] for answer in answers}) == 1
    assert Cleanup.objects.count() == 1


@pytest.mark.django_db
def test_a_deletion_in_several_buckets_tells_of_each(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    track_key(Bucket(bucket.r2, "elsewhere"), "projects/proj_1/a", "proj_1")
    come = client_with_token()
    answer = read_json(come.request("DELETE", DELETE), 202)
    assert [each["bucket"] for each in answer["deletions"]] == ["tests", "elsewhere"]
    assert answer["deletion_id"] == answer["deletions"][0]["deletion_id"]
    assert read_json(come.request("DELETE", DELETE), 202) == answer


@pytest.mark.django_db
@pytest.mark.parametrize("project_id", UNKNOWN)
def test_what_never_was_is_not_found(project_id: str) -> None:
    assert_problem(
        client_with_token().request("DELETE", f"/projects/{project_id}"), 404, "not-found"
    )
    assert not Cleanup.objects.exists()


def test_what_is_gone_and_nobody_said_deleted_is_not_found(bucket: Bucket) -> None:
    """Its files are kept until somebody does."""
    KnownProject.objects.create(pk="proj_1", evidence="saved")
    Project.objects.create(pk="proj_2")
    come = client_with_token()
    assert_problem(come.request("DELETE", DELETE), 404, "not-found")
    vanished_projects.check_vanished_projects()
    cleanup = Cleanup.objects.get()
    assert (cleanup.status, cleanup.trigger) == ("blocked", "vanished")
    assert_problem(come.request("DELETE", DELETE), 404, "not-found")
    requests.approve_or_retry(cleanup)
    assert read_json(come.request("DELETE", DELETE), 202)["deletion_id"] == str(cleanup.pk)


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["?dry_run=true", "?"])
def test_there_is_no_dry_run_of_it(query: str) -> None:
    Project.objects.create(pk="proj_1")
    body = "" if query != "?" else '{"dry_run": true}'
    problem = assert_problem(
        client_with_token().request("DELETE", DELETE + query, body=body), 400, "bad-request"
    )
    assert problem["detail"].startswith("Only these query parameters are allowed: ")
    assert problem["detail"].endswith("Nothing was done.")
    assert Project.objects.exists() and not Cleanup.objects.exists()


def test_its_cleanup_can_be_planned_while_it_lives(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    read_json(
        client_with_token().request("POST", "/debug/cleanup/proj_1?mode=s3&dry_run=true"), 202
    )
    assert run_until_idle(Cleanup.objects.get()).status == "planned"
    assert Project.objects.exists() and bucket.keys() == {key}


@pytest.mark.django_db
def test_a_limit_still_blocks_it(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0, "LIMIT_SHARE": 0.01}
    bucket.upload("proj_1")
    come = client_with_token()
    deleted = read_json(come.request("DELETE", DELETE), 202)
    assert run_until_idle(Cleanup.objects.get()).status == "blocked"
    blocked = follow(come, deleted)
    assert blocked["over"] and "The safety limit is" in blocked["message"]
    assert bucket.keys()


# A model of others


@pytest.fixture
def group(db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Group:
    """A project whose id is a number, with a person in it."""
    # It is made of the site of now, before a test has another one.
    import_module(settings.ROOT_URLCONF)
    # Those of other tests.
    monkeypatch.setattr(roles, "all_sites", set())
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    found = Group.objects.create(name="g")
    User.objects.create_user("zoe").groups.add(found)
    return found


def test_rows_of_others_that_would_go_along_are_asked_for(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = admin.AdminSite()
    site.register(User.groups.through)
    monkeypatch.setattr(admin, "site", site)
    come = client_with_token(create_staff("delete_group"))
    problem = assert_problem(come.request("DELETE", f"/projects/{group.pk}"), 403, "forbidden")
    assert "may not delete" in problem["detail"]
    assert Group.objects.filter(pk=group.pk).exists()


def test_a_row_that_the_admin_keeps_from_this_person_stays(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = admin.ModelAdmin, "has_delete_permission"
    monkeypatch.setattr(*keeps, lambda self, request, obj=None: obj is None)
    site = admin.AdminSite()
    site.register(Group)
    monkeypatch.setattr(admin, "site", site)
    assert_problem(client_with_token().request("DELETE", f"/projects/{group.pk}"), 403, "forbidden")
    assert Group.objects.filter(pk=group.pk).exists()


class GroupsOfOthers(ModelAdmin[Group]):
    def get_queryset(self, request: HttpRequest) -> QuerySet[Group]:
        return super().get_queryset(request).exclude(name="g")


def test_row_that_the_admin_hides_from_this_person_is_not_found(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = admin.AdminSite()
    site.register(Group, GroupsOfOthers)
    monkeypatch.setattr(admin, "site", site)
    assert_problem(client_with_token().request("DELETE", f"/projects/{group.pk}"), 404, "not-found")
    assert Group.objects.filter(pk=group.pk).exists()


class Frozen(ModelAdmin[Group]):
    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return False


@pytest.mark.parametrize(
    "page, status, kind", [(Frozen, 403, "forbidden"), (GroupsOfOthers, 404, "not-found")]
)
def test_row_that_only_another_admin_site_shows_is_asked_for_there(
    group: Group, monkeypatch: pytest.MonkeyPatch, page: Any, status: int, kind: str
) -> None:
    monkeypatch.setattr(admin, "site", admin.AdminSite())
    another = admin.AdminSite(name="another")
    another.register(Group, page)
    monkeypatch.setattr(roles, "all_sites", {another})
    assert_problem(client_with_token().request("DELETE", f"/projects/{group.pk}"), status, kind)
    assert Group.objects.filter(pk=group.pk).exists()


class Archiving(ModelAdmin[Group]):
    def delete_model(self, request: HttpRequest, obj: Group) -> None: ...


def test_row_that_the_admin_deletes_in_its_own_way_stays(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = admin.AdminSite()
    site.register(Group, Archiving)
    monkeypatch.setattr(admin, "site", site)
    problem = assert_problem(
        client_with_token().request("DELETE", f"/projects/{group.pk}"), 409, "refused"
    )
    assert "has its own way to delete this project" in problem["detail"]
    assert Group.objects.filter(pk=group.pk).exists()


def test_what_needs_a_row_is_named(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = User.groups.through._meta.get_field("group").remote_field
    monkeypatch.setattr(needs, "on_delete", PROTECT)
    problem = assert_problem(
        client_with_token().request("DELETE", f"/projects/{group.pk}"), 409, "in-use"
    )
    assert problem["detail"].startswith(
        "Other rows need the project. Delete them first: User-group"
    )
    assert Group.objects.filter(pk=group.pk).exists()


def test_refusal_shows_no_secret_of_a_row_that_needs_the_project(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = User.groups.through
    monkeypatch.setattr(through._meta.get_field("group").remote_field, "on_delete", PROTECT)
    monkeypatch.setattr(through, "__str__", lambda _row: "https://zoe:hunter2@invoices.example")
    problem = assert_problem(
        client_with_token().request("DELETE", f"/projects/{group.pk}"), 409, "in-use"
    )
    assert "https://[redacted]@invoices.example" in problem["detail"]
    assert "hunter2" not in problem["detail"]


def test_a_row_that_something_needs_stays(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Group) -> None:
        raise ProtectedError("an invoice needs it", {group})

    monkeypatch.setattr(Group, "delete", refuse)
    problem = assert_problem(
        client_with_token().request("DELETE", f"/projects/{group.pk}"), 409, "in-use"
    )
    assert problem["detail"] == "an invoice needs it"
    assert Group.objects.filter(pk=group.pk).exists() and not LogEntry.objects.exists()


def test_a_model_that_keeps_its_rows_is_told_of(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "delete", lambda self: None)
    assert_problem(
        client_with_token().request("DELETE", f"/projects/{group.pk}"), 409, "project-exists"
    )
    assert not LogEntry.objects.exists()


def test_an_id_is_found_by_its_own_spelling_only(group: Group) -> None:
    assert project_model.lock_project(str(group.pk)) == group
    assert project_model.lock_project(f"0{group.pk}") is None


def test_the_forced_deletion_of_before_is_found_too(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    assert read_json(client_with_token().request("DELETE", DELETE), 202)["deletion_id"] == str(
        cleanup.pk
    )
