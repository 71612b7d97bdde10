"""The rows that own objects: Project's, or those of the model STORAGE_AUDIT_PROJECT_MODEL.

A project's id is the text that stands in keys: the value of STORAGE_AUDIT["PROJECT_ID_FIELD"],
which is the primary key unless that says otherwise.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Any
from unicodedata import normalize

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import DEFAULT_DB_ALIAS, connection, models
from django.db.models import F, Value
from django.db.models.functions import Cast, Collate, Concat, Substr

from storage_audit.conf import conf
from storage_audit.fields import (
    BYTEWISE_COLLATIONS,
    find_in_any_spelling,
    find_in_chunks,
    unicode_spellings,
)

IDS_PER_QUERY = 10_000
# Fields whose values the database writes as text just as Python does.
ID_FIELD_TYPES = (models.CharField, models.TextField, models.IntegerField, models.UUIDField)
# Letters that Unicode has a second time, for use as units.
TWIN_LETTERS = {"K": "\N{KELVIN SIGN}", "\u00c5": "\N{ANGSTROM SIGN}", "\u03a9": "\N{OHM SIGN}"}
MAX_SPELLINGS = 256
# Where the hyphens of a UUID divide its 32 digits: start and length of each part.
UUID_PARTS = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))


def get_model() -> type[models.Model]:
    """Raises ImproperlyConfigured when the setting names no model."""
    label = getattr(settings, "STORAGE_AUDIT_PROJECT_MODEL", "storage_audit.Project")
    try:
        return apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise ImproperlyConfigured(
            f"STORAGE_AUDIT_PROJECT_MODEL is {label!r}. Set it to app_label.ModelName of an"
            " installed app."
        ) from error


def id_field() -> Any:
    """The field that holds the id itself, also where the primary key points at a parent's."""
    meta, name = get_model()._meta, conf().project_id_field
    found: Any = meta.pk if name == "pk" else meta.get_field(name)
    while found.is_relation:
        found = found.target_field
    return found


def id_of(project: models.Model) -> str:
    name = conf().project_id_field
    value = pk_of(project) if name == "pk" else getattr(project, name)
    # An instance that was not read from the database may hold another spelling of the value.
    return str(id_field().to_python(value))


def pk_of(project: models.Model) -> Any:
    """The key of the project's own row: a child of several models may have another one's as its
    primary key."""
    pk: Any = get_model()._meta.pk
    return getattr(project, pk.attname)


def stored_id(project: models.Model) -> str:
    """The id in the row itself, of which the instance may hold another by now."""
    name = conf().project_id_field
    if name == "pk":
        return id_of(project)
    stored = all_rows().filter(pk=pk_of(project)).values_list(name, flat=True).first()
    return id_of(project) if stored is None else str(stored)


def annotated_rows() -> models.QuerySet[Any]:
    """Every project, also what its own manager hides; the id is annotated."""
    annotated: models.QuerySet[Any] = all_rows().annotate(
        storage_audit_id=id_expression(get_model())
    )
    return annotated


def all_rows() -> models.QuerySet[Any]:
    # No manager of the model's own: Meta.base_manager_name can name one that hides rows, too. And
    # no replica, which may not know yet that an id lives again. No order: Meta.ordering may join
    # rows that need not be there, and PostgreSQL does not lock past such a join.
    return models.QuerySet(get_model(), using=DEFAULT_DB_ALIAS).order_by()


def iterate_ids() -> Iterator[str]:
    """The id of every project, read some at a time, for callers that can wait."""
    name = conf().project_id_field
    rows, after = all_rows().order_by(name).values_list(name, flat=True), None
    while chunk := list(
        (rows if after is None else rows.filter(**{f"{name}__gt": after}))[:IDS_PER_QUERY]
    ):
        yield from map(str, chunk)
        after = chunk[-1]


