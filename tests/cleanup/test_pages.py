"""Cleanup operations in the admin: one page that tells all, and what a person may ask for."""

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from django_q.models import OrmQ

from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.cleanup_text import MEANING
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.models import KnownProject, Project
from tests.admin_client import (
    act,
    confirm,
    count_queries,
    page,
    person,
    read_totals,
    superuser,
    text_of,
    url_of_cleanup,
)
from tests.builders import add_items, create_cleanup
from tests.keys import ESCAPED, HOSTILE
from tests.real_bucket import Bucket

Status = CleanupOperation.Status
DECLARE = reverse("admin:storage_audit_declare_deleted")
FORCEABLE = {
    "blocked": ["Force-delete: Release…"],
    "planned": ["Run exactly this plan"],
    "incomplete": ["Force-delete: Try again now…"],
    "failed": ["Force-delete: Try again now…"],
}


@pytest.mark.parametrize(
    ("query", "is_shown"),
    [
        ("", False),
        ("?q=proj_gone", False),
        ("?project_id=proj_gone", False),
        ("?follow_up_checks=shown", True),
        ("?status=pending", True),
        ("?trigger=late_check", True),
    ],
)
def test_follow_up_checks_stand_above_no_deletion_unless_asked_for(
    db: None, query: str, is_shown: bool
) -> None:
    deletion = create_cleanup("clean")
    check = create_cleanup(parent=deletion)
    CleanupOperation.objects.filter(pk=check.pk).update(trigger="late_check")
    client = superuser()
    shown = client.get(page("cleanupoperation", "changelist") + query).context["cl"].result_list
    assert (check in shown) == is_shown
    assert is_shown or list(shown) == [deletion]
    export = client.get(page("cleanupoperation", "export", "csv") + query)
    assert str(check.pk) in export.getvalue().decode(), "a file that is kept lacks it"
    [found] = (
        client.get(f"{page('cleanupoperation', 'changelist')}?q={check.pk}")
        .context["cl"]
        .result_list
    )
    assert found == check


@pytest.mark.parametrize("status", Status.values)
def test_page_says_what_each_status_means_and_offers_what_fits(db: None, status: str) -> None:
    shown = text_of(superuser().get(url_of_cleanup(create_cleanup(status))))
    assert escape(str(MEANING[Status(status)])) in shown
    assert "Verify cleanup" in shown
    offered = re.findall('value="((?:Force-delete|Run)[^"]*)">', shown)
    assert offered == FORCEABLE.get(status, [])


@pytest.mark.parametrize(
    ("permission", "offered"), [("verify_cleanup", "Verify"), ("force_cleanup", "Force-delete:")]
)
def test_page_offers_only_what_is_permitted(db: None, permission: str, offered: str) -> None:
    shown = text_of(person(permission).get(url_of_cleanup(create_cleanup("failed"))))
    assert re.findall('value="(Verify|Force-delete:)[^"]*">', shown) == [offered]
    assert "Ask an administrator to add you to the group" in shown


