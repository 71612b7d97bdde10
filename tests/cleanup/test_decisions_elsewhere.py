"""Undo, Cancel, Erase now and Clean up again over HTTP and from a shell."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.alerts import alert_rules, lateness
from storage_audit.certificate import evidence
from storage_audit.cleanup.models import Cleanup
from storage_audit.dashboard import daily_figures
from storage_audit.display_formats import format_utc
from storage_audit.models import Project
from tests.api_client import assert_problem, client_with_token, create_staff, read_json
from tests.held import delete_held, grant_grace
from tests.promises import Status, create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files
from tests.run_command import run_command

pytestmark = pytest.mark.database
HOUR = timedelta(hours=1)


@pytest.fixture
def held(bucket: Bucket, settings: Settings) -> Cleanup:
    grant_grace(settings)
    create_projects("proj_1")
    put_files(bucket, 3)
    return delete_held()


def decide(cleanup: Cleanup, decision: str, reason: str = "asked for it") -> Any:
    path = f"/deletions/{cleanup.pk}/{decision}"
    return client_with_token().request("POST", path, f'{{"reason": "{reason}"}}')


# The API


def test_held_deletion_says_until_when(held: Cleanup) -> None:
    shown = client_with_token().get(f"/deletions/{held.pk}")
    assert shown["status"] == "pending" and not shown["over"]
    assert shown["held_until"] and not shown["first_request_at"]
    assert held.held_until
    assert shown["meaning"][0].startswith(f"Held until {format_utc(held.held_until)}.")


def test_undo_brings_the_project_back(held: Cleanup, bucket: Bucket) -> None:
    undone = read_json(decide(held, "undo", "wrong one"), 200)
    assert (undone["project_id"], undone["left_out"]) == ("proj_1", [])
    assert sum(undone["restored"].values()) >= 1
    assert Project.objects.filter(pk="proj_1").exists()
    assert len(bucket.keys()) == 3
    shown = client_with_token().get(f"/deletions/{held.pk}")
    assert (shown["status"], shown["over"], shown["decision_reason"]) == (
        "undone",
        True,
        "wrong one",
    )
    assert shown["decided_by"] and shown["decided_at"]
    assert "wrong one" in LogEntry.objects.latest("pk").change_message


def test_what_was_sent_cannot_be_undone(held: Cleanup) -> None:
    Cleanup.objects.filter(pk=held.pk).update(first_request_at=timezone.now())
    assert_problem(decide(held, "undo"), 409, "wrong-state")
    assert not Project.objects.exists()


def test_cancel_keeps_the_files_until_cleaned_up_again(held: Cleanup, bucket: Bucket) -> None:
    assert read_json(decide(held, "cancel"), 200)["deletions"] == []
    assert_problem(decide(held, "cancel"), 409, "wrong-state")
    assert_problem(decide(held, "erase"), 409, "wrong-state")
    assert len(bucket.keys()) == 3
    [again] = read_json(decide(held, "clean-up-again"), 200)["deletions"]
    assert_problem(decide(held, "clean-up-again"), 409, "wrong-state")
    assert run_until_idle(Cleanup.objects.get(pk=again["deletion_id"])).status == Status.CLEAN


@pytest.mark.parametrize("decision", ["erase", "clean-up-again"])
def test_what_cannot_be_undone_needs_a_reason(held: Cleanup, decision: str) -> None:
    assert_problem(decide(held, decision, ""), 422, "invalid-values")
    assert_problem(decide(held, decision, " "), 409, "wrong-state")
    assert held.is_held()


@pytest.mark.parametrize("decision", ["undo", "cancel", "erase", "clean-up-again"])
def test_reason_that_no_table_holds_is_refused(held: Cleanup, decision: str) -> None:
    assert_problem(decide(held, decision, r"a\u0000b"), 422, "invalid-values")
    assert held.is_held()


def test_erase_ends_the_hold(held: Cleanup, bucket: Bucket) -> None:
    [due] = read_json(decide(held, "erase"), 200)["deletions"]
    assert due["deletion_id"] == str(held.pk)
    assert run_until_idle(held).status == Status.CLEAN
    assert not bucket.keys()


def test_second_delete_says_that_a_person_keeps_the_files(held: Cleanup, bucket: Bucket) -> None:
    decide(held, "cancel")
    come = client_with_token()
    again = read_json(come.request("DELETE", "/projects/proj_1"), 202)
    assert "its files are kept" in again["message"]
    answer = come.request("DELETE", "/projects/proj_1?erase=now&reason=asked")
    assert_problem(answer, 409, "wrong-state")
    assert len(bucket.keys()) == 3


def test_erase_after_the_end_changes_nothing(held: Cleanup) -> None:
    read_json(decide(held, "undo", "wrong one"), 200)
    assert_problem(decide(held, "erase"), 409, "wrong-state")
    held.refresh_from_db()
    assert (held.status, held.decision_reason) == (Status.UNDONE, "wrong one")


def test_second_delete_speeds_nothing_up(held: Cleanup, bucket: Bucket) -> None:
    come = client_with_token()
    again = read_json(come.request("DELETE", "/projects/proj_1"), 202)
    assert again["deletion_id"] == str(held.pk)
    assert "you can undo the deletion" in again["message"]
    assert run_until_idle(held).is_held()
    assert len(bucket.keys()) == 3


def test_second_delete_with_erase_ends_the_hold(held: Cleanup, bucket: Bucket) -> None:
    come = client_with_token()
    path = "/projects/proj_1?erase=now&reason=asked"
    again = read_json(come.request("DELETE", path), 202)
    assert again["deletion_id"] == str(held.pk)
    assert run_until_idle(held).status == Status.CLEAN
    assert not bucket.keys()


def test_delete_with_erase_is_never_held(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    put_files(bucket, 1)
    who = client_with_token(create_staff("delete_project", "erase_cleanup"))
    path = "/projects/proj_1?erase=now"
    assert_problem(who.request("DELETE", path), 409, "refused")
    assert Project.objects.exists()
    read_json(who.request("DELETE", f"{path}&reason=asked"), 202)
    cleanup = Cleanup.objects.get()
    assert (cleanup.held_until, cleanup.decision_reason) == (None, "asked")
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_erase_of_a_project_needs_its_permission(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    who = client_with_token(create_staff("delete_project"))
    answer = who.request("DELETE", "/projects/proj_1?erase=now&reason=asked")
    assert_problem(answer, 403, "forbidden")
    assert Project.objects.exists()


# Commands


@pytest.mark.parametrize("by", ["deletion", "project"])
def test_undo_deletion_brings_the_project_back(held: Cleanup, by: str) -> None:
    name = str(held.pk) if by == "deletion" else "proj_1"
    out, _err, code = run_command("undo_deletion", name, "--reason", "wrong one")
    assert code == 0 and "project proj_1 is restored" in out
    assert Project.objects.filter(pk="proj_1").exists()
    held.refresh_from_db()
    assert (held.status, held.decision_reason) == (Status.UNDONE, "wrong one")


def test_undo_deletion_names_the_deletion_that_it_cannot_undo(held: Cleanup) -> None:
    Cleanup.objects.filter(pk=held.pk).update(first_request_at=timezone.now())
    _out, err, code = run_command("undo_deletion", "proj_1")
    assert code == 1 and "Deletion ID was not undone." in err
    _out, err, code = run_command("undo_deletion", "proj_9")
    assert code == 2 and "Neither a deletion nor a deleted project has the ID proj_9." in err


def test_cancel_cleanup_keeps_the_files(held: Cleanup, bucket: Bucket) -> None:
    out, _err, code = run_command("cancel_cleanup", str(held.pk), "--reason", "a lawsuit")
    assert code == 0 and "Cleanup ID is cancelled." in out
    _out, err, code = run_command("cancel_cleanup", str(held.pk), "--reason", "again")
    assert code == 1 and "Cleanup ID was not cancelled." in err
    assert len(bucket.keys()) == 3


def test_erase_cleanup_ends_the_hold(held: Cleanup, bucket: Bucket) -> None:
    out, _err, code = run_command("erase_cleanup", str(held.pk), "--reason", "asked")
    assert code == 0 and "queued" in out
    assert run_until_idle(held).status == Status.CLEAN
    _out, err, code = run_command("erase_cleanup", str(held.pk), "--reason", "asked")
    assert code == 1 and "Cleanup ID is not held" in err


def test_cleanup_project_deletes_the_files_of_a_cancelled_cleanup_again(
    held: Cleanup, bucket: Bucket
) -> None:
    again = ("cleanup_project", "proj_1", "--again")
    _out, err, code = run_command(*again, "too early", "--sync")
    assert code == 2 and "No cleanup of project proj_1 was cancelled." in err
    run_command("cancel_cleanup", str(held.pk), "--reason", "a lawsuit")
    _out, err, code = run_command("cleanup_project", "proj_1", "--sync")
    assert code == 2 and bucket.keys()
    _out, err, code = run_command(*again, "x", "--declare-deleted", "--sync")
    assert code == 2 and "Leave out the other options" in err
    _out, err, code = run_command(*again, " ", "--sync")
    assert code == 2 and "Enter a reason" in err
    out, _err, code = run_command(*again, "the lawsuit is over", "--sync")
    assert code == 0 and not bucket.keys(), out


@pytest.mark.parametrize("command", ["cancel_cleanup", "erase_cleanup"])
def test_decision_needs_a_known_deletion_and_a_reason(held: Cleanup, command: str) -> None:
    assert run_command(command, str(held.pk))[2] == 2
    _out, err, code = run_command(command, "9b2d61f0-3c8e-4f57-a1d4-6e0b7c25f983", "--reason", "x")
    assert code == 2 and "There is no deletion ID" in err


def test_commands_say_that_it_is_held(held: Cleanup) -> None:
    assert held.held_until
    text = f"Held until {format_utc(held.held_until)}"
    out, _err, code = run_command("deletion_log", str(held.pk), "--follow")
    assert code == 0 and f"\n{text}\n" in out
    out, _err, code = run_command("cleanup_project", "proj_1", "--sync")
    assert code == 1 and text in out and "manage.py undo_deletion ID" in out


# What counts time


def test_held_deletion_is_not_late_or_overdue(held: Cleanup) -> None:
    long_ago = timezone.now() - timedelta(days=2)
    Cleanup.objects.filter(pk=held.pk).update(created_at=long_ago)
    assert not alert_rules.find_overdue(timezone.now() - HOUR).exists()
    assert daily_figures.count_open_deletions() == (0, None)
    assert lateness.idle_cleanups() is None
    Cleanup.objects.filter(pk=held.pk).update(held_until=timezone.now() - 2 * HOUR)
    assert alert_rules.find_overdue(timezone.now() - HOUR).exists()
    assert not alert_rules.find_overdue(timezone.now() - 3 * HOUR).exists()
    oldest = daily_figures.count_open_deletions().oldest
    assert oldest and oldest > timezone.now() - 3 * HOUR


def test_held_deletion_without_files_is_not_pruned(bucket: Bucket, settings: Settings) -> None:
    grant_grace(settings)
    create_projects("proj_1")
    cleanup = delete_held()
    assert cleanup.status == Status.CLEAN
    cleanup.children.all().delete()
    assert not Cleanup.objects.prunable(timezone.now() + HOUR).exists()
    Cleanup.objects.update(held_until=timezone.now() - HOUR)
    assert Cleanup.objects.prunable(timezone.now() + HOUR).exists()


@pytest.mark.parametrize("decision", ["undo", "cancel"])
def test_deletion_that_deleted_nothing_has_no_certificate(held: Cleanup, decision: str) -> None:
    read_json(decide(held, decision), 200)
    held.refresh_from_db()
    assert ("undone" if decision == "undo" else "cancelled") in evidence.why_no_certificate(held)
