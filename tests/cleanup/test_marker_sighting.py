"""Nothing is concluded, or skipped, from a page unless a sighting of the marker follows it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from threading import Barrier
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from devtools.http_reply import Reply
from devtools.local_r2 import LocalR2
from storage_audit import tasks
from storage_audit.bucket import s3
from storage_audit.bucket.errors import InvalidResponse, StoreError
from storage_audit.bucket.s3 import ListedObject
from storage_audit.cleanup import (
    listing_pieces,
    progress,
    project_uploads,
    runner,
    sighted_listing,
    verify,
)
from storage_audit.cleanup.delete_batches import NOT_LISTED
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.sighted_listing import PAGES_AT_FIRST, PAGES_PER_PIECE
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.models import R2Object
from storage_audit.ownership.bucket_marker import MARKER_PREFIX
from storage_audit.ownership.key_formats import DEFAULT_TEMPLATES
from tests.faults.kinds import change_reply
from tests.faults.matching import (
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_listing_under,
    is_uploads_listing,
    rule_for,
)
from tests.faults.pages import copied_bucket_page, with_entries
from tests.faults.proxy import FaultyStore, Request
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    act_before_batch,
    act_before_verification,
    check_promises,
    clean_up_project,
    create_projects,
    end_pause,
    hide_key,
    list_facts,
    list_gone,
    read_outcomes,
    request_cleanup,
    run_again,
    run_until_idle,
    take_over_lease,
    track_key,
)
from tests.real_bucket import Bucket

OUTSIDE = "odd/place.mp4"
NOTHING = change_reply(lambda xml: with_entries(xml, []))
Step = Cleanup.Step


def is_page(request: Request) -> bool:
    return is_listing(request) and not is_listing_under(MARKER_PREFIX)(request)


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    """A project with files under two prefixes, and one that only its row leads to."""
    create_projects("proj_1")
    bucket.put(FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE)
    track_key(bucket, OUTSIDE, "proj_1")
    return bucket


@pytest.mark.parametrize("slice_", [timedelta(0), timedelta(seconds=30)], ids=["cut", "whole"])
@pytest.mark.parametrize("moment", [act_before_batch, act_before_verification])
def test_copied_bucket_that_answers_from_now_on_calls_nothing_gone(
    filled: Bucket,
    store: FaultyStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[..., None],
    slice_: timedelta,
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": slice_}
    store.rules.append(rule_for(is_delete_batch, Reply(503)))
    moment(
        monkeypatch,
        lambda: store.rules.append(rule_for(is_listing, change_reply(copied_bucket_page))),
    )
    cleanup = clean_up_project("proj_1")
    if moment is act_before_batch:
        assert cleanup.status == Status.BLOCKED and "may be a copy" in cleanup.message
    assert not list_gone(cleanup)
    store.rules.clear()
    check_promises(filled)


def die_before_marker_check(
    patch: pytest.MonkeyPatch, store: FaultyStore, step: str, before: Sequence[str] = ()
) -> None:
    """In this step the pages show nothing, and the worker stops before it believes them."""
    struck, now = list[str](), list[str]()
    enter, accept_marker = progress.start_step, Turn.accept_marker

    def strike(request: Request, forward: Any) -> Reply | None:
        if not now or now[-1] != step or not is_page(request):
            return None
        struck.append(request.target)
        return NOTHING(request, forward)

    def enter_step(cleanup: Cleanup) -> None:
        now.append(cleanup.step)
        enter(cleanup)

    def stop(work: Turn, sighting: ListedObject | None) -> None:
        if struck:
            raise SystemExit
        accept_marker(work, sighting)

    store.rules.append(strike)
    patch.setattr(progress, "start_step", enter_step)
    patch.setattr(Turn, "accept_marker", stop)


# What is held lists nothing.
@pytest.mark.parametrize("step", [Step.PLAN, Step.DELETE, Step.VERIFY])
def test_page_without_a_marker_check_is_discarded_when_its_worker_dies(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch, suppress(SystemExit):
        die_before_marker_check(patch, store, step)
        run_until_idle(cleanup)
    store.rules.clear()
    assert not list_gone(cleanup)
    assert not cleanup.items.filter(store_answer=NOT_LISTED).exists()
    assert take_over_lease(cleanup).status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys((FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE), "deleted")
    check_promises(filled)


@pytest.mark.parametrize("key", [FLAT_KEY, OUTSIDE])
def test_named_object_that_no_confirmed_page_showed_is_checked_again(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The cleanup of a deleted row, whose look-up shows nothing to a worker that then dies."""
    if key == FLAT_KEY:
        track_key(filled, FLAT_KEY, "proj_1")
    R2Object.objects.filter(key=key).update(**list_facts(filled)[key])
    R2Object.objects.get(key=key).delete()
    cleanup = Cleanup.objects.get()
    with monkeypatch.context() as patch, suppress(SystemExit):
        die_before_marker_check(patch, store, Step.PLAN)
        run_until_idle(cleanup)
    store.rules.clear()
    assert take_over_lease(cleanup).status == Status.CLEAN
    assert read_outcomes(cleanup) == {key: "deleted"}


