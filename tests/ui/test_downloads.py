"""Each list of the admin as a file: just what is listed, all pages of it, whatever its length."""

import csv
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from html import unescape
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from storage_audit import exports
from storage_audit.alerts.models import Alert
from storage_audit.api.models import ApiToken
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.findings.admin import leftover_pages
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan.models import BucketScan
from storage_audit.ui import downloads
from tests.admin_client import admin_url, client_for, normalized_text, superuser_client
from tests.builders import add_item, create_finding, create_scan, track_keys
from tests.ui.csv_cells import cell_text

pytestmark = pytest.mark.django_db
HOSTILE = ["=1+1", "@SUM(A1)", "<script>alert(1)</script>", 'a"b,c\nd', "\u202e-e\u0301", "../../x"]
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def export(client: Client, model: str, form: str, query: str = "") -> str:
    return sent(client, admin_url(model, "export", form) + query)


def sent(client: Client, url: str) -> str:
    answer: Any = client.get(url)
    assert answer.status_code == 200
    return b"".join(answer).decode()


def rows_of(client: Client, model: str, query: str = "") -> list[dict[str, Any]]:
    return rows_in(*(export(client, model, form, query) for form in ("json", "csv")))


def rows_in(as_json: str, as_csv: str) -> list[dict[str, Any]]:
    """Of both forms of it, which must say the same."""
    told: list[dict[str, Any]] = json.loads(as_json)
    names, *lines = csv.reader(StringIO(as_csv))
    cells = [dict(zip(names, map(cell_text, line), strict=True)) for line in lines]
    assert cells == [{k: "" if v is None else str(v) for k, v in row.items()} for row in told]
    return told


def make_projects() -> None:
    Project.objects.bulk_create(
        Project(pk=f"proj_{n:03}", title=HOSTILE[n % 6]) for n in range(120)
    )


def make_objects() -> None:
    track_keys(*(f"{n:03}{HOSTILE[n % 6]}" for n in range(120)))


def make_cleanups() -> None:
    for n in range(120):
        Cleanup.objects.request(
            kind="project", project_id=f"proj_{n:03}", bucket="tests", trigger="deleted"
        )


def make_findings() -> None:
    scan = create_scan()
    for n in range(120):
        create_finding(f"{n:03}{HOSTILE[n % 6]}", scan=scan, evidence=HOSTILE[n % 6])


def make_known() -> None:
    KnownProject.objects.bulk_create(KnownProject(pk=f"proj_{n:03}") for n in range(120))


def make_scans() -> None:
    for n in range(120):
        create_scan(prefix=f"{n:03}{HOSTILE[n % 6]}", purpose=("reconcile", "backfill")[n % 2])


def make_bulk_jobs() -> None:
    for n in range(120):
        BulkJob.objects.request(("verify", "dry_run")[n % 2], [HOSTILE[n % 6]])


# How to fill the list; a query of it; and how many rows it has then.
LISTS: dict[str, tuple[Callable[[], None], str, int]] = {
    "project": (make_projects, "?q=proj_01&o=1", 10),
    "r2object": (make_objects, "?q=01&o=-1", 10),
    "cleanup": (make_cleanups, "?q=proj_1&o=1", 20),
    "finding": (make_findings, "?q=11&o=-1", 10),
    "knownproject": (make_known, "?q=proj_00&o=-1", 10),
    "bucketscan": (make_scans, "?purpose__exact=backfill", 60),
    "bulkjob": (make_bulk_jobs, "?action__exact=verify&o=-1", 60),
}
MODELS: dict[str, Any] = {
    str(each._meta.model_name): each
    for each in (Project, R2Object, Cleanup, Finding, KnownProject, BucketScan, BulkJob)
}


