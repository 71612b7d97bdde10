"""What changes between a page that asks and its answer is never acted upon unconfirmed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.http import HttpRequest
from django.utils import timezone
from pytest_django import Settings

from storage_audit import display_formats
from storage_audit.cleanup import bulk
from storage_audit.cleanup.models import BulkJob, Cleanup, CleanupItem
from storage_audit.fields import filter_by_pks
from storage_audit.findings.admin import action_pages
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.projects.admin.projects import OwnerAdmin
from storage_audit.ui.confirm import ConfirmingAdmin
from tests.admin_client import (
    admin_url,
    confirmation_fields,
    page_text,
    run_action,
    superuser_client,
)
from tests.builders import create_findings, create_orphans, read_states
from tests.keys import KEY, OTHER_KEY
from tests.owner_models import create_table
from tests.real_bucket import Bucket

ACROSS = {"select_across": "1", "index": "0"}
CHANGED = (
    "Nothing was done: your selection changed while this page was open. Check it and confirm again."
)


@pytest.fixture
def once_checked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Something happens just after a request has compared the selection with the page."""

    def arrange(happen: Callable[[], object]) -> None:
        check = ConfirmingAdmin.is_confirmed

        def check_and_happen(self: Any, request: HttpRequest, *args: Any) -> bool:
            confirmed = check(self, request, *args)
            happen()
            return confirmed

        monkeypatch.setattr(ConfirmingAdmin, "is_confirmed", check_and_happen)

    return arrange


@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("action", ["delete_selected", "force_delete"])
def test_project_that_arrives_after_the_check_is_kept(
    db: None, monkeypatch: pytest.MonkeyPatch, once_checked: Any, action: str, most: int
) -> None:
    monkeypatch.setattr(bulk, "PROJECTS_PER_TRANSACTION", most)
    for number in range(2):
        Project.objects.create(pk=f"proj_{number}")
    client = superuser_client()
    asked = run_action(client, "project", action, "all", **ACROSS)
    once_checked(lambda: Project.objects.get_or_create(pk="proj_new"))
    run_action(client, "project", action, "all", **ACROSS, **confirmation_fields(asked))
    assert [job.project_ids for job in BulkJob.objects.all()] in ([], [["proj_0", "proj_1"]])
    assert Project.objects.filter(pk="proj_new").exists()
    assert BulkJob.objects.exists() or Project.objects.count() == 1


def test_rows_of_a_child_model_are_limited_to_those_confirmed(transactional_db: None) -> None:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    with create_table(Film):
        for number in range(3):
            Film.objects.create(pk=f"proj_{number}", id=f"proj_{number}")
        filter_by_pks(Film.objects.all(), ["proj_0", "proj_1"]).delete()
        assert Project.objects.get().pk == "proj_2"


@pytest.mark.parametrize("action", ["ignore", "delete_objects"])
def test_finding_that_arrives_after_the_check_is_left(
    bucket: Bucket, settings: Settings, once_checked: Any, action: str
) -> None:
    young = {"ORPHAN_AGE": timedelta(microseconds=1)}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | young
    create_orphans(bucket, KEY)
    client = superuser_client()
    asked = run_action(client, "finding", action, "all", **ACROSS)
    once_checked(lambda: create_orphans(bucket, OTHER_KEY))
    run_action(
        client, "finding", action, "all", **ACROSS, **confirmation_fields(asked), note="ours"
    )
    assert read_states()[OTHER_KEY] == "open"
    assert set(CleanupItem.objects.values_list("key", flat=True)) <= {KEY}
    assert read_states()[KEY] == "ignored" or Cleanup.objects.exists()


def test_file_that_arrives_after_the_check_stays_tracked(bucket: Bucket, once_checked: Any) -> None:
    bucket.upload("proj_1", "a.mp4")
    client = superuser_client()
    asked = run_action(client, "r2object", "untrack", "all", **ACROSS)
    once_checked(lambda: bucket.upload("proj_1", "b.mp4"))
    run_action(client, "r2object", "untrack", "all", **ACROSS, **confirmation_fields(asked))
    assert R2Object.objects.get().key.endswith("b.mp4")


