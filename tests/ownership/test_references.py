"""Files that rows of other tables name, and files that a project's rows named alone."""

from datetime import timedelta
from typing import Any
from unicodedata import normalize

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage
from django.db import IntegrityError, OperationalError, connection
from pytest_django import Settings
from storages.backends.s3 import S3Storage

from devtools.http_reply import Reply
from storage_audit import tasks
from storage_audit.alerts import alert_rules
from storage_audit.alerts.models import Alert
from storage_audit.cleanup import named_files, project_uploads, requests, used_files
from storage_audit.cleanup.models import BulkJob, Cleanup
from storage_audit.cleanup.worker_turn import Turn
from storage_audit.conf import conf
from storage_audit.lookup.object_rules import explain_object
from storage_audit.lookup.search import look_up
from storage_audit.models import Project, R2Object
from storage_audit.ownership import references, referring_columns
from storage_audit.ownership.bucket_marker import CannotConclude
from storage_audit.ownership.references import FileReferences, find_key_references
from storage_audit.read_in_steps import read_with_timeout
from storage_audit.request_origin import Origin, use_origin
from storage_audit.storage import TrackedStorage
from tests.admin_client import DASHBOARD, admin_url, page_text, run_action, superuser_client
from tests.builders import create_orphans
from tests.faults.matching import is_anything, rule_for
from tests.faults.proxy import FaultyStore
from tests.findings.orphans import delete_orphans
from tests.keys import KEY, OTHER_KEY
from tests.owner_models import drop_library_table, library_rows
from tests.promises import (
    act_before_batch,
    assign_object,
    check_promises,
    clean_up_project,
    create_projects,
    end_pause,
    hide_key,
    make_due,
    read_outcomes,
    read_reason,
    record_deleted_projects,
    request_cleanup,
    run_again,
    run_until_idle,
)
from tests.real_bucket import Bucket
from tests.site_settings import run_system_checks

pytestmark = pytest.mark.database

Status = Cleanup.Status


def table(name: str) -> str:
    return str(apps.get_model("library", name)._meta.db_table)


def test_a_file_that_a_copied_row_names_is_kept(library: Bucket) -> None:
    create_projects("proj_1", "proj_2")
    key, other = library.upload("proj_1", "a.mp4"), library.upload("proj_1", "b.mp4")
    library_rows("Clip").create(project_id="proj_1", file=other)
    clip = library_rows("Clip").create(project_id="proj_1", file=key)
    clip.pk, clip.project_id = None, "proj_2"
    clip.save()
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept", other: "deleted"}
    assert f"Kept, because library.Clip {clip.pk}, field file uses it." in read_reason(cleanup, key)
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert clip.file.open().read() == b"take"
    assert f"Kept, because library.Clip {clip.pk}, field file uses it." in why_of(key)


def why_of(key: str) -> str:
    [facts] = look_up(key).objects
    return explain_object(facts).text


@pytest.mark.parametrize(
    "table_name, field, name, is_used",
    [
        ("Poster", "file", "{key}", True),
        ("Copy", "file", "{key}", True),
        ("Copy", "file", "{short}", True),
        ("Copy", "backup", "{key}", False),
        ("Copy", "note", "{key}", False),
        ("Clip", "file", "{short}", False),
        ("Legacy", "file", "{key}", True),
    ],
)
def test_every_field_whose_storage_writes_to_the_bucket_is_asked(
    library: Bucket, table_name: str, field: str, name: str, is_used: bool
) -> None:
    key = library.upload("proj_1")
    given = name.format(key=key, short=key.removeprefix("projects/"))
    library_rows(table_name).create(**{field: given})
    plan = run_until_idle(requests.request_preview("proj_1")[0])
    assert read_outcomes(plan) == {key: "kept" if is_used else "to_delete"}


