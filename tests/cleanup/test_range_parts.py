"""A large range is listed in parts at once, and nothing between two parts is left out."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from threading import Event
from time import sleep

import pytest

from devtools.http_reply import Reply
from storage_audit.bucket import s3
from storage_audit.bucket.concurrent_requests import MAX_CONNECTIONS
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import range_parts, worker_turn
from storage_audit.cleanup.listing_pieces import RangePiece
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.range_parts import AskedParts, ListedPart, PartedRange, PartJob
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.ownership.bucket_marker import MARKER_PREFIX, CannotConclude
from tests.faults.kinds import change_reply
from tests.faults.matching import is_listing, is_listing_under, rule_for
from tests.faults.pages import copied_bucket_page, empty_page, find_entries, with_entries
from tests.faults.proxy import RESET_REPLY, FaultyStore, Forward, Request
from tests.promises import create_projects, request_cleanup, track_key
from tests.real_bucket import Bucket

Step = Cleanup.Step
PREFIX = "projects/proj_1/scenes/"
KEYS = [f"{PREFIX}s1/media/{number:02}.mp4" for number in range(60)]
# A page has two keys more than a part: the one that it begins behind, and the first one beyond.
FEW_KEYS = 4
# A part in the middle begins behind this key: a plan lists one page before the parts, and a
# verification two.
MIDDLE: dict[str, int] = {Step.PLAN: 29, Step.VERIFY: 27}
on_each_step = pytest.mark.parametrize("step", [Step.PLAN, Step.VERIFY])


@pytest.fixture
def filled(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    create_projects("proj_1")
    bucket.put(*KEYS)
    for key in KEYS:
        track_key(bucket, key, "proj_1")
    monkeypatch.setattr(s3, "PAGE_SIZE", FEW_KEYS + 2)
    monkeypatch.setattr(worker_turn, "KEYS_PER_PART", FEW_KEYS)
    return bucket


def begin_turn(step: str) -> Turn:
    cleanup = request_cleanup("proj_1")
    cleanup.listed_prefixes = [PREFIX]
    work = Turn.start(cleanup)
    cleanup.step = step
    return work


def take_until(error: type[Exception], work: Turn) -> list[RangePiece]:
    """What is given before the error."""
    given = list[RangePiece]()
    with pytest.raises(error):
        for piece in work.list_ranges(0):
            given.append(piece)
    return given


def list_keys(pieces: list[RangePiece]) -> list[str]:
    return [each.key for piece in pieces for each in piece.page]


def part_number(request: Request) -> int | None:
    """The number of the key behind which a listing under the prefix begins."""
    found = re.search(r"start-after=[^&]*media%2F(\d\d)\.mp3", request.target)
    return int(found[1]) if found and is_listing_under(PREFIX)(request) else None


def is_part(number: int) -> Callable[[Request], bool]:
    return lambda request: part_number(request) == number


def without_first(count: int) -> Callable[[str], str]:
    """A page that omits the first keys behind the one that it begins behind."""
    return lambda xml: with_entries(xml, find_entries(xml)[:1] + find_entries(xml)[1 + count :])


@on_each_step
def test_each_key_of_a_range_is_given_once_and_its_end_last(filled: Bucket, step: str) -> None:
    pieces = list(begin_turn(step).list_ranges(0))
    assert list_keys(pieces) == KEYS
    assert [piece.is_last for piece in pieces].index(True) == len(pieces) - 1


@on_each_step
def test_parts_are_listed_at_once(filled: Bucket, store: FaultyStore, step: str) -> None:
    are_together = Event()

    def wait_for_others(request: Request, forward: Forward) -> None:
        if part_number(request) is not None:
            if len(set(map(part_number, store.requests)) - {None}) >= 8:
                are_together.set()
            assert are_together.wait(timeout=10)

    store.rules.append(wait_for_others)
    assert list_keys(list(begin_turn(step).list_ranges(0))) == KEYS


@on_each_step
@pytest.mark.parametrize("omitted", [1, FEW_KEYS, FEW_KEYS + 1])
def test_key_that_the_listing_of_a_part_omits_is_listed_behind_the_part_before(
    filled: Bucket, store: FaultyStore, step: str, omitted: int
) -> None:
    store.rules.append(
        rule_for(is_part(MIDDLE[step]), change_reply(without_first(omitted)), times=1)
    )
    assert list_keys(list(begin_turn(step).list_ranges(0))) == KEYS


@on_each_step
def test_part_whose_listing_ends_too_early_does_not_end_the_range(
    filled: Bucket, store: FaultyStore, step: str
) -> None:
    store.rules.append(rule_for(is_part(MIDDLE[step]), change_reply(empty_page), times=1))
    assert list_keys(list(begin_turn(step).list_ranges(0))) == KEYS


@on_each_step
@pytest.mark.parametrize("is_last", [False, True], ids=["middle", "last"])
def test_part_with_many_untracked_keys_is_listed_to_its_end(
    filled: Bucket, step: str, is_last: bool
) -> None:
    key = KEYS[-1 if is_last else MIDDLE[step] + 1]
    more = [f"{key}-{number:02}" for number in range(40)]
    filled.put(*more)
    assert list_keys(list(begin_turn(step).list_ranges(0))) == sorted(KEYS + more)


@on_each_step
def test_rows_without_objects_cut_the_range_too(filled: Bucket, step: str) -> None:
    for number in range(60, 90):
        track_key(filled, f"{PREFIX}s1/media/{number:02}.mp4", "proj_1")
    filled.r2.remove(KEYS[40], filled.name)
    pieces = list(begin_turn(step).list_ranges(0))
    assert list_keys(pieces) == KEYS[:40] + KEYS[41:]
    assert pieces[-1].is_last


@on_each_step
def test_parts_before_a_failure_are_given_and_none_behind_it(
    filled: Bucket, store: FaultyStore, step: str
) -> None:
    store.rules.append(rule_for(is_part(MIDDLE[step]), Reply(403)))
    given = take_until(StoreError, begin_turn(step))
    assert list_keys(given) == KEYS[: MIDDLE[step] + 1]


@on_each_step
def test_nothing_of_the_parts_is_given_before_the_marker_was_seen_behind_them(
    filled: Bucket, store: FaultyStore, step: str
) -> None:
    """The listing of a part, and of the marker from then on, goes to a copy of the bucket."""
    struck = list[int]()

    def strike(request: Request, forward: Forward) -> Reply | None:
        if part_number(request) is not None:
            struck.append(request.connection)
        elif struck and is_listing_under(MARKER_PREFIX)(request):
            return change_reply(copied_bucket_page)(request, forward)
        return None

    store.rules.append(strike)
    given = take_until(CannotConclude, begin_turn(step))
    assert len(list_keys(given)) < 15


def test_connection_of_a_part_that_leads_elsewhere_shows_no_marker(
    filled: Bucket, store: FaultyStore
) -> None:
    """A balancer leads the connection of one part to an empty copy."""
    astray = set[int]()

    def lead_astray(request: Request, forward: Forward) -> Reply | None:
        if is_part(MIDDLE[Step.VERIFY])(request):
            astray.add(request.connection)
        is_astray = is_listing(request) and request.connection in astray
        return change_reply(empty_page)(request, forward) if is_astray else None

    store.rules.append(lead_astray)
    given = take_until(InvalidResponse, begin_turn(Step.VERIFY))
    assert len(list_keys(given)) < MIDDLE[Step.VERIFY]


def test_part_is_listed_again_if_its_connection_breaks_before_it_shows_the_marker(
    filled: Bucket, store: FaultyStore
) -> None:
    broken = set[int]()

    def reset(request: Request, forward: Forward) -> Reply | None:
        if is_part(MIDDLE[Step.VERIFY])(request) and not broken:
            broken.add(request.connection)
            return change_reply(empty_page)(request, forward)
        if is_listing_under(MARKER_PREFIX)(request) and request.connection in broken:
            return RESET_REPLY
        return None

    store.rules.append(reset)
    assert list_keys(list(begin_turn(Step.VERIFY).list_ranges(0))) == KEYS
    assert sum(map(is_part(MIDDLE[Step.VERIFY]), store.requests)) == 2


def test_parts_that_are_not_written_yet_are_bounded() -> None:
    asked = list[int]()

    def ask(jobs: Sequence[PartJob], while_waiting: Callable[[], None]) -> AskedParts:
        asked.append(len(jobs))
        at = datetime(2026, 1, 1, tzinfo=UTC)
        parts = [
            ListedPart([ListedObject(f"{n}", 1, "e", at)], f"{n}", f"{n + 1}", is_complete=True)
            for n in range(len(jobs))
        ]
        return AskedParts(parts, None, [])

    keys = iter(f"{number:04}" for number in range(1000))
    parted = PartedRange(
        "bucket",
        "",
        "0",
        find_cut=lambda prefix, after: next(keys),
        ask=ask,
        accept_marker=lambda sighting: None,
        while_waiting=lambda: None,
    )
    pages = parted.take_pages()
    next(pages)
    sleep(0.2)
    assert sum(asked) <= 2 * MAX_CONNECTIONS


def test_page_mostly_shows_the_key_behind_a_part() -> None:
    assert range_parts.KEYS_PER_PART + 2 <= s3.PAGE_SIZE
