"""The log: what each line says, what none may say, and the same from every process of ours."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from io import StringIO
from multiprocessing import Value
from pathlib import Path
from queue import Queue
from socket import gethostname
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, transaction
from django.test import Client, RequestFactory
from django_q.models import OrmQ
from django_q.monitor import monitor
from django_q.signing import SignedPackage
from django_q.tasks import async_task
from django_q.worker import worker
from pytest_django import Settings

from autoshorts.logs import JsonLines
from autoshorts.settings import LOGGING
from devtools.demo.browser import Browser
from devtools.processes import Child, free_port
from storage_audit import logs, queue
from storage_audit.bucket import s3
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.logs import MAX_TEXT_LENGTH, Formatter, RequestIdMiddleware
from storage_audit.models import Project
from storage_audit.redaction import REDACTED, printable_text
from tests.admin_client import admin_url, superuser_client
from tests.builders import create_cleanup
from tests.paths import ROOT
from tests.processes import database_url
from tests.promises import request_cleanup
from tests.queue.clusters import Cluster
from tests.real_bucket import Bucket

SECRET = "planted-secret-key"
FAKE = '{"level": "INFO", "message": "all is well"}'
JOURNAL = 48 * 1024
HEX = re.compile("[0-9a-f]{32}")
probe = logging.getLogger("tests.probe")


class Lines(logging.StreamHandler[StringIO]):
    """All that passes the root logger, as the console of production shows it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(StringIO())
        self.setFormatter(formatter)
        self.addFilter(logs.ContextFilter())

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["logger"] == logger]

    @property
    def last(self) -> dict[str, Any]:
        return self.all()[-1]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    yield from listening(JsonLines(), caplog)


@pytest.fixture
def text(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    yield from listening(Formatter("%(levelname)s %(name)s %(message)s"), caplog)


def listening(formatter: logging.Formatter, caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    caplog.set_level(logging.INFO)
    handler = Lines(formatter)
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


# One line


def test_a_line_of_json_says_when_where_and_what(lines: Lines) -> None:
    probe.warning("%s of %s", 1, "two", extra={"figures": {"a": 1.5, "b": [None, True]}})
    assert list(lines.last)[:4] == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", lines.last.pop("time"))
    worker = lines.last["worker"]
    assert worker.endswith(f":{os.getpid()}") and len(worker) > len(f":{os.getpid()}")
    rest = {k: v for k, v in lines.last.items() if k not in ("time", "worker")}
    assert rest == {
        "level": "WARNING",
        "logger": "tests.probe",
        "message": "1 of two",
        "deletion_id": None,
        "request_id": None,
        "task": None,
        "figures": {"a": 1.5, "b": [None, True]},
    }


def test_a_line_to_be_read_ends_with_its_context(text: Lines) -> None:
    probe.info("before")
    with logs.deletion_context(UUID(int=1), "asked"):
        probe.info("within", extra={"step": "plan", "data": {"n": 1}})
    assert text.text.splitlines() == [
        "INFO tests.probe before",
        f"INFO tests.probe within deletion_id={UUID(int=1)} request_id=asked"
        f' worker={gethostname()}:{os.getpid()} step=plan data={{"n": 1}}',
    ]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        "lone \udcff surrogate",
        b"\xff\0",
        UUID(int=3),
        {("a", 1): {1, 2}, None: object()},
        [[[[["deep"]]]]],
        {"it": lambda: None},
    ],
    ids=["nan", "surrogate", "bytes", "uuid", "odd keys", "deep", "function"],
)
def test_whatever_a_record_brings_the_line_is_json(lines: Lines, value: object) -> None:
    probe.info("value", extra={"value": value})
    assert "value" in json.loads(lines.text, parse_constant=pytest.fail)


def test_a_line_has_an_end(lines: Lines, text: Lines) -> None:
    endless = ["é" * 1024] * 5000
    try:
        raise ValueError("y" * 200_000)
    except ValueError:
        probe.exception("m" * 200_000)
        probe.error("short", exc_info=True, extra={"data": {"keys": endless, "ranges": endless}})
    long, wide = lines.all()
    assert max(map(len, lines.text.splitlines())) < JOURNAL
    # What is cut is the middle.
    assert long["message"].startswith("mmm") and long["message"].endswith("mmm")
    assert long["exc_info"].startswith("Traceback") and long["exc_info"].endswith("yyy")
    assert len(wide["data"]["keys"]) == 51
    assert wide["data"]["keys"][-1] == "and 4950 more"
    assert len(text.text.splitlines()[0]) < 2 * MAX_TEXT_LENGTH


