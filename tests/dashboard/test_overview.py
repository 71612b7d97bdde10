"""The dashboard: figures that are right and lead to what they count, and what a person must do."""

import re
from collections.abc import Iterable
from datetime import date, timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import escape
from django_q.models import OrmQ, Schedule
from pytest_django import Settings

from autoshorts import urls
from storage_audit import queue, tasks
from storage_audit.alerts.models import Alert, Delivery, Notification
from storage_audit.cleanup import requests
from storage_audit.cleanup.models import Cleanup, CleanupEvent, Snapshot, SnapshotName
from storage_audit.cleanup.needs_attention import (
    find_verifications_with_leftovers,
    select_waiting_for_person,
)
from storage_audit.dashboard import daily_figures
from storage_audit.dashboard.admin import charts, next_steps
from storage_audit.dashboard.admin.charts import Series
from storage_audit.dashboard.daily_figures import OTHER_TYPES, Amount
from storage_audit.dashboard.models import DailyFigures
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import DatabaseIdentity, KnownProject, Project
from storage_audit.roles import VIEWER_PERMISSIONS
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.admin_client import (
    DASHBOARD,
    admin_url,
    count_queries,
    normalized_text,
    page_text,
    superuser_client,
)
from tests.builders import add_item, create_cleanup, create_finding, create_row, create_scan
from tests.dashboard.tiles import allowed, tile
from tests.keys import ESCAPED, HOSTILE
from tests.promises import clean_up_project, create_projects, run_until_idle
from tests.real_bucket import Bucket

LEFTOVER_URL = reverse("admin:storage_audit_leftover_objects")
EVERYTHING = ("view_finding", "view_bucketscan", "view_healthreport")
NOW = timezone.now()
LONG_AGO = NOW - timedelta(days=9)


@pytest.fixture(autouse=True)
def on_time(db: None) -> None:
    """As if a worker had just swept; and on the day of the test, not that of the import."""
    global NOW
    NOW = timezone.now()
    Schedule.objects.update(next_run=NOW + timedelta(seconds=30), task="swept")


@pytest.fixture
def connected(db: None) -> None:
    """To a bucket, for tests that ask no store."""
    DatabaseIdentity.objects.create(fingerprint="f")


def verification_with_leftovers(*keys: str, **values: Any) -> Cleanup:
    """A verification that found these of a deleted project."""
    given = {"kind": "verify", "finished_at": LONG_AGO, "next_attempt_at": None}
    given |= {"project_id": f"proj_{uuid4().hex}", "failed": len(keys), "found": len(keys)}
    cleanup = create_cleanup("differs", **given | values)
    for key in keys:
        add_item(cleanup, key, reason=f"why {key} stays")
    return cleanup


def listed(client: Client, url: str) -> int:
    """How many rows a list has."""
    return int(client.get(url).context["cl"].result_count)


def leftover_amount() -> Amount:
    return daily_figures.count_leftovers()


# What the tiles say, and where they lead


def create_many_cleanups() -> None:
    for status in Cleanup.Status.values:
        for _each in range(2):
            create_cleanup(status)
    create_cleanup("planned", dry_run=True)
    create_cleanup("pending", kind="verify")
    parent = Cleanup.objects.filter(status="clean").first()
    create_cleanup("pending", parent=parent)


def test_open_deletions_are_counted_with_the_age_of_the_oldest_and_lead_to_them(db: None) -> None:
    create_many_cleanups()
    create_cleanup("retrying", created_at=NOW - timedelta(days=3, minutes=5))
    client = superuser_client()
    url, figure, said = tile(page_text(client.get(DASHBOARD)), "Open deletions")
    # Pending, running, retrying, failed, blocked; no look, plan, or follow-up check.
    assert figure == "11"
    assert listed(client, url) == 11
    assert "The oldest was asked for 3 days" in said


def test_a_plan_is_as_old_as_its_run(db: None) -> None:
    ran = create_cleanup("pending", created_at=LONG_AGO)
    CleanupEvent.objects.create(cleanup=ran, step="run", at=NOW - timedelta(hours=2))
    assert daily_figures.count_open_deletions() == (1, NOW - timedelta(hours=2))


def test_what_waits_for_a_person_is_counted_and_leads_to_it(db: None) -> None:
    create_many_cleanups()
    client = superuser_client()
    url, figure, said = tile(page_text(client.get(DASHBOARD)), "Waiting for a person")
    assert (figure, listed(client, url)) == ("4", 4)
    assert "decide" in said


def test_a_blocked_verification_waits_until_it_was_repeated(db: None) -> None:
    """Nobody can approve it, and it would be shown for ever."""
    create_cleanup("blocked", kind="verify", created_at=LONG_AGO)
    deletion = create_cleanup("clean", project_id="proj_other")
    of_deletion = {"kind": "verify", "project_id": None, "parent": deletion}
    create_cleanup("blocked", **of_deletion, created_at=LONG_AGO)
    assert select_waiting_for_person(Cleanup.objects.all()).count() == 2
    create_cleanup("pending", kind="verify", project_id="proj_unrelated")
    assert select_waiting_for_person(Cleanup.objects.all()).count() == 2
    create_cleanup("clean", kind="verify")
    create_cleanup("pending", **of_deletion)
    assert not select_waiting_for_person(Cleanup.objects.all()).exists()


def test_leftover_files_have_each_object_once_with_its_size(db: None) -> None:
    create_finding("a", size=100)
    create_finding("b", size=None)
    create_finding("ignored", state="ignored")
    create_finding("gone", state="resolved")
    create_finding("doubted", kind="ambiguous")
    # Known as a finding, and to another verification as well.
    first = verification_with_leftovers("a", "c", "d")
    verification_with_leftovers("c", "d")
    add_item(first, "settled", "already_gone")
    # Covered by an open cleanup, or not deleting at all.
    nothing: dict[str, Any] = {}
    for status, values in (
        *((status, nothing) for status in ("blocked", "running", "retrying", "failed")),
        ("clean", {"failed": 0, "found": 0}),
        ("retrying", {"dry_run": True}),
        ("retrying", {"kind": "verify"}),
    ):
        add_item(create_cleanup(status, **values), f"{status} {sorted(values)}")
    assert leftover_amount() == (4, 100 + 0 + 10 + 10)
    client = superuser_client()
    url, figure, _said = tile(page_text(client.get(DASHBOARD)), "Leftover files")
    assert figure == "4 files"
    assert f'href="{LEFTOVER_URL}"' in page_text(client.get(url))
    keys = [left.key for left in client.get(LEFTOVER_URL).context["rows"]]
    assert keys == ["a", "b", "c", "d"]


