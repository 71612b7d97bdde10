"""Who is told what, how often, and what becomes of a message that does not arrive."""

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import signal
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLCertVerificationError
from threading import Barrier, Event, Thread, Timer
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import Request
from uuid import uuid4

import django
import pytest
from django.contrib.auth.models import Permission
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.translation import override, trans_real
from django.views.debug import get_exception_reporter_filter
from django_q.models import OrmQ, Schedule, Task
from pytest_django import Settings

from storage_audit import queue, tasks
from storage_audit.alerts import alert_rules, alert_text, channels, deliver
from storage_audit.alerts.lateness import BUSY_ADVICE, RESTART_ADVICE, find_delays
from storage_audit.alerts.models import Alert, Delivery, Notification
from storage_audit.cleanup.models import Cleanup, CleanupEvent
from storage_audit.conf import conf
from storage_audit.dashboard.models import DailyFigures
from storage_audit.findings.models import Finding
from storage_audit.management.commands.notify import Command
from storage_audit.scan.models import BucketScan
from tests.admin_client import admin_url, page_text, staff_client, superuser_client
from tests.builders import create_lost_cleanup
from tests.database import list_stored_values
from tests.paths import ROOT
from tests.processes import database_url, read_service
from tests.run_command import run_command
from tests.site_settings import GOOD_ENVIRONMENT, list_problems, read_settings, run_system_checks

pytestmark = pytest.mark.usefixtures("transactional_db")
KEY = b"thirty-two random bytes for HMAC"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
PATH = "/hooks/planted-path?token=planted-query"
HOSTILE = 'proj_1\r\nBcc: eve@example.com\n\n<script>x</script>\x1b[2J=cmd|"a"'
Kind, State = Alert.Kind, Delivery.State
Answer = int | Callable[[], int]