def test_page_does_not_confirm_what_changes_while_it_is_made(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_orphans(bucket, KEY)
    client, more = superuser_client(), display_formats.more_lines

    def change(count: int) -> Any:
        Finding.objects.update(size=4_000_000, etag="another")
        return more(count)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(action_pages, "more_lines", change)
        asked = run_action(client, "finding", "ignore", "all", **ACROSS)
    assert "3.8 MB" not in asked
    again = run_action(
        client, "finding", "ignore", "all", **ACROSS, **confirmation_fields(asked), note="ours"
    )
    assert CHANGED in again and "3.8 MB" in again
    assert read_states() == {KEY: "open"}


@pytest.mark.parametrize("across", ["1", "on"])
def test_rows_that_no_page_showed_are_not_taken_for_confirmed(db: None, across: str) -> None:
    """Django takes "on" for a yes, too."""
    for number in range(2):
        Project.objects.create(pk=f"proj_{number}")
    answer = {"select_across": across, "post": "yes"}
    assert CHANGED in run_action(
        superuser_client(), "project", "delete_selected", "proj_0", **answer
    )
    assert Project.objects.count() == 2


def recreate() -> None:
    KnownProject.objects.update(last_created_at=timezone.now())


def test_page_of_one_project_does_not_confirm_what_changes_while_it_is_made(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.objects.create(pk="proj_1")
    client, url = superuser_client(), admin_url("project", "delete", "proj_1")
    read = OwnerAdmin.get_deleted_objects

    def read_and_recreate(self: Any, *args: Any) -> Any:
        found = read(self, *args)
        recreate()
        return found

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(OwnerAdmin, "get_deleted_objects", read_and_recreate)
        asked = page_text(client.get(url))
    assert CHANGED in page_text(client.post(url, confirmation_fields(asked), follow=True))
    assert Project.objects.exists()


def test_popup_asks_again_when_the_id_is_of_another_project_by_now(db: None) -> None:
    Project.objects.create(pk="proj_1")
    client = superuser_client()
    url = admin_url("project", "delete", "proj_1") + "?_to_field=id&_popup=1"
    popup = {"_to_field": "id", "_popup": "1"}
    asked = page_text(client.get(url))
    recreate()
    again = page_text(client.post(url, confirmation_fields(asked) | popup, follow=True))
    assert CHANGED in again and 'name="_to_field" value="id"' in again
    assert Project.objects.exists()
    client.post(url, confirmation_fields(again) | popup)
    assert not Project.objects.exists()


def test_popup_for_a_field_that_nothing_refers_to_is_refused(db: None) -> None:
    Project.objects.create(pk="proj_1", title="a")
    url = admin_url("project", "delete", "a") + "?_to_field=title&_popup=1"
    assert superuser_client().post(url, {"post": "yes"}).status_code == 400
    assert Project.objects.exists()


@pytest.mark.parametrize(
    ("model", "action"),
    [
        ("project", "delete_selected"),
        ("project", "force_delete"),
        ("r2object", "delete_selected"),
        ("r2object", "untrack"),
        ("finding", "ignore"),
        ("finding", "delete_objects"),
        ("cleanup", "force_delete"),
        ("apitoken", "revoke"),
    ],
)
@pytest.mark.parametrize("answer", [{}, {"post": "yes", "digest": "old", "figures": "old"}])
def test_selection_of_which_no_row_is_left_leads_back_to_the_list(
    db: None, model: str, action: str, answer: dict[str, str]
) -> None:
    pk = uuid4() if model == "cleanup" else "0"
    shown = run_action(superuser_client(), model, action, pk, **answer)
    assert "The selected entries no longer exist." in shown
    assert 'name="post"' not in shown and "Nothing was done" not in shown


def test_action_that_does_not_ask_does_not_say_that_nothing_was_done(bucket: Bucket) -> None:
    [one] = create_findings(bucket, KEY, kind="orphaned", state="ignored")
    shown = run_action(superuser_client(), "finding", "reopen", one.pk, post="yes", digest="old")
    assert "Reopened 1 finding." in shown and "Nothing was done" not in shown


def test_request_that_does_not_confirm_is_shown_the_page(db: None) -> None:
    Project.objects.create(pk="proj_1")
    shown = page_text(superuser_client().post(admin_url("project", "delete", "proj_1"), {"x": "1"}))
    assert 'name="post" value="yes"' in shown
    assert Project.objects.exists()