@pytest.mark.parametrize("name", ["/{}", "./{}", "projects//{}", "x/../{}", "\\"])
@pytest.mark.parametrize("table_name", ["Clip", "Copy"])
def test_name_that_the_storage_normalises_keeps_its_file(
    library: Bucket, table_name: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1", "proj_2")
    key = library.upload("proj_1")
    short = key.removeprefix("projects/")
    monkeypatch.setattr(references, "ROWS_PER_QUERY", 1)
    library_rows(table_name).create(file="/of/another")
    odd = key.replace("/", "\\") if name == "\\" else name.format(short)
    if table_name == "Clip" and name != "projects//{}":
        odd = odd.replace(short, key)
    library_rows(table_name).create(file=odd)
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


def test_odd_name_in_another_spelling_keeps_its_file(library: Bucket) -> None:
    key = "projects/proj_1/scenes/s/media/\u00e9.mp4"
    library.put(key)
    create_projects("proj_1")
    library_rows("Poster").create(file="/" + normalize("NFD", key))
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


@pytest.mark.parametrize("before", ["/", "./"])
def test_odd_name_is_found_just_before_the_deletion(
    library: Bucket, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = library.upload("proj_1")
    act_before_batch(monkeypatch, lambda: library_rows("Clip").create(file=before + key))
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


class Wrapper(Storage):
    """It names no bucket, as one that counts or caches."""

    def __init__(self) -> None:
        self.inner = TrackedStorage()

    def _open(self, name: str, mode: str = "rb") -> Any:
        return self.inner._open(name, mode)


def by_another_host_name() -> S3Storage:
    host = conf().endpoint_url.replace("127.0.0.1", "localhost")
    return S3Storage(bucket_name=conf().bucket, endpoint_url=host)


def without_endpoint() -> S3Storage:
    return S3Storage(bucket_name=conf().bucket)


def field_of(model: str, name: str = "file") -> Any:
    return apps.get_model("library", model)._meta.get_field(name)


def in_another_bucket() -> S3Storage:
    return field_of("Copy", "backup").storage


@pytest.mark.parametrize(
    "storage, is_asked",
    [
        (by_another_host_name, True),
        (without_endpoint, True),
        (Wrapper, True),
        (in_another_bucket, False),
        (FileSystemStorage, False),
        (InMemoryStorage, False),
    ],
)
def test_every_field_is_asked_whose_storage_is_not_known_to_be_elsewhere(
    library: Bucket, monkeypatch: pytest.MonkeyPatch, storage: Any, is_asked: bool
) -> None:
    create_projects("proj_1")
    key = library.upload("proj_1")
    monkeypatch.setattr(field_of("Clip"), "storage", storage())
    clip = library_rows("Clip").create(file=key)
    if storage is Wrapper:
        assert clip.file.open().read() == b"take"
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept" if is_asked else "deleted"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("table_name, is_whole", [("Poster", True), ("Copy", False)])
def test_a_name_in_another_spelling_keeps_the_file(
    library: Bucket, form: Any, table_name: str, is_whole: bool
) -> None:
    key = "projects/proj_1/scenes/s/media/\u00e9.mp4"
    library.put(key)
    create_projects("proj_1")
    name = normalize(form, key)
    library_rows(table_name).create(file=name if is_whole else name.removeprefix("projects/"))
    assert read_outcomes(run_until_idle(requests.request_preview("proj_1")[0])) == {key: "kept"}
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


def test_a_name_without_the_location_is_found_just_before_the_deletion(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = library.upload("proj_1")
    short = key.removeprefix("projects/")
    act_before_batch(monkeypatch, lambda: library_rows("Copy").create(file=short))
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


def test_a_dry_run_does_not_count_rows_that_go_with_the_project(library: Bucket) -> None:
    key, other, third = (library.upload("proj_1", name) for name in ("a.mp4", "b.mp4", "c.mp4"))
    library_rows("Clip").create(project_id="proj_1", file=key)
    # Named by a row that stays, between two that go.
    for project_id in ("proj_1", None, "proj_1"):
        library_rows("Clip").create(project_id=project_id, file=third)
    library_rows("Poster").create(project_id="proj_1", file=other)
    plan = run_until_idle(requests.request_preview("proj_1")[0])
    # A poster stays, without its project.
    stay = {other: "kept", third: "kept"}
    assert read_outcomes(plan) == {key: "to_delete", **stay}
    forget(request_cleanup("proj_1"))
    requests.approve_or_retry(plan)
    assert read_outcomes(run_until_idle(plan)) == {key: "deleted", **stay}


def forget(cleanup: Cleanup) -> None:
    """A plan runs only when no other cleanup of the deletion is open."""
    cleanup.delete()


def test_a_plan_that_waited_is_checked_again(library: Bucket) -> None:
    key = library.upload("proj_1")
    plan = run_until_idle(requests.request_preview("proj_1")[0])
    assert read_outcomes(plan) == {key: "to_delete"}
    forget(request_cleanup("proj_1"))
    library_rows("Poster").create(file=key)
    requests.approve_or_retry(plan)
    assert read_outcomes(run_until_idle(plan)) == {key: "kept"}


@pytest.mark.parametrize("troubles", [0, 1])
def test_a_blocked_plan_that_is_approved_is_checked_again(
    library: Bucket, store: FaultyStore, settings: Settings, troubles: int
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"LIMIT_OBJECTS": 0}
    key = library.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    # Its column has no index, so only the look-up for the plan finds this row.
    library_rows("Poster").create(file=key)
    requests.approve_or_retry(cleanup)
    if troubles:
        store.rules.append(rule_for(is_anything, Reply(503)))
        assert run_until_idle(cleanup).status == Status.RETRYING
        store.rules.clear()
        make_due(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "kept"}


def test_an_orphan_that_a_row_names_is_kept(library: Bucket, settings: Settings) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"ORPHAN_AGE": timedelta(microseconds=1)}
    record_deleted_projects("proj_9")
    library_rows("Poster").create(file=KEY)
    cleanup = delete_orphans(create_orphans(library, KEY, OTHER_KEY))
    assert read_outcomes(cleanup) == {KEY: "kept", OTHER_KEY: "deleted"}


def test_confirmations_name_the_rows_that_use_a_file(library: Bucket) -> None:
    kept, own = library.upload("proj_1", "a.mp4"), library.upload("proj_1", "b.mp4")
    clip = library_rows("Clip").create(file=kept)
    library_rows("Clip").create(file=own, project_id="proj_1")
    for text in (
        page_text(superuser_client().get(admin_url("project", "delete", "proj_1"))),
        run_action(superuser_client(), "project", "force_delete", "proj_1"),
    ):
        assert f"Kept: {kept} is used by library.Clip {clip.pk}, field file." in text
        assert f"Kept: {own}" not in text
    row = R2Object.objects.get(key=kept)
    text = page_text(superuser_client().get(admin_url("r2object", "delete", row.pk)))
    assert f"Deleted although in use: {kept} is used by library.Clip {clip.pk}" in text


def test_a_person_may_delete_a_file_that_a_row_names(library: Bucket) -> None:
    key = library.upload("proj_1")
    library_rows("Clip").create(file=key)
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "delete it under “Files”" in read_reason(cleanup, key)
    R2Object.objects.get(key=key).delete()
    assert read_outcomes(run_until_idle(Cleanup.objects.get(kind="objects"))) == {key: "deleted"}


def test_a_row_saved_before_the_batch_keeps_its_file(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = library.upload("proj_1")
    act_before_batch(monkeypatch, lambda: library_rows("Clip").create(file=key))
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


def lose(library: Bucket, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Cleanup]:
    """A file that is deleted although a row names it, which no index could find in time."""
    key = library.upload("proj_1")
    act_before_batch(monkeypatch, lambda: library_rows("Poster").create(file=key))
    return key, clean_up_project("proj_1")


def test_a_row_saved_too_late_is_an_alert(library: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cleanup = lose(library, monkeypatch)
    poster = f"library.Poster {library_rows('Poster').get().pk}, field file"
    assert read_outcomes(cleanup) == {key: "deleted"}
    assert f"Deleted, but {poster} still uses it" in read_reason(cleanup, key)
    assert cleanup.events.filter(step="verify", message__contains=poster).exists()
    alert = Alert.objects.get()
    assert (alert.kind, alert.cleanup) == (Alert.Kind.LOST, cleanup)
    assert poster in alert.summary and f"{poster} still uses it" in why_of(key)


@pytest.mark.parametrize("settled_by", ["upload", "row"])
def test_the_alert_ends_when_the_row_is_settled(
    library: Bucket, monkeypatch: pytest.MonkeyPatch, settled_by: str
) -> None:
    key, cleanup = lose(library, monkeypatch)
    alert_rules.update_alerts()
    assert Alert.objects.open().exists()
    assert "file in use deleted" in page_text(superuser_client().get(DASHBOARD))
    if settled_by == "row":
        library_rows("Poster").delete()
    else:
        assert library.upload("proj_1") == key
    alert_rules.update_alerts()
    assert not Alert.objects.open().exists()


def test_a_batch_waits_while_the_database_takes_too_long(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = library.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch:
        patch.setattr(used_files, "RECHECK_SECONDS", -1.0)
        patch.setattr(references, "read_with_timeout", too_long)
        patch.setattr(used_files, "keep_used_files", lambda work: [])
        cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.RETRYING and "library.Clip.file" in cleanup.message
    assert library.keys() == {key}
    assert read_outcomes(run_again(cleanup)) == {key: "deleted"}


def test_a_batch_gets_smaller_until_the_database_answers_in_time(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [library.upload("proj_1", f"{number}.mp4") for number in range(9)]

    def answer_for_few(bucket: str, named: list[tuple[str, str]], seconds: float) -> FileReferences:
        if len(named) > 2:
            raise TimeoutError("library.Clip.file")
        return find_key_references(bucket, named, seconds)

    monkeypatch.setattr(used_files, "find_key_references", answer_for_few)
    cleanup = clean_up_project("proj_1")
    assert (cleanup.status, cleanup.attempts) == (Status.CLEAN, 0)
    assert read_outcomes(cleanup) == dict.fromkeys(keys, "deleted")
    assert cleanup.events.filter(step="batch_size", message__contains="library.Clip.file").exists()


def too_long(query: Any, seconds: float) -> list[Any]:
    raise OperationalError


def test_a_question_that_takes_too_long_is_stopped(library: Bucket) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)"
    slow = f"({numbers} SELECT COUNT(*) FROM n)"
    library_rows("Clip").create(file="a")
    with pytest.raises(OperationalError):
        read_with_timeout(library_rows("Clip").extra(select={"n": slow}).values_list("n"), 0.1)
    assert len(read_with_timeout(library_rows("Clip"), 0.1)) == 1


@pytest.mark.parametrize("name", ["Poster", "Legacy"])
def test_a_table_that_cannot_be_read_needs_approval(library: Bucket, name: str) -> None:
    key = library.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    # Also where a person lifted the limits before anybody knew of that.
    Cleanup.objects.update(limits_waived_by="anna")
    drop_library_table(name)
    cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.BLOCKED
    assert f"library.{name}.file ({table(name)}) cannot be read" in cleanup.message
    assert library.keys() == {key}
    requests.approve_or_retry(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "deleted"}


def test_a_table_that_is_lost_before_the_batch_needs_approval(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = library.upload("proj_1")
    cleanup = request_cleanup("proj_1")
    with monkeypatch.context() as patch:
        patch.setattr(references, "read_with_timeout", too_long)
        patch.setattr(used_files, "keep_used_files", lambda work: [])
        cleanup = run_until_idle(cleanup)
    assert cleanup.status == Status.BLOCKED and "library.Clip.file" in cleanup.message
    assert cleanup.planned_at and library.keys() == {key}
    requests.approve_or_retry(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "deleted"}


@pytest.mark.parametrize("entry", ["library.Copy.note", "tests.library.models.keys_in_data"])
def test_the_setting_names_further_fields_and_functions(
    library: Bucket, settings: Settings, entry: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"REFERENCES": [entry]}
    key = library.upload("proj_1")
    copy = library_rows("Copy").create(note=key, data={"key": key})
    cleanup = clean_up_project("proj_1")
    assert read_outcomes(cleanup) == {key: "kept"}
    row = f"library.Copy {copy.pk}, field note" if "note" in entry else f"data of copy {copy.pk}"
    assert row in read_reason(cleanup, key)


@pytest.mark.parametrize("name", ["{key}", "{short}"])
def test_file_field_in_the_setting_is_read_with_its_location(
    library: Bucket, settings: Settings, name: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"REFERENCES": ["library.Copy.backup"]}
    key = library.upload("proj_1")
    library_rows("Copy").create(backup=name.format(key=key, short=key.removeprefix("projects/")))
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}


@pytest.mark.parametrize(
    "entry, why",
    [
        ("library.Copy.nothing", "no such field"),
        ("library.Copy.data", "not a text field"),
        ("library.Nothing.file", "no such function"),
        ("tests.library.models.Nothing", "no such function"),
        ("tests.library.models.__name__", "not a function"),
        ("nothing", "no such function"),
    ],
)
def test_a_wrong_entry_is_an_error(
    library: Bucket, settings: Settings, entry: str, why: str
) -> None:
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"REFERENCES": [entry]}
    with pytest.raises(ImproperlyConfigured, match=why):
        referring_columns.declared_references()
    assert entry in run_system_checks()["storage_audit.E006"].msg


@pytest.mark.parametrize(
    "answer", [lambda keys: 1 / 0, lambda keys: keys, lambda keys: [(keys, "row")], lambda keys: 1]
)
def test_a_function_that_fails_needs_approval(
    library: Bucket, settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    entry = "tests.library.models.keys_in_data"
    settings.STORAGE_AUDIT = settings.STORAGE_AUDIT | {"REFERENCES": [entry]}
    monkeypatch.setattr(entry, answer)
    library.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED and entry in cleanup.message


def test_a_column_without_an_index_is_a_warning_that_says_what_to_do(library: Bucket) -> None:
    warning = run_system_checks(databases=["default"])["storage_audit.W006"]
    assert "library.Poster.file" in warning.msg and "library.Clip.file" not in warning.msg
    assert warning.hint
    line = warning.hint[warning.hint.index("CREATE INDEX") :].partition(";")[0]
    with connection.cursor() as cursor:
        cursor.execute(line)
    assert "storage_audit.W006" not in run_system_checks(databases=["default"])


def test_partial_index_is_no_index(library: Bucket) -> None:
    with connection.cursor() as cursor:
        some = f"{table('Poster')} (file) WHERE project_id = 'proj_1'"
        cursor.execute(f"CREATE INDEX of_some_posters ON {some}")
    assert (
        "library.Poster.file" in run_system_checks(databases=["default"])["storage_audit.W006"].msg
    )


@pytest.mark.only_on("postgresql")
def test_index_whose_build_failed_is_no_index(library: Bucket) -> None:
    for _each in range(2):
        library_rows("Poster").create(file="posters/a.png")
    with connection.cursor() as cursor, pytest.raises(IntegrityError):
        cursor.execute(f"CREATE UNIQUE INDEX CONCURRENTLY failed ON {table('Poster')} (file)")
    assert (
        "library.Poster.file" in run_system_checks(databases=["default"])["storage_audit.W006"].msg
    )


def still(project_id: str, name: str = "a.png") -> str:
    row = library_rows("Still").create(project_id=project_id)
    row.file.save(name, ContentFile(b"still"))
    return str(row.file.name)


KEPT_ONE = "Kept: 1 file that this project used."


def test_files_that_only_rows_named_are_said_and_kept(
    library: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    create_projects("proj_1", "proj_2")
    key, other = still("proj_1"), still("proj_2", "b.png")
    assert f"No key format matches {key}" in caplog.text
    library_rows("Still").create(project_id="proj_1", file="stills/gone.png")
    library_rows("Still").create(project_id="proj_1")
    library_rows("Clip").create(project_id="proj_1", file=library.upload("proj_1"))
    cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.CLEAN_WITH_KEPT
    assert (cleanup.kept, cleanup.kept_bytes) == (1, len(b"still"))
    kept = {key: "kept", "stills/gone.png": "already_gone"}
    assert {name: how for name, how in read_outcomes(cleanup).items() if how != "deleted"} == kept
    assert KEPT_ONE in cleanup.events.get(step="closed").message
    assert "library.Still" in read_reason(cleanup, key)
    assert library.keys() == {key, other}


def test_a_dry_run_says_which_files_would_be_kept(library: Bucket) -> None:
    create_projects("proj_1")
    key = still("proj_1")
    assert read_outcomes(run_until_idle(requests.request_preview("proj_1")[0])) == {key: "kept"}


def test_a_file_that_a_person_gave_to_the_project_goes_with_it(library: Bucket) -> None:
    create_projects("proj_1")
    key = still("proj_1")
    R2Object.objects.filter(key=key).delete_without_signals()
    assign_object(library, key, "proj_1")
    assert read_outcomes(clean_up_project("proj_1")) == {key: "deleted"}


def test_what_rows_named_outlasts_a_plan_that_was_stopped(
    library: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_projects("proj_1")
    key = still("proj_1")

    def refuse(work: Turn) -> None:
        raise CannotConclude("another bucket")

    with monkeypatch.context() as patch:
        patch.setattr(project_uploads, "record_unfinished_uploads", refuse)
        cleanup = clean_up_project("proj_1")
    assert cleanup.status == Status.BLOCKED
    requests.approve_or_retry(cleanup)
    assert read_outcomes(run_until_idle(cleanup)) == {key: "kept"}


def test_file_that_only_a_row_named_is_checked_again(
    library: Bucket, store: FaultyStore, with_pauses: None
) -> None:
    create_projects("proj_1")
    key = still("proj_1")
    cleanup = request_cleanup("proj_1")
    hide_key(store, key)
    cleanup = run_until_idle(cleanup)
    store.rules.clear()
    cleanup = end_pause(cleanup)
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "library.Still" in read_reason(cleanup, key)
    check_promises(library)


def test_a_field_whose_keys_no_format_reads_is_a_warning(library: Bucket) -> None:
    warning = run_system_checks()["storage_audit.W009"]
    assert "library.Still.file, such as stills/" in warning.msg


@pytest.mark.parametrize("storage", [in_another_bucket, Wrapper])
def test_field_that_may_be_of_another_bucket_is_no_warning(
    library: Bucket, monkeypatch: pytest.MonkeyPatch, storage: Any
) -> None:
    monkeypatch.setattr(field_of("Still"), "storage", storage())
    assert "storage_audit.W009" not in run_system_checks()


def test_the_field_of_a_function_is_tried_with_a_sample(library: Bucket) -> None:
    [clip] = [each for each in named_files.project_file_columns() if each.model.__name__ == "Clip"]
    key = named_files.sample_key(clip)
    assert key == "projects/proj_1/scenes/s1/media/file.mp4"


def test_rows_that_outlive_their_project_name_nothing(library: Bucket) -> None:
    create_projects("proj_1")
    library_rows("Poster").create(project_id="proj_1", file="posters/a.png")
    library.put("posters/a.png")
    assert clean_up_project("proj_1").status == Status.CLEAN


def test_a_copied_row_that_is_deleted_speaks_of_the_file_only_once_its_owner_is_gone(
    library: Bucket,
) -> None:
    key = library.upload("proj_1")
    create_projects("proj_2", "proj_3")
    library_rows("Clip").create(project_id="proj_2", file=key)
    library_rows("Clip").create(project_id="proj_3", file=key)
    # It goes with the project that it belongs to.
    assert read_outcomes(clean_up_project("proj_2")) == {}
    assert read_outcomes(clean_up_project("proj_1")) == {key: "kept"}
    cleanup = clean_up_project("proj_3")
    assert read_outcomes(cleanup) == {key: "kept"}
    assert "the file name belongs to proj_1, which does not exist" in read_reason(cleanup, key)


@pytest.mark.parametrize("owner, other", [("proj_1", "proj_2"), ("proj_2", "proj_1")])
def test_file_of_a_project_that_is_deleted_in_the_same_call_is_left_to_its_own_cleanup(
    library: Bucket, owner: str, other: str
) -> None:
    create_projects(owner, other)
    key = library.upload(owner)
    library_rows("Clip").create(project_id=other, file=key)
    Project.objects.filter(pk__in=[owner, other]).delete()
    for project_id in (other, owner):
        cleanup = run_until_idle(Cleanup.objects.get(project_id=project_id, kind="project"))
        assert cleanup.status == Status.CLEAN
        assert read_outcomes(cleanup) == ({key: "deleted"} if project_id == owner else {})


@pytest.mark.parametrize("owner, other", [("proj_1", "proj_2"), ("proj_2", "proj_1")])
def test_file_of_a_project_that_was_deleted_just_before_is_left_to_its_own_cleanup(
    library: Bucket, owner: str, other: str
) -> None:
    create_projects(owner, other)
    key = library.upload(owner)
    library_rows("Clip").create(project_id=other, file=key)
    cleanups = [request_cleanup(project_id) for project_id in (owner, other)]
    later, first = run_until_idle(cleanups[1]), run_until_idle(cleanups[0])
    assert (later.status, first.status) == (Status.CLEAN, Status.CLEAN)
    assert (read_outcomes(later), read_outcomes(first)) == ({}, {key: "deleted"})


# A row that needs its project


def test_bulk_job_leaves_out_a_project_that_the_database_keeps_at_the_commit(
    library: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    create_projects("proj_1", "proj_2", "proj_3")
    invoice = library_rows("Invoice").create(project_id="proj_2")
    User.objects.create_superuser("anna")
    with use_origin(Origin("anna")):
        job = BulkJob.objects.request(BulkJob.Action.DELETE, ["proj_1", "proj_2", "proj_3"])
    tasks.run_job(str(job.pk))
    assert list(Project.objects.values_list("pk", flat=True)) == ["proj_2"]
    deleted_ids = Cleanup.objects.values_list("project_id", flat=True)
    assert set(deleted_ids) == {"proj_1", "proj_3"}
    assert f"Bulk job {job.pk} skips project proj_2" in caplog.text
    assert "IntegrityError" in caplog.text
    shown = page_text(superuser_client().get(admin_url("bulkjob", "change", job.pk)))
    assert "Not deleted by this bulk job: 1. The log says why." in shown
    invoice.delete()
