"""One thing asked for of many projects at once: one bulk job, of which each project gets its
cleanups once, whoever dies meanwhile or does the same."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import PROTECT, ForeignKey, Model, ProtectedError, QuerySet, TextField
from django.db.models.signals import post_delete, pre_delete
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import tasks
from storage_audit.cleanup import bulk, make_cleanups, requests
from storage_audit.cleanup.bulk import enqueue_bulk_job, enqueue_bulk_on_commit
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.models import Project
from storage_audit.projects.admin.projects import ProjectAdmin
from storage_audit.request_origin import Origin, use_origin
from tests.admin_client import (
    admin_url,
    client_for,
    confirmation_fields,
    is_page_of_all_cleanups,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import track_keys
from tests.database import Rollback
from tests.faults.matching import is_anything, rule_for
from tests.faults.proxy import RESET_REPLY, FaultyStore
from tests.owner_models import create_table
from tests.queue.clusters import list_enqueued_ids
from tests.real_bucket import Bucket

pytestmark = pytest.mark.usefixtures("transactional_db")
Action, Status = BulkJob.Action, Cleanup.Status
ANNA = Origin("anna", "web, 127.0.0.1")
SECONDS = 20


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PROJECTS_PER_TRANSACTION", 3)


def projects(count: int) -> list[str]:
    made = Project.objects.bulk_create(Project(pk=f"proj_{n:03}") for n in range(count))
    return [project.pk for project in made]


def asked(count: int, action: str = Action.VERIFY) -> BulkJob:
    superuser_client()
    with use_origin(ANNA):
        return BulkJob.objects.request(action, projects(count))


def begin(client: Client, action: str = "verify_cleanup") -> Any:
    """Select all projects across the pages, as the list's form does."""
    data = {"action": action, "_selected_action": "proj_000", "select_across": "1"}
    return client.post(admin_url("project"), data)


def work(bulk_job: BulkJob) -> None:
    """What workers do: each task once, in the order of the queue; the cleanups' own tasks end
    without work."""
    while job_tasks := [each for each in OrmQ.objects.order_by("pk") if is_of(each, bulk_job)]:
        job_tasks[0].delete()
        tasks.run_job(str(bulk_job.pk))


def is_of(task: OrmQ, bulk_job: BulkJob) -> bool:
    return bool(task.task["args"] == (str(bulk_job.pk),))


def made_for() -> Counter[str | None]:
    return Counter(Cleanup.objects.values_list("project_id", flat=True))


def once(count: int) -> Counter[str | None]:
    return Counter(f"proj_{n:03}" for n in range(count))


# The request


def test_500_projects_become_one_bulk_job_by_as_many_queries_as_two() -> None:
    client = superuser_client()

    def queries(count: int) -> int:
        Project.objects.all()._raw_delete("default")
        projects(count)
        with CaptureQueriesContext(connection) as captured:
            assert begin(client).status_code == 302
        return len(captured)

    queries(2)  # Django keeps some of what it asks for.
    assert queries(2) == queries(500)
    latest = BulkJob.objects.latest("created_at")
    assert latest.project_ids == [f"proj_{n:03}" for n in range(500)]
    assert not Cleanup.objects.exists()
    assert list_enqueued_ids()[-1] == str(latest.pk)


@pytest.mark.parametrize(
    ("action", "trigger", "dry_run"),
    [("verify_cleanup", "verify", False), ("dry_run_cleanup", "dry_run", True)],
)
def test_each_project_has_its_cleanup_in_the_name_of_who_asked(
    action: str, trigger: str, dry_run: bool
) -> None:
    projects(7)
    answer = begin(superuser_client(), action)
    job = BulkJob.objects.get()
    assert answer.headers["Location"] == admin_url("bulkjob", "change", job.pk)
    work(job)
    assert made_for() == once(7)
    for cleanup in Cleanup.objects.all():
        told = (cleanup.requested_by, cleanup.origin, cleanup.trigger, cleanup.dry_run)
        assert told == ("anna", "web, 127.0.0.1", trigger, dry_run)
        assert cleanup.bulk_job == job and cleanup.enqueued_at
    assert LogEntry.objects.get().change_message == "Requested of 7 projects."


def test_a_project_in_two_buckets_has_a_cleanup_in_each() -> None:
    job = asked(4)
    track_keys("a", project="proj_002", bucket="other")
    enqueue_bulk_job(job.pk)
    work(job)
    assert made_for() == once(4) + Counter(["proj_002"])


