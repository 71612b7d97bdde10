"""A key that is listed in another spelling may stand anywhere among all that start alike."""

from datetime import timedelta
from unicodedata import normalize

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.listing import spelling_pages
from storage_audit.bucket.listing_xml import Entries
from storage_audit.bucket.s3 import Page
from storage_audit.cleanup import plan, runner, worker_turn
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import R2Object
from tests.promises import (
    Status,
    assign_object,
    check_promises,
    create_projects,
    read_outcomes,
    request_cleanup,
    track_key,
)
from tests.real_bucket import Bucket

MINE = "projects/proj_1/scenes/s1/media/a.mp4"
OTHERS = [f"projects/proj_2/scenes/s1/media/{n:02}.mp4" for n in range(24)]
TRACKED = "\u00dcbersicht.pdf"
LISTED = normalize("NFD", TRACKED)


@pytest.fixture
def large(bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that takes a turn for each few of its pages."""
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1", "proj_2")
    bucket.put(MINE, *OTHERS)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    monkeypatch.setattr(s3, "PAGE_SIZE", 1)
    monkeypatch.setattr(worker_turn, "SLOW_LOOKUP_SECONDS", 0.0)
    return bucket


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prefixes of which the application has asked for a page."""
    asked = list[str]()

    def list_entries(
        bucket: str, prefix: str, start_after: str = "", token: str | None = None
    ) -> Page[Entries]:
        asked.append(prefix)
        return s3.list_entries(bucket, prefix, start_after, token)

    monkeypatch.setattr("storage_audit.bucket.listing.list_entries", list_entries)
    return asked


def take_turn(cleanup: Cleanup) -> None:
    Cleanup.objects.filter(pk=cleanup.pk).update(next_attempt_at=timezone.now())
    runner.run_turn(cleanup.pk)
    cleanup.refresh_from_db()


def is_open(cleanup: Cleanup) -> bool:
    return cleanup.status in (Status.PENDING, Status.RUNNING)


def test_missing_key_is_searched_in_the_whole_bucket_turn_after_turn(
    large: Bucket, listings: list[str]
) -> None:
    track_key(large, TRACKED, "proj_1", "assigned", etag="x", size=1)
    cleanup, most = request_cleanup("proj_1"), 0
    while is_open(cleanup):
        listings.clear()
        take_turn(cleanup)
        # At the key's place, and among all that start alike.
        most = max(most, listings.count(""))
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == {MINE: "deleted", TRACKED: "already_gone"}
    assert most < len(OTHERS)
    assert large.keys() == set(OTHERS) and not R2Object.objects.exists()


def test_file_that_an_earlier_turn_saw_in_another_spelling_is_not_forgotten(
    large: Bucket,
) -> None:
    large.put(LISTED)
    assign_object(large, LISTED, "proj_1", spelled=TRACKED)
    cleanup = request_cleanup("proj_1")
    while is_open(cleanup):
        take_turn(cleanup)
        check_promises(large)
    assert read_outcomes(cleanup) == {MINE: "deleted", LISTED: "deleted"}
    assert large.keys() == set(OTHERS)


def test_search_for_other_keys_does_not_go_on_from_this_one(
    large: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_LONE_KEYS", 1)
    other = track_key(large, "\u00dca.pdf", "proj_1", "assigned", etag="x", size=1)
    large.put(LISTED)
    assign_object(large, LISTED, "proj_1", spelled=TRACKED)
    cleanup = request_cleanup("proj_1")
    while (cleanup.position.spelling_search or {"after": ""})["after"] < LISTED:
        take_turn(cleanup)
    # The first of the two is looked for no more.
    R2Object.objects.filter(pk=other.pk).delete()
    Cleanup.objects.exclude(pk=cleanup.pk).delete()
    while is_open(cleanup):
        take_turn(cleanup)
        check_promises(large)
    assert read_outcomes(cleanup) == {MINE: "deleted", LISTED: "deleted"}


def test_second_search_for_the_same_key_begins_at_the_beginning(
    large: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"DELETE_ATTEMPTS": 1}
    track_key(large, TRACKED, "proj_1", "assigned", etag="x", size=1)
    cleanup = request_cleanup("proj_1")
    while not cleanup.position.confirm_at:
        take_turn(cleanup)
    large.put(LISTED)
    while is_open(cleanup):
        take_turn(cleanup)
    assert read_outcomes(cleanup) == {MINE: "deleted", TRACKED: "failed"}
    assert R2Object.objects.get().key == TRACKED


def test_search_for_spellings_goes_on_from_any_place(bucket: Bucket) -> None:
    keys = ["x/K\u00e9", "x/Ka", "x/Kb", "x/z", "x/\u212aa", "x/\u212ae\u0301", "y/K"]
    bucket.put(*keys)
    wanted = ["x/Ke\u0301"]
    every = [each.key for page in spelling_pages(bucket.name, wanted) for each in page]
    assert every == sorted(key for key in keys if key[:3] in ("x/K", "x/\u212a"))
    for number, after in enumerate(every, start=1):
        rest = [each.key for page in spelling_pages(bucket.name, wanted, after) for each in page]
        assert rest == every[number:]
