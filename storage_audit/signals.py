"""A row is deleted: record the cleanup in the same transaction, enqueue it after the commit."""

from collections import defaultdict
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

from django.apps import apps
from django.core.signals import request_finished
from django.db import DEFAULT_DB_ALIAS, connection, models
from django.db.models.signals import (
    class_prepared,
    post_delete,
    post_migrate,
    post_save,
    pre_delete,
    pre_save,
)
from django.utils import timezone

from storage_audit import project_model, queue
from storage_audit.bucket import request_stats
from storage_audit.cleanup import (
    delete_projects,
    held_ids,
    make_cleanups,
    named_files,
)
from storage_audit.cleanup.models import Cleanup, DeletedRow
from storage_audit.cleanup.take_snapshot import take_snapshot
from storage_audit.models import KnownProject, R2Object
from storage_audit.request_origin import current_origin

Trigger = Cleanup.Trigger


def connect_signals() -> None:
    for model in apps.get_models():
        connect_model(model)
    # A site may define a model once all applications are ready, such as a proxy in its admin.
    class_prepared.connect(connect_late_model, dispatch_uid="storage_audit.defined")
    post_migrate.connect(
        queue.create_schedules,
        apps.get_app_config("storage_audit"),
        dispatch_uid="storage_audit.schedule",
    )
    request_finished.connect(request_stats.save_after_request, dispatch_uid="storage_audit.counted")


def connect_late_model(sender: type[models.Model], **kwargs: Any) -> None:
    if apps.models_ready:  # Else they are being loaded again, and `connect_signals` runs later.
        connect_model(sender)


def connect_model(sender: type[models.Model]) -> None:
    """Connect the receivers that the model needs, for proxies too: a signal's sender is the proxy,
    not its base. https://code.djangoproject.com/ticket/9318

    To save a child saves the project's row as well, and signals only the child. A deletion signals
    each of them.
    """
    project = project_model.get_model()._meta.concrete_model or project_model.get_model()
    if issubclass(sender, project):
        pre_save.connect(refuse_held_id, sender, dispatch_uid="storage_audit.held")
        post_save.connect(record_saved_project, sender, dispatch_uid="storage_audit.saved")
    if sender._meta.concrete_model is project:
        pre_delete.connect(remember_project_id, sender, dispatch_uid="storage_audit.load")
        post_delete.connect(request_project_cleanup, sender, dispatch_uid="storage_audit.deleted")
    if sender._meta.concrete_model is R2Object:
        pre_delete.connect(collect_row, sender, dispatch_uid="storage_audit.gather")
        post_delete.connect(request_row_cleanup, sender, dispatch_uid="storage_audit.deleted")


def default_database_only(receiver: Callable[..., None]) -> Callable[..., None]:
    """Ignore rows of other databases: they are copies, and own nothing in the bucket. Their
    transactions are not ours either, so a rollback there would leave a cleanup here."""

    @wraps(receiver)
    def receive(instance: models.Model, using: str = DEFAULT_DB_ALIAS, **kwargs: Any) -> None:
        if using == DEFAULT_DB_ALIAS:
            receiver(instance, **kwargs)

    return receive


@default_database_only
def refuse_held_id(
    instance: models.Model,
    raw: bool = False,
    update_fields: Collection[str] | None = None,
    **kwargs: Any,
) -> None:
    # An instance that was read before the deletion is inserted too. With some of its fields, it is
    # not.
    if not raw and update_fields is None:
        held_ids.refuse_held_id(project_model.id_of(instance))


@default_database_only
def record_saved_project(
    instance: models.Model,
    created: bool,
    raw: bool = False,
    update_fields: Collection[str] | None = None,
    **kwargs: Any,
) -> None:
    if raw and instance._meta.concrete_model is not project_model.get_model()._meta.concrete_model:
        return  # A fixture has the project's row apart, and not its values in the child.
    # Without all fields saved, the instance may hold an id that no row has.
    id_of = project_model.id_of if update_fields is None else project_model.stored_id
    project_id, evidence = id_of(instance), KnownProject.Evidence.SAVED
    KnownProject.objects.record_alive(project_id, evidence, created=created)


