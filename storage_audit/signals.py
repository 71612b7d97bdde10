"""A row is deleted: record the cleanup in the same transaction, enqueue it after the commit."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from django.apps import apps
from django.db import connections, models, transaction
from django.db.models.signals import post_delete, post_migrate, post_save, pre_delete
from django.utils import timezone

from storage_audit import tasks
from storage_audit.models import CleanupOperation, KnownProject, Project, R2Object, Row
from storage_audit.origin import current_origin

Trigger = CleanupOperation.Trigger


def connect() -> None:
    """Connect the receivers, for proxy models too: a signal's sender is the proxy, not its base.
    https://code.djangoproject.com/ticket/9318
    """
    for model in same_table(Project):
        post_save.connect(project_saved, model, dispatch_uid="storage_audit.saved")
        post_delete.connect(project_deleted, model, dispatch_uid="storage_audit.deleted")
    for model in same_table(R2Object):
        pre_delete.connect(object_to_be_deleted, model, dispatch_uid="storage_audit.gather")
        post_delete.connect(object_deleted, model, dispatch_uid="storage_audit.deleted")
    post_migrate.connect(
        tasks.create_schedule,
        apps.get_app_config("storage_audit"),
        dispatch_uid="storage_audit.schedule",
    )


def same_table(concrete: type[models.Model]) -> Iterable[type[models.Model]]:
    return [m for m in apps.get_models() if m._meta.concrete_model is concrete]


def project_saved(instance: Project, **kwargs: Any) -> None:
    KnownProject.objects.saw_alive(instance.pk, KnownProject.Evidence.SAVED)


def project_deleted(instance: Project, **kwargs: Any) -> None:
    now, origin = timezone.now(), current_origin()
    KnownProject.objects.saw_deleted(instance.pk, now, KnownProject.Evidence.DELETED)
    operations = CleanupOperation.objects.request_for_project(
        instance.pk,
        trigger=Trigger.FORCED if origin.forced else Trigger.DELETED,
        deleted_at=now,
        released_by=origin.user if origin.forced else "",
    )
    tasks.enqueue_on_commit(operations)


class Gathering:
    """What the delete() calls of one connection are about to delete, and for which operations.

    Django sends pre_delete for every row of a delete() call before it deletes the first, and
    post_delete for each once all are gone. So the rows are gathered before, and the first
    post_delete writes the items of all of them in bulk; were anything to fail later in the call,
    the items would be rolled back with the rows.
    """

    def __init__(self) -> None:
        # By the QuerySet or instance whose delete() was called, so that what a failed call left
        # behind goes away with it.
        self.rows: WeakKeyDictionary[Any, dict[int, Row]] = WeakKeyDictionary()
        # The operation of the transaction under way, by bucket. Not to be trusted without
        # asking the database: a savepoint that was rolled back may have taken it away.
        self.operations: dict[str, UUID] = {}


def gathering() -> Gathering:
    # On the connection since it is, like the transaction, one per thread.
    state: Gathering = vars(connections["default"]).setdefault(
        "storage_audit_gathering", Gathering()
    )
    return state


def object_to_be_deleted(instance: R2Object, origin: Any = None, **kwargs: Any) -> None:
    call = instance if origin is None else origin
    gathering().rows.setdefault(call, {})[instance.pk] = Row.of(instance)


def object_deleted(instance: R2Object, origin: Any = None, **kwargs: Any) -> None:
    state = gathering()
    rows = state.rows.get(instance if origin is None else origin, {})
    if instance.pk in rows:
        by_bucket = defaultdict(list)
        for row in rows.values():
            by_bucket[row.bucket].append(row)
        rows.clear()
        for bucket, gone in by_bucket.items():
            request_deletion(state, bucket, gone)


def request_deletion(state: Gathering, bucket: str, rows: list[Row]) -> None:
    """Put the rows into this transaction's operation for the bucket, made when there is none."""
    operations, origin = CleanupOperation.objects, current_origin()
    known = state.operations.get(bucket)
    operation = operations.still_untouched(known) if known else None
    if operation is None:
        operation = operations.request(
            kind=CleanupOperation.Kind.OBJECTS,
            bucket=bucket,
            project_id=rows[0].project_id,
            trigger=Trigger.FORCED if origin.forced else Trigger.DELETED,
            released_by=origin.user if origin.forced else "",
        )
        state.operations[bucket] = operation.pk
        transaction.on_commit(partial(committed, state, operation), robust=True)
    operation.add_rows(rows)


def committed(state: Gathering, operation: CleanupOperation) -> None:
    state.operations.pop(operation.bucket, None)
    tasks.enqueue(operation.pk)