# What none may say


@pytest.fixture
def planted(settings: Settings) -> None:
    settings.SECRET_KEY = SECRET


@pytest.mark.parametrize("query", ["key=planted-bearer", "token=planted-bearer", "planted-bearer"])
def test_no_query_of_a_request_is_in_a_line(lines: Lines, text: Lines, query: str) -> None:
    probe.warning("refused", extra={"request": RequestFactory().get(f"/api/v1/deletions?{query}")})
    assert json.loads(lines.text)["request"] == "GET /api/v1/deletions"
    assert "planted" not in lines.text + text.text


EXTRAS: list[dict[str, object]] = [
    {"note": f"x={SECRET}"},
    {"data": {"deep": [{"deeper": (SECRET,)}]}},
    {"data": {SECRET: 1}},
    {SECRET: 1},
    {"error": ValueError(SECRET)},
    {"headers": {"Authorization": "Bearer planted-bearer"}},
    {"api_token": "planted-bearer", "cookies": {"sessionid": "planted-bearer"}},
    {"url": "https://user:planted-bearer@host/?X-Amz-Signature=planted-bearer"},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: next(iter(extra)))
def test_no_secret_is_in_what_a_record_brings(
    planted: None, lines: Lines, text: Lines, extra: dict[str, object]
) -> None:
    probe.info("told", extra=extra)
    assert "told" in text.text and REDACTED in lines.text
    for line in (lines.text, text.text):
        assert "planted" not in line


def test_no_secret_is_in_a_message_or_a_traceback(planted: None, lines: Lines, text: Lines) -> None:
    try:
        raise ValueError(f"Authorization: Bearer planted-bearer\n{SECRET}")
    except ValueError:
        with logs.deletion_context(UUID(int=5)):
            probe.exception("%s %r, Authorization: planted-bearer", SECRET, {"key": SECRET})
    for line in (lines.text, text.text):
        assert "planted" not in line
        assert "Traceback" in line and REDACTED in line
        # What is hidden does not take the context with it.
        assert str(UUID(int=5)) in line


