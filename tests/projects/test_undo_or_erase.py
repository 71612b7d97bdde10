"""Deleting a project where deletions are held: what the page says, Undo from the next page, and the
choice to erase at once."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project
from tests.admin_client import (
    admin_url,
    confirmation_fields,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.held import delete_held, grant_grace
from tests.promises import create_projects
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database


@pytest.fixture(autouse=True)
def _project(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    create_projects("proj_1")


def delete_on_page(client: Client, **data: str) -> str:
    url = admin_url("project", "delete", "proj_1")
    fields = confirmation_fields(page_text(client.get(url)))
    return page_text(client.post(url, {"post": "yes", **fields, **data}, follow=True))


@pytest.mark.parametrize(
    ("grace", "says"),
    [(timedelta(hours=72), "You can undo this for 3 days."), (timedelta(0), "can't undo this")],
)
def test_page_says_for_how_long_a_deletion_can_be_undone(
    settings: Settings, grace: timedelta, says: str
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": grace}
    says = says.replace("'", "&#x27;")
    client = superuser_client()
    assert says in page_text(client.get(admin_url("project", "delete", "proj_1")))
    for action in ("delete_selected", "force_delete"):
        assert says in run_action(client, "project", action, "proj_1")


def test_success_page_leads_to_undo(bucket: Bucket) -> None:
    Project.objects.update(title="Spring teaser")
    client = superuser_client()
    shown = delete_on_page(client)
    assert "Deleted. The files stay in the bucket until" in shown
    found = re.search(r'<a href="([^"]*/undo/)">Undo</a>', shown)
    assert found
    asked = page_text(client.get(found[1]))
    fields = {**confirmation_fields(asked), "reason": ""}
    cleanup = Cleanup.objects.get(parent=None)
    fields |= {"action": "undo_deletion", "_selected_action": str(cleanup.pk), "post": "yes"}
    client.post(admin_url("cleanup"), fields, follow=True)
    assert Project.objects.get(pk="proj_1").title == "Spring teaser"


def test_success_page_offers_no_undo_without_permission() -> None:
    shown = delete_on_page(staff_client("delete_project"))
    assert "Deleted. The files stay" in shown and ">Undo</a>" not in shown


def test_erase_now_on_the_deletions_page() -> None:
    delete_on_page(superuser_client(), erase="now", erase_reason=" the customer asked ")
    cleanup = Cleanup.objects.get(parent=None)
    assert (cleanup.held_until, cleanup.decided_by) == (None, "anna")
    assert cleanup.decision_reason == "the customer asked"
    assert KnownProject.objects.get(pk="proj_1").kept_for == ""


def test_erase_now_of_selected_projects() -> None:
    create_projects("proj_2")
    client = superuser_client()
    asked = run_action(client, "project", "delete_selected", "proj_1", "proj_2")
    fields = {**confirmation_fields(asked), "erase": "now", "erase_reason": "asked"}
    run_action(client, "project", "delete_selected", "proj_1", "proj_2", **fields)
    assert not Project.objects.exists()
    assert not Cleanup.objects.held().exists()


@pytest.mark.parametrize("reason", ["", "  "])
def test_erase_now_needs_a_reason(reason: str) -> None:
    shown = delete_on_page(superuser_client(), erase="now", erase_reason=reason)
    assert "Nothing was deleted. Enter a reason" in shown
    assert Project.objects.exists()


def test_erase_now_needs_its_permission() -> None:
    client = staff_client("delete_project")
    shown = page_text(client.get(admin_url("project", "delete", "proj_1")))
    assert 'name="erase"' not in shown
    shown = delete_on_page(client, erase="now", erase_reason="because")
    assert "Nothing was deleted." in shown and "Storage admin" in shown
    assert Project.objects.exists()


def test_id_of_a_held_project_is_an_error_of_the_form() -> None:
    delete_held()
    url = admin_url("project", "add")
    answer = superuser_client().post(url, {"id": "proj_1", "title": "again"})
    assert answer.status_code == 200
    assert "can still be restored" in page_text(answer)
    assert not Project.objects.exists()
