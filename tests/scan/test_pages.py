"""Scans and findings in the admin: what each scan looked at and saw, and what is to be decided."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html import unescape
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.utils import timezone
from django.utils.html import escape
from pytest_django import Settings

from storage_audit import tasks
from storage_audit.conf import conf
from storage_audit.display_formats import format_duration
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.request_origin import Origin, use_origin
from storage_audit.scan import scan_text
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import start_scan
from tests.admin_client import (
    admin_url,
    count_queries,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import create_finding, create_scan, track_keys
from tests.keys import ESCAPED, HOSTILE
from tests.queue.clusters import list_enqueued_ids
from tests.real_bucket import Bucket

pytestmark = pytest.mark.django_db
KINDS = Finding.Kind.values


def test_a_scan_shows_what_it_saw_of_each_kind_and_how_fast_it_was() -> None:
    began = timezone.now() - timedelta(minutes=2)
    counts = {kind: 1001 + n for n, kind in enumerate(KINDS)}
    one = create_scan(
        started_at=began,
        finished_at=began + timedelta(seconds=90),
        listed=900_000,
        listed_bytes=3 * 2**30,
        requests=912,
        **counts,
    )
    shown = page_text(superuser_client().get(admin_url("bucketscan")))
    assert '<td class="field-shown_duration">1 minute</td>' in shown
    for count in counts.values():
        assert f"{count} " in shown
    shown = page_text(superuser_client().get(admin_url("bucketscan", "change", one.pk)))
    assert "912" in shown and "3.0 GB" in shown and ">10000<" in shown
    found = sum(counts.values())
    assert f"Scan complete. 900000 files checked, {found} findings." in shown
    for count in counts.values():
        assert f">{count}<" in shown


def test_each_count_of_what_was_written_leads_to_these_findings() -> None:
    one = create_scan(bucket="tests", orphaned=1, missing=1)
    create_finding("of-it", scan=one)
    create_finding("of-it-and-missing", "missing", scan=one)
    create_finding("of-another", scan=create_scan(bucket="tests"))
    client = superuser_client()
    shown = page_text(client.get(admin_url("bucketscan", "change", one.pk)))
    links = dict(
        re.findall('<th scope="row">([^<]*)</th><td class="audit-number"><a href="(.*?)"', shown)
    )
    assert list(links) == ["Leftover", "Missing"]
    listed = page_text(client.get(unescape(links["Leftover"])))
    assert ">of-it<" in listed
    assert "of-it-and-missing" not in listed and "of-another" not in listed
    assert "A finding that a later scan saw again is listed with that scan." in shown


@pytest.mark.parametrize(
    "facts", [{"dry_run": True}, {"since": timezone.now()}, {"status": "failed"}]
)
def test_counts_of_which_no_finding_was_written_lead_nowhere(facts: dict[str, object]) -> None:
    one = create_scan(orphaned=7, **facts)
    shown = page_text(superuser_client().get(admin_url("bucketscan", "change", one.pk)))
    assert '<td class="audit-number">7</td>' in shown and "last_scan" not in shown


def test_who_may_not_see_findings_is_led_to_none() -> None:
    one = create_scan(orphaned=7)
    shown = page_text(
        staff_client("view_bucketscan").get(admin_url("bucketscan", "change", one.pk))
    )
    assert '<td class="audit-number">7</td>' in shown and "last_scan" not in shown


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("running", "Scanning. 2 files checked so far."),
        ("stopped", "Stopped before the end, so there are no findings. 2 files checked."),
        ("complete", "Scan complete. 2 files checked, 1 finding."),
        ("failed", "Scan failed, so there are no findings. 2 files checked."),
    ],
)
def test_a_scan_begins_with_its_answer_and_says_what_to_do(status: str, answer: str) -> None:
    scan = create_scan(status=status, listed=2, requests=1, missing=1, message="It broke\x1b")
    shown = page_text(superuser_client().get(admin_url("bucketscan", "change", scan.pk)))
    assert f'<h2 id="audit-answer">{answer}</h2>' in shown
    for sentence in scan_text.NEXT_STEPS[BucketScan.Status(status)]:
        assert shown.count(f"<p>{escape(str(sentence))}</p>") == 1
    assert ("<p>It broke\\x1b</p>" in shown) == (status in ("stopped", "failed"))


def test_a_scan_waits_until_a_worker_has_taken_a_part_of_it() -> None:
    with use_origin(Origin("anna")):
        scan = start_scan(purpose="reconcile")
    url, client = admin_url("bucketscan", "change", scan.pk), superuser_client()
    assert ">Waiting for a worker.</h2>" in page_text(client.get(url))
    assert scan.shards.all().acquire_leases(uuid4(), 1)
    assert ">Scanning. 0 files checked so far.</h2>" in page_text(client.get(url))


def test_a_scan_without_findings_asks_for_nothing_and_shows_no_empty_row() -> None:
    shown = page_text(
        superuser_client().get(
            admin_url("bucketscan", "change", create_scan(listed=2, max_requests=None).pk)
        )
    )
    assert "Scan complete. 2 files checked, no findings." in shown
    assert "Review the findings" not in shown and "Show the findings" not in shown
    labels = re.findall('<tr><th scope="row">([^<]*)</th><td>([^<]*)', shown)
    assert dict(labels).keys().isdisjoint({"Request limit", "Dry run", "Listing order"})
    assert all(value or label in ("Started", "Finished") for label, value in labels)


@pytest.mark.parametrize(
    ("scope", "sentences"),
    [
        ({"dry_run": True}, scan_text.DRY_RUN_TEXTS),
        ({"since": timezone.now()}, scan_text.PARTIAL_TEXTS),
    ],
)
def test_a_scan_that_wrote_no_findings_says_so(
    scope: dict[str, object], sentences: tuple[str, str]
) -> None:
    shown = page_text(
        superuser_client().get(admin_url("bucketscan", "change", create_scan(**scope).pk))
    )
    assert all(f"<p>{escape(str(sentence))}</p>" in shown for sentence in sentences)
    failed = create_scan(status="failed", **scope)
    shown = page_text(superuser_client().get(admin_url("bucketscan", "change", failed.pk)))
    assert "Scan failed, so there are no findings." in shown


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"accept_fewer": True}, "accept the result"),
        ({"in_key_order": False}, "Missing files are found at the end."),
    ],
)
def test_a_scan_says_in_sentences_what_is_unusual_about_it(
    facts: dict[str, object], says: str
) -> None:
    url, plain = admin_url("bucketscan", "change", create_scan(**facts).pk), create_scan()
    client = superuser_client()
    assert says in page_text(client.get(url))
    assert says not in page_text(client.get(admin_url("bucketscan", "change", plain.pk)))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "less than a second"),
        (1.4, "1 second"),
        (59.9, "59 seconds"),
        (90, "1 minute"),
        (7500, "2 hours, 5 minutes"),
        (86_405, "1 day"),
        (183_600, "2 days, 3 hours"),
    ],
)
def test_a_duration_is_in_words(seconds: float, shown: str) -> None:
    assert format_duration(timedelta(seconds=seconds)).replace("\xa0", " ") == shown


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        ({}, ">tests<"),
        ({"prefix": "a\u202e/"}, "tests/a\\u202e/<"),
        ({"project_id": "proj_1"}, "tests, project proj_1<"),
        ({"since": timezone.now()}, "tests, only files tracked since "),
    ],
)
def test_a_scan_says_what_it_listed(scope: dict[str, object], says: str) -> None:
    one = create_scan(bucket="tests", **scope)
    client = superuser_client()
    assert says in page_text(client.get(admin_url("bucketscan")))
    shown = page_text(client.get(admin_url("bucketscan", "change", one.pk)))
    assert f"<h1>Scan of {says.removeprefix('>')}" in shown


def test_a_scan_under_way_has_a_duration_and_one_that_failed_its_message() -> None:
    running = create_scan(status="running", finished_at=None)
    page_text(superuser_client().get(admin_url("bucketscan", "change", running.pk)))
    failed = create_scan(status="failed", message="It broke\x1b")
    assert "It broke\\x1b" in page_text(
        superuser_client().get(admin_url("bucketscan", "change", failed.pk))
    )


def test_findings_are_filtered_by_state_and_kind() -> None:
    one = create_scan()
    create_finding("first", scan=one)
    create_finding("second", "missing", scan=one)
    create_finding("third", scan=one, state="ignored")
    client = superuser_client()
    for query, key in (
        ({"kind__exact": "missing"}, "second"),
        ({"state__exact": "ignored"}, "third"),
        ({"kind__exact": "orphaned", "state__exact": "open"}, "first"),
    ):
        shown = page_text(client.get(admin_url("finding"), query))
        assert [k for k in ("first", "second", "third") if f">{k}<" in shown] == [key]


def test_a_finding_shows_hostile_keys_evidence_and_notes_escaped() -> None:
    one = create_finding(HOSTILE, evidence=HOSTILE, note=HOSTILE, project_id=HOSTILE)
    shown = page_text(superuser_client().get(admin_url("finding", "change", one.pk)))
    assert shown.count(ESCAPED) >= 4
    assert "<script>alert" not in shown and "\u202e" not in shown
    shown = page_text(superuser_client().get(admin_url("finding")))
    assert shown.count(ESCAPED) >= 3
    assert "<script>alert" not in shown and "\u202e" not in shown


@pytest.mark.parametrize("model", ["finding", "bucketscan"])
def test_a_list_costs_as_many_queries_for_50_rows_as_for_one(model: str) -> None:
    client, one = superuser_client(), create_scan()
    create_finding("first", scan=one)
    before = count_queries(client, admin_url(model))
    for n in range(49):
        create_finding(f"{n}", scan=create_scan())
    assert count_queries(client, admin_url(model)) == before


@pytest.mark.parametrize("model", ["finding", "bucketscan"])
def test_every_column_sorts(model: str) -> None:
    create_finding("first")
    for column in range(1, 10):
        page_text(superuser_client().get(admin_url(model), {"o": str(column)}))


# To begin, stop and resume one


def begin(client: Client, **fields: object) -> str:
    given = {"purpose": "reconcile", "begin": "yes", **fields}
    return page_text(client.post(admin_url("bucketscan", "add"), given, follow=True))


@pytest.mark.parametrize(
    ("fields", "scope"),
    [
        ({}, {}),
        ({"purpose": "backfill", "dry_run": "on"}, {"purpose": "backfill", "dry_run": True}),
        ({"beginning": " a/"}, {"prefix": " a/"}),
        (
            {"project_id": "proj_1", "max_requests": "99"},
            {"project_id": "proj_1", "max_requests": 99},
        ),
    ],
)
def test_who_may_begins_a_scan_that_a_worker_does(
    fields: dict[str, object], scope: dict[str, object]
) -> None:
    shown = begin(staff_client("add_bucketscan", "view_bucketscan"), **fields)
    scan = BucketScan.objects.get()
    usual = {"purpose": "reconcile", "prefix": "", "project_id": None, "dry_run": False}
    for name, value in {**usual, "max_requests": conf().scan_max_requests, **scope}.items():
        assert getattr(scan, name) == value
    assert (scan.status, scan.requested_by) == ("running", "ben")
    assert list_enqueued_ids() == [str(scan.pk)]
    assert "Scan queued. It usually starts within a minute." in shown
    assert LogEntry.objects.get().object_id == str(scan.pk)


def test_a_scan_that_a_person_began_is_shown_while_it_runs_and_with_what_it_found(
    bucket: Bucket,
) -> None:
    bucket.put("README.txt")
    client = superuser_client()
    assert ">Waiting for a worker.</h2>" in (shown := begin(client))
    assert "data-live" in shown and "live.js" in shown and 'http-equiv="refresh"' in shown
    assert 'id="audit-unreachable" hidden' in shown and 'id="audit-refused" hidden' in shown
    assert '<div id="audit-now" data-live>' in shown, "each figure would be read aloud"
    scan = BucketScan.objects.get()
    assert tasks.take_part(str(scan.pk)) == "complete"
    shown = page_text(client.get(admin_url("bucketscan", "change", scan.pk)))
    assert "data-live" not in shown and "live.js" not in shown
    [link] = re.findall('href="([^"]*)">Show the findings', shown)
    assert "README.txt" in page_text(client.get(unescape(link)))


def test_the_cost_is_said_first_and_nothing_is_begun() -> None:
    track_keys(*(f"{n}" for n in range(3)), bucket=conf().bucket)
    R2Object.objects.update(created_at=timezone.now() - timedelta(days=1))
    shown = page_text(
        superuser_client().post(admin_url("bucketscan", "add"), {"purpose": "reconcile"})
    )
    assert "Estimate: 3 files, 1 request to the bucket, less than $0.01. Nothing was" in shown
    assert not BucketScan.objects.exists() and not list_enqueued_ids()


def test_the_form_says_what_a_scan_does_and_what_the_last_one_took() -> None:
    client, url = superuser_client(), admin_url("bucketscan", "add")
    shown = page_text(client.get(url, {"purpose": "backfill"}))
    assert "It never changes or deletes a file in the bucket." in shown
    assert "The last scan" not in shown
    ended, whole = timezone.now(), conf().bucket
    for bucket, prefix, listed in ((whole, "a/", 1), ("other", "", 2), (whole, "", 1_400_000)):
        create_scan(
            bucket=bucket,
            prefix=prefix,
            listed=listed,
            requests=1400,
            started_at=ended - timedelta(seconds=90),
            finished_at=ended,
        )
    took = "1,400,000 files, 1,400 requests to the bucket, $0.01, 1 minute."
    assert f"The last scan of the whole bucket took: {took}" in page_text(client.get(url))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_requests": "0"}, "To scan anyway, raise the limit."),
        ({"project_id": "nonsense!"}, "“nonsense!” is not a project ID."),
        ({"beginning": "a", "project_id": "proj_1"}, "Choose a prefix or a project, not both."),
        ({"beginning": "a\0"}, "Null characters are not allowed."),
        ({"purpose": "delete"}, "delete is not one of the available choices."),
    ],
)
def test_what_cannot_be_scanned_is_refused_with_the_reason(
    fields: dict[str, object], says: str
) -> None:
    assert says in begin(superuser_client(), **fields)
    assert not BucketScan.objects.exists() and not list_enqueued_ids()


def test_beside_a_scan_of_the_whole_bucket_no_other_is_begun_but_one_of_a_part() -> None:
    create_scan(status="running", bucket=conf().bucket, finished_at=None)
    client = superuser_client()
    assert "another scan of the whole bucket is running" in begin(client)
    assert BucketScan.objects.count() == 1
    begin(client, beginning="a/")
    assert BucketScan.objects.count() == 2


def test_beside_a_scan_of_the_whole_bucket_no_other_goes_on_and_none_twice() -> None:
    stopped, running = begun_by_anna(), begun_by_anna()
    stopped.stop("")
    client = superuser_client()
    shown = run_action(client, "bucketscan", "resume", stopped.pk)
    assert "another scan of the whole bucket is running" in shown
    assert f"Scan {running.pk} is already running." in run_action(
        client, "bucketscan", "resume", running.pk
    )
    stopped.refresh_from_db()
    assert stopped.status == "stopped" and not list_enqueued_ids()
    assert not LogEntry.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("to_do", ["begin", "resume"])
def test_of_those_who_ask_for_the_same_scan_at_once_one_gets_it(bucket: Bucket, to_do: str) -> None:
    if to_do == "resume":
        begun_by_anna().stop("")
    client = superuser_client()

    def ask(_number: int) -> None:
        one = Client()
        one.cookies = client.cookies
        if to_do == "begin":
            one.post(admin_url("bucketscan", "add"), {"purpose": "reconcile", "begin": "yes"})
        else:
            chosen = {"action": "resume", "_selected_action": [BucketScan.objects.get().pk]}
            one.post(admin_url("bucketscan"), chosen)
        connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))
    assert list_enqueued_ids() == [str(BucketScan.objects.running().get().pk)]


def test_without_workers_no_scan_is_begun(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    reason = "Scans need a worker, and the setting CLEANUP_SYNC turns workers off."
    client = superuser_client()
    assert reason in page_text(client.get(admin_url("bucketscan")))
    assert reason in begin(client)
    scan = create_scan(status="stopped")
    assert reason in run_action(client, "bucketscan", "resume", scan.pk)
    assert not BucketScan.objects.running().exists()


def test_who_may_not_begin_one_sees_why_and_is_refused() -> None:
    client = staff_client("view_bucketscan")
    shown = page_text(client.get(admin_url("bucketscan")))
    assert 'value="Start a scan" disabled' in shown and 'value="Start a backfill" disabled' in shown
    assert "Ask an administrator to add you to the group “Storage operator”." in shown
    for answer in (client.get, client.post):
        assert answer(admin_url("bucketscan", "add"), {"purpose": "reconcile"}).status_code == 403
    assert not BucketScan.objects.exists()
    shown = page_text(superuser_client().get(admin_url("bucketscan")))
    assert admin_url("bucketscan", "add") + "?purpose=backfill" in shown and "disabled" not in shown


def test_a_scan_is_stopped_and_goes_on() -> None:
    scan, over = begun_by_anna(), create_scan(bucket=conf().bucket)
    client = superuser_client()
    shown = run_action(client, "bucketscan", "stop", scan.pk, over.pk)
    assert "Stopped 1 scan. You can resume a scan" in shown
    scan.refresh_from_db()
    assert (scan.status, scan.message) == (
        "stopped",
        "Stopped by anna. Resume the scan to continue.",
    )
    assert not list_enqueued_ids()
    shown = run_action(client, "bucketscan", "resume", scan.pk, over.pk)
    assert "Scan resumed. It continues where it stopped." in shown
    assert f"Scan {over.pk} can&#x27;t be resumed: it is complete, older than a day, or" in shown
    scan.refresh_from_db()
    assert scan.status == "running"
    assert list_enqueued_ids() == [str(scan.pk)]
    scan.stop("later")
    BucketScan.objects.update(marker_seen_at=timezone.now() - timedelta(hours=2))
    assert "Scan restarted from the beginning" in run_action(
        client, "bucketscan", "resume", scan.pk
    )
    other = create_scan(status="stopped", bucket="other")
    assert "belongs to bucket other, but" in run_action(client, "bucketscan", "resume", other.pk)
    assert "No scan was stopped" in run_action(client, "bucketscan", "stop", over.pk)


def begun_by_anna() -> BucketScan:
    with use_origin(Origin("anna")):
        return start_scan(purpose="reconcile")


@pytest.mark.parametrize(
    ("status", "offered"),
    [("running", {"stop"}), ("stopped", {"resume"}), ("failed", {"resume"}), ("complete", set())],
)
def test_a_page_offers_to_stop_what_runs_and_to_resume_what_does_not(
    status: str, offered: set[str]
) -> None:
    model_admin, scan = admin.site.get_model_admin(BucketScan), create_scan(status=status)
    is_offered = model_admin.is_action_offered  # type: ignore[attr-defined]
    assert {name for name in ("stop", "resume") if is_offered(scan, name)} == offered
