"""Projects in the admin: what the list shows, and what deleting one says and starts."""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.test import Client
from django_q.models import OrmQ

from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from storage_audit.projects.admin.projects import ProjectAdmin
from tests.admin_client import (
    admin_url,
    confirm_action,
    count_queries,
    is_page_of,
    is_page_of_all_cleanups,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import track_files
from tests.real_bucket import Bucket

ACTIONS = {
    "dry_run_cleanup": "dry_run_cleanup",
    "verify_cleanup": "verify_cleanup",
    "force_delete": "force_cleanup",
    "delete_selected": "delete_project",
}


def test_login_leads_to_the_projects_with_objects_bytes_and_last_cleanup(db: None) -> None:
    User.objects.create_superuser("carla", password="not-a-secret")
    track_files("proj_1", 3)
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket="tests", trigger="dry_run", status="planned"
    )
    client = Client()
    login = {"username": "carla", "password": "not-a-secret", "next": admin_url("project")}
    shown = page_text(client.post("/admin/login/", login, follow=True))
    assert '<td class="field-tracked_objects">3</td>' in shown
    assert '<td class="field-tracked_bytes">2.9 KB</td>' in shown
    assert admin_url("cleanup", "change", cleanup.pk) in shown
    assert ">preview</span>" in shown


def test_each_row_has_a_link_to_delete_its_project(db: None) -> None:
    Project.objects.create(pk="proj_1", title="<b>")
    shown = page_text(superuser_client().get(admin_url("project")))
    url, label = admin_url("project", "delete", quote("proj_1")), "Delete &lt;b&gt; (proj_1)"
    assert f'<a href="{url}" aria-label="{label}">Delete</a>' in shown


def test_list_of_50_projects_costs_as_many_queries_as_of_one(db: None) -> None:
    client = superuser_client()
    track_files("proj_0", 2)
    one = count_queries(client, admin_url("project"))
    for n in range(1, 51):
        track_files(f"proj_{n}", 2)
        Cleanup.objects.request(
            kind="project", project_id=f"proj_{n}", bucket="tests", trigger="dry_run"
        )
    assert count_queries(client, admin_url("project")) == one


def test_confirmation_of_a_deletion_says_what_will_go(db: None) -> None:
    track_files("proj_1", 3, size=1_000_000)
    shown = page_text(superuser_client().get(admin_url("project", "delete", "proj_1")))
    assert "This also deletes the project&#x27;s files from R2: 3 files, 2.9 MB," in shown
    assert 'value="Delete project and 3 files"' in shown
    assert "<title>Delete “proj_1”? |" in shown and "Other records" not in shown


def test_confirmation_of_many_says_what_will_go(db: None) -> None:
    track_files("proj_1", 3)
    track_files("proj_2", 2)
    shown = run_action(superuser_client(), "project", "delete_selected", "proj_1", "proj_2")
    assert "This also deletes the projects&#x27; files from R2: 5 files, 4.9 KB," in shown
    assert 'value="Delete 2 projects and 5 files"' in shown
    assert Project.objects.count() == 2


@pytest.mark.slow
def test_confirmation_with_100000_objects_takes_no_more_queries(db: None) -> None:
    client, url = superuser_client(), admin_url("project", "delete", "proj_1")
    track_files("proj_1", 1)
    one = count_queries(client, url)
    R2Object.objects.all().delete_without_signals()
    track_files("proj_1", 100_000)
    assert count_queries(client, url) == one
    assert "100000 files" in page_text(client.get(url))


