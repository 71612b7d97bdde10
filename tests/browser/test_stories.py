"""What people do after a mistake: undo a deletion, find it days later, stop everything."""

from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from django.conf import settings
from django.db.models import F
from django.test import override_settings
from playwright.sync_api import Browser, Page, expect

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Alert
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, DeletionPause, Snapshot
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership import bucket_marker
from tests.admin_client import DASHBOARD
from tests.admin_client import admin_url as path
from tests.browser.staff import (
    CLEAN_MESSAGE,
    CLICKS,
    COUNT_CLICKS,
    count_words,
    count_words_in_view,
    log_in_as_superuser,
    reload_until,
)
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import Forward, Request, faulty_store
from tests.held import hold_deletion
from tests.promises import Status
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

# From the overview: until a deletion is undone, and until everything is paused and resumed again.
MAX_UNDO_CLICKS, MAX_UNDO_WORDS = 4, 300
MAX_PAUSE_CLICKS, MAX_PAUSE_WORDS = 5, 900


@pytest.fixture(autouse=True)
def grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the web server and of the worker."""
    monkeypatch.setenv("GRACE_HOURS", "72")


def block_deletion(bucket: Bucket) -> set[str]:
    keys = {bucket.upload("proj_blocked", f"{n}.mp4") for n in range(3)}
    Project.objects.get(pk="proj_blocked").delete()
    low = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 2, "LIMIT_SHARE": 0.01}
    with override_settings(STORAGE_AUDIT=low):
        runner.run_to_end(Cleanup.objects.get().pk)
    return keys


def test_deletion_is_undone_from_the_page_that_follows_it(
    page: Page, bucket: Bucket, worker: Cluster
) -> None:
    Project.objects.create(pk="proj_1", title="Summer sale")
    keys = {bucket.upload("proj_1", "a.mp4"), bucket.upload("proj_1", "b.mp4")}
    log_in_as_superuser(page)
    page.goto(path("project", "change", "proj_1"))
    page.get_by_text("Delete", exact=True).click()
    expect(page.get_by_text("You can undo this for 3 days.")).to_be_visible()
    page.get_by_role("button", name="Delete project and 2 files").click()
    expect(page.get_by_text("Deleted. The files stay in the bucket until")).to_be_visible()
    assert not Project.objects.exists()
    page.get_by_role("link", name="Undo", exact=True).click()
    expect(page.get_by_role("cell", name="Summer sale (proj_1)")).to_be_visible()
    # The link asks, and no more.
    assert not Project.objects.exists()
    page.get_by_role("button", name="Undo 1 deletion").click()
    expect(page.get_by_text("Deletion of proj_1 undone. 1 database row is back.")).to_be_visible()
    assert bucket.keys() == keys
    assert Project.objects.get().title == "Summer sale"
    assert set(R2Object.objects.values_list("key", "project_id")) == {(k, "proj_1") for k in keys}
    cleanup = Cleanup.objects.get(parent=None)
    assert (cleanup.status, cleanup.decided_by) == (Status.UNDONE, "anna")
    assert not Snapshot.objects.exists()


def test_project_that_was_deleted_two_days_ago_is_found_by_its_title_and_restored(
    page: Page, bucket: Bucket
) -> None:
    titles = {"proj_1": "Summer sale", "proj_2": "Winter sale", "proj_3": "Launch day"}
    for project_id, title in titles.items():
        Project.objects.create(pk=project_id, title=title)
    keys = {bucket.upload(project_id) for project_id in titles}
    for project_id in ("proj_1", "proj_2"):
        runner.run_to_end(hold_deletion(project_id).pk)
    days = timedelta(days=2)
    Cleanup.objects.update(created_at=F("created_at") - days, held_until=F("held_until") - days)
    log_in_as_superuser(page)
    page.add_init_script(COUNT_CLICKS)
    page.goto(DASHBOARD)
    words = list[int]()
    page.get_by_role("searchbox", name="Why?").fill("summer")
    page.get_by_role("button", name="Why?").click()
    expect(page.get_by_role("heading", name="Summer sale proj_1")).to_be_visible()
    expect(page.get_by_text("Winter sale")).to_have_count(0)
    words.append(count_words(page))
    page.get_by_role("link", name="Undo the deletion…").click()
    button = page.get_by_role("button", name="Undo 1 deletion")
    expect(button).to_be_visible()
    words.append(count_words(page))
    button.click()
    expect(page.get_by_text("Deletion of proj_1 undone.")).to_be_visible()
    words.append(count_words(page))
    assert 0 < page.evaluate(CLICKS) <= MAX_UNDO_CLICKS
    assert sum(words) <= MAX_UNDO_WORDS, words
    assert bucket.keys() == keys
    assert dict(Project.objects.values_list("pk", "title")) == {
        "proj_1": "Summer sale",
        "proj_3": "Launch day",
    }
    other = Cleanup.objects.get(project_id="proj_2", parent=None)
    assert other.is_held()


def test_at_night_all_is_paused_one_deletion_is_cancelled_and_the_rest_resumed(
    page: Page, bucket: Bucket, local_r2: LocalR2, tmp_path: Path
) -> None:
    """An alert wakes somebody. One deletion is blocked, one held, one runs and one waits for it."""
    blocked_keys, held_key = block_deletion(bucket), bucket.upload("proj_held")
    held = runner.run_to_end(hold_deletion("proj_held").pk)
    keys = [f"projects/proj_1/scenes/s1/media/{n:03}.mp4" for n in range(300)]
    Project.objects.create(pk="proj_1")
    bucket.put(*keys)
    waiting_key = bucket.upload("proj_2")
    for project_id in ("proj_1", "proj_2"):
        Project.objects.get(pk=project_id).delete()
    running, waiting = Cleanup.objects.filter(status=Status.PENDING, held_until=None).order_by(
        "project_id"
    )
    alert_rules.update_alerts()
    first_left, may_go_on = Event(), Event()

    def hold(request: Request, forward: Forward) -> Reply:
        first_left.set()
        may_go_on.wait(timeout=60)
        return forward()

    log_in_as_superuser(page)
    with faulty_store(local_r2.environment["R2_ENDPOINT_URL"]) as network:
        # A call takes 250 objects.
        network.rules.append(rule_for(is_delete_batch, hold))
        with Cluster(tmp_path, R2_ENDPOINT_URL=network.url):
            assert first_left.wait(timeout=60)
            page.goto(path("alert", "change", Alert.objects.get().pk))
            expect(page.get_by_role("link", name="Open the cleanup")).to_be_visible()
            page.goto(DASHBOARD)
            page.get_by_role("link", name="Pause deletions…").click()
            expect(page.get_by_text("Up to 1 request is under way.")).to_be_visible()
            page.get_by_label("Reason").fill("Files are missing")
            page.get_by_role("button", name="Pause all deletions").click()
            bar = page.get_by_text("All deletions are paused. Paused by anna on")
            expect(bar).to_contain_text("Files are missing")
            may_go_on.set()

            page.goto(path("cleanup", "change", running.pk))
            reload_until(page, "No file is deleted until a person resumes it.")
            others = {held_key, *blocked_keys}
            assert bucket.keys() == {*keys[250:], *others, waiting_key}
            page.get_by_role("button", name="Cancel, keep the files").click()
            page.get_by_label("Reason").fill("The wrong project")
            page.get_by_role("button", name="Cancel 1 cleanup, keep").click()
            expect(page.get_by_text("Cancelled by anna on").first).to_contain_text(
                "The wrong project"
            )
            # What was sent before is verified while deletions are paused.
            reload_until(page, "Files that were not deleted by then stay in the bucket.")

            page.goto(path("cleanup", "change", waiting.pk))
            reload_until(page, "No file is deleted until a person resumes it.")
            page.get_by_role("link", name="Resume…").click()
            due = "delete at most 1 file, 4"
            expect(page.get_by_text(f"1 cleanup waits. It will {due}")).to_be_visible()
            page.get_by_role("button", name=f"Resume, {due}").click()
            expect(page.get_by_text("Deletions are resumed.")).to_be_visible()
            expect(bar).to_have_count(0)
            page.goto(path("cleanup", "change", waiting.pk))
            reload_until(page, CLEAN_MESSAGE)
    assert bucket.keys() == {*keys[250:], *others}
    assert not DeletionPause.objects.exists() and not bucket_marker.find_pauses("tests")
    running.refresh_from_db()
    decided = (running.status, running.decided_by, running.decision_reason)
    assert decided == (Status.CANCELLED, "anna", "The wrong project")
    assert (running.deleted + running.already_gone, running.kept) == (250, 50)
    assert KnownProject.objects.get(pk="proj_1").kept_for == KnownProject.KeptFor.CANCELLED
    assert not Project.objects.exists()
    held.refresh_from_db()
    assert held.is_held()
    blocked = Cleanup.objects.get(project_id="proj_blocked")
    assert (blocked.status, blocked.deleted) == (Status.BLOCKED, 0)


def test_everything_is_paused_looked_at_and_resumed_in_few_clicks(
    page: Page, bucket: Bucket
) -> None:
    block_deletion(bucket)
    Project.objects.create(pk="proj_held", title="Summer sale")
    bucket.upload("proj_held")
    runner.run_to_end(hold_deletion("proj_held").pk)
    log_in_as_superuser(page)
    page.add_init_script(COUNT_CLICKS)
    page.goto(DASHBOARD)
    words = [count_words_in_view(page)]
    page.get_by_role("link", name="Pause deletions…").click()
    expect(page.get_by_text("This pauses 2 open cleanups. They have found 4 files")).to_be_visible()
    words.append(count_words_in_view(page))
    page.get_by_label("Reason").fill("Files are missing")
    page.get_by_role("button", name="Pause all deletions").click()
    bar = page.get_by_text("All deletions are paused. Paused by anna on")
    expect(bar).to_be_visible()
    words.append(count_words_in_view(page))
    page.get_by_role("link", name="Cleanups", exact=True).first.click()
    expect(page.get_by_role("link", name="Summer sale (proj_held)")).to_be_visible()
    words.append(count_words_in_view(page))
    page.get_by_role("link", name="Resume…").click()
    expect(page.get_by_text("No cleanup waits.")).to_be_visible()
    words.append(count_words_in_view(page))
    page.get_by_role("button", name="Resume deletions").click()
    expect(page.get_by_text("Deletions are resumed.")).to_be_visible()
    expect(bar).to_have_count(0)
    words.append(count_words_in_view(page))
    assert 0 < page.evaluate(CLICKS) <= MAX_PAUSE_CLICKS
    assert sum(words) <= MAX_PAUSE_WORDS, words


def test_undo_pause_cancel_and_resume_need_no_scripts(
    browser: Browser, address: str, bucket: Bucket
) -> None:
    for project_id in ("proj_1", "proj_2"):
        bucket.upload(project_id)
    first, second = (runner.run_to_end(hold_deletion(each).pk) for each in ("proj_1", "proj_2"))
    with browser.new_context(base_url=address, java_script_enabled=False) as context:
        page = context.new_page()
        log_in_as_superuser(page)
        page.goto(DASHBOARD)
        page.get_by_role("link", name="Pause deletions…").click()
        page.get_by_label("Reason").fill("Files are missing")
        page.get_by_role("button", name="Pause all deletions").click()
        page.goto(path("cleanup", "change", first.pk))
        page.get_by_role("button", name="Undo deletion").click()
        page.get_by_role("button", name="Undo 1 deletion").click()
        expect(page.get_by_text("Deletion of proj_1 undone.")).to_be_visible()
        page.goto(path("cleanup", "change", second.pk))
        page.get_by_role("button", name="Cancel, keep the files").click()
        page.get_by_role("button", name="Cancel 1 cleanup").click()
        page.get_by_role("link", name="Resume…").click()
        expect(page.get_by_text("No cleanup waits.")).to_be_visible()
        page.get_by_role("button", name="Resume deletions").click()
        expect(page.get_by_text("Deletions are resumed.")).to_be_visible()
        page.goto(path("cleanup", "change", second.pk))
        page.get_by_role("button", name="Clean up again").click()
        page.get_by_label("Reason").fill("After all")
        page.get_by_role("button", name="Delete 1 file, 4").click()
        expect(page.get_by_text("A new cleanup of proj_2 is queued.")).to_be_visible()
        page.goto(path("project", "delete", "proj_1"))
        page.get_by_text("Erase now, no undo").click()
        page.get_by_role("checkbox").check()
        page.get_by_label("Reason").fill("The customer asks")
        page.get_by_role("button", name="Delete project and 1 file").click()
        expect(page.get_by_text("Deleting the files of “proj_1” now.")).to_be_visible()
    erased = Cleanup.objects.filter(project_id="proj_1", parent=None).latest("created_at")
    assert (erased.held_until, erased.decision_reason) == (None, "The customer asks")
    assert len(bucket.keys()) == 2
