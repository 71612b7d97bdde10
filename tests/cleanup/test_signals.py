"""What a deleted row leaves behind: one cleanup if it is committed, nothing if it is not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.sites import AdminSite
from django.contrib.auth.models import User
from django.db import connection, models, transaction
from django.db.models.signals import post_delete, pre_delete
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django_q.models import OrmQ
from pytest_django import Settings

from storage_audit import signals
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.models import KnownProject, Project, R2Object
from storage_audit.request_origin import Origin, use_origin
from tests.builders import track_keys
from tests.database import Rollback, another_database
from tests.owner_models import forget_model
from tests.promises import force_delete
from tests.queue.clusters import list_enqueued_ids

pytestmark = pytest.mark.usefixtures("transactional_db")
Kind, Status, Trigger = Cleanup.Kind, Cleanup.Status, Cleanup.Trigger


def keys_of(cleanup: Cleanup) -> set[str]:
    return set(cleanup.items.values_list("key", flat=True))


def queries(action: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as captured:
        action()
    return len(captured)


@contextmanager
def proxy_of(model: type[models.Model]) -> Iterator[Any]:
    """A proxy of the model, as one that an application defines late, such as in its admin."""

    class Meta:
        proxy = True
        app_label = "storage_audit"

    name = f"Proxy{model.__name__}"
    proxy = type(name, (model,), {"__module__": __name__, "Meta": Meta})
    try:
        yield proxy
    finally:
        forget_model(proxy)


@contextmanager
def failing(sender: type[models.Model], signal: Any = post_delete) -> Iterator[None]:
    """Another application's receiver that raises, after ours was called."""

    def fail(**kwargs: Any) -> None:
        raise Rollback

    signal.connect(fail, sender)
    try:
        yield
    finally:
        signal.disconnect(fail, sender)


@pytest.fixture
def no_queue() -> Iterator[None]:
    """The queue's table is not there."""
    with connection.schema_editor() as editor:
        editor.alter_db_table(OrmQ, "django_q_ormq", "elsewhere")
    yield
    with connection.schema_editor() as editor:
        editor.alter_db_table(OrmQ, "elsewhere", "django_q_ormq")


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[str]:
    with another_database(tmp_path, Project, R2Object) as alias:
        yield alias


# Projects


def test_a_committed_deletion_leaves_one_cleanup_and_one_task() -> None:
    Project.objects.create(pk="proj_1")
    Project.objects.get(pk="proj_1").delete()
    cleanup = Cleanup.objects.get()
    assert (cleanup.kind, cleanup.status) == (Kind.PROJECT, Status.PENDING)
    assert (cleanup.project_id, cleanup.trigger) == ("proj_1", Trigger.DELETED)
    assert cleanup.project_deleted_at is not None
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_nothing_is_enqueued_before_the_commit() -> None:
    Project.objects.create(pk="proj_1")
    with transaction.atomic():
        Project.objects.get(pk="proj_1").delete()
        assert Cleanup.objects.count() == 1
        assert not OrmQ.objects.exists()
    assert OrmQ.objects.count() == 1


def test_a_rolled_back_deletion_leaves_no_cleanup_and_no_task() -> None:
    Project.objects.create(pk="proj_1")
    with suppress(Rollback), transaction.atomic():
        Project.objects.get(pk="proj_1").delete()
        raise Rollback
    assert not Cleanup.objects.exists()
    assert not OrmQ.objects.exists()
    assert KnownProject.objects.get().deleted_at is None


def test_a_deletion_in_a_rolled_back_savepoint_leaves_nothing_beside_a_committed_one() -> None:
    for project_id in ("proj_1", "proj_2"):
        Project.objects.create(pk=project_id)
    with transaction.atomic():
        with suppress(Rollback), transaction.atomic():
            Project.objects.get(pk="proj_1").delete()
            raise Rollback
        Project.objects.get(pk="proj_2").delete()
    cleanup = Cleanup.objects.get()
    assert cleanup.project_id == "proj_2"
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_an_error_in_a_later_receiver_leaves_the_project_and_no_cleanup() -> None:
    Project.objects.create(pk="proj_1")
    with failing(Project), suppress(Rollback):
        Project.objects.get(pk="proj_1").delete()
    assert Project.objects.exists()
    assert not Cleanup.objects.exists()
    assert not OrmQ.objects.exists()


def test_each_project_of_a_queryset_gets_its_cleanup() -> None:
    for number in range(5):
        Project.objects.create(pk=f"proj_{number}")
    Project.objects.exclude(pk="proj_3").delete()
    found = Cleanup.objects.values_list("project_id", flat=True)
    assert sorted(map(str, found)) == ["proj_0", "proj_1", "proj_2", "proj_4"]
    assert OrmQ.objects.count() == 4