def test_a_project_that_went_meanwhile_is_verified_all_the_same() -> None:
    job = asked(4)
    Project.objects.filter(pk="proj_001")._raw_delete("default")
    enqueue_bulk_job(job.pk)
    work(job)
    assert made_for() == once(4)


def test_one_project_alone_has_no_bulk_job() -> None:
    projects(2)
    shown = run_action(superuser_client(), "project", "verify_cleanup", "proj_001")
    assert "A verification is queued." in shown
    assert made_for() == Counter(["proj_001"])
    assert not BulkJob.objects.exists()


def test_a_request_that_is_rolled_back_leaves_nothing() -> None:
    with pytest.raises(Rollback), transaction.atomic():
        enqueue_bulk_on_commit(asked(4))
        # A worker must not look for what is not committed yet.
        assert not OrmQ.objects.exists()
        raise Rollback
    assert not BulkJob.objects.exists()
    assert not OrmQ.objects.exists()


def test_with_sync_few_are_done_in_the_request_and_many_refused(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    projects(3)
    client = superuser_client()
    begin(client)
    job = BulkJob.objects.get()
    assert job.finished_at
    assert {each.status for each in job.cleanups.all()} == {Status.CLEAN}
    Project.objects.create(pk="proj_003")
    shown = page_text(client.get(begin(client).headers["Location"]))
    assert "Nothing was done: with the setting CLEANUP_SYNC there are no workers" in shown
    assert BulkJob.objects.count() == 1


# Deletions


def confirm_all(client: Client, action: str) -> Any:
    """Select all projects across the pages, and say yes on the page that asks."""
    asked = page_text(begin(client, action))
    [digest] = re.findall('name="digest" value="(.*?)"', asked)
    data = {"action": action, "_selected_action": "proj_000", "select_across": "1"}
    return client.post(admin_url("project"), data | {"post": "yes", "digest": digest})


@pytest.mark.parametrize(
    ("action", "trigger", "limits_waived_by"),
    [("delete_selected", "deleted", ""), ("force_delete", "forced", "anna")],
)
def test_deleting_many_projects_is_a_bulk_job_and_each_has_its_cleanup(
    action: str, trigger: str, limits_waived_by: str
) -> None:
    projects(7)
    answer = confirm_all(superuser_client(), action)
    job = BulkJob.objects.get()
    assert answer.headers["Location"] == admin_url("bulkjob", "change", job.pk)
    assert Project.objects.count() == 7, "they are deleted in the request"
    work(job)
    assert not Project.objects.exists()
    assert made_for() == once(7)
    for cleanup in Cleanup.objects.all():
        told = (cleanup.requested_by, cleanup.origin, cleanup.trigger, cleanup.limits_waived_by)
        assert told == ("anna", "web, 127.0.0.1", trigger, limits_waived_by)
        assert cleanup.bulk_job == job
    by_task = Counter(list_enqueued_ids())
    assert [by_task[str(pk)] for pk in Cleanup.objects.values_list("pk", flat=True)] == ([1] * 7)


def test_deleting_many_projects_costs_as_many_queries_in_the_request_as_deleting_some() -> None:
    client = superuser_client()

    def queries(count: int) -> int:
        Project.objects.all()._raw_delete("default")
        projects(count)
        with CaptureQueriesContext(connection) as captured:
            assert confirm_all(client, "delete_selected").status_code == 302
        return len(captured)

    queries(4)  # Django keeps some of what it asks for.
    assert queries(4) == queries(80)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("action", ["delete_selected", "force_delete"])
def test_page_asks_again_when_an_id_is_of_another_project_by_now(action: str, count: int) -> None:
    projects(count)
    client = superuser_client()
    asked = page_text(begin(client, action))
    delete_and_save("proj_001")
    before = Cleanup.objects.count()
    across = {"select_across": "1", **confirmation_fields(asked)}
    again = run_action(client, "project", action, "proj_000", **across)
    assert "Nothing was done: your selection changed" in again
    assert Project.objects.count() == count and not BulkJob.objects.exists()
    run_action(client, "project", action, "proj_000", **(across | confirmation_fields(again)))
    assert Cleanup.objects.count() > before or BulkJob.objects.exists()


def test_deleting_few_projects_is_done_at_once() -> None:
    projects(3)
    client = superuser_client()
    shown = page_text(client.get(confirm_all(client, "delete_selected").url))
    assert "Deleting the files of 3 projects now." in shown
    assert not Project.objects.exists() and is_page_of_all_cleanups(shown)


def test_a_deletion_goes_on_behind_projects_that_are_already_gone(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    job = asked(7, Action.DELETE)
    Project.objects.filter(pk__lt="proj_004")._raw_delete("default")
    enqueue_bulk_job(job.pk)
    work(job)
    assert not Project.objects.exists()
    assert made_for() == once(7) - once(4)
    assert f"Bulk job {job.pk} skips project proj_003: it is already gone" in caplog.text
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "3 of 3 cleanups are not finished yet." in shown
    assert "Not deleted by this bulk job: 4. The log says why." in shown
    for cleanup in job.cleanups.all():
        tasks.run_cleanup(str(cleanup.pk))
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Done. All cleanups are finished." in shown


def delete_and_save(project_id: str) -> None:
    Project.objects.get(pk=project_id).delete()
    Project.objects.create(pk=project_id)


def delete_and_insert(project_id: str) -> None:
    """The deletion is on record; no signal tells of the new project."""
    Project.objects.get(pk=project_id).delete()
    Project.objects.bulk_create([Project(pk=project_id)])


def delete_and_insert_before_a_sweep(project_id: str) -> None:
    delete_and_insert(project_id)
    tasks.sweep()


def replace_without_a_deletion(project_id: str) -> None:
    Project.objects.filter(pk=project_id)._raw_delete("default")
    Project.objects.create(pk=project_id)


@pytest.mark.parametrize(
    "replace",
    [
        delete_and_save,
        delete_and_insert,
        delete_and_insert_before_a_sweep,
        replace_without_a_deletion,
    ],
)
def test_bulk_job_keeps_a_project_that_was_created_after_the_request(
    bucket: Bucket, replace: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    job = asked(3, Action.DELETE)
    replace("proj_001")
    key = bucket.upload("proj_001")
    made = bulk.process_next_projects(job)
    assert {each.project_id for each in made} == {"proj_000", "proj_002"}
    for cleanup in Cleanup.objects.all():
        tasks.run_cleanup(str(cleanup.pk))
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]
    assert bucket.keys() == {key}
    reason = "proj_001: it was deleted or created again after the request"
    assert f"Bulk job {job.pk} skips project {reason}" in caplog.text
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Not deleted by this bulk job: 1. The log says why." in shown


@pytest.mark.parametrize("off", [timedelta(days=365), -timedelta(days=365)])
def test_bulk_job_tells_projects_apart_whatever_its_clock_said(off: timedelta) -> None:
    job = asked(3, Action.DELETE)
    job.created_at += off
    job.save()
    delete_and_save("proj_001")
    made = bulk.process_next_projects(job)
    assert {each.project_id for each in made} == {"proj_000", "proj_002"}
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]


def test_bulk_job_deletes_a_project_that_was_created_again_before_the_request() -> None:
    projects(1)
    delete_and_save("proj_000")
    superuser_client()
    with use_origin(ANNA):
        job = BulkJob.objects.request(Action.DELETE, ["proj_000"])
    Project.objects.get().save()
    assert len(bulk.process_next_projects(job)) == 1
    assert not Project.objects.exists()


def test_bulk_job_deletes_a_project_that_was_first_seen_after_the_request() -> None:
    job = asked(2, Action.DELETE)
    Project.objects.get(pk="proj_000").save()
    tasks.sweep()
    assert len(bulk.process_next_projects(job)) == 2


def test_a_project_that_may_not_be_deleted_stays_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, delete = asked(4, Action.DELETE), Project.delete

    def refuse(project: Project, *args: Any, **kwargs: Any) -> Any:
        if project.pk == "proj_001":
            raise ProtectedError("It is invoiced.", set())
        return delete(project, *args, **kwargs)

    monkeypatch.setattr(Project, "delete", refuse)
    enqueue_bulk_job(job.pk)
    work(job)
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]
    assert made_for() == once(4) - Counter(["proj_001"])


