"""What staff decide about findings in the admin: asked first, done, and told with reasons."""

import re
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_q.models import OrmQ

from storage_audit import display_formats
from storage_audit.bucket import multipart
from storage_audit.cleanup.models import Cleanup
from storage_audit.concurrency import acquire_slot
from storage_audit.conf import conf
from storage_audit.findings import action_result
from storage_audit.findings.actions import ACTIONS
from storage_audit.findings.models import Finding
from storage_audit.models import Project, R2Object
from tests.admin_client import (
    admin_url,
    confirm_action,
    confirmation_fields,
    is_page_of,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import create_findings, create_orphans, create_unlisted_findings, read_states
from tests.keys import ESCAPED, FOLDER, HOSTILE, KEY, OTHER_KEY
from tests.promises import create_projects, run_until_idle
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("young_orphans_may_go")

ACROSS = {"select_across": "1", "index": "0"}
OLD, NEW = (f"projects/{name}/scenes/s1/media/a.mp4" for name in ("proj_proj_1", "proj_1"))
# What has to be typed.
TYPED = {"ignore": {"note": "ours"}, "assign": {"project_id": "proj_1"}}
ASKING = ["ignore", "delete_objects", "assign", "track", "untrack", "rename", "abort_uploads"]
CHECKING_ACTIONS = ["assign", "track", "untrack", "rename", "abort_uploads"]


def pks(found: list[Finding]) -> list[int]:
    return [one.pk for one in found]


def decide(action: str, found: list[Finding], **data: Any) -> str:
    return confirm_action(
        superuser_client(), "finding", action, *pks(found), **{**TYPED.get(action, {}), **data}
    )


# Asking first


@pytest.mark.parametrize("action", ASKING)
def test_a_page_asks_and_nothing_is_done_before(bucket: Bucket, action: str) -> None:
    found = create_orphans(bucket, KEY)
    shown = run_action(superuser_client(), "finding", action, *pks(found))
    assert f'value="{action}"' in shown
    assert read_states() == {KEY: "open"} and not Cleanup.objects.exists()
    assert bucket.keys() == {KEY}


@pytest.mark.parametrize("action", [*ASKING, "reopen", "preview_deletion"])
def test_an_address_does_nothing(bucket: Bucket, action: str) -> None:
    [one] = create_orphans(bucket, KEY, state="ignored" if action == "reopen" else "open")
    data: dict[str, Any] = {"action": action, "post": "yes", "figures": "1-7"}
    data |= {"_selected_action": one.pk, **TYPED.get(action, {})}
    page_text(superuser_client().get(admin_url("finding"), data, follow=True))
    assert read_states() == {KEY: one.state} and not Cleanup.objects.exists()


@pytest.mark.parametrize("action", ASKING)
def test_hostile_keys_are_escaped_and_visible(
    bucket: Bucket, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([[]]))
    kind = {"abort_uploads": "unfinished"}.get(action, "unrecognised")
    found = create_findings(bucket, HOSTILE, kind=kind, state="resolved", note=HOSTILE)
    for shown in (
        run_action(superuser_client(), "finding", action, *pks(found)),
        decide(action, found),
    ):
        assert ESCAPED in shown
        assert "<script>alert" not in shown and "\u202e" not in shown


@pytest.mark.parametrize("action", ["ignore", "assign", "track", "untrack"])
def test_of_many_the_first_are_shown_and_the_rest_counted(db: None, action: str) -> None:
    found = create_unlisted_findings(*(f"{n:02}" for n in range(25)))
    shown = run_action(superuser_client(), "finding", action, *pks(found))
    assert all(f">{n:02}</code>" in shown for n in range(display_formats.MAX_LINES_SHOWN))
    assert ">20</code>" not in shown and "… and 5 more" in shown


@pytest.mark.parametrize(
    ("facts", "fitting"),
    [
        ({"kind": "orphaned"}, {"ignore", "preview_deletion", "delete_objects", "assign"}),
        ({"kind": "missing"}, {"ignore", "untrack"}),
        ({"kind": "untracked"}, {"ignore", "assign", "track"}),
        ({"kind": "misnamed"}, {"ignore", "rename"}),
        ({"kind": "unfinished"}, {"ignore", "abort_uploads"}),
        ({"kind": "missing", "state": "ignored"}, {"reopen"}),
        ({"kind": "missing", "state": "resolved"}, set()),
    ],
)
def test_the_page_of_a_finding_offers_what_fits(
    db: None, facts: dict[str, str], fitting: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Django 6.1 on it has Django's own form, with all of them."""
    monkeypatch.setattr("storage_audit.ui.model_admin.DJANGO_6_1", False)
    [one] = create_unlisted_findings("a", **facts)
    shown = page_text(superuser_client().get(admin_url("finding", "change", one.pk)))
    offered = {a.name for a in ACTIONS if f'name="action" value="{a.name}"' in shown}
    assert offered == fitting


# All that a list shows


def test_all_are_decided_on_by_the_list_that_was_seen(db: None) -> None:
    create_unlisted_findings(*(f"{n:03}" for n in range(120)))
    create_unlisted_findings("other", kind="missing")
    client, url = superuser_client(), admin_url("finding") + "?kind__exact=orphaned"
    data: dict[str, Any] = {"action": "ignore", "_selected_action": "all", **ACROSS}
    shown = page_text(client.post(url, data))
    assert shown.count('name="_selected_action"') == 1 and "… and 100 more" in shown
    fields = dict(re.findall('type="hidden" name="(.*?)" value="(.*?)"', shown))
    create_unlisted_findings("new")
    changed = page_text(client.post(url, fields | {"note": "ours"}, follow=True))
    assert "Nothing was done: your selection changed" in changed
    assert set(read_states().values()) == {"open"}
    Finding.objects.filter(key="new").delete()
    assert "Ignored 120 findings." in page_text(
        client.post(url, fields | {"note": "ours"}, follow=True)
    )
    assert Finding.objects.filter(state="ignored", kind="orphaned").count() == 120
    assert read_states()["other"] == "open"


def test_to_ask_costs_as_many_queries_for_all_as_for_one(db: None) -> None:
    client, counts = superuser_client(), list[int]()
    for more in (1, 150):
        create_unlisted_findings(*(f"{more}-{n}" for n in range(more)))
        for action in ("ignore", "delete_objects"):
            run_action(client, "finding", action, "all", **ACROSS)
            with CaptureQueriesContext(connection) as captured:
                run_action(client, "finding", action, "all", **ACROSS)
            counts.append(len(captured))
    assert counts[:2] == counts[2:]


# Each decision


def test_findings_are_ignored_with_a_note_and_reopened(db: None) -> None:
    found = [
        *create_unlisted_findings("a", "b"),
        *create_unlisted_findings("c", state="resolved", note="gone"),
    ]
    shown = decide("ignore", found, note="made by <b>")
    assert "Ignored 2 findings." in shown
    assert "Skipped 1 finding:" in shown
    assert "Already resolved: gone" in shown
    one = Finding.objects.get(key="a")
    assert (one.note, one.decided_by) == ("made by <b>", "anna")
    assert "Reopened 1 finding." in run_action(superuser_client(), "finding", "reopen", one.pk)
    assert read_states() == {"a": "open", "b": "ignored", "c": "resolved"}


@pytest.mark.parametrize(
    ("action", "data"),
    [
        ("ignore", {"note": "  "}),
        ("ignore", {"note": "x" * 2001}),
        ("assign", {"project_id": ""}),
        ("assign", {"project_id": "<script>alert(1)</script>"}),
        ("assign", {"project_id": "a\0"}),
    ],
)
def test_what_is_typed_wrongly_is_asked_for_again(
    bucket: Bucket, action: str, data: dict[str, str]
) -> None:
    found = create_orphans(bucket, KEY)
    shown = decide(action, found, **data)
    assert 'class="errorlist"' in shown and 'value="yes"' in shown
    assert "<script>alert" not in shown
    assert read_states() == {KEY: "open"}


def test_orphans_are_deleted_by_a_cleanup_to_follow(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    now = Finding.objects.earliest("pk").last_seen_at
    create_orphans(bucket, "young", first_seen_at=now)
    create_orphans(bucket, "kept", state="ignored", note="mine")
    OrmQ.objects.all().delete()
    found = list(Finding.objects.all())
    shown = run_action(superuser_client(), "finding", "delete_objects", *pks(found))
    assert "2 files, 14 bytes" in shown and "2 findings are skipped" in shown
    assert "Already ignored: mine" in shown and "Can be deleted once a complete scan" in shown
    shown = decide("delete_objects", found)
    cleanup = Cleanup.objects.get()
    assert is_page_of(cleanup, shown)
    assert "A cleanup is deleting 2 leftover files." in shown
    assert "Skipped 2 findings:" in shown
    assert OrmQ.objects.count() == 1
    assert LogEntry.objects.get().object_id == str(cleanup.pk)
    assert run_until_idle(cleanup).status == "clean"
    assert bucket.keys() == {"young", "kept"}
    again = run_action(superuser_client(), "finding", "delete_objects", *pks(found))
    assert "4 findings are skipped" in again and 'type="submit" value="' not in again


def test_no_more_is_deleted_than_the_page_said(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    young = create_orphans(bucket, "young", first_seen_at=found[0].last_seen_at)
    chosen = pks(found + young)
    figures = re.findall(
        'name="figures" value="(.*?)"',
        run_action(superuser_client(), "finding", "delete_objects", *chosen),
    )
    Finding.objects.update(first_seen_at=found[0].first_seen_at)
    confirmed = {"post": "yes", "figures": figures[0]}
    shown = run_action(superuser_client(), "finding", "delete_objects", *chosen, **confirmed)
    assert "Nothing was done: your selection changed" in shown
    assert "2 files" in shown and 'name="post" value="yes"' in shown
    assert not Cleanup.objects.exists()


def test_page_asks_again_when_another_file_of_the_same_size_would_go(bucket: Bucket) -> None:
    one, young = create_orphans(bucket, KEY, OTHER_KEY)
    seen_once = young.last_seen_at
    Finding.objects.filter(pk=young.pk).update(first_seen_at=seen_once)
    client, chosen = superuser_client(), pks([one, young])
    asked = run_action(client, "finding", "delete_objects", *chosen)
    Finding.objects.filter(pk=young.pk).update(first_seen_at=one.first_seen_at)
    Finding.objects.filter(pk=one.pk).update(first_seen_at=seen_once)
    again = run_action(client, "finding", "delete_objects", *chosen, **confirmation_fields(asked))
    assert "Nothing was done: your selection changed" in again
    assert "1 file, 7 bytes" in asked and "1 file, 7 bytes" in again
    assert not Cleanup.objects.exists()


def test_page_asks_again_when_more_would_be_renamed_than_it_said(bucket: Bucket) -> None:
    create_projects("proj_1")
    second = "projects/proj_proj_2/scenes/s1/media/a.mp4"
    found = create_orphans(bucket, OLD, kind="misnamed", project_id="proj_1")
    found += create_orphans(bucket, second, kind="misnamed", project_id="proj_2")
    client, chosen = superuser_client(), pks(found)
    asked = run_action(client, "finding", "rename", *chosen)
    create_projects("proj_2")
    again = run_action(client, "finding", "rename", *chosen, **confirmation_fields(asked))
    assert "1 finding is skipped" in asked and "Nothing was done: your selection changed" in again
    assert bucket.keys() == {OLD, second}


def test_page_asks_again_when_a_scan_found_another_object(bucket: Bucket) -> None:
    create_projects("proj_1")
    [one] = create_findings(bucket, "report.bin", kind="unrecognised", project_id=None)
    client = superuser_client()
    asked = run_action(client, "finding", "assign", one.pk)
    Finding.objects.update(size=4_000_000, etag="another")
    again = run_action(
        client, "finding", "assign", one.pk, **confirmation_fields(asked), project_id="proj_1"
    )
    assert "Nothing was done: your selection changed" in again and "3.8 MB" in again
    assert read_states() == {"report.bin": "open"} and not R2Object.objects.exists()


def test_what_a_cleanup_is_to_delete_already_is_not_counted_again(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    decide("delete_objects", found)
    shown = run_action(superuser_client(), "finding", "delete_objects", *pks(found))
    assert "covers this file, and its status is waiting" in shown and "0 files" not in shown
    decide("delete_objects", found)
    assert Cleanup.objects.count() == 1


def test_a_dry_run_plans_and_deletes_nothing(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    shown = run_action(
        staff_client("view_finding", "dry_run_cleanup"), "finding", "preview_deletion", *pks(found)
    )
    assert "Previewing the deletion of 1 leftover file. Nothing is deleted." in shown
    assert run_until_idle(Cleanup.objects.get()).status == "planned"
    assert bucket.keys() == {KEY}


def test_objects_are_assigned_to_a_live_project(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    assert "There is no project proj_1" in decide("assign", found)
    Project.objects.create(pk="proj_1")
    assert "Assigned 1 file." in decide("assign", found)
    assert R2Object.objects.get().project_id == "proj_1"
    assert read_states() == {KEY: "resolved"}


def test_objects_are_tracked_and_others_left_with_the_reason(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, kind="untracked") + create_findings(
        bucket, OTHER_KEY, kind="untracked"
    )
    found += create_findings(bucket, "misnamed", kind="misnamed")
    shown = decide("track", found)
    assert "Tracked 1 file." in shown and "Skipped 2 findings:" in shown
    assert "The file is not in the bucket any more." in shown
    assert "This action is not for findings of kind “old name”." in shown
    assert R2Object.objects.get().key == KEY


def test_ignored_file_is_not_tracked_and_the_page_says_what_to_do(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, kind="untracked", state="ignored", note="ours")
    who = staff_client("view_finding", "change_r2object")
    shown = confirm_action(who, "finding", "track", *pks(found))
    told = f"Somebody ignored finding {found[0].pk} about this file. Reopen that finding first."
    assert told in shown
    assert read_states() == {KEY: "ignored"} and not R2Object.objects.exists()


def test_rows_of_what_is_missing_are_removed(bucket: Bucket) -> None:
    there = bucket.upload("proj_1")
    R2Object.objects.create(bucket=bucket.name, key="gone", source="upload", state="stored")
    shown = decide("untrack", create_findings(bucket, there, "gone", kind="missing"))
    assert "Untracked 1 missing file." in shown
    assert "The file is in the bucket." in shown
    assert R2Object.objects.get().key == there


def test_misnamed_objects_are_renamed_as_the_page_said(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    found = create_orphans(
        bucket, OLD, "projects/proj_proj_2/scenes/s1/media/a.mp4", kind="misnamed"
    )
    Finding.objects.update(project_id="proj_1")
    shown = run_action(superuser_client(), "finding", "rename", *pks(found))
    assert f"What happens</span> {NEW}</td>" in shown and "1 finding is skipped" in shown
    assert bucket.facts(OLD)
    shown = decide("rename", found)
    assert "Renamed 1 file:" in shown and f"</code>: {NEW}" in shown
    assert bucket.facts(NEW) and not bucket.facts(OLD)


def test_where_nothing_can_be_renamed_there_is_no_button(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    shown = run_action(superuser_client(), "finding", "rename", *pks(found))
    assert "This action can&#x27;t change any of the selected findings." in shown
    assert 'type="submit" value="' not in shown


def test_unfinished_uploads_are_aborted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local R2 cannot list them; tests/findings/test_abort_uploads.py has a store that can."""
    found = create_findings(bucket, KEY, kind="unfinished", upload_id="x", last_modified=None)
    asked = run_action(superuser_client(), "finding", "abort_uploads", *pks(found))
    assert "The store can&#x27;t list unfinished uploads." in asked
    monkeypatch.setattr(multipart, "list_unfinished_uploads", lambda bucket, prefix: iter([[]]))
    again = run_action(
        superuser_client(), "finding", "abort_uploads", *pks(found), **confirmation_fields(asked)
    )
    assert "Nothing was done: your selection changed" in again
    assert "already gone" in run_action(superuser_client(), "finding", "abort_uploads", *pks(found))
    assert "1 unfinished upload is gone:" in decide("abort_uploads", found)
    assert read_states() == {KEY: "resolved"}


# What is told


def test_of_many_reasons_the_first_are_told_and_the_rest_counted(db: None) -> None:
    found = create_unlisted_findings(*(f"{n:02}" for n in range(25)), state="resolved", note="gone")
    shown = decide("ignore", found)
    assert "Skipped 25 findings:" in shown
    assert shown.count("Already resolved: gone") == 20 and "<br>… and 5 more" in shown


# What is refused


@pytest.mark.parametrize("action", CHECKING_ACTIONS)
def test_one_request_checks_a_limited_number(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(action_result, "MAX_FINDINGS_PER_REQUEST", 2)
    create_orphans(bucket, *"abc")
    for data in ({}, {"post": "yes", **TYPED.get(action, {})}):
        chosen = list(Finding.objects.values_list("pk", flat=True))
        shown = run_action(superuser_client(), "finding", action, *chosen, **data)
        assert "use manage.py findings" in shown
    assert read_states() == dict.fromkeys("abc", "open")
    Project.objects.create(pk="proj_1")
    assert "use manage.py findings" not in run_action(
        superuser_client(), "finding", action, *chosen[:2]
    )


@pytest.mark.parametrize("action", ["track", "delete_objects"])
def test_trouble_is_told_and_nothing_is_done(bucket: Bucket, action: str) -> None:
    found = create_orphans(bucket, KEY)
    with ExitStack() as all_places:
        for _place in range(conf().api_concurrency):
            all_places.enter_context(acquire_slot())
        assert "Try again in 5 seconds." in run_action(
            superuser_client(), "finding", action, *pks(found)
        )
    bucket.wipe()
    assert "connect_bucket" in decide(action, found)
    assert read_states() == {KEY: "open"} and not Cleanup.objects.exists()


def test_what_asks_nothing_of_the_store_needs_no_place_there(db: None) -> None:
    [one] = create_unlisted_findings("a")
    with ExitStack() as all_places:
        for _place in range(conf().api_concurrency):
            all_places.enter_context(acquire_slot())
        assert "Ignored 1 finding." in decide("ignore", [one])
        assert "Reopened 1 finding." in run_action(superuser_client(), "finding", "reopen", one.pk)


@pytest.mark.parametrize("action", [*ASKING, "reopen", "preview_deletion"])
def test_viewers_are_offered_nothing_and_do_nothing(db: None, action: str) -> None:
    [one] = create_unlisted_findings("a", state="ignored" if action == "reopen" else "open")
    client = staff_client("view_finding", "force_cleanup", "verify_cleanup")
    assert f'value="{action}"' not in page_text(client.get(admin_url("finding")))
    confirmed = {"post": "yes", "figures": "0-0", **TYPED.get(action, {})}
    run_action(client, "finding", action, one.pk, **confirmed)
    assert read_states() == {"a": one.state} and not Cleanup.objects.exists()


def test_under_the_prefix_that_is_searched_for(bucket: Bucket) -> None:
    """All of a search are these, and no others."""
    create_orphans(bucket, KEY, "stray")
    url = f"{admin_url('finding')}?q={FOLDER}"
    data = {"action": "ignore", "_selected_action": "all", **ACROSS, **TYPED["ignore"]}
    client = superuser_client()
    asked = page_text(client.post(url, data))
    fields = dict(re.findall('type="hidden" name="(.*?)" value="(.*?)"', asked))
    client.post(url, data | fields)
    assert read_states() == {KEY: "ignored", "stray": "open"}