def test_a_queryset_of_bare_ids_is_enough() -> None:
    Project.objects.create(pk="proj_1", title="title")
    Project.objects.only("pk").delete()
    assert Cleanup.objects.get().project_id == "proj_1"


def test_the_stock_admin_action_leaves_a_cleanup_with_who_and_from_where() -> None:
    user = User.objects.create_superuser("ada")
    for project_id in ("proj_1", "proj_2"):
        Project.objects.create(pk=project_id)
    request = RequestFactory().post("/", {"post": "yes"})
    request.user = user
    request._messages = type("Messages", (), {"add": lambda *args: None})()  # type: ignore[attr-defined]
    site = AdminSite()
    site.register(Project)
    with use_origin(Origin("ada", "web, 203.0.113.7")):
        delete_selected(site.get_model_admin(Project), request, Project.objects.all())
    assert not Project.objects.exists()
    made = Cleanup.objects.values_list("requested_by", "origin")
    assert list(made) == [("ada", "web, 203.0.113.7")] * 2


def test_a_deletion_through_a_proxy_counts() -> None:
    with proxy_of(Project) as proxy:
        proxy.objects.create(pk="proj_1")
        assert KnownProject.objects.filter(pk="proj_1", deleted_at=None).exists()
        proxy.objects.get(pk="proj_1").delete()
    cleanup = Cleanup.objects.get()
    assert cleanup.project_id == "proj_1"
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_deletion_counts_where_the_setting_names_a_proxy(settings: Settings) -> None:
    with proxy_of(Project) as named:
        settings.STORAGE_AUDIT_PROJECT_MODEL = named._meta.label
        with proxy_of(named) as late:
            late.objects.create(pk="proj_1").delete()
    assert Cleanup.objects.get().project_id == "proj_1"


def test_saving_a_child_that_was_defined_late_makes_its_project_known() -> None:
    class Film(Project):
        class Meta:
            app_label = "storage_audit"

    try:
        with connection.schema_editor() as editor:
            editor.create_model(Film)
        try:
            Film.objects.create(pk="proj_1", id="proj_1")
            assert KnownProject.objects.get().evidence == "saved"
            Film.objects.get().delete()
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(Film)
    finally:
        forget_model(Film)
    assert Cleanup.objects.get().project_id == "proj_1"


def test_connecting_again_makes_no_second_cleanup() -> None:
    signals.connect_signals()
    Project.objects.create(pk="proj_1").delete()
    assert Cleanup.objects.count() == 1


def test_one_cleanup_for_each_bucket_with_objects_of_the_project() -> None:
    Project.objects.create(pk="proj_1")
    track_keys("a", bucket="other")
    track_keys("b", bucket="third", project="proj_10")
    Project.objects.get().delete()
    buckets = Cleanup.objects.values_list("bucket", flat=True)
    assert len(buckets) == 2
    assert "other" in buckets
    assert sorted(list_enqueued_ids()) == sorted(str(o.pk) for o in Cleanup.objects.all())


def test_a_forced_deletion_is_approved_and_says_by_whom() -> None:
    Project.objects.create(pk="proj_1")
    force_delete("proj_1", "ada")
    cleanup = Cleanup.objects.get()
    assert (cleanup.trigger, cleanup.limits_waived_by) == (Trigger.FORCED, "ada")


@pytest.mark.slow
def test_deleting_a_project_costs_the_same_with_ten_and_with_100_000_objects() -> None:
    for project_id in ("proj_1", "proj_2"):
        Project.objects.create(pk=project_id)
    track_keys(*(f"few/{n}" for n in range(10)), project="proj_1")
    track_keys(*(f"many/{n}" for n in range(100_000)), project="proj_2")
    few = queries(Project.objects.get(pk="proj_1").delete)
    assert queries(Project.objects.get(pk="proj_2").delete) == few < 25
    assert R2Object.objects.count() == 100_010


@pytest.mark.parametrize("model", [Project, R2Object])
def test_a_queue_that_fails_does_not_undo_or_disturb_the_deletion(
    model: type[Project] | type[R2Object], no_queue: None
) -> None:
    later: list[str] = []
    Project.objects.create(pk="proj_1")
    track_keys("a")
    with transaction.atomic():
        model.objects.all().delete()
        transaction.on_commit(lambda: later.append("called"))
    assert {each.status for each in Cleanup.objects.all()} == {Status.PENDING}
    assert later == ["called"]


