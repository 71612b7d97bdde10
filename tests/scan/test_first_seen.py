"""When a difference was seen first and last, and what that allows."""

from collections.abc import Callable
from datetime import timedelta
from unicodedata import normalize

import pytest
from django.utils import timezone

from storage_audit.bucket.errors import Unavailable
from storage_audit.bucket.listing import key_bytes
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan import conclude_scan
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.worker import work_on_scan
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    LONG_AGO,
    Listing,
    add_projects,
    age_scans,
    complete_reconcile,
    dump_findings,
    nth_key,
    read_findings,
    resume_scan,
    run_backfill,
    run_reconcile,
    track_listed,
    tree_order,
)
from tests.times import AHEAD

pytestmark = pytest.mark.django_db
ORPHAN = nth_key(1, "proj_9")
HOUR = timedelta(hours=1)


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    listing_in_memory.remove_pauses(monkeypatch)
    add_projects("proj_1")
    track_listed(nth_key(1), nth_key(2))
    found = Listing(nth_key(1), nth_key(2), ORPHAN)
    found.use(monkeypatch)
    return found


def deletable() -> set[str]:
    return set(Finding.objects.deletable().values_list("key", flat=True))


def the_orphan() -> Finding:
    return Finding.objects.get(key=ORPHAN, kind="orphaned")


def test_an_orphan_may_go_once_two_complete_scans_saw_it_far_enough_apart(
    listing: Listing,
) -> None:
    first = complete_reconcile()
    finding = the_orphan()
    assert (finding.first_scan, finding.last_scan) == (first, first)
    assert deletable() == set()
    age_scans(first, 3 * HOUR)
    second = complete_reconcile()
    assert (the_orphan().first_scan, the_orphan().last_scan) == (first, second)
    assert deletable() == set()
    age_scans(second, 2 * HOUR)
    complete_reconcile()
    assert deletable() == {ORPHAN}


def test_a_backfill_sees_orphans_as_well(listing: Listing) -> None:
    age_scans(complete_reconcile(), 5 * HOUR)
    assert run_backfill().status == "complete"
    assert deletable() == {ORPHAN}


def test_a_young_orphan_may_not_go(listing: Listing) -> None:
    at = (timezone.now() - 20 * HOUR).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(last_modified=at)
    age_scans(complete_reconcile(), 5 * HOUR)
    complete_reconcile()
    assert deletable() == set()


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 8},
        {"etag": "other"},
        {"last_modified": "2026-01-01T00:00:01.000Z"},
    ],
    ids=str,
)
def test_an_object_that_changed_is_seen_for_the_first_time(
    listing: Listing, changed: dict[str, object]
) -> None:
    age_scans(complete_reconcile(), 5 * HOUR)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(**changed)  # type: ignore[arg-type]
    second = complete_reconcile()
    assert (the_orphan().first_scan, the_orphan().last_scan) == (second, second)
    assert second.finished_at
    assert second.started_at <= the_orphan().first_seen_at <= second.finished_at
    assert deletable() == set()


def test_an_orphan_that_was_not_seen_in_between_is_seen_for_the_first_time(
    listing: Listing,
) -> None:
    age_scans(complete_reconcile(), 9 * HOUR)
    listing.remove(ORPHAN)
    age_scans(complete_reconcile(), 3 * HOUR)
    assert the_orphan().state == "resolved"
    listing.add(ORPHAN)
    third = complete_reconcile()
    finding = the_orphan()
    assert (finding.state, finding.first_scan, finding.note) == ("open", third, "")
    assert deletable() == set()


def test_an_orphan_whose_project_lived_in_between_is_seen_for_the_first_time(
    listing: Listing,
) -> None:
    age_scans(complete_reconcile(), 9 * HOUR)
    add_projects("proj_9")
    age_scans(complete_reconcile(), 5 * HOUR)
    assert the_orphan().state == "resolved"
    Project.objects.filter(pk="proj_9").delete()
    Cleanup.objects.update(status="clean", next_attempt_at=None)
    third = complete_reconcile()
    assert (the_orphan().state, the_orphan().first_scan) == ("open", third)
    assert deletable() == set()


