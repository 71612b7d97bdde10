"""`storage.delete` where the store gives no answer, or where nothing can be sent yet."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit import tasks
from storage_audit.alerts import alert_rules, lateness
from storage_audit.alerts.models import Alert
from storage_audit.bucket import s3
from storage_audit.bucket.errors import DeadlinePassed, Refused, StoreError, Unavailable
from storage_audit.certificate.evidence import certificate_items
from storage_audit.cleanup import given_objects, requests
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.cleanup.needs_attention import select_keeping_files
from storage_audit.models import Project, R2Object
from storage_audit.storage import KeyBeingDeleted
from storage_audit.tracking.delete_file import FileDeletion
from storage_audit.tracking.upload import Upload, record_upload_start
from tests.database import Rollback
from tests.faults.kinds import error_xml
from tests.faults.matching import (
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_marker,
    rule_for,
)
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import (
    clean_up_project,
    list_facts,
    read_outcomes,
    read_reason,
    run_until_idle,
    track_key,
)
from tests.real_bucket import Bucket
from tests.uploads import NAME, State, assert_row_matches_object, read_row

NO_ANSWER = Reply(500, error_xml("InternalError"))
During = Callable[[Callable[[], object]], None]


def put(name: str = NAME) -> str:
    return default_storage.save(name, ContentFile(b"content"))


def delete_without_answer(store: FaultyStore, name: str) -> Cleanup:
    store.rules.append(rule_for(is_delete_single, NO_ANSWER))
    default_storage.delete(name)
    store.rules.clear()
    return Cleanup.objects.get()


# Spellings


@pytest.fixture
def spelled(bucket: Bucket) -> Bucket:
    """Two files, each with a row, at a store that keeps their spellings apart."""
    bucket.set_marker(folds_unicode=False)
    Project.objects.create(pk="proj_1")
    for key in (NFC, NFD):
        bucket.put(key)
        track_key(bucket, key, "proj_1", **list_facts(bucket)[key])
    return bucket


def test_file_of_another_spelling_stays_when_the_marker_was_not_read(
    spelled: Bucket, store: FaultyStore
) -> None:
    other = read_row(NFC)
    store.rules.append(rule_for(is_marker, Reply(404, error_xml("NoSuchKey")), times=1))
    assert read_outcomes(run_until_idle(delete_without_answer(store, NFD))) == {NFD: "deleted"}
    assert spelled.keys() == {NFC}
    left = R2Object.objects.get()
    assert (left.key, left.state, left.etag) == (NFC, State.STORED, other.etag)


def test_file_of_another_spelling_stays_when_the_marker_does_not_say(
    spelled: Bucket, store: FaultyStore
) -> None:
    spelled.set_marker(folds_unicode=None)
    assert read_outcomes(run_until_idle(delete_without_answer(store, NFD))).keys() <= {NFD, NFC}
    assert spelled.keys() >= {NFC}
    assert read_row(NFC).state == State.STORED


def test_row_of_another_spelling_goes_where_the_store_takes_both_for_one_file(
    bucket: Bucket, store: FaultyStore
) -> None:
    bucket.set_marker(folds_unicode=True)
    put(NFC)
    assert read_outcomes(run_until_idle(delete_without_answer(store, NFD))) == {NFC: "deleted"}
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


# Rows that change during the call


def test_key_is_barred_during_the_deletion_of_a_file_without_a_row(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(NAME)

    def write(*args: str) -> None:
        with pytest.raises(KeyBeingDeleted):
            default_storage.open(NAME, "w")
        raise DeadlinePassed("not sent")

    monkeypatch.setattr(s3, "delete_single", write)
    with pytest.raises(DeadlinePassed):
        default_storage.delete(NAME)
    assert not R2Object.objects.exists()


def test_key_stays_barred_when_another_process_takes_the_row_during_the_call(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()

    def lose_row(*args: str) -> None:
        R2Object.objects.all().delete_without_signals()
        raise Unavailable("no answer")

    monkeypatch.setattr(s3, "delete_single", lose_row)
    default_storage.delete(NAME)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")
    item = CleanupItem.objects.get()
    assert (item.key, item.project_id) == (NAME, "proj_1")


def test_row_stays_that_another_process_changes_during_the_call(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may describe another file by now."""
    put()

    def change_row(*args: str) -> None:
        R2Object.objects.update(updated_at=timezone.now())
        raise Unavailable("no answer")

    monkeypatch.setattr(s3, "delete_single", change_row)
    default_storage.delete(NAME)
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == {NAME: "kept"}
    assert_row_matches_object(bucket, NAME)


