"""A clock that was a year ahead for a while is right again: the times that it wrote hide nothing,
and nothing waits for them."""

from collections.abc import Callable

from django.db.models import F
from django.utils import timezone

from storage_audit import tasks
from storage_audit.audit import overview, requests
from storage_audit.models import BucketScan, Finding, R2Object
from tests.conftest import YEAR, Bucket
from tests.promises import run
from tests.scanning import begin, complete, findings, reconcile, work

Status = BucketScan.Status


def started_now(found: BucketScan) -> BucketScan:
    # The field has kept the real clock as its default.
    found.started_at = timezone.now()
    found.save()
    return found


def ahead(rows: type, *names: str) -> None:
    """Give these columns the times that a clock a year ahead would have written."""
    rows.objects.update(**{name: F(name) + YEAR for name in names})


# Scans


def test_scan_that_ends_while_the_clock_is_ahead_overtakes_no_later_one(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    key = bucket.upload("proj_1")
    assert work(started_now(begin())).status == Status.COMPLETE
    a_year_ahead()
    bucket.r2.remove(key, bucket.name)
    assert reconcile().status == Status.COMPLETE
    assert findings() == {("missing", key)}


def test_scan_that_began_while_the_clock_was_ahead_fails(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(begin())
    a_year_ahead()
    assert work(found).status == Status.FAILED
    assert "The clock was ahead" in found.error
    assert complete()


def test_scan_that_was_killed_while_the_clock_was_ahead_blocks_no_other(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(begin())
    a_year_ahead()
    assert tasks.reconcile() == "another scan is running"
    tasks.sweep()
    found.refresh_from_db()
    assert found.status == Status.FAILED
    assert tasks.reconcile() != "another scan is running"


def test_overview_goes_by_scans_whose_clock_was_right(bucket: Bucket) -> None:
    right, wrong, failed = complete(), complete(), begin()
    failed.fail("no")
    ahead(BucketScan, "started_at")
    BucketScan.objects.filter(pk=wrong.pk).update(finished_at=F("finished_at") + YEAR)
    BucketScan.objects.filter(pk=failed.pk).update(started_at=F("started_at") - YEAR)
    assert overview.last_complete_scan() == right
    assert overview.failed_scan() == failed


def test_findings_of_a_clock_that_was_ahead_are_resolved_and_opened_again(bucket: Bucket) -> None:
    stays, goes, back = (f"projects/proj_x/scenes/s1/media/{n}.mp4" for n in "abc")
    bucket.put(stays, goes, back)
    complete()
    Finding.objects.filter(key=back).resolve("by hand")
    ahead(Finding, "last_seen_at", "decided_at")
    bucket.r2.remove(goes, bucket.name)
    found = complete()
    assert findings() == {("orphaned", stays), ("orphaned", back)}
    assert set(Finding.objects.open().values_list("last_scan", flat=True)) == {found.pk}


# Rows


def test_scan_notes_a_missing_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    assert complete().missing == 1
    assert findings() == {("missing", key)}


def test_scan_notes_a_changed_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.put(key, body=b"another")
    complete()
    assert findings() == {("changed", key)}


def test_verification_fails_for_a_missing_file_whose_row_has_a_time_to_come(
    bucket: Bucket,
) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    [operation] = requests.verify_project("proj_1")
    assert run(operation).status == "incomplete"
    assert operation.items.get().reason.startswith("Tracked, but not in the bucket.")
