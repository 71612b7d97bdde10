"""Where the browser lands after a deletion, and what is said there."""

from typing import Any

import pytest
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.auth.models import Permission, User
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import Client

from storage_audit.cleanup import bulk, pause_deletions
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project
from storage_audit.projects.admin.projects import ProjectAdmin
from tests.admin_client import (
    admin_url,
    confirm_action,
    is_page_of,
    page_text,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.promises import create_projects
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("transactional_db")


def client_without_cleanups() -> Client:
    """Of a person who deletes projects, and may not view cleanups."""
    client = staff_client("delete_project")
    view = Permission.objects.get(codename="view_cleanup")
    User.objects.get(username="ben").user_permissions.remove(view)
    return client


def press_delete(client: Client, **data: str) -> Any:
    url = admin_url("project", "delete", "proj_1")
    return client.post(url, {"post": "yes", **data}, follow=True)


@pytest.mark.parametrize("way", ["button", "delete_selected", "force_delete"])
def test_deletion_of_one_project_leads_to_its_cleanup(way: str) -> None:
    Project.objects.create(pk="proj_1", title="<Autumn> sale")
    client = superuser_client()
    if way == "button":
        shown = page_text(press_delete(client))
    else:
        shown = confirm_action(client, "project", way, "proj_1")
    assert is_page_of(Cleanup.objects.get(), shown)
    assert "Deleting the files of “&lt;Autumn&gt; sale (proj_1)” now." in shown
    assert "uccessfully" not in shown


@pytest.mark.parametrize(
    ("way", "action"), [("delete_selected", "delete"), ("force_delete", "force")]
)
def test_deletion_of_several_projects_leads_to_one_page_with_their_progress(
    way: str, action: str
) -> None:
    create_projects("proj_0", "proj_1", "proj_2")
    Project.objects.get(pk="proj_0").delete()
    client = superuser_client()
    shown = confirm_action(client, "project", way, "proj_1", "proj_2")
    assert "Deleting the files of 2 projects now." in shown and "uccessfully" not in shown
    assert not Project.objects.exists(), "they are deleted at once, as without a bulk job"
    [job] = BulkJob.objects.all()
    assert (job.action, job.projects, job.position) == (action, 2, 2)
    assert job.finished_at and job.requested_by == "anna"
    assert {each.project_id for each in job.cleanups.all()} == {"proj_1", "proj_2"}
    assert f"<title>{str(job).capitalize()} |" in shown
    assert "2 of 2 cleanups are not finished yet." in shown
    Cleanup.objects.filter(project_id="proj_1").update(status="clean")
    assert "1 of 2 cleanups are not finished yet." in page_text(
        client.get(admin_url("bulkjob", "change", job.pk))
    )


def test_list_follows_the_deletion_of_several_projects_for_those_who_may_view_no_cleanup() -> None:
    create_projects("proj_1", "proj_2")
    client = client_without_cleanups()
    shown = confirm_action(client, "project", "delete_selected", "proj_1", "proj_2")
    assert "Deleting the files of 2 projects now." in shown
    assert "<title>Projects |" in shown


def test_person_who_may_not_view_cleanups_lands_on_the_list() -> None:
    create_projects("proj_1")
    client = client_without_cleanups()
    answer = press_delete(client)
    assert answer.redirect_chain == [(admin_url("project"), 302)]
    shown = page_text(answer)
    assert "Deleting the files of “proj_1” now." in shown and "uccessfully" not in shown


def test_own_page_of_a_site_after_a_deletion_links_to_the_cleanup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own_page(*args: Any) -> HttpResponse:
        return HttpResponseRedirect(admin_url("r2object"))

    monkeypatch.setattr(ProjectAdmin, "response_delete", own_page)
    create_projects("proj_1")
    answer = press_delete(superuser_client())
    assert answer.redirect_chain == [(admin_url("r2object"), 302)]
    link = f'<a href="{url_of_cleanup(Cleanup.objects.get())}">Follow it here</a>'
    assert link in page_text(answer)


def test_popup_is_answered_as_by_django() -> None:
    create_projects("proj_1")
    shown = page_text(press_delete(superuser_client(), **{IS_POPUP_VAR: "1"}))
    assert "popup_response.js" in shown and not Project.objects.exists()


def test_deletion_that_no_cleanup_follows_is_told_as_by_django(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def archive(pages: Any, request: HttpRequest, row: Project) -> None:
        Project.objects.filter(pk=row.pk).update(title="archived")

    monkeypatch.setattr(ProjectAdmin, "delete_model", archive)
    create_projects("proj_1")
    answer = press_delete(superuser_client())
    assert answer.redirect_chain == [(admin_url("project"), 302)]
    assert "was deleted successfully" in page_text(answer) and not Cleanup.objects.exists()


def test_filters_of_the_list_are_kept_where_the_list_follows() -> None:
    create_projects("proj_1")
    client = client_without_cleanups()
    url = admin_url("project", "delete", "proj_1") + "?_changelist_filters=q%3Dproj"
    answer = client.post(url, {"post": "yes"})
    assert answer["Location"] == admin_url("project") + "?q=proj"


def test_nothing_is_said_to_be_deleted_now_while_deletions_are_paused(bucket: Bucket) -> None:
    create_projects("proj_1")
    pause_deletions.pause_deletions("A check")
    shown = page_text(press_delete(superuser_client()))
    assert "Deletions are paused. The files are deleted once somebody resumes them." in shown
    assert "Deleting the files" not in shown


def test_deletions_that_cannot_be_grouped_lead_to_their_list(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(cleanups: Any) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(bulk, "group_deletions", fail)
    create_projects("proj_1", "proj_2")
    shown = confirm_action(superuser_client(), "project", "delete_selected", "proj_1", "proj_2")
    assert "Deleting the files of 2 projects now." in shown
    assert all(url_of_cleanup(each) in shown for each in Cleanup.objects.all())
    assert "could not be grouped" in caplog.text
