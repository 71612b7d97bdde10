"""Rows of another database are copies: they own no files, whatever ids they have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from pytest_django import Settings

from storage_audit.cleanup import bulk
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.projects.admin.database_copies import is_database_copy
from storage_audit.projects.admin.projects import OwnerAdmin, ProjectAdmin
from tests.admin_client import admin_url, confirm_action, page_text, run_action, superuser_client
from tests.database import another_database
from tests.promises import create_projects

# The copy is in SQLite, and a list sorts with the collation of the default database.
pytestmark = pytest.mark.only_on("sqlite")


class Ours:
    """As docs/adopting.md has it for a site with several databases."""

    def db_for_read(self, model: type[Model], **hints: object) -> str | None:
        return "default" if model._meta.app_label == "storage_audit" else None

    db_for_write = db_for_read


@pytest.fixture
def archive(
    tmp_path: Path, transactional_db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuerySet[Project]]:
    """The copies of two projects, which the admin lists as Django's documentation has it."""
    stock = OwnerAdmin.get_queryset

    def get_queryset(pages: Any, request: HttpRequest) -> QuerySet[Project]:
        return stock(pages, request).using("copy")

    create_projects("proj_1", "proj_2")
    with another_database(tmp_path, Project, R2Object, KnownProject, Cleanup):
        copies = Project.objects.using("copy")
        copies.bulk_create(Project(pk=f"proj_{number}") for number in (1, 2))
        monkeypatch.setattr(ProjectAdmin, "get_queryset", get_queryset)
        settings.DATABASE_ROUTERS = [Ours()]
        yield copies


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("way", ["button", "delete_selected"])
def test_deletion_of_copies_deletes_no_project(
    archive: Any, monkeypatch: pytest.MonkeyPatch, way: str, size: int
) -> None:
    """Of more than `size`, a bulk job would delete the projects."""
    monkeypatch.setattr(bulk, "PROJECTS_PER_TRANSACTION", size)
    R2Object.objects.create(bucket="tests", key="k", project_id="proj_1", size=7, state="stored")
    client, address = superuser_client(), admin_url("project", "delete", "proj_1")
    if way == "button":
        asked = page_text(client.get(address))
        client.post(address, {"post": "yes"})
    else:
        asked = run_action(client, "project", way, "proj_1", "proj_2")
        confirm_action(client, "project", way, "proj_1", "proj_2")
    assert archive.count() == (1 if way == "button" else 0)
    assert "will be deleted from R2" not in asked and "1 object" not in asked
    assert Project.objects.count() == 2
    assert not Cleanup.objects.exists() and not BulkJob.objects.exists()


@pytest.mark.parametrize("action", ["force_delete", "dry_run_cleanup", "verify_cleanup"])
def test_actions_about_files_refuse_copies(archive: Any, action: str) -> None:
    for projects in (["proj_1"], ["proj_1", "proj_2"]):
        shown = run_action(superuser_client(), "project", action, *projects, post="yes")
        assert "Nothing was done: these rows are in the database copy." in shown
    assert (Project.objects.count(), archive.count()) == (2, 2)
    assert not Cleanup.objects.exists() and not BulkJob.objects.exists()


class Replica:
    def db_for_read(self, model: type[Model], **hints: object) -> str:
        return "replica"


def test_rows_that_a_router_reads_from_a_replica_are_no_copies(settings: Settings) -> None:
    settings.DATABASE_ROUTERS = [Replica()]
    assert Project.objects.all().db == "replica" and not is_database_copy(Project.objects.all())
    assert not is_database_copy(Project.objects.using("default"))
