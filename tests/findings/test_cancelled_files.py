"""Files whose deletion a person cancelled: they count as kept by a person, not as leftover files,
and nothing else deletes them."""

from datetime import timedelta

import pytest
from django.utils import timezone
from django.utils.html import escape
from pytest_django.fixtures import Settings

from storage_audit.bucket import s3
from storage_audit.cleanup import end_deletions, requests, runner
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.dashboard.daily_figures import count_leftovers
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.request_origin import Origin, use_origin
from storage_audit.ui.links import lookup_url
from tests.admin_client import admin_url, page_text, superuser_client
from tests.findings.orphans import request_deletion
from tests.held import delete_held, grant_grace, run_after_hold
from tests.promises import create_projects, run_until_idle
from tests.real_bucket import Bucket, put_files
from tests.run_command import run_command

pytestmark = pytest.mark.database
State, Status = Finding.State, Cleanup.Status


@pytest.fixture(autouse=True)
def _settings(settings: Settings) -> None:
    grant_grace(settings)
    soon = timedelta(microseconds=1)
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "ORPHAN_AGE": soon, "ORPHAN_GAP": soon}


def scan() -> None:
    out, err, code = run_command("reconcile_r2")
    assert code in (0, 1), out + err


def cancel(cleanup: Cleanup, reason: str = "a lawsuit") -> Cleanup:
    with use_origin(Origin("anna", "web")):
        end_deletions.cancel_deletion(cleanup, reason)
    return Cleanup.objects.get(pk=cleanup.pk)


def orphan_cleanup(bucket: Bucket) -> Cleanup:
    """Of two leftover files of a project that is gone, planned and blocked by a limit."""
    create_projects("proj_2")
    put_files(bucket, 2)
    KnownProject.objects.record_deleted("proj_1", timezone.now(), "deleted")
    scan()
    scan()
    assert Finding.objects.deletable().count() == 2
    return request_deletion(Finding.objects.all())


def test_cancelled_deletion_of_orphans_ignores_their_findings(bucket: Bucket) -> None:
    cleanup = cancel(orphan_cleanup(bucket))
    assert (cleanup.status, cleanup.kept) == (Status.CANCELLED, 2)
    for finding in Finding.objects.all():
        assert (finding.state, finding.decided_by) == (State.IGNORED, "anna")
        assert finding.note == f"Cleanup {cleanup.pk} was cancelled. a lawsuit"
    assert count_leftovers().objects == 0
    scan()
    assert set(Finding.objects.values_list("state", flat=True)) == {State.IGNORED}
    assert count_leftovers().objects == 0


def test_finding_that_a_scan_resolved_meanwhile_is_ignored_too(bucket: Bucket) -> None:
    cleanup = orphan_cleanup(bucket)
    scan()
    assert set(Finding.objects.values_list("state", flat=True)) == {State.RESOLVED}
    cancel(cleanup)
    assert set(Finding.objects.values_list("state", flat=True)) == {State.IGNORED}
    assert count_leftovers().objects == 0


def test_overwritten_orphan_is_not_ignored(bucket: Bucket) -> None:
    cleanup = orphan_cleanup(bucket)
    bucket.put("projects/proj_1/scenes/s1/media/0000.mp4", body=b"another one")
    cancel(cleanup)
    scan()
    states = dict(Finding.objects.values_list("key", "state"))
    assert sorted(states.values()) == [State.IGNORED, State.OPEN]
    assert states["projects/proj_1/scenes/s1/media/0000.mp4"] == State.OPEN


def test_file_of_a_deleted_row_is_kept_from_every_cleanup(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get().delete()
    cleanup = cancel(runner.run_to_end(Cleanup.objects.get().pk))
    assert cleanup.status == Status.CANCELLED
    finding = Finding.objects.get()
    assert (finding.key, finding.kind, finding.state) == (key, "untracked", State.IGNORED)
    assert (finding.first_scan, finding.decided_by) == (None, "anna")
    for address in (admin_url("finding"), admin_url("finding", "change", finding.pk)):
        assert key in page_text(superuser_client().get(address))
    assert run_after_hold(delete_held()).status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {key}
    reason = CleanupItem.objects.filter(cleanup__kind="project").get().reason
    assert f"ignored finding {finding.pk}" in reason


def test_file_of_a_row_of_a_deleted_project_is_no_leftover_file(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    create_projects("proj_2")
    row = R2Object.objects.get()
    row.delete()
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    KnownProject.objects.record_deleted("proj_1", timezone.now(), "deleted")
    cancel(Cleanup.objects.get(kind="objects"))
    assert Finding.objects.get().kind == "orphaned"
    scan()
    assert Finding.objects.get().state == State.IGNORED
    assert count_leftovers().objects == 0


def test_cancelled_after_the_first_request_what_is_left_is_ignored(bucket: Bucket) -> None:
    cleanup = orphan_cleanup(bucket)
    sent, left = CleanupItem.objects.order_by("key")
    CleanupItem.objects.filter(pk=sent.pk).update(
        outcome="deleting", calls=1, store_answer="deleted"
    )
    s3.delete_single(bucket.name, sent.key)
    Cleanup.objects.filter(pk=cleanup.pk).update(
        step="delete", first_request_at=timezone.now(), status="retrying", held_until=None
    )
    cancel(Cleanup.objects.get(pk=cleanup.pk))
    done = run_until_idle(cleanup)
    assert (done.status, done.deleted, done.kept) == (Status.CANCELLED, 1, 1)
    states = dict(Finding.objects.values_list("key", "state"))
    assert states == {sent.key: State.RESOLVED, left.key: State.IGNORED}


def test_undone_deletion_of_a_row_ignores_nothing(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.get().delete()
    end_deletions.undo_deletion(runner.run_to_end(Cleanup.objects.get().pk))
    assert not Finding.objects.exists()


# Whole projects


def test_files_of_a_cancelled_project_are_no_leftover_files(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    keys = put_files(bucket, 2)
    bucket.upload("proj_1")
    cleanup = cancel(delete_held())
    assert cleanup.kept == 3
    scan()
    scan()
    assert not Finding.objects.filter(kind="orphaned").exists()
    assert count_leftovers().objects == 0
    [check] = requests.request_verification("proj_1")
    checked = runner.run_to_end(check.pk)
    assert (checked.status, checked.failed, checked.kept) == (Status.CLEAN_WITH_KEPT, 0, 3)
    kept = "Kept: a person cancelled the cleanup of project proj_1."
    assert all(reason.startswith(kept) for reason in checked.items.values_list("reason", flat=True))
    assert count_leftovers().objects == 0
    shown = page_text(superuser_client().get(admin_url("cleanup"), {"needs": "judgement"}))
    assert "Nothing matches." in shown
    client = superuser_client()
    shown = page_text(client.get(lookup_url("proj_1")))
    assert (
        "Cancelled. Files that were not deleted by then stay in the bucket." in shown
        and "Cancelled by anna on" in shown
    )
    shown = page_text(client.get(lookup_url(keys[0])))
    kept = "A person cancelled the cleanup of project proj_1, so the project's files stay."
    assert escape(kept) in shown


def test_files_that_a_verification_found_before_are_no_leftover_files(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    put_files(bucket, 2)
    cleanup = delete_held()
    [check] = requests.request_verification("proj_1")
    assert runner.run_to_end(check.pk).status == Status.DIFFERS
    cancel(cleanup)
    assert count_leftovers().objects == 0
    [again] = end_deletions.clean_up_again("proj_1", "the lawsuit is over")
    assert run_until_idle(again).status == Status.CLEAN
    assert count_leftovers().objects == 0
