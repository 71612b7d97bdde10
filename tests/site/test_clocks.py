"""A clock that was a year ahead for a while is right again: the times that it wrote hide nothing,
and nothing waits for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db.models import F, Model, Value
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit import tasks
from storage_audit.alerts import lateness
from storage_audit.alerts.alert_rules import find_overdue
from storage_audit.cleanup import delete_pipeline, requests, runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.needs_attention import find_verifications_without_cleanup
from storage_audit.clocks import DatabaseNow
from storage_audit.dashboard import daily_figures
from storage_audit.doctor.models import HealthReport
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan.models import BucketScan
from storage_audit.storage import key_for
from storage_audit.tracking import upload
from storage_audit.tracking.upload import Upload, is_key_locked
from tests.builders import create_lost_cleanup
from tests.faults.matching import is_listing
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import (
    acquire_lease,
    act_before_batch,
    clean_up_project,
    create_projects,
    hide_key,
    make_due,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    skip_pause,
    take_over_lease,
    track_key,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import (
    complete_reconcile,
    read_findings,
    run_reconcile,
    run_scan,
    start_reconcile,
)
from tests.times import AHEAD, YEAR

Status = BucketScan.Status
# After that the store refuses a request.
SIGNATURE_LASTS = timedelta(minutes=15)


def started_now(found: BucketScan) -> BucketScan:
    # The field has kept the real clock as its default.
    found.started_at = timezone.now()
    found.save()
    return found


def ahead(rows: type[Model], *names: str) -> None:
    """Give these columns the times that a clock a year ahead would have written."""
    rows._default_manager.update(**{name: F(name) + YEAR for name in names})


# Scans


def test_scan_that_ends_while_the_clock_is_ahead_overtakes_no_later_one(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    key = bucket.upload("proj_1")
    assert run_scan(started_now(start_reconcile())).status == Status.COMPLETE
    a_year_ahead()
    bucket.r2.remove(key, bucket.name)
    assert run_reconcile().status == Status.COMPLETE
    assert read_findings() == {("missing", key)}


def test_scan_that_began_while_the_clock_was_ahead_fails(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(start_reconcile())
    a_year_ahead()
    assert run_scan(found).status == Status.FAILED
    assert "the clock was ahead" in found.message
    assert complete_reconcile()


def test_scan_that_was_killed_while_the_clock_was_ahead_blocks_no_other(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(start_reconcile())
    a_year_ahead()
    assert tasks.reconcile() == "another scan is running"
    tasks.sweep()
    found.refresh_from_db()
    assert found.status == Status.FAILED
    assert tasks.reconcile() != "another scan is running"


def test_overview_goes_by_scans_whose_clock_was_right(bucket: Bucket) -> None:
    right, wrong, failed = complete_reconcile(), complete_reconcile(), start_reconcile()
    failed.fail("no")
    ahead(BucketScan, "started_at")
    BucketScan.objects.filter(pk=wrong.pk).update(finished_at=F("finished_at") + YEAR)
    BucketScan.objects.filter(pk=failed.pk).update(started_at=F("started_at") - YEAR)
    assert daily_figures.last_complete_scan() == right
    assert daily_figures.failed_scan() == failed


def test_findings_of_a_clock_that_was_ahead_are_resolved_and_opened_again(bucket: Bucket) -> None:
    stays, goes, back = (f"projects/proj_x/scenes/s1/media/{n}.mp4" for n in "abc")
    bucket.put(stays, goes, back)
    complete_reconcile()
    Finding.objects.filter(key=back).resolve("by hand")
    ahead(Finding, "last_seen_at", "decided_at")
    bucket.r2.remove(goes, bucket.name)
    found = complete_reconcile()
    assert read_findings() == {("orphaned", stays), ("orphaned", back)}
    assert set(Finding.objects.open().values_list("last_scan", flat=True)) == {found.pk}


# Rows


def test_scan_notes_a_missing_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    assert complete_reconcile().missing == 1
    assert read_findings() == {("missing", key)}


def test_scan_notes_a_changed_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.put(key, body=b"another")
    complete_reconcile()
    assert read_findings() == {("changed", key)}


def test_verification_fails_for_a_missing_file_whose_row_has_a_time_to_come(
    bucket: Bucket,
) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    [cleanup] = requests.request_verification("proj_1")
    assert run_until_idle(cleanup).status == "differs"
    assert cleanup.items.get().reason.startswith("Tracked, but missing from the bucket.")


# Uploads and deletions that died meanwhile


def test_cleanup_deletes_the_file_of_an_upload_that_died(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    create_projects("proj_1")
    upload = Upload(bucket.name, key_for("proj_1", scene="s1", filename="a.mp4")).begin()
    bucket.put(upload.key)
    a_year_ahead()
    assert read_outcomes(clean_up_project("proj_1")) == {upload.key: "deleted"}
    assert not bucket.keys()


def test_upload_that_died_takes_no_name(bucket: Bucket, a_year_ahead: Callable[[], None]) -> None:
    create_projects("proj_1")
    upload = Upload(bucket.name, key_for("proj_1", scene="s1", filename="a.mp4")).begin()
    a_year_ahead()
    assert bucket.upload("proj_1", "a.mp4") == upload.key


def test_deletion_that_died_bars_no_key(bucket: Bucket, a_year_ahead: Callable[[], None]) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.all().mark_deleting()
    a_year_ahead()
    assert not is_key_locked(bucket.name, key)


def test_marks_of_a_machine_that_is_some_minutes_ahead_count(bucket: Bucket) -> None:
    key, moment = bucket.upload("proj_1"), timezone.now() + timedelta(minutes=10)
    rows = R2Object.objects.all()
    rows.update(state="deleting", updated_at=moment)
    assert is_key_locked(bucket.name, key)
    rows.update(state="uploading", updated_at=moment)
    assert not rows.lock_for_deletion([key])


@pytest.mark.parametrize("of_sender", [-AHEAD, AHEAD], ids=["behind", "ahead"])
@pytest.mark.parametrize("of_web", [-AHEAD, AHEAD], ids=["web behind", "web ahead"])
@pytest.mark.parametrize("ago", [timedelta(0), SIGNATURE_LASTS], ids=["just sent", "still obeyed"])
@pytest.mark.django_db
def test_key_is_barred_while_the_store_may_obey_a_call_though_clocks_differ(
    late: Callable[[timedelta], None], of_sender: timedelta, of_web: timedelta, ago: timedelta
) -> None:
    """The store accepts the requests of both machines, and goes by the sender's signature."""
    sent_at = timezone.now() + of_sender
    marked_at = sent_at - timedelta(seconds=delete_pipeline.RECHECK_VALID_SECONDS)
    unanswered, deleting = create_lost_cleanup().items, create_lost_cleanup().items
    unanswered.create(key="a", identity="a", outcome="deleted", unanswered_at=sent_at)
    deleting.create(key="b", identity="b", outcome="deleting", changed_at=marked_at)
    R2Object.objects.create(bucket="tests", key="c", state="deleting", updated_at=marked_at)
    late((of_sender if ago else timedelta(0)) + ago + of_web)
    assert [key for key in "abcd" if is_key_locked("tests", key)] == ["a", "b", "c"]