def deactivate(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def dismiss(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_staff=False)


def take_permission(name: str) -> Callable[[User], None]:
    def take(user: User) -> None:
        user.user_permissions.remove(Permission.objects.get(codename=name))

    return take


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (deactivate, "ben can no longer sign in to the admin."),
        (dismiss, "ben can no longer sign in to the admin."),
        (User.delete, "ben can no longer sign in to the admin."),
        (
            take_permission("delete_project"),
            "no longer has the permission storage_audit.delete_project.",
        ),
        (
            take_permission("force_cleanup"),
            "no longer has the permission storage_audit.force_cleanup.",
        ),
    ],
)
def test_deletion_stops_when_the_person_may_not_delete_any_more(
    lose: Callable[[User], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    projects(7)
    confirm_all(staff_client("delete_project", "force_cleanup"), "force_delete")
    job = BulkJob.objects.get()
    tasks.run_job(str(job.pk))
    assert Project.objects.count() == 4
    lose(User.objects.get(username="ben"))
    work(job)
    assert Project.objects.count() == 4 and made_for() == once(3)
    job.refresh_from_db()
    assert job.finished_at and reason in job.stop_reason and reason in caplog.text
    tasks.run_job(str(job.pk))
    assert Project.objects.count() == 4
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Stopped after 3 of 7 projects." in shown and "ben " in shown and reason in shown
    assert "The other 4 were not deleted." in shown


def test_deletion_does_not_need_a_permission_that_it_was_confirmed_without() -> None:
    projects(7)
    client = staff_client("delete_project", "force_cleanup")
    confirm_all(client, "delete_selected")
    take_permission("force_cleanup")(User.objects.get(username="ben"))
    work(job := BulkJob.objects.get())
    assert not Project.objects.exists() and job.permissions == ["storage_audit.delete_project"]


def test_deletion_waits_while_permissions_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    projects(7)
    confirm_all(staff_client("delete_project"), "delete_selected")
    job = BulkJob.objects.get()

    def fail(*args: object) -> None:
        raise ConnectionError("The directory is down.")

    with monkeypatch.context() as patch:
        patch.setattr(User, "has_perm", fail)
        for _attempt in range(bulk.MAX_PROJECT_ATTEMPTS + 2):
            with pytest.raises(ConnectionError):
                tasks.run_job(str(job.pk))
    job.refresh_from_db()
    assert (job.position, job.attempts, job.stop_reason) == (0, 0, "")
    assert Project.objects.count() == 7
    work(job)
    assert not Project.objects.exists()


class Held(ProjectAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Project | None = None) -> bool:
        return super().has_delete_permission(request, obj) and not (obj and obj.title == "held")


class Archive(ProjectAdmin):
    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        return super().get_queryset(request).exclude(title="held")


class Failing(ProjectAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Project | None = None) -> bool:
        return not obj or obj.title != "held" or bool(request.session)


@pytest.mark.parametrize("page_class", [Held, Archive, Failing])
def test_bulk_job_keeps_a_project_that_the_admin_does_not_let_go_any_more(
    page_class: type[ProjectAdmin],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry: dict[Any, Any] = admin.site._registry
    monkeypatch.setitem(registry, Project, page_class(Project, admin.site))
    projects(4)
    confirm_all(staff_client("delete_project"), "delete_selected")
    Project.objects.filter(pk="proj_001").update(title="held")
    work(job := BulkJob.objects.get())
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]
    assert f"Bulk job {job.pk} skips project proj_001" in caplog.text


def test_log_of_a_bulk_job_shows_no_secret_of_a_row_that_needs_a_project(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Invoice(Model):
        address = TextField()
        project = ForeignKey(Project, PROTECT, related_name="+")

        class Meta:
            app_label = "storage_audit"

        def __str__(self) -> str:
            return self.address

    with create_table(Invoice) as invoices:
        job = asked(2, Action.DELETE)
        address = "https://zoe:hunter2@invoices.example"
        invoices.objects.create(address=address, project_id="proj_001")
        enqueue_bulk_job(job.pk)
        work(job)
        assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]
    assert "this person delete Invoice: https://[redacted]@invoices.example" in caplog.text
    assert "hunter2" not in caplog.text


def archive(page: ProjectAdmin, request: HttpRequest, rows: QuerySet[Project]) -> None:
    rows.update(title="archived")


def test_site_that_deletes_in_its_own_way_is_asked_for_many_projects_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ProjectAdmin, "delete_queryset", archive)
    projects(4)
    client = superuser_client()
    confirm_all(client, "delete_selected")
    assert Project.objects.filter(title="archived").count() == 4
    shown = run_action(client, "project", "force_delete", "proj_001")
    assert "Nothing was deleted: Force-delete would skip this site" in shown
    assert Project.objects.count() == 4 and not BulkJob.objects.exists()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Projects whose deletion takes longer than the database allows; all others go."""
    ids, delete = list[str](), Project.delete

    def cancel(project: Project, *args: Any, **kwargs: Any) -> Any:
        if project.pk in ids:
            raise OperationalError("canceling statement due to statement timeout")
        return delete(project, *args, **kwargs)

    monkeypatch.setattr(Project, "delete", cancel)
    return ids


def test_project_whose_deletion_always_times_out_is_left_out_after_some_attempts(
    failing: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    job = asked(7, Action.DELETE)
    failing.append("proj_001")
    tasks.run_job(str(job.pk))
    job.refresh_from_db()
    assert (job.position, job.attempts) == (1, 1), "it stops the one before it"
    for _attempt in range(bulk.MAX_PROJECT_ATTEMPTS - 1):
        with pytest.raises(OperationalError):
            tasks.run_job(str(job.pk))
        assert f"Bulk job {job.pk} skips project" not in caplog.text
    tasks.run_job(str(job.pk))
    assert f"Bulk job {job.pk} skips project proj_001" in caplog.text
    work(job)
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]
    assert made_for() == once(7) - Counter(["proj_001"])


def test_project_whose_deletion_times_out_for_a_while_is_deleted(failing: list[str]) -> None:
    job = asked(3, Action.DELETE)
    failing.append("proj_000")
    with pytest.raises(OperationalError):
        tasks.run_job(str(job.pk))
    failing.clear()
    tasks.run_job(str(job.pk))
    assert made_for() == once(3)
    job.refresh_from_db()
    assert job.finished_at and not job.attempts


@pytest.mark.parametrize("error", [IntegrityError, OperationalError, ConnectionError])
@pytest.mark.parametrize("at_once", [True, False])
def test_bulk_job_leaves_out_no_project_when_a_step_of_the_site_fails_after_the_commit(
    at_once: bool,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise error("The message broker is down.")

    def call_later(**kwargs: Any) -> None:
        transaction.on_commit(fail)

    def delete(project: Project, *args: Any, **kwargs: Any) -> Any:
        return Model.delete(project, *args, **kwargs)

    if not at_once:
        monkeypatch.setattr(Project, "delete", delete)
    job = asked(7, Action.DELETE)
    enqueue_bulk_job(job.pk)
    post_delete.connect(call_later, Project)
    try:
        work(job)
    finally:
        post_delete.disconnect(call_later, Project)
    assert not Project.objects.exists() and made_for() == once(7)
    assert set(Cleanup.objects.values_list("bulk_job", flat=True)) == {job.pk}
    assert "The message broker is down." in caplog.text and "skips project" not in caplog.text
    job.refresh_from_db()
    assert job.finished_at


# Workers


class Died(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.parametrize("after", range(8))
def test_a_worker_that_dies_at_any_project_makes_none_twice_and_forgets_none(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls = asked(8), iter(range(100))

    def verify(project_id: str) -> list[Cleanup]:
        made = requests.request_verification(project_id)
        if next(calls) == after:
            raise Died
        return made

    monkeypatch.setitem(bulk.REQUESTS_BY_ACTION, Action.VERIFY, verify)
    enqueue_bulk_job(job.pk)
    with pytest.raises(Died):
        work(job)
    job.refresh_from_db()
    assert made_for().total() == job.position == after // 3 * 3
    sweep_later()
    work(job)
    assert made_for() == once(8)


def test_a_project_of_which_none_can_be_made_stops_no_other_and_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = asked(8)

    def verify(project_id: str) -> list[Cleanup]:
        made = requests.request_verification(project_id)
        if project_id == "proj_004":
            Cleanup.objects.bulk_create(made)  # The database refuses it.
        return made

    monkeypatch.setitem(bulk.REQUESTS_BY_ACTION, Action.VERIFY, verify)
    enqueue_bulk_job(job.pk)
    work(job)
    assert made_for() == once(8) - Counter(["proj_004"])
    assert f"Bulk job {job.pk} skips project proj_004" in caplog.text
    for cleanup in Cleanup.objects.all():
        tasks.run_cleanup(str(cleanup.pk))
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Left out: 1. The log says why." in shown


def test_a_worker_that_dies_between_the_cleanups_and_their_tasks_forgets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = asked(4)

    def die(*args: object) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(make_cleanups, "enqueue_cleanup", die)
        enqueue_bulk_job(job.pk)
        work(job)
    assert made_for().total() == 3
    sweep_later()
    work(job)
    assert made_for() == once(4)
    assert not Cleanup.objects.filter(enqueued_at=None).exists()


def test_project_that_kills_each_worker_is_left_out() -> None:
    job = asked(4, Action.DELETE)

    def kill(instance: Project, **kwargs: Any) -> None:
        if instance.pk == "proj_001":
            raise Died

    pre_delete.connect(kill, Project)
    try:
        for _worker in range(bulk.MAX_PROJECT_ATTEMPTS + 1):
            with pytest.raises(Died):
                tasks.run_job(str(job.pk))
        tasks.run_job(str(job.pk))
    finally:
        pre_delete.disconnect(kill, Project)
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_001"]


def sweep_later() -> None:
    """When the task was lost a minute ago."""
    lost = timezone.now() - timedelta(minutes=1)
    BulkJob.objects.update(enqueued_at=lost, created_at=lost)
    tasks.sweep()


def test_the_sweep_takes_up_a_forgotten_bulk_job_and_no_other() -> None:
    lost, now = timezone.now() - timedelta(minutes=1), timezone.now()
    forgotten, finished, fresh = (
        BulkJob.objects.request(Action.VERIFY, ["proj_1"]) for _n in "abc"
    )
    never_sent = BulkJob.objects.request(Action.VERIFY, ["proj_1"])
    BulkJob.objects.filter(pk__in=[forgotten.pk, never_sent.pk]).update(created_at=lost)
    BulkJob.objects.filter(pk=forgotten.pk).update(enqueued_at=lost)
    BulkJob.objects.filter(pk=finished.pk).update(
        enqueued_at=lost, created_at=lost, finished_at=now
    )
    tasks.sweep()
    assert sorted(list_enqueued_ids()) == sorted([str(forgotten.pk), str(never_sent.pk)])
    assert fresh.enqueued_at is None
    tasks.sweep()
    assert len(list_enqueued_ids()) == 2


def test_two_workers_at_once_make_each_cleanup_once() -> None:
    job, both = asked(30), Barrier(2)

    def take_all(_worker: int) -> int:
        try:
            made, mine = 0, BulkJob.objects.get(pk=job.pk)
            both.wait(SECONDS)
            while mine.finished_at is None:
                made += len(bulk.process_next_projects(mine))
                mine = BulkJob.objects.get(pk=job.pk)
            return made
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(take_all, range(2))) == 30
    assert made_for() == once(30)


def test_worker_that_another_one_overtakes_makes_no_cleanup_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, begin_attempt = asked(3), BulkJob.begin_attempt

    def overtake(of: BulkJob) -> bool:
        began = begin_attempt(of)
        if of is job:
            bulk.process_next_projects(BulkJob.objects.get())
        return began

    monkeypatch.setattr(BulkJob, "begin_attempt", overtake)
    assert bulk.process_next_projects(job) == []
    assert made_for() == once(3)


def test_a_task_that_comes_twice_leaves_the_bulk_job_to_the_first() -> None:
    job = asked(7)
    stale = BulkJob.objects.get()
    assert len(bulk.process_next_projects(job)) == 3
    assert bulk.process_next_projects(stale) == []
    assert made_for().total() == 3


def test_worker_that_was_overtaken_makes_no_cleanup_twice() -> None:
    job = asked(7)
    assert job.begin_attempt()
    second = BulkJob.objects.get()
    assert second.begin_attempt()
    assert len(bulk.process_projects(second, 3)) == 3
    assert bulk.process_projects(job, 3) == []
    assert made_for() == once(3)


def test_a_bulk_job_enqueues_itself_behind_its_cleanups_and_lets_others_in_between() -> None:
    job = asked(7)
    tasks.run_job(str(job.pk))
    *cleanups, last = list_enqueued_ids()
    assert last == str(job.pk)
    assert len(cleanups) == 3


@pytest.mark.parametrize("action", ["verify_cleanup", "dry_run_cleanup"])
def test_of_projects_that_are_all_gone_no_bulk_job_is_made(action: str) -> None:
    data = {"action": action, "_selected_action": "proj_000"}
    shown = page_text(superuser_client().post(admin_url("project"), data, follow=True))
    assert "Nothing was done: none of the selected projects is there any more." in shown
    assert not BulkJob.objects.exists()


def test_without_workers_one_turn_follows_the_other_and_none_stands_in_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or Python would end a bulk job of some hundreds of them with a RecursionError."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    depths = list[int]()
    monkeypatch.setattr(
        make_cleanups, "enqueue_cleanup", lambda _pk: depths.append(len(inspect.stack()))
    )
    enqueue_bulk_job(asked(9).pk)
    assert len(depths) == 9 and len(set(depths)) == 1


# The page


@pytest.fixture
def done(bucket: Bucket) -> Iterator[BulkJob]:
    bucket.upload("proj_000")
    bucket.put("projects/proj_001/scenes/s1/media/left.mp4")
    with use_origin(ANNA):
        job = BulkJob.objects.request(Action.VERIFY, ["proj_000", "proj_001"])
    Project.objects.create(pk="proj_001")
    yield job


def test_the_page_says_how_far_it_is_and_what_waits_for_a_person(done: BulkJob) -> None:
    client, address = superuser_client(), admin_url("bulkjob", "change", done.pk)
    shown = page_text(client.get(address))
    assert "0 of 2 projects are started." in shown
    assert "No cleanup yet. A worker starts the first ones soon." in shown
    made = bulk.process_next_projects(done)
    shown = page_text(client.get(address))
    assert "2 of 2 cleanups are not finished yet." in shown
    assert "data-live" in shown and "live.js" in shown and 'http-equiv="refresh"' in shown
    assert 'id="audit-unreachable" hidden' in shown and 'id="audit-refused" hidden' in shown
    assert '<div id="audit-now" data-live>' in shown, "each figure would be read aloud"
    for cleanup in made:
        tasks.run_cleanup(str(cleanup.pk))
    shown = page_text(client.get(address))
    assert "Done. Some cleanups need you: see below." in shown
    assert "data-live" not in shown and "live.js" not in shown and "unreachable" not in shown
    assert "Not as expected; each says how: 1" in shown
    [link, *_same] = re.findall('href="([^"]*status__exact=differs)"', shown)
    listed = page_text(client.get(link.replace("&amp;", "&")))
    assert "proj_001" in listed and "proj_000" not in listed


def test_the_page_of_a_dry_run_says_what_a_deletion_would_do(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    bucket.upload("proj_000", body=b"x" * 2048)
    Project.objects.create(pk="proj_001")
    job = BulkJob.objects.request(Action.DRY_RUN, ["proj_000", "proj_001"])
    for cleanup in bulk.process_next_projects(job):
        tasks.run_cleanup(str(cleanup.pk))
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "To be deleted</dt><dd>1 <small>2.0 KB</small></dd>" in shown
    assert "A safety limit would block the deletion: 1" in shown


def test_the_page_costs_as_many_queries_for_60_cleanups_as_for_none() -> None:
    job, client = asked(60), superuser_client()
    address = admin_url("bulkjob", "change", job.pk)

    def queries() -> int:
        client.get(address)
        with CaptureQueriesContext(connection) as captured:
            page_text(client.get(address))
        assert not any("project_ids" in query["sql"] for query in captured.captured_queries)
        return len(captured)

    before = queries()
    while not job.finished_at:
        bulk.process_next_projects(job)
    assert queries() == before


def given(bulk_job: BulkJob, number: int, **values: Any) -> None:
    """The bulk job has a cleanup like this, of the project with the number."""
    [made] = requests.request_verification(f"proj_{number:03}")
    Cleanup.objects.filter(pk=made.pk).update(bulk_job=bulk_job, **values)


@pytest.mark.parametrize("action", [Action.DRY_RUN, Action.VERIFY])
def test_what_could_not_be_verified_is_under_way_until_it_is(
    bucket: Bucket, store: FaultyStore, action: str
) -> None:
    job, client = asked(2, action), superuser_client()
    bucket.put("projects/proj_001/scenes/s1/media/left.mp4")
    made = bulk.process_next_projects(job)
    store.rules.append(rule_for(is_anything, RESET_REPLY))
    for cleanup in made:
        tasks.run_cleanup(str(cleanup.pk))
    store.rules.clear()
    address = admin_url("bulkjob", "change", job.pk)
    shown = page_text(client.get(address))
    assert "2 of 2 cleanups are not finished yet." in shown and "data-live" in shown
    assert "2 cleanups are tried again automatically, as the bucket did not answer" in shown
    assert "Needs you" not in shown and "differ" not in shown
    [link] = re.findall('href="([^"]*)"><span class="audit-status audit-retrying">', shown)
    assert "2 cleanups" in page_text(client.get(link.replace("&amp;", "&")))
    Cleanup.objects.update(next_attempt_at=timezone.now())
    for cleanup in made:
        tasks.run_cleanup(str(cleanup.pk))
    shown = page_text(client.get(address))
    is_look = action == Action.VERIFY
    said = "Some cleanups need you: see below." if is_look else "Each project has a preview."
    assert said in shown and "data-live" not in shown
    assert ("differs</span>" in shown) == is_look


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.RETRYING, Status.FAILED])
def test_files_that_an_interrupted_verification_did_not_compare_are_not_called_different(
    status: str,
) -> None:
    job = asked(1)
    totals = {"found": 3, "failed": 3, "found_bytes": 9, "failed_bytes": 9}
    given(job, 0, status=status, **totals)
    BulkJob.objects.update(position=1)
    address, client = admin_url("bulkjob", "change", job.pk), superuser_client()
    different = "Different</dt><dd>3 "
    assert different not in page_text(client.get(address))
    Cleanup.objects.update(status=Status.DIFFERS, next_attempt_at=None)
    assert different in page_text(client.get(address))


@pytest.mark.parametrize("status", [Status.BLOCKED, Status.FAILED, Status.DIFFERS])
def test_what_was_stopped_or_failed_was_not_verified(status: str) -> None:
    job = asked(2)
    given(job, 0, status=Status.CLEAN)
    given(job, 1, status=status)
    BulkJob.objects.update(position=2, finished_at=timezone.now())
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Done. Some cleanups need you: see below." in shown
    assert "verified." not in shown


def test_each_status_has_a_pattern_of_its_own_in_the_bar_and_in_its_row() -> None:
    job = asked(14)
    statuses = [Status.CLEAN, *Status]
    for number, status in enumerate(statuses):
        given(job, number, status=status, next_attempt_at=None)
    BulkJob.objects.update(position=13)
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    marks = dict(
        re.findall(r'<pattern id="bulk-job-(\w+)".*?<path class="audit-mark" d="(.*?)"/>', shown)
    )
    assert marks.keys() == {*Status} and len(set(marks.values())) == len(marks)
    parts = re.findall(r'"audit-part" x="(.*?)%" width="(.*?)%" .*?url\(#bulk-job-(\w+)\)', shown)
    first = [Status.PLANNED, Status.PENDING, Status.RUNNING, Status.RETRYING]
    in_order = [*first, *(status for status in Status if status not in first)]
    assert [status for *_place, status in parts] == in_order
    assert parts[4] == ("28.57", "14.29", "clean")
    assert float(parts[-1][0]) + float(parts[-1][1]) == pytest.approx(100 * 13 / 14, abs=0.02)
    for status in in_order:
        swatch = f'fill="url(#bulk-job-{status})"/></svg> <a href='
        assert shown.count(swatch) == 1, status


@pytest.mark.parametrize("permission", ["view_bulkjob", "view_cleanup"])
def test_who_may_see_cleanups_or_bulk_jobs_sees_bulk_jobs(permission: str) -> None:
    job = asked(2)
    user = User.objects.create_user("ben", is_staff=True)
    addresses = (admin_url("bulkjob"), admin_url("bulkjob", "change", job.pk))
    assert {client_for(user).get(each).status_code for each in addresses} == {403}
    user.user_permissions.set(Permission.objects.filter(codename=permission))
    assert {client_for(user).get(each).status_code for each in addresses} == {200}


def test_who_may_not_verify_makes_no_bulk_job() -> None:
    projects(3)
    begin(staff_client("dry_run_cleanup"))
    assert not BulkJob.objects.exists()


# Many cleanups


def test_more_cleanups_than_a_request_can_bear_are_not_verified_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage_audit.cleanup.admin.cleanups.MAX_VERIFICATIONS", 3)
    for n in range(4):
        Cleanup.objects.request(
            kind="project", project_id=f"proj_{n}", bucket="tests", trigger="deleted"
        )
    client, pks = superuser_client(), list(Cleanup.objects.values_list("pk", flat=True))
    shown = run_action(client, "cleanup", "verify_cleanup", *pks)
    assert "Nothing was done: at most 3 cleanups can be verified at once." in shown
    assert Cleanup.objects.count() == 4
    run_action(client, "cleanup", "verify_cleanup", *pks[:3])
    assert Cleanup.objects.count() == 7
