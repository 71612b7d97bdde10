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
from storage_audit.alerts.models import Incident
from storage_audit.bucket import s3
from storage_audit.bucket.errors import DeadlinePassed, Refused, StoreError, Unavailable
from storage_audit.certificate.evidence import items_of
from storage_audit.cleanup import policies, requests
from storage_audit.cleanup.attention import select_keeping_files
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.models import Project, R2Object
from storage_audit.storage import KeyBeingDeleted
from storage_audit.tracking.delete_file import Deletion
from storage_audit.tracking.upload import Upload, intend
from tests.database import Rollback
from tests.faults.kinds import error
from tests.faults.matching import (
    is_delete_batch,
    is_delete_single,
    is_listing,
    is_marker,
    on,
)
from tests.faults.proxy import FaultyStore
from tests.keys import NFC, NFD
from tests.promises import delete, list_facts, outcomes, reason, run, track
from tests.real_bucket import Bucket
from tests.uploads import NAME, State, assert_row_matches_object, read_row

NO_ANSWER = Reply(500, error("InternalError"))
During = Callable[[Callable[[], object]], None]


def put(name: str = NAME) -> str:
    return default_storage.save(name, ContentFile(b"content"))


def delete_without_answer(store: FaultyStore, name: str) -> CleanupOperation:
    store.rules.append(on(is_delete_single, NO_ANSWER))
    default_storage.delete(name)
    store.rules.clear()
    return CleanupOperation.objects.get()


# Spellings


@pytest.fixture
def spelled(bucket: Bucket) -> Bucket:
    """Two files, each with a row, at a store that keeps their spellings apart."""
    bucket.set_marker(folds_unicode=False)
    Project.objects.create(pk="proj_1")
    for key in (NFC, NFD):
        bucket.put(key)
        track(bucket, key, "proj_1", **list_facts(bucket)[key])
    return bucket


def test_file_of_another_spelling_stays_when_the_marker_was_not_read(
    spelled: Bucket, store: FaultyStore
) -> None:
    other = read_row(NFC)
    store.rules.append(on(is_marker, Reply(404, error("NoSuchKey")), times=1))
    assert outcomes(run(delete_without_answer(store, NFD))) == {NFD: "deleted"}
    assert spelled.keys() == {NFC}
    left = R2Object.objects.get()
    assert (left.key, left.state, left.etag) == (NFC, State.STORED, other.etag)


def test_file_of_another_spelling_stays_when_the_marker_does_not_say(
    spelled: Bucket, store: FaultyStore
) -> None:
    spelled.set_marker(folds_unicode=None)
    assert outcomes(run(delete_without_answer(store, NFD))).keys() <= {NFD, NFC}
    assert spelled.keys() >= {NFC}
    assert read_row(NFC).state == State.STORED