# Known ids


def test_saving_a_project_makes_its_id_known() -> None:
    Project.objects.create(pk="proj_1")
    known = KnownProject.objects.get()
    assert (known.pk, known.deleted_at, known.evidence) == ("proj_1", None, "saved")


def test_deleting_a_project_marks_its_id_and_keeps_when_it_was_first_seen() -> None:
    Project.objects.create(pk="proj_1")
    first_seen_at = KnownProject.objects.get().first_seen_at
    Project.objects.get().delete()
    known = KnownProject.objects.get()
    assert known.evidence == "deleted"
    assert known.deleted_at == Cleanup.objects.get().project_deleted_at
    assert known.first_seen_at == first_seen_at


def test_an_id_that_is_used_again_is_alive_again() -> None:
    Project.objects.create(pk="proj_1").delete()
    Project.objects.create(pk="proj_1")
    assert KnownProject.objects.get().deleted_at is None


def test_a_rolled_back_save_makes_no_id_known() -> None:
    with suppress(Rollback), transaction.atomic():
        Project.objects.create(pk="proj_1")
        raise Rollback
    assert not KnownProject.objects.exists()


def test_a_project_that_no_signal_told_of_is_known_once_it_is_deleted() -> None:
    Project.objects.bulk_create([Project(pk="proj_1")])
    Project.objects.get().delete()
    assert KnownProject.objects.get().evidence == "deleted"


# Rows of objects


def test_deleting_many_rows_makes_one_cleanup_with_all_of_them() -> None:
    track_keys(*(f"k{n}" for n in range(2500)))
    R2Object.objects.all().delete()
    cleanup = Cleanup.objects.get()
    assert (cleanup.kind, cleanup.project_id) == (Kind.OBJECTS, "proj_1")
    assert keys_of(cleanup) == {f"k{n}" for n in range(2500)}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_an_item_keeps_what_its_row_said() -> None:
    (row,) = track_keys("k")
    row.delete()
    item = CleanupItem.objects.get()
    assert (item.key, item.project_id, item.size, item.etag) == ("k", "proj_1", 3, "etag")
    assert item.outcome == CleanupItem.Outcome.TO_DELETE


def test_deleting_rows_does_not_cost_a_query_each() -> None:
    track_keys(*(f"few/{n}" for n in range(10)))
    few = queries(R2Object.objects.all().delete)
    track_keys(*(f"many/{n}" for n in range(1000)))
    many = queries(R2Object.objects.all().delete)
    assert many <= few + 40  # Of which Django deletes, and on SQLite inserts, 100 rows or less.


def test_rows_of_bare_ids_are_deleted_with_all_that_they_said() -> None:
    track_keys("a", "b")
    R2Object.objects.only("pk").delete()
    found = CleanupItem.objects.values_list("key", "size", "etag")
    assert sorted(found) == [("a", 3, "etag"), ("b", 3, "etag")]


def test_several_calls_in_one_transaction_make_one_cleanup() -> None:
    one, two, *_ = track_keys("a", "b", "c", "d")
    with transaction.atomic():
        one.delete()
        two.delete()
        R2Object.objects.filter(key__in=["c", "d"]).delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"a", "b", "c", "d"}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_two_transactions_make_two_cleanups() -> None:
    for row in track_keys("a", "b"):
        row.delete()
    assert sorted(map(keys_of, Cleanup.objects.all()), key=sorted) == [{"a"}, {"b"}]
    assert OrmQ.objects.count() == 2


def test_two_transactions_make_two_cleanups_also_when_a_hook_of_the_first_fails() -> None:
    def fail() -> None:
        raise Rollback

    one, two = track_keys("a", "b")
    with suppress(Rollback), transaction.atomic():
        transaction.on_commit(fail)  # Django drops the hooks after it.
        one.delete()
    with transaction.atomic():
        two.delete()
    first, second = Cleanup.objects.order_by("created_at")
    assert (keys_of(first), keys_of(second)) == ({"a"}, {"b"})
    assert list_enqueued_ids() == [str(second.pk)]


def test_a_savepoint_rolled_back_before_the_first_deletion_changes_nothing() -> None:
    a, b = track_keys("a", "b")
    with transaction.atomic():
        with suppress(Rollback), transaction.atomic():
            R2Object.objects.filter(key="b").update(size=4)
            raise Rollback
        a.delete()
    assert keys_of(Cleanup.objects.get()) == {"a"}


