"""The page of leftover files: grouped by project, and acted on."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from storage_audit.cleanup import pause_deletions
from storage_audit.cleanup.models import Cleanup
from storage_audit.findings import leftover_projects
from storage_audit.findings.models import Finding
from tests.admin_client import confirmation_fields, page_text, staff_client, superuser_client
from tests.builders import create_cleanup, create_finding, create_findings
from tests.real_bucket import Bucket

URL = reverse("admin:storage_audit_leftovers")
LONG_AGO = timezone.now() - timedelta(days=30)
RIPE: dict[str, Any] = {"first_seen_at": LONG_AGO, "last_modified": LONG_AGO}


@pytest.fixture
def young(settings: Settings) -> None:
    """Files that were put just now may be deleted."""
    age = timedelta(microseconds=1)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": age}


def shown_projects(**query: str) -> list[tuple[str | None, int, str]]:
    context: Any = superuser_client().get(URL, query).context
    return [(one.project_id, one.files, one.deletable_from) for one in context["projects"]]


def test_files_are_counted_by_project_with_when_they_may_be_deleted(db: None) -> None:
    create_finding("a", project_id="proj_1", **RIPE)
    create_finding("b", project_id="proj_1", **RIPE)
    create_finding("c", project_id="proj_2", **RIPE)
    create_finding("d", project_id="proj_2", last_modified=LONG_AGO)
    create_finding("e", project_id=None, **RIPE | {"escaped": True})
    create_finding("f", "missing", project_id="proj_3")
    create_finding("g", project_id="proj_4", state=Finding.State.IGNORED)
    found = shown_projects()
    assert [each[:2] for each in found] == [(None, 1), ("proj_1", 2), ("proj_2", 2)]
    assert found[0][2] == "1 file only in the Cloudflare dashboard"
    assert found[1][2] == "now"
    assert found[2][2].startswith("1 file now, after one more scan, from ")


def test_file_that_an_open_cleanup_covers_is_not_counted(db: None) -> None:
    create_finding("proj_1_s1_a.mp4", project_id="proj_1", **RIPE)
    create_cleanup("blocked", project_id="proj_1")
    assert shown_projects() == []
    assert "No known leftover files." in page_text(superuser_client().get(URL))


def test_each_project_is_on_one_page(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover_projects, "PROJECTS_PER_PAGE", 2)
    monkeypatch.setattr(leftover_projects, "MAX_COUNTED", 4)
    for n in range(7):
        create_finding(f"k{n}", project_id=f"proj_{n // 2}")
    client, url, seen = superuser_client(), URL, list[str]()
    while url:
        context: Any = client.get(url).context
        seen += [one.project_id for one in context["projects"]]
        then = context["next_project"]
        url = f"{URL}?after={then}" if then else ""
    assert seen == ["proj_0", "proj_1", "proj_2", "proj_3"]


def test_project_at_the_edge_of_what_is_counted_begins_the_next_page(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_projects, "MAX_COUNTED", 5)
    for n in range(8):
        create_finding(f"k{n}", project_id=f"proj_{n // 4}")
    assert [each[:2] for each in shown_projects()] == [("proj_0", 4)]
    assert [each[:2] for each in shown_projects(after="proj_0")] == [("proj_1", 4)]


@pytest.mark.parametrize("is_ripe", [True, False])
def test_delete_is_offered_once_a_file_can_be_deleted(db: None, is_ripe: bool) -> None:
    create_finding("a", project_id="proj_1", **RIPE if is_ripe else {})
    shown = page_text(superuser_client().get(URL))
    assert ('value="delete_objects"' in shown) == is_ripe
    assert ("None of these files can be deleted yet." in shown) != is_ripe
    assert 'value="preview_deletion"' in shown


def test_page_beyond_the_last_project_leads_back(db: None) -> None:
    create_finding("a", project_id="proj_1")
    shown = page_text(superuser_client().get(URL, {"after": "proj_1"}))
    assert "This page is empty now." in shown and "No known leftover files" not in shown


def test_request_that_names_no_finding_is_not_taken_for_confirmed(db: None) -> None:
    create_finding("a", project_id="proj_1", **RIPE)
    data = {"action": "ignore", "all": "1", "post": "yes", "note": "x"}
    superuser_client().post(URL, data)
    assert Finding.objects.get().state == Finding.State.OPEN


def test_project_with_a_line_break_in_its_id_is_selected(db: None) -> None:
    create_finding("a", project_id="p\n1", **RIPE)
    client = superuser_client()
    [value] = re.findall('name="project" value="(.*?)"', page_text(client.get(URL)))
    asked = page_text(client.post(URL, {"action": "ignore", "project": value}))
    assert "Ignore 1 finding?" in asked and "\n" not in value


def test_paused_deletion_is_not_said_to_run(bucket: Bucket, young: None) -> None:
    key = "projects/proj_9/scenes/s1/media/a.mp4"
    bucket.put(key, "1")
    create_findings(bucket, key)
    pause_deletions.pause_deletions("Files are missing.")
    client, data = superuser_client(), {"action": "delete_objects", "project": "proj_9"}
    asked = page_text(client.post(URL, data))
    answer = page_text(client.post(URL, {**data, **confirmation_fields(asked)}, follow=True))
    assert "Deletions are paused. The files are deleted once" in answer
    assert "A cleanup is deleting" not in answer


def test_project_with_too_many_files_to_count_says_so(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_projects, "MAX_COUNTED", 3)
    for n in range(5):
        create_finding(f"k{n}", project_id="proj_1")
    assert "at least" in page_text(superuser_client().get(URL))


@pytest.mark.parametrize("choice", [{"project": ["proj_9"]}, {"all": "1"}])
def test_selected_projects_are_deleted_after_a_confirmation(
    bucket: Bucket, young: None, choice: dict[str, Any]
) -> None:
    keys = [f"projects/proj_9/scenes/s1/media/{n}.mp4" for n in range(3)]
    other = "projects/proj_8/scenes/s1/media/a.mp4"
    for key in (*keys, other):
        bucket.put(key, "12345")
    create_findings(bucket, *keys)
    if "project" in choice:
        create_findings(bucket, other, project_id="proj_8")
    client = superuser_client()
    data = {"action": "delete_objects", "select_across": "1", **choice}
    asked = page_text(client.post(URL, data))
    assert not Cleanup.objects.exists() and 'value="Delete 3 files"' in asked
    client.post(URL, {**data, **confirmation_fields(asked)})
    cleanup = Cleanup.objects.get()
    assert sorted(cleanup.items.values_list("key", flat=True)) == sorted(keys)


def test_files_found_after_the_question_are_not_deleted(bucket: Bucket, young: None) -> None:
    first, later = (f"projects/proj_9/scenes/s1/media/{name}.mp4" for name in "ab")
    for key in (first, later):
        bucket.put(key, "1")
    create_findings(bucket, first)
    client = superuser_client()
    data = {"action": "delete_objects", "select_across": "1", "project": "proj_9"}
    asked = page_text(client.post(URL, data))
    create_findings(bucket, later)
    answer = page_text(client.post(URL, {**data, **confirmation_fields(asked)}))
    assert "your selection changed" in answer and not Cleanup.objects.exists()


@pytest.mark.parametrize("data", [{"action": "rename"}, {}])
def test_other_actions_are_not_found(db: None, data: dict[str, str]) -> None:
    assert superuser_client().post(URL, data).status_code == 404


def test_nothing_selected_says_what_to_do(db: None) -> None:
    answer = superuser_client().post(URL, {"action": "delete_objects"}, follow=True)
    assert "select a project first" in page_text(answer)


def test_each_action_needs_its_permission(db: None) -> None:
    create_finding("a", project_id="proj_1", **RIPE)
    client = staff_client("view_finding", "change_finding")
    shown = page_text(client.get(URL))
    assert 'value="ignore"' in shown and 'value="delete_objects"' not in shown
    data = {"action": "delete_objects", "project": "proj_1", "select_across": "1"}
    assert client.post(URL, data).status_code == 403


def test_project_ids_by_strangers_are_escaped(db: None) -> None:
    create_finding("a", project_id='"><script>alert(1)</script>\n', **RIPE)
    shown = page_text(superuser_client().get(URL))
    assert "<script>alert" not in shown


def test_number_of_files_leads_to_all_of_them_in_each_bucket(db: None) -> None:
    for bucket in ("tests", "old"):
        create_finding("a", project_id="proj_1", bucket=bucket)
    client = superuser_client()
    shown = page_text(client.get(URL))
    [url] = re.findall('href="([^"]*)">2</a>', shown)
    listed: Any = client.get(unescape(url)).context["cl"].result_list
    assert len(listed) == 2
