"""When a difference was seen first and last, and what that allows."""

from collections.abc import Callable
from datetime import timedelta
from unicodedata import normalize

import pytest
from django.utils import timezone

from storage_audit.bucket.errors import Unavailable
from storage_audit.bucket.listing import as_bytes
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.models.states import IllegalTransition
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership.bucket_marker import Traits
from storage_audit.scan import conclude
from storage_audit.scan.models import BucketScan, Sighting
from storage_audit.scan.worker import work_on_scan
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    LONG_AGO,
    Listing,
    a,
    alive,
    all_findings,
    as_tree,
    backfill,
    complete,
    findings,
    later,
    reconcile,
    resume,
    track,
)
from tests.times import AHEAD

pytestmark = pytest.mark.django_db
ORPHAN = a(1, "proj_9")
HOUR = timedelta(hours=1)


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    listing_in_memory.quick(monkeypatch)
    alive("proj_1")
    track(a(1), a(2))
    found = Listing(a(1), a(2), ORPHAN)
    found.use(monkeypatch)
    return found


def deletable() -> set[str]:
    return set(Finding.objects.deletable().values_list("key", flat=True))


def the_orphan() -> Finding:
    return Finding.objects.get(key=ORPHAN, kind="orphaned")


def test_an_orphan_may_go_once_two_complete_scans_saw_it_far_enough_apart(
    listing: Listing,
) -> None:
    first = complete()
    finding = the_orphan()
    assert (finding.first_scan, finding.last_scan) == (first, first)
    assert deletable() == set()
    later(first, 3 * HOUR)
    second = complete()
    assert (the_orphan().first_scan, the_orphan().last_scan) == (first, second)
    assert deletable() == set()
    later(second, 2 * HOUR)
    complete()
    assert deletable() == {ORPHAN}


def test_a_backfill_sees_orphans_as_well(listing: Listing) -> None:
    later(complete(), 5 * HOUR)
    assert backfill().status == "complete"
    assert deletable() == {ORPHAN}


def test_a_young_orphan_may_not_go(listing: Listing) -> None:
    at = (timezone.now() - 20 * HOUR).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(last_modified=at)
    later(complete(), 5 * HOUR)
    complete()
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
    later(complete(), 5 * HOUR)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(**changed)  # type: ignore[arg-type]
    second = complete()
    assert (the_orphan().first_scan, the_orphan().last_scan) == (second, second)
    assert second.finished_at
    assert second.started_at <= the_orphan().first_seen_at <= second.finished_at
    assert deletable() == set()


def test_an_orphan_that_was_not_seen_in_between_is_seen_for_the_first_time(
    listing: Listing,
) -> None:
    later(complete(), 9 * HOUR)
    listing.remove(ORPHAN)
    later(complete(), 3 * HOUR)
    assert the_orphan().state == "resolved"
    listing.add(ORPHAN)
    third = complete()
    finding = the_orphan()
    assert (finding.state, finding.first_scan, finding.note) == ("open", third, "")
    assert deletable() == set()


def test_an_orphan_whose_project_lived_in_between_is_seen_for_the_first_time(
    listing: Listing,
) -> None:
    later(complete(), 9 * HOUR)
    alive("proj_9")
    later(complete(), 5 * HOUR)
    assert the_orphan().state == "resolved"
    Project.objects.filter(pk="proj_9").delete()
    CleanupOperation.objects.update(status="clean", next_attempt_at=None)
    third = complete()
    assert (the_orphan().state, the_orphan().first_scan) == ("open", third)
    assert deletable() == set()


def test_a_scan_of_another_part_neither_sees_it_nor_forgets_it(listing: Listing) -> None:
    first = complete()
    later(first, 5 * HOUR)
    complete("projects/proj_1/")
    assert (the_orphan().state, the_orphan().last_scan) == ("open", first)
    assert deletable() == set()
    complete("projects/proj_9/")
    assert deletable() == {ORPHAN}


def test_scan_leaves_findings_of_another_bucket_open(listing: Listing) -> None:
    complete()
    Finding.objects.update(bucket="other")
    listing.remove(ORPHAN)
    complete()
    assert the_orphan().state == "open"


def test_what_is_acknowledged_stays_so_and_may_not_go(listing: Listing) -> None:
    later(complete(), 5 * HOUR)
    Finding.objects.filter(key=ORPHAN).acknowledge("ours", "zoe")
    second = complete()
    finding = the_orphan()
    assert (finding.state, finding.note, finding.decided_by) == ("acknowledged", "ours", "zoe")
    assert finding.last_scan == second
    assert deletable() == set()
    listing.remove(ORPHAN)
    complete()
    assert the_orphan().state == "resolved"