@pytest.mark.parametrize("status", ["pending", "running", "blocked", "retrying", "failed"])
def test_files_that_an_open_cleanup_covers_are_not_leftover(db: None, status: str) -> None:
    verification_with_leftovers("a", project_id="proj_1")
    create_finding("b", project_id="proj_1")
    create_finding("c", project_id="proj_2")
    cleanup = create_cleanup(status, project_id="proj_1")
    named = create_cleanup(status, kind="orphans", project_id=None)
    add_item(named, "c", "to_delete")
    create_cleanup(status, project_id="proj_1", bucket="other")
    assert leftover_amount().objects == 0
    assert Finding.objects.open().count_by_kind(10) == {}
    named.items.mark("kept")
    assert leftover_amount().objects == 1
    Cleanup.objects.filter(pk=cleanup.pk).update(status="clean")
    assert leftover_amount().objects == 3


def test_waiting_follow_up_check_covers_nothing_until_it_begins(db: None) -> None:
    create_finding("b", project_id="proj_1")
    check = create_cleanup(
        "pending", project_id="proj_1", parent=create_cleanup("clean", project_id="proj_1")
    )
    create_cleanup("planned", project_id="proj_1", dry_run=True)
    create_cleanup("blocked", project_id="proj_1", kind="verify")
    assert leftover_amount().objects == 1
    Cleanup.objects.filter(pk=check.pk).update(status="running")
    assert leftover_amount().objects == 0


def test_the_same_key_in_two_buckets_is_two_objects_and_two_spellings_are_one(db: None) -> None:
    create_finding("k", bucket="other")
    verification_with_leftovers("k")
    assert leftover_amount().objects == 2
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    create_finding(composed)
    add_item(verification_with_leftovers(), decomposed, identity=composed)
    assert leftover_amount().objects == 3


