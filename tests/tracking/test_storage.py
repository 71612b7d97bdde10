"""Nothing is written to the bucket without a row that says so."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from http.client import HTTPConnection
from socket import socket
from typing import Any
from unicodedata import normalize
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from botocore.exceptions import BotoCoreError
from django.core.exceptions import SuspiciousOperation
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage, storages
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ
from pytest_django import Settings

from devtools.http_reply import Reply
from storage_audit.bucket import s3
from storage_audit.bucket.errors import DeadlinePassed, InvalidResponse, StoreError, Unavailable
from storage_audit.cleanup import delete_pipeline, runner, settle_items
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.models import Project, R2Object, R2ObjectQuerySet
from storage_audit.ownership import bucket_marker
from storage_audit.storage import KeyBeingDeleted, TrackedStorage, key_for
from storage_audit.tracking.upload import Upload
from storage_audit.tracking.upload_rows import run_durably
from tests.database import Rollback
from tests.faults.kinds import error_xml
from tests.faults.matching import is_delete_single, rule_for
from tests.faults.proxy import FaultyStore, Forward, Request
from tests.promises import clean_up_project, read_outcomes, read_reason, run_until_idle
from tests.real_bucket import Bucket
from tests.times import STALE_CALL
from tests.uploads import NAME, State, assert_row_matches_object, mark_as_being_deleted, read_row

ON_POSTGRESQL = connection.vendor == "postgresql"
PART = 5 * 1024 * 1024


class Spy(ContentFile):  # type: ignore[type-arg]
    """Content that looks at the tracking row when it is read for the first time."""

    def __init__(self, key: str) -> None:
        super().__init__(b"content")
        self.key, self.seen = key, list[tuple[str, str]]()

    def read(self, *args: Any) -> bytes:
        if not self.seen:
            # Read from another connection: on PostgreSQL only what is committed is seen.
            with ThreadPoolExecutor(1) as other:
                self.seen = other.submit(self.read_rows).result()
        content: bytes = super().read(*args)
        return content

    def read_rows(self) -> list[tuple[str, str]]:
        try:
            return list(R2Object.objects.filter(key=self.key).values_list("key", "state"))
        finally:
            connection.close()


class Breaking(ContentFile):  # type: ignore[type-arg]
    """Content that cannot be read to its end."""

    def read(self, *args: Any) -> bytes:
        raise Rollback


def put(name: str = NAME, content: bytes = b"content") -> str:
    return default_storage.save(name, ContentFile(content))


def overwriting() -> TrackedStorage:
    return TrackedStorage(file_overwrite=True)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, nor can."""
    with socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def no_store(bucket: Bucket, settings: Settings, nobody: str) -> None:
    point_at(settings, ENDPOINT_URL=nobody)


def point_at(settings: Settings, **values: object) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | values
    # Has `default_storage` made anew.
    settings.STORAGES = dict(settings.STORAGES)


# Saving


def test_the_row_is_there_before_the_first_byte_is_read(bucket: Bucket) -> None:
    spy = Spy(NAME)
    default_storage.save(NAME, spy)
    assert spy.seen == [(NAME, "uploading")]


def test_the_row_says_what_the_bucket_says(bucket: Bucket) -> None:
    Project.objects.create(pk="proj_1")
    assert put(content=b"some content") == NAME
    assert_row_matches_object(bucket, NAME)
    found = read_row()
    assert (found.bucket, found.size, found.source) == ("tests", 12, R2Object.Source.UPLOAD)
    assert (found.project_id, found.scene_id, found.key_format) == ("proj_1", "s1", "hierarchical")
    assert found.file_type == "mp4"


def test_an_empty_file_can_be_saved(bucket: Bucket) -> None:
    put(content=b"")
    assert read_row().size == 0
    assert_row_matches_object(bucket, NAME)


def test_a_large_file_goes_in_parts_and_comes_back(bucket: Bucket) -> None:
    content = b"0123456789" * 2_000_000
    put(content=content)
    assert read_row().size == len(content)
    assert_row_matches_object(bucket, NAME)
    with default_storage.open(NAME) as stored:
        assert stored.read() == content


def test_a_second_file_of_the_name_gets_another_name_and_row(bucket: Bucket) -> None:
    first, second = put(content=b"1"), put(content=b"2")
    assert first != second
    assert bucket.keys() == {first, second}
    assert {each.key for each in R2Object.objects.all()} == {first, second}
    assert bucket.r2.read(first) == b"1"


def test_overwriting_brings_the_row_up_to_date(bucket: Bucket) -> None:
    put(content=b"old")
    before = read_row()
    assert overwriting().save(NAME, ContentFile(b"newer")) == NAME
    assert read_row().pk == before.pk
    assert read_row().etag != before.etag
    assert_row_matches_object(bucket, NAME)


