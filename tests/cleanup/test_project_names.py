"""People find a deleted project by its title, for as long as the deletion can be undone."""

import pytest
from django.contrib.auth.admin import GroupAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django.fixtures import Settings

from storage_audit.cleanup import end_deletions
from storage_audit.cleanup.admin.project_names import find_by_name
from storage_audit.cleanup.models import Cleanup, SnapshotName
from storage_audit.models import KnownProject, Project
from storage_audit.ui.links import lookup_url
from tests.admin_client import (
    admin_url,
    client_for,
    page_text,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import create_cleanup
from tests.held import grant_grace
from tests.real_bucket import Bucket

pytestmark = pytest.mark.database
NAME = "Summer sale (proj_1)"


@pytest.fixture
def held(bucket: Bucket, settings: Settings) -> Cleanup:
    grant_grace(settings)
    Project.objects.create(pk="proj_1", title="Summer sale")
    Project.objects.get().delete()
    return Cleanup.objects.get()


def listed(client: Client, text: str) -> str:
    return page_text(client.get(admin_url("cleanup"), {"q": text}))


def looked_up(client: Client, text: str) -> str:
    return page_text(client.get(lookup_url(text)))


@pytest.mark.parametrize("text", ["Summer sale", "summer", " SALE "])
def test_list_and_lookup_find_a_deleted_project_by_its_title(held: Cleanup, text: str) -> None:
    client = superuser_client()
    assert NAME in listed(client, text)
    found = looked_up(client, text)
    assert "Summer sale" in found and url_of_cleanup(held) in found
    assert "Held until" in found and f"/cleanup/{held.pk}/undo/" in found
    assert NAME in page_text(client.get(url_of_cleanup(held)))


def test_other_searches_find_what_they_found(held: Cleanup) -> None:
    client = superuser_client()
    assert NAME in listed(client, "proj_1") and NAME in listed(client, "")
    assert NAME in listed(client, str(held.pk))
    assert NAME not in listed(client, "winter")
    assert "We have no record of this file." in looked_up(client, "winter")
    assert not find_by_name(" ") and not find_by_name("\0")


@pytest.fixture
def compared(db: None) -> Cleanup:
    Project.objects.create(pk="proj_2", title="Autumn Sale")
    return create_cleanup("clean", kind=Cleanup.Kind.VERIFY, project_id="proj_2")


def test_list_finds_a_live_project_by_the_beginning_of_its_title(compared: Cleanup) -> None:
    client = superuser_client()
    for text in ("autumn", " AUTUMN SALE "):
        assert "Autumn Sale (proj_2)" in listed(client, text), text
    for text in ("Sale", "autumn sales", "%", "_utumn"):
        assert "0 cleanups" in listed(client, text), text


def test_title_of_a_new_project_is_not_shown_for_an_earlier_deletion(compared: Cleanup) -> None:
    create_cleanup("clean", project_id="proj_2")
    assert listed(superuser_client(), "autumn").count("Autumn Sale (proj_2)") == 1


def test_list_finds_projects_of_a_model_of_the_sites_own(
    compared: Cleanup, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT_PROJECT_MODEL = "auth.Group"
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "PROJECT_ID_PATTERN": "[0-9]+"}
    group = Group.objects.create(name="Night shift")
    create_cleanup("clean", project_id=str(group.pk))
    client = superuser_client()
    assert "1 cleanup " in listed(client, "shift") and "0 cleanups" in listed(client, "autumn")
    url = url_of_cleanup(Cleanup.objects.get(project_id=str(group.pk)))
    assert url in looked_up(client, "shift")
    monkeypatch.setattr(GroupAdmin, "search_fields", ())
    assert "0 cleanups" in listed(client, "shift"), "this list has no search"
    monkeypatch.undo()
    hidden = Group.objects.none()
    monkeypatch.setattr(GroupAdmin, "get_queryset", lambda _self, _request: hidden)
    assert "0 cleanups" in listed(client, "shift"), "this person may not see the row"
    assert url not in looked_up(client, "shift")


def test_search_by_a_title_reads_indexes_only(compared: Cleanup) -> None:
    if connection.vendor == "postgresql":
        # It would read the whole of a small table.
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
    plan = Project.objects.order_by().filter(Project.title_starts_with("autumn")).explain()
    assert "project_titled" in plan


def test_titles_of_live_projects_are_for_those_who_may_view_projects(compared: Cleanup) -> None:
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_cleanup"))
    client = client_for(user)
    assert "Autumn" not in listed(client, "proj_2")
    assert "0 cleanups" in listed(client, "autumn")


def test_titles_are_for_those_who_may_view_projects(held: Cleanup) -> None:
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_cleanup"))
    client = client_for(user)
    assert "Summer" not in listed(client, "proj_1")
    assert "0 cleanups" in listed(client, "Summer")
    assert str(held.pk) not in looked_up(client, "Summer")


def test_lookup_offers_undo_to_those_who_may(held: Cleanup) -> None:
    found = looked_up(staff_client(), "Summer")
    assert "Summer sale" in found and "/undo/" not in found


@pytest.mark.parametrize("decide", [end_deletions.cancel_deletion, end_deletions.erase_deletion])
def test_title_is_forgotten_with_the_copy_of_the_rows(held: Cleanup, decide: object) -> None:
    assert callable(decide)
    decide(held, "a reason")
    assert not SnapshotName.objects.exists()
    client = superuser_client()
    assert "Summer" not in listed(client, "proj_1")
    assert str(held.pk) not in looked_up(client, "Summer")


def test_project_whose_name_cannot_be_read_is_deleted_all_the_same(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(project: Project) -> str:
        raise Project.DoesNotExist

    grant_grace(settings)
    project = Project.objects.create(pk="proj_1", title="Summer sale")
    monkeypatch.setattr(Project, "__str__", fail)
    project.delete()
    assert Cleanup.objects.held().exists() and not SnapshotName.objects.exists()


def test_project_whose_name_runs_a_failing_query_is_deleted_all_the_same(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(project: Project) -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT title FROM no_such_table")
        return project.title

    grant_grace(settings)
    project = Project.objects.create(pk="proj_1", title="Summer sale")
    monkeypatch.setattr(Project, "__str__", fail)
    project.delete()
    assert Cleanup.objects.held().exists() and not SnapshotName.objects.exists()


def test_list_of_names_takes_as_many_queries_for_many_rows(held: Cleanup) -> None:
    client = superuser_client()
    with CaptureQueriesContext(
        connection,
    ) as one:
        listed(client, "sale")
    for n in range(2, 9):
        Project.objects.create(pk=f"proj_{n}", title="A sale")
        Project.objects.get().delete()
    with CaptureQueriesContext(connection) as many:
        assert "A sale (proj_8)" in listed(client, "sale")
    assert len(many) == len(one)


def test_page_of_a_known_id_says_whether_its_files_are_kept(held: Cleanup) -> None:
    client, url = superuser_client(), admin_url("knownproject", "change", "proj_5F1")
    assert "You can still undo the deletion" in page_text(client.get(url))
    end_deletions.cancel_deletion(held, "")
    assert "A person cancelled the cleanup, so the files are kept." in page_text(client.get(url))
    KnownProject.objects.update(kept_for="")
    assert "the files are kept" not in page_text(client.get(url))


def test_lookup_lists_existing_and_deleted_projects_of_a_title_together(held: Cleanup) -> None:
    Project.objects.create(pk="proj_2", title="Summer camp")
    found = looked_up(superuser_client(), "summer")
    assert "2 projects match." in found
    assert "Summer camp (proj_2)</a>: exists" in found and f"{NAME}</a>: deleted" in found
    only = looked_up(superuser_client(), "summer sale")
    assert "<strong>Summer sale</strong>" in only and "the project “Summer sale” are still" in only