@pytest.mark.parametrize(
    "size, price, said",
    [
        (10**9, 0.42, "€0.42 a month"),
        (200 * 10**9, 0.015, "€3.00 a month"),
        (10, 0.015, "less than €0.01 a month"),
        (0, 0.015, "€0.00 a month"),
    ],
)
def test_leftover_files_are_priced(
    db: None, settings: Settings, size: int, price: float, said: str
) -> None:
    changed = {"PRICE_PER_GB": price, "CURRENCY": "€"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | changed
    create_finding("a", size=size)
    assert said in tile(page_text(superuser_client().get(DASHBOARD)), "Leftover files")[2]


@pytest.mark.parametrize("found", [slice(0), slice(None), slice(0, None, 2)])
def test_each_leftover_file_is_reached_with_its_reason_page_by_page(db: None, found: slice) -> None:
    keys = [f"k{n:03}" for n in range(120)]
    for key in keys[found]:
        create_finding(key, evidence=f"why {key} stays")
    verification_with_leftovers(*sorted({*keys} - {*keys[found]}))
    client = superuser_client()
    url, seen = LEFTOVER_URL, list[str]()
    while url:
        answer = client.get(url)
        seen += re.findall("why (k[0-9]+) stays", normalized_text(answer))
        more = re.findall(r'<a href="(\?after=[^"]*)">Next page', normalized_text(answer))
        url = LEFTOVER_URL + unescape(more[0]) if more else ""
    assert seen == keys


def test_a_key_that_many_buckets_have_goes_over_pages(db: None) -> None:
    """With one beside it that is only shown so, at the very end of a page."""
    for n in range(60):
        create_finding("k", bucket=f"b{n:02}") if n % 2 else verification_with_leftovers(
            "k", bucket=f"b{n:02}"
        )
    create_finding("k", bucket="b49", escaped=True)
    client, seen, url = superuser_client(), list[str](), LEFTOVER_URL
    while url:
        answer = client.get(url)
        seen += [left.bucket for left in answer.context["rows"]]
        more = re.findall(r'<a href="(\?after=[^"]*)">Next page', page_text(answer))
        url = LEFTOVER_URL + unescape(more[0]) if more else ""
    assert seen == sorted([*(f"b{n:02}" for n in range(60)), "b49"])


def test_its_pages_lead_back_as_they_lead_on(db: None) -> None:
    """Beside the end of a page there are two in a place."""
    keys = [f"k{n:03}" for n in range(120)]
    for n, key in enumerate(keys):
        create_finding(key) if n % 2 else verification_with_leftovers(key)
    create_finding("k070", escaped=True)
    client, back, url = superuser_client(), list[str](), f"{LEFTOVER_URL}?after=k999"
    assert "This page is empty now." in page_text(client.get(url))
    url = f"{LEFTOVER_URL}?before=k999"
    while url:
        answer = client.get(url)
        back = [left.key for left in answer.context["rows"]] + back
        shown = page_text(answer)
        more = re.findall(r'<a href="(\?before=[^"]*)">Previous page', shown)
        assert bool(more) == ('<a href="?">First page' in shown)
        url = LEFTOVER_URL + unescape(more[0]) if more else ""
    assert back == sorted([*keys, "k070"])
    on = unescape(re.findall(r'<a href="(\?after=[^"]*)">Next page', shown)[0])
    shown = page_text(client.get(LEFTOVER_URL + on))
    [url] = re.findall(r'<a href="(\?before=[^"]*)">Previous page', shown)
    again = client.get(LEFTOVER_URL + unescape(url)).context["rows"]
    assert [left.key for left in again] == back[: len(again)]


@pytest.mark.parametrize(
    "query", ["after=%00", "before=a%00", "after=a&bucket=%00", "before=z&bucket=%00"]
)
def test_a_place_that_no_database_holds_leads_to_the_first_page(db: None, query: str) -> None:
    create_finding("k")
    answer = superuser_client().get(f"{LEFTOVER_URL}?{query}")
    assert answer.status_code == 200
    assert [left.key for left in answer.context["rows"]] == ["k"]
    assert answer.context["is_first"]


def test_what_a_verification_found_is_where_its_link_leads(db: None) -> None:
    add_item(verification_with_leftovers("failed-one"), "absent-one", "already_gone")
    client = superuser_client()
    links = re.findall(
        r'<a href="([^"]*)#items">Open verification', page_text(client.get(LEFTOVER_URL))
    )
    [items] = [client.get(unescape(url)).context["items"] for url in links]
    assert [shown["key"] for shown in items] == ["failed-one"]


def test_of_an_orphan_it_says_whether_and_when_it_may_be_deleted(db: None) -> None:
    ripe: dict[str, Any] = {"first_seen_at": LONG_AGO, "last_modified": LONG_AGO}
    create_finding("a", **ripe, evidence="name fits proj_1; no project proj_1 was ever known")
    create_finding("b", last_modified=LONG_AGO)
    create_finding("c", **ripe)
    cleanup = create_cleanup("running", kind="orphans")
    add_item(cleanup, "c", outcome="to_delete")
    create_finding("e\u0301", **ripe)
    add_item(cleanup, "e\u0301", outcome="to_delete", identity="\u00e9")
    add_item(create_cleanup("running", kind="orphans", bucket="other"), "a", outcome="to_delete")
    add_item(create_cleanup("planned", kind="orphans", dry_run=True), "a", outcome="to_delete")
    answer = superuser_client().get(LEFTOVER_URL)
    reasons = {left.key: left.reason for left in answer.context["rows"]}
    known = "The project was deleted or is unknown. "
    assert all(reason.startswith(known) for reason in reasons.values())
    assert "You can delete the file: open its finding." in reasons["a"]
    assert (
        "Can be deleted once a complete scan" in reasons["b"]
        and "You can delete" not in reasons["b"]
    )
    # The database takes the two spellings for two objects.
    assert f"Cleanup {cleanup.pk} covers this file, and its status is running." in reasons.pop(
        "e\u0301"
    )
    assert reasons.keys() == {"a", "b"}
    assert '<span class="quiet">name fits proj_1; no project proj_1 was' in page_text(answer)


def test_the_page_of_leftover_files_shows_hostile_keys_as_text(db: None) -> None:
    for key in (f"{n:02}{HOSTILE}&after=#?%" for n in range(60)):
        create_finding(key, evidence=HOSTILE, bucket=HOSTILE)
    verification_with_leftovers("zz" + HOSTILE)
    client = superuser_client()
    shown = page_text(client.get(LEFTOVER_URL))
    assert ESCAPED in shown
    [after] = re.findall(r'<a href="(\?after=[^"]*)">Next page', shown)
    second = page_text(client.get(LEFTOVER_URL + unescape(after)))
    for text in (shown, second):
        assert "<script>alert" not in text
    assert len(re.findall('<th scope="row">', second)) == 11


def test_the_last_complete_scan_of_the_whole_bucket_is_told_and_overdue_after_twice_its_pause(
    db: None, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"RECONCILE_EVERY": timedelta(hours=6)}
    client = superuser_client()
    url, figure, said = tile(page_text(client.get(DASHBOARD)), "Last complete scan")
    assert figure == "never"
    whole = create_scan(
        finished_at=timezone.now() - timedelta(hours=11), listed=7, listed_bytes=2048
    )
    for values in ({"prefix": "a/"}, {"dry_run": True}, {"status": "failed"}, {"bucket": "other"}):
        create_scan(**values)
    url, figure, said = tile(page_text(client.get(DASHBOARD)), "Last complete scan")
    assert figure == "11 hours ago"
    assert "7 files, 2.0 KB" in said and "overdue" not in said
    assert url == reverse("admin:storage_audit_bucketscan_change", args=[whole.pk])
    BucketScan.objects.update(finished_at=timezone.now() - timedelta(hours=13))
    assert "overdue" in tile(page_text(client.get(DASHBOARD)), "Last complete scan")[2]


def test_a_late_sweep_and_waiting_tasks_are_told(db: None, settings: Settings) -> None:
    OrmQ.objects.create(key="autoshorts", payload="x", lock=timezone.now())
    client = superuser_client()
    figure, said = tile(page_text(client.get(DASHBOARD)), "Worker and queue")[1:]
    assert figure == "on time" and "1 task waits for a worker." in said
    Schedule.objects.update(next_run=timezone.now() - timedelta(hours=1))
    shown = page_text(client.get(DASHBOARD))
    figure, said = tile(shown, "Worker and queue")[1:]
    assert (
        figure == "late" and "No worker is running. Its regular check is 60 minutes late." in said
    )
    assert "restart the worker" in shown
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    assert tile(page_text(client.get(DASHBOARD)), "Worker and queue")[1] == "none"


# What needs a person


def test_figures_of_a_day_to_come_are_not_the_latest(db: None) -> None:
    """A clock that was ahead wrote them."""
    day = timezone.localdate() + timedelta(days=300)
    DailyFigures.objects.create(day=day, taken_at=timezone.now(), file_types={}, **ZERO)
    assert daily_figures.take_figures() and not daily_figures.take_figures()


def test_the_chart_of_leftover_files_ends_with_the_figure_of_the_tile(db: None) -> None:
    create_scan()
    DailyFigures.objects.record_today(
        tracked=0, tracked_bytes=0, leftover=307, leftover_bytes=9, file_types={}
    )
    create_finding("a", size=2048)
    shown = page_text(superuser_client().get(DASHBOARD))
    assert tile(shown, "Leftover files")[1] == "1 file"
    today = timezone.localdate().isoformat()
    chart = shown.split("<h3>Leftover files <small>Now: 1</small></h3>")[1].split("</section>")[0]
    assert f'<th scope="row">{today}</th><td>1</td><td>2.0 KB</td>' in chart
    assert "Counted just now." in chart


def test_nothing_needs_a_person_where_all_is_well(connected: None, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"NOTIFY_EMAILS": ("ann@example.com",)}
    create_scan()
    create_cleanup("clean")
    create_cleanup("retrying")
    assert "Nothing needs you." in page_text(superuser_client().get(DASHBOARD))


def test_each_need_says_why_and_what_to_do_and_leads_there(db: None) -> None:
    blocked = create_cleanup(
        "blocked", message="1,204 objects are more than 1,000.", created_at=LONG_AGO
    )
    failed = create_cleanup("failed", message="AccessDenied")
    broken = create_scan(status="failed", message="The listing broke off.")
    create_finding("a", first_seen_at=LONG_AGO, last_modified=LONG_AGO)
    create_finding("b", kind="missing")
    wrong = HealthReport.objects.create(
        context="web", host="h", pid=1, at=LONG_AGO, probes=[PROBE | {"status": "wrong"}]
    )
    client = superuser_client()
    shown = page_text(client.get(DASHBOARD)).partition("Needs you")[2].partition("Over time")[0]
    for url, said in {
        change("cleanup", blocked.pk): [
            "1,204 objects are more than",
            "approve the cleanup, or cancel",
        ],
        change("cleanup", failed.pk): ["AccessDenied", "try again"],
        change("bucketscan", broken.pk): ["The listing broke off.", "then scan again."],
        change("healthreport", wrong.pk): [
            "Health check: worker",
            "No queue worker answered within 30 seconds.",
            "start one (manage.py qcluster)",
        ],
    }.items():
        entry = entry_of(shown, url)
        assert all(escape(text) in entry for text in said), entry
    orphans, missing = (kind_need(shown, text) for text in ("1 leftover", "1 missing"))
    assert "1 of them can be deleted" in orphans[1]
    assert orphans[0] == reverse("admin:storage_audit_leftovers")
    assert listed(client, missing[0]) == 1
    # The oldest first.
    assert shown.index(str(blocked.pk)) < shown.index(str(failed.pk))


def test_wrong_health_report_names_the_first_check_that_failed(db: None) -> None:
    warning = PROBE | {"name": "clock", "status": "warning", "summary": "Two minutes off."}
    wrong = PROBE | {"name": "bucket", "status": "wrong", "summary": "No such bucket: <b>."}
    waits = PROBE | {"name": "marker", "status": "wrong", "readings": {"waits for": "bucket"}}
    report = HealthReport.objects.create(
        context="web", host="h", pid=1, probes=[warning, waits, wrong]
    )
    entry = entry_of(
        page_text(superuser_client().get(DASHBOARD)), change("healthreport", report.pk)
    )
    assert "Health check: bucket" in entry and escape("No such bucket: <b>.") in entry
    assert "marker" not in entry and "Two minutes" not in entry


def test_work_that_waits_for_a_first_worker_needs_a_person(db: None, settings: Settings) -> None:
    Schedule.objects.update(task=None)
    shown = "1 task waits, and no worker has run yet"
    client = superuser_client()
    assert "no worker has run yet" not in page_text(client.get(DASHBOARD))
    queue.send_task(queue.RUN_CLEANUP, str(create_cleanup().pk))
    assert shown in page_text(client.get(DASHBOARD))
    assert shown not in page_text(allowed("view_cleanup").get(DASHBOARD))
    Schedule.objects.update(task="swept")
    assert shown not in page_text(client.get(DASHBOARD))
    Schedule.objects.update(task=None)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    assert shown not in page_text(client.get(DASHBOARD))


def test_who_may_scan_is_led_to_it_and_others_are_told_who_may(connected: None, db: None) -> None:
    for purpose in ("?purpose=backfill", ""):
        begin = f'href="{reverse("admin:storage_audit_bucketscan_add")}{purpose}"'
        if not purpose:
            create_scan(status="failed")
        shown = page_text(superuser_client().get(DASHBOARD))
        assert begin in shown and "manage.py" not in shown
        User.objects.filter(username="ben").delete()
        shown = page_text(allowed("view_cleanup", "view_bucketscan").get(DASHBOARD))
        assert begin not in shown and "Somebody in the group “Storage operator” may." in shown


def steps(client: Client) -> list[str]:
    shown = page_text(client.get(DASHBOARD))
    return [re.sub("<.*?>", "", each) for each in re.findall('audit-step">(.*?)</p>', shown)]


def test_each_step_that_a_person_may_not_take_names_the_group_that_may(
    connected: None, db: None, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"NOTIFY_EMAILS": ("ann@example.com",)}
    create_cleanup("blocked")
    create_cleanup("failed")
    create_cleanup("blocked", kind="verify", project_id="proj_other")
    verification_with_leftovers("x", project_id="proj_b")
    create_scan(status="failed")
    create_finding("a", first_seen_at=LONG_AGO, last_modified=LONG_AGO)
    for kind in next_steps.STEP_PERMISSIONS:
        create_finding("b", kind=kind)
    HealthReport.objects.create(
        context="web", host="h", pid=1, probes=[PROBE | {"status": "wrong", "advice": "Mend it."}]
    )
    given_up()
    told = steps(allowed(*VIEWER_PERMISSIONS))
    assert len(told) == len(steps(superuser_client())) == 16
    for begin, group in {
        "Check the files.": "admin",
        "See what stands in the way": "admin",
        "Settle what the message says, then verify": "operator",
        "Settle what the message says, then scan": "operator",
        "A verification found them.": "admin",
        "1 of them can be deleted": "admin",
        "Upload the file again, or untrack it.": "admin",
        "Track the file": "operator",
        "Assign the file to a project, or ignore": "operator",
        "Abort the upload": "admin",
        "Mend it.": "operator",
        "See which, mend the channel": "admin",
    }.items():
        [step] = [each for each in told if each.startswith(begin)]
        assert step.endswith(f" Somebody in the group “Storage {group}” may."), step
    assert not [each for each in steps(superuser_client()) if "Somebody" in each]


def test_a_step_that_nobody_takes_names_no_group(connected: None, db: None) -> None:
    create_scan()
    create_finding("a")
    overdue()
    told = steps(allowed("view_cleanup", "view_finding", "view_alert"))
    assert len(told) == 2 and "Somebody" not in "".join(told)


PROBE = {"name": "p", "status": "ok", "summary": "s", "advice": "a", "facts": {}, "readings": {}}


def test_a_cleanup_that_waits_says_whose_files_how_many_and_who_asked(connected: None) -> None:
    snapshot = Snapshot.objects.create()
    SnapshotName.objects.create(snapshot=snapshot, project_id="proj_1", name="Autumn <sale>")
    blocked = create_cleanup(
        "blocked",
        project_id="proj_1",
        snapshot=snapshot,
        requested_by="vera",
        found=3,
        found_bytes=2048,
    )
    entry = entry_of(page_text(superuser_client().get(DASHBOARD)), change("cleanup", blocked.pk))
    assert "Autumn &lt;sale&gt; (proj_1)" in entry
    assert "3 files, 2.0" in entry and "requested by vera." in entry
    Cleanup.objects.update(found=0, found_bytes=0)
    entry = entry_of(page_text(superuser_client().get(DASHBOARD)), change("cleanup", blocked.pk))
    assert "Requested by vera." in entry and "0 files" not in entry


def change(model: str, pk: object) -> str:
    return reverse(f"admin:storage_audit_{model}_change", args=[pk])


def entry_of(shown: str, url: str) -> str:
    [entry] = [each for each in shown.split("<li>") if f'href="{url}"' in each]
    return entry


def kind_need(shown: str, word: str) -> tuple[str, str]:
    [entry] = [each for each in shown.split("<li>") if f">{word}</span>" in each]
    entry = entry.partition("</li>")[0]
    [url] = re.findall('href="(.*?)"', entry)
    return url.replace("&amp;", "&"), entry


def test_only_the_first_ten_cleanups_are_shown_and_the_rest_counted(db: None) -> None:
    for _each in range(12):
        create_cleanup("blocked")
    client = superuser_client()
    shown = page_text(client.get(DASHBOARD))
    assert shown.count("approve the cleanup, or cancel it") == 10
    [url] = re.findall('href="([^"]*)">… and 2 more', shown)
    assert listed(client, url) == 12


def overdue(number: int = 0) -> Cleanup:
    cleanup = create_cleanup("retrying", project_id=f"proj_slow{number}", created_at=LONG_AGO)
    began = NOW - timedelta(days=8, minutes=number)
    Alert.objects.create(kind="overdue", cleanup=cleanup, summary="s", began_at=began)
    return cleanup


def given_up(days_ago: int = 0, recipient: str = "ann@example.com") -> None:
    notification = Notification.objects.create(made_at=NOW - timedelta(days=days_ago))
    lost = {"state": "given_up", "next_attempt_at": None, "recipient": recipient}
    Delivery.objects.create(notification=notification, channel="email", **lost)


def test_an_overdue_deletion_is_told_with_what_to_do_until_it_is_over(db: None) -> None:
    cleanup, client = overdue(), superuser_client()
    Alert.objects.create(kind="blocked", cleanup=create_cleanup("blocked"), summary="s")
    shown = page_text(client.get(DASHBOARD))
    assert "Nothing needs you." not in shown
    entry = entry_of(shown, change("cleanup", cleanup.pk))
    assert ">overdue</span>" in entry and ">proj_slow0</a>" in entry
    assert "for 1 week, 1 day" in entry and "The timeline says what the cleanup waits for" in entry
    Alert.objects.update(ended_at=NOW)
    assert "overdue</span>" not in page_text(client.get(DASHBOARD))


def test_of_many_overdue_deletions_the_oldest_are_shown_and_the_rest_counted(db: None) -> None:
    for number in range(12):
        overdue(number)
    client = superuser_client()
    shown = page_text(client.get(DASHBOARD))
    assert [f">proj_slow{n}</a>" in shown for n in range(12)] == [False] * 2 + [True] * 10
    [url] = re.findall('href="([^"]*)">2 more deletions</a>', shown)
    assert listed(client, url.replace("&amp;", "&")) == 12


def test_messages_that_were_given_up_lately_are_told_of(db: None, settings: Settings) -> None:
    given_up()
    given_up(29)
    given_up(31)
    given_up(recipient="left@example.com")
    sent = {
        "state": "sent",
        "next_attempt_at": None,
        "sent_at": NOW,
        "recipient": "ann@example.com",
    }
    Delivery.objects.create(notification=Notification.objects.create(), channel="email", **sent)
    client = superuser_client()
    assert "could not be sent" not in page_text(client.get(DASHBOARD)), "nobody is to be told"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"NOTIFY_EMAILS": ("ann@example.com",)}
    url, entry = kind_need(page_text(client.get(DASHBOARD)), "not sent")
    assert "2 messages about alerts could not be sent" in entry
    assert "send a test message" in entry
    assert url == reverse("admin:storage_audit_alert_changelist")