# Cleanups and verifications


def test_cleanup_that_ended_while_the_clock_was_ahead_is_no_sign_of_a_worker(
    bucket: Bucket,
) -> None:
    create_projects("proj_1")
    clean_up_project("proj_1")
    assert lateness.is_work_progressing()
    ahead(Cleanup, "finished_at")
    assert not lateness.is_work_progressing()


@pytest.mark.parametrize("of_first, of_second", [(YEAR, 0 * YEAR), (0 * YEAR, YEAR)])
def test_verification_reports_leftovers_whatever_the_clock_said_before(
    bucket: Bucket, of_first: timedelta, of_second: timedelta
) -> None:
    record_deleted_projects("proj_1")
    [first] = requests.request_verification("proj_1")
    assert run_until_idle(first).status == "clean"
    Cleanup.objects.update(finished_at=F("finished_at") + of_first)
    key = "projects/proj_1/scenes/s1/media/a.mp4"
    bucket.put(key)
    [second] = requests.request_verification("proj_1")
    assert run_until_idle(second).status == "differs"
    assert find_verifications_without_cleanup().get() == second
    ahead(KnownProject, "deleted_at")
    assert find_verifications_without_cleanup().get() == second
    bucket.r2.remove(key, bucket.name)
    Cleanup.objects.filter(pk=second.pk).update(finished_at=F("finished_at") + of_second)
    [third] = requests.request_verification("proj_1")
    assert run_until_idle(third).status == "clean"
    assert not find_verifications_without_cleanup()


@pytest.mark.django_db
def test_open_cleanup_of_a_time_to_come_is_overdue() -> None:
    Cleanup.objects.request(kind="project", bucket="tests", project_id="proj_1", trigger="deleted")
    overdue = find_overdue(timezone.now() - timedelta(days=1))
    assert not overdue
    ahead(Cleanup, "created_at")
    assert overdue.all()


