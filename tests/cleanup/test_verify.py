"""Verifications and dry runs: they look, say what they saw, and delete nothing."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone
from pytest_django.fixtures import Settings

from storage_audit.bucket import s3
from storage_audit.bucket.listing import escape_key
from storage_audit.cleanup import limits, plan, plan_summary, requests, runner
from storage_audit.cleanup.cloudflare_crosscheck import Crosscheck
from storage_audit.cleanup.models import Cleanup
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.worker_turn import Turn, TurnOver
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.project_model import ProjectExists
from storage_audit.tracking.upload import Upload
from tests.faults.kinds import change_reply
from tests.faults.matching import is_listing_at, rule_for
from tests.faults.pages import with_entries
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    run_again,
    run_until_idle,
    track_key,
    verify_project,
)
from tests.real_bucket import Bucket
from tests.times import AHEAD


def dry_run(project_id: str) -> Cleanup:
    (cleanup,) = requests.request_preview(project_id)
    return run_until_idle(cleanup)


def test_live_project_whose_bucket_and_table_agree_is_in_step(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    bucket.upload("proj_10")
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert cleanup.message == "1 as expected, 0 missing, 0 untracked."
    check_promises(bucket)


def test_live_project_with_missing_and_untracked_objects(bucket: Bucket) -> None:
    kept = bucket.upload("proj_1")
    track_key(bucket, HIERARCHICAL_KEY, "proj_1")
    track_key(bucket, "odd/key", "proj_1")
    bucket.put(FLAT_KEY)
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.DIFFERS
    assert cleanup.next_attempt_at is None
    assert cleanup.message == "1 as expected, 2 missing, 1 untracked."
    assert read_outcomes(cleanup) == {
        HIERARCHICAL_KEY: "failed",
        "odd/key": "failed",
        FLAT_KEY: "failed",
    }
    assert bucket.keys() == {kept, FLAT_KEY}
    assert set(R2Object.objects.values_list("state", flat=True)) == {"stored"}
    check_promises(bucket)


@pytest.mark.parametrize("state", ["uploading", "deleting"])
def test_object_that_is_changing_is_not_called_missing(bucket: Bucket, state: str) -> None:
    create_projects("proj_1")
    track_key(bucket, HIERARCHICAL_KEY, "proj_1", state=state)
    assert verify_project("proj_1").message == "0 as expected, 0 missing, 0 untracked."
    R2Object.objects.update(state="stored", updated_at=timezone.now() + AHEAD)
    assert verify_project("proj_1").message == "0 as expected, 0 missing, 0 untracked."
    # Nobody has it in hand any more: the process was killed.
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=25))
    assert verify_project("proj_1").message == "0 as expected, 1 missing, 0 untracked."


def test_upload_that_ends_while_the_bucket_is_listed_is_not_called_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = plan.discover_tracked

    def discover_tracked(work: Turn, span: int) -> None:
        if work.cleanup.listed_prefixes[span].startswith("projects/proj_1/"):
            bucket.upload("proj_1")
        original(work, span)

    create_projects("proj_1")
    monkeypatch.setattr(plan, "discover_tracked", discover_tracked)
    assert verify_project("proj_1").message == "1 as expected, 0 missing, 0 untracked."


def test_file_that_the_application_deletes_meanwhile_is_not_called_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, errors = s3.delete_single, list[str]()

    def delete_and_verify(*args: Any) -> Any:
        answer = original(*args)
        errors.append(verify_project("proj_1").message)
        return answer

    create_projects("proj_1")
    default_storage.save(HIERARCHICAL_KEY, ContentFile(b"content"))
    monkeypatch.setattr(s3, "delete_single", delete_and_verify)
    default_storage.delete(HIERARCHICAL_KEY)
    assert errors == ["0 as expected, 0 missing, 0 untracked."]


def test_tracked_object_whose_key_names_another_project_is_not_called_missing(
    bucket: Bucket,
) -> None:
    create_projects("proj_1", "proj_2")
    key = "projects/proj_2/scenes/s1/media/a.mp4"
    bucket.put(key)
    track_key(bucket, key, "proj_1", "backfill")
    cleanup = verify_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept"}
    check_promises(bucket)


LATE = "projects/proj_1/scenes/s1/media/late.mp4"


def behind_the_listing(patch: pytest.MonkeyPatch, *effects: Callable[[], object]) -> None:
    """Let these happen once, after the prefix of the project was listed."""
    original, todo = plan.discover_tracked, list(effects)

    def discover_tracked(work: Turn, span: int) -> None:
        while todo and work.cleanup.listed_prefixes[span].startswith("projects/proj_1/"):
            todo.pop(0)()
        original(work, span)

    patch.setattr(plan, "discover_tracked", discover_tracked)


def test_file_of_an_upload_that_ends_behind_the_listing_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    upload = Upload(bucket.name, LATE).begin()
    clean_up_project("proj_1")
    behind_the_listing(monkeypatch, lambda: bucket.put(LATE), upload.confirm)
    found = verify_project("proj_1")
    assert found.message == "1 leftover, 0 confirmed gone."
    assert read_outcomes(found) == {LATE: "failed"}


def test_key_with_an_upload_under_way_is_not_called_gone(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    clean_up_project("proj_1")
    Upload(bucket.name, LATE).begin()
    assert verify_project("proj_1").message == "0 leftover, 0 confirmed gone."


@pytest.mark.parametrize("ahead", [timedelta(0), AHEAD])
def test_file_that_an_upload_stores_behind_the_last_check_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    key = bucket.upload("proj_1")
    cleanup = requests.request_cleanup_verification(clean_up_project("proj_1"))
    take = Crosscheck.run

    def upload_first(look: Crosscheck) -> str:
        default_storage.save(key, ContentFile(b"again"))
        R2Object.objects.update(updated_at=timezone.now() + ahead)
        return take(look)

    monkeypatch.setattr(Crosscheck, "run", upload_first)
    assert run_until_idle(cleanup).message == "0 leftover, 0 confirmed gone."


def test_file_that_is_put_again_behind_the_listing_is_not_called_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    cleanup = requests.request_cleanup_verification(clean_up_project("proj_1"))
    behind_the_listing(monkeypatch, lambda: bucket.put(key))
    found = run_until_idle(cleanup)
    assert found.message == "1 leftover, 0 confirmed gone."
    assert read_outcomes(found) == {key: "failed"}


def test_file_under_a_prefix_that_is_another_projects_by_now_is_not_called_gone(
    bucket: Bucket, settings: Settings
) -> None:
    formats = {"folder": "{project}/{filename}", "flat": "{project}_{scene}.{ext}"}
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"KEY_FORMATS": formats}
    create_projects("proj_1")
    key = "proj_1_x/readme.txt"
    bucket.put(key)
    track_key(bucket, key, "proj_1", "assigned")
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "deleted"}
    assert (
        run_until_idle(requests.request_cleanup_verification(cleanup)).message
        == "0 leftover, 1 confirmed gone."
    )
    bucket.put(key)
    assert (
        run_until_idle(requests.request_cleanup_verification(cleanup)).message
        == "0 leftover, 0 confirmed gone."
    )


def test_verification_that_takes_several_turns_takes_over_nothing_twice(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is another project's by now was dropped in an earlier turn."""
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"TURN_TIME": timedelta(0)}
    create_projects("proj_1", "proj_2")
    bucket.set_marker(folds_unicode=True)
    bucket.put(NFC)
    cleaned = clean_up_project("proj_1")
    bucket.put(NFD)
    track_key(bucket, NFD, "proj_2", "assigned")
    take, turns = Crosscheck.run, list[None]()

    def ask_later(look: Crosscheck) -> str:
        turns.append(None)
        if len(turns) == 1:
            raise TurnOver
        return take(look)

    monkeypatch.setattr(Crosscheck, "run", ask_later)
    found = run_until_idle(requests.request_cleanup_verification(cleaned))
    assert found.message == "0 leftover, 0 confirmed gone."
    assert len(turns) == 2


