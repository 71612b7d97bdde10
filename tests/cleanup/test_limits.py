"""What is too much to be believed, or to be done unasked, waits for a person, who sees why."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit import tasks
from storage_audit.bucket.errors import Unavailable
from storage_audit.cleanup import limits, requests, runner, vanished_projects
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.models.lease_and_status import IllegalTransition
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.findings.models import Finding
from storage_audit.models import DatabaseIdentity, KnownProject, Project, R2Object
from storage_audit.ownership import bucket_connection, bucket_marker
from storage_audit.ownership.bucket_marker import MARKER_KEY, MARKER_PREFIX, CannotConclude
from storage_audit.scan.models import BucketScan
from storage_audit.scan.scan_limits import expected_objects
from storage_audit.scan.start import start_scan
from storage_audit.scan.worker import work_on_scan
from tests.admin_client import admin_url, confirm_action, page_text, run_action, superuser_client
from tests.database import copy_database
from tests.faults.kinds import change_reply, confirm_without_deleting
from tests.faults.matching import (
    is_anything,
    is_delete_batch,
    is_listing,
    is_listing_under,
    rule_for,
)
from tests.faults.pages import with_entries
from tests.faults.proxy import FaultyStore, Request
from tests.promises import (
    FLAT_KEY,
    HIERARCHICAL_KEY,
    Status,
    act_before_batch,
    check_promises,
    clean_up_project,
    create_projects,
    read_outcomes,
    request_cleanup,
    run_again,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket, put_files
from tests.run_command import run_command

Kind = Cleanup.Kind
MANY = limits.TOLERATED_MISSING_OBJECTS + 5


def limited(settings: Settings, **limits: float) -> None:
    changes = {f"LIMIT_{name.upper()}": value for name, value in limits.items()}
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, **changes}


def media(count: int) -> list[str]:
    return [f"projects/proj_1/scenes/s1/media/{n:04}.mp4" for n in range(count)]


def lost(bucket: Bucket, count: int, **values: Any) -> None:
    """Rows of proj_1 whose objects were seen stored once, and are not there."""
    for key in media(count):
        track_key(bucket, key, "proj_1", **{"etag": "e", "size": 1, **values})


def nothing_concluded(bucket: Bucket, cleanup: Cleanup) -> None:
    assert not {"deleted", "already_gone"} & set(read_outcomes(cleanup).values())
    check_promises(bucket)


# Too large: the largest of three figures


def ended(deleted: int, days: int = 0, **values: Any) -> None:
    facts = {"kind": "project", "bucket": "tests", "trigger": "deleted", "status": "clean"}
    figures = {"found": deleted, "deleted": deleted}
    at = timezone.now() - timedelta(days=days)
    Cleanup.objects.create(**{**facts, **figures, "finished_at": at, **values})


@pytest.mark.parametrize(
    ("before", "objects", "status"),
    [
        ([2] * 5, 4, Status.CLEAN),
        ([2] * 5, 5, Status.BLOCKED),
        ([2] * 4, 2, Status.BLOCKED),
        ([1, 2, 2, 99, 99], 5, Status.BLOCKED),
        ([99] * 21 + [2] * 20, 5, Status.BLOCKED),
    ],
    ids=["as usual", "more", "too few to be usual", "a median, no mean", "the latest only"],
)
def test_a_multiple_of_what_cleanups_usually_delete_is_a_limit_too(
    bucket: Bucket, settings: Settings, before: list[int], objects: int, status: str
) -> None:
    limited(settings, objects=1, multiple=2)
    for days, deleted in enumerate(reversed(before)):
        ended(deleted, days)
    create_projects("proj_1")
    put_files(bucket, objects)
    assert clean_up_project("proj_1").status == status


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "objects"},
        {"bucket": "other"},
        {"status": "retrying"},
        {"status": "superseded"},
        {"trigger": "benchmark"},
        {"days": -365},
    ],
    ids=lambda values: str(next(iter(values.values()))),
)
def test_only_what_was_done_there_is_usual(
    bucket: Bucket, settings: Settings, values: dict[str, Any]
) -> None:
    limited(settings, objects=1, multiple=2)
    for _each in range(5):
        ended(2, **values)
    create_projects("proj_1")
    put_files(bucket, 2)
    assert clean_up_project("proj_1").status == Status.BLOCKED


def test_blocked_message_tells_the_figures_and_the_rule(bucket: Bucket, settings: Settings) -> None:
    limited(settings, objects=1, share=0.5, multiple=0.5)
    for _each in range(5):
        ended(5)
    create_projects("proj_1")
    for key in put_files(bucket, 3):
        track_key(bucket, key, "proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.message == "This would delete 3 files (21 bytes). The safety limit is 2 files."
    assert cleanup.events.get(step="blocked").data["limit"] == [
        "1 file",
        "50 % of 3 tracked files",
        "0.5 times 5 files, the usual size of a cleanup",
    ]


# Too much is missing


def test_plan_that_misses_too_much_is_blocked_until_approved(
    bucket: Bucket,
) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    assert f"{MANY} of {MANY} tracked files are missing from the bucket" in cleanup.message
    assert "50 %" in cleanup.message
    nothing_concluded(bucket, cleanup)
    assert R2Object.objects.count() == MANY
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.already_gone) == (Status.CLEAN, MANY)
    assert not R2Object.objects.exists()


def test_a_few_missing_files_are_called_already_gone(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, limits.TOLERATED_MISSING_OBJECTS)
    assert clean_up_project("proj_1").status == Status.CLEAN


def test_a_small_share_of_missing_files_is_called_already_gone(
    bucket: Bucket, settings: Settings
) -> None:
    limited(settings, missing=0.8)
    create_projects("proj_1")
    lost(bucket, MANY)
    bucket.put(*media(5))
    assert clean_up_project("proj_1").status == Status.CLEAN


def test_uploads_that_never_ended_are_not_missed(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY, etag="", state="upload_failed")
    assert clean_up_project("proj_1").status == Status.CLEAN


def test_what_another_cleanup_sent_for_deletion_is_not_missed(bucket: Bucket) -> None:
    """The first cleanup stopped before it could forget the rows."""
    create_projects("proj_1")
    now = timezone.now()
    lost(bucket, MANY, last_modified=now - timedelta(days=1))
    cleanup = request_cleanup("proj_1")
    sent_before(bucket, MANY, now)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_what_an_earlier_attempt_sent_is_not_missed(bucket: Bucket, store: FaultyStore) -> None:
    """The store obeys only after the cleanup has given up."""
    create_projects("proj_1")
    bucket.put(*media(MANY))
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))
    cleanup = clean_up_project("proj_1")
    assert set(read_outcomes(cleanup).values()) == {"failed"}
    for key in media(MANY):
        bucket.r2.remove(key)
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.CLEAN
    assert set(read_outcomes(cleanup).values()) == {"deleted"}


def test_what_was_sent_in_an_earlier_life_of_the_project_is_missed(bucket: Bucket) -> None:
    create_projects("proj_1")
    now = timezone.now()
    lost(bucket, MANY, last_modified=now - timedelta(days=1))
    cleanup = request_cleanup("proj_1")
    sent_before(bucket, MANY, now - timedelta(days=2))
    assert run_until_idle(cleanup).status == Status.BLOCKED


def test_what_another_cleanup_kept_in_the_end_is_missed(bucket: Bucket) -> None:
    """What it had sent before was another object."""
    create_projects("proj_1")
    now = timezone.now()
    lost(bucket, MANY, last_modified=now - timedelta(days=1))
    cleanup = request_cleanup("proj_1")
    sent_before(bucket, MANY, now, outcome="kept")
    assert run_until_idle(cleanup).status == Status.BLOCKED


def test_file_that_a_preview_planned_is_missed(bucket: Bucket) -> None:
    create_projects("proj_1")
    now = timezone.now()
    lost(bucket, MANY, last_modified=now - timedelta(days=1))
    cleanup = request_cleanup("proj_1")
    sent_before(bucket, MANY, now, calls=0)
    preview = {"status": "planned", "dry_run": True}
    Cleanup.objects.exclude(pk=cleanup.pk).update(**preview)
    assert run_until_idle(cleanup).status == Status.BLOCKED


def test_untracked_files_do_not_hide_that_tracked_files_are_missing(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    for n in range(MANY):
        bucket.put(f"projects/proj_1/scenes/s1/media/untracked{n}.mp4")
    assert clean_up_project("proj_1").status == Status.BLOCKED


def sent_before(
    bucket: Bucket, count: int, at: datetime, outcome: str = "to_delete", calls: int = 1
) -> None:
    """By another cleanup of proj_1."""
    other = Cleanup.objects.request(
        kind="project", project_id="proj_1", bucket=bucket.name, trigger="deleted", status="failed"
    )
    facts = {"found_in": "both", "calls": calls, "changed_at": at, "outcome": outcome}
    CleanupItem.objects.bulk_create(
        CleanupItem(cleanup=other, key=key, identity=key, **facts) for key in media(count)
    )


def test_dry_run_says_that_too_much_is_missing(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    (cleanup,) = requests.request_preview("proj_1")
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.PLANNED
    assert "are missing from the bucket" in cleanup.message


def test_verification_that_misses_too_much_calls_nothing_missing(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    (cleanup,) = requests.request_verification("proj_1")
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.BLOCKED
    assert "are missing from the bucket" in cleanup.message
    # A person sees which they are; nothing says that they would be deleted.
    assert set(read_outcomes(cleanup).values()) == {"to_delete"}
    shown = page_text(superuser_client().get(admin_url("cleanup", "change", cleanup.pk)))
    assert media(MANY)[0] in shown and "to be compared" in shown
    assert "to be deleted" not in shown
    with pytest.raises(IllegalTransition, match="Verify again"):
        requests.approve_or_retry(cleanup)


def test_verification_that_is_tried_again_concludes_from_a_new_listing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one for which somebody lifted the limits."""
    create_projects("proj_1")
    track_key(bucket, HIERARCHICAL_KEY, "proj_1")
    (cleanup,) = requests.request_verification("proj_1")
    Cleanup.objects.update(limits_waived_by="anna")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "finish_verification", unavailable)
        cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.RETRYING and cleanup.planned_at
    bucket.put(HIERARCHICAL_KEY)
    assert run_again(cleanup).message == "1 as expected, 0 missing, 0 untracked."


