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
from storage_audit.cleanup import delete_batches, delete_pipeline, requests, runner
from storage_audit.cleanup.attention import find_verifications_with_uncovered_leftovers
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.clocks import DatabaseNow
from storage_audit.dashboard import daily_figures
from storage_audit.doctor.models import Diagnosis
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan.models import BucketScan
from storage_audit.storage import key_for
from storage_audit.tracking import upload
from storage_audit.tracking.upload import Upload, is_barred
from tests.builders import create_lost_cleanup
from tests.faults.matching import is_listing
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import (
    acquire_lease,
    again,
    alive,
    between_plan_and_batch,
    delete,
    deleted,
    hide,
    late_check,
    make_due,
    outcomes,
    reason,
    requested,
    run,
    skip_pause,
    take_over_lease,
    track,
)
from tests.real_bucket import Bucket
from tests.scan.listing_in_memory import begin, complete, findings, reconcile, work
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
    assert work(started_now(begin())).status == Status.COMPLETE
    a_year_ahead()
    bucket.r2.remove(key, bucket.name)
    assert reconcile().status == Status.COMPLETE
    assert findings() == {("missing", key)}


def test_scan_that_began_while_the_clock_was_ahead_fails(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(begin())
    a_year_ahead()
    assert work(found).status == Status.FAILED
    assert "The clock was ahead" in found.error
    assert complete()


def test_scan_that_was_killed_while_the_clock_was_ahead_blocks_no_other(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    found = started_now(begin())
    a_year_ahead()
    assert tasks.reconcile() == "another scan is running"
    tasks.sweep()
    found.refresh_from_db()
    assert found.status == Status.FAILED
    assert tasks.reconcile() != "another scan is running"


def test_overview_goes_by_scans_whose_clock_was_right(bucket: Bucket) -> None:
    right, wrong, failed = complete(), complete(), begin()
    failed.fail("no")
    ahead(BucketScan, "started_at")
    BucketScan.objects.filter(pk=wrong.pk).update(finished_at=F("finished_at") + YEAR)
    BucketScan.objects.filter(pk=failed.pk).update(started_at=F("started_at") - YEAR)
    assert daily_figures.last_complete_scan() == right
    assert daily_figures.failed_scan() == failed


def test_findings_of_a_clock_that_was_ahead_are_resolved_and_opened_again(bucket: Bucket) -> None:
    stays, goes, back = (f"projects/proj_x/scenes/s1/media/{n}.mp4" for n in "abc")
    bucket.put(stays, goes, back)
    complete()
    Finding.objects.filter(key=back).resolve("by hand")
    ahead(Finding, "last_seen_at", "decided_at")
    bucket.r2.remove(goes, bucket.name)
    found = complete()
    assert findings() == {("orphaned", stays), ("orphaned", back)}
    assert set(Finding.objects.open().values_list("last_scan", flat=True)) == {found.pk}


# Rows


def test_scan_notes_a_missing_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    assert complete().missing == 1
    assert findings() == {("missing", key)}


def test_scan_notes_a_changed_file_whose_row_has_a_time_to_come(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.put(key, body=b"another")
    complete()
    assert findings() == {("changed", key)}


def test_verification_fails_for_a_missing_file_whose_row_has_a_time_to_come(
    bucket: Bucket,
) -> None:
    key = bucket.upload("proj_1")
    ahead(R2Object, "updated_at")
    bucket.r2.remove(key, bucket.name)
    [operation] = requests.verify_project("proj_1")
    assert run(operation).status == "incomplete"
    assert operation.items.get().reason.startswith("Tracked, but not in the bucket.")


# Uploads and deletions that died meanwhile


def test_cleanup_deletes_the_file_of_an_upload_that_died(
    bucket: Bucket, a_year_ahead: Callable[[], None]
) -> None:
    alive("proj_1")
    upload = Upload(bucket.name, key_for("proj_1", scene="s1", filename="a.mp4")).begin()
    bucket.put(upload.key)
    a_year_ahead()
    assert outcomes(delete("proj_1")) == {upload.key: "deleted"}
    assert not bucket.keys()


def test_upload_that_died_takes_no_name(bucket: Bucket, a_year_ahead: Callable[[], None]) -> None:
    alive("proj_1")
    upload = Upload(bucket.name, key_for("proj_1", scene="s1", filename="a.mp4")).begin()
    a_year_ahead()
    assert bucket.upload("proj_1", "a.mp4") == upload.key


def test_deletion_that_died_bars_no_key(bucket: Bucket, a_year_ahead: Callable[[], None]) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.all().bar()
    a_year_ahead()
    assert not is_barred(bucket.name, key)


def test_marks_of_a_machine_that_is_some_minutes_ahead_count(bucket: Bucket) -> None:
    key, moment = bucket.upload("proj_1"), timezone.now() + timedelta(minutes=10)
    rows = R2Object.objects.all()
    rows.update(state="deleting", updated_at=moment)
    assert is_barred(bucket.name, key)
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
    marked_at = sent_at - timedelta(seconds=delete_batches.PROOF_LASTS)
    unanswered, deleting = create_lost_cleanup().items, create_lost_cleanup().items
    unanswered.create(key="a", identity="a", outcome="deleted", unanswered_at=sent_at)
    deleting.create(key="b", identity="b", outcome="deleting", changed_at=marked_at)
    R2Object.objects.create(bucket="tests", key="c", state="deleting", updated_at=marked_at)
    late((of_sender if ago else timedelta(0)) + ago + of_web)
    assert [key for key in "abcd" if is_barred("tests", key)] == ["a", "b", "c"]


# Cleanups and verifications


def test_cleanup_that_ended_while_the_clock_was_ahead_is_no_sign_of_a_worker(
    bucket: Bucket,
) -> None:
    alive("proj_1")
    delete("proj_1")
    assert lateness.gets_on()
    ahead(CleanupOperation, "finished_at")
    assert not lateness.gets_on()


@pytest.mark.parametrize("of_first, of_second", [(YEAR, 0 * YEAR), (0 * YEAR, YEAR)])
def test_verification_tells_of_remains_whatever_the_clock_said_before(
    bucket: Bucket, of_first: timedelta, of_second: timedelta
) -> None:
    deleted("proj_1")
    [first] = requests.verify_project("proj_1")
    assert run(first).status == "clean"
    CleanupOperation.objects.update(finished_at=F("finished_at") + of_first)
    key = "projects/proj_1/scenes/s1/media/a.mp4"
    bucket.put(key)
    [second] = requests.verify_project("proj_1")
    assert run(second).status == "incomplete"
    assert find_verifications_with_uncovered_leftovers().get() == second
    ahead(KnownProject, "deleted_at")
    assert find_verifications_with_uncovered_leftovers().get() == second
    bucket.r2.remove(key, bucket.name)
    CleanupOperation.objects.filter(pk=second.pk).update(finished_at=F("finished_at") + of_second)
    [third] = requests.verify_project("proj_1")
    assert run(third).status == "clean"
    assert not find_verifications_with_uncovered_leftovers()


@pytest.mark.django_db
def test_open_cleanup_of_a_time_to_come_is_overdue() -> None:
    CleanupOperation.objects.request(
        kind="project", bucket="tests", project_id="proj_1", trigger="deleted"
    )
    overdue = find_overdue(timezone.now() - timedelta(days=1))
    assert not overdue
    ahead(CleanupOperation, "created_at")
    assert overdue.all()


@pytest.mark.django_db
def test_examination_of_a_time_to_come_is_not_the_latest() -> None:
    for n in range(3):
        Diagnosis.objects.create(context="web", host="a", pid=n)
    ahead(Diagnosis, "at")
    latest = Diagnosis.objects.create(context="web", host="a", pid=9)
    assert Diagnosis.objects.latest_first().first() == latest
    Diagnosis.objects.prune(2)
    assert latest in Diagnosis.objects.all()


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
    alive("proj_1")
    late(timedelta(minutes=minutes))
    Project.objects.get(pk="proj_1").delete()
    late(timedelta(0))
    CleanupOperation.objects.update(next_attempt_at=timezone.now())
    operation = run(CleanupOperation.objects.get())
    bucket.put(AMBIGUOUS)
    late(timedelta(hours=2))
    found = late_check(operation)
    assert outcomes(found) == {AMBIGUOUS: "protected"}
    assert "younger than the deletion" in reason(found, AMBIGUOUS)


@pytest.mark.parametrize("passed", [timedelta(0), timedelta(hours=3)])
def test_object_stays_that_may_be_written_after_its_row_was_deleted(
    bucket: Bucket, late: Callable[[timedelta], None], passed: timedelta
) -> None:
    alive("proj_1")
    key = key_for("proj_1", scene="s1", filename="a.mp4")
    track(bucket, key, "proj_1", state="upload_failed").delete()
    bucket.put(key)
    CleanupOperation.objects.update(
        created_at=timezone.now() + timedelta(hours=2), started_at=timezone.now()
    )
    late(passed)
    operation = run(CleanupOperation.objects.get())
    assert outcomes(operation) == {key: "protected"}
    assert "may have been written after" in reason(operation, key)
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
    [operation] = requests.verify_project("proj_1")
    assert run(operation).status == "clean"
    assert not store.rules


def test_scan_sees_a_file_that_a_clock_behind_dates_before_it(
    bucket: Bucket, store: FaultyStore
) -> None:
    bucket.upload("proj_1", "a.mp4")
    upload_after_the_listing(bucket, store, timedelta(hours=1))
    found = complete("projects/proj_1/")
    assert not store.rules
    assert not found.missing
    assert not findings()


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
    operation = create_lost_cleanup()
    with clock_of_another_machine(of_first):
        assert acquire_lease(operation)
        operation.renew()
    CleanupOperation.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
    with clock_of_another_machine(of_second):
        assert not acquire_lease(CleanupOperation.objects.get())
        assert not CleanupOperation.objects.due().exists()
    operation.renew()


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
        assert parts.all().claim(token, 1)
        assert parts.all().renew(token) == 1
    with clock_of_another_machine(of_second):
        assert not parts.all().claim(uuid4(), 1)
    assert parts.all().held_by(token).exists()


@on_several_machines
def test_second_look_waits_its_minute_though_the_clocks_of_two_workers_differ(
    bucket: Bucket, store: FaultyStore, unhurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store hides the file for a few seconds only."""
    key = bucket.upload("proj_1")
    operation = requested("proj_1")
    between_plan_and_batch(monkeypatch, lambda: hide(store, key))
    with clock_of_another_machine(-120):
        run(operation)
    assert outcomes(run(operation)) == {key: "deleting"}
    make_due(operation)
    with clock_of_another_machine(120):
        run(operation)
    assert outcomes(operation) == {key: "deleting"}


@on_several_machines
def test_pass_goes_on_though_the_clocks_of_two_workers_differ(
    bucket: Bucket, settings: Settings
) -> None:
    key = bucket.upload("proj_1")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SLICE": timedelta(0)}
    operation = requested("proj_1")
    for seconds in (120, 0, 120, 0):
        with clock_of_another_machine(seconds):
            assert runner.run_slice(operation.pk)
    assert outcomes(run(operation)) == {key: "deleted"}
    assert not operation.events.filter(message__contains="from the beginning").exists()


@on_several_machines
def test_key_stays_barred_when_a_worker_whose_clock_is_behind_takes_over(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    operation = requested("proj_1")

    def die(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(delete_pipeline, "record_answers", die)
        run(operation)
    with clock_of_another_machine(-AHEAD.total_seconds()):
        assert outcomes(take_over_lease(operation)) == {key: "deleted"}
    with clock_of_another_machine((SIGNATURE_LASTS + AHEAD).total_seconds()):
        assert is_barred(bucket.name, key)


def test_second_look_follows_though_the_database_clock_was_a_day_ahead(
    bucket: Bucket, store: FaultyStore, unhurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, day = bucket.upload("proj_1"), timedelta(days=1)
    operation = requested("proj_1")
    between_plan_and_batch(monkeypatch, lambda: bucket.r2.remove(key, bucket.name))
    with monkeypatch.context() as patch:
        patch.delattr(DatabaseNow, "as_postgresql")
        patch.setattr(
            DatabaseNow,
            "as_sql",
            lambda now, compiler, *others, **context: compiler.compile(
                Value(timezone.now() + now.later + day, now.output_field)
            ),
        )
        assert "again_at" in run(operation).cursor
    tasks.sweep()
    operation = run(operation)
    assert operation.next_attempt_at
    assert operation.next_attempt_at < timezone.now() + timedelta(minutes=2)
    assert outcomes(again(skip_pause(operation))) == {key: "already_absent"}


@on_several_machines
@pytest.mark.parametrize("seconds", [-120, 120])
@pytest.mark.django_db(transaction=True)
def test_cleanup_is_due_at_once_though_the_clock_that_asked_for_it_differs(seconds: int) -> None:
    project = Project.objects.create(pk="proj_1")
    of_model = CleanupOperation._meta.get_field("next_attempt_at")
    with (
        clock_of_another_machine(seconds),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(of_model, "_get_default", timezone.now)  # It has kept the real clock.
        project.delete()
    assert CleanupOperation.objects.due().exists()
    operation = CleanupOperation.objects.get()
    with clock_of_another_machine(seconds):
        assert acquire_lease(operation)
        operation.hand_over(after=timedelta(minutes=1))
    assert operation.next_attempt_at
    left = operation.next_attempt_at - timezone.now()
    assert timedelta(seconds=50) < left <= timedelta(minutes=1)
