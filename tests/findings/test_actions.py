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
from storage_audit.cleanup import delete_batches, delete_pipeline, open_decisions, requests, turn
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.open_decisions import why_covered
from storage_audit.cleanup.turn import Work
from storage_audit.findings import action_result, orphans, track_files
from storage_audit.findings.action_result import ActionRefused, Decision
from storage_audit.findings.models import Finding
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.origin import Origin, acting_as
from storage_audit.ownership.bucket_marker import MARKER, CannotConclude
from tests.admin_client import confirm, page, person, superuser
from tests.builders import LONG_AGO, create_findings, create_orphans, list_ids, read_states
from tests.findings.orphans import delete_orphans, request_deletion
from tests.keys import FOLDER, KEY, OTHER_KEY
from tests.promises import (
    again,
    alive,
    between_batch_and_verification,
    between_plan_and_batch,
    check,
    delete,
    deleted,
    late_check,
    outcomes,
    reason,
    run,
    track,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.strange_keys import STRANGE_ORPHANS

pytestmark = pytest.mark.usefixtures("young_orphans_may_go")

Kind, Status, Source = Finding.Kind, CleanupOperation.Status, R2Object.Source


def whys(decision: Decision) -> dict[str, str]:
    return dict(decision.left)


def the(finding: Finding) -> Finding:
    finding.refresh_from_db()
    return finding


# Acknowledged, and open again


def test_an_acknowledgement_says_who_when_and_why_and_can_be_taken_back(bucket: Bucket) -> None:
    [finding, other] = create_orphans(bucket, KEY, OTHER_KEY)
    with acting_as(Origin("zoe")):
        assert action_result.acknowledge([finding.pk], " the web site's ") == Decision(done=1)
    assert (the(finding).state, finding.note) == ("acknowledged", "the web site's")
    assert finding.decided_by == "zoe" and finding.decided_at
    assert the(other).state == "open"
    decision = action_result.acknowledge(Finding.objects.all(), "both")
    assert (decision.done, decision.left) == (1, [(KEY, "It is acknowledged: the web site's")])
    assert action_result.reopen([finding.pk]).done == 1
    assert (the(finding).state, finding.note) == ("open", "")


def test_an_acknowledgement_without_a_note_is_refused(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    with pytest.raises(ActionRefused, match="Say in a note"):
        action_result.acknowledge(list_ids(found), " ")
    assert read_states() == {KEY: "open"}


def test_what_is_open_or_resolved_is_not_reopened_and_says_so(bucket: Bucket) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, OTHER_KEY, state="resolved", note="tracked")
    decision = action_result.reopen(Finding.objects.all())
    assert whys(decision) == {KEY: "It is open.", OTHER_KEY: "It is resolved: tracked"}
    assert decision.done == 0


def test_a_secret_in_a_note_is_not_kept(bucket: Bucket) -> None:
    [finding] = create_orphans(bucket, KEY)
    action_result.acknowledge([finding.pk], "see https://me:hunter2@example.com\0")
    assert "hunter2" not in the(finding).note


def test_a_part_of_a_list_can_be_decided_on(bucket: Bucket) -> None:
    create_orphans(bucket, KEY, OTHER_KEY)
    assert action_result.acknowledge(Finding.objects.order_by("key")[:1], "fine").done == 1
    assert read_states() == {KEY: "acknowledged", OTHER_KEY: "open"}


# Acknowledged, and kept

KEEPS = "Kept: zoe acknowledged finding {} about this file. To delete the file, reopen that finding"


def assert_kept_by(finding: Finding, operation: CleanupOperation, key: str) -> None:
    """The note is for those who may see findings, and more people see an item's reason."""
    assert reason(operation, key).startswith(KEEPS.format(finding.pk))
    assert "law suit" in the(finding).note and "law suit" not in reason(operation, key)


def keep(found: Iterable[Finding]) -> Decision:
    with acting_as(Origin("zoe")):
        decision = action_result.acknowledge(list_ids(found), "Evidence in a law suit")
    assert (decision.done, decision.left) == (1, [])
    return decision


def test_late_check_keeps_an_acknowledged_file(bucket: Bucket) -> None:
    alive("proj_2", "proj_9")
    bucket.upload("proj_9")
    operation = delete("proj_9")
    [finding] = create_orphans(bucket, KEY)
    keep([finding])
    checked = late_check(operation)
    assert (checked.status, bucket.keys()) == (Status.CLEAN_WITH_PROTECTED, {KEY})
    assert_kept_by(finding, checked, KEY)
    assert read_states() == {KEY: "acknowledged"}


def test_plan_shows_that_a_file_acknowledged_since_stays(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    plan = request_deletion(found, dry_run=True)
    keep(found[:1])
    assert outcomes(run(plan)) == {KEY: "protected", OTHER_KEY: "planned"}


def test_plan_that_is_run_keeps_a_file_acknowledged_since(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    plan = run(request_deletion(found, dry_run=True))
    keep(found[:1])
    requests.force_delete_operation(plan)
    assert outcomes(run(plan)) == {KEY: "protected", OTHER_KEY: "deleted"}
    assert_kept_by(found[0], plan, KEY)
    assert read_states() == {KEY: "acknowledged", OTHER_KEY: "resolved"}


def test_queued_deletion_keeps_a_file_acknowledged_since_and_is_named(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    operation = request_deletion(found)
    [(key, told)] = keep(found).results
    assert key == KEY and told.startswith(f"Cleanup {operation.pk} covers this file.")
    assert outcomes(run(operation)) == {KEY: "protected"}
    assert bucket.keys() == {KEY}


def test_released_deletion_keeps_a_file_acknowledged_since(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    alive("proj_1")
    found = create_orphans(bucket, KEY)
    operation = delete_orphans(found)
    assert operation.status == Status.BLOCKED
    assert keep(found).results
    requests.force_delete_operation(operation)
    assert outcomes(run(operation)) == {KEY: "protected"}


def test_deletion_of_its_row_keeps_an_acknowledged_file(bucket: Bucket) -> None:
    alive("proj_9")
    key = bucket.upload("proj_9")
    [finding] = create_findings(bucket, key, kind="changed")
    keep([finding])
    R2Object.objects.get().delete()
    operation = run(CleanupOperation.objects.get())
    assert_kept_by(finding, operation, key)
    assert bucket.keys() == {key}


@pytest.mark.parametrize("since", ["the plan", "the batch"])
@pytest.mark.parametrize("kind", ["project", "objects", "orphans"])
def test_nothing_is_deleted_while_nobody_tells_what_people_keep(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str, since: str
) -> None:
    if kind == "orphans":
        operation = request_deletion(create_orphans(bucket, KEY))
    else:
        alive("proj_9")
        bucket.upload("proj_9")
        model = Project if kind == "project" else R2Object
        model._default_manager.get().delete()
        operation = CleanupOperation.objects.get()
    there = bucket.keys()
    with monkeypatch.context() as patch, pytest.raises(ImproperlyConfigured):
        if since == "the plan":
            patch.setattr(open_decisions, "_keepers", [])
        else:
            between_plan_and_batch(patch, partial(patch.setattr, open_decisions, "_keepers", []))
        run(operation)
    assert bucket.keys() == there
    operation.refresh_from_db()
    assert operation.status == Status.INCOMPLETE
    assert again(operation).status == Status.CLEAN and bucket.keys() != there


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_acknowledged_file_is_kept_under_another_spelling(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, form: Literal["NFC", "NFD"]
) -> None:
    fold_unicode(bucket)
    alive("proj_2", "proj_9")
    operation = delete("proj_9")
    [finding] = create_orphans(bucket, FOLDER + "e\u0301")
    Finding.objects.update(key=normalize(form, finding.key))
    keep([finding])
    assert set(outcomes(late_check(operation)).values()) == {"protected"}
    assert len(bucket.keys()) == 1


@pytest.mark.parametrize("kind", ["missing", "unfinished"])
def test_acknowledgement_about_no_object_keeps_none(bucket: Bucket, kind: str) -> None:
    alive("proj_2", "proj_9")
    operation = delete("proj_9")
    keep(create_orphans(bucket, KEY, kind=kind))
    assert outcomes(late_check(operation)) == {KEY: "deleted"}


def test_acknowledgement_of_another_object_keeps_none(bucket: Bucket) -> None:
    alive("proj_2", "proj_9")
    operation = delete("proj_9")
    keep(create_orphans(bucket, KEY, etag="another"))
    assert outcomes(late_check(operation)) == {KEY: "deleted"}
    [note] = Finding.objects.values_list("note", flat=True)
    assert note.endswith(" (acknowledged before by zoe: Evidence in a law suit)")


def test_reopened_file_goes_with_the_next_cleanup(bucket: Bucket) -> None:
    alive("proj_2", "proj_9")
    operation = delete("proj_9")
    found = create_orphans(bucket, KEY)
    keep(found)
    action_result.reopen(list_ids(found))
    assert outcomes(late_check(operation)) == {KEY: "deleted"}


# Orphans: which may go


def test_orphans_go_with_plan_proof_books_and_their_findings(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, "audio/proj_9/s1/voice.mp3")
    bucket.put("projects/proj_9/scenes/s1/media/unseen.mp4")
    with acting_as(Origin("zoe", "admin")):
        operation = request_deletion(found)
    assert (operation.kind, operation.trigger, operation.status) == (
        "orphans",
        "orphaned",
        "pending",
    )
    assert (operation.project_id, operation.requested_by) == ("proj_9", "zoe")
    operation = run(operation)
    assert (operation.status, operation.found, operation.deleted) == (Status.CLEAN, 2, 2)
    assert operation.deleted_bytes == 14 and operation.plan_digest
    assert bucket.keys() == {"projects/proj_9/scenes/s1/media/unseen.mp4"}
    assert {the(finding).note for finding in found} == {f"deleted by operation {operation.pk}"}
    assert {(f.state, f.decided_by) for f in found} == {("resolved", "zoe")}
    check(bucket)


def test_of_several_projects_and_buckets_each_bucket_has_one_operation(
    bucket: Bucket, local_r2: Any
) -> None:
    create_orphans(bucket, KEY)
    create_orphans(bucket, "audio/proj_8/s1/a.mp3", project_id="proj_8")
    other = Bucket(local_r2, "other")
    other.wipe()
    local_r2.plant(MARKER, b"{}", "other")
    create_findings(other, KEY, size=1, etag="e", last_modified=timezone.now())
    with pytest.raises(CannotConclude, match="another installation"):
        orphans.delete_orphans(Finding.objects.all())
    assert not CleanupOperation.objects.exists()
    operation = request_deletion(Finding.objects.filter(bucket=bucket.name))
    operation.refresh_from_db()
    assert (operation.project_id, operation.subject) == (None, "objects of several projects")
    assert run(operation).deleted == 2


def test_what_may_not_go_says_why_and_when(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(days=1)}
    now, old = timezone.now(), timezone.now() - LONG_AGO
    create_orphans(bucket, "young")
    bucket.put("once", "kept", "done", "other", "nul", "both")
    create_findings(bucket, "once", last_modified=old, first_seen_at=now - timedelta(hours=3))
    create_findings(bucket, "both", first_seen_at=now)
    create_findings(bucket, "kept", last_modified=old, state="acknowledged", note="mine")
    create_findings(bucket, "done", last_modified=old, state="resolved", note="gone")
    create_findings(bucket, "other", last_modified=old, kind="untracked")
    create_findings(bucket, "nul", last_modified=old, escaped=True)
    decision = orphans.delete_orphans(Finding.objects.all())
    told = whys(decision)
    assert (decision.done, decision.operations, len(told)) == (0, [], 7)
    assert told["young"].startswith("It is younger than allowed: it may go after ")
    assert orphans.shown(now - timedelta(hours=3)) in told["once"]
    assert orphans.shown(now + timedelta(hours=1)) in told["once"]
    assert "seen only since" in told["both"] and "younger than allowed" in told["both"]
    assert told["kept"] == "It is acknowledged: mine"
    assert told["done"] == "It is resolved: gone"
    assert told["other"] == "It is untracked, not orphaned."
    assert "No request can name" in told["nul"]
    assert not CleanupOperation.objects.exists()


def test_the_age_and_the_gap_are_those_of_the_settings(bucket: Bucket, settings: Settings) -> None:
    [finding] = create_orphans(bucket, KEY, first_seen_at=timezone.now() - timedelta(hours=3))
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_GAP": timedelta(hours=2)}
    assert request_deletion([finding]).items.count() == 1


def test_what_an_operation_is_to_delete_already_is_not_asked_for_again(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY)
    operation = request_deletion(found)
    decision = orphans.delete_orphans(list_ids(found))
    told = f"Cleanup {operation.pk} covers this file and is pending. Wait until it is over"
    assert whys(decision)[KEY].startswith(told)
    assert not decision.operations


def test_what_goes_by_another_spelling_is_not_asked_for_again(bucket: Bucket) -> None:
    fold_unicode(bucket)
    decomposed = FOLDER + "e\u0301"
    found = [*create_orphans(bucket, decomposed), *create_orphans(bucket, KEY)]
    operation = request_deletion(found[:1])
    assert operation.items.get().identity == FOLDER + "\u00e9"
    told = why_covered(operation)
    would = orphans.would_delete(list_ids(found), 5)
    assert (len(would.going), would.stay, would.left) == (1, 1, [(decomposed, told)])
    decision = orphans.delete_orphans(list_ids(found))
    assert (decision.done, whys(decision)) == (1, {decomposed: told})


def test_strange_keys_go_and_nothing_else_does(bucket: Bucket) -> None:
    found = create_orphans(bucket, *STRANGE_ORPHANS)
    traps = {FOLDER + trap for trap in ("up", "cmd()", "ab", "b/c", "e/b", "g", "ke", "le")}
    bucket.put(*traps, "up")
    operation = delete_orphans(found)
    assert outcomes(operation) == dict.fromkeys(STRANGE_ORPHANS, "deleted")
    assert bucket.keys() == traps | {"up"}
    assert set(read_states().values()) == {"resolved"}
    check(bucket)


def test_two_spellings_are_two_objects_where_the_store_says_so(bucket: Bucket) -> None:
    found = create_orphans(bucket, FOLDER + "\u00e9", FOLDER + "e\u0301")
    track(bucket, found[0].key, "proj_9", "backfill")
    track(bucket, found[1].key, "proj_9", "backfill")
    assert delete_orphans(found[1:]).deleted == 1
    assert bucket.keys() == {found[0].key}
    assert R2Object.objects.get().state == "stored"


def test_two_spellings_of_one_object_are_one_item(bucket: Bucket) -> None:
    fold_unicode(bucket)
    composed, decomposed = FOLDER + "\u00e9", FOLDER + "e\u0301"
    create_orphans(bucket, decomposed)
    create_findings(bucket, composed, size=1, etag="old", last_modified=timezone.now())
    operation = delete_orphans(Finding.objects.all())
    assert outcomes(operation) == {decomposed: "deleted"}
    assert set(read_states().values()) == {"resolved"}
    check(bucket)


# Orphans: what the plan and the proof ask again


def test_an_object_that_is_not_the_one_of_the_finding_is_not_planned(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    bucket.put(KEY, body=b"new content")
    operation = request_deletion(found)
    assert run(operation).status == Status.CLEAN_WITH_PROTECTED
    operation.refresh_from_db()
    assert outcomes(operation) == {KEY: "protected", OTHER_KEY: "deleted"}
    assert "overwritten" in reason(operation, KEY)
    assert read_states() == {KEY: "open", OTHER_KEY: "resolved"}
    check(bucket)


def upload_for_a_live_one(bucket: Bucket) -> None:
    alive("proj_1")
    track(bucket, KEY, "proj_1")


def vanish(bucket: Bucket) -> None:
    """Nobody said that it is deleted, and there are others."""
    alive("proj_2")
    KnownProject.objects.create(pk="proj_9", evidence="saved")


def refused(bucket: Bucket) -> None:
    """The key could be its in the format with the prefix twice."""
    Project.objects.bulk_create([Project(pk="9")])


STAYS: dict[str, tuple[Callable[[Bucket], object], str]] = {
    "a project": (lambda bucket: alive("proj_9"), "live project proj_9"),
    "one that vanished": (vanish, "live project proj_9"),
    "one whose id PROJECT_ID refuses": (refused, "project 9."),
    "a row of a live project": (upload_for_a_live_one, "live project proj_1"),
    "other content": (lambda bucket: bucket.put(KEY, body=b"other"), "overwritten"),
    "the same content": (lambda bucket: bucket.put(KEY), "overwritten"),
    "an upload": (lambda bucket: track(bucket, KEY, "proj_9", state="uploading"), "under way"),
}
each_change = pytest.mark.parametrize("change", STAYS)


@each_change
def test_what_comes_between_plan_and_batch_keeps_the_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    other = OTHER_KEY.replace("proj_9", "proj_8")
    effect, said = STAYS[change]
    between_plan_and_batch(monkeypatch, partial(effect, bucket))
    operation = delete_orphans(create_orphans(bucket, KEY, other))
    assert operation.status == Status.CLEAN_WITH_PROTECTED
    assert outcomes(operation) == {KEY: "protected", other: "deleted"}
    assert said in reason(operation, KEY)
    assert bucket.keys() == {KEY}
    assert read_states() == {KEY: "open", other: "resolved"}
    assert not R2Object.objects.filter(state="deleting").exists()
    check(bucket)


@each_change
def test_what_is_so_before_the_plan_keeps_the_object_too(bucket: Bucket, change: str) -> None:
    found = create_orphans(bucket, KEY)
    effect, said = STAYS[change]
    effect(bucket)
    operation = request_deletion(found, dry_run=True)
    run(operation)
    if change != "an upload":  # which may be over when the plan is run
        assert outcomes(operation) == {KEY: "protected"}
        assert said in reason(operation, KEY)
    assert bucket.keys() == {KEY}


def test_a_key_that_can_be_of_two_deleted_projects_by_now_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "proj_1_x_s1_media.mp4"
    deleted("proj_1")
    between_plan_and_batch(monkeypatch, lambda: deleted("proj_1_x"))
    operation = delete_orphans(create_orphans(bucket, key, project_id="proj_1"))
    assert reason(operation, key) == "It is no orphan any more, but ambiguous."
    assert bucket.keys() == {key}


def test_an_object_given_to_a_live_project_after_the_plan_stays(bucket: Bucket) -> None:
    alive("proj_1")
    found = create_orphans(bucket, KEY)
    operation = run(request_deletion(found, dry_run=True))
    assert track_files.adopt(list_ids(found), "proj_1").done == 1
    requests.force_delete_operation(operation)
    assert "live project proj_1" in reason(run(operation), KEY)
    assert bucket.keys() == {KEY}
    assert R2Object.objects.get().state == "stored"


def cleanup_asked_for_just_after_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing covers the file when an adoption asks."""
    monkeypatch.setattr(track_files, "find_covering", lambda *_args: {})


def test_an_object_that_is_being_deleted_is_given_to_nobody(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    cleanup_asked_for_just_after_the_question(monkeypatch)
    found, told = create_orphans(bucket, KEY), list[Decision]()
    between_plan_and_batch(
        monkeypatch, lambda: told.append(track_files.adopt(list_ids(found), "proj_1"))
    )
    assert delete_orphans(found).deleted == 1
    assert "in hand" in whys(told[0])[KEY]
    assert not R2Object.objects.exists()


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("known", [True, False])
def test_a_project_that_is_just_being_created_keeps_its_object(bucket: Bucket, known: bool) -> None:
    if known:
        deleted("proj_9")
    found = create_orphans(bucket, KEY)
    operation, made, proved = request_deletion(found), Event(), Event()

    def create() -> None:
        try:
            with transaction.atomic():
                alive("proj_9")
                made.set()
                proved.wait(60)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        creation = thread.submit(create)
        made.wait(60)
        assert run(operation).status == Status.INCOMPLETE
        assert "just being created" in CleanupOperation.objects.get(pk=operation.pk).error
        proved.set()
        creation.result()
    assert outcomes(again(CleanupOperation.objects.get(pk=operation.pk))) == {KEY: "protected"}
    assert bucket.keys() == {KEY}


# Orphans: their rows


def test_rows_go_once_their_objects_are_seen_gone_and_not_before(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted("proj_9", "proj_8")
    third = FOLDER + "third.mp4"
    found = create_orphans(bucket, KEY, OTHER_KEY, third)
    track(bucket, KEY, "proj_9", "backfill")
    track(bucket, OTHER_KEY, "proj_8")
    track(bucket, third, None)
    rows: list[int] = []
    between_batch_and_verification(monkeypatch, lambda: rows.append(R2Object.objects.count()))
    operation = delete_orphans(found)
    assert set(outcomes(operation).values()) == {"deleted"}
    assert rows == [3] and not R2Object.objects.exists()


def test_a_row_of_a_live_project_is_never_barred(bucket: Bucket) -> None:
    alive("proj_1")
    found = create_orphans(bucket, KEY)
    track(bucket, KEY, "proj_1")
    operation = request_deletion(found)
    assert not delete_batches.own_rows(operation).exists()
    run(operation)
    assert R2Object.objects.get().state == "stored"


@pytest.mark.parametrize("last_look", ["proof", "verification"])
def test_a_row_whose_project_lives_again_since_it_was_barred_is_opened_or_forgotten(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, last_look: str
) -> None:
    deleted("proj_9")
    found = create_orphans(bucket, KEY)
    track(bucket, KEY, "proj_9", size=7)
    at_proof = last_look == "proof"
    between = between_plan_and_batch if at_proof else between_batch_and_verification
    between(monkeypatch, lambda: alive("proj_9"))
    assert outcomes(delete_orphans(found)) == {KEY: "protected" if at_proof else "deleted"}
    states = R2Object.objects.values_list("state", flat=True)
    assert list(states) == (["stored"] if at_proof else [])
    check(bucket)


def test_an_upload_to_a_key_that_is_being_deleted_is_barred(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred: list[bool] = []
    original = delete_pipeline.send

    def send(*args: Any, **kwargs: Any) -> Any:
        barred.append(CleanupItem.objects.being_deleted(bucket.name, KEY))
        return original(*args, **kwargs)

    monkeypatch.setattr(delete_pipeline, "send", send)
    delete_orphans(create_orphans(bucket, KEY))
    assert barred == [True]


# Orphans: plan, limits, trouble, late checks


def test_a_dry_run_freezes_a_plan_of_which_a_part_is_deleted_later(bucket: Bucket) -> None:
    found = create_orphans(bucket, KEY, OTHER_KEY)
    operation = request_deletion(found, dry_run=True)
    operation = run(operation)
    assert (operation.status, operation.error) == (Status.PLANNED, "")
    assert bucket.keys() == {KEY, OTHER_KEY}
    assert orphans.delete_orphans(list_ids(found), dry_run=True).done == 2
    bucket.put(KEY, body=b"changed")
    bucket.put(FOLDER + "new.mp4")
    digest = operation.plan_digest
    requests.force_delete_operation(operation)
    operation = run(operation)
    assert (operation.status, operation.plan_digest) == (Status.CLEAN_WITH_PROTECTED, digest)
    assert outcomes(operation) == {KEY: "protected", OTHER_KEY: "deleted"}
    assert bucket.keys() == {KEY, FOLDER + "new.mp4"}
    check(bucket)


def test_a_plan_of_a_project_that_lives_again_is_not_run(bucket: Bucket) -> None:
    operation = run(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    alive("proj_9")
    with pytest.raises(requests.ProjectExists):
        requests.force_delete_operation(operation)


def test_more_than_the_limit_is_blocked_until_a_person_releases_it(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 1}
    operation = delete_orphans(create_orphans(bucket, KEY, OTHER_KEY))
    assert operation.status == Status.BLOCKED and "the limit is 1" in operation.error
    assert bucket.keys() == {KEY, OTHER_KEY}
    requests.force_delete_operation(operation)
    assert run(operation).deleted == 2


def test_a_listing_that_shows_few_of_them_is_not_believed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{FOLDER}{n:02}" for n in range(24)]
    found = create_orphans(bucket, *keys)
    for key in keys[1:]:
        bucket.r2.remove(key)
    operation = delete_orphans(found)
    assert (
        operation.status == Status.BLOCKED
        and "the listing or the bucket is probably wrong" in operation.error
    )
    assert bucket.keys() == {keys[0]}


def test_of_many_a_few_may_be_gone_and_are_called_absent(bucket: Bucket) -> None:
    keys = [f"{FOLDER}{n:02}" for n in range(60)]
    found = create_orphans(bucket, *keys)
    for key in keys[:25]:
        bucket.r2.remove(key)
    operation = delete_orphans(found)
    assert (operation.status, operation.already_absent, operation.deleted) == ("clean", 25, 35)
    notes = Finding.objects.filter(key__in=keys[:25]).values_list("note", flat=True).distinct()
    assert list(notes) == [f"seen gone by operation {operation.pk}"]


def test_a_crash_between_two_batches_is_gone_on_from(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"BATCH_SIZE": 2}
    keys = [f"{FOLDER}{n}" for n in range(7)]
    operation, original = (
        request_deletion(create_orphans(bucket, *keys)),
        delete_batches.delete_batch,
    )
    calls = 0

    def delete_batch(work: Work, *batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(work, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(delete_batches, "delete_batch", delete_batch)
        with pytest.raises(KeyboardInterrupt):
            run(operation)
    assert len(bucket.keys()) == 5
    past = timezone.now() - timedelta(minutes=5)
    CleanupOperation.objects.update(lease_until=past, next_attempt_at=past)
    operation = run(operation)
    assert (operation.status, operation.deleted) == (Status.CLEAN, 7)
    assert operation.events.filter(step="takeover").exists()
    check(bucket)


def test_trouble_of_the_store_deletes_nothing_and_resolves_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = create_orphans(bucket, KEY)

    def broken(*args: object) -> None:
        raise InvalidResponse("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(listing, "find", broken)
        operation = delete_orphans(found)
    assert (operation.status, bucket.keys()) == (Status.INCOMPLETE, {KEY})
    assert read_states() == {KEY: "open"}
    assert again(operation).status == Status.CLEAN


def test_late_checks_look_again_and_delete_nothing(bucket: Bucket) -> None:
    operation = delete_orphans(create_orphans(bucket, KEY, OTHER_KEY))
    checks = operation.children.order_by("next_attempt_at")
    assert [(c.kind, c.trigger) for c in checks] == [("verify", "late_check")] * 3
    bucket.put(KEY)
    look = late_check(operation)
    assert look.status == Status.INCOMPLETE
    assert outcomes(look) == {KEY: "failed", OTHER_KEY: "already_absent"}
    assert bucket.keys() == {KEY}
    alive("proj_9")
    look = again(checks[1])
    assert look.status == Status.CLEAN_WITH_PROTECTED
    assert "live project proj_9" in reason(look, KEY)
    check_of_it = requests.verify_operation(operation)
    assert run(check_of_it).status == Status.CLEAN_WITH_PROTECTED


def test_a_deletion_that_a_person_forced_of_a_project_has_its_own_late_checks(
    bucket: Bucket,
) -> None:
    bucket.upload("proj_1")
    assert {each.kind for each in delete("proj_1").children.all()} == {"project"}


def test_neighbours_are_looked_at_together_and_cost_few_queries(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LONE_KEYS", 10)
    monkeypatch.setattr(Work, "together", 10)
    monkeypatch.setattr(Work.__init__, "__defaults__", (0, 10, False))
    keys = [f"{FOLDER}{n:03}" for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(bucket.put, keys))
    operation = request_deletion(create_findings(bucket, *keys))
    with CaptureQueriesContext(connection) as few:
        operation = run(operation)
    assert operation.deleted == 400
    batches = operation.events.filter(message__startswith="Batch of").count()
    assert batches <= 6
    assert len(few) < len(keys)


def test_keys_that_are_no_neighbours_are_looked_at_fewer_at_a_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = create_orphans(bucket, *(f"{FOLDER}{n}" for n in range(6)))
    monkeypatch.setattr(turn, "LONE_KEYS", 2)
    monkeypatch.setattr(turn, "SLOW", -1.0)
    operation = delete_orphans(found)
    assert (operation.status, operation.deleted) == (Status.CLEAN, 6)
    batches = operation.events.filter(message__startswith="Batch of")
    assert [batch.message for batch in batches] == ["Batch of 2 objects sent."] * 3


# Given to a project


def test_an_adopted_object_is_its_project_s_and_goes_with_it(bucket: Bucket) -> None:
    alive("proj_1")
    found = create_orphans(bucket, KEY, "logo.png", *STRANGE_ORPHANS)
    with acting_as(Origin("zoe")):
        decision = track_files.adopt(list_ids(found), "proj_1")
    assert (decision.done, decision.left) == (len(found), [])
    row = R2Object.objects.get(key=KEY)
    assert (row.project_id, row.source, row.state) == ("proj_1", "adopted", "stored")
    assert (row.size, row.etag) == bucket.facts()[KEY]
    assert {(the(f).state, f.note, f.decided_by) for f in found} == {
        ("resolved", "adopted into proj_1", "zoe")
    }
    operation = delete("proj_1")
    assert set(outcomes(operation).values()) == {"deleted"}
    assert not bucket.keys() and not R2Object.objects.exists()
    check(bucket)


def test_an_adopted_object_stays_when_the_project_that_its_key_names_goes(bucket: Bucket) -> None:
    alive("proj_1")
    assert track_files.adopt(list_ids(create_orphans(bucket, KEY)), "proj_1").done == 1
    alive("proj_9")
    delete("proj_9")
    assert bucket.keys() == {KEY}


def test_file_of_a_live_project_is_not_adopted_into_another(bucket: Bucket) -> None:
    alive("proj_1", "proj_9")
    found = create_orphans(bucket, KEY, kind="untracked")
    told = whys(track_files.adopt(list_ids(found), "proj_1"))
    assert told == {KEY: "It belongs to the live project proj_9."}
    delete("proj_1")
    assert bucket.keys() == {KEY}
    assert track_files.adopt(list_ids(found), "proj_9").done == 1


def test_a_backfilled_row_is_given_too_and_one_of_a_live_upload_is_not(bucket: Bucket) -> None:
    alive("proj_1", "proj_2")
    found = create_orphans(bucket, KEY, OTHER_KEY)
    track(bucket, KEY, "proj_9", "backfill", size=1)
    track(bucket, OTHER_KEY, "proj_2")
    decision = track_files.adopt(list_ids(found), "proj_1")
    assert whys(decision) == {OTHER_KEY: "It belongs to the live project proj_2."}
    rows = R2Object.objects.order_by("key").values_list("project_id", "source", "size")
    assert list(rows) == [("proj_1", "adopted", 7), ("proj_2", "upload", None)]


@pytest.mark.parametrize("project_id", ["proj_9", "nobody", "", "a\0"])
def test_no_object_is_given_to_a_project_that_is_not_there(bucket: Bucket, project_id: str) -> None:
    deleted("proj_9")
    found = create_orphans(bucket, KEY)
    with pytest.raises(ActionRefused, match="Only an existing project"):
        track_files.adopt(list_ids(found), project_id)
    assert not R2Object.objects.exists()


def test_a_project_that_goes_meanwhile_is_given_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    found, original = create_orphans(bucket, KEY), track_files.give

    def give(*args: Any) -> Any:
        Project.objects.all().delete()
        return original(*args)

    monkeypatch.setattr(track_files, "give", give)
    with pytest.raises(ActionRefused, match="Only an existing project"):
        track_files.adopt(list_ids(found), "proj_1")
    assert not R2Object.objects.filter(source=Source.ADOPTED).exists()
    assert read_states() == {KEY: "open"}


def test_what_is_not_as_the_finding_says_is_not_given(bucket: Bucket) -> None:
    alive("proj_1")
    found = create_orphans(bucket, KEY, OTHER_KEY)
    found += create_orphans(bucket, "missing", kind="missing")
    found += create_orphans(bucket, "nul", escaped=True)
    found += create_orphans(bucket, "over", state="resolved", note="x")
    bucket.put(KEY, body=b"overwritten")
    bucket.r2.remove(OTHER_KEY)
    told = whys(track_files.adopt(list_ids(found), "proj_1"))
    assert "overwritten" in told[KEY] and "not in the bucket" in told[OTHER_KEY]
    assert "not for findings of the kind “missing”" in told["missing"]
    assert "No row can name" in told["nul"] and told["over"] == "It is resolved: x"
    assert not R2Object.objects.exists()


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_what_an_upload_or_a_deletion_has_in_hand_is_not_given(bucket: Bucket, state: str) -> None:
    alive("proj_1")
    found = create_orphans(bucket, KEY)
    track(bucket, KEY, "proj_9", state=state)
    assert "in hand" in whys(track_files.adopt(list_ids(found), "proj_1"))[KEY]
    assert R2Object.objects.get().project_id == "proj_9"


def test_a_row_that_changes_meanwhile_is_not_overwritten(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive("proj_1")
    found, original = create_orphans(bucket, KEY), track_files.unchanged
    track(bucket, KEY, "proj_9", "backfill")

    def unchanged(held: Iterable[R2Object]) -> list[R2Object]:
        R2Object.objects.update(state="uploading", updated_at=timezone.now())
        return original(held)

    monkeypatch.setattr(track_files, "unchanged", unchanged)
    assert "in hand" in whys(track_files.adopt(list_ids(found), "proj_1"))[KEY]
    assert R2Object.objects.get().source == "backfill"


@pytest.mark.parametrize("key", [KEY, FOLDER + "e\u0301"])
def test_a_key_that_a_cleanup_has_marked_is_given_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    cleanup_asked_for_just_after_the_question(monkeypatch)
    fold_unicode(bucket)
    alive("proj_1")
    found, same = create_orphans(bucket, key), listing.nfc(key)
    track(bucket, same, "proj_9", "backfill")
    operation = CleanupOperation.objects.request(
        kind="project", project_id="proj_9", bucket=bucket.name, trigger="deleted"
    )
    CleanupItem.objects.create(
        operation=operation, key=key, identity=same, outcome="deleting", found_in="both"
    )
    assert "in hand" in whys(track_files.adopt(list_ids(found), "proj_1"))[key]
    row = R2Object.objects.get()
    assert (row.project_id, row.source) == ("proj_9", "backfill")
    assert read_states() == {key: "open"}


def test_an_object_that_could_be_several_projects_is_the_one_s_that_it_is_given(
    bucket: Bucket,
) -> None:
    alive("proj_1", "proj_1_x")
    key = "proj_1_x_s1_media.mp4"
    track_files.adopt(list_ids(create_orphans(bucket, key, kind="ambiguous")), "proj_1_x")
    row = R2Object.objects.get()
    assert (row.project_id, row.scene_id, row.layout) == ("proj_1_x", "s1", "flat")
    delete("proj_1")
    assert bucket.keys() == {key}
    delete("proj_1_x")
    assert not bucket.keys()


# Rows brought up to date, and forgotten


def test_tracking_writes_what_the_bucket_shows_by_now(bucket: Bucket) -> None:
    alive("proj_9")
    found = create_orphans(bucket, KEY, kind="untracked") + create_orphans(
        bucket, OTHER_KEY, kind="changed"
    )
    track(bucket, OTHER_KEY, "proj_9", size=1, etag="old")
    bucket.put(OTHER_KEY, body=b"newer still")
    with acting_as(Origin("zoe")):
        decision = track_files.track(list_ids(found))
    assert (decision.done, decision.left) == (2, [])
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
    track(bucket, OTHER_KEY, "proj_9", state="uploading")
    told = whys(track_files.track(list_ids(found)))
    assert "not in the bucket" in told[KEY] and "in hand" in told[OTHER_KEY]
    assert told["x"] == "This action is not for findings of the kind “orphaned”."
    assert set(read_states().values()) == {"open"}


def test_a_missing_object_s_row_is_forgotten_and_nothing_follows(bucket: Bucket) -> None:
    track(bucket, KEY, "proj_9")
    found = create_findings(bucket, KEY, kind="missing")
    decision = track_files.untrack(list_ids(found))
    assert (decision.done, decision.left) == (1, [])
    assert not R2Object.objects.exists() and not CleanupOperation.objects.exists()
    assert the(found[0]).note == "row removed: its object is not there"


def test_row_that_alone_keeps_a_missing_file_from_a_cleanup_is_kept(bucket: Bucket) -> None:
    """The file may be restored from a backup before the cleanup, or its follow-up check, ends."""
    alive("proj_1")
    track(bucket, KEY, "proj_1", "adopted")
    [operation] = requests.declare_deleted("proj_9")
    found = create_findings(bucket, KEY, kind="missing")
    decision = track_files.untrack(list_ids(found))
    assert decision.done == 0 and R2Object.objects.exists()
    assert str(operation.pk) in whys(decision)[KEY]


DECIDE: dict[str, tuple[str, Callable[[list[int]], Decision]]] = {
    "track": ("untracked", track_files.track),
    "adopt": ("orphaned", partial(track_files.adopt, project_id="proj_1")),
    "untrack": ("missing", track_files.untrack),
}


@pytest.mark.parametrize("name", DECIDE)
def test_acknowledged_finding_is_left_until_it_is_reopened(bucket: Bucket, name: str) -> None:
    kind, decide = DECIDE[name]
    alive("proj_1")
    found = create_orphans(bucket, KEY, kind=kind)
    keep(found)
    told = f"zoe acknowledged finding {found[0].pk} about this file. Reopen that finding first."
    assert whys(decide(list_ids(found))) == {KEY: told}
    bucket.put(KEY, body=b"another file, of which nobody has decided")
    assert whys(decide(list_ids(found))) == {KEY: told}
    assert read_states() == {KEY: "acknowledged"} and not R2Object.objects.exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", DECIDE)
def test_file_that_another_finding_keeps_is_left_until_that_one_is_reopened(
    bucket: Bucket, name: str, form: Literal["NFC", "NFD"]
) -> None:
    fold_unicode(bucket)
    kind, decide = DECIDE[name]
    alive("proj_1")
    listed = FOLDER + "e\u0301"
    row = track(bucket, normalize("NFC", listed), "proj_9") if kind == "missing" else None
    other = create_orphans(bucket, listed, kind="changed")
    Finding.objects.update(key=normalize(form, listed))
    keep(other)
    if row:
        bucket.r2.remove(listed)
    found = create_findings(bucket, row.key if row else listed, kind=kind)
    [left] = decide(list_ids(found)).left
    told = f"zoe acknowledged finding {other[0].pk} about this file. Reopen that finding first."
    assert left.reason == told and the(found[0]).state == "open"
    assert [*R2Object.objects.all()] == [row] * (kind == "missing")
    action_result.reopen(list_ids(other))
    assert decide(list_ids(found)).done == 1


@pytest.mark.parametrize("name", ["track", "adopt"])
def test_overwritten_file_of_an_acknowledged_finding_is_kept_by_none(
    bucket: Bucket, name: str
) -> None:
    kind, decide = DECIDE[name]
    alive("proj_1")
    keep(create_findings(bucket, KEY, kind="changed", etag="another", size=7))
    assert decide(list_ids(create_orphans(bucket, KEY, kind=kind))).done == 1


@pytest.mark.parametrize("name", DECIDE)
def test_finding_acknowledged_during_a_decision_stays_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, decide = DECIDE[name]
    alive("proj_1")
    [finding] = (
        create_findings(bucket, KEY, kind=kind)
        if kind == "missing"
        else create_orphans(bucket, KEY, kind=kind)
    )
    if kind == "missing":
        track(bucket, KEY, "proj_9")
    meanwhile = "find" if kind == "missing" else "written"
    original = getattr(track_files, meanwhile)

    def acknowledge_first(*args: Any) -> Any:
        keep([finding])
        return original(*args)

    monkeypatch.setattr(track_files, meanwhile, acknowledge_first)
    decision = decide([finding.pk])
    told = "Reopen that finding first." if kind == "missing" else "acknowledged meanwhile"
    assert decision.done == 0 and told in whys(decision)[KEY]
    assert R2Object.objects.exists(), "the row of a missing file stays, the others are written"
    assert (the(finding).state, finding.note) == ("acknowledged", "Evidence in a law suit")


def test_a_row_is_kept_whose_object_is_there_or_that_changes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (KEY, OTHER_KEY, "x"):
        track(bucket, key, "proj_9", state="uploading" if key == OTHER_KEY else "stored")
    found = create_findings(bucket, KEY, OTHER_KEY, "no row", "x", kind="missing")
    bucket.put(KEY)
    original = track_files.unchanged

    def unchanged(held: Iterable[R2Object]) -> list[R2Object]:
        R2Object.objects.filter(key="x").update(updated_at=timezone.now())
        return original(held)

    monkeypatch.setattr(track_files, "unchanged", unchanged)
    told = whys(track_files.untrack(list_ids(found)))
    assert "in the bucket" in told[KEY] and "in hand" in told[OTHER_KEY]
    assert "no row" in told["no row"] and "in hand" in told["x"]
    assert R2Object.objects.count() == 3


def test_no_row_is_forgotten_on_a_listing_that_shows_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(bucket, KEY, "proj_9")
    bucket.put(KEY)
    found = create_findings(bucket, KEY, kind="missing")

    def empty(*args: object) -> dict[str, object]:
        bucket.r2.remove(MARKER)
        return {}

    monkeypatch.setattr(track_files, "find", empty)
    with pytest.raises(CannotConclude):
        track_files.untrack(list_ids(found))
    assert R2Object.objects.exists()


def test_row_that_keeps_a_file_from_a_late_check_is_not_untracked(bucket: Bucket) -> None:
    alive("proj_2")
    track_files.adopt(list_ids(create_orphans(bucket, KEY, OTHER_KEY)), "proj_2")
    [operation] = requests.declare_deleted("proj_9")
    assert run(operation).status == Status.CLEAN
    unrelated, row = "projects/proj_2/scenes/s1/media/a.mp4", R2Object.objects.get(key=KEY)
    other = track(bucket, unrelated, "proj_2")
    told = confirm(superuser(), "r2object", "untrack", row.pk, other.pk)
    assert "1 row was kept:" in told and "1 row is forgotten" in told
    assert [due.status for due in operation.children.all() if f"Cleanup {due.pk}" in told]
    assert set(R2Object.objects.values_list("key", flat=True)) == {KEY, OTHER_KEY}
    assert late_check(operation).status == Status.CLEAN
    assert {KEY, OTHER_KEY} <= bucket.keys()
    operation.children.filter(status=Status.PENDING).update(status="clean", next_attempt_at=None)
    assert "1 row is forgotten" in confirm(superuser(), "r2object", "untrack", row.pk)


# Shown


def test_such_a_deletion_is_shown_wherever_others_are(bucket: Bucket) -> None:
    operation = delete_orphans(create_orphans(bucket, *STRANGE_ORPHANS))
    client = superuser()
    shown = client.get(page("cleanupoperation", "change", operation.pk)).content.decode()
    assert "deletion of orphans" in shown and "&lt;script&gt;" in shown
    assert "<script>alert" not in shown and "Force-delete:" not in shown
    assert "proj_9" in client.get(page("cleanupoperation", "changelist")).content.decode()
    told = client.get(f"/api/v1/deletions/{operation.pk}").json()
    assert (told["kind"], told["trigger"], told["over"]) == ("orphans", "orphaned", True)
    assert 'kind="orphans",status="clean"} 1.0' in client.get("/metrics").content.decode()


def test_a_person_runs_a_plan_from_its_page(bucket: Bucket) -> None:
    operation = run(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    shown = superuser().get(page("cleanupoperation", "change", operation.pk)).content.decode()
    assert "Run exactly this plan" in shown and "dry run" in shown


@pytest.mark.parametrize("may_delete", [False, True])
def test_plan_of_orphans_is_run_only_by_who_may_delete_objects(
    bucket: Bucket, may_delete: bool
) -> None:
    plan = run(request_deletion(create_orphans(bucket, KEY), dry_run=True))
    may = ["view_cleanupoperation", "force_cleanup", *["delete_r2object"][: int(may_delete)]]
    who = person(*may)
    shown = who.get(page("cleanupoperation", "change", plan.pk)).content.decode()
    told = confirm(who, "cleanupoperation", "force_delete", plan.pk)
    plan.refresh_from_db()
    assert plan.status == (Status.PENDING if may_delete else Status.PLANNED)
    for text in (shown, told):
        assert ("add you to the group “Storage admin”" in text) != may_delete