def test_a_scan_of_another_part_neither_sees_it_nor_forgets_it(listing: Listing) -> None:
    first = complete_reconcile()
    age_scans(first, 5 * HOUR)
    complete_reconcile("projects/proj_1/")
    assert (the_orphan().state, the_orphan().last_scan) == ("open", first)
    assert deletable() == set()
    complete_reconcile("projects/proj_9/")
    assert deletable() == {ORPHAN}


def test_scan_leaves_findings_of_another_bucket_open(listing: Listing) -> None:
    complete_reconcile()
    Finding.objects.update(bucket="other")
    listing.remove(ORPHAN)
    complete_reconcile()
    assert the_orphan().state == "open"


def test_ignored_file_stays_ignored_and_is_not_deleted(listing: Listing) -> None:
    age_scans(complete_reconcile(), 5 * HOUR)
    Finding.objects.filter(key=ORPHAN).ignore("ours", "zoe")
    second = complete_reconcile()
    finding = the_orphan()
    assert (finding.state, finding.note, finding.decided_by) == ("ignored", "ours", "zoe")
    assert finding.last_scan == second
    assert deletable() == set()
    listing.remove(ORPHAN)
    complete_reconcile()
    assert the_orphan().state == "resolved"


@pytest.mark.parametrize("scan_again", [complete_reconcile, run_backfill])
def test_a_finding_outlasts_a_scan_that_meets_its_row_in_hand(
    listing: Listing, scan_again: Callable[[], BucketScan]
) -> None:
    """That scan cannot tell whether the difference is still there."""
    R2Object.objects.filter(key=nth_key(2)).update(size=99)
    complete_reconcile()
    in_hand = R2Object.objects.filter(key=nth_key(2))
    in_hand.update(updated_at=timezone.now() + AHEAD)
    scan_again()
    assert Finding.objects.get(key=nth_key(2)).state == "open"
    Finding.objects.filter(key=nth_key(2)).ignore("on purpose", "zoe")
    touched = scan_again()
    assert (touched.status, touched.changed) == ("complete", 0)
    finding = Finding.objects.get(key=nth_key(2))
    assert (finding.state, finding.note, finding.last_scan) == (
        "ignored",
        "on purpose",
        finding.first_scan,
    )
    # The row describes the file by now, which is no reason to delete it.
    in_hand.update(size=7, updated_at=LONG_AGO)
    complete_reconcile()
    finding.refresh_from_db()
    assert finding.state == "ignored"
    listing.remove(nth_key(2))
    complete_reconcile()
    finding.refresh_from_db()
    assert finding.state == "resolved"


def test_ignored_finding_outlasts_a_scan_while_a_cleanup_covers_the_file(listing: Listing) -> None:
    complete_reconcile()
    Finding.objects.filter(key=ORPHAN).ignore("ours", "zoe")
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_9", bucket=the_orphan().bucket, trigger="deleted"
    )
    complete_reconcile()
    assert the_orphan().state == "ignored"
    Cleanup.objects.filter(pk=cleanup.pk).update(status="clean", next_attempt_at=None)
    listing.remove(ORPHAN)
    complete_reconcile()
    assert the_orphan().state == "resolved"
    assert the_orphan().note.endswith("(previously ignored by zoe: ours)")


def test_ignored_finding_outlasts_a_scan_that_calls_the_file_something_else(
    listing: Listing,
) -> None:
    complete_reconcile()
    Finding.objects.update(kind="untracked")
    Finding.objects.filter(key=ORPHAN).ignore("ours", "zoe")
    complete_reconcile()
    states = dict(Finding.objects.filter(key=ORPHAN).values_list("kind", "state"))
    assert states == {"untracked": "ignored", "orphaned": "open"}
    Finding.objects.filter(kind="untracked").update(etag="of another object")
    complete_reconcile()
    states = dict(Finding.objects.filter(key=ORPHAN).values_list("kind", "state"))
    assert states == {"untracked": "resolved", "orphaned": "open"}


