"""The admin's lists: pages that show each row once, counts that end early, and what they cost."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.core import signing
from django.db import connection
from django.db.models import Model
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from storage_audit.alerts import alert_text
from storage_audit.alerts.models import Alert
from storage_audit.api.models import ApiToken
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.projects.admin.projects import ProjectAdmin
from storage_audit.scan.models import BucketScan
from storage_audit.tracking.admin.files import R2ObjectAdmin
from storage_audit.ui import keyset_list
from storage_audit.ui.model_admin import AuditAdmin
from tests.admin_client import admin_url, count_queries, page_text, superuser_client
from tests.builders import track_files

NOW = timezone.now()
SOME_ID = "b3ff6a2c-7c0e-4d3f-9a53-0d8a0f1a7f11"
FIRST_INSTEAD = "That page of the list no longer exists. This is the first page."


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three rows."""
    monkeypatch.setattr(AuditAdmin, "list_per_page", 3)


def link(shown: str, text: str) -> str | None:
    found = re.search(rf'href="([^"]*)"[^>]*>{text}</a>', shown)
    return found and unescape(found[1])


def rows_of(shown: str) -> list[str]:
    return re.findall(r'name="_selected_action" value="([^"]+)"', shown)


def walk(client: Client, model: str, query: str, text: str) -> list[list[str]]:
    """The rows of each page, by the links with this text."""
    found, url = list[list[str]](), query
    while True:
        shown = page_text(client.get(admin_url(model) + url))
        found.append(rows_of(shown))
        onward = link(shown, text)
        if onward is None:
            return found
        url = onward


def findings(count: int, **facts: Any) -> list[Finding]:
    """Two of each key."""
    scan = BucketScan.objects.create(bucket="tests")
    seen = {"bucket": "tests", "first_scan": scan, "last_scan": scan, **facts}
    kinds = ("orphaned", "misnamed")
    return Finding.objects.bulk_create(
        [Finding(key=f"k{n // 2:03}", kind=kinds[n % 2], **seen) for n in range(count)]
    )