def unavailable(work: Turn) -> None:
    raise Unavailable("down")


def test_verification_of_a_deletion_does_not_miss_what_was_deleted(bucket: Bucket) -> None:
    for n in range(MANY):
        bucket.upload("proj_1", f"{n}.mp4")
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.deleted) == (Status.CLEAN, MANY)
    assert run_until_idle(requests.request_cleanup_verification(cleanup)).status == Status.CLEAN


def test_verification_of_deleted_rows_does_not_miss_their_objects(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    R2Object.objects.all().delete()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert "are missing from the bucket" in cleanup.message
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.already_gone) == (Status.CLEAN, MANY)
    assert run_until_idle(requests.request_cleanup_verification(cleanup)).status == Status.CLEAN


def test_plan_that_is_gone_before_anything_was_sent_is_not_called_already_gone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    keys = put_files(bucket, MANY)
    for key in keys:
        track_key(bucket, key, "proj_1")

    def remove_all() -> None:
        for key in keys:
            bucket.r2.remove(key, bucket.name)

    act_before_batch(monkeypatch, remove_all)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    assert f"{MANY} of {MANY} planned files" in cleanup.message
    nothing_concluded(bucket, cleanup)
    assert R2Object.objects.count() == MANY
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.already_gone) == (Status.CLEAN, MANY)