@pytest.mark.django_db
def test_health_report_from_the_future_is_not_the_latest() -> None:
    for n in range(3):
        HealthReport.objects.create(context="web", host="a", pid=n)
    ahead(HealthReport, "at")
    latest = HealthReport.objects.create(context="web", host="a", pid=9)
    assert HealthReport.objects.latest_first().first() == latest
    HealthReport.objects.prune(2)
    assert latest in HealthReport.objects.all()


# Objects that may be younger than what deletes them

AMBIGUOUS = "proj_1_proj_2_s1_media.mp4"  # of proj_1, or of proj_1_proj_2


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[timedelta], None]]:
    """Gives a function that lets the clock be ahead by so much."""
    now = timezone.now
    with monkeypatch.context() as patch:
        patch.delattr(DatabaseNow, "as_postgresql")
        yield lambda by: patch.setattr(timezone, "now", lambda: now() + by)


@pytest.mark.parametrize("minutes", [-1, 0, 1, 10])
def test_file_that_may_be_younger_than_the_deletion_stays(
    bucket: Bucket, late: Callable[[timedelta], None], settings: Settings, minutes: int
) -> None:
    """Also when the false time has passed."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(hours=1)}
    create_projects("proj_1")
    late(timedelta(minutes=minutes))
    Project.objects.get(pk="proj_1").delete()
    late(timedelta(0))
    Cleanup.objects.update(next_attempt_at=timezone.now())
    cleanup = run_until_idle(Cleanup.objects.get())
    bucket.put(AMBIGUOUS)
    late(timedelta(hours=2))
    found = run_follow_up(cleanup)
    assert read_outcomes(found) == {AMBIGUOUS: "kept"}
    assert "newer than the deletion" in read_reason(found, AMBIGUOUS)


@pytest.mark.parametrize("passed", [timedelta(0), timedelta(hours=3)])
def test_object_stays_that_may_be_written_after_its_row_was_deleted(
    bucket: Bucket, late: Callable[[timedelta], None], passed: timedelta
) -> None:
    create_projects("proj_1")
    key = key_for("proj_1", scene="s1", filename="a.mp4")
    track_key(bucket, key, "proj_1", state="upload_failed").delete()
    bucket.put(key)
    Cleanup.objects.update(
        created_at=timezone.now() + timedelta(hours=2), started_at=timezone.now()
    )
    late(passed)
    cleanup = run_until_idle(Cleanup.objects.get())
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "may be newer than the deletion" in read_reason(cleanup, key)
    assert bucket.keys() == {key}


def upload_after_the_listing(bucket: Bucket, store: FaultyStore, by: timedelta) -> None:
    """A web server whose clock is behind saves a file once the project was listed."""
    now = timezone.now

    def then_upload(request: Request, forward: Forward) -> Reply | None:
        if not is_listing(request) or "projects/proj_1/" not in request.query.get("prefix", ""):
            return None
        store.rules.remove(then_upload)
        reply = forward()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upload, "timezone", SimpleNamespace(now=lambda: now() - by))
            bucket.upload("proj_1", "b.mp4")
        return reply

    store.rules.append(then_upload)


@pytest.mark.parametrize("by", [timedelta(0), timedelta(hours=1)])
def test_verification_sees_a_file_that_a_clock_behind_dates_before_it(
    bucket: Bucket, store: FaultyStore, by: timedelta
) -> None:
    bucket.upload("proj_1", "a.mp4")
    upload_after_the_listing(bucket, store, by)
    [cleanup] = requests.request_verification("proj_1")
    assert run_until_idle(cleanup).status == "clean"
    assert not store.rules


def test_scan_sees_a_file_that_a_clock_behind_dates_before_it(
    bucket: Bucket, store: FaultyStore
) -> None:
    bucket.upload("proj_1", "a.mp4")
    upload_after_the_listing(bucket, store, timedelta(hours=1))
    found = complete_reconcile("projects/proj_1/")
    assert not store.rules
    assert not found.missing
    assert not read_findings()


# Workers on several machines go by the database's clock

on_several_machines = pytest.mark.only_on("postgresql")


@contextmanager
def clock_of_another_machine(seconds: float) -> Iterator[None]:
    """Our clock differs by so much; the database's does not."""
    now = timezone.now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timezone, "now", lambda: now() + timedelta(seconds=seconds))
        yield