def test_who_may_not_see_alerts_is_told_of_none(
    connected: None, db: None, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"NOTIFY_EMAILS": ("ann@example.com",)}
    overdue()
    given_up()
    client = allowed("view_cleanup")
    assert "Nothing needs you." in page_text(client.get(DASHBOARD))
    User.objects.get(username="ben").user_permissions.add(
        Permission.objects.get(codename="view_alert")
    )
    shown = page_text(client.get(DASHBOARD))
    assert ">proj_slow0</a>" in shown and "1 message about alerts could not be sent" in shown


def test_cleanups_that_kept_files_are_listed_until_a_later_check_finds_none(db: None) -> None:
    """Nothing has to be done about them, so the overview does not ask for anything."""
    ended = {"kept": 2, "found": 2, "finished_at": LONG_AGO}
    long_over = {**ended, "finished_at": NOW - timedelta(days=31)}
    create_cleanup("clean_with_kept", **long_over, project_id="proj_c")
    create_cleanup("clean_with_kept", **ended)
    create_cleanup("clean_with_kept", **{**ended, "finished_at": NOW})
    create_cleanup("clean_with_kept", **ended, project_id="proj_b")
    client = superuser_client()
    assert "kept what may be" not in page_text(client.get(DASHBOARD))
    url = f"{admin_url('cleanup')}?needs=judgement"
    assert listed(client, url) == 2
    create_cleanup("clean", project_id="proj_b", kind="verify", finished_at=NOW)
    assert listed(client, url) == 1


