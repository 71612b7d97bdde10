"""Keys that could be read in hundreds of ways hold up neither a scan nor its other keys."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F

from storage_audit.findings.models import Finding
from storage_audit.ownership.ownership_rule import get_key_formats
from storage_audit.scan import compare
from storage_audit.scan.models import ScanShard
from storage_audit.scan.worker import work_on_scan
from storage_audit.tracking import recognise
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    read_findings,
)

pytestmark = pytest.mark.django_db
# As many possible owners as are considered, and far more: 1,000 bytes.
MANY = [f"proj_1_{n}{'_a' * 47}_media.mp4" for n in range(10)]
TOO_MANY = [f"proj_1_{n:05}{'_a' * 488}_media.mp4" for n in range(600)]


def test_a_scan_of_keys_with_hundreds_of_possible_owners_ends_and_says_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Together they name more ids than a database takes in one query."""
    assert (
        len(get_key_formats().parse_key(MANY[0])) == 48
        and get_key_formats().parse_key(TOO_MANY[0]).too_many
    )
    assert {len(key) for key in TOO_MANY} == {998}
    listing_in_memory.remove_pauses(monkeypatch)
    Listing(*MANY, *TOO_MANY, nth_key(1), page=1000).use(monkeypatch)
    add_projects("proj_1", "proj_1_3")
    assert complete_reconcile().listed == len(MANY) + len(TOO_MANY) + 1
    assert read_findings() >= {("ambiguous", key) for key in TOO_MANY} | {("untracked", nth_key(1))}
    assert max(map(len, Finding.objects.values_list("evidence", flat=True))) < 1000


def test_a_closer_check_that_takes_longer_than_a_lease_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forty seconds pass with each of its parts, and a lease is one of sixty."""
    real = recognise.recognise_objects

    def slow(*args: Any) -> Any:
        past = F("lease_until") - timedelta(seconds=40)
        ScanShard.objects.exclude(lease_until=None).update(lease_until=past)
        return real(*args)

    listing_in_memory.remove_pauses(monkeypatch)
    Listing(*MANY, page=1000).use(monkeypatch)
    monkeypatch.setattr(compare, "KEYS_PER_BATCH", 3)
    monkeypatch.setattr(compare, "recognise_objects", slow)
    found = listing_in_memory.start_reconcile()
    for batches, _each in enumerate(work_on_scan(found)):
        assert batches < 3, "It lists the same again and again."
    assert found.status == "complete"