@on_several_machines
@pytest.mark.parametrize("of_first, of_second", [(0, 70), (-70, 0), (0, 600)])
@pytest.mark.django_db(transaction=True)
def test_worker_whose_clock_differs_takes_no_cleanup_that_another_has(
    of_first: int, of_second: int
) -> None:
    cleanup = create_lost_cleanup()
    with clock_of_another_machine(of_first):
        assert acquire_lease(cleanup)
        cleanup.renew()
    Cleanup.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
    with clock_of_another_machine(of_second):
        assert not acquire_lease(Cleanup.objects.get())
        assert not Cleanup.objects.due().exists()
    cleanup.renew()


@on_several_machines
@pytest.mark.parametrize("of_first, of_second", [(0, 70), (-70, 0)])
@pytest.mark.django_db
def test_worker_whose_clock_differs_takes_no_part_of_a_scan_that_another_has(
    of_first: int, of_second: int
) -> None:
    parts = BucketScan.objects.create(bucket="tests").shards
    parts.create(prefix="")
    token = uuid4()
    with clock_of_another_machine(of_first):
        assert parts.all().acquire_leases(token, 1)
        assert parts.all().renew(token) == 1
    with clock_of_another_machine(of_second):
        assert not parts.all().acquire_leases(uuid4(), 1)
    assert parts.all().leased_by(token).exists()


@on_several_machines
def test_second_check_waits_its_minute_though_the_clocks_of_two_workers_differ(
    bucket: Bucket, store: FaultyStore, with_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store hides the file for a few seconds only."""
    key = bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    act_before_batch(monkeypatch, lambda: hide_key(store, key))
    with clock_of_another_machine(-120):
        run_until_idle(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "deleting"}
    make_due(cleanup)
    with clock_of_another_machine(120):
        run_until_idle(cleanup)
    assert read_outcomes(cleanup) == {key: "deleting"}


@on_several_machines
def test_pass_goes_on_though_the_clocks_of_two_workers_differ(
    bucket: Bucket, settings: Settings
) -> None:
    key = bucket.upload("proj_1")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    cleanup = request_cleanup("proj_1")
    for seconds in (120, 0, 120, 0):
        with clock_of_another_machine(seconds):
            assert runner.run_turn(cleanup.pk)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "deleted"}
    assert not cleanup.events.filter(message__contains="from the beginning").exists()


@on_several_machines
def test_key_stays_barred_when_a_worker_whose_clock_is_behind_takes_over(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")

    def die(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(delete_pipeline, "record_answers", die)
        run_until_idle(cleanup)
    with clock_of_another_machine(-AHEAD.total_seconds()):
        assert read_outcomes(take_over_lease(cleanup)) == {key: "deleted"}
    with clock_of_another_machine((SIGNATURE_LASTS + AHEAD).total_seconds()):
        assert is_key_locked(bucket.name, key)


def test_second_check_follows_though_the_database_clock_was_a_day_ahead(
    bucket: Bucket, store: FaultyStore, with_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, day = bucket.upload("proj_1"), timedelta(days=1)
    cleanup = request_cleanup("proj_1")
    act_before_batch(monkeypatch, lambda: bucket.r2.remove(key, bucket.name))
    with monkeypatch.context() as patch:
        patch.delattr(DatabaseNow, "as_postgresql")
        patch.setattr(
            DatabaseNow,
            "as_sql",
            lambda now, compiler, *others, **context: compiler.compile(
                Value(timezone.now() + now.later + day, now.output_field)
            ),
        )
        assert run_until_idle(cleanup).position.confirm_at
    tasks.sweep()
    cleanup = run_until_idle(cleanup)
    assert cleanup.next_attempt_at
    assert cleanup.next_attempt_at < timezone.now() + timedelta(minutes=2)
    assert read_outcomes(run_again(skip_pause(cleanup))) == {key: "already_gone"}


@on_several_machines
@pytest.mark.parametrize("seconds", [-120, 120])
@pytest.mark.django_db(transaction=True)
def test_cleanup_is_due_at_once_though_the_clock_that_asked_for_it_differs(seconds: int) -> None:
    project = Project.objects.create(pk="proj_1")
    of_model = Cleanup._meta.get_field("next_attempt_at")
    with (
        clock_of_another_machine(seconds),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(of_model, "_get_default", timezone.now)  # It has kept the real clock.
        project.delete()
    assert Cleanup.objects.due().exists()
    cleanup = Cleanup.objects.get()
    with clock_of_another_machine(seconds):
        assert acquire_lease(cleanup)
        cleanup.return_lease(after=timedelta(minutes=1))
    assert cleanup.next_attempt_at
    left = cleanup.next_attempt_at - timezone.now()
    assert timedelta(seconds=50) < left <= timedelta(minutes=1)