def test_real_leftovers_are_found_from_the_dashboard_with_their_reasons(bucket: Bucket) -> None:
    """A file that a verification found after the cleanup, and an orphan: both with reasons."""
    bucket.put("projects/proj_old/scenes/s1/media/old.mp4")
    Project.objects.create(pk="proj_1")
    clean_up_project("proj_1")
    bucket.r2.put("projects/proj_1/scenes/s1/media/first\nsecond.mp4", b"content", bucket.name)
    list(work_on_scan(start_scan("projects/proj_old/")))
    verify("proj_1")
    client = superuser_client()
    rows = {left.key: left.reason for left in client.get(LEFTOVER_URL).context["rows"]}
    assert sorted(rows) == [
        "projects/proj_1/scenes/s1/media/first\\nsecond.mp4",
        "projects/proj_old/scenes/s1/media/old.mp4",
    ]
    assert all(rows.values()), rows


def verify(project_id: str) -> Cleanup:
    [asked] = requests.request_verification(project_id)
    return run_until_idle(asked)


def test_what_a_verification_finds_of_a_deleted_project_leads_to_another_cleanup(
    bucket: Bucket,
) -> None:
    create_projects("proj_1")
    assert clean_up_project("proj_1").status == "clean"
    key = "projects/proj_1/scenes/s1/media/back.mp4"
    bucket.put(key)
    look, client = verify("proj_1"), superuser_client()
    assert leftover_amount() == (1, 7)
    entry = entry_of(page_text(client.get(DASHBOARD)), change("cleanup", look.pk))
    assert "1 file of proj_1 is still in bucket tests" in entry
    [left] = client.get(LEFTOVER_URL).context["rows"]
    told = "Still in the bucket. Clean up the project again."
    assert (left.key, left.reason, left.source) == (key, told, look)
    shown = page_text(client.get(change("cleanup", look.pk)))
    [url] = re.findall('href="([^"]*)">Clean up after it again', shown)
    assert 'name="project_id" value="proj_1"' in page_text(client.get(url))
    assert "disabled" not in shown.partition("Clean up after it again")[0][-300:]
    [again] = requests.declare_deleted("proj_1")
    assert leftover_amount().objects == 0
    assert run_until_idle(again).status == "clean"
    assert leftover_amount().objects == 0
    assert "is still in bucket" not in page_text(client.get(DASHBOARD))
    shown = page_text(client.get(change("cleanup", look.pk)))
    assert "Clean up after it again" not in shown


