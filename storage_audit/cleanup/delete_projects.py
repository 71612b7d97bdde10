"""The one way in which the admin, the API and bulk jobs delete projects."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Model, ProtectedError, QuerySet, RestrictedError
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup.models import Cleanup
from storage_audit.conf import conf
from storage_audit.fields import filter_by_pks
from storage_audit.project_model import ProjectExists
from storage_audit.redaction import printable_text, redact_secrets

logger = logging.getLogger(__name__)

# The exceptions with which a deletion says why the row stays.
REFUSAL_EXCEPTIONS = ProjectExists, ProtectedError, RestrictedError
# Writes the history of these rows, in the transaction that deletes them.
HistoryWriter = Callable[[list[Any]], object]
ProjectBatch = dict[str, Model]
# The cleanups of deleted projects, by the projects' ids.
CleanupsByProject = dict[str, list[Cleanup]]
# Where Django keeps what prefetch_related() read.
PREFETCH_ATTRIBUTE = "_prefetched_objects_cache"


class CleanupCollector(NamedTuple):
    """The projects whose deletion was requested, and the cleanups that receivers handed over."""

    requested: frozenset[str]
    handed_over: list[Cleanup]

    def remaining(self) -> list[Cleanup]:
        """Each of them once, without those that were rolled back with their deletion."""
        pks = dict.fromkeys(each.pk for each in self.handed_over)
        there = Cleanup.objects.in_bulk(pks)
        return [there[pk] for pk in pks if pk in there]


# Those of this request or thread, the innermost last.
_collectors: ContextVar[tuple[CleanupCollector, ...]] = ContextVar(
    "storage_audit_collectors", default=()
)


class DeletionResult(NamedTuple):
    """What became of the selected projects. Those that were gone before are not in it."""

    deleted: list[str]
    cleanups: list[Cleanup]
    # A sentence each, with the reason.
    kept: list[str]
    # What the site's hooks raised after a commit.
    hook_errors: list[Exception]


def has_own_delete(owners: Iterable[Model] = ()) -> bool:
    """Whether the model of the rows, or of the projects, has a delete() of its own. It gets its own
    transaction, as its effects outside the database, such as on files, cannot be rolled back."""
    models: set[type[Model]] = {project_model.get_model(), *map(type, owners)}
    return any(model.delete is not Model.delete for model in models)


def split_into_batches(owners: Iterable[Model]) -> list[ProjectBatch]:
    """What is deleted in one transaction, by the projects' ids."""
    by_id = {project_model.id_of(owner): owner for owner in owners}
    # What can be undone is undone one project at a time.
    if conf().grace or has_own_delete(by_id.values()):
        return [{project_id: owner} for project_id, owner in by_id.items()]
    return [by_id]


def delete_projects(owners: Iterable[Model], log: HistoryWriter) -> DeletionResult:
    """Delete those that can be deleted, and say which ones stay. The owners are rows of the project
    model, of a child or a proxy of it, or of its own proxied model."""
    todo, made, kept, failures = (
        split_into_batches(owners),
        CleanupsByProject(),
        dict[str, str](),
        list[Exception](),
    )
    ids = [project_id for batch in todo for project_id in batch]
    while todo:
        refused = list[tuple[ProjectBatch, Exception]]()
        for batch in todo:
            error = try_delete_batch(batch, made, log, failures)
            refused += [(batch, error)] if error else []
        for batch, error in refused:
            kept |= dict.fromkeys(batch, explain_refusal(batch, error))
        # A row that needed one of them may have gone with another one.
        again = [batch for batch, error in refused if isinstance(error, RestrictedError)]
        todo = again if len(refused) < len(todo) else []
    cleanups = [each for cleanups in made.values() for each in cleanups]
    # Those that are refused together have one sentence.
    texts = dict.fromkeys(text for project_id, text in kept.items() if project_id not in made)
    return DeletionResult([each for each in ids if each in made], cleanups, list(texts), failures)


def try_delete_batch(
    batch: ProjectBatch, made: CleanupsByProject, log: HistoryWriter, failures: list[Exception]
) -> Exception | None:
    """Why none of the batch was deleted, or None; adds to what was made. An unexpected error counts
    as a refusal only where a model has its own delete(), as the other projects go on then. Else it
    is raised."""
    try:
        with tolerate_hook_errors(failures):
            deleted = delete_project_batch(batch, log)
        made |= deleted
    except REFUSAL_EXCEPTIONS as refusal:
        return refusal
    except Exception as error:
        if not has_own_delete(batch.values()):
            raise
        logger.exception("The deletion of project %s failed", *map(printable_text, batch))
        return error
    return None


@contextmanager
def tolerate_hook_errors(failures: list[Exception]) -> Iterator[None]:
    """A transaction. A hook of the site that fails after the commit undoes nothing, so its error is
    no refusal: it is logged, and added to the failures."""
    committed = list[bool]()
    try:
        with transaction.atomic():
            # Django calls hooks in their order, and this one is the first.
            transaction.on_commit(lambda: committed.append(True))
            yield
    except Exception as error:
        if not committed:
            raise
        logger.exception("A hook of the site failed after a deletion was committed")
        failures.append(error)


def explain_refusal(batch: ProjectBatch, error: Exception) -> str:
    reason = refusal_text(error) if isinstance(error, REFUSAL_EXCEPTIONS) else ""
    if len(batch) > 1:
        return _("None of the selected projects was deleted. %s") % reason
    if isinstance(error, ProjectExists):
        return reason
    [project_id] = batch
    return not_deleted_text(project_id, reason or _("its deletion failed. See the server's log."))


def refusal_text(refusal: Exception) -> str:
    """The site's own words, which may quote anything."""
    return printable_text(redact_secrets(str(refusal.args[0]))) if refusal.args else ""