@pytest.fixture
def during_call(monkeypatch: pytest.MonkeyPatch) -> During:
    """Do this while a deletion is under way, which then gets no answer; it may still be obeyed."""

    def do(this: Callable[[], object]) -> None:
        def call(*args: str) -> None:
            patch.undo()
            this()
            raise Unavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(s3, "delete_single", call)
            default_storage.delete(NAME)

    return do


def test_second_deletion_that_is_answered_leaves_the_key_barred_for_the_first(
    bucket: Bucket, during_call: During
) -> None:
    put()
    during_call(lambda: default_storage.delete(NAME))
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    cleanup = Cleanup.objects.get(status="pending")
    assert put() != NAME
    assert run_until_idle(cleanup).status == "clean"
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_second_deletion_that_is_refused_leaves_the_key_barred_for_the_first(
    bucket: Bucket, store: FaultyStore, during_call: During
) -> None:
    put()
    store.rules.append(rule_for(is_delete_single, Reply(403, error_xml("AccessDenied"))))

    def refused() -> None:
        with pytest.raises(Refused):
            default_storage.delete(NAME)

    during_call(refused)
    store.rules.clear()
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == {NAME: "deleted"}
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_cleanup_that_ends_during_the_call_leaves_the_key_barred(
    bucket: Bucket, during_call: During
) -> None:
    put()

    def delete_and_create_again() -> None:
        assert clean_up_project("proj_1").status == "clean"
        Project.objects.create(pk="proj_1")
        with pytest.raises(KeyBeingDeleted):
            default_storage.open(NAME, "w")

    Project.objects.create(pk="proj_1")
    during_call(delete_and_create_again)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_row_deleted_during_the_call_leaves_the_key_barred(
    bucket: Bucket, during_call: During
) -> None:
    put()
    row = read_row()
    during_call(row.delete)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_file_of_a_deletion_that_slept_is_deleted_though_a_worker_had_its_cleanup(
    bucket: Bucket, during_call: During, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"RETRY_LONGEST": timedelta(minutes=1)}
    put()

    def let_worker_have_it() -> None:
        tasks.bring_work_forward(timezone.now())
        cleanup = Cleanup.objects.get()
        assert run_until_idle(cleanup).status == "pending"
        cleanup.make_due()
        assert read_outcomes(run_until_idle(cleanup)) == {NAME: "kept"}

    during_call(let_worker_have_it)
    assert not R2Object.objects.exists()
    assert run_until_idle(Cleanup.objects.get(status="pending")).status == "clean"
    assert bucket.keys() == set()
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_refused_deletion_that_slept_takes_no_mark_of_a_worker_back(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the file were an old one.
    monkeypatch.setattr(given_objects, "MAX_CLOCK_SKEW", timedelta(hours=-1))
    bucket.put(NAME)
    store.rules.append(rule_for(is_delete_batch, NO_ANSWER))

    def sleep_and_refuse(*args: str) -> None:
        cleanup = Cleanup.objects.get()
        cleanup.make_due()
        run_until_idle(cleanup)
        assert cleanup.items.get().calls
        raise Refused("refused")

    monkeypatch.setattr(s3, "delete_single", sleep_and_refuse)
    with pytest.raises(Refused):
        default_storage.delete(NAME)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_refused_deletion_leaves_no_cleanup(bucket: Bucket, store: FaultyStore) -> None:
    put()
    store.rules.append(rule_for(is_delete_single, Reply(403, error_xml("AccessDenied"))))
    with pytest.raises(Refused):
        default_storage.delete(NAME)
    assert not Cleanup.objects.exists()
    assert put(NAME) != NAME
    default_storage.open(NAME, "w").close()


def test_row_goes_that_an_upload_took_back_which_the_deletion_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    upload = Upload(bucket.name, NAME)
    mark = FileDeletion._request_cleanup

    def write_row_and_mark(self: FileDeletion) -> Cleanup:
        upload.row_before = record_upload_start(bucket.name, NAME, upload.id)
        cleanup = mark(self)
        upload.withdraw()
        return cleanup

    monkeypatch.setattr(FileDeletion, "_request_cleanup", write_row_and_mark)
    default_storage.delete(NAME)
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@pytest.mark.parametrize("trouble", [Unavailable("No answer."), SystemExit(), None])
def test_deletion_is_carried_out_though_it_met_an_upload_that_it_refused(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    """Without an answer, after a death, or where the look afterwards fails."""
    put()
    upload, request, call = (
        Upload(bucket.name, NAME),
        FileDeletion._request_cleanup,
        s3.delete_single,
    )

    def request_between(deletion: FileDeletion) -> Cleanup:
        upload.row_before = record_upload_start(bucket.name, NAME, upload.id)
        cleanup = request(deletion)
        upload.withdraw()
        return cleanup

    def delete_with_trouble(*args: str) -> s3.Answer:
        answer = call(*args)
        if trouble:
            raise trouble
        store.rules.append(rule_for(is_listing, NO_ANSWER))
        return answer

    with monkeypatch.context() as patch, suppress(StoreError, SystemExit):
        patch.setattr(FileDeletion, "_request_cleanup", request_between)
        patch.setattr(s3, "delete_single", delete_with_trouble)
        default_storage.delete(NAME)
    store.rules.clear()
    cleanup = Cleanup.objects.get()
    cleanup.make_due()
    assert run_until_idle(cleanup).status == "clean"
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@pytest.mark.parametrize("status", [429, 503])
def test_throttled_deletion_bars_no_key(bucket: Bucket, store: FaultyStore, status: int) -> None:
    put()
    store.rules.append(rule_for(is_delete_single, Reply(status, error_xml("SlowDown"))))
    default_storage.delete(NAME)
    default_storage.open(NAME, "w").close()
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == {NAME: "kept"}


def test_answered_deletion_whose_check_fails_is_left_to_a_cleanup(
    bucket: Bucket, store: FaultyStore
) -> None:
    put()
    store.rules.append(rule_for(is_listing, Reply(503, error_xml("SlowDown"))))
    with pytest.raises(StoreError):
        default_storage.delete(NAME)
    store.rules.clear()
    cleanup = run_until_idle(Cleanup.objects.get())
    assert (cleanup.status, read_outcomes(cleanup)) == ("clean", {NAME: "deleted"})
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


# What an answered deletion leaves


def test_answered_deletion_is_a_clean_cleanup_with_the_facts_of_its_row(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    put()
    facts = ("key", "project_id", "size", "etag", "last_modified")
    row = R2Object.objects.values_list(*facts).get()
    default_storage.delete(NAME)
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    cleanup = Cleanup.objects.get()
    assert {getattr(each, "deletion_id", None) for each in caplog.records} == {str(cleanup.pk)}
    assert (cleanup.status, cleanup.found, cleanup.deleted) == ("clean", 1, 1)
    assert (cleanup.next_attempt_at, cleanup.children.count()) == (None, 0)
    assert cleanup.items.values_list(*facts, "outcome", "store_answer").get() == (
        *row,
        "deleted",
        "Deleted",
    )
    [item] = certificate_items(cleanup)
    assert item["listing"] == 1
    assert put() == NAME


def test_answered_deletion_tells_nobody_and_is_no_sign_of_a_worker(bucket: Bucket) -> None:
    put()
    default_storage.delete(NAME)
    assert Cleanup.objects.get().status == "clean"
    alert_rules.update_alerts()
    assert not Alert.objects.exists()
    assert not lateness.is_work_progressing()


def test_answered_deletion_hides_no_kept_file_and_is_no_usual_cleanup(bucket: Bucket) -> None:
    other = put()
    R2Object.objects.get().delete()
    default_storage.open(other, "w").close()
    kept = run_until_idle(Cleanup.objects.get())
    assert kept.status == "clean_with_kept"
    default_storage.delete(other)
    assert Cleanup.objects.count() == 2
    assert select_keeping_files(Cleanup.objects.all()).get() == kept
    assert Cleanup.objects.requested_deletions().get() == kept


def test_file_is_deleted_whose_cleanup_somebody_verifies_meanwhile(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    call = s3.delete_single

    def verify_and_call(*args: str) -> s3.Answer:
        requests.request_cleanup_verification(Cleanup.objects.get())
        return call(*args)

    monkeypatch.setattr(s3, "delete_single", verify_and_call)
    default_storage.delete(NAME)
    cleanup = Cleanup.objects.get(kind="objects")
    assert (cleanup.status, R2Object.objects.count()) == ("clean", 0)
    assert run_until_idle(cleanup.children.get()).status == "clean"


def test_cleanup_that_a_worker_had_is_not_closed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was blocked, and a person has approved it: it counts no attempts any more."""
    put()
    call = s3.delete_single

    def approve_and_call(*args: str) -> s3.Answer:
        Cleanup.objects.update(status="blocked", started_at=timezone.now())
        Cleanup.objects.get().approve("somebody")
        return call(*args)

    monkeypatch.setattr(s3, "delete_single", approve_and_call)
    default_storage.delete(NAME)
    assert not R2Object.objects.exists()
    assert Cleanup.objects.get().status == "pending"
    assert put() == NAME


def test_cleanup_is_locked_before_the_rows_of_its_file(bucket: Bucket) -> None:
    """As workers do, or each would wait for the other."""
    put()
    with CaptureQueriesContext(connection) as queries:
        default_storage.delete(NAME)
    sent = [each["sql"] for each in queries]
    [locked] = [n for n, sql in enumerate(sent) if 'SET "attempts" = 0' in sql]
    forgotten = [n for n, sql in enumerate(sent) if 'DELETE FROM "storage_audit_r2object"' in sql]
    assert locked < forgotten[0]


# What the store refuses, and what it cannot tell from a newer file


@pytest.mark.parametrize("name", ["", ".", "nul\0", "x" * 1025, "\u00e9" * 513])
def test_impossible_name_is_refused(bucket: Bucket, store: FaultyStore, name: str) -> None:
    with pytest.raises(ValueError, match="can't be used as a key"):
        default_storage.delete(name)
    assert not store.find_requests(is_delete_single)
    assert not (R2Object.objects.exists() or Cleanup.objects.exists())


@pytest.mark.parametrize("reply", [NO_ANSWER, Reply(400, error_xml("InvalidArgument"))])
def test_cleanup_goes_on_where_the_store_is_in_trouble(
    bucket: Bucket, store: FaultyStore, reply: Reply
) -> None:
    put()
    store.rules.append(rule_for(is_delete_single, reply))
    default_storage.delete(NAME)
    assert run_until_idle(Cleanup.objects.get()).status == "clean"
    assert bucket.keys() == set()


def test_cleanup_says_that_it_keeps_a_young_file_without_a_row(
    bucket: Bucket, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put(NAME)
    cleanup = run_until_idle(delete_without_answer(store, NAME))
    assert cleanup.status == "clean_with_kept"
    assert f"{NAME}: cleanup {cleanup.pk} continues" in caplog.text
    assert "We don't know when this file was written" in read_reason(cleanup, NAME)
    assert cleanup.items.get().owner_evidence == "the application deleted the file"
    assert bucket.keys() == {NAME}


# Transactions

on_sqlite = pytest.mark.only_on("sqlite")


@on_sqlite
@pytest.mark.parametrize("is_tracked", [True, False])
def test_deletion_that_is_rolled_back_sends_nothing(
    bucket: Bucket, store: FaultyStore, is_tracked: bool
) -> None:
    put() if is_tracked else bucket.put(NAME)
    rows = list(R2Object.objects.values())
    with pytest.raises(Rollback), transaction.atomic():
        default_storage.delete(NAME)
        raise Rollback
    assert not store.find_requests(is_delete_single)
    assert list(R2Object.objects.values()) == rows
    assert not Cleanup.objects.exists()


@on_sqlite
@pytest.mark.parametrize("sync", [True, False])
def test_file_goes_once_its_deletion_is_committed(
    bucket: Bucket, settings: Settings, caplog: pytest.LogCaptureFixture, sync: bool
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"SYNC": sync}
    put()
    with transaction.atomic():
        default_storage.delete(NAME)
        assert bucket.keys() == {NAME}
        assert not caplog.records
    cleanup = Cleanup.objects.get()
    assert f"{NAME}: cleanup {cleanup.pk} continues" in caplog.text
    assert (bucket.keys() == set()) is sync
    assert run_until_idle(cleanup).status == "clean"
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@on_sqlite
def test_deletion_in_a_transaction_keeps_the_file_of_an_upload_under_way(bucket: Bucket) -> None:
    put()
    Upload(bucket.name, NAME).begin()
    with transaction.atomic():
        default_storage.delete(NAME)
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == {NAME: "kept"}


@on_sqlite
def test_deletion_in_a_transaction_leaves_a_file_to_the_blocked_cleanup(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    key = bucket.upload("proj_1")
    blocked = clean_up_project("proj_1")
    with transaction.atomic():
        default_storage.delete(key)
    assert Cleanup.objects.get() == blocked
    assert read_row(key)