def test_only_a_later_check_of_the_whole_project_ends_what_a_verification_found(db: None) -> None:
    ended: dict[str, Any] = {"finished_at": LONG_AGO, "next_attempt_at": None, "kind": "verify"}
    ended["project_id"] = "proj_gone"
    verification_with_leftovers("a", "b", **ended)
    verification_with_leftovers("b", **ended | {"project_id": None})
    assert leftover_amount().objects == 2
    objects = create_cleanup("clean", kind="objects", finished_at=NOW)
    create_cleanup("clean", kind="verify", parent=objects, finished_at=NOW)
    create_cleanup("superseded", finished_at=NOW)
    create_cleanup("clean", bucket="other", finished_at=NOW)
    create_cleanup("clean", finished_at=LONG_AGO - timedelta(days=1))
    assert leftover_amount().objects == 2
    verification_with_leftovers("b", **ended | {"finished_at": NOW})
    assert find_verifications_with_leftovers().count() == 1
    assert leftover_amount().objects == 1
    create_cleanup("clean_with_kept", parent=create_cleanup("clean"), finished_at=timezone.now())
    assert leftover_amount().objects == 0


def test_findings_of_a_live_project_are_not_leftover_even_when_it_is_deleted(
    bucket: Bucket,
) -> None:
    bucket.r2.remove(bucket.upload("proj_1"), bucket.name)
    assert verify("proj_1").failed == 1
    assert leftover_amount().objects == 0
    Project.objects.get().delete()
    assert leftover_amount().objects == 0


# Who may see it


def test_who_may_not_view_cleanups_sees_the_lists_and_whom_to_ask(db: None) -> None:
    create_cleanup("blocked", message="secret reason")
    User.objects.create_user("cleo", is_staff=True)
    client = Client()
    client.force_login(User.objects.get(username="cleo"))
    assert client.get(DASHBOARD).status_code == 404  # No model of ours is theirs.
    assert "Open the overview" not in page_text(client.get(reverse("admin:index")))
    client = allowed("view_project")
    shown = page_text(client.get(DASHBOARD))
    main = shown.partition('id="content-start"')[2]
    assert "add you to the group “Storage viewer”" in main
    assert "Known" not in shown and "Projects" in shown
    for hidden in ("audit-tile", "secret reason", "audit-chart"):
        assert hidden not in shown
    assert "Open the overview" not in page_text(client.get(reverse("admin:index")))


def test_a_figure_is_shown_to_who_may_see_its_list(db: None) -> None:
    create_finding("a", evidence="secret evidence")
    create_scan(status="failed", message="secret message")
    HealthReport.objects.create(
        context="web", host="h", pid=1, probes=[PROBE | {"status": "wrong"}]
    )
    client = allowed("view_cleanup")
    shown = page_text(client.get(DASHBOARD))
    titles = re.findall('audit-tile-title">(.*?) ?<', shown)
    assert titles == ["Freed in the last 30 days", "Open deletions", "Waiting for a person"]
    for hidden in ("1 leftover", "secret", "Health check", "file type"):
        assert hidden not in shown
    assert client.get(LEFTOVER_URL).status_code == 403
    user = User.objects.get(username="ben")
    for permission in EVERYTHING:
        user.user_permissions.add(Permission.objects.get(codename=permission))
    shown = page_text(client.get(DASHBOARD))
    assert len(re.findall('audit-tile-title">', shown)) == 6
    assert "secret evidence" in page_text(client.get(LEFTOVER_URL))


def test_the_home_of_the_admin_tells_it_in_a_line_and_no_other_app_does(db: None) -> None:
    create_cleanup("blocked")
    create_finding("a", size=10**9)
    client = superuser_client()
    shown = page_text(client.get(reverse("admin:index")))
    panel = shown.partition('class="audit-panel"')[2].partition("</section>")[0]
    plain = re.sub("<.*?>", "", panel)
    assert "Waiting for a person: 1 decide" in plain
    assert "Leftover files: 1 file" in plain
    assert f'<a href="{DASHBOARD}">Open the overview</a>' in panel
    assert "audit-panel" not in page_text(client.get(reverse("admin:app_list", args=["auth"])))
    assert "audit-panel" not in page_text(client.get(DASHBOARD))


class OtherSite(AdminSite):
    pass


newsroom = OtherSite(name="newsroom")
for model, pages in admin.site._registry.items():
    newsroom.register(model, type(pages))
bare = OtherSite(name="bare")
bare.register(Cleanup, type(admin.site._registry[Cleanup]))
urlpatterns = [path("newsroom/", newsroom.urls), path("bare/", bare.urls), *urls.urlpatterns]


@pytest.mark.urls(__name__)
def test_it_works_on_another_site_and_leads_to_its_pages(db: None) -> None:
    create_finding("a")
    create_cleanup("blocked")
    client = superuser_client()
    shown = page_text(client.get("/newsroom/storage_audit/"))
    links = [
        url for url, _text in re.findall('<li class="audit-tile [^"]*"><a href="(.*?)">(.)', shown)
    ]
    assert len(links) == 7
    assert all(url.startswith("/newsroom/") for url in links)
    shown = page_text(client.get("/bare/storage_audit/"))
    assert len(re.findall("audit-tile-title", shown)) == 3


# What it costs, and what it must not hold


def add_rows(numbers: Iterable[int]) -> None:
    for n in numbers:
        for status in Cleanup.Status.values:
            create_cleanup(status, project_id=f"proj_{n}", finished_at=NOW - timedelta(days=n % 20))
        verification_with_leftovers(f"left{n}")
        create_finding(f"k{n}")
        create_finding(f"k{n}", kind="missing")
        create_row(f"r{n}", file_type=f"t{n}")
        day = NOW.date() - timedelta(days=n)
        DailyFigures.objects.create(day=day, taken_at=NOW, file_types={f"t{n}": [1, 1]}, **ZERO)
        HealthReport.objects.create(context="web", host="h", pid=1, probes=[PROBE])
        overdue(n)
        given_up(n)


ZERO = {"tracked": 0, "tracked_bytes": 0, "leftover": 0, "leftover_bytes": 0}


@pytest.mark.parametrize("url", [DASHBOARD, reverse("admin:index"), LEFTOVER_URL])
def test_many_rows_cost_as_many_queries_as_few(db: None, url: str) -> None:
    client = superuser_client()
    add_rows([0])
    few = count_queries(client, url)
    add_rows(range(1, 12))
    assert count_queries(client, url) == few < 46