def test_deleted_project_with_leftovers(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY, FLAT_KEY)
    track_key(bucket, "projects/proj_1/scenes/s1/media/gone.mp4", "proj_1")
    cleanup = verify_project("proj_1")
    assert cleanup.status == Status.DIFFERS
    assert cleanup.message == "2 leftover, 1 confirmed gone."
    assert bucket.keys() == {HIERARCHICAL_KEY, FLAT_KEY}
    assert R2Object.objects.count() == 1
    check_promises(bucket)


def test_deleted_project_with_nothing_left_is_clean(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put("proj_10_s1_media.mp4")
    assert verify_project("proj_1").status == Status.CLEAN


def test_verification_of_a_cleanup(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY, FLAT_KEY)
    cleanup = clean_up_project("proj_1")
    assert run_until_idle(requests.request_cleanup_verification(cleanup)).status == Status.CLEAN
    bucket.put(FLAT_KEY)
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert found.parent == cleanup
    assert found.message == "1 leftover, 1 confirmed gone."
    assert read_outcomes(found) == {FLAT_KEY: "failed", HIERARCHICAL_KEY: "already_gone"}
    assert bucket.keys() == {FLAT_KEY}


def test_verification_of_a_cleanup_that_kept_something_says_what_waits(
    bucket: Bucket,
) -> None:
    create_projects("proj_1", "proj_1_x")
    bucket.put(HIERARCHICAL_KEY, "proj_1_x_s1_media.mp4")
    found = run_until_idle(requests.request_cleanup_verification(clean_up_project("proj_1")))
    assert found.status == Status.CLEAN_WITH_KEPT
    assert found.message == "0 leftover, 1 confirmed gone."
    assert read_outcomes(found) == {
        HIERARCHICAL_KEY: "already_gone",
        "proj_1_x_s1_media.mp4": "kept",
    }


def test_verification_sees_a_key_outside_every_prefix_at_its_own_place(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put("odd/key")
    track_key(bucket, "odd/key", "proj_1")
    cleanup = clean_up_project("proj_1")
    assert (
        run_until_idle(requests.request_cleanup_verification(cleanup)).message
        == "0 leftover, 1 confirmed gone."
    )
    bucket.put("odd/key")
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert read_outcomes(found) == {"odd/key": "failed"}


@pytest.mark.parametrize("key", [FLAT_KEY, "odd/key"])
def test_key_that_another_project_took_since_is_not_of_the_verified_cleanup(
    bucket: Bucket, key: str
) -> None:
    create_projects("proj_1", "proj_2")
    bucket.put(HIERARCHICAL_KEY, key)
    track_key(bucket, key, "proj_1")
    cleanup = clean_up_project("proj_1")
    bucket.put(key)
    track_key(bucket, key, "proj_2")
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert read_outcomes(found) == {HIERARCHICAL_KEY: "already_gone"}


@pytest.mark.parametrize("name", ["old.mp3", "a\0b.mp3"])
def test_verification_lists_files_whose_key_format_was_retired_since(
    bucket: Bucket, settings: Settings, name: str
) -> None:
    create_projects("proj_1")
    key = f"audio/proj_1/s1/{name}"
    bucket.put(key)
    cleanup = clean_up_project("proj_1")
    bucket.r2.remove(key, bucket.name)
    if cleanup.status != Status.CLEAN:
        cleanup = run_again(cleanup)
    assert set(read_outcomes(cleanup).values()) <= {"deleted", "already_gone"}
    bucket.put(key)
    kinds = ("captions", "images", "thumbnails", "video")
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"MEDIA_KINDS": kinds}
    found = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert found.status == Status.DIFFERS
    assert read_outcomes(found) == {escape_key(key): "failed"}


def test_verification_by_a_worker_that_lost_its_lease_takes_nothing_over(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    cleanup = requests.request_cleanup_verification(clean_up_project("proj_1"))

    def sleep(cleanup: Cleanup) -> str:
        Cleanup.objects.filter(pk=cleanup.pk).update(lease_until=timezone.now())
        return ""

    monkeypatch.setattr(limits, "missing_share_reason", sleep)
    assert runner.run_turn(cleanup.pk) is None
    assert not cleanup.items.exists()


def test_verification_of_deleted_objects_of_several_projects(bucket: Bucket) -> None:
    keys = [bucket.upload("proj_1"), bucket.upload("proj_2")]
    kept = bucket.upload("proj_2", "kept.mp4")
    R2Object.objects.filter(key__in=keys).delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert cleanup.project_id is None
    check_again = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert check_again.status == Status.CLEAN
    assert check_again.message == "0 leftover, 2 confirmed gone."
    again = run_until_idle(requests.request_cleanup_verification(check_again))
    assert again.message == "0 leftover, 2 confirmed gone."
    bucket.put(keys[0], body=b"another object")
    other = run_until_idle(requests.request_cleanup_verification(cleanup))
    assert read_outcomes(other) == {keys[0]: "kept", keys[1]: "already_gone"}
    bucket.put(keys[0], body=b"take")
    assert (
        run_until_idle(requests.request_cleanup_verification(cleanup)).message
        == "1 leftover, 1 confirmed gone."
    )
    assert bucket.keys() == {keys[0], kept}


def test_verification_of_deleted_objects_checks_twice_before_it_calls_one_missing(
    bucket: Bucket, store: FaultyStore
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.get().delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    bucket.put(key, body=b"take")

    def without(page: str) -> str:
        return with_entries(page, [])

    store.rules.append(rule_for(is_listing_at(key), change_reply(without), times=1))
    assert (
        run_until_idle(requests.request_cleanup_verification(cleanup)).message
        == "1 leftover, 0 confirmed gone."
    )


def test_verification_is_never_turned_into_a_deletion(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    cleanup = verify_project("proj_1")
    for turn in (requests.approve_or_retry, Cleanup.retry):
        with pytest.raises(IllegalTransition):
            turn(cleanup)
    Cleanup.objects.filter(pk=cleanup.pk).update(next_attempt_at=timezone.now())
    assert runner.run_turn(cleanup.pk) is None
    # As after a listing that failed, which a person may have tried again at once.
    Cleanup.objects.filter(pk=cleanup.pk).update(status="retrying")
    cleanup.refresh_from_db()
    cleanup.retry()
    assert run_again(cleanup).status == Status.DIFFERS
    assert bucket.keys() == {HIERARCHICAL_KEY}
    check_promises(bucket)


# Dry runs

KEYS = [f"projects/proj_1/scenes/s1/media/{n}.mp4" for n in range(4)]


def test_dry_run_freezes_a_plan_and_deletes_nothing(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_1_x")
    bucket.put(*KEYS, "proj_1_x_s1_media.mp4")
    track_key(bucket, KEYS[0], "proj_1")
    preview = dry_run("proj_1")
    assert preview.status == Status.PLANNED
    assert len(preview.plan_digest) == 64
    assert preview.listed_prefixes
    assert preview.next_attempt_at is None
    assert preview.items.planned().count() == len(KEYS)
    assert read_reason(preview, "proj_1_x_s1_media.mp4")
    assert len(bucket.keys()) == 5
    assert R2Object.objects.get().state == "stored"
    assert not preview.children.exists()


def test_plan_that_the_timeline_cannot_tell_of_is_not_frozen(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("proj_1")
    [cleanup] = requests.request_preview("proj_1")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(plan_summary, "record_plan", lambda cleanup: 1 / 0)
        run_until_idle(cleanup)
    cleanup = run_again(cleanup)
    assert cleanup.events.filter(message__startswith="Found 1 files").count() == 1
    assert cleanup.status == Status.PLANNED


def test_digest_tells_plans_apart(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    one, same = dry_run("proj_1"), dry_run("proj_1")
    assert one.plan_digest == same.plan_digest
    bucket.put(KEYS[0])
    assert dry_run("proj_1").plan_digest != one.plan_digest


def test_running_a_plan_deletes_a_subset_and_says_why_the_rest_stays(bucket: Bucket) -> None:
    record_deleted_projects("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    digest, planned = preview.plan_digest, set(read_outcomes(preview))
    late = "projects/proj_1/scenes/s1/media/late.mp4"
    bucket.put(late, KEYS[0])
    bucket.put(KEYS[1], body=b"other content")
    bucket.r2.remove(KEYS[2])
    requests.approve_or_retry(preview)
    cleanup = run_until_idle(preview)
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert read_outcomes(cleanup) == {
        KEYS[0]: "kept",
        KEYS[1]: "kept",
        KEYS[2]: "already_gone",
        KEYS[3]: "deleted",
        late: "kept",
    }
    assert "overwritten" in read_reason(cleanup, KEYS[0])
    assert "overwritten" in read_reason(cleanup, KEYS[1])
    assert "appeared" in read_reason(cleanup, late)
    assert bucket.keys() == {late, KEYS[0], KEYS[1]}
    assert cleanup.plan_digest == digest
    assert {k for k, o in read_outcomes(cleanup).items() if o == "deleted"} <= planned
    check_promises(bucket)


def test_plan_of_a_live_project_is_refused(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    with pytest.raises(ProjectExists):
        requests.approve_or_retry(preview)
    preview.run_plan("me")
    assert run_until_idle(preview).status == Status.SUPERSEDED
    assert bucket.keys() == set(KEYS)
    check_promises(bucket)


def test_plan_whose_project_is_created_while_it_runs_deletes_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_deleted_projects("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    preview.run_plan("me")
    act_before_batch(monkeypatch, lambda: create_projects("proj_1"))
    assert run_until_idle(preview).status == Status.SUPERSEDED
    assert bucket.keys() == set(KEYS)


def test_dry_run_larger_than_the_limit_says_so(bucket: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "LIMIT_OBJECTS": 3}
    create_projects("proj_1")
    bucket.put(*KEYS)
    preview = dry_run("proj_1")
    assert preview.status == Status.PLANNED
    assert "4 files" in preview.message


# Files left behind before this was installed


def test_declared_project_is_cleaned_up(bucket: Bucket) -> None:
    bucket.put(*KEYS, "proj_10_s1_media.mp4")
    (cleanup,) = requests.declare_deleted("proj_1")
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert bucket.keys() == {"proj_10_s1_media.mp4"}
    assert KnownProject.objects.get(pk="proj_1").evidence == "declared"
    check_promises(bucket)


def test_only_project_ids_that_are_not_alive_can_be_declared_deleted(bucket: Bucket) -> None:
    create_projects("proj_1")
    with pytest.raises(ProjectExists):
        requests.declare_deleted("proj_1")
    for wrong in ("proj", "proj_", "proj_proj_1", "", "projects", "proj_1/"):
        with pytest.raises(ValidationError):
            requests.declare_deleted(wrong)
    assert not Cleanup.objects.exists()
    assert Project.objects.count() == 1