def test_half_a_secret_is_not_left_where_a_text_is_cut(planted: None, lines: Lines) -> None:
    for length in range(MAX_TEXT_LENGTH // 2 - len(SECRET), MAX_TEXT_LENGTH // 2 + 1):
        probe.info("%s", "m" * length + SECRET + "m" * MAX_TEXT_LENGTH)
    assert "planted" not in lines.text


@pytest.mark.parametrize("forged", [f"a\n{FAKE}", f"a\r\n{FAKE}", f"\x1b[2K{FAKE}\u2028{FAKE}"])
def test_nobody_can_forge_a_line_or_drive_a_terminal(
    lines: Lines, text: Lines, forged: str
) -> None:
    try:
        raise ValueError(forged)
    except ValueError:
        probe.exception("%s", forged, extra={"data": {"key": forged}, "step": forged})
    assert [line["level"] for line in lines.all()] == ["ERROR"]
    first, *rest = text.text.rstrip("\n").split("\n")
    assert first.startswith("ERROR tests.probe ")
    assert rest and all(line.startswith("  ") for line in rest)
    for line in (*lines.text[:-1], *text.text.replace("\n", "")):
        assert line.isprintable()
    assert not re.search("[\x1b\r\u2028]", json.dumps(lines.all(), ensure_ascii=False))


# A request


@pytest.mark.django_db
@pytest.mark.parametrize("path, status", [("/healthz", 200), ("/admin/", 302), ("/nowhere/", 404)])
def test_each_answer_says_its_request_id(path: str, status: int, lines: Lines) -> None:
    ids = set()
    for _n in range(2):
        answer = Client().get(path)
        assert answer.status_code == status
        assert HEX.fullmatch(answer["X-Request-ID"])
        ids.add(answer["X-Request-ID"])
    assert len(ids) == 2
    # The refusal is logged when the middlewares are done.
    if status == 404:
        assert {line["request_id"] for line in lines.of("django.request")} == ids
    probe.info("after")
    assert lines.last["request_id"] is None


def test_a_request_that_is_refused_at_once_has_an_id_too(lines: Lines) -> None:
    answer = Client().get("/healthz", headers={"host": "elsewhere.example"})
    assert answer.status_code == 400
    assert {line["request_id"] for line in lines.all()} == {answer["X-Request-ID"]}


@pytest.mark.parametrize(
    "behind_proxy, given, kept",
    [
        (True, "0123-abc.DEF_9", True),
        (True, "a" * 128, True),
        (False, "0123-abc.DEF_9", False),
        (True, "", False),
        (True, "a" * 129, False),
        (True, "a b", False),
        (True, 'a"}', False),
        (True, "a\n", False),
        (True, "é", False),
    ],
)
def test_only_a_proxy_that_is_trusted_may_give_the_id(
    behind_proxy: bool, given: str, kept: bool, settings: Settings
) -> None:
    header = ("HTTP_X_FORWARDED_PROTO", "https") if behind_proxy else None
    settings.SECURE_PROXY_SSL_HEADER = header
    answer = Client().get("/healthz", headers={"x-request-id": given})
    assert (answer["X-Request-ID"] == given) is kept
    assert kept or HEX.fullmatch(answer["X-Request-ID"])


def test_the_middleware_is_the_first(settings: Settings) -> None:
    first = f"{RequestIdMiddleware.__module__}.{RequestIdMiddleware.__name__}"
    assert settings.MIDDLEWARE[0] == first


# The timeline


def timeline_messages(lines: Lines) -> list[str]:
    return [line["message"] for line in lines.of("storage_audit.timeline")]


@pytest.mark.django_db(transaction=True)
def test_an_event_is_a_line_once_it_is_committed(lines: Lines) -> None:
    with transaction.atomic():
        made = create_cleanup(project_id="proj_1")
        made.record("plan", "50 % done", found=3)
        assert timeline_messages(lines) == []
    assert timeline_messages(lines) == ["deletion", "50 % done"]
    event = CleanupEvent.objects.latest("pk")
    line = lines.of("storage_audit.timeline")[-1]
    assert (line["deletion_id"], line["event"]) == (str(made.pk), event.pk)
    assert (line["step"], line["data"]) == ("plan", event.data)


@pytest.mark.django_db(transaction=True)
def test_nothing_is_told_of_what_was_rolled_back(lines: Lines) -> None:
    made = create_cleanup(project_id="proj_1")
    with pytest.raises(ValueError), transaction.atomic():
        made.record("plan", "all")
        raise ValueError
    with transaction.atomic():
        with pytest.raises(ValueError), transaction.atomic():
            made.record("plan", "a part")
            raise ValueError
        savepoint = getattr(transaction, "savepoint_create", transaction.savepoint)()
        made.record("plan", "by hand")
        transaction.savepoint_rollback(savepoint)
        made.record("plan", "kept")
    assert timeline_messages(lines) == ["deletion", "kept"]


@pytest.mark.django_db(transaction=True)
def test_what_may_need_a_person_is_a_warning(lines: Lines) -> None:
    made = create_cleanup(project_id="proj_1")
    steps = ("plan", "delete", "verify", "closed", "superseded", "batch_size", "retry", "approved")
    worse = ("blocked", "failed", "retrying", "takeover", "vanished")
    for step in (*steps, *worse):
        made.record(step, step)
    found = {line["step"]: line["level"] for line in lines.of("storage_audit.timeline")}
    assert found == {"request": "INFO"} | dict.fromkeys(steps, "INFO") | dict.fromkeys(
        worse, "WARNING"
    )


@pytest.mark.django_db(transaction=True)
def test_a_log_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(event: CleanupEvent) -> None:
        raise RuntimeError

    fail.__qualname__ = "fail"
    monkeypatch.setattr(CleanupEvent, "log", fail)
    with transaction.atomic():
        made = create_cleanup(project_id="proj_1")
    assert made.events.count() == 1


# From a request to a worker


def delete_on_the_site(project_id: str) -> str:
    """The id of the request that did it."""
    answer = superuser_client().post(admin_url("project", "delete", project_id), {"post": "yes"})
    assert answer.status_code == 302
    return answer["X-Request-ID"]


def test_the_request_can_be_followed_into_the_worker(
    bucket: Bucket, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = s3.delete_batch

    def delete_batch(*args: Any) -> Any:
        probe.info("in a thread of the pool")
        return really(*args)

    bucket.upload("proj_1")
    request_id = delete_on_the_site("proj_1")
    made = Cleanup.objects.get(parent=None)
    assert made.events.earliest("pk").data == {"request_id": request_id}
    monkeypatch.setattr(s3, "delete_batch", delete_batch)
    before = len(lines.all())
    async_task("storage_audit.tasks.run_cleanup", str(made.pk), sync=True)
    made.refresh_from_db()
    assert made.status == "clean"

    enqueued = [line for line in lines.all()[:before] if "Enqueued" in line["message"]]
    assert [line["deletion_id"] for line in enqueued] == [str(made.pk)]
    ours = [line for line in lines.all()[before:] if line["logger"] != "django-q"]
    late = {str(child.pk) for child in made.children.all()}
    assert len(late) == 3
    assert {line["deletion_id"] for line in ours} == {str(made.pk), *late}
    assert {line["request_id"] for line in ours} == {request_id}
    assert len({line["task"] for line in ours}) == 1
    assert re.fullmatch("autoshorts/[0-9a-f]{32}", ours[0]["task"])
    assert "in a thread of the pool" in [line["message"] for line in ours]
    assert logs.current_context() == logs.EMPTY_CONTEXT

    events = [
        line["message"]
        for line in lines.of("storage_audit.timeline")
        if line["deletion_id"] == str(made.pk)
    ]
    assert events == [event.message for event in made.events.all()]


@pytest.mark.django_db(transaction=True)
def test_what_could_not_be_enqueued_is_a_line_of_its_deletion(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(queue, "async_task", fails)
    Project.objects.create(pk="proj_1").delete()
    cleanup = Cleanup.objects.get()
    told = [line for line in lines.all() if line["level"] == "ERROR" and line["deletion_id"]]
    assert [line["deletion_id"] for line in told] == [str(cleanup.pk)]
    assert "could not be queued" in told[0]["message"] and "locked" in told[0]["exc_info"]


@pytest.mark.django_db(transaction=True)
def test_an_error_that_nobody_foresaw_is_a_line_of_its_deletion(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_cleanup(project_id="proj_1")
    CleanupEvent.objects.filter(cleanup=made).update(data={"request_id": "asked"})
    monkeypatch.setattr(Turn, "start", lambda cleanup: 1 / 0)
    async_task("storage_audit.tasks.run_cleanup", str(made.pk), task_name=str(made.pk))
    work_off_the_queue()
    failed = [line for line in lines.all() if "ZeroDivisionError" in json.dumps(line)]
    told = [line for line in failed if line["logger"] != "storage_audit.timeline"]
    assert [line["logger"] for line in told] == ["storage_audit.cleanup.runner", "django-q"]
    assert {line["deletion_id"] for line in told} == {str(made.pk)}
    assert told[0]["request_id"] == "asked" and told[0]["task"]
    assert "Traceback" in told[0]["exc_info"] and "Traceback" in told[1]["message"]


def work_off_the_queue() -> None:
    """As a cluster does, without its processes."""
    tasks: Any = Queue()
    results: Any = Queue()
    package = SignedPackage.loads(OrmQ.objects.get().payload)
    tasks.put(package)
    tasks.put("STOP")
    worker(tasks, results, Value("f", -1))
    results.put("STOP")
    monitor(results)


def test_what_was_asked_for_in_no_request_has_no_request_id(bucket: Bucket, lines: Lines) -> None:
    bucket.upload("proj_1")
    made = runner.run_to_end(request_cleanup("proj_1").pk)
    assert made.events.earliest("pk").data == {}
    assert {line["request_id"] for line in lines.all()} == {None}


def test_another_request_keeps_its_own_id(bucket: Bucket) -> None:
    logs.set_context(request_id="other")
    with logs.deletion_context(uuid4(), "asked"):
        assert logs.current_context().request_id == "other"
    logs.clear_request_id()


# Keys


def test_keys_are_told_only_to_those_who_ask(
    bucket: Bucket, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(5)}
    evil = "projects/proj_1/scenes/s1/media/\u202e\u2028.mp4"
    for number, level in enumerate((logging.INFO, logging.DEBUG)):
        caplog.set_level(level, logs.key_logger.name)
        bucket.put(*keys, evil)
        Project.objects.create(pk="proj_1").delete()
        made = runner.run_to_end(Cleanup.objects.filter(parent=None).latest("created_at").pk)
        found = lines.of(logs.key_logger.name)
        batches = [line for line in lines.of(logs.timeline_logger.name) if line["step"] == "delete"]
        assert len(batches) == number + 1
        if level == logging.INFO:
            assert found == []
    assert sorted(line["message"] for line in found) == sorted(
        f"{printable_text(key)}: Deleted" for key in (*keys, evil)
    )
    assert {line["deletion_id"] for line in found} == {str(made.pk)}
    # Also to who formats lines otherwise.
    assert all(
        r.getMessage().isprintable() for r in caplog.records if r.name == logs.key_logger.name
    )


@pytest.mark.django_db(transaction=True)
def test_a_command_run_for_a_key_is_for_those_who_ask(
    lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    made = create_cleanup(project_id="proj_1")
    made.record("command", "one")
    caplog.set_level(logging.DEBUG, logs.key_logger.name)
    made.record("command", "two")
    assert [line["message"] for line in lines.of(logs.key_logger.name)] == ["two"]


# Processes


class Web(Child):
    """gunicorn as in production, with the static files of the demo."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port(0)
        argv = [sys.executable, "-m", "gunicorn", "--config", "deploy/gunicorn.conf.py"]
        argv += ["--bind", f"127.0.0.1:{self.port}", "autoshorts.wsgi"]
        environment = (
            os.environ | environment | {"DJANGO_SETTINGS_MODULE": "devtools.demo.settings"}
        )
        super().__init__("gunicorn", argv, env=environment, log=folder / "web.log", cwd=ROOT)


def test_each_line_of_web_and_worker_is_json_and_says_of_which_deletion(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.upload("proj_1")
    User.objects.create_superuser("anna", password="a-password")
    variables = {"LOG_FORMAT": "json", "LOG_KEYS": "true", "HTTPS": "false"}
    variables |= {"ALLOWED_HOSTS": "127.0.0.1", "DATABASE_URL": database_url()}
    with Web(tmp_path, variables) as web, Cluster(tmp_path, None, **variables) as cluster:
        web.wait_until(lambda: "Booting worker" in web.tail())
        browser = Browser(f"http://127.0.0.1:{web.port}")
        browser.log_in("anna", "a-password")
        browser.submit(admin_url("project", "delete", "proj_1"), post="yes")
        made = Cleanup.objects.get(parent=None)
        cluster.wait_until(
            lambda: "Processed" in cluster.log_text and str(made.pk) in cluster.log_text
        )
    assert web.log is not None
    said = [json.loads(line) for line in web.log.read_text().splitlines()]
    worked = [json.loads(line) for line in cluster.log_text.splitlines()]
    for line in (*said, *worked):
        assert {"time", "level", "logger", "message", "deletion_id", "worker"} <= line.keys()

    request_id = made.events.earliest("pk").data["request_id"]
    of_request = {line["logger"]: line for line in said if line["request_id"] == request_id}
    assert of_request.keys() == {
        "storage_audit.timeline",
        "django-q",
        "gunicorn.access",
    }
    access = of_request["gunicorn.access"]
    assert (access["method"], access["status"]) == ("POST", "302")
    assert access["path"] == admin_url("project", "delete", "proj_1")
    booted = [line for line in said if "Booting worker" in line["message"]]
    assert len(booted) == len({line["message"] for line in booted}) > 0

    queues = [line for line in worked if line["logger"] == "django-q"]
    ours = [
        line
        for line in worked
        if line["deletion_id"] == str(made.pk) and line["logger"] != "django-q"
    ]
    assert {line["request_id"] for line in ours} == {request_id}
    assert len({line["worker"] for line in ours}) == len({line["task"] for line in ours}) == 1
    events = [line["event"] for line in ours if line["logger"] == "storage_audit.timeline"]
    kept = made.events.exclude(step="request").values_list("pk", flat=True)
    assert sorted(events) == sorted(kept)
    assert [line["message"] for line in ours if line["logger"] == "storage_audit.keys"] == [
        f"{made.items.get().key}: Deleted"
    ]
    # The queue's own lines come once, and name the deletion.
    for word in ("ready for work", " processing ", "Processed"):
        [line] = [line for line in queues if word in line["message"]]
        assert line["deletion_id"] == (None if word == "ready for work" else str(made.pk))


def test_django_and_gunicorn_have_no_handlers_of_their_own() -> None:
    """Which would say their lines twice."""
    configured: Any = LOGGING
    loggers = configured["loggers"]
    for name in ("django", "gunicorn.error", "gunicorn.access"):
        assert loggers[name]["handlers"] == []
        assert logging.getLogger(name).propagate
