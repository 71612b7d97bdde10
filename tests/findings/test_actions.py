"""What a person decides about findings: done as promised, or left with a reason."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Event
from typing import Any, Literal
from unicodedata import normalize

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from storage_audit.bucket import listing
from storage_audit.bucket.errors import InvalidResponse
from storage_audit.cleanup import (
    delete_batches,
    delete_pipeline,
    open_decisions,
    requests,
    sighted_listing,
    worker_turn,
)
from storage_audit.cleanup.kind_policies import policy_of
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.open_decisions import covered_reason
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.display_formats import format_utc
from storage_audit.findings import action_result, orphans, track_files
from storage_audit.findings.action_result import ActionRefused, Decision
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership.bucket_marker import MARKER_KEY, CannotConclude
from storage_audit.project_model import ProjectExists
from storage_audit.request_origin import Origin, use_origin
from tests.admin_client import admin_url, confirm_action, staff_client, superuser_client
from tests.builders import LONG_AGO, create_findings, create_orphans, list_ids, read_states
from tests.findings.orphans import delete_orphans, request_deletion
from tests.keys import FOLDER, KEY, OTHER_KEY
from tests.promises import (
    act_before_batch,
    act_before_verification,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.strange_keys import STRANGE_ORPHANS

pytestmark = pytest.mark.usefixtures("young_orphans_may_go")

Kind, Status, Source = Finding.Kind, Cleanup.Status, R2Object.Source


def whys(decision: Decision) -> dict[str, str]:
    return dict(decision.skipped)


def the(finding: Finding) -> Finding:
    finding.refresh_from_db()
    return finding


# Ignored, and open again


def test_an_ignored_finding_says_who_ignored_it_when_and_why_and_can_be_reopened(
    bucket: Bucket,
) -> None:
    [finding, other] = create_orphans(bucket, KEY, OTHER_KEY)
    with use_origin(Origin("zoe")):
        assert action_result.ignore_findings([finding.pk], " the web site's ") == Decision(done=1)
    assert (the(finding).state, finding.note) == ("ignored", "the web site's")
    assert finding.decided_by == "zoe" and finding.decided_at
    assert the(other).state == "open"
    decision = action_result.ignore_findings(Finding.objects.all(), "both")
    assert (decision.done, decision.skipped) == (1, [(KEY, "Already ignored: the web site's")])
    assert action_result.reopen_findings([finding.pk]).done == 1
    assert (the(finding).state, finding.note) == ("open", "")


def test_ignoring_without_a_note_is_refused(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    with pytest.raises(ActionRefused, match="Add a note"):
        action_result.ignore_findings(list_ids(found), " ")
    assert read_states() == {KEY: "open"}


def test_what_is_open_or_resolved_is_not_reopened_and_says_so(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, OTHER_KEY, state="resolved", note="tracked")
    decision = action_result.reopen_findings(Finding.objects.all())
    assert whys(decision) == {KEY: "Already open.", OTHER_KEY: "Already resolved: tracked"}
    assert decision.done == 0


def test_a_secret_in_a_note_is_not_kept(bucket: Bucket) -> None:
    [finding] = create_orphans(bucket, KEY)
    action_result.ignore_findings([finding.pk], "see https://me:hunter2@example.com\0")
    assert "hunter2" not in the(finding).note


def test_a_part_of_a_list_can_be_decided_on(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    assert action_result.ignore_findings(Finding.objects.order_by("key")[:1], "fine").done == 1
    assert read_states() == {KEY: "ignored", OTHER_KEY: "open"}


# Ignored, and kept

KEEPS = "Kept: zoe ignored finding {} about this file. To delete the file, reopen that finding"


def assert_kept_by(finding: Finding, cleanup: Cleanup, key: str) -> None:
    """The note is for those who may see findings, and more people see an item's reason."""
    assert read_reason(cleanup, key).startswith(KEEPS.format(finding.pk))
    assert "law suit" in the(finding).note and "law suit" not in read_reason(cleanup, key)


def keep(found: Iterable[Finding]) -> Decision:
    with use_origin(Origin("zoe")):
        decision = action_result.ignore_findings(list_ids(found), "Evidence in a law suit")
    assert (decision.done, decision.skipped) == (1, [])
    return decision


def test_follow_up_keeps_an_ignored_file(bucket: Bucket) -> None:
    create_projects("proj_2", "proj_9")
    bucket.upload("proj_9")
    cleanup = clean_up_project("proj_9")
    [finding] = create_orphans(bucket, KEY)
    keep([finding])
    checked = run_follow_up(cleanup)
    assert (checked.status, bucket.keys()) == (Status.CLEAN_WITH_KEPT, {KEY})
    assert_kept_by(finding, checked, KEY)
    assert read_states() == {KEY: "ignored"}


