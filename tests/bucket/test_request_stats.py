"""Calls to the store are counted one by one, and kept in the table by every process."""

import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.core.signals import request_finished
from django.db import OperationalError, connection, transaction

from devtools.http_reply import Reply
from storage_audit import tasks
from storage_audit.bucket import request_stats, s3
from storage_audit.bucket.errors import DeadlinePassed, StoreError
from storage_audit.bucket.models import RequestCount
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project
from tests.faults.kinds import FAULT_KINDS, change_reply
from tests.faults.matching import is_anything, is_delete_batch, is_listing, rule_for
from tests.faults.proxy import FaultyStore
from tests.network import close_connections
from tests.real_bucket import Bucket
from tests.run_command import run_command


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_stats, "_not_before", 0.0)


def waiting() -> dict[tuple[str, str], int]:
    with request_stats.take_counts() as found:
        return dict(found)


def kept() -> dict[tuple[str, str], int]:
    rows = RequestCount.objects.values_list("request", "result", "count")
    return {(kind, result): number for kind, result, number in rows}


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        ("slow-down", {("ListObjectsV2", "SlowDown"): 3}),
        ("edge-520", {("ListObjectsV2", "520"): 1}),
        ("access-denied", {("ListObjectsV2", "AccessDenied"): 1}),
        ("reset-before", {("ListObjectsV2", "ConnectionClosedError"): 3}),
        ("truncated-xml", {("ListObjectsV2", "500"): 3}),
    ],
)
def test_each_attempt_counts_with_its_result(
    store: FaultyStore, fault: str, counted: dict[tuple[str, str], int]
) -> None:
    store.rules.append(rule_for(is_listing, FAULT_KINDS[fault].answer))
    waiting()
    with pytest.raises(StoreError):
        s3.list_page("tests", "")
    assert waiting() == counted
    assert len(store.requests) == sum(counted.values())


def test_what_botocore_tries_again_counts_before_what_comes_of_it(
    store: FaultyStore, bucket: Bucket
) -> None:
    bucket.put("k")
    store.rules.append(rule_for(is_listing, FAULT_KINDS["slow-down"].answer, times=1))
    waiting()
    s3.list_page("tests", "")
    assert waiting() == {("ListObjectsV2", "SlowDown"): 1, ("ListObjectsV2", "ok"): 1}
    store.rules.clear()
    # Of an answer that it cannot read it tells otherwise.
    broken = rule_for(
        is_listing, change_reply(lambda xml: re.sub("<Size>.*?<", "<Size>many<", xml))
    )
    store.rules.extend([rule_for(is_listing, FAULT_KINDS["reset-before"].answer, times=1), broken])
    with pytest.raises(StoreError):
        s3.list_page("tests", "")
    assert waiting() == {
        ("ListObjectsV2", "ConnectionClosedError"): 1,
        ("ListObjectsV2", "ValueError"): 1,
    }


def test_what_was_not_sent_does_not_count(bucket: Bucket) -> None:
    waiting()
    with s3.send_deadline(0), pytest.raises(DeadlinePassed):
        s3.delete_batch("tests", ["k"])
    assert waiting() == {}


def test_an_upload_counts(bucket: Bucket) -> None:
    waiting()
    bucket.upload("proj_1")
    assert waiting() == {
        ("HeadObject", "404"): 1,
        ("PutObject", "ok"): 1,
        ("HeadObject", "ok"): 1,
    }


def test_a_store_cannot_make_up_results(store: FaultyStore) -> None:
    made_up = [Reply(418, f"<Error><Code>c{n}</Code></Error>".encode()) for n in range(20)]
    store.rules.append(rule_for(is_anything, *made_up))
    waiting()
    for _reply in made_up:
        with pytest.raises(StoreError):
            s3.list_page("tests", "")
    assert waiting() == {("ListObjectsV2", "4xx"): 20}


def test_the_total_grows_and_is_not_taken(bucket: Bucket) -> None:
    s3.list_page("tests", "")  # A process reads the marker before its first page.
    before = request_stats.total_counts()
    s3.list_page("tests", "")
    waiting()
    assert request_stats.total_counts() - before == Counter({("ListObjectsV2", "ok"): 1})