class Post(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Of webhooks. It answers as told, and 204 when it is told nothing more."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}{PATH}"
        self.answers: list[Answer] = []
        self.posts: list[Post] = []

    def take(self, post: Post) -> int:
        self.posts.append(post)
        answer = self.answers.pop(0) if self.answers else 204
        return answer if isinstance(answer, int) else answer()


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = told.take(Post(self.path, headers, body))
            if status:
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_GET(self) -> None:
            told.take(Post(self.path, {}, b""))

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Receiver(server.server_port)
    with serving(server):
        webhook_of = {"NOTIFY_WEBHOOK_URL": told.url, "NOTIFY_WEBHOOK_SECRET": SECRET}
        tell(settings, NOTIFY_SITE_URL="https://audit.example.com", **webhook_of)
        yield told


@pytest.fixture
def mailed(settings: Settings) -> list[Any]:
    tell(settings, NOTIFY_EMAILS=("ann@example.com",), NOTIFY_SITE_URL="https://audit.example.com")
    # Django's tests have their own way to send.
    settings.SILENCED_SYSTEM_CHECKS = ["storage_audit.W005"]
    outbox: list[Any] = mail.outbox
    return outbox


def tell(settings: Settings, **entries: Any) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | entries


def make_cleanup(**values: Any) -> Cleanup:
    """One that is settled, unless it is said otherwise."""
    defaults = {"kind": "project", "project_id": "proj_1", "bucket": "tests", "trigger": "deleted"}
    fine = {"status": "clean", "next_attempt_at": None}
    return Cleanup.objects.create(**defaults | fine | values)


def blocked(**values: Any) -> Cleanup:
    return make_cleanup(**{"status": "blocked", "message": "1,200 objects are too many.", **values})


def change(changed: Cleanup, **values: Any) -> None:
    Cleanup.objects.filter(pk=changed.pk).update(**values)


def sweep() -> None:
    alert_rules.update_alerts()
    deliver.send_due_deliveries()


def let_the_time_come() -> None:
    Delivery.objects.filter(state="waiting").update(next_attempt_at=timezone.now())


def kinds_open() -> list[str]:
    return sorted(Alert.objects.open().values_list("kind", flat=True))


# Once, and once when it is over


def test_what_is_blocked_is_told_once_and_its_end_once_however_often_it_is_swept(
    receiver: Receiver, mailed: list[Any]
) -> None:
    stopped = blocked()
    for _each in range(3):
        sweep()
    assert len(receiver.posts) == len(mailed) == 1
    assert mailed[0].subject.endswith("] Needs approval: deletion of proj_1")
    assert "1,200 objects are too many." in mailed[0].body and str(stopped.pk) in mailed[0].body
    change(stopped, status="clean")
    for _each in range(3):
        sweep()
    assert len(receiver.posts) == len(mailed) == 2
    assert mailed[1].subject.endswith("] Resolved: deletion of proj_1")
    assert "The deletion is now: clean." in mailed[1].body
    data = receiver.posts[1].content["data"]
    assert (data["began_count"], data["ended_count"]) == (0, 1)
    assert data["ended"][0]["deletion_id"] == str(stopped.pk)
    assert data["ended"][0]["ended_at"] > data["ended"][0]["began_at"]
    change(stopped, status="blocked")
    sweep()
    assert len(mailed) == 3, "it is another alert when it happens again"


def in_threads(work: Callable[[], object], count: int = 4) -> None:
    together = Barrier(count)

    def one(_number: int) -> None:
        together.wait()
        try:
            work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


def test_what_was_untold_is_told_once_by_workers_that_sweep_at_once(settings: Settings) -> None:
    blocked()
    alert_rules.update_alerts()
    tell(settings, NOTIFY_EMAILS=("ann@example.com",))
    in_threads(alert_rules.update_alerts, 8)
    assert Notification.objects.count() == Delivery.objects.count() == 1


def test_workers_that_sweep_and_send_at_once_tell_once(receiver: Receiver) -> None:
    stopped = [blocked(project_id=f"proj_{n}") for n in range(20)]
    Schedule.objects.filter(func=queue.SWEEP).delete()
    in_threads(alert_rules.update_alerts)
    assert Alert.objects.count() == 21
    assert Notification.objects.count() == Delivery.objects.count() == 1
    in_threads(deliver.send_due_deliveries)
    Cleanup.objects.filter(pk__in=[each.pk for each in stopped]).update(status="clean")
    in_threads(alert_rules.update_alerts)
    in_threads(deliver.send_due_deliveries)
    assert [post.content["data"]["began_count"] for post in receiver.posts] == [21, 0]
    assert [post.content["data"]["ended_count"] for post in receiver.posts] == [0, 20]


def test_many_at_once_are_one_message_that_lists_the_first(mailed: list[Any]) -> None:
    for number in range(30):
        blocked(project_id=f"proj_{number}")
    make_cleanup(status="failed", next_attempt_at=timezone.now())
    sweep()
    (message,) = mailed
    assert message.subject.endswith("30 deletions need approval; 1 deletion failed")
    assert (
        len(re.findall("^- .*: deletion of proj_", message.body, re.M))
        == alert_text.MAX_ALERTS_LISTED + 1
    )
    assert "… and 10 more." in message.body


def test_message_about_one_deletion_says_who_what_and_how_much_in_80_words(
    mailed: list[Any], settings: Settings
) -> None:
    """And shows no secret, whoever put it into a project's name."""
    stopped = blocked(
        project_id="proj_1 " + settings.SECRET_KEY,
        requested_by="anna",
        message="word " * 100,
        created_at=datetime(2026, 11, 30, 20, 49, tzinfo=UTC),
    )
    for number, found_in in enumerate(["both", "listed", "listed", "tracked"]):
        stopped.items.create(
            key=f"k{number}",
            identity=str(number),
            found_in=found_in,
            size=1024,
            outcome="to_delete",
        )
    sweep()
    (message,) = mailed
    assert message.subject.endswith(
        "Needs approval: deletion of proj_1 [redacted] (3 files, 3.0 KB)"
    )
    assert "Requested by anna, 30 Nov 2026, 20:49 UTC." in message.body
    assert "Approve or cancel its cleanup." in message.body and f"/{stopped.pk}/" in message.body
    assert len(message.body.split()) <= 80
    left = {"found": 1, "found_bytes": 2048, "failed": 1, "failed_bytes": 2048}
    change(stopped, status="failed", **left)
    sweep()
    assert mailed[1].subject.endswith("1 deletion failed; 1 alert resolved")


def test_message_about_projects_that_disappeared_asks_for_a_decision(mailed: list[Any]) -> None:
    blocked(kind="vanished", project_id=None, vanished_ids=["proj_1", "proj_2"])
    sweep()
    assert mailed[0].subject.endswith("] Needs a decision: 2 projects disappeared")
    assert "Restore the projects, or approve" in mailed[0].body


@pytest.mark.parametrize("kind", ["worker", "findings", "ids", "paused"])
def test_message_about_one_problem_has_at_most_80_words(kind: str, mailed: list[Any]) -> None:
    Alert.objects.create(kind=kind, summary="word " * 60)
    with transaction.atomic():
        made = alert_rules.create_notification()
    assert made
    assert len(alert_text.message_text(made).split()) <= 80


def test_whoever_is_named_later_is_told_of_what_is_open_then(settings: Settings) -> None:
    over, still = blocked(project_id="proj_1"), blocked(project_id="proj_2")
    sweep()
    change(over, status="clean")
    sweep()
    assert Alert.objects.count() == 2 and not Notification.objects.exists()
    tell(settings, NOTIFY_EMAILS=("ann@example.com",))
    sweep()
    (message,) = mail.outbox
    assert str(still.pk) in message.body and str(over.pk) not in message.body


def test_an_address_that_the_settings_name_twice_is_told_once(settings: Settings) -> None:
    tell(settings, NOTIFY_EMAILS=("ann@example.com", "ben@example.com", "ann@example.com"))
    blocked()
    sweep()
    assert [message.to for message in mail.outbox] == [["ann@example.com"], ["ben@example.com"]]


# What begins and ends


@pytest.mark.parametrize(
    "values",
    [
        {"dry_run": True},
        {"kind": "verify"},
        {"status": "planned"},
        # Not now: by the time that this runs, it would be late.
        {
            "kind": "verify",
            "status": "failed",
            "next_attempt_at": timezone.now() + timedelta(days=1),
        },
    ],
)
def test_what_stopped_but_waits_for_nobody_is_no_alert(values: dict[str, Any]) -> None:
    blocked(**values)
    alert_rules.update_alerts()
    assert kinds_open() == []


def test_the_daily_attempt_of_a_failed_deletion_neither_ends_nor_repeats_the_alert() -> None:
    long_ago = timezone.now() - timedelta(days=3)
    failing = make_cleanup(status="failed", created_at=long_ago, next_attempt_at=timezone.now())
    for status in ("failed", "running", "retrying", "pending", "failed"):
        change(failing, status=status)
        alert_rules.update_alerts()
        assert kinds_open() == ["failed"]
    change(failing, status="clean", next_attempt_at=None)
    alert_rules.update_alerts()
    assert kinds_open() == [] and Alert.objects.count() == 1


def test_a_deletion_is_overdue_from_the_hours_of_the_settings_on(settings: Settings) -> None:
    tell(settings, NOTIFY_OVERDUE=timedelta(hours=2))
    slow = make_cleanup(status="retrying", created_at=timezone.now() - timedelta(hours=3))
    make_cleanup(status="retrying", created_at=timezone.now() - timedelta(hours=1))
    make_cleanup(status="pending", created_at=timezone.now() - timedelta(hours=3), parent=slow)
    alert_rules.update_alerts()
    assert [each.cleanup for each in Alert.objects.open()] == [slow]
    change(slow, status="clean")
    alert_rules.update_alerts()
    assert kinds_open() == []


@pytest.mark.parametrize("status", ["failed", "blocked"])
def test_what_was_overdue_and_stops_is_told_as_what_it_is_now(status: str) -> None:
    slow = make_cleanup(status="retrying", created_at=timezone.now() - timedelta(days=3))
    alert_rules.update_alerts()
    assert kinds_open() == ["overdue"]
    change(slow, status=status)
    alert_rules.update_alerts()
    assert kinds_open() == [status]


def test_a_deletion_is_not_overdue_for_the_time_in_which_it_waited_for_a_person() -> None:
    waited = make_cleanup(status="pending", created_at=timezone.now() - timedelta(days=3))
    decision = CleanupEvent.objects.create(cleanup=waited, step="approved", message="")
    alert_rules.update_alerts()
    assert kinds_open() == []
    CleanupEvent.objects.filter(pk=decision.pk).update(at=timezone.now() - timedelta(days=2))
    alert_rules.update_alerts()
    assert kinds_open() == ["overdue"]


def test_a_dead_worker_is_told_of_by_the_command_and_is_over_once_it_runs_again(
    mailed: list[Any],
) -> None:
    Schedule.objects.update(next_run=timezone.now() - timedelta(minutes=14))
    assert run_command("notify") == ("Open alerts: 1.\nMessages sent: 1.\n", "", 0)
    assert "No worker is running. Its regular check is 14 minutes late." in mailed[0].body
    Schedule.objects.update(next_run=timezone.now())
    assert run_command("notify") == ("Open alerts: 0.\nMessages sent: 1.\n", "", 0)
    assert len(mailed) == 2


@pytest.fixture
def long_queue() -> datetime:
    """A cleanup and a task wait for longer than they should; returns that moment."""
    long_ago = timezone.now() - timedelta(minutes=14)
    OrmQ.objects.create(key="autoshorts", payload="", lock=long_ago)
    make_cleanup(status="pending", next_attempt_at=long_ago, project_id="proj_2")
    return long_ago


def renewed(at: datetime) -> None:
    """By a worker that still has it, or had it until it was stuck."""
    lease = {"lease_token": uuid4(), "lease_until": at + conf().lease_time}
    make_cleanup(status="running", next_attempt_at=at + timedelta(hours=1), **lease)


def listed(at: datetime) -> None:
    scan = BucketScan.objects.create(bucket="tests")
    scan.shards.create(prefix="", lease_token=uuid4(), lease_until=at + conf().lease_time)


def closed(at: datetime) -> None:
    make_cleanup(finished_at=at)


def ended(at: datetime, name: str = "run_cleanup", **facts: Any) -> None:
    func = name if "." in name else f"storage_audit.tasks.{name}"
    given = {"success": True, "result": "running", "started": at, "stopped": at} | facts
    Task.objects.create(id=uuid4().hex, name=name, func=func, **given)


@pytest.mark.parametrize("sign", [renewed, listed, closed, ended])
def test_a_long_queue_is_an_alert_only_while_workers_do_not_get_on(
    long_queue: datetime, sign: Callable[[datetime], None]
) -> None:
    sign(long_queue)
    alert_rules.update_alerts()
    assert kinds_open() == ["worker"]
    sign(timezone.now() - timedelta(minutes=3))
    alert_rules.update_alerts()
    assert kinds_open() == []
    assert [advice for _text, advice in find_delays()] == [str(BUSY_ADVICE)] * 2
    Schedule.objects.update(next_run=long_queue)
    alert_rules.update_alerts()
    assert kinds_open() == ["worker"], "no sweep comes"


@pytest.mark.parametrize(
    "facts",
    [
        *({"name": "sweep"}, {"name": "reconcile"}, {"name": "send_notices"}, {"name": "x.other"}),
        *(
            {"result": text}
            for text in (
                queue.RESULT_NOT_DUE,
                queue.RESULT_GIVEN_UP,
                queue.RESULT_OVER,
                queue.RESULT_TAKEN,
            )
        ),
        {"success": False},
    ],
)
def test_what_is_no_work_of_ours_keeps_no_stuck_worker_from_being_told_of(
    long_queue: datetime, facts: dict[str, Any]
) -> None:
    ended(timezone.now(), **facts)
    make_cleanup(status="superseded", finished_at=timezone.now())
    alert_rules.update_alerts()
    assert kinds_open() == ["worker"]
    assert [advice for _text, advice in find_delays()] == [str(RESTART_ADVICE)] * 2


@pytest.mark.parametrize(
    "facts",
    [
        {"status": "running", "takeovers": 1, "lease_token": uuid4()},
        {"status": "retrying", "takeovers": 5, "next_attempt_at": timezone.now()},
        {"status": "failed"},
    ],
)
def test_workers_that_die_of_what_they_take_are_told_of(facts: dict[str, Any]) -> None:
    now = timezone.now()
    make_cleanup(status="pending", next_attempt_at=now - timedelta(hours=5), project_id="proj_2")
    lately = now - timedelta(minutes=9)
    if facts["status"] == "running":
        facts = {**facts, "lease_until": lately + conf().lease_time}
    make_cleanup(**{"next_attempt_at": now + timedelta(hours=1), "finished_at": lately, **facts})
    alert_rules.update_alerts()
    assert "worker" in kinds_open()


def test_what_is_put_off_as_workers_die_of_it_is_not_called_work() -> None:
    now = timezone.now()
    lost = {"lease_token": uuid4(), "lease_until": now, "next_attempt_at": now, "takeovers": 4}
    made = make_cleanup(status="running", **lost)
    assert tasks.run_cleanup(str(made.pk)) == queue.RESULT_GIVEN_UP
    made.refresh_from_db()
    assert made.status == "retrying"


def test_a_verification_that_found_differences_is_work_that_was_done(long_queue: datetime) -> None:
    make_cleanup(kind="verify", status="differs", next_attempt_at=None, finished_at=timezone.now())
    alert_rules.update_alerts()
    assert kinds_open() == []


def test_what_is_late_is_told_in_the_language_of_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    esperanto = trans_real.translation("eo")
    monkeypatch.setattr(esperanto, "gettext", lambda text: f"«{text}»")
    monkeypatch.setattr(esperanto, "ngettext", lambda _one, many, _count: f"<{many}>")
    long_ago = timezone.now() - timedelta(minutes=14)
    OrmQ.objects.create(key="autoshorts", payload="", lock=long_ago)
    make_cleanup(status="pending", next_attempt_at=long_ago)
    Schedule.objects.update(next_run=long_ago)
    with override("eo"):
        late = find_delays()
        Schedule.objects.all().delete()
        late += find_delays()
    assert len(late) == 6
    for text, advice in late:
        assert text[0] + text[-1] in ("«»", "<>") and advice[0] + advice[-1] == "«»"
        assert "<14 minutes>" in text or "minutes" not in text


def test_findings_are_told_of_above_the_threshold_only(settings: Settings) -> None:
    tell(settings, NOTIFY_FINDINGS=5)
    scan = BucketScan.objects.create(bucket="tests", status="complete")
    seen = {"first_scan": scan, "last_scan": scan, "bucket": "tests"}
    for number, kind in enumerate(["orphaned"] * 4 + ["missing"] * 2):
        alert_rules.update_alerts()
        assert kinds_open() == []
        Finding.objects.create(key=f"k{number}", kind=kind, **seen)
    alert_rules.update_alerts()
    assert Alert.objects.get().summary == "6 open findings (limit 5): 4 leftover, 2 missing."
    Finding.objects.filter(key="k5").ignore("ours", "anna")
    alert_rules.update_alerts()
    assert kinds_open() == ["findings"], "there may be one more at once"
    Finding.objects.filter(key="k4").ignore("ours", "anna")
    alert_rules.update_alerts()
    assert kinds_open() == []


# The webhook


def test_a_receiver_can_verify_the_signature_and_tell_a_repetition(receiver: Receiver) -> None:
    receiver.answers = [500]
    blocked()
    sweep()
    let_the_time_come()
    sweep()
    first, second = receiver.posts
    for post in receiver.posts:
        assert post.path == PATH
        assert post.headers["content-type"] == "application/json"
        sent = int(post.headers["webhook-timestamp"])
        assert abs(time.time() - sent) < 300
        # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
        content = f"{post.headers['webhook-id']}.{sent}.{post.body.decode()}"
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        digest = hmac.new(key, content.encode(), hashlib.sha256).digest()
        assert post.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert "." not in first.headers["webhook-id"]
    assert first.content["type"] == "storage_audit.alerts"


def test_what_is_refused_is_tried_again_with_growing_pauses_for_a_day(receiver: Receiver) -> None:
    receiver.answers = [500, 302, 404, 0, 429, 500, 500, 500]
    blocked()
    alert_rules.update_alerts()
    for minutes in (1, 2, 4, 8, 16, 32, 60):
        before = timezone.now()
        let_the_time_come()
        deliver.send_due_deliveries()
        deliver.send_due_deliveries()
        delivery = Delivery.objects.get()
        assert delivery.state == State.WAITING and delivery.error and delivery.next_attempt_at
        pause = timedelta(minutes=minutes)
        assert before + pause <= delivery.next_attempt_at <= timezone.now() + pause
    assert len(receiver.posts) == 7
    assert {post.path for post in receiver.posts} == {PATH}, "it followed where it was sent to"
    Notification.objects.update(made_at=timezone.now() - timedelta(days=1))
    for _each in range(2):
        let_the_time_come()
        deliver.send_due_deliveries()
    delivery.refresh_from_db()
    assert (delivery.state, len(receiver.posts)) == (State.GIVEN_UP, 8)
    assert delivery.error == "The webhook answered with status 500."


def test_a_receiver_that_is_gone_for_good_is_asked_once(receiver: Receiver) -> None:
    receiver.answers = [410]
    blocked()
    sweep()
    assert Delivery.objects.get().state == State.GIVEN_UP


def test_a_receiver_that_answers_byte_by_byte_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = Event()

    class Dripping(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"HTTP/1.1 204 No Content\r\nX-Drip: ")
            while not given_up.wait(0.02):
                self.wfile.write(b".")
            self.wfile.write(b"\r\n\r\n")

    monkeypatch.setattr(channels, "WEBHOOK_TIMEOUT_SECONDS", 0.2)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping)
    tell(
        settings,
        NOTIFY_WEBHOOK_URL=f"http://127.0.0.1:{server.server_address[1]}{PATH}",
        NOTIFY_WEBHOOK_SECRET=SECRET,
    )
    blocked()
    # Or a sender that waits would do so for ever.
    at_last = Timer(5, given_up.set)
    at_last.start()
    with serving(server):
        sweep()
        waited_for_it = given_up.is_set()
        given_up.set()
        at_last.cancel()
    assert not waited_for_it
    delivery = Delivery.objects.get()
    assert delivery.state == State.WAITING and "TimeoutError" in delivery.error


