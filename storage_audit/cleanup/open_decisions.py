"""Decisions that keep an object from being deleted, whatever project owns it.

An object that an open cleanup covers is deleted by no other way: a person, or a worker, has yet to
decide on it there. An object whose finding is acknowledged is not deleted at all."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q
from django.utils.translation import gettext as _

from storage_audit.bucket.listing import Identity, nfc, storable
from storage_audit.bucket.multipart import Upload
from storage_audit.bucket.s3 import Listed
from storage_audit.cleanup.models import CleanupItem, CleanupOperation, CleanupOperationQuerySet
from storage_audit.fields import spellings
from storage_audit.models import KnownProject
from storage_audit.ownership.key_format import Readings
from storage_audit.ownership.owner import (
    Facts,
    Row,
    alive_of,
    has_too_many_owners,
    is_given,
    layouts,
    may_be_outdated,
    named_in,
    shorten,
    telling,
)

Status = CleanupOperation.Status


class Keeper(Protocol):
    """Tells what people keep. Findings do, which cleanups must not import."""

    def find_acknowledged(self, bucket: str, seen: Iterable[Listed]) -> dict[str, str]:
        """By key as it is listed, why no cleanup deletes the object."""

    def find_acknowledged_keys(self, bucket: str, keys: Iterable[str]) -> dict[str, str]:
        """By key, in any spelling, why its row stays."""

    def find_acknowledged_uploads(self, bucket: str, uploads: Iterable[Upload]) -> dict[str, str]:
        """By upload ID, why a person keeps an unfinished upload."""


_keepers = list[Keeper]()


class Owners(NamedTuple):
    """Projects that an object may belong to. With `too_many` others can own it as well."""

    names: set[str]
    too_many: bool = False


def possible_owners(readings: Readings, rows: Sequence[Row], stored: Facts | None = None) -> Owners:
    """The projects whose cleanups may take the object, also those whose ids the grammar refuses.
    Only a person's decision about this very object rules any of them out."""
    names = named_in(rows) if is_given(rows, stored) else readings.owners | named_in(rows)
    return Owners(names, has_too_many_owners(readings, rows, stored))


def rows_decide(rows: Sequence[Row], stored: Facts | None) -> bool:
    return bool(telling(rows)) and not may_be_outdated(rows, stored)


def unsure_among(
    keys: Iterable[str],
    rows: Mapping[str, Sequence[Row]],
    found: Mapping[str, Listed],
    identity: Identity,
) -> list[str]:
    """Those whose owner no row is sure of."""
    names = {key: identity(key) for key in keys}
    return [k for k, name in names.items() if not rows_decide(rows.get(name, ()), found.get(name))]


def find_covering(
    bucket: str,
    owners: Mapping[str, Owners],
    asking: CleanupOperation | None = None,
    *,
    follow_ups: bool = False,
) -> dict[str, CleanupOperation]:
    """The open cleanup of each of these objects that one covers, but for the one that is asking;
    also a follow-up check that is yet to begin, if these are asked for.

    Objects are given by key or identity, with the projects that they may belong to.
    """
    every = CleanupOperation.objects
    cleanups = every.open().deleting() if follow_ups else every.covering()
    cleanups = cleanups.about_bucket(bucket)
    if asking:
        cleanups = cleanups.unrelated_to(asking)
    return cover(cleanups, owners)


def find_undecided(
    bucket: str, owners: Mapping[str, Owners], asking: Q | None = None
) -> dict[str, str]:
    """By key, why a file is kept: a blocked cleanup, other than the asking one, covers the file
    too, and a person has yet to decide there. Of two blocked ones the last to be approved takes
    it."""
    cleanups = CleanupOperation.objects.covering().about_bucket(bucket)
    cleanups = cleanups.filter(status=Status.BLOCKED)
    if asking:
        cleanups = cleanups.exclude(asking)
    if not cleanups.exists():
        return {}
    # Requests and columns can carry no other keys, so no cleanup has them as items.
    others = {key: names for key, names in owners.items() if storable(key)}
    return {key: why_covered(cleanup) for key, cleanup in cover(cleanups, others).items()}


def find_untracked(
    bucket: str, keys: Iterable[str], project_id: str | None = None
) -> dict[str, str]:
    """By key, why a file is kept of which no row decides any more: a deleted row named a live
    project, other than the asking one. The row's own cleanup keeps what is not the object of that
    row, so by its key alone the file could be taken for another project's."""
    forms = group_by_form(filter(storable, keys))
    items = CleanupItem.objects.of_deleted_rows(bucket).exclude(project_id=project_id)
    found = items.filter(identity__any_of=forms).values_list("identity", "project_id")
    owners = defaultdict[str, set[str]](set)
    for form, owner in found if forms else ():
        for key in forms[form]:
            owners[key].add(owner or "")
    alive = alive_of(chain.from_iterable(owners.values())) if owners else set[str]()
    text = _(
        "Kept: a deleted row gave this file to the live project %s, and the file may be newer than"
        " that row. Adopt the file into a project. If the file is to go, delete its row after that."
    )
    return {
        key: text % shorten(sorted(names & alive)) for key, names in owners.items() if names & alive
    }


