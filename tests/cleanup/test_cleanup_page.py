"""What the page of one cleanup shows of many items, of a long timeline, and while it runs."""

import re
from datetime import timedelta
from typing import Any
from unicodedata import normalize
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from storage_audit.cleanup import requests, runner
from storage_audit.cleanup.admin import cleanup_page, items
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.admin_client import (
    client_for,
    page_text,
    read_totals,
    staff_client,
    superuser_client,
    url_of_cleanup,
)
from tests.builders import add_items, create_cleanup
from tests.promises import (
    act_before_batch,
    act_before_verification,
    request_cleanup,
    run_until_idle,
)
from tests.real_bucket import Bucket

KEY = re.compile('<th scope="row"><code class="audit-key">(.*?)</code>')
TO_PAGE = r'<a href="(\?[^"]*#items)"[^>]*>{}</a>'
COMMAND = {
    "argv": ["wrangler", "r2", "object", "delete", "tests/a b.mp4", "--remote"],
    "exit_code": 1,
    "stdout": "first line\nsecond\x1b line",
    "stderr": "",
    "seconds": 1.5,
}


@pytest.fixture
def scattered(db: None, monkeypatch: pytest.MonkeyPatch) -> Cleanup:
    """Items of several outcomes, in listed ranges and in none; two look alike, and are on two
    pages."""
    monkeypatch.setattr(items, "ITEMS_PER_PAGE", 13)
    cleanup = create_cleanup("running")
    for outcome in ("to_delete", "deleted", "kept"):
        for span in (1, None, 0):
            add_items(cleanup, 6, outcome=outcome, range_index=span)
    place = {"outcome": "to_delete", "range_index": 1}
    alike = cleanup.items.filter(**place).order_by("key").values("key", "identity")[1]
    add_items(cleanup, 1, **place, **alike, escaped=True)
    return cleanup


def pages(client: Client, url: str, link: str) -> list[list[str]]:
    """The keys on this page and on those behind it, each found by the link on the one before."""
    found, start = list[list[str]](), url.partition("?")[0]
    while True:
        shown = page_text(client.get(url))
        found.append(KEY.findall(shown))
        following = re.search(TO_PAGE.format(link), shown)
        if following is None:
            return found
        url = start + following[1].replace("&amp;", "&")


def last_page(client: Client, url: str) -> str:
    shown = page_text(client.get(url))
    while following := re.search(TO_PAGE.format("Next"), shown):
        last = url.partition("?")[0] + following[1].replace("&amp;", "&")
        shown = page_text(client.get(last))
    return last


def test_each_item_is_on_one_page_forwards_and_backwards(scattered: Cleanup) -> None:
    client, url = superuser_client(), url_of_cleanup(scattered)
    there = sorted(scattered.items.values_list("key", flat=True))
    forwards = pages(client, url, "Next")
    assert sorted(key for page in forwards for key in page) == there
    assert [len(page) for page in forwards] == [13, 13, 13, 13, 3]
    backwards = pages(client, last_page(client, url), "Previous")
    assert backwards == forwards[::-1]


def test_items_of_an_outcome_come_in_pages_too(scattered: Cleanup) -> None:
    there = scattered.items.filter(outcome="deleted").values_list("key", flat=True)
    found = pages(superuser_client(), f"{url_of_cleanup(scattered)}?outcome=deleted", "Next")
    assert sorted(key for page in found for key in page) == sorted(there)


def test_page_goes_on_where_it_was_when_an_item_has_another_outcome_by_then(
    scattered: Cleanup,
) -> None:
    client, url = superuser_client(), f"{url_of_cleanup(scattered)}?outcome=to_delete"
    shown = page_text(client.get(url))
    before, link = KEY.findall(shown), re.search(TO_PAGE.format("Next"), shown)
    scattered.items.filter(key=before[-1]).update(outcome="deleting")
    assert link
    rest = pages(client, url.partition("?")[0] + link[1].replace("&amp;", "&"), "Next")
    assert len(before) + sum(map(len, rest)) == 19
    assert not {*before} & {key for page in rest for key in page}


def test_search_finds_the_beginning_of_a_key_in_any_spelling(db: None) -> None:
    cleanup = create_cleanup("running")
    for key in ("caf\N{LATIN SMALL LETTER E WITH ACUTE}/1.mp4", "cafe/2.mp4", "Caf/3.mp4"):
        add_items(cleanup, 1, key=key, identity=normalize("NFC", key))
    client, url = superuser_client(), url_of_cleanup(cleanup)

    def found(**query: str) -> list[str]:
        return KEY.findall(page_text(client.get(url, query)))

    assert found(q=normalize("NFD", "café")) == ["café/1.mp4"]
    assert found(q="caf") == ["cafe/2.mp4", "café/1.mp4"]
    assert found(q="caf", outcome="deleted") == []
    assert found(q="a\0b") == []
    assert "No files match." in page_text(client.get(url, {"q": "nothing"}))


