"""Many deletions undone as one bulk job: each by itself, and a refused one stops no other."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import IntegrityError, connection
from django.db.models.signals import post_save
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit import tasks
from storage_audit.cleanup import bulk, end_deletions
from storage_audit.cleanup.admin import decisions
from storage_audit.cleanup.models import BulkJob, Cleanup, Snapshot
from storage_audit.models import Project, R2Object
from storage_audit.request_origin import Origin, use_origin
from tests.admin_client import (
    admin_url,
    confirm_action,
    confirmation_fields,
    count_queries,
    page_text,
    run_action,
    staff_client,
    superuser_client,
)
from tests.builders import track_keys
from tests.held import delete_held, grant_grace, hold_deletion
from tests.promises import create_projects
from tests.real_bucket import Bucket, put_files

pytestmark = [pytest.mark.database, pytest.mark.usefixtures("transactional_db")]
Action, Status = BulkJob.Action, Cleanup.Status
ACROSS = {"select_across": "1"}


@pytest.fixture(autouse=True)
def _few_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    grant_grace(settings)
    monkeypatch.setattr(decisions, "MAX_DECISIONS", 3)
    monkeypatch.setattr(bulk, "PROJECTS_PER_TRANSACTION", 3)


def delete_many(count: int) -> list[Cleanup]:
    return [hold_deletion(f"proj_{number:03}") for number in range(count)]


def undo_all(client: Client, **data: Any) -> str:
    return confirm_action(client, "cleanup", "undo_deletion", "all", **ACROSS, **data)


def work(job: BulkJob) -> BulkJob:
    while BulkJob.objects.unfinished().filter(pk=job.pk).exists():
        tasks.run_job(str(job.pk))
    job.refresh_from_db()
    return job


def job_page(job: BulkJob) -> str:
    return page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))


def living() -> set[str]:
    return set(Project.objects.values_list("pk", flat=True))


def test_undo_of_all_pages_is_a_bulk_job_that_undoes_each() -> None:
    deleted = delete_many(7)
    client = superuser_client()
    asked = run_action(client, "cleanup", "undo_deletion", "all", **ACROSS)
    assert 'value="Undo 7 deletions"' in asked and not BulkJob.objects.exists()
    shown = undo_all(client, reason="wrong filter")
    job = BulkJob.objects.get()
    assert "7 deletions are queued as one bulk job." in shown
    assert "0 of 7 deletions are undone." in shown and "No cleanup yet." not in shown
    assert not living()
    work(job)
    assert living() == {each.project_id for each in deleted}
    for cleanup in Cleanup.objects.all():
        told = (cleanup.status, cleanup.decided_by, cleanup.decision_reason, cleanup.bulk_job)
        assert told == (Status.UNDONE, "anna", "wrong filter", None)
    assert not Snapshot.objects.exists()
    shown = job_page(job)
    assert "Undo of 7 deletions" in shown and "Done. Deletions undone: 7." in shown
    assert "wrong filter" in shown and "data-live" not in shown
    assert LogEntry.objects.get().change_message == "Undo deletion. wrong filter"


def test_question_shows_ten_deletions_and_leads_to_all(settings: Settings) -> None:
    delete_many(12)
    asked = run_action(superuser_client(), "cleanup", "undo_deletion", "all", **ACROSS)
    assert 'value="Undo 12 deletions"' in asked
    assert "<h1>Undo 12 deletions?</h1>" in asked and "Files found so far: " in asked
    assert len(re.findall(r"<td>proj_0\d\d</td>", asked)) == 10
    assert "10 of 12 deletions are shown." in asked
    assert f'{admin_url("cleanup")}?decision=undoable">Show all that can be undone</a>' in asked


def test_deletions_that_cannot_be_undone_are_listed_and_stop_no_other() -> None:
    deleted = delete_many(7)
    Snapshot.objects.filter(cleanups=deleted[1]).update(unavailable="too_large")
    undo_all(superuser_client())
    job = BulkJob.objects.get()
    Cleanup.objects.filter(pk=deleted[4].pk).update(first_request_at=timezone.now())
    work(job)
    assert living() == {deleted[number].project_id for number in (0, 2, 3, 5, 6)}
    shown = job_page(job)
    assert "Done. Deletions undone: 5." in shown and "Not undone, see below: 2." in shown
    assert re.search(r"proj_001: .*No copy of the deleted rows could be kept: too many", shown)
    assert re.search(r"proj_004: .*Deleting the files has begun\.", shown)
    assert shown.count(admin_url("cleanup", "change", deleted[4].pk)) == 1


def test_what_is_not_held_is_left_out_and_counted() -> None:
    delete_many(5)
    Cleanup.objects.filter(project_id="proj_000").update(first_request_at=timezone.now())
    client = superuser_client()
    asked = run_action(client, "cleanup", "undo_deletion", "all", **ACROSS)
    assert "1 of the selected cleanups can&#x27;t be undone, and stays as it is." in asked
    undo_all(client)
    assert work(BulkJob.objects.get()).projects == 4
    Project.objects.all()._raw_delete("default")
    shown = run_action(client, "cleanup", "undo_deletion", "all", **ACROSS)
    assert "Nothing was done: none of the selected deletions can be undone." in shown


def test_projects_of_one_delete_call_are_restored_once() -> None:
    create_projects("proj_1", "proj_2", "proj_3", "proj_4")
    Project.objects.filter(pk__in=["proj_1", "proj_2", "proj_3"]).delete()
    Project.objects.all().delete()
    assert Snapshot.objects.count() == 2
    undo_all(superuser_client())
    job = work(BulkJob.objects.get())
    assert living() == {"proj_1", "proj_2", "proj_3", "proj_4"}
    assert "Done. Deletions undone: 4." in job_page(job)
    assert Cleanup.objects.filter(status=Status.UNDONE).count() == 4


def test_deletion_in_two_buckets_is_undone_once(bucket: Bucket) -> None:
    create_projects("proj_000")
    put_files(bucket, 1)
    track_keys("a", project="proj_000", bucket="other")
    delete_many(3)
    assert Cleanup.objects.count() == 4
    undo_all(superuser_client())
    assert BulkJob.objects.get().projects == 3
    assert "Done. Deletions undone: 3." in job_page(work(BulkJob.objects.get()))
    assert set(Cleanup.objects.values_list("status", flat=True)) == {Status.UNDONE}


def test_deleted_rows_are_among_those_undone(bucket: Bucket) -> None:
    for number in range(4):
        bucket.upload(f"proj_{number}")
    for row in R2Object.objects.all():
        row.delete()
    assert not R2Object.objects.exists()
    undo_all(superuser_client())
    work(BulkJob.objects.get())
    assert R2Object.objects.count() == 4


def test_bulk_deletion_is_undone_from_its_page(bucket: Bucket) -> None:
    superuser_client()
    create_projects(*(f"proj_{number}" for number in range(5)))
    Project.objects.create(pk="proj_other")
    hold_deletion("proj_other")
    with use_origin(Origin("anna", "web")):
        ids = sorted(f"proj_{number}" for number in range(5))
        permissions = bulk.permissions_for(Action.DELETE, User.objects.get(username="anna"))
        job = work(BulkJob.objects.request(Action.DELETE, ids, permissions))
    assert Snapshot.objects.count() == 6
    shown = job_page(job)
    assert 'value="Undo all" class="audit-harmless">' in shown
    [url] = re.findall(r'<form method="post" action="([^"]*decision=undoable)"', shown)
    client, url = superuser_client(), url.replace("&amp;", "&")
    data = {"action": "undo_deletion", "_selected_action": "all", **ACROSS}
    asked = page_text(client.post(url, data))
    assert 'value="Undo 5 deletions"' in asked
    page_text(client.post(url, data | confirmation_fields(asked), follow=True))
    undo = work(BulkJob.objects.get(action=Action.UNDO))
    assert living() == set(ids)
    assert "Done. Deletions undone: 5." in job_page(undo)
    # The deletion's own page still has its cleanups.
    shown = job_page(job)
    assert "Undo all" not in shown and "undone</span>" in shown
    assert job.cleanups.count() == 5


def test_page_of_a_bulk_deletion_says_whom_to_ask_for_undo(bucket: Bucket) -> None:
    job = BulkJob.objects.request(Action.DELETE, ["proj_1"])
    Cleanup.objects.filter(pk=hold_deletion("proj_1").pk).update(bulk_job=job)
    shown = page_text(staff_client().get(admin_url("bulkjob", "change", job.pk)))
    assert 'value="Undo all" class="audit-harmless" disabled>' in shown
    assert "Storage operator" in shown


class Died(BaseException):
    """As when a worker is killed."""


def test_each_undo_is_committed_before_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delete_many(5)
    undo_all(superuser_client())
    job, undo, calls = BulkJob.objects.get(), end_deletions.undo_deletion, list[Cleanup]()

    def die_at_third(cleanup: Cleanup, reason: str) -> Any:
        calls.append(cleanup)
        if len(calls) == 3:
            raise Died
        return undo(cleanup, reason)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(end_deletions, "undo_deletion", die_at_third)
        tasks.run_job(str(job.pk))
    assert len(living()) == 2
    work(job)
    assert len(living()) == 5
    assert "Done. Deletions undone: 5." in job_page(job)


def test_turn_ends_before_its_task_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    delete_many(4)
    undo_all(superuser_client())
    now, undo = [0.0], bulk.undo_or_note

    def undo_slowly(bulk_job: BulkJob, deletion_id: str) -> None:
        undo(bulk_job, deletion_id)
        now[0] += 50

    monkeypatch.setattr(bulk, "undo_or_note", undo_slowly)
    monkeypatch.setattr(bulk, "monotonic_seconds", lambda: now[0])
    job = BulkJob.objects.get()
    tasks.run_job(str(job.pk))
    assert len(living()) == 2
    assert work(job).position == 4 and len(living()) == 4


def test_each_held_deletion_of_a_bulk_job_has_its_own_transaction_and_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    superuser_client()
    create_projects("proj_1", "proj_2", "proj_3")
    with use_origin(Origin("anna", "web")):
        job = BulkJob.objects.request(Action.DELETE, ["proj_1", "proj_2", "proj_3"])
    delete, begun = bulk.REQUESTS_BY_ACTION[Action.DELETE], list[str]()

    def die_at_third(project_id: str) -> list[Cleanup]:
        begun.append(project_id)
        if len(begun) == 3:
            raise Died
        return delete(project_id)

    monkeypatch.setitem(bulk.REQUESTS_BY_ACTION, Action.DELETE, die_at_third)
    with pytest.raises(Died):
        tasks.run_job(str(job.pk))
    assert living() == {"proj_3"}
    assert Snapshot.objects.count() == 2


def test_error_of_the_site_leaves_that_deletion_and_is_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delete_many(5)
    undo_all(superuser_client())

    def refuse(instance: Project, **kwargs: Any) -> None:
        if instance.pk == "proj_002":
            raise RuntimeError("The site's own receiver failed.")

    post_save.connect(refuse, Project)
    try:
        job = work(BulkJob.objects.get())
    finally:
        post_save.disconnect(refuse, Project)
    assert living() == {"proj_000", "proj_001", "proj_003", "proj_004"}
    assert re.search(r"proj_002: .* was not undone because of an error\.", job_page(job))
    assert "The site's own receiver failed." in caplog.text
    # Nothing of it was changed: a person can try again.
    assert Cleanup.objects.get(project_id="proj_002").is_held()


def test_deletion_whose_commit_the_database_refuses_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delete_many(4)
    undo_all(superuser_client())
    undo = bulk.undo_or_note

    def refuse(bulk_job: BulkJob, deletion_id: str) -> None:
        undo(bulk_job, deletion_id)
        if Cleanup.objects.filter(pk=deletion_id, project_id="proj_001").exists():
            raise IntegrityError

    monkeypatch.setattr(bulk, "undo_or_note", refuse)
    job = work(BulkJob.objects.get())
    assert living() == {"proj_000", "proj_002", "proj_003"}
    shown = job_page(job)
    assert "Deletions undone: 3." in shown and "Not undone, see below: 1." in shown


def take_permission(user: User) -> None:
    user.user_permissions.remove(Permission.objects.get(codename="undo_cleanup"))


def deactivate(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


@pytest.mark.parametrize("lose", [take_permission, deactivate])
def test_undo_stops_when_the_person_may_not_undo_any_more(lose: Callable[[User], None]) -> None:
    delete_many(7)
    undo_all(staff_client("undo_cleanup"))
    job = BulkJob.objects.get()
    tasks.run_job(str(job.pk))
    assert len(living()) == 3
    lose(User.objects.get(username="ben"))
    work(job)
    assert len(living()) == 3
    shown = job_page(job)
    assert "Stopped after 3 of 7 deletions." in shown and "ben " in shown
    assert "The other 4 were not undone. To undo them, select them again." in shown


def test_without_permission_nothing_is_undone() -> None:
    delete_many(5)
    run_action(staff_client(), "cleanup", "undo_deletion", "all", **ACROSS)
    assert not BulkJob.objects.exists()


def test_without_workers_many_are_refused(settings: Settings) -> None:
    delete_many(5)
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": True}
    shown = run_action(superuser_client(), "cleanup", "undo_deletion", "all", **ACROSS)
    assert "Nothing was done: select at most 3 cleanups." in shown
    assert not BulkJob.objects.exists()


def test_page_of_an_undo_costs_as_many_queries_for_many_notes_as_for_two() -> None:
    superuser_client()
    job = BulkJob.objects.request(Action.UNDO, ["x"] * 20)
    url = admin_url("bulkjob", "change", job.pk)

    def refuse(count: int) -> int:
        for cleanup in Cleanup.objects.order_by("pk")[:count]:
            job.notes.create(cleanup=cleanup, is_refused=True, text="Too late.")
        return count_queries(superuser_client(), url)

    delete_many(20)
    assert refuse(2) == refuse(18)


# Lists


LISTS = [
    admin_url("cleanup"),
    admin_url("cleanup") + "?needs=held",
    admin_url("cleanup") + "?decision=undoable",
    admin_url("cleanup") + "?decision=undone",
    admin_url("project"),
    admin_url("knownproject"),
    admin_url("bulkjob"),
]


def test_lists_need_no_query_for_each_held_or_undone_deletion(bucket: Bucket) -> None:
    client = superuser_client()

    def count_with(numbers: range) -> dict[str, int]:
        for number in numbers:
            held, undone = f"proj_held_{number}", f"proj_undone_{number}"
            create_projects(held, undone)
            bucket.put(f"projects/{held}/scenes/s1/media/a.mp4")
            delete_held(held)
            end_deletions.undo_deletion(hold_deletion(undone))
        return {url: count_queries(client, url) for url in LISTS}

    assert count_with(range(2)) == count_with(range(2, 20))


def test_confirmation_of_a_bulk_undo_needs_no_query_for_each() -> None:
    client = superuser_client()

    def ask() -> int:
        with CaptureQueriesContext(connection) as captured:
            run_action(client, "cleanup", "undo_deletion", "all", **ACROSS)
        return len(captured)

    delete_many(4)
    ask()
    few = ask()
    delete_many(20)
    assert ask() == few
