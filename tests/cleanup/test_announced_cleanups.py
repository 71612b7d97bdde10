"""Whoever deletes learns of the cleanups that this very call made, and of no others."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.db import models, transaction
from django.db.models.signals import post_delete
from django.test import Client

from storage_audit.cleanup import delete_projects
from storage_audit.cleanup.admin import deleting
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import (
    admin_url,
    confirm_action,
    confirmation_fields,
    is_page_of,
    page_text,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import track_keys
from tests.database import THREAD_TIMEOUT_SECONDS, Rollback, with_own_connection
from tests.promises import create_projects

pytestmark = pytest.mark.usefixtures("transactional_db")


def delete_in_admin(client: Client, model: str, pk: object, way: str) -> str:
    if way == "delete_selected":
        return confirm_action(client, model, way, pk)
    url = admin_url(model, "delete", pk)
    asked = confirmation_fields(page_text(client.get(url)))
    return page_text(client.post(url, asked, follow=True))


@pytest.fixture
def overlapping_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two requests, neither deletes before both have begun, or answers before both have
    committed."""
    both, stock = Barrier(2, timeout=THREAD_TIMEOUT_SECONDS), delete_projects.tolerate_hook_errors

    @contextmanager
    def in_step(failures: list[Exception]) -> Iterator[None]:
        both.wait()
        with stock(failures):
            yield
        both.wait()

    for module in (deleting, delete_projects):
        monkeypatch.setattr(module, "tolerate_hook_errors", in_step)


@pytest.mark.parametrize("way", ["button", "delete_selected"])
@pytest.mark.parametrize("model", ["project", "r2object"])
def test_two_tabs_of_one_person_each_announce_their_own_cleanup(
    overlapping_deletions: None, model: str, way: str
) -> None:
    pks: list[object] = ["proj_1", "proj_2"]
    if model == "project":
        create_projects("proj_1", "proj_2")
    else:
        pks = [row.pk for n in (1, 2) for row in track_keys(f"key_{n}", project=f"proj_{n}")]
    work = [partial(delete_in_admin, superuser_client(), model, pk, way) for pk in pks]
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(with_own_connection(each)) for each in work]
        shown = [future.result(THREAD_TIMEOUT_SECONDS) for future in futures]
    made = [Cleanup.objects.get(project_id=f"proj_{n}") for n in (1, 2)]
    assert [[is_page_of(each, page) for each in made] for page in shown] == [
        [True, False],
        [False, True],
    ]


def test_rolled_back_deletions_hand_over_nothing() -> None:
    create_projects("proj_1", "proj_2")
    first, second = track_keys("a", "b", project=None)
    with delete_projects.collect_cleanups() as collected, transaction.atomic():
        with suppress(Rollback), transaction.atomic():
            Project.objects.get(pk="proj_1").delete()
            first.delete()
            raise Rollback
        assert collected.remaining() == []
        Project.objects.get(pk="proj_2").delete()
        second.delete()
    made = Cleanup.objects.order_by("created_at")
    assert collected.remaining() == list(made)
    assert [each.kind for each in made] == [Cleanup.Kind.PROJECT, Cleanup.Kind.OBJECTS]


def test_cleanup_that_later_rows_of_a_transaction_join_is_handed_over_once() -> None:
    first, second, third = track_keys("a", "b", "c")
    with transaction.atomic():
        first.delete()
        with delete_projects.collect_cleanups() as collected:
            second.delete()
            third.delete()
    assert collected.remaining() == [Cleanup.objects.get()]


@pytest.mark.parametrize("way", ["button", "delete_selected"])
def test_what_steps_of_the_site_delete_is_announced_too(way: str) -> None:
    create_projects("proj_1", "proj_2")
    [row] = track_keys("a", bucket="other", project=None)

    def delete_others(instance: Project, **kwargs: Any) -> None:
        if instance.pk == "proj_1":
            row.delete()
            transaction.on_commit(Project.objects.get(pk="proj_2").delete)

    post_delete.connect(delete_others, Project)
    try:
        shown = delete_in_admin(superuser_client(), "project", "proj_1", way)
    finally:
        post_delete.disconnect(delete_others, Project)
    assert Cleanup.objects.count() == 3
    assert all(url_of_cleanup(each) in shown for each in Cleanup.objects.all())


def test_deleted_project_returns_no_cleanup_of_its_single_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock: Any = models.Model.delete
    [row] = track_keys("a", project="proj_1")
    monkeypatch.setattr(Project, "delete", lambda project: [stock(project), row.delete()])
    create_projects("proj_1")
    made = delete_projects.delete_project(Project.objects.get())
    assert made == list(Cleanup.objects.of_projects().order_by("created_at"))


def test_project_that_is_deleted_twice_in_a_call_returns_its_last_cleanup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock: Any = models.Model.delete

    def delete_twice(project: Project) -> Any:
        stock(project)
        create_projects("proj_1")
        return stock(Project.objects.get())

    monkeypatch.setattr(Project, "delete", delete_twice)
    create_projects("proj_1")
    last = delete_projects.delete_project(Project.objects.get())
    assert last == [Cleanup.objects.latest("created_at")] and Cleanup.objects.count() == 2