# Listings that show nothing at all


nothing_there = change_reply(lambda xml: with_entries(xml, []))


def test_empty_listings_of_everything_plan_nothing(bucket: Bucket, store: FaultyStore) -> None:
    key = bucket.upload("proj_1")
    store.rules.append(rule_for(is_listing, nothing_there))
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.planned_at) == (Status.RETRYING, None)
    assert "does not list the marker" in cleanup.message
    assert R2Object.objects.exists()
    store.rules.clear()
    cleanup = run_again(cleanup)
    assert (cleanup.status, read_outcomes(cleanup)) == (Status.CLEAN, {key: "deleted"})


def test_empty_listing_followed_by_trouble_is_not_gone_on_from(
    bucket: Bucket, store: FaultyStore
) -> None:
    """All is empty, then nothing answers: the next turn must not start behind what was empty."""
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY, FLAT_KEY)
    first = is_listing_under("projects/proj_1/scenes/")

    def is_later(request: Request) -> bool:
        return is_listing(request) and bool(store.find_requests(first))

    def is_marker_s(request: Request) -> bool:
        return is_later(request) and is_listing_under(MARKER_PREFIX)(request)

    store.rules += [rule_for(first, nothing_there), rule_for(is_marker_s, nothing_there)]
    store.rules.append(rule_for(is_later, Reply(500)))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    store.rules.clear()
    cleanup = run_again(cleanup)
    assert read_outcomes(cleanup) == {HIERARCHICAL_KEY: "deleted", FLAT_KEY: "deleted"}


def test_empty_listings_while_verifying_call_nothing_gone(
    bucket: Bucket, store: FaultyStore
) -> None:
    key = bucket.upload("proj_1")
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))

    def is_later(request: Request) -> bool:
        return is_listing(request) and bool(store.find_requests(is_delete_batch))

    store.rules.append(rule_for(is_later, nothing_there))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.RETRYING
    nothing_concluded(bucket, cleanup)
    assert bucket.keys() == {key}
    assert R2Object.objects.exists()


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
def test_empty_listings_call_no_deleted_row_s_object_gone(
    bucket: Bucket, store: FaultyStore, sent: bool
) -> None:
    key = bucket.upload("proj_1")
    R2Object.objects.all().delete()
    store.rules.append(rule_for(is_delete_batch, confirm_without_deleting))

    def is_affected(request: Request) -> bool:
        return is_listing(request) and sent == bool(store.find_requests(is_delete_batch))

    store.rules.append(rule_for(is_affected, nothing_there))
    cleanup = run_until_idle(Cleanup.objects.get())
    nothing_concluded(bucket, cleanup)
    assert bucket.keys() == {key}


def test_scan_whose_listings_are_empty_concludes_nothing(
    bucket: Bucket, store: FaultyStore
) -> None:
    bucket.put("README.txt")
    scanned()
    store.rules.append(rule_for(is_listing, nothing_there))
    found = scanned()
    assert found.status == BucketScan.Status.FAILED
    assert "does not list the marker" in found.message
    assert Finding.objects.get().state == "open"


# The table of projects


def empty_the_table() -> None:
    Project.objects.all()._raw_delete("default")


@pytest.fixture
def waiting(bucket: Bucket) -> Cleanup:
    """The cleanup of a deleted project, beside one that lives."""
    create_projects("proj_1", "proj_2")
    bucket.put(HIERARCHICAL_KEY)
    return request_cleanup("proj_1")