def test_a_savepoint_rolled_back_around_the_first_deletion_takes_its_rows_away() -> None:
    track_keys("a", "b")
    with transaction.atomic():
        with suppress(Rollback), transaction.atomic():
            R2Object.objects.filter(key="a").delete()
            raise Rollback
        R2Object.objects.filter(key="b").delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"b"}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_savepoint_rolled_back_after_the_first_deletion_takes_only_its_own_rows_away() -> None:
    track_keys("a", "c")
    track_keys("b", project="proj_2")
    with transaction.atomic():
        R2Object.objects.filter(key="a").delete()
        with suppress(Rollback), transaction.atomic():
            R2Object.objects.filter(key="b").delete()
            raise Rollback
        R2Object.objects.filter(key="c").delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"a", "c"}
    assert cleanup.project_id == "proj_1"
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_row_deleted_again_after_its_savepoint_was_rolled_back_is_an_item() -> None:
    track_keys("a", "b")
    with transaction.atomic():
        R2Object.objects.filter(key="a").delete()
        with suppress(Rollback), transaction.atomic():
            R2Object.objects.filter(key="b").delete()
            raise Rollback
        R2Object.objects.filter(key="b").delete()
    assert keys_of(Cleanup.objects.get()) == {"a", "b"}


def test_savepoints_within_savepoints() -> None:
    track_keys("a", "b", "c", "d")
    with transaction.atomic():
        with suppress(Rollback), transaction.atomic():
            with transaction.atomic():
                R2Object.objects.filter(key="a").delete()
            R2Object.objects.filter(key="b").delete()
            raise Rollback
        with transaction.atomic():
            R2Object.objects.filter(key="c").delete()
        R2Object.objects.filter(key="d").delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"c", "d"}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_savepoint_rolled_back_by_hand() -> None:
    track_keys("a", "b")
    with transaction.atomic():
        # Its name from Django 6.1 on.
        point = getattr(transaction, "savepoint_create", transaction.savepoint)()
        R2Object.objects.filter(key="a").delete()
        transaction.savepoint_rollback(point)
        R2Object.objects.filter(key="b").delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"b"}
    # Django does not drop the hooks of a savepoint made by hand.
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_a_rolled_back_transaction_leaves_nothing_for_the_next() -> None:
    track_keys("a", "b")
    with suppress(Rollback), transaction.atomic():
        R2Object.objects.filter(key="a").delete()
        raise Rollback
    R2Object.objects.filter(key="b").delete()
    assert keys_of(Cleanup.objects.get()) == {"b"}


@pytest.mark.parametrize("signal", [pre_delete, post_delete])
def test_a_call_that_failed_leaves_nothing_for_its_repetition(signal: Any) -> None:
    track_keys("a", "b")
    rows = R2Object.objects.filter(state=R2Object.State.STORED)
    with failing(R2Object, signal), pytest.raises(Rollback):
        rows.delete()
    assert not Cleanup.objects.exists()
    # The same QuerySet object, which matches fewer rows by now.
    R2Object.objects.filter(key="a").update(state=R2Object.State.DELETING)
    rows.delete()
    assert keys_of(Cleanup.objects.get()) == {"b"}
    assert [row.key for row in R2Object.objects.all()] == ["a"]


@pytest.mark.parametrize("signal", [pre_delete, post_delete])
def test_a_failed_call_in_a_savepoint_leaves_nothing_for_the_next_call(signal: Any) -> None:
    track_keys("a", "b")
    with transaction.atomic():
        with failing(R2Object, signal), suppress(Rollback), transaction.atomic():
            R2Object.objects.filter(key="a").delete()
        R2Object.objects.filter(key="b").delete()
    cleanup = Cleanup.objects.get()
    assert keys_of(cleanup) == {"b"}
    assert list_enqueued_ids() == [str(cleanup.pk)]


def test_an_instance_whose_deletion_failed_can_be_deleted_again() -> None:
    (row,) = track_keys("a")
    with failing(R2Object), suppress(Rollback):
        row.delete()
    row.delete()
    assert keys_of(Cleanup.objects.get()) == {"a"}
    row.save()  # As a new row, with the same object in memory.
    row.delete()
    assert [keys_of(each) for each in Cleanup.objects.all()] == [{"a"}, {"a"}]


def test_deletions_made_by_another_receiver_are_items_too() -> None:
    track_keys("a", "b", "c")

    def take_along(instance: R2Object, **kwargs: Any) -> None:
        if instance.key == "a":
            R2Object.objects.filter(key="b").delete()

    for signal in (pre_delete, post_delete):
        signal.connect(take_along, R2Object)
        try:
            R2Object.objects.filter(key__in=["a", "c"]).delete()
        finally:
            signal.disconnect(take_along, R2Object)
        assert keys_of(Cleanup.objects.get()) == {"a", "b", "c"}
        Cleanup.objects.all().delete()
        track_keys("a", "b", "c")


