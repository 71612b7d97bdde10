"""Titles of deleted projects on the overview."""

from django.contrib.auth.models import Permission, User
from pytest_django import Settings

from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import DASHBOARD, page_text, staff_client, superuser_client
from tests.held import grant_grace


def test_overview_shows_titles_only_to_people_who_may_view_projects(
    transactional_db: None, settings: Settings
) -> None:
    grant_grace(settings)
    Project.objects.create(pk="proj_1", title="Secret film").delete()
    Cleanup.objects.update(status="blocked", message="Too many files.")
    assert "Secret film" in page_text(superuser_client().get(DASHBOARD))
    client = staff_client()
    viewing = Permission.objects.get(codename="view_project")
    User.objects.get(username="ben").user_permissions.remove(viewing)
    shown = page_text(client.get(DASHBOARD))
    assert "proj_1" in shown and "Secret film" not in shown
