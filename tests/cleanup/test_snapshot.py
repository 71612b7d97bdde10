"""What a deletion keeps of its rows, and how they come back."""

import datetime as dt
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import partial
from threading import Barrier, BrokenBarrierError
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.db import connection, models, transaction
from django.db.models.signals import post_delete, post_save, pre_save
from pytest_django.fixtures import Settings

from storage_audit import signals
from storage_audit.cleanup import end_deletions
from storage_audit.cleanup import take_snapshot as take_module
from storage_audit.cleanup.models import Cleanup, Snapshot, SnapshotChunk, SnapshotFile
from storage_audit.cleanup.restore_rows import CannotRestore
from storage_audit.cleanup.restore_snapshot import Restored, restore_snapshot
from storage_audit.cleanup.snapshot_rows import JSON_NULL, latest_migrations
from storage_audit.cleanup.take_snapshot import snapshot_obstacle
from storage_audit.models import KnownProject
from tests.database import THREAD_TIMEOUT_SECONDS, with_own_connection

pytestmark = [pytest.mark.database, pytest.mark.usefixtures("transactional_db")]

# SQLite keeps 15 digits.
BUDGET = Decimal(
    "1234567.12345678" if connection.vendor == "sqlite" else "12345678901234567.123456789012"
)


@pytest.fixture(autouse=True)
def studio(settings: Settings, transactional_db: None) -> Iterator[Any]:
    """The tables of tests/studio; deleting one of its shows takes a snapshot."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.studio"]
    settings.STORAGE_AUDIT_PROJECT_MODEL = "studio.Show"
    settings.STORAGE_AUDIT = {**settings.STORAGE_AUDIT, "GRACE": dt.timedelta(hours=72)}
    apps.clear_cache()
    tables = [each for each in apps.get_app_config("studio").get_models() if not each._meta.proxy]
    with connection.schema_editor() as editor:
        for model in tables:
            editor.create_model(model)
    signals.connect_signals()
    yield importlib.import_module("tests.studio.models")
    with connection.schema_editor() as editor:
        for model in reversed(tables):
            editor.delete_model(model)


def dump_tables() -> dict[str, list[Any]]:
    """Every column of every table of the studio, as the database has it."""
    found = {}
    with connection.cursor() as cursor:
        for model in apps.get_app_config("studio").get_models(include_auto_created=True):
            meta = model._meta
            columns = ", ".join(f'"{field.column}"' for field in meta.local_concrete_fields)
            if meta.proxy:
                continue
            cursor.execute(f'SELECT {columns} FROM "{meta.db_table}"')
            rows = [[bytes(v) if isinstance(v, memoryview) else v for v in row] for row in cursor]
            found[meta.label] = sorted(rows, key=repr)
    return found


def restore(snapshot: Snapshot | None = None) -> Restored:
    with transaction.atomic():
        return restore_snapshot(snapshot or Snapshot.objects.get())


def latest() -> Snapshot:
    return Snapshot.objects.latest("created_at")


def create_show(studio: Any, pk: str = "proj_1", **values: Any) -> Any:
    return studio.Show.objects.create(**{"pk": pk, "slug": pk, **values})


def create_everything(studio: Any) -> Any:
    """A customer with two shows, and rows of each kind around them."""
    customer = studio.Customer.objects.create(name="c")
    show = create_show(
        studio,
        customer=customer,
        day=dt.date(2026, 2, 28),
        hour=dt.time(1, 2, 3, 456789),
        length=dt.timedelta(days=-1, microseconds=7),
        budget=BUDGET,
        ratio=0.1 + 0.2,
        token=UUID(int=7),
        secret=b"\x00\xff",
        data={"n": [1.5, None, "é"]},
        settings=JSON_NULL,
        title="",
        is_public=False,
    )
    film = studio.Film.objects.create(
        pk="proj_2", id="proj_2", slug="f", customer=customer, director="d"
    )
    editor, room = studio.Editor.objects.create(name="e"), studio.Room.objects.create(name="r")
    tag, playlist = studio.Tag.objects.create(name="t"), studio.Playlist.objects.create()
    other = create_show(studio, "proj_3")
    for each in (show, film, other):
        each.tags.add(tag)
        playlist.shows.add(each)
        clip = studio.Clip.objects.create(show=each, file="clips/a.mp4", editor=editor, room=room)
        cut = studio.Clip.objects.create(show=each, cut_from=clip)
        studio.Clip.objects.filter(pk=cut.pk).update(file=None)
        studio.Show.objects.filter(pk=each.pk).update(best_clip=clip)
        studio.Trailer.objects.create(show=each, text="t")
        studio.Poster.objects.create(show=each)
        studio.Banner.objects.create(show=each)
        studio.Comment.objects.create(about=each, text="of a show")
        studio.Comment.objects.create(about=cut, text="of a clip")
    duet = studio.Duet.objects.create(first=show, second=film)
    studio.Take.objects.create(duet=duet)
    studio.catch_all()
    return customer


@pytest.mark.parametrize("way", ["customer", "proxy", "child", "queryset"])
def test_deletion_and_its_undo_leave_all_tables_as_they_were(studio: Any, way: str) -> None:
    customer = create_everything(studio)
    before = dump_tables()
    origin = {
        "customer": customer,
        "proxy": studio.PublicShow.objects.get(pk="proj_1"),
        "child": studio.Film.objects.get(),
        "queryset": studio.Show.objects.filter(pk__in=["proj_1", "proj_2"]),
    }[way]
    if way == "queryset":
        assert list(origin)  # It was read before, and its rows were changed since.
        studio.Show.objects.filter(pk="proj_1").update(title="new")
        before = dump_tables()
    origin.delete()
    assert dump_tables() != before
    restored = restore()
    assert restored.left_out == []
    assert dump_tables() == before
    assert not SnapshotChunk.objects.exists() and not SnapshotFile.objects.exists()


def test_restored_project_is_noted_as_alive_and_signalled_as_raw(studio: Any) -> None:
    show = create_show(studio)
    seen = list[tuple[str, bool]]()

    def hear(instance: Any, raw: bool, signal: Any, **kwargs: Any) -> None:
        seen.append(("saved" if signal is post_save else "saving", raw))
        if signal is post_save:
            # As sites do: nothing that is restored too is made a second time.
            studio.Trailer.objects.get_or_create(show=instance, defaults={"text": "new"})

    studio.Trailer.objects.create(show=show, text="old")
    show.delete()
    assert KnownProject.objects.get().deleted_at
    for signal in (pre_save, post_save):
        signal.connect(hear, studio.Show)
    try:
        assert restore().rows == {"studio.Show": 1, "studio.Trailer": 1}
    finally:
        for signal in (pre_save, post_save):
            signal.disconnect(hear, studio.Show)
    assert seen == [("saving", True), ("saved", True)]
    assert studio.Trailer.objects.get().text == "old"
    assert KnownProject.objects.get().deleted_at is None


def test_values_are_those_of_the_database_and_not_of_the_instance(studio: Any) -> None:
    show = create_show(studio, title="stored")
    show.title = "never saved"
    show.delete()
    restore()
    assert studio.Show.objects.get().title == "stored"


def test_newer_row_with_the_same_key_is_not_overwritten(studio: Any) -> None:
    show = create_show(studio)
    clip = studio.Clip.objects.create(show=show)
    pk = clip.pk
    show.delete()
    other = create_show(studio, "proj_2")
    studio.Clip.objects.create(pk=pk, show=other)
    before = dump_tables()
    with pytest.raises(CannotRestore, match=rf"studio.Clip {pk} exists again"):
        restore()
    assert dump_tables() == before
    assert SnapshotChunk.objects.exists()
    studio.Clip.objects.all().delete()
    assert restore().rows == {"studio.Show": 1, "studio.Clip": 1}


def test_taken_unique_value_is_refused_with_the_names_of_model_and_field(studio: Any) -> None:
    create_show(studio, slug="s").delete()
    other = create_show(studio, "proj_2", slug="s")
    with transaction.atomic():
        with pytest.raises(CannotRestore, match="another row of studio.Show has the same slug"):
            restore_snapshot(Snapshot.objects.get())
        # The transaction is still usable.
        studio.Show.objects.filter(pk=other.pk).update(slug="t")
        restore_snapshot(Snapshot.objects.get())
    assert studio.Show.objects.count() == 2


def test_link_that_was_set_since_is_not_overwritten(studio: Any) -> None:
    show, other = create_show(studio), create_show(studio, "proj_2")
    first, second, third = (studio.Poster.objects.create(show=show, number=n) for n in range(3))
    show.delete()
    studio.Poster.objects.filter(pk=second.pk).update(show=other)
    studio.Poster.objects.filter(pk=third.pk).delete()
    restored = restore()
    found = dict(studio.Poster.objects.values_list("pk", "show_id"))
    assert found == {first.pk: "proj_1", second.pk: "proj_2"}
    assert restored.left_out == [
        f"Not linked again in studio.Poster.show: studio.Poster {second.pk}, {third.pk}, changed or"
        " deleted since the deletion."
    ]


def test_row_whose_other_parent_is_gone_for_good_is_left_out_with_its_own_rows(studio: Any) -> None:
    tag = studio.Tag.objects.create(name="t")
    show, other = create_show(studio), create_show(studio, "proj_2")
    show.tags.add(tag)
    duet = studio.Duet.objects.create(first=show, second=other)
    studio.Take.objects.create(duet=duet)
    show.delete()
    snapshot = latest()
    tag.delete()
    other.delete()
    latest().delete()
    restored = restore(snapshot)
    assert restored.rows == {"studio.Show": 1}
    assert len(restored.left_out) == 3
    assert f"Not restored: studio.Duet {duet.pk}, as the row in studio.Duet.second is gone." in (
        restored.left_out
    )


def test_link_to_a_row_that_is_gone_gets_what_its_deletion_would_have_done(studio: Any) -> None:
    editor = studio.Editor.objects.create(name="e")
    clip = studio.Clip.objects.create(show=create_show(studio), editor=editor)
    pk = clip.pk
    studio.Show.objects.get().delete()
    editor.delete()
    text = (
        "Restored without the link studio.Clip.editor: studio.Clip {}, as the linked row is gone."
    )
    assert restore().left_out == [text.format(pk)]
    assert studio.Clip.objects.get().editor is None


def test_row_that_needs_a_protected_row_is_refused(studio: Any) -> None:
    room = studio.Room.objects.create(name="r")
    studio.Clip.objects.create(show=create_show(studio), room=room)
    studio.Show.objects.get().delete()
    pk = room.pk
    room.delete()
    with pytest.raises(CannotRestore, match=rf"needs studio.Room {pk} in its field room"):
        restore()
    assert not studio.Show.objects.exists()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_child_of_two_deleted_shows_returns_with_the_second(studio: Any, order: list[int]) -> None:
    show, film = create_show(studio), studio.Film.objects.create(pk="proj_2", id="proj_2", slug="f")
    duet = studio.Duet.objects.create(first=show, second=film)
    studio.Take.objects.create(duet=duet)
    studio.Poster.objects.create(show=show)
    before = dump_tables()
    show.delete()
    first = latest()
    studio.Poster.objects.all().delete()
    film.delete()
    snapshots = [first, latest()]
    restored = [restore(snapshots[number]) for number in order]
    assert studio.Take.objects.count() == 1
    assert dump_tables() | {"studio.Poster": []} == before | {"studio.Poster": []}
    if order == [0, 1]:
        assert any(
            text.startswith("Not restored yet: studio.Duet") for text in restored[0].left_out
        )
    assert not any(text.startswith("Not restored") for text in restored[1].left_out)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_link_between_two_deletions_comes_back_with_the_second(
    studio: Any, order: list[int]
) -> None:
    """The poster lost its link to one show, and was deleted with another one's customer."""
    show, other = create_show(studio), create_show(studio, "proj_2")
    clip = studio.Clip.objects.create(show=other)
    studio.Show.objects.filter(pk=show.pk).update(best_clip=clip)
    before = dump_tables()
    other.delete()
    show.refresh_from_db()
    assert show.best_clip is None
    first = latest()
    show.delete()
    snapshots = [first, latest()]
    for number in order:
        restore(snapshots[number])
    assert dump_tables() == before


