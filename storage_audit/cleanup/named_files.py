"""Files that a project's rows name, under keys that do not name the project.

No cleanup finds them, so they are recorded before the rows go, and kept as items of the cleanup.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from django.db import models
from django.db.models.deletion import CASCADE, get_candidate_relations_to_delete
from django.utils.translation import gettext as _

from storage_audit import project_model
from storage_audit.bucket.listing import is_storable
from storage_audit.cleanup.models import Cleanup, CleanupItem
from storage_audit.conf import conf
from storage_audit.fields import insert_new_rows
from storage_audit.models import R2Object
from storage_audit.ownership.ownership_rule import get_key_formats, living_projects
from storage_audit.ownership.references import Cascade, split_chunks
from storage_audit.ownership.referring_columns import Column, file_columns
from storage_audit.ownership.row_evidence import row_provenance
from storage_audit.redaction import printable_text

logger = logging.getLogger(__name__)
FoundIn, Outcome = CleanupItem.FoundIn, CleanupItem.Outcome
# One of these is an id in most grammars.
SAMPLE_IDS = ("1", "proj_1", "a", "project-1", "00000000-0000-4000-8000-000000000001")


class NamedFile(NamedTuple):
    bucket: str
    key: str
    row: str


def cascading_models(start: type[models.Model]) -> set[type[models.Model]]:
    """The model, and those whose rows Django deletes with its own."""
    todo: list[Any] = [start]
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


def project_file_columns() -> list[Column]:
    cascading = cascading_models(project_model.get_model())
    return [column for column in file_columns() if column.model in cascading]


def find_named_files(project: models.Model) -> list[NamedFile]:
    """Files named by the rows that go with the project, except those that its cleanup finds."""
    found, columns = list[NamedFile](), project_file_columns()
    if not columns:
        return found
    cascade, project_id = Cascade([project]), project_model.stored_id(project)
    for column in columns:
        for some in cascade.rows_of(column.model):
            for pk, name in some.exclude(**{column.name: ""}).values_list("pk", column.name):
                key = column.prefix + (name or "")
                if (
                    name
                    and is_storable(key)
                    and project_id not in get_key_formats().parse_key(key).projects
                ):
                    found.append(NamedFile(column.bucket, key, column.describe_row(pk)))
    return found


def add_named_files(
    cleanups: Iterable[Cleanup],
    named: Iterable[NamedFile],
    deleted: Collection[str] = (),
) -> None:
    """Make them kept items of the cleanup in their bucket. Files of other projects are left to the
    cleanups of those, if they are `deleted` in the same call or were deleted just before."""
    named = list(named)
    for cleanup in cleanups:
        here = {each.key: each for each in named if each.bucket == cleanup.bucket}
        for some in split_chunks(here.values()):
            insert_new_rows(list(named_file_items(cleanup, some, deleted)))


def named_file_items(
    cleanup: Cleanup, named: list[NamedFile], deleted: Collection[str]
) -> Iterator[CleanupItem]:
    """Items for the files that no other cleanup will delete. A file that a person assigned is left
    to the cleanup of its project."""
    keys = [each.key for each in named]
    rows = R2Object.objects.in_bucket(cleanup.bucket).filter(key__any_of=keys)
    given = {row.key: {row.project_id or ""} for row in rows if row_provenance(row)}
    owners = {key: given.get(key) or get_key_formats().parse_key(key).projects for key in keys}
    others = {owner for some in owners.values() for owner in some}
    decided = living_projects(others) | owners_awaiting_cleanup(cleanup.bucket, others)
    for each in named:
        if not owners[each.key] & {*decided, *deleted, cleanup.project_id}:
            yield CleanupItem(
                cleanup=cleanup,
                key=each.key,
                identity=each.key,
                project_id=cleanup.project_id,
                found_in=FoundIn.NAMED,
                owner_evidence=_("named by %s") % each.row,
                outcome=Outcome.KEPT,
                reason=named_file_reason(each, owners[each.key]),
            )


def owners_awaiting_cleanup(bucket: str, owners: set[str]) -> set[str]:
    """The owners whose cleanup no worker has begun, so that it will still find all their files."""
    cleanups = Cleanup.objects.requested_deletions().filter(bucket=bucket, project_id__in=owners)
    kind, status = Cleanup.Kind.PROJECT, Cleanup.Status.PENDING
    new = cleanups.filter(kind=kind, status=status, started_at=None)
    return set(map(str, new.values_list("project_id", flat=True)))


def named_file_reason(named: NamedFile, owners: Collection[str]) -> str:
    if owners:
        text = _(
            "Kept: this project used the file in %(row)s, but the file name belongs to %(owners)s,"
            " which does not exist. Clean up the files of that project."
        )
    else:
        text = _(
            "Kept: this project used the file in %(row)s, but the name matches no known key format."
            " If nothing else uses it, delete it under “Files” or in the Cloudflare dashboard."
        )
    return text % {"row": named.row, "owners": ", ".join(sorted(map(printable_text, owners)))}


def sample_key(column: Column) -> str | None:
    """The key that an upload to this field of a project's row would get now; None where that takes
    a real row."""
    field: Any = column.field
    try:
        return column.prefix + str(field.generate_filename(sample_row(column.model), "file.mp4"))
    except Exception:
        # The site's own function, which may need a whole row.
        logger.debug("%s cannot be tried.", column.label, exc_info=True)
        return None


def sample_row(model: type[models.Model]) -> models.Model:
    name, owner = conf().project_id_field, project_model.get_model()
    fitting = filter(get_key_formats().is_project_id, SAMPLE_IDS)
    values = [value for sample in fitting for value in project_model.field_values(sample)]
    project = owner(**{name: values[0]}) if values else owner()
    if issubclass(owner, model):
        return project
    related = [
        field
        for field in model._meta.concrete_fields
        if field.related_model and issubclass(owner, field.related_model)
    ]
    return model(**{field.name: project for field in related})