@pytest.mark.parametrize("page", [1, 2])
def test_failed_scans_count_for_nothing(listing: Listing, page: int) -> None:
    age_scans(complete_reconcile(), 5 * HOUR)
    before = dump_findings()
    listing.size = 2
    asked = len(listing.asked_pages)

    def fail(number: int) -> None:
        if number >= asked + page:
            raise Unavailable("down")

    listing.before_page = fail
    assert run_reconcile().status == "failed"
    assert dump_findings() == before
    assert deletable() == set()


def test_dry_runs_say_nothing_and_forget_nothing(listing: Listing) -> None:
    age_scans(complete_reconcile(), 5 * HOUR)
    before, rows = dump_findings(), R2Object.objects.count()
    listing.remove(ORPHAN, nth_key(1))
    listing.add("README.txt")
    assert run_reconcile(dry_run=True).status == "complete"
    dry = run_backfill(dry_run=True)
    assert (dry.status, dry.added, dry.missing, dry.unrecognised) == ("complete", 1, 1, 1)
    assert dump_findings() == before
    assert R2Object.objects.count() == rows
    shown = PendingFinding.objects.filter(scan=dry).values_list("kind", flat=True)
    assert sorted(shown) == ["missing", "unrecognised"]


def test_a_stopped_scan_that_went_on_sees_what_it_saw_when_it_began(listing: Listing) -> None:
    """The first of two must be over for the time that counts to begin: see `deletable`."""
    listing.size = 2
    found = listing_in_memory.start_reconcile()
    found.stop("later")
    age_scans(found, 5 * HOUR)
    found.refresh_from_db()
    assert resume_scan(found).status == "complete"
    complete_reconcile()
    assert deletable() == set()


def test_orphans_of_a_project_that_lives_at_the_end_are_none(listing: Listing) -> None:
    """It was being created while its objects were looked at."""
    listing.add(nth_key(2, "proj_9"), other := nth_key(3, "proj_8"))
    found = listing_in_memory.start_reconcile()
    steps = work_on_scan(found)
    while not found.shards.filter(complete=True).exists():
        next(steps)
    assert found.pending_findings.filter(kind="orphaned").count() == 3
    add_projects("proj_9")
    for _batch in steps:
        pass
    found.refresh_from_db()
    assert (found.status, found.orphaned) == ("complete", 1)
    assert read_findings() == {("orphaned", other)}


def test_objects_of_a_project_that_vanished_without_a_word_are_no_orphans(
    listing: Listing,
) -> None:
    """It may be an accident with the table: nobody said that it is deleted."""
    KnownProject.objects.create(pk="proj_9", evidence="saved")
    complete_reconcile()
    assert "orphaned" not in {kind for kind, _key in read_findings()}
    KnownProject.objects.update(evidence="deleted", deleted_at=timezone.now())
    complete_reconcile()
    assert read_findings() >= {("orphaned", ORPHAN)}


def test_earlier_scans_that_stopped_cannot_go_on_once_a_later_one_is_complete(
    listing: Listing,
) -> None:
    stopped = listing_in_memory.start_reconcile()
    stopped.stop("for now")
    complete_reconcile()
    with pytest.raises(IllegalTransition):
        stopped.resume()


def keep(key: str) -> None:
    complete_reconcile()
    assert Finding.objects.filter(key=key).ignore("ours", "zoe") == 1


