"""Cleanups in the admin: one page that tells all, and what a person may ask for."""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.http import HttpRequest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from django_q.models import OrmQ

from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.admin.cleanups import CleanupAdmin
from storage_audit.cleanup.cleanup_text import PROJECT_EXISTS_TEXT
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import KnownProject, Project
from tests.admin_client import (
    admin_url,
    confirm_action,
    count_queries,
    is_page_of,
    page_text,
    read_totals,
    run_action,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import add_items, create_cleanup, create_row
from tests.dashboard.tiles import allowed
from tests.keys import ESCAPED, HOSTILE
from tests.real_bucket import Bucket

Status = Cleanup.Status
DECLARE = reverse("admin:storage_audit_declare_deleted")
FORCEABLE = {
    "blocked": ["Approve"],
    "planned": ["Run this plan"],
    "retrying": ["Retry now"],
    "failed": ["Retry now"],
}


@pytest.mark.parametrize(
    ("query", "is_shown"),
    [
        ("", False),
        ("?q=proj_gone", False),
        ("?project_id=proj_gone", False),
        ("?follow_up_checks=shown", True),
        ("?status=pending", True),
        ("?trigger=follow_up", True),
    ],
)
def test_follow_up_checks_stand_above_no_deletion_unless_asked_for(
    db: None, query: str, is_shown: bool
) -> None:
    deletion = create_cleanup("clean")
    check = create_cleanup(parent=deletion)
    Cleanup.objects.filter(pk=check.pk).update(trigger="follow_up")
    client = superuser_client()
    shown = client.get(admin_url("cleanup", "changelist") + query).context["cl"].result_list
    assert (check in shown) == is_shown
    assert is_shown or list(shown) == [deletion]
    export = client.get(admin_url("cleanup", "export", "csv") + query)
    assert str(check.pk) in export.getvalue().decode(), "a file that is kept lacks it"
    assert listed(client, str(check.pk)) == [check]


def listed(client: Client, text: str) -> list[Cleanup]:
    return list(client.get(admin_url("cleanup"), {"q": text}).context["cl"].result_list)


def test_search_takes_the_beginning_of_a_deletion_id(db: None) -> None:
    cleanup = create_cleanup("clean", pk=UUID("5f3e1a7cb0214c0e9f0d8a6b7c5d4e3f"))
    create_cleanup("clean", pk=UUID("5f3e1a7db0214c0e9f0d8a6b7c5d4e3f"))
    client = superuser_client()
    for text in ("5f3e1a7c", "5F3E1A7C-b021", " 5f3e1a7c-", str(cleanup.pk), cleanup.pk.hex):
        assert listed(client, text) == [cleanup], text
    for text in ("5f3e1a7", "5f3e1a7e", "5f3e1a7cx", f"{cleanup.pk}0", "0x5f3e1a7c"):
        assert listed(client, text) == [], text


@pytest.mark.database
def test_search_by_a_deletion_id_reads_indexes_only(db: None) -> None:
    found = CleanupAdmin(Cleanup, admin.site).get_search_results
    rows, _duplicates = found(HttpRequest(), Cleanup.objects.order_by(), "5f3e1a7c")
    if connection.vendor == "postgresql":
        # It would read the whole of a small table.
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
    plan = rows.explain().upper()
    assert "INDEX" in plan and "SCAN STORAGE_AUDIT" not in plan and "SEQ SCAN" not in plan


def test_list_links_to_the_bulk_jobs(db: None) -> None:
    client = staff_client()
    assert f'<a href="{admin_url("bulkjob")}">Bulk jobs</a>' in page_text(
        client.get(admin_url("cleanup"))
    )
    assert "<title>Bulk jobs |" in page_text(client.get(admin_url("bulkjob")))


ANSWERS = {
    "planned": "Preview. Nothing was deleted.",
    "pending": "Waiting to start.",
    "running": "Running now.",
    "clean": "Clean. All 2 files are gone, confirmed 2 Dec 2026, 20:49 UTC.",
    "clean_with_kept": "Clean, some kept. 2 files are gone. 1 file is kept.",
    "retrying": "Retrying. The last try did not succeed.",
    "differs": "3 files are not as expected.",
    "failed": "Failed. Some files may still be in the bucket.",
    "blocked": "Needs approval. No file is deleted until a person decides.",
    "superseded": "Superseded. A new project with this ID",
    "undone": "Undone. The project is back",
    "cancelled": "Cancelled. Files that were not deleted by then stay",
}
ENDED_AT = datetime(2026, 12, 2, 20, 49, tzinfo=UTC)
FIGURES: dict[str, dict[str, Any]] = {
    "clean": {"found": 2, "deleted": 1, "already_gone": 1, "finished_at": ENDED_AT},
    "clean_with_kept": {"found": 3, "deleted": 2, "kept": 1},
    "differs": {"found": 3, "failed": 3},
}


@pytest.mark.parametrize("status", Status.values)
def test_page_says_what_each_status_means_and_offers_what_fits(db: None, status: str) -> None:
    shown = page_text(
        superuser_client().get(url_of_cleanup(create_cleanup(status, **FIGURES.get(status, {}))))
    )
    assert f'<h2 id="audit-answer">{ANSWERS[status]}' in shown
    assert "Verify cleanup" in shown
    offered = re.findall('value="((?:Approve|Run|Retry)[^"]*)"', shown)
    assert offered == FORCEABLE.get(status, [])


@pytest.mark.parametrize(
    ("permission", "offered"), [("verify_cleanup", "Verify"), ("force_cleanup", "Retry now")]
)
def test_page_offers_only_what_is_permitted(db: None, permission: str, offered: str) -> None:
    shown = page_text(staff_client(permission).get(url_of_cleanup(create_cleanup("failed"))))
    assert re.findall('value="(Verify|Retry now)[^"]*">', shown) == [offered]
    assert "Ask an administrator to add you to the group" in shown


def test_page_tells_a_real_deletion_from_the_request_to_the_proof(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_x_s1_media.mp4")
    Project.objects.create(pk="proj_1_x")
    client = superuser_client()
    client.post(admin_url("project", "delete", "proj_1"), {"post": "yes"})
    cleanup = runner.run_to_end(Cleanup.objects.get().pk)
    shown = page_text(client.get(url_of_cleanup(cleanup)))
    assert read_totals(shown)["found"] == ("2", "11 bytes")
    assert read_totals(shown)["deleted"] == ("1", "4 bytes")
    assert read_totals(shown)["kept"] == ("1", "7 bytes")
    assert (
        "<strong>1 kept (7 bytes):</strong> The name also fits an existing project: proj_1_x."
        in shown
    )
    assert shown.count("Follow-up check</a>") == 3
    assert "Clean, some kept. 1 file is gone. 1 file is kept." in shown
    shown = page_text(client.get(f"{url_of_cleanup(cleanup)}?tab=details"))
    assert cleanup.plan_digest in shown
    assert "web, 127.0.0.1" in shown
    shown = page_text(client.get(f"{url_of_cleanup(cleanup)}?tab=timeline"))
    assert "Listed the bucket to the end" in shown


def test_page_of_a_dry_run_says_what_would_go_and_whether_a_limit_would_stop_it(
    bucket: Bucket,
) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4")
    cleanup = runner.run_to_end(requests.request_preview("proj_1")[0].pk)
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert "Preview. Nothing was deleted." in shown
    assert read_totals(shown)["to_delete"] == ("2", "11 bytes")
    assert "No safety limit would stop this plan." in shown
    Cleanup.objects.filter(pk=cleanup.pk).update(message="2 are more than 1.")
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert "A safety limit would stop this plan: 2 are more than 1." in shown


def test_page_of_a_verification_tells_what_it_found_and_forces_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4")
    check = runner.run_to_end(requests.request_verification("proj_1")[0].pk)
    shown = page_text(superuser_client().get(url_of_cleanup(check)))
    assert "1 file is not as expected." in shown
    assert "The verification changed nothing." in shown
    timeline = page_text(superuser_client().get(f"{url_of_cleanup(check)}?tab=timeline"))
    assert "1 as expected, 0 missing, 1 untracked" in timeline
    assert "Found 2 files to compare." in timeline
    assert "Different" in shown
    content = shown.split('id="content-main"')[1]
    assert not re.search("(?i)>(to be deleted|failed)", content)
    assert not re.search('value="(Force-delete|Retry|Approve|Run)', shown)


def test_running_cleanup_shows_the_counts_of_its_items(db: None) -> None:
    cleanup = create_cleanup("running")
    add_items(cleanup, 3)
    add_items(cleanup, 2, outcome="deleted")
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert read_totals(shown)["found"] == ("5", "50 bytes")
    assert read_totals(shown)["to_delete"] == ("3", "30 bytes")


def test_page_shows_hostile_keys_answers_and_data_escaped(db: None) -> None:
    cleanup = create_cleanup("running", project_id=HOSTILE)
    add_items(cleanup, 1, key=HOSTILE, reason=HOSTILE, store_answer=HOSTILE)
    cleanup.record("plan", HOSTILE, keys=[HOSTILE])
    client = superuser_client()
    url = url_of_cleanup(cleanup)
    for each in (url, f"{url}?tab=timeline", f"{url}?tab=details", admin_url("cleanup")):
        shown = page_text(client.get(each))
        assert ESCAPED in shown
        assert "<script>alert" not in shown


def test_page_has_no_script_and_no_style_of_its_own(db: None) -> None:
    content = page_text(superuser_client().get(url_of_cleanup(create_cleanup("failed")))).split(
        'id="content-main"'
    )[1]
    assert " style=" not in content
    assert "<style" not in content
    assert not re.search("<script>|<script(?![^>]*src=)", content)


def test_page_and_list_cost_the_same_for_few_and_many(db: None) -> None:
    client, cleanup = superuser_client(), create_cleanup("clean")
    add_items(cleanup, 1)
    url = url_of_cleanup(cleanup)
    pages = (url, f"{url}?tab=timeline", f"{url}?tab=details", admin_url("cleanup"))
    few = [count_queries(client, url) for url in pages]
    add_items(cleanup, 150)
    for n in range(50):
        create_cleanup(project_id=f"proj_{n}", parent=cleanup)
        cleanup.record("plan", "again")
    assert [count_queries(client, url) for url in pages] == few


def test_timeline_ends_with_the_latest_events(db: None) -> None:
    cleanup = create_cleanup("running")
    for n in range(210):
        cleanup.record("plan", f"event {n}.")
    shown = page_text(superuser_client().get(f"{url_of_cleanup(cleanup)}?tab=timeline"))
    assert "event 9." not in shown
    assert "event 10." in shown and "event 209." in shown


def test_cleanups_are_read_only(db: None) -> None:
    cleanup, client = create_cleanup("failed"), superuser_client()
    assert client.post(url_of_cleanup(cleanup), {"status": "clean"}).status_code == 403
    assert client.post(admin_url("cleanup", "add"), {}).status_code == 403
    delete = admin_url("cleanup", "delete", cleanup.pk)
    assert client.post(delete, {"post": "yes"}).status_code == 403
    confirm_action(client, "cleanup", "delete_selected", cleanup.pk)
    assert Cleanup.objects.get().status == "failed"


def test_search_finds_by_project_and_by_deletion_id(db: None) -> None:
    cleanup, client = create_cleanup(), superuser_client()
    create_cleanup(project_id="proj_other")
    for term in ("proj_go", str(cleanup.pk)):
        shown = page_text(client.get(admin_url("cleanup"), {"q": term}))
        assert "proj_gone" in shown and "proj_other" not in shown


def test_question_before_a_declaration_shows_what_is_recorded(db: None) -> None:
    for number in range(11):
        create_row(f"a/{number:02}<b>", project_id="proj_gone", size=10)
    url = reverse("admin:storage_audit_declare_deleted")
    shown = page_text(superuser_client().get(url, {"project_id": "proj_gone"}))
    assert "Recorded for proj_gone: 11 files, 110" in shown
    sample = shown.partition('<ul class="audit-sample">')[2].partition("</ul>")[0]
    assert sample.count("<li>") == 10 and "&lt;b&gt;" in sample and "<b>" not in sample
    assert "Show all 11 files" in shown
    other = page_text(superuser_client().get(url, {"project_id": "proj_other"}))
    assert "No file is recorded for proj_other." in other
    nobody = page_text(superuser_client().get(url))
    assert 'method="get"' in nobody and "The same ID again" not in nobody
    hidden = page_text(allowed("force_cleanup").get(url, {"project_id": "proj_gone"}))
    assert "11 files" not in hidden and "a/0" not in hidden


@pytest.mark.parametrize("action", ["force_delete", "cancel_deletion"])
def test_cleanups_that_a_confirmed_action_leaves_out_are_counted_in_one_message(
    db: None, action: str
) -> None:
    blocked = create_cleanup("blocked", project_id="proj_1", project_deleted_at=timezone.now())
    others = [create_cleanup("clean", project_id=f"proj_{n}") for n in range(2, 6)]
    pks = [each.pk for each in (blocked, *others)]
    shown = confirm_action(superuser_client(), "cleanup", action, *pks)
    assert shown.count('class="error"') == 1
    assert "4 of 5 are left out: " in shown
    blocked.refresh_from_db()
    assert blocked.status != "blocked"


def test_verification_is_queued_linked_and_logged(transactional_db: None) -> None:
    cleanup = create_cleanup("clean")
    shown = run_action(superuser_client(), "cleanup", "verify_cleanup", cleanup.pk)
    check = cleanup.children.get()
    assert is_page_of(check, shown)
    assert "A verification is queued." in shown
    assert (check.kind, check.requested_by) == ("verify", "anna")
    assert str(check.pk) in LogEntry.objects.get().change_message
    assert OrmQ.objects.count() == 1


@pytest.mark.parametrize("status", FORCEABLE)
def test_approval_asks_first(db: None, status: str) -> None:
    cleanup = create_cleanup(status)
    shown = run_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    lifts = status in ("planned", "blocked")
    assert ("No safety limit stops this deletion." in shown) == lifts
    assert ("Safety limits still apply." in shown) == (not lifts)
    assert Cleanup.objects.get().status == status


@pytest.mark.parametrize(
    ("status", "amount"),
    [
        ("planned", "2 files, 20"),
        ("blocked", "2 files, 20"),
        ("failed", "3 files, 30"),
    ],
)
def test_approval_says_how_much_it_would_delete(db: None, status: str, amount: str) -> None:
    cleanup = create_cleanup(status, planned_at=timezone.now())
    for count, outcome in ((2, "to_delete"), (1, "failed"), (4, "kept")):
        add_items(cleanup, count, outcome=outcome)
    unplanned = create_cleanup("blocked")
    add_items(unplanned, 1)
    client = superuser_client()
    shown = run_action(client, "cleanup", "force_delete", cleanup.pk, unplanned.pk)
    assert f"</span> {amount} bytes</td>" in shown and "</span> –</td>" in shown
    assert 'value="Delete' not in shown, "nobody knows what the other one deletes"
    alone = run_action(client, "cleanup", "force_delete", cleanup.pk)
    assert f'value="Delete {amount} bytes"' in alone
    verbs = {"planned": "Run 1 plan", "blocked": "Approve 1 cleanup", "failed": "Retry 1 cleanup"}
    assert f"<h1>{verbs[status]}?</h1>" in alone


def test_mixed_selection_says_what_happens_to_how_many(db: None) -> None:
    pks = [create_cleanup(each).pk for each in ("blocked", "blocked", "planned", "failed", "clean")]
    shown = run_action(superuser_client(), "cleanup", "force_delete", *pks)
    words = "Approve 2 cleanups, run 1 plan, retry 1 cleanup"
    assert f"<h1>{words}?</h1>" in shown and f'value="{words}"' in shown
    assert "Safety limits apply to the retries only." in shown


@pytest.mark.parametrize("status", FORCEABLE)
def test_approval_or_retry_starts_it_again(transactional_db: None, status: str) -> None:
    cleanup = create_cleanup(status)
    shown = confirm_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    cleanup.refresh_from_db()
    assert cleanup.status == "pending"
    assert is_page_of(cleanup, shown)
    assert "Queued: a worker takes it next." in shown
    assert OrmQ.objects.count() == 1
    assert LogEntry.objects.get().is_change()


def test_approval_refuses_what_is_over_and_does_the_rest(transactional_db: None) -> None:
    over, blocked = create_cleanup("clean"), create_cleanup("blocked", project_id="proj_2")
    asked = run_action(superuser_client(), "cleanup", "force_delete", over.pk, blocked.pk)
    assert "1 of 2 is left out: Nothing to approve or to retry." in asked
    assert str(over.pk) not in asked.split('<table class="audit-items">')[1].split("</table>")[0]
    shown = confirm_action(superuser_client(), "cleanup", "force_delete", over.pk, blocked.pk)
    assert f"cleanup {over.pk}: its status is clean." in shown
    over.refresh_from_db()
    blocked.refresh_from_db()
    assert (over.status, blocked.status) == ("clean", "pending")


def test_approval_shows_ten_files_and_links_to_all(db: None) -> None:
    cleanup = create_cleanup("blocked", planned_at=timezone.now())
    add_items(cleanup, 12)
    shown = run_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    listed = shown.split('<ul class="audit-sample">')[1].split("</ul>")[0]
    assert listed.count("<li>") == 10
    assert f'<a href="{url_of_cleanup(cleanup)}?tab=files">Show all 12 files</a>' in shown


def test_plan_of_a_live_project_is_neither_offered_nor_run(db: None) -> None:
    Project.objects.create(pk="proj_1")
    cleanup = create_cleanup("planned", project_id="proj_1", dry_run=True)
    shown = page_text(superuser_client().get(admin_url("cleanup", "change", cleanup.pk)))
    assert 'value="Run this plan' not in shown
    assert escape(str(PROJECT_EXISTS_TEXT)) in shown
    shown = run_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    assert escape(str(PROJECT_EXISTS_TEXT)) in shown
    shown = confirm_action(superuser_client(), "cleanup", "force_delete", cleanup.pk)
    assert "Project proj_1 exists." in shown
    cleanup.refresh_from_db()
    assert cleanup.status == "planned"


@pytest.mark.parametrize(
    ("action", "permission"),
    [("verify_cleanup", "verify_cleanup"), ("force_delete", "force_cleanup")],
)
def test_each_action_needs_its_own_permission(db: None, action: str, permission: str) -> None:
    cleanup = create_cleanup("blocked")
    others = {"dry_run_cleanup", "verify_cleanup", "force_cleanup"} - {permission}
    confirm_action(staff_client(*others, "delete_project"), "cleanup", action, cleanup.pk)
    assert Cleanup.objects.get().status == "blocked"


@pytest.mark.parametrize(
    ("action", "permission"),
    [("verify_cleanup", "verify_cleanup"), ("force_delete", "force_cleanup")],
)
def test_each_permission_alone_suffices(db: None, action: str, permission: str) -> None:
    cleanup = create_cleanup("blocked")
    confirm_action(staff_client(permission), "cleanup", action, cleanup.pk)
    assert Cleanup.objects.filter(status="pending").exists()


def test_getting_any_url_changes_nothing(db: None) -> None:
    cleanup, client = create_cleanup("blocked"), superuser_client()
    data = {"action": "force_delete", "_selected_action": str(cleanup.pk), "post": "yes"}
    for url in (admin_url("cleanup"), url_of_cleanup(cleanup)):
        client.get(url, data)
    client.get(DECLARE, {"project_id": "proj_old", "repeated": "proj_old"})
    assert Cleanup.objects.get().status == "blocked"


def test_files_of_a_project_deleted_earlier_can_be_cleaned_up(bucket: Bucket) -> None:
    bucket.put("projects/proj_old/scenes/s1/media/a.mp4")
    client = superuser_client()
    assert DECLARE in page_text(client.get(admin_url("cleanup")))
    typed = {"project_id": "proj_old", "repeated": "proj_old"}
    shown = page_text(client.post(DECLARE, typed, follow=True))
    cleanup = Cleanup.objects.get()
    assert is_page_of(cleanup, shown)
    assert LogEntry.objects.get().is_addition()
    assert KnownProject.objects.get().evidence == "declared"
    assert OrmQ.objects.count() == 1
    assert runner.run_to_end(cleanup.pk).status == "clean"
    assert bucket.keys() == set()


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ("proj_old", "proj_odl", "This is not the ID that you typed above."),
        ("nonsense!", "nonsense!", "is not a project ID"),
        ("proj_alive", "proj_alive", "Project proj_alive exists."),
        ("", "", "This field is required."),
    ],
)
def test_declaration_is_refused(db: None, first: str, second: str, complaint: str) -> None:
    Project.objects.create(pk="proj_alive")
    shown = page_text(superuser_client().post(DECLARE, {"project_id": first, "repeated": second}))
    assert complaint in shown
    assert not Cleanup.objects.exists()