def not_deleted_text(project_id: str, reason: str) -> str:
    words = {"project": project_id, "reason": reason}
    return _("Project %(project)s was not deleted: %(reason)s") % words


@transaction.atomic
def delete_project_batch(batch: ProjectBatch, log: HistoryWriter = list) -> CleanupsByProject:
    """Delete those that still exist, all or none, each by its own delete() if it has one. Returns
    the cleanups of these and of projects deleted along with them, not of those that somebody else
    deleted. Raises ProjectExists if a row stays, and whatever else a deletion raises."""
    # Whoever saves or deletes one waits for the commit (PostgreSQL).
    rows = {project_id: row for project_id in batch if (row := lock_project_row(batch[project_id]))}
    there = [batch[project_id] for project_id in rows]
    log(there)
    with collect_cleanups(rows) as collected:
        # By Django's own ways, which tell signal receivers the origin of the deletion.
        if len(there) == 1:
            delete_single_row(there[0], *rows.values())
        elif there:
            same = there
            if len(set(map(type, there))) > 1:
                # Django would take all for rows of the first one's model.
                same = [rows[project_model.id_of(reread_owner(owner))] for owner in there]
            filter_by_pks(all_rows(type(same[0])), [row.pk for row in same]).delete()
    made = group_by_project(collected.remaining())
    gone = dict.fromkeys([*rows, *made])
    left = project_model.existing_ids(gone)
    for project_id in rows:
        if project_id in left:
            raise ProjectExists(not_deleted_text(project_id, _("its model keeps such rows.")))
    return {project_id: made.get(project_id, []) for project_id in gone if project_id not in left}


def group_by_project(cleanups: Iterable[Cleanup]) -> CleanupsByProject:
    """Those of projects, one for each bucket: the last one if a project was deleted, created and
    deleted again."""
    last = {
        (str(each.project_id), each.bucket): each
        for each in cleanups
        if each.kind == Cleanup.Kind.PROJECT
    }
    grouped = CleanupsByProject()
    for (project_id, _bucket), cleanup in last.items():
        grouped.setdefault(project_id, []).append(cleanup)
    return grouped


@contextmanager
def collect_cleanups(requested: Iterable[str] = ()) -> Iterator[CleanupCollector]:
    """Collects the cleanups that the signal receivers make within this block."""
    collector = CleanupCollector(frozenset(requested), [])
    token = _collectors.set((*_collectors.get(), collector))
    try:
        yield collector
    finally:
        _collectors.reset(token)


def hand_over(cleanups: Iterable[Cleanup]) -> None:
    """Give the cleanups of a deletion to the code that deletes, and to its callers."""
    for collector in _collectors.get():
        collector.handed_over.extend(cleanups)


def is_requested_deletion(project_ids: set[str]) -> bool:
    """Whether the delete() call that deletes these projects is the requested one, and not one of a
    receiver or a hook of the site."""
    collectors = _collectors.get()
    return bool(collectors) and not project_ids.isdisjoint(collectors[-1].requested)


def lock_project_row(owner: Model) -> Model | None:
    """The project's row, or None if it is gone. Raises ProjectExists for a row that has another id
    by now, or one that the database cannot look up."""
    project_id, pk = project_model.id_of(owner), project_model.pk_of(owner)
    row = project_model.lock_project(project_id)
    # Another row may have the id by now.
    if row and project_model.pk_of(row) == pk:
        return row
    if project_model.all_rows().filter(pk=pk).exists():
        raise ProjectExists(
            not_deleted_text(project_id, _("its row is there, but cannot be found by this ID."))
        )
    return None


@transaction.atomic
def delete_all_or_none(owners: Iterable[Model]) -> None:
    """All of them or none. Raises what `delete_project_batch` does for the first that stays."""
    for batch in split_into_batches(owners):
        delete_project_batch(batch)


def delete_single_row(owner: Model, project: Model) -> None:
    """Use the delete() of the owner's model, unless only the project's model has its own. Raises
    what `reread_owner` does."""
    if type(owner).delete is Model.delete is not type(project).delete:
        project.delete()
        return
    row = reread_owner(owner)
    # Such as what an admin set for it, but no rows that were read with the owner.
    kept = {name: value for name, value in vars(owner).items() if name != PREFETCH_ATTRIBUTE}
    vars(row).update(kept | vars(row))
    if type(row).delete is Model.delete:
        row.delete(using=DEFAULT_DB_ALIAS)
    else:
        row.delete()


def reread_owner(owner: Model) -> Any:
    """Another delete() may have changed its row. Not by refresh_from_db(), which a model's own
    fields may refuse. Raises ProjectExists where only the project's row is left of a child's."""
    if row := all_rows(type(owner)).filter(pk=owner.pk).first():
        return row
    reason = _("it is no longer a %s.") % owner._meta.verbose_name
    raise ProjectExists(not_deleted_text(project_model.id_of(owner), reason))


def all_rows(model: type[Model]) -> QuerySet[Any]:
    """All rows of the table, past managers and routers. An order by another table would leave rows
    out that name no row there."""
    return QuerySet(model, using=DEFAULT_DB_ALIAS).order_by()


def delete_project(owner: Model) -> list[Cleanup] | None:
    """Delete a single project and return the cleanups that follow. None if it was gone before.
    Raises what `delete_project_batch` does."""
    project_id = project_model.id_of(owner)
    return delete_project_batch({project_id: owner}).get(project_id)


@transaction.atomic
def delete_project_by_id(project_id: str) -> list[Cleanup]:
    """The same of the row with this id; nothing happens where there is none any more."""
    owner = project_model.lock_project(project_id)
    return (delete_project(owner) if owner else None) or []
