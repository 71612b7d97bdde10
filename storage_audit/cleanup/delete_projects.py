"""The one way in which the admin, the API and jobs delete projects."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Model, ProtectedError, QuerySet, RestrictedError
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.cleanup.models import CleanupOperation
from storage_audit.cleanup.requests import ProjectExists, deletion_of
from storage_audit.fields import limit_to
from storage_audit.redaction import redact, visible

logger = logging.getLogger(__name__)

# How a deletion says why the row stays.
REFUSALS = ProjectExists, ProtectedError, RestrictedError
# Writes the history of these rows, in the transaction that deletes them.
Log = Callable[[list[Any]], object]
Batch = dict[str, Model]
# The cleanups of deleted projects, by the projects' ids.
Made = dict[str, list[CleanupOperation]]
# Where Django keeps what prefetch_related() read.
PREFETCHED = "_prefetched_objects_cache"


class Noted(NamedTuple):
    """The projects whose deletion was asked for, and all whose deletion was signalled."""

    asked: frozenset[str]
    deleted: set[str]


_noted: ContextVar[Noted | None] = ContextVar("storage_audit_noted", default=None)


class Deletion(NamedTuple):
    """What became of the selected projects. Those that were gone before are not in it."""

    deleted: list[str]
    operations: list[CleanupOperation]
    # A sentence each, with the reason.
    kept: list[str]
    # What the site's hooks raised after a commit.
    failures: list[Exception]


def has_own_delete(owners: Iterable[Model] = ()) -> bool:
    """Whether the model of the rows, or of the projects, has a delete() of its own. What that did
    outside the database, such as to files, cannot be rolled back: so it shares no transaction."""
    models: set[type[Model]] = {project_model.model(), *map(type, owners)}
    return any(model.delete is not Model.delete for model in models)


def split(owners: Iterable[Model]) -> list[Batch]:
    """What is deleted in one transaction, by the projects' ids."""
    by_id = {project_model.id_of(owner): owner for owner in owners}
    if has_own_delete(by_id.values()):
        return [{project_id: owner} for project_id, owner in by_id.items()]
    return [by_id]


def delete_projects(owners: Iterable[Model], log: Log) -> Deletion:
    """Delete those that can be deleted, and say which ones stay. The owners are rows of the project
    model, of a child or a proxy of it, or of the model that it is a proxy of."""
    todo, made, kept, failures = split(owners), Made(), dict[str, str](), list[Exception]()
    ids = [project_id for batch in todo for project_id in batch]
    while todo:
        refused = list[tuple[Batch, Exception]]()
        for batch in todo:
            error = try_to_delete(batch, made, log, failures)
            refused += [(batch, error)] if error else []
        for batch, error in refused:
            kept |= dict.fromkeys(batch, explain(batch, error))
        # A row that needed one of them may have gone with another one.
        again = [batch for batch, error in refused if isinstance(error, RestrictedError)]
        todo = again if len(refused) < len(todo) else []
    operations = [each for cleanups in made.values() for each in cleanups]
    # Those that are refused together have one sentence.
    texts = dict.fromkeys(text for project_id, text in kept.items() if project_id not in made)
    return Deletion([each for each in ids if each in made], operations, list(texts), failures)


def try_to_delete(
    batch: Batch, made: Made, log: Log, failures: list[Exception]
) -> Exception | None:
    """Why none of the batch was deleted, or None; adds to what was made. Another error is an answer
    only where a model has its own delete(): the other projects then have answers of their own. Else
    it is raised."""
    try:
        with committing(failures):
            deleted = delete_batch(batch, log)
        made |= deleted
    except REFUSALS as refusal:
        return refusal
    except Exception as error:
        if not has_own_delete(batch.values()):
            raise
        logger.exception("The deletion of project %s failed", *map(visible, batch))
        return error
    return None


@contextmanager
def committing(failures: list[Exception]) -> Iterator[None]:
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


def explain(batch: Batch, error: Exception) -> str:
    reason = reason_of(error) if isinstance(error, REFUSALS) else ""
    if len(batch) > 1:
        return _("None of the selected projects was deleted. %s") % reason
    if isinstance(error, ProjectExists):
        return reason
    [project_id] = batch
    return tell(project_id, reason or _("its deletion failed. The server's log says why."))


def reason_of(refusal: Exception) -> str:
    """The site's own words, which may quote anything."""
    return visible(redact(str(refusal.args[0]))) if refusal.args else ""


def tell(project_id: str, reason: str) -> str:
    words = {"project": project_id, "reason": reason}
    return _("Project %(project)s was not deleted: %(reason)s") % words