@pytest.mark.parametrize("scan_again", [complete, backfill])
def test_a_finding_outlasts_a_scan_that_meets_its_row_in_hand(
    listing: Listing, scan_again: Callable[[], BucketScan]
) -> None:
    """That scan cannot tell whether the difference is still there."""
    R2Object.objects.filter(key=a(2)).update(size=99)
    complete()
    in_hand = R2Object.objects.filter(key=a(2))
    in_hand.update(updated_at=timezone.now() + AHEAD)
    scan_again()
    assert Finding.objects.get(key=a(2)).state == "open"
    Finding.objects.filter(key=a(2)).acknowledge("on purpose", "zoe")
    touched = scan_again()
    assert (touched.status, touched.changed) == ("complete", 0)
    finding = Finding.objects.get(key=a(2))
    assert (finding.state, finding.note, finding.last_scan) == (
        "acknowledged",
        "on purpose",
        finding.first_scan,
    )
    # The row describes the file by now, which is no reason to delete it.
    in_hand.update(size=7, updated_at=LONG_AGO)
    complete()
    finding.refresh_from_db()
    assert finding.state == "acknowledged"
    listing.remove(a(2))
    complete()
    finding.refresh_from_db()
    assert finding.state == "resolved"


def test_acknowledgement_outlasts_a_scan_while_a_cleanup_covers_the_file(listing: Listing) -> None:
    complete()
    Finding.objects.filter(key=ORPHAN).acknowledge("ours", "zoe")
    cleanup = CleanupOperation.objects.request(
        kind="project", project_id="proj_9", bucket=the_orphan().bucket, trigger="deleted"
    )
    complete()
    assert the_orphan().state == "acknowledged"
    CleanupOperation.objects.filter(pk=cleanup.pk).update(status="clean", next_attempt_at=None)
    listing.remove(ORPHAN)
    complete()
    assert the_orphan().state == "resolved"
    assert the_orphan().note.endswith("(acknowledged before by zoe: ours)")


def test_acknowledgement_outlasts_a_scan_that_calls_the_file_something_else(
    listing: Listing,
) -> None:
    complete()
    Finding.objects.update(kind="untracked")
    Finding.objects.filter(key=ORPHAN).acknowledge("ours", "zoe")
    complete()
    states = dict(Finding.objects.filter(key=ORPHAN).values_list("kind", "state"))
    assert states == {"untracked": "acknowledged", "orphaned": "open"}
    Finding.objects.filter(kind="untracked").update(etag="of another object")
    complete()
    states = dict(Finding.objects.filter(key=ORPHAN).values_list("kind", "state"))
    assert states == {"untracked": "resolved", "orphaned": "open"}


@pytest.mark.parametrize("page", [1, 2])
def test_failed_scans_count_for_nothing(listing: Listing, page: int) -> None:
    later(complete(), 5 * HOUR)
    before = all_findings()
    listing.size = 2
    asked = len(listing.asked)

    def fail(number: int) -> None:
        if number >= asked + page:
            raise Unavailable("down")

    listing.before_page = fail
    assert reconcile().status == "failed"
    assert all_findings() == before
    assert deletable() == set()


def test_dry_runs_say_nothing_and_forget_nothing(listing: Listing) -> None:
    later(complete(), 5 * HOUR)
    before, rows = all_findings(), R2Object.objects.count()
    listing.remove(ORPHAN, a(1))
    listing.add("README.txt")
    assert reconcile(dry_run=True).status == "complete"
    dry = backfill(dry_run=True)
    assert (dry.status, dry.added, dry.missing, dry.unrecognised) == ("complete", 1, 1, 1)
    assert all_findings() == before
    assert R2Object.objects.count() == rows
    shown = Sighting.objects.filter(scan=dry).values_list("kind", flat=True)
    assert sorted(shown) == ["missing", "unrecognised"]


def test_a_stopped_scan_that_went_on_sees_what_it_saw_when_it_began(listing: Listing) -> None:
    """The first of two must be over for the time that counts to begin: see `deletable`."""
    listing.size = 2
    found = listing_in_memory.begin()
    found.stop("later")
    later(found, 5 * HOUR)
    found.refresh_from_db()
    assert resume(found).status == "complete"
    complete()
    assert deletable() == set()


def test_orphans_of_a_project_that_lives_at_the_end_are_none(listing: Listing) -> None:
    """It was being created while its objects were looked at."""
    listing.add(a(2, "proj_9"), other := a(3, "proj_8"))
    found = listing_in_memory.begin()
    steps = work_on_scan(found)
    while not found.shards.filter(complete=True).exists():
        next(steps)
    assert found.sightings.filter(kind="orphaned").count() == 3
    alive("proj_9")
    for _batch in steps:
        pass
    found.refresh_from_db()
    assert (found.status, found.orphaned) == ("complete", 1)
    assert findings() == {("orphaned", other)}