@default_database_only
def remember_project_id(instance: models.Model, origin: Any = None, **kwargs: Any) -> None:
    keep_deleted_rows(origin)
    # Once the row is gone it cannot be asked, and the instance may hold another id by now.
    vars(instance)["storage_audit_id"] = project_id = project_model.stored_id(instance)
    projects_of_delete_call().add(project_id)
    vars(instance)["storage_audit_named"] = named_files.find_named_files(instance)


@default_database_only
def request_project_cleanup(instance: models.Model, **kwargs: Any) -> None:
    project_id, now, origin = vars(instance)["storage_audit_id"], timezone.now(), current_origin()
    forced = origin.forced and delete_projects.is_requested_deletion(projects_of_delete_call())
    hold = held_ids.hold_values() | snapshot_of_delete_call()
    KnownProject.objects.record_deleted(
        project_id,
        now,
        KnownProject.Evidence.DELETED,
        kept_for=KnownProject.KeptFor.HOLD if "held_until" in hold else "",
    )
    cleanups = make_cleanups.request_cleanups(
        project_id,
        trigger=Trigger.FORCED if forced else Trigger.DELETED,
        deleted_at=now,
        limits_waived_by=origin.user if forced else "",
        **hold,
    )
    named_files.add_named_files(
        cleanups, vars(instance)["storage_audit_named"], projects_of_delete_call()
    )
    make_cleanups.enqueue_on_commit(cleanups)
    delete_projects.hand_over(cleanups)


@default_database_only
def collect_row(instance: R2Object, origin: Any = None, **kwargs: Any) -> None:
    keep_deleted_rows(origin)
    if missing := instance.get_deferred_fields() & {*DeletedRow._fields, "state", "updated_at"}:
        instance.refresh_from_db(fields=missing)
    rows_of_delete_call()[instance.pk] = DeletedRow.of(instance)


@default_database_only
def request_row_cleanup(instance: R2Object, **kwargs: Any) -> None:
    rows = rows_of_delete_call()
    if instance.pk in rows:
        by_bucket = defaultdict(list)
        for row in rows.values():
            by_bucket[row.bucket].append(row)
        rows.clear()
        for bucket, gone in by_bucket.items():
            hold = held_ids.hold_values_of_row(gone[0].project_id) | snapshot_of_delete_call()
            delete_projects.hand_over([make_cleanups.request_deletion(bucket, gone, **hold)])


def keep_deleted_rows(origin: Any) -> None:
    """Copy what the delete() call is about to delete, once, if it can be undone for a while."""
    if origin is None or "held_until" not in held_ids.hold_values():
        return
    kept = vars(connection.atomic_blocks[-1])
    if "storage_audit_snapshot" not in kept:
        kept["storage_audit_snapshot"] = take_snapshot(origin)


def snapshot_of_delete_call() -> dict[str, Any]:
    """The snapshot as a value of the call's cleanups."""
    here = vars(connection.atomic_blocks[-1]) if connection.atomic_blocks else {}
    kept = here.get("storage_audit_snapshot")
    return {"snapshot": kept} if kept else {}


def rows_of_delete_call() -> dict[int, DeletedRow]:
    """What the delete() call under way is about to delete.

    Django sends pre_delete for every row of a delete() call before it deletes the first, and
    post_delete for each once all are gone. So the rows are gathered before, and the first
    post_delete writes the items of all of them in bulk; were anything to fail later in the call,
    the items would be rolled back with the rows. Each call opens an atomic block of its own; the
    rows are kept on it, so that a call that fails leaves none.

    `atomic_blocks` is private to Django, as is `run_on_commit`, which `cleanup_of_transaction`
    reads. Nothing public ends with the call or the transaction: the `origin` of a signal outlives a
    call that failed, and a hook does not run after one that raised.
    """
    rows: dict[int, DeletedRow] = vars(connection.atomic_blocks[-1]).setdefault(
        "storage_audit_rows", {}
    )
    return rows


def projects_of_delete_call() -> set[str]:
    """The ids of all projects that the delete() call under way deletes, kept like those of
    `rows_of_delete_call`; none where a site sends the signals itself, outside a transaction."""
    if not connection.atomic_blocks:
        return set()
    ids: set[str] = vars(connection.atomic_blocks[-1]).setdefault("storage_audit_projects", set())
    return ids