def test_search_comes_in_pages(scattered: Cleanup) -> None:
    found = pages(superuser_client(), f"{url_of_cleanup(scattered)}?q=k00", "Next")
    assert sum(map(len, found)) == scattered.items.count()


def test_places_made_by_hand_lead_to_the_first_page(scattered: Cleanup) -> None:
    other = create_cleanup("running")
    add_items(other, 1)
    client, url = superuser_client(), url_of_cleanup(scattered)
    first = KEY.findall(page_text(client.get(url)))
    for name in (
        "x",
        "planned-x",
        "nothing-1",
        f"planned-{other.items.get().pk}",
        "planned-" + "9" * 30,
    ):
        assert (
            KEY.findall(
                page_text(client.get(url, {"after": name, "earlier": name, "tab": "files"}))
            )
            == first
        )


def test_item_shows_its_evidence(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_x_s1_media.mp4")
    Project.objects.create(pk="proj_1_x")
    cleanup = run_until_idle(request_cleanup("proj_1"))
    shown = page_text(superuser_client().get(f"{url_of_cleanup(cleanup)}?outcome=kept"))
    for told in (
        "flat: project proj_1, scene x_s1, extension mp4",
        "flat: project proj_1_x, scene s1, extension mp4",
        "proj_1, which does not exist",
        "proj_1_x, which exists",
        "listed only",
        "0 times",
        cleanup.items.get(outcome="kept").etag,
    ):
        assert escape(told) in shown, told
    shown = page_text(superuser_client().get(f"{url_of_cleanup(cleanup)}?outcome=deleted"))
    assert "<dt>Sent for deletion</dt><dd>1 time</dd>" in shown
    assert "<dt>The store's answer</dt><dd>Deleted</dd>" in shown


def test_page_of_a_closed_cleanup_adds_nothing_up(db: None) -> None:
    cleanup, client = create_cleanup("clean", found=3, deleted=3), superuser_client()
    Cleanup.objects.update(finished_at=timezone.now())
    add_items(cleanup, 3, outcome="deleted")
    with CaptureQueriesContext(connection) as captured:
        shown = page_text(client.get(url_of_cleanup(cleanup)))
    assert read_totals(shown)["deleted"] == ("3", "0 bytes")
    assert "Deleted (3)</a>" in shown
    sums = [q["sql"] for q in captured if "storage_audit_cleanupitem" in q["sql"]]
    assert sums and not [sql for sql in sums if "SUM(" in sql or "COUNT(" in sql]


def test_reasons_are_counted_among_so_many(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup_page, "REASON_SAMPLE_SIZE", 3)
    cleanup = create_cleanup("clean_with_kept", found=5, kept=5)
    add_items(cleanup, 5, outcome="kept", reason="in doubt")
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert "Counted among the first 3 of them." in shown
    assert "3 kept" in shown


def timeline_of(cleanup: Cleanup) -> str:
    return f"{url_of_cleanup(cleanup)}?tab=timeline"


def test_program_that_was_run_can_be_read(db: None) -> None:
    cleanup = create_cleanup("running")
    cleanup.record("command", "It ran.", **COMMAND)
    shown = page_text(superuser_client().get(timeline_of(cleanup)))
    for told in (
        "<dd><code>wrangler</code></dd>",
        f"<dd><code>{escape(repr('tests/a b.mp4'))}</code></dd>",
        "<dt>Exit code</dt><dd>1</dd>",
        "1.5 seconds",
        "first line second\\x1b line</pre>",
    ):
        assert told in shown, told
    assert "argv" not in shown


def test_data_of_an_event_is_a_list_of_names_and_values(db: None) -> None:
    cleanup = create_cleanup("running")
    keys = [f"k{n}" for n in range(150)]
    cleanup.record("plan", "Found.", next_attempt="soon", keys=keys, refused=True, of={"a": [1]})
    shown = page_text(superuser_client().get(timeline_of(cleanup)))
    assert "<dt>next attempt</dt><dd>soon</dd>" in shown
    assert "<dt>refused</dt><dd>yes</dd>" in shown
    assert "<dd>k0<br>k1<br>" in shown and "k99<br>and 50 more</dd>" in shown
    assert "<dt>of</dt><dd>a: [1]</dd>" in shown


def test_figures_of_a_crosscheck_are_in_words(db: None) -> None:
    cleanup = create_cleanup("running")
    cleanup.record("verify", "Same.", second_look={"shown": 7, "fewer": 0, "doubted": 1})
    shown = page_text(superuser_client().get(timeline_of(cleanup)))
    assert "<dt>crosscheck</dt>" in shown
    assert "shown by both: 7" in shown and "shown by Cloudflare&#x27;s API only: 1" in shown
    assert "S3 only" not in shown


def test_a_crosscheck_that_was_not_made_has_no_figures(db: None) -> None:
    cleanup = create_cleanup("running")
    cleanup.record("verify", "Not asked.", second_look={"shown": 0, "fewer": 0, "doubted": 0})
    assert "crosscheck" not in page_text(superuser_client().get(timeline_of(cleanup)))


def test_many_batches_in_a_row_are_one_line_that_opens(db: None) -> None:
    cleanup = create_cleanup("running")
    for n in range(12):
        cleanup.record("delete", f"Batch {n}.", sent=10, absent=n % 2)
    shown = page_text(superuser_client().get(timeline_of(cleanup)))
    assert "12 entries of this kind, sent 120, not listed any more 6" in shown
    assert "Batch 0." in shown and "Batch 11." in shown


def test_timeline_leads_back_to_its_beginning(db: None) -> None:
    cleanup, client = create_cleanup("running"), superuser_client()
    at = timezone.now()
    for n in range(450):
        cleanup.record("plan", f"event {n}.")
    # Those of one transaction may have the same time.
    cleanup.events.update(at=at)
    url, seen = f"{url_of_cleanup(cleanup)}?tab=timeline", list[str]()
    while True:
        shown = page_text(client.get(url))
        seen = re.findall(r"event (\d+)\.", shown) + seen
        earlier = re.search(r'<a href="(\?tab=timeline&amp;earlier=\d+#timeline)"', shown)
        if earlier is None:
            break
        url = url_of_cleanup(cleanup) + earlier[1].replace("&amp;", "&")
    assert seen == [str(n) for n in range(450)]
    assert "Latest entries" in shown


# While it runs


def progress_of(cleanup: Cleanup) -> str:
    return reverse("admin:storage_audit_cleanup_progress", args=[cleanup.pk])


def asked(client: Client, cleanup: Cleanup) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(progress_of(cleanup)).json()
    return answer


def counts(told: dict[str, Any]) -> dict[str, int]:
    return {line["name"]: line["objects"] for line in told["totals"] if line["objects"]}


def test_progress_tells_of_each_step_and_of_the_end(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4", "proj_1_s2_media.mp4")
    cleanup, client, seen = request_cleanup("proj_1"), superuser_client(), list[dict[str, Any]]()
    waiting = asked(client, cleanup)
    assert (waiting["status"], waiting["sentence"]) == ("pending", "Waiting to start.")

    def ask() -> None:
        seen.append(asked(client, cleanup))

    act_before_batch(monkeypatch, ask)
    act_before_verification(monkeypatch, ask)
    run_until_idle(cleanup)
    deleting, verifying = seen
    assert (deleting["step"], deleting["done"], deleting["total"]) == ("delete", 0, 3)
    assert deleting["sentence"].startswith("Deleting: 0 of 3 files, 0 a second, time left unknown")
    assert (deleting["share"], deleting["seconds_left"]) == (0, None)
    assert counts(deleting) == {"found": 3, "to_delete": 3}
    assert verifying["step_in_words"] == "Checking that the files are gone."
    assert counts(verifying) == {"found": 3, "deleting": 3}
    ended = asked(client, cleanup)
    assert (ended["status"], ended["finished"]) == ("clean", True)
    assert counts(ended) == {"found": 3, "deleted": 3}


def test_progress_costs_three_queries_and_adds_nothing_up(db: None) -> None:
    cleanup, client = create_cleanup("running", step="delete"), superuser_client()
    add_items(cleanup, 5)
    client.get(progress_of(cleanup))
    with CaptureQueriesContext(connection) as captured:
        assert client.get(progress_of(cleanup)).status_code == 200
    assert len(captured) == 3
    assert not [q["sql"] for q in captured if "cleanupitem" in q["sql"]]


def test_progress_is_for_those_who_may_view(db: None) -> None:
    cleanup, user = create_cleanup("running"), staff_client()
    assert user.get(progress_of(cleanup)).status_code == 200
    assert Client().get(progress_of(cleanup)).status_code == 302
    stranger = client_for(User.objects.create_user("zoe", is_staff=True))
    assert stranger.get(progress_of(cleanup)).status_code == 403
    cleanup.pk = uuid4()
    assert user.get(progress_of(cleanup)).status_code == 404


@pytest.mark.parametrize(
    ("status", "due_in", "watched", "refreshed"),
    [
        ("running", timedelta(minutes=1), True, True),
        ("pending", timedelta(0), True, True),
        ("pending", timedelta(days=8), True, False),
        ("retrying", timedelta(seconds=30), True, True),
        ("differs", None, False, False),
        ("failed", timedelta(seconds=30), False, False),
        ("clean", None, False, False),
    ],
)
def test_page_keeps_itself_up_to_date_only_where_something_is_to_happen(
    db: None, status: str, due_in: timedelta | None, watched: bool, refreshed: bool
) -> None:
    due = None if due_in is None else timezone.now() + due_in
    kind = "verify" if status == "differs" else "project"
    cleanup = create_cleanup(status, kind=kind, next_attempt_at=due)
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert ("progress.js" in shown) == watched
    assert ('http-equiv="refresh"' in shown) == refreshed


def test_what_waits_for_days_is_asked_for_once_a_minute(db: None) -> None:
    cleanup = create_cleanup(next_attempt_at=timezone.now() + timedelta(days=8))
    told = asked(superuser_client(), cleanup)
    assert (told["next_poll_seconds"], told["waits"]) == (60, True)
    assert told["sentence"].startswith("Starts ")


def test_verification_speaks_of_differences_and_not_of_deletions(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put("proj_1_s1_media.mp4")
    check = requests.request_verification("proj_1")[0]
    assert runner.run_to_end(check.pk).status == "differs"
    shown = page_text(superuser_client().get(f"{url_of_cleanup(check)}?outcome=failed"))
    assert "Different (1)</a>" in shown
    assert '<td class="audit-short">different</td>' in shown
    assert "<strong>1 different (7 bytes):</strong> In the bucket, but not tracked" in shown


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "vanished", "status": "blocked", "vanished_ids": []},
        {"status": "clean", "pruned_at": timezone.now(), "archive": "a", "archive_digest": "d"},
    ],
)
def test_verification_that_is_impossible_is_not_offered(db: None, values: dict[str, Any]) -> None:
    shown = page_text(superuser_client().get(url_of_cleanup(create_cleanup(**values))))
    assert "Verify cleanup" not in shown


