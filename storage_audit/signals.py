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
)
from django.utils import timezone

from storage_audit import project_model, queue
from storage_audit.bucket import request_stats
from storage_audit.cleanup import delete_projects, named_files, requests, succession
from storage_audit.cleanup.models import CleanupOperation, Row
from storage_audit.models import KnownProject, R2Object
from storage_audit.origin import current_origin

Trigger = CleanupOperation.Trigger


def connect() -> None:
    for model in apps.get_models():
        connect_model(model)
    # A site may define a model once all applications are ready, such as a proxy in its admin.
    class_prepared.connect(connect_late_model, dispatch_uid="storage_audit.defined")
    post_migrate.connect(
        queue.create_schedule,
        apps.get_app_config("storage_audit"),
        dispatch_uid="storage_audit.schedule",
    )
    request_finished.connect(request_stats.keep_after_request, dispatch_uid="storage_audit.counted")


def connect_late_model(sender: type[models.Model], **kwargs: Any) -> None:
    if apps.models_ready:  # Else they are being loaded again, and `connect` is called after that.
        connect_model(sender)


def connect_model(sender: type[models.Model]) -> None:
    """Connect the receivers that the model needs, for proxies too: a signal's sender is the proxy,
    not its base. https://code.djangoproject.com/ticket/9318

    To save a child saves the project's row as well, and signals only the child. A deletion signals
    each of them.
    """
    project = project_model.model()._meta.concrete_model or project_model.model()
    if issubclass(sender, project):
        post_save.connect(project_saved, sender, dispatch_uid="storage_audit.saved")
    if sender._meta.concrete_model is project:
        pre_delete.connect(project_to_be_deleted, sender, dispatch_uid="storage_audit.load")
        post_delete.connect(project_deleted, sender, dispatch_uid="storage_audit.deleted")
    if sender._meta.concrete_model is R2Object:
        pre_delete.connect(object_to_be_deleted, sender, dispatch_uid="storage_audit.gather")
        post_delete.connect(object_deleted, sender, dispatch_uid="storage_audit.deleted")


def of_default_database(receiver: Callable[..., None]) -> Callable[..., None]:
    """Ignore rows of other databases: they are copies, and own nothing in the bucket. Their
    transactions are not ours either, so a rollback there would leave a cleanup here."""

    @wraps(receiver)
    def receive(instance: models.Model, using: str = DEFAULT_DB_ALIAS, **kwargs: Any) -> None:
        if using == DEFAULT_DB_ALIAS:
            receiver(instance, **kwargs)

    return receive


@of_default_database
def project_saved(
    instance: models.Model,
    created: bool,
    raw: bool = False,
    update_fields: Collection[str] | None = None,
    **kwargs: Any,
) -> None:
    if raw and instance._meta.concrete_model is not project_model.model()._meta.concrete_model:
        return  # A fixture has the project's row apart, and not its values in the child.
    # Without all fields saved, the instance may hold an id that no row has.
    id_of = project_model.id_of if update_fields is None else project_model.stored_id
    project_id, evidence = id_of(instance), KnownProject.Evidence.SAVED
    KnownProject.objects.saw_alive(project_id, evidence, created=created)


@of_default_database
def project_to_be_deleted(instance: models.Model, **kwargs: Any) -> None:
    # Once the row is gone it cannot be asked, and the instance may hold another id by now.
    vars(instance)["storage_audit_id"] = project_id = project_model.stored_id(instance)
    projects_of_call().add(project_id)
    vars(instance)["storage_audit_named"] = named_files.named_by(instance)


@of_default_database
def project_deleted(instance: models.Model, **kwargs: Any) -> None:
    project_id, now, origin = vars(instance)["storage_audit_id"], timezone.now(), current_origin()
    forced = origin.forced and delete_projects.is_asked_for(projects_of_call())
    KnownProject.objects.saw_deleted(project_id, now, KnownProject.Evidence.DELETED)
    operations = succession.request_cleanups(
        project_id,
        trigger=Trigger.FORCED if forced else Trigger.DELETED,
        deleted_at=now,
        released_by=origin.user if forced else "",
    )
    named_files.note(operations, vars(instance)["storage_audit_named"], projects_of_call())
    requests.enqueue_on_commit(operations)
    delete_projects.note(project_id)


@of_default_database
def object_to_be_deleted(instance: R2Object, **kwargs: Any) -> None:
    if missing := instance.get_deferred_fields() & {*Row._fields, "state", "updated_at"}:
        instance.refresh_from_db(fields=missing)
    rows_of_call()[instance.pk] = Row.of(instance)


@of_default_database
def object_deleted(instance: R2Object, **kwargs: Any) -> None:
    rows = rows_of_call()
    if instance.pk in rows:
        by_bucket = defaultdict(list)
        for row in rows.values():
            by_bucket[row.bucket].append(row)
        rows.clear()
        for bucket, gone in by_bucket.items():
            requests.request_deletion(bucket, gone)


def rows_of_call() -> dict[int, Row]:
    """What the delete() call under way is about to delete.

    Django sends pre_delete for every row of a delete() call before it deletes the first, and
    post_delete for each once all are gone. So the rows are gathered before, and the first
    post_delete writes the items of all of them in bulk; were anything to fail later in the call,
    the items would be rolled back with the rows. Each call opens an atomic block of its own; the
    rows are kept on it, so that a call that fails leaves none behind.
    """
    rows: dict[int, Row] = vars(connection.atomic_blocks[-1]).setdefault("storage_audit_rows", {})
    return rows


def projects_of_call() -> set[str]:
    """The ids of all projects that the delete() call under way deletes, kept as `rows_of_call` are;
    none where a site sends the signals itself, outside a transaction."""
    if not connection.atomic_blocks:
        return set()
    ids: set[str] = vars(connection.atomic_blocks[-1]).setdefault("storage_audit_projects", set())
    return ids
