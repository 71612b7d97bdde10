"""Files that a project's rows name, under keys that no key format reads as the project's.

No cleanup finds them, so they are noted before the rows go, and kept as items of the cleanup.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from django.db import models, transaction
from django.db.models.deletion import CASCADE, get_candidate_relations_to_delete
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from storage_audit import project_model
from storage_audit.bucket.listing import storable
from storage_audit.cleanup.models import CleanupItem, CleanupOperation
from storage_audit.cleanup.turn import Work
from storage_audit.conf import conf
from storage_audit.fields import insert_new
from storage_audit.models import R2Object
from storage_audit.ownership.owner import alive_of, layouts, told_by
from storage_audit.ownership.references import Cascade, Column, chunks, file_columns
from storage_audit.redaction import visible

logger = logging.getLogger(__name__)
FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# One of these is an id in most grammars.
SAMPLE_IDS = ("1", "proj_1", "a", "project-1", "00000000-0000-4000-8000-000000000001")
FOUND = ["size", "etag", "last_modified", "present_at", "outcome", "changed_at"]


class Named(NamedTuple):
    bucket: str
    key: str
    row: str


def cascading_models() -> set[type[models.Model]]:
    """The model of the projects, and those whose rows Django deletes with theirs."""
    todo: list[Any] = [project_model.model()]
    found = set[type[models.Model]]()
    while todo:
        model = todo.pop()
        if model in found:
            continue
        found.add(model)
        todo += model._meta.get_parent_list()
        related: Iterable[Any] = get_candidate_relations_to_delete(model._meta)
        todo += [each.related_model for each in related if each.on_delete is CASCADE]
        generic = model._meta.private_fields
        todo += [each.related_model for each in generic if hasattr(each, "bulk_related_objects")]
    return {model._meta.concrete_model for model in found if model._meta.concrete_model}


def columns_of_projects() -> list[Column]:
    cascading = cascading_models()
    return [column for column in file_columns() if column.model in cascading]


def named_by(project: models.Model) -> list[Named]:
    """What the rows name that go with the project's, but for what its cleanup looks for."""
    found, columns = list[Named](), columns_of_projects()
    if not columns:
        return found
    cascade, project_id = Cascade([project]), project_model.stored_id(project)
    for column in columns:
        for some in cascade.rows(column.model):
            for pk, name in some.exclude(**{column.name: ""}).values_list("pk", column.name):
                key = column.prefix + (name or "")
                if name and storable(key) and project_id not in layouts().readings(key).projects:
                    found.append(Named(column.bucket, key, column.row(pk)))
    return found


def note(
    operations: Iterable[CleanupOperation],
    named: Iterable[Named],
    deleted: Collection[str] = (),
) -> None:
    """Make them items of the cleanup in their bucket that stay, but for files of other projects
    whose own cleanups decide on them: of those `deleted` in the same call, and of those deleted
    just before."""
    named = list(named)
    for operation in operations:
        here = {each.key: each for each in named if each.bucket == operation.bucket}
        for some in chunks(here.values()):
            insert_new(list(items(operation, some, deleted)))


def items(
    operation: CleanupOperation, named: list[Named], deleted: Collection[str]
) -> Iterator[CleanupItem]:
    """Of what nobody else will delete. A person may have given a file to this project, whose
    cleanup takes it then, or to another."""
    keys = [each.key for each in named]
    rows = R2Object.objects.in_bucket(operation.bucket).filter(key__any_of=keys)
    given = {row.key: {row.project_id or ""} for row in rows if told_by(row)}
    owners = {key: given.get(key) or layouts().readings(key).projects for key in keys}
    others = {owner for some in owners.values() for owner in some}
    decided = alive_of(others) | about_to_be_cleaned(operation.bucket, others)
    for each in named:
        if not owners[each.key] & {*decided, *deleted, operation.project_id}:
            yield CleanupItem(
                operation=operation,
                key=each.key,
                identity=each.key,
                project_id=operation.project_id,
                found_in=FoundIn.NAMED,
                evidence=_("named by %s") % each.row,
                outcome=Outcome.PROTECTED,
                reason=reason(each, owners[each.key]),
            )


def about_to_be_cleaned(bucket: str, owners: set[str]) -> set[str]:
    """Those of which no worker has begun the cleanup, which so still looks for all their files."""
    cleanups = CleanupOperation.objects.cleanups().filter(bucket=bucket, project_id__in=owners)
    kind, status = CleanupOperation.Kind.PROJECT, CleanupOperation.Status.PENDING
    new = cleanups.filter(kind=kind, status=status, started_at=None)
    return set(map(str, new.values_list("project_id", flat=True)))


def reason(named: Named, owners: set[str]) -> str:
    if owners:
        text = _(
            "Kept: %(row)s, a row of this project, named it, but its key names %(owners)s, which"
            " does not exist. Clean up after that project."
        )
    else:
        text = _(
            "Kept: %(row)s, a row of this project, named it, but no key format reads its key. If"
            " nothing else uses it, delete its R2 object row, or the file in the Cloudflare"
            " dashboard."
        )
    return text % {"row": named.row, "owners": ", ".join(sorted(map(visible, owners)))}


def look_up(work: Work) -> None:
    """Which of them are in the bucket. Raises TurnOver, StoreError, CannotConclude and
    LeaseLost."""
    operation = work.operation
    todo = operation.items.named().filter(present_at=None, outcome=Outcome.PROTECTED)
    while looked := work.look_up(todo.order_by("key")):
        for item, listed in looked:
            item.changed_at = timezone.now()
            if listed is None:
                item.outcome = Outcome.ALREADY_ABSENT
            else:
                item.size, item.etag = listed.size, listed.etag
                item.last_modified, item.present_at = listed.last_modified, timezone.now()
        with transaction.atomic():
            operation.renew(cursor=work.move())
            CleanupItem.objects.bulk_update([item for item, _seen in looked], FOUND, batch_size=200)
        work.breathe()


def forget_look(operation: CleanupOperation) -> None:
    """As it may have been at another bucket."""
    named = operation.items.named()
    named.update(present_at=None, outcome=Outcome.PROTECTED)


def kept_text(operation: CleanupOperation) -> str:
    kept = operation.items.named().filter(outcome=Outcome.PROTECTED).count()
    text = ngettext(
        "Kept: %d file that this project's rows named.",
        "Kept: %d files that this project's rows named.",
        kept,
    )
    return text % kept if kept else ""


def sample_key(column: Column) -> str | None:
    """Of a file that would be uploaded now to this field of a row of a project; None where that
    takes a real row."""
    field: Any = column.field
    try:
        return column.prefix + str(field.generate_filename(sample_row(column.model), "file.mp4"))
    except Exception:
        # The site's own function, which may need a whole row.
        logger.debug("%s cannot be tried.", column.label, exc_info=True)
        return None


def sample_row(model: type[models.Model]) -> models.Model:
    name, owner = conf().project_field, project_model.model()
    fitting = filter(layouts().is_project_id, SAMPLE_IDS)
    values = [value for sample in fitting for value in project_model.values_of(sample)]
    project = owner(**{name: values[0]}) if values else owner()
    if issubclass(owner, model):
        return project
    related = [
        field
        for field in model._meta.concrete_fields
        if field.related_model and issubclass(owner, field.related_model)
    ]
    return model(**{field.name: project for field in related})