@transaction.atomic
def delete_batch(batch: Batch, log: Log = list) -> Made:
    """Delete those that are still there, all or none: each by its own delete() if it has one. The
    cleanups of these, and of projects that went along. Those that somebody else deleted are not
    among them. Raises ProjectExists if that keeps the row, and whatever else a deletion raises."""
    # Whoever saves or deletes one waits for the commit (PostgreSQL).
    rows = {project_id: row for project_id in batch if (row := lock_row(batch[project_id]))}
    there = [batch[project_id] for project_id in rows]
    log(there)
    with note_deleted(rows) as noted:
        # By Django's own ways, which tell signal receivers the origin of the deletion.
        if len(there) == 1:
            delete_alone(there[0], *rows.values())
        elif there:
            same = there
            if len(set(map(type, there))) > 1:
                # Django would take all for rows of the first one's model.
                same = [rows[project_model.id_of(read_again(owner))] for owner in there]
            limit_to(stored(type(same[0])), [row.pk for row in same]).delete()
    gone = dict.fromkeys([*rows, *noted])
    left = project_model.present(gone)
    for project_id in rows:
        if project_id in left:
            raise ProjectExists(tell(project_id, _("its model keeps such rows.")))
    return {project_id: deletion_of(project_id) for project_id in gone if project_id not in left}


@contextmanager
def note_deleted(project_ids: Iterable[str]) -> Iterator[set[str]]:
    """These ids, and those of the projects whose deletion is signalled meanwhile; some of these
    deletions may have been rolled back."""
    noted = Noted(frozenset(project_ids), set(project_ids))
    token = _noted.set(noted)
    try:
        yield noted.deleted
    finally:
        _noted.reset(token)


def note(project_id: str) -> None:
    """Add the project to what `note_deleted` gathers, if somebody asked for it."""
    if (noted := _noted.get()) is not None:
        noted.deleted.add(project_id)


def is_asked_for(project_ids: set[str]) -> bool:
    """Whether the one delete() call that deletes these projects is the one that was asked for, and
    no other one of a receiver or a hook of the site."""
    noted = _noted.get()
    return noted is not None and not project_ids.isdisjoint(noted.asked)


def lock_row(owner: Model) -> Model | None:
    """The project's row, or None if it is gone. Raises ProjectExists for a row that has another id
    by now, or one that the database cannot look up."""
    project_id, pk = project_model.id_of(owner), project_model.pk_of(owner)
    row = project_model.lock(project_id)
    # Another row may have the id by now.
    if row and project_model.pk_of(row) == pk:
        return row
    if project_model.every().filter(pk=pk).exists():
        raise ProjectExists(
            tell(project_id, _("its row is there, but cannot be found by this id."))
        )
    return None


@transaction.atomic
def delete_together(owners: Iterable[Model]) -> None:
    """All of them or none. Raises what `delete_batch` does for the first that stays."""
    for batch in split(owners):
        delete_batch(batch)


def delete_alone(owner: Model, project: Model) -> None:
    """By the delete() of the owner's model, unless only that of the project's is its own. Raises
    what `read_again` does."""
    if type(owner).delete is Model.delete is not type(project).delete:
        project.delete()
        return
    row = read_again(owner)
    # Such as what an admin set for it, but no rows that were read with the owner.
    kept = {name: value for name, value in vars(owner).items() if name != PREFETCHED}
    vars(row).update(kept | vars(row))
    if type(row).delete is Model.delete:
        row.delete(using=DEFAULT_DB_ALIAS)
    else:
        row.delete()


def read_again(owner: Model) -> Any:
    """Another delete() may have changed its row. Not by refresh_from_db(), which a model's own
    fields may refuse. Raises ProjectExists where only the project's row is left of a child's."""
    if row := stored(type(owner)).filter(pk=owner.pk).first():
        return row
    reason = _("it is no longer a %s.") % owner._meta.verbose_name
    raise ProjectExists(tell(project_model.id_of(owner), reason))


def stored(model: type[Model]) -> QuerySet[Any]:
    """All rows of the table, past managers and routers. An order by another table would leave rows
    out that name no row there."""
    return QuerySet(model, using=DEFAULT_DB_ALIAS).order_by()


def delete_project(owner: Model) -> list[CleanupOperation] | None:
    """Delete a single project; the cleanups that follow. None if it was gone before. Raises what
    `delete_batch` does."""
    project_id = project_model.id_of(owner)
    return delete_batch({project_id: owner}).get(project_id)


@transaction.atomic
def delete_project_by_id(project_id: str) -> list[CleanupOperation]:
    """The same of the row with this id; nothing happens where there is none any more."""
    owner = project_model.lock(project_id)
    return (delete_project(owner) if owner else None) or []