def test_page_tells_a_real_deletion_from_the_request_to_the_proof(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_x_s1_media.mp4")
    Project.objects.create(pk="proj_1_x")
    client = superuser()
    client.post(page("project", "delete", "proj_1"), {"post": "yes"})
    operation = runner.run(CleanupOperation.objects.get().pk)
    shown = text_of(client.get(url_of_cleanup(operation)))
    assert read_totals(shown)["found"] == ("2", "11 bytes")
    assert read_totals(shown)["deleted"] == ("1", "4 bytes")
    assert read_totals(shown)["protected"] == ("1", "7 bytes")
    assert "1 protected (7 bytes): It could also belong to the live project proj_1_x." in shown
    assert operation.plan_digest in shown
    assert "web, 127.0.0.1" in shown
    assert shown.count("Late check</a>") == 3
    assert "Every range was listed to its end" in shown


def test_page_of_a_dry_run_says_what_would_go_and_whether_a_limit_would_stop_it(
    bucket: Bucket,
) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4")
    operation = runner.run(requests.dry_run("proj_1")[0].pk)
    shown = text_of(superuser().get(url_of_cleanup(operation)))
    assert "nothing was deleted" in shown
    assert read_totals(shown)["planned"] == ("2", "11 bytes")
    assert "No safety limit would block it." in shown
    CleanupOperation.objects.filter(pk=operation.pk).update(error="2 are more than 1.")
    shown = text_of(superuser().get(url_of_cleanup(operation)))
    assert "A safety limit would block it: 2 are more than 1." in shown


def test_page_of_a_verification_tells_what_it_found_and_forces_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4")
    check = runner.run(requests.verify_project("proj_1")[0].pk)
    shown = text_of(superuser().get(url_of_cleanup(check)))
    assert "found differences; it changed nothing" in shown
    assert "1 in step, 0 missing, 1 untracked" in shown
    assert "Found 2 objects to be compared." in shown
    assert "Different" in shown
    content = shown.split('id="content-main"')[1]
    assert not re.search("(?i)>(to be deleted|failed)", content)
    assert 'value="Force-delete' not in shown


def test_running_operation_shows_the_counts_of_its_items(db: None) -> None:
    operation = create_cleanup("running")
    add_items(operation, 3)
    add_items(operation, 2, outcome="deleted")
    shown = text_of(superuser().get(url_of_cleanup(operation)))
    assert read_totals(shown)["found"] == ("5", "50 bytes")
    assert read_totals(shown)["planned"] == ("3", "30 bytes")


def test_page_shows_hostile_keys_answers_and_data_escaped(db: None) -> None:
    operation = create_cleanup("running", project_id=HOSTILE)
    add_items(operation, 1, key=HOSTILE, reason=HOSTILE, answer=HOSTILE)
    operation.record("plan", HOSTILE, keys=[HOSTILE])
    client = superuser()
    for url in (url_of_cleanup(operation), page("cleanupoperation")):
        shown = text_of(client.get(url))
        assert ESCAPED in shown
        assert "<script>alert" not in shown


def test_page_has_no_script_and_no_style_of_its_own(db: None) -> None:
    content = text_of(superuser().get(url_of_cleanup(create_cleanup("failed")))).split(
        'id="content-main"'
    )[1]
    assert " style=" not in content
    assert "<style" not in content
    assert not re.search("<script>|<script(?![^>]*src=)", content)


def test_page_and_list_cost_the_same_for_few_and_many(db: None) -> None:
    client, operation = superuser(), create_cleanup("clean")
    add_items(operation, 1)
    pages = (url_of_cleanup(operation), page("cleanupoperation"))
    few = [count_queries(client, url) for url in pages]
    add_items(operation, 150)
    for n in range(50):
        create_cleanup(project_id=f"proj_{n}", parent=operation)
        operation.record("plan", "again")
    assert [count_queries(client, url) for url in pages] == few


def test_timeline_ends_with_the_latest_events(db: None) -> None:
    operation = create_cleanup("running")
    for n in range(210):
        operation.record("plan", f"event {n}.")
    shown = text_of(superuser().get(url_of_cleanup(operation)))
    assert "event 9." not in shown
    assert "event 10." in shown and "event 209." in shown


def test_operations_are_read_only(db: None) -> None:
    operation, client = create_cleanup("failed"), superuser()
    assert client.post(url_of_cleanup(operation), {"status": "clean"}).status_code == 403
    assert client.post(page("cleanupoperation", "add"), {}).status_code == 403
    delete = page("cleanupoperation", "delete", operation.pk)
    assert client.post(delete, {"post": "yes"}).status_code == 403
    confirm(client, "cleanupoperation", "delete_selected", operation.pk)
    assert CleanupOperation.objects.get().status == "failed"


def test_search_finds_by_project_and_by_deletion_id(db: None) -> None:
    operation, client = create_cleanup(), superuser()
    create_cleanup(project_id="proj_other")
    for term in ("proj_go", str(operation.pk)):
        shown = text_of(client.get(page("cleanupoperation"), {"q": term}))
        assert "proj_gone" in shown and "proj_other" not in shown


def test_verification_is_queued_linked_and_logged(transactional_db: None) -> None:
    operation = create_cleanup("clean")
    shown = act(superuser(), "cleanupoperation", "verify_cleanup", operation.pk)
    check = operation.children.get()
    assert url_of_cleanup(check) in shown
    assert "A verification is queued." in shown
    assert (check.kind, check.requested_by) == ("verify", "anna")
    assert str(check.pk) in LogEntry.objects.get().change_message
    assert OrmQ.objects.count() == 1


@pytest.mark.parametrize("status", FORCEABLE)
def test_force_delete_asks_first(db: None, status: str) -> None:
    operation = create_cleanup(status)
    shown = act(superuser(), "cleanupoperation", "force_delete", operation.pk)
    assert "never the ownership rule" in shown
    assert CleanupOperation.objects.get().status == status


@pytest.mark.parametrize(
    ("status", "amount"),
    [
        ("planned", "2 objects, 20"),
        ("blocked", "2 objects, 20"),
        ("failed", "3 objects, 30"),
    ],
)
def test_force_delete_says_how_much_it_would_delete(db: None, status: str, amount: str) -> None:
    operation = create_cleanup(status, planned_at=timezone.now())
    for count, outcome in ((2, "planned"), (1, "failed"), (4, "protected")):
        add_items(operation, count, outcome=outcome)
    unplanned = create_cleanup("blocked")
    add_items(unplanned, 1)
    client = superuser()
    shown = act(client, "cleanupoperation", "force_delete", operation.pk, unplanned.pk)
    assert f"</span> {amount} bytes</td>" in shown and "</span> –</td>" in shown
    assert 'value="Delete' not in shown, "nobody knows what the other one deletes"
    alone = act(client, "cleanupoperation", "force_delete", operation.pk)
    assert f'value="Delete {amount} bytes"' in alone
    assert ("Run this plan?" in alone) == (status == "planned")


@pytest.mark.parametrize("status", FORCEABLE)
def test_force_delete_starts_it_again(transactional_db: None, status: str) -> None:
    operation = create_cleanup(status)
    shown = confirm(superuser(), "cleanupoperation", "force_delete", operation.pk)
    operation.refresh_from_db()
    assert operation.status == "pending"
    assert url_of_cleanup(operation) in shown
    assert "Queued: a worker takes it next." in shown
    assert OrmQ.objects.count() == 1
    assert LogEntry.objects.get().is_change()


def test_force_delete_refuses_what_is_over_and_does_the_rest(transactional_db: None) -> None:
    over, blocked = create_cleanup("clean"), create_cleanup("blocked", project_id="proj_2")
    asked = act(superuser(), "cleanupoperation", "force_delete", over.pk, blocked.pk)
    assert "Nothing: there is nothing to release or to try again." in asked
    shown = confirm(superuser(), "cleanupoperation", "force_delete", over.pk, blocked.pk)
    assert f"operation {over.pk}: it is clean." in shown
    over.refresh_from_db()
    blocked.refresh_from_db()
    assert (over.status, blocked.status) == ("clean", "pending")


def test_plan_of_a_live_project_is_neither_offered_nor_run(db: None) -> None:
    Project.objects.create(pk="proj_1")
    operation = create_cleanup("planned", project_id="proj_1", dry_run=True)
    shown = text_of(superuser().get(page("cleanupoperation", "change", operation.pk)))
    assert 'value="Run exactly this plan" disabled' in shown
    assert "Force-delete" not in shown
    assert "this plan cannot be run. Deleting the project starts" in shown
    shown = act(superuser(), "cleanupoperation", "force_delete", operation.pk)
    assert "this plan cannot be run. Deleting the project starts" in shown
    shown = confirm(superuser(), "cleanupoperation", "force_delete", operation.pk)
    assert "Project proj_1 exists." in shown
    operation.refresh_from_db()
    assert operation.status == "planned"


@pytest.mark.parametrize(
    ("action", "permission"),
    [("verify_cleanup", "verify_cleanup"), ("force_delete", "force_cleanup")],
)
def test_each_action_needs_its_own_permission(db: None, action: str, permission: str) -> None:
    operation = create_cleanup("blocked")
    others = {"dry_run_cleanup", "verify_cleanup", "force_cleanup"} - {permission}
    confirm(person(*others, "delete_project"), "cleanupoperation", action, operation.pk)
    assert CleanupOperation.objects.get().status == "blocked"


@pytest.mark.parametrize(
    ("action", "permission"),
    [("verify_cleanup", "verify_cleanup"), ("force_delete", "force_cleanup")],
)
def test_each_permission_alone_suffices(db: None, action: str, permission: str) -> None:
    operation = create_cleanup("blocked")
    confirm(person(permission), "cleanupoperation", action, operation.pk)
    assert CleanupOperation.objects.filter(status="pending").exists()


def test_getting_any_url_changes_nothing(db: None) -> None:
    operation, client = create_cleanup("blocked"), superuser()
    data = {"action": "force_delete", "_selected_action": str(operation.pk), "post": "yes"}
    for url in (page("cleanupoperation"), url_of_cleanup(operation)):
        client.get(url, data)
    client.get(DECLARE, {"project_id": "proj_old", "repeated": "proj_old"})
    assert CleanupOperation.objects.get().status == "blocked"


def test_files_left_behind_before_installation_are_cleaned_up(bucket: Bucket) -> None:
    bucket.put("projects/proj_old/scenes/s1/media/a.mp4")
    client = superuser()
    assert DECLARE in text_of(client.get(page("cleanupoperation")))
    typed = {"project_id": "proj_old", "repeated": "proj_old"}
    shown = text_of(client.post(DECLARE, typed, follow=True))
    operation = CleanupOperation.objects.get()
    assert url_of_cleanup(operation) in shown
    assert LogEntry.objects.get().is_addition()
    assert KnownProject.objects.get().evidence == "declared"
    assert OrmQ.objects.count() == 1
    assert runner.run(operation.pk).status == "clean"
    assert bucket.keys() == set()


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ("proj_old", "proj_odl", "This is not the id that you typed above."),
        ("nonsense!", "nonsense!", "is not a project id"),
        ("proj_alive", "proj_alive", "Project proj_alive exists."),
        ("", "", "This field is required."),
    ],
)
def test_declaration_is_refused(db: None, first: str, second: str, complaint: str) -> None:
    Project.objects.create(pk="proj_alive")
    shown = text_of(superuser().post(DECLARE, {"project_id": first, "repeated": second}))
    assert complaint in shown
    assert not CleanupOperation.objects.exists()