def listed(client: Client, model: str, query: str) -> list[str]:
    """The rows of all pages of the list, by their order."""
    found: list[str] = []
    url: str | None = f"{admin_url(model)}{query}"
    while url:
        shown = normalized_text(client.get(url))
        found += re.findall(rf"{model}/([^/\"?]+)/change/", shown)
        following = re.search(r'<a[^>]* href="([^"]*)"[^>]*>\s*Next\s*</a>', shown)
        url = f"{admin_url(model)}{unescape(following[1])}" if following else None
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("model", LISTS)
def test_an_export_is_the_list_as_filtered_searched_and_ordered_and_all_of_it(model: str) -> None:
    make, query, count = LISTS[model]
    make()
    client = superuser_client()
    for some, expected in ((query, count), ("", 120)):
        told = rows_of(client, model, some)
        assert len(told) == expected
        pks = [str(row["id"]) for row in told]
        assert [
            pk.replace("_", "_5F") if model in ("project", "knownproject") else pk for pk in pks
        ] == (listed(client, model, some))
        for row in told:
            stored = MODELS[model].objects.get(pk=row["id"])
            for name in ("key", "evidence", "project_id", "title", "prefix", "bucket"):
                if name in row:
                    assert row[name] == getattr(stored, name)


def test_each_of_our_lists_can_be_exported_with_rows_and_without() -> None:
    client, models = superuser_client(), [each for each in admin.site._registry if is_ours(each)]
    for model in models:
        assert rows_of(client, str(model._meta.model_name)) == []
    Alert.objects.create(kind="worker", summary="gone")
    [row] = rows_of(client, "alert")
    assert (row["kind"], row["summary"]) == ("worker", "gone")


def is_ours(model: Any) -> bool:
    return bool(model._meta.app_label == "storage_audit")


@pytest.mark.parametrize("model", ["project", "r2object", "finding", "bucketscan"])
def test_no_cell_is_a_formula_or_hides_something(model: str) -> None:
    LISTS[model][0]()
    for row in csv.reader(StringIO(export(superuser_client(), model, "csv"))):
        for cell in row:
            assert not cell.startswith(exports.FORMULA_STARTS)
            assert cell.isprintable()


def test_values_are_data_and_not_what_a_page_says_of_them() -> None:
    Project.objects.create(pk="proj_1", title="A", created_at=LONG_AGO)
    track_keys("a", "b", project="proj_1")
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket="tests", trigger="deleted"
    )
    [row] = rows_of(superuser_client(), "project")
    assert row == {
        "id": "proj_1",
        "title": "A",
        "created_at": "2026-01-02T03:04:05.678901+00:00",
        "storage_audit_object_count": 2,
        "storage_audit_object_bytes": 6,
        "storage_audit_last_cleanup_id": str(cleanup.pk),
        "storage_audit_last_cleanup_status": "pending",
    }


def test_inner_affairs_and_secrets_are_in_no_export() -> None:
    ApiToken.issue(name="nightly", user=User.objects.create_user("zoe"))
    [row] = rows_of(superuser_client(), "apitoken")
    assert "digest" not in row
    make_cleanups()
    assert not {"lease_token", "cursor", "enqueued_at"} & set(
        rows_of(superuser_client(), "cleanup")[0]
    )
    make_bulk_jobs()
    assert "project_ids" not in rows_of(superuser_client(), "bulkjob")[0]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_file_has_a_plain_name_and_an_empty_list_is_a_whole_file(form: str) -> None:
    answer: Any = superuser_client().get(
        admin_url("finding", "export", form) + "?q=%22%0d%0aX: y/../"
    )
    name = answer.headers["Content-Disposition"]
    assert re.fullmatch(rf'attachment; filename="finding-\d{{4}}-\d\d-\d\d\.{form}"', name)
    text = b"".join(answer).decode()
    assert json.loads(text) == [] if form == "json" else text.startswith("id,bucket,")


@pytest.mark.parametrize("model", LISTS)
def test_each_list_links_to_the_exports_of_what_it_shows(model: str) -> None:
    make, query, _count = LISTS[model]
    make()
    shown = normalized_text(superuser_client().get(admin_url(model) + query + "&p=1"))
    for form in ("csv", "json"):
        link = admin_url(model, "export", form) + query.replace("&", "&amp;")
        assert f'href="{link}" download' in shown


@pytest.mark.parametrize("form", ["csv", "json"])
def test_an_export_is_for_who_may_see_the_list(form: str) -> None:
    user = User.objects.create_user("ben", is_staff=True)
    address = admin_url("finding", "export", form)
    assert client_for(user).get(address).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_finding"))
    assert client_for(user).get(address).status_code == 200
    assert client_for(user).get(admin_url("r2object", "export", form)).status_code == 403
    assert Client().get(address).status_code == 302