def test_page_offers_two_buttons_and_has_the_others_behind_them(db: None) -> None:
    cleanup = create_cleanup("blocked")
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    first, more = shown.split("<summary>More actions</summary>")
    assert re.findall('<input type="submit" value="([^"]*)"', first.split("audit-answer")[-1]) == [
        "Approve",
        "Cancel, keep the files",
    ]
    assert 'value="Verify cleanup"' in more


def test_approval_says_how_much_it_deletes(db: None) -> None:
    cleanup = create_cleanup("blocked")
    add_items(cleanup, 3)
    add_items(cleanup, 1, outcome="kept")
    shown = page_text(superuser_client().get(url_of_cleanup(cleanup)))
    assert 'value="Approve: delete 3 files, 30 bytes" class="audit-danger"' in shown


@pytest.mark.parametrize(
    ("query", "tab"),
    [
        ("", "files"),
        ("?tab=details", "details"),
        ("?tab=nothing", "files"),
        ("?tab=plan", "files"),
        ("?outcome=failed", "files"),
        ("?earlier=1", "timeline"),
    ],
)
def test_only_the_tab_that_is_shown_is_read(db: None, query: str, tab: str) -> None:
    cleanup = create_cleanup("running")
    add_items(cleanup, 1)
    answer = superuser_client().get(url_of_cleanup(cleanup) + query)
    assert answer.context["tab"] == tab
    assert ("items" in answer.context, "runs" in answer.context, "facts" in answer.context) == (
        tab == "files",
        tab == "timeline",
        tab == "details",
    )
    page = page_text(answer)
    assert re.findall('<a href="\\?tab=([a-z]+)#tabs" aria-current="page">', page) == [tab]


@pytest.mark.parametrize(("query", "tab"), [("", "plan"), ("?outcome=kept", "files")])
def test_preview_shows_its_plan_first(db: None, query: str, tab: str) -> None:
    answer = superuser_client().get(url_of_cleanup(create_cleanup("planned")) + query)
    assert answer.context["tab"] == tab