def test_child_of_a_deleted_row_that_waits_takes_its_parents_row_along(studio: Any) -> None:
    """A film whose row of its own waits leaves no show without it."""
    customer = studio.Customer.objects.create(name="c")
    film = studio.Film.objects.create(
        pk="proj_1", id="proj_1", slug="f", customer=customer, director="d"
    )
    studio.Clip.objects.create(show=film)
    before = dump_tables()
    film.delete()
    snapshot = latest()
    customer.delete()
    restored = restore(snapshot)
    assert restored.rows == {}
    assert not studio.Show.objects.exists()
    assert dump_tables() == before | {
        label: [] for label in ("studio.Customer", "studio.Show", "studio.Film", "studio.Clip")
    }


def test_deletion_that_kept_the_parents_row_is_undone(studio: Any) -> None:
    film = studio.Film.objects.create(pk="proj_1", id="proj_1", slug="f", director="d")
    before = dump_tables()
    with transaction.atomic():
        snapshot = take_module.take_snapshot(film)
        film.delete(keep_parents=True)
    assert restore(snapshot).rows == {"studio.Film": 1}
    assert dump_tables() == before


def test_snapshot_is_refused_once_an_app_was_migrated(studio: Any, settings: Settings) -> None:
    create_show(studio).delete()
    Snapshot.objects.update(migrations={"studio": "0001_initial"})
    with pytest.raises(CannotRestore, match="studio was migrated after the deletion"):
        restore()


