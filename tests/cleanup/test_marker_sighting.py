"""Nothing is concluded, or skipped, from a page unless a sighting of the marker follows it."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit import tasks
from storage_audit.bucket import listing, s3
from storage_audit.bucket.errors import StoreError
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup import progress, runner, turn, verify
from storage_audit.cleanup.delete_batches import NOT_LISTED
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.turn import AHEAD, Work, gather
from storage_audit.models import R2Object
from storage_audit.ownership import bucket_marker
from storage_audit.ownership.bucket_marker import MARKER
from storage_audit.ownership.key_formats import DEFAULT_TEMPLATES
from tests.faults.kinds import changed
from tests.faults.matching import (
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_listing_under,
    on,
)
from tests.faults.pages import contents, with_contents
from tests.faults.proxy import FaultyStore, Request
from tests.promises import (
    FLAT,
    HIERARCHICAL,
    Status,
    again,
    alive,
    between_batch_and_verification,
    between_plan_and_batch,
    check,
    delete,
    hide,
    let_the_pause_end,
    list_facts,
    list_gone,
    outcomes,
    requested,
    run,
    take_over_lease,
    track,
)
from tests.real_bucket import Bucket

OUTSIDE = "odd/place.mp4"
NOTHING = changed(lambda xml: with_contents(xml, []))
Step = CleanupOperation.Step


def is_page(request: Request) -> bool:
    return is_listing(request) and not is_listing_under(MARKER)(request)


def as_copied(xml: str) -> str:
    """What a copy of the bucket lists that holds nothing but the marker, copied as well."""
    markers = [entry for entry in contents(xml) if "installation.json" in entry]
    time = "<LastModified>2026-01-01T00:00:00.000Z<"
    return with_contents(xml, [re.sub("<LastModified>.*?<", time, entry) for entry in markers])


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    """A project with files under two prefixes, and one that only its row leads to."""
    alive("proj_1")
    bucket.put(FLAT, HIERARCHICAL, OUTSIDE)
    track(bucket, OUTSIDE, "proj_1")
    return bucket


@pytest.mark.parametrize("slice_", [timedelta(0), timedelta(seconds=30)], ids=["cut", "whole"])
@pytest.mark.parametrize("moment", [between_plan_and_batch, between_batch_and_verification])
def test_copied_bucket_that_answers_from_now_on_calls_nothing_gone(
    filled: Bucket,
    store: FaultyStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[..., None],
    slice_: timedelta,
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": slice_}
    store.rules.append(on(is_delete_batch, Reply(503)))
    moment(monkeypatch, lambda: store.rules.append(on(is_listing, changed(as_copied))))
    operation = delete("proj_1")
    if moment is between_plan_and_batch:
        assert operation.status == Status.BLOCKED and "another marker" in operation.error
    assert not list_gone(operation)
    store.rules.clear()
    check(filled)


def die_between_page_and_sighting(
    patch: pytest.MonkeyPatch, store: FaultyStore, step: str, before: Sequence[str] = ()
) -> None:
    """In this step the pages show nothing, and the worker stops before it sees the marker."""
    struck, now = list[str](), list[str]()
    enter, see_marker = progress.enter, Work.see_marker

    def strike(request: Request, forward: Any) -> Reply | None:
        if not now or now[-1] != step or not is_page(request):
            return None
        struck.append(request.target)
        return NOTHING(request, forward)

    def enter_step(operation: CleanupOperation) -> None:
        now.append(operation.step)
        enter(operation)

    def stop(work: Work) -> None:
        if struck:
            raise SystemExit
        see_marker(work)

    store.rules.append(strike)
    patch.setattr(progress, "enter", enter_step)
    patch.setattr(Work, "see_marker", stop)


@pytest.mark.parametrize("step", Step.values)
def test_page_that_no_sighting_followed_is_forgotten_when_its_worker_dies(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    operation = requested("proj_1")
    with monkeypatch.context() as patch, suppress(SystemExit):
        die_between_page_and_sighting(patch, store, step)
        run(operation)
    store.rules.clear()
    assert not list_gone(operation)
    assert not operation.items.filter(answer=NOT_LISTED).exists()
    assert take_over_lease(operation).status == Status.CLEAN
    assert outcomes(operation) == dict.fromkeys((FLAT, HIERARCHICAL, OUTSIDE), "deleted")
    check(filled)


@pytest.mark.parametrize("key", [FLAT, OUTSIDE])
def test_named_object_that_no_vouched_page_showed_is_looked_for_again(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The cleanup of a deleted row, whose look-up shows nothing to a worker that then dies."""
    if key == FLAT:
        track(filled, FLAT, "proj_1")
    R2Object.objects.filter(key=key).update(**list_facts(filled)[key])
    R2Object.objects.get(key=key).delete()
    operation = CleanupOperation.objects.get()
    with monkeypatch.context() as patch, suppress(SystemExit):
        die_between_page_and_sighting(patch, store, Step.PLAN)
        run(operation)
    store.rules.clear()
    assert take_over_lease(operation).status == Status.CLEAN
    assert outcomes(operation) == {key: "deleted"}