@pytest.mark.parametrize("in_key_order", [True, False])
def test_ignored_finding_outlasts_a_backfill_that_tracks_the_file(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, in_key_order: bool
) -> None:
    listing.order = key_bytes if in_key_order else tree_order
    listing.use(monkeypatch, StoreTraits(folds_unicode=False, lists_in_key_order=in_key_order))
    listing.add(nth_key(3), "projects/proj_1-x/a.mp4")
    keep(nth_key(3))
    assert run_backfill().added
    assert R2Object.objects.filter(key=nth_key(3)).exists()
    complete_reconcile()
    finding = Finding.objects.get(key=nth_key(3))
    assert (finding.state, finding.note, finding.decided_by) == ("ignored", "ours", "zoe")
    listing.remove(nth_key(3))
    complete_reconcile()
    finding.refresh_from_db()
    assert finding.state == "resolved"


@pytest.mark.parametrize("in_key_order", [True, False])
def test_ignored_finding_outlasts_a_listing_in_another_spelling(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, in_key_order: bool
) -> None:
    listing.order = key_bytes if in_key_order else tree_order
    listing.use(monkeypatch, StoreTraits(folds_unicode=True, lists_in_key_order=in_key_order))
    key = "projects/proj_9/scenes/s1/media/\u00e9.mp4"
    listing.add(key)
    keep(key)
    shown = listing.entries.pop(key)
    other = normalize("NFD", key)
    listing.entries[other] = shown._replace(key=other)
    complete_reconcile()
    assert Finding.objects.get(key=key).state == "ignored"


def test_ignored_finding_outlasts_a_first_page_of_the_past(listing: Listing) -> None:
    keep(ORPHAN)
    shown = listing.entries[ORPHAN]

    def answer(number: int) -> None:
        listing.entries.pop(ORPHAN, None)
        if listing.asked_pages[-1] != ("", ""):
            listing.entries[ORPHAN] = shown

    listing.before_page = answer
    assert complete_reconcile().listed == 2
    assert the_orphan().state == "ignored"


@pytest.mark.parametrize("covered", [False, True])
def test_ignored_finding_outlasts_a_project_created_as_the_scan_ends(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, covered: bool
) -> None:
    keep(ORPHAN)
    original = conclude_scan.drop_outdated

    def create_and_take_back(found: BucketScan) -> None:
        add_projects("proj_9")
        if covered:
            Project.objects.filter(pk="proj_9").delete()
        original(found)

    monkeypatch.setattr(conclude_scan, "drop_outdated", create_and_take_back)
    complete_reconcile()
    assert the_orphan().state == "ignored"


@pytest.mark.parametrize("changed", [{"size": 8}, {"etag": "other"}], ids=str)
def test_overwriting_an_ignored_file_opens_its_finding(
    listing: Listing, changed: dict[str, object]
) -> None:
    keep(ORPHAN)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(**changed)  # type: ignore[arg-type]
    scan = complete_reconcile()
    finding = the_orphan()
    assert (finding.state, finding.decided_by, finding.first_scan) == ("open", "", scan)
    assert finding.note == "The file was overwritten. (previously ignored by zoe: ours)"


def test_page_of_the_past_does_not_reopen_the_finding_of_the_newer_file(
    listing: Listing,
) -> None:
    keep(ORPHAN)
    shown = listing.entries[ORPHAN]

    def answer(number: int) -> None:
        of_the_past = listing.asked_pages[-1] == ("", "")
        listing.entries[ORPHAN] = shown._replace(etag="older") if of_the_past else shown

    listing.before_page = answer
    scan = complete_reconcile()
    finding = the_orphan()
    assert (scan.orphaned, finding.state, finding.etag) == (1, "ignored", shown.etag)


def test_overwritten_file_that_is_tracked_by_now_ends_its_ignored_finding(
    listing: Listing,
) -> None:
    keep(ORPHAN)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(size=8)
    add_projects("proj_9")
    track_listed(ORPHAN, size=8, project_id="proj_9")
    complete_reconcile()
    assert the_orphan().state == "resolved"
    assert the_orphan().note.endswith("(previously ignored by zoe: ours)")