def test_a_sender_that_is_killed_before_it_notes_the_answer_leaves_it_to_be_sent_again(
    receiver: Receiver,
) -> None:
    blocked()
    told = {"NOTIFY_WEBHOOK_URL": receiver.url, "NOTIFY_WEBHOOK_SECRET": SECRET}
    environment = os.environ | told | {"DATABASE_URL": database_url()}
    argv = [sys.executable, str(ROOT / "manage.py"), "notify"]
    sender = subprocess.Popen(argv, env=environment, cwd=ROOT)

    def kill() -> int:
        sender.send_signal(signal.SIGKILL)
        sender.wait()
        return 204

    receiver.answers = [kill]
    assert sender.wait() == -signal.SIGKILL
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts) == (State.WAITING, 1)
    deliver.send_due_deliveries()
    assert len(receiver.posts) == 1, "somebody may be at it still"
    let_the_time_come()
    sweep()
    assert [post.headers["webhook-id"] for post in receiver.posts] == [
        str(delivery.notification_id)
    ] * 2
    assert Delivery.objects.get().state == State.SENT


# E-mail


class MailServer(socketserver.ThreadingTCPServer):
    """It takes what it is sent, but for those whom it does not know."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        super().__init__(("127.0.0.1", 0), Conversation)


class Conversation(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.say("220 mail.example.com")
        while line := self.rfile.readline().decode().strip():
            verb = line.upper()
            if verb.startswith("RCPT") and "nobody@" in line:
                self.say("550 no such mailbox here")
            elif verb == "DATA":
                self.say("354 go on")
                self.take()
                self.say("250 taken")
            else:
                self.say("221 bye" if verb == "QUIT" else "250 mail.example.com")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def take(self) -> None:
        lines = iter(self.rfile.readline, b".\r\n")
        self.server.messages.append(message_from_bytes(b"".join(lines), policy=policy.default))


@pytest.fixture
def mail_server(settings: Settings) -> Iterator[MailServer]:
    server = MailServer()
    host, port = server.server_address[:2]
    backend = "django.core.mail.backends.smtp.EmailBackend"
    if django.VERSION >= (6, 1):
        options = {"host": host, "port": port, "timeout": 10}
        settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": options}}
    else:
        settings.EMAIL_BACKEND, settings.EMAIL_HOST, settings.EMAIL_PORT = backend, host, port
        settings.EMAIL_USE_TLS = False
    with serving(server):
        yield server


def test_a_mail_server_gets_one_message_for_each_address_and_one_refusal_stops_no_other(
    mail_server: MailServer, settings: Settings
) -> None:
    tell(
        settings,
        NOTIFY_EMAILS=("nobody@example.com", "ann@example.com", "ben@example.com"),
        NOTIFY_SITE_URL="https://audit.example.com/",
    )
    stopped = blocked(project_id="proj_é")
    sweep()
    received = {str(message["To"]): message for message in mail_server.messages}
    assert set(received) == {"ann@example.com", "ben@example.com"}
    message = received["ann@example.com"]
    assert (
        str(message["Subject"]).strip() == "[AutoShorts storage] Needs approval: deletion of proj_é"
    )
    assert str(Notification.objects.get().pk) in message["Message-ID"]
    assert message["Auto-Submitted"] == "auto-generated"
    body = message.get_content()
    assert "proj_é" in body
    link = f"https://audit.example.com{admin_url('cleanup', 'change', stopped.pk)}"
    assert link in body
    refused = Delivery.objects.get(state="waiting")
    assert refused.recipient == "nobody@example.com"
    assert "550" in refused.error and "no such mailbox here" in refused.error
    shown = page_text(superuser_client().get(admin_url("alert", "change", Alert.objects.get().pk)))
    assert "no such mailbox here" in shown and "1 attempt, next at" in shown
    assert "2 of 3 messages sent" in page_text(superuser_client().get(admin_url("alert")))


@pytest.mark.parametrize(
    ("site", "domain"),
    [
        ("https://audit.example.com:8000/x", "audit.example.com"),
        ("", "storage-audit.invalid"),
    ],
)
def test_a_mail_has_the_same_id_on_each_machine(
    mailed: list[Any], settings: Settings, site: str, domain: str
) -> None:
    tell(settings, NOTIFY_SITE_URL=site)
    blocked()
    sweep()
    assert mailed[0].message()["Message-ID"] == f"<{Notification.objects.get().pk}@{domain}>"


def test_what_strangers_wrote_adds_no_line_to_a_mail_and_no_element_to_a_page(
    mail_server: MailServer, settings: Settings
) -> None:
    tell(settings, NOTIFY_EMAILS=("ann@example.com",))
    blocked(project_id=HOSTILE, message=f"{HOSTILE} is too large")
    sweep()
    (message,) = mail_server.messages
    assert message["Bcc"] is None
    subject = str(message["Subject"])
    assert subject.startswith("[AutoShorts storage] Needs approval: deletion of proj_1\\r\\nBcc")
    assert subject.isprintable() and len(subject) < 140
    assert "\nBcc" not in message.get_content() and "\x1b" not in message.get_content()
    client = superuser_client()
    for address in (admin_url("alert"), admin_url("alert", "change", Alert.objects.get().pk)):
        shown = page_text(client.get(address))
        assert "<script>x" not in shown and "&lt;script&gt;x" in shown and "\x1b" not in shown


# One and the other


def test_a_channel_that_fails_stops_neither_the_other_nor_the_sweep(
    mailed: list[Any],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreachable = f"http://127.0.0.1:9{PATH}"
    tell(settings, NOTIFY_WEBHOOK_URL=unreachable, NOTIFY_WEBHOOK_SECRET=SECRET)
    blocked()
    sweep()
    assert len(mailed) == 1
    failed = Delivery.objects.get(channel="webhook")
    assert failed.state == State.WAITING and "ConnectionRefusedError" in failed.error

    def break_down(*args: object) -> None:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr(deliver, "send_webhook", break_down)
    monkeypatch.setattr(deliver, "send_mail", break_down)
    let_the_time_come()
    blocked(project_id="proj_2")
    sweep()
    assert {each.error for each in Delivery.objects.filter(state="waiting")} == {
        "Sending failed (ValueError). The log has the details."
    }
    lost = create_lost_cleanup()
    monkeypatch.setattr(alert_rules, "update_alerts", break_down)
    tasks.sweep()
    assert "nobody thought of it" in caplog.text
    lost.refresh_from_db()
    assert timezone.now() - (lost.enqueued_at or lost.created_at) < timedelta(minutes=1)
    assert DailyFigures.objects.exists(), "the day's figures are taken all the same"


def test_who_is_not_named_any_more_gets_no_message_that_waited(
    receiver: Receiver, mailed: list[Any], settings: Settings
) -> None:
    blocked()
    alert_rules.update_alerts()
    tell(settings, NOTIFY_EMAILS=("ben@example.com",), NOTIFY_WEBHOOK_URL="")
    deliver.send_due_deliveries()
    assert not mailed and not receiver.posts
    assert set(Delivery.objects.values_list("state", "error")) == {
        ("given_up", "Removed from the settings.")
    }


def test_the_sweep_has_a_worker_send_and_sends_itself_where_there_is_none(
    receiver: Receiver, settings: Settings
) -> None:
    blocked()
    tasks.sweep()
    (task,) = OrmQ.objects.all()
    assert task.func() == "storage_audit.tasks.send_notices" and not receiver.posts
    assert tasks.send_notices() == "1 of 1 messages sent"
    tell(settings, SYNC=True)
    blocked(project_id="proj_2")
    tasks.sweep()
    assert len(receiver.posts) == 2


def test_the_webhook_s_address_and_secret_are_nowhere(
    receiver: Receiver, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [500, 0]
    blocked(message=f"Somebody pasted {receiver.url} and {SECRET}")
    sweep()
    let_the_time_come()
    sweep()
    tell(settings, NOTIFY_WEBHOOK_URL=f"http://127.0.0.1:9{PATH}")
    let_the_time_come()
    sweep()
    client = superuser_client()
    told = [client.post(admin_url("alert").replace("/alert/", "/alert/test/"), follow=True)]
    told += [client.get(admin_url("alert"))]
    told += [client.get(admin_url("alert", "change", each.pk)) for each in Alert.objects.all()]
    shown = [page_text(each) for each in told] + [
        caplog.text,
        repr(conf()),
        *run_command("notify")[:2],
    ]
    shown += [text for name, text in list_stored_values() if "Cleanup" not in name]
    assert "ConnectionRefusedError" in "".join(shown) and "[redacted]" in "".join(shown)
    for secret in ("planted-path", "planted-query", SECRET, SECRET.removeprefix("whsec_")):
        assert not [text for text in shown if secret in text], secret


def test_host_of_the_webhook_is_not_shown_where_its_certificate_is_of_another(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: Request, status: Future[int]) -> None:
        error = SSLCertVerificationError(1, "certificate is not valid for 'planted.example.com'")
        error.verify_code = 62
        status.set_exception(URLError(error))

    monkeypatch.setattr(channels, "fetch_status", refuse)
    blocked()
    sweep()
    assert Delivery.objects.get().error.endswith("the webhook: SSLCertVerificationError 62")


def test_django_s_pages_about_an_error_do_not_show_the_webhook_s_address(
    receiver: Receiver, settings: Settings
) -> None:
    settings.NOTIFY_WEBHOOK_URL = receiver.url
    shown = get_exception_reporter_filter(None).get_safe_settings()
    assert shown["STORAGE_AUDIT"]["NOTIFY_SITE_URL"] == "https://audit.example.com"
    assert "planted" not in repr(shown)


# The admin and the shell


def test_the_button_sends_a_test_to_everybody_and_says_what_became_of_it(
    receiver: Receiver, mailed: list[Any]
) -> None:
    receiver.answers = [500]
    client = staff_client("view_alert", "test_notifications")
    assert "ann@example.com" in page_text(client.get("/admin/storage_audit/alert/test/"))
    assert not mailed and not receiver.posts
    told = page_text(client.post("/admin/storage_audit/alert/test/", follow=True))
    assert "Sent to ann@example.com." in told
    assert "Not sent to webhook. The webhook answered with status 500." in told
    assert len(mailed) == len(receiver.posts) == 1
    assert receiver.posts[0].content["type"] == "storage_audit.test"
    assert not Notification.objects.exists()


def test_the_test_tells_of_a_channel_that_is_set_up_wrong(
    receiver: Receiver, settings: Settings
) -> None:
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": "nowhere.Backend"}}
    else:
        settings.EMAIL_BACKEND = "nowhere.Backend"
    tell(
        settings,
        NOTIFY_EMAILS=("ann@example.com",),
        NOTIFY_WEBHOOK_URL=f"https://{'planted' * 10}.example.com/",
    )
    told = page_text(superuser_client().post("/admin/storage_audit/alert/test/", follow=True))
    assert "Not sent to ann@example.com. Sending failed (" in told
    assert "Not sent to webhook. Sending failed (" in told and "planted" not in told


def test_the_list_leads_to_a_page_that_asks_before_a_test_is_sent(mailed: list[Any]) -> None:
    client = staff_client("view_alert", "test_notifications")
    shown = page_text(client.get(admin_url("alert")))
    [(url, label)] = re.findall('<a class="button" href="(.*?)">(.*?)</a>', shown)
    assert (url, label) == ("/admin/storage_audit/alert/test/", "Send a test message…")
    assert f'action="{url}"' not in shown
    asked = page_text(client.get(url))
    assert "<li>ann@example.com</li>" in asked
    assert '<input type="submit" value="Send a test message">' in asked
    assert not mailed


def test_everybody_who_sees_the_list_sees_who_is_told_and_from_when_on(
    receiver: Receiver, mailed: list[Any], settings: Settings
) -> None:
    client = staff_client("view_alert")
    shown = page_text(client.get(admin_url("alert")))
    told = "Alerts go to ann@example.com, webhook. Deletions are overdue after 12 hours."
    assert told in shown
    assert receiver.url not in shown and "planted" not in shown
    tell(settings, NOTIFY_OVERDUE=timedelta(hours=36), NOTIFY_FINDINGS=1, NOTIFY_EMAILS=())
    told = "Alerts go to webhook. Deletions are overdue after 1 day, 12 hours."
    assert told in page_text(client.get(admin_url("alert")))


def test_who_may_not_send_a_test_is_told_whom_to_ask(mailed: list[Any]) -> None:
    client = staff_client("view_alert")
    shown = page_text(client.get(admin_url("alert")))
    assert 'value="Send a test message" disabled' in shown and "Storage admin" in shown
    assert client.post("/admin/storage_audit/alert/test/").status_code == 403
    assert not mailed
    assert Permission.objects.filter(codename="test_notifications").exists()


def test_the_list_says_when_nobody_is_told() -> None:
    blocked()
    alert_rules.update_alerts()
    shown = page_text(superuser_client().get(admin_url("alert")))
    assert "No alerts are sent." in shown and "none" in shown
    assert "Deletions are overdue after 12 hours. The findings limit is 100." in shown


def test_the_list_costs_as_many_queries_for_one_as_for_many(mailed: list[Any]) -> None:
    client = superuser_client()

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as counted:
            page_text(client.get(admin_url("alert")))
        return len(counted)

    stopped = blocked()
    sweep()
    change(stopped, status="clean")
    sweep()
    few = queries()
    for number in range(5):
        blocked(project_id=f"proj_{number}")
        sweep()
    assert queries() == few


def test_the_command_says_what_was_sent_and_what_was_not(
    receiver: Receiver, mailed: list[Any], settings: Settings
) -> None:
    receiver.answers = [500, 500]
    failure = "webhook: The webhook answered with status 500.\n"
    assert run_command("notify", "--test") == (
        f"ann@example.com: sent\n{failure}",
        "CommandError: Some messages were not sent.\n",
        1,
    )
    blocked()
    out, err, code = run_command("notify")
    assert (out, code) == ("Open alerts: 1.\nMessages sent: 1.\n", 1)
    assert err == f"CommandError: Not sent:\n{failure}"
    tell(settings, NOTIFY_EMAILS=(), NOTIFY_WEBHOOK_URL="")
    assert "No recipients" in run_command("notify")[0]
    assert run_command("notify", "--test")[2] == 2


def test_the_timer_s_unit_calls_the_command() -> None:
    words = read_service("notify")["ExecStart"].split()
    assert words[2:] == ["notify"]
    Command().create_parser(*words[1:3]).parse_args(words[3:])


# Settings


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"NOTIFY_EMAILS": ("ann",)}, "NOTIFY_EMAILS"),
        ({"NOTIFY_EMAILS": ("ann@example.com\nBcc: eve@example.com",)}, "NOTIFY_EMAILS"),
        ({"NOTIFY_WEBHOOK_URL": "ftp://h/planted"}, "NOTIFY_WEBHOOK_URL"),
        ({"NOTIFY_WEBHOOK_URL": "https://u:planted@h/"}, "NOTIFY_WEBHOOK_URL"),
        ({"NOTIFY_WEBHOOK_URL": "https://h/planted\r\nX: y"}, "NOTIFY_WEBHOOK_URL"),
        ({"NOTIFY_WEBHOOK_SECRET": ""}, "NOTIFY_WEBHOOK_SECRET"),
        ({"NOTIFY_WEBHOOK_SECRET": SECRET.removeprefix("whsec_")}, "NOTIFY_WEBHOOK_SECRET"),
        ({"NOTIFY_WEBHOOK_SECRET": "whsec_planted"}, "NOTIFY_WEBHOOK_SECRET"),
        ({"NOTIFY_WEBHOOK_SECRET": "whsec_!planted!" + "A" * 32}, "NOTIFY_WEBHOOK_SECRET"),
        ({"NOTIFY_SITE_URL": "audit.example.com"}, "NOTIFY_SITE_URL"),
        ({"NOTIFY_OVERDUE": timedelta(0)}, "NOTIFY_OVERDUE"),
        ({"NOTIFY_FINDINGS": -1}, "NOTIFY_FINDINGS"),
    ],
)
def test_a_bad_entry_is_named_and_no_secret_is_told(
    entries: dict[str, Any], named: str, settings: Settings
) -> None:
    usable = {"NOTIFY_WEBHOOK_URL": "https://h/x", "NOTIFY_WEBHOOK_SECRET": SECRET}
    tell(settings, **usable)
    assert conf().webhook_key == KEY
    tell(settings, **entries)
    with pytest.raises(ImproperlyConfigured, match=named) as raised:
        conf()
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"NOTIFY_EMAILS": "a@example.com", "EMAIL_HOST": "mail"}, "DEFAULT_FROM_EMAIL"),
        ({"NOTIFY_EMAILS": "a@example.com", "DEFAULT_FROM_EMAIL": "b@example.com"}, "EMAIL_HOST"),
        ({"NOTIFY_WEBHOOK_URL": "https://h/x"}, "NOTIFY_WEBHOOK_SECRET"),
        ({"NOTIFY_WEBHOOK_URL": "h/hunter2"}, "NOTIFY_WEBHOOK_URL"),
        ({"EMAIL_USE_SSL": "true", "EMAIL_USE_TLS": "true"}, "EMAIL_USE_SSL"),
        ({"EMAIL_PORT": "smtp"}, "EMAIL_PORT"),
    ],
)
def test_whoever_asks_to_be_told_and_cannot_be_learns_it_at_the_start(
    variables: dict[str, str], named: str
) -> None:
    told = [line for line in list_problems(GOOD_ENVIRONMENT | variables) if line.startswith(named)]
    assert len(told) == 1 and "hunter2" not in told[0]


def test_variables_reach_the_settings() -> None:
    variables = {
        "NOTIFY_EMAILS": "a@example.com, b@example.com",
        "NOTIFY_WEBHOOK_URL": "https://h/x",
        "NOTIFY_WEBHOOK_SECRET": SECRET,
        "NOTIFY_SITE_URL": "https://audit.example.com",
        "NOTIFY_OVERDUE_HOURS": "24",
        "NOTIFY_FINDINGS": "0",
        "EMAIL_HOST": "mail.example.com",
        "DEFAULT_FROM_EMAIL": "audit@example.com",
    }
    storage, sender, server = read_settings(
        GOOD_ENVIRONMENT | variables, "STORAGE_AUDIT", "DEFAULT_FROM_EMAIL", "MAIL_SERVER"
    )
    assert storage["NOTIFY_EMAILS"] == ["a@example.com", "b@example.com"]
    assert storage["NOTIFY_WEBHOOK_SECRET"] == SECRET
    assert (storage["NOTIFY_OVERDUE"], storage["NOTIFY_FINDINGS"]) == ("1 day, 0:00:00", 0)
    assert sender == "audit@example.com"
    assert (server["host"], server["port"], server["use_tls"]) == ("mail.example.com", 587, True)


def test_settings_with_which_a_message_is_of_less_use_are_warnings(settings: Settings) -> None:
    tell(settings, NOTIFY_EMAILS=("ann@example.com",))
    told = run_system_checks()
    assert set(told) == {"storage_audit.W004", "storage_audit.W005"}
    assert "NOTIFY_SITE_URL" in (told["storage_audit.W004"].hint or "")
