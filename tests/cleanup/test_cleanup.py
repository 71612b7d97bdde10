"""A deletion from the row to the proof, on a real bucket."""

from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.utils import timezone
from django_q.models import OrmQ
from pytest_django.fixtures import Settings

from storage_audit.bucket.listing import escape_key
from storage_audit.cleanup import runner
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import Project, R2Object
from tests.promises import (
    FLAT_KEY,
    Status,
    act_before_batch,
    act_before_verification,
    assign_object,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    read_reason,
    request_cleanup,
    run_again,
    run_follow_up,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket, put_files

pytestmark = pytest.mark.database

HISTORICAL = [
    "projects/proj_1/scenes/s1/media/old.mp4",
    "projects/proj_proj_1/scenes/s1/media/old.mp4",
    "audio/proj_1/s1/voice.mp3",
    "audio/proj_proj_1/s1/voice.mp3",
    "proj_1_s1_media.mp4",
    "proj_proj_1_s1_media.mp4",
]
OTHERS = [
    "projects/proj_10/scenes/s1/media/old.mp4",
    "proj_10_s1_media.mp4",
    "proj_proj_10_s1_media.mp4",
    "audio/proj_10/s1/voice.mp3",
    "projects/proj_1_x/scenes/s1/media/old.mp4",
    "audio/proj_1_x/s1/voice.mp3",
]


def test_every_historical_format_of_a_deleted_project_leaves_the_bucket(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    bucket.put(*HISTORICAL)
    cleanup = clean_up_project("proj_1")
    assert bucket.keys() == set()
    assert cleanup.status == Cleanup.Status.CLEAN
    assert (cleanup.found, cleanup.deleted) == (6, 6)


def test_files_of_look_alike_projects_stay_byte_for_byte(bucket: Bucket) -> None:
    for project_id in ("proj_1", "proj_10", "proj_1_x"):
        bucket.upload(project_id)
    bucket.put(*HISTORICAL, *OTHERS)
    before = {k: v for k, v in bucket.facts().items() if "proj_10" in k or "proj_1_x" in k}
    clean_up_project("proj_1")
    after = bucket.facts()
    assert {k: after.get(k) for k in before} == before
    assert not set(HISTORICAL) & set(after)


def test_rolled_back_deletion_leaves_no_cleanup_no_task_and_every_object(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    with pytest.raises(RuntimeError), transaction.atomic():
        Project.objects.get(pk="proj_1").delete()
        assert Cleanup.objects.count() == 1
        raise RuntimeError
    assert not Cleanup.objects.exists()
    assert not OrmQ.objects.exists()
    assert bucket.keys() == {key}


def test_tracking_rows_go_with_their_objects_and_not_before(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    Project.objects.get(pk="proj_1").delete()
    assert R2Object.objects.count() == 1
    runner.run_to_end(Cleanup.objects.latest("created_at").pk)
    assert not R2Object.objects.exists()


def test_row_that_a_backfill_writes_after_the_plan_goes_with_its_file(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(FLAT_KEY)
    act_before_batch(monkeypatch, lambda: track_key(bucket, FLAT_KEY, "proj_1", "backfill"))
    assert read_outcomes(clean_up_project("proj_1")) == {FLAT_KEY: "deleted"}
    assert not R2Object.objects.exists()


# The safety limit


def limited(settings: Settings, objects: int, share: float = 0.05) -> None:
    settings.STORAGE_AUDIT = {
        **settings.STORAGE_AUDIT,
        "LIMIT_OBJECTS": objects,
        "LIMIT_SHARE": share,
    }


def test_more_objects_than_the_limit_are_blocked_until_a_person_approves_them(
    bucket: Bucket, settings: Settings
) -> None:
    limited(settings, 3)
    create_projects("proj_1")
    keys = put_files(bucket, 4)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    assert cleanup.next_attempt_at is None
    assert "4 files" in cleanup.message and "The safety limit is 3 files" in cleanup.message
    assert bucket.keys() == set(keys)
    cleanup.approve("me")
    assert run_until_idle(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_as_many_objects_as_the_limit_are_not_blocked(bucket: Bucket, settings: Settings) -> None:
    limited(settings, 3)
    create_projects("proj_1")
    put_files(bucket, 3)
    for n in range(5):
        track_key(bucket, f"projects/proj_1/scenes/s1/media/gone{n}", "proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert (cleanup.deleted, cleanup.already_gone) == (3, 5)


@pytest.mark.parametrize("share, status", [(0.5, Status.BLOCKED), (0.6, Status.CLEAN)])
def test_share_of_the_tracked_objects_is_a_limit_too(
    bucket: Bucket, settings: Settings, share: float, status: str
) -> None:
    limited(settings, 1, share)
    create_projects("proj_1")
    for key in put_files(bucket, 3):
        track_key(bucket, key, "proj_1")
    track_key(bucket, "projects/proj_2/scenes/s1/media/a", "proj_2")
    track_key(bucket, "projects/proj_2/scenes/s1/media/b", "proj_2")
    assert clean_up_project("proj_1").status == status


def test_limit_holds_for_deleted_rows_too(bucket: Bucket, settings: Settings) -> None:
    limited(settings, 1)
    keys = {bucket.upload("proj_1", f"{n}.mp4") for n in range(2)}
    R2Object.objects.all().delete()
    assert run_until_idle(Cleanup.objects.get()).status == Status.BLOCKED
    assert bucket.keys() == keys


def test_a_thousand_and_one_objects_are_blocked_and_then_go_in_three_batches(
    bucket: Bucket, settings: Settings
) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, 1001)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    assert "1001 files" in cleanup.message and "The safety limit is 1000 files" in cleanup.message
    assert bucket.keys() == set(keys)
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, 1001)
    assert not bucket.keys()
    assert cleanup.events.filter(message__startswith="Sent a batch of").count() == 3
    check_promises(bucket)


# What changes between the plan and the deletion


def test_project_created_again_before_the_worker_comes_keeps_everything(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    bucket.put(*HISTORICAL)
    cleanup = request_cleanup("proj_1")
    Project.objects.create(pk="proj_1")
    assert run_until_idle(cleanup).status == Status.SUPERSEDED
    assert bucket.keys() == {key, *HISTORICAL}
    assert R2Object.objects.get(key=key).state == "stored"
    check_promises(bucket)


def test_project_created_again_after_the_plan_keeps_everything_and_its_rows_unlocked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1")
    bucket.put(*HISTORICAL)
    act_before_batch(monkeypatch, lambda: Project.objects.create(pk="proj_1"))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.SUPERSEDED
    assert bucket.keys() == {key, *HISTORICAL}
    assert set(read_outcomes(cleanup).values()) == {"kept"}
    assert R2Object.objects.get(key=key).state == "stored"
    bucket.upload("proj_1", "new.mp4")
    check_promises(bucket)


@pytest.mark.parametrize("body", [b"other content", b"content"], ids=["other", "equal"])
def test_object_overwritten_after_the_plan_stays_with_a_reason(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    create_projects("proj_1")
    bucket.put(*HISTORICAL)
    key = HISTORICAL[0]
    etag = bucket.facts()[key]
    act_before_batch(monkeypatch, lambda: bucket.put(key, body=body))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert bucket.keys() == {key}
    assert (bucket.facts()[key] == etag) == (body == b"content")
    assert "overwritten" in read_reason(cleanup, key)
    check_promises(bucket)
    assert run_follow_up(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    check_promises(bucket)


def test_upload_under_way_keeps_its_object(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.update(state="uploading")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert "in progress" in read_reason(cleanup, key)
    assert bucket.keys() == {key}
    assert R2Object.objects.get().state == "uploading"
    R2Object.objects.update(state="stored")
    assert run_follow_up(cleanup).status == Status.CLEAN
    assert not bucket.keys()
    assert not R2Object.objects.exists()
    check_promises(bucket)


def test_upload_that_never_ended_does_not_keep_its_object_for_ever(bucket: Bucket) -> None:
    bucket.upload("proj_1")
    R2Object.objects.update(state="uploading", updated_at=timezone.now() - timedelta(days=2))
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert not bucket.keys()
    assert not R2Object.objects.exists()


def test_object_that_appears_after_the_plan_stays_with_a_reason(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*HISTORICAL)
    new = "audio/proj_1/s1/late.mp3"
    act_before_batch(monkeypatch, lambda: bucket.put(new))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert cleanup.found == len(HISTORICAL) + 1
    assert "appeared" in read_reason(cleanup, new)
    assert bucket.keys() == {new}
    check_promises(bucket)


def test_follow_up_deletes_what_appeared_after_the_end(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*HISTORICAL)
    new = "audio/proj_1/s1/late.mp3"
    act_before_verification(monkeypatch, lambda: bucket.put(new))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert bucket.keys() == {new}
    found = run_follow_up(cleanup)
    assert (found.status, read_outcomes(found)) == (Status.CLEAN, {new: "deleted"})
    assert not bucket.keys()
    assert cleanup.children.count() == 3
    assert not found.children.exists()
    check_promises(bucket)


def test_missing_object_that_comes_back_before_its_batch_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    key = HISTORICAL[0]
    track_key(bucket, key, "proj_1")
    act_before_batch(monkeypatch, lambda: bucket.put(key))
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept"}
    assert bucket.keys() == {key}
    assert R2Object.objects.get().state == "stored"
    check_promises(bucket)


def test_object_that_somebody_else_deletes_first_is_not_called_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(*HISTORICAL)
    act_before_batch(monkeypatch, lambda: bucket.r2.remove(HISTORICAL[0]))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert (cleanup.deleted, cleanup.already_gone) == (len(HISTORICAL) - 1, 1)
    assert read_outcomes(cleanup)[HISTORICAL[0]] == "already_gone"
    check_promises(bucket)


# Strange keys

UNDER = "projects/proj_1/scenes/s1/media/"
DELETABLE = [
    "a//b",
    "//",
    "trailing/",
    "/leading",
    ".",
    "..",
    "../../../../../other",
    "a/../b",
    "a/./b",
    "\x01",
    "tab\tand\x7f",
    "\x1f/x",
    "caf\u00e9",
    "cafe\u0301",
    "%2F",
    "%",
    "a+b",
    " lead and trail ",
    "trail\u3000",
    "\ufefflead and trail\ufeff",
    "🎬",
    "<script>alert(1)</script>",
    "&amp;&#10;",
    "]]>",
    "'\"",
    "back\\slash",
    "?x=1#y",
    "\ufffe",
    "\ue000\uffff",
    "inner\u2028\u0085x",
    "=1+1",
    "x" * (1024 - len(UNDER)),
    "é" * ((1024 - len(UNDER)) // 2),
]
UNDELETABLE = ["dot/../control\x01", "dot/../space "]
NAMELESS = ["nul\0", "\0\\x00", "\\x00\0"]
# No S3 call deletes these from Cloudflare's local R2.
STUBBORN = ["new\nline", "line separator\u2028"]


def test_key_that_nobody_can_name_and_that_is_back_is_not_called_gone(bucket: Bucket) -> None:
    create_projects("proj_1")
    back, other = UNDER + NAMELESS[0], UNDER + NAMELESS[1]
    bucket.put(back, other)
    cleanup = clean_up_project("proj_1")
    bucket.r2.remove(back)
    cleanup = run_again(cleanup)
    assert read_outcomes(cleanup) == {escape_key(back): "already_gone", escape_key(other): "failed"}
    bucket.put(back)
    cleanup = run_again(cleanup)
    assert read_outcomes(cleanup) == {escape_key(back): "failed", escape_key(other): "failed"}
    assert "was gone, and is back" in read_reason(cleanup, escape_key(back))
    assert bucket.keys() == {back, other}


def test_strange_keys_end_each_with_an_exact_outcome_and_stop_no_other(bucket: Bucket) -> None:
    create_projects("proj_1")
    for key in (*DELETABLE, *UNDELETABLE, *NAMELESS, *STUBBORN):
        bucket.put(UNDER + key)
    bucket.put("other", UNDER.replace("proj_1", "proj_10") + "\x01")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    assert read_outcomes(cleanup) == {
        **{UNDER + key: "deleted" for key in DELETABLE},
        **{UNDER + key: "failed" for key in (*UNDELETABLE, *STUBBORN)},
        **{escape_key(UNDER + key): "failed" for key in NAMELESS},
    }
    for key in UNDELETABLE:
        assert "S3 can't delete this name" in read_reason(cleanup, UNDER + key)
    for key in STUBBORN:
        assert "Still in the bucket" in read_reason(cleanup, UNDER + key)
    assert cleanup.items.filter(escaped=True).count() == len(NAMELESS)
    assert all(cleanup.items.filter(outcome="failed").values_list("reason", flat=True))
    left = {UNDER + key for key in (*UNDELETABLE, *NAMELESS, *STUBBORN)}
    assert bucket.keys() == {"other", "projects/proj_10/scenes/s1/media/\x01", *left}
    check_promises(bucket)
    for key in left:
        bucket.r2.remove(key)
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    check_promises(bucket)


def test_key_with_spaces_at_its_ends_takes_no_other_key_with_it(bucket: Bucket) -> None:
    """Told to delete "a " and others in one call, local R2 deletes "a"."""
    create_projects("proj_1", "proj_2")
    trimmed = "projects/proj_2/scenes/s1/media/a.mp4"
    for space in (" ", "\u00a0", "\u3000", "\ufeff", "\t"):
        for key in (f"{space}{trimmed}", f"{trimmed}{space}"):
            bucket.put(key)
            assign_object(bucket, key, "proj_1")
    bucket.put(trimmed)
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert bucket.keys() == {trimmed}
    check_promises(bucket)


def test_strange_keys_with_rows_are_deleted_and_forgotten(bucket: Bucket) -> None:
    create_projects("proj_1")
    for key in DELETABLE:
        bucket.put(key)
        track_key(bucket, key, "proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN
    assert read_outcomes(cleanup) == dict.fromkeys(DELETABLE, "deleted")
    assert not bucket.keys()
    assert not R2Object.objects.exists()
    check_promises(bucket)


# Deleted rows: delete these very objects


def delete_rows(**which: str) -> Cleanup:
    R2Object.objects.filter(**which).delete()
    return run_until_idle(Cleanup.objects.latest("created_at"))


def test_deleting_rows_deletes_those_objects_of_a_live_project_and_no_others(
    bucket: Bucket,
) -> None:
    one, other = bucket.upload("proj_1", "1.mp4"), bucket.upload("proj_1", "2.mp4")
    bucket.put(*HISTORICAL)
    cleanup = delete_rows(key=one)
    assert (cleanup.status, read_outcomes(cleanup)) == (Status.CLEAN, {one: "deleted"})
    assert bucket.keys() == {other, *HISTORICAL}
    assert R2Object.objects.get().key == other
    check_promises(bucket)


def test_object_overwritten_since_its_row_was_written_stays(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    bucket.put(key, body=b"other")
    cleanup = delete_rows(key=key)
    assert (cleanup.status, read_outcomes(cleanup)) == (
        Status.CLEAN_WITH_KEPT,
        {key: "kept"},
    )
    assert "overwritten" in read_reason(cleanup, key)
    assert bucket.keys() == {key}
    check_promises(bucket)


def test_same_content_written_again_since_its_row_was_written_stays(bucket: Bucket) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.update(last_modified=timezone.now() - timedelta(hours=1))
    cleanup = delete_rows(key=key)
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "uploaded again" in read_reason(cleanup, key)
    assert bucket.keys() == {key}


@pytest.mark.parametrize(("minutes", "outcome"), [(0, "kept"), (59, "kept"), (62, "deleted")])
def test_file_of_a_deleted_row_without_facts_goes_only_if_written_long_before(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, minutes: int, outcome: str
) -> None:
    """The clock that wrote when the row was deleted may be ahead of the store's."""
    create_projects("proj_1")
    track_key(bucket, FLAT_KEY, "proj_1", state="upload_failed").delete()
    bucket.put(FLAT_KEY)
    deleted_at = timezone.now() + timedelta(minutes=minutes)
    Cleanup.objects.update(created_at=deleted_at)
    monkeypatch.setattr(timezone, "now", lambda: deleted_at)
    cleanup = run_until_idle(Cleanup.objects.get())
    assert read_outcomes(cleanup) == {FLAT_KEY: outcome}
    assert ("We don't know when" in read_reason(cleanup, FLAT_KEY)) is (outcome == "kept")
    assert bucket.keys() == ({FLAT_KEY} if outcome == "kept" else set())


@pytest.mark.parametrize("moment", ["before the plan", "after the plan"])
def test_object_that_a_row_names_again_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.all().delete()
    cleanup = Cleanup.objects.get()

    def name_again() -> None:
        track_key(bucket, key, "proj_2")

    if moment == "before the plan":
        name_again()
    else:
        act_before_batch(monkeypatch, name_again)
    run_until_idle(cleanup)
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "A new record names this file" in read_reason(cleanup, key)
    assert bucket.keys() == {key}
    assert R2Object.objects.get().state == "stored"
    check_promises(bucket)


def test_rows_whose_objects_are_gone_are_already_gone(bucket: Bucket) -> None:
    keys = [bucket.upload("proj_1", "1.mp4"), bucket.upload("proj_1", "2.mp4")]
    bucket.r2.remove(keys[0])
    cleanup = delete_rows()
    assert read_outcomes(cleanup) == {keys[0]: "already_gone", keys[1]: "deleted"}
    assert not bucket.keys()
    check_promises(bucket)


def test_upload_to_a_key_that_is_being_deleted_is_refused_or_renamed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bucket.upload("proj_1", body=b"first")
    create_projects("proj_2")
    saved: list[str] = []
    act_before_batch(
        monkeypatch, lambda: saved.append(default_storage.save(key, ContentFile(b"second")))
    )
    cleanup = delete_rows(key=key)
    assert saved and saved[0] != key
    assert read_outcomes(cleanup) == {key: "deleted"}
    assert bucket.keys() == {saved[0]}
    check_promises(bucket)