def register_keeper(keeper: Keeper) -> None:
    _keepers[:] = [keeper]


def ask_keeper() -> Keeper:
    """Raises ImproperlyConfigured: while nobody tells what people keep, nothing may be deleted."""
    if not _keepers:
        raise ImproperlyConfigured("Nobody tells which files people keep: see storage_audit.apps.")
    return _keepers[0]


def asked_by(operation: CleanupOperation) -> Q:
    """A verification, or a dry run, shows what the project's own cleanup is to delete."""
    return Q(pk=operation.pk) if operation.deletes else of_project(operation.project_id)


def of_project(project_id: str | None) -> Q:
    return Q(kind=CleanupOperation.Kind.PROJECT, project_id=project_id)


def cover(
    cleanups: CleanupOperationQuerySet, owners: Mapping[str, Owners]
) -> dict[str, CleanupOperation]:
    cleanups = cleanups.only("kind", "status", "project_id")
    unnamed = find_unnamed_owners(cleanups, [k for k, each in owners.items() if each.too_many])
    names = {key: each.names | unnamed.get(key, set()) for key, each in owners.items()}
    by_project = find_by_project(cleanups, set[str]().union(*names.values()))
    covering = find_by_item(cleanups, owners)
    for key, its_names in names.items():
        for name in sorted(by_project.keys() & its_names):
            covering[key] = by_project[name]
    return covering


def find_unnamed_owners(
    cleanups: CleanupOperationQuerySet, keys: Collection[str]
) -> dict[str, set[str]]:
    """By key, those projects of the cleanups that it could name, in any spelling: it has too many
    possible owners to ask for them all."""
    if not keys:
        return {}
    ids = set(cleanups.of_projects().values_list("project_id", flat=True))
    ids.update(*(each.cursor["projects"] for each in cleanups.disappearances().only("cursor")))
    by_form = defaultdict[str, set[str]](set)
    for project_id in filter(None, ids):
        by_form[nfc(project_id)].add(project_id)
    longest = max(map(len, by_form), default=0)
    named = {key: by_form.keys() & layouts().find_ids(nfc(key), longest) for key in keys}
    return {
        key: set[str]().union(*(by_form[form] for form in forms)) for key, forms in named.items()
    }


def find_by_project(
    cleanups: CleanupOperationQuerySet, names: Collection[str]
) -> dict[str, CleanupOperation]:
    # Two of the names can be spellings of one id.
    forms = defaultdict[str, set[str]](set)
    for name in names:
        for form in spellings(name):
            forms[form].add(name)
    if not forms:
        return {}
    # Of many that disappeared at once, those that nobody decided on since. Each gets a cleanup.
    gone = KnownProject.objects.vanished().filter(pk__any_of=forms)
    found = {
        project_id: each
        for each in cleanups.disappearances().only("kind", "status", "cursor")
        for project_id in set(gone.values_list("pk", flat=True)) & set(each.cursor["projects"])
    }
    of_projects = cleanups.of_projects().filter(project_id__any_of=forms)
    found |= {each.project_id or "": each for each in of_projects}
    return {name: found[form] for form in found for name in forms[form]}


def find_by_item(
    cleanups: CleanupOperationQuerySet, keys: Collection[str]
) -> dict[str, CleanupOperation]:
    keys_by_form = group_by_form(keys)
    items = CleanupItem.objects.named_by(cleanups)
    items = items.filter(identity__any_of=keys_by_form, escaped=False)
    found = items.values_list("operation", "identity") if keys_by_form else ()
    named = {key: operation for operation, form in found for key in keys_by_form[form]}
    operations = cleanups.in_bulk(set(named.values()))
    return {key: operations[pk] for key, pk in named.items() if pk in operations}


def group_by_form(keys: Iterable[str]) -> dict[str, list[str]]:
    """An item may spell the same object otherwise, in its identity as well as in its key."""
    found = defaultdict[str, list[str]](list)
    for key in keys:
        for form in spellings(key):
            found[form].append(key)
    return dict(found)


def why_covered(cleanup: CleanupOperation) -> str:
    """What keeps the object from other ways to delete it, and what to do."""
    if cleanup.status in (Status.BLOCKED, Status.FAILED):
        text = _(
            "Cleanup %(id)s covers this file and is %(status)s. Force-delete that cleanup on its"
            " page: until it is over, nothing else deletes the file."
        )
    else:
        text = _(
            "Cleanup %(id)s covers this file and is %(status)s. Wait until it is over: until then,"
            " nothing else deletes the file."
        )
    return text % {"id": cleanup.pk, "status": cleanup.get_status_display()}