def living_ids(ids: Iterable[str]) -> set[str]:
    """Which of these ids have a row, also one that spells the id with other code points."""
    return find_in_any_spelling(ids, ids_with_rows)


def existing_ids(ids: Iterable[str]) -> set[str]:
    """Which of these ids have a row that spells them just so."""
    asked = set(ids)
    return asked & find_in_chunks(asked, ids_with_rows)


def id_spellings(project_id: str) -> set[str]:
    """This id, and others that are the same text in other code points. A store that folds Unicode
    takes the keys of all of them for the same."""
    composed = normalize("NFC", project_id)
    letters = [(letter, *TWIN_LETTERS.get(letter, ())) for letter in composed]
    others = map("".join, islice(product(*letters), MAX_SPELLINGS))
    return unicode_spellings(project_id) | unicode_spellings(composed) | set(others)


def ids_with_rows(ids: Iterable[str]) -> set[str]:
    name = conf().project_id_field
    values = [value for text in ids for value in field_values(text)]
    found = all_rows().filter(**{f"{name}__in": values})
    return set(map(str, found.values_list(name, flat=True)))


def lock_project(project_id: str) -> models.Model | None:
    """The row with this id, for which others wait until the commit (PostgreSQL); None if there is
    none, or not any more."""
    row: models.Model | None = filter_by_id(project_id).select_for_update().first()
    return row


def filter_by_id(project_id: str) -> models.QuerySet[Any]:
    """The row with exactly this id, if there is one: its column may ignore case. The values find it
    by the column's index."""
    values = {f"{conf().project_id_field}__in": field_values(project_id)}
    return annotated_rows().filter(**values, storage_audit_id=project_id)


def is_alive(project_id: str | None) -> bool:
    return project_id is not None and project_id in living_ids([project_id])


def field_values(text: str) -> list[Any]:
    """The value that is written so; none when none is, as for "007" in a field of numbers.

    The field's validators are not asked: save() does not ask them either, so there are rows that
    they would refuse.
    """
    try:
        value = id_field().to_python(text)
        text.encode()
    except (ValidationError, UnicodeEncodeError):
        return []
    fits = -(2**63) <= value < 2**63 if isinstance(value, int) else "\0" not in text
    return [value] if fits and str(value) == text else []


def id_expression(row_model: type[models.Model]) -> Any:
    """The id in the database's own words; the same text as `id_of`. In rows of the project model,
    its proxies or its children: a child's own primary key may be that of another parent."""
    name = path_to_project(row_model) + conf().project_id_field
    if isinstance(id_field(), (models.CharField, models.TextField)):
        # A column with a collation of its own cannot be compared with ours.
        return Collate(F(name), BYTEWISE_COLLATIONS[connection.vendor])
    text = Cast(name, models.TextField())
    if not isinstance(id_field(), models.UUIDField) or connection.features.has_native_uuid_field:
        return text
    first, *others = (Substr(text, start, length) for start, length in UUID_PARTS)
    return Concat(first, *(part for other in others for part in (Value("-"), other)))


def path_to_project(row_model: type[models.Model]) -> str:
    """The parent links from this model's rows to those of the project model, as a lookup's prefix.
    Raises ImproperlyConfigured when there are none: another table's keys are no project ids."""
    path, here, owner = (
        "",
        row_model._meta.concrete_model or row_model,
        get_model()._meta.concrete_model or get_model(),
    )
    while here is not owner:
        link = here._meta.get_ancestor_link(owner)
        if link is None:
            raise ImproperlyConfigured(
                f"{row_model._meta.label} is neither the project model {owner._meta.label} nor a"
                " child or proxy of it. Use OwnerAdmin for those only, or change the setting"
                " STORAGE_AUDIT_PROJECT_MODEL."
            )
        path, here = f"{path}{link.name}__", link.remote_field.model
    return path


class ProjectExists(Exception):
    """The project exists, so its files are no leftovers; the message says what to do."""