def test_row_of_another_spelling_goes_where_the_store_takes_both_for_one_file(
    bucket: Bucket, store: FaultyStore
) -> None:
    bucket.set_marker(folds_unicode=True)
    put(NFC)
    assert outcomes(run(delete_without_answer(store, NFD))) == {NFC: "deleted"}
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
        R2Object.objects.all().forget()
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
    assert outcomes(run(CleanupOperation.objects.get())) == {NAME: "protected"}
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
    operation = CleanupOperation.objects.get(status="pending")
    assert put() != NAME
    assert run(operation).status == "clean"
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_second_deletion_that_is_refused_leaves_the_key_barred_for_the_first(
    bucket: Bucket, store: FaultyStore, during_call: During
) -> None:
    put()
    store.rules.append(on(is_delete_single, Reply(403, error("AccessDenied"))))

    def refused() -> None:
        with pytest.raises(Refused):
            default_storage.delete(NAME)

    during_call(refused)
    store.rules.clear()
    assert outcomes(run(CleanupOperation.objects.get())) == {NAME: "deleted"}
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_cleanup_that_ends_during_the_call_leaves_the_key_barred(
    bucket: Bucket, during_call: During
) -> None:
    put()

    def delete_and_create_again() -> None:
        assert delete("proj_1").status == "clean"
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
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LONGEST_RETRY": timedelta(minutes=1)}
    put()

    def let_worker_have_it() -> None:
        tasks.bring_forward(timezone.now())
        operation = CleanupOperation.objects.get()
        assert run(operation).status == "pending"
        operation.make_due()
        assert outcomes(run(operation)) == {NAME: "protected"}

    during_call(let_worker_have_it)
    assert not R2Object.objects.exists()
    assert run(CleanupOperation.objects.get(status="pending")).status == "clean"
    assert bucket.keys() == set()
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_refused_deletion_that_slept_takes_no_mark_of_a_worker_back(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the file were an old one.
    monkeypatch.setattr(policies, "CLOCKS_DIFFER", timedelta(hours=-1))
    bucket.put(NAME)
    store.rules.append(on(is_delete_batch, NO_ANSWER))

    def sleep_and_refuse(*args: str) -> None:
        operation = CleanupOperation.objects.get()
        operation.make_due()
        run(operation)
        assert operation.items.get().calls
        raise Refused("refused")

    monkeypatch.setattr(s3, "delete_single", sleep_and_refuse)
    with pytest.raises(Refused):
        default_storage.delete(NAME)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_refused_deletion_leaves_no_cleanup(bucket: Bucket, store: FaultyStore) -> None:
    put()
    store.rules.append(on(is_delete_single, Reply(403, error("AccessDenied"))))
    with pytest.raises(Refused):
        default_storage.delete(NAME)
    assert not CleanupOperation.objects.exists()
    assert put(NAME) != NAME
    default_storage.open(NAME, "w").close()


def test_row_goes_that_an_upload_took_back_which_the_deletion_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    upload = Upload(bucket.name, NAME)
    mark = Deletion._request

    def write_row_and_mark(self: Deletion) -> CleanupOperation:
        upload.before = intend(bucket.name, NAME, upload.id)
        operation = mark(self)
        upload.withdraw()
        return operation

    monkeypatch.setattr(Deletion, "_request", write_row_and_mark)
    default_storage.delete(NAME)
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@pytest.mark.parametrize("trouble", [Unavailable("No answer."), SystemExit(), None])
def test_deletion_is_carried_out_though_it_met_an_upload_that_it_refused(
    bucket: Bucket, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    """Without an answer, after a death, or where the look afterwards fails."""
    put()
    upload, request, call = Upload(bucket.name, NAME), Deletion._request, s3.delete_single

    def request_between(deletion: Deletion) -> CleanupOperation:
        upload.before = intend(bucket.name, NAME, upload.id)
        operation = request(deletion)
        upload.withdraw()
        return operation

    def delete_with_trouble(*args: str) -> s3.Answer:
        answer = call(*args)
        if trouble:
            raise trouble
        store.rules.append(on(is_listing, NO_ANSWER))
        return answer

    with monkeypatch.context() as patch, suppress(StoreError, SystemExit):
        patch.setattr(Deletion, "_request", request_between)
        patch.setattr(s3, "delete_single", delete_with_trouble)
        default_storage.delete(NAME)
    store.rules.clear()
    operation = CleanupOperation.objects.get()
    operation.make_due()
    assert run(operation).status == "clean"
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@pytest.mark.parametrize("status", [429, 503])
def test_throttled_deletion_bars_no_key(bucket: Bucket, store: FaultyStore, status: int) -> None:
    put()
    store.rules.append(on(is_delete_single, Reply(status, error("SlowDown"))))
    default_storage.delete(NAME)
    default_storage.open(NAME, "w").close()
    assert outcomes(run(CleanupOperation.objects.get())) == {NAME: "protected"}


def test_answered_deletion_whose_look_fails_is_left_to_a_cleanup(
    bucket: Bucket, store: FaultyStore
) -> None:
    put()
    store.rules.append(on(is_listing, Reply(503, error("SlowDown"))))
    with pytest.raises(StoreError):
        default_storage.delete(NAME)
    store.rules.clear()
    operation = run(CleanupOperation.objects.get())
    assert (operation.status, outcomes(operation)) == ("clean", {NAME: "deleted"})
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
    operation = CleanupOperation.objects.get()
    assert {getattr(each, "deletion_id", None) for each in caplog.records} == {str(operation.pk)}
    assert (operation.status, operation.found, operation.deleted) == ("clean", 1, 1)
    assert (operation.next_attempt_at, operation.children.count()) == (None, 0)
    assert operation.items.values_list(*facts, "outcome", "answer").get() == (
        *row,
        "deleted",
        "Deleted",
    )
    [item] = items_of(operation)
    assert item["listing"] == 1
    assert put() == NAME


def test_answered_deletion_tells_nobody_and_is_no_sign_of_a_worker(bucket: Bucket) -> None:
    put()
    default_storage.delete(NAME)
    assert CleanupOperation.objects.get().status == "clean"
    alert_rules.notice()
    assert not Incident.objects.exists()
    assert not lateness.gets_on()


def test_answered_deletion_hides_no_kept_file_and_is_no_usual_cleanup(bucket: Bucket) -> None:
    other = put()
    R2Object.objects.get().delete()
    default_storage.open(other, "w").close()
    kept = run(CleanupOperation.objects.get())
    assert kept.status == "clean_with_protected"
    default_storage.delete(other)
    assert CleanupOperation.objects.count() == 2
    assert select_keeping_files(CleanupOperation.objects.all()).get() == kept
    assert CleanupOperation.objects.cleanups().get() == kept


def test_file_is_deleted_whose_cleanup_somebody_verifies_meanwhile(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    call = s3.delete_single

    def verify_and_call(*args: str) -> s3.Answer:
        requests.verify_operation(CleanupOperation.objects.get())
        return call(*args)

    monkeypatch.setattr(s3, "delete_single", verify_and_call)
    default_storage.delete(NAME)
    operation = CleanupOperation.objects.get(kind="objects")
    assert (operation.status, R2Object.objects.count()) == ("clean", 0)
    assert run(operation.children.get()).status == "clean"


def test_cleanup_that_a_worker_had_is_not_closed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was blocked, and a person has approved it: it counts no attempts any more."""
    put()
    call = s3.delete_single

    def approve_and_call(*args: str) -> s3.Answer:
        CleanupOperation.objects.update(status="blocked", started_at=timezone.now())
        CleanupOperation.objects.get().release("somebody")
        return call(*args)

    monkeypatch.setattr(s3, "delete_single", approve_and_call)
    default_storage.delete(NAME)
    assert not R2Object.objects.exists()
    assert CleanupOperation.objects.get().status == "pending"
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
    with pytest.raises(ValueError, match="cannot be a key"):
        default_storage.delete(name)
    assert not store.asked(is_delete_single)
    assert not (R2Object.objects.exists() or CleanupOperation.objects.exists())


@pytest.mark.parametrize("reply", [NO_ANSWER, Reply(400, error("InvalidArgument"))])
def test_cleanup_goes_on_where_the_store_is_in_trouble(
    bucket: Bucket, store: FaultyStore, reply: Reply
) -> None:
    put()
    store.rules.append(on(is_delete_single, reply))
    default_storage.delete(NAME)
    assert run(CleanupOperation.objects.get()).status == "clean"
    assert bucket.keys() == set()


def test_cleanup_says_that_it_keeps_a_young_file_without_a_row(
    bucket: Bucket, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put(NAME)
    operation = run(delete_without_answer(store, NAME))
    assert operation.status == "clean_with_protected"
    assert f"{NAME}: cleanup {operation.pk} goes on" in caplog.text
    assert "No row says when this file was written" in reason(operation, NAME)
    assert operation.items.get().evidence == "the application deleted the file"
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
    assert not store.asked(is_delete_single)
    assert list(R2Object.objects.values()) == rows
    assert not CleanupOperation.objects.exists()


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
    operation = CleanupOperation.objects.get()
    assert f"{NAME}: cleanup {operation.pk} goes on" in caplog.text
    assert (bucket.keys() == set()) is sync
    assert run(operation).status == "clean"
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


@on_sqlite
def test_deletion_in_a_transaction_keeps_the_file_of_an_upload_under_way(bucket: Bucket) -> None:
    put()
    Upload(bucket.name, NAME).begin()
    with transaction.atomic():
        default_storage.delete(NAME)
    assert outcomes(run(CleanupOperation.objects.get())) == {NAME: "protected"}


@on_sqlite
def test_deletion_in_a_transaction_leaves_a_file_to_the_blocked_cleanup(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    key = bucket.upload("proj_1")
    blocked = delete("proj_1")
    with transaction.atomic():
        default_storage.delete(key)
    assert CleanupOperation.objects.get() == blocked
    assert read_row(key)