def test_declaration_needs_the_permission_to_force(db: None) -> None:
    client = person("dry_run_cleanup", "verify_cleanup", "delete_project")
    typed = {"project_id": "proj_old", "repeated": "proj_old"}
    assert client.post(DECLARE, typed).status_code == 403
    assert DECLARE not in text_of(client.get(page("cleanupoperation")))
    assert not CleanupOperation.objects.exists()


def test_late_check_shows_when_it_is_due_and_what_it_follows(db: None) -> None:
    parent = create_cleanup("clean")
    child = create_cleanup(parent=parent, next_attempt_at=timezone.now())
    client = superuser()
    assert url_of_cleanup(child) in text_of(client.get(url_of_cleanup(parent)))
    assert url_of_cleanup(parent) in text_of(client.get(url_of_cleanup(child)))


def look(**values: Any) -> CleanupOperation:
    over = {"kind": "verify", "next_attempt_at": None, **values}
    return create_cleanup("incomplete", found=11, failed=1, already_absent=10, **over)


def test_the_list_has_a_looks_own_words(db: None) -> None:
    look(project_id="proj_look")
    shown = text_of(superuser().get(page("cleanupoperation")))
    assert "10 seen absent, 1 different" in shown
    create_cleanup("incomplete", found=11, failed=1, already_absent=10)
    shown = text_of(superuser().get(page("cleanupoperation")))
    assert "10 already absent, 1 failed" in shown


def badge_with(text: str) -> str:
    return f'<span class="audit-status audit-incomplete">{text}</span>'


def test_the_badge_of_a_look_that_is_over_says_that_it_found_differences(db: None) -> None:
    parent = create_cleanup("clean")
    over, client = look(parent=parent), superuser()
    for url in (page("cleanupoperation"), url_of_cleanup(over), url_of_cleanup(parent)):
        shown = text_of(client.get(url))
        assert badge_with("differences found") in shown and badge_with("incomplete") not in shown
    asked = act(client, "cleanupoperation", "force_delete", over.pk)
    assert badge_with("differences found") in asked


@pytest.mark.parametrize("values", [{"kind": "project"}, {"next_attempt_at": timezone.now()}])
def test_what_is_tried_again_is_incomplete(db: None, values: dict[str, Any]) -> None:
    shown = text_of(superuser().get(url_of_cleanup(look(**values))))
    assert badge_with("incomplete") in shown and "differences found" not in shown