def test_snapshot_is_refused_when_a_table_has_other_columns(studio: Any) -> None:
    create_show(studio).delete()
    chunk = SnapshotChunk.objects.get(model="studio.Show")
    chunk.rows = chunk.rows.replace('"title"', '"headline"')
    chunk.save()
    with pytest.raises(CannotRestore, match="studio.Show was migrated after the deletion"):
        restore()


def test_snapshot_names_the_latest_migration_of_each_app(studio: Any) -> None:
    create_show(studio).delete()
    assert Snapshot.objects.get().migrations == {"studio": ""}
    assert latest_migrations(["storage_audit"]) == {"storage_audit": "0001_initial"}


def test_snapshot_is_restored_only_once(studio: Any) -> None:
    create_show(studio).delete()
    restore()
    with pytest.raises(CannotRestore, match="already restored"):
        restore()


@pytest.mark.parametrize(("name", "limit"), [("MAX_ROWS", 3), ("MAX_BYTES", 100)])
def test_too_large_deletion_keeps_nothing(
    studio: Any, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take_module, name, limit)
    show = create_show(studio)
    for _number in range(3):
        studio.Clip.objects.create(show=show, file="clips/a.mp4")
    show.delete()
    snapshot = Snapshot.objects.get()
    assert snapshot.unavailable == "too_large"
    assert not SnapshotChunk.objects.exists() and not SnapshotFile.objects.exists()
    with pytest.raises(CannotRestore, match="too many rows or bytes"):
        restore()