def test_declaration_needs_the_permission_to_force(db: None) -> None:
    client = staff_client("dry_run_cleanup", "verify_cleanup", "delete_project")
    typed = {"project_id": "proj_old", "repeated": "proj_old"}
    assert client.post(DECLARE, typed).status_code == 403
    assert DECLARE not in page_text(client.get(admin_url("cleanup")))
    assert not Cleanup.objects.exists()


def test_follow_up_shows_when_it_is_due_and_what_it_follows(db: None) -> None:
    parent = create_cleanup("clean")
    child = create_cleanup(parent=parent, next_attempt_at=timezone.now())
    client = superuser_client()
    assert url_of_cleanup(child) in page_text(client.get(url_of_cleanup(parent)))
    assert url_of_cleanup(parent) in page_text(client.get(url_of_cleanup(child)))


def create_verification(**values: Any) -> Cleanup:
    over = {"kind": "verify", "status": "differs", "next_attempt_at": None, **values}
    return create_cleanup(over.pop("status"), found=11, failed=1, already_gone=10, **over)


def test_the_list_has_words_for_verifications(db: None) -> None:
    create_verification(project_id="proj_look")
    shown = page_text(superuser_client().get(admin_url("cleanup")))
    assert "10 confirmed gone, 1 different" in shown
    create_cleanup("retrying", found=11, failed=1, already_gone=10)
    shown = page_text(superuser_client().get(admin_url("cleanup")))
    assert "10 already gone, 1 failed" in shown