def test_proof_says_of_nothing_that_it_is_not_listed_unless_the_marker_is(
    filled: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is there for the look before the proof, and lists nothing from then on."""
    proving = list[bool]()
    store.rules.append(rule_for(lambda request: bool(proving) and is_listing(request), NOTHING))
    act_before_batch(monkeypatch, lambda: proving.append(True))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING and "does not list the marker" in cleanup.message
    assert not cleanup.events.filter(step="delete", data__absent__gt=0).exists()
    store.rules.clear()
    assert run_again(cleanup).status == Status.CLEAN
    assert set(read_outcomes(cleanup).values()) == {"deleted"}


def test_deleted_file_is_left_to_its_cleanup_unless_the_marker_is_listed(
    bucket: Bucket, store: FaultyStore
) -> None:
    name = bucket.upload("proj_1")
    store.rules += [rule_for(is_delete_single, Reply(204)), rule_for(is_listing, NOTHING)]
    with pytest.raises(StoreError):
        default_storage.delete(name)
    cleanup = Cleanup.objects.get(status="pending")
    assert run_until_idle(cleanup).status == Status.RETRYING
    store.rules.clear()
    # The file was there all the time.
    assert (run_again(cleanup).status, bucket.keys()) == (Status.CLEAN, set())


def test_listings_that_take_long_say_of_empty_prefixes_what_others_say(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_pieces, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(sighted_listing, "PIECE_SECONDS", -1.0)
    assert clean_up_project("proj_1").status == Status.CLEAN


# How long a sighting counts


@pytest.fixture
def work(filled: Bucket) -> Turn:
    return Turn.start(request_cleanup("proj_1"))


def count_checks(work: Turn, store: FaultyStore) -> int:
    """How often a recheck of the bucket lists the marker."""
    store.requests.clear()
    work.recheck_bucket()
    return len(store.find_requests(is_listing_under(MARKER_PREFIX)))


def test_recheck_relies_on_a_recent_sighting_if_nothing_was_listed_since(
    store: FaultyStore, work: Turn
) -> None:
    assert count_checks(work, store) == 0
    work.is_marker_due = True
    assert [count_checks(work, store), count_checks(work, store)] == [1, 0]
    work.marker_seen_at -= timedelta(seconds=31)
    assert [count_checks(work, store), count_checks(work, store)] == [1, 0]


def test_recheck_notices_that_the_bucket_was_connected_again(filled: Bucket, work: Turn) -> None:
    filled.set_marker()
    with pytest.raises(InvalidResponse, match="connected again"):
        work.recheck_bucket()


def test_uploads_of_the_start_of_a_turn_count_for_half_a_minute(
    store: FaultyStore, work: Turn
) -> None:
    store.requests.clear()
    before = project_uploads.find_uploads(work)
    assert not store.requests and not work.is_marker_due
    work.uploads = before._replace(asked_at=before.asked_at - 31)
    assert project_uploads.find_uploads(work).asked_at > before.asked_at
    assert store.find_requests(is_uploads_listing) and work.is_marker_due


def test_turn_begins_with_one_round_of_requests(store: FaultyStore, filled: Bucket) -> None:
    """The marker, the listing that shows it and the uploads are asked for at once."""
    cleanup, all_here = request_cleanup("proj_1"), Barrier(3)

    def wait_for_others(request: Request, forward: Any) -> None:
        all_here.wait(timeout=10)

    store.rules.append(wait_for_others)
    store.requests.clear()
    Turn.start(cleanup)
    assert len(store.requests) == 3


# Positions


def age(by: timedelta) -> Callable[..., None]:
    def change(cleanup: Cleanup, **others: Any) -> None:
        cleanup.refresh_from_db()
        assert cleanup.position.seen_at
        position = replace(cleanup.position, seen_at=cleanup.position.seen_at - by)
        Cleanup.objects.filter(pk=cleanup.pk).update(position=position)

    return change


def another_marker(cleanup: Cleanup, bucket: Bucket, **others: Any) -> None:
    bucket.set_marker()


def another_endpoint(cleanup: Cleanup, settings: Settings, **others: Any) -> None:
    straight = others["local_r2"].environment["R2_ENDPOINT_URL"]
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ENDPOINT_URL": straight}


def other_ranges(cleanup: Cleanup, settings: Settings, **others: Any) -> None:
    """A plan lists what the settings say, and a verification what the plan has listed."""
    few = dict(list(DEFAULT_TEMPLATES.items())[:-1])
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"KEY_FORMATS": few}
    if cleanup.step == Step.VERIFY:
        Cleanup.objects.filter(pk=cleanup.pk).update(listed_prefixes=cleanup.listed_prefixes[:-1])


def other_version(cleanup: Cleanup, **others: Any) -> None:
    """Its fields may mean something else."""
    position = {**cleanup.position.to_json(), "version": 0}
    Cleanup.objects.filter(pk=cleanup.pk).update(position=position)


CHANGES: dict[str, Callable[..., None]] = {
    "an hour": age(timedelta(minutes=61)),
    "a clock ahead": age(-timedelta(minutes=61)),
    "another marker": another_marker,
    "another endpoint": another_endpoint,
    "other ranges": other_ranges,
    "another version": other_version,
}


def stop_in(step: str, patch: pytest.MonkeyPatch) -> None:
    """Let the worker die once all prefixes have been listed."""

    def die(work: Turn) -> None:
        raise SystemExit

    if step == Step.PLAN:
        patch.setattr("storage_audit.cleanup.plan.discover_outside", die)
    else:
        patch.setattr(verify, "relist_lone_keys", die)


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
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch, suppress(SystemExit):
        stop_in(step, patch)
        run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert cleanup.step == step and cleanup.position.range_index == len(cleanup.listed_prefixes)
    if change in CHANGES:
        others = {"bucket": filled, "settings": settings, "local_r2": local_r2}
        CHANGES[change](cleanup, **others)
    late = HIERARCHICAL_KEY.replace("old", "late")
    filled.put(late)
    cleanup = take_over_lease(cleanup)
    started_again = cleanup.events.filter(message__contains="from the beginning").exists()
    assert started_again == (change in CHANGES)
    if started_again or step == Step.PLAN:  # Else no listing has shown it.
        planned_anew = started_again and step == Step.PLAN
        assert read_outcomes(cleanup)[late] == ("deleted" if planned_anew else "kept")
    check_promises(filled)


def test_pass_that_starts_again_and_again_makes_no_progress_and_waits(
    filled: Bucket, settings: Settings
) -> None:
    """Such as for a queue that gives it a turn every two hours."""
    cleanup = request_cleanup("proj_1")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    for _turn in range(runner.MAX_RESTARTS):
        assert runner.run_turn(cleanup.pk)
        cleanup.refresh_from_db()
        assert cleanup.status == Status.RUNNING
        CHANGES["an hour"](cleanup)
    assert runner.run_turn(cleanup.pk)
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RETRYING and cleanup.failing_since
    assert f"{runner.MAX_RESTARTS} times" in cleanup.message
    assert cleanup.next_attempt_at and cleanup.next_attempt_at > timezone.now()
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(seconds=30)}
    assert run_again(cleanup).status == Status.CLEAN


def test_listing_during_which_the_bucket_was_connected_again_is_not_used(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_before_verification(monkeypatch, filled.set_marker)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING and "connected again" in cleanup.message
    assert not list_gone(cleanup)
    assert run_again(cleanup).status == Status.CLEAN
    check_promises(filled)


# Absence of what nobody deleted


def test_file_that_somebody_else_deleted_is_already_gone_after_a_second_check(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, with_pauses: None
) -> None:
    act_before_batch(monkeypatch, lambda: filled.r2.remove(FLAT_KEY, filled.name))
    cleanup, before = clean_up_project("proj_1"), s3.s3_client()
    assert not list_gone(cleanup)
    assert cleanup.next_attempt_at and cleanup.next_attempt_at > timezone.now()
    assert cleanup.events.filter(message__contains="again in a minute").exists()
    cleanup = end_pause(cleanup)
    assert s3.s3_client() is not before
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == {
        FLAT_KEY: "already_gone",
        HIERARCHICAL_KEY: "deleted",
        OUTSIDE: "deleted",
    }


def test_cleanup_that_waits_for_its_second_check_is_not_enqueued_at_once(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, with_pauses: None
) -> None:
    cleanup = request_cleanup("proj_1")
    act_before_batch(monkeypatch, lambda: filled.r2.remove(FLAT_KEY, filled.name))
    OrmQ.objects.all().delete()
    assert tasks.run_cleanup(str(cleanup.pk)) == Status.RUNNING
    assert not OrmQ.objects.exists()


@pytest.mark.parametrize("key", [FLAT_KEY, OUTSIDE])
def test_file_that_is_listed_again_after_a_minute_is_not_called_gone(
    filled: Bucket,
    store: FaultyStore,
    monkeypatch: pytest.MonkeyPatch,
    with_pauses: None,
    key: str,
) -> None:
    """Both looks that follow the plan leave it out, and show the marker."""
    act_before_batch(monkeypatch, lambda: hide_key(store, key))
    cleanup = clean_up_project("proj_1")
    assert not list_gone(cleanup)
    store.rules.clear()
    cleanup = end_pause(cleanup)
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys((FLAT_KEY, HIERARCHICAL_KEY, OUTSIDE), "deleted")
    check_promises(filled)


@pytest.mark.parametrize("comes_back", [False, True])
def test_file_whose_name_no_request_can_carry_is_checked_twice_too(
    filled: Bucket, monkeypatch: pytest.MonkeyPatch, with_pauses: None, comes_back: bool
) -> None:
    nul = HIERARCHICAL_KEY.replace("old", "a\0b")
    filled.put(nul)
    act_before_batch(monkeypatch, lambda: filled.r2.remove(nul, filled.name))
    cleanup = clean_up_project("proj_1")
    if comes_back:
        filled.put(nul)
    cleanup = end_pause(cleanup)
    there = {name: out for name, out in read_outcomes(cleanup).items() if "x00" in name}
    assert list(there.values()) == ["failed" if comes_back else "already_gone"]


# Pieces of a listing


def test_each_piece_of_a_listing_is_used_only_after_a_marker_check(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*(f"p/{number:02}" for number in range(2 * PAGES_PER_PIECE + 1)))
    work = Turn.start(request_cleanup("proj_1"))
    monkeypatch.setattr(s3, "PAGE_SIZE", 1)
    store.requests.clear()
    given = list[str]()
    for piece in work.list_pages("p/"):
        given += [each.key for each in piece]
        assert not is_page(store.requests[-1])
    assert given == [f"p/{number:02}" for number in range(2 * PAGES_PER_PIECE + 1)]
    sizes = [PAGES_AT_FIRST, PAGES_PER_PIECE, PAGES_PER_PIECE + 1 - PAGES_AT_FIRST]
    expected = [each for size in sizes for each in [*[True] * size, False]]
    assert [is_page(request) for request in store.requests] == expected


def test_each_connection_shows_the_marker_for_at_most_four_ranges(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    cleanup.listed_prefixes = [f"p{number}/" for number in range(8)]
    bucket.put("p1/a", "p5/b")
    work = Turn.start(cleanup)
    cleanup.step = Step.VERIFY
    store.requests.clear()
    given = [(piece.range_index, len(piece.page)) for piece in work.list_ranges(1)]
    assert given == [(1, 1), (2, 0), (3, 0), (4, 0), (5, 1), (6, 0), (7, 0)]
    by_connection = defaultdict[int, list[bool]](list)
    for request in store.requests:
        by_connection[request.connection].append(is_page(request))
    for asked in by_connection.values():
        assert not asked[-1]
        assert max(len(list(run)) for is_listed, run in groupby(asked) if is_listed) <= 4


def test_plan_lists_its_ranges_at_once_and_then_checks_the_marker(
    bucket: Bucket, store: FaultyStore
) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    cleanup.listed_prefixes = [f"p{number}/" for number in range(6)]
    bucket.put("p1/a", "p5/b")
    work = Turn.start(cleanup)
    all_here = Barrier(5)

    def wait_for_others(request: Request, forward: Any) -> None:
        if is_page(request):
            all_here.wait(timeout=10)

    store.rules.append(wait_for_others)
    store.requests.clear()
    given = [(piece.range_index, len(piece.page)) for piece in work.list_ranges(1)]
    assert given == [(1, 1), (2, 0), (3, 0), (4, 0), (5, 1)]
    assert [is_page(request) for request in store.requests] == [True] * 5 + [False]


@pytest.mark.parametrize("place", range(4))
def test_ranges_before_a_failure_are_given_and_no_range_behind_it(
    bucket: Bucket, store: FaultyStore, place: int
) -> None:
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    cleanup.listed_prefixes = [f"p{number}/" for number in range(4)]
    work = Turn.start(cleanup)
    store.rules.append(rule_for(is_listing_under(f"p{place}/"), Reply(403)))
    given = list[int]()
    with pytest.raises(StoreError):
        for piece in work.list_ranges(0):
            given.append(piece.range_index)
    assert given == list(range(place))