def test_objects_of_a_project_that_vanished_without_a_word_are_no_orphans(
    listing: Listing,
) -> None:
    """It may be an accident with the table: nobody said that it is deleted."""
    KnownProject.objects.create(pk="proj_9", evidence="saved")
    complete()
    assert "orphaned" not in {kind for kind, _key in findings()}
    KnownProject.objects.update(evidence="deleted", deleted_at=timezone.now())
    complete()
    assert findings() >= {("orphaned", ORPHAN)}


def test_earlier_scans_that_stopped_cannot_go_on_once_a_later_one_is_complete(
    listing: Listing,
) -> None:
    stopped = listing_in_memory.begin()
    stopped.stop("for now")
    complete()
    with pytest.raises(IllegalTransition):
        stopped.resume()


def keep(key: str) -> None:
    complete()
    assert Finding.objects.filter(key=key).acknowledge("ours", "zoe") == 1


@pytest.mark.parametrize("in_key_order", [True, False])
def test_acknowledgement_outlasts_a_backfill_that_tracks_the_file(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, in_key_order: bool
) -> None:
    listing.order = as_bytes if in_key_order else as_tree
    listing.use(monkeypatch, Traits(folds_unicode=False, lists_in_key_order=in_key_order))
    listing.add(a(3), "projects/proj_1-x/a.mp4")
    keep(a(3))
    assert backfill().added
    assert R2Object.objects.filter(key=a(3)).exists()
    complete()
    finding = Finding.objects.get(key=a(3))
    assert (finding.state, finding.note, finding.decided_by) == ("acknowledged", "ours", "zoe")
    listing.remove(a(3))
    complete()
    finding.refresh_from_db()
    assert finding.state == "resolved"


@pytest.mark.parametrize("in_key_order", [True, False])
def test_acknowledgement_outlasts_a_listing_in_another_spelling(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, in_key_order: bool
) -> None:
    listing.order = as_bytes if in_key_order else as_tree
    listing.use(monkeypatch, Traits(folds_unicode=True, lists_in_key_order=in_key_order))
    key = "projects/proj_9/scenes/s1/media/\u00e9.mp4"
    listing.add(key)
    keep(key)
    shown = listing.entries.pop(key)
    other = normalize("NFD", key)
    listing.entries[other] = shown._replace(key=other)
    complete()
    assert Finding.objects.get(key=key).state == "acknowledged"


def test_acknowledgement_outlasts_a_first_page_of_the_past(listing: Listing) -> None:
    keep(ORPHAN)
    shown = listing.entries[ORPHAN]

    def answer(number: int) -> None:
        listing.entries.pop(ORPHAN, None)
        if listing.asked[-1] != ("", ""):
            listing.entries[ORPHAN] = shown

    listing.before_page = answer
    assert complete().listed == 2
    assert the_orphan().state == "acknowledged"


@pytest.mark.parametrize("covered", [False, True])
def test_acknowledgement_outlasts_a_project_created_as_the_scan_ends(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, covered: bool
) -> None:
    keep(ORPHAN)
    original = conclude.take_back

    def create_and_take_back(found: BucketScan) -> None:
        alive("proj_9")
        if covered:
            Project.objects.filter(pk="proj_9").delete()
        original(found)

    monkeypatch.setattr(conclude, "take_back", create_and_take_back)
    complete()
    assert the_orphan().state == "acknowledged"


@pytest.mark.parametrize("changed", [{"size": 8}, {"etag": "other"}], ids=str)
def test_overwriting_an_acknowledged_file_opens_its_finding(
    listing: Listing, changed: dict[str, object]
) -> None:
    keep(ORPHAN)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(**changed)  # type: ignore[arg-type]
    scan = complete()
    finding = the_orphan()
    assert (finding.state, finding.decided_by, finding.first_scan) == ("open", "", scan)
    assert finding.note == "The file was overwritten. (acknowledged before by zoe: ours)"


def test_page_of_the_past_does_not_end_the_acknowledgement_of_the_newer_file(
    listing: Listing,
) -> None:
    keep(ORPHAN)
    shown = listing.entries[ORPHAN]

    def answer(number: int) -> None:
        of_the_past = listing.asked[-1] == ("", "")
        listing.entries[ORPHAN] = shown._replace(etag="older") if of_the_past else shown

    listing.before_page = answer
    scan = complete()
    finding = the_orphan()
    assert (scan.orphaned, finding.state, finding.etag) == (1, "acknowledged", shown.etag)


def test_overwritten_file_that_is_tracked_by_now_ends_its_acknowledgement(
    listing: Listing,
) -> None:
    keep(ORPHAN)
    listing.entries[ORPHAN] = listing.entries[ORPHAN]._replace(size=8)
    alive("proj_9")
    track(ORPHAN, size=8, project_id="proj_9")
    complete()
    assert the_orphan().state == "resolved"
    assert the_orphan().note.endswith("(acknowledged before by zoe: ours)")