def test_a_file_that_says_nothing_of_a_project_is_tracked_all_the_same(bucket: Bucket) -> None:
    put("misc/readme.txt")
    found = read_row("misc/readme.txt")
    assert (found.project_id, found.key_format) == (None, "")


def test_an_ambiguous_name_names_no_project(bucket: Bucket) -> None:
    put("proj_1_x_y_media.mp4")
    assert read_row("proj_1_x_y_media.mp4").project_id is None


def test_content_that_cannot_be_read_leaves_a_failed_row_and_no_object(bucket: Bucket) -> None:
    with pytest.raises(Rollback):
        default_storage.save(NAME, Breaking(b"content"))
    assert read_row().state == State.UPLOAD_FAILED
    assert bucket.keys() == set()


def test_a_failed_upload_can_be_repeated_under_its_name(bucket: Bucket) -> None:
    with suppress(Rollback):
        default_storage.save(NAME, Breaking(b"content"))
    assert put() == NAME
    assert_row_matches_object(bucket, NAME)


def test_a_store_that_cannot_be_reached_leaves_a_failed_row_and_raises(
    no_store: None, bucket: Bucket
) -> None:
    storage = TrackedStorage(file_overwrite=True)  # Which asks nothing before it writes.
    with pytest.raises(BotoCoreError):
        storage.save(NAME, ContentFile(b"content"))
    assert read_row().state == State.UPLOAD_FAILED
    with pytest.raises(BotoCoreError), storage.open("other", "w") as file:
        file.write("text")
    assert read_row("other").state == State.UPLOAD_FAILED


