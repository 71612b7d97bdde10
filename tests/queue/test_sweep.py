"""The sweep finds what no signal told of, and what the queue has lost."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from django_q.tasks import async_task

from storage_audit import queue, tasks
from storage_audit.alerts import lateness
from storage_audit.alerts.models import Delivery, Notification
from storage_audit.cleanup import vanished_projects
from storage_audit.cleanup.bulk import enqueue_bulk_job
from storage_audit.cleanup.make_cleanups import enqueue_cleanup
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.cleanup.models.lease_and_status import MAX_JITTER_FACTOR
from storage_audit.conf import conf
from storage_audit.debug import strategy_benchmark
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan.models import BucketScan
from storage_audit.scan.start import send_workers
from tests.builders import create_lost_cleanup, track_keys
from tests.database import Rollback
from tests.queue.clusters import list_enqueued_ids
from tests.real_bucket import Bucket
from tests.times import YEAR

pytestmark = pytest.mark.usefixtures("transactional_db")
Status, Trigger = Cleanup.Status, Cleanup.Trigger
NOTHING = {"vanished": 0, "enqueued": 0}


def delete_with_sql(project_id: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM storage_audit_project WHERE id = %s", [project_id])


# Projects that vanish


@pytest.mark.parametrize("way", ["_raw_delete", "SQL"])
def test_a_project_deleted_past_django_is_noticed_once(way: str) -> None:
    Project.objects.create(pk="proj_1")
    Project.objects.create(pk="proj_2")
    if way == "SQL":
        delete_with_sql("proj_1")
    else:
        Project.objects.filter(pk="proj_1")._raw_delete("default")
    assert tasks.sweep() == {"vanished": 1, "enqueued": 0}
    cleanup = Cleanup.objects.get()
    assert (cleanup.status, cleanup.trigger) == (Status.BLOCKED, Trigger.VANISHED)
    assert cleanup.project_id == "proj_1"
    assert "proj_1" in cleanup.message and "approve this cleanup" in cleanup.message
    known = KnownProject.objects.get(pk="proj_1")
    assert known.evidence == "vanished"
    assert known.deleted_at == cleanup.project_deleted_at
    assert tasks.sweep() == NOTHING
    assert Cleanup.objects.count() == 1
    assert not OrmQ.objects.exists()


def test_a_vanished_project_with_objects_in_two_buckets_is_one_project() -> None:
    Project.objects.create(pk="proj_1")
    track_keys("a", bucket="other")
    delete_with_sql("proj_1")
    assert tasks.sweep()["vanished"] == 1
    assert {each.status for each in Cleanup.objects.all()} == {Status.BLOCKED}
    assert Cleanup.objects.count() == 2


def test_an_approved_cleanup_of_a_vanished_project_is_enqueued() -> None:
    Project.objects.create(pk="proj_1")
    delete_with_sql("proj_1")
    tasks.sweep()
    cleanup = Cleanup.objects.get()
    cleanup.approve("ada")
    assert tasks.sweep() == {"vanished": 0, "enqueued": 1}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_project_made_without_a_signal_is_remembered_and_its_vanishing_noticed() -> None:
    Project.objects.bulk_create([Project(pk="proj_1"), Project(pk="proj_2")])
    assert tasks.sweep() == NOTHING
    assert KnownProject.objects.get(pk="proj_1").evidence == "seen"
    delete_with_sql("proj_1")
    assert tasks.sweep()["vanished"] == 1
    assert Cleanup.objects.get().project_id == "proj_1"


def test_an_id_that_comes_back_without_a_signal_is_alive_again() -> None:
    Project.objects.create(pk="proj_1")
    delete_with_sql("proj_1")
    tasks.sweep()
    Project.objects.bulk_create([Project(pk="proj_1")])
    assert tasks.sweep() == NOTHING
    assert KnownProject.objects.get().deleted_at is None
    delete_with_sql("proj_1")
    assert tasks.sweep()["vanished"] == 1
    assert Cleanup.objects.count() == 2


def test_a_deletion_by_the_application_is_not_noticed_as_vanished() -> None:
    for project_id in ("proj_1", "proj_2"):
        Project.objects.create(pk=project_id)
    tasks.sweep()
    Project.objects.get(pk="proj_1").delete()
    assert tasks.sweep()["vanished"] == 0
    assert Cleanup.objects.count() == 1


def test_a_deletion_that_comes_between_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of vanished ids is read; before the first is recorded, somebody else has it."""
    Project.objects.create(pk="proj_1")
    delete_with_sql("proj_1")
    remember = vanished_projects.record_living_projects

    def while_another_sweeps() -> None:
        remember()
        monkeypatch.undo()
        gone = KnownProject.objects.vanished()
        assert [each.pk for each in gone] == ["proj_1"]

    monkeypatch.setattr(vanished_projects, "record_living_projects", while_another_sweeps)
    assert tasks.sweep()["vanished"] == 1
    assert not vanished_projects.block_vanished_project("proj_1")
    assert Cleanup.objects.count() == 1