def test_another_form_and_a_filter_that_is_none_are_refused() -> None:
    client = superuser_client()
    assert client.get(admin_url("finding", "export", "xml")).status_code == 404
    assert client.post(admin_url("finding", "export", "csv")).status_code == 405
    answer = client.get(admin_url("cleanup", "export", "csv") + "?bulk_job=nonsense")
    assert answer.headers["Location"] == admin_url("cleanup") + "?e=1"


# Of what is no list of a table

FORMS = ("json", "csv")


def items_url(pk: object, form: str) -> str:
    return reverse("admin:storage_audit_cleanup_items", args=[pk, form])


def leftover_url(form: str) -> str:
    return reverse("admin:storage_audit_leftover_file", args=[form])


@pytest.fixture
def cleanup() -> Cleanup:
    """Its keys do not come in the order of their outcomes, nor of the rows."""
    make_cleanups()
    made = Cleanup.objects.earliest("pk")
    for n in reversed(range(120)):
        outcome, key = ("failed", "deleted", "kept")[n % 3], f"{n:03}{HOSTILE[n % 6]}"
        add_item(made, key, outcome, reason=HOSTILE[n % 6], last_seen_at=LONG_AGO)
    add_item(Cleanup.objects.latest("pk"), "another's")
    return made


def links_to_files(shown: str) -> dict[str, str]:
    found = re.findall(r'<a href="([^"]*)" download>(CSV|JSON)</a>', shown)
    return {form.lower(): unescape(url) for url, form in found}


def rows_behind(client: Client, links: dict[str, str]) -> list[dict[str, Any]]:
    return rows_in(sent(client, links["json"]), sent(client, links["csv"]))


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 120),
        ("?outcome=failed", 40),
        ("?q=01", 10),
        ("?outcome=failed&q=01", 3),
        ("?q=%00", 0),
        ("?outcome=nonsense", 120),
    ],
)
def test_the_items_of_a_cleanup_are_exported_as_its_page_chooses_them(
    cleanup: Cleanup, query: str, count: int
) -> None:
    client = superuser_client()
    shown = normalized_text(client.get(admin_url("cleanup", "change", cleanup.pk) + query))
    links = links_to_files(shown)
    assert bool(links) == bool(count)
    urls = {form: items_url(cleanup.pk, form) + query for form in FORMS}
    told = rows_behind(client, links or urls)
    assert told == rows_behind(client, urls)
    assert len(told) == count
    assert [row["key"] for row in told] == sorted(row["key"] for row in told)
    for row in told:
        item = cleanup.items.get(key=row["key"])
        assert {name: row[name] for name in ("outcome", "reason", "size")} == {
            "outcome": item.outcome,
            "reason": item.reason,
            "size": item.size,
        }
        assert row["last_seen_at"] == LONG_AGO.isoformat()


def test_all_leftover_files_are_exported_by_whoever_tells_of_them(
    cleanup: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_pages, "PAGE_SIZE", 7)
    orphan = create_finding("zz", evidence="=its project is gone")
    Cleanup.objects.filter(pk=cleanup.pk).update(
        kind="verify",
        project_id="proj_gone",
        status="differs",
        found=40,
        failed=40,
        finished_at=LONG_AGO,
        next_attempt_at=None,
    )
    client = superuser_client()
    links = links_to_files(normalized_text(client.get(reverse("admin:storage_audit_leftovers"))))
    assert links == {form: leftover_url(form) for form in FORMS}
    told = rows_behind(client, links)
    failed = cleanup.items.filter(outcome="failed")
    assert [row["key"] for row in told] == sorted([*(item.key for item in failed), "zz"])
    *items, last = told
    assert {row["cleanup_id"] for row in items} == {str(cleanup.pk)}
    assert {row["finding_id"] for row in items} == {None}
    assert last.pop("reason").startswith("The project was deleted or is unknown")
    assert last == {
        "bucket": "tests",
        "key": "zz",
        "size": orphan.size,
        "evidence": "=its project is gone",
        "finding_id": orphan.pk,
        "cleanup_id": None,
    }
    for url in (links["csv"], items_url(cleanup.pk, "csv")):
        for row in csv.reader(StringIO(sent(client, url))):
            assert not [cell for cell in row if cell.startswith(exports.FORMULA_STARTS)]


