"""Scans and findings in the admin: what each scan looked at and saw, and what is to be decided."""

from datetime import timedelta

import pytest
from django.utils import timezone

from storage_audit.models import BucketScan, Finding
from tests.admin_client import page, superuser, text_of
from tests.test_admin_objects import ESCAPED, HOSTILE
from tests.test_admin_projects import queries

pytestmark = pytest.mark.django_db
KINDS = Finding.Kind.values


def scanned(**values: object) -> BucketScan:
    now = timezone.now()
    given = {"bucket": "tests", "purpose": "reconcile", "status": "complete", "finished_at": now}
    return BucketScan.objects.create(**{**given, **values})


def finding(scan: BucketScan, key: str, kind: str = "orphaned", **values: object) -> Finding:
    seen = {"first_scan": scan, "last_scan": scan, **values}
    return Finding.objects.create(bucket="tests", key=key, kind=kind, **seen)


def test_a_scan_shows_what_it_saw_of_each_kind_and_how_fast_it_was() -> None:
    began = timezone.now() - timedelta(minutes=2)
    counts = {kind: 1001 + n for n, kind in enumerate(KINDS)}
    one = scanned(
        started_at=began,
        finished_at=began + timedelta(seconds=90),
        listed=900_000,
        listed_bytes=3 * 2**30,
        requests=912,
        **counts,
    )
    shown = text_of(superuser().get(page("bucketscan")))
    assert '<td class="field-took">0:01:30</td>' in shown
    assert '<td class="field-rate">10000</td>' in shown
    assert "3.0 GB" in shown
    for count in counts.values():
        assert f"{count} " in shown
    shown = text_of(superuser().get(page("bucketscan", "change", one.pk)))
    assert "912" in shown and "3.0 GB" in shown
    for count in counts.values():
        assert f">{count}<" in shown


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        ({}, ">tests<"),
        ({"prefix": "a\u202e/"}, "tests/a\\u202e/<"),
        ({"project_id": "proj_1"}, "tests, project proj_1<"),
        ({"since": timezone.now()}, "tests, only rows since "),
    ],
)
def test_a_scan_says_what_it_looked_at(scope: dict[str, object], says: str) -> None:
    one = scanned(**scope)
    for url in (page("bucketscan"), page("bucketscan", "change", one.pk)):
        assert says in text_of(superuser().get(url))


def test_a_scan_under_way_has_a_duration_and_one_that_failed_its_message() -> None:
    running = scanned(status="running", finished_at=None)
    text_of(superuser().get(page("bucketscan", "change", running.pk)))
    failed = scanned(status="failed", error="It broke\x1b")
    assert "It broke\\x1b" in text_of(superuser().get(page("bucketscan", "change", failed.pk)))


def test_findings_are_filtered_by_state_and_kind() -> None:
    one = scanned()
    finding(one, "first")
    finding(one, "second", "missing")
    finding(one, "third", state="acknowledged")
    client = superuser()
    for query, key in (
        ({"kind__exact": "missing"}, "second"),
        ({"state__exact": "acknowledged"}, "third"),
        ({"kind__exact": "orphaned", "state__exact": "open"}, "first"),
    ):
        shown = text_of(client.get(page("finding"), query))
        assert [k for k in ("first", "second", "third") if f">{k}<" in shown] == [key]


def test_a_finding_shows_hostile_keys_evidence_and_notes_escaped() -> None:
    one = finding(scanned(), HOSTILE, evidence=HOSTILE, note=HOSTILE, project_id=HOSTILE)
    shown = text_of(superuser().get(page("finding", "change", one.pk)))
    assert shown.count(ESCAPED) >= 4
    assert "<script>alert" not in shown and "\u202e" not in shown
    shown = text_of(superuser().get(page("finding")))
    assert shown.count(ESCAPED) >= 3
    assert "<script>alert" not in shown and "\u202e" not in shown


@pytest.mark.parametrize("model", ["finding", "bucketscan"])
def test_a_list_costs_as_many_queries_for_50_rows_as_for_one(model: str) -> None:
    client, one = superuser(), scanned()
    finding(one, "first")
    before = queries(client, page(model))
    for n in range(49):
        finding(scanned(), f"{n}")
    assert queries(client, page(model)) == before


@pytest.mark.parametrize("model", ["finding", "bucketscan"])
def test_every_column_sorts(model: str) -> None:
    finding(scanned(), "first")
    for column in range(1, 10):
        text_of(superuser().get(page(model), {"o": str(column)}))