def test_a_project_restored_before_it_is_recorded_is_left_alone() -> None:
    Project.objects.create(pk="proj_1")
    assert not vanished_projects.block_vanished_project("proj_1")
    assert not Cleanup.objects.exists()
    assert KnownProject.objects.get().deleted_at is None


def test_trouble_with_vanished_projects_does_not_keep_lost_tasks_from_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleanup = create_lost_cleanup()
    monkeypatch.setattr(vanished_projects, "check_vanished_projects", lambda: 1 / 0)
    with suppress(ZeroDivisionError):
        tasks.sweep()
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_rolled_back_project_does_not_vanish() -> None:
    with suppress(Rollback), transaction.atomic():
        Project.objects.create(pk="proj_1")
        tasks.sweep()
        raise Rollback
    assert tasks.sweep() == NOTHING


def test_many_unknown_projects_are_remembered_in_few_queries() -> None:
    Project.objects.bulk_create([Project(pk=f"proj_{n}") for n in range(3000)])
    assert tasks.sweep() == NOTHING
    assert KnownProject.objects.filter(deleted_at=None).count() == 3000


# Tasks that got lost


def test_a_deletion_whose_task_was_lost_is_enqueued_again() -> None:
    Project.objects.create(pk="proj_1").delete()
    OrmQ.objects.all().delete()
    cleanup = Cleanup.objects.get()
    assert tasks.sweep() == NOTHING  # Its task was there a moment ago.
    Cleanup.objects.update(enqueued_at=timezone.now() - timedelta(seconds=61))
    assert tasks.sweep() == {"vanished": 0, "enqueued": 1}
    assert list_enqueued_ids() == [str(cleanup.pk)]
    assert tasks.sweep() == NOTHING


def test_a_deletion_that_was_never_enqueued_is_enqueued() -> None:
    cleanup = create_lost_cleanup(enqueued_at=None, next_attempt_at=timezone.now())
    tasks.sweep()
    assert list_enqueued_ids() == [str(cleanup.pk)]


@pytest.mark.parametrize("status", ["pending", "running", "retrying", "failed"])
def test_what_is_due_is_enqueued(status: str) -> None:
    cleanup = create_lost_cleanup(status=status)
    tasks.sweep()
    assert list_enqueued_ids() == [str(cleanup.pk)]


@pytest.mark.parametrize("status", ["planned", "clean", "blocked", "superseded"])
def test_what_waits_for_a_person_or_has_ended_is_not_enqueued(status: str) -> None:
    create_lost_cleanup(status=status)
    assert tasks.sweep() == NOTHING


@pytest.mark.parametrize("seconds, expected", [(30, 0), (-1, 1)])
def test_what_a_worker_holds_is_enqueued_only_when_its_lease_is_over(
    seconds: int, expected: int
) -> None:
    create_lost_cleanup(status="running", lease_until=timezone.now() + timedelta(seconds=seconds))
    assert tasks.sweep() == {"vanished": 0, "enqueued": expected}


def test_what_is_not_due_yet_is_not_enqueued() -> None:
    create_lost_cleanup(status="retrying", next_attempt_at=timezone.now() + timedelta(seconds=30))
    assert tasks.sweep() == NOTHING


