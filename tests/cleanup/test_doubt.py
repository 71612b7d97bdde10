"""Ways in which the wrong object could be deleted, or the right one forgotten, each once open."""

from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit.bucket.errors import Unavailable
from storage_audit.cleanup import (
    delete_batches,
    delete_pipeline,
    project_uploads,
    requests,
    vanished_projects,
    verify,
)
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.conf import conf
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.storage import KeyBeingDeleted
from storage_audit.tracking import rows
from tests.api_client import assert_problem, client_with_token
from tests.faults.kinds import answer_other_keys, error_xml, reply_per_key
from tests.faults.matching import is_delete_batch, rule_for
from tests.faults.proxy import FaultyStore, Forward, Request, Rule
from tests.keys import AMBIGUOUS, NFC, NFD
from tests.promises import (
    clean_up_project,
    create_projects,
    read_outcomes,
    request_cleanup,
    run_again,
    run_until_idle,
    take_over_lease,
)
from tests.real_bucket import Bucket, fold_unicode
from tests.times import STALE_CALL

Status = Cleanup.Status
NO_ANSWER = Reply(500, error_xml("InternalError"))


def fails(monkeypatch: pytest.MonkeyPatch, module: object, name: str, error: BaseException) -> None:
    def raising(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(module, name, raising)


def test_backfilled_row_is_no_evidence_after_an_upload_to_an_ambiguous_key(bucket: Bucket) -> None:
    create_projects("proj_a")
    bucket.put(AMBIGUOUS)
    call_command("backfill_r2")
    create_projects("proj_a_b")
    with default_storage.open(AMBIGUOUS, "w") as file:
        file.write(b"the live project's own")
    cleanup = clean_up_project("proj_a")
    assert read_outcomes(cleanup) == {AMBIGUOUS: "kept"}
    assert bucket.keys() == {AMBIGUOUS}


def test_project_that_vanished_unnoticed_still_counts_as_a_possible_owner(bucket: Bucket) -> None:
    create_projects("proj_a", "proj_a_b", "proj_c")
    bucket.put(AMBIGUOUS)
    Project.objects.filter(pk="proj_a_b")._raw_delete("default")
    assert read_outcomes(clean_up_project("proj_a")) == {AMBIGUOUS: "kept"}
    vanished_projects.check_vanished_projects()
    blocked = Cleanup.objects.get(project_id="proj_a_b")
    assert blocked.status == Status.BLOCKED
    requests.approve_or_retry(blocked)
    assert read_outcomes(run_until_idle(blocked)) == {AMBIGUOUS: "deleted"}


@pytest.mark.parametrize("noticed", [False, True])
def test_project_created_again_and_gone_without_a_word_keeps_its_objects(
    bucket: Bucket, noticed: bool
) -> None:
    """Nobody said that this one is deleted: neither the old cleanup nor its follow-up checks may
    go."""
    create_projects("proj_1", "proj_2")
    pending, key = request_cleanup("proj_1"), bucket.upload("proj_1")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    if noticed:
        vanished_projects.check_vanished_projects()
    assert run_until_idle(pending).status == Status.SUPERSEDED
    assert bucket.keys() == {key}
    vanished_projects.check_vanished_projects()
    blocked = Cleanup.objects.get(trigger="vanished")
    requests.approve_or_retry(blocked)
    assert read_outcomes(run_until_idle(blocked)) == {key: "deleted"}


@pytest.mark.parametrize("noticed", [False, True])
def test_vanished_project_is_only_cleaned_up_after_a_person_declared_it_deleted(
    bucket: Bucket, noticed: bool
) -> None:
    create_projects("proj_1", "proj_2")
    key = bucket.upload("proj_1")
    Project.objects.filter(pk="proj_1")._raw_delete("default")
    if noticed:
        vanished_projects.check_vanished_projects()
    plan = run_until_idle(requests.request_preview("proj_1")[0])
    before = Cleanup.objects.count()
    for options in ([], ["--run-plan", str(plan.pk)]):
        with pytest.raises(CommandError, match="--declare-deleted") as refusal:
            call_command("cleanup_project", "proj_1", "--sync", *options)
        if noticed:
            blocked = Cleanup.objects.get(trigger="vanished")
            assert str(blocked.pk) in str(refusal.value)
            assert blocked.status == Status.BLOCKED
    problem = assert_problem(
        client_with_token().request("POST", "/debug/cleanup/proj_1?mode=s3"), 409, "wrong-state"
    )
    assert "no deletion was reported" in problem["detail"]
    with pytest.raises(IllegalTransition):
        requests.approve_or_retry(plan)
    assert Cleanup.objects.count() == before
    assert bucket.keys() == {key}
    call_command("cleanup_project", "proj_1", "--sync", "--declare-deleted")
    assert bucket.keys() == set()


def test_one_of_many_vanished_projects_is_not_cleaned_up_undeclared(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_VANISHED": 1}
    create_projects("proj_1", "proj_2", "proj_3")
    Project.objects.exclude(pk="proj_3")._raw_delete("default")
    vanished_projects.check_vanished_projects()
    many = Cleanup.objects.get()
    with pytest.raises(CommandError, match=str(many.pk)):
        call_command("cleanup_project", "proj_1", "--sync")
    assert_problem(
        client_with_token().request("POST", "/debug/cleanup/proj_1?mode=s3"), 409, "wrong-state"
    )
    assert Cleanup.objects.get() == many


def test_verification_of_deleted_rows_sees_what_was_never_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get(key=key).delete()
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = run_until_idle(Cleanup.objects.get())
    check = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert (check.status, read_outcomes(check)) == (Status.DIFFERS, {key: "failed"})


def test_running_the_plan_of_an_unknown_id_declares_it_deleted(bucket: Bucket) -> None:
    bucket.put("projects/proj_never/scenes/s/media/x.mp4")
    plan = run_until_idle(requests.request_preview("proj_never")[0])
    requests.approve_or_retry(plan)
    assert KnownProject.objects.get().evidence == KnownProject.Evidence.DECLARED
    assert run_until_idle(plan).status == Status.CLEAN


def test_follow_ups_follow_also_when_something_failed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put("projects/proj_1/scenes/s1/media/a\x01/../b")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert cleanup.children.count() == 3
    assert run_again(cleanup).children.count() == 3


def test_workers_that_never_report_back_are_noticed_and_end_in_failed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")

    def outlast_the_lease(work: Turn, batch: object) -> None:
        """As a single request can, whatever is done to renew it."""
        mine = Cleanup.objects.filter(pk=work.cleanup.pk)
        mine.update(lease_until=timezone.now())

    monkeypatch.setattr(delete_batches, "recheck_batch", outlast_the_lease)
    run_until_idle(cleanup)
    cleanup = run_again(cleanup)
    assert (cleanup.status, cleanup.takeovers) == (Status.RUNNING, 1)
    assert cleanup.events.filter(step="takeover").count() == 1
    Cleanup.objects.filter(pk=cleanup.pk).update(takeovers=4)
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.RETRYING
    assert cleanup.message == "Workers keep stopping on this cleanup. Their logs say why."
    long_ago = timezone.now() - timedelta(hours=7)
    Cleanup.objects.filter(pk=cleanup.pk).update(failing_since=long_ago)
    for _turn in range(6):
        cleanup = run_again(cleanup)
    assert cleanup.status == Status.FAILED


def test_where_spellings_are_one_object_uploads_to_the_other_are_barred(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold_unicode(bucket)
    create_projects("proj_1")
    bucket.put(NFD)
    call_command("backfill_r2")
    real = delete_pipeline.send_batch

    def upload_first(*args: object, **kwargs: object) -> object:
        with pytest.raises(KeyBeingDeleted):
            default_storage.open(NFC, "w")
        assert R2Object.objects.get().state == R2Object.State.DELETING
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(delete_pipeline, "send_batch", upload_first)
    assert read_outcomes(clean_up_project("proj_1")) == {NFD: "deleted"}
    assert not R2Object.objects.exists()


def test_upload_that_was_refused_does_not_keep_the_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get(key=key).delete()

    def refuse_upload(*args: object, **kwargs: object) -> None:
        with pytest.raises(KeyBeingDeleted):
            default_storage.open(key, "w")
        raise Unavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(delete_pipeline, "send_batch", refuse_upload)
        cleanup = run_until_idle(Cleanup.objects.get())
    assert read_outcomes(run_again(cleanup)) == {key: "deleted"}


def test_key_whose_deletion_was_not_answered_stays_barred_for_a_while(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may still be at it, and would delete what is uploaded now."""
    key = bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(key, "w")
    long_ago = timezone.now() - STALE_CALL
    CleanupItem.objects.update(changed_at=long_ago)
    R2Object.objects.update(updated_at=long_ago)
    with default_storage.open(key, "w") as file:
        file.write(b"another")
    assert read_outcomes(run_again(cleanup)) == {key: "kept"}


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "together"])
def test_deletion_that_reaches_the_store_late_deletes_no_later_file(
    count: int, bucket: Bucket, store: FaultyStore
) -> None:
    """The cleanup has sent it again by then, has seen the file gone, and has ended."""
    keys = [bucket.upload("proj_1", f"{number}.mp4") for number in range(count)]
    R2Object.objects.all().delete()
    on_its_way = list[Forward]()

    def hold_up(request: Request, forward: Forward) -> Reply:
        on_its_way.append(forward)
        return Reply(500, error_xml("InternalError"))

    store.rules.append(rule_for(is_delete_batch, hold_up, times=1))
    cleanup = run_until_idle(Cleanup.objects.get())
    if cleanup.status != Status.CLEAN:
        cleanup = run_again(cleanup)
    assert (cleanup.status, bucket.keys()) == (Status.CLEAN, set())
    saved = {default_storage.save(key, ContentFile(b"another")) for key in keys}
    on_its_way[0]()
    assert saved == bucket.keys()
    assert saved.isdisjoint(keys)


def test_key_is_free_once_an_unanswered_deletion_is_too_old_to_be_obeyed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker died: only the next one says that nobody wrote down an answer."""
    key = bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    assert run_again(cleanup).status == Status.CLEAN
    assert default_storage.save(key, ContentFile(b"another")) != key
    CleanupItem.objects.update(unanswered_at=timezone.now() - STALE_CALL)
    assert default_storage.save(key, ContentFile(b"another")) == key


def test_mark_of_a_clock_that_is_behind_shortens_no_earlier_one(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    ahead = timezone.now() + timedelta(minutes=10)
    CleanupItem.objects.update(unanswered_at=ahead)
    store.rules.append(rule_for(is_delete_batch, NO_ANSWER))
    run_again(cleanup)
    assert CleanupItem.objects.get().unanswered_at == ahead


@pytest.mark.parametrize("field", ["changed_at", "unanswered_at"])
@pytest.mark.parametrize("takes_over", [True, False])
def test_mark_of_a_clock_that_was_far_ahead_hides_no_later_call(
    bucket: Bucket,
    store: FaultyStore,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    takes_over: bool,
) -> None:
    key = bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    ahead = timezone.now() + timedelta(minutes=90)
    CleanupItem.objects.update(**{"unanswered_at": timezone.now(), field: ahead})
    if not takes_over:
        # As if the call had been answered, so that only the next one is in doubt.
        CleanupItem.objects.update(store_answer="OK")
    store.rules.append(rule_for(is_delete_batch, NO_ANSWER, times=1))
    cleanup = run_again(cleanup)
    if cleanup.status != Status.CLEAN:
        cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert default_storage.save(key, ContentFile(b"another")) != key


def test_key_whose_deletion_was_answered_is_free_at_once(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert default_storage.save(key, ContentFile(b"another")) == key


def test_key_is_free_at_once_when_its_worker_died_before_the_call(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next worker finds a barred row, and no other process has barred it."""
    key = bucket.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        fails(patch, delete_batches, "recheck_batch", SystemExit())
        run_until_idle(cleanup)
    assert take_over_lease(cleanup).status == Status.CLEAN
    assert default_storage.save(key, ContentFile(b"another")) == key


def test_follow_ups_follow_a_clean_end_also_when_they_followed_a_failure(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    stuck = "projects/proj_1/scenes/s1/media/a\x01/../b"
    bucket.put(stuck)
    cleanup = clean_up_project("proj_1")
    cleanup.children.update(status=Status.CLEAN, finished_at=timezone.now())
    bucket.r2.remove(stuck)
    assert run_again(cleanup).status == Status.CLEAN
    assert cleanup.children.filter(finished_at=None).count() == 3


def unknown_for_each_key(request: Request, forward: Forward) -> Reply:
    xml = "<Error><Key>{}</Key><Code>InternalFailure</Code></Error>"
    return reply_per_key(request, xml.format)


@pytest.mark.parametrize(
    ("answer", "stays_barred"),
    [
        (answer_other_keys, True),
        (Reply(200, b"<DeleteResult></DeleteResult>"), True),
        (Reply(500, error_xml("InternalError")), True),
        (Reply(500, error_xml("InternalFailure")), True),
        (Reply(408), True),
        (Reply(409, error_xml("OperationAborted")), True),
        (unknown_for_each_key, True),
        (Reply(403, error_xml("AccessDenied")), False),
        (Reply(503, error_xml("SlowDown")), False),
    ],
    ids=["other keys", "no keys", "500", "unknown 500", "408", "409", "unknown key", "403", "503"],
)
def test_uploads_are_barred_while_a_deletion_may_be_under_way(
    bucket: Bucket,
    store: FaultyStore,
    settings: Settings,
    answer: Rule | Reply,
    stays_barred: bool,
) -> None:
    """As a turn ends after the first answer, and then when the cleanup gives up."""
    create_projects("proj_1", "proj_2")
    key = bucket.upload("proj_1")
    store.rules.append(rule_for(is_delete_batch, answer))
    with override_settings(STORAGE_AUDIT=settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}):
        cleanup = clean_up_project("proj_1")
    assert CleanupItem.objects.is_being_deleted(bucket.name, key) == stays_barred
    assert read_outcomes(run_again(cleanup)) == {key: "failed"}
    assert CleanupItem.objects.is_being_deleted(bucket.name, key) == stays_barred
    assert (key in rows.find_being_deleted(bucket.name, {key})) == stays_barred
    long_ago = timezone.now() - conf().deletion_timeout
    CleanupItem.objects.update(changed_at=long_ago, unanswered_at=long_ago)
    assert not CleanupItem.objects.is_being_deleted(bucket.name, key)


def test_blocked_cleanup_bars_no_uploads(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bucket.upload("proj_1")
    fails(monkeypatch, verify, "verify_items", CannotConclude("another bucket"))
    assert clean_up_project("proj_1").status == Status.BLOCKED
    create_projects("proj_1")
    with default_storage.open(key, "w") as file:
        file.write(b"the new project's")
    assert R2Object.objects.get().state == R2Object.State.STORED
    assert not CleanupItem.objects.filter(outcome="deleting").exists()


def test_objects_sent_before_the_id_was_recreated_are_not_called_kept(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, verify, "verify_items", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    assert bucket.keys() == set()
    create_projects("proj_1")
    cleanup = run_again(cleanup)
    assert (cleanup.status, read_outcomes(cleanup)) == (Status.SUPERSEDED, {key: "failed"})


def test_key_whose_deletion_was_not_answered_stays_barred_when_the_id_lives_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    with monkeypatch.context() as patch:
        fails(patch, delete_pipeline, "send_batch", Unavailable("no answer"))
        cleanup = clean_up_project("proj_1")
    create_projects("proj_1")
    cleanup = run_again(cleanup)
    assert (cleanup.status, cleanup.failed) == (Status.SUPERSEDED, 1)
    assert "created again" in cleanup.items.get().reason
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(key, "w")
    CleanupItem.objects.update(changed_at=timezone.now() - STALE_CALL)
    with default_storage.open(key, "w") as file:
        file.write(b"the new project's")


def test_dry_run_that_fails_opens_no_key_that_something_else_is_deleting(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    plan = requests.request_preview("proj_1")[0]
    R2Object.objects.update(state=R2Object.State.DELETING)
    fails(monkeypatch, project_uploads, "record_unfinished_uploads", Unavailable("no answer"))
    assert run_until_idle(plan).status == Status.RETRYING
    assert R2Object.objects.get().state == R2Object.State.DELETING
