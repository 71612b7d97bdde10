"""The rows that a delete() call is about to delete, kept so that they can be restored.

Django's own Collector says which. Their values are read from the database, as an instance may have
been changed without being saved.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, models, transaction
from django.db.models import DO_NOTHING, QuerySet
from django.db.models.deletion import Collector, get_candidate_relations_to_delete

from storage_audit import project_model
from storage_audit.cleanup.models import Snapshot, SnapshotName
from storage_audit.cleanup.named_files import cascading_models
from storage_audit.cleanup.snapshot_rows import (
    CannotSnapshot,
    Link,
    Table,
    all_rows,
    encode_key,
    encode_value,
    latest_migrations,
    read_rows,
    split_rows,
    table_of,
    write_links,
    write_rows,
)
from storage_audit.models import R2Object
from storage_audit.redaction import printable_text

Obstacle = Snapshot.Obstacle
MAX_ROWS = 20_000
MAX_BYTES = 64 * 1024 * 1024
OUR_PACKAGE = __name__.partition(".")[0]
# Django 6.1 added them: the database acts on such rows, and no Collector sees them.
DATABASE_ACTIONS = [
    getattr(models, name, None) for name in ("DB_CASCADE", "DB_SET_NULL", "DB_SET_DEFAULT")
]


def take_snapshot(origin: models.Model | QuerySet[Any]) -> Snapshot:
    """What the delete() call of this origin deletes and unlinks in the default database. Called
    before it deletes the first row, in its transaction."""
    snapshot, collector = Snapshot.objects.create(), collect_rows(origin)
    write_names(snapshot, collector)
    try:
        fill_snapshot(snapshot, collector)
    except CannotSnapshot as error:
        snapshot.empty(str(error))
    else:
        snapshot.save(update_fields=["rows", "size", "migrations"])
    return snapshot


def snapshot_obstacle(model: Table) -> str:
    """Why no deletion of this model's rows can be undone, as a code of `Snapshot.Obstacle`. Empty
    when they can be, unless they turn out to be too many."""
    links = (link for each in cascading_models(model) for link in links_to(each))
    unseen = any(link.remote_field.on_delete in DATABASE_ACTIONS for link in links)
    return Obstacle.DATABASE_CASCADE.value if unseen else ""


def collect_rows(origin: models.Model | QuerySet[Any]) -> Collector:
    collector = Collector(DEFAULT_DB_ALIAS, origin)
    rows: Any = [origin]
    if isinstance(origin, QuerySet):
        rows = origin.using(DEFAULT_DB_ALIAS).order_by()  # Not those that it read before.
    collector.collect(rows)
    return collector


def fill_snapshot(snapshot: Snapshot, collector: Collector) -> None:
    """Raises CannotSnapshot."""
    rows, links = deleted_rows(collector), changed_links(collector)
    for table, pks in rows.items():
        refuse_unseen_changes(table, pks)
        for some in split_rows(pks):
            write_rows(snapshot, table, list(read_rows(table, some).values()))
            if snapshot.size > MAX_BYTES:
                raise CannotSnapshot(Obstacle.TOO_LARGE)
    for field, changed in links.items():
        for part in split_rows(changed):
            write_links(snapshot, field, part)
    tables = [*rows, *(field.model for field in links)]
    snapshot.migrations = latest_migrations({each._meta.app_label for each in tables})


def write_names(snapshot: Snapshot, collector: Collector) -> None:
    """Also where no row can be restored: people look for the project to cancel its cleanup."""
    project = table_of(project_model.get_model())
    projects = (rows for model, rows in collector.data.items() if table_of(model) is project)
    SnapshotName.objects.bulk_create(
        SnapshotName(snapshot=snapshot, project_id=project_model.stored_id(row), name=name)
        for row in chain.from_iterable(projects)
        if (name := name_of(row))
    )


def name_of(row: models.Model) -> str:
    # A site's own code, which may read rows that are not there.
    try:
        with savepoint_at_first_query():
            return printable_text(str(row))
    except Exception:  # noqa: BLE001
        return ""


@contextmanager
def savepoint_at_first_query() -> Iterator[None]:
    """After a failed query PostgreSQL refuses all others of the transaction, unless it goes back
    to a savepoint. Most names need no query, and pay for none."""
    with ExitStack() as stack:
        is_open = False

        def open_savepoint(execute: Callable[..., Any], *args: Any) -> Any:
            nonlocal is_open
            if not is_open:
                is_open = True
                stack.enter_context(transaction.atomic(DEFAULT_DB_ALIAS))
            return execute(*args)

        stack.enter_context(connections[DEFAULT_DB_ALIAS].execute_wrapper(open_savepoint))
        yield


def deleted_rows(collector: Collector) -> dict[Table, list[Any]]:
    """The primary keys of the rows that go, by table. A row may be collected in several ways."""
    found: dict[Table, dict[Any, None]] = defaultdict(dict)
    collected: list[tuple[Table, Iterable[Any]]] = [
        (model, [row.pk for row in rows]) for model, rows in collector.data.items()
    ]
    collected += [
        (rows.model, rows.order_by().values_list("pk", flat=True)[: MAX_ROWS + 1])
        for rows in collector.fast_deletes
    ]
    for model, pks in collected:
        if not is_bookkeeping(table_of(model)):
            found[table_of(model)].update(dict.fromkeys(pks))
            if sum(map(len, found.values())) > MAX_ROWS:
                raise CannotSnapshot(Obstacle.TOO_LARGE)
    return {table: list(pks) for table, pks in found.items() if pks}


def is_bookkeeping(table: Table) -> bool:
    """Whether it is a table of ours that is about other things than projects and their files."""
    is_ours = table.__module__.partition(".")[0] == OUR_PACKAGE
    return is_ours and table not in (R2Object, table_of(project_model.get_model()))


def changed_links(collector: Collector) -> dict[Any, list[Link]]:
    """By field, the rows that stay and whose link the deletion changes."""
    found: dict[Any, list[Link]] = defaultdict(list)
    updates: Any = collector.field_updates
    for (field, value), groups in updates.items():
        if isinstance(value, models.Model):
            value = getattr(value, field.target_field.attname)
        elif hasattr(value, "resolve_expression"):
            raise CannotSnapshot(Obstacle.UNREADABLE_VALUES)
        new = encode_value(field, value)
        for group in groups:
            for some in split_rows(row.pk for row in group[: MAX_ROWS + 1]):
                rows = all_rows(field.model).filter(pk__in=some).values_list("pk", field.attname)
                found[field] += [
                    Link(encode_key(field.model, pk), encode_value(field, old), new)
                    for pk, old in rows
                ]
        if sum(map(len, found.values())) > MAX_ROWS:
            raise CannotSnapshot(Obstacle.TOO_LARGE)
    return found


def refuse_unseen_changes(table: Table, pks: Sequence[Any]) -> None:
    """Raise CannotSnapshot where something other than Django deletes or changes rows that refer to
    these: the database, or a statement of the site."""
    for link in links_to(table):
        on_delete = link.remote_field.on_delete
        if on_delete in DATABASE_ACTIONS:
            raise CannotSnapshot(Obstacle.DATABASE_CASCADE)
        if on_delete is DO_NOTHING and link.db_constraint:
            for some in split_rows(pks):
                # With these, the deletion could not be committed.
                if all_rows(link.model).filter(**{f"{link.name}__in": some}).exists():
                    raise CannotSnapshot(Obstacle.DATABASE_CASCADE)


def links_to(table: Table) -> Iterator[Any]:
    """The foreign keys of all tables to this one."""
    relations: Any = get_candidate_relations_to_delete(table._meta)
    for relation in relations:
        if hasattr(relation.field, "db_constraint"):
            yield relation.field