def test_leftover_files_are_read_while_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover_pages, "PAGE_SIZE", 7)
    scan = create_scan()
    for n in range(50):
        create_finding(f"k{n:02}", scan=scan)
    rows = leftover_pages.all_leftovers()
    with CaptureQueriesContext(connection) as queries:
        next(rows)
        of_a_page = len(queries)
        for _n in range(49):
            next(rows)
        assert len(queries) == 8 * of_a_page


def test_nothing_else_is_exported_of_them(cleanup: Cleanup) -> None:
    client = superuser_client()
    urls = items_url(cleanup.pk, "csv"), leftover_url("csv")
    assert [client.post(url).status_code for url in urls] == [405, 405]
    others = items_url(cleanup.pk, "xml"), items_url(UUID(int=0), "csv"), leftover_url("xml")
    assert [client.get(url).status_code for url in others] == [404, 404, 404]


# Length


def peak(count: int) -> int:
    """The most memory that an export of so many rows takes."""
    ids = (KnownProject(pk=f"proj_{count}_{n:06}", evidence="saved") for n in range(count))
    KnownProject.objects.bulk_create(ids, batch_size=5000)
    answer = downloads.rows_response("csv", KnownProject.objects.order_by("pk"), ["id", "evidence"])
    lines = 0
    tracemalloc.start()
    for piece in answer:
        lines += piece.count(b"\n")
        del piece
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines == KnownProject.objects.count() + 1
    return taken


@pytest.mark.slow
def test_ten_times_as_many_rows_take_no_more_memory() -> None:
    few = peak(4_000)
    assert peak(24_000) < 1.5 * few


@pytest.mark.only_on("postgresql")
@pytest.mark.django_db(transaction=True)
def test_the_server_gives_the_rows_as_they_are_read() -> None:
    """What the client's library held would be in no figure of Python's, and a result that is held
    for a time without a transaction would be written down first."""
    KnownProject.objects.bulk_create(KnownProject(pk=f"proj_{n}") for n in range(5000))
    rows: Any = downloads.export_values(KnownProject.objects.all(), ["id"])
    next(rows)
    with connection.cursor() as cursor:
        cursor.execute("SELECT is_holdable FROM pg_cursors WHERE statement LIKE '%%knownproject%%'")
        assert cursor.fetchall() == [(False,)]
    rows.close()
    assert not connection.in_atomic_block


def test_lists_of_dates_ids_and_decimals_are_cells_too() -> None:
    """As the fields of a project may hold on PostgreSQL."""
    day, number = date(2026, 1, 2), UUID(int=7)
    row = [day, number, Decimal("1.50")]
    answers = [
        downloads.file_response(form, "clips", ["parts"], [[row]]) for form in ("json", "csv")
    ]
    as_json, as_csv = (b"".join(answer).decode() for answer in answers)
    told = [str(day), str(number), "1.50"]
    assert json.loads(as_json) == [{"parts": told}]
    [_names, [cell]] = csv.reader(StringIO(as_csv))
    assert json.loads(cell_text(cell)) == told


# Trouble


class Broken(Exception):
    pass


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_breaks_off_does_not_look_whole(
    form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_known()
    whole = downloads.export_values

    def breaking(*args: Any) -> Iterator[list[Any]]:
        for number, row in enumerate(whole(*args)):
            if number == 100:
                raise Broken
            yield row

    monkeypatch.setattr(downloads, "export_values", breaking)
    monkeypatch.setattr(exports, "LINES_PER_CHUNK", 10)
    answer, sent = superuser_client().get(admin_url("knownproject", "export", form)), b""
    with pytest.raises(Broken):  # So the server ends the connection, and not the answer.
        for piece in answer:
            sent += piece
    assert sent.count(b"proj_") >= 90
    if form == "csv":
        assert sent.endswith(b"INCOMPLETE: an error ended this export. Export it again.\n")
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(sent)
    [record] = [each for each in caplog.records if each.name == downloads.logger.name]
    assert record.getMessage().startswith("The export knownproject-")