def test_a_store_that_takes_no_more_after_the_upload_leaves_an_unconfirmed_row(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_head(bucket: str, key: str) -> None:
        raise Unavailable("no")

    monkeypatch.setattr(s3, "head_object", no_head)
    with pytest.raises(Unavailable):
        put()
    assert read_row().state == State.UPLOAD_FAILED
    assert bucket.keys() == {NAME}


@pytest.mark.parametrize(
    ("name", "value"),
    [("ETag", f'"{"e" * 201}"'), ("ETag", '"a\0b"'), ("ETag", None), ("Content-Length", "9" * 19)],
    ids=["a long ETag", "NUL", "no ETag", "a size that no column holds"],
)
def test_upload_is_not_confirmed_by_an_answer_that_cannot_be_stored(
    store: FaultyStore, bucket: Bucket, name: str, value: str | None
) -> None:
    def change(request: Request, forward: Forward) -> Reply:
        reply = forward()
        others = [pair for pair in reply.headers if pair[0].lower() != name.lower()]
        return replace(reply, headers=(*others, *([(name, value)] if value else [])))

    store.rules.append(rule_for(lambda request: request.method == "HEAD", change))
    with pytest.raises(InvalidResponse, match="Can't read the store's answer"):
        overwriting().save(NAME, ContentFile(b"content"))
    assert read_row().state == State.UPLOAD_FAILED
    assert bucket.keys() == {NAME}


def test_a_folder_that_other_storages_use_is_not_ours(bucket: Bucket, settings: Settings) -> None:
    """Under another start no key format would read the key, and no cleanup look for it."""
    settings.AWS_LOCATION = "static"
    settings.STORAGES = dict(settings.STORAGES)
    put()
    assert bucket.keys() == {NAME}


# Transactions


def test_an_upload_that_comes_between_is_no_error_in_any_isolation(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL may be set so that a row which another has just made cannot be met again."""
    plain, others = R2ObjectQuerySet.bulk_create, [uuid4()]

    def too_late(rows: R2ObjectQuerySet, *args: Any, **kwargs: Any) -> Any:
        if others:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(come_between, others.pop()).result()
        return plain(rows, *args, **kwargs)

    def come_between(upload_id: UUID) -> None:
        values = {"source": "upload", "state": "uploading", "upload_id": upload_id}
        plain(R2Object.objects.all(), [R2Object(bucket=bucket.name, key=NAME, **values)])
        connection.close()

    monkeypatch.setattr(R2ObjectQuerySet, "bulk_create", too_late)
    if ON_POSTGRESQL:
        level = ISOLATION_LEVEL_REPEATABLE_READ
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
    with transaction.atomic() if ON_POSTGRESQL else nullcontext():
        upload = Upload(bucket.name, NAME).begin()
    assert not others
    assert R2Object.objects.get().upload_id == upload.id


def test_a_rolled_back_transaction_leaves_no_file_without_a_row(bucket: Bucket) -> None:
    """SQLite has one writer: there the row goes too, and a scan finds the stray."""
    with suppress(Rollback), transaction.atomic():
        put()
        raise Rollback
    assert bucket.keys() == {NAME}
    if ON_POSTGRESQL:
        assert_row_matches_object(bucket, NAME)
    else:
        assert not R2Object.objects.exists()


def test_a_row_is_seen_by_others_during_the_upload_in_a_transaction(bucket: Bucket) -> None:
    spy = Spy(NAME)
    with transaction.atomic():
        default_storage.save(NAME, spy)
    assert spy.seen == ([(NAME, "uploading")] if ON_POSTGRESQL else [])
    assert_row_matches_object(bucket, NAME)


@pytest.mark.only_on("postgresql")
def test_upload_in_a_transaction_takes_no_second_connection_of_a_pool(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many uploads as the pool has connections would wait for each other. To open one raises
    here, as the driver has none."""
    with transaction.atomic(), monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict["OPTIONS"], "pool", True)
        assert run_durably(R2Object.objects.count) == 0


@contextmanager
def old_snapshot() -> Iterator[None]:
    """A transaction that does not see what others commit from now on."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # The first query takes it.
        R2Object.objects.exists()
        yield


def elsewhere(effect: Callable[[], object]) -> None:
    """Do this, and commit it, on another connection."""

    def closing() -> None:
        try:
            effect()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(closing).result()


@pytest.mark.only_on("postgresql")
def test_deletion_sees_a_blocked_cleanup_that_its_own_transaction_is_too_old_to_see(
    bucket: Bucket, settings: Settings
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    key = bucket.upload("proj_1")
    with old_snapshot():
        elsewhere(lambda: clean_up_project("proj_1"))
        default_storage.delete(key)
    assert Cleanup.objects.get().status == "blocked"
    assert bucket.keys() == {key}


@pytest.mark.only_on("postgresql")
def test_upload_sees_a_mark_that_its_own_transaction_is_too_old_to_see(bucket: Bucket) -> None:
    with ExitStack() as stack, old_snapshot():
        elsewhere(lambda: stack.enter_context(mark_as_being_deleted()))
        assert not CleanupItem.objects.exists()
        with pytest.raises(KeyBeingDeleted):
            default_storage.open(NAME, "w")
    assert not R2Object.objects.exists()


@pytest.mark.only_on("postgresql")
def test_row_taken_away_during_an_upload_with_an_old_snapshot_is_made_again(
    bucket: Bucket,
) -> None:
    put()
    with old_snapshot(), default_storage.open(NAME, "w") as file:
        file.write("text")
        elsewhere(R2Object.objects.all().delete_without_signals)
    assert_row_matches_object(bucket, NAME)


def test_a_project_made_in_the_same_transaction_may_have_uploads(bucket: Bucket) -> None:
    with transaction.atomic():
        bucket.upload("proj_1")
    assert read_row().project_id == Project.objects.get().pk


def test_a_file_is_replaced_within_one_transaction(bucket: Bucket) -> None:
    """On SQLite the old file goes later, so the new one gets another name."""
    put(content=b"old")
    with transaction.atomic():
        default_storage.delete(NAME)
        saved = put(content=b"new")
    assert (saved == NAME) is ON_POSTGRESQL
    if not ON_POSTGRESQL:
        assert run_until_idle(Cleanup.objects.get()).status == "clean"
    assert bucket.keys() == {saved}
    assert_row_matches_object(bucket, saved)
    assert bucket.r2.read(saved) == b"new"


def test_rollback_undoes_the_deletion_of_a_file_on_sqlite_alone(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """On PostgreSQL the file is gone for good, and its row with it. SQLite has one writer: there a
    cleanup deletes the file once the transaction is committed."""
    put()
    with suppress(Rollback), transaction.atomic():
        default_storage.delete(NAME)
        raise Rollback
    assert bool(caplog.records) is ON_POSTGRESQL
    assert Cleanup.objects.filter(status="clean").exists() is ON_POSTGRESQL
    if ON_POSTGRESQL:
        assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    else:
        assert_row_matches_object(bucket, NAME)


def test_an_upload_to_a_key_whose_row_the_same_transaction_holds_does_not_hang(
    bucket: Bucket,
) -> None:
    put()
    refused = pytest.raises(OperationalError) if ON_POSTGRESQL else nullcontext()
    with refused, transaction.atomic():
        R2Object.objects.update(scene_id="s2")
        overwriting().save(NAME, ContentFile(b"new"))
    assert_row_matches_object(bucket, NAME)


@pytest.mark.only_on("postgresql")
def test_deletion_of_a_file_whose_row_the_same_transaction_holds_sends_nothing(
    bucket: Bucket, store: FaultyStore
) -> None:
    put()
    with pytest.raises(OperationalError), transaction.atomic():
        R2Object.objects.update(scene_id="s2")
        default_storage.delete(NAME)
    assert not store.find_requests(is_delete_single)
    assert_row_matches_object(bucket, NAME)
    assert not Cleanup.objects.exists()


# Files that are written bit by bit


@pytest.mark.parametrize("mode, content", [("w", "text"), ("wb", b"bytes")])
def test_a_file_opened_for_writing_is_tracked(
    mode: str, content: str | bytes, bucket: Bucket
) -> None:
    with default_storage.open(NAME, mode) as file:
        assert read_row().state == State.UPLOADING
        file.write(content)
        assert read_row().state == State.UPLOADING
    assert_row_matches_object(bucket, NAME)
    assert read_row().size == len(content)


def test_a_file_of_several_parts_is_tracked(bucket: Bucket) -> None:
    with default_storage.open(NAME, "wb") as file:
        for _ in range(3):
            file.write(b"x" * PART)
        file.write(b"y")
    assert read_row().size == 3 * PART + 1
    assert_row_matches_object(bucket, NAME)


def test_a_file_closed_without_a_word_is_an_empty_object(bucket: Bucket) -> None:
    default_storage.open(NAME, "w").close()
    assert read_row().size == 0
    assert_row_matches_object(bucket, NAME)


def test_closing_twice_is_harmless(bucket: Bucket) -> None:
    file = default_storage.open(NAME, "w")
    file.write("text")
    file.close()
    file.close()
    assert_row_matches_object(bucket, NAME)


@pytest.mark.parametrize("size", [0, 4, PART + 1])
def test_a_block_that_raises_leaves_no_object_and_a_failed_row(size: int, bucket: Bucket) -> None:
    with pytest.raises(Rollback), default_storage.open(NAME, "wb") as file:
        for _ in range(2):
            file.write(b"x" * size)
        raise Rollback
    assert file.closed
    assert bucket.keys() == set()
    assert read_row().state == State.UPLOAD_FAILED


def test_a_block_that_raises_leaves_the_former_object_and_says_so(bucket: Bucket) -> None:
    put(content=b"former")
    with pytest.raises(Rollback), default_storage.open(NAME, "wb") as file:
        file.write(b"new")
        raise Rollback
    assert bucket.r2.read(NAME) == b"former"
    assert (read_row().size, read_row().etag) == bucket.facts()[NAME]


def test_a_block_that_raises_tells_its_own_error_when_the_store_is_gone_too(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Rollback), default_storage.open(NAME, "wb") as file:
        file.write(b"x")
        monkeypatch.setattr(file._multipart, "abort", lambda: 1 / 0)  # type: ignore[attr-defined]
        raise Rollback
    assert file.closed
    assert read_row().state == State.UPLOAD_FAILED


def test_a_file_that_cannot_be_closed_leaves_a_failed_row(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = default_storage.open(NAME, "wb")
    file.write(b"x")
    monkeypatch.setattr(file._multipart, "complete", lambda **kwargs: 1 / 0)  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        file.close()
    assert read_row().state == State.UPLOAD_FAILED


def test_opening_a_file_tracks_nothing(bucket: Bucket) -> None:
    bucket.put("a.txt", body=b"one\ntwo\n")
    with default_storage.open("a.txt") as file:
        assert file.read() == b"one\ntwo\n"
    with default_storage.open("a.txt", "r") as file:
        assert list(file) == ["one\n", "two\n"]
    with pytest.raises(FileNotFoundError):
        default_storage.open("absent.txt")
    assert not R2Object.objects.exists()


# Keys that are being deleted


def test_a_new_file_of_a_name_being_deleted_gets_another(bucket: Bucket) -> None:
    with mark_as_being_deleted():
        assert default_storage.exists(NAME)
        other = put()
    assert other != NAME
    assert bucket.keys() == {other}
    assert not R2Object.objects.filter(key=NAME).exists()
    assert put() == NAME


def test_an_overwriting_storage_does_not_overwrite_what_is_being_deleted(bucket: Bucket) -> None:
    with mark_as_being_deleted():
        assert overwriting().save(NAME, ContentFile(b"content")) != NAME


def test_a_file_of_a_name_being_deleted_is_not_opened_for_writing(bucket: Bucket) -> None:
    with mark_as_being_deleted(), pytest.raises(KeyBeingDeleted, match="take.mp4"):
        default_storage.open(NAME, "w")
    assert bucket.keys() == set()
    assert not R2Object.objects.filter(state=State.UPLOADING).exists()


def test_a_name_being_deleted_in_another_bucket_is_free(bucket: Bucket) -> None:
    with mark_as_being_deleted(bucket="other"):
        assert put() == NAME


@pytest.mark.parametrize("object_is_there", [True, False])
@pytest.mark.parametrize("storage", [TrackedStorage, overwriting])
def test_a_row_being_deleted_bars_its_key(
    storage: Any, object_is_there: bool, bucket: Bucket
) -> None:
    put()
    R2Object.objects.update(state=State.DELETING, updated_at=timezone.now())
    if not object_is_there:
        bucket.wipe()
    assert storage().save(NAME, ContentFile(b"other")) != NAME
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")
    assert read_row().state == State.DELETING


def test_a_row_of_a_dead_process_does_not_bar_its_key_for_ever(bucket: Bucket) -> None:
    put()
    bucket.r2.remove(NAME, bucket.name)
    R2Object.objects.update(
        state=State.DELETING, updated_at=timezone.now() - timedelta(days=1, seconds=1)
    )
    assert put() == NAME
    assert_row_matches_object(bucket, NAME)


def test_a_mark_set_after_the_name_was_chosen_is_seen(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker marks between the look at the name and the row: at the last moment."""
    monkeypatch.setattr(TrackedStorage, "get_available_name", lambda self, name, max_length: name)
    with mark_as_being_deleted():
        with pytest.raises(KeyBeingDeleted):
            put()
        assert not R2Object.objects.exists()
    assert bucket.keys() == set()


def test_a_row_taken_away_during_the_upload_is_made_again(bucket: Bucket) -> None:
    with default_storage.open(NAME, "w") as file:
        file.write("text")
        R2Object.objects.all().delete_without_signals()
    assert_row_matches_object(bucket, NAME)
    assert read_row().project_id == "proj_1"


def test_upload_is_not_confirmed_while_a_cleanup_deletes_its_key(bucket: Bucket) -> None:
    """The row was deleted meanwhile, and with it the mark of this upload."""
    file = default_storage.open(NAME, "w")
    file.write("text")
    R2Object.objects.all().delete_without_signals()
    with mark_as_being_deleted(), pytest.raises(KeyBeingDeleted, match="take.mp4"):
        file.close()
    assert not R2Object.objects.exists()


@pytest.mark.parametrize(("hours", "outcome"), [(0, "kept"), (25, "deleted")])
def test_deleting_a_row_keeps_its_file_while_an_upload_to_it_is_under_way(
    bucket: Bucket, hours: int, outcome: str
) -> None:
    put()
    Upload(bucket.name, NAME).begin()
    R2Object.objects.update(updated_at=timezone.now() - timedelta(hours=hours))
    read_row().delete()
    cleanup = runner.run_to_end(Cleanup.objects.get().pk)
    assert cleanup.items.get().outcome == outcome
    assert bucket.keys() == ({NAME} if outcome == "kept" else set())


def test_an_upload_under_way_is_not_barred_by_a_cleanup(bucket: Bucket) -> None:
    with default_storage.open(NAME, "w") as file:
        file.write("text")
        assert R2Object.objects.all().lock_for_deletion([NAME]) == 0
        R2Object.objects.update(updated_at=timezone.now() - timedelta(days=2))
        assert R2Object.objects.all().lock_for_deletion([NAME]) == 1


def test_an_upload_that_a_later_one_overtook_does_not_speak_for_it(bucket: Bucket) -> None:
    first = default_storage.open(NAME, "w")
    first.write("first")
    second = default_storage.open(NAME, "w")
    second.write("the second")
    second.close()
    with suppress(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(first._multipart, "complete", lambda **kwargs: 1 / 0)  # type: ignore[attr-defined]
        first.close()
    assert_row_matches_object(bucket, NAME)


def test_upload_that_ends_leaves_another_one_to_its_key_under_way(bucket: Bucket) -> None:
    first, second = default_storage.open(NAME, "w"), default_storage.open(NAME, "w")
    first.write("first")
    first.close()
    assert read_row().state == State.UPLOADING
    second.close()


def test_of_two_uploads_the_row_tells_the_one_that_ended_last(bucket: Bucket) -> None:
    first = default_storage.open(NAME, "w")
    first.write("first")
    second = default_storage.open(NAME, "w")
    second.write("the second")
    second.close()
    first.close()
    assert bucket.r2.read(NAME) == b"first"
    assert_row_matches_object(bucket, NAME)


def test_a_cleanup_beside_an_upload_leaves_no_object_without_a_row(bucket: Bucket) -> None:
    project = Project.objects.create(pk="proj_1")
    put()
    with default_storage.open("projects/proj_1/scenes/s1/media/late.mp4", "w") as file:
        file.write("text")
        project.delete()
        runner.run_to_end(Cleanup.objects.latest("created_at").pk)
    assert bucket.keys() <= {each.key for each in R2Object.objects.all()}


# Names


@pytest.mark.parametrize("name", ["cafe\u0301.mp4", "Å.txt", "\u1112\u1161\u11ab.mp4"])
def test_names_become_nfc(name: str, bucket: Bucket) -> None:
    composed = normalize("NFC", name)
    assert put(normalize("NFD", name)) == composed
    assert bucket.keys() == {composed}
    assert_row_matches_object(bucket, composed)


def test_one_name_in_two_spellings_makes_two_files(bucket: Bucket) -> None:
    assert put("cafe\u0301.mp4", b"1") != put("caf\u00e9.mp4", b"2")
    assert len(bucket.keys()) == 2


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", ".", ""])
def test_names_that_lead_outside_are_refused(name: str, bucket: Bucket) -> None:
    with pytest.raises(SuspiciousOperation):
        put(name)
    assert bucket.keys() == set()
    assert not R2Object.objects.exists()


@pytest.mark.parametrize("name", ["../x", "a/../x", "/x", "./x", "\\x"])
def test_a_crooked_name_opened_for_writing_has_the_row_of_its_object(
    name: str, bucket: Bucket
) -> None:
    with default_storage.open(name, "w") as file:
        file.write("text")
    assert bucket.keys() == {"x"}
    assert_row_matches_object(bucket, "x")


@pytest.mark.parametrize(
    "name",
    ["a\x01b", "tab\t", "a b+c%20&=?#;'\"<>", "😀", "-", "a.b/.c", "x" * 1000, "%00"],
)
def test_a_hostile_name_is_tracked_as_it_is_stored(name: str, bucket: Bucket) -> None:
    saved = put(name)
    assert bucket.keys() == {saved}
    assert_row_matches_object(bucket, saved)
    with default_storage.open(saved) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("name", ["nul\0", "surrogate\udcff", "new\nline", "x" * 1025])
def test_a_name_that_the_store_cannot_keep_is_refused(name: str, bucket: Bucket) -> None:
    with pytest.raises(Exception):  # noqa: B017
        put(name)
    with pytest.raises(Exception):  # noqa: B017
        default_storage.open(name, "wb").close()
    assert bucket.keys() == set()
    assert not R2Object.objects.filter(state__in=[State.STORED, State.UPLOADING]).exists()


@pytest.mark.parametrize("name", [".storage_audit/upload.txt", "./.storage_audit//a"])
def test_a_name_among_our_own_objects_is_refused(name: str, bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="reserved"):
        put(name)
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)


def test_deleting_our_own_objects_is_refused(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="reserved"):
        default_storage.delete(bucket_marker.MARKER_KEY)
    assert bucket.r2.read(bucket_marker.MARKER_KEY, bucket.name)


def test_a_key_is_built_by_the_one_current_key_format() -> None:
    assert key_for("proj_1", scene="s1", filename="take.mp4") == NAME


@pytest.mark.parametrize(
    "project_id", ["1", "proj_", "proj", "proj_proj_1", "proj_1/x", "", "p/../"]
)
def test_a_key_of_no_project_is_not_built(project_id: str) -> None:
    with pytest.raises(ValueError):
        key_for(project_id, scene="s1", filename="take.mp4")


@pytest.mark.parametrize("scene, filename", [("", "a"), ("a/b", "a"), ("s1", "")])
def test_a_key_with_a_bad_field_is_not_built(scene: str, filename: str) -> None:
    with pytest.raises(ValueError):
        key_for("proj_1", scene=scene, filename=filename)


@pytest.mark.parametrize("project_id", ["proj_1", "proj_a-b_c", "proj__", "proj_0_proj_1"])
def test_a_key_never_doubles_the_prefix(project_id: str) -> None:
    assert "proj_proj" not in key_for(project_id, scene="proj_s", filename="proj_1.mp4")


# Deleting, looking, linking


def test_deleting_takes_object_and_row(bucket: Bucket) -> None:
    put()
    default_storage.delete(NAME)
    assert bucket.keys() == set()
    assert not R2Object.objects.exists()
    assert not default_storage.exists(NAME)


def test_deleting_what_is_not_there_is_no_error(bucket: Bucket) -> None:
    default_storage.delete("absent.txt")


def test_deleting_spares_neighbours(bucket: Bucket) -> None:
    for name in ("a", "a-", "a/b", "a0", "aa", "A"):
        put(name)
    default_storage.delete("a")
    assert bucket.keys() == {"a-", "a/b", "a0", "aa", "A"}
    assert {each.key for each in R2Object.objects.all()} == bucket.keys()


def test_a_row_stays_with_its_object_when_that_does_not_go(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(s3, "delete_single", lambda bucket, key: s3.DELETED)
    with pytest.raises(StoreError, match="still in the bucket"):
        default_storage.delete(NAME)
    assert_row_matches_object(bucket, NAME)


def test_a_cleanup_deletes_a_file_when_the_store_cannot_be_reached(
    bucket: Bucket, settings: Settings, nobody: str
) -> None:
    put()
    usual = settings.STORAGE_AUDIT
    point_at(settings, ENDPOINT_URL=nobody)
    default_storage.delete(NAME)
    settings.STORAGE_AUDIT = usual
    assert bucket.keys() == {NAME}
    cleanup = run_until_idle(Cleanup.objects.get())
    assert (cleanup.status, bucket.keys()) == ("clean", set())


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_deletion_that_reaches_the_store_late_deletes_no_later_file(
    is_tracked: bool, bucket: Bucket, store: FaultyStore
) -> None:
    put()
    if not is_tracked:
        R2Object.objects.all().delete_without_signals()
    on_its_way = list[Forward]()

    def hold_up(request: Request, forward: Forward) -> Reply:
        on_its_way.append(forward)
        return Reply(500, error_xml("InternalError"))

    store.rules.append(rule_for(is_delete_single, hold_up))
    default_storage.delete(NAME)
    assert len(on_its_way) == 1
    run_until_idle(Cleanup.objects.get())
    store.rules.clear()
    default_storage.delete(NAME)
    assert bucket.keys() == set()
    saved = put()
    on_its_way[0]()
    assert bucket.keys() == {saved} != {NAME}
    CleanupItem.objects.update(unanswered_at=timezone.now() - STALE_CALL)
    assert put() == NAME


def die(*args: str) -> None:
    raise SystemExit


@pytest.mark.parametrize("by_cleanup", [True, False])
def test_a_key_stays_barred_after_a_process_died_that_deleted_its_file(
    by_cleanup: bool, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(s3, "delete_single", die)
        default_storage.delete(NAME)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")
    died = Cleanup.objects.get()
    if by_cleanup:
        Project.objects.create(pk="proj_1").delete()
        assert run_until_idle(Cleanup.objects.get(kind="project")).status == "clean"
    else:
        default_storage.delete(NAME)
    assert (bucket.keys(), R2Object.objects.count()) == (set(), 0)
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")
    died.make_due()
    assert run_until_idle(died).status == "clean"
    with pytest.raises(KeyBeingDeleted):
        default_storage.open(NAME, "w")


def test_file_stays_with_its_row_when_a_process_died_that_deleted_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps before its call: the cleanup that is left says why it keeps the file."""
    put()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(s3, "delete_single", die)
        default_storage.delete(NAME)
    cleanup = Cleanup.objects.get()
    assert run_until_idle(cleanup).status == "pending"
    cleanup.make_due()
    assert read_outcomes(run_until_idle(cleanup)) == {NAME: "kept"}
    assert "A new record names this file" in read_reason(cleanup, NAME)
    assert_row_matches_object(bucket, NAME)


def delete_and_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store has obeyed."""
    call = s3.delete_single

    def call_and_die(*args: str) -> None:
        call(*args)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(s3, "delete_single", call_and_die)
        default_storage.delete(NAME)


@pytest.mark.parametrize("is_another", [True, False])
def test_row_goes_with_its_file_though_the_process_died_that_deleted_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    put()
    delete_and_die(monkeypatch)
    if is_another:
        R2Object.objects.update(last_modified=timezone.now())
    cleanup = Cleanup.objects.get()
    cleanup.make_due()
    outcome = "kept" if is_another else "already_gone"
    assert read_outcomes(run_until_idle(cleanup)) == {NAME: outcome}
    assert R2Object.objects.exists() is is_another


@pytest.mark.parametrize("is_confirmed", [True, False])
def test_row_of_a_later_upload_stays_though_the_process_died_that_deleted_the_file(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, is_confirmed: bool
) -> None:
    """Behind the last look, its outcome unknown: the row has the facts of the file before."""
    put()
    delete_and_die(monkeypatch)
    original = settle_items.settle_items

    def upload_and_settle(*args: Any) -> None:
        if is_confirmed:
            R2Object.objects.update(updated_at=timezone.now())
        else:
            # On a machine whose clock is behind.
            died_at = CleanupItem.objects.get().unanswered_at
            R2Object.objects.update(state="upload_failed", updated_at=died_at)
        original(*args)

    monkeypatch.setattr(settle_items, "settle_items", upload_and_settle)
    cleanup = Cleanup.objects.get()
    cleanup.make_due()
    assert read_outcomes(run_until_idle(cleanup)) == {NAME: "kept"}
    assert R2Object.objects.exists()


def test_a_process_that_slept_before_its_deletion_left_deletes_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(delete_pipeline, "RECHECK_VALID_SECONDS", -1.0)
    with pytest.raises(DeadlinePassed):
        default_storage.delete(NAME)
    assert_row_matches_object(bucket, NAME)


def test_a_failed_row_stays_a_failed_one_when_it_cannot_be_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    Upload(bucket.name, NAME).begin().fail()
    etag = read_row().etag
    monkeypatch.setattr(s3, "delete_single", lambda bucket, key: s3.DELETED)
    with pytest.raises(StoreError):
        default_storage.delete(NAME)
    assert (read_row().state, read_row().etag) == (State.UPLOAD_FAILED, etag)
    assert etag


def test_file_of_an_upload_under_way_is_left_to_a_cleanup(
    bucket: Bucket, store: FaultyStore
) -> None:
    put()
    upload = Upload(bucket.name, NAME).begin()
    default_storage.delete(NAME)
    assert not store.find_requests(is_delete_single)
    upload.withdraw()
    assert read_outcomes(run_until_idle(Cleanup.objects.get())) == {NAME: "kept"}
    assert_row_matches_object(bucket, NAME)
    default_storage.open(NAME, "w").close()


def test_a_row_barred_by_a_cleanup_stays_barred_when_it_cannot_be_deleted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    R2Object.objects.update(state=State.DELETING)
    monkeypatch.setattr(s3, "delete_single", lambda bucket, key: s3.DELETED)
    with pytest.raises(StoreError):
        default_storage.delete(NAME)
    assert read_row().state == State.DELETING


def test_of_two_spellings_that_the_store_keeps_apart_one_is_deleted(bucket: Bucket) -> None:
    """Local R2 keeps them apart, as other S3 stores do; Cloudflare's R2 does not."""
    put("caf\u00e9.mp4")
    bucket.put("cafe\u0301.mp4")
    default_storage.delete("caf\u00e9.mp4")
    assert bucket.keys() == {"cafe\u0301.mp4"}
    assert not R2Object.objects.exists()


def test_existing(bucket: Bucket) -> None:
    put()
    assert default_storage.exists(NAME)
    assert not default_storage.exists(NAME[:-1])
    bucket.wipe()
    assert not default_storage.exists(NAME)


def test_links_are_signed_with_version_4_and_work(bucket: Bucket) -> None:
    name = put("projects/proj_1/scenes/s1/media/a b+é&.mp4")
    url = default_storage.url(name)
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert "/auto/s3/aws4_request" in query["X-Amz-Credential"][0]
    assert "AWSAccessKeyId" not in query
    assert bucket.r2.environment["R2_SECRET_ACCESS_KEY"] not in url
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request("GET", f"{parts.path}?{parts.query}")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"content")
    connection.close()


# Threads


def save_in_threads(names: list[str], storage: TrackedStorage) -> list[str]:
    start = threading.Barrier(len(names), timeout=20)

    def save(number: int) -> str:
        try:
            start.wait()
            saved: str = storage.save(names[number], ContentFile(f"{number}".encode()))
            return saved
        finally:
            connection.close()

    with ThreadPoolExecutor(len(names)) as threads:
        return list(threads.map(save, range(len(names))))


def test_threads_share_a_storage(bucket: Bucket) -> None:
    names = [f"projects/proj_{n}/scenes/s1/media/take.mp4" for n in range(8)]
    assert save_in_threads(names, TrackedStorage()) == names
    for number, name in enumerate(names):
        assert bucket.r2.read(name) == f"{number}".encode()
        assert_row_matches_object(bucket, name)


def test_files_saved_under_one_name_at_once_are_all_kept(bucket: Bucket) -> None:
    saved = save_in_threads([NAME] * 6, TrackedStorage())
    assert {bucket.r2.read(name) for name in saved} == {f"{n}".encode() for n in range(6)}
    assert bucket.keys() == set(saved)
    for name in saved:
        assert_row_matches_object(bucket, name)


def test_a_file_of_a_name_that_is_being_written_gets_another(bucket: Bucket) -> None:
    with default_storage.open(NAME, "w") as file:
        file.write("written bit by bit")
        other = put(content=b"saved at once")
    assert bucket.r2.read(NAME) == b"written bit by bit"
    assert bucket.r2.read(other) == b"saved at once"
    for name in (NAME, other):
        assert_row_matches_object(bucket, name)


def test_a_file_that_came_to_its_end_after_the_name_was_chosen_is_kept(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(content=b"first")
    monkeypatch.setattr(TrackedStorage, "get_available_name", lambda self, name, max_length: name)
    other = put(content=b"second")
    assert other != NAME
    assert (bucket.r2.read(NAME), bucket.r2.read(other)) == (b"first", b"second")
    for name in (NAME, other):
        assert_row_matches_object(bucket, name)


def test_a_file_is_kept_that_head_does_not_show(store: FaultyStore, bucket: Bucket) -> None:
    put(content=b"first")
    # One for the choice of the name, one before the upload.
    store.rules.append(rule_for(lambda request: request.method == "HEAD", Reply(404), times=2))
    other = put(content=b"second")
    assert other != NAME
    assert (bucket.r2.read(NAME), bucket.r2.read(other)) == (b"first", b"second")
    for name in (NAME, other):
        assert_row_matches_object(bucket, name)


def test_a_file_is_saved_again_when_its_object_is_missing(bucket: Bucket) -> None:
    put()
    bucket.r2.remove(NAME, bucket.name)
    assert put() == NAME
    assert_row_matches_object(bucket, NAME)


# Put together


def test_the_storage_is_the_default_one_and_follows_the_settings(
    bucket: Bucket, settings: Settings
) -> None:
    assert isinstance(storages["default"], TrackedStorage)
    point_at(settings, BUCKET="other")
    put()
    assert read_row().bucket == "other"
    assert NAME in bucket.r2.keys("other")
    bucket.r2.remove(NAME, "other")