def test_plan_shows_that_a_file_ignored_since_stays(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    plan = request_deletion(found, dry_run=True)
    keep(found[:1])
    assert read_outcomes(run_until_idle(plan)) == {KEY: "kept", OTHER_KEY: "to_delete"}


def test_plan_that_is_run_keeps_a_file_ignored_since(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    plan = run_until_idle(request_deletion(found, dry_run=True))
    keep(found[:1])
    requests.approve_or_retry(plan)
    assert read_outcomes(run_until_idle(plan)) == {KEY: "kept", OTHER_KEY: "deleted"}
    assert_kept_by(found[0], plan, KEY)
    assert read_states() == {KEY: "ignored", OTHER_KEY: "resolved"}


def test_queued_deletion_keeps_a_file_ignored_since_and_is_named(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    cleanup = request_deletion(found)
    [(key, told)] = keep(found).results
    assert key == KEY and told.startswith(f"Cleanup {cleanup.pk} covers this file.")
    assert read_outcomes(run_until_idle(cleanup)) == {KEY: "kept"}
    assert bucket.keys() == {KEY}


def test_approved_deletion_keeps_a_file_ignored_since(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    create_projects("proj_1")
    found = create_orphans(bucket, KEY)
    cleanup = delete_orphans(found)
    assert cleanup.status == Status.BLOCKED
    assert keep(found).results
    requests.approve_or_retry(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {KEY: "kept"}


def test_deletion_of_its_row_keeps_an_ignored_file(bucket: Bucket) -> None:
    create_projects("proj_9")
    key = bucket.upload("proj_9")
    [finding] = create_findings(bucket, key, kind="changed")
    keep([finding])
    R2Object.objects.get().delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert_kept_by(finding, cleanup, key)
    assert bucket.keys() == {key}


@pytest.mark.parametrize("since", ["the plan", "the batch"])
@pytest.mark.parametrize("kind", ["project", "objects", "orphans"])
def test_nothing_is_deleted_while_nobody_tells_what_people_keep(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str, since: str
) -> None:
    if kind == "orphans":
        cleanup = request_deletion(create_orphans(bucket, KEY))
    else:
        create_projects("proj_9")
        bucket.upload("proj_9")
        model = Project if kind == "project" else R2Object
        model._default_manager.get().delete()
        cleanup = Cleanup.objects.get()
    there = bucket.keys()
    with monkeypatch.context() as patch, pytest.raises(ImproperlyConfigured):
        if since == "the plan":
            patch.setattr(open_decisions, "_ignore_lists", [])
        else:
            act_before_batch(patch, partial(patch.setattr, open_decisions, "_ignore_lists", []))
        run_until_idle(cleanup)
    assert bucket.keys() == there
    cleanup.refresh_from_db()
    assert cleanup.status == Status.RETRYING
    assert run_again(cleanup).status == Status.CLEAN and bucket.keys() != there


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_ignored_file_is_kept_under_another_spelling(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, form: Literal["NFC", "NFD"]
) -> None:
    fold_unicode(bucket)
    create_projects("proj_2", "proj_9")
    cleanup = clean_up_project("proj_9")
    [finding] = create_orphans(bucket, FOLDER + "e\u0301")
    Finding.objects.update(key=normalize(form, finding.key))
    keep([finding])
    assert set(read_outcomes(run_follow_up(cleanup)).values()) == {"kept"}
    assert len(bucket.keys()) == 1


@pytest.mark.parametrize("kind", ["missing", "unfinished"])
def test_ignored_finding_about_no_object_keeps_none(bucket: Bucket, kind: str) -> None:
    create_projects("proj_2", "proj_9")
    cleanup = clean_up_project("proj_9")
    keep(create_orphans(bucket, KEY, kind=kind))
    assert read_outcomes(run_follow_up(cleanup)) == {KEY: "deleted"}


def test_ignored_finding_of_another_object_keeps_none(bucket: Bucket) -> None:
    create_projects("proj_2", "proj_9")
    cleanup = clean_up_project("proj_9")
    keep(create_orphans(bucket, KEY, etag="another"))
    assert read_outcomes(run_follow_up(cleanup)) == {KEY: "deleted"}
    [note] = Finding.objects.values_list("note", flat=True)
    assert note.endswith(" (previously ignored by zoe: Evidence in a law suit)")


def test_reopened_file_goes_with_the_next_cleanup(bucket: Bucket) -> None:
    create_projects("proj_2", "proj_9")
    cleanup = clean_up_project("proj_9")
    found = create_orphans(bucket, KEY)
    keep(found)
    action_result.reopen_findings(list_ids(found))
    assert read_outcomes(run_follow_up(cleanup)) == {KEY: "deleted"}


# Orphans: which may go


def test_orphans_go_with_plan_proof_totals_and_their_findings(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, "audio/proj_9/s1/voice.mp3")
    bucket.put("projects/proj_9/scenes/s1/media/unseen.mp4")
    with use_origin(Origin("zoe", "admin")):
        cleanup = request_deletion(found)
    assert (cleanup.kind, cleanup.trigger, cleanup.status) == (
        "orphans",
        "orphaned",
        "pending",
    )
    assert (cleanup.project_id, cleanup.requested_by) == ("proj_9", "zoe")
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.found, cleanup.deleted) == (Status.CLEAN, 2, 2)
    assert cleanup.deleted_bytes == 14 and cleanup.plan_digest
    assert bucket.keys() == {"projects/proj_9/scenes/s1/media/unseen.mp4"}
    assert {the(finding).note for finding in found} == {f"deleted by cleanup {cleanup.pk}"}
    assert {(f.state, f.decided_by) for f in found} == {("resolved", "zoe")}
    check_promises(bucket)


def test_of_several_projects_and_buckets_each_bucket_has_one_cleanup(
    bucket: Bucket, local_r2: Any
) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, "audio/proj_8/s1/a.mp3", project_id="proj_8")
    other = Bucket(local_r2, "other")
    other.wipe()
    local_r2.put(MARKER_KEY, b"{}", "other")
    create_findings(other, KEY, size=1, etag="e", last_modified=timezone.now())
    with pytest.raises(CannotConclude, match="another database"):
        orphans.delete_objects(Finding.objects.all())
    assert not Cleanup.objects.exists()
    cleanup = request_deletion(Finding.objects.filter(bucket=bucket.name))
    cleanup.refresh_from_db()
    assert (cleanup.project_id, cleanup.subject) == (None, "objects of several projects")
    assert run_until_idle(cleanup).deleted == 2


def test_what_may_not_go_says_why_and_when(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(days=1)}
    now, old = timezone.now(), timezone.now() - LONG_AGO
    create_orphans(bucket, "young")
    bucket.put("once", "kept", "done", "other", "nul", "both")
    create_findings(bucket, "once", last_modified=old, first_seen_at=now - timedelta(hours=3))
    create_findings(bucket, "both", first_seen_at=now)
    create_findings(bucket, "kept", last_modified=old, state="ignored", note="mine")
    create_findings(bucket, "done", last_modified=old, state="resolved", note="gone")
    create_findings(bucket, "other", last_modified=old, kind="untracked")
    create_findings(bucket, "nul", last_modified=old, escaped=True)
    decision = orphans.delete_objects(Finding.objects.all())
    told = whys(decision)
    assert (decision.done, decision.cleanups, len(told)) == (0, [], 7)
    assert told["young"].startswith("Too new: can be deleted after ")
    assert f"starts after {format_utc(now + timedelta(hours=1))} finds" in told["once"]
    assert told["both"].startswith("Too new: can be deleted after ")
    assert told["both"].endswith(", once another complete scan finds it again.")
    assert told["kept"] == "Already ignored: mine"
    assert told["done"] == "Already resolved: gone"
    assert told["other"] == "Not a leftover file, but: untracked."
    assert "No request can use this name" in told["nul"]
    assert not Cleanup.objects.exists()


def test_the_age_and_the_gap_are_those_of_the_settings(bucket: Bucket, settings: Settings) -> None:
    [finding] = create_orphans(bucket, KEY, first_seen_at=timezone.now() - timedelta(hours=3))
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_GAP": timedelta(hours=2)}
    assert request_deletion([finding]).items.count() == 1


def test_what_a_cleanup_is_to_delete_already_is_not_asked_for_again(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    cleanup = request_deletion(found)
    decision = orphans.delete_objects(list_ids(found))
    told = (
        f"Cleanup {cleanup.pk} covers this file, and its status is waiting. Wait until it is over"
    )
    assert whys(decision)[KEY].startswith(told)
    assert not decision.cleanups


def test_what_goes_by_another_spelling_is_not_asked_for_again(bucket: Bucket) -> None:
    fold_unicode(bucket)
    decomposed = FOLDER + "e\u0301"
    found = [*create_orphans(bucket, decomposed), *create_orphans(bucket, KEY)]
    cleanup = request_deletion(found[:1])
    assert cleanup.items.get().identity == FOLDER + "\u00e9"
    told = covered_reason(cleanup)
    would = orphans.deletion_preview(list_ids(found), 5)
    assert (len(would.to_delete), would.skipped_count, would.skipped) == (
        1,
        1,
        [(decomposed, told)],
    )
    decision = orphans.delete_objects(list_ids(found))
    assert (decision.done, whys(decision)) == (1, {decomposed: told})


def test_strange_keys_go_and_nothing_else_does(bucket: Bucket) -> None:
    found = create_orphans(bucket, *STRANGE_ORPHANS)
    traps = {FOLDER + trap for trap in ("up", "cmd()", "ab", "b/c", "e/b", "g", "ke", "le")}
    bucket.put(*traps, "up")
    cleanup = delete_orphans(found)
    assert read_outcomes(cleanup) == dict.fromkeys(STRANGE_ORPHANS, "deleted")
    assert bucket.keys() == traps | {"up"}
    assert set(read_states().values()) == {"resolved"}
    check_promises(bucket)


def test_two_spellings_are_two_objects_where_the_store_says_so(bucket: Bucket) -> None:
    found = create_orphans(bucket, FOLDER + "\u00e9", FOLDER + "e\u0301")
    track_key(bucket, found[0].key, "proj_9", "backfill")
    track_key(bucket, found[1].key, "proj_9", "backfill")
    assert delete_orphans(found[1:]).deleted == 1
    assert bucket.keys() == {found[0].key}
    assert R2Object.objects.get().state == "stored"


def test_two_spellings_of_one_object_are_one_item(bucket: Bucket) -> None:
    fold_unicode(bucket)
    composed, decomposed = FOLDER + "\u00e9", FOLDER + "e\u0301"
    create_orphans(bucket, decomposed)
    create_findings(bucket, composed, size=1, etag="old", last_modified=timezone.now())
    cleanup = delete_orphans(Finding.objects.all())
    assert read_outcomes(cleanup) == {decomposed: "deleted"}
    assert set(read_states().values()) == {"resolved"}
    check_promises(bucket)


# Orphans: what the plan and the proof ask again


def test_an_object_that_is_not_the_one_of_the_finding_is_not_planned(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    bucket.put(KEY, body=b"new content")
    cleanup = request_deletion(found)
    assert run_until_idle(cleanup).status == Status.CLEAN_WITH_KEPT
    cleanup.refresh_from_db()
    assert read_outcomes(cleanup) == {KEY: "kept", OTHER_KEY: "deleted"}
    assert "overwritten" in read_reason(cleanup, KEY)
    assert read_states() == {KEY: "open", OTHER_KEY: "resolved"}
    check_promises(bucket)


def upload_for_a_live_one(bucket: Bucket) -> None:
    create_projects("proj_1")
    track_key(bucket, KEY, "proj_1")


def vanish(bucket: Bucket) -> None:
    """Nobody said that it is deleted, and there are others."""
    create_projects("proj_2")
    KnownProject.objects.create(pk="proj_9", evidence="saved")


def refused(bucket: Bucket) -> None:
    """The key could be its in the format with the prefix twice."""
    Project.objects.bulk_create([Project(pk="9")])


STAYS: dict[str, tuple[Callable[[Bucket], object], str]] = {
    "a project": (lambda bucket: create_projects("proj_9"), "existing project: proj_9"),
    "one that vanished": (vanish, "existing project: proj_9"),
    "one whose id PROJECT_ID_PATTERN refuses": (refused, "project: 9. But the setting"),
    "a row of a live project": (upload_for_a_live_one, "existing project: proj_1"),
    "other content": (lambda bucket: bucket.put(KEY, body=b"other"), "overwritten"),
    "the same content": (lambda bucket: bucket.put(KEY), "overwritten"),
    "an upload": (
        lambda bucket: track_key(bucket, KEY, "proj_9", state="uploading"),
        "in progress",
    ),
}
each_change = pytest.mark.parametrize("change", STAYS)


@each_change
def test_what_comes_between_plan_and_batch_keeps_the_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    other = OTHER_KEY.replace("proj_9", "proj_8")
    effect, said = STAYS[change]
    act_before_batch(monkeypatch, partial(effect, bucket))
    cleanup = delete_orphans(create_orphans(bucket, KEY, other))
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert read_outcomes(cleanup) == {KEY: "kept", other: "deleted"}
    assert said in read_reason(cleanup, KEY)
    assert bucket.keys() == {KEY}
    assert read_states() == {KEY: "open", other: "resolved"}
    assert not R2Object.objects.filter(state="deleting").exists()
    check_promises(bucket)


@each_change
def test_what_is_so_before_the_plan_keeps_the_object_too(bucket: Bucket, change: str) -> None:
    found = create_orphans(bucket, KEY)
    effect, said = STAYS[change]
    effect(bucket)
    cleanup = request_deletion(found, dry_run=True)
    run_until_idle(cleanup)
    if change != "an upload":  # which may be over when the plan is run
        assert read_outcomes(cleanup) == {KEY: "kept"}
        assert said in read_reason(cleanup, KEY)
    assert bucket.keys() == {KEY}


def test_a_key_that_can_be_of_two_deleted_projects_by_now_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "proj_1_x_s1_media.mp4"
    record_deleted_projects("proj_1")
    act_before_batch(monkeypatch, lambda: record_deleted_projects("proj_1_x"))
    cleanup = delete_orphans(create_orphans(bucket, key, project_id="proj_1"))
    assert read_reason(cleanup, key) == "No longer a leftover file: unclear owner."
    assert bucket.keys() == {key}


def test_an_object_given_to_a_live_project_after_the_plan_stays(bucket: Bucket) -> None:
    create_projects("proj_1")
    found = create_orphans(bucket, KEY)
    cleanup = run_until_idle(request_deletion(found, dry_run=True))
    assert track_files.assign_objects(list_ids(found), "proj_1").done == 1
    requests.approve_or_retry(cleanup)
    assert "existing project: proj_1" in read_reason(run_until_idle(cleanup), KEY)
    assert bucket.keys() == {KEY}
    assert R2Object.objects.get().state == "stored"


def cleanup_asked_for_just_after_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing covers the file when an adoption asks."""
    monkeypatch.setattr(track_files, "find_covering", lambda *_args: {})


def test_an_object_that_is_being_deleted_is_given_to_nobody(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    cleanup_asked_for_just_after_the_question(monkeypatch)
    found, told = create_orphans(bucket, KEY), list[Decision]()
    act_before_batch(
        monkeypatch, lambda: told.append(track_files.assign_objects(list_ids(found), "proj_1"))
    )
    assert delete_orphans(found).deleted == 1
    assert "deleted or changed right now" in whys(told[0])[KEY]
    assert not R2Object.objects.exists()


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("known", [True, False])
def test_a_project_that_is_just_being_created_keeps_its_object(bucket: Bucket, known: bool) -> None:
    if known:
        record_deleted_projects("proj_9")
    found = create_orphans(bucket, KEY)
    cleanup, made, proved = request_deletion(found), Event(), Event()

    def create() -> None:
        try:
            with transaction.atomic():
                create_projects("proj_9")
                made.set()
                proved.wait(60)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        creation = thread.submit(create)
        made.wait(60)
        assert run_until_idle(cleanup).status == Status.RETRYING
        assert "being created right now" in Cleanup.objects.get(pk=cleanup.pk).message
        proved.set()
        creation.result()
    assert read_outcomes(run_again(Cleanup.objects.get(pk=cleanup.pk))) == {KEY: "kept"}
    assert bucket.keys() == {KEY}


# Orphans: their rows


def test_rows_are_deleted_only_after_their_objects_are_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_deleted_projects("proj_9", "proj_8")
    third = FOLDER + "third.mp4"
    found = create_orphans(bucket, KEY, OTHER_KEY, third)
    track_key(bucket, KEY, "proj_9", "backfill")
    track_key(bucket, OTHER_KEY, "proj_8")
    track_key(bucket, third, None)
    rows: list[int] = []
    act_before_verification(monkeypatch, lambda: rows.append(R2Object.objects.count()))
    cleanup = delete_orphans(found)
    assert set(read_outcomes(cleanup).values()) == {"deleted"}
    assert rows == [3] and not R2Object.objects.exists()


def test_a_row_of_a_live_project_is_never_barred(bucket: Bucket) -> None:
    create_projects("proj_1")
    found = create_orphans(bucket, KEY)
    track_key(bucket, KEY, "proj_1")
    cleanup = request_deletion(found)
    assert not policy_of(cleanup).lockable_rows(cleanup).exists()
    run_until_idle(cleanup)
    assert R2Object.objects.get().state == "stored"


@pytest.mark.parametrize("last_look", ["proof", "verification"])
def test_a_row_whose_project_lives_again_since_it_was_barred_is_opened_or_forgotten(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, last_look: str
) -> None:
    record_deleted_projects("proj_9")
    found = create_orphans(bucket, KEY)
    track_key(bucket, KEY, "proj_9", size=7)
    at_proof = last_look == "proof"
    between = act_before_batch if at_proof else act_before_verification
    between(monkeypatch, lambda: create_projects("proj_9"))
    assert read_outcomes(delete_orphans(found)) == {KEY: "kept" if at_proof else "deleted"}
    states = R2Object.objects.values_list("state", flat=True)
    assert list(states) == (["stored"] if at_proof else [])
    check_promises(bucket)


def test_an_upload_to_a_key_that_is_being_deleted_is_barred(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred: list[bool] = []
    original = delete_pipeline.send_batch

    def send(*args: Any, **kwargs: Any) -> Any:
        barred.append(CleanupItem.objects.is_being_deleted(bucket.name, KEY))
        return original(*args, **kwargs)

    monkeypatch.setattr(delete_pipeline, "send_batch", send)
    delete_orphans(create_orphans(bucket, KEY))
    assert barred == [True]


# Orphans: plan, limits, trouble, follow-up checks


def test_a_dry_run_freezes_a_plan_of_which_a_part_is_deleted_later(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    cleanup = request_deletion(found, dry_run=True)
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.message) == (Status.PLANNED, "")
    assert bucket.keys() == {KEY, OTHER_KEY}
    assert orphans.delete_objects(list_ids(found), dry_run=True).done == 2
    bucket.put(KEY, body=b"changed")
    bucket.put(FOLDER + "new.mp4")
    digest = cleanup.plan_digest
    requests.approve_or_retry(cleanup)
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.plan_digest) == (Status.CLEAN_WITH_KEPT, digest)
    assert read_outcomes(cleanup) == {KEY: "kept", OTHER_KEY: "deleted"}
    assert bucket.keys() == {KEY, FOLDER + "new.mp4"}
    check_promises(bucket)


def test_a_plan_of_a_project_that_lives_again_is_not_run(bucket: Bucket) -> None:
    cleanup = run_until_idle(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    create_projects("proj_9")
    with pytest.raises(ProjectExists):
        requests.approve_or_retry(cleanup)


def test_more_than_the_limit_is_blocked_until_a_person_approves_it(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 1}
    cleanup = delete_orphans(create_orphans(bucket, KEY, OTHER_KEY))
    assert cleanup.status == Status.BLOCKED and "The safety limit is 1 file" in cleanup.message
    assert bucket.keys() == {KEY, OTHER_KEY}
    requests.approve_or_retry(cleanup)
    assert run_until_idle(cleanup).deleted == 2


def test_a_listing_that_shows_few_of_them_is_not_believed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{FOLDER}{n:02}" for n in range(24)]
    found = create_orphans(bucket, *keys)
    for key in keys[1:]:
        bucket.r2.remove(key)
    cleanup = delete_orphans(found)
    assert (
        cleanup.status == Status.BLOCKED
        and "suggest the wrong bucket or an incomplete answer" in cleanup.message
    )
    assert bucket.keys() == {keys[0]}


def test_a_few_of_many_may_be_gone_and_are_called_already_gone(bucket: Bucket) -> None:
    keys = [f"{FOLDER}{n:02}" for n in range(60)]
    found = create_orphans(bucket, *keys)
    for key in keys[:25]:
        bucket.r2.remove(key)
    cleanup = delete_orphans(found)
    assert (cleanup.status, cleanup.already_gone, cleanup.deleted) == ("clean", 25, 35)
    notes = Finding.objects.filter(key__in=keys[:25]).values_list("note", flat=True).distinct()
    assert list(notes) == [f"confirmed gone by cleanup {cleanup.pk}"]


def test_cleanup_of_a_project_resolves_every_kind_of_finding_about_its_files(
    bucket: Bucket,
) -> None:
    """Without another scan, of which the next may be days away."""
    create_projects("proj_9")
    there = [f"{FOLDER}{kind}.mp4" for kind in ("changed", "misnamed", "untracked")]
    lost = f"{FOLDER}missing.mp4"
    for key in there:
        bucket.put(key)
    for key in (there[0], there[1], lost):
        track_key(bucket, key, "proj_9")
    kinds = {"changed": there[0], "misnamed": there[1], "untracked": there[2], "missing": lost}
    found = [create_findings(bucket, key, kind=kind)[0] for kind, key in kinds.items()]
    cleanup = clean_up_project("proj_9")
    assert (cleanup.status, bucket.keys()) == (Status.CLEAN, set())
    assert {the(finding).state for finding in found} == {"resolved"}


def test_a_crash_between_two_batches_is_gone_on_from(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BATCH_SIZE": 2}
    keys = [f"{FOLDER}{n}" for n in range(7)]
    cleanup, original = (
        request_deletion(create_orphans(bucket, *keys)),
        delete_batches.delete_batch,
    )
    calls = 0

    def delete_batch(work: Turn, *batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(work, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(delete_batches, "delete_batch", delete_batch)
        with pytest.raises(KeyboardInterrupt):
            run_until_idle(cleanup)
    assert len(bucket.keys()) == 5
    past = timezone.now() - timedelta(minutes=5)
    Cleanup.objects.update(lease_until=past, next_attempt_at=past)
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, 7)
    assert cleanup.events.filter(step="takeover").exists()
    check_promises(bucket)


def test_trouble_of_the_store_deletes_nothing_and_resolves_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = create_orphans(bucket, KEY)

    def broken(*args: object) -> None:
        raise InvalidResponse("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(sighted_listing, "find_keys", broken)
        cleanup = delete_orphans(found)
    assert (cleanup.status, bucket.keys()) == (Status.RETRYING, {KEY})
    assert read_states() == {KEY: "open"}
    assert run_again(cleanup).status == Status.CLEAN


def test_follow_ups_list_again_and_delete_nothing(bucket: Bucket) -> None:
    cleanup = delete_orphans(create_orphans(bucket, KEY, OTHER_KEY))
    checks = cleanup.children.order_by("next_attempt_at")
    assert [(c.kind, c.trigger) for c in checks] == [("verify", "follow_up")] * 3
    bucket.put(KEY)
    look = run_follow_up(cleanup)
    assert look.status == Status.DIFFERS
    assert read_outcomes(look) == {KEY: "failed", OTHER_KEY: "already_gone"}
    assert bucket.keys() == {KEY}
    create_projects("proj_9")
    look = run_again(checks[1])
    assert look.status == Status.CLEAN_WITH_KEPT
    assert "existing project: proj_9" in read_reason(look, KEY)
    check_of_it = requests.request_cleanup_verification(cleanup)
    assert run_until_idle(check_of_it).status == Status.CLEAN_WITH_KEPT


def test_a_deletion_that_a_person_forced_of_a_project_has_its_own_follow_ups(
    bucket: Bucket,
) -> None:
    bucket.upload("proj_1")
    assert {each.kind for each in clean_up_project("proj_1").children.all()} == {"project"}


def test_neighbours_are_listed_together_and_cost_few_queries(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_turn, "MAX_LONE_KEYS", 10)
    monkeypatch.setattr(Turn, "keys_per_lookup", 10)
    defaults = (False, None, 0, 10, False)
    monkeypatch.setattr(Turn.__init__, "__defaults__", defaults)
    keys = [f"{FOLDER}{n:03}" for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(bucket.put, keys))
    cleanup = request_deletion(create_findings(bucket, *keys))
    with CaptureQueriesContext(connection) as few:
        cleanup = run_until_idle(cleanup)
    assert cleanup.deleted == 400
    batches = cleanup.events.filter(message__startswith="Sent a batch of").count()
    assert batches <= 6
    assert len(few) < len(keys)


def test_keys_that_are_no_neighbours_are_listed_fewer_at_a_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = create_orphans(bucket, *(f"{FOLDER}{n}" for n in range(6)))
    monkeypatch.setattr(worker_turn, "MAX_LONE_KEYS", 2)
    monkeypatch.setattr(worker_turn, "SLOW_LOOKUP_SECONDS", -1.0)
    cleanup = delete_orphans(found)
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, 6)
    batches = cleanup.events.filter(message__startswith="Sent a batch of")
    assert [batch.message for batch in batches] == ["Sent a batch of 2 files."] * 3


# Given to a project


def test_an_assigned_object_is_its_project_s_and_goes_with_it(bucket: Bucket) -> None:
    create_projects("proj_1")
    found = create_orphans(bucket, KEY, "logo.png", *STRANGE_ORPHANS)
    with use_origin(Origin("zoe")):
        decision = track_files.assign_objects(list_ids(found), "proj_1")
    assert (decision.done, decision.skipped) == (len(found), [])
    row = R2Object.objects.get(key=KEY)
    assert (row.project_id, row.source, row.state) == ("proj_1", "assigned", "stored")
    assert (row.size, row.etag) == bucket.facts()[KEY]
    assert {(the(f).state, f.note, f.decided_by) for f in found} == {
        ("resolved", "assigned to proj_1", "zoe")
    }
    cleanup = clean_up_project("proj_1")
    assert set(read_outcomes(cleanup).values()) == {"deleted"}
    assert not bucket.keys() and not R2Object.objects.exists()
    check_promises(bucket)


def test_an_assigned_object_stays_when_the_project_that_its_key_names_goes(bucket: Bucket) -> None:
    create_projects("proj_1")
    assert track_files.assign_objects(list_ids(create_orphans(bucket, KEY)), "proj_1").done == 1
    create_projects("proj_9")
    clean_up_project("proj_9")
    assert bucket.keys() == {KEY}


def test_file_of_a_live_project_is_not_assigned_to_another(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_9")
    found = create_orphans(bucket, KEY, kind="untracked")
    told = whys(track_files.assign_objects(list_ids(found), "proj_1"))
    assert told == {KEY: "The file belongs to project proj_9, which exists."}
    clean_up_project("proj_1")
    assert bucket.keys() == {KEY}
    assert track_files.assign_objects(list_ids(found), "proj_9").done == 1


def test_a_backfilled_row_is_given_too_and_one_of_a_live_upload_is_not(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    found = create_orphans(bucket, KEY, OTHER_KEY)
    track_key(bucket, KEY, "proj_9", "backfill", size=1)
    track_key(bucket, OTHER_KEY, "proj_2")
    decision = track_files.assign_objects(list_ids(found), "proj_1")
    assert whys(decision) == {OTHER_KEY: "The file belongs to project proj_2, which exists."}
    rows = R2Object.objects.order_by("key").values_list("project_id", "source", "size")
    assert list(rows) == [("proj_1", "assigned", 7), ("proj_2", "upload", None)]


@pytest.mark.parametrize("project_id", ["proj_9", "nobody", "", "a\0"])
def test_no_object_is_given_to_a_project_that_is_not_there(bucket: Bucket, project_id: str) -> None:
    record_deleted_projects("proj_9")
    found = create_orphans(bucket, KEY)
    with pytest.raises(ActionRefused, match="only to an existing project"):
        track_files.assign_objects(list_ids(found), project_id)
    assert not R2Object.objects.exists()


def test_a_project_that_goes_meanwhile_is_given_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    found, original = create_orphans(bucket, KEY), track_files.write_project

    def give(*args: Any) -> Any:
        Project.objects.all().delete()
        return original(*args)

    monkeypatch.setattr(track_files, "write_project", give)
    with pytest.raises(ActionRefused, match="only to an existing project"):
        track_files.assign_objects(list_ids(found), "proj_1")
    assert not R2Object.objects.filter(source=Source.ASSIGNED).exists()
    assert read_states() == {KEY: "open"}


def test_what_is_not_as_the_finding_says_is_not_given(bucket: Bucket) -> None:
    create_projects("proj_1")
    found = create_orphans(bucket, KEY, OTHER_KEY)
    found += create_orphans(bucket, "missing", kind="missing")
    found += create_orphans(bucket, "nul", escaped=True)
    found += create_orphans(bucket, "over", state="resolved", note="x")
    bucket.put(KEY, body=b"overwritten")
    bucket.r2.remove(OTHER_KEY)
    told = whys(track_files.assign_objects(list_ids(found), "proj_1"))
    assert "changed since the scan" in told[KEY] and "not in the bucket" in told[OTHER_KEY]
    assert "not for findings of kind “missing”" in told["missing"]
    assert "A file with this name" in told["nul"] and told["over"] == "Already resolved: x"
    assert not R2Object.objects.exists()


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_what_an_upload_or_a_deletion_has_in_hand_is_not_given(bucket: Bucket, state: str) -> None:
    create_projects("proj_1")
    found = create_orphans(bucket, KEY)
    track_key(bucket, KEY, "proj_9", state=state)
    assert (
        "deleted or changed right now"
        in whys(track_files.assign_objects(list_ids(found), "proj_1"))[KEY]
    )
    assert R2Object.objects.get().project_id == "proj_9"


def test_a_row_that_changes_meanwhile_is_not_overwritten(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    found, original = create_orphans(bucket, KEY), track_files.lock_unchanged
    track_key(bucket, KEY, "proj_9", "backfill")

    def unchanged(held: Iterable[R2Object]) -> list[R2Object]:
        R2Object.objects.update(state="uploading", updated_at=timezone.now())
        return original(held)

    monkeypatch.setattr(track_files, "lock_unchanged", unchanged)
    assert (
        "deleted or changed right now"
        in whys(track_files.assign_objects(list_ids(found), "proj_1"))[KEY]
    )
    assert R2Object.objects.get().source == "backfill"


@pytest.mark.parametrize("key", [KEY, FOLDER + "e\u0301"])
def test_a_key_that_a_cleanup_has_marked_is_given_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    cleanup_asked_for_just_after_the_question(monkeypatch)
    fold_unicode(bucket)
    create_projects("proj_1")
    found, same = create_orphans(bucket, key), listing.nfc_key(key)
    track_key(bucket, same, "proj_9", "backfill")
    cleanup = Cleanup.objects.request(
        kind="project", project_id="proj_9", bucket=bucket.name, trigger="deleted"
    )
    CleanupItem.objects.create(
        cleanup=cleanup, key=key, identity=same, outcome="deleting", found_in="both"
    )
    assert (
        "deleted or changed right now"
        in whys(track_files.assign_objects(list_ids(found), "proj_1"))[key]
    )
    row = R2Object.objects.get()
    assert (row.project_id, row.source) == ("proj_9", "backfill")
    assert read_states() == {key: "open"}


def test_an_object_that_could_be_several_projects_is_the_one_s_that_it_is_given(
    bucket: Bucket,
) -> None:
    create_projects("proj_1", "proj_1_x")
    key = "proj_1_x_s1_media.mp4"
    track_files.assign_objects(list_ids(create_orphans(bucket, key, kind="ambiguous")), "proj_1_x")
    row = R2Object.objects.get()
    assert (row.project_id, row.scene_id, row.key_format) == ("proj_1_x", "s1", "flat")
    clean_up_project("proj_1")
    assert bucket.keys() == {key}
    clean_up_project("proj_1_x")
    assert not bucket.keys()


# Rows brought up to date, and forgotten


def test_tracking_writes_what_the_bucket_shows_by_now(bucket: Bucket) -> None:
    create_projects("proj_9")
    found = create_orphans(bucket, KEY, kind="untracked") + create_orphans(
        bucket, OTHER_KEY, kind="changed"
    )
    track_key(bucket, OTHER_KEY, "proj_9", size=1, etag="old")
    bucket.put(OTHER_KEY, body=b"newer still")
    with use_origin(Origin("zoe")):
        decision = track_files.track_objects(list_ids(found))
    assert (decision.done, decision.skipped) == (2, [])
    rows = R2Object.objects.values_list("key", "project_id", "source", "size", "etag")
    facts = bucket.facts()
    assert set(rows) == {
        (KEY, "proj_9", "backfill", *facts[KEY]),
        (OTHER_KEY, "proj_9", "upload", *facts[OTHER_KEY]),
    }
    assert {(the(f).note, f.decided_by) for f in found} == {("tracked", "zoe")}


def test_tracking_leaves_what_is_gone_in_hand_or_of_another_kind(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY, kind="changed") + create_orphans(bucket, "x")
    bucket.r2.remove(KEY)
    track_key(bucket, OTHER_KEY, "proj_9", state="uploading")
    told = whys(track_files.track_objects(list_ids(found)))
    assert "not in the bucket" in told[KEY] and "deleted or changed right now" in told[OTHER_KEY]
    assert told["x"] == "This action is not for findings of kind “leftover”."
    assert set(read_states().values()) == {"open"}


def test_a_missing_object_s_row_is_forgotten_and_nothing_follows(bucket: Bucket) -> None:
    track_key(bucket, KEY, "proj_9")
    found = create_findings(bucket, KEY, kind="missing")
    decision = track_files.untrack_rows(list_ids(found))
    assert (decision.done, decision.skipped) == (1, [])
    assert not R2Object.objects.exists() and not Cleanup.objects.exists()
    assert the(found[0]).note == "untracked: the file is not in the bucket"


def test_row_that_alone_keeps_a_missing_file_from_a_cleanup_is_kept(bucket: Bucket) -> None:
    """The file may be restored from a backup before the cleanup, or its follow-up check, ends."""
    create_projects("proj_1")
    track_key(bucket, KEY, "proj_1", "assigned")
    [cleanup] = requests.declare_deleted("proj_9")
    found = create_findings(bucket, KEY, kind="missing")
    decision = track_files.untrack_rows(list_ids(found))
    assert decision.done == 0 and R2Object.objects.exists()
    assert str(cleanup.pk) in whys(decision)[KEY]


DECIDE: dict[str, tuple[str, Callable[[list[int]], Decision]]] = {
    "track": ("untracked", track_files.track_objects),
    "assign": ("orphaned", partial(track_files.assign_objects, project_id="proj_1")),
    "untrack": ("missing", track_files.untrack_rows),
}


@pytest.mark.parametrize("name", DECIDE)
def test_ignored_finding_is_left_until_it_is_reopened(bucket: Bucket, name: str) -> None:
    kind, decide = DECIDE[name]
    create_projects("proj_1")
    found = create_orphans(bucket, KEY, kind=kind)
    keep(found)
    told = f"zoe ignored finding {found[0].pk} about this file. Reopen that finding first."
    assert whys(decide(list_ids(found))) == {KEY: told}
    bucket.put(KEY, body=b"another file, of which nobody has decided")
    assert whys(decide(list_ids(found))) == {KEY: told}
    assert read_states() == {KEY: "ignored"} and not R2Object.objects.exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", DECIDE)
def test_file_that_another_finding_keeps_is_left_until_that_one_is_reopened(
    bucket: Bucket, name: str, form: Literal["NFC", "NFD"]
) -> None:
    fold_unicode(bucket)
    kind, decide = DECIDE[name]
    create_projects("proj_1")
    listed = FOLDER + "e\u0301"
    row = track_key(bucket, normalize("NFC", listed), "proj_9") if kind == "missing" else None
    other = create_orphans(bucket, listed, kind="changed")
    Finding.objects.update(key=normalize(form, listed))
    keep(other)
    if row:
        bucket.r2.remove(listed)
    found = create_findings(bucket, row.key if row else listed, kind=kind)
    [left] = decide(list_ids(found)).skipped
    told = f"zoe ignored finding {other[0].pk} about this file. Reopen that finding first."
    assert left.reason == told and the(found[0]).state == "open"
    assert [*R2Object.objects.all()] == [row] * (kind == "missing")
    action_result.reopen_findings(list_ids(other))
    assert decide(list_ids(found)).done == 1


@pytest.mark.parametrize("name", ["track", "assign"])
def test_overwritten_file_of_an_ignored_finding_is_kept_by_none(bucket: Bucket, name: str) -> None:
    kind, decide = DECIDE[name]
    create_projects("proj_1")
    keep(create_findings(bucket, KEY, kind="changed", etag="another", size=7))
    assert decide(list_ids(create_orphans(bucket, KEY, kind=kind))).done == 1


@pytest.mark.parametrize("name", DECIDE)
def test_finding_ignored_during_a_decision_stays_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, decide = DECIDE[name]
    create_projects("proj_1")
    [finding] = (
        create_findings(bucket, KEY, kind=kind)
        if kind == "missing"
        else create_orphans(bucket, KEY, kind=kind)
    )
    if kind == "missing":
        track_key(bucket, KEY, "proj_9")
    meanwhile = "find_keys" if kind == "missing" else "write_rows"
    original = getattr(track_files, meanwhile)

    def acknowledge_first(*args: Any) -> Any:
        keep([finding])
        return original(*args)

    monkeypatch.setattr(track_files, meanwhile, acknowledge_first)
    decision = decide([finding.pk])
    told = (
        "Reopen that finding first."
        if kind == "missing"
        else "ignored this finding in the meantime"
    )
    assert decision.done == 0 and told in whys(decision)[KEY]
    assert R2Object.objects.exists(), "the row of a missing file stays, the others are written"
    assert (the(finding).state, finding.note) == ("ignored", "Evidence in a law suit")


def test_a_row_is_kept_whose_object_is_there_or_that_changes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (KEY, OTHER_KEY, "x"):
        track_key(bucket, key, "proj_9", state="uploading" if key == OTHER_KEY else "stored")
    found = create_findings(bucket, KEY, OTHER_KEY, "no row", "x", kind="missing")
    bucket.put(KEY)
    original = track_files.lock_unchanged

    def unchanged(held: Iterable[R2Object]) -> list[R2Object]:
        R2Object.objects.filter(key="x").update(updated_at=timezone.now())
        return original(held)

    monkeypatch.setattr(track_files, "lock_unchanged", unchanged)
    told = whys(track_files.untrack_rows(list_ids(found)))
    assert "in the bucket" in told[KEY] and "deleted or changed right now" in told[OTHER_KEY]
    assert "not tracked any more" in told["no row"] and "deleted or changed right now" in told["x"]
    assert R2Object.objects.count() == 3


def test_no_row_is_forgotten_on_a_listing_that_shows_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    track_key(bucket, KEY, "proj_9")
    bucket.put(KEY)
    found = create_findings(bucket, KEY, kind="missing")

    def empty(*args: object) -> dict[str, object]:
        bucket.r2.remove(MARKER_KEY)
        return {}

    monkeypatch.setattr(track_files, "find_keys", empty)
    with pytest.raises(CannotConclude):
        track_files.untrack_rows(list_ids(found))
    assert R2Object.objects.exists()


def test_row_that_keeps_a_file_from_a_follow_up_is_not_untracked(bucket: Bucket) -> None:
    create_projects("proj_2")
    track_files.assign_objects(list_ids(create_orphans(bucket, KEY, OTHER_KEY)), "proj_2")
    [cleanup] = requests.declare_deleted("proj_9")
    assert run_until_idle(cleanup).status == Status.CLEAN
    unrelated, row = "projects/proj_2/scenes/s1/media/a.mp4", R2Object.objects.get(key=KEY)
    other = track_key(bucket, unrelated, "proj_2")
    told = confirm_action(superuser_client(), "r2object", "untrack", row.pk, other.pk)
    assert "1 file stays tracked:" in told and "Untracked 1 file." in told
    assert [due.status for due in cleanup.children.all() if f"Cleanup {due.pk}" in told]
    assert set(R2Object.objects.values_list("key", flat=True)) == {KEY, OTHER_KEY}
    assert run_follow_up(cleanup).status == Status.CLEAN
    assert {KEY, OTHER_KEY} <= bucket.keys()
    cleanup.children.filter(status=Status.PENDING).update(status="clean", next_attempt_at=None)
    assert "Untracked 1 file." in confirm_action(superuser_client(), "r2object", "untrack", row.pk)


# Shown


def test_such_a_deletion_is_shown_wherever_others_are(bucket: Bucket) -> None:
    cleanup = delete_orphans(create_orphans(bucket, *STRANGE_ORPHANS))
    client = superuser_client()
    url = admin_url("cleanup", "change", cleanup.pk)
    assert "deletion of leftover files" in client.get(f"{url}?tab=details").content.decode()
    shown = client.get(url).content.decode()
    assert "&lt;script&gt;" in shown and "<script>alert" not in shown
    assert 'name="action" value="force_delete"' not in shown
    assert "proj_9" in client.get(admin_url("cleanup", "changelist")).content.decode()
    told = client.get(f"/api/v1/deletions/{cleanup.pk}").json()
    assert (told["kind"], told["trigger"], told["over"]) == ("orphans", "orphaned", True)
    assert 'kind="orphans",status="clean"} 1.0' in client.get("/metrics").content.decode()


def test_a_person_runs_a_plan_from_its_page(bucket: Bucket) -> None:
    cleanup = run_until_idle(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    shown = superuser_client().get(admin_url("cleanup", "change", cleanup.pk)).content.decode()
    assert "Run this plan" in shown and "Dry run" in shown


@pytest.mark.parametrize("may_delete", [False, True])
def test_plan_of_orphans_is_run_only_by_who_may_delete_objects(
    bucket: Bucket, may_delete: bool
) -> None:
    plan = run_until_idle(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    may = ["view_cleanup", "force_cleanup", *["delete_r2object"][: int(may_delete)]]
    who = staff_client(*may)
    shown = who.get(admin_url("cleanup", "change", plan.pk)).content.decode()
    told = confirm_action(who, "cleanup", "force_delete", plan.pk)
    plan.refresh_from_db()
    assert plan.status == (Status.PENDING if may_delete else Status.PLANNED)
    for text in (shown, told):
        assert ("add you to the group “Storage admin”" in text) != may_delete