def make_cleanup_rows(count: int) -> list[Cleanup]:
    """Four of each moment; one in five was not asked for a project."""
    return Cleanup.objects.bulk_create(
        [
            Cleanup(
                kind="project",
                project_id=f"proj_{n}" if n % 5 else None,
                bucket="tests",
                trigger="deleted",
                created_at=NOW - timedelta(seconds=n // 4),
            )
            for n in range(count)
        ]
    )


def objects(count: int) -> list[R2Object]:
    facts = {"bucket": "tests", "source": "upload", "state": "stored", "size": 1}
    return R2Object.objects.bulk_create([R2Object(key=f"k{n:03}", **facts) for n in range(count)])


def projects(count: int) -> list[Project]:
    made = [Project(id=f"proj_{n}", created_at=NOW - timedelta(n // 4)) for n in range(count)]
    return Project.objects.bulk_create(made)


def tracked(count: int) -> None:
    for n in range(count):
        track_files(f"proj_{count}_{n}", 2)


WALKS = [
    (findings, "finding", "", ("key", "pk")),
    (findings, "finding", "?o=-1", ("-key", "pk")),
    (findings, "finding", "?state__exact=open", ("key", "pk")),
    (make_cleanup_rows, "cleanup", "", ("-created_at", "pk")),
    (make_cleanup_rows, "cleanup", "?o=5", ("created_at", "pk")),
    (objects, "r2object", "", ("key", "pk")),
    (projects, "project", "", ("-created_at", "pk")),
    (projects, "project", "?o=6.1", ("created_at", "pk")),
]


@pytest.mark.parametrize(("make", "model", "query", "order"), WALKS)
def test_next_and_previous_show_each_row_once_and_in_order(
    db: None,
    short: None,
    make: Callable[[int], list[Model]],
    model: str,
    query: str,
    order: tuple[str, ...],
) -> None:
    client = superuser_client()
    table = type(make(11)[0])
    expected = [str(pk) for pk in table.objects.order_by(*order).values_list("pk", flat=True)]  # type: ignore[attr-defined]
    onward = walk(client, model, query, "Next")
    assert sum(onward, []) == expected
    assert [len(rows) for rows in onward] == [3, 3, 3, 2]
    last = link(page_text(client.get(admin_url(model) + query)), "Last")
    assert last is not None
    back = walk(client, model, last, "Previous")
    assert sum(reversed(back), []) == expected
    assert [len(rows) for rows in back] == [3, 3, 3, 2]


def test_first_leads_back_and_keeps_the_filter(db: None, short: None) -> None:
    findings(8)
    client, query = superuser_client(), "?state__exact=open&q=k"
    onward = link(page_text(client.get(admin_url("finding") + query)), "Next")
    assert onward is not None
    shown = page_text(client.get(admin_url("finding") + onward))
    assert link(shown, "First") == "?q=k&state__exact=open"


def test_rows_that_come_and_go_meanwhile_neither_hide_nor_repeat_others(
    db: None, short: None
) -> None:
    there = [str(one.pk) for one in findings(9)]
    client = superuser_client()
    first = page_text(client.get(admin_url("finding")))
    seen, onward = rows_of(first), link(first, "Next")
    Finding.objects.filter(pk=seen[-1]).delete()
    findings(8, escaped=True)
    assert onward is not None
    seen += sum(walk(client, "finding", onward, "Next"), [])
    assert [pk for pk in seen if pk in there] == there
    assert len(seen) == len(set(seen)) == 9 + 6


def test_a_page_whose_rows_are_gone_is_the_first(db: None, short: None) -> None:
    made = findings(6)
    client = superuser_client()
    onward = link(page_text(client.get(admin_url("finding"))), "Next")
    assert onward is not None
    Finding.objects.filter(pk__in=[one.pk for one in made[3:]]).delete()
    assert rows_of(page_text(client.get(admin_url("finding") + onward))) == [
        str(o.pk) for o in made[:3]
    ]


def cursor(client: Client, model: str, query: str = "") -> str:
    found = link(page_text(client.get(admin_url(model) + query)), "Next")
    assert found is not None
    return parse_qs(found[1:])["p"][0]


def test_whatever_stands_in_place_of_a_page_leads_to_the_first(db: None, short: None) -> None:
    findings(7)
    make_cleanup_rows(7)
    client = superuser_client()
    good = cursor(client, "finding")
    hostile = [
        "2",
        "",
        "\0",
        '[false,["k001","3"]]',
        good[:-1],
        good[1:],
        signing.dumps([False, ["k001", "3"]]),
        cursor(client, "finding", "?o=-1"),
        cursor(client, "cleanup"),
        "9" * 5000,
    ]
    first = rows_of(page_text(client.get(admin_url("finding"))))
    for each in hostile:
        shown = page_text(client.get(admin_url("finding"), {"p": each}))
        assert FIRST_INSTEAD in shown, each
        assert rows_of(shown) == first
    assert FIRST_INSTEAD not in page_text(client.get(admin_url("finding"), {"p": good}))


def test_nobody_sorts_by_what_no_index_serves(db: None) -> None:
    findings(7)
    with CaptureQueriesContext(connection) as captured:
        page_text(superuser_client().get(admin_url("finding"), {"o": "2.3.5"}))
    assert [query for query in captured if "ORDER BY" in query["sql"]]
    assert not [query for query in captured if re.search("ORDER BY.*(kind|size)", query["sql"])]


def test_an_order_that_may_be_null_has_numbered_pages(
    db: None, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(R2ObjectAdmin, "ordering", ("project_id", "pk"))
    made = objects(7)
    shown = page_text(superuser_client().get(admin_url("r2object"), {"p": "3"}))
    assert rows_of(shown) == [str(made[6].pk)]
    assert link(shown, "2")


def test_many_rows_are_not_counted_to_the_end(
    db: None, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset_list, "MAX_COUNTED_ROWS", 4)
    findings(4)
    client = superuser_client()
    assert " 4 findings" in page_text(client.get(admin_url("finding")))
    findings(3, escaped=True)
    with connection.cursor() as asked:
        asked.execute("ANALYZE")
    with CaptureQueriesContext(connection) as captured:
        shown = page_text(client.get(admin_url("finding")))
    counts = [query["sql"] for query in captured if "COUNT(" in query["sql"]]
    assert counts and all("LIMIT 5" in sql for sql in counts)
    many = "about 7" if connection.vendor == "postgresql" else "more than 4"
    assert f" {many} findings" in shown
    assert f"Select all {many} findings" in shown
    searched = page_text(client.get(admin_url("finding"), {"q": "k"}))
    assert "more than 4 results" in searched
    assert "about" not in searched
    assert "1 result " in page_text(
        client.get(admin_url("finding"), {"q": "k001", "kind": "misnamed"})
    )


def test_an_estimate_has_three_digits() -> None:
    assert [keyset_list.round_number(n) for n in (7, 9_994_321, 10_006_000)] == [
        7,
        9_990_000,
        10_000_000,
    ]


MAKERS: dict[str, Callable[[int], object]] = {
    "r2object": objects,
    "finding": findings,
    "cleanup": make_cleanup_rows,
    "project": tracked,
    "knownproject": lambda count: KnownProject.objects.bulk_create(
        [KnownProject(id=f"proj_{n}", evidence="seen") for n in range(count)]
    ),
    "bucketscan": lambda count: BucketScan.objects.bulk_create(
        [BucketScan(bucket="tests") for _ in range(count)]
    ),
    "healthreport": lambda count: HealthReport.objects.bulk_create(
        [HealthReport(context="web", host="h", pid=n) for n in range(count)]
    ),
    "apitoken": lambda count: [
        ApiToken.issue(name=f"t{n}", user=User.objects.get_or_create(username=f"u{n}")[0])
        for n in range(count)
    ],
}


@pytest.mark.parametrize("model", MAKERS)
def test_many_rows_cost_as_many_queries_as_few(
    db: None, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(AuditAdmin, "list_per_page", 10)
    client = superuser_client()
    MAKERS[model](2)
    few = count_queries(client, admin_url(model))
    apps.get_model("storage_audit", model).objects.all().delete()
    MAKERS[model](25)
    onward = link(page_text(client.get(admin_url(model))), "Next")
    assert onward is not None
    assert {
        count_queries(client, admin_url(model)),
        count_queries(client, admin_url(model) + onward),
    } == {few}


def test_all_across_pages_are_all_that_the_filter_shows(db: None, short: None) -> None:
    wanted, other = findings(7), findings(2, escaped=True, state="resolved")
    client, query = superuser_client(), "?state__exact=open"
    onward = link(page_text(client.get(admin_url("finding") + query)), "Next")
    assert onward is not None
    some = {"_selected_action": [wanted[3].pk], "select_across": "1", "action": "ignore"}
    asked = page_text(client.post(admin_url("finding") + onward, {**some, "index": "0"}))
    [digest] = re.findall('name="digest" value="(.+?)"', asked)
    client.post(
        admin_url("finding") + onward, {**some, "post": "yes", "digest": digest, "note": "fine"}
    )
    states = Finding.objects.values_list("state", flat=True)
    assert set(states.filter(pk__in=[one.pk for one in wanted])) == {"ignored"}
    assert set(states.filter(pk__in=[one.pk for one in other])) == {"resolved"}


def test_a_list_shows_one_bucket_and_a_choice_where_there_are_several(
    db: None, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "tests"}
    objects(2)
    client = superuser_client()
    assert "By bucket" not in page_text(client.get(admin_url("r2object")))
    R2Object.objects.create(bucket="old", key="of-old", source="upload", state="stored")
    shown = page_text(client.get(admin_url("r2object")))
    assert "By bucket" in shown
    assert "of-old" not in shown
    for bucket, seen in (("old", True), ("tests", False), ("nowhere", False), ("\0", False)):
        assert (
            "of-old" in page_text(client.get(admin_url("r2object"), {"bucket": bucket}))
        ) == seen


@pytest.mark.parametrize("gone", ["gone", "\0"])
def test_a_bucket_without_rows_lists_exports_and_acts_on_none_of_another(
    db: None, gone: str
) -> None:
    [row] = findings(1, state="ignored")
    client = superuser_client()
    shown = page_text(client.get(admin_url("finding"), {"bucket": gone}))
    assert rows_of(shown) == [] and "By bucket" in shown
    export: Any = client.get(admin_url("finding", "export", "json"), {"bucket": gone})
    assert b"".join(export).strip() == b"[]"
    url = f"{admin_url('finding')}?{urlencode({'bucket': gone})}"
    client.post(
        url, {"action": "reopen", "_selected_action": [row.pk], "select_across": "1", "index": "0"}
    )
    row.refresh_from_db()
    assert row.state == "ignored"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("cleanup", "project_id"),
        ("cleanup", "message__gt"),
        ("cleanup", "status__exact"),
        ("finding", "state"),
        ("finding", "state__exact"),
        ("finding", "q"),
        ("r2object", "project_id"),
        ("knownproject", "evidence__exact"),
        ("project", "q"),
        ("bucketscan", "purpose"),
    ],
)
def test_what_no_database_holds_is_no_filter_of_a_list_nor_of_its_export(
    db: None, model: str, name: str
) -> None:
    MAKERS[model](1)
    client = superuser_client()
    for url in (
        admin_url(model),
        admin_url(model, "export", "csv"),
        admin_url(model, "export", "json"),
    ):
        for text in ("\0", "a\0b"):
            answer = client.get(url, {name: text})
            assert answer.status_code == 302, (url, text)
            assert answer.headers["Location"] == admin_url(model) + "?e=1"
    assert client.get(admin_url(model), {name: "é 🦊"}).status_code == 200


LOOKUPS = ("regex", "iregex", "contains", "icontains", "endswith", "in", "exact", "gt")
TEXTS = {
    "r2object": "key",
    "finding": "key",
    "cleanup": "project_id",
    "project": "title",
    "knownproject": "id",
    "bucketscan": "prefix",
    "healthreport": "host",
    "bulkjob": "requested_by",
    "alert": "summary",
    "apitoken": "name",
}


@pytest.mark.parametrize("model", TEXTS)
def test_list_and_exports_refuse_lookups_that_no_filter_or_link_has(db: None, model: str) -> None:
    client = superuser_client()
    for url in (
        admin_url(model),
        admin_url(model, "export", "csv"),
        admin_url(model, "export", "json"),
    ):
        for lookup in LOOKUPS:
            answer = client.get(url, {f"{TEXTS[model]}__{lookup}": "(a+)+$"})
            assert answer.status_code == 302, (url, lookup)
            assert answer.headers["Location"] == admin_url(model) + "?e=1"


def test_filtered_columns_refuse_lookups_that_their_filters_have_not(db: None) -> None:
    client = superuser_client()
    for model, name in (("finding", "state"), ("r2object", "bucket"), ("knownproject", "evidence")):
        assert client.get(admin_url(model), {f"{name}__regex": "(a+)+$"}).status_code == 302


@pytest.mark.parametrize(
    ("model", "query"),
    [
        ("cleanup", {"project_id": "proj_1"}),
        ("cleanup", {"bulk_job": SOME_ID, "status__exact": "planned", "message__gt": ""}),
        ("cleanup", {"created_at__gte": NOW.isoformat(), "needs": "person"}),
        ("r2object", {"bucket": "tests", "project_id": "proj_1"}),
        ("finding", {"bucket": "tests", "last_scan": SOME_ID, "kind__exact": "orphaned"}),
        ("alert", {"over": "0", "kind__exact": "blocked"}),
    ],
)
def test_list_is_filtered_as_our_links_ask(db: None, model: str, query: dict[str, str]) -> None:
    assert superuser_client().get(admin_url(model), query).status_code == 200


class UserList(AuditAdmin[User]):
    list_display = ("username", "date_joined")


@pytest.mark.parametrize("model", ["project", "bulkjob"])
def test_times_are_written_as_on_all_pages_and_columns_still_sort(db: None, model: str) -> None:
    moment = datetime(2026, 3, 5, 20, 49, 7, tzinfo=UTC)
    Project.objects.create(pk="proj_1", created_at=moment)
    job = BulkJob.objects.request("verify", ["proj_1"])
    BulkJob.objects.filter(pk=job.pk).update(created_at=moment)
    client = superuser_client()
    shown = page_text(client.get(admin_url(model)))
    assert 'title="5 Mar 2026, 20:49:07 UTC">5 Mar 2026, 20:49 UTC</time>' in shown
    assert "p.m." not in shown
    [column] = re.findall(r'<th scope="col" class="[^"]*column-created_at.*?</th>', shown)
    sorting = link(column, "(?:Created|Requested)")
    assert sorting and client.get(admin_url(model) + sorting).status_code == 200
    if model == "bulkjob":
        assert f'href="{admin_url("bulkjob", "change", job.pk)}' in shown, "its first column"


def test_times_of_a_sites_own_model_keep_the_format_of_the_site(db: None) -> None:
    request = RequestFactory().get("/")
    request.user = User.objects.create_superuser("anna")
    shown = UserList(User, admin.site).get_changelist_instance(request).list_display
    assert list(shown)[-1] == "date_joined"


def test_list_with_dates_is_filtered_by_them(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProjectAdmin, "date_hierarchy", "created_at")
    assert (
        superuser_client().get(admin_url("project"), {"created_at__year": "2026"}).status_code
        == 200
    )


def test_what_counts_all_buckets_leads_to_the_findings_of_all(db: None, settings: Settings) -> None:
    """And what tells of one bucket, to those of that one, whichever the settings name."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BUCKET": "tests"}
    findings(1)
    scan = BucketScan.objects.create(bucket="old", status="complete", finished_at=NOW, orphaned=1)
    facts = {"bucket": "old", "kind": "orphaned", "first_scan": scan, "last_scan": scan}
    Finding.objects.create(key="of-old", **facts)
    # The overview leads to leftover files by project.
    Finding.objects.update(kind="missing")
    alert = Alert.objects.create(kind="findings", summary="2 findings are open")
    client = superuser_client()

    def listed(page_of: str) -> set[str]:
        urls = set(re.findall(r'href="([^"]*/finding/\?[^"]*bucket[^"]*)"', page_of))
        pages = "".join(page_text(client.get(unescape(url))) for url in urls)
        return set(re.findall(r"(?:k000|of-old)(?=</code>)", pages))

    assert listed(page_text(client.get(admin_url("bucketscan", "change", scan.pk)))) == {"of-old"}
    told = (
        page_text(client.get(admin_url("alert", "change", alert.pk))),
        page_text(client.get(reverse("admin:app_list", args=["storage_audit"]))),
        f'href="{alert_text.alert_url(alert)}"',
    )
    assert [listed(each) for each in told] == [{"k000", "of-old"}] * 3
    both = page_text(client.get(admin_url("finding"), {"bucket": "*"}))
    assert "old: <code" in both and "tests: <code" not in both


def test_a_project_leads_to_its_objects_in_each_bucket_and_counts_them_all(db: None) -> None:
    track_files("proj_1", 1_002)
    mine = {"project_id": "proj_1", "source": "upload", "state": "stored", "size": 1000}
    R2Object.objects.create(bucket="old", key="of-old", **mine)
    client = superuser_client()
    shown = page_text(client.get(admin_url("project")))
    assert '<td class="field-tracked_objects">more than 1,000</td>' in shown
    assert '<td class="field-tracked_bytes">more than 195.3 KB</td>' in shown
    shown = page_text(client.get(admin_url("project", "change", "proj_1")))
    assert "1002 files, 978.5 KB" in shown
    urls = re.findall(r'href="([^"]*/r2object/\?[^"]*)"', shown)
    there = [page_text(client.get(unescape(url))) for url in urls]
    assert sorted("of-old" in each for each in there) == [False, True]


@pytest.mark.parametrize("term", ["proj_1", "Summer", "sUMMER c", "summer 100%"])
def test_projects_are_searched_by_the_beginning_of_id_or_title(db: None, term: str) -> None:
    Project.objects.create(pk="proj_1", title="Summer Clips")
    Project.objects.create(pk="proj_10", title="Summer 100% done")
    Project.objects.create(pk="proj_2", title="Late summer")
    Project.objects.create(pk="proj_3", title="Summer 1000")
    shown = rows_of(page_text(superuser_client().get(admin_url("project"), {"q": term})))
    expected = {
        "proj_1": {"proj_1", "proj_10"},
        "Summer": {"proj_1", "proj_10", "proj_3"},
        "sUMMER c": {"proj_1"},
        "summer 100%": {"proj_10"},
    }
    assert set(shown) == expected[term]