def test_a_queue_that_is_stuck_is_not_filled_up() -> None:
    for _ in range(103):
        create_lost_cleanup()
    assert tasks.sweep() == {"vanished": 0, "enqueued": 100}
    Cleanup.objects.update(enqueued_at=None)
    assert tasks.sweep() == NOTHING
    assert OrmQ.objects.count() == 100
    # Tasks that a cluster has taken do not wait in the queue.
    taken = OrmQ.objects.order_by("pk").values_list("pk", flat=True)[:2]
    OrmQ.objects.filter(pk__in=list(taken)).update(lock=timezone.now() + timedelta(minutes=5))
    assert tasks.sweep() == {"vanished": 0, "enqueued": 2}


def test_tasks_of_another_cluster_do_not_keep_ours_from_the_queue() -> None:
    waiting = timezone.now() - timedelta(hours=1)
    OrmQ.objects.bulk_create(OrmQ(key="mails", payload="", lock=waiting) for _ in range(100))
    cleanup = create_lost_cleanup()
    assert tasks.sweep() == {"vanished": 0, "enqueued": 1}
    (task,) = OrmQ.objects.filter(key="autoshorts")
    assert task.task["args"] == (str(cleanup.pk),)
    assert lateness.waiting_task() is None


def test_tasks_of_the_site_in_our_cluster_do_not_keep_ours_from_the_queue() -> None:
    for number in range(100):
        async_task("newsroom.mails.send", number, group="mails")
    cleanup = create_lost_cleanup()
    assert tasks.sweep()["enqueued"] == 1
    assert str(cleanup.pk) in list_enqueued_ids()


def test_only_the_latest_tasks_are_asked_whether_they_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "MAX_TASKS_READ", 2)
    cleanups = [create_lost_cleanup() for _ in range(5)]
    for cleanup in cleanups:
        enqueue_cleanup(cleanup.pk)
    assert queue.count_own_ready_tasks(timezone.now()) == 2


def test_the_longest_due_are_enqueued_first() -> None:
    now = timezone.now()
    later = create_lost_cleanup(next_attempt_at=now - timedelta(minutes=2))
    sooner = create_lost_cleanup(next_attempt_at=now - timedelta(minutes=3))
    tasks.sweep()
    assert list_enqueued_ids() == [str(sooner.pk), str(later.pk)]


def test_a_task_of_a_cleanup_that_does_not_exist_is_not_made() -> None:
    cleanup = create_lost_cleanup()
    pk = cleanup.pk
    Cleanup.objects.all().delete()
    enqueue_cleanup(pk)
    assert not OrmQ.objects.exists()


# Clocks that were ahead


def lease_only_cleanup() -> Cleanup:
    [cleanup] = Cleanup.objects.all()
    with transaction.atomic():
        assert cleanup.acquire_lease()
    return cleanup


def postponed(*, hopeless: bool = False) -> None:
    cleanup = lease_only_cleanup()
    cleanup.postpone("no", cleanup.items.totals(), hopeless=hopeless)


@pytest.mark.parametrize(
    "at",
    [
        lambda: None,
        lease_only_cleanup,
        lambda: lease_only_cleanup().return_lease(),
        postponed,
        partial(postponed, hopeless=True),
    ],
    ids=["requested", "claimed", "handed over", "postponed", "failed"],
)
def test_what_a_clock_that_was_ahead_has_put_off_is_done_at_once(
    a_year_ahead: Callable[[], None], at: Callable[[], object]
) -> None:
    Project.objects.create(pk="proj_1").delete()
    at()
    a_year_ahead()
    assert tasks.sweep() == {"vanished": 0, "enqueued": 1}
    cleanup = lease_only_cleanup()
    assert cleanup.next_attempt_at and cleanup.next_attempt_at < timezone.now() + YEAR / 2


def test_pauses_that_were_meant_are_kept() -> None:
    now, settings = timezone.now(), conf()
    longest = [
        ("pending", Trigger.FOLLOW_UP, settings.follow_up_checks[-1]),
        ("pending", Trigger.BENCHMARK, strategy_benchmark.MAX_WRITE_TIME),
        ("running", Trigger.DELETED, settings.retry_longest),
        ("retrying", Trigger.DELETED, settings.retry_longest * MAX_JITTER_FACTOR),
        ("failed", Trigger.DELETED, settings.retry_failed_every * MAX_JITTER_FACTOR),
    ]
    for status, trigger, pause in longest:
        create_lost_cleanup(status=status, trigger=trigger, next_attempt_at=now + pause)
    due = set(Cleanup.objects.values_list("next_attempt_at", flat=True))
    assert tasks.sweep() == NOTHING
    assert set(Cleanup.objects.values_list("next_attempt_at", flat=True)) == due