@pytest.mark.parametrize("url", [DASHBOARD, reverse("admin:index")])
def test_no_page_waits_for_a_count_of_many_leftover_files(
    db: None, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(daily_figures, "MAX_COUNTED_LEFTOVERS", 4)
    monkeypatch.setattr(next_steps, "MAX_COUNTED_FINDINGS", 2)
    verification_with_leftovers("a", "b")
    create_finding("c", first_seen_at=LONG_AGO, last_modified=LONG_AGO)
    create_finding("d")
    client = superuser_client()
    assert "4 files" in said_of(client, url)
    create_finding("e")
    assert "about 4 files or more" in said_of(client, url)
    daily_figures.take_figures()
    DailyFigures.objects.update(taken_at=timezone.now() - timedelta(minutes=20))
    create_finding("f")
    assert "5 files, as of 20 minutes ago" in said_of(client, url)
    with CaptureQueriesContext(connection) as captured:
        shown = page_text(client.get(url))
    items = [each["sql"] for each in captured if "storage_audit_cleanupitem" in each["sql"]]
    assert all("LIMIT 3" in sql for sql in items)
    counts = [each["sql"] for each in captured if "COUNT" in each["sql"]]
    assert all("LIMIT" in sql for sql in counts if "storage_audit_finding" in sql)
    if url == DASHBOARD:
        assert "Some of them can be deleted" in kind_need(shown, "2+ leftover")[1]


def said_of(client: Client, url: str) -> str:
    """What the page says about leftover files, with or without a tile."""
    main = page_text(client.get(url)).partition('id="content"')[2]
    plain = re.sub("<.*?>", " ", main)
    return " ".join(plain.split()).partition("Leftover files")[2][:100]


def test_no_request_reads_the_table_of_objects(db: None) -> None:
    client = superuser_client()
    for url in (DASHBOARD, reverse("admin:index"), LEFTOVER_URL):
        with CaptureQueriesContext(connection) as captured:
            page_text(client.get(url))
        assert not [each for each in captured if "storage_audit_r2object" in each["sql"]]


def test_hostile_names_are_shown_as_text_and_nothing_is_inline(db: None) -> None:
    create_cleanup("blocked", project_id=HOSTILE, message=HOSTILE)
    types = {HOSTILE[:40]: [1, 1], OTHER_TYPES: [2, 2], "": [1, 0]}
    DailyFigures.objects.create(day=NOW.date(), taken_at=NOW, **ZERO, file_types=types)
    create_finding(HOSTILE)
    create_scan(status="failed", message=HOSTILE)
    for url in (
        DASHBOARD,
        DASHBOARD + "?days=90",
        DASHBOARD + f"?days={HOSTILE}",
        reverse("admin:index"),
    ):
        shown = page_text(superuser_client().get(url))
        assert "<script>alert" not in shown
        main = shown.partition('id="content-start"')[2]
        assert not re.findall(r"<[^>]* (?:style|on[a-z]+)=|<style|<script(?! src)", main)
    assert page_text(superuser_client().get(DASHBOARD)).count(ESCAPED) >= 3


# The charts


def ended(days_ago: int, status: str, number: int = 1, **values: Any) -> None:
    for _each in range(number):
        create_cleanup(status, finished_at=timezone.now() - timedelta(days=days_ago), **values)


def charts_on(client: Client, query: str = "") -> dict[str, str]:
    parts = page_text(client.get(DASHBOARD + query)).split('<section class="audit-figure">')[1:]
    return {
        re.findall("<h3>(.*?)(?: <small>.*?</small>)?</h3>", part)[0]: part.partition("</section>")[
            0
        ]
        for part in parts
    }


def table_of(chart: str) -> list[list[str]]:
    rows = re.findall("<tr>(.*?)</tr>", chart)
    return [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_deletions_and_bytes_freed_are_drawn_a_day_with_the_same_figures_in_a_table(
    db: None,
) -> None:
    ended(0, "clean", 3, deleted=1, found=1, deleted_bytes=1024, found_bytes=1024)
    ended(0, "failed")
    ended(0, "undone", 2)
    ended(0, "cancelled")
    ended(29, "clean_with_kept", 2)
    ended(30, "retrying", 5)
    # No deletions of their own; but what a follow-up check deleted is freed as well.
    ended(0, "clean", kind="verify")
    parent = Cleanup.objects.filter(status="clean").first()
    late = {"deleted": 1, "found": 1, "deleted_bytes": 2048, "found_bytes": 2048}
    ended(0, "clean", parent=parent, **late)
    today = timezone.localdate()
    client = superuser_client()
    shown = charts_on(client)
    deletions, freed = shown["Deletions by outcome, a day"], shown["Bytes freed, a day"]
    assert table_of(deletions)[0][:3] == ["Day", "Clean", "Clean, some kept"]
    for text in ("clean: 3", "clean, some kept: 2", "retrying: 0", "failed: 1", "undone: 2"):
        assert f"</svg> {text}</li>" in deletions
    assert "</svg> cancelled: 1</li>" in deletions
    assert f"<title>{today}: 3 clean</title>" in deletions
    rows = {day: figures for day, *figures in table_of(deletions)}
    assert len(rows) == 31
    assert rows[str(today)] == ["3", "0", "0", "0", "1", "2", "1"]
    assert rows[str(today - timedelta(days=29))] == ["0", "2", "0", "0", "0", "0", "0"]
    assert [f"{today}", "5.0 KB"] in table_of(freed)
    assert "In all: 5.0 KB" in freed
    longer = charts_on(client, "?days=90")["Deletions by outcome, a day"]
    assert len(table_of(longer)) == 91
    assert "</svg> retrying: 5</li>" in longer


def test_each_chart_has_a_name_a_summary_and_a_heading_of_its_own(db: None) -> None:
    create_scan()
    create_row("a", file_type="mp4")
    ended(0, "clean")
    daily_figures.take_figures()
    shown = charts_on(superuser_client())
    assert len(shown) == 6
    named = []
    for title, chart in shown.items():
        [(name, summary)] = re.findall('role="img" aria-labelledby="(.*?) (.*?)"', chart)
        assert f'<title id="{name}">{title}</title>' in chart
        assert re.findall(f'<desc id="{summary}">[^<]+</desc>', chart)
        assert "<summary>Show as a table</summary>" in chart
        assert f'tabindex="0" role="region" aria-label="{title}"><table>' in chart
        named += [name, summary]
    assert len(set(named)) == 12


def test_age_of_several_findings_is_that_of_the_oldest(connected: None) -> None:
    create_finding("a", kind="missing", first_seen_at=LONG_AGO)
    create_finding("b", kind="missing")
    client = superuser_client()
    assert "oldest: 1 week" in kind_need(page_text(client.get(DASHBOARD)), "2 missing")[1]
    Finding.objects.filter(key="b").delete()
    assert "for 1 week" in kind_need(page_text(client.get(DASHBOARD)), "1 missing")[1]


DAYS = [date(2026, 11, 1) + timedelta(days=n) for n in range(30)]


def test_axis_has_five_dates_and_no_half_empty_scale(db: None) -> None:
    drawn = charts.draw_line("n", "t", "s", DAYS, [6] * 30)
    assert re.findall(r">(\d+ Nov)<", drawn) == ["1 Nov", "8 Nov", "15 Nov", "23 Nov", "30 Nov"]
    assert [charts.round_up(n) for n in range(2, 5000) if charts.round_up(n) >= 2 * n] == []


def test_bars_are_as_high_as_their_share(db: None) -> None:
    drawn = charts.draw_stacked_bars("n", "t", "s", DAYS[:2], [Series("x", "solid", [5, 12])])
    heights = re.findall('height="([0-9.]+)"', drawn)
    assert heights == ["63.3", "152.0"]
    assert [charts.round_up(n) for n in (0, 1, 3, 6, 11, 501)] == [1, 1, 4, 6, 12, 600]
    assert charts.round_up(1500, 1024) == 2048
    assert charts.round_up(1024**3, 1024) == 1024**3


def test_a_line_goes_through_the_days_that_were_counted(db: None) -> None:
    drawn = charts.draw_line("n", "t", "s", DAYS[:3], [2, None, 1])
    assert 'points="108.7,12.0 303.3,88.0"' in drawn
    assert f"<title>{DAYS[2]}: 1</title>" in drawn


def test_file_types_are_those_of_the_last_count_and_say_of_when(db: None) -> None:
    client = superuser_client()
    title = "Files and bytes by file type"
    assert "They are counted once an hour." in charts_on(client)[title]
    create_row("a", file_type="mp4", size=3000)
    create_row("b", file_type="mp4", size=None)
    create_row("c", file_type="srt", size=5)
    create_row("d", size=1)
    daily_figures.take_figures()
    DailyFigures.objects.update(taken_at=timezone.now() - timedelta(minutes=20))
    chart = charts_on(client)[title]
    assert table_of(chart)[1:] == [
        ["mp4", "2", "2.9 KB"],
        ["srt", "1", "5 bytes"],
        ["none", "1", "1 byte"],
    ]
    assert "Tracked in all: 4 files, 2.9 KB" in chart
    assert "Counted 20 minutes ago" in chart


def counted(days_ago: int, **types: list[int]) -> None:
    day = timezone.localdate() - timedelta(days=days_ago)
    taken_at = timezone.now() - timedelta(days=days_ago)
    DailyFigures.objects.create(day=day, taken_at=taken_at, file_types=types, **ZERO)


def test_file_types_are_drawn_over_time_the_largest_of_any_day_and_the_others_together(
    db: None,
) -> None:
    titles = [f"Tracked {what} over time, by file type" for what in ("files", "bytes")]
    client, today = superuser_client(), timezone.localdate()
    assert all("They are counted once an hour." in charts_on(client)[title] for title in titles)
    counted(40, avi=[9, 9 * 1024**3])
    counted(-1, mkv=[9, 9 * 1024**3])  # As after a change of TIME_ZONE.
    assert all("No figures for these days yet" in charts_on(client)[title] for title in titles)
    counted(20, mov=[3, 8192], mp4=[1, 1024])
    counted(0, mp4=[2, 4096], srt=[5, 20], jpg=[1, 500], png=[1, 400], **{OTHER_TYPES: [7, 90000]})
    objects, sizes = (charts_on(client)[title] for title in titles)
    assert table_of(objects) == [
        ["Day", "mov", "mp4", "jpg", "all others"],
        [str(today - timedelta(days=20)), "3", "1", "0", "0"],
        [str(today), "0", "2", "1", "13"],
    ]
    assert table_of(sizes)[2] == [str(today), "0 bytes", "4.0 KB", "500 bytes", "88.3 KB"]
    assert f"<title>{today}: 13 all others</title>" in objects
    assert f"<title>{today - timedelta(days=20)}: 8.0 KB mov</title>" in sizes
    assert len(re.findall('class="audit-bar" fill="[^"]*" x=', objects)) == 2 + 3
    assert "Now: mov: 0, mp4: 2, jpg: 1, all others: 13</desc>" in objects
    assert "</svg> mp4: 4.0 KB</li>" in sizes and "</svg> all others: 13</li>" in objects
    longer = charts_on(client, "?days=90")[titles[0]]
    assert table_of(longer)[0] == ["Day", "avi", "mov", "mp4", "all others"]


def test_file_types_over_time_have_no_part_for_others_where_there_are_none(db: None) -> None:
    counted(0, mp4=[2, 4096])
    chart = charts_on(superuser_client())["Tracked bytes over time, by file type"]
    assert table_of(chart)[0] == ["Day", "mp4"] and "all others" not in chart


def test_where_nothing_is_tracked_that_is_drawn(db: None) -> None:
    counted(0)
    chart = charts_on(superuser_client())["Tracked files over time, by file type"]
    assert table_of(chart)[1:] == [[str(timezone.localdate()), "0"]]


def test_of_many_file_types_the_largest_are_kept_and_the_rest_together(db: None) -> None:
    for n in range(23):
        create_row(f"k{n}", file_type=f"t{n:02}", size=n)
    daily_figures.take_figures()
    types = DailyFigures.objects.get().file_types
    assert len(types) == 21
    assert types["t22"] == [1, 22]
    assert types[OTHER_TYPES] == [3, 0 + 1 + 2]


# The sweep counts


def test_the_sweep_counts_once_an_hour_and_keeps_one_row_a_day(db: None) -> None:
    create_finding("a", size=7)
    create_row("a", size=5)
    tasks.sweep()
    first = DailyFigures.objects.get()
    assert (first.tracked, first.tracked_bytes) == (1, 5)
    assert (first.leftover, first.leftover_bytes) == (1, 7)
    create_row("b", size=5)
    tasks.sweep()
    assert DailyFigures.objects.get().tracked == 1
    DailyFigures.objects.update(taken_at=timezone.now() - timedelta(minutes=61))
    tasks.sweep()
    assert DailyFigures.objects.get().tracked == 2
    DailyFigures.objects.update(day=timezone.localdate() - timedelta(days=1))
    tasks.sweep()
    assert DailyFigures.objects.count() == 2


def test_two_sweeps_at_once_make_one_row(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    count = daily_figures.amounts_by_type

    def while_another_sweeps() -> dict[str, Amount]:
        monkeypatch.undo()
        assert daily_figures.take_figures()
        return count()

    monkeypatch.setattr(daily_figures, "amounts_by_type", while_another_sweeps)
    assert daily_figures.take_figures()
    assert DailyFigures.objects.count() == 1


def test_a_count_that_fails_stops_nothing_else_and_is_logged(
    db: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    late = create_cleanup("pending", next_attempt_at=LONG_AGO)
    Project.objects.bulk_create([Project(pk="proj_unseen")])
    monkeypatch.setattr(daily_figures, "amounts_by_type", lambda: 1 / 0)
    assert tasks.sweep() == {"vanished": 0, "enqueued": 1}
    late.refresh_from_db()
    assert late.enqueued_at
    assert KnownProject.objects.filter(pk="proj_unseen").exists()
    assert "Could not record the day's figures" in caplog.text
    assert not DailyFigures.objects.exists()
