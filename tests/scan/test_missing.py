"""Absence is said only by a complete scan, and only of what nobody else explains."""

from collections.abc import Callable
from datetime import timedelta
from unicodedata import normalize

import pytest
from django.utils import timezone

from storage_audit.bucket.errors import InvalidResponse, Unavailable
from storage_audit.cleanup.changing_objects import find_in_hand
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.findings.models import Finding
from storage_audit.models import R2Object
from storage_audit.ownership.bucket_marker import StoreTraits
from storage_audit.scan import compare, fetchers, pending_findings
from storage_audit.scan.diff_lines import KeyRange
from storage_audit.scan.models import BucketScan, PendingFinding
from storage_audit.scan.worker import work_on_scan
from tests.scan import listing_in_memory
from tests.scan.listing_in_memory import (
    Listing,
    add_projects,
    complete_reconcile,
    nth_key,
    read_findings,
    resume_scan,
    run_backfill,
    run_reconcile,
    track_listed,
)
from tests.times import AHEAD, STALE_CALL

pytestmark = pytest.mark.django_db
State = R2Object.State
KEYS = [nth_key(n) for n in range(10)]
UNDER = "projects/proj_1/scenes/s1/media/"
NFC, NFD = f"{UNDER}\u00e9.mp4", f"{UNDER}e\u0301.mp4"
FOLDS = StoreTraits(folds_unicode=True, lists_in_key_order=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    listing_in_memory.remove_pauses(monkeypatch)


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    """All of the keys are there and tracked."""
    found = Listing(*KEYS)
    found.use(monkeypatch)
    add_projects("proj_1")
    track_listed(*KEYS)
    return found


def before_publication(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    real = compare.write_batch

    def write(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        act()

    patch.setattr(compare, "write_batch", write)


def test_what_is_listed_as_it_is_tracked_is_no_finding(listing: Listing) -> None:
    found = complete_reconcile()
    assert (found.listed, found.unchanged, found.missing) == (10, 10, 0)
    assert read_findings() == set()


@pytest.mark.parametrize("gone", [0, 3, 4, 7, 9])
def test_a_row_without_its_object_is_missing(listing: Listing, gone: int) -> None:
    """At the beginning, the end and both sides of the bounds of pages."""
    listing.remove(KEYS[gone])
    assert complete_reconcile().missing == 1
    assert read_findings() == {("missing", KEYS[gone])}


def test_rows_before_between_and_behind_all_that_is_listed_are_missing(listing: Listing) -> None:
    for key in KEYS[:3] + KEYS[4:6] + KEYS[7:]:
        listing.remove(key)
    assert findings_of(complete_reconcile()) == {("missing", key) for key in KEYS} - {
        ("missing", KEYS[3]),
        ("missing", KEYS[6]),
    }


def findings_of(found: BucketScan) -> set[tuple[str, str]]:
    assert set(Finding.objects.values_list("last_scan", flat=True)) == {found.pk}
    return read_findings()


def test_more_rows_than_a_database_takes_in_a_query_are_missing(listing: Listing) -> None:
    """On SQLite a query has as many values as it was built for, which are not these."""
    many = [nth_key(n, name="gone") for n in range(pending_findings.KEYS_PER_QUERY * 2 + 1)]
    track_listed(*many)
    found = complete_reconcile(accept_fewer=True)
    assert found.missing == len(many)
    assert read_findings() == {("missing", key) for key in many}


@pytest.mark.parametrize("state", [State.UPLOADING, State.DELETING])
def test_a_row_that_an_upload_or_a_cleanup_has_is_not_missing(listing: Listing, state: str) -> None:
    listing.remove(KEYS[5])
    lately = timezone.now() - timedelta(minutes=5)
    R2Object.objects.filter(key=KEYS[5]).update(state=state, updated_at=lately)
    complete_reconcile()
    assert read_findings() == set()


INTERRUPTED = [(State.UPLOADING, timedelta(hours=25)), (State.DELETING, STALE_CALL)]


@pytest.mark.parametrize("state, ago", INTERRUPTED)
def test_a_row_of_a_killed_upload_or_deletion_is_missing(
    listing: Listing, state: str, ago: timedelta
) -> None:
    listing.remove(KEYS[5])
    R2Object.objects.filter(key=KEYS[5]).update(state=state, updated_at=timezone.now() - ago)
    assert complete_reconcile().missing == 1
    assert read_findings() == {("missing", KEYS[5])}


@pytest.mark.parametrize("state, ago", INTERRUPTED)
def test_a_file_whose_upload_or_deletion_was_killed_is_compared(
    listing: Listing, state: str, ago: timedelta
) -> None:
    killed = {"state": state, "size": None, "etag": "", "updated_at": timezone.now() - ago}
    R2Object.objects.filter(key=KEYS[5]).update(**killed)
    complete_reconcile()
    [found] = Finding.objects.all()
    assert (found.kind, found.key) == ("changed", KEYS[5])
    assert found.evidence == "tracked as not uploaded, but in the bucket"
    run_backfill()
    assert R2Object.objects.get(key=KEYS[5]).state == State.STORED


def test_a_row_is_in_hand_for_as_long_as_its_cleanup_takes(listing: Listing) -> None:
    listing.remove(KEYS[5])
    R2Object.objects.filter(key=KEYS[5]).update(state=State.DELETING)
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket=conf().bucket, trigger="deleted"
    )
    mark = {"outcome": "deleting", "changed_at": timezone.now() - STALE_CALL}
    cleanup.items.create(key=KEYS[5], identity=KEYS[5], found_in="both", **mark)
    complete_reconcile()
    assert read_findings() == set()
    Cleanup.objects.update(status="superseded", next_attempt_at=None)
    complete_reconcile()
    assert read_findings() == {("missing", KEYS[5])}


def test_row_is_in_hand_while_the_store_may_obey_a_call_that_got_no_answer(
    listing: Listing,
) -> None:
    listing.remove(KEYS[5])
    row = R2Object.objects.get(key=KEYS[5])
    cleanup = Cleanup.objects.request(
        kind="objects", project_id="proj_1", bucket=conf().bucket, trigger="deleted"
    )
    mark = {"outcome": "kept", "unanswered_at": timezone.now()}
    cleanup.items.create(key=KEYS[5], identity=KEYS[5], found_in="both", **mark)
    assert find_in_hand([row]) == {row.pk}
    complete_reconcile()
    assert read_findings() == set()
    Cleanup.objects.update(bucket="other")
    assert find_in_hand([row]) == set()
    complete_reconcile()
    assert read_findings() == {("missing", KEYS[5])}


def test_a_row_in_another_spelling_than_its_item_is_in_hand(listing: Listing) -> None:
    key = "projects/proj_1/scenes/s1/media/\u00e9.mp4"
    track_listed(normalize("NFD", key), state=State.DELETING)
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    row = R2Object.objects.get(key=normalize("NFD", key))
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket=conf().bucket, trigger="deleted"
    )
    mark = {"outcome": "deleting", "changed_at": timezone.now() - timedelta(hours=1)}
    item = cleanup.items.create(key=key, identity=key, found_in="both", **mark)
    assert find_in_hand([row]) == {row.pk}
    item.delete()
    assert find_in_hand([row]) == set()


@pytest.mark.parametrize("in_key_order", [True, False])
@pytest.mark.parametrize("etag, missing", [("e", {("missing", KEYS[5])}), ("", set())])
def test_a_row_whose_last_upload_failed_is_missing_if_one_before_had_stored_its_object(
    listing: Listing,
    monkeypatch: pytest.MonkeyPatch,
    etag: str,
    missing: set[tuple[str, str]],
    in_key_order: bool,
) -> None:
    listing.remove(KEYS[5])
    if not in_key_order:
        listing.use(monkeypatch, StoreTraits(folds_unicode=False, lists_in_key_order=False))
    R2Object.objects.filter(key=KEYS[5]).update(state=State.UPLOAD_FAILED, etag=etag)
    complete_reconcile()
    assert read_findings() == missing


@pytest.mark.parametrize("state", [State.UPLOADING, State.DELETING, State.UPLOAD_FAILED])
def test_a_missing_file_stays_one_while_its_row_is_changing(listing: Listing, state: str) -> None:
    """The scan does not look for it."""
    listing.remove(KEYS[5])
    complete_reconcile()
    Finding.objects.ignore("lost in 2024", "zoe")
    R2Object.objects.filter(key=KEYS[5]).update(updated_at=timezone.now() + AHEAD, state=state)
    complete_reconcile()
    finding = Finding.objects.get()
    assert (finding.state, finding.note) == ("ignored", "lost in 2024")


@pytest.mark.parametrize("ahead", [timedelta(minutes=1), AHEAD])
def test_a_row_that_changed_after_its_page_was_asked_for_is_not_missing(
    listing: Listing, ahead: timedelta
) -> None:
    listing.remove(KEYS[5])
    R2Object.objects.filter(key=KEYS[5]).update(updated_at=timezone.now() + ahead)
    assert complete_reconcile().missing == 0
    assert not PendingFinding.objects.exists()
    assert read_findings() == set()


def test_a_row_that_is_gone_or_changed_at_the_end_is_not_missing(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is written again may be so at any moment until the scan says something."""
    for key in KEYS[2:6]:
        listing.remove(key)

    def change() -> None:
        assert PendingFinding.objects.filter(kind="missing").count() == 4
        rows = R2Object.objects.filter(bucket=conf().bucket)
        rows.filter(key=KEYS[2]).delete_without_signals()
        lately = timezone.now() - timedelta(minutes=5)
        rows.filter(key=KEYS[3]).update(state=State.UPLOADING, updated_at=lately)
        rows.filter(key=KEYS[4]).update(updated_at=timezone.now())
        rows.filter(key=KEYS[5]).update(updated_at=timezone.now() + AHEAD)

    before_publication(monkeypatch, change)
    found = complete_reconcile()
    assert read_findings() == set()
    assert found.missing == 0


@pytest.mark.parametrize(("tracked", "listed"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_row_whose_object_is_listed_in_another_spelling_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, tracked: str, listed: str, dry_run: bool, shards: int
) -> None:
    """Nor is it said so by a dry run, or by a figure. Between the two spellings others are listed,
    and another shard may begin."""
    between = [nth_key(n)[:-9] + f"f{n}.mp4" for n in range(6)]
    assert NFD < between[0] < between[-1] < NFC
    listing = Listing(*between, listed)
    listing.use(monkeypatch, FOLDS)
    monkeypatch.setattr("storage_audit.scan.shards.KEYS_PER_SHARD", 8 // shards)
    add_projects("proj_1")
    track_listed(*between, tracked)
    R2Object.objects.filter(key=tracked).update(etag=listing.entries[listed].etag)
    found = complete_reconcile(dry_run=dry_run)
    assert (found.missing, found.untracked, found.changed) == (0, 0, 0)
    assert read_findings() == set()
    assert not PendingFinding.objects.filter(kind="missing").exists()


def test_where_spellings_are_two_objects_the_row_of_the_other_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = Listing(NFD)
    listing.use(monkeypatch)
    add_projects("proj_1")
    track_listed(NFC)
    complete_reconcile()
    assert read_findings() == {("missing", NFC), ("untracked", NFD)}
    assert normalize("NFC", NFD) == NFC


@pytest.mark.parametrize(
    ("prefix", "tracked", "listed"),
    [
        ("caf\u00e9/", "caf\u00e9/a.mp4", "cafe\u0301/a.mp4"),
        ("cafe\u0301/", "cafe\u0301/a.mp4", "caf\u00e9/a.mp4"),
        ("cafe", "cafe\u0301.mp4", "caf\u00e9.mp4"),
        ("K/", "K/a.mp4", "\u212a/a.mp4"),
        ("`;", "`;a.mp4", "\u1fef\u037ea.mp4"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_scan_of_a_prefix_finds_a_row_whose_object_is_spelled_without_it(
    monkeypatch: pytest.MonkeyPatch, prefix: str, tracked: str, listed: str, dry_run: bool
) -> None:
    """What is in no spelling there is missing all the same."""
    listing = Listing(UNDER + listed)
    listing.use(monkeypatch, FOLDS)
    add_projects("proj_1")
    gone = UNDER + tracked.replace(".mp4", "2.mp4")
    track_listed(UNDER + tracked, gone)
    found = complete_reconcile(UNDER + prefix, dry_run=dry_run)
    assert found.missing == 1
    if dry_run:
        assert set(PendingFinding.objects.values_list("key", flat=True)) == {gone}
    else:
        assert read_findings() == {("missing", gone)}


def test_a_scan_of_a_prefix_lists_nothing_more_where_it_saw_all_spellings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = Listing()
    listing.use(monkeypatch, FOLDS)
    add_projects("proj_1")
    track_listed(NFC, NFD.replace("mp4", "mov"), f"{UNDER}K.mp4")
    assert complete_reconcile(UNDER).missing == 3
    assert {prefix for prefix, _after in listing.asked_pages} == {UNDER}


def test_a_scan_of_a_prefix_says_nothing_of_what_is_beside_it(listing: Listing) -> None:
    """Keys that start alike, the prefix itself as a key, and what comes just before and after."""
    prefix = "projects/proj_1"
    around = ["projects/proj", "projects/proj_0", "projects/proj_2", "projects/proj\U0010ffff"]
    within = [prefix, f"{prefix}\x01", f"{prefix}\U0010ffff", f"{prefix}0"]
    track_listed(*around, *within, project_id=None)
    for key in KEYS:
        listing.remove(key)
    listing.add(KEYS[0])
    complete_reconcile(prefix, accept_fewer=True)
    assert read_findings() == {("missing", key) for key in [*KEYS[1:], *within]}
    listing.add(*within)
    complete_reconcile(prefix, accept_fewer=True)
    left = {key for kind, key in read_findings() if kind == "missing"}
    assert left == set(KEYS[1:])


def test_a_scan_of_a_project_says_nothing_of_others(listing: Listing) -> None:
    add_projects("proj_10", "proj")
    others = [nth_key(1, "proj_10"), nth_key(1, "proj"), "README.txt", "proj_10_s1_media.mp4"]
    mine = ["proj_1_s1_media.mp4", "audio/proj_1/s1/a.mp3"]
    track_listed(*others, *mine)
    for key in KEYS:
        listing.remove(key)
    found = complete_reconcile(project_id="proj_1", accept_fewer=True)
    assert found.listed == 0
    assert {key for _kind, key in read_findings()} == {*KEYS, *mine}


@pytest.mark.parametrize("page", [1, 2, 3])
@pytest.mark.parametrize("error", [Unavailable("down"), InvalidResponse("unreadable")], ids=repr)
def test_a_scan_that_fails_says_nothing_and_one_that_goes_on_says_all(
    listing: Listing, page: int, error: Exception
) -> None:
    listing.remove(KEYS[0], KEYS[9])
    listing.add("README.txt", "zzz")

    def fail(number: int) -> None:
        if number >= page:
            raise error

    listing.before_page = fail
    found = run_reconcile()
    assert (found.status, found.message) == ("failed", str(error))
    assert not Finding.objects.exists()
    listing.before_page = lambda number: None
    assert resume_scan(found).status == "complete"
    missing = {("missing", KEYS[0]), ("missing", KEYS[9])}
    assert read_findings() == missing | {("unrecognised", "README.txt"), ("unrecognised", "zzz")}
    assert (found.listed, found.unchanged) == (10, 8)


def test_a_listing_that_shows_half_is_not_believed(listing: Listing) -> None:
    """Nor is a resumed scan that has half of it from before."""
    many = [nth_key(n, name="more") for n in range(50)]
    listing.add(*many)
    track_listed(*many)
    assert complete_reconcile().listed == 60
    listing.remove(*many[:45])
    found = run_reconcile()
    assert found.status == "failed"
    assert "15" in found.message and "60" in found.message
    assert read_findings() == set()
    found.resume(accept_fewer=True)
    assert listing_in_memory.run_scan(found).status == "complete"
    assert read_findings() == {("missing", key) for key in many[:45]}


def test_a_first_page_of_the_applications_own_objects_is_no_end(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not compared: so a batch may be of no key at all, and says nothing of any row."""
    listing.add(*(f".storage_audit/probe-{n}" for n in range(8)))
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 1)
    found = complete_reconcile()
    assert (found.listed, found.missing) == (10, 0)
    assert read_findings() == set()


def test_a_first_page_of_keys_that_nobody_can_name_is_no_end(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"\0{n}" for n in range(9)]
    listing.add(*names)
    monkeypatch.setattr(fetchers, "PAGES_PER_BATCH", 1)
    found = complete_reconcile()
    assert (found.listed, found.missing, found.unstorable) == (19, 0, 9)
    assert {kind for kind, _key in read_findings()} == {"unstorable"}


def test_a_range_that_ends_before_it_began_holds_no_row(listing: Listing) -> None:
    condition, values = KeyRange("", "", "").condition()
    assert not R2Object.objects.extra(where=[condition], params=values).exists()
    condition, values = KeyRange("", "", None).condition()
    assert R2Object.objects.extra(where=[condition], params=values).count() == len(KEYS)


def test_a_backfill_says_what_is_missing_too(listing: Listing) -> None:
    listing.remove(KEYS[4])
    listing.add(nth_key(99))
    found = run_backfill()
    assert (found.status, found.added, found.missing) == ("complete", 1, 1)
    assert read_findings() == {("missing", KEYS[4])}
    assert R2Object.objects.filter(key=nth_key(99)).exists()


@pytest.mark.parametrize("prefix", ["", "projects/"])
def test_a_scan_that_was_overtaken_by_a_later_one_says_nothing_old(
    listing: Listing, prefix: str
) -> None:
    """What it listed long ago may be otherwise since: the later scan saw that."""
    listing.remove(KEYS[5])
    listing.add("README.txt")
    slow = listing_in_memory.start_reconcile(prefix)
    steps = work_on_scan(slow)
    while not slow.shards.filter(complete=True).exists():
        next(steps)
    listing.add(KEYS[5])
    listing.remove("README.txt")
    complete_reconcile()
    assert read_findings() == set()
    for _batch in steps:
        pass
    assert read_findings() == set()


@pytest.mark.parametrize("ahead", [timedelta(0), AHEAD])
def test_a_finding_that_a_person_resolved_meanwhile_stays_so(
    listing: Listing, ahead: timedelta
) -> None:
    listing.add("README.txt")
    complete_reconcile()
    slow = listing_in_memory.start_reconcile()
    steps = work_on_scan(slow)
    while not slow.shards.filter(complete=True).exists():
        next(steps)
    listing.remove("README.txt")
    Finding.objects.all().resolve("deleted", "zoe")
    Finding.objects.update(decided_at=timezone.now() + ahead)
    for _batch in steps:
        pass
    slow.refresh_from_db()
    assert slow.status == "complete"
    finding = Finding.objects.get()
    assert (finding.state, finding.note, finding.decided_by) == ("resolved", "deleted", "zoe")


def test_a_row_of_another_bucket_is_of_no_account(listing: Listing) -> None:
    track_listed(nth_key(50), bucket="other")
    complete_reconcile()
    assert read_findings() == set()