def test_empty_table_of_projects_stops_everything(bucket: Bucket, waiting: Cleanup) -> None:
    empty_the_table()
    cleanup = run_until_idle(waiting)
    assert cleanup.status == Status.BLOCKED
    assert (
        "the table of projects is empty, but the deletion of 1 project was never" in cleanup.message
    )
    assert bucket.keys() == {HIERARCHICAL_KEY}
    Project.objects.bulk_create([Project(pk="proj_2")])
    cleanup.approve("me")
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_table_stays_empty_when_the_sweep_has_noticed_it(bucket: Bucket, waiting: Cleanup) -> None:
    empty_the_table()
    assert vanished_projects.check_vanished_projects() == 1
    cleanup = run_until_idle(waiting)
    assert cleanup.status == Status.BLOCKED
    assert bucket.keys() == {HIERARCHICAL_KEY}
    requests.approve_or_retry(Cleanup.objects.get(project_id="proj_2"))
    requests.approve_or_retry(cleanup)
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_table_emptied_between_plan_and_batch_stops_the_batch(
    bucket: Bucket, waiting: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_before_batch(monkeypatch, empty_the_table)
    cleanup = run_until_idle(waiting)
    assert cleanup.status == Status.BLOCKED
    nothing_concluded(bucket, cleanup)


def test_table_of_projects_that_cannot_be_read_stops_everything(
    bucket: Bucket, waiting: Cleanup
) -> None:
    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("storage_audit_project", "elsewhere")
    try:
        cleanup = run_until_idle(waiting)
    finally:
        rename("elsewhere", "storage_audit_project")
    assert cleanup.status == Status.BLOCKED
    assert "the table of projects can't be read" in cleanup.message
    assert bucket.keys() == {HIERARCHICAL_KEY}


def test_the_last_project_may_be_deleted(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    assert clean_up_project("proj_1").status == Status.CLEAN


# Many projects gone at once


def gone(*ids: str) -> None:
    Project.objects.filter(pk__in=ids)._raw_delete("default")


def known(*ids: str) -> dict[str, bool]:
    """Which of these count as alive."""
    rows = KnownProject.objects.filter(pk__in=ids)
    return {row.pk: row.deleted_at is None for row in rows}


@pytest.fixture
def many(bucket: Bucket, settings: Settings) -> Cleanup:
    """Of five projects three are gone, which is more than the limit."""
    limited(settings, vanished=2)
    for n in range(5):
        bucket.upload(f"proj_{n}")
    gone("proj_0", "proj_1", "proj_2")
    assert vanished_projects.check_vanished_projects() == 3
    return Cleanup.objects.get()


def test_many_gone_at_once_are_one_blocked_cleanup_and_stay_alive(
    bucket: Bucket, many: Cleanup
) -> None:
    assert (many.kind, many.status) == (Kind.VANISHED, Status.BLOCKED)
    assert (
        "3 projects are missing from the database" in many.message
        and "2 are still there" in many.message
    )
    assert "proj_0, proj_1, proj_2." in many.message
    assert many.events.get(step="vanished").data["projects"] == ["proj_0", "proj_1", "proj_2"]
    assert all(known("proj_0", "proj_1", "proj_2").values())
    assert vanished_projects.check_vanished_projects() == 0
    tasks.sweep()
    assert Cleanup.objects.get() == many
    assert len(bucket.keys()) == 5


def test_as_many_as_the_limit_have_a_cleanup_each(bucket: Bucket, settings: Settings) -> None:
    limited(settings, vanished=2)
    create_projects("proj_0", "proj_1", "proj_2")
    gone("proj_0", "proj_1")
    assert vanished_projects.check_vanished_projects() == 2
    kinds = Cleanup.objects.values_list("kind", "project_id").order_by("project_id")
    assert list(kinds) == [("project", "proj_0"), ("project", "proj_1")]


def test_all_of_several_projects_gone_are_many(bucket: Bucket) -> None:
    create_projects("proj_0", "proj_1")
    empty_the_table()
    assert vanished_projects.check_vanished_projects() == 2
    assert Cleanup.objects.get().kind == Kind.VANISHED


def test_later_sweeps_keep_the_list_up_to_date(many: Cleanup) -> None:
    Project.objects.bulk_create([Project(pk="proj_0")])
    gone("proj_3")
    before = many.confirmation_digest
    assert vanished_projects.check_vanished_projects() == 1
    many.refresh_from_db()
    assert "proj_1, proj_2, proj_3." in many.message
    assert many.confirmation_digest != before
    event = many.events.filter(step="vanished").latest("pk")
    assert event.data == {"gone": ["proj_3"], "back": ["proj_0"]}


def test_rows_that_are_back_settle_it(many: Cleanup) -> None:
    Project.objects.bulk_create(Project(pk=f"proj_{n}") for n in range(3))
    assert vanished_projects.check_vanished_projects() == 0
    many.refresh_from_db()
    assert many.status == Status.SUPERSEDED
    assert "are back" in many.message
    gone("proj_0", "proj_1", "proj_2")
    assert vanished_projects.check_vanished_projects() == 3
    assert Cleanup.objects.disappearances().count() == 1


def test_approved_list_becomes_a_cleanup_for_each_project_still_gone(
    bucket: Bucket, many: Cleanup
) -> None:
    Project.objects.bulk_create([Project(pk="proj_0")])
    made = requests.approve_or_retry(many)
    assert [each.project_id for each in made] == ["proj_1", "proj_2"]
    many.refresh_from_db()
    assert many.status == Status.SUPERSEDED
    assert [run_until_idle(each).status for each in made] == [Status.CLEAN] * 2
    left = bucket.keys()
    assert {key.split("/")[1] for key in left} == {"proj_0", "proj_3", "proj_4"}
    assert vanished_projects.check_vanished_projects() == 0


def test_cleanups_that_an_approval_makes_are_held_to_the_limits(
    bucket: Bucket, many: Cleanup, settings: Settings
) -> None:
    limited(settings, objects=0, share=0.01)
    made = requests.approve_or_retry(many)
    assert {run_until_idle(each).status for each in made} == {Status.BLOCKED}
    assert len(bucket.keys()) == 5


def test_list_that_changed_since_is_not_approved(bucket: Bucket, many: Cleanup) -> None:
    gone("proj_3")
    vanished_projects.check_vanished_projects()
    with pytest.raises(IllegalTransition):
        requests.approve_or_retry(many)
    assert Cleanup.objects.count() == 1
    assert all(known("proj_0", "proj_1", "proj_2", "proj_3").values())


def test_approval_waits_for_a_sweep_that_is_under_way(many: Cleanup) -> None:
    refused = list[Exception]()
    gone("proj_3")

    def release() -> None:
        try:
            requests.approve_or_retry(many)
        except IllegalTransition as error:
            refused.append(error)
        connection.close()

    other = Thread(target=release)
    with transaction.atomic():
        vanished_projects.hold_other_sweeps()
        other.start()
        other.join(timeout=1)
        assert vanished_projects.check_vanished_projects() == 1
    other.join()
    assert len(refused) == 1
    many.refresh_from_db()
    assert (many.status, "proj_3." in many.message) == (Status.BLOCKED, True)


def test_two_sweeps_at_once_make_one_cleanup(bucket: Bucket) -> None:
    create_projects("proj_0", "proj_1")
    empty_the_table()

    def sweep() -> None:
        vanished_projects.check_vanished_projects()
        connection.close()

    other = Thread(target=sweep)
    with transaction.atomic():
        assert vanished_projects.check_vanished_projects() == 2
        other.start()
        other.join(timeout=1)
    other.join()
    assert Cleanup.objects.count() == 1


def meanwhile(effect: Callable[[], object], change: Callable[[], object]) -> None:
    """Make the change in a transaction that another one waits for, which then has its effect."""

    def run_effect() -> None:
        effect()
        connection.close()

    other = Thread(target=run_effect)
    with transaction.atomic():
        change()
        other.start()
        other.join(timeout=1)
    other.join()


@pytest.mark.only_on("postgresql")
def test_sweep_leaves_a_deletion_on_record_that_comes_while_it_waits(bucket: Bucket) -> None:
    """The project's row was restored with SQL, and then deleted as usual."""
    bucket.upload("proj_1")
    create_projects("proj_2")
    deleted_at = timezone.now() - timedelta(minutes=5)
    KnownProject.objects.filter(pk="proj_1").update(evidence="vanished", deleted_at=deleted_at)
    meanwhile(vanished_projects.record_living_projects, Project.objects.get(pk="proj_1").delete)
    assert run_until_idle(Cleanup.objects.get()).status == Status.CLEAN
    assert not bucket.keys()


@pytest.mark.only_on("postgresql")
def test_project_created_while_a_sweep_waits_is_not_called_gone(bucket: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    gone("proj_1")
    meanwhile(
        lambda: vanished_projects.block_vanished_project("proj_1"),
        lambda: create_projects("proj_1"),
    )
    assert KnownProject.objects.get(pk="proj_1").deleted_at is None
    assert not Cleanup.objects.exists()


def test_page_of_many_tells_what_holds_and_verifies_nothing(many: Cleanup) -> None:
    client = superuser_client()
    shown = run_action(client, "cleanup", "force_delete", many.pk)
    assert "Each project gets its own cleanup." in shown
    assert "proj_0, proj_1, proj_2." in shown
    shown = run_action(client, "cleanup", "verify_cleanup", many.pk)
    assert "lists projects, not files" in shown
    assert Cleanup.objects.count() == 1
    _out, err, code = run_command("verify_cleanup", str(many.pk))
    assert ("lists projects, not files" in err, code) == (True, 2)
    confirm_action(client, "cleanup", "force_delete", many.pk)
    assert Cleanup.objects.filter(status="pending").count() == 3


# An approval is bound to the figures


@pytest.fixture
def too_large(bucket: Bucket, settings: Settings) -> Cleanup:
    limited(settings, objects=1)
    create_projects("proj_1")
    put_files(bucket, 3)
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    return cleanup


def tells_others(cleanup: Cleanup) -> None:
    other = {"message": "4 objects (28 bytes) would be deleted.", "plan_digest": "another"}
    Cleanup.objects.filter(pk=cleanup.pk).update(**other)


def test_approval_holds_for_the_plan_that_was_shown(
    bucket: Bucket, too_large: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the bucket is in doubt in between, which blocks it again."""
    shown = read_outcomes(too_large)
    requests.approve_or_retry(too_large)
    with monkeypatch.context() as patch:
        patch.setattr(Turn, "start", another_bucket)
        cleanup = run_until_idle(too_large)
    assert (cleanup.status, read_outcomes(cleanup)) == (Status.BLOCKED, shown)
    bucket.put(FLAT_KEY)
    requests.approve_or_retry(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {
        **dict.fromkeys(shown, "deleted"),
        FLAT_KEY: "kept",
    }
    assert bucket.keys() == {FLAT_KEY}


def another_bucket(cleanup: Cleanup) -> Turn:
    raise CannotConclude("another bucket")


def test_page_before_an_approval_shows_the_figures(too_large: Cleanup) -> None:
    shown = run_action(superuser_client(), "cleanup", "force_delete", too_large.pk)
    assert "This would delete 3 files (21 bytes). The safety limit is 1 file" in shown
    assert 'name="figures" value="' in shown


@pytest.mark.parametrize("shown_before", [True, False], ids=["changed", "never shown"])
def test_approval_of_other_figures_is_refused_and_shows_them(
    too_large: Cleanup, shown_before: bool
) -> None:
    client = superuser_client()
    if shown_before:
        asked = run_action(client, "cleanup", "force_delete", too_large.pk)
        figures = asked.partition('name="figures" value="')[2].partition('"')[0]
        assert figures
    else:
        figures = ""
    tells_others(too_large)
    shown = confirm_action(client, "cleanup", "force_delete", too_large.pk, figures=figures)
    assert "Nothing was done: your selection changed" in shown
    assert "4 objects (28 bytes) would be deleted." in shown
    too_large.refresh_from_db()
    assert too_large.status == Status.BLOCKED
    confirm_action(client, "cleanup", "force_delete", too_large.pk)
    too_large.refresh_from_db()
    assert too_large.status == Status.PENDING


def test_plan_that_a_person_could_not_see_is_not_run(bucket: Bucket) -> None:
    """Shown was a dry run that failed, and that it would be tried again: that deletes nothing."""
    keys = set(put_files(bucket, 3))
    KnownProject.objects.record_deleted("proj_1", timezone.now(), "deleted")
    [cleanup] = requests.request_preview("proj_1")
    Cleanup.objects.update(status="retrying", finished_at=timezone.now(), message="503")
    client = superuser_client()
    asked = run_action(client, "cleanup", "force_delete", cleanup.pk)
    assert "Tries again now." in asked
    figures = asked.partition('name="figures" value="')[2].partition('"')[0]
    assert run_until_idle(cleanup).status == Status.PLANNED
    shown = confirm_action(client, "cleanup", "force_delete", cleanup.pk, figures=figures)
    assert "Nothing was done: your selection changed" in shown
    assert "Deletes exactly these files" in shown
    cleanup.refresh_from_db()
    assert cleanup.status == Status.PLANNED
    assert bucket.keys() == keys


@pytest.mark.parametrize("name", ["plan_digest", "message"])
def test_figures_that_change_at_the_last_moment_are_not_approved(
    too_large: Cleanup, name: str
) -> None:
    Cleanup.objects.filter(pk=too_large.pk).update(**{name: "another"})
    with pytest.raises(IllegalTransition):
        too_large.approve("me")


def test_approval_before_there_is_a_plan_lifts_no_limit(bucket: Bucket, settings: Settings) -> None:
    limited(settings, objects=1)
    create_projects("proj_1")
    put_files(bucket, 3)
    bucket.r2.remove(MARKER_KEY, bucket.name)
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.planned_at) == (Status.BLOCKED, None)
    bucket_connection.connect_bucket(bucket.name)
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert "The safety limit is 1 file" in cleanup.message
    assert len(bucket.keys()) == 3
    cleanup.approve("me")
    assert run_until_idle(cleanup).status == Status.CLEAN


def test_approval_lifts_no_limit_of_a_plan_that_was_not_held_against_it(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(settings, objects=1)
    create_projects("proj_1")
    put_files(bucket, 3)
    cleanup = request_cleanup("proj_1")

    def other_bucket(cleanup: Cleanup) -> None:
        raise CannotConclude("Another bucket.")

    with monkeypatch.context() as patch:
        patch.setattr(limits, "limit_reasons", other_bucket)
        cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.message) == (Status.BLOCKED, "Another bucket.")
    cleanup.approve("me")
    cleanup = run_until_idle(cleanup)
    assert "This would delete 3 files (21 bytes). The safety limit is 1 file" in cleanup.message
    assert len(bucket.keys()) == 3


def die_once(patch: pytest.MonkeyPatch, place: Any, name: str, error: BaseException) -> None:
    real, errors = getattr(place, name), [error]

    def die(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(*args)

    patch.setattr(place, name, die)


def test_database_error_while_the_limits_are_asked_lifts_none(
    bucket: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(settings, objects=1)
    create_projects("proj_1")
    keys = put_files(bucket, 3)
    cleanup = request_cleanup("proj_1")
    timeout = OperationalError("canceling statement due to statement timeout")
    die_once(monkeypatch, limits, "size_reason", timeout)
    with pytest.raises(OperationalError):
        run_until_idle(cleanup)
    cleanup.refresh_from_db()
    assert (cleanup.status, cleanup.planned_at is None) == (Status.RETRYING, False)
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.BLOCKED
    assert "This would delete 3 files (21 bytes). The safety limit is 1 file" in cleanup.message
    assert bucket.keys() == set(keys)


@pytest.mark.parametrize("trouble", ["store", "workers"])
def test_worker_that_dies_before_the_limits_are_asked_lifts_none(
    bucket: Bucket,
    store: FaultyStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    """Whatever the next worker meets, as the store's trouble, or that it is one of many."""
    lost(bucket, MANY)
    create_projects("proj_1")
    cleanup = request_cleanup("proj_1")
    die_once(monkeypatch, limits, "limit_reasons", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_until_idle(cleanup)
    before = {"store": 1, "workers": runner.MAX_TAKEOVERS}[trouble]
    past = timezone.now() - timedelta(seconds=1)
    Cleanup.objects.update(lease_until=past, next_attempt_at=past, takeovers=before - 1)
    store.rules.append(rule_for(is_anything, Reply(503)))
    cleanup = run_until_idle(cleanup)
    assert (cleanup.status, cleanup.planned_at is None) == (Status.RETRYING, False)
    store.rules.clear()
    cleanup = run_again(cleanup)
    assert cleanup.status == Status.BLOCKED
    assert "tracked files are missing from the bucket" in cleanup.message
    nothing_concluded(bucket, cleanup)


@pytest.mark.parametrize("kind", ["dry run", "objects"])
def test_approval_of_something_else_does_not_say_that_a_project_is_deleted(
    bucket: Bucket, kind: str
) -> None:
    create_projects("proj_2")
    key = bucket.upload("proj_1")
    gone("proj_1")
    vanished_projects.check_vanished_projects()
    bucket.r2.remove(MARKER_KEY, bucket.name)
    if kind == "dry run":
        requests.request_preview("proj_1")
    else:
        R2Object.objects.get(key=key).delete()
    cleanup = run_until_idle(Cleanup.objects.latest("created_at"))
    assert cleanup.status == Status.BLOCKED
    requests.approve_or_retry(cleanup)
    assert KnownProject.objects.get(pk="proj_1").evidence == "vanished"


def test_command_approves_no_verification(bucket: Bucket) -> None:
    create_projects("proj_1")
    bucket.r2.remove(MARKER_KEY, bucket.name)
    [cleanup] = requests.request_verification("proj_1")
    assert run_until_idle(cleanup).status == Status.BLOCKED
    out, err, code = run_command("approve_cleanup", str(cleanup.pk))
    assert (out, "Verify again instead" in err, code) == ("", True, 2)


def test_command_shows_the_figures_and_approves_what_is_confirmed(
    bucket: Bucket, too_large: Cleanup
) -> None:
    cleanup, old = str(too_large.pk), too_large.confirmation_digest
    out, _err, code = run_command("approve_cleanup", cleanup)
    assert ("This would delete 3 files (21 bytes)" in out, code) == (True, 0)
    assert f"--confirm {old}" in out
    tells_others(too_large)
    out, err, code = run_command("approve_cleanup", cleanup, "--confirm", old)
    assert ("4 objects (28 bytes)" in out, "was not approved" in err, code) == (True, True, 1)
    too_large.refresh_from_db()
    assert too_large.status == Status.BLOCKED
    out, err, code = run_command(
        "approve_cleanup", cleanup, "--confirm", too_large.confirmation_digest
    )
    assert ("approved" in out, err, code) == (True, "", 0)
    assert run_until_idle(too_large).status == Status.CLEAN
    _out, err, code = run_command("approve_cleanup", cleanup)
    assert ("is clean" in err, code) == (True, 2)
    _out, err, code = run_command("approve_cleanup", str(too_large.pk).replace("-", "")[::-1])
    assert ("status is unknown" in err, code) == (True, 2)


def test_cleanup_project_says_how_to_approve(bucket: Bucket, settings: Settings) -> None:
    limited(settings, objects=1)
    put_files(bucket, 3)
    out, _err, code = run_command("cleanup_project", "proj_1", "--declare-deleted", "--sync")
    assert ("To approve: manage.py approve_cleanup ID" in out, code) == (True, 1)


# A bucket that shrank


def scanned(*, accept_fewer: bool = False, dry_run: bool = False) -> BucketScan:
    found = start_scan(dry_run=dry_run, accept_fewer=accept_fewer)
    for _batch in work_on_scan(found):
        pass
    found.refresh_from_db()
    return found


def remove(bucket: Bucket, keys: list[str]) -> None:
    for key in keys:
        bucket.r2.remove(key, bucket.name)


@pytest.mark.parametrize("dry_run", [False, True])
def test_scan_that_finds_far_fewer_than_before_concludes_nothing_until_a_person_accepts_it(
    bucket: Bucket, dry_run: bool
) -> None:
    bucket.put("README.txt")
    keys = put_files(bucket, MANY)
    assert scanned(dry_run=dry_run).status == BucketScan.Status.COMPLETE
    remove(bucket, [*keys, "README.txt"])
    found = scanned(dry_run=dry_run)
    assert found.status == BucketScan.Status.FAILED
    assert f"shows 0 files, but about {MANY + 1} were expected" in found.message
    assert "--accept-fewer" in found.message
    assert Finding.objects.filter(state="open", kind="unrecognised").exists() is not dry_run
    assert scanned(accept_fewer=True, dry_run=dry_run).status == BucketScan.Status.COMPLETE
    assert not Finding.objects.filter(state="open", kind="unrecognised").exists()
    assert scanned(dry_run=dry_run).status == BucketScan.Status.COMPLETE


def test_what_came_and_went_since_the_last_scan_makes_no_other_object_dispensable(
    bucket: Bucket,
) -> None:
    keys = put_files(bucket, MANY)
    scanned()
    create_projects("proj_2")
    for n in range(MANY):
        bucket.upload("proj_2", f"{n}.mp4")
    assert clean_up_project("proj_2").deleted == MANY
    remove(bucket, keys)
    assert scanned().status == BucketScan.Status.FAILED


def test_first_scan_is_held_against_what_is_tracked(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    assert scanned().status == BucketScan.Status.FAILED


def test_rows_written_since_a_first_scan_began_are_not_expected(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, 2)
    begun = start_scan()
    track_key(bucket, media(3)[-1], "proj_1", etag="e", size=1)
    assert expected_objects(begun) == 2


def test_uploads_since_the_scan_before_are_expected(bucket: Bucket) -> None:
    scanned()
    lost(bucket, MANY)
    assert scanned().status == BucketScan.Status.FAILED


def test_what_cleanups_deleted_since_is_not_expected(bucket: Bucket) -> None:
    create_projects("proj_1")
    put_files(bucket, MANY)
    scanned()
    assert clean_up_project("proj_1").status == Status.CLEAN
    assert scanned().status == BucketScan.Status.COMPLETE


def test_what_the_application_deleted_since_is_not_expected(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOLERATED_MISSING_OBJECTS", 0)
    keys = [bucket.upload("proj_1", f"{n}.mp4") for n in range(3)]
    assert scanned().status == BucketScan.Status.COMPLETE
    for key in keys[:2]:
        default_storage.delete(key)
    assert scanned().status == BucketScan.Status.COMPLETE
    remove(bucket, keys[2:])
    assert scanned().status == BucketScan.Status.FAILED


def test_cleanup_goes_on_though_the_application_deletes_files_behind_its_plan(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOLERATED_MISSING_OBJECTS", 0)
    keys = [bucket.upload("proj_1", f"{n}.mp4") for n in range(3)]

    def delete_two() -> None:
        for key in keys[:2]:
            default_storage.delete(key)

    act_before_batch(monkeypatch, delete_two)
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.already_gone, cleanup.deleted) == (Status.CLEAN, 2, 1)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({}, 2),
        ({"hours": 1}, 3),
        ({"bucket": "other"}, 3),
        ({"key": "README.txt"}, 3),
    ],
    ids=["there", "before the last scan", "another bucket", "another prefix"],
)
def test_deleted_file_is_not_expected_if_the_last_scan_listed_it(
    bucket: Bucket, place: dict[str, Any], expected: int
) -> None:
    key, *_others = put_files(bucket, 3)
    list(work_on_scan(start_scan("projects/")))
    now = timezone.now()
    facts = {"kind": "project", "trigger": "deleted", "status": "clean"}
    cleanup = Cleanup.objects.create(
        **facts,
        bucket=place.get("bucket", bucket.name),
        finished_at=now - timedelta(hours=place.get("hours", 0)),
    )
    key = place.get("key", key)
    stored = {"found_in": "both", "last_modified": now - timedelta(days=1)}
    cleanup.items.create(key=key, identity=key, outcome="deleted", **stored)
    assert expected_objects(start_scan("projects/")) == expected


def test_backfill_command_takes_a_person_s_word(bucket: Bucket) -> None:
    create_projects("proj_1")
    lost(bucket, MANY)
    _out, err, code = run_command("backfill_r2")
    assert ("--accept-fewer" in err, code) == (True, 1)
    _out, _err, code = run_command("backfill_r2", "--accept-fewer")
    assert code == 0


# A copy of the database that stays a copy


def test_copy_that_disowns_the_bucket_is_blocked_though_it_cannot_be_told_from_the_original(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    bucket.put(HIERARCHICAL_KEY)
    same = bucket_marker.database_fingerprint()
    for module in (bucket_marker, bucket_connection):
        monkeypatch.setattr(module, "database_fingerprint", lambda: same)
    with copy_database(tmp_path):
        bucket_marker.check_bucket(bucket.name)
        out, _err, code = run_command("connect_bucket", "--disown")
        assert (out.startswith("This database is now ID"), code) == (True, 0)
        cleanup = clean_up_project("proj_1")
        assert cleanup.status == Status.BLOCKED
        assert "belongs to another database" in cleanup.message
        with pytest.raises(CannotConclude):
            bucket_connection.connect_bucket(bucket.name)
        assert DatabaseIdentity.objects.count() == 1
    assert bucket.keys() == {HIERARCHICAL_KEY}
    assert clean_up_project("proj_1").status == Status.CLEAN