def test_bulk_jobs_and_scans_of_a_clock_that_was_ahead_get_a_worker(
    a_year_ahead: Callable[[], None],
) -> None:
    job = BulkJob.objects.request(BulkJob.Action.VERIFY, ["proj_1"])
    BulkJob.objects.update(created_at=timezone.now())
    enqueue_bulk_job(job.pk)
    scan = BucketScan.objects.create(bucket="tests")
    scan.shards.create(prefix="")
    token = uuid4()
    [shard] = scan.shards.all().acquire_leases(token, 1)
    send_workers(scan, 1)
    a_year_ahead()
    OrmQ.objects.all().delete()
    tasks.sweep()
    assert list_enqueued_ids() == [str(job.pk), str(scan.pk)]
    assert not scan.shards.all().leased_by(token).exists()
    assert scan.shards.all().acquire_leases(uuid4(), 1) == [shard]


def test_message_of_a_clock_that_was_ahead_is_sent(a_year_ahead: Callable[[], None]) -> None:
    delivery = Notification.objects.create().deliveries.create(
        channel="email", recipient="a@example.com"
    )
    assert delivery.acquire_lease()
    a_year_ahead()
    tasks.sweep()
    assert Delivery.objects.due(timezone.now()).get() == delivery


def test_sweeps_that_a_clock_that_was_ahead_has_put_off_are_noticed_and_brought_forward() -> None:
    first, second = Schedule.objects.filter(func=queue.SWEEP).order_by("next_run")
    [reconcile] = Schedule.objects.filter(func=queue.RECONCILE)
    Schedule.objects.update(next_run=F("next_run") + YEAR)
    late = lateness.late_sweep()
    assert late is not None and "a clock was wrong" in late.text
    tasks.sweep()
    soon = timezone.now() + timedelta(minutes=1)
    for schedule in (first, second):
        before = schedule.next_run
        schedule.refresh_from_db()
        assert timezone.now() <= schedule.next_run <= soon
        assert schedule.next_run.second == before.second
    assert lateness.late_sweep() is None
    reconcile.refresh_from_db()
    assert reconcile.next_run <= soon


# The schedule


def test_the_sweep_is_scheduled_once_however_often_migrate_runs() -> None:
    Schedule.objects.all().delete()
    for _ in range(2):
        call_command("migrate", verbosity=0)
    schedules = Schedule.objects.filter(func=queue.SWEEP).order_by("next_run")
    assert list(schedules.values_list("func", "minutes", "repeats")) == [
        ("storage_audit.tasks.sweep", 1, -1),
        ("storage_audit.tasks.sweep", 1, -1),
    ]
    first, second = schedules
    assert second.next_run - first.next_run == timedelta(seconds=30)


def test_a_schedule_that_a_person_made_does_not_stop_migrate() -> None:
    schedule = Schedule.objects.earliest("pk")
    schedule.pk = None
    schedule.save()
    call_command("migrate", verbosity=0)
    assert Schedule.objects.filter(func=queue.SWEEP).count() == 3


def test_what_a_person_changed_in_the_schedule_stays() -> None:
    sweeps = Schedule.objects.filter(func=queue.SWEEP)
    sweeps.update(minutes=5)
    queue.create_schedules()
    assert set(sweeps.values_list("minutes", flat=True)) == {5}


def test_the_sweep_touches_no_row_of_an_object() -> None:
    rows = track_keys("a")
    Project.objects.create(pk="proj_1")
    delete_with_sql("proj_1")
    tasks.sweep()
    assert list(R2Object.objects.all()) == rows


def test_what_waits_for_another_cleanup_of_its_project_follows_it_at_once(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    of_project = {"kind": Cleanup.Kind.VERIFY, "project_id": "proj_1"}
    first, second = create_lost_cleanup(**of_project), create_lost_cleanup(**of_project)
    create_lost_cleanup(project_id="proj_2")
    tasks.run_cleanup(str(first.pk))
    assert list_enqueued_ids() == [str(second.pk)]