def test_rows_that_the_site_deletes_by_other_means_make_an_undo_impossible(studio: Any) -> None:
    show = create_show(studio)
    studio.Invoice.objects.create(show=show)
    with transaction.atomic():
        show.delete()
        with connection.cursor() as cursor:
            cursor.execute('DELETE FROM "studio_invoice"')
    assert Snapshot.objects.get().unavailable == "database_cascade"


def test_cascades_of_the_database_are_an_obstacle_known_beforehand(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert snapshot_obstacle(studio.Customer) == snapshot_obstacle(studio.Show) == ""
    field = studio.Take._meta.get_field("duet")
    monkeypatch.setattr(take_module, "DATABASE_ACTIONS", [models.DO_NOTHING])
    monkeypatch.setattr(field.remote_field, "on_delete", models.DO_NOTHING)
    assert snapshot_obstacle(studio.Show) == "database_cascade"
    create_show(studio).delete()
    assert Snapshot.objects.get().unavailable == "database_cascade"


def test_field_whose_values_do_not_come_back_makes_an_undo_impossible(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shouting(models.TextField):  # type: ignore[type-arg]
        def value_to_string(self, obj: Any) -> str:
            return str(super().value_to_string(obj)).upper()

    field = studio.Show._meta.get_field("title")
    monkeypatch.setattr(field, "__class__", Shouting)
    create_show(studio, title="quiet").delete()
    assert Snapshot.objects.get().unavailable == "unreadable_values"


def test_restoring_needs_a_transaction_of_its_caller(studio: Any) -> None:
    create_show(studio).delete()
    with pytest.raises(AssertionError, match="transaction"):
        restore_snapshot(Snapshot.objects.get())


def test_undo_that_would_not_bring_the_project_back_is_refused(studio: Any) -> None:
    customer = studio.Customer.objects.create(name="c")
    pk = customer.pk
    create_show(studio, customer=customer).delete()
    customer.delete()
    cleanup = Cleanup.objects.get()
    with pytest.raises(
        CannotRestore, match=r"Project proj_1 can't come back.*studio.Show.customer"
    ):
        end_deletions.undo_deletion(cleanup)
    cleanup.refresh_from_db()
    assert (cleanup.status, SnapshotChunk.objects.count()) == ("pending", 1)
    assert KnownProject.objects.get(pk="proj_1").kept_for == "hold"
    studio.Customer.objects.create(pk=pk, name="c")
    end_deletions.undo_deletion(cleanup)
    assert studio.Show.objects.get().customer_id == pk


def test_field_that_cannot_be_read_stops_no_deletion(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> str:
        raise ValueError("no value of mine")

    show = create_show(studio, title="t")
    monkeypatch.setattr(
        studio.Show._meta.get_field("title"), "from_db_value", refuse, raising=False
    )
    show.delete()
    assert Snapshot.objects.get().unavailable == "unreadable_values"


@pytest.mark.only_on("postgresql")
def test_no_value_of_a_row_that_the_database_refuses_is_logged(
    studio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    create_show(studio, title="secret words").delete()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE studio_show ADD CONSTRAINT no_secrets CHECK (title = 'public')")
    with pytest.raises(CannotRestore, match="the database refuses rows of studio.Show"):
        restore()
    assert "no_secrets" in caplog.text
    assert "secret words" not in caplog.text


@pytest.mark.only_on("postgresql")
def test_first_requests_of_two_projects_of_a_call_do_not_deadlock(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = studio.Customer.objects.create(name="c")
    for pk in ("proj_1", "proj_2"):
        create_show(studio, pk, customer=customer)
    customer.delete()
    Cleanup.objects.update(held_until=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    both, end_hold = Barrier(2), Cleanup.end_hold

    def end_together(cleanup: Cleanup) -> None:
        with suppress(BrokenBarrierError):  # The other one waits for this one to commit.
            both.wait(2)
        end_hold(cleanup)

    monkeypatch.setattr(Cleanup, "end_hold", end_together)

    def begin(cleanup: Cleanup) -> None:
        with transaction.atomic():
            assert cleanup.acquire_lease()
        with transaction.atomic():
            cleanup.begin_sending()

    with ThreadPoolExecutor(2) as threads:
        begun = [
            threads.submit(with_own_connection(partial(begin, each)))
            for each in Cleanup.objects.all()
        ]
        for each in begun:
            each.result(THREAD_TIMEOUT_SECONDS)
    assert Cleanup.objects.filter(first_request_at__isnull=False).count() == 2
    assert not Snapshot.objects.exists()


def test_undo_of_one_project_brings_back_all_that_went_with_its_customer(studio: Any) -> None:
    customer = studio.Customer.objects.create(name="c")
    for number in range(3):
        create_show(studio, f"proj_{number}", customer=customer)
    before = dump_tables()
    customer.delete()
    one = Cleanup.objects.get(project_id="proj_1")
    end_deletions.undo_deletion(one)
    assert dump_tables() == before
    assert set(Cleanup.objects.values_list("status", flat=True)) == {"undone"}
    assert set(KnownProject.objects.values_list("kept_for", "deleted_at")) == {("", None)}


def test_deletion_that_is_rolled_back_leaves_nothing_held(studio: Any) -> None:
    show = create_show(studio)
    with transaction.atomic():
        studio.Show.objects.get().delete()
        transaction.set_rollback(True)
    with transaction.atomic():
        with transaction.atomic():
            studio.Show.objects.get().delete()
            transaction.set_rollback(True)
        studio.Poster.objects.create(show=show)
    assert not Snapshot.objects.exists() and not Cleanup.objects.exists()
    assert KnownProject.objects.get().kept_for == ""
    show.save()


def test_project_that_a_receiver_deletes_with_another_one_is_undone_by_itself(studio: Any) -> None:
    show, other = create_show(studio), create_show(studio, "proj_2")
    studio.Clip.objects.create(show=other)

    def take_along(instance: Any, **kwargs: Any) -> None:
        if instance.slug == "proj_1":
            studio.Show.objects.filter(pk="proj_2").delete()

    before = dump_tables()
    post_delete.connect(take_along, studio.Show)
    try:
        show.delete()
    finally:
        post_delete.disconnect(take_along, studio.Show)
    assert Snapshot.objects.count() == 2
    for cleanup in Cleanup.objects.all():
        end_deletions.undo_deletion(cleanup)
    assert dump_tables() == before