def test_deletion_leads_to_its_cleanup_which_empties_the_bucket(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    answer = superuser_client().post(
        admin_url("project", "delete", "proj_1"), {"post": "yes"}, follow=True
    )
    cleanup = Cleanup.objects.get()
    assert is_page_of(cleanup, page_text(answer))
    assert (cleanup.requested_by, cleanup.origin) == ("anna", "web, 127.0.0.1")
    assert OrmQ.objects.count() == 1
    assert runner.run_to_end(cleanup.pk).status == Cleanup.Status.CLEAN
    assert bucket.keys() == set()


def test_deletion_of_many_leads_to_the_progress_of_their_cleanups(transactional_db: None) -> None:
    client = superuser_client()
    track_files("proj_1", 1)
    track_files("proj_2", 1)
    shown = confirm_action(client, "project", "delete_selected", "proj_1", "proj_2")
    assert "Deleting the files of 2 projects now." in shown and "uccessfully" not in shown
    assert is_page_of_all_cleanups(shown) and Cleanup.objects.count() == 2


def test_getting_any_url_of_a_project_changes_nothing(db: None) -> None:
    track_files("proj_1", 1)
    client = superuser_client()
    data = {"action": "force_delete", "_selected_action": "proj_1", "post": "yes"}
    client.get(admin_url("project"), data)
    client.get(admin_url("project", "delete", "proj_1"), {"post": "yes"})
    assert Project.objects.count() == 1
    assert not Cleanup.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_needs_its_own_permission(db: None, action: str) -> None:
    track_files("proj_1", 1)
    others = set(ACTIONS.values()) - {ACTIONS[action]}
    shown = confirm_action(staff_client(*others), "project", action, "proj_1")
    assert "No action selected." in shown
    assert f'<option value="{action}">' not in shown
    assert Project.objects.exists()
    assert not Cleanup.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_permission_suffices_for_its_action(db: None, action: str) -> None:
    """Alone, but for that to force, which needs that to delete besides."""
    track_files("proj_1", 0)
    needed = {ACTIONS[action]} | ({"delete_project"} if action == "force_delete" else set())
    shown = confirm_action(staff_client(*needed), "project", action, "proj_1")
    cleanup = Cleanup.objects.get()
    assert cleanup.requested_by == "ben"
    assert is_page_of(cleanup, shown)


def test_force_delete_needs_the_permission_to_delete_the_project(db: None) -> None:
    track_files("proj_1", 1)
    client = staff_client("force_cleanup")
    confirm_action(client, "project", "force_delete", "proj_1")
    assert Project.objects.exists()
    shown = page_text(client.get(admin_url("project", "change", "proj_1")))
    assert "Ask an administrator to add you to the group “Storage operator”." in shown
    assert "Storage admin" not in shown, "that group is for who may not force"
    client = superuser_client()
    shown = page_text(client.get(admin_url("project", "change", "proj_1")))
    assert "You need permission." not in shown


@pytest.mark.parametrize("data", [{}, {"post": "yes"}])
def test_force_delete_keeps_a_project_that_its_admin_does_not_let_anybody_delete(
    db: None, monkeypatch: pytest.MonkeyPatch, data: dict[str, str]
) -> None:
    def is_allowed(self: object, request: object, obj: Project | None = None) -> bool:
        return obj is None or obj.pk != "proj_1"

    monkeypatch.setattr(ProjectAdmin, "has_delete_permission", is_allowed)
    track_files("proj_1", 1)
    track_files("proj_2", 1)
    client = superuser_client()
    shown = run_action(client, "project", "force_delete", "proj_1", "proj_2", **data)
    assert "Nothing was deleted. You need permission. Ask an administrator" in shown
    assert Project.objects.count() == 2
    run_action(client, "project", "force_delete", "proj_2", post="yes")
    assert Project.objects.get().pk == "proj_1"


def test_viewers_see_no_action(db: None) -> None:
    track_files("proj_1", 1)
    shown = page_text(staff_client().get(admin_url("project")))
    assert 'name="action"' not in shown and ">Delete</a>" not in shown


def test_dry_run_is_queued_logged_and_deletes_nothing(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    shown = run_action(superuser_client(), "project", "dry_run_cleanup", "proj_1")
    cleanup = Cleanup.objects.get()
    assert "A dry run is queued. It deletes nothing" in shown
    assert str(cleanup.pk) in LogEntry.objects.get().change_message
    assert OrmQ.objects.count() == 1
    assert runner.run_to_end(cleanup.pk).status == Cleanup.Status.PLANNED
    assert bucket.keys() == {key}


def test_verification_of_a_live_project_compares_bucket_and_table(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    shown = run_action(superuser_client(), "project", "verify_cleanup", "proj_1")
    assert "A verification is queued." in shown
    assert runner.run_to_end(Cleanup.objects.get().pk).message.startswith("1 as expected")


def test_force_delete_asks_first_and_says_what_it_does_not_lift(db: None) -> None:
    track_files("proj_1", 3)
    shown = run_action(superuser_client(), "project", "force_delete", "proj_1")
    assert "No safety limit stops this deletion." in shown
    files = f'<a href="{admin_url("r2object")}?project_id=proj_1">3</a>'
    head = '<span class="audit-process">%s</span> '
    cells = ("proj_1", head % "Files" + files, head % "Size" + "2.9 KB")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in shown
    assert Project.objects.exists()


def test_force_delete_makes_an_approved_cleanup(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    shown = confirm_action(superuser_client(), "project", "force_delete", "proj_1")
    cleanup = Cleanup.objects.get()
    assert (cleanup.trigger, cleanup.limits_waived_by) == ("forced", "anna")
    assert is_page_of(cleanup, shown)
    assert LogEntry.objects.get().is_deletion()
    assert OrmQ.objects.count() == 1
    assert not Project.objects.exists()


def test_all_projects_are_deleted_only_if_they_are_still_those_confirmed(db: None) -> None:
    for n in range(3):
        track_files(f"proj_{n}", 1)
    client = superuser_client()
    across = {"select_across": "1", "index": "0"}
    shown = run_action(client, "project", "delete_selected", "proj_0", **across)
    digest = shown.split('name="digest" value="')[1].split('"')[0]
    track_files("proj_new", 1)
    across = {"select_across": "1", "digest": digest}
    assert "Nothing was done" in confirm_action(
        client, "project", "delete_selected", "all", **across
    )
    assert Project.objects.count() == 4
    Project.objects.get(pk="proj_new").delete()
    confirm_action(client, "project", "delete_selected", "all", **across)
    assert not Project.objects.exists()


def test_bad_id_is_refused_with_a_hint_and_good_one_is_saved(db: None) -> None:
    client = superuser_client()
    shown = page_text(client.post(admin_url("project", "add"), {"id": "nonsense!", "title": ""}))
    assert "is not a project ID. IDs look like proj_a1" in shown
    assert '<input type="text" name="id"' in shown
    client.post(admin_url("project", "add"), {"id": "proj_new", "title": "New"})
    assert Project.objects.get().pk == "proj_new"


def test_id_cannot_be_changed_once_saved(db: None) -> None:
    track_files("proj_1", 0)
    client = superuser_client()
    assert 'name="id"' not in page_text(client.get(admin_url("project", "change", "proj_1")))
    client.post(admin_url("project", "change", "proj_1"), {"id": "proj_2", "title": "New"})
    assert list(Project.objects.values_list("pk", "title")) == [("proj_1", "New")]