def test_proof_says_of_nothing_that_it_is_not_listed_unless_the_marker_is(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is there for the look before the proof, and lists nothing from then on."""
    proving = list[bool]()
    store.rules.append(on(lambda request: bool(proving) and is_listing(request), NOTHING))
    between_plan_and_batch(monkeypatch, lambda: proving.append(True))
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE and "do not show the marker" in operation.error
    assert not operation.events.filter(step="delete", data__absent__gt=0).exists()
    store.rules.clear()
    assert again(operation).status == Status.CLEAN
    assert set(outcomes(operation).values()) == {"deleted"}


def test_deleted_file_is_left_to_its_cleanup_unless_the_marker_is_listed(
    bucket: Bucket, store: FaultyStore
) -> None:
    name = bucket.upload("proj_1")
    store.rules += [on(is_delete_single, Reply(204)), on(is_listing, NOTHING)]
    with pytest.raises(StoreError):
        default_storage.delete(name)
    operation = CleanupOperation.objects.get(status="pending")
    assert run(operation).status == Status.INCOMPLETE
    store.rules.clear()
    # The file was there all the time.
    assert (again(operation).status, bucket.keys()) == (Status.CLEAN, set())


def test_listings_that_take_long_say_of_empty_prefixes_what_others_say(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "GATHERING", 0.0)
    assert delete("proj_1").status == Status.CLEAN


# Positions


def age(by: timedelta) -> Callable[..., None]:
    def change(operation: CleanupOperation, **others: Any) -> None:
        operation.refresh_from_db()
        seen_at = datetime.fromisoformat(operation.cursor["seen_at"]) - by
        cursor = {**operation.cursor, "seen_at": seen_at.isoformat()}
        CleanupOperation.objects.filter(pk=operation.pk).update(cursor=cursor)

    return change


def another_marker(operation: CleanupOperation, bucket: Bucket, **others: Any) -> None:
    bucket.set_marker()


def another_endpoint(operation: CleanupOperation, settings: Settings, **others: Any) -> None:
    straight = others["local_r2"].environment["R2_ENDPOINT_URL"]
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": straight}


def other_ranges(operation: CleanupOperation, settings: Settings, **others: Any) -> None:
    """A plan lists what the settings say, and a verification what the plan has listed."""
    few = dict(list(DEFAULT_TEMPLATES.items())[:-1])
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LAYOUTS": few}
    if operation.step == Step.VERIFY:
        CleanupOperation.objects.filter(pk=operation.pk).update(ranges=operation.ranges[:-1])


def older_version(operation: CleanupOperation, **others: Any) -> None:
    """It wrote no sighting with a position."""
    vouching = ("seen_at", "marker", "place")
    cursor = {name: value for name, value in operation.cursor.items() if name not in vouching}
    CleanupOperation.objects.filter(pk=operation.pk).update(cursor=cursor)


CHANGES: dict[str, Callable[..., None]] = {
    "an hour": age(timedelta(minutes=61)),
    "a clock ahead": age(-timedelta(minutes=61)),
    "another marker": another_marker,
    "another endpoint": another_endpoint,
    "other ranges": other_ranges,
    "an older version": older_version,
}


def stop_in(step: str, patch: pytest.MonkeyPatch) -> None:
    """Let the worker die once all prefixes have been listed."""

    def die(work: Work) -> None:
        raise SystemExit

    if step == Step.PLAN:
        patch.setattr("storage_audit.cleanup.plan.discover_outside", die)
    else:
        patch.setattr(verify, "look_at_keys", die)


@pytest.mark.parametrize("step", [Step.PLAN, Step.VERIFY])
@pytest.mark.parametrize("change", [*CHANGES, "nothing"])
def test_pass_starts_again_when_what_its_position_rests_on_has_changed(
    filled: Bucket,
    store: FaultyStore,
    settings: Settings,
    local_r2: LocalR2,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    change: str,
) -> None:
    operation = requested("proj_1")
    with monkeypatch.context() as patch, suppress(SystemExit):
        stop_in(step, patch)
        run(operation)
    operation.refresh_from_db()
    assert operation.step == step and operation.cursor["span"] == len(operation.ranges)
    if change in CHANGES:
        others = {"bucket": filled, "settings": settings, "local_r2": local_r2}
        CHANGES[change](operation, **others)
    late = HIERARCHICAL.replace("old", "late")
    filled.put(late)
    operation = take_over_lease(operation)
    started_again = operation.events.filter(message__contains="from the beginning").exists()
    assert started_again == (change in CHANGES)
    if started_again or step == Step.PLAN:  # Else no listing has shown it.
        planned_anew = started_again and step == Step.PLAN
        assert outcomes(operation)[late] == ("deleted" if planned_anew else "protected")
    check(filled)


def test_pass_that_starts_again_and_again_makes_no_progress_and_waits(
    filled: Bucket, settings: Settings
) -> None:
    """Such as for a queue that gives it a turn every two hours."""
    operation = requested("proj_1")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    for _turn in range(runner.RESTARTS):
        assert runner.run_slice(operation.pk)
        operation.refresh_from_db()
        assert operation.status == Status.RUNNING
        CHANGES["an hour"](operation)
    assert runner.run_slice(operation.pk)
    operation.refresh_from_db()
    assert operation.status == Status.INCOMPLETE and operation.troubled_since
    assert f"{runner.RESTARTS} times" in operation.error
    assert operation.next_attempt_at and operation.next_attempt_at > timezone.now()
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(seconds=30)}
    assert again(operation).status == Status.CLEAN


def test_listing_during_which_the_bucket_was_claimed_again_is_not_used(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    between_batch_and_verification(monkeypatch, filled.set_marker)
    operation = delete("proj_1")
    assert operation.status == Status.INCOMPLETE and "claimed again" in operation.error
    assert not list_gone(operation)
    assert again(operation).status == Status.CLEAN
    check(filled)


# Absence of what nobody deleted


def test_file_that_somebody_else_deleted_is_already_gone_after_a_second_look(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    between_plan_and_batch(monkeypatch, lambda: filled.r2.remove(FLAT, filled.name))
    operation, before = delete("proj_1"), s3.client()
    assert not list_gone(operation)
    assert operation.next_attempt_at and operation.next_attempt_at > timezone.now()
    assert operation.events.filter(message__contains="again in a minute").exists()
    operation = let_the_pause_end(operation)
    assert s3.client() is not before
    assert operation.status == Status.CLEAN
    assert outcomes(operation) == {
        FLAT: "already_absent",
        HIERARCHICAL: "deleted",
        OUTSIDE: "deleted",
    }


def test_cleanup_that_waits_for_its_second_look_is_not_enqueued_at_once(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    operation = requested("proj_1")
    between_plan_and_batch(monkeypatch, lambda: filled.r2.remove(FLAT, filled.name))
    OrmQ.objects.all().delete()
    assert tasks.run_operation(str(operation.pk)) == Status.RUNNING
    assert not OrmQ.objects.exists()


@pytest.mark.parametrize("key", [FLAT, OUTSIDE])
def test_file_that_is_listed_again_after_a_minute_is_not_called_gone(
    filled: Bucket,
    store: FaultyStore,
    monkeypatch: pytest.MonkeyPatch,
    unhurried: None,
    key: str,
) -> None:
    """Both looks that follow the plan leave it out, and show the marker."""
    between_plan_and_batch(monkeypatch, lambda: hide(store, key))
    operation = delete("proj_1")
    assert not list_gone(operation)
    store.rules.clear()
    operation = let_the_pause_end(operation)
    assert operation.status == Status.CLEAN
    assert outcomes(operation) == dict.fromkeys((FLAT, HIERARCHICAL, OUTSIDE), "deleted")
    check(filled)


@pytest.mark.parametrize("comes_back", [False, True])
def test_file_whose_name_no_request_can_carry_is_looked_for_twice_too(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, unhurried: None, comes_back: bool
) -> None:
    nul = HIERARCHICAL.replace("old", "a\0b")
    filled.put(nul)
    between_plan_and_batch(monkeypatch, lambda: filled.r2.remove(nul, filled.name))
    operation = delete("proj_1")
    if comes_back:
        filled.put(nul)
    operation = let_the_pause_end(operation)
    there = {name: out for name, out in outcomes(operation).items() if "x00" in name}
    assert list(there.values()) == ["failed" if comes_back else "already_absent"]


# Pieces of a listing


def test_each_piece_of_a_listing_is_followed_by_a_sighting_before_it_is_given(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()

    def pages(name: str, prefix: str, after: str) -> Iterator[list[Listed]]:
        for number in range(2 * AHEAD + 1):
            told.append("page")
            yield [Listed(f"{prefix}{number:02}", 1, "e", datetime(2026, 1, 1, tzinfo=UTC))]

    def see_marker(name: str) -> str:
        told.append("sighting")
        return "m"

    alive("proj_1")
    work = Work.begin(requested("proj_1"))
    work.marker = "m"
    monkeypatch.setattr(s3, "PAGE", 1)
    monkeypatch.setattr(listing, "pages", pages)
    monkeypatch.setattr(bucket_marker, "see_marker", see_marker)
    given = 0
    for piece in work.pages("p/"):
        given += len(piece)
        assert told[-1] == "sighting" or told.count("page") > given
    assert given == 2 * AHEAD + 1
    assert 2 <= told.count("sighting") <= 3


def test_at_most_four_ranges_are_listed_before_a_sighting_and_none_is_given_before_it(
    bucket: Bucket, store: FaultyStore
) -> None:
    alive("proj_1")
    operation = requested("proj_1")
    operation.ranges = [f"p{number}/" for number in range(6)]
    bucket.put("p1/a", "p5/b")
    work = Work.begin(operation)
    store.seen.clear()
    given = list[tuple[int, int]]()
    for piece in work.list_ranges(1):
        assert not is_page(store.seen[-1])
        given.append((piece.span, len(piece.page)))
    assert [is_page(request) for request in store.seen] == [True] * 4 + [False, True, False]
    assert given == [(1, 1), (2, 0), (3, 0), (4, 0), (5, 1)]


@pytest.mark.parametrize("place", range(4))
def test_ranges_before_a_failure_are_given_and_no_range_behind_it(
    bucket: Bucket, store: FaultyStore, place: int
) -> None:
    alive("proj_1")
    operation = requested("proj_1")
    operation.ranges = [f"p{number}/" for number in range(4)]
    work = Work.begin(operation)
    store.rules.append(on(is_listing_under(f"p{place}/"), Reply(403)))
    given = list[int]()
    with pytest.raises(StoreError):
        for piece in work.list_ranges(0):
            given.append(piece.span)
    assert given == list(range(place))


def test_pieces_hold_some_pages_and_an_empty_listing_is_one() -> None:
    assert list(gather(iter([[]]))) == [[]]
    one = [Listed("k", 1, "e", datetime(2026, 1, 1, tzinfo=UTC))] * s3.PAGE
    assert [len(piece) for piece in gather(iter([one] * (AHEAD + 1)))] == [
        AHEAD * s3.PAGE,
        s3.PAGE,
    ]