def test_rows_of_two_buckets_make_a_cleanup_each() -> None:
    track_keys("a", "b", bucket="tests")
    track_keys("a", "c", bucket="other")
    R2Object.objects.all().delete()
    found = {each.bucket: keys_of(each) for each in Cleanup.objects.all()}
    assert found == {"tests": {"a", "b"}, "other": {"a", "c"}}
    assert OrmQ.objects.count() == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_rows_of_two_projects_make_a_cleanup_of_no_project(at_once: bool) -> None:
    track_keys("a", project="proj_1")
    track_keys("b", project="proj_2")
    with transaction.atomic():
        for rows in (
            [R2Object.objects.all()]
            if at_once
            else [R2Object.objects.filter(key=key) for key in "ab"]
        ):
            rows.delete()
    cleanup = Cleanup.objects.get()
    assert cleanup.project_id is None
    found = cleanup.items.values_list("key", "project_id")
    assert sorted(found) == [("a", "proj_1"), ("b", "proj_2")]


def test_a_row_of_no_project_can_be_deleted() -> None:
    track_keys("a", project=None)
    R2Object.objects.all().delete()
    assert Cleanup.objects.get().project_id is None


def test_a_deletion_of_a_row_through_a_proxy_counts() -> None:
    track_keys("a", "b", "c")
    with proxy_of(R2Object) as proxy:
        proxy.objects.filter(key__in=["a", "b"]).delete()
        proxy.objects.get(key="c").delete()
    first, second = Cleanup.objects.order_by("created_at")
    assert (keys_of(first), keys_of(second)) == ({"a", "b"}, {"c"})


def test_a_worker_that_has_the_cleanup_gets_no_more_rows() -> None:
    a, b = track_keys("a", "b")
    a.delete()
    cleanup = Cleanup.objects.get()
    with transaction.atomic():
        assert cleanup.acquire_lease()
    b.delete()
    assert keys_of(cleanup) == {"a"}
    assert Cleanup.objects.count() == 2


@pytest.mark.parametrize("way", ["forget", "_raw_delete"])
def test_forgetting_rows_starts_no_cleanup(way: str) -> None:
    track_keys("a", "b")
    if way == "forget":
        assert R2Object.objects.all().delete_without_signals() == 2
    else:
        R2Object.objects.all()._raw_delete("default")
    assert not R2Object.objects.exists()
    assert not Cleanup.objects.exists()
    assert not OrmQ.objects.exists()


def test_two_connections_that_delete_at_once_keep_apart() -> None:
    """On SQLite one waits for the other; on PostgreSQL both are in the middle at the same time."""
    track_keys(*(f"{name}{n}" for name in "ab" for n in range(4)))
    at_once = connection.vendor == "postgresql"
    meet = threading.Barrier(2 if at_once else 1, timeout=20)
    errors: list[BaseException] = []

    def delete(name: str) -> None:
        try:
            with transaction.atomic():
                R2Object.objects.filter(key=f"{name}0").delete()
                meet.wait()
                R2Object.objects.filter(key=f"{name}1").delete()
                with suppress(Rollback), transaction.atomic():
                    R2Object.objects.filter(key=f"{name}2").delete()
                    meet.wait()
                    raise Rollback
                R2Object.objects.filter(key=f"{name}3").delete()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=delete, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    found = sorted(map(keys_of, Cleanup.objects.all()), key=sorted)
    assert found == [{"a0", "a1", "a3"}, {"b0", "b1", "b3"}]
    assert sorted(list_enqueued_ids()) == sorted(str(each.pk) for each in Cleanup.objects.all())


# Other databases


def test_rows_of_another_database_start_nothing(copy: str) -> None:
    """A copy of the tables owns nothing in the bucket."""
    row = {"bucket": "tests", "key": "a", "source": "upload", "state": "stored"}
    with transaction.atomic():
        for using in ("default", copy):
            Project(pk="proj_1").save(using=using)
            R2Object(**row).save(using=using)
        KnownProject.objects.all().delete()
        Project.objects.using(copy).get().delete()
        R2Object.objects.using(copy).get().delete()
        R2Object.objects.using(copy).create(**row)
        Project.objects.using(copy).create(pk="proj_2")
    R2Object.objects.using(copy).all().delete()
    assert not Cleanup.objects.exists() and not KnownProject.objects.exists()
    R2Object.objects.get().delete()
    Project.objects.get().delete()
    assert Cleanup.objects.count() == 2