RETRYING = '<span class="audit-status audit-retrying">retrying</span>'
DIFFERS = '<span class="audit-status audit-differs">differs</span>'


def test_the_badge_of_a_finished_verification_says_that_it_found_differences(db: None) -> None:
    parent = create_cleanup("clean")
    over, client = create_verification(parent=parent), superuser_client()
    for url in (admin_url("cleanup"), url_of_cleanup(parent)):
        shown = page_text(client.get(url))
        assert DIFFERS in shown and RETRYING not in shown
    shown = page_text(client.get(url_of_cleanup(over)))
    assert "not as expected." in shown and "Retrying" not in shown
    asked = run_action(client, "cleanup", "force_delete", over.pk)
    assert "Nothing to approve or to retry." in asked and RETRYING not in asked


@pytest.mark.parametrize("values", [{"kind": "project"}, {"next_attempt_at": timezone.now()}])
def test_failed_deletion_is_shown_as_retrying(db: None, values: dict[str, Any]) -> None:
    cleanup = create_verification(status="retrying", **values)
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert "Retrying. " in shown and "not as expected" not in shown


def test_list_says_the_result_in_words_and_finds_what_a_person_asked_for(db: None) -> None:
    figures = {"found": 12, "deleted": 10, "kept": 2}
    mine, other = create_cleanup("clean_with_kept", **figures), create_cleanup("clean")
    for each, user in ((mine, "anna"), (other, "<b>ben</b>")):
        Cleanup.objects.filter(pk=each.pk).update(requested_by=user)
    client, url = superuser_client(), admin_url("cleanup")
    shown = page_text(client.get(url))
    assert "10 deleted, 2 kept" in shown and "no files found" in shown and "<b>ben" not in shown
    rows = client.get(f"{url}?requested_by=anna").context["cl"].result_list
    assert [each.pk for each in rows] == [mine.pk]
    assert 'href="?requested_by=%3Cb%3Eben%3C%2Fb%3E"' in shown


def test_blocked_cleanups_say_what_a_person_would_decide(db: None) -> None:
    words = {
        "project": "needs approval",
        "verify": "verify again",
        "vanished": "needs a decision",
    }
    for kind, word in words.items():
        assert str(create_cleanup("blocked", kind=kind).get_status_display()) == word
