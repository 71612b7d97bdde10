"""Deletions over HTTP: lists that can be paged, one with its totals and timeline, and long
polls."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.db.models import Q
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import concurrency
from storage_audit.cleanup import headline_text, long_poll, requests, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.models import Project
from tests.api_client import (
    API_PATH,
    ApiClient,
    assert_problem,
    client_with_token,
    create_staff,
    read_all_pages,
    read_json,
)
from tests.builders import create_cleanup
from tests.processes import HOST_HEADER, database_url, fetch_page, run_site
from tests.promises import FLAT_KEY, clean_up_project, request_cleanup, run_until_idle
from tests.real_bucket import Bucket

VIEW_CLEANUP = "view_cleanup"
NEWLINE = "projects/proj_1/scenes/s1/media/a\nb\x1b[31m.mp4"
TONGUE = "projects/proj_1/scenes/s1/media/<b>é\u202e.mp4"


def reader() -> ApiClient:
    return client_with_token(create_staff(VIEW_CLEANUP), may_write=False)


def path_of(cleanup: Cleanup, query: str = "") -> str:
    return f"/deletions/{cleanup.pk}{query}"


# Lists


@pytest.mark.django_db
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
def test_pages_have_each_deletion_once_the_latest_first(limit: int) -> None:
    first = create_cleanup(project_id="proj_1")
    same = [
        create_cleanup(project_id="proj_1", created_at=first.created_at) for _number in range(5)
    ]
    latest = create_cleanup(project_id="proj_1")
    ids = [each["deletion_id"] for each in read_all_pages(reader(), "/deletions", limit)]
    assert (ids[0], len(ids)) == (str(latest.pk), 7)
    assert set(ids[1:]) == {str(each.pk) for each in [first, *same]}


@pytest.mark.django_db
def test_a_page_holds_its_place_when_something_new_comes() -> None:
    old = [str(create_cleanup(project_id="proj_1").pk) for _number in range(3)]
    come = reader()
    page = come.get("/deletions?limit=1")
    create_cleanup(project_id="proj_1")
    rest = come.get(f"/deletions?cursor={page['next_cursor']}")["items"]
    assert [each["deletion_id"] for each in rest] == [old[1], old[0]]


@pytest.mark.django_db
def test_filters() -> None:
    blocked, other = (
        create_cleanup(status="blocked", project_id="proj_2"),
        create_cleanup(project_id="proj_1"),
    )
    come = reader()

    def found(query: str) -> set[str]:
        return {each["deletion_id"] for each in come.get(f"/deletions?{query}")["items"]}

    assert found("status=blocked") == found("project=proj_2") == {str(blocked.pk)}
    assert found("status=pending") == {str(other.pk)}
    assert found("status=pending&project=proj_2") == found("project=proj") == set()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "query",
    [
        "status=gone",
        "project=",
        "project=%00",
        "cursor=1",
        "limit=0",
        "limit=201",
        "limit=many",
    ],
)
def test_a_bad_query_is_told_what_is_wrong(query: str) -> None:
    problem = assert_problem(reader().request("GET", f"/deletions?{query}"), 422, "invalid-values")
    (wrong,) = problem["errors"]
    assert wrong["where"][:2] == ["query", query.partition("=")[0]] and wrong["message"]


@pytest.mark.django_db
def test_what_is_not_there_is_not_found() -> None:
    come, unknown = client_with_token(), uuid4()
    for path in (f"/deletions?cursor={unknown}", f"/deletions/{unknown}/nothing"):
        assert_problem(come.request("GET", path), 404, "not-found")
    for path in (f"/deletions/{unknown}", f"/deletions/{unknown}/items"):
        problem = assert_problem(come.request("GET", path), 404, "not-found")
        assert problem["deletion_id"] == str(unknown)
    assert_problem(come.request("GET", "/deletions/7"), 422, "invalid-values")


# One


def test_a_deletion_tells_its_totals_and_timeline(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put(FLAT_KEY)
    cleanup, come = request_cleanup("proj_1"), reader()
    open_totals = come.get(path_of(cleanup))["totals"]
    assert not open_totals["final"] and open_totals["found"] == {"objects": 0, "bytes": 0}
    run_until_idle(cleanup)
    answer = come.get(path_of(cleanup))
    assert answer["status_url"] == API_PATH + path_of(cleanup)
    assert answer["totals"]["found"] == answer["totals"]["deleted"] == {"objects": 2, "bytes": 11}
    assert answer["totals"]["to_delete"] == {"objects": 0, "bytes": 0}
    steps = [event["step"] for event in answer["timeline"]]
    assert steps[0] == "request" and steps[-1] == "closed" and "plan" in steps
    assert answer["timeline"][-1]["data"]["found"] == 2
    assert not answer["earlier_events"]
    late = come.get(path_of(cleanup.children.first() or cleanup))
    assert late["follows"] == str(cleanup.pk)


def test_while_it_is_open_the_items_make_the_totals(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    plan = runner.run_to_end(requests.request_preview("proj_1")[0].pk)
    answer = reader().get(path_of(plan))
    assert (answer["status"], answer["over"], answer["dry_run"]) == ("planned", True, True)
    assert answer["totals"]["to_delete"] == answer["totals"]["found"] == {"objects": 1, "bytes": 4}


@pytest.mark.django_db
def test_of_a_long_timeline_the_latest_lines_are_told() -> None:
    cleanup = create_cleanup(project_id="proj_1")
    for number in range(200):
        cleanup.record("tick", number)
    answer = reader().get(path_of(cleanup))
    assert answer["earlier_events"] and len(answer["timeline"]) == 200
    assert [answer["timeline"][n]["message"] for n in (0, -1)] == ["0", "199"]


@pytest.mark.django_db
def test_of_a_long_line_of_the_timeline_the_first_values_are_told() -> None:
    Project.objects.create(pk="proj_1")
    made = request_cleanup("proj_1")
    made.record("vanished", "gone", projects=[f"proj_{n}" for n in range(1000)], few=[1])
    told = client_with_token().get(f"/deletions/{made.pk}")["timeline"][-1]["data"]
    assert told["few"] == [1]
    assert told["projects"][:2] == ["proj_0", "proj_1"] and len(told["projects"]) == 101
    assert told["projects"][-1] == "and 900 more"


def test_what_a_status_means_is_said_of_no_page() -> None:
    said = [
        *headline_text.ANSWERS.values(),
        *headline_text.NEXT_STEPS.values(),
        *(text for of in headline_text.ANSWERS_BY_KIND.values() for text in of.values()),
        *(text for of in headline_text.NEXT_STEPS_BY_KIND.values() for text in of.values()),
    ]
    assert not [text for text in map(str, said) if "page" in text or "below" in text]


# Its items


def test_items_have_their_keys_as_they_are(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.put(NEWLINE, TONGUE)
    cleanup = clean_up_project("proj_1")
    items = list(read_all_pages(reader(), path_of(cleanup, "/items"), 2))
    assert {item["key"] for item in items} == set(cleanup.items.values_list("key", flat=True))
    assert {NEWLINE, TONGUE} <= {item["key"] for item in items}
    by_key = {item["key"]: item for item in items}
    assert by_key[TONGUE]["outcome"] == "deleted" and not by_key[TONGUE]["escaped"]
    assert by_key[TONGUE]["found_in"] == "listed" and by_key[TONGUE]["size"] == 7


@pytest.mark.django_db
def test_a_key_that_cannot_be_written_is_shown_escaped() -> None:
    cleanup = create_cleanup(project_id="proj_1")
    cleanup.items.create(key=r"a\x00\xff", identity="x", escaped=True, found_in="listed")
    (item,) = reader().get(path_of(cleanup, "/items"))["items"]
    assert (item["key"], item["escaped"]) == (r"a\x00\xff", True)


# Looking again


def test_a_verification_is_a_deletion_to_follow(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    cleanup, come = (
        clean_up_project("proj_1"),
        client_with_token(create_staff("verify_cleanup", VIEW_CLEANUP)),
    )
    answer = come.request("POST", path_of(cleanup, "/verify"))
    accepted = read_json(answer, 202)
    assert accepted["deletion_id"] != str(cleanup.pk)
    assert answer["Location"] == accepted["status_url"]
    assert OrmQ.objects.count() == 2
    assert LogEntry.objects.get().object_id == str(cleanup.pk)
    run_until_idle(Cleanup.objects.get(pk=accepted["deletion_id"]))
    looked = come.get(accepted["status_url"].removeprefix(API_PATH))
    assert (looked["kind"], looked["status"], looked["follows"]) == (
        "verify",
        "clean",
        str(cleanup.pk),
    )


@pytest.mark.django_db
def test_what_has_no_objects_cannot_be_verified() -> None:
    cleanup = create_cleanup(
        project_id="proj_1", kind="vanished", status="blocked", next_attempt_at=None
    )
    problem = assert_problem(
        client_with_token().request("POST", path_of(cleanup, "/verify")), 409, "wrong-state"
    )
    assert problem["deletion_id"] == str(cleanup.pk)
    assert "Verify the projects instead" in problem["detail"]


# Waiting


def timed(client: ApiClient, path: str) -> tuple[Any, float]:
    began = time.monotonic()
    return client.get(path), time.monotonic() - began


@contextmanager
def soon(cleanup: Cleanup, **values: Any) -> Iterator[None]:
    """Somebody changes it once it is waited for."""

    def change() -> None:
        deadline = time.monotonic() + 20
        while (
            concurrency.slot_semaphore()._value == conf().api_concurrency
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        time.sleep(0.5)
        cleanup.change_if(Q(), **values)
        connection.close()

    somebody = Thread(target=change)
    somebody.start()
    yield
    somebody.join()


@pytest.mark.django_db(transaction=True)
def test_the_answer_comes_when_the_status_changes() -> None:
    cleanup, come = create_cleanup(project_id="proj_1"), reader()
    with soon(cleanup, status="running"):
        answer, seconds = timed(come, path_of(cleanup, "?wait=20"))
    assert answer["status"] == "running"
    assert 0.4 < seconds < 10


@pytest.mark.django_db(transaction=True)
def test_it_comes_when_nothing_more_will_happen() -> None:
    cleanup, come = (
        create_cleanup(project_id="proj_1", kind="verify", status="differs"),
        reader(),
    )
    with soon(cleanup, next_attempt_at=None):
        answer, seconds = timed(come, path_of(cleanup, "?wait=20"))
    assert answer["over"]
    assert seconds < 10


@pytest.mark.django_db(transaction=True)
def test_it_comes_when_the_time_is_over() -> None:
    answer, seconds = timed(reader(), path_of(create_cleanup(project_id="proj_1"), "?wait=1"))
    assert answer["status"] == "pending"
    assert 1 <= seconds < 5


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["clean", "blocked", "planned"])
def test_what_is_over_is_not_waited_for(status: str) -> None:
    cleanup = create_cleanup(project_id="proj_1", status=status, next_attempt_at=None)
    assert timed(reader(), path_of(cleanup, "?wait=30"))[1] < 5


@pytest.mark.django_db
@pytest.mark.parametrize("wait", ["-1", "30.1", "nan", "inf", "long"])
def test_nobody_waits_longer_than_half_a_minute(wait: str) -> None:
    path = path_of(create_cleanup(project_id="proj_1"), f"?wait={wait}")
    assert_problem(reader().request("GET", path), 422, "invalid-values")


@pytest.mark.django_db(transaction=True)
def test_so_many_may_wait_and_the_next_is_answered_at_once(settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"API_CONCURRENCY": 1}
    concurrency.slot_semaphore.cache_clear()
    cleanup, come = create_cleanup(project_id="proj_1"), reader()
    statuses = list[str]()

    def wait() -> None:
        statuses.append(come.get(path_of(cleanup, "?wait=20"))["status"])
        connection.close()

    first = Thread(target=wait)
    first.start()
    while concurrency.slot_semaphore()._value != 0:
        time.sleep(0.01)
    answer, seconds = timed(reader(), path_of(cleanup, "?wait=20"))
    assert (answer["status"], seconds < 5) == ("pending", True)
    cleanup.change_if(Q(), status="running")
    first.join()
    assert statuses == ["running"]
    assert concurrency.slot_semaphore().acquire(blocking=False), "a place that was not given back"
    concurrency.slot_semaphore.cache_clear()


@pytest.mark.django_db
def test_one_person_waits_in_half_of_the_places_at_most() -> None:
    cleanup = create_cleanup(project_id="proj_1")
    greedy, other = create_staff(VIEW_CLEANUP), create_staff(VIEW_CLEANUP)
    with long_poll.poll_slot(greedy.pk), long_poll.poll_slot(greedy.pk):
        for _token in range(2):
            assert timed(client_with_token(greedy), path_of(cleanup, "?wait=20"))[1] < 5
        assert timed(client_with_token(other), path_of(cleanup, "?wait=1"))[1] >= 1
    assert timed(client_with_token(greedy), path_of(cleanup, "?wait=1"))[1] >= 1


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all of a project's requests are in one."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    inside, sleep = list[bool](), time.sleep

    def note_and_sleep(seconds: float) -> None:
        inside.append(connection.in_atomic_block)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", note_and_sleep)
    reader().get(path_of(create_cleanup(project_id="proj_1"), "?wait=1"))
    assert inside and not any(inside)


def status_of(poll: Request) -> int:
    with build_opener(ProxyHandler({})).open(poll) as answer:
        status: int = answer.status
        return status


def test_a_web_server_full_of_those_who_wait_answers_others(
    transactional_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deploy/gunicorn.conf.py has it, and one process."""
    monkeypatch.setenv("WEB_CONCURRENCY", "1")
    monkeypatch.setenv("HTTPS", "false")
    cleanup, people = create_cleanup(project_id="proj_1"), [reader(), reader()]
    with run_site(database_url(), tmp_path / "web.log") as address, ThreadPoolExecutor(12) as pool:
        assert fetch_page(f"{address}/healthz")[0] == 200
        url = f"{address}{API_PATH}{path_of(cleanup, '?wait=20')}"
        polls = [Request(url, headers=person.headers | HOST_HEADER) for person in people]
        began = time.monotonic()
        waiting_ones = [pool.submit(status_of, polls[number % 2]) for number in range(12)]
        # So many are answered at once as find no place.
        while sum(each.done() for each in waiting_ones) < 12 - conf().api_concurrency:
            assert time.monotonic() - began < 15
            time.sleep(0.05)
        assert fetch_page(f"{address}/healthz")[0] == 200
        assert sum(each.done() for each in waiting_ones) == 12 - conf().api_concurrency
        cleanup.change_if(Q(), status="running", next_attempt_at=None)
        assert {each.result() for each in waiting_ones} == {200}
        assert time.monotonic() - began < 20