def test_threads_lose_no_call() -> None:
    def many() -> None:
        for _time in range(2000):
            request_stats.count_request("k", "ok")

    before = request_stats.total_counts()["k", "ok"]
    threads = [threading.Thread(target=many) for _thread in range(8)]
    for thread in threads:
        thread.start()
    taken = waiting().get(("k", "ok"), 0)
    for thread in threads:
        thread.join()
    assert taken + waiting().get(("k", "ok"), 0) == 16000
    assert request_stats.total_counts()["k", "ok"] - before == 16000


def test_a_child_counts_from_nothing_even_when_its_parent_was_counting() -> None:
    request_stats.count_request("k", "ok")
    with request_stats._lock:
        child = os.fork()
        if not child:
            request_stats.count_request("k", "ok")
            os._exit(
                request_stats.total_counts() != {("k", "ok"): 1} or waiting() != {("k", "ok"): 1}
            )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert waiting() == {("k", "ok"): 1}


def test_a_task_a_command_and_a_request_write_down_what_they_called(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    waiting()
    Project.objects.get().delete()
    tasks.run_cleanup(str(Cleanup.objects.get().pk))
    of_the_task = kept()
    assert of_the_task["DeleteObjects", "ok"] == 1
    assert of_the_task["ListObjectsV2", "ok"] > 1
    run_command("backfill_r2")
    more = kept()
    assert more["ListObjectsV2", "ok"] > of_the_task["ListObjectsV2", "ok"]
    bucket.upload("proj_2")
    request_finished.send(sender=None)
    assert kept()["PutObject", "ok"] == 1
    assert waiting() == {}


def test_a_task_that_fails_writes_down_what_it_called(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cleanup_id: object) -> None:
        request_stats.count_request("k", "ok")
        raise RuntimeError

    monkeypatch.setattr(runner, "run_turn", fail)
    with pytest.raises(RuntimeError):
        tasks.run_cleanup(str(uuid4()))
    assert kept()["k", "ok"] == 1


def test_nothing_is_written_in_a_transaction_of_somebody_else(bucket: Bucket) -> None:
    request_stats.count_request("k", "ok")
    with transaction.atomic():
        request_stats.save_counts()
        assert not RequestCount.objects.exists()
    request_stats.save_counts()
    assert kept() == {("k", "ok"): 1}


def test_who_called_nothing_asks_the_database_nothing(
    bucket: Bucket, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    waiting()
    with django_assert_num_queries(0):  # type: ignore[operator]
        request_stats.save_counts()


def test_a_database_that_fails_loses_no_call_stops_nothing_and_is_left_alone_for_a_while(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_to_update(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if not sql.startswith("UPDATE"):
            return execute(sql, *rest)
        tried.append(sql)
        raise OperationalError("gone")

    tried: list[str] = []
    request_stats.count_request("k", "ok")
    with connection.execute_wrapper(fail_to_update):
        request_stats.save_counts()
        request_stats.save_counts()
    assert len(tried) == 1
    assert "Could not record requests" in caplog.text
    assert kept() == {}
    request_stats.count_request("k", "ok")
    monkeypatch.setattr(request_stats, "_not_before", 0.0)
    request_stats.save_counts()
    assert kept() == {("k", "ok"): 2}


def test_processes_add_to_the_same_rows_and_wait_for_nobody(transactional_db: None) -> None:
    """Each names the rows in its own order."""

    def add(number: int) -> None:
        kinds = ["a", "b", "c", "d"]
        for n in range(15):
            RequestCount.objects.add({(kinds[(number + n + i) % 4], "ok"): 1 for i in range(4)})
        close_connections()

    threads = [threading.Thread(target=add, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept() == {(kind, "ok"): 60 for kind in "abcd"}


def test_a_batch_refused_counts_as_one_call(store: FaultyStore) -> None:
    store.rules.append(rule_for(is_delete_batch, FAULT_KINDS["key-errors"].answer))
    waiting()
    s3.delete_batch("tests", ["a", "b"])
    assert waiting() == {("DeleteObjects", "ok"): 1}
