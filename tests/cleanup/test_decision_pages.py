"""Undo, Cancel, Erase now and Clean up again in the admin: who is offered what, what the page asks,
and what follows."""

import csv
from datetime import timedelta
from html import unescape
from urllib.parse import urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.alerts import alert_rules, alert_text
from storage_audit.alerts.models import Alert
from storage_audit.cleanup import cleanup_text, runner
from storage_audit.cleanup.admin import live_progress
from storage_audit.cleanup.models import Cleanup
from storage_audit.display_formats import format_utc
from storage_audit.models import KnownProject, Project
from storage_audit.projects.admin import known_projects
from tests.admin_client import (
    admin_url,
    confirm_action,
    confirmation_fields,
    page_text,
    run_action,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import add_item, create_cleanup
from tests.held import delete_held, grant_grace, hold_deletion
from tests.promises import Status, create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files
from tests.run_command import run_command

pytestmark = pytest.mark.database
ACTIONS = ("undo_deletion", "cancel_deletion", "erase_deletion", "clean_up_again")


@pytest.fixture
def held(bucket: Bucket, settings: Settings) -> Cleanup:
    grant_grace(settings)
    create_projects("proj_1")
    put_files(bucket, 3)
    return delete_held()


def offered(shown: str) -> set[str]:
    return {each for each in ACTIONS if f'name="action" value="{each}"' in shown}


def test_page_and_list_say_until_when_it_is_held(held: Cleanup) -> None:
    assert held.held_until
    text = f"Held until {format_utc(held.held_until)}"
    client = superuser_client()
    page = page_text(client.get(url_of_cleanup(held)))
    assert f'<h2 id="audit-answer">{text}. No file is deleted before that.</h2>' in page
    listed = page_text(client.get(admin_url("cleanup"), {"needs": "held"}))
    assert text in listed and "3 files" in listed
    sentence = live_progress.progress_values(held, timezone.now())["sentence"]
    assert sentence.startswith("The hold ends in 2")
    assert cleanup_text.status_label(held) == text


def test_hold_is_not_shown_once_its_time_is_over(held: Cleanup) -> None:
    Cleanup.objects.update(held_until=timezone.now() - timedelta(seconds=1))
    held.refresh_from_db()
    assert cleanup_text.status_label(held) == "waiting"
    client = superuser_client()
    assert str(held.pk) not in page_text(client.get(admin_url("cleanup"), {"needs": "held"}))
    # Until the first request leaves.
    still = {"cancel_deletion", "undo_deletion"}
    assert offered(page_text(client.get(url_of_cleanup(held)))) == still


def test_page_offers_what_can_be_done_now(held: Cleanup) -> None:
    client = superuser_client()
    before = {"undo_deletion", "cancel_deletion", "erase_deletion"}
    assert offered(page_text(client.get(url_of_cleanup(held)))) == before
    confirm_action(client, "cleanup", "cancel_deletion", held.pk, reason="wait")
    assert offered(page_text(client.get(url_of_cleanup(held)))) == {"clean_up_again"}


@pytest.mark.parametrize("status", ["blocked", "pending", "retrying", "failed"])
def test_open_deletion_can_be_cancelled(status: str, db: None) -> None:
    cleanup = create_cleanup(status, project_id="proj_1", project_deleted_at=timezone.now())
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert offered(shown) == {"cancel_deletion"}


@pytest.mark.parametrize("status", ["running", "clean", "superseded", "undone", "cancelled"])
def test_running_or_ended_deletion_offers_no_decision(status: str, db: None) -> None:
    cleanup = create_cleanup(status, project_id="proj_1", project_deleted_at=timezone.now())
    assert not offered(page_text(superuser_client().get(url_of_cleanup(cleanup))))


def test_each_button_of_a_held_cleanup_says_what_it_does(held: Cleanup) -> None:
    page = page_text(superuser_client().get(url_of_cleanup(held)))
    assert "<strong>Undo deletion:</strong> The project comes back. Its files stay." in page
    cancel = "<strong>Cancel, keep the files:</strong> The project stays deleted. Files that are"
    assert f"{cancel} not deleted yet stay." in page


@pytest.mark.parametrize("hold", ["held", "held, rows lost", "none"])
def test_approval_says_whether_a_hold_follows_and_whether_it_can_be_undone(
    bucket: Bucket, settings: Settings, hold: str
) -> None:
    if hold != "none":
        grant_grace(settings)
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    create_projects("proj_1")
    put_files(bucket, 3)
    cleanup = delete_held()
    assert cleanup.status == Status.BLOCKED
    if hold == "held, rows lost":
        Cleanup.objects.update(snapshot=None)
    client = superuser_client()
    page = unescape(page_text(client.get(url_of_cleanup(cleanup))))
    asked = unescape(run_action(client, "cleanup", "force_delete", cleanup.pk))
    assert "Approve 1 cleanup?" in asked
    for shown in (page, asked):
        assert ("at once. You can't undo it." in shown) == (hold == "none")
        assert ("when the hold ends, on" in shown) == (hold != "none")
        assert ("You can undo the deletion until then." in shown) == (hold == "held")
    assert ("You can't undo this." in asked) == (hold == "none")


def test_alerts_link_leads_to_who_what_and_how_much_and_two_clicks_approve(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    create_projects("proj_1")
    put_files(bucket, 3)
    cleanup = delete_held()
    Cleanup.objects.update(requested_by="vera")
    alert_rules.update_alerts()
    client = superuser_client()
    page = page_text(client.get(urlsplit(alert_text.alert_url(Alert.objects.get())).path))
    assert "Requested by vera" in page and "This would delete 3 files" in page
    # One click asks, and the second approves.
    assert 'value="Approve: delete 3 files' in page
    assert 'value="Delete 3 files' in run_action(client, "cleanup", "force_delete", cleanup.pk)
    confirm_action(client, "cleanup", "force_delete", cleanup.pk)
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.limits_waived_by) == (Status.PENDING, "anna")


def test_clean_cleanup_with_kept_files_says_that_nothing_has_to_be_done(db: None) -> None:
    cleanup = create_cleanup("clean_with_kept", found=12, deleted=10, kept=2)
    page = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert "Nothing has to be done: kept files may belong to somebody else." in page


def test_without_permission_buttons_name_the_group_to_ask(held: Cleanup) -> None:
    shown = page_text(staff_client().get(url_of_cleanup(held)))
    assert not offered(shown)
    for label in ("Undo deletion", "Cancel, keep the files", "Erase now"):
        assert f'value="{label}" disabled' in shown or f'value="{label}"' in shown
    assert "Storage operator" in shown and "Storage admin" in shown


@pytest.mark.parametrize("action", ACTIONS[:3])
def test_each_decision_asks_first_with_files_and_project(held: Cleanup, action: str) -> None:
    shown = run_action(superuser_client(), "cleanup", action, held.pk)
    held.refresh_from_db()
    assert held.is_held() and not held.decided_at
    assert "proj_1" in shown and "3 files" in shown and 'name="reason"' in shown


def test_undo_brings_the_project_back(held: Cleanup, bucket: Bucket) -> None:
    client = staff_client("undo_cleanup")
    shown = confirm_action(client, "cleanup", "undo_deletion", held.pk, reason="wrong project")
    assert "Deletion of proj_1 undone." in shown
    assert "Undone by ben on" in shown and "wrong project" in shown
    assert Project.objects.filter(pk="proj_1").exists()
    held.refresh_from_db()
    assert (held.status, held.decided_by, held.decision_reason) == (
        Status.UNDONE,
        "ben",
        "wrong project",
    )
    assert LogEntry.objects.get().get_change_message() == "Undo deletion. wrong project"
    assert len(bucket.keys()) == 3


def test_link_of_undo_asks_and_does_nothing_by_itself(held: Cleanup) -> None:
    url = reverse("admin:storage_audit_undo_deletion", args=[held.pk])
    assert staff_client().get(url).status_code == 403
    shown = page_text(superuser_client().get(url))
    assert 'value="Undo 1 deletion"' in shown
    assert held.held_until
    assert f"Without an undo, files are deleted after {format_utc(held.held_until)}." in shown
    assert not Project.objects.exists()


def test_undo_that_was_shown_before_the_first_plan_is_not_asked_again(
    bucket: Bucket, settings: Settings
) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    put_files(bucket, 1)
    Project.objects.get().delete()
    deletion, client = Cleanup.objects.get(), superuser_client()
    shown = run_action(client, "cleanup", "undo_deletion", deletion.pk)
    assert "not counted yet" in shown
    runner.run_to_end(deletion.pk)
    again = run_action(
        client, "cleanup", "undo_deletion", deletion.pk, **confirmation_fields(shown), reason=""
    )
    assert "Deletion of proj_1 undone." in again
    assert Project.objects.exists()


def test_page_of_a_known_project_links_to_undo_while_that_is_possible(held: Cleanup) -> None:
    page = admin_url("knownproject", "change", "proj_1")
    undo = reverse("admin:storage_audit_undo_deletion", args=[held.pk])
    client = superuser_client()
    assert f'<a class="button" href="{undo}">Undo deletion</a>' in page_text(client.get(page))
    assert undo not in page_text(staff_client("view_knownproject").get(page))
    assert "State of its cleanup: Held until" in page_text(client.get(page))
    Cleanup.objects.update(first_request_at=timezone.now())
    assert undo not in page_text(client.get(page))


def test_several_deletions_are_undone_each_by_itself(
    bucket: Bucket, settings: Settings, held: Cleanup
) -> None:
    create_projects("proj_2", "proj_3")
    second, third = delete_held("proj_2"), delete_held("proj_3")
    Cleanup.objects.filter(pk=second.pk).update(first_request_at=timezone.now())
    pks = (held.pk, second.pk, third.pk)
    shown = confirm_action(superuser_client(), "cleanup", "undo_deletion", *pks)
    assert set(Project.objects.values_list("pk", flat=True)) == {"proj_1", "proj_3"}
    assert f"Cleanup {second.pk}" in shown


def test_erase_needs_a_reason_and_says_what_goes(held: Cleanup, bucket: Bucket) -> None:
    client = staff_client("erase_cleanup")
    shown = confirm_action(client, "cleanup", "erase_deletion", held.pk)
    assert "Erase 3 files" in shown and "This field is required." in shown
    held.refresh_from_db()
    assert held.is_held()
    shown = confirm_action(client, "cleanup", "erase_deletion", held.pk, reason="asked for it")
    assert "Erased now by ben" in shown
    assert run_until_idle(held).status == Status.CLEAN
    assert not bucket.keys()


def test_cancelled_files_stay_until_cleaned_up_again(held: Cleanup, bucket: Bucket) -> None:
    client = superuser_client()
    shown = confirm_action(client, "cleanup", "cancel_deletion", held.pk, reason="a lawsuit")
    assert "Cancelled by anna" in shown and "a lawsuit" in shown
    assert len(bucket.keys()) == 3
    confirm_action(client, "cleanup", "clean_up_again", held.pk, reason="it is over")
    again = Cleanup.objects.filter(project_id="proj_1", parent=None).latest("created_at")
    assert again.pk != held.pk
    assert run_until_idle(again).status == Status.CLEAN
    assert not bucket.keys()


def test_decision_that_was_shown_in_another_state_asks_again(held: Cleanup) -> None:
    client = superuser_client()
    run_action(client, "cleanup", "cancel_deletion", held.pk)
    data = {"post": "yes", "reason": "x", "figures": "old"}
    shown = run_action(client, "cleanup", "cancel_deletion", held.pk, **data)
    assert "Nothing was done" in shown
    held.refresh_from_db()
    assert held.status == Status.PENDING


def test_list_answers_who_decided_what(held: Cleanup) -> None:
    client = superuser_client()
    confirm_action(client, "cleanup", "erase_deletion", held.pk, reason="asked for it")
    listed = page_text(client.get(admin_url("cleanup"), {"decision": "erased"}))
    assert "Erased now by anna" in listed
    listed = page_text(client.get(admin_url("cleanup"), {"decision": "undone"}))
    assert "Erased now by anna" not in listed
    exported = b"".join(client.get(admin_url("cleanup", "export", "csv")))
    assert b"decided_by" in exported and b"held_until" in exported and b"asked for it" in exported


def test_list_and_export_answer_who_deleted_undid_cancelled_and_erased_what(
    bucket: Bucket, settings: Settings
) -> None:
    grant_grace(settings)
    names = {"undo_deletion": "undone", "cancel_deletion": "cancelled", "erase_deletion": "erased"}
    client = superuser_client()
    for number, action in enumerate(names):
        create_projects(f"proj_{number}")
        data = {"post": "yes", "action": "delete_selected", "_selected_action": f"proj_{number}"}
        client.post(admin_url("project"), data)
        cleanup = Cleanup.objects.get(project_id=f"proj_{number}", parent=None)
        confirm_action(client, "cleanup", action, cleanup.pk, reason=f"because {number}")
    for number, value in enumerate(names.values()):
        listed = page_text(client.get(admin_url("cleanup"), {"decision": value}))
        assert f">proj_{number}</a>" in listed and listed.count("because ") == 1
        export = client.get(admin_url("cleanup", "export", "csv"), {"decision": value})
        rows = list(csv.DictReader(b"".join(export).decode().splitlines()))
        row = next(each for each in rows if not each["parent_id"])
        told = [row[name] for name in ("project_id", "requested_by", "decided_by")]
        assert told == [f"proj_{number}", "anna", "anna"]
        assert row["decision_reason"] == f"because {number}" and row["decided_at"]
        log, _err, _code = run_command("deletion_log", row["id"])
        for line in ("requested by: anna", "decided by: anna", f"reason given: because {number}"):
            assert line in log
        assert {"undone": "Undone", "cancelled": "Cancelled", "erased": "Erased now"}[value] in log


def test_list_of_held_deletions_takes_no_query_for_each(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    client, counts = superuser_client(), []
    for number in range(1, 4):
        create_projects(f"proj_{number}")
        delete_held(f"proj_{number}")
        with CaptureQueriesContext(connection) as queries:
            client.get(admin_url("cleanup"))
        counts.append(len(queries))
    assert counts[0] == counts[2]


@pytest.mark.parametrize("action", ["cancel_deletion", "erase_deletion"])
def test_page_says_which_other_deletions_can_no_longer_be_undone(
    bucket: Bucket, settings: Settings, action: str
) -> None:
    """Projects of one delete() call have one copy of their rows."""
    grant_grace(settings)
    create_projects("proj_1", "proj_2", "proj_3")
    Project.objects.filter(pk__in=["proj_1", "proj_2"]).delete()
    alone = delete_held("proj_3")
    together = Cleanup.objects.filter(project_id="proj_1", parent=None).get()
    lost = "1 other project was deleted together with this."
    client = superuser_client()
    assert lost in run_action(client, "cleanup", action, together.pk)
    assert lost not in run_action(client, "cleanup", action, alone.pk)
    assert lost not in run_action(client, "cleanup", "undo_deletion", together.pk)
    both = Cleanup.objects.filter(project_id__in=["proj_1", "proj_2"], parent=None)
    assert "together with this" not in run_action(
        client, "cleanup", action, *both.values_list("pk", flat=True)
    )
    confirm_action(client, "cleanup", action, together.pk, reason="x")
    other = both.get(project_id="proj_2")
    shown = run_action(client, "cleanup", "undo_deletion", other.pk)
    assert 'value="Undo' not in shown


def test_known_project_asks_once_whether_its_deletion_can_be_undone(
    held: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stock = list[str](), known_projects.find_undoable

    def find(known: KnownProject) -> Cleanup | None:
        asked.append(known.pk)
        return stock(known)

    monkeypatch.setattr(known_projects, "find_undoable", find)
    shown = page_text(superuser_client().get(admin_url("knownproject", "change", "proj_1")))
    assert ">Undo deletion</a>" in shown and asked == ["proj_1"]


def test_files_that_are_kept_are_not_counted_as_erased(db: None) -> None:
    tomorrow = timezone.now() + timedelta(days=1)
    held = create_cleanup("pending", held_until=tomorrow, planned_at=timezone.now())
    for key, outcome in (("a", "to_delete"), ("b", "kept"), ("c", "kept")):
        add_item(held, key, outcome)
    asked = run_action(superuser_client(), "cleanup", "erase_deletion", held.pk)
    assert "Erase 1 file" in asked


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("undo_deletion", "Undid 2 deletions. The projects are back."),
        ("cancel_deletion", "Cancelled 2 cleanups. Files that are still in the bucket stay."),
        ("erase_deletion", "2 cleanups are deleting their files now."),
    ],
)
def test_several_decisions_are_reported_in_one_message(db: None, action: str, text: str) -> None:
    pks = [hold_deletion(f"proj_{number}").pk for number in (1, 2)]
    shown = confirm_action(superuser_client(), "cleanup", action, *pks, reason="because")
    assert text in shown and shown.count('class="success"') == 1
