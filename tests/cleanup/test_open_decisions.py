"""What an open cleanup covers is deleted by no other way, and one is open for each deletion."""

from datetime import timedelta
from typing import Any, Literal
from unicodedata import normalize
from uuid import uuid4

import pytest
from django.core.files.storage import default_storage
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket import s3
from storage_audit.cleanup import follow_ups, headline_text, requests, vanished_projects
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.open_decisions import PossibleOwners, find_covering
from storage_audit.findings import orphans, track_files
from storage_audit.findings.models import Finding
from storage_audit.findings.orphans import deletion_preview
from storage_audit.lookup import live_check
from storage_audit.lookup.object_rules import explain_object
from storage_audit.lookup.search import look_up
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.scan import conclude_scan, worker
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.builders import create_findings, list_ids
from tests.findings.orphans import delete_orphans
from tests.keys import OTHER_KEY
from tests.promises import (
    Status,
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    force_delete,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.times import AHEAD

pytestmark = [pytest.mark.database, pytest.mark.usefixtures("young_orphans_may_go")]
KEY = "projects/proj_9/scenes/s1/media/old.mp4"
LIMIT = "LIMIT_OBJECTS"


@pytest.fixture
def blocked(bucket: Bucket, settings: Settings) -> Cleanup:
    """The cleanup of proj_9, whose one file is more than the limit."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {LIMIT: 0}
    create_projects("proj_9", "proj_1")
    bucket.put(KEY)
    cleanup = clean_up_project("proj_9")
    assert cleanup.status == Status.BLOCKED
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {LIMIT: 1000}
    return cleanup


def scan_bucket() -> None:
    for _batch in work_on_scan(start_scan(purpose="reconcile")):
        pass


def open_findings() -> dict[str, str]:
    return dict(Finding.objects.open().values_list("key", "kind"))


# No other way deletes it


def test_file_of_a_blocked_cleanup_is_no_orphan(bucket: Bucket, blocked: Cleanup) -> None:
    track_key(bucket, KEY, "proj_9", "backfill")
    scan_bucket()
    assert open_findings() == {}
    Cleanup.objects.update(status=Status.SUPERSEDED)
    scan_bucket()
    assert open_findings() == {KEY: "orphaned"}


@pytest.mark.parametrize("of_cleanup", ["NFC", "NFD"])
def test_both_spellings_of_an_id_are_covered_in_one_listing(
    bucket: Bucket, of_cleanup: Literal["NFC", "NFD"]
) -> None:
    names = {form: normalize(form, "proj_\u00e9") for form in ("NFC", "NFD")}
    Cleanup.objects.request(
        kind="project", project_id=names[of_cleanup], bucket=bucket.name, trigger="deleted"
    )
    owners = {f"{form}.mp4": PossibleOwners({name}) for form, name in names.items()}
    assert find_covering(bucket.name, owners).keys() == owners.keys()


SHARED = "proj_9_x_s1_media.mp4"  # of proj_9, or of proj_9_x


def test_file_that_two_cleanups_share_waits_for_the_last_to_be_approved(
    bucket: Bucket, settings: Settings
) -> None:
    usual = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(0)}
    settings.STORAGE_AUDIT = usual | {LIMIT: 0}
    create_projects("proj_9", "proj_9_x", "proj_1")
    bucket.put(KEY, SHARED)
    other, blocked = request_cleanup("proj_9_x"), clean_up_project("proj_9")
    settings.STORAGE_AUDIT = usual
    [preview] = requests.request_preview("proj_9_x")
    assert read_outcomes(run_until_idle(preview)) == {SHARED: "kept"}
    assert run_until_idle(other).status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {KEY, SHARED}
    assert read_reason(other, SHARED).startswith(
        f"Cleanup {blocked.pk} covers this file, and its status is needs approval"
    )
    requests.approve_or_retry(blocked)
    assert run_until_idle(blocked).status == Status.CLEAN
    assert bucket.keys() == set()


@pytest.mark.parametrize(
    "row",
    [
        {"state": "upload_failed"},
        {"state": "uploading", "etag": "of an earlier file"},
        {"source": "assigned", "etag": "of the upload"},
    ],
    ids=["failed upload", "open upload", "upload after adoption"],
)
def test_file_of_an_upload_with_unclear_owner_waits_for_the_blocked_cleanup(
    bucket: Bucket, settings: Settings, row: dict[str, str]
) -> None:
    usual = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(0)}
    settings.STORAGE_AUDIT = usual | {LIMIT: 0}
    create_projects("proj_9", "proj_9_x", "proj_1")
    bucket.put(KEY, SHARED)
    track_key(bucket, SHARED, "proj_9_x", upload_id=uuid4(), **row)
    blocked = clean_up_project("proj_9")
    assert blocked.status == Status.BLOCKED
    settings.STORAGE_AUDIT = usual
    cleanup = clean_up_project("proj_9_x")
    assert read_outcomes(cleanup) == {SHARED: "kept"}
    assert f"Cleanup {blocked.pk} covers this file" in read_reason(cleanup, SHARED)
    assert bucket.keys() == {KEY, SHARED}


@pytest.mark.parametrize(
    "source, outcome", [("assigned", "deleted"), ("upload", "kept")], ids=["assigned", "upload"]
)
def test_person_decides_who_covers_the_file_and_an_upload_under_other_settings_does_not(
    bucket: Bucket, settings: Settings, blocked: Cleanup, source: str, outcome: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(0)}
    create_projects("proj_9_x")
    bucket.put(SHARED)
    seen = s3.head_object(bucket.name, SHARED)
    facts = {"size": seen.size, "etag": seen.etag, "last_modified": seen.last_modified}
    track_key(bucket, SHARED, "proj_9_x", source, **facts)
    assert read_outcomes(clean_up_project("proj_9_x")) == {SHARED: outcome}


def test_file_is_kept_whose_other_cleanup_was_blocked_after_the_plan(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"COMMIT_TIMEOUT": timedelta(0)}
    create_projects("proj_9", "proj_9_x", "proj_1")
    bucket.put(SHARED)
    cleanup, other = request_cleanup("proj_9_x"), request_cleanup("proj_9")

    def block() -> None:
        settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {LIMIT: 0}
        assert run_until_idle(other).status == Status.BLOCKED

    act_before_batch(monkeypatch, block)
    assert run_until_idle(cleanup).status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {SHARED}
    assert f"Cleanup {other.pk} covers this file" in read_reason(cleanup, SHARED)


def test_follow_up_check_waits_while_its_cleanup_is_blocked(
    bucket: Bucket, blocked: Cleanup
) -> None:
    follow_ups.request_follow_up(blocked, "project", timedelta(0))
    follow_up = blocked.children.get()
    waits = f"Waits for a person's decision on cleanup {blocked.pk}."
    assert not Cleanup.objects.due().exists()
    assert run_until_idle(follow_up).attempts == 0
    assert bucket.keys() == {KEY}
    assert waits in headline_text.explain_status(follow_up)
    verification = run_until_idle(requests.request_cleanup_verification(blocked))
    assert verification.status == Status.DIFFERS
    requests.approve_or_retry(blocked)
    assert set(Cleanup.objects.due()) == {blocked, follow_up}
    assert run_until_idle(blocked).status == Status.CLEAN
    follow_up = run_until_idle(follow_up)
    assert follow_up.status == Status.CLEAN
    assert waits not in headline_text.explain_status(follow_up)


def test_file_of_a_blocked_cleanup_is_not_assigned(bucket: Bucket, blocked: Cleanup) -> None:
    found = create_findings(bucket, KEY)
    [left] = track_files.assign_objects(list_ids(found), "proj_1").skipped
    assert left.reason.startswith(
        f"Cleanup {blocked.pk} covers this file, and its status is needs approval"
    )
    assert not R2Object.objects.exists()
    Cleanup.objects.update(status=Status.SUPERSEDED)
    assert track_files.assign_objects(list_ids(found), "proj_1").done == 1


def test_finding_is_resolved_once_a_cleanup_covers_its_file(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(KEY)
    scan_bucket()
    assert open_findings() == {KEY: "orphaned"}
    requests.declare_deleted("proj_9")
    scan_bucket()
    assert Finding.objects.get().note == "An open cleanup covers this file."


def test_file_that_an_open_cleanup_spells_otherwise_is_no_orphan(bucket: Bucket) -> None:
    """As of a store that folds Unicode, and lists a key as it was last spelled."""
    create_projects("proj_1")
    decomposed = "projects/proj_9/scenes/s1/media/e\u0301"
    composed = decomposed.replace("e\u0301", "\u00e9")
    bucket.put(decomposed)
    cleanup = Cleanup.objects.request(
        kind="orphans", bucket=bucket.name, trigger="orphaned", status="blocked"
    )
    facts = {"key": decomposed, "identity": composed, "found_in": "both"}
    item = CleanupItem.objects.create(cleanup=cleanup, **facts)
    scan_bucket()
    assert open_findings() == {}
    CleanupItem.objects.filter(pk=item.pk).mark("kept")
    scan_bucket()
    assert open_findings() == {decomposed: "orphaned"}


@pytest.mark.parametrize(
    ("status", "hours", "found"),
    [
        ("blocked", 0, {}),
        ("clean", 0, {KEY: "orphaned"}),
        ("clean", -AHEAD / timedelta(hours=1), {KEY: "orphaned"}),
        ("clean", 1, {KEY: "orphaned", OTHER_KEY: "orphaned"}),
    ],
    ids=["open", "over", "over by a clock ahead", "over before the scan"],
)
def test_orphan_seen_before_its_cleanup_was_asked_for_is_not_published(
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    hours: float,
    found: dict[str, str],
) -> None:
    create_projects("proj_1")
    bucket.put(KEY, OTHER_KEY)
    first = start_scan(purpose="reconcile")
    original = conclude_scan.conclude_scan

    def end(*args: Any) -> Any:
        gone = requests.declare_deleted("proj_9")
        CleanupItem.objects.create(
            cleanup=gone[0], key=OTHER_KEY, identity=OTHER_KEY, found_in="both", outcome="deleted"
        )
        CleanupItem.objects.update(changed_at=timezone.now() - timedelta(hours=hours))
        Cleanup.objects.update(status=status, next_attempt_at=None)
        return original(*args)

    monkeypatch.setattr(worker, "conclude_scan", end)
    for _batch in work_on_scan(first):
        pass
    assert open_findings() == found


@pytest.mark.parametrize("dry_run", [True, False])
def test_orphan_path_leaves_what_a_blocked_cleanup_covers(
    bucket: Bucket, blocked: Cleanup, dry_run: bool
) -> None:
    found = create_findings(bucket, KEY)
    decision = orphans.delete_objects(list_ids(found), dry_run=dry_run)
    [(key, why)] = decision.skipped
    assert (decision.cleanups, key) == ([], KEY)
    assert why.startswith(
        f"Cleanup {blocked.pk} covers this file, and its status is needs approval. Approve"
    )
    would = deletion_preview(list_ids(found), 5)
    assert (len(would.to_delete), would.skipped_count, would.skipped) == (0, 1, [(KEY, why)])
    assert not Finding.objects.deletable().exists()


@pytest.mark.parametrize("moment", ["before the plan", "after the plan"])
@pytest.mark.parametrize("status", ["blocked", "pending", "retrying", "failed"])
def test_orphan_that_a_cleanup_covers_by_now_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, moment: str, status: str
) -> None:
    create_projects("proj_1")
    bucket.put(KEY)
    found = create_findings(bucket, KEY)
    [deletion] = orphans.delete_objects(list_ids(found)).cleanups

    def cover() -> None:
        [cleanup] = requests.declare_deleted("proj_9")
        Cleanup.objects.filter(pk=cleanup.pk).update(status=status)

    if moment == "after the plan":
        act_before_batch(monkeypatch, cover)
    else:
        cover()
    Cleanup.objects.filter(pk=deletion.pk).update(project_id=None)
    assert read_outcomes(run_until_idle(deletion)) == {KEY: "kept"}
    assert "covers this file" in read_reason(deletion, KEY)
    assert bucket.keys() == {KEY}


@pytest.mark.parametrize("moment", ["when asked for", "in the plan"])
@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_orphan_whose_row_was_deleted_in_another_spelling_stays(
    bucket: Bucket, spelling: Literal["NFC", "NFD"], moment: str
) -> None:
    bucket.set_marker(folds_unicode=True)
    create_projects("proj_1")
    listed = normalize(spelling, "projects/proj_9/scenes/s1/media/caf\u00e9.mp4")
    bucket.put(listed)
    found = create_findings(bucket, listed)
    row = track_key(bucket, normalize("NFD" if spelling == "NFC" else "NFC", listed), "proj_9")
    if moment == "when asked for":
        row.delete()
        assert orphans.delete_objects(list_ids(found)).cleanups == []
        return
    [cleanup] = orphans.delete_objects(list_ids(found)).cleanups
    row.delete()
    assert read_outcomes(run_until_idle(cleanup)) == {listed: "kept"}
    assert "covers this file" in read_reason(cleanup, listed)


def test_orphan_goes_beside_follow_ups_previews_and_verifications(bucket: Bucket) -> None:
    create_projects("proj_9", "proj_1")
    assert clean_up_project("proj_9").status == Status.CLEAN
    bucket.put(KEY)
    requests.request_preview("proj_9")
    requests.request_verification("proj_9")
    assert Cleanup.objects.filter(parent__isnull=False, status="pending").count() == 3
    assert delete_orphans(create_findings(bucket, KEY)).deleted == 1


def test_orphan_whose_row_names_another_project_waits_for_the_blocked_cleanup(
    bucket: Bucket, blocked: Cleanup
) -> None:
    """An upload's row may be from other settings, under which the key was not proj_9's."""
    record_deleted_projects("proj_2")
    track_key(bucket, KEY, "proj_2")
    cleanup = delete_orphans(create_findings(bucket, KEY, project_id="proj_2"))
    assert read_outcomes(cleanup) == {KEY: "kept"}
    assert f"Cleanup {blocked.pk} covers this file" in read_reason(cleanup, KEY)


def test_files_of_projects_that_disappeared_together_are_deleted_by_no_other_way(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_VANISHED": 1}
    create_projects("proj_1", "proj_2", "proj_3", "proj_4")
    keys = [bucket.upload(f"proj_{n}") for n in (1, 2, 3)]
    Project.objects.exclude(pk="proj_4")._raw_delete("default")
    vanished_projects.check_vanished_projects()
    R2Object.objects.get(key=keys[0]).delete()
    default_storage.delete(keys[1])
    cleanup = run_until_idle(Cleanup.objects.get(kind="objects"))
    many = Cleanup.objects.get(kind="vanished")
    assert read_outcomes(cleanup) == {keys[0]: "kept"}
    assert str(many.pk) in read_reason(cleanup, keys[0])
    assert bucket.keys() == set(keys)
    # What is decided of one of them holds, also before the list is brought up to date.
    create_projects("proj_2")
    default_storage.delete(keys[1])
    [declared] = requests.declare_deleted("proj_3")
    run_until_idle(declared)
    many.refresh_from_db()
    assert many.status == Status.BLOCKED
    assert bucket.keys() == {keys[0]}


def test_why_names_the_cleanup_that_covers_a_file(bucket: Bucket, blocked: Cleanup) -> None:
    bucket.put(OTHER_KEY)
    track_key(bucket, OTHER_KEY, "proj_9")
    Cleanup.objects.update(status="failed")
    create_findings(bucket, OTHER_KEY)
    assert f"Cleanup {blocked.pk} covers this file, and its status is failed." in explain_text(
        OTHER_KEY
    )


def explain_text(text: str) -> str:
    [one] = look_up(text).objects
    return str(explain_object(one).text)


def test_why_says_of_a_file_that_is_gone_that_it_is_gone(bucket: Bucket, blocked: Cleanup) -> None:
    assert explain_text(KEY).startswith("A cleanup needs approval before it deletes this file.")
    bucket.r2.remove(KEY, bucket.name)
    objects = look_up(KEY).objects
    [seen] = live_check.check_objects(objects, seconds=60)
    sentence = str(explain_object(seen).text)
    assert sentence.startswith("Not in the bucket now.") and "status is needs approval" in sentence
    other = Cleanup.objects.request(
        kind="objects", bucket=bucket.name, trigger="deleted", status="clean"
    )
    facts = {"found_in": "both", "outcome": "deleted", "changed_at": timezone.now()}
    CleanupItem.objects.create(cleanup=other, key=KEY, identity=KEY, **facts)
    [gone] = look_up(KEY).objects
    assert explain_object(gone).cleanup == other
    assert explain_object(gone).text.startswith("Deleted, and confirmed gone on")


# A cleanup acts only for its own deletion


def reborn(project_id: str = "proj_1") -> Cleanup:
    """Create the project and delete it again."""
    create_projects(project_id)
    return request_cleanup(project_id)


def test_follow_up_of_a_first_life_leaves_the_files_of_the_second(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    first = clean_up_project("proj_1")
    due = first.children.earliest("next_attempt_at")
    key = bucket.upload("proj_1")
    second = request_cleanup("proj_1")
    with transaction.atomic():
        assert second.acquire_lease()
    second.block("too much")
    # As if a worker had had it when the second deletion was asked for.
    facts = {"status": "pending", "next_attempt_at": timezone.now()}
    Cleanup.objects.filter(pk=due.pk).update(**facts)
    due = run_until_idle(due)
    assert due.status == Status.SUPERSEDED
    assert "created and deleted again" in due.message
    assert bucket.keys() == {key}


def test_cleanup_whose_project_had_another_life_meanwhile_sends_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    made = list[Cleanup]()
    act_before_batch(monkeypatch, lambda: made.append(reborn()))
    first = clean_up_project("proj_1")
    assert (first.status, read_outcomes(first)) == (Status.SUPERSEDED, {key: "kept"})
    assert bucket.keys() == {key}
    assert (run_until_idle(made[0]).status, bucket.keys()) == (Status.CLEAN, set())
    check_promises(bucket)


def test_cleanup_without_a_deletion_on_record_keeps_everything(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    KnownProject.objects.all().delete()
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, bucket.keys()) == (Status.SUPERSEDED, {key})
    assert "no longer have a record" in cleanup.message


@pytest.mark.parametrize("status", ["pending", "running", "blocked", "retrying", "failed"])
def test_next_deletion_supersedes_the_open_cleanup(bucket: Bucket, status: str) -> None:
    key = bucket.upload("proj_1")
    first = request_cleanup("proj_1")
    an_hour_ago = timezone.now() - timedelta(hours=1)
    lease = {"lease_token": uuid4(), "lease_until": an_hour_ago} if status == "running" else {}
    Cleanup.objects.filter(pk=first.pk).update(status=status, **lease)
    item = {"key": key, "identity": key, "found_in": "both", "size": 4}
    CleanupItem.objects.create(cleanup=first, **item)
    R2Object.objects.update(state="deleting")
    second = reborn()
    first.refresh_from_db()
    assert (first.status, first.enqueued_at) == (Status.PENDING, None)
    assert Cleanup.objects.due().contains(first)
    first = run_until_idle(first)
    assert (first.status, first.kept, first.kept_bytes) == ("superseded", 1, 4)
    assert first.next_attempt_at is None and first.finished_at
    assert R2Object.objects.get().state == "stored"
    assert [*Cleanup.objects.of_project("proj_1")] == [second]
    assert run_until_idle(second).status == Status.CLEAN
    check_promises(bucket)


def test_next_deletion_changes_no_item_of_the_open_cleanup(bucket: Bucket) -> None:
    """There may be a million of them, and the person who deletes waits."""
    bucket.upload("proj_1")
    first = request_cleanup("proj_1")
    create_projects("proj_1")
    with CaptureQueriesContext(connection) as captured:
        Project.objects.get(pk="proj_1").delete()
    asked = " ".join(query["sql"] for query in captured.captured_queries)
    assert "storage_audit_cleanupitem" not in asked
    second = Cleanup.objects.of_project("proj_1").latest("created_at")
    assert (second != first, run_until_idle(second).status) == (True, Status.CLEAN)
    first.refresh_from_db()
    assert first.status == Status.SUPERSEDED


def test_cleanup_that_a_worker_has_is_superseded_when_the_next_is_taken(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    first = request_cleanup("proj_1")
    with transaction.atomic():
        assert first.acquire_lease()
    second = reborn()
    first.refresh_from_db()
    assert first.status == Status.RUNNING
    with transaction.atomic():
        first.refresh_from_db()
        first.block("too much")
    assert run_until_idle(second).status == Status.CLEAN
    first.refresh_from_db()
    assert first.status == Status.SUPERSEDED


def test_next_deletion_takes_over_the_buckets_of_the_open_cleanup(bucket: Bucket) -> None:
    create_projects("proj_1")
    KnownProject.objects.update(deleted_at=timezone.now(), evidence="deleted")
    KnownProject.objects.update(deleted_at=None)
    Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket="other", trigger="deleted", status="blocked"
    )
    Project.objects.get().delete()
    open_ones = Cleanup.objects.of_project("proj_1")
    assert {each.bucket for each in open_ones} == {"other", bucket.name}
    assert {each.status for each in open_ones} == {"pending"}


# A second request


def test_second_request_returns_the_open_cleanup(bucket: Bucket) -> None:
    first = reborn()
    assert requests.declare_deleted("proj_1") == [first]
    assert requests.cleanups_of_deletion("proj_1") == [first]
    messages = first.events.values_list("message", flat=True)
    assert "Requested again while still open." in messages
    assert run_until_idle(first).status == Status.CLEAN
    [second] = requests.declare_deleted("proj_1")
    assert second != first


def test_second_request_tries_a_failed_cleanup_again(bucket: Bucket) -> None:
    first = reborn()
    late = {"status": "failed", "next_attempt_at": timezone.now() + timedelta(days=1)}
    Cleanup.objects.filter(pk=first.pk).update(**late)
    [again] = requests.declare_deleted("proj_1")
    assert (again.pk, run_until_idle(again).status) == (first.pk, Status.CLEAN)


def test_second_request_lifts_no_limit(bucket: Bucket, blocked: Cleanup) -> None:
    assert requests.declare_deleted("proj_9") == [blocked]
    assert (run_until_idle(blocked).status, bucket.keys()) == (Status.BLOCKED, {KEY})
    assert requests.approve_or_retry(blocked) == [blocked]
    assert (run_until_idle(blocked).status, bucket.keys()) == (Status.CLEAN, set())


def test_forced_deletion_of_the_next_life_supersedes_a_blocked_cleanup(
    bucket: Bucket, blocked: Cleanup
) -> None:
    create_projects("proj_9")
    [forced] = force_delete("proj_9", "zoe")
    assert run_until_idle(forced).status == Status.CLEAN
    blocked.refresh_from_db()
    assert (blocked.status, forced.limits_waived_by) == (Status.SUPERSEDED, "zoe")


def test_plan_does_not_run_beside_an_open_cleanup(bucket: Bucket, blocked: Cleanup) -> None:
    [plan] = requests.request_preview("proj_9")
    plan = run_until_idle(plan)
    with pytest.raises(IllegalTransition, match=f"Cleanup {blocked.pk} of project proj_9"):
        requests.approve_or_retry(plan)
    assert run_until_idle(plan).status == Status.PLANNED


def test_plan_of_an_earlier_deletion_is_refused(bucket: Bucket) -> None:
    bucket.put(KEY)
    record_deleted_projects("proj_9")
    [plan] = requests.request_preview("proj_9")
    plan = run_until_idle(plan)
    assert run_until_idle(reborn("proj_9")).status == Status.CLEAN
    with pytest.raises(IllegalTransition, match="created and deleted again since plan"):
        requests.approve_or_retry(plan)


def test_database_refuses_a_second_open_cleanup_of_a_deletion(bucket: Bucket) -> None:
    first = reborn()
    values: dict[str, Any] = {"kind": "project", "project_id": "proj_1", "bucket": bucket.name}
    values |= {"trigger": "deleted", "project_deleted_at": first.project_deleted_at}
    with pytest.raises(IntegrityError), transaction.atomic():
        Cleanup.objects.request(**values)
    Cleanup.objects.request(**values, parent=first)


# Findings of what is gone


@pytest.mark.parametrize(
    "kind", ["orphaned", "missing", "misnamed", "untracked", "changed", "ambiguous", "unfinished"]
)
def test_cleanup_resolves_the_findings_of_what_it_saw_gone(bucket: Bucket, kind: str) -> None:
    key = bucket.upload("proj_1")
    upload = {"upload_id": "u1"} if kind == "unfinished" else {}
    create_findings(bucket, key, kind=kind, project_id="proj_1", **upload)
    create_findings(bucket, OTHER_KEY, kind=kind, project_id="proj_1", **upload)
    cleanup = clean_up_project("proj_1")
    notes = dict(Finding.objects.values_list("key", "note"))
    gone = "" if kind == "unfinished" else f"deleted by cleanup {cleanup.pk}"
    assert notes == {key: gone, OTHER_KEY: ""}


def test_finding_of_a_scan_that_began_after_the_listing_stays_open(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    later = timezone.now() + timedelta(hours=1)
    create_findings(bucket, key, project_id="proj_1", last_seen_at=later)
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert open_findings() == {key: "orphaned"}
